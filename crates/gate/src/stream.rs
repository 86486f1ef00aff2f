//! What all gates do with a stream: nothing waits for the other side.

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use lazaret_sys::local;
use rustix::io::{self, Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, UCred, connect, recvmsg, send, sendmsg,
};
use rustix::process::{getegid, geteuid, getpid};

/// The connection is over, for whatever reason.
pub(crate) struct Over;

/// A socket that is connected to a server. Never waits: a server whose queue is full is not to be waited for.
pub(crate) fn open(address: &SocketAddrUnix) -> io::Result<OwnedFd> {
    let socket = local::socket(SocketType::STREAM, SocketFlags::NONBLOCK)?;
    connect(&socket, address)?;
    Ok(socket)
}

/// Writes as much as is taken; an error means that nobody is there.
pub(crate) fn write_some(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Result<(), Over> {
    let mut at = 0;
    let result = loop {
        if at == bytes.len() {
            break Ok(());
        }
        match send(to, &bytes[at..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(n) => at += n,
            Err(Errno::AGAIN) => break Ok(()),
            Err(Errno::INTR) => {}
            Err(_) => break Err(Over),
        }
    };
    bytes.drain(..at);
    result
}

/// Reads once. Who sends a descriptor, or has gone, is let go.
pub(crate) fn receive_plain(from: BorrowedFd<'_>, chunk: &mut [u8]) -> Result<usize, Over> {
    // Without a buffer for them, descriptors that come along are closed by the kernel (unix(7)). Credentials of the
    // sender, which libraries send unasked, are no descriptors and are not asked for.
    let mut none = RecvAncillaryBuffer::default();
    match recvmsg(from, &mut [IoSliceMut::new(chunk)], &mut none, RecvFlags::DONTWAIT) {
        Ok(message) if message.bytes == 0 || message.flags.contains(ReturnFlags::CTRUNC) => Err(Over),
        Ok(message) => Ok(message.bytes),
        Err(Errno::AGAIN | Errno::INTR) => Ok(0),
        Err(_) => Err(Over),
    }
}

/// Sends the first bytes with our credentials, by which a server knows its own user (unix(7), SCM_CREDENTIALS). The
/// kernel adds them by itself only for a server that has asked for them by then. False if nothing was taken yet.
pub(crate) fn introduce(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Result<bool, Over> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let ours = UCred { pid: getpid(), uid: geteuid(), gid: getegid() };
    if !control.push(SendAncillaryMessage::ScmCredentials(ours)) {
        return Err(Over);
    }
    match sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(n) => {
            bytes.drain(..n);
            Ok(true)
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(_) => Err(Over),
    }
}

//! Sockets between processes of one machine: addresses below an open directory, and descriptors that travel along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::{self, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};

/// No message carries more descriptors.
pub const MOST_ALONG: usize = 16;

/// A new socket of this kind, which no program that is executed inherits.
pub fn socket(kind: SocketType, flags: SocketFlags) -> io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, kind, flags | SocketFlags::CLOEXEC, None)
}

/// The address of the socket `name` in the directory `dir`. Addresses are short (unix(7)); a descriptor's name in proc
/// is shorter than any path, and it is this directory and no other.
pub fn address_in(dir: impl AsFd, name: &str) -> io::Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", dir.as_fd().as_raw_fd()))
}

/// Says `bytes`, with [`MOST_ALONG`] descriptors at most. How many bytes were taken comes back.
pub fn send_along(line: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_ALONG))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Errno::TOOMANYREFS);
    }
    sendmsg(line, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
}

/// What was heard.
#[derive(Debug)]
pub struct Received {
    /// How many bytes. None, and no descriptor: the other side has hung up.
    pub bytes: usize,
    /// The descriptors that came along. Those beyond [`MOST_ALONG`] are closed.
    pub fds: Vec<OwnedFd>,
    /// Whether the message was longer than the space for it.
    pub cut: bool,
}

/// Hears what comes next.
pub fn receive_along(line: impl AsFd, space: &mut [u8], flags: RecvFlags) -> io::Result<Received> {
    let mut along = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_ALONG))];
    let mut control = RecvAncillaryBuffer::new(&mut along);
    let received = retry_on_intr(|| {
        recvmsg(&line, &mut [IoSliceMut::new(&mut *space)], &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = rights.flatten().collect();
    Ok(Received { bytes: received.bytes, fds, cut: received.flags.contains(ReturnFlags::TRUNC) })
}

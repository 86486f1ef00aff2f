//! What the network needs of the kernel beyond rustix: the loopback, and how a netlink socket answers.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::check;

/// Sets `lo` of the caller's network namespace up (SIOCSIFFLAGS, netdevice(7)).
pub fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives across the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into()).map(drop)
}

/// How a netlink socket answers (netlink(7), "Socket options").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetlinkOption {
    /// An acknowledgement does not repeat the request (NETLINK_CAP_ACK, Linux 4.3).
    ShortAcks,
    /// A refusal carries the kernel's sentence about it (NETLINK_EXT_ACK, Linux 4.12).
    Sentences,
}

/// Turns an option of a netlink socket on.
pub fn netlink_option(socket: BorrowedFd<'_>, option: NetlinkOption) -> io::Result<()> {
    let name = match option {
        NetlinkOption::ShortAcks => libc::NETLINK_CAP_ACK,
        NetlinkOption::Sentences => libc::NETLINK_EXT_ACK,
    };
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: both options read one `int`, which lives across the call and whose size is given.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, name, (&raw const on).cast(), length) };
    check(set.into()).map(drop)
}

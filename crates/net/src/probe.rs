//! One packet, sent as a container would send it: what it tells is what the kernel does, whatever is written anywhere.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lazaret_base::{Result, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
    sockopt,
};
use serde::Serialize;

use crate::netlink;

/// How long an answer may take.
const WITHIN: Duration = Duration::from_millis(2500);

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// None was sent.
    None,
    /// It was answered.
    Answered {
        /// After so long.
        microseconds: u64,
    },
    /// It arrived where nobody listens.
    Refused,
    /// It was turned away on the way.
    Prohibited,
    /// Nobody answered.
    Silence,
    /// It was sent, and nothing more can be known.
    Sent,
    /// It could not even be sent.
    Failed(String),
}

/// Sends a packet from a network namespace and waits for its answer: an echo request, or what begins a connection to
/// a port.
pub fn send_from(network: BorrowedFd<'_>, to: IpAddr, port: Option<u16>, udp: bool) -> Proof {
    let sent = match (port, udp) {
        (Some(port), false) => knock(network, SocketAddr::new(to, port)),
        (Some(port), true) => throw(network, SocketAddr::new(to, port)),
        (None, _) => echo(network, to),
    };
    sent.unwrap_or_else(|e| Proof::Failed(e.to_string()))
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

/// A socket belongs to the namespace that it was made in, wherever it is used.
fn socket(network: BorrowedFd<'_>, of: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(netlink::inside(network, || socket_with(family(of), kind, flags, protocol))??)
}

fn knock(network: BorrowedFd<'_>, to: SocketAddr) -> Result<Proof> {
    let socket = socket(network, to.ip(), SocketType::STREAM, None)?;
    let begun = Instant::now();
    match connect(&socket, &to) {
        Ok(()) => return Ok(answered(begun)),
        Err(Errno::INPROGRESS) => {}
        Err(e) => return Ok(refused(e)),
    }
    if !ready(&socket, PollFlags::OUT, begun)? {
        return Ok(Proof::Silence);
    }
    Ok(match sockopt::socket_error(&socket)? {
        Ok(()) => answered(begun),
        Err(e) => refused(e),
    })
}

/// What came back as an error: a reset is an answer of the host's own, the rest is word of others on the way.
fn refused(e: Errno) -> Proof {
    match e {
        Errno::CONNREFUSED => Proof::Refused,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS | Errno::PERM => Proof::Prohibited,
        Errno::TIMEDOUT => Proof::Silence,
        e => Proof::Failed(lazaret_base::Error::from(e).to_string()),
    }
}

fn throw(network: BorrowedFd<'_>, to: SocketAddr) -> Result<Proof> {
    const WORD_COMES_BACK_WITHIN: Duration = Duration::from_millis(500);
    let socket = socket(network, to.ip(), SocketType::DGRAM, None)?;
    let begun = Instant::now();
    if let Err(e) = connect(&socket, &to).and_then(|()| send(&socket, &[0], SendFlags::NOSIGNAL)) {
        return Ok(refused(e));
    }
    if !ready_within(&socket, PollFlags::IN, begun + WORD_COMES_BACK_WITHIN)? {
        return Ok(Proof::Sent);
    }
    Ok(match recv(&socket, &mut [0u8; 16], RecvFlags::empty()) {
        Ok(_) => answered(begun),
        Err(e) => refused(e),
    })
}

/// Types of RFC 792 and RFC 4443.
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO6: u8 = 128;
const ECHO6_REPLY: u8 = 129;

fn echo(network: BorrowedFd<'_>, to: IpAddr) -> Result<Proof> {
    let protocol = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
    let socket = socket(network, to, SocketType::RAW, Some(protocol))?;
    let begun = Instant::now();
    if let Err(e) = connect(&socket, &SocketAddr::new(to, 0)) {
        return Ok(refused(e));
    }
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let request = echo_request(if to.is_ipv4() { ECHO } else { ECHO6 }, [high, low]);
    if let Err(e) = send(&socket, &request, SendFlags::NOSIGNAL) {
        return Ok(refused(e));
    }
    let reply = if to.is_ipv4() { ECHO_REPLY } else { ECHO6_REPLY };
    loop {
        if !ready(&socket, PollFlags::IN, begun)? {
            return Ok(Proof::Silence);
        }
        let mut bytes = [0u8; 256];
        let received = match recv(&socket, &mut bytes, RecvFlags::empty()) {
            Ok((received, _)) => received,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(e) => return Ok(refused(e)),
        };
        // A raw socket of IPv4 shows the IP header, too (raw(7)).
        let packet = bytes.get(..received).unwrap_or_default();
        let header = if to.is_ipv4() { packet.first().map_or(0, |first| usize::from(first & 15) * 4) } else { 0 };
        let message = packet.get(header..).unwrap_or_default();
        if message.len() >= 8 && message[0] == reply && message[4..6] == [high, low] {
            return Ok(answered(begun));
        }
    }
}

/// The kernel fills in the checksum of ICMPv6 (RFC 3542 section 3.1), not that of ICMP.
fn echo_request(kind: u8, id: [u8; 2]) -> [u8; 16] {
    let mut packet = [0u8; 16];
    packet[0] = kind;
    packet[4..6].copy_from_slice(&id);
    packet[7] = 1;
    packet[8..].copy_from_slice(b"lazaret?");
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn answered(begun: Instant) -> Proof {
    Proof::Answered { microseconds: begun.elapsed().as_micros() as u64 }
}

fn ready(socket: &OwnedFd, flags: PollFlags, begun: Instant) -> Result<bool> {
    ready_within(socket, flags, begun + WITHIN)
}

fn ready_within(socket: &OwnedFd, flags: PollFlags, end: Instant) -> Result<bool> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), flags)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(error("waiting for an answer").context(lazaret_base::Error::from(e).to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_an_echo_request_is_right() {
        let packet = echo_request(ECHO, [0x12, 0x34]);
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        // With its checksum the whole adds up to all ones (RFC 1071).
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

//! What a server of packets needs beyond ordinary sockets: devices, frames, and many packets in one call.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io;

use crate::check;

/// Ties a socket to the network interface of that index: it neither hears nor speaks elsewhere (`SO_BINDTOIFINDEX`,
/// Linux 5.1).
pub fn bind_to_interface(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &(index as libc::c_int))
}

/// Lets a raw ICMPv6 socket hear the messages of one type alone (`ICMPV6_FILTER`, RFC 3542 section 3.2).
pub fn hear_icmp6_only(socket: BorrowedFd<'_>, kind: u8) -> io::Result<()> {
    // `ICMPV6_FILTER` of linux/icmpv6.h; a set bit blocks its type.
    const ICMPV6_FILTER: libc::c_int = 1;
    let mut blocked = [u32::MAX; 8];
    blocked[usize::from(kind / 32)] &= !(1 << (kind % 32));
    set_option(socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked)
}

/// Hands packets to the sockets that share a port by who sends them: the `sockets` of them in the order in which they
/// were bound, each for the addresses whose last four bytes leave the same remainder (`SO_ATTACH_REUSEPORT_CBPF`, Linux
/// 4.5). Said to one socket of them, it holds for all.
pub fn share_by_sender(socket: BorrowedFd<'_>, is_v4: bool, sockets: u32) -> io::Result<()> {
    // `SKF_NET_OFF` of linux/filter.h: from where the IP header begins. The sender's last four bytes are there.
    const NETWORK_HEADER: i32 = -0x10_0000;
    let sender = if is_v4 { 12 } else { 20 };
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (NETWORK_HEADER + sender).cast_unsigned()),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, sockets),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // `steps` lives until the kernel has copied it.
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Sends an IP packet past the routing table: `bytes`, without link-layer header, is put on
/// the wire of interface `index` to the station `to` alone.
///
/// The socket is of family `AF_PACKET` and type `SOCK_DGRAM` (packet(7)).
pub fn send_ip_frame(socket: BorrowedFd<'_>, index: u32, to: [u8; 6], bytes: &[u8]) -> io::Result<()> {
    let mut address = [0_u8; 8];
    address[..6].copy_from_slice(&to);
    let station = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_IP as u16).to_be(),
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    // SAFETY: `bytes` and `station` are borrowed for the whole call, their true lengths are given, and the kernel only
    // reads them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
            (&raw const station).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    check(sent as libc::c_long).map(drop)
}

/// Room for packets that are received together and answered together: recvmmsg(2), sendmmsg(2).
pub struct Mailbag {
    incoming: Vec<Vec<u8>>,
    senders: Vec<libc::sockaddr_storage>,
    sizes: Vec<usize>,
    outgoing: Vec<Vec<u8>>,
}

impl Mailbag {
    /// Room for `count` packets of at most `size` bytes; longer ones arrive cut off.
    pub fn new(count: usize, size: usize) -> Self {
        Mailbag {
            incoming: vec![vec![0; size]; count],
            // SAFETY: all-zero is a valid `sockaddr_storage`.
            senders: vec![unsafe { std::mem::zeroed() }; count],
            sizes: vec![0; count],
            outgoing: vec![Vec::new(); count],
        }
    }

    /// Takes what is waiting, without waiting; returns how many packets it was.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut parts: Vec<libc::iovec> = Vec::with_capacity(self.incoming.len());
        for buffer in &mut self.incoming {
            parts.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
        }
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(parts.len());
        for (part, sender) in parts.iter_mut().zip(&mut self.senders) {
            headers.push(header(part, sender, size_of::<libc::sockaddr_storage>()));
        }
        // SAFETY: each header points to one live `iovec` over a live buffer of that length and to one live
        // `sockaddr_storage`; all are borrowed exclusively until the end of this function.
        let count = check(
            unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    headers.len() as u32,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            }
            .into(),
        )? as usize;
        for (i, header) in headers.iter().take(count).enumerate() {
            self.sizes[i] = header.msg_len as usize;
            self.outgoing[i].clear();
        }
        Ok(count)
    }

    /// One received packet, its sender (none for a family that is not IP), and the room for the answer: what is written
    /// there is sent by [`Mailbag::answer`].
    pub fn packet(&mut self, i: usize) -> (&[u8], Option<SocketAddr>, &mut Vec<u8>) {
        (&self.incoming[i][..self.sizes[i]], address(&self.senders[i]), &mut self.outgoing[i])
    }

    /// Sends the answers of the first `count` packets to their senders. One that cannot be sent (the sender is gone,
    /// the queue is full) is dropped, as a network does.
    pub fn answer(&mut self, socket: BorrowedFd<'_>, count: usize) {
        let mut parts: Vec<libc::iovec> = Vec::with_capacity(count);
        let mut whose: Vec<usize> = Vec::with_capacity(count);
        for (i, answer) in self.outgoing.iter_mut().enumerate().take(count).filter(|(_, answer)| !answer.is_empty()) {
            parts.push(libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: answer.len() });
            whose.push(i);
        }
        let mut headers: Vec<libc::mmsghdr> = Vec::with_capacity(parts.len());
        for (part, &i) in parts.iter_mut().zip(&whose) {
            let sender = &mut self.senders[i];
            let length = match i32::from(sender.ss_family) {
                libc::AF_INET => size_of::<libc::sockaddr_in>(),
                _ => size_of::<libc::sockaddr_in6>(),
            };
            headers.push(header(part, sender, length));
        }
        let mut done = 0;
        while done < headers.len() {
            let rest = &mut headers[done..];
            // SAFETY: as in `receive`: every header points to live buffers of the given lengths, which the kernel
            // reads.
            let sent = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, libc::MSG_DONTWAIT as _)
            };
            // An error is always that of the first packet of the call: it alone is given up.
            done += check(sent.into()).map_or(1, |sent| (sent as usize).max(1));
        }
    }
}

fn header(part: &mut libc::iovec, peer: &mut libc::sockaddr_storage, length: usize) -> libc::mmsghdr {
    // SAFETY: all-zero is a valid `mmsghdr`.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = (&raw mut *peer).cast();
    header.msg_hdr.msg_namelen = length as u32;
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    header
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: a storage of family AF_INET holds a `sockaddr_in` (written by the kernel), and is larger than it.
            let v4 = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in>() };
            let address = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddr::new(IpAddr::V4(address), u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, with a `sockaddr_in6`.
            let v6 = unsafe { *(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn set_option<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a plain kernel type, borrowed for the call, and its true size is given.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const *value).cast(), size_of::<T>() as u32) };
    check(result.into()).map(drop)
}

//! Packets in namespaces: servers that answer, and attempts to reach them, all at once and without waiting in vain.

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with, sockopt,
};

/// A network namespace.
pub struct Namespace(File);

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// A TCP connection.
    Tcp(u16),
    /// A UDP packet that is to come back.
    Udp(u16),
    /// An echo request.
    Ping,
}

/// How long an answer may take on links that are nothing but memory. Those that are not to come are waited for this
/// long.
const WITHIN: Duration = Duration::from_millis(1200);

impl Namespace {
    /// That of a process.
    pub fn of(pid: impl std::fmt::Display) -> Namespace {
        Namespace::at(&format!("/proc/{pid}/ns/net"))
    }

    /// The one that a file is.
    pub fn at(path: &str) -> Namespace {
        Namespace(File::open(path).unwrap_or_else(|e| panic!("opening `{path}`: {e}")))
    }

    /// Does something in it. What is opened there stays there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                rustix::thread::move_into_link_name_space(
                    self.0.as_fd(),
                    Some(rustix::thread::LinkNameSpaceType::Network),
                )
                .expect("entering a network namespace");
                act()
            });
            there.join().expect("what is done in a namespace does not panic")
        })
    }

    /// Answers on a port of an address, TCP and UDP, for as long as the test runs: what is sent comes back, and a
    /// connection is told first who has come.
    pub fn serve(&self, address: impl Into<IpAddr>, port: u16) {
        let to = SocketAddr::new(address.into(), port);
        let (listener, socket) = self.inside(|| {
            let listener = TcpListener::bind(to).unwrap_or_else(|e| panic!("listening on {to}: {e}"));
            (listener, UdpSocket::bind(to).unwrap_or_else(|e| panic!("binding {to}: {e}")))
        });
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                thread::spawn(move || {
                    let from = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                    let _ = stream.write_all(format!("{from}\n").as_bytes());
                    let mut bytes = [0; 4096];
                    while let Ok(count @ 1..) = stream.read(&mut bytes) {
                        if stream.write_all(&bytes[..count]).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..count], from);
            }
        });
    }

    /// Answers questions of multicast DNS for an IPv4 address (RFC 6762) with the one that is set.
    pub fn answer_local(&self, own: std::net::Ipv4Addr, name: &'static str, address: Arc<Mutex<std::net::Ipv4Addr>>) {
        let socket = self.inside(|| {
            let socket = UdpSocket::bind("0.0.0.0:5353").expect("binding port 5353");
            socket.join_multicast_v4(&std::net::Ipv4Addr::new(224, 0, 0, 251), &own).expect("joining a group");
            socket
        });
        let spelled: Vec<u8> =
            name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        thread::spawn(move || {
            let mut bytes = [0; 1500];
            while let Ok((count, from)) = socket.recv_from(&mut bytes) {
                let question = [&spelled[..], &[0, 0, 1, 0, 1]].concat();
                if bytes[12..count].starts_with(&question) {
                    let address = address.lock().unwrap().octets();
                    let head = [&bytes[..2], &[0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
                    let answer = [&[0xc0, 12, 0, 1, 0x80, 1, 0, 0, 0, 120, 0, 4][..], &address].concat();
                    let _ = socket.send_to(&[head, question, answer].concat(), from);
                }
            }
        });
    }

    /// Which of these attempts are answered; all are made at the same time.
    pub fn reach(&self, attempts: &[(IpAddr, How)]) -> Vec<bool> {
        let begun: Vec<_> = attempts.iter().map(|(to, how)| self.begin(*to, *how)).collect();
        let end = Instant::now() + WITHIN;
        let mut open: Vec<usize> = (0..begun.len()).filter(|at| matches!(begun[*at], Attempt::Waiting(..))).collect();
        let mut reached: Vec<bool> = begun.iter().map(|one| matches!(one, Attempt::Answered)).collect();
        while !open.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let socket = |at: &usize| match &begun[*at] {
                Attempt::Waiting(socket, flags, _) => PollFd::from_borrowed_fd(socket.as_fd(), *flags),
                _ => unreachable!("only those that wait are open"),
            };
            let mut fds: Vec<_> = open.iter().map(socket).collect();
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => panic!("waiting: {e}"),
            }
            let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let mut still = Vec::new();
            for (at, ready) in open.into_iter().zip(ready) {
                match begun[at].outcome(ready) {
                    Some(outcome) => reached[at] = outcome,
                    None => still.push(at),
                }
            }
            open = still;
        }
        reached
    }

    /// The same of one.
    pub fn reaches(&self, to: impl Into<IpAddr>, how: How) -> bool {
        self.reach(&[(to.into(), how)])[0]
    }

    /// Connects, and says who the server takes it for.
    pub fn seen_as(&self, to: impl Into<IpAddr>, port: u16) -> Option<String> {
        let to = SocketAddr::new(to.into(), port);
        self.inside(|| {
            let mut stream = TcpStream::connect_timeout(&to, WITHIN).ok()?;
            stream.set_read_timeout(Some(WITHIN)).ok()?;
            let mut bytes = [0; 64];
            let count = stream.read(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..count]).trim().to_owned())
        })
    }

    /// A connection that stays.
    pub fn connect(&self, to: impl Into<IpAddr>, port: u16) -> Lasting {
        let to = SocketAddr::new(to.into(), port);
        let mut stream = self.inside(|| TcpStream::connect_timeout(&to, WITHIN)).expect("connecting");
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        let mut bytes = [0; 64];
        let _ = stream.read(&mut bytes).expect("the server says hello");
        Lasting(stream)
    }

    fn begin(&self, to: IpAddr, how: How) -> Attempt {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let icmp = if to.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let (kind, protocol, port) = match how {
            How::Tcp(port) => (SocketType::STREAM, None, port),
            How::Udp(port) => (SocketType::DGRAM, None, port),
            How::Ping => (SocketType::RAW, Some(icmp), 0),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = self.inside(|| socket_with(family, kind, flags, protocol)).expect("making a socket");
        let connected = connect(&socket, &SocketAddr::new(to, port));
        match (how, connected) {
            (How::Tcp(_), Ok(())) => Attempt::Answered,
            (How::Tcp(_), Err(Errno::INPROGRESS)) => Attempt::Waiting(socket, PollFlags::OUT, how),
            (_, Err(_)) => Attempt::Refused,
            (How::Udp(_), Ok(())) => match send(&socket, b"lazaret?", SendFlags::NOSIGNAL) {
                Ok(_) => Attempt::Waiting(socket, PollFlags::IN, how),
                Err(_) => Attempt::Refused,
            },
            (How::Ping, Ok(())) => match send(&socket, &echo_request(to), SendFlags::NOSIGNAL) {
                Ok(_) => Attempt::Waiting(socket, PollFlags::IN, how),
                Err(_) => Attempt::Refused,
            },
        }
    }
}

enum Attempt {
    Answered,
    Refused,
    Waiting(OwnedFd, PollFlags, How),
}

impl Attempt {
    /// What came of it, once something has.
    fn outcome(&self, ready: bool) -> Option<bool> {
        let Attempt::Waiting(socket, _, how) = self else { return None };
        if !ready {
            return None;
        }
        if let How::Tcp(_) = how {
            return Some(sockopt::socket_error(socket).is_ok_and(|error| error.is_ok()));
        }
        let mut bytes = [MaybeUninit::<u8>::uninit(); 256];
        let received = match recv(socket, &mut bytes, RecvFlags::empty()) {
            Ok(((bytes, _), _)) => bytes.to_vec(),
            Err(Errno::AGAIN) => return None,
            Err(_) => return Some(false),
        };
        match how {
            How::Ping => is_echo_reply(&received).then_some(true),
            _ => Some(received == b"lazaret?"),
        }
    }
}

/// RFC 792 and RFC 4443; the kernel fills in the checksum of ICMPv6 alone.
fn echo_request(to: IpAddr) -> [u8; 16] {
    let mut packet = [0u8; 16];
    packet[0] = if to.is_ipv4() { 8 } else { 128 };
    packet[4..6].copy_from_slice(&0x4c5au16.to_be_bytes());
    packet[8..].copy_from_slice(b"lazaret?");
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[2..4].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}

/// Behind an IP header where there is one: a raw socket of IPv4 shows it.
fn is_echo_reply(packet: &[u8]) -> bool {
    let header = match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 0,
    };
    packet.get(header).is_some_and(|kind| matches!((header, kind), (0, 129) | (1.., 0)))
}

/// A connection that is used more than once.
pub struct Lasting(TcpStream);

impl Lasting {
    /// Sends so many bytes, and waits until all of them have come back.
    pub fn exchanges(mut self, bytes: usize) {
        let mut sending = self.0.try_clone().unwrap();
        let sent = thread::spawn(move || sending.write_all(&vec![0; bytes]));
        self.0.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        self.0.read_exact(&mut vec![0; bytes]).expect("what was sent comes back");
        sent.join().unwrap().unwrap();
    }

    /// Whether what is sent comes back.
    pub fn works(&mut self) -> bool {
        let mut bytes = [0; 8];
        self.0.write_all(b"lazaret?").is_ok() && self.0.read_exact(&mut bytes).is_ok()
    }
}

//! How commands and keepers talk to netd: packets of JSON over a socket that only root can reach.
//!
//! One packet is one [`Request`] or one [`Answer`]; a request is answered by one packet, or by several that end
//! with [`Answer::End`]. A keeper's attachment lives as long as the connection on which it asked for it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Result, Wire, error};
use lazaret_config::Network as Settings;
use lazaret_sys::local::{self, address_in, receive_along, send_along};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, SocketType, bind, connect, listen};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of what is said here. A netd of another version is asked to [leave](Ask::Leave) and a new one begun.
pub const VERSION: u32 = 1;

/// No packet is longer, so that a mistaken peer costs no memory.
pub const LONGEST: usize = 128 * 1024;

/// The name of the socket in its directory.
const SOCKET: &str = "socket";

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What it wants.
    pub ask: Ask,
}

/// What netd can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// To connect a container, or to go on with one that is connected. With the descriptor of its network namespace.
    Attach(Attach),
    /// To take away what this connection has attached.
    Detach,
    /// To let other settings hold for an attached container.
    Change {
        /// The container.
        name: String,
        /// What it shall be from now on.
        settings: Box<Settings>,
    },
    /// To describe the network and what is attached; or one container.
    Show {
        /// The container.
        name: Option<String>,
    },
    /// To say whether a container may send to a host.
    Check {
        /// The container.
        name: String,
        /// An address, or the name of a host or a container.
        host: String,
        /// A port.
        port: Option<u16>,
        /// Whether the port is of UDP.
        udp: bool,
    },
    /// To make a container's link worse than it is; without an impairment, to make it good again.
    Impair {
        /// The container.
        name: String,
        /// Only what it sends to this container.
        to: Option<String>,
        /// How.
        impairment: Option<Impairment>,
    },
    /// To let containers of different groups not reach each other, whatever their policy. Replaces what was parted.
    Partition(Vec<Vec<String>>),
    /// To end every partition and every impairment.
    Heal,
    /// To make the bridge now, of these addresses where some are given.
    Up {
        /// An IPv4 subnet such as `10.90.0.0/20`.
        subnet: Option<String>,
        /// An IPv6 prefix such as `fd12:3456:789a:1::/64`.
        prefix: Option<String>,
    },
    /// To remove every trace of the network and end.
    Down {
        /// Whether containers that are attached are cut off.
        force: bool,
    },
    /// To end and leave everything as it is, for another netd to go on with. Understood in every version.
    Leave,
}

/// What an attachment is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The container.
    pub name: String,
    /// What its configuration says of the network.
    pub settings: Box<Settings>,
    /// Whether its address is given up with the attachment.
    pub ephemeral: bool,
    /// Whether it is connected already and goes on after netd was away.
    pub resume: bool,
}

/// How a link is made worse.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Impairment {
    /// Added to the way of every packet, in microseconds.
    pub delay_microseconds: Option<u64>,
    /// How many packets of a million are lost.
    pub loss_per_million: Option<u32>,
    /// Bits in a second.
    pub rate: Option<u64>,
}

impl Eq for Impairment {}

/// What netd says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The container is connected.
    Attached(Attached),
    /// It is done. With what the user should know, one sentence each.
    Done(Vec<String>),
    /// It could not be done, and nothing has changed.
    Failed(Wire),
    /// netd is of this version, and does not know what was said.
    OtherVersion(u32),
    /// The network.
    Network(Box<Network>),
    /// One container on it.
    Attachment(Box<Attachment>),
    /// What was found out about a way.
    Verdict(Verdict),
    /// There is no more.
    End,
    /// Unasked: the network is taken down, and the keeper shall not call again.
    Farewell(String),
}

/// A container's connection, as its keeper and those who look at the container need to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The interface on the host, if there is one.
    pub link: Option<String>,
    /// The interface inside.
    pub inside: String,
    /// Its hardware address.
    pub mac: Option<String>,
    /// Its addresses, without prefix lengths, IPv4 first.
    pub addresses: Vec<String>,
    /// Under what names other containers and the host find it.
    pub names: Vec<String>,
    /// What its `/etc/resolv.conf` says if nothing else does; empty if that is up to its own DHCP client.
    pub resolver: String,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// The network as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The bridge.
    pub bridge: String,
    /// Whether it is there.
    pub up: bool,
    /// Its IPv4 subnet, such as `10.90.0.0/20`.
    pub subnet: String,
    /// The host's address in it: gateway and name server.
    pub gateway: String,
    /// Its IPv6 prefix.
    pub prefix: String,
    /// The host's address in it.
    pub gateway6: String,
    /// Whether the prefix is translated to the host's addresses on the way out.
    pub translated6: bool,
    /// The name of its nftables tables.
    pub table: String,
    /// The largest packet that fits through.
    pub mtu: u32,
    /// Where names that are not of containers are asked for.
    pub upstreams: Vec<String>,
    /// What counts as LAN at the moment, beside what always does.
    pub lan: Vec<String>,
    /// Groups that are parted.
    pub partition: Vec<Vec<String>>,
    /// netd's process.
    pub netd: i32,
    /// The process that answers DNS and DHCP; 0 if it does not run.
    pub responder: i32,
    /// How many containers are attached.
    pub attached: usize,
    /// What is in the way, one sentence each.
    pub notes: Vec<String>,
}

/// A container on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The container.
    pub name: String,
    /// How it is connected, as its configuration says it.
    pub mode: String,
    /// Its connection.
    pub attached: Attached,
    /// Its policy, one sentence each.
    pub policy: Vec<String>,
    /// Containers that it reaches and that reach it.
    pub peers: Vec<String>,
    /// What it has received, in bytes.
    pub received: u64,
    /// What it has sent, in bytes.
    pub sent: u64,
    /// Packets of it and for it that were dropped at the port.
    pub dropped: u64,
    /// How its link is made worse, one sentence each.
    pub impairments: Vec<String>,
}

/// Whether a container may send somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether it may.
    pub allowed: bool,
    /// By which line of its policy, in a sentence.
    pub line: String,
    /// The addresses that the host was found at and that this holds for.
    pub addresses: Vec<String>,
}

/// One end of a connection between netd and a client.
#[derive(Debug)]
pub struct Line(OwnedFd);

impl Line {
    /// Calls netd by its socket in `dir`. Errors of kind [`Errno::NOENT`] and [`Errno::CONNREFUSED`] mean that there
    /// is none.
    pub fn call(dir: BorrowedFd<'_>) -> Result<Line> {
        let socket = local::socket(SocketType::SEQPACKET, SocketFlags::empty())?;
        connect(&socket, &address_in(dir, SOCKET)?)?;
        Ok(Line(socket))
    }

    /// A connection that was accepted.
    pub fn from_fd(fd: OwnedFd) -> Line {
        Line(fd)
    }

    /// Client: asks, with a descriptor where one belongs to it.
    pub fn ask(&self, ask: Ask, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        say(self.0.as_fd(), &Request { version: VERSION, ask }, fd).context("asking netd")
    }

    /// Client: waits for the next answer. `None` when netd is gone.
    pub fn hear(&self, within: Duration) -> Result<Option<Answer>> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(0) => {
                    return Err(error(format!("netd did not answer within {} s", within.as_secs()))
                        .hint("`lazaret network show` tells whether it is well"));
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("waiting for netd"),
                Ok(_) => break,
            }
        }
        match hear::<Answer>(self.0.as_fd(), RecvFlags::empty()).context("hearing from netd")? {
            Heard::Said(answer, _) => Ok(Some(answer)),
            Heard::Gone | Heard::Nothing => Ok(None),
            Heard::Nonsense(e) => Err(e.context("hearing from netd")),
        }
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What there was to hear.
#[derive(Debug)]
pub enum Heard<T> {
    /// A packet, with the descriptor that came along.
    Said(T, Option<OwnedFd>),
    /// A packet that makes no sense. The next one may.
    Nonsense(Error),
    /// There is nothing yet.
    Nothing,
    /// The other side has hung up.
    Gone,
}

/// Makes the socket on which netd is called, in place of one that a dead netd left. Whoever does so holds the lock
/// under which netds are started.
pub fn listen_in(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    // Mostly there is none.
    let _ = rustix::fs::unlinkat(dir, SOCKET, rustix::fs::AtFlags::empty());
    let socket = local::socket(SocketType::SEQPACKET, SocketFlags::empty())?;
    bind(&socket, &address_in(dir, SOCKET)?).and_then(|()| listen(&socket, 1024)).context("making netd's socket")?;
    Ok(socket)
}

/// Takes the socket away: nobody shall call any more.
pub fn unlisten(dir: BorrowedFd<'_>) {
    // It may be gone.
    let _ = rustix::fs::unlinkat(dir, SOCKET, rustix::fs::AtFlags::empty());
}

/// netd: the next request of a client, without waiting.
pub fn next_request(socket: BorrowedFd<'_>) -> Result<Heard<Request>> {
    hear(socket, RecvFlags::DONTWAIT)
}

/// netd: answers, without waiting. `false` if the client takes nothing at the moment.
pub fn try_answer(socket: BorrowedFd<'_>, packet: &[u8]) -> Result<bool> {
    match rustix::net::send(socket, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// An answer as a packet; one that would be too long is said to be.
pub fn packet(answer: &Answer) -> Vec<u8> {
    let bytes = serde_json::to_vec(answer).unwrap_or_default();
    if !bytes.is_empty() && bytes.len() <= LONGEST {
        return bytes;
    }
    let failed = Answer::Failed(error("the answer is too long for a packet").into());
    serde_json::to_vec(&failed).unwrap_or_default()
}

fn say(socket: BorrowedFd<'_>, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let bytes = serde_json::to_vec(message).map_err(|e| error(e.to_string()))?;
    if bytes.len() > LONGEST {
        return Err(error(format!("more than {LONGEST} bytes are to be said at once"))
            .hint("shorten the lists of the container's network policy"));
    }
    send_along(socket, &bytes, fd.as_slice())?;
    Ok(())
}

fn hear<T: DeserializeOwned>(socket: BorrowedFd<'_>, flags: RecvFlags) -> Result<Heard<T>> {
    let mut bytes = vec![0; LONGEST];
    let received = match receive_along(socket, &mut bytes, flags) {
        Err(Errno::AGAIN) => return Ok(Heard::Nothing),
        Err(Errno::CONNRESET) => return Ok(Heard::Gone),
        other => other?,
    };
    if received.bytes == 0 {
        return Ok(Heard::Gone);
    }
    if received.cut {
        return Ok(Heard::Nonsense(error(format!("a packet of more than {LONGEST} bytes"))));
    }
    Ok(match serde_json::from_slice(&bytes[..received.bytes]) {
        Ok(message) => Heard::Said(message, received.fds.into_iter().next()),
        Err(e) => Heard::Nonsense(error(format!("a packet that makes no sense: {e}"))),
    })
}

/// netd: what of a packet that makes no sense is understood in every version.
pub fn asks_to_leave(text: &str) -> bool {
    text.contains("\"leave\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap()
    }

    #[test]
    fn what_is_asked_arrives_with_its_descriptor() {
        let (ours, theirs) = pair();
        let file = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let settings = Box::new(Settings { lan: true, ..Settings::default() });
        let attach = Attach { name: "web".into(), settings, ephemeral: false, resume: false };
        Line::from_fd(ours).ask(Ask::Attach(attach.clone()), Some(file.as_fd())).unwrap();
        let Heard::Said(request, Some(_)) = next_request(theirs.as_fd()).unwrap() else { panic!("nothing came") };
        assert_eq!(request, Request { version: VERSION, ask: Ask::Attach(attach) });
        assert!(matches!(next_request(theirs.as_fd()).unwrap(), Heard::Gone));
    }

    #[test]
    fn nonsense_is_no_end_and_silence_is_nothing() {
        let (ours, theirs) = pair();
        rustix::net::send(&ours, b"{\"version\":1,\"ask\":\"dance\"}", SendFlags::empty()).unwrap();
        assert!(matches!(next_request(theirs.as_fd()).unwrap(), Heard::Nonsense(_)));
        assert!(matches!(next_request(theirs.as_fd()).unwrap(), Heard::Nothing));
        rustix::net::send(&ours, &vec![b' '; LONGEST + 1], SendFlags::empty()).unwrap();
        assert!(matches!(next_request(theirs.as_fd()).unwrap(), Heard::Nonsense(_)));
    }

    #[test]
    fn an_answer_that_is_too_long_says_so() {
        let long = Answer::Done(vec!["x".repeat(LONGEST)]);
        assert!(packet(&long).len() < 1000);
        let answer: Answer = serde_json::from_slice(&packet(&long)).unwrap();
        assert!(matches!(answer, Answer::Failed(_)));
    }

    #[test]
    fn a_client_hears_that_netd_is_gone() {
        let (ours, theirs) = pair();
        drop(theirs);
        assert!(Line::from_fd(ours).hear(Duration::from_secs(5)).unwrap().is_none());
    }
}

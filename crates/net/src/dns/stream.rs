//! DNS by TCP, towards the clients: a length before each message (RFC 7766). Few connections, small buffers, no
//! patience.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, acceptfrom_with, recv, send};

use super::word;

/// Connections at a time.
const MOST: usize = 256;

/// Connections of one client at a time.
const PER_CLIENT: usize = 16;

/// The longest question that is read, in bytes.
const LONGEST: usize = 4096;

/// Answers that may be on their way on one connection before more questions are read from it.
const OUTSTANDING: usize = 16;

/// Bytes that may wait for a client to read them before more questions are read from it.
const BACKLOG: usize = 128 << 10;

/// How long a connection may pass without a question or an answer.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Streams {
    epoll: Rc<OwnedFd>,
    connections: HashMap<u64, Connection>,
    serial: u64,
    token_base: u64,
}

struct Connection {
    socket: OwnedFd,
    client: IpAddr,
    heard: Vec<u8>,
    out: Vec<u8>,
    outstanding: usize,
    active: Instant,
    /// The client will ask no more; what it asked is still answered.
    ended: bool,
    interest: EventFlags,
}

impl Streams {
    /// Connections are watched by `epoll`; their events carry `token_base` and a serial number below it.
    pub fn new(epoll: Rc<OwnedFd>, token_base: u64) -> Self {
        Streams { epoll, connections: HashMap::new(), serial: 0, token_base }
    }

    /// Takes in who knocks, if its address is `known`.
    pub fn accept(&mut self, listener: &OwnedFd, known: impl Fn(IpAddr) -> bool) {
        const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);
        for _ in 0..32 {
            let (socket, from) = match acceptfrom_with(listener, FLAGS) {
                Ok(accepted) => accepted,
                Err(Errno::CONNABORTED | Errno::INTR) => continue,
                Err(_) => return,
            };
            let Some(from) = from.and_then(|from| std::net::SocketAddr::try_from(from).ok()) else { continue };
            let client = from.ip();
            // Whom we do not know, and who has enough, is hung up on.
            if !known(client) || self.count(client) >= PER_CLIENT {
                continue;
            }
            if self.connections.len() >= MOST {
                self.close_quietest();
            }
            self.serial += 1;
            let token = self.token_base | self.serial;
            let interest = EventFlags::IN | EventFlags::RDHUP;
            if epoll::add(&self.epoll, &socket, EventData::new_u64(token), interest).is_err() {
                continue;
            }
            let connection = Connection {
                socket,
                client,
                heard: Vec::new(),
                out: Vec::new(),
                outstanding: 0,
                active: Instant::now(),
                ended: false,
                interest,
            };
            self.connections.insert(token, connection);
        }
    }

    /// Handles an event of a connection: returns whose it is and the questions that came.
    pub fn event(&mut self, token: u64, flags: EventFlags) -> Option<(IpAddr, Vec<Vec<u8>>)> {
        let connection = self.connections.get_mut(&token)?;
        let client = connection.client;
        let questions = match connection.turn(flags) {
            Ok(questions) => questions,
            Err(Errno::AGAIN | Errno::INTR) => Vec::new(),
            Err(_) => {
                self.connections.remove(&token);
                return None;
            }
        };
        // Until its answer comes by `reply` or `silence`.
        connection.outstanding += questions.len();
        self.settle(token);
        Some((client, questions))
    }

    /// Sends an answer.
    pub fn reply(&mut self, token: u64, answer: &[u8]) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        connection.outstanding = connection.outstanding.saturating_sub(1);
        connection.out.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        connection.out.extend_from_slice(answer);
        connection.active = Instant::now();
        // One who asks and does not read is not served.
        if matches!(connection.flush(), Err(e) if e != Errno::AGAIN) || connection.out.len() > 2 * BACKLOG {
            self.connections.remove(&token);
            return;
        }
        self.settle(token);
    }

    /// There will be no answer: the connection has no further use.
    pub fn hang_up(&mut self, token: u64) {
        self.connections.remove(&token);
    }

    /// Closes what has been idle for too long.
    pub fn sweep(&mut self, now: Instant) {
        self.connections.retain(|_, connection| now.saturating_duration_since(connection.active) < IDLE);
    }

    /// Whether there is no connection.
    pub fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    fn count(&self, client: IpAddr) -> usize {
        self.connections.values().filter(|connection| connection.client == client).count()
    }

    fn close_quietest(&mut self) {
        let quietest = self.connections.iter().min_by_key(|(_, connection)| connection.active).map(|(&token, _)| token);
        if let Some(token) = quietest {
            self.connections.remove(&token);
        }
    }

    /// Waits for what the connection can go on with, or closes it.
    fn settle(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.ended && connection.outstanding == 0 && connection.out.is_empty() {
            self.connections.remove(&token);
            return;
        }
        let mut interest = EventFlags::empty();
        interest.set(EventFlags::IN | EventFlags::RDHUP, connection.takes_more());
        interest.set(EventFlags::OUT, !connection.out.is_empty());
        if interest != connection.interest {
            connection.interest = interest;
            if epoll::modify(&self.epoll, &connection.socket, EventData::new_u64(token), interest).is_err() {
                self.connections.remove(&token);
            }
        }
    }
}

impl Connection {
    fn takes_more(&self) -> bool {
        !self.ended && self.outstanding < OUTSTANDING && self.out.len() < BACKLOG
    }

    /// Sends what is due, reads what is there.
    fn turn(&mut self, flags: EventFlags) -> Result<Vec<Vec<u8>>, Errno> {
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return Err(Errno::CONNRESET);
        }
        if flags.contains(EventFlags::OUT) {
            match self.flush() {
                Ok(()) | Err(Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP) || !self.takes_more() {
            return Ok(Vec::new());
        }
        let mut part = [0; 4096];
        match recv(&self.socket, &mut part[..], RecvFlags::empty())?.0 {
            0 => self.ended = true,
            count => self.heard.extend_from_slice(&part[..count]),
        }
        self.questions()
    }

    /// Cuts whole questions off what was heard.
    fn questions(&mut self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut questions = Vec::new();
        let mut at = 0;
        while let Some(length) = word(&self.heard, at).map(usize::from) {
            if !(12..=LONGEST).contains(&length) {
                return Err(Errno::BADMSG);
            }
            let Some(question) = self.heard.get(at + 2..at + 2 + length) else { break };
            questions.push(question.to_vec());
            at += 2 + length;
        }
        self.heard.drain(..at);
        if !questions.is_empty() {
            self.active = Instant::now();
        }
        Ok(questions)
    }

    fn flush(&mut self) -> Result<(), Errno> {
        while !self.out.is_empty() {
            let sent = send(&self.socket, &self.out, SendFlags::NOSIGNAL)?;
            self.out.drain(..sent);
            self.active = Instant::now();
        }
        self.out.shrink_to(4096);
        Ok(())
    }
}

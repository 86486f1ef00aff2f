//! Asking upstream: every question by a socket of its own, several servers in turn, TCP where UDP is too small.
//!
//! A fresh socket has a fresh random port, and being connected it hears nobody but its server: with the random
//! number of the question that is what a forger off the path must guess (RFC 5452).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};
use rustix::rand::{GetRandomFlags, getrandom};

use super::cache::{Cache, Key, tell, withheld};
use super::upstream::{self, Answer};
use super::{Query, TCP_LIMIT, code, word};
use crate::responder::{Asker, Directory, Report};

/// How many questions of one client may wait at a time.
const PER_CLIENT: usize = 64;

/// How many different questions may wait upstream at a time; each has a socket.
const PENDING: usize = 512;

/// How many of them may use TCP: these have buffers up to 64 KiB.
const PENDING_BY_TCP: usize = 64;

/// How long a server has to answer before the next one is asked.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How many bytes of answers are remembered.
const CACHE: usize = 4 << 20;

/// A question on its way, and where its answer goes.
pub(crate) struct Waiter {
    /// The address of the container, or of the gateway for the host itself and netd.
    pub client: IpAddr,
    pub query: Query,
    pub route: Route,
}

/// How an answer finds back.
#[derive(Clone, Debug)]
pub(crate) enum Route {
    /// By this socket of the DNS sockets, to this address.
    Datagram(usize, SocketAddr),
    /// By this TCP connection.
    Stream(u64),
    /// To netd, which gave this name.
    Netd(String),
}

/// An answer that is ready.
pub(crate) enum Delivery {
    Packet(Route, Vec<u8>),
    Report(Report),
}

pub(crate) struct Forwarder {
    epoll: Rc<OwnedFd>,
    cache: Cache,
    pending: HashMap<u64, Pending>,
    by_key: HashMap<Key, u64>,
    waiting: HashMap<IpAddr, usize>,
    /// Which server of a list answered last.
    preferred: HashMap<Rc<[SocketAddr]>, usize>,
    by_tcp: usize,
    serial: u64,
    token_base: u64,
    dice: Dice,
    deliveries: Vec<Delivery>,
}

struct Pending {
    key: Key,
    id: u16,
    edns: bool,
    server: usize,
    attempts: usize,
    channel: Option<Channel>,
    deadline: Instant,
    waiters: Vec<Waiter>,
    /// A refusal, told if no server knows better.
    refusal: Option<Answer>,
}

enum Channel {
    Datagram(OwnedFd),
    Stream { socket: OwnedFd, out: Vec<u8>, sent: usize, heard: Vec<u8> },
}

/// What became of an attempt.
enum Outcome {
    Wait,
    Answered(Answer),
    Failed,
}

impl Forwarder {
    /// Sockets are watched by `epoll`; their events carry `token_base` and a serial number below it.
    pub fn new(epoll: Rc<OwnedFd>, token_base: u64) -> Self {
        Forwarder {
            epoll,
            cache: Cache::new(CACHE),
            pending: HashMap::new(),
            by_key: HashMap::new(),
            waiting: HashMap::new(),
            preferred: HashMap::new(),
            by_tcp: 0,
            serial: 0,
            token_base,
            dice: Dice { pool: [0; 256], left: 0 },
            deliveries: Vec::new(),
        }
    }

    /// Answers from memory; false if upstream must be asked.
    pub fn remember(
        &mut self,
        directory: &Directory,
        asker: Asker,
        query: &Query,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> bool {
        let key = Key::of(query, directory.upstreams(asker));
        let Some((answer, age)) = self.cache.find(&key, Instant::now()) else { return false };
        self.follow(directory, asker, query, &answer, age);
        tell(directory, asker, query, &answer, age, limit, out);
        true
    }

    /// Asks upstream. Where there is no room the answer "failure" is delivered at once.
    pub fn ask(&mut self, directory: &Directory, asker: Asker, waiter: Waiter) {
        let key = Key::of(&waiter.query, directory.upstreams(asker));
        if self.waiting.get(&waiter.client).is_some_and(|&count| count >= PER_CLIENT) {
            return self.fail(waiter);
        }
        if let Some(pending) = self.by_key.get(&key).and_then(|token| self.pending.get_mut(token)) {
            *self.waiting.entry(waiter.client).or_default() += 1;
            pending.waiters.push(waiter);
            return;
        }
        if key.servers.is_empty() || (self.pending.len() >= PENDING && !self.make_room(directory, waiter.client)) {
            return self.fail(waiter);
        }
        *self.waiting.entry(waiter.client).or_default() += 1;
        self.serial += 1;
        let token = self.token_base | self.serial;
        let pending = Pending {
            id: 0,
            edns: true,
            server: self.preferred.get(&key.servers).copied().unwrap_or(0) % key.servers.len(),
            attempts: 0,
            channel: None,
            deadline: Instant::now(),
            waiters: vec![waiter],
            refusal: None,
            key: key.clone(),
        };
        self.by_key.insert(key, token);
        self.pending.insert(token, pending);
        self.attempt(directory, token, false);
    }

    /// Handles an event of one of our sockets; of one that is no more, nothing happens.
    pub fn event(&mut self, directory: &Directory, token: u64) {
        let Some(pending) = self.pending.get_mut(&token) else { return };
        let outcome = match &mut pending.channel {
            None => Outcome::Failed,
            Some(Channel::Datagram(socket)) => hear_datagrams(socket, &pending.key, pending.id),
            Some(Channel::Stream { socket, out, sent, heard }) => {
                hear_stream(&self.epoll, token, socket, (out, sent), heard, &pending.key, pending.id)
            }
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Failed => self.next_server(directory, token),
            Outcome::Answered(answer) => self.judge(directory, token, answer),
        }
    }

    /// Gives up on servers that took too long.
    pub fn sweep(&mut self, directory: &Directory, now: Instant) {
        let late: Vec<u64> =
            self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(&token, _)| token).collect();
        for token in late {
            self.next_server(directory, token);
        }
    }

    /// Whether anybody waits.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Forgets what was learnt in another network.
    pub fn forget(&mut self) {
        self.cache.clear();
        self.preferred.clear();
    }

    /// What became ready since the last call.
    pub fn take_deliveries(&mut self) -> Vec<Delivery> {
        std::mem::take(&mut self.deliveries)
    }

    /// Decides whether an answer is final.
    fn judge(&mut self, directory: &Directory, token: u64, answer: Answer) {
        let Some(pending) = self.pending.get_mut(&token) else { return };
        if answer.truncated && matches!(pending.channel, Some(Channel::Datagram(_))) {
            return self.attempt(directory, token, true);
        }
        let refused = !matches!(answer.rcode, code::NO_ERROR | code::NO_SUCH_NAME);
        let unknown_to_server = matches!(answer.rcode, code::FORMAT_ERROR | code::NOT_IMPLEMENTED);
        if unknown_to_server && pending.edns {
            pending.edns = false;
            return self.attempt(directory, token, false);
        }
        if refused && pending.attempts < pending.key.servers.len() {
            pending.refusal = Some(answer);
            return self.next_server(directory, token);
        }
        if !refused {
            self.preferred.insert(pending.key.servers.clone(), pending.server);
        }
        self.finish(directory, token, Some(answer));
    }

    fn next_server(&mut self, directory: &Directory, token: u64) {
        let Some(pending) = self.pending.get_mut(&token) else { return };
        pending.server = (pending.server + 1) % pending.key.servers.len();
        pending.edns = true;
        self.attempt(directory, token, false);
    }

    /// Asks the current server, or the first after it that can be reached at all.
    fn attempt(&mut self, directory: &Directory, token: u64, by_tcp: bool) {
        loop {
            self.drop_channel(token);
            let room_for_tcp = self.by_tcp < PENDING_BY_TCP;
            let id = self.dice.word();
            let Some(pending) = self.pending.get_mut(&token) else { return };
            let most = (2 * pending.key.servers.len()).clamp(3, 6);
            if pending.attempts >= most || (by_tcp && !room_for_tcp) {
                let refusal = pending.refusal.take();
                return self.finish(directory, token, refusal);
            }
            pending.attempts += 1;
            pending.id = id;
            pending.deadline = Instant::now() + PATIENCE;
            let question = upstream::ask(&pending.key, id, pending.edns);
            let server = pending.key.servers[pending.server];
            let channel = if by_tcp { open_stream(server, &question) } else { open_datagram(server, &question) };
            match channel.and_then(|channel| watch(&self.epoll, token, channel)) {
                Ok(channel) => {
                    self.by_tcp += usize::from(by_tcp);
                    pending.channel = Some(channel);
                    return;
                }
                Err(_) => pending.server = (pending.server + 1) % pending.key.servers.len(),
            }
        }
    }

    fn drop_channel(&mut self, token: u64) {
        let Some(pending) = self.pending.get_mut(&token) else { return };
        // Closing takes the descriptor out of the epoll set.
        if let Some(Channel::Stream { .. }) = pending.channel.take() {
            self.by_tcp -= 1;
        }
    }

    /// Tells everybody who waits.
    fn finish(&mut self, directory: &Directory, token: u64, answer: Option<Answer>) {
        self.drop_channel(token);
        let Some(pending) = self.pending.remove(&token) else { return };
        self.by_key.remove(&pending.key);
        for waiter in &pending.waiters {
            self.leave(waiter.client);
        }
        let Some(answer) = answer.map(Rc::new) else {
            return pending.waiters.into_iter().for_each(|waiter| self.fail(waiter));
        };
        self.cache.keep(&pending.key, &answer, Instant::now());
        for waiter in pending.waiters {
            self.deliver(directory, waiter, &answer);
        }
    }

    fn deliver(&mut self, directory: &Directory, waiter: Waiter, answer: &Answer) {
        // Who asked may be gone, or have another policy, by now.
        let Some(asker) = directory.asker(waiter.client) else { return };
        let limit = match &waiter.route {
            Route::Datagram(..) => waiter.query.udp_limit(),
            Route::Stream(_) => TCP_LIMIT,
            Route::Netd(name) => {
                let report = resolved(name.clone(), answer, 0);
                return self.deliveries.push(Delivery::Report(report));
            }
        };
        self.follow(directory, asker, &waiter.query, answer, 0);
        let mut out = Vec::new();
        tell(directory, asker, &waiter.query, answer, 0, limit, &mut out);
        self.deliveries.push(Delivery::Packet(waiter.route, out));
    }

    /// Lets netd know what a name of the asker's policy resolves to, before the asker does.
    fn follow(&mut self, directory: &Directory, asker: Asker, query: &Query, answer: &Answer, age: u32) {
        let told = !answer.addresses.is_empty() && !withheld(directory, asker, &query.name, answer);
        if told && directory.allows_name(asker, &query.name) {
            self.deliveries.push(Delivery::Report(resolved(query.name.to_string(), answer, age)));
        }
    }

    fn fail(&mut self, waiter: Waiter) {
        if let Route::Netd(name) = waiter.route {
            let report = Report::Resolved { name, addresses: Vec::new(), seconds: 0 };
            return self.deliveries.push(Delivery::Report(report));
        }
        let mut out = Vec::new();
        waiter.query.refuse(&mut out, code::SERVER_FAILURE, None);
        self.deliveries.push(Delivery::Packet(waiter.route, out));
    }

    fn leave(&mut self, client: IpAddr) {
        if let Some(count) = self.waiting.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&client);
            }
        }
    }

    /// Takes a place from whoever has most of them, if that is more than the asker has.
    fn make_room(&mut self, directory: &Directory, asker: IpAddr) -> bool {
        let own = self.waiting.get(&asker).copied().unwrap_or(0);
        let Some((&busiest, _)) =
            self.waiting.iter().filter(|&(_, &count)| count > own + 1).max_by_key(|(_, count)| **count)
        else {
            return false;
        };
        let of_busiest = |pending: &Pending| pending.waiters.iter().all(|waiter| waiter.client == busiest);
        let Some(token) = self.pending.iter().find(|(_, pending)| of_busiest(pending)).map(|(&token, _)| token) else {
            return false;
        };
        self.finish(directory, token, None);
        true
    }
}

/// What netd is told about a name.
fn resolved(name: String, answer: &Answer, age: u32) -> Report {
    Report::Resolved { name, addresses: answer.addresses.to_vec(), seconds: answer.seconds.saturating_sub(age) }
}

fn family(server: SocketAddr) -> AddressFamily {
    if server.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn open_datagram(server: SocketAddr, question: &[u8]) -> Result<Channel, Errno> {
    let socket = socket_with(family(server), SocketType::DGRAM, FLAGS, None)?;
    connect(&socket, &server)?;
    send(&socket, question, SendFlags::NOSIGNAL)?;
    Ok(Channel::Datagram(socket))
}

fn open_stream(server: SocketAddr, question: &[u8]) -> Result<Channel, Errno> {
    let socket = socket_with(family(server), SocketType::STREAM, FLAGS, None)?;
    match connect(&socket, &server) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(e) => return Err(e),
    }
    let mut out = (question.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(question);
    Ok(Channel::Stream { socket, out, sent: 0, heard: Vec::new() })
}

fn watch(epoll: &OwnedFd, token: u64, channel: Channel) -> Result<Channel, Errno> {
    let (socket, flags) = match &channel {
        Channel::Datagram(socket) => (socket, EventFlags::IN),
        Channel::Stream { socket, .. } => (socket, EventFlags::OUT),
    };
    epoll::add(epoll, socket, EventData::new_u64(token), flags)?;
    Ok(channel)
}

/// Reads until something answers the question; what does not is as if it never came.
fn hear_datagrams(socket: &OwnedFd, key: &Key, id: u16) -> Outcome {
    let mut packet = [0; 4096];
    // A server that sends more wrong answers than that does not get the processor for it.
    for _ in 0..16 {
        match recv(socket, &mut packet[..], RecvFlags::empty()) {
            Ok((length, _)) => {
                if let Some(answer) = upstream::read(&packet[..length], key, id) {
                    return Outcome::Answered(answer);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => return Outcome::Wait,
            // Nobody listens there (ECONNREFUSED), or the way is gone.
            Err(_) => return Outcome::Failed,
        }
    }
    Outcome::Wait
}

fn hear_stream(
    epoll: &OwnedFd,
    token: u64,
    socket: &OwnedFd,
    (out, sent): (&[u8], &mut usize),
    heard: &mut Vec<u8>,
    key: &Key,
    id: u16,
) -> Outcome {
    if *sent < out.len() {
        match send(socket, &out[*sent..], SendFlags::NOSIGNAL) {
            Ok(count) => *sent += count,
            Err(Errno::AGAIN | Errno::INTR) => return Outcome::Wait,
            Err(_) => return Outcome::Failed,
        }
        if *sent == out.len() && epoll::modify(epoll, socket, EventData::new_u64(token), EventFlags::IN).is_err() {
            return Outcome::Failed;
        }
        return Outcome::Wait;
    }
    let mut part = [0; 4096];
    match recv(socket, &mut part[..], RecvFlags::empty()) {
        Ok((0, _)) => return Outcome::Failed,
        Ok((count, _)) => heard.extend_from_slice(&part[..count]),
        Err(Errno::AGAIN | Errno::INTR) => return Outcome::Wait,
        Err(_) => return Outcome::Failed,
    }
    let Some(length) = word(heard, 0).map(usize::from) else { return Outcome::Wait };
    match heard.get(2..2 + length) {
        None => Outcome::Wait,
        // On a connection there is nothing else to wait for.
        Some(packet) => upstream::read(packet, key, id).map_or(Outcome::Failed, Outcome::Answered),
    }
}

/// Random numbers, fetched from the kernel by the hundred.
struct Dice {
    pool: [u8; 256],
    left: usize,
}

impl Dice {
    fn word(&mut self) -> u16 {
        if self.left == 0 {
            // Requests of up to 256 bytes are neither cut short nor interrupted once the generator is up
            // (getrandom(2)), and it is up long before the first container.
            let _ = getrandom(&mut self.pool[..], GetRandomFlags::empty());
            self.left = self.pool.len();
        }
        self.left -= 2;
        u16::from_ne_bytes([self.pool[self.left], self.pool[self.left + 1]])
    }
}

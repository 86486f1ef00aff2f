//! The loop: one thread, one poll(2), one bus.
//!
//! Nothing waits for one connection. A program that does not read what it is told loses it, beyond a bound; others hear
//! theirs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use lazaret_base::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketAddrUnix, SocketFlags, accept_with, send};
use rustix::process::geteuid;

use super::greeting::Greeting;
use super::host::{Host, Told, refused};
use super::hub::{Hub, Offers, Out};
use super::wire::Message;
use crate::caller::{Callers, Reply};
use crate::stream::{Over, introduce, open, receive_plain, write_some};
use crate::x11::Ends;

/// What is read at once.
const CHUNK: usize = 32 << 10;
/// What may wait for a reader before nothing more is read from him.
const MOST_WAITING: usize = 128 << 10;
/// What may wait for a reader at all; what is more is not told.
const MOST_TOLD: usize = 4 << 20;
/// The same for all of them.
const MOST_OF_ALL: usize = 64 << 20;

/// What a gate has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The container's name, which notifications bear.
    pub name: String,
    /// The socket of the session's bus.
    pub server: PathBuf,
    /// What is offered beside the bus itself, at first.
    pub offers: Offers,
    /// Connections at once.
    pub connections: usize,
}

struct Connection {
    key: u64,
    stream: OwnedFd,
    greeting: Greeting,
    /// Read and not yet used.
    from: Vec<u8>,
    /// To be written.
    to: Vec<u8>,
}

struct Gate<'a> {
    settings: Settings,
    hub: Hub,
    connections: Vec<Connection>,
    last: u64,
    host: Option<(OwnedFd, Host, Vec<u8>)>,
    /// Where addresses are opened.
    opener: BorrowedFd<'a>,
    chunk: Vec<u8>,
}

/// Serves a container's bus until its life ends. `opener` is told addresses to open, a line each.
///
/// Who calls says lines and is answered each with a line, `ok` or `error` and a reason:
///
/// | line | effect |
/// |---|---|
/// | `notifications on`, `off` | programs' notifications are shown, or not |
/// | `addresses ask`, `allow`, `deny` | what becomes of addresses; the opener is told, too |
/// | `info` | number of connections |
/// | `stop` | everything ends; the line is closed when that is done |
///
/// The session's bus need not be there: it is looked for when a notification is to be shown.
///
/// # Errors
///
/// Where the kernel refuses what the loop is built on. No program and no session can make it end.
pub fn serve(ends: &Ends, opener: BorrowedFd<'_>, settings: Settings) -> Result<()> {
    for fd in [ends.programs.as_fd(), ends.calls.as_fd(), opener] {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    let mut id = [0u8; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty()).context("naming the bus")?;
    let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let hub = Hub::new(id, settings.offers);
    let (connections, chunk) = (Vec::new(), vec![0; CHUNK]);
    let mut gate = Gate { settings, hub, connections, last: 0, host: None, opener, chunk };
    let mut callers = Callers::default();
    loop {
        let mut fds = vec![
            PollFd::new(&ends.programs, PollFlags::IN),
            PollFd::new(&ends.life, PollFlags::IN),
            PollFd::new(&ends.calls, PollFlags::IN),
        ];
        fds.extend(callers.watched());
        let of_callers = 3..fds.len();
        if let Some((stream, host, _)) = &gate.host {
            fds.push(PollFd::new(stream, flags(true, &host.to_bus)));
        }
        let first = fds.len();
        fds.extend(gate.connections.iter().map(Connection::watched));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for events"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[1].is_empty() {
            return Ok(());
        }
        if ready[of_callers.end..first].iter().any(|ready| !ready.is_empty()) {
            gate.serve_host();
        }
        gate.serve_programs(&ready[first..]);
        if !callers.hear(&ready[of_callers], |line| gate.called(line)) {
            return Ok(());
        }
        if !ready[0].is_empty() {
            gate.accept(ends.programs.as_fd());
        }
        if !ready[2].is_empty() {
            callers.accept(ends.calls.as_fd());
        }
    }
}

fn flags(reads: bool, to: &[u8]) -> PollFlags {
    let reads = if reads { PollFlags::IN } else { PollFlags::empty() };
    if to.is_empty() { reads } else { reads | PollFlags::OUT }
}

impl Gate<'_> {
    /// Takes a few at a time: those who are connected already want something, too.
    fn accept(&mut self, programs: BorrowedFd<'_>) {
        for _ in 0..16 {
            let Ok(stream) = accept_with(programs, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
            // Who is too many is hung up on.
            if self.connections.len() >= self.settings.connections {
                continue;
            }
            self.last += 1;
            let key = self.last;
            self.hub.join(key);
            let (from, to) = (Vec::new(), Vec::new());
            self.connections.push(Connection { key, stream, greeting: Greeting::default(), from, to });
        }
    }

    fn serve_programs(&mut self, ready: &[PollFlags]) {
        let mut over = Vec::new();
        for (at, ready) in ready.iter().enumerate().filter(|(_, ready)| !ready.is_empty()) {
            let (key, mut out) = (self.connections[at].key, Vec::new());
            if self.connections[at].serve(*ready, &mut self.chunk, &mut self.hub, &mut out).is_err() {
                over.push(key);
            }
            self.bring(out);
        }
        for key in over {
            let mut out = Vec::new();
            self.connections.retain(|connection| connection.key != key);
            self.hub.leave(key, &mut out);
            self.bring(out);
        }
    }

    /// Sees to it that what has come of something gets where it belongs.
    fn bring(&mut self, out: Vec<Out>) {
        let mut more = Vec::new();
        for one in out {
            match one {
                Out::Tell(key, message) => self.tell(key, &message),
                Out::Open(address) => self.say_to_opener(&format!("open {address}")),
                wish => more.extend(self.wish(wish)),
            }
        }
        self.bring_told(more);
    }

    fn bring_told(&mut self, told: Vec<Told>) {
        let mut out = Vec::new();
        for one in told {
            match one.to {
                Some(call) => self.hub.answer(&call, one.message, &mut out),
                None => self.hub.announce(one.message, &mut out),
            }
        }
        for one in out {
            if let Out::Tell(key, message) = one {
                self.tell(key, &message);
            }
        }
    }

    fn tell(&mut self, key: u64, message: &Message) {
        let all: usize = self.connections.iter().map(|connection| connection.to.len()).sum();
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.key == key) else { return };
        let bytes = message.bytes();
        if connection.to.len() + bytes.len() <= MOST_TOLD && all + bytes.len() <= MOST_OF_ALL {
            connection.to.extend(bytes);
            // Whoever has gone is noticed in the next turn.
            let _ = write_some(connection.stream.as_fd(), &mut connection.to);
        }
    }

    /// Whoever opens addresses takes them one at a time; what they have no room for is not opened.
    fn say_to_opener(&self, line: &str) {
        let _ = send(self.opener, format!("{line}\n").as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }

    fn wish(&mut self, wish: Out) -> Vec<Told> {
        if self.host.as_ref().is_some_and(|(_, host, _)| host.is_useless()) {
            self.host = None;
        }
        if self.host.is_none()
            && let Ok(stream) = SocketAddrUnix::new(&self.settings.server).and_then(|address| open(&address))
        {
            let host = Host::new(&self.settings.name, geteuid().as_raw());
            self.host = Some((stream, host, Vec::new()));
        }
        let Some((_, host, _)) = &mut self.host else {
            return match wish {
                Out::Show(call, _) | Out::Close(call, _) | Out::Abilities(call) => {
                    vec![refused(call, "the session has no bus")]
                }
                Out::Tell(..) | Out::Open(_) => Vec::new(),
            };
        };
        let told = host.wish(wish);
        self.write_to_host();
        told
    }

    fn write_to_host(&mut self) {
        let Some((stream, host, _)) = &mut self.host else { return };
        // The first bytes carry our credentials, by which a bus may know who we are.
        let sent = match host.to_bus.first() {
            Some(0) => introduce(stream.as_fd(), &mut host.to_bus).map(drop),
            _ => Ok(()),
        };
        if sent.and_then(|()| write_some(stream.as_fd(), &mut host.to_bus)).is_err() {
            self.lose_host();
        }
    }

    fn serve_host(&mut self) {
        let Some((stream, host, from)) = &mut self.host else { return };
        let mut told = Vec::new();
        let heard = receive_plain(stream.as_fd(), &mut self.chunk).and_then(|n| {
            from.extend(&self.chunk[..n]);
            let used = host.hear(from, &mut told).map_err(|_| Over)?;
            from.drain(..used);
            Ok(())
        });
        self.bring_told(told);
        match heard {
            Ok(()) => self.write_to_host(),
            Err(Over) => self.lose_host(),
        }
    }

    fn lose_host(&mut self) {
        if let Some((_, host, _)) = self.host.take() {
            self.bring_told(host.end());
        }
    }

    /// What becomes of a caller's line.
    fn called(&mut self, line: &str) -> Reply {
        match line {
            "notifications on" | "notifications off" => self.hub.offers.notifications = line.ends_with("on"),
            "addresses ask" | "addresses allow" | "addresses deny" => {
                self.hub.offers.addresses = !line.ends_with("deny");
                self.say_to_opener(line);
            }
            "info" => return Reply::Say(format!("ok connections={}", self.connections.len())),
            "stop" => return Reply::Stop,
            _ => return Reply::Say(format!("error no such line: `{line}`")),
        }
        Reply::Say("ok".into())
    }
}

impl Connection {
    fn watched(&self) -> PollFd<'_> {
        PollFd::new(&self.stream, flags(self.to.len() < MOST_WAITING, &self.to))
    }

    fn serve(
        &mut self,
        ready: PollFlags,
        chunk: &mut [u8],
        hub: &mut Hub,
        out: &mut Vec<Out>,
    ) -> std::result::Result<(), Over> {
        let broken = PollFlags::ERR | PollFlags::NVAL;
        if ready.intersects(broken) || (ready.contains(PollFlags::HUP) && !ready.contains(PollFlags::IN)) {
            return Err(Over);
        }
        write_some(self.stream.as_fd(), &mut self.to)?;
        if !ready.contains(PollFlags::IN) {
            return Ok(());
        }
        let n = receive_plain(self.stream.as_fd(), chunk)?;
        self.from.extend(&chunk[..n]);
        if !self.greeting.is_done() {
            let used = self.greeting.hear(&self.from, hub.id(), &mut self.to).map_err(|_| Over)?;
            self.from.drain(..used);
            write_some(self.stream.as_fd(), &mut self.to)?;
        }
        let mut at = 0;
        while self.greeting.is_done()
            && let Some((message, length)) = Message::parse(&self.from[at..]).map_err(|_| Over)?
        {
            at += length;
            hub.hear(self.key, message, out).map_err(|_| Over)?;
        }
        self.from.drain(..at);
        if self.from.is_empty() {
            self.from = Vec::new();
        }
        Ok(())
    }
}

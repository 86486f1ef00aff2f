//! The loop: one thread, one poll(2), one [`Filter`] for each connection.
//!
//! What a connection can make us hold is bounded: nothing more is read from one side while the other has not taken
//! what was read before. Nothing here waits for one connection; nothing that one does ends another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use lazaret_base::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with};

use super::filter::Filter;
use crate::caller::{Callers, Reply};
use crate::stream::{Over, introduce, open, receive_plain, write_some};
use crate::x11::Ends;

/// What is read at once.
const CHUNK: usize = 32 << 10;
/// What may wait for a reader before nothing more is read from his other side.
const MOST_WAITING: usize = 128 << 10;

/// What a gate has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket of the session's sound server.
    pub server: PathBuf,
    /// Connections at once.
    pub connections: usize,
    /// Whether the microphone is on at first.
    pub microphone: bool,
}

struct Connection {
    filter: Filter,
    client: OwnedFd,
    server: OwnedFd,
    /// Read and not yet used.
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    /// To be written.
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    /// The server has been told who we are.
    known: bool,
}

/// Serves a container's connections to a sound server until its life ends.
///
/// Who calls says lines and is answered each with a line, `ok` or `error` and a reason:
///
/// | line | effect |
/// |---|---|
/// | `microphone on`, `off` | programs may record, or may not any more |
/// | `info` | number of connections, of those that record, and whether the microphone is on |
/// | `stop` | everything ends; the line is closed when that is done |
///
/// The server need not be there: it is looked for whenever a program connects, so one that starts again is found.
///
/// # Errors
///
/// Where the kernel refuses what the loop is built on. No program and no server can make it end.
pub fn serve(ends: &Ends, mut settings: Settings) -> Result<()> {
    for fd in [&ends.programs, &ends.calls] {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    let mut connections: Vec<Connection> = Vec::new();
    let mut callers = Callers::default();
    let mut chunk = vec![0; CHUNK];
    loop {
        let mut fds = vec![
            PollFd::new(&ends.programs, PollFlags::IN),
            PollFd::new(&ends.life, PollFlags::IN),
            PollFd::new(&ends.calls, PollFlags::IN),
        ];
        fds.extend(callers.watched());
        let first = fds.len();
        fds.extend(connections.iter().flat_map(Connection::watched));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for events"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[1].is_empty() {
            return Ok(());
        }
        let mut events = ready[first..].chunks_exact(2);
        connections.retain_mut(|connection| match events.next() {
            Some(ready) => connection.serve([ready[0], ready[1]], &mut chunk).is_ok(),
            None => true,
        });
        let goes_on = callers.hear(&ready[3..first], |line| called(line, &mut settings, &mut connections));
        if !goes_on {
            return Ok(());
        }
        if !ready[0].is_empty() {
            accept(ends.programs.as_fd(), &settings, &mut connections);
        }
        if !ready[2].is_empty() {
            callers.accept(ends.calls.as_fd());
        }
    }
}

/// What becomes of one line.
fn called(line: &str, settings: &mut Settings, connections: &mut Vec<Connection>) -> Reply {
    match line {
        "microphone on" | "microphone off" => {
            settings.microphone = line == "microphone on";
            connections.retain_mut(|connection| connection.switch(settings.microphone).is_ok());
            Reply::Say("ok".into())
        }
        "info" => {
            let recording = connections.iter().filter(|connection| connection.filter.is_recording()).count();
            let microphone = if settings.microphone { "on" } else { "off" };
            Reply::Say(format!("ok connections={} recording={recording} microphone={microphone}", connections.len()))
        }
        "stop" => Reply::Stop,
        _ => Reply::Say(format!("error no such line: `{line}`")),
    }
}

/// Takes a few at a time: those who are connected already want something, too.
fn accept(programs: BorrowedFd<'_>, settings: &Settings, connections: &mut Vec<Connection>) {
    for _ in 0..16 {
        let Ok(client) = accept_with(programs, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
        // Who is too many, or has no server, is hung up on.
        if connections.len() < settings.connections
            && let Ok(server) = SocketAddrUnix::new(&settings.server).and_then(|address| open(&address))
        {
            connections.push(Connection {
                filter: Filter::new(settings.microphone),
                client,
                server,
                from_client: Vec::new(),
                from_server: Vec::new(),
                to_client: Vec::new(),
                to_server: Vec::new(),
                known: false,
            });
        }
    }
}

impl Connection {
    /// What to wait for: always two.
    fn watched(&self) -> [PollFd<'_>; 2] {
        let reads_client = self.to_server.is_empty() && self.to_client.len() < MOST_WAITING && !self.filter.waits();
        let reads_server = self.to_client.len() < MOST_WAITING;
        let flags = |reads: bool, to: &[u8]| {
            let reads = if reads { PollFlags::IN } else { PollFlags::empty() };
            if to.is_empty() { reads } else { reads | PollFlags::OUT }
        };
        [
            PollFd::new(&self.client, flags(reads_client, &self.to_client)),
            PollFd::new(&self.server, flags(reads_server, &self.to_server)),
        ]
    }

    /// Switches the microphone.
    fn switch(&mut self, on: bool) -> std::result::Result<(), Over> {
        self.filter.switch(on);
        self.filter.say(&mut self.to_server, &mut self.to_client);
        self.write()
    }

    fn serve(&mut self, [client, server]: [PollFlags; 2], chunk: &mut [u8]) -> std::result::Result<(), Over> {
        let broken = PollFlags::ERR | PollFlags::NVAL;
        for flags in [client, server] {
            if flags.intersects(broken) || (flags.contains(PollFlags::HUP) && !flags.contains(PollFlags::IN)) {
                return Err(Over);
            }
        }
        if server.contains(PollFlags::IN) {
            let n = receive_plain(self.server.as_fd(), chunk)?;
            self.from_server.extend(&chunk[..n]);
            let Connection { filter, from_server, to_client, to_server, .. } = self;
            let used = filter.from_server(from_server, to_client, to_server).map_err(|_| Over)?;
            self.from_server.drain(..used);
        }
        if client.contains(PollFlags::IN) {
            let n = receive_plain(self.client.as_fd(), chunk)?;
            self.from_client.extend(&chunk[..n]);
        }
        let Connection { filter, from_client, to_server, to_client, .. } = self;
        let used = filter.from_client(from_client, to_server, to_client).map_err(|_| Over)?;
        from_client.drain(..used);
        self.write()
    }

    fn write(&mut self) -> std::result::Result<(), Over> {
        if !self.known && !self.to_server.is_empty() {
            self.known = introduce(self.server.as_fd(), &mut self.to_server)?;
        }
        write_some(self.server.as_fd(), &mut self.to_server)?;
        write_some(self.client.as_fd(), &mut self.to_client)
    }
}

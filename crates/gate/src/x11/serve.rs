//! The loop: one thread, one poll(2), one [`Filter`] for each connection.
//!
//! What a connection can make us hold is bounded: nothing more is read from one side while the other has not taken
//! what was read before. Nothing here waits for one connection; nothing that one does ends another.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use lazaret_base::{Context, Kind, Result, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, accept_with, recvmsg, sendmsg,
};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::authority::Cookie;
use super::client::{self, Link, Server};
use super::clipboard::{Board, Verdict};
use super::container::Container;
use super::cookie::{self, Granted, Trust};
use super::filter::{Filter, Flow, Notice};
use crate::caller::{Caller, said};
use crate::stream::{Over, write_some};

/// What is read at once.
const CHUNK: usize = 32 << 10;
/// How often one connection reads before others have their turn.
const READS: usize = 16;
/// The room of the pipe through which long requests go.
const PIPE: usize = 512 << 10;
/// What is left of a request from which on it is worth while to pass it on unseen.
const MUCH: usize = 16 << 10;
/// What may wait for a reader before nothing more is read from his other side.
const MOST_WAITING: usize = 256 << 10;
/// How long a program may leave a request half sent while the person wants the pointer back.
const GRACE: Duration = Duration::from_secs(1);
/// Descriptors that come at once, or wait before more are taken, on a connection that the server trusts.
const MOST_ALONG: usize = 16;

/// What passes between the clipboards of the container and the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clipboard {
    /// Nothing.
    Off,
    /// What is copied inside can be pasted outside; the other way by an explicit act.
    #[default]
    Out,
    /// Both ways.
    Both,
}

impl Clipboard {
    /// The policy of this name.
    pub fn parse(word: &str) -> Option<Clipboard> {
        match word {
            "off" => Some(Clipboard::Off),
            "out" => Some(Clipboard::Out),
            "both" => Some(Clipboard::Both),
            _ => None,
        }
    }
}

/// What a gate has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The container's name, shown before titles.
    pub name: String,
    /// The session's display.
    pub server: Server,
    /// Whether the server is asked to trust the programs. Then nothing is filtered, and there are no two clipboards.
    pub trust: Trust,
    /// What its clipboard does.
    pub clipboard: Clipboard,
    /// Connections at once. A server has 256 for everybody.
    pub connections: usize,
}

impl Settings {
    /// What the gate has to do with the clipboards.
    fn policy(&self) -> Clipboard {
        match self.trust {
            Trust::Trusted => Clipboard::Off,
            Trust::Untrusted => self.clipboard,
        }
    }
}

/// What a gate is held by.
#[derive(Debug)]
pub struct Ends {
    /// A listening socket that the container can reach.
    pub programs: OwnedFd,
    /// A listening stream socket on which the gate is told what to do. Nobody in the container can reach it.
    pub calls: OwnedFd,
    /// Can be read from, or is hung up, when the container has ended: a pidfd of its keeper.
    pub life: OwnedFd,
}

/// What belongs to one life of the server.
struct Session {
    board: Board,
    container: Container,
    granted: Granted,
}

struct Gate {
    settings: Settings,
    session: Option<Session>,
    connections: Vec<Connection>,
    /// Counts connections: how the container knows them.
    last_key: u64,
    callers: Vec<Caller>,
    chunk: Vec<u8>,
    /// Takes what is passed on unseen: nothing is in it between two calls.
    pipe: (OwnedFd, OwnedFd),
    /// Empty buffers with room, for connections that have something to say.
    spare: Vec<Vec<u8>>,
}

struct Connection {
    key: u64,
    filter: Filter,
    client: OwnedFd,
    /// Opened when there is something to tell the server.
    server: Option<OwnedFd>,
    /// Read and not yet used.
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    /// To be written.
    to_client: Vec<u8>,
    to_server: Vec<u8>,
    /// Descriptors that go along with them, on a connection that the server trusts.
    fds_to_client: Vec<OwnedFd>,
    fds_to_server: Vec<OwnedFd>,
    server_gone: bool,
    /// The pointer could not be taken away at once.
    release_by: Option<Instant>,
}

/// Serves a container's X connections until its life ends.
///
/// Who calls says lines and is answered each with a line, `ok` or `error` and a reason:
///
/// | line | effect |
/// |---|---|
/// | `open` | the session's server is looked for, if it is not known; an error says why it can't be used |
/// | `paste` | the session's clipboard, as it is now, can be pasted inside; answered when it is there |
/// | `release` | no program keeps the pointer |
/// | `clipboard off`, `out`, `both` | see [`Clipboard`] |
/// | `credential` and 32 digits, or nothing | how to connect to the session's server from now on |
/// | `info` | number of connections, and whether there is a server |
/// | `stop` | the cookie is revoked, everything ends; the line is closed when that is done |
///
/// A server need not be there: it is looked for when a program connects. When it comes back, a new cookie is asked for.
///
/// # Errors
///
/// Where the kernel refuses what the loop is built on. No program and no server can make it end.
pub fn serve(ends: &Ends, settings: Settings) -> Result<()> {
    for fd in [&ends.programs, &ends.calls] {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    let pipe = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).context("making a pipe")?;
    // Best effort: who has many pipes already gets a smaller one (pipe(7)).
    let _ = fcntl_setpipe_size(&pipe.1, PIPE);
    let mut gate = Gate {
        settings,
        session: None,
        connections: Vec::new(),
        last_key: 0,
        callers: Vec::new(),
        chunk: vec![0; CHUNK],
        pipe,
        spare: Vec::new(),
    };
    // A server that is not there yet is looked for again when somebody needs it.
    let _ = gate.open();
    while gate.turn(ends)? {}
    gate.connections.clear();
    if let Some(mut session) = gate.session.take() {
        // Best effort: the server may have gone before us.
        let _ = cookie::revoke_over(&mut session.board.outer, session.granted.id);
    }
    Ok(())
}

impl Gate {
    /// Waits for events and serves them. False at the end.
    fn turn(&mut self, ends: &Ends) -> Result<bool> {
        let mut fds = vec![
            PollFd::new(&ends.programs, PollFlags::IN),
            PollFd::new(&ends.life, PollFlags::IN),
            PollFd::new(&ends.calls, PollFlags::IN),
        ];
        fds.extend(self.callers.iter().map(|caller| PollFd::new(&caller.stream, caller.wants())));
        let callers = 3..fds.len();
        if let Some(Session { board, .. }) = &self.session {
            fds.push(PollFd::new(&board.outer, board.outer.wants()));
            fds.push(PollFd::new(&board.inner, board.inner.wants()));
        }
        let first = fds.len();
        for connection in &self.connections {
            fds.extend(connection.watched().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        }
        let timeout = self.due().map(|due| due.saturating_duration_since(Instant::now()));
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for events"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[1].is_empty() {
            return Ok(false);
        }
        let late = self.session.as_ref().and_then(|session| session.board.due()).is_some_and(|by| by <= Instant::now());
        if late || ready[callers.end..first].iter().any(|ready| !ready.is_empty()) {
            self.serve_session();
        }
        let served = self.connections.len();
        self.serve_connections(&ready[first..], served);
        if !ready[0].is_empty() {
            self.accept(ends.programs.as_fd());
        }
        // Whoever has just called is heard in the next turn.
        let goes_on = self.hear_callers(&ready[callers]);
        if !ready[2].is_empty() {
            Caller::accept(ends.calls.as_fd(), &mut self.callers);
        }
        Ok(goes_on)
    }

    fn due(&self) -> Option<Instant> {
        let connections = self.connections.iter().filter_map(|connection| connection.release_by);
        connections.chain(self.session.as_ref().and_then(|session| session.board.due())).min()
    }

    /// Gets to know the server, if we do not.
    fn open(&mut self) -> Result<()> {
        if self.session.is_some() {
            return Ok(());
        }
        let Settings { name, server, trust, .. } = &self.settings;
        let mut outer = Link::connect(&server.socket, server.credential.as_ref())?;
        let granted = cookie::generate(&mut outer, *trust)?;
        let mut container = Container::new(name, outer.facts(name)?);
        let inner = Link::connect(&server.socket, Some(&granted.cookie))?;
        let board = Board::new(self.settings.policy(), outer, inner, &mut container);
        self.session = Some(Session { board, container, granted });
        Ok(())
    }

    fn serve_session(&mut self) {
        let Some(session) = &mut self.session else { return };
        let Ok(verdicts) = session.board.turn(&mut session.container) else {
            self.lose_session();
            return;
        };
        for verdict in verdicts {
            match verdict {
                Verdict::Release => self.release(),
                Verdict::Pasted(kinds) if kinds > 0 => self.tell_pasters("ok"),
                Verdict::Pasted(_) => self.tell_pasters("error nothing to paste"),
            }
        }
    }

    /// The server has gone, and everything that belonged to its life.
    fn lose_session(&mut self) {
        let pasting = self.session.as_ref().is_some_and(|session| session.board.is_pasting());
        self.session = None;
        self.connections.clear();
        if pasting {
            self.tell_pasters("error the X server has gone");
        }
    }

    fn accept(&mut self, listener: BorrowedFd<'_>) {
        // A few at a time: those who are connected already want something, too.
        for _ in 0..16 {
            let Ok(client) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
            // Who is too many, or has no server, is hung up on.
            if self.connections.len() >= self.settings.connections || self.open().is_err() {
                continue;
            }
            let Some(session) = &self.session else { continue };
            self.last_key += 1;
            let filter = match self.settings.trust {
                Trust::Untrusted => Filter::new(self.last_key, session.granted.cookie),
                Trust::Trusted => Filter::trusted(self.last_key, session.granted.cookie),
            };
            self.connections.push(Connection::new(self.last_key, client, filter));
        }
    }

    /// Serves the first `count` connections, to which belong two events each.
    fn serve_connections(&mut self, ready: &[PollFlags], count: usize) {
        let Some(session) = &mut self.session else { return };
        let mut notices = Vec::new();
        let now = Instant::now();
        let mut over = Vec::new();
        for (connection, ready) in self.connections.iter_mut().take(count).zip(ready.chunks_exact(2)) {
            let late = connection.release_by.is_some_and(|by| by <= now);
            let mut room =
                Room { chunk: &mut self.chunk, pipe: &self.pipe, spare: &mut self.spare, notices: &mut notices };
            let socket = &self.settings.server.socket;
            if late || connection.serve([ready[0], ready[1]], socket, &mut session.container, &mut room).is_err() {
                over.push(connection.key);
            }
        }
        for key in over {
            session.container.leave(key);
            self.connections.retain(|connection| connection.key != key);
        }
        for notice in notices {
            match notice {
                Notice::Grabbed { focus } => session.board.grabbed(focus),
                Notice::Copied { selection } => session.board.copied(selection),
                Notice::Wish(event) => session.board.wish(&event),
            }
        }
        // Sends what that has caused; a server that has gone is noticed in the next turn.
        let _ = session.board.outer.flush().and(session.board.inner.flush());
    }

    fn release(&mut self) {
        for connection in &mut self.connections {
            let mut notices = Vec::new();
            let mut flow = Flow {
                to_server: &mut connection.to_server,
                to_client: &mut connection.to_client,
                notices: &mut notices,
            };
            let done = connection.filter.release(&mut flow);
            connection.release_by = (!done).then(|| Instant::now() + GRACE);
        }
    }

    /// Hears the callers, to each of whom belongs an event. False at the end.
    fn hear_callers(&mut self, ready: &[PollFlags]) -> bool {
        let mut callers = std::mem::take(&mut self.callers);
        let mut goes_on = true;
        let mut events = ready.iter();
        callers.retain_mut(|caller| {
            let called = events.next().is_some_and(|ready| !ready.is_empty());
            !called || self.hear(caller, &mut goes_on)
        });
        self.callers = callers;
        goes_on
    }

    /// Hears what somebody says. False if that was all.
    fn hear(&mut self, caller: &mut Caller, goes_on: &mut bool) -> bool {
        let Ok(lines) = caller.hear() else { return false };
        for line in lines {
            if line == "stop" {
                *goes_on = false;
                return true;
            }
            match self.obey(&line) {
                Ok(Some(answer)) => caller.say(&answer),
                Ok(None) => caller.waits = true,
                Err(e) => caller.say(&format!("error {}", said(&e))),
            }
        }
        true
    }

    /// Does what the line says. `None` if the answer comes later.
    fn obey(&mut self, line: &str) -> Result<Option<String>> {
        let done = || Ok(Some("ok".to_owned()));
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (word, rest) {
            ("open", "") => {
                self.open()?;
                done()
            }
            // There is one clipboard, and the programs have it.
            ("paste", "") if self.settings.trust == Trust::Trusted => done(),
            ("paste", "") => {
                self.open()?;
                let Some(session) = &mut self.session else { return Err(error("no X server")) };
                if session.board.is_pasting() {
                    return Err(error("pasting already"));
                }
                session.board.paste(&session.container);
                session.board.outer.flush()?;
                // What was copied inside needs no pasting.
                if session.board.is_pasting() { Ok(None) } else { done() }
            }
            ("release", "") => {
                self.release();
                done()
            }
            ("clipboard", word) => {
                let policy = Clipboard::parse(word).ok_or_else(|| error(format!("no policy `{word}`")))?;
                self.settings.clipboard = policy;
                let policy = self.settings.policy();
                if let Some(session) = &mut self.session {
                    session.board.set_policy(policy, &session.container);
                    session.board.outer.flush().and(session.board.inner.flush())?;
                }
                done()
            }
            ("credential", digits) => {
                let cookie = Cookie::parse(digits);
                if cookie.is_none() && !digits.is_empty() {
                    return Err(error("a credential has 32 digits"));
                }
                self.settings.server.credential = cookie;
                done()
            }
            ("info", "") => {
                let server = if self.session.is_some() { "there" } else { "gone" };
                Ok(Some(format!("ok connections={} server={server}", self.connections.len())))
            }
            _ => Err(error(format!("no such line: `{word}`")).kind(Kind::Invalid)),
        }
    }

    /// Answers those who wait for a paste.
    fn tell_pasters(&mut self, line: &str) {
        for caller in self.callers.iter_mut().filter(|caller| caller.waits) {
            caller.waits = false;
            caller.say(line);
        }
    }
}

/// What connections share while they are served.
struct Room<'a> {
    chunk: &'a mut [u8],
    pipe: &'a (OwnedFd, OwnedFd),
    spare: &'a mut Vec<Vec<u8>>,
    notices: &'a mut Vec<Notice>,
}

impl Connection {
    fn new(key: u64, client: OwnedFd, filter: Filter) -> Connection {
        Connection {
            key,
            filter,
            client,
            server: None,
            from_client: Vec::new(),
            from_server: Vec::new(),
            to_client: Vec::new(),
            to_server: Vec::new(),
            fds_to_client: Vec::new(),
            fds_to_server: Vec::new(),
            server_gone: false,
            release_by: None,
        }
    }

    /// What to wait for: always two.
    fn watched(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        let reads_client = !self.filter.waits()
            && self.to_server.is_empty()
            && self.to_client.len() < MOST_WAITING
            && !self.server_gone;
        let reads_server = !self.server_gone && self.to_client.len() < MOST_WAITING;
        let flags = |reads: bool, to: &[u8]| {
            let reads = if reads { PollFlags::IN } else { PollFlags::empty() };
            if to.is_empty() { reads } else { reads | PollFlags::OUT }
        };
        let client = flags(reads_client, &self.to_client);
        let server = match &self.server {
            Some(server) => (server.as_fd(), flags(reads_server, &self.to_server)),
            // Not connected yet: nothing to wait for that the client's side does not tell.
            None => (self.client.as_fd(), PollFlags::empty()),
        };
        [(self.client.as_fd(), client), server]
    }

    fn serve(
        &mut self,
        [client, server]: [PollFlags; 2],
        socket: &Path,
        container: &mut Container,
        room: &mut Room<'_>,
    ) -> Result<(), Over> {
        let broken = PollFlags::ERR | PollFlags::NVAL;
        if client.intersects(broken) || (client.contains(PollFlags::HUP) && !client.contains(PollFlags::IN)) {
            // What it has said last dies with all that it had on the server.
            return Err(Over);
        }
        for buffer in [&mut self.to_client, &mut self.to_server] {
            if buffer.capacity() == 0 {
                *buffer = room.spare.pop().unwrap_or_default();
            }
        }
        if client.contains(PollFlags::IN) {
            for _ in 0..READS {
                if !self.read_client(container, room)? {
                    break;
                }
                self.write(socket)?;
                if !self.to_server.is_empty() || self.filter.waits() {
                    break;
                }
            }
        }
        if self.server.is_some() && server.intersects(PollFlags::IN | PollFlags::HUP | broken) {
            self.read_server(container, room)?;
            // A question of ours may have been answered, or there is room again.
            if !self.from_client.is_empty() {
                self.use_client(&[], container, room)?;
            }
        }
        self.write(socket)?;
        for buffer in [&mut self.to_client, &mut self.to_server] {
            if buffer.is_empty() && room.spare.len() < 2 {
                room.spare.push(std::mem::take(buffer));
            } else if buffer.is_empty() {
                *buffer = Vec::new();
            }
        }
        if self.server_gone {
            // What it has said last is still told to the program.
            self.server = None;
        }
        if self.server_gone && self.to_client.is_empty() { Err(Over) } else { Ok(()) }
    }

    /// Reads once. False if there was not much.
    fn read_client(&mut self, container: &mut Container, room: &mut Room<'_>) -> Result<bool, Over> {
        if self.filter.passing() >= MUCH && self.from_client.is_empty() && self.to_server.is_empty() {
            return self.pass(room);
        }
        let along = self.filter.is_trusted().then_some(&mut self.fds_to_server);
        match receive(self.client.as_fd(), room.chunk, along) {
            Ok(0) => Err(Over),
            Ok(n) => {
                let chunk = std::mem::take(&mut room.chunk);
                let used = self.use_client(&chunk[..n], container, room);
                room.chunk = chunk;
                used.map(|()| n == room.chunk.len())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Over),
        }
    }

    /// Lets the kernel move the rest of a long request, a picture mostly, from one socket to the other without copying.
    fn pass(&mut self, room: &mut Room<'_>) -> Result<bool, Over> {
        let Some(server) = &self.server else { return Err(Over) };
        let (from, into) = room.pipe;
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let taken = match splice(&self.client, None, into, None, self.filter.passing(), flags) {
            Ok(0) => return Err(Over),
            Ok(taken) => taken,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(_) => return Err(Over),
        };
        self.filter.passed(taken);
        let mut left = taken;
        while left > 0 {
            match splice(from, None, server, None, left, flags) {
                Ok(0) => return Err(Over),
                Ok(n) => left -= n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The pipe is emptied all the same.
                Err(_) => {
                    self.server_gone = true;
                    break;
                }
            }
        }
        // What the server has no room for now.
        while left > 0 {
            match rustix::io::read(from, &mut room.chunk[..left.min(CHUNK)]) {
                Ok(n) if n > 0 => {
                    self.to_server.extend(&room.chunk[..n]);
                    left -= n;
                }
                Err(Errno::INTR) => {}
                _ => return Err(Over),
            }
        }
        Ok(true)
    }

    /// Lets the filter have what was left, and then what is new.
    fn use_client(&mut self, new: &[u8], container: &mut Container, room: &mut Room<'_>) -> Result<(), Over> {
        let Connection { filter, from_client, to_server, to_client, .. } = self;
        let mut flow = Flow { to_server, to_client, notices: room.notices };
        if !from_client.is_empty() {
            from_client.extend(new);
            let used = filter.from_client(from_client, container, &mut flow).map_err(|_| Over)?;
            from_client.drain(..used);
            if from_client.is_empty() {
                *from_client = Vec::new();
            }
            return Ok(());
        }
        let used = filter.from_client(new, container, &mut flow).map_err(|_| Over)?;
        from_client.extend(&new[used..]);
        Ok(())
    }

    fn read_server(&mut self, container: &mut Container, room: &mut Room<'_>) -> Result<(), Over> {
        let Some(server) = &self.server else { return Ok(()) };
        let along = self.filter.is_trusted().then_some(&mut self.fds_to_client);
        let bytes = match receive(server.as_fd(), room.chunk, along) {
            Ok(0) => {
                self.server_gone = true;
                return Ok(());
            }
            Ok(n) => &room.chunk[..n],
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(_) => {
                self.server_gone = true;
                return Ok(());
            }
        };
        let Connection { filter, from_server, to_server, to_client, .. } = self;
        let mut flow = Flow { to_server, to_client, notices: room.notices };
        if from_server.is_empty() {
            let used = filter.from_server(bytes, container, &mut flow).map_err(|_| Over)?;
            from_server.extend(&bytes[used..]);
        } else {
            from_server.extend(bytes);
            let used = filter.from_server(from_server, container, &mut flow).map_err(|_| Over)?;
            from_server.drain(..used);
        }
        if from_server.is_empty() {
            *from_server = Vec::new();
        }
        Ok(())
    }

    /// Writes what can be written, connecting to the server first.
    fn write(&mut self, socket: &Path) -> Result<(), Over> {
        if !self.to_server.is_empty() && !self.server_gone {
            let server = match &self.server {
                Some(server) => server,
                None => self.server.insert(client::open(socket).map_err(|_| Over)?),
            };
            let sent = send_along(server.as_fd(), &mut self.to_server, &mut self.fds_to_server);
            if sent.is_err() || write_some(server.as_fd(), &mut self.to_server).is_err() {
                self.server_gone = true;
            }
        }
        if self.server_gone {
            self.to_server.clear();
        }
        send_along(self.client.as_fd(), &mut self.to_client, &mut self.fds_to_client).map_err(|_| Over)?;
        write_some(self.client.as_fd(), &mut self.to_client)?;
        if self.release_by.is_some() && self.filter_released() {
            self.release_by = None;
        }
        Ok(())
    }

    /// Tries again to take the pointer away.
    fn filter_released(&mut self) -> bool {
        let mut notices = Vec::new();
        let mut flow = Flow { to_server: &mut self.to_server, to_client: &mut self.to_client, notices: &mut notices };
        self.filter.release(&mut flow)
    }
}

/// Reads once. Descriptors go to `along`; where nobody takes them, who sends some is cut off.
fn receive(from: BorrowedFd<'_>, chunk: &mut [u8], along: Option<&mut Vec<OwnedFd>>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_ALONG))];
    let mut control = match &along {
        Some(waiting) if waiting.len() < MOST_ALONG => RecvAncillaryBuffer::new(&mut space),
        // Without a buffer for them, descriptors that come along are closed by the kernel (unix(7)).
        _ => RecvAncillaryBuffer::default(),
    };
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(from, &mut [IoSliceMut::new(chunk)], &mut control, flags)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::PERM);
    }
    if let Some(along) = along {
        along.extend(control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        }));
    }
    Ok(message.bytes)
}

/// Sends descriptors with the first of the bytes: not later than those that they came with.
fn send_along(to: BorrowedFd<'_>, bytes: &mut Vec<u8>, along: &mut Vec<OwnedFd>) -> Result<(), Errno> {
    if along.is_empty() || bytes.is_empty() {
        return Ok(());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * MOST_ALONG))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = along.iter().map(AsFd::as_fd).collect();
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::PERM);
    }
    match sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(n) => {
            bytes.drain(..n);
            along.clear();
            Ok(())
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(e) => Err(e),
    }
}

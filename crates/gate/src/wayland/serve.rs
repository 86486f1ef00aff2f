//! The loop: one thread, one poll(2), one [`Filter`] for each connection.
//!
//! What a connection can make us hold is bounded, bytes and descriptors alike: nothing more is read from one side while
//! the other has not taken what was read before. Nothing here waits for one connection; nothing that one does ends
//! another.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lazaret_base::{Context as _, Kind, Result, error};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, accept_with, recvmsg, sendmsg,
};

use super::context::{self, Context};
use super::filter::{Broken, Filter, MARK, Rules};
use super::wire::{In, Out};
use crate::caller::{Caller, said};
use crate::stream::{Over, open};
use crate::x11::{Clipboard, Ends};

/// What is read at once.
const CHUNK: usize = 32 << 10;
/// What may wait for a reader before nothing more is read from his other side.
const MOST_WAITING: usize = 128 << 10;
/// Descriptors in one message of a socket. The library sends and takes no more (wayland-os and connection.c of it).
const MOST_AT_ONCE: usize = 28;
/// Descriptors that wait for a program before nothing more is read from the compositor.
const MOST_FDS_WAITING: usize = 28;
/// What a connection can have open here at most: both ends; what came early, and once more; what waits, and once more.
const MOST_OPEN: u64 = 2 + 2 * 32 + 2 * 28;
/// What the gate has open for itself.
const OWN: u64 = 40;
/// How long the person has to turn to the program for which they have pasted.
const INVITATION: Duration = Duration::from_secs(60);

/// What a gate has to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The container's name, shown before titles.
    pub name: String,
    /// The compositor's socket.
    pub server: PathBuf,
    /// Whether the compositor is asked to treat the programs as its own. Then nothing is filtered.
    pub trusted: bool,
    /// What its clipboard does.
    pub clipboard: Clipboard,
    /// Connections at once.
    pub connections: usize,
    /// How many descriptors the process may have.
    pub descriptors: u64,
    /// Nobody else is in the network namespace, where a name without a file can be reached.
    pub alone: bool,
}

/// Where connections go.
#[derive(Debug)]
enum Way {
    /// To the compositor's own socket.
    Straight,
    /// To the door that it has made.
    Context(Context),
}

struct Gate {
    settings: Settings,
    rules: Rules,
    /// Until when an invitation holds.
    invited_until: Instant,
    way: Option<Way>,
    /// Counts doors that compositors have made.
    doors: u64,
    connections: Vec<Connection>,
    callers: Vec<Caller>,
    chunk: Vec<u8>,
}

struct Connection {
    /// `None` where nothing is filtered.
    filter: Option<Filter>,
    client: OwnedFd,
    server: OwnedFd,
    from_client: In<OwnedFd>,
    from_server: In<OwnedFd>,
    to_client: Out<OwnedFd>,
    to_server: Out<OwnedFd>,
    /// Only what is left is still told to the program.
    ends: bool,
}

/// Serves a container's connections to a compositor until its life ends.
///
/// Who calls says lines and is answered each with a line, `ok` or `error` and a reason:
///
/// | line | effect |
/// |---|---|
/// | `open` | the compositor is looked for, if it is not known; an error says why it can't be used |
/// | `paste` | the program that has the keyboard may paste; if none has, the one that the person turns to: `ok later` |
/// | `clipboard off`, `out`, `both` | see [`Clipboard`] |
/// | `info` | number of connections, whether there is a compositor, and whether it restricts programs itself |
/// | `stop` | everything ends; the line is closed when that is done |
///
/// # Errors
///
/// Where the kernel refuses what the loop is built on. No program and no compositor can make it end.
pub fn serve(ends: &Ends, settings: Settings) -> Result<()> {
    for fd in [&ends.programs, &ends.calls] {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    }
    let mut secret = [0; 16];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
    let secret: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let rules = Rules {
        name: settings.name.clone(),
        clipboard: settings.clipboard,
        mark: format!("{MARK}{secret}"),
        invited: [false; 2],
    };
    let mut gate = Gate {
        settings,
        rules,
        invited_until: Instant::now(),
        way: None,
        doors: 0,
        connections: Vec::new(),
        callers: Vec::new(),
        chunk: vec![0; CHUNK],
    };
    // A compositor that is not there yet is looked for again when somebody needs it.
    let _ = gate.open();
    while gate.turn(ends)? {}
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
        let first = fds.len();
        fds.extend(self.connections.iter().flat_map(Connection::watched));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for events"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        if !ready[1].is_empty() {
            return Ok(false);
        }
        if self.rules.invited != [false; 2] && self.invited_until < Instant::now() {
            self.rules.invited = [false; 2];
        }
        let mut events = ready[first..].chunks_exact(2);
        let (rules, chunk) = (&mut self.rules, &mut self.chunk);
        self.connections.retain_mut(|connection| match events.next() {
            None => true,
            Some(ready) if ready.iter().all(PollFlags::is_empty) => true,
            Some(ready) => connection.serve([ready[0], ready[1]], rules, chunk).is_ok(),
        });
        if !ready[0].is_empty() {
            self.accept(ends.programs.as_fd());
        }
        let goes_on = self.hear(&ready[3..first]);
        if !ready[2].is_empty() {
            Caller::accept(ends.calls.as_fd(), &mut self.callers);
        }
        Ok(goes_on)
    }

    /// Gets to know the compositor, if we do not.
    fn open(&mut self) -> Result<()> {
        if self.way.is_some() {
            return Ok(());
        }
        let Settings { server, name, trusted, alone, .. } = &self.settings;
        let context = match !trusted && *alone {
            true => {
                self.doors += 1;
                context::ask(server, name, self.doors)?
            }
            false => {
                context::greet(server)?;
                None
            }
        };
        self.way = Some(context.map_or(Way::Straight, Way::Context));
        Ok(())
    }

    /// A connection for a program.
    fn connect(&mut self) -> Result<OwnedFd> {
        self.open()?;
        let to = match &self.way {
            Some(Way::Context(context)) => context.address.clone(),
            _ => SocketAddrUnix::new(&self.settings.server)?,
        };
        open(&to).map_err(|e| {
            // Who has ended listens nowhere; another one is asked anew.
            self.way = None;
            e.into()
        })
    }

    /// Takes a few at a time: those who are connected already want something, too.
    fn accept(&mut self, programs: BorrowedFd<'_>) {
        let affordable = self.settings.descriptors.saturating_sub(OWN) / MOST_OPEN;
        let most = self.settings.connections.min(usize::try_from(affordable).unwrap_or(usize::MAX));
        for _ in 0..16 {
            let Ok(client) = accept_with(programs, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) else { return };
            // Who is too many, or has no compositor, is hung up on.
            if self.connections.len() < most
                && let Ok(server) = self.connect()
            {
                let filter = (!self.settings.trusted).then(Filter::new);
                self.connections.push(Connection::new(filter, client, server));
            }
        }
    }

    /// Hears the callers, to each of whom belongs an event. False at the end.
    fn hear(&mut self, ready: &[PollFlags]) -> bool {
        let mut goes_on = true;
        let mut callers = std::mem::take(&mut self.callers);
        let mut events = ready.iter();
        callers.retain_mut(|caller| {
            if events.next().is_none_or(|ready| ready.is_empty()) {
                return true;
            }
            let Ok(lines) = caller.hear() else { return false };
            for line in lines {
                match line.as_str() {
                    "stop" => goes_on = false,
                    line => {
                        let answer = self.obey(line).unwrap_or_else(|e| format!("error {}", said(&e)));
                        caller.say(&answer);
                    }
                }
            }
            true
        });
        self.callers = callers;
        goes_on
    }

    /// Does what the line says.
    fn obey(&mut self, line: &str) -> Result<String> {
        let done = || Ok("ok".to_owned());
        match line.split_once(' ').unwrap_or((line, "")) {
            ("open", "") => {
                self.open()?;
                done()
            }
            ("paste", "") => Ok(self.paste().to_owned()),
            ("clipboard", word) => {
                let policy = Clipboard::parse(word).ok_or_else(|| error(format!("no policy `{word}`")))?;
                self.rules.clipboard = policy;
                done()
            }
            ("info", "") => {
                let server = if self.way.is_some() { "there" } else { "gone" };
                let context = matches!(self.way, Some(Way::Context(_)));
                Ok(format!("ok connections={} server={server} context={context}", self.connections.len()))
            }
            (word, _) => Err(error(format!("no such line: `{word}`")).kind(Kind::Invalid)),
        }
    }

    /// The person pastes: for the program that has the keyboard, or the next that gets it.
    fn paste(&mut self) -> &'static str {
        if self.settings.trusted || self.rules.clipboard == Clipboard::Both {
            return "ok";
        }
        let filters = self.connections.iter_mut().filter_map(|connection| connection.filter.as_mut());
        let mut here = false;
        for filter in filters.filter_map(|filter| filter.has_focus().then_some(filter)) {
            here |= filter.allow_paste();
        }
        if here {
            return "ok";
        }
        self.rules.invited = [true; 2];
        self.invited_until = Instant::now() + INVITATION;
        "ok later"
    }
}

impl Connection {
    fn new(filter: Option<Filter>, client: OwnedFd, server: OwnedFd) -> Connection {
        Connection {
            filter,
            client,
            server,
            from_client: In::default(),
            from_server: In::default(),
            to_client: Out::default(),
            to_server: Out::default(),
            ends: false,
        }
    }

    /// What to wait for: always two.
    fn watched(&self) -> [PollFd<'_>; 2] {
        let room = self.to_client.bytes.len() < MOST_WAITING;
        let reads_client = !self.ends && room && self.to_server.is_empty();
        let reads_server = !self.ends && room && self.to_client.fds.len() < MOST_FDS_WAITING;
        let flags = |reads: bool, to: &Out<OwnedFd>| {
            let reads = if reads { PollFlags::IN } else { PollFlags::empty() };
            if to.is_empty() { reads } else { reads | PollFlags::OUT }
        };
        let server = match self.ends {
            // There is nothing to wait for that the program's side does not tell.
            true => PollFd::new(&self.client, PollFlags::empty()),
            false => PollFd::new(&self.server, flags(reads_server, &self.to_server)),
        };
        [PollFd::new(&self.client, flags(reads_client, &self.to_client)), server]
    }

    fn serve(&mut self, [client, server]: [PollFlags; 2], rules: &mut Rules, chunk: &mut [u8]) -> Result<(), Over> {
        let broken = PollFlags::ERR | PollFlags::NVAL;
        if client.intersects(broken) || (client.contains(PollFlags::HUP) && !client.contains(PollFlags::IN)) {
            return Err(Over);
        }
        if !self.ends && server.intersects(PollFlags::IN | PollFlags::HUP | broken) {
            self.read_server(rules, chunk);
        }
        if !self.ends && client.contains(PollFlags::IN) {
            receive(self.client.as_fd(), chunk, &mut self.from_client)?;
            self.use_client(rules);
        }
        if !self.ends && write(self.server.as_fd(), &mut self.to_server).is_err() {
            // Why, it may have said before.
            self.read_server(rules, chunk);
            self.ends = true;
        }
        write(self.client.as_fd(), &mut self.to_client)?;
        if self.ends && self.to_client.is_empty() { Err(Over) } else { Ok(()) }
    }

    fn use_client(&mut self, rules: &Rules) {
        let Connection { filter, from_client: from, to_server, to_client, .. } = self;
        let Some(filter) = filter else {
            to_server.push(&from.bytes, from.fds.drain(..));
            from.bytes.clear();
            return;
        };
        if let Err(why) = filter.from_client(from, rules, to_server, to_client) {
            self.end(&why);
        }
    }

    /// Reads once; what the compositor has said last is still told to the program.
    fn read_server(&mut self, rules: &mut Rules, chunk: &mut [u8]) {
        if receive(self.server.as_fd(), chunk, &mut self.from_server).is_err() {
            self.ends = true;
        }
        let Connection { filter, from_server: from, to_client, .. } = self;
        let Some(filter) = filter else {
            to_client.push(&from.bytes, from.fds.drain(..));
            from.bytes.clear();
            return;
        };
        if let Err(why) = filter.from_server(from, rules, to_client) {
            self.end(&why);
        }
    }

    /// The program is told why, and no more.
    fn end(&mut self, why: &Broken) {
        self.to_client.push(&Filter::complaint(why), std::iter::empty());
        self.ends = true;
    }
}

/// Reads once. Who sends more descriptors than the library does, or has gone, is let go.
fn receive(from: BorrowedFd<'_>, chunk: &mut [u8], into: &mut In<OwnedFd>) -> Result<(), Over> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    match recvmsg(from, &mut [IoSliceMut::new(chunk)], &mut control, flags) {
        Ok(message) if message.bytes == 0 || message.flags.contains(ReturnFlags::CTRUNC) => Err(Over),
        Ok(message) => {
            into.bytes.extend(&chunk[..message.bytes]);
            into.fds.extend(control.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            }));
            Ok(())
        }
        Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(_) => Err(Over),
    }
}

/// Writes as much as is taken.
fn write(to: BorrowedFd<'_>, out: &mut Out<OwnedFd>) -> Result<(), Over> {
    while !out.is_empty() {
        let (bytes, count) = out.sendable(MOST_AT_ONCE);
        let sent = {
            let fds: Vec<BorrowedFd<'_>> = out.fds.iter().take(count).map(|(_, fd)| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_AT_ONCE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(Over);
            }
            sendmsg(to, &[IoSlice::new(&out.bytes[..bytes])], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        };
        match sent {
            Ok(n) => out.sent(n, count),
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(_) => return Err(Over),
        }
    }
    if out.is_empty() && out.bytes.capacity() > 0 {
        // A connection that is silent holds nothing.
        out.bytes = Vec::new();
    }
    Ok(())
}

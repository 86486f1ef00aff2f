//! Between a person's terminal and a command in a container.
//!
//! A terminal of the host's is never handed in: whoever holds one can type into it. A command gets a
//! terminal of the container's, or pipes, and what passes is copied here. Files and pipes of the caller's
//! are handed in as they are, and nothing is copied.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use std::time::Duration;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_sys::process::Child;
use lazaret_sys::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;
use rustix::termios::{OptionalActions, Termios, Winsize, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::console::{PACKET, window_packet};
use crate::keeper::Ended;

/// A terminal in raw mode, as long as this lives.
pub struct Raw<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Raw<'a> {
    /// Every key goes through as it is (cfmakeraw(3)).
    pub fn enter(terminal: BorrowedFd<'a>) -> Result<Raw<'a>> {
        let before = tcgetattr(terminal).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Drain, not flush: what was typed ahead is kept.
        tcsetattr(terminal, OptionalActions::Drain, &raw).context("setting the terminal's mode")?;
        Ok(Raw { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to restore.
        let _ = tcsetattr(self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// What a command's standard input, output and error come from and go to.
pub struct Ends<'a> {
    /// For the command: the caller's own, or pipes in the place of terminals.
    given: [Given<'a>; 3],
    pumps: Vec<Pump<'a>>,
}

enum Given<'a> {
    Callers(BorrowedFd<'a>),
    Pipe(OwnedFd),
}

/// Copies from one descriptor to another.
struct Pump<'a> {
    from: Side<'a>,
    to: Option<Side<'a>>,
    waiting: VecDeque<u8>,
    ended: bool,
}

enum Side<'a> {
    Callers(BorrowedFd<'a>),
    Ours(OwnedFd),
}

impl AsFd for Side<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Side::Callers(fd) => fd.as_fd(),
            Side::Ours(fd) => fd.as_fd(),
        }
    }
}

/// Whether a command gets a terminal: only where the caller both types and reads on one.
pub fn wants_terminal(stdio: [BorrowedFd<'_>; 3]) -> bool {
    isatty(stdio[0]) && isatty(stdio[1])
}

impl<'a> Ends<'a> {
    /// Pipes in the place of terminals, all else as it is.
    pub fn of(stdio: [BorrowedFd<'a>; 3]) -> Result<Ends<'a>> {
        let mut pumps = Vec::new();
        let mut end = |fd: BorrowedFd<'a>, input: bool| -> Result<Given<'a>> {
            refuse_directory(fd)?;
            if !isatty(fd) {
                return Ok(Given::Callers(fd));
            }
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            let (theirs, ours) = if input { (read, write) } else { (write, read) };
            set_nonblocking(&ours)?;
            let (from, to) = match input {
                true => (Side::Callers(fd), Side::Ours(ours)),
                false => (Side::Ours(ours), Side::Callers(fd)),
            };
            pumps.push(Pump { from, to: Some(to), waiting: VecDeque::new(), ended: false });
            Ok(Given::Pipe(theirs))
        };
        let given = [end(stdio[0], true)?, end(stdio[1], false)?, end(stdio[2], false)?];
        Ok(Ends { given, pumps })
    }

    /// For the command.
    pub fn for_command(&self) -> [BorrowedFd<'_>; 3] {
        [0, 1, 2].map(|at| match &self.given[at] {
            Given::Callers(fd) => fd.as_fd(),
            Given::Pipe(fd) => fd.as_fd(),
        })
    }

    /// Copies until the process has ended. Our copies of its ends are closed first, or its end would go unseen.
    /// `signals` are of [`signals`].
    pub fn serve(self, child: BorrowedFd<'_>, signals: OwnedFd, beside: Option<&mut dyn Beside>) -> Result<Ended> {
        let Ends { given, pumps } = self;
        drop(given);
        session(child, pumps, None, &signals, beside)
    }
}

/// Copies between the caller's terminal and the command's until the process has ended; `signals` are of [`signals`].
pub fn terminal(
    child: BorrowedFd<'_>,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
    theirs: OwnedFd,
    signals: OwnedFd,
    beside: Option<&mut dyn Beside>,
) -> Result<Ended> {
    set_nonblocking(&theirs)?;
    let raw = Raw::enter(input)?;
    let second = rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?;
    let third = rustix::io::fcntl_dupfd_cloexec(&theirs, 3)?;
    fit_window(input, third.as_fd());
    let pump = |from, to| Pump { from, to: Some(to), waiting: VecDeque::new(), ended: false };
    let pumps = vec![pump(Side::Callers(input), Side::Ours(theirs)), pump(Side::Ours(second), Side::Callers(output))];
    let ended = session(child, pumps, Some((input, third.as_fd())), &signals, beside);
    drop(raw);
    ended
}

/// The size of a terminal's window, if it has one.
pub fn window(terminal: BorrowedFd<'_>) -> Option<Winsize> {
    tcgetwinsize(terminal).ok()
}

/// Passes the size of one terminal on to another.
fn fit_window(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Some(size) = window(from) {
        // A size is advice.
        let _ = tcsetwinsize(to, size);
    }
}

/// Signals that are meant for the command when it has no terminal to hear them from.
const PASSED_ON: [Signal; 6] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// From now on these signals, and the news of a window's new size, kill nobody but are read here.
pub fn signals() -> Result<OwnedFd> {
    let mut watched = PASSED_ON.map(Signal::as_raw).to_vec();
    watched.push(Signal::WINCH.as_raw());
    Ok(signal::watch(&watched)?)
}

/// What is seen to while a command runs.
pub trait Beside {
    /// What it waits for.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// How long it waits at most.
    fn until_due(&self) -> Option<Duration>;
    /// It is ready, or it is time.
    fn see_to_it(&mut self);
    /// What the command says, where it passes through our hands: on terminals.
    fn overhear(&mut self, _bytes: &[u8]) {}
}

/// The loop of all of them.
fn session(
    child: BorrowedFd<'_>,
    mut pumps: Vec<Pump<'_>>,
    window: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    signals: &OwnedFd,
    mut beside: Option<&mut dyn Beside>,
) -> Result<Ended> {
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(child, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        let waits_beside = beside.as_ref().and_then(|beside| beside.fd());
        let due = beside.as_ref().and_then(|beside| beside.until_due());
        fds.extend(waits_beside.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let fixed = fds.len();
        let mut at = Vec::new();
        for (index, pump) in pumps.iter().enumerate() {
            if let Some((fd, wanted)) = pump.wants() {
                fds.push(PollFd::from_borrowed_fd(fd, wanted));
                at.push(index);
            }
        }
        let timeout = due.map(|due| Timespec { tv_sec: due.as_secs() as i64, tv_nsec: due.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for the command"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (index, _) in at.iter().zip(&ready[fixed..]).filter(|(_, ready)| **ready) {
            pumps[*index].work(&mut |bytes| {
                if let Some(beside) = beside.as_mut() {
                    beside.overhear(bytes);
                }
            });
        }
        if let Some(beside) = beside.as_mut().filter(|_| ready[2..fixed].contains(&true) || due.is_some()) {
            beside.see_to_it();
        }
        if ready[1] {
            while let Some(number) = signal::next(signals.as_fd())? {
                match window {
                    Some((from, to)) if number == Signal::WINCH.as_raw() => fit_window(from, to),
                    _ if number == Signal::WINCH.as_raw() => {}
                    // It may have ended already.
                    _ => drop(signal::send(child, number).ok()),
                }
            }
        }
        if ready[0] {
            let ended = Ended::of(child)?;
            for pump in &mut pumps {
                pump.finish(&mut |bytes| {
                    if let Some(beside) = beside.as_mut() {
                        beside.overhear(bytes);
                    }
                });
            }
            return Ok(ended);
        }
    }
}

impl Pump<'_> {
    /// What is waited for: room if something waits to be written, else something to read.
    fn wants(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let to = self.to.as_ref()?;
        match (self.waiting.is_empty(), self.ended) {
            (false, _) => Some((to.as_fd(), PollFlags::OUT)),
            (true, false) => Some((self.from.as_fd(), PollFlags::IN)),
            (true, true) => None,
        }
    }

    /// Reads if nothing waits, then writes what it can.
    fn work(&mut self, heard: &mut dyn FnMut(&[u8])) {
        if self.waiting.is_empty() && !self.ended {
            let mut bytes = [0u8; 65536];
            match rustix::io::read(&self.from, &mut bytes) {
                Ok(n @ 1..) => {
                    self.waiting.extend(&bytes[..n]);
                    if matches!(self.from, Side::Ours(_)) {
                        heard(&bytes[..n]);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // EIO: a terminal whose other end is closed.
                Ok(_) | Err(_) => self.ended = true,
            }
        }
        self.write();
        if self.ended && self.waiting.is_empty() {
            // The reader sees the end.
            self.to = None;
        }
    }

    fn write(&mut self) {
        while let Some(to) = self.to.as_ref().filter(|_| !self.waiting.is_empty()) {
            let (first, _) = self.waiting.as_slices();
            match rustix::io::write(to, first) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => {
                    self.waiting.clear();
                    self.ended = true;
                }
            }
        }
    }

    /// The command has ended: what it said last still goes out. Input that it did not take is dropped.
    ///
    /// What a pipe or a terminal holds is far less than the bound, which is for those who live on in the
    /// background and never fall silent.
    fn finish(&mut self, heard: &mut dyn FnMut(&[u8])) {
        const BOUND: usize = 1 << 20;
        if matches!(self.from, Side::Callers(_)) {
            return;
        }
        let mut read = 0;
        while !self.ended && read < BOUND {
            self.write_all();
            let mut bytes = [0u8; 65536];
            match rustix::io::read(&self.from, &mut bytes) {
                Ok(n @ 1..) => {
                    read += n;
                    self.waiting.extend(&bytes[..n]);
                    heard(&bytes[..n]);
                }
                _ => self.ended = true,
            }
        }
        self.write_all();
    }

    /// Writes what waits, however long the reader takes.
    fn write_all(&mut self) {
        self.write();
        while let Some(to) = self.to.as_ref().filter(|_| !self.waiting.is_empty()) {
            let mut fds = [PollFd::from_borrowed_fd(to.as_fd(), PollFlags::OUT)];
            if poll(&mut fds, None).is_err_and(|e| e != Errno::INTR) {
                return;
            }
            self.write();
        }
    }
}

/// From a directory of the host a container could walk up to all others (CVE-2024-21626).
fn refuse_directory(fd: BorrowedFd<'_>) -> Result<()> {
    // A descriptor that is closed shows later.
    let is_directory = fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
    match is_directory {
        true => Err(error("standard input, output or error is a directory of the host").kind(Kind::Invalid)),
        false => Ok(()),
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// How a session at a console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The person pressed the keys for it.
    Detached,
    /// The container ended, or its keeper let us go.
    Closed,
}

/// Ctrl-a, then q, leaves the console; Ctrl-a twice sends one.
const ESCAPE: u8 = 1;

/// Shows a console on the caller's terminal, or copies it if there is none.
pub fn console(socket: &OwnedFd, input: BorrowedFd<'_>, output: BorrowedFd<'_>) -> Result<Left> {
    let raw = isatty(input).then(|| Raw::enter(input)).transpose()?;
    let signals = signal::watch(&[Signal::WINCH, Signal::TERM, Signal::HUP].map(Signal::as_raw))?;
    let say_size = || {
        let size = tcgetwinsize(input).unwrap_or(Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 });
        send(socket, &window_packet(size), SendFlags::NOSIGNAL)
    };
    say_size().context("calling the keeper")?;
    let (mut escaped, mut reading) = (false, true);
    let left = loop {
        let mut fds = vec![PollFd::new(socket, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        if reading {
            fds.push(PollFd::from_borrowed_fd(input, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for the console"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        if ready[0] && !show(socket, output)? {
            break Left::Closed;
        }
        if ready[1] {
            match signal::next(signals.as_fd())? {
                Some(number) if number == Signal::WINCH.as_raw() => drop(say_size()),
                Some(_) => break Left::Detached,
                None => {}
            }
        }
        if ready.get(2) == Some(&true) {
            let mut typed = [0u8; PACKET - 1];
            let n = rustix::io::read(input, &mut typed).unwrap_or(0);
            reading = n > 0;
            let (bytes, leave) = unescape(&typed[..n], &mut escaped);
            if !bytes.is_empty() {
                let packet = [&b"d"[..], bytes.as_slice()].concat();
                send(socket, &packet, SendFlags::NOSIGNAL).context("typing at the console")?;
            }
            if leave {
                break Left::Detached;
            }
        }
    };
    drop(raw);
    Ok(left)
}

/// One packet of the console's; `false` when the connection has closed.
fn show(socket: &OwnedFd, output: BorrowedFd<'_>) -> Result<bool> {
    let mut packet = [0u8; PACKET];
    let n = match recv(socket, &mut packet[..], RecvFlags::empty()) {
        Ok((n, _)) => n,
        Err(Errno::CONNRESET) => 0,
        Err(e) => return Err(e).context("reading the console"),
    };
    let [b'd', data @ ..] = &packet[..n] else { return Ok(false) };
    let mut rest = data;
    while !rest.is_empty() {
        let n = rustix::io::write(output, rest).context("writing the console's output")?;
        rest = &rest[n..];
    }
    Ok(true)
}

/// Takes the escape key out of what was typed; whether it asks to leave.
fn unescape(typed: &[u8], escaped: &mut bool) -> (Vec<u8>, bool) {
    let mut bytes = Vec::with_capacity(typed.len());
    for &byte in typed {
        match (std::mem::take(escaped), byte) {
            (true, b'q') => return (bytes, true),
            (false, ESCAPE) => *escaped = true,
            (_, byte) => bytes.push(byte),
        }
    }
    (bytes, false)
}

/// A child whose end is waited for without copying anything.
pub fn wait(child: &Child) -> Result<Ended> {
    session(child.pidfd.as_fd(), Vec::new(), None, &signals()?, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_leaves_or_is_sent() {
        let mut escaped = false;
        assert_eq!(unescape(b"ls\n", &mut escaped), (b"ls\n".to_vec(), false));
        assert_eq!(unescape(b"x\x01", &mut escaped), (b"x".to_vec(), false));
        assert_eq!(unescape(b"q", &mut escaped), (Vec::new(), true));
        assert_eq!(unescape(b"\x01\x01y", &mut escaped), (b"\x01y".to_vec(), false));
    }
}

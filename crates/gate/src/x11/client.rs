//! The gate's own connections to the server.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Kind, Result, error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix};

use super::atoms::{Atoms, NAMES};
use super::authority::{COOKIE_NAME, Cookie};
use super::container::Facts;
use super::wire::{Order, padded, request};

/// We speak this.
pub const ORDER: Order = Order::Little;
/// How long a server may take for an answer that we wait for.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest message that we take.
const MOST_MESSAGE: usize = 20 << 20;

/// A display of the session.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its socket, as `/tmp/.X11-unix/X0`.
    pub socket: PathBuf,
    /// What proves that we may connect; without it the server has to know us by our user id.
    pub credential: Option<Cookie>,
}

/// A connection of our own.
#[derive(Debug)]
pub struct Link {
    stream: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: u64,
    /// What arrived while an answer was waited for.
    early: VecDeque<Vec<u8>>,
    /// The part of resource ids that is the same in all of ours.
    pub base: u32,
    /// The part of resource ids that we choose.
    pub mask: u32,
    next: u32,
    /// The root window of the first screen.
    pub root: u32,
    big: bool,
}

impl Link {
    /// Connects and introduces us.
    ///
    /// # Errors
    ///
    /// [`Kind::NotFound`] where no server listens; what the server said if it does not want us.
    pub fn connect(socket: &Path, cookie: Option<&Cookie>) -> Result<Link> {
        let connecting = || format!("connecting to the X server at `{}`", socket.display());
        let stream =
            open(socket).map_err(|e| lazaret_base::Error::from(e).kind(Kind::NotFound)).with_context(connecting)?;
        let mut link = Link {
            stream,
            input: Vec::new(),
            output: introduction(cookie),
            sent: 0,
            early: VecDeque::new(),
            base: 0,
            mask: 0,
            next: 0,
            root: 0,
            big: false,
        };
        let welcome = link.welcome().with_context(connecting)?;
        (link.base, link.mask) = (ORDER.u32(&welcome, 12), ORDER.u32(&welcome, 16));
        let screens = 40 + padded(ORDER.u16(&welcome, 24).into()) + 8 * usize::from(welcome[29]);
        link.root = ORDER.u32(&welcome, screens);
        link.big = match link.extension("BIG-REQUESTS")? {
            Some(major) => link.ask(request(ORDER, major, 0, &[])).is_ok(),
            None => false,
        };
        Ok(link)
    }

    fn welcome(&mut self) -> Result<Vec<u8>> {
        let until = Instant::now() + PATIENCE;
        loop {
            self.flush()?;
            let length = 8 + 4 * usize::from(ORDER.u16(&self.input, 6));
            if self.input.len() >= length.max(8) {
                let welcome: Vec<u8> = self.input.drain(..length).collect();
                if welcome[0] == 1 && length > 40 {
                    return Ok(welcome);
                }
                let reason = welcome.get(8..8 + usize::from(welcome[1])).unwrap_or(b"");
                return Err(error(format!("refused: {}", String::from_utf8_lossy(reason).trim())));
            }
            self.wait(until)?;
            self.fill()?;
        }
    }

    /// An id for something new.
    pub fn id(&mut self) -> u32 {
        // The lowest bit of the mask is the step (X protocol, "Connection setup"); after millions it starts anew.
        let step = self.mask & self.mask.wrapping_neg();
        self.next = self.next.wrapping_add(step) & self.mask;
        self.base | self.next
    }

    /// Puts a request into the queue and says its number.
    pub fn send(&mut self, bytes: Vec<u8>) -> u64 {
        self.sent += 1;
        if bytes.len() > 4 * 0xffff && self.big {
            self.output.extend(&bytes[..2]);
            self.output.extend([0, 0]);
            self.output.extend((bytes.len() as u32 / 4 + 1).to_le_bytes());
            self.output.extend(&bytes[4..]);
        } else {
            self.output.extend(bytes);
        }
        self.sent
    }

    /// Whether a property of this many bytes can be sent at once.
    pub fn takes(&self, bytes: usize) -> bool {
        self.big || bytes < 4 * 0xffff - 32
    }

    /// Asks and waits for the answer. Only where nobody else can be kept waiting, or everybody waits anyway.
    ///
    /// # Errors
    ///
    /// The server's error, or its silence.
    pub fn ask(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let number = self.send(bytes) as u16;
        let until = Instant::now() + PATIENCE;
        loop {
            self.flush()?;
            while let Some(message) = self.message()? {
                match message[0] {
                    1 if ORDER.u16(&message, 2) == number => return Ok(message),
                    0 if ORDER.u16(&message, 2) == number => {
                        return Err(error(format!("the X server answered with error {}", message[1])));
                    }
                    _ => self.early.push_back(message),
                }
            }
            self.wait(until)?;
            self.fill()?;
        }
    }

    /// The major opcode of an extension.
    pub fn extension(&mut self, name: &str) -> Result<Option<u8>> {
        let reply = self.ask(named(98, 0, name))?;
        Ok((reply[8] != 0).then_some(reply[9]))
    }

    /// The atom of a name.
    pub fn atom(&mut self, name: &str) -> Result<u32> {
        Ok(ORDER.u32(&self.ask(named(16, 0, name))?, 8))
    }

    /// What the filter has to know about the server, for the container of this name.
    pub fn facts(&mut self, container: &str) -> Result<Facts> {
        let atoms = NAMES.iter().map(|name| self.atom(name)).collect::<Result<Vec<_>>>()?;
        let atoms = Atoms::new(atoms).ok_or_else(|| error("names without numbers"))?;
        let mut private = [0; 4];
        for (atom, name) in private.iter_mut().zip(["PRIMARY", "SECONDARY", "CLIPBOARD", "DND"]) {
            *atom = self.atom(&format!("_LAZARET_{container}_{name}"))?;
        }
        Ok(Facts { atoms, big_requests: self.extension("BIG-REQUESTS")?, xc_misc: self.extension("XC-MISC")?, private })
    }

    /// Sends what can be sent now.
    pub fn flush(&mut self) -> Result<()> {
        while !self.output.is_empty() {
            match rustix::net::send(&self.stream, &self.output, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("writing to the X server"),
            }
        }
        Ok(())
    }

    /// Reads what is there; says false when the server is gone.
    pub fn fill(&mut self) -> Result<bool> {
        let mut chunk = [0; 16384];
        loop {
            match rustix::net::recv(&self.stream, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(error("the X server has gone")),
                Ok((n, _)) => self.input.extend(&chunk[..n]),
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("reading from the X server"),
            }
        }
    }

    /// The next whole message that has been read.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>> {
        match self.early.pop_front() {
            Some(message) => Ok(Some(message)),
            None => self.message(),
        }
    }

    fn message(&mut self) -> Result<Option<Vec<u8>>> {
        if self.input.len() < 32 {
            return Ok(None);
        }
        let longer = matches!(self.input[0] & 0x7f, 1 | 35);
        let length = 32 + if longer { 4 * ORDER.u32(&self.input, 4) as usize } else { 0 };
        if length > MOST_MESSAGE {
            return Err(error("the X server says too much at once"));
        }
        if self.input.len() < length {
            return Ok(None);
        }
        Ok(Some(self.input.drain(..length).collect()))
    }

    /// What to wait for.
    pub fn wants(&self) -> PollFlags {
        if self.output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    fn wait(&self, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.stream, self.wants())], Some(&timeout)) {
            Ok(0) => Err(error("the X server does not answer")),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e).context("waiting for the X server"),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A socket that is connected to a server. Never waits: a server whose queue is full is not to be waited for.
pub fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    crate::stream::open(&SocketAddrUnix::new(path)?)
}

fn introduction(cookie: Option<&Cookie>) -> Vec<u8> {
    let (name, data) = match cookie {
        Some(cookie) => (COOKIE_NAME, &cookie.0[..]),
        None => (&b""[..], &b""[..]),
    };
    let mut bytes = vec![b'l', 0, 11, 0, 0, 0];
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend((data.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    for part in [name, data] {
        bytes.extend(part);
        bytes.resize(padded(bytes.len()), 0);
    }
    bytes
}

/// A request that carries a name.
fn named(opcode: u8, second: u8, name: &str) -> Vec<u8> {
    let mut bytes = vec![opcode, second];
    bytes.extend((2 + padded(name.len()) as u16 / 4).to_le_bytes());
    bytes.extend((name.len() as u16).to_le_bytes());
    bytes.extend([0, 0]);
    bytes.extend(name.as_bytes());
    bytes.resize(padded(bytes.len()), 0);
    bytes
}

//! The console of a container: what it says is kept, logged, and shown to whoever attaches.
//!
//! Clients speak in packets over the keeper's socket. The first byte tells: `d` data, `w` a window's size
//! (rows and columns, two bytes each, low byte first), `f` that it only listens from now on and first hears, after a
//! `p`, where the log is by then (inode and size, eight bytes each). A client that says nothing only learns of
//! the container's end: the connection closes.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::Name;
use lazaret_sys::local::{self, address_in};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, SocketFlags, SocketType, accept_with, bind, connect, listen as listen_on, recv, send, sockopt,
};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::store::Store;

/// The name of the socket in the container's run directory.
const SOCKET: &str = "control";
/// What is shown to a client that attaches later.
const SCROLLBACK: usize = 64 * 1024;
/// While more than this waits for a client, the console is not read on: a burst is no reason to lose anything.
const PATIENCE: usize = 1 << 20;
/// But one who takes nothing for so long is let go: nobody may hold the container up.
const GRACE: Duration = Duration::from_secs(1);
/// More at once are not shown the console.
const MOST_ATTACHED: usize = 32;
/// More at once are not told of the container's end either: well below the descriptors that a process may have.
const MOST_CLIENTS: usize = 256;
/// The longest packet, its first byte included.
pub const PACKET: usize = 4096;

/// Keeper: the socket on which clients call.
pub(crate) fn listen(store: &Store, name: &Name) -> Result<OwnedFd> {
    let dir = store.control_dir(name)?;
    // A dead keeper's socket may lie there. The lock is ours, so the place is.
    let _ = rustix::fs::unlinkat(&dir, SOCKET, AtFlags::empty());
    let socket = local::socket(SocketType::SEQPACKET, SocketFlags::NONBLOCK)?;
    bind(&socket, &address_in(&dir, SOCKET)?).and_then(|()| listen_on(&socket, 64)).context("listening for clients")?;
    Ok(socket)
}

/// Client: a connection to the keeper, which lasts as long as the container runs.
pub fn connect_to(store: &Store, name: &Name) -> Result<OwnedFd> {
    if !store.is_kept(name)? {
        return Err(stopped(name));
    }
    let Ok(dir) = store.control_dir(name) else { return Err(stopped(name)) };
    let socket = local::socket(SocketType::SEQPACKET, SocketFlags::empty())?;
    match connect(&socket, &address_in(&dir, SOCKET)?) {
        Ok(()) => Ok(socket),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Err(stopped(name)),
        Err(e) => Err(Error::from(e).context(format!("calling the keeper of `{name}`"))),
    }
}

fn stopped(name: &Name) -> Error {
    error(format!("`{name}` is not running")).kind(Kind::Stopped).hint(format!("start it: lazaret start {name}"))
}

/// The log of a console: two files, of which the older goes when the newer is half the bound.
pub(crate) struct Log {
    file: Option<File>,
    paths: [PathBuf; 2],
    written: u64,
    bound: u64,
}

impl Log {
    /// Opens it at its end. A log that can't be written is no reason for a container not to run.
    pub(crate) fn open(store: &Store, name: &Name, bound: u64) -> Log {
        let paths = store.console_logs(name);
        let mut log = Log { file: None, paths, written: 0, bound };
        log.file = log.open_newest();
        log.written = log.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |m| m.len());
        log
    }

    fn open_newest(&self) -> Option<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(&self.paths[1]).ok()
    }

    /// Where it is now: the file that is written to and its size, as a packet for [`follow`].
    fn place(&self) -> Vec<u8> {
        let place = self.file.as_ref().and_then(|file| file.metadata().ok()).map_or((0, 0), |m| (m.ino(), m.len()));
        [&b"p"[..], &place.0.to_le_bytes(), &place.1.to_le_bytes()].concat()
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.bound == 0 {
            return;
        }
        if self.written + bytes.len() as u64 > self.bound / 2 {
            let _ = std::fs::rename(&self.paths[1], &self.paths[0]);
            self.file = self.open_newest();
            self.written = 0;
        }
        if let Some(file) = &mut self.file {
            // A full disk must not stop the console.
            if file.write_all(bytes).is_ok() {
                self.written += bytes.len() as u64;
            }
        }
    }
}

/// The keeper's end of a console, with all who look at it.
pub(crate) struct Console<'a> {
    terminal: &'a OwnedFd,
    /// The other end, held open: a terminal that nobody has open would only hang up again and again.
    _other_end: OwnedFd,
    log: Log,
    scrollback: VecDeque<u8>,
    to_terminal: VecDeque<u8>,
    clients: Vec<Client>,
}

/// Somebody who looks at the console, or waits for the container's end.
pub(crate) struct Client {
    socket: OwnedFd,
    /// Whether it wants the console, and not only to learn of the end.
    attached: bool,
    waiting: VecDeque<Vec<u8>>,
    waiting_bytes: usize,
    /// When it took something last.
    took: Instant,
}

impl<'a> Console<'a> {
    /// `clients` are those of the console before it, if the container has rebooted.
    pub(crate) fn new(terminal: &'a OwnedFd, log: Log, clients: Vec<Client>) -> Result<Console<'a>> {
        fcntl_setfl(terminal, fcntl_getfl(terminal)? | OFlags::NONBLOCK)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let other_end = ioctl_tiocgptpeer(terminal, flags).context("holding the console open")?;
        Ok(Console {
            terminal,
            _other_end: other_end,
            log,
            scrollback: VecDeque::new(),
            to_terminal: VecDeque::new(),
            clients,
        })
    }

    /// Adds what is waited for: the terminal, then each client.
    pub(crate) fn watch<'b>(&'b self, fds: &mut Vec<PollFd<'b>>) {
        let mut wanted = if self.held_up().is_none() { PollFlags::IN } else { PollFlags::empty() };
        if !self.to_terminal.is_empty() {
            wanted |= PollFlags::OUT;
        }
        fds.push(PollFd::new(self.terminal, wanted));
        for client in &self.clients {
            let mut wanted = PollFlags::IN;
            if !client.waiting.is_empty() {
                wanted |= PollFlags::OUT;
            }
            fds.push(PollFd::new(&client.socket, wanted));
        }
    }

    /// Does what can be done, by what poll(2) said of each in the order of [`Console::watch`].
    pub(crate) fn serve(&mut self, ready: &[PollFlags]) {
        for at in (0..self.clients.len()).rev() {
            let flags = ready.get(at + 1).copied().unwrap_or(PollFlags::empty());
            let alive = (!flags.contains(PollFlags::OUT) || self.clients[at].flush())
                && (!flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) || self.hear(at));
            if !alive {
                self.clients.swap_remove(at);
            }
        }
        self.clients.retain(|client| client.waiting_bytes <= PATIENCE || client.took.elapsed() < GRACE);
        let flags = ready.first().copied().unwrap_or(PollFlags::empty());
        if flags.contains(PollFlags::OUT) {
            self.type_in();
        }
        if flags.contains(PollFlags::IN) {
            self.read_terminal();
        }
    }

    /// Lets a client in.
    pub(crate) fn accept(&mut self, listener: BorrowedFd<'_>) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = accept_with(listener, flags) else { return };
        // The directory is root's alone; this holds should it ever not be.
        let ours = sockopt::socket_peercred(&socket).is_ok_and(|peer| peer.uid == rustix::process::geteuid());
        if ours && self.clients.len() < MOST_CLIENTS {
            let took = Instant::now();
            self.clients.push(Client { socket, attached: false, waiting: VecDeque::new(), waiting_bytes: 0, took });
        }
    }

    /// Takes a packet of a client; `false` if it is to be let go.
    fn hear(&mut self, at: usize) -> bool {
        let mut packet = [0u8; PACKET];
        let n = match recv(&self.clients[at].socket, &mut packet[..], RecvFlags::empty()) {
            Ok((0, _)) | Err(Errno::CONNRESET) => return false,
            Ok((n, _)) => n,
            Err(e) => return e == Errno::AGAIN || e == Errno::INTR,
        };
        match &packet[..n] {
            [b'd', data @ ..] => {
                if self.to_terminal.len() < PATIENCE {
                    self.to_terminal.extend(data);
                    self.type_in();
                }
                true
            }
            [b'w', a, b, c, d] => {
                let (rows, columns) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
                // A size is advice; a terminal that won't have it goes on.
                let _ =
                    tcsetwinsize(self.terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
                if self.clients[at].attached {
                    return true;
                }
                let seen: Vec<u8> = self.scrollback.iter().copied().collect();
                self.attach(at) && self.clients[at].show(&seen)
            }
            // Follows, and reads in the log what was before.
            [b'f'] if !self.clients[at].attached => {
                let place = self.log.place();
                self.attach(at) && self.clients[at].send(place)
            }
            _ => false,
        }
    }

    /// Has a client shown the console from now on; `false` if there are too many.
    fn attach(&mut self, at: usize) -> bool {
        let attached = self.clients.iter().filter(|client| client.attached).count();
        self.clients[at].attached = attached < MOST_ATTACHED;
        self.clients[at].attached
    }

    /// Types what clients sent, as far as the terminal takes it now.
    fn type_in(&mut self) {
        while !self.to_terminal.is_empty() {
            let (first, _) = self.to_terminal.as_slices();
            match rustix::io::write(self.terminal, first) {
                Ok(n) => drop(self.to_terminal.drain(..n)),
                Err(_) => return,
            }
        }
    }

    /// Reads what the container says until there is no more for now, but no longer than a while: others
    /// want to be served, too.
    fn read_terminal(&mut self) {
        let mut bytes = [0u8; PACKET - 1];
        for _ in 0..64 {
            match rustix::io::read(self.terminal, &mut bytes) {
                Ok(n @ 1..) => self.said(&bytes[..n]),
                _ => return,
            }
        }
    }

    fn said(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
        self.scrollback.extend(bytes);
        let surplus = self.scrollback.len().saturating_sub(SCROLLBACK);
        self.scrollback.drain(..surplus);
        self.clients.retain_mut(|client| !client.attached || client.show(bytes));
    }

    /// The container has ended: what it said last is still read and shown.
    ///
    /// The clients are given back: that their connections close is how they learn that nothing is left of the
    /// container, so they are kept until then.
    pub(crate) fn drain(mut self) -> Vec<Client> {
        let mut bytes = [0u8; PACKET - 1];
        while let Ok(n @ 1..) = rustix::io::read(self.terminal, &mut bytes) {
            self.said(&bytes[..n]);
        }
        let end = Instant::now() + GRACE;
        loop {
            self.clients.retain_mut(Client::flush);
            let waiting = self.clients.iter().filter(|client| !client.waiting.is_empty());
            let mut fds: Vec<_> = waiting.map(|client| PollFd::new(&client.socket, PollFlags::OUT)).collect();
            let left = end.saturating_duration_since(Instant::now());
            if fds.is_empty() || left.is_zero() {
                break;
            }
            // Interrupted or not, what is left is looked at again.
            let _ = poll(&mut fds, Some(&timespec(left)));
        }
        self.clients
    }

    /// How long a client may still hold the console up; `None` if none does.
    pub(crate) fn held_up(&self) -> Option<Timespec> {
        let behind = self.clients.iter().filter(|client| client.waiting_bytes > PATIENCE);
        behind.map(|client| GRACE.saturating_sub(client.took.elapsed())).min().map(timespec)
    }
}

impl Client {
    /// Sends bytes in packets; `false` if it is gone.
    fn show(&mut self, bytes: &[u8]) -> bool {
        bytes.chunks(PACKET - 1).all(|chunk| self.send([&b"d"[..], chunk].concat()))
    }

    /// Sends a packet, now or when it can take it; `false` if it is gone.
    fn send(&mut self, packet: Vec<u8>) -> bool {
        self.waiting_bytes += packet.len();
        self.waiting.push_back(packet);
        self.flush()
    }

    fn flush(&mut self) -> bool {
        while let Some(packet) = self.waiting.front() {
            match send(&self.socket, packet, SendFlags::NOSIGNAL) {
                Ok(_) => {
                    self.took = Instant::now();
                    self.waiting_bytes -= packet.len();
                    self.waiting.pop_front();
                }
                Err(Errno::AGAIN | Errno::INTR) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// Client: what to send for a window of this size.
pub fn window_packet(size: Winsize) -> [u8; 5] {
    let ([a, b], [c, d]) = (size.ws_row.to_le_bytes(), size.ws_col.to_le_bytes());
    [b'w', a, b, c, d]
}

/// Client: what a console has said, as far as the log goes back.
pub fn said(store: &Store, name: &Name) -> Result<Vec<u8>> {
    read_log(store, name, None)
}

/// A console that is followed: nothing is shown twice and nothing left out.
pub struct Following {
    socket: OwnedFd,
    /// What was said before.
    pub so_far: Vec<u8>,
}

/// Client: follows what a running container says.
pub fn follow(store: &Store, name: &Name) -> Result<Following> {
    let socket = connect_to(store, name)?;
    send(&socket, b"f", SendFlags::NOSIGNAL).context("calling the keeper")?;
    let mut packet = [0u8; PACKET];
    let n = receive(&socket, &mut packet)?;
    let [b'p', place @ ..] = &packet[..n] else { return Err(stopped(name)) };
    let numbers: Vec<u64> = place.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let [inode, size] = numbers[..] else { return Err(error("its keeper does not say where the log is")) };
    let so_far = read_log(store, name, Some((inode, size)))?;
    Ok(Following { socket, so_far })
}

impl Following {
    /// Passes on what is said from then on, until the container stops.
    pub fn go_on(&self, show: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut packet = [0u8; PACKET];
        loop {
            match receive(&self.socket, &mut packet)? {
                0 => return Ok(()),
                n => show(&packet[1..n]),
            }
        }
    }
}

/// The next packet of the keeper's; of no length when it has gone.
fn receive(socket: &OwnedFd, packet: &mut [u8; PACKET]) -> Result<usize> {
    loop {
        match recv(socket, &mut packet[..], RecvFlags::empty()) {
            Ok((n, _)) => return Ok(n),
            Err(Errno::CONNRESET) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("reading the console"),
        }
    }
}

/// Reads both files, the older one first; no further than `until`, which is a file's inode and a size of it.
fn read_log(store: &Store, name: &Name, until: Option<(u64, u64)>) -> Result<Vec<u8>> {
    let reading = || format!("reading the log of `{name}`");
    let mut bytes = Vec::new();
    for path in store.console_logs(name) {
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            file => file.with_context(reading)?,
        };
        let inode = file.metadata().with_context(reading)?.ino();
        let last = until.filter(|(last, _)| *last == inode);
        let most = last.map_or(u64::MAX, |(_, size)| size);
        file.take(most).read_to_end(&mut bytes).with_context(reading)?;
        if last.is_some() {
            break;
        }
    }
    Ok(bytes)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: i64::from(duration.subsec_nanos()) }
}

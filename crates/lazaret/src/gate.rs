//! The gate of a container, as commands and the keeper see it: begun when an application needs it, and called on a
//! socket that nobody in the container can reach.
//!
//! The gate's life hangs on the keeper's: it holds a pidfd of it. Killed, it takes the connections of applications
//! along and nothing else; the next application has another one begun.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Clipboard, Display, Name, Sound};
use lazaret_desktop::{Person, Session};
use lazaret_gate::pulse;
use lazaret_gate::x11::cookie::Trust;
use lazaret_gate::x11::{self, Confinement, Cookie, Ends, Identity, Server, Settings, Sight, authority};
use lazaret_sys::local::{self, address_in, receive_along, send_along};
use lazaret_sys::process::{close_from, set_command_line};
use rustix::fs::{AtFlags, Mode, renameat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, connect, listen, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open, umask};
use serde::{Deserialize, Serialize};

use crate::exec::Running;
use crate::store::Store;
use crate::{bus, opener, personal, process};

mod nested;
mod wayland;

pub(crate) use nested::installed;
pub use wayland::{Compositor, WaylandGate, look_wayland};
pub(crate) use wayland::{ensure_wayland, variables};

/// The word by which our own program becomes a gate.
pub const SERVICE: &str = "gate";
/// The display's number inside.
pub(crate) const DISPLAY: u32 = 0;
/// How long a gate may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer that is longer is none.
const LONGEST_ANSWER: usize = 4096;
/// What a gate is told when it is made.
const LONGEST_ORDER: usize = 16 * 1024;
/// No file of credentials is longer.
const LONGEST_AUTHORITY: usize = 1 << 20;
/// Connections of one container at once. An X server has 256 for everybody.
const MOST_CONNECTIONS: usize = 128;
/// The same for sound: PulseAudio has 64 for everybody.
const MOST_PLAYERS: usize = 24;
/// An id that no user, no service and no container has (UIDS-GIDS.md of systemd: unused).
const NOBODY_ELSE: u32 = 0x7000_0036;

/// What a gate shows, and where: for commands to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The session's display.
    pub display: String,
    /// The socket of its server.
    pub socket: PathBuf,
    /// Whose session it is.
    pub person: String,
    /// Whom the gate runs as.
    pub uid: u32,
    /// Whether the server trusts the programs behind it.
    pub trusted: bool,
    /// The server is the container's own, in a window of the session's.
    #[serde(default)]
    pub nested: bool,
}

/// Where a gate for sound leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    /// The socket of the server.
    pub socket: PathBuf,
    /// Its directory, by device and number: a session that begins anew has another one of the same name.
    pub directory: (u64, u64),
    pub uid: u32,
}

/// What a gate is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub name: String,
    pub socket: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub purpose: Purpose,
}

/// What a gate is for.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Purpose {
    Screen { credential: String, trusted: bool, clipboard: String },
    Wayland { trusted: bool, clipboard: String },
    Sound { microphone: bool },
    Bus(bus::Wanted),
}

/// The sockets on which gates are called.
const SCREEN: &str = "gate";
const SOUND: &str = "sound";
pub(crate) const BUS: &str = "bus";
/// The socket on which programs find their sound server, in its directory.
const PULSE: &str = "native";

/// Sees to it that a container has a gate to this session, and that the gate has found the session's server. The caller
/// holds the container's lock.
///
/// # Errors
///
/// Where the session has no display that can be used, or the container's programs are on another one.
pub(crate) fn ensure(store: &Store, name: &Name, running: &Running, session: &Session) -> Result<()> {
    if running.config.desktop.display == Display::Nested {
        return ensure_nested(store, name, running, session);
    }
    let display = session.display()?;
    if std::fs::symlink_metadata(display.socket()).is_err() {
        return Err(error(format!("no X server is on display :{}", display.number))
            .kind(Kind::NotFound)
            .hint("DISPLAY may be of a session that has ended; type it in a terminal of the one you are in"));
    }
    let digits = credential(session, display.number)?.map(|cookie| hex(&cookie)).unwrap_or_default();
    let person = &session.person;
    let (uid, gid) = identity(person);
    let number = display.number;
    let trusted = running.config.desktop.display == Display::Trusted;
    let (socket, person) = (display.socket(), person.name.clone());
    let shown = Shown { display: format!(":{number}"), socket, person, uid, trusted, nested: false };
    if let Some(mut line) = call(store, name)? {
        if store.gate_record(name)?.as_ref() == Some(&shown) {
            line.ask(&format!("credential {digits}"))?;
            return line.ask("open").map(drop);
        }
        refuse_to_move(name, &mut line, store.gate_record(name)?)?;
        line.stop();
    }
    let clipboard = running.config.desktop.clipboard.to_string();
    let socket = shown.socket.clone();
    let purpose = Purpose::Screen { credential: digits, trusted, clipboard };
    let order = Order { name: name.to_string(), socket, uid, gid, purpose };
    store.write_gate_record(name, &shown)?;
    begin(store, name, running, &order).context("beginning the gate to the X server")?;
    let mut line = call(store, name)?.ok_or_else(|| error("the gate to the X server has ended at once"))?;
    line.ask("open").map(drop)
}

/// The same for a server of the container's own, which is begun if there is none.
fn ensure_nested(store: &Store, name: &Name, running: &Running, session: &Session) -> Result<()> {
    if let Some(mut line) = call(store, name)? {
        // Whose window was closed has ended, and its programs with it.
        if line.ask("open").is_ok() {
            return Ok(());
        }
        line.stop();
    }
    let server = nested::begin(name, session)?;
    let display = lazaret_desktop::Display { number: server.number };
    let person = &session.person;
    let (uid, gid) = identity(person);
    let (socket, person) = (display.socket(), person.name.clone());
    let shown = Shown { display: format!(":{}", server.number), socket, person, uid, trusted: true, nested: true };
    let clipboard = running.config.desktop.clipboard.to_string();
    let purpose = Purpose::Screen { credential: hex(&server.cookie), trusted: true, clipboard };
    let order = Order { name: name.to_string(), socket: shown.socket.clone(), uid, gid, purpose };
    store.write_gate_record(name, &shown)?;
    begin(store, name, running, &order).context("beginning the gate to the nested X server")?;
    let mut line = call(store, name)?.ok_or_else(|| error("the gate to the nested X server has ended at once"))?;
    line.ask("open").map(drop)
}

/// Whether the session's X server can keep programs from each other. Xwayland can't.
pub(crate) fn can_isolate(session: &Session) -> bool {
    let isolates = || -> Result<bool> {
        let display = session.display()?;
        let credential = credential(session, display.number)?;
        x11::cookie::is_offered(&Server { socket: display.socket(), credential })
    };
    isolates().unwrap_or(false)
}

/// Whom a gate for a person runs as.
pub(crate) fn identity(person: &Person) -> (u32, u32) {
    match person.uid {
        // Root's session needs no process of root's: what the gate is given is enough.
        0 => (NOBODY_ELSE, NOBODY_ELSE),
        uid => (uid, person.gid),
    }
}

/// Sees to it that a container has a gate to the session's sound server. False where there is no such server.
///
/// # Errors
///
/// Where a gate could not begin.
pub(crate) fn ensure_sound(store: &Store, name: &Name, running: &Running, session: &Session) -> Result<bool> {
    let person = &session.person;
    let Some(socket) = session.sound() else { return Ok(false) };
    // The server knows its user by the process: root's own would have to be root's.
    let directory = socket.parent().and_then(|dir| rustix::fs::stat(dir).ok()).filter(|_| person.uid != 0);
    let Some(directory) = directory else { return Ok(false) };
    let heard = Heard { socket: socket.clone(), directory: (directory.st_dev, directory.st_ino), uid: person.uid };
    // Whoever connects there is a program, which is no call.
    let programs = store.session_pulse(name)?;
    let alive = connect(&new_socket()?, &address_in(&programs, PULSE)?).is_ok();
    let microphone = running.config.desktop.sound == Sound::PlayRecord && store.microphone(name);
    if alive && store.sound_record(name).as_ref() == Some(&heard) {
        // A command that switches it may have been killed half way.
        tell_microphone(store, name, microphone)?;
        return Ok(true);
    }
    silence(store, name);
    let purpose = Purpose::Sound { microphone };
    let order = Order { name: name.to_string(), socket, uid: person.uid, gid: person.gid, purpose };
    store.write_sound_record(name, &heard)?;
    begin(store, name, running, &order).context("beginning the gate to the sound server")?;
    Ok(true)
}

/// Ends a gate for sound, if there is one: what plays falls silent at once.
pub(crate) fn silence(store: &Store, name: &Name) {
    if let Ok(Some(line)) = call_at(store, name, SOUND) {
        line.stop();
    }
}

/// A gate for sound, and what comes of it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hearing {
    /// Whether the microphone is on.
    pub microphone: bool,
    /// How many programs record.
    pub recording: usize,
}

/// Looks at a container's gate for sound; `None` if it has none now.
pub fn hearing(store: &Store, name: &Name) -> Option<Hearing> {
    let answer = call_at(store, name, SOUND).ok()??.ask("info").ok()?;
    let recording = value_of(&answer, "recording").and_then(|count| count.parse().ok()).unwrap_or(0);
    Some(Hearing { microphone: value_of(&answer, "microphone") == Some("on"), recording })
}

/// What an answer of the form `ok key=value …` says of a key.
fn value_of<'a>(answer: &'a str, key: &str) -> Option<&'a str> {
    answer.split(' ').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// Tells the gate for sound, if there is one, whether the microphone is on. When it has answered, that is so.
pub(crate) fn tell_microphone(store: &Store, name: &Name, on: bool) -> Result<()> {
    match call_at(store, name, SOUND)? {
        Some(mut line) => line.ask(if on { "microphone on" } else { "microphone off" }).map(drop),
        None => Ok(()),
    }
}

/// Programs that are connected stay where they are.
fn refuse_to_move(name: &Name, line: &mut Line, shown: Option<Shown>) -> Result<()> {
    match line.ask("info")?.contains("connections=0") {
        true => Ok(()),
        false => {
            let where_ = shown.map_or_else(
                || "another display".into(),
                |shown| format!("display {} of `{}`", shown.display, shown.person),
            );
            Err(error(format!("programs of `{name}` are on {where_}"))
                .hint("end those first: a container is on one display at a time"))
        }
    }
}

/// Has the session's clipboard, as it is now, be what programs inside paste. True where they can do so when the person
/// turns to one of them within a minute: a compositor shows its clipboard to whoever has the keyboard.
///
/// # Errors
///
/// [`Kind::Stopped`] where no program of the container is on a screen; what the gate says, if there is nothing.
pub fn paste(store: &Store, name: &Name) -> Result<bool> {
    crate::exec::running(store, name)?;
    let nobody = || {
        error(format!("no program of `{name}` is on the screen"))
            .kind(Kind::Stopped)
            .hint(format!("begin one: lazaret app {name} PROGRAM"))
    };
    let (x11, wayland) = (call(store, name)?, call_at(store, name, wayland::CALLS)?);
    let pasted = x11.map(|mut line| line.ask("paste"));
    match wayland {
        // What the X server does not have, the compositor may.
        Some(mut line) => Ok(line.ask("paste")? == "ok later"),
        None => pasted.ok_or_else(nobody)?.map(|_| false),
    }
}

/// Tells a gate, if there is one, what the clipboard does from now on.
pub(crate) fn change(store: &Store, name: &Name, clipboard: Clipboard) -> Result<()> {
    for mut line in [call(store, name)?, call_at(store, name, wayland::CALLS)?].into_iter().flatten() {
        line.ask(&format!("clipboard {clipboard}"))?;
    }
    Ok(())
}

/// A gate at work.
#[derive(Clone, Debug, Serialize)]
pub struct Gate {
    /// What it shows where.
    #[serde(flatten)]
    pub shown: Shown,
    /// Programs' connections.
    pub connections: usize,
    /// Whether the server is there.
    pub server: bool,
}

/// Looks at a container's gate; `None` if it has none now.
pub fn look(store: &Store, name: &Name) -> Result<Option<Gate>> {
    let (Some(mut line), Some(shown)) = (call(store, name)?, store.gate_record(name)?) else { return Ok(None) };
    let answer = line.ask("info")?;
    Ok(Some(Gate {
        shown,
        connections: value_of(&answer, "connections").and_then(|count| count.parse().ok()).unwrap_or(0),
        server: value_of(&answer, "server") == Some("there"),
    }))
}

/// Ends all gates, if they are there, and waits until the cookie is revoked. Without a keeper it ends by itself.
pub(crate) fn end(store: &Store, name: &Name) {
    silence(store, name);
    if let Ok(Some(line)) = call_at(store, name, BUS) {
        line.stop();
    }
    // Whom nobody can call has ended, or does so now.
    for at in [SCREEN, wayland::CALLS] {
        if let Ok(Some(line)) = call_at(store, name, at) {
            line.stop();
        }
    }
}

// --- calling it ---

/// A connection to a gate.
pub(crate) struct Line(UnixStream);

impl Line {
    /// Says one line and hears what comes back.
    pub fn ask(&mut self, words: &str) -> Result<String> {
        let asking = "asking a gate";
        self.0.write_all(format!("{words}\n").as_bytes()).context(asking)?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while answer.last() != Some(&b'\n') && answer.len() < LONGEST_ANSWER {
            match self.0.read(&mut byte).context(asking)? {
                0 => return Err(error("the gate has ended").hint("try again: another one is begun")),
                _ => answer.push(byte[0]),
            }
        }
        let answer = String::from_utf8_lossy(&answer).trim_end().to_owned();
        let Some(wrong) = answer.strip_prefix("error ") else { return Ok(answer) };
        let (sentence, hint) = wrong.split_once('\t').map_or((wrong, None), |(what, hint)| (what, Some(hint)));
        let e = error(sentence);
        Err(match hint {
            Some(hint) => e.hint(hint),
            None => e,
        })
    }

    /// Has it end, and waits until it has.
    pub fn stop(mut self) {
        // It may be ending already; one that does not is killed by nobody, but does no harm either.
        let _ = self.0.write_all(b"stop\n").and_then(|()| self.0.read_to_end(&mut Vec::new()));
    }
}

/// A connection to the gate for the screen, if one is there.
fn call(store: &Store, name: &Name) -> Result<Option<Line>> {
    call_at(store, name, SCREEN)
}

pub(crate) fn call_at(store: &Store, name: &Name, at: &str) -> Result<Option<Line>> {
    let Ok(dir) = store.control_dir(name) else { return Ok(None) };
    let socket = new_socket()?;
    match connect(&socket, &address_in(&dir, at)?) {
        Ok(()) => {}
        Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
        Err(e) => return Err(e).context("calling a gate"),
    }
    let line = UnixStream::from(socket);
    line.set_read_timeout(Some(PATIENCE))?;
    line.set_write_timeout(Some(PATIENCE))?;
    Ok(Some(Line(line)))
}

fn new_socket() -> Result<OwnedFd> {
    Ok(local::socket(SocketType::STREAM, SocketFlags::empty())?)
}

// --- beginning it ---

/// Starts our own program anew as a gate.
pub(crate) fn begin(store: &Store, name: &Name, running: &Running, order: &Order) -> Result<()> {
    let life = keeper(store, name, running)?;
    let (calls, dir, programs) = match order.purpose {
        Purpose::Screen { .. } => (SCREEN, store.session_x11(name)?, format!("X{DISPLAY}")),
        Purpose::Wayland { .. } => (wayland::CALLS, store.session_door(name)?, wayland::SOCKET.to_owned()),
        Purpose::Sound { .. } => (SOUND, store.session_pulse(name)?, PULSE.to_owned()),
        Purpose::Bus(_) => (BUS, store.session_bus(name)?, bus::SOCKET.to_owned()),
    };
    let calls = listen_at(store.control_dir(name)?.as_fd(), calls, 0o600)?;
    let programs = listen_at(dir.as_fd(), &programs, 0o666)?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut program = process::anew(process::OWN_PROGRAM, theirs);
    program.arg(SERVICE).arg(name.as_str());
    let mut begun = program.spawn()?;
    // Or its end would go unheard.
    drop(program);
    let bytes = serde_json::to_vec(order).map_err(|e| error(e.to_string()))?;
    let mut along = vec![programs.as_fd(), calls.as_fd(), life.as_fd()];
    let addresses = match order.purpose {
        Purpose::Bus(_) => Some(opener::addresses(&dir)?),
        Purpose::Screen { .. } | Purpose::Wayland { .. } | Purpose::Sound { .. } => None,
    };
    along.extend(addresses.as_ref().map(AsFd::as_fd));
    send_along(&ours, &bytes, &along)?;
    // It leaves us as soon as it has heard, and closes the line when it serves.
    begun.wait()?;
    let mut wrong = vec![0; LONGEST_ANSWER];
    let n = rustix::io::retry_on_intr(|| rustix::io::read(&ours, &mut wrong))?;
    match n {
        0 => Ok(()),
        n => Err(error(String::from_utf8_lossy(&wrong[..n]).into_owned())),
    }
}

/// The keeper, looked at closely enough to be sure that it is the one.
fn keeper(store: &Store, name: &Name, running: &Running) -> Result<OwnedFd> {
    let ended = || error(format!("`{name}` has ended meanwhile")).kind(Kind::Stopped);
    let pid = Pid::from_raw(running.state.keeper).ok_or_else(ended)?;
    let life = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
    // Looked at after opening: while it keeps the container, the number is its own.
    let same = store.run_state(name)?.is_some_and(|state| state.keeper == running.state.keeper);
    if same && store.is_kept(name)? { Ok(life) } else { Err(ended()) }
}

/// Listens on a socket that takes the place of one before it. Its mode is right from the first moment.
fn listen_at(dir: BorrowedFd<'_>, name: &str, mode: u32) -> Result<OwnedFd> {
    let listening = || format!("listening on `{name}`");
    let new = format!(".{name}");
    let _ = unlinkat(dir, &new, AtFlags::empty());
    let socket = new_socket()?;
    let before = umask(Mode::from_raw_mode(0o777 & !mode));
    let bound = bind(&socket, &address_in(dir, &new)?);
    umask(before);
    bound.and_then(|()| listen(&socket, 128)).with_context(listening)?;
    renameat(dir, &new, dir, name).with_context(listening)?;
    Ok(socket)
}

/// The credential for a display, by the person's own file, read as the person: root would follow where they may not go.
fn credential(session: &Session, display: u32) -> Result<Option<Cookie>> {
    let Some(path) = session.authority() else { return Ok(None) };
    let person = &session.person;
    // Without a file, the server may know the person by the user id.
    let Some(bytes) = personal::read(person, &path, LONGEST_AUTHORITY)? else { return Ok(None) };
    let host = rustix::system::uname();
    Ok(authority::cookie_for(&authority::parse(&bytes), host.nodename().to_bytes(), display))
}

fn hex(cookie: &Cookie) -> String {
    cookie.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

// --- the process ---

/// The life of a gate, as the process that [`begin`] makes: it hears on its standard input what to be. The exit status
/// is for whoever begins it.
pub fn serve() -> i32 {
    if close_from(3, false).is_err() {
        return 1;
    }
    let Ok(line) = process::take_input() else { return 1 };
    let served = hear(line.as_fd()).and_then(|(order, ends, addresses)| {
        process::leave_caller()?;
        let opener = match (&order.purpose, addresses) {
            (Purpose::Bus(wanted), Some(addresses)) => {
                let inherited = [&line, &ends.programs, &ends.calls];
                Some(opener::begin(&order, wanted, addresses, &ends.life, inherited)?)
            }
            _ => None,
        };
        become_gate(&order).map(|server| (order, ends, server, opener))
    });
    match served {
        Ok((order, ends, server, opener)) => {
            drop(line);
            i32::from(serve_until_the_end(order, &ends, server, opener).is_err())
        }
        Err(e) => {
            // The caller may have gone.
            let _ = rustix::io::write(&line, e.to_string().as_bytes());
            1
        }
    }
}

fn serve_until_the_end(order: Order, ends: &Ends, walls: Confinement, opener: Option<OwnedFd>) -> Result<()> {
    let server = walls.socket;
    match order.purpose {
        Purpose::Bus(wanted) => {
            let opener = opener.ok_or_else(|| error("nobody opens addresses"))?;
            let (offers, connections) = (wanted.offers(), bus::MOST_PROGRAMS);
            let settings = lazaret_gate::bus::Settings { name: order.name, server, offers, connections };
            lazaret_gate::bus::serve(ends, opener.as_fd(), settings)
        }
        Purpose::Sound { microphone } => {
            pulse::serve(ends, pulse::Settings { server, connections: MOST_PLAYERS, microphone })
        }
        Purpose::Wayland { trusted, clipboard } => {
            let settings = lazaret_gate::wayland::Settings {
                name: order.name,
                server,
                trusted,
                clipboard: x11::Clipboard::parse(&clipboard).unwrap_or_default(),
                connections: wayland::MOST_CONNECTIONS,
                descriptors: walls.descriptors,
                alone: walls.alone,
            };
            lazaret_gate::wayland::serve(ends, settings)
        }
        Purpose::Screen { credential, trusted, clipboard } => {
            let settings = Settings {
                name: order.name,
                server: Server { socket: server, credential: Cookie::parse(&credential) },
                trust: if trusted { Trust::Trusted } else { Trust::Untrusted },
                clipboard: x11::Clipboard::parse(&clipboard)
                    .ok_or_else(|| error(format!("`{clipboard}` is no word for a clipboard")))?,
                connections: MOST_CONNECTIONS,
            };
            x11::serve(ends, settings)
        }
    }
}

fn hear(line: BorrowedFd<'_>) -> Result<(Order, Ends, Option<OwnedFd>)> {
    let mut bytes = vec![0; LONGEST_ORDER];
    let received = receive_along(line, &mut bytes, RecvFlags::empty())?;
    let order = serde_json::from_slice(&bytes[..received.bytes]).map_err(|e| error(e.to_string()))?;
    let mut fds = received.fds.into_iter();
    match (fds.next(), fds.next(), fds.next()) {
        (Some(programs), Some(calls), Some(life)) => Ok((order, Ends { programs, calls, life }, fds.next())),
        _ => Err(error("a descriptor is missing")),
    }
}

/// Gives up everything but what a gate needs. What is left comes back.
fn become_gate(order: &Order) -> Result<Confinement> {
    // For process lists; where it can't be changed they show how it was called.
    let is_bus = matches!(order.purpose, Purpose::Bus(_));
    let service = if is_bus { bus::SERVICE } else { SERVICE };
    let _ = set_command_line(&["lazaret", service, &order.name]);
    // Beside a compositor's socket, and a session's bus, lie all of its other sockets.
    let sight = match order.purpose {
        Purpose::Wayland { .. } => Sight::Socket,
        Purpose::Bus(_) if order.socket.exists() => Sight::Socket,
        _ => Sight::Directory,
    };
    x11::confine(&order.socket, sight, Some(Identity { uid: order.uid, gid: order.gid }))
}

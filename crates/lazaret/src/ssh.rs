//! OpenSSH into a container, without a port on any network and without a password.
//!
//! The server is the container's own `sshd`, begun for one connection in the way `exec` begins any command, and the
//! connection is a socket between the two programs. So who may connect is decided before ssh: whoever may run a command
//! in the container. Keys are there because the protocol wants some. The container learns a key that was made for this
//! purpose, and nothing by which the person is known elsewhere.

mod keys;
mod plan;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::Name;
use lazaret_desktop::{Person, Session, follow};
use lazaret_runtime::attach;
use lazaret_sys::{local, signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect as connect_to, listen};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::app::{self, has_locale, is_there, root_of};
use crate::exec;
use crate::keeper::Ended;
use crate::recover::recover_locked;
use crate::relay::{self, Beside, Ends};
use crate::start::start_if_stopped;
use crate::store::Store;
use crate::term;
use keys::Keys;
pub use plan::{Recipe, recipe};
use plan::{Server, client_options, server_words};

/// The word by which our own program connects a client to the command that waits for it.
pub const SERVICE: &str = "ssh-connect";
/// What ends with this is a container's name for ssh.
const DOMAIN: &str = ".lazaret";
/// Where distributions have the server. It must be called by its whole path.
const SERVERS: &[&str] = &["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd", "/usr/local/sbin/sshd"];
/// How long a server may take to end after its client has.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// What ssh answers when it is ssh that failed (ssh(1)).
pub const FAILED: i32 = 255;

/// What a connection is for.
pub struct Ssh<'a> {
    /// To which container. It is started if it does not run.
    pub name: &'a Name,
    /// The person who connects, and where their screen is.
    pub session: &'a Session,
    /// Who runs the command inside; whoever programs of the desktop run as, or else root, if not given.
    pub user: Option<String>,
    /// The command, which is the user's shell's to understand, as ssh has it; a login if there is none.
    pub words: Vec<String>,
    /// What of the person's screen is forwarded.
    pub forward: Forward,
    /// Whether the command gets a terminal.
    pub terminal: bool,
    /// Our own program, as the person can run it.
    pub program: PathBuf,
}

/// What of the person's screen is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nothing.
    Nothing,
    /// To programs that the X server is told to distrust (`ssh -X`).
    Untrusted,
    /// To programs that may do all that the person's own may (`ssh -Y`).
    Trusted,
}

/// Connects, and returns the status that ssh ended with.
///
/// # Errors
///
/// [`Kind::Missing`] where a program of OpenSSH's is missing, outside or inside, with how to install it.
pub fn ssh(
    store: &Store,
    wanted: &Ssh<'_>,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<i32> {
    let Ssh { name, session, .. } = wanted;
    if wanted.forward != Forward::Nothing {
        session.display()?;
    }
    let forwards = wanted.forward != Forward::Nothing;
    let ready = prepare(store, name, session, forwards, &variable, say)?;
    let listener = socket()?;
    let address = listen_unnamed(&listener)?;
    let mut client = client(wanted, &ready, &address)?;
    let ended = pidfd_open(Pid::from_child(&client), PidfdFlags::empty())?;
    let served = match accepted(&listener, ended.as_fd(), session.person.uid)? {
        Some(line) => serve(store, name, &ready, line, stdio[2], ended, &variable),
        // It has said why.
        None => Ok(()),
    };
    if served.is_err() {
        // Nobody will answer it.
        let _ = client.kill();
    }
    let status = client.wait().context("waiting for ssh")?;
    served?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Serves one connection on standard input and output: for ssh, which calls us as its `ProxyCommand`.
pub fn proxy(
    store: &Store,
    name: &Name,
    session: &Session,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<Ended> {
    // Whether something is forwarded is the client's to say: it is the person's.
    let ready = prepare(store, name, session, true, &variable, say)?;
    exec::exec(store, name, &ready.server, stdio, &variable)
}

/// A container by its own name, or by its name for ssh.
///
/// # Errors
///
/// Where it is no name.
pub fn name_of(host: &str) -> Result<Name> {
    host.strip_suffix(DOMAIN).unwrap_or(host).parse()
}

/// What ssh has to know of our containers, as a part of the person's `~/.ssh/config`. Their key is made if need be.
///
/// # Errors
///
/// Where the key can't be made.
pub fn config(store: &Store, person: &Person, program: &Path, become_root: Option<&str>) -> Result<String> {
    let keys = Keys::of(store, person)?;
    let mut others = Vec::new();
    for name in store.names()? {
        // One that is broken is left out, and not what the others wait for.
        let Ok(document) = store.document(&name) else { continue };
        let user = app::user(document.config()).unwrap_or_else(|| "root".into());
        if user != person.name_inside() {
            others.push((name, user));
        }
    }
    let root = store.root();
    Ok(recipe(&Recipe { person, program, root, become_root, keys: &keys.place, others: &others }))
}

// --- what both need ---

/// A container that a connection can be made to.
struct Ready {
    /// Its server, for one connection.
    server: attach::Command,
    /// Who is logged in if nobody is named.
    user: String,
    keys: Keys,
    /// The terminal that it knows.
    term: Option<String>,
}

fn prepare(
    store: &Store,
    name: &Name,
    session: &Session,
    forwards: bool,
    variable: &impl Fn(&str) -> Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<Ready> {
    start_if_stopped(store, name, variable, say)?;
    let (running, host) = {
        let _lock = store.lock(name)?;
        recover_locked(store, name)?;
        (exec::running(store, name)?, keys::of_host(store, name)?)
    };
    let root = root_of(&running)?;
    let there = |path: &str| is_there(root.as_fd(), path);
    let Some(program) = SERVERS.iter().find(|path| there(path)) else {
        return Err(no_server(name, root.as_fd()));
    };
    let mut environment: Vec<(String, String)> = follow(session, |locale| has_locale(root.as_fd(), locale))
        .into_iter()
        .filter(|(key, _)| is_place(key))
        .collect();
    environment.retain(|(key, _)| !running.config.env.contains_key(key));
    environment.extend(running.config.env.iter().map(|(key, value)| (key.to_string(), value.clone())));
    let keys = Keys::of(store, &session.person)?;
    keys.know(&format!("{name}{DOMAIN}"), &host.public)?;
    keys::show(&running, &host, &keys, store.record(name)?.ids.is_some())?;
    let server = Server { program, person: session.person.uid, forwards, environment: &environment };
    let server = attach::Command { words: server_words(&server), ..attach::Command::default() };
    let user = app::user(&running.config).unwrap_or_else(|| "root".into());
    let term = variable("TERM").map(|term| term::told(&running, term));
    Ok(Ready { server, user, keys, term })
}

/// Language and time, as every program should have them.
fn is_place(key: &str) -> bool {
    key == "LANG" || key == "LANGUAGE" || key == "TZ" || key.starts_with("LC_")
}

fn no_server(name: &Name, root: BorrowedFd<'_>) -> Error {
    let missing = error(format!("`{name}` has no sshd")).kind(Kind::Missing);
    match app::manager(root) {
        Some((_, install)) => {
            let package =
                if install.starts_with("pacman") || install.starts_with("xbps") || install.starts_with("zypper") {
                    "openssh"
                } else {
                    "openssh-server"
                };
            missing.hint(format!(
                "install it inside: lazaret exec {name} -- {install} {package}; that it runs there by itself, too, is not \
                 needed"
            ))
        }
        None => missing.hint(format!("`lazaret shell {name}` needs nothing inside")),
    }
}

// --- our own client ---

/// ssh, as the person: what the container answers is read with no more than the person's rights.
fn client(wanted: &Ssh<'_>, ready: &Ready, address: &str) -> Result<Child> {
    let Ssh { name, session, forward, .. } = wanted;
    let person = &session.person;
    let mut command = Command::new("ssh");
    command.args(["-F", "none"]);
    for (key, value) in client_options(&ready.keys.place) {
        command.arg("-o").arg(format!("{key}={value}"));
    }
    let program = plan::word(&wanted.program.to_string_lossy());
    command.arg("-o").arg(format!("ProxyCommand={program} {SERVICE} {address}")).args(["-o", "ProxyUseFdpass=yes"]);
    command.args(match forward {
        Forward::Nothing => None,
        Forward::Untrusted => Some("-X"),
        Forward::Trusted => Some("-Y"),
    });
    command.args(wanted.terminal.then_some("-t"));
    command.arg("-l").arg(wanted.user.as_ref().unwrap_or(&ready.user)).arg("--");
    command.arg(format!("{name}{DOMAIN}")).args(&wanted.words);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("SHELL", "/bin/sh").env("USER", &person.name);
    command.env("LOGNAME", &person.name).envs(person.home.as_ref().map(|home| ("HOME", home)));
    command.envs(ready.term.iter().map(|term| ("TERM", term)));
    for name in ["DISPLAY", "XDG_RUNTIME_DIR", "LANG", "LC_CTYPE"] {
        command.envs(session.variable(name).map(|value| (name, value)));
    }
    command.envs(session.authority().map(|path| ("XAUTHORITY", path)));
    if person.uid != 0 {
        command.uid(person.uid).gid(person.gid);
    }
    command.stdin(Stdio::inherit()).spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => error("there is no `ssh` on this machine")
            .kind(Kind::Missing)
            .hint("it is in the package openssh-client (Debian, Ubuntu), openssh-clients (Fedora) or openssh"),
        _ => Error::from(e).context("running ssh"),
    })
}

fn socket() -> Result<OwnedFd> {
    Ok(local::socket(SocketType::STREAM, SocketFlags::empty())?)
}

/// Listens at an address that is no file, so that nothing is left of it; the address.
fn listen_unnamed(listener: &OwnedFd) -> Result<String> {
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let address = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bind(listener, &unnamed(&address)?)?;
    listen(listener, 4)?;
    Ok(address)
}

fn unnamed(address: &str) -> Result<SocketAddrUnix> {
    Ok(SocketAddrUnix::new_abstract_name(format!("lazaret-ssh-{address}").as_bytes())?)
}

/// The client's connection; `None` if the client has ended before there was one. Others than the person may know the
/// address (proc_net_unix(5)), and are turned away.
fn accepted(listener: &OwnedFd, client: BorrowedFd<'_>, person: u32) -> Result<Option<OwnedFd>> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::from_borrowed_fd(client, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for ssh"),
        }
        if fds[0].revents().is_empty() {
            match fds[1].revents().is_empty() {
                true => continue,
                false => return Ok(None),
            }
        }
        let line = accept_with(listener, SocketFlags::CLOEXEC).context("waiting for ssh")?;
        if socket_peercred(&line)?.uid.as_raw() == person {
            return Ok(Some(line));
        }
    }
}

/// Serves one client until its end.
fn serve(
    store: &Store,
    name: &Name,
    ready: &Ready,
    line: OwnedFd,
    errors: BorrowedFd<'_>,
    client: OwnedFd,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let ends = Ends::of([null.as_fd(), null.as_fd(), errors])?;
    let signals = relay::signals()?;
    let stdio = [line.as_fd(), line.as_fd(), ends.for_command()[2]];
    let attached = exec::attached(store, name, &ready.server, stdio, signals.as_fd(), variable)?;
    // Or the server's end would go unheard.
    drop(line);
    let server = attached.child.pidfd.as_fd();
    let mut client = Client { client, server, due: None };
    ends.serve(server, signals, Some(&mut client)).map(drop)
}

/// The client, whose end is the server's soon after.
struct Client<'a> {
    client: OwnedFd,
    server: BorrowedFd<'a>,
    due: Option<Instant>,
}

impl Beside for Client<'_> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.due.is_none().then(|| self.client.as_fd())
    }

    fn until_due(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }

    fn see_to_it(&mut self) {
        match self.due {
            Some(due) if due <= Instant::now() => {
                // It may have ended already.
                let _ = signal::send(self.server, Signal::KILL.as_raw());
            }
            Some(_) => {}
            None => self.due = has_ended(self.client.as_fd()).then(|| Instant::now() + LAST_WORDS),
        }
    }
}

fn has_ended(process: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// Our own program as ssh calls it, with the person's rights: connects to the command that waits at `address`, and
/// hands the connection over on standard output (`ProxyUseFdpass` in ssh_config(5)). The exit status.
pub fn connect(address: &str) -> i32 {
    let hand_over = || -> Result<()> {
        let line = socket()?;
        connect_to(&line, &unnamed(address)?)?;
        local::send_along(rustix::stdio::stdout(), &[0], &[line.as_fd()])?;
        Ok(())
    };
    i32::from(hand_over().is_err())
}

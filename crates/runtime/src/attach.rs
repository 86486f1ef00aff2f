//! A command in a running container: straight into its namespaces through a pidfd.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::Config;
use lazaret_sys::process::{Child, Cloned, clone, close_from, execute, exit_now, join, namespace, new_session_keyring};
use lazaret_sys::{seccomp as filter, signal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fstat, fstatfs, mkdirat, openat, openat2,
};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::account::{self, Account};
use crate::confine::Capabilities;
use crate::host::Label;
use crate::perform::guest::{bound, c_strings, join_v1, not_executable, take_label, take_stdio};
use crate::perform::host::resource;
use crate::plan::ENVIRONMENT;
use crate::seccomp::Program;
use crate::turn::{End, Fds, Line, Slot};

/// A running container, as much of it as attaching needs. All of it is the host's knowledge: nothing here
/// is read from inside.
pub struct Target<'a> {
    /// Its process 1.
    pub init: BorrowedFd<'a>,
    /// Whether it has a user namespace of its own.
    pub user_ns: bool,
    /// Whether it has clocks of its own.
    pub time_ns: bool,
    /// Its v2 group.
    pub payload: PathBuf,
    /// Its v1 groups.
    pub v1: Vec<PathBuf>,
    /// Its bounding set.
    pub bounding: Capabilities,
    /// Its system call filter.
    pub filter: Option<Program>,
    /// Its label.
    pub label: Option<(Label, String)>,
    /// Whether its programs may never gain privileges.
    pub no_new_privs: bool,
    /// Its resource limits.
    pub rlimits: Vec<(Resource, Rlimit)>,
}

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// The command and its arguments; empty for the user's login shell.
    pub words: Vec<String>,
    /// Who runs it, by the container's own files; root if not given.
    pub user: Option<String>,
    /// Where; the user's home if not given.
    pub cwd: Option<String>,
    /// Variables beside those that are always set.
    pub environment: Vec<(String, String)>,
    /// Whether it finds a directory of its user's own for sockets, `XDG_RUNTIME_DIR`.
    pub runtime_directory: bool,
    /// Whether it is nobody's child but the container's own: then [`Attached::child`] ends at once.
    pub detached: bool,
}

/// What the command's standard input, output and error are.
pub enum Stdio<'a> {
    /// A new terminal of the container's, of this size from the first; our end is in [`Attached`].
    Terminal(Option<Winsize>),
    /// These. None may be a terminal of the host's: the container could type into it.
    Given([BorrowedFd<'a>; 3]),
}

/// A command at work.
#[derive(Debug)]
pub struct Attached {
    /// Its process.
    pub child: Child,
    /// Our end of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
}

/// Runs a command in a container. Returns once it executes; then `child` is to be waited for.
///
/// The caller's children to come are in the container's process id namespace afterwards, so it makes none
/// but by this. Errors of kind [`Kind::CommandNotFound`] and [`Kind::CommandNotExecutable`] are the
/// command's; any other is ours.
///
/// What comes in on `signals`, a descriptor of [`signal::watch`], is meant for the command and passed on to its
/// process, which hears it when it executes. A command that was killed so has no terminal.
pub fn attach(
    target: &Target<'_>,
    command: &Command,
    stdio: Stdio<'_>,
    signals: Option<BorrowedFd<'_>>,
) -> Result<Attached> {
    join(target.init, namespace::PID).map_err(gone).context("joining the process id namespace")?;
    let (ours, theirs) = Line::pair()?;
    let child = match clone_into(&target.payload)? {
        Cloned::Child => {
            drop(ours);
            if command.detached {
                leave_parent();
            }
            let Err(e) = become_command(target, command, &stdio, &theirs);
            // Without anybody to tell, the status says it.
            let status = if e.what() == Kind::CommandNotFound { 127 } else { 126 };
            let _ = theirs.failed(0, e);
            exit_now(status)
        }
        Cloned::Parent(child) => child,
    };
    drop(theirs);
    let mut fds = Fds::default();
    loop {
        if let Some(signals) = signals {
            pass_on_until_said(signals, &ours, &child)?;
        }
        match ours.end(&mut fds)? {
            End::Done => {}
            End::Gone => return Ok(Attached { child, terminal: fds.take(Slot::Console).map(verified).transpose()? }),
            End::Failed(_, e) => {
                let _ = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
                return Err(e);
            }
        }
    }
}

/// Passes signals on until the other end of the line says something or is closed.
fn pass_on_until_said(signals: BorrowedFd<'_>, line: &Line, child: &Child) -> Result<()> {
    loop {
        let mut fds = [PollFd::new(line, PollFlags::IN), PollFd::from_borrowed_fd(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for the command"),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        while let Some(number) = signal::next(signals)? {
            // It may have ended already.
            let _ = signal::send(child.pidfd.as_fd(), number);
        }
    }
}

fn gone(errno: Errno) -> Error {
    match errno {
        Errno::SRCH => error("its init has ended").kind(Kind::Stopped),
        e => e.into(),
    }
}

/// The kernel puts no process into a group whose controllers are handed on to groups below it
/// ("no internal processes", cgroup-v2.rst): then into a leaf of our own.
fn clone_into(payload: &Path) -> Result<Cloned> {
    let open = |dir: &Path| {
        openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .with_context(|| format!("opening the cgroup `{}`", dir.display()))
    };
    match clone(0, Some(open(payload)?.as_fd())) {
        Err(Errno::BUSY | Errno::OPNOTSUPP) => {
            let leaf = payload.join("lazaret");
            crate::cgroup::make(&leaf)?;
            Ok(clone(0, Some(open(&leaf)?.as_fd())).context("making a process in the container's cgroup")?)
        }
        Err(Errno::NOMEM) => Err(error("its init is ending").kind(Kind::Stopped)),
        other => Ok(other.context("making a process in the container's cgroup")?),
    }
}

/// Goes on in a child of this process, which has ended then: the orphan of a process inside is the container's init's
/// (find_new_reaper in kernel/exit.c). One of a process outside would be the host's, and the container could not end
/// before that has taken note of its end.
fn leave_parent() {
    match clone(0, None) {
        Ok(Cloned::Child) => {}
        Ok(Cloned::Parent(_)) => exit_now(0),
        Err(_) => exit_now(126),
    }
}

/// From here on in the new process.
fn become_command(
    target: &Target<'_>,
    command: &Command,
    stdio: &Stdio<'_>,
    line: &Line,
) -> Result<std::convert::Infallible> {
    // Until execution this process is a copy of a process of the host's: nobody inside may look into it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    raise(&target.rlimits)?;
    for dir in &target.v1 {
        join_v1(dir)?;
    }
    if let Some((module, label)) = &target.label {
        take_label(*module, label).with_context(|| format!("taking the label `{label}`"))?;
    }
    new_session_keyring().or_else(|e| if e == Errno::NOSYS { Ok(()) } else { Err(e) })?;
    let mut namespaces = namespace::MOUNT | namespace::NET | namespace::UTS | namespace::IPC | namespace::CGROUP;
    namespaces |= if target.user_ns { namespace::USER } else { 0 };
    namespaces |= if target.time_ns { namespace::TIME } else { 0 };
    join(target.init, namespaces).map_err(gone).context("joining its namespaces")?;

    set_thread_groups(&[])?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    // By way of the container's root, so that leaving that id gives its capabilities up (capabilities(7)).
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    let account = account::look_up(command.user.as_deref().unwrap_or("root"))?;
    if command.runtime_directory {
        make_runtime_directory(&account)?;
    }
    rustix::process::setsid()?;
    attach_stdio(stdio, line)?;
    bound(target.bounding)?;
    if target.no_new_privs {
        rustix::thread::set_no_new_privs(true)?;
    }
    if let Some(program) = &target.filter {
        filter::set_filter(program.instructions()).context("loading the system call filter")?;
    }
    become_user(&account)?;
    // As the user, who may not enter every directory that root may.
    enter_directory(command.cwd.as_deref(), &account.home)?;
    rustix::process::umask(Mode::from(0o022));
    signal::reset();
    close_from(3, true)?;
    for (resource, limit) in &target.rlimits {
        setrlimit(*resource, *limit).with_context(|| format!("limiting {resource:?}"))?;
    }
    execute_by_name(command, &account)
}

/// Makes `/run/user/UID`, unless it is there. No link of the container's is followed on the way.
fn make_runtime_directory(account: &Account) -> Result<()> {
    let making = || format!("making `/run/user/{}` in the container", account.uid);
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = openat(CWD, "/", flags, Mode::empty())?;
    for (name, mode) in [("run".to_owned(), 0o755), ("user".to_owned(), 0o755), (account.uid.to_string(), 0o700)] {
        let made = match mkdirat(&at, &name, Mode::from(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e).with_context(making),
        };
        at = openat2(&at, &name, flags, Mode::empty(), resolve).with_context(making)?;
        if made && mode == 0o700 {
            let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
            chownat(&at, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).with_context(making)?;
        }
    }
    Ok(())
}

/// The limits that a configuration asks for.
pub fn resource_limits(config: &Config) -> Result<Vec<(Resource, Rlimit)>> {
    let limit = |(name, limit): (&lazaret_config::Resource, &lazaret_config::Rlimit)| {
        Ok((resource(name.name())?, Rlimit { current: limit.soft, maximum: limit.hard }))
    };
    config.rlimits.iter().map(limit).collect()
}

/// Makes room for limits that are higher than ours, as only the host's root may. They are taken in full at the
/// last moment: they are the command's, and may be too tight for what comes before it.
fn raise(limits: &[(Resource, Rlimit)]) -> Result<()> {
    // No limit is the highest.
    let height = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    for (resource, wanted) in limits {
        let now = getrlimit(*resource);
        if height(wanted.maximum) > height(now.maximum) {
            let room = Rlimit { current: now.current, maximum: wanted.maximum };
            setrlimit(*resource, room).with_context(|| format!("raising the limit of {resource:?}"))?;
        }
    }
    Ok(())
}

fn become_user(account: &Account) -> Result<()> {
    let becoming = || format!("becoming `{}` (user {}, group {})", account.name, account.uid, account.gid);
    let groups: Vec<Gid> = account.groups.iter().map(|id| Gid::from_raw(*id)).collect();
    set_thread_groups(&groups).with_context(becoming)?;
    let gid = Gid::from_raw(account.gid);
    set_thread_res_gid(gid, gid, gid).with_context(becoming)?;
    let uid = Uid::from_raw(account.uid);
    set_thread_res_uid(uid, uid, uid).with_context(becoming).hint("the container's ids are 0 to 65535")
}

fn attach_stdio(stdio: &Stdio<'_>, line: &Line) -> Result<()> {
    match stdio {
        Stdio::Given(given) => take_stdio(*given),
        Stdio::Terminal(size) => {
            let (ours, theirs) = open_terminal().context("opening a terminal in the container")?;
            if let Some(size) = size {
                tcsetwinsize(&ours, *size).context("giving the terminal its size")?;
            }
            rustix::process::ioctl_tiocsctty(&theirs)?;
            take_stdio([theirs.as_fd(); 3])?;
            let mut made = Fds::default();
            made.put(Slot::Console, ours);
            line.done(made)
        }
    }
}

/// A new pseudo-terminal of the container's devpts. By now everything on the way there is the container's,
/// so what was opened is looked at before it is used.
fn open_terminal() -> Result<(OwnedFd, OwnedFd)> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let ours = verified(openat2(&root, "dev/pts/ptmx", flags, Mode::empty(), resolve)?)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    Ok((ours, theirs))
}

/// Only a pseudo-terminal's own end will do: character device 5:2 on a devpts (pts(4)).
fn verified(fd: OwnedFd) -> Result<OwnedFd> {
    const DEVPTS_SUPER_MAGIC: u64 = 0x1cd1;
    let status = fstat(&fd)?;
    let is_ptmx = FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev)) == (5, 2);
    if !is_ptmx || fstatfs(&fd)?.f_type as u64 != DEVPTS_SUPER_MAGIC {
        return Err(error("the container's `/dev/pts/ptmx` is no pseudo-terminal"));
    }
    Ok(fd)
}

/// A working directory that was asked for must be there; a home that is not is no reason to fail.
///
/// Neither may lead out by way of a descriptor that somebody left open (CVE-2024-21626): what a user's home is, the
/// container says itself.
fn enter_directory(wanted: Option<&str>, home: &str) -> Result<()> {
    match wanted {
        Some(dir) => {
            rustix::process::chdir(dir).with_context(|| format!("entering `{dir}` in the container"))?;
            match is_below_root() {
                true => Ok(()),
                false => Err(error(format!("`{dir}` is not below the container's root"))),
            }
        }
        None if rustix::process::chdir(home).is_ok() && is_below_root() => Ok(()),
        None => Ok(rustix::process::chdir("/")?),
    }
}

/// Whether the working directory has a name inside: getcwd(2) begins with `(unreachable)` where it has none.
fn is_below_root() -> bool {
    rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.to_bytes().starts_with(b"/"))
}

/// The environment starts empty: the caller's own variables are no business of the container's.
fn environment(command: &Command, account: &Account) -> Vec<(String, String)> {
    let own = [("HOME", &account.home), ("USER", &account.name), ("LOGNAME", &account.name), ("SHELL", &account.shell)];
    let fixed = ENVIRONMENT.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    let runtime =
        command.runtime_directory.then(|| ("XDG_RUNTIME_DIR".to_owned(), format!("/run/user/{}", account.uid)));
    let own = own.into_iter().map(|(k, v)| (k.to_owned(), v.clone())).chain(runtime);
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in fixed.chain(own).chain(command.environment.iter().cloned()) {
        all.retain(|(k, _)| *k != key);
        all.push((key, value));
    }
    all
}

/// Searches PATH as execvp(3) does; a login shell gets a name that begins with `-` (login(1)).
fn execute_by_name(command: &Command, account: &Account) -> Result<std::convert::Infallible> {
    let environment = environment(command, account);
    let path = environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    let envp = c_strings(environment.iter().map(|(key, value)| format!("{key}={value}")))?;
    let (name, arguments) = match command.words.split_first() {
        Some((name, _)) => (name.clone(), c_strings(command.words.iter().cloned())?),
        None => {
            let base = account.shell.rsplit('/').next().unwrap_or("sh");
            (account.shell.clone(), c_strings([format!("-{base}")])?)
        }
    };
    let mut errno = Errno::NOENT;
    for candidate in candidates(&name, &path) {
        match execute(&c_path(candidate)?, &arguments, &envp) {
            // Not here, or nothing that may be looked at here: the next directory may have it.
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => errno = Errno::ACCESS,
            other => return Err(not_executable(&name, other)),
        }
    }
    Err(not_executable(&name, errno))
}

fn candidates(name: &str, path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{name}")).collect()
}

fn c_path(path: String) -> Result<CString> {
    CString::new(path).map_err(|_| error("a NUL byte in a command"))
}

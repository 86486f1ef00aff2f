//! Processes of our own program, and telling one from a later one with the same number.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_sys::process::{Cloned, clone, exit_now};
use rustix::fs::Mode;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Pid, PidfdFlags, pidfd_open, setsid, umask};
use rustix::stdio::{dup2_stdin, stdin};

use crate::store::Store;

/// Our own program anew, from the file `path`: with this as its standard input, and nothing else of the caller's.
pub(crate) fn anew(path: &str, input: impl Into<Stdio>) -> Command {
    let mut program = Command::new(path);
    program.stdin(input).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/").env_clear();
    program
}

/// Begins a service of an installation: our own program with these words, which is given the socket it is called on
/// and goes on by itself. An error if it could not begin; `what` is its name.
pub(crate) fn begin_service(store: &Store, words: &[&str], listener: OwnedFd, what: &str) -> Result<()> {
    let mut service = anew(OWN_PROGRAM, listener);
    service.args(words);
    if let Some(root) = store.root() {
        service.arg("--root").arg(root);
    }
    let beginning = || format!("beginning {what}");
    let begun = service.spawn().with_context(beginning)?.wait().with_context(beginning)?;
    match begun.success() {
        true => Ok(()),
        false => Err(error(format!("{what} could not begin: {begun}"))),
    }
}

/// Leaves whoever has begun this process: they see it end well, while a copy of it goes on in a session of its own.
pub(crate) fn leave_caller() -> Result<()> {
    match clone(0, None).context("leaving the caller")? {
        Cloned::Parent(_) => exit_now(0),
        Cloned::Child => {}
    }
    setsid()?;
    Ok(())
}

/// Takes the descriptor that a service has as its standard input. Nothing is there afterwards, and files that the
/// service makes are nobody else's.
pub(crate) fn take_input() -> Result<OwnedFd> {
    let given = fcntl_dupfd_cloexec(stdin(), 3)?;
    dup2_stdin(&File::options().read(true).write(true).open("/dev/null")?)?;
    umask(Mode::from_raw_mode(0o077));
    Ok(given)
}

/// The file that this process runs.
pub(crate) const OWN_PROGRAM: &str = "/proc/self/exe";

/// When a process was made, in clock ticks since boot: field 22 of proc_pid_stat(5).
pub fn started(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name in parentheses may hold anything, parentheses and spaces included.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Opens the process that had this number at that time, or tells that it has ended.
pub fn open(pid: i32, at: u64) -> Result<OwnedFd> {
    let ended = || error("its init has ended").kind(Kind::Stopped);
    let pid = Pid::from_raw(pid).ok_or_else(ended)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| ended())?;
    // Looked at after opening: if the number has the right age now, the descriptor was opened on it.
    match started(pid) {
        Some(then) if then == at => Ok(pidfd),
        _ => Err(ended()),
    }
}

//! Stopping: asking, waiting, and at last insisting.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_runtime::attach;
use lazaret_runtime::cgroup::{self, Hierarchies};
use lazaret_runtime::stop::{Ask, Init, how, look};
use lazaret_sys::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::console;
use crate::event::{self, What};
use crate::exec::{Running, running};
use crate::recover::{LAST_BREATH, recover_locked};
use crate::store::Store;

/// How a container came to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its init ended in its own way.
    Asked,
    /// It was killed, as it did not end in time or nobody wanted to wait.
    Killed,
}

/// How often an init that can't hear yet, or has not ended yet, is looked at again: the kernel has no event
/// for a change of a signal mask.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks a container to end, waits, and kills what is left at the time-out. Returns when nothing of it is left.
///
/// `progress` is told once what is being waited for, if it takes a while.
pub fn stop(store: &Store, name: &Name, timeout: Option<Duration>, progress: &mut dyn FnMut(&str)) -> Result<Stopped> {
    store.require(name)?;
    let line = console::connect_to(store, name)?;
    let running = match running(store, name) {
        // It has ended meanwhile: what is left to do is to wait for its keeper.
        Err(e) if e.what() == Kind::Stopped && !is_starting(store, name) => {
            return wait_gone(&line, LAST_BREATH).and_then(|gone| if gone { Ok(Stopped::Asked) } else { Err(e) });
        }
        other => other?,
    };
    let payload = running.state.group.payload(&running.host.cgroups);
    if cgroup::frozen(&payload) {
        // What is frozen can't end.
        cgroup::freeze(&payload, false, LAST_BREATH)?;
    }
    let timeout = timeout.or_else(|| running.config.stop_timeout.duration()).unwrap_or(Duration::from_secs(30));
    if ask_until(store, name, &running, &line, Instant::now() + timeout, progress)? {
        return Ok(Stopped::Asked);
    }
    kill_and_wait(&running, &line)?;
    Ok(Stopped::Killed)
}

fn is_starting(store: &Store, name: &Name) -> bool {
    store.run_state(name).ok().flatten().is_some_and(|state| state.phase == crate::store::Phase::Starting)
}

/// Asks, again where it must be, until the keeper is gone (`true`) or time is up.
fn ask_until(
    store: &Store,
    name: &Name,
    running: &Running,
    line: &OwnedFd,
    end: Instant,
    progress: &mut dyn FnMut(&str),
) -> Result<bool> {
    let wanted = running.config.stop_signal.map(|signal| signal.number());
    let pid = Pid::from_raw(running.state.init).ok_or_else(|| error("its init has no number"))?;
    let begun = Instant::now();
    let (mut asked, mut told): (Option<Init>, bool) = (None, false);
    loop {
        // Gone between two looks: the line tells.
        if let Ok(init) = look(pid)
            && asked.as_ref().is_none_or(|before| before.name != init.name)
        {
            match how(&init, wanted) {
                Ask::NotYet => {}
                Ask::Signal(number) => {
                    if signal::send(running.init.as_fd(), number).is_ok() {
                        asked = Some(init);
                    }
                }
                Ask::Run(words) => {
                    if run_inside(store, name, running, words).is_ok_and(|ok| ok) {
                        asked = Some(init);
                    }
                }
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        if wait_gone(line, left.min(LOOK_AGAIN))? {
            return Ok(true);
        }
        if !told && begun.elapsed() > Duration::from_secs(1) {
            told = true;
            let init = look(pid).map_or_else(|_| "its init".into(), |init| format!("`{}`", init.name));
            progress(&match asked {
                Some(_) => format!("waiting for {init} to end, for at most {} s more", left.as_secs()),
                None => format!("waiting until {init} can hear us, for at most {} s more", left.as_secs()),
            });
        }
    }
}

/// Runs a command of the container's own, with nothing for input and nowhere to speak.
fn run_inside(store: &Store, name: &Name, running: &Running, words: &[&str]) -> Result<bool> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let command = attach::Command { words: words.iter().map(ToString::to_string).collect(), ..Default::default() };
    let stdio = attach::Stdio::Given([null.as_fd(); 3]);
    let attached = attach::attach(&running.target(store, name)?, &command, stdio, None)?;
    Ok(crate::keeper::Ended::of(attached.child.pidfd.as_fd())?.status() == 0)
}

/// Whether the keeper ends within this time: its end closes the line.
fn wait_gone(line: &OwnedFd, within: Duration) -> Result<bool> {
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut fds = [PollFd::new(line, PollFlags::RDHUP)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e).context("waiting for the container's end"),
        }
    }
}

/// Ends a container at once. Returns when nothing of it is left.
pub fn kill(store: &Store, name: &Name) -> Result<()> {
    store.require(name)?;
    let line = console::connect_to(store, name)?;
    let Some(state) = store.run_state(name)? else { return Ok(()) };
    let payload = state.group.payload(&Hierarchies::probe()?);
    cgroup::kill(&payload, LAST_BREATH)?;
    insist(&line)
}

fn kill_and_wait(running: &Running, line: &OwnedFd) -> Result<()> {
    cgroup::kill(&running.state.group.payload(&running.host.cgroups), LAST_BREATH)?;
    insist(line)
}

fn insist(line: &OwnedFd) -> Result<()> {
    match wait_gone(line, LAST_BREATH)? {
        true => Ok(()),
        false => Err(error("its processes are dead, but its keeper does not end")
            .hint("end the process `lazaret keeper` yourself; the next command cleans up after it")),
    }
}

/// Keeper: has itself stopped by a command, so that it can go on serving meanwhile.
pub(crate) fn in_background(store: &Store, name: &Name) -> Result<()> {
    let mut command = Command::new("/proc/self/exe");
    if let Some(root) = store.root() {
        command.arg("--root").arg(root);
    }
    command.args(["stop", name.as_str()]);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).context("asking the container to end")
}

/// Freezes a running container, or thaws it. Nothing happens if it is so already.
pub fn freeze(store: &Store, name: &Name, frozen: bool) -> Result<()> {
    let _lock = store.lock(name)?;
    recover_locked(store, name)?;
    let running = running(store, name)?;
    let payload = running.state.group.payload(&running.host.cgroups);
    let before = cgroup::frozen(&payload);
    let doing = if frozen { "freezing" } else { "thawing" };
    // Whatever it was before: somebody may have been killed half-way.
    let done = cgroup::freeze(&payload, frozen, LAST_BREATH);
    if done.is_err() && frozen {
        // Half frozen is worse than not at all.
        let _ = cgroup::write(&payload.join("cgroup.freeze"), "0");
    }
    if done.as_ref().is_err_and(|e| matches!(e.errno(), Some(Errno::NOENT | Errno::NODEV))) {
        return Err(error(format!("`{name}` has ended meanwhile")).kind(Kind::Stopped));
    }
    done.with_context(|| format!("{doing} `{name}`"))?;
    if before != frozen {
        event::tell(store, name, if frozen { What::Frozen } else { What::Thawed }, None);
    }
    Ok(())
}

//! Commands in a running container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::{Config, Name};
use lazaret_runtime::attach::{self, Attached, Command, Target};
use lazaret_runtime::cgroup;
use lazaret_runtime::confine::Capabilities;
use lazaret_runtime::host::Host;
use lazaret_runtime::seccomp::Program;
use lazaret_sys::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use crate::keeper::Ended;
use crate::relay::{self, Beside, Ends};
use crate::store::{Phase, RunState, Store};
use crate::{process, start, term};

/// A running container, looked at closely enough to act on it.
pub(crate) struct Running {
    pub(crate) state: RunState,
    pub(crate) host: Host,
    pub(crate) init: OwnedFd,
    pub(crate) config: Config,
}

/// Looks; an error if it does not run.
pub(crate) fn running(store: &Store, name: &Name) -> Result<Running> {
    store.require(name)?;
    let stopped = || {
        error(format!("`{name}` is not running")).kind(Kind::Stopped).hint(format!("start it: lazaret start {name}"))
    };
    let state = match store.is_kept(name)? {
        true => store.run_state(name)?.ok_or_else(stopped)?,
        false => return Err(stopped()),
    };
    match state.phase {
        Phase::Running => {}
        Phase::Starting => {
            return Err(error(format!("`{name}` is starting")).kind(Kind::Stopped).hint("try again in a moment"));
        }
        Phase::Stopping => return Err(error(format!("`{name}` is stopping")).kind(Kind::Stopped)),
    }
    let init =
        process::open(state.init, state.init_started).map_err(|e: Error| e.context(format!("entering `{name}`")))?;
    let config = store.running_config(name).map_err(|e| match e.errno() {
        // It has ended since, and what it left at run time is gone.
        Some(Errno::NOENT) => stopped(),
        _ => e,
    })?;
    Ok(Running { state, host: Host::probe()?, init, config })
}

impl Running {
    /// What attaching needs to know.
    pub(crate) fn target(&self, store: &Store, name: &Name) -> Result<Target<'_>> {
        let trees = &self.host.cgroups;
        let filter = store.filter(name)?.map(|bytes| Program::from_bytes(&bytes)).transpose()?;
        Ok(Target {
            init: self.init.as_fd(),
            user_ns: store.record(name)?.ids.is_some(),
            time_ns: self.config.time.monotonic.is_some() || self.config.time.boottime.is_some(),
            payload: self.state.group.payload(trees),
            v1: trees.v1.iter().map(|mount| mount.join(&self.state.group.base)).collect(),
            bounding: Capabilities(self.state.capabilities),
            filter,
            label: self.state.label.clone().map(|label| (self.host.label, label)),
            no_new_privs: self.config.no_new_privs,
            rlimits: attach::resource_limits(&self.config)?,
        })
    }
}

/// Runs a command and returns how it ended. Where the caller has a terminal, the command has one of the
/// container's; files and pipes are handed in as they are.
///
/// `variable` looks up the caller's environment: TERM, and what the configuration lets in.
pub fn exec(
    store: &Store,
    name: &Name,
    command: &Command,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Ended> {
    exec_beside(store, name, command, stdio, variable, None)
}

/// The same, with an ear or a hand for something else meanwhile.
pub(crate) fn exec_beside(
    store: &Store,
    name: &Name,
    command: &Command,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
    beside: Option<&mut dyn Beside>,
) -> Result<Ended> {
    let running = awake(store, name)?;
    let with_terminal = relay::wants_terminal(stdio);
    let term = if with_terminal { variable("TERM") } else { None };
    let term = term.map(|term| term::told(&running, term));
    let command =
        Command { environment: environment(store, name, &running, command, term, variable)?, ..command.clone() };
    let target = running.target(store, name)?;
    // From before there is a command: a signal is never ours to die of while the command lives on.
    let signals = relay::signals()?;
    let heard = Some(signals.as_fd());

    if with_terminal {
        let ours = attach::Stdio::Terminal(relay::window(stdio[0]));
        let Attached { child, terminal } = attach::attach(&target, &command, ours, heard)?;
        return match terminal {
            Some(terminal) => relay::terminal(child.pidfd.as_fd(), stdio[0], stdio[1], terminal, signals, beside),
            None => Ended::of(child.pidfd.as_fd()),
        };
    }
    let ends = Ends::of(stdio)?;
    let attached = attach::attach(&target, &command, attach::Stdio::Given(ends.for_command()), heard)?;
    ends.serve(attached.child.pidfd.as_fd(), signals, beside)
}

/// Begins a command with these three as they are, none of which is a terminal. What comes in on `signals` meanwhile is
/// passed on to it.
pub(crate) fn attached(
    store: &Store,
    name: &Name,
    command: &Command,
    stdio: [BorrowedFd<'_>; 3],
    signals: BorrowedFd<'_>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Attached> {
    let running = awake(store, name)?;
    let environment = environment(store, name, &running, command, None, variable)?;
    let command = Command { environment, ..command.clone() };
    attach::attach(&running.target(store, name)?, &command, attach::Stdio::Given(stdio), Some(signals))
}

/// What a command says on its standard output, if that is not long and does not take long.
pub(crate) fn heard(store: &Store, name: &Name, command: &Command) -> Result<String> {
    const LONGEST: usize = 64 * 1024;
    const PATIENCE: Duration = Duration::from_secs(60);
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let signals = relay::signals()?;
    let stdio = [null.as_fd(), theirs.as_fd(), null.as_fd()];
    let attached = attached(store, name, command, stdio, signals.as_fd(), |_| None)?;
    drop(theirs);
    let (mut said, end) = (Vec::new(), Instant::now() + PATIENCE);
    while said.len() < LONGEST {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut bytes = [0; 4096];
        match poll(&mut [PollFd::new(&ours, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        match rustix::io::read(&ours, &mut bytes)? {
            0 => break,
            n => said.extend(&bytes[..n]),
        }
    }
    // It has ended, or is not to go on.
    let _ = signal::send(attached.child.pidfd.as_fd(), Signal::KILL.as_raw());
    Ended::of(attached.child.pidfd.as_fd())?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Begins a command that nobody waits for: it reads nothing, and nobody hears it. It ends with the container, if not
/// before.
pub fn begin(store: &Store, name: &Name, command: &Command, variable: impl Fn(&str) -> Option<String>) -> Result<()> {
    let running = awake(store, name)?;
    let environment = environment(store, name, &running, command, None, variable)?;
    let command = Command { environment, detached: true, ..command.clone() };
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    let stdio = attach::Stdio::Given([null.as_fd(); 3]);
    let attached = attach::attach(&running.target(store, name)?, &command, stdio, None)?;
    match Ended::of(attached.child.pidfd.as_fd())?.status() {
        0 => Ok(()),
        _ => Err(error("no process could be made for it")),
    }
}

/// A running container that is not frozen.
fn awake(store: &Store, name: &Name) -> Result<Running> {
    let running = running(store, name)?;
    let payload = running.state.group.payload(&running.host.cgroups);
    match cgroup::frozen(&payload) {
        true => Err(error(format!("`{name}` is frozen"))
            .kind(Kind::Stopped)
            .hint(format!("thaw it: lazaret unfreeze {name}"))),
        false => Ok(running),
    }
}

/// A command's variables: of its terminal, of the image, of the caller as far as they are let in, of the configuration,
/// and its own; the last of a name counts.
fn environment(
    store: &Store,
    name: &Name,
    running: &Running,
    command: &Command,
    term: Option<String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>> {
    let mut environment: Vec<(String, String)> = term.map(|term| ("TERM".into(), term)).into_iter().collect();
    let passed = start::passed(&running.config, variable);
    environment.extend(start::environment(&store.record(name)?, passed, &running.config));
    environment.extend(command.environment.iter().cloned());
    Ok(environment)
}

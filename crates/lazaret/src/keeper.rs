//! The keeper: one small process of one thread for each running container.
//!
//! It carries out the plan, then waits on events: the init's end, the console, clients, signals. It holds
//! what must live as long as the container: its lock, its console, its cgroups. When it ends, however it
//! ends, the container's init dies with it, and what it can't give back itself the next command gives back.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Error, Lock, Result, error};
use lazaret_config::{Display, Document, Name};
use lazaret_runtime::cgroup;
use lazaret_runtime::confine::Capabilities;
use lazaret_runtime::host::Host;
use lazaret_runtime::plan::{GuestStep, OurInit, Plan, Step};
use lazaret_runtime::spawn::{self, Inject, Started, Victim};
use lazaret_runtime::systemd::{self, Manager, Scope};
use lazaret_sys::process::{close_from, exit_now, set_command_line};
use lazaret_sys::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, waitid};

use crate::console::{Client, Console, Log};
use crate::device::{self, Given};
use crate::event::{self, What};
use crate::network::{Connection, Ending};
use crate::recover::clear_group;
use crate::relay::Beside;
use crate::start::{Answer, Request, answer, group_of, read_request, spec};
use crate::store::{Alive, Phase, Record, RunState, Store};
use crate::{cache, create, gate, label, process, stop};

/// The life of a keeper that is our program started anew: told on its standard input what to keep, it answers there.
/// The exit status is for nobody.
pub fn main() -> i32 {
    // What the caller left open for its children is not for one that outlives it.
    if close_from(3, false).is_err() {
        return 1;
    }
    let stdin = std::io::stdin();
    let Ok(line) = rustix::io::fcntl_dupfd_cloexec(&stdin, 3) else { return 1 };
    let told = rustix::io::fcntl_dupfd_cloexec(&line, 3).map(File::from);
    let kept = told.map_err(Error::from).and_then(read_request).and_then(|request| begin(request, line));
    // The command has heard of a failure.
    i32::from(kept.is_err())
}

/// The life of a keeper that is a copy of the command's process. It answers on `line`; everything else that the
/// command has open is not for one that outlives it.
pub(crate) fn live(request: &Request, line: OwnedFd) -> ! {
    let kept = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        rustix::stdio::dup2_stdin(&line)?;
        // Their owners are the command's, and are dropped there.
        let _ = line.into_raw_fd();
        close_from(3, false)?;
        rustix::process::chdir("/")?;
        let line = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        begin(request.clone(), line)
    }));
    exit_now(i32::from(!matches!(kept, Ok(Ok(())))))
}

/// Starts the container and, once it runs, keeps it.
fn begin(request: Request, line: OwnedFd) -> Result<()> {
    let begun = (|| -> Result<(Keeper, Started)> {
        // Away from the caller's terminal and session: it may end before the container does.
        rustix::process::setsid()?;
        let null = File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::process::umask(rustix::fs::Mode::from(0o077));
        let inject = request.inject.as_ref().map(|(step, victim)| injection(*step, victim)).transpose()?;
        let mut keeper = Keeper::take(&request)?;
        let running = keeper.start(None, None, inject)?;
        // For process lists; where it can't be changed they show the command's.
        let _ = set_command_line(&["lazaret", "keeper", keeper.name.as_str()]);
        Ok((keeper, running))
    })();
    match begun {
        Ok((mut keeper, running)) => {
            answer(&line, &Answer::Running(keeper.state.notes.clone()));
            drop(line);
            keeper.keep(running).map(drop)
        }
        Err(e) => {
            answer(&line, &Answer::Failed(e.into()));
            Err(error("told"))
        }
    }
}

fn injection(step: usize, victim: &str) -> Result<Inject> {
    let victim = match victim {
        "keeper" => Victim::Keeper,
        "command" => Victim::Command,
        "guest" => Victim::Guest,
        "itself" => Victim::Itself,
        other => return Err(error(format!("nobody is called `{other}` here"))),
    };
    Ok(Inject { step, victim })
}

/// How process 1 ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal. A reboot from inside looks like SIGHUP, a power-off like SIGINT (reboot(2)).
    Killed(i32),
}

impl Ended {
    /// As a shell would put it: the status, or 128 plus the signal.
    pub fn status(self) -> i32 {
        match self {
            Ended::Exited(status) => status,
            Ended::Killed(signal) => 128 + signal,
        }
    }

    /// Of `pidfd`, once it is readable.
    pub(crate) fn of(pidfd: BorrowedFd<'_>) -> Result<Ended> {
        let status = loop {
            match waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED) {
                Err(Errno::INTR) => {}
                other => break other.context("waiting for process 1")?,
            }
        };
        let status = status.ok_or_else(|| error("process 1 ended without a status"))?;
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exited(code),
            (None, Some(signal)) => Ended::Killed(signal),
            (None, None) => Ended::Exited(255),
        })
    }
}

/// A container with the right to start it.
pub(crate) struct Keeper {
    store: Store,
    name: Name,
    record: Record,
    document: Document,
    host: Host,
    environment: Vec<(String, String)>,
    state: RunState,
    listener: OwnedFd,
    /// Whether systemd has made the scope that this process is in.
    in_scope: bool,
    /// While this is held, others know that somebody stands behind the container.
    alive: Alive,
    /// The lock of the command that is its own keeper, until the start is over.
    pub(crate) lock: Option<Lock>,
    /// Its connection to the network, while there is one.
    network: Option<Connection>,
}

impl Keeper {
    /// Takes the container; from here on others know that somebody stands behind it.
    pub(crate) fn take(request: &Request) -> Result<Keeper> {
        let store = match &request.root {
            Some(root) => Store::at(root)?,
            None => Store::system(),
        };
        let name = request.name.clone();
        let alive = store.keep(&name)?.ok_or_else(|| crate::start::already(&name))?;
        let (record, document) = (store.record(&name)?, store.document(&name)?);
        let host = Host::probe()?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let state = RunState {
            phase: Phase::Starting,
            keeper: getpid().as_raw_nonzero().get(),
            init: 0,
            init_started: 0,
            since,
            group: group_of(&store, &name, &host),
            capabilities: Capabilities::of(document.config()).0,
            label: None,
            network: None,
            notes: Vec::new(),
        };
        let listener = crate::console::listen(&store, &name)?;
        let environment = request.environment.clone();
        Ok(Keeper {
            store,
            name,
            record,
            document,
            host,
            environment,
            state,
            listener,
            in_scope: false,
            alive,
            lock: None,
            network: None,
        })
    }

    /// Carries out the plan. On failure nothing is left of it, and nobody keeps the container any more.
    pub(crate) fn start(
        &mut self,
        ours: Option<OurInit>,
        stdio: Option<[BorrowedFd<'_>; 3]>,
        inject: Option<Inject>,
    ) -> Result<Started> {
        let started = self.try_start(ours, stdio, inject);
        if started.is_err() {
            let _ = self.give_back();
        }
        started
    }

    fn try_start(
        &mut self,
        ours: Option<OurInit>,
        stdio: Option<[BorrowedFd<'_>; 3]>,
        inject: Option<Inject>,
    ) -> Result<Started> {
        // Recorded before anything is made: whoever cleans up after us finds it here.
        self.record_state(Phase::Starting, What::Starting, None)?;
        if let Some(scope) = self.state.group.scope.clone().filter(|_| !self.in_scope) {
            self.enter_scope(&scope)?;
            // A reboot from inside finds us there.
            self.in_scope = true;
        }
        let cached = self.cached(cache::prepare(&self.store, &self.name, &self.record, self.document.config()));
        let mut config = self.document.config().clone();
        if config.apparmor.is_none() {
            match label::default_label(&self.host) {
                Ok(label) => config.apparmor = label,
                Err(e) => self.state.notes.push(e.to_string()),
            }
        }
        crate::share::check(&self.store, &self.name, &config.shares)?;
        let owner = self.record.ids.map_or(0, |ids| ids.start);
        if config.desktop.display != Display::None {
            self.store.make_session(&self.name, owner)?;
        }
        crate::device::check(&self.name, &config.devices)?;
        let group = self.state.group.clone();
        let spec = spec(&self.store, &self.name, config, &self.record, group, ours, self.environment.clone());
        let plan = Plan::compile(&spec, &self.host)?;
        self.record_confinement(&plan)?;
        // Should we be killed, the sides of the start may outlive us by a moment: not as if they were us.
        let network = Connection::new(&self.store, &self.name, self.document.config(), self.record.ephemeral)?;
        let netd = network.shared_line();
        let network = self.network.insert(network);
        let private = [self.alive.as_fd()].into_iter().chain(self.lock.as_ref().map(AsFd::as_fd));
        let private = private.chain(netd.as_deref().map(AsFd::as_fd)).collect();
        let connect = Some(&mut *network as &mut dyn spawn::Connect);
        let started = spawn::start(spawn::Start { plan: &plan, owner, stdio, private, network: connect, inject })?;
        match started.nodes.is_empty() {
            // Of the start before, if the container has begun anew.
            true => self.store.forget_given_devices(&self.name),
            false => {
                let given = Given { nodes: started.nodes.clone(), ..Given::default() };
                self.store.write_given_devices(&self.name, &given)?;
            }
        }
        self.state.notes.extend(started.notes.iter().cloned());
        self.state.network = network.attached.clone();
        self.state.notes.extend(network.attached.iter().flat_map(|attached| attached.notes.clone()));
        self.state.init = started.init.pid.as_raw_nonzero().get();
        self.state.init_started = process::started(started.init.pid).unwrap_or_default();
        if cached == Some(true) {
            self.cached(cache::offer(&self.store, &self.name, started.init.pidfd.as_fd()));
        }
        self.record_state(Phase::Running, What::Running, None)?;
        Ok(started)
    }

    /// To be without the package cache is no reason not to start.
    fn cached<T>(&mut self, done: Result<T>) -> Option<T> {
        done.map_err(|e| self.state.notes.push(format!("the package cache is not used: {e}"))).ok()
    }

    /// What the plan says that commands in the running container need to know again.
    fn record_confinement(&mut self, plan: &Plan) -> Result<()> {
        self.store.forget_filter(&self.name);
        self.state.capabilities = Capabilities::of(self.document.config()).0;
        for step in &plan.steps {
            match step {
                Step::Guest(GuestStep::Filter(program)) => self.store.write_filter(&self.name, &program.to_bytes())?,
                Step::Guest(GuestStep::Label { label, .. }) => self.state.label = Some(label.clone()),
                _ => {}
            }
        }
        self.store.write_running(&self.name, &self.document)
    }

    fn record_state(&mut self, phase: Phase, what: What, detail: Option<String>) -> Result<()> {
        self.state.phase = phase;
        self.store.write_run_state(&self.name, &self.state)?;
        event::tell(&self.store, &self.name, what, detail);
        Ok(())
    }

    /// Where systemd owns the cgroup tree, a scope is asked of it; inside, this process and the container are
    /// in groups of their own, since a group that hands controllers on may have no processes.
    fn enter_scope(&mut self, unit: &str) -> Result<()> {
        const DEADLINE: Duration = Duration::from_secs(20);
        let me = self.state.keeper as u32;
        let description = format!("Container {}", self.name);
        let scope = Scope { unit, slice: "lazaret.slice", description: &description, pids: &[me], properties: &[] };
        let manager = Manager::system();
        let path = systemd::start_scope(&manager, &scope, DEADLINE).or_else(|e| match e.what() {
            // A scope that a dead keeper left.
            lazaret_base::Kind::Exists => {
                systemd::stop_unit(&manager, unit, DEADLINE)?;
                systemd::start_scope(&manager, &scope, DEADLINE)
            }
            _ => Err(e),
        })?;
        self.state.group.base = path.trim_start_matches('/').to_owned();
        self.store.write_run_state(&self.name, &self.state)?;
        let mine = self.host.cgroups.v2.join(&self.state.group.base).join("keeper");
        cgroup::make(&mine)?;
        cgroup::write(&mine.join("cgroup.procs"), "0").context("moving the keeper into a group of its own")
    }

    /// Keeps a started container until its end, through reboots from inside.
    pub(crate) fn keep(&mut self, started: Started) -> Result<Ended> {
        let mut started = started;
        let mut clients = Vec::new();
        loop {
            // Whoever waited for the start has been answered.
            started.outgrown.clear();
            let ended = self.attend(&started, &mut clients)?;
            drop(started);
            let reboot = ended == Ended::Killed(Signal::HUP.as_raw());
            // A full disk must not keep it from giving everything back.
            let _ = self.record_state(Phase::Stopping, What::Stopping, Some(in_words(ended)));
            if !reboot {
                self.give_back()?;
                return Ok(ended);
            }
            let network = self.network.take().map(Connection::begin_end);
            clear_group(&self.state.group, &self.host.cgroups)?;
            network.into_iter().for_each(Ending::finish);
            // What was changed while it ran holds from now on.
            self.document = self.store.document(&self.name)?;
            started = self.start(None, None, None)?;
        }
    }

    /// Waits on events until process 1 has ended. Clients stay connected beyond that.
    fn attend(&mut self, started: &Started, clients: &mut Vec<Client>) -> Result<Ended> {
        let signals = signal::watch(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()])?;
        let log = Log::open(&self.store, &self.name, self.document.config().console_log.bytes());
        // A kernel that tells nothing has no devices that come.
        let uevents = device::listen().ok();
        // Something may have come while nobody listened.
        let mut behind = uevents.is_some() && !self.document.config().devices.is_empty();
        let mut console = Console::new(&started.console, log, std::mem::take(clients))?;
        loop {
            let mut fds = vec![
                PollFd::new(&started.init.pidfd, PollFlags::IN),
                PollFd::new(&signals, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
            ];
            let mut fixed = fds.len();
            let told_at = uevents.as_ref().map(|uevents| {
                fds.push(PollFd::new(uevents, PollFlags::IN));
                fixed += 1;
                fixed - 1
            });
            let network_at = fixed;
            if let Some(line) = self.network.as_ref().and_then(Connection::line) {
                fds.push(PollFd::from_borrowed_fd(line, PollFlags::IN));
                fixed += 1;
            }
            console.watch(&mut fds);
            let due = self.network.as_ref().and_then(Connection::until_due);
            behind = behind && !device::follow(&self.store, &self.name);
            let again = behind.then_some(DEVICES_AGAIN);
            match poll(&mut fds, sooner(sooner(console.held_up(), due), again).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("waiting for events"),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            console.serve(&ready[fixed..]);
            if !ready[2].is_empty() {
                console.accept(self.listener.as_fd());
            }
            if let (Some(uevents), Some(at)) = (&uevents, told_at)
                && !ready[at].is_empty()
            {
                behind |= device::heard(uevents.as_fd());
            }
            if (fixed > network_at && !ready[network_at].is_empty()) || due.is_some() {
                self.network.iter_mut().for_each(|network| network.mend(&self.store, started.init.pid));
            }
            if !ready[1].is_empty() && signal::next(signals.as_fd())?.is_some() {
                // The host goes down, or somebody wants us gone: the container is asked to end first.
                stop::in_background(&self.store, &self.name)?;
            }
            if !ready[0].is_empty() {
                *clients = console.drain();
                return Ended::of(started.init.pidfd.as_fd());
            }
        }
    }

    /// What a keeper that waits for its own command sees to beside it.
    pub(crate) fn beside(&mut self, init: Pid) -> Mending<'_> {
        Mending { network: self.network.as_mut(), store: &self.store, init }
    }

    /// Gives back everything that the run used. Does as much as it can, and says what it could not.
    pub(crate) fn give_back(&mut self) -> Result<()> {
        // netd is at it meanwhile.
        let network = self.network.take().map(Connection::begin_end);
        gate::end(&self.store, &self.name);
        let cleared = clear_group(&self.state.group, &self.host.cgroups);
        network.into_iter().for_each(Ending::finish);
        if self.record.ephemeral {
            event::tell(&self.store, &self.name, What::Stopped, None);
            // It goes first: if this is as far as we get, the next command finds what is left of the run, and it.
            let removed = create::remove(&self.store, &self.name);
            return cleared.and(removed).and(self.store.forget_run(&self.name));
        }
        // What stays is taken away by whoever takes its lock next.
        let _ = cache::withdraw(&self.store, &self.name, &self.record);
        let forgotten = self.store.forget_run(&self.name);
        event::tell(&self.store, &self.name, What::Stopped, None);
        cleared.and(forgotten)
    }
}

/// The connection to the network, while its keeper waits for something else.
pub(crate) struct Mending<'a> {
    network: Option<&'a mut Connection>,
    store: &'a Store,
    init: Pid,
}

impl Beside for Mending<'_> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().and_then(|network| network.line())
    }

    fn until_due(&self) -> Option<Duration> {
        self.network.as_ref().and_then(|network| network.until_due())
    }

    fn see_to_it(&mut self) {
        if let Some(network) = &mut self.network {
            network.mend(self.store, self.init);
        }
    }
}

/// A command that is at work on the devices has done before long.
const DEVICES_AGAIN: Duration = Duration::from_millis(50);

/// The shorter of two times to wait.
fn sooner(one: Option<Timespec>, other: Option<Duration>) -> Option<Timespec> {
    let other = other.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) });
    match (one, other) {
        (Some(one), Some(other)) => Some(std::cmp::min_by_key(one, other, |time| (time.tv_sec, time.tv_nsec))),
        (one, other) => one.or(other),
    }
}

fn in_words(ended: Ended) -> String {
    match ended {
        Ended::Exited(status) => format!("status {status}"),
        Ended::Killed(1) => "reboot".into(),
        Ended::Killed(2) => "power-off".into(),
        Ended::Killed(signal) => format!("signal {signal}"),
    }
}

//! A plan carried out: the host drives, the stage and the guest take their turns.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Error, Result, error};
use lazaret_sys::process::{Child, Cloned, clone, close_copies, exit_now, namespace};
use lazaret_sys::signal;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, getppid, kill_process, waitid};

pub use crate::perform::guest::RESOLVER_MARK;
pub use crate::perform::host::network_of;
use crate::perform::{host, stage};
use crate::plan::{Api, Plan, Side, Step};
use crate::turn::{End, Fds, Line, Slot};

/// A process to kill at a chosen step, so that tests can see what is left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inject {
    /// Index into the plan's steps.
    pub step: usize,
    /// Whom to kill.
    pub victim: Victim,
}

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The process that carries out the plan.
    Keeper,
    /// Its parent: the command that the user typed.
    Command,
    /// The process that is about to be init.
    Guest,
    /// Whichever process carries out the step.
    Itself,
}

/// Who connects a container's network while the start goes on.
pub trait Connect {
    /// Has the connection of this network namespace begun, and does not wait for it.
    fn begin(&mut self, network: OwnedFd) -> Result<()>;
    /// Waits until the network can be used. Returns what `/etc/resolv.conf` is to say; nothing if that is not up to us.
    fn finish(&mut self) -> Result<String>;
}

/// What [`start`] is given beside the plan.
pub struct Start<'a> {
    /// All that will be done.
    pub plan: &'a Plan,
    /// The host's id for the container's root; 0 for a privileged container.
    pub owner: u32,
    /// Standard input, output and error for a program that inherits the caller's.
    pub stdio: Option<[BorrowedFd<'a>; 3]>,
    /// Descriptors that are the caller's alone, such as locks: while a copy is open in another process, a lock is held.
    pub private: Vec<BorrowedFd<'a>>,
    /// For a plan with a network that is not the container's own alone.
    pub network: Option<&'a mut dyn Connect>,
    /// For tests.
    pub inject: Option<Inject>,
}

/// A started container.
#[derive(Debug)]
pub struct Started {
    /// Process 1.
    pub init: Child,
    /// Our end of its console.
    pub console: OwnedFd,
    /// Mount namespaces that nobody is in any more. Their end takes the kernel a while, which is better spent when
    /// nobody waits: drop them then.
    pub outgrown: Vec<OwnedFd>,
    /// What could not be done as wished, one sentence each.
    pub notes: Vec<String>,
    /// Nodes of the host's devices that it has.
    pub nodes: Vec<crate::hardware::Node>,
}

/// What the host's steps work with; the other sides inherit a copy at their birth.
pub struct HostSide<'a> {
    plan: &'a Plan,
    at: usize,
    keeper: Pid,
    inject: Option<Inject>,
    pub(crate) fds: Fds,
    pub(crate) owner: u32,
    pub(crate) guest: Option<Child>,
    pub(crate) init: BorrowedFd<'a>,
    pub(crate) stdio: Option<[BorrowedFd<'a>; 3]>,
    pub(crate) private: Vec<BorrowedFd<'a>>,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
    /// Nodes of the host's devices that were made.
    pub(crate) nodes: Vec<crate::hardware::Node>,
    pub(crate) network: Option<&'a mut dyn Connect>,
    guest_line: (Option<Line>, Option<Line>),
    stage: Option<(Child, Line)>,
}

/// Carries the plan out. On failure every process made is dead and waited for; cgroups are left to the
/// caller, who has recorded them.
pub fn start(start: Start<'_>) -> Result<Started> {
    let init = our_init()?;
    let (ours, theirs) = Line::pair()?;
    let mut side = HostSide {
        plan: start.plan,
        at: 0,
        keeper: getpid(),
        inject: start.inject,
        fds: Fds::default(),
        owner: start.owner,
        guest: None,
        init: init.as_fd(),
        stdio: start.stdio,
        private: start.private,
        notes: Vec::new(),
        nodes: Vec::new(),
        // By a coercion: what is borrowed for longer is borrowed for this long, too.
        network: start.network.map(|connect| connect as &mut dyn Connect),
        guest_line: (Some(ours), Some(theirs)),
        stage: None,
    };
    let driven = drive(&mut side);
    if let Some((stage, _line)) = side.stage.take() {
        end(&stage);
    }
    match (driven, side.guest.take()) {
        (Ok(()), Some(init)) => match side.fds.take(Slot::Console) {
            Some(console) => {
                let outgrown = std::iter::from_fn(|| side.fds.take(Slot::Outgrown)).collect();
                let (notes, nodes) = (std::mem::take(&mut side.notes), std::mem::take(&mut side.nodes));
                Ok(Started { init, console, outgrown, notes, nodes })
            }
            None => {
                end(&init);
                Err(error("the plan opens no console"))
            }
        },
        (driven, guest) => {
            if let Some(guest) = guest {
                end(&guest);
            }
            Err(driven.err().unwrap_or_else(|| error("the plan makes no process")))
        }
    }
}

/// Runs turn after turn until the guest has become another program.
fn drive(side: &mut HostSide<'_>) -> Result<()> {
    let total = side.plan.steps.len();
    while let Some(step) = side.plan.steps.get(side.at) {
        let turn = side.turn(step.side(), side.at);
        match step.side() {
            Side::Host => host_turn(side, turn.clone())?,
            Side::Stage => {
                raise_stage(side)?;
                let slots: Vec<_> =
                    [Slot::UserNs].into_iter().chain((0..Api::ALL.len() as u8).map(Slot::Api)).collect();
                let (stage, line) = side.stage.as_ref().ok_or_else(|| error("there is no stage"))?;
                other_turn(line, &mut side.fds, &slots, turn.end == total)
                    .map_err(|e| e.tell(side.plan, turn.start, "the stage", &stage.pidfd))?;
                side.fds.forget_mounts();
            }
            Side::Guest => {
                let line = side.guest_line.0.as_ref().ok_or_else(|| error("there is no guest"))?;
                let guest = side.guest.as_ref().ok_or_else(|| error("there is no guest"))?;
                let done = other_turn(line, &mut side.fds, &[Slot::Mounts, Slot::Resolver], turn.end == total);
                if let Err(Trouble::Step(index, _)) = &done {
                    side.inject_for_guest(*index);
                }
                done.map_err(|e| e.tell(side.plan, turn.start, "the guest", &guest.pidfd))?;
            }
        }
        side.at = turn.end;
    }
    Ok(())
}

fn host_turn(side: &mut HostSide<'_>, turn: std::ops::Range<usize>) -> Result<()> {
    for index in turn {
        side.inject(index);
        let Some(Step::Host(step)) = side.plan.steps.get(index) else { continue };
        host::perform(step, side).map_err(|e| failed(side.plan, index, e))?;
        if matches!(step, crate::plan::HostStep::Clone { .. }) {
            // The guest's end is the guest's alone, or its death would go unheard.
            side.guest_line.1 = None;
        }
    }
    Ok(())
}

/// Why another side's turn failed.
enum Trouble {
    Step(usize, Error),
    Gone,
    Line(Error),
}

impl Trouble {
    fn tell(self, plan: &Plan, first: usize, who: &str, pidfd: &OwnedFd) -> Error {
        match self {
            Trouble::Step(index, e) => failed(plan, index, e),
            Trouble::Line(e) => e.context(format!("talking to {who}")),
            Trouble::Gone => {
                let how = how_it_ended(pidfd).unwrap_or_else(|| "ended".into());
                error(format!("{who} {how} in the turn that begins with step {} of {}", first + 1, plan.steps.len()))
                    .hint("if the kernel's memory ran out, `dmesg` says so; otherwise please report it")
            }
        }
    }
}

/// Gives the turn away and waits for its end. The last turn is over when the line closes by execution, which the
/// other side has announced: one that closes before is a death.
fn other_turn(line: &Line, fds: &mut Fds, slots: &[Slot], last: bool) -> Result<(), Trouble> {
    let present: Vec<_> = slots.iter().copied().filter(|slot| fds.get(*slot).is_ok()).collect();
    match line.begin(&present, fds) {
        // Its end is closed: what it said before it went is still to be heard.
        Err(e) if e.errno() != Some(rustix::io::Errno::PIPE) => return Err(Trouble::Line(e)),
        _ => {}
    }
    let mut announced = false;
    loop {
        match line.end(fds).map_err(Trouble::Line)? {
            End::Done if last => announced = true,
            End::Done => return Ok(()),
            End::Failed(index, e) => return Err(Trouble::Step(index, e)),
            End::Gone if announced => return Ok(()),
            End::Gone => return Err(Trouble::Gone),
        }
    }
}

/// "step 7 of 23: mounting proc on `/proc`: operation not permitted".
fn failed(plan: &Plan, index: usize, e: Error) -> Error {
    let what = plan.steps.get(index).map_or_else(String::new, |step| step.to_string());
    let number = index + 1;
    let e = if e.to_string().starts_with(&what) { e } else { e.context(what) };
    e.context(format!("step {number} of {}", plan.steps.len()))
}

/// Makes the stage process at its first turn.
fn raise_stage(side: &mut HostSide<'_>) -> Result<()> {
    if side.stage.is_some() {
        return Ok(());
    }
    let (ours, theirs) = Line::pair()?;
    match clone(namespace::MOUNT, None).context("making the stage")? {
        Cloned::Child => {
            drop(ours);
            // The stage must not keep the guest's line open.
            side.guest_line = (None, None);
            close_copies(&side.private);
            stage::live(side, &theirs)
        }
        Cloned::Parent(child) => {
            // The stage leaves it when it seals the tree.
            let outgrown = host::mounts_of(child.pid)?;
            side.fds.put(Slot::Outgrown, outgrown);
            side.stage = Some((child, ours));
            Ok(())
        }
    }
}

impl HostSide<'_> {
    /// The next turn of `side`, not before `from`, as a range of the plan's steps.
    pub(crate) fn turn(&self, side: Side, from: usize) -> std::ops::Range<usize> {
        let steps = &self.plan.steps;
        let start = (from..steps.len()).find(|at| steps[*at].side() == side).unwrap_or(steps.len());
        let end = (start..steps.len()).find(|at| steps[*at].side() != side).unwrap_or(steps.len());
        start..end
    }

    /// The plan, for the sides that hold a copy of it.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.plan.steps
    }

    pub(crate) fn guest_pid(&self) -> Result<Pid> {
        Ok(self.guest.as_ref().ok_or_else(|| error("there is no guest yet"))?.pid)
    }

    pub(crate) fn stage_pid(&self) -> Result<Pid> {
        Ok(self.stage.as_ref().ok_or_else(|| error("there is no stage yet"))?.0.pid)
    }

    /// In the new process: keeps only the guest's end of the line.
    pub(crate) fn become_guest(&mut self) -> Line {
        let line = self.guest_line.1.take();
        self.guest_line.0 = None;
        close_copies(&self.private);
        line.unwrap_or_else(|| exit_now(1))
    }

    /// For tests: kills whom the test wants dead at this step.
    pub(crate) fn inject(&self, index: usize) {
        let Some(Inject { step, victim }) = self.inject else { return };
        if step != index {
            return;
        }
        let pid = match victim {
            Victim::Keeper => Some(self.keeper),
            Victim::Itself => Some(getpid()),
            Victim::Command => getppid().filter(|_| getpid() == self.keeper),
            Victim::Guest => self.guest.as_ref().map(|guest| guest.pid),
        };
        if let Some(pid) = pid {
            // The victim may have been killed at an earlier turn's same step.
            let _ = kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    /// The same in the guest, for whom nobody outside has a number, and who as process 1 can't kill itself.
    pub(crate) fn inject_in_guest(&self, index: usize, line: &Line) {
        match self.inject {
            Some(Inject { step, victim: Victim::Guest | Victim::Itself }) if step == index => exit_now(137),
            Some(Inject { step, victim: Victim::Keeper }) if step == index => {
                // The keeper sees to it, and is gone when the line closes.
                let _ = line.failed(index, error("the keeper is to be killed"));
                let _ = line.wait(&mut Fds::default());
            }
            _ => {}
        }
    }

    /// The keeper's part of it.
    fn inject_for_guest(&self, index: usize) {
        if self.inject == Some(Inject { step: index, victim: Victim::Keeper }) {
            self.inject(index);
        }
    }
}

impl Fds {
    /// What has been attached is nobody's to attach again.
    fn forget_mounts(&mut self) {
        for index in 0..Api::ALL.len() as u8 {
            drop(self.take(Slot::Api(index)));
        }
    }
}

/// Ends a process of ours that may have ended already, and waits for it.
fn end(child: &Child) {
    // ESRCH: it has ended and waits to be waited for.
    let _ = signal::send(child.pidfd.as_fd(), 9);
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// In words, without taking the status away from whoever waits later.
fn how_it_ended(pidfd: &OwnedFd) -> Option<String> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(WaitId::PidFd(pidfd.as_fd()), options).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(format!("ended with status {code}")),
        (_, Some(signal)) => Some(format!("was killed by signal {signal}")),
        _ => None,
    }
}

/// Our init as a sealed file that no container can change and that leads to no file of the host.
fn our_init() -> Result<OwnedFd> {
    sealed_file("lazaret-init", crate::init_image::INIT)
}

/// A file in memory that nobody can change any more (memfd_create(2)).
pub fn sealed_file(name: &str, bytes: &[u8]) -> Result<OwnedFd> {
    let making = || format!("making the file `{name}` in memory");
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux 6.3 wants to hear that the file is meant to be executed; older ones refuse the word.
    let file =
        memfd_create(name, flags | MemfdFlags::EXEC).or_else(|_| memfd_create(name, flags)).with_context(making)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&file, rest).with_context(making)?;
        rest = &rest[n..];
    }
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
        .with_context(making)?;
    Ok(file)
}

/// A sealed copy of the running program: executed from it, a process leads to no file of the host.
pub fn sealed_self() -> Result<OwnedFd> {
    let bytes = std::fs::read("/proc/self/exe").context("reading our own program")?;
    sealed_file("lazaret", &bytes)
}

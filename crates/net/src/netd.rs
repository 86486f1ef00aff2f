//! netd: the one process that owns the bridge, the links, the firewall's tables and the addresses of an installation.
//!
//! One thread waits for what can happen and does it, one thing after another; containers that ask at the same time
//! are connected together. What it makes is recorded before it is made ([`record`]), so that a netd that follows on
//! one that was killed finds it: containers whose keepers live stay connected, and whatever else is there goes.

mod answering;
mod attach;
mod clients;
mod faults;
mod forwarding;
mod mdns;
mod ports;
mod record;
mod report;
mod up;
mod upstream;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Lock, Result, error};
use lazaret_config::{Name, Network as Settings};
use lazaret_sys::signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::Signal;

pub use record::{Numbers, Place};

use crate::lease::Leases;
use crate::netlink::Socket;
use crate::wire::{self, Answer, Ask, Attach, Request};
use attach::Attachment;
use clients::{Clients, Id, Said};
use report::{Asked, Pending};
use up::Up;
use upstream::Upstream;

/// What netd asks of whoever made it a process.
pub struct Hooks<'a> {
    /// The program that answers DNS and DHCP, with its control line as its standard input.
    pub responder: &'a dyn Fn() -> Command,
    /// Whether there is a container of this name.
    pub exists: &'a dyn Fn(&str) -> bool,
    /// Is told when the bridge is there: the host may want to ask us for names. What could not be done comes back.
    pub host_names: &'a dyn Fn(&HostNames) -> Vec<String>,
    /// Whether the socket on which netd is called is systemd's, and stays.
    pub socket_stays: bool,
}

/// How the host can resolve the names of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostNames {
    /// The bridge's index.
    pub index: u32,
    /// Who answers.
    pub servers: [IpAddr; 2],
    /// The zone, without dots around it.
    pub domain: &'static str,
}

/// The addresses of an installation's bridge, whether it is there or not; `None` before it was first made.
pub fn numbers(place: &Place) -> Result<Option<Numbers>> {
    record::read(&place.numbers())
}

/// The zone of the containers' names.
pub const DOMAIN: &str = "lazaret";

/// How long clients have to hear what was said to them last, when netd ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// All of netd.
struct Netd<'a> {
    place: Place,
    hooks: &'a Hooks<'a>,
    host: Socket,
    clients: Clients,
    leases: Leases,
    upstream: Upstream,
    /// The bridge with all that belongs to it, once somebody needed it.
    up: Option<Up>,
    attached: BTreeMap<Name, Attachment>,
    /// Addresses whose connections are to be forgotten.
    stale: BTreeSet<IpAddr>,
    /// Groups that are parted.
    partition: Vec<Vec<Name>>,
    /// Checks that wait for a name.
    checks: Vec<Pending>,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    /// Everything stays as it is.
    Leave,
    /// Nothing is left: nobody calls any more, either.
    Vanish,
}

/// Serves until it is asked to end. `listener` is the socket of [`wire::listen_in`], or one that systemd made.
///
/// # Errors
///
/// Where another netd of this installation does not end, or the kernel refuses what everything is built on.
pub fn serve(place: Place, listener: OwnedFd, hooks: &Hooks<'_>) -> Result<()> {
    place.prepare()?;
    // One at a time: one that is about to end has our place until then.
    let _alone = Lock::wait(&place.run.join("alive"))?;
    raise_descriptor_limit();
    let flags = rustix::fs::fcntl_getfl(&listener)?;
    rustix::fs::fcntl_setfl(&listener, flags | rustix::fs::OFlags::NONBLOCK)?;
    let signals = signal::watch(&[Signal::TERM.as_raw(), Signal::INT.as_raw(), Signal::HUP.as_raw()])?;
    let mut netd = Netd {
        host: Socket::route().context("opening a netlink socket")?,
        clients: Clients::default(),
        leases: Leases::open(&place.leases())?,
        upstream: Upstream::follow()?,
        up: None,
        attached: BTreeMap::new(),
        stale: BTreeSet::new(),
        partition: Vec::new(),
        checks: Vec::new(),
        place,
        hooks,
    };
    // What can't be gone on with is told to whoever asks for something.
    let mended = netd.take_over();
    let then = netd.live(&listener, &signals, mended.err());
    netd.forget_stale();
    // The kernel closes them when this process has ended: who waits for that hears it by its connection.
    std::mem::forget(std::mem::take(&mut netd.clients));
    match then? {
        Then::Vanish if !netd.hooks.socket_stays => {
            let dir = rustix::fs::open(
                &netd.place.run,
                rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )?;
            wire::unlisten(dir.as_fd());
            Ok(())
        }
        Then::GoOn | Then::Leave | Then::Vanish => Ok(()),
    }
}

impl Netd<'_> {
    /// The loop.
    fn live(&mut self, listener: &OwnedFd, signals: &OwnedFd, mut trouble: Option<Error>) -> Result<Then> {
        loop {
            let heard = self.wait(listener, signals)?;
            if heard.signal {
                return Ok(Then::Leave);
            }
            if !self.stale.is_empty() && heard.said.is_empty() && heard.dead.is_empty() {
                self.forget_stale();
            }
            if heard.tables || self.up.as_ref().is_some_and(|up| up.torn.is_some()) {
                self.tables_touched();
            }
            if heard.uplinks {
                self.host_changed();
            }
            if heard.upstream && self.upstream.changed() {
                self.settings_changed();
            }
            if heard.responder {
                self.hear_responder();
            }
            if heard.mdns {
                self.hear_mdns();
            }
            self.clean_up_after_the_dead(&heard.dead);
            self.keep_responder_running();
            self.refresh_names();
            self.checks_expired();
            match self.serve_clients(heard.said, &mut trouble) {
                Then::GoOn => {}
                then => {
                    self.clients_hear_last_words();
                    return Ok(then);
                }
            }
        }
    }

    /// Waits until something happens.
    fn wait(&mut self, listener: &OwnedFd, signals: &OwnedFd) -> Result<Heard> {
        let due = if self.stale.is_empty() { self.due() } else { Some(Instant::now()) };
        let timeout = due.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout =
            timeout.map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        let keepers: Vec<_> = self.attached.iter().filter(|(_, one)| one.client.is_none()).collect();
        let mut fds = vec![
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&self.upstream, PollFlags::IN),
        ];
        let up = self.up.as_ref();
        let watch_at = up.map(|up| {
            fds.push(PollFd::new(&up.watch, PollFlags::IN));
            fds.len() - 1
        });
        let tables_at = up.map(|up| {
            fds.push(PollFd::new(&up.guard, PollFlags::IN));
            fds.len() - 1
        });
        let mdns_at = up.map(|up| {
            fds.push(PollFd::new(&up.mdns, PollFlags::IN));
            fds.len() - 1
        });
        let responder_at = up.and_then(|up| up.answering.watched()).map(|(fd, flags)| {
            fds.push(PollFd::from_borrowed_fd(fd, flags));
            fds.len() - 1
        });
        let keepers_at = fds.len();
        fds.extend(keepers.iter().map(|(_, one)| PollFd::new(&one.keeper, PollFlags::IN)));
        let clients_at = fds.len();
        fds.extend(self.clients.watched().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for events"),
        }
        let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        let is = |at: Option<usize>| at.is_some_and(|at| !ready[at].is_empty());
        let dead = keepers.iter().zip(&ready[keepers_at..]).filter(|(_, ready)| !ready.is_empty());
        let dead = dead.map(|((name, _), _)| (*name).clone()).collect();
        let said = self.clients.served(&ready[clients_at..]);
        if !ready[0].is_empty() {
            self.clients.accept(listener.as_fd());
        }
        Ok(Heard {
            signal: !ready[1].is_empty() && signal::next(signals.as_fd())?.is_some(),
            upstream: !ready[2].is_empty(),
            uplinks: is(watch_at),
            tables: is(tables_at),
            responder: is(responder_at),
            mdns: is(mdns_at),
            dead,
            said,
        })
    }

    /// When something is to be done unasked.
    fn due(&self) -> Option<Instant> {
        let up = self.up.as_ref()?;
        let checks = self.checks.iter().map(|check| check.until).min();
        [up.answering.due(), up.names.due(), up.torn, checks].into_iter().flatten().min()
    }

    /// Goes through what clients have said: first those who go, then those who want to be connected, all at once.
    fn serve_clients(&mut self, said: Vec<(Id, Said)>, trouble: &mut Option<Error>) -> Then {
        let (mut leaving, mut coming, mut asking) = (Vec::new(), Vec::new(), Vec::new());
        for (id, said) in said {
            match said {
                Said::Gone => leaving.push((id, false)),
                Said::Nonsense(e) => self.clients.say(id, &Answer::Failed(e.into())),
                Said::Request(Request { ask: Ask::Leave, .. }, _) => {
                    self.clients.say(id, &Answer::Done(Vec::new()));
                    return Then::Leave;
                }
                Said::Request(Request { version, .. }, _) if version != wire::VERSION => {
                    self.clients.say(id, &Answer::OtherVersion(wire::VERSION));
                }
                Said::Request(Request { ask: Ask::Detach, .. }, _) => leaving.push((id, true)),
                Said::Request(Request { ask: Ask::Attach(attach), .. }, netns) => coming.push((id, attach, netns)),
                Said::Request(Request { ask, .. }, _) => asking.push((id, ask)),
            }
        }
        if !coming.is_empty() && trouble.is_some() {
            // Perhaps what was in the way is gone.
            *trouble = self.take_over().err();
        }
        self.detach_clients(&leaving);
        self.attach_clients(coming);
        for (id, ask) in asking {
            match self.answer(id, ask) {
                Ok(Then::GoOn) => {}
                Ok(then) => return then,
                Err(e) => self.clients.say(id, &Answer::Failed(e.into())),
            }
        }
        Then::GoOn
    }

    /// Everything that is asked for but connections.
    fn answer(&mut self, id: Id, ask: Ask) -> Result<Then> {
        match ask {
            Ask::Change { name, settings } => {
                let notes = self.change(&parsed(&name)?, *settings)?;
                self.clients.say(id, &Answer::Done(notes));
            }
            Ask::Show { name } => self.show(id, name.as_deref().map(parsed).transpose()?.as_ref())?,
            Ask::Check { name, host, port, udp } => self.check(id, &parsed(&name)?, Asked { host, port, udp })?,
            Ask::Impair { name, to, impairment } => {
                let to = to.as_deref().map(parsed).transpose()?;
                self.impair(&parsed(&name)?, to, impairment)?;
                self.clients.say(id, &Answer::Done(Vec::new()));
            }
            Ask::Partition(groups) => {
                let parse = |group: &Vec<String>| group.iter().map(|name| parsed(name)).collect();
                let groups = groups.iter().map(parse).collect::<Result<Vec<Vec<Name>>>>()?;
                self.part(groups)?;
                self.clients.say(id, &Answer::Done(Vec::new()));
            }
            Ask::Heal => {
                self.heal()?;
                self.clients.say(id, &Answer::Done(Vec::new()));
            }
            Ask::Up { subnet, prefix } => {
                let notes = self.go_up(subnet.as_deref(), prefix.as_deref())?;
                self.clients.say(id, &Answer::Done(notes));
            }
            Ask::Down { force } => {
                let notes = self.go_down(force)?;
                self.clients.say(id, &Answer::Done(notes));
                return Ok(Then::Vanish);
            }
            Ask::Attach(_) | Ask::Detach | Ask::Leave => return Err(error("out of turn")),
        }
        Ok(Then::GoOn)
    }

    /// What was said last is in the sockets' buffers, which their readers keep; only who has not read for long loses.
    fn clients_hear_last_words(&mut self) {
        let end = Instant::now() + LAST_WORDS;
        while self.clients.has_waiting() && Instant::now() < end {
            let mut fds: Vec<_> =
                self.clients.watched().map(|(fd, _)| PollFd::from_borrowed_fd(fd, PollFlags::OUT)).collect();
            let timeout = Timespec { tv_sec: 0, tv_nsec: LAST_WORDS.subsec_nanos().into() };
            if poll(&mut fds, Some(&timeout)).is_err() {
                break;
            }
            drop(fds);
            self.clients.flush();
        }
    }
}

/// What has happened.
struct Heard {
    signal: bool,
    upstream: bool,
    uplinks: bool,
    tables: bool,
    responder: bool,
    mdns: bool,
    dead: Vec<Name>,
    said: Vec<(Id, Said)>,
}

fn parsed(name: &str) -> Result<Name> {
    name.parse()
}

/// A connection for each container, and a socket for each published port.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer, fewer containers can be connected, which is said when it comes to that.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The request of a keeper, with the network namespace that belongs to it.
type Coming = (Id, Attach, Option<OwnedFd>);

/// Whether other settings take something away that others gave.
fn narrows(before: &Settings, after: &Settings) -> bool {
    let lost = |was: bool, is: bool| was && !is;
    lost(before.internet, after.internet)
        || lost(before.lan, after.lan)
        || lost(before.host, after.host)
        || before.peers.iter().any(|peer| !after.peers.contains(peer))
        || before.allow.iter().any(|one| !after.allow.contains(one))
        || before.publish.iter().any(|one| !after.publish.contains(one))
        || after.deny.iter().any(|one| !before.deny.contains(one))
}

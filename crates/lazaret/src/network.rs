//! The network of a container, as its keeper and the commands see it: whom to ask, and what for.
//!
//! All of it is netd's work (see `lazaret_net`). It is begun by whoever needs it first and finds none.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::{Config, Mode, Name, Network as Settings};
use lazaret_net::lease::{self, Lease};
use lazaret_net::netd;
use lazaret_net::nft::Nft;
pub use lazaret_net::probe::{self, Proof};
use lazaret_net::responder::Identity;
use lazaret_net::wire::{self, Answer, Ask, Attach, Attached, Line};
pub use lazaret_net::wire::{Attachment, Impairment, Network, Verdict};
use lazaret_runtime::plan;
use lazaret_runtime::spawn::{Connect, RESOLVER_MARK, network_of};
use lazaret_runtime::systemd::{self, Manager, Scope};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::Serialize;

use crate::exec::Running;
use crate::process;
use crate::store::Store;

/// How long netd may take for what it is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// When a keeper looks again whether a netd can be begun that could not be.
const CALL_AGAIN: Duration = Duration::from_secs(5);

/// Which of the plan's networks a configuration asks for.
pub(crate) fn of(config: &Config) -> plan::Network {
    match config.network.mode {
        Mode::None => plan::Network::Alone,
        Mode::Host => plan::Network::Host,
        Mode::Internet | Mode::Bridge(_) | Mode::Macvlan(_) | Mode::Ipvlan(_) | Mode::Phys(_) => {
            plan::Network::Connected
        }
    }
}

/// A connection to netd, which is begun if there is none.
pub fn call(store: &Store) -> Result<Line> {
    let dir = store.netd_dir()?;
    match Line::call(dir.as_fd()) {
        Err(e) if is_absent(&e) => begin_netd(store, dir.as_fd()),
        other => other.context("calling netd"),
    }
}

/// A connection to the netd that runs; `None` if none does.
pub fn call_running(store: &Store) -> Result<Option<Line>> {
    match Line::call(store.netd_dir()?.as_fd()) {
        Ok(line) => Ok(Some(line)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(e.context("calling netd")),
    }
}

fn is_absent(e: &Error) -> bool {
    matches!(e.errno(), Some(Errno::NOENT | Errno::CONNREFUSED))
}

/// Starts our own program anew as netd, on a socket that is there from now on: who calls need not wait for it.
fn begin_netd(store: &Store, dir: BorrowedFd<'_>) -> Result<Line> {
    let _lock = store.lock_netd_begin()?;
    // Somebody else was faster.
    match Line::call(dir) {
        Err(e) if is_absent(&e) => {}
        other => return other.context("calling netd"),
    }
    let listener = wire::listen_in(dir)?;
    if let Err(e) = process::begin_service(store, &["netd", "--detach"], listener, "netd") {
        wire::unlisten(dir);
        return Err(e);
    }
    Line::call(dir).context("calling netd")
}

/// The life of netd, as the process that [`call`] or systemd makes: the socket on which it is called is its standard
/// input. Detached, it first leaves whoever has made it. The exit status is for systemd.
pub fn netd(store: &Store, detached: bool) -> i32 {
    match live_as_netd(store, detached) {
        Ok(()) => 0,
        Err(e) => {
            // systemd's journal, or nobody, reads it.
            let _ = rustix::io::write(rustix::stdio::stderr(), format!("{e}\n").as_bytes());
            1
        }
    }
}

fn live_as_netd(store: &Store, detached: bool) -> Result<()> {
    if lazaret_sys::process::close_from(3, false).is_err() {
        return Err(error("descriptors of others can't be closed"));
    }
    if detached {
        process::leave_caller()?;
    }
    let listener = process::take_input()?;
    store.prepare()?;
    let place = store.network();
    if detached && systemd::present() {
        leave_callers_cgroup(&place.tag);
    }
    let exists = |name: &str| name.parse().is_ok_and(|name| store.exists(&name));
    let responder = || {
        let mut program = Command::new("/proc/self/exe");
        program.arg("responder");
        program
    };
    let hooks =
        netd::Hooks { responder: &responder, exists: &exists, host_names: &tell_resolved, socket_stays: !detached };
    netd::serve(place, listener, &hooks)
}

/// Has systemd-resolved ask us for names of containers, where the host uses it. What could not be done comes back.
fn tell_resolved(names: &netd::HostNames) -> Vec<String> {
    const DEADLINE: Duration = Duration::from_secs(5);
    const BUS: &str = "/run/dbus/system_bus_socket";
    // It knows the links of its own network namespace, which may not be ours.
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if !Path::new("/run/systemd/resolve").is_dir() || namespace("1") != namespace("self") {
        return Vec::new();
    }
    let told = systemd::LinkNames { index: names.index, servers: &names.servers, domain: names.domain };
    match systemd::set_link_names(Path::new(BUS), &told, DEADLINE) {
        Ok(()) => Vec::new(),
        Err(e) if e.what() == Kind::NotFound => Vec::new(),
        Err(e) => vec![format!("names of containers do not resolve on the host: {e}")],
    }
}

/// Where systemd owns the cgroups, netd is not to end with the container whose keeper has begun it.
fn leave_callers_cgroup(tag: &str) {
    const DEADLINE: Duration = Duration::from_secs(10);
    let unit = format!("lazaret_netd{tag}.scope");
    let pids = [std::process::id()];
    let description = "The network of Lazaret's containers";
    let scope = Scope { unit: &unit, slice: "lazaret.slice", description, pids: &pids, properties: &[] };
    // Without one of its own, it works all the same until that container stops; the next keeper begins another.
    let _ = systemd::start_scope(&Manager::system(), &scope, DEADLINE);
}

/// The life of the process that answers DNS and DHCP, as netd makes it. The exit status is for nobody.
pub fn responder() -> i32 {
    // Ids that no user, no service and no container has (UIDS-GIDS.md of systemd: unused).
    const NOBODY_ELSE: u32 = 0x7000_0035;
    let line = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).map_err(Error::from);
    let identity = Identity { uid: NOBODY_ELSE, gid: NOBODY_ELSE };
    match line.and_then(|line| lazaret_net::responder::serve(line, &identity)) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

/// Asks for one thing and hears that it is done. What the user should know comes back.
pub fn have_done(line: &Line, ask: Ask) -> Result<Vec<String>> {
    line.ask(ask, None)?;
    match line.hear(PATIENCE)? {
        Some(Answer::Done(notes)) => Ok(notes),
        other => Err(unexpected(other)),
    }
}

/// Asks for something that is described by several answers.
pub fn have_described(line: &Line, ask: Ask) -> Result<Vec<Answer>> {
    line.ask(ask, None)?;
    let mut all = Vec::new();
    loop {
        match line.hear(PATIENCE)? {
            Some(Answer::End) => return Ok(all),
            Some(answer @ (Answer::Network(_) | Answer::Attachment(_) | Answer::Verdict(_))) => all.push(answer),
            other => return Err(unexpected(other)),
        }
    }
}

/// Asks again if netd ended before it answered, as one does that another takes over from.
fn again_if_gone<T>(mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    const TIMES: usize = 3;
    for _ in 1..TIMES {
        match ask() {
            Err(e) if matches!(e.errno(), Some(Errno::CONNRESET | Errno::PIPE)) => {}
            other => return other,
        }
    }
    ask()
}

fn unexpected(answer: Option<Answer>) -> Error {
    match answer {
        Some(Answer::Failed(e)) => e.into(),
        Some(Answer::OtherVersion(version)) => error(format!("the netd that runs speaks version {version}, not ours"))
            .hint("have a new one take over: lazaret network restart"),
        Some(Answer::Farewell(why)) => error(why),
        Some(_) => error("netd answered something else than was asked"),
        None => {
            Error::from(Errno::CONNRESET).context("netd ended before it answered").hint("try again: a new one is begun")
        }
    }
}

/// What `lazaret network show` shows.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// The network as a whole.
    #[serde(flatten)]
    pub network: Network,
    /// Who is connected.
    pub attachments: Vec<Attachment>,
}

/// Looks at the network; `None` if no netd runs.
pub fn show(store: &Store) -> Result<Option<View>> {
    let described = || match call_running(store)? {
        Some(line) => have_described(&line, Ask::Show { name: None }).map(Some),
        None => Ok(None),
    };
    let Some(described) = again_if_gone(described)? else { return Ok(None) };
    let mut view = View { network: Network::default(), attachments: Vec::new() };
    for answer in described {
        match answer {
            Answer::Network(network) => view.network = *network,
            Answer::Attachment(attachment) => view.attachments.push(*attachment),
            _ => {}
        }
    }
    Ok(Some(view))
}

/// Looks at one container's connection; `None` if it has none.
pub fn look(store: &Store, name: &Name) -> Result<Option<Attachment>> {
    let Some(line) = call_running(store)? else { return Ok(None) };
    let answers = match have_described(&line, Ask::Show { name: Some(name.to_string()) }) {
        Err(e) if e.what() == Kind::NotFound => return Ok(None),
        other => other?,
    };
    Ok(answers.into_iter().find_map(|answer| match answer {
        Answer::Attachment(attachment) => Some(*attachment),
        _ => None,
    }))
}

/// A container's addresses.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseOf {
    /// The container.
    pub name: String,
    /// Its addresses.
    #[serde(flatten)]
    pub lease: Lease,
    /// Whether it is connected by them now.
    pub connected: bool,
}

/// The addresses of all containers that were ever connected.
pub fn leases(store: &Store) -> Result<Vec<LeaseOf>> {
    let connected: Vec<String> =
        show(store)?.into_iter().flat_map(|view| view.attachments).map(|attachment| attachment.name).collect();
    let leases = lease::list(&store.network().leases())?;
    Ok(leases.into_iter().map(|(name, lease)| LeaseOf { connected: connected.contains(&name), name, lease }).collect())
}

/// The rules in force, as nft shows them.
pub fn rules(store: &Store) -> Result<String> {
    Nft::find()?.show(&store.network().table())
}

/// Makes the bridge, of these addresses where some are given. What the user should know comes back.
pub fn up(store: &Store, subnet: Option<String>, prefix: Option<String>) -> Result<Vec<String>> {
    store.prepare()?;
    again_if_gone(|| have_done(&call(store)?, Ask::Up { subnet: subnet.clone(), prefix: prefix.clone() }))
}

/// Removes every trace of the network. A netd is begun for it, if none runs: only one knows what there is.
pub fn down(store: &Store, force: bool) -> Result<Vec<String>> {
    store.prepare()?;
    let line = call(store)?;
    let notes = have_done(&line, Ask::Down { force })?;
    // Its end is the end of the last trace.
    let _ = line.hear(PATIENCE);
    Ok(notes)
}

/// Has a new netd take over from the one that runs.
pub fn restart(store: &Store) -> Result<Vec<String>> {
    store.prepare()?;
    if let Some(line) = call_running(store)? {
        line.ask(Ask::Leave, None)?;
        while let Some(_answer) = line.hear(PATIENCE)? {}
    }
    again_if_gone(|| have_described(&call(store)?, Ask::Show { name: None })).map(|_| Vec::new())
}

/// Makes what a container sends worse; good again without an impairment.
pub fn impair(store: &Store, name: &Name, to: Option<&Name>, impairment: Option<Impairment>) -> Result<Vec<String>> {
    let ask = Ask::Impair { name: name.to_string(), to: to.map(Name::to_string), impairment };
    again_if_gone(|| have_done(&running_netd(store)?, ask.clone()))
}

/// Parts groups of containers from each other.
pub fn partition(store: &Store, groups: &[Vec<Name>]) -> Result<Vec<String>> {
    for name in groups.iter().flatten() {
        store.require(name)?;
    }
    let groups: Vec<Vec<String>> = groups.iter().map(|group| group.iter().map(Name::to_string).collect()).collect();
    again_if_gone(|| have_done(&running_netd(store)?, Ask::Partition(groups.clone())))
}

/// Ends every partition and impairment.
pub fn heal(store: &Store) -> Result<Vec<String>> {
    again_if_gone(|| have_done(&running_netd(store)?, Ask::Heal))
}

fn running_netd(store: &Store) -> Result<Line> {
    call_running(store)?.ok_or_else(|| error("no container is connected").kind(Kind::Stopped).hint("start one first"))
}

/// What is known of a way from a container to an address.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// What the policy says.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// What a packet says.
    pub proof: Proof,
}

/// Whether a container may send to a host, for each of its addresses. With `prove`, a packet is sent as the container
/// would send it.
pub fn check(
    store: &Store,
    name: &Name,
    host: &str,
    port: Option<u16>,
    udp: bool,
    prove: bool,
) -> Result<Vec<Checked>> {
    let running = crate::exec::running(store, name)?;
    let ask = Ask::Check { name: name.to_string(), host: host.to_owned(), port, udp };
    let answers = again_if_gone(|| have_described(&running_netd(store)?, ask.clone()))?;
    let init = Pid::from_raw(running.state.init).ok_or_else(|| error("its init has no number"))?;
    let network = network_of(init)?;
    let mut found = Vec::new();
    for answer in answers {
        let Answer::Verdict(verdict) = answer else { continue };
        let address = verdict.addresses.first().and_then(|address| address.parse().ok());
        let proof = match address.filter(|_| prove) {
            Some(address) => probe::send_from(network.as_fd(), address, port, udp),
            None => Proof::None,
        };
        found.push(Checked { verdict, proof });
    }
    Ok(found)
}

/// A container's connection, held by its keeper.
pub(crate) struct Connection {
    store: Store,
    line: Option<Rc<Line>>,
    /// The network namespace, until it is connected.
    network: Option<OwnedFd>,
    attach: Attach,
    mode: plan::Network,
    /// What came of it.
    pub(crate) attached: Option<Attached>,
    /// When netd is called again, after it could not be reached.
    again: Option<Instant>,
}

impl Connection {
    /// Calls netd, if the configuration needs it. Nothing is attached yet.
    pub(crate) fn new(store: &Store, name: &Name, config: &Config, ephemeral: bool) -> Result<Connection> {
        let mode = of(config);
        let line = match mode {
            plan::Network::Connected => Some(Rc::new(call(store)?)),
            plan::Network::Alone | plan::Network::Host => None,
        };
        let settings = Box::new(config.network.clone());
        let attach = Attach { name: name.to_string(), settings, ephemeral, resume: false };
        Ok(Connection { store: store.clone(), line, network: None, attach, mode, attached: None, again: None })
    }

    /// What is to be waited on beside other things: readable when netd has gone or has something to say.
    pub(crate) fn line(&self) -> Option<BorrowedFd<'_>> {
        self.line.as_deref().map(AsFd::as_fd)
    }

    /// The same for who must close its copies of the descriptor, while the connection is made use of.
    pub(crate) fn shared_line(&self) -> Option<Rc<Line>> {
        self.line.clone()
    }

    /// How long to wait at most, before [`Connection::mend`] is due.
    pub(crate) fn until_due(&self) -> Option<Duration> {
        self.again.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Keeper: netd has hung up or said something, or it is time to call again. Nothing that goes wrong here is a
    /// reason to end a container.
    pub(crate) fn mend(&mut self, store: &Store, init: Pid) {
        if let Some(line) = &self.line {
            match line.hear(Duration::ZERO) {
                Ok(Some(Answer::Farewell(_))) => {
                    self.line = None;
                    self.again = None;
                    return;
                }
                Ok(Some(_)) => return,
                Ok(None) | Err(_) => {
                    self.line = None;
                    self.again = Some(Instant::now());
                }
            }
        }
        if self.again.is_some_and(|at| at <= Instant::now()) {
            self.again = match self.resume(store, init) {
                Ok(()) => None,
                Err(_) => Some(Instant::now() + CALL_AGAIN),
            };
        }
    }

    fn resume(&mut self, store: &Store, init: Pid) -> Result<()> {
        // What was changed while it ran is what holds.
        let name: Name = self.attach.name.parse()?;
        if let Ok(config) = store.running_config(&name) {
            *self.attach.settings = config.network;
        }
        let line = call(store)?;
        let ask = Ask::Attach(Attach { resume: true, ..self.attach.clone() });
        line.ask(ask, Some(network_of(init)?.as_fd()))?;
        self.attached = Some(attached(&line)?);
        self.line = Some(Rc::new(line));
        Ok(())
    }

    fn ask(&self) -> Result<()> {
        let line = self.line.as_ref().ok_or_else(|| error("netd was not called"))?;
        line.ask(Ask::Attach(self.attach.clone()), self.network.as_ref().map(AsFd::as_fd))
    }

    /// Begins to give the connection back; netd goes about it while the caller does other things.
    pub(crate) fn begin_end(mut self) -> Ending {
        let line = self.line.take();
        // A netd that has gone meanwhile finds out by itself: our process is its measure.
        Ending(line.filter(|line| line.ask(Ask::Detach, None).is_ok()))
    }
}

/// A connection that is being given back.
pub(crate) struct Ending(Option<Rc<Line>>);

impl Ending {
    /// Waits until nothing is left of it.
    pub(crate) fn finish(self) {
        if let Some(line) = self.0 {
            // What went wrong with it, the next netd mends.
            let _ = line.hear(PATIENCE);
        }
    }
}

fn attached(line: &Line) -> Result<Attached> {
    match line.hear(PATIENCE)? {
        Some(Answer::Attached(attached)) => Ok(attached),
        other => Err(unexpected(other)),
    }
}

impl Connect for Connection {
    fn begin(&mut self, network: OwnedFd) -> Result<()> {
        self.network = Some(network);
        match self.ask() {
            // It has just ended; whoever waits for the answer calls the next one.
            Err(e) if matches!(e.errno(), Some(Errno::CONNRESET | Errno::PIPE)) => Ok(()),
            other => other,
        }
    }

    fn finish(&mut self) -> Result<String> {
        if self.line.is_none() {
            return Ok(shared_resolver(self.mode));
        }
        let mut first = true;
        let attached = again_if_gone(|| {
            if !std::mem::take(&mut first) {
                self.line = Some(Rc::new(call(&self.store)?));
                self.ask()?;
            }
            attached(self.line.as_deref().ok_or_else(|| error("netd was not called"))?)
        })?;
        self.network = None;
        let resolver = match attached.resolver.is_empty() {
            true => String::new(),
            false => format!("{RESOLVER_MARK}; a file that begins otherwise is left alone.\n{}", attached.resolver),
        };
        self.attached = Some(attached);
        Ok(resolver)
    }
}

/// Who shares the host's network asks whom the host asks.
fn shared_resolver(mode: plan::Network) -> String {
    const LONGEST: usize = 64 * 1024;
    if mode != plan::Network::Host {
        return String::new();
    }
    let text = File::open("/etc/resolv.conf").ok().and_then(|file| lazaret_base::read_bounded(file, LONGEST).ok());
    text.map_or_else(String::new, |text| format!("{RESOLVER_MARK}.\n{}", String::from_utf8_lossy(&text)))
}

/// Lets other settings hold for a container that runs. What can't change while it runs is left out by the caller.
pub(crate) fn change(store: &Store, name: &Name, running: &Running, wanted: &Settings) -> Result<()> {
    if of(&running.config) != plan::Network::Connected || running.config.network == *wanted {
        return Ok(());
    }
    let ask = Ask::Change { name: name.to_string(), settings: Box::new(wanted.clone()) };
    again_if_gone(|| have_done(&call(store)?, ask.clone()))
        .map(drop)
        .with_context(|| format!("changing the network of `{name}`"))
}

//! The package cache that containers use by themselves.
//!
//! One process serves all containers, as a proxy. Each container reaches it at its own loopback interface: a socket
//! that listens in the container's network namespace is handed to that process, so that no wall around the container
//! gets a hole, and whoever asks is known by the socket. apt is told of it by one file of ours, which is there while
//! the container runs: before it runs, what is written to it is ours to write; afterwards it is taken away, so that no
//! snapshot, copy or image ever has it. A mark beside the container says that there may be such a file.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Config, Name};
use lazaret_image::{
    Archives, Asker, Kept, Network, PackageCache, Proxy, Stats, apt_archives, apt_proxy, confine_proxy, drop_apt_proxy,
    put_apt_proxy,
};
use lazaret_runtime::attach;
use lazaret_runtime::cgroup;
use lazaret_runtime::plan;
use lazaret_sys::local::{self, address_in, receive_along, send_along};
use lazaret_sys::process::close_from;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with, sockopt,
};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::exec::running;
use crate::keeper::Ended;
use crate::store::{Phase, Record, Storage, Store, open_tree};
use crate::{network, process, start};

/// What was decided about the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How many bytes of packages stay.
    #[serde(default = "usual_limit")]
    pub limit: u64,
    /// Archives beside those of the distributions: hosts, with a port if it is not the usual one, and with a directory
    /// if nothing else of that host is an archive.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// How the archives are reached.
    #[serde(default)]
    pub proxy: Option<String>,
    /// Hosts that are asked directly all the same.
    #[serde(default)]
    pub no_proxy: String,
}

fn usual_limit() -> u64 {
    5 << 30
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { limit: usual_limit(), hosts: Vec::new(), proxy: None, no_proxy: String::new() }
    }
}

impl Settings {
    fn archives(&self) -> Archives {
        Archives { more: self.hosts.clone() }
    }
}

/// Where containers find it. Only their root may listen there, so that no user of theirs can take its place, and no
/// other cache that somebody keeps in a container wants that port.
pub const PORT: u16 = 942;
/// The command line of the process that serves.
pub const SERVICE: &str = "package-cache";
/// Connections that are served at once, of one container and of all.
const OF_ONE: usize = 24;
const OF_ALL: usize = 200;

/// How the cache is.
#[derive(Clone, Debug)]
pub struct Status {
    /// Whether containers use it.
    pub on: bool,
    /// What was decided.
    pub settings: Settings,
    /// What was spared.
    pub stats: Stats,
    /// What is kept.
    pub kept: Kept,
}

/// How the cache is.
pub fn status(store: &Store) -> Result<Status> {
    let cache = store.packages()?;
    Ok(Status {
        on: store.packages_are_on(),
        settings: store.package_settings()?,
        stats: cache.stats(),
        kept: cache.kept()?,
    })
}

/// Switches it on, for containers that run and for those that will. What could not be done comes back.
pub fn on(store: &Store, limit: Option<u64>, hosts: &[String], reach: &Network) -> Result<Vec<String>> {
    store.prepare()?;
    let mut settings = store.package_settings()?;
    for host in hosts {
        let host = archive(host)?;
        if !settings.hosts.contains(&host) {
            settings.hosts.push(host);
        }
    }
    settings.limit = limit.unwrap_or(settings.limit);
    if settings.limit < LEAST {
        return Err(error(format!("a cache of {} bytes keeps nothing", settings.limit))
            .kind(Kind::Invalid)
            .hint("the least is 16M; several gigabytes serve best"));
    }
    (settings.proxy, settings.no_proxy) = (reach.http_proxy.clone(), reach.no_proxy.clone());
    store.packages()?.evict(settings.limit)?;
    store.write_package_settings(&settings)?;
    store.switch_packages(true)?;
    // One that serves already begins anew, with what was decided now.
    end(store)?;
    call(store)?;
    // All sockets before all files: who has entered a container to write there can't make a thread any more.
    let mut notes = for_running(store, |name| {
        let running = running(store, name)?;
        if may_use(&running.config) { offer(store, name, running.init.as_fd()) } else { Ok(()) }
    });
    notes.extend(for_running(store, |name| {
        if may_use(&running(store, name)?.config) { tell(store, name, &settings) } else { Ok(()) }
    }));
    Ok(notes)
}

/// An archive as it is written down.
fn archive(text: &str) -> Result<String> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let (host, directory) = bare.split_once('/').map_or((bare, ""), |(host, directory)| (host, directory));
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
    let plain_path = |c: char| c.is_ascii_alphanumeric() || "./-_+~".contains(c);
    if host.is_empty() || !host.chars().all(plain) || !directory.chars().all(plain_path) {
        return Err(error(format!("`{text}` is no archive"))
            .kind(Kind::Invalid)
            .hint("for example mirror.example or mirror.example:8080/debian"));
    }
    let host = host.strip_suffix(":80").unwrap_or(host).to_ascii_lowercase();
    Ok(if directory.is_empty() { host } else { format!("{host}/{directory}") })
}

/// Switches it off: containers go to the archives themselves again. Packages stay. What could not be done comes back.
pub fn off(store: &Store) -> Result<Vec<String>> {
    store.prepare()?;
    store.switch_packages(false)?;
    let mut notes = for_running(store, |name| untell(store, name));
    end(store)?;
    for name in store.names()? {
        // Whoever is at work on it may have been told before that it is off.
        let _lock = store.lock(&name)?;
        if !store.is_kept(&name)?
            && let Ok(record) = store.record(&name)
            && let Err(e) = withdraw(store, &name, &record)
        {
            notes.push(format!("`{name}`: {e}"));
        }
    }
    Ok(notes)
}

/// Removes all packages, and begins to count anew; the bytes that went.
pub fn clear(store: &Store) -> Result<u64> {
    let cache = store.packages()?;
    cache.forget_stats()?;
    cache.evict(0)
}

/// Remembers an archive that somebody has built from, so that containers made of that use the cache for it.
pub(crate) fn know(store: &Store, mirrors: &[String]) -> Result<()> {
    let mut settings = store.package_settings()?;
    let before = settings.hosts.len();
    for mirror in mirrors.iter().filter(|mirror| mirror.starts_with("http://")) {
        let archive = archive(mirror)?;
        let host = archive.split('/').next().unwrap_or_default();
        // A host that is known as a whole, or that directory.
        let usual = Archives::default().have(host);
        if !usual && !settings.hosts.iter().any(|known| *known == archive || known == host) {
            settings.hosts.push(archive);
        }
    }
    if settings.hosts.len() > before { store.write_package_settings(&settings) } else { Ok(()) }
}

/// Acts on every container that runs, each under its lock: one that is being started runs by then.
fn for_running(store: &Store, act: impl Fn(&Name) -> Result<()>) -> Vec<String> {
    let each = |name: &Name| -> Result<()> {
        let _lock = store.lock(name)?;
        let runs = store.run_state(name)?.is_some_and(|state| state.phase == Phase::Running) && store.is_kept(name)?;
        if runs { act(name) } else { Ok(()) }
    };
    let names = store.running_names().unwrap_or_default();
    names.iter().filter_map(|name| each(name).err().map(|e| format!("`{name}`: {e}"))).collect()
}

/// Whoever has no way to the Internet gets none here, nor whoever may not go everywhere in it; whoever shares the
/// host's network needs none.
fn may_use(config: &Config) -> bool {
    network::of(config) == plan::Network::Connected && config.network.internet && config.network.deny.is_empty()
}

// --- in the life of a container ---

/// Keeper, before a start: apt is told, if there is an apt. Whether the cache is to be offered.
pub(crate) fn prepare(store: &Store, name: &Name, record: &Record, config: &Config) -> Result<bool> {
    if !store.packages_are_on() || !may_use(config) {
        return Ok(false);
    }
    let trees = trees(store, name, record)?;
    if let Some(text) = text_for(&trees, &store.package_settings()?) {
        store.note_told(name)?;
        put_apt_proxy(&trees, &text, shift(record))?;
    }
    Ok(true)
}

/// Takes the file away from a container that does not run, if it was told.
pub(crate) fn withdraw(store: &Store, name: &Name, record: &Record) -> Result<()> {
    if !store.is_told(name) {
        return Ok(());
    }
    drop_apt_proxy(&trees(store, name, record)?, shift(record)).context("taking away what apt was told")?;
    store.forget_told(name);
    Ok(())
}

/// What a running container has written was copied to `layer`: without our file.
pub(crate) fn leave_out(store: &Store, name: &Name, layer: &Path) -> Result<()> {
    match store.is_told(name) {
        true => drop_apt_proxy(&[open_tree(layer)?], 0).context("leaving out what apt was told"),
        false => Ok(()),
    }
}

/// The configuration in force of a running container has changed.
pub(crate) fn follow(store: &Store, name: &Name, before: &Config, now: &Config) -> Result<()> {
    if !store.packages_are_on() || may_use(before) == may_use(now) {
        return Ok(());
    }
    if may_use(now) {
        offer(store, name, running(store, name)?.init.as_fd())?;
        return tell(store, name, &store.package_settings()?);
    }
    if let Some(line) = call_running(store.cache_dir()?.as_fd())? {
        send_along(&line, &word(WITHDRAW, name), &[]).context("taking the package cache away")?;
        heard(&line);
    }
    untell(store, name)
}

fn trees(store: &Store, name: &Name, record: &Record) -> Result<Vec<OwnedFd>> {
    let mut paths = vec![store.written(name, record)];
    if record.storage == Storage::Overlay {
        paths.extend(store.lower(record));
    }
    paths.iter().map(|path| open_tree(path)).collect::<Result<_>>().context("opening its layers")
}

fn shift(record: &Record) -> u32 {
    u32::try_from(-record.shift_to_plain()).unwrap_or(0)
}

/// What its apt is to be told; `None` if it has none.
fn text_for(trees: &[OwnedFd], settings: &Settings) -> Option<String> {
    apt_archives(trees, &settings.archives()).map(|hosts| apt_proxy(&hosts, PORT))
}

/// Tells the apt of a running container.
fn tell(store: &Store, name: &Name, settings: &Settings) -> Result<()> {
    let record = store.record(name)?;
    match text_for(&trees(store, name, &record)?, settings) {
        Some(text) => store.note_told(name).and_then(|()| write_inside(store, name, &text)),
        None => Ok(()),
    }
}

/// The apt of a running container is to forget it.
fn untell(store: &Store, name: &Name) -> Result<()> {
    if store.is_told(name) {
        write_inside(store, name, "")?;
        store.forget_told(name);
    }
    Ok(())
}

/// Writes the file into a running container, or takes it away: by its own root, since its files are in use. Nobody
/// waits long for what runs there.
fn write_inside(store: &Store, name: &Name, text: &str) -> Result<()> {
    const SCRIPT: &str =
        "[ -d \"${1%/*}\" ] || exit 0; [ -n \"$2\" ] || { rm -f \"$1\"; exit; }; umask 022; printf %s \"$2\" >\"$1\"";
    let running = running(store, name)?;
    let target = running.target(store, name)?;
    if cgroup::frozen(&target.payload) {
        return Err(error("it is frozen").hint(format!("thaw it and repeat this: lazaret unfreeze {name}")));
    }
    let words = ["/bin/sh", "-c", SCRIPT, "sh", lazaret_image::APT_PROXY, text].map(str::to_owned).to_vec();
    let environment = start::environment(&store.record(name)?, Vec::new(), &running.config);
    let command =
        attach::Command { words, user: Some("0".into()), cwd: Some("/".into()), environment, ..Default::default() };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    let child = match attach::attach(&target, &command, attach::Stdio::Given([null.as_fd(); 3]), None) {
        // Without a shell there is no apt either.
        Err(e) if e.what() == Kind::CommandNotFound => return Ok(()),
        attached => attached?.child,
    };
    match poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&PATIENCE)) {
        Ok(0) => {
            // Its parent, which is init inside or us, has nothing more to wait for.
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
            Err(error("its shell does not end"))
        }
        Ok(_) if Ended::of(child.pidfd.as_fd())?.status() == 0 => Ok(()),
        Ok(_) => Err(error("its configuration of apt could not be changed")),
        Err(e) => Err(e.into()),
    }
}

/// Listens in a container's network namespace, and hands that to the process that serves.
pub(crate) fn offer(store: &Store, name: &Name, init: BorrowedFd<'_>) -> Result<()> {
    let line = call(store)?;
    // In a thread of its own, since it is the thread that enters.
    let listener = std::thread::scope(|scope| {
        let listening = scope.spawn(|| -> Result<OwnedFd> {
            move_into_thread_name_spaces(init, ThreadNameSpaceType::NETWORK).context("entering its network")?;
            let socket = socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )?;
            // One that was killed a moment ago may not have let go of it yet.
            sockopt::set_socket_reuseport(&socket, true)?;
            bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT))?;
            listen(&socket, 64)?;
            Ok(socket)
        });
        listening.join().unwrap_or_else(|_| Err(error("the thread has failed")))
    });
    let listener = listener.with_context(|| format!("listening on port {PORT} inside"))?;
    send_along(&line, &word(OFFER, name), &[listener.as_fd(), init])
        .context("handing a socket to the package cache")?;
    heard(&line);
    Ok(())
}

// --- the process that serves ---

const SOCKET: &str = "socket";
const OFFER: &[u8] = b"offer ";
const WITHDRAW: &[u8] = b"withdraw ";
const END: &[u8] = b"end";
/// How long a container's shell may take to write a file.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// No cache is smaller.
const LEAST: u64 = 16 << 20;

fn word(verb: &[u8], name: &Name) -> Vec<u8> {
    [verb, name.as_str().as_bytes()].concat()
}

/// Waits until the other side has done what it was told, or has gone, which comes to the same.
fn heard(line: &OwnedFd) {
    let mut byte = [0u8; 1];
    let _ = rustix::net::recv(line, &mut byte, RecvFlags::empty());
}

/// A connection to the process, if it is there.
fn call_running(dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let socket = local::socket(SocketType::SEQPACKET, SocketFlags::empty())?;
    match connect(&socket, &address_in(dir, SOCKET)?) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(e) => Err(e).context("calling the package cache"),
    }
}

/// A connection to the process, which is begun if there is none.
fn call(store: &Store) -> Result<OwnedFd> {
    let dir = store.cache_dir()?;
    if let Some(line) = call_running(dir.as_fd())? {
        return Ok(line);
    }
    let _lock = store.lock_cache_begin()?;
    // Somebody else was faster.
    if let Some(line) = call_running(dir.as_fd())? {
        return Ok(line);
    }
    begin(store, dir.as_fd())?;
    call_running(dir.as_fd())?.ok_or_else(|| error("the package cache has ended at once"))
}

fn begin(store: &Store, dir: BorrowedFd<'_>) -> Result<()> {
    let beginning = "beginning the package cache";
    // Left by one that was killed.
    let _ = rustix::fs::unlinkat(dir, SOCKET, rustix::fs::AtFlags::empty());
    let listener = local::socket(SocketType::SEQPACKET, SocketFlags::empty())?;
    bind(&listener, &address_in(dir, SOCKET)?).context(beginning)?;
    listen(&listener, 64).context(beginning)?;
    process::begin_service(store, &[SERVICE], listener, "the package cache")
}

/// Ends the process, if there is one.
fn end(store: &Store) -> Result<()> {
    let dir = store.cache_dir()?;
    let _lock = store.lock_cache_begin()?;
    if let Some(line) = call_running(dir.as_fd())? {
        send_along(&line, END, &[])?;
        heard(&line);
    }
    let _ = rustix::fs::unlinkat(&dir, SOCKET, rustix::fs::AtFlags::empty());
    Ok(())
}

/// The life of the process that serves: the socket on which it is called is its standard input. The exit status tells
/// whoever begins it.
pub fn serve(store: &Store) -> i32 {
    match live(store) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn live(store: &Store) -> Result<()> {
    close_from(3, false)?;
    // Whoever fails from here on tells who begins it: what can fail is done before leaving.
    let listener = process::take_input()?;
    let settings = store.package_settings()?;
    let cache: PackageCache = store.packages()?;
    let reach = Network {
        http_proxy: settings.proxy.clone(),
        https_proxy: settings.proxy.clone(),
        no_proxy: settings.no_proxy.clone(),
        ..Network::default()
    };
    let proxy = Proxy::new(&reach, cache, settings.archives(), settings.limit)?;
    process::leave_caller()?;
    confine_proxy(&store.packages_dir())?;
    attend(listener, Arc::new(proxy))
}

/// A container that is served.
struct Client {
    name: Vec<u8>,
    listener: TcpListener,
    init: OwnedFd,
    busy: Arc<AtomicUsize>,
    asker: Arc<Asker>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.asker.end();
    }
}

fn attend(listener: OwnedFd, proxy: Arc<Proxy>) -> Result<()> {
    let (mut clients, all): (Vec<Client>, _) = (Vec::new(), Arc::new(AtomicUsize::new(0)));
    loop {
        let mut fds = vec![PollFd::new(&listener, PollFlags::IN)];
        for client in &clients {
            fds.push(PollFd::new(&client.init, PollFlags::IN));
            fds.push(PollFd::new(&client.listener, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("waiting for connections"),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(fds);
        for (client, ready) in clients.iter().zip(ready[1..].chunks(2)) {
            if ready[1] && !ready[0] {
                client.accept(&proxy, &all);
            }
        }
        let mut ended = ready[1..].chunks(2).map(|ready| ready[0]);
        clients.retain(|_| !ended.next().unwrap_or(false));
        if ready[0] {
            match hear(&listener) {
                Ok(Heard::Offer(client)) => {
                    clients.retain(|other| other.name != client.name);
                    clients.push(client);
                }
                Ok(Heard::Withdraw(name, _line)) => clients.retain(|client| client.name != name),
                // The line closes with this process: that is what the caller waits for.
                Ok(Heard::End(line)) => {
                    drop(clients);
                    std::mem::forget(line);
                    return Ok(());
                }
                // Whoever called only looked whether we are here, or does not know how to.
                Ok(Heard::Nothing) | Err(_) => {}
            }
        }
    }
}

impl Client {
    fn accept(&self, proxy: &Arc<Proxy>, all: &Arc<AtomicUsize>) {
        // Taken by nobody else; gone again, at worst.
        let Ok((stream, _)) = self.listener.accept() else { return };
        let counts = [self.busy.clone(), all.clone()];
        let full = counts.iter().zip([OF_ONE, OF_ALL]).any(|(count, most)| count.load(Ordering::Relaxed) >= most);
        if full || stream.set_nonblocking(false).is_err() {
            return;
        }
        add(&counts, 1);
        let (served, counted, asker) = (proxy.clone(), counts.clone(), self.asker.clone());
        let spawned = std::thread::Builder::new().spawn(move || {
            // What goes wrong with a connection, its client has been told.
            let _ = served.serve(&stream, &asker);
            add(&counted, -1);
        });
        if spawned.is_err() {
            add(&counts, -1);
        }
    }
}

fn add(counts: &[Arc<AtomicUsize>], change: isize) {
    for count in counts {
        count.fetch_add(change as usize, Ordering::Relaxed);
    }
}

/// What a caller wants.
enum Heard {
    /// A container is to be served.
    Offer(Client),
    /// It is not any more. The caller waits on the line.
    Withdraw(Vec<u8>, OwnedFd),
    /// The end. The caller waits on the line.
    End(OwnedFd),
    Nothing,
}

fn hear(listener: &OwnedFd) -> Result<Heard> {
    let line = accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut bytes = [0u8; 256];
    let mut received = receive_along(&line, &mut bytes, RecvFlags::empty())?;
    let said = &bytes[..received.bytes];
    if said == END {
        return Ok(Heard::End(line));
    }
    if let Some(name) = said.strip_prefix(WITHDRAW) {
        return Ok(Heard::Withdraw(name.to_vec(), line));
    }
    match (said.strip_prefix(OFFER), received.fds.pop(), received.fds.pop()) {
        (Some(name), Some(init), Some(listener)) => Ok(Heard::Offer(Client {
            name: name.to_vec(),
            listener: listener.into(),
            init,
            busy: Arc::default(),
            asker: Arc::default(),
        })),
        _ => Ok(Heard::Nothing),
    }
}

/// For every command: a process that was killed is begun again, and running containers are handed to it.
pub(crate) fn mend(store: &Store) -> Result<()> {
    if !store.packages_are_on() || call_running(store.cache_dir()?.as_fd())?.is_some() {
        return Ok(());
    }
    for name in store.running_names()? {
        // One that is being started calls by itself.
        let Some(state) = store.run_state(&name)?.filter(|state| state.phase == Phase::Running) else { continue };
        // It may be ending at this moment.
        let Ok(init) = process::open(state.init, state.init_started) else { continue };
        if may_use(&store.running_config(&name)?) {
            offer(store, &name, init.as_fd())?;
        }
    }
    Ok(())
}

//! The package cache that containers use by themselves.
//!
//! One process serves all containers, as a proxy. Each container reaches it at its own loopback interface: a socket
//! that
//! listens in the container's network namespace is handed to that process, so that no wall around the container gets a
//! hole, and whoever asks is known by the socket. apt is told of it by one file of ours, which is there while the
//! container runs and goes when the cache is switched off.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Config, Name};
use lazaret_image::{
    Archives, Kept, Network, PackageCache, Proxy, Stats, apt_archives, apt_proxy, confine_proxy, drop_apt_proxy,
    put_apt_proxy,
};
use lazaret_runtime::attach;
use lazaret_runtime::plan;
use lazaret_sys::process::{Cloned, clone, close_from, exit_now};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with,
};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::exec::{exec, running};
use crate::store::{Phase, Record, Storage, Store, open_tree};
use crate::{network, process};

/// What was decided about the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Whether containers use it.
    #[serde(default)]
    pub on: bool,
    /// How many bytes of packages stay.
    #[serde(default = "usual_limit")]
    pub limit: u64,
    /// Archives beside those of the distributions: hosts, with a port if it is not the usual one.
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
        Settings { on: false, limit: usual_limit(), hosts: Vec::new(), proxy: None, no_proxy: String::new() }
    }
}

impl Settings {
    fn archives(&self) -> Archives {
        Archives { more: self.hosts.clone() }
    }
}

/// Where containers find it: the port that people know of apt-cacher-ng.
pub const PORT: u16 = 3142;
/// The command line of the process that serves.
pub const SERVICE: &str = "package-cache";
/// Connections that are served at once, of one container and of all.
const OF_ONE: usize = 24;
const OF_ALL: usize = 200;

/// How the cache is.
#[derive(Clone, Debug)]
pub struct Status {
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
    Ok(Status { settings: store.package_settings()?, stats: cache.stats(), kept: cache.kept()? })
}

/// Switches it on, for containers that run and for those that will. What could not be done comes back.
pub fn on(store: &Store, limit: Option<u64>, hosts: &[String], reach: &Network) -> Result<Vec<String>> {
    store.prepare()?;
    let mut settings = store.package_settings()?;
    let was_on = settings.on;
    for host in hosts {
        let host = host.strip_prefix("http://").unwrap_or(host).trim_end_matches('/').to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
        if host.is_empty() || !host.chars().all(plain) {
            return Err(error(format!("`{host}` is no host"))
                .kind(Kind::Invalid)
                .hint("for example mirror.example or mirror.example:8080"));
        }
        if !settings.hosts.contains(&host) {
            settings.hosts.push(host);
        }
    }
    settings.limit = limit.unwrap_or(settings.limit);
    settings.on = true;
    (settings.proxy, settings.no_proxy) = (reach.http_proxy.clone(), reach.no_proxy.clone());
    store.packages()?.evict(settings.limit)?;
    store.write_package_settings(&settings)?;
    if was_on {
        // It begins anew with what was decided now.
        end(store)?;
    }
    Ok(for_running(store, |name| {
        let running = running(store, name)?;
        if !may_use(&running.config) {
            return Ok(());
        }
        let record = store.record(name)?;
        let Some(text) = text_for(store, name, &record, &settings)? else { return Ok(()) };
        offer_to(store, running.init.as_fd())?;
        write_inside(store, name, &text)
    }))
}

/// Switches it off: containers go to the archives themselves again. Packages stay. What could not be done comes back.
pub fn off(store: &Store) -> Result<Vec<String>> {
    store.prepare()?;
    let settings = Settings { on: false, ..store.package_settings()? };
    store.write_package_settings(&settings)?;
    let mut notes = for_running(store, |name| write_inside(store, name, ""));
    end(store)?;
    for name in store.names()? {
        let Some(_lock) = store.try_lock(&name)? else { continue };
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
    for host in mirrors.iter().filter_map(|mirror| mirror.strip_prefix("http://")?.split('/').next()) {
        let host = host.to_ascii_lowercase();
        if !settings.archives().have(&host) {
            settings.hosts.push(host);
        }
    }
    if settings.hosts.len() > before { store.write_package_settings(&settings) } else { Ok(()) }
}

fn for_running(store: &Store, act: impl Fn(&Name) -> Result<()>) -> Vec<String> {
    let names = store.running_names().unwrap_or_default();
    let runs = |name: &&Name| store.run_state(name).is_ok_and(|state| state.is_some_and(|s| s.phase == Phase::Running));
    let fault = |name: &Name| act(name).err().map(|e| format!("`{name}`: {e}"));
    names.iter().filter(runs).filter_map(fault).collect()
}

/// Whoever has no way to the Internet gets none here; whoever shares the host's network needs none.
fn may_use(config: &Config) -> bool {
    network::of(config) == plan::Network::Connected && config.network.internet
}

// --- in the life of a container ---

/// Keeper, before a start: apt is told. Without a cache this costs one look.
pub(crate) fn prepare(store: &Store, name: &Name, record: &Record, config: &Config) -> Result<()> {
    let settings = store.package_settings()?;
    if !settings.on || !may_use(config) {
        return Ok(());
    }
    match text_for(store, name, record, &settings)? {
        Some(text) => put_apt_proxy(&trees(store, name, record)?, &text, shift(record)),
        None => Ok(()),
    }
}

/// Keeper, after a start: the socket is handed over.
pub(crate) fn offer(store: &Store, config: &Config, init: BorrowedFd<'_>) -> Result<()> {
    match store.package_settings()?.on && may_use(config) {
        true => offer_to(store, init),
        false => Ok(()),
    }
}

/// Keeper, after the end: apt is told nothing.
pub(crate) fn withdraw(store: &Store, name: &Name, record: &Record) -> Result<()> {
    drop_apt_proxy(&trees(store, name, record)?, shift(record))
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
fn text_for(store: &Store, name: &Name, record: &Record, settings: &Settings) -> Result<Option<String>> {
    let hosts = apt_archives(&trees(store, name, record)?, &settings.archives());
    Ok(hosts.map(|hosts| apt_proxy(&hosts, PORT)))
}

/// Writes the file into a running container, or takes it away: by its own root, since its files are in use.
fn write_inside(store: &Store, name: &Name, text: &str) -> Result<()> {
    const SCRIPT: &str =
        "[ -d \"${1%/*}\" ] || exit 0; [ -n \"$2\" ] || { rm -f \"$1\"; exit; }; umask 022; printf %s \"$2\" >\"$1\"";
    let words = ["/bin/sh", "-c", SCRIPT, "sh", lazaret_image::APT_PROXY, text].map(str::to_owned).to_vec();
    let command = attach::Command { words, user: Some("0".into()), cwd: Some("/".into()), environment: Vec::new() };
    let null = File::options().read(true).write(true).open("/dev/null")?;
    match exec(store, name, &command, [null.as_fd(); 3], |_| None) {
        // Without a shell there is no apt either.
        Err(e) if e.what() == Kind::CommandNotFound => Ok(()),
        Ok(ended) if ended.status() != 0 => Err(error("its configuration of apt could not be changed")),
        other => other.map(drop),
    }
}

/// Listens in a container's network namespace, and hands that to the process that serves.
fn offer_to(store: &Store, init: BorrowedFd<'_>) -> Result<()> {
    let line = call(store)?;
    // In a thread of its own, since it is the thread that enters.
    let listener = std::thread::scope(|scope| {
        let listening = scope.spawn(|| -> Result<TcpListener> {
            move_into_thread_name_spaces(init, ThreadNameSpaceType::NETWORK).context("entering its network")?;
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))?)
        });
        listening.join().unwrap_or_else(|_| Err(error("the thread has failed")))
    });
    let listener = listener.with_context(|| format!("listening on port {PORT} inside"))?;
    listener.set_nonblocking(true)?;
    send(line.as_fd(), OFFER, &[listener.as_fd(), init]).context("handing a socket to the package cache")
}

// --- the process that serves ---

const OFFER: &[u8] = b"offer";
const END: &[u8] = b"end";

fn address(dir: BorrowedFd<'_>) -> Result<SocketAddrUnix> {
    // By way of a descriptor it has no length limit.
    Ok(SocketAddrUnix::new(format!("/proc/self/fd/{}/socket", dir.as_raw_fd()))?)
}

fn new_socket() -> Result<OwnedFd> {
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// A connection to the process, if it is there.
fn call_running(dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let socket = new_socket()?;
    match connect(&socket, &address(dir)?) {
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
    let _ = rustix::fs::unlinkat(dir, "socket", rustix::fs::AtFlags::empty());
    let listener = new_socket()?;
    bind(&listener, &address(dir)?).context(beginning)?;
    listen(&listener, 64).context(beginning)?;
    process::begin_service(store, &[SERVICE], listener, "the package cache")
}

/// Ends the process, if there is one.
fn end(store: &Store) -> Result<()> {
    let dir = store.cache_dir()?;
    let _lock = store.lock_cache_begin()?;
    if let Some(line) = call_running(dir.as_fd())? {
        send(line.as_fd(), END, &[])?;
        // It closes when it has let go of everything.
        let mut byte = [0u8; 1];
        let _ = rustix::net::recv(&line, &mut byte, RecvFlags::empty());
    }
    let _ = rustix::fs::unlinkat(&dir, "socket", rustix::fs::AtFlags::empty());
    Ok(())
}

fn send(line: BorrowedFd<'_>, word: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(line, &[IoSlice::new(word)], &mut control, SendFlags::NOSIGNAL)?;
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
    let listener = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(&File::open("/dev/null")?)?;
    rustix::process::umask(rustix::fs::Mode::from(0o077));
    let settings = store.package_settings()?;
    let cache: PackageCache = store.packages()?;
    let reach = Network {
        http_proxy: settings.proxy.clone(),
        https_proxy: settings.proxy.clone(),
        no_proxy: settings.no_proxy.clone(),
    };
    let proxy = Proxy::new(&reach, cache, settings.archives(), settings.limit)?;
    match clone(0, None).context("leaving the caller")? {
        Cloned::Parent(_) => exit_now(0),
        Cloned::Child => {}
    }
    rustix::process::setsid()?;
    confine_proxy(&store.packages_dir())?;
    attend(listener, Arc::new(proxy))
}

/// A container that is served.
struct Client {
    listener: TcpListener,
    init: OwnedFd,
    busy: Arc<AtomicUsize>,
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
                Ok(Some(client)) => clients.push(client),
                Ok(None) => {}
                // Somebody wants the end. The line closes with this process.
                Err(e) if e.what() == Kind::Stopped => return Ok(()),
                // Whoever called does not know how to.
                Err(_) => {}
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
        let (served, counted) = (proxy.clone(), counts.clone());
        let spawned = std::thread::Builder::new().spawn(move || {
            // What goes wrong with a connection, its client has been told.
            let _ = served.serve(&stream);
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

/// What a caller wants: a container to be served, or, as [`Kind::Stopped`], the end.
fn hear(listener: &OwnedFd) -> Result<Option<Client>> {
    let line = accept_with(listener, SocketFlags::CLOEXEC)?;
    let mut bytes = [0u8; 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(&line, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    match (&bytes[..received.bytes], fds.len()) {
        (END, 0) => {
            // Held open until this process ends: that is what the caller waits for.
            std::mem::forget(line);
            Err(error("the end").kind(Kind::Stopped))
        }
        (OFFER, 2) => {
            let (init, listener) = (fds.pop(), fds.pop());
            let (Some(init), Some(listener)) = (init, listener) else { return Ok(None) };
            Ok(Some(Client { listener: listener.into(), init, busy: Arc::default() }))
        }
        _ => Ok(None),
    }
}

/// For every command: a process that was killed is begun again, and running containers are handed to it.
pub(crate) fn mend(store: &Store) -> Result<()> {
    // Without a cache this costs one look.
    if !store.package_settings()?.on || call_running(store.cache_dir()?.as_fd())?.is_some() {
        return Ok(());
    }
    for_running(store, |name| {
        let Some(state) = store.run_state(name)? else { return Ok(()) };
        let init = process::open(state.init, state.init_started)?;
        offer(store, &store.running_config(name)?, init.as_fd())
    });
    Ok(())
}

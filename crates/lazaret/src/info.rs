//! What can be said of a container: what it is, what holds it in, and what it uses.

use std::fs;
use std::path::Path;

use lazaret_base::Result;
use lazaret_config::{Clipboard, Config, Desktop, Display, Mode, Name, Network as Settings, OpenUrls, live_changes};
use lazaret_runtime::cgroup::{self, Group, Hierarchies};
use serde::Serialize;

use crate::gate;
use crate::network;
use crate::store::{Ids, Phase, Record, RunState, Storage, Store};
use crate::{device, share};

/// Whether and how a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing of it runs.
    Stopped,
    /// Its plan is being carried out.
    Starting,
    /// Its init executes.
    Running,
    /// It runs, but gets no processor time.
    Frozen,
    /// Its init has ended.
    Stopping,
    /// Its files make no sense.
    Broken,
}

impl State {
    /// Every state, with the word for it.
    pub const ALL: &[(State, &str)] = &[
        (State::Stopped, "stopped"),
        (State::Starting, "starting"),
        (State::Running, "running"),
        (State::Frozen, "frozen"),
        (State::Stopping, "stopping"),
        (State::Broken, "broken"),
    ];
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(State::ALL.iter().find(|(state, _)| state == self).map_or("unknown", |(_, word)| word))
    }
}

/// One line of a list.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The container.
    pub name: Name,
    /// Whether it runs.
    pub state: State,
    /// Process 1, as the host knows it.
    pub pid: Option<i32>,
    /// What it was made from.
    pub image: String,
    /// Memory in use, in bytes, if the host counts it.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// When it was started, in milliseconds since 1970.
    pub since: Option<u64>,
    /// The user's own words.
    pub description: String,
    /// What is wrong with it, if it is broken.
    pub fault: Option<String>,
}

/// All containers. One that can't be read is listed as broken, not left out.
pub fn list(store: &Store) -> Result<Vec<Line>> {
    let trees = Hierarchies::probe()?;
    let mut lines: Vec<Line> = store.names()?.into_iter().map(|name| line(store, name, &trees)).collect();
    // Destroyed while we looked.
    lines.retain(|line| line.state != State::Broken || store.exists(&line.name));
    Ok(lines)
}

fn line(store: &Store, name: Name, trees: &Hierarchies) -> Line {
    let looked = (|| Ok((store.record(&name)?, store.document(&name)?, state(store, &name, trees)?)))();
    let (record, document, (state, run)) = match looked {
        Ok(all) => all,
        Err(e) => return broken(name, &e),
    };
    let group = run.as_ref().map(|run| &run.group);
    Line {
        pid: run.as_ref().map(|run| run.init).filter(|pid| *pid > 0),
        memory: group.and_then(|group| usage(group, trees).memory),
        tasks: group.and_then(|group| usage(group, trees).tasks),
        since: run.as_ref().map(|run| run.since),
        image: record.image.name,
        description: document.config().description.clone(),
        fault: None,
        state,
        name,
    }
}

fn broken(name: Name, e: &lazaret_base::Error) -> Line {
    Line {
        name,
        state: State::Broken,
        pid: None,
        image: String::new(),
        memory: None,
        tasks: None,
        since: None,
        description: String::new(),
        fault: Some(e.to_string()),
    }
}

/// Whether a container runs, and what its keeper wrote.
pub fn state(store: &Store, name: &Name, trees: &Hierarchies) -> Result<(State, Option<RunState>)> {
    if !store.is_kept(name)? {
        return Ok((State::Stopped, None));
    }
    let Some(run) = store.run_state(name)? else { return Ok((State::Starting, None)) };
    let state = match run.phase {
        Phase::Starting => State::Starting,
        Phase::Stopping => State::Stopping,
        Phase::Running if cgroup::frozen(&run.group.payload(trees)) => State::Frozen,
        Phase::Running => State::Running,
    };
    Ok((state, Some(run)))
}

/// What a container uses right now, as far as the host counts it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Processor time so far, in microseconds.
    pub cpu_microseconds: Option<u64>,
}

/// Asks the cgroups, v2 first.
pub fn usage(group: &Group, trees: &Hierarchies) -> Usage {
    let v2 = group.payload(trees);
    let v1 = |controller: &str| {
        let of = |mount: &&std::path::PathBuf| {
            mount.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.split(',').any(|c| c == controller))
        };
        trees.v1.iter().find(of).map(|mount| mount.join(&group.base))
    };
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cpu = || {
        let text = fs::read_to_string(v2.join("cpu.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.parse().ok()
    };
    Usage {
        memory: number(&v2.join("memory.current")).or_else(|| number(&v1("memory")?.join("memory.usage_in_bytes"))),
        tasks: number(&v2.join("pids.current")).or_else(|| number(&v1("pids")?.join("pids.current"))),
        cpu_microseconds: number(&v1("cpuacct").unwrap_or_default().join("cpuacct.usage"))
            .map(|nanoseconds| nanoseconds / 1000)
            .or_else(cpu),
    }
}

/// What holds a running container in, as the kernel says of its init. Nothing here is a wish.
#[derive(Clone, Debug, Serialize)]
pub struct Confinement {
    /// Namespaces of its own.
    pub namespaces: Vec<&'static str>,
    /// Namespaces that it shares with the host.
    pub shared_with_host: Vec<&'static str>,
    /// Its user ids as lines of `first-inside first-outside count`.
    pub id_map: Vec<String>,
    /// Its bounding set, by name.
    pub capabilities: Vec<&'static str>,
    /// Whether a system call filter is in force.
    pub seccomp: bool,
    /// Whether its programs may never gain privileges.
    pub no_new_privileges: bool,
    /// What the host's security module calls it; `None` where there is no such module.
    pub label: Option<String>,
}

/// Reads it from the host's proc.
pub fn confinement(init: i32) -> Option<Confinement> {
    let proc = format!("/proc/{init}");
    let status = fs::read_to_string(format!("{proc}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let bounding = u64::from_str_radix(field("CapBnd")?, 16).ok()?;
    let (mut own, mut shared) = (Vec::new(), Vec::new());
    for (file, word) in NAMESPACES {
        let theirs = fs::read_link(format!("{proc}/ns/{file}")).ok()?;
        let ours = fs::read_link(format!("/proc/self/ns/{file}")).ok()?;
        if theirs == ours { shared.push(*word) } else { own.push(*word) }
    }
    let label = fs::read_to_string(format!("{proc}/attr/current")).ok();
    Some(Confinement {
        namespaces: own,
        shared_with_host: shared,
        id_map: fs::read_to_string(format!("{proc}/uid_map")).ok()?.lines().map(squeezed).collect(),
        capabilities: lazaret_config::Capability::all()
            .filter(|c| bounding & (1 << c.number()) != 0)
            .map(|c| c.name())
            .collect(),
        seccomp: field("Seccomp") == Some("2"),
        no_new_privileges: field("NoNewPrivs") == Some("1"),
        label: label.map(|text| text.trim_end_matches(['\n', '\0']).to_owned()).filter(|text| !text.is_empty()),
    })
}

const NAMESPACES: &[(&str, &str)] = &[
    ("user", "user"),
    ("mnt", "mount"),
    ("pid", "pid"),
    ("net", "network"),
    ("uts", "uts"),
    ("ipc", "ipc"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

fn squeezed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Everything that `lazaret info` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// The container.
    pub name: Name,
    /// Whether it runs.
    pub state: State,
    /// What it was made from.
    pub image: String,
    /// The image's tree.
    pub rootfs: std::path::PathBuf,
    /// How its own files are kept.
    pub storage: Storage,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// Whether root inside is root outside.
    pub privileged: bool,
    /// Its ids on the host.
    pub ids: Option<Ids>,
    /// Process 1, as the host knows it.
    pub pid: Option<i32>,
    /// The keeper.
    pub keeper: Option<i32>,
    /// When it was started, in milliseconds since 1970.
    pub since: Option<u64>,
    /// Its v2 cgroup, from the tree's root.
    pub cgroup: Option<String>,
    /// What it uses.
    pub usage: Option<Usage>,
    /// What holds it in, as the kernel says.
    pub confinement: Option<Confinement>,
    /// How it is connected, if it is.
    pub network: Option<network::Attachment>,
    /// Files of the host that it sees.
    pub shares: Vec<share::Line>,
    /// Where its programs are shown, if some have been.
    pub gate: Option<gate::Gate>,
    /// The same for those that speak Wayland.
    pub wayland: Option<gate::WaylandGate>,
    /// Devices of the host that it may use.
    pub devices: Vec<device::Line>,
    /// Its programs' way to the sound server, if there is one now.
    pub hearing: Option<gate::Hearing>,
    /// Whether its microphone is switched on.
    pub microphone: bool,
    /// Holes in the wall that the user asked for.
    pub openings: Vec<String>,
    /// Its configuration as it is written.
    pub config: Config,
    /// Keys whose new values hold from the next start on.
    pub at_next_start: Vec<&'static str>,
    /// What could not be done as wished at the start.
    pub notes: Vec<String>,
}

/// Looks at one container.
pub fn info(store: &Store, name: &Name) -> Result<Info> {
    let (record, document) = (store.record(name)?, store.document(name)?);
    let trees = Hierarchies::probe()?;
    let (state, run) = state(store, name, &trees)?;
    let config = document.config().clone();
    let at_next_start = match &run {
        Some(_) => store.running_config(name).map(|now| live_changes(&now, &config).1).unwrap_or_default(),
        None => Vec::new(),
    };
    let (shares, devices) = (share::lines(&config), device::lines(&config));
    let with_gates = run.as_ref().filter(|_| config.desktop.display != Display::None);
    let hearing = with_gates.and_then(|_| gate::hearing(store, name));
    // As the gate says, or as one that is begun would have it.
    let microphone =
        with_gates.is_some() && hearing.map_or_else(|| store.microphone(name), |hearing| hearing.microphone);
    let mut openings = openings(&config, &record, &shares, &devices);
    openings.extend(microphone.then(|| "records: the microphone is switched on".to_owned()));
    Ok(Info {
        name: name.clone(),
        state,
        openings,
        shares,
        devices,
        image: record.image.name,
        rootfs: record.image.rootfs,
        storage: record.storage,
        created: record.created,
        privileged: record.ids.is_none(),
        ids: record.ids,
        pid: run.as_ref().map(|run| run.init).filter(|pid| *pid > 0),
        keeper: run.as_ref().map(|run| run.keeper),
        since: run.as_ref().map(|run| run.since),
        cgroup: run.as_ref().map(|run| run.group.base.clone()),
        usage: run.as_ref().map(|run| usage(&run.group, &trees)),
        confinement: run.as_ref().and_then(|run| confinement(run.init)),
        network: run.as_ref().and_then(|run| connection(store, name, run)),
        // It may be ending just now.
        gate: with_gates.and_then(|_| gate::look(store, name).ok().flatten()),
        hearing,
        microphone,
        wayland: with_gates.and_then(|_| gate::look_wayland(store, name).ok().flatten()),
        config,
        at_next_start,
        notes: run.map(|run| run.notes).unwrap_or_default(),
    })
}

/// netd tells; while there is none, the keeper's word has to do.
fn connection(store: &Store, name: &Name, run: &RunState) -> Option<network::Attachment> {
    let attached = run.network.clone()?;
    match network::look(store, name) {
        Ok(Some(attachment)) => Some(attachment),
        _ => Some(network::Attachment { name: name.to_string(), attached, ..network::Attachment::default() }),
    }
}

/// What weakens the wall, in a sentence each, by what the user asked for.
fn openings(config: &Config, record: &Record, shares: &[share::Line], devices: &[device::Line]) -> Vec<String> {
    let mut openings = Vec::new();
    let mut open = |is: bool, what: &str| {
        if is {
            openings.push(what.to_owned());
        }
    };
    open(record.ids.is_none(), "privileged: root inside is root outside");
    open(config.nesting, "nesting: proc and sys are not masked, and namespaces of users may be made");
    open(config.seccomp == lazaret_config::Seccomp::Off, "seccomp is off: every system call is open");
    let list = |words: Vec<String>| words.join(", ");
    if !config.seccomp_allow.is_empty() {
        openings.push(format!("seccomp lets through: {}", list(config.seccomp_allow.clone())));
    }
    if !config.cap_add.is_empty() {
        openings.push(format!("capabilities added: {}", list(config.cap_add.iter().map(|c| c.to_string()).collect())));
    }
    if !config.env_pass.is_empty() {
        openings.push(format!("variables let in: {}", list(config.env_pass.clone())));
    }
    openings.extend(shares.iter().map(ToString::to_string));
    openings.extend(devices.iter().map(ToString::to_string));
    openings.extend(network_openings(&config.network));
    openings.extend(desktop_openings(&config.desktop));
    for bind in &record.image.binds {
        openings.push(format!("sees the host's `{}`, read-only", bind.source.display()));
    }
    openings
}

/// What it may do to a session.
fn desktop_openings(desktop: &Desktop) -> Vec<String> {
    let mut openings = Vec::new();
    match desktop.display {
        Display::None => return openings,
        Display::Isolated | Display::Nested => {}
        Display::Trusted => openings.push("trusted with the display: it sees and steers the whole session".into()),
    }
    if desktop.clipboard == Clipboard::Both {
        openings.push("reads the clipboard: all that is copied outside".into());
    }
    if desktop.open_urls == OpenUrls::Allow {
        openings.push("opens addresses of the web in your browser, unasked".into());
    }
    openings
}

/// What a network lets through beyond the Internet.
fn network_openings(settings: &Settings) -> Vec<String> {
    let mut openings = Vec::new();
    match &settings.mode {
        Mode::None => return openings,
        Mode::Host => {
            openings.push("shares the host's network: all that listens on 127.0.0.1 is open to it".into());
            return openings;
        }
        Mode::Internet => {}
        mode => {
            openings.push(format!("is in the network of `{mode}`, where no policy of ours holds"));
            return openings;
        }
    }
    let list = |words: Vec<String>| words.join(", ");
    if settings.lan {
        openings.push("reaches the LAN".into());
    }
    if settings.host {
        openings.push("reaches services of the host".into());
    }
    if !settings.peers.is_empty() {
        let peers = settings.peers.iter().map(ToString::to_string).collect();
        openings.push(format!("reaches containers that name it, too: {}", list(peers)));
    }
    if !settings.allow.is_empty() {
        let allow = settings.allow.iter().map(ToString::to_string).collect();
        openings.push(format!("reaches also: {}", list(allow)));
    }
    if !settings.publish.is_empty() {
        let publish = settings.publish.iter().map(ToString::to_string).collect();
        openings.push(format!("is reached by ports of the host: {}", list(publish)));
    }
    openings
}

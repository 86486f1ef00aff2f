//! The plan of a start: everything that will be done, decided beforehand, in order. Pure.
//!
//! Three sides carry it out. The **host** is the keeper, with all of root's power and none of the
//! container's namespaces. The **stage** is a short-lived process of the host's root in a mount namespace
//! that nobody else sees: it builds the container's tree of mounts, then copies it into a namespace that
//! the container's user namespace owns. By that copy the kernel locks every mount and every flag
//! (mount_namespaces(7)): a container's root can't unmount a mask or make a read-only share writable. The
//! **guest** is the process that becomes the container's init.

use std::fmt;
use std::path::{Path, PathBuf};

use lazaret_base::{Result, error};
use lazaret_config::{Config, Device, IdRange, Init, IoLimit, Name, Seccomp};
use serde::Serialize;

use crate::cgroup::{self, Group, Limit};
use crate::confine::{self, Capabilities};
use crate::devices::Rule;
use crate::host::{Host, Label};
use crate::seccomp;
use crate::share::{Person, Shown};

/// What a plan is compiled from, beside the facts of the host. Paths are the host's.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The container's name; also its host name unless the configuration names another.
    pub name: Name,
    /// What the user asked for.
    pub config: Config,
    /// Where the root file system comes from.
    pub root: Root,
    /// Directories of the host that the image itself needs, read-only.
    pub binds: Vec<Bind>,
    /// Directories of the host that are shown as they are once `/run` and `/tmp` are there, read-only: files in them
    /// belong to whom they belong to outside.
    pub shown: Vec<Bind>,
    /// A user that is to be there.
    pub user: Option<String>,
    /// The ids that are the container's own; `None` for a privileged container.
    pub ids: Option<IdRange>,
    /// The container's cgroups.
    pub group: Group,
    /// An existing directory that the stage may mount over, in its own namespace.
    pub scratch: PathBuf,
    /// What network it has.
    pub network: Network,
    /// What runs as process 1.
    pub program: Program,
    /// The user inside and their group, whose are the files of the person outside.
    pub person: (u32, u32),
    /// Variables for process 1, beside those that are always set. Already resolved.
    pub environment: Vec<(String, String)>,
}

/// What network a container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// One of its own, with nothing but its loopback interface.
    #[default]
    Alone,
    /// One of its own, which somebody connects while the start goes on (see [`crate::spawn::Connect`]).
    Connected,
    /// The host's.
    Host,
}

/// A root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Root {
    /// Read-only layers under a writable one, all with plain ids on disk.
    Overlay {
        /// The lower layers, topmost first.
        layers: Vec<PathBuf>,
        /// Holds `upper` and `work`.
        own: PathBuf,
        /// The writable layer need not survive a crash.
        volatile: bool,
        /// The writable layer is in memory, and ends with the run; `own` stays as it is.
        in_memory: bool,
    },
    /// A directory of the container's own whose files already bear the container's ids on disk.
    Directory(PathBuf),
}

/// A directory of the host shown read-only in the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bind {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it appears, from the container's root.
    pub target: PathBuf,
}

/// What process 1 is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// The first of these that is there.
    First {
        /// Commands with their arguments.
        candidates: Vec<Vec<String>>,
        /// Whether our own init runs if none is there.
        or_ours: bool,
    },
    /// Our own init, which runs this command (or none, and only reaps) and ends with its status.
    Ours(OurInit),
}

/// What our own init is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OurInit {
    /// The command and its arguments; empty for none.
    pub command: Vec<String>,
    /// User, as given by the caller: a name or a number, with `:group` or without.
    pub user: Option<String>,
    /// Working directory in the container.
    pub cwd: Option<String>,
    /// Whether standard input, output and error are the caller's (`run`) rather than the console.
    pub inherit_stdio: bool,
    /// Whether the command gets a terminal of its own as controlling terminal.
    pub terminal: bool,
    /// Rows and columns of that terminal, if its user has a window: a program asks for them at its first moment.
    pub window: Option<(u16, u16)>,
}

/// Who carries a step out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The keeper.
    Host,
    /// The builder of the mount tree.
    Stage,
    /// The process that becomes init.
    Guest,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// A step of the host.
    Host(HostStep),
    /// A step of the stage.
    Stage(StageStep),
    /// A step of the guest.
    Guest(GuestStep),
}

/// What the keeper does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostStep {
    /// Makes a cgroup directory.
    MakeCgroup(PathBuf),
    /// Lets the payload group have the controllers.
    Delegate {
        /// The root of the tree.
        tree: PathBuf,
        /// The group above the payload.
        group: PathBuf,
        /// The controllers.
        controllers: Vec<String>,
    },
    /// Writes a limit.
    Limit(Limit),
    /// Limits the use of block devices, whose numbers are looked up by then.
    LimitIo {
        /// The container's groups.
        group: Group,
        /// The limits.
        limits: Vec<IoLimit>,
    },
    /// Attaches the device filter.
    FilterDevices {
        /// The payload group.
        group: PathBuf,
        /// What is allowed; all else is not.
        #[serde(serialize_with = "in_words")]
        rules: Vec<Rule>,
    },
    /// Makes the guest process in its namespaces, born in its cgroup.
    Clone {
        /// Names as in namespaces(7).
        namespaces: Vec<&'static str>,
        /// The payload group.
        cgroup: PathBuf,
    },
    /// Writes the id maps.
    MapIds(IdRange),
    /// Gives the payload group to the container's root.
    GiveCgroup {
        /// The payload group.
        group: PathBuf,
        /// The host's id for the container's root.
        owner: u32,
    },
    /// Sets a resource limit of the guest process.
    ResourceLimit {
        /// Its name, such as `nofile`.
        name: &'static str,
        /// Soft limit; `None` is no limit.
        soft: Option<u64>,
        /// Hard limit; `None` is no limit.
        hard: Option<u64>,
    },
    /// Has the connection of the container's network begun, which goes on meanwhile.
    BeginNetwork,
    /// Takes the finished mount namespace from the stage.
    TakeMounts,
    /// Gives devices of the host, as many as are there.
    Devices {
        /// Which.
        devices: Vec<Device>,
        /// The payload group.
        group: PathBuf,
        /// What else is allowed.
        #[serde(serialize_with = "in_words")]
        rules: Vec<Rule>,
        /// The host's ids of who has them inside.
        owner: (u32, u32),
    },
    /// Shows files of the host.
    Share(Shown),
    /// Waits until the container's network is there, if it is not yet.
    FinishNetwork,
}

/// What the stage does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageStep {
    /// Cuts the ties between this mount namespace and the host's.
    MakePrivate,
    /// Mounts a scratch space that only this namespace has.
    Scratch(PathBuf),
    /// Mounts the root file system.
    Root {
        /// Where from.
        root: Root,
        /// Whether through the container's id map.
        id_mapped: bool,
    },
    /// Shows a directory of the host, read-only.
    Bind {
        /// What and where.
        bind: Bind,
        /// Whether through the container's id map.
        id_mapped: bool,
    },
    /// Attaches a mount that the guest has made.
    Attach(Api),
    /// Shows the host's sysfs, read-only: the kernel makes no new one for who shares the host's network.
    HostSys,
    /// Makes `/dev` with these nodes.
    Dev {
        /// The nodes.
        nodes: Vec<Node>,
        /// The host's id for the container's root.
        owner: u32,
    },
    /// Puts the console at `/dev/console`.
    Console,
    /// Makes `/tmp` a mount of its own, so that no init mounts another over what is shown below it.
    OwnTmp,
    /// Covers a path with nothing.
    Mask(&'static str),
    /// Makes a whole mount read-only.
    ReadOnlyMount(&'static str),
    /// Makes a path inside a mount read-only.
    ReadOnly(&'static str),
    /// Leaves a path below a read-only one writable.
    Writable(&'static str),
    /// Shows a boot id of this start.
    BootId,
    /// Makes the container's root the root of the namespace; the host's tree is gone from it.
    Pivot,
    /// Copies the tree into a namespace of the container's, which locks every mount in it.
    Seal,
}

/// What the guest does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestStep {
    /// Joins the v1 hierarchies of a hybrid host.
    JoinCgroups(Vec<PathBuf>),
    /// Becomes the container's root.
    BecomeRoot,
    /// Starts a new view of the cgroup trees, whose root is the container's group.
    NewCgroupNamespace,
    /// Starts clocks of its own.
    NewClocks {
        /// Offset of the monotonic clock, in nanoseconds.
        monotonic: i64,
        /// Offset of the time since boot, in nanoseconds.
        boottime: i64,
    },
    /// Makes a mount of the kernel's, bound to the container's namespaces, attached nowhere yet.
    Mount(Api),
    /// Opens a pseudo-terminal in the container's own devpts.
    OpenConsole,
    /// Enters the finished mount namespace.
    EnterMounts,
    /// Lets mounts made inside propagate among the container's own namespaces, as its init expects.
    ShareMounts,
    /// Sets the host name.
    HostName(String),
    /// Writes the host name into `/etc/hostname`, if the image has an `/etc`.
    HostNameFile(String),
    /// Makes a user with a home and a group of their own, unless there is one of that name.
    User(String),
    /// Sets the loopback interface up.
    Loopback,
    /// Writes into `/etc/resolv.conf` who answers for names, unless somebody else has.
    Resolver,
    /// Joins a new session keyring.
    Keyring,
    /// Drops capabilities from the bounding set.
    Bound(Capabilities),
    /// Sets the label that the program will run under.
    Label {
        /// Whose label.
        module: Label,
        /// The label.
        label: String,
    },
    /// Promises never to gain privileges by execution.
    NoNewPrivileges,
    /// Loads the system call filter.
    Filter(#[serde(serialize_with = "instruction_count")] seccomp::Program),
    /// Executes the program.
    Execute {
        /// Which.
        program: Program,
        /// Its whole environment.
        environment: Vec<(String, String)>,
    },
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name below `/dev`.
    pub name: &'static str,
    /// Its major number (devices.txt of the kernel).
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Its group in the container: 5 is tty.
    pub group: u32,
}

const fn node(name: &'static str, major: u32, minor: u32, group: u32) -> Node {
    Node { name, major, minor, group }
}

/// The nodes that every container has, all of mode 0666.
pub const NODES: &[Node] = &[
    node("null", 1, 3, 0),
    node("zero", 1, 5, 0),
    node("full", 1, 7, 0),
    node("random", 1, 8, 0),
    node("urandom", 1, 9, 0),
    node("tty", 5, 0, 5),
];

fn nodes(nesting: bool, host: &Host) -> Vec<Node> {
    let mut nodes = NODES.to_vec();
    if host.fuse {
        nodes.push(node("fuse", 10, 229, 0));
    }
    if host.tun && nesting {
        nodes.push(node("net/tun", 10, 200, 0));
    }
    nodes
}

/// A file system of the kernel's that is bound to the namespaces of whoever mounts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Processes.
    Proc,
    /// Devices and the kernel.
    Sys,
    /// The container's cgroups.
    Cgroup,
    /// Pseudo-terminals.
    Devpts,
    /// POSIX message queues.
    Mqueue,
    /// POSIX shared memory.
    Shm,
    /// State that ends with the container's run.
    Run,
}

/// How an [`Api`] file system is mounted.
pub struct ApiMount {
    /// Which.
    pub api: Api,
    /// Its type for fsopen(2).
    pub kind: &'static str,
    /// Where it goes, from the container's root.
    pub target: &'static str,
    /// Its options.
    pub options: &'static [(&'static str, &'static str)],
    /// Attributes as of mount_setattr(2).
    pub attributes: u64,
}

const SEALED: u64 = lazaret_sys::mount::NO_SUID | lazaret_sys::mount::NO_DEV | lazaret_sys::mount::NO_EXEC;

impl Api {
    /// All of them, in the order in which they are made and attached.
    pub const ALL: &[ApiMount] = &[
        ApiMount { api: Api::Proc, kind: "proc", target: "proc", options: &[], attributes: SEALED },
        ApiMount { api: Api::Sys, kind: "sysfs", target: "sys", options: &[], attributes: SEALED },
        ApiMount { api: Api::Cgroup, kind: "cgroup2", target: "sys/fs/cgroup", options: &[], attributes: SEALED },
        ApiMount {
            api: Api::Devpts,
            kind: "devpts",
            target: "dev/pts",
            // gid 5 is tty on every distribution that glibc's grantpt ever worked on.
            options: &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5"), ("max", "1024")],
            attributes: lazaret_sys::mount::NO_SUID | lazaret_sys::mount::NO_EXEC,
        },
        ApiMount { api: Api::Mqueue, kind: "mqueue", target: "dev/mqueue", options: &[], attributes: SEALED },
        ApiMount {
            api: Api::Shm,
            kind: "tmpfs",
            target: "dev/shm",
            options: &[("mode", "1777")],
            attributes: lazaret_sys::mount::NO_SUID | lazaret_sys::mount::NO_DEV,
        },
        ApiMount {
            api: Api::Run,
            kind: "tmpfs",
            target: "run",
            options: &[("mode", "0755"), ("size", "20%"), ("nr_inodes", "800k")],
            attributes: lazaret_sys::mount::NO_SUID | lazaret_sys::mount::NO_DEV,
        },
    ];

    /// How it is mounted.
    pub fn mount(self) -> &'static ApiMount {
        &Api::ALL[self.index() as usize]
    }

    /// Its place in [`Api::ALL`].
    pub fn index(self) -> u8 {
        self as u8
    }
}

/// The steps of a start, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Plan {
    /// All of them.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Decides everything. Makes no system call.
    ///
    /// Errors name what the host lacks or what in the configuration can't be.
    pub fn compile(spec: &Spec, host: &Host) -> Result<Plan> {
        let mut steps = Vec::new();
        groups(&mut steps, spec, host)?;
        birth(&mut steps, spec, host)?;
        kernel_mounts(&mut steps, spec, host)?;
        tree(&mut steps, spec, host);
        confinement(&mut steps, spec)?;
        Ok(Plan { steps })
    }
}

/// The cgroups, with limits in force before anything can use what they limit.
fn groups(steps: &mut Vec<Step>, spec: &Spec, host: &Host) -> Result<()> {
    let mut push = |step| steps.push(Step::Host(step));
    for dir in spec.group.directories(&host.cgroups) {
        push(HostStep::MakeCgroup(dir));
    }
    let controllers = cgroup::delegated(&host.cgroups);
    if !controllers.is_empty() {
        let tree = host.cgroups.v2.clone();
        push(HostStep::Delegate { group: tree.join(&spec.group.base), tree, controllers });
    }
    for limit in cgroup::limits(&spec.config, None, &spec.group, &host.cgroups)? {
        push(HostStep::Limit(limit));
    }
    if !spec.config.io.is_empty() {
        push(HostStep::LimitIo { group: spec.group.clone(), limits: spec.config.io.clone() });
    }
    let rules = confine::device_rules(spec.config.nesting);
    push(HostStep::FilterDevices { group: spec.group.payload(&host.cgroups), rules });
    Ok(())
}

/// The guest process, its ids and its limits.
fn birth(steps: &mut Vec<Step>, spec: &Spec, host: &Host) -> Result<()> {
    let mut push = |step| steps.push(Step::Host(step));
    let payload = spec.group.payload(&host.cgroups);
    let mut namespaces = vec!["mount", "pid", "uts", "ipc"];
    if spec.network != Network::Host {
        namespaces.insert(2, "net");
    }
    if spec.ids.is_some() {
        namespaces.insert(0, "user");
    }
    push(HostStep::Clone { namespaces, cgroup: payload.clone() });
    if spec.network == Network::Connected {
        push(HostStep::BeginNetwork);
    }
    if let Some(range) = spec.ids {
        push(HostStep::MapIds(range));
    }
    push(HostStep::GiveCgroup { group: payload, owner: owner(spec) });
    for (name, limit) in &spec.config.rlimits {
        push(HostStep::ResourceLimit { name: name.name(), soft: limit.soft, hard: limit.hard });
    }
    Ok(())
}

/// The host's id for the container's root.
fn owner(spec: &Spec) -> u32 {
    spec.ids.map_or(0, |range| range.start)
}

/// What only a process inside the new namespaces can mount.
fn kernel_mounts(steps: &mut Vec<Step>, spec: &Spec, host: &Host) -> Result<()> {
    let mut push = |step| steps.push(Step::Guest(step));
    let v1: Vec<PathBuf> = host.cgroups.v1.iter().map(|mount| mount.join(&spec.group.base)).collect();
    if !v1.is_empty() {
        push(GuestStep::JoinCgroups(v1));
    }
    push(GuestStep::NewCgroupNamespace);
    let time = &spec.config.time;
    if time.monotonic.is_some() || time.boottime.is_some() {
        push(GuestStep::NewClocks {
            monotonic: time.monotonic.map_or(0, |span| span.nanoseconds()),
            boottime: time.boottime.map_or(0, |span| span.nanoseconds()),
        });
    }
    push(GuestStep::BecomeRoot);
    for mount in Api::ALL.iter().filter(|mount| spec.network != Network::Host || mount.api != Api::Sys) {
        push(GuestStep::Mount(mount.api));
    }
    push(GuestStep::OpenConsole);
    if let Some(label) = label(&spec.config, host)? {
        push(GuestStep::Label { module: host.label, label });
    }
    Ok(())
}

/// The tree of mounts, from the root file system to the last mask.
fn tree(steps: &mut Vec<Step>, spec: &Spec, host: &Host) {
    let id_mapped = spec.ids.is_some();
    let mut push = |step| steps.push(Step::Stage(step));
    push(StageStep::MakePrivate);
    push(StageStep::Scratch(spec.scratch.clone()));
    push(StageStep::Root {
        root: spec.root.clone(),
        id_mapped: id_mapped && matches!(spec.root, Root::Overlay { .. }),
    });
    for bind in &spec.binds {
        push(StageStep::Bind { bind: bind.clone(), id_mapped });
    }
    push(StageStep::Attach(Api::Proc));
    push(match spec.network {
        Network::Host => StageStep::HostSys,
        Network::Alone | Network::Connected => StageStep::Attach(Api::Sys),
    });
    push(StageStep::Attach(Api::Cgroup));
    let nodes = nodes(spec.config.nesting, host);
    push(StageStep::Dev { nodes, owner: owner(spec) });
    for api in [Api::Devpts, Api::Mqueue, Api::Shm, Api::Run] {
        push(StageStep::Attach(api));
    }
    push(StageStep::Console);
    if spec.shown.iter().any(|bind| relative(&bind.target).starts_with("tmp")) {
        push(StageStep::OwnTmp);
    }
    for bind in &spec.shown {
        push(StageStep::Bind { bind: bind.clone(), id_mapped: false });
    }
    // A nested container's proc needs one that shows all (mount_too_revealing in fs/namespace.c); what
    // is left bare then is still the host's by owner, and closed to the container's ids.
    if !spec.config.nesting {
        push(StageStep::ReadOnlyMount("sys"));
        for (path, _) in confine::READ_ONLY {
            push(StageStep::ReadOnly(path));
        }
        for (path, _) in confine::WRITABLE {
            push(StageStep::Writable(path));
        }
        for (path, _) in confine::MASKED {
            push(StageStep::Mask(path));
        }
        push(StageStep::BootId);
    }
    push(StageStep::Pivot);
    if spec.ids.is_some() {
        push(StageStep::Seal);
    }
    steps.push(Step::Host(HostStep::TakeMounts));
    // Not locked in their places like the rest of the tree, or they could not be taken away while it runs.
    if !spec.config.devices.is_empty() {
        let (uid, gid) = spec.person;
        steps.push(Step::Host(HostStep::Devices {
            devices: spec.config.devices.clone(),
            group: spec.group.payload(&host.cgroups),
            rules: confine::device_rules(spec.config.nesting),
            owner: (owner(spec) + uid, owner(spec) + gid),
        }));
    }
    steps.extend(shares(spec).into_iter().map(|shown| Step::Host(HostStep::Share(shown))));
    if spec.network != Network::Alone {
        steps.push(Step::Host(HostStep::FinishNetwork));
    }
}

/// Those above others first.
fn shares(spec: &Spec) -> Vec<Shown> {
    let mut shares = spec.config.shares.clone();
    shares.sort_by(|a, b| a.target.cmp(&b.target));
    let (uid, gid) = spec.person;
    let person = spec.ids.map(|ids| Person { uid, gid, ids });
    shares.into_iter().map(|share| Shown { share, person, scratch: spec.scratch.clone() }).collect()
}

/// The last steps of the guest: who it is, and what it may not.
fn confinement(steps: &mut Vec<Step>, spec: &Spec) -> Result<()> {
    let config = &spec.config;
    let mut push = |step| steps.push(Step::Guest(step));
    push(GuestStep::EnterMounts);
    push(GuestStep::ShareMounts);
    let host_name = config.hostname.as_ref().map_or_else(|| spec.name.to_string(), |name| name.to_string());
    push(GuestStep::HostName(host_name.clone()));
    // An init of the image's would read another name there and set it back, and people look there. A container for one
    // command does without: the first write into `/etc` of an overlay is dear.
    let for_one_command = matches!(&spec.program, Program::Ours(ours) if !ours.command.is_empty());
    if !for_one_command {
        push(GuestStep::HostNameFile(host_name));
    }
    if let Some(user) = &spec.user {
        push(GuestStep::User(user.clone()));
    }
    match spec.network {
        Network::Alone => push(GuestStep::Loopback),
        Network::Connected => {
            push(GuestStep::Loopback);
            push(GuestStep::Resolver);
        }
        Network::Host => push(GuestStep::Resolver),
    }
    push(GuestStep::Keyring);
    push(GuestStep::Bound(Capabilities::of(config)));
    if config.no_new_privs {
        push(GuestStep::NoNewPrivileges);
    }
    if let Some(program) = filter(config)? {
        push(GuestStep::Filter(program));
    }
    push(GuestStep::Execute { program: spec.program.clone(), environment: environment(spec) });
    Ok(())
}

/// The label to run under, if the host labels processes.
///
/// A label asked for on a host that can't give it is an error: silence would be a false promise.
pub fn label(config: &Config, host: &Host) -> Result<Option<String>> {
    let (wanted, module) = match (&config.apparmor, &config.selinux) {
        (Some(label), _) if label != "unconfined" => (label, Label::AppArmor),
        (_, Some(label)) if label != "unconfined" => (label, Label::Selinux),
        _ => return Ok(None),
    };
    if host.label != module {
        return Err(error(format!("the label `{wanted}` needs {module:?}, which is not on here"))
            .hint("take the key out of container.toml, or start on a host that has it"));
    }
    Ok(Some(wanted.clone()))
}

/// The system call filter, if one is wanted.
pub fn filter(config: &Config) -> Result<Option<seccomp::Program>> {
    if config.seccomp == Seccomp::Off {
        return Ok(None);
    }
    let options =
        seccomp::Options { nesting: config.nesting, allow: &config.seccomp_allow, deny: &config.seccomp_deny };
    seccomp::compile(&options).map(Some)
}

/// Candidates for process 1 of an image, in the order the kernel itself would try them (init/main.c).
pub fn program(init: &Init, image_is_bare: bool) -> Program {
    match init {
        Init::Lazaret => Program::Ours(OurInit::default()),
        Init::Auto if image_is_bare => Program::Ours(OurInit::default()),
        Init::Auto => Program::First {
            candidates: ["/sbin/init", "/etc/init", "/bin/init", "/init"].map(|p| vec![p.into()]).into(),
            or_ours: true,
        },
        Init::Command(words) => Program::First { candidates: vec![words.clone()], or_ours: false },
    }
}

fn in_words<S: serde::Serializer>(rules: &[Rule], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(rules.iter().map(Rule::to_string))
}

fn instruction_count<S: serde::Serializer>(program: &seccomp::Program, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(program.instructions().len() as u64)
}

/// What every program in the container finds set, before the configuration adds its own.
pub const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("container", "lazaret"),
    ("LANG", "C.UTF-8"),
];

/// Starts empty: nothing of the host's gets in by accident.
fn environment(spec: &Spec) -> Vec<(String, String)> {
    let own = [("HOME", "/root"), ("USER", "root"), ("SHELL", "/bin/sh"), ("TERM", "linux")];
    let fixed = ENVIRONMENT.iter().chain(&own).map(|(k, v)| (k.to_string(), v.to_string()));
    let mut all: Vec<(String, String)> = Vec::new();
    for (key, value) in fixed.chain(spec.environment.iter().cloned()) {
        all.retain(|(k, _)| *k != key);
        all.push((key, value));
    }
    all
}

impl Step {
    /// Who carries it out.
    pub fn side(&self) -> Side {
        match self {
            Step::Host(_) => Side::Host,
            Step::Stage(_) => Side::Stage,
            Step::Guest(_) => Side::Guest,
        }
    }
}

/// A plan as people read it: numbered, with the side of each step.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>3}  {:<5}  {step}", index + 1, step.side())?;
        }
        Ok(())
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Side::Host => "host",
            Side::Stage => "stage",
            Side::Guest => "guest",
        })
    }
}

/// What is being done, as the head of an error: "mounting proc on `/proc`".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Host(step) => step.fmt(f),
            Step::Stage(step) => step.fmt(f),
            Step::Guest(step) => step.fmt(f),
        }
    }
}

impl fmt::Display for HostStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostStep::MakeCgroup(dir) => write!(f, "making the cgroup `{}`", dir.display()),
            HostStep::Delegate { group, controllers, .. } => {
                write!(f, "delegating {} below `{}`", controllers.join(", "), group.display())
            }
            HostStep::Limit(limit) => write!(f, "setting `{}` to `{}`", limit.file.display(), limit.value),
            HostStep::LimitIo { limits, .. } => {
                let devices: Vec<_> = limits.iter().map(|limit| limit.device.display().to_string()).collect();
                write!(f, "limiting the use of {}", devices.join(", "))
            }
            HostStep::FilterDevices { rules, .. } => {
                write!(f, "allowing {} kinds of devices and no other", rules.len())
            }
            HostStep::Clone { namespaces, .. } => {
                write!(f, "making a process in new {} namespaces", namespaces.join(", "))
            }
            HostStep::MapIds(range) => write!(f, "mapping ids 0-{} to {}", range.count - 1, range.start),
            HostStep::GiveCgroup { group, owner } => write!(f, "giving `{}` to {owner}", group.display()),
            HostStep::ResourceLimit { name, soft, hard } => {
                write!(f, "limiting {name} to {}:{}", Amount(*soft), Amount(*hard))
            }
            HostStep::BeginNetwork => f.write_str("asking for a network"),
            HostStep::TakeMounts => f.write_str("taking the finished mount namespace"),
            HostStep::Devices { devices, .. } => {
                let which: Vec<_> = devices.iter().map(|device| device.which.to_string()).collect();
                write!(f, "giving the devices {}", which.join(", "))
            }
            HostStep::Share(shown) => shown.fmt(f),
            HostStep::FinishNetwork => f.write_str("connecting the network"),
        }
    }
}

struct Amount(Option<u64>);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => n.fmt(f),
            None => f.write_str("unlimited"),
        }
    }
}

impl fmt::Display for StageStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StageStep::MakePrivate => f.write_str("separating the mount namespace from the host's"),
            StageStep::Scratch(at) => write!(f, "mounting scratch space over `{}`", at.display()),
            StageStep::Root { root: Root::Overlay { layers, in_memory, .. }, id_mapped } => {
                write!(f, "mounting the root: an overlay of {} read-only {}", layers.len(), plural(layers.len()))?;
                f.write_str(if *id_mapped { ", id-mapped" } else { "" })?;
                f.write_str(if *in_memory { ", written to in memory" } else { "" })
            }
            StageStep::Root { root: Root::Directory(dir), .. } => {
                write!(f, "mounting the root from `{}`", dir.display())
            }
            StageStep::Bind { bind, .. } => {
                write!(f, "showing `{}` at `/{}`, read-only", bind.source.display(), relative(&bind.target).display())
            }
            StageStep::Attach(api) => write!(f, "attaching {} at `/{}`", api.mount().kind, api.mount().target),
            StageStep::HostSys => f.write_str("showing the host's `/sys`, read-only"),
            StageStep::Dev { nodes, .. } => write!(f, "making `/dev` with {} nodes", nodes.len()),
            StageStep::Console => f.write_str("putting the console at `/dev/console`"),
            StageStep::OwnTmp => f.write_str("making `/tmp` a mount of its own"),
            StageStep::Mask(path) => write!(f, "masking `/{path}`"),
            StageStep::ReadOnly(path) | StageStep::ReadOnlyMount(path) => write!(f, "making `/{path}` read-only"),
            StageStep::Writable(path) => write!(f, "leaving `/{path}` writable"),
            StageStep::BootId => f.write_str("giving this boot an id"),
            StageStep::Pivot => f.write_str("leaving the host's root"),
            StageStep::Seal => f.write_str("locking every mount"),
        }
    }
}

fn plural(layers: usize) -> &'static str {
    if layers == 1 { "layer" } else { "layers" }
}

/// A path without its leading slash.
pub fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

impl fmt::Display for GuestStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GuestStep::JoinCgroups(groups) => write!(f, "joining {} cgroup v1 hierarchies", groups.len()),
            GuestStep::BecomeRoot => f.write_str("becoming the container's root"),
            GuestStep::NewCgroupNamespace => f.write_str("starting a new cgroup namespace"),
            GuestStep::NewClocks { monotonic, boottime } => {
                write!(f, "setting clocks off by {monotonic} ns (monotonic) and {boottime} ns (boottime)")
            }
            GuestStep::Mount(api) => write!(f, "mounting {} for `/{}`", api.mount().kind, api.mount().target),
            GuestStep::OpenConsole => f.write_str("opening the console"),
            GuestStep::EnterMounts => f.write_str("entering the finished mount namespace"),
            GuestStep::ShareMounts => f.write_str("sharing mounts among the container's namespaces"),
            GuestStep::HostName(name) => write!(f, "setting the host name to `{name}`"),
            GuestStep::HostNameFile(name) => write!(f, "writing `{name}` to `/etc/hostname`"),
            GuestStep::User(name) => write!(f, "making the user `{name}`"),
            GuestStep::Loopback => f.write_str("setting the loopback interface up"),
            GuestStep::Resolver => f.write_str("naming the name servers in `/etc/resolv.conf`"),
            GuestStep::Keyring => f.write_str("joining a new session keyring"),
            GuestStep::Bound(set) => write!(f, "limiting capabilities to {:#x}", set.0),
            GuestStep::Label { label, .. } => write!(f, "taking the label `{label}`"),
            GuestStep::NoNewPrivileges => f.write_str("giving up gaining privileges"),
            GuestStep::Filter(program) => {
                write!(f, "loading the system call filter ({} instructions)", program.instructions().len())
            }
            GuestStep::Execute { program: Program::First { candidates, .. }, .. } => {
                let names: Vec<_> =
                    candidates.iter().filter_map(|words| words.first()).map(|w| format!("`{w}`")).collect();
                write!(f, "executing {}", names.join(" or "))
            }
            GuestStep::Execute { program: Program::Ours(ours), .. } => match ours.command.first() {
                Some(command) => write!(f, "executing `{command}` under our own init"),
                None => f.write_str("executing our own init"),
            },
        }
    }
}

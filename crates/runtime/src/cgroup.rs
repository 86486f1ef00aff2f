//! Control groups: one v2 group for every container, and one in each v1 hierarchy of a hybrid host.
//!
//! Inside, a container sees a pure v2 tree. Limits are set from outside, where the controllers are: on
//! v2, or on the v1 hierarchies of a hybrid host. Freezing, killing and device rules always use v2,
//! which needs no controller for them (cgroup-v2.rst).

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::{Config, Cpus, IoLimit};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const CGROUP1_MAGIC: u64 = 0x0027_e0eb;

/// The cgroup trees of this host.
#[derive(Clone, Debug, Serialize)]
pub struct Hierarchies {
    /// Where the v2 tree is mounted.
    pub v2: PathBuf,
    /// Controllers the v2 tree has.
    pub controllers: Vec<String>,
    /// Every v1 hierarchy: its mount point's name is its list of controllers.
    pub v1: Vec<PathBuf>,
}

impl Hierarchies {
    /// Looks at `/sys/fs/cgroup`, which is the v2 tree itself or, on a hybrid host, a directory of trees.
    pub fn probe() -> Result<Hierarchies> {
        let top = Path::new("/sys/fs/cgroup");
        if magic(top) == Some(CGROUP2_MAGIC) {
            return Ok(Hierarchies { v2: top.into(), controllers: controllers(top), v1: Vec::new() });
        }
        let mut v1 = Vec::new();
        let mut v2 = None;
        for entry in fs::read_dir(top).with_context(|| format!("reading `{}`", top.display()))? {
            let entry = entry?;
            // `cpu -> cpu,cpuacct` names the same tree again.
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match magic(&entry.path()) {
                Some(CGROUP2_MAGIC) => v2 = Some(entry.path()),
                Some(CGROUP1_MAGIC) => v1.push(entry.path()),
                _ => {}
            }
        }
        v1.sort();
        let v2 = v2.ok_or_else(|| {
            error("no cgroup v2 tree is mounted below `/sys/fs/cgroup`")
                .kind(Kind::Missing)
                .hint("mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
        })?;
        Ok(Hierarchies { controllers: controllers(&v2), v2, v1 })
    }

    /// The directory that limits of `controller` are written in, for the group `base`.
    fn limiting(&self, controller: &str, base: &str) -> Option<Place> {
        if self.controllers.iter().any(|c| c == controller || (controller == "blkio" && c == "io")) {
            return Some(Place { dir: self.v2.join(base), v2: true });
        }
        let mount = self.v1.iter().find(|m| v1_controllers(m).any(|c| c == controller))?;
        Some(Place { dir: mount.join(base), v2: false })
    }
}

struct Place {
    dir: PathBuf,
    v2: bool,
}

fn magic(path: &Path) -> Option<u64> {
    rustix::fs::statfs(path).ok().map(|s| s.f_type as u64)
}

fn controllers(v2: &Path) -> Vec<String> {
    let text = fs::read_to_string(v2.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn v1_controllers(mount: &Path) -> impl Iterator<Item = &str> {
    mount.file_name().and_then(|n| n.to_str()).unwrap_or_default().split(',')
}

/// The groups of one container, by the path that they share in every tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Relative to each tree's root, such as `lazaret/web`. Limits are set on it.
    pub base: String,
    /// The scope of systemd's that `base` is in the v2 tree, if it is one: systemd makes and removes it.
    pub scope: Option<String>,
}

impl Group {
    /// Where the container's own processes are: the root of what it sees.
    pub fn payload(&self, trees: &Hierarchies) -> PathBuf {
        trees.v2.join(&self.base).join("payload")
    }

    /// Every directory of this group, those that hold others first.
    pub fn directories(&self, trees: &Hierarchies) -> Vec<PathBuf> {
        let mut all = vec![self.payload(trees)];
        if self.scope.is_none() {
            all.insert(0, trees.v2.join(&self.base));
        }
        all.extend(trees.v1.iter().map(|mount| mount.join(&self.base)));
        all
    }
}

/// Makes one directory of a group, with what it needs before a process may live in it.
pub fn make(dir: &Path) -> Result<()> {
    let making = || format!("making the cgroup `{}`", dir.display());
    fs::create_dir_all(dir).with_context(making)?;
    // A v1 cpuset group takes no process until it has processors and memory nodes (cpusets.rst).
    let of_cpuset = || dir.ancestors().any(|above| v1_controllers(above).any(|controller| controller == "cpuset"));
    if !of_cpuset() || magic(dir) != Some(CGROUP1_MAGIC) {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Some(parent) = dir.parent()
            && fs::read_to_string(dir.join(file)).is_ok_and(|text| text.trim().is_empty())
        {
            inherit_cpuset(parent, dir, file).with_context(making)?;
        }
    }
    Ok(())
}

/// Copies a cpuset file down, first into the parent if that is empty too.
fn inherit_cpuset(parent: &Path, dir: &Path, file: &str) -> Result<()> {
    let mut value = fs::read_to_string(parent.join(file))?;
    if value.trim().is_empty()
        && let Some(above) = parent.parent()
    {
        inherit_cpuset(above, parent, file)?;
        value = fs::read_to_string(parent.join(file))?;
    }
    write(&dir.join(file), value.trim())
}

/// The controllers that limits need.
const LIMITING: &[&str] = &["cpu", "cpuset", "io", "memory", "pids"];

/// The controllers of a v2 tree that are to be handed on to a container.
pub fn delegated(trees: &Hierarchies) -> Vec<String> {
    trees.controllers.iter().filter(|c| LIMITING.contains(&c.as_str())).cloned().collect()
}

/// Lets the groups below `dir` have the controllers; first, where they do not have them yet, those above it,
/// from the tree's root down ("Top-down Constraint" of cgroup-v2.rst). In a scope of systemd's they do.
pub fn delegate(tree: &Path, dir: &Path, controllers: &[String]) -> Result<()> {
    let mut above: Vec<&Path> = dir.ancestors().take_while(|path| path.starts_with(tree)).collect();
    above.reverse();
    for group in above {
        let enabled = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
        for controller in controllers.iter().filter(|c| !enabled.split_whitespace().any(|word| word == *c)) {
            // One by one: a controller that is bound elsewhere must not keep the others out. A limit that
            // could not be set for want of it will say so.
            let _ = write(&group.join("cgroup.subtree_control"), &format!("+{controller}"));
        }
    }
    Ok(())
}

/// Gives the payload group to the container's root: its directory and the files that the kernel says
/// are safe to give (`/sys/kernel/cgroup/delegate`); the limits stay out of its reach.
pub fn give_away(dir: &Path, uid: u32, gid: u32) -> Result<()> {
    let chown = |path: &Path| match rustix::fs::chown(
        path,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
    ) {
        Err(Errno::NOENT) => Ok(()),
        other => other.with_context(|| format!("giving `{}` to the container", path.display())),
    };
    chown(dir)?;
    ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "memory.oom.group", "memory.reclaim"]
        .iter()
        .try_for_each(|file| chown(&dir.join(file)))
}

/// Writes a control file.
pub fn write(file: &Path, value: &str) -> Result<()> {
    let writing = || format!("writing `{value}` to `{}`", file.display());
    // No O_CREAT: a missing control file is an absent feature, not a new file.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(file)
        .with_context(writing)?;
    file.write_all(value.as_bytes()).with_context(writing)
}

/// A limit, as the file to write and the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// The control file.
    pub file: PathBuf,
    /// What is written into it.
    pub value: String,
}

/// One key of the configuration and the control files it is written to.
struct Control {
    key: &'static str,
    controller: &'static str,
    /// Files and values for v2 (`true`) or v1; none if the key is not set.
    render: fn(&Config, bool) -> Vec<(&'static str, String)>,
    /// Files and values that take a limit off again.
    lift: fn(bool) -> &'static [(&'static str, &'static str)],
}

const CONTROLS: &[Control] = &[
    Control {
        key: "memory",
        controller: "memory",
        render: memory,
        lift: |v2| match v2 {
            true => &[("memory.max", "max"), ("memory.swap.max", "max")],
            // memsw first: it may never be below the plain limit.
            false => &[("memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1")],
        },
    },
    Control {
        key: "cpus",
        controller: "cpu",
        render: cpus,
        lift: |v2| if v2 { &[("cpu.max", "max")] } else { &[("cpu.cfs_quota_us", "-1")] },
    },
    Control {
        key: "cpu_weight",
        controller: "cpu",
        render: cpu_weight,
        lift: |v2| if v2 { &[("cpu.weight", "100")] } else { &[("cpu.shares", "1024")] },
    },
    Control {
        key: "cpuset",
        controller: "cpuset",
        render: |config, _| config.cpuset.iter().map(|set| ("cpuset.cpus", set.to_string())).collect(),
        lift: |_| &[("cpuset.cpus", "")],
    },
    Control {
        key: "pids",
        controller: "pids",
        render: |config, _| config.pids.iter().map(|pids| ("pids.max", pids.to_string())).collect(),
        lift: |_| &[("pids.max", "max")],
    },
    Control {
        key: "io_weight",
        controller: "blkio",
        render: |config, v2| {
            let file = if v2 { "io.weight" } else { "blkio.bfq.weight" };
            config.io_weight.iter().map(|weight| (file, weight.to_string())).collect()
        },
        lift: |v2| if v2 { &[("io.weight", "default 100")] } else { &[("blkio.bfq.weight", "100")] },
    },
];

fn memory(config: &Config, v2: bool) -> Vec<(&'static str, String)> {
    let Some(memory) = config.memory else { return Vec::new() };
    let memory = memory.bytes();
    match (v2, config.swap.map(|swap| swap.bytes())) {
        (true, None) => vec![("memory.max", memory.to_string())],
        (true, Some(swap)) => vec![("memory.max", memory.to_string()), ("memory.swap.max", swap.to_string())],
        (false, None) => vec![("memory.limit_in_bytes", memory.to_string())],
        // v1 limits memory and swap together.
        (false, Some(swap)) => vec![
            ("memory.limit_in_bytes", memory.to_string()),
            ("memory.memsw.limit_in_bytes", memory.saturating_add(swap).to_string()),
        ],
    }
}

fn cpus(config: &Config, v2: bool) -> Vec<(&'static str, String)> {
    let Some(cpus) = config.cpus else { return Vec::new() };
    let (quota, period) = (cpus.quota(), Cpus::PERIOD);
    match v2 {
        true => vec![("cpu.max", format!("{quota} {period}"))],
        false => vec![("cpu.cfs_period_us", period.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
    }
}

/// Weights of v2 are 1 to 10000 around 100, shares of v1 are 2 to 262144 around 1024.
fn cpu_weight(config: &Config, v2: bool) -> Vec<(&'static str, String)> {
    let Some(weight) = config.cpu_weight else { return Vec::new() };
    match v2 {
        true => vec![("cpu.weight", weight.to_string())],
        false => vec![("cpu.shares", (u64::from(weight) * 1024 / 100).max(2).to_string())],
    }
}

/// The files to write so that `config`'s limits are in force on `group`, v2 or v1.
///
/// `before` is the configuration in force, for a live change: a limit that was there and is no more is
/// taken off. Errors name the key whose controller this host has not.
pub fn limits(config: &Config, before: Option<&Config>, group: &Group, trees: &Hierarchies) -> Result<Vec<Limit>> {
    let mut limits = Vec::new();
    for Control { key, controller, render, lift } in CONTROLS {
        let place = trees.limiting(controller, &group.base);
        let Some(Place { dir, v2 }) = place else {
            // The limit on tasks is on by default; a host that can't count them is no reason to refuse.
            let by_default = *key == "pids" && config.pids == Config::default().pids;
            if !render(config, true).is_empty() && !by_default {
                return Err(missing_controller(key, controller));
            }
            continue;
        };
        let values = render(config, v2);
        let were = before.map(|before| render(before, v2)).unwrap_or_default();
        let gone = |file: &str| were.iter().any(|(f, _)| *f == file) && !values.iter().any(|(f, _)| *f == file);
        let lifted: Vec<_> = lift(v2).iter().filter(|(file, _)| gone(file)).collect();
        limits.extend(values.into_iter().map(|(file, value)| Limit { file: dir.join(file), value }));
        for (file, value) in lifted {
            let value = match *value {
                // A v1 cpuset has no word for all processors; it takes those of the group above (cpusets.rst).
                "" if !v2 => fs::read_to_string(dir.join("..").join(file))?.trim().to_owned(),
                value => value.to_owned(),
            };
            limits.push(Limit { file: dir.join(file), value });
        }
    }
    Ok(limits)
}

fn missing_controller(key: &str, controller: &str) -> Error {
    error(format!("`{key}` needs the cgroup controller `{controller}`, which this host does not offer"))
        .kind(Kind::Missing)
        .hint("`lazaret doctor` tells what is missing; memory may need `cgroup_enable=memory` on the kernel's command line")
}

/// The files to write for limits on devices, which need the devices' numbers. An entry of `before` without a
/// successor is taken off.
pub fn io_limits(config: &Config, before: &[IoLimit], group: &Group, trees: &Hierarchies) -> Result<Vec<Limit>> {
    let gone = before.iter().filter(|old| !config.io.iter().any(|new| new.device == old.device));
    let lifted = gone.map(|old| IoLimit {
        device: old.device.clone(),
        read: None,
        write: None,
        read_iops: None,
        write_iops: None,
    });
    let mut limits = Vec::new();
    for limit in config.io.iter().cloned().chain(lifted) {
        let Some(Place { dir, v2 }) = trees.limiting("blkio", &group.base) else {
            return Err(missing_controller("io", "io"));
        };
        let number = block_device(&limit.device)?;
        limits.extend(io_files(&limit, &number, v2).into_iter().map(|(f, value)| Limit { file: dir.join(f), value }));
    }
    Ok(limits)
}

/// `MAJOR:MINOR` of a block device.
fn block_device(path: &Path) -> Result<String> {
    let looking = || format!("looking at `{}` for `io`", path.display());
    let status = rustix::fs::stat(path).with_context(looking)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::BlockDevice {
        return Err(error("it is not a block device")).with_context(looking).hint("`lsblk -p` lists them");
    }
    Ok(format!("{}:{}", rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev)))
}

fn io_files(limit: &IoLimit, number: &str, v2: bool) -> Vec<(&'static str, String)> {
    let rates = [
        ("rbps", "blkio.throttle.read_bps_device", limit.read.map(|size| size.bytes())),
        ("wbps", "blkio.throttle.write_bps_device", limit.write.map(|size| size.bytes())),
        ("riops", "blkio.throttle.read_iops_device", limit.read_iops.map(u64::from)),
        ("wiops", "blkio.throttle.write_iops_device", limit.write_iops.map(u64::from)),
    ];
    if v2 {
        let word = |value: Option<u64>| value.map_or("max".to_owned(), |n| n.to_string());
        let words: Vec<_> = rates.iter().map(|(key, _, value)| format!("{key}={}", word(*value))).collect();
        return vec![("io.max", format!("{number} {}", words.join(" ")))];
    }
    // On v1 zero means no limit.
    rates.iter().map(|(_, file, value)| (*file, format!("{number} {}", value.unwrap_or(0)))).collect()
}

/// Freezes or thaws a group and waits until the kernel says so.
pub fn freeze(payload: &Path, frozen: bool, deadline: Duration) -> Result<()> {
    write(&payload.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let wanted = if frozen { "frozen 1" } else { "frozen 0" };
    match wait_for(payload, wanted, deadline)? {
        true => Ok(()),
        false => Err(error(format!("not {wanted} after {} s", deadline.as_secs()))
            .hint("a process in an uninterruptible wait, such as for a dead network share, can't be frozen")),
    }
}

/// Whether a group is frozen, or about to be: a process that is born in it will not run.
pub fn frozen(payload: &Path) -> bool {
    let says = |file: &str, line: &str| {
        fs::read_to_string(payload.join(file)).is_ok_and(|text| text.lines().any(|found| found == line))
    };
    says("cgroup.events", "frozen 1") || says("cgroup.freeze", "1")
}

/// Kills every process in a group (`cgroup.kill`, Linux 5.14) and waits until none is left.
pub fn kill(payload: &Path, deadline: Duration) -> Result<()> {
    match write(&payload.join("cgroup.kill"), "1") {
        Err(e) if e.errno() == Some(Errno::NOENT) => return Ok(()),
        other => other?,
    }
    match wait_for(payload, "populated 0", deadline)? {
        true => Ok(()),
        false => Err(error(format!("processes in `{}` survive being killed", payload.display()))
            .hint("they wait in the kernel, such as for a dead network share; they end when that wait does")),
    }
}

/// The processes of a v2 group and of all below it, as the host numbers them. Some may have ended.
pub fn processes(group: &Path) -> Vec<i32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes(&entry.path()));
        }
    }
    pids
}

/// The kernel tells of changes every 10 ms at most, and of those that wait when a group is removed never
/// (cgroup_file_notify and cgroup_rm_file in kernel/cgroup/cgroup.c): so we look again by ourselves, too.
const NEWS_LOST: Duration = Duration::from_millis(10);

/// Waits until `cgroup.events` has a line. The kernel announces each change of the file by POLLPRI.
fn wait_for(group: &Path, line: &str, deadline: Duration) -> Result<bool> {
    let end = Instant::now() + deadline;
    let file = match fs::File::open(group.join("cgroup.events")) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    let mut text = [0u8; 256];
    loop {
        let n = match rustix::io::pread(&file, &mut text, 0) {
            // Removed meanwhile.
            Err(Errno::NODEV) => return Ok(true),
            other => other?,
        };
        if text[..n].split(|byte| *byte == b'\n').any(|l| l == line.as_bytes()) {
            return Ok(true);
        }
        let Some(left) = end.checked_duration_since(Instant::now()) else { return Ok(false) };
        let left = left.min(NEWS_LOST);
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Removes a container's groups in every tree, with what the container made below them. They are empty of
/// processes by now; what is gone already is fine.
pub fn remove(group: &Group, trees: &Hierarchies) -> Result<()> {
    let mut first = Ok(());
    let v2 = match group.scope {
        Some(_) => group.payload(trees),
        None => trees.v2.join(&group.base),
    };
    for top in trees.v1.iter().map(|mount| mount.join(&group.base)).chain([v2]) {
        if let Err(e) = remove_below(&top) {
            first = first.and(Err(e));
        }
    }
    first
}

/// How long an ending process may take from leaving its first group to leaving its last.
const LAST_STEP: Duration = Duration::from_secs(2);

/// Waits until whoever is just leaving the group has left it.
///
/// An ending process leaves its groups one after the other, and the news of the first may be heard before it has left
/// the last. It holds a lock meanwhile, which the kernel takes to list a group's processes as well
/// (css_set_update_populated and css_task_iter_start in kernel/cgroup/cgroup.c).
fn wait_for_exits(group: &Path) {
    let _ = fs::read(group.join("cgroup.procs"));
}

/// Removes a group and all below it, children first. Iterative: a container decides how deep it goes.
fn remove_below(top: &Path) -> Result<()> {
    let end = Instant::now() + LAST_STEP;
    let mut stack = vec![top.to_path_buf()];
    while let Some(dir) = stack.last() {
        match rustix::fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => {
                stack.pop();
                continue;
            }
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(e) => return Err(e).with_context(|| format!("removing the cgroup `{}`", dir.display())),
        }
        let mut children = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                children.push(entry.path());
            }
        }
        if children.is_empty() && Instant::now() < end {
            wait_for_exits(dir);
            continue;
        }
        if children.is_empty() {
            return Err(Error::from(Errno::BUSY).context(format!("removing the cgroup `{}`", dir.display())));
        }
        stack.append(&mut children);
    }
    Ok(())
}

//! What this machine can and cannot do, and how to mend it.

mod network;

use std::fs;
use std::path::Path;

use lazaret_base::Result;
use lazaret_runtime::host::{Host, Label};
use lazaret_runtime::idmap;
use lazaret_sys::process::{Cloned, clone, exit_now, namespace};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use std::os::fd::AsFd;

use crate::store::{Store, open_tree};
use crate::{gate, ids};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// As it should be.
    Good,
    /// Something is missing that some containers need.
    Lacking,
    /// No container can run.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// How it is.
    pub grade: Grade,
    /// What was found, in a sentence.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Check {
    Check { what, grade: Grade::Good, found: found.into(), remedy: None }
}

fn worse(what: &'static str, grade: Grade, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { what, grade, found: found.into(), remedy: Some(remedy.into()) }
}

/// Looks at everything that containers depend on. Tries it where it can be tried.
pub fn examine(store: &Store) -> Result<Vec<Check>> {
    let mut checks = vec![kernel(), root(), namespaces()];
    checks.extend(cgroups());
    checks.push(id_maps(store));
    checks.push(overlay());
    checks.push(seccomp());
    checks.push(label());
    checks.extend(subordinate_ids(store)?);
    checks.extend(network::examine(store));
    checks.push(nested());
    checks.push(leftovers(store)?);
    Ok(checks)
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // 5.19 shows overlays through id maps; 6.1 is the oldest that is tested.
    match version {
        v if v >= (6, 1) => good("kernel", format!("Linux {release}")),
        v if v >= (5, 19) => good("kernel", format!("Linux {release}; 6.1 is the oldest that is tested")),
        _ => worse(
            "kernel",
            Grade::Bad,
            format!("Linux {release}"),
            "install a kernel of 6.1 or later: id-mapped overlays need 5.19",
        ),
    }
}

fn root() -> Check {
    match rustix::process::geteuid().is_root() {
        true => good("user", "root"),
        false => worse(
            "user",
            Grade::Bad,
            "not root",
            "run it with sudo: only root can make containers with ids of their own",
        ),
    }
}

/// The X server that containers with `display = "nested"` have.
fn nested() -> Check {
    match gate::installed() {
        Ok(path) => good("nested displays", format!("`{}`", path.display())),
        Err(e) => worse(
            "nested displays",
            Grade::Lacking,
            format!("{e}; containers with desktop.display=nested need it on an X session"),
            e.advice().unwrap_or_default(),
        ),
    }
}

fn namespaces() -> Check {
    let all = namespace::USER
        | namespace::MOUNT
        | namespace::PID
        | namespace::NET
        | namespace::UTS
        | namespace::IPC
        | namespace::CGROUP;
    match clone(all, None) {
        Ok(Cloned::Child) => exit_now(0),
        Ok(Cloned::Parent(child)) => {
            let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            good("namespaces", "user, mount, pid, network, uts, ipc and cgroup can be made")
        }
        Err(e) => worse(
            "namespaces",
            Grade::Bad,
            format!("can't be made: {}", lazaret_base::Error::from(e)),
            "look at the sysctls user.max_user_namespaces and kernel.unprivileged_userns_clone",
        ),
    }
}

fn cgroups() -> Vec<Check> {
    let host = match Host::probe() {
        Ok(host) => host,
        Err(e) => {
            let remedy = e.advice().unwrap_or("mount a cgroup v2 tree").to_owned();
            return vec![worse("cgroups", Grade::Bad, e.to_string(), remedy)];
        }
    };
    let trees = &host.cgroups;
    let kind = match (trees.v1.is_empty(), host.systemd) {
        (true, true) => "v2 only, owned by systemd: each container gets a delegated scope",
        (true, false) => "v2 only",
        (false, _) => "hybrid: v2 for processes, v1 for limits",
    };
    let mut checks = vec![good("cgroups", kind)];
    for controller in ["memory", "cpu", "pids", "io", "cpuset"] {
        let v1_name = if controller == "io" { "blkio" } else { controller };
        let v1 = trees
            .v1
            .iter()
            .any(|m| m.file_name().is_some_and(|n| n.to_string_lossy().split(',').any(|c| c == v1_name)));
        if !v1 && !trees.controllers.iter().any(|c| c == controller) {
            checks.push(worse(
                "limits",
                Grade::Lacking,
                format!("the controller `{controller}` is not offered, so its limits can't be set"),
                "enable it in the kernel's configuration or command line (memory: cgroup_enable=memory)",
            ));
        }
    }
    if checks.len() == 1 {
        checks.push(good("limits", "memory, cpus, pids, io and cpuset can be limited"));
    }
    checks
}

fn id_maps(store: &Store) -> Check {
    if let Err(e) = store.prepare() {
        return worse(
            "storage",
            Grade::Bad,
            e.to_string(),
            e.advice().unwrap_or("make the directory writable").to_owned(),
        );
    }
    match idmap::supported(store.state_dir()) {
        Ok(true) => {
            let dir = store.state_dir();
            // What can't be tried is as good as not there.
            let shares = open_tree(dir).and_then(lazaret_image::shares_content).unwrap_or(false);
            let running = match shares {
                true => ", nor do snapshots of running containers: files share their content",
                false => "; a snapshot of a running container copies what it has written",
            };
            good("storage", format!("`{}` can be id-mapped: creating copies nothing{running}", dir.display()))
        }
        Ok(false) => worse(
            "storage",
            Grade::Lacking,
            format!(
                "the file system of `{}` can't be id-mapped: each container is a full copy",
                store.state_dir().display()
            ),
            "keep the state on ext4, xfs, btrfs or tmpfs: --root DIR, or mount one there",
        ),
        Err(e) => worse("storage", Grade::Bad, e.to_string(), "see the line on namespaces"),
    }
}

/// Asking for it makes the kernel load its module.
fn overlay() -> Check {
    match rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(_) => good("overlay", "overlayfs is there"),
        Err(e) => worse(
            "overlay",
            Grade::Bad,
            format!("overlayfs is not there: {}", lazaret_base::Error::from(e)),
            "modprobe overlay, or a kernel with CONFIG_OVERLAY_FS",
        ),
    }
}

fn seccomp() -> Check {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("errno") => good("seccomp", "system calls can be filtered"),
        _ => worse(
            "seccomp",
            Grade::Bad,
            "system calls can't be filtered",
            "use a kernel with CONFIG_SECCOMP_FILTER, or switch it off for a container: --set seccomp=off",
        ),
    }
}

fn label() -> Check {
    match Host::probe().map(|host| host.label) {
        Ok(Label::AppArmor) => good("labels", "AppArmor is on"),
        Ok(Label::Selinux) => good("labels", "SELinux is on"),
        _ => good("labels", "neither AppArmor nor SELinux is on; containers don't depend on them"),
    }
}

fn subordinate_ids(store: &Store) -> Result<Vec<Check>> {
    let given = ids::given();
    let mut checks = Vec::new();
    for name in store.names()? {
        let Ok(record) = store.record(&name) else { continue };
        let Some(taken) = record.ids else { continue };
        if let Some(clash) = given.iter().find(|given| given.overlaps(taken.start)) {
            checks.push(worse(
                "ids",
                Grade::Lacking,
                format!("`{name}` and the user `{}` share ids from {} on", clash.user, clash.start.max(taken.start)),
                "take that range out of /etc/subuid and /etc/subgid, or make the container anew",
            ));
        }
    }
    if let Some(far) = given.iter().find(|given| given.count > 100_000_000) {
        checks.push(worse(
            "ids",
            Grade::Lacking,
            format!("`{}` may map {} ids from {} on", far.user, far.count, far.start),
            "65536 are enough in /etc/subuid; who may map the host's own ids is as good as root",
        ));
    }
    if checks.is_empty() {
        checks.push(good("ids", "no container shares ids with a user of this host"));
    }
    Ok(checks)
}

/// Cgroups of containers that do not run.
fn leftovers(store: &Store) -> Result<Check> {
    crate::recover::recover(store)?;
    crate::recover::collect(store)?;
    let Ok(host) = Host::probe() else { return Ok(good("leftovers", "nothing was looked for")) };
    let mut left = Vec::new();
    for mount in host.cgroups.v1.iter().chain([&host.cgroups.v2]) {
        for entry in fs::read_dir(mount.join("lazaret")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && !is_kept(store, &name) && empty(&entry.path()) {
                left.push(entry.path().display().to_string());
            }
        }
    }
    Ok(match left.is_empty() {
        true => good("leftovers", "nothing is left of containers that are gone"),
        false => {
            worse("leftovers", Grade::Lacking, format!("empty cgroups are left: {}", left.join(", ")), "rmdir them")
        }
    })
}

/// Groups of another installation have its prefix before a dot: they are not ours to judge.
fn is_kept(store: &Store, unit: &str) -> bool {
    let prefix = store.unit_prefix();
    match unit.strip_prefix(prefix) {
        Some(name) if !(prefix.is_empty() && name.get(8..9) == Some(".")) => {
            name.parse().is_ok_and(|name| store.is_kept(&name).unwrap_or(true))
        }
        _ => true,
    }
}

fn empty(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.procs")).is_ok_and(|text| text.trim().is_empty())
}

//! The keeper's steps.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lazaret_base::{Context, Result, error};
use lazaret_config::Config;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::cgroup::Hierarchies;
use crate::devices::{Rule, assemble};
use crate::idmap;
use crate::plan::HostStep;
use crate::spawn::{Connect, HostSide, sealed_file};
use crate::turn::Slot;
use crate::{cgroup, hardware, perform::guest, share};
use lazaret_sys::bpf::{bpf_attach, bpf_prog_load_cgroup_device};
use lazaret_sys::process::{Cloned, clone, namespace};

/// Carries one step out. In the process that `Clone` makes, this never returns.
pub fn perform(step: &HostStep, side: &mut HostSide<'_>) -> Result<()> {
    match step {
        HostStep::MakeCgroup(dir) => cgroup::make(dir),
        HostStep::Delegate { tree, group, controllers } => cgroup::delegate(tree, group, controllers),
        HostStep::Limit(limit) => cgroup::write(&limit.file, &limit.value),
        HostStep::LimitIo { group, limits } => {
            let config = Config { io: limits.clone(), ..Config::default() };
            let trees = Hierarchies::probe()?;
            cgroup::io_limits(&config, &[], group, &trees)?.iter().try_for_each(|l| cgroup::write(&l.file, &l.value))
        }
        HostStep::FilterDevices { group, rules } => filter_devices(group, rules),
        HostStep::Clone { namespaces, cgroup } => {
            let dir = openat(CWD, cgroup, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let flags = namespaces.iter().fold(0, |flags, name| flags | flag(name));
            match clone(flags, Some(dir.as_fd()))? {
                Cloned::Child => guest::live(side),
                Cloned::Parent(child) => {
                    // The guest leaves it before long.
                    let outgrown = mounts_of(child.pid)?;
                    side.fds.put(Slot::Outgrown, outgrown);
                    side.guest = Some(child);
                    Ok(())
                }
            }
        }
        HostStep::MapIds(range) => {
            let pid = side.guest_pid()?;
            idmap::write(pid, *range)?;
            side.fds.put(Slot::UserNs, idmap::namespace_of(pid)?);
            Ok(())
        }
        HostStep::GiveCgroup { group, owner } => cgroup::give_away(group, *owner, *owner),
        HostStep::ResourceLimit { name, soft, hard } => {
            prlimit(Some(side.guest_pid()?), resource(name)?, Rlimit { current: *soft, maximum: *hard })?;
            Ok(())
        }
        HostStep::BeginNetwork => {
            let network = network_of(side.guest_pid()?)?;
            connect(side)?.begin(network)
        }
        HostStep::TakeMounts => {
            let mounts = mounts_of(side.stage_pid()?)?;
            side.fds.put(Slot::Mounts, mounts);
            Ok(())
        }
        HostStep::Share(shown) => {
            let into = share::Into { user: side.fds.get(Slot::UserNs).ok(), mounts: side.fds.get(Slot::Mounts)? };
            let made = share::attach(shown, into, &side.private)?;
            side.notes.extend(made.notes(&shown.share));
            Ok(())
        }
        HostStep::Devices { devices, group, rules, owner } => {
            let nodes = hardware::wanted(devices, &hardware::candidates());
            let place = hardware::Place { mounts: side.fds.get(Slot::Mounts)?, payload: group, rules, owner: *owner };
            // No device stops a start.
            match hardware::change(&[], &nodes, &place, &side.private) {
                Ok(()) => side.nodes = nodes,
                Err(e) => side.notes.push(format!("no device is given: {e}")),
            }
            Ok(())
        }
        HostStep::FinishNetwork => {
            let resolver = connect(side)?.finish()?;
            if !resolver.is_empty() {
                side.fds.put(Slot::Resolver, sealed_file("resolv.conf", resolver.as_bytes())?);
            }
            Ok(())
        }
    }
}

/// The mount namespace that a process is in now.
pub(crate) fn mounts_of(pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{}/ns/mnt", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).with_context(|| format!("opening `{path}`"))
}

/// The network namespace of a process.
pub fn network_of(pid: Pid) -> Result<OwnedFd> {
    let path = format!("/proc/{}/ns/net", pid.as_raw_nonzero());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty()).with_context(|| format!("opening `{path}`"))
}

fn connect<'a>(side: &'a mut HostSide<'_>) -> Result<&'a mut (dyn Connect + 'a)> {
    match &mut side.network {
        Some(connect) => Ok(&mut **connect),
        None => Err(error("nobody is there to connect the network")),
    }
}

fn flag(name: &str) -> u64 {
    match name {
        "user" => namespace::USER,
        "mount" => namespace::MOUNT,
        "pid" => namespace::PID,
        "net" => namespace::NET,
        "uts" => namespace::UTS,
        "ipc" => namespace::IPC,
        _ => 0,
    }
}

/// A resource by its name without `RLIMIT_`, in lower case (getrlimit(2)).
pub(crate) fn resource(name: &str) -> Result<Resource> {
    const RESOURCES: &[(&str, Resource)] = &[
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("locks", Resource::Locks),
        ("memlock", Resource::Memlock),
        ("msgqueue", Resource::Msgqueue),
        ("nice", Resource::Nice),
        ("nofile", Resource::Nofile),
        ("nproc", Resource::Nproc),
        ("rss", Resource::Rss),
        ("rtprio", Resource::Rtprio),
        ("rttime", Resource::Rttime),
        ("sigpending", Resource::Sigpending),
        ("stack", Resource::Stack),
    ];
    let found = RESOURCES.iter().find(|(known, _)| *known == name);
    found.map(|(_, resource)| *resource).ok_or_else(|| error(format!("no resource is called `{name}`")))
}

/// Attaches a device filter to a v2 group; it ends with the group.
fn filter_devices(group: &Path, rules: &[Rule]) -> Result<()> {
    let program = bpf_prog_load_cgroup_device(&assemble(rules))?;
    let dir = openat(CWD, group, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(bpf_attach(dir.as_fd(), program.as_fd(), None)?)
}

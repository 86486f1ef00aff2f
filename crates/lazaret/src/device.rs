//! Devices of the host that a container uses: asked for, found, given at once, and followed when they come and go.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Lock, Result, error};
use lazaret_config::{Config, Device, Name};
use lazaret_runtime::confine::device_rules;
use lazaret_runtime::hardware::{self, Node, Place, candidates, change, nodes_of, wanted};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use serde::{Deserialize, Serialize};

use crate::exec::{Running, running};
use crate::limit::edit;
use crate::share::person;
use crate::store::Store;

/// What a running container has, as it is recorded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Given {
    /// The nodes that are, or may be, in its `/dev`.
    pub nodes: Vec<Node>,
    /// A command is changing which are wanted, or was killed over it.
    pub pending: bool,
    /// Some of the nodes may be missing: somebody was killed, or the container is in the way.
    #[serde(default)]
    pub unsure: bool,
}

/// Gives a device, at once if the container runs; one that was given already, as it is asked for now. Says what the
/// user should know.
pub fn add(store: &Store, name: &Name, device: &Device) -> Result<Vec<String>> {
    let changed = edit(store, name, |document| {
        let mut devices = document.config().devices.clone();
        devices.retain(|there| there.which != device.which);
        devices.push(device.clone());
        document.set_list("devices", &devices)
    })
    .with_context(|| format!("giving `{}` to `{name}`", device.which))?;
    Ok(changed.notes)
}

/// Takes a device away.
pub fn remove(store: &Store, name: &Name, device: &Device) -> Result<()> {
    edit(store, name, |document| {
        let mut devices = document.config().devices.clone();
        let before = devices.len();
        devices.retain(|there| there.which != device.which);
        if devices.len() == before {
            let known: Vec<_> = devices.iter().map(|device| device.which.to_string()).collect();
            let hint = match known.is_empty() {
                true => format!("`{name}` has no devices"),
                false => format!("it has {}", known.join(", ")),
            };
            return Err(error(format!("`{}` is not given", device.which)).kind(Kind::NotFound).hint(hint));
        }
        document.set_list("devices", &devices)
    })
    .with_context(|| format!("taking `{}` away from `{name}`", device.which))
    .map(drop)
}

/// Refuses what opens the host wide, unless it was said to be meant.
pub(crate) fn check(name: &Name, devices: &[Device]) -> Result<()> {
    for device in devices.iter().filter(|device| !device.confirmed) {
        if let Some(why) = hardware::danger(device) {
            return Err(error(format!("`{}` is not given by accident: {why}", device.which))
                .kind(Kind::Invalid)
                .hint(format!("if that is meant: lazaret device {name} {} --yes-really", device.which)));
        }
    }
    Ok(())
}

// --- a running container ---

/// A running container, as much of it as this needs.
struct Facts<'a> {
    init: BorrowedFd<'a>,
    payload: PathBuf,
    nesting: bool,
    owner: (u32, u32),
    /// Whether the change is still to be written down.
    pending: bool,
}

/// Has a container have these nodes, and none else.
fn refresh(store: &Store, name: &Name, facts: &Facts<'_>, wanted: Vec<Node>, _lock: &Lock) -> Result<()> {
    let pending = facts.pending;
    let given = store.given_devices(name)?;
    let had = given.nodes;
    if had == wanted && !given.unsure {
        return store.write_given_devices(name, &Given { nodes: had, pending, unsure: false });
    }
    // Recorded before it is done.
    let mut both: Vec<Node> = had.iter().chain(&wanted).cloned().collect();
    both.sort();
    both.dedup();
    store.write_given_devices(name, &Given { nodes: both, pending, unsure: true })?;
    let rules = device_rules(facts.nesting);
    let place = Place { mounts: facts.init, payload: &facts.payload, rules: &rules, owner: facts.owner };
    // Of those that were being given, nobody knows which are there: they are made anew.
    let sure: Vec<Node> = had.into_iter().filter(|node| !given.unsure || !wanted.contains(node)).collect();
    change(&sure, &wanted, &place, &[])?;
    store.write_given_devices(name, &Given { nodes: wanted, pending, unsure: false })
}

fn facts<'a>(store: &Store, name: &Name, running: &'a Running) -> Result<Facts<'a>> {
    let record = store.record(name)?;
    let (uid, gid) = person(store, name, &record, &running.config);
    let start = record.ids.map_or(0, |ids| ids.start);
    Ok(Facts {
        init: running.init.as_fd(),
        payload: running.state.group.payload(&running.host.cgroups),
        nesting: running.config.nesting,
        owner: (start + uid, start + gid),
        pending: false,
    })
}

/// Notes that which devices are wanted is about to change.
pub(crate) fn begin(store: &Store, name: &Name) -> Result<()> {
    let _lock = store.lock_devices(name)?;
    store.write_given_devices(name, &Given { pending: true, ..store.given_devices(name)? })
}

/// Has a running container have what is wanted now; what is not there is told.
pub(crate) fn give(store: &Store, name: &Name, running: &Running, devices: &[Device]) -> Result<Vec<String>> {
    let facts = Facts { pending: true, ..facts(store, name, running)? };
    let lock = store.lock_devices(name)?;
    let candidates = candidates();
    refresh(store, name, &facts, wanted(devices, &candidates), &lock)?;
    let absent = devices.iter().filter(|device| nodes_of(device, &candidates).is_empty());
    Ok(absent.map(|device| format!("no `{}` is there now; it will be given when it comes", device.which)).collect())
}

/// Takes back what a killed command had begun.
pub(crate) fn settle(store: &Store, name: &Name) -> Result<()> {
    if !store.given_devices(name)?.pending {
        return Ok(());
    }
    let Ok(running) = running(store, name) else { return Ok(()) };
    let mut now = running.config.clone();
    now.devices = store.document(name)?.config().devices.clone();
    store.write_running_config(name, &now)?;
    let lock = store.lock_devices(name)?;
    refresh(store, name, &facts(store, name, &running)?, wanted(&now.devices, &candidates()), &lock)
}

/// The change is written down.
pub(crate) fn settled(store: &Store, name: &Name) -> Result<()> {
    if !store.run_dir_exists(name) {
        return Ok(());
    }
    let _lock = store.lock_devices(name)?;
    let given = store.given_devices(name)?;
    match given.pending {
        true => store.write_given_devices(name, &Given { pending: false, ..given }),
        false => Ok(()),
    }
}

// --- coming and going ---

/// Keeper: where the kernel, and udev after it, tell of devices (NETLINK_KOBJECT_UEVENT of netlink(7)).
pub(crate) fn listen() -> Result<OwnedFd> {
    /// The kernel is the first group, and udev, when it has made its links, the second.
    const GROUPS: u32 = 1 | 2;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    Ok(socket)
}

/// Keeper: takes what was told. Whether a device node may have come or gone; who it is from makes no difference, since
/// it only has us look.
pub(crate) fn heard(socket: BorrowedFd<'_>) -> bool {
    let (mut buffer, mut any) = ([0u8; 8192], false);
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, length)) => {
                let told = &buffer[..length.min(buffer.len())];
                any |= told.split(|byte| *byte == 0).any(|property| property.starts_with(b"MAJOR="));
            }
            Err(Errno::INTR) => {}
            // More was told than we could hear.
            Err(Errno::NOBUFS) => any = true,
            Err(_) => return any,
        }
    }
}

/// Keeper: devices have come or gone. `false` if a command is at work on them: then it is to be tried again, since the
/// keeper waits for nobody.
pub(crate) fn follow(store: &Store, name: &Name) -> bool {
    let lock = match store.try_lock_devices(name) {
        Ok(Some(lock)) => lock,
        Ok(None) => return false,
        Err(_) => return true,
    };
    let followed = (|| -> Result<()> {
        let given = store.given_devices(name)?;
        let running = running(store, name)?;
        if running.config.devices.is_empty() && given.nodes.is_empty() {
            return Ok(());
        }
        let facts = Facts { pending: given.pending, ..facts(store, name, &running)? };
        refresh(store, name, &facts, wanted(&running.config.devices, &candidates()), &lock)
    })();
    // A container that is ending, or a device that has gone again: the next event, or nobody, wants to know.
    let _ = followed;
    true
}

// --- what can be said of it ---

/// A device as `info` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// As it is written.
    pub device: String,
    /// It may be opened for reading alone.
    pub read_only: bool,
    /// The nodes that it means now.
    pub nodes: Vec<PathBuf>,
}

/// All devices of a configuration.
pub fn lines(config: &Config) -> Vec<Line> {
    if config.devices.is_empty() {
        return Vec::new();
    }
    let candidates = candidates();
    let line = |device: &Device| Line {
        device: device.which.to_string(),
        read_only: device.read_only,
        nodes: nodes_of(device, &candidates).iter().map(|node| Path::new("/dev").join(&node.name)).collect(),
    };
    config.devices.iter().map(line).collect()
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.display().to_string()).collect();
        let now = if nodes.is_empty() { "none is there now".to_owned() } else { nodes.join(" ") };
        let how = if self.read_only { ", read-only" } else { "" };
        write!(f, "uses `{}`: {now}{how}", self.device)
    }
}

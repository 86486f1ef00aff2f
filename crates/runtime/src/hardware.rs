//! Devices of the host in a container: found by what they are, given by a rule of the filter and a node in its `/dev`.
//!
//! Nodes are made by us in the tmpfs that the stage mounted there. By then everything on the way is the container's, so
//! it is looked at before it is used; and a node is made with its owner and mode in one step, since what has its name a
//! moment later may be something else.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use lazaret_base::{Context, Result, error};
use lazaret_config::{Device, Which};
use lazaret_sys::bpf::{bpf_attach, bpf_attached, bpf_prog_load_cgroup_device};
use lazaret_sys::process::{join, namespace, with_file_ids};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mkdirat, mknodat, openat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::devices::{Access, NodeKind, Rule, assemble};
use crate::share;

/// A device node of the host, and what is known of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its path below `/dev`.
    pub name: PathBuf,
    /// Whether it is a block device.
    pub block: bool,
    /// Its numbers.
    pub number: (u32, u32),
    /// The kernel's class or bus of it.
    pub subsystem: String,
    /// Whether a joystick is at the same input device.
    pub joystick: bool,
    /// Vendor and product of the USB device that it is of.
    pub usb: Option<(u16, u16)>,
    /// The serial number of that.
    pub serial: Option<String>,
}

/// A node that a container has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Node {
    /// Its path below `/dev`.
    pub name: PathBuf,
    /// Whether it is a block device.
    pub block: bool,
    /// Its numbers.
    pub number: (u32, u32),
    /// It may be opened for reading alone.
    pub read_only: bool,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/{}", self.name.display())
    }
}

// --- finding ---

/// All device nodes of the host, as sysfs has them.
pub fn candidates() -> Vec<Candidate> {
    let of = |kind: &'static str| fs::read_dir(format!("/sys/dev/{kind}")).into_iter().flatten().flatten();
    let all = of("char").map(|entry| (entry, false)).chain(of("block").map(|entry| (entry, true)));
    all.filter_map(|(entry, block)| candidate(&entry.path(), block)).collect()
}

fn candidate(link: &Path, block: bool) -> Option<Candidate> {
    let dir = fs::canonicalize(link).ok()?;
    let properties = fs::read_to_string(dir.join("uevent")).ok()?;
    let property = |key: &str| properties.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = PathBuf::from(property("DEVNAME")?);
    // What the kernel calls its nodes is no way out of /dev, but it costs nothing to make sure.
    name.components().all(|c| matches!(c, Component::Normal(_))).then_some(())?;
    let number = (property("MAJOR")?.parse().ok()?, property("MINOR")?.parse().ok()?);
    let subsystem = fs::read_link(dir.join("subsystem")).ok()?.file_name()?.to_string_lossy().into_owned();
    let beside = fs::read_dir(dir.parent()?).into_iter().flatten().flatten();
    let is_joystick = |entry: fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b"js");
    let joystick = subsystem == "input" && beside.into_iter().any(is_joystick);
    let text = |dir: &Path, file: &str| fs::read_to_string(dir.join(file)).ok().map(|text| text.trim().to_owned());
    let hex = |dir: &Path, file: &str| u16::from_str_radix(&text(dir, file)?, 16).ok();
    let usb = dir.ancestors().find_map(|at| Some((at, (hex(at, "idVendor")?, hex(at, "idProduct")?))));
    let serial = usb.and_then(|(at, _)| text(at, "serial"));
    Some(Candidate { name, block, number, subsystem, joystick, usb: usb.map(|(_, ids)| ids), serial })
}

/// Whether a wish means a device. `named` is what the path of a wish for one node leads to now.
fn is_meant(which: &Which, of: &Candidate, named: Option<(bool, (u32, u32))>) -> bool {
    let name = of.name.to_string_lossy();
    let is = |subsystem: &str| of.subsystem == subsystem;
    match which {
        Which::Camera => is("video4linux") && name.starts_with("video"),
        Which::Gpu => is("drm") && name.starts_with("dri/renderD"),
        Which::Gamepad => is("input") && of.joystick,
        Which::Serial => is("tty") && ["ttyUSB", "ttyACM", "rfcomm"].iter().any(|known| name.starts_with(known)),
        Which::Usb { vendor, product, serial } => {
            of.usb == Some((*vendor, *product))
                && serial.as_ref().is_none_or(|serial| of.serial.as_ref() == Some(serial))
        }
        Which::Node(_) => named == Some((of.block, of.number)),
    }
}

/// The nodes that one wish means now.
pub fn nodes_of(device: &Device, candidates: &[Candidate]) -> Vec<Node> {
    let named = match &device.which {
        Which::Node(path) => numbers(path),
        _ => None,
    };
    let meant = candidates.iter().filter(|candidate| is_meant(&device.which, candidate, named));
    meant
        .map(|of| Node { name: of.name.clone(), block: of.block, number: of.number, read_only: device.read_only })
        .collect()
}

/// What is at a path of the host's `/dev`.
fn numbers(path: &Path) -> Option<(bool, (u32, u32))> {
    let status = rustix::fs::stat(path).ok()?;
    let block = match FileType::from_raw_mode(status.st_mode) {
        FileType::CharacterDevice => false,
        FileType::BlockDevice => true,
        _ => return None,
    };
    Some((block, (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev))))
}

/// All nodes that are wanted now, each once; what one wish gives for writing, another for reading does not take away.
pub fn wanted(devices: &[Device], candidates: &[Candidate]) -> Vec<Node> {
    let mut nodes: Vec<Node> = devices.iter().flat_map(|device| nodes_of(device, candidates)).collect();
    // `false` comes first.
    nodes.sort();
    nodes.dedup_by(|next, kept| (&next.name, next.block, next.number) == (&kept.name, kept.block, kept.number));
    nodes
}

// --- giving and taking ---

/// The container.
pub struct Place<'a> {
    /// Its mount namespace, or a pidfd of its init.
    pub mounts: BorrowedFd<'a>,
    /// Its v2 group.
    pub payload: &'a Path,
    /// What it may open beside.
    pub rules: &'a [Rule],
    /// The host's ids of who inside owns the nodes.
    pub owner: (u32, u32),
}

/// Has a container have these nodes instead of those. What is taken away can't be opened any more, under no name; what
/// is open stays so until it is closed, since the kernel asks the filter only at opening.
pub fn change(had: &[Node], wanted: &[Node], place: &Place<'_>, private: &[BorrowedFd<'_>]) -> Result<()> {
    if had == wanted {
        return Ok(());
    }
    filter(place, wanted)?;
    let less: Vec<&Node> = had.iter().filter(|node| !wanted.contains(node)).collect();
    let more: Vec<&Node> = wanted.iter().filter(|node| !had.contains(node)).collect();
    share::in_a_child(private, || {
        let proc = openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        join(place.mounts, namespace::MOUNT).context("entering the container's mounts")?;
        let dev = own_dev(&proc)?;
        for node in less {
            // It may be gone, or covered by something of the container's: the filter knows it no more.
            let _ = remove(&dev, node);
        }
        more.into_iter().try_for_each(|node| make(&dev, node, place.owner).with_context(|| format!("making `{node}`")))
    })
}

/// Replaces the filter by one of all that is allowed now, in one step.
fn filter(place: &Place<'_>, nodes: &[Node]) -> Result<()> {
    let rule = |node: &Node| Rule {
        kind: if node.block { NodeKind::Block } else { NodeKind::Char },
        major: Some(node.number.0),
        minor: Some(node.number.1),
        access: if node.read_only { Access::READ } else { Access::OPEN },
    };
    let rules: Vec<Rule> = place.rules.iter().copied().chain(nodes.iter().map(rule)).collect();
    let program = bpf_prog_load_cgroup_device(&assemble(&rules)).context("loading the device filter")?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group = openat(CWD, place.payload, flags, Mode::empty())?;
    let attached = bpf_attached(group.as_fd()).context("looking for the device filter")?;
    match &attached[..] {
        [old] => {
            Ok(bpf_attach(group.as_fd(), program.as_fd(), Some(old.as_fd())).context("replacing the device filter")?)
        }
        _ => Err(error(format!("the container has {} device filters", attached.len()))),
    }
}

/// The container's `/dev`, if it is still the one that the stage made: nodes are made nowhere else.
fn own_dev(proc: &OwnedFd) -> Result<OwnedFd> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let dev = openat2(&root, "dev", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    match share::is_mount_of(proc, &dev, "tmpfs", "dev")? {
        true => Ok(dev),
        false => Err(error("something else is mounted at the container's `/dev`").hint("restart it")),
    }
}

/// The directory of a node, made for `owner` if it is missing.
fn directory(dev: &OwnedFd, node: &Node, owner: Option<(u32, u32)>) -> Result<OwnedFd> {
    let mut at = rustix::io::fcntl_dupfd_cloexec(dev, 3)?;
    for component in node.name.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(name) = component else { return Err(error("no name of a device")) };
        if let Some(owner) = owner {
            match as_owner(owner, || mkdirat(&at, name, Mode::from(0o755)))? {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        at = openat2(&at, Path::new(name), flags, Mode::empty(), resolve)?;
    }
    Ok(at)
}

/// Makes something that is `owner`'s from its first moment.
fn as_owner<T>((uid, gid): (u32, u32), make: impl FnOnce() -> T) -> Result<T> {
    with_file_ids(uid, gid, || {
        // Leaving file id 0 takes the capabilities over files away (setfsuid(2)).
        let mut sets = rustix::thread::capabilities(None)?;
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets)?;
        Ok(make())
    })
}

fn make(dev: &OwnedFd, node: &Node, owner: (u32, u32)) -> Result<()> {
    let dir = directory(dev, node, Some(owner))?;
    let name = node.name.file_name().ok_or_else(|| error("it has no name"))?;
    let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
    rustix::process::umask(Mode::empty());
    let mode = Mode::from(if node.read_only { 0o440 } else { 0o660 });
    // Whatever has its name: one of ours that a killed command left, or something of the container's.
    let _ = unlinkat(&dir, name, AtFlags::empty());
    Ok(as_owner(owner, || mknodat(&dir, name, kind, mode, makedev(node.number.0, node.number.1)))??)
}

fn remove(dev: &OwnedFd, node: &Node) -> Result<()> {
    let dir = directory(dev, node, None)?;
    let name = node.name.file_name().ok_or_else(|| error("it has no name"))?;
    let status = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let number = (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
    match number == node.number {
        true => Ok(unlinkat(&dir, name, AtFlags::empty())?),
        // Something of the container's own.
        false => Ok(()),
    }
}

// --- what opens the host wide ---

/// Nodes that are more than a device, with the reason. One that ends in `*` is the beginning of a name.
const DANGEROUS: &[(&str, &str)] = &[
    ("mem", "the host's memory"),
    ("kmem", "the host's memory"),
    ("port", "the host's hardware"),
    ("kmsg", "the host's kernel log"),
    ("console", "the host's console"),
    ("tty0", "the host's terminals"),
    ("tty1*", "the host's terminals"),
    ("tty2*", "the host's terminals"),
    ("tty3*", "the host's terminals"),
    ("tty4*", "the host's terminals"),
    ("tty5*", "the host's terminals"),
    ("tty6*", "the host's terminals"),
    ("pts/*", "the host's terminals"),
    ("vcs*", "the screens of the host's terminals"),
    ("uinput", "makes keyboards that type on the host"),
    ("uhid", "makes keyboards that type on the host"),
    ("input/*", "the host's keyboards and mice: who has one reads passwords; name a `gamepad` as one"),
    ("loop-control", "makes block devices of the host"),
    ("mapper/*", "the host's disks"),
    ("cpu/*", "registers of the host's processors"),
    ("dri/card*", "the host's screens"),
    ("vhost-*", "the host's networks and machines"),
    ("vfio/*", "the host's hardware"),
    ("btrfs-control", "the host's file systems"),
];

/// Why a device that is wished for by its path opens the host wide.
pub fn danger(device: &Device) -> Option<String> {
    let Which::Node(path) = &device.which else { return None };
    if numbers(path).is_some_and(|(block, _)| block) {
        return Some("it is a disk: who has it has every file on it, and what the host reads from it".into());
    }
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    let name = real.strip_prefix("/dev").ok()?.to_string_lossy().into_owned();
    let is = |known: &str| known.strip_suffix('*').map_or(name == known, |begin| name.starts_with(begin));
    DANGEROUS.iter().find(|(known, _)| is(known)).map(|(_, what)| (*what).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, subsystem: &str) -> Candidate {
        Candidate { name: name.into(), subsystem: subsystem.into(), number: (81, 0), ..Candidate::default() }
    }

    #[test]
    fn devices_are_found_by_what_they_are() {
        let pad = Candidate { joystick: true, ..candidate("input/event7", "input") };
        let usb =
            Candidate { usb: Some((0x046d, 0x825)), serial: Some("A1".into()), ..candidate("video0", "video4linux") };
        let all = [
            usb,
            candidate("media0", "media"),
            candidate("dri/card0", "drm"),
            candidate("dri/renderD128", "drm"),
            candidate("input/event0", "input"),
            pad,
            candidate("ttyUSB0", "tty"),
            candidate("tty1", "tty"),
        ];
        let found = |text: &str| {
            let nodes = nodes_of(&text.parse().unwrap(), &all);
            nodes.iter().map(|node| node.name.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(found("camera"), "video0");
        assert_eq!(found("gpu"), "dri/renderD128");
        assert_eq!(found("gamepad"), "input/event7");
        assert_eq!(found("serial"), "ttyUSB0");
        assert_eq!(found("usb:046d:0825"), "video0");
        assert_eq!(found("usb:046d:0825:A1"), "video0");
        assert_eq!(found("usb:046d:0825:A2"), "");
        assert_eq!(found("usb:046d:0826"), "");
    }

    #[test]
    fn a_wish_for_reading_takes_nothing_from_one_for_writing() {
        let devices = ["camera ro", "camera"].map(|text| text.parse().unwrap());
        let nodes = wanted(&devices, &[candidate("video0", "video4linux")]);
        assert_eq!(nodes.iter().map(|node| node.read_only).collect::<Vec<_>>(), [false]);
    }
}

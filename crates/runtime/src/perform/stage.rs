//! The stage's steps: the container's tree of mounts, built where nobody else sees it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind as ErrorKind, Result, error};
use lazaret_sys::mount::{self as attributes, Change, set_attributes};
use lazaret_sys::process::{exit_now, join, namespace, unshare, with_file_ids};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mkdirat, mknodat, openat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::target::{self, Kind};
use crate::plan::{Api, Bind, Node, Root, Side, StageStep, Step, relative};
use crate::spawn::HostSide;
use crate::turn::{Fds, Line, Slot};

/// What the stage has made so far.
struct Stage {
    fds: Fds,
    scratch: Option<OwnedFd>,
    root: Option<OwnedFd>,
    owner: u32,
}

/// The life of the stage process: its turns, then its end. Never returns.
pub fn live(side: &HostSide<'_>, line: &Line) -> ! {
    // The caller's umask is the caller's business.
    rustix::process::umask(Mode::empty());
    let mut stage = Stage { fds: Fds::default(), scratch: None, root: None, owner: side.owner };
    let mut given = Fds::default();
    let mut next = 0;
    while let Ok(true) = line.wait(&mut given) {
        stage.fds = std::mem::take(&mut given);
        let turn = side.turn(Side::Stage, next);
        next = turn.end;
        for index in turn {
            side.inject(index);
            let Step::Stage(step) = &side.steps()[index] else { continue };
            if let Err(e) = perform(step, &mut stage) {
                // The host may be gone; then nobody is left to tell.
                let _ = line.failed(index, e);
                exit_now(1);
            }
        }
        if line.done(Fds::default()).is_err() {
            break;
        }
    }
    exit_now(0)
}

fn perform(step: &StageStep, stage: &mut Stage) -> Result<()> {
    match step {
        StageStep::MakePrivate => {
            let change = Change { propagation: attributes::PRIVATE, ..Change::default() };
            Ok(set_attributes(CWD, c"/", true, change)?)
        }
        StageStep::Scratch(at) => scratch(stage, at),
        StageStep::Root { root, id_mapped } => mount_root(stage, root, *id_mapped),
        StageStep::Bind { bind, id_mapped } => show(stage, bind, *id_mapped),
        StageStep::Attach(api) => attach(stage, *api),
        StageStep::HostSys => host_sys(stage),
        StageStep::Dev { nodes, owner } => dev(stage, nodes, *owner),
        StageStep::Console => console(stage),
        StageStep::OwnTmp => {
            let target = target::open_or_make(stage.root()?, Path::new("tmp"), Kind::Directory, stage.owner)?;
            let what = rustix::io::fcntl_dupfd_cloexec(&target, 3)?;
            cover(what.as_fd(), target, 0, 0)
        }
        StageStep::Mask(path) => mask(stage, Path::new(path)),
        StageStep::ReadOnlyMount(path) => {
            let target = target::open_plain(stage.root()?, Path::new(path), stage.owner)?;
            let change = Change { set: attributes::READ_ONLY, ..Change::default() };
            Ok(set_attributes(target.as_fd(), c"", false, change)?)
        }
        StageStep::ReadOnly(path) => cover_with_itself(stage, Path::new(path), attributes::READ_ONLY, 0),
        StageStep::Writable(path) => cover_with_itself(stage, Path::new(path), 0, attributes::READ_ONLY),
        StageStep::BootId => boot_id(stage),
        StageStep::Pivot => pivot(stage),
        StageStep::Seal => seal(stage),
    }
}

impl Stage {
    fn root(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.root.as_ref().ok_or_else(|| error("the root is not mounted yet"))?.as_fd())
    }

    fn scratch(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.scratch.as_ref().ok_or_else(|| error("there is no scratch space yet"))?.as_fd())
    }
}

/// A small tmpfs: mount points for the layers, and what masks are made of.
fn scratch(stage: &mut Stage, at: &Path) -> Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "lazaret")?;
    fsconfig_set_string(context.as_fd(), "mode", "0700")?;
    fsconfig_set_string(context.as_fd(), "size", "64k")?;
    fsconfig_create(context.as_fd())?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(mount.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    // The mount's own descriptor still leads to its root.
    mkdirat(&mount, "empty", Mode::from(0o555))?;
    mknodat(&mount, "null", FileType::CharacterDevice, Mode::from(0o666), makedev(1, 3))?;
    for path in ["empty", "null"] {
        let owner = stage.owner;
        chownat(&mount, path, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)), AtFlags::empty())?;
    }
    stage.scratch = Some(mount);
    Ok(())
}

/// Mounts a root file system for the host's own eyes, with the ids that it has on disk. Scratch space is mounted over
/// `at`, in the caller's own mount namespace.
pub fn plain(root: &Root, at: &Path) -> Result<OwnedFd> {
    let mut stage = Stage { fds: Fds::default(), scratch: None, root: None, owner: 0 };
    scratch(&mut stage, at)?;
    mount_root(&mut stage, root, false)?;
    stage.root.ok_or_else(|| error("the root is not mounted"))
}

fn mount_root(stage: &mut Stage, root: &Root, id_mapped: bool) -> Result<()> {
    let scratch = stage.scratch()?;
    mkdirat(scratch, "root", Mode::from(0o755))?;
    let tree = match root {
        Root::Overlay { layers, own, volatile, in_memory } => {
            let own = if *in_memory { None } else { Some(own.as_path()) };
            overlay(stage, layers, own, *volatile, id_mapped)?
        }
        Root::Directory(dir) => {
            let tree = copy_of_mount(dir, false)?;
            let set = if stage.owner != 0 { attributes::NO_DEV } else { 0 };
            set_attributes(tree.as_fd(), c"", false, Change { set, ..Change::default() })?;
            tree
        }
    };
    let target = openat(scratch, "root", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    put(&tree, &target)?;
    stage.root = Some(tree);
    Ok(())
}

/// Overlays the layers under the container's own directory.
///
/// The layers are attached to scratch first: before Linux 6.15 overlayfs takes no layer from a mount that
/// is attached nowhere. Their names are relative, so that no character of a path needs escaping. Without a directory of
/// its own, the container writes to memory.
fn overlay(stage: &Stage, layers: &[PathBuf], own: Option<&Path>, volatile: bool, id_mapped: bool) -> Result<OwnedFd> {
    let scratch = stage.scratch()?;
    let mut lower = String::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("l{index}");
        lower.push_str(if index > 0 { ":" } else { "" });
        lower.push_str(&name);
        let change = stage.mapping(id_mapped, attributes::READ_ONLY)?;
        layer_at(scratch, &name, layer, change)?;
    }
    match own {
        Some(own) => layer_at(scratch, "own", own, stage.mapping(id_mapped, 0)?)?,
        None => own_in_memory(stage, &layers[0])?,
    }
    rustix::process::fchdir(scratch)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).hint("load the module: modprobe overlay")?;
    let mount = (|| -> Result<OwnedFd> {
        fsconfig_set_string(context.as_fd(), "source", "lazaret")?;
        fsconfig_set_string(context.as_fd(), "lowerdir", lower.as_str())?;
        fsconfig_set_string(context.as_fd(), "upperdir", "own/upper")?;
        fsconfig_set_string(context.as_fd(), "workdir", "own/work")?;
        // Said although it is the default of most kernels: layers outlive their mounts, change places and are read
        // without the kernel's help, which these would tie to each other.
        for (key, value) in [("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")] {
            fsconfig_set_string(context.as_fd(), key, value)?;
        }
        if volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
        // Overlayfs acts on its layers as whoever mounted it: with file ids that the id maps know.
        with_file_ids(stage.owner, stage.owner, || -> Result<()> {
            regain_capabilities()?;
            Ok(fsconfig_create(context.as_fd())?)
        })?;
        let flags = if stage.owner != 0 { MountAttrFlags::MOUNT_ATTR_NODEV } else { MountAttrFlags::empty() };
        Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?)
    })()
    .map_err(|e| match said(&context) {
        Some(words) => e.context(format!("overlayfs says: {words}")),
        None => e,
    });
    rustix::process::chdir("/")?;
    mount
}

/// A tmpfs in the place of what the container writes to. It needs no id map: nothing in it was there before. What is
/// written counts as memory of the container.
fn own_in_memory(stage: &Stage, below: &Path) -> Result<()> {
    let scratch = stage.scratch()?;
    mkdirat(scratch, "own", Mode::from(0o755))?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "lazaret")?;
    fsconfig_set_string(context.as_fd(), "mode", "0755")?;
    fsconfig_create(context.as_fd())?;
    let memory = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let root = rustix::fs::stat(below)?;
    for (name, uid, gid, mode) in [("upper", root.st_uid, root.st_gid, root.st_mode), ("work", 0, 0, 0o755)] {
        mkdirat(&memory, name, Mode::from(0o755))?;
        let (uid, gid) = (Uid::from_raw(stage.owner + uid), Gid::from_raw(stage.owner + gid));
        chownat(&memory, name, Some(uid), Some(gid), AtFlags::empty())?;
        rustix::fs::chmodat(&memory, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
    }
    let target = openat(scratch, "own", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    put(&memory, &target)
}

/// Leaving file id 0 takes the capabilities over files away (setfsuid(2)); overlayfs needs them to copy
/// files of any owner up.
fn regain_capabilities() -> Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// What the kernel says of a failed file system context (fsopen(2)): messages of the form `e words`.
fn said(context: &OwnedFd) -> Option<String> {
    let mut bytes = [0; 512];
    let n = rustix::io::read(context, &mut bytes).ok()?;
    let words = String::from_utf8_lossy(&bytes[..n]);
    Some(words.trim().trim_start_matches("e ").to_owned())
}

impl Stage {
    /// Attributes of a mount that shows the host's files: with the container's ids, if it has its own.
    fn mapping(&self, id_mapped: bool, set: u64) -> Result<Change<'_>> {
        if !id_mapped {
            return Ok(Change { set, ..Change::default() });
        }
        Ok(Change { set: set | attributes::ID_MAP, user_ns: Some(self.fds.get(Slot::UserNs)?), ..Change::default() })
    }
}

fn layer_at(scratch: BorrowedFd<'_>, name: &str, layer: &Path, change: Change<'_>) -> Result<()> {
    mkdirat(scratch, name, Mode::from(0o755))?;
    let tree = copy_of_mount(layer, false)?;
    set_attributes(tree.as_fd(), c"", false, change).map_err(|e| no_id_map(e, layer))?;
    let target = openat(scratch, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    put(&tree, &target)
}

fn no_id_map(errno: Errno, path: &Path) -> lazaret_base::Error {
    let e = lazaret_base::Error::from(errno).context(format!("showing `{}` through an id map", path.display()));
    match errno {
        Errno::INVAL | Errno::OPNOTSUPP => e
            .kind(ErrorKind::Missing)
            .hint("its file system can't be id-mapped by this kernel; keep it on ext4, xfs, btrfs or tmpfs"),
        _ => e,
    }
}

/// A detached copy of the mount that `path` is on, rooted at `path` (open_tree(2)).
fn copy_of_mount(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).with_context(|| format!("opening `{}`", path.display()))
}

/// Attaches a detached mount to where `target` leads.
fn put(tree: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", target.as_fd(), "", flags)?)
}

/// Shows a directory of the host with all that is mounted below it, or alone where a mount below it
/// can't be id-mapped.
fn show(stage: &Stage, bind: &Bind, id_mapped: bool) -> Result<()> {
    let set = attributes::READ_ONLY | attributes::NO_DEV;
    let mut tree = copy_of_mount(&bind.source, true)?;
    if set_attributes(tree.as_fd(), c"", true, stage.mapping(id_mapped, set)?).is_err() {
        tree = copy_of_mount(&bind.source, false)?;
        set_attributes(tree.as_fd(), c"", false, stage.mapping(id_mapped, set)?)
            .map_err(|e| no_id_map(e, &bind.source))?;
    }
    let path = relative(&bind.target);
    let is_directory = rustix::fs::fstat(&tree)?.st_mode & 0o170000 == 0o040000;
    let kind = if is_directory { Kind::Directory } else { Kind::File };
    let target = target::open_or_make(stage.root()?, path, kind, stage.owner)?;
    put(&tree, &target)
}

/// Shows a directory of the host, read-only and with the attributes `set`, in a root that is only looked at. One that
/// the root has no place for is left out.
pub fn show_plainly(root: BorrowedFd<'_>, bind: &Bind, set: u64) -> Result<()> {
    let target = match target::open(root, relative(&bind.target)) {
        Err(e) if e.errno() == Some(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let tree = copy_of_mount(&bind.source, true)?;
    let set = set | attributes::READ_ONLY;
    set_attributes(tree.as_fd(), c"", true, Change { set, ..Change::default() })?;
    put(&tree, &target)
}

fn attach(stage: &mut Stage, api: Api) -> Result<()> {
    let mount = stage.fds.take(Slot::Api(api.index())).ok_or_else(|| error("the guest has not made it"))?;
    let target = target::open_plain(stage.root()?, Path::new(api.mount().target), stage.owner)?;
    put(&mount, &target)
}

/// The host's sysfs alone, without what is mounted below it.
fn host_sys(stage: &Stage) -> Result<()> {
    let tree = copy_of_mount(Path::new("/sys"), false)?;
    let set = attributes::READ_ONLY | attributes::NO_SUID | attributes::NO_DEV | attributes::NO_EXEC;
    set_attributes(tree.as_fd(), c"", false, Change { set, ..Change::default() })?;
    put(&tree, &target::open_plain(stage.root()?, Path::new("sys"), stage.owner)?)
}

/// A `/dev` of the stage's own making: nodes on a tmpfs of the host's, since a container's root may make
/// none; what may be opened is up to the device filter.
fn dev(stage: &mut Stage, nodes: &[Node], owner: u32) -> Result<()> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "dev"), ("mode", "0755"), ("size", "1M"), ("nr_inodes", "1024")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let dev = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    let give = |path: &str, group: u32| {
        let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner + group));
        chownat(&dev, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH)
    };
    give("", 0)?;
    for dir in ["pts", "shm", "mqueue", "net"] {
        mkdirat(&dev, dir, Mode::from(0o755))?;
        give(dir, 0)?;
    }
    for node in nodes {
        mknodat(&dev, node.name, FileType::CharacterDevice, Mode::empty(), makedev(node.major, node.minor))?;
        // After the umask had its say.
        rustix::fs::chmodat(&dev, node.name, Mode::from(0o666), AtFlags::empty())?;
        give(node.name, node.group)?;
    }
    for (link, to) in LINKS {
        symlinkat(*to, &dev, *link)?;
        give(link, 0)?;
    }
    openat(&dev, "console", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from(0o600))?;
    give("console", 5)?;
    let target = target::open_plain(stage.root()?, Path::new("dev"), owner)?;
    put(&dev, &target)
}

/// Links that programs look for in `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The guest opened one pseudo-terminal in a fresh devpts, so it is number 0.
fn console(stage: &Stage) -> Result<()> {
    let root = stage.root()?;
    let terminal = target::open(root, Path::new("dev/pts/0"))?;
    cover(terminal.as_fd(), target::open(root, Path::new("dev/console"))?, 0, 0)
}

/// Mounts what `what` leads to over `target`.
fn cover(what: BorrowedFd<'_>, target: OwnedFd, set: u64, clear: u64) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(what, "", flags)?;
    set_attributes(tree.as_fd(), c"", false, Change { set, clear, ..Change::default() })?;
    put(&tree, &target)
}

/// Kernels differ in which of these files they have: an absent one needs no mask.
fn mask(stage: &Stage, path: &Path) -> Result<()> {
    let target = match target::open(stage.root()?, path) {
        Err(e) if e.errno() == Some(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let is_directory = rustix::fs::fstat(&target)?.st_mode & 0o170000 == 0o040000;
    let with = if is_directory { "empty" } else { "null" };
    let with = openat(stage.scratch()?, with, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    cover(with.as_fd(), target, attributes::READ_ONLY, 0)
}

fn cover_with_itself(stage: &Stage, path: &Path, set: u64, clear: u64) -> Result<()> {
    let target = match target::open(stage.root()?, path) {
        Err(e) if e.errno() == Some(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let what = rustix::io::fcntl_dupfd_cloexec(&target, 3)?;
    cover(what.as_fd(), target, set, clear)
}

/// Programs tell boots apart by the boot id (systemd's journal does): a container's boot is its own.
fn boot_id(stage: &Stage) -> Result<()> {
    let mut random = [0u8; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    // Version 4, variant 1 of RFC 9562, as the kernel's own.
    random[6] = random[6] & 0x0f | 0x40;
    random[8] = random[8] & 0x3f | 0x80;
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let text = format!("{}-{}-{}-{}-{}\n", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let scratch = stage.scratch()?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = openat(scratch, "boot_id", flags, Mode::from(0o444))?;
    rustix::io::write(&file, text.as_bytes())?;
    match target::open(stage.root()?, Path::new("proc/sys/kernel/random/boot_id")) {
        Err(e) if e.errno() == Some(Errno::NOENT) => Ok(()),
        target => cover(file.as_fd(), target?, attributes::READ_ONLY, 0),
    }
}

/// Puts the host's tree under the new root, then lets go of it (pivot_root(2), the `"."` form).
fn pivot(stage: &mut Stage) -> Result<()> {
    rustix::process::fchdir(stage.root()?)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    stage.scratch = None;
    stage.root = None;
    Ok(())
}

/// A copy of a mount namespace for a less privileged user namespace has every mount in it locked, with its
/// flags (copy_mnt_ns and lock_mnt_tree in fs/namespace.c).
fn seal(stage: &Stage) -> Result<()> {
    join(stage.fds.get(Slot::UserNs)?, namespace::USER).context("entering the user namespace")?;
    Ok(unshare(namespace::MOUNT)?)
}

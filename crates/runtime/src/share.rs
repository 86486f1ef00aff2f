//! Showing files of the host in a container, from its start on or while it runs, and taking them away again.
//!
//! A mount that a container's root is to leave as it is must have been copied into a mount namespace that the
//! container's user namespace owns: by that copy the kernel locks its flags (mount_namespaces(7)). So a short-lived
//! process attaches the share to a namespace of its own, copies that as the container, and takes the copy of the mount
//! along into the container. It is not locked in its place, or nobody could take it away while the container runs.
//!
//! Whatever is done inside is done with the container's ids and powers: a target that leads astray leads to nothing
//! that the container could not reach itself.

use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind as ErrorKind, Result, error, read_bounded};
use lazaret_config::{IdRange, Share};
use lazaret_sys::mount::{self as attributes, Change, set_attributes};
use lazaret_sys::process::{Cloned, clone, close_copies, exit_now, join, namespace, unshare};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde::Serialize;

use crate::perform::target::{self, Kind};
use crate::plan::relative;
use crate::turn::{End, Fds, Line};
use crate::{account, idmap};

/// A share with what is known of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// What, where and how.
    pub share: Share,
    /// Whose it is inside; `None` in a privileged container, whose ids are the host's.
    pub person: Option<Person>,
    /// An existing directory that may be mounted over, in a namespace of our own.
    pub scratch: PathBuf,
}

/// As a step of a plan.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = &self.share;
        write!(f, "sharing `{}` at `{}`", share.source.display(), share.target.display())?;
        f.write_str(if share.read_only { ", read-only" } else { "" })?;
        match self.person {
            Some(person) => write!(f, ", of its owner outside and of user {} inside", person.uid),
            None => Ok(()),
        }
    }
}

/// Who has inside what belongs to a person outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Person {
    /// User id in the container.
    pub uid: u32,
    /// Group id in the container.
    pub gid: u32,
    /// The container's ids.
    #[serde(skip)]
    pub ids: IdRange,
}

/// The container that a share goes to. Both may be one pidfd.
#[derive(Clone, Copy)]
pub struct Into<'a> {
    /// Its user namespace; `None` for a privileged container.
    pub user: Option<BorrowedFd<'a>>,
    /// Its mount namespace.
    pub mounts: BorrowedFd<'a>,
}

/// What is worth telling of a share that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// It is not there, and need not be.
    pub absent: bool,
    /// What is mounted below it could not be shown along, and is not.
    pub alone: bool,
    /// It belongs to this user of the host, who is nobody inside.
    pub of_nobody: Option<u32>,
}

impl Made {
    /// What the user should know, one sentence each.
    pub fn notes(&self, share: &Share) -> Vec<String> {
        let source = share.source.display();
        let said = [
            (self.absent, format!("`{source}` is not there, so nothing is shared at `{}`", share.target.display())),
            (self.alone, format!("what is mounted below `{source}` can't be shown by its ids, and is not")),
        ];
        let said = said.into_iter().filter(|(is, _)| *is).map(|(_, sentence)| sentence);
        // The kernel lets nobody write where it could not tell the owner (`inode_permission` in fs/namei.c).
        let of_nobody = self.of_nobody.map(|id| {
            let who = if id == 0 { "root".to_owned() } else { format!("user {id}") };
            format!(
                "`{source}` belongs to {who}, who is nobody inside: it can be read as by others, and not be written"
            )
        });
        said.chain(of_nobody).collect()
    }
}

/// Opens a source as it was when it was shared: without a link on the way. Nothing that could block is opened.
pub fn open_source(path: &Path) -> Result<(OwnedFd, Stat)> {
    let opening = || format!("opening `{}`", path.display());
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    let fd = fd.with_context(opening).map_err(|e| match e.errno() {
        Some(Errno::LOOP) => {
            e.hint("a symbolic link is on the way that was none when it was shared; look what it is, and share it anew")
        }
        Some(Errno::NOENT | Errno::NOTDIR) => {
            e.kind(ErrorKind::NotFound).hint("is its disk mounted? take the share away, or make it `optional`")
        }
        _ => e,
    })?;
    let status = fstat(&fd).with_context(opening)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::Directory | FileType::RegularFile | FileType::Socket => Ok((fd, status)),
        kind => Err(error(format!("`{}` is {}", path.display(), in_words(kind)))
            .kind(ErrorKind::Invalid)
            .hint("only directories, files and sockets are shared; devices are given by `lazaret device`")),
    }
}

fn in_words(kind: FileType) -> &'static str {
    match kind {
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Fifo => "a FIFO",
        FileType::Symlink => "a symbolic link",
        _ => "no file that can be shared",
    }
}

/// Shows a share in a container. `private` are descriptors that are the caller's alone, such as locks.
pub fn attach(shown: &Shown, into: Into<'_>, private: &[BorrowedFd<'_>]) -> Result<Made> {
    let share = &shown.share;
    let (source, status) = match open_source(&share.source) {
        Err(e) if e.what() == ErrorKind::NotFound && share.optional => {
            return Ok(Made { absent: true, ..Made::default() });
        }
        other => other?,
    };
    let map = shown.person.map(|person| IdMap::of(person, &status, share.owner)).transpose()?;
    let of_nobody = map.as_ref().filter(|map| map.person != Some(status.st_uid)).map(|_| status.st_uid);
    let user_ns = map.map(|map| idmap::namespace(&map.users, &map.groups)).transpose()?;
    let (tree, alone) = prepare(&source, share, user_ns.as_ref().map(AsFd::as_fd))?;
    let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    let kind = if is_directory { Kind::Directory } else { Kind::File };
    in_a_child(private, || bring(tree, kind, shown, into))?;
    Ok(Made { absent: false, alone, of_nobody })
}

/// Lines of id maps by which a source is shown.
struct IdMap {
    users: String,
    groups: String,
    /// Who of the host is the person.
    person: Option<u32>,
}

impl IdMap {
    /// The person's files are those of the source's owner, and all else that is made inside keeps the container's ids,
    /// as if there were no map. Root's files are nobody's, unless somebody says otherwise: a container could leave
    /// programs there that run as the host's root.
    fn of(inside: Person, source: &Stat, owner: Option<u32>) -> Result<IdMap> {
        let uid = owner.unwrap_or(source.st_uid);
        let person = Some(uid).filter(|uid| *uid != 0 || owner.is_some());
        // The group that the person's own files have; a number without a name has the group of the same number.
        let gid = account::look_up(&uid.to_string()).map_or(source.st_gid, |account| account.gid);
        Ok(IdMap {
            users: lines(inside.ids, inside.uid, person),
            groups: lines(inside.ids, inside.gid, person.map(|_| gid)),
            person,
        })
    }
}

/// Lines of `on disk, shown as, count` (user_namespaces(7)): `outside` is `inside`, the others are themselves.
fn lines(ids: IdRange, inside: u32, outside: Option<u32>) -> String {
    let range = ids.start..ids.start + ids.count;
    let Some(outside) = outside.filter(|id| !range.contains(id) && inside < ids.count) else {
        return format!("{0} {0} {1}\n", range.start, ids.count);
    };
    let at = range.start + inside;
    let mut text = format!("{outside} {at} 1\n");
    for (start, end) in [(range.start, at), (at + 1, range.end)].into_iter().filter(|(start, end)| start < end) {
        text.push_str(&format!("{start} {start} {}\n", end - start));
    }
    text
}

/// A detached copy of the source's mounts with all that was asked for; and whether what is mounted below it was left
/// away, since it can't be id-mapped.
fn prepare(source: &OwnedFd, share: &Share, user_ns: Option<BorrowedFd<'_>>) -> Result<(OwnedFd, bool)> {
    let mut set = attributes::NO_SUID | attributes::NO_DEV;
    set |= if share.read_only { attributes::READ_ONLY } else { 0 };
    set |= if share.no_exec { attributes::NO_EXEC } else { 0 };
    set |= if user_ns.is_some() { attributes::ID_MAP } else { 0 };
    let change = Change { set, propagation: attributes::PRIVATE, user_ns, ..Change::default() };
    let copy = |more: OpenTreeFlags| -> Result<OwnedFd> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(source, "", flags | more).with_context(|| format!("opening `{}`", share.source.display()))
    };
    let whole = copy(OpenTreeFlags::AT_RECURSIVE)?;
    if set_attributes(whole.as_fd(), c"", true, change).is_ok() {
        return Ok((whole, false));
    }
    let alone = copy(OpenTreeFlags::empty())?;
    set_attributes(alone.as_fd(), c"", false, change).map_err(|errno| {
        let e = lazaret_base::Error::from(errno).context(format!("showing `{}` by its ids", share.source.display()));
        match errno {
            Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM => e.kind(ErrorKind::Missing).hint(
                "its file system can't be id-mapped by this kernel; share a directory on ext4, xfs, btrfs or tmpfs",
            ),
            _ => e,
        }
    })?;
    Ok((alone, true))
}

/// Runs `act` in a child that nobody inside can look into and that ends with its parent. Its error is the result.
pub(crate) fn in_a_child(private: &[BorrowedFd<'_>], act: impl FnOnce() -> Result<()>) -> Result<()> {
    let (ours, theirs) = Line::pair()?;
    let child = match clone(0, None).context("making a process that enters the container")? {
        Cloned::Child => {
            drop(ours);
            close_copies(private);
            let done = guard().and_then(|()| act());
            // Without anybody to tell, the status says it.
            let _ = match done {
                Ok(()) => theirs.done(Fds::default()),
                Err(e) => theirs.failed(0, e),
            };
            exit_now(0)
        }
        Cloned::Parent(child) => child,
    };
    drop(theirs);
    let end = ours.end(&mut Fds::default());
    let _ = rustix::process::waitid(
        rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    match end? {
        End::Done => Ok(()),
        End::Failed(_, e) => Err(e),
        End::Gone => Err(error("the process that entered the container was killed")),
    }
}

fn guard() -> Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::process::umask(Mode::from(0o022));
    // If our parent has died before this, the line to it is broken and nobody believes what we did.
    Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Takes the tree into the container.
fn bring(tree: OwnedFd, kind: Kind, shown: &Shown, into: Into<'_>) -> Result<()> {
    let tree = match into.user {
        Some(user) => locked(tree, kind, &shown.scratch, user)?,
        None => tree,
    };
    join(into.mounts, namespace::MOUNT).context("entering the container's mounts")?;
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let target = target::open_or_make(root.as_fd(), relative(&shown.share.target), kind, 0)?;
    put(&tree, &target)
}

/// The same tree with flags that nobody in `user` can change.
fn locked(tree: OwnedFd, kind: Kind, scratch: &Path, user: BorrowedFd<'_>) -> Result<OwnedFd> {
    unshare(namespace::MOUNT)?;
    set_attributes(CWD, c"/", true, Change { propagation: attributes::PRIVATE, ..Change::default() })?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "lazaret"), ("mode", "0700"), ("size", "64k")] {
        fsconfig_set_string(context.as_fd(), key, value)?;
    }
    fsconfig_create(context.as_fd())?;
    let place = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(place.as_fd(), "", CWD, scratch, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    match kind {
        Kind::Directory => mkdirat(&place, "it", Mode::from(0o700))?,
        Kind::File => drop(openat(&place, "it", OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from(0o600))?),
    }
    put(&tree, &openat(&place, "it", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    // The working directory goes along into the copy; descriptors stay behind.
    rustix::process::fchdir(&place)?;
    become_root_of(user)?;
    unshare(namespace::MOUNT).context("copying the mounts")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, "it", flags).context("taking the share along")?;
    // As its root, so that what is made on the way belongs to it.
    set_thread_groups(&[])?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    guard()?;
    Ok(tree)
}

/// All powers in the user namespace, and none outside.
fn become_root_of(user: BorrowedFd<'_>) -> Result<()> {
    join(user, namespace::USER).map_err(|errno| match errno {
        Errno::SRCH => error("its init has ended").kind(ErrorKind::Stopped),
        e => lazaret_base::Error::from(e).context("entering the container's user namespace"),
    })
}

/// Attaches a detached mount to where `target` leads.
fn put(tree: &OwnedFd, target: &OwnedFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree.as_fd(), "", target.as_fd(), "", flags)?)
}

// --- taking away ---

/// A share that is to go, as tables of mounts know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gone {
    /// Where it appears inside.
    pub target: PathBuf,
    /// What it shows, if that can still be told.
    pub place: Option<Place>,
}

/// A tree of a file system: `8:1` and the path from that file system's own root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    device: String,
    root: PathBuf,
}

/// One line of a table of mounts (proc_pid_mountinfo(5)).
struct Mounted {
    place: Place,
    at: PathBuf,
}

/// No table is longer.
const LONGEST_TABLE: usize = 64 << 20;
/// Mounts on top of each other are taken off one by one.
const MOST_ROUNDS: usize = 64;

fn table(mut file: impl std::io::Read) -> Result<Vec<Mounted>> {
    let text = read_bounded(&mut file, LONGEST_TABLE).context("reading the table of mounts")?;
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let [_, _, device, root, at, ..] = fields[..] else { return None };
        let device = String::from_utf8_lossy(device).into_owned();
        let root = unescaped(root.strip_suffix(b"//deleted").unwrap_or(root));
        Some(Mounted { place: Place { device, root }, at: unescaped(at) })
    };
    Ok(text.split(|byte| *byte == b'\n').filter_map(line).collect())
}

/// The kernel writes space, tab, newline and backslash as three octal digits behind a backslash.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match digits {
            Some(d) => {
                bytes.push((d[0] - b'0') << 6 | (d[1] - b'0') << 3 | (d[2] - b'0'));
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

/// What `source` is in its file system, by the host's table of mounts.
pub fn place_of(source: &Path) -> Result<Option<Place>> {
    let mounts = table(std::fs::File::open("/proc/self/mountinfo").context("reading the table of mounts")?)?;
    Ok(place_in(&mounts, source))
}

fn place_in(mounts: &[Mounted], source: &Path) -> Option<Place> {
    // Of those that reach as far, the last is on top.
    let mount = mounts.iter().filter(|m| source.starts_with(&m.at)).max_by_key(|m| m.at.as_os_str().len())?;
    let below = source.strip_prefix(&mount.at).ok()?;
    let root: PathBuf = mount.place.root.join(below).components().collect();
    Some(Place { device: mount.place.device.clone(), root })
}

/// Takes shares out of a container: at their places, and wherever else its processes have mounted what they show, in
/// all the mount namespaces that are given. `kept` are the places of shares that stay.
///
/// What processes have open there they can use until they close it.
pub fn detach(
    gone: &[Gone],
    kept: &[PathBuf],
    user: Option<BorrowedFd<'_>>,
    namespaces: &[OwnedFd],
    private: &[BorrowedFd<'_>],
) -> Result<()> {
    in_a_child(private, || {
        // The host's, since the container's may be anything.
        let proc = openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if let Some(user) = user {
            become_root_of(user)?;
        }
        for (at, mounts) in namespaces.iter().enumerate() {
            match join(mounts.as_fd(), namespace::MOUNT) {
                // Those of a container inside this one are not its root's to enter.
                Err(e) if at == 0 => return Err(e).context("entering the container's mounts"),
                Err(_) => continue,
                Ok(()) => take_off(gone, kept, &proc)?,
            }
        }
        Ok(())
    })
}

/// Whether a descriptor is of the root of a mount of this type and source, by the host's own proc.
pub(crate) fn is_mount_of(proc: &OwnedFd, file: &OwnedFd, kind: &str, source: &str) -> Result<bool> {
    let read = |path: &str| -> Result<String> {
        let opened = openat(proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(String::from_utf8_lossy(&read_bounded(std::fs::File::from(opened), LONGEST_TABLE)?).into_owned())
    };
    let described = read(&format!("self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    let Some(id) = described.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim) else {
        return Ok(false);
    };
    let table = read("self/mountinfo")?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(id)).unwrap_or_default();
    let Some((about, of)) = line.split_once(" - ") else { return Ok(false) };
    let is_root = about.split(' ').nth(3) == Some("/");
    let mut of = of.split(' ');
    Ok(is_root && of.next() == Some(kind) && of.next() == Some(source))
}

fn take_off(gone: &[Gone], kept: &[PathBuf], proc: &OwnedFd) -> Result<()> {
    for _ in 0..MOST_ROUNDS {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mounts = table(std::fs::File::from(openat(proc, "self/mountinfo", flags, Mode::empty())?))?;
        let concerned = |mounted: &&Mounted| gone.iter().any(|gone| gone.is(mounted, kept));
        // The last is on top of those before it. One that is locked in its place can't be taken off: the image's own.
        let taken = mounts
            .iter()
            .rev()
            .filter(concerned)
            .filter(|mounted| unmount(&mounted.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok());
        if taken.count() == 0 {
            break;
        }
    }
    Ok(())
}

impl Gone {
    fn is(&self, mounted: &Mounted, kept: &[PathBuf]) -> bool {
        if mounted.at == self.target {
            return true;
        }
        let shows = self.place.as_ref().is_some_and(|place| {
            place.device == mounted.place.device
                && mounted.place.root.as_os_str().as_bytes().starts_with(b"/")
                && mounted.place.root.starts_with(&place.root)
        });
        shows && !kept.iter().any(|kept| mounted.at.starts_with(kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: IdRange = IdRange { start: 1000, count: 10 };

    #[test]
    fn the_person_is_the_person_on_both_sides() {
        assert_eq!(lines(IDS, 3, Some(500)), "500 1003 1\n1000 1000 3\n1004 1004 6\n");
        assert_eq!(lines(IDS, 0, Some(500)), "500 1000 1\n1001 1001 9\n");
        assert_eq!(lines(IDS, 9, Some(500)), "500 1009 1\n1000 1000 9\n");
    }

    #[test]
    fn without_a_person_everybody_is_themselves() {
        let plain = "1000 1000 10\n";
        for (inside, outside) in [(3, None), (3, Some(1005)), (10, Some(500))] {
            assert_eq!(lines(IDS, inside, outside), plain);
        }
    }

    const TABLE: &str = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 8:2 /@home /home rw - btrfs /dev/sda2 rw
22 21 0:40 / /home/me/usb\\040stick rw - vfat /dev/sdb1 rw
23 20 8:1 /srv/x//deleted /mnt rw - ext4 /dev/sda1 rw
";

    #[test]
    fn a_path_is_found_in_its_file_system() {
        let mounts = table(TABLE.as_bytes()).unwrap();
        let place = |path: &str| place_in(&mounts, Path::new(path)).map(|p| (p.device, p.root.display().to_string()));
        assert_eq!(place("/srv/a"), Some(("8:1".into(), "/srv/a".into())));
        assert_eq!(place("/home/me/in"), Some(("8:2".into(), "/@home/me/in".into())));
        assert_eq!(place("/home/me/usb stick/a"), Some(("0:40".into(), "/a".into())));
        assert_eq!(place("/homework"), Some(("8:1".into(), "/homework".into())));
        assert_eq!(mounts[3].place.root, Path::new("/srv/x"));
    }

    #[test]
    fn all_that_shows_a_share_goes_with_it_and_nothing_else() {
        let mounts = table(TABLE.as_bytes()).unwrap();
        let gone = |target: &str, root: &str| Gone {
            target: target.into(),
            place: Some(Place { device: "8:1".into(), root: root.into() }),
        };
        let found = |gone: &Gone, kept: &[PathBuf]| {
            mounts.iter().filter(|m| gone.is(m, kept)).map(|m| m.at.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found(&gone("/nowhere", "/srv"), &[]), ["/mnt"]);
        assert_eq!(found(&gone("/nowhere", "/srv"), &["/mnt".into()]), [""; 0]);
        assert_eq!(found(&gone("/home", "/other"), &[]), ["/home"]);
    }
}

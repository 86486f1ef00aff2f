//! Copying a tree, with every id moved where a file system can't show ids otherwise.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, UTIME_NOW};
use rustix::io::Errno;

use crate::stack::{Node, OPAQUE, PRIVATE, Stack, Visitor};
use crate::tree::{self, Ladder, START, STRAIGHT, Spot};
use crate::unpack::full;
use crate::{Progress, acl, capability};

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories, links and so on, without the root itself.
    pub entries: u64,
    /// Bytes of file content that were copied: neither holes nor what the file system shares with the original.
    pub bytes: u64,
}

/// Copies all below `from` into the empty directory `into`, adding `shift` to every user and group id.
///
/// As [`copy_tree`] does it with a directory as it is.
pub fn copy_shifted(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    shift: u32,
    progress: &mut dyn FnMut(Progress),
) -> Result<Copied> {
    copy_tree(&Stack::plain(tree::open(from, ".", tree::LIST, STRAIGHT)?), into, i64::from(shift), progress)
}

/// Copies a tree into the empty directory `into`, adding `shift` to every user and group id.
///
/// Kept are types, modes, times, hard links, holes and extended attributes; capabilities and access lists are
/// shifted as well, so that they mean in the user namespace what they meant before. Content is shared where
/// the file system can (`FICLONE`). The attributes of the root itself are copied too. Of a stack of changes, what
/// hides something below does so in the copy. No link is followed; a mount below is not entered but is an error. The
/// tree must not change meanwhile.
pub fn copy_tree(from: &Stack, into: BorrowedFd<'_>, shift: i64, progress: &mut dyn FnMut(Progress)) -> Result<Copied> {
    let into = tree::open(into, ".", tree::LIST, STRAIGHT)?;
    tree::list(into.as_fd(), |_| Err(error("the directory to copy into is not empty")))?;
    let mut copy = Copying {
        root: into.try_clone()?,
        into: Ladder::new(into)?,
        links: HashMap::new(),
        shift,
        can_clone: true,
        done: Copied::default(),
        progress,
    };
    from.walk(&mut copy).context("copying")?;
    Ok(copy.done)
}

/// Whether the file system of a directory lets files share their content (ioctl_ficlone(2)), so that [`copy_tree`]
/// takes neither time nor space for it.
pub fn shares_content(dir: impl AsFd) -> Result<bool> {
    let file = || fs::openat(&dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
    let (from, into) = (File::from(file()?), File::from(file()?));
    from.write_all_at(b"shared", 0)?;
    Ok(fs::ioctl_ficlone(&into, &from).is_ok())
}

/// Gives an empty directory the attributes of the root that it will cover, so that nobody sees a difference.
pub fn dress_root(root: impl AsFd, below: impl AsFd) -> Result<()> {
    let (into, from) = (Spot::Open(root.as_fd()), Spot::Open(below.as_fd()));
    let stat = fs::fstat(&below)?;
    into.set_owner(stat.st_uid, stat.st_gid).context("setting its owner")?;
    into.set_mode(stat.st_mode).context("setting its mode")?;
    for (name, value) in shown(from)? {
        into.set_xattr(&name, &value).context("setting its attributes")?;
    }
    into.set_times(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, modified(&stat)).context("setting its time")
}

/// Whether a directory is as [`dress_root`] left it.
pub fn is_untouched(root: impl AsFd, below: impl AsFd) -> Result<bool> {
    let mut empty = true;
    tree::list(tree::open(&root, ".", tree::LIST, STRAIGHT)?.as_fd(), |_| {
        empty = false;
        Ok(())
    })?;
    let (own, other) = (fs::fstat(&root)?, fs::fstat(&below)?);
    let of = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec);
    Ok(empty && of(&own) == of(&other) && shown(Spot::Open(root.as_fd()))? == shown(Spot::Open(below.as_fd()))?)
}

/// The attributes of a root that a container sees.
fn shown(spot: Spot<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut xattrs = spot.xattrs().context("reading the attributes of a root")?;
    xattrs.retain(|(name, _)| !name.starts_with(PRIVATE) && !name.starts_with(b"security."));
    xattrs.sort();
    Ok(xattrs)
}

fn modified(stat: &Stat) -> Timespec {
    Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ }
}

struct Copying<'a> {
    root: OwnedFd,
    into: Ladder,
    /// The first copy of each file that has several names, by layer and inode.
    links: HashMap<(usize, u64), Vec<u8>>,
    shift: i64,
    can_clone: bool,
    done: Copied,
    progress: &'a mut dyn FnMut(Progress),
}

impl Visitor for Copying<'_> {
    fn enter(&mut self, node: &Node<'_>) -> Result<()> {
        if node.path.is_empty() {
            return Ok(());
        }
        self.done.entries += 1;
        fs::mkdirat(self.into.fd(), node.name, Mode::RWXU).map_err(Into::into).map_err(full)?;
        let into = tree::open(self.into.fd(), node.name, tree::LIST, STRAIGHT)?;
        self.into.descend(into)
    }

    fn leaf(&mut self, node: &Node<'_>) -> Result<()> {
        self.done.entries += 1;
        self.one(node)?;
        (self.progress)(Progress::written(self.done.entries, self.done.bytes));
        Ok(())
    }

    /// Dressed when it is full: what was put into it changed its times.
    fn leave(&mut self, node: &Node<'_>) -> Result<()> {
        let into = Spot::Open(self.into.fd());
        if node.opaque {
            into.set_xattr(OPAQUE.as_bytes(), b"y").context("hiding what is below")?;
        }
        self.dress(node, into)?;
        self.into.ascend().map(drop)
    }
}

impl Copying<'_> {
    fn one(&mut self, node: &Node<'_>) -> Result<()> {
        let name = node.name;
        if node.stat.st_nlink > 1 && !node.is_whiteout() {
            let inode = (node.layer, node.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let (above, last) = tree::split(first);
                let dir = tree::open_deep(self.root.as_fd(), above, START)?;
                return Ok(fs::linkat(dir, last, self.into.fd(), name, AtFlags::empty())?);
            }
            self.links.insert(inode, node.path.to_vec());
        }
        let into = self.into.fd();
        match node.kind() {
            FileType::RegularFile => return self.file(node),
            FileType::Symlink => {
                fs::symlinkat(node.target()?, into, name).map_err(Into::into).map_err(full)?;
            }
            kind => fs::mknodat(into, name, kind, Mode::RUSR | Mode::WUSR, node.stat.st_rdev)
                .map_err(Into::into)
                .map_err(full)?,
        }
        self.dress(node, Spot::Named(into, name))
    }

    fn file(&mut self, node: &Node<'_>) -> Result<()> {
        let from = node.open()?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let into = fs::openat(self.into.fd(), node.name, flags, Mode::RUSR | Mode::WUSR);
        let into = File::from(into.map_err(Into::into).map_err(full)?);
        self.content(&from, &into, node.stat.st_size as u64).map_err(full)?;
        self.dress(node, Spot::Open(into.as_fd()))
    }

    fn content(&mut self, from: &File, into: &File, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.can_clone {
            match fs::ioctl_ficlone(into, from) {
                Ok(()) => return Ok(()),
                // Not this file system, or not between these two: the next file would fare no better.
                Err(_) => self.can_clone = false,
            }
        }
        let mut at = 0;
        while at < size {
            let data = match fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole up to the end.
                Err(Errno::NXIO) => break,
                Err(e) => return Err(e.into()),
            };
            let hole = fs::seek(from, SeekFrom::Hole(data))?;
            self.done.bytes += copy_range(from, into, data, hole)?;
            at = hole;
        }
        Ok(fs::ftruncate(into, size)?)
    }

    /// In the order that unpacking explains: owner, mode, attributes, times.
    fn dress(&self, node: &Node<'_>, into: Spot<'_>) -> Result<()> {
        let stat = &node.stat;
        into.set_owner(shifted(stat.st_uid, self.shift)?, shifted(stat.st_gid, self.shift)?)
            .context("setting its owner")?;
        if !node.kind().is_symlink() {
            into.set_mode(stat.st_mode).context("setting its mode")?;
        }
        for (name, value) in shifted_xattrs(node.xattrs()?, self.shift)? {
            into.set_xattr(&name, &value)
                .map_err(Into::into)
                .map_err(full)
                .with_context(|| format!("setting its attribute `{}`", String::from_utf8_lossy(&name)))?;
        }
        let accessed = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ };
        into.set_times(accessed, modified(stat)).context("setting its time")
    }
}

/// Attributes with the ids in them moved.
pub(crate) fn shifted_xattrs(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>, shift: i64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    for (name, value) in &mut xattrs {
        match std::str::from_utf8(name) {
            Ok(capability::NAME) => *value = capability::shift(value, shift)?,
            Ok(acl::ACCESS | acl::DEFAULT) => *value = acl::shift(value, shift)?,
            _ => {}
        }
    }
    Ok(xattrs)
}

/// An id moved by `shift`; the highest id is none (chown(2)).
pub(crate) fn shifted(id: u32, shift: i64) -> Result<u32> {
    u32::try_from(i64::from(id) + shift)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| error(format!("the id {id} can't be shifted by {shift}")))
}

/// Copies in the kernel where it can. The count of bytes.
fn copy_range(from: &File, into: &File, start: u64, end: u64) -> Result<u64> {
    let (mut read_at, mut write_at) = (start, start);
    while read_at < end {
        let length = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(1 << 30);
        match fs::copy_file_range(from, Some(&mut read_at), into, Some(&mut write_at), length) {
            // Shorter than it was.
            Ok(0) => return Ok(read_at - start),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return Ok(read_at - start + copy_by_hand(from, into, read_at, end)?);
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(end - start)
}

fn copy_by_hand(from: &File, into: &File, start: u64, end: u64) -> Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut at = start;
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let n = match from.read_at(&mut buffer[..most], at) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e.into()),
        };
        into.write_all_at(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(at - start)
}

//! Copying a tree with every id moved, for file systems that can't show ids otherwise.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, SeekFrom, Stat, Timespec};
use rustix::io::Errno;

use crate::tree::{self, Ladder, START, STRAIGHT, Spot};
use crate::unpack::full;
use crate::{Progress, acl, capability};

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories, links and so on, without the root itself.
    pub entries: u64,
    /// Bytes of file content, holes not counted; shared with the original where the file system can.
    pub bytes: u64,
}

/// Copies all below `from` into the empty directory `into`, adding `shift` to every user and group id.
///
/// Kept are types, modes, times, hard links, holes and extended attributes; capabilities and access lists are
/// shifted as well, so that they mean in the user namespace what they meant before. Content is shared where
/// the file system can (`FICLONE`). The attributes of `from` itself are copied too. No link is followed; a
/// mount below is not entered but is an error. The tree must not change meanwhile.
pub fn copy_shifted(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    shift: u32,
    progress: &mut dyn FnMut(Progress),
) -> Result<Copied> {
    let from = tree::open(from, ".", tree::LIST, STRAIGHT)?;
    let into = tree::open(into, ".", tree::LIST, STRAIGHT)?;
    tree::list(into.as_fd(), |_| Err(error("the directory to copy into is not empty")))?;
    let mut copy = Copying {
        root: into.try_clone()?,
        from: Ladder::new(from)?,
        into: Ladder::new(into)?,
        path: Vec::new(),
        links: HashMap::new(),
        shift,
        can_clone: true,
        done: Copied::default(),
        progress,
    };
    copy.run().with_context(|| format!("copying `{}`", String::from_utf8_lossy(&copy.path)))?;
    Ok(copy.done)
}

struct Copying<'a> {
    root: OwnedFd,
    from: Ladder,
    into: Ladder,
    /// Of what is being copied, for errors and for hard links.
    path: Vec<u8>,
    /// The first copy of each file that has several names.
    links: HashMap<u64, Vec<u8>>,
    shift: u32,
    can_clone: bool,
    done: Copied,
    progress: &'a mut dyn FnMut(Progress),
}

impl Copying<'_> {
    /// Depth first, without recursion: a tree may be deeper than the stack.
    fn run(&mut self) -> Result<()> {
        let mut levels = vec![self.level()?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.pop() {
                self.push_name(&name);
                self.enter(&name)?;
                let level = self.level()?;
                levels.push(level);
                continue;
            }
            // Dressed when it is full: what was put into it changed its times.
            self.dress(Spot::Open(self.from.fd()), Spot::Open(self.into.fd()), &fs::fstat(self.from.fd())?)?;
            levels.pop();
            self.from.ascend()?;
            self.into.ascend()?;
            self.pop_name();
        }
        Ok(())
    }

    fn push_name(&mut self, name: &CStr) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
    }

    fn pop_name(&mut self) {
        let length = tree::split(&self.path).0.len();
        self.path.truncate(length);
    }

    fn enter(&mut self, name: &CStr) -> Result<()> {
        let from = tree::open(self.from.fd(), name, tree::LIST, STRAIGHT).map_err(mounted)?;
        fs::mkdirat(self.into.fd(), name, Mode::RWXU).map_err(Into::into).map_err(full)?;
        let into = tree::open(self.into.fd(), name, tree::LIST, STRAIGHT)?;
        self.from.descend(from)?;
        self.into.descend(into)
    }

    /// Copies all but the directories of a directory, and says which those are.
    fn level(&mut self) -> Result<Vec<CString>> {
        let mut directories = Vec::new();
        let dir = self.from.fd().try_clone_to_owned()?;
        tree::list(dir.as_fd(), |entry| {
            let name = entry.file_name();
            self.done.entries += 1;
            if tree::type_of(dir.as_fd(), entry)?.is_dir() {
                directories.push(name.to_owned());
                return Ok(());
            }
            self.push_name(name);
            self.one(name)?;
            self.pop_name();
            (self.progress)(Progress { entries: self.done.entries, bytes: self.done.bytes, read: self.done.bytes });
            Ok(())
        })?;
        Ok(directories)
    }

    fn one(&mut self, name: &CStr) -> Result<()> {
        let stat = tree::stat(self.from.fd(), name)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let (above, last) = tree::split(first);
                let dir = tree::open_deep(self.root.as_fd(), above, START)?;
                return Ok(fs::linkat(dir, last, self.into.fd(), name, AtFlags::empty())?);
            }
            self.links.insert(stat.st_ino, self.path.clone());
        }
        let (from, into) = (self.from.fd(), self.into.fd());
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => return self.file(name, &stat),
            FileType::Symlink => {
                let target = fs::readlinkat(from, name, Vec::new())?;
                fs::symlinkat(target, into, name).map_err(Into::into).map_err(full)?;
            }
            _ => fs::mknodat(into, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)
                .map_err(Into::into)
                .map_err(full)?,
        }
        self.dress(Spot::Named(from, name), Spot::Named(into, name), &stat)
    }

    fn file(&mut self, name: &CStr, stat: &Stat) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let from = File::from(tree::open(self.from.fd(), name, flags, STRAIGHT).map_err(mounted)?);
        if fs::fstat(&from)?.st_ino != stat.st_ino {
            return Err(error("it was replaced meanwhile"));
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let into =
            fs::openat(self.into.fd(), name, flags, Mode::RUSR | Mode::WUSR).map_err(Into::into).map_err(full)?;
        let into = File::from(into);
        self.content(&from, &into, stat.st_size as u64).map_err(full)?;
        self.dress(Spot::Open(from.as_fd()), Spot::Open(into.as_fd()), stat)
    }

    fn content(&mut self, from: &File, into: &File, size: u64) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        if self.can_clone {
            match fs::ioctl_ficlone(into, from) {
                Ok(()) => {
                    self.done.bytes += size;
                    return Ok(());
                }
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
    fn dress(&self, from: Spot<'_>, into: Spot<'_>, stat: &Stat) -> Result<()> {
        into.set_owner(shifted(stat.st_uid, self.shift)?, shifted(stat.st_gid, self.shift)?)
            .context("setting its owner")?;
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            into.set_mode(stat.st_mode).context("setting its mode")?;
        }
        for (name, value) in from.xattrs().context("reading its attributes")? {
            let value = match std::str::from_utf8(&name) {
                Ok(capability::NAME) => capability::shift(&value, self.shift)?,
                Ok(acl::ACCESS | acl::DEFAULT) => acl::shift(&value, self.shift)?,
                // Given by the host's policy when the file is made.
                Ok("security.selinux") => continue,
                _ => value,
            };
            into.set_xattr(&name, &value)
                .with_context(|| format!("setting its attribute `{}`", String::from_utf8_lossy(&name)))?;
        }
        let accessed = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ };
        let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        into.set_times(accessed, modified).context("setting its time")
    }
}

/// An id moved by `shift`; the highest id is none (chown(2)).
pub(crate) fn shifted(id: u32, shift: u32) -> Result<u32> {
    id.checked_add(shift)
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| error(format!("the id {id} can't be shifted by {shift}")))
}

fn mounted(e: Errno) -> lazaret_base::Error {
    match e {
        Errno::XDEV => error("something is mounted there").hint("unmount it first, see `findmnt`"),
        e => e.into(),
    }
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

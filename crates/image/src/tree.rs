//! Walking and dressing a tree by descriptors: no name is ever resolved outside of it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Result, error};
use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, RawDir, RawDirEntry, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::{self, Errno};

/// Links are followed, and lead no further than the root of the tree, as they would for a process chrooted
/// there (openat2(2)). What is mounted below is not entered.
pub(crate) const INSIDE: ResolveFlags =
    ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_XDEV);
/// No link is followed.
pub(crate) const STRAIGHT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory as the start of a resolution only.
pub(crate) const START: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// A directory to list and to change.
pub(crate) const LIST: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Opens a name below `root`.
pub(crate) fn open(
    root: impl AsFd,
    path: impl rustix::path::Arg,
    flags: OFlags,
    how: ResolveFlags,
) -> io::Result<OwnedFd> {
    let path = path.into_c_str()?;
    // The kernel gives up on `..` when something is renamed or mounted anywhere meanwhile.
    for _ in 0..1000 {
        match fs::openat2(&root, &*path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

/// Opens a directory below `root` by a path of any length, following no link.
pub(crate) fn open_deep(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let mut at: Option<OwnedFd> = None;
    let mut rest = path;
    // PATH_MAX limits one call, not the depth of a tree.
    while rest.len() > 4000 {
        let cut = rest[..4000].iter().rposition(|byte| *byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        at = Some(open(at.as_ref().map_or(root, |fd| fd.as_fd()), &rest[..cut], START, STRAIGHT)?);
        rest = &rest[cut + 1..];
    }
    let last = if rest.is_empty() { b".".as_slice() } else { rest };
    open(at.as_ref().map_or(root, |fd| fd.as_fd()), last, flags, STRAIGHT)
}

/// Splits the last component off.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// A name as the kernel takes it.
pub(crate) fn name(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| error(format!("a zero byte in the name `{}`", String::from_utf8_lossy(bytes))))
}

/// Calls `each` with what a directory holds, from its start.
pub(crate) fn list(fd: BorrowedFd<'_>, mut each: impl FnMut(&RawDirEntry<'_>) -> Result<()>) -> Result<()> {
    let mut buffer = Vec::with_capacity(32 << 10);
    fs::seek(fd, fs::SeekFrom::Start(0)).context("listing")?;
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.context("listing")?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            each(&entry)?;
        }
    }
    Ok(())
}

/// The type of an entry, from the file system where the directory does not tell.
pub(crate) fn type_of(dir: BorrowedFd<'_>, entry: &RawDirEntry<'_>) -> io::Result<FileType> {
    match entry.file_type() {
        FileType::Unknown => Ok(FileType::from_raw_mode(stat(dir, entry.file_name())?.st_mode)),
        known => Ok(known),
    }
}

/// What a name is, links not followed.
pub(crate) fn stat(dir: impl AsFd, name: impl rustix::path::Arg) -> io::Result<Stat> {
    fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// A file to change: one that is open, or one that can't be opened (a link, a device) by its place.
#[derive(Clone, Copy)]
pub(crate) enum Spot<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a CStr),
}

impl Spot<'_> {
    pub(crate) fn set_owner(self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Spot::Open(fd) => fs::fchown(fd, uid, gid),
            Spot::Named(dir, name) => fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    /// Not for links: they have no mode, and fchmodat(2) would follow them.
    pub(crate) fn set_mode(self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Spot::Open(fd) => fs::fchmod(fd, mode),
            Spot::Named(dir, name) => fs::chmodat(dir, name, mode, AtFlags::empty()),
        }
    }

    pub(crate) fn set_times(self, accessed: Timespec, modified: Timespec) -> io::Result<()> {
        let times = Timestamps { last_access: accessed, last_modification: modified };
        match self {
            Spot::Open(fd) => fs::futimens(fd, &times),
            Spot::Named(dir, name) => fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        }
    }

    pub(crate) fn set_xattr(self, name: &[u8], value: &[u8]) -> io::Result<()> {
        match self {
            Spot::Open(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Spot::Named(dir, file) => fs::lsetxattr(through_proc(dir, file), name, value, XattrFlags::empty()),
        }
    }

    /// The names of all attributes, each with a zero byte behind it; none where the file system has none.
    pub(crate) fn xattr_names(self) -> io::Result<Vec<u8>> {
        let names = grow(|buffer| match self {
            Spot::Open(fd) => fs::flistxattr(fd, buffer),
            Spot::Named(dir, file) => fs::llistxattr(through_proc(dir, file), buffer),
        });
        match names {
            Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
            names => names,
        }
    }

    pub(crate) fn remove_xattr(self, name: &[u8]) -> io::Result<()> {
        match self {
            Spot::Open(fd) => fs::fremovexattr(fd, name),
            Spot::Named(dir, file) => fs::lremovexattr(through_proc(dir, file), name),
        }
    }

    /// All attributes with their values.
    pub(crate) fn xattrs(self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = self.xattr_names()?;
        let mut xattrs = Vec::new();
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let value = grow(|buffer| match self {
                Spot::Open(fd) => fs::fgetxattr(fd, name, buffer),
                Spot::Named(dir, file) => fs::lgetxattr(through_proc(dir, file), name, buffer),
            });
            match value {
                Ok(value) => xattrs.push((name.to_vec(), value)),
                // Listed, but not to be had: some security modules do that.
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(xattrs)
    }
}

/// There is no lsetxattr(2) by directory descriptor before Linux 6.13; the magic link is one.
fn through_proc(dir: BorrowedFd<'_>, name: &CStr) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    path
}

/// Calls `fill` with a buffer that is large enough.
fn grow(fill: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 512];
    loop {
        match fill(&mut buffer) {
            Ok(n) => {
                buffer.truncate(n);
                return Ok(buffer);
            }
            // The kernel limits both a value and a list to 64 KiB.
            Err(Errno::RANGE) if buffer.len() < 128 << 10 => buffer.resize(buffer.len() * 8, 0),
            Err(e) => return Err(e),
        }
    }
}

/// How many directories of a walk are open at once.
const OPEN: usize = 64;

/// The directories from the root of a walk down to where it is. A tree may be deeper than a process may
/// have files open: the upper ones are closed, and found again through `..`, which must then lead to the
/// same directory.
pub(crate) struct Ladder(Vec<Rung>);

struct Rung {
    fd: Option<OwnedFd>,
    is: (u64, u64),
}

impl Ladder {
    pub(crate) fn new(root: OwnedFd) -> Result<Ladder> {
        let mut ladder = Ladder(Vec::new());
        ladder.descend(root)?;
        Ok(ladder)
    }

    /// Where the walk is.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.last().and_then(|rung| rung.fd.as_ref()).expect("the lowest rung is open").as_fd()
    }

    pub(crate) fn descend(&mut self, fd: OwnedFd) -> Result<()> {
        let stat = fs::fstat(&fd)?;
        self.0.push(Rung { fd: Some(fd), is: (stat.st_dev, stat.st_ino) });
        if let Some(above) = self.0.len().checked_sub(OPEN + 1) {
            self.0[above].fd = None;
        }
        Ok(())
    }

    /// Back to the directory above; the one that was left stays open for the caller.
    pub(crate) fn ascend(&mut self) -> Result<Option<OwnedFd>> {
        let left = self.0.pop().and_then(|rung| rung.fd);
        let (Some(left), Some(rung)) = (left, self.0.last_mut()) else { return Ok(None) };
        if rung.fd.is_none() {
            let fd = fs::openat(&left, "..", LIST, Mode::empty())?;
            let stat = fs::fstat(&fd)?;
            if (stat.st_dev, stat.st_ino) != rung.is {
                return Err(error("the tree was changed while it was walked"));
            }
            rung.fd = Some(fd);
        }
        Ok(Some(left))
    }
}

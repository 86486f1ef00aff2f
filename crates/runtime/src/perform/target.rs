//! Finding and making mount targets in a tree that somebody else has filled.
//!
//! Everything goes through descriptors. Links are followed as the container itself would follow them,
//! never out of the root; nothing is opened that could block (a FIFO, a device), since only `O_PATH` is
//! used (openat2(2)).

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use lazaret_base::{Context, Result, error};
use lazaret_sys::process::with_file_ids;
use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Uid, fstat, mkdirat, openat, openat2};
use rustix::io::Errno;

/// What a mount target has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Opens `path` below `root` as a mount target, making it for `owner` if it is not there.
pub fn open_or_make(root: BorrowedFd<'_>, path: &Path, kind: Kind, owner: u32) -> Result<OwnedFd> {
    match open(root, path) {
        Err(e) if e.errno() == Some(Errno::NOENT) => make(root, path, kind, owner)?,
        other => return fits(other?, path, kind),
    }
    fits(open(root, path)?, path, kind)
}

/// Opens `path` below `root` if it is there.
pub fn open(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        .with_context(|| format!("opening `/{}` in the container", path.display()))
}

/// Opens a directory of the image itself that must be no link: `/proc`, `/sys`, `/dev`, `/run`.
///
/// An image in which one of them is a link would have our mounts go somewhere else. It is made for `owner` if it
/// is not there.
pub fn open_plain(root: BorrowedFd<'_>, path: &Path, owner: u32) -> Result<OwnedFd> {
    let opening = || format!("opening `/{}` in the container", path.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => make(root, path, Kind::Directory, owner)?,
        Err(Errno::LOOP) => {
            return Err(error(format!("`/{}` of the image is a symbolic link", path.display()))
                .hint("a root file system has a real directory there; repair the image"));
        }
        other => return fits(other.with_context(opening)?, path, Kind::Directory),
    }
    fits(openat2(root, path, flags, Mode::empty(), resolve).with_context(opening)?, path, Kind::Directory)
}

/// Refuses a target of the wrong kind.
fn fits(target: OwnedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    let is_directory = FileType::from_raw_mode(fstat(&target)?.st_mode) == FileType::Directory;
    match (kind, is_directory) {
        (Kind::Directory, false) => Err(error(format!("`/{}` in the container is not a directory", path.display()))),
        (Kind::File, true) => Err(error(format!("`/{}` in the container is a directory", path.display()))),
        _ => Ok(target),
    }
}

/// Makes a target and what is missing above it, mode 0755 or an empty file. An id-mapped file system takes only
/// files of ids that its map knows, so they are made with the owner's ids.
fn make(root: BorrowedFd<'_>, path: &Path, kind: Kind, owner: u32) -> Result<()> {
    with_file_ids(owner, owner, || make_as_we_are(root, path, kind))
}

fn make_as_we_are(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> Result<()> {
    let making = || format!("making `/{}` in the container", path.display());
    let mut at = root.try_clone_to_owned()?;
    let mut walked = std::path::PathBuf::new();
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            return Err(error("`.` and `..` have no place in a mount target")).with_context(making);
        };
        walked.push(name);
        let last = components.peek().is_none();
        if last && kind == Kind::File {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match openat(&at, name, flags, Mode::from(0o644)) {
                Ok(made) => {
                    like_its_directory(&at, &made);
                    return Ok(());
                }
                Err(Errno::EXIST) => return Ok(()),
                Err(e) => return Err(e).with_context(making),
            }
        }
        match mkdirat(&at, name, Mode::from(0o755)) {
            Ok(()) => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                if let Ok(made) = openat(&at, name, flags, Mode::empty()) {
                    like_its_directory(&at, &made);
                }
            }
            Err(Errno::EXIST) => {}
            Err(e) => return Err(e).with_context(making),
        }
        // From the root again: the component may be a link that leads elsewhere inside.
        at = open(root, &walked)?;
    }
    Ok(())
}

/// What is made in a user's directory is the user's.
fn like_its_directory(directory: &OwnedFd, made: &OwnedFd) {
    let Ok(owner) = fstat(directory) else { return };
    // Where that is nobody whom the container knows, it stays its root's.
    let _ = rustix::fs::fchown(made, Some(Uid::from_raw(owner.st_uid)), Some(Gid::from_raw(owner.st_gid)));
}

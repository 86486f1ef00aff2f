//! What was written to an overlay goes into the tree below it, without copying any content.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, FileType, Mode, Stat, Timespec};
use rustix::io::Errno;

use crate::remove::remove_tree;
use crate::stack::{OPAQUE, PRIVATE};
use crate::tree::{self, LIST, STRAIGHT, Spot};
use crate::unpack::full;

/// No system nests directories deeper; each step keeps two descriptors open.
const DEEPEST: usize = 256;

/// Moves all of `upper`, the layer of an overlay that was written to, into `tree`, the one layer below it. Both are on
/// one file system and nobody uses either. `upper` is left with nothing but directories.
///
/// A failure leaves both half-done: work on what nobody else has a name for.
pub fn absorb(upper: BorrowedFd<'_>, tree: BorrowedFd<'_>) -> Result<()> {
    merge(upper, tree, 0).context("putting together what was made")
}

fn merge(upper: BorrowedFd<'_>, tree: BorrowedFd<'_>, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(error(format!("directories are nested more than {DEEPEST} times")));
    }
    // Before anything is moved out of it, which is a change of the directory, too.
    let stat = fs::fstat(upper)?;
    let mut names: Vec<(CString, FileType)> = Vec::new();
    tree::list(upper, |entry| {
        names.push((entry.file_name().to_owned(), tree::type_of(upper, entry)?));
        Ok(())
    })?;
    for (name, kind) in names {
        let at = || format!("`{}`", name.to_string_lossy());
        match kind {
            FileType::Directory => directory(upper, tree, &name, depth).with_context(at)?,
            FileType::CharacterDevice if is_whiteout(&tree::stat(upper, &*name)?) => {
                remove_tree(tree, &name).with_context(at)?;
                fs::unlinkat(upper, &*name, fs::AtFlags::empty())?;
            }
            _ => {
                strip(Spot::Named(upper, &name)).with_context(at)?;
                make_way(tree, &name, false).with_context(at)?;
                fs::renameat(upper, &*name, tree, &*name)
                    .map_err(lazaret_base::Error::from)
                    .map_err(full)
                    .with_context(at)?;
            }
        }
    }
    dress(upper, tree, &stat)
}

fn directory(upper: BorrowedFd<'_>, tree: BorrowedFd<'_>, name: &CString, depth: usize) -> Result<()> {
    let above = tree::open(upper, &**name, LIST, STRAIGHT)?;
    let opaque =
        Spot::Open(above.as_fd()).xattrs()?.iter().any(|(name, value)| name == OPAQUE.as_bytes() && value == b"y");
    make_way(tree, name, !opaque)?;
    match fs::mkdirat(tree, &**name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(full(e.into())),
    }
    let below: OwnedFd = tree::open(tree, &**name, LIST, STRAIGHT)?;
    merge(above.as_fd(), below.as_fd(), depth + 1)
}

/// Takes away what has the name already, unless it is a directory that is to be merged with another.
fn make_way(tree: BorrowedFd<'_>, name: &CString, keep_directory: bool) -> Result<()> {
    match tree::stat(tree, &**name) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
        Ok(stat) if keep_directory && FileType::from_raw_mode(stat.st_mode).is_dir() => Ok(()),
        Ok(_) => remove_tree(tree, name),
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    stat.st_rdev == 0
}

/// What overlayfs keeps for itself means nothing any more.
fn strip(spot: Spot<'_>) -> Result<()> {
    for name in spot.xattr_names()?.split(|byte| *byte == 0).filter(|name| name.starts_with(PRIVATE)) {
        spot.remove_xattr(name)?;
    }
    Ok(())
}

/// The attributes of a merged directory are those of the upper one.
fn dress(upper: BorrowedFd<'_>, tree: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    let (from, into) = (Spot::Open(upper), Spot::Open(tree));
    into.set_owner(stat.st_uid, stat.st_gid)?;
    into.set_mode(stat.st_mode)?;
    let wanted: Vec<_> = from.xattrs()?.into_iter().filter(|(name, _)| !name.starts_with(PRIVATE)).collect();
    for name in into.xattr_names()?.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if !wanted.iter().any(|(other, _)| other == name) && !name.starts_with(b"security.") {
            into.remove_xattr(name)?;
        }
    }
    for (name, value) in &wanted {
        into.set_xattr(name, value).map_err(lazaret_base::Error::from).map_err(full)?;
    }
    let modified = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    let accessed = Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ };
    Ok(into.set_times(accessed, modified)?)
}

//! Taking a tree away.

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use lazaret_base::{Context, Result, error};
use rustix::fs::{AtFlags, FileType, unlinkat};
use rustix::io::Errno;

use crate::tree::{self, Ladder};

/// Directories of one directory that are remembered while others are removed; more take another look.
const BATCH: usize = 4096;
/// How often a directory may fill up again while it is emptied.
const PATIENCE: u32 = 16;

/// A directory that is being emptied.
struct Level {
    name: CString,
    directories: Vec<CString>,
    more: bool,
    tries: u32,
}

/// Removes `name` in `parent` and all below it; nothing there is no error.
///
/// Links are removed, never followed. A tree of any depth takes few descriptors and no recursion. A mount
/// point below is an error that names it, before anything in it is touched; what was removed by then is gone.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let removing = |e: lazaret_base::Error| e.context(format!("removing `{}`", name.to_string_lossy()));
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(removing(e.into())),
    }
    empty(parent, name).and_then(|()| Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)).map_err(removing)
}

/// Removes all that the directory holds.
fn empty(parent: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    let mut ladder = Ladder::new(enter(parent, name)?)?;
    let mut levels = vec![scan(ladder.fd(), name.to_owned(), 0)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.directories.pop() {
            // Most directories that are left are empty after a batch: no need to look.
            match unlinkat(ladder.fd(), &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(_) => {}
            }
            let fd = enter(ladder.fd(), &name).with_context(|| place(&levels, &name))?;
            ladder.descend(fd)?;
            let level = scan(ladder.fd(), name, 0).with_context(|| place(&levels, c""))?;
            levels.push(level);
            continue;
        }
        if level.more {
            let (name, tries) = (std::mem::take(&mut level.name), level.tries);
            *level = scan(ladder.fd(), name, tries)?;
            continue;
        }
        let Some(done) = levels.pop() else { break };
        if levels.is_empty() {
            return Ok(());
        }
        // Kept open until its name is gone: `..` of it may be the way back.
        let left = ladder.ascend()?;
        match unlinkat(ladder.fd(), &done.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY) if done.tries < PATIENCE => {
                ladder.descend(left.ok_or_else(|| error("the tree has no root"))?)?;
                let again = scan(ladder.fd(), done.name, done.tries + 1)?;
                levels.push(again);
            }
            Err(e) => return Err(e).with_context(|| place(&levels, &done.name)),
        }
    }
    Ok(())
}

fn enter(dir: BorrowedFd<'_>, name: &CStr) -> Result<std::os::fd::OwnedFd> {
    match tree::open(dir, name, tree::LIST, tree::STRAIGHT) {
        Err(Errno::XDEV) => Err(error("something is mounted there")).hint("unmount it first, see `findmnt`"),
        fd => Ok(fd?),
    }
}

/// Removes all but directories, and says which those are.
fn scan(fd: BorrowedFd<'_>, name: CString, tries: u32) -> Result<Level> {
    let mut level = Level { name, directories: Vec::new(), more: false, tries };
    tree::list(fd, |entry| {
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory {
            level.remember(name);
            return Ok(());
        }
        match unlinkat(fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // Some file systems tell no types.
            Err(Errno::ISDIR) => {
                level.remember(name);
                Ok(())
            }
            Err(e) => Err(e).with_context(|| format!("`{}`", name.to_string_lossy())),
        }
    })?;
    Ok(level)
}

impl Level {
    fn remember(&mut self, name: &CStr) {
        if self.directories.len() < BATCH {
            self.directories.push(name.to_owned());
        } else {
            self.more = true;
        }
    }
}

/// Where in the tree, for an error.
fn place(levels: &[Level], name: &CStr) -> String {
    let names = levels.iter().skip(1).map(|level| level.name.as_c_str()).chain([name]);
    let names: Vec<_> = names.map(CStr::to_string_lossy).filter(|name| !name.is_empty()).collect();
    format!("`{}`", names.join("/"))
}

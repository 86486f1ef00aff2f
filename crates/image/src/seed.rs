//! Writes an image's templates into a new container.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::template::{Facts, Template, render};
use crate::tree::{self, LIST, STRAIGHT, Spot};
use crate::unpack::full;

/// Writes `templates` into `own`, the container's part of an overlay over `layer`, or its copy of it. What could not be
/// written comes back, a sentence each: no container fails for it.
///
/// Directories of the layer on the way to a file are made in `own` as they are there. No link is followed, neither on
/// the way nor at its end: where it leads is decided by the system inside. `shift` is added to all ids.
pub fn seed(
    templates: &[Template],
    facts: &Facts<'_>,
    layer: BorrowedFd<'_>,
    own: BorrowedFd<'_>,
    shift: u32,
) -> Vec<String> {
    let write = |template: &Template| {
        let text = render(template, facts)?;
        put(template, &text, layer, own, shift)
    };
    let wrong = |template: &Template| {
        write(template).err().map(|e| format!("the image's template of `{}` was not written: {e}", template.path))
    };
    templates.iter().filter_map(wrong).collect()
}

fn put(template: &Template, text: &str, layer: BorrowedFd<'_>, own: BorrowedFd<'_>, shift: u32) -> Result<()> {
    let parts: Vec<_> = template.path.split('/').filter(|part| !part.is_empty()).collect();
    let Some((name, above)) = parts.split_last() else { return Err(error("it has no name")) };
    let mut below = Some(tree::open(layer, ".", LIST, STRAIGHT)?);
    let mut at = tree::open(own, ".", LIST, STRAIGHT)?;
    for part in above {
        let inner = match &below {
            Some(dir) => directory(dir, part)?,
            None => None,
        };
        at = enter(&at, part, inner.as_ref(), shift).with_context(|| format!("making its directory `{part}`"))?;
        below = inner;
    }
    let there = |dir: &OwnedFd| match tree::stat(dir, *name) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    };
    let before = match there(&at)? {
        Some(stat) => Some((stat, 0)),
        None => below.as_ref().map(there).transpose()?.flatten().map(|stat| (stat, shift)),
    };
    if let Some((stat, _)) = &before
        && !FileType::from_raw_mode(stat.st_mode).is_file()
    {
        return Err(error("something that is no regular file has its place"));
    }
    match before {
        Some(_) if template.create_only => Ok(()),
        before => write(&at, name, text, before, shift).map_err(full),
    }
}

/// A directory of the layer; `None` if it is not there.
fn directory(dir: &OwnedFd, name: &str) -> Result<Option<OwnedFd>> {
    match tree::open(dir, name, LIST, STRAIGHT) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(error(format!("`{name}` on its way is a link or a file"))),
        Err(e) => Err(e.into()),
    }
}

/// Enters a directory of the container's own, which is made as the layer has it.
fn enter(at: &OwnedFd, name: &str, like: Option<&OwnedFd>, shift: u32) -> Result<OwnedFd> {
    match fs::mkdirat(at, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return directory(at, name)?.ok_or_else(|| error("it has gone")),
        Err(e) => return Err(full(e.into())),
    }
    let made = tree::open(at, name, LIST, STRAIGHT)?;
    let spot = Spot::Open(made.as_fd());
    let Some(like) = like else {
        spot.set_owner(shift, shift)?;
        spot.set_mode(0o755)?;
        return Ok(made);
    };
    let stat = fs::fstat(like)?;
    for (attribute, value) in Spot::Open(like.as_fd()).xattrs()? {
        // What an overlay notes on directories is about those and not about ours.
        if !attribute.starts_with(b"trusted.overlay.") && !attribute.starts_with(b"security.selinux") {
            spot.set_xattr(&attribute, &value)?;
        }
    }
    spot.set_owner(stat.st_uid + shift, stat.st_gid + shift)?;
    spot.set_mode(stat.st_mode & 0o7777)?;
    Ok(made)
}

fn write(at: &OwnedFd, name: &str, text: &str, before: Option<(Stat, u32)>, shift: u32) -> Result<()> {
    match fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(text.as_bytes())?;
    let spot = Spot::Open(file.as_fd());
    // A file that was copied has shifted ids already; one of the layer has plain ones.
    let (uid, gid, mode) = match before {
        Some((stat, more)) => (stat.st_uid + more, stat.st_gid + more, stat.st_mode & 0o777),
        None => (shift, shift, 0o644),
    };
    spot.set_owner(uid, gid)?;
    spot.set_mode(mode)?;
    Ok(())
}

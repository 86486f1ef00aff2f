//! Files in a person's home, read and written as the person: every name there is theirs to choose, and root would
//! follow where they may not go.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Lock, Result, error, write_atomic};
use lazaret_desktop::Person;
use lazaret_sys::process::with_file_ids;

use crate::personal;

/// What we write there is never longer.
const LONGEST_FILE: usize = 4 << 20;

/// Where programs keep what a person should not lose: `~/.local/share` (XDG Base Directory Specification).
///
/// # Errors
///
/// [`Kind::Missing`] for a person without a home.
pub(crate) fn data(person: &Person) -> Result<PathBuf> {
    let home = person.home.as_ref().ok_or_else(|| {
        error(format!("`{}` has no home directory to keep anything in", person.name)).kind(Kind::Missing)
    })?;
    Ok(home.join(".local/share"))
}

/// Makes a directory that only the person may look into, with all that is missing on the way, and keeps others of ours
/// from working in it at the same time.
pub(crate) fn enter(person: &Person, dir: &Path) -> Result<Lock> {
    as_person(person, || {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Lock::wait(&dir.join(".lock"))
    })
    .with_context(|| format!("making `{}` as `{}`", dir.display(), person.name))
}

/// Reads a file; `None` if it is not there.
pub(crate) fn read(person: &Person, path: &Path) -> Result<Option<Vec<u8>>> {
    personal::read(person, path, LONGEST_FILE)
}

/// Replaces a file, which only the person may read. The directory is there, and the caller has [entered](enter) it.
pub(crate) fn write(person: &Person, path: &Path, bytes: &[u8]) -> Result<()> {
    as_person(person, || write_atomic(path, bytes)).with_context(|| format!("as `{}`", person.name))
}

/// Makes a directory with all that is missing on the way.
pub(crate) fn make(person: &Person, dir: &Path) -> Result<()> {
    as_person(person, || DirBuilder::new().recursive(true).mode(0o700).create(dir))
        .with_context(|| format!("making `{}` as `{}`", dir.display(), person.name))
}

/// Removes a file, if it is there.
pub(crate) fn remove(person: &Person, path: &Path) -> Result<()> {
    gone(as_person(person, || std::fs::remove_file(path)))
        .with_context(|| format!("removing `{}` as `{}`", path.display(), person.name))
}

/// Removes a directory with all that is in it, if it is there.
pub(crate) fn remove_all(person: &Person, dir: &Path) -> Result<()> {
    gone(as_person(person, || std::fs::remove_dir_all(dir)))
        .with_context(|| format!("removing `{}` as `{}`", dir.display(), person.name))
}

fn gone(removed: std::io::Result<()>) -> std::io::Result<()> {
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// With no more rights to files than the person has.
pub(crate) fn as_person<T>(person: &Person, act: impl FnOnce() -> T) -> T {
    with_file_ids(person.uid, person.gid, act)
}

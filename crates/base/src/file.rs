//! Files that are whole or absent, whatever happens in between.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{self, AtFlags, Mode, OFlags};

use crate::{Context, Result, error};

/// Replaces `path` by `bytes`, mode 0600: readers see the old file or the new one, never half of one.
///
/// The data reaches the disk before the name does (rename(2), fsync(2)); the directory is synced last.
/// A temporary of a killed writer is named `.NAME.tmp` and is overwritten by the next writer; writers
/// of one path exclude each other by the caller's lock.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let writing = || format!("writing `{}`", path.display());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(error(format!("`{}` is not a file name", path.display())));
    };
    let dir =
        fs::open(parent, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).with_context(writing)?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = fs::openat(&dir, &temporary, flags, Mode::RUSR | Mode::WUSR).with_context(writing)?;
    let written = (|| -> Result<()> {
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        fs::fdatasync(&file)?;
        fs::renameat(&dir, &temporary, &dir, name)?;
        Ok(())
    })();
    if written.is_err() {
        // Best effort: on a full or read-only disk the temporary may stay; it is never read.
        let _ = fs::unlinkat(&dir, &temporary, AtFlags::empty());
    }
    written.with_context(writing)?;
    // The rename has happened; a file system that can't sync a directory is no reason to fail.
    let _ = fs::fsync(&dir);
    Ok(())
}

/// Reads at most `limit` bytes; a longer file is an error, not a truncated value.
pub fn read_bounded(file: impl Read, limit: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(error(format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

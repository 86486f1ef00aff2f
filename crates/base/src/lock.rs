//! A lock file that survives deletion races.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::{Context, Result};

/// An exclusive flock(2), held until dropped or until the last process that inherited it ends.
#[derive(Debug)]
pub struct Lock(OwnedFd);

impl Lock {
    /// Waits for the lock.
    pub fn wait(path: &Path) -> Result<Lock> {
        loop {
            if let Some(lock) = take(path, FlockOperation::LockExclusive)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock if it is free; `None` if another process holds it.
    pub fn try_take(path: &Path) -> Result<Option<Lock>> {
        loop {
            match take(path, FlockOperation::NonBlockingLockExclusive) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                // Deleted under us: the path names another file now, or none.
                Ok(None) => {}
                Err(e) if e.errno() == Some(Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes over a descriptor that already holds the lock.
    pub fn from_fd(fd: OwnedFd) -> Lock {
        Lock(fd)
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Locks what `path` names; `None` if the file was deleted or replaced between open and lock.
fn take(path: &Path, operation: FlockOperation) -> Result<Option<Lock>> {
    let locking = || format!("locking `{}`", path.display());
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = fs::open(path, flags, Mode::RUSR | Mode::WUSR).with_context(locking)?;
    loop {
        match fs::flock(&fd, operation) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).with_context(locking),
        }
    }
    let held = fs::fstat(&fd).with_context(locking)?;
    match fs::stat(path) {
        Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => Ok(Some(Lock(fd))),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e).with_context(locking),
    }
}

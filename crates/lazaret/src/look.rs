//! A look at a container's files from inside, whether it runs or not: what is found comes back as a value.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use lazaret_base::{Context, Error, Result, Wire, error, read_bounded};
use lazaret_runtime::inside::spawn;
use lazaret_sys::signal;
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, readlinkat};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::file::Place;

/// What is found is never longer.
const LONGEST: usize = 256 << 20;
/// A file system of the container's own making may keep whoever looks waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// As many links as the kernel follows on one way (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A container's root directory, with no more power over it than the container has.
pub(crate) struct Root(OwnedFd);

impl Root {
    /// Opens what a path leads to inside; links that lead elsewhere lead to nothing.
    fn open(&self, path: &str, flags: OFlags) -> Option<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.0, path.trim_start_matches('/'), flags | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
    }

    /// A regular file; neither a device nor a FIFO is opened.
    pub(crate) fn file(&self, path: &str) -> Option<File> {
        let is_file = |fd: BorrowedFd<'_>| {
            fstat(fd).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile)
        };
        self.open(path, OFlags::PATH).filter(|fd| is_file(fd.as_fd()))?;
        let fd = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        // Another one may have the name by now.
        is_file(fd.as_fd()).then(|| File::from(fd))
    }

    /// A whole file, if it is not longer than this.
    pub(crate) fn read(&self, path: &str, limit: usize) -> Option<Vec<u8>> {
        read_bounded(self.file(path)?, limit).ok()
    }

    /// Whether something is there.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.open(path, OFlags::PATH).is_some()
    }

    /// A path to the same without links, as far as it can be followed.
    pub(crate) fn real(&self, path: &str) -> String {
        let (mut done, mut links) = (Vec::<String>::new(), 0);
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(part) = rest.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            let to = self.open(&done.join("/"), OFlags::PATH | OFlags::NOFOLLOW);
            let to = to.and_then(|link| readlinkat(&link, "", Vec::new()).ok()).filter(|_| links < MOST_LINKS);
            let Some(to) = to.as_ref().and_then(|to| to.to_str().ok()) else { continue };
            links += 1;
            done.pop();
            if to.starts_with('/') {
                done.clear();
            }
            rest.extend(to.split('/').rev().map(str::to_owned));
        }
        format!("/{}", done.join("/"))
    }

    /// The names in a directory, at most so many; nothing if it is none.
    pub(crate) fn names(&self, path: &str, most: usize) -> Vec<String> {
        let Some(dir) = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) else { return Vec::new() };
        let names = Dir::read_from(&dir).into_iter().flatten().take(most).flatten();
        let names = names.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<_> = names.filter(|name| name != "." && name != "..").collect();
        names.sort();
        names
    }
}

/// Looks at a container's files. `find` runs in a process that is inside.
///
/// # Errors
///
/// What `find` says, and where it takes too long.
pub(crate) fn look<T: Serialize + DeserializeOwned>(place: &Place, find: impl FnOnce(&Root) -> Result<T>) -> Result<T> {
    let (child, mut line) = spawn(&place.at(), |root, mut line| {
        let found = root.and_then(|root| find(&Root(root))).map_err(Wire::from);
        // The other end may be gone.
        let _ = serde_json::to_vec(&found).map(|bytes| line.write_all(&bytes));
    })?;
    line.set_read_timeout(Some(PATIENCE))?;
    let heard = read_bounded((&mut line).take(LONGEST as u64 + 1), LONGEST);
    if heard.is_err() {
        // Nobody listens to it any more.
        let _ = signal::send(child.pidfd.as_fd(), Signal::KILL.as_raw());
    }
    drop(line);
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let bytes = heard.context("looking at the container's files")?;
    let found: std::result::Result<T, Wire> =
        serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()).context("looking at the container's files"))?;
    found.map_err(Error::from)
}

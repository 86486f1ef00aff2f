//! The side that walks a tree and sends what it finds.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Kind as ErrorKind, Result, error};
use lazaret_image::Progress;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::wire::{Entry, Kind, LONGEST, Writer};
use super::{Copied, not_copied, refused, relative};

/// Deeper trees are not copied: each level is an open directory on both sides.
const DEEPEST: usize = 200;
/// Nothing that is opened so waits, becomes our terminal, or follows a link at the end of its name.
const READ: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Something to send, and what it is to be called.
pub struct From {
    found: OwnedFd,
    name: OsString,
    /// As the user knows it.
    shown: PathBuf,
}

impl From {
    /// Of the host. `found` is a path without links, by which it is opened; `typed` is what it is called.
    pub fn host(found: &Path, typed: &Path) -> Result<From> {
        let name = typed.file_name().or(found.file_name()).unwrap_or(OsStr::new("root")).to_owned();
        From::open(name, typed, |flags| openat(CWD, found, flags | OFlags::NOFOLLOW, Mode::empty()))
    }

    /// Of a container: what the path leads to there.
    pub fn inside(root: BorrowedFd<'_>, path: &Path) -> Result<From> {
        let name = path.file_name().unwrap_or(OsStr::new("root")).to_owned();
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        From::open(name, path, |flags| openat2(root, relative(path), flags, Mode::empty(), resolve))
    }

    /// Looks before it opens: opening a device alone may do something.
    fn open(name: OsString, shown: &Path, open: impl Fn(OFlags) -> Result<OwnedFd, Errno>) -> Result<From> {
        let status = fstat(open(OFlags::PATH | OFlags::CLOEXEC)?)?;
        let shown = shown.to_owned();
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            kind => return Err(not_copied(&shown.display().to_string(), kind)),
        }
        Ok(From { found: same(open(READ)?, &status)?, name, shown })
    }
}

/// What was opened, if it is what was looked at.
fn same(opened: OwnedFd, looked_at: &Stat) -> Result<OwnedFd> {
    let status = fstat(&opened)?;
    if (status.st_dev, status.st_ino) == (looked_at.st_dev, looked_at.st_ino) {
        return Ok(opened);
    }
    Err(error("it was replaced while it was opened"))
}

/// Sends a file, or a directory with all that is in it.
pub fn send(from: From, out: &mut Writer<'_>, all: &mut Copied, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    let From { found, name, shown } = from;
    let mut sending = Sending { out, all, progress, buffer: vec![0; LONGEST] };
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::Directory => sending.directory(found, &name, &shown, 0),
        _ => sending.file(found, &name, &shown),
    }
}

/// Sends what comes in, as a file.
pub fn stream(
    input: &mut dyn Read,
    out: &mut Writer<'_>,
    all: &mut Copied,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mtime = (now.as_secs() as i64, i64::from(now.subsec_nanos()));
    out.entry(&Entry { name: b"stdin".to_vec(), kind: Kind::File, mode: 0o644, mtime })?;
    Sending { out, all, progress, buffer: vec![0; LONGEST] }.content(input, Path::new("standard input"))
}

struct Sending<'a, 'w> {
    out: &'a mut Writer<'w>,
    all: &'a mut Copied,
    progress: &'a mut dyn FnMut(Progress),
    buffer: Vec<u8>,
}

fn entry(name: &OsStr, kind: Kind, status: &Stat) -> Entry {
    let mtime = (status.st_mtime, status.st_mtime_nsec as i64);
    Entry { name: name.as_bytes().to_vec(), kind, mode: status.st_mode & 0o7777, mtime }
}

impl Sending<'_, '_> {
    fn directory(&mut self, dir: OwnedFd, name: &OsStr, shown: &Path, depth: usize) -> Result<()> {
        let reading = || format!("reading `{}`", shown.display());
        if depth > DEEPEST {
            return Err(error(format!("directories are more than {DEEPEST} levels deep"))
                .kind(ErrorKind::Invalid)
                .hint("copy it as an archive: tar -c … | lazaret exec NAME -- tar -x"))
            .with_context(reading);
        }
        self.out.entry(&entry(name, Kind::Directory, &fstat(&dir)?))?;
        self.count();
        for found in Dir::read_from(&dir).with_context(reading)? {
            let name = OsString::from_vec(found.with_context(reading)?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                self.child(dir.as_fd(), &name, &shown.join(&name), depth)?;
            }
        }
        self.out.over()
    }

    fn child(&mut self, dir: BorrowedFd<'_>, name: &OsStr, shown: &Path, depth: usize) -> Result<()> {
        let reading = || format!("reading `{}`", shown.display());
        let status = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Removed since it was listed.
            Err(Errno::NOENT) => return Ok(()),
            status => status.with_context(reading)?,
        };
        let open = || -> Result<OwnedFd> { same(openat(dir, name, READ | OFlags::NOFOLLOW, Mode::empty())?, &status) };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => self.directory(open().with_context(reading)?, name, shown, depth + 1),
            FileType::RegularFile => self.file(open().with_context(reading)?, name, shown),
            FileType::Symlink => {
                let to = readlinkat(dir, name, Vec::new()).with_context(reading)?.into_bytes();
                self.count();
                self.out.entry(&entry(name, Kind::Link(to), &status))
            }
            kind => {
                self.all.notes.push(format!("`{}` {}, and was left out", shown.display(), refused(kind)));
                Ok(())
            }
        }
    }

    fn file(&mut self, file: OwnedFd, name: &OsStr, shown: &Path) -> Result<()> {
        let status = fstat(&file)?;
        self.out.entry(&entry(name, Kind::File, &status))?;
        self.content(&mut File::from(file), shown)
    }

    /// As much as there is when its end is reached: a file may grow or shrink meanwhile.
    fn content(&mut self, file: &mut dyn Read, shown: &Path) -> Result<()> {
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => {
                    self.out.piece(&self.buffer[..count])?;
                    self.all.bytes += count as u64;
                    self.tell();
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).with_context(|| format!("reading `{}`", shown.display())),
            }
        }
        self.count();
        self.out.over()
    }

    /// One entry more.
    fn count(&mut self) {
        self.all.entries += 1;
        self.tell();
    }

    fn tell(&mut self) {
        (self.progress)(Progress {
            entries: self.all.entries,
            bytes: self.all.bytes,
            read: self.all.bytes,
            ..Progress::default()
        });
    }
}

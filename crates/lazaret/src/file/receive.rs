//! The side that writes what is sent: entry by entry, below descriptors that no link can divert.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use lazaret_base::{Context, Kind as ErrorKind, Result, error};
use lazaret_image::Progress;
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod, fchown,
    fstat, futimens, linkat, mkdirat, openat, openat2, renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::wire::{Entry, Frame, Kind, Reader};
use super::{Copied, relative};

/// Where what is sent goes.
pub struct Into {
    dir: OwnedFd,
    /// What the one entry is to be called there.
    name: Option<OsString>,
    /// Whose it is, as the file system has it; the directory's owner's if not given.
    owner: Option<(u32, u32)>,
    /// Permission bits that are kept.
    mask: u32,
    /// Whether we are on the host, where a file can be without a name until it is whole.
    nameless: bool,
}

/// How a target is meant.
pub struct Target<'a> {
    /// Its path.
    pub path: &'a Path,
    /// More than one thing goes there, so that it is a directory.
    pub several: bool,
    /// Missing directories on the way are made.
    pub parents: bool,
    /// Whose everything is; the directory's owner's if not given.
    pub owner: Option<(u32, u32)>,
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Into {
    /// In a container. Its ids are `shift` more where it is written.
    pub fn inside(root: BorrowedFd<'_>, target: &Target<'_>, shift: u32) -> Result<Into> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path| openat2(root, relative(path), DIRECTORY, Mode::empty(), resolve);
        let mut into = Into::find(target, open)?;
        into.owner = target.owner.map(|(uid, gid)| (uid + shift, gid + shift));
        Ok(into)
    }

    /// On the host, where set-user-ID bits of a container's mean nothing good.
    pub fn on_host(target: &Target<'_>) -> Result<Into> {
        let open = |path: &Path| openat(CWD, path, DIRECTORY, Mode::empty());
        let found = Into::find(target, open)?;
        Ok(Into { owner: target.owner, mask: 0o1777, nameless: true, ..found })
    }

    /// A directory that is there takes what is sent; else it is what the one entry is to be called.
    fn find(target: &Target<'_>, open: impl Fn(&Path) -> Result<OwnedFd, Errno>) -> Result<Into> {
        let Target { path, several, parents, owner } = *target;
        let into = |dir, name| Into { dir, name, owner: None, mask: 0o7777, nameless: false };
        let opening = || format!("opening `{}`", path.display());
        match open(path) {
            Ok(dir) => return Ok(into(dir, None)),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(e) => return Err(e).with_context(opening),
        }
        let must_be_directory = several || path.as_os_str().as_bytes().ends_with(b"/");
        if must_be_directory && !parents {
            return Err(error("it is no directory that is there").kind(ErrorKind::NotFound).hint("make it: --parents"))
                .with_context(opening);
        }
        if must_be_directory {
            return Ok(into(made(path, owner, &open).with_context(opening)?, None));
        }
        let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = match open(above) {
            Err(Errno::NOENT) if parents => made(above, owner, &open)?,
            Err(Errno::NOENT) => {
                return Err(error(format!("there is no directory `{}`", above.display()))
                    .kind(ErrorKind::NotFound)
                    .hint("make it: --parents"));
            }
            other => other.with_context(opening)?,
        };
        let name = path.file_name().ok_or_else(|| error("it has no name")).with_context(opening)?;
        Ok(into(dir, Some(name.to_owned())))
    }
}

/// Makes the directories of a path that are missing.
fn made(path: &Path, owner: Option<(u32, u32)>, open: impl Fn(&Path) -> Result<OwnedFd, Errno>) -> Result<OwnedFd> {
    let start = if path.is_absolute() { "/" } else { "." };
    let (mut walked, mut at) = (PathBuf::from(start), open(Path::new(start))?);
    for component in path.components() {
        let name = match component {
            Component::RootDir | Component::CurDir => continue,
            Component::Normal(name) => name,
            _ => return Err(error("`..` has no place where directories are made").kind(ErrorKind::Invalid)),
        };
        walked.push(name);
        at = match open(&walked) {
            Err(Errno::NOENT) => {
                mkdirat(&at, name, Mode::from(0o755)).with_context(|| format!("making `{}`", walked.display()))?;
                let new = openat(
                    &at,
                    name,
                    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                give(&new, at.as_fd(), owner);
                new
            }
            other => other.with_context(|| format!("opening `{}`", walked.display()))?,
        };
    }
    Ok(at)
}

/// What is put into somebody's directory is theirs.
fn owner_in(dir: BorrowedFd<'_>, owner: Option<(u32, u32)>) -> Option<(Uid, Gid)> {
    let (uid, gid) = match owner {
        Some(owner) => owner,
        None => fstat(dir).map(|status| (status.st_uid, status.st_gid)).ok()?,
    };
    Some((Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn give(file: &OwnedFd, dir: BorrowedFd<'_>, owner: Option<(u32, u32)>) {
    if let Some((uid, gid)) = owner_in(dir, owner) {
        // Where the owner is nobody whom the container knows, it stays its root's.
        let _ = fchown(file, Some(uid), Some(gid));
    }
}

/// A directory that is open, and what it is to be like when it is full.
struct Open {
    dir: OwnedFd,
    finally: Option<(u32, Timestamps)>,
}

/// A file that is not whole yet.
struct Part {
    file: File,
    /// What it is called meanwhile; nothing, if it has no name.
    temporary: Option<OsString>,
    entry: Entry,
    name: OsString,
}

/// Writes all that is sent. What is half-written when that ends too soon is taken away.
pub fn receive(into: &Into, from: &mut Reader<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Copied> {
    let mut receiving = Receiving { into, open: Vec::new(), part: None, all: Copied::default(), progress };
    let done = receiving.all(from);
    if let Some(part) = receiving.part.take()
        && let Some(temporary) = &part.temporary
    {
        let _ = unlinkat(receiving.dir(), temporary, AtFlags::empty());
    }
    done.map(|()| receiving.all)
}

struct Receiving<'a> {
    into: &'a Into,
    open: Vec<Open>,
    part: Option<Part>,
    all: Copied,
    progress: &'a mut dyn FnMut(Progress),
}

impl Receiving<'_> {
    fn dir(&self) -> BorrowedFd<'_> {
        self.open.last().map_or(self.into.dir.as_fd(), |open| open.dir.as_fd())
    }

    fn all(&mut self, from: &mut Reader<'_>) -> Result<()> {
        loop {
            match from.next()? {
                Some(Frame::Entry(entry)) => self.begin(entry)?,
                Some(Frame::Piece(bytes)) => match &mut self.part {
                    Some(part) => {
                        let writing = || format!("writing `{}`", part.name.display());
                        part.file.write_all(&bytes).with_context(writing)?;
                        self.all.bytes += bytes.len() as u64;
                        self.tell();
                    }
                    None => return Err(error("content was sent without a file")),
                },
                Some(Frame::End) => self.end()?,
                Some(Frame::Done(result)) => {
                    from.keep(result);
                    return Ok(());
                }
                None if self.part.is_none() && self.open.is_empty() => return Ok(()),
                None => return Err(error("the other side ended in the middle")),
            }
        }
    }

    fn tell(&mut self) {
        let Copied { entries, bytes, .. } = self.all;
        (self.progress)(Progress { entries, bytes, read: bytes, ..Progress::default() });
    }

    fn begin(&mut self, entry: Entry) -> Result<()> {
        if self.part.is_some() {
            return Err(error("a file was sent within another"));
        }
        let own = self.into.name.clone().filter(|_| self.open.is_empty());
        let name = own.map_or_else(|| entry.name(), Ok)?;
        let writing = || format!("writing `{}`", name.display());
        match &entry.kind {
            Kind::Directory => self.directory(&name, &entry).with_context(writing),
            Kind::Link(to) => self.link(&name, OsStr::from_bytes(to), &entry).with_context(writing),
            Kind::File => {
                let (file, temporary) = self.temporary(&name).with_context(writing)?;
                self.part = Some(Part { file, temporary, entry, name });
                Ok(())
            }
        }
    }

    /// A directory that is there is filled; a link to one is not followed.
    fn directory(&mut self, name: &OsStr, entry: &Entry) -> Result<()> {
        let new = match mkdirat(self.dir(), name, Mode::from(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(e.into()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(self.dir(), name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOTDIR | Errno::LOOP => error("something else than a directory is there").kind(ErrorKind::Exists),
            e => e.into(),
        })?;
        if new {
            give(&dir, self.dir(), self.into.owner);
        }
        let finally = new.then(|| (entry.mode & self.into.mask, times(entry)));
        self.open.push(Open { dir, finally });
        self.count();
        Ok(())
    }

    fn link(&mut self, name: &OsStr, to: &OsStr, entry: &Entry) -> Result<()> {
        let temporary = temporary_name(name);
        // One that a killed copy left.
        let _ = unlinkat(self.dir(), &temporary, AtFlags::empty());
        symlinkat(to, self.dir(), &temporary)?;
        if let Some((uid, gid)) = owner_in(self.dir(), self.into.owner) {
            let _ = chownat(self.dir(), &temporary, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        }
        // Not every file system has times of links.
        let _ = utimensat(self.dir(), &temporary, &times(entry), AtFlags::SYMLINK_NOFOLLOW);
        self.rename(&temporary, name)?;
        self.count();
        Ok(())
    }

    fn temporary(&self, name: &OsStr) -> Result<(File, Option<OsString>)> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if self.into.nameless
            && let Ok(file) = openat(self.dir(), ".", flags | OFlags::TMPFILE, Mode::from(0o600))
        {
            return Ok((file.into(), None));
        }
        let temporary = temporary_name(name);
        let _ = unlinkat(self.dir(), &temporary, AtFlags::empty());
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        Ok((openat(self.dir(), &temporary, flags, Mode::from(0o600))?.into(), Some(temporary)))
    }

    fn end(&mut self) -> Result<()> {
        if let Some(part) = self.part.take() {
            let writing = || format!("writing `{}`", part.name.display());
            let whole = self.whole(&part).with_context(writing);
            if whole.is_err() {
                let _ = part.temporary.as_ref().map(|temporary| unlinkat(self.dir(), temporary, AtFlags::empty()));
            }
            self.count();
            return whole;
        }
        let Some(Open { dir, finally }) = self.open.pop() else {
            return Err(error("an end was sent without a beginning"));
        };
        if let Some((mode, times)) = finally {
            fchmod(&dir, Mode::from_raw_mode(mode))?;
            futimens(&dir, &times)?;
        }
        Ok(())
    }

    /// Under its name it is whole or not at all.
    fn whole(&self, part: &Part) -> Result<()> {
        let fd = OwnedFd::from(part.file.try_clone()?);
        give(&fd, self.dir(), self.into.owner);
        fchmod(&fd, Mode::from_raw_mode(part.entry.mode & self.into.mask))?;
        futimens(&fd, &times(&part.entry))?;
        match &part.temporary {
            Some(temporary) => self.rename(temporary, &part.name),
            None => {
                let temporary = temporary_name(&part.name);
                let _ = unlinkat(self.dir(), &temporary, AtFlags::empty());
                linkat(&fd, "", self.dir(), &temporary, AtFlags::EMPTY_PATH)?;
                self.rename(&temporary, &part.name)
            }
        }
    }

    /// What was there of that name goes, a link itself and not what it means; a directory stays.
    fn rename(&self, temporary: &OsStr, name: &OsStr) -> Result<()> {
        renameat(self.dir(), temporary, self.dir(), name).map_err(|errno| {
            let _ = unlinkat(self.dir(), temporary, AtFlags::empty());
            match errno {
                Errno::ISDIR => error("a directory is there").kind(ErrorKind::Exists),
                e => e.into(),
            }
        })
    }

    fn count(&mut self) {
        self.all.entries += 1;
        self.tell();
    }
}

/// What a file is called until it is whole; one that is left behind is overwritten by the next copy.
fn temporary_name(name: &OsStr) -> OsString {
    const ROOM: usize = 255 - ".".len() - ".lazaret-part".len();
    let bytes = &name.as_bytes()[..name.len().min(ROOM)];
    let mut temporary = OsString::from(".");
    temporary.push(OsStr::from_bytes(bytes));
    temporary.push(".lazaret-part");
    temporary
}

fn times(entry: &Entry) -> Timestamps {
    let (tv_sec, tv_nsec) = entry.mtime;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec, tv_nsec: tv_nsec.clamp(0, 999_999_999) },
    }
}

/// Writes the content of the one file that is sent.
pub fn stream(output: &mut dyn Write, from: &mut Reader<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Copied> {
    let mut all = Copied::default();
    let writing = "writing to standard output";
    loop {
        match from.next()? {
            Some(Frame::Entry(Entry { kind: Kind::File, .. })) if all.entries == 0 => all.entries = 1,
            Some(Frame::Entry(_)) => {
                return Err(error("standard output takes one file").kind(ErrorKind::Invalid).hint("name a directory"));
            }
            Some(Frame::Piece(bytes)) => {
                output.write_all(&bytes).context(writing)?;
                all.bytes += bytes.len() as u64;
                progress(Progress { entries: 1, bytes: all.bytes, read: all.bytes, ..Progress::default() });
            }
            Some(Frame::End) => {}
            Some(Frame::Done(result)) => {
                from.keep(result);
                output.flush().context(writing)?;
                return Ok(all);
            }
            None => return Err(error("the process inside was killed")),
        }
    }
}

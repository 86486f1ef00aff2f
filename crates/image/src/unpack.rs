//! An archive becomes a tree: all that GNU tar would restore, and nothing outside of the tree.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use lazaret_base::{Context, Kind as ErrorKind, Result, error, read_bounded};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Timespec, UTIME_NOW};
use rustix::io::Errno;

use crate::Digest;
use crate::acl::{self, Acl};
use crate::archive::{Archive, Entry, Extent, Kind};
use crate::remove::remove_tree;
use crate::stack::{OPAQUE, PRIVATE};
use crate::stream;
use crate::tree::{self, INSIDE, LIST, START, STRAIGHT, Spot};

/// What an archive may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive when it is decompressed, headers included.
    pub bytes: u64,
    /// Files, directories, links and so on.
    pub entries: u64,
    /// Bytes of a single path and of a link's target. The kernel's own limit for a name is 255.
    pub path: usize,
    /// How many times its size an archive may expand to; what makes a file is rarely beyond 20.
    pub ratio: u64,
    /// Bytes that may always be there, whatever the ratio: a small archive may be mostly zeros.
    pub ratio_floor: u64,
}

/// Enough for any root filesystem that was made to be one: 256 GiB in 8 million entries.
impl Default for Limits {
    fn default() -> Limits {
        Limits { bytes: 256 << 30, entries: 8 << 20, path: 4096, ratio: 200, ratio_floor: 1 << 30 }
    }
}

/// What is being done, for those who watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Another process is at the same work; its result will be ours.
    Waiting,
    /// Bytes come from the network; `read` of them are here.
    Fetching {
        /// How many there are.
        total: u64,
    },
    /// Files are written.
    #[default]
    Writing,
}

/// How far it is. Reported after each entry and while a long file is written; the receiver throttles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Entries done.
    pub entries: u64,
    /// Bytes of file content written.
    pub bytes: u64,
    /// Bytes of the file that were read: compared with its size, how much is done.
    pub read: u64,
}

impl Progress {
    /// Where what is written is all that is read.
    pub(crate) fn written(entries: u64, bytes: u64) -> Progress {
        Progress { entries, bytes, read: bytes, ..Progress::default() }
    }
}

/// What an archive became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries that were unpacked.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// The tree stood below `rootfs/`, beside metadata that was left out (the unified images of Incus).
    pub unified: bool,
    /// What could not be kept, a sentence each: sockets, attributes the file system has no place for.
    pub warnings: Vec<String>,
}

/// More warnings than this are only counted.
const WARNINGS: usize = 100;
/// What directories may ask to have done at the end.
const DEFERRED: usize = 256 << 20;
/// Lines of users and groups that are looked at for the names in access lists.
const NAMES: usize = 4 << 20;
/// Unified images and exported containers have these beside their `rootfs`.
const METADATA: &[&[u8]] = &[b"metadata.yaml", b"templates", b"lazaret.json", b"container.toml"];
const ROOTFS: &[u8] = b"rootfs";
/// What names of whiteouts begin with, and the one for a whole directory.
const MARK: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// How far below an opaque directory is looked for what stays; each step keeps a descriptor open.
const DEEPEST: usize = 128;
/// An exported container that is only what was changed of its image has this instead.
const CHANGES: &[u8] = b"changes";
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };

/// Unpacks a tar archive, plain or compressed with gzip, xz or zstd, into an empty directory.
///
/// Kept are types (devices and fifos too), numeric owners, modes, times with nanoseconds, hard links, holes,
/// extended attributes (of `security.*` only capabilities: labels are the host's business) and POSIX access
/// lists, whose names are looked up in the `etc/passwd` and `etc/group` of the archive. A later entry replaces
/// a former one of the same path. Leading `/` and `./` mean nothing; `..` is refused. Links in the path of an
/// entry are followed as if the directory was the root (`lib -> /usr/lib`, then `lib/x`), so that none leads
/// out of it. What no directory describes gets mode 0755 and owner 0.
///
/// An archive that holds nothing but `rootfs/` and the metadata of a unified image is unpacked without that
/// prefix.
///
/// On an error the directory is left as it is: unpack beside, then rename.
pub fn unpack(
    reader: impl std::io::Read + Send,
    into: BorrowedFd<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked> {
    unpack_below(ROOTFS, reader, into, limits, progress)
}

/// Unpacks what an exported container has below `changes/`: a layer of an overlay, with its marks of what is hidden.
pub fn unpack_changes(
    reader: impl std::io::Read + Send,
    into: BorrowedFd<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked> {
    let unpacked = unpack_below(CHANGES, reader, into, limits, progress)?;
    match unpacked.unified {
        true => Ok(unpacked),
        false => Err(error("it is not an archive of changes").kind(ErrorKind::Invalid)),
    }
}

fn unpack_below(
    wrapper: &'static [u8],
    reader: impl std::io::Read + Send,
    into: BorrowedFd<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<Unpacked> {
    let into = tree::open(into, ".", LIST, STRAIGHT)?;
    tree::list(into.as_fd(), |_| Err(error("the directory to unpack into is not empty")))?;
    stream::with(reader, limits, |stream| {
        let mut archive = Archive::new(stream, limits);
        let mut tree = Tree::new(wrapper, into.as_fd(), progress)?;
        while let Some(entry) = archive.next()? {
            tree.put(&mut archive, &entry)
                .with_context(|| format!("unpacking entry {} (`{}`)", entry.number, lossy(&entry.path)))?;
            tree.report(&archive);
        }
        tree.finish()
    })
}

/// Unpacks one layer of an OCI image over those below it, which are in `into` already; the digest of its plain bytes,
/// the diff id, comes back.
///
/// As [`unpack`] does it, but for the marks of the OCI image specification ("Whiteouts"): `.wh.NAME` takes away what
/// the layers below have of that name, `.wh..wh..opq` all that they have in its directory. What the same layer brings
/// stays, before or behind the mark. A file may take the place of a whole directory of a layer below.
pub(crate) fn unpack_layer(
    reader: impl std::io::Read + Send,
    into: BorrowedFd<'_>,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Unpacked, Digest)> {
    let into = tree::open(into, ".", LIST, STRAIGHT)?;
    stream::with(reader, limits, |stream| {
        stream.hash();
        let mut archive = Archive::new(stream, limits);
        let mut tree = Tree::over(into.as_fd(), progress);
        while let Some(entry) = archive.next()? {
            tree.put(&mut archive, &entry)
                .with_context(|| format!("unpacking entry {} (`{}`)", entry.number, lossy(&entry.path)))?;
            tree.report(&archive);
        }
        let unpacked = tree.finish()?;
        Ok((unpacked, stream.hashed()))
    })
}

/// Unpacks what a package installs over what is there, as dpkg(1) does: a directory that is there keeps its attributes,
/// and so does a link to one. `each` is shown every entry.
pub(crate) fn unpack_package(
    reader: impl std::io::Read + Send,
    into: BorrowedFd<'_>,
    limits: &Limits,
    each: &mut dyn FnMut(&Entry),
) -> Result<Unpacked> {
    let into = tree::open(into, ".", LIST, STRAIGHT)?;
    stream::with(reader, limits, |stream| {
        let mut archive = Archive::new(stream, limits);
        let mut nothing = |_: Progress| {};
        let mut tree = Tree::over(into.as_fd(), &mut nothing);
        (tree.over, tree.merging) = (None, true);
        while let Some(entry) = archive.next()? {
            each(&entry);
            tree.put(&mut archive, &entry)
                .with_context(|| format!("unpacking entry {} (`{}`)", entry.number, lossy(&entry.path)))?;
        }
        tree.finish()
    })
}

/// What a path of the archive is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Top,
    /// The `rootfs` of what may be a unified image: absolute links mean this directory.
    Rootfs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    base: Base,
    path: Vec<u8>,
}

/// What is done to a directory when nothing is put into it any more.
struct Directory {
    place: Place,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Option<Timespec>,
    acls: Acls,
}

#[derive(Clone, Debug, Default)]
struct Acls {
    access: Option<Acl>,
    default: Option<Acl>,
}

struct Tree<'a> {
    top: BorrowedFd<'a>,
    /// The one directory that may hold all, beside metadata: `rootfs` or `changes`.
    wrapper: &'static [u8],
    /// As long as this may be a unified image.
    rootfs: Option<Rc<OwnedFd>>,
    may_be_unified: bool,
    /// The parent of the last entry: most have the same.
    parent: Option<(Place, Rc<OwnedFd>)>,
    /// By inode: one directory may be reached by several paths.
    directories: HashMap<u64, Directory>,
    /// Access lists of other files that name users or groups, by inode.
    named: HashMap<u64, (Place, Acls)>,
    deferred: usize,
    skipped_labels: HashSet<Vec<u8>>,
    /// Over other layers: the inodes that this one has made.
    over: Option<HashSet<u64>>,
    /// Whether directories that are there stay as they are.
    merging: bool,
    done: Unpacked,
    unsaid: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Tree<'a> {
    fn new(wrapper: &'static [u8], top: BorrowedFd<'a>, progress: &'a mut dyn FnMut(Progress)) -> Result<Self> {
        let mut tree = Tree {
            top,
            wrapper,
            rootfs: None,
            may_be_unified: true,
            parent: None,
            directories: HashMap::new(),
            named: HashMap::new(),
            deferred: 0,
            skipped_labels: HashSet::new(),
            over: None,
            merging: false,
            done: Unpacked::default(),
            unsaid: 0,
            progress,
        };
        tree.imply(&fs::fstat(top)?, Place { base: Base::Top, path: Vec::new() });
        Ok(tree)
    }

    /// Over what is there: its root keeps its attributes unless the archive describes it.
    fn over(top: BorrowedFd<'a>, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Tree {
            top,
            wrapper: ROOTFS,
            rootfs: None,
            may_be_unified: false,
            parent: None,
            directories: HashMap::new(),
            named: HashMap::new(),
            deferred: 0,
            skipped_labels: HashSet::new(),
            over: Some(HashSet::new()),
            merging: false,
            done: Unpacked::default(),
            unsaid: 0,
            progress,
        }
    }

    fn report(&mut self, archive: &Archive<'_, '_>) {
        (self.progress)(Progress {
            stage: Stage::Writing,
            entries: archive.count(),
            bytes: self.done.bytes,
            read: archive.taken(),
        });
    }

    fn warn(&mut self, warning: String) {
        if self.done.warnings.len() < WARNINGS {
            self.done.warnings.push(warning);
        } else {
            self.unsaid += 1;
        }
    }

    fn put(&mut self, archive: &mut Archive<'_, '_>, entry: &Entry) -> Result<()> {
        if let Some(what) = match entry.kind {
            // A volume label names the tape.
            Kind::Other(b'V') => return Ok(()),
            Kind::Other(b'M') => return Err(error("it continues a file of another volume, which is not here")),
            Kind::Other(b's') => Some("is a socket".to_owned()),
            Kind::Other(kind) => Some(format!("is of the unknown type `{}`", char::from(kind).escape_default())),
            _ => None,
        } {
            self.warn(format!("`{}` {what}: left out", lossy(&entry.path)));
            return Ok(());
        }
        let place = self.place(clean(&entry.path)?, entry.kind)?;
        if self.over.is_none() {
            return self.put_at(archive, entry, place);
        }
        if tree::split(&place.path).1.starts_with(MARK) {
            return self.hide(&place);
        }
        let path = place.path.clone();
        self.put_at(archive, entry, place)?;
        self.note_made(&path)
    }

    fn put_at(&mut self, archive: &mut Archive<'_, '_>, entry: &Entry, place: Place) -> Result<()> {
        self.done.entries += 1;
        if entry.kind == Kind::Directory {
            return self.put_directory(place, entry);
        }
        if place.path.is_empty() {
            return Err(error("only a directory can be the root"));
        }
        let parent = self.parent_of(&place)?;
        let (dir, name) = (parent.as_fd(), tree::name(tree::split(&place.path).1)?);
        match entry.kind {
            Kind::File => return self.put_file(archive, entry, place, (dir, &name)),
            Kind::Hardlink => return self.put_hardlink(entry, (dir, &name)),
            Kind::Symlink => self.replacing(dir, &name, || fs::symlinkat(&*entry.target, dir, &name))?,
            kind => {
                let (major, minor) = entry.device;
                let (kind, device) = match kind {
                    Kind::Character => (FileType::CharacterDevice, fs::makedev(major, minor)),
                    Kind::Block => (FileType::BlockDevice, fs::makedev(major, minor)),
                    _ => (FileType::Fifo, 0),
                };
                self.replacing(dir, &name, || fs::mknodat(dir, &name, kind, Mode::RUSR | Mode::WUSR, device))?;
            }
        }
        self.dress(Spot::Named(dir, &name), entry, place)
    }

    /// This layer has made what is at a path now.
    fn note_made(&mut self, path: &[u8]) -> Result<()> {
        let (above, name) = tree::split(path);
        if name.is_empty() {
            return Ok(());
        }
        let parent = self.parent_of(&Place { base: Base::Top, path: path.to_vec() })?;
        let stat =
            tree::stat(&parent, &tree::name(name)?).with_context(|| format!("looking into `{}`", lossy(above)))?;
        if let Some(made) = &mut self.over {
            made.insert(stat.st_ino);
        }
        Ok(())
    }

    /// Does what a whiteout says.
    fn hide(&mut self, place: &Place) -> Result<()> {
        let (above, mark) = tree::split(&place.path);
        let parent = match tree::open(self.top, if above.is_empty() { b"." } else { above }, LIST, INSIDE) {
            // Nothing is there to hide.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            parent => parent.context("entering its directory")?,
        };
        // What is removed may be the directory that the next entry would be put into.
        self.parent = None;
        let made = self.over.as_ref().ok_or_else(|| error("there is no layer below"))?;
        if mark == OPAQUE_MARK {
            return clear(parent.as_fd(), made, 0);
        }
        let name = &mark[MARK.len()..];
        if name.starts_with(MARK) {
            // What a file system of old (aufs) kept for itself.
            return Ok(());
        }
        if name.is_empty() || [b".".as_slice(), b".."].contains(&name) {
            return Err(error("it hides nothing that has a name").kind(ErrorKind::Invalid));
        }
        let name = tree::name(name)?;
        match tree::stat(&parent, &name) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(stat) if made.contains(&stat.st_ino) => Ok(()),
            Ok(_) => remove_tree(parent.as_fd(), &name),
        }
    }

    fn put_directory(&mut self, place: Place, entry: &Entry) -> Result<()> {
        if self.merging && (place.path.is_empty() || tree::open(self.top, &*place.path, START, INSIDE).is_ok()) {
            return Ok(());
        }
        let stat = if place.path.is_empty() {
            fs::fstat(self.base(place.base)?)?
        } else {
            let parent = self.parent_of(&place)?;
            let (dir, name) = (parent.as_fd(), tree::name(tree::split(&place.path).1)?);
            let there = tree::stat(dir, &name).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
            if !there {
                self.replacing(dir, &name, || fs::mkdirat(dir, &name, Mode::RWXU))?;
            }
            // Attributes at once: unlike mode and times they do not change by what is put into it.
            self.set_xattrs(Spot::Named(dir, &name), entry)?;
            tree::stat(dir, &name)?
        };
        if place.path.is_empty() {
            let base = self.base(place.base)?;
            self.set_xattrs(Spot::Open(base.as_fd()), entry)?;
        }
        let acls = self.acls(entry);
        let cost = |acl: &Option<Vec<u8>>| acl.as_ref().map_or(0, |text| 4 * text.len());
        self.defer(place.path.len() + cost(&entry.acl) + cost(&entry.default_acl))?;
        let Entry { mode, uid, gid, mtime, .. } = *entry;
        self.directories.insert(stat.st_ino, Directory { place, mode, uid, gid, mtime: Some(mtime), acls });
        Ok(())
    }

    fn put_file(
        &mut self,
        archive: &mut Archive<'_, '_>,
        entry: &Entry,
        place: Place,
        (dir, name): (BorrowedFd<'_>, &CStr),
    ) -> Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = self.replacing(dir, name, || fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut file = File::from(fd);
        match &entry.sparse {
            None => self.write(archive, |bytes| file.write_all(bytes))?,
            Some(sparse) => {
                for extent in &sparse.extents {
                    self.write_extent(archive, &file, *extent)?;
                }
                fs::ftruncate(&file, sparse.size).context("making its holes")?;
            }
        }
        self.dress(Spot::Open(file.as_fd()), entry, place)
    }

    fn write(
        &mut self,
        archive: &mut Archive<'_, '_>,
        mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<()> {
        loop {
            let bytes = archive.peek(u64::MAX)?;
            let n = bytes.len();
            if n == 0 {
                return Ok(());
            }
            write(bytes).context("writing it").map_err(full)?;
            archive.consume(n);
            self.done.bytes += n as u64;
            self.report(archive);
        }
    }

    fn write_extent(&mut self, archive: &mut Archive<'_, '_>, file: &File, extent: Extent) -> Result<()> {
        let mut written = 0;
        while written < extent.length {
            let bytes = archive.peek(extent.length - written)?;
            let n = bytes.len();
            if n == 0 {
                return Err(error("its holes do not fit its data"));
            }
            file.write_all_at(bytes, extent.offset + written).context("writing it").map_err(full)?;
            archive.consume(n);
            written += n as u64;
            self.done.bytes += n as u64;
            self.report(archive);
        }
        Ok(())
    }

    /// The target is a path of the archive, found as those are, and never a link that is followed.
    fn put_hardlink(&mut self, entry: &Entry, (dir, name): (BorrowedFd<'_>, &CStr)) -> Result<()> {
        let linking = || format!("linking it to `{}`", lossy(&entry.target));
        let target = self.place(clean(&entry.target).with_context(linking)?, entry.kind)?;
        let (path, last) = tree::split(&target.path);
        let base = self.base(target.base)?;
        let parent =
            tree::open(&base, if path.is_empty() { b"." } else { path }, START, INSIDE).with_context(linking)?;
        let last = tree::name(last).with_context(linking)?;
        let there = tree::stat(&parent, &last).with_context(linking)?;
        // A link to itself, or the same link once more.
        if tree::stat(dir, name).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (there.st_dev, there.st_ino)) {
            return Ok(());
        }
        self.replacing(dir, name, || fs::linkat(&parent, &last, dir, name, AtFlags::empty())).with_context(linking)
    }

    /// Makes a name, taking away what has it already.
    fn replacing<T>(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &CStr,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T> {
        match make() {
            Err(Errno::EXIST) => {}
            made => return made.map_err(Into::into).map_err(full),
        }
        let stat = tree::stat(dir, name)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = if kind.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match fs::unlinkat(dir, name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.over.is_some() => remove_tree(dir, name)?,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                return Err(error("it would replace a directory that is not empty"));
            }
            removed => removed.context("replacing what was there")?,
        }
        self.directories.remove(&stat.st_ino);
        self.named.remove(&stat.st_ino);
        if kind.is_dir() || kind.is_symlink() {
            self.parent = None;
        }
        make().map_err(Into::into).map_err(full)
    }

    /// Owner before mode: chown(2) clears the setuid bits. Owner and data before capabilities: both clear
    /// them. Access lists after the mode: chmod(2) would change their mask. Times last.
    fn dress(&mut self, spot: Spot<'_>, entry: &Entry, place: Place) -> Result<()> {
        spot.set_owner(entry.uid, entry.gid)
            .with_context(|| format!("setting its owner {}:{}", entry.uid, entry.gid))?;
        if entry.kind != Kind::Symlink {
            spot.set_mode(entry.mode).context("setting its mode")?;
        }
        self.set_xattrs(spot, entry)?;
        let acls = self.acls(entry);
        let acls = [&acls.access, &acls.default].iter().any(|acl| acl.is_some()).then_some(acls);
        if let Some(acls) = acls {
            if [&acls.access, &acls.default].into_iter().flatten().all(Acl::is_numeric) {
                self.set_acls(spot, &acls, &Accounts::default(), &entry.path)?;
            } else {
                let inode = match spot {
                    Spot::Open(fd) => fs::fstat(fd)?,
                    Spot::Named(dir, name) => tree::stat(dir, name)?,
                };
                self.defer(place.path.len() + 4 * entry.acl.as_ref().map_or(0, Vec::len))?;
                self.named.insert(inode.st_ino, (place, acls));
            }
        }
        spot.set_times(NOW, entry.mtime).context("setting its time")
    }

    fn set_xattrs(&mut self, spot: Spot<'_>, entry: &Entry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            // Access lists have a time of their own: files that are made later would inherit them.
            if [acl::ACCESS.as_bytes(), acl::DEFAULT.as_bytes()].contains(&name.as_slice()) {
                continue;
            }
            // Of what overlayfs keeps for itself, changes mean one thing; all else is made anew by the kernel.
            let means_something = name == OPAQUE.as_bytes() && value == b"y";
            if self.wrapper == CHANGES && name.starts_with(PRIVATE) && !means_something {
                continue;
            }
            // The labels of SELinux, IMA, Smack are judgements of the host's policy, not of an archive.
            if name.starts_with(b"security.") && name != crate::capability::NAME.as_bytes() {
                if self.skipped_labels.len() < WARNINGS && self.skipped_labels.insert(name.clone()) {
                    self.warn(format!("`{}` of the files is left out: the host labels them", lossy(name)));
                }
                continue;
            }
            match spot.set_xattr(name, value) {
                Ok(()) => {}
                // No such attributes on this file system, or (user.* of links and devices) on this type of file.
                Err(e @ (Errno::OPNOTSUPP | Errno::PERM)) => {
                    self.warn(format!("`{}` of `{}` was not kept: {}", lossy(name), lossy(&entry.path), sentence(e)));
                }
                Err(e) => {
                    return Err(full(e.into())).with_context(|| format!("setting its attribute `{}`", lossy(name)));
                }
            }
        }
        Ok(())
    }

    /// The access lists of an entry; one that makes no sense is left out. Where an archive holds the
    /// kernel's form as well, that is the one to believe: its ids are those of the files, while the names in
    /// the text were looked up on the system that packed.
    fn acls(&mut self, entry: &Entry) -> Acls {
        let mut parse = |attribute: &str, text: &Option<Vec<u8>>| {
            let bytes = entry.xattrs.iter().find(|(name, _)| name == attribute.as_bytes());
            let parsed = match bytes {
                Some((_, bytes)) => Acl::from_bytes(bytes),
                None => Acl::parse(text.as_deref()?),
            };
            parsed.map_err(|e| self.warn(format!("the access list of `{}` was not kept: {e}", lossy(&entry.path)))).ok()
        };
        Acls { access: parse(acl::ACCESS, &entry.acl), default: parse(acl::DEFAULT, &entry.default_acl) }
    }

    fn set_acls(&mut self, spot: Spot<'_>, acls: &Acls, names: &Accounts, path: &[u8]) -> Result<()> {
        for (attribute, acl) in [(acl::ACCESS, &acls.access), (acl::DEFAULT, &acls.default)] {
            let Some(acl) = acl else { continue };
            let (bytes, unknown) = acl.to_bytes(names);
            for name in unknown {
                self.warn(format!("the access list of `{}` names `{name}`, whom the image does not know", lossy(path)));
            }
            match spot.set_xattr(attribute.as_bytes(), &bytes) {
                Ok(()) => {}
                Err(e @ (Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS)) => {
                    self.warn(format!("the access list of `{}` was not kept: {}", lossy(path), sentence(e)));
                }
                Err(e) => return Err(full(e.into())).context("setting its access list"),
            }
        }
        Ok(())
    }

    /// Decides what a path is relative to. What is below `rootfs/` is a root of its own as long as there is
    /// nothing beside it but metadata.
    fn place(&mut self, path: Vec<u8>, kind: Kind) -> Result<Place> {
        let (first, rest) = match path.iter().position(|byte| *byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (path.as_slice(), &[][..]),
        };
        let is_root = first == self.wrapper && (!rest.is_empty() || kind == Kind::Directory);
        if !(is_root || first.is_empty() || METADATA.contains(&first)) && self.may_be_unified {
            self.may_be_unified = false;
            self.parent = None;
        }
        if is_root && self.may_be_unified {
            return Ok(Place { base: Base::Rootfs, path: rest.to_vec() });
        }
        Ok(Place { base: Base::Top, path })
    }

    fn base(&mut self, base: Base) -> Result<Rc<OwnedFd>> {
        if base == Base::Top {
            return Ok(Rc::new(tree::open(self.top, ".", LIST, STRAIGHT)?));
        }
        if let Some(rootfs) = &self.rootfs {
            return Ok(rootfs.clone());
        }
        match fs::mkdirat(self.top, self.wrapper, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(full(e.into())),
        }
        let rootfs = Rc::new(tree::open(self.top, self.wrapper, LIST, STRAIGHT)?);
        self.imply(&fs::fstat(&rootfs)?, Place { base: Base::Rootfs, path: Vec::new() });
        self.rootfs = Some(rootfs.clone());
        Ok(rootfs)
    }

    /// The directory that holds a name. Parents that the archive does not mention are made.
    fn parent_of(&mut self, place: &Place) -> Result<Rc<OwnedFd>> {
        let (path, _) = tree::split(&place.path);
        if let Some((last, fd)) = &self.parent
            && last.base == place.base
            && last.path == path
        {
            return Ok(fd.clone());
        }
        let base = self.base(place.base)?;
        let fd = match tree::open(&base, if path.is_empty() { b"." } else { path }, START, INSIDE) {
            Err(Errno::NOENT) => self.make_parents(&base, place.base, path)?,
            fd => fd.context("entering its directory")?,
        };
        let fd = Rc::new(fd);
        self.parent = Some((Place { base: place.base, path: path.to_vec() }, fd.clone()));
        Ok(fd)
    }

    fn make_parents(&mut self, root: &OwnedFd, base: Base, path: &[u8]) -> Result<OwnedFd> {
        let mut above = tree::open(root, ".", START, INSIDE)?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(i, _)| i).chain([path.len()]);
        for end in ends {
            let path = &path[..end];
            above = match tree::open(root, path, START, INSIDE) {
                Err(Errno::NOENT) => {
                    let (_, name) = tree::split(path);
                    let making = || format!("making its directory `{}`", lossy(path));
                    match fs::mkdirat(&above, name, Mode::RWXU) {
                        // The name is there, but leads nowhere.
                        Err(Errno::EXIST) => return Err(error(format!("`{}` is a dangling link", lossy(path)))),
                        made => made.map_err(Into::into).map_err(full).with_context(making)?,
                    }
                    let fd = tree::open(&above, name, START, STRAIGHT).with_context(making)?;
                    self.defer(path.len())?;
                    self.imply(&fs::fstat(&fd)?, Place { base, path: path.to_vec() });
                    fd
                }
                fd => fd.with_context(|| format!("entering `{}`", lossy(path)))?,
            };
        }
        Ok(above)
    }

    /// A directory that no entry describes, so far.
    fn imply(&mut self, stat: &fs::Stat, place: Place) {
        let acls = Acls::default();
        let directory = Directory { place, mode: 0o755, uid: 0, gid: 0, mtime: None, acls };
        self.directories.entry(stat.st_ino).or_insert(directory);
    }

    fn defer(&mut self, bytes: usize) -> Result<()> {
        self.deferred += bytes;
        if self.deferred > DEFERRED {
            return Err(error(format!("the directories and access lists take more than {DEFERRED} bytes to remember")));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Unpacked> {
        self.parent = None;
        self.done.unified = self.may_be_unified && self.rootfs.is_some();
        let mut directories = std::mem::take(&mut self.directories);
        let mut named = std::mem::take(&mut self.named);
        if self.done.unified {
            self.hoist().context("taking the content of `rootfs` out")?;
            directories.retain(|_, directory| directory.place.base == Base::Rootfs);
            named.retain(|_, (place, _)| place.base == Base::Rootfs);
        }
        let names = Accounts::of(self.top);
        for (inode, (place, acls)) in named {
            let path = self.final_path(place);
            self.set_named(inode, &path, &acls, &names).with_context(|| format!("finishing `{}`", lossy(&path)))?;
        }
        for (inode, directory) in directories {
            let path = self.final_path(directory.place.clone());
            self.finish_directory(inode, &path, &directory, &names)
                .with_context(|| format!("finishing `{}`", lossy(&path)))?;
        }
        if self.unsaid > 0 {
            self.done.warnings.push(format!("and {} more of this kind", self.unsaid));
        }
        Ok(self.done)
    }

    fn final_path(&self, place: Place) -> Vec<u8> {
        match (place.base, self.done.unified) {
            (Base::Top, _) | (Base::Rootfs, true) => place.path,
            (Base::Rootfs, false) if place.path.is_empty() => self.wrapper.to_vec(),
            (Base::Rootfs, false) => [self.wrapper, &place.path].join(&b'/'),
        }
    }

    /// Opens what was made at a path, unless something else has its place by now.
    fn reopen(&self, inode: u64, path: &[u8], flags: OFlags) -> Result<Option<OwnedFd>> {
        if path.is_empty() {
            return Ok(Some(tree::open(self.top, ".", LIST, STRAIGHT)?));
        }
        match tree::open(self.top, path, flags | OFlags::NOFOLLOW, INSIDE) {
            Ok(fd) => Ok((fs::fstat(&fd)?.st_ino == inode).then_some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn set_named(&mut self, inode: u64, path: &[u8], acls: &Acls, names: &Accounts) -> Result<()> {
        let (above, name) = tree::split(path);
        if self.reopen(inode, path, OFlags::PATH)?.is_none() {
            return Ok(());
        }
        let dir = tree::open(self.top, if above.is_empty() { b"." } else { above }, START, INSIDE)?;
        let name = tree::name(name)?;
        self.set_acls(Spot::Named(dir.as_fd(), &name), acls, names, path)
    }

    fn finish_directory(&mut self, inode: u64, path: &[u8], directory: &Directory, names: &Accounts) -> Result<()> {
        let Some(fd) = self.reopen(inode, path, LIST)? else { return Ok(()) };
        let spot = Spot::Open(fd.as_fd());
        spot.set_owner(directory.uid, directory.gid).context("setting its owner")?;
        spot.set_mode(directory.mode).context("setting its mode")?;
        self.set_acls(spot, &directory.acls, names, path)?;
        match directory.mtime {
            Some(mtime) => spot.set_times(NOW, mtime).context("setting its time"),
            None => Ok(()),
        }
    }

    /// Moves what is in `rootfs` to the top, where only metadata is beside it.
    fn hoist(&mut self) -> Result<()> {
        let Some(rootfs) = self.rootfs.take() else { return Ok(()) };
        for name in METADATA {
            remove_tree(self.top, &tree::name(name)?)?;
        }
        // The root may have a `rootfs` of its own, so this one gets a name that is free in both places.
        let aside = (0..).map(|n| format!(".rootfs-{n}")).find(|name| tree::stat(&rootfs, name.as_str()).is_err());
        let aside = aside.ok_or_else(|| error("no name is free"))?;
        fs::renameat(self.top, self.wrapper, self.top, &aside)?;
        let mut names = Vec::new();
        tree::list(rootfs.as_fd(), |entry| {
            names.push(entry.file_name().to_owned());
            Ok(())
        })?;
        for name in names {
            fs::renameat(&*rootfs, &name, self.top, &name)?;
        }
        // Attributes of the inner root were set at once; the rest is set at the end.
        for (name, value) in Spot::Open(rootfs.as_fd()).xattrs()? {
            if !name.starts_with(b"security.selinux") {
                Spot::Open(self.top).set_xattr(&name, &value)?;
            }
        }
        Ok(fs::unlinkat(self.top, &aside, AtFlags::REMOVEDIR)?)
    }
}

/// Takes away all that is in a directory and was not made by the layer at hand. A directory goes when nothing of that
/// layer is left in it.
fn clear(dir: BorrowedFd<'_>, made: &HashSet<u64>, depth: usize) -> Result<()> {
    if depth > DEEPEST {
        return Err(error(format!("it hides directories nested more than {DEEPEST} times")));
    }
    let mut entries = Vec::new();
    tree::list(dir, |entry| {
        entries.push((entry.file_name().to_owned(), tree::type_of(dir, entry)?.is_dir()));
        Ok(())
    })?;
    for (name, is_directory) in entries {
        let ours = made.contains(&tree::stat(dir, &*name)?.st_ino);
        if !is_directory {
            if !ours {
                fs::unlinkat(dir, &*name, AtFlags::empty())?;
            }
            continue;
        }
        clear(tree::open(dir, &*name, LIST, STRAIGHT)?.as_fd(), made, depth + 1)?;
        if !ours {
            match fs::unlinkat(dir, &*name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// The users and groups of the tree itself.
#[derive(Default)]
struct Accounts {
    users: HashMap<Vec<u8>, u32>,
    groups: HashMap<Vec<u8>, u32>,
}

impl Accounts {
    /// What can't be read names nobody.
    fn of(root: BorrowedFd<'_>) -> Accounts {
        let read = |path: &str| {
            let fd = tree::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK, INSIDE).ok()?;
            FileType::from_raw_mode(fs::fstat(&fd).ok()?.st_mode).is_file().then_some(())?;
            let bytes = read_bounded(File::from(fd), NAMES).ok()?;
            let line = |line: &[u8]| {
                let mut fields = line.split(|byte| *byte == b':');
                let (name, id) = (fields.next()?, fields.nth(1)?);
                Some((name.to_vec(), std::str::from_utf8(id).ok()?.parse().ok()?))
            };
            Some(bytes.split(|byte| *byte == b'\n').filter_map(line).collect())
        };
        Accounts { users: read("etc/passwd").unwrap_or_default(), groups: read("etc/group").unwrap_or_default() }
    }
}

impl acl::Names for Accounts {
    fn uid(&self, name: &[u8]) -> Option<u32> {
        self.users.get(name).copied()
    }

    fn gid(&self, name: &[u8]) -> Option<u32> {
        self.groups.get(name).copied()
    }
}

/// A path without `/` and `.` that mean nothing. `..` never means anything good.
fn clean(path: &[u8]) -> Result<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(error("its path goes up by `..`").kind(ErrorKind::Invalid)),
            component => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(component);
            }
        }
    }
    Ok(clean)
}

/// Says what to do when there is no room.
pub(crate) fn full(e: lazaret_base::Error) -> lazaret_base::Error {
    match e.errno() {
        Some(Errno::NOSPC | Errno::DQUOT) => e.hint("make room on that file system, or keep the images on another one"),
        Some(Errno::ROFS) => e.hint("the file system is read-only; keep the images on another one"),
        _ => e,
    }
}

fn sentence(e: Errno) -> String {
    lazaret_base::Error::from(e).to_string()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

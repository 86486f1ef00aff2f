//! Layers: unpacked once, named by the digest of what they were made from, shared by all containers.
//!
//! ```text
//! layers/sha256-…/rootfs/      the tree, with plain ids
//! layers/sha256-…/layer.json   what it is; a layer is whole when it has its name
//! layers/host-…/               the same for the image `host`
//! index/…                      which digest a file on the host had when it was last read
//! names/NAME.json              an image by name, and which layer it is (named.rs)
//! downloads/…                  what is being downloaded, or was when that was interrupted (fetch.rs)
//! catalogues/REMOTE.json       what a remote offered when it was last asked (pull.rs)
//! tmp/N, tmp/N.lock            what is being made or removed; the lock tells whether by someone alive
//! locks/…                      one per archive that is being imported
//! ```

use std::fmt;
use std::fs::{self as stdfs, DirBuilder, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Error, Kind, Lock, Result, error, read_bounded, write_atomic};
use rustix::fs::{self, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::digest::Hashing;
use crate::remove::remove_tree;
use crate::tree;
use crate::unpack::full;
use crate::{Digest, Limits, Progress, Unpacked, elf, pull, unpack};

/// Where layers are kept.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What a container remembers of its image: written `sha256:…`, `host:…` or as an absolute path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerId {
    /// By the SHA-256 of the archive file.
    Archive(Digest),
    /// By the digest of what was taken from the running system.
    Host(Digest),
    /// A directory outside of the store, used as it is.
    Directory(PathBuf),
}

/// A root filesystem to be used read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// How to find it again.
    pub id: LayerId,
    /// What it was made from, as it was named then.
    pub source: String,
    /// The tree. Its ids are plain: root's files belong to 0.
    pub rootfs: PathBuf,
    /// Bytes of file content; unknown for a directory.
    pub size: u64,
    /// Files, directories, links and so on; unknown for a directory.
    pub entries: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Debian's name of the architecture (`amd64`, `arm64`), if a program in it tells.
    pub architecture: Option<String>,
    /// What could not be kept when it was unpacked, a sentence each.
    pub warnings: Vec<String>,
}

/// What [`Store::collect`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Half-made or half-removed trees of killed processes.
    pub trees: u64,
    /// Index entries of layers that are gone.
    pub index: u64,
}

/// What every root filesystem has one of.
const ROOT_SIGNS: &[&str] = &["usr", "bin", "sbin", "etc", "lib", "init"];
const JSON_LIMIT: usize = 1 << 20;

impl Store {
    /// Opens the store in a directory, which is made if need be.
    ///
    /// Its mode is set to 0700 each time: the layers hold setuid programs that no user of the host may reach.
    pub fn open(dir: &Path) -> Result<Store> {
        let opening = || format!("opening the image store `{}`", dir.display());
        let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make(dir).map_err(Error::from).map_err(full).with_context(opening)?;
        if stdfs::metadata(dir).with_context(opening)?.mode() & 0o077 != 0 {
            stdfs::set_permissions(dir, stdfs::Permissions::from_mode(0o700)).with_context(opening)?;
        }
        for part in ["layers", "index", "tmp", "locks"] {
            make(&dir.join(part)).map_err(Error::from).map_err(full).with_context(opening)?;
        }
        Ok(Store { dir: dir.to_owned() })
    }

    /// Makes a layer of a tar archive, plain or compressed.
    ///
    /// The file is read once. If it was imported before and has not changed since (device, inode, size and
    /// times tell), it is not read at all; a copy of a known file is read but not unpacked. Of two processes
    /// that import one file, one works and the other waits.
    pub fn import_tarball(&self, path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Layer> {
        self.import_within(path, &Limits::default(), progress)
    }

    /// The same with limits of the caller's.
    pub fn import_within(&self, path: &Path, limits: &Limits, progress: &mut dyn FnMut(Progress)) -> Result<Layer> {
        let importing = || format!("importing `{}`", path.display());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::open(path, flags, fs::Mode::empty()).with_context(importing)?;
        let archive = ArchiveFile::of(path, File::from(file)).with_context(importing)?;
        if let Some(layer) = self.known(&archive)? {
            return Ok(layer);
        }
        let lock = self.dir.join("locks").join(archive.lock_name());
        let held = Lock::wait(&lock)?;
        let imported = self.import_locked(&archive, limits, progress).with_context(importing);
        // Unlinked while held: whoever waits sees that and makes a new one.
        let _ = stdfs::remove_file(&lock);
        drop(held);
        imported
    }

    /// Finds a layer again.
    pub fn layer(&self, id: &LayerId) -> Result<Layer> {
        match id {
            LayerId::Directory(path) => use_directory(path),
            LayerId::Archive(_) | LayerId::Host(_) => self.find(id)?.ok_or_else(|| missing(id)),
        }
    }

    /// All layers, the newest first.
    pub fn list(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for name in names(&self.dir.join("layers"))? {
            let Some(id) = LayerId::from_dir_name(&name) else { continue };
            // One that is removed at this moment is not there any more.
            layers.extend(self.find(&id)?);
        }
        layers.sort_by(|a, b| (b.created, &a.id).cmp(&(a.created, &b.id)));
        Ok(layers)
    }

    /// Removes a layer. Whether a container still needs it is the caller's to know.
    pub fn remove(&self, id: &LayerId) -> Result<()> {
        let removing = || format!("removing the image `{id}`");
        let Some(dir) = self.layer_dir(id) else {
            let e = error("the directory is used in place and is not the store's to remove").kind(Kind::Invalid);
            return Err(e).with_context(removing);
        };
        let temporary = Temporary::new(&self.dir).with_context(removing)?;
        match stdfs::rename(&dir, temporary.dir.join("layer")) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing(id)),
            Err(e) => return Err(full(e.into())).with_context(removing),
        }
        sync_dir(&self.dir.join("layers"));
        temporary.remove().with_context(removing)?;
        self.forget_missing().map(drop).with_context(removing)
    }

    /// Takes away what killed processes left behind; what belongs to living ones stays.
    ///
    /// Goes on after an error and returns the first.
    pub fn collect(&self) -> Result<Collected> {
        let mut collected = Collected::default();
        let mut first_error = Ok(());
        let mut keep = |outcome: Result<u64>| match outcome {
            Ok(n) => n,
            Err(e) => {
                if first_error.is_ok() {
                    first_error = Err(e);
                }
                0
            }
        };
        let tmp = self.dir.join("tmp");
        let mut numbers: Vec<String> =
            names(&tmp)?.iter().map(|name| name.strip_suffix(".lock").unwrap_or(name).to_owned()).collect();
        numbers.sort();
        numbers.dedup();
        for number in numbers {
            collected.trees += keep(Temporary::adopt(&tmp, &number).and_then(|temporary| match temporary {
                Some(temporary) => temporary.remove().map(u64::from),
                None => Ok(0),
            }));
        }
        for name in names(&self.dir.join("locks"))? {
            let path = self.dir.join("locks").join(name);
            keep(Lock::try_take(&path).map(|lock| {
                if lock.is_some() {
                    // Best effort: a lock that stays is found free next time.
                    let _ = stdfs::remove_file(&path);
                }
                0
            }));
        }
        collected.index = keep(self.forget_missing());
        keep(pull::collect_downloads(self, pull::GIVEN_UP).map(|_| 0));
        first_error.context("collecting what killed imports left").map(|()| collected)
    }

    fn import_locked(
        &self,
        archive: &ArchiveFile,
        limits: &Limits,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Layer> {
        // Done by whom we waited for.
        if let Some(layer) = self.known(archive)? {
            return Ok(layer);
        }
        if let Some(layer) = self.known_by_content(archive)? {
            self.remember(archive, &layer)?;
            return Ok(layer);
        }
        let temporary = Temporary::new(&self.dir)?;
        let rootfs = temporary.make_rootfs()?;
        let mut reader = Hashing::new(archive.rewound()?);
        let unpacked = unpack(&mut reader, rootfs.as_fd(), limits, progress)?;
        let digest = reader.finish()?;
        archive.check_unchanged()?;
        let source = archive.path.to_string_lossy().into_owned();
        let made = Made { source, archive_size: Some(archive.stamp.size), unpacked };
        let layer = self.finish(temporary, &rootfs, LayerId::Archive(digest), made)?;
        self.remember(archive, &layer)?;
        Ok(layer)
    }

    /// Makes a layer of a tree that is whole.
    pub(crate) fn finish(&self, temporary: Temporary, rootfs: &OwnedFd, id: LayerId, made: Made) -> Result<Layer> {
        check_root(rootfs.as_fd())?;
        let record = Record {
            source: made.source,
            archive_size: made.archive_size,
            size: made.unpacked.bytes,
            entries: made.unpacked.entries,
            created: now(),
            architecture: elf::architecture(rootfs.as_fd()),
            warnings: made.unpacked.warnings,
        };
        self.publish(temporary, id, &record)
    }

    /// Gives a whole layer its name. If someone was faster, theirs is the same.
    pub(crate) fn publish(&self, temporary: Temporary, id: LayerId, record: &Record) -> Result<Layer> {
        let Some(dir) = self.layer_dir(&id) else { return Err(error("a directory is not a layer of the store")) };
        let json = serde_json::to_vec_pretty(record).map_err(|e| error(e.to_string()))?;
        write_atomic(&temporary.dir.join("layer.json"), &json).map_err(full)?;
        // Everything is on the disk before it has a name. One call for all the files of a tree.
        let handle = File::open(&temporary.dir)?;
        fs::syncfs(&handle).context("writing the layer to the disk").map_err(full)?;
        // A directory is never renamed over one that holds something (rename(2)).
        match fs::rename(&temporary.dir, &dir) {
            Ok(()) => {
                sync_dir(&self.dir.join("layers"));
                temporary.moved();
            }
            Err(Errno::EXIST | Errno::NOTEMPTY) => temporary.remove().map(drop)?,
            Err(e) => return Err(full(e.into())).context("naming the layer"),
        }
        self.find(&id)?.ok_or_else(|| missing(&id))
    }

    pub(crate) fn temporary(&self) -> Result<Temporary> {
        Temporary::new(&self.dir)
    }

    /// A directory of the store, made if need be.
    pub(crate) fn part(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(Error::from).map_err(full).with_context(|| format!("making `{}`", dir.display()))?;
        Ok(dir)
    }

    fn layer_dir(&self, id: &LayerId) -> Option<PathBuf> {
        Some(self.dir.join("layers").join(id.dir_name()?))
    }

    /// A layer of the store, if it is there.
    pub(crate) fn find(&self, id: &LayerId) -> Result<Option<Layer>> {
        let Some(dir) = self.layer_dir(id) else { return Ok(None) };
        let path = dir.join("layer.json");
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            file => file.with_context(|| format!("reading `{}`", path.display()))?,
        };
        let record: Record = read_json(file).with_context(|| format!("reading `{}`", path.display()))?;
        Ok(Some(Layer {
            id: id.clone(),
            source: record.source,
            rootfs: dir.join("rootfs"),
            size: record.size,
            entries: record.entries,
            created: record.created,
            architecture: record.architecture,
            warnings: record.warnings,
        }))
    }

    /// The layer of a file that was read before and has not changed since.
    fn known(&self, archive: &ArchiveFile) -> Result<Option<Layer>> {
        match self.indexed(archive) {
            Some(entry) => self.find(&LayerId::Archive(Digest::from_hex(&entry.digest)?)),
            None => Ok(None),
        }
    }

    /// The same if it was found to be a root and nothing beside it: then nobody needs to look into it again.
    pub(crate) fn known_bare(&self, archive: &ArchiveFile) -> Result<Option<Layer>> {
        match self.indexed(archive) {
            Some(entry) if entry.bare => self.find(&LayerId::Archive(Digest::from_hex(&entry.digest)?)),
            _ => Ok(None),
        }
    }

    /// Notes that an archive, which became this layer, is a root and nothing beside it.
    pub(crate) fn note_bare(&self, archive: &ArchiveFile, layer: &Layer) -> Result<()> {
        archive.check_unchanged()?;
        match self.known(archive)? {
            Some(known) if known.id == layer.id => self.write_index(archive, layer, true),
            // The file was replaced meanwhile: what was looked into is not what became the layer.
            _ => Ok(()),
        }
    }

    fn indexed(&self, archive: &ArchiveFile) -> Option<Indexed> {
        // An index that can't be read is made anew.
        let entry: Indexed = read_json(File::open(self.index_path(archive)).ok()?).ok()?;
        let same = entry.path == archive.path.to_string_lossy() && entry.stamp == archive.stamp;
        same.then_some(entry)
    }

    /// A file of the size of a known one may be a copy of it: reading is far cheaper than unpacking.
    fn known_by_content(&self, archive: &ArchiveFile) -> Result<Option<Layer>> {
        for name in names(&self.dir.join("layers"))? {
            let Some(id @ LayerId::Archive(digest)) = LayerId::from_dir_name(&name) else { continue };
            let path = self.dir.join("layers").join(&name).join("layer.json");
            let record = File::open(path).ok().and_then(|file| read_json::<Record>(file).ok());
            if record.and_then(|record| record.archive_size) != Some(archive.stamp.size) {
                continue;
            }
            let found = Hashing::new(archive.rewound()?).finish()?;
            archive.check_unchanged()?;
            if found == digest {
                return self.find(&id);
            }
            // One reading tells for all layers of this size.
            return self.find(&LayerId::Archive(found));
        }
        Ok(None)
    }

    fn index_path(&self, archive: &ArchiveFile) -> PathBuf {
        self.dir.join("index").join(Digest::of(archive.path.as_os_str().as_bytes()).hex())
    }

    fn remember(&self, archive: &ArchiveFile, layer: &Layer) -> Result<()> {
        self.write_index(archive, layer, false)
    }

    fn write_index(&self, archive: &ArchiveFile, layer: &Layer, bare: bool) -> Result<()> {
        let LayerId::Archive(digest) = layer.id else { return Ok(()) };
        let path = archive.path.to_string_lossy().into_owned();
        let entry = Indexed { path, stamp: archive.stamp.clone(), digest: digest.hex(), bare };
        let json = serde_json::to_vec(&entry).map_err(|e| error(e.to_string()))?;
        write_atomic(&self.index_path(archive), &json).map_err(full)
    }

    /// Drops index entries whose layer is gone.
    fn forget_missing(&self) -> Result<u64> {
        let mut forgotten = 0;
        for name in names(&self.dir.join("index"))? {
            let path = self.dir.join("index").join(&name);
            let Ok(file) = File::open(&path) else { continue };
            let digest = read_json::<Indexed>(file).ok().and_then(|entry| Digest::from_hex(&entry.digest).ok());
            let there =
                digest.and_then(|digest| self.layer_dir(&LayerId::Archive(digest))).is_some_and(|dir| dir.exists());
            // A dot marks what is being written.
            if !there && !name.starts_with('.') && stdfs::remove_file(&path).is_ok() {
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}

/// Uses a directory of the host as it is: read-only, as the lower layer of containers.
///
/// It must look like a root filesystem. Later changes to it are seen by its containers; ids are taken as plain.
pub fn use_directory(path: &Path) -> Result<Layer> {
    let using = || format!("using the directory `{}`", path.display());
    if !path.is_absolute() {
        return Err(error("the path is not absolute").kind(Kind::Invalid)).with_context(using);
    }
    let real = stdfs::canonicalize(path).with_context(using)?;
    let dir = fs::open(&real, tree::LIST, fs::Mode::empty()).with_context(using)?;
    let (there, root) = (fs::fstat(&dir).with_context(using)?, fs::stat("/").with_context(using)?);
    if (there.st_dev, there.st_ino) == (root.st_dev, root.st_ino) {
        let e = error("it is the root of this system, with all its secrets").kind(Kind::Invalid);
        return Err(e.hint("the image `host` shows its programs and nothing else")).with_context(using);
    }
    check_root(dir.as_fd()).with_context(using)?;
    Ok(Layer {
        source: real.display().to_string(),
        rootfs: real.clone(),
        id: LayerId::Directory(real),
        size: 0,
        entries: 0,
        created: u64::try_from(there.st_mtime).unwrap_or(0),
        architecture: elf::architecture(dir.as_fd()),
        warnings: Vec::new(),
    })
}

/// Whether a tree looks like a root filesystem; the hint says what it looks like instead.
fn check_root(dir: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    if ROOT_SIGNS.iter().any(|name| tree::stat(dir, *name).is_ok()) {
        return Ok(());
    }
    let mut found = Vec::new();
    tree::list(dir, |entry| {
        found.push(entry.file_name().to_string_lossy().into_owned());
        Ok(())
    })?;
    found.sort();
    let hint = match &found[..] {
        [] => "it is empty".to_owned(),
        [one] => format!("its content is below `{one}`: use that directory, or an archive made inside of it"),
        _ if found.iter().any(|name| name == "metadata.yaml") => {
            "it is the metadata of an image; the root filesystem is in the other file".to_owned()
        }
        many => format!("it holds `{}` and {} more, but no `usr`, `bin` or `etc`", many[0], many.len() - 1),
    };
    Err(error("it is not a root filesystem").kind(Kind::Invalid).hint(hint))
}

impl LayerId {
    fn dir_name(&self) -> Option<String> {
        match self {
            LayerId::Archive(digest) => Some(format!("sha256-{}", digest.hex())),
            LayerId::Host(digest) => Some(format!("host-{}", digest.hex())),
            LayerId::Directory(_) => None,
        }
    }

    fn from_dir_name(name: &str) -> Option<LayerId> {
        let (kind, hex) = name.split_once('-')?;
        let digest = Digest::from_hex(hex).ok()?;
        match kind {
            "sha256" => Some(LayerId::Archive(digest)),
            "host" => Some(LayerId::Host(digest)),
            _ => None,
        }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerId::Archive(digest) => write!(f, "{digest}"),
            LayerId::Host(digest) => write!(f, "host:{}", digest.hex()),
            LayerId::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for LayerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<LayerId> {
        if text.starts_with('/') {
            return Ok(LayerId::Directory(PathBuf::from(text)));
        }
        match text.strip_prefix("host:") {
            Some(hex) => Digest::from_hex(hex).map(LayerId::Host),
            None => text.parse().map(LayerId::Archive),
        }
    }
}

/// A tree that is to become a layer.
pub(crate) struct Made {
    /// What it was made from.
    pub source: String,
    /// Of the archive file.
    pub archive_size: Option<u64>,
    pub unpacked: Unpacked,
}

/// `layer.json`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Record {
    pub source: String,
    /// Of the archive file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive_size: Option<u64>,
    pub size: u64,
    pub entries: u64,
    pub created: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A file of the index.
#[derive(Serialize, Deserialize)]
struct Indexed {
    path: String,
    #[serde(flatten)]
    stamp: Stamp,
    digest: String,
    /// The archive was looked into: it is a root and nothing beside it.
    #[serde(default)]
    bare: bool,
}

/// What changes when a file does. The change time can't be set by anyone, unlike the modification time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(file: &File) -> Result<Stamp> {
        let meta = file.metadata()?;
        Ok(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// An archive on the host.
pub(crate) struct ArchiveFile {
    path: PathBuf,
    file: File,
    stamp: Stamp,
}

impl ArchiveFile {
    pub(crate) fn of(path: &Path, file: File) -> Result<ArchiveFile> {
        if !file.metadata()?.is_file() {
            return Err(error("it is not a regular file").kind(Kind::Invalid));
        }
        let stamp = Stamp::of(&file)?;
        Ok(ArchiveFile { path: stdfs::canonicalize(path)?, file, stamp })
    }

    fn lock_name(&self) -> String {
        format!("{}-{}", self.stamp.device, self.stamp.inode)
    }

    pub(crate) fn rewound(&self) -> Result<&File> {
        fs::seek(&self.file, fs::SeekFrom::Start(0))?;
        Ok(&self.file)
    }

    fn check_unchanged(&self) -> Result<()> {
        if Stamp::of(&self.file)? != self.stamp {
            return Err(error("the file changed while it was read").hint("wait until it is completely written"));
        }
        Ok(())
    }
}

/// A directory in `tmp` with a lock beside it that ends with this process, however it ends.
pub(crate) struct Temporary {
    pub dir: PathBuf,
    lock_path: PathBuf,
    _lock: Lock,
    armed: bool,
}

impl Temporary {
    fn new(store: &Path) -> Result<Temporary> {
        let tmp = store.join("tmp");
        let making = || format!("making a directory in `{}`", tmp.display());
        let process = std::process::id();
        for n in 0.. {
            let name = format!("{process}-{n}");
            let lock_path = tmp.join(format!("{name}.lock"));
            // Taken: by another thread, or by a process that has the same id in another namespace.
            let Some(lock) = Lock::try_take(&lock_path).map_err(full)? else { continue };
            let temporary = Temporary { dir: tmp.join(name), lock_path, _lock: lock, armed: true };
            match DirBuilder::new().mode(0o700).create(&temporary.dir) {
                Ok(()) => return Ok(temporary),
                // Left by a dead process: it goes with the lock that we have now.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => temporary.remove().map(drop)?,
                Err(e) => return Err(full(e.into())).with_context(making),
            }
        }
        Err(error("no name is free")).with_context(making)
    }

    /// Takes over what a dead process left; `None` if the process lives.
    fn adopt(tmp: &Path, name: &str) -> Result<Option<Temporary>> {
        let lock_path = tmp.join(format!("{name}.lock"));
        let lock = Lock::try_take(&lock_path)?;
        Ok(lock.map(|lock| Temporary { dir: tmp.join(name), lock_path, _lock: lock, armed: true }))
    }

    /// Makes and opens `rootfs`, whose mode the content decides.
    pub(crate) fn make_rootfs(&self) -> Result<OwnedFd> {
        let path = self.dir.join("rootfs");
        stdfs::create_dir(&path).map_err(Error::from).map_err(full)?;
        Ok(fs::open(&path, tree::LIST, fs::Mode::empty())?)
    }

    /// Where [`Temporary::make_rootfs`] makes it.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The directory has a name elsewhere now.
    fn moved(mut self) {
        self.armed = false;
        // Best effort: a free lock is collected.
        let _ = stdfs::remove_file(&self.lock_path);
    }

    /// Whether there was something to remove.
    fn remove(mut self) -> Result<bool> {
        self.armed = false;
        self.clear()
    }

    fn clear(&self) -> Result<bool> {
        let there = self.dir.symlink_metadata().is_ok();
        if let (Some(parent), Some(name)) = (self.dir.parent(), self.dir.file_name()) {
            let parent = File::open(parent)?;
            remove_tree(parent.as_fd(), &tree::name(name.as_bytes())?)?;
        }
        // The lock goes last, still held: what is without a lock is nobody's.
        let _ = stdfs::remove_file(&self.lock_path);
        Ok(there)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.armed {
            // Best effort: what stays is collected.
            let _ = self.clear();
        }
    }
}

fn missing(id: &LayerId) -> Error {
    error(format!("the image `{id}` is not in the store")).kind(Kind::NotFound)
}

fn read_json<T: serde::de::DeserializeOwned>(file: File) -> Result<T> {
    serde_json::from_slice(&read_bounded(file, JSON_LIMIT)?).map_err(|e| error(e.to_string()))
}

/// The names in a directory of the store; all of them are ours and UTF-8.
fn names(dir: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading `{}`", dir.display());
    let entries = stdfs::read_dir(dir).with_context(reading)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<Result<_>>().with_context(reading)
}

/// The rename has happened; a file system that can't sync a directory is no reason to fail.
fn sync_dir(dir: &Path) {
    let _ = File::open(dir).and_then(|dir| dir.sync_all());
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

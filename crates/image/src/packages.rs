//! Packages that were fetched once: files by their digests, shared by all builds and by the cache that containers use.
//!
//! ```text
//! blobs/HEX       files by their SHA-256
//! places/HEX      by the digest of an address: which blob was there, and what the server said of it
//! names/NAME=HEX  which blobs had that name; one of another mirror may be the same
//! locks/HEX       held while it is fetched
//! stats.json      what was spared
//! ```
//!
//! Nothing here is precious. A blob is compared with its digest whenever that matters, and what is damaged is fetched
//! again; so nothing is forced to disk, and what nobody has used for long makes room.

use std::fs::{self as stdfs, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use lazaret_base::{Context, Error, Kind, Lock, Result, error, read_bounded};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;
use crate::digest::Hashing;
use crate::unpack::full;

/// Where packages are kept.
#[derive(Clone, Debug)]
pub struct PackageCache {
    dir: PathBuf,
}

/// What was asked for since the counting began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Files that were there.
    pub hits: u64,
    /// Files that were not.
    pub misses: u64,
    /// Bytes that nobody had to fetch.
    pub saved: u64,
    /// Bytes that were fetched.
    pub fetched: u64,
}

/// What is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Files.
    pub files: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What a server said of a place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// What was there.
    pub digest: String,
    /// How the server tells whether it has changed.
    #[serde(default)]
    pub etag: Option<String>,
    /// The same by time.
    #[serde(default)]
    pub modified: Option<String>,
}

impl Seen {
    /// What was there.
    pub fn digest(&self) -> Option<Digest> {
        Digest::from_hex(&self.digest).ok()
    }
}

/// A cache this full makes room down to this part of its limit, so that it does not do so for every file.
const ROOMY: (u64, u64) = (9, 10);
/// So many notes are kept, and so many names: those that were written last.
const MOST_NOTES: usize = 1 << 16;
/// Notes that are being written have names of their own.
static COUNT: AtomicU64 = AtomicU64::new(0);
/// A note is never longer.
const LONGEST_NOTE: usize = 64 << 10;
/// Names of files are limited to 255 bytes, of which the digest takes 65.
const LONGEST_NAME: usize = 180;

impl PackageCache {
    /// Opens the cache in a directory, which is made if need be.
    pub fn open(dir: &Path) -> Result<PackageCache> {
        for part in ["blobs", "places", "names", "locks"] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir.join(part));
            made.map_err(Error::from).map_err(full).with_context(|| format!("making `{}`", dir.display()))?;
        }
        Ok(PackageCache { dir: dir.to_owned() })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs").join(digest.hex())
    }

    /// A file that is here, open to be read. Whether it still is what it was, only its digest tells.
    pub fn get(&self, digest: &Digest) -> Option<File> {
        let file = File::open(self.blob(digest)).ok()?;
        // Used now. What can't be noted is only forgotten sooner.
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        Some(file)
    }

    /// The same after all of it was read and found sound; what is not is removed.
    pub fn get_verified(&self, digest: &Digest) -> Option<File> {
        let file = self.get(digest)?;
        let found = Hashing::new(&file).finish().ok()?;
        if found != *digest {
            let _ = stdfs::remove_file(self.blob(digest));
            return None;
        }
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).ok()?;
        Some(file)
    }

    /// One process at a time fetches a file; others wait for it.
    pub fn lock(&self, digest: &Digest) -> Result<Held> {
        let path = self.dir.join("locks").join(digest.hex());
        Ok(Held { _lock: Lock::wait(&path)?, path })
    }

    /// Takes in what comes; nobody sees it before it is whole and what it should be. `size` is how many bytes there
    /// must be, or may be at most.
    pub fn put(&self, from: impl Read, wanted: Option<&Digest>, size: Size) -> Result<(Digest, File)> {
        let mut incoming = self.incoming()?;
        let most = match size {
            Size::Exactly(size) | Size::AtMost(size) => size,
        };
        let mut buffer = vec![0; 128 << 10];
        let mut from = from.take(most + 1);
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => incoming.write(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("receiving"),
            }
        }
        match size {
            Size::Exactly(size) if incoming.size != size => {
                let more = if incoming.size > size { "more".to_owned() } else { incoming.size.to_string() };
                return Err(error(format!("{more} bytes came in the place of {size}")));
            }
            Size::AtMost(size) if incoming.size > size => return Err(error(format!("it is longer than {size} bytes"))),
            _ => {}
        }
        incoming.finish(wanted)
    }

    /// A file that comes in pieces.
    pub fn incoming(&self) -> Result<Incoming<'_>> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let blobs = self.dir.join("blobs");
        // Without a name until it is whole: whoever is killed leaves nothing behind.
        let file = rustix::fs::open(&blobs, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH);
        let file = file.map_err(Error::from).map_err(|e| match e.errno() {
            Some(Errno::OPNOTSUPP) => e.hint("keep the state directory on ext4, xfs, btrfs or tmpfs"),
            _ => full(e),
        });
        let file = File::from(file.context("making room for a package")?);
        Ok(Incoming { cache: self, file, hash: Sha256::new(), size: 0 })
    }

    /// Gives a file that is here a second name in a directory; where that is on another file system, a copy.
    pub fn link(&self, digest: &Digest, to: &Path) -> Result<()> {
        match stdfs::hard_link(self.blob(digest), to) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(e) if matches!(e.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::XDEV | Errno::MLINK)) => {
                stdfs::copy(self.blob(digest), to).map(drop).map_err(Error::from).map_err(full)
            }
            linked => linked.map_err(Error::from).map_err(full),
        }
        .context("handing out a package")
    }

    // --- where things were ---

    fn place(&self, address: &str) -> PathBuf {
        self.dir.join("places").join(Digest::of(address.as_bytes()).hex())
    }

    /// What was at an address.
    pub fn seen(&self, address: &str) -> Option<Seen> {
        let bytes = read_bounded(File::open(self.place(address)).ok()?, LONGEST_NOTE).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Notes what is at an address, and by its name for other mirrors.
    pub fn note(&self, address: &str, seen: &Seen) -> Result<()> {
        let json = serde_json::to_vec(seen).map_err(|e| error(e.to_string()))?;
        let path = self.place(address);
        // By a rename, but not to disk: what is forgotten is asked for again.
        let aside = path.with_extension(format!("{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
        let written = stdfs::write(&aside, json).and_then(|()| stdfs::rename(&aside, &path));
        written.map_err(Error::from).map_err(full).context("noting where a package was")?;
        if let (Some(name), Some(digest)) = (last(address), seen.digest()) {
            let link = self.dir.join("names").join(format!("{name}={}", digest.hex()));
            File::create(link).map_err(Error::from).map_err(full).context("noting the name of a package")?;
        }
        Ok(())
    }

    /// Removes a file that is no good.
    pub fn forget(&self, digest: &Digest) -> Result<()> {
        match stdfs::remove_file(self.blob(digest)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("removing a package"),
            _ => Ok(()),
        }
    }

    /// What files of that name there are, whatever place they are from.
    pub fn named(&self, address: &str) -> Vec<(Digest, u64)> {
        let Some(name) = last(address) else { return Vec::new() };
        let prefix = format!("{name}=");
        let entries = stdfs::read_dir(self.dir.join("names")).into_iter().flatten().flatten();
        let digest = |entry: stdfs::DirEntry| Digest::from_hex(entry.file_name().to_str()?.strip_prefix(&prefix)?).ok();
        let size = |digest: Digest| Some((digest, stdfs::metadata(self.blob(&digest)).ok()?.len()));
        entries.filter_map(digest).filter_map(size).collect()
    }

    // --- how much ---

    /// Counts what was asked for.
    pub fn count(&self, more: Stats) -> Result<()> {
        let _lock = Lock::wait(&self.dir.join("locks/stats"))?;
        let before = self.stats();
        let sum = Stats {
            hits: before.hits + more.hits,
            misses: before.misses + more.misses,
            saved: before.saved + more.saved,
            fetched: before.fetched + more.fetched,
        };
        let json = serde_json::to_vec(&sum).map_err(|e| error(e.to_string()))?;
        // By a rename, but not to disk: it is counted for every package.
        let (path, aside) = (self.dir.join("stats.json"), self.dir.join(".stats.json"));
        let written = stdfs::write(&aside, json).and_then(|()| stdfs::rename(&aside, &path));
        written.map_err(Error::from).map_err(full).context("counting what was spared")
    }

    /// What was spared so far.
    pub fn stats(&self) -> Stats {
        let file = File::open(self.dir.join("stats.json")).ok();
        let bytes = file.and_then(|file| read_bounded(file, LONGEST_NOTE).ok());
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Begins to count anew.
    pub fn forget_stats(&self) -> Result<()> {
        match stdfs::remove_file(self.dir.join("stats.json")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context("forgetting the statistics"),
            _ => Ok(()),
        }
    }

    /// How much there is.
    pub fn kept(&self) -> Result<Kept> {
        let mut kept = Kept::default();
        for (_, _, bytes) in self.blobs()? {
            kept.files += 1;
            kept.bytes += bytes;
        }
        Ok(kept)
    }

    fn blobs(&self) -> Result<Vec<(SystemTime, PathBuf, u64)>> {
        let mut blobs = Vec::new();
        for entry in stdfs::read_dir(self.dir.join("blobs")).context("listing the packages")? {
            let entry = entry.context("listing the packages")?;
            // Evicted by somebody else at this moment.
            let Ok(meta) = entry.metadata() else { continue };
            blobs.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), entry.path(), meta.blocks() * 512));
        }
        Ok(blobs)
    }

    /// Removes what was not used for longest if there is more than `limit` bytes; the bytes that went.
    pub fn evict(&self, limit: u64) -> Result<u64> {
        self.thin_notes();
        self.clear_locks();
        let mut blobs = self.blobs()?;
        let total: u64 = blobs.iter().map(|(_, _, bytes)| bytes).sum();
        if total <= limit {
            return Ok(0);
        }
        blobs.sort_unstable();
        let wanted = limit / ROOMY.1 * ROOMY.0;
        let (mut left, mut gone) = (total, 0);
        for (_, path, bytes) in blobs {
            if left <= wanted {
                break;
            }
            match stdfs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).context("making room among the packages");
                }
                _ => (left, gone) = (left - bytes, gone + bytes),
            }
        }
        self.forget_missing();
        Ok(gone)
    }

    /// Locks of those who were killed. Whoever waits for one sees that it is gone and makes a new one.
    fn clear_locks(&self) {
        for entry in stdfs::read_dir(self.dir.join("locks")).into_iter().flatten().flatten() {
            if Digest::from_hex(&entry.file_name().to_string_lossy()).is_ok()
                && let Ok(Some(_lock)) = Lock::try_take(&entry.path())
            {
                let _ = stdfs::remove_file(entry.path());
            }
        }
    }

    /// Whoever asks for one file by ever other addresses fills no disk.
    fn thin_notes(&self) {
        for part in ["names", "places"] {
            let entries = stdfs::read_dir(self.dir.join(part)).into_iter().flatten().flatten();
            let paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            if paths.len() <= MOST_NOTES {
                continue;
            }
            let written = |path: &PathBuf| stdfs::symlink_metadata(path).and_then(|meta| meta.modified()).ok();
            let mut notes: Vec<_> = paths.into_iter().map(|path| (written(&path), path)).collect();
            notes.sort_unstable();
            for (_, path) in &notes[..notes.len() - MOST_NOTES / 10 * 9] {
                let _ = stdfs::remove_file(path);
            }
        }
    }

    /// Notes of what is gone go as well.
    fn forget_missing(&self) {
        let entries = |part: &str| stdfs::read_dir(self.dir.join(part)).into_iter().flatten().flatten();
        for entry in entries("names") {
            let name = entry.file_name().to_string_lossy().into_owned();
            let digest = name.rsplit_once('=').and_then(|(_, hex)| Digest::from_hex(hex).ok());
            if digest.is_none_or(|digest| !self.blob(&digest).exists()) {
                let _ = stdfs::remove_file(entry.path());
            }
        }
        for entry in entries("places") {
            let seen: Option<Seen> =
                stdfs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            if seen.and_then(|seen| seen.digest()).is_none_or(|digest| !self.blob(&digest).exists()) {
                let _ = stdfs::remove_file(entry.path());
            }
        }
    }
}

/// The last part of an address, if it can be the name of a file.
fn last(address: &str) -> Option<&str> {
    let name = address.rsplit('/').next()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._+-~%:".contains(c);
    (!name.is_empty() && !name.starts_with('.') && name.len() <= LONGEST_NAME && name.chars().all(plain))
        .then_some(name)
}

/// How long something must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// That many bytes.
    Exactly(u64),
    /// No more bytes.
    AtMost(u64),
}

/// While this is held, nobody else fetches that file.
pub struct Held {
    _lock: Lock,
    path: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Unlinked while held: whoever waits sees that and makes a new one.
        let _ = stdfs::remove_file(&self.path);
    }
}

/// A file on its way into the cache.
pub struct Incoming<'a> {
    cache: &'a PackageCache,
    file: File,
    hash: Sha256,
    size: u64,
}

impl Incoming<'_> {
    /// The next piece.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::from).map_err(full).context("writing a package")?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// The same file once more, to be read from its start when it is whole.
    pub fn again(&self) -> Result<File> {
        Ok(self.file.try_clone()?)
    }

    /// Bytes that have come, from one place on.
    pub fn read_at(&self, buffer: &mut [u8], from: u64) -> Result<usize> {
        Ok(FileExt::read_at(&self.file, buffer, from)?)
    }

    /// How many bytes have come.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of it is there: it gets its name, if it is what was wanted.
    pub fn finish(self, wanted: Option<&Digest>) -> Result<(Digest, File)> {
        let digest = self.name(wanted)?;
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(0))?;
        Ok((digest, self.file))
    }

    /// The same for whoever has the file already.
    pub fn name(&self, wanted: Option<&Digest>) -> Result<Digest> {
        let digest = Digest::from_state(self.hash.clone());
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            return Err(error(format!("its SHA-256 is {}, but the list says {}", digest.hex(), wanted.hex()))
                .kind(Kind::Invalid));
        }
        let own = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        match rustix::fs::linkat(CWD, own, CWD, self.cache.blob(&digest), AtFlags::SYMLINK_FOLLOW) {
            // Somebody else was faster; theirs is the same.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(full(e.into())).context("naming a package"),
        }
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (PathBuf, PackageCache) {
        let dir = std::env::temp_dir().join(format!("lazaret-packages-{:?}", std::thread::current().id()));
        let _ = stdfs::remove_dir_all(&dir);
        let cache = PackageCache::open(&dir).unwrap();
        (dir, cache)
    }

    #[test]
    fn only_what_is_whole_and_right_is_kept() {
        let (dir, cache) = cache();
        let good = Digest::of(b"hello");
        for (bytes, size) in
            [(&b"hell"[..], Size::Exactly(5)), (b"hello!", Size::Exactly(5)), (b"HELLO", Size::Exactly(5))]
        {
            assert!(cache.put(bytes, Some(&good), size).is_err());
        }
        assert!(cache.put(&b"hello"[..], None, Size::AtMost(4)).is_err());
        assert_eq!(cache.kept().unwrap().files, 0);
        cache.put(&b"hello"[..], Some(&good), Size::Exactly(5)).unwrap();
        assert!(cache.get_verified(&good).is_some());
        // What a disk has spoilt is not handed out, and makes room for what is right.
        stdfs::write(dir.join("blobs").join(good.hex()), "hallo").unwrap();
        assert!(cache.get_verified(&good).is_none() && cache.get(&good).is_none());
        stdfs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn another_mirror_has_the_same_file_by_its_name() {
        let (dir, cache) = cache();
        let (digest, _) = cache.put(&b"package"[..], None, Size::AtMost(100)).unwrap();
        let seen = Seen { digest: digest.hex(), etag: None, modified: None };
        cache.note("http://one/pool/a_1_all.deb", &seen).unwrap();
        assert_eq!(cache.seen("http://one/pool/a_1_all.deb").unwrap().digest(), Some(digest));
        assert_eq!(cache.named("http://two/x/a_1_all.deb"), [(digest, 7)]);
        assert!(
            cache.named("http://two/x/a_1_all.debx").is_empty() && cache.seen("http://two/x/a_1_all.deb").is_none()
        );
        assert_eq!(last("http://h/.."), None);
        stdfs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn what_was_not_used_for_longest_makes_room() {
        let (dir, cache) = cache();
        let digests: Vec<_> =
            (0..4u8).map(|n| cache.put(&vec![n; 40960][..], None, Size::AtMost(1 << 20)).unwrap().0).collect();
        for (age, digest) in [3, 2, 1, 0].into_iter().zip(&digests) {
            let file = File::options().write(true).open(cache.blob(digest)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(1000 * age)).unwrap();
        }
        cache.get(&digests[0]).unwrap();
        cache.note("http://one/b", &Seen { digest: digests[1].hex(), etag: None, modified: None }).unwrap();
        assert_eq!(cache.evict(1 << 20).unwrap(), 0);
        assert_eq!(cache.evict(3 * 40960).unwrap(), 2 * 40960);
        let left: Vec<_> = digests.iter().map(|digest| cache.get(digest).is_some()).collect();
        assert_eq!(left, [true, false, false, true]);
        assert!(cache.seen("http://one/b").is_none() && cache.named("http://one/b").is_empty());
        stdfs::remove_dir_all(dir).unwrap();
    }
}

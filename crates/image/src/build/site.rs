//! A tree on its way to become an image: built where nobody sees it, named when it is whole.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use lazaret_base::{Context, Result, error, read_bounded};
use rustix::fs::{FileType, OFlags, fstat};
use sha2::{Digest as _, Sha256};

use crate::pack::{Archive, Manner};
use crate::remove::remove_tree;
use crate::store::{Made, Temporary};
use crate::tree::{self, INSIDE, LIST, STRAIGHT};
use crate::{Digest, Layer, LayerId, Stack, Store, Unpacked, copy_tree};

/// A tree that is being built. Dropped, or left by a process that was killed, it goes.
pub struct Site {
    temporary: Temporary,
    rootfs: OwnedFd,
}

impl Site {
    /// Where the tree is.
    pub fn path(&self) -> PathBuf {
        self.temporary.rootfs()
    }

    /// Puts another tree in the place of this one, a copy of it with `shift` added to all ids.
    pub fn replace(&self, by: OwnedFd, shift: i64) -> Result<()> {
        let mut names = Vec::new();
        tree::list(self.rootfs.as_fd(), |entry| {
            names.push(entry.file_name().to_owned());
            Ok(())
        })?;
        names.iter().try_for_each(|name| remove_tree(self.rootfs.as_fd(), name))?;
        copy_tree(&Stack::plain(by), self.rootfs.as_fd(), shift, &mut |_| {}).map(drop)
    }
}

impl AsFd for Site {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rootfs.as_fd()
    }
}

/// A file of a tree, as a process inside would find it; `None` if there is none, or it is no text of at most `longest`
/// bytes.
pub fn read_inside(root: BorrowedFd<'_>, path: &str, longest: usize) -> Option<String> {
    let fd = tree::open(root, path, OFlags::RDONLY | OFlags::NONBLOCK, INSIDE).ok()?;
    FileType::from_raw_mode(fstat(&fd).ok()?.st_mode).is_file().then_some(())?;
    String::from_utf8(read_bounded(std::fs::File::from(fd), longest).ok()?).ok()
}

/// What travels to the thread that hashes.
const CHUNK: usize = 256 << 10;

impl Store {
    /// An empty tree.
    pub fn begin_site(&self) -> Result<Site> {
        let temporary = self.temporary()?;
        let rootfs = temporary.make_rootfs()?;
        Ok(Site { temporary, rootfs })
    }

    /// Makes a layer of a tree that is whole. As for any tree that was made here, its name is the digest of the archive
    /// that it packs to. `source` is what it says it was made from.
    pub fn finish_site(&self, site: Site, source: &str) -> Result<Layer> {
        let tree = Stack::plain(tree::open(&site.rootfs, ".", LIST, STRAIGHT)?);
        let (digest, packed) = thread::scope(|scope| {
            let (full, chunks) = sync_channel::<Vec<u8>>(8);
            let hashing = scope.spawn(move || {
                let mut hash = Sha256::new();
                chunks.iter().for_each(|chunk| hash.update(&chunk));
                Digest::from_state(hash)
            });
            let mut archive = Archive::new(Chunks { full, chunk: Vec::with_capacity(CHUNK) });
            let packed = archive.tree(&tree, Manner::default(), &mut |_| {}).context("reading what was built")?;
            archive.finish()?.flush()?;
            let digest = hashing.join().map_err(|_| error("hashing it failed"))?;
            Ok::<_, lazaret_base::Error>((digest, packed))
        })?;
        let unpacked =
            Unpacked { entries: packed.entries, bytes: packed.bytes, unified: false, warnings: packed.warnings };
        let made = Made { source: source.to_owned(), archive_size: None, unpacked };
        self.finish(site.temporary, &site.rootfs, LayerId::Archive(digest), made)
    }
}

/// Hands what is written to another thread.
struct Chunks {
    full: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..n]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        self.full.send(chunk).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

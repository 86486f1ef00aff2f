//! Whether a layer still is what it was when it was made.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use lazaret_base::{Context, Result, error, read_bounded, write_atomic};
use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use sha2::{Digest as _, Sha256};

use crate::tree::{self, LIST, Ladder, STRAIGHT, Spot};
use crate::unpack::full;
use crate::{Digest, LayerId, Progress, Store};

/// What came of a look at all files of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Files, directories and so on.
    pub entries: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// The digest of all names, contents and attributes.
    pub digest: Digest,
    /// Whether there was an earlier digest to compare with.
    pub compared: bool,
    /// What is not as it should be, a sentence each.
    pub faults: Vec<String>,
}

/// Beside the tree: what it was when it was last found sound.
const SEAL: &str = "tree.sha256";

impl Store {
    /// Reads all of a layer and compares it with what it was.
    ///
    /// Two things tell. Nothing writes to a layer after it was made, and nobody can set a file's change time
    /// (inode(7)), so a file that was changed since is found at once. What a disk has spoilt is found by the digest of
    /// the whole tree, which is kept when it is first computed, by the first call of this: what a pull has unpacked was
    /// verified as an archive, and to read all of it once more would cost as much again.
    pub fn verify(&self, id: &LayerId, progress: &mut dyn FnMut(Progress)) -> Result<Verified> {
        let layer = self.layer(id)?;
        let verifying = || format!("verifying `{}`", layer.source);
        let root = fs::open(&layer.rootfs, LIST, Mode::empty()).with_context(verifying)?;
        let mut reader = Reader::new(root, progress)?;
        // A second for clocks that are read from a file system and from the system.
        reader.latest = Some(i64::try_from(layer.created).unwrap_or(i64::MAX).saturating_add(1));
        if matches!(id, LayerId::Directory(_)) {
            reader.latest = None;
        }
        reader.run().with_context(verifying)?;
        let digest = Digest::from_state(std::mem::take(&mut reader.hash));
        let (entries, bytes, mut faults) = (reader.entries, reader.bytes, std::mem::take(&mut reader.faults));
        let seal = layer.rootfs.with_file_name(SEAL);
        let sealed = match id {
            LayerId::Directory(_) => None,
            _ => File::open(&seal).ok().and_then(|file| read_bounded(file, 100).ok()),
        };
        let sealed =
            sealed.and_then(|bytes| String::from_utf8(bytes).ok()).and_then(|text| Digest::from_hex(&text).ok());
        match sealed {
            Some(before) if before != digest => {
                faults.push(format!("its content has the digest {}, but had {}", digest.hex(), before.hex()));
            }
            None if faults.is_empty() && !matches!(id, LayerId::Directory(_)) => {
                write_atomic(&seal, digest.hex().as_bytes()).map_err(full)?;
            }
            _ => {}
        }
        Ok(Verified { entries, bytes, digest, compared: sealed.is_some(), faults })
    }
}

/// More are only counted.
const MOST_FAULTS: usize = 20;

struct Reader<'a> {
    ladder: Ladder,
    /// The path of the directory at hand.
    path: Vec<Vec<u8>>,
    hash: Sha256,
    entries: u64,
    bytes: u64,
    faults: Vec<String>,
    /// No change time is later.
    latest: Option<i64>,
    progress: &'a mut dyn FnMut(Progress),
}

impl<'a> Reader<'a> {
    fn new(root: std::os::fd::OwnedFd, progress: &'a mut dyn FnMut(Progress)) -> Result<Reader<'a>> {
        let (ladder, hash, faults) = (Ladder::new(root)?, Sha256::new(), Vec::new());
        Ok(Reader { ladder, path: Vec::new(), hash, entries: 0, bytes: 0, faults, latest: None, progress })
    }

    fn run(&mut self) -> Result<()> {
        let stat = fs::fstat(self.ladder.fd())?;
        self.describe(b".", &stat, None)?;
        let mut left = vec![names(self.ladder.fd())?];
        while let Some(names_left) = left.last_mut() {
            let Some(name) = names_left.pop() else {
                left.pop();
                self.path.pop();
                self.ladder.ascend()?;
                self.hash.update(b"\0up");
                continue;
            };
            let stat = tree::stat(self.ladder.fd(), &*name)?;
            self.describe(name.to_bytes(), &stat, Some(&name))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let inner = tree::open(self.ladder.fd(), &*name, LIST, STRAIGHT)?;
                    self.ladder.descend(inner)?;
                    self.path.push(name.to_bytes().to_vec());
                    left.push(names(self.ladder.fd())?);
                }
                FileType::RegularFile => self.content(&name)?,
                FileType::Symlink => {
                    let target = fs::readlinkat(self.ladder.fd(), &*name, Vec::new())?;
                    self.field(target.to_bytes());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn describe(&mut self, name: &[u8], stat: &Stat, named: Option<&std::ffi::CStr>) -> Result<()> {
        self.entries += 1;
        if self.latest.is_some_and(|latest| stat.st_ctime > latest) {
            let place = [&self.path.join(&b'/')[..], name].join(&b'/');
            let sentence =
                format!("`{}` was changed after the image was made", String::from_utf8_lossy(&place).escape_debug());
            if self.faults.len() < MOST_FAULTS {
                self.faults.push(sentence);
            }
        }
        self.field(name);
        let device = if FileType::from_raw_mode(stat.st_mode).is_file() { 0 } else { stat.st_rdev };
        let numbers = [
            u64::from(stat.st_mode),
            u64::from(stat.st_uid),
            u64::from(stat.st_gid),
            device,
            stat.st_mtime as u64,
            stat.st_mtime_nsec,
        ];
        numbers.iter().for_each(|number| self.hash.update(number.to_le_bytes()));
        let spot = match named {
            Some(name) => Spot::Named(self.ladder.fd(), name),
            None => Spot::Open(self.ladder.fd()),
        };
        let mut xattrs = spot.xattrs()?;
        xattrs.sort();
        // Labels of the host's are none of the image's business.
        xattrs.retain(|(name, _)| !name.starts_with(b"security.") || name == crate::capability::NAME.as_bytes());
        self.hash.update((xattrs.len() as u64).to_le_bytes());
        for (name, value) in xattrs {
            self.field(&name);
            self.field(&value);
        }
        Ok(())
    }

    fn content(&mut self, name: &std::ffi::CStr) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let reading = || format!("reading `{}`", name.to_string_lossy());
        let mut file = File::from(tree::open(self.ladder.fd(), name, flags, STRAIGHT).with_context(reading)?);
        let mut buffer = vec![0; 128 << 10];
        let mut length = 0u64;
        loop {
            let n = match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(error(lazaret_base::Error::from(e).to_string())).with_context(reading),
            };
            self.hash.update(&buffer[..n]);
            length += n as u64;
        }
        self.hash.update(length.to_le_bytes());
        self.bytes += length;
        (self.progress)(Progress::written(self.entries, self.bytes));
        Ok(())
    }

    /// A text that can't run into the next.
    fn field(&mut self, bytes: &[u8]) {
        self.hash.update((bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
    }
}

/// The names in a directory, in an order that is always the same; the last is taken first.
fn names(dir: BorrowedFd<'_>) -> Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    tree::list(dir, |entry| {
        names.push(entry.file_name().to_owned());
        Ok(())
    })?;
    names.sort_by(|a, b| b.cmp(a));
    Ok(names)
}

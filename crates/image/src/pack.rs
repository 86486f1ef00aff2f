//! Trees become a tar archive: pax headers for what ustar can't say, the reverse of [`crate::unpack()`].
//!
//! The same tree gives the same bytes, whatever the time and the machine: names are in the order of their bytes, and
//! nothing is written that is not in the tree.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Result, error};
use rustix::fs::{self, FileType, SeekFrom, Stat};
use rustix::io::Errno;

use crate::acl::{self, Acl};
use crate::shift::{shifted, shifted_xattrs};
use crate::stack::{Node, OPAQUE, Stack, Visitor};
use crate::unpack::full;
use crate::{Progress, capability};

const BLOCK: usize = 512;
/// A file of fewer bytes is stored with its holes.
const SPARSE_FROM: u64 = 64 << 10;
/// The last name of files that a layer of an OCI image can't hold: there it means that something is removed.
const OCI_MARK: &[u8] = b".wh.";

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Files, directories, links and so on.
    pub entries: u64,
    /// Bytes of file content, holes not counted.
    pub bytes: u64,
    /// What could not be kept, a sentence each.
    pub warnings: Vec<String>,
}

/// How a tree goes into an archive.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner<'a> {
    /// What its names begin with, without a slash at the end; empty for none.
    pub prefix: &'a str,
    /// What is added to every user and group id.
    pub shift: i64,
    /// Whether it is to be a layer of an OCI image.
    pub oci: bool,
}

/// An archive that is being written.
pub struct Archive<W> {
    out: W,
}

impl<W: Write> Archive<W> {
    /// Begins one.
    pub fn new(out: W) -> Archive<W> {
        Archive { out }
    }

    /// A regular file of root's, mode 0644.
    pub fn file(&mut self, name: &str, modified: u64, bytes: &[u8]) -> Result<()> {
        let mut header = Header::new(name.as_bytes(), b'0');
        header.mode = 0o644;
        header.size = bytes.len() as u64;
        header.modified = (modified as i64, 0);
        self.write(&header.to_bytes()?)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// A directory of root's, mode 0755.
    pub fn directory(&mut self, name: &str, modified: u64) -> Result<()> {
        let mut header = Header::new(format!("{name}/").as_bytes(), b'5');
        header.mode = 0o755;
        header.modified = (modified as i64, 0);
        self.write(&header.to_bytes()?)
    }

    /// All of a tree: what [`crate::unpack()`] keeps. Sockets are left out, with a warning.
    pub fn tree(&mut self, tree: &Stack, manner: Manner<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Packed> {
        let mut packing = Packing { archive: self, manner, links: HashMap::new(), done: Packed::default(), progress };
        tree.walk(&mut packing).context("packing")?;
        Ok(packing.done)
    }

    /// The end mark. What was written to comes back.
    pub fn finish(mut self) -> Result<W> {
        self.write(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(Into::into).map_err(full).context("writing the archive")
    }

    /// Room for the header of a file whose size is not known yet; its content is written past the archive.
    pub(crate) fn placeholder(&mut self) -> Result<()> {
        self.write(&[0; Placeholder::LENGTH])
    }

    /// What fills the last block of a file of this size.
    pub(crate) fn pad(&mut self, size: u64) -> Result<()> {
        let padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
        self.write(&[0; BLOCK][..padding])
    }
}

/// A header of a fixed length, whatever the size it tells of.
pub(crate) struct Placeholder<'a> {
    pub name: &'a str,
    pub modified: u64,
    pub size: u64,
}

impl Placeholder<'_> {
    const LENGTH: usize = 3 * BLOCK;

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut header = Header::new(self.name.as_bytes(), b'0');
        (header.mode, header.size, header.modified) = (0o644, self.size, (self.modified as i64, 0));
        // Always with records, so that there is room for a large size.
        record(&mut header.records, b"comment", b"blob");
        let bytes = header.to_bytes()?;
        match bytes.len() == Self::LENGTH {
            true => Ok(bytes),
            false => Err(error("a header of a blob is longer than the room for it")),
        }
    }
}

struct Packing<'p, W> {
    archive: &'p mut Archive<W>,
    manner: Manner<'p>,
    /// The first name of each file that has several, by layer and inode.
    links: HashMap<(usize, u64), Vec<u8>>,
    done: Packed,
    progress: &'p mut dyn FnMut(Progress),
}

impl<W: Write> Visitor for Packing<'_, W> {
    fn enter(&mut self, node: &Node<'_>) -> Result<()> {
        let mut name = self.name(node.path);
        name.push(b'/');
        let mut header = self.describe(node, &name, b'5')?;
        if node.opaque {
            header.xattr(OPAQUE.as_bytes(), b"y");
        }
        self.archive.write(&header.to_bytes()?)?;
        self.count();
        Ok(())
    }

    fn leaf(&mut self, node: &Node<'_>) -> Result<()> {
        if self.manner.oci && node.name.to_bytes().starts_with(OCI_MARK) {
            self.warn(node, "means something else in an OCI image");
            return Ok(());
        }
        let name = self.name(node.path);
        if node.stat.st_nlink > 1 && !node.is_whiteout() {
            let inode = (node.layer, node.stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let mut header = self.describe(node, &name, b'1')?;
                header.target = first.clone();
                self.archive.write(&header.to_bytes()?)?;
                self.count();
                return Ok(());
            }
            self.links.insert(inode, name.clone());
        }
        match node.kind() {
            FileType::RegularFile => self.file(node, &name)?,
            FileType::Symlink => {
                let mut header = self.describe(node, &name, b'2')?;
                header.target = node.target()?.into_bytes();
                self.archive.write(&header.to_bytes()?)?;
            }
            FileType::Socket => {
                self.warn(node, "is a socket");
                return Ok(());
            }
            kind => {
                let letter = match kind {
                    FileType::CharacterDevice => b'3',
                    FileType::BlockDevice => b'4',
                    _ => b'6',
                };
                let mut header = self.describe(node, &name, letter)?;
                header.device = (fs::major(node.stat.st_rdev), fs::minor(node.stat.st_rdev));
                self.archive.write(&header.to_bytes()?)?;
            }
        }
        self.count();
        Ok(())
    }

    fn leave(&mut self, _: &Node<'_>) -> Result<()> {
        Ok(())
    }
}

impl<W: Write> Packing<'_, W> {
    /// What a path of the tree is called in the archive.
    fn name(&self, path: &[u8]) -> Vec<u8> {
        match (self.manner.prefix, path) {
            ("", b"") => b".".to_vec(),
            ("", path) => path.to_vec(),
            (prefix, b"") => prefix.as_bytes().to_vec(),
            (prefix, path) => [prefix.as_bytes(), path].join(&b'/'),
        }
    }

    fn warn(&mut self, node: &Node<'_>, what: &str) {
        self.done.warnings.push(format!("`{}` {what}: left out", String::from_utf8_lossy(node.path)));
    }

    fn count(&mut self) {
        self.done.entries += 1;
        (self.progress)(Progress::written(self.done.entries, self.done.bytes));
    }

    fn describe(&self, node: &Node<'_>, name: &[u8], kind: u8) -> Result<Header> {
        let stat = &node.stat;
        let mut header = Header::new(name, kind);
        header.mode = stat.st_mode & 0o7777;
        header.uid = shifted(stat.st_uid, self.manner.shift)?;
        header.gid = shifted(stat.st_gid, self.manner.shift)?;
        header.modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
        // A hard link is the file it names, attributes and all.
        if kind != b'1' {
            for (name, value) in shifted_xattrs(node.xattrs()?, self.manner.shift)? {
                header.attribute(&name, &value)?;
            }
        }
        Ok(header)
    }

    fn file(&mut self, node: &Node<'_>, name: &[u8]) -> Result<()> {
        let file = node.open()?;
        let size = node.stat.st_size as u64;
        let mut header = self.describe(node, name, b'0')?;
        let extents = if has_holes(&node.stat) { extents(&file, size)? } else { vec![(0, size)] };
        let data: u64 = extents.iter().map(|(_, length)| length).sum();
        if data == size {
            header.size = size;
            self.archive.write(&header.to_bytes()?)?;
        } else {
            let map = sparse_map(&extents);
            header.sparse(name, size, map.len() as u64 + data);
            self.archive.write(&header.to_bytes()?)?;
            self.archive.write(&map)?;
        }
        for (offset, length) in extents {
            self.content(&file, offset, length)?;
        }
        // The map fills whole blocks.
        self.archive.pad(data)
    }

    fn content(&mut self, file: &File, offset: u64, length: u64) -> Result<()> {
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(256 << 10)];
        let mut at = 0;
        while at < length {
            let most = usize::try_from(length - at).unwrap_or(usize::MAX).min(buffer.len());
            let n = match file.read_at(&mut buffer[..most], offset + at) {
                Ok(0) => return Err(error("it changed while it was read")),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.into()),
            };
            self.archive.write(&buffer[..n])?;
            at += n as u64;
            self.done.bytes += n as u64;
            (self.progress)(Progress::written(self.done.entries, self.done.bytes));
        }
        Ok(())
    }
}

fn has_holes(stat: &Stat) -> bool {
    stat.st_size as u64 >= SPARSE_FROM && (stat.st_blocks as u64) * 512 < stat.st_size as u64
}

/// Where a file holds data: offsets and lengths. One that ends in a hole ends in an extent without length, as GNU tar
/// writes it.
fn extents(file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let hole = fs::seek(file, SeekFrom::Hole(data))?.min(size);
        extents.push((data, hole - data));
        at = hole;
    }
    if extents.last().is_none_or(|(offset, length)| offset + length < size) {
        extents.push((size, 0));
    }
    Ok(extents)
}

/// The map before the data of a sparse file in pax format 1.0 (the GNU tar manual, "PAX Format, Version 1.0").
fn sparse_map(extents: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len());
    for (offset, length) in extents {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

/// One member's header: what fits into the fields of ustar stands there, the rest in pax records.
struct Header {
    name: Vec<u8>,
    kind: u8,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Seconds since 1970, and nanoseconds after that.
    modified: (i64, i64),
    target: Vec<u8>,
    device: (u32, u32),
    records: Vec<u8>,
}

impl Header {
    fn new(name: &[u8], kind: u8) -> Header {
        Header {
            name: name.to_vec(),
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (0, 0),
            target: Vec::new(),
            device: (0, 0),
            records: Vec::new(),
        }
    }

    /// An extended attribute. Access lists stand there twice: as text for other programs, and as the kernel has them.
    fn attribute(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let text = match std::str::from_utf8(name) {
            Ok(acl::ACCESS) => Some("SCHILY.acl.access"),
            Ok(acl::DEFAULT) => Some("SCHILY.acl.default"),
            _ => None,
        };
        if let Some(key) = text {
            record(&mut self.records, key.as_bytes(), Acl::from_bytes(value)?.to_text().as_bytes());
        }
        match name == capability::NAME.as_bytes() {
            true => self.xattr(name, &capability::plain(value)),
            false => self.xattr(name, value),
        }
        Ok(())
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => key.extend(b"%3D"),
                b'%' => key.extend(b"%25"),
                byte => key.push(*byte),
            }
        }
        record(&mut self.records, &key, value);
    }

    fn sparse(&mut self, name: &[u8], size: u64, stored: u64) {
        record(&mut self.records, b"GNU.sparse.major", b"1");
        record(&mut self.records, b"GNU.sparse.minor", b"0");
        record(&mut self.records, b"GNU.sparse.name", name);
        record(&mut self.records, b"GNU.sparse.realsize", size.to_string().as_bytes());
        self.size = stored;
    }

    /// The header block, with its pax header before it if it needs one.
    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut records = self.records.clone();
        let mut block = [0u8; BLOCK];
        text(&mut block, 0, 100, b"path", &self.name, &mut records);
        text(&mut block, 157, 100, b"linkpath", &self.target, &mut records);
        octal(&mut block, 100, 8, self.mode.into());
        number(&mut block, 108, 8, b"uid", self.uid.into(), &mut records);
        number(&mut block, 116, 8, b"gid", self.gid.into(), &mut records);
        number(&mut block, 124, 12, b"size", self.size, &mut records);
        let (seconds, nanoseconds) = self.modified;
        let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds < 1 << 33);
        octal(&mut block, 136, 12, whole.unwrap_or(0));
        if whole.is_none() || nanoseconds != 0 {
            record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
        }
        block[156] = self.kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        if matches!(self.kind, b'3' | b'4') {
            octal(&mut block, 329, 8, self.device.0.into());
            octal(&mut block, 337, 8, self.device.1.into());
        }
        let mut bytes = Vec::with_capacity(BLOCK);
        if !records.is_empty() {
            bytes = self.extension(&records);
        }
        check_sum(&mut block);
        bytes.extend_from_slice(&block);
        Ok(bytes)
    }

    /// The pax header. Its name is for readers that know none.
    fn extension(&self, records: &[u8]) -> Vec<u8> {
        let mut block = [0u8; BLOCK];
        let mut name = b"PaxHeaders/".to_vec();
        let (_, last) = crate::tree::split(self.name.strip_suffix(b"/").unwrap_or(&self.name));
        name.extend_from_slice(&last[..last.len().min(80)]);
        block[..name.len()].copy_from_slice(&name);
        octal(&mut block, 100, 8, 0o644);
        octal(&mut block, 108, 8, 0);
        octal(&mut block, 116, 8, 0);
        octal(&mut block, 124, 12, records.len() as u64);
        octal(&mut block, 136, 12, 0);
        block[156] = b'x';
        block[257..265].copy_from_slice(b"ustar\x0000");
        check_sum(&mut block);
        let mut bytes = block.to_vec();
        bytes.extend_from_slice(records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend(length.to_string().bytes().chain([b' ']));
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A text field; what does not fit stands in a record, and its beginning here.
fn text(block: &mut [u8; BLOCK], at: usize, length: usize, key: &[u8], value: &[u8], records: &mut Vec<u8>) {
    let fits = value.len().min(length);
    block[at..at + fits].copy_from_slice(&value[..fits]);
    if value.len() > length {
        record(records, key, value);
    }
}

/// A number field; what does not fit stands in a record.
fn number(block: &mut [u8; BLOCK], at: usize, length: usize, key: &[u8], value: u64, records: &mut Vec<u8>) {
    let fits = value < 1 << (3 * (length - 1));
    octal(block, at, length, if fits { value } else { 0 });
    if !fits {
        record(records, key, value.to_string().as_bytes());
    }
}

fn octal(block: &mut [u8; BLOCK], at: usize, length: usize, value: u64) {
    let digits = format!("{value:0width$o}", width = length - 1);
    block[at..at + length - 1].copy_from_slice(digits.as_bytes());
}

fn check_sum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// As pax has it: the fraction of a negative time counts down.
fn time(seconds: i64, nanoseconds: i64) -> String {
    let (sign, whole, fraction) = match (seconds, nanoseconds) {
        (seconds, 0) => return seconds.to_string(),
        (seconds @ ..0, nanoseconds) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        (seconds, nanoseconds) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    format!("{sign}{whole}.{fraction:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for (value, expected) in [("", "6 k=\n"), ("x", "7 k=x\n"), ("xxxx", "10 k=xxxx\n"), ("xxxxx", "12 k=xxxxx\n")]
        {
            let mut records = Vec::new();
            record(&mut records, b"k", value.as_bytes());
            let length = records.len();
            let text = String::from_utf8(records).unwrap();
            assert!(text.starts_with(&format!("{length} ")), "{text:?} has {length} bytes");
            assert_eq!(text.split_once(' ').unwrap().1, expected.split_once(' ').unwrap().1);
        }
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        assert_eq!(time(5, 0), "5");
        assert_eq!(time(1_700_000_000, 123_456_789), "1700000000.123456789");
        assert_eq!(time(-1, 750_000_000), "-0.250000000");
        assert_eq!(time(-2, 0), "-2");
        assert_eq!(time(-2, 1), "-1.999999999");
    }
}

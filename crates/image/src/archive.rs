//! The entries of a tar archive: ustar, pax and GNU headers (tar(5), POSIX pax, the GNU tar manual).
//!
//! Nothing is unpacked here. Every number is checked before it is believed.

use rustix::fs::Timespec;

use lazaret_base::{Context, Result, error};

use crate::Limits;
use crate::stream::Stream;

const BLOCK: usize = 512;
/// An extension header holds names and extended attributes, each of which the kernel limits to 64 KiB.
const EXTENSION_LIMIT: u64 = 8 << 20;
/// Holes of one file. A map as long as this describes a file in pieces for more than a terabyte.
const HOLES_LIMIT: usize = 4 << 20;

/// The fields of a header block by offset and length (tar(5)).
mod field {
    pub type Field = (usize, usize);
    pub const NAME: Field = (0, 100);
    pub const MODE: Field = (100, 8);
    pub const UID: Field = (108, 8);
    pub const GID: Field = (116, 8);
    pub const SIZE: Field = (124, 12);
    pub const MTIME: Field = (136, 12);
    pub const CHECKSUM: Field = (148, 8);
    pub const TYPE: usize = 156;
    pub const LINK: Field = (157, 100);
    pub const MAGIC: Field = (257, 6);
    pub const MAJOR: Field = (329, 8);
    pub const MINOR: Field = (337, 8);
    pub const PREFIX: Field = (345, 155);
    /// Old GNU sparse: four holes of 24 bytes, then whether more follow, then the size with holes.
    pub const GNU_SPARSE: Field = (386, 96);
    pub const GNU_MORE: usize = 482;
    pub const GNU_REAL_SIZE: Field = (483, 12);
    /// A block that continues the map: 21 holes, then whether more follow.
    pub const MORE_SPARSE: Field = (0, 504);
    pub const MORE_MORE: usize = 504;
}
use field::Field;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Hardlink,
    Symlink,
    Character,
    Block,
    Directory,
    Fifo,
    /// Nothing that a file system holds; the type as it stands in the header.
    Other(u8),
}

/// An extent of a sparse file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub length: u64,
}

/// A file with holes: its extents in ascending order, and its size with the holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sparse {
    pub size: u64,
    pub extents: Vec<Extent>,
}

/// One member of an archive, as its headers describe it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub number: u64,
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timespec,
    /// Of a link.
    pub target: Vec<u8>,
    /// Major and minor.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// As text (acl(5)).
    pub acl: Option<Vec<u8>>,
    pub default_acl: Option<Vec<u8>>,
    pub sparse: Option<Sparse>,
}

/// An archive that is being read.
pub(crate) struct Archive<'s, 'a> {
    stream: &'s mut Stream<'a>,
    limits: &'s Limits,
    number: u64,
    last: String,
    /// Data of the current entry not yet read.
    left: u64,
    /// What fills its last block.
    padding: u64,
    globals: Records,
}

impl<'s, 'a> Archive<'s, 'a> {
    pub(crate) fn new(stream: &'s mut Stream<'a>, limits: &'s Limits) -> Self {
        let globals = Records::default();
        Archive { stream, limits, number: 0, last: String::new(), left: 0, padding: 0, globals }
    }

    /// How many entries came by.
    pub(crate) fn count(&self) -> u64 {
        self.number
    }

    /// Where the current entry's data begin, in plain bytes, as long as none were read.
    pub(crate) fn position(&self) -> u64 {
        self.stream.position()
    }

    /// How many bytes of the current entry's data are still to be read.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// How many bytes of the file were read.
    pub(crate) fn taken(&self) -> u64 {
        self.stream.taken()
    }

    /// The next entry; what is left of the one before is skipped. `None` at the end mark, after which there
    /// may be nothing but zeros.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.skip().with_context(|| format!("reading entry {} (`{}`)", self.number, self.last))?;
        let place = match self.number {
            0 => "reading the first entry".to_owned(),
            n => format!("reading after entry {n} (`{}`)", self.last),
        };
        let entry = self.headers().context(place)?;
        if let Some(entry) = &entry {
            self.last = String::from_utf8_lossy(&entry.path).into_owned();
        }
        Ok(entry)
    }

    /// The next bytes of the current entry's data, at most `most`; empty at its end.
    pub(crate) fn peek(&mut self, most: u64) -> Result<&[u8]> {
        let most = usize::try_from(self.left.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let bytes = self.stream.peek()?;
        if bytes.is_empty() {
            return Err(truncated());
        }
        Ok(&bytes[..bytes.len().min(most)])
    }

    /// Takes `n` bytes of what [`Archive::peek`] showed.
    pub(crate) fn consume(&mut self, n: usize) {
        self.left -= n as u64;
        self.stream.consume(n);
    }

    /// Takes the whole content of an entry; `None`, and nothing is taken, if there are more than `most` bytes.
    pub(crate) fn content(&mut self, most: u64) -> Result<Option<Vec<u8>>> {
        if self.left > most {
            return Ok(None);
        }
        let mut content = Vec::new();
        loop {
            let piece = self.peek(u64::MAX)?;
            let n = piece.len();
            if n == 0 {
                return Ok(Some(content));
            }
            content.extend_from_slice(piece);
            self.consume(n);
        }
    }

    fn skip(&mut self) -> Result<()> {
        self.left += std::mem::take(&mut self.padding);
        loop {
            let n = self.peek(u64::MAX)?.len();
            if n == 0 {
                return Ok(());
            }
            self.consume(n);
        }
    }

    fn headers(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let mut extended = false;
        loop {
            let Some(block) = self.block()? else {
                let e = error("the archive is truncated: it has no end mark");
                return Err(if self.number == 0 { error("not a tar archive") } else { e });
            };
            if block.iter().all(|byte| *byte == 0) {
                if extended {
                    return Err(error("an extension header without its entry"));
                }
                return self.end().map(|()| None);
            }
            check_sum(&block, self.number == 0)?;
            let size = number(&block, field::SIZE).and_then(natural).context("the size")?;
            let kind = block[field::TYPE];
            extended = kind != b'g';
            match kind {
                b'x' | b'X' => records.add(&self.extension(size)?)?,
                b'g' => {
                    let bytes = self.extension(size)?;
                    self.globals.add(&bytes)?;
                }
                b'L' => records.long_name = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => records.long_link = Some(until_nul(&self.extension(size)?).to_vec()),
                _ => return self.entry(&block, size, records).map(Some),
            }
        }
    }

    fn entry(&mut self, block: &[u8; BLOCK], size: u64, records: Records) -> Result<Entry> {
        self.number += 1;
        if self.number > self.limits.entries {
            return Err(error(format!("the archive holds more than the limit of {} entries", self.limits.entries)));
        }
        let globals = std::mem::take(&mut self.globals);
        let both = Both { own: &records, globals: &globals };
        let path = path_of(block, &both);
        let entry = self
            .describe(block, size, path, &both)
            .with_context(|| format!("entry {} (`{}`)", self.number, lossy(&path_of(block, &both))));
        self.globals = globals;
        entry
    }

    fn describe(&mut self, block: &[u8; BLOCK], size: u64, path: Vec<u8>, records: &Both<'_>) -> Result<Entry> {
        let kind = kind_of(block, &path);
        let size = match kind {
            // Only these have data; others may state the size of what they stand for.
            Kind::File | Kind::Other(_) => records.natural("size")?.unwrap_or(size),
            Kind::Directory if block[field::TYPE] == b'D' => size,
            _ => 0,
        };
        let room = self.limits.bytes.saturating_sub(self.stream.position()).min(i64::MAX as u64);
        if size > room {
            let sentence =
                format!("it claims {size} bytes; the limit of {} for the archive leaves {room}", self.limits.bytes);
            return Err(error(sentence));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let target = match records.text("linkpath").or(records.own.long_link.as_deref()) {
            Some(target) => target.to_vec(),
            None => until_nul(part(block, field::LINK)).to_vec(),
        };
        for (what, name) in [("its path", &path), ("its link target", &target)] {
            if name.len() > self.limits.path {
                return Err(error(format!("{what} is longer than the limit of {} bytes", self.limits.path)));
            }
        }
        let id = |key: &str, place: Field| -> Result<u32> {
            let id = records.natural(key)?.map_or_else(|| number(block, place).and_then(natural), Ok).context(key)?;
            // chown(2) takes the highest value for "unchanged".
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| error(format!("the {key} {id} is too large")))
        };
        let (uid, gid) = (id("uid", field::UID)?, id("gid", field::GID)?);
        let mtime = match records.text("mtime") {
            Some(text) => time(text)?,
            None => Timespec { tv_sec: number(block, field::MTIME).context("mtime")?, tv_nsec: 0 },
        };
        let sparse = if kind == Kind::File { self.sparse(block, records)? } else { None };
        Ok(Entry {
            number: self.number,
            path,
            kind,
            mode: (number(block, field::MODE).context("the mode")? & 0o7777) as u32,
            uid,
            gid,
            mtime,
            target,
            device: device(block, kind, records)?,
            xattrs: records.xattrs(),
            acl: records.text("SCHILY.acl.access").map(<[u8]>::to_vec),
            default_acl: records.text("SCHILY.acl.default").map(<[u8]>::to_vec),
            sparse,
        })
    }

    /// The map of a file with holes, in whichever of the four ways it is told.
    fn sparse(&mut self, block: &[u8; BLOCK], records: &Both<'_>) -> Result<Option<Sparse>> {
        let sparse = if block[field::TYPE] == b'S' {
            self.old_gnu_map(block)?
        } else if records.text("GNU.sparse.major").is_some() {
            let (major, minor) = (records.natural("GNU.sparse.major")?, records.natural("GNU.sparse.minor")?);
            if (major, minor.unwrap_or(0)) != (Some(1), 0) {
                return Err(error("a sparse file of an unknown format"));
            }
            let size = records.natural("GNU.sparse.realsize")?;
            Sparse { size: size.ok_or_else(|| error("a sparse file without its size"))?, extents: self.map_in_data()? }
        } else if let Some(size) = records.natural("GNU.sparse.size")? {
            Sparse { size, extents: records.extents()? }
        } else {
            return Ok(None);
        };
        check_map(&sparse, self.left)?;
        Ok(Some(sparse))
    }

    fn old_gnu_map(&mut self, block: &[u8; BLOCK]) -> Result<Sparse> {
        let size = number(block, field::GNU_REAL_SIZE).and_then(natural).context("the size of a sparse file")?;
        let mut extents = Vec::new();
        let mut more = block[field::GNU_MORE] != 0;
        add_extents(part(block, field::GNU_SPARSE), &mut extents)?;
        while more {
            let next = self.block()?.ok_or_else(truncated)?;
            add_extents(part(&next, field::MORE_SPARSE), &mut extents)?;
            more = next[field::MORE_MORE] != 0;
        }
        Ok(Sparse { size, extents })
    }

    /// GNU sparse format 1.0: decimal numbers, one per line, fill whole blocks before the data.
    fn map_in_data(&mut self) -> Result<Vec<Extent>> {
        let mut numbers = Decimals::default();
        let mut wanted = 1;
        while numbers.found.len() < wanted {
            if self.left < BLOCK as u64 {
                return Err(error("the map of a sparse file is longer than its data"));
            }
            let block = self.block()?.ok_or_else(truncated)?;
            self.left -= BLOCK as u64;
            for byte in block {
                numbers.push(byte)?;
                if let Some(count) = numbers.found.first() {
                    let count = usize::try_from(*count).ok().filter(|n| *n <= HOLES_LIMIT);
                    wanted = 1 + 2 * count.ok_or_else(too_many_holes)?;
                }
                if numbers.found.len() == wanted {
                    break;
                }
            }
        }
        Ok(numbers.found[1..].chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > EXTENSION_LIMIT {
            return Err(error(format!("an extension header of {size} bytes; the limit is {EXTENSION_LIMIT}")));
        }
        let whole = size.next_multiple_of(BLOCK as u64) as usize;
        let mut bytes = Vec::new();
        while bytes.len() < whole {
            let block = self.block()?.ok_or_else(truncated)?;
            bytes.extend_from_slice(&block);
        }
        bytes.truncate(size as usize);
        Ok(bytes)
    }

    /// One block; `None` if the archive ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            let bytes = self.stream.peek()?;
            if bytes.is_empty() {
                return if at == 0 { Ok(None) } else { Err(truncated()) };
            }
            let n = bytes.len().min(BLOCK - at);
            block[at..at + n].copy_from_slice(&bytes[..n]);
            self.stream.consume(n);
            at += n;
        }
        Ok(Some(block))
    }

    /// Reads on to the end of the file, so that its checksums are verified too.
    fn end(&mut self) -> Result<()> {
        loop {
            let bytes = self.stream.peek()?;
            if bytes.is_empty() {
                return Ok(());
            }
            if bytes.iter().any(|byte| *byte != 0) {
                return Err(error("there is data behind the end of the archive"));
            }
            let n = bytes.len();
            self.stream.consume(n);
        }
    }
}

/// The regular files at the beginning of an archive, by name, as long as they are among those that are wanted.
///
/// Nothing after them is read. Longer ones than `most` bytes are refused.
pub fn leading_files(
    reader: impl std::io::Read + Send,
    wanted: &[&str],
    most: u64,
) -> Result<std::collections::HashMap<String, Vec<u8>>> {
    let limits = Limits::default();
    crate::stream::beginning(reader, &limits, |stream| {
        let mut archive = Archive::new(stream, &limits);
        let mut files = std::collections::HashMap::new();
        while let Some(entry) = archive.next()? {
            let Some(name) = wanted.iter().find(|name| name.as_bytes() == entry.path) else { break };
            let content = if entry.kind == Kind::File { archive.content(most)? } else { None };
            let content = content.ok_or_else(|| error(format!("`{name}` is no file of at most {most} bytes")))?;
            files.insert((*name).to_owned(), content);
        }
        Ok(files)
    })
}

fn truncated() -> lazaret_base::Error {
    error("the archive is truncated")
}

fn too_many_holes() -> lazaret_base::Error {
    error(format!("a sparse file of more than {HOLES_LIMIT} pieces"))
}

fn part(block: &[u8], (at, length): Field) -> &[u8] {
    &block[at..at + length]
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The sum of all bytes, the field itself taken as spaces. Some old archivers summed signed bytes.
fn check_sum(block: &[u8; BLOCK], first: bool) -> Result<()> {
    let (at, length) = field::CHECKSUM;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (i, byte) in block.iter().enumerate() {
        let byte = if (at..at + length).contains(&i) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    match number(block, field::CHECKSUM) {
        Ok(sum) if sum == unsigned || sum == signed => Ok(()),
        _ if first => Err(error("not a tar archive")),
        _ => Err(error("a damaged header: its checksum is wrong")),
    }
}

/// A number as octal digits, or, with the highest bit set, as big-endian two's complement (a GNU extension).
fn number(block: &[u8], place: Field) -> Result<i64> {
    let bytes = part(block, place);
    if bytes[0] & 0x80 != 0 {
        let negative = bytes[0] == 0xff;
        let first = if negative { -1 } else { i128::from(bytes[0] & 0x7f) };
        let value = bytes[1..].iter().fold(first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| error("a number is out of range"));
    }
    let text = bytes.trim_ascii_start();
    let end = text.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(text.len());
    let octal = |value: i64, byte: &u8| match byte {
        b'0'..=b'7' => Ok(value << 3 | i64::from(byte - b'0')),
        _ => Err(error(format!("`{}` is not an octal number", lossy(&text[..end])))),
    };
    text[..end].iter().try_fold(0, octal)
}

fn natural(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| error(format!("{value} is negative")))
}

fn decimal(text: &[u8]) -> Result<u64> {
    let bad = || error(format!("`{}` is not a number", lossy(text)));
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)
}

/// Seconds with a fraction of any length, as pax writes them. The fraction of a negative time counts up.
fn time(text: &[u8]) -> Result<Timespec> {
    let bad = || error(format!("`{}` is not a time", lossy(text)));
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(bad());
    }
    let mut seconds: i64 = whole.parse().map_err(|_| bad())?;
    let mut nanoseconds =
        fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, d| n * 10 + i64::from(d - b'0'));
    if whole.starts_with('-') && nanoseconds > 0 {
        seconds = seconds.checked_sub(1).ok_or_else(bad)?;
        nanoseconds = 1_000_000_000 - nanoseconds;
    }
    Ok(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}

fn path_of(block: &[u8; BLOCK], records: &Both<'_>) -> Vec<u8> {
    if let Some(path) = records.text("GNU.sparse.name").or_else(|| records.text("path")) {
        return path.to_vec();
    }
    if let Some(path) = &records.own.long_name {
        return path.clone();
    }
    let name = until_nul(part(block, field::NAME));
    let prefix = until_nul(part(block, field::PREFIX));
    // GNU headers hold other things where ustar has the prefix.
    if part(block, field::MAGIC) != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, name].join(&b'/')
}

fn kind_of(block: &[u8; BLOCK], path: &[u8]) -> Kind {
    match block[field::TYPE] {
        // Archivers before POSIX marked directories by a slash alone.
        0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    }
}

fn device(block: &[u8; BLOCK], kind: Kind, records: &Both<'_>) -> Result<(u32, u32)> {
    if !matches!(kind, Kind::Character | Kind::Block) {
        return Ok((0, 0));
    }
    let one = |key: &str, place: Field| -> Result<u32> {
        let value = records.natural(key)?.map_or_else(|| number(block, place).and_then(natural), Ok);
        u32::try_from(value.context("the device number")?).map_err(|_| error("the device number is too large"))
    };
    Ok((one("SCHILY.devmajor", field::MAJOR)?, one("SCHILY.devminor", field::MINOR)?))
}

fn add_extents(bytes: &[u8], extents: &mut Vec<Extent>) -> Result<()> {
    for pair in bytes.chunks_exact(24) {
        if pair[12] == 0 {
            break;
        }
        if extents.len() == HOLES_LIMIT {
            return Err(too_many_holes());
        }
        let [offset, length] =
            [(0, 12), (12, 12)].map(|place| number(pair, place).and_then(natural).context("the map of a sparse file"));
        extents.push(Extent { offset: offset?, length: length? });
    }
    Ok(())
}

/// Extents ascend, stay within the file and account for every byte in the archive.
fn check_map(sparse: &Sparse, stored: u64) -> Result<()> {
    let mut end = 0;
    let mut sum = 0u64;
    for extent in &sparse.extents {
        let next = extent.offset.checked_add(extent.length).filter(|next| extent.offset >= end && *next <= sparse.size);
        end = next.ok_or_else(|| error("the map of a sparse file is not in order"))?;
        sum += extent.length;
    }
    if sum != stored || i64::try_from(sparse.size).is_err() {
        return Err(error("the map of a sparse file does not fit its data"));
    }
    Ok(())
}

/// Decimal numbers that end in a newline each.
#[derive(Default)]
struct Decimals {
    found: Vec<u64>,
    current: Option<u64>,
}

impl Decimals {
    fn push(&mut self, byte: u8) -> Result<()> {
        let bad = || error("the map of a sparse file is not made of numbers");
        match byte {
            b'\n' => self.found.push(self.current.take().ok_or_else(bad)?),
            b'0'..=b'9' => {
                let tens =
                    self.current.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                self.current = Some(tens.ok_or_else(bad)?);
            }
            _ => return Err(bad()),
        }
        Ok(())
    }
}

/// The records of an extension header in order; later ones win.
#[derive(Debug, Default)]
struct Records {
    pairs: Vec<(Vec<u8>, Vec<u8>)>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Records {
    /// Each record is `LENGTH KEY=VALUE\n`, where the length counts itself: values may hold anything.
    fn add(&mut self, mut bytes: &[u8]) -> Result<()> {
        let bad = || error("a damaged extension header");
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| bad())?;
            let record = bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            self.pairs.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
            bytes = &bytes[length..];
        }
        if self.pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() as u64 > 2 * EXTENSION_LIMIT {
            return Err(error("the extension headers of one entry are too long"));
        }
        Ok(())
    }
}

/// An entry's own records before those that hold for all that follow.
struct Both<'a> {
    own: &'a Records,
    globals: &'a Records,
}

impl Both<'_> {
    fn all(&self) -> impl DoubleEndedIterator<Item = &(Vec<u8>, Vec<u8>)> {
        self.globals.pairs.iter().chain(&self.own.pairs)
    }

    /// The value of a key; an empty value takes a former one back.
    fn text(&self, key: &str) -> Option<&[u8]> {
        let (_, value) = self.all().rev().find(|(found, _)| found == key.as_bytes())?;
        Some(value.as_slice()).filter(|value| !value.is_empty())
    }

    fn natural(&self, key: &str) -> Result<Option<u64>> {
        self.text(key).map(|text| decimal(text).with_context(|| format!("the extension `{key}`"))).transpose()
    }

    fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (key, value) in self.all() {
            let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
            let name = plain_name(name);
            xattrs.retain(|(found, _)| *found != name);
            xattrs.push((name, value.clone()));
        }
        xattrs
    }

    /// Sparse formats 0.0 (a record per number) and 0.1 (one record with commas).
    fn extents(&self) -> Result<Vec<Extent>> {
        let mut numbers = Vec::new();
        if let Some(map) = self.text("GNU.sparse.map") {
            for text in map.split(|byte| *byte == b',') {
                numbers.push(decimal(text)?);
            }
        } else {
            for (key, value) in self.all() {
                if matches!(key.as_slice(), b"GNU.sparse.offset" | b"GNU.sparse.numbytes") {
                    numbers.push(decimal(value)?);
                }
            }
        }
        if numbers.len() % 2 != 0 {
            return Err(error("the map of a sparse file has an odd end"));
        }
        Ok(numbers.chunks_exact(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
    }
}

/// GNU tar writes `=` and `%` in the name of an attribute as `%3D` and `%25`.
fn plain_name(name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let [first, tail @ ..] = rest {
        let (byte, next) = match rest {
            [b'%', b'3', b'D', next @ ..] => (b'=', next),
            [b'%', b'2', b'5', next @ ..] => (b'%', next),
            _ => (*first, tail),
        };
        plain.push(byte);
        rest = next;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary_and_may_be_negative() {
        let eight = |bytes: &[u8; 8]| number(bytes, (0, 8));
        assert_eq!(eight(b"0000755\0").unwrap(), 0o755);
        assert_eq!(eight(b"   755 \0").unwrap(), 0o755);
        assert_eq!(eight(&[0; 8]).unwrap(), 0);
        assert_eq!(eight(b"\x80\0\0\0\x7f\xff\xff\xff").unwrap(), 0x7fff_ffff);
        assert_eq!(eight(b"\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
        assert!(eight(b"000 9\0\0\0").is_ok() && eight(b"00009\0\0\0").is_err());
        assert!(number(&[0xc0; 12], (0, 12)).is_err());
    }

    #[test]
    fn times_before_1970_count_their_fraction_upwards() {
        let check = |text: &str, seconds: i64, nanoseconds: i64| {
            let time = time(text.as_bytes()).unwrap();
            assert_eq!((time.tv_sec, time.tv_nsec), (seconds, nanoseconds), "{text}");
        };
        check("1700000000.123456789", 1_700_000_000, 123_456_789);
        check("5", 5, 0);
        check("0.5", 0, 500_000_000);
        check("-0.25", -1, 750_000_000);
        check("-2.0000000001", -2, 0);
        for bad in ["", ".", "a", "1.x", "1e3"] {
            assert!(time(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn records_hold_newlines_and_equal_signs() {
        let mut records = Records::default();
        records.add(b"11 a=x\n=y\n\n5 b=\n").unwrap();
        assert_eq!(records.pairs, [(b"a".to_vec(), b"x\n=y\n".to_vec()), (b"b".to_vec(), Vec::new())]);
        for bad in [&b"6 a=\n"[..], b"99 a=b\n", b"x a=b\n", b"3 a\n", b"0 a=b\n", b"2 a=b\n"] {
            assert!(Records::default().add(bad).is_err(), "{bad:?}");
        }
    }
}

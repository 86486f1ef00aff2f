//! A package's file (deb(5)): an `ar` archive of two tar archives, one of what is said and one of what is installed.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Kind, Result, error};

use crate::archive::{Archive, Kind as EntryKind};
use crate::{Limits, stream};

/// Where the two archives are in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Control file, scripts, lists.
    pub control: Range<u64>,
    /// The files that are installed.
    pub data: Range<u64>,
}

const MAGIC: &[u8] = b"!<arch>\n";
const HEADER: u64 = 60;
/// More members than any package has.
const MOST_MEMBERS: usize = 16;

/// Finds both archives.
pub fn parts(file: &File) -> Result<Parts> {
    let size = file.metadata().context("reading the package")?.len();
    let bad = |what: &str| error(format!("it is no Debian package: {what}")).kind(Kind::Invalid);
    let mut magic = [0; 8];
    if file.read_exact_at(&mut magic, 0).is_err() || magic != MAGIC {
        return Err(bad("it does not begin as one"));
    }
    let (mut at, mut control, mut data) = (MAGIC.len() as u64, None, None);
    for number in 0..MOST_MEMBERS {
        if at >= size {
            break;
        }
        let (name, range) = member(file, at, size).ok_or_else(|| bad("it is cut off, or a member is misshaped"))?;
        // Members begin at even places.
        at = range.end.next_multiple_of(2);
        match (number, name.as_str()) {
            (0, "debian-binary") => {
                let mut version = [0; 2];
                let read = range.end - range.start >= 4 && file.read_exact_at(&mut version, range.start).is_ok();
                if !read || version != *b"2." {
                    return Err(bad("its format is none that is known"));
                }
            }
            (0, _) => return Err(bad("it does not say its format first")),
            (_, name) if name.starts_with('_') => {}
            (_, name) if control.is_none() && is_tar(name, "control") => control = Some(range),
            (_, name) if control.is_some() && is_tar(name, "data") => {
                data = Some(range);
                break;
            }
            (_, name) => return Err(bad(&format!("`{}` has no place in it", name.escape_debug()))),
        }
    }
    match (control, data) {
        (Some(control), Some(data)) => Ok(Parts { control, data }),
        _ => Err(bad("something is missing in it")),
    }
}

/// The name of the member at a place, and where its content is.
fn member(file: &File, at: u64, size: u64) -> Option<(String, Range<u64>)> {
    let mut header = [0; HEADER as usize];
    file.read_exact_at(&mut header, at).ok()?;
    let text = |range: Range<usize>| std::str::from_utf8(&header[range]).ok().map(str::trim_end);
    let name = text(0..16)?.trim_end_matches('/').to_owned();
    let length: u64 = text(48..58)?.parse().ok()?;
    let begin = at + HEADER;
    let end = begin.checked_add(length).filter(|end| *end <= size && header[58..] == *b"`\n")?;
    Some((name, begin..end))
}

fn is_tar(name: &str, part: &str) -> bool {
    let ending = name.strip_prefix(part).and_then(|rest| rest.strip_prefix(".tar"));
    matches!(ending, Some("" | ".gz" | ".xz" | ".zst"))
}

/// A part of a file, from its beginning.
pub struct Section<'a> {
    file: &'a File,
    left: Range<u64>,
}

impl<'a> Section<'a> {
    /// That part of the file.
    pub fn new(file: &'a File, part: Range<u64>) -> Section<'a> {
        Section { file, left: part }
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.left.start)?;
        self.left.start += n as u64;
        Ok(n)
    }
}

/// What may be in a control archive.
const CONTROL_LIMITS: Limits = Limits { bytes: 64 << 20, entries: 200, path: 200, ratio: 1000, ratio_floor: 64 << 20 };
/// Bytes of all its files together; lists of checksums are the longest.
const CONTROL_FILES: u64 = 16 << 20;

/// A file of the control archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// Its name, which is a single word of letters, digits and dashes.
    pub name: String,
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Whether it is a program.
    pub executable: bool,
}

/// Reads all that a package says of itself.
pub fn control(file: &File, parts: &Parts) -> Result<Vec<ControlFile>> {
    let reader = Section::new(file, parts.control.clone());
    stream::with(reader, &CONTROL_LIMITS, |stream| {
        let mut archive = Archive::new(stream, &CONTROL_LIMITS);
        let (mut files, mut room) = (Vec::new(), CONTROL_FILES);
        while let Some(entry) = archive.next()? {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            let name = path.trim_start_matches("./").to_owned();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            match entry.kind {
                EntryKind::Directory if name.trim_matches('/').is_empty() => continue,
                EntryKind::File if !name.is_empty() && name.chars().all(plain) => {}
                _ => return Err(error(format!("`{path}` has no place in a control archive")).kind(Kind::Invalid)),
            }
            let bytes = archive.content(room)?.ok_or_else(|| error("the control archive is too large"))?;
            room -= bytes.len() as u64;
            files.push(ControlFile { name, bytes, executable: entry.mode & 0o100 != 0 });
        }
        match files.iter().any(|file| file.name == "control") {
            true => Ok(files),
            false => Err(error("it has no control file").kind(Kind::Invalid)),
        }
    })
}

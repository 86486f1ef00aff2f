//! What sender and receiver of copied files say to each other: frames of a kind, a length, and that many bytes.

use std::ffi::OsString;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;

use lazaret_base::{Context, Result, Wire, error};
use serde::{Deserialize, Serialize};

use super::Copied;

/// No frame is longer.
pub const LONGEST: usize = 256 * 1024;

/// One thing that is said.
#[derive(Debug)]
pub enum Frame {
    /// An entry begins in the directory that is open; a directory stays open until its end.
    Entry(Entry),
    /// A piece of the file that has begun.
    Piece(Vec<u8>),
    /// The file, or the directory, is over.
    End,
    /// That was all, or it went wrong.
    Done(std::result::Result<Copied, Box<Wire>>),
}

/// What begins.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// A single name.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Seconds and nanoseconds of its last change.
    pub mtime: (i64, i64),
}

/// What an entry is.
#[derive(Debug, Serialize, Deserialize)]
pub enum Kind {
    /// Entries follow, and an end.
    Directory,
    /// Pieces follow, and an end.
    File,
    /// Nothing follows: it leads there.
    Link(Vec<u8>),
}

impl Entry {
    /// Its name, if it is one: a single word of a path that leads nowhere else.
    pub fn name(&self) -> Result<OsString> {
        match self.name.as_slice() {
            b"" | b"." | b".." => Err(error("an entry without a name was sent")),
            name if name.contains(&b'/') || name.contains(&0) || name.len() > 255 => {
                Err(error("an entry was sent whose name is a path"))
            }
            name => Ok(OsString::from_vec(name.to_vec())),
        }
    }
}

/// The end of a connection that is written to.
pub struct Writer<'a>(BufWriter<&'a UnixStream>);

impl<'a> Writer<'a> {
    pub fn new(line: &'a UnixStream) -> Writer<'a> {
        Writer(BufWriter::with_capacity(LONGEST, line))
    }

    fn frame(&mut self, kind: u8, bytes: &[u8]) -> Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| error("a frame is too long"))?;
        self.0.write_all(&[kind])?;
        self.0.write_all(&length.to_le_bytes())?;
        Ok(self.0.write_all(bytes)?)
    }

    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.frame(b'e', &serde_json::to_vec(entry).map_err(|e| error(e.to_string()))?)
    }

    pub fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.frame(b'p', bytes)
    }

    pub fn over(&mut self) -> Result<()> {
        self.frame(b'.', b"")
    }

    pub fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush()?)
    }

    /// Says how it went.
    pub fn end(&mut self, result: Result<Copied>) -> Result<()> {
        let said: std::result::Result<Said, Wire> = result.map(Said::from).map_err(Wire::from);
        self.frame(b'!', &serde_json::to_vec(&said).map_err(|e| error(e.to_string()))?)?;
        self.flush()
    }
}

#[derive(Serialize, Deserialize)]
struct Said {
    entries: u64,
    bytes: u64,
    notes: Vec<String>,
}

/// More are not told.
const MOST_NOTES: usize = 100;

impl From<Copied> for Said {
    fn from(copied: Copied) -> Said {
        let notes = copied.notes.into_iter().take(MOST_NOTES).collect();
        Said { entries: copied.entries, bytes: copied.bytes, notes }
    }
}

/// The end of a connection that is read from.
pub struct Reader<'a> {
    line: BufReader<&'a UnixStream>,
    result: Option<Result<Copied>>,
}

impl<'a> Reader<'a> {
    pub fn new(line: &'a UnixStream) -> Reader<'a> {
        Reader { line: BufReader::with_capacity(LONGEST, line), result: None }
    }

    /// The next frame; `None` where the other side has no more to say. Half a frame is an error.
    pub fn next(&mut self) -> Result<Option<Frame>> {
        let mut kind = [0];
        if self.line.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.line.read_exact(&mut length).context("reading what is copied")?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LONGEST {
            return Err(error("what is copied comes in pieces that are too long"));
        }
        let mut bytes = vec![0; length];
        self.line.read_exact(&mut bytes).context("reading what is copied")?;
        let json = |e: serde_json::Error| error(e.to_string()).context("reading what is copied");
        Ok(Some(match kind[0] {
            b'e' => Frame::Entry(serde_json::from_slice(&bytes).map_err(json)?),
            b'p' => Frame::Piece(bytes),
            b'.' => Frame::End,
            b'!' => {
                let said: std::result::Result<Said, Wire> = serde_json::from_slice(&bytes).map_err(json)?;
                let Said { entries, bytes, notes } = match said {
                    Ok(said) => said,
                    Err(wire) => return Ok(Some(Frame::Done(Err(Box::new(wire))))),
                };
                Frame::Done(Ok(Copied { entries, bytes, notes }))
            }
            _ => return Err(error("what is copied makes no sense")),
        }))
    }

    /// Keeps how it went for [`Reader::result`].
    pub fn keep(&mut self, result: std::result::Result<Copied, Box<Wire>>) {
        self.result = Some(result.map_err(|wire| (*wire).into()));
    }

    /// How it went on the other side, once it has said so.
    pub fn result(&mut self) -> Result<Copied> {
        loop {
            if let Some(result) = self.result.take() {
                return result;
            }
            match self.next()? {
                Some(Frame::Done(result)) => self.keep(result),
                Some(_) => {}
                None => return Err(error("the process inside was killed")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_single_word_of_a_path() {
        let name = |name: &[u8]| Entry { name: name.to_vec(), kind: Kind::File, mode: 0, mtime: (0, 0) }.name();
        assert_eq!(name(b"a \n\xff").unwrap(), OsString::from_vec(b"a \n\xff".to_vec()));
        let long = [b'x'; 256];
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", &long] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_half_or_too_long_or_makes_no_sense_is_an_error() {
        let hear = |bytes: &[u8]| -> Result<bool> {
            let (mut one, other) = UnixStream::pair()?;
            one.write_all(bytes)?;
            drop(one);
            Ok(Reader::new(&other).next()?.is_some())
        };
        assert!(hear(b".\0\0\0\0").unwrap());
        assert!(!hear(b"").unwrap());
        for bad in
            [&b"p\x04\0\0\0abc"[..], b"p\0", b"p\xff\xff\xff\xff", b"?\0\0\0\0", b"e\x02\0\0\0{}", b"!\x01\0\0\0x"]
        {
            assert!(hear(bad).is_err(), "{bad:?}");
        }
    }
}

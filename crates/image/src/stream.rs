//! Any compression in, plain bytes out. The decoder has a thread of its own, so that decompressing one file
//! overlaps with writing the one before.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use lazaret_base::{Context, Error, Kind, Result, error};
use liblzma::stream::MtStreamBuilder;
use sha2::{Digest as _, Sha256};

use crate::{Digest, Limits};

/// How a decoder goes about its work.
struct Pace {
    /// What travels between the threads.
    chunk: usize,
    /// How many chunks the decoder may be ahead.
    ahead: usize,
    /// How many threads decode, if the format lets several.
    threads: usize,
}

/// Chunks so large that the channel costs nothing, and so many that neither side waits for the other.
const WHOLE: Pace = Pace { chunk: 256 << 10, ahead: 16, threads: 16 };
/// Nothing is decoded that nobody looks at.
const BEGINNING: Pace = Pace { chunk: 16 << 10, ahead: 0, threads: 1 };
/// What the decoder may need for one stream; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 1 << 30;
/// Above this, liblzma decodes with fewer threads.
const XZ_MEMORY_THREADS: u64 = 512 << 20;

#[derive(Clone, Copy)]
enum Format {
    Plain,
    Gzip,
    Xz,
    Zstd,
}

/// The first bytes of a file, and what it is then.
const FORMATS: &[(&[u8], Format)] = &[
    (&[0x1f, 0x8b], Format::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Format::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Format::Zstd),
];

/// The first bytes of what people try as well.
const STRANGERS: &[(&[u8], &str)] = &[
    (b"BZh", "a bzip2 file: recompress it, for example with `bunzip2` and `zstd`"),
    (b"LZIP", "a lzip file: recompress it, for example with `lzip -d` and `zstd`"),
    (&[0x04, 0x22, 0x4d, 0x18], "a lz4 file: recompress it, for example with `lz4 -d` and `zstd`"),
    (b"hsqs", "a squashfs file system: unpack it with `unsquashfs` and use the directory"),
    (b"PK\x03\x04", "a zip file: unpack it and use the directory"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file: unpack it and use the directory"),
    (b"QFI\xfb", "the disk of a virtual machine: mount its root file system and use the directory"),
];

/// The plain bytes of an archive, at the consumer's end.
pub(crate) struct Stream<'a> {
    full: Receiver<Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    position: u64,
    limit: u64,
    taken: &'a AtomicU64,
    /// Of the plain bytes, if somebody wants it.
    digest: Option<Sha256>,
}

/// Runs `consume` over the plain bytes of `reader`.
pub(crate) fn with<T>(
    reader: impl Read + Send,
    limits: &Limits,
    consume: impl FnOnce(&mut Stream<'_>) -> Result<T>,
) -> Result<T> {
    at_pace(&WHOLE, reader, limits, consume)
}

/// The same for who looks at the beginning only.
pub(crate) fn beginning<T>(
    reader: impl Read + Send,
    limits: &Limits,
    consume: impl FnOnce(&mut Stream<'_>) -> Result<T>,
) -> Result<T> {
    at_pace(&BEGINNING, reader, limits, consume)
}

fn at_pace<T>(
    pace: &Pace,
    mut reader: impl Read + Send,
    limits: &Limits,
    consume: impl FnOnce(&mut Stream<'_>) -> Result<T>,
) -> Result<T> {
    let taken = AtomicU64::new(0);
    let (format, head) = detect(&mut reader)?;
    thread::scope(|scope| {
        let (full_in, full) = sync_channel(pace.ahead);
        let (empty, empty_out) = channel();
        let input = Counting { reader: Cursor::new(head).chain(reader), taken: &taken };
        let mut sink = Sink { full: full_in, empty: empty_out, taken: &taken, given: 0, limits, pace };
        let decoder = scope.spawn(move || {
            if let Err(Stop::Error(e)) = decode(format, BufReader::with_capacity(pace.chunk, input), &mut sink) {
                // The consumer may have gone: then it has an error of its own to tell.
                let _ = sink.full.send(Err(e));
            }
        });
        let limit = limits.bytes;
        let mut stream =
            Stream { full, empty, chunk: Vec::new(), at: 0, position: 0, limit, taken: &taken, digest: None };
        // Dropping the stream on return ends the decoder at its next chunk.
        let outcome = consume(&mut stream);
        drop(stream);
        join([decoder]);
        outcome
    })
}

/// Waits until threads have come to their very end, which a scope alone would not: who has a second thread may not
/// clone.
pub(crate) fn join<'a>(threads: impl IntoIterator<Item = ScopedJoinHandle<'a, ()>>) {
    for thread in threads {
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Stream<'_> {
    /// What is there to consume; empty at the end.
    pub(crate) fn peek(&mut self) -> Result<&[u8]> {
        while self.at == self.chunk.len() {
            let Ok(next) = self.full.recv() else { return Ok(&[]) };
            // The decoder may have ended: then nobody needs the buffer.
            let _ = self.empty.send(std::mem::replace(&mut self.chunk, next?));
            self.at = 0;
            if let Some(digest) = &mut self.digest {
                digest.update(&self.chunk);
            }
            if self.position + self.chunk.len() as u64 > self.limit {
                return Err(error(format!("the archive holds more than the limit of {} bytes", self.limit)));
            }
        }
        Ok(&self.chunk[self.at..])
    }

    /// Takes `n` bytes of what [`Stream::peek`] showed.
    pub(crate) fn consume(&mut self, n: usize) {
        self.at += n;
        self.position += n as u64;
    }

    /// Hashes the plain bytes from here on; before the first is looked at, that is all of them.
    pub(crate) fn hash(&mut self) {
        self.digest = Some(Sha256::new());
    }

    /// The digest of what has come by since [`Stream::hash`].
    pub(crate) fn hashed(&mut self) -> Digest {
        Digest::from_state(self.digest.take().unwrap_or_default())
    }

    /// How many plain bytes were consumed.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// How many bytes the decoder took from the file.
    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// Looks at the first bytes, which are given back to be read again.
fn detect(reader: &mut impl Read) -> Result<(Format, Vec<u8>)> {
    let mut head = Vec::new();
    reader.take(8).read_to_end(&mut head).context("reading the archive")?;
    if head.is_empty() {
        return Err(error("the file is empty").kind(Kind::Invalid));
    }
    if let Some((_, what)) = STRANGERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let (what, hint) = what.split_once(": ").unwrap_or((what, "unpack it"));
        return Err(error(format!("the file is {what}, not a tar archive")).hint(hint).kind(Kind::Invalid));
    }
    let format = FORMATS.iter().find(|(magic, _)| head.starts_with(magic)).map_or(Format::Plain, |(_, format)| *format);
    Ok((format, head))
}

/// Why a decoder stops early.
enum Stop {
    /// The consumer has seen enough.
    Done,
    Error(Error),
}

impl From<Error> for Stop {
    fn from(e: Error) -> Stop {
        Stop::Error(e)
    }
}

/// The decoder's end of the channel.
struct Sink<'a> {
    full: SyncSender<Result<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    taken: &'a AtomicU64,
    given: u64,
    limits: &'a Limits,
    pace: &'a Pace,
}

impl Sink<'_> {
    /// Passes on all that `decoder` gives.
    fn drain(&mut self, what: &str, decoder: &mut impl Read) -> Result<(), Stop> {
        loop {
            let mut chunk = self.empty.try_recv().unwrap_or_default();
            chunk.resize(self.pace.chunk, 0);
            let n = fill(decoder, &mut chunk).map_err(|e| damage(e).context(what))?;
            if n == 0 {
                return Ok(());
            }
            chunk.truncate(n);
            self.given += n as u64;
            let allowed = self.taken.load(Ordering::Relaxed).saturating_mul(self.limits.ratio);
            if self.given > allowed.max(self.limits.ratio_floor) {
                let sentence = format!("the archive expands to more than {} times its size", self.limits.ratio);
                return Err(error(sentence).into());
            }
            self.full.send(Ok(chunk)).map_err(|_| Stop::Done)?;
        }
    }
}

fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// The sentence for what a decoder says.
fn damage(e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => error("the file is truncated"),
        _ if e.raw_os_error().is_some() => e.into(),
        _ => error(format!("the data is damaged ({e})")),
    }
}

/// Decodes to the end of the file: several streams in a row are one, as for the tools of each format.
fn decode(format: Format, mut input: impl BufRead, sink: &mut Sink<'_>) -> Result<(), Stop> {
    match format {
        Format::Plain => sink.drain("reading the archive", &mut input),
        Format::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input).map_err(Error::from)?;
            sink.drain("decompressing zstd", &mut decoder)
        }
        Format::Gzip => loop {
            let mut decoder = flate2::bufread::GzDecoder::new(input);
            sink.drain("decompressing gzip", &mut decoder)?;
            input = decoder.into_inner();
            if at_end(&mut input)? {
                return Ok(());
            }
        },
        Format::Xz => loop {
            let mut decoder = liblzma::bufread::XzDecoder::new_stream(input, xz(sink.pace.threads)?);
            sink.drain("decompressing xz", &mut decoder)?;
            input = decoder.into_inner();
            if at_end(&mut input)? {
                return Ok(());
            }
        },
    }
}

fn xz(most: usize) -> Result<liblzma::stream::Stream> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(most)) as u32;
    MtStreamBuilder::new()
        .threads(threads)
        .memlimit_threading(XZ_MEMORY_THREADS)
        .memlimit_stop(XZ_MEMORY)
        .decoder()
        .map_err(|e| error(format!("no decoder for xz ({e})")))
}

/// Skips the zeros that pad a file on tape; whether nothing follows them.
fn at_end(input: &mut impl BufRead) -> Result<bool> {
    loop {
        let bytes = input.fill_buf().context("reading the archive")?;
        if bytes.is_empty() {
            return Ok(true);
        }
        match bytes.iter().position(|byte| *byte != 0) {
            Some(0) => return Ok(false),
            zeros => {
                let n = zeros.unwrap_or(bytes.len());
                input.consume(n);
            }
        }
    }
}

/// Counts what the decoder takes.
struct Counting<'a, R> {
    reader: R,
    taken: &'a AtomicU64,
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.taken.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

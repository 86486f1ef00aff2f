//! A tree that was made here becomes a layer, by the same way as one that comes from elsewhere: through an archive.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::AsFd;
use std::thread;

use lazaret_base::{Result, error};
use rustix::io::Errno;

use crate::digest::Hashing;
use crate::pack::{Archive, Manner, Packed};
use crate::store::Made;
use crate::{Layer, LayerId, Limits, Progress, Stack, Store, unpack};

impl Store {
    /// Makes a layer of a tree, whose ids are `shift` too low. `source` is what it says it was made from.
    ///
    /// Its name is the digest of the archive that the tree packs to, so that the same tree is the same layer, be it
    /// published here or packed, sent and imported there.
    pub fn publish_tree(
        &self,
        tree: &Stack,
        shift: i64,
        source: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Layer> {
        let temporary = self.temporary()?;
        let rootfs = temporary.make_rootfs()?;
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut reader = Hashing::new(File::from(reader));
        let (mut unpacked, digest, packed) = thread::scope(|scope| {
            let packing = scope.spawn(|| pack(tree, shift, File::from(writer)));
            let unpacked = match unpack(&mut reader, rootfs.as_fd(), &Limits::default(), progress) {
                Ok(unpacked) => reader.finish().map(|digest| (unpacked, digest)).map_err(Into::into),
                Err(e) => {
                    // Nobody reads any more, and the packer sees that.
                    drop(reader);
                    Err(e)
                }
            };
            let packed = packing.join().unwrap_or_else(|_| Err(error("packing it failed")));
            match (packed, unpacked) {
                (Ok(packed), Ok((unpacked, digest))) => Ok((unpacked, digest, packed)),
                // If there are two errors, one is the cause of the other.
                (Err(e), _) if e.errno() != Some(Errno::PIPE) => Err(e),
                (_, Err(e)) | (Err(e), _) => Err(e),
            }
        })?;
        unpacked.warnings.extend(packed.warnings);
        let made = Made { source: source.to_owned(), archive_size: None, unpacked };
        self.finish(temporary, &rootfs, LayerId::Archive(digest), made)
    }
}

fn pack(tree: &Stack, shift: i64, into: File) -> Result<Packed> {
    let mut archive = Archive::new(BufWriter::with_capacity(256 << 10, into));
    let packed = archive.tree(tree, Manner { shift, ..Manner::default() }, &mut |_| {})?;
    let rest = archive.finish()?;
    rest.into_inner().map_err(|e| lazaret_base::Error::from(e.into_error()))?;
    Ok(packed)
}

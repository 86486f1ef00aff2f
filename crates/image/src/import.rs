//! A file on the host becomes an image, whatever kind of image it is.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::Path;

use lazaret_base::{Context, Kind, Lock, Result, read_bounded};
use rustix::fs::{Mode, OFlags};

use crate::digest::Hashing;
use crate::named::{About, Image};
use crate::simplestreams::LARGEST_METADATA;
use crate::store::{ArchiveFile, Made, now};
use crate::template::{self, Metadata};
use crate::{Layer, LayerId, Limits, Progress, Store, oci, squashfs};

impl Store {
    /// Makes an image of an archive of a root file system, a unified image of Incus, a squashfs, or an archive of
    /// OCI's or docker's. It has no name yet.
    ///
    /// `metadata` is the other file of an image that comes in two (`incus.tar.xz`).
    pub fn import(&self, path: &Path, metadata: Option<&Path>, progress: &mut dyn FnMut(Progress)) -> Result<Image> {
        let importing = || format!("importing `{}`", path.display());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(path, flags, Mode::empty()).with_context(importing)?);
        if file.metadata().with_context(importing)?.is_dir() && oci::is_layout(path) {
            return self.import_oci(path, None, progress);
        }
        // One that was seen before is not looked into.
        if metadata.is_none() && file.metadata().with_context(importing)?.is_file() {
            let seen = ArchiveFile::of(path, file.try_clone().with_context(importing)?).with_context(importing)?;
            if let Some(layer) = self.known_bare(&seen)? {
                return Ok(unnamed(layer, Metadata::default()));
            }
        }
        let mut magic = [0; 4];
        let n = file.read(&mut magic).with_context(importing)?;
        let mut described = match metadata {
            Some(path) => read_metadata(path)?,
            None => Metadata::default(),
        };
        let layer = if &magic[..n] == squashfs::MAGIC {
            self.import_squashfs(file, path).with_context(importing)?
        } else if metadata.is_none() && oci::is_archive(&file) {
            return self.import_oci(path, None, progress);
        } else {
            let (layer, found) = self.import_described(path, progress)?;
            described = found.filter(|_| metadata.is_none()).unwrap_or(described);
            layer
        };
        Ok(unnamed(layer, described))
    }

    fn import_squashfs(&self, mut file: File, path: &Path) -> Result<Layer> {
        file.seek(SeekFrom::Start(0))?;
        let size = file.metadata()?.len();
        let digest = Hashing::new(&file).finish()?;
        let id = LayerId::Archive(digest);
        let lock_path = self.part("locks")?.join(format!("import-{}", digest.hex()));
        let lock = Lock::wait(&lock_path)?;
        let layer = match self.find(&id)? {
            Some(layer) => Ok(layer),
            None => (|| {
                let temporary = self.temporary()?;
                let rootfs = temporary.make_rootfs()?;
                let unpacked = squashfs::unpack(&file, rootfs.as_fd(), &temporary.rootfs(), &Limits::default())?;
                let source = path.to_string_lossy().into_owned();
                self.finish(temporary, &rootfs, id, Made { source, archive_size: Some(size), unpacked })
            })(),
        };
        // Unlinked while held: whoever waits sees that and makes a new one.
        let _ = std::fs::remove_file(&lock_path);
        drop(lock);
        layer
    }

    /// An archive, and what it says of itself if it is a unified image.
    fn import_described(&self, path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(Layer, Option<Metadata>)> {
        let layer = self.import_tarball(path, progress)?;
        // What is beside the root in a unified image stands at its beginning, so this reads little.
        let Ok(file) = File::open(path) else { return Ok((layer, None)) };
        let archive = ArchiveFile::of(path, file)?;
        let found = template::metadata_of_unified(archive.rewound()?)?;
        if found.is_none() {
            self.note_bare(&archive, &layer)?;
        }
        Ok((layer, found))
    }
}

/// An image that has no name yet.
fn unnamed(layer: Layer, described: Metadata) -> Image {
    let about = About {
        description: described.description,
        architecture: layer.architecture.clone().unwrap_or_default(),
        since: now(),
        ..About::default()
    };
    let templates = described.templates;
    Image { name: String::new(), layer: layer.id, about, origin: None, templates, program: None }
}

fn read_metadata(path: &Path) -> Result<Metadata> {
    let reading = || format!("reading the metadata `{}`", path.display());
    let bytes =
        read_bounded(File::open(path).with_context(reading)?, LARGEST_METADATA as usize).with_context(reading)?;
    template::read_metadata(&bytes).map_err(|e| e.kind(Kind::Invalid)).with_context(reading)
}

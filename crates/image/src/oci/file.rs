//! Images of OCI in a directory (`oci:`), in an archive of one (`oci-archive:`), and in an archive of docker's
//! (`docker-archive:`, what `docker save` and `podman save` write).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use lazaret_base::{Context, Kind as ErrorKind, Result, error, read_bounded};
use rustix::fs::{FileType, Mode, OFlags};

use super::Parts;
use super::spec::{self, Descriptor, Manifest};
use crate::archive::{Archive, Kind};
use crate::tree::{self, LIST, STRAIGHT};
use crate::{Digest, Limits, own_architecture, stream};

/// Where files of an image are.
pub(crate) enum Blobs {
    Directory(OwnedFd),
    Archive { file: File, files: HashMap<String, Place> },
}

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Here {
        at: u64,
        size: u64,
    },
    /// A link: docker's archives name a layer that is there already by one.
    At(String),
}

/// An image has a few hundred layers and documents at most.
const MOST_FILES: u64 = 20_000;
/// An index that names an index: one more than anyone makes.
const DEEPEST: usize = 4;

/// Whether a directory is an OCI layout.
pub(crate) fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file() && path.join("index.json").is_file()
}

/// Whether a file is an archive of a layout, or one of docker's. Only the names at its beginning are looked at.
pub(crate) fn is_archive(file: &File) -> bool {
    let limits = limits();
    let reader = At { file, at: 0, end: u64::MAX };
    let looked = stream::beginning(reader, &limits, |stream| {
        let mut archive = Archive::new(stream, &limits);
        while let Some(entry) = archive.next()? {
            let name = name(&entry.path);
            if ["oci-layout", "manifest.json", "index.json"].contains(&name.as_str()) {
                return Ok(true);
            }
            // What else such an archive may begin with; a root file system soon shows another name.
            let first = name.split('/').next().unwrap_or_default();
            let hex = first.trim_end_matches(".json").trim_end_matches(".tar");
            let ours = first == "blobs" || first == "repositories" || Digest::from_hex(hex).is_ok();
            if !ours {
                return Ok(false);
            }
        }
        Ok(false)
    });
    looked.unwrap_or(false)
}

fn limits() -> Limits {
    Limits { entries: MOST_FILES, ..Limits::default() }
}

fn name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).trim_start_matches("./").trim_end_matches('/').to_owned()
}

impl Blobs {
    pub(crate) fn open(path: &Path) -> Result<Blobs> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Directory if is_layout(path) => Ok(Blobs::Directory(tree::open(&fd, ".", LIST, STRAIGHT)?)),
            FileType::Directory => Err(error("it is no OCI layout: it has no `oci-layout` or no `index.json`")
                .kind(ErrorKind::Invalid)
                .hint("a directory with a root file system is used as it is, without `oci:`")),
            FileType::RegularFile => {
                let file = File::from(fd);
                let files = index(&file)?;
                Ok(Blobs::Archive { file, files })
            }
            _ => Err(error("it is neither a directory nor a regular file").kind(ErrorKind::Invalid)),
        }
    }

    /// The image that is wanted: the only one, or the one of that tag.
    pub(crate) fn image(&self, tag: Option<&str>) -> Result<Parts> {
        if self.has("index.json") {
            return self.layout(tag);
        }
        let bytes = self
            .document("manifest.json", None)
            .hint("an OCI layout has an index.json, an archive of docker's a manifest.json")?;
        let image = spec::docker(&bytes, tag)?;
        let config = self.document(&image.config, None)?;
        let layer = |file: String| Descriptor { kind: String::new(), digest: None, size: None, file: Some(file) };
        let name = image.repo_tags.and_then(|tags| tags.into_iter().next());
        Ok(Parts {
            config: spec::config(&config).with_context(|| format!("reading `{}`", image.config))?,
            layers: image.layers.into_iter().map(layer).collect(),
            name: name.and_then(|name| proper(&name)),
            fingerprint: Digest::of(&config),
        })
    }

    fn layout(&self, tag: Option<&str>) -> Result<Parts> {
        let mut bytes = self.document("index.json", None)?;
        let (mut tag, mut name, mut fingerprint) = (tag, None, None);
        for _ in 0..DEEPEST {
            match spec::manifest(&bytes)? {
                Manifest::Index(entries) => {
                    let entry = spec::choose(&entries, tag.take(), own_architecture())?;
                    name = name.or_else(|| entry.names.iter().find_map(|name| proper(name)));
                    fingerprint = entry.descriptor.digest;
                    bytes = self.blob(&entry.descriptor)?;
                }
                Manifest::Image { config, layers } => {
                    let fingerprint = fingerprint.unwrap_or_else(|| Digest::of(&bytes));
                    let config = spec::config(&self.blob(&config)?)?;
                    return Ok(Parts { config, layers, name, fingerprint });
                }
            }
        }
        Err(error("its index leads to an index, and so on"))
    }

    /// A layer's bytes, which nobody has verified yet.
    pub(crate) fn layer(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send + '_>> {
        match (&descriptor.digest, &descriptor.file) {
            (Some(digest), _) => self.read(&blob_path(digest)),
            (None, Some(file)) => self.read(file),
            (None, None) => Err(error("a layer without a name")),
        }
    }

    /// A document, verified.
    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = descriptor.digest.as_ref().ok_or_else(|| error("a document without a digest"))?;
        self.document(&blob_path(digest), Some(digest))
    }

    fn document(&self, name: &str, digest: Option<&Digest>) -> Result<Vec<u8>> {
        let reading = || format!("reading `{name}`");
        let bytes = read_bounded(self.read(name).with_context(reading)?, spec::LARGEST).with_context(reading)?;
        match digest {
            Some(digest) if Digest::of(&bytes) != *digest => {
                Err(error(format!("its SHA-256 is {}", Digest::of(&bytes).hex()))).with_context(reading)
            }
            _ => Ok(bytes),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Blobs::Directory(dir) => tree::stat(dir, name).is_ok(),
            Blobs::Archive { files, .. } => files.contains_key(name),
        }
    }

    fn read(&self, name: &str) -> Result<Box<dyn Read + Send + '_>> {
        match self {
            // No link is followed: a layout of strangers must not show the host's files as an image.
            Blobs::Directory(dir) => {
                let fd = tree::open(dir, name, OFlags::RDONLY | OFlags::NONBLOCK, STRAIGHT)
                    .with_context(|| format!("opening `{name}`"))?;
                let file = File::from(fd);
                match file.metadata()?.is_file() {
                    true => Ok(Box::new(file)),
                    false => Err(error(format!("`{name}` is no regular file"))),
                }
            }
            Blobs::Archive { file, files } => {
                let mut found = files.get(name);
                for _ in 0..DEEPEST {
                    match found {
                        Some(Place::At(target)) => found = files.get(target),
                        Some(Place::Here { at, size }) => return Ok(Box::new(At { file, at: *at, end: at + size })),
                        None => break,
                    }
                }
                Err(error(format!("`{name}` is not in it")).kind(ErrorKind::NotFound))
            }
        }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name as an image of ours can have it: what stands behind the last slash, with the tag.
fn proper(name: &str) -> Option<String> {
    let last = name.rsplit('/').next().unwrap_or(name);
    let last = last.replace(':', "/").to_ascii_lowercase();
    let last = last.strip_suffix("/latest").unwrap_or(&last);
    let good = !last.is_empty() && !last.starts_with(['.', '/']) && last != "latest";
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-+/".contains(c);
    (good && last.chars().all(plain)).then(|| last.to_owned())
}

/// Where each file of an archive is.
fn index(file: &File) -> Result<HashMap<String, Place>> {
    let mut magic = [0; 6];
    let n = file.read_at(&mut magic, 0)?;
    let compressed = [&[0x1f, 0x8b][..], b"\xfd7zXZ\0", &[0x28, 0xb5, 0x2f, 0xfd]];
    if compressed.iter().any(|known| magic[..n].starts_with(known)) {
        return Err(error("the archive is compressed as a whole")
            .kind(ErrorKind::Invalid)
            .hint("decompress it first (gunzip, unxz, unzstd): its layers are compressed anyway"));
    }
    let limits = limits();
    stream::with(At { file, at: 0, end: u64::MAX }, &limits, |stream| {
        let mut archive = Archive::new(stream, &limits);
        let mut files = HashMap::new();
        while let Some(entry) = archive.next()? {
            let place = match entry.kind {
                Kind::File if entry.sparse.is_none() => Place::Here { at: archive.position(), size: archive.left() },
                Kind::Hardlink => Place::At(name(&entry.target)),
                Kind::Symlink => Place::At(resolved(&name(&entry.path), &entry.target)),
                _ => continue,
            };
            files.insert(name(&entry.path), place);
        }
        Ok(files)
    })
}

/// What a relative link in an archive leads to, by its text alone.
fn resolved(path: &str, target: &[u8]) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    let target = String::from_utf8_lossy(target).into_owned();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// A part of a file, read without moving its offset.
struct At<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_become_names_of_ours() {
        assert_eq!(proper("registry.example/team/app:1.2").as_deref(), Some("app/1.2"));
        assert_eq!(proper("app:latest").as_deref(), Some("app"));
        for bad in ["latest", "", "a b", "..", "x\u{1b}"] {
            assert_eq!(proper(bad), None, "{bad}");
        }
    }

    #[test]
    fn links_in_an_archive_stay_in_it() {
        assert_eq!(resolved("a/layer.tar", b"../b.tar"), "b.tar");
        assert_eq!(resolved("a/layer.tar", b"../../../etc/x"), "etc/x");
    }
}

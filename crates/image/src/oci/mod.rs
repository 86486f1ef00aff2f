//! Images of OCI: what they say of themselves, and how their layers become one tree.
//!
//! All layers of an image become one layer of ours, named by the chain id that the image specification defines
//! ("Layer ChainID"): whiteouts are resolved once and not at each start, a container's overlay stays two deep, and the
//! same stack under another name is not unpacked again.

mod file;
mod login;
mod registry;
mod spec;

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

use lazaret_base::{Context, Kind, Lock, Result, error};

use crate::digest::Hashing;
use crate::named::{About, Image, Program};
use crate::store::{Made, now};
use crate::unpack::unpack_layer;
use crate::{Digest, Layer, LayerId, Limits, Progress, Store, Unpacked};

pub(crate) use file::{Blobs, is_archive, is_layout};
pub use login::Logins;
use spec::{Config, Descriptor};

/// More layers than any builder makes.
const MOST_LAYERS: usize = 500;

/// An image that is taken apart: its configuration, and where its layers are.
pub(crate) struct Parts {
    pub config: Config,
    /// From the lowest to the topmost, one for each diff id.
    pub layers: Vec<Descriptor>,
    /// What it is called there, if it has a name.
    pub name: Option<String>,
    /// The digest of the manifest, or of the configuration where there is none.
    pub fingerprint: Digest,
}

impl Store {
    /// Makes an image of a layout or an archive of OCI's, or an archive of docker's. It has no name yet, but perhaps
    /// the one it has there.
    pub fn import_oci(&self, path: &Path, tag: Option<&str>, progress: &mut dyn FnMut(Progress)) -> Result<Image> {
        let importing = || format!("importing `{}`", path.display());
        let blobs = Blobs::open(path).with_context(importing)?;
        let parts = blobs.image(tag).with_context(importing)?;
        let source = path.to_string_lossy().into_owned();
        let layer =
            self.stack(&parts, &source, progress, |descriptor| blobs.layer(descriptor)).with_context(importing)?;
        Ok(parts.image(layer))
    }

    /// The layer that an image's layers have become, if they have.
    fn stacked(&self, parts: &Parts) -> Result<Option<Layer>> {
        self.find(&LayerId::Archive(chain_id(&parts.config.diff_ids)))
    }

    /// The layers of an image as one of ours.
    fn stack<'b>(
        &self,
        parts: &Parts,
        source: &str,
        progress: &mut dyn FnMut(Progress),
        mut open: impl FnMut(&Descriptor) -> Result<Box<dyn Read + Send + 'b>>,
    ) -> Result<Layer> {
        let diff_ids = &parts.config.diff_ids;
        if diff_ids.is_empty() || diff_ids.len() > MOST_LAYERS || diff_ids.len() != parts.layers.len() {
            let sentence = format!("it has {} layers, but names {}", parts.layers.len(), diff_ids.len());
            return Err(error(sentence).kind(Kind::Invalid));
        }
        let id = LayerId::Archive(chain_id(diff_ids));
        if let Some(layer) = self.find(&id)? {
            return Ok(layer);
        }
        let lock_path = self.part("locks")?.join(format!("stack-{}", chain_id(diff_ids).hex()));
        let lock = Lock::wait(&lock_path)?;
        let layer = match self.find(&id)? {
            Some(layer) => Ok(layer),
            None => self.stack_locked(parts, id, source, progress, &mut open),
        };
        // Unlinked while held: whoever waits sees that and makes a new one.
        let _ = std::fs::remove_file(&lock_path);
        drop(lock);
        layer
    }

    fn stack_locked<'b>(
        &self,
        parts: &Parts,
        id: LayerId,
        source: &str,
        progress: &mut dyn FnMut(Progress),
        open: &mut impl FnMut(&Descriptor) -> Result<Box<dyn Read + Send + 'b>>,
    ) -> Result<Layer> {
        let temporary = self.temporary()?;
        let rootfs = temporary.make_rootfs()?;
        let (mut limits, mut all) = (Limits::default(), Unpacked::default());
        for (number, (descriptor, diff_id)) in parts.layers.iter().zip(&parts.config.diff_ids).enumerate() {
            let unpacking = || format!("unpacking layer {} of {}", number + 1, parts.layers.len());
            let mut reader = Hashing::new(open(descriptor).with_context(unpacking)?);
            let mut told = |step: Progress| {
                let (entries, bytes) = (all.entries + step.entries, all.bytes + step.bytes);
                progress(Progress { entries, bytes, ..step });
            };
            let outcome = unpack_layer(&mut reader, rootfs.as_fd(), &limits, &mut told);
            // A layer that is not what it should be need not make sense, so this is looked at first.
            let blob = reader.finish().with_context(unpacking)?;
            let agree = |what: &str, found: Digest, named: Option<Digest>| match named {
                Some(named) if named != found => {
                    Err(error(format!("its {what} is {}, but the image says {}", found.hex(), named.hex())))
                }
                _ => Ok(()),
            };
            agree("SHA-256", blob, descriptor.digest).with_context(unpacking)?;
            let (unpacked, found) = outcome.with_context(unpacking)?;
            // A layer under a false name would be found by others that trust it.
            agree("diff id", found, Some(*diff_id)).with_context(unpacking)?;
            limits.bytes = limits.bytes.saturating_sub(unpacked.bytes);
            limits.entries = limits.entries.saturating_sub(unpacked.entries);
            all.bytes += unpacked.bytes;
            all.entries += unpacked.entries;
            all.warnings.extend(unpacked.warnings);
        }
        all.warnings.truncate(200);
        self.finish(temporary, &rootfs, id, Made { source: source.to_owned(), archive_size: None, unpacked: all })
    }
}

/// The name of a stack of layers.
fn chain_id(diff_ids: &[Digest]) -> Digest {
    let mut ids = diff_ids.iter();
    let first = ids.next().copied().unwrap_or_else(|| Digest::of(b""));
    ids.fold(first, |chain, id| Digest::of(format!("{chain} {id}").as_bytes()))
}

/// Programs that are a system's init, and want to be process 1 itself.
const INITS: &[&str] = &["/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/init"];

impl Parts {
    /// The image, without a place where more of it could come from.
    fn image(&self, layer: Layer) -> Image {
        let config = &self.config;
        let architecture = crate::reference::architecture(&config.architecture).map(str::to_owned);
        let about = About {
            description: config.title.clone(),
            architecture: architecture.or(layer.architecture).unwrap_or_default(),
            serial: self.fingerprint.hex()[..12].to_owned(),
            since: now(),
            ..About::default()
        };
        let name = self.name.clone().unwrap_or_default();
        Image { name, layer: layer.id, about, origin: None, templates: Vec::new(), program: program(config) }
    }
}

/// What an image runs; `None` for one of a whole system, whose init finds itself.
fn program(config: &Config) -> Option<Program> {
    let first = config.entrypoint.first().or(config.command.first());
    if first.is_none_or(|first| INITS.contains(&first.as_str())) {
        return None;
    }
    Some(Program {
        entrypoint: config.entrypoint.clone(),
        command: config.command.clone(),
        environment: config.environment.clone(),
        user: config.user.clone(),
        directory: config.directory.clone(),
        stop_signal: config.stop_signal.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_id_is_what_the_specification_says() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_id(&[a]), a);
        assert_eq!(chain_id(&[a, b]), Digest::of(format!("sha256:{} sha256:{}", a.hex(), b.hex()).as_bytes()));
        assert_ne!(chain_id(&[a, b]), chain_id(&[b, a]));
    }
}

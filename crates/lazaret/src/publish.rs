//! A container becomes an image.

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_image::{About, Image, Progress, own_architecture};

use crate::image::check_name;
use crate::recover::hold;
use crate::snapshot::still;
use crate::store::{Record, Store};

/// What came of publishing.
#[derive(Clone, Debug)]
pub struct Published {
    /// The image.
    pub image: Image,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Makes an image of what a container's root file system is now. A running one is frozen while what it has written is
/// copied; the image is made of the copy.
pub fn publish(store: &Store, name: &Name, image: &str, progress: &mut dyn FnMut(Progress)) -> Result<Published> {
    check_name(image)?;
    let _lock = hold(store, name)?;
    let record = store.record(name)?;
    refuse_host(name, &record)?;
    let publishing = || format!("publishing `{name}` as `{image}`");
    let still = still(store, name, &record, progress).with_context(publishing)?;
    let images = store.images()?;
    let source = format!("the container {name}");
    let layer =
        images.publish_tree(&still.whole, record.shift_to_plain(), &source, progress).with_context(publishing)?;
    let description = store.document(name)?.config().description.clone();
    let architecture = layer.architecture.clone().unwrap_or_else(|| own_architecture().to_owned());
    let about = About { description, architecture, since: layer.created, ..About::default() };
    let program = record.image.program.clone();
    let image = Image { name: image.to_owned(), layer: layer.id, about, origin: None, templates: Vec::new(), program };
    images.name_image(&image).with_context(publishing)?;
    Ok(Published { image, notes: layer.warnings })
}

/// The programs of the image `host` are this system's, and no part of it.
pub(crate) fn refuse_host(name: &Name, record: &Record) -> Result<()> {
    match record.image.binds.is_empty() {
        true => Ok(()),
        false => Err(error(format!("`{name}` stands on this system's own programs, which are no part of it"))
            .kind(Kind::Invalid)
            .hint(
                "make a container of a distribution's image, and that can be passed on; `lazaret export` alone works",
            )),
    }
}

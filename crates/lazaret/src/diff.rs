//! What a container has changed of its image.

use lazaret_base::{Context, Result};
use lazaret_config::Name;
pub use lazaret_image::{Change, Difference};

use crate::recover::hold;
use crate::snapshot::{refuse_volatile, while_frozen};
use crate::store::{Storage, Store};

/// Everything that is different from the image, by path. A running container is frozen while it is looked at.
pub fn diff(store: &Store, name: &Name) -> Result<Vec<Change>> {
    let _lock = hold(store, name)?;
    let record = store.record(name)?;
    let look = || {
        let before = store.image_tree(&record)?;
        match record.storage {
            Storage::Overlay => {
                lazaret_image::diff(&store.changes_below(&store.written(name, &record), &record)?, &before, 0)
            }
            Storage::Copy => lazaret_image::diff(&store.whole(name, &record)?, &before, record.shift_to_plain()),
        }
    };
    let looked = match store.is_kept(name)? {
        true => refuse_volatile(store, name).and_then(|()| while_frozen(store, name, look)).map(|(changes, _)| changes),
        false => look(),
    };
    looked.with_context(|| format!("comparing `{name}` with its image"))
}

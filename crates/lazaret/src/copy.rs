//! A container like another one.

use std::os::fd::AsFd;
use std::path::Path;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Document, Name};
use lazaret_image::Progress;
use rustix::fs::{Mode, OFlags, open};

use crate::create::{Create, hold_pair, make, make_upper};
use crate::event::{self, What};
use crate::snapshot::{copy_into, keep, sync};
use crate::store::{Ids, Label, LayerId, Record, Storage, Store};

/// What to copy.
pub struct Copy<'a> {
    /// The container that there is.
    pub from: &'a Name,
    /// The one to make.
    pub to: &'a Name,
    /// What it was at a snapshot, rather than what it is now.
    pub snapshot: Option<&'a Label>,
}

/// Makes a container that has the files and the configuration of another, and ids of its own. The record of the copy.
///
/// In an overlay nothing is copied: both containers stand on the same layers from then on. A running container is
/// frozen while what it has written is copied. Snapshots are not taken along.
pub fn copy(store: &Store, wanted: &Copy<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Record> {
    let (from, to) = (wanted.from, wanted.to);
    store.require(from)?;
    store.prepare()?;
    if from == to {
        return Err(error(format!("`{to}` can't be a copy of itself")).kind(Kind::Invalid));
    }
    let _locks = hold_pair(store, from, to)?;
    copy_locked(store, wanted, progress).with_context(|| format!("copying `{from}` to `{to}`"))
}

fn copy_locked(store: &Store, wanted: &Copy<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Record> {
    let from = wanted.from;
    let mut record = store.record(from)?;
    let (document, layers, _kept) = match wanted.snapshot {
        Some(label) => {
            let layers = record.snapshot(label)?.layers.clone();
            (store.read_snapshot_document(from, label)?, layers, None)
        }
        // A stopped container of a copied root is copied from where it is.
        None if record.storage == Storage::Copy && !store.is_kept(from)? => (store.document(from)?, Vec::new(), None),
        None => {
            let document = store.document(from)?;
            let kept = keep(store, from, &mut record, progress)?;
            if record.pending.is_some() {
                store.commit(from, &mut record)?;
            }
            (document, kept.layers.clone(), Some(kept))
        }
    };
    let source = Source { name: from, record: &record, layers };
    make_copy(store, wanted.to, &document, &source, progress)
}

/// What a copy is made of.
struct Source<'a> {
    name: &'a Name,
    record: &'a Record,
    layers: Vec<LayerId>,
}

fn make_copy(
    store: &Store,
    to: &Name,
    document: &Document,
    source: &Source<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Record> {
    let wanted = Create { name: to, document, ephemeral: false };
    let made = make(store, &wanted, |dir, ids| {
        let mut copy = Record::new(source.record.image.clone(), ids, source.record.storage, false);
        match source.record.storage {
            Storage::Overlay => {
                copy.layers = source.layers.clone();
                let below = &store.lower(&copy)[0];
                let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
                make_upper(dir, open(below, flags, Mode::empty())?.as_fd())?;
            }
            Storage::Copy => copy_root(store, source, dir, ids, progress)?,
        }
        Ok(copy)
    })?;
    event::tell(store, to, What::Created, Some(format!("a copy of {}", source.name)));
    Ok(made)
}

/// A root whose files bear ids on disk: those of the copy are others.
fn copy_root(
    store: &Store,
    source: &Source<'_>,
    dir: &Path,
    ids: Option<Ids>,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let start = |ids: Option<Ids>| ids.map_or(0, |ids| i64::from(ids.start));
    let tree = match &source.layers[..] {
        [] => store.whole(source.name, source.record)?,
        layers => store.plain_layer(layers)?,
    };
    let into = dir.join("rootfs");
    copy_into(&tree, &into, start(ids) - start(source.record.ids), progress)?;
    sync(&into)
}

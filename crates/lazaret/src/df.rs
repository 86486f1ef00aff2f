//! Where the disk space has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lazaret_base::{Context, Kind, Result};
use lazaret_image::Usage;
use rustix::io::Errno;
use serde::Serialize;

use crate::store::{LayerId, Record, Store};

/// What takes space.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What it is.
    #[serde(rename = "what")]
    pub sort: Sort,
    /// Of an image or a container, or the container of a snapshot.
    pub name: String,
    /// Of a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Bytes that would be free if it was gone.
    pub own: u64,
    /// Bytes of layers that others need as well. Not the image's.
    pub shared: u64,
    /// Files, directories, links and so on, in both.
    pub entries: u64,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    /// A root file system that containers are made from.
    Image,
    /// A container as it is now.
    Container,
    /// What a container was.
    Snapshot,
}

/// All of an installation.
#[derive(Clone, Debug, Serialize)]
pub struct Space {
    /// Everything that takes space, images first, then each container with its snapshots.
    pub lines: Vec<Line>,
    /// Bytes that all of them take together.
    pub total: u64,
    /// Bytes that can still be written to the file system of the state directory.
    pub free: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// Measures all images, containers and snapshots. Looks at every file, which takes a while if there are many.
pub fn df(store: &Store) -> Result<Space> {
    store.prepare()?;
    let mut lines = images(store)?;
    let mut layers = Layers::default();
    let mut holders = Vec::new();
    for name in store.names()? {
        let record = match store.record(&name) {
            Err(e) if e.what() == Kind::NotFound || e.errno() == Some(Errno::NOENT) => continue,
            record => record?,
        };
        let written = measure(&store.written(&name, &record))?;
        holders.extend(holders_of(name.as_str(), &record, written));
    }
    for holder in &holders {
        for layer in &holder.layers {
            layers.add(store, layer)?;
        }
    }
    lines.extend(holders.iter().map(|holder| layers.line(holder)));
    let written: u64 = holders.iter().map(|holder| holder.written.bytes).sum();
    let images: u64 = lines.iter().filter(|line| line.sort == Sort::Image).map(|line| line.own).sum();
    let disk = rustix::fs::statvfs(store.state_dir()).context("looking at the state directory")?;
    Ok(Space {
        total: images + written + layers.total(),
        free: disk.f_bavail * disk.f_frsize,
        size: disk.f_blocks * disk.f_frsize,
        lines,
    })
}

fn images(store: &Store) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut measured = BTreeSet::new();
    for image in crate::image::list(store)? {
        // One layer may have several names: it is counted once.
        if !measured.insert(image.layer.id.clone()) {
            continue;
        }
        let usage = measure(&image.layer.rootfs)?;
        let (own, entries) = (usage.bytes, usage.entries);
        lines.push(Line { sort: Sort::Image, name: image.name, snapshot: None, own, shared: 0, entries });
    }
    Ok(lines)
}

/// Somebody who needs layers.
struct Holder {
    name: String,
    snapshot: Option<String>,
    layers: Vec<LayerId>,
    /// What nobody else can need.
    written: Usage,
}

fn holders_of(name: &str, record: &Record, written: Usage) -> Vec<Holder> {
    let now = Holder { name: name.into(), snapshot: None, layers: record.layers.clone(), written };
    let snapshots = record.snapshots.iter().map(|snapshot| Holder {
        name: name.into(),
        snapshot: Some(snapshot.label.to_string()),
        layers: snapshot.layers.clone(),
        written: Usage::default(),
    });
    [now].into_iter().chain(snapshots).collect()
}

/// Each layer's size, and how many need it.
#[derive(Default)]
struct Layers(BTreeMap<String, (Usage, u32)>);

impl Layers {
    fn add(&mut self, store: &Store, layer: &LayerId) -> Result<()> {
        if let Some((_, users)) = self.0.get_mut(&layer.to_string()) {
            *users += 1;
            return Ok(());
        }
        self.0.insert(layer.to_string(), (measure(&store.layer(layer))?, 1));
        Ok(())
    }

    fn total(&self) -> u64 {
        self.0.values().map(|(usage, _)| usage.bytes).sum()
    }

    fn line(&self, holder: &Holder) -> Line {
        let (mut own, mut shared) = (holder.written, Usage::default());
        for layer in &holder.layers {
            match self.0.get(&layer.to_string()) {
                Some((usage, 1)) => own += *usage,
                Some((usage, _)) => shared += *usage,
                None => {}
            }
        }
        let sort = if holder.snapshot.is_some() { Sort::Snapshot } else { Sort::Container };
        Line {
            sort,
            name: holder.name.clone(),
            snapshot: holder.snapshot.clone(),
            own: own.bytes,
            shared: shared.bytes,
            entries: own.entries + shared.entries,
        }
    }
}

/// Nothing, where somebody removes it at this moment.
fn measure(tree: &Path) -> Result<Usage> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let measuring = || format!("measuring `{}`", tree.display());
    match open(tree, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(Usage::default()),
        fd => lazaret_image::usage(fd.with_context(measuring)?).with_context(measuring),
    }
}

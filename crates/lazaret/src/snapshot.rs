//! What a container was: kept, listed, brought back.

use std::fs::DirBuilder;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_image::{Progress, Stack, copy_tree};
use lazaret_runtime::cgroup::{self, Hierarchies};
use rustix::fs::{Mode, OFlags, open};

use crate::cache;
use crate::event::{self, What};
use crate::exec::running;
use crate::recover::{LAST_BREATH, collect, hold, recover_locked};
use crate::store::{Label, LayerId, Pending, Record, Snapshot, Storage, Store, Why, Workshop};

/// Layers of a container's own beyond this many are merged by copying. Each costs a look at every path that is not
/// found above it; overlayfs itself takes 500, and the names of these fit into what one mount option may hold.
const DEEPEST: usize = 32;

/// What came of taking a snapshot.
#[derive(Clone, Debug)]
pub struct Taken {
    /// What it is called.
    pub label: Label,
    /// How long the container was frozen, if it was running.
    pub frozen: Option<Duration>,
    /// Bytes that had to be copied: none for a stopped container in an overlay.
    pub copied: u64,
}

/// Keeps what a container is now: its files and its configuration.
///
/// Of a stopped container nothing is copied. A running one is frozen while what it has written is copied (shared with
/// the original where the file system can), so that all its files are of one moment. Without a label, `snap1`, `snap2`
/// and so on is the first that is free.
pub fn snapshot(
    store: &Store,
    name: &Name,
    label: Option<&Label>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Taken> {
    let _lock = hold(store, name)?;
    let mut record = store.record(name)?;
    let label = match label {
        Some(label) => label.clone(),
        None => free_label(&record, "snap")?,
    };
    take(store, name, &mut record, label, Why::Asked, progress)
        .with_context(|| format!("taking a snapshot of `{name}`"))
}

/// The same for a caller that holds the container's lock.
pub(crate) fn take(
    store: &Store,
    name: &Name,
    record: &mut Record,
    label: Label,
    why: Why,
    progress: &mut dyn FnMut(Progress),
) -> Result<Taken> {
    if record.snapshots.iter().any(|snapshot| snapshot.label == label) {
        return Err(error(format!("there is a snapshot `{label}` already"))
            .kind(Kind::Exists)
            .hint(format!("choose another label, or remove it: lazaret snapshots {name} --remove {label}")));
    }
    let text = store.document_text(name)?;
    let now = keep(store, name, record, progress)?;
    store.write_snapshot_document(name, &label, &text)?;
    let snapshot =
        Snapshot { label: label.clone(), created: seconds(), why, running: now.frozen.is_some(), layers: now.layers };
    record.snapshots.push(snapshot);
    store.commit(name, record)?;
    event::tell(store, name, What::Snapshotted, Some(label.to_string()));
    Ok(Taken { label, frozen: now.frozen, copied: now.copied })
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// `word` and a number beyond that of every snapshot there is.
fn free_label(record: &Record, word: &str) -> Result<Label> {
    let number = |snapshot: &Snapshot| snapshot.label.as_str().strip_prefix(word)?.parse::<u32>().ok();
    let last = record.snapshots.iter().filter_map(number).max().unwrap_or(0);
    format!("{word}{}", last.saturating_add(1)).parse()
}

/// Takes a snapshot before a start, if anything was written since the last one, and forgets the oldest beyond `most`.
/// What the user should know comes back. The caller holds the container's lock.
pub(crate) fn before_start(store: &Store, name: &Name, record: &mut Record, most: u32) -> Result<Vec<String>> {
    if record.storage == Storage::Copy {
        return Ok(vec!["no snapshot is taken before the start, since its root would be copied as a whole".into()]);
    }
    if store.is_untouched(name, record)? {
        return Ok(Vec::new());
    }
    let label = free_label(record, "auto")?;
    let taking = || format!("taking a snapshot of `{name}` before its start");
    take(store, name, record, label, Why::BeforeStart, &mut |_| {}).with_context(taking)?;
    let automatic: Vec<Label> =
        record.snapshots.iter().filter(|s| s.why == Why::BeforeStart).map(|s| s.label.clone()).collect();
    let old = &automatic[..automatic.len().saturating_sub(most as usize)];
    if !old.is_empty() {
        forget(store, name, record, |snapshot| old.contains(&snapshot.label))?;
    }
    Ok(Vec::new())
}

/// What a container's files are now, as layers that nobody writes to.
pub(crate) struct Kept {
    /// All between the image and what is to be written.
    pub layers: Vec<LayerId>,
    pub frozen: Option<Duration>,
    pub copied: u64,
    /// What was made for it goes with this, unless a record names it by then.
    _workshop: Option<Clearing>,
}

/// A workshop that is cleared when it is not needed any more.
struct Clearing(Store, Option<Workshop>);

impl Drop for Clearing {
    fn drop(&mut self) {
        if let Some(workshop) = self.1.take() {
            // Left behind, the next command removes it.
            let _ = self.0.clear(workshop);
        }
    }
}

/// Makes layers of what a container is now. The record may be changed by that, and is the caller's to commit; until it
/// is, nothing has happened.
pub(crate) fn keep(
    store: &Store,
    name: &Name,
    record: &mut Record,
    progress: &mut dyn FnMut(Progress),
) -> Result<Kept> {
    let runs = store.is_kept(name)?;
    if record.storage == Storage::Copy && !runs {
        return copied(store, &store.whole(name, record)?, progress);
    }
    if runs {
        refuse_volatile(store, name)?;
    }
    if store.is_untouched(name, record)? {
        let (layers, frozen) = (record.layers.clone(), runs.then_some(Duration::ZERO));
        return Ok(Kept { layers, frozen, copied: 0, _workshop: None });
    }
    if runs {
        let aside = set_aside(store, name, record, progress)?;
        let mut layers = vec![store.adopt_layer(&aside.path)?];
        layers.extend(record.layers.iter().cloned());
        return Ok(Kept { layers, frozen: Some(aside.frozen), copied: aside.copied, _workshop: Some(aside.workshop) });
    }
    let merged = match record.layers.len() >= DEEPEST {
        true => Some(copied(store, &store.stack_of(&record.layers)?, progress)?),
        false => None,
    };
    if let Some(merged) = &merged {
        record.layers = merged.layers.clone();
    }
    let push = LayerId::new()?;
    record.layers.insert(0, push.clone());
    record.pending = Some(Pending { push: Some(push), ..Pending::default() });
    let (copied, workshop) = merged.map_or((0, None), |merged| (merged.copied, merged._workshop));
    Ok(Kept { layers: record.layers.clone(), frozen: None, copied, _workshop: workshop })
}

/// A copy of what a running container has written, all of one moment.
struct Aside {
    path: PathBuf,
    frozen: Duration,
    copied: u64,
    workshop: Clearing,
}

/// Copies it while the container is frozen, and forces it to disk when it runs again.
fn set_aside(store: &Store, name: &Name, record: &Record, progress: &mut dyn FnMut(Progress)) -> Result<Aside> {
    let workshop = store.workshop("layer")?;
    let path = workshop.path().join("layer");
    let workshop = Clearing(store.clone(), Some(workshop));
    let written = match record.storage {
        Storage::Overlay => store.stack_written(name, record)?,
        Storage::Copy => store.whole(name, record)?,
    };
    let (copied, frozen) = while_frozen(store, name, || copy_into(&written, &path, 0, progress))?;
    cache::leave_out(store, name, &path)?;
    sync(&path)?;
    Ok(Aside { path, frozen, copied, workshop })
}

/// The files of a container at one moment, to be read at leisure.
pub(crate) struct Still {
    /// The whole root file system. Its ids are as on disk.
    pub whole: Stack,
    /// What is different from the image; `None` where the whole root is a copy.
    pub changes: Option<Stack>,
    /// How long it was frozen, if it runs, and how much was copied meanwhile.
    pub frozen: Option<(Duration, u64)>,
    _workshop: Option<Clearing>,
}

/// Holds a container's files still: one that does not run, by the lock that the caller holds; of one that runs, what
/// it has written is copied.
pub(crate) fn still(store: &Store, name: &Name, record: &Record, progress: &mut dyn FnMut(Progress)) -> Result<Still> {
    let aside = match store.is_kept(name)? {
        true => {
            refuse_volatile(store, name)?;
            Some(set_aside(store, name, record, progress)?)
        }
        false => None,
    };
    let top = aside.as_ref().map_or_else(|| store.written(name, record), |aside| aside.path.clone());
    let changes = match record.storage {
        Storage::Overlay => Some(store.changes_below(&top, record)?),
        Storage::Copy => None,
    };
    let frozen = aside.as_ref().map(|aside| (aside.frozen, aside.copied));
    Ok(Still { whole: store.whole_below(&top, record)?, changes, frozen, _workshop: aside.map(|aside| aside.workshop) })
}

/// What a container writes in memory is in nobody's reach.
pub(crate) fn refuse_volatile(store: &Store, name: &Name) -> Result<()> {
    match running(store, name)?.config.volatile {
        true => Err(error(format!("what `{name}` writes is in memory and ends with its run"))
            .kind(Kind::Running)
            .hint(format!("stop it first, to have what it began with: lazaret stop {name}"))),
        false => Ok(()),
    }
}

/// Copies a tree into a layer of its own.
fn copied(store: &Store, tree: &Stack, progress: &mut dyn FnMut(Progress)) -> Result<Kept> {
    let workshop = store.workshop("layer")?;
    let made = workshop.path().join("layer");
    let clearing = Clearing(store.clone(), Some(workshop));
    let bytes = copy_into(tree, &made, 0, progress)?;
    sync(&made)?;
    let layers = vec![store.adopt_layer(&made)?];
    Ok(Kept { layers, frozen: None, copied: bytes, _workshop: Some(clearing) })
}

/// Copies a tree into a new directory. The number of bytes.
pub(crate) fn copy_into(tree: &Stack, into: &Path, shift: i64, progress: &mut dyn FnMut(Progress)) -> Result<u64> {
    DirBuilder::new().mode(0o700).create(into).with_context(|| format!("making `{}`", into.display()))?;
    let fd = open(into, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(copy_tree(tree, fd.as_fd(), shift, progress)?.bytes)
}

/// Everything is on the disk before a record says that it is there. One call for all the files of a tree.
pub(crate) fn sync(tree: &Path) -> Result<()> {
    let fd = open(tree, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::syncfs(&fd).context("writing the copy to the disk")
}

/// Does something while no process of the container runs, and says for how long none did.
pub(crate) fn while_frozen<T>(store: &Store, name: &Name, act: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let payload = running(store, name)?.state.group.payload(&Hierarchies::probe()?);
    if cgroup::frozen(&payload) {
        // By its owner, who thaws it when he likes.
        return Ok((act()?, Duration::ZERO));
    }
    let begun = Instant::now();
    store.note_freeze(name)?;
    let done = cgroup::freeze(&payload, true, LAST_BREATH).context("freezing it").and_then(|()| act());
    // Whatever came of it. It may have been killed meanwhile, and then nothing is left to thaw.
    let thawed = cgroup::freeze(&payload, false, LAST_BREATH);
    if thawed.is_ok() || !store.is_kept(name)? {
        store.forget_freeze(name);
    }
    let done = done?;
    thawed.context("thawing it")?;
    Ok((done, begun.elapsed()))
}

/// Removes a snapshot, and what nobody else needs of it.
pub fn remove(store: &Store, name: &Name, label: &Label) -> Result<()> {
    store.require(name)?;
    let lock = store.lock(name)?;
    recover_locked(store, name)?;
    let mut record = store.record(name)?;
    record.snapshot(label)?;
    forget(store, name, &mut record, |snapshot| snapshot.label == *label)?;
    drop(lock);
    collect(store)
}

/// Forgets the snapshots that `which` names; their layers are left to be collected.
fn forget(store: &Store, name: &Name, record: &mut Record, which: impl Fn(&Snapshot) -> bool) -> Result<()> {
    let gone: Vec<Label> = record.snapshots.iter().filter(|s| which(s)).map(|s| s.label.clone()).collect();
    record.snapshots.retain(|snapshot| !which(snapshot));
    store.commit(name, record).with_context(|| format!("forgetting a snapshot of `{name}`"))?;
    gone.iter().for_each(|label| store.forget_snapshot_document(name, label));
    Ok(())
}

/// Makes a stopped container what it was when a snapshot was taken: its files and its configuration. What it was until
/// now is kept as a snapshot, whose label comes back.
pub fn rollback(store: &Store, name: &Name, label: &Label, progress: &mut dyn FnMut(Progress)) -> Result<Label> {
    let lock = hold(store, name)?;
    let mut record = store.record(name)?;
    let rolling = || format!("rolling `{name}` back to `{label}`");
    let wanted = record.snapshot(label).with_context(rolling)?.layers.clone();
    if store.is_kept(name)? {
        return Err(error(format!("`{name}` is running"))
            .kind(Kind::Running)
            .hint(format!("stop it first, or have that done: lazaret rollback {name} {label} --restart")));
    }
    let safety = free_label(&record, &format!("before-{label}-"))?;
    roll(store, name, &mut record, label, wanted, &safety, progress).with_context(rolling)?;
    event::tell(store, name, What::RolledBack, Some(label.to_string()));
    drop(lock);
    Ok(safety)
}

/// One record says all of it: the safety snapshot, and the exchange of what is written to.
fn roll(
    store: &Store,
    name: &Name,
    record: &mut Record,
    label: &Label,
    wanted: Vec<LayerId>,
    safety: &Label,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    store.write_snapshot_document(name, safety, &store.document_text(name)?)?;
    let push = LayerId::new()?;
    let mut pending = Pending { push: Some(push.clone()), pull: None, restore: Some(label.clone()) };
    let mut before = vec![push];
    let pulled = match record.storage {
        Storage::Overlay => {
            before.append(&mut record.layers);
            record.layers = wanted;
            None
        }
        Storage::Copy => Some(copied(store, &store.plain_layer(&wanted)?, progress)?),
    };
    pending.pull = pulled.as_ref().and_then(|copy| copy.layers.first().cloned());
    let (created, why) = (seconds(), Why::BeforeRollback);
    record.snapshots.push(Snapshot { label: safety.clone(), created, why, running: false, layers: before });
    record.pending = Some(pending);
    store.commit(name, record)
}

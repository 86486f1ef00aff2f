//! Making containers, renaming and removing them.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use lazaret_base::{Context, Kind, Lock, Result, Undo, error};
use lazaret_config::{Document, Name};
use lazaret_image::{Facts, Progress, Template};
use lazaret_net::lease;
use rustix::fs::{Mode, OFlags, open};

use crate::event::{self, What};
use crate::image::{self, Found};
use crate::launcher;
use crate::recover::{collect, recover_locked};
use crate::store::{Ids, Image, ImageBind, Record, Storage, Store, part, write_container};
use crate::{ids, stop};

/// What to make.
pub struct Create<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Its configuration; `image` in it says what it is made from.
    pub document: &'a Document,
    /// Whether it goes when it stops. Such a container is not forced to disk.
    pub ephemeral: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Created {
    /// What it was made of.
    pub record: Record,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Makes a container: all of it, or none.
pub fn create(store: &Store, wanted: &Create<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Created> {
    store.prepare()?;
    let _lock = store.lock(wanted.name)?;
    create_locked(store, wanted, progress)
}

/// The same for a caller that holds the container's lock.
pub(crate) fn create_locked(store: &Store, wanted: &Create<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Created> {
    let name = wanted.name;
    recover_locked(store, name)?;
    refuse_taken(store, name)?;
    let reference = &wanted.document.config().image;
    let finding = || format!("preparing the image `{reference}`");
    let Chosen { image, templates, mut notes } = find_image(store, reference, progress).with_context(finding)?;
    let document = hinted(wanted.document, &image, &mut notes);
    let wanted = Create { document: &document, ..*wanted };
    let record = make(store, &wanted, |dir, ids| {
        let storage = root_file_system(store, dir, &image, ids, &mut notes, progress)?;
        notes.extend(write_templates(dir, &image, storage, ids, name, &templates)?);
        Ok(Record::new(image, ids, storage, wanted.ephemeral))
    });
    record.with_context(|| format!("creating `{name}`")).map(|record| Created { record, notes })
}

/// The configuration with what the image says of itself, where the user has said nothing.
fn hinted(document: &Document, image: &Image, notes: &mut Vec<String>) -> Document {
    let mut document = document.clone();
    let signal = image.program.as_ref().and_then(|program| program.stop_signal.as_deref());
    if let Some(signal) = signal.filter(|_| document.config().stop_signal.is_none())
        && document.set("stop_signal", signal).is_err()
    {
        notes.push(format!("the image's stop signal `{signal}` is not known here"));
    }
    document
}

/// Writes what the image wants written into each of its containers.
fn write_templates(
    dir: &Path,
    image: &Image,
    storage: Storage,
    ids: Option<Ids>,
    name: &Name,
    templates: &[Template],
) -> Result<Vec<String>> {
    if templates.is_empty() {
        return Ok(Vec::new());
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let layer = open(&image.rootfs, flags, Mode::empty()).context("opening the image's tree")?;
    let shift = match storage {
        Storage::Overlay => 0,
        Storage::Copy => ids.map_or(0, |ids| ids.start),
    };
    let own = open(dir.join(part(storage)), flags, Mode::empty()).context("opening the container's tree")?;
    let architecture = std::env::consts::ARCH;
    let facts = Facts { name: name.as_str(), architecture, privileged: ids.is_none() };
    Ok(lazaret_image::seed(templates, &facts, layer.as_fd(), own.as_fd(), shift))
}

pub(crate) fn refuse_taken(store: &Store, name: &Name) -> Result<()> {
    match store.exists(name) {
        true => Err(error(format!("there is a container `{name}` already"))
            .kind(Kind::Exists)
            .hint(format!("choose another name, or remove it: lazaret destroy {name}"))),
        false => Ok(()),
    }
}

/// Makes a container whose files `root` puts into its directory. The caller holds its lock.
pub(crate) fn make(
    store: &Store,
    wanted: &Create<'_>,
    root: impl FnOnce(&Path, Option<Ids>) -> Result<Record>,
) -> Result<Record> {
    let name = wanted.name;
    let mut undo = Undo::new();
    let workshop = store.workshop("new")?;
    let made = workshop.path.clone();
    let dir = made.join("container");
    undo.push({
        let store = store.clone();
        // What can't be removed now is removed by the next command.
        move || drop(store.clear(workshop))
    });
    fs::DirBuilder::new().mode(0o700).create(&dir).context("making its directory")?;

    let all = store.lock_all()?;
    let ids = match wanted.document.config().privileged {
        true => None,
        false => Some(ids::take(store, name)?),
    };
    drop(all);
    undo.push(move || {
        if let Some(ids) = ids {
            // Given back by the next command otherwise.
            let _ = ids::release(store, ids);
        }
    });

    let record = root(&dir, ids)?;
    write_container(&dir, wanted.document, &record, !wanted.ephemeral)?;
    // Under the lock of all, so that whoever collects abandoned ids sees the name or the workshop.
    let _all = store.lock_all()?;
    if wanted.ephemeral {
        // Whoever is to keep it may be killed before it does: the next command sees that nobody does.
        store.announce(name)?;
        undo.push(|| drop(store.forget_run(name)));
    }
    if !record.image.rootfs.exists() {
        // Whoever removes an image looks for its containers under this lock.
        return Err(error(format!("the image `{}` was removed meanwhile", record.image.name)).kind(Kind::NotFound));
    }
    store.publish(&dir, name)?;
    undo.keep();
    let _ = fs::remove_dir(&made);
    let _ = fs::remove_file(made.with_extension("lock"));
    event::tell(store, name, What::Created, None);
    Ok(record)
}

/// What a container is to be made from.
pub struct Chosen {
    /// As the container remembers it.
    pub image: Image,
    /// What the image wants written into each of its containers.
    pub templates: Vec<Template>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Finds what a container is to be made from; unpacks an archive that was not seen before. Nothing is fetched: see
/// [`image::ensure`].
pub fn find_image(store: &Store, reference: &str, progress: &mut dyn FnMut(Progress)) -> Result<Chosen> {
    if reference == "host" {
        let host = store.images()?.host()?;
        let binds = host.binds.into_iter().map(|b| ImageBind { source: b.source, target: b.target }).collect();
        let layer = host.layer.id.to_string();
        let image = Image { name: "host".into(), layer, rootfs: host.layer.rootfs, binds, bare: true, program: None };
        return Ok(Chosen { image, templates: Vec::new(), notes: host.layer.warnings });
    }
    let Found { name, layer, image } = image::find(store, reference, progress)?;
    let (templates, program, asks) =
        image.map_or_else(Default::default, |image| (image.templates, image.program, image.about.requirements));
    let mut notes = layer.warnings;
    // What weakens the wall is the user's to decide.
    notes.extend(asks.iter().map(|ask| format!("the image asks for `{ask}`, which is not set by itself")));
    let (id, binds) = (layer.id.to_string(), Vec::new());
    let image = Image { name, layer: id, rootfs: layer.rootfs, binds, bare: false, program };
    Ok(Chosen { image, templates, notes })
}

/// The container's own part of its root file system.
pub(crate) fn root_file_system(
    store: &Store,
    dir: &Path,
    image: &Image,
    ids: Option<Ids>,
    notes: &mut Vec<String>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Storage> {
    let why_not = match ids {
        Some(_) => store.cannot_overlay(&image.rootfs)?,
        None => None,
    };
    let layer = open(&image.rootfs, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening the image's tree `{}`", image.rootfs.display()))?;
    let Some(why_not) = why_not else {
        make_upper(dir, layer.as_fd())?;
        return Ok(Storage::Overlay);
    };
    notes.push(format!(
        "{why_not}, so the whole image is copied with the container's ids: this takes longer and needs space"
    ));
    let rootfs = dir.join("rootfs");
    fs::DirBuilder::new().mode(0o755).create(&rootfs).context("making `rootfs`")?;
    let into = open(&rootfs, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let shift = ids.map_or(0, |ids| ids.start);
    lazaret_image::copy_shifted(layer.as_fd(), into.as_fd(), shift, progress).context("copying the image")?;
    Ok(Storage::Copy)
}

/// What an overlay writes to: as empty as can be, and the root's attributes are those of the layer below.
pub(crate) fn make_upper(dir: &Path, below: BorrowedFd<'_>) -> Result<()> {
    for part in ["upper", "work"] {
        fs::DirBuilder::new().mode(0o755).create(dir.join(part)).with_context(|| format!("making `{part}`"))?;
    }
    let upper = open(dir.join("upper"), OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    lazaret_image::dress_root(&upper, below).context("making `upper`")
}

/// Takes the locks of a container that is there and of a name that is free.
pub(crate) fn hold_pair(store: &Store, from: &Name, to: &Name) -> Result<[Lock; 2]> {
    // Always in the same order, or two commands could wait for each other.
    let (first, second) = if from < to { (from, to) } else { (to, from) };
    let locks = [store.lock(first)?, store.lock(second)?];
    recover_locked(store, from)?;
    recover_locked(store, to)?;
    store.require(from)?;
    refuse_taken(store, to)?;
    Ok(locks)
}

/// `PREFIX-` and six letters that no container has yet; `None` if none is found.
pub(crate) fn free_name(store: &Store, prefix: &str) -> Result<Option<Name>> {
    for _ in 0..100 {
        let mut random = [0u8; 6];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let letters: String = random.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let name: Name = format!("{prefix}-{letters}").parse()?;
        if !store.exists(&name) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Takes a container away that never ran.
pub(crate) fn discard(store: &Store, name: &Name) {
    // What stays is removed by the next command.
    let _ = remove(store, name);
    let _ = store.forget_run(name);
}

/// Gives a stopped container another name.
pub fn rename(store: &Store, from: &Name, to: &Name) -> Result<()> {
    store.require(from)?;
    if from == to {
        return Ok(());
    }
    let locks = hold_pair(store, from, to)?;
    if store.is_kept(from)? {
        return Err(error(format!("`{from}` is running"))
            .kind(Kind::Running)
            .hint(format!("stop it first: lazaret stop {from}")));
    }
    let all = store.lock_all()?;
    store.rename(from, to)?;
    lease::rename(&store.network().leases(), from.as_str(), to.as_str());
    event::tell(store, from, What::Renamed, Some(to.to_string()));
    drop((all, locks));
    launcher::follow(store, to).with_context(|| format!("renaming what menus show of `{to}`"))
}

/// Removes a container with all its files; with `force`, one that runs, too.
pub fn destroy(store: &Store, name: &Name, force: bool) -> Result<()> {
    store.require(name)?;
    let lock = store.lock(name)?;
    recover_locked(store, name)?;
    store.require(name)?;
    if store.is_kept(name)? {
        if !force {
            return Err(error(format!("`{name}` is running"))
                .kind(Kind::Running)
                .hint(format!("stop it first, or end and remove it in one go: lazaret destroy --force {name}")));
        }
        stop::kill(store, name)?;
    }
    // A container of `run` removes itself at its end.
    if store.exists(name) {
        remove(store, name)?;
    }
    store.forget_lock(name);
    drop(lock);
    // A good moment to look after what others left.
    collect(store)
}

/// Removes a container that does not run. The caller holds its lock or is its keeper.
pub(crate) fn remove(store: &Store, name: &Name) -> Result<()> {
    let removing = || format!("removing `{name}`");
    let record = store.record(name);
    lease::remove(&store.network().leases(), name.as_str());
    let launchers = launcher::of(store, name);
    let workshop = store.retire(name).with_context(removing)?;
    launcher::forget(&launchers);
    // Its files bear no ids of their own, so the range can go before they are gone.
    if let Ok(Record { ids: Some(ids), .. }) = record {
        ids::release(store, ids).with_context(removing)?;
    }
    event::tell(store, name, What::Destroyed, None);
    store.clear(workshop).with_context(removing)
}

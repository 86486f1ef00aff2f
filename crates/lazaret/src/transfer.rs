//! A container as one file, and back again; images and containers for other programs.
//!
//! The file is a tar archive, compressed with zstd unless its name says otherwise: `lazaret.json` (what it is),
//! `container.toml` (the configuration, as the user wrote it), and the whole root file system below `rootfs/`, with
//! plain ids. A container of the image `host` is sent without this system's programs: what it has changed stands below
//! `changes/`, as a layer of overlayfs. Snapshots stay where they are.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::{Config, Device, Document, Name, Share};
use lazaret_image::{
    Archive, Compression, Compressor, Label, Limits, Manner, Packed, Program, Progress, Stack, copy_tree,
    leading_files, unpack_changes, write_oci, write_unified,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::create::{Chosen, Create, find_image, make, refuse_taken, root_file_system};
use crate::image;
use crate::publish::refuse_host;
use crate::recover::{hold, recover_locked};
use crate::snapshot::{Still, still};
use crate::store::{Ids, Image, Record, Storage, Store, open_tree};

/// For whom a container or image is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For ourselves: everything, configuration included.
    Lazaret,
    /// For podman, docker and registries: an OCI image layout.
    Oci,
    /// For Incus and LXD: a unified tarball.
    Incus,
}

/// What to write, and where.
pub struct Export<'a> {
    /// The file. It appears when it is whole.
    pub file: &'a Path,
    /// For whom.
    pub format: Format,
    /// Whether a file that is there is replaced.
    pub force: bool,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Bytes of the file.
    pub bytes: u64,
    /// How long the container was frozen and how much was copied meanwhile, if it was running.
    pub frozen: Option<(Duration, u64)>,
    /// What could not be kept, one sentence each.
    pub notes: Vec<String>,
}

/// The version of the file that is written now. A higher one is refused, not guessed at.
const FORMAT: u32 = 1;
const DESCRIPTION: &str = "lazaret.json";
const CONFIGURATION: &str = "container.toml";
/// Neither of the two is longer.
const LONGEST: u64 = 1 << 20;

/// `lazaret.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    format: u32,
    name: Name,
    /// What it was made from, as it was called there.
    image: String,
    content: Content,
    created: u64,
    /// Whether it has no init by nature.
    bare: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    program: Option<Program>,
}

/// What is in the file beside the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Content {
    /// The whole root file system.
    Rootfs,
    /// What is different from the image `host`.
    Changes,
}

impl Content {
    fn prefix(self) -> &'static str {
        match self {
            Content::Rootfs => "rootfs",
            Content::Changes => "changes",
        }
    }
}

/// Writes a container to a file. A running one is frozen while what it has written is copied; the file is made of the
/// copy.
pub fn export(store: &Store, name: &Name, export: &Export<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Exported> {
    let _lock = hold(store, name)?;
    let record = store.record(name)?;
    if export.format != Format::Lazaret {
        refuse_host(name, &record)?;
    }
    let text = store.document_text(name)?;
    let exporting = || format!("exporting `{name}` to `{}`", export.file.display());
    write_whole(export, |file| {
        let still = still(store, name, &record, progress)?;
        let source = Source { name, record: &record, text: &text };
        let packed = write_container(file, export, &source, &still, progress)?;
        Ok(Exported { bytes: file.metadata()?.len(), frozen: still.frozen, notes: packed.warnings })
    })
    .with_context(exporting)
}

/// Writes an image that is here to a file, for whom it may concern; for ourselves, as an archive that can be imported.
pub fn export_image(
    store: &Store,
    reference: &str,
    export: &Export<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Exported> {
    let exporting = || format!("exporting the image `{reference}` to `{}`", export.file.display());
    if reference == "host" {
        return Err(error("it is this system's own programs, which are no part of it").kind(Kind::Invalid))
            .with_context(exporting);
    }
    let found = image::find(store, reference, progress).with_context(exporting)?;
    let tree = Stack::plain(open_tree(&found.layer.rootfs)?);
    let mut label = Label {
        name: found.name.clone(),
        created: found.layer.created,
        architecture: found.layer.architecture.clone(),
        ..Label::default()
    };
    if let Some(image) = &found.image {
        (label.description, label.program) = (image.about.description.clone(), image.program.clone());
    }
    write_whole(export, |file| {
        let packed = match export.format {
            Format::Oci => write_oci(file, &tree, 0, &label, progress)?,
            Format::Incus => {
                compressed(file, compression(export), |out| write_unified(out, &tree, 0, &label, progress))?
            }
            Format::Lazaret => compressed(file, compression(export), |out| {
                let mut archive = Archive::new(out);
                let packed = archive.tree(&tree, Manner::default(), progress)?;
                Ok((packed, archive.finish()?))
            })?,
        };
        Ok(Exported { bytes: file.metadata()?.len(), frozen: None, notes: packed.warnings })
    })
    .with_context(exporting)
}

/// What a container's file is made of.
struct Source<'a> {
    name: &'a Name,
    record: &'a Record,
    text: &'a str,
}

fn write_container(
    file: &File,
    export: &Export<'_>,
    source: &Source<'_>,
    still: &Still,
    progress: &mut dyn FnMut(Progress),
) -> Result<Packed> {
    let (record, shift) = (source.record, source.record.shift_to_plain());
    let label = || {
        let description = Document::parse(CONFIGURATION, source.text)
            .map_or_else(|_| String::new(), |document| document.config().description.clone());
        let (name, program) = (source.name.to_string(), record.image.program.clone());
        Label { name, description, created: record.created, architecture: None, program }
    };
    match export.format {
        Format::Oci => write_oci(file, &still.whole, shift, &label(), progress),
        Format::Incus => {
            compressed(file, compression(export), |out| write_unified(out, &still.whole, shift, &label(), progress))
        }
        Format::Lazaret => compressed(file, compression(export), |out| write_own(out, source, still, progress)),
    }
}

fn write_own<W: std::io::Write>(
    out: W,
    source: &Source<'_>,
    still: &Still,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Packed, W)> {
    let record = source.record;
    let content = if record.image.binds.is_empty() { Content::Rootfs } else { Content::Changes };
    let description = Description {
        format: FORMAT,
        name: source.name.clone(),
        image: record.image.name.clone(),
        content,
        created: record.created,
        bare: record.image.bare,
        program: record.image.program.clone(),
    };
    let json = serde_json::to_vec_pretty(&description).map_err(|e| error(e.to_string()))?;
    let mut archive = Archive::new(out);
    archive.file(DESCRIPTION, record.created, &json)?;
    archive.file(CONFIGURATION, record.created, source.text.as_bytes())?;
    let tree = match (content, &still.changes) {
        (Content::Changes, Some(changes)) => changes,
        // Copied whole, it has no changes that stand alone.
        (Content::Changes, None) => {
            return Err(error("its root file system is a copy, of which the changes can't be told from the rest")
                .hint("export it where the file system can be id-mapped"));
        }
        (Content::Rootfs, _) => &still.whole,
    };
    let manner = Manner { prefix: content.prefix(), shift: record.shift_to_plain(), oci: false };
    let packed = archive.tree(tree, manner, progress)?;
    Ok((packed, archive.finish()?))
}

/// As the file's name says; else as whoever reads it likes it best.
fn compression(export: &Export<'_>) -> Compression {
    Compression::of(export.file).unwrap_or(match export.format {
        Format::Incus => Compression::Gzip,
        _ => Compression::Zstd,
    })
}

type Out<'f> = Compressor<BufWriter<&'f File>>;

fn compressed<'f>(
    file: &'f File,
    compression: Compression,
    write: impl FnOnce(Out<'f>) -> Result<(Packed, Out<'f>)>,
) -> Result<Packed> {
    let (packed, out) = write(Compressor::new(compression, BufWriter::with_capacity(256 << 10, file))?)?;
    out.finish()?.into_inner().map_err(|e| Error::from(e.into_error())).context("writing the archive")?;
    Ok(packed)
}

/// Whoever wrote a file knows nothing of this host: what it asks of it is left out, and told.
fn leave_host_alone(document: &mut Document, name: &Name) -> Result<Vec<String>> {
    let config = document.config();
    let share = |share: &Share| {
        let (source, target) = (share.source.display(), share.target.display());
        format!("the file asks for `{source}` of this host; if you want that: lazaret share {name} {source}:{target}")
    };
    let device = |device: &Device| {
        let which = &device.which;
        format!("the file asks for the device `{which}`; if you want that: lazaret device {name} {which}")
    };
    let notes = config.shares.iter().map(share).chain(config.devices.iter().map(device)).collect();
    document.unset("shares")?;
    document.unset("devices")?;
    Ok(notes)
}

// --- a file that is whole or absent ---

/// Writes a file without a name, which it gets when it is whole: killed in between, nothing is left.
fn write_whole<T>(export: &Export<'_>, write: impl FnOnce(&File) -> Result<T>) -> Result<T> {
    let path = export.file;
    if !export.force && path.symlink_metadata().is_ok() {
        return Err(error("the file is there already").kind(Kind::Exists).hint("replace it: --force"));
    }
    let (parent, name) = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => (parent, name),
        _ => return Err(error("it is not a file name").kind(Kind::Invalid)),
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let dir = open(parent, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("opening `{}`", parent.display()))?;
    let temporary = format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id());
    // A container's files are for nobody else's eyes.
    let mode = Mode::RUSR | Mode::WUSR;
    let unnamed = openat(&dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
    let (fd, named) = match unnamed {
        Ok(fd) => (fd, false),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
            let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            (openat(&dir, &temporary, flags, mode)?, true)
        }
        Err(e) => return Err(e.into()),
    };
    let file = File::from(fd);
    let written = write(&file).and_then(|done| {
        file.sync_all()?;
        if !named {
            let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(CWD, itself, &dir, &temporary, AtFlags::SYMLINK_FOLLOW)?;
        }
        renameat(&dir, &temporary, &dir, name)?;
        Ok(done)
    });
    if written.is_err() {
        // Mostly it has no name.
        let _ = unlinkat(&dir, &temporary, AtFlags::empty());
    }
    written.map_err(|e| match e.errno() {
        Some(Errno::NOSPC | Errno::DQUOT) => e.hint("make room there, or write to another file system"),
        _ => e,
    })
}

// --- import ---

/// What came of an import.
#[derive(Debug)]
pub struct Imported {
    /// The container.
    pub record: Record,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Makes a container of a file that [`export`] wrote, under any name. All of it, or none.
///
/// The root file system becomes a layer of the image store, as that of any archive; the same file imported twice is
/// unpacked once. Ids are this installation's to give.
pub fn import(store: &Store, file: &Path, name: &Name, progress: &mut dyn FnMut(Progress)) -> Result<Imported> {
    store.prepare()?;
    let _lock = store.lock(name)?;
    recover_locked(store, name)?;
    refuse_taken(store, name)?;
    let file = std::path::absolute(file)?;
    import_locked(store, &file, name, progress).with_context(|| format!("importing `{}`", file.display()))
}

fn import_locked(store: &Store, file: &Path, name: &Name, progress: &mut dyn FnMut(Progress)) -> Result<Imported> {
    let (description, mut document) = describe(file)?;
    let mut notes = openings(document.config());
    notes.extend(leave_host_alone(&mut document, name)?);
    let shown = file.to_str().ok_or_else(|| error("the file's name is not text"))?;
    if description.content == Content::Rootfs {
        // What it is made from here: this file.
        document.set("image", shown)?;
    }
    let Chosen { mut image, notes: said, .. } = find_image(store, &document.config().image, progress)?;
    notes.extend(said);
    (image.bare, image.program) = (description.bare, description.program.clone());
    let wanted = Create { name, document: &document, ephemeral: false };
    let record = make(store, &wanted, |dir, ids| {
        let storage = root_file_system(store, dir, &image, ids, &mut notes, progress)?;
        if description.content == Content::Changes {
            notes.extend(put_changes(file, dir, storage, ids, &image, progress)?);
        }
        Ok(Record::new(image, ids, storage, false))
    })?;
    Ok(Imported { record, notes })
}

/// What the file says of itself.
fn describe(file: &Path) -> Result<(Description, Document)> {
    let not_ours = || {
        error("it is no container that was exported")
            .kind(Kind::Invalid)
            .hint("to make a container of any archive: lazaret create NAME --image FILE")
    };
    let mut files = leading_files(File::open(file)?, &[DESCRIPTION, CONFIGURATION], LONGEST)?;
    let json = files.remove(DESCRIPTION).ok_or_else(not_ours)?;
    // Its version first: what else stands there may be new.
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(|_| not_ours())?;
    match value["format"].as_u64() {
        Some(format) if format <= u64::from(FORMAT) => {}
        Some(format) => {
            return Err(error(format!("it was written by a newer version (format {format})"))
                .hint("use that version, or a newer one"));
        }
        None => return Err(not_ours()),
    }
    let description = serde_json::from_value(value).map_err(|e| error(e.to_string()).context(DESCRIPTION))?;
    let text = files.remove(CONFIGURATION).ok_or_else(not_ours)?;
    let text = lazaret_config::decode(CONFIGURATION, &text).map_err(Error::from)?;
    Ok((description, Document::parse(CONFIGURATION, text).map_err(Error::from)?))
}

/// What of somebody else's configuration weakens the wall.
fn openings(config: &Config) -> Vec<String> {
    let asks = [("privileged", config.privileged), ("nesting", config.nesting)];
    let said =
        |(key, _): &(&str, bool)| format!("its configuration sets `{key}`: see what that opens before you start it");
    asks.iter().filter(|(_, set)| *set).map(said).collect()
}

/// Lays what was changed over the image.
fn put_changes(
    file: &Path,
    dir: &Path,
    storage: Storage,
    ids: Option<Ids>,
    image: &Image,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>> {
    let unpack_into = |into: &OwnedFd, progress: &mut dyn FnMut(Progress)| {
        unpack_changes(File::open(file)?, into.as_fd(), &Limits::default(), progress)
    };
    if storage == Storage::Overlay {
        let upper = open_tree(&dir.join("upper"))?;
        return unpack_into(&upper, progress).map(|unpacked| unpacked.warnings);
    }
    let make = |part: &str| -> Result<(PathBuf, OwnedFd)> {
        let path = dir.join(part);
        std::fs::create_dir(&path)?;
        let fd = open_tree(&path)?;
        Ok((path, fd))
    };
    let (_, fd) = make("changes")?;
    let unpacked = unpack_into(&fd, progress)?;
    let (rootfs, into) = make("rootfs.new")?;
    let tree = Stack::whole(vec![fd, open_tree(&image.rootfs)?]);
    copy_tree(&tree, into.as_fd(), ids.map_or(0, |ids| i64::from(ids.start)), progress)?;
    let above = open_tree(dir)?;
    for gone in [c"changes", c"rootfs"] {
        lazaret_image::remove_tree(above.as_fd(), gone)?;
    }
    std::fs::rename(rootfs, dir.join("rootfs"))?;
    Ok(unpacked.warnings)
}

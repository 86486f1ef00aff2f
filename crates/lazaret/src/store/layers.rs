//! Layers of the containers' own, and the snapshots that are made of them.
//!
//! A snapshot of a stopped container copies nothing: the directory that was written to becomes a layer that nobody
//! writes to any more, and the container gets a new, empty one above it. The record decides, by one rename; what it
//! says is still to be done is done by whoever takes the container's lock next, should its author be killed.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use lazaret_base::{Context, Error, Kind, Result, error, write_atomic};
use lazaret_config::{Document, Name};
use lazaret_image::{Digest, Stack};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Record, Storage, Store, Workshop, make_private, read, record_text, write_renamed};

/// The name of a layer: random, since it names what it holds for nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerId(Name);

impl LayerId {
    /// One that was never used.
    pub(crate) fn new() -> Result<LayerId> {
        let mut random = [0u8; 10];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        random.iter().map(|byte| format!("{byte:02x}")).collect::<String>().parse().map(LayerId)
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a snapshot is called: unique within its container, and a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Label(Name);

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The rules are those for names of containers.
impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Label> {
        text.parse().map(Label).map_err(|e: Error| {
            let e = error(format!("`{}` can't be the label of a snapshot", text.escape_debug())).hint(e.to_string());
            e.kind(Kind::Invalid)
        })
    }
}

/// Why there is a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Somebody wanted one.
    Asked,
    /// The container was about to be rolled back.
    BeforeRollback,
    /// The container was about to be started, and its configuration asks for a snapshot then.
    BeforeStart,
}

/// What a container was at some time. Its configuration of then lies beside the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What it is called.
    pub label: Label,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// Why.
    pub why: Why,
    /// Whether the container was running.
    pub running: bool,
    /// All between the image and what was to be written, topmost first; for a copied root, the one copy of it.
    pub layers: Vec<LayerId>,
}

/// What a step of a build came to: the layer of what it changed, and the image it was the last step of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// What it changed.
    pub layer: LayerId,
    /// The image, once one was made.
    pub image: Option<String>,
}

/// What is still to be done to a container's files. All of it may be done twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What was written to becomes this layer.
    pub push: Option<LayerId>,
    /// This layer becomes what is written to; without one, that begins empty.
    pub pull: Option<LayerId>,
    /// The configuration becomes that of this snapshot.
    pub restore: Option<Label>,
}

impl Record {
    /// The snapshot of that name; an error lists those there are.
    pub fn snapshot(&self, label: &Label) -> Result<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.label == *label).ok_or_else(|| {
            let known: Vec<_> = self.snapshots.iter().map(|snapshot| format!("`{}`", snapshot.label)).collect();
            let hint = match &known[..] {
                [] => "it has no snapshots".to_owned(),
                known => format!("there are {}", known.join(", ")),
            };
            error(format!("there is no snapshot `{label}`")).kind(Kind::NotFound).hint(hint)
        })
    }

    /// Every layer that is needed for it.
    fn needs(&self) -> impl Iterator<Item = &LayerId> {
        let pending = self.pending.iter().flat_map(|pending| pending.push.iter().chain(&pending.pull));
        self.layers.iter().chain(self.snapshots.iter().flat_map(|snapshot| &snapshot.layers)).chain(pending)
    }
}

impl Store {
    /// Where a layer is.
    pub(crate) fn layer(&self, id: &LayerId) -> PathBuf {
        self.state.join("layers").join(id.0.as_str())
    }

    fn layer_paths<'a>(&self, layers: impl IntoIterator<Item = &'a LayerId>) -> Vec<PathBuf> {
        layers.into_iter().map(|id| self.layer(id)).collect()
    }

    /// What lies below the directory that is written to, topmost first.
    pub(crate) fn lower(&self, record: &Record) -> Vec<PathBuf> {
        let mut lower = self.layer_paths(&record.layers);
        lower.push(record.image.rootfs.clone());
        lower
    }

    /// The directory that the container writes to.
    pub(crate) fn written(&self, name: &Name, record: &Record) -> PathBuf {
        self.container(name).join(part(record.storage))
    }

    /// What a container has changed, above the image; `top` is what it writes to, or a copy of that.
    pub(crate) fn changes_below(&self, top: &Path, record: &Record) -> Result<Stack> {
        let own = [top.to_owned()].into_iter().chain(self.layer_paths(&record.layers));
        Ok(Stack::changes(own.map(|path| open_tree(&path)).collect::<Result<_>>()?))
    }

    /// What layers hold, one over the other, without the image.
    pub(crate) fn stack_of(&self, layers: &[LayerId]) -> Result<Stack> {
        Ok(Stack::changes(self.layer_paths(layers).iter().map(|path| open_tree(path)).collect::<Result<_>>()?))
    }

    /// What was written since the last layer was made.
    pub(crate) fn stack_written(&self, name: &Name, record: &Record) -> Result<Stack> {
        Ok(Stack::changes(vec![open_tree(&self.written(name, record))?]))
    }

    /// The one layer of a copied root.
    pub(crate) fn plain_layer(&self, layers: &[LayerId]) -> Result<Stack> {
        match layers {
            [one] => open_tree(&self.layer(one)).map(Stack::plain),
            _ => Err(error("a copied root is one layer")),
        }
    }

    /// The whole root file system. Ids are as on disk.
    pub(crate) fn whole(&self, name: &Name, record: &Record) -> Result<Stack> {
        self.whole_below(&self.written(name, record), record)
    }

    /// The same with a copy of what the container writes to.
    pub(crate) fn whole_below(&self, top: &Path, record: &Record) -> Result<Stack> {
        let written = open_tree(top)?;
        if record.storage == Storage::Copy {
            return Ok(Stack::plain(written));
        }
        let lower = self.lower(record);
        let layers = [Ok(written)].into_iter().chain(lower.iter().map(|path| open_tree(path)));
        Ok(Stack::whole(layers.collect::<Result<_>>()?))
    }

    /// The tree of a container's image.
    pub(crate) fn image_tree(&self, record: &Record) -> Result<Stack> {
        Ok(Stack::whole(vec![open_tree(&record.image.rootfs)?]))
    }

    /// Whether nothing was written since the directory for it was made.
    pub(crate) fn is_untouched(&self, name: &Name, record: &Record) -> Result<bool> {
        if record.storage == Storage::Copy {
            return Ok(false);
        }
        let lower = self.lower(record);
        lazaret_image::is_untouched(&open_tree(&self.written(name, record))?, &open_tree(&lower[0])?)
    }

    // --- changing them ---

    /// Makes what a record says the truth. From here on it holds, whoever is killed.
    pub(crate) fn commit(&self, name: &Name, record: &mut Record) -> Result<()> {
        write_atomic(&self.container(name).join("record.json"), &record_text(record)?)?;
        self.settle(name, record)
    }

    /// Does what is still to be done. The caller holds the container's lock, and it does not run.
    pub(crate) fn settle(&self, name: &Name, record: &mut Record) -> Result<()> {
        let Some(pending) = &record.pending else { return Ok(()) };
        let settling = || format!("putting the layers of `{name}` in order");
        if pending.push.is_some() || pending.pull.is_some() {
            self.exchange(name, record, pending).with_context(settling)?;
        }
        if let Some(label) = &pending.restore {
            let text = read(&self.snapshot_document(name, label)).with_context(settling)?;
            write_atomic(&self.container(name).join("container.toml"), &text).with_context(settling)?;
        }
        record.pending = None;
        // Not forced to disk: done again after a crash, it comes to the same.
        write_renamed(&self.container(name), "record.json", &record_text(record)?).with_context(settling)
    }

    fn exchange(&self, name: &Name, record: &Record, pending: &Pending) -> Result<()> {
        let written = self.written(name, record);
        if let Some(push) = &pending.push
            && !self.layer(push).exists()
        {
            make_private(&self.state.join("layers"))?;
            rustix::fs::rename(&written, self.layer(push))?;
        }
        if written.exists() {
            return Ok(());
        }
        match &pending.pull {
            Some(pull) => Ok(rustix::fs::rename(self.layer(pull), &written)?),
            None => self.begin_anew(&written, &self.lower(record)[0]),
        }
    }

    /// A directory to write to, with the attributes of the root that it covers. It has its name when it has those.
    fn begin_anew(&self, written: &Path, below: &Path) -> Result<()> {
        let aside = written.with_extension("new");
        match fs::DirBuilder::new().mode(0o755).create(&aside) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made?,
        }
        lazaret_image::dress_root(&open_tree(&aside)?, &open_tree(below)?)?;
        Ok(rustix::fs::rename(&aside, written)?)
    }

    /// Gives a tree that was made in a workshop its place among the layers. The workshop must live until a record
    /// names it.
    pub(crate) fn adopt_layer(&self, made: &Path) -> Result<LayerId> {
        let id = LayerId::new()?;
        make_private(&self.state.join("layers"))?;
        rustix::fs::rename(made, self.layer(&id)).context("naming the layer")?;
        Ok(id)
    }

    /// Layers that no container and no snapshot needs are taken out of sight, to be removed by the caller. Only while
    /// the lock of all is held and nobody is at work on something that has no record yet.
    pub(crate) fn retire_layers(&self) -> Result<Vec<Workshop>> {
        let there = match fs::read_dir(self.state.join("layers")) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("listing the layers")?,
        };
        let mut needed: HashSet<LayerId> = HashSet::new();
        for name in self.names()? {
            match self.record(&name) {
                Ok(record) => needed.extend(record.needs().cloned()),
                // Destroyed meanwhile.
                Err(e) if e.what() == Kind::NotFound || e.errno() == Some(Errno::NOENT) => {}
                // What it needs can't be told, so nothing is free.
                Err(_) => return Ok(Vec::new()),
            }
        }
        needed.extend(self.layers_of_steps());
        let mut retired = Vec::new();
        for entry in there {
            let entry = entry?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(LayerId);
            if id.is_some_and(|id| !needed.contains(&id)) {
                let workshop = self.site("gone")?;
                rustix::fs::rename(entry.path(), &workshop.path)
                    .inspect_err(|_| self.leave(&workshop))
                    .context("taking a layer out of sight")?;
                retired.push(workshop);
            }
        }
        Ok(retired)
    }

    /// Has the next command look for what nobody needs, if there are layers at all.
    pub(crate) fn sweep_later(&self) {
        if self.state.join("layers").exists() {
            // Best effort: what is left is found when the next container is destroyed.
            let _ = fs::write(self.state.join("tmp/sweep.lock"), "");
        }
    }

    // --- steps of builds ---

    fn steps_dir(&self) -> PathBuf {
        self.state.join("build")
    }

    /// What a step of a build once came to.
    pub(crate) fn step(&self, key: &Digest) -> Option<Step> {
        let step: Step = serde_json::from_slice(&read(&self.steps_dir().join(key.hex())).ok()?).ok()?;
        self.layer(&step.layer).exists().then_some(step)
    }

    /// Notes what a step came to; that it was used just now is noted with it.
    pub(crate) fn note_step(&self, key: &Digest, step: &Step) -> Result<()> {
        make_private(&self.steps_dir())?;
        let json = serde_json::to_vec(step).map_err(|e| error(e.to_string()))?;
        write_atomic(&self.steps_dir().join(key.hex()), &json)
    }

    /// Forgets steps that were not used for so long; all of them for no time. Their layers go with the next sweep.
    pub(crate) fn forget_steps(&self, unused: std::time::Duration) {
        for entry in fs::read_dir(self.steps_dir()).into_iter().flatten().flatten() {
            let idle = entry.metadata().ok().and_then(|meta| meta.modified().ok()?.elapsed().ok());
            if idle.is_none_or(|idle| idle >= unused) {
                // What stays is forgotten next time.
                let _ = fs::remove_file(entry.path());
                self.sweep_later();
            }
        }
    }

    /// The layers that steps came to.
    fn layers_of_steps(&self) -> Vec<LayerId> {
        let entries = fs::read_dir(self.steps_dir()).into_iter().flatten().flatten();
        let read = |entry: fs::DirEntry| serde_json::from_slice::<Step>(&read(&entry.path()).ok()?).ok();
        entries.filter_map(read).map(|step| step.layer).collect()
    }

    // --- configurations of snapshots ---

    fn snapshot_document(&self, name: &Name, label: &Label) -> PathBuf {
        self.container(name).join("snapshots").join(format!("{label}.toml"))
    }

    /// Keeps the configuration that belongs to a snapshot which no record names yet.
    pub(crate) fn write_snapshot_document(&self, name: &Name, label: &Label, text: &str) -> Result<()> {
        make_private(&self.container(name).join("snapshots"))?;
        write_atomic(&self.snapshot_document(name, label), text.as_bytes())
    }

    /// The configuration of a snapshot.
    pub(crate) fn read_snapshot_document(&self, name: &Name, label: &Label) -> Result<Document> {
        let bytes = read(&self.snapshot_document(name, label))?;
        let shown = format!("{label}.toml");
        let text = lazaret_config::decode(&shown, &bytes).map_err(Error::from)?;
        Document::parse(&shown, text).map_err(Error::from)
    }

    /// Forgets the configuration of a snapshot that no record names any more.
    pub(crate) fn forget_snapshot_document(&self, name: &Name, label: &Label) {
        // Left behind, the next snapshot of that name overwrites it.
        let _ = fs::remove_file(self.snapshot_document(name, label));
    }

    // --- frozen for a moment ---

    fn thaw_mark(&self, name: &Name) -> PathBuf {
        self.run_dir(name).join("thaw")
    }

    /// Notes that a container is frozen only until its files are copied.
    pub(crate) fn note_freeze(&self, name: &Name) -> Result<()> {
        fs::write(self.thaw_mark(name), "").context("noting that it is frozen for a moment")
    }

    /// It is not any more.
    pub(crate) fn forget_freeze(&self, name: &Name) {
        // Its keeper may have taken all of it away.
        let _ = fs::remove_file(self.thaw_mark(name));
    }

    /// Whether somebody froze it for a moment; if nobody has its lock, he was killed.
    pub(crate) fn is_frozen_for_a_moment(&self, name: &Name) -> bool {
        self.thaw_mark(name).exists()
    }
}

/// The directory of a container that its files are written to.
pub(crate) fn part(storage: Storage) -> &'static str {
    match storage {
        Storage::Overlay => "upper",
        Storage::Copy => "rootfs",
    }
}

/// Opens a directory of ours whose files are looked at; no link is followed to it.
pub(crate) fn open_tree(path: &Path) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, Mode::empty()).with_context(|| format!("opening `{}`", path.display()))
}

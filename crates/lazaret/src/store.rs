//! Where everything is kept. Nothing outside this file knows a path under the state directories.
//!
//! ```text
//! STATE/containers/NAME/   container.toml record.json upper/ work/ (or rootfs/) snapshots/LABEL.toml console.log
//!                          told (while its apt knows of the package cache)
//! STATE/layers/ID/         what was written to a container before a snapshot; nothing writes to it any more
//! STATE/images/            the image store
//! STATE/build/KEY          the layer that a step of a recipe came to
//! STATE/packages/          packages that were fetched, by digest; settings.json says how many may stay, and while `on`
//!                          is there containers use them
//! STATE/ids/START          a taken id range; the file holds the container's name
//! STATE/tmp/               what is being made or removed
//! STATE/network/           netd's: the addresses of the bridge, and each container's
//! RUN/containers/NAME/     alive (locked by the keeper) state.json control scratch/ running.toml filter sharing.json
//!                          devices.json
//!                          gate gate.json wayland wayland.json sound sound.json bus bus.json
//!                               (the gates' sockets, and where they lead)
//!                          microphone (it is switched on)
//!                          session/ (what the container sees of a session: x11/X0 pulse/native)
//! RUN/locks/NAME           one command at a time
//! RUN/netd/                netd's: its socket, and what it has made
//! RUN/cache/               the socket of the package cache
//! RUN/events               one line of JSON for each event
//! ```

mod layers;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Error, Kind, Lock, Result, error, read_bounded, write_atomic};
use lazaret_config::{Config, Document, IdRange, Name, Share};
use lazaret_runtime::cgroup::Group;
use lazaret_runtime::plan::{Bind, Root};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, open, openat2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The state of one installation. Two installations share nothing but the kernel.
#[derive(Clone, Debug)]
pub struct Store {
    state: PathBuf,
    run: PathBuf,
    /// What cgroups and units of this installation's containers are called, before their names.
    prefix: String,
}

/// The version of the files that are written now. A higher one on disk is refused, not guessed at.
const FORMAT: u32 = 1;
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
/// Where a container finds what it is shown of a session.
pub(crate) const DOOR: &str = "/run/lazaret";
/// No file of ours is longer.
const LONGEST_FILE: usize = 1 << 20;

/// What a container was made of, and what became of its layers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this file.
    pub format: u32,
    /// What it was made from.
    pub image: Image,
    /// Its ids on the host; `None` for a privileged container.
    pub ids: Option<Ids>,
    /// How its root file system is kept.
    pub storage: Storage,
    /// When it was created, in seconds since 1970.
    pub created: u64,
    /// Whether it goes when it stops.
    pub ephemeral: bool,
    /// Layers between the image and the one that is written to, topmost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerId>,
    /// Its snapshots, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<Snapshot>,
    /// What is decided and still to be done to its files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// An image, as a container remembers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    /// As the user named it.
    pub name: String,
    /// How the image store finds it again.
    pub layer: String,
    /// Its tree.
    pub rootfs: PathBuf,
    /// Directories of the host that belong to it, read-only.
    pub binds: Vec<ImageBind>,
    /// Whether it has no init by nature, so that ours is its init.
    pub bare: bool,
    /// What it runs, if it is made for one program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<lazaret_image::Program>,
}

/// A directory of the host that belongs to an image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageBind {
    /// Where it is.
    pub source: PathBuf,
    /// Where it appears inside.
    pub target: PathBuf,
}

/// An id range, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// First id on the host.
    pub start: u32,
    /// How many.
    pub count: u32,
}

impl From<Ids> for IdRange {
    fn from(ids: Ids) -> IdRange {
        IdRange { start: ids.start, count: ids.count }
    }
}

/// How a root file system is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// The image's layer under a layer of the container's own, both with plain ids.
    Overlay,
    /// A copy of the image with the container's ids: for file systems that know no id maps.
    Copy,
}

pub use layers::{Label, LayerId, Pending, Snapshot, Why};
pub(crate) use layers::{Step, open_tree, part};

/// Where a running container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The plan is being carried out.
    Starting,
    /// Its init executes.
    Running,
    /// Its processes have ended and what they used is being given back.
    Stopping,
}

/// What the keeper writes about the container it keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunState {
    /// Where it is in its life.
    pub phase: Phase,
    /// The keeper's process id.
    pub keeper: i32,
    /// Process 1, as the host knows it; 0 before there is one.
    pub init: i32,
    /// When process 1 was made, in clock ticks since boot: with the id it names one process for ever.
    pub init_started: u64,
    /// When the container was started, in milliseconds since 1970.
    pub since: u64,
    /// Its cgroups.
    pub group: Group,
    /// Its bounding set.
    pub capabilities: u64,
    /// Its label, if it runs under one.
    pub label: Option<String>,
    /// How it is connected, if it is.
    #[serde(default)]
    pub network: Option<lazaret_net::wire::Attached>,
    /// What could not be done as wished, one sentence each.
    pub notes: Vec<String>,
}

impl Store {
    /// The installation of this machine's root.
    pub fn system() -> Store {
        Store { state: "/var/lib/lazaret".into(), run: "/run/lazaret".into(), prefix: String::new() }
    }

    /// An installation of its own in one directory.
    pub fn at(root: &Path) -> Result<Store> {
        let root = std::path::absolute(root).with_context(|| format!("making sense of `{}`", root.display()))?;
        // FNV-1a: names of this installation's cgroups differ from any other's.
        let hash = root
            .as_os_str()
            .as_bytes()
            .iter()
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        Ok(Store { run: root.join("run"), state: root, prefix: format!("{hash:08x}.") })
    }

    /// The directory that was given for it, if one was: what a re-executed process must be told.
    pub fn root(&self) -> Option<&Path> {
        (!self.prefix.is_empty()).then_some(&*self.state)
    }

    /// What the units of this installation begin with.
    pub(crate) fn unit_prefix(&self) -> &str {
        &self.prefix
    }

    /// The name of a container's cgroup and unit.
    pub fn unit(&self, name: &Name) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Makes the directories that everything else expects. Cheap when they are there.
    pub fn prepare(&self) -> Result<()> {
        if self.run.join("locks").is_dir() && self.state.join("tmp").is_dir() {
            return Ok(());
        }
        let dirs = ["containers", "ids", "tmp"].map(|d| self.state.join(d));
        for dir in dirs.iter().chain(&["containers", "gone", "locks"].map(|d| self.run.join(d))) {
            make_private(dir)?;
        }
        // Made with the umask's and not the mode's parents: only root may look inside.
        fs::set_permissions(&self.state, fs::Permissions::from_mode(0o700))
            .and_then(|()| fs::set_permissions(&self.run, fs::Permissions::from_mode(0o700)))
            .with_context(|| format!("closing `{}` to others", self.state.display()))
            .hint("only root can keep containers; try with sudo")
    }

    /// The image store.
    pub fn images(&self) -> Result<lazaret_image::Store> {
        lazaret_image::Store::open(&self.state.join("images"))
    }

    /// The packages that were fetched.
    pub fn packages(&self) -> Result<lazaret_image::PackageCache> {
        lazaret_image::PackageCache::open(&self.state.join("packages"))
    }

    /// What was decided about them; what is usual if nobody has.
    pub(crate) fn package_settings(&self) -> Result<crate::cache::Settings> {
        match read_json(&self.state.join("packages/settings.json")) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(crate::cache::Settings::default()),
            settings => settings,
        }
    }

    /// Whether containers use them. Asked at every start and by every command: it costs one look.
    pub(crate) fn packages_are_on(&self) -> bool {
        self.state.join("packages/on").exists()
    }

    /// Decides it.
    pub(crate) fn switch_packages(&self, on: bool) -> Result<()> {
        let mark = self.state.join("packages/on");
        let done = match on {
            true => fs::write(&mark, ""),
            false => fs::remove_file(&mark),
        };
        match done {
            Err(e) if on || e.kind() != std::io::ErrorKind::NotFound => Err(e).context("switching the package cache"),
            _ => Ok(()),
        }
    }

    /// Marks a container whose apt is told of the package cache, before it is. The mark outlives a crash.
    pub(crate) fn note_told(&self, name: &Name) -> Result<()> {
        fs::write(self.container(name).join("told"), "").context("noting that apt is told of the package cache")
    }

    /// Whether its apt may have been told of the package cache.
    pub(crate) fn is_told(&self, name: &Name) -> bool {
        self.container(name).join("told").exists()
    }

    /// It is not any more.
    pub(crate) fn forget_told(&self, name: &Name) {
        // Left behind, it lets somebody look once more.
        let _ = fs::remove_file(self.container(name).join("told"));
    }

    /// Decides how.
    pub(crate) fn write_package_settings(&self, settings: &crate::cache::Settings) -> Result<()> {
        make_private(&self.state.join("packages"))?;
        let json = serde_json::to_vec_pretty(settings).map_err(|e| error(e.to_string()))?;
        write_atomic(&self.state.join("packages/settings.json"), &json)
    }

    /// Where a container that is being worked on is made of.
    pub(crate) fn made(&self, name: &Name) -> PathBuf {
        self.container(name)
    }

    /// The servers that images come from: what `remotes.toml` says, or what is so without it. For the whole machine it
    /// stands in /etc/lazaret, for an installation of its own in its directory.
    pub fn remotes(&self) -> Result<lazaret_image::Remotes> {
        let path = self.remotes_file();
        match read(&path) {
            Ok(bytes) => {
                let shown = path.display().to_string();
                let text = lazaret_config::decode(&shown, &bytes).map_err(Error::from)?;
                lazaret_image::Remotes::parse(&shown, text)
            }
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(lazaret_image::Remotes::default()),
            Err(e) => Err(e),
        }
    }

    /// Where the servers are listed.
    pub fn remotes_file(&self) -> PathBuf {
        let dir = if self.prefix.is_empty() { Path::new("/etc/lazaret") } else { &self.state };
        dir.join("remotes.toml")
    }

    /// Places that hold what containers are made of and run by.
    pub(crate) fn own_places(&self) -> Vec<PathBuf> {
        const KEPT: [&str; 8] = ["containers", "layers", "images", "build", "packages", "ids", "tmp", "network"];
        let whole = if self.prefix.is_empty() { vec![self.state.clone()] } else { Vec::new() };
        KEPT.iter().map(|kept| self.state.join(kept)).chain([self.run.clone()]).chain(whole).collect()
    }

    /// A small file of a container as its layers have it, without following a link; `None` if there is none. What it
    /// says is the container's word.
    pub(crate) fn own_file(&self, name: &Name, record: &Record, path: &Path) -> Option<Vec<u8>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        for tree in [self.written(name, record)].into_iter().chain(self.lower(record)) {
            let file = match openat2(open_dir(&tree).ok()?, path, flags, Mode::empty(), resolve) {
                Err(rustix::io::Errno::NOENT) => continue,
                file => file.ok()?,
            };
            // What is no file removes those below (overlayfs.rst), or is none of a container's business.
            let status = rustix::fs::fstat(&file).ok()?;
            if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
                return None;
            }
            let file = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
            return read_bounded(file, LONGEST_FILE).ok();
        }
        None
    }

    /// The state directory, for looking at its file system.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where events are written.
    pub(crate) fn events(&self) -> PathBuf {
        self.run.join("events")
    }

    // --- locks ---

    /// One command at a time changes a container. Waits for the other to finish.
    pub fn lock(&self, name: &Name) -> Result<Lock> {
        Lock::wait(&self.run.join("locks").join(name.as_str()))
    }

    /// The same, but `None` if another command has it.
    pub(crate) fn try_lock(&self, name: &Name) -> Result<Option<Lock>> {
        Lock::try_take(&self.run.join("locks").join(name.as_str()))
    }

    /// The container is gone, and so is the reason for its lock. Only for whoever holds it: others who wait for
    /// it see that the file is gone and begin anew.
    pub(crate) fn forget_lock(&self, name: &Name) {
        // Left behind, it is an empty file.
        let _ = fs::remove_file(self.run.join("locks").join(name.as_str()));
    }

    /// One process at a time changes what containers share: ids and names.
    pub(crate) fn lock_all(&self) -> Result<Lock> {
        // No container can be called this: a name starts with a letter or a digit.
        Lock::wait(&self.run.join("locks").join(".all"))
    }

    // --- containers on disk ---

    /// The names of all containers, sorted.
    pub fn names(&self) -> Result<Vec<Name>> {
        names_in(&self.state.join("containers"))
    }

    /// Names that have something at run time, whether or not a keeper still stands behind it.
    pub(crate) fn running_names(&self) -> Result<Vec<Name>> {
        names_in(&self.run.join("containers"))
    }

    /// Whether there is a container of that name.
    pub fn exists(&self, name: &Name) -> bool {
        self.container(name).join("record.json").exists()
    }

    /// An error if there is none, with the names that come close.
    pub fn require(&self, name: &Name) -> Result<()> {
        if self.exists(name) {
            return Ok(());
        }
        let names = self.names().unwrap_or_default();
        let hint = match names.iter().find(|known| close(known.as_str(), name.as_str())) {
            Some(known) => format!("did you mean `{known}`?"),
            None if names.is_empty() => format!("there is none yet; make it: lazaret create {name}"),
            None => "`lazaret list` shows those there are".to_owned(),
        };
        Err(error(format!("there is no container `{name}`")).kind(Kind::NotFound).hint(hint))
    }

    fn container(&self, name: &Name) -> PathBuf {
        self.state.join("containers").join(name.as_str())
    }

    /// What the container was made of.
    pub fn record(&self, name: &Name) -> Result<Record> {
        self.require(name)?;
        let record: Record = read_json(&self.container(name).join("record.json"))?;
        if record.format > FORMAT {
            return Err(error(format!("`{name}` was written by a newer version (format {})", record.format))
                .hint("use that version, or a newer one"));
        }
        Ok(record)
    }

    /// What the user wants of the container, as text that can be edited.
    pub fn document(&self, name: &Name) -> Result<Document> {
        self.require(name)?;
        let path = self.container(name).join("container.toml");
        let bytes = read(&path)?;
        let shown = "container.toml";
        let text = lazaret_config::decode(shown, &bytes).map_err(Error::from)?;
        Document::parse(shown, text)
            .map_err(|faults| Error::from(faults).hint(format!("mend it: lazaret config {name} edit")))
    }

    /// The text of the configuration, sound or not.
    pub fn document_text(&self, name: &Name) -> Result<String> {
        self.require(name)?;
        Ok(String::from_utf8_lossy(&read(&self.container(name).join("container.toml"))?).into_owned())
    }

    /// Writes the configuration, all or nothing.
    pub fn write_document(&self, name: &Name, document: &Document) -> Result<()> {
        write_atomic(&self.container(name).join("container.toml"), document.to_string().as_bytes())
    }

    /// An existing directory that may be mounted over, in a namespace of one's own, to look at a stopped container.
    pub(crate) fn mounting_place(&self) -> PathBuf {
        self.state.join("tmp")
    }

    /// Where an editor finds the configuration.
    pub fn document_path(&self, name: &Name) -> PathBuf {
        self.container(name).join("container.toml")
    }

    /// The console's log and the one before it.
    pub fn console_logs(&self, name: &Name) -> [PathBuf; 2] {
        [self.container(name).join("console.log.1"), self.container(name).join("console.log")]
    }

    /// Whether the file systems here can do what overlays with id maps need: tried once, then remembered.
    ///
    /// `Ok(None)` if they can, else why not.
    pub(crate) fn cannot_overlay(&self, layer: &Path) -> Result<Option<String>> {
        for path in [self.state.as_path(), layer] {
            let device = rustix::fs::stat(path).with_context(|| format!("looking at `{}`", path.display()))?.st_dev;
            let known = self.state.join("overlay-works").join(device.to_string());
            if known.exists() {
                continue;
            }
            if !lazaret_runtime::idmap::supported(path)? {
                return Ok(Some(format!("the file system of `{}` can't be id-mapped", path.display())));
            }
            let _ = make_private(&self.state.join("overlay-works")).and_then(|()| Ok(fs::write(&known, "")?));
        }
        let own = rustix::fs::statfs(&self.state).context("looking at the state directory")?;
        if own.f_type as u64 == OVERLAYFS_SUPER_MAGIC {
            return Ok(Some("the state directory is on an overlay itself".into()));
        }
        Ok(None)
    }

    /// The root file system, as the plan wants it. Written to in memory, what is on disk is a layer below.
    pub(crate) fn root_of(&self, name: &Name, record: &Record, in_memory: bool) -> Root {
        let mut layers = self.lower(record);
        if in_memory {
            layers.insert(0, self.written(name, record));
        }
        match record.storage {
            Storage::Overlay => {
                Root::Overlay { layers, own: self.container(name), volatile: record.ephemeral, in_memory }
            }
            Storage::Copy => Root::Directory(self.container(name).join("rootfs")),
        }
    }

    /// Publishes a container that was made in a directory of [`Store::workshop`]: from here on it exists.
    pub(crate) fn publish(&self, made: &Path, name: &Name) -> Result<()> {
        let to = self.container(name);
        rustix::fs::renameat_with(rustix::fs::CWD, made, rustix::fs::CWD, &to, rustix::fs::RenameFlags::NOREPLACE)
            .with_context(|| format!("naming the new container `{name}`"))
    }

    /// Gives a container another name.
    pub(crate) fn rename(&self, from: &Name, to: &Name) -> Result<()> {
        self.publish(&self.container(from), to)?;
        if let Ok(Record { ids: Some(ids), .. }) = self.record(to) {
            // For people who look; the range belongs to whose record says so.
            let _ = fs::write(self.ids().join(ids.start.to_string()), to.as_str());
        }
        Ok(())
    }

    /// A new, empty directory to make something in; left behind, the next command removes it.
    pub(crate) fn workshop(&self, what: &str) -> Result<Workshop> {
        let workshop = self.site(what)?;
        make_private(&workshop.path).inspect_err(|_| self.leave(&workshop))?;
        Ok(workshop)
    }

    /// A place for a workshop. Locked before anything is there: who clears up finds nothing without a lock.
    fn site(&self, what: &str) -> Result<Workshop> {
        let since_boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let name = format!("{what}-{}-{}{:09}", std::process::id(), since_boot.tv_sec, since_boot.tv_nsec);
        let path = self.state.join("tmp").join(name);
        let lock = Lock::wait(&self.lock_of_workshop(&path))?;
        Ok(Workshop { path, lock })
    }

    /// Nothing is there any more, so nothing needs the lock.
    fn leave(&self, workshop: &Workshop) {
        // Left behind, the next command removes it.
        let _ = fs::remove_file(self.lock_of_workshop(&workshop.path));
    }

    fn lock_of_workshop(&self, made: &Path) -> PathBuf {
        made.with_extension("lock")
    }

    /// A place for the copy of a file that a person edits; the next command removes it.
    pub fn editing_directory(&self) -> Result<Workshop> {
        self.workshop("edit")
    }

    /// Takes a container out of sight; what was its directory is left to be removed. Needs no room on a full disk.
    pub(crate) fn retire(&self, name: &Name) -> Result<Workshop> {
        let workshop = self.site("gone")?;
        rustix::fs::rename(self.container(name), &workshop.path)
            .inspect_err(|_| self.leave(&workshop))
            .with_context(|| format!("taking `{name}` out of sight"))?;
        Ok(workshop)
    }

    /// Removes a workshop with all that is in it.
    pub fn clear(&self, workshop: Workshop) -> Result<()> {
        remove(&self.state.join("tmp"), &workshop.path)?;
        self.leave(&workshop);
        drop(workshop.lock);
        Ok(())
    }

    /// Whether there is something that a killed command may have left.
    pub(crate) fn is_littered(&self) -> bool {
        let places = [self.state.join("tmp"), self.run.join("gone"), self.state.join("images/tmp")];
        places.iter().any(|dir| fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()))
    }

    /// Removes what killed processes left half-made or half-removed. `false` if somebody living is at work: then a
    /// range of ids may be taken for a container that has no name yet.
    pub(crate) fn clear_abandoned(&self) -> Result<bool> {
        let mut alone = true;
        for entry in fs::read_dir(self.state.join("tmp")).context("looking for what was left half-done")? {
            let path = entry?.path();
            let lock_path = self.lock_of_workshop(&path);
            if let Some(_lock) = Lock::try_take(&lock_path)? {
                remove(&self.state.join("tmp"), &path.with_extension(""))?;
                let _ = fs::remove_file(&lock_path);
            } else {
                alone = false;
            }
        }
        // Whoever is removing one of these right now is helped, not hindered.
        for entry in fs::read_dir(self.run.join("gone")).into_iter().flatten() {
            remove(&self.run.join("gone"), &entry?.path())?;
        }
        Ok(alone)
    }

    // --- network ---

    /// The directory of netd's socket.
    pub(crate) fn netd_dir(&self) -> Result<OwnedFd> {
        let dir = self.run.join("netd");
        match open_dir(&dir) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => make_private(&dir).and_then(|()| open_dir(&dir)),
            other => other,
        }
    }

    /// The directory of the package cache's socket.
    pub(crate) fn cache_dir(&self) -> Result<OwnedFd> {
        let dir = self.run.join("cache");
        match open_dir(&dir) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => make_private(&dir).and_then(|()| open_dir(&dir)),
            other => other,
        }
    }

    /// One process at a time begins or ends the package cache's.
    pub(crate) fn lock_cache_begin(&self) -> Result<Lock> {
        Lock::wait(&self.run.join("cache/begin"))
    }

    /// Where packages are kept.
    pub(crate) fn packages_dir(&self) -> PathBuf {
        self.state.join("packages")
    }

    /// One process at a time begins netd.
    pub(crate) fn lock_netd_begin(&self) -> Result<Lock> {
        Lock::wait(&self.run.join("netd/begin"))
    }

    /// Where netd keeps its things, and what it is called.
    pub(crate) fn network(&self) -> lazaret_net::netd::Place {
        lazaret_net::netd::Place {
            run: self.run.join("netd"),
            state: self.state.join("network"),
            tag: self.prefix.trim_end_matches('.').to_owned(),
        }
    }

    // --- ids ---

    /// Where taken id ranges are noted.
    pub(crate) fn ids(&self) -> PathBuf {
        self.state.join("ids")
    }

    // --- containers at run time ---

    fn run_dir(&self, name: &Name) -> PathBuf {
        self.run.join("containers").join(name.as_str())
    }

    /// Whether anything of the container is left at run time.
    pub(crate) fn run_dir_exists(&self, name: &Name) -> bool {
        self.run_dir(name).exists()
    }

    /// Says that a container is about to have a keeper. One that has none yet is cleaned up after by whoever gets its
    /// lock.
    pub(crate) fn announce(&self, name: &Name) -> Result<()> {
        let scratch = self.run_dir(name).join("scratch");
        match make_private(&scratch) {
            // It was there, and then the keeper before us took it out of sight: once, since its lock is ours to take.
            Err(e) if e.errno() == Some(rustix::io::Errno::EXIST) => make_private(&scratch),
            other => other,
        }
    }

    /// Keeper: takes the container for itself. `None` if another keeper has it.
    pub(crate) fn keep(&self, name: &Name) -> Result<Option<Alive>> {
        let path = self.run_dir(name).join("alive");
        let taking = || format!("locking `{}`", path.display());
        loop {
            self.announce(name)?;
            let file = fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let file = match file {
                // The keeper before us has just taken everything out of sight.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                file => OwnedFd::from(file.with_context(taking)?),
            };
            if !lazaret_sys::lock::take(file.as_fd()).with_context(taking)? {
                return Ok(None);
            }
            let held = rustix::fs::fstat(&file).with_context(taking)?;
            // Or it did after we had opened its file: the lock must be on the one that others look at.
            if rustix::fs::stat(&path).is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
                return Ok(Some(Alive(file)));
            }
        }
    }

    /// Whether a keeper stands behind the container. Looking gets in no keeper's way.
    pub fn is_kept(&self, name: &Name) -> Result<bool> {
        let path = self.run_dir(name).join("alive");
        let looking = || format!("looking at `{}`", path.display());
        match fs::OpenOptions::new().write(true).open(&path) {
            Ok(file) => lazaret_sys::lock::is_taken(file.as_fd()).with_context(looking),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).with_context(looking),
        }
    }

    /// What the keeper wrote last; `None` if nothing runs.
    pub fn run_state(&self, name: &Name) -> Result<Option<RunState>> {
        match read_json(&self.run_dir(name).join("state.json")) {
            Ok(state) => Ok(Some(state)),
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Keeper: writes the state. The directory is on a file system in memory, so this is no work for a disk.
    pub(crate) fn write_run_state(&self, name: &Name, state: &RunState) -> Result<()> {
        let bytes = serde_json::to_vec(state).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "state.json", &bytes)
    }

    /// Keeper: keeps the configuration that the container was started with.
    pub(crate) fn write_running(&self, name: &Name, document: &Document) -> Result<()> {
        write_renamed(&self.run_dir(name), "running.toml", document.to_string().as_bytes())
    }

    /// Keeps what is in force after a live change.
    pub(crate) fn write_running_config(&self, name: &Name, config: &Config) -> Result<()> {
        write_renamed(&self.run_dir(name), "running.toml", config.to_toml().as_bytes())
    }

    /// The configuration that the container was started with, live changes included.
    pub fn running_config(&self, name: &Name) -> Result<Config> {
        let bytes = read(&self.run_dir(name).join("running.toml"))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        lazaret_config::parse("running.toml", &text).map_err(Error::from)
    }

    /// Keeper: keeps the system call filter in force.
    pub(crate) fn write_filter(&self, name: &Name, filter: &[u8]) -> Result<()> {
        write_renamed(&self.run_dir(name), "filter", filter)
    }

    /// Keeper: no filter is in force, whatever was before a reboot.
    pub(crate) fn forget_filter(&self, name: &Name) {
        // Mostly there is none.
        let _ = fs::remove_file(self.run_dir(name).join("filter"));
    }

    /// The system call filter in force; `None` if there is none.
    pub(crate) fn filter(&self, name: &Name) -> Result<Option<Vec<u8>>> {
        match read(&self.run_dir(name).join("filter")) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Notes shares that are about to be shown or taken away; what a killed command had begun is found here.
    pub(crate) fn note_change_of_shares(&self, name: &Name, shares: &[Share]) -> Result<()> {
        let bytes = serde_json::to_vec(shares).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "sharing.json", &bytes)
    }

    /// What was noted and is not done; `None` mostly.
    pub(crate) fn change_of_shares(&self, name: &Name) -> Result<Option<Vec<Share>>> {
        match read_json(&self.run_dir(name).join("sharing.json")) {
            Ok(shares) => Ok(Some(shares)),
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// It is done.
    pub(crate) fn forget_change_of_shares(&self, name: &Name) {
        // Mostly there is none.
        let _ = fs::remove_file(self.run_dir(name).join("sharing.json"));
    }

    /// One process at a time changes the devices of a running container.
    pub(crate) fn lock_devices(&self, name: &Name) -> Result<Lock> {
        Lock::wait(&self.run_dir(name).join("devices"))
    }

    /// The same, but `None` if somebody else does.
    pub(crate) fn try_lock_devices(&self, name: &Name) -> Result<Option<Lock>> {
        Lock::try_take(&self.run_dir(name).join("devices"))
    }

    /// The devices that a running container has.
    pub(crate) fn given_devices(&self, name: &Name) -> Result<crate::device::Given> {
        match read_json(&self.run_dir(name).join("devices.json")) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(crate::device::Given::default()),
            other => other,
        }
    }

    /// Notes them.
    pub(crate) fn write_given_devices(&self, name: &Name, given: &crate::device::Given) -> Result<()> {
        let bytes = serde_json::to_vec(given).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "devices.json", &bytes)
    }

    /// Nothing is given.
    pub(crate) fn forget_given_devices(&self, name: &Name) {
        // Mostly there is no such file.
        let _ = fs::remove_file(self.run_dir(name).join("devices.json"));
    }

    /// An empty directory that the stage mounts over, in its own namespace.
    pub(crate) fn scratch(&self, name: &Name) -> PathBuf {
        self.run_dir(name).join("scratch")
    }

    /// The directory of the keeper's socket: an address by way of a descriptor has no length limit.
    pub(crate) fn control_dir(&self, name: &Name) -> Result<OwnedFd> {
        open_dir(&self.run_dir(name))
    }

    // --- menus ---

    /// What of a container is in persons' menus.
    pub(crate) fn shown_launchers(&self, name: &Name) -> Result<Vec<crate::launcher::Shown>> {
        match read_json(&self.container(name).join("launchers.json")) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Notes it.
    pub(crate) fn write_shown_launchers(&self, name: &Name, all: &[crate::launcher::Shown]) -> Result<()> {
        let json = serde_json::to_vec_pretty(all).map_err(|e| error(e.to_string()))?;
        write_atomic(&self.container(name).join("launchers.json"), &json)
    }

    // --- ssh ---

    /// The key of a container's ssh server, private and public; `None` if it has none yet.
    pub(crate) fn host_key(&self, name: &Name) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let path = self.container(name).join("ssh_host_key");
        match read(&path) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
            private => Ok(Some((private?, read(&path.with_extension("pub"))?))),
        }
    }

    /// Notes it. The private half last: with it, both are there.
    pub(crate) fn write_host_key(&self, name: &Name, private: &[u8], public: &[u8]) -> Result<()> {
        let path = self.container(name).join("ssh_host_key");
        write_atomic(&path.with_extension("pub"), public)?;
        write_atomic(&path, private)
    }

    // --- the session ---

    /// Keeper: makes the directories in which sockets of a session appear, seen by the container from its start on.
    pub(crate) fn make_session(&self, name: &Name, owner: u32) -> Result<()> {
        let session = self.session(name);
        let dirs = [
            (session.clone(), 0o755),
            (session.join("x11"), 0o1777),
            (session.join("pulse"), 0o755),
            (session.join("bus"), 0o755),
            (session.join("bin"), 0o755),
        ];
        for (dir, _) in &dirs {
            make_private(dir)?;
        }
        let script = session.join("bin/xdg-open");
        fs::write(&script, crate::opener::script()).with_context(|| format!("writing `{}`", script.display()))?;
        for (dir, mode) in dirs.into_iter().chain([(script, 0o755)]) {
            let making = || format!("making `{}`", dir.display());
            // As every system has them: an init inside that sees to it finds nothing to do.
            std::os::unix::fs::chown(&dir, Some(owner), Some(owner)).with_context(making)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).with_context(making)?;
        }
        Ok(())
    }

    /// What a container sees of a session.
    pub(crate) fn session(&self, name: &Name) -> PathBuf {
        self.run_dir(name).join("session")
    }

    /// The directory that is the door itself, in which programs find their compositor.
    pub(crate) fn session_door(&self, name: &Name) -> Result<OwnedFd> {
        open_dir(&self.session(name))
    }

    /// Where the gate to a compositor leads.
    pub(crate) fn wayland_record(&self, name: &Name) -> Option<crate::gate::Compositor> {
        read_json(&self.run_dir(name).join("wayland.json")).ok()
    }

    /// Notes it.
    pub(crate) fn write_wayland_record(&self, name: &Name, compositor: &crate::gate::Compositor) -> Result<()> {
        let bytes = serde_json::to_vec(compositor).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "wayland.json", &bytes)
    }

    /// The directory of the socket on which programs find their X server.
    pub(crate) fn session_x11(&self, name: &Name) -> Result<OwnedFd> {
        open_dir(&self.session(name).join("x11"))
    }

    /// The directory of the socket on which programs find their sound server.
    pub(crate) fn session_pulse(&self, name: &Name) -> Result<OwnedFd> {
        open_dir(&self.session(name).join("pulse"))
    }

    /// The directory of the socket on which programs find their bus.
    pub(crate) fn session_bus(&self, name: &Name) -> Result<OwnedFd> {
        open_dir(&self.session(name).join("bus"))
    }

    /// Whose bus the gate of the bus leads to.
    pub(crate) fn bus_record(&self, name: &Name) -> Option<crate::gate::Heard> {
        read_json(&self.run_dir(name).join("bus.json")).ok()
    }

    /// Notes it.
    pub(crate) fn write_bus_record(&self, name: &Name, heard: &crate::gate::Heard) -> Result<()> {
        let bytes = serde_json::to_vec(heard).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "bus.json", &bytes)
    }

    /// Whose sound server the gate for sound leads to.
    pub(crate) fn sound_record(&self, name: &Name) -> Option<crate::gate::Heard> {
        read_json(&self.run_dir(name).join("sound.json")).ok()
    }

    /// Notes it.
    pub(crate) fn write_sound_record(&self, name: &Name, heard: &crate::gate::Heard) -> Result<()> {
        let bytes = serde_json::to_vec(heard).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "sound.json", &bytes)
    }

    /// Whether the microphone of a running container is switched on. The mark goes with the run.
    pub(crate) fn microphone(&self, name: &Name) -> bool {
        self.run_dir(name).join("microphone").exists()
    }

    /// Switches it.
    pub(crate) fn write_microphone(&self, name: &Name, on: bool) -> Result<()> {
        let mark = self.run_dir(name).join("microphone");
        let written = match on {
            true => fs::write(&mark, ""),
            false => fs::remove_file(&mark).or_else(|e| match e.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(e),
            }),
        };
        written.with_context(|| format!("marking `{}`", mark.display()))
    }

    /// What the gate shows, and where.
    pub(crate) fn gate_record(&self, name: &Name) -> Result<Option<crate::gate::Shown>> {
        match read_json(&self.run_dir(name).join("gate.json")) {
            Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Notes it.
    pub(crate) fn write_gate_record(&self, name: &Name, shown: &crate::gate::Shown) -> Result<()> {
        let bytes = serde_json::to_vec(shown).map_err(|e| error(e.to_string()))?;
        write_renamed(&self.run_dir(name), "gate.json", &bytes)
    }

    /// Removes everything of run time. Out of sight first: a new keeper may begin at once.
    pub(crate) fn forget_run(&self, name: &Name) -> Result<()> {
        let gone = self.run.join("gone");
        make_private(&gone)?;
        let away = gone.join(format!("{name}-{}", std::process::id()));
        match fs::rename(self.run_dir(name), &away) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("taking the run time of `{name}` out of sight"))?,
        }
        remove(&gone, &away)
    }
}

/// While this is held, others know that somebody stands behind a container. It ends with its process.
#[derive(Debug)]
pub(crate) struct Alive(OwnedFd);

impl AsFd for Alive {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A directory in which something is made or unmade. While its lock is held, nobody else removes it.
pub struct Workshop {
    pub(crate) path: PathBuf,
    lock: Lock,
}

impl Workshop {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Writes the two files that make a directory a container.
pub(crate) fn write_container(dir: &Path, document: &Document, record: &Record, durable: bool) -> Result<()> {
    let bytes = record_text(record)?;
    let write = |name: &str, bytes: &[u8]| match durable {
        true => write_atomic(&dir.join(name), bytes),
        false => write_renamed(dir, name, bytes),
    };
    write("container.toml", document.to_string().as_bytes())?;
    write("record.json", &bytes)
}

fn record_text(record: &Record) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(record).map_err(|e| error(e.to_string()))
}

impl Record {
    /// A record of a container made now.
    pub(crate) fn new(image: Image, ids: Option<Ids>, storage: Storage, ephemeral: bool) -> Record {
        let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (layers, snapshots, pending) = (Vec::new(), Vec::new(), None);
        Record { format: FORMAT, image, ids, storage, created, ephemeral, layers, snapshots, pending }
    }
}

impl Record {
    /// What makes the ids on disk those that the container sees.
    pub(crate) fn shift_to_plain(&self) -> i64 {
        match (self.storage, self.ids) {
            (Storage::Copy, Some(ids)) => -i64::from(ids.start),
            _ => 0,
        }
    }
}

impl Image {
    pub(crate) fn plan_binds(&self) -> Vec<Bind> {
        let bind = |b: &ImageBind| Bind { source: b.source.clone(), target: b.target.clone() };
        self.binds.iter().map(bind).collect()
    }
}

fn make_private(dir: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(Error::from)
        .map_err(|e| match e.errno() {
            Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
                e.hint("only root can keep containers; try with sudo")
            }
            _ => e,
        })
        .with_context(|| format!("making `{}`", dir.display()))
}

fn names_in(dir: &Path) -> Result<Vec<Name>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("listing `{}`", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // Anything else in there is none of ours.
        if let Some(name) = entry?.file_name().to_str().and_then(|name| name.parse::<Name>().ok()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn open_dir(dir: &Path) -> Result<OwnedFd> {
    open(dir, OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        .with_context(|| format!("opening `{}`", dir.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading `{}`", path.display());
    read_bounded(fs::File::open(path).with_context(reading)?, LONGEST_FILE).with_context(reading)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read(path)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| error(e.to_string()))
        .with_context(|| format!("reading `{}`", path.display()))
}

/// Whole or absent, for readers; not forced to disk.
fn write_renamed(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let temporary = dir.join(format!(".{name}.tmp"));
    let path = dir.join(name);
    fs::write(&temporary, bytes)
        .and_then(|()| fs::rename(&temporary, &path))
        .with_context(|| format!("writing `{}`", path.display()))
}

/// Removes a tree below `parent`, by descriptors all along.
fn remove(parent: &Path, path: &Path) -> Result<()> {
    let removing = || format!("removing `{}`", path.display());
    let Some(name) = path.file_name() else { return Ok(()) };
    let name = CString::new(name.as_bytes()).map_err(|_| error("a NUL byte in a file name"))?;
    let parent = open_dir(parent)?;
    match lazaret_image::remove_tree(parent.as_fd(), &name) {
        Err(e) if e.errno() == Some(rustix::io::Errno::NOENT) => Ok(()),
        other => other.with_context(removing),
    }
}

/// Whether one name is likely a slip of the other: one letter more, less, other, or two swapped.
fn close(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[common..], &b[common..]);
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - tail], &b[..b.len() - tail]);
    matches!((a.len(), b.len()), (0 | 1, 0 | 1)) || (a.len() == 2 && b.len() == 2 && a[0] == b[1] && a[1] == b[0])
}

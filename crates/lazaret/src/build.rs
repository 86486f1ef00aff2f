//! Images that are built here, of a distribution's packages.
//!
//! Packages are fetched and verified by this process and unpacked into a tree that nobody else sees. Whatever they
//! bring
//! to be executed is executed in a container over that tree, which has no network and sees nothing of the host but the
//! packages themselves, read-only. When all went well, the tree becomes a layer and gets its name.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Kind, Lock, Result, error};
use lazaret_config::{Document, Name};
use lazaret_image::build::{
    Choice, Distribution, Index, Lists, Mirror, Package, Places, Site, Suite, Variant, lay_foundation, system,
};
use lazaret_image::{About, Network, Progress, Stats, Template, absorb, own_architecture};
use lazaret_runtime::plan::OurInit;
use rustix::fs::{Mode, OFlags};

use crate::create::{self, Create, root_file_system};
use crate::image::check_name;
use crate::keeper::{Ended, Keeper};
use crate::relay::{self, Ends};
use crate::start::Request;
use crate::store::{Image, ImageBind, Record, Storage, Store, Workshop, open_tree, part};

pub use lazaret_image::build::{DISTRIBUTIONS, Places as From, Variant as Amount};

mod recipe;
mod script;

pub use recipe::{Making, make};

/// What is to be built.
#[derive(Clone, Debug)]
pub struct Order {
    /// `debian/bookworm`, `ubuntu/24.04`.
    pub reference: String,
    /// What to call the image; what was built, if `None`.
    pub name: Option<String>,
    /// How much it has.
    pub variant: Variant,
    /// Packages beyond that.
    pub include: Vec<String>,
    /// Where packages come from.
    pub places: Places,
    /// Parts of the archive, if not the usual ones.
    pub components: Vec<String>,
    /// Whose signatures count, if not the distribution's own.
    pub keyring: Option<PathBuf>,
    /// A program that is run inside at the end.
    pub script: Option<Vec<u8>>,
    /// The network of that program, as a container's configuration has it.
    pub script_network: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image.
    pub image: lazaret_image::Image,
    /// How many packages it was made of.
    pub packages: usize,
    /// How many of them were here already.
    pub cached: Stats,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// Builds an image, all of it or nothing.
pub fn build(
    store: &Store,
    network: &Network,
    order: &Order,
    progress: &mut dyn FnMut(Progress),
    say: &mut dyn FnMut(&str),
) -> Result<Built> {
    let (reference, architecture) = split_architecture(&order.reference)?;
    let (distribution, release) = Distribution::find(&reference)?;
    let canonical = format!("{}/{release}", distribution.name);
    let name = order.name.clone().unwrap_or_else(|| canonical.clone());
    check_name(&name)?;
    store.prepare()?;
    let building = || format!("building `{canonical}`");
    let cache = store.packages()?;
    let keyring = distribution.keyring(order.keyring.as_deref()).with_context(building)?;
    let mirror = Mirror::new(network, &cache, keyring).with_context(building)?;
    let suites = distribution.suites(&release, &order.places);
    let components: Vec<&str> = match &order.components[..] {
        [] => distribution.components.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    say(&format!("asking {} for packages", suites[0].mirror));
    let lists = mirror.lists(&suites, &components, &architecture).with_context(building)?;
    let index = Index::read(lists.texts.iter().map(String::as_str), &architecture).with_context(building)?;
    let choice = system(&index, order.variant, &order.include).with_context(building)?;
    let bench = Bench::new(store)?;
    let cached = bench.fetch(&mirror, &lists, &choice, progress, say).with_context(building)?;

    say("unpacking and configuring");
    let images = store.images()?;
    let site = images.begin_site().with_context(building)?;
    let foundation =
        lay_foundation(site.as_fd(), &choice.base, &bench.packages, &architecture, progress).with_context(building)?;
    let sources = sources(distribution, &suites, &components);
    let words = script::system(&foundation.scripts, &choice, &sources, distribution.name);
    let inside = Inside { what: "configuring the packages", network: Some("none"), words: shell(&words) };
    bench.run_over(&site, &inside).with_context(building)?;
    if let Some(program) = &order.script {
        say("running the script");
        let path = bench.hand_out("lazaret-script", program)?;
        let inside = Inside { what: "running the script", network: order.script_network.as_deref(), words: vec![path] };
        bench.run_over(&site, &inside).with_context(building)?;
    }
    let mut notes = lists.notes.clone();
    let layer = images.finish_site(site, &format!("packages of {}", suites[0].mirror)).with_context(building)?;
    notes.extend(layer.warnings.clone());
    let about = About {
        description: format!("{} {release}, built here", distribution.title),
        architecture: layer.architecture.clone().unwrap_or(architecture),
        serial: serial(),
        since: now(),
        ..About::default()
    };
    let image =
        lazaret_image::Image { name, layer: layer.id, about, origin: None, templates: templates(), program: None };
    images.name_image(&image).with_context(building)?;
    drop(bench);
    crate::cache::know(store, &lists.mirrors)?;
    // More than it may have: what was not used for longest goes.
    let _ = cache.evict(store.package_settings()?.limit);
    Ok(Built { image, packages: choice.all().count(), cached, notes })
}

/// `debian/bookworm/i386`: the architecture, if it is one that this machine can run.
fn split_architecture(reference: &str) -> Result<(String, String)> {
    let lower = reference.to_ascii_lowercase();
    let Some((rest, last)) = lower.rsplit_once('/') else { return Ok((lower, own_architecture().into())) };
    match crate::image::architecture(last) {
        None => Ok((lower, own_architecture().into())),
        Some(one) if one == own_architecture() || (one, own_architecture()) == ("i386", "amd64") => {
            Ok((rest.to_owned(), one.to_owned()))
        }
        Some(other) => Err(error(format!("programs for {other} can't be run here, and a build runs them"))
            .kind(Kind::Invalid)
            .hint(format!("get what others have built: lazaret image pull {reference}"))),
    }
}

/// The file that tells apt where packages come from (sources.list(5)).
fn sources(distribution: &Distribution, suites: &[Suite], components: &[&str]) -> String {
    let mut text = String::new();
    let mut done: Vec<&str> = Vec::new();
    for suite in suites {
        if done.contains(&suite.mirror.as_str()) {
            continue;
        }
        done.push(&suite.mirror);
        let names = suites.iter().filter(|other| other.mirror == suite.mirror).map(|other| other.name.as_str());
        let names = names.collect::<Vec<_>>().join(" ");
        let (mirror, components, keyring) = (&suite.mirror, components.join(" "), distribution.keyring);
        text.push_str(&format!(
            "Types: deb\nURIs: {mirror}\nSuites: {names}\nComponents: {components}\nSigned-By: {keyring}\n\n"
        ));
    }
    text.trim_end().to_owned() + "\n"
}

/// What each container of such an image gets: its own name.
fn templates() -> Vec<Template> {
    let template = |path: &str, text: &str| Template {
        path: path.into(),
        create_only: false,
        on_copy: true,
        text: text.into(),
        properties: Default::default(),
    };
    vec![
        template("/etc/hostname", "{{ container.name }}\n"),
        template(
            "/etc/hosts",
            "127.0.0.1\tlocalhost\n127.0.1.1\t{{ container.name }}\n\n\
             ::1\t\tlocalhost ip6-localhost ip6-loopback\nff02::1\t\tip6-allnodes\nff02::2\t\tip6-allrouters\n",
        ),
    ]
}

pub(crate) fn shell(script: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-euc".into(), script.into()]
}

/// When it was built, as image servers number their builds.
fn serial() -> String {
    let days = now() / 86400;
    // Days to a date (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let (shifted, era) = (days + 719_468, (days + 719_468) / 146_097);
    let day_of_era = shifted - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let minutes = now() % 86400 / 60;
    format!("{year:04}{month:02}{day:02}_{:02}:{:02}", minutes / 60, minutes % 60)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Where a build is at work: what it hands into containers, and what these say. What is left behind the next command
/// clears away.
pub(crate) struct Bench<'a> {
    store: &'a Store,
    workshop: Option<Workshop>,
    log: PathBuf,
    /// Shown read-only in containers, at [`INSIDE`].
    pub(crate) packages: PathBuf,
}

/// Where containers of a build find what is handed in. The place goes before anybody looks at what was built.
pub(crate) const INSIDE: &str = "/tmp/.lazaret-build";

/// What is run in a container.
pub(crate) struct Inside<'a> {
    /// For the error.
    pub what: &'a str,
    /// As the configuration has it; the usual one if `None`.
    pub network: Option<&'a str>,
    /// The command.
    pub words: Vec<String>,
}

/// How much of what was said last is shown when something fails.
const LAST_WORDS: usize = 2000;

impl<'a> Bench<'a> {
    pub(crate) fn new(store: &'a Store) -> Result<Bench<'a>> {
        let workshop = store.workshop("build")?;
        let packages = workshop.path().join("packages");
        fs::create_dir(&packages).context("making room for packages")?;
        // Seen from inside through an id map: by whoever is root there, and by programs that are not.
        fs::set_permissions(&packages, fs::Permissions::from_mode(0o755))?;
        let log = workshop.path().join("log");
        Ok(Bench { store, workshop: Some(workshop), log, packages })
    }

    pub(crate) fn fetch(
        &self,
        mirror: &Mirror<'_>,
        lists: &Lists,
        choice: &Choice<'_>,
        progress: &mut dyn FnMut(Progress),
        say: &mut dyn FnMut(&str),
    ) -> Result<Stats> {
        let packages: Vec<&Package<'_>> = choice.all().collect();
        let begun = std::time::Instant::now();
        let stats = mirror.fetch(&packages, lists, &self.packages, progress)?;
        if begun.elapsed() > Duration::from_secs(1) || stats.misses > 0 {
            say(&format!("{} packages, {} of them were here already", packages.len(), stats.hits));
        }
        Ok(stats)
    }

    /// Puts a program where containers find it; the path inside.
    pub(crate) fn hand_out(&self, name: &str, bytes: &[u8]) -> Result<String> {
        let path = self.packages.join(name);
        fs::write(&path, bytes).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))?;
        Ok(format!("{INSIDE}/{name}"))
    }

    /// Runs something in a container over a tree that is being built; what it changes is changed in the tree.
    pub(crate) fn run_over(&self, site: &Site, inside: &Inside<'_>) -> Result<()> {
        let image = self.image(site.path());
        self.run(image, Vec::new(), inside, |dir, record| match record.storage {
            Storage::Overlay => {
                let upper = open_tree(&dir.join("upper"))?;
                absorb(upper.as_fd(), site.as_fd())
            }
            // A copy with other ids: what was made of it replaces the tree.
            Storage::Copy => {
                let whole = open_tree(&dir.join("rootfs"))?;
                site.replace(whole, record.shift_to_plain())
            }
        })
    }

    pub(crate) fn image(&self, rootfs: PathBuf) -> Image {
        let binds = vec![ImageBind { source: self.packages.clone(), target: INSIDE.into() }];
        let name = rootfs.display().to_string();
        Image { layer: name.clone(), name, rootfs, binds, bare: false, program: None }
    }

    /// Makes a container of its own for one command. When that has ended well, `after` gets the container's directory,
    /// with nobody in it any more; then the container goes.
    pub(crate) fn run(
        &self,
        image: Image,
        layers: Vec<crate::store::LayerId>,
        inside: &Inside<'_>,
        after: impl FnOnce(&Path, &Record) -> Result<()>,
    ) -> Result<()> {
        let store = self.store;
        let name = create::free_name(store, "build")?.ok_or_else(|| error("no free name was found"))?;
        let lock = store.lock(&name)?;
        let mut pairs = vec![("image", "host"), ("description", "an image that is being built")];
        pairs.extend(inside.network.map(|mode| ("network.mode", mode)));
        let document = Document::create("build", pairs)?;
        let wanted = Create { name: &name, document: &document, ephemeral: true };
        let mut notes = Vec::new();
        create::make(store, &wanted, |dir, ids| {
            let storage = root_file_system(store, dir, &image, ids, &mut notes, &mut |_| {})?;
            let mut record = Record::new(image, ids, storage, true);
            record.layers = layers;
            Ok(record)
        })?;
        let ended = self.attend(lock, &name, inside, after)?;
        match ended {
            Ended::Exited(0) => Ok(()),
            Ended::Exited(status) => Err(self.failed(&format!("{} failed (status {status})", inside.what))),
            Ended::Killed(signal) => Err(self.failed(&format!("{} was ended by signal {signal}", inside.what))),
        }
    }

    fn attend(
        &self,
        lock: Lock,
        name: &Name,
        inside: &Inside<'_>,
        after: impl FnOnce(&Path, &Record) -> Result<()>,
    ) -> Result<Ended> {
        let store = self.store;
        let environment = script::ENVIRONMENT.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let request = Request { root: store.root().map(Into::into), name: name.clone(), environment, inject: None };
        let record = store.record(name)?;
        let mut keeper = match Keeper::take(&request) {
            Ok(keeper) => keeper,
            Err(e) => {
                create::discard(store, name);
                return Err(e);
            }
        };
        keeper.lock = Some(lock);
        let ours =
            OurInit { command: inside.words.clone(), cwd: Some("/".into()), inherit_stdio: true, ..OurInit::default() };
        let ended = self.serve(&mut keeper, ours);
        let after = match &ended {
            Ok(Ended::Exited(0)) => {
                let dir = store.made(name);
                forget_place(&dir, record.storage);
                after(&dir, &record)
            }
            _ => Ok(()),
        };
        let given_back = keeper.give_back();
        if let Ok(Some(_lock)) = store.try_lock(name) {
            store.forget_lock(name);
        }
        let ended = ended?;
        after.and(given_back).map(|()| ended)
    }

    fn serve(&self, keeper: &mut Keeper, ours: OurInit) -> Result<Ended> {
        let null = File::open("/dev/null")?;
        let log = File::create(&self.log).context("making the log of the build")?;
        let ends = Ends::of([null.as_fd(), log.as_fd(), log.as_fd()])?;
        let started = keeper.start(Some(ours), Some(ends.for_command()), None)?;
        keeper.lock = None;
        let mut beside = keeper.beside(started.init.pid);
        ends.serve(started.init.pidfd.as_fd(), relay::signals()?, Some(&mut beside))
    }

    /// What went wrong, with what was said last.
    fn failed(&self, sentence: &str) -> lazaret_base::Error {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(&self.log) {
            let size = log.metadata().map_or(0, |meta| meta.size());
            let _ = log.seek(SeekFrom::Start(size.saturating_sub(LAST_WORDS as u64)));
            let _ = log.take(LAST_WORDS as u64).read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let words = text
            .trim()
            .escape_debug()
            .to_string()
            .replace("\\n", "\n")
            .replace("\\t", "\t")
            .replace("\\'", "'")
            .replace("\\\"", "\"");
        match words.is_empty() {
            true => error(sentence),
            false => error(format!("{sentence}; the last it said:\n{words}")),
        }
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        if let Some(workshop) = self.workshop.take() {
            // What stays is cleared by the next command.
            let _ = self.store.clear(workshop);
        }
    }
}

/// Takes the place away over which things were handed in. No link of the tree is followed.
fn forget_place(dir: &Path, storage: Storage) {
    use rustix::fs::{AtFlags, ResolveFlags, openat2, unlinkat};
    let (above, name) = INSIDE.trim_start_matches('/').rsplit_once('/').unwrap_or((".", INSIDE));
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let above =
        open_tree(&dir.join(part(storage))).and_then(|tree| Ok(openat2(tree, above, flags, Mode::empty(), how)?));
    // An empty directory that stays is no harm.
    let _ = above.map(|above| unlinkat(above, name, AtFlags::REMOVEDIR));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_is_told_of_each_archive_once() {
        let (debian, release) = Distribution::find("debian/trixie").unwrap();
        let places =
            Places { mirror: Some("http://m/debian".into()), security: Some("http://s/".into()), updates: true };
        assert_eq!(
            sources(debian, &debian.suites(&release, &places), &["main"]),
            "Types: deb\nURIs: http://m/debian\nSuites: trixie trixie-updates\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://s\n\
             Suites: trixie-security\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn what_this_machine_can_not_run_is_not_built() {
        assert_eq!(split_architecture("Debian/trixie").unwrap(), ("debian/trixie".into(), own_architecture().into()));
        let foreign = if own_architecture() == "arm64" { "amd64" } else { "arm64" };
        assert!(split_architecture(&format!("debian/trixie/{foreign}")).is_err());
    }
}

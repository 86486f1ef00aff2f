//! Making an image by a recipe: one container for each step, over what the steps before have left.
//!
//! What a step changes becomes a layer of its own, found again by the digest of all that led to it: the base, and each
//! step up to it with the content of its files and the versions of its packages. A recipe that is made again begins
//! where it first differs.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lazaret_base::{Context, Kind, Result, error, read_bounded};
use lazaret_image::build::{
    Choice, Distribution, Index, Lists, Mirror, Package, Places, Recipe, Site, Source, Variant, additions, paragraphs,
    read_inside,
};
use lazaret_image::{About, Digest, Progress, Stack, Stats, copy_tree, own_architecture};

use super::{Bench, Built, Inside, Order, now, script, serial, shell};
use crate::image::{self, Found, Sources, check_name};
use crate::store::{LayerId, Step, Store, open_tree};

/// What is to be made, and how.
#[derive(Clone, Debug)]
pub struct Making {
    /// The recipe's file.
    pub recipe: PathBuf,
    /// What to call the image.
    pub name: String,
    /// Whether every step is done again.
    pub again: bool,
    /// The network of the recipe's commands, as a container's configuration has it.
    pub network: Option<String>,
}

/// The longest recipe, and the largest file that one puts into an image.
const LONGEST_RECIPE: usize = 1 << 20;
const LARGEST_FILE: usize = 1 << 30;
/// Of a system's list of packages.
const LONGEST_STATUS: usize = 256 << 20;
/// Steps that nobody needed for so long are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Makes an image by a recipe, all of it or nothing.
pub fn make(
    store: &Store,
    sources: &Sources,
    making: &Making,
    progress: &mut dyn FnMut(Progress),
    say: &mut dyn FnMut(&str),
) -> Result<Built> {
    check_name(&making.name)?;
    store.prepare()?;
    let shown = making.recipe.display().to_string();
    let reading = || format!("reading the recipe `{shown}`");
    let text = read_bounded(File::open(&making.recipe).with_context(reading)?, LONGEST_RECIPE).with_context(reading)?;
    let text = String::from_utf8(text).map_err(|_| error(format!("`{shown}` is no text")).kind(Kind::Invalid))?;
    let recipe = Recipe::parse(&shown, &text)?;
    let beside = making.recipe.parent().unwrap_or(Path::new("."));
    store.forget_steps(FORGOTTEN_AFTER);

    let base = base(store, sources, &recipe, progress, say)?;
    let mut kitchen =
        Kitchen { store, sources, recipe: &recipe, base: &base, making, say, progress, cached: Stats::default() };
    let bench = Bench::new(store)?;
    let steps = kitchen.steps(&bench, beside).with_context(|| format!("following `{shown}`"))?;
    let layer = kitchen.cook(&bench, &steps).with_context(|| format!("following `{shown}`"))?;
    let cached = kitchen.cached;
    drop(bench);
    let layer = store.images()?.layer(&layer)?;
    let about = About {
        description: recipe.description.clone(),
        architecture: layer.architecture.clone().unwrap_or_else(|| own_architecture().into()),
        serial: serial(),
        since: now(),
        ..About::default()
    };
    let (templates, program) = base.image.map_or_else(Default::default, |image| (image.templates, image.program));
    let image =
        lazaret_image::Image { name: making.name.clone(), layer: layer.id, about, origin: None, templates, program };
    store.images()?.name_image(&image)?;
    Ok(Built { image, packages: recipe.packages.len(), cached, notes: layer.warnings })
}

/// What the recipe begins with: an image that is here, or on a server, or is built first.
fn base(
    store: &Store,
    sources: &Sources,
    recipe: &Recipe,
    progress: &mut dyn FnMut(Progress),
    say: &mut dyn FnMut(&str),
) -> Result<Found> {
    if !recipe.build {
        let notes = image::ensure(store, sources, &recipe.base, progress)?;
        notes.iter().for_each(|note| say(note));
        return image::find(store, &recipe.base, progress);
    }
    let here = image::find(store, &recipe.base, progress);
    if let Ok(found) = here
        && found.image.as_ref().is_some_and(|image| image.origin.is_none())
    {
        return Ok(found);
    }
    let order = Order {
        reference: recipe.base.clone(),
        name: None,
        variant: Variant::Standard,
        include: Vec::new(),
        places: places(recipe),
        components: Vec::new(),
        keyring: recipe.keyring.as_ref().map(PathBuf::from),
        script: None,
        script_network: None,
    };
    let built = super::build(store, &sources.network, &order, progress, say)?;
    image::find(store, &built.image.name, progress)
}

fn places(recipe: &Recipe) -> Places {
    Places { mirror: recipe.mirror.clone(), security: None, updates: !recipe.without_updates }
}

/// One step: what makes it the same step, and what is done.
struct Done {
    /// For people.
    what: String,
    key: Digest,
    words: Vec<String>,
    network: Option<String>,
}

struct Kitchen<'a> {
    store: &'a Store,
    sources: &'a Sources,
    recipe: &'a Recipe,
    base: &'a Found,
    making: &'a Making,
    say: &'a mut dyn FnMut(&str),
    progress: &'a mut dyn FnMut(Progress),
    cached: Stats,
}

impl Kitchen<'_> {
    /// All steps, each with the digest of what led to it. What they need is at hand by then.
    fn steps(&mut self, bench: &Bench<'_>, beside: &Path) -> Result<Vec<Done>> {
        let mut key = Digest::of(self.base.layer.id.to_string().as_bytes());
        let mut steps = Vec::new();
        let network = self.making.network.clone();
        let mut add = |what: String, content: &str, words: Vec<String>, network: Option<String>| {
            key = Digest::of(format!("{} {content} {words:?}", key.hex()).as_bytes());
            steps.push(Done { what, key, words, network });
        };
        if !self.recipe.packages.is_empty() {
            let (content, script, network) = self.packages(bench)?;
            add("installing packages".into(), &content, shell(&script), network);
        }
        if let Some(user) = &self.recipe.user {
            add(format!("making the user `{user}`"), "", shell(&user_script(user)), Some("none".into()));
        }
        for (number, file) in self.recipe.files.iter().enumerate() {
            let bytes = match &file.source {
                Source::Text(text) => text.clone().into_bytes(),
                Source::File(path) => {
                    let path = beside.join(path);
                    let reading = || format!("reading `{}`", path.display());
                    read_bounded(File::open(&path).with_context(reading)?, LARGEST_FILE).with_context(reading)?
                }
            };
            let inside = bench.hand_out(&format!("file-{number}"), &bytes)?;
            let (mode, (user, group)) = (format!("{:o}", file.mode), file.owner);
            let words = ["/bin/sh", "-euc", PUT, "sh", &inside, &file.to, &mode, &format!("{user}:{group}")];
            let content = Digest::of(&bytes).hex();
            add(format!("writing `{}`", file.to), &content, words.map(str::to_owned).to_vec(), Some("none".into()));
        }
        for words in &self.recipe.run {
            let shown = words.join(" ");
            let words = match &words[..] {
                [line] => shell(line),
                words => words.to_vec(),
            };
            add(format!("running `{}`", shown.chars().take(60).collect::<String>()), "", words, network.clone());
        }
        Ok(steps)
    }

    /// Packages: of Debian's kind they are chosen, fetched and verified here, and installed without a network; with
    /// others, the system's own package manager does it all.
    fn packages(&mut self, bench: &Bench<'_>) -> Result<(String, String, Option<String>)> {
        let root = open_tree(&self.base.layer.rootfs)?;
        let words = self.recipe.packages.join(" ");
        let system = read_inside(root.as_fd(), "var/lib/dpkg/status", LONGEST_STATUS);
        let (Some(status), Some(reference)) = (system, release_of(root.as_fd())) else {
            return Ok((words.clone(), format!("set -- {words}\n{MANAGERS}"), self.making.network.clone()));
        };
        let (distribution, release) = Distribution::find(&reference)?;
        let architecture = self.base.layer.architecture.clone().unwrap_or_else(|| own_architecture().into());
        let cache = self.store.packages()?;
        let keyring = distribution.keyring(self.recipe.keyring.as_deref().map(Path::new))?;
        let mirror = Mirror::new(&self.sources.network, &cache, keyring)?;
        let suites = distribution.suites(&release, &places(self.recipe));
        (self.say)(&format!("asking {} for packages", suites[0].mirror));
        let lists: Lists = mirror.lists(&suites, distribution.components, &architecture)?;
        lists.notes.iter().for_each(|note| (self.say)(note));
        let index = Index::read(lists.texts.iter().map(String::as_str), &architecture)?;
        let installed = installed(&status)?;
        let choice = additions(&index, &installed, &self.recipe.packages)?;
        let content: String = choice.all().map(|p| format!("{}={} {}\n", p.name, p.version, p.architecture)).collect();
        self.fetch(bench, &mirror, &lists, &choice)?;
        Ok((content, script::additions(&choice), Some("none".into())))
    }

    fn fetch(&mut self, bench: &Bench<'_>, mirror: &Mirror<'_>, lists: &Lists, choice: &Choice<'_>) -> Result<()> {
        self.cached = bench.fetch(mirror, lists, choice, self.progress, self.say)?;
        Ok(())
    }

    /// Does what was not done before; the layer of the whole image.
    fn cook(&mut self, bench: &Bench<'_>, steps: &[Done]) -> Result<lazaret_image::LayerId> {
        let images = self.store.images()?;
        let Some(last) = steps.last() else { return Ok(self.base.layer.id.clone()) };
        if self.store.cannot_overlay(&self.base.layer.rootfs)?.is_some() {
            return self.cook_in_one(bench, steps);
        }
        let (mut layers, mut image) = (Vec::<LayerId>::new(), None);
        for (number, step) in steps.iter().enumerate() {
            let before = self.store.step(&step.key).filter(|_| !self.making.again);
            let (done, how) = match before {
                Some(step) => (step, ", as before"),
                None => (Step { layer: self.layer_of(bench, step, &layers)?, image: None }, ""),
            };
            self.store.note_step(&step.key, &done)?;
            (self.say)(&format!("step {} of {}: {}{how}", number + 1, steps.len(), step.what));
            layers.insert(0, done.layer);
            image = done.image;
        }
        let here = image.and_then(|text| text.parse().ok()).filter(|id| images.layer(id).is_ok());
        if let Some(id) = here {
            return Ok(id);
        }
        let mut trees = layers.iter().map(|layer| open_tree(&self.store.layer(layer))).collect::<Result<Vec<_>>>()?;
        trees.push(open_tree(&self.base.layer.rootfs)?);
        let source = self.making.recipe.display().to_string();
        let layer = images.publish_tree(&Stack::whole(trees), 0, &source, self.progress)?;
        let step = Step { layer: layers[0].clone(), image: Some(layer.id.to_string()) };
        self.store.note_step(&last.key, &step)?;
        Ok(layer.id)
    }

    fn layer_of(&mut self, bench: &Bench<'_>, step: &Done, below: &[LayerId]) -> Result<LayerId> {
        let image = bench.image(self.base.layer.rootfs.clone());
        let mut made = None;
        let inside = Inside { what: &step.what, network: step.network.as_deref(), words: step.words.clone() };
        bench.run(image, below.to_vec(), &inside, |dir, _| {
            made = Some(self.store.adopt_layer(&dir.join("upper"))?);
            Ok(())
        })?;
        made.ok_or_else(|| error("nothing came of it"))
    }

    /// Where layers can't be laid over each other: in one copy, and nothing is remembered.
    fn cook_in_one(&mut self, bench: &Bench<'_>, steps: &[Done]) -> Result<lazaret_image::LayerId> {
        let images = self.store.images()?;
        let site: Site = images.begin_site()?;
        copy_tree(&Stack::plain(open_tree(&self.base.layer.rootfs)?), site.as_fd(), 0, self.progress)?;
        for (number, step) in steps.iter().enumerate() {
            (self.say)(&format!("step {} of {}: {}", number + 1, steps.len(), step.what));
            let inside = Inside { what: &step.what, network: step.network.as_deref(), words: step.words.clone() };
            bench.run_over(&site, &inside)?;
        }
        images.finish_site(site, &self.making.recipe.display().to_string()).map(|layer| layer.id)
    }
}

/// `debian/trixie`, if the system is one of those that can be built here (os-release(5)).
fn release_of(root: std::os::fd::BorrowedFd<'_>) -> Option<String> {
    let text = read_inside(root, "etc/os-release", 64 << 10)?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_owned())
    };
    let reference = format!("{}/{}", value("ID")?, value("VERSION_CODENAME")?);
    Distribution::find(&reference).is_ok().then_some(reference)
}

/// What dpkg says is installed.
fn installed(status: &str) -> Result<Vec<Package<'_>>> {
    let there = paragraphs(status).filter(|text| text.get("Status").is_some_and(|words| words.ends_with(" installed")));
    there.map(|text| Package::parse(text, 0)).collect::<Result<_>>().context("reading dpkg's list of the base")
}

/// `$1` is put at `$2` with the mode `$3` for `$4`.
const PUT: &str = r#"mkdir -p "${2%/*}/"; rm -f "$2"; cp "$1" "$2"; chown "$4" "$2"; chmod "$3" "$2""#;

/// The package managers that are known beside dpkg.
const MANAGERS: &str = r#"
has() { command -v "$1" >/dev/null 2>&1; }
if has apt-get; then apt-get update && apt-get install -y --no-install-recommends "$@" && apt-get clean
elif has apk; then apk add --no-cache "$@"
elif has dnf; then dnf -y install "$@" && dnf clean all
elif has pacman; then pacman -Sy --noconfirm --needed "$@" && pacman -Scc --noconfirm
elif has zypper; then zypper --non-interactive install "$@" && zypper clean --all
elif has xbps-install; then xbps-install -Sy "$@"
else echo "no package manager of this system is known" >&2; exit 1
fi
"#;

/// By the system's own tools; where it has none, as these would.
fn user_script(user: &str) -> String {
    format!(
        "id -u {user} >/dev/null 2>&1 && exit 0\n\
         if command -v useradd >/dev/null 2>&1; then useradd -m -s /bin/sh {user}\n\
         elif command -v adduser >/dev/null 2>&1; then adduser -D {user}\n\
         else\n  id=1000\n  while cat /etc/passwd /etc/group | grep -q \":$id:\"; do id=$((id + 1)); done\n  \
         echo \"{user}:x:$id:$id::/home/{user}:/bin/sh\" >>/etc/passwd\n  echo \"{user}:x:$id:\" >>/etc/group\n  \
         mkdir -p /home/{user}\n  chown $id:$id /home/{user}\nfi\n\
         [ ! -x /bin/bash ] || ! command -v usermod >/dev/null 2>&1 || usermod -s /bin/bash {user}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_installed_counts() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\nArchitecture: all\n\n\
                      Package: b\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n\n\
                      Package: c\nStatus: hold ok installed\nVersion: 1\nArchitecture: all\n";
        let names: Vec<_> = installed(status).unwrap().iter().map(|package| package.name).collect();
        assert_eq!(names, ["a", "c"]);
    }
}

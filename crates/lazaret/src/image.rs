//! Images: found by what people call them, fetched when they are not here, counted and removed when nobody needs them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_image::{Build, Layer, Progress, Remotes, use_directory};

pub use lazaret_image::{
    About, Freshness, Image, LayerId, Network, Product, Program, Pulled, Reference, Verified, Wanted, architecture,
    own_architecture,
};

use crate::store::Store;

/// Where images come from: the servers, and how to reach them.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Those of `remotes.toml`.
    pub remotes: Remotes,
    /// Proxies.
    pub network: Network,
}

impl Sources {
    /// The servers that the installation's `remotes.toml` lists; the default one if there is no such file.
    pub fn of(store: &Store, network: Network) -> Result<Sources> {
        Ok(Sources { remotes: store.remotes()?, network })
    }
}

/// An image that is here.
#[derive(Clone, Debug)]
pub struct Found {
    /// As a container remembers it.
    pub name: String,
    /// Its tree.
    pub layer: Layer,
    /// What else is known of it, if it has a name.
    pub image: Option<Image>,
}

/// Finds an image that is here, or can be made of a file that is here. Nobody is asked.
pub fn find(store: &Store, reference: &str, progress: &mut dyn FnMut(Progress)) -> Result<Found> {
    let images = store.images()?;
    let found = |layer| Ok(Found { name: reference.to_owned(), layer, image: None });
    match reference.parse::<Reference>()? {
        Reference::Host => found(images.host()?.layer),
        Reference::Layer(id) => found(images.layer(&id)?),
        Reference::Path(path) => {
            let path = std::path::absolute(path)?;
            let kind = fs::metadata(&path).with_context(|| format!("looking at `{}`", path.display())).hint(FORMS)?;
            match kind.is_dir() {
                true => found(use_directory(&path)?),
                false => from_import(store, images.import(&path, None, progress)?, reference),
            }
        }
        Reference::Oci { path, tag } => {
            let path = std::path::absolute(path)?;
            from_import(store, images.import_oci(&path, tag.as_deref(), progress)?, reference)
        }
        Reference::Registry(repository) => match images.image(&format!("docker://{repository}"))? {
            Some(image) => with_layer(store, image),
            None => Err(not_here(reference)),
        },
        Reference::Named(wanted) => match by_name(store, &store.remotes()?, &wanted)? {
            Some(image) => with_layer(store, image),
            None => Err(not_here(reference)),
        },
    }
}

/// What an image can be named by, for those who named nothing that is one.
const FORMS: &str =
    "an image is `host`, a name such as debian/trixie, a directory, or an archive (.tar, .tar.gz, .tar.xz, .tar.zst)";

fn not_here(reference: &str) -> lazaret_base::Error {
    error(format!("the image `{reference}` is not here"))
        .kind(Kind::NotFound)
        .hint(format!("get it: lazaret image pull {reference}"))
}

fn from_import(store: &Store, image: Image, reference: &str) -> Result<Found> {
    let layer = store.images()?.layer(&image.layer)?;
    Ok(Found { name: reference.to_owned(), layer, image: Some(image) })
}

fn with_layer(store: &Store, image: Image) -> Result<Found> {
    let layer = store.images()?.layer(&image.layer)?;
    Ok(Found { name: image.name.clone(), layer, image: Some(image) })
}

/// The image that a name means here. One that was asked for by its own name comes before one that has it as another.
fn by_name(store: &Store, remotes: &Remotes, wanted: &Wanted) -> Result<Option<Image>> {
    let expanded = remotes.expand(wanted)?;
    if let Some(repository) = remotes.repository(&expanded)? {
        return store.images()?.image(&format!("docker://{repository}"));
    }
    let images = store.images()?.images()?;
    let exact = images.iter().find(|image| image.name == wanted.to_string());
    let fits = |wanted: &Wanted| {
        let mut fitting: Vec<_> = images.iter().filter(|image| image.is(wanted, &remotes.default)).collect();
        // What was made here comes before what was fetched, the newest first.
        fitting.sort_by_key(|image| (image.origin.is_some(), std::cmp::Reverse(image.about.since)));
        fitting.first().copied().cloned()
    };
    Ok(exact.cloned().or_else(|| fits(wanted)).or_else(|| fits(&expanded)))
}

/// Gets an image that is to be used: from a server only if it is not here, or has expired. What the user should know
/// comes back.
pub fn ensure(
    store: &Store,
    sources: &Sources,
    reference: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>> {
    let parsed = reference.parse::<Reference>()?;
    let here = match &parsed {
        Reference::Named(wanted) => by_name(store, &sources.remotes, wanted)?,
        Reference::Registry(repository) => store.images()?.image(&format!("docker://{repository}"))?,
        _ => return Ok(Vec::new()),
    };
    let Some(image) = here else {
        return pull(store, sources, reference, Freshness::Recent, progress).map(|pulled| pulled.notes);
    };
    let Some(expired) = image.about.expires.filter(|at| *at < now()) else { return Ok(Vec::new()) };
    if image.origin.as_ref().is_none_or(|origin| origin.pinned) {
        return Ok(Vec::new());
    }
    let days = (now() - expired) / 86400;
    // A list of the last hour may be older than the build that takes its place.
    match pull(store, sources, reference, Freshness::Now, progress) {
        Ok(pulled) => Ok(pulled.notes),
        Err(e) => Ok(vec![format!("`{}` expired {days} days ago and can't be renewed: {e}", image.name)]),
    }
}

/// Gets an image, or its newest build, from a server.
pub fn pull(
    store: &Store,
    sources: &Sources,
    reference: &str,
    freshness: Freshness,
    progress: &mut dyn FnMut(Progress),
) -> Result<Pulled> {
    let images = store.images()?;
    match reference.parse::<Reference>()? {
        Reference::Named(wanted) => images.pull(&sources.network, &sources.remotes, &wanted, freshness, progress),
        Reference::Registry(repository) => {
            images.pull_repository(&sources.network, &sources.remotes, &repository, progress)
        }
        _ => Err(error(format!("`{reference}` is no image of a server"))
            .kind(Kind::Invalid)
            .hint(format!("it is here already; to give it a name: lazaret image import {reference} NAME"))),
    }
}

/// Makes an image of a file, a directory of OCI's or an archive of any kind, and gives it a name.
pub fn import(
    store: &Store,
    reference: &str,
    name: Option<&str>,
    metadata: Option<&Path>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Image> {
    let images = store.images()?;
    let (mut image, default) = match reference.parse::<Reference>()? {
        Reference::Path(path) => {
            let path = std::path::absolute(path)?;
            (images.import(&path, metadata, progress)?, stem(&path))
        }
        Reference::Oci { path, tag } => {
            let path = std::path::absolute(path)?;
            (images.import_oci(&path, tag.as_deref(), progress)?, stem(&path))
        }
        _ => {
            let e = error(format!("`{reference}` is no file")).kind(Kind::Invalid);
            return Err(e.hint("a file in the working directory is named ./FILE"));
        }
    };
    if let Some(name) = name {
        check_name(name)?;
        image.name = name.to_owned();
    } else if image.name.is_empty() {
        image.name = default;
    }
    check_name(&image.name).hint("give it a name: lazaret image import FILE NAME")?;
    images.name_image(&image)?;
    Ok(image)
}

/// A name that something here may have: one that can be typed again, of no remote and no single build.
pub fn check_name(name: &str) -> Result<()> {
    let wanted = match name.parse::<Reference>()? {
        Reference::Named(wanted) => wanted,
        Reference::Registry(_) => return Ok(()),
        _ => return Err(error(format!("an image can't be called `{name}`")).kind(Kind::Invalid)),
    };
    match wanted.remote.is_some() || wanted.serial.is_some() || wanted.architecture.is_some() {
        true => Err(error(format!("`{name}` would be the name of a server's image")).kind(Kind::Invalid)),
        false => Ok(()),
    }
}

/// The name of a file without its endings, as far as an image can have it.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let endings = [".gz", ".xz", ".zst", ".zstd", ".tar", ".tgz", ".txz", ".squashfs", ".oci"];
    let mut name = name.as_str();
    while let Some(shorter) = endings.iter().find_map(|ending| name.strip_suffix(ending)) {
        name = shorter;
    }
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}

/// What is here: an image with a name, or a layer without.
#[derive(Clone, Debug)]
pub struct Line {
    /// Its name, or what the layer was made from.
    pub name: String,
    /// What is known of it, if it has a name.
    pub image: Option<Image>,
    /// Its tree.
    pub layer: Layer,
    /// The containers that stand on it.
    pub used_by: Vec<Name>,
}

/// All images that are here, by name; then the layers that have none.
pub fn list(store: &Store) -> Result<Vec<Line>> {
    let images = store.images()?;
    let users = users(store)?;
    let used_by = |id: &LayerId| users.get(&id.to_string()).cloned().unwrap_or_default();
    let (mut lines, mut named) = (Vec::new(), Vec::new());
    for image in images.images()? {
        // One that is removed at this moment is not there any more.
        let Ok(layer) = images.layer(&image.layer) else { continue };
        named.push(layer.id.clone());
        lines.push(Line { name: image.name.clone(), used_by: used_by(&layer.id), image: Some(image), layer });
    }
    for layer in images.list()?.into_iter().filter(|layer| !named.contains(&layer.id)) {
        let name = if matches!(layer.id, LayerId::Host(_)) { "host".to_owned() } else { layer.source.clone() };
        lines.push(Line { name, image: None, used_by: used_by(&layer.id), layer });
    }
    Ok(lines)
}

/// Which containers stand on which layer.
fn users(store: &Store) -> Result<BTreeMap<String, Vec<Name>>> {
    let mut users: BTreeMap<String, Vec<Name>> = BTreeMap::new();
    for name in store.names()? {
        match store.record(&name) {
            Ok(record) => users.entry(record.image.layer).or_default().push(name),
            // Destroyed meanwhile.
            Err(e) if e.what() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(users)
}

/// What servers offer.
#[derive(Clone, Debug, Default)]
pub struct Offers {
    /// By remote: the products, and whether one is here in its newest build.
    pub found: Vec<Offer>,
    /// What the user should know: lists that are old, servers that did not answer.
    pub notes: Vec<String>,
}

/// An image on a server.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The server.
    pub remote: String,
    /// The image, in all its builds.
    pub product: Product,
    /// Which build is here.
    pub here: Option<String>,
}

impl Offer {
    /// The newest build.
    pub fn build(&self) -> &Build {
        &self.product.builds[0]
    }
}

/// Images that servers offer, by words in their names; of one server or of all.
pub fn search(
    store: &Store,
    sources: &Sources,
    remote: Option<&str>,
    words: &[String],
    architecture: Option<&str>,
) -> Result<Offers> {
    let images = store.images()?;
    let here = images.images()?;
    let remotes: Vec<_> = match remote {
        Some(name) => vec![sources.remotes.get(Some(name))?],
        None => {
            let lists = |remote: &&lazaret_image::Remote| remote.protocol == lazaret_image::Protocol::Simplestreams;
            sources.remotes.all.values().filter(lists).collect()
        }
    };
    let mut offers = Offers::default();
    for server in &remotes {
        let listed = match images.catalogue(&sources.network, server, Freshness::Recent) {
            // One of several that does not answer is no reason to say nothing.
            Err(e) if remotes.len() > 1 => {
                offers.notes.push(e.to_string());
                continue;
            }
            listed => listed?,
        };
        if let Some(why) = &listed.stale {
            offers.notes.push(format!("the list of `{}` is {} old: {why}", server.name, age(listed.asked)));
        }
        for product in listed.catalogue.search(words, architecture) {
            let name = format!("{}:{}/{}", server.name, product.name(), product.architecture);
            let serial = here.iter().find(|image| image.name == name).map(|image| image.about.serial.clone());
            offers.found.push(Offer { remote: server.name.clone(), product: product.clone(), here: serial });
        }
    }
    Ok(offers)
}

fn age(since: u64) -> String {
    match now().saturating_sub(since) / 3600 {
        0 => "less than an hour".to_owned(),
        hours @ 1..48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// What came of looking for a newer build.
#[derive(Clone, Debug)]
pub struct Refreshed {
    /// The image.
    pub name: String,
    /// The build that is here.
    pub from: String,
    /// The build that there is.
    pub to: String,
    /// Why it could not be told or had.
    pub fault: Option<String>,
}

/// Asks the servers for newer builds of images that are here, and gets them unless only looking.
///
/// Containers stay on the build they were made from; it goes with the last of them.
pub fn refresh(
    store: &Store,
    sources: &Sources,
    names: &[String],
    only_look: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Refreshed>> {
    let images = store.images()?;
    let mut wanted = Vec::new();
    for name in names {
        wanted.push(find(store, name, progress)?.image.ok_or_else(|| no_server(name))?);
    }
    if names.is_empty() {
        let renewable = |image: &Image| image.origin.as_ref().is_some_and(|origin| !origin.pinned);
        wanted = images.images()?.into_iter().filter(renewable).collect();
    }
    let mut asked: Vec<String> = Vec::new();
    let mut all = Vec::new();
    for image in wanted {
        let Some(origin) = image.origin.clone() else { return Err(no_server(&image.name)) };
        // A list is asked for once, however many images are of it.
        let freshness = match asked.contains(&origin.remote) {
            true => Freshness::Any,
            false => Freshness::Now,
        };
        let newest = newest(store, sources, &image, freshness, only_look, progress);
        if newest.is_ok() {
            asked.push(origin.remote);
        }
        let from = image.about.serial;
        all.push(match newest {
            Ok(to) => Refreshed { name: image.name, from, to, fault: None },
            Err(e) => Refreshed { name: image.name, to: from.clone(), from, fault: Some(e.to_string()) },
        });
    }
    Ok(all)
}

fn no_server(name: &str) -> lazaret_base::Error {
    error(format!("`{name}` is of no server, so nobody has a newer one")).kind(Kind::Invalid)
}

fn newest(
    store: &Store,
    sources: &Sources,
    image: &Image,
    freshness: Freshness,
    only_look: bool,
    progress: &mut dyn FnMut(Progress),
) -> Result<String> {
    let Some(origin) = &image.origin else { return Err(no_server(&image.name)) };
    if !only_look {
        return pull(store, sources, &origin.reference, freshness, progress).map(|pulled| pulled.image.about.serial);
    }
    let wanted = match origin.reference.parse()? {
        Reference::Named(wanted) => wanted,
        Reference::Registry(repository) => {
            return store.images()?.repository_serial(&sources.network, &sources.remotes, &repository);
        }
        _ => return Ok(image.about.serial.clone()),
    };
    let remote = sources.remotes.get(wanted.remote.as_deref())?;
    let listed = store.images()?.catalogue(&sources.network, remote, freshness)?;
    if let Some(why) = listed.stale {
        return Err(error(why));
    }
    listed.catalogue.find(&wanted).map(|(_, build)| build.serial.clone())
}

/// Takes an image away: its name, and its layer unless something else needs it. Whether the layer went, too.
///
/// One that containers stand on is refused, unless `force`: then the layer stays until the last of them is gone.
pub fn remove(store: &Store, reference: &str, force: bool) -> Result<bool> {
    store.prepare()?;
    let found = find_here(store, reference)?;
    let images = store.images()?;
    let _all = store.lock_all()?;
    let users = users(store)?.remove(&found.layer.id.to_string()).unwrap_or_default();
    if !users.is_empty() && !force {
        let names: Vec<_> = users.iter().take(8).map(|name| format!("`{name}`")).collect();
        return Err(error(format!(
            "`{reference}` is what {} {} made of",
            names.join(", "),
            if users.len() == 1 { "is" } else { "are" }
        ))
        .kind(Kind::Running)
        .hint("destroy them first, or take only its name away: lazaret image remove --force"));
    }
    if let Some(image) = &found.image {
        images.forget_image(&image.name)?;
    }
    let named = images.images()?.iter().any(|image| image.layer == found.layer.id);
    if named || !users.is_empty() || matches!(found.layer.id, LayerId::Directory(_)) {
        return Ok(false);
    }
    images.remove(&found.layer.id).map(|()| true)
}

/// Something that is here, by a name or by what a layer was made from. Nothing is made.
pub fn find_here(store: &Store, reference: &str) -> Result<Found> {
    let path = match reference.parse::<Reference>() {
        Ok(Reference::Path(path)) => Some(std::path::absolute(path)?),
        Ok(Reference::Oci { .. }) => None,
        Ok(_) => return find(store, reference, &mut |_| {}),
        Err(e) => return Err(e),
    };
    let path = path.unwrap_or_else(|| PathBuf::from(reference));
    let lines = list(store)?;
    let line = lines.into_iter().find(|line| Path::new(&line.layer.source) == path || line.name == reference);
    line.map(|line| Found { name: line.name, layer: line.layer, image: line.image }).ok_or_else(|| {
        error(format!("no image that is here was made of `{reference}`"))
            .kind(Kind::NotFound)
            .hint("`lazaret image list` shows those there are")
    })
}

/// What nobody needs.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Names of images, or what their layers were made from.
    pub images: Vec<String>,
    /// Bytes of their files.
    pub bytes: u64,
    /// Bytes of downloads that were not finished.
    pub downloads: u64,
}

/// Removes layers that have no name and no container, and unfinished downloads; with `all`, images that no container
/// stands on as well. With `only_look` nothing is removed.
pub fn prune(store: &Store, all: bool, only_look: bool) -> Result<Pruned> {
    store.prepare()?;
    let images = store.images()?;
    let _all = store.lock_all()?;
    let mut pruned = Pruned::default();
    let lines = list(store)?;
    for line in lines.iter().filter(|line| line.used_by.is_empty() && (all || line.image.is_none())) {
        pruned.images.push(line.name.clone());
        if let Some(image) = &line.image
            && !only_look
        {
            images.forget_image(&image.name)?;
        }
        let first = lines.iter().find(|other| other.layer.id == line.layer.id);
        if first.is_some_and(|first| first.name == line.name) {
            pruned.bytes += line.layer.size;
            if !only_look {
                images.remove(&line.layer.id)?;
            }
        }
    }
    pruned.downloads = if only_look { images.unfinished()? } else { images.drop_unfinished()? };
    Ok(pruned)
}

/// Reads all of an image and compares it with what it was when it was made.
pub fn verify(store: &Store, reference: &str, progress: &mut dyn FnMut(Progress)) -> Result<(Found, Verified)> {
    let found = find_here(store, reference)?;
    let verified = store.images()?.verify(&found.layer.id, progress)?;
    Ok((found, verified))
}

/// The containers that stand on a layer.
pub fn used_by(store: &Store, layer: &LayerId) -> Result<Vec<Name>> {
    Ok(users(store)?.remove(&layer.to_string()).unwrap_or_default())
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

//! What an image server offers: the two JSON files of simplestreams, as Incus, LXD and cloud images have them.
//!
//! Pure: bytes in, a [`Catalogue`] out. What is not understood is left out, so that new kinds of items break nothing.

use std::collections::BTreeMap;

use lazaret_base::{Error, Kind, Result, distance, error};
use serde::Deserialize;

use crate::Digest;
use crate::reference::{self, Wanted};

/// Where the list of lists is, on every such server.
pub const INDEX: &str = "streams/v1/index.json";
/// The list of the LXC project's server has some 3 MB.
pub const LARGEST: usize = 64 << 20;
/// No metadata archive is larger than that; it is read into memory.
pub const LARGEST_METADATA: u64 = 4 << 20;

/// Everything a server offers that can be run here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// Sorted by system, release, variant and architecture.
    pub products: Vec<Product>,
}

/// One image in all its builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// Names, lower case, without the architecture: `debian/trixie/default`, `debian/trixie`, `debian/13`.
    pub aliases: Vec<String>,
    /// The system, as it calls itself: `Debian`.
    pub os: String,
    /// `trixie`.
    pub release: String,
    /// What people call the release: `13`, `Noble Numbat`.
    pub title: String,
    /// `default`, `cloud` and so on.
    pub variant: String,
    /// Debian's name of it.
    pub architecture: String,
    /// What it asks of its container, such as `nesting`.
    pub requirements: BTreeMap<String, String>,
    /// Those with all that is needed, the newest first; never empty.
    pub builds: Vec<Build>,
}

/// One build of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// `20261123_05:24`.
    pub serial: String,
    /// `incus.tar.xz`: what it is, and its templates.
    pub metadata: Part,
    /// The root file system.
    pub root: Part,
    /// What the root is.
    pub form: Form,
    /// SHA-256 of both files in a row: what Incus shows as the image's fingerprint.
    pub fingerprint: Option<Digest>,
}

/// A file on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Relative to the server's address.
    pub path: String,
    /// What it must have.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What a root file system comes as, the better first: an archive keeps access lists and is read by code of ours; a
/// file system image needs a program of others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `root.tar.xz`
    Tar,
    /// `squashfs`
    Squashfs,
}

/// Where the lists of images are, by the list of lists.
pub fn index(bytes: &[u8]) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        format: String,
        index: BTreeMap<String, Lenient<Stream>>,
    }
    #[derive(Deserialize)]
    struct Stream {
        datatype: String,
        path: String,
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|e| not_understood(&e))?;
    if index.format != "index:1.0" {
        let sentence = format!("the index is of the unknown format `{}`", index.format.escape_debug());
        return Err(error(sentence).kind(Kind::Invalid));
    }
    let streams = index.index.into_values().filter_map(Lenient::known);
    let paths: Vec<_> =
        streams.filter(|stream| stream.datatype == "image-downloads").map(|stream| stream.path).collect();
    match paths.iter().find(|path| !is_plain(path)) {
        Some(path) => {
            let sentence =
                format!("the index names the list `{}`, which is no path on the server", path.escape_debug());
            Err(error(sentence).kind(Kind::Invalid))
        }
        None if paths.is_empty() => Err(error("the index names no list of images").kind(Kind::Invalid)),
        None => Ok(paths),
    }
}

impl Catalogue {
    /// What is in a list of images.
    pub fn parse(bytes: &[u8]) -> Result<Catalogue> {
        let list: RawList = serde_json::from_slice(bytes).map_err(|e| not_understood(&e))?;
        if list.format != "products:1.0" {
            let sentence = format!("the list of images is of the unknown format `{}`", list.format.escape_debug());
            return Err(error(sentence).kind(Kind::Invalid));
        }
        let mut products: Vec<_> = list.products.into_values().filter_map(Lenient::known).filter_map(product).collect();
        products.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(Catalogue { products })
    }

    /// The image of that name for that architecture, in the wanted build.
    ///
    /// A name without a slash means the newest release of that system. The error for what is not there names the
    /// nearest that are.
    pub fn find(&self, wanted: &Wanted) -> Result<(&Product, &Build)> {
        let architecture = wanted.architecture.as_deref().unwrap_or(reference::own_architecture());
        let here = |product: &&Product| product.architecture == architecture;
        let exact = self.products.iter().filter(here).find(|product| product.is_called(&wanted.name));
        let product = match exact {
            Some(product) => product,
            None if !wanted.name.contains('/') => self.newest(&wanted.name, architecture)?,
            None => return Err(self.missing(&wanted.name, architecture)),
        };
        let Some(serial) = &wanted.serial else { return Ok((product, &product.builds[0])) };
        let build = product.builds.iter().find(|build| build.serial == *serial);
        build.map(|build| (product, build)).ok_or_else(|| {
            let serials: Vec<_> = product.builds.iter().map(|build| build.serial.as_str()).collect();
            error(format!("`{}` has no build `{serial}`", product.name()))
                .kind(Kind::NotFound)
                .hint(format!("there is {}", serials.join(", ")))
        })
    }

    /// Images in whose names, systems or releases all of the words stand.
    pub fn search<'a>(&'a self, words: &[String], architecture: Option<&str>) -> Vec<&'a Product> {
        let words: Vec<_> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
        let found = |product: &&Product| {
            let text = format!("{} {} {}", product.aliases.join(" "), product.os, product.title).to_ascii_lowercase();
            architecture.is_none_or(|wanted| product.architecture == wanted)
                && words.iter().all(|word| text.contains(word))
        };
        self.products.iter().filter(found).collect()
    }

    /// The newest release of a system, by the numbers among its names; one that has no numbers must be alone.
    fn newest(&self, os: &str, architecture: &str) -> Result<&Product> {
        let of_os = |product: &&Product| {
            product.architecture == architecture && product.variant == "default" && product.os.eq_ignore_ascii_case(os)
        };
        let all: Vec<_> = self.products.iter().filter(of_os).collect();
        let numbered = all.iter().filter_map(|product| Some((product.number()?, *product)));
        let rolling = || all.iter().find(|product| ROLLING.contains(&product.release.as_str())).copied();
        if let Some(product) = numbered.max_by(|a, b| a.0.cmp(&b.0)).map(|(_, product)| product).or_else(rolling) {
            return Ok(product);
        }
        match all[..] {
            [] => Err(self.missing(os, architecture)),
            [only] => Ok(only),
            _ => {
                let names: Vec<_> = all.iter().map(|product| product.name()).collect();
                Err(error(format!("`{os}` has several releases")).kind(Kind::NotFound).hint(names.join(", ")))
            }
        }
    }

    fn missing(&self, name: &str, architecture: &str) -> Error {
        let elsewhere = self.products.iter().filter(|product| product.is_called(name));
        let mut others: Vec<_> = elsewhere.map(|product| product.architecture.as_str()).collect();
        others.dedup();
        if !others.is_empty() {
            return error(format!("the image `{name}` is not there for {architecture}"))
                .kind(Kind::NotFound)
                .hint(format!("it is there for {}", others.join(", ")));
        }
        let e = error(format!("there is no image `{name}` for {architecture}")).kind(Kind::NotFound);
        let near = self.nearest(name, architecture);
        e.hint(match near.is_empty() {
            true => "`lazaret image search` lists those there are".to_owned(),
            false => format!("the nearest that are there: {}", near.join(", ")),
        })
    }

    /// Up to six names that come closest: those of the same system first.
    pub fn nearest(&self, name: &str, architecture: &str) -> Vec<String> {
        let system = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        let mut scored: Vec<(usize, String)> = Vec::new();
        for product in self.products.iter().filter(|product| product.architecture == architecture) {
            // The full form with the default variant says nothing that the shorter does not.
            for alias in product.aliases.iter().filter(|alias| !alias.ends_with("/default")) {
                let other_system = distance(&system(alias), &system(name)).min(20);
                scored.push((other_system * 20 + distance(alias, name), alias.clone()));
            }
        }
        let allowed = 20 * (system(name).len() / 3).max(1) + 20;
        scored.retain(|(score, _)| *score <= allowed);
        scored.sort();
        scored.dedup_by(|a, b| a.1 == b.1);
        scored.into_iter().map(|(_, alias)| alias).take(6).collect()
    }
}

/// What releases that have no number are called.
const ROLLING: &[&str] = &["current", "rolling", "tumbleweed", "latest"];

impl Product {
    /// Its shortest full name: `debian/trixie`, or `debian/trixie/cloud`.
    pub fn name(&self) -> String {
        let os = self.os.to_ascii_lowercase();
        match self.variant.as_str() {
            "default" => format!("{os}/{}", self.release),
            variant => format!("{os}/{}/{variant}", self.release),
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.aliases.iter().any(|alias| alias == name) || self.name() == name
    }

    fn place(&self) -> [&str; 4] {
        [&self.os, &self.release, &self.variant, &self.architecture]
    }

    /// The highest version among its names: `debian/13` is 13, `ubuntu/24.04` is 24.4.
    fn number(&self) -> Option<Vec<u64>> {
        let releases = self.aliases.iter().filter_map(|alias| alias.split('/').nth(1)).chain([self.release.as_str()]);
        releases.filter_map(|release| release.split('.').map(|part| part.parse().ok()).collect()).max()
    }
}

#[derive(Deserialize)]
struct RawList {
    format: String,
    products: BTreeMap<String, Lenient<RawProduct>>,
}

#[derive(Deserialize)]
struct RawProduct {
    #[serde(default)]
    aliases: String,
    arch: String,
    os: String,
    release: String,
    #[serde(default)]
    release_title: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    requirements: BTreeMap<String, serde_json::Value>,
    versions: BTreeMap<String, Lenient<RawBuild>>,
}

#[derive(Deserialize)]
struct RawBuild {
    items: BTreeMap<String, Lenient<RawItem>>,
}

#[derive(Deserialize)]
struct RawItem {
    ftype: String,
    sha256: String,
    size: u64,
    path: String,
    #[serde(default)]
    combined_rootxz_sha256: Option<String>,
    #[serde(default)]
    combined_sha256: Option<String>,
    #[serde(default)]
    combined_squashfs_sha256: Option<String>,
}

/// A value that is of no use if it is not what was expected, and no reason to give up the rest.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lenient<T> {
    Known(T),
    Unknown(serde::de::IgnoredAny),
}

impl<T> Lenient<T> {
    fn known(self) -> Option<T> {
        match self {
            Lenient::Known(value) => Some(value),
            Lenient::Unknown(_) => None,
        }
    }
}

fn product(raw: RawProduct) -> Option<Product> {
    let word = |text: &str| is_plain(text) && !text.contains('/') && text.len() < 100;
    let variant = if raw.variant.is_empty() { "default".to_owned() } else { raw.variant };
    if ![&raw.os, &raw.release, &variant].into_iter().all(|text| word(text)) {
        return None;
    }
    let architecture = reference::architecture(&raw.arch).map_or(raw.arch.clone(), str::to_owned);
    let aliases = raw.aliases.split(',').map(|alias| alias.trim().to_ascii_lowercase());
    // Only what people could type, so that a list can't put control characters on a terminal.
    let typed = |alias: &String| alias.parse::<Wanted>().is_ok_and(|wanted| wanted.remote.is_none());
    let mut builds: Vec<_> = raw.versions.into_iter().filter_map(|(serial, raw)| build(serial, raw.known()?)).collect();
    builds.sort_by(|a, b| b.serial.cmp(&a.serial));
    let requirements = raw.requirements.into_iter().filter_map(|(key, value)| match value {
        serde_json::Value::String(text) => Some((key, text)),
        serde_json::Value::Bool(flag) => Some((key, flag.to_string())),
        _ => None,
    });
    let title = if raw.release_title.is_empty() { raw.release.clone() } else { raw.release_title };
    (word(&architecture) && !builds.is_empty()).then(|| Product {
        aliases: aliases.filter(typed).collect(),
        os: raw.os,
        release: raw.release,
        title: title.chars().filter(|c| !c.is_control()).take(100).collect(),
        variant,
        architecture,
        requirements: requirements.filter(|(key, value)| is_plain(key) && is_plain(value)).collect(),
        builds,
    })
}

fn build(serial: String, raw: RawBuild) -> Option<Build> {
    let items: Vec<_> = raw.items.into_values().filter_map(Lenient::known).collect();
    let part = |item: &RawItem| {
        let digest = Digest::from_hex(&item.sha256).ok()?;
        is_plain(&item.path).then(|| Part { path: item.path.clone(), digest, size: item.size })
    };
    let of_type =
        |ftype: &str| items.iter().find(|item| item.ftype == ftype).and_then(|item| Some((item, part(item)?)));
    let (described, metadata) = of_type("incus.tar.xz").or_else(|| of_type("lxd.tar.xz"))?;
    let (form, root, combined) = match (of_type("root.tar.xz"), of_type("squashfs")) {
        (Some((_, part)), _) => {
            (Form::Tar, part, described.combined_rootxz_sha256.as_ref().or(described.combined_sha256.as_ref()))
        }
        (None, Some((_, part))) => (Form::Squashfs, part, described.combined_squashfs_sha256.as_ref()),
        (None, None) => return None,
    };
    let fingerprint = combined.and_then(|hex| Digest::from_hex(hex).ok());
    let proper = serial.len() < 64
        && !serial.is_empty()
        && serial.chars().all(|c| c.is_ascii_alphanumeric() || "._:-".contains(c));
    (proper && metadata.size <= LARGEST_METADATA).then_some(Build { serial, metadata, root, form, fingerprint })
}

/// Whether a path or a word from a server leads nowhere else and can be shown to people.
fn is_plain(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-+:~/".contains(c);
    !text.is_empty()
        && text.len() < 1000
        && text.chars().all(good)
        && text.split('/').all(|part| !part.is_empty() && part != "..")
        && !text.contains("://")
}

fn not_understood(e: &serde_json::Error) -> Error {
    error(format!("the server's answer is no list of images ({e})")).kind(Kind::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn hex(byte: u8) -> String {
        format!("{byte:02x}").repeat(32)
    }

    fn item(ftype: &str, path: &str) -> Value {
        json!({"ftype": ftype, "sha256": hex(1), "size": 7, "path": path})
    }

    fn versions(serials: &[&str]) -> Value {
        let build = |serial: &&str| {
            let metadata = json!({
                "ftype": "incus.tar.xz", "sha256": hex(2), "size": 3, "path": format!("i/{serial}/incus.tar.xz"),
                "combined_rootxz_sha256": hex(3), "combined_squashfs_sha256": hex(4),
            });
            let items = json!({
                "incus.tar.xz": metadata, "root.tar.xz": item("root.tar.xz", "i/r.tar.xz"),
                "root.squashfs": item("squashfs", "i/r.squashfs"), "disk.qcow2": item("disk-kvm.img", "i/d"),
                "new": {"ftype": 7},
            });
            (serial.to_string(), json!({"items": items}))
        };
        serials.iter().map(build).collect::<serde_json::Map<_, _>>().into()
    }

    fn raw(os: &str, release: &str, arch: &str, aliases: &str, serials: &[&str]) -> Value {
        json!({"aliases": aliases, "arch": arch, "os": os, "release": release, "release_title": release,
               "requirements": {"nesting": true}, "variant": "default", "versions": versions(serials)})
    }

    fn list(products: &[Value]) -> Vec<u8> {
        let named: serde_json::Map<_, _> =
            products.iter().enumerate().map(|(n, product)| (n.to_string(), product.clone())).collect();
        json!({"content_id": "images", "format": "products:1.0", "products": named}).to_string().into_bytes()
    }

    fn catalogue() -> Catalogue {
        let debian = "debian/trixie/default,debian/trixie,debian/13/default,debian/13";
        Catalogue::parse(&list(&[
            raw("Debian", "trixie", "amd64", debian, &["20261122_05:24", "20261123_05:24"]),
            raw("Debian", "trixie", "arm64", debian, &["20261123_05:24"]),
            raw("Alpine", "3.9", "amd64", "alpine/3.9/default,alpine/3.9", &["1"]),
            raw("Alpine", "3.22", "amd64", "alpine/3.22/default,alpine/3.22", &["1"]),
            raw("Alpine", "edge", "amd64", "alpine/edge/default,alpine/edge", &["1"]),
            raw("Archlinux", "current", "amd64", "archlinux/current/default,archlinux", &["1"]),
            raw("Fedora", "42", "arm64", "fedora/42", &["1"]),
            json!({"arch": 7}),
        ]))
        .unwrap()
    }

    fn find(name: &str) -> Result<String> {
        let all = catalogue();
        let mut wanted: Wanted = name.parse().unwrap();
        wanted.architecture.get_or_insert_with(|| "amd64".into());
        all.find(&wanted).map(|(product, build)| format!("{}@{}", product.name(), build.serial))
    }

    #[test]
    fn the_newest_build_wins_unless_one_is_named() {
        assert_eq!(find("debian/trixie").unwrap(), "debian/trixie@20261123_05:24");
        assert_eq!(find("debian/13/default").unwrap(), "debian/trixie@20261123_05:24");
        assert_eq!(find("debian/trixie@20261122_05:24").unwrap(), "debian/trixie@20261122_05:24");
        let e = find("debian/trixie@1").unwrap_err();
        assert_eq!(e.advice(), Some("there is 20261123_05:24, 20261122_05:24"));
    }

    #[test]
    fn a_bare_name_is_the_newest_release_by_number_and_not_by_alphabet() {
        assert_eq!(find("alpine").unwrap(), "alpine/3.22@1");
        assert_eq!(find("archlinux").unwrap(), "archlinux/current@1");
    }

    #[test]
    fn an_error_names_the_nearest_that_are_there() {
        let hint = |name: &str| find(name).unwrap_err().advice().unwrap().to_owned();
        assert!(
            hint("debian/trixi").starts_with("the nearest that are there: debian/trixie"),
            "{}",
            hint("debian/trixi")
        );
        assert!(hint("debain/13").contains("debian/13"));
        assert!(hint("alpine/3.21").contains("alpine/3.22"));
        assert!(hint("fedora/42").contains("it is there for arm64"));
        assert!(hint("zzz/1").contains("lazaret image search"));
        assert!(find("zzz").is_err());
    }

    #[test]
    fn an_archive_is_preferred_and_strange_items_do_no_harm() {
        let all = catalogue();
        let build = &all.products.iter().find(|product| product.os == "Debian").unwrap().builds[0];
        assert_eq!((build.form, build.root.path.as_str()), (Form::Tar, "i/r.tar.xz"));
        assert_eq!(build.fingerprint.unwrap().hex(), hex(3));
        assert_eq!(build.metadata.path, "i/20261123_05:24/incus.tar.xz");
        assert_eq!(all.products[0].requirements["nesting"], "true");
    }

    #[test]
    fn what_would_lead_elsewhere_is_left_out() {
        for path in ["../../etc/passwd", "https://evil.example/x", "/x", "a//b", "a b", "a\nb", "a?b"] {
            let mut product = raw("A", "1", "amd64", "a/1", &["1"]);
            product["versions"]["1"]["items"]["root.tar.xz"]["path"] = path.into();
            let all = Catalogue::parse(&list(&[product])).unwrap();
            assert_eq!(all.products[0].builds[0].form, Form::Squashfs, "{path}");
        }
        let mut product = raw("A", "1", "amd64", "a/1,\u{1b}[2J,x y", &["1"]);
        product["release_title"] = "\u{1b}[31mred".into();
        let all = Catalogue::parse(&list(&[product])).unwrap();
        assert_eq!((&*all.products[0].title, &all.products[0].aliases[..]), ("[31mred", &["a/1".to_owned()][..]));
        for (key, value) in [("os", json!("a/b")), ("release", json!("..")), ("versions", json!({}))] {
            let mut product = raw("A", "1", "amd64", "a/1", &["1"]);
            product[key] = value;
            assert_eq!(Catalogue::parse(&list(&[product])).unwrap().products, []);
        }
    }

    #[test]
    fn the_index_leads_to_lists_on_the_same_server() {
        let of = |path: &str| {
            let stream = json!({"datatype": "image-downloads", "path": path, "format": "products:1.0"});
            let other = json!({"datatype": "image-ids", "path": "x"});
            index(json!({"format": "index:1.0", "index": {"images": stream, "ids": other}}).to_string().as_bytes())
        };
        assert_eq!(of("streams/v1/images.json").unwrap(), ["streams/v1/images.json"]);
        assert!(of("https://evil.example/x").is_err() && of("../x").is_err());
        assert!(index(b"<html>").unwrap_err().to_string().starts_with("the server's answer is no list of images"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..4000,
        ) {
            let _ = (index(&bytes), Catalogue::parse(&bytes));
            let mut good = list(&[raw("A", "1", "amd64", "a/1", &["1", "2"])]);
            let at = cut % good.len();
            good[at] = bytes.first().copied().unwrap_or(b'7');
            if let Ok(all) = Catalogue::parse(&good) {
                for product in &all.products {
                    prop_assert!(!product.builds.is_empty());
                    prop_assert!(product.builds.iter().all(|build| is_plain(&build.root.path)));
                }
            }
        }

        #[test]
        fn nearest_never_panics(name in "\\PC{0,80}") {
            let _ = catalogue().nearest(&name, "amd64");
        }
    }
}

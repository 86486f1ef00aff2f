//! Images by name: what was pulled, imported, built or published, and which layer it is.

use std::fs as stdfs;
use std::path::PathBuf;
use std::str::FromStr;

use lazaret_base::{Context, Error, Kind, Lock, Result, error, read_bounded, write_atomic};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::build::Distribution;
use crate::reference::{self, Wanted};
use crate::template::Template;
use crate::unpack::full;
use crate::{Digest, LayerId, Store};

/// An image that is here and has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As people write it, with all parts: `images:debian/trixie/amd64`; what was made here has no remote.
    pub name: String,
    /// Its root file system.
    pub layer: LayerId,
    /// What it is.
    pub about: About,
    /// Where it came from, if not from here.
    pub origin: Option<Origin>,
    /// Files to be written into containers of it.
    pub templates: Vec<Template>,
    /// What it runs, if it is made for one program.
    pub program: Option<Program>,
}

/// What an image says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// A sentence.
    #[serde(default)]
    pub description: String,
    /// Debian's name of the architecture; empty if unknown.
    #[serde(default)]
    pub architecture: String,
    /// The build.
    #[serde(default)]
    pub serial: String,
    /// When it came here, in seconds since 1970.
    #[serde(default)]
    pub since: u64,
    /// When its maker wants it to be replaced, in seconds since 1970.
    #[serde(default)]
    pub expires: Option<u64>,
    /// What it asks of its container, such as `nesting`.
    #[serde(default)]
    pub requirements: Vec<String>,
}

/// Where an image came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The remote, by its name at that time; empty for a file or a registry that is no remote.
    pub remote: String,
    /// What it is asked for there, to get a newer one.
    pub reference: String,
    /// Other names of it there, lower case, without the architecture.
    #[serde(default)]
    pub aliases: Vec<String>,
    /// What the server calls this very build.
    #[serde(default)]
    pub fingerprint: Option<String>,
    /// Whether one build was asked for: then a newer one is another image.
    #[serde(default)]
    pub pinned: bool,
}

/// What an image for one program runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// What always comes first.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// What follows it unless the user gives something else.
    #[serde(default)]
    pub command: Vec<String>,
    /// Variables.
    #[serde(default)]
    pub environment: Vec<(String, String)>,
    /// Who runs it, by the image's own files: `user`, `user:group`, or numbers.
    #[serde(default)]
    pub user: Option<String>,
    /// Where.
    #[serde(default)]
    pub directory: Option<String>,
    /// What asks it to end.
    #[serde(default)]
    pub stop_signal: Option<String>,
}

impl Image {
    /// Whether `wanted` may mean this image; the architecture is this machine's if none is wanted.
    pub fn is(&self, wanted: &Wanted, default_remote: &str) -> bool {
        let architecture = wanted.architecture.as_deref().unwrap_or(reference::own_architecture());
        let fits = self.about.architecture.is_empty() || self.about.architecture == architecture;
        let serial = wanted.serial.as_ref().is_none_or(|serial| *serial == self.about.serial);
        let place = match (&self.origin, &wanted.remote) {
            (Some(origin), Some(remote)) => origin.remote == *remote,
            (Some(origin), None) => origin.remote == default_remote || origin.remote.is_empty(),
            (None, remote) => remote.is_none(),
        };
        // A pinned build answers only when it is asked for by its number.
        let pinned = self.origin.as_ref().is_some_and(|origin| origin.pinned);
        fits && serial && place && (!pinned || wanted.serial.is_some()) && self.is_called(&wanted.name)
    }

    fn is_called(&self, name: &str) -> bool {
        let remote = self.origin.as_ref().map_or("", |origin| origin.remote.as_str());
        let bare = self.name.strip_prefix(remote).and_then(|rest| rest.strip_prefix(':')).unwrap_or(&self.name);
        let aliases = self.origin.iter().flat_map(|origin| &origin.aliases);
        // What was built here bears the name of its release, and is asked for by the number as well.
        let built = || self.origin.is_none() && Distribution::canonical(name).is_some_and(|name| name == bare);
        bare.eq_ignore_ascii_case(name) || aliases.into_iter().any(|alias| alias == name) || built()
    }
}

/// No record is longer.
const LONGEST: usize = 4 << 20;
const FORMAT: u32 = 1;

impl Store {
    /// All images that have a name, sorted by it. One whose layer is gone is no more.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images = Vec::new();
        let dir = self.part("names")?;
        let reading = || format!("reading `{}`", dir.display());
        for entry in stdfs::read_dir(&dir).with_context(reading)? {
            let path = entry.with_context(reading)?.path();
            if path.extension().is_some_and(|ending| ending == "json")
                && let Some(image) = read(&path)?
                && self.layer(&image.layer).is_ok()
            {
                images.push(image);
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The image of exactly that name.
    pub fn image(&self, name: &str) -> Result<Option<Image>> {
        match read(&self.record_of(name)?)? {
            Some(image) if self.layer(&image.layer).is_ok() => Ok(Some(image)),
            _ => Ok(None),
        }
    }

    /// Gives a layer a name; an image that had it before loses it.
    ///
    /// Refuses a name that could not be typed again.
    pub fn name_image(&self, image: &Image) -> Result<()> {
        let naming = || format!("naming the image `{}`", image.name);
        if image.name == "host" || image.name.is_empty() || image.name.len() > 300 {
            return Err(error("an image can't be called that").kind(Kind::Invalid)).with_context(naming);
        }
        let path = self.record_of(&image.name)?;
        let _lock = self.lock_names()?;
        let record = Record { format: FORMAT, image: image.clone().into() };
        let json = serde_json::to_vec_pretty(&record).map_err(|e| error(e.to_string()))?;
        write_atomic(&path, &json).map_err(full).with_context(naming)
    }

    /// Takes a name away; the layer stays. Says whether it was there.
    pub fn forget_image(&self, name: &str) -> Result<bool> {
        let path = self.record_of(name)?;
        let _lock = self.lock_names()?;
        match stdfs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).with_context(|| format!("taking the name `{name}` away")),
        }
    }

    fn lock_names(&self) -> Result<Lock> {
        Lock::wait(&self.part("locks")?.join("names"))
    }

    /// A name may hold slashes and colons, a file name better not.
    fn record_of(&self, name: &str) -> Result<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let mut file = String::new();
        for byte in name.bytes() {
            match plain(byte) {
                true => file.push(char::from(byte)),
                false => file.push_str(&format!("%{byte:02x}")),
            }
        }
        if file.len() > 200 || file.starts_with('.') {
            file = Digest::of(name.as_bytes()).hex();
        }
        Ok(self.part("names")?.join(format!("{file}.json")))
    }
}

fn read(path: &std::path::Path) -> Result<Option<Image>> {
    let reading = || format!("reading `{}`", path.display());
    let file = match stdfs::File::open(path) {
        // Taken away meanwhile, or never there.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(reading)?,
    };
    let bytes = read_bounded(file, LONGEST).with_context(reading)?;
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| error(e.to_string())).with_context(reading)?;
    match record.format {
        FORMAT => Ok(Some(record.image.into())),
        format => Err(error(format!("it was written by a newer version (format {format})"))).with_context(reading),
    }
}

/// `names/NAME.json`.
#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    #[serde(flatten)]
    image: Written,
}

#[derive(Serialize, Deserialize)]
struct Written {
    name: String,
    layer: WrittenLayer,
    about: About,
    #[serde(default)]
    origin: Option<Origin>,
    #[serde(default)]
    templates: Vec<Template>,
    #[serde(default)]
    program: Option<Program>,
}

impl From<Image> for Written {
    fn from(image: Image) -> Written {
        let Image { name, layer, about, origin, templates, program } = image;
        Written { name, layer: WrittenLayer(layer), about, origin, templates, program }
    }
}

impl From<Written> for Image {
    fn from(written: Written) -> Image {
        let Written { name, layer: WrittenLayer(layer), about, origin, templates, program } = written;
        Image { name, layer, about, origin, templates, program }
    }
}

struct WrittenLayer(LayerId);

impl Serialize for WrittenLayer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WrittenLayer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        LayerId::from_str(&text).map(WrittenLayer).map_err(|e: Error| serde::de::Error::custom(e))
    }
}

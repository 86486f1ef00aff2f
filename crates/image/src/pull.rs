//! From a name to a layer: what a remote offers is looked up, downloaded, verified, unpacked and named.

use std::fs::{self as stdfs, File};
use std::io::{Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lazaret_base::{Context, Kind, Lock, Result, error, read_bounded, write_atomic};
use serde::{Deserialize, Serialize};

use crate::fetch::{Answer, Asked, Client, Download, Network, Validators, download, forget};
use crate::named::{About, Image, Origin};
use crate::reference::Wanted;
use crate::remote::{Protocol, Remote, Remotes};
use crate::simplestreams::{self, Build, Catalogue, Form, Part, Product};
use crate::store::{Made, now};
use crate::template::{Metadata, read_metadata};
use crate::unpack::full;
use crate::{Digest, Layer, LayerId, Limits, Progress, Stage, Store, squashfs, unpack};

/// How new a remote's list must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// One that is here will do, however old.
    Any,
    /// Of the last hour; an older one if nobody answers.
    Recent,
    /// Asked for now; an older one if nobody answers.
    Now,
}

/// What a remote offers.
#[derive(Clone, Debug)]
pub struct Listed {
    /// All of it.
    pub catalogue: Catalogue,
    /// When it was asked, in seconds since 1970.
    pub asked: u64,
    /// Why it is older than was wished.
    pub stale: Option<String>,
}

/// What came of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Whether it, or a newer build of it, has come just now.
    pub new: bool,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

const RECENT: Duration = Duration::from_secs(3600);
/// A download that nobody has gone on with for so long is given up.
pub(crate) const GIVEN_UP: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// What a remote offers, asked for only if the list that is here is too old.
    pub fn catalogue(&self, network: &Network, remote: &Remote, freshness: Freshness) -> Result<Listed> {
        if remote.protocol != Protocol::Simplestreams {
            let e = error(format!("the remote `{}` is a registry, which has no list", remote.name));
            return Err(e.kind(Kind::Invalid).hint(format!("name the image: {}:team/app/1.2", remote.name)));
        }
        let cache = Cache { dir: self.part("catalogues")?, remote };
        let here = cache.read();
        let age = here.as_ref().map(|(header, _)| Duration::from_secs(now().saturating_sub(header.asked)));
        let good = match freshness {
            Freshness::Any => age.is_some(),
            Freshness::Recent => age.is_some_and(|age| age < RECENT),
            Freshness::Now => false,
        };
        let (header, lists, stale) = match (good, here) {
            (true, Some((header, lists))) => (header, lists, None),
            (_, here) => match self.ask(network, &cache, here.as_ref()) {
                Ok((header, lists)) => (header, lists, None),
                Err(e) => {
                    // Who answers nonsense is not asked again in other words.
                    let Some((header, lists)) = here.filter(|_| e.what() != Kind::Invalid) else {
                        return Err(e).with_context(|| format!("getting the list of images of `{}`", remote.name));
                    };
                    (header, lists, Some(e.to_string()))
                }
            },
        };
        let mut catalogue = Catalogue::default();
        for list in &lists {
            let parsed =
                Catalogue::parse(list).with_context(|| format!("reading the list of images of `{}`", remote.name))?;
            catalogue.products.extend(parsed.products);
        }
        Ok(Listed { catalogue, asked: header.asked, stale })
    }

    fn ask(&self, network: &Network, cache: &Cache<'_>, here: Option<&Cached>) -> Result<Cached> {
        let remote = cache.remote;
        let _lock = Lock::wait(&self.part("locks")?.join(format!("catalogue-{}", remote.name)))?;
        let client = Client::new(network, remote.ca.as_deref(), remote.insecure)?;
        let get = |path: &str, unless: Validators| {
            let places: Vec<_> = remote.places(path).collect();
            client.small(&places, simplestreams::LARGEST, &Asked { unless, ..Asked::default() })
        };
        let Answer::Fresh { bytes, .. } = get(simplestreams::INDEX, Validators::default())? else {
            return Err(error("the server says that nothing has changed, but nothing was there"));
        };
        let (mut header, mut lists) = (Header { url: remote.url.clone(), asked: now(), lists: Vec::new() }, Vec::new());
        for path in simplestreams::index(&bytes)? {
            let old = here.and_then(|(header, lists)| {
                let at = header.lists.iter().position(|list| list.path == path)?;
                Some((&header.lists[at], &lists[at]))
            });
            let unless = old.map(|(list, _)| Validators { etag: list.etag.clone(), modified: list.modified.clone() });
            match (get(&path, unless.unwrap_or_default())?, old) {
                (Answer::Fresh { bytes, validators, .. }, _) => {
                    // A list that can't be read must not take the place of one that can.
                    Catalogue::parse(&bytes)?;
                    let Validators { etag, modified } = validators;
                    header.lists.push(ListHeader { path, digest: Digest::of(&bytes).hex(), etag, modified });
                    lists.push(bytes);
                }
                (Answer::Same, Some((list, bytes))) => {
                    header.lists.push(list.clone());
                    lists.push(bytes.clone());
                }
                (Answer::Same, None) => {
                    return Err(error("the server says that nothing has changed, but nothing was there"));
                }
            }
        }
        cache.write(&header, &lists)?;
        Ok((header, lists))
    }

    /// Gets an image, unless its newest build is here already.
    ///
    /// Of several processes that want the same, one downloads and the others wait for it. What an interrupted one has
    /// downloaded is kept and gone on with; nothing of it can be seen as an image before it is whole and verified.
    pub fn pull(
        &self,
        network: &Network,
        remotes: &Remotes,
        wanted: &Wanted,
        freshness: Freshness,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled> {
        let asked = wanted;
        let wanted = &remotes.expand(asked)?;
        let remote = remotes.get(wanted.remote.as_deref())?;
        let pulling = || format!("pulling `{asked}`");
        if let Some(repository) = remotes.repository(wanted)? {
            return self.pull_repository(network, remotes, &repository, progress);
        }
        let listed = self.catalogue(network, remote, freshness).with_context(pulling)?;
        let order = Order { network, remote, asked, wanted };
        let first = self.pull_build(&order, &listed, progress);
        let (pulled, stale) = match first {
            // The server has replaced the build since the list was made, or the image is newer than the list: a file
            // is gone, or another one. The same list again would come to the same end.
            Err(e) if e.errno().is_none() && freshness != Freshness::Now => {
                let again = self.catalogue(network, remote, Freshness::Now);
                let Some(again) = again.ok().filter(|again| again.catalogue != listed.catalogue) else {
                    return Err(e).with_context(pulling);
                };
                (self.pull_build(&order, &again, progress).with_context(pulling)?, again.stale)
            }
            pulled => (pulled.with_context(pulling)?, listed.stale),
        };
        let mut pulled = pulled;
        if let Some(why) = stale {
            pulled.notes.push(format!("the list of `{}` is not of today: {why}", remote.name));
        }
        Ok(pulled)
    }

    /// Bytes of downloads that nobody is at.
    pub fn unfinished(&self) -> Result<u64> {
        downloads(self, Duration::ZERO, false)
    }

    /// Removes them.
    pub fn drop_unfinished(&self) -> Result<u64> {
        downloads(self, Duration::ZERO, true)
    }

    fn pull_build(&self, order: &Order<'_>, listed: &Listed, progress: &mut dyn FnMut(Progress)) -> Result<Pulled> {
        let (product, build) = listed
            .catalogue
            .find(order.wanted)
            // A server of one's own need not have what a short name of ours stands for.
            .or_else(|e| listed.catalogue.find(order.asked).map_err(|_| e))
            .with_context(|| format!("looking on `{}`", order.remote.name))?;
        let pinned = order.wanted.serial.as_ref().map(|serial| format!("@{serial}")).unwrap_or_default();
        let name = format!("{}:{}/{}{pinned}", order.remote.name, product.name(), product.architecture);
        if let Some(image) = self.here(&name, order, build)? {
            return Ok(Pulled { image, new: false, notes: Vec::new() });
        }
        self.one_pull_at_a_time(&build.root.digest, progress, |progress| match self.here(&name, order, build)? {
            Some(image) => Ok(Pulled { image, new: true, notes: Vec::new() }),
            None => self.pull_locked(order, name, product, build, progress),
        })
    }

    /// Pulls while nobody else pulls the same.
    pub(crate) fn one_pull_at_a_time(
        &self,
        what: &Digest,
        progress: &mut dyn FnMut(Progress),
        pull: impl FnOnce(&mut dyn FnMut(Progress)) -> Result<Pulled>,
    ) -> Result<Pulled> {
        let path = self.part("locks")?.join(format!("pull-{}", what.hex()));
        let lock = match Lock::try_take(&path)? {
            Some(lock) => lock,
            None => {
                progress(Progress { stage: Stage::Waiting, ..Progress::default() });
                Lock::wait(&path)?
            }
        };
        let pulled = pull(progress);
        // Unlinked while held: whoever waits sees that and makes a new one.
        let _ = stdfs::remove_file(&path);
        drop(lock);
        pulled
    }

    /// The image if this very build is here. The name it was asked by now is one of its names.
    fn here(&self, name: &str, order: &Order<'_>, build: &Build) -> Result<Option<Image>> {
        let Some(mut image) = self.image(name)? else { return Ok(None) };
        if image.about.serial != build.serial || image.layer != LayerId::Archive(build.root.digest) {
            return Ok(None);
        }
        if let Some(origin) = &mut image.origin
            && order.add_aliases(&mut origin.aliases)
        {
            self.name_image(&image)?;
            self.take_alias(order, name)?;
        }
        Ok(Some(image))
    }

    fn pull_locked(
        &self,
        order: &Order<'_>,
        name: String,
        product: &Product,
        build: &Build,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Pulled> {
        let client = Client::new(order.network, order.remote.ca.as_deref(), order.remote.insecure)?;
        let metadata = order.metadata(&client, &build.metadata)?;
        let id = LayerId::Archive(build.root.digest);
        let layer = match self.find(&id)? {
            Some(layer) => layer,
            None => self.pull_root(order, &client, build, progress)?,
        };
        let mut aliases = product.aliases.clone();
        order.add_aliases(&mut aliases);
        let title = format!("{} {}", product.os, product.title);
        let about = About {
            description: if metadata.description.is_empty() { title } else { metadata.description },
            architecture: product.architecture.clone(),
            serial: build.serial.clone(),
            since: now(),
            expires: metadata.expires,
            requirements: product.requirements.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        };
        let origin = Origin {
            remote: order.remote.name.clone(),
            reference: format!("{}:{}/{}", order.remote.name, product.name(), product.architecture),
            aliases,
            fingerprint: build.fingerprint.map(|digest| digest.hex()),
            pinned: order.wanted.serial.is_some(),
        };
        let image =
            Image { name, layer: id, about, origin: Some(origin), templates: metadata.templates, program: None };
        self.name_image(&image)?;
        self.take_alias(order, &image.name)?;
        forget(&self.part("downloads")?, &build.root.digest);
        let notes = metadata.warnings.into_iter().chain(layer.warnings).collect();
        Ok(Pulled { image, new: true, notes })
    }

    fn pull_root(
        &self,
        order: &Order<'_>,
        client: &Client,
        build: &Build,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Layer> {
        let dir = self.part("downloads")?;
        let (places, asked) = (order.remote.places(&build.root.path).collect(), Asked::default());
        let wanted = Download { places, digest: build.root.digest, size: build.root.size, asked: &asked };
        let mut told = |read| {
            progress(Progress { stage: Stage::Fetching { total: build.root.size }, read, ..Progress::default() })
        };
        let file = download(client, &wanted, &dir, &mut told)?;
        let source = format!("{}/{}", order.remote.url, build.root.path);
        let layer = self.unpack_root(file, &source, build, progress);
        if layer.as_ref().is_err_and(|e| e.errno().is_none()) {
            // What is in it won't get better by trying again; a full disk may.
            forget(&dir, &build.root.digest);
        }
        layer.with_context(|| format!("unpacking `{source}`"))
    }

    /// The file is what it should be: by now its digest is known.
    fn unpack_root(
        &self,
        mut file: File,
        source: &str,
        build: &Build,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Layer> {
        let temporary = self.temporary()?;
        let rootfs = temporary.make_rootfs()?;
        file.seek(SeekFrom::Start(0))?;
        let unpacked = match build.form {
            Form::Tar => unpack(&file, rootfs.as_fd(), &Limits::default(), progress)?,
            Form::Squashfs => squashfs::unpack(&file, rootfs.as_fd(), &temporary.rootfs(), &Limits::default())?,
        };
        let made = Made { source: source.to_owned(), archive_size: Some(build.root.size), unpacked };
        self.finish(temporary, &rootfs, LayerId::Archive(build.root.digest), made)
    }

    /// A name that was asked for means the image that it found last, and no other of that remote.
    fn take_alias(&self, order: &Order<'_>, owner: &str) -> Result<()> {
        for mut image in self.images()? {
            let Some(origin) = &mut image.origin else { continue };
            let same = image.name != owner && origin.remote == order.remote.name && order.wanted.serial.is_none();
            let before = origin.aliases.len();
            if same && image.about.architecture == order.architecture() {
                origin.aliases.retain(|alias| *alias != order.asked.name && *alias != order.wanted.name);
            }
            if origin.aliases.len() != before {
                self.name_image(&image)?;
            }
        }
        Ok(())
    }
}

/// Removes downloads that nobody has gone on with for a while.
pub(crate) fn collect_downloads(store: &Store, after: Duration) -> Result<u64> {
    downloads(store, after, true)
}

/// The bytes of downloads that nobody is at and nobody has gone on with for a while.
fn downloads(store: &Store, after: Duration, remove: bool) -> Result<u64> {
    let mut bytes = 0;
    for entry in stdfs::read_dir(store.part("downloads")?)? {
        let path = entry?.path();
        let Some(digest) = path.file_stem().and_then(|hex| Digest::from_hex(hex.to_str()?).ok()) else { continue };
        let Ok(meta) = path.symlink_metadata() else { continue };
        let idle = meta.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
        if idle < after || path.extension().is_none_or(|ending| ending != "part") {
            continue;
        }
        let lock_path = store.part("locks")?.join(format!("pull-{}", digest.hex()));
        if let Some(_lock) = Lock::try_take(&lock_path)? {
            bytes += std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
            if remove {
                forget(&store.part("downloads")?, &digest);
            }
            let _ = stdfs::remove_file(&lock_path);
        }
    }
    Ok(bytes)
}

/// What is wanted from where.
struct Order<'a> {
    network: &'a Network,
    remote: &'a Remote,
    /// As it was typed.
    asked: &'a Wanted,
    /// The same with short names spelled out.
    wanted: &'a Wanted,
}

impl Order<'_> {
    fn architecture(&self) -> &str {
        self.wanted.architecture.as_deref().unwrap_or(crate::own_architecture())
    }

    /// Adds the names that were asked for; whether one was new.
    fn add_aliases(&self, aliases: &mut Vec<String>) -> bool {
        let names = [&self.asked.name, &self.wanted.name];
        let new: Vec<_> = names.into_iter().filter(|name| !aliases.contains(name)).cloned().collect();
        let any = !new.is_empty();
        aliases.extend(new);
        aliases.dedup();
        any
    }

    fn metadata(&self, client: &Client, part: &Part) -> Result<Metadata> {
        let places: Vec<_> = self.remote.places(&part.path).collect();
        let limit = usize::try_from(part.size).unwrap_or(usize::MAX);
        let Answer::Fresh { bytes, .. } = client.small(&places, limit, &Asked::default())? else {
            return Err(error("the server says that nothing has changed, but nothing was there"));
        };
        let found = Digest::of(&bytes);
        if found != part.digest {
            let sentence = format!("its SHA-256 is {}, but the list says {}", found.hex(), part.digest.hex());
            return Err(error(sentence).kind(Kind::Invalid).context(format!("downloading `{}`", places[0])));
        }
        read_metadata(&bytes)
    }
}

/// What a remote said last: `REMOTE.json`, and its lists under their digests.
struct Cache<'a> {
    dir: PathBuf,
    remote: &'a Remote,
}

type Cached = (Header, Vec<Vec<u8>>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Header {
    /// The remote of that name may have moved: then its lists are another's.
    url: String,
    asked: u64,
    lists: Vec<ListHeader>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct ListHeader {
    path: String,
    digest: String,
    etag: Option<String>,
    modified: Option<String>,
}

impl Cache<'_> {
    fn header(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.remote.name))
    }

    fn list(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.list"))
    }

    /// A cache that can't be read is none.
    fn read(&self) -> Option<Cached> {
        let read = |path: &Path| read_bounded(File::open(path).ok()?, simplestreams::LARGEST).ok();
        let header: Header = serde_json::from_slice(&read(&self.header())?).ok()?;
        if header.url != self.remote.url {
            return None;
        }
        let list = |list: &ListHeader| {
            let digest = Digest::from_hex(&list.digest).ok()?;
            read(&self.list(&list.digest)).filter(|bytes| Digest::of(bytes) == digest)
        };
        let lists = header.lists.iter().map(list).collect::<Option<_>>()?;
        Some((header, lists))
    }

    fn write(&self, header: &Header, lists: &[Vec<u8>]) -> Result<()> {
        let before: Option<Header> =
            stdfs::read(self.header()).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        for (list, bytes) in header.lists.iter().zip(lists) {
            if !self.list(&list.digest).exists() {
                write_atomic(&self.list(&list.digest), bytes).map_err(full)?;
            }
        }
        let json = serde_json::to_vec(header).map_err(|e| error(e.to_string()))?;
        write_atomic(&self.header(), &json).map_err(full)?;
        let old = before.into_iter().flat_map(|header| header.lists).map(|list| list.digest);
        for digest in old.filter(|digest| !header.lists.iter().any(|list| list.digest == *digest)) {
            // Another remote may have had the same list: it asks again then.
            let _ = stdfs::remove_file(self.list(&digest));
        }
        Ok(())
    }
}

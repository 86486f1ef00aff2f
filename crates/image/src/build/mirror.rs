//! Getting packages from an archive, each step vouched for by the one before: the keyring vouches for the signature,
//! the signature for the Release file, that for the indexes, and these for every package.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use lazaret_base::{Context, Error, Kind, Result, error, read_bounded};
use rustix::fs::MemfdFlags;

use super::distribution::{Keyring, Suite};
use super::index::Package;
use super::release::{Listed, Release};
use crate::fetch::{Answer, Asked, Client, Network, Validators, explained, refused};
use crate::packages::{PackageCache, Seen, Size, Stats};
use crate::store::now;
use crate::{Digest, Limits, Progress, Stage, stream};

/// An archive, as it is reached.
pub struct Mirror<'a> {
    client: Client,
    cache: &'a PackageCache,
    keyring: Keyring<'a>,
}

/// The indexes of some suites.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// What they say, in the order of `mirrors`.
    pub texts: Vec<String>,
    /// The archive that each is of.
    pub mirrors: Vec<String>,
    /// What the user should know, a sentence each.
    pub notes: Vec<String>,
}

/// No Release file is longer.
const LONGEST_RELEASE: usize = 16 << 20;
/// The whole of Debian takes 50 MB.
const LONGEST_INDEX: u64 = 512 << 20;
/// No package is larger.
const LARGEST_PACKAGE: u64 = 8 << 30;
/// How many packages are fetched at once.
const CONNECTIONS: usize = 6;
/// How often a package is asked for.
const TRIES: u32 = 3;
/// Where programs are. The caller's PATH is the caller's.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A file that is nowhere.
fn in_memory(bytes: &[u8]) -> Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("lazaret", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

impl<'a> Mirror<'a> {
    /// One that is believed by the signatures of these keys.
    pub fn new(network: &Network, cache: &'a PackageCache, keyring: Keyring<'a>) -> Result<Mirror<'a>> {
        // Signatures vouch for what comes, so that plain http is as good as any; mirrors speak it.
        let client = Client::new(network, None, true)?;
        Ok(Mirror { client, cache, keyring })
    }

    /// Gets the indexes of all these suites, as far as they have these components.
    pub fn lists(&self, suites: &[Suite], components: &[&str], architecture: &str) -> Result<Lists> {
        let mut lists = Lists::default();
        for suite in suites {
            let (release, note) =
                self.release(suite).with_context(|| format!("asking for the suite `{}`", suite.name))?;
            lists.notes.extend(note);
            if !release.architectures.iter().any(|known| known == architecture) {
                let known = release.architectures.join(", ");
                return Err(error(format!("the suite `{}` has nothing for {architecture}", suite.name))
                    .kind(Kind::NotFound)
                    .hint(format!("it has {known}")));
            }
            for component in components {
                let (path, listed) = index_of(&release, component, architecture)
                    .with_context(|| format!("looking into the suite `{}`", suite.name))?;
                let text = self.index(suite, &path, listed, release.by_hash);
                lists.texts.push(text.with_context(|| format!("reading `{}`", suite.place(&path)))?);
                lists.mirrors.push(suite.mirror.clone());
            }
        }
        Ok(lists)
    }

    /// The Release file of a suite, its signature verified. One that is here serves if nobody answers and it still
    /// holds.
    fn release(&self, suite: &Suite) -> Result<(Release, Option<String>)> {
        let address = suite.place("InRelease");
        let here = self.cache.seen(&address).and_then(|seen| {
            let bytes = read_bounded(self.cache.get_verified(&seen.digest()?)?, LONGEST_RELEASE).ok()?;
            Some((seen, bytes))
        });
        let unless =
            here.as_ref().map(|(seen, _)| Validators { etag: seen.etag.clone(), modified: seen.modified.clone() });
        let asked = Asked { unless: unless.unwrap_or_default(), plain: true, ..Asked::default() };
        let answer = self.client.small(std::slice::from_ref(&address), LONGEST_RELEASE, &asked);
        let (bytes, fresh, note) = match (answer, here) {
            (Ok(Answer::Fresh { bytes, validators }), _) => (bytes, Some(validators), None),
            (Ok(Answer::Same), Some((_, bytes))) => (bytes, None, None),
            (Ok(Answer::Same), None) => {
                return Err(error("the server says that nothing has changed, but nothing was there"));
            }
            (Err(e), _) if e.what() == Kind::NotFound => {
                return Err(e.hint("is the release spelled right? one without updates is built with --no-updates"));
            }
            (Err(e), Some((_, bytes))) => (bytes, None, Some(format!("`{}` was not asked: {e}", suite.name))),
            (Err(e), None) => return Err(e),
        };
        let verifying = || format!("verifying `{address}`");
        let text = self.verify(&bytes).with_context(verifying)?;
        let release = Release::parse(&text).with_context(verifying)?;
        release.check(&suite.wanted, now()).with_context(verifying)?;
        if let Some(Validators { etag, modified }) = fresh {
            let (digest, _) = self.cache.put(&bytes[..], None, Size::AtMost(LONGEST_RELEASE as u64))?;
            self.cache.note(&address, &Seen { digest: digest.hex(), etag, modified })?;
        }
        Ok((release, note))
    }

    /// What of a signed text is signed, if a key of the keyring has signed it.
    fn verify(&self, signed: &[u8]) -> Result<String> {
        let input = in_memory(signed)?;
        let known = self.keyring.known.map(in_memory).transpose()?;
        let keys = match &known {
            // Not by a descriptor that is handed on: gpgv takes nothing but paths.
            Some(keys) => format!("/proc/{}/fd/{}", std::process::id(), keys.as_raw_fd()).into(),
            None => self.keyring.path.clone(),
        };
        let said = Command::new("gpgv")
            .args(["--status-fd", "2", "--weak-digest", "SHA1", "--weak-digest", "RIPEMD160", "--output", "-"])
            .arg("--keyring")
            .arg(&keys)
            .arg("-")
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/nonexistent")
            .env("LC_ALL", "C")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output()
            .context("starting gpgv, which verifies signatures")
            .hint("install the package `gpgv`")?;
        judge(&String::from_utf8_lossy(&said.stderr)).map_err(|e| match e.what() {
            Kind::NotFound => e.hint(match self.keyring.known {
                Some(_) => format!(
                    "the key is not the one that is known here: install the package `{}`, or name a file of keys: \
                     --keyring FILE",
                    self.keyring.package
                ),
                None => format!(
                    "the key is not in `{}`: update the package `{}`, or name a file of keys: --keyring FILE",
                    self.keyring.path.display(),
                    self.keyring.package
                ),
            }),
            _ => e,
        })?;
        String::from_utf8(said.stdout).map_err(|_| error("it is no text").kind(Kind::Invalid))
    }

    /// An index, decompressed.
    fn index(&self, suite: &Suite, path: &str, listed: Listed, by_hash: bool) -> Result<String> {
        if listed.size > LONGEST_INDEX {
            return Err(error(format!("it would have {} bytes", listed.size)));
        }
        // Small suites have nothing now and then.
        if listed.size == 0 {
            return Ok(String::new());
        }
        let places = match (by_hash, path.rsplit_once('/')) {
            // While an archive is renewed, the file of that name may be another already.
            (true, Some((above, _))) => {
                vec![suite.place(&format!("{above}/by-hash/SHA256/{}", listed.digest.hex())), suite.place(path)]
            }
            _ => vec![suite.place(path)],
        };
        let file = match self.cache.get_verified(&listed.digest) {
            Some(file) => file,
            None => {
                let mut outcome = Err(error("there is no place to ask"));
                for place in &places {
                    outcome = self.fetch_one(place, &listed.digest, listed.size, &mut |_| {});
                    if outcome.is_ok() {
                        break;
                    }
                }
                outcome?
            }
        };
        let limits = Limits { bytes: LONGEST_INDEX, ..Limits::default() };
        let bytes = stream::with(&file, &limits, |stream| {
            let mut bytes = Vec::new();
            loop {
                let more = stream.peek()?;
                let n = more.len();
                if n == 0 {
                    return Ok(bytes);
                }
                bytes.extend_from_slice(more);
                stream.consume(n);
            }
        });
        String::from_utf8(bytes?).map_err(|_| error("it is no text").kind(Kind::Invalid))
    }

    /// Gets packages, several at once, and gives each a name in `into`: that of [`file_name`]. What is here already is
    /// read and verified, too. `progress` is told of bytes. How many bytes were here and how many came is counted.
    pub fn fetch(
        &self,
        packages: &[&Package<'_>],
        lists: &Lists,
        into: &Path,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Stats> {
        let wanted: Vec<Wanted> = packages.iter().map(|package| Wanted::of(package, lists)).collect::<Result<_>>()?;
        let total = wanted.iter().map(|wanted| wanted.size).sum();
        let (queue, stop) = (Mutex::new(wanted.into_iter()), AtomicBool::new(false));
        let (tell, told) = channel::<Told>();
        let (mut stats, mut read, mut first_error) = (Stats::default(), 0u64, Ok(()));
        thread::scope(|scope| {
            let fetch = |_| {
                let (queue, stop, tell) = (&queue, &stop, tell.clone());
                scope.spawn(move || {
                    // A guard of its own: the queue is free while a package is fetched.
                    let next = || queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    while let Some(wanted) = next().filter(|_| !stop.load(Ordering::Relaxed)) {
                        let mut tell_bytes = |n| drop(tell.send(Told::Bytes(n)));
                        let got = self.get(&wanted, into, &mut tell_bytes);
                        let failed = got.is_err();
                        let _ = tell.send(Told::Done(got.with_context(|| format!("getting `{}`", wanted.place))));
                        if failed {
                            return;
                        }
                    }
                })
            };
            let threads: Vec<_> = (0..CONNECTIONS).map(fetch).collect();
            drop(tell);
            for event in told {
                match event {
                    Told::Bytes(n) => read = read.wrapping_add(n),
                    Told::Done(Ok(one)) => {
                        stats.hits += one.hits;
                        stats.misses += one.misses;
                        stats.saved += one.saved;
                        stats.fetched += one.fetched;
                    }
                    Told::Done(Err(e)) => {
                        stop.store(true, Ordering::Relaxed);
                        if first_error.is_ok() {
                            first_error = Err(e);
                        }
                    }
                }
                progress(Progress { stage: Stage::Fetching { total }, read, ..Progress::default() });
            }
            stream::join(threads);
        });
        // A count that is lost is no reason to fail.
        let _ = self.cache.count(stats);
        first_error.map(|()| stats)
    }

    fn get(&self, wanted: &Wanted, into: &Path, told: &mut dyn FnMut(u64)) -> Result<Stats> {
        let to = into.join(&wanted.name);
        let here = || {
            self.cache.get_verified(&wanted.digest).filter(|file| file.metadata().is_ok_and(|m| m.len() == wanted.size))
        };
        let hit = Stats { hits: 1, saved: wanted.size, ..Stats::default() };
        if here().is_some() {
            told(wanted.size);
            return self.cache.link(&wanted.digest, &to).map(|()| hit);
        }
        let _held = self.cache.lock(&wanted.digest)?;
        if here().is_some() {
            told(wanted.size);
            return self.cache.link(&wanted.digest, &to).map(|()| hit);
        }
        self.fetch_one(&wanted.place, &wanted.digest, wanted.size, told)?;
        let digest = wanted.digest.hex();
        self.cache.note(&wanted.place, &Seen { digest, etag: None, modified: None })?;
        self.cache.link(&wanted.digest, &to)?;
        Ok(Stats { misses: 1, fetched: wanted.size, ..Stats::default() })
    }

    fn fetch_one(&self, place: &str, digest: &Digest, size: u64, told: &mut dyn FnMut(u64)) -> Result<File> {
        let mut tries = 0;
        loop {
            tries += 1;
            let mut got = 0;
            let outcome = self.receive(place, digest, size, &mut |n| {
                got += n;
                told(n);
            });
            match outcome {
                // What is wrong stays wrong, what is not there does not come; a broken connection is begun again.
                Err(e) if tries < TRIES && e.what() == Kind::Other && e.errno() != Some(rustix::io::Errno::NOSPC) => {
                    told(0u64.wrapping_sub(got));
                }
                outcome => return outcome,
            }
        }
    }

    fn receive(&self, place: &str, digest: &Digest, size: u64, told: &mut dyn FnMut(u64)) -> Result<File> {
        let response = self.client.get(place, &Asked { plain: true, ..Asked::default() }, None)?;
        refused(place, response.status())?;
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let counting = Counting { body, told };
        self.cache.put(counting, Some(digest), Size::Exactly(size)).map(|(_, file)| file)
    }
}

/// What a thread that fetches tells.
enum Told {
    /// Bytes that came, or wrapped around, that came for nothing.
    Bytes(u64),
    Done(Result<Stats>),
}

/// A package to be had.
struct Wanted {
    place: String,
    name: String,
    digest: Digest,
    size: u64,
}

impl Wanted {
    fn of(package: &Package<'_>, lists: &Lists) -> Result<Wanted> {
        let read = || -> Result<Wanted> {
            let mirror = lists.mirrors.get(package.list).ok_or_else(|| error("it is of no archive"))?;
            let size = package.size()?;
            if size > LARGEST_PACKAGE {
                return Err(error(format!("it would have {size} bytes")).kind(Kind::Invalid));
            }
            let place = format!("{mirror}/{}", package.file()?);
            Ok(Wanted { place, name: file_name(package), digest: package.digest()?, size })
        };
        read().with_context(|| format!("the package `{}`", package.name))
    }
}

/// What a package's file is called where it is handed out.
pub fn file_name(package: &Package<'_>) -> String {
    // A colon would be taken for a drive or a remote by some.
    let version = package.version.replace(':', "%3a");
    format!("{}_{version}_{}.deb", package.name, package.architecture)
}

/// Tells how much passes.
struct Counting<'a, R> {
    body: R,
    told: &'a mut dyn FnMut(u64),
}

impl<R: Read> Read for Counting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.body.read(buffer).map_err(|e| std::io::Error::other(explained(e.into()).to_string()))?;
        (self.told)(n as u64);
        Ok(n)
    }
}

/// The index of a component, in the form that is smallest.
fn index_of(release: &Release, component: &str, architecture: &str) -> Result<(String, Listed)> {
    let forms = [".xz", ".gz", ""].map(|ending| format!("{component}/binary-{architecture}/Packages{ending}"));
    // Security archives name their components after their own directory.
    let forms = forms.iter().flat_map(|path| [path.clone(), format!("updates/{path}")]);
    let found = forms.into_iter().find_map(|path| Some((path.clone(), *release.files.get(&path)?)));
    found.ok_or_else(|| {
        error(format!("it has no component `{component}`"))
            .kind(Kind::NotFound)
            .hint(format!("it has {}", release.components.join(", ")))
    })
}

/// What gpgv found (doc/DETAILS of GnuPG): one good signature is enough, a single forged one too much.
fn judge(said: &str) -> Result<(), Error> {
    let status = || said.lines().filter_map(|line| line.strip_prefix("[GNUPG:] "));
    let has = |word: &str| status().any(|line| line.split(' ').next() == Some(word));
    if has("BADSIG") {
        return Err(error("the signature is wrong: the text was changed").kind(Kind::Invalid));
    }
    if has("GOODSIG") {
        return Ok(());
    }
    let old =
        [("EXPKEYSIG", "its key has expired"), ("REVKEYSIG", "its key was revoked"), ("EXPSIG", "it has expired")];
    if let Some((_, why)) = old.iter().find(|(word, _)| has(word)) {
        return Err(error(format!("the signature counts no more: {why}")).kind(Kind::NotFound));
    }
    if has("NO_PUBKEY") {
        return Err(error("it is signed by a key that is not known").kind(Kind::NotFound));
    }
    Err(error("it is not signed").kind(Kind::Invalid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_good_signature_is_enough_and_a_forged_one_too_much() {
        let say = |lines: &[&str]| lines.iter().map(|line| format!("[GNUPG:] {line}\n")).collect::<String>();
        judge(&say(&["NEWSIG", "ERRSIG 1 1", "NO_PUBKEY 1", "NEWSIG", "GOODSIG 2 Debian"])).unwrap();
        for bad in [
            &["GOODSIG 1 a", "BADSIG 2 b"][..],
            &["EXPKEYSIG 1 a"],
            &["REVKEYSIG 1 a"],
            &["ERRSIG 1", "NO_PUBKEY 1"],
            &["NODATA 1"],
            &[],
        ] {
            assert!(judge(&say(bad)).is_err(), "{bad:?}");
        }
        // What is printed about a text is no status.
        assert!(judge("gpgv: [GNUPG:] GOODSIG 1 a\n").is_err());
    }

    #[test]
    fn indexes_are_looked_for_where_archives_have_them() {
        let listed = Listed { digest: Digest::of(b""), size: 1 };
        let release = |paths: &[&str]| Release {
            files: paths.iter().map(|path| ((*path).to_owned(), listed)).collect(),
            ..Release::default()
        };
        let path = |paths: &[&str]| index_of(&release(paths), "main", "amd64").map(|(path, _)| path);
        let plain = ["main/binary-amd64/Packages", "main/binary-amd64/Packages.gz", "main/binary-amd64/Packages.xz"];
        assert_eq!(path(&plain).unwrap(), plain[2]);
        assert_eq!(path(&plain[..2]).unwrap(), plain[1]);
        assert_eq!(path(&["updates/main/binary-amd64/Packages.xz"]).unwrap(), "updates/main/binary-amd64/Packages.xz");
        assert!(path(&["contrib/binary-amd64/Packages"]).is_err());
    }
}

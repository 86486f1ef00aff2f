//! A caching proxy for package managers: HTTP/1.1 (RFC 9112), files that never change from here, all else asked for.
//!
//! It speaks for containers and with the host's network, so it goes to the archives of distributions and nowhere else:
//! it is no way around a container's walls. What comes is kept by its digest; that a package is what it should be is
//! verified by whoever installs it, as without a proxy.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use lazaret_base::{Context, Error, Kind, Result, error};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::Digest;
use crate::build::DISTRIBUTIONS;
use crate::fetch::{Asked, Client, Network, Validators, explained};
use crate::packages::{Held, Incoming, PackageCache, Seen, Stats};

/// Where a proxy goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archives {
    /// Those beyond the distributions' own: `mirror.example`, `mirror.example:8080/debian`. Where a directory is named,
    /// nothing else of that host is one.
    pub more: Vec<String>,
}

/// Domains whose hosts are archives. Their names are in the hands of the distributions.
const DOMAINS: &[&str] = &["debian.org", "ubuntu.com"];

impl Archives {
    /// Whether a host is one of an archive.
    pub fn have(&self, host: &str) -> bool {
        distributions(host) || self.more.iter().any(|more| parts(more).0 == host)
    }

    /// Whether a file of a host is one of an archive. It says nothing of `..`, which is none of a place's.
    fn hold(&self, place: &Place) -> bool {
        let below = |directory: &str| {
            let rest = place.path.strip_prefix(directory);
            directory.is_empty() || rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let named = |more: &String| {
            let (host, directory) = parts(more);
            host == place.host && below(directory)
        };
        distributions(&place.host) || self.more.iter().any(named)
    }

    /// Those that are always there.
    pub fn usual() -> Vec<&'static str> {
        let mirrors = DISTRIBUTIONS.iter().flat_map(|one| std::iter::once(one.mirror).chain(one.security));
        let mut hosts: Vec<_> = mirrors.filter_map(|mirror| mirror.split('/').nth(2)).collect();
        hosts.push("security.debian.org");
        hosts.push("security.ubuntu.com");
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }
}

fn distributions(host: &str) -> bool {
    DOMAINS.iter().any(|domain| host.strip_suffix(domain).is_some_and(|front| front.ends_with('.')))
}

/// The host and the directory of an archive.
fn parts(more: &str) -> (&str, &str) {
    let (host, directory) = more.split_once('/').unwrap_or((more, ""));
    (host, directory.trim_end_matches('/'))
}

/// What serves connections, any number of them at once.
pub struct Proxy {
    cache: PackageCache,
    client: Client,
    archives: Archives,
    limit: u64,
    /// Bytes that came since room was made last.
    grown: AtomicU64,
    /// Bytes that are on the disk and have no name yet.
    coming: AtomicU64,
}

/// Who asks: what a container was given, however many connections it has.
#[derive(Debug, Default)]
pub struct Asker {
    /// Nothing is answered any more.
    over: AtomicBool,
    /// By the digests of addresses: when a package was given.
    given: Mutex<HashMap<Digest, Instant>>,
}

impl Asker {
    /// Answers nothing more than what has begun.
    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    fn note(&self, place: &Place) {
        // Poisoned by a thread that has failed: what is in it holds all the same.
        let mut given = self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if given.len() >= MOST_GIVEN {
            given.retain(|_, at| at.elapsed() < SOON);
        }
        if given.len() < MOST_GIVEN {
            given.insert(Digest::of(place.address.as_bytes()), Instant::now());
        }
    }

    /// Whether it has been given that a moment ago: then it asks because it was no good. apt installs a package whose
    /// digest is right, and asks again for one whose digest is not.
    fn distrusts(&self, place: &Place) -> bool {
        let given = self.given.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        given.get(&Digest::of(place.address.as_bytes())).is_some_and(|at| at.elapsed() < SOON)
    }
}

/// A client that says nothing for so long is let go.
const SILENCE: Duration = Duration::from_secs(60);
/// A request is no longer, its headers included.
const LONGEST_REQUEST: u64 = 32 << 10;
/// No file is larger.
const LARGEST: u64 = 16 << 30;
/// How much may come before it is looked whether there is too much; of a small cache, a part.
const LOOK_AFTER: (u64, u64) = (64 << 20, 16);
/// What is on its way takes at most this part of what may be kept: what is more is handed on and not kept.
const COMING: u64 = 4;
/// What the notes of a file take on a disk.
const NOTES: u64 = 8 << 10;
/// How often a request may be sent to another place of an archive.
const REDIRECTS: usize = 5;
/// Whoever asks for the same package again within this time distrusts what it was given.
const SOON: Duration = Duration::from_secs(300);
/// A container is remembered to have been given so many packages.
const MOST_GIVEN: usize = 8192;
/// What never changes under a name that bears its version.
const IMMUTABLE: &[&str] = &[
    ".deb",
    ".udeb",
    ".ddeb",
    ".rpm",
    ".apk",
    ".pkg.tar.zst",
    ".pkg.tar.xz",
    ".orig.tar.gz",
    ".orig.tar.xz",
    ".orig.tar.bz2",
    ".debian.tar.xz",
    ".dsc",
];

/// Gives up all that serving does not need: privileges, and files but those of the cache. The process must have one
/// thread.
pub fn confine_proxy(cache: &Path) -> Result<()> {
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .context("dropping the capabilities")?;
    set_no_new_privs(true).context("setting no_new_privs")?;
    let abi = ABI::V5;
    let restrict = || -> std::result::Result<(), Box<dyn std::error::Error>> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::BindTcp)?
            .scope(Scope::from_all(ABI::V6))?
            .create()?;
        // Names of hosts and the authorities of https.
        for path in [
            "/etc",
            "/usr",
            "/lib",
            "/lib64",
            "/run/systemd/resolve",
            "/run/NetworkManager",
            "/run/resolvconf",
            "/dev/urandom",
        ] {
            if Path::new(path).exists() {
                ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, AccessFs::from_read(abi)))?;
            }
        }
        let own = PathBeneath::new(PathFd::new(cache)?, AccessFs::from_all(abi));
        ruleset.add_rule(own)?.restrict_self()?;
        Ok(())
    };
    restrict().map_err(|e| error(e.to_string()).context("shutting the proxy in"))
}

impl Proxy {
    /// One that keeps at most `limit` bytes, and what came since it looked.
    pub fn new(network: &Network, cache: PackageCache, archives: Archives, limit: u64) -> Result<Proxy> {
        // Where an archive sends us is looked at: a redirection must not lead where a container may not go.
        let client = Client::straight(network)?;
        Ok(Proxy { cache, client, archives, limit, grown: AtomicU64::new(0), coming: AtomicU64::new(0) })
    }

    /// Serves a connection to its end.
    pub fn serve(&self, stream: &TcpStream, asker: &Asker) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            if asker.over.load(Ordering::Relaxed) {
                break;
            }
            let mut reply = Reply { out: stream, request: &request, begun: false, stays: request.stays };
            if let Err(e) = self.answer(&request, &mut reply, asker) {
                if reply.begun {
                    // The length that was announced was not reached: closing tells.
                    return Err(e);
                }
                reply.refuse(&e)?;
            }
            if !reply.stays {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, request: &Request, reply: &mut Reply<'_>, asker: &Asker) -> Result<()> {
        let place = Place::parse(&request.target)?;
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Err(error(format!("`{}` is not answered here", request.method.escape_debug())).kind(Kind::Invalid));
        }
        if !self.archives.hold(&place) {
            return Err(error(format!("`{}` is no archive of packages", place.host)).kind(Kind::Invalid));
        }
        match place.immutable() {
            true => self.immutable(&place, reply, asker),
            false => self.changing(&place, reply),
        }
    }

    /// A file that is the same for ever.
    fn immutable(&self, place: &Place, reply: &mut Reply<'_>, asker: &Asker) -> Result<()> {
        let anew = asker.distrusts(place);
        if let Some(file) = self.find(place).filter(|_| !anew) {
            asker.note(place);
            return self.hit(reply, file, None);
        }
        // One connection gets it, others wait for it.
        let held = self.cache.lock(&Digest::of(place.address.as_bytes()))?;
        if let Some(file) = self.find(place).filter(|_| !anew) {
            drop(held);
            asker.note(place);
            return self.hit(reply, file, None);
        }
        let candidates = self.cache.named(&place.address);
        let response = match self.ask(place, Validators::default()) {
            Ok(response) => response,
            // Nobody answers: what was there will do, or the only file of that name.
            Err(e) => {
                let only = || self.cache.get(&candidates.first().filter(|_| candidates.len() == 1)?.0);
                let file = self.find(place).or_else(only).ok_or(e)?;
                return self.hit(reply, file, None);
            }
        };
        if response.status() != StatusCode::OK {
            return reply.pass_on(&response);
        }
        let size = length(&response);
        let same = candidates.iter().find(|(_, bytes)| Some(*bytes) == size);
        if let Some((digest, _)) = same.filter(|_| place.digest().is_none() && !anew)
            && let Some(file) = self.cache.get_verified(digest)
        {
            // Another mirror of the same archive.
            self.cache.note(&place.address, &Seen { digest: digest.hex(), etag: None, modified: None })?;
            drop(held);
            asker.note(place);
            return self.hit(reply, file, None);
        }
        if anew && let Some(digest) = self.cache.seen(&place.address).and_then(|seen| seen.digest()) {
            // Nobody else is to be given it. Should it be the same again, it comes back.
            self.cache.forget(&digest)?;
        }
        asker.note(place);
        let seen = |digest: &Digest| Seen { digest: digest.hex(), etag: None, modified: None };
        self.miss(place, Fetched { response, wanted: place.digest(), held: Some(held) }, reply, seen)
    }

    fn find(&self, place: &Place) -> Option<std::fs::File> {
        match place.digest() {
            Some(digest) => self.cache.get_verified(&digest),
            None => self.cache.get(&self.cache.seen(&place.address)?.digest()?),
        }
    }

    /// A file that the server may change: it is asked each time, and what is here serves when it does not answer.
    fn changing(&self, place: &Place, reply: &mut Reply<'_>) -> Result<()> {
        let here = self.cache.seen(&place.address).and_then(|seen| {
            let file = self.cache.get(&seen.digest()?)?;
            Some((seen, file))
        });
        let unless =
            here.as_ref().map(|(seen, _)| Validators { etag: seen.etag.clone(), modified: seen.modified.clone() });
        let response = match (self.ask(place, unless.unwrap_or_default()), here) {
            (Ok(response), Some((seen, file))) if response.status() == StatusCode::NOT_MODIFIED => {
                return self.hit(reply, file, Some(&seen));
            }
            (Ok(response), _) => response,
            (Err(_), Some((seen, file))) => return self.hit(reply, file, Some(&seen)),
            (Err(e), None) => return Err(e),
        };
        if response.status() != StatusCode::OK {
            return reply.pass_on(&response);
        }
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (etag, modified) = (header("etag"), header("last-modified"));
        let seen = |digest: &Digest| Seen { digest: digest.hex(), etag, modified };
        self.miss(place, Fetched { response, wanted: None, held: None }, reply, seen)
    }

    /// Asks an archive, and where it sends us if that is one, too. Any other redirection comes back: whoever asked
    /// goes there by its own way, or may not.
    fn ask(&self, place: &Place, unless: Validators) -> Result<Response<Body>> {
        let asked = Asked { unless, plain: true, ..Asked::default() };
        let mut at = place.clone();
        for _ in 0..REDIRECTS {
            let response = self.client.get(&at.address, &asked, None)?;
            // A server in trouble is as good as none.
            if response.status().is_server_error() {
                return Err(error(format!("the server answers {}", response.status().as_u16())));
            }
            let to = elsewhere(&response).and_then(|to| at.join(to).ok());
            match to.filter(|to| self.archives.hold(to)) {
                Some(to) => at = to,
                None => return Ok(response),
            }
        }
        Err(error("the server sends us from place to place"))
    }

    fn hit(&self, reply: &mut Reply<'_>, file: std::fs::File, seen: Option<&Seen>) -> Result<()> {
        let size = file.metadata()?.len();
        let sent = reply.file(file, size, seen)?;
        // A count that is lost is no reason to fail.
        let _ = self.cache.count(Stats { hits: 1, saved: sent, ..Stats::default() });
        Ok(())
    }

    /// Hands on what comes and keeps it. A client that goes away does not stop what has begun, and a slow one gets the
    /// rest from here when all of it is here: others wait for the archive only.
    fn miss(
        &self,
        place: &Place,
        fetched: Fetched,
        reply: &mut Reply<'_>,
        seen: impl FnOnce(&Digest) -> Seen,
    ) -> Result<()> {
        let Fetched { response, wanted, mut held } = fetched;
        let size = length(&response);
        if size.is_some_and(|size| size > LARGEST) {
            return Err(error(format!("it is larger than {LARGEST} bytes")));
        }
        let modified = response.headers().get("last-modified").and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Addresses with a question are without number.
        let mut aside = match place.path.contains('?') {
            false => Some(Aside { incoming: self.cache.incoming()?, proxy: self, sent: 0 }),
            true => None,
        };
        reply.head(200, size, modified.as_deref(), "MISS")?;
        if reply.request.head_only() {
            return Ok(());
        }
        let mut body = response.into_body().into_with_config().limit(LARGEST).reader();
        let (mut buffer, mut came, mut listens) = (vec![0; 128 << 10], 0u64, true);
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(explained(e.into())),
            };
            came += n as u64;
            // A full disk, or too much at once, is the cache's trouble, not the client's.
            if aside.as_mut().is_some_and(|aside| aside.take(&buffer[..n]).is_err()) {
                // From here on the client's pace is ours: nobody is to wait for that.
                held = None;
                listens = listens && aside.as_mut().is_some_and(|aside| aside.catch_up(reply.out).is_ok());
                aside = None;
            }
            listens = listens
                && match &mut aside {
                    Some(aside) => aside.hand_on(&buffer[..n], reply.out).is_ok(),
                    None => reply.out.write_all(&buffer[..n]).is_ok(),
                };
            if !listens && aside.is_none() {
                break;
            }
        }
        if size.is_some_and(|size| size != came) {
            return Err(error(format!("{came} bytes came in the place of {}", size.unwrap_or_default())));
        }
        let _ = self.cache.count(Stats { misses: 1, fetched: came, ..Stats::default() });
        if let Some(aside) = aside {
            let sent = aside.sent;
            let file = self.keep(place, aside, wanted, seen)?;
            drop(held);
            listens = listens && reply.rest(file, sent, came).is_ok();
        }
        match listens {
            true => Ok(()),
            false => Err(error("the client has gone")),
        }
    }

    /// Names what came; an error if it is not what it should be. What can't be named is fetched again when it is wanted
    /// again.
    fn keep(
        &self,
        place: &Place,
        aside: Aside<'_>,
        wanted: Option<Digest>,
        seen: impl FnOnce(&Digest) -> Seen,
    ) -> Result<std::fs::File> {
        let size = aside.incoming.size();
        let again = aside.incoming.again()?;
        match aside.incoming.name(wanted.as_ref()) {
            Ok(digest) => {
                // What is not noted is asked for again.
                let _ = self.cache.note(&place.address, &seen(&digest));
            }
            Err(e) if e.what() == Kind::Invalid => return Err(e),
            // No room for its name.
            Err(_) => {}
        }
        let grown = size + NOTES;
        if self.grown.fetch_add(grown, Ordering::Relaxed) + grown > LOOK_AFTER.0.min(self.limit / LOOK_AFTER.1) {
            self.grown.store(0, Ordering::Relaxed);
            let _ = self.cache.evict(self.limit);
        }
        Ok(again)
    }
}

/// What an archive answers.
struct Fetched {
    response: Response<Body>,
    /// What it must be, where that is known.
    wanted: Option<Digest>,
    /// Others who want the same wait for this.
    held: Option<Held>,
}

/// A file on its way into the cache, and to whoever asked for it.
struct Aside<'a> {
    incoming: Incoming<'a>,
    proxy: &'a Proxy,
    /// How many of its bytes the client has.
    sent: u64,
}

impl Aside<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let more = bytes.len() as u64;
        if self.proxy.coming.load(Ordering::Relaxed) + more > self.proxy.limit / COMING {
            return Err(error("too much comes at once"));
        }
        self.incoming.write(bytes)?;
        self.proxy.coming.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the client what it takes without being waited for. `newest` has just been taken.
    fn hand_on(&mut self, newest: &[u8], to: &TcpStream) -> Result<()> {
        let before = self.incoming.size() - newest.len() as u64;
        let mut buffer = Vec::new();
        loop {
            let piece = match self.sent >= before {
                true => &newest[(self.sent - before) as usize..],
                false => {
                    buffer.resize(128 << 10, 0);
                    let n = self.incoming.read_at(&mut buffer, self.sent)?;
                    &buffer[..n]
                }
            };
            if piece.is_empty() {
                return Ok(());
            }
            match send(to, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n as u64,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Gives the client all that is here, at its pace.
    fn catch_up(&mut self, mut to: &TcpStream) -> Result<()> {
        let mut buffer = vec![0; 128 << 10];
        while self.sent < self.incoming.size() {
            let n = self.incoming.read_at(&mut buffer, self.sent)?;
            to.write_all(&buffer[..n])?;
            self.sent += n as u64;
        }
        Ok(())
    }
}

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.proxy.coming.fetch_sub(self.incoming.size(), Ordering::Relaxed);
    }
}

/// Where a server sends us.
fn elsewhere(response: &Response<Body>) -> Option<&str> {
    let moved = [301, 302, 303, 307, 308].contains(&response.status().as_u16());
    response.headers().get("location").filter(|_| moved)?.to_str().ok()
}

fn length(response: &Response<Body>) -> Option<u64> {
    response.headers().get("content-length")?.to_str().ok()?.parse().ok()
}

/// What is asked for: `http://HOST/PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    address: String,
    host: String,
    path: String,
}

impl Place {
    fn parse(target: &str) -> Result<Place> {
        let bad = || error(format!("`{}` is no address of a package", target.escape_debug())).kind(Kind::Invalid);
        let rest = target.strip_prefix("http://").ok_or_else(bad)?;
        let (host, path) = rest.split_once('/').ok_or_else(bad)?;
        let host = host.strip_suffix(":80").unwrap_or(host).to_ascii_lowercase();
        let plain_host = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
        let plain_path = |c: char| c.is_ascii_graphic() && !"\\#\"'<>".contains(c);
        // Encoded, they are a server's to read: no name of a package has them so.
        let encoded = ["%2e", "%2f", "%5c", "%00"].iter().any(|code| path.to_ascii_lowercase().contains(code));
        let up = encoded || path.split('/').any(|part| part == ".." || part == ".");
        if host.is_empty() || !host.chars().all(plain_host) || !path.chars().all(plain_path) || up {
            return Err(bad());
        }
        Ok(Place { address: format!("http://{host}/{path}"), host, path: path.to_owned() })
    }

    /// Where a redirection leads.
    fn join(&self, to: &str) -> Result<Place> {
        match to.starts_with('/') && !to.starts_with("//") {
            true => Place::parse(&format!("http://{}{to}", self.host)),
            false => Place::parse(to),
        }
    }

    /// Whether what is there never changes.
    fn immutable(&self) -> bool {
        !self.path.contains('?') && (self.digest().is_some() || IMMUTABLE.iter().any(|end| self.path.ends_with(end)))
    }

    /// What is there, where an index is asked for by its digest.
    fn digest(&self) -> Option<Digest> {
        Digest::from_hex(self.path.rsplit_once("/by-hash/SHA256/")?.1).ok()
    }
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    method: String,
    target: String,
    /// Where the part that is wanted begins (RFC 9110, section 14.2); only that form is in use.
    from: Option<u64>,
    unless_since: Option<String>,
    /// The file of which there is a part already, by its time.
    of: Option<String>,
    /// Whether the connection is used again.
    stays: bool,
}

impl Request {
    /// The next one; `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> Result<Option<Request>> {
        let mut reader = reader.take(LONGEST_REQUEST);
        let mut line = String::new();
        let mut next = |line: &mut String| -> Result<bool> {
            line.clear();
            match reader.read_line(line) {
                Ok(0) => Ok(false),
                Ok(_) if line.ends_with('\n') => Ok(true),
                Ok(_) => Err(error("the request is too long or cut off").kind(Kind::Invalid)),
                // Nothing more is asked.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset
                    ) =>
                {
                    Ok(false)
                }
                Err(e) => Err(e).context("reading a request"),
            }
        };
        if !next(&mut line)? {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(error("it is no request").kind(Kind::Invalid));
        };
        let mut request =
            Request { method, target, from: None, unless_since: None, of: None, stays: version == "HTTP/1.1" };
        loop {
            if !next(&mut line)? {
                return Err(error("the request is cut off").kind(Kind::Invalid));
            }
            let Some((name, value)) = line.trim_end().split_once(':') else {
                match line.trim_end().is_empty() {
                    true => return Ok(Some(request)),
                    false => return Err(error("a header is misshaped").kind(Kind::Invalid)),
                }
            };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "range" => request.from = value.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse().ok()),
                "if-modified-since" => request.unless_since = Some(value.to_owned()),
                "if-range" => request.of = Some(value.to_owned()),
                "connection" | "proxy-connection" if value.eq_ignore_ascii_case("close") => request.stays = false,
                // What has a body is none of ours, and what follows it can't be told from it.
                "content-length" if value != "0" => request.stays = false,
                "transfer-encoding" => request.stays = false,
                _ => {}
            }
        }
    }

    fn head_only(&self) -> bool {
        self.method == "HEAD"
    }
}

/// What goes back to a client.
struct Reply<'a> {
    out: &'a TcpStream,
    request: &'a Request,
    /// Whether something has gone already.
    begun: bool,
    /// Whether the connection is used again.
    stays: bool,
}

impl Reply<'_> {
    fn head(&mut self, status: u16, length: Option<u64>, modified: Option<&str>, cache: &str) -> Result<()> {
        self.head_with(status, length, modified, &format!("X-Cache: {cache}\r\n"))
    }

    fn head_with(&mut self, status: u16, length: Option<u64>, modified: Option<&str>, more: &str) -> Result<()> {
        let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("");
        let mut text = format!("HTTP/1.1 {status} {reason}\r\nServer: lazaret\r\n{more}");
        match length {
            Some(length) => text.push_str(&format!("Content-Length: {length}\r\n")),
            // Its end is the connection's.
            None => self.stays = false,
        }
        if let Some(modified) = modified.filter(|text| text.chars().all(|c| c.is_ascii_graphic() || c == ' ')) {
            text.push_str(&format!("Last-Modified: {modified}\r\n"));
        }
        text.push_str(if self.stays { "\r\n" } else { "Connection: close\r\n\r\n" });
        self.begun = true;
        Ok(self.out.write_all(text.as_bytes())?)
    }

    /// A file that is here, or what of it is wanted; the bytes that went.
    fn file(&mut self, file: std::fs::File, size: u64, seen: Option<&Seen>) -> Result<u64> {
        let modified = seen.and_then(|seen| seen.modified.as_deref());
        if modified.is_some() && modified == self.request.unless_since.as_deref() {
            return self.head(304, Some(0), modified, "HIT").map(|()| 0);
        }
        // The rest of one file is none of another's. What never changes is always the same file.
        let same = seen.is_none() || self.request.of.as_deref().is_none_or(|of| Some(of) == modified);
        let from = self.request.from.filter(|from| same && *from < size).unwrap_or(0);
        if from > 0 {
            let range = format!("X-Cache: HIT\r\nContent-Range: bytes {from}-{}/{size}\r\n", size - 1);
            self.head_with(206, Some(size - from), modified, &range)?;
        } else {
            self.head(200, Some(size), modified, "HIT")?;
        }
        if self.request.head_only() {
            return Ok(0);
        }
        self.rest(file, from, size).map(|()| size - from)
    }

    /// The bytes of a file from one place to another.
    fn rest(&mut self, mut file: std::fs::File, from: u64, to: u64) -> Result<()> {
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        // In the kernel, from file to socket.
        let sent = io::copy(&mut file.take(to - from), &mut self.out)?;
        match sent == to - from {
            true => Ok(()),
            false => Err(error("a package was cut off on the disk")),
        }
    }

    /// What the server says that gives nothing, or sends elsewhere.
    fn pass_on(&mut self, response: &Response<Body>) -> Result<()> {
        let status = response.status().as_u16();
        let plain = |to: &&str| to.chars().all(|c| c.is_ascii_graphic());
        if let Some(to) = elsewhere(response).filter(plain) {
            return self.head_with(status, Some(0), None, &format!("X-Cache: MISS\r\nLocation: {to}\r\n"));
        }
        let status = if (400..500).contains(&status) { status } else { 502 };
        self.head(status, Some(0), None, "MISS")
    }

    fn refuse(&mut self, e: &Error) -> Result<()> {
        let status = if e.what() == Kind::Invalid { 403 } else { 502 };
        let text = format!("{e}\n");
        self.stays = self.stays && status != 403;
        self.head(status, Some(text.len() as u64), None, "NONE")?;
        if !self.request.head_only() {
            self.out.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::*;

    #[test]
    fn it_goes_to_archives_and_nowhere_else() {
        let archives = Archives { more: vec!["mirror.example:8080".into()] };
        for host in ["deb.debian.org", "ftp.de.debian.org", "de.archive.ubuntu.com", "mirror.example:8080"] {
            assert!(archives.have(host), "{host}");
        }
        for host in
            ["debian.org.evil.example", "evildebian.org", "debian.org", "mirror.example", "localhost", "10.0.0.1", ""]
        {
            assert!(!archives.have(host), "{host}");
        }
        assert!(Archives::usual().iter().all(|host| archives.have(host)));
        for bad in ["/x.deb", "http://h", "https://h/x", "http://h/../x", "http://u@h/x", "http://h/a b", "http:///x"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Place::parse("http://Deb.Debian.org:80/x").unwrap().address, "http://deb.debian.org/x");
    }

    #[test]
    fn what_bears_a_version_or_a_digest_never_changes() {
        let immutable = |path: &str| Place::parse(&format!("http://h/{path}")).unwrap().immutable();
        let hex = "a".repeat(64);
        for path in ["pool/a_1_all.deb", "x/a-1.apk", &format!("dists/x/by-hash/SHA256/{hex}")] {
            assert!(immutable(path), "{path}");
        }
        for path in ["dists/x/InRelease", "dists/x/main/Packages.xz", "a.deb?x", "dists/x/by-hash/SHA256/zz", "deb"] {
            assert!(!immutable(path), "{path}");
        }
    }

    /// An archive that counts what it is asked for.
    struct Upstream {
        host: String,
        files: Arc<Mutex<HashMap<String, Vec<u8>>>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl Upstream {
        fn new(files: &[(&str, &[u8])]) -> Upstream {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let host = listener.local_addr().unwrap().to_string();
            let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect();
            let upstream = Upstream { host, files: Arc::new(Mutex::new(files)), asked: Arc::default() };
            let (files, asked) = (upstream.files.clone(), upstream.asked.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let mut reader = BufReader::new(&stream);
                    let Ok(Some(request)) = Request::read(&mut reader) else { continue };
                    asked.lock().unwrap().push(request.target.clone());
                    let body = files.lock().unwrap().get(&request.target).cloned();
                    let head = match &body {
                        Some(to) if request.target.contains("moved") => {
                            let to = String::from_utf8_lossy(to);
                            format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n")
                        }
                        Some(_) if request.unless_since.is_some() => "HTTP/1.1 304 Not Modified\r\n".to_owned(),
                        // One byte more than there is: it breaks off.
                        Some(body) if request.target.contains("broken") => {
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len() + 1)
                        }
                        Some(body) => format!(
                            "HTTP/1.1 200 OK\r\nLast-Modified: Sat, 11 Jul 2026 10:16:37 GMT\r\nContent-Length: {}\r\n",
                            body.len()
                        ),
                        None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n".to_owned(),
                    };
                    let body = body.filter(|_| !head.contains(" 30")).unwrap_or_default();
                    let mut out = &stream;
                    let _ = out.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
                    let _ = out.write_all(&body);
                }
            });
            upstream
        }

        fn asked(&self) -> usize {
            self.asked.lock().unwrap().len()
        }
    }

    struct World {
        dir: PathBuf,
        cache: PackageCache,
        proxy: Arc<Proxy>,
        address: String,
        asker: Arc<Mutex<Arc<Asker>>>,
    }

    const LIMIT: u64 = 1 << 20;

    impl World {
        fn new(hosts: &[&str]) -> World {
            let dir = std::env::temp_dir().join(format!("lazaret-proxy-{:?}", thread::current().id()));
            let _ = std::fs::remove_dir_all(&dir);
            let cache = PackageCache::open(&dir).unwrap();
            let archives = Archives { more: hosts.iter().map(|host| (*host).to_owned()).collect() };
            let proxy = Arc::new(Proxy::new(&Network::default(), cache.clone(), archives, LIMIT).unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (served, asker) = (proxy.clone(), Arc::<Mutex<Arc<Asker>>>::default());
            let askers = asker.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let proxy = served.clone();
                    let asker = askers.lock().unwrap().clone();
                    thread::spawn(move || drop(proxy.serve(&stream, &asker)));
                }
            });
            World { dir, cache, proxy, address, asker }
        }

        /// Sends all of `text` and hears until the other side is done: head and body.
        fn ask(&self, text: &str) -> (String, Vec<u8>) {
            let mut stream = TcpStream::connect(&self.address).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
            (String::from_utf8_lossy(&answer[..end]).into_owned(), answer[end..].to_vec())
        }

        /// From now on somebody else asks.
        fn another_asks(&self) {
            *self.asker.lock().unwrap() = Arc::default();
        }

        fn get(&self, host: &str, path: &str, more: &str) -> (String, Vec<u8>) {
            self.another_asks();
            self.get_again(host, path, more)
        }

        fn get_again(&self, host: &str, path: &str, more: &str) -> (String, Vec<u8>) {
            self.ask(&format!("GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"))
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn a_package_is_fetched_once_for_all_mirrors_and_then_without_any() {
        let files: &[(&str, &[u8])] = &[("/pool/a_1_all.deb", b"package"), ("/other/a_1_all.deb", b"package")];
        let (one, two) = (Upstream::new(files), Upstream::new(files));
        let world = World::new(&[&one.host, &two.host, "127.0.0.1:1"]);
        let (head, body) = world.get(&one.host, "/pool/a_1_all.deb", "");
        assert!(head.contains("200 OK") && head.contains("X-Cache: MISS") && body == b"package", "{head}");
        let (head, body) = world.get(&one.host, "/pool/a_1_all.deb", "");
        assert!(head.contains("X-Cache: HIT") && body == b"package", "{head}");
        assert_eq!(one.asked(), 1);
        // Another mirror is asked how long its file is, and not for all of it.
        let (head, body) = world.get(&two.host, "/other/a_1_all.deb", "");
        assert!(head.contains("X-Cache: HIT") && body == b"package", "{head}");
        // Nobody is there.
        let (head, body) = world.get("127.0.0.1:1", "/debian/a_1_all.deb", "");
        assert!(head.contains("X-Cache: HIT") && body == b"package", "{head}");
        let stats = world.cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.saved, stats.fetched), (3, 1, 21, 7));
        assert_eq!(world.cache.kept().unwrap().files, 1);
        // The rest of a package whose first part is there.
        let (head, body) = world.get(&one.host, "/pool/a_1_all.deb", "Range: bytes=4-\r\n");
        assert!(head.contains("206") && head.contains("Content-Range: bytes 4-6/7") && body == b"age", "{head}");
    }

    #[test]
    fn a_file_of_the_same_name_and_another_length_is_another_file() {
        let one = Upstream::new(&[("/a_1_all.deb", b"package")]);
        let two = Upstream::new(&[("/a_1_all.deb", b"another package")]);
        let world = World::new(&[&one.host, &two.host]);
        world.get(&one.host, "/a_1_all.deb", "");
        assert_eq!(world.get(&two.host, "/a_1_all.deb", "").1, b"another package");
        assert_eq!(world.get(&one.host, "/a_1_all.deb", "").1, b"package");
        assert_eq!(world.cache.kept().unwrap().files, 2);
    }

    #[test]
    fn an_index_is_asked_for_each_time_and_serves_offline() {
        let upstream = Upstream::new(&[("/dists/x/InRelease", b"release")]);
        let world = World::new(&[&upstream.host]);
        for (cache, asked) in [("MISS", 1), ("HIT", 2), ("HIT", 3)] {
            let (head, body) = world.get(&upstream.host, "/dists/x/InRelease", "");
            assert!(head.contains(&format!("X-Cache: {cache}")) && body == b"release", "{head}");
            assert_eq!(upstream.asked(), asked);
        }
        let since = "If-Modified-Since: Sat, 11 Jul 2026 10:16:37 GMT\r\n";
        assert!(world.get(&upstream.host, "/dists/x/InRelease", since).0.contains("304"));
        assert!(world.get(&upstream.host, "/dists/x/none", "").0.contains("404"));
    }

    #[test]
    fn what_breaks_off_or_is_not_its_digest_is_not_kept() {
        let hex = Digest::of(b"right").hex();
        let by_hash = format!("/dists/x/by-hash/SHA256/{hex}");
        let upstream = Upstream::new(&[("/broken_1_all.deb", b"pack"), (&by_hash, b"wrong")]);
        let world = World::new(&[&upstream.host]);
        world.get(&upstream.host, "/broken_1_all.deb", "");
        world.get(&upstream.host, &by_hash, "");
        assert_eq!(world.cache.kept().unwrap().files, 0);
        upstream.files.lock().unwrap().insert(by_hash.clone(), b"right".to_vec());
        assert_eq!(world.get(&upstream.host, &by_hash, "").1, b"right");
        assert!(world.get(&upstream.host, &by_hash, "").0.contains("HIT"));
    }

    #[test]
    fn a_redirection_leads_to_archives_and_nowhere_else() {
        let target = Upstream::new(&[("/pool/a_1_all.deb", b"package")]);
        let to = format!("http://{}/pool/a_1_all.deb", target.host);
        let gone = "http://10.0.0.1/secret";
        let files: &[(&str, &[u8])] =
            &[("/moved/a_1_all.deb", to.as_bytes()), ("/moved/x", gone.as_bytes()), ("/moved/loop", b"/moved/loop")];
        let upstream = Upstream::new(files);
        let world = World::new(&[&upstream.host, &target.host]);
        assert_eq!(world.get(&upstream.host, "/moved/a_1_all.deb", "").1, b"package");
        let (head, _) = world.get(&upstream.host, "/moved/x", "");
        assert!(head.contains("302") && head.contains(&format!("Location: {gone}\r\n")), "{head}");
        assert!(world.get(&upstream.host, "/moved/loop", "").0.contains("502"));
        // The same to a host that is no archive: whoever asked may go there himself.
        let world = World::new(&[&upstream.host]);
        assert!(world.get(&upstream.host, "/moved/a_1_all.deb", "").0.contains("302"));
        assert_eq!(target.asked(), 1);
    }

    #[test]
    fn of_a_host_that_is_more_than_an_archive_only_the_archive_is_served() {
        let upstream = Upstream::new(&[("/debian/x", b"x"), ("/debian2/x", b"x"), ("/admin", b"x")]);
        let world = World::new(&[&format!("{}/debian/", upstream.host)]);
        assert!(world.get(&upstream.host, "/debian/x", "").0.contains("200"));
        for path in
            ["/admin", "/debian2/x", "/debian", "/debian/../admin", "/debian/%2e%2E/admin", "/debian/..%2fadmin"]
        {
            assert!(world.get(&upstream.host, path, "").0.contains("403"), "{path}");
        }
        assert_eq!(upstream.asked(), 1);
    }

    #[test]
    fn whoever_asks_again_for_what_it_was_given_gets_it_anew() {
        let upstream = Upstream::new(&[("/a_1_all.deb", b"spoilt!")]);
        let world = World::new(&[&upstream.host]);
        assert_eq!(world.get(&upstream.host, "/a_1_all.deb", "").1, b"spoilt!");
        upstream.files.lock().unwrap().insert("/a_1_all.deb".into(), b"package".to_vec());
        assert_eq!(world.get_again(&upstream.host, "/a_1_all.deb", "").1, b"package");
        assert!(world.get(&upstream.host, "/a_1_all.deb", "").0.contains("HIT"));
        assert_eq!(world.get(&upstream.host, "/a_1_all.deb", "").1, b"package");
        assert_eq!((upstream.asked(), world.cache.kept().unwrap().files), (2, 1));
    }

    #[test]
    fn a_client_that_does_not_read_holds_nobody_up() {
        // More than the buffers of the sockets take, and less than the cache keeps on its way.
        let file = vec![7; 64 << 20];
        let upstream = Upstream::new(&[("/a_1_all.deb", &file)]);
        let dir = World::new(&[]);
        let archives = Archives { more: vec![upstream.host.clone()] };
        let proxy = Arc::new(Proxy::new(&Network::default(), dir.cache.clone(), archives, 1 << 30).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = proxy.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let proxy = served.clone();
                thread::spawn(move || drop(proxy.serve(&stream, &Asker::default())));
            }
        });
        let request = format!("GET http://{}/a_1_all.deb HTTP/1.1\r\nConnection: close\r\n\r\n", upstream.host);
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(request.as_bytes()).unwrap();
        // It has begun.
        let mut head = [0; 12];
        slow.read_exact(&mut head).unwrap();
        let mut quick = TcpStream::connect(address).unwrap();
        quick.write_all(request.as_bytes()).unwrap();
        let mut came = Vec::new();
        quick.read_to_end(&mut came).unwrap();
        assert!(came.ends_with(&file) && came.windows(12).take(500).any(|window| window == b"X-Cache: HIT"));
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).unwrap();
        assert!(rest.ends_with(&file));
        assert_eq!(upstream.asked(), 1);
    }

    #[test]
    fn no_client_fills_the_disk() {
        let large = vec![7; (LIMIT / COMING) as usize + 1];
        let upstream = Upstream::new(&[("/large_1_all.deb", &large), ("/small", b"x"), ("/small?1", b"y")]);
        let world = World::new(&[&upstream.host]);
        assert_eq!(world.get(&upstream.host, "/large_1_all.deb", "").1, large, "handed on");
        assert_eq!(world.get(&upstream.host, "/small?1", "").1, b"y");
        assert_eq!(world.cache.kept().unwrap().files, 0, "and not kept");
        assert_eq!(world.proxy.coming.load(Ordering::Relaxed), 0);
        // Ever other files: those that were used last stay.
        for number in 0..40u8 {
            let path = format!("/a{number}_1_all.deb");
            upstream.files.lock().unwrap().insert(path.clone(), vec![number; 100_000]);
            world.get(&upstream.host, &path, "");
            assert!(world.cache.kept().unwrap().bytes <= LIMIT + LIMIT / 8);
        }
        assert!(world.get(&upstream.host, "/a39_1_all.deb", "").0.contains("HIT"));
        assert!(world.get(&upstream.host, "/a0_1_all.deb", "").0.contains("MISS"));
    }

    #[test]
    fn an_index_that_has_changed_is_not_continued() {
        let upstream = Upstream::new(&[("/dists/x/InRelease", b"release")]);
        let world = World::new(&[&upstream.host]);
        world.get(&upstream.host, "/dists/x/InRelease", "");
        let other = "Range: bytes=4-\r\nIf-Range: Sat, 11 Jul 2020 10:16:37 GMT\r\n";
        assert_eq!(world.get(&upstream.host, "/dists/x/InRelease", other).1, b"release");
        let same = "Range: bytes=4-\r\nIf-Range: Sat, 11 Jul 2026 10:16:37 GMT\r\n";
        assert_eq!(world.get(&upstream.host, "/dists/x/InRelease", same).1, b"ase");
    }

    #[test]
    fn whoever_asks_for_something_else_is_refused() {
        let world = World::new(&[]);
        for request in [
            "GET http://127.0.0.1:1/x.deb HTTP/1.1\r\n\r\n",
            "GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\n\r\n",
            "CONNECT deb.debian.org:443 HTTP/1.1\r\n\r\n",
            "POST http://deb.debian.org/x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
            "GET /etc/passwd HTTP/1.1\r\n\r\n",
        ] {
            assert!(world.ask(request).0.starts_with("HTTP/1.1 403"), "{request}");
        }
        for nonsense in ["\r\n\r\n", "GET\r\n\r\n", "GET http://h/x HTTP/1.1\r\nnonsense\r\n\r\n", &"x".repeat(100_000)]
        {
            assert_eq!(world.ask(nonsense).0, "", "{nonsense:.20}");
        }
        assert_eq!(Arc::strong_count(&world.proxy), 2, "every connection has ended");
    }
}

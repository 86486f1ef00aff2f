//! A caching proxy for package managers: HTTP/1.1 (RFC 9112), files that never change from here, all else asked for.
//!
//! It speaks for containers and with the host's network, so it goes to the archives of distributions and nowhere else:
//! it is no way around a container's walls. What comes is kept by its digest; that a package is what it should be is
//! verified by whoever installs it, as without a proxy.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use lazaret_base::{Context, Error, Kind, Result, error};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use ureq::Body;
use ureq::http::{Response, StatusCode};

use crate::Digest;
use crate::build::DISTRIBUTIONS;
use crate::fetch::{Asked, Client, Network, Validators, explained};
use crate::packages::{Incoming, PackageCache, Seen, Stats};

/// Where a proxy goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archives {
    /// Hosts beyond those of the distributions, with a port if it is not the usual one.
    pub more: Vec<String>,
}

/// Domains whose hosts are archives. Their names are in the hands of the distributions.
const DOMAINS: &[&str] = &["debian.org", "ubuntu.com"];

impl Archives {
    /// Whether a host is one of an archive.
    pub fn have(&self, host: &str) -> bool {
        let below = |domain: &str| host.strip_suffix(domain).is_some_and(|front| front.ends_with('.'));
        self.more.iter().any(|more| more == host) || DOMAINS.iter().any(|domain| below(domain))
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

/// What serves connections, any number of them at once.
pub struct Proxy {
    cache: PackageCache,
    client: Client,
    archives: Archives,
    limit: u64,
    /// Bytes that came since room was made last.
    grown: AtomicU64,
}

/// A client that says nothing for so long is let go.
const SILENCE: Duration = Duration::from_secs(60);
/// A request is no longer, its headers included.
const LONGEST_REQUEST: u64 = 32 << 10;
/// No file is larger.
const LARGEST: u64 = 16 << 30;
/// How much may come before it is looked whether there is too much.
const LOOK_AFTER: u64 = 64 << 20;
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
        for path in ["/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/dev/urandom"] {
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
    /// One that keeps at most `limit` bytes.
    pub fn new(network: &Network, cache: PackageCache, archives: Archives, limit: u64) -> Result<Proxy> {
        let client = Client::new(network, None, true)?;
        Ok(Proxy { cache, client, archives, limit, grown: AtomicU64::new(0) })
    }

    /// Serves a connection to its end.
    pub fn serve(&self, stream: &TcpStream) -> Result<()> {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            let mut reply = Reply { out: stream, request: &request, begun: false, stays: request.stays };
            if let Err(e) = self.answer(&request, &mut reply) {
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

    fn answer(&self, request: &Request, reply: &mut Reply<'_>) -> Result<()> {
        let place = Place::parse(&request.target)?;
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            return Err(error(format!("`{}` is not answered here", request.method.escape_debug())).kind(Kind::Invalid));
        }
        if !self.archives.have(&place.host) {
            return Err(error(format!("`{}` is no archive of packages", place.host)).kind(Kind::Invalid));
        }
        match place.immutable() {
            true => self.immutable(&place, reply),
            false => self.changing(&place, reply),
        }
    }

    /// A file that is the same for ever.
    fn immutable(&self, place: &Place, reply: &mut Reply<'_>) -> Result<()> {
        if let Some(file) = self.find(place) {
            return self.hit(reply, file, None);
        }
        // One connection gets it, others wait for it.
        let _held = self.cache.lock(&Digest::of(place.address.as_bytes()))?;
        if let Some(file) = self.find(place) {
            return self.hit(reply, file, None);
        }
        let candidates = self.cache.named(&place.address);
        let response = match (self.ask(place, Validators::default()), &candidates[..]) {
            (Ok(response), _) => response,
            // Nobody answers, and there is but one file of that name.
            (Err(e), [(digest, _)]) => {
                return self.cache.get(digest).ok_or(e).and_then(|file| self.hit(reply, file, None));
            }
            (Err(e), _) => return Err(e),
        };
        if response.status() != StatusCode::OK {
            return reply.pass_on(response);
        }
        let size = length(&response);
        let same = candidates.iter().find(|(_, bytes)| Some(*bytes) == size);
        if let Some((digest, _)) = same.filter(|_| place.digest().is_none())
            && let Some(file) = self.cache.get_verified(digest)
        {
            // Another mirror of the same archive.
            self.cache.note(&place.address, &Seen { digest: digest.hex(), etag: None, modified: None })?;
            return self.hit(reply, file, None);
        }
        let seen = |digest: &Digest| Seen { digest: digest.hex(), etag: None, modified: None };
        self.miss(place, response, place.digest(), reply, seen)
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
            return reply.pass_on(response);
        }
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let (etag, modified) = (header("etag"), header("last-modified"));
        let seen = |digest: &Digest| Seen { digest: digest.hex(), etag, modified };
        self.miss(place, response, None, reply, seen)
    }

    fn ask(&self, place: &Place, unless: Validators) -> Result<Response<Body>> {
        let response = self.client.get(&place.address, &Asked { unless, plain: true, ..Asked::default() }, None)?;
        // A server in trouble is as good as none.
        match response.status().is_server_error() {
            true => Err(error(format!("the server answers {}", response.status().as_u16()))),
            false => Ok(response),
        }
    }

    fn hit(&self, reply: &mut Reply<'_>, file: std::fs::File, seen: Option<&Seen>) -> Result<()> {
        let size = file.metadata()?.len();
        let sent = reply.file(file, size, seen)?;
        // A count that is lost is no reason to fail.
        let _ = self.cache.count(Stats { hits: 1, saved: sent, ..Stats::default() });
        Ok(())
    }

    /// Hands on what comes and keeps it. A client that goes away does not stop what has begun.
    fn miss(
        &self,
        place: &Place,
        response: Response<Body>,
        wanted: Option<Digest>,
        reply: &mut Reply<'_>,
        seen: impl FnOnce(&Digest) -> Seen,
    ) -> Result<()> {
        let size = length(&response);
        if size.is_some_and(|size| size > LARGEST) {
            return Err(error(format!("it is larger than {LARGEST} bytes")));
        }
        let modified = response.headers().get("last-modified").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut incoming = Some(self.cache.incoming()?);
        reply.head(200, size, modified.as_deref(), "MISS")?;
        let mut body = response.into_body().into_with_config().limit(LARGEST).reader();
        let (mut buffer, mut came, mut listens) = (vec![0; 128 << 10], 0u64, !reply.request.head_only());
        loop {
            let n = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(explained(e.into())),
            };
            came += n as u64;
            listens = listens && reply.out.write_all(&buffer[..n]).is_ok();
            // A full disk is the cache's trouble, not the client's.
            if incoming.as_mut().is_some_and(|file| file.write(&buffer[..n]).is_err()) {
                incoming = None;
            }
            if !listens && incoming.is_none() {
                break;
            }
        }
        if size.is_some_and(|size| size != came) {
            return Err(error(format!("{came} bytes came in the place of {}", size.unwrap_or_default())));
        }
        if let Some(incoming) = incoming {
            self.keep(place, incoming, wanted, seen);
        }
        let _ = self.cache.count(Stats { misses: 1, fetched: came, ..Stats::default() });
        match listens || reply.request.head_only() {
            true => Ok(()),
            false => Err(error("the client has gone")),
        }
    }

    /// What can't be kept is fetched again when it is wanted again.
    fn keep(&self, place: &Place, incoming: Incoming<'_>, wanted: Option<Digest>, seen: impl FnOnce(&Digest) -> Seen) {
        let size = incoming.size();
        if let Ok((digest, _)) = incoming.finish(wanted.as_ref()) {
            let _ = self.cache.note(&place.address, &seen(&digest));
        }
        if self.grown.fetch_add(size, Ordering::Relaxed) + size > LOOK_AFTER {
            self.grown.store(0, Ordering::Relaxed);
            let _ = self.cache.evict(self.limit);
        }
    }
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
        let up = path.split('/').any(|part| part == ".." || part == ".");
        if host.is_empty() || !host.chars().all(plain_host) || !path.chars().all(plain_path) || up {
            return Err(bad());
        }
        Ok(Place { address: format!("http://{host}/{path}"), host, path: path.to_owned() })
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
        let mut request = Request { method, target, from: None, unless_since: None, stays: version == "HTTP/1.1" };
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
    fn file(&mut self, mut file: std::fs::File, size: u64, seen: Option<&Seen>) -> Result<u64> {
        let modified = seen.and_then(|seen| seen.modified.as_deref());
        if modified.is_some() && modified == self.request.unless_since.as_deref() {
            return self.head(304, Some(0), modified, "HIT").map(|()| 0);
        }
        let from = self.request.from.filter(|from| *from < size).unwrap_or(0);
        if from > 0 {
            let range = format!("X-Cache: HIT\r\nContent-Range: bytes {from}-{}/{size}\r\n", size - 1);
            self.head_with(206, Some(size - from), modified, &range)?;
        } else {
            self.head(200, Some(size), modified, "HIT")?;
        }
        if self.request.head_only() {
            return Ok(0);
        }
        io::Seek::seek(&mut file, io::SeekFrom::Start(from))?;
        // In the kernel, from file to socket.
        let sent = io::copy(&mut file.take(size - from), &mut self.out)?;
        match sent == size - from {
            true => Ok(sent),
            false => Err(error("a package was cut off on the disk")),
        }
    }

    /// What the server says that gives nothing.
    fn pass_on(&mut self, response: Response<Body>) -> Result<()> {
        let status = response.status().as_u16();
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
                    let body = body.filter(|_| !head.contains("304")).unwrap_or_default();
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
    }

    impl World {
        fn new(hosts: &[&str]) -> World {
            let dir = std::env::temp_dir().join(format!("lazaret-proxy-{:?}", thread::current().id()));
            let _ = std::fs::remove_dir_all(&dir);
            let cache = PackageCache::open(&dir).unwrap();
            let archives = Archives { more: hosts.iter().map(|host| (*host).to_owned()).collect() };
            let proxy = Arc::new(Proxy::new(&Network::default(), cache.clone(), archives, 1 << 30).unwrap());
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let served = proxy.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let proxy = served.clone();
                    thread::spawn(move || drop(proxy.serve(&stream)));
                }
            });
            World { dir, cache, proxy, address }
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

        fn get(&self, host: &str, path: &str, more: &str) -> (String, Vec<u8>) {
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

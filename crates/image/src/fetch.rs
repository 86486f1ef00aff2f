//! Getting files over https: small ones into memory, large ones into a file that is resumed where it ended.
//!
//! Nothing of the environment is read here: proxies come in as values. A download is verified by its SHA-256 while it
//! comes in, and nobody sees it before.

use std::collections::VecDeque;
use std::fs::{self as stdfs, File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use lazaret_base::{Context, Error, Kind, Result, error, read_bounded};
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use crate::oci::Logins;
use crate::unpack::full;
use crate::{Digest, stream};

/// How the network is reached: the caller's variables, as values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// For `http:`, as in the variable `http_proxy`: `http://proxy:3128`, `socks5://127.0.0.1:9050`.
    pub http_proxy: Option<String>,
    /// For `https:`.
    pub https_proxy: Option<String>,
    /// Hosts that are asked directly: `localhost,.office.example,10.0.0.1`; `*` is all.
    pub no_proxy: String,
    /// Of registries that let in those alone whom they know.
    pub logins: Logins,
}

/// How one server is asked.
pub(crate) struct Client {
    direct: Agent,
    /// By whether the address is https.
    proxied: [Option<Agent>; 2],
    no_proxy: String,
}

/// What a request says beyond its address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub accept: Option<String>,
    pub authorization: Option<String>,
    /// What is here already, by the server's own words.
    pub unless: Validators,
    /// As it is, not compressed on the way: for what is known by its digest or its size.
    pub plain: bool,
}

/// How a server tells whether a file has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Validators {
    pub etag: Option<String>,
    pub modified: Option<String>,
}

/// A small file.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It is still what it was.
    Same,
    Fresh {
        bytes: Vec<u8>,
        validators: Validators,
    },
}

const CONNECT: Duration = Duration::from_secs(15);
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(30);
const REDIRECTS: u32 = 5;
const HEADERS: usize = 64 << 10;
const USER_AGENT: &str = concat!("lazaret/", env!("CARGO_PKG_VERSION"));

impl Client {
    /// `ca`: believe these authorities only. `insecure`: plain http is allowed, also behind a redirection.
    pub(crate) fn new(network: &Network, ca: Option<&Path>, insecure: bool) -> Result<Client> {
        Client::made(network, ca, insecure, REDIRECTS)
    }

    /// One that asks where it is told to and nowhere else, also by plain http: redirections come back as they are.
    pub(crate) fn straight(network: &Network) -> Result<Client> {
        Client::made(network, None, true, 0)
    }

    fn made(network: &Network, ca: Option<&Path>, insecure: bool, redirects: u32) -> Result<Client> {
        let roots = match ca {
            Some(path) => RootCerts::from(authorities(path)?),
            None => RootCerts::PlatformVerifier,
        };
        let agent = |proxy: Option<Proxy>| -> Agent {
            Agent::config_builder()
                .http_status_as_error(false)
                .https_only(!insecure)
                .max_redirects(redirects)
                .max_response_header_size(HEADERS)
                .tls_config(TlsConfig::builder().root_certs(roots.clone()).build())
                .timeout_resolve(Some(CONNECT))
                .timeout_connect(Some(CONNECT))
                .timeout_recv_response(Some(SILENCE))
                .timeout_per_read(Some(SILENCE))
                .user_agent(USER_AGENT)
                // Else the environment would be read.
                .proxy(proxy)
                .build()
                .into()
        };
        let proxied = |proxy: &Option<String>| match proxy {
            Some(address) => {
                let bad = |_| error(format!("the proxy `{address}` is no address, such as http://proxy.example:3128"));
                Ok(Some(agent(Some(Proxy::new(address).map_err(bad)?))))
            }
            None => Ok::<_, Error>(None),
        };
        Ok(Client {
            direct: agent(None),
            proxied: [proxied(&network.http_proxy)?, proxied(&network.https_proxy)?],
            no_proxy: network.no_proxy.clone(),
        })
    }

    /// Sends a request and waits for the head of the answer, whatever its status.
    pub(crate) fn get(&self, url: &str, asked: &Asked, part: Option<Range<u64>>) -> Result<Response<Body>> {
        let asking = || format!("asking `{url}`");
        let uri: Uri = url.parse().map_err(|_| error(format!("`{url}` is no address")))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let https = uri.scheme_str() == Some("https");
        let proxied = self.proxied[usize::from(https)].as_ref().filter(|_| !bypassed(&self.no_proxy, host));
        let mut request = proxied.unwrap_or(&self.direct).get(url);
        let headers = [
            ("accept", &asked.accept),
            ("authorization", &asked.authorization),
            ("if-none-match", &asked.unless.etag),
            ("if-modified-since", &asked.unless.modified),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        if asked.plain || part.is_some() {
            // A digest is that of the file and not of what a server compresses on the way.
            request = request.header("accept-encoding", "identity");
        }
        if let Some(part) = part {
            request = request.header("range", format!("bytes={}-{}", part.start, part.end.saturating_sub(1)));
        }
        request.call().map_err(explained).with_context(asking)
    }

    /// Gets a small file from the first of these places that has it.
    pub(crate) fn small(&self, places: &[String], limit: usize, asked: &Asked) -> Result<Answer> {
        let mut first = None;
        for place in places {
            match self.small_from(place, limit, asked) {
                Err(e) => first = first.or(Some(e)),
                answer => return answer,
            }
        }
        Err(first.unwrap_or_else(|| error("there is no place to ask")))
    }

    fn small_from(&self, url: &str, limit: usize, asked: &Asked) -> Result<Answer> {
        let response = self.get(url, asked, None)?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Answer::Same);
        }
        refused(url, response.status())?;
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let validators = Validators { etag: header("etag"), modified: header("last-modified") };
        let reader = response.into_body().into_with_config().limit(limit as u64 + 1).reader();
        let bytes = read_bounded(reader, limit).with_context(|| format!("reading `{url}`"))?;
        Ok(Answer::Fresh { bytes, validators })
    }
}

/// The certificates of a PEM file.
fn authorities(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let reading = || format!("reading the authority `{}`", path.display());
    let bytes = read_bounded(File::open(path).with_context(reading)?, 4 << 20).with_context(reading)?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(error("there is no certificate in it").hint("it is a PEM file: -----BEGIN CERTIFICATE-----"))
            .with_context(reading),
        false => Ok(certificates),
    }
}

/// Whether a host is in a list as `no_proxy` has it: a name covers what is below it, as for curl(1).
fn bypassed(no_proxy: &str, host: &str) -> bool {
    no_proxy.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let entry =
            entry.trim_start_matches("*.").trim_start_matches('.').trim_matches(['[', ']']).to_ascii_lowercase();
        let host = host.to_ascii_lowercase();
        entry == "*" || host == entry || host.strip_suffix(&entry).is_some_and(|front| front.ends_with('.'))
    })
}

/// What a server means that does not give what was asked for.
pub(crate) fn refused(url: &str, status: StatusCode) -> Result<()> {
    if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
        return Ok(());
    }
    let reason = status.canonical_reason().unwrap_or("no reason given").to_ascii_lowercase();
    let e = error(format!("the server answers {} ({reason})", status.as_u16()));
    let e = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => e.kind(Kind::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => e.kind(Kind::Denied),
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => e.hint("put name and password into the proxy's address"),
        _ => e,
    };
    Err(e.context(format!("asking `{url}`")))
}

/// A failed request in our words.
pub(crate) fn explained(e: ureq::Error) -> Error {
    match e {
        ureq::Error::Io(e) if e.get_ref().is_some() => match e.downcast::<ureq::Error>() {
            Ok(inner) => explained(inner),
            Err(e) => plain_io(e),
        },
        ureq::Error::Io(e) => plain_io(e),
        ureq::Error::HostNotFound => error("the host is not known").hint("is the network up, and the name right?"),
        ureq::Error::Timeout(_) => {
            error("the server does not answer").hint("try again, or set a mirror in remotes.toml")
        }
        ureq::Error::Rustls(e) => untrusted(&e.to_string()),
        ureq::Error::TooManyRedirects => error("the server redirects in circles"),
        ureq::Error::RequireHttpsOnly(url) => {
            error(format!("`{url}` is plain http")).hint("allow it in remotes.toml with `insecure = true`")
        }
        ureq::Error::ConnectProxyFailed(said) => error(format!("the proxy refuses ({said})")),
        other => error(other.to_string()),
    }
}

fn plain_io(e: std::io::Error) -> Error {
    let text = e.to_string();
    if e.raw_os_error().is_none() && (text.contains("certificate") || text.contains("Certificate")) {
        return untrusted(&text);
    }
    if text.contains("failed to lookup address") {
        return error("the host is not known").hint("is the network up, and the name right?");
    }
    e.into()
}

fn untrusted(said: &str) -> Error {
    let said = said.replace('\n', " ");
    let e = error(format!("the server can't be trusted ({said})"));
    match said.contains("UnknownIssuer") {
        true => e.hint("if it is your own, name its authority in remotes.toml: ca = \"/etc/ssl/office.pem\""),
        false => e,
    }
}

/// A large file to be had.
pub(crate) struct Download<'a> {
    /// Where, in the order in which to ask.
    pub places: Vec<String>,
    pub digest: Digest,
    pub size: u64,
    pub asked: &'a Asked,
}

/// How many bytes a connection is asked for at once.
const PIECE: u64 = 4 << 20;
/// One connection is limited by its window and by the server; a few more fill the line.
const CONNECTIONS: usize = 4;
/// Less than this is not worth a second connection.
const WORTH_MORE: u64 = 8 << 20;
/// How much may be lost when we are killed, for each connection.
const NOTED: u64 = 1 << 20;
/// Failures in a row without a single byte in between.
const PATIENCE: u32 = 5;

/// Downloads into `dir`, or goes on with what an interrupted download left there. The file comes back open and is
/// still in `dir`, named by its digest: [`forget`] it when it is no more needed.
///
/// The caller holds a lock for this digest. `progress` is told how many bytes are there.
pub(crate) fn download(
    client: &Client,
    wanted: &Download<'_>,
    dir: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<File> {
    let (mut first_try, mut places) = (true, wanted.places.clone());
    loop {
        let resumed = Partial::open(dir, wanted)?;
        let had = resumed.spans.total();
        let digest = fetch(client, wanted, &places, resumed, progress)?;
        if digest.0 == wanted.digest {
            return Ok(digest.1);
        }
        forget(dir, &wanted.digest);
        // What was there from an earlier time may be what is wrong, or one mirror of several.
        if first_try && (had > 0 || places.len() > 1) {
            first_try = false;
            places.rotate_left(1);
            continue;
        }
        let sentence = format!("its SHA-256 is {}, but the list says {}", digest.0.hex(), wanted.digest.hex());
        return Err(error(sentence)
            .kind(Kind::Invalid)
            .hint("the server may be at work on it: try again later; if it stays so, do not trust the server")
            .context(format!("downloading `{}`", wanted.places.first().map_or("", |place| place))));
    }
}

/// Removes what was downloaded, whole or not.
pub(crate) fn forget(dir: &Path, digest: &Digest) {
    let (part, journal) = names(dir, digest);
    // Either may not be there; what stays is collected.
    let _ = stdfs::remove_file(part);
    let _ = stdfs::remove_file(journal);
}

fn names(dir: &Path, digest: &Digest) -> (PathBuf, PathBuf) {
    (dir.join(format!("{}.part", digest.hex())), dir.join(format!("{}.have", digest.hex())))
}

/// A file that is being downloaded, and which parts of it are there.
struct Partial {
    file: File,
    /// A line `START END` for each part that was written, in any order.
    journal: File,
    spans: Spans,
}

impl Partial {
    fn open(dir: &Path, wanted: &Download<'_>) -> Result<Partial> {
        let (part, journal) = names(dir, &wanted.digest);
        let opening = || format!("opening `{}`", part.display());
        let open = |path: &Path, append: bool| {
            let mut options = OpenOptions::new();
            options.read(true).create(true).mode(0o600).append(append).write(true);
            options.open(path).map_err(Error::from).map_err(full).with_context(opening)
        };
        let (file, mut journal) = (open(&part, false)?, open(&journal, true)?);
        let length = file.metadata().with_context(opening)?.len();
        let mut text = String::new();
        // A journal that can't be read says nothing.
        let _ = (&mut journal).take(16 << 20).read_to_string(&mut text);
        let mut spans = Spans::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            if let Some((Ok(start), Ok(end))) = line.split_once(' ').map(|(a, b)| (a.parse(), b.parse()))
                && start < end
                && end <= wanted.size.min(length)
            {
                spans.add(start..end);
            }
        }
        // A line cut off by a full disk must not lend its beginning to the next.
        if !text.is_empty() && !text.ends_with('\n') {
            let _ = journal.write_all(b"\n");
        }
        Ok(Partial { file, journal, spans })
    }
}

/// Disjoint parts of a file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spans(Vec<Range<u64>>);

impl Spans {
    fn add(&mut self, new: Range<u64>) {
        let mut merged = new;
        let mut others = Vec::with_capacity(self.0.len() + 1);
        for span in self.0.drain(..) {
            if span.end < merged.start || span.start > merged.end {
                others.push(span);
            } else {
                merged = merged.start.min(span.start)..merged.end.max(span.end);
            }
        }
        let at = others.partition_point(|span| span.start < merged.start);
        others.insert(at, merged);
        self.0 = others;
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|span| span.end - span.start).sum()
    }

    /// How far it is whole from the start.
    fn prefix(&self) -> u64 {
        self.0.first().filter(|span| span.start == 0).map_or(0, |span| span.end)
    }

    /// What is missing, in pieces.
    fn gaps(&self, size: u64) -> VecDeque<Range<u64>> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|span| span.end));
        let ends = self.0.iter().map(|span| span.start).chain([size]);
        let mut pieces = VecDeque::new();
        for (mut start, end) in starts.zip(ends) {
            while start < end {
                let next = end.min(start + PIECE);
                pieces.push_back(start..next);
                start = next;
            }
        }
        pieces
    }
}

/// What a connection tells.
enum Event {
    /// The server gives parts when asked for parts.
    Ranges,
    Got(Range<u64>),
    /// It ended: with nothing left to do, or with what it did not get and why.
    Ended(Option<(Range<u64>, Failure)>),
}

struct Failure {
    source: usize,
    error: Error,
    /// Another try at the same place would end the same way.
    for_good: bool,
}

/// What the connections share.
struct Work<'a> {
    client: &'a Client,
    wanted: &'a Download<'a>,
    file: &'a File,
    journal: &'a File,
    gaps: Mutex<VecDeque<Range<u64>>>,
    stop: AtomicBool,
}

/// Gets what is missing; the digest of the whole comes back.
fn fetch(
    client: &Client,
    wanted: &Download<'_>,
    places: &[String],
    partial: Partial,
    progress: &mut dyn FnMut(u64),
) -> Result<(Digest, File)> {
    let Partial { file, journal, mut spans } = partial;
    let work = Work {
        client,
        wanted,
        file: &file,
        journal: &journal,
        gaps: Mutex::new(spans.gaps(wanted.size)),
        stop: AtomicBool::new(false),
    };
    let mut prefix = Prefix { hash: Sha256::new(), at: 0, buffer: vec![0; 256 << 10] };
    let mut sources = Sources { places, at: 0, bad: vec![false; places.len()], failures: 0 };
    thread::scope(|scope| -> Result<()> {
        let (events_in, events) = channel();
        let begin = |place: (usize, &str), pause: Duration| {
            let (work, events, place) = (&work, events_in.clone(), (place.0, place.1.to_owned()));
            scope.spawn(move || run(work, place, pause, &events))
        };
        let mut threads = Vec::new();
        let outcome = (|| -> Result<()> {
            let mut alive = 0;
            if spans.total() < wanted.size {
                threads.push(begin(sources.current()?, Duration::ZERO));
                alive += 1;
            }
            let mut grown = false;
            progress(spans.total());
            prefix.follow(&file, spans.prefix())?;
            while alive > 0 {
                // The sender lives as long as we do.
                let Ok(event) = events.recv() else { break };
                match event {
                    Event::Ranges if !grown => {
                        grown = true;
                        let missing = wanted.size - spans.total();
                        let more = if missing > WORTH_MORE { CONNECTIONS - 1 } else { 0 };
                        for _ in 0..more {
                            threads.push(begin(sources.current()?, Duration::ZERO));
                            alive += 1;
                        }
                    }
                    Event::Ranges => {}
                    Event::Got(span) => {
                        sources.failures = 0;
                        spans.add(span);
                        prefix.follow(&file, spans.prefix())?;
                        progress(spans.total());
                    }
                    Event::Ended(None) => alive -= 1,
                    Event::Ended(Some((rest, failure))) => {
                        let pause = sources.after(failure)?;
                        lock(&work.gaps).push_front(rest);
                        threads.push(begin(sources.current()?, pause));
                    }
                }
            }
            Ok(())
        })();
        work.stop.store(true, Ordering::Relaxed);
        stream::join(threads);
        outcome
    })
    .with_context(|| format!("downloading `{}`", wanted.places.first().map_or("", |place| place)))?;
    Ok((Digest::from_state(prefix.hash), file))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A thread that panicked takes the whole process down; the queue itself is never half-changed.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The hash of what is there from the start, which follows the download.
struct Prefix {
    hash: Sha256,
    at: u64,
    buffer: Vec<u8>,
}

impl Prefix {
    fn follow(&mut self, file: &File, end: u64) -> Result<()> {
        while self.at < end {
            let most = self.buffer.len().min(usize::try_from(end - self.at).unwrap_or(usize::MAX));
            let n = file.read_at(&mut self.buffer[..most], self.at).context("reading the download again")?;
            if n == 0 {
                return Err(error("the download was cut off by somebody else"));
            }
            self.hash.update(&self.buffer[..n]);
            self.at += n as u64;
        }
        Ok(())
    }
}

/// The places of a file, and what came of asking them.
struct Sources<'a> {
    places: &'a [String],
    at: usize,
    bad: Vec<bool>,
    failures: u32,
}

impl Sources<'_> {
    fn current(&self) -> Result<(usize, &str)> {
        let place = self.places.get(self.at).ok_or_else(|| error("there is no place to ask"))?;
        Ok((self.at, place))
    }

    /// Decides where to go on after a failure, and how long to wait before; the failure itself if there is no hope.
    fn after(&mut self, failure: Failure) -> Result<Duration> {
        self.failures += 1;
        self.bad[failure.source] |= failure.for_good;
        let others = (1..=self.places.len()).map(|step| (failure.source + step) % self.places.len());
        let next = others.into_iter().find(|place| !self.bad[*place]);
        match next {
            Some(next) if self.failures < PATIENCE => {
                self.at = next;
                // A place that has just failed is given a moment; another one is asked at once.
                let again = next == failure.source && self.failures > 1;
                Ok(if again { Duration::from_millis(200 << self.failures) } else { Duration::ZERO })
            }
            _ => Err(failure.error),
        }
    }
}

/// One connection: takes pieces until none is left.
fn run(work: &Work<'_>, (source, place): (usize, String), pause: Duration, events: &Sender<Event>) {
    if !pause.is_zero() {
        thread::park_timeout(pause);
    }
    loop {
        if work.stop.load(Ordering::Relaxed) {
            break;
        }
        let Some(piece) = lock(&work.gaps).pop_front() else { break };
        let mut left = piece;
        if let Err((e, for_good)) = take(work, &place, &mut left, events) {
            // Whoever listens may have given up.
            let _ = events.send(Event::Ended(Some((left, Failure { source, error: e, for_good }))));
            return;
        }
    }
    let _ = events.send(Event::Ended(None));
}

/// Gets a piece; what is left of it is told when that fails.
fn take(
    work: &Work<'_>,
    place: &str,
    left: &mut Range<u64>,
    events: &Sender<Event>,
) -> std::result::Result<(), (Error, bool)> {
    let size = work.wanted.size;
    let passing = |e: Error| (e, false);
    let response = work.client.get(place, work.wanted.asked, Some(left.clone())).map_err(passing)?;
    let status = response.status();
    refused(place, status).map_err(|e| (e, status.is_client_error()))?;
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    if status == StatusCode::PARTIAL_CONTENT {
        let stated = header("content-range").and_then(content_range);
        if stated.is_none_or(|(start, total)| start != left.start || total.is_some_and(|total| total != size)) {
            let e = error(format!("the server gives another part than bytes {} to {} of {size}", left.start, left.end));
            return Err((e, true));
        }
        let _ = events.send(Event::Ranges);
    } else {
        // It gives all or nothing: then this connection takes all, whatever is there already.
        if let Some(length) = header("content-length").and_then(|text| text.parse::<u64>().ok())
            && length != size
        {
            return Err((error(format!("the file there has {length} bytes, but the list says {size}")), true));
        }
        lock(&work.gaps).clear();
        *left = 0..size;
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    store(work, &mut body, left, events)
}

fn store(
    work: &Work<'_>,
    body: &mut impl Read,
    left: &mut Range<u64>,
    events: &Sender<Event>,
) -> std::result::Result<(), (Error, bool)> {
    let mut buffer = vec![0; 128 << 10];
    let mut noted = left.start;
    let mut note = |at: u64| {
        // What is not noted is fetched once more.
        let _ = (&mut &*work.journal).write_all(format!("{noted} {at}\n").as_bytes());
        let _ = events.send(Event::Got(noted..at));
        noted = at;
    };
    let mut unnoted = 0;
    let outcome = loop {
        if left.is_empty() || work.stop.load(Ordering::Relaxed) {
            break Ok(());
        }
        let most = buffer.len().min(usize::try_from(left.end - left.start).unwrap_or(usize::MAX));
        let n = match body.read(&mut buffer[..most]) {
            Ok(0) => break Err((error("the connection ended too early"), false)),
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => break Err((explained(e.into()), false)),
        };
        if let Err(e) = work.file.write_all_at(&buffer[..n], left.start) {
            break Err((full(e.into()).context("writing the download"), true));
        }
        left.start += n as u64;
        unnoted += n as u64;
        if unnoted >= NOTED {
            note(left.start);
            unnoted = 0;
        }
    };
    if unnoted > 0 {
        note(left.start);
    }
    outcome
}

/// `bytes START-END/TOTAL` (RFC 9110, section 14.4): start, and the total unless it is `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split_once('-')?.0.trim().parse().ok()?;
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    Some((start, total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hosts_without_a_proxy_are_named_as_for_other_programs() {
        let list = "localhost, .office.example,*.dev,10.0.0.1";
        for host in ["localhost", "LOCALHOST", "office.example", "a.office.example", "x.dev", "10.0.0.1"] {
            assert!(bypassed(list, host), "{host}");
        }
        for host in ["notlocalhost", "office.example.org", "myoffice.example", "10.0.0.11", ""] {
            assert!(!bypassed(list, host), "{host}");
        }
        assert!(bypassed("*", "anything") && !bypassed("", "anything") && !bypassed(",", "x"));
    }

    #[test]
    fn an_answer_must_be_the_part_that_was_asked_for() {
        assert_eq!(content_range("bytes 0-4/10"), Some((0, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["bytes */10", "5-9/10", "bytes -9/10", "bytes 5/10", "bytes 1-2/x", ""] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        /// Whatever parts arrive in whatever order: parts and gaps together are the file, each byte once.
        #[test]
        fn parts_and_gaps_make_the_whole(parts in proptest::collection::vec((0u64..1000, 1u64..200), 0..30)) {
            let size = 1200u64;
            let mut spans = Spans::default();
            let mut there = vec![false; size as usize];
            for (start, length) in parts {
                spans.add(start..start + length);
                there[start as usize..(start + length) as usize].fill(true);
            }
            prop_assert_eq!(spans.total(), there.iter().filter(|byte| **byte).count() as u64);
            prop_assert_eq!(spans.prefix(), there.iter().take_while(|byte| **byte).count() as u64);
            for gap in spans.gaps(size) {
                for byte in gap {
                    prop_assert!(!std::mem::replace(&mut there[byte as usize], true));
                }
            }
            prop_assert!(there.iter().all(|byte| *byte));
        }
    }
}

//! A real https server on this machine, with an authority of its own, that does what it is told: hold a file back, cut
//! a connection, forget how to give parts of files. And a proxy that counts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A server and what it serves. Dropped, it takes no more connections.
pub struct Server {
    /// `https://127.0.0.1:PORT`
    pub url: String,
    /// Host and port.
    pub host: String,
    /// The authority that vouches for it, as a PEM file.
    pub ca: PathBuf,
    state: Arc<State>,
}

/// A request as the server saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub path: String,
    /// Where the part that was asked for begins; `None` for the whole.
    pub from: Option<u64>,
    pub status: u16,
    /// Bytes of the body that were sent.
    pub sent: u64,
    pub authorization: Option<String>,
}

#[derive(Default)]
struct State {
    inner: Mutex<Inner>,
    changed: Condvar,
    closed: AtomicBool,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Arc<Vec<u8>>>,
    asked: Vec<Asked>,
    /// The file that is held back, and after how many of its bytes.
    held: Option<(String, u64)>,
    /// How many connections stand at what is held back.
    waiting: usize,
    /// The file whose connection is cut, after how many bytes, and how often still.
    cut: Option<(String, u64, u32)>,
    no_parts: bool,
    /// The token that must be shown, and where it is to be had.
    token: Option<String>,
    /// The login that must be shown: for a token, or for the files where there is none.
    login: Option<String>,
}

impl Server {
    /// A server that has nothing yet; its authority is written into `dir`.
    pub fn new(dir: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (config, authority) = certificates();
        let ca = dir.join(format!("ca-{}.pem", host.replace(':', "-")));
        fs::write(&ca, authority).unwrap();
        let state = Arc::new(State::default());
        let server = Server { url: format!("https://{host}"), host, ca, state: state.clone() };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if state.closed.load(Ordering::Relaxed) {
                    break;
                }
                let (state, config) = (state.clone(), config.clone());
                // A client that goes away in the middle is no fault of ours.
                thread::spawn(move || stream.and_then(|stream| serve(stream, config, &state)));
            }
        });
        server
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.inner.lock().unwrap()
    }

    /// Serves these bytes at that path.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.inner().files.insert(path.to_owned(), Arc::new(bytes.into()));
    }

    /// Does not serve it any more.
    pub fn take(&self, path: &str) {
        self.inner().files.remove(path);
    }

    /// The requests for paths that end like this.
    pub fn asked(&self, end: &str) -> Vec<Asked> {
        self.inner().asked.iter().filter(|asked| asked.path.ends_with(end)).cloned().collect()
    }

    /// Bytes of the bodies that were sent for paths that end like this.
    pub fn sent(&self, end: &str) -> u64 {
        self.asked(end).iter().map(|asked| asked.sent).sum()
    }

    /// Forgets all requests.
    pub fn forget(&self) {
        self.inner().asked.clear();
    }

    /// Sends no more than that many bytes of a file over any connection, until [`Server::release`].
    pub fn hold(&self, end: &str, after: u64) {
        self.inner().held = Some((end.to_owned(), after));
    }

    /// Waits until a connection stands at what is held back.
    pub fn wait_until_held(&self) {
        let mut inner = self.inner();
        while inner.waiting == 0 {
            let (next, time) = self.state.changed.wait_timeout(inner, super::harness::LIMIT).unwrap();
            assert!(!time.timed_out(), "nobody asked for what is held back");
            inner = next;
        }
    }

    /// Goes on with what was held back.
    pub fn release(&self) {
        self.inner().held = None;
        self.state.changed.notify_all();
    }

    /// Cuts that many connections after so many bytes of a file.
    pub fn cut(&self, end: &str, after: u64, times: u32) {
        self.inner().cut = Some((end.to_owned(), after, times));
    }

    /// Gives whole files only, whatever part is asked for.
    pub fn no_parts(&self) {
        self.inner().no_parts = true;
    }

    /// Wants a login: a name and a password in base64.
    pub fn want_login(&self, login: &str) {
        self.inner().login = Some(login.to_owned());
    }

    /// Wants a token for everything below `/v2/`, and gives it at `/token` to anybody, or to whom it lets in.
    pub fn want_token(&self, token: &str) {
        self.inner().token = Some(token.to_owned());
    }

    /// Takes no more connections.
    pub fn close(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
        // Wakes the loop up, so that it sees.
        let _ = TcpStream::connect(&self.host);
        self.release();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.close();
    }
}

/// A server's certificate for 127.0.0.1, and the authority that vouches for it.
fn certificates() -> (Arc<ServerConfig>, String) {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority = params.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    (Arc::new(config), authority)
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, state: &State) -> io::Result<()> {
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let Some(request) = read_request(&mut stream)? else { return Ok(()) };
        if !answer(&request, stream.get_mut(), state)? {
            return stream.get_mut().sock.shutdown(Shutdown::Both);
        }
    }
}

struct Request {
    target: String,
    headers: BTreeMap<String, String>,
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(Some(Request { target, headers }));
        }
        if let Some((key, value)) = line.trim().split_once(':') {
            headers.insert(key.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
}

/// Whether the connection goes on.
fn answer(request: &Request, to: &mut impl Write, state: &State) -> io::Result<bool> {
    let path = request.target.split('?').next().unwrap_or_default().to_owned();
    let header = |name: &str| request.headers.get(name).cloned();
    let log = |from, status, sent| {
        let asked = Asked { path: path.clone(), from, status, sent, authorization: header("authorization") };
        state.inner.lock().unwrap().asked.push(asked);
    };
    let (file, token, login, parts) = {
        let inner = state.inner.lock().unwrap();
        (inner.files.get(&path).cloned(), inner.token.clone(), inner.login.clone(), !inner.no_parts)
    };
    let logged_in = login.as_ref().is_none_or(|login| header("authorization") == Some(format!("Basic {login}")));
    if let Some(token) = &token
        && path == "/token"
    {
        assert!(request.target.contains("scope=repository%3A"), "{}", request.target);
        log(None, if logged_in { 200 } else { 401 }, 0);
        if !logged_in {
            return whole(to, "401 Unauthorized", "", b"");
        }
        return whole(to, "200 OK", "", format!("{{\"token\": \"{token}\"}}").as_bytes());
    }
    let authorized = token.as_ref().is_none_or(|token| header("authorization") == Some(format!("Bearer {token}")));
    if path.starts_with("/v2/") && !authorized {
        log(None, 401, 0);
        let host = header("host").unwrap_or_default();
        let challenge = format!("WWW-Authenticate: Bearer realm=\"https://{host}/token\",service=\"test\"\r\n");
        return whole(to, "401 Unauthorized", &challenge, b"");
    }
    if path.starts_with("/v2/") && token.is_none() && !logged_in {
        log(None, 401, 0);
        return whole(to, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"test\"\r\n", b"");
    }
    let Some(file) = file else {
        let empty = path == "/v2/";
        log(None, if empty { 200 } else { 404 }, 0);
        return whole(to, if empty { "200 OK" } else { "404 Not Found" }, "", b"");
    };
    let etag = format!("\"{:x}-{}\"", file.iter().map(|byte| u64::from(*byte)).sum::<u64>(), file.len());
    if header("if-none-match").as_deref() == Some(&etag) {
        log(None, 304, 0);
        return whole(to, "304 Not Modified", "", b"");
    }
    let part = header("range").and_then(|range| {
        let (from, to) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((from.parse::<u64>().ok()?, to.parse::<u64>().ok()?.min(file.len() as u64 - 1)))
    });
    let (from, last) = part.filter(|_| parts).unwrap_or((0, (file.len() as u64).saturating_sub(1)));
    let body = &file[from as usize..file.len().min(last as usize + 1)];
    let (status, extra) = match part.filter(|_| parts) {
        Some(_) => (206, format!("Content-Range: bytes {from}-{last}/{}\r\n", file.len())),
        None => (200, String::new()),
    };
    let line = if status == 206 { "206 Partial Content" } else { "200 OK" };
    write!(to, "HTTP/1.1 {line}\r\n{extra}ETag: {etag}\r\nContent-Length: {}\r\n\r\n", body.len())?;
    let mut sent = 0;
    let outcome = send(body, from, &path, to, state, &mut sent);
    log(part.map(|(from, _)| from), status, sent);
    outcome
}

/// Sends a body in pieces, as far as it may.
fn send(body: &[u8], from: u64, path: &str, to: &mut impl Write, state: &State, sent: &mut u64) -> io::Result<bool> {
    for piece in body.chunks(16 << 10) {
        let at = from + *sent;
        let mut inner = state.inner.lock().unwrap();
        if let Some((end, after, times)) = &mut inner.cut
            && path.ends_with(end.as_str())
            && *times > 0
            && at >= *after
        {
            *times -= 1;
            return Ok(false);
        }
        let held = |inner: &Inner| inner.held.as_ref().is_some_and(|(end, after)| path.ends_with(end) && at >= *after);
        if held(&inner) {
            to.flush()?;
            inner.waiting += 1;
            state.changed.notify_all();
            while held(&inner) {
                inner = state.changed.wait(inner).unwrap();
            }
            inner.waiting -= 1;
        }
        drop(inner);
        to.write_all(piece)?;
        *sent += piece.len() as u64;
    }
    to.flush()?;
    Ok(true)
}

fn whole(to: &mut impl Write, status: &str, headers: &str, body: &[u8]) -> io::Result<bool> {
    write!(to, "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len())?;
    to.write_all(body)?;
    to.flush()?;
    Ok(true)
}

/// A proxy that tunnels to wherever it is asked to, and counts.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    tunnels: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// A new one.
    pub fn new() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let tunnels = Arc::new(Mutex::new(Vec::new()));
        let seen = tunnels.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = seen.clone();
                thread::spawn(move || tunnel(stream, &seen));
            }
        });
        Proxy { url, tunnels }
    }

    /// Where it was asked to go.
    pub fn tunnels(&self) -> Vec<String> {
        self.tunnels.lock().unwrap().clone()
    }
}

fn tunnel(client: TcpStream, seen: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let Some(request) = read_request(&mut reader)? else { return Ok(()) };
    seen.lock().unwrap().push(request.target.clone());
    let server = TcpStream::connect(&request.target)?;
    let mut client = client;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut back_from, mut back_to) = (server.try_clone()?, client);
    let back = thread::spawn(move || {
        let _ = io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
    });
    let mut server = server;
    let buffered = reader.buffer().to_vec();
    server.write_all(&buffered)?;
    let mut client = reader.into_inner();
    let mut bytes = vec![0; 16 << 10];
    while let Ok(n @ 1..) = client.read(&mut bytes) {
        server.write_all(&bytes[..n])?;
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = back.join();
    Ok(())
}

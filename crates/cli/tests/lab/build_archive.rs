//! A small archive in Debian's format, signed by a key of its own, and a server that can be told to fail. Its packages
//! are made of busybox; its dpkg is a script that notes what it is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::harness::bare;

/// The archive and its server.
pub struct Archive {
    /// `http://127.0.0.1:PORT/debian`
    pub mirror: String,
    /// The public key.
    pub keyring: PathBuf,
    home: PathBuf,
    state: Arc<State>,
    packages: String,
}

#[derive(Default)]
struct State {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
    /// Requests for paths that contain this get no answer.
    held: Mutex<Option<String>>,
    waiting: Mutex<usize>,
    changed: Condvar,
    /// No connection is answered.
    down: Mutex<bool>,
}

const DPKG: &str = r#"#!/bin/sh
echo "$@" >>/var/log/dpkg-calls
for word; do
  case $word in
    --print-architecture) echo amd64 ;;
    *.deb) cd /; name=${word%%_*}; echo "$name" >>/var/lib/unpacked
      mkdir -p "/usr/share/$name" ;;
    --force-unsafe-io) [ ! -e /etc/fail ] || { echo "the package is broken: \"x\"" >&2; exit 3; } ;;
  esac
done
exit 0
"#;

impl Archive {
    /// An archive of the release bookworm, with its keys in `dir`.
    pub fn new(dir: &Path) -> Archive {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        Archive::at(dir, listener, &host)
    }

    /// The same on a listening socket, which its clients know by this name and port.
    pub fn at(dir: &Path, listener: TcpListener, host: &str) -> Archive {
        let home = dir.join("gnupg");
        fs::create_dir(&home).unwrap();
        let keyring = dir.join("keys.gpg");
        gpg(&home, &["--quick-gen-key", "Test Archive <archive@example>", "ed25519", "sign", "never"]);
        gpg(&home, &["--output", keyring.to_str().unwrap(), "--export"]);
        let mirror = format!("http://{host}/debian");
        let state = Arc::new(State::default());
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                thread::spawn(move || serve(&stream, &state));
            }
        });
        let mut archive = Archive { mirror, keyring, home, state, packages: String::new() };
        archive.system();
        archive
    }

    /// What makes a system.
    fn system(&mut self) {
        let busybox = fs::read(bare().join("bin/busybox")).unwrap();
        let mut files: Vec<(String, Vec<u8>, u32)> = vec![
            ("./usr/bin/busybox".into(), busybox, 0o755),
            ("./usr/bin/dpkg".into(), DPKG.into(), 0o755),
            ("./etc/passwd".into(), b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644),
            ("./etc/group".into(), b"root:x:0:\n".to_vec(), 0o644),
            ("./etc/apt/sources.list.d/keep".into(), Vec::new(), 0o644),
            ("./etc/default/keep".into(), Vec::new(), 0o644),
            ("./var/log/keep".into(), Vec::new(), 0o644),
            ("./tmp/keep".into(), Vec::new(), 0o644),
            ("./etc/os-release".into(), b"ID=debian\nVERSION_CODENAME=bookworm\n".to_vec(), 0o644),
        ];
        for applet in
            ["sh", "rm", "mkdir", "chmod", "cat", "ln", "find", "sed", "echo", "cp", "chown", "ls", "id", "env"]
        {
            files.push((format!("./usr/bin/{applet}"), b"-> busybox".to_vec(), 0));
        }
        self.package("base", "Essential: yes\nPriority: required\n", files);
        self.package(
            "apt",
            "Priority: important\nDepends: lib\n",
            vec![("./usr/share/apt/x".into(), vec![7; 300_000], 0o644)],
        );
        self.package("lib", "", vec![("./usr/lib/lib".into(), vec![8; 100_000], 0o644)]);
        self.package("tool", "Depends: lib, helper\n", vec![("./usr/share/tool/x".into(), b"x".to_vec(), 0o644)]);
        self.package("helper", "", vec![("./usr/share/helper/x".into(), b"x".to_vec(), 0o644)]);
        self.publish(&Release::default());
    }

    /// Adds a package.
    pub fn package(&mut self, name: &str, fields: &str, files: Vec<(String, Vec<u8>, u32)>) {
        let control = format!(
            "Package: {name}\nVersion: 1.0\nArchitecture: amd64\nMaintainer: Test <t@example>\n{fields}Description: test\n"
        );
        let mut tar = tar::Builder::new(Vec::new());
        append(&mut tar, "./control", control.as_bytes(), 0o644);
        let control_tar = tar.into_inner().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for (path, bytes, mode) in files {
            append(&mut tar, &path, &bytes, mode);
        }
        let data_tar = liblzma::encode_all(&tar.into_inner().unwrap()[..], 0).unwrap();
        let deb = ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control_tar), ("data.tar.xz", &data_tar)]);
        let path = format!("pool/{name}_1.0_amd64.deb");
        let (size, digest) = (deb.len(), hex(&deb));
        self.packages += &format!("{control}Filename: {path}\nSize: {size}\nSHA256: {digest}\n\n");
        self.put(&path, deb);
    }

    /// Makes and signs the lists anew.
    pub fn publish(&self, release: &Release<'_>) {
        let packages = liblzma::encode_all(self.packages.as_bytes(), 0).unwrap();
        // Ubuntu has a second part, in which there may be nothing.
        let empty = match release.codename {
            "noble" => format!(" {} 0 universe/binary-amd64/Packages.xz\n", hex(b"")),
            _ => String::new(),
        };
        // apt looks for the name of the list alone, too, even if it is there compressed only.
        let text = format!(
            "Origin: Test\nSuite: {}\nCodename: {}\nDate: {}\n{}Architectures: amd64\nComponents: {}\nSHA256:\n {} {} \
             main/binary-amd64/Packages.xz\n {} {} main/binary-amd64/Packages\n{}",
            if release.suite == "bookworm" { "stable" } else { release.suite },
            release.codename,
            date(0),
            release.valid_until.map(|offset| format!("Valid-Until: {}\n", date(offset))).unwrap_or_default(),
            if empty.is_empty() { "main" } else { "main universe" },
            hex(&packages),
            packages.len(),
            hex(self.packages.as_bytes()),
            self.packages.len(),
            empty,
        );
        let signed = match release.signed_by {
            Signer::Nobody => text.into_bytes(),
            Signer::Archive => sign(&self.home, &text),
            Signer::Other => {
                let other = self.home.with_file_name("other");
                if fs::create_dir(&other).is_ok() {
                    gpg(&other, &["--quick-gen-key", "Other <other@example>", "ed25519", "sign", "never"]);
                }
                sign(&other, &text)
            }
            // One letter is another.
            Signer::Forged => {
                String::from_utf8(sign(&self.home, &text)).unwrap().replace("Origin: Test", "Origin: Fest").into_bytes()
            }
        };
        self.put(&format!("dists/{}/main/binary-amd64/Packages.xz", release.suite), packages);
        self.put(&format!("dists/{}/InRelease", release.suite), signed);
    }

    /// Serves these bytes.
    pub fn put(&self, path: &str, bytes: Vec<u8>) {
        self.state.files.lock().unwrap().insert(format!("/debian/{path}"), bytes);
    }

    /// What it serves.
    pub fn get(&self, path: &str) -> Vec<u8> {
        self.state.files.lock().unwrap()[&format!("/debian/{path}")].clone()
    }

    /// Does not serve it any more.
    pub fn take(&self, path: &str) {
        self.state.files.lock().unwrap().remove(&format!("/debian/{path}"));
    }

    /// How often files whose paths contain this were asked for, since the last time.
    pub fn asked(&self, part: &str) -> usize {
        std::mem::take(&mut *self.state.asked.lock().unwrap()).iter().filter(|path| path.contains(part)).count()
    }

    /// Answers nobody any more.
    pub fn go_down(&self) {
        *self.state.down.lock().unwrap() = true;
    }

    /// Answers again.
    pub fn come_back(&self) {
        *self.state.down.lock().unwrap() = false;
    }

    /// Lets requests for paths that contain this wait.
    pub fn hold(&self, part: &str) {
        *self.state.held.lock().unwrap() = Some(part.to_owned());
    }

    /// Waits until somebody waits.
    pub fn wait_until_held(&self) {
        let mut waiting = self.state.waiting.lock().unwrap();
        while *waiting == 0 {
            let (guard, time) = self.state.changed.wait_timeout(waiting, Duration::from_secs(30)).unwrap();
            assert!(!time.timed_out(), "nobody has asked for what is held back");
            waiting = guard;
        }
        *waiting = 0;
    }

    /// Answers everybody again.
    pub fn release(&self) {
        *self.state.held.lock().unwrap() = None;
        self.state.changed.notify_all();
    }

    /// The arguments of a build.
    pub fn build<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let keyring = self.keyring.to_str().unwrap();
        let fixed =
            ["image", "build", "debian/bookworm", "--variant", "minbase", "--no-updates", "--mirror", &self.mirror];
        [&fixed[..], &["--keyring", keyring], more].concat()
    }
}

/// How a Release file is made.
pub struct Release<'a> {
    /// Where it is.
    pub suite: &'a str,
    pub codename: &'a str,
    /// Seconds from now.
    pub valid_until: Option<i64>,
    pub signed_by: Signer,
}

impl Default for Release<'_> {
    fn default() -> Self {
        Release { suite: "bookworm", codename: "bookworm", valid_until: Some(3600), signed_by: Signer::Archive }
    }
}

/// Who signs it.
#[derive(Clone, Copy)]
pub enum Signer {
    Archive,
    Other,
    Nobody,
    Forged,
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    match bytes.strip_prefix(b"-> ").filter(|_| mode == 0) {
        Some(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, std::str::from_utf8(target).unwrap()).unwrap();
        }
        None => {
            header.set_size(bytes.len() as u64);
            header.set_mode(mode);
            tar.append_data(&mut header, path, bytes).unwrap();
        }
    }
}

fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, data) in members {
        bytes.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, data.len()).bytes());
        bytes.extend(*data);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn date(offset: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + offset;
    let mut command = Command::new("date");
    command.env("LC_ALL", "C").args(["-u", "-d", &format!("@{now}"), "+%a, %d %b %Y %H:%M:%S UTC"]);
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
}

fn gpg(home: &Path, arguments: &[&str]) {
    let mut command = Command::new("gpg");
    command.args(["--homedir", home.to_str().unwrap(), "--batch", "--quiet", "--yes", "--passphrase", ""]);
    let out = command.args(arguments).output().expect("these tests need gpg");
    assert!(out.status.success(), "gpg {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn sign(home: &Path, text: &str) -> Vec<u8> {
    let (plain, signed) = (home.join("plain"), home.join("signed"));
    fs::write(&plain, text).unwrap();
    gpg(home, &["--output", signed.to_str().unwrap(), "--clearsign", plain.to_str().unwrap()]);
    fs::read(signed).unwrap()
}

impl Drop for Archive {
    fn drop(&mut self) {
        for home in [self.home.clone(), self.home.with_file_name("other")] {
            // The agent that gpg has started for these keys.
            let _ = Command::new("gpgconf").arg("--homedir").arg(&home).args(["--kill", "all"]).output();
        }
    }
}

fn serve(stream: &TcpStream, state: &State) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || *state.down.lock().unwrap() {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut header = String::new();
        while reader.read_line(&mut header).unwrap_or(0) > 2 {
            header.clear();
        }
        state.asked.lock().unwrap().push(path.clone());
        loop {
            let held = state.held.lock().unwrap().as_ref().is_some_and(|part| path.contains(part));
            if !held {
                break;
            }
            *state.waiting.lock().unwrap() += 1;
            state.changed.notify_all();
            let guard = state.held.lock().unwrap();
            let _ = state.changed.wait_timeout(guard, Duration::from_secs(60)).unwrap();
        }
        let body = state.files.lock().unwrap().get(&path).cloned();
        let (status, body) = match body {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut out = stream;
        if out.write_all(head.as_bytes()).and_then(|()| out.write_all(&body)).is_err() {
            return;
        }
    }
}

//! Images from a server: found, fetched, verified, resumed, shared, renewed; and what a hostile one can do, which is
//! nothing.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::inotify;
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::*;
use crate::pull_server::{Proxy, Server};

/// An image on a server.
struct Offer<'a> {
    os: &'a str,
    release: &'a str,
    arch: &'a str,
    serial: &'a str,
    metadata: Vec<u8>,
    root: Vec<u8>,
    squashfs: Option<Vec<u8>>,
}

const SERIAL: &str = "20261122_05:24";
const NEWER: &str = "20261123_05:24";

fn offer<'a>(os: &'a str, release: &'a str, serial: &'a str) -> Offer<'a> {
    Offer {
        os,
        release,
        arch: own(),
        serial,
        metadata: metadata(METADATA, HOSTS),
        root: small().to_vec(),
        squashfs: None,
    }
}

/// Debian's name of this machine's architecture.
fn own() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lays images out as the LXC project's server does.
fn serve(server: &Server, offers: &[Offer<'_>]) {
    let mut products = serde_json::Map::new();
    for offer in offers {
        let Offer { os, release, arch, serial, .. } = offer;
        let dir = format!("images/{os}/{release}/{arch}/default/{serial}");
        let mut items = serde_json::Map::new();
        let mut item = |name: &str, ftype: &str, bytes: &[u8]| {
            let path = format!("{dir}/{name}");
            items.insert(
                name.to_owned(),
                json!({"ftype": ftype, "sha256": sha256(bytes), "size": bytes.len(), "path": path}),
            );
            server.put(&format!("/{path}"), bytes);
        };
        item("incus.tar.xz", "incus.tar.xz", &offer.metadata);
        match &offer.squashfs {
            Some(bytes) => item("root.squashfs", "squashfs", bytes),
            None => item("root.tar.xz", "root.tar.xz", &offer.root),
        }
        item("disk.qcow2", "disk-kvm.img", b"not for us");
        let name = format!("{}/{release}", os.to_lowercase());
        let product = products.entry(format!("{os}:{release}:{arch}:default")).or_insert_with(|| {
            json!({"aliases": format!("{name}/default,{name}"), "arch": arch, "os": os, "release": release,
                   "release_title": release, "requirements": {}, "variant": "default", "versions": {}})
        });
        product["versions"][*serial] = json!({"items": items});
    }
    let names: Vec<_> = products.keys().cloned().collect();
    let list =
        json!({"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": products});
    let index = json!({"format": "index:1.0", "index": {"images": {"datatype": "image-downloads",
        "format": "products:1.0", "path": "streams/v1/images.json", "products": names}}});
    server.put("/streams/v1/images.json", list.to_string());
    server.put("/streams/v1/index.json", index.to_string());
}

/// Changes what the list says of an image's root.
fn falsify(server: &Server, offers: &[Offer<'_>], key: &str, value: Value) {
    serve(server, offers);
    let offer = &offers[0];
    let root = format!("images/{}/{}/{}/default/{}/root.tar.xz", offer.os, offer.release, offer.arch, offer.serial);
    let item = |hash: String, size: Value| json!({"ftype": "root.tar.xz", "sha256": hash, "size": size, "path": root});
    let mut root = item(sha256(&offer.root), offer.root.len().into());
    root[key] = value;
    let path = format!("images/{}/{}/{}/default/{}/incus.tar.xz", offer.os, offer.release, offer.arch, offer.serial);
    let metadata =
        json!({"ftype": "incus.tar.xz", "sha256": sha256(&offer.metadata), "size": offer.metadata.len(), "path": path});
    let product = json!({"aliases": "tiny/1", "arch": offer.arch, "os": offer.os, "release": offer.release,
        "variant": "default", "versions": {offer.serial: {"items": {"root.tar.xz": root, "incus.tar.xz": metadata}}}});
    server.put("/streams/v1/images.json", json!({"format": "products:1.0", "products": {"x": product}}).to_string());
}

const METADATA: &str = "architecture: x86_64\ncreation_date: 1763877840\nexpiry_date: 4000000000\nproperties:\n  \
    description: A tiny system (20261122_05:24)\ntemplates:\n  /etc/hostname:\n    when:\n    - create\n    - copy\n    \
    create_only: false\n    template: hostname.tpl\n    properties: {}\n  /etc/hosts:\n    when:\n    - create\n    \
    template: hosts.tpl\n    properties: {}\n";
const HOSTS: &str = "127.0.0.1\tlocalhost\n127.0.1.1\t{{ container.name }}\n";

fn metadata(yaml: &str, hosts: &str) -> Vec<u8> {
    let files =
        [("metadata.yaml", yaml), ("templates/hostname.tpl", "{{ container.name }}\n"), ("templates/hosts.tpl", hosts)];
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    liblzma::encode_all(&archive.into_inner().unwrap()[..], 0).unwrap()
}

/// The bare root with a file of that many bytes that nothing can compress.
fn root(incompressible: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", bare()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(incompressible)
    .collect();
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "etc/noise", &noise[..]).unwrap();
    liblzma::encode_all(&archive.into_inner().unwrap()[..], 0).unwrap()
}

fn small() -> &'static [u8] {
    static ROOT: OnceLock<Vec<u8>> = OnceLock::new();
    ROOT.get_or_init(|| root(64))
}

/// Large enough that several connections fetch it.
fn large() -> &'static [u8] {
    static ROOT: OnceLock<Vec<u8>> = OnceLock::new();
    ROOT.get_or_init(|| root(14 << 20))
}

impl World {
    /// Makes a server the default one.
    fn use_server(&self, server: &Server) {
        self.remotes(&format!(
            "default = \"test\"\n[remotes.test]\nurl = \"{}\"\nca = \"{}\"\n",
            server.url,
            server.ca.display()
        ));
    }

    fn remotes(&self, text: &str) {
        fs::write(self.path("remotes.toml"), text).unwrap();
    }

    fn images(&self) -> Value {
        self.ok(&["image", "list", "--json"]).json()
    }

    fn image_names(&self) -> Vec<String> {
        self.images().as_array().unwrap().iter().map(|image| word(&image["name"])).collect()
    }

    /// Begins to watch what is downloaded.
    fn watch_downloads(&self) -> OwnedFd {
        let dir = self.path("images/downloads");
        fs::create_dir_all(&dir).unwrap();
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&watch, &dir, inotify::WatchFlags::MODIFY).unwrap();
        watch
    }

    /// Waits until so many bytes of a file are here, by the downloader's own journal.
    fn wait_until_downloaded(&self, watch: &OwnedFd, bytes: u64) {
        let noted = |text: String| -> u64 {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.map(|(from, to)| to.parse::<u64>().unwrap_or(0).saturating_sub(from.parse().unwrap_or(0))).sum()
        };
        let journals = || {
            let names = entries(&self.path("images/downloads")).into_iter().filter(|name| name.ends_with(".have"));
            names.filter_map(|name| fs::read_to_string(self.path("images/downloads").join(name)).ok())
        };
        while journals().map(noted).sum::<u64>() < bytes {
            assert!(readable_within(watch, LIMIT), "nothing more was downloaded");
            rustix::io::read(watch, &mut [0; 4096][..]).unwrap();
        }
    }

    /// What is being made in the image store: nothing, after any command has ended.
    fn half_made(&self) -> Vec<String> {
        [entries(&self.path("images/tmp")), entries(&self.path("images/layers"))].concat()
    }
}

#[test]
fn an_image_is_found_pulled_and_run_and_afterwards_needs_no_server() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[offer("Tiny", "1.9", SERIAL), offer("Tiny", "1.10", SERIAL), offer("Other", "x", SERIAL)]);
    world.use_server(&server);
    let found = world.ok(&["image", "search", "tiny", "--json"]).json();
    let names: Vec<_> = found.as_array().unwrap().iter().map(|image| word(&image["name"])).collect();
    assert_eq!(names, ["test:tiny/1.10", "test:tiny/1.9"]);
    assert!(world.ok(&["image", "search", "tiny"]).stdout.contains("test:tiny/1.9"));
    assert_eq!(world.lazaret(&["image", "search", "nothing-like-it"]).status, 1);

    // A bare name is the newest release; the image brings its templates.
    world.ok(&["create", "web", "--image", "tiny"]);
    world.ok(&["start", "web"]);
    assert_eq!(world.exec_sh("web", "cat /etc/hostname; cat /etc/hosts"), "web\n127.0.0.1\tlocalhost\n127.0.1.1\tweb");
    assert_eq!(world.exec_sh("web", "stat -c '%u:%g %a' /etc /etc/hosts"), "0:0 755\n0:0 644");
    assert_eq!(word(&world.info("web")["image"]), format!("test:tiny/1.10/{}", own()));

    // From now on nobody is asked.
    server.close();
    server.forget();
    world.ok(&["create", "again", "--image", "tiny"]);
    world.ok(&["create", "same", "--image", "test:tiny/1.10"]);
    let out = world.ok(&["run", "--image", "tiny/1.10", "--", "cat", "/etc/hosts"]);
    assert!(out.stdout.contains("127.0.1.1\trun-"), "{out}");
    assert_eq!(server.asked(""), []);
    let images = world.images();
    assert_eq!(images.as_array().unwrap().len(), 1, "{images}");
    let image = &images[0];
    assert_eq!(word(&image["build"]), SERIAL);
    assert_eq!(word(&image["description"]), "A tiny system (20261122_05:24)");
    assert_eq!(image["expires"], 4_000_000_000u64);
    assert_eq!(image["used_by"], json!(["again", "same", "web"]));
    assert!(world.ok(&["image", "info", "tiny"]).stdout.contains("writes:       /etc/hostname /etc/hosts"));
    // What the server offered is remembered, too; that it is not reached is told.
    assert!(world.ok(&["image", "search", "other"]).stdout.contains("other/x"));
    let out = world.refused(&["create", "new", "--image", "other/x"], &["pulling `other/x`", &server.url]);
    assert!(!out.stderr.contains("panicked"), "{out}");
}

#[test]
fn a_name_that_is_not_there_is_answered_by_those_that_come_closest() {
    let world = World::new();
    let server = Server::new(world.root());
    let foreign = Offer { arch: "s390x", ..offer("Tiny", "2", SERIAL) };
    serve(&server, &[offer("Tiny", "1", SERIAL), offer("Debian", "trixie", SERIAL), foreign]);
    world.use_server(&server);
    world
        .refused(&["create", "web", "--image", "debian/trixi"], &["no image `debian/trixi`", "hint:", "debian/trixie"]);
    world.refused(&["image", "pull", "tniy/1"], &["nearest", "tiny/1"]);
    world.refused(&["image", "pull", "tiny/2"], &["not there for", "s390x"]);
    world.refused(&["image", "pull", "tiny/1@20200101_00:00"], &["no build", SERIAL]);
    world.refused(&["image", "pull", "nowhere:tiny/1"], &["no remote `nowhere`", "`test`"]);
    world.refused(&["create", "web", "--image", "tiny/1/x/y z"], &["names no image"]);
    assert_eq!(world.image_names(), [] as [String; 0]);
    world.remotes("[remotes.a]\nurl = 7\n");
    world.refused(&["image", "pull", "tiny/1"], &["remotes.toml:2"]);
}

#[test]
fn what_is_not_what_the_list_says_is_refused_and_leaves_nothing() {
    let world = World::new();
    let server = Server::new(world.root());
    world.use_server(&server);
    let offers = [offer("Tiny", "1", SERIAL)];
    let pull = ["image", "pull", "tiny/1"];
    falsify(&server, &offers, "sha256", json!("11".repeat(32)));
    world.refused(&pull, &["its SHA-256 is", "but the list says 1111", "do not trust the server"]);
    falsify(&server, &offers, "size", json!(small().len() + 1));
    world.refused(&pull, &["bytes"]);
    falsify(&server, &offers, "size", json!(small().len() - 1));
    world.refused(&pull, &["bytes"]);
    falsify(&server, &offers, "path", json!("../../../etc/passwd"));
    world.refused(&pull, &["there is no image `tiny/1`"]);
    // The root is right, the metadata are others.
    serve(&server, &offers);
    let path = format!("/images/Tiny/1/{}/default/{SERIAL}/incus.tar.xz", own());
    server.put(&path, metadata("properties: {}\n", "x"));
    world.refused(&pull, &["but the list says"]);
    for list in ["", "{", "<html>hello</html>", "[]", &"[".repeat(100_000)] {
        server.put("/streams/v1/images.json", list);
        world.refused(&pull, &["list of images"]);
    }
    assert_eq!((world.image_names(), world.half_made()), (vec![], vec![]));
    // Whatever was tried: the right thing comes as if nothing had been.
    serve(&server, &offers);
    world.ok(&pull);
    assert_eq!(world.image_names(), [format!("test:tiny/1/{}", own())]);
}

#[test]
fn hostile_archives_and_metadata_do_no_harm() {
    let world = World::new();
    let server = Server::new(world.root());
    world.use_server(&server);
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    // A few hundred kilobytes that would be gigabytes.
    let bomb = {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 0);
        let mut header = tar::Header::new_gnu();
        header.set_size(3 << 30);
        header.set_path("etc/zeros").unwrap();
        header.set_cksum();
        std::io::Write::write_all(&mut encoder, header.as_bytes()).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..1200).for_each(|_| std::io::Write::write_all(&mut encoder, &zeros).unwrap());
        encoder.finish().unwrap()
    };
    serve(&server, &[Offer { root: bomb, ..offer("Tiny", "1", SERIAL) }]);
    world.refused(&["image", "pull", "tiny/1"], &["expands to more than"]);
    let cut = liblzma::encode_all(&small()[..100], 0).unwrap();
    serve(&server, &[Offer { root: cut, ..offer("Tiny", "1", SERIAL) }]);
    world.refused(&["image", "pull", "tiny/1"], &["unpacking"]);
    assert_eq!(world.half_made(), [] as [String; 0]);

    // Templates that point outside, through links, at devices: the container is made, and they are named.
    let target = text(&outside);
    let yaml = format!(
        "templates:\n  /../../../../../../../..{target}/a:\n    when: [create]\n    template: hosts.tpl\n  /out/b:\n    \
         when: [create]\n    template: hosts.tpl\n  /dev/null:\n    when: [create]\n    template: hosts.tpl\n  \
         /bin/sh:\n    when: [create]\n    template: hosts.tpl\n  /etc/c:\n    when: [create]\n    template: \
         ../../../../etc/shadow\n  /etc/new/d:\n    when: [create]\n    template: hosts.tpl\n  /etc/passwd:\n    when: \
         [create]\n    create_only: true\n    template: hosts.tpl\n"
    );
    let linked = {
        let plain = liblzma::decode_all(small()).unwrap();
        let mut archive = tar::Builder::new(plain[..plain.len() - 1024].to_vec());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, "out", target).unwrap();
        liblzma::encode_all(&archive.into_inner().unwrap()[..], 0).unwrap()
    };
    serve(
        &server,
        &[Offer { root: linked, metadata: metadata(&yaml, "{{ container.name }}"), ..offer("Tiny", "1", SERIAL) }],
    );
    // A pull asks for the list anew, which `create` need not so soon after.
    let pulled = world.ok(&["image", "pull", "tiny/1"]);
    let made = world.lazaret(&["create", "web", "--image", "tiny/1"]);
    assert_eq!(made.status, 0, "{made}");
    for said in ["/../../", "`/out/b` was not written", "`/bin/sh` was not written", "`/etc/c` is left out"] {
        let heard = pulled.stderr.contains(said) || made.stderr.contains(said);
        assert!(heard, "`{said}`: {pulled}{made}");
    }
    assert_eq!(entries(&outside), [] as [String; 0]);
    world.ok(&["start", "web"]);
    let seen =
        world.exec_sh("web", "cat /etc/new/d; echo; grep -c root /etc/passwd; stat -c '%u %a' /etc/new /etc/new/d");
    assert_eq!(seen, "web\n1\n0 755\n0 644");
}

#[test]
fn a_killed_pull_is_gone_on_with_and_until_then_nothing_is_seen() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[Offer { root: large().to_vec(), ..offer("Tiny", "1", SERIAL) }]);
    world.use_server(&server);
    for (after, there) in [(3 << 20, 2 << 20), (9 << 20, 7 << 20)] {
        server.hold("root.tar.xz", after);
        let downloads = world.watch_downloads();
        let pulling = world.spawn(&["image", "pull", "tiny/1"]);
        world.wait_until_downloaded(&downloads, there);
        pulling.signal(Signal::KILL);
        assert_eq!(pulling.wait().status, -9);
        server.release();
        assert_eq!((world.image_names(), world.half_made()), (vec![], vec![]));
    }
    server.forget();
    world.ok(&["image", "pull", "tiny/1"]);
    let (rest, whole) = (server.sent("root.tar.xz"), large().len() as u64);
    assert!(rest <= whole - (7 << 20), "{rest} of {whole} bytes were fetched again");
    assert!(server.asked("root.tar.xz").iter().all(|asked| asked.from.is_some_and(|from| from > 0)));
    assert_eq!(entries(&world.path("images/downloads")), [] as [String; 0], "the download goes when it is unpacked");
    world.ok(&["image", "verify", "tiny/1"]);
    let noise = world.ok(&["run", "--image", "tiny/1", "--", "sha256sum", "/etc/noise"]).stdout;
    let plain = world.ok(&["image", "info", "tiny/1", "--json"]).json();
    let tree = Path::new(plain[0]["rootfs"].as_str().unwrap()).join("etc/noise");
    assert_eq!(noise.split(' ').next().unwrap(), sha256(&fs::read(tree).unwrap()));
}

#[test]
fn what_an_earlier_try_left_damaged_is_fetched_anew() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[Offer { root: large().to_vec(), ..offer("Tiny", "1", SERIAL) }]);
    world.use_server(&server);
    server.hold("root.tar.xz", 6 << 20);
    let downloads = world.watch_downloads();
    let pulling = world.spawn(&["image", "pull", "tiny/1"]);
    world.wait_until_downloaded(&downloads, 3 << 20);
    pulling.signal(Signal::KILL);
    pulling.wait();
    server.release();
    let downloads = entries(&world.path("images/downloads"));
    let part = downloads.iter().find(|name| name.ends_with(".part")).unwrap();
    let file = fs::OpenOptions::new().write(true).open(world.path("images/downloads").join(part)).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"damaged by a power cut", 1 << 20).unwrap();
    world.ok(&["image", "pull", "tiny/1"]);
    assert_eq!(world.image_names().len(), 1);
}

#[test]
fn those_who_want_the_same_at_the_same_time_share_one_download() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[Offer { root: large().to_vec(), ..offer("Tiny", "1", SERIAL) }]);
    world.use_server(&server);
    server.hold("root.tar.xz", 5 << 20);
    let first = world.spawn(&["image", "pull", "tiny/1"]);
    server.wait_until_held();
    let mut others: Vec<_> = [["create", "a"], ["create", "b"]]
        .map(|words| world.spawn(&[&words[..], &["--image", "tiny/1"]].concat()))
        .into();
    for other in &mut others {
        other.expect_error("waiting for that one");
    }
    server.release();
    for done in [first].into_iter().chain(others) {
        let out = done.wait();
        assert_eq!(out.status, 0, "{out}");
    }
    assert_eq!(server.sent("root.tar.xz"), large().len() as u64, "each byte is sent once");
    assert_eq!(world.images()[0]["used_by"], json!(["a", "b"]));
}

#[test]
fn a_cut_line_a_server_without_parts_and_a_mirror_are_all_good_enough() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[Offer { root: large().to_vec(), ..offer("Tiny", "1", SERIAL) }]);
    world.use_server(&server);
    server.cut("root.tar.xz", 6 << 20, 3);
    world.ok(&["image", "pull", "tiny/1"]);
    let sent = server.sent("root.tar.xz");
    assert!(sent < large().len() as u64 + (4 << 20), "{sent} bytes were sent of {}", large().len());

    world.ok(&["image", "remove", "tiny/1"]);
    server.no_parts();
    world.ok(&["image", "pull", "tiny/1"]);
    world.ok(&["image", "verify"]);

    // The first place has the lists and nothing else.
    world.ok(&["image", "remove", "tiny/1"]);
    let mirror = Server::new(world.root());
    serve(&mirror, &[Offer { root: large().to_vec(), ..offer("Tiny", "1", SERIAL) }]);
    let path = format!("/images/Tiny/1/{}/default/{SERIAL}/root.tar.xz", own());
    server.take(&path);
    // One authority for both.
    let both = world.path("both.pem");
    fs::write(&both, [fs::read(&server.ca).unwrap(), fs::read(&mirror.ca).unwrap()].concat()).unwrap();
    let with = |first: &Server, second: &Server| {
        world.remotes(&format!(
            "default = \"test\"\n[remotes.test]\nurl = \"{}\"\nmirrors = [\"{}\"]\nca = \"{}\"\n",
            first.url,
            second.url,
            both.display()
        ));
    };
    with(&server, &mirror);
    world.ok(&["image", "pull", "tiny/1"]);
    assert_eq!(mirror.sent("root.tar.xz"), large().len() as u64);
    // The first place is gone altogether.
    world.ok(&["image", "remove", "tiny/1"]);
    server.close();
    world.ok(&["image", "pull", "tiny/1"]);
}

#[test]
fn only_a_server_that_can_be_trusted_is_believed_and_errors_say_why() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[offer("Tiny", "1", SERIAL)]);
    world.remotes(&format!("default = \"test\"\n[remotes.test]\nurl = \"{}\"\n", server.url));
    world.refused(&["image", "pull", "tiny/1"], &["can't be trusted", "ca = \""]);
    // The right authority by the variable that other programs know, too.
    let mut pull = world.command(&["image", "pull", "tiny/1"]);
    pull.env("SSL_CERT_FILE", &server.ca);
    assert_eq!(world.run(pull, b"").status, 0);
    let name = server.url.replace("127.0.0.1", "localhost");
    let ca = server.ca.display();
    world.remotes(&format!("default = \"test\"\n[remotes.test]\nurl = \"{name}\"\nca = \"{ca}\"\n"));
    world.refused(&["image", "pull", "tiny/1"], &["can't be trusted"]);
    world.remotes("default = \"test\"\n[remotes.test]\nurl = \"https://127.0.0.1:9\"\n");
    world.refused(&["image", "pull", "tiny/1"], &["connection refused"]);
    world.remotes("default = \"test\"\n[remotes.test]\nurl = \"http://127.0.0.1:9\"\n");
    world.refused(&["image", "pull", "tiny/1"], &["plain http", "insecure = true"]);
}

#[test]
fn proxies_are_used_where_the_caller_has_one() {
    let world = World::new();
    let (server, proxy) = (Server::new(world.root()), Proxy::new());
    serve(&server, &[offer("Tiny", "1", SERIAL)]);
    world.use_server(&server);
    let pull = |variables: &[(&str, &str)]| {
        let mut command = world.command(&["image", "pull", "tiny/1"]);
        command.envs(variables.iter().copied());
        world.run(command, b"")
    };
    let out = pull(&[("https_proxy", &proxy.url), ("no_proxy", "localhost")]);
    assert_eq!(out.status, 0, "{out}");
    assert!(
        !proxy.tunnels().is_empty() && proxy.tunnels().iter().all(|to| *to == server.host),
        "{:?}",
        proxy.tunnels()
    );
    let before = proxy.tunnels().len();
    assert_eq!(pull(&[("HTTPS_PROXY", &proxy.url), ("NO_PROXY", "127.0.0.1")]).status, 0);
    assert_eq!(proxy.tunnels().len(), before);
    let out = pull(&[("https_proxy", "http://127.0.0.1:9")]);
    assert!(out.stderr.contains("is not of today") && out.stderr.contains("connection refused"), "{out}");
}

#[test]
fn newer_builds_come_when_asked_for_and_old_ones_go_with_their_last_container() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[offer("Tiny", "1", SERIAL)]);
    world.use_server(&server);
    world.ok(&["create", "old", "--image", "tiny"]);
    serve(&server, &[offer("Tiny", "1", SERIAL), Offer { root: root(128), ..offer("Tiny", "1", NEWER) }]);
    // A container more does not ask; who asks is told.
    world.ok(&["create", "same", "--image", "tiny"]);
    let name = format!("test:tiny/1/{}", own());
    let looked = world.ok(&["image", "refresh", "--check", "--json"]).json();
    assert_eq!(looked, json!([{"name": name, "build": SERIAL, "newest": NEWER, "error": null}]));
    assert_eq!(word(&world.images()[0]["build"]), SERIAL, "looking changes nothing");
    world.ok(&["image", "refresh"]);
    assert_eq!(word(&world.images()[0]["build"]), NEWER);
    world.ok(&["create", "new", "--image", "tiny"]);
    let tree = |container: &str| word(&world.info(container)["rootfs"]);
    assert_eq!(tree("old"), tree("same"));
    assert_ne!(tree("old"), tree("new"));
    // The old build by its number, beside the new one.
    world.ok(&["image", "pull", &format!("tiny/1@{SERIAL}")]);
    assert_eq!(world.image_names(), [name.clone(), format!("{name}@{SERIAL}")]);
    world.refused(&["image", "remove", &format!("tiny/1@{SERIAL}")], &["`old`", "`same`", "--force"]);
    world.ok(&["image", "remove", "--force", &format!("tiny/1@{SERIAL}")]);
    assert!(world.ok(&["image", "prune"]).stdout.is_empty(), "containers stand on it");
    let old_tree = tree("old");
    world.ok(&["destroy", "old"]);
    world.ok(&["destroy", "same"]);
    let pruned = world.ok(&["image", "prune", "--dry-run"]).stdout;
    assert!(pruned.contains("root.tar.xz") && Path::new(&old_tree).exists(), "{pruned}");
    world.ok(&["image", "prune"]);
    assert!(!Path::new(&old_tree).exists());
    assert_eq!(world.image_names(), [name]);
    // A server that does not answer is no reason to lose anything.
    server.close();
    let out = world.lazaret(&["image", "refresh"]);
    assert!(out.stdout.contains("up to date") || out.status == 1, "{out}");
    world.ok(&["create", "more", "--image", "tiny/1"]);
}

#[test]
fn a_build_that_was_replaced_a_moment_ago_is_pulled_by_a_new_list() {
    let world = World::new();
    let server = Server::new(world.root());
    let names = ["grown", "shrunk", "other", "gone"];
    // Each release has a root of its own: one that is here is not fetched.
    let of_gone = |bytes: usize| root(bytes + 300);
    let releases = |bytes: usize, serial| {
        let offer = |at| Offer { root: root(bytes + 100 * at), ..offer("Tiny", names[at], serial) };
        serve(&server, &[0, 1, 2, 3].map(offer));
    };
    world.use_server(&server);
    releases(1000, SERIAL);
    assert_eq!(world.ok(&["image", "search", "tiny", "--json"]).json().as_array().unwrap().len(), 4);
    // Under the same paths: longer ones, shorter ones.
    for (name, bytes) in [("grown", 5000), ("shrunk", 10), ("other", 1001)] {
        releases(bytes, SERIAL);
        world.ok(&["create", name, "--image", &format!("tiny/{name}")]);
    }
    // What is not what the new list says either is refused, and is not fetched a third time.
    let path = format!("/images/Tiny/gone/{}/default/{SERIAL}/root.tar.xz", own());
    let mut spoilt = of_gone(1001);
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    server.put(&path, spoilt);
    server.forget();
    world.refused(&["create", "gone", "--image", "tiny/gone"], &["do not trust the server"]);
    assert_eq!(server.asked("index.json").len(), 1);
    // Under another path, while the old one is gone.
    releases(2000, NEWER);
    server.take(&path);
    world.ok(&["create", "gone", "--image", "tiny/gone"]);
}

#[test]
fn an_expired_image_is_renewed_if_that_can_be_had() {
    let world = World::new();
    let server = Server::new(world.root());
    let stale = METADATA.replace("4000000000", "1000000000");
    serve(&server, &[Offer { metadata: metadata(&stale, HOSTS), ..offer("Tiny", "1", SERIAL) }]);
    world.use_server(&server);
    world.ok(&["image", "pull", "tiny/1"]);
    assert!(world.ok(&["image", "list"]).stdout.contains("expired"));
    serve(&server, &[Offer { root: root(128), ..offer("Tiny", "1", NEWER) }]);
    world.ok(&["create", "web", "--image", "tiny/1"]);
    assert_eq!(word(&world.images()[0]["build"]), NEWER);

    serve(&server, &[Offer { metadata: metadata(&stale, HOSTS), ..offer("Late", "1", SERIAL) }]);
    world.ok(&["image", "pull", "late/1"]);
    server.close();
    fs::remove_dir_all(world.path("images/catalogues")).unwrap();
    let out = world.lazaret(&["create", "late", "--image", "late/1"]);
    assert!(out.status == 0 && out.stderr.contains("expired") && out.stderr.contains("can't be renewed"), "{out}");
}

#[test]
fn what_was_changed_behind_our_back_is_found() {
    let world = World::new();
    let server = Server::new(world.root());
    serve(&server, &[offer("Tiny", "1", SERIAL)]);
    world.use_server(&server);
    world.ok(&["image", "pull", "tiny/1"]);
    world.ok(&["image", "verify"]);
    let verified = world.ok(&["image", "verify", "tiny/1", "--json"]).json();
    assert_eq!((&verified[0]["sound"], &verified[0]["compared"]), (&json!(true), &json!(true)), "{verified}");
    let tree = word(&world.images()[0]["rootfs"]);
    let passwd = Path::new(&tree).join("etc/passwd");
    let mut text = fs::read_to_string(&passwd).unwrap();
    text = text.replace("/bin/sh", "/bin/xx");
    fs::write(&passwd, text).unwrap();
    let out = world.lazaret(&["image", "verify"]);
    assert_eq!(out.status, 1, "{out}");
    assert!(out.stdout.contains("NOT as it was") && out.stdout.contains("digest"), "{out}");
}

#[test]
fn a_root_that_comes_as_squashfs_is_unpacked_with_all_that_it_holds() {
    let world = World::new();
    let server = Server::new(world.root());
    world.use_server(&server);
    let (tree, image) = (world.path("tree"), world.path("root.squashfs"));
    let script = format!(
        "cp -a {bare} {tree} && cd {tree} && mknod dev/zero c 1 5 && mkfifo etc/fifo && chmod 4755 bin/busybox && \
         setfattr -n user.note -v x etc/passwd && ln etc/group etc/group2 && chown 1234:4321 etc/group && \
         mksquashfs {tree} {image} -quiet -no-progress",
        bare = bare().display(),
        tree = tree.display(),
        image = image.display()
    );
    let made = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bytes = fs::read(&image).unwrap();
    serve(&server, &[Offer { squashfs: Some(bytes.clone()), ..offer("Tiny", "1", SERIAL) }]);
    world.ok(&["image", "pull", "tiny/1"]);
    let rootfs = word(&world.images()[0]["rootfs"]);
    let looked = Command::new("sh")
        .args([
            "-c",
            "cd $0 && stat -c '%F %t:%T' dev/zero && stat -c %F etc/fifo && stat -c %a bin/busybox && \
            getfattr --only-values -n user.note etc/passwd && echo && stat -c '%h %u:%g' etc/group",
            &rootfs,
        ])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&looked.stdout),
        "character special file 1:5\nfifo\n4755\nx\n2 1234:4321\n",
        "{}",
        String::from_utf8_lossy(&looked.stderr)
    );
    assert_eq!(world.ok(&["run", "--image", "tiny/1", "--", "id", "-u"]).stdout, "0\n");
    // The same file by hand.
    world.ok(&["image", "import", text(&image), "mine"]);
    assert_eq!(world.ok(&["run", "--image", "mine", "--", "id", "-u"]).stdout, "0\n");
    // Damaged: refused, and nothing is left.
    let mut damaged = bytes;
    let middle = damaged.len() / 2;
    damaged[middle..middle + 4096].fill(0x55);
    let path = world.path("damaged.squashfs");
    fs::write(&path, damaged).unwrap();
    world.refused(&["image", "import", text(&path), "bad"], &["unsquashfs"]);
    assert_eq!(entries(&world.path("images/tmp")), [] as [String; 0]);
}

//! Images of OCI and docker: from a layout, from archives as skopeo writes them, from a registry; run as they say.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::*;
use crate::pull_server::Server;

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A file of a layer: its name, what it is, its content or target.
type Piece<'a> = (&'a str, tar::EntryType, &'a str);

fn layer(pieces: &[Piece<'_>], with_root: bool) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    if with_root {
        archive.append_dir_all(".", bare()).unwrap();
    }
    for (name, kind, content) in pieces {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o644 });
        match kind {
            tar::EntryType::Link | tar::EntryType::Symlink => {
                header.set_size(0);
                archive.append_link(&mut header, name, content).unwrap();
            }
            _ => {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIR: tar::EntryType = tar::EntryType::Directory;
const LINK: tar::EntryType = tar::EntryType::Link;
const SYMLINK: tar::EntryType = tar::EntryType::Symlink;

/// Two layers, the upper of which hides, replaces and adds.
fn layers() -> [Vec<u8>; 2] {
    let lower: &[Piece<'_>] = &[
        ("srv/old", FILE, "old"),
        ("srv/kept", FILE, "kept"),
        ("etc/gone/a", FILE, "a"),
        ("etc/gone/b/c", FILE, "c"),
        ("opaque/deep/x", FILE, "x"),
        ("opaque/y", FILE, "y"),
        ("was/a/directory", FILE, "d"),
        ("usrlib/real", FILE, "r"),
        ("lib", SYMLINK, "usrlib"),
    ];
    let upper: &[Piece<'_>] = &[
        ("opaque/z", FILE, "z"),
        ("opaque/deep/new", FILE, "n"),
        ("opaque/.wh..wh..opq", FILE, ""),
        ("srv/.wh.old", FILE, ""),
        ("etc/.wh.gone", FILE, ""),
        ("etc/.wh.never", FILE, ""),
        ("was", FILE, "a file now"),
        ("lib/added", FILE, "through the link"),
        ("srv/linked", LINK, "srv/kept"),
        ("etc/fresh", DIR, ""),
        ("etc/fresh/in", FILE, "in"),
    ];
    [layer(lower, true), layer(upper, false)]
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Blobs by their digests.
type Blobs = Vec<(String, Vec<u8>)>;

/// The documents and blobs of an image, by digest; the manifest comes back, too.
fn blobs(layers: &[Vec<u8>], config: Value) -> (Blobs, Vec<u8>) {
    let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({"architecture": arch, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
    .into_bytes();
    let packed: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let described: Vec<_> = packed
        .iter()
        .map(|bytes| json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(bytes), "size": bytes.len()}))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&config), "size": config.len()},
        "layers": described})
    .to_string()
    .into_bytes();
    let all = packed.into_iter().chain([config, manifest.clone()]).map(|bytes| (digest(&bytes), bytes)).collect();
    (all, manifest)
}

/// Writes an image as a layout.
fn layout(dir: &Path, layers: &[Vec<u8>], config: Value) {
    let (blobs, manifest) = blobs(layers, config);
    let sums = dir.join("blobs/sha256");
    fs::create_dir_all(&sums).unwrap();
    for (name, bytes) in blobs {
        fs::write(sums.join(name.strip_prefix("sha256:").unwrap()), bytes).unwrap();
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let line = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest),
        "size": manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "registry.example/team/app:1"}});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [line]}).to_string()).unwrap();
}

/// An image that says what it was given.
fn talker() -> Value {
    json!({
        "Entrypoint": ["/bin/sh", "-c", "echo \"$GREETING $PWD $(id -u):$(id -g) $*\"", "sh"], "Cmd": ["default", "words"],
        "Env": ["GREETING=hello", "PATH=/bin"], "User": "user", "WorkingDir": "/srv", "StopSignal": "SIGINT",
    })
}

const SEEN: &str = "cat /srv/kept /srv/linked /was /lib/added /opaque/z /opaque/deep/new; ls -A /srv /opaque /opaque/deep; \
    ls -d /etc/gone /etc/fresh/in /lib /usrlib/real; stat -c %h /srv/kept; find / -xdev -name '.wh.*'; true";
const EXPECTED: &str = "keptkepta file nowthrough the linkzn/opaque:\ndeep\nz\n\n/opaque/deep:\nnew\n\n/srv:\nkept\nlinked\n\
    /etc/fresh/in\n/lib\n/usrlib/real\n2\n";

/// Runs a command in an image whose entry point is a shell's.
#[track_caller]
fn look(world: &World, image: &str) -> String {
    world.ok(&["create", "look", "--image", image, "--set", "init=lazaret"]);
    world.ok(&["start", "look"]);
    let seen = world.ok(&["exec", "look", "--", "sh", "-c", SEEN]).stdout;
    world.ok(&["destroy", "--force", "look"]);
    seen
}

#[test]
fn layers_are_put_over_each_other_whatever_they_come_in() {
    let world = World::new();
    let dir = world.path("layout");
    layout(&dir, &layers(), talker());
    world.ok(&["image", "import", &format!("oci:{}", text(&dir)), "from-layout"]);
    assert_eq!(look(&world, "from-layout"), EXPECTED);
    let tree = |image: &str| word(&world.ok(&["image", "info", image, "--json"]).json()[0]["rootfs"]);

    // The same by skopeo's hand, in both kinds of archives.
    for kind in ["oci-archive", "docker-archive"] {
        let file = world.path(&format!("{kind}.tar"));
        let (from, to) = (format!("oci:{}", text(&dir)), format!("{kind}:{}:team/app:1", text(&file)));
        let copied = Command::new("skopeo").args(["--insecure-policy", "copy", "-q", &from, &to]).output();
        let copied = copied.expect("these tests need skopeo: apt-get install skopeo");
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let name = format!("from-{kind}");
        world.ok(&["image", "import", text(&file), &name]);
        assert_eq!(tree(&name), tree("from-layout"), "the same layers are the same tree");
        // And named as skopeo names it; its own name comes along.
        let imported = world.ok(&["image", "import", &format!("{kind}:{}", text(&file)), "--json"]).json();
        assert_eq!(word(&imported["name"]), "app/1");
        world.refused(&["image", "import", &format!("{kind}:{}:2", text(&file))], &["no image `2`"]);
    }
    let out = world.ok(&["run", "--image", &format!("oci:{}", text(&dir))]);
    assert_eq!(out.stdout, "hello /srv 1000:1000 default words\n");
    assert_eq!(entries(&world.path("images/tmp")), [] as [String; 0]);
}

#[test]
fn an_image_runs_what_it_is_made_for_unless_told_otherwise() {
    let world = World::new();
    let dir = world.path("layout");
    layout(&dir, &layers(), talker());
    world.ok(&["image", "import", &format!("oci:{}", text(&dir)), "talker"]);
    let run = |words: &[&str]| world.ok(&[&["run", "--image", "talker"], words].concat()).stdout;
    assert_eq!(run(&[]), "hello /srv 1000:1000 default words\n");
    assert_eq!(run(&["--", "mine"]), "hello /srv 1000:1000 mine\n");
    assert_eq!(run(&["-e", "GREETING=bye", "-u", "root", "-w", "/", "--", "x"]), "bye / 0:0 x\n");
    assert_eq!(run(&["--set", "env.GREETING=set", "--", "x"]), "set /srv 1000:1000 x\n");
    assert_eq!(world.lazaret(&["run", "--image", text(&bare())]).status, 125, "nothing says what to run");

    // Started, it is the container's life: it ends with it, and what it said is in the log.
    world.ok(&["create", "once", "--image", "talker"]);
    world.ok(&["start", "once"]);
    world.wait("once", "stopped");
    assert!(world.ok(&["logs", "once"]).stdout.contains("hello /srv 1000:1000 default words"));

    let dir = world.path("service");
    let config = json!({"Cmd": ["/bin/sleep", "1000"], "Env": ["NAME=service"], "StopSignal": "SIGKILL"});
    layout(&dir, &layers(), config);
    world.ok(&["create", "web", "--image", &format!("oci:{}", text(&dir))]);
    world.ok(&["start", "web"]);
    assert_eq!(world.exec_sh("web", "echo $NAME; tr '\\0' ' ' < /proc/2/cmdline"), "service\n/bin/sleep 1000 ");
    assert_eq!(world.ok(&["config", "web", "get", "stop_signal"]).stdout.trim(), "SIGKILL");
    world.ok(&["stop", "web"]);

    // An init is an init: process 1 itself, as in any image of a whole system.
    let dir = world.path("system");
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", busybox()).unwrap();
    layout(&dir, &[archive.into_inner().unwrap()], json!({"Entrypoint": ["/sbin/init"]}));
    world.ok(&["create", "system", "--image", &format!("oci:{}", text(&dir))]);
    world.ok(&["start", "system"]);
    assert_eq!(world.exec("system", &["cat", "/proc/1/comm"]), "init");
}

#[test]
fn an_image_that_lies_about_itself_is_refused() {
    let world = World::new();
    let import = |dir: &Path| format!("oci:{}", text(dir));
    let make = |name: &str| -> PathBuf {
        let dir = world.path(name);
        layout(&dir, &layers(), talker());
        dir
    };
    let blob = |dir: &Path, largest: bool| {
        let mut all: Vec<_> =
            fs::read_dir(dir.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
        all.sort_by_key(|path| fs::metadata(path).unwrap().len());
        if largest { all.pop().unwrap() } else { all.remove(0) }
    };
    // A layer that was changed on the way.
    let dir = make("changed");
    let layers = layers();
    fs::write(blob(&dir, true), gzip(&layers[1])).unwrap();
    world.refused(&["image", "import", &import(&dir), "bad"], &["layer 1 of 2", "but the image says"]);
    // A document that was.
    let dir = make("document");
    let manifest = fs::read_to_string(dir.join("index.json")).unwrap();
    let hex = manifest.split("sha256:").nth(1).unwrap()[..64].to_owned();
    fs::write(dir.join("blobs/sha256").join(hex), "{}").unwrap();
    world.refused(&["image", "import", &import(&dir), "bad"], &["its SHA-256 is"]);
    // A blob that is a link to a file of the host's.
    let dir = make("link");
    let target = blob(&dir, true);
    fs::remove_file(&target).unwrap();
    symlink("/etc/shadow", &target).unwrap();
    world.refused(&["image", "import", &import(&dir), "bad"], &["layer 1 of 2"]);
    // A layer under the name of another: it must not be found by those who trust that name.
    let dir = world.path("false-name");
    let evil = layer(&[("etc/evil", FILE, "x")], true);
    let (mut all, manifest) = blobs(&[layers[0].clone()], talker());
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let packed = gzip(&evil);
    manifest["layers"][0]["digest"] = digest(&packed).into();
    manifest["layers"][0]["size"] = packed.len().into();
    let manifest = manifest.to_string().into_bytes();
    all.extend([(digest(&packed), packed), (digest(&manifest), manifest.clone())]);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for (name, bytes) in all {
        fs::write(dir.join("blobs/sha256").join(name.strip_prefix("sha256:").unwrap()), bytes).unwrap();
    }
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = json!({"manifests": [{"digest": digest(&manifest), "size": manifest.len()}]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    world.refused(&["image", "import", &import(&dir), "bad"], &["its diff id is", "but the image says"]);
    // Whiteouts that point elsewhere, and more files than a mark may hide.
    for name in [".wh.", "srv/.wh..", "srv/.wh..."] {
        let dir = world.path(&format!("mark{}", name.len()));
        layout(&dir, &[layers[0].clone(), layer(&[(name, FILE, "")], false)], talker());
        world.refused(&["image", "import", &import(&dir), "bad"], &["hides nothing that has a name"]);
    }
    let dir = world.path("windows");
    layout(&dir, &layers, talker());
    world.refused(&["image", "import", "oci:/nowhere", "bad"], &["importing `/nowhere`"]);
    world.refused(&["image", "import", &format!("oci:{}", text(&bare())), "bad"], &["no OCI layout"]);
    assert_eq!(entries(&world.path("images/tmp")), [] as [String; 0]);
    assert!(!world.ok(&["image", "list", "--json"]).stdout.contains("bad"));
}

#[test]
fn a_registry_is_asked_as_the_specification_says() {
    let world = World::new();
    let (server, blobs, manifest) = registry(&world);
    let arch = if std::env::consts::ARCH == "x86_64" { "amd64" } else { "arm64" };
    let line = |arch: &str, digest: String| {
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
               "platform": {"os": "linux", "architecture": arch}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [line("s390x", digest(b"other")), line(arch, digest(&manifest))]});
    server.put("/v2/team/app/manifests/1.0", index.to_string());
    server.put(&format!("/v2/team/app/manifests/{}", digest(&manifest)), &manifest[..]);
    server.want_token("secret-of-the-test");

    let name = format!("docker://{}/team/app:1.0", server.host);
    let out = world.ok(&["run", "--image", &name]);
    assert_eq!(out.stdout, "hello /srv 1000:1000 default words\n", "{out}");
    let layers: Vec<_> = server.asked("").into_iter().filter(|asked| asked.path.contains("/blobs/")).collect();
    assert!(
        layers.iter().all(|asked| asked.authorization.as_deref() == Some("Bearer secret-of-the-test")),
        "{layers:?}"
    );
    assert_eq!(entries(&world.path("images/downloads")), [] as [String; 0]);

    // By the name of a remote, and by digest: the layers are here.
    server.forget();
    world.ok(&["image", "pull", "hub:team/app:1.0"]);
    world.ok(&["image", "pull", &format!("docker://{}/team/app@{}", server.host, digest(&manifest))]);
    let (_, largest) = blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    assert!(server.sent("") < largest.len() as u64 / 2, "no layer is fetched again");
    let here = world.ok(&["image", "list", "--names"]).stdout;
    assert_eq!(here.lines().count(), 2, "{here}");
    server.close();
    assert_eq!(world.ok(&["run", "--image", "hub:team/app:1.0", "--", "x"]).stdout, "hello /srv 1000:1000 x\n");
    world.refused(&["image", "pull", "hub:team/app:2"], &["pulling"]);
}

#[test]
fn a_registry_that_wants_a_login_gets_the_persons() {
    // `person:secret`, and a wrong password.
    const RIGHT: &str = "cGVyc29uOnNlY3JldA==";
    const WRONG: &str = "cGVyc29uOm90aGVy";
    let world = World::new();
    let (server, _, manifest) = registry(&world);
    server.put("/v2/team/app/manifests/latest", &manifest[..]);
    server.want_login(RIGHT);
    let name = format!("docker://{}/team/app", server.host);
    let file = world.path("auth.json");
    let pull = |login: Option<&str>| {
        let auths = login.map_or_else(|| json!({}), |login| json!({&server.host: {"auth": login}}));
        fs::write(&file, json!({"auths": auths}).to_string()).unwrap();
        let pull = ["image", "pull", &name];
        world.command(&pull).env("REGISTRY_AUTH_FILE", &file).output().unwrap()
    };
    let refused = |login: Option<&str>, words: &str| {
        let out = pull(login);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains(words), "{said}");
        assert!(!said.contains(WRONG), "{said}");
    };
    refused(None, "wants a login");
    refused(Some(WRONG), "the login that is known for it may be wrong");
    assert!(pull(Some(RIGHT)).status.success());
    world.ok(&["image", "remove", &name]);

    // By a token, which is what is shown then.
    server.want_token("of-the-person");
    server.forget();
    refused(None, "podman login");
    refused(Some(WRONG), "may be wrong");
    assert!(pull(Some(RIGHT)).status.success());
    let asked = server.asked("");
    let shown: Vec<_> = asked.iter().filter(|asked| asked.path.contains("/blobs/")).collect();
    assert!(!shown.is_empty());
    assert!(shown.iter().all(|asked| asked.authorization.as_deref() == Some("Bearer of-the-person")), "{shown:?}");
}

#[test]
fn a_registry_that_gives_something_else_is_not_believed() {
    let world = World::new();
    let (server, blobs, manifest) = registry(&world);
    server.put("/v2/team/app/manifests/latest", &manifest[..]);
    let pinned = digest(b"another");
    server.put(&format!("/v2/team/app/manifests/{pinned}"), &manifest[..]);
    let name = format!("docker://{}/team/app", server.host);
    world.refused(&["image", "pull", &format!("{name}@{pinned}")], &["the SHA-256 of `manifests/sha256:"]);
    world.refused(&["image", "pull", &format!("{name}:none")], &["404", "is the repository's name right"]);
    let (largest, bytes) = blobs.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut damaged = bytes.clone();
    damaged[100] ^= 1;
    server.put(&format!("/v2/team/app/blobs/{largest}"), damaged);
    world.refused(&["image", "pull", &name], &["its SHA-256 is"]);
    server.put("/v2/team/app/manifests/latest", "{}");
    world.refused(&["image", "pull", &name], &["neither a manifest nor an index"]);
    assert_eq!(world.ok(&["image", "list", "--names"]).stdout, "");
    assert_eq!(entries(&world.path("images/tmp")), [] as [String; 0]);
}

/// A registry that `world` knows, with the blobs of `team/app`; and these, and its manifest, which it has not yet.
fn registry(world: &World) -> (Server, Blobs, Vec<u8>) {
    let server = Server::new(world.root());
    world_with(world, &server);
    let (blobs, manifest) = blobs(&layers(), talker());
    for (name, bytes) in &blobs {
        server.put(&format!("/v2/team/app/blobs/{name}"), &bytes[..]);
    }
    (server, blobs, manifest)
}

fn world_with(world: &World, server: &Server) {
    let remotes =
        format!("[remotes.hub]\nurl = \"{}\"\nprotocol = \"oci\"\nca = \"{}\"\n", server.url, server.ca.display());
    fs::write(world.path("remotes.toml"), remotes).unwrap();
}

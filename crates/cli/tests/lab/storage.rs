//! Snapshots, copies, exports and images of containers: what is kept comes back byte for byte, whoever is killed and
//! however full the disk.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::*;
use crate::survive::{FILL, FREE, killed_before_each_change, small_disk};

// --- the tree of everything ---

/// All that a file can be, within what a container's ids reach. Made in the working directory.
const EVERYTHING: &str = r#"
umask 022
mkdir -p usr/bin usr/lib etc/deep/er var/log shared sticky closed
printf 1 > one; : > empty; head -c 513 /dev/urandom > odd; head -c 3000000 /dev/urandom > usr/lib/large
printf x > usr/bin/su; chmod 4755 usr/bin/su; printf x > usr/bin/wall; chown 0:5 usr/bin/wall; chmod 2755 usr/bin/wall
printf x > secret; chmod 0000 secret; chown 1234:5678 secret; printf x > last; chown 65535:65535 last
chmod 2775 shared; chown 0:50 shared; printf x > shared/of-root; chmod 1777 sticky; chmod 0000 closed
printf x > 'with space'; printf x > $'new\nline'; printf x > -- '-dash'; printf x > 'a..b'; printf x > 'back\slash'
printf x > $'not-utf8-\xff\xfe'; printf x > 'ünïcödé'
long=$(printf 'l%.0s' $(seq 255)); mkdir -p "$long/$long"; printf x > "$long/$long/$long"; ln "$long/$long/$long" short
ln one usr/bin/also-one; ln one etc/deep/er/again
ln -s /etc/shadow etc/absolute; ln -s ../../../../../../../../etc/shadow etc/deep/relative; ln -s / etc/everything
ln -s nowhere etc/dangling; chown -h 77:88 etc/dangling; ln etc/dangling etc/same-link; ln -s "$long/$long/$long" far
mkfifo var/fifo; chmod 0620 var/fifo; mknod var/null c 1 3; chmod 0666 var/null; chown 3:4 var/null
mknod var/loop b 7 200
truncate -s 5M all-hole; truncate -s 3M begins; printf end >> begins
head -c 70000 /dev/urandom > ends; truncate -s 2M ends
setfattr -n user.text -v 'a value' one; setfattr -n user.binary -v 0x0a003d0a31323320613d620a one
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" one; setfattr -n user.dir -v z etc
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/bin/su
setfacl -m u:1000:rw,g:4:r,m::rw one; setfacl -m u:1:rw var/fifo
setfacl -m u:1000:rwx,g:65535:rx -m d:u:1000:rwx,d:g:4:rx,d:m::rwx var/log
touch -d '2003-04-05 06:07:08.123456789' one usr etc; touch -d '1969-12-31 23:59:58.250000000' empty
touch -h -d '2010-01-01 00:00:00.000000001' etc/absolute; touch -d '2011-01-01 00:00:00.5' .
"#;

#[track_caller]
fn bash(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").arg("-ec").arg(script).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A line for each file of a tree, with all that can be said of it. `shift` is taken off every id.
fn manifest(root: &Path, shift: u32) -> BTreeMap<String, String> {
    let (mut lines, mut names, mut todo) = (BTreeMap::new(), BTreeMap::new(), vec![root.to_owned()]);
    let mut paths = Vec::new();
    while let Some(path) = todo.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let inode = path.symlink_metadata().unwrap().ino();
        let first: String = names.entry(inode).or_insert_with(|| name.clone()).clone();
        lines.insert(name, describe(&path, &first, shift));
    }
    lines
}

fn describe(path: &Path, first: &str, shift: u32) -> String {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let (uid, gid) = (meta.uid().wrapping_sub(shift), meta.gid().wrapping_sub(shift));
    let mut line = format!("{:o} {uid}:{gid} {}.{:09}", meta.mode(), meta.mtime(), meta.mtime_nsec());
    if !kind.is_dir() && meta.nlink() > 1 {
        line += &format!(" {} names, first {first}", meta.nlink());
    }
    if kind.is_symlink() {
        line += &format!(" -> {}", fs::read_link(path).unwrap().into_os_string().into_vec().escape_ascii());
    }
    if kind.is_char_device() || kind.is_block_device() {
        line += &format!(" device {}", meta.rdev());
    }
    if kind.is_file() {
        let content = fs::read(path).unwrap();
        let sum = content
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        line += &format!(
            " {} bytes {sum:x} in {} blocks",
            content.len(),
            if meta.len() > 100_000 { meta.blocks() / 64 } else { 0 }
        );
    }
    let mut names = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut names: Vec<_> = names[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort();
    for name in names.into_iter().filter(|name| !name.starts_with(b"trusted.overlay.")) {
        let mut value = vec![0; 65536];
        let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(n);
        line += &format!(" {}={}", name.escape_ascii(), value.escape_ascii());
    }
    line
}

#[track_caller]
fn assert_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>, way: &str) {
    let mut differences = Vec::new();
    for name in found.keys().chain(expected.keys()) {
        if found.get(name) != expected.get(name) {
            differences.push(format!("{name}\n  found    {:?}\n  expected {:?}", found.get(name), expected.get(name)));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{way}:\n{}", differences.join("\n"));
}

/// A container `c` that has the tree of everything twice: `/image` from its image, `/own` written to it. Returns what
/// both must be.
fn container_of_everything(world: &World) -> BTreeMap<String, String> {
    let tree = world.path("tree");
    bash(
        world.root(),
        &format!("mkdir tree; cp -a {}/. tree/; mkdir tree/image; cd tree/image; {EVERYTHING}", text(&bare())),
    );
    let tar =
        "tar --numeric-owner --xattrs '--xattrs-include=*' --acls --sparse --format=posix -cf image.tar -C tree .";
    bash(world.root(), tar);
    world.create("c", world.path("image.tar"));
    let upper = world.path("containers/c/upper");
    bash(world.root(), &format!("cp -a --sparse=always tree/image {}/own", text(&upper)));
    let expected = manifest(&tree.join("image"), 0);
    assert_same(&manifest(&upper.join("own"), 0), &expected, "cp -a");
    fs::remove_file(world.path("image.tar")).unwrap();
    expected
}

/// Where the only layer is that some path is in.
fn layer_with(world: &World, path: &str) -> PathBuf {
    let layers = world.path("layers");
    let having: Vec<_> =
        entries(&layers).into_iter().map(|id| layers.join(id).join(path)).filter(|p| p.exists()).collect();
    assert_eq!(having.len(), 1, "{having:?}");
    having[0].clone()
}

fn image_layer(world: &World, name: &str) -> PathBuf {
    PathBuf::from(word(&world.info(name)["rootfs"]))
}

#[test]
fn everything_survives_every_way_byte_for_byte() {
    let world = World::new();
    let expected = container_of_everything(&world);
    assert_same(&manifest(&image_layer(&world, "c").join("image"), 0), &expected, "the import of a tar archive");

    // While it runs, what it has written is copied.
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", "stat -c %u:%g /own/last /image/secret"), "65535:65535\n1234:5678");
    world.ok(&["snapshot", "c", "live"]);
    assert_same(&manifest(&layer_with(&world, "own"), 0), &expected, "a snapshot while it runs");
    world.ok(&["export", "c", text(&world.path("live.tar.zst"))]);
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["snapshots", "c", "--remove", "live"]);

    world.ok(&["snapshot", "c", "still"]);
    assert_same(&manifest(&layer_with(&world, "own"), 0), &expected, "a snapshot");
    world.ok(&["copy", "c", "copied"]);
    for (name, way) in [("c", "the container itself"), ("copied", "a copy")] {
        let file = world.path(&format!("{name}.tar.zst"));
        world.ok(&["export", name, text(&file)]);
        let again = format!("{name}-again");
        world.ok(&["import", text(&file), &again]);
        for part in ["image", "own"] {
            let found = manifest(&image_layer(&world, &again).join(part), 0);
            assert_same(&found, &expected, &format!("export and import of {way}, /{part}"));
        }
    }
    world.ok(&["import", text(&world.path("live.tar.zst")), "from-live"]);
    assert_same(&manifest(&image_layer(&world, "from-live").join("own"), 0), &expected, "an export while it runs");

    world.ok(&["publish", "c", "base"]);
    world.ok(&["create", "based", "--image", "base"]);
    for part in ["image", "own"] {
        assert_same(&manifest(&image_layer(&world, "based").join(part), 0), &expected, &format!("publish, /{part}"));
    }

    world.ok(&["export", "c", text(&world.path("c.tar.gz")), "--format", "incus"]);
    bash(
        world.root(),
        "mkdir incus; tar -C incus --numeric-owner --same-owner -p --xattrs '--xattrs-include=*' --acls -xf c.tar.gz",
    );
    for part in ["image", "own"] {
        let found = manifest(&world.path("incus/rootfs").join(part), 0);
        assert_same(&found, &expected, &format!("the tarball for Incus by GNU tar, /{part}"));
    }
    let metadata = fs::read_to_string(world.path("incus/metadata.yaml")).unwrap();
    assert!(metadata.contains("architecture: \"x86_64\"") && metadata.contains("template: hostname.tpl"), "{metadata}");
    assert_eq!(fs::read_to_string(world.path("incus/templates/hostname.tpl")).unwrap(), "{{ container.name }}\n");
    world.ok(&["create", "unified", "--image", text(&world.path("c.tar.gz"))]);
    assert_same(&manifest(&image_layer(&world, "unified").join("own"), 0), &expected, "the tarball for Incus by us");
}

/// Podman with all its state in this world. This machine's limits may not be raised, and a hybrid cgroup tree needs
/// the runtime and the manager that can deal with it.
fn podman(world: &World, words: &[&str]) -> Out {
    let mut command = Command::new("podman");
    command.arg("--root").arg(world.path("podman")).arg("--runroot").arg(world.path("podman-run"));
    command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "--storage-driver", "vfs"]).args(words);
    let out = world.run(command, b"");
    assert_eq!(out.status, 0, "podman {}: {out}", words.join(" "));
    out
}

#[test]
fn podman_runs_a_container_that_is_exported_for_it() {
    let world = World::new();
    let mut expected = container_of_everything(&world);
    world.ok(&["start", "c"]);
    world.exec_sh("c", "echo hello > /greeting; rm /bin/vi");
    world.ok(&["export", "c", text(&world.path("c.tar")), "--format", "oci"]);
    let loaded = podman(&world, &["load", "-i", text(&world.path("c.tar"))]);
    assert!(loaded.stdout.contains("localhost/c:latest"), "{loaded}");
    let run = |words: &[&str]| {
        let limits =
            ["run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000", "--network", "none"];
        podman(&world, &[&limits[..], &["localhost/c"], words].concat()).stdout
    };
    assert_eq!(
        run(&["sh", "-c", "cat /greeting; ls /bin/vi 2>&1; stat -c %u:%g /own/last"]).lines().collect::<Vec<_>>(),
        ["hello", "ls: /bin/vi: No such file or directory", "65535:65535"]
    );
    // An image, too.
    world.ok(&["publish", "c", "base"]);
    world.ok(&["image", "export", "base", text(&world.path("base.tar")), "--format", "oci"]);
    assert!(podman(&world, &["load", "-i", text(&world.path("base.tar"))]).stdout.contains("localhost/base:latest"));
    world.ok(&["image", "export", "base", text(&world.path("base.tar.zst"))]);
    let layer = |name: &str| word(&world.ok(&["image", "info", name, "--json"]).json()[0]["layer"]);
    bash(world.root(), "zstd -qd base.tar.zst -o plain.tar");
    world.ok(&["image", "import", text(&world.path("plain.tar")), "again"]);
    assert_eq!(layer("again"), layer("base"), "the same tree is the same layer");

    let mounted = podman(&world, &["image", "mount", "localhost/c"]);
    let found = manifest(&PathBuf::from(mounted.stdout.trim()).join("own"), 0);
    // Podman fills holes, takes links' own attributes for nothing, and knows no negative times.
    let same_enough = |lines: &mut BTreeMap<String, String>| {
        for (name, line) in lines.iter_mut() {
            *line = line.split(" in ").next().unwrap_or_default().to_owned();
            if name == "empty" {
                line.clear();
            }
        }
    };
    let mut found = found;
    same_enough(&mut found);
    same_enough(&mut expected);
    assert_same(&found, &expected, "the OCI layout by podman");
    podman(&world, &["image", "unmount", "localhost/c"]);
    podman(&world, &["rmi", "--all", "--force"]);
    bash(world.root(), "rm -rf podman podman-run");
}

// --- snapshots ---

#[test]
fn a_rollback_brings_files_and_configuration_back_and_can_be_taken_back() {
    let world = World::new();
    world.start_container("c", bare());
    world.exec_sh("c", "echo one > /file; mkdir /dir; echo x > /dir/x; rm /bin/vi");
    world.ok(&["config", "c", "set", "pids=100"]);
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["snapshot", "c", "first"]);
    world.ok(&["config", "c", "set", "pids=200"]);
    world.ok(&["start", "c"]);
    world.exec_sh("c", "echo two > /file; rm -r /dir; mkdir /dir; echo y > /dir/y; echo back > /bin/vi; rm -r /home");
    world.refused(&["rollback", "c", "first"], &["is running", "--restart"]);
    let out = world.ok(&["rollback", "c", "first", "--restart"]);
    assert!(out.stderr.contains("kept as `before-first-1`"), "{out}");
    let look = "cat /file; ls /dir; ls /bin/vi /home 2>&1";
    assert_eq!(
        world.exec_sh("c", &format!("{look}; true")),
        "one\nx\nls: /bin/vi: No such file or directory\n/home:\nuser"
    );
    assert_eq!(world.ok(&["config", "c", "get", "pids"]).stdout, "100\n");
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["rollback", "c", "before-first-1"]);
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", &format!("{look}; true")), "two\ny\nls: /home: No such file or directory\n/bin/vi");
    assert_eq!(world.ok(&["config", "c", "get", "pids"]).stdout, "200\n");

    let listed = world.ok(&["snapshots", "c", "--json"]).json();
    let told: Vec<_> = listed.as_array().unwrap().iter().map(|s| (word(&s["label"]), word(&s["why"]))).collect();
    let expected =
        [("first", "asked"), ("before-first-1", "before-rollback"), ("before-before-first-1-1", "before-rollback")];
    assert_eq!(told, expected.map(|(label, why)| (label.to_owned(), why.to_owned())));
    world.refused(&["rollback", "c", "frist"], &["no snapshot `frist`", "`first`"]);
    world.refused(&["snapshot", "c", "first"], &["there is a snapshot `first` already"]);
    world.refused(&["snapshot", "c", "../up"], &["can't be the label"]);
    world.refused(&["snapshots", "c", "--remove", "none"], &["no snapshot `none`"]);
    world.refused(&["snapshots", "x"], &["no container `x`"]);
    for (label, _) in expected {
        world.ok(&["snapshots", "c", "--remove", label]);
    }
    assert_eq!(world.exec_sh("c", "cat /file"), "two", "the container needs none of them");
    world.ok(&["destroy", "c", "--force"]);
    assert_eq!(entries(&world.path("layers")), [] as [String; 0]);
}

#[test]
fn a_snapshot_of_a_stopped_container_copies_nothing() {
    let world = World::new();
    world.create("c", bare());
    bash(world.root(), "head -c 20000000 /dev/urandom > containers/c/upper/large");
    let before = fs::metadata(world.path("containers/c/upper/large")).unwrap().ino();
    let used = || bash(world.root(), "du -s . | cut -f1").trim().parse::<u64>().unwrap();
    let space = used();
    world.ok(&["snapshot", "c"]);
    world.ok(&["copy", "c", "d"]);
    assert_eq!(fs::metadata(layer_with(&world, "large")).unwrap().ino(), before);
    assert!(used() < space + 200, "{} KiB more", used() - space);
    // Nothing has changed since, so there is no other layer.
    world.ok(&["snapshot", "c"]);
    assert_eq!(entries(&world.path("layers")).len(), 1);
    let labels = world.ok(&["snapshots", "c"]).stdout;
    assert!(labels.contains("snap1") && labels.contains("snap2"), "{labels}");
}

/// Two files are written one after the other, over and over. At any one moment they are at most one step apart.
#[test]
fn a_snapshot_of_a_running_container_is_of_one_moment() {
    let world = World::new();
    world.start_container("c", bare());
    // Enough to copy that a step falls between two files.
    world.exec_sh("c", "for i in $(seq 300); do head -c 20000 /dev/zero > /$i; done");
    let mut writing = world.spawn(&[
        "exec",
        "c",
        "--",
        "sh",
        "-c",
        "echo begun; i=0; while true; do i=$((i+1)); echo $i >/a; echo $i >/z; done",
    ]);
    writing.expect("begun");
    for number in 1..=3 {
        let out = world.ok(&["snapshot", "c"]);
        assert!(out.stderr.contains("frozen for"), "{out}");
        world.ok(&["copy", "c", "copy", "--from-snapshot", &format!("snap{number}")]);
        world.ok(&["start", "copy"]);
        let seen = world.exec_sh("copy", "cat /a /z");
        let seen: Vec<i64> = seen.lines().map(|line| line.parse().unwrap_or(0)).collect();
        assert!(matches!(seen[..], [a, z] if a == z || a == z + 1) || seen.len() == 1, "{seen:?}");
        world.ok(&["destroy", "--force", "copy"]);
    }
    assert_eq!(world.state("c"), "running");
    let before = world.exec_sh("c", "cat /z");
    assert_ne!(world.exec_sh("c", "while [ \"$(cat /z)\" = \"$0\" ]; do :; done; echo on"), before, "it goes on");
    // One that somebody has frozen stays frozen.
    world.ok(&["freeze", "c"]);
    world.ok(&["snapshot", "c"]);
    assert_eq!(world.state("c"), "frozen");
    drop(writing);
}

#[test]
fn copies_share_nothing_but_what_they_began_with() {
    let world = World::new();
    world.start_container("c", bare());
    world.exec_sh("c", "echo one > /file; chown 5:6 /file");
    world.ok(&["snapshot", "c", "one"]);
    world.exec_sh("c", "echo two > /file");
    world.ok(&["copy", "c", "running"]);
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["copy", "c", "stopped"]);
    world.ok(&["copy", "c", "old", "--from-snapshot", "one"]);
    for name in ["c", "running", "stopped", "old"] {
        world.ok(&["start", name]);
    }
    let ids = |name: &str| world.info(name)["ids"]["start"].as_u64().unwrap();
    let mut all: Vec<_> = ["c", "running", "stopped", "old"].map(ids).into();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 4, "each has ids of its own");
    for (name, content) in [("running", "two"), ("stopped", "two"), ("old", "one")] {
        assert_eq!(world.exec_sh(name, "cat /file; stat -c %u:%g /file"), format!("{content}\n5:6"));
        world.exec_sh(name, &format!("echo {name} > /file; echo {name} > /mine"));
    }
    assert_eq!(world.exec_sh("c", "cat /file; ls /mine 2>/dev/null; true"), "two");
    assert_eq!(world.exec_sh("old", "cat /file /mine"), "old\nold");
    assert_eq!(world.ok(&["snapshots", "old", "--json"]).json(), serde_json::json!([]));
    // The one that they come from may go.
    world.ok(&["destroy", "--force", "c"]);
    world.ok(&["restart", "stopped"]);
    assert_eq!(world.exec_sh("stopped", "cat /file; stat -c %u /bin/busybox"), "stopped\n0");
    world.refused(&["copy", "old", "old"], &["a copy of itself"]);
    world.refused(&["copy", "old", "running"], &["already"]);
    world.refused(&["copy", "old", "new", "--from-snapshot", "x"], &["no snapshot `x`", "it has no snapshots"]);
    world.refused(&["copy", "none", "new"], &["no container `none`"]);
}

#[test]
fn many_snapshots_do_not_make_a_container_deeper_and_deeper() {
    let world = World::new();
    world.create("c", bare());
    for number in 1..=70 {
        let write = format!("echo {number} > containers/c/upper/file; echo {number} > containers/c/upper/{number}");
        bash(world.root(), &write);
        if number == 10 {
            bash(world.root(), "rm containers/c/upper/10; mknod containers/c/upper/3 c 0 0");
        }
        world.ok(&["snapshot", "c"]);
    }
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", "cat /file; ls / | grep -c '^[0-9]'; ls /3 /10 2>/dev/null; true"), "70\n68");
    let layers = world.ok(&["plan", "c"]).stdout;
    let depth =
        layers.lines().find_map(|line| line.split("an overlay of ").nth(1)?.split(' ').next()?.parse::<u32>().ok());
    assert!(depth.is_some_and(|depth| depth < 40), "{depth:?} layers");
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["rollback", "c", "snap5"]);
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", "cat /file; ls / | grep -c '^[0-9]'"), "5\n5");
}

#[test]
fn snapshots_before_starts_are_taken_when_something_has_changed() {
    let world = World::new();
    world.ok(&["create", "c", "--image", text(&bare()), "--set", "auto_snapshots=2"]);
    for number in 1..=4 {
        bash(world.root(), &format!("echo {number} > containers/c/upper/file"));
        world.ok(&["start", "c"]);
        world.ok(&["stop", "c", "--kill"]);
    }
    let listed = world.ok(&["snapshots", "c", "--json"]).json();
    let labels: Vec<_> = listed.as_array().unwrap().iter().map(|s| (word(&s["label"]), word(&s["why"]))).collect();
    assert_eq!(
        labels,
        [("auto3", "before-start"), ("auto4", "before-start")].map(|(a, b)| (a.to_owned(), b.to_owned()))
    );
    world.ok(&["rollback", "c", "auto3"]);
    assert_eq!(fs::read_to_string(layer_with_content(&world, "3\n")).unwrap(), "3\n");
    world.refused(&["config", "c", "set", "auto_snapshots=31"], &["auto_snapshots"]);
}

fn layer_with_content(world: &World, content: &str) -> PathBuf {
    let files = entries(&world.path("layers")).into_iter().map(|id| world.path("layers").join(id).join("file"));
    files.into_iter().find(|file| fs::read_to_string(file).is_ok_and(|found| found == content)).expect("a layer has it")
}

#[test]
fn what_a_volatile_container_writes_ends_with_its_run() {
    let world = World::new();
    world.ok(&["create", "c", "--image", text(&bare()), "--set", "volatile=true"]);
    bash(world.root(), "echo before > containers/c/upper/kept");
    world.ok(&["start", "c"]);
    let seen =
        world.exec_sh("c", "cat /kept; echo x > /new; rm /kept; chown 7:8 /root; stat -c '%u:%g %a' /new /root /tmp /");
    assert_eq!(seen, "before\n0:0 644\n7:8 700\n0:0 1777\n0:0 755");
    assert_eq!(entries(&world.path("containers/c/upper")), ["kept"]);
    for words in [&["snapshot", "c"][..], &["diff", "c"], &["export", "c", "/nowhere/x"], &["copy", "c", "d"]] {
        let out = world.lazaret(words);
        assert!(out.status == 1 && (out.stderr.contains("in memory") || words[0] == "export"), "{words:?}: {out}");
    }
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", "cat /kept; ls /new 2>/dev/null; stat -c %u /root"), "before\n0");
    let out = world.lazaret(&[
        "run",
        "--image",
        text(&bare()),
        "--set",
        "volatile=true",
        "--",
        "sh",
        "-c",
        "echo x > /x; cat /x",
    ]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "x\n"), "{out}");
}

// --- diff, df ---

#[test]
fn diff_tells_what_is_new_different_and_gone() {
    let world = World::new();
    world.create("c", bare());
    let before = world.ok(&["diff", "c"]).stdout;
    assert_eq!(before, "", "nothing, at first");
    world.ok(&["start", "c"]);
    world.ok(&["snapshot", "c"]);
    world.exec_sh(
        "c",
        "echo x > /new; mkdir /d; echo > '/d/odd\x1b[31m'; rm /bin/vi; rm -r /home; chmod 700 /mnt; touch /etc/passwd; \
                        rm -r /usr; mkdir /usr; echo > /usr/own; ln -sf other /bin/ls",
    );
    let ours = ["/etc/hostname", "/etc/resolv.conf"];
    let told = |text: &str| {
        text.lines().filter(|line| !ours.iter().any(|own| line.ends_with(own))).map(str::to_owned).collect::<Vec<_>>()
    };
    let expected = [
        "~ /bin/ls",
        "- /bin/vi",
        "+ /d/",
        "+ /d/odd\\u{1b}[31m",
        "~ /etc/passwd",
        "- /home/",
        "~ /mnt/",
        "+ /new",
        "- /usr/bin/",
        "+ /usr/own",
        "- /usr/sbin/",
    ];
    assert_eq!(told(&world.ok(&["diff", "c"]).stdout), expected, "while it runs");
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["snapshot", "c"]);
    assert_eq!(told(&world.ok(&["diff", "c"]).stdout), expected, "of several layers");
    let json = world.ok(&["diff", "c", "--json"]).json();
    assert!(
        json.as_array()
            .unwrap()
            .contains(&serde_json::json!({"path": "/home", "change": "removed", "directory": true}))
    );
}

#[test]
fn df_tells_what_would_be_free() {
    let world = World::new();
    let image = world.path("image.tar");
    bash(world.root(), &format!("tar -C {} -cf image.tar .", text(&bare())));
    world.create("c", &image);
    bash(world.root(), "head -c 5000000 /dev/urandom > containers/c/upper/old");
    world.ok(&["snapshot", "c", "s"]);
    bash(world.root(), "head -c 3000000 /dev/urandom > containers/c/upper/new");
    let space = world.ok(&["df", "--json"]).json();
    let line = |what: &str| {
        let lines = space["lines"].as_array().unwrap();
        let found = lines.iter().find(|line| line["what"] == what).unwrap_or_else(|| panic!("no {what} in {space}"));
        (found["own"].as_u64().unwrap() / 1_000_000, found["shared"].as_u64().unwrap() / 1_000_000)
    };
    assert_eq!((line("container"), line("snapshot")), ((3, 5), (0, 5)));
    assert!((1..5).contains(&line("image").0));
    let shown = world.ok(&["df"]).stdout;
    assert!(shown.contains("snapshot   c s") && shown.contains('#') && shown.contains("in all"), "{shown}");
    world.ok(&["rollback", "c", "s"]);
    world.ok(&["snapshots", "c", "--remove", "before-s-1"]);
    let space = world.ok(&["df", "--json"]).json();
    assert!(space["total"].as_u64().unwrap() < 9_000_000, "what only that snapshot needed is free: {space}");
}

// --- file systems ---

/// Bytes in use on the file system of an installation, all of them on the disk.
fn in_use(world: &World) -> u64 {
    let out = world.sh("sync -f $LAZARET_ROOT && df -k --output=used $LAZARET_ROOT | tail -1");
    out.stdout.trim().parse::<u64>().unwrap_or_else(|e| panic!("{e}: {out}")) << 10
}

#[test]
fn on_btrfs_and_xfs_nothing_is_copied_of_a_running_container_either() {
    const LARGE: u64 = 64 << 20;
    for make in ["mkfs.btrfs -q", "mkfs.xfs -q"] {
        let world = World::mounted_by(&format!(
            "truncate -s 1G $SPACE/disk && {make} $SPACE/disk && mount -o loop $SPACE/disk $ROOT"
        ));
        let storage = world.lazaret(&["doctor"]).stdout;
        assert!(storage.contains("files share their content"), "{make}: {storage}");
        world.start_container("c", bare());
        assert_eq!(world.info("c")["storage"], "overlay", "{make}");
        world.exec_sh("c", &format!("head -c {LARGE} /dev/urandom >/large; echo one >/file; md5sum /large >/sum"));
        let before = in_use(&world);
        world.ok(&["snapshot", "c", "one"]);
        world.exec_sh("c", "echo two >/file; rm /bin/vi");
        world.ok(&["copy", "c", "copy"]);
        let grown = in_use(&world).saturating_sub(before);
        assert!(grown < LARGE / 4, "{make}: {grown} bytes for a snapshot and a copy");
        world.ok(&["stop", "c", "--kill"]);
        world.ok(&["rollback", "c", "one"]);
        for (name, content) in [("c", "one"), ("copy", "two")] {
            world.ok(&["start", name]);
            let seen = world.exec_sh(name, "cat /file; md5sum -c /sum; ls /bin/vi 2>/dev/null | wc -l");
            let vi = usize::from(name == "c");
            assert_eq!(seen, format!("{content}\n/large: OK\n{vi}"), "{make}: {name}");
        }
        world.ok(&["destroy", "--force", "c"]);
        world.ok(&["destroy", "--force", "copy"]);
        assert!(in_use(&world) < before - LARGE / 2, "{make}: what nobody needs is free");
    }
}

// --- where overlays can't serve ---

#[test]
fn copied_roots_have_snapshots_copies_and_exports_too() {
    let world = World::mounted_by(
        "mkdir $SPACE/lower $SPACE/upper $SPACE/work; \
         mount -t overlay overlay -o lowerdir=$SPACE/lower,upperdir=$SPACE/upper,workdir=$SPACE/work $ROOT",
    );
    world.lazaret(&["create", "c", "--image", text(&bare())]);
    world.ok(&["start", "c"]);
    assert_eq!(world.info("c")["storage"], "copy");
    world.exec_sh("c", "echo one > /file; chown 7:8 /file; rm /bin/vi");
    assert_eq!(
        world.ok(&["diff", "c"]).stdout.lines().filter(|l| !l.contains("/etc/")).collect::<Vec<_>>(),
        ["- /bin/vi", "+ /file"]
    );
    world.ok(&["snapshot", "c", "one"]);
    world.exec_sh("c", "echo two > /file");
    world.ok(&["copy", "c", "two"]);
    world.ok(&["copy", "c", "one", "--from-snapshot", "one"]);
    world.ok(&["export", "c", text(&world.path("c.tar.zst"))]);
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["rollback", "c", "one"]);
    world.ok(&["import", text(&world.path("c.tar.zst")), "imported"]);
    for (name, content) in [("c", "one"), ("one", "one"), ("two", "two"), ("imported", "two")] {
        world.ok(&["start", name]);
        let seen = world.exec_sh(name, "cat /file; stat -c %u:%g /file /bin; ls /bin/vi 2>/dev/null; true");
        assert_eq!(seen, format!("{content}\n7:8\n0:0"), "{name}");
    }
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["rollback", "c", "before-one-1"]);
    world.ok(&["start", "c"]);
    assert_eq!(world.exec_sh("c", "cat /file"), "two");
}

#[test]
fn a_container_of_this_systems_programs_is_sent_without_them() {
    let world = World::new();
    world.ok(&["create", "c"]);
    world.ok(&["start", "c"]);
    world.exec_sh("c", "echo mine > /root/mine; chown 12:34 /root/mine; mkdir /a; rmdir /srv");
    world.ok(&["stop", "c", "--kill"]);
    let file = world.path("c.tar.zst");
    world.ok(&["export", "c", text(&file)]);
    assert!(fs::metadata(&file).unwrap().len() < 100_000, "this system's programs are not in it");
    world.refused(&["export", "c", text(&file)], &["there already", "--force"]);
    for words in [&["export", "c", "/nowhere/x", "--format", "oci"][..], &["publish", "c", "image"]] {
        world.refused(words, &["this system's own programs"]);
    }
    world.ok(&["import", text(&file), "d"]);
    world.ok(&["start", "d"]);
    assert_eq!(
        world.exec_sh("d", "cat /root/mine; stat -c %u:%g /root/mine; ls -d /a /srv 2>/dev/null; true"),
        "mine\n12:34\n/a"
    );
    world.refused(&["import", text(&file), "d"], &["already"]);
    world.refused(&["import", text(&bare().join("bin/busybox")), "e"], &["importing"]);
    bash(world.root(), &format!("tar -C {} -cf other.tar .", text(&bare())));
    world.refused(
        &["import", text(&world.path("other.tar")), "e"],
        &["no container that was exported", "lazaret create"],
    );
    bash(world.root(), "zstd -dc c.tar.zst | head -c 3000 > half.tar");
    world.refused(&["import", text(&world.path("half.tar")), "e"], &["importing"]);
    // Somebody else's configuration is not taken unread.
    bash(
        world.root(),
        "mkdir x; cd x; tar xf ../c.tar.zst; sed -i '1i privileged = true' container.toml; \
                        tar cf ../evil.tar lazaret.json container.toml changes",
    );
    let out = world.ok(&["import", text(&world.path("evil.tar")), "evil"]);
    assert!(out.stderr.contains("sets `privileged`"), "{out}");
}

// --- killed, and disks that are full ---

/// What a started container says of itself.
fn content(world: &World, name: &str) -> String {
    world.ok(&["start", name]);
    let seen = world.exec_sh(name, "cat /file; ls /gone 2>/dev/null; true");
    world.ok(&["stop", name, "--kill"]);
    seen
}

/// The same by what is on disk; of a snapshot, if one is named.
fn view(world: &World, name: &str, label: Option<&str>) -> String {
    // Whatever takes its lock first does what a killed command had left to do.
    world.lazaret(&["snapshots", name, "--remove", "no-such"]);
    let dir = world.path("containers").join(name);
    let record: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("record.json")).unwrap()).unwrap();
    assert!(record["pending"].is_null(), "something is still to be done: {record}");
    let layers = match label {
        Some(label) => {
            record["snapshots"].as_array().unwrap().iter().find(|s| s["label"] == label).unwrap()["layers"].clone()
        }
        None => record["layers"].clone(),
    };
    let mut trees: Vec<_> =
        layers.as_array().into_iter().flatten().map(|id| world.path("layers").join(word(id))).collect();
    if label.is_none() {
        trees.insert(0, dir.join("upper"));
    }
    trees.push(PathBuf::from(word(&record["image"]["rootfs"])));
    trees.iter().for_each(|tree| assert!(tree.is_dir(), "`{}` is missing", tree.display()));
    let first = |file: &str| trees.iter().map(|tree| tree.join(file)).find(|path| path.symlink_metadata().is_ok());
    let mut seen = fs::read_to_string(first("file").unwrap()).unwrap();
    if first("gone").is_some_and(|path| path.is_file()) {
        seen.push_str("/gone\n");
    }
    seen.trim_end().to_owned()
}

fn prepared(world: &World, image: &Path) {
    world.lazaret(&["destroy", "--force", "c"]);
    world.lazaret(&["destroy", "--force", "d"]);
    world.create("c", image);
    bash(world.root(), "echo one > containers/c/upper/file; echo x > containers/c/upper/gone");
    world.ok(&["snapshot", "c", "one"]);
    bash(world.root(), "echo two > containers/c/upper/file; mknod containers/c/upper/gone c 0 0");
}

/// Layers that nobody needs.
fn orphans(world: &World) -> Vec<String> {
    let records: Vec<String> = entries(&world.path("containers"))
        .iter()
        .map(|name| fs::read_to_string(world.path("containers").join(name).join("record.json")).unwrap_or_default())
        .collect();
    entries(&world.path("layers")).into_iter().filter(|id| !records.iter().any(|record| record.contains(id))).collect()
}

#[test]
fn snapshots_and_rollbacks_that_are_killed_are_done_or_not() {
    let world = World::new();
    for (words, labels, contents) in [
        (&["snapshot", "c", "two"][..], &[&["one"][..], &["one", "two"]][..], &["two"][..]),
        (&["rollback", "c", "one"], &[&["one"], &["one", "before-one-1"]], &["two", "one\n/gone"]),
        (&["snapshots", "c", "--remove", "one"], &[&["one"], &[]], &["two"]),
    ] {
        killed_before_each_change(
            &world,
            words,
            || prepared(&world, &bare()),
            |what| {
                let listed = world.ok(&["snapshots", "c", "--json"]).json();
                let found: Vec<_> = listed.as_array().unwrap().iter().map(|s| word(&s["label"])).collect();
                assert!(labels.iter().any(|labels| found == *labels), "{what}: {found:?}");
                let seen = view(&world, "c", None);
                assert!(contents.contains(&seen.as_str()), "{what}: {seen}");
                if words[0] == "rollback" {
                    assert_eq!(seen == "two", found.len() == 1, "{what}: half of a rollback");
                }
                for label in &found {
                    let expected = if label == "one" { "one\n/gone" } else { "two" };
                    assert_eq!(view(&world, "c", Some(label)), expected, "{what}: `{label}`");
                }
                assert_eq!((orphans(&world), entries(&world.path("tmp"))), (vec![], vec![]), "{what}");
            },
        );
        let seen = content(&world, "c");
        assert_eq!(seen, view(&world, "c", None), "after all of it, it starts");
    }
}

#[test]
fn a_snapshot_of_a_running_container_that_is_killed_leaves_it_running() {
    let world = World::new();
    let prepare = || {
        prepared(&world, &bare());
        world.ok(&["start", "c"]);
    };
    killed_before_each_change(&world, &["snapshot", "c", "two"], prepare, |what| {
        assert_eq!(world.state("c"), "running", "{what}");
        assert_eq!(world.exec("c", &["cat", "/file"]), "two", "{what}");
        assert_eq!((orphans(&world), entries(&world.path("tmp"))), (vec![], vec![]), "{what}");
    });
}

#[test]
fn copies_imports_and_exports_that_are_killed_are_whole_or_absent() {
    let world = World::new();
    // Of few files: each that is unpacked is another moment to be killed in.
    bash(
        world.root(),
        "mkdir -p tiny/etc tiny/usr/share; echo NAME=tiny > tiny/etc/os-release; ln -s share tiny/usr/link",
    );
    prepared(&world, &world.path("tiny"));
    let (file, again) = (world.path("c.tar.zst"), world.path("out/again.tar.zst"));
    world.ok(&["export", "c", text(&file)]);
    fs::create_dir(world.path("out")).unwrap();
    for words in [
        &["copy", "c", "d"][..],
        &["copy", "c", "d", "--from-snapshot", "one"],
        &["import", text(&file), "d"],
        &["publish", "c", "image"],
        &["export", "c", text(&again)],
    ] {
        let prepare = || {
            world.lazaret(&["destroy", "d"]);
            bash(world.root(), "rm -rf out/* out/.[!.]* images; printf x >> containers/c/upper/changed");
        };
        killed_before_each_change(&world, words, prepare, |what| {
            assert_eq!(view(&world, "c", None), "two", "{what}");
            if world.path("containers/d").exists() {
                let expected = if words.contains(&"--from-snapshot") { "one\n/gone" } else { "two" };
                assert_eq!(view(&world, "d", None), expected, "{what}");
            }
            if again.exists() {
                bash(world.root(), "tar tf out/again.tar.zst > /dev/null");
            }
            let left: Vec<_> = ["tmp", "images/tmp"].iter().flat_map(|dir| entries(&world.path(dir))).collect();
            assert_eq!((orphans(&world), left), (vec![], vec![]), "{what}");
            assert!(entries(&world.path("ids")).len() <= 2, "{what}: ids are given back");
        });
    }
    world.ok(&["import", text(&again), "e"]);
    assert_eq!(view(&world, "e", None), "two");
}

#[test]
fn a_full_disk_spoils_no_container_and_no_snapshot() {
    let world = small_disk();
    world.create("c", bare());
    let inside = |script: &str| {
        let out = world.sh(&format!("cd $LAZARET_ROOT; {script}"));
        assert_eq!(out.status, 0, "{script}: {out}");
        out.stdout
    };
    inside("echo one > containers/c/upper/file; head -c 3000000 /dev/urandom > containers/c/upper/large");
    world.ok(&["snapshot", "c", "one"]);
    inside("echo two > containers/c/upper/file; cp containers/c/upper/file kept");
    let file = world.path("c.tar.zst");
    world.ok(&["export", "c", text(&file)]);
    world.ok(&["start", "c"]);
    world.sh(FILL);
    let out = world.path("out.tar");
    let commands: &[&[&str]] = &[
        &["snapshot", "c", "live"],
        &["copy", "c", "d"],
        &["export", "c", text(&out)],
        &["import", text(&file), "d"],
        &["publish", "c", "image"],
        &["copy", "c", "d", "--from-snapshot", "one"],
    ];
    for words in commands {
        let out = world.lazaret(words);
        assert!(out.status == 1 && out.stderr.to_lowercase().contains("no space left"), "{words:?}: {out}");
        assert_eq!(world.state("c"), "running", "{words:?}");
    }
    assert_eq!(world.exec("c", &["cat", "/file"]), "two");
    world.ok(&["stop", "c", "--kill"]);
    // These may find the few bytes that they need, or not.
    for words in [&["snapshot", "c", "still"][..], &["rollback", "c", "one"]] {
        let out = world.lazaret(words);
        assert!(out.status == 0 || out.stderr.to_lowercase().contains("no space left"), "{words:?}: {out}");
    }
    world.sh(FREE);
    world.ok(&["list"]);
    let labels = world.ok(&["snapshots", "c"]).stdout;
    assert!(labels.contains("one") && !labels.contains("live"), "{labels}");
    assert_eq!(inside("ls -A tmp images/tmp | grep -v ':$' | grep . || true"), "", "nothing half-made is left");
    world.ok(&["rollback", "c", "one"]);
    assert_eq!(content(&world, "c"), "one");
    for words in [&["copy", "c", "d"][..], &["snapshot", "d", "s"], &["destroy", "d"]] {
        world.ok(words);
    }
}

#[test]
fn names_of_the_host_are_safe_from_what_is_in_a_container() {
    let world = World::new();
    world.start_container("c", bare());
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret of the host").unwrap();
    let target = text(&outside);
    // Each link is where something else was, or will be looked for.
    world.exec_sh(
        "c",
        &format!("rm -r /home; ln -s {target} /home; ln -s {target}/secret /leak; rm -r /etc; ln -s {target} /etc"),
    );
    world.ok(&["stop", "c", "--kill"]);
    world.ok(&["snapshot", "c", "s"]);
    bash(world.root(), "ln -s ../../../outside containers/c/upper/more");
    world.ok(&["copy", "c", "d"]);
    world.ok(&["diff", "c"]);
    for format in ["lazaret", "oci", "incus"] {
        let file = world.path(&format!("{format}.tar"));
        world.ok(&["export", "c", text(&file), "--format", format]);
        let mut bytes = fs::read(&file).unwrap();
        if format == "oci" {
            bytes = bash(world.root(), "tar xOf oci.tar --wildcards 'blobs/sha256/*' | zcat 2>/dev/null || true")
                .into_bytes();
        }
        let found = bytes.windows(18).any(|window| window == b"secret of the host");
        assert!(!found, "{format}: a link was followed");
    }
    world.ok(&["publish", "c", "image"]);
    world.ok(&["destroy", "d"]);
    assert_eq!(entries(&outside), ["secret"]);
}

//! Layers appear whole or not at all.

use std::ffi::CString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use lazaret_base::Kind;
use lazaret_image::{LayerId, Store, remove_tree, use_directory};
use rustix::io::Errno;

use crate::craft::Craft;
use crate::world::{Tmpfs, World, manifest, open_dir, sh};

fn archive(world: &World, name: &str, text: &str) -> std::path::PathBuf {
    let path = world.path(name);
    fs::write(&path, Craft::new().file("etc/os-release", text).file("usr/bin/x", "x").end()).unwrap();
    path
}

/// Imports, and whether anything was unpacked for it.
fn import(store: &Store, path: &Path) -> (lazaret_image::Layer, bool) {
    let mut unpacked = false;
    let layer = store.import_tarball(path, &mut |_| unpacked = true).unwrap();
    (layer, unpacked)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_unpacked_once_and_found_again() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let path = archive(&world, "a.tar", "1");
    let (first, unpacked) = import(&store, &path);
    assert!(unpacked && first.id.to_string().starts_with("sha256:"));
    assert_eq!(fs::read_to_string(first.rootfs.join("etc/os-release")).unwrap(), "1");
    assert_eq!((first.size, first.entries), (2, 2));

    assert_eq!(import(&store, &path), (first.clone(), false), "the index knows it");
    fs::copy(&path, world.path("copy.tar")).unwrap();
    assert_eq!(import(&store, &world.path("copy.tar")), (first.clone(), false), "its content is known");
    assert_eq!(store.layer(&first.id.to_string().parse().unwrap()).unwrap(), first);

    archive(&world, "a.tar", "2");
    let (second, unpacked) = import(&store, &path);
    assert!(unpacked && second.id != first.id);
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!((names(&world.path("store/tmp")), names(&world.path("store/locks"))), (vec![], vec![]));
}

#[test]
fn what_is_beside_the_root_is_there_however_often_an_archive_is_asked_for() {
    const METADATA: &str = "templates:\n  /etc/hostname:\n    when: [create]\n    template: hostname.tpl\n";
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let path = archive(&world, "a.tar", "1");
    let ask = || {
        let image = store.import(&path, None, &mut |_| {}).unwrap();
        (image.layer, image.templates.len())
    };
    let bare = ask();
    assert_eq!(bare.1, 0);
    assert_eq!(ask(), bare);
    // The same name, another kind of archive.
    let unified = Craft::new().file("metadata.yaml", METADATA).file("templates/hostname.tpl", "x").dir("rootfs");
    fs::write(&path, unified.dir("rootfs/etc").file("rootfs/etc/os-release", "2").end()).unwrap();
    let described = ask();
    assert_eq!(described.1, 1);
    assert_ne!(described.0, bare.0);
    assert_eq!(ask(), described);
    archive(&world, "a.tar", "1");
    assert_eq!(ask(), bare);
}

#[test]
fn a_file_that_changed_behind_its_old_times_is_read_again() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let path = archive(&world, "a.tar", "1");
    let (first, _) = import(&store, &path);
    sh(
        &world.dir,
        "touch -r a.tar stamp; printf 2 | dd of=a.tar bs=1 seek=512 conv=notrunc status=none; touch -r stamp a.tar",
    );
    // The sum of the header covers no content: still an archive, with another digest.
    assert_ne!(import(&store, &path).0.id, first.id);
}

#[test]
fn the_store_is_closed_and_the_root_of_a_layer_has_its_own_mode() {
    let world = World::new();
    sh(&world.dir, "mkdir -m 0777 store; mkdir -p tree/usr; chmod 0711 tree; chown 3:4 tree; tar -C tree -cf a.tar .");
    let store = Store::open(&world.path("store")).unwrap();
    assert_eq!(fs::metadata(world.path("store")).unwrap().mode() & 0o7777, 0o700);
    let meta = fs::metadata(import(&store, &world.path("a.tar")).0.rootfs).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o711, 3, 4));
}

#[test]
fn a_removed_layer_is_gone_and_can_come_back() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let path = archive(&world, "a.tar", "1");
    let (layer, _) = import(&store, &path);
    store.remove(&layer.id).unwrap();
    assert!(!layer.rootfs.exists() && store.list().unwrap().is_empty());
    assert_eq!(names(&world.path("store/index")), [""; 0]);
    assert_eq!(store.remove(&layer.id).unwrap_err().what(), Kind::NotFound);
    assert_eq!(store.layer(&layer.id).unwrap_err().what(), Kind::NotFound);
    assert_eq!(import(&store, &path).0.id, layer.id);
    assert_eq!((names(&world.path("store/tmp")), names(&world.path("store/locks"))), (vec![], vec![]));
}

#[test]
fn of_two_imports_of_one_file_one_works_and_the_other_waits() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let path = archive(&world, "a.tar", "1");
    let (begun, has_begun) = mpsc::channel();
    std::thread::scope(|scope| {
        let (store, path) = (&store, &path);
        let second = scope.spawn(move || {
            has_begun.recv().unwrap();
            import(store, path)
        });
        // Progress comes while the lock is held; only the first one is received.
        let first = store.import_tarball(path, &mut |_| begun.send(()).unwrap_or_default()).unwrap();
        assert_eq!(second.join().unwrap(), (first, false));
    });
}

#[test]
fn what_is_no_root_is_refused_with_a_hint_and_leaves_nothing() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let check = |craft: Craft, hint: &str| {
        fs::write(world.path("a.tar"), craft.end()).unwrap();
        let e = store.import_tarball(&world.path("a.tar"), &mut |_| {}).unwrap_err();
        assert!(e.advice().unwrap().contains(hint), "{e} {:?}", e.advice());
        assert_eq!(names(&world.path("store/layers")), [""; 0]);
        assert_eq!((names(&world.path("store/tmp")), names(&world.path("store/locks"))), (vec![], vec![]));
    };
    check(Craft::new().file("debian/etc/x", "x"), "below `debian`");
    check(Craft::new().file("metadata.yaml", "x").file("templates/y", "y"), "metadata of an image");
    check(Craft::new().file("a", "x").file("b", "x"), "no `usr`");
    let e = store.import_tarball(&world.dir, &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("not a regular file"), "{e}");
    let e = store.import_tarball(&world.path("missing"), &mut |_| {}).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::NOENT));
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left() {
    let world = World::new();
    let disk = world.make("disk");
    let _mounted = Tmpfs::mount(&disk, "size=4m");
    let store = Store::open(&disk.join("store")).unwrap();
    sh(&world.dir, "mkdir -p tree/usr; head -c 8M /dev/urandom > tree/usr/large; tar -C tree -cf a.tar .");
    let e = store.import_tarball(&world.path("a.tar"), &mut |_| {}).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::NOSPC));
    assert!(e.to_string().contains("usr/large") && e.advice().unwrap().contains("make room"), "{e}");
    assert_eq!((names(&disk.join("store/layers")), names(&disk.join("store/tmp"))), (vec![], vec![]));
}

#[test]
fn a_read_only_disk_is_told() {
    let world = World::new();
    let disk = world.make("disk");
    let _mounted = Tmpfs::mount(&disk, "size=4m,ro");
    let e = Store::open(&disk.join("store")).unwrap_err();
    assert_eq!(e.errno(), Some(Errno::ROFS));
    assert!(e.advice().unwrap().contains("read-only"));
}

/// Not a test of its own: the process that is killed in the middle of an import.
#[test]
#[ignore = "run by killed_in_the_middle"]
fn child_that_imports_and_waits() {
    let dir = std::env::var_os("LAZARET_TEST_WORLD").unwrap();
    let dir = Path::new(&dir);
    let store = Store::open(&dir.join("store")).unwrap();
    let imported = store.import_tarball(&dir.join("a.tar"), &mut |progress| {
        if progress.entries == 50 {
            println!("in the middle");
            std::io::stdout().flush().unwrap();
            // Until it is killed.
            let _ = std::io::stdin().read(&mut [0]);
        }
    });
    imported.unwrap();
}

#[test]
fn killed_in_the_middle_leaves_only_what_collect_takes() {
    let world = World::new();
    let many = (0..100).fold(Craft::new(), |craft, n| craft.file(&format!("usr/{n}"), "x"));
    fs::write(world.path("a.tar"), many.end()).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    let start = || {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "store::child_that_imports_and_waits"])
            .env("LAZARET_TEST_WORLD", &world.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("in the middle")));
        (child, lines)
    };
    let (mut killed, _) = start();
    assert_eq!(store.collect().unwrap().trees, 0, "it is alive");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(store.list().unwrap().is_empty() && !names(&world.path("store/tmp")).is_empty());

    // Another that lives keeps what it has, while the dead one's is taken.
    let (mut living, lines) = start();
    assert_eq!(store.collect().unwrap().trees, 1);
    assert_eq!(names(&world.path("store/tmp")).len(), 2, "its directory and its lock");
    drop(living.stdin.take());
    lines.for_each(drop);
    assert!(living.wait().unwrap().success());
    assert_eq!((store.collect().unwrap().trees, names(&world.path("store/tmp")).len()), (0, 0));
    let (layer, unpacked) = import(&store, &world.path("a.tar"));
    assert!(!unpacked && layer.entries == 100);
}

#[test]
fn a_directory_is_used_in_place_if_it_is_a_root() {
    let world = World::new();
    sh(&world.dir, "mkdir -p root/etc home/alice; ln -s root link; ln -s / host; mkdir bound");
    let layer = use_directory(&world.path("link")).unwrap();
    assert_eq!((&layer.id, &layer.rootfs), (&LayerId::Directory(world.path("root")), &world.path("root")));
    assert_eq!(layer.id.to_string().parse::<LayerId>().unwrap(), layer.id);
    let refused = |path: &Path| use_directory(path).unwrap_err();
    assert!(refused(Path::new("/")).advice().unwrap().contains("image `host`"));
    assert!(refused(&world.path("host")).advice().unwrap().contains("image `host`"));
    assert!(refused(&world.path("home")).advice().unwrap().contains("below `alice`"));
    assert!(refused(&world.path("nothing")).to_string().contains("no such file"));
    assert!(refused(Path::new("relative")).to_string().contains("not absolute"));
    rustix::mount::mount_bind("/", world.path("bound")).unwrap();
    let bound = use_directory(&world.path("bound"));
    rustix::mount::unmount(world.path("bound"), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(bound.unwrap_err().advice().unwrap().contains("image `host`"));
}

#[test]
fn layers_of_real_roots_know_their_architecture() {
    let world = World::new();
    sh(
        &world.dir,
        "mkdir -p root/usr/bin; ln -s usr/bin root/bin; cp /bin/true root/usr/bin/env; tar -C root -cf a.tar .",
    );
    let store = Store::open(&world.path("store")).unwrap();
    let machine = String::from_utf8(Command::new("dpkg").arg("--print-architecture").output().unwrap().stdout).unwrap();
    assert_eq!(import(&store, &world.path("a.tar")).0.architecture.as_deref(), Some(machine.trim()));
}

#[test]
fn any_tree_can_be_removed_and_nothing_else_is() {
    let world = World::new();
    sh(
        &world.dir,
        "mkdir outside; echo x > outside/x; mkdir tree; ln -s ../outside tree/link; ln outside/x tree/hard; mkfifo tree/f",
    );
    sh(&world.dir, "mkdir tree/wide; cd tree/wide; touch $(seq 5000); mkdir $(seq -f d%g 4500); chmod 0 .");
    // Deeper than PATH_MAX, than the stack of a recursion and than the files a process may have open.
    let mut at = open_dir(&world.path("tree"));
    for _ in 0..5_000 {
        rustix::fs::mkdirat(&at, "down", rustix::fs::Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "beside", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "down", flags, rustix::fs::Mode::empty()).unwrap();
    }
    drop(at);
    let parent = open_dir(&world.dir);
    let remove = |name: &str| remove_tree(parent.as_fd(), &CString::new(name).unwrap());
    remove("tree").unwrap();
    remove("tree").unwrap();
    assert_eq!(names(&world.dir), ["outside"]);
    assert_eq!(fs::read_to_string(world.path("outside/x")).unwrap(), "x\n");
}

#[test]
fn removal_stops_at_a_mount() {
    let world = World::new();
    sh(&world.dir, "mkdir -p tree/a/mounted");
    let mounted = Tmpfs::mount(&world.path("tree/a/mounted"), "size=1m");
    fs::write(world.path("tree/a/mounted/file"), "kept").unwrap();
    let parent = open_dir(&world.dir);
    let e = remove_tree(parent.as_fd(), c"tree").unwrap_err();
    assert!(e.to_string().contains("`a/mounted`: something is mounted there"), "{e}");
    assert_eq!(fs::read_to_string(world.path("tree/a/mounted/file")).unwrap(), "kept");
    drop(mounted);
    remove_tree(parent.as_fd(), c"tree").unwrap();
    assert!(manifest(&world.dir, crate::world::ALL).len() == 1);
}

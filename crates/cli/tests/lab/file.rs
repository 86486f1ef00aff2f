//! Files copied in and out, of containers that run and of stopped ones, past whatever lies in the way.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, makedev, mknodat};
use rustix::process::Signal;

use crate::harness::*;

/// Runs a test on a running container `c`, and on a stopped one.
fn running_and_stopped(test: impl Fn(&World)) {
    for run in [true, false] {
        let world = World::new();
        world.create("c", bare());
        if run {
            world.ok(&["start", "c"]);
        }
        test(&world);
    }
}

/// What a script in `c` prints; it is started for that if it does not run.
fn look(world: &World, script: &str) -> String {
    if world.state("c") == "stopped" {
        world.ok(&["start", "c"]);
        let said = world.exec_sh("c", script);
        world.ok(&["stop", "c", "--kill"]);
        return said;
    }
    world.exec_sh("c", script)
}

/// A tree with everything that is copied, and its listing.
fn tree(world: &World) -> PathBuf {
    let dir = world.path("tree");
    fs::create_dir_all(dir.join("sub/empty")).unwrap();
    fs::write(dir.join("file"), "a file\n").unwrap();
    fs::write(dir.join("sub/odd \n name"), vec![7u8; 700_000]).unwrap();
    fs::write(dir.join("sub/nothing"), "").unwrap();
    symlink("/etc/passwd", dir.join("sub/link")).unwrap();
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dir.join("sub/empty"), fs::Permissions::from_mode(0o1700)).unwrap();
    let old = std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    for path in ["file", "sub/nothing", "sub/empty", "sub"] {
        fs::File::open(dir.join(path)).unwrap().set_modified(old).unwrap();
    }
    dir
}

/// Everything below a directory: name, kind and mode, time of change if it is no link, and content.
fn listing(dir: &Path, mask: u32) -> Vec<String> {
    let mut all = Vec::new();
    for name in entries(dir) {
        let path = dir.join(&name);
        let status = fs::symlink_metadata(&path).unwrap();
        let time = if status.is_symlink() { (0, 0) } else { (status.mtime(), status.mtime_nsec()) };
        all.push(format!("{name:?} {:o} {time:?} {:?}", status.mode() & mask, fs::read_link(&path).ok()));
        if status.is_dir() {
            all.extend(listing(&path, mask).into_iter().map(|line| format!("{name}/{line}")));
        } else if status.is_file() {
            all.push(format!(
                "{:?}",
                fs::read(&path).unwrap().iter().fold(0u64, |sum, byte| sum * 31 % 997 + u64::from(*byte))
            ));
        }
    }
    all
}

#[test]
fn a_tree_goes_in_and_comes_out_as_it_was() {
    running_and_stopped(|world| {
        let tree = tree(world);
        world.ok(&["file", "push", "c", text(&tree), "/srv"]);
        world.ok(&["file", "push", "c", text(&tree), "/root"]);
        let out = world.path("out");
        fs::create_dir(&out).unwrap();
        world.ok(&["file", "pull", "c", "/srv", "/root/tree", text(&out)]);
        // The container's set-user-ID bits are not the caller's.
        const KEPT: u32 = 0o171_777;
        assert_eq!(listing(&out.join("srv"), KEPT), listing(&tree, KEPT));
        assert_eq!(listing(&out.join("tree"), KEPT), listing(&tree, KEPT));
        assert_eq!(fs::metadata(out.join("srv/file")).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(look(world, "stat -c %a:%u:%g /srv/file /root/tree/file"), "4751:0:0\n4751:0:0");
        // Once more over what is there: directories stay as they are, and what is in them is replaced.
        fs::write(out.join("srv/sub/nothing"), "something").unwrap();
        world.ok(&["file", "push", "c", &format!("{}/sub", text(&tree)), "/srv"]);
        world.ok(&["file", "pull", "c", "/srv/sub", &format!("{}/srv", text(&out))]);
        assert_eq!(listing(&out.join("srv/sub"), KEPT), listing(&tree.join("sub"), KEPT));
        assert!(!look(world, "find / -xdev -name '*lazaret-part'").contains("part"));
    });
}

#[test]
fn what_is_put_into_somebodys_directory_is_theirs() {
    running_and_stopped(|world| {
        let tree = tree(world);
        world.ok(&["file", "push", "c", text(&tree), "/home/user/a/b", "--parents"]);
        let owners =
            look(world, "stat -c %u:%g /home/user/a /home/user/a/b /home/user/a/b/file /home/user/a/b/sub/link");
        assert_eq!(owners, "1000:1000\n1000:1000\n1000:1000\n1000:1000");
        world.ok(&["file", "push", "c", &format!("{}/file", text(&tree)), "/home/user/own", "--owner", "33:34"]);
        assert_eq!(look(world, "stat -c %u:%g:%a /home/user/own"), "33:34:4751");
        let out = world.path("out");
        let mut command = world.command(&["file", "pull", "c", "/home/user/own", text(&out)]);
        command.env("SUDO_UID", "4321");
        assert_eq!(world.run(command, b"").status, 0);
        let status = fs::metadata(&out).unwrap();
        assert_eq!((status.uid(), status.mode() & 0o7777), (4321, 0o751));
    });
}

#[test]
fn standard_input_and_output_are_files_too() {
    running_and_stopped(|world| {
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
        let pushed = world.feed(&bytes, &["file", "push", "c", "-", "/mnt/big"]);
        assert_eq!(pushed.status, 0, "{pushed}");
        assert!(world.ok(&["file", "pull", "c", "/mnt/big", "-"]).bytes == bytes, "it is not the same");
        world.refused(&["file", "pull", "c", "/mnt", "-"], &["takes one file"]);
        // A link leads to what it means inside.
        look(world, "ln -s /mnt/big /etc/link; echo inside > /etc/hostname");
        assert!(world.ok(&["file", "pull", "c", "/etc/link", "-"]).bytes == bytes, "it is not the same");
        look(world, "rm /etc/link; ln -s ../../../../../../../etc/hostname /etc/link");
        assert_ne!(world.ok(&["file", "pull", "c", "/etc/link", "-"]).bytes, fs::read("/etc/hostname").unwrap());
    });
}

#[test]
fn targets_are_meant_as_cp_means_them() {
    running_and_stopped(|world| {
        let tree = tree(world);
        let file = format!("{}/file", text(&tree));
        world.ok(&["file", "push", "c", &file, "/mnt"]);
        world.ok(&["file", "push", "c", &file, "/mnt/other"]);
        assert_eq!(look(world, "ls /mnt"), "file\nother");
        world.refused(&["file", "push", "c", &file, "/mnt/no/such"], &["no directory `/mnt/no`", "--parents"]);
        world.refused(&["file", "push", "c", &file, "/mnt/no/"], &["no directory that is there"]);
        world.refused(&["file", "push", "c", &file, &file, "/mnt/x"], &["no directory that is there"]);
        world.refused(&["file", "push", "c", text(&tree), "/mnt/file"], &["something else than a directory"]);
        world.refused(&["file", "push", "c", "/no/such/file", "/mnt"], &["opening `/no/such/file`"]);
        world.refused(&["file", "pull", "c", "/no/such/file", "/var/tmp"], &["`/no/such/file` in the container"]);
        world.refused(&["file", "pull", "c", "/mnt/file", &format!("{file}/x")], &["not a directory"]);
        look(world, "mkdir /mnt/d/ /mnt/d/file");
        world.refused(&["file", "push", "c", &file, "/mnt/d"], &["a directory is there"]);
        assert_eq!(look(world, "find /mnt -name '*part'"), "");
    });
}

// --- hostile ---

#[test]
fn no_link_inside_leads_a_copy_outside() {
    running_and_stopped(|world| {
        let bait = world.path("bait");
        fs::create_dir(&bait).unwrap();
        fs::write(bait.join("secret"), "of the host\n").unwrap();
        fs::set_permissions(&bait, fs::Permissions::from_mode(0o777)).unwrap();
        let up = format!("../../../../../../../..{}", text(&bait));
        look(
            world,
            &format!(
                "ln -s {} /mnt/abs; ln -s {up} /mnt/up; mkdir /mnt/t; ln -s {0} /mnt/t/sub; ln -s /proc/1/root /mnt/magic",
                text(&bait)
            ),
        );
        let tree = tree(world);
        let file = format!("{}/file", text(&tree));
        for target in ["/mnt/abs/made", "/mnt/up/made", "/mnt/magic/mnt/made"] {
            assert_eq!(world.lazaret(&["file", "push", "c", &file, target]).status, 1, "{target}");
        }
        for source in ["/mnt/abs/secret", "/mnt/up/secret", "/mnt/up"] {
            assert_eq!(world.lazaret(&["file", "pull", "c", source, text(&world.path("got"))]).status, 1, "{source}");
        }
        // A link where a directory of the tree is to be.
        let sub = format!("{}/sub", text(&tree));
        world.refused(&["file", "push", "c", &sub, "/mnt/t"], &["something else than a directory is there"]);
        // And where a file is to be: it goes itself.
        look(world, &format!("ln -s {}/secret /mnt/t/file", text(&bait)));
        world.ok(&["file", "push", "c", &file, "/mnt/t"]);
        assert_eq!(look(world, "test -L /mnt/t/file || cat /mnt/t/file"), "a file");
        assert_eq!(entries(&bait), ["secret"]);
        assert_eq!(fs::read_to_string(bait.join("secret")).unwrap(), "of the host\n");
    });
}

#[test]
fn no_link_outside_is_written_through() {
    running_and_stopped(|world| {
        let bait = world.path("bait");
        fs::create_dir(&bait).unwrap();
        fs::write(bait.join("file"), "of the host\n").unwrap();
        look(world, "mkdir -p /mnt/t/sub; echo theirs > /mnt/t/file; echo theirs > /mnt/t/sub/file");
        let out = world.path("out");
        fs::create_dir_all(out.join("t")).unwrap();
        symlink(bait.join("file"), out.join("t/file")).unwrap();
        symlink(&bait, out.join("t/sub")).unwrap();
        world.ok(&["file", "pull", "c", "/mnt/t/file", &format!("{}/t/file", text(&out))]);
        assert_eq!(fs::read_to_string(out.join("t/file")).unwrap(), "theirs\n");
        world.refused(&["file", "pull", "c", "/mnt/t", text(&out)], &["something else than a directory is there"]);
        assert_eq!(fs::read_to_string(bait.join("file")).unwrap(), "of the host\n");
    });
}

#[test]
fn what_is_no_file_is_refused_and_nothing_waits() {
    running_and_stopped(|world| {
        look(world, "mkfifo /mnt/fifo; echo 1 > /mnt/file; ln -s fifo /mnt/link");
        world.refused(&["file", "pull", "c", "/mnt/fifo", "-"], &["is a FIFO"]);
        world.refused(&["file", "pull", "c", "/mnt/link", "-"], &["is a FIFO"]);
        let out = world.ok(&["file", "pull", "c", "/mnt", text(&world.path("out"))]);
        assert!(out.stderr.contains("`/mnt/fifo` is a FIFO, and was left out"), "{out}");
        assert_eq!(entries(&world.path("out")), ["file", "link"]);
        let tree = tree(world);
        mknodat(CWD, tree.join("null"), FileType::CharacterDevice, 0o666.into(), makedev(1, 3)).unwrap();
        world.refused(&["file", "push", "c", "/dev/null", "/mnt"], &["is a device"]);
        let out = world.ok(&["file", "push", "c", text(&tree), "/mnt"]);
        assert!(out.stderr.contains("is a device, and was left out"), "{out}");
        // In the place of a file, it goes.
        world.ok(&["file", "push", "c", &format!("{}/file", text(&tree)), "/mnt/fifo"]);
        assert_eq!(look(world, "cat /mnt/fifo"), "a file");
    });
}

#[test]
fn a_tree_that_is_swapped_meanwhile_leads_nowhere() {
    let world = World::new();
    world.start_container("c", bare());
    let bait = world.path("bait");
    fs::create_dir(&bait).unwrap();
    fs::set_permissions(&bait, fs::Permissions::from_mode(0o777)).unwrap();
    let swap = format!(
        "mkdir -p /mnt/t {0}; ln -s {0} /mnt/l; mkdir /mnt/d; echo ready; while [ ! -e /stop ]; do mv -T /mnt/d /mnt/t/sub;
         mv -T /mnt/t/sub /mnt/d; mv -T /mnt/l /mnt/t/sub; mv -T /mnt/t/sub /mnt/l; done 2>/dev/null",
        text(&bait)
    );
    let mut swapper = world.spawn(&["exec", "c", "--", "sh", "-c", &swap]);
    swapper.expect("ready\n");
    let sub = tree(&world).join("sub");
    for _ in 0..20 {
        world.lazaret(&["file", "push", "c", text(&sub), "/mnt/t"]);
        world.lazaret(&["file", "pull", "c", "/mnt/t", text(&world.path("out"))]);
    }
    world.exec_sh("c", "touch /stop");
    swapper.wait();
    assert_eq!(entries(&bait), Vec::<String>::new(), "something was written outside");
    assert_eq!(world.exec_sh("c", &format!("ls -A {}", text(&bait))), "", "a link was followed");
}

// --- kill -9 ---

#[test]
fn a_file_is_whole_or_not_there_whoever_is_killed() {
    running_and_stopped(|world| {
        let mut push = world.spawn(&["file", "push", "c", "-", "/mnt/new"]);
        push.feed(&vec![1; 4 << 20]);
        push.signal(Signal::KILL);
        push.wait();
        assert_eq!(
            look(
                world,
                "sync; i=0; while [ -n \"$(ls -A /mnt)\" ] && [ $i -lt 100000 ]; do i=$((i+1)); done; ls -A /mnt"
            ),
            ""
        );
        world.feed(b"new\n", &["file", "push", "c", "-", "/mnt/new"]);
        assert_eq!(look(world, "cat /mnt/new"), "new");
    });
}

#[test]
fn much_is_copied_while_the_container_works_on() {
    let world = World::new();
    world.start_container("c", bare());
    let big = world.path("big");
    fs::File::create(&big).unwrap().set_len(200 << 20).unwrap();
    world.ok(&["file", "push", "c", text(&big), "/mnt/big"]);
    assert_eq!(world.exec_sh("c", "stat -c %s /mnt/big"), (200 << 20).to_string());
    world.ok(&["freeze", "c"]);
    assert_eq!(world.feed(b"x", &["file", "push", "c", "-", "/mnt/frozen"]).status, 0, "a frozen one takes files too");
    world.ok(&["unfreeze", "c"]);
    assert_eq!(world.exec_sh("c", "cat /mnt/frozen"), "x");
}

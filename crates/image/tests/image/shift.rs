//! A shifted copy is the same tree for the ids it was shifted to.

use std::fs;
use std::os::fd::AsFd;

use lazaret_image::copy_shifted;

use crate::fidelity::{ATTRIBUTES, PLAIN};
use crate::world::{ALL, Tmpfs, View, World, assert_same, attributes, manifest, open_dir, sh};

const HOLES: &str = "
truncate -s 5M all-hole; truncate -s 3M begins; printf end >> begins
head -c 70000 /dev/urandom > ends; truncate -s 2M ends
";

#[test]
fn everything_is_kept_and_every_id_moves() {
    let world = World::new();
    let from = world.make("from");
    sh(&from, &format!("{PLAIN}{HOLES}{ATTRIBUTES}"));
    let into = world.make("into");
    let mut reports = 0;
    let copied =
        copy_shifted(open_dir(&from).as_fd(), open_dir(&into).as_fd(), 100_000, &mut |_| reports += 1).unwrap();
    let expected = manifest(&from, ALL);
    assert_same(&manifest(&into, View { unshift: 100_000, ..ALL }), &expected);
    assert_eq!(copied.entries as usize + 1, expected.len());
    assert!(reports > 0 && copied.bytes > 3_000_000);
    let capability = &attributes(&into.join("usr/bin/su"))["security.capability"];
    assert_eq!((capability[3], &capability[20..]), (3, &100_000u32.to_le_bytes()[..]));
}

#[test]
fn another_file_system_gets_the_same() {
    let world = World::new();
    let from = world.make("from");
    sh(&from, &format!("{PLAIN}{HOLES}"));
    let into = world.make("into");
    let _mounted = Tmpfs::mount(&into, "size=64m,mode=0755");
    copy_shifted(open_dir(&from).as_fd(), open_dir(&into).as_fd(), 0, &mut |_| {}).unwrap();
    assert_same(&manifest(&into, ALL), &manifest(&from, ALL));
}

#[test]
fn a_tree_deeper_than_a_path_is_copied() {
    let world = World::new();
    let mut at = open_dir(&world.make("from"));
    for _ in 0..1500 {
        rustix::fs::mkdirat(&at, "down", rustix::fs::Mode::RWXU).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        at = rustix::fs::openat(&at, "down", flags, rustix::fs::Mode::empty()).unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    drop(rustix::fs::openat(&at, "one", flags, rustix::fs::Mode::RUSR).unwrap());
    rustix::fs::linkat(&at, "one", &at, "two", rustix::fs::AtFlags::empty()).unwrap();
    let (from, into) = (open_dir(&world.path("from")), open_dir(&world.make("into")));
    assert_eq!(copy_shifted(from.as_fd(), into.as_fd(), 5, &mut |_| {}).unwrap().entries, 1502);
}

#[test]
fn ids_that_do_not_fit_and_directories_that_are_not_empty_are_refused() {
    let world = World::new();
    let (from, into) = (world.make("from"), world.make("into"));
    sh(&from, "mkdir etc; printf x > etc/odd; chown 4294900000 etc/odd");
    let copy = || copy_shifted(open_dir(&from).as_fd(), open_dir(&into).as_fd(), 100_000, &mut |_| {}).unwrap_err();
    let e = copy();
    assert!(e.to_string().contains("`etc/odd`: the id 4294900000 can't be shifted"), "{e}");
    assert!(copy().to_string().contains("not empty"));
}

#[test]
fn links_are_copied_and_not_followed() {
    let world = World::new();
    let (from, into) = (world.make("from"), world.make("into"));
    sh(
        &world.dir,
        "mkdir outside; echo secret > outside/secret; ln -s ../outside from/dir; ln -s ../outside/secret from/file",
    );
    copy_shifted(open_dir(&from).as_fd(), open_dir(&into).as_fd(), 1, &mut |_| {}).unwrap();
    assert!(into.join("dir").is_symlink() && into.join("file").is_symlink());
    assert_eq!(fs::read_to_string(world.path("outside/secret")).unwrap(), "secret\n");
}

//! A tree that went through an archive is the same tree.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use lazaret_image::{Limits, Unpacked, unpack};

use crate::craft::Craft;
use crate::world::{ALL, View, World, assert_same, attributes, extents, manifest, open_dir, sh};

/// What every format can hold.
pub const PLAIN: &str = r#"
umask 022
mkdir -p usr/bin usr/lib etc/deep/er var/log shared sticky closed
ln -s usr/bin bin
printf 1 > one; : > empty; head -c 512 /dev/urandom > block; head -c 513 /dev/urandom > more
head -c 3000000 /dev/urandom > usr/lib/large
printf x > usr/bin/su; chmod 4755 usr/bin/su
printf x > usr/bin/wall; chown 0:5 usr/bin/wall; chmod 2755 usr/bin/wall
printf x > secret; chmod 0000 secret; chown 1234:5678 secret
chmod 2775 shared; chown 0:50 shared; printf x > shared/of-root; mkdir shared/sub
chmod 1777 sticky; chmod 0000 closed; printf x > closed/inside
printf x > 'with space'; printf x > $'new\nline'; printf x > -- '-dash'; printf x > '...'; printf x > 'a..b'
printf x > $'not-utf8-\xff\xfe'; printf x > 'back\slash'; printf x > 'ünïcödé'
printf x > "$(printf 'n%.0s' $(seq 90))"
ln one usr/bin/also-one; ln one etc/deep/er/again
ln -s /absolute/target etc/absolute; ln -s ../../one etc/deep/relative; ln -s nowhere etc/dangling
chown -h 77:88 etc/dangling; ln etc/dangling etc/same-link
mkfifo var/fifo; chmod 0620 var/fifo; mknod var/null c 1 3; chmod 0666 var/null; chown 3:4 var/null
mknod var/loop b 7 200; mknod var/large-numbers c 511 65535
touch -d '2001-02-03 04:05:06' one; touch -h -d '2002-02-03 04:05:06' etc/dangling var/null
"#;

/// What takes pax or GNU headers.
pub const LONG: &str = r#"
printf x > large-ids; chown 3000000:4000000 large-ids
long=$(printf 'l%.0s' $(seq 255)); mkdir -p "$long/$long"; printf x > "$long/$long/$long"; ln "$long/$long/$long" short
ln -s "$long/$long/$long" long-target; ln long-target long-target-again
truncate -s 5M all-hole
truncate -s 3M begins; printf end >> begins
head -c 70000 /dev/urandom > ends; truncate -s 2M ends
for i in $(seq 0 40); do printf "piece $i" | dd of=pieces bs=1 seek=$((i * 262144)) conv=notrunc status=none; done
touch -d '1960-05-06 07:08:09' old
"#;

/// What takes pax headers. Archives name whom access lists are for, so the tree has accounts.
pub const ATTRIBUTES: &str = r#"
getent passwd > etc/passwd; getent group > etc/group
setfattr -n user.text -v 'a value' one
setfattr -n user.binary -v 0x0a003d0a31323320613d620a one
setfattr -n 'user.odd=%name' -v x one
setfattr -n user.empty one
setfattr -n user.large -v "$(head -c 3000 /dev/zero | tr '\0' v)" one
setfattr -n trusted.overlay.opaque -v y shared
setfattr -n user.dir -v z etc
setfattr -h -n trusted.link -v t etc/absolute
setfattr -n trusted.device -v t var/null
setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 usr/bin/su
setfacl -m u:1000:rw,g:4:r,m::rw one
setfacl -m u:1000:rwx,g:3000000:rx -m d:u:1000:rwx,d:g:4:rx,d:m::rwx var/log
printf x > var/log/no-inheritance; chmod 600 var/log/no-inheritance; setfacl -b var/log/no-inheritance
mkdir var/log/below; setfacl -b -k var/log/below
setfacl -m u:1:rw var/fifo
touch -d '2003-04-05 06:07:08.123456789' one usr etc var/log/below
touch -d '1969-12-31 23:59:58.250000000' empty
touch -h -d '2010-01-01 00:00:00.000000001' etc/absolute
touch -d '2011-01-01 00:00:00.5' .
"#;

pub fn unpack_bytes(archive: &[u8], into: &Path, limits: &Limits) -> lazaret_base::Result<Unpacked> {
    unpack(archive, open_dir(into).as_fd(), limits, &mut |_| {})
}

/// Archives a tree made by `script` with `options` and compares what comes out.
#[track_caller]
fn check(script: &str, options: &str, compress: &str, view: View) {
    let world = World::new();
    let from = world.make("from");
    sh(&from, script);
    sh(&world.dir, &format!("tar -C from {options} -c . {compress} > archive"));
    let into = world.make("into");
    let file = File::open(world.path("archive")).unwrap();
    let unpacked = unpack(file, open_dir(&into).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    assert_eq!(unpacked.warnings, [""; 0]);
    let expected = manifest(&from, view);
    assert_same(&manifest(&into, view), &expected);
    assert_eq!(unpacked.entries as usize, expected.len());
}

const SECONDS: View = View { nanoseconds: false, attributes: false, ..ALL };
const PAX: &str = "--format=pax --numeric-owner --xattrs --xattrs-include=* --acls --sparse";

#[test]
fn ustar_keeps_all_that_it_can_hold() {
    check(PLAIN, "--format=ustar", "", SECONDS);
}

#[test]
fn v7_keeps_files_links_and_directories() {
    let script = "umask 022; mkdir d; printf x > d/f; ln d/f d/g; ln -s f d/l; chmod 4711 d/f; chown 5:6 d/f";
    check(script, "--format=v7", "", SECONDS);
}

#[test]
fn gnu_keeps_long_names_large_ids_holes_and_old_times() {
    check(&format!("{PLAIN}{LONG}"), "--format=gnu --sparse", "", SECONDS);
}

#[test]
fn pax_keeps_everything() {
    check(&format!("{PLAIN}{LONG}{ATTRIBUTES}"), PAX, "", ALL);
}

#[test]
fn every_version_of_sparse_files_keeps_its_holes() {
    for version in ["0.0", "0.1", "1.0"] {
        check(LONG, &format!("--format=pax --sparse --sparse-version={version}"), "", ALL);
    }
}

#[test]
fn every_compression_is_recognised() {
    for compress in ["| gzip", "| xz -1", "| xz -T2 -1 --block-size=262144", "| zstd -q"] {
        check(PLAIN, "--format=pax", compress, View { attributes: false, ..ALL });
    }
}

#[test]
fn several_compressed_streams_in_a_row_are_one() {
    let halves = |tool: &str| format!("> plain; (head -c 1000000 plain | {tool}; tail -c +1000001 plain | {tool}) ");
    for tool in ["gzip", "xz -1", "zstd -q"] {
        check(PLAIN, "--format=pax", &halves(tool), View { attributes: false, ..ALL });
    }
}

#[test]
fn names_in_access_lists_are_those_of_the_image() {
    let world = World::new();
    let from = world.make("from");
    sh(
        &from,
        "mkdir etc log; echo daemon:x:777:777::/: > etc/passwd; echo adm:x:888: > etc/group
         printf x > file; setfacl -m u:daemon:rw,g:adm:r,g:tty:r file; setfacl -m g:adm:rx -m d:g:adm:rx log",
    );
    sh(&world.dir, "tar -C from --format=pax --acls -c file log etc > archive");
    let into = world.make("into");
    let unpacked = unpack_bytes(&fs::read(world.path("archive")).unwrap(), &into, &Limits::default()).unwrap();
    assert_eq!(unpacked.warnings.len(), 1, "{:?}", unpacked.warnings);
    assert!(unpacked.warnings[0].contains("`tty`"), "{:?}", unpacked.warnings);
    let ids = |path: &str, name: &str| -> Vec<u32> {
        let acl = attributes(&into.join(path)).remove(name).unwrap();
        let named = acl[4..].chunks(8).filter(|line| matches!(line[0], 2 | 8));
        named.map(|line| u32::from_le_bytes(line[4..].try_into().unwrap())).collect()
    };
    assert_eq!(ids("file", "system.posix_acl_access"), [777, 888]);
    assert_eq!(ids("log", "system.posix_acl_access"), [888]);
    assert_eq!(ids("log", "system.posix_acl_default"), [888]);
}

#[test]
fn a_merged_usr_may_come_before_or_after_what_is_in_it() {
    let world = World::new();
    let into = world.make("into");
    let archive = Craft::new()
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .file("lib/by-link", "1")
        .symlink("usr/lib64", "/lib")
        .file("usr/lib64/by-absolute-link", "2")
        .file("./usr/lib/direct", "3")
        .file("//rooted//twice/./x", "4");
    unpack_bytes(&archive.end(), &into, &Limits::default()).unwrap();
    for (path, text) in
        [("usr/lib/by-link", "1"), ("usr/lib/by-absolute-link", "2"), ("usr/lib/direct", "3"), ("rooted/twice/x", "4")]
    {
        assert_eq!(fs::read_to_string(into.join(path)).unwrap(), text);
    }
    assert!(into.join("lib").is_symlink());
}

#[test]
fn a_later_entry_replaces_a_former_one_of_any_type() {
    let world = World::new();
    let into = world.make("into");
    let mut archive = Craft::new().file("victim", "untouched").symlink("x", "victim").file("x", "not through the link");
    archive = archive.hardlink("y", "victim").file("y", "not into the other name");
    archive = archive.file("z", "1").dir("z").symlink("z", "victim").entry(b'6', "z", "", 0, b"").file("z", "last");
    for n in 0..10_000 {
        archive = archive.file("often", &n.to_string());
    }
    let unpacked = unpack_bytes(&archive.end(), &into, &Limits::default()).unwrap();
    assert_eq!(unpacked.entries, 10_010);
    let read = |name: &str| fs::read_to_string(into.join(name)).unwrap();
    assert_eq!((read("victim").as_str(), read("x").as_str()), ("untouched", "not through the link"));
    assert_eq!(
        (read("y").as_str(), read("z").as_str(), read("often").as_str()),
        ("not into the other name", "last", "9999")
    );
}

#[test]
fn a_unified_image_is_its_rootfs() {
    let world = World::new();
    let from = world.make("from");
    sh(
        &from,
        &format!(
            "mkdir rootfs templates; echo a: b > metadata.yaml; : > templates/hosts.tpl; cd rootfs; {PLAIN}{ATTRIBUTES}"
        ),
    );
    // The root may have names that the image itself uses, and absolute links that entries go through.
    sh(
        &from,
        "cd rootfs; mkdir rootfs templates; printf x > rootfs/x; printf y > metadata.yaml; chmod 711 .; ln -s /var/log journal",
    );
    for order in ["metadata.yaml templates rootfs", "rootfs metadata.yaml templates", "rootfs"] {
        sh(&world.dir, &format!("tar -C from {PAX} -c {order} > archive"));
        let mut archive = fs::read(world.path("archive")).unwrap();
        let through_link = Craft::new().file("rootfs/journal/entry", "x").0;
        let end = archive.chunks(512).rposition(|block| block.iter().any(|byte| *byte != 0)).unwrap() + 1;
        archive.splice(end * 512..end * 512, through_link);
        let into = world.make("into");
        let unpacked = unpack_bytes(&archive, &into, &Limits::default()).unwrap();
        assert!(unpacked.unified);
        assert_eq!(unpacked.warnings, [""; 0]);
        let mut found = manifest(&into, ALL);
        assert!(found.remove("var/log/entry").is_some());
        assert_same(&found, &manifest(&from.join("rootfs"), ALL));
        sh(&world.dir, "rm -rf into");
    }
}

#[test]
fn a_root_that_has_a_directory_named_rootfs_is_no_unified_image() {
    let world = World::new();
    let into = world.make("into");
    let archive =
        Craft::new().file("rootfs/x", "x").symlink("rootfs/y", "/etc").file("etc/z", "z").file("rootfs/w", "w");
    let unpacked = unpack_bytes(&archive.end(), &into, &Limits::default()).unwrap();
    assert!(!unpacked.unified);
    assert!(into.join("rootfs/x").exists() && into.join("rootfs/w").exists() && into.join("etc/z").exists());
}

#[test]
fn directories_that_nothing_describes_are_open_and_the_root_keeps_its_own_mode() {
    let world = World::new();
    let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap()) & 0o7777;
    let into = world.make("into");
    unpack_bytes(&Craft::new().file("a/b/c", "x").end(), &into, &Limits::default()).unwrap();
    assert_eq!((mode(&into), mode(&into.join("a")), mode(&into.join("a/b"))), (0o755, 0o755, 0o755));
    let other = world.make("other");
    unpack_bytes(&Craft::new().dir("./").file("a", "x").end(), &other, &Limits::default()).unwrap();
    assert_eq!(mode(&other), 0o644, "the crafted entry says so");
}

#[test]
fn what_no_file_system_holds_is_left_out_with_a_warning() {
    let world = World::new();
    let into = world.make("into");
    let archive = Craft::new()
        .entry(b'V', "a label", "", 0, b"")
        .entry(b's', "socket", "", 0, b"")
        .entry(b'Z', "odd", "", 5, b"12345")
        .pax(&[("SCHILY.xattr.security.selinux", "system_u:object_r:shadow_t:s0"), ("SCHILY.xattr.user.kept", "1")])
        .file("file", "x")
        .pax(&[("SCHILY.acl.access", "nonsense")])
        .file("listed", "x");
    let unpacked = unpack_bytes(&archive.end(), &into, &Limits::default()).unwrap();
    for (warning, part) in unpacked.warnings.iter().zip(["`socket`", "`odd`", "security.selinux", "`listed`"]) {
        assert!(warning.contains(part), "{warning}");
    }
    assert_eq!(unpacked.warnings.len(), 4);
    assert_eq!(attributes(&into.join("file")).into_keys().collect::<Vec<_>>(), ["user.kept"]);
}

#[test]
fn holes_survive_without_being_written() {
    let world = World::new();
    let into = world.make("into");
    let archive = Craft::new()
        .pax(&[
            ("GNU.sparse.size", "1099511627776"),
            ("GNU.sparse.numblocks", "1"),
            ("GNU.sparse.map", "1099511623680,4"),
        ])
        .file("terabyte", "data");
    let unpacked = unpack_bytes(&archive.end(), &into, &Limits::default()).unwrap();
    assert_eq!(unpacked.bytes, 4);
    assert_eq!(extents(&into.join("terabyte")), [(1_099_511_623_680, 1_099_511_627_776)]);
}

//! Archives that want more than to be unpacked.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::PathBuf;

use lazaret_image::{Limits, remove_tree};

use crate::craft::Craft;
use crate::fidelity::unpack_bytes;
use crate::world::{ALL, World, assert_same, manifest, open_dir, sh};

/// A directory to unpack into, beside one that must not change.
pub struct Jail {
    world: World,
    pub into: PathBuf,
    before: std::collections::BTreeMap<String, String>,
}

impl Jail {
    pub fn new() -> Jail {
        let world = World::new();
        let into = world.make("into");
        sh(
            &world.dir,
            "mkdir outside; echo secret > outside/secret; ln -s secret outside/link; chmod 600 outside/secret",
        );
        let before = manifest(&world.path("outside"), ALL);
        Jail { world, into, before }
    }

    #[track_caller]
    pub fn check(&self) {
        assert_same(&manifest(&self.world.path("outside"), ALL), &self.before);
        let names: Vec<_> = fs::read_dir(&self.world.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    /// Empties what was unpacked.
    pub fn clear(&self) {
        remove_tree(open_dir(&self.world.dir).as_fd(), c"into").unwrap();
        fs::create_dir(&self.into).unwrap();
    }

    pub fn outside(&self) -> String {
        self.world.path("outside").to_str().unwrap().to_owned()
    }
}

/// The error for an archive; nothing outside has changed.
#[track_caller]
fn refused(archive: &[u8], limits: &Limits) -> String {
    let jail = Jail::new();
    let e = unpack_bytes(archive, &jail.into, limits).expect_err("unpacked");
    jail.check();
    e.to_string()
}

#[track_caller]
fn check(archive: Craft, expected: &str) {
    let e = refused(&archive.end(), &Limits::default());
    assert!(e.contains(expected), "{e}");
}

#[test]
fn paths_that_go_up_are_refused() {
    for path in ["../x", "a/../../x", "..", "a/..", "/../x", "./../x"] {
        check(Craft::new().file(path, "x"), "goes up by `..`");
        check(Craft::new().dir(path), "goes up by `..`");
        check(Craft::new().file("a", "x").hardlink("b", path), "goes up by `..`");
    }
    check(Craft::new().pax(&[("path", "../x")]).file("good", "x"), "goes up by `..`");
}

#[test]
fn links_lead_nowhere_but_inside() {
    let jail = Jail::new();
    let outside = jail.outside();
    let depth = "../".repeat(20);
    for target in [outside.clone(), format!("{depth}{outside}"), "/proc/self/root".into(), "/proc/self/cwd".into()] {
        let archive = Craft::new().symlink("link", &target).file("link/file", "x");
        let e = unpack_bytes(&archive.end(), &jail.into, &Limits::default()).unwrap_err().to_string();
        assert!(e.contains("entry 2 (`link/file`)") && e.contains("`link` is a dangling link"), "{e}");
        jail.check();
        jail.clear();
    }
    // The same names inside of the tree are found instead.
    let archive = Craft::new().dir(&outside).symlink("link", &outside).file("link/file", "x");
    unpack_bytes(&archive.end(), &jail.into, &Limits::default()).unwrap();
    assert!(jail.into.join(outside.trim_start_matches('/')).join("file").exists());
    jail.check();
}

#[test]
fn nothing_is_written_through_the_last_component() {
    let jail = Jail::new();
    let secret = format!("{}/secret", jail.outside());
    let archive = Craft::new()
        .symlink("a", &secret)
        .file("a", "overwritten")
        .symlink("b", &secret)
        .hardlink("c", "b")
        .pax(&[("SCHILY.xattr.user.mark", "1"), ("SCHILY.acl.access", "u::rwx,g::rwx,o::rwx")])
        .file("c", "overwritten")
        .symlink("d", &jail.outside())
        .pax(&[("SCHILY.xattr.user.mark", "1"), ("SCHILY.acl.default", "u::rwx,g::rwx,o::rwx")])
        .dir("d")
        .symlink("rootfs", &jail.outside())
        .dir("rootfs")
        .file("rootfs/x", "x");
    unpack_bytes(&archive.end(), &jail.into, &Limits::default()).unwrap();
    jail.check();
}

#[test]
fn a_directory_that_became_a_link_is_not_finished_through_it() {
    let jail = Jail::new();
    let archive = Craft::new().dir("etc").dir("d").symlink("d", &jail.outside()).dir("e").symlink("e", "etc");
    unpack_bytes(&archive.end(), &jail.into, &Limits::default()).unwrap();
    jail.check();
    assert!(jail.into.join("d").is_symlink() && jail.into.join("e").is_symlink());
}

#[test]
fn hard_links_reach_nothing_outside() {
    let jail = Jail::new();
    let outside = jail.outside();
    for archive in [
        Craft::new().hardlink("x", &format!("{outside}/secret")),
        Craft::new().symlink("d", &outside).hardlink("x", "d/secret"),
        Craft::new().hardlink("x", "not-there"),
        Craft::new().dir("d").hardlink("x", "d"),
    ] {
        let e = unpack_bytes(&archive.end(), &jail.into, &Limits::default()).unwrap_err().to_string();
        assert!(e.contains("(`x`): linking it to"), "{e}");
        jail.check();
        jail.clear();
    }
}

#[test]
fn a_full_directory_is_not_replaced() {
    check(
        Craft::new().file("d/x", "x").file("d", "y"),
        "entry 2 (`d`): it would replace a directory that is not empty",
    );
    check(Craft::new().file("x", "x").file("./", "y"), "");
    check(Craft::new().symlink(".", "x"), "only a directory can be the root");
}

#[test]
fn limits_are_kept_and_named() {
    let limits = Limits { bytes: 1 << 20, entries: 10, path: 100, ..Limits::default() };
    let check = |archive: Craft, expected: &str| {
        let e = refused(&archive.end(), &limits);
        assert!(e.contains(expected), "{e}");
    };
    check(Craft::new().entry(b'0', "huge", "", 1 << 62, b""), "`huge`): it claims 4611686018427387904 bytes");
    check(Craft::new().pax(&[("size", "99999999999999999999")]).file("x", "x"), "is not a number");
    check((0..20).fold(Craft::new(), |a, n| a.file(&n.to_string(), "")), "more than the limit of 10 entries");
    check(Craft::new().pax(&[("path", &"p/".repeat(60))]).file("x", "x"), "longer than the limit of 100 bytes");
    check(Craft::new().pax(&[("linkpath", &"p/".repeat(60))]).symlink("x", "x"), "link target is longer");
    check(Craft::new().entry(b'x', "pax", "", 1 << 30, b""), "an extension header of 1073741824 bytes");
    check(Craft::new().entry(b'L', "long", "", 1 << 30, b""), "an extension header");
    check((0..5).fold(Craft::new(), |a, _| a.entry(b'0', "x", "", 300_000, &[7; 300_000])), "leaves");
    check(Craft::new().pax(&[("uid", "4294967295")]).file("x", "x"), "the uid 4294967295 is too large");
}

#[test]
fn names_longer_than_the_kernel_takes_are_told() {
    check(Craft::new().pax(&[("path", &"n".repeat(256))]).file("x", "x"), "file name too long");
    check(Craft::new().pax(&[("path", "a\0b")]).file("x", "x"), "a zero byte in the name");
}

#[test]
fn bombs_are_stopped_by_their_ratio() {
    let world = World::new();
    let limits = Limits { ratio_floor: 1 << 20, ..Limits::default() };
    for tool in ["gzip -9", "xz", "zstd -q -19"] {
        sh(&world.dir, &format!("truncate -s 64M zeros; tar -c zeros | {tool} > bomb"));
        let e = refused(&fs::read(world.path("bomb")).unwrap(), &limits);
        assert!(e.contains("more than 200 times its size"), "{e}");
    }
}

#[test]
fn a_truncated_archive_is_never_taken_for_a_whole_one() {
    let whole = Craft::new().dir("etc").file("etc/first", "1").file("etc/second", &"2".repeat(2000)).end();
    // Up to the last block that says something; then there is an end mark.
    let end = whole.len() - 1024;
    for length in (1..=end).filter(|length| length % 512 == 0 || length % 97 == 0) {
        let e = refused(&whole[..length], &Limits::default());
        assert!(e.contains("truncated"), "{length}: {e}");
    }
    let e = refused(&whole[..end - 700], &Limits::default());
    assert!(e.contains("entry 3 (`etc/second`)"), "{e}");
    let e = refused(&whole[..end], &Limits::default());
    assert!(e.contains("after entry 3 (`etc/second`)") && e.contains("no end mark"), "{e}");
}

#[test]
fn a_truncated_or_damaged_compressed_file_is_told() {
    let world = World::new();
    sh(&world.dir, "head -c 100000 /dev/urandom > x; tar -c x > plain");
    for tool in ["gzip", "xz", "zstd -q"] {
        sh(&world.dir, &format!("{tool} < plain > packed"));
        let packed = fs::read(world.path("packed")).unwrap();
        for cut in [1, 4, 8, 30, 50_000] {
            let e = refused(&packed[..packed.len() - cut], &Limits::default());
            assert!(e.contains("truncated") || e.contains("damaged"), "{tool} {cut}: {e}");
        }
        let mut garbage = packed.clone();
        garbage.write_all(b"this does not belong here").unwrap();
        refused(&garbage, &Limits::default());
        let mut flipped = packed.clone();
        flipped[60_000] ^= 0x10;
        refused(&flipped, &Limits::default());
    }
}

#[test]
fn what_is_no_archive_is_named() {
    let check = |bytes: &[u8], expected: &str| {
        let e = refused(bytes, &Limits::default());
        assert!(e.contains(expected), "{e}");
    };
    check(b"", "the file is empty");
    check(b"hello", "truncated");
    check(&[b'x'; 2000], "not a tar archive");
    check(b"BZh91AY&SY", "a bzip2 file");
    check(b"hsqs\0\0\0\0\0\0", "a squashfs file system");
    check(b"PK\x03\x04\0\0\0\0", "a zip file");
    let mut garbage = Craft::new().file("x", "x").end();
    garbage.extend([1; 600]);
    check(&garbage, "after entry 1 (`x`): there is data behind the end of the archive");
    let mut damaged = Craft::new().file("x", "x").file("y", "y").end();
    damaged[1024 + 3] ^= 1;
    check(&damaged, "after entry 1 (`x`): a damaged header");
}

#[test]
fn maps_of_holes_are_not_believed() {
    let map = |size: &str, map: &str| {
        Craft::new().pax(&[("GNU.sparse.size", size), ("GNU.sparse.map", map)]).file("x", "data")
    };
    check(map("100", "0,4,2,4"), "not in order");
    check(map("3", "0,4"), "not in order");
    check(map("100", "18446744073709551615,4"), "not in order");
    check(map("100", "0,3"), "does not fit its data");
    check(map("100", "0,2,50"), "odd end");
    check(map("100", "0,x"), "is not a number");
    check(map("18446744073709551615", "0,4"), "does not fit its data");
    let in_data = |data: &str| {
        let records = [
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.realsize", "100"),
            ("GNU.sparse.name", "x"),
        ];
        Craft::new().pax(&records).entry(b'0', "GNUSparseFile.1/x", "", data.len() as u64, data.as_bytes())
    };
    check(in_data(&format!("{:<512}", "99999999999\n")), "more than");
    check(in_data(&format!("{:<512}", "-1\n")), "not made of numbers");
    check(in_data("1\n"), "longer than its data");
    check(in_data(&"1".repeat(512)), "not made of numbers");
    check(Craft::new().pax(&[("GNU.sparse.major", "7")]).file("x", "x"), "unknown format");
}

#[test]
fn a_directory_that_is_not_empty_is_not_unpacked_into() {
    let jail = Jail::new();
    fs::write(jail.into.join("there"), "x").unwrap();
    let e = unpack_bytes(&Craft::new().file("x", "x").end(), &jail.into, &Limits::default()).unwrap_err();
    assert!(e.to_string().contains("not empty"), "{e}");
}

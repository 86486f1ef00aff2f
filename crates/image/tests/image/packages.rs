//! Packages of Debian's format that want more than to be installed.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use lazaret_base::Result;
use lazaret_image::absorb;
use lazaret_image::build::{Foundation, Index, file_name, lay_foundation};

use crate::craft::Craft;
use crate::world::{World, open_dir, sh};

const CONTROL: &str = "Package: a\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n";

/// An ar archive.
fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, data) in members {
        bytes.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, data.len()).bytes());
        bytes.extend(*data);
        bytes.resize(bytes.len().next_multiple_of(2), b'\n');
    }
    bytes
}

fn deb(control: Craft, data: Craft) -> Vec<u8> {
    ar(&[("debian-binary", b"2.0\n"), ("control.tar", &control.end()), ("data.tar", &data.end())])
}

fn control() -> Craft {
    Craft::new().dir("./").file("./control", CONTROL)
}

/// A tree to install into, beside something that must not change.
struct Jail {
    world: World,
    into: PathBuf,
}

impl Jail {
    fn new() -> Jail {
        let world = World::new();
        let into = world.make("into");
        sh(&world.dir, "mkdir outside files; echo secret > outside/secret");
        Jail { world, into }
    }

    fn lay(&self, package: &[u8]) -> Result<Foundation> {
        let index = Index::read([CONTROL], "amd64").unwrap();
        let a = *index.get("a").unwrap();
        fs::write(self.world.path("files").join(file_name(&a)), package).unwrap();
        let laid = lay_foundation(open_dir(&self.into).as_fd(), &[a], &self.world.path("files"), "amd64", &mut |_| {});
        let outside: Vec<_> =
            fs::read_dir(self.world.path("outside")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(outside, ["secret"]);
        assert_eq!(fs::read_to_string(self.world.path("outside/secret")).unwrap(), "secret\n");
        laid
    }
}

/// What an installation of this package is refused with.
#[track_caller]
fn refused(package: &[u8], words: &str) {
    let e = Jail::new().lay(package).expect_err("installed").to_string();
    assert!(e.contains(words), "{e}");
}

#[test]
fn a_package_is_left_as_dpkg_leaves_one_that_is_not_configured() {
    let jail = Jail::new();
    let control = control()
        .file("./preinst", "#!/bin/sh\n")
        .file("./conffiles", "/etc/a.conf\n")
        .file("./triggers", "interest-noawait /usr/lib/x\ninterest cron\nactivate y\n");
    let data = Craft::new()
        .dir("./")
        .dir("./etc/")
        .file("./etc/a.conf", "conf\n")
        .dir("./lib/")
        .dir("./lib/a/")
        .file("./lib/a/lib.so", "elf\n")
        .dir("./usr/")
        .dir("./usr/bin/")
        .symlink("./usr/bin/a", "../lib/a");
    let foundation = jail.lay(&deb(control, data)).unwrap();
    let read = |path: &str| fs::read_to_string(jail.into.join(path)).unwrap();
    // Through the link that was there, which stays.
    assert_eq!(read("usr/lib/a/lib.so"), "elf\n");
    assert_eq!(fs::read_link(jail.into.join("lib")).unwrap().to_str(), Some("usr/lib"));
    let inode = |path: &str| fs::metadata(jail.into.join(path)).unwrap().ino();
    assert_eq!(inode("etc/a.conf"), inode("etc/a.conf.dpkg-new"));
    assert_eq!(
        read("var/lib/dpkg/status"),
        CONTROL.replace("Version", "Status: install ok unpacked\nVersion") + "Conffiles:\n /etc/a.conf newconffile\n\n"
    );
    assert_eq!(
        read("var/lib/dpkg/info/a.list"),
        "/.\n/etc\n/etc/a.conf\n/lib\n/lib/a\n/lib/a/lib.so\n/usr\n/usr/bin\n/usr/bin/a\n"
    );
    assert_eq!(read("var/lib/dpkg/triggers/File"), "/usr/lib/x a/noawait\n");
    assert_eq!(read("var/lib/dpkg/triggers/cron"), "a\n");
    let script = &foundation.scripts[0];
    assert_eq!((script.package.as_str(), script.path.as_str()), ("a", "/var/lib/dpkg/info/a.preinst"));
}

#[test]
fn no_path_of_a_package_leads_outside() {
    for data in [
        Craft::new().file("../outside/secret", "x"),
        Craft::new().file("./usr/../../outside/secret", "x"),
        Craft::new().symlink("./out", "../outside").file("./out/secret", "x"),
        Craft::new().symlink("./out", "../outside").file("./out/new", "x"),
        Craft::new().hardlink("./h", "../outside/secret"),
        Craft::new().symlink("./s", "../outside/secret").hardlink("./h", "./s").file("./h", "x"),
        Craft::new().symlink("./usr/lib/x", "/../../outside").dir("./usr/lib/x/").file("./usr/lib/x/secret", "x"),
    ] {
        // Refused, or kept inside: both are right; what is outside was looked at.
        let _ = Jail::new().lay(&deb(control(), data));
    }
    // What dpkg keeps for itself is ours to write, whatever a package has put in its place.
    for data in [
        Craft::new().symlink("./var/lib/dpkg/status", "/../../outside/secret"),
        Craft::new().symlink("./var/lib/dpkg/info/a.list", "../../../../../outside/secret"),
        Craft::new().symlink("./var/lib/dpkg/triggers/cron", "../../../../../outside/secret"),
    ] {
        let _ = Jail::new().lay(&deb(control().file("./triggers", "interest cron\n"), data));
    }
    let conffile = control().file("./conffiles", "/etc/../../outside/secret\n/x/../../outside/secret\n");
    let _ = Jail::new().lay(&deb(conffile, Craft::new().dir("./etc/")));
}

#[test]
fn a_file_that_is_no_package_is_refused() {
    let whole = deb(control(), Craft::new().dir("./"));
    refused(b"", "does not begin as one");
    refused(b"!<arch>\n", "something is missing");
    refused(&whole[..whole.len() - 100], "cut off");
    refused(&whole[..100], "cut off");
    refused(&ar(&[("control.tar", b"x")]), "does not say its format first");
    refused(&ar(&[("debian-binary", b"3.0\n")]), "none that is known");
    refused(&ar(&[("debian-binary", b"2.0\n"), ("data.tar", b"")]), "has no place in it");
    refused(&ar(&[("debian-binary", b"2.0\n"), ("control.tar.lzma", b"")]), "has no place in it");
    let mut huge = whole.clone();
    huge[8 + 60 + 4 + 48..8 + 60 + 4 + 58].copy_from_slice(b"9999999999");
    refused(&huge, "cut off, or a member is misshaped");
    huge[8 + 60 + 4 + 48..8 + 60 + 4 + 58].copy_from_slice(b"-1        ");
    refused(&huge, "misshaped");
}

#[test]
fn what_a_package_says_of_itself_is_checked() {
    let with = |control: Craft| deb(control, Craft::new().dir("./"));
    let other = |from: &str, to: &str| with(Craft::new().file("./control", &CONTROL.replace(from, to)));
    refused(&other("Package: a", "Package: b"), "`Package` is `b`, but the index says `a`");
    refused(&other("Version: 1", "Version: 2"), "the index says `1`");
    refused(&with(Craft::new().file("./postinst", "x")), "no control file");
    refused(&with(control().file("./../../x", "x")), "has no place in a control archive");
    refused(&with(control().file("./sub/x", "x")), "has no place in a control archive");
    refused(&with(control().symlink("./postinst", "/etc/passwd")), "has no place in a control archive");
    refused(&with(control().file("./triggers", "interest ../../x\n")), "is no trigger");
    refused(&with(control().file("./triggers", "interest .hidden\n")), "is no trigger");
    refused(&with(control().file("./md5sums", &"x".repeat(20 << 20))), "too large");
}

#[test]
fn any_byte_of_a_package_may_be_another() {
    let whole = deb(control().file("./conffiles", "/etc/a\n"), Craft::new().dir("./etc/").file("./etc/a", "x"));
    let jail = Jail::new();
    for at in (0..whole.len()).step_by(7) {
        let mut broken = whole.clone();
        broken[at] ^= 0x55;
        let _ = jail.lay(&broken);
        lazaret_image::remove_tree(open_dir(&jail.world.dir).as_fd(), c"into").unwrap();
        fs::create_dir(&jail.into).unwrap();
    }
}

#[test]
fn what_was_written_to_an_overlay_goes_into_the_tree_below() {
    let world = World::new();
    sh(
        &world.dir,
        "mkdir -p lower/kept/deep lower/gone lower/opaque upper work merged; cd lower; \
         echo old > changed; echo old > removed; echo x > kept/x; echo x > gone/x; echo x > opaque/x; ln -s x link",
    );
    let inode = fs::metadata(world.path("lower/kept/x")).unwrap().ino();
    sh(
        &world.dir,
        "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged; cd merged; \
         echo new > changed; rm removed; rm -r gone; rm -r opaque; mkdir opaque; echo y > opaque/y; \
         rm link; mkdir link; echo in > link/in; echo a > hard1; ln hard1 hard2; chmod 700 kept; \
         mkfifo kept/fifo; setfattr -n user.x -v y changed; mkdir -p new/er; ln -s /nowhere new/link; chown 5:6 new/er; \
         cd ..; cp -a merged expected; umount merged",
    );
    absorb(open_dir(&world.path("upper")).as_fd(), open_dir(&world.path("lower")).as_fd()).unwrap();
    use crate::world::{ALL, assert_same, manifest};
    assert_same(&manifest(&world.path("lower"), ALL), &manifest(&world.path("expected"), ALL));
    assert_eq!(fs::metadata(world.path("lower/kept/x")).unwrap().ino(), inode, "it was not copied");
    assert_eq!(
        fs::metadata(world.path("lower/hard1")).unwrap().ino(),
        fs::metadata(world.path("lower/hard2")).unwrap().ino()
    );
    // A link in the tree leads nowhere.
    sh(&world.dir, "mkdir -p up2/d tree2 outside; echo x > up2/d/x");
    symlink("../outside", world.path("tree2/d")).unwrap();
    absorb(open_dir(&world.path("up2")).as_fd(), open_dir(&world.path("tree2")).as_fd()).unwrap();
    assert_eq!(fs::read_dir(world.path("outside")).unwrap().count(), 0);
    assert!(world.path("tree2/d/x").exists());
}

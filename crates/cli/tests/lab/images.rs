//! What containers are made from: directories, archives of every kind, and file systems that can do less.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::harness::*;

/// The tree of the bare image as an uncompressed archive.
fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", bare()).unwrap();
    builder.into_inner().unwrap()
}

fn write(path: &Path, bytes: &[u8]) -> PathBuf {
    fs::write(path, bytes).unwrap();
    path.to_owned()
}

#[test]
fn archives_of_every_kind_make_the_same_container() {
    let world = World::new();
    let plain = archive();
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        encoder.finish().unwrap()
    };
    let xz = liblzma::encode_all(&plain[..], 0).unwrap();
    let zst = zstd::encode_all(&plain[..], 1).unwrap();
    for (kind, bytes) in [("tar", &plain), ("tar.gz", &gz), ("tar.xz", &xz), ("tar.zst", &zst)] {
        let path = write(&world.path(&format!("image.{kind}")), bytes);
        world.start_container("web", &path);
        let seen = world.exec_sh("web", "stat -c '%u:%g %a' /home/user /tmp /root; readlink /bin/sh; id -un");
        assert_eq!(seen, "1000:1000 755\n0:0 1777\n0:0 700\nbusybox\nroot", "{kind}");
        assert_eq!(world.info("web")["storage"], "overlay");
        world.ok(&["destroy", "--force", "web"]);
    }
    // The name does not matter, the content does.
    world.create("web", write(&world.path("image"), &xz));
    world.refused(
        &["create", "cut", "--image", text(&write(&world.path("cut"), &zst[..zst.len() / 2]))],
        &["preparing the image"],
    );
    assert_eq!(entries(&world.path("tmp")), [] as [String; 0]);
}

#[test]
fn containers_of_one_archive_share_its_layer_and_not_their_files() {
    let world = World::new();
    let path = write(&world.path("image.tar"), &archive());
    world.start_container("one", &path);
    let rootfs = PathBuf::from(word(&world.info("one")["rootfs"]));
    let unpacked = fs::metadata(rootfs.join("bin/busybox")).unwrap();
    world.start_container("two", &path);
    assert_eq!(word(&world.info("two")["rootfs"]), text(&rootfs));
    let again = fs::metadata(rootfs.join("bin/busybox")).unwrap();
    assert_eq!((unpacked.ino(), unpacked.ctime_nsec()), (again.ino(), again.ctime_nsec()), "it is not unpacked again");

    world.exec_sh("one", "echo one > /etc/passwd; rm /bin/vi; echo new > /new");
    assert!(world.exec_sh("two", "cat /etc/passwd; ls /bin/vi").starts_with("root:x:0:0:"));
    assert_eq!(world.lazaret(&["exec", "two", "--", "test", "-e", "/new"]).status, 1);
    assert!(
        fs::read_to_string(rootfs.join("etc/passwd")).unwrap().starts_with("root:x:0:0:"),
        "the layer is read-only"
    );
    // On disk, what a container writes has plain ids, as an id-mapped mount stores it.
    assert_eq!(fs::metadata(world.path("containers/one/upper/new")).unwrap().uid(), 0);
    world.exec_sh("one", "chown 1000:50 /new");
    let new = fs::metadata(world.path("containers/one/upper/new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (1000, 50));
    // A changed archive of the same name is another image.
    let mut changed = tar::Builder::new(Vec::new());
    changed.follow_symlinks(false);
    changed.append_dir_all(".", bare()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    changed.append_data(&mut header, "etc/changed", &b"new"[..]).unwrap();
    fs::remove_file(&path).unwrap();
    write(&path, &changed.into_inner().unwrap());
    world.start_container("three", &path);
    assert_eq!(world.exec("three", &["cat", "/etc/changed"]), "new");
    assert!(world.exec("one", &["ls", "/etc"]).contains("passwd"), "the old layer stays as long as it is used");
}

#[test]
fn a_directory_is_used_in_place_and_never_written_to() {
    let world = World::new();
    let image = bare();
    let before = fs::metadata(image.join("etc")).unwrap();
    // A path as people type it.
    let mut command = world.script("cd \"$IMAGE/..\" && $LAZARET create web --image bare && $LAZARET start web");
    command.env("IMAGE", &image);
    assert_eq!(world.run(command, b"").status, 0);
    world.exec_sh("web", "touch /etc/new; rm -r /home; chown 5 /etc/passwd; mkdir /a");
    let after = fs::metadata(image.join("etc")).unwrap();
    assert_eq!((before.mtime_nsec(), before.nlink()), (after.mtime_nsec(), after.nlink()));
    assert!(image.join("home/user").exists() && !image.join("a").exists());
    world.ok(&["restart", "web"]);
    assert_eq!(
        world.exec_sh("web", "stat -c %u /etc/passwd; ls -d /home /a /etc/new 2>/dev/null; true"),
        "5\n/a\n/etc/new"
    );
}

#[test]
fn a_file_system_without_id_maps_is_said_aloud_and_works() {
    // An overlay can neither be id-mapped nor hold the upper layer of another.
    let world = World::mounted_by(
        "mkdir $SPACE/lower $SPACE/upper $SPACE/work; \
         mount -t overlay overlay -o lowerdir=$SPACE/lower,upperdir=$SPACE/upper,workdir=$SPACE/work $ROOT",
    );
    let made = world.lazaret(&["create", "web", "--image", text(&bare())]);
    assert_eq!(made.status, 0, "{made}");
    assert!(made.stderr.contains("so the whole image is copied with the container's ids"), "{made}");
    world.ok(&["start", "web"]);
    assert_eq!(world.info("web")["storage"], "copy");
    let seen = world.exec_sh("web", "echo x > /etc/new; stat -c '%u %a' /etc/passwd /etc/new /home/user /tmp; id -u");
    assert_eq!(seen, "0 644\n0 644\n1000 755\n0 1777\n0");
    assert_eq!(world.exec_sh("web", "cat /proc/self/uid_map | tr -s ' '"), " 0 1073741824 65536");
    world.ok(&["restart", "web"]);
    assert_eq!(world.exec("web", &["cat", "/etc/new"]), "x");
    let out = world.lazaret(&["run", "--image", text(&bare()), "--", "id", "-u"]);
    assert_eq!((out.status, out.stdout.as_str()), (0, "0\n"), "{out}");
    let checks = world.lazaret(&["doctor", "--json"]);
    let storage = checks.json().as_array().unwrap().iter().find(|check| check["what"] == "storage").cloned().unwrap();
    assert_eq!(storage["grade"], "lacking", "{storage}");
}

#[test]
fn an_archive_cannot_write_outside_its_layer() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let entry = |kind: tar::EntryType, name: &str, link: &str, body: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(body.len() as u64);
        // By hand: the builder refuses such names, an attacker does not.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend(body);
        bytes.resize(bytes.len().div_ceil(512) * 512, 0);
        bytes
    };
    let target = text(&outside);
    let (file, symlink, hard) = (tar::EntryType::Regular, tar::EntryType::Symlink, tar::EntryType::Link);
    let evil = [
        [entry(symlink, "a", target, b""), entry(file, "a/escaped", "", b"x")].concat(),
        [entry(symlink, "b", "../../../../../..", b""), entry(file, &format!("b{target}/escaped"), "", b"x")].concat(),
        entry(file, &format!("../../..{target}/escaped"), "", b"x"),
        entry(file, &format!("{target}/escaped"), "", b"x"),
        [entry(hard, "h", "/etc/shadow", b"")].concat(),
        [entry(symlink, "s", "/etc/shadow", b""), entry(hard, "h", "s", b"")].concat(),
    ];
    for (number, bytes) in evil.iter().enumerate() {
        let path = write(&world.path(&format!("evil{number}.tar")), &[&bytes[..], &[0; 1024]].concat());
        // Refused, or kept inside: both are right.
        let name = format!("evil{number}");
        let out = world.lazaret(&["create", &name, "--image", text(&path)]);
        assert!(out.status == 0 || out.stderr.starts_with("error: "), "{out}");
        assert_eq!(entries(&outside), [] as [String; 0], "archive {number} wrote outside: {out}");
        if out.status == 0 {
            let rootfs = PathBuf::from(word(&world.info(&name)["rootfs"]));
            let shadow = fs::symlink_metadata("/etc/shadow").unwrap();
            let hard = fs::symlink_metadata(rootfs.join("h"));
            assert!(hard.is_err() || hard.unwrap().ino() != shadow.ino(), "archive {number} linked a host file");
        }
    }
}

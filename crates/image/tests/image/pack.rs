//! A tree that is packed is the same tree for us and for GNU tar.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use lazaret_image::{Archive, Limits, Manner, Packed, Stack, Store, unpack, unpack_changes};

use crate::fidelity::{ATTRIBUTES, LONG, PLAIN};
use crate::world::{ALL, View, World, assert_same, attributes, manifest, open_dir, sh};

fn packed(tree: &Stack, manner: Manner<'_>) -> (Vec<u8>, Packed) {
    let mut archive = Archive::new(Vec::new());
    let packed = archive.tree(tree, manner, &mut |_| {}).unwrap();
    (archive.finish().unwrap(), packed)
}

fn everything(world: &World) -> std::path::PathBuf {
    let from = world.make("from");
    sh(&from, &format!("{PLAIN}{LONG}{ATTRIBUTES}"));
    from
}

fn plain(dir: &Path) -> Stack {
    Stack::plain(open_dir(dir))
}

#[test]
fn what_is_packed_comes_out_the_same() {
    let world = World::new();
    let from = everything(&world);
    let (bytes, done) = packed(&plain(&from), Manner::default());
    let expected = manifest(&from, ALL);
    assert_eq!((done.entries as usize, done.warnings.len()), (expected.len(), 0));
    let into = world.make("into");
    let unpacked = unpack(&bytes[..], open_dir(&into).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    assert_eq!(unpacked.warnings, Vec::<String>::new());
    assert_same(&manifest(&into, ALL), &expected);
    // The same tree is the same archive, wherever it is.
    assert_eq!(packed(&plain(&into), Manner::default()).0, bytes);
}

#[test]
fn gnu_tar_unpacks_the_same() {
    let world = World::new();
    let from = everything(&world);
    // GNU tar does not take attributes of links and devices, and neither does it give them.
    sh(&from, "setfattr -h -x trusted.link etc/absolute; setfattr -x trusted.device var/null");
    fs::write(world.path("a.tar"), packed(&plain(&from), Manner::default()).0).unwrap();
    let into = world.make("into");
    sh(&into, "tar --numeric-owner --same-owner -p --xattrs '--xattrs-include=*' --acls -xf ../a.tar");
    assert_same(&manifest(&into, ALL), &manifest(&from, ALL));
}

#[test]
fn a_prefix_stands_before_every_name_and_ids_move() {
    let world = World::new();
    let from = everything(&world);
    let expected = manifest(&from, ALL);
    let shifted = world.make("shifted");
    lazaret_image::copy_shifted(open_dir(&from).as_fd(), open_dir(&shifted).as_fd(), 70_000, &mut |_| {}).unwrap();
    let (bytes, _) = packed(&plain(&shifted), Manner { prefix: "rootfs", shift: -70_000, oci: false });
    let into = world.make("into");
    fs::write(world.path("a.tar"), &bytes).unwrap();
    sh(&into, "tar tf ../a.tar | grep -v ^rootfs/ && exit 1; true");
    let unpacked = unpack(&bytes[..], open_dir(&into).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    assert!(unpacked.unified);
    assert_same(&manifest(&into, ALL), &expected);
    assert_eq!(attributes(&into.join("usr/bin/su"))["security.capability"][3], 2, "capabilities are plain again");
}

#[test]
fn what_an_archive_cannot_hold_is_said() {
    let world = World::new();
    let from = world.make("from");
    sh(&from, "mkdir usr; echo x > usr/.wh.odd; echo y > fine");
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    let (bytes, done) = packed(&plain(&from), Manner { oci: true, ..Manner::default() });
    assert_eq!(done.warnings.len(), 2);
    assert!(done.warnings.iter().any(|warning| warning.contains("`socket` is a socket")));
    assert!(done.warnings.iter().any(|warning| warning.contains("`usr/.wh.odd`")));
    let into = world.make("into");
    unpack(&bytes[..], open_dir(&into).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
}

/// What is done to a tree in an overlay, of everything that overlayfs has marks for.
const UPPER: &str = "
rm one; echo new > one
rm -r etc/deep; mkdir etc/deep; echo x > etc/deep/other
rm -r usr; echo 'was a directory' > usr
rm more; mkdir more; echo 'was a file' > more/inside
rm 'with space'; rm -rf sticky
chmod 700 shared; touch shared/of-root
mv secret moved; ln block block-again; chown 5:6 empty
mkdir -p brand/new/tree; mkfifo brand/new/fifo; mknod brand/null c 1 3; ln -s ../one brand/link
setfattr -n user.added -v v var; setfacl -m u:77:r var/null
";
const UPPER_AGAIN: &str = "
rm -r more; rm -r brand/new; mkdir -p brand/new/again; rm usr; mkdir usr; echo back > usr/back
rm one; mkdir sticky; echo z > sticky/z; mv moved sticky/moved; rm -r etc/deep; echo file > etc/deep
";

struct Overlay(std::path::PathBuf);

impl Overlay {
    /// Mounts directories of a world: lower ones topmost first, and one to write to.
    fn mount(world: &World, lower: &[&str], upper: Option<&str>) -> Overlay {
        let at = world.dir.join("merged");
        let _ = fs::create_dir(&at);
        let upper = upper.map_or(String::new(), |upper| {
            let work = world.dir.join(format!("{upper}-work"));
            fs::create_dir_all(&work).unwrap();
            format!(",upperdir={upper},workdir={upper}-work")
        });
        let options = format!("lowerdir={}{upper},redirect_dir=nofollow,metacopy=off,index=off", lower.join(":"));
        sh(&world.dir, &format!("mount -t overlay overlay -o {options} merged"));
        Overlay(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn stack(world: &World, layers: &[&str]) -> Vec<std::os::fd::OwnedFd> {
    layers.iter().map(|layer| open_dir(&world.path(layer))).collect()
}

/// What a copy of a merged tree can't have: the number of names of a file some of whose names were changed in a layer
/// above, and holes, which copying up does not keep.
const VIEW: View = View { holes: false, ..ALL };

#[test]
fn layers_read_as_one_tree_are_what_overlayfs_shows() {
    let world = World::new();
    let lower = world.make("lower");
    sh(&lower, &format!("umask 022; {PLAIN}{ATTRIBUTES}"));
    // Else a file loses one of its names by being changed, which a copy of it never had.
    sh(&lower, "rm usr/bin/also-one etc/deep/er/again etc/same-link");
    for layer in ["middle", "upper"] {
        world.make(layer);
    }
    {
        let merged = Overlay::mount(&world, &["lower"], Some("middle"));
        sh(&merged.0, UPPER);
    }
    {
        let merged = Overlay::mount(&world, &["middle", "lower"], Some("upper"));
        sh(&merged.0, UPPER_AGAIN);
    }
    let shown = {
        let merged = Overlay::mount(&world, &["upper", "middle", "lower"], None);
        let mut shown = manifest(&merged.0, VIEW);
        // Overlayfs shows this for a directory at the bottom, where it means nothing.
        shown.values_mut().for_each(|line| *line = line.replace(" trusted.overlay.opaque=y", ""));
        shown
    };
    let whole = Stack::whole(stack(&world, &["upper", "middle", "lower"]));
    let into = world.make("into");
    lazaret_image::copy_tree(&whole, open_dir(&into).as_fd(), 0, &mut |_| {}).unwrap();
    assert_same(&manifest(&into, VIEW), &shown);
    let (bytes, _) = packed(&whole, Manner::default());
    let unpacked = world.make("unpacked");
    unpack(&bytes[..], open_dir(&unpacked).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    assert_same(&manifest(&unpacked, VIEW), &shown);

    // Two layers of changes are as good as one that they are merged into, copied or sent.
    let changes = Stack::changes(stack(&world, &["upper", "middle"]));
    let one = world.make("one");
    lazaret_image::copy_tree(&changes, open_dir(&one).as_fd(), 0, &mut |_| {}).unwrap();
    let sent = world.make("sent");
    let (bytes, _) = packed(&changes, Manner { prefix: "changes", ..Manner::default() });
    unpack_changes(&bytes[..], open_dir(&sent).as_fd(), &Limits::default(), &mut |_| {}).unwrap();
    for layer in ["one", "sent"] {
        let merged = Overlay::mount(&world, &[layer, "lower"], None);
        let mut found = manifest(&merged.0, VIEW);
        found.values_mut().for_each(|line| *line = line.replace(" trusted.overlay.opaque=y", ""));
        assert_same(&found, &shown);
    }
    // A tree of its own is no archive of changes.
    let (bytes, _) = packed(&whole, Manner::default());
    let e = unpack_changes(&bytes[..], open_dir(&world.make("no")).as_fd(), &Limits::default(), &mut |_| {});
    assert!(e.unwrap_err().to_string().contains("not an archive of changes"));
}

#[test]
fn parts_that_are_kept_elsewhere_are_refused() {
    let world = World::new();
    sh(&world.dir, "mkdir -p upper/dir lower into; setfattr -n trusted.overlay.redirect -v /elsewhere upper/dir");
    let whole = Stack::whole(stack(&world, &["upper", "lower"]));
    let e = lazaret_image::copy_tree(&whole, open_dir(&world.path("into")).as_fd(), 0, &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("kept elsewhere"), "{e}");
    // At the bottom it means nothing, as for the kernel.
    sh(&world.dir, "rm -r into; mkdir into");
    let whole = Stack::whole(stack(&world, &["lower", "upper"]));
    lazaret_image::copy_tree(&whole, open_dir(&world.path("into")).as_fd(), 0, &mut |_| {}).unwrap();
}

#[test]
fn a_published_tree_is_a_layer_named_by_its_content() {
    let world = World::new();
    let from = everything(&world);
    let store = Store::open(&world.path("store")).unwrap();
    let layer = store.publish_tree(&plain(&from), 0, "a test", &mut |_| {}).unwrap();
    assert_same(&manifest(&layer.rootfs, ALL), &manifest(&from, ALL));
    assert_eq!((layer.source.as_str(), layer.entries as usize), ("a test", manifest(&from, ALL).len()));
    assert_eq!(store.publish_tree(&plain(&from), 0, "again", &mut |_| {}).unwrap().id, layer.id);
    let (bytes, _) = packed(&plain(&from), Manner::default());
    fs::write(world.path("a.tar"), &bytes).unwrap();
    assert_eq!(store.import_tarball(&world.path("a.tar"), &mut |_| {}).unwrap().id, layer.id);
    assert_eq!(fs::read_dir(world.path("store/tmp")).unwrap().count(), 0);
    let e = store.publish_tree(&plain(&world.make("empty")), 0, "nothing", &mut |_| {}).unwrap_err();
    assert!(e.to_string().contains("not a root filesystem"), "{e}");
    assert_eq!(fs::read_dir(world.path("store/tmp")).unwrap().count(), 0);
}

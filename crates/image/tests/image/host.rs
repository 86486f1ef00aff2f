//! The image of the running system tells nothing but what it says it tells.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lazaret_image::{Bind, Store, host_binds, visible_from_host};

use crate::world::{World, sh, walk};

/// A host full of secrets, each of which says so.
const HOST: &str = r#"
umask 022
mkdir -p usr/bin usr/lib etc/ssl/certs etc/ssl/private etc/alternatives etc/xdg/deep etc/default home/alice root tmp etc/skel
mkdir -p etc/NetworkManager var/lib/secret; ln -s usr/bin bin; ln -s usr/lib lib; mkdir sbin; : > usr/bin/bash
echo 'SECRET' | tee home/alice/x root/x etc/shadow etc/hostname etc/environment etc/machine-id etc/fstab etc/hosts \
  etc/resolv.conf etc/nsswitch.conf etc/NetworkManager/wifi etc/ssl/private/key var/lib/secret/x etc/skel/unreadable \
  etc/skel/of-alice etc/skel/setuid etc/default/other etc/sudoers > /dev/null
chmod 640 etc/skel/unreadable; chown 1000 etc/skel/of-alice; chmod 4755 etc/skel/setuid
mkdir etc/xdg/closed; echo SECRET > etc/xdg/closed/x; chmod 750 etc/xdg/closed
printf 'root:x:0:0:SECRET:/root:/bin/zsh\nman:x:6:12:SECRET:/SECRET:/bin/sh\nalice:x:1000:1000:SECRET:/home/alice:/bin/sh\n' > etc/passwd
printf 'root:x:0:\nman:x:12:SECRET\nmail:x:8:\nshadow:x:42:\nstaff:x:50:\nalice:x:1000:\n' > etc/group
ln -s /root/x etc/skel/link-to-root; ln -s ../../home/alice/x etc/xdg/link-to-home; ln -s /etc/shadow etc/xdg/link-to-etc
mkfifo etc/skel/fifo; head -c 5M /dev/zero > etc/skel/too-large
echo cert > etc/ssl/certs/ca.pem; ln -s ca.pem etc/ssl/certs/hash.0; ln -s /usr/bin/vim etc/alternatives/vi
echo cache > etc/ld.so.cache; echo LANG=C > etc/default/locale; echo NAME=x > usr/lib/os-release; ln -s ../usr/lib/os-release etc/os-release
echo deep > etc/xdg/deep/file; mkdir etc/python3.11; echo x > etc/python3.11/site.py; echo profile > etc/profile
"#;

fn host(world: &World) -> (Store, PathBuf) {
    let root = world.make("root");
    sh(&root, HOST);
    (Store::open(&world.path("store")).unwrap(), root)
}

#[test]
fn nothing_secret_is_in_the_skeleton() {
    let world = World::new();
    let (store, root) = host(&world);
    let image = store.host_at(&root).unwrap();
    let rootfs = image.layer.rootfs;
    for path in walk(&rootfs) {
        if path.symlink_metadata().unwrap().is_file() {
            assert!(!fs::read_to_string(&path).unwrap().contains("SECRET"), "{path:?}");
        }
    }
    for gone in ["etc/skel/link-to-root", "etc/xdg/link-to-home", "etc/skel/setuid", "etc/xdg/closed", "etc/skel/fifo"]
    {
        assert!(rootfs.join(gone).symlink_metadata().is_err(), "{gone}");
    }
    for gone in
        ["etc/hostname", "etc/machine-id", "etc/ssl/private", "etc/sudoers", "etc/environment", "etc/default/other"]
    {
        assert!(rootfs.join(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert_eq!(image.layer.warnings, ["`/etc/skel/too-large` was left out: 5242880 bytes are too much"]);
}

#[test]
fn the_skeleton_has_what_programs_need() {
    let world = World::new();
    let (store, root) = host(&world);
    let rootfs = store.host_at(&root).unwrap().layer.rootfs;
    let read = |path: &str| fs::read_to_string(rootfs.join(path)).unwrap();
    let link = |path: &str| fs::read_link(rootfs.join(path)).unwrap().into_os_string().into_string().unwrap();
    let mode = |path: &str| {
        let meta = rootfs.join(path).symlink_metadata().unwrap();
        (format!("{:o}", meta.mode() & 0o7777), meta.uid(), meta.gid())
    };
    assert_eq!(
        read("etc/passwd"),
        "root:x:0:0:root:/root:/bin/bash\nman:x:6:12::/nonexistent:/usr/sbin/nologin\n\
         nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
    );
    assert_eq!(read("etc/group"), "root:x:0:\nmail:x:8:\nman:x:12:\nshadow:x:42:\nstaff:x:50:\nnogroup:x:65534:\n");
    assert_eq!(
        (read("etc/shadow"), mode("etc/shadow")),
        ("root:*:::::::\nman:*:::::::\nnobody:*:::::::\n".into(), ("640".into(), 0, 42))
    );
    assert_eq!(
        (read("etc/ld.so.cache"), read("etc/ssl/certs/hash.0"), read("etc/xdg/deep/file")),
        ("cache\n".into(), "cert\n".into(), "deep\n".into())
    );
    assert_eq!((read("etc/python3.11/site.py"), read("etc/resolv.conf")), ("x\n".into(), String::new()));
    assert_eq!(
        (link("bin"), link("etc/alternatives/vi"), link("etc/os-release")),
        ("usr/bin".into(), "/usr/bin/vim".into(), "../usr/lib/os-release".into())
    );
    assert_eq!((link("etc/mtab"), link("var/run")), ("../proc/self/mounts".into(), "/run".into()));
    assert_eq!(mode("tmp"), ("1777".into(), 0, 0));
    assert_eq!(mode("var/tmp"), ("1777".into(), 0, 0));
    assert_eq!(mode("root"), ("700".into(), 0, 0));
    assert_eq!(mode("var/mail"), ("2775".into(), 0, 8));
    assert_eq!(mode("var/local"), ("2775".into(), 0, 50));
    assert_eq!(mode(""), ("755".into(), 0, 0));
    for empty in
        ["usr", "proc", "sys", "dev", "run", "home", "mnt", "media", "opt", "srv", "var/log", "var/lib/misc", "sbin"]
    {
        assert_eq!(fs::read_dir(rootfs.join(empty)).unwrap().count(), 0, "{empty}");
    }
}

#[test]
fn it_is_made_again_only_when_the_host_changed() {
    let world = World::new();
    let (store, root) = host(&world);
    let first = store.host_at(&root).unwrap();
    assert_eq!(store.host_at(&root).unwrap(), first);
    sh(&root, "echo 'bob:x:1001:1001:::' >> etc/passwd; echo other > etc/hostname; echo more >> etc/sudoers");
    assert_eq!(store.host_at(&root).unwrap().layer.id, first.layer.id, "nothing that is shown");
    let mut last = first.layer.id.clone();
    for change in [
        "echo more >> etc/profile",
        "touch -d 2001-01-01 etc/ld.so.cache",
        "chmod 600 etc/default/locale",
        "ln -sfn /usr/bin/nano etc/alternatives/vi",
        "echo 'games:x:5:60:::' >> etc/passwd",
        "rmdir sbin; ln -s usr/sbin sbin",
    ] {
        sh(&root, change);
        let next = store.host_at(&root).unwrap().layer;
        assert_ne!(next.id, last, "{change}");
        last = next.id;
    }
    assert!(store.layer(&first.layer.id).is_ok(), "containers of the old one still have it");
    assert_eq!(store.list().unwrap().len(), 7);
}

#[test]
fn directories_that_are_no_links_into_usr_are_bound() {
    let world = World::new();
    let (store, root) = host(&world);
    let bind = |name: &str| Bind { source: root.join(name), target: Path::new("/").join(name) };
    assert_eq!(store.host_at(&root).unwrap().binds, [bind("usr"), bind("sbin")]);
    assert!(host_binds(&world.path("store")).unwrap_err().to_string().contains("has no `usr`"));
}

#[test]
fn of_this_very_host_only_the_named_is_shown() {
    let world = World::new();
    let store = Store::open(&world.path("store")).unwrap();
    let image = store.host().unwrap();
    let visible: Vec<String> = visible_from_host().collect();
    let is_named = |path: &str| {
        visible.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => path.starts_with(start),
            None => path == pattern || path.strip_prefix(pattern.as_str()).is_some_and(|rest| rest.starts_with('/')),
        })
    };
    let mut same = 0;
    for ours in walk(&image.layer.rootfs) {
        let hosts = Path::new("/").join(ours.strip_prefix(&image.layer.rootfs).unwrap());
        let meta = ours.symlink_metadata().unwrap();
        assert_eq!(meta.uid(), 0);
        if meta.is_file() && meta.len() > 0 && hosts.is_file() && fs::read(&hosts).ok() == fs::read(&ours).ok() {
            assert!(is_named(&hosts.to_string_lossy()), "{hosts:?}");
            same += 1;
        }
    }
    assert!(same > 10, "only {same} files");
    assert_eq!(image.binds[0].source, Path::new("/usr"));
    // What the host's own programs resolve through `/etc` is there.
    assert!(image.layer.rootfs.join("etc/ld.so.cache").exists());
}

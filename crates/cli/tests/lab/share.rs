//! Shares: files of the host inside, whose they are, how they are taken away, and what a container tries with them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::*;

/// A person of the host, who has a directory.
const PERSON: u32 = 4321;

/// A directory of the person's, outside of the installation's own places.
fn directory(world: &World, name: &str) -> PathBuf {
    let dir = world.path(name);
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(PERSON), Some(PERSON)).unwrap();
    dir
}

/// `HOST:GUEST`.
fn pair(source: &Path, target: &str) -> String {
    format!("{}:{target}", text(source))
}

/// A running container `c` with a share at `/mnt/in`, and its directory.
fn shared(world: &World, options: &[&str]) -> PathBuf {
    world.start_container("c", bare());
    let dir = directory(world, "in");
    world.ok(&[&["share", "c", &pair(&dir, "/mnt/in")], options].concat());
    dir
}

/// What a user's script in `c` prints.
#[track_caller]
fn as_user(world: &World, script: &str) -> String {
    world.ok(&["exec", "c", "--user", "user", "--", "sh", "-c", script]).stdout.trim_end().to_owned()
}

/// A script in `c` that must fail.
#[track_caller]
fn fails(world: &World, script: &str) {
    let out = world.lazaret(&["exec", "c", "--", "sh", "-c", script]);
    assert_ne!(out.status, 0, "`{script}` should have failed\n{out}");
}

/// The places where `c` has something of the directory mounted.
fn mounted(world: &World, dir: &Path) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", world.init_pid("c"))).unwrap();
    let shown = |line: &str| -> Option<String> {
        let fields: Vec<_> = line.split(' ').collect();
        fields[3].ends_with(text(dir)).then(|| fields[4].to_owned())
    };
    table.lines().filter_map(shown).collect()
}

// --- whose files are ---

#[test]
fn files_belong_to_the_person_on_both_sides() {
    let world = World::new();
    let dir = shared(&world, &[]);
    fs::write(dir.join("outside"), "from outside\n").unwrap();
    chown(dir.join("outside"), Some(PERSON), Some(PERSON)).unwrap();
    let look = "cat /mnt/in/outside; stat -c %u:%g /mnt/in /mnt/in/outside";
    for round in ["live", "after a restart"] {
        assert_eq!(as_user(&world, look), "from outside\n1000:1000\n1000:1000", "{round}");
        as_user(&world, "echo from inside > /mnt/in/inside; echo more >> /mnt/in/outside; mkdir -p /mnt/in/d");
        for made in ["inside", "d"] {
            let status = fs::metadata(dir.join(made)).unwrap();
            assert_eq!((status.uid(), status.gid()), (PERSON, PERSON), "{made} {round}");
        }
        fs::write(dir.join("outside"), "from outside\n").unwrap();
        world.ok(&["restart", "c", "--timeout", "1s"]);
    }
    // What other ids make keeps theirs, which are nobody's outside.
    world.exec_sh("c", "touch /mnt/in/of-root");
    let ids = world.info("c")["ids"]["start"].as_u64().unwrap() as u32;
    assert_eq!(fs::metadata(dir.join("of-root")).unwrap().uid(), ids);
}

#[test]
fn without_such_a_user_root_is_the_person_and_a_key_names_another() {
    let world = World::new();
    let image = world.path("image");
    fs::create_dir_all(image.join("etc")).unwrap();
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(format!("{}/.", text(&bare())))
            .arg(&image)
            .status()
            .unwrap()
            .success()
    );
    fs::write(image.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nother:x:33:34::/:/bin/sh\n").unwrap();
    world.start_container("c", &image);
    let dir = directory(&world, "in");
    world.ok(&["share", "c", &pair(&dir, "/mnt/in")]);
    world.exec_sh("c", "touch /mnt/in/f");
    assert_eq!(fs::metadata(dir.join("f")).unwrap().uid(), PERSON);
    world.ok(&["config", "c", "set", "person=33"]);
    world.ok(&["restart", "c", "--timeout", "1s"]);
    assert_eq!(world.exec_sh("c", "stat -c %u:%g /mnt/in/f"), "33:34");
}

#[test]
fn what_is_roots_is_nobodys_unless_somebody_says_so() {
    let world = World::new();
    world.start_container("c", bare());
    let dir = world.path("roots");
    fs::create_dir(&dir).unwrap();
    let out = world.ok(&["share", "c", &pair(&dir, "/mnt/in")]);
    assert!(out.stderr.contains("belongs to root, who is nobody inside"), "{out}");
    assert_eq!(world.exec_sh("c", "stat -c %u /mnt/in"), "65534");
    fails(&world, "touch /mnt/in/f");
    world.ok(&["unshare", "c", "/mnt/in"]);
    world.refused(&["share", "c", &pair(&dir, "/mnt/in"), "--owner", "0"], &["set-user-ID", "--yes-really"]);
    world.ok(&["share", "c", &pair(&dir, "/mnt/in"), "--owner", "0", "--yes-really"]);
    as_user(&world, "touch /mnt/in/f");
    assert_eq!(fs::metadata(dir.join("f")).unwrap().uid(), 0);
}

#[test]
fn the_caller_of_sudo_is_the_person_where_root_owns() {
    let world = World::new();
    world.start_container("c", bare());
    let dir = world.path("roots");
    fs::create_dir_all(dir.join("own")).unwrap();
    chown(dir.join("own"), Some(PERSON), Some(PERSON)).unwrap();
    let mut command = world.command(&["share", "c", &pair(&dir, "/mnt/in")]);
    command.env("SUDO_UID", PERSON.to_string());
    assert_eq!(world.run(command, b"").status, 0);
    as_user(&world, "touch /mnt/in/own/f");
    assert_eq!(fs::metadata(dir.join("own/f")).unwrap().uid(), PERSON);
    assert_eq!(world.exec_sh("c", "stat -c %u /mnt/in"), "65534");
}

#[test]
fn files_and_sockets_are_shared_too_and_targets_are_made_as_their_directories_are() {
    let world = World::new();
    world.start_container("c", bare());
    let dir = directory(&world, "in");
    fs::write(dir.join("file"), "one file\n").unwrap();
    let _listener = UnixListener::bind(dir.join("socket")).unwrap();
    world.ok(&["share", "c", &pair(&dir.join("file"), "/home/user/a/b/file"), "--create", "file"]);
    let out = world.ok(&["share", "c", &pair(&dir.join("socket"), "/home/user/socket")]);
    assert!(out.stderr.contains("share its directory"), "{out}");
    assert_eq!(
        as_user(&world, "cat /home/user/a/b/file; test -S /home/user/socket && echo socket"),
        "one file\nsocket"
    );
    assert_eq!(world.exec_sh("c", "stat -c %u:%g /home/user/a /home/user/a/b"), "1000:1000\n1000:1000");
    world.refused(&["share", "c", &pair(&dir, "/mnt/x"), "--create", "file"], &["it is a directory"]);
    world.refused(&["share", "c", "/no/such/place:/mnt/x"], &["looking for `/no/such/place`", "make it first"]);
    world.refused(&["share", "c", &pair(&dir, "/mnt/../etc")], &["without '..'"]);
    world.refused(&["share", "c", &pair(&dir, "/home/user/socket")], &["already", "unshare"]);
}

// --- what it may do ---

#[test]
fn what_is_read_only_stays_so_with_all_that_is_below() {
    let world = World::mounted_by(
        "mkdir -p $SPACE/in/sub; mount -t tmpfs none $ROOT; mount -t tmpfs none $SPACE/in/sub; chown -R 4321 $SPACE/in",
    );
    let dir = world.root().with_file_name("space").join("in");
    world.start_container("c", bare());
    for round in ["live", "after a restart"] {
        if round == "live" {
            world.ok(&["share", "c", &pair(&dir, "/mnt/in"), "--ro", "--noexec"]);
        }
        for path in ["/mnt/in", "/mnt/in/sub"] {
            fails(&world, &format!("touch {path}/x"));
            for how in ["remount,rw", "remount,rw,bind", "remount,bind,exec,ro", "remount,bind,suid,ro,noexec"] {
                fails(&world, &format!("mount -o {how} {path}"));
            }
            // Neither by a copy of it.
            fails(&world, &format!("mount --bind {path} /tmp && mount -o remount,rw,bind /tmp && touch /tmp/x"));
            fails(&world, &format!("touch {path}/x"));
            world.exec_sh("c", "umount /tmp; true");
        }
        world.ok(&["restart", "c", "--timeout", "1s"]);
    }
    let found = world.sh(&format!("find {} -name x", text(&dir)));
    assert_eq!(found.stdout, "", "something was written");
}

#[test]
fn devices_and_set_user_ids_mean_nothing_there() {
    let world = World::new();
    let dir = shared(&world, &[]);
    fs::copy("/bin/busybox", dir.join("busybox")).unwrap();
    chown(dir.join("busybox"), Some(PERSON), Some(PERSON)).unwrap();
    fs::set_permissions(dir.join("busybox"), fs::Permissions::from_mode(0o4755)).unwrap();
    let node = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("zero"), rustix::fs::FileType::CharacterDevice, 0o666.into(), node)
        .unwrap();
    assert_eq!(world.exec("c", &["/mnt/in/busybox", "id", "-u"]), "0", "of user 1000 inside, but without effect");
    fails(&world, "head -c 1 /mnt/in/zero");
    fails(&world, "mount -o remount,bind,dev,suid /mnt/in");
}

// --- what is refused ---

#[test]
fn what_opens_the_host_wide_is_meant_or_refused() {
    let world = World::new();
    world.start_container("c", bare());
    for path in ["/", "/etc", "/etc/ssl", "/root", "/proc", "/sys", "/dev/shm", "/run", "/var", "/tmp"] {
        world.refused(&["share", "c", &format!("{path}:/mnt/in")], &["by accident", "--yes-really"]);
    }
    world.refused(&["share", "c", &pair(&world.path("containers"), "/mnt/in")], &["where containers are kept"]);
    world.refused(&["share", "c", "/dev/null:/mnt/in"], &["is a device", "lazaret device"]);
    let dir = directory(&world, "in");
    let _listener = UnixListener::bind(dir.join("docker.sock")).unwrap();
    world.refused(&["share", "c", &pair(&dir.join("docker.sock"), "/mnt/in")], &["gives a session, or the host, away"]);
    world.refused(&["share", "c", &pair(&dir, "/mnt/in")], &["docker.sock"]);
    // By any way.
    world.refused(&["config", "c", "set", "shares=/etc:/mnt/in:ro"], &["by accident"]);
    world.ok(&["create", "d", "--image", text(&bare()), "--set", "shares=/etc:/mnt/in:ro"]);
    world.refused(&["start", "d"], &["by accident", "--yes-really"]);
    // And it is what it is.
    world.ok(&["share", "c", "/etc:/mnt/in", "--ro", "--yes-really"]);
    assert_eq!(world.exec_sh("c", "cat /mnt/in/hostname"), fs::read_to_string("/etc/hostname").unwrap().trim());
    assert_eq!(mounted(&world, Path::new("/etc")), ["/mnt/in"]);
}

#[test]
fn a_file_from_elsewhere_opens_nothing_of_this_host() {
    let world = World::new();
    world.create("c", bare());
    world.ok(&["share", "c", "/etc:/mnt/in", "--yes-really"]);
    world.ok(&["device", "c", "camera"]);
    let file = world.path("c.tar");
    world.ok(&["export", "c", text(&file)]);
    let out = world.ok(&["import", text(&file), "d"]);
    assert!(
        out.stderr.contains("lazaret share d /etc:/mnt/in") && out.stderr.contains("lazaret device d camera"),
        "{out}"
    );
    assert_eq!(world.info("d")["openings"].as_array().unwrap().len(), 0);
    world.ok(&["start", "d"]);
    assert_eq!(world.exec_sh("d", "ls -d /mnt/in 2>/dev/null; true"), "");
}

#[test]
fn links_outside_are_resolved_once_and_said() {
    let world = World::new();
    world.start_container("c", bare());
    let dir = directory(&world, "in");
    symlink(&dir, world.path("link")).unwrap();
    let out = world.ok(&["share", "c", &pair(&world.path("link"), "/mnt/in")]);
    assert!(out.stderr.contains(&format!("is `{}`", text(&dir))), "{out}");
    // What the link means later makes no difference.
    fs::remove_file(world.path("link")).unwrap();
    symlink("/etc", world.path("link")).unwrap();
    world.ok(&["restart", "c", "--timeout", "1s"]);
    assert_eq!(mounted(&world, &dir), ["/mnt/in"]);
}

#[test]
fn a_source_that_became_a_link_is_not_followed() {
    let world = World::new();
    let dir = shared(&world, &["--optional"]);
    world.ok(&["stop", "c", "--timeout", "1s"]);
    fs::remove_dir(&dir).unwrap();
    symlink("/etc", &dir).unwrap();
    let out = world.lazaret(&["start", "c"]);
    assert_eq!(out.status, 1, "{out}");
    assert!(out.stderr.contains("a symbolic link is on the way that was none"), "{out}");
    assert_eq!(world.state("c"), "stopped");
    // Neither is one further up.
    fs::remove_file(&dir).unwrap();
    let up = directory(&world, "up");
    fs::create_dir(up.join("in")).unwrap();
    world.ok(&["unshare", "c", "/mnt/in"]);
    world.ok(&["share", "c", &pair(&up.join("in"), "/mnt/in")]);
    fs::rename(&up, world.path("away")).unwrap();
    symlink(world.path("away"), &up).unwrap();
    assert_eq!(world.lazaret(&["start", "c"]).status, 1);
}

#[test]
fn what_is_not_there_is_said_and_may_be_optional() {
    let world = World::new();
    let dir = shared(&world, &[]);
    world.ok(&["stop", "c", "--timeout", "1s"]);
    fs::remove_dir(&dir).unwrap();
    let out = world.lazaret(&["start", "c"]);
    assert!(out.status == 1 && out.stderr.contains(text(&dir)) && out.stderr.contains("`optional`"), "{out}");
    assert!(word(&world.info("c")["shares"][0]["fault"]).contains("no such file"), "info says so too");
    world.ok(&["config", "c", "set", &format!("shares={}:/mnt/in:optional", text(&dir))]);
    let out = world.ok(&["start", "c"]);
    assert!(out.stderr.contains("is not there, so nothing is shared"), "{out}");
}

#[test]
fn a_file_system_that_knows_no_id_maps_is_refused_with_the_remedy() {
    let world = World::mounted_by(
        "mount -t tmpfs none $ROOT; mkdir -p $SPACE/no $SPACE/in/sub; chown 4321 $SPACE/in; mount -t ramfs none $SPACE/no
         mount -t ramfs none $SPACE/in/sub",
    );
    let space = world.root().with_file_name("space");
    world.start_container("c", bare());
    let out = world.lazaret(&["share", "c", &pair(&space.join("no"), "/mnt/in")]);
    assert!(out.status == 1 && out.stderr.contains("can't be id-mapped") && out.stderr.contains("ext4"), "{out}");
    assert!(world.ok(&["config", "c", "get", "shares"]).stdout.trim().is_empty());
    // Below another it is left away, and that is said.
    let out = world.ok(&["share", "c", &pair(&space.join("in"), "/mnt/in")]);
    assert!(out.stderr.contains("what is mounted below"), "{out}");
    assert_eq!(world.exec_sh("c", "grep -c /mnt/in /proc/self/mountinfo"), "1");
}

// --- hostile targets ---

#[test]
fn a_target_leads_nowhere_outside() {
    let world = World::new();
    let dir = directory(&world, "in");
    let bait = directory(&world, "bait");
    fs::set_permissions(&bait, fs::Permissions::from_mode(0o777)).unwrap();
    world.start_container("c", bare());
    let up = format!("../../../../../../../../..{}", text(&bait));
    let traps = [
        ("ln -s / /mnt/t", "/mnt/t/proc-of-its-own", ""),
        (&*format!("ln -s {} /mnt/t", text(&bait)), "/mnt/t/made", "no such file"),
        (&*format!("ln -s {up} /mnt/t"), "/mnt/t/made", "no such file"),
        (&*format!("mkdir -p {0}; ln -s {up} /mnt/t", text(&bait)), "/mnt/t/made", ""),
        ("ln -s /etc /mnt/t", "/mnt/t/deep/er", ""),
        ("ln -s t /mnt/t", "/mnt/t", "too many levels"),
        ("mkfifo /mnt/t", "/mnt/t/below", "not a directory"),
        ("mkfifo /mnt/t", "/mnt/t", "not a directory"),
        ("echo > /mnt/t", "/mnt/t", "not a directory"),
        ("ln -s /dev/null /mnt/t", "/mnt/t", "not a directory"),
        ("ln -s /proc/self/root/etc /mnt/t", "/mnt/t", "no such file"),
        ("ln -s /proc/1/cwd /mnt/t", "/mnt/t/x", "too many levels"),
    ];
    for (plant, target, refusal) in traps {
        world.exec_sh("c", plant);
        let out = world.lazaret(&["share", "c", &pair(&dir, target)]);
        if refusal.is_empty() {
            assert_eq!(out.status, 0, "{plant}\n{out}");
            assert_eq!(mounted(&world, &dir).len(), 1, "{plant}: it is inside");
            world.ok(&["unshare", "c", target]);
        } else {
            assert!(out.status == 1 && out.stderr.to_lowercase().contains(refusal), "{plant}\n{out}");
        }
        assert_eq!(mounted(&world, &dir), Vec::<String>::new(), "{plant}");
        world.exec_sh("c", "rm -rf /mnt/t");
        assert_eq!(entries(&bait), Vec::<String>::new(), "{plant}: something was made outside");
    }
}

#[test]
fn a_target_that_is_swapped_meanwhile_leads_nowhere_outside() {
    let world = World::new();
    let (dir, bait) = (directory(&world, "in"), directory(&world, "bait"));
    fs::set_permissions(&bait, fs::Permissions::from_mode(0o777)).unwrap();
    world.start_container("c", bare());
    let swap = format!(
        "ln -s {0} /mnt/l; echo ready; while [ ! -e /stop ]; do mkdir -p /mnt/t; mv -T /mnt/t /mnt/o; mv -T /mnt/l /mnt/t;
         mv -T /mnt/t /mnt/l; mv -T /mnt/o /mnt/t; rmdir /mnt/t; done 2>/dev/null",
        text(&bait)
    );
    let mut swapper = world.spawn(&["exec", "c", "--", "sh", "-c", &swap]);
    swapper.expect("ready\n");
    for _ in 0..25 {
        // It may fail; what it may not is to do something outside.
        if world.lazaret(&["share", "c", &pair(&dir, "/mnt/t/made")]).status == 0 {
            world.lazaret(&["unshare", "c", "/mnt/t/made"]);
        }
    }
    world.exec_sh("c", "touch /stop");
    swapper.wait();
    assert_eq!(entries(&bait), Vec::<String>::new(), "something was made outside");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(text(&bait)), "something was mounted outside");
}

// --- taking away ---

#[test]
fn what_is_taken_away_is_away_wherever_it_was_mounted() {
    let world = World::new();
    let dir = shared(&world, &[]);
    fs::write(dir.join("file"), "still here\n").unwrap();
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(dir.join("sub")).unwrap();
    world.exec_sh("c", "mkdir -p /a /b /c; mount --make-rprivate /; mount --bind /mnt/in /a; mount --bind /mnt/in/sub /b; mount --move /mnt/in /c");
    let elsewhere = "mount --make-rprivate /; echo ready; read x; ls /a /b /c; read x";
    let mut elsewhere = world.spawn(&["exec", "c", "--", "unshare", "-m", "sh", "-c", elsewhere]);
    elsewhere.expect("ready\n");
    let mut holder = world.spawn(&["exec", "c", "--", "sh", "-c", "exec 3< /a/file; echo ready; read x; cat <&3"]);
    holder.expect("ready\n");
    world.ok(&["unshare", "c", text(&dir)]);
    assert_eq!(mounted(&world, &dir), Vec::<String>::new());
    elsewhere.feed(b"\n\n");
    assert_eq!(elsewhere.wait().stdout, "ready\n/a:\n\n/b:\n\n/c:\n");
    holder.feed(b"\n");
    assert_eq!(holder.wait().stdout, "ready\nstill here\n", "what is open can be read until it is closed");
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "still here\n", "it is still there outside");
    world.refused(&["unshare", "c", "/mnt/in"], &["is not shared", "has no shares"]);
    assert_eq!(world.info("c")["openings"].as_array().unwrap().len(), 0);
}

#[test]
fn a_share_of_the_start_can_be_taken_away_and_others_stay() {
    let world = World::new();
    let (one, two) = (directory(&world, "one"), directory(&world, "two"));
    world.create("c", bare());
    world.ok(&["share", "c", &pair(&one, "/mnt/one")]);
    world.ok(&["share", "c", &pair(&one, "/mnt/again"), "--ro"]);
    world.ok(&["share", "c", &pair(&two, "/mnt/one/two")]);
    let plan = world.ok(&["plan", "c"]).stdout;
    assert!(plan.contains(&format!("sharing `{}` at `/mnt/again`, read-only", text(&one))), "{plan}");
    world.ok(&["start", "c"]);
    world.refused(&["unshare", "c", text(&one)], &["more than once"]);
    world.ok(&["unshare", "c", "/mnt/again"]);
    assert_eq!(mounted(&world, &one), ["/mnt/one"]);
    assert_eq!(mounted(&world, &two), ["/mnt/one/two"]);
    let openings = world.info("c")["openings"].to_string();
    assert!(openings.contains("shares") && openings.contains("/mnt/one/two") && !openings.contains("/mnt/again"));
}

#[test]
fn a_privileged_container_sees_the_hosts_ids() {
    let world = World::new();
    let dir = directory(&world, "in");
    world.ok(&["create", "c", "--image", text(&bare()), "--set", "privileged=true"]);
    world.ok(&["start", "c"]);
    world.ok(&["share", "c", &pair(&dir, "/mnt/in"), "--ro"]);
    assert_eq!(world.exec_sh("c", "stat -c %u /mnt/in"), PERSON.to_string());
    fails(&world, "touch /mnt/in/x");
    world.ok(&["unshare", "c", "/mnt/in"]);
    assert_eq!(mounted(&world, &dir), Vec::<String>::new());
}

// --- kill -9 ---

#[test]
fn a_command_killed_anywhere_leaves_what_the_configuration_says() {
    let world = World::new();
    let dir = directory(&world, "in");
    world.start_container("c", bare());
    let at = pair(&dir, "/mnt/in");
    for round in 0..40u64 {
        let words: &[&str] = if round % 2 == 0 { &["share", "c", &at] } else { &["unshare", "c", "/mnt/in"] };
        let command = world.spawn(words);
        // Later and later, until some have come to their end.
        command.ends_within(Duration::from_micros(700 * (round / 2)));
        command.signal(Signal::KILL);
        command.wait();
        let wanted = !world.ok(&["config", "c", "get", "shares"]).stdout.trim().is_empty();
        world.ok(&["info", "c"]);
        assert_eq!(mounted(&world, &dir).len(), usize::from(wanted), "round {round}");
        // As it should be for the next.
        if round % 2 == 0 && !wanted {
            world.ok(&["share", "c", &at]);
        } else if round % 2 == 1 && wanted {
            world.ok(&["unshare", "c", "/mnt/in"]);
        }
        assert_eq!(mounted(&world, &dir).len(), usize::from(round % 2 == 0), "after round {round}");
    }
}

#[test]
fn a_keeper_killed_while_it_shares_leaves_nothing() {
    let world = World::new();
    let dir = directory(&world, "in");
    world.create("c", bare());
    world.ok(&["share", "c", &pair(&dir, "/mnt/in")]);
    let plan = world.ok(&["plan", "c"]).stdout;
    let step = plan.lines().position(|line| line.contains("sharing `/")).unwrap();
    for victim in ["keeper", "guest", "command"] {
        world.lazaret(&["start", "c", "--inject", &format!("{victim}:{step}")]);
        world.lazaret(&["stop", "c", "--kill"]);
        assert_eq!(world.state("c"), "stopped");
    }
    world.ok(&["start", "c"]);
    assert_eq!(mounted(&world, &dir), ["/mnt/in"]);
}

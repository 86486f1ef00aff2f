//! Devices: given by what they are, followed when they come and go, and taken away.

use std::fs;
use std::os::unix::fs::{FileTypeExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::*;

/// A node that every machine with the module `loop` has, and that opening does nothing to.
const NODE: &str = "/dev/loop-control";

fn give(world: &World, device: &str) -> Out {
    world.ok(&["device", "c", device, "--yes-really"])
}

/// A block device of the host's that is there as long as this value.
struct Loop(u32);

impl Loop {
    fn add(number: u32) -> Loop {
        let made = Loop(number);
        made.control(0x4c80);
        made
    }

    /// loop(4): LOOP_CTL_ADD and LOOP_CTL_REMOVE.
    fn control(&self, request: u32) {
        let script = format!("open F, '+<', '/dev/loop-control' or die $!; ioctl(F, {request}, {}) or die $!", self.0);
        assert!(Command::new("perl").args(["-e", &script]).status().unwrap().success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        self.control(0x4c81);
    }
}

/// Whether `c` can open a node; as the user inside.
fn opens(world: &World, how: &str, node: &str) -> bool {
    world.lazaret(&["exec", "c", "--user", "user", "--", "sh", "-c", &format!("exec 3{how}{node}")]).status == 0
}

/// Waits in `c` until a test of sh holds.
#[track_caller]
fn wait_inside(world: &World, test: &str) {
    world.exec_sh("c", &format!("until [ {test} ]; do :; done"));
}

#[test]
fn a_device_is_the_users_from_now_on_until_it_is_taken_away() {
    let world = World::new();
    world.start_container("c", bare());
    assert!(!opens(&world, "<", NODE));
    for round in ["live", "after a restart"] {
        if round == "live" {
            let said = give(&world, NODE);
            assert!(said.stdout.contains(&format!("uses `{NODE}`: {NODE}")), "{said}");
        }
        assert_eq!(world.exec_sh("c", &format!("stat -c %u:%g:%a:%t:%T {NODE}")), "1000:1000:660:a:ed", "{round}");
        assert!(opens(&world, "<>", NODE), "{round}");
        world.ok(&["restart", "c", "--timeout", "1s"]);
    }
    assert!(world.info("c")["openings"].to_string().contains(NODE));
    assert_eq!(word(&world.info("c")["devices"][0]["nodes"][0]), NODE);
    assert!(world.ok(&["plan", "c"]).stdout.contains(&format!("giving the devices {NODE}")));
    // Another name of the node is no way around, and what is open stays so.
    world.exec_sh("c", &format!("ln {NODE} /dev/keep"));
    let mut holder = world.spawn(&[
        "exec",
        "c",
        "--",
        "sh",
        "-c",
        &format!("exec 3<{NODE}; echo open; read x; stat -L -c %t /proc/self/fd/3"),
    ]);
    holder.expect("open\n");
    world.ok(&["device", "c", NODE, "--off"]);
    for node in [NODE, "/dev/keep"] {
        assert!(!opens(&world, "<", node), "{node}");
        assert_ne!(
            world.lazaret(&["exec", "c", "--", "sh", "-c", &format!("exec 3<{node}")]).status,
            0,
            "{node}, as root"
        );
    }
    world.exec_sh("c", &format!("test ! -e {NODE}"));
    holder.feed(b"\n");
    assert_eq!(holder.wait().stdout, "open\na\n");
    assert_eq!(world.info("c")["openings"].as_array().unwrap().len(), 0);
    world.refused(&["device", "c", NODE, "--off"], &["is not given"]);
    world.exec_sh("c", "head -c 1 /dev/zero > /dev/null");
}

#[test]
fn for_reading_is_for_reading() {
    let world = World::new();
    world.start_container("c", bare());
    world.ok(&["device", "c", NODE, "--ro", "--yes-really"]);
    assert!(opens(&world, "<", NODE));
    world.exec_sh("c", &format!("chmod 666 {NODE}"));
    assert!(!opens(&world, ">", NODE), "the filter, not the mode, decides");
    give(&world, NODE);
    assert!(opens(&world, "<>", NODE), "given anew, for writing, too");
}

#[test]
fn what_comes_and_goes_is_followed() {
    let world = World::new();
    world.create("c", bare());
    let number = 900 + std::process::id() % 100;
    let node = format!("/dev/loop{number}");
    // What is not there stops no start.
    let said = give(&world, &node);
    assert!(said.stdout.contains("none is there now"), "{said}");
    world.ok(&["start", "c"]);
    world.exec_sh("c", &format!("test ! -e {node}"));
    for _ in 0..3 {
        let plugged = Loop::add(number);
        wait_inside(&world, &format!("-b {node}"));
        assert!(opens(&world, "<", &node));
        drop(plugged);
        wait_inside(&world, &format!("! -e {node}"));
    }
    // It comes while nobody runs, too.
    world.ok(&["stop", "c", "--kill"]);
    let _plugged = Loop::add(number);
    world.ok(&["start", "c"]);
    assert!(opens(&world, "<", &node));
    // One that was taken away is not given again when it comes back.
    world.ok(&["device", "c", &node, "--off"]);
    assert!(!opens(&world, "<", &node));
    world.ok(&["device", "c", &node, "--yes-really"]);
    assert!(opens(&world, "<", &node));
}

#[test]
fn what_is_not_there_is_told_and_what_makes_no_sense_refused() {
    let world = World::new();
    world.start_container("c", bare());
    let said = world.ok(&["device", "c", "usb:ffff:ffff"]);
    assert!(said.stderr.contains("no `usb:ffff:ffff` is there now"), "{said}");
    world.refused(&["device", "c", "camrea"], &["did you mean 'camera'?"]);
    world.refused(&["device", "c", "/etc/passwd"], &["below /dev"]);
    for node in ["/dev/mem", "/dev/tty1", "/dev/loop0", "/dev/input/event0", NODE] {
        if Path::new(node).exists() {
            world.refused(&["device", "c", node], &["by accident", "--yes-really"]);
        }
    }
    world.refused(&["config", "c", "set", &format!("devices={NODE}")], &["by accident"]);
    assert_eq!(world.ok(&["device", "c", "--json"]).json()[0]["device"], "usb:ffff:ffff");
}

// --- hostile ---

#[test]
fn nodes_are_made_nowhere_but_in_its_own_dev() {
    let world = World::new();
    let dir = world.path("in");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(4321), Some(4321)).unwrap();
    world.start_container("c", bare());
    world.ok(&["share", "c", &format!("{}:/mnt/in", text(&dir))]);
    let traps = [
        ("mount --bind /mnt/in /dev", "umount /dev"),
        ("mount -t tmpfs dev /dev; mount --bind /mnt/in /dev", "umount /dev; umount /dev"),
        ("mount -t tmpfs other /dev", "umount /dev"),
    ];
    for (plant, clear) in traps {
        world.exec_sh("c", plant);
        let out = world.lazaret(&["device", "c", NODE, "--yes-really"]);
        assert!(out.status == 1 && out.stderr.contains("something else is mounted"), "{plant}\n{out}");
        assert!(world.ok(&["config", "c", "get", "devices"]).stdout.trim().is_empty(), "{plant}");
        world.exec_sh("c", clear);
        assert!(!opens(&world, "<", NODE), "{plant}");
    }
    // A link where a directory is to be, and a file of the host's where the node is to be.
    if Path::new("/dev/cpu/0/cpuid").exists() {
        world.exec_sh("c", "mkdir /mnt/in/0; ln -s /mnt/in /dev/cpu");
        assert_eq!(world.lazaret(&["device", "c", "/dev/cpu/0/cpuid", "--yes-really"]).status, 1);
        assert_eq!(entries(&dir.join("0")), Vec::<String>::new());
        world.exec_sh("c", "rm /dev/cpu; rmdir /mnt/in/0");
    }
    world.exec_sh("c", &format!("touch /mnt/in/file {NODE}; mount --bind /mnt/in/file {NODE}"));
    assert_eq!(world.lazaret(&["device", "c", NODE, "--yes-really"]).status, 1);
    assert!(!fs::metadata(dir.join("file")).unwrap().file_type().is_char_device());
    assert_eq!(entries(&dir), ["file"]);
}

#[test]
fn a_container_makes_no_nodes_itself() {
    let world = World::new();
    world.start_container("c", bare());
    give(&world, NODE);
    for script in ["mknod /dev/x c 10 237", "mknod /tmp/x c 10 237", "mknod /dev/x b 7 0"] {
        assert_ne!(world.lazaret(&["exec", "c", "--", "sh", "-c", script]).status, 0, "{script}");
    }
}

#[test]
fn a_command_killed_anywhere_leaves_what_the_configuration_says_of_devices() {
    let world = World::new();
    world.start_container("c", bare());
    for round in 0..30u64 {
        let words: &[&str] =
            if round % 2 == 0 { &["device", "c", NODE, "--yes-really"] } else { &["device", "c", NODE, "--off"] };
        let command = world.spawn(words);
        command.ends_within(Duration::from_micros(900 * (round / 2)));
        command.signal(Signal::KILL);
        command.wait();
        let wanted = !world.ok(&["config", "c", "get", "devices"]).stdout.trim().is_empty();
        world.ok(&["info", "c"]);
        assert_eq!(opens(&world, "<", NODE), wanted, "round {round}");
        if wanted != (round % 2 == 0) {
            world.ok(words);
        }
        assert_eq!(opens(&world, "<", NODE), round % 2 == 0, "after round {round}");
    }
}

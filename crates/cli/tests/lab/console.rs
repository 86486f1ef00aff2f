//! The console: what a container says there is kept, shown to whoever looks, and typed into.

use rustix::process::Signal;
use rustix::termios::LocalModes;

use crate::harness::*;

#[test]
fn logs_keep_what_was_said_through_stop_and_restart() {
    let world = World::new();
    world.create("web", bare());
    assert_eq!(world.ok(&["logs", "web"]).stdout, "", "nothing was said yet");
    world.ok(&["start", "web"]);
    for line in ["one", "two", "three"] {
        world.exec_sh("web", &format!("echo {line} > /dev/console"));
    }
    let mut follow = world.spawn(&["logs", "-n", "1", "-f", "web"]);
    follow.expect("three\r\n");
    world.exec_sh("web", "echo four > /dev/console");
    follow.expect("four\r\n");
    world.ok(&["stop", "web"]);
    assert_eq!(follow.wait().stdout, "three\r\nfour\r\n", "it ends with the container");
    world.ok(&["start", "web"]);
    world.exec_sh("web", "echo five > /dev/console");
    world.ok(&["stop", "web"]);
    assert_eq!(world.ok(&["logs", "web"]).stdout, "one\r\ntwo\r\nthree\r\nfour\r\nfive\r\n");
    assert_eq!(world.ok(&["logs", "web", "-n", "2"]).stdout, "four\r\nfive\r\n");
    let out = world.ok(&["logs", "-f", "-n", "1", "web"]);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("five\r\n", ""), "nothing more will come");
}

#[test]
fn the_log_is_bounded() {
    let world = World::new();
    world.ok(&["create", "web", "--image", text(&bare()), "--set", "console_log=64K"]);
    world.ok(&["start", "web"]);
    let mut follow = world.spawn(&["logs", "-f", "web"]);
    world.exec_sh("web", "seq 100000 > /dev/console; echo end > /dev/console");
    follow.expect("end\r\n");
    world.ok(&["stop", "web"]);
    follow.wait();
    let size: u64 = entries(&world.path("containers/web"))
        .iter()
        .filter(|name| name.starts_with("console.log"))
        .map(|name| std::fs::metadata(world.path("containers/web").join(name)).unwrap().len())
        .sum();
    assert!((16 << 10..=64 << 10).contains(&size), "{size}");
    assert!(world.ok(&["logs", "web"]).stdout.ends_with("\r\n100000\r\nend\r\n"), "the newest is kept");
}

#[test]
fn the_console_is_typed_into_left_and_come_back_to() {
    let world = World::new();
    world.start_container("web", busybox());
    let mut first = world.pty(&["console", "web"]);
    first.expect("leave with Ctrl-a q");
    first.type_in("\recho $((40 + 2)) $0\r");
    first.expect("42 -/bin/sh");
    assert!(!first.mode().local_modes.contains(LocalModes::ECHO));
    first.type_in("stty size\r");
    first.expect("24 80");
    first.resize(33, 99);
    // The size travels by itself; what answers is asked until it has come.
    first.type_in("until test \"$(stty size)\" = '33 99'; do :; done; echo si''zed\r");
    first.expect("sized");
    // Two look at the same console, and see the same.
    let mut second = world.pty(&["console", "web"]);
    second.expect("42 -/bin/sh");
    second.type_in("echo from the sec''ond\r");
    second.expect("from the second");
    first.expect("from the second");
    // Ctrl-a twice is one; Ctrl-a q leaves.
    first.type_in("\x01q");
    let out = first.wait();
    assert_eq!(out.status, 0, "{out}");
    assert!(out.stdout.contains("left the console"), "{out}");
    assert!(first.mode().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON));
    second.signal(Signal::TERM);
    assert_eq!(second.wait().status, 0);
    assert!(second.mode().local_modes.contains(LocalModes::ECHO | LocalModes::ICANON));
    assert_eq!(world.state("web"), "running", "who leaves a console stops nothing");
    // Scrollback: what was said before is there again, and the end is told.
    let mut third = world.pty(&["console", "web"]);
    third.expect("from the second");
    world.ok(&["stop", "web"]);
    third.expect("the container has stopped");
    assert_eq!(third.wait().status, 0);
    assert!(world.ok(&["logs", "web"]).stdout.contains("from the second\r\n"));
}

#[test]
fn a_console_needs_no_terminal() {
    let world = World::new();
    world.start_container("web", busybox());
    let mut console = world.spawn(&["-q", "console", "web"]);
    console.feed(b"\necho $((6 * 7))th\n");
    console.expect("42th");
    world.ok(&["stop", "web"]);
    assert_eq!(console.wait().status, 0);
}

#[test]
fn one_who_does_not_read_holds_nobody_up() {
    let world = World::new();
    world.start_container("web", bare());
    // This one is never read from: its pipe fills up, then its socket, then the keeper lets it go.
    let script = "exec 3<&0; $LAZARET -q logs -f web | { echo begun; cat <&3; }";
    let mut silent = Running::start(world.script(script));
    silent.expect("begun\n");
    let mut reading = world.spawn(&["logs", "-f", "web"]);
    let talking = world.spawn(&["exec", "web", "--", "sh", "-c", "seq 500000 > /dev/console; echo end > /dev/console"]);
    reading.expect("\r\nend\r\n");
    assert_eq!(talking.wait().status, 0);
    world.ok(&["stop", "web"]);
    let lines = reading.wait().stdout.lines().count();
    assert_eq!(lines, 500_001, "one who reads loses nothing");
}

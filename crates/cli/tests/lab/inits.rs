//! Whole systems: every kind of init boots, is content, and ends when it is asked to.

use std::time::{Duration, Instant};

use crate::harness::*;

/// A clean stop is asked for, not forced; a system that has nothing to do ends in much less than this.
const CLEAN: &str = "40s";

/// Stops a container, which must end by itself.
#[track_caller]
fn stop(world: &World, name: &str) {
    let begun = Instant::now();
    let out = world.ok(&["stop", name, "--timeout", CLEAN]);
    assert!(!out.stderr.contains("killed"), "{out}\n{}", world.ok(&["logs", name, "-n", "40"]));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(world.state(name), "stopped");
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0]);
}

/// Waits until systemd says that all is well.
#[track_caller]
fn systemd_runs(world: &World) {
    let out = world.lazaret(&["exec", "web", "--", "systemctl", "is-system-running", "--wait"]);
    let failed = world.lazaret(&["exec", "web", "--", "systemctl", "--failed", "--no-legend"]).stdout;
    let log =
        || world.lazaret(&["exec", "web", "--", "journalctl", "-b", "-p", "warning", "--no-pager", "-n", "60"]).stdout;
    assert_eq!(out.stdout, "running\n", "{out}\nfailed: {failed}\n{}", log());
    assert_eq!(failed, "", "{}", log());
}

fn systemd(release: &str) {
    let world = World::new();
    world.create("web", fixture(release));
    world.ok(&["start", "web"]);
    let mut console = world.spawn(&["logs", "-f", "web"]);
    console.expect("login:");
    systemd_runs(&world);
    assert_eq!(world.exec("web", &["cat", "/proc/1/comm"]), "systemd");
    assert_eq!(world.exec("web", &["systemd-detect-virt"]), "container-other");
    assert_eq!(world.exec("web", &["hostname"]), "web");
    // A service with limits of its own: the cgroup tree inside is really its own.
    assert_eq!(
        world.exec(
            "web",
            &[
                "systemd-run",
                "-q",
                "--wait",
                "--pipe",
                "-p",
                "DynamicUser=yes",
                "-p",
                "PrivateTmp=yes",
                "echo",
                "served"
            ]
        ),
        "served"
    );
    // A command has its place in a tree whose root may hold no processes any more.
    assert_eq!(world.exec("web", &["id", "-u"]), "0");

    let before = world.init_pid("web");
    let mut events = world.spawn(&["events"]);
    events.expect_error("following events");
    world.lazaret(&["exec", "web", "--", "systemctl", "reboot"]);
    events.expect("running    web");
    console.expect("login:");
    systemd_runs(&world);
    assert_ne!(world.init_pid("web"), before);
    stop(&world, "web");

    // Asked before it can hear: asked again until it does.
    world.ok(&["start", "web"]);
    stop(&world, "web");

    world.ok(&["start", "web"]);
    let mut console = world.spawn(&["logs", "-n", "0", "-f", "web"]);
    console.expect("login:");
    let stopped = world.spawn(&["wait", "web", "stopped", "--timeout", CLEAN]);
    world.lazaret(&["exec", "web", "--", "systemctl", "poweroff"]);
    assert_eq!(stopped.wait().status, 0);
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0]);
}

#[test]
fn debian_12_boots_to_running_reboots_and_stops() {
    systemd("debian12");
}

#[test]
fn debian_13_boots_to_running_reboots_and_stops() {
    systemd("debian13");
}

#[test]
fn sysvinit_boots_reboots_and_stops() {
    let world = World::new();
    world.create("web", fixture("sysvinit"));
    world.ok(&["start", "web"]);
    let mut console = world.spawn(&["logs", "-f", "web"]);
    console.expect("login:");
    assert_eq!(world.exec("web", &["cat", "/proc/1/comm"]), "init");
    assert_eq!(world.exec("web", &["runlevel"]), "N 2");
    let before = world.init_pid("web");
    let mut events = world.spawn(&["events"]);
    events.expect_error("following events");
    world.lazaret(&["exec", "web", "--", "reboot"]);
    events.expect("running    web");
    console.expect("login:");
    assert_ne!(world.init_pid("web"), before);
    stop(&world, "web");
    world.ok(&["start", "web"]);
    stop(&world, "web");
}

#[test]
fn openrc_boots_and_stops() {
    let world = World::new();
    world.create("web", fixture("openrc"));
    world.ok(&["start", "web"]);
    let mut console = world.spawn(&["logs", "-f", "web"]);
    console.expect("login:");
    assert!(world.exec("web", &["rc-status", "-r"]).contains("default"));
    assert_eq!(world.exec_sh("web", "rc-status --crashed || true"), "");
    stop(&world, "web");
}

#[test]
fn busybox_init_boots_reboots_and_stops() {
    let world = World::new();
    world.create("web", fixture("busybox"));
    world.ok(&["start", "web"]);
    assert_eq!(world.exec("web", &["cat", "/proc/1/comm"]), "init");
    let before = world.init_pid("web");
    let mut events = world.spawn(&["events"]);
    events.expect_error("following events");
    world.lazaret(&["exec", "web", "--", "reboot"]);
    events.expect("running    web");
    assert_ne!(world.init_pid("web"), before);
    stop(&world, "web");
    let stopped = world.spawn(&["wait", "web", "stopped", "--timeout", CLEAN]);
    assert_eq!(stopped.wait().status, 0);
    world.ok(&["start", "web"]);
    let stopped = world.spawn(&["wait", "web", "stopped", "--timeout", CLEAN]);
    world.lazaret(&["exec", "web", "--", "poweroff"]);
    assert_eq!(stopped.wait().status, 0);
}

#[test]
fn an_image_without_an_init_runs_under_ours() {
    let world = World::new();
    world.create("web", fixture("bare"));
    world.ok(&["start", "web"]);
    assert_eq!(world.exec("web", &["cat", "/proc/1/comm"]), "lazaret-init");
    stop(&world, "web");
}

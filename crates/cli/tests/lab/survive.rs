//! Processes are killed, disks are full, clients lie: what is left is always whole, and nothing is left over.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::escape::{armed, attack};
use crate::harness::*;

// --- kill -9 at every step of a start ---

/// What there is beside a stopped container `c`.
fn surplus(world: &World) -> Vec<String> {
    let own = |line: &String| line == "file containers/c" || line.starts_with("file ids/");
    leftovers(world).into_iter().filter(|line| !own(line)).collect()
}

/// What is left, but for processes that have given everything back and are just ending.
fn leftovers(world: &World) -> Vec<String> {
    for (pid, _) in world.processes() {
        ends_within(pid, Duration::from_secs(5));
    }
    world.leftovers()
}

/// Waits until a process has ended; one that nobody has waited for yet has, too.
fn ends_within(pid: i32, time: Duration) -> bool {
    let opened = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty());
    opened.is_err() || readable_within(opened.unwrap(), time)
}

#[track_caller]
fn kill(pid: i32) {
    let process = Pid::from_raw(pid).unwrap();
    let opened = pidfd_open(process, PidfdFlags::empty()).unwrap();
    kill_process(process, Signal::KILL).unwrap();
    assert!(readable_within(opened, Duration::from_secs(20)), "process {pid} survives");
}

/// Starts `c` with one process killed at each step in turn. What is left is taken away by the next command, which
/// only lists; then the container starts as if nothing had been.
fn killed_at_each_step(victim: &str) {
    let world = World::new();
    world.create("c", bare());
    let plan = world.ok(&["plan", "c", "--json"]).json();
    let steps = plan.as_array().unwrap();
    assert!(steps.len() > 40, "a plan of {} steps", steps.len());
    let born = 1 + steps.iter().position(|step| step["host"].get("clone").is_some()).unwrap();
    let mut failed = 0;
    for (at, step) in steps.iter().enumerate() {
        let out = world.lazaret(&["start", "c", "--inject", &format!("{victim}:{at}")]);
        assert_ne!(out.status, 2, "these tests need the command built with the feature `inject`\n{out}");
        let what = format!("after the {victim} was killed at step {at}, {step}");
        match out.status {
            0 => {
                // The victim was not there yet.
                assert!(victim == "guest" && at < born, "nobody was killed {what}\n{out}");
            }
            1 => {
                assert!(out.stderr.starts_with("error: starting `c`"), "{what}\n{out}");
                failed += 1;
            }
            _ => panic!("{what}: {out}"),
        }
        let listed = world.ok(&["list", "--json"]).json();
        let state = word(&listed[0]["state"]);
        if out.status == 1 {
            assert_eq!(state, "stopped", "{what}");
            assert_eq!(surplus(&world), Vec::<String>::new(), "{what}");
            world.ok(&["start", "c"]);
        } else {
            assert_eq!(state, "running", "{what}");
        }
        world.ok(&["stop", "c", "--kill"]);
    }
    assert!(failed > 40, "only {failed} starts failed");
}

#[test]
fn a_keeper_killed_at_any_step_of_a_start_leaves_nothing() {
    killed_at_each_step("keeper");
}

#[test]
fn an_init_to_be_killed_at_any_step_of_a_start_leaves_nothing() {
    killed_at_each_step("guest");
}

#[test]
fn whoever_is_at_work_killed_at_any_step_of_a_start_leaves_nothing() {
    killed_at_each_step("itself");
}

/// The container runs without the command that asked for it.
#[test]
fn a_command_killed_at_any_step_of_a_start_leaves_a_whole_container() {
    let world = World::new();
    world.create("c", bare());
    let steps = world.ok(&["plan", "c", "--json"]).json().as_array().unwrap().len();
    let mut killed = 0;
    for at in 0..steps {
        let out = world.lazaret(&["start", "c", "--inject", &format!("command:{at}")]);
        assert!(out.status == 0 || out.status == -9, "at step {at}\n{out}");
        killed += i32::from(out.status == -9);
        let listed = world.ok(&["list", "--json"]).json();
        assert!(["starting", "running"].contains(&word(&listed[0]["state"]).as_str()), "at step {at}: {listed}");
        world.wait("c", "running");
        world.ok(&["exec", "c", "--", "true"]);
        world.ok(&["stop", "c", "--kill"]);
        assert_eq!(surplus(&world), Vec::<String>::new(), "at step {at}");
    }
    assert!(killed > 10, "the command was killed {killed} times");
}

// --- kill -9 of what runs ---

#[test]
fn a_container_ends_with_its_keeper() {
    let world = World::new();
    world.start_container("c", busybox());
    // One of another session, with its own cgroup, that hears nothing.
    let hidden = "mkdir /sys/fs/cgroup/deep; (trap '' HUP TERM; echo $$ >/sys/fs/cgroup/deep/cgroup.procs; \
                  setsid sleep 1000 </dev/null >/dev/null 2>&1 &)";
    world.exec_sh("c", hidden);
    let init = world.init_pid("c");
    let mut inside = world.spawn(&["exec", "c", "--", "sh", "-c", "echo going; cat"]);
    inside.expect("going");
    kill(world.keeper_pid("c"));
    let out = world.ok(&["list", "--json"]).json();
    assert_eq!(out[0]["state"], "stopped");
    for (pid, who) in [(inside.pid() as i32, "a command inside"), (init, "its init")] {
        assert!(ends_within(pid, Duration::from_secs(10)), "{who} outlives its container");
    }
    assert_eq!(surplus(&world), Vec::<String>::new());
    drop(inside);
    world.ok(&["start", "c"]);
    world.exec("c", &["true"]);
}

/// Whichever command comes next, it does not stumble over what a keeper left.
#[test]
fn any_command_cleans_up_after_a_killed_keeper() {
    let world = World::new();
    world.create("c", bare());
    let next: &[(&[&str], i32)] = &[
        (&["start", "c"], 0),
        (&["stop", "c"], 1),
        (&["exec", "c", "--", "true"], 125),
        (&["info", "c"], 0),
        (&["rename", "c", "d"], 0),
        (&["rename", "d", "c"], 0),
        (&["config", "c", "set", "pids=300"], 0),
        (&["logs", "c"], 0),
        (&["restart", "c"], 0),
        (&["freeze", "c"], 1),
        (&["shell", "c"], 0),
        (&["wait", "c", "stopped"], 0),
        (&["doctor"], 0),
        (&["plan", "c"], 0),
        (&["destroy", "c"], 0),
    ];
    for (words, status) in next {
        let name = if words.contains(&"d") && words[1] == "d" { "d" } else { "c" };
        world.lazaret(&["start", name]);
        let cgroups = world.cgroups().len();
        kill(world.keeper_pid(name));
        let out = world.lazaret(words);
        // Doctor judges the whole host.
        assert!(
            out.status == *status || words[0] == "doctor",
            "`lazaret {}` after its keeper was killed\n{out}",
            words.join(" ")
        );
        if !["start", "restart", "shell"].contains(&words[0]) {
            assert_eq!(world.cgroups(), Vec::<std::path::PathBuf>::new(), "{words:?} left some of {cgroups} groups");
        }
    }
}

#[test]
fn a_container_whose_init_is_killed_is_stopped() {
    let world = World::new();
    world.start_container("c", busybox());
    let mut waiting = world.spawn(&["wait", "c", "stopped", "--timeout", "20s"]);
    waiting.allow(Duration::from_secs(30));
    kill(world.init_pid("c"));
    assert_eq!(waiting.wait().status, 0);
    world.wait("c", "stopped");
    assert_eq!(surplus(&world), Vec::<String>::new());
    world.ok(&["start", "c"]);
}

#[test]
fn those_who_wait_hear_of_a_killed_keeper() {
    let world = World::new();
    world.start_container("c", bare());
    let keeper = world.keeper_pid("c");
    let waiting = world.spawn(&["wait", "c", "stopped"]);
    let mut followed = world.spawn(&["logs", "c", "--follow"]);
    let mut console = world.pty(&["console", "c"]);
    let mut inside = world.spawn(&["exec", "c", "--", "sh", "-c", "echo going >/dev/console; echo going; cat"]);
    inside.expect("going");
    followed.expect("going");
    console.expect("going");
    kill(keeper);
    // No other command comes by.
    assert_eq!(waiting.wait().status, 0);
    assert_eq!(followed.wait().status, 0);
    assert!(console.wait().stdout.contains("the container has stopped"));
    assert_eq!(inside.wait().status, 137);
}

#[test]
fn a_container_that_is_killed_while_it_is_frozen_is_cleaned_up() {
    let world = World::new();
    world.start_container("c", bare());
    world.ok(&["freeze", "c"]);
    kill(world.keeper_pid("c"));
    assert_eq!(world.ok(&["list", "--json"]).json()[0]["state"], "stopped");
    assert_eq!(surplus(&world), Vec::<String>::new());
    world.ok(&["start", "c"]);
}

// --- kill -9 of commands, before every change that they make ---

/// Runs a command again and again, killed before its first change of anything (by system call), its second, and so
/// on until it comes through. `judge` looks at what is there after the next command, a mere `list`.
pub fn killed_before_each_change(world: &World, words: &[&str], prepare: impl Fn(), judge: impl Fn(&str)) {
    const MOST: usize = 1000;
    for at in 0..MOST {
        prepare();
        let mut traced = Command::new(attack());
        traced.args(["kill-at", &at.to_string(), LAZARET, "--root"]).arg(world.root()).args(words);
        // The machine's own network is not the tests' to change.
        traced.env("LAZARET_NETWORK", "none");
        let out = world.run(traced, b"");
        assert_eq!(out.status, 0, "{out}");
        world.ok(&["list"]);
        let what = format!("`lazaret {}` {}", words.join(" "), out.stdout.trim());
        judge(&what);
        if let Some(ended) = out.stdout.strip_prefix("ended ") {
            assert_eq!(ended.trim(), "0", "{out}");
            assert!(at > 5, "it was killed only {at} times");
            return;
        }
    }
    panic!("more than {MOST} changes");
}

/// What `list` says of `c`; empty if it is not there.
fn state_of_c(world: &World) -> String {
    let listed = world.ok(&["list", "--json"]).json();
    let found = listed.as_array().unwrap().iter().find(|line| line["name"] == "c");
    found.map_or(String::new(), |line| word(&line["state"]))
}

#[test]
fn a_create_that_is_killed_makes_all_or_nothing() {
    let world = World::new();
    let image = text(&bare()).to_owned();
    let prepare = || {
        world.lazaret(&["destroy", "c"]);
    };
    killed_before_each_change(&world, &["create", "c", "--image", &image], prepare, |what| {
        match state_of_c(&world).as_str() {
            "" => assert_eq!(leftovers(&world), Vec::<String>::new(), "{what}"),
            "stopped" => {
                assert_eq!(surplus(&world), Vec::<String>::new(), "{what}");
                world.ok(&["info", "c"]);
            }
            other => panic!("{what}: {other}"),
        }
    });
    world.ok(&["start", "c"]);
}

#[test]
fn an_import_that_is_killed_leaves_no_half_image() {
    let world = World::new();
    let tree = world.path("tree");
    for dir in ["etc", "bin", "usr/share"] {
        fs::create_dir_all(tree.join(dir)).unwrap();
    }
    fs::write(tree.join("etc/os-release"), "NAME=tiny\n").unwrap();
    fs::write(tree.join("usr/share/data"), vec![7; 300_000]).unwrap();
    let archive = world.path("tiny.tar");
    let made = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".").status().unwrap();
    assert!(made.success());
    let prepare = || {
        world.lazaret(&["destroy", "c"]);
        let _ = fs::remove_dir_all(world.path("images"));
    };
    killed_before_each_change(&world, &["create", "c", "--image", text(&archive)], prepare, |what| {
        let half: Vec<_> = entries(&world.path("images/tmp"));
        assert!(half.is_empty(), "{what}: {half:?} is left in the image store");
        for layer in entries(&world.path("images/layers")) {
            let rootfs = world.path("images/layers").join(layer).join("rootfs");
            assert_eq!(fs::read(rootfs.join("usr/share/data")).unwrap(), vec![7; 300_000], "{what}: half an image");
        }
        match state_of_c(&world).as_str() {
            "" => assert_eq!(leftovers(&world), Vec::<String>::new(), "{what}"),
            _ => assert_eq!(surplus(&world), Vec::<String>::new(), "{what}"),
        }
        // What was imported or not is no hindrance to the next.
        world.lazaret(&["destroy", "c"]);
        world.ok(&["create", "c", "--image", text(&archive)]);
    });
}

#[test]
fn a_destroy_that_is_killed_removes_all_or_nothing() {
    let world = World::new();
    let prepare = || {
        if state_of_c(&world).is_empty() {
            world.create("c", bare());
            fs::create_dir_all(world.path("containers/c/upper/etc/many")).unwrap();
            (0..4).for_each(|at| fs::write(world.path(&format!("containers/c/upper/etc/many/{at}")), "x").unwrap());
        }
    };
    killed_before_each_change(&world, &["destroy", "c"], prepare, |what| match state_of_c(&world).as_str() {
        "" => assert_eq!(leftovers(&world), Vec::<String>::new(), "{what}"),
        "stopped" => {
            assert_eq!(surplus(&world), Vec::<String>::new(), "{what}");
            assert_eq!(entries(&world.path("ids")).len(), 1, "{what}");
            assert_eq!(entries(&world.path("containers/c/upper/etc/many")).len(), 4, "{what}: half of it is gone");
        }
        other => panic!("{what}: {other}"),
    });
}

#[test]
fn a_forced_destroy_that_is_killed_removes_all_or_nothing() {
    let world = World::new();
    let prepare = || {
        if state_of_c(&world).is_empty() {
            world.create("c", bare());
        }
        if state_of_c(&world) == "stopped" {
            world.ok(&["start", "c"]);
        }
    };
    killed_before_each_change(&world, &["destroy", "--force", "c"], prepare, |what| {
        match state_of_c(&world).as_str() {
            "" => assert_eq!(leftovers(&world), Vec::<String>::new(), "{what}"),
            "stopped" => assert_eq!(surplus(&world), Vec::<String>::new(), "{what}"),
            // Its keeper may be at it just now.
            "running" | "stopping" => {}
            other => panic!("{what}: {other}"),
        }
    });
}

#[test]
fn a_rename_that_is_killed_leaves_one_name() {
    let world = World::new();
    world.create("c", bare());
    let prepare = || {
        world.lazaret(&["rename", "d", "c"]);
    };
    killed_before_each_change(&world, &["rename", "c", "d"], prepare, |what| {
        let names = world.ok(&["list", "--names"]).stdout;
        assert!(["c\n", "d\n"].contains(&names.as_str()), "{what}: {names}");
        let left: Vec<_> = leftovers(&world).into_iter().filter(|line| !line.starts_with("file ids/")).collect();
        assert_eq!(left, [format!("file containers/{}", names.trim())], "{what}");
        world.ok(&["info", names.trim()]);
    });
}

#[test]
fn a_setting_that_is_killed_is_made_or_not() {
    let world = World::new();
    world.start_container("c", bare());
    let prepare = || {
        world.ok(&["config", "c", "set", "pids=100"]);
    };
    killed_before_each_change(&world, &["config", "c", "set", "pids=200"], prepare, |what| {
        let set = world.ok(&["config", "c", "get", "pids"]).stdout;
        assert!(["100\n", "200\n"].contains(&set.as_str()), "{what}: {set}");
        // The next setting is in force, whatever became of this one.
        world.ok(&["config", "c", "set", "pids=150"]);
        let limits = world.cgroups().into_iter().filter_map(|dir| fs::read_to_string(dir.join("pids.max")).ok());
        assert!(limits.into_iter().any(|limit| limit == "150\n"), "{what}");
    });
}

#[test]
fn a_start_that_is_killed_leaves_a_whole_container() {
    let world = World::new();
    world.create("c", bare());
    let prepare = || {
        world.lazaret(&["stop", "c", "--kill"]);
    };
    killed_before_each_change(&world, &["start", "c"], prepare, |what| match state_of_c(&world).as_str() {
        "stopped" => assert_eq!(surplus(&world), Vec::<String>::new(), "{what}"),
        "starting" | "running" => {
            world.wait("c", "running");
            world.ok(&["exec", "c", "--", "true"]);
        }
        other => panic!("{what}: {other}"),
    });
}

#[test]
fn a_stop_that_is_killed_can_be_asked_again() {
    let world = World::new();
    world.create("c", bare());
    let prepare = || {
        world.lazaret(&["start", "c"]);
    };
    for words in [&["stop", "c", "--timeout", "10s"][..], &["stop", "c", "--kill"]] {
        killed_before_each_change(&world, words, prepare, |what| {
            assert!(["running", "stopping", "stopped"].contains(&state_of_c(&world).as_str()), "{what}");
            let out = world.lazaret(&["stop", "c", "--timeout", "10s"]);
            assert!(out.status == 0 || out.stderr.contains("is not running"), "{what}\n{out}");
            assert_eq!(state_of_c(&world), "stopped", "{what}");
            assert_eq!(surplus(&world), Vec::<String>::new(), "{what}");
        });
    }
}

#[test]
fn an_exec_that_is_killed_does_the_container_no_harm() {
    let world = World::new();
    world.start_container("c", bare());
    let init = world.init_pid("c");
    killed_before_each_change(
        &world,
        &["exec", "c", "--", "true"],
        || {},
        |what| {
            assert_eq!(world.init_pid("c"), init, "{what}");
            assert_eq!(world.exec("c", &["echo", "well"]), "well", "{what}");
        },
    );
    world.ok(&["stop", "c", "--timeout", "20s"]);
    assert_eq!(surplus(&world), Vec::<String>::new());
}

#[test]
fn a_freeze_that_is_killed_can_be_taken_back() {
    let world = World::new();
    world.start_container("c", bare());
    let prepare = || {
        world.ok(&["unfreeze", "c"]);
    };
    killed_before_each_change(&world, &["freeze", "c"], prepare, |what| {
        world.ok(&["unfreeze", "c"]);
        assert_eq!(world.exec("c", &["echo", "well"]), "well", "{what}");
    });
}

#[test]
fn a_run_that_is_killed_leaves_nothing() {
    let world = World::new();
    let image = text(&bare()).to_owned();
    killed_before_each_change(
        &world,
        &["run", "--image", &image, "--", "true"],
        || {},
        |what| {
            assert_eq!(leftovers(&world), Vec::<String>::new(), "{what}");
        },
    );
}

/// The keeper, which gives everything back at the end, killed before each change that it makes then.
#[test]
fn a_keeper_killed_while_its_container_ends_leaves_nothing() {
    let world = World::new();
    world.create("c", bare());
    for at in 0..1000 {
        world.ok(&["start", "c"]);
        let init = Pid::from_raw(world.init_pid("c")).unwrap();
        let mut tracer = Command::new(attack());
        tracer.args(["kill-running-at", &at.to_string(), &world.keeper_pid("c").to_string()]);
        let mut tracer = Running::start(tracer);
        tracer.expect("watching\n");
        // It may be dead by now, with its keeper.
        let _ = kill_process(init, Signal::KILL);
        let out = tracer.wait();
        assert_eq!(world.ok(&["list", "--json"]).json()[0]["state"], "stopped", "{out}");
        assert_eq!(surplus(&world), Vec::<String>::new(), "{out}");
        if out.stdout.contains("ended") {
            assert!(at > 5, "it was killed only {at} times");
            return;
        }
    }
    panic!("a keeper's end has no end");
}

// --- disks that are full, or can't be written ---

/// A small disk of its own, that can be filled.
pub fn small_disk() -> World {
    let world = World::mounted_by(
        "truncate -s 24M $SPACE/disk; mkfs.ext4 -q -m 0 -N 2000 $SPACE/disk; \
         mount -o loop $SPACE/disk $ROOT; rm -rf $ROOT/lost+found",
    );
    world.ok(&["list"]);
    world
}

/// Takes all the room there is, to the last block. What was written is on the disk only after a sync, so twice.
pub const FILL: &str = "cd $LAZARET_ROOT; i=0; for pass in 1 2; do cat /dev/zero >.fill-big$pass; \
                    while echo x >.fill$i && [ $i -lt 500 ]; do i=$((i+1)); done; sync; done 2>/dev/null; \
                    ! mkdir .more && ! echo x >.more";
pub const FREE: &str = "rm -f $LAZARET_ROOT/.fill* $LAZARET_ROOT/.more; sync";

/// The sentence says what was being done and what is wrong.
#[track_caller]
fn says(out: &Out, what: &str, status: i32) {
    let said = out.stderr.to_lowercase();
    assert!(out.status == status && said.starts_with("error: ") && said.contains(what), "`{what}` is not said\n{out}");
    assert!(!said.contains("panicked"), "{out}");
}

/// What is on the disk, as its users see it: names, and the bytes of what must not change.
#[track_caller]
fn contents(world: &World) -> String {
    let look =
        "cd $LAZARET_ROOT; ls containers ids tmp; head -100 containers/*/container.toml containers/*/record.json";
    world.sh(look).stdout
}

#[test]
fn on_a_full_disk_nothing_is_lost_and_everything_is_said() {
    let world = small_disk();
    let image = text(&bare()).to_owned();
    world.ok(&["create", "c", "--image", &image]);
    world.ok(&["create", "gone", "--image", &image]);
    let before = contents(&world);
    let filled = world.sh(FILL);
    assert_eq!(filled.status, 0, "{filled}");
    says(&world.lazaret(&["create", "d", "--image", &image]), "no space left on device", 1);
    says(&world.lazaret(&["config", "c", "set", "memory=200M"]), "no space left on device", 1);
    says(&world.lazaret(&["start", "c"]), "no space left on device", 1);
    says(&world.lazaret(&["run", "--image", &image, "--", "true"]), "no space left on device", 125);
    assert_eq!(contents(&world), before, "something was changed on a full disk");
    // What can be told, is; what makes room, works.
    world.ok(&["list"]);
    world.ok(&["info", "c"]);
    world.ok(&["config", "c", "show"]);
    world.ok(&["plan", "c"]);
    world.ok(&["destroy", "gone"]);
    world.sh(FREE);
    world.ok(&["config", "c", "set", "memory=200M"]);
    world.ok(&["start", "c"]);
    world.ok(&["exec", "c", "--", "true"]);
    world.ok(&["create", "d", "--image", &image]);
}

#[test]
fn an_import_that_finds_no_room_leaves_nothing() {
    let world = small_disk();
    let big = world.root().parent().unwrap().join("big.tar");
    let made = Command::new("sh")
        .args([
            "-c",
            "mkdir -p $0.d/etc && head -c 40000000 /dev/zero >$0.d/etc/data && tar -C $0.d -cf $0 . && rm -r $0.d",
        ])
        .arg(&big)
        .status();
    assert!(made.unwrap().success());
    let there = || world.sh("cd $LAZARET_ROOT; find images/tmp images/layers containers ids tmp -mindepth 1").stdout;
    world.lazaret(&["create", "c", "--image", text(&bare())]);
    world.ok(&["destroy", "c"]);
    let before = there();
    says(&world.lazaret(&["create", "c", "--image", text(&big)]), "no space left on device", 1);
    assert_eq!(there(), before);
    fs::remove_file(&big).unwrap();
    world.ok(&["create", "c", "--image", text(&bare())]);
}

#[test]
fn a_running_container_outlives_a_full_disk() {
    let world = small_disk();
    world.start_container("c", busybox());
    let filled = world.sh(FILL);
    assert_eq!(filled.status, 0, "{filled}");
    // Its console goes on, though nothing can be logged; so do commands; and it ends as it should.
    let mut console = world.pty(&["console", "c"]);
    console.type_in("echo a$((1))b\r");
    console.expect("a1b");
    console.type_in("\x01q");
    console.wait();
    world.ok(&["exec", "c", "--", "true"]);
    world.ok(&["freeze", "c"]);
    world.ok(&["unfreeze", "c"]);
    world.ok(&["stop", "c", "--timeout", "20s"]);
    assert_eq!(world.state("c"), "stopped");
    world.sh(FREE);
    world.ok(&["start", "c"]);
}

#[test]
fn on_a_read_only_disk_nothing_is_lost_and_everything_is_said() {
    let world = small_disk();
    let image = text(&bare()).to_owned();
    world.ok(&["create", "c", "--image", &image]);
    let before = contents(&world);
    let remounted = world.sh("mount -o remount,ro $LAZARET_ROOT");
    assert_eq!(remounted.status, 0, "{remounted}");
    for words in [
        &["create", "d", "--image", &image][..],
        &["start", "c"],
        &["config", "c", "set", "memory=200M"],
        &["rename", "c", "d"],
        &["destroy", "c"],
    ] {
        says(&world.lazaret(words), "read-only file system", 1);
    }
    says(&world.lazaret(&["run", "--image", &image, "--", "true"]), "read-only file system", 125);
    assert_eq!(contents(&world), before);
    world.ok(&["list"]);
    world.ok(&["info", "c"]);
    world.ok(&["config", "c", "show"]);
    world.ok(&["plan", "c"]);
    world.sh("mount -o remount,rw $LAZARET_ROOT");
    world.ok(&["start", "c"]);
    world.ok(&["exec", "c", "--", "true"]);
}

// --- hostile clients of a keeper ---

fn call(world: &World) -> OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    // Waits while others are before us at the door.
    connect(&socket, &SocketAddrUnix::new(world.path("run/containers/c/control")).unwrap()).unwrap();
    fcntl_setfl(&socket, OFlags::NONBLOCK).unwrap();
    socket
}

/// Sends when there is room; `false` if there is none for long, or nobody to take it.
fn say(socket: &OwnedFd, packet: &[u8]) -> bool {
    let timeout = Timespec { tv_sec: 5, tv_nsec: 0 };
    let room = poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout)).unwrap();
    room > 0 && send(socket, packet, SendFlags::NOSIGNAL).is_ok()
}

/// Numbers without end, the same each time (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let length = self.below(most);
        (0..length).map(|_| self.below(256) as u8).collect()
    }

    /// A packet as a client might send it, or nearly, or not at all.
    fn packet(&mut self) -> Vec<u8> {
        match self.below(8) {
            0 => Vec::new(),
            1 => vec![self.below(256) as u8],
            2 => [b"w".to_vec(), self.bytes(8)].concat(),
            3 => [b"w", &self.below(u64::MAX).to_le_bytes()[..4]].concat(),
            4 => [b"d".to_vec(), self.bytes(9000)].concat(),
            5 => [b"f".to_vec(), self.bytes(3)].concat(),
            6 => [b"p".to_vec(), self.bytes(40)].concat(),
            _ => self.bytes(300),
        }
    }
}

/// A running container `c` with a program at its console that answers in capitals.
fn shouting(world: &World) -> Running {
    world.start_container("c", armed());
    let shout = world.spawn(&[
        "exec",
        "c",
        "--",
        "sh",
        "-c",
        "stty raw -echo </dev/console; exec /attack shout <>/dev/console",
    ]);
    drop(console_answers(world, "ready"));
    shout
}

/// What is typed at the console is answered.
#[track_caller]
fn console_answers(world: &World, word: &str) -> Out {
    let mut console = world.pty(&["console", "c"]);
    console.expect("leave with");
    console.type_in(word);
    console.expect(&word.to_uppercase());
    console.type_in("\x01q");
    console.wait()
}

/// The keeper serves: the console answers, commands run.
#[track_caller]
fn still_serves(world: &World) {
    assert_eq!(console_answers(world, "attention").status, 0);
    assert_eq!(world.exec("c", &["echo", "well"]), "well");
}

#[test]
fn packets_of_nonsense_do_the_keeper_no_harm() {
    let world = World::new();
    let shout = shouting(&world);
    let keeper = world.keeper_pid("c");
    let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
    for _ in 0..300 {
        let socket = call(&world);
        for _ in 0..numbers.below(30) {
            // A client that said nonsense may have been let go by now, and one that is too quick must wait.
            let _ = send(&socket, &numbers.packet(), SendFlags::NOSIGNAL);
            if numbers.below(3) == 0 {
                let _ = recv(&socket, &mut [0u8; 100][..], RecvFlags::empty());
            }
        }
    }
    still_serves(&world);
    assert_eq!(world.keeper_pid("c"), keeper);
    world.ok(&["stop", "c", "--timeout", "20s"]);
    drop(shout);
}

/// More clients at once than are served, some of whom attach and never take anything.
fn flood(world: &World) -> Vec<OwnedFd> {
    let flood: Vec<OwnedFd> = (0..60).map(|_| call(world)).collect();
    for socket in flood.iter().step_by(3) {
        // Who is not served is let go.
        let _ = send(socket, b"w\x18\0\x50\0", SendFlags::NOSIGNAL);
    }
    flood
}

#[test]
fn a_flood_of_clients_holds_nothing_up_for_long() {
    let world = World::new();
    let _shout = shouting(&world);
    let flood = flood(&world);
    let much =
        "l=0123456789; l=$l$l$l$l$l$l$l; i=0; while [ $i -lt 20000 ]; do echo $l; i=$((i+1)); done >/dev/console";
    world.exec_sh("c", much);
    drop(flood);
    for _ in 0..500 {
        drop(call(&world));
    }
    still_serves(&world);
}

/// A stop holds a line to the keeper to learn of the end. That it gets none is no end.
#[test]
fn a_stop_among_a_flood_of_clients_waits_for_the_end() {
    let world = World::new();
    let init = "trap 'echo >/asked; until [ -e /go ]; do sleep 0.1; done; exit' TERM; while :; do sleep 0.1; done";
    let setting = format!("init=[\"/bin/sh\", \"-c\", \"{init}\"]");
    world.ok(&["create", "c", "--image", text(&bare()), "--set", &setting]);
    world.ok(&["start", "c"]);
    let flood = flood(&world);
    let stop = world.spawn(&["stop", "c", "--timeout", "50s"]);
    world.exec_sh("c", "until [ -e /asked ]; do sleep 0.1; done");
    // It has been asked; commands go on meanwhile.
    (0..5).for_each(|_| drop(world.exec("c", &["true"])));
    assert!(!stop.has_ended(), "`stop` is content before the container has stopped\n{}", stop.wait());
    world.exec_sh("c", "touch /go");
    assert_eq!(stop.wait().status, 0);
    assert_eq!(world.state("c"), "stopped");
    drop(flood);
}

#[test]
fn what_nobody_reads_costs_the_keeper_nothing() {
    let world = World::new();
    // Our init reads nothing from the console.
    world.start_container("c", bare());
    let keeper = world.keeper_pid("c");
    let socket = call(&world);
    let typed = [&b"d"[..], &[b'x'; 4000]].concat();
    let sent = (0..1000).filter(|_| say(&socket, &typed)).count();
    assert_eq!(sent, 1000, "what is typed must be taken, though nobody reads it");
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap();
        let fields: Vec<u64> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        // utime and stime, after state, which is no number.
        fields[10] + fields[11]
    };
    world.exec("c", &["true"]);
    let before = ticks();
    (0..25).for_each(|_| drop(world.exec("c", &["true"])));
    assert!(ticks() - before < 10, "it is busy waiting for somebody to read: {} ticks", ticks() - before);
    let status = fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
    let resident: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(resident < 30_000, "it holds {resident} kB");
    world.ok(&["stop", "c", "--timeout", "20s"]);
}

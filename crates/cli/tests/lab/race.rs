//! Many commands at once: of those that exclude each other exactly one wins, and nobody waits for ever.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::escape::armed;
use crate::harness::*;

const MANY: usize = 20;

/// Runs all of them at the same time; each must end within the harness's limit.
#[track_caller]
fn at_once(world: &World, all: &[Vec<String>]) -> Vec<Out> {
    let running: Vec<Running> =
        all.iter().map(|words| world.spawn(&words.iter().map(String::as_str).collect::<Vec<_>>())).collect();
    running.into_iter().map(Running::wait).collect()
}

fn words(words: &str) -> Vec<String> {
    words.split(' ').map(str::to_owned).collect()
}

/// Exactly one succeeds, and each of the others says why not.
#[track_caller]
fn one_wins(outs: &[Out], others_say: &[&str]) {
    let said = || outs.iter().map(Out::to_string).collect::<Vec<_>>().join("\n");
    let won = outs.iter().filter(|out| out.status == 0).count();
    assert_eq!(won, 1, "{won} of {} have won\n{}", outs.len(), said());
    for out in outs.iter().filter(|out| out.status != 0) {
        let why = others_say.iter().any(|why| out.stderr.contains(why));
        assert!(out.status == 1 && why, "another reason than {others_say:?}\n{out}");
    }
}

/// No two containers have an id in common.
#[track_caller]
fn ids_are_disjoint(world: &World) {
    let mut seen = BTreeSet::new();
    for name in world.ok(&["list", "--names"]).stdout.lines() {
        let start = world.info(name)["ids"]["start"].as_u64().unwrap();
        assert!(seen.insert(start), "the ids {start} are given twice");
        assert!(world.path("ids").join(start.to_string()).exists(), "the ids {start} of `{name}` are not noted");
    }
    assert_eq!(entries(&world.path("ids")).len(), seen.len(), "ids are noted that nobody has");
}

#[test]
fn of_many_creates_starts_and_destroys_one_wins() {
    let world = World::new();
    for _ in 0..3 {
        let create = words(&format!("create c --image {}", text(&bare())));
        one_wins(&at_once(&world, &vec![create; MANY]), &["there is a container `c` already"]);
        ids_are_disjoint(&world);
        one_wins(&at_once(&world, &vec![words("start c"); MANY]), &["`c` is running already"]);
        assert_eq!(world.exec("c", &["echo", "one"]), "one");
        // It may be stopped by any number of commands, and afterwards it is not running.
        for out in at_once(&world, &vec![words("stop c"); MANY]) {
            assert!(out.status == 0 || out.stderr.contains("`c` is not running"), "{out}");
        }
        assert_eq!(world.state("c"), "stopped");
        one_wins(&at_once(&world, &vec![words("destroy c"); MANY]), &["there is no container `c`"]);
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[test]
fn of_many_forced_destroys_one_wins() {
    let world = World::new();
    world.start_container("c", bare());
    one_wins(
        &at_once(&world, &vec![words("destroy --force c"); MANY]),
        &["there is no container `c`", "`c` is not running"],
    );
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn of_many_renames_one_wins() {
    let world = World::new();
    world.create("from", bare());
    let away: Vec<_> = (0..MANY).map(|at| words(&format!("rename from to{at}"))).collect();
    one_wins(&at_once(&world, &away), &["there is no container `from`"]);
    assert_eq!(world.ok(&["list", "--names"]).stdout.lines().count(), 1);
    let name = world.ok(&["list", "--names"]).stdout.trim().to_owned();
    world.ok(&["rename", &name, "c0"]);
    // To one name, and around in a circle, where each waits for two locks.
    (1..6).for_each(|at| world.create(&format!("c{at}"), bare()));
    let together: Vec<_> = (0..6).map(|at| words(&format!("rename c{at} one"))).collect();
    one_wins(&at_once(&world, &together), &["there is a container `one` already"]);
    let circle: Vec<_> = (0..MANY).map(|at| words(&format!("rename c{} c{}", at % 6, (at + 1) % 6))).collect();
    at_once(&world, &circle);
    assert_eq!(world.ok(&["list", "--names"]).stdout.lines().count(), 6);
    ids_are_disjoint(&world);
}

#[test]
fn of_many_runs_with_one_name_one_wins() {
    let world = World::new();
    // The winner waits until the others have lost, or each could have the name after the other.
    let mut first =
        world.spawn(&["run", "--image", text(&bare()), "--name", "c", "--", "sh", "-c", "echo running; cat"]);
    first.expect("running\n");
    let run = words(&format!("run --image {} --name c -- true", text(&bare())));
    for out in at_once(&world, &vec![run.clone(); MANY]) {
        assert!(out.status == 125 && out.stderr.contains("`c`"), "{out}");
    }
    assert_eq!(world.state("c"), "running", "the losers took something from the winner");
    assert_eq!(first.wait().status, 0);
    for out in at_once(&world, &vec![run; MANY]) {
        assert!(out.status == 0 || (out.status == 125 && out.stderr.contains("`c`")), "{out}");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn many_containers_live_and_die_beside_each_other() {
    let world = World::new();
    let names: Vec<String> = (0..MANY).map(|at| format!("c{at}")).collect();
    let all = |format: &dyn Fn(&str) -> String| {
        at_once(&world, &names.iter().map(|name| words(&format(name))).collect::<Vec<_>>())
    };
    let succeed = |outs: Vec<Out>| outs.iter().for_each(|out| assert_eq!(out.status, 0, "{out}"));
    succeed(all(&|name| format!("create {name} --image {}", text(&bare()))));
    ids_are_disjoint(&world);
    succeed(all(&|name| format!("start {name}")));
    succeed(all(&|name| format!("exec {name} -- true")));
    succeed(all(&|name| format!("stop {name}")));
    succeed(all(&|name| format!("destroy {name}")));
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn containers_come_and_go_while_others_do() {
    let world = World::new();
    // One after the other in each of the lines, all lines at once: creating here, removing there.
    let line = "for i in 1 2 3 4 5 6 7 8; do $LAZARET -q create $0-$i --image $IMAGE && $LAZARET -q start $0-$i && \
                $LAZARET -q exec $0-$i -- true && $LAZARET -q destroy --force $0-$i || exit 1; done";
    let lines: Vec<Running> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .map(|name| {
            let mut script = world.script(line);
            script.arg(name).env("IMAGE", bare());
            Running::start(script)
        })
        .collect();
    let runs: Vec<_> = (0..MANY).map(|_| words(&format!("run --image {} -- true", text(&bare())))).collect();
    for out in at_once(&world, &runs) {
        assert_eq!(out.status, 0, "{out}");
    }
    for line in lines {
        let out = line.wait();
        assert_eq!(out.status, 0, "{out}");
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn ids_stay_disjoint_while_containers_come_and_go() {
    let world = World::new();
    let mut all = Vec::new();
    for at in 0..MANY {
        world.create(&format!("old{at}"), bare());
        all.push(words(&format!("create new{at} --image {}", text(&bare()))));
        all.push(words(&format!("destroy old{at}")));
    }
    for out in at_once(&world, &all) {
        assert_eq!(out.status, 0, "{out}");
    }
    ids_are_disjoint(&world);
}

#[test]
fn many_commands_run_in_one_container() {
    let world = World::new();
    world.start_container("c", armed());
    let exit = |code: usize| ["exec", "c", "--", "sh", "-c", &format!("exit {code}")].map(str::to_owned).to_vec();
    let all: Vec<Vec<String>> = (0..2 * MANY).map(exit).collect();
    for (at, out) in at_once(&world, &all).iter().enumerate() {
        assert_eq!(out.status, at as i32, "{out}");
    }
}

/// Two commands at once on one container, each way round, again and again. Each ends soon, whatever came of it; the
/// container is then whole: it can be stopped, started and removed.
#[track_caller]
fn never_deadlock(first: &str, second: &str) {
    const SOON: Duration = Duration::from_secs(20);
    let world = World::new();
    for round in 0..4 {
        if !world.path("containers/c").exists() {
            world.create("c", bare());
        }
        if round % 2 == 0 {
            world.lazaret(&["start", "c"]);
        } else {
            world.lazaret(&["stop", "c", "--kill"]);
        }
        let (a, b) = if round < 2 { (first, second) } else { (second, first) };
        let begun = Instant::now();
        let outs = at_once(&world, &[words(a), words(b)]);
        assert!(begun.elapsed() < SOON, "`{a}` and `{b}` took {:?}", begun.elapsed());
        for (line, out) in [a, b].iter().zip(&outs) {
            assert!(!out.stderr.contains("panicked") && out.status >= 0, "`{line}`\n{out}");
            // What is not possible now is refused in words that the user can act on, not in the kernel's.
            let known =
                ["running", "starting", "stopping", "frozen", "no container", "already", "has ended", "is ending"];
            // A command inside may end with its container: by SIGTERM or SIGKILL.
            let ended = line.starts_with("exec") && [137, 143].contains(&out.status);
            let said = out.status == 0 || ended || known.iter().any(|word| out.stderr.contains(word));
            assert!(said, "`{line}` beside `{}` fails for no good reason\n{out}", if *line == a { b } else { a });
        }
        if world.path("containers/d").exists() {
            world.ok(&["rename", "d", "c"]);
        }
        if world.path("containers/c").exists() {
            world.lazaret(&["stop", "c", "--kill"]);
            assert_eq!(world.state("c"), "stopped");
            world.ok(&["start", "c"]);
            world.ok(&["exec", "c", "--", "true"]);
        }
    }
}

macro_rules! pairs {
    ($($name:ident: $first:literal, $second:literal;)*) => {
        $(#[test] fn $name() { never_deadlock($first, $second); })*
    };
}

pairs! {
    stop_while_it_is_killed: "stop c --timeout 5s", "stop c --kill";
    a_setting_while_it_starts: "config c set memory=200M", "start c";
    a_setting_while_it_stops: "config c set pids=100", "stop c";
    freezing_while_it_stops: "freeze c", "stop c --timeout 5s";
    freezing_while_it_is_killed: "freeze c", "stop c --kill";
    thawing_while_it_is_killed: "unfreeze c", "stop c --kill";
    destroying_while_it_starts: "destroy --force c", "start c";
    destroying_while_it_restarts: "destroy --force c", "restart c --timeout 5s";
    destroying_while_a_command_begins: "destroy --force c", "exec c -- true";
    renaming_while_it_starts: "rename c d", "start c";
    stopping_while_it_starts: "stop c --timeout 5s", "start c";
    restarting_twice: "restart c --timeout 5s", "restart c --timeout 5s";
    stopping_while_a_command_begins: "stop c --timeout 5s", "exec c -- true";
}

/// A command that was frozen with its container is no reason for any other to wait; thawed, it goes on.
#[test]
fn freezing_while_a_command_begins() {
    let world = World::new();
    world.start_container("c", bare());
    for _ in 0..10 {
        let freeze = world.spawn(&["freeze", "c"]);
        let exec = world.spawn(&["exec", "c", "--", "true"]);
        assert_eq!(freeze.wait().status, 0);
        assert_eq!(world.state("c"), "frozen");
        world.ok(&["unfreeze", "c"]);
        let out = exec.wait();
        assert!(out.status == 0 || out.stderr.contains("frozen"), "{out}");
    }
}

#[test]
fn those_who_wait_are_let_go() {
    let world = World::new();
    world.start_container("c", bare());
    let mut followed = world.spawn(&["logs", "c", "--follow"]);
    let mut waiting = world.spawn(&["wait", "c", "stopped"]);
    let mut console = world.pty(&["console", "c"]);
    console.expect("leave with");
    for running in [&mut followed, &mut waiting] {
        running.allow(Duration::from_secs(20));
    }
    world.exec_sh("c", "echo said >/dev/console");
    followed.expect("said");
    world.ok(&["destroy", "--force", "c"]);
    for running in [followed, waiting] {
        let out = running.wait();
        assert!(out.status == 0 || out.stderr.contains("no container"), "{out}");
    }
    assert!(console.wait().stdout.contains("the container has stopped"));
}

/// Everything at once on a few names: whatever wins, nothing is half and nothing is left.
#[test]
fn a_crowd_leaves_everything_whole() {
    let world = World::new();
    let image = text(&bare()).to_owned();
    let mut seed = 0x9e37_79b9u32;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed as usize % below
    };
    for _ in 0..5 {
        let all: Vec<Vec<String>> = (0..24)
            .map(|_| {
                let (name, other) = (["x", "y", "z"][next(3)], ["x", "y", "z"][next(3)]);
                words(&match next(12) {
                    0..3 => format!("create {name} --image {image}"),
                    3..5 => format!("start {name}"),
                    5 => format!("stop {name} --timeout 3s"),
                    6 => format!("destroy {name}"),
                    7 => format!("destroy --force {name}"),
                    8 => format!("rename {name} {other}"),
                    9 => format!("config {name} set pids=200"),
                    10 => "list --json".to_owned(),
                    _ => format!("exec {name} -- true"),
                })
            })
            .collect();
        for (line, out) in all.iter().zip(at_once(&world, &all)) {
            // A command inside may end with its container: by SIGTERM or SIGKILL.
            let known: &[i32] = if line[0] == "exec" { &[0, 125, 137, 143] } else { &[0, 1] };
            assert!(!out.stderr.contains("panicked") && known.contains(&out.status), "{line:?}\n{out}");
            assert!(line[0] != "list" || out.status == 0, "{out}");
        }
        ids_are_disjoint(&world);
        let running: Vec<String> = entries(&world.path("run/containers"));
        for name in world.ok(&["list", "--names"]).stdout.lines() {
            let state = world.state(name);
            assert_eq!(
                state == "running",
                running.contains(&name.to_owned()),
                "`{name}` is {state}, and {running:?} have something at run time"
            );
            assert!(["running", "stopped"].contains(&state.as_str()), "`{name}` is {state} with nobody at work on it");
        }
        assert_eq!(entries(&world.path("tmp")), Vec::<String>::new());
    }
    assert!(fs::metadata(world.path("run/events")).is_ok());
}

//! From `create` to `destroy`: what each command does, says and refuses.

use std::fs;

use serde_json::json;

use crate::harness::*;

#[test]
fn a_container_is_created_once() {
    let world = World::new();
    let made = world.ok(&["create", "web", "--image", text(&bare()), "--json"]).json();
    assert_eq!(made["name"], "web");
    assert_eq!(made["image"], text(&bare()));
    assert_eq!(made["storage"], "overlay");
    assert_eq!(made["ids"], json!({ "start": 0x4000_0000, "count": 65536 }));
    assert_eq!(made["notes"], json!([]));
    world.refused(&["create", "web"], &["there is a container `web` already", "hint: ", "lazaret destroy web"]);

    let second = world.ok(&["create", "db", "--image", text(&bare()), "--json"]).json();
    assert_eq!(second["ids"]["start"], 0x4001_0000, "id ranges are disjoint");
    let words = world.ok(&["create", "third", "--image", text(&bare())]);
    assert!(words.stdout.is_empty() && words.stderr.contains("lazaret shell third"), "{words}");
}

#[test]
fn every_command_refuses_a_container_that_is_not_there() {
    let world = World::new();
    world.refused(&["start", "web"], &["there is no container `web`", "lazaret create web"]);
    world.create("web", bare());
    let verbs: [&[&str]; 14] = [
        &["start"],
        &["stop"],
        &["restart"],
        &["freeze"],
        &["unfreeze"],
        &["console"],
        &["logs"],
        &["info"],
        &["plan"],
        &["destroy"],
        &["destroy", "--force"],
        &["wait", "--timeout", "1s"],
        &["config"],
        &["rename"],
    ];
    for verb in verbs {
        let rest: &[&str] = match verb[0] {
            "wait" => &["running"],
            "config" => &["show"],
            "rename" => &["other"],
            _ => &[],
        };
        let arguments = [verb, &["wbe"], rest].concat();
        world.refused(&arguments, &["error: there is no container `wbe`\n", "hint: did you mean `web`?"]);
    }
    for arguments in [&["exec", "wbe", "--", "true"][..], &["shell", "wbe"]] {
        let out = world.lazaret(arguments);
        assert_eq!(out.status, 125, "{out}");
        assert!(out.stderr.contains("there is no container `wbe`"), "{out}");
    }
}

#[test]
fn names_that_could_be_paths_or_options_are_refused() {
    let world = World::new();
    world.create("web", bare());
    for bad in ["", ".", "..", "../web", "a/b", "a b", ".web", "_web", "wéb", "web\n", &"w".repeat(64)] {
        for arguments in [&["create", bad][..], &["start", bad], &["destroy", bad], &["rename", "web", bad]] {
            world.refused(arguments, &["container name", "use 1 to 63 letters, digits, '.', '_' or '-'"]);
        }
    }
    // What begins with a dash is an option that does not exist: misused.
    assert_eq!(world.lazaret(&["create", "-web"]).status, 2);
    world.create(&"w".repeat(63), bare());
    assert_eq!(world.ok(&["list", "--names"]).stdout.lines().count(), 2);
}

#[test]
fn a_life_from_start_to_destroy() {
    let world = World::new();
    world.create("web", bare());
    assert_eq!(world.state("web"), "stopped");
    for verb in ["stop", "freeze", "unfreeze", "console"] {
        world.refused(&[verb, "web"], &["`web` is not running", "lazaret start web"]);
    }
    assert_eq!(world.lazaret(&["exec", "web", "--", "true"]).status, 125);

    let said = world.ok(&["start", "web"]);
    assert!(said.stdout.is_empty() && said.stderr.is_empty(), "a start has nothing to say\n{said}");
    assert_eq!(world.state("web"), "running");
    world.refused(&["start", "web"], &["`web` is running already", "lazaret shell web"]);
    world.refused(&["destroy", "web"], &["`web` is running", "--force"]);
    world.refused(&["rename", "web", "other"], &["`web` is running", "lazaret stop web"]);
    let first = world.init_pid("web");

    world.ok(&["restart", "web"]);
    let second = world.init_pid("web");
    assert_ne!(first, second, "a restart makes a new process 1");

    world.ok(&["freeze", "web"]);
    world.ok(&["freeze", "web"]);
    assert_eq!(world.state("web"), "frozen");
    let out = world.lazaret(&["exec", "web", "--", "true"]);
    assert_eq!(out.status, 125);
    assert!(out.stderr.contains("`web` is frozen") && out.stderr.contains("lazaret unfreeze web"), "{out}");
    world.ok(&["unfreeze", "web"]);
    world.ok(&["unfreeze", "web"]);
    assert_eq!(world.exec("web", &["echo", "thawed"]), "thawed");
    assert_eq!(world.init_pid("web"), second, "freezing is no restart");

    let said = world.ok(&["stop", "web"]);
    assert!(said.stderr.is_empty(), "our init ends when asked\n{said}");
    assert_eq!(world.state("web"), "stopped");
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0], "a stopped container holds no cgroup");
    world.ok(&["restart", "web"]);
    assert_eq!(world.state("web"), "running", "a stopped one is just started");
    world.ok(&["freeze", "web"]);
    world.ok(&["stop", "web"]);

    world.ok(&["destroy", "web"]);
    world.refused(&["info", "web"], &["there is no container `web`"]);
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[test]
fn list_and_info_tell_the_same_to_people_and_to_programs() {
    let world = World::new();
    let none = world.ok(&["list"]);
    assert!(none.stdout.is_empty() && none.stderr.contains("lazaret create"), "{none}");
    assert_eq!(world.ok(&["list", "--json"]).json(), json!([]));
    world.ok(&["create", "web", "--image", text(&bare()), "--set", "description=the web server"]);
    world.start_container("db", bare());

    let lines = world.ok(&["list", "--json"]).json();
    let pid = lines[0]["pid"].as_i64().unwrap();
    assert_eq!(lines[0]["name"], "db");
    assert_eq!(lines[0]["state"], "running");
    assert_eq!(lines[0]["image"], text(&bare()));
    assert!(lines[0]["tasks"].as_u64().unwrap() >= 1 && lines[0]["memory"].as_u64().unwrap() > 0, "{lines}");
    assert!(lines[0]["since"].as_u64().unwrap() > 1_600_000_000_000, "milliseconds\n{lines}");
    let web = json!({
        "name": "web", "state": "stopped", "pid": null, "image": text(&bare()), "memory": null, "tasks": null,
        "since": null, "description": "the web server", "fault": null,
    });
    assert_eq!(lines[1], web);

    let table = world.ok(&["list"]).stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "PID", "MEMORY", "TASKS", "UP", "IMAGE", "DESCRIPTION"]);
    assert_eq!(rows[1][..3], ["db", "running", &pid.to_string()]);
    assert_eq!(rows[2], ["web", "stopped", "-", "-", "-", "-", "bare", "the", "web", "server"]);
    assert_eq!(world.ok(&["list", "--running", "--names"]).stdout, "db\n");

    let info = world.info("db");
    assert_eq!((info["pid"].as_i64(), &info["state"]), (Some(pid), &json!("running")));
    assert_eq!(info["privileged"], false);
    assert_eq!(info["openings"], json!([]));
    let walls = &info["confinement"];
    assert_eq!(walls["namespaces"], json!(["user", "mount", "pid", "network", "uts", "ipc", "cgroup"]));
    assert_eq!(walls["seccomp"], true);
    let start = info["ids"]["start"].as_u64().unwrap();
    assert_eq!(walls["id_map"], json!([format!("0 {start} 65536")]));
    let capabilities = walls["capabilities"].as_array().unwrap();
    for never in ["sys_module", "sys_rawio", "sys_time", "sys_boot_", "mac_admin", "syslog", "bpf", "perfmon"] {
        assert!(!capabilities.contains(&json!(never)), "{never}");
    }
    let words = world.ok(&["info", "db"]).stdout;
    for line in ["name:         db\n", "state:        running\n", "openings:     none\n", &format!("process {pid}")] {
        assert!(words.contains(line), "`info` lacks `{line}`\n{words}");
    }
    assert!(!words.contains('\x1b'), "no colours in a pipe\n{words}");
}

#[test]
fn a_damaged_container_is_listed_and_can_be_destroyed() {
    let world = World::new();
    world.create("web", bare());
    world.create("db", bare());
    fs::write(world.path("containers/web/record.json"), "{").unwrap();
    let lines = world.ok(&["list", "--json"]).json();
    assert_eq!((&lines[1]["name"], &lines[1]["state"]), (&json!("web"), &json!("broken")));
    assert!(!lines[1]["fault"].as_str().unwrap().is_empty());
    world.refused(&["start", "web"], &["record.json"]);
    world.ok(&["start", "db"]);
    world.ok(&["destroy", "web"]);
    world.ok(&["destroy", "--force", "db"]);
    assert_eq!(world.leftovers(), [] as [String; 0], "its id range is given back, too");
}

#[test]
fn a_renamed_container_keeps_its_files_and_takes_the_name() {
    let world = World::new();
    world.start_container("web", bare());
    world.create("db", bare());
    world.exec_sh("web", "echo mine > /root/file");
    world.ok(&["stop", "web"]);
    world.refused(&["rename", "web", "db"], &["there is a container `db` already"]);
    world.ok(&["rename", "web", "old"]);
    world.refused(&["info", "web"], &["there is no container `web`"]);
    world.ok(&["start", "old"]);
    assert_eq!(world.exec_sh("old", "cat /root/file; hostname"), "mine\nold");
}

/// It comes of the command that started it, whose words and variables say nothing about it.
#[test]
fn a_keeper_is_known_by_its_name_and_keeps_no_variables() {
    let world = World::new();
    world.create("web", busybox());
    for extra in ["", "A_VARIABLE_OF_THE_CALLERS=secret"] {
        let out = world.sh(&format!("{extra} $LAZARET start web"));
        assert_eq!(out.status, 0, "{out}");
        let of_keeper = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{}/{file}", world.keeper_pid("web"))).unwrap();
            String::from_utf8(bytes).unwrap().replace('\0', " ").trim().to_owned()
        };
        assert_eq!(of_keeper("cmdline"), "lazaret keeper web");
        assert_eq!(of_keeper("environ"), "");
        world.ok(&["stop", "--kill", "web"]);
    }
}

#[test]
fn destroy_forced_ends_what_runs() {
    let world = World::new();
    world.start_container("web", bare());
    let mut inside = world.spawn(&["exec", "web", "--", "sh", "-c", "echo here; exec cat"]);
    inside.expect("here\n");
    world.ok(&["destroy", "--force", "web"]);
    assert_eq!(inside.wait().status, 128 + 9);
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[test]
fn wait_returns_with_the_state_and_not_before() {
    let world = World::new();
    world.create("web", bare());
    world.ok(&["wait", "web", "stopped"]);
    world.ok(&["wait", "web", "STOPPED"]);
    world.refused(&["wait", "web", "running", "--timeout", "0"], &["`web` is stopped, not running"]);
    assert_eq!(world.lazaret(&["wait", "web", "asleep"]).status, 2);

    let (running, frozen) = (world.spawn(&["wait", "web", "running"]), world.spawn(&["wait", "web", "frozen"]));
    world.ok(&["start", "web"]);
    assert_eq!(running.wait().status, 0);
    assert!(!frozen.has_ended());
    world.ok(&["freeze", "web"]);
    assert_eq!(frozen.wait().status, 0);

    let stopped = world.spawn(&["wait", "web", "stopped"]);
    world.ok(&["stop", "web"]);
    assert_eq!(stopped.wait().status, 0);
    let never = world.spawn(&["wait", "web", "running"]);
    world.ok(&["destroy", "web"]);
    let never = never.wait();
    assert_eq!(never.status, 1, "{never}");
    // Which of the two depends on whether it had begun to wait.
    let gone = ["`web` is gone and will never be running", "there is no container `web`"];
    assert!(gone.iter().any(|words| never.stderr.contains(words)), "{never}");
}

#[test]
fn events_tell_a_life_in_order() {
    let world = World::new();
    let mut events = world.spawn(&["events", "--json", "--count", "12"]);
    events.expect_error("following events");
    let mut people = world.spawn(&["events", "--count", "1"]);
    people.expect_error("following events");
    world.create("web", bare());
    world.ok(&["start", "web"]);
    world.ok(&["freeze", "web"]);
    world.ok(&["unfreeze", "web"]);
    world.ok(&["stop", "web"]);
    world.ok(&["rename", "web", "old"]);
    world.ok(&["destroy", "old"]);
    // One more life, so that the count is what ends it.
    world.create("web", bare());
    world.ok(&["start", "web"]);
    let out = events.wait();
    let lines: Vec<serde_json::Value> = out.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines.iter().map(|e| format!("{} {}", word(&e["what"]), word(&e["container"]))).collect();
    let expected = [
        "created web",
        "starting web",
        "running web",
        "frozen web",
        "thawed web",
        "stopping web",
        "stopped web",
        "renamed web",
        "destroyed old",
        "created web",
        "starting web",
        "running web",
    ];
    assert_eq!(told, expected);
    assert!(lines.windows(2).all(|two| two[0]["time"].as_u64() <= two[1]["time"].as_u64()), "{out}");
    assert_eq!(lines[7]["detail"], "old");
    let people = people.wait().stdout;
    assert!(people.ends_with("created    web\n") && people.contains(" UTC "), "{people}");
}

#[test]
fn stop_kills_what_will_not_end_and_says_so() {
    let world = World::new();
    let deaf = r#"init=["/bin/sh","-c","trap '' TERM; echo deaf > /dev/console; while :; do sleep 1000; done"]"#;
    world.ok(&["create", "web", "--image", text(&bare()), "--set", deaf, "--set", "stop_signal=TERM"]);
    world.ok(&["start", "web"]);
    let mut logs = world.spawn(&["logs", "-f", "web"]);
    logs.expect("deaf");
    let out = world.ok(&["stop", "web", "--timeout", "200ms"]);
    assert!(out.stderr.contains("`web` did not end in time and was killed"), "{out}");
    assert_eq!(logs.wait().status, 0, "`logs -f` ends with the container");

    world.ok(&["config", "web", "set", "stop_timeout=0s"]);
    world.ok(&["start", "web"]);
    assert!(world.ok(&["stop", "web"]).stderr.contains("was killed"), "its own time-out holds");
    world.ok(&["start", "web"]);
    let out = world.ok(&["stop", "web", "--kill"]);
    assert!(out.stderr.is_empty(), "killed as asked: nothing to say\n{out}");
    assert_eq!(world.lazaret(&["stop", "web", "--kill", "--timeout", "1s"]).status, 2);
    world.ok(&["start", "web"]);
    world.refused(&["stop", "web", "--timeout=-1s"], &["`--timeout -1s` is negative"]);
}

#[test]
fn stop_straight_after_start_works() {
    let world = World::new();
    for (name, image) in [("ours", bare()), ("theirs", busybox())] {
        world.create(name, image);
        for _ in 0..5 {
            world.ok(&["start", name]);
            let out = world.ok(&["stop", name, "--timeout", "20s"]);
            assert!(!out.stderr.contains("killed"), "{name}: {out}");
            assert_eq!(world.state(name), "stopped");
        }
    }
}

#[test]
fn a_reboot_from_inside_is_a_new_run() {
    let world = World::new();
    world.create("web", bare());
    world.ok(&["start", "web"]);
    let before = (world.init_pid("web"), world.keeper_pid("web"));
    // What is changed meanwhile holds from the reboot on.
    world.ok(&["config", "web", "set", "hostname=again"]);
    for _ in 0..2 {
        let mut events = world.spawn(&["events"]);
        events.expect_error("following events");
        world.lazaret(&["exec", "web", "--", "reboot", "-f"]);
        assert!(events.expect("running    web").contains("(reboot)"));
    }
    let after = (world.init_pid("web"), world.keeper_pid("web"));
    assert_ne!(before.0, after.0, "process 1 is a new one");
    assert_eq!(before.1, after.1, "the keeper is the same");
    assert_eq!(world.exec("web", &["hostname"]), "again");
    assert_eq!(world.info("web")["at_next_start"], json!([]));
    world.ok(&["stop", "web"]);
}

#[test]
fn those_who_wait_for_a_stop_wait_through_a_reboot() {
    let world = World::new();
    world.start_container("web", busybox());
    let mut logs = world.spawn(&["logs", "-f", "web"]);
    let mut events = world.spawn(&["events"]);
    events.expect_error("following events");
    world.lazaret(&["exec", "web", "--", "reboot", "-f"]);
    events.expect("running    web");
    world.exec_sh("web", "echo after the reboot > /dev/console");
    logs.expect("after the reboot");
    world.ok(&["stop", "web"]);
    assert_eq!(logs.wait().status, 0);
}

#[test]
fn a_power_off_from_inside_ends_and_releases_everything() {
    let world = World::new();
    for (name, image) in [("ours", bare()), ("theirs", busybox())] {
        world.start_container(name, image);
        let stopped = world.spawn(&["wait", name, "stopped", "--timeout", "20s"]);
        world.lazaret(&["exec", name, "--", "poweroff", "-f"]);
        assert_eq!(stopped.wait().status, 0);
        assert_eq!(world.state(name), "stopped");
        assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0]);
        assert_eq!(entries(&world.path("run/containers")), [] as [String; 0]);
    }
}

#[test]
fn an_init_that_ends_by_itself_stops_the_container() {
    let world = World::new();
    let init = r#"init=["/bin/sh","-c","echo done > /dev/console; exit 3"]"#;
    world.ok(&["create", "web", "--image", text(&bare()), "--set", init]);
    let mut events = world.spawn(&["events", "--json"]);
    events.expect_error("following events");
    world.lazaret(&["start", "web"]);
    assert!(events.expect("\"stopped\"").contains("status 3"));
    assert_eq!(world.ok(&["logs", "web"]).stdout, "done\r\n", "its last words are kept");
    world.ok(&["destroy", "web"]);
}

#[test]
fn an_init_that_is_not_there_is_an_error_of_start() {
    let world = World::new();
    world.ok(&["create", "web", "--image", text(&bare()), "--set", "init=/sbin/nothing"]);
    world.refused(&["start", "web"], &["starting `web`", "step ", "`/sbin/nothing`", "no such file or directory"]);
    assert_eq!(world.state("web"), "stopped");
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0], "a failed start leaves nothing");
    assert_eq!(entries(&world.path("run/containers")), [] as [String; 0]);
    world.ok(&["config", "web", "unset", "init"]);
    world.ok(&["start", "web"]);
}

#[test]
fn our_init_buries_orphans() {
    let world = World::new();
    world.ok(&["create", "web", "--image", text(&bare()), "--set", "pids=200"]);
    world.ok(&["start", "web"]);
    // Each is an orphan at once, and a dead one counts against the limit until process 1 has waited for it.
    world.exec_sh("web", "i=0; while [ $i -lt 600 ]; do (: &) || exit 1; i=$((i + 1)); done");
}

#[test]
fn shell_starts_a_stopped_container_and_logs_in() {
    let world = World::new();
    world.create("web", bare());
    let script = "echo $0 $PWD $HOME $USER; exit 5\n";
    let out = world.feed(script.as_bytes(), &["shell", "web"]);
    assert_eq!((out.status, out.stdout.as_str()), (5, "-sh /root /root root\n"), "{out}");
    assert!(out.stderr.contains("starting `web`"), "{out}");
    assert_eq!(world.state("web"), "running", "it goes on after the shell");
    let out = world.feed(script.as_bytes(), &["shell", "web", "--user", "user"]);
    assert_eq!((out.status, out.stdout.as_str()), (5, "-sh /home/user /home/user user\n"), "{out}");
    assert!(out.stderr.is_empty(), "{out}");
}

#[test]
fn plan_shows_every_step_and_takes_none() {
    let world = World::new();
    world.create("web", bare());
    let words = world.ok(&["plan", "web"]).stdout;
    let steps = world.ok(&["plan", "web", "--json"]).json();
    assert_eq!(words.lines().count(), steps.as_array().unwrap().len());
    assert!(words.lines().all(|line| ["host", "stage", "guest"].contains(&line.split_whitespace().nth(1).unwrap())));
    for step in ["mounting proc for `/proc`", "loading the system call filter", "allowing 10 kinds of devices"] {
        assert!(words.contains(step), "{words}");
    }
    assert_eq!(world.cgroups(), [] as [std::path::PathBuf; 0]);
    assert_eq!(world.state("web"), "stopped");
}

#[test]
fn doctor_finds_this_machine_fit() {
    let world = World::new();
    let checks = world.ok(&["doctor", "--json"]).json();
    for check in checks.as_array().unwrap() {
        for key in ["what", "grade", "found", "remedy"] {
            assert!(check.get(key).is_some(), "{check}");
        }
        assert_ne!(check["grade"], "bad", "{check}");
    }
    let words = world.ok(&["doctor"]).stdout;
    assert_eq!(words.lines().filter(|line| !line.starts_with(' ')).count(), checks.as_array().unwrap().len());
}

#[test]
fn help_has_examples_and_misuse_is_status_2() {
    let world = World::new();
    let help = world.ok(&["--help"]).stdout;
    let verbs = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let verbs: Vec<_> = verbs.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(verbs.len() > 18, "{verbs:?}");
    for verb in verbs {
        let help = world.ok(&[verb, "--help"]);
        assert!(help.stdout.contains("Examples:\n") && help.stderr.is_empty(), "{verb}\n{help}");
    }
    for misuse in [&["nonsense"][..], &["start"], &["start", "a", "b"], &["list", "--nonsense"], &["exec", "web"]] {
        let out = world.lazaret(misuse);
        assert!(out.status == 2 && out.stdout.is_empty() && !out.stderr.is_empty(), "{misuse:?}\n{out}");
    }
}

#[test]
fn names_complete_in_every_shell() {
    let world = World::new();
    world.create("web", bare());
    world.create("worker", bare());
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.ok(&["completions", shell]).stdout.contains("lazaret"));
        let mut command = world.script("$LAZARET -- lazaret start w");
        command.env("COMPLETE", shell).env("_CLAP_COMPLETE_INDEX", "2").env("_CLAP_IFS", "\n");
        let out = world.run(command, b"");
        let words: Vec<_> =
            out.stdout.split(['\n', '\u{b}']).map(|line| line.split(['\t', ':']).next().unwrap()).collect();
        assert!(words.contains(&"web") && words.contains(&"worker"), "{shell}: {out}");
    }
}

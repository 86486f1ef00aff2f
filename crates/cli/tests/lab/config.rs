//! The configuration: what it says when it is wrong, what changes at once, and what it does.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::harness::*;

/// The value of a limit: the file of this name in whichever hierarchy has it for the container.
#[track_caller]
fn limit(world: &World, file: &str) -> String {
    let found = world.cgroups().iter().map(|dir| dir.join(file)).find(|path| path.exists());
    let path = found.unwrap_or_else(|| panic!("no cgroup of the container has `{file}`"));
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// Names of the control files: v2's, or v1's on a hybrid host.
fn on_v1() -> bool {
    PathBuf::from("/sys/fs/cgroup/memory").is_dir()
}

#[test]
fn a_wrong_setting_is_refused_before_anything_is_made() {
    let world = World::new();
    let image = bare();
    for (setting, words) in [
        ("memroy=1G", &["unknown key 'memroy'", "hint: did you mean 'memory'?"][..]),
        ("memory=lots", &["'memory': 'lots' is not a size", "512M or 1.5G"]),
        ("pids=0", &["'pids': '0' is not a number from 1 to 4194304"]),
        ("cap_drop=sys_everything", &["'cap_drop'", "sys_everything"]),
        ("rlimits.nofiles=5", &["nofiles", "nofile"]),
        ("env.A-B=x", &["'A-B' is not the name of a variable"]),
        ("stop_timeout=-5s", &["'-5s' is negative"]),
        ("swap=1G", &["swap", "memory"]),
        ("hostname=-x-", &["'hostname'"]),
        ("memory", &["`memory` is not KEY=VALUE", "--set memory=1G"]),
    ] {
        world.refused(&["create", "web", "--image", text(&image), "--set", setting], words);
    }
    assert_eq!(world.leftovers(), [] as [String; 0]);
    for (image, words) in [
        (
            "/no/where",
            &[
                "preparing the image `/no/where`: looking at `/no/where`: no such file or directory",
                "hint: an image is `host`",
            ][..],
        ),
        ("/etc/passwd", &["preparing the image `/etc/passwd`", "not a tar archive"]),
        ("/dev/null", &["preparing the image `/dev/null`"]),
    ] {
        world.refused(&["create", "web", "--image", image], words);
    }
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[test]
fn a_wrong_file_is_an_error_with_its_line() {
    let world = World::new();
    world.create("web", bare());
    let path = world.path("containers/web/container.toml");
    let sound = fs::read_to_string(&path).unwrap();
    for (text, words) in [
        ("memroy = \"1G\"", "unknown key 'memroy', did you mean 'memory'?"),
        ("pids = \"many\"", "'many'"),
        ("memory = ", ""),
        ("[env]\nPATH = 5\n", "PATH"),
    ] {
        // The file may end with a table, whose key it would be.
        let (line, wrong) = match text.starts_with('[') {
            true => (sound.lines().count() + 2, format!("{sound}{text}\n")),
            false => (1, format!("{text}\n{sound}")),
        };
        fs::write(&path, &wrong).unwrap();
        let head = format!("error: container.toml:{line}: ");
        for arguments in [&["start", "web"][..], &["plan", "web"], &["config", "web", "set", "pids=5"]] {
            world.refused(arguments, &[&head, words]);
        }
        assert_eq!(world.ok(&["config", "web", "show"]).stdout, wrong, "it can still be looked at");
    }
    // All faults at once.
    fs::write(&path, format!("memroy = 1\ncpuz = 2\n{sound}")).unwrap();
    world.refused(&["start", "web"], &["container.toml:1: ", "container.toml:2: "]);
    // And an editor mends it.
    let mut edit = world.command(&["config", "web", "edit"]);
    edit.env("EDITOR", "sed -i -e /memroy/d -e /cpuz/d");
    let out = world.run(edit, b"");
    assert_eq!(out.status, 0, "{out}");
    world.ok(&["start", "web"]);
}

#[test]
fn an_edit_is_taken_whole_or_not_at_all() {
    let world = World::new();
    world.create("web", bare());
    let edit = |editor: &str| {
        let mut command = world.command(&["config", "web", "edit"]);
        command.env("VISUAL", editor);
        world.run(command, b"")
    };
    let before = world.snapshot();
    let out = edit("sed -i '1i memroy = 1'");
    assert!(out.status == 1 && out.stderr.contains("unknown key 'memroy'"), "{out}");
    let out = edit("false");
    assert!(out.status == 1 && out.stderr.contains("nothing was changed"), "{out}");
    let out = edit("true");
    assert!(out.status == 0 && out.stderr.contains("nothing was changed"), "{out}");
    let out = edit("sed -i '1i privileged = true'");
    assert!(out.status == 1 && out.stderr.contains("`privileged` can't be changed"), "{out}");
    let out = edit("no-such-editor");
    assert!(out.status == 1 && out.stderr.contains("no-such-editor"), "{out}");
    assert_eq!(before, world.snapshot());
    let out = edit("sed -i -e '1i # mine' -e '1i pids = 99'");
    assert!(out.status == 0 && out.stderr.is_empty(), "{out}");
    assert!(world.ok(&["config", "web", "show"]).stdout.starts_with("# mine\npids = 99\n"), "comments stay");
    assert_eq!(entries(&world.path("tmp")), [] as [String; 0]);
}

#[test]
fn keys_are_shown_got_set_and_unset() {
    let world = World::new();
    world.ok(&[
        "create",
        "web",
        "--image",
        text(&bare()),
        "--set",
        "env.LANG=de_DE.UTF-8",
        "--set",
        "cap_drop=net_raw,mknod",
    ]);
    let get = |key: &str| world.ok(&["config", "web", "get", key]).stdout;
    assert_eq!(get("memory"), "max\n");
    assert_eq!(get("pids"), "8192\n");
    assert_eq!(get("cap_drop"), "net_raw,mknod\n");
    assert_eq!(get("env.LANG"), "de_DE.UTF-8\n");
    assert_eq!(get("hostname"), "", "no value, no line");
    world.refused(&["config", "web", "get", "memroy"], &["unknown key 'memroy'", "did you mean 'memory'?"]);

    world.ok(&["config", "web", "set", "memory=256M", "cpus=1.5", "rlimits.nofile=100:200"]);
    assert_eq!(
        (get("memory"), get("cpus"), get("rlimits.nofile")),
        ("256M\n".into(), "1.5\n".into(), "100:200\n".into())
    );
    world.refused(&["config", "web", "set", "pids=5", "memroy=1G"], &["unknown key 'memroy'"]);
    assert_eq!(get("pids"), "8192\n", "all or none");
    for fixed in ["image=host", "privileged=true"] {
        world.refused(&["config", "web", "set", fixed], &["can't be changed once the container is made"]);
    }
    world.ok(&["config", "web", "unset", "memory"]);
    assert_eq!(get("memory"), "max\n");

    let all = world.ok(&["config", "web", "show", "--json"]).json();
    assert_eq!((&all["cpus"], &all["pids"], &all["memory"]), (&json!(1.5), &json!(8192), &json!("max")));
    assert_eq!(all["rlimits"], json!({ "nofile": "100:200" }));
    assert_eq!(all, world.info("web")["config"]);
    let file = world.ok(&["config", "web", "show"]).stdout;
    assert!(file.contains("\ncpus = 1.5\n") && file.contains("[env]\nLANG = \"de_DE.UTF-8\"\n"), "{file}");
    let keys = world.ok(&["config", "web", "keys"]).stdout;
    assert!(all.as_object().unwrap().keys().all(|key| keys.contains(key.as_str())), "{keys}");
}

#[test]
fn limits_are_in_force_at_once_and_after_a_restart() {
    let world = World::new();
    world.start_container("web", bare());
    let (memory, cpus, weight) = match on_v1() {
        true => ("memory.limit_in_bytes", "cpu.cfs_quota_us", "cpu.shares"),
        false => ("memory.max", "cpu.max", "cpu.weight"),
    };
    let quota = |limit: String| limit.split(' ').next().unwrap().to_owned();
    let unlimited = limit(&world, memory);
    assert_eq!(limit(&world, "pids.max"), "8192", "there is a limit on tasks from the start");
    let out = world.ok(&["config", "web", "set", "memory=64M", "cpus=0.5", "cpu_weight=50", "pids=77"]);
    assert!(out.stderr.is_empty(), "{out}");
    let check = || {
        assert_eq!(limit(&world, memory), (64 << 20).to_string());
        assert_eq!(quota(limit(&world, cpus)), "50000");
        assert_eq!(limit(&world, weight), if on_v1() { "512" } else { "50" });
        assert_eq!(limit(&world, "pids.max"), "77");
    };
    check();
    world.ok(&["restart", "web"]);
    check();
    world.ok(&["config", "web", "unset", "memory"]);
    world.ok(&["config", "web", "unset", "cpus"]);
    world.ok(&["config", "web", "set", "pids=max"]);
    assert_eq!(limit(&world, memory), unlimited);
    assert_eq!(quota(limit(&world, cpus)), if on_v1() { "-1" } else { "max" });
    assert_eq!(limit(&world, "pids.max"), "max");
}

#[test]
fn each_limit_is_taken_off_alone() {
    let world = World::new();
    world.start_container("web", bare());
    let (swap, unlimited) = match on_v1() {
        true => ("memory.memsw.limit_in_bytes", limit(&world, "memory.memsw.limit_in_bytes")),
        false => ("memory.swap.max", "max".into()),
    };
    let cpus = limit(&world, "cpuset.cpus");
    world.ok(&["config", "web", "set", "memory=64M", "swap=1M", "cpuset=0"]);
    assert_eq!(limit(&world, swap), if on_v1() { (65 << 20).to_string() } else { (1 << 20).to_string() });
    assert_eq!(limit(&world, "cpuset.cpus"), "0");
    world.refused(&["config", "web", "unset", "memory"], &["'swap' needs a limit of 'memory'"]);
    world.ok(&["config", "web", "unset", "swap"]);
    assert_eq!(limit(&world, swap), unlimited, "swap, while memory stays limited");
    world.ok(&["config", "web", "unset", "cpuset"]);
    assert_eq!(limit(&world, "cpuset.cpus"), cpus);
    // Down and up again, with swap bounded by what memory is at the time.
    for memory in ["32M", "256M", "16M"] {
        world.ok(&["config", "web", "set", &format!("memory={memory}"), "swap=0"]);
    }
}

#[test]
fn weights_and_rates_of_devices_are_limited() {
    let world = World::new();
    world.start_container("web", bare());
    // The disk under the tests, whichever it is; a partition is limited by its disk.
    let disks = entries("/sys/block".as_ref());
    let disk = disks.iter().find(|name| fs::exists(format!("/sys/block/{name}/device")).unwrap_or_default());
    let disk = disk.unwrap_or_else(|| panic!("this machine has no disk: {disks:?}"));
    let number = fs::read_to_string(format!("/sys/block/{disk}/dev")).unwrap().trim().to_owned();
    world.ok(&["config", "web", "set", &format!("io=/dev/{disk} read=10M write_iops=50")]);
    let in_force = || match on_v1() {
        true => format!(
            "{} {}",
            limit(&world, "blkio.throttle.read_bps_device"),
            limit(&world, "blkio.throttle.write_iops_device")
        ),
        false => limit(&world, "io.max"),
    };
    match on_v1() {
        true => assert_eq!(in_force(), format!("{number} 10485760 {number} 50")),
        false => assert_eq!(in_force(), format!("{number} rbps=10485760 wbps=max riops=max wiops=50")),
    }
    world.refused(&["config", "web", "set", "io=/dev/no-such-disk read=1M"], &["`/dev/no-such-disk`"]);
    world.refused(&["config", "web", "set", "io=/dev/null read=1M"], &["/dev/null"]);
    let weight = || limit(&world, if on_v1() { "blkio.bfq.weight" } else { "io.weight" });
    let before = weight();
    world.ok(&["config", "web", "set", "io_weight=50"]);
    assert_eq!(weight().rsplit(' ').next(), Some("50"));
    world.ok(&["config", "web", "unset", "io_weight"]);
    assert_eq!(weight(), before);
    world.ok(&["config", "web", "unset", "io"]);
    assert_eq!(in_force().trim(), "");
}

#[test]
fn a_limit_that_the_kernel_refuses_changes_nothing() {
    let world = World::new();
    world.start_container("web", bare());
    world.ok(&["config", "web", "set", "pids=77"]);
    // No machine has this processor.
    let out = world
        .refused(&["config", "web", "set", "pids=99", "cpuset=8191"], &["limiting `web`", "the kernel refuses `8191`"]);
    assert_eq!(limit(&world, "pids.max"), "77", "what went before it is taken back\n{out}");
    assert_eq!(world.ok(&["config", "web", "get", "pids"]).stdout, "77\n");
    world.ok(&["config", "web", "set", "pids=78"]);
    world.ok(&["stop", "web"]);
    // With nothing running nobody can ask the kernel; the start tells, and leaves nothing.
    world.ok(&["config", "web", "set", "cpuset=8191"]);
    world.refused(&["start", "web"], &["starting `web`: step ", "cpuset.cpus` to `8191`"]);
    assert_eq!(world.cgroups(), [] as [PathBuf; 0]);
}

#[test]
fn limits_hold() {
    let world = World::new();
    world.ok(&["create", "web", "--image", text(&bare()), "--set", "pids=30", "--set", "memory=32M"]);
    world.ok(&["start", "web"]);
    // A fork bomb of the plainest kind. It ends by its own failure, and the host has not noticed.
    let bomb = world.lazaret(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "i=0; while [ $i -lt 100 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i + 1)); done",
    ]);
    assert_ne!(bomb.status, 0, "{bomb}");
    assert!(bomb.stderr.contains("can't fork"), "{bomb}");
    assert!(world.info("web")["usage"]["tasks"].as_u64().unwrap() <= 30);
    world.ok(&["config", "web", "set", "pids=60"]);
    assert_eq!(world.exec("web", &["echo", "room"]), "room");
    // Memory: swap is limited with it, or the host would only get slower.
    world.ok(&["config", "web", "set", "swap=0"]);
    let hog = world.lazaret(&["exec", "web", "--", "sh", "-c", "head -c 100000000 /dev/zero | tail"]);
    assert_ne!(hog.status, 0, "{hog}");
    assert_eq!(world.state("web"), "running", "the container outlives what was killed in it");
    // Nor does memory behind files on its tmpfs escape the limit.
    let hog = world.lazaret(&["exec", "web", "--", "sh", "-c", "head -c 100000000 /dev/zero > /dev/shm/hog"]);
    assert_ne!(hog.status, 0, "{hog}");
}

#[test]
fn what_needs_a_restart_says_so_and_holds_after_it() {
    let world = World::new();
    world.start_container("web", bare());
    let out = world.ok(&["config", "web", "set", "hostname=other", "pids=50"]);
    assert_eq!(out.stderr, "hostname will hold from the next start on: lazaret restart web\n");
    assert_eq!(world.info("web")["at_next_start"], json!(["hostname"]));
    assert!(world.ok(&["info", "web"]).stdout.contains("next start:   hostname changed; lazaret restart web"));
    assert_eq!(world.exec("web", &["hostname"]), "web");
    world.ok(&["restart", "web"]);
    assert_eq!(world.info("web")["at_next_start"], json!([]));
    assert_eq!(world.exec_sh("web", "hostname; cat /etc/hostname"), "other\nother");
}

#[test]
fn clocks_limits_and_capabilities_are_as_configured() {
    let world = World::new();
    let settings = [
        "time.monotonic=1h",
        "time.boottime=100d",
        "rlimits.nofile=123:456",
        "rlimits.core=0",
        "cap_drop=net_raw,mknod,chown",
        "hostname=web.example",
    ];
    let sets: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    world.ok(&[&["create", "web", "--image", text(&bare())], &sets[..]].concat());
    world.ok(&["start", "web"]);
    let host = || fs::read_to_string("/proc/uptime").unwrap().split('.').next().unwrap().parse::<u64>().unwrap();
    let (before, inside, after) = (host(), world.exec_sh("web", "cut -d. -f1 /proc/uptime"), host());
    let inside = inside.parse::<u64>().unwrap() - 100 * 86400;
    assert!(before <= inside && inside <= after, "{before} {inside} {after}");
    assert_eq!(
        world.exec_sh("web", "cat /proc/self/timens_offsets").split_whitespace().collect::<Vec<_>>(),
        ["monotonic", "3600", "0", "boottime", "8640000", "0"]
    );
    assert!(world.info("web")["confinement"]["namespaces"].as_array().unwrap().contains(&json!("time")));

    for of in ["self", "1"] {
        let limits = world.exec("web", &["cat", &format!("/proc/{of}/limits")]);
        let line = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(
            line("Max open files").split_whitespace().skip(3).take(2).collect::<Vec<_>>(),
            ["123", "456"],
            "{of}"
        );
        assert_eq!(
            line("Max core file size").split_whitespace().skip(4).take(2).collect::<Vec<_>>(),
            ["0", "0"],
            "{of}"
        );
    }
    assert_eq!(world.exec("web", &["hostname"]), "web.example");
    let capabilities = world.info("web")["confinement"]["capabilities"].clone();
    for gone in ["net_raw", "mknod", "chown"] {
        assert!(!capabilities.as_array().unwrap().contains(&json!(gone)), "{gone}");
    }
    let refused = world.lazaret(&["exec", "web", "--", "chown", "1000", "/etc/passwd"]);
    assert!(refused.status == 1 && refused.stderr.contains("Operation not permitted"), "{refused}");
}

#[test]
fn a_privileged_container_works_and_is_shown_for_what_it_is() {
    let world = World::new();
    let made = world.ok(&["create", "web", "--image", text(&bare()), "--set", "privileged=true", "--json"]).json();
    assert_eq!(made["ids"], json!(null));
    world.ok(&["start", "web"]);
    assert_eq!(world.exec_sh("web", "id -u; cat /proc/self/uid_map | tr -s ' '"), "0\n 0 0 4294967295");
    let info = world.info("web");
    assert_eq!((&info["privileged"], &info["ids"]), (&json!(true), &json!(null)));
    assert_eq!(info["openings"], json!(["privileged: root inside is root outside"]));
    assert!(info["confinement"]["shared_with_host"].as_array().unwrap().contains(&json!("user")));
    let words = world.ok(&["info", "web"]).stdout;
    assert!(words.contains("the host's own: root inside is root outside"), "{words}");
    let shown = world.pty(&["info", "web"]).wait().stdout;
    assert!(shown.contains("\x1b[31mprivileged: root inside is root outside\x1b[0m"), "in red\n{shown}");
    // Still, the obvious ways to the host's kernel are closed.
    for script in [
        "echo x > /proc/sys/kernel/core_pattern",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/sda b 8 0 && head -c1 /tmp/sda",
    ] {
        assert_ne!(world.lazaret(&["exec", "web", "--", "sh", "-c", script]).status, 0, "{script}");
    }
    world.ok(&["stop", "web"]);
}

#[test]
fn openings_are_listed_as_they_are_made() {
    let world = World::new();
    let sets =
        ["--set", "nesting=true", "--set", "seccomp_allow=bpf", "--set", "env_pass=TZ", "--set", "cap_add=sys_time"];
    world.ok(&[&["create", "web", "--image", text(&bare())], &sets[..]].concat());
    let openings = world.info("web")["openings"].to_string();
    for word in ["nesting: ", "seccomp lets through: bpf", "variables let in: TZ", "capabilities added: "] {
        assert!(openings.contains(word), "{word}: {openings}");
    }
    world.ok(&["config", "web", "set", "seccomp=off", "seccomp_allow="]);
    world.ok(&["start", "web"]);
    assert_eq!(world.info("web")["confinement"]["seccomp"], false, "as the kernel says");
    assert_eq!(world.exec_sh("web", "grep Seccomp: /proc/self/status"), "Seccomp:\t0");
}

//! Commands in a running container: who they are, what they get, and what of the host they don't.

use std::process::Stdio;

use rustix::process::Signal;
use rustix::termios::LocalModes;

use crate::harness::*;

/// A world with one running container.
fn running() -> World {
    let world = World::new();
    world.start_container("web", bare());
    world
}

#[test]
fn the_status_is_the_commands() {
    let world = running();
    let status = |words: &[&str]| world.lazaret(&[&["exec", "web", "--"], words].concat());
    assert_eq!(status(&["sh", "-c", "exit 42"]).status, 42);
    assert_eq!(status(&["sh", "-c", "kill -9 $$"]).status, 128 + 9);
    assert_eq!(status(&["sh", "-c", "kill -TERM $$"]).status, 128 + 15);

    let out = status(&["no-such-program"]);
    assert_eq!(out.status, 127, "{out}");
    assert!(out.stderr.contains("`no-such-program`: no such file or directory"), "{out}");
    assert_eq!(status(&["/no/such/program"]).status, 127);
    let out = status(&["/etc/passwd"]);
    assert_eq!(out.status, 126, "{out}");
    assert!(out.stderr.contains("`/etc/passwd`: permission denied"), "{out}");
    assert_eq!(status(&["/etc"]).status, 126, "a directory is no program");
    world.exec_sh("web", "printf 'neither' > /tmp/text && chmod +x /tmp/text");
    assert_eq!(status(&["/tmp/text"]).status, 126, "nor is a text without an interpreter");
    assert_eq!(world.lazaret(&["exec", "web"]).status, 2);
    // Options after the command are the command's own.
    assert_eq!(world.ok(&["exec", "web", "echo", "--user", "-e", "x"]).stdout, "--user -e x\n");
}

#[test]
fn users_and_their_groups_are_the_containers_own() {
    let world = running();
    let id = |user: &str| {
        world.lazaret(&["exec", "web", "--user", user, "--", "sh", "-c", "id -u; id -g; id -G; echo $HOME"])
    };
    assert_eq!(id("user").stdout, "1000\n1000\n1000 44 50\n/home/user\n");
    assert_eq!(id("1000").stdout, "1000\n1000\n1000 44 50\n/home/user\n", "a number finds its user");
    assert_eq!(id("user:video").stdout, "1000\n44\n44 50\n/home/user\n");
    assert_eq!(id("user:7").stdout, "1000\n7\n7 44 50\n/home/user\n");
    assert_eq!(id("4242").stdout, "4242\n4242\n4242\n/\n", "a number needs no user");
    assert_eq!(id("0").stdout.lines().next(), Some("0"));
    // Of the host, the container knows nobody: this name is in the host's files alone.
    for nobody in ["daemon", "nobody", "65536", "4294967295", "-1", "user:nogroup", ""] {
        let arguments = ["exec", "web", &format!("--user={nobody}"), "--", "id"];
        let out = world.lazaret(&arguments);
        assert_eq!(out.status, 125, "{nobody}: {out}");
        assert!(out.stderr.starts_with("error: "), "{nobody}: {out}");
    }
    assert!(id("daemon").stderr.contains("the container has no user `daemon`"));
    // What it says of its users is data: nonsense in there is nobody, not a crash.
    world.exec_sh("web", "printf 'a:b\\n::::::\\nx:x:99999999999:0:::\\nok:x:7:8::/:\\n' > /etc/passwd; rm /etc/group");
    assert_eq!(id("ok").stdout, "7\n8\n8\n/\n");
    assert_eq!(id("x").status, 125);
    world.exec_sh("web", "rm /etc/passwd; mkfifo /etc/passwd");
    assert_eq!(id("ok").status, 125, "a FIFO in place of a file hangs nobody");
    let out = world.ok(&["exec", "web", "--user", "5", "--", "grep", "^Uid:", "/proc/self/status"]);
    assert!(out.stdout.starts_with("Uid:\t5\t5\t"), "and who needs no file needs none\n{out}");
    world.exec_sh("web", "rm /etc/passwd");
    assert_eq!(id("5").stdout, "5\n5\n5\n/\n");
    assert_eq!(world.exec("web", &["id", "-u"]), "0", "root needs no entry");
}

#[test]
fn a_command_starts_in_the_users_home_or_where_it_is_told() {
    let world = running();
    let pwd = |options: &[&str]| world.lazaret(&[&["exec", "web"], options, &["--", "pwd"]].concat());
    assert_eq!(pwd(&[]).stdout, "/root\n");
    assert_eq!(pwd(&["--user", "user"]).stdout, "/home/user\n");
    assert_eq!(pwd(&["--cwd", "/usr/bin"]).stdout, "/usr/bin\n");
    let out = pwd(&["--cwd", "/no/where"]);
    assert_eq!(out.status, 125);
    assert!(out.stderr.contains("entering `/no/where` in the container: no such file or directory"), "{out}");
    assert_eq!(pwd(&["--cwd", "/root", "--user", "user"]).status, 125, "a user is held to what it may enter");
    world.exec_sh("web", "rm -r /home/user");
    assert_eq!(pwd(&["--user", "user"]).stdout, "/\n", "a missing home is no reason to fail");
}

#[test]
fn the_environment_starts_empty() {
    let world = World::new();
    let sets = ["--set", "env.COLOUR=red", "--set", "env.TZ=UTC", "--set", "env_pass=PASSED,TZ,ABSENT"];
    world.ok(&[&["create", "web", "--image", text(&bare())], &sets[..]].concat());
    let mut start = world.command(&["start", "web"]);
    start.env("PASSED", "at start").env("HOST_SECRET", "s3cret");
    assert_eq!(world.run(start, b"").status, 0);

    let env = |extra: &[&str]| {
        let mut command = world.command(&[&["exec", "web"], extra, &["--", "env"]].concat());
        command.env("PASSED", "now").env("TZ", "Europe/Berlin").env("HOST_SECRET", "s3cret").env("LD_PRELOAD", "");
        let out = world.run(command, b"");
        let mut lines: Vec<_> = out.stdout.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let expected = [
        "COLOUR=red",
        "HOME=/root",
        "LANG=C.UTF-8",
        "LOGNAME=root",
        "PASSED=now",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SHELL=/bin/sh",
        "TZ=UTC",
        "USER=root",
        "container=lazaret",
    ];
    assert_eq!(env(&[]), expected, "and what the configuration sets wins over what it lets in");
    let given = env(&["--user", "user", "-e", "COLOUR=blue", "--env", "EMPTY=", "-e", "A=b=c"]);
    for line in ["COLOUR=blue", "EMPTY=", "A=b=c", "HOME=/home/user", "USER=user", "LOGNAME=user"] {
        assert!(given.contains(&line.to_owned()), "{line}: {given:?}");
    }
    for bad in ["NAME", "=x", ""] {
        let out = world.lazaret(&["exec", "web", "-e", bad, "--", "env"]);
        assert!(out.status == 125 && out.stderr.contains("is not KEY=VALUE"), "{bad}: {out}");
    }
    // Process 1 has its own, by the same rules.
    let of_init = world.exec_sh("web", "tr '\\0' '\\n' < /proc/1/environ");
    assert!(of_init.contains("PASSED=at start") && of_init.contains("COLOUR=red"), "{of_init}");
    assert!(!of_init.contains("s3cret"), "{of_init}");
}

#[test]
fn a_live_change_of_env_is_seen_by_the_next_command() {
    let world = running();
    let out = world.ok(&["config", "web", "set", "env.COLOUR=green"]);
    assert!(out.stderr.is_empty(), "{out}");
    assert_eq!(world.exec_sh("web", "echo $COLOUR"), "green");
    world.ok(&["config", "web", "unset", "env.COLOUR"]);
    assert_eq!(world.exec_sh("web", "echo $COLOUR"), "");
}

#[test]
fn a_terminal_is_given_only_where_the_caller_types_and_reads_on_one() {
    let world = running();
    const WHICH: &str = "for fd in 0 1 2; do test -t $fd && echo $fd yes || echo $fd no; done; tty || true";
    let piped = world.ok(&["exec", "web", "--", "sh", "-c", WHICH]);
    assert_eq!(piped.stdout.lines().take(3).collect::<Vec<_>>(), ["0 no", "1 no", "2 no"]);

    let mut pty = world.pty(&["exec", "web", "--", "sh", "-c", WHICH]);
    let shown = pty.wait().stdout;
    assert!(shown.starts_with("0 yes\r\n1 yes\r\n2 yes\r\n/dev/pts/"), "{shown}");

    // A terminal on one side only: the other is a file, and what is in it must stay as it is.
    let mut half =
        world.script("printf 'a\\r\\n\\004b' | $LAZARET exec web -- sh -c 'test -t 0 || cat' | od -c | head -1");
    half.env("TERM", "xterm");
    let shown = Pty::start(half).wait().stdout;
    assert!(shown.contains("a  \\r  \\n 004   b"), "{shown}");
    let shown = Pty::start(world.script("$LAZARET exec web -- sh -c 'test -t 1 && echo yes || echo no' | cat")).wait();
    assert_eq!(shown.stdout, "no\r\n");
    // A terminal of the host's is never handed in, not even as standard error alone.
    let script = "$LAZARET exec web -- sh -c 'test -t 2 && echo yes || echo no; echo talk >&2' </dev/null | cat";
    let shown = Pty::start(world.script(script)).wait().stdout;
    assert!(shown.contains("no\r\n") && shown.contains("talk\r\n"), "{shown}");
}

#[test]
fn the_window_has_the_callers_size_and_follows_it() {
    let world = running();
    let script = "stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do read -t 1000 line; done";
    let mut pty = world.pty(&["exec", "web", "--", "sh", "-c", script]);
    pty.expect("24 80\r\n");
    pty.expect("ready\r\n");
    pty.resize(50, 132);
    pty.expect("50 132\r\n");
    assert_eq!(pty.wait().status, 0);
}

#[test]
fn term_is_the_callers_on_a_terminal_only() {
    let world = running();
    let mut command = world.command(&["exec", "web", "--", "sh", "-c", "echo term=$TERM."]);
    command.env("TERM", "vt220");
    Pty::start(command).expect("term=vt220.");
    assert_eq!(world.exec_sh("web", "echo term=$TERM."), "term=.");
}

#[test]
fn keys_reach_the_command_as_they_are() {
    let world = running();
    let mut pty = world.pty(&["exec", "web", "--", "sh", "-c", "trap 'echo interrupted; exit 3' INT; echo ready; cat"]);
    pty.expect("ready\r\n");
    pty.type_in("line\r");
    pty.expect("line\r\nline\r\n");
    // Ctrl-C is the container's terminal's business: the signal is born inside.
    pty.type_in("\x03");
    pty.expect("interrupted");
    assert_eq!(pty.wait().status, 3);
    let mut pty = world.pty(&["exec", "web", "--", "cat"]);
    pty.type_in("x\r");
    pty.expect("x\r\nx\r\n");
    pty.type_in("\x04");
    assert_eq!(pty.wait().status, 0, "Ctrl-D ends the input");
}

#[test]
fn the_callers_terminal_is_as_before_after_every_kind_of_end() {
    let world = running();
    for end in ["exit", "kill", "TERM", "HUP", "not found", "stop"] {
        let words: &[&str] = match end {
            "exit" => &["echo", "ready"],
            "kill" => &["sh", "-c", "echo ready; kill -9 $$"],
            "not found" => &["no-such-program"],
            _ => &["sh", "-c", "echo ready; exec cat"],
        };
        let mut pty = world.pty(&[&["exec", "web", "--"], words].concat());
        if end != "not found" {
            pty.expect("ready");
        }
        if !["exit", "kill", "not found"].contains(&end) {
            assert!(!pty.mode().local_modes.contains(LocalModes::ICANON), "raw while the command runs");
        }
        match end {
            "TERM" => pty.signal(Signal::TERM),
            "HUP" => pty.signal(Signal::HUP),
            "stop" => drop(world.ok(&["stop", "--kill", "web"])),
            _ => {}
        }
        let out = pty.wait();
        let expected = match end {
            "exit" => 0,
            "kill" | "stop" => 137,
            "TERM" => 143,
            "HUP" => 129,
            _ => 127,
        };
        assert_eq!(out.status, expected, "{end}: {out}");
        let modes = pty.mode().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{end}: {modes:?}");
    }
}

#[test]
fn a_signal_to_the_caller_is_passed_on_to_the_command() {
    let world = running();
    let script = "trap 'echo heard; exit 9' USR1; echo ready; while :; do read -t 1000 line; done";
    // On a terminal, what is shown has passed through the caller: it is there to hear the signal.
    let mut command = world.pty(&["exec", "web", "--", "sh", "-c", script]);
    command.expect("ready");
    command.signal(Signal::USR1);
    command.expect("heard");
    assert_eq!(command.wait().status, 9);
}

/// From the first moment on: one that came between the command's execution and the caller's being ready for it killed
/// the caller, and the command lived on.
#[test]
fn a_command_never_outlives_a_caller_that_was_told_to_end() {
    let world = running();
    for _ in 0..20 {
        let mut command = world.spawn(&["exec", "web", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
        command.expect("ready");
        command.signal(Signal::TERM);
        assert_eq!(command.wait().status, 128 + 15);
    }
    assert_eq!(world.exec_sh("web", "pidof sleep || echo none").trim(), "none");
}

#[test]
fn a_gibibyte_passes_through_unharmed() {
    let world = running();
    // A counter: every byte has its place, so one that is lost, doubled or moved shows.
    const COUNT: u64 = 1 << 30;
    let script = format!(
        "seq 10000000 99999999999 | head -c {COUNT} | $LAZARET exec web -- cat | sha256sum; \
         seq 10000000 99999999999 | head -c {COUNT} | sha256sum"
    );
    let mut running = Running::start(world.script(&script));
    running.allow(std::time::Duration::from_secs(180));
    let out = running.wait();
    let sums: Vec<_> = out.stdout.lines().collect();
    assert!(sums.len() == 2 && sums[0] == sums[1] && out.stderr.is_empty(), "{out}");
}

#[test]
fn pipes_pass_every_byte_and_close_when_they_should() {
    let world = running();
    let all: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let out = world.feed(&all, &["exec", "web", "--", "cat"]);
    assert!(out.status == 0 && out.bytes == all);
    // A reader that goes away is heard of as usual, and not an error of ours.
    let out = world.sh("$LAZARET exec web -- yes | head -1");
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("y\n", ""), "{out}");
    // Files are handed in as they are, with their position.
    let file = world.path("data");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let out = world.sh(&format!("(read a; $LAZARET exec web -- cat) < {}", text(&file)));
    assert_eq!(out.stdout, "two\n");
    std::fs::remove_file(file).unwrap();
}

#[test]
fn no_descriptor_of_the_host_leaks_in() {
    let world = running();
    // The caller has files open that its children inherit, as a careless shell or IDE has.
    let script = |what: &str| {
        format!(
            "exec 5</etc/passwd 6</ 7>/dev/null; $LAZARET {what} -- sh -c 'cd /proc/self/fd; echo *' </dev/null | cat"
        )
    };
    for what in ["exec web".to_owned(), format!("run --image {}", text(&bare()))] {
        let out = world.sh(&script(&what));
        // 3 is the directory that is being read.
        assert_eq!(out.stdout, "0 1 2 3\n", "{what}: {out}");
    }
    let out = world.sh("exec 5</etc/passwd 6</ 7>/dev/null; $LAZARET restart web");
    assert_eq!(out.status, 0, "{out}");
    let of_init = world.exec_sh("web", "for fd in /proc/1/fd/*; do readlink $fd; done");
    assert!(!of_init.contains("passwd") && !of_init.lines().any(|to| to == "/"), "{of_init}");
    let of_keeper = entries(format!("/proc/{}/fd", world.keeper_pid("web")).as_ref());
    let keeper: Vec<_> = of_keeper.iter().map(|fd| format!("/proc/{}/fd/{fd}", world.keeper_pid("web"))).collect();
    let links: Vec<_> = keeper.iter().filter_map(|fd| std::fs::read_link(fd).ok()).collect();
    assert!(!links.iter().any(|to| to.to_str() == Some("/etc/passwd")), "{links:?}");
}

#[test]
fn a_command_is_in_the_containers_cgroups_and_namespaces() {
    let world = running();
    let mut command = world.spawn(&["exec", "web", "--", "sh", "-c", "cat /proc/self/cgroup; echo end; exec cat"]);
    let seen_inside = command.expect("end\n");
    assert!(seen_inside.lines().any(|line| line == "0::/"), "inside, the group is the root of all\n{seen_inside}");
    let payload = world.cgroups().into_iter().find(|dir| dir.join("payload").exists()).unwrap().join("payload");
    let procs: Vec<String> =
        std::fs::read_to_string(payload.join("cgroup.procs")).unwrap().lines().map(Into::into).collect();
    assert_eq!(procs.len(), 2, "process 1 and the command: {procs:?}");
    let own = |pid: &str, ns: &str| std::fs::read_link(format!("/proc/{pid}/ns/{ns}")).unwrap();
    for ns in ["user", "mnt", "pid_for_children", "net", "uts", "ipc", "cgroup"] {
        assert_eq!(own(&procs[0], ns), own(&procs[1], ns), "{ns}");
        assert_ne!(own(&procs[1], ns), own("self", ns), "{ns}");
    }
    // In every hierarchy, not just in v2.
    let groups = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(groups(&procs[0]), groups(&procs[1]));
    let prefix = world.cgroup_prefix();
    let named: Vec<_> = groups(&procs[1]).lines().map(str::to_owned).collect();
    assert!(named.iter().all(|line| line.contains(&prefix)), "{named:?}");
    command.close_input();
    assert_eq!(command.wait().status, 0);
}

#[test]
fn a_command_is_held_as_tightly_as_process_1() {
    let world = running();
    let inside = world.exec_sh("web", "grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status; echo; grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/1/status");
    let (command, init) = inside.split_once("\n\n").unwrap();
    assert_eq!(command, init);
    assert!(command.contains("Seccomp:\t2"), "{command}");
    let of_user =
        world.ok(&["exec", "web", "-u", "user", "--", "grep", "-E", "^Cap(Prm|Eff|Inh|Amb)", "/proc/self/status"]);
    assert!(of_user.stdout.lines().all(|line| line.ends_with("\t0000000000000000")), "{of_user}");
}

#[test]
fn background_processes_of_a_command_do_not_hold_it_up() {
    let world = running();
    let out = world.ok(&["exec", "web", "--", "sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 & echo begun"]);
    assert_eq!(out.stdout, "begun\n");
    assert!(world.exec("web", &["ps"]).contains("sleep 1000"), "it goes on in the container");
    let mut pty = world.pty(&["exec", "web", "--", "sh", "-c", "(trap '' HUP; exec sleep 1001) & echo begun"]);
    assert_eq!(pty.wait().status, 0);
}

#[test]
fn run_is_a_container_for_one_command() {
    let world = World::new();
    let image = bare();
    let run = |options: &[&str], words: &[&str]| {
        let out = world.lazaret(&[&["run", "--image", text(&image)], options, &["--"], words].concat());
        // At once, not by the next command.
        assert_eq!(world.leftovers(), [] as [String; 0], "{words:?}: {out}");
        out
    };
    let out = run(&[], &["sh", "-c", "echo out; echo talk >&2; exit 7"]);
    assert_eq!((out.status, out.stdout.as_str(), out.stderr.as_str()), (7, "out\n", "talk\n"));
    assert_eq!(run(&[], &["sh", "-c", "kill -TERM $$"]).status, 143);
    assert_eq!(run(&[], &["sh", "-c", "kill -9 $$"]).status, 137);
    let out = run(&[], &["no-such-program"]);
    assert!(out.status == 127 && out.stderr.contains("no-such-program"), "{out}");
    assert_eq!(run(&[], &["/etc/passwd"]).status, 126);
    assert_eq!(run(&["--set", "memory=nonsense"], &["true"]).status, 125);
    assert_eq!(run(&["--cwd", "/no/where"], &["true"]).status, 125);
    assert_eq!(run(&["--user", "nobody"], &["true"]).status, 125);
    assert_eq!(world.lazaret(&["run", "--image", "/no/where", "--", "true"]).status, 125);

    let options = ["--user", "user", "--cwd", "/tmp", "-e", "A=b", "--set", "env.C=d", "--name", "named"];
    let out = run(&options, &["sh", "-c", "id -un; id -G; pwd; echo $A$C; hostname; echo $container"]);
    assert_eq!(out.stdout, "user\n1000 44 50\n/tmp\nbd\nnamed\nlazaret\n", "{out}");
    let out = world.feed(b"through\n", &["run", "--image", text(&image), "--", "cat"]);
    assert_eq!(out.stdout, "through\n");
    // The command is not process 1, so that it need not bury anybody.
    assert_ne!(run(&[], &["sh", "-c", "echo $$"]).stdout, "1\n");
    // What it leaves running goes with it.
    assert_eq!(run(&[], &["sh", "-c", "sleep 1000 & exit 4"]).status, 4);
}

#[test]
fn run_keeps_the_container_if_asked() {
    let world = World::new();
    let out = world.lazaret(&[
        "run",
        "--image",
        text(&bare()),
        "--name",
        "web",
        "--keep",
        "--",
        "sh",
        "-c",
        "echo x > /root/x; exit 3",
    ]);
    assert_eq!(out.status, 3);
    assert!(out.stderr.contains("kept as `web`"), "{out}");
    assert_eq!(world.state("web"), "stopped");
    world.ok(&["start", "web"]);
    assert_eq!(world.exec("web", &["cat", "/root/x"]), "x");
    let out = world.lazaret(&["run", "--image", text(&bare()), "--name", "web", "--", "true"]);
    assert!(out.status == 125 && out.stderr.contains("there is a container `web` already"), "{out}");
}

#[test]
fn run_on_a_terminal_is_like_a_login() {
    let world = World::new();
    let mut pty = world.pty(&[
        "run",
        "--image",
        text(&bare()),
        "--",
        "sh",
        "-c",
        "stty size; echo $TERM; read x; echo got $x; exit 6",
    ]);
    pty.expect("24 80\r\nxterm\r\n");
    pty.type_in("this\r");
    pty.expect("got this");
    assert_eq!(pty.wait().status, 6);
    assert!(pty.mode().local_modes.contains(LocalModes::ICANON));
    // Killed while it runs: the command goes, the terminal is as before, and nothing is left.
    let mut pty = world.pty(&["run", "--image", text(&bare()), "--", "sh", "-c", "echo ready; exec cat"]);
    pty.expect("ready");
    pty.signal(Signal::TERM);
    assert_eq!(pty.wait().status, 143);
    assert!(pty.mode().local_modes.contains(LocalModes::ICANON));
    assert_eq!(world.leftovers(), [] as [String; 0]);
}

#[test]
fn a_shell_without_a_person_on_it_reads_its_input() {
    let world = running();
    let mut command = world.command(&["exec", "web", "--", "sh"]);
    command.stdin(Stdio::null());
    assert_eq!(world.run(command, b"echo read; exit 8\n").stdout, "read\n");
}

#[test]
fn set_user_id_programs_work_unless_no_new_privs_is_set() {
    let world = World::new();
    for (no_new_privs, uid) in [("false", "0"), ("true", "1000")] {
        world.ok(&["create", "web", "--set", &format!("no_new_privs={no_new_privs}")]);
        world.ok(&["start", "web"]);
        // Not busybox, which gives the privilege up itself.
        world.exec_sh("web", "cp /usr/bin/id /opt/id && chmod 4755 /opt/id");
        let out = world.ok(&["exec", "web", "-u", "1000", "--", "/opt/id", "-u"]);
        assert_eq!(out.stdout.trim(), uid, "no_new_privs={no_new_privs}");
        assert_eq!(world.info("web")["confinement"]["no_new_privileges"], no_new_privs == "true");
        world.ok(&["destroy", "--force", "web"]);
    }
}

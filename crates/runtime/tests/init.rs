//! PID 1 of containers without an init, in real PID namespaces made by unshare(1) of util-linux. Needs root.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use lazaret_runtime::init_image::INIT;
use rustix::process::{Pid, Signal, kill_process};

/// The init and what the tests let it execute, made before any test forks: while a fork in another thread has a file
/// open for writing, executing it fails.
fn directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("init");
        // Best effort: it is there only if the tests ran before.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("shadow/tool")).unwrap();
        for (name, bytes, mode) in [
            ("lazaret-init", INIT, 0o755),
            ("tool", b"#!/bin/sh\necho found\n", 0o755),
            ("plain", b"#!/bin/sh\n", 0o644),
            ("garbage", b"garbage", 0o755),
            ("lonely", b"#!/no/such/shell\n", 0o755),
        ] {
            fs::write(directory.join(name), bytes).unwrap();
            fs::set_permissions(directory.join(name), Permissions::from_mode(mode)).unwrap();
        }
        directory
    })
}

/// The path of something in it.
fn path(name: &str) -> String {
    directory().join(name).into_os_string().into_string().unwrap()
}

/// `lazaret-init ARGUMENTS` as PID 1 of a new PID namespace.
fn init(arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--", &path("lazaret-init")]).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end: exit status, standard output and error.
#[track_caller]
fn check(arguments: &[&str], expected: (i32, &str, &str)) {
    let output = init(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!((code(output.status), out.as_str(), err.as_str()), expected);
}

#[track_caller]
fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| panic!("killed by signal {:?}", status.signal()))
}

/// One that runs, with pipes to talk to what runs in it.
struct Running {
    unshare: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Running {
    fn start(arguments: &[&str]) -> Running {
        let mut unshare = init(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (unshare.stdin.take().unwrap(), BufReader::new(unshare.stdout.take().unwrap()));
        Running { unshare, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The init's process id here, once it takes signals: the runtime finds out in the same way.
    fn ready(&self) -> Pid {
        let unshare = self.unshare.id();
        until("the init blocks signals", || {
            let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
            let pid: i32 = children.split_whitespace().next()?.parse().ok()?;
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"))?.trim();
            let halt = 1 << (37 - 1);
            (u64::from_str_radix(blocked, 16).ok()? & halt != 0).then(|| Pid::from_raw(pid).unwrap())
        })
    }

    fn end(mut self) -> (i32, String) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (code(self.unshare.wait().unwrap()), rest)
    }
}

/// For states of other processes that no event tells.
fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

#[test]
fn the_program_is_static_and_small() {
    assert!(INIT.len() < 20_000, "{} bytes", INIT.len());
    assert_eq!(&INIT[..4], b"\x7fELF");
    let number = |at: usize, bytes: usize| (0..bytes).fold(0, |n, i| n | usize::from(INIT[at + i]) << (8 * i));
    // Elf64_Ehdr: e_phoff, e_phentsize, e_phnum; elf(5).
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let kinds: Vec<usize> = (0..count).map(|i| number(table + i * size, 4)).collect();
    const PT_DYNAMIC_AND_PT_INTERP: [usize; 2] = [2, 3];
    assert!(kinds.iter().all(|kind| !PT_DYNAMIC_AND_PT_INTERP.contains(kind)), "program headers: {kinds:?}");
}

#[test]
fn the_commands_exit_code_is_ours() {
    check(&["--", "true"], (0, "", ""));
    check(&["--", "sh", "-c", "echo out; echo err >&2; exit 42"], (42, "out\n", "err\n"));
}

#[test]
fn a_command_killed_by_a_signal_counts_from_128() {
    check(&["--", "sh", "-c", "kill -KILL $$"], (137, "", ""));
    check(&["--", "sh", "-c", "kill -SEGV $$"], (139, "", ""));
}

#[test]
fn what_cannot_be_executed_is_told_apart() {
    check(&["--", "no-such-program"], (127, "", "lazaret: no-such-program: not found in the container\n"));
    check(&["--", "/no/such/program"], (127, "", "lazaret: /no/such/program: not found in the container\n"));
    check(&["--", ""], (127, "", "lazaret: : not found in the container\n"));
    let refused = |name: &str, why: &str| {
        let path = path(name);
        check(&["--", &path], (126, "", &format!("lazaret: {path}: cannot be executed ({why})\n")));
    };
    refused("plain", "permission denied");
    refused("garbage", "exec format error");
    refused("lonely", "the interpreter or loader it names is not in the container");
}

#[test]
fn wrong_arguments_are_told() {
    check(&["--"], (125, "", "lazaret: a command is missing after `--`\n"));
    check(&["--cwd", "/"], (125, "", "lazaret: a command is missing after the options\n"));
    check(&["--ids", "0:", "--", "true"], (125, "", "lazaret: --ids needs UID:GID or UID:GID:G1,G2,..\n"));
    check(&["true"], (125, "", "lazaret: unknown option\n"));
}

#[test]
fn the_command_is_searched_in_its_own_path() {
    // `shadow/tool` is a directory: what can't be executed doesn't hide what can.
    let search = format!("PATH=/no/such/directory:/dev/null:{}:{}", path("shadow"), directory().display());
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "env", &search, &path("lazaret-init"), "--", "tool"]);
    let output = command.output().unwrap();
    assert_eq!((code(output.status), output.stdout.as_slice()), (0, b"found\n".as_slice()));
}

#[test]
fn the_environment_is_passed_on() {
    let output = init(&["--", "sh", "-c", "echo $LAZARET_TEST"]).env("LAZARET_TEST", "kept").output().unwrap();
    assert_eq!(output.stdout, b"kept\n");
}

#[test]
fn the_command_runs_where_and_as_asked() {
    check(&["--cwd", "/usr", "--", "pwd"], (0, "/usr\n", ""));
    check(&["--cwd", "/no/such", "--", "pwd"], (125, "", "lazaret: entering `/no/such`: no such file or directory\n"));
    let who = ["--", "sh", "-c", "grep -E '^(Uid|Gid|Groups):' /proc/self/status | tr -d ' '"];
    let ids = |ids: &str, expected: &str| {
        let arguments: Vec<&str> = ["--ids", ids].into_iter().chain(who).collect();
        check(&arguments, (0, expected, ""));
    };
    let (uid, gid) = ("Uid:\t1000\t1000\t1000\t1000\n", "Gid:\t1001\t1001\t1001\t1001\n");
    ids("1000:1001:4,24", &format!("{uid}{gid}Groups:\t424\n"));
    ids("1000:1001", &format!("{uid}{gid}Groups:\t\n"));
}

#[test]
fn the_command_starts_with_default_signals() {
    // unshare(1) ignores some signals itself, and the init blocks many.
    let script = "grep -E '^Sig(Blk|Ign):' /proc/self/status";
    check(&["--", "sh", "-c", script], (0, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", ""));
}

#[test]
fn pid_1_holds_no_file_of_the_host() {
    let script = "cat /proc/1/comm; readlink /proc/1/fd/*";
    check(&["--", "sh", "-c", script], (0, "lazaret-init\nanon_inode:[signalfd]\n", ""));
}

#[test]
fn orphans_are_reaped() {
    let orphan = r#"sh -c "read go <&3; grep PPid /proc/\$\$/status" >&4 & echo $!"#;
    let script =
        format!("exec 3<&0 4>&1; pid=$({orphan}); echo $pid; while [ -e /proc/$pid ]; do :; done; echo reaped");
    let mut running = Running::start(&["--", "sh", "-c", &script]);
    running.line().parse::<u32>().unwrap();
    running.input.write_all(b"go\n").unwrap();
    assert_eq!(running.line(), "PPid:\t1");
    assert_eq!(running.end(), (0, "reaped\n".to_owned()));
}

#[test]
fn signals_are_forwarded_to_the_command() {
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
        (Signal::CONT, "CONT"),
    ] {
        let script = format!("trap 'echo {name}; exit 7' {name}; echo ready; while :; do read never; done");
        let mut running = Running::start(&["--", "sh", "-c", &script]);
        assert_eq!(running.line(), "ready");
        kill_process(running.ready(), signal).unwrap();
        assert_eq!(running.line(), name);
        assert_eq!(running.end(), (7, String::new()));
    }
}

#[test]
fn the_rest_is_asked_to_end_after_the_command() {
    assert_eq!(command_leaves("trap 'echo asked; exit' TERM"), (3, "asked\n".to_owned()));
}

#[test]
fn a_rest_that_refuses_is_killed() {
    assert_eq!(command_leaves("trap '' TERM"), (3, String::new()));
}

/// How it ends when the command exits with 3 and leaves a shell with this trap behind.
fn command_leaves(trap: &str) -> (i32, String) {
    let script = format!(
        "exec 3<&0; mkfifo $0; ({trap}; echo ready >$0; while :; do read never; done) <&3 &
         read ready <$0; rm $0; exit 3"
    );
    let fifo = path(&format!("fifo-{}", trap.len()));
    Running::start(&["--", "sh", "-c", &script, &fifo]).end()
}

#[test]
fn a_halt_signal_ends_all_and_a_second_one_kills() {
    // SIGPWR, and SIGRTMIN+3 of glibc.
    let mut running = Running::start(&["--", "sh", "-c", "trap 'echo asked; exit 9' TERM; echo ready; read never"]);
    assert_eq!(running.line(), "ready");
    kill_process(running.ready(), Signal::POWER).unwrap();
    assert_eq!(running.end(), (9, "asked\n".to_owned()));

    let deaf = "trap 'echo asked' TERM; echo ready; while :; do read never; done";
    let mut running = Running::start(&["--", "sh", "-c", deaf]);
    assert_eq!(running.line(), "ready");
    let pid = running.ready();
    halt(pid);
    assert_eq!(running.line(), "asked");
    halt(pid);
    assert_eq!(running.end(), (137, String::new()));
}

/// Sends glibc's SIGRTMIN+3; rustix does not name what the C library may claim for itself.
fn halt(pid: Pid) {
    let status = Command::new("kill").args(["-37", &pid.as_raw_nonzero().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn without_a_command_it_runs_until_told_to_end() {
    for signal in [Signal::TERM, Signal::INT, Signal::POWER, Signal::USR1, Signal::USR2] {
        let running = Running::start(&[]);
        let pid = running.ready();
        // Not a reason to end.
        kill_process(pid, Signal::HUP).unwrap();
        kill_process(pid, Signal::CHILD).unwrap();
        kill_process(pid, signal).unwrap();
        assert_eq!(running.end(), (0, String::new()));
    }
}

#[test]
fn without_a_command_others_may_live_in_it_and_end_first() {
    let running = Running::start(&[]);
    let pid = running.ready();
    // A daemon: its parent is gone, the init has inherited it.
    let daemon = "(trap 'echo asked; exit' TERM; echo ready; while :; do read never; done) <&3 &";
    let mut entered = Command::new("nsenter")
        .args(["--target", &pid.as_raw_nonzero().to_string(), "--pid", "--mount", "--"])
        .args(["sh", "-c", &format!("exec 3<&0; {daemon}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(entered.stdout.take().unwrap());
    let _kept_open = entered.stdin.take().unwrap();
    assert!(entered.wait().unwrap().success());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    halt(pid);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), running.end()), ("asked\n", (0, String::new())));
}

#[test]
fn a_terminal_becomes_the_commands_own() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let host: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&host).unwrap();
    unlockpt(&host).unwrap();
    let name = ptsname(&host, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let terminal = File::from(rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap());
    // Field 5 to 7 of stat: process group, session, terminal; proc_pid_stat(5). The shell is process 2.
    let script = "cut -d' ' -f5-7 /proc/$$/stat; echo to the terminal >/dev/tty";
    let mut command = init(&["--setsid-tty", "--", "sh", "-c", script]);
    let output = command.stdin(terminal.try_clone().unwrap()).output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let device = rustix::fs::fstat(&terminal).unwrap().st_rdev;
    assert_eq!(line, format!("2 2 {device}\n"));
    let mut echoed = [0; 64];
    let length = rustix::io::read(&host, &mut echoed).unwrap();
    assert_eq!(&echoed[..length], b"to the terminal\r\n");
}

#[test]
fn it_refuses_to_be_anything_but_pid_1() {
    // Otherwise its kill(-1) would reach the whole machine.
    let output = Command::new(path("lazaret-init")).args(["--", "true"]).output().unwrap();
    assert_eq!(code(output.status), 125);
}

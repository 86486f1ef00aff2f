//! What a container's root would do to get out, tried, and failing. Every attempt is harmless should it succeed;
//! whether it did is looked up on the host.

use std::collections::BTreeSet;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::Signal;
use serde_json::Value;

use crate::harness::*;

// --- what the attempts are made with ---

/// The program that makes the attempts (attack.c), static, made once by each process.
pub fn attack() -> &'static Path {
    static ATTACK: OnceLock<PathBuf> = OnceLock::new();
    ATTACK.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/attack.c");
        let program = bare().with_file_name("attack");
        let mut compiler = Command::new("cc");
        compiler.args(["-static", "-O1", "-o"]).arg(&program).arg(&source);
        let made = compiler.output().expect("these tests need a C compiler: apt-get install gcc libc6-dev");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        program
    })
}

/// The bare root file system with `/attack` in it.
pub fn armed() -> &'static Path {
    static ARMED: OnceLock<PathBuf> = OnceLock::new();
    ARMED.get_or_init(|| {
        let root = bare().with_file_name("armed");
        copy_tree(&bare(), &root);
        fs::copy(attack(), root.join("attack")).unwrap();
        root
    })
}

fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// The settings that every kind of container is tried with.
const PLAIN: &[&str] = &[];
const NESTING: &[&str] = &["nesting=true"];
const PRIVILEGED: &[&str] = &["privileged=true"];

/// A running container of an image, with settings.
#[track_caller]
fn start_with(world: &World, name: &str, image: &str, settings: &[&str]) {
    let mut words = vec!["create", name, "--image", image];
    settings.iter().for_each(|setting| words.extend(["--set", setting]));
    world.ok(&words);
    world.ok(&["start", name]);
}

#[track_caller]
fn start_armed(world: &World, name: &str, settings: &[&str]) {
    start_with(world, name, text(armed()), settings);
}

/// What an attempt printed: a line for each thing that was tried.
#[track_caller]
fn attempt(world: &World, name: &str, words: &[&str]) -> String {
    let all = [&["/attack"], words].concat();
    world.exec(name, &all)
}

/// None of the lines says that it worked.
#[track_caller]
fn none_works(tried: &str) {
    assert!(!tried.is_empty(), "nothing was tried");
    let worked: Vec<_> = tried.lines().filter(|line| !line.starts_with('#') && line.ends_with(" ok")).collect();
    assert!(worked.is_empty(), "these worked: {worked:#?}\nof\n{tried}");
}

/// A directory of the host's with a file in it, and what it looks like untouched.
struct Bait {
    dir: PathBuf,
    before: Vec<(String, Vec<u8>, u32, u32)>,
}

impl Bait {
    fn lay(world: &World, name: &str) -> Bait {
        let dir = world.path(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "of the host\n").unwrap();
        // Anybody might write here: only the walls are in the way.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
        let before = Bait::look(&dir);
        Bait { dir, before }
    }

    fn look(dir: &Path) -> Vec<(String, Vec<u8>, u32, u32)> {
        let seen = |name: String| {
            let status = fs::symlink_metadata(dir.join(&name)).unwrap();
            let bytes = if status.is_file() { fs::read(dir.join(&name)).unwrap() } else { Vec::new() };
            (name, bytes, status.mode(), status.uid())
        };
        entries(dir).into_iter().map(seen).collect()
    }

    #[track_caller]
    fn is_untouched(&self) {
        assert_eq!(Bait::look(&self.dir), self.before, "`{}` was changed from inside", self.dir.display());
    }
}

// --- the image as a trap (CVE-2015-1335, CVE-2021-30465, CVE-2025-31133, CVE-2026-41579) ---

/// What stands where a directory, or a file, is expected.
fn plant(at: &Path, what: &str, bait: &Path) {
    if fs::symlink_metadata(at).is_ok_and(|status| status.is_dir()) {
        fs::remove_dir_all(at).unwrap();
    } else {
        let _ = fs::remove_file(at);
    }
    let name = at.file_name().unwrap();
    let node = |kind, number| mknodat(CWD, at, kind, Mode::from(0o666), number).unwrap();
    match what {
        "link to the host" => symlink(bait, at).unwrap(),
        "link up and out" => {
            symlink(Path::new("../../../../../../../../../..").join(bait.strip_prefix("/").unwrap()), at).unwrap();
        }
        "link to itself" => symlink(name, at).unwrap(),
        "link to nowhere" => symlink("/no/such/place", at).unwrap(),
        "link to proc" => symlink("/proc/self/fd/3", at).unwrap(),
        "fifo" => node(FileType::Fifo, 0),
        "socket" => node(FileType::Socket, 0),
        "file" => fs::write(at, "nothing\n").unwrap(),
        "directory" => fs::create_dir(at).unwrap(),
        "terminal" => node(FileType::CharacterDevice, makedev(5, 0)),
        "disk" => node(FileType::BlockDevice, makedev(8, 0)),
        "huge file" => fs::File::create(at).unwrap().set_len(64 << 20).unwrap(),
        other => panic!("nobody plants a {other}"),
    }
}

const TRAPS: &[&str] = &[
    "link to the host",
    "link up and out",
    "link to itself",
    "link to nowhere",
    "link to proc",
    "fifo",
    "socket",
    "file",
    "terminal",
    "disk",
];

/// Starts containers of images in which one path is a trap; `judge` sees what came of it.
fn spring(path: &str, traps: &[&str], judge: impl Fn(&World, &str, &Out)) {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    let image = world.path("image");
    copy_tree(&bare(), &image);
    for trap in traps {
        let target =
            if path.ends_with("file") || path.contains("hostname") { bait.dir.join("file") } else { bait.dir.clone() };
        plant(&image.join(path), trap, &target);
        world.create("c", &image);
        let out = world.lazaret(&["start", "c"]);
        judge(&world, trap, &out);
        bait.is_untouched();
        world.ok(&["destroy", "--force", "c"]);
        bait.is_untouched();
    }
}

/// The start is refused in a sentence with the path in it.
fn refused_for(path: &'static str) -> impl Fn(&World, &str, &Out) {
    move |world, trap, out| {
        assert_eq!(out.status, 1, "/{path} is a {trap}\n{out}");
        assert!(out.stderr.contains(&format!("`/{path}`")), "/{path} is a {trap}, which is not said\n{out}");
        assert_eq!(world.state("c"), "stopped");
        assert_eq!(world.cgroups(), Vec::<PathBuf>::new(), "a refused start leaves nothing");
    }
}

#[test]
fn a_dev_that_is_a_trap_is_refused() {
    spring("dev", TRAPS, refused_for("dev"));
}

#[test]
fn a_proc_that_is_a_trap_is_refused() {
    spring("proc", TRAPS, refused_for("proc"));
}

#[test]
fn a_sys_that_is_a_trap_is_refused() {
    spring("sys", TRAPS, refused_for("sys"));
}

#[test]
fn a_run_that_is_a_trap_is_refused() {
    spring("run", TRAPS, refused_for("run"));
}

#[test]
fn an_init_that_is_a_trap_is_refused() {
    // A link that leads nowhere is an image without an init, which has ours.
    let traps: Vec<_> =
        TRAPS.iter().copied().filter(|trap| !trap.contains("nowhere") && *trap != "link to proc").collect();
    spring("sbin/init", &[&traps[2..], &["directory"]].concat(), |world, trap, out| {
        assert_eq!(out.status, 1, "/sbin/init is a {trap}\n{out}");
        assert!(out.stderr.contains("`/sbin/init`"), "/sbin/init is a {trap}, which is not said\n{out}");
        assert_eq!(world.state("c"), "stopped");
    });
}

/// The container starts: the file is its own affair.
fn harmless(_: &World, trap: &str, out: &Out) {
    assert_eq!(out.status, 0, "a {trap}\n{out}");
}

#[test]
fn a_host_name_file_that_is_a_trap_harms_nobody() {
    spring("etc/hostname", &[TRAPS, &["directory", "huge file"]].concat(), harmless);
}

#[test]
fn an_etc_that_is_a_trap_harms_nobody() {
    spring("etc", TRAPS, |_, trap, out| {
        assert!(out.status == 0 || out.stderr.contains("`/etc"), "/etc is a {trap}\n{out}");
    });
}

/// Links at the places where a privileged container's masks and console go: below proc and dev, where ours are.
#[test]
fn what_an_image_has_below_its_mount_points_is_not_used() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    let image = world.path("image");
    copy_tree(armed(), &image);
    for (dir, file) in [("dev", "console"), ("dev", "null"), ("dev/pts", "0"), ("proc/sys/kernel/random", "boot_id")] {
        fs::create_dir_all(image.join(dir)).unwrap();
        symlink(bait.dir.join("file"), image.join(dir).join(file)).unwrap();
    }
    for (name, settings) in [("plain", PLAIN), ("privileged", PRIVILEGED)] {
        start_with(&world, name, text(&image), settings);
        // A bind mount of our own null device or terminal, whatever the image says.
        assert_eq!(world.exec(name, &["stat", "-c", "%F %t:%T", "/dev/null"]), "character special file 1:3");
        assert_eq!(world.exec(name, &["stat", "-c", "%F", "/dev/console"]), "character special file");
        world.exec_sh(name, "echo hello >/dev/console; echo hello >/dev/null");
        bait.is_untouched();
    }
}

// --- the host's program (CVE-2019-5736) ---

/// A copy of the command, so that the attack has something to spoil that nobody needs.
fn copy_of_the_command(world: &World) -> (PathBuf, Vec<u8>) {
    let copy = world.path("lazaret-copy");
    fs::copy(LAZARET, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let bytes = fs::read(&copy).unwrap();
    (copy, bytes)
}

fn with_copy(world: &World, copy: &Path, words: &[&str]) -> Out {
    let mut command = Command::new(copy);
    command.arg("--root").arg(world.root()).args(words).env_clear().env("PATH", "/usr/bin:/bin");
    command.env("LAZARET_NETWORK", "none");
    world.run(command, b"")
}

/// Whatever runs in a container while the host's command works on it can't change the command's file.
fn the_command_stays_whole(settings: &[&str]) {
    let world = World::new();
    let (copy, before) = copy_of_the_command(&world);
    // The image `host` has the loader that the command needs, so that it can be executed inside.
    start_with(&world, "c", "host", settings);
    let program = fs::read(attack()).unwrap();
    let written = world.feed(&program, &["exec", "c", "--", "sh", "-c", "cat >/tmp/attack; chmod 755 /tmp/attack"]);
    assert_eq!(written.status, 0, "{written}");
    world.exec_sh(
        "c",
        "printf '#!/proc/self/exe\\n' >/tmp/script; chmod 755 /tmp/script; ln -s /proc/self/exe /tmp/link",
    );
    world.exec("c", &["/tmp/attack", "overwrite", "/tmp/report"]);
    for _ in 0..8 {
        for target in ["true", "/proc/self/exe", "/tmp/script", "/tmp/link"] {
            with_copy(&world, &copy, &["exec", "c", "--", target, "--help"]);
        }
    }
    // It has its last try when nobody executes the copy any more.
    let held = world.exec_sh("c", "touch /tmp/report.stop; until cat /tmp/report.done 2>/dev/null; do :; done");
    assert!(held.contains("# held"), "it got hold of nothing, so nothing was tested\n{held}");
    assert_eq!(fs::read(&copy).unwrap(), before, "the host's program was overwritten\n{held}");
    none_works(&held);
}

#[test]
fn the_command_cannot_be_overwritten() {
    the_command_stays_whole(PLAIN);
}

#[test]
fn the_command_cannot_be_overwritten_with_nesting() {
    the_command_stays_whole(NESTING);
}

#[test]
fn the_command_cannot_be_overwritten_from_a_privileged_container() {
    the_command_stays_whole(PRIVILEGED);
}

#[test]
fn an_init_that_is_the_program_before_it_cannot_overwrite_it() {
    for settings in [PLAIN, PRIVILEGED] {
        let world = World::new();
        let (copy, before) = copy_of_the_command(&world);
        let mut words = vec!["create", "c", "--image", "host", "--set", "init=[\"/proc/self/exe\", \"--help\"]"];
        settings.iter().for_each(|setting| words.extend(["--set", setting]));
        world.ok(&words);
        let out = with_copy(&world, &copy, &["start", "c"]);
        assert!(out.status == 0 || out.stderr.contains("/proc/self/exe"), "{out}");
        assert_eq!(fs::read(&copy).unwrap(), before);
        // What it runs is a file in memory, or one that the container's root may not write: never the host's.
        world.lazaret(&["stop", "c", "--kill"]);
    }
}

// --- what comes along (CVE-2016-8649, CVE-2024-21626) ---

#[test]
fn no_descriptor_comes_along() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    world.create("c", armed());
    let open = format!("exec 7<{} 8>>{}/file 9<.;", text(&bait.dir), text(&bait.dir));
    let started = world.sh(&format!("{open} exec $LAZARET start c"));
    assert_eq!(started.status, 0, "{started}");
    for words in ["exec c --", "run --image $IMAGE --"] {
        let mut script = world.script(&format!("{open} exec $LAZARET {words} /attack descriptors"));
        script.env("IMAGE", armed());
        let out = world.run(script, b"");
        assert_eq!((out.status, out.stdout.as_str()), (0, ""), "`{words}` hands in descriptors\n{out}");
    }
    // Neither the container's first process nor its keeper keeps what the caller had.
    for pid in [world.init_pid("c"), world.keeper_pid("c")] {
        let proc = PathBuf::from(format!("/proc/{pid}/fd"));
        let held = entries(&proc).into_iter().filter_map(|fd| fs::read_link(proc.join(fd)).ok());
        let held: Vec<_> = held.filter(|to| to.starts_with(&bait.dir)).collect();
        assert!(held.is_empty(), "process {pid} holds {held:?} of its caller's");
    }
}

#[test]
fn no_working_directory_leads_out() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    // The installation lets nobody in; what is opened here is a directory that anybody may enter.
    let opened = std::env::temp_dir().join(format!("lazaret-lab-{}", std::process::id()));
    fs::create_dir_all(&opened).unwrap();
    fs::write(opened.join("of-the-host"), "").unwrap();
    start_armed(&world, "c", PLAIN);
    let open = format!("exec 7<{};", text(&opened));
    // Asked for: refused. As the home of a user, which the container says what it is: not entered.
    for number in 3..12 {
        let out = world
            .sh(&format!("{open} exec $LAZARET exec c --cwd /proc/self/fd/{number} -- /attack upwards of-the-host"));
        assert!(out.status == 125 && !out.stdout.contains("found"), "by descriptor {number}\n{out}");
    }
    for number in 3..12 {
        world.exec_sh("c", &format!("echo 'root:x:0:0:root:/proc/self/fd/{number}:/bin/sh' >/etc/passwd"));
        let out = world.sh(&format!("{open} exec $LAZARET exec c -- /attack upwards of-the-host"));
        assert!(
            out.stdout.contains("# in /\n") && !out.stdout.contains("found"),
            "by descriptor {number} as home\n{out}"
        );
        let out = world.sh(&format!("{open} echo '/attack upwards of-the-host' | $LAZARET shell c"));
        assert!(
            out.stdout.contains("# in /\n") && !out.stdout.contains("found"),
            "by descriptor {number} as home\n{out}"
        );
    }
    fs::remove_dir_all(&opened).unwrap();
    bait.is_untouched();
}

#[test]
fn an_attaching_process_cannot_be_looked_into() {
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let mut spy = world.spawn(&["exec", "c", "--", "/attack", "spy", LAZARET]);
        spy.expect("watching\n");
        for _ in 0..20 {
            world.ok(&["exec", "c", "--", "true"]);
        }
        let out = spy.wait();
        assert!(!out.stdout.contains("into"), "a container with {settings:?} looked into the host's process\n{out}");
        let seen = out.stdout.lines().find_map(|line| line.strip_prefix("# seen ")?.parse::<u32>().ok());
        assert!(seen > Some(0), "the spy saw nobody, so nothing was tested\n{out}");
    }
}

// --- what the container shows of itself (CVE-2015-1334, CVE-2019-19921) ---

#[test]
fn a_false_proc_fools_nobody() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    start_armed(&world, "c", PLAIN);
    let told = world.info("c")["confinement"].clone();
    // Everything that a program might read or write there, made up; and the links lead to what a root would miss.
    let lie = "cd /tmp; mkdir -p p/self/attr/apparmor p/self/fd p/self/ns p/1 p/sys/kernel p/self/task && \
               cd /tmp/p && ln -s self thread-self && echo 'Name: lazaret-init' >1/status && \
               for f in exec current apparmor/exec; do mkfifo self/attr/$f; done && \
               echo 0 0 4294967295 >self/uid_map && echo 40 >sys/kernel/cap_last_cap && ln -s /etc self/exe && \
               mount --bind /tmp/p /proc && cat /proc/self/uid_map";
    assert_eq!(world.exec_sh("c", lie), "0 0 4294967295");
    // Attached from outside, into the same mount namespace: all as before.
    assert_eq!(world.exec("c", &["cat", "/proc/self/uid_map"]), "0 0 4294967295", "the lie is in place");
    assert_eq!(world.exec("c", &["id", "-u"]), "0");
    assert_eq!(world.info("c")["confinement"], told);
    bait.is_untouched();
    // The real one is below; what counts is what holds the new process in.
    let status = world.exec_sh("c", "umount /proc && cat /proc/self/status");
    assert!(status.contains("Seccomp:\t2"), "{status}");
    world.ok(&["stop", "c", "--timeout", "20s"]);
}

#[test]
fn hostile_account_files_neither_hang_nor_lie() {
    let world = World::new();
    start_armed(&world, "c", PLAIN);
    for file in ["passwd", "group"] {
        world.exec_sh("c", &format!("cp /etc/{file} /tmp/good-{file}"));
        for trap in [
            "mkfifo $F",
            "ln -s $F $F",
            "mkdir $F",
            "ln -s /dev/zero $F",
            "ln -s /dev/tty $F",
            "ln -s /proc/self/fd/0 $F",
            "ln -s /proc/kmsg $F",
            "dd if=/dev/zero of=$F bs=1M count=5 2>/dev/null",
            "mount -t tmpfs none /mnt; touch $F; mkfifo /mnt/f; mount --bind /mnt/f $F",
        ] {
            // What can't be trusted must not be needed to mend it: another program sets the next trap.
            let mut mend = world.spawn(&["exec", "c", "--", "sh"]);
            mend.feed(format!("F=/etc/{file}; rm -rf $F; {trap}; echo set\n").as_bytes());
            mend.expect("set\n");
            let out = world.lazaret(&["exec", "c", "--user", "user", "--", "id", "-u"]);
            let said = out.status == 125 && out.stderr.contains(&format!("`/etc/{file}`"));
            assert!(said, "it is not said that /etc/{file} is no such file after `{trap}`\n{out}");
            mend.feed(format!("umount $F 2>/dev/null; rm -rf $F; cp /tmp/good-{file} $F; echo mended\n").as_bytes());
            mend.expect("mended\n");
            mend.wait();
        }
        assert_eq!(world.ok(&["exec", "c", "--user", "user", "--", "id", "-u"]).stdout, "1000\n");
    }
}

#[test]
fn a_false_terminal_is_not_used() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    start_armed(&world, "c", PLAIN);
    for trap in [
        "mount -t tmpfs none /dev/pts; touch /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; mkfifo /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; mkdir /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; ln -s /dev/null /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; ln -s ptmx /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; ln -s /proc/self/fd/3 /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; touch /dev/pts/ptmx; mount --bind /dev/zero /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts; touch /dev/pts/ptmx; mount --bind /dev/tty /dev/pts/ptmx",
        "mount -t tmpfs none /dev/pts",
    ] {
        world.exec_sh("c", trap);
        let out = world.pty(&["exec", "c", "--", "echo", "inside"]).wait();
        assert!(out.status == 125 && !out.stdout.contains("inside"), "after `{trap}`\n{out}");
        assert!(out.stdout.contains("terminal"), "it is not said what is wrong after `{trap}`\n{out}");
        world.exec_sh("c", "umount /dev/pts/ptmx 2>/dev/null; umount /dev/pts");
    }
    // One of another instance is a terminal all the same, and the container's.
    world.exec_sh("c", "mount -t devpts -o newinstance,ptmxmode=0666 none /dev/pts");
    let out = world.pty(&["exec", "c", "--", "echo", "inside"]).wait();
    assert!(out.stdout.contains("inside"), "{out}");
    bait.is_untouched();
}

// --- terminals (CVE-2016-10124) ---

/// What somebody typed on the terminal for the next program: read without waiting.
const TYPED: &str = "stty -icanon min 0 time 0; echo typed: $(dd bs=64 count=1 2>/dev/null | wc -c) bytes";

#[test]
fn nobody_inside_types_into_the_callers_terminal() {
    let world = World::new();
    start_armed(&world, "c", PLAIN);
    start_armed(&world, "open", &["seccomp=off"]);
    let image = text(armed());
    for words in [
        "exec c --".to_owned(),
        "exec open --".to_owned(),
        format!("run --image {image} --"),
        format!("run --image {image} --set seccomp=off --"),
    ] {
        let mut terminal = Pty::start(world.script(&format!("$LAZARET {words} /attack type; {TYPED}")));
        let out = terminal.wait();
        assert!(out.stdout.contains("type 0"), "nothing was tried by `{words}`\n{out}");
        assert!(out.stdout.contains("typed: 0 bytes"), "`{words}` lets the container type\n{out}");
        // The filter closes the call; without it the container has its own terminal to type into.
        assert_eq!(out.stdout.contains("type 0 ok"), words.contains("open") || words.contains("off"), "{out}");
    }
}

#[test]
fn nobody_inside_types_into_a_terminal_at_the_console() {
    let world = World::new();
    start_armed(&world, "open", &["seccomp=off"]);
    let mut terminal = Pty::start(world.script(&format!("$LAZARET console open; {TYPED}")));
    terminal.expect("leave with");
    let tried =
        world.exec_sh("open", "echo here >/dev/console; /attack type <>/dev/console >/tmp/tried; cat /tmp/tried");
    assert!(tried.contains("type 0"), "{tried}");
    terminal.expect("here");
    terminal.type_in("\x01q");
    let out = terminal.wait();
    assert!(out.stdout.contains("typed: 0 bytes"), "{out}");
}

#[test]
fn a_terminal_of_the_host_is_never_handed_in() {
    let world = World::new();
    start_armed(&world, "c", PLAIN);
    let image = text(armed());
    for words in ["exec c --".to_owned(), format!("run --image {image} --")] {
        // Any of the three may be the terminal, with the others redirected.
        for (redirected, what) in
            [("</dev/null", "input"), (">out", "output"), ("2>err", "errors"), ("</dev/null 2>&1", "both")]
        {
            let script =
                format!("cd $LAZARET_ROOT; $LAZARET {words} /attack terminals {redirected}; cat out 2>/dev/null");
            let out = Pty::start(world.script(&script)).wait();
            let seen: BTreeSet<&str> = out.stdout.lines().map(str::trim_end).collect();
            if redirected == "2>err" {
                assert!(seen.contains("tty terminal"), "with {what} redirected it has a terminal of its own\n{out}");
                continue;
            }
            for line in ["0 none", "1 none", "2 none", "tty none"] {
                assert!(seen.contains(line), "`{words}` with {what} redirected hands a terminal in\n{out}");
            }
            let _ = fs::remove_file(world.path("out"));
        }
    }
}

// --- the kernel's doors ---

#[test]
fn closed_calls_are_closed_through_every_door() {
    for settings in [PLAIN, NESTING, PRIVILEGED] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let nesting = settings.first().map_or("plain", |_| "nesting");
        let nesting = if settings == PRIVILEGED { "plain" } else { nesting };
        assert_eq!(
            attempt(&world, "c", &["calls", nesting]).lines().count(),
            1,
            "{settings:?}: {}",
            attempt(&world, "c", &["calls", nesting])
        );
        assert_eq!(
            attempt(&world, "c", &["calls32", nesting]).lines().count(),
            1,
            "{settings:?}: {}",
            attempt(&world, "c", &["calls32", nesting])
        );
    }
}

/// Settings that the kernel keeps for each namespace: a container's root may write its own.
const OWN_SETTINGS: &[&str] = &[
    "net/",
    "user/",
    "fs/mqueue/",
    "kernel/auto_msgmni",
    "kernel/msg",
    "kernel/sem",
    "kernel/shm",
    "kernel/ns_last_pid",
    "kernel/pid_max",
    "kernel/hostname",
    "kernel/domainname",
];

/// What is there to be written to, on this host.
const KERNEL_FILES: &[&str] = &[
    "sys",
    "irq",
    "bus",
    "fs",
    "acpi",
    "scsi",
    "driver",
    "sysrq-trigger",
    "kcore",
    "kmsg",
    "mtrr",
    "timer_list",
    "key-users",
];

#[track_caller]
fn only_own_settings(writable: &str, proc: &str) {
    let own = |line: &&str| {
        let setting = line.strip_prefix(proc).and_then(|rest| rest.strip_prefix("/sys/"));
        setting.is_some_and(|setting| OWN_SETTINGS.iter().any(|own| setting.starts_with(own)))
    };
    let foreign: Vec<_> = writable.lines().filter(|line| !own(line)).collect();
    assert!(foreign.is_empty(), "can be opened for writing: {foreign:#?}");
}

#[test]
fn settings_of_the_hosts_kernel_cannot_be_written() {
    let host = || {
        ["core_pattern", "modprobe", "hotplug", "panic"]
            .map(|name| fs::read(format!("/proc/sys/kernel/{name}")).unwrap_or_default())
    };
    let before = host();
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let files: Vec<String> = KERNEL_FILES.iter().map(|file| format!("/proc/{file}")).collect();
        let words: Vec<&str> = ["writable", "/sys"].into_iter().chain(files.iter().map(String::as_str)).collect();
        let writable = attempt(&world, "c", &words);
        only_own_settings(&writable, "/proc");
        let tried = world.lazaret(&[
            "exec",
            "c",
            "--",
            "sh",
            "-c",
            "cat /proc/sys/kernel/core_pattern >/tmp/p; cat /tmp/p >/proc/sys/kernel/core_pattern",
        ]);
        assert_ne!(tried.status, 0, "core_pattern could be written with {settings:?}");
    }
    assert_eq!(host(), before);
}

#[test]
fn a_fresh_proc_of_a_nested_container_writes_no_settings_either() {
    let world = World::new();
    start_armed(&world, "c", NESTING);
    let files: Vec<String> = KERNEL_FILES.iter().map(|file| format!("/mnt/{file}")).collect();
    let script = format!(
        "mount -t proc proc /mnt && /attack writable {} && umount /mnt && \
         mount -t sysfs sysfs /mnt && /attack writable /mnt",
        files.join(" ")
    );
    let writable = world.exec("c", &["unshare", "-mpf", "sh", "-c", &script]);
    only_own_settings(&writable, "/mnt");
}

#[test]
fn what_is_masked_or_read_only_stays_so() {
    let world = World::new();
    start_armed(&world, "c", PLAIN);
    let covered = [
        "/sys",
        "/proc/sys",
        "/proc/sysrq-trigger",
        "/proc/irq",
        "/proc/bus",
        "/proc/fs",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/kallsyms",
        "/proc/kmsg",
        "/proc/vmallocinfo",
        "/proc/kpagecount",
        "/proc/acpi",
        "/proc/scsi",
        "/proc/sys/kernel/random/boot_id",
    ];
    let tried = attempt(&world, "c", &[&["mounts"], &covered[..]].concat());
    none_works(&tried);
    // By a second mount namespace and a root of its own, as a nested container would.
    let tried = world.exec_sh(
        "c",
        "mkdir -p /mnt/r && mount --rbind / /mnt/r && cd /mnt/r && pivot_root . mnt/r/mnt 2>&1; \
         chroot /mnt/r /attack writable /proc/sys/kernel /proc/irq /sys/kernel",
    );
    assert!(!tried.contains("/proc/") && !tried.contains("/sys/"), "{tried}");
}

#[test]
fn file_systems_of_the_hosts_devices_and_kernel_cannot_be_mounted() {
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        none_works(&attempt(&world, "c", &["filesystems", &disk()]));
    }
}

/// A block device of the host's with data on it: the one of `/`, or whichever there is.
fn disk() -> String {
    let all = entries(Path::new("/sys/class/block"));
    format!("/dev/{}", all.first().map_or("sda", String::as_str))
}

/// Its numbers.
fn disk_numbers() -> (u32, u32) {
    let name = disk().replace("/dev/", "");
    let text = fs::read_to_string(format!("/sys/class/block/{name}/dev")).unwrap_or_else(|_| "8:0".into());
    let (major, minor) = text.trim().split_once(':').unwrap();
    (major.parse().unwrap(), minor.parse().unwrap())
}

#[test]
fn device_nodes_can_neither_be_made_nor_opened() {
    let (major, minor) = disk_numbers();
    let (a, b) = (major.to_string(), minor.to_string());
    for settings in [PLAIN, NESTING, PRIVILEGED] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let tried = attempt(&world, "c", &["nodes", &a, &b, "/", "/tmp", "/dev", "/dev/shm", "/run"]);
        none_works(&tried);
    }
}

#[test]
fn device_nodes_that_an_image_brings_cannot_be_opened() {
    let (major, minor) = disk_numbers();
    let nodes = [
        ("disk", FileType::BlockDevice, major, minor),
        ("sda", FileType::BlockDevice, 8, 0),
        ("loop", FileType::BlockDevice, 7, 0),
        ("mem", FileType::CharacterDevice, 1, 1),
        ("kmsg", FileType::CharacterDevice, 1, 11),
        ("tty1", FileType::CharacterDevice, 4, 1),
        ("console", FileType::CharacterDevice, 5, 1),
        ("kvm", FileType::CharacterDevice, 10, 232),
        ("loop-control", FileType::CharacterDevice, 10, 237),
    ];
    let world = World::new();
    let image = world.path("image");
    copy_tree(armed(), &image);
    fs::create_dir(image.join("nodes")).unwrap();
    for (name, kind, major, minor) in nodes {
        mknodat(CWD, image.join("nodes").join(name), kind, Mode::from(0o666), makedev(major, minor)).unwrap();
    }
    let paths: Vec<String> = nodes.iter().map(|(name, ..)| format!("/nodes/{name}")).collect();
    let words: Vec<&str> = ["open"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    for (name, settings) in [("plain", PLAIN), ("nesting", NESTING), ("privileged", PRIVILEGED)] {
        start_with(&world, name, text(&image), settings);
        let tried = attempt(&world, name, &words);
        none_works(&tried);
        let denied = |line: &str| line.ends_with(" EACCES") || line.ends_with(" EPERM");
        assert!(tried.lines().all(denied), "refused for another reason than the rules: {tried}");
        // Copied up, renamed, linked: a node stays what it is.
        let again = world.exec_sh(
            name,
            "cd /nodes; chmod 600 mem; mv disk d; ln sda s; mount --bind /nodes /mnt; \
             /attack open mem d s /mnt/mem /mnt/d",
        );
        none_works(&again);
    }
}

#[test]
fn no_release_agent_can_be_set() {
    let v1: Vec<PathBuf> =
        entries(Path::new("/sys/fs/cgroup")).iter().map(|name| Path::new("/sys/fs/cgroup").join(name)).collect();
    let host = || {
        v1.iter()
            .map(|tree| (fs::read(tree.join("release_agent")).ok(), fs::read(tree.join("notify_on_release")).ok()))
            .collect::<Vec<_>>()
    };
    let before = host();
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let controllers = [
            "memory",
            "devices",
            "freezer",
            "cpu",
            "cpuset",
            "pids",
            "rdma",
            "misc",
            "none,name=systemd",
            "none,name=lazaret-lab",
        ];
        let tried = attempt(&world, "c", &[&["release-agents"], &controllers[..]].concat());
        none_works(&tried);
        // The one tree inside has none, and its root is as far as one gets.
        let found = world.exec_sh(
            "c",
            "find /sys/fs/cgroup -name release_agent; ls /sys/fs/cgroup/.. | head -20; cat /proc/self/cgroup",
        );
        assert!(!found.contains("release_agent"), "{found}");
        assert!(!found.contains("/.."), "its cgroup is outside of what it sees: {found}");
    }
    assert_eq!(host(), before);
}

#[test]
fn a_binary_format_stays_inside() {
    let host = Path::new("/proc/sys/fs/binfmt_misc");
    let before = entries(host);
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        // Newer kernels give each user namespace formats of its own; then it works, and nobody else sees it.
        let register = "mount -t binfmt_misc none /mnt && \
                        echo ':lazaret-lab:M::lazaret-lab-magic::/no/such/interpreter:' >/mnt/register";
        world.lazaret(&["exec", "c", "--", "sh", "-c", register]);
        assert_eq!(entries(host), before);
    }
}

#[test]
fn namespaces_of_the_host_are_out_of_reach() {
    for settings in [PLAIN, NESTING] {
        let world = World::new();
        start_armed(&world, "c", settings);
        none_works(&attempt(&world, "c", &["namespaces"]));
        // Every namespace that can be named inside is the container's: none is the host's.
        let inside = world.exec_sh("c", "for p in /proc/[0-9]*; do readlink $p/ns/*; done | sort -u");
        let ours: BTreeSet<String> = entries(Path::new("/proc/self/ns"))
            .iter()
            .filter(|kind| !kind.starts_with("time"))
            .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_string_lossy().into_owned())
            .collect();
        let shared: Vec<_> = inside.lines().filter(|line| ours.contains(*line)).collect();
        assert!(shared.is_empty(), "{shared:?}");
    }
}

#[test]
fn user_namespaces_need_nesting_and_map_no_foreign_ids() {
    let world = World::new();
    start_armed(&world, "plain", PLAIN);
    start_armed(&world, "nesting", NESTING);
    assert!(attempt(&world, "plain", &["nested"]).contains("# unshare EPERM"));
    let tried = attempt(&world, "nesting", &["nested"]);
    assert!(tried.contains("# unshare ok"), "{tried}");
    none_works(&tried);
}

// --- everybody else ---

#[test]
fn processes_of_the_host_are_out_of_reach() {
    for settings in [PLAIN, NESTING, PRIVILEGED] {
        let world = World::new();
        start_armed(&world, "c", settings);
        let keeper = world.keeper_pid("c");
        let pids = world.exec_sh("c", "ls /proc | grep '^[0-9]' | wc -l");
        assert!(pids.parse::<u32>().unwrap() < 10, "it sees {pids} processes");
        // Numbers of the host's processes mean nothing inside.
        let tried = attempt(&world, "c", &["poke", &keeper.to_string(), &std::process::id().to_string()]);
        none_works(&tried);
        // Everything that root inside may end: all but its first process, and nobody outside.
        let out = world.lazaret(&["exec", "c", "--", "sh", "-c", "kill -9 -1; kill -9 0"]);
        assert_eq!(out.status, 137, "{out}");
        assert_eq!(world.keeper_pid("c"), keeper);
        assert!(Path::new(&format!("/proc/{keeper}")).exists());
        assert_eq!(world.exec("c", &["echo", "still here"]), "still here");
    }
}

#[test]
fn containers_have_nothing_in_common() {
    let world = World::new();
    start_armed(&world, "a", PLAIN);
    start_armed(&world, "b", PLAIN);
    world.exec_sh("a", "echo secret >/secret; chmod 600 /secret");
    let start = |name: &str| world.info(name)["ids"]["start"].as_u64().unwrap();
    let (first, second) = (start("a"), start("b"));
    assert!(first.abs_diff(second) >= 65536, "{first} and {second} overlap");
    // Even out of its namespaces, without a wall between them, one is nobody to the other.
    let mut poke = Command::new(attack());
    poke.args(["as", &second.to_string()]).arg(attack()).args(["poke", &world.init_pid("a").to_string()]);
    let tried = world.run(poke, b"");
    none_works(
        &tried
            .stdout
            .lines()
            .filter(|line| {
                line.starts_with("open")
                    || line.starts_with("kill")
                    || line.starts_with("pt")
                    || line.contains("getfd")
                    || line.contains("send")
            })
            .collect::<Vec<_>>()
            .join("\n"),
    );
    let secret = world.path("containers/a/upper/secret");
    assert!(secret.exists());
    let mut open = Command::new(attack());
    open.args(["as", &second.to_string()])
        .arg(attack())
        .arg("open")
        .arg(&secret)
        .arg(world.path("containers"))
        .arg(world.path("run/containers/a/control"));
    none_works(&world.run(open, b"").stdout);
}

#[test]
fn keys_of_the_host_are_out_of_reach() {
    let world = World::new();
    let key = format!("lazaret-lab-{}", std::process::id());
    // Started, entered and run by somebody who has the key.
    let as_owner = |words: &[&str]| {
        let mut command = Command::new(attack());
        command.args(["with-key", &key, LAZARET, "--root"]).arg(world.root()).args(words);
        command.env("LAZARET_NETWORK", "none");
        world.run(command, b"")
    };
    for (name, settings) in [("plain", PLAIN), ("nesting", NESTING)] {
        let mut words = vec!["create", name, "--image", text(armed())];
        settings.iter().for_each(|setting| words.extend(["--set", setting]));
        world.ok(&words);
        let out = as_owner(&["start", name]);
        assert_eq!(out.status, 0, "{out}");
        let out = as_owner(&["exec", name, "--", "/attack", "find-key", &key]);
        assert_eq!(out.status, 0, "{out}");
        none_works(&out.stdout);
    }
    let out = as_owner(&["run", "--image", text(armed()), "--set", "nesting=true", "--", "/attack", "find-key", &key]);
    assert_eq!(out.status, 0, "{out}");
    none_works(&out.stdout);
    // Possible where there is no wall: the test would find a hole.
    let mut without = Command::new(attack());
    without.args(["with-key", &key]).arg(attack()).args(["find-key", &key]);
    assert!(world.run(without, b"").stdout.contains("search-session"));
}

#[test]
fn sockets_of_the_host_are_out_of_reach() {
    let name = format!("lazaret-lab-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port().to_string();
    for settings in [PLAIN, NESTING, PRIVILEGED] {
        let world = World::new();
        start_armed(&world, "c", settings);
        none_works(&attempt(&world, "c", &["connect", &name]));
        let tried = world.lazaret(&["exec", "c", "--", "nc", "-w", "1", "127.0.0.1", &port]);
        assert_ne!(tried.status, 0, "the host's loopback is reached with {settings:?}");
        let interfaces = world.exec_sh("c", "ls /sys/class/net; ip -o link | wc -l; ip route");
        assert_eq!(interfaces, "lo\n1", "a network beyond loopback");
    }
    let mut without = Command::new(attack());
    without.args(["connect", &name]);
    assert!(World::new().run(without, b"").stdout.ends_with(" ok\n"), "outside it can be reached");
}

#[test]
fn what_a_container_mounts_is_not_seen_outside() {
    let world = World::new();
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    start_armed(&world, "c", PLAIN);
    let marker = format!("lazaret-lab-{}", std::process::id());
    let mount = format!(
        "mount -t tmpfs {marker} /mnt && mkdir /mnt/deep && mount -t tmpfs {marker} /mnt/deep && \
         mount --make-rshared /"
    );
    world.exec_sh("c", &mount);
    assert!(world.exec("c", &["mount"]).contains(&marker));
    assert!(!table().contains(&marker));
}

// --- what a container leaves for the host to clean up ---

#[test]
fn a_tree_made_to_trap_its_remover_is_removed() {
    let world = World::new();
    let bait = Bait::lay(&world, "bait");
    start_armed(&world, "c", PLAIN);
    let bait_path = text(&bait.dir);
    let script = format!(
        "mkdir /t; cd /t; ln -s {bait_path} link; ln -s / root; ln -s {bait_path}/file file; mkfifo fifo; \
         mkdir shut; touch shut/x; chmod 0 shut; \
         touch -- '-rf' ' ' '*' \"$(printf 'a\\nb')\" \"$(printf '\\377\\376')\"; \
         d=dddddddddddddddddddddddddddddddddddddddddddddddddd; d=$d$d; i=0; while [ $i -lt 300 ]; do \
         mkdir $d && cd $d || break; i=$((i+1)); done; \
         mkdir /sys/fs/cgroup/x /sys/fs/cgroup/x/y /sys/fs/cgroup/x/y/z"
    );
    world.exec_sh("c", &script);
    world.ok(&["destroy", "--force", "c"]);
    bait.is_untouched();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_container_that_makes_processes_without_end_is_ended() {
    let world = World::new();
    start_armed(&world, "c", &["pids=60"]);
    let mut bomb = world.spawn(&[
        "exec",
        "c",
        "--",
        "sh",
        "-c",
        "trap '' TERM HUP INT; b() { b | b & }; b & echo going; exec cat",
    ]);
    bomb.expect("going\n");
    assert_eq!(world.state("c"), "running");
    world.ok(&["stop", "c", "--kill"]);
    assert_eq!(world.cgroups(), Vec::<PathBuf>::new());
    bomb.signal(Signal::KILL);
}

// --- what is said of it ---

#[test]
fn info_says_what_a_look_from_inside_finds() {
    let world = World::new();
    let all: &[(&str, &[&str])] = &[
        ("plain", PLAIN),
        ("nesting", NESTING),
        ("privileged", PRIVILEGED),
        ("promise", &["no_new_privs=true"]),
        ("dropped", &["cap_drop=[\"net_raw\", \"chown\"]"]),
        ("unfiltered", &["seccomp=off"]),
    ];
    for (name, settings) in all {
        start_armed(&world, name, settings);
        let said = world.info(name)["confinement"].clone();
        // Of process 1 and of one that was attached: both are held in alike.
        for process in ["1", "self"] {
            let status = world.exec(name, &["cat", &format!("/proc/{process}/status")]);
            let field = |key: &str| {
                status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t")).unwrap().to_owned()
            };
            let bounding = u64::from_str_radix(&field("CapBnd"), 16).unwrap();
            let named = said["capabilities"].as_array().unwrap();
            assert_eq!(named.len() as u32, bounding.count_ones(), "{name}, {process}: {named:?} for {bounding:#x}");
            let effective = u64::from_str_radix(&field("CapEff"), 16).unwrap();
            assert_eq!(effective & !bounding, 0, "{name}, {process}: more than the bounding set");
            assert_eq!(said["seccomp"], Value::Bool(field("Seccomp") == "2"), "{name}, {process}");
            assert_eq!(said["no_new_privileges"], Value::Bool(field("NoNewPrivs") == "1"), "{name}, {process}");
        }
        let map = world.exec(name, &["cat", "/proc/self/uid_map"]).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(said["id_map"], serde_json::json!([map]), "{name}");
        let own: Vec<String> = said["namespaces"].as_array().unwrap().iter().map(word).collect();
        for (file, word) in [
            ("user", "user"),
            ("mnt", "mount"),
            ("pid", "pid"),
            ("net", "network"),
            ("uts", "uts"),
            ("ipc", "ipc"),
            ("cgroup", "cgroup"),
        ] {
            let inside = world.exec(name, &["readlink", &format!("/proc/self/ns/{file}")]);
            let ours = fs::read_link(format!("/proc/self/ns/{file}")).unwrap().to_string_lossy().into_owned();
            assert_eq!(own.contains(&word.to_owned()), inside != ours, "{name}: its {word} namespace");
        }
    }
    assert_eq!(
        world.info("dropped")["confinement"]["capabilities"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|c| *c == "net_raw" || *c == "chown")
            .count(),
        0
    );
}

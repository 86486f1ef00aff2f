//! Programs of containers on a person's screen: what they can do there, and what they can't.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{LIMIT, Out, Running, World, bare, fixture, text, word};

/// From here on up, the ids of persons outside: each has a session of their own, and nobody else has their ids.
pub(crate) static NEXT_PERSON: AtomicU32 = AtomicU32::new(7001);

/// A person's session on an X server without a screen.
pub struct Screen {
    pub dir: PathBuf,
    /// Whose session it is, by user and group id.
    pub person: u32,
    pub number: u32,
    server: Child,
}

impl Screen {
    pub fn start(world: &World) -> Screen {
        // Where the person can read it; the world's own directory is root's.
        let dir = std::env::temp_dir().join(format!("lazaret-screen-{}", world.cgroup_prefix()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        // An Xauthority file of one entry, for any display on any host (Xau(3)).
        let mut entry = vec![0xff, 0xff, 0, 0, 0, 0, 0, 18];
        entry.extend(b"MIT-MAGIC-COOKIE-1");
        entry.extend([0, 16]);
        let mut cookie = [0; 16];
        rustix::rand::getrandom(&mut cookie, rustix::rand::GetRandomFlags::empty()).unwrap();
        entry.extend(cookie);
        fs::write(dir.join("authority"), entry).unwrap();
        let person = NEXT_PERSON.fetch_add(1, Ordering::Relaxed);
        std::os::unix::fs::chown(dir.join("authority"), Some(person), Some(person)).unwrap();
        fs::set_permissions(dir.join("authority"), fs::Permissions::from_mode(0o600)).unwrap();
        let (server, number) = Self::server(&dir, person, None);
        Screen { dir, person, number, server }
    }

    fn server(dir: &Path, person: u32, number: Option<u32>) -> (Child, u32) {
        let mut command = become_person(person);
        command.arg("Xvfb");
        command.args(number.map(|number| format!(":{number}")));
        command.args(["-displayfd", "1", "-screen", "0", "1000x800x24", "-noreset", "-nolisten", "tcp", "-auth"]);
        command.arg(dir.join("authority")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = command.spawn().expect("Xvfb and setpriv are installed");
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (server, line.trim().parse().expect("the server says its number"))
    }

    fn end_server(&mut self) {
        let _ = kill_process(Pid::from_child(&self.server), Signal::TERM);
        let _ = self.server.wait();
    }

    /// The server ends, and another takes its place.
    fn restart(&mut self) {
        self.end_server();
        self.server = Self::server(&self.dir, self.person, Some(self.number)).0;
    }

    /// The command as the person types it in the session, with `sudo -E`.
    pub fn typed(&self, world: &World, arguments: &[&str]) -> Command {
        let mut command = world.command(arguments);
        self.sudo(&mut command);
        command.env("DISPLAY", format!(":{}", self.number)).env("XAUTHORITY", self.dir.join("authority"));
        command
    }

    /// What sudo says of the person, and no more.
    pub fn sudo(&self, command: &mut Command) {
        let id = self.person.to_string();
        command.env("SUDO_UID", &id).env("SUDO_GID", &id).env("SUDO_USER", "ann");
    }

    #[track_caller]
    pub fn lazaret(&self, world: &World, arguments: &[&str]) -> Out {
        world.run(self.typed(world, arguments), b"")
    }

    #[track_caller]
    pub fn ok(&self, world: &World, arguments: &[&str]) -> String {
        let out = self.lazaret(world, arguments);
        assert_eq!(out.status, 0, "`lazaret {}` failed\n{out}", arguments.join(" "));
        out.stdout
    }

    /// A container of the host's own programs, with a display.
    #[track_caller]
    pub(crate) fn create(&self, world: &World, name: &str) {
        self.ok(world, &["create", name, "--desktop"]);
    }

    /// A program of the person's own, in the session.
    pub(crate) fn own(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = become_person(self.person);
        command.arg(program).args(arguments);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/");
        command.env("DISPLAY", format!(":{}", self.number)).env("XAUTHORITY", self.dir.join("authority"));
        command
    }

    /// What a program of the person's own prints.
    pub fn look(&self, program: &str, arguments: &[&str]) -> String {
        let out = self.own(program, arguments).stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Every window's title.
    pub fn windows(&self) -> String {
        self.look("xwininfo", &["-root", "-tree"])
    }

    /// The credentials once more, as another person of the same session has them.
    pub(crate) fn authority_for(&self, person: u32) -> PathBuf {
        let copy = self.dir.join("authority-of-another");
        fs::copy(self.dir.join("authority"), &copy).unwrap();
        std::os::unix::fs::chown(&copy, Some(person), Some(person)).unwrap();
        copy
    }

    /// Has the person copy something; whoever owns a clipboard has to stay.
    #[track_caller]
    fn copy(&self, words: &str) -> Running {
        let mut command = self.own("xclip", &["-selection", "clipboard", "-quiet"]);
        command.env("LANG", "C");
        let mut owner = Running::start(command);
        owner.feed(words.as_bytes());
        owner.close_input();
        until("the person has copied", || self.look("xclip", &["-selection", "clipboard", "-o"]) == words);
        owner
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.end_server();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What is added to this is run by a person.
pub fn become_person(id: u32) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).arg("--clear-groups");
    command
}

/// Looks until it is so. What other processes do on a screen can't be waited for otherwise.
#[track_caller]
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The gate's process, by its command line.
pub(crate) fn gates(name: &str) -> Vec<i32> {
    let is_one = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == format!("lazaret gate {name}")
    };
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    all.filter(is_one).collect()
}

#[test]
fn a_program_is_shown_as_the_containers_and_goes_with_it() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "shown1");
    // It is started by the way.
    screen.ok(&world, &["app", "--detach", "shown1", "--", "xclock", "-title", "time"]);
    until("the clock is on the screen", || screen.windows().contains("\"[shown1] time\""));
    let info = world.info("shown1");
    assert_eq!(info["gate"]["connections"], 1, "{info}");
    assert_eq!(word(&info["gate"]["display"]), format!(":{}", screen.number));
    let said = world.ok(&["info", "shown1"]).stdout;
    assert!(said.contains("isolated") && said.contains("untrusted cookie") && said.contains("of ann"), "{said}");

    // The gate is the person's process, and has no right to anything.
    let [gate] = gates("shown1")[..] else { panic!("one gate") };
    let status = fs::read_to_string(format!("/proc/{gate}/status")).unwrap();
    let id = screen.person;
    for line in [
        &*format!("Uid:\t{id}\t{id}\t{id}\t{id}\nGid:\t{id}\t"),
        "Groups:\t \n",
        "CapPrm:\t0000000000000000",
        "Seccomp:\t2",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
    world.ok(&["stop", "shown1"]);
    assert!(!screen.windows().contains("shown1"));
    // Its work has ended by then; the process is about to.
    until("the gate has ended", || gates("shown1").is_empty());
}

#[test]
fn a_program_has_the_persons_name_home_language_and_time() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "who1");
    let print =
        "id -un; echo $HOME $USER $LANG $TZ $XDG_RUNTIME_DIR $DISPLAY $GREETING; pwd; ls -ld ~ $XDG_RUNTIME_DIR";
    world.ok(&["config", "who1", "set", "env.GREETING=hello"]);
    let mut command = screen.typed(&world, &["app", "who1", "--", "sh", "-c", print]);
    command.env("LANG", "C.UTF-8").env("TZ", "Asia/Tokyo").env("SECRET", "x");
    let out = world.run(command, b"");
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[..3], ["ann", "/home/ann ann C.UTF-8 Asia/Tokyo /run/user/1000 :0 hello", "/home/ann"], "{out}");
    assert!(lines[3].starts_with("drwx------") && lines[3].contains("ann ann"), "{out}");
    assert!(lines[4].starts_with("drwx------") && lines[4].contains("ann ann"), "{out}");
    // Files and statuses pass through.
    let mut command = screen.typed(&world, &["app", "who1", "--", "sh", "-c", "cat; exit 7"]);
    command.env("LANG", "C.UTF-8");
    let out = world.run(command, b"words");
    assert_eq!((out.status, out.stdout.as_str()), (7, "words"));
}

#[test]
fn the_user_is_made_once_beside_those_of_the_image() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.ok(&world, &["create", "user1", "--desktop", "--image", text(&bare())]);
    world.ok(&["start", "user1"]);
    // The image has a user 1000 of its own.
    assert_eq!(world.exec("user1", &["grep", "ann", "/etc/passwd"]), "ann:x:1001:1001::/home/ann:/bin/sh");
    assert_eq!(world.exec("user1", &["grep", "ann", "/etc/group"]), "ann:x:1001:");
    assert_eq!(world.exec("user1", &["stat", "-c", "%a %u %g", "/home/ann"]), "700 1001 1001");
    world.exec_sh("user1", "echo mine > /home/ann/file; printf 'x:!:::::::' > /etc/shadow");
    world.ok(&["restart", "user1"]);
    assert_eq!(world.exec("user1", &["grep", "-c", "ann", "/etc/passwd"]), "1");
    assert_eq!(world.exec("user1", &["cat", "/home/ann/file"]), "mine");

    // A start that was killed before the last line is finished; what has no end of line gets one.
    world.exec_sh("user1", "sed -i /ann/d /etc/passwd; chmod 640 /etc/shadow; chown 0:50 /etc/shadow");
    world.ok(&["restart", "user1"]);
    assert_eq!(world.exec("user1", &["grep", "ann", "/etc/passwd"]), "ann:x:1001:1001::/home/ann:/bin/sh");
    assert_eq!(world.exec("user1", &["cat", "/etc/shadow"]), "x:!:::::::\nann:*:::::::");
    assert_eq!(world.exec("user1", &["stat", "-c", "%a %g", "/etc/shadow"]), "640 50");
}

#[test]
fn no_link_of_the_container_is_followed_for_its_user() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.ok(&world, &["create", "link1", "--desktop", "--image", text(&bare())]);
    world.ok(&["start", "link1"]);
    world.exec_sh("link1", "sed -i /ann/d /etc/passwd; mv /etc/passwd /root/other; ln -s /root/other /etc/passwd");
    let before = world.exec("link1", &["cat", "/root/other"]);
    world.ok(&["restart", "link1"]);
    assert_eq!(world.exec("link1", &["cat", "/root/other"]), before);
    assert_eq!(world.exec("link1", &["readlink", "/etc/passwd"]), "/root/other");
}

#[test]
fn what_is_not_the_containers_is_neither_seen_nor_touched() {
    let world = World::new();
    let screen = Screen::start(&world);
    for name in ["spy1", "spy2"] {
        screen.create(&world, name);
    }
    let mut own = screen.own("xclock", &["-title", "secret-of-ann"]).spawn().unwrap();
    screen.ok(&world, &["app", "--detach", "spy2", "--", "xclock", "-title", "secret-of-another"]);
    until("both are on the screen", || ["-of-ann", "-of-another"].iter().all(|title| screen.windows().contains(title)));
    let _owner = screen.copy("secret-on-the-clipboard");
    screen.look("xprop", &["-root", "-f", "_NOTE", "8s", "-set", "_NOTE", "secret-on-the-root"]);
    let window = screen.look("xdotool", &["search", "--name", "secret-of-ann"]).trim().to_owned();

    // Each of these works for a program of the person's own, as the tests of the gate show one by one.
    let attacks = [
        "xwininfo -root -tree".to_owned(),
        "xprop -root".to_owned(),
        format!("xprop -id {window}"),
        format!("xwd -silent -id {window} | tr -cd '[:print:]'"),
        "xwd -silent -root | wc -c".to_owned(),
        "timeout 5 xclip -selection clipboard -o".to_owned(),
        "timeout 5 xclip -o".to_owned(),
        format!("xdotool windowkill {window}"),
        format!("xdotool key --window {window} q"),
        "xdotool type secret".to_owned(),
    ];
    for attack in &attacks {
        let script = format!("{attack} 2>&1; true");
        let out = screen.lazaret(&world, &["app", "spy1", "--", "sh", "-c", &script]);
        assert!(!out.stdout.contains("secret"), "{attack}\n{out}");
    }
    let pixels = screen.ok(&world, &["app", "spy1", "--", "sh", "-c", "xwd -silent -root 2>/dev/null | wc -c"]);
    assert_eq!(pixels.trim(), "0", "the screen was read");
    assert!(screen.look("xwd", &["-silent", "-root"]).len() > 1000, "the person may");
    let windows = screen.windows();
    assert!(windows.contains("secret-of-ann") && windows.contains("secret-of-another"), "{windows}");
    assert!(own.try_wait().unwrap().is_none(), "the person's program lives on");
    own.kill().unwrap();
    own.wait().unwrap();

    // Other ways to the server: its own sockets, of either kind.
    let script = "grep -c @/tmp/.X11-unix /proc/net/unix; ls /tmp/.X11-unix; echo > /tmp/.X11-unix/x";
    let out = screen.lazaret(&world, &["app", "spy1", "--", "sh", "-c", script]);
    assert_eq!(out.stdout, "0\nX0\n", "{out}");
    assert!(out.stderr.contains("Read-only"), "{out}");
}

#[test]
fn the_clipboard_goes_out_by_itself_and_in_when_asked() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "clip1");
    let refused = world.refused(&["paste", "clip1"], &["clip1"]);
    assert!(refused.stderr.contains("not running"), "{refused}");
    screen.ok(&world, &["app", "--detach", "clip1", "--", "xclock"]);
    until("the clock is on the screen", || screen.windows().contains("[clip1]"));

    let paste = |timeout: &str| {
        screen
            .lazaret(&world, &["app", "clip1", "--", "timeout", timeout, "xclip", "-selection", "clipboard", "-o"])
            .stdout
    };
    let owner = screen.copy("from outside");
    assert_eq!(paste("3"), "");
    world.ok(&["paste", "clip1"]);
    assert_eq!(paste("20"), "from outside");
    drop(owner);
    // Once is once.
    let owner = screen.copy("something else");
    assert_ne!(paste("3"), "something else");
    world.ok(&["config", "clip1", "set", "desktop.clipboard=both"]);
    until("both ways", || paste("3") == "something else");
    assert!(world.ok(&["info", "clip1"]).stdout.contains("reads the clipboard"));
    drop(owner);

    world.ok(&["config", "clip1", "set", "desktop.clipboard=out"]);
    // While the person works elsewhere, nobody's clipboard changes: now they work in the container's window.
    let window = screen.look("xdotool", &["search", "--name", "clip1"]);
    screen.look("xdotool", &["windowfocus", "--sync", window.trim()]);
    let copy = "printf 'from inside' | xclip -selection clipboard -quiet";
    screen.ok(&world, &["app", "--detach", "clip1", "--", "sh", "-c", copy]);
    until("it is pasted outside", || screen.look("xclip", &["-selection", "clipboard", "-o"]) == "from inside");
}

#[test]
fn a_killed_gate_is_followed_by_another() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "gone1");
    let mut clock = Running::start(screen.typed(&world, &["app", "gone1", "--", "xclock"]));
    until("the clock is on the screen", || screen.windows().contains("[gone1]"));
    let [gate] = gates("gone1")[..] else { panic!("one gate") };
    kill_process(Pid::from_raw(gate).unwrap(), Signal::KILL).unwrap();
    // The program has lost its server, and only that.
    clock.close_input();
    assert_ne!(clock.wait().status, 0);
    assert_eq!(world.state("gone1"), "running");
    assert!(!screen.windows().contains("[gone1]"));
    screen.ok(&world, &["app", "--detach", "gone1", "--", "xclock"]);
    until("another is on the screen", || screen.windows().contains("[gone1]"));

    // A killed keeper takes it along.
    let keeper = world.keeper_pid("gone1");
    kill_process(Pid::from_raw(keeper).unwrap(), Signal::KILL).unwrap();
    until("the gate has ended", || gates("gone1").is_empty());
}

#[test]
fn a_server_that_starts_again_is_found_by_the_same_container() {
    let world = World::new();
    let mut screen = Screen::start(&world);
    screen.create(&world, "again1");
    screen.ok(&world, &["app", "--detach", "again1", "--", "xclock"]);
    until("the clock is on the screen", || screen.windows().contains("[again1]"));
    let init = world.init_pid("again1");
    screen.end_server();
    let out = screen.lazaret(&world, &["app", "again1", "--", "xclock"]);
    assert_eq!(out.status, 125, "{out}");
    screen.restart();
    screen.ok(&world, &["app", "--detach", "again1", "--", "xclock"]);
    until("another is on the screen", || screen.windows().contains("[again1]"));
    assert_eq!(world.init_pid("again1"), init);

    // A container starts without any session, and a new start has a new door.
    screen.end_server();
    world.ok(&["restart", "again1"]);
    screen.restart();
    screen.ok(&world, &["app", "--detach", "again1", "--", "xclock"]);
    until("a third is on the screen", || screen.windows().contains("[again1]"));
}

#[test]
fn what_is_missing_is_told() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "miss1");
    // Nobody's session: sudo says who, and no process of theirs has a display.
    let mut command = world.command(&["app", "miss1", "--", "xclock"]);
    command.env("SUDO_UID", "7999").env("SUDO_USER", "eve");
    let out = world.run(command, b"");
    assert!(out.status == 125 && out.stderr.contains("`eve` has no graphical session"), "{out}");
    assert_eq!(world.state("miss1"), "stopped", "for nothing it is not started");
    let mut command = screen.typed(&world, &["app", "miss1", "--", "xclock"]);
    command.env("DISPLAY", ":4711");
    let out = world.run(command, b"");
    assert!(out.status == 125 && out.stderr.contains("no X server is on display :4711"), "{out}");
    let mut command = screen.typed(&world, &["app", "miss1", "--", "xclock"]);
    fs::write(screen.dir.join("empty"), "").unwrap();
    command.env("XAUTHORITY", screen.dir.join("empty"));
    let out = world.run(command, b"");
    assert!(out.status == 125 && out.stderr.contains("connecting to the X server"), "{out}");

    let out = screen.lazaret(&world, &["app", "miss1", "--", "no-such-program"]);
    assert!(out.status == 127 && out.stderr.contains("install it inside: lazaret exec miss1 -- apt-get"), "{out}");

    world.create("miss2", bare());
    let out = screen.lazaret(&world, &["app", "miss2", "--", "xclock"]);
    assert!(out.stderr.contains("desktop.display=isolated"), "{out}");
}

#[test]
fn what_sudo_has_stripped_is_found_with_the_persons_processes() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "strip1");
    let mut own = screen.own("xclock", &[]).spawn().unwrap();
    until("the person's program is there", || screen.windows().contains("\"xclock\""));
    let mut command = world.command(&["app", "--detach", "strip1", "--", "xclock"]);
    screen.sudo(&mut command);
    let out = world.run(command, b"");
    assert_eq!(out.status, 0, "{out}");
    until("the clock is on the screen", || screen.windows().contains("[strip1]"));
    own.kill().unwrap();
    own.wait().unwrap();
}

#[test]
fn a_system_that_boots_keeps_its_door() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.ok(&world, &["create", "boot1", "--desktop", "--image", text(&fixture("debian13"))]);
    // The first program comes while systemd still mounts and clears up; the second when it has.
    let knock = "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new('/tmp/.X11-unix/X0') or die \"no socket: $!\"; \
                 print $s pack('a1xvvvvx2', 'l', 11, 0, 0, 0); $s->flush; sysread $s, my $b, 1; print ord $b";
    assert_eq!(screen.ok(&world, &["app", "boot1", "--", "perl", "-e", knock]), "1");
    until("the system is up", || {
        let up = ["exec", "boot1", "--", "systemctl", "is-active", "systemd-tmpfiles-setup.service"];
        world.lazaret(&up).stdout == "active\n"
    });
    assert_eq!(screen.ok(&world, &["app", "boot1", "--", "perl", "-e", knock]), "1");
    assert_eq!(world.exec("boot1", &["systemctl", "--failed", "--quiet", "--no-pager"]), "");
    // Its fonts are its own, and the host's stand beside them.
    let fonts = fs::read_dir("/usr/share/fonts").unwrap().next().unwrap().unwrap().file_name();
    let fonts = format!("/usr/local/share/fonts/host/{}", fonts.to_string_lossy());
    assert_eq!(world.exec("boot1", &["ls", "-d", &fonts]), fonts);
    world.exec("boot1", &["mkdir", "-p", "/usr/share/fonts/mine"]);
}

#[test]
fn sound_is_played_and_none_is_heard() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "sound1");
    let home = screen.dir.join("home");
    fs::create_dir_all(home.join("pulse")).unwrap();
    for dir in [home.clone(), home.join("pulse")] {
        std::os::unix::fs::chown(&dir, Some(screen.person), Some(screen.person)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let socket = home.join("pulse/native");
    let protocol = format!("module-native-protocol-unix socket={}", socket.display());
    let (sink, microphone) = ("module-null-sink sink_name=out", "module-sine-source source_name=mic");
    let mut server = vec!["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"];
    server.extend(["-L", sink, "-L", microphone, "-L", &protocol]);
    let mut command = screen.own("pulseaudio", &server);
    command.env("HOME", &home).env("XDG_RUNTIME_DIR", &home);
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the sound server listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());

    let app = |script: &str| {
        let mut command = screen.typed(&world, &["app", "sound1", "--", "sh", "-c", script]);
        command.env("XDG_RUNTIME_DIR", &home);
        world.run(command, b"")
    };
    let out = app("head -c 100000 /dev/zero | timeout 20 pacat --raw && pactl list short sinks");
    assert!(out.status == 0 && out.stdout.contains("out"), "{out}");
    let out = app("timeout --signal=KILL 3 parec --raw --device=out.monitor | wc -c; pactl exit");
    assert!(out.stdout.starts_with("0\n") && out.status != 0 && out.stderr.contains("Access denied"), "{out}");
    let out = app("pactl load-module module-null-sink");
    assert!(out.status != 0 && out.stderr.contains("Access denied"), "{out}");
    let said = world.ok(&["info", "sound1"]).stdout;
    assert!(said.contains("plays, by the sound gate"), "{said}");
    assert_eq!(gates("sound1").len(), 2);

    // The microphone is a switch: programs of the container hear it while it is on.
    world.ok(&["device", "sound1", "microphone", "on"]);
    let script = "parec --raw | { head -c 40000 | wc -c; echo; cat > /dev/null; }; echo over";
    let mut command = screen.typed(&world, &["app", "sound1", "--", "sh", "-c", script]);
    command.env("XDG_RUNTIME_DIR", &home);
    let mut recorder = Running::start(command);
    recorder.expect("40000\n");
    let said = world.ok(&["info", "sound1"]).stdout;
    assert!(said.contains("microphone on, 1 program records now"), "{said}");
    assert!(said.contains("records: the microphone is switched on"), "{said}");
    world.ok(&["device", "sound1", "microphone", "--off"]);
    assert!(recorder.wait().stdout.ends_with("over\n"), "what was recorded has ended");
    assert!(app("timeout --signal=KILL 3 parec --raw | wc -c").stdout.starts_with("0\n"));
    assert!(world.ok(&["info", "sound1"]).stdout.contains("microphone off"));
    assert_eq!(world.ok(&["config", "sound1", "get", "desktop.sound"]).stdout, "play+record\n");
    // Who may not record any more does not, whatever the switch says.
    world.ok(&["device", "sound1", "microphone", "on"]);
    world.ok(&["config", "sound1", "set", "desktop.sound=play"]);
    assert!(app("timeout --signal=KILL 3 parec --raw | wc -c").stdout.starts_with("0\n"));

    // Taken away, it is gone at once; given again, the next program has it.
    world.ok(&["config", "sound1", "set", "desktop.sound=off"]);
    until("the gate for sound has ended", || gates("sound1").len() == 1);
    assert_ne!(app("pactl info").status, 0);
    world.ok(&["config", "sound1", "set", "desktop.sound=play"]);
    let out = app("pactl info");
    assert_eq!(out.status, 0, "{out}");
    // A session without a sound server still has a screen.
    server.kill().unwrap();
    server.wait().unwrap();
    let out = screen.lazaret(&world, &["app", "sound1", "--", "xwininfo", "-root"]);
    assert_eq!(out.status, 0, "{out}");
    // It is off at every start.
    world.ok(&["device", "sound1", "microphone", "on"]);
    world.ok(&["restart", "sound1"]);
    assert_eq!(world.info("sound1")["microphone"], false);
    world.ok(&["stop", "sound1"]);
    world.refused(&["device", "sound1", "microphone", "on"], &["not running", "off at every start"]);
    until("both gates have ended", || gates("sound1").is_empty());
}

#[test]
fn addresses_are_opened_outside_when_the_person_agrees() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "url1");
    // Who asks, and who opens, for the person: both only write down what they are told.
    let home = screen.dir.join("home");
    fs::create_dir_all(home.join("bin")).unwrap();
    let here = home.display();
    let programs = [
        ("zenity", format!("#!/bin/sh\necho \"$@\" >> {here}/asked\ntest -e {here}/yes\n")),
        ("xdg-open", format!("#!/bin/sh\nid -u >> {here}/opened\necho \"$1\" >> {here}/opened\n")),
    ];
    for (name, script) in programs {
        fs::write(home.join("bin").join(name), script).unwrap();
        fs::set_permissions(home.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(&home, Some(screen.person), Some(screen.person)).unwrap();
    let app = |script: &str| {
        let mut command = screen.typed(&world, &["app", "url1", "--", "sh", "-c", script]);
        command.env("PATH", format!("{here}/bin:/usr/bin:/bin:/usr/sbin:/sbin")).env("XDG_RUNTIME_DIR", &home);
        world.run(command, b"")
    };
    let written = |file: &str| fs::read_to_string(home.join(file)).unwrap_or_default();
    let out = app("$BROWSER file:///etc/passwd; echo $?; $BROWSER 'https://example.org/1'");
    assert_eq!((out.status, out.stdout.as_str()), (0, "4\n"), "{out}");
    until("the person was asked", || written("asked").contains("url1 wants to open this address"));
    assert!(written("asked").contains("https://example.org/1") && !written("asked").contains("passwd"));

    fs::write(home.join("yes"), "").unwrap();
    app("$BROWSER 'https://example.org/2?a=b&c'");
    until("it is opened", || written("opened").contains("https://example.org/2?a=b&c"));
    assert!(written("opened").starts_with(&format!("{}\n", screen.person)), "as the person: {}", written("opened"));
    assert!(!written("opened").contains("example.org/1"), "no is no: {}", written("opened"));

    // Unasked, or not at all; by the portal, too.
    let asked = written("asked");
    world.ok(&["config", "url1", "set", "desktop.open_urls=allow"]);
    let portal = "gdbus call --session --dest org.freedesktop.portal.Desktop \
                  --object-path /org/freedesktop/portal/desktop \
                  --method org.freedesktop.portal.OpenURI.OpenURI '' https://example.org/3 '@a{sv} {}'";
    let out = app(portal);
    assert!(out.stdout.contains("/org/freedesktop/portal/desktop/request/"), "{out}");
    until("it is opened unasked", || written("opened").contains("https://example.org/3"));
    assert_eq!(written("asked"), asked);
    assert!(world.ok(&["info", "url1"]).stdout.contains("opens addresses of the web in your browser, unasked"));
    world.ok(&["config", "url1", "set", "desktop.open_urls=deny", "desktop.notifications=false"]);
    let out = app(portal);
    assert!(out.status != 0 && out.stderr.contains("ServiceUnknown"), "{out}");
    assert!(world.ok(&["info", "url1"]).stdout.contains("notifications not shown; addresses of the web not opened"));

    // Its bus is its own: a name is had, and nothing of the host is called.
    let name = "gdbus call --session --dest org.freedesktop.DBus --object-path / \
                --method org.freedesktop.DBus.RequestName org.example.Editor 'uint32 4'";
    assert_eq!(app(name).stdout.trim(), "(uint32 1,)");
    let systemd = name.replace("org.freedesktop.DBus --", "org.freedesktop.systemd1 --");
    assert!(app(&systemd).stderr.contains("ServiceUnknown"));
    world.ok(&["stop", "url1"]);
    let of = |service: &str| {
        let ends = format!("lazaret {service} url1");
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.filter(|entry| {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == ends
        })
        .count()
    };
    until("bus and opener have ended", || of("bus") + of("open") == 0);
}

#[test]
fn trust_is_asked_for_twice() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "trust1");
    world
        .refused(&["config", "trust1", "set", "desktop.display=trusted"], &["read what is typed", "trusted_confirmed"]);
    world.ok(&["config", "trust1", "set", "desktop.display=trusted", "desktop.trusted_confirmed=true"]);
    let mut own = screen.own("xclock", &["-title", "seen"]).spawn().unwrap();
    until("the person's program is there", || screen.windows().contains("\"seen\""));
    let windows = screen.ok(&world, &["app", "trust1", "--", "xwininfo", "-root", "-tree"]);
    assert!(windows.contains("\"seen\""), "{windows}");
    let said = world.ok(&["info", "trust1"]).stdout;
    assert!(said.contains("trusted with the display") && said.contains("with a trusted cookie"), "{said}");
    // Back again, the server's trust ends with the run.
    world.ok(&["config", "trust1", "unset", "desktop.display"]);
    world.ok(&["config", "trust1", "set", "desktop.display=isolated"]);
    world.ok(&["restart", "trust1"]);
    let out = screen.lazaret(&world, &["app", "trust1", "--", "xwininfo", "-root", "-tree"]);
    assert!(!out.stdout.contains("\"seen\""), "{out}");
    own.kill().unwrap();
    own.wait().unwrap();
}

//! Programs of containers on a Wayland compositor, and on servers of their own in one window.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use rustix::process::{Pid, Signal, kill_process};

use crate::desktop::{NEXT_PERSON, Screen, become_person, gates, until};
use crate::harness::{Out, Pty, World, word};

/// A person's session on sway without a screen.
struct Session {
    dir: PathBuf,
    person: u32,
    compositor: Child,
}

impl Session {
    fn start(world: &World) -> Session {
        let dir = std::env::temp_dir().join(format!("lazaret-wayland-{}", world.cgroup_prefix()));
        let person = NEXT_PERSON.fetch_add(1, Ordering::Relaxed);
        fs::create_dir_all(&dir).unwrap();
        chown(&dir, Some(person), Some(person)).unwrap();
        // As the directory of a session is: nobody else's.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(dir.join("config"), "output * resolution 800x600\nxwayland disable\n").unwrap();
        let compositor = Self::compositor(&dir, person);
        Session { dir, person, compositor }
    }

    fn compositor(dir: &PathBuf, person: u32) -> Child {
        let mut command = Self::program(dir, person, "sway");
        command.arg("-c").arg(dir.join("config"));
        command.envs([("WLR_BACKENDS", "headless"), ("WLR_RENDERER", "pixman"), ("WLR_LIBINPUT_NO_DEVICES", "1")]);
        let compositor = command.stdout(Stdio::null()).spawn().expect("sway and setpriv are installed");
        until("sway listens", || UnixStream::connect(dir.join("wayland-1")).is_ok());
        compositor
    }

    fn end(&mut self) {
        let _ = kill_process(Pid::from_child(&self.compositor), Signal::TERM);
        let _ = self.compositor.wait();
    }

    fn restart(&mut self) {
        self.end();
        self.compositor = Self::compositor(&self.dir, self.person);
    }

    fn program(dir: &PathBuf, person: u32, program: &str) -> Command {
        let mut command = become_person(person);
        command.arg(program).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", dir).env("XDG_RUNTIME_DIR", dir);
        command.env("WAYLAND_DISPLAY", "wayland-1").stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// A program of the person's own.
    fn own(&self, program: &str) -> Command {
        Self::program(&self.dir, self.person, program)
    }

    /// The command as the person types it in the session, with `sudo -E`.
    fn typed(&self, world: &World, arguments: &[&str]) -> Command {
        let mut command = world.command(arguments);
        let id = self.person.to_string();
        command.env("SUDO_UID", &id).env("SUDO_GID", &id).env("SUDO_USER", "ann");
        command.env("WAYLAND_DISPLAY", "wayland-1").env("XDG_RUNTIME_DIR", &self.dir);
        command
    }

    #[track_caller]
    fn lazaret(&self, world: &World, arguments: &[&str]) -> Out {
        world.run(self.typed(world, arguments), b"")
    }

    #[track_caller]
    fn ok(&self, world: &World, arguments: &[&str]) -> String {
        let out = self.lazaret(world, arguments);
        assert_eq!(out.status, 0, "`lazaret {}` failed\n{out}", arguments.join(" "));
        out.stdout
    }

    fn windows(&self) -> String {
        let all = fs::read_dir(&self.dir).unwrap().flatten().map(|entry| entry.path());
        let Some(socket) = all.into_iter().find(|path| path.to_string_lossy().contains("sway-ipc")) else {
            return String::new();
        };
        let out = self.own("swaymsg").args(["-t", "get_tree"]).env("SWAYSOCK", socket).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// How much of the screen is of the colour that most of a terminal is, in hundredths, as the person sees it.
    fn covered(&self, colour: [u8; 3]) -> usize {
        let picture = self.own("grim").args(["-t", "ppm", "-"]).output().unwrap().stdout;
        let pixels = picture.get(15..).unwrap_or_default().chunks_exact(3);
        pixels.filter(|pixel| **pixel == colour).count() * 100 / (800 * 600)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn a_wayland_program_is_shown_as_the_containers_and_goes_with_it() {
    let world = World::new();
    let session = Session::start(&world);
    session.ok(&world, &["create", "way1", "--desktop"]);
    let foot =
        ["app", "--detach", "way1", "--", "foot", "-o", "colors.background=123456", "--title=time", "sleep", "999"];
    session.ok(&world, &foot);
    until("the terminal is on the screen", || session.windows().contains("\"[way1] time\""));
    until("it is seen", || session.covered([0x12, 0x34, 0x56]) > 80);
    let info = world.info("way1");
    assert_eq!(
        (&info["wayland"]["connections"], word(&info["wayland"]["person"])),
        (&1.into(), "ann".into()),
        "{info}"
    );
    assert!(info["gate"].is_null(), "there is no X server: {info}");
    let said = world.ok(&["info", "way1"]).stdout;
    assert!(said.contains("isolated; compositor `") && said.contains("by the Wayland gate, filtered"), "{said}");

    // The gate is the person's process, and sees the compositor's socket only.
    let [gate] = gates("way1")[..] else { panic!("one gate") };
    let status = fs::read_to_string(format!("/proc/{gate}/status")).unwrap();
    let id = session.person;
    for line in [&*format!("Uid:\t{id}\t{id}\t{id}\t{id}\n"), "CapPrm:\t0000000000000000", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let seen: Vec<_> = fs::read_dir(format!("/proc/{gate}/root")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(seen, ["server"]);
    world.ok(&["stop", "way1"]);
    until("the window is gone", || !session.windows().contains("way1"));
    until("the gate has ended", || gates("way1").is_empty());
}

#[test]
fn a_wayland_session_is_neither_watched_nor_steered() {
    let world = World::new();
    let session = Session::start(&world);
    session.ok(&world, &["create", "way2", "--desktop"]);
    let keyboard = session.own("wtype").args(["-s", "600000"]).stdout(Stdio::null()).spawn().unwrap();
    let owner = session.own("wl-copy").args(["--foreground", "secret"]).stdout(Stdio::null()).spawn().unwrap();
    let copied = || session.own("wl-paste").arg("-n").output().unwrap().stdout == b"secret";
    until("the person has copied", copied);
    // Each of these works for a program of the person's own, as the tests of the gate show.
    for attack in
        ["grim - | wc -c", "wtype secret", "timeout 10 wl-paste -n", "env WAYLAND_DISPLAY=wayland-1 grim - | wc -c"]
    {
        let script = format!("({attack}) 2>/dev/null");
        let out = session.lazaret(&world, &["app", "way2", "--", "sh", "-c", &script]);
        assert!(matches!(out.stdout.trim(), "" | "0"), "{attack}\n{out}");
    }
    assert!(session.own("grim").arg("-").output().unwrap().stdout.len() > 100, "the person may");
    let said = world.ok(&["paste", "way2"]);
    assert!(said.stderr.contains("turn to a program of `way2`"), "{said}");
    let pasted = session.ok(&world, &["app", "way2", "--", "timeout", "10", "wl-paste", "-n"]);
    assert_eq!(pasted, "secret");
    world.ok(&["config", "way2", "set", "desktop.clipboard=both"]);
    assert_eq!(session.ok(&world, &["app", "way2", "--", "timeout", "10", "wl-paste", "-n"]), "secret");
    for mut own in [owner, keyboard] {
        own.kill().unwrap();
        own.wait().unwrap();
    }

    // Nothing of the session but the door.
    let seen = session.ok(&world, &["app", "way2", "--", "sh", "-c", "ls /run/lazaret; echo $DISPLAY"]);
    assert_eq!(seen, "bin\nbus\npulse\nwayland-0\nx11\n\n");
}

#[test]
fn a_compositor_that_starts_again_is_found_by_the_same_container() {
    let world = World::new();
    let mut session = Session::start(&world);
    session.ok(&world, &["create", "way3", "--desktop"]);
    let foot = ["app", "--detach", "way3", "--", "foot", "sleep", "999"];
    session.ok(&world, &foot);
    until("the terminal is on the screen", || session.windows().contains("\"[way3]"));
    let init = world.init_pid("way3");
    session.restart();
    session.ok(&world, &foot);
    until("another is on the screen", || session.windows().contains("\"[way3]"));
    assert_eq!(world.init_pid("way3"), init);
    // A killed gate takes its programs along, and is followed by another.
    let [gate] = gates("way3")[..] else { panic!("one gate") };
    kill_process(Pid::from_raw(gate).unwrap(), Signal::KILL).unwrap();
    until("the window is gone", || !session.windows().contains("way3"));
    session.ok(&world, &foot);
    until("a third is on the screen", || session.windows().contains("\"[way3]"));
    // What is missing is told, on a terminal, with what would help.
    let mut terminal = Pty::start(session.typed(&world, &["app", "way3", "--", "grim", "-"]));
    terminal.expect("desktop.display=trusted would let it");
    terminal.wait();
    session.end();
    let out = session.lazaret(&world, &["app", "way3", "--", "foot"]);
    assert_eq!(out.status, 125, "{out}");
    world.ok(&["restart", "way3"]);
}

#[test]
fn a_program_that_needs_more_than_an_x_server_gives_has_one_of_its_own() {
    let world = World::new();
    let screen = Screen::start(&world);
    screen.create(&world, "nest1");
    let mut terminal = Pty::start(screen.typed(&world, &["app", "nest1", "--", "gtk4-demo"]));
    terminal.expect("needs XInput");
    terminal.expect("lazaret config nest1 set desktop.display=nested; lazaret restart nest1");
    assert_ne!(terminal.wait().status, 0);

    world.ok(&["config", "nest1", "set", "desktop.display=nested"]);
    world.ok(&["restart", "nest1"]);
    let demo = ["app", "--detach", "nest1", "--", "env", "GSK_RENDERER=cairo", "gtk4-demo"];
    screen.ok(&world, &demo);
    until("the window of the nested server is there", || screen.windows().contains("\"[nest1]"));
    let info = world.info("nest1");
    assert_eq!((&info["gate"]["nested"], &info["gate"]["server"]), (&true.into(), &true.into()), "{info}");
    let said = world.ok(&["info", "nest1"]).stdout;
    assert!(said.contains("nested; display :") && said.contains("Xephyr"), "{said}");
    let windows = || screen.lazaret(&world, &["app", "nest1", "--", "xwininfo", "-root", "-tree"]).stdout;
    until("the program is on it", || windows().contains("GTK Demo"));
    let extensions = screen.ok(&world, &["app", "nest1", "--", "xdpyinfo"]);
    assert!(extensions.contains("XInputExtension") && extensions.contains("GLX"), "{extensions}");

    // Of the person's screen it sees nothing.
    let mut own = screen.own("xclock", &["-title", "secret"]).spawn().unwrap();
    until("the person's program is there", || screen.windows().contains("\"secret\""));
    assert!(!windows().contains("secret"));
    own.kill().unwrap();
    own.wait().unwrap();
    // A window that is closed is opened again by the next program.
    screen.look("xdotool", &["search", "--name", "^.nest1.", "windowkill"]);
    until("it is closed", || !screen.windows().contains("nest1"));
    screen.ok(&world, &demo);
    until("there is another", || screen.windows().contains("\"[nest1]"));
    world.ok(&["stop", "nest1"]);
    until("it goes with the container", || !screen.windows().contains("nest1"));
}

#[test]
fn both_doors_are_open_where_a_session_has_both() {
    let world = World::new();
    let screen = Screen::start(&world);
    let session = Session::start(&world);
    session.ok(&world, &["create", "both1", "--desktop"]);
    let app = |words: &[&str]| {
        let mut command = session.typed(&world, &[&["app", "both1", "--"], words].concat());
        let x11 = screen.typed(&world, &[]);
        for (name, value) in x11.get_envs().filter(|(name, _)| matches!(name.to_str(), Some("DISPLAY"))) {
            command.env(name, value.unwrap());
        }
        command.env("XAUTHORITY", screen.authority_for(session.person));
        world.run(command, b"")
    };
    let out =
        app(&["sh", "-c", "xwininfo -root >/dev/null && wayland-info >/dev/null && echo $DISPLAY $WAYLAND_DISPLAY"]);
    assert_eq!(out.stdout, ":0 /run/lazaret/wayland-0\n", "{out}");
    assert_eq!(gates("both1").len(), 2);
}

#[test]
fn x_programs_have_a_server_inside_where_the_session_has_none() {
    let world = World::new();
    let session = Session::start(&world);
    session.ok(&world, &["create", "inner1", "--desktop"]);
    // Without it they are told what would help.
    let mut terminal = Pty::start(session.typed(&world, &["app", "inner1", "--", "xclock"]));
    terminal.expect("set desktop.display=nested; lazaret restart inner1");
    assert_ne!(terminal.wait().status, 0);
    world.ok(&["config", "inner1", "set", "desktop.display=nested"]);
    world.ok(&["restart", "inner1"]);
    session.ok(&world, &["app", "--detach", "inner1", "--", "xclock", "-title", "time"]);
    until("its window is on the compositor", || session.windows().contains("\"[inner1]"));
    let windows = || session.lazaret(&world, &["app", "inner1", "--", "xwininfo", "-root", "-tree"]).stdout;
    until("the clock is on the server inside", || windows().contains("\"time\""));
    assert_eq!(gates("inner1").len(), 1);
}

#[test]
fn trust_in_a_wayland_session_is_asked_for_twice() {
    let world = World::new();
    let session = Session::start(&world);
    session.ok(&world, &["create", "trust2", "--desktop"]);
    world.refused(&["config", "trust2", "set", "desktop.display=trusted"], &["trusted_confirmed"]);
    world.ok(&["config", "trust2", "set", "desktop.display=trusted", "desktop.trusted_confirmed=true"]);
    // A picture travels as memory that both sides have.
    let bytes = session.ok(&world, &["app", "trust2", "--", "sh", "-c", "grim - | wc -c"]);
    assert!(bytes.trim().parse::<usize>().unwrap() > 100, "{bytes}");
    let said = world.ok(&["info", "trust2"]).stdout;
    assert!(said.contains("by the Wayland gate, unfiltered"), "{said}");
}

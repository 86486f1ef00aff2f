//! The Wayland gate between real programs and real compositors without a screen: sway, which lets whoever is connected
//! do everything, and weston.

// An example has some of it, too.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lazaret_gate::wayland::{Settings, message, serve};
use lazaret_gate::x11::{Clipboard, Ends, Identity, Sight, confine};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::Test;
use crate::world::{Running, until};

pub const TESTS: &[Test] = &[
    ("wayland_programs_are_shown_as_the_containers", wayland_programs_are_shown_as_the_containers),
    ("wayland_programs_see_what_windows_need", wayland_programs_see_what_windows_need),
    ("wayland_programs_neither_watch_nor_type", wayland_programs_neither_watch_nor_type),
    ("hidden_names_can_not_be_asked_for", hidden_names_can_not_be_asked_for),
    ("the_wayland_clipboard_opens_when_asked", the_wayland_clipboard_opens_when_asked),
    ("ten_thousand_wayland_connections_leave_nothing", ten_thousand_wayland_connections_leave_nothing),
    ("descriptors_are_bounded_and_passed_in_order", descriptors_are_bounded_and_passed_in_order),
    ("a_deaf_wayland_program_holds_up_nobody", a_deaf_wayland_program_holds_up_nobody),
    ("a_compositor_that_can_restricts_programs_itself", a_compositor_that_can_restricts_programs_itself),
    ("a_wayland_gate_reaches_nothing_else", a_wayland_gate_reaches_nothing_else),
    ("a_wayland_gate_ends_with_its_container", a_wayland_gate_ends_with_its_container),
];

/// Who has the session, and as whom programs of the container run.
const PERSON: u32 = 7501;
const INSIDE: u32 = 7502;

fn as_user(id: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).args(["--clear-groups", program]);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8").stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Directories of a person and of a container.
pub struct Place {
    dir: PathBuf,
    compositor: Option<Child>,
}

impl Place {
    fn new() -> Place {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("lazaret-wayland-{}-{count}", std::process::id()));
        for (below, owner, mode) in
            [("", 0, 0o755), ("run", PERSON, 0o700), ("door", 0, 0o755), ("inside", INSIDE, 0o700)]
        {
            fs::create_dir_all(dir.join(below)).unwrap();
            fs::set_permissions(dir.join(below), fs::Permissions::from_mode(mode)).unwrap();
            chown(dir.join(below), Some(owner), Some(owner)).unwrap();
        }
        Place { dir, compositor: None }
    }

    /// sway, with a keyboard that nobody types on.
    pub fn sway() -> Place {
        let mut place = Place::new();
        fs::write(place.dir.join("config"), "output * resolution 800x600\nxwayland disable\n").unwrap();
        let mut command = place.own("sway");
        command.arg("-c").arg(place.dir.join("config"));
        command.envs([("WLR_BACKENDS", "headless"), ("WLR_RENDERER", "pixman"), ("WLR_LIBINPUT_NO_DEVICES", "1")]);
        place.compositor = Some(command.stdout(Stdio::null()).spawn().expect("sway and setpriv are installed"));
        until("sway listens", || UnixStream::connect(place.socket()).is_ok());
        place
    }

    pub fn weston() -> Place {
        let mut place = Place::new();
        let mut command = place.own("weston");
        command.args(["--backend=headless-backend.so", "--socket=wayland-1", "--no-config", "--idle-time=0"]);
        place.compositor = Some(command.stdout(Stdio::null()).spawn().expect("weston is installed"));
        until("weston listens", || UnixStream::connect(place.socket()).is_ok());
        place
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/wayland-1")
    }

    /// A program of the person's own.
    pub fn own(&self, program: &str) -> Command {
        let mut command = as_user(PERSON, program);
        command.env("XDG_RUNTIME_DIR", self.dir.join("run")).env("HOME", self.dir.join("run"));
        command.env("WAYLAND_DISPLAY", "wayland-1");
        command
    }

    /// A program of the container.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = as_user(INSIDE, program);
        command.env("XDG_RUNTIME_DIR", self.dir.join("inside")).env("HOME", self.dir.join("inside"));
        command.env("WAYLAND_DISPLAY", self.door()).env("GDK_BACKEND", "wayland").env("NO_AT_BRIDGE", "1");
        command
    }

    pub fn door(&self) -> PathBuf {
        self.dir.join("door/wayland-0")
    }

    /// sway's windows, as its own tool tells them.
    fn windows(&self) -> String {
        let socket = fs::read_dir(self.dir.join("run")).unwrap().flatten().map(|entry| entry.path());
        let socket = socket.into_iter().find(|path| path.to_string_lossy().contains("sway-ipc")).unwrap();
        let out = self.own("swaymsg").args(["-t", "get_tree"]).env("SWAYSOCK", socket).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// How many different colours are on the screen.
    fn colours(&self) -> usize {
        let out = self.own("grim").args(["-t", "ppm", "-"]).output().unwrap().stdout;
        let mut all: Vec<&[u8]> = out.chunks_exact(3).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    }

    fn gate(&self, clipboard: &str) -> Gate {
        Gate::start(self, clipboard)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(compositor) = &mut self.compositor {
            let _ = compositor.kill();
            let _ = compositor.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A gate in a process of its own.
pub struct Gate {
    process: Child,
    control: BufReader<UnixStream>,
    life: UnixStream,
    door: PathBuf,
}

impl Gate {
    pub fn start(place: &Place, clipboard: &str) -> Gate {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let _ = fs::remove_file(place.door());
        let programs = UnixListener::bind(place.door()).unwrap();
        fs::set_permissions(place.door(), fs::Permissions::from_mode(0o666)).unwrap();
        let (life, theirs) = UnixStream::pair().unwrap();
        let calls = format!("lazaret-wayland-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["--wayland", place.socket().to_str().unwrap(), clipboard, &calls])
            .stdin(OwnedFd::from(programs))
            .stdout(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        let calls = SocketAddr::from_abstract_name(calls).unwrap();
        let mut control = None;
        until("the gate can be called", || {
            control = UnixStream::connect_addr(&calls).ok();
            control.is_some()
        });
        let mut gate = Gate { process, control: BufReader::new(control.unwrap()), life, door: place.door() };
        // It answers when its walls stand.
        assert!(gate.say("info").starts_with("ok"));
        gate
    }

    /// A line, and the answer to it.
    fn say(&mut self, line: &str) -> String {
        self.control.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.control.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// A program that speaks for itself.
    pub fn connect(&self) -> Raw {
        let stream = UnixStream::connect(&self.door).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Raw(stream)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process does that [`Gate::start`] makes.
pub fn become_gate(arguments: &[String]) {
    let [socket, clipboard, calls] = arguments else { panic!("three arguments") };
    let programs = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let life = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let calls = UnixListener::bind_addr(&SocketAddr::from_abstract_name(calls).unwrap()).unwrap().into();
    let identity = Some(Identity { uid: PERSON, gid: PERSON });
    let confinement = confine(Path::new(socket), Sight::Socket, identity).unwrap();
    let settings = Settings {
        name: "ff".into(),
        server: confinement.socket,
        trusted: clipboard == "trusted",
        clipboard: Clipboard::parse(clipboard).unwrap_or_default(),
        connections: 64,
        descriptors: confinement.descriptors,
        alone: confinement.alone,
    };
    serve(&Ends { programs, calls, life }, settings).unwrap();
}

/// A connection without any library.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Sends descriptors along, as many as there are.
    pub fn send_with(&mut self, bytes: &[u8], fds: &[OwnedFd]) -> bool {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
        let mut buffer = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        assert!(buffer.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut buffer, SendFlags::NOSIGNAL).is_ok()
    }

    /// All that is said until the connection ends, or until the answer to a question with this number.
    pub fn hear(&mut self, callback: Option<u32>) -> Vec<(u32, u16, Vec<u8>)> {
        let mut all = Vec::new();
        loop {
            let mut head = [0; 8];
            if self.0.read_exact(&mut head).is_err() {
                return all;
            }
            let word = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
            let mut rest = vec![0; (word(4) >> 16) as usize - 8];
            self.0.read_exact(&mut rest).unwrap();
            all.push((word(0), (word(4) & 0xffff) as u16, rest));
            if Some(word(0)) == callback {
                return all;
            }
        }
    }

    /// Whether it is answered.
    pub fn lives(&mut self, id: u32) -> bool {
        self.send(&message(1, 0, &[id])) && self.hear(Some(id)).last().is_some_and(|last| last.0 == id)
    }

    /// Name and number of everything there is, as object 2; the question is object 3.
    pub fn globals(&mut self) -> Vec<(String, u32)> {
        assert!(self.send(&[message(1, 1, &[2]), message(1, 0, &[3])].concat()));
        let all = self.hear(Some(3));
        let offers = all.iter().filter(|(object, number, _)| (*object, *number) == (2, 0));
        let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        offers
            .map(|(.., bytes)| {
                let length = word(bytes, 4) as usize;
                (String::from_utf8(bytes[8..8 + length - 1].to_vec()).unwrap(), word(bytes, 0))
            })
            .collect()
    }
}

/// `wl_registry.bind` of version 1.
pub fn bind(name: u32, interface: &str, id: u32) -> Vec<u8> {
    let mut words = vec![name, interface.len() as u32 + 1];
    let mut text = interface.as_bytes().to_vec();
    text.push(0);
    text.resize(text.len().next_multiple_of(4), 0);
    words.extend(text.chunks(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap())));
    words.extend([1, id]);
    message(2, 0, &words)
}

fn wayland_programs_are_shown_as_the_containers() {
    let place = Place::sway();
    let gate = place.gate("out");
    let before = place.colours();
    for (program, arguments) in [
        ("foot", &["--title=shell", "sleep", "60"][..]),
        ("zenity", &["--info", "--title=shell", "--text=words"]),
        // Its window has no title but ours.
        ("weston-flower", &[]),
    ] {
        let _running = Running(place.inside(program).args(arguments).stdout(Stdio::null()).spawn().unwrap());
        let title = if arguments.is_empty() { "\"[ff]" } else { "\"[ff] shell\"" };
        until(&format!("{program} has a window"), || place.windows().contains(title));
        if program == "foot" {
            assert!(place.windows().contains("\"lazaret-ff-foot\""), "it says whose it is");
        }
        until(&format!("{program} has drawn"), || place.colours() > before + 2);
    }
    until("all windows are gone", || !place.windows().contains("[ff]"));
    drop(gate);
}

fn wayland_programs_see_what_windows_need() {
    // What draws without end, on a compositor without a screen: sway never gives its pictures back.
    for (place, program) in [(Place::sway(), "weston-flower"), (Place::weston(), "weston-simple-shm")] {
        let _gate = place.gate("out");
        let seen = |command: &mut Command| {
            let out = command.output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let names = text.lines().filter_map(|line| line.strip_prefix("interface: '")?.split('\'').next());
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let (own, inside) = (seen(&mut place.own("wayland-info")), seen(&mut place.inside("wayland-info")));
        assert!(inside.len() < own.len() && inside.iter().all(|name| own.contains(name)), "{inside:?}");
        for needed in ["wl_compositor", "wl_shm", "wl_output", "xdg_wm_base", "wp_viewporter", "wl_data_device_manager"]
        {
            assert!(inside.iter().any(|name| name == needed), "{needed}: {inside:?}");
        }
        let dangerous = ["zwlr_", "weston_", "virtual", "input_method", "foreign", "control", "export", "shortcuts"];
        assert!(own.iter().any(|name| dangerous.iter().any(|part| name.contains(part))), "{own:?}");
        assert!(!inside.iter().any(|name| dangerous.iter().any(|part| name.contains(part))), "{inside:?}");
        let out = place.inside("timeout").args(["1", program]).output().unwrap();
        assert_eq!(out.status.code(), Some(124), "{program} goes on until it is ended");
    }
}

fn wayland_programs_neither_watch_nor_type() {
    let place = Place::sway();
    let _gate = place.gate("both");
    for (program, arguments) in [("grim", &["-"][..]), ("wtype", &["x"])] {
        let attempt = |mut command: Command| command.args(arguments).output().unwrap();
        assert!(attempt(place.own(program)).status.success(), "{program} works for the person");
        let inside = attempt(place.inside(program));
        assert!(!inside.status.success() && inside.stdout.is_empty(), "{program}");
    }
}

fn hidden_names_can_not_be_asked_for() {
    let place = Place::sway();
    let gate = place.gate("out");
    let mut straight = Raw(UnixStream::connect(place.socket()).unwrap());
    straight.0.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let all = straight.globals();
    let offered = gate.connect().globals();
    let mut other = gate.connect();
    assert!(other.lives(2));
    let mut hidden = 0;
    for (interface, name) in &all {
        let mut raw = gate.connect();
        raw.globals();
        assert!(raw.send(&bind(*name, interface, 4)));
        let lives = raw.lives(5);
        assert_eq!(lives, offered.iter().any(|(other, _)| other == interface), "{interface}");
        hidden += usize::from(!lives);
        // The same number by the name of something harmless.
        if !lives {
            let mut raw = gate.connect();
            raw.globals();
            raw.send(&bind(*name, "wl_compositor", 4));
            let said = raw.hear(None);
            assert!(said.last().is_some_and(|last| (last.0, last.1) == (1, 0)), "it is told why");
        }
    }
    assert!(hidden > 10, "{hidden}");
    // Before it has asked what there is, it is told nothing and may ask for nothing.
    let mut raw = gate.connect();
    raw.send(&[message(1, 1, &[2]), bind(all[0].1, &all[0].0, 3)].concat());
    raw.hear(None);
    assert!(other.lives(3));
}

fn the_wayland_clipboard_opens_when_asked() {
    let place = Place::sway();
    let mut gate = place.gate("out");
    // A seat without a keyboard has no clipboard.
    let _keyboard = Running(place.own("wtype").args(["-s", "600000"]).stdout(Stdio::null()).spawn().unwrap());
    let copy = |mut command: Command, words: &str| {
        Running(command.args(["--foreground", words]).stdout(Stdio::null()).spawn().unwrap())
    };
    let own = || String::from_utf8_lossy(&place.own("wl-paste").arg("-n").output().unwrap().stdout).into_owned();
    let inside = || {
        let out = place.inside("timeout").args(["10", "wl-paste", "-n"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let owner = copy(place.own("wl-copy"), "from outside");
    until("the person has copied", || own() == "from outside");
    assert_eq!(inside(), "");
    assert_eq!(gate.say("paste"), "ok later");
    assert_eq!(inside(), "from outside");
    assert_eq!(inside(), "", "once is once");
    assert_eq!(gate.say("clipboard both"), "ok");
    assert_eq!(inside(), "from outside");
    assert_eq!(gate.say("clipboard out"), "ok");
    drop(owner);

    let _owner = copy(place.inside("wl-copy"), "from inside");
    until("it is pasted outside", || own() == "from inside");
    assert_eq!(inside(), "from inside", "its own it may paste");
    let forms = place.inside("wl-paste").arg("--list-types").output().unwrap().stdout;
    let forms = String::from_utf8_lossy(&forms).into_owned();
    assert!(forms.contains("text/plain") && !forms.contains("lazaret"), "{forms}");
}

fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn null(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| fs::File::open("/dev/null").unwrap().into()).collect()
}

fn ten_thousand_wayland_connections_leave_nothing() {
    let place = Place::weston();
    let mut gate = place.gate("out");
    assert!(gate.connect().lives(2));
    until("the first one is gone", || gate.say("info").contains("connections=0"));
    let before = gate.descriptors();
    let (some, many) = (null(28), null(200));
    for at in 0..10_000 {
        let mut raw = gate.connect();
        match at % 50 {
            0 => assert!(raw.lives(2)),
            // Half a message, nonsense, the longest, and descriptors that belong to nothing.
            1..15 => drop(raw.send(&[1, 0, 0, 0, 0])),
            15..25 => drop(raw.send(&[0xff; 64])),
            25..30 => drop(raw.send(&[&[1, 0, 0, 0, 0, 0, 0xfc, 0xff][..], &[0; 4096]].concat())),
            30..35 => drop(raw.send_with(&[1], &some)),
            35..37 => drop(raw.send_with(&[1], &many)),
            _ => {}
        }
    }
    until("all connections are gone", || gate.say("info").contains("connections=0"));
    assert_eq!(gate.descriptors(), before);
    let used = memory(gate.process.id());
    assert!(used <= 5 * 1024, "{used} KiB");
}

fn descriptors_are_bounded_and_passed_in_order() {
    let place = Place::weston();
    let mut gate = place.gate("out");
    let mut raw = gate.connect();
    let globals = raw.globals();
    let shm = globals.iter().find(|(name, _)| name == "wl_shm").unwrap().1;
    // Pools of different sizes, many at once: a compositor ends who names a size that the file has not.
    let mut bytes = bind(shm, "wl_shm", 4);
    let mut files = Vec::new();
    for at in 0..28u32 {
        let file = rustix::fs::memfd_create("pool", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let size = 4096 * (28 - at);
        rustix::fs::ftruncate(&file, size.into()).unwrap();
        files.push(file);
        bytes.extend(message(4, 0, &[5 + at, size]));
        // A picture in it that needs all of it; then it is of no use any more.
        bytes.extend(message(5 + at, 2, &[size]));
    }
    assert!(raw.send_with(&bytes, &files));
    assert!(raw.lives(33), "each file has its size");
    drop(files);
    until("the gate keeps none of them", || gate.descriptors() < 20);

    // Who sends only descriptors has an end; others do not feel it.
    let mut other = gate.connect();
    assert!(other.lives(2));
    let some = null(28);
    let mut floods: Vec<Raw> = (0..40).map(|_| gate.connect()).collect();
    for flood in &mut floods {
        // The beginning of a message, byte by byte, each with a full load.
        for _ in 0..8 {
            flood.send_with(&[1], &some);
        }
    }
    assert!(other.lives(3));
    until("they are let go", || gate.say("info").contains("connections=2"));
    assert!(gate.descriptors() < 30);
}

fn a_deaf_wayland_program_holds_up_nobody() {
    let place = Place::weston();
    let gate = place.gate("out");
    let mut deaf = gate.connect();
    deaf.globals();
    deaf.0.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Questions whose answers nobody reads; numbers of answered ones are used again.
    let round: Vec<u8> = (4..16_000).flat_map(|id| message(1, 0, &[id])).collect();
    let mut sent = 0;
    while sent < 64 << 20 && deaf.send(&round) {
        sent += round.len();
    }
    assert!(sent < 64 << 20, "the gate takes no more");
    assert!(gate.connect().lives(2));
    let used = memory(gate.process.id());
    assert!(used <= 5 * 1024, "{used} KiB");
}

/// What sway 1.9, labwc, KWin and others do, in as few words as possible.
fn a_compositor_that_can_restricts_programs_itself() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    fs::set_permissions(place.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let compositor = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut raw = Raw(stream);
        let mut head = [0; 24];
        raw.0.read_exact(&mut head).unwrap();
        let offer = bind(7, "wp_security_context_manager_v1", 1);
        // wl_registry.global is a bind without a number at the end.
        let words: Vec<u32> =
            offer[8..offer.len() - 4].chunks(4).map(|four| u32::from_ne_bytes(four.try_into().unwrap())).collect();
        raw.send(&[message(2, 0, &words), message(3, 0, &[0])].concat());
        let mut bytes = vec![0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [rustix::io::IoSliceMut::new(&mut bytes)];
        let n = recvmsg(&raw.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        let mut fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<OwnedFd>>(),
            _ => Vec::new(),
        });
        let (door, closes) = (UnixListener::from(fds.next().unwrap()), fs::File::from(fds.next().unwrap()));
        raw.send(&message(6, 0, &[0]));
        tell.send(String::from_utf8_lossy(&bytes[..n]).into_owned()).unwrap();
        // A program of the container comes here, and not where everybody comes.
        let mut program = Raw(door.accept().unwrap().0);
        let mut asks = [0; 12];
        program.0.read_exact(&mut asks).unwrap();
        program.send(&message(2, 0, &[0]));
        // The door is to be closed when the gate has ended.
        let mut closes = closes;
        closes.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut gate = place.gate("out");
    assert_eq!(gate.say("info"), "ok connections=0 server=there context=true");
    let words = told.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(words.contains("lazaret\0") && words.matches("ff\0").count() == 2, "{words:?}");
    assert!(gate.connect().lives(2));
    drop(gate);
    compositor.join().unwrap();
}

fn a_wayland_gate_reaches_nothing_else() {
    let place = Place::weston();
    let gate = place.gate("out");
    let pid = gate.process.id();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in
        ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000", "Threads:\t1", "Seccomp:\t2"]
    {
        assert!(status.contains(line), "{line}");
    }
    assert!(status.contains(&format!("Uid:\t{PERSON}\t{PERSON}\t{PERSON}\t{PERSON}")));
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), here);
    // Beside the compositor's there may be sockets that are worth more: it sees none of them.
    let seen: Vec<_> = fs::read_dir(format!("/proc/{pid}/root")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(seen, ["server"]);
}

fn a_wayland_gate_ends_with_its_container() {
    let place = Place::weston();
    let gate = place.gate("out");
    let mut raw = gate.connect();
    assert!(raw.lives(2));
    gate.life.shutdown(std::net::Shutdown::Both).unwrap();
    raw.hear(None);
    until("nobody listens", || UnixStream::connect(place.door()).is_err());
    // Killed, it takes connections along; the next one is as good.
    let mut gate = place.gate("out");
    let mut raw = gate.connect();
    assert!(raw.lives(2));
    gate.process.kill().unwrap();
    raw.hear(None);
    drop(gate);
    let mut gate = place.gate("out");
    assert!(gate.connect().lives(2));
    assert_eq!(gate.say("stop"), "", "the line ends when everything has");
}

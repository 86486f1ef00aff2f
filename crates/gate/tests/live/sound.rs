//! The sound gate between real programs and both sound servers.

#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use lazaret_gate::pulse::{Settings, serve};
use lazaret_gate::x11::{Ends, Identity, Sight, confine};

use crate::Test;
use crate::world::until;

pub const TESTS: &[Test] = &[
    ("sound_is_played", sound_is_played),
    ("sound_is_played_by_pipewire", sound_is_played_by_pipewire),
    ("the_microphone_is_a_switch", the_microphone_is_a_switch),
    ("the_microphone_is_a_switch_with_pipewire", the_microphone_is_a_switch_with_pipewire),
    ("properties_order_nothing", properties_order_nothing),
    ("nothing_but_playing_is_possible", nothing_but_playing_is_possible),
    ("sound_comes_back_with_its_server", sound_comes_back_with_its_server),
    ("hostile_bytes_end_their_own_connection", hostile_bytes_end_their_own_connection),
];

/// Who has the session (`games` on Debian: a bus serves nobody without a name), and as whom programs of the container
/// run.
pub const PERSON: u32 = 5;
pub const INSIDE: u32 = 7502;

pub fn as_user(id: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).args(["--clear-groups", program]);
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

/// Which sound server it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Server {
    Pulse,
    PipeWire,
}

/// A sound server of a person's, with one sink and one microphone, and a gate before it.
struct Sound {
    dir: PathBuf,
    servers: Vec<Child>,
    gate: Child,
    calls: String,
    _life: UnixStream,
}

impl Sound {
    fn start(kind: Server) -> Sound {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("lazaret-sound-{}-{count}", std::process::id()));
        for (below, owner) in [("", 0), ("home", PERSON), ("home/pulse", PERSON), ("inside", INSIDE)] {
            fs::create_dir_all(dir.join(below)).unwrap();
            fs::set_permissions(dir.join(below), fs::Permissions::from_mode(0o755)).unwrap();
            chown(dir.join(below), Some(owner), Some(owner)).unwrap();
        }
        let servers = match kind {
            Server::Pulse => vec![Self::pulse(&dir)],
            Server::PipeWire => Self::pipewire(&dir),
        };
        let programs = UnixListener::bind(dir.join("native")).unwrap();
        fs::set_permissions(dir.join("native"), fs::Permissions::from_mode(0o666)).unwrap();
        let (life, theirs) = UnixStream::pair().unwrap();
        let calls = format!("lazaret-sound-{}-{count}", std::process::id());
        let gate = Command::new(std::env::current_exe().unwrap())
            .args(["--sound", dir.join("home/pulse/native").to_str().unwrap(), &calls])
            .stdin(OwnedFd::from(programs))
            .stdout(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        Sound { dir, servers, gate, calls, _life: life }
    }

    fn pulse(dir: &Path) -> Child {
        let socket = dir.join("home/pulse/native");
        let protocol = format!("module-native-protocol-unix socket={}", socket.display());
        let microphone = "module-sine-source source_name=mic";
        let server = Self::of_the_person(dir, "pulseaudio")
            .args(["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "-vvv"])
            .arg(format!("--log-target=file:{}", dir.join("home/log").display()))
            .args(["-L", "module-null-sink sink_name=out", "-L", microphone, "-L", "module-filter-apply"])
            .args(["-L", &protocol])
            .spawn()
            .expect("PulseAudio and setpriv are installed");
        until("the sound server listens", || UnixStream::connect(&socket).is_ok());
        server
    }

    /// PipeWire, who connects its streams, and who speaks PulseAudio's protocol.
    fn pipewire(dir: &Path) -> Vec<Child> {
        let settings = dir.join("home/pipewire/pipewire.conf.d");
        fs::create_dir_all(&settings).unwrap();
        let node = |name: &str, class: &str| {
            format!(
                "{{ factory = adapter args = {{ factory.name = support.null-audio-sink node.name = {name} \
                 media.class = {class} object.linger = true audio.position = [ FL FR ] }} }}\n"
            )
        };
        let nodes = [node("out", "Audio/Sink"), node("mic", "Audio/Source/Virtual")].concat();
        fs::write(settings.join("nodes.conf"), format!("context.objects = [\n{nodes}]\n")).unwrap();
        let bus = dir.join("home/bus");
        let begin = |program: &str, arguments: &[&str]| {
            let mut command = Self::of_the_person(dir, program);
            command.args(arguments).env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", bus.display()));
            command.spawn().expect("PipeWire, WirePlumber and D-Bus are installed")
        };
        let address = format!("--address=unix:path={}", bus.display());
        let mut all = vec![begin("dbus-daemon", &["--session", "--nofork", "--nopidfile", &address])];
        until("the bus is there", || bus.exists());
        all.push(begin("pipewire", &[]));
        until("PipeWire is there", || dir.join("home/pipewire-0").exists());
        all.extend([begin("wireplumber", &[]), begin("pipewire-pulse", &[])]);
        until("both devices are there", || {
            let mut ask = Self::of_the_person(dir, "pactl");
            let asked = ask.arg("info").stdout(Stdio::piped()).output().unwrap();
            let told = said(&asked);
            told.contains("Default Sink: out") && told.contains("Default Source: mic")
        });
        all
    }

    fn of_the_person(dir: &Path, program: &str) -> Command {
        let mut command = as_user(PERSON, program);
        command.env("HOME", dir.join("home")).env("XDG_RUNTIME_DIR", dir.join("home"));
        command.env("XDG_CONFIG_HOME", dir.join("home")).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Tells the gate something.
    fn say(&self, line: &str) -> String {
        let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(&self.calls).unwrap()).unwrap();
        stream.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// A program of the person's own.
    fn own(&self, program: &str) -> Command {
        let mut command = as_user(PERSON, program);
        command.env("PULSE_SERVER", format!("unix:{}", self.dir.join("home/pulse/native").display()));
        command.env("HOME", self.dir.join("home")).env("XDG_RUNTIME_DIR", self.dir.join("home"));
        command
    }

    /// A program of the container.
    fn inside(&self, program: &str) -> Command {
        let mut command = as_user(INSIDE, program);
        command.env("PULSE_SERVER", format!("unix:{}", self.dir.join("native").display()));
        command.env("HOME", self.dir.join("inside")).env("XDG_RUNTIME_DIR", self.dir.join("inside"));
        command
    }

    /// How many samples are not silence, of what the sink plays while a program of the container plays.
    fn heard(&self) -> usize {
        let mut recorder = self
            .own("timeout")
            .args(["--signal=KILL", "20", "parec", "--raw", "--format=s16le", "--device=out.monitor"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut player = self.inside("pacat").args(["--raw", "--format=s16le"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = player.stdin.take().unwrap();
        let writer = std::thread::spawn(move || {
            // Low enough to be left when the server has brought it to a rate of its own.
            let tone = [[0x00u8, 0x40].repeat(100), [0x00, 0xc0].repeat(100)].concat().repeat(400);
            // It ends when nobody reads it any more.
            while input.write_all(&tone).is_ok() {}
        });
        let mut recorded = recorder.stdout.take().unwrap();
        let (mut heard, mut bytes) = (0, [0; 4096]);
        while let Ok(n @ 1..) = recorded.read(&mut bytes) {
            heard += bytes[..n].iter().filter(|byte| **byte != 0).count();
            if heard > 10_000 {
                break;
            }
        }
        for child in [&mut recorder, &mut player] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        writer.join().unwrap();
        heard
    }
}

impl Drop for Sound {
    fn drop(&mut self) {
        for child in [&mut self.gate].into_iter().chain(&mut self.servers) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What the process does that is a gate.
pub fn become_gate(arguments: &[String]) {
    let [socket, calls] = arguments else { panic!("two arguments") };
    let programs = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let life = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
    let calls = UnixListener::bind_addr(&SocketAddr::from_abstract_name(calls).unwrap()).unwrap().into();
    // The server knows the session's user by the process.
    let confined = confine(Path::new(socket), Sight::Directory, Some(Identity { uid: PERSON, gid: PERSON })).unwrap();
    let settings = Settings { server: confined.socket, connections: 16, microphone: false };
    serve(&Ends { programs, calls, life }, settings).unwrap();
}

/// For whoever measures: the sockets of a server and of the gate before it.
pub fn with_sockets<T>(look: impl FnOnce(&Path, &Path) -> T) -> T {
    let sound = Sound::start(Server::Pulse);
    until("the gate serves", || sound.inside("pactl").arg("info").output().unwrap().status.success());
    look(&sound.dir.join("home/pulse/native"), &sound.dir.join("native"))
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn sound_is_played() {
    let sound = Sound::start(Server::Pulse);
    assert!(sound.heard() > 10_000, "the tone is on the sink");
    let told = said(&sound.inside("pactl").args(["list", "short", "sinks"]).output().unwrap());
    assert!(told.contains("out"), "{told}");
    let gate = fs::read_to_string(format!("/proc/{}/status", sound.gate.id())).unwrap();
    assert!(gate.contains(&format!("Uid:\t{PERSON}\t{PERSON}")) && gate.contains("Seccomp:\t2"), "{gate}");
}

fn sound_is_played_by_pipewire() {
    let sound = Sound::start(Server::PipeWire);
    assert!(sound.heard() > 10_000, "the tone is on the sink");
    for attack in [&["load-module", "module-null-sink"][..], &["set-sink-volume", "out", "10%"], &["exit"]] {
        let output = sound.inside("pactl").args(attack).output().unwrap();
        assert!(!output.status.success() && said(&output).contains("Access denied"), "{}", said(&output));
    }
}

fn the_microphone_is_a_switch() {
    check_microphone(Server::Pulse);
}

fn the_microphone_is_a_switch_with_pipewire() {
    check_microphone(Server::PipeWire);
}

fn check_microphone(kind: Server) {
    let sound = Sound::start(kind);
    until("the gate serves", || sound.inside("pactl").arg("info").output().unwrap().status.success());
    let record = |device: &[&str]| {
        let mut command = sound.inside("timeout");
        command.args(["--signal=KILL", "20", "parec", "--raw"]).args(device);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let refused = |device: &[&str], why: &str| {
        let output = record(device).output().unwrap();
        assert!(output.stdout.is_empty(), "{device:?}: {} bytes were recorded", output.stdout.len());
        assert!(said(&output).contains(why), "{device:?}: {}", said(&output));
    };
    let sources = || said(&sound.inside("pactl").args(["list", "short", "sources"]).output().unwrap());
    for device in [&[][..], &["--device=mic"], &["--device=out.monitor"]] {
        refused(device, "Access denied");
    }
    assert_eq!(sources(), "");

    assert_eq!(sound.say("microphone on"), "ok");
    assert!(sources().contains("mic") && !sources().contains("monitor"), "{}", sources());
    // One that takes what there is, one that names it, one that records already.
    let mut running = Vec::new();
    for device in [&[][..], &["--device=mic"]] {
        let mut recorder = record(device).spawn().unwrap();
        let mut bytes = [0; 4096];
        recorder.stdout.as_mut().unwrap().read_exact(&mut bytes).unwrap();
        running.push(recorder);
    }
    assert_eq!(sound.say("info"), "ok connections=2 recording=2 microphone=on");
    // What others play is no microphone, by whatever name or property.
    refused(&["--device=out.monitor"], "Access denied");
    refused(&["--device=@DEFAULT_MONITOR@"], "");
    refused(&["--device=no-such-thing"], "No such entity");
    for attack in [["set-source-volume", "mic", "10%"], ["set-source-mute", "mic", "1"]] {
        let output = sound.inside("pactl").args(attack).output().unwrap();
        assert!(!output.status.success() && said(&output).contains("Access denied"), "{}", said(&output));
    }

    assert_eq!(sound.say("microphone off"), "ok");
    for mut recorder in running {
        // It reads what it has, and ends because its stream is gone, long before anybody kills it.
        let mut rest = Vec::new();
        recorder.stdout.take().unwrap().read_to_end(&mut rest).unwrap();
        assert_eq!(recorder.wait().unwrap().code(), Some(1));
    }
    assert_eq!(sources(), "");
    refused(&["--device=mic"], "Access denied");
    let outputs = || said(&sound.own("pactl").args(["list", "short", "source-outputs"]).output().unwrap());
    until("the server has ended the streams", || outputs().is_empty());
    assert!(sound.heard() > 10_000, "playing goes on");
}

fn properties_order_nothing() {
    let sound = Sound::start(Server::Pulse);
    until("the gate serves", || sound.inside("pactl").arg("info").output().unwrap().status.success());
    // A module that PulseAudio has by default loads whatever a stream's properties name: here, any library.
    let loads = |mut command: Command| {
        let order = "--property=filter.apply.ladspa-sink.parameters=plugin=/evil.so label=x";
        let arguments = ["--property=filter.apply=ladspa-sink", order];
        command.args(["--raw", "--property=media.name=song"]).args(arguments).stdin(Stdio::piped());
        let mut player = command.spawn().unwrap();
        let mut input = player.stdin.take().unwrap();
        let _ = input.write_all(&vec![0; 400_000]);
        let inputs = || said(&sound.own("pactl").args(["list", "sink-inputs"]).output().unwrap());
        until("it plays", || inputs().contains("media.name = \"song\""));
        player.kill().unwrap();
        player.wait().unwrap();
        until("it has ended", || !inputs().contains("song"));
        fs::read_to_string(sound.dir.join("home/log")).unwrap().contains("Failed to open module /evil.so")
    };
    assert!(!loads(sound.inside("pacat")), "a library was loaded");
    assert!(loads(sound.own("pacat")), "without the gate it would have been");
}

fn nothing_but_playing_is_possible() {
    let sound = Sound::start(Server::Pulse);
    let marker = sound.dir.join("home/made");
    let pipe = format!("file={}", marker.display());
    let attacks: &[&[&str]] = &[
        &["load-module", "module-pipe-sink", &pipe],
        &["unload-module", "0"],
        &["set-sink-volume", "out", "10%"],
        &["set-sink-mute", "out", "1"],
        &["set-source-mute", "out.monitor", "1"],
        &["set-default-sink", "out"],
        &["suspend-sink", "out", "1"],
        &["kill-sink-input", "0"],
        &["exit"],
    ];
    for attack in attacks {
        let output = sound.inside("pactl").args(*attack).output().unwrap();
        assert!(!output.status.success(), "{attack:?}: {}", said(&output));
        assert!(!said(&output).contains("Connection"), "it is refused what it asks for: {}", said(&output));
    }
    assert!(!marker.exists());
    // The same is possible without the gate: so the test is right.
    assert!(sound.own("pactl").args(["load-module", "module-pipe-sink", &pipe]).status().unwrap().success());
    until("the module was loaded", || marker.exists());

    // Nobody listens, neither to a microphone nor to what others play.
    for device in [&[][..], &["--device=out.monitor"]] {
        let record = ["--signal=KILL", "3", "parec", "--raw"];
        let output = sound.inside("timeout").args(record).args(device).output().unwrap();
        assert!(output.stdout.is_empty(), "{} bytes were recorded", output.stdout.len());
        assert!(said(&output).contains("Access denied"), "{}", said(&output));
    }
    for list in ["sources", "clients", "modules", "sink-inputs"] {
        let told = said(&sound.inside("pactl").args(["list", "short", list]).output().unwrap());
        assert_eq!(told.trim(), "", "{list}");
    }
    let volume = said(&sound.own("pactl").args(["get-sink-volume", "out"]).output().unwrap());
    assert!(volume.contains("100%"), "{volume}");
}

fn sound_comes_back_with_its_server() {
    let mut sound = Sound::start(Server::Pulse);
    assert!(sound.heard() > 0);
    sound.servers[0].kill().unwrap();
    sound.servers[0].wait().unwrap();
    assert!(!sound.inside("pactl").arg("info").output().unwrap().status.success());
    sound.servers[0] = Sound::pulse(&sound.dir);
    assert!(sound.heard() > 0);
}

fn hostile_bytes_end_their_own_connection() {
    let sound = Sound::start(Server::Pulse);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", sound.gate.id())).unwrap().count();
    until("the gate serves", || sound.inside("pactl").arg("info").output().unwrap().status.success());
    let before = descriptors();
    for at in 0..2000u32 {
        let mut stream = UnixStream::connect(sound.dir.join("native")).unwrap();
        let bytes: Vec<u8> = (0..64 + at % 300).map(|byte| (byte.wrapping_mul(at * 7919 + 13) >> 3) as u8).collect();
        let _ = stream.write_all(&bytes);
    }
    until("all connections are gone", || descriptors() == before);
    // The server clears up behind them in its own time.
    until("others are served", || sound.inside("pactl").arg("info").output().unwrap().status.success());
}

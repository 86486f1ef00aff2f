//! The sound gate between real programs and PulseAudio.

use std::fs;
use std::io::Write;
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
    ("nothing_but_playing_is_possible", nothing_but_playing_is_possible),
    ("sound_comes_back_with_its_server", sound_comes_back_with_its_server),
    ("hostile_bytes_end_their_own_connection", hostile_bytes_end_their_own_connection),
];

/// Who has the session, and as whom programs of the container run.
const PERSON: u32 = 7501;
const INSIDE: u32 = 7502;

fn as_user(id: u32, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={id}")).arg(format!("--regid={id}")).args(["--clear-groups", program]);
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

/// A sound server of a person's, with one sink, and a gate before it.
struct Sound {
    dir: PathBuf,
    server: Child,
    gate: Child,
    _life: UnixStream,
}

impl Sound {
    fn start() -> Sound {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("lazaret-sound-{}-{count}", std::process::id()));
        for (below, owner) in [("", 0), ("pulse", PERSON), ("home", PERSON), ("inside", INSIDE)] {
            fs::create_dir_all(dir.join(below)).unwrap();
            fs::set_permissions(dir.join(below), fs::Permissions::from_mode(0o755)).unwrap();
            chown(dir.join(below), Some(owner), Some(owner)).unwrap();
        }
        let server = Self::server(&dir);
        let programs = UnixListener::bind(dir.join("native")).unwrap();
        fs::set_permissions(dir.join("native"), fs::Permissions::from_mode(0o666)).unwrap();
        let (life, theirs) = UnixStream::pair().unwrap();
        let calls = format!("lazaret-sound-{}-{count}", std::process::id());
        let gate = Command::new(std::env::current_exe().unwrap())
            .args(["--sound", dir.join("pulse/native").to_str().unwrap(), &calls])
            .stdin(OwnedFd::from(programs))
            .stdout(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        Sound { dir, server, gate, _life: life }
    }

    fn server(dir: &Path) -> Child {
        let socket = dir.join("pulse/native");
        let protocol = format!("module-native-protocol-unix socket={}", socket.display());
        let server = as_user(PERSON, "pulseaudio")
            .args(["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no"])
            .args(["-L", "module-null-sink sink_name=out", "-L", &protocol])
            .env("HOME", dir.join("home"))
            .env("XDG_RUNTIME_DIR", dir.join("home"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("PulseAudio and setpriv are installed");
        until("the sound server listens", || UnixStream::connect(&socket).is_ok());
        server
    }

    /// A program of the person's own.
    fn own(&self, program: &str) -> Command {
        let mut command = as_user(PERSON, program);
        command.env("PULSE_SERVER", format!("unix:{}", self.dir.join("pulse/native").display()));
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
            let tone = [0x00u8, 0x40, 0x00, 0x40, 0x00, 0xc0, 0x00, 0xc0].repeat(44100 / 2);
            // It ends when nobody reads it any more.
            while input.write_all(&tone).is_ok() {}
        });
        let mut recorded = recorder.stdout.take().unwrap();
        let (mut heard, mut bytes) = (0, [0; 4096]);
        while let Ok(n @ 1..) = std::io::Read::read(&mut recorded, &mut bytes) {
            heard += bytes[..n].iter().filter(|byte| **byte == 0x40 || **byte == 0xc0).count();
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
        for child in [&mut self.gate, &mut self.server] {
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
    serve(&Ends { programs, calls, life }, &Settings { server: confined.socket, connections: 16 }).unwrap();
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn sound_is_played() {
    let sound = Sound::start();
    assert!(sound.heard() > 10_000, "the tone is on the sink");
    let told = said(&sound.inside("pactl").args(["list", "short", "sinks"]).output().unwrap());
    assert!(told.contains("out"), "{told}");
    let gate = fs::read_to_string(format!("/proc/{}/status", sound.gate.id())).unwrap();
    assert!(gate.contains(&format!("Uid:\t{PERSON}\t{PERSON}")) && gate.contains("Seccomp:\t2"), "{gate}");
}

fn nothing_but_playing_is_possible() {
    let sound = Sound::start();
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
    let mut sound = Sound::start();
    assert!(sound.heard() > 0);
    sound.server.kill().unwrap();
    sound.server.wait().unwrap();
    assert!(!sound.inside("pactl").arg("info").output().unwrap().status.success());
    sound.server = Sound::server(&sound.dir);
    assert!(sound.heard() > 0);
}

fn hostile_bytes_end_their_own_connection() {
    let sound = Sound::start();
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

//! A server, gates, and who may see what.

#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lazaret_gate::x11::authority::{self, Entry};
use lazaret_gate::x11::cookie::{self, Trust};
use lazaret_gate::x11::{Clipboard, Cookie, Ends, Server, Settings, Sight, confine, serve};

use crate::x::X;

const ADMIN: Cookie = Cookie([0xa5; 16]);

/// A server of our own, and a directory for what belongs to it.
pub struct Display {
    pub dir: PathBuf,
    pub socket: PathBuf,
    number: u32,
    server: Child,
    /// Keeps the server from forgetting everything.
    pub admin: X,
}

impl Display {
    pub fn start() -> Display {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("lazaret-gate-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("admin"), authority::write(&[Entry::wild(&ADMIN)])).unwrap();
        let (server, number) = Self::server(&dir, None);
        let socket = PathBuf::from(format!("/tmp/.X11-unix/X{number}"));
        let admin = X::connect(&socket, Some(ADMIN.0));
        Display { dir, socket, number, server, admin }
    }

    fn server(dir: &Path, number: Option<u32>) -> (Child, u32) {
        let mut command = Command::new("Xvfb");
        if let Some(number) = number {
            command.arg(format!(":{number}"));
        }
        let mut server = command
            .args(["-displayfd", "1", "-screen", "0", "1000x800x24", "-noreset", "-nolisten", "tcp", "-auth"])
            .arg(dir.join("admin"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Xvfb is installed");
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (server, line.trim().parse().expect("the server says its number"))
    }

    /// The server ends, and another takes its place.
    pub fn restart(&mut self) {
        end(&mut self.server);
        self.server = Self::server(&self.dir, Some(self.number)).0;
        self.admin = X::connect(&self.socket, Some(ADMIN.0));
    }

    pub fn access(&self) -> Server {
        Server { socket: self.socket.clone(), credential: Some(ADMIN) }
    }

    pub fn trusted(&self) -> X {
        X::connect(&self.socket, Some(ADMIN.0))
    }

    /// A program with a new cookie that is not trusted, and no gate.
    pub fn untrusted(&self) -> X {
        let granted = cookie::grant(&self.access(), Trust::Untrusted).unwrap();
        X::connect(&self.socket, Some(granted.cookie.0))
    }

    pub fn gate(&self, name: &str) -> Gate {
        Gate::start(self, name, Clipboard::Out)
    }

    /// A command of the session.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("DISPLAY", format!(":{}", self.number))
            .env("XAUTHORITY", self.dir.join("admin"))
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        end(&mut self.server);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends a server so that it takes its socket and its lock with it.
fn end(server: &mut Child) {
    let _ = rustix::process::kill_process(rustix::process::Pid::from_child(server), rustix::process::Signal::TERM);
    let _ = server.wait();
}

/// A gate in a process of its own.
pub struct Gate {
    pub socket: PathBuf,
    number: u32,
    process: Child,
    control: BufReader<UnixStream>,
    /// The container lives as long as it is open.
    life: UnixStream,
}

impl Gate {
    pub fn start(display: &Display, name: &str, clipboard: Clipboard) -> Gate {
        let policy = match clipboard {
            Clipboard::Off => "off",
            Clipboard::Out => "out",
            Clipboard::Both => "both",
        };
        Gate::begin(display, name, policy)
    }

    /// A gate of which the server trusts the programs.
    pub fn trusted(display: &Display, name: &str) -> Gate {
        Gate::begin(display, name, "trusted")
    }

    fn begin(display: &Display, name: &str, policy: &str) -> Gate {
        // Programs find their server by its number.
        let (number, listener) = (700..)
            .find_map(|number| {
                let path = format!("/tmp/.X11-unix/X{number}");
                UnixListener::bind(&path).ok().map(|listener| (number, listener))
            })
            .unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        let calls = format!("lazaret-gate-{}-{number}", std::process::id());
        command.args(["--gate", name, display.socket.to_str().unwrap(), policy, &calls]);
        let process = command.stdin(OwnedFd::from(listener)).stdout(OwnedFd::from(theirs)).spawn().unwrap();
        let calls = SocketAddr::from_abstract_name(calls).unwrap();
        let mut control = None;
        until("the gate can be called", || {
            control = UnixStream::connect_addr(&calls).ok();
            control.is_some()
        });
        let control = BufReader::new(control.unwrap());
        let socket = format!("/tmp/.X11-unix/X{number}").into();
        let mut gate = Gate { socket, number, process, control, life: ours };
        assert!(gate.say("info").starts_with("ok"), "the gate serves");
        gate
    }

    /// What the process does that [`Gate::start`] makes.
    pub fn become_one(arguments: &[String]) {
        let [name, socket, policy, calls] = arguments else { panic!("four arguments") };
        let programs = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let life = std::io::stdout().as_fd().try_clone_to_owned().unwrap();
        let calls = UnixListener::bind_addr(&SocketAddr::from_abstract_name(calls).unwrap()).unwrap().into();
        let confinement = confine(Path::new(socket), Sight::Directory, None).unwrap();
        let settings = Settings {
            name: name.clone(),
            server: Server { socket: confinement.socket, credential: Some(ADMIN) },
            trust: if policy == "trusted" { Trust::Trusted } else { Trust::Untrusted },
            clipboard: match policy.as_str() {
                "both" => Clipboard::Both,
                "off" => Clipboard::Off,
                _ => Clipboard::Out,
            },
            connections: 64,
        };
        serve(&Ends { programs, calls, life }, settings).unwrap();
    }

    pub fn connect(&self) -> X {
        X::connect(&self.socket, None)
    }

    /// A line, and the answer to it.
    pub fn say(&mut self, line: &str) -> String {
        self.control.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        self.control.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    /// A command in the container. Its credentials are of no use: the gate has its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("DISPLAY", format!(":{}", self.number))
            .env("XAUTHORITY", "/nonexistent")
            .env("NO_AT_BRIDGE", "1")
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// What the container's keeper does by its end.
    pub fn end_container(&mut self) {
        self.life.shutdown(std::net::Shutdown::Both).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// A program that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks until it is so. What other processes do can't be waited for otherwise.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

//! The bus gate between real programs and a real bus of a session.

#![allow(dead_code)]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use lazaret_gate::bus::{Offers, Settings, serve};
use lazaret_gate::x11::{Ends, Identity, Sight, confine};

use crate::Test;
use crate::sound::{INSIDE, PERSON, as_user};
use crate::world::until;

#[path = "../../src/bus/greeting.rs"]
mod greeting;
#[path = "../../src/bus/wire.rs"]
mod wire;

use wire::{Kind, Message};

pub const TESTS: &[Test] = &[
    ("a_notification_bears_the_containers_name", a_notification_bears_the_containers_name),
    ("what_becomes_of_it_is_told_to_its_program_alone", what_becomes_of_it_is_told_to_its_program_alone),
    ("nothing_of_the_session_is_within_reach", nothing_of_the_session_is_within_reach),
    ("programs_of_a_container_meet_and_nobody_else", programs_of_a_container_meet_and_nobody_else),
    ("the_portal_opens_addresses_and_nothing_else", the_portal_opens_addresses_and_nothing_else),
    ("ten_thousand_connections_leave_nothing", ten_thousand_connections_leave_nothing),
];

const BUS: &str = "org.freedesktop.DBus";
const NOTIFICATIONS: &str = "org.freedesktop.Notifications";
const NOTIFICATIONS_PATH: &str = "/org/freedesktop/Notifications";

/// A session's bus, and a gate before it.
struct Bus {
    dir: PathBuf,
    daemon: Child,
    gate: Child,
    /// What is told to whoever opens addresses.
    opened: UnixStream,
    _life: UnixStream,
}

impl Bus {
    fn start() -> Bus {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lazaret-bus-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&name);
        for (below, owner) in [("", 0), ("session", PERSON), ("inside", INSIDE)] {
            fs::create_dir_all(dir.join(below)).unwrap();
            fs::set_permissions(dir.join(below), fs::Permissions::from_mode(0o755)).unwrap();
            chown(dir.join(below), Some(owner), Some(owner)).unwrap();
        }
        let session = dir.join("session/bus");
        let daemon = as_user(PERSON, "dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", &format!("--address=unix:path={}", session.display())])
            .stderr(Stdio::null())
            .spawn()
            .expect("D-Bus and setpriv are installed");
        until("the session's bus is there", || UnixStream::connect(&session).is_ok());
        let programs = UnixListener::bind(dir.join("bus")).unwrap();
        fs::set_permissions(dir.join("bus"), fs::Permissions::from_mode(0o666)).unwrap();
        let (life, theirs) = UnixStream::pair().unwrap();
        let (opened, opener) = UnixStream::pair().unwrap();
        let gate = Command::new(std::env::current_exe().unwrap())
            .args(["--bus", session.to_str().unwrap(), &name])
            .stdin(OwnedFd::from(programs))
            .stdout(OwnedFd::from(theirs))
            .stderr(OwnedFd::from(opener))
            .spawn()
            .unwrap();
        Bus { dir, daemon, gate, opened, _life: life }
    }

    /// A program of the container.
    fn inside(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = as_user(INSIDE, program);
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", self.dir.join("bus").display()));
        command.env("HOME", self.dir.join("inside")).args(arguments).output().expect("it is installed")
    }

    fn connect(&self) -> Client {
        Client::connect(&self.dir.join("bus"), INSIDE)
    }

    /// A program of the person's.
    fn own(&self) -> Client {
        Client::connect(&self.dir.join("session/bus"), PERSON)
    }

    /// Shows notifications, by telling of them here. Answers with rising numbers, from 41 on.
    fn show_notifications(&self) -> (Receiver<Message>, std::thread::JoinHandle<Client>) {
        let mut server = self.own();
        server.request(NOTIFICATIONS);
        let (shown, seen) = channel();
        let serving = std::thread::spawn(move || {
            let mut number = 40;
            loop {
                let Some(call) = server.next() else { return server };
                if call.kind != Kind::Call {
                    continue;
                }
                let answer = match call.member.as_str() {
                    "GetCapabilities" => Message::answer(&call).with("as", |body| body.texts(["body", "actions"])),
                    "Notify" => {
                        number += 1;
                        Message::answer(&call).with("u", |body| body.number(number))
                    }
                    // The end of the test.
                    "Stop" => return server,
                    _ => Message::answer(&call),
                };
                server.say(answer);
                shown.send(call).unwrap();
            }
        });
        (seen, serving)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for child in [&mut self.gate, &mut self.daemon] {
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
    let opener = std::io::stderr().as_fd().try_clone_to_owned().unwrap();
    let calls = UnixListener::bind_addr(&SocketAddr::from_abstract_name(calls).unwrap()).unwrap().into();
    let confined = confine(Path::new(socket), Sight::Socket, Some(Identity { uid: PERSON, gid: PERSON })).unwrap();
    let offers = Offers { notifications: true, addresses: true };
    let settings = Settings { name: "ff".into(), server: confined.socket, offers, connections: 64 };
    serve(&Ends { programs, calls, life }, opener.as_fd(), settings).unwrap();
}

/// A program that speaks for itself.
struct Client {
    stream: UnixStream,
    left: Vec<u8>,
    serial: u32,
    name: String,
}

impl Client {
    fn connect(socket: &Path, uid: u32) -> Client {
        // A bus knows its users by the process that connects, thread by thread.
        let ids = [uid, 0].map(rustix::fs::Uid::from_raw);
        rustix::thread::set_thread_res_uid(ids[0], ids[0], ids[1]).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        let digits: String = uid.to_string().bytes().map(|digit| format!("{digit:02x}")).collect();
        stream.write_all(format!("\0AUTH EXTERNAL {digits}\r\nBEGIN\r\n").as_bytes()).unwrap();
        rustix::thread::set_thread_res_uid(ids[1], ids[1], ids[1]).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
        let mut client = Client { stream, left: Vec::new(), serial: 0, name: String::new() };
        let hello = client.ask(Message::call(BUS, "/", BUS, "Hello"));
        client.name = hello.read("s").unwrap().text().unwrap().to_owned();
        client
    }

    fn say(&mut self, message: Message) -> u32 {
        self.serial += 1;
        self.stream.write_all(&Message { serial: self.serial, ..message }.bytes()).unwrap();
        self.serial
    }

    /// The next message, or nothing at the end.
    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((message, length)) = Message::parse(&self.left).unwrap() {
                self.left.drain(..length);
                return Some(message);
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.left.extend(&bytes[..n]),
            }
        }
    }

    /// The answer to a call; what comes before it is not looked at.
    fn ask(&mut self, message: Message) -> Message {
        let serial = self.say(message);
        loop {
            let message = self.next().expect("it is answered");
            if message.reply_serial == serial {
                return message;
            }
        }
    }

    fn of_bus(&mut self, member: &str, text: &str) -> Message {
        self.ask(Message::call(BUS, "/", BUS, member).with("s", |body| body.text(text)))
    }

    fn request(&mut self, name: &str) -> Message {
        self.ask(Message::call(BUS, "/", BUS, "RequestName").with("su", |body| {
            body.text(name);
            body.number(4);
        }))
    }

    fn names(&mut self) -> Vec<String> {
        let answer = self.ask(Message::call(BUS, "/", BUS, "ListNames"));
        let mut names = Vec::new();
        answer.read("as").unwrap().array(b's', |name| {
            names.push(name.text()?.to_owned());
            Some(())
        });
        names
    }
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes)).concat()
}

fn a_notification_bears_the_containers_name() {
    let bus = Bus::start();
    let hint = "string:sound-file:/etc/passwd";
    let arguments = ["--print-id", "--icon=/etc/passwd", "--hint", hint, "Mail & more", "from <b>Bob</b>"];
    let output = bus.inside("notify-send", &arguments);
    assert!(!output.status.success(), "nobody shows it: {}", said(&output));

    let (seen, serving) = bus.show_notifications();
    let output = bus.inside("notify-send", &arguments);
    assert_eq!(said(&output).trim(), "41");
    let notify = loop {
        let call = seen.recv().unwrap();
        if call.member == "Notify" {
            break call;
        }
    };
    let mut body = notify.read("susssasa{sv}i").unwrap();
    assert_eq!((body.text(), body.number()), (Some("[ff] notify-send"), Some(0)));
    assert_eq!([body.text(), body.text(), body.text()], [Some(""), Some("[ff] Mail & more"), Some("from Bob")]);
    let bytes = String::from_utf8_lossy(&notify.body).into_owned();
    assert!(!bytes.contains("passwd") && !bytes.contains("sender-pid"), "{bytes}");
    let gate = fs::read_to_string(format!("/proc/{}/status", bus.gate.id())).unwrap();
    assert!(gate.contains(&format!("Uid:\t{PERSON}\t{PERSON}")) && gate.contains("Seccomp:\t2"), "{gate}");
    drop(bus);
    serving.join().unwrap();
}

fn what_becomes_of_it_is_told_to_its_program_alone() {
    let bus = Bus::start();
    let (seen, serving) = bus.show_notifications();
    let mut program = bus.connect();
    program.of_bus("AddMatch", &format!("type='signal',interface='{NOTIFICATIONS}'"));
    let notify = |replaces: u32| {
        Message::call(NOTIFICATIONS, NOTIFICATIONS_PATH, NOTIFICATIONS, "Notify").with("susssasa{sv}i", |body| {
            body.text("program");
            body.number(replaces);
            ["", "title", "body"].iter().for_each(|text| body.text(text));
            body.texts(["open", "Open"]);
            body.array(8, |_| {});
            body.number(u32::MAX);
        })
    };
    // The person's own program has one, too: it is neither replaced nor closed from inside.
    let mut own = bus.own();
    let foreign = own.ask(notify(0)).read("u").unwrap().number().unwrap();
    let number = program.ask(notify(foreign)).read("u").unwrap().number().unwrap();
    assert!(number > foreign);
    let close = |number: u32| {
        let close = Message::call(NOTIFICATIONS, NOTIFICATIONS_PATH, NOTIFICATIONS, "CloseNotification");
        close.with("u", |body| body.number(number))
    };
    assert_eq!(program.ask(close(foreign)).kind, Kind::Return);
    assert_eq!(program.ask(close(number)).kind, Kind::Return);
    let calls: Vec<Message> = seen.try_iter().collect();
    let numbers = |member: &str, signature: &str, skip: usize| -> Vec<u32> {
        let of = calls.iter().filter(|call| call.member == member);
        of.map(|call| {
            let mut body = call.read(signature).unwrap();
            for _ in 0..skip {
                body.text().unwrap();
            }
            body.number().unwrap()
        })
        .collect()
    };
    assert_eq!(numbers("CloseNotification", "u", 0), [number]);
    assert_eq!(numbers("Notify", "susssasa{sv}i", 1), [0, 0]);

    // Signals, of the server and of somebody who is none.
    own.say(Message::call(NOTIFICATIONS, "/", NOTIFICATIONS, "Stop"));
    let mut server = serving.join().unwrap();
    let closed = |number: u32| {
        Message::signal(NOTIFICATIONS_PATH, NOTIFICATIONS, "NotificationClosed").with("uu", |body| {
            body.number(number);
            body.number(2);
        })
    };
    let invoked = Message::signal(NOTIFICATIONS_PATH, NOTIFICATIONS, "ActionInvoked").with("us", |body| {
        body.number(number);
        body.text("open");
    });
    own.say(closed(number));
    server.say(closed(foreign));
    server.say(invoked.clone());
    server.say(closed(number));
    let first = program.next().unwrap();
    assert_eq!(
        (first.member.as_str(), &first.body),
        ("ActionInvoked", &invoked.body),
        "the first is not the foreign one"
    );
    let second = program.next().unwrap();
    assert_eq!((second.member.as_str(), &second.body), ("NotificationClosed", &closed(number).body));
}

fn nothing_of_the_session_is_within_reach() {
    let bus = Bus::start();
    let mut own = bus.own();
    own.request("org.example.Secret");
    let call = |to: &str, path: &str, method: &str, arguments: &[&str]| {
        let all = [&["call", "--session", "--dest", to, "--object-path", path, "--method", method], arguments].concat();
        bus.inside("gdbus", &all)
    };
    let names = said(&call(BUS, "/", "org.freedesktop.DBus.ListNames", &[]));
    assert!(names.contains(NOTIFICATIONS) && !names.contains("Secret"), "{names}");
    let systemd = "org.freedesktop.systemd1";
    let portal = "org.freedesktop.portal.Desktop";
    let desktop = "/org/freedesktop/portal/desktop";
    let start: &[&str] = &["x.service", "fail", "[]", "[]"];
    for (to, path, method, arguments, error) in [
        (
            BUS,
            "/",
            "org.freedesktop.DBus.StartServiceByName",
            &["org.example.Secret", "uint32 0"][..],
            "ServiceUnknown",
        ),
        (BUS, "/", "org.freedesktop.DBus.UpdateActivationEnvironment", &["{'A': 'b'}"], "AccessDenied"),
        (BUS, "/", "org.freedesktop.DBus.GetNameOwner", &["org.example.Secret"], "NameHasNoOwner"),
        (BUS, "/", "org.freedesktop.DBus.RequestName", &[NOTIFICATIONS, "uint32 0"], "AccessDenied"),
        (BUS, "/", "org.freedesktop.DBus.AddMatch", &["eavesdrop=true"], "AccessDenied"),
        (BUS, "/", "org.freedesktop.DBus.Monitoring.BecomeMonitor", &["[]", "0"], "AccessDenied"),
        ("org.example.Secret", "/", "org.example.Secret.Read", &[], "ServiceUnknown"),
        (
            systemd,
            "/org/freedesktop/systemd1",
            "org.freedesktop.systemd1.Manager.StartTransientUnit",
            start,
            "ServiceUnknown",
        ),
        (portal, desktop, "org.freedesktop.portal.Screenshot.Screenshot", &["", "{}"], "UnknownMethod"),
        (portal, desktop, "org.freedesktop.portal.FileChooser.OpenFile", &["", "", "{}"], "UnknownMethod"),
        (
            "org.freedesktop.secrets",
            "/org/freedesktop/secrets",
            "org.freedesktop.Secret.Service.OpenSession",
            &[],
            "ServiceUnknown",
        ),
        ("org.a11y.Bus", "/org/a11y/bus", "org.a11y.Bus.GetAddress", &[], "ServiceUnknown"),
    ] {
        let output = call(to, path, method, arguments);
        assert!(!output.status.success() && said(&output).contains(error), "{method}: {}", said(&output));
    }
    // Its name on the session's bus is as unknown as any other: the two have nothing to do with each other.
    let mut inside = bus.connect();
    let answer = inside.ask(Message::call(&own.name, "/", "x.Y", "Z"));
    assert!(answer.kind == Kind::Error || own.name == inside.name, "{answer:?}");
    let monitor = bus.inside("timeout", &["3", "dbus-monitor", "--session"]);
    assert!(!said(&monitor).contains("Secret"), "{}", said(&monitor));
}

fn programs_of_a_container_meet_and_nobody_else() {
    let (bus, other) = (Bus::start(), Bus::start());
    let mut first = bus.connect();
    assert_eq!(first.request("org.example.Editor").read("u").unwrap().number(), Some(1));
    let mut second = bus.connect();
    assert_eq!(second.request("org.example.Editor").read("u").unwrap().number(), Some(3), "it runs already");
    let serial = second.say(Message::call("org.example.Editor", "/", "org.example.Editor", "Open"));
    let call = loop {
        let message = first.next().unwrap();
        if message.kind == Kind::Call {
            break message;
        }
    };
    assert_eq!((call.member.as_str(), &call.sender), ("Open", &second.name));
    first.say(Message::answer(&call));
    assert!(std::iter::from_fn(|| second.next()).any(|message| message.reply_serial == serial));
    // In another container, and in the session, the name is free.
    assert_eq!(other.connect().request("org.example.Editor").read("u").unwrap().number(), Some(1));
    assert!(!bus.own().names().contains(&"org.example.Editor".to_owned()));
}

fn the_portal_opens_addresses_and_nothing_else() {
    let mut bus = Bus::start();
    let open = |bus: &Bus, address: &str| {
        let portal = ["call", "--session", "--dest", "org.freedesktop.portal.Desktop"];
        let object = ["--object-path", "/org/freedesktop/portal/desktop", "--method"];
        let method = ["org.freedesktop.portal.OpenURI.OpenURI", "", address, "@a{sv} {}"];
        bus.inside("gdbus", &[&portal[..], &object, &method].concat())
    };
    for bad in ["file:///etc/passwd", "javascript:alert(1)", "https://a b"] {
        assert!(said(&open(&bus, bad)).contains("InvalidArgs"), "{bad}");
    }
    let output = open(&bus, "https://example.org/");
    assert!(output.status.success(), "{}", said(&output));
    let mut told = [0; 26];
    bus.opened.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"open https://example.org/\n");
}

fn ten_thousand_connections_leave_nothing() {
    let bus = Bus::start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", bus.gate.id())).unwrap().count();
    drop(bus.connect());
    // One connection may not have ended yet.
    let before = descriptors();
    let half = Message::call(BUS, "/", BUS, "Hello").bytes();
    for at in 0..10_000usize {
        let mut stream = UnixStream::connect(bus.dir.join("bus")).unwrap();
        let bytes: Vec<u8> = match at % 4 {
            0 => b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n".iter().chain(&half[..at % half.len()]).copied().collect(),
            1 => (0..at % 300).map(|byte| ((byte * (at * 7919 + 13)) >> 3) as u8).collect(),
            2 => b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n"
                .iter()
                .chain(&half)
                .copied()
                .map(|b| b ^ u8::from(at % 7 == 0))
                .collect(),
            _ => Vec::new(),
        };
        let _ = stream.write_all(&bytes);
    }
    until("all connections are gone", || descriptors() <= before);
    let names = bus.connect().names();
    assert!(names.len() <= 5, "nobody else is left: {names:?}");
    // One that reads nothing holds nobody up.
    let mut deaf = bus.connect();
    deaf.stream.set_nonblocking(true).unwrap();
    let call = Message::call(BUS, "/", BUS, "ListNames").bytes();
    // Until nobody listens to it any more.
    while deaf.stream.write_all(&call).is_ok() {}
    assert!(!bus.connect().names().is_empty(), "others are heard");
    let status = fs::read_to_string(format!("/proc/{}/status", bus.gate.id())).unwrap();
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let memory: u64 = memory.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(memory < 40_000, "{memory} kB");
}

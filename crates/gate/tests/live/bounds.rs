//! What one connection can do to another, to the gate, and to what the gate holds.

use std::fs;
use std::io::{IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::Test;
use crate::world::{Display, Gate, until};
use crate::x::{STRING, WM_NAME, X};

pub const TESTS: &[Test] = &[
    ("ten_thousand_connections_leave_nothing", ten_thousand_connections_leave_nothing),
    ("who_does_not_read_holds_up_nobody", who_does_not_read_holds_up_nobody),
    ("nonsense_ends_its_own_connection_only", nonsense_ends_its_own_connection_only),
    ("descriptors_are_not_passed", descriptors_are_not_passed),
    ("trusted_programs_may_what_the_session_may", trusted_programs_may_what_the_session_may),
    ("there_is_an_end_to_connections", there_is_an_end_to_connections),
    ("long_requests_pass", long_requests_pass),
    ("a_server_that_starts_again_is_found", a_server_that_starts_again_is_found),
    ("a_stopped_gate_leaves_no_cookie", a_stopped_gate_leaves_no_cookie),
    ("a_gate_ends_with_its_container", a_gate_ends_with_its_container),
    ("a_killed_gate_ends_connections_only", a_killed_gate_ends_connections_only),
    ("a_gate_reaches_nothing_else", a_gate_reaches_nothing_else),
    ("many_silent_requests_keep_their_numbers", many_silent_requests_keep_their_numbers),
];

fn memory(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn ten_thousand_connections_leave_nothing() {
    let display = Display::start();
    let mut gate = display.gate("ff");
    gate.connect().sync();
    until("the first one is gone", || gate.say("info").contains("connections=0"));
    let before = gate.descriptors();
    for at in 0..10_000 {
        let mut stream = UnixStream::connect(&gate.socket).unwrap();
        match at % 50 {
            // A whole one.
            0 => {
                let mut x = gate.connect();
                x.shown((0, 0, 10, 10));
            }
            // Half an introduction, or nonsense.
            1..25 => drop(stream.write_all(b"l\0\x0b\0")),
            25..40 => drop(stream.write_all(&[0xff; 64])),
            _ => {}
        }
    }
    until("all connections are gone", || gate.say("info").contains("connections=0"));
    assert_eq!(gate.descriptors(), before);
    let used = memory(gate.pid());
    assert!(used <= 5 * 1024, "{used} KiB");
}

fn who_does_not_read_holds_up_nobody() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut deaf = gate.connect();
    let window = deaf.shown((0, 0, 500, 500));
    deaf.raw().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // Pictures of a megabyte, asked for and never read, until nothing more is taken.
    let mut ask = vec![73, 2, 5, 0];
    ask.extend([window, 0, 500 | 500 << 16, !0].iter().flat_map(|word: &u32| word.to_le_bytes()));
    let many = ask.repeat(1000);
    let mut sent = 0;
    while sent < 64 << 20 && deaf.raw().write_all(&many).is_ok() {
        sent += many.len();
    }
    assert!(sent < 64 << 20, "the gate takes no more");
    let mut other = gate.connect();
    other.shown((0, 0, 100, 100));
    assert!(other.answers_within(Duration::from_secs(5)));
    let used = memory(gate.pid());
    assert!(used <= 5 * 1024, "{used} KiB");
}

fn nonsense_ends_its_own_connection_only() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut other = gate.connect();
    for nonsense in [
        // No length, without BIG-REQUESTS.
        &[16u8, 0, 0, 0, 0, 0, 0, 0][..],
        &[127, 0, 0, 0],
    ] {
        let mut x = gate.connect();
        x.raw().write_all(nonsense).unwrap();
        let mut rest = Vec::new();
        assert!(x.raw().read_to_end(&mut rest).is_err() || rest.is_empty());
    }
    let mut x = gate.connect();
    let big = x.extension("BIG-REQUESTS").unwrap();
    x.ask(big, 0, &[]).unwrap();
    x.raw().write_all(&[18, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).unwrap();
    let mut rest = Vec::new();
    assert!(x.raw().read_to_end(&mut rest).is_err() || rest.is_empty());
    // A request that is shorter than it should be is only an error.
    let mut x = gate.connect();
    assert_eq!(x.try_send(18, 0, &[1]), Err(16));
    other.sync();
}

fn descriptors_are_not_passed() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    x.sync();
    let before = gate.descriptors();
    let null = fs::File::open("/dev/null").unwrap();
    let fds = [null.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = SendAncillaryBuffer::new(&mut space);
    assert!(buffer.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(x.raw(), &[IoSlice::new(&[43, 0, 1, 0])], &mut buffer, SendFlags::empty()).unwrap();
    let mut rest = Vec::new();
    assert!(x.raw().read_to_end(&mut rest).is_err() || rest.is_empty(), "the connection is closed");
    assert!(gate.descriptors() < before);
}

fn trusted_programs_may_what_the_session_may() {
    let mut display = Display::start();
    let mut gate = Gate::trusted(&display, "ff");
    let window = display.admin.shown((0, 0, 100, 100));
    display.admin.set_text(window, WM_NAME, STRING, b"the session's").unwrap();
    let mut x = gate.connect();
    assert_eq!(x.text(window, WM_NAME).unwrap(), b"the session's");
    assert!(x.extension("XTEST").is_some());
    let own = x.shown((0, 0, 10, 10));
    x.set_text(own, WM_NAME, STRING, b"as it is").unwrap();
    assert_eq!(display.admin.text(own, WM_NAME).unwrap(), b"as it is");
    // A segment of shared memory travels as a descriptor (MIT-SHM 1.2, AttachFd).
    let shm = x.extension("MIT-SHM").unwrap();
    let file = rustix::fs::memfd_create("picture", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 4096).unwrap();
    let mut attach = vec![shm, 6, 3, 0];
    attach.extend(x.id().to_le_bytes());
    attach.extend([0; 4]);
    let fds = [file.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut buffer = SendAncillaryBuffer::new(&mut space);
    assert!(buffer.push(SendAncillaryMessage::ScmRights(&fds)));
    let before = gate.descriptors();
    sendmsg(x.raw(), &[IoSlice::new(&attach)], &mut buffer, SendFlags::empty()).unwrap();
    x.skip(1);
    x.sync();
    assert!(x.events(0).is_empty(), "it was attached");
    until("the gate keeps none of it", || gate.descriptors() == before);
    assert_eq!(gate.say("paste"), "ok");
    // The cookie is the container's, and goes with it.
    assert_eq!(gate.say("stop"), "");
    until("the window is gone", || display.admin.ask(14, 0, &[own]).is_err());
}

fn there_is_an_end_to_connections() {
    let display = Display::start();
    let gate = display.gate("ff");
    let all: Vec<X> = (0..64).map(|_| gate.connect()).collect();
    assert!(X::try_connect(&gate.socket, None).is_none());
    drop(all);
    until("there is room again", || X::try_connect(&gate.socket, None).is_some());
}

fn long_requests_pass() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    let big = x.extension("BIG-REQUESTS").unwrap();
    x.ask(big, 0, &[]).unwrap();
    let window = x.window((0, 0, 10, 10), 0, &[]);
    for (property, length) in [(200, 1_000_000u32), (WM_NAME, 400_000)] {
        let mut bytes = vec![18, 0, 0, 0];
        let words = [7 + length / 4, window, property, STRING, 8, length];
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(vec![b'x'; length as usize]);
        x.raw().write_all(&bytes).unwrap();
    }
    // Two requests that the small client has not counted.
    x.send(127, 0, &[]);
    let mut reply = [0; 32];
    x.raw().write_all(&[43, 0, 1, 0]).unwrap();
    x.raw().read_exact(&mut reply).unwrap();
    assert_eq!(reply[0], 1);
    assert_eq!(display.admin.text(window, 200).unwrap().len(), 1_000_000);
    assert_eq!(display.admin.text(window, WM_NAME).unwrap().len(), 4096 + 5);
}

fn a_server_that_starts_again_is_found() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    gate.connect().shown((0, 0, 10, 10));
    display.restart();
    // The connections of the old server's time are gone; new ones have a new cookie.
    let mut x = gate.connect();
    let window = x.shown((0, 0, 10, 10));
    x.set_text(window, WM_NAME, STRING, b"again").unwrap();
    assert_eq!(display.admin.text(window, WM_NAME).unwrap(), b"[ff] again");
    assert_eq!(x.extension("XTEST"), None);
}

fn a_stopped_gate_leaves_no_cookie() {
    let mut display = Display::start();
    let mut gate = display.gate("ff");
    let mut x = gate.connect();
    let window = x.shown((0, 0, 10, 10));
    assert_eq!(gate.say("stop"), "", "the line ends when everything has");
    let mut rest = Vec::new();
    let _ = x.raw().read_to_end(&mut rest);
    until("the window is gone", || display.admin.ask(14, 0, &[window]).is_err());
    until("nobody listens", || UnixStream::connect(&gate.socket).is_err());
}

fn a_gate_ends_with_its_container() {
    let mut display = Display::start();
    let mut gate = display.gate("ff");
    let mut x = gate.connect();
    let window = x.shown((0, 0, 10, 10));
    gate.end_container();
    until("the window is gone", || display.admin.ask(14, 0, &[window]).is_err());
    until("nobody listens", || UnixStream::connect(&gate.socket).is_err());
}

fn a_killed_gate_ends_connections_only() {
    let mut display = Display::start();
    let mut gate = display.gate("ff");
    let mut x = gate.connect();
    x.shown((0, 0, 10, 10));
    gate.kill();
    let mut rest = Vec::new();
    let _ = x.raw().read_to_end(&mut rest);
    display.admin.sync();
    drop(gate);
    display.gate("ff").connect().sync();
}

fn a_gate_reaches_nothing_else() {
    let display = Display::start();
    let gate = display.gate("ff");
    let pid = gate.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("CapPrm:"), "0000000000000000");
    assert_eq!(field("Threads:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // Its network is an empty one, and its root holds servers' sockets only.
    let here = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(fs::read_link(format!("/proc/{pid}/ns/net")).unwrap(), here);
    let root = fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(root.to_str().unwrap().trim_end_matches('/'), "/tmp/.X11-unix");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let processes = limits.lines().find(|line| line.starts_with("Max processes")).unwrap();
    assert_eq!(processes.split_whitespace().nth(2), Some("0"));
}

fn many_silent_requests_keep_their_numbers() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    for _ in 0..5 {
        for _ in 0..70_000 {
            x.send(127, 0, &[]);
        }
        x.sync();
        assert_eq!(x.ask(14, 0, &[1]), Err(9));
    }
}

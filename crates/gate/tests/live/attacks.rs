//! Each hole that the server's untrusted mode leaves open, with and without the gate.

use std::time::Duration;

use crate::Test;
use crate::world::Display;
use crate::x::{CUT_BUFFER0, STRING, WM_NAME, X, u16_at, u32_at};

pub const TESTS: &[Test] = &[
    ("keys_typed_elsewhere_are_not_seen", keys_typed_elsewhere_are_not_seen),
    ("the_pointer_is_not_taken_from_others", the_pointer_is_not_taken_from_others),
    ("the_pointer_is_given_back_with_the_focus", the_pointer_is_given_back_with_the_focus),
    ("half_a_request_does_not_keep_the_pointer", half_a_request_does_not_keep_the_pointer),
    ("the_pointer_does_not_jump", the_pointer_does_not_jump),
    ("the_pointer_is_not_followed", the_pointer_is_not_followed),
    ("the_server_does_not_stop", the_server_does_not_stop),
    ("the_clipboard_is_not_read", the_clipboard_is_not_read),
    ("the_clipboard_is_not_taken_unnoticed", the_clipboard_is_not_taken_unnoticed),
    ("titles_are_not_read", titles_are_not_read),
    ("windows_are_not_found", windows_are_not_found),
    ("what_others_left_on_the_root_is_not_read", what_others_left_on_the_root_is_not_read),
    ("other_containers_are_out_of_reach", other_containers_are_out_of_reach),
    ("the_screen_is_not_covered", the_screen_is_not_covered),
    ("windows_of_others_are_told_nothing", windows_of_others_are_told_nothing),
    ("the_bell_is_silent_and_harmless", the_bell_is_silent_and_harmless),
    ("the_user_id_opens_nothing", the_user_id_opens_nothing),
    ("extensions_are_hidden", extensions_are_hidden),
    ("titles_say_where_they_come_from", titles_say_where_they_come_from),
    ("keymaps_and_hosts_are_closed", keymaps_and_hosts_are_closed),
];

/// The same attack without and with the gate: first it works, then it does not.
fn both(attack: impl Fn(&mut Display, X) -> bool) {
    let mut display = Display::start();
    let direct = display.untrusted();
    assert!(attack(&mut display, direct), "the attack works without the gate");
    let gate = display.gate("ff");
    let gated = gate.connect();
    assert!(!attack(&mut display, gated), "the attack fails through the gate");
}

/// A window of the session that has the keyboard.
fn victim(display: &Display) -> (X, u32) {
    let mut x = display.trusted();
    let window = x.shown((500, 300, 300, 200));
    x.focus(window);
    x.wait_for(9);
    (x, window)
}

fn grab_keyboard(x: &mut X, window: u32) -> u8 {
    x.ask(31, 0, &[window, 0, 1 | 1 << 8]).unwrap()[1]
}

fn grab_pointer(x: &mut X, window: u32) -> u8 {
    // Presses, releases, movements; asynchronous.
    let mask = 0x4c;
    x.ask(26, 0, &[window, mask | 1 << 16 | 1 << 24, 0, 0, 0]).unwrap()[1]
}

fn keys_typed_elsewhere_are_not_seen() {
    both(|display, mut attacker| {
        let (mut typist, _) = victim(display);
        let window = attacker.shown((0, 0, 100, 100));
        assert_eq!(grab_keyboard(&mut attacker, window), 0, "programs believe that they have it");
        display.admin.fake(2, 38, 0, 0);
        display.admin.fake(3, 38, 0, 0);
        let (seen, typed) = (attacker.events(2).len(), typist.events(2).len());
        assert_eq!(seen + typed, 1);
        seen == 1
    });
}

fn the_pointer_is_not_taken_from_others() {
    both(|display, mut attacker| {
        let (_typist, _) = victim(display);
        let window = attacker.shown((0, 0, 100, 100));
        display.admin.fake(6, 0, 600, 400);
        let granted = grab_pointer(&mut attacker, window) == 0;
        display.admin.fake(6, 0, 610, 410);
        let seen = !attacker.events(6).is_empty();
        assert_eq!(granted, seen);
        seen
    });
}

fn the_pointer_is_given_back_with_the_focus() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let (mut typist, typed_in) = victim(&display);
    let mut attacker = gate.connect();
    let window = attacker.shown((0, 0, 100, 100));
    display.admin.focus(window);
    assert_eq!(grab_pointer(&mut attacker, window), 0, "who has the keyboard may have the pointer");
    display.admin.fake(6, 0, 600, 400);
    assert!(!attacker.events(6).is_empty());
    typist.events(7);
    display.admin.focus(typed_in);
    // The grab has ended when the pointer enters the window that it is over.
    typist.wait_for(7);
    display.admin.fake(6, 0, 620, 420);
    assert!(attacker.events(6).is_empty());
    // And its own count of requests has not noticed that one was added.
    attacker.text(window, WM_NAME).unwrap();
    assert_eq!(attacker.try_send(4, 0, &[1]), Err(3));
}

fn half_a_request_does_not_keep_the_pointer() {
    use std::io::Write;
    let mut display = Display::start();
    let gate = display.gate("ff");
    let (mut typist, typed_in) = victim(&display);
    let mut attacker = gate.connect();
    let window = attacker.shown((0, 0, 100, 100));
    display.admin.focus(window);
    assert_eq!(grab_pointer(&mut attacker, window), 0);
    // The beginning of a long picture, whose rest never comes.
    let gc = attacker.id();
    attacker.send(55, 0, &[gc, window, 0]);
    attacker.sync();
    let mut picture = vec![72, 2, 0xff, 0x7f];
    picture.extend([window, gc, 200 | 100 << 16, 0, 24 << 8].iter().flat_map(|word| word.to_le_bytes()));
    attacker.raw().write_all(&picture).unwrap();
    display.admin.fake(6, 0, 600, 400);
    typist.events(7);
    display.admin.focus(typed_in);
    // Whether the gate had seen that beginning or not: the pointer is free, or the program is gone.
    typist.wait_for(7);
}

fn the_pointer_does_not_jump() {
    both(|display, mut attacker| {
        let (_typist, _) = victim(display);
        let window = attacker.shown((0, 0, 100, 100));
        display.admin.fake(6, 0, 600, 400);
        // Into a window of its own, and by an amount.
        attacker.send(41, 0, &[0, window, 0, 0, 5 | 5 << 16]);
        attacker.send(41, 0, &[0, 0, 0, 0, 7 | 7 << 16]);
        attacker.sync();
        let (x, y) = display.admin.pointer();
        let jumped = (x, y) != (600, 400);
        // From its own window out of it.
        display.admin.fake(6, 0, 50, 50);
        attacker.send(41, 0, &[window, window, 0, 0, 700 | 700 << 16]);
        attacker.sync();
        let (x, y) = display.admin.pointer();
        jumped || x > 100 || y > 100
    });
}

fn the_pointer_is_not_followed() {
    both(|display, mut attacker| {
        let (_typist, _) = victim(display);
        attacker.shown((0, 0, 100, 100));
        display.admin.fake(6, 0, 600, 400);
        let first = attacker.pointer();
        display.admin.fake(6, 0, 700, 500);
        first != attacker.pointer()
    });
}

fn the_server_does_not_stop() {
    both(|display, mut attacker| {
        attacker.send(36, 0, &[]);
        attacker.sync();
        let stopped = !display.admin.answers_within(Duration::from_millis(300));
        attacker.send(37, 0, &[]);
        attacker.sync();
        display.admin.sync();
        stopped
    });
}

fn the_clipboard_is_not_read() {
    both(|display, mut attacker| {
        let mut owner = display.trusted();
        let window = owner.window((0, 0, 1, 1), 0, &[]);
        let clipboard = owner.atom("CLIPBOARD");
        owner.send(22, 0, &[window, clipboard, 0]);
        owner.sync();
        let mine = attacker.window((0, 0, 1, 1), 0, &[]);
        let target = attacker.atom("UTF8_STRING");
        attacker.send(24, 0, &[mine, clipboard, target, 100, 0]);
        attacker.sync();
        let asked = !owner.events(30).is_empty();
        if !asked {
            assert_eq!(u32_at(&attacker.wait_for(31), 20), 0, "the program hears that there is nothing");
        }
        // A program may look for the owner's window, too.
        asked || attacker.owner(clipboard) != 0
    });
}

fn the_clipboard_is_not_taken_unnoticed() {
    both(|display, mut attacker| {
        let (_typist, _) = victim(display);
        let mut owner = display.trusted();
        let window = owner.window((0, 0, 1, 1), 0, &[]);
        let clipboard = owner.atom("CLIPBOARD");
        owner.send(22, 0, &[window, clipboard, 0]);
        owner.sync();
        let mine = attacker.window((0, 0, 1, 1), 0, &[]);
        attacker.send(22, 0, &[mine, clipboard, 0]);
        attacker.sync();
        assert_eq!(attacker.owner(clipboard), mine, "inside, it has it");
        owner.owner(clipboard) != window
    });
}

fn titles_are_not_read() {
    both(|display, mut attacker| {
        let mut x = display.trusted();
        let window = x.window((0, 0, 10, 10), 0, &[]);
        x.set_text(window, WM_NAME, STRING, b"secret").unwrap();
        let read = attacker.text(window, WM_NAME);
        assert!(read.is_ok() || read == Err(3));
        let listed = attacker.ask(21, 0, &[window]);
        read.is_ok_and(|text| text == b"secret") || listed.is_ok()
    });
}

fn windows_are_not_found() {
    both(|display, mut attacker| {
        let mut x = display.trusted();
        let window = x.shown((300, 200, 100, 100));
        let root = attacker.root;
        let listed = attacker.children(root).contains(&window);
        let measured = attacker.ask(14, 0, &[window]).is_ok();
        let looked_at = attacker.ask(3, 0, &[window]).is_ok();
        let hit = u32_at(&attacker.ask(40, 0, &[root, root, 350 | 250 << 16]).unwrap(), 8) == window;
        let translated = attacker.ask(40, 0, &[window, root, 0]).is_ok();
        assert!([measured, looked_at, hit, translated].iter().all(|&one| one == listed));
        listed
    });
}

fn what_others_left_on_the_root_is_not_read() {
    both(|display, mut attacker| {
        let root = display.admin.root;
        display.admin.set_text(root, CUT_BUFFER0, STRING, b"old secret").unwrap();
        // What is needed to look like the rest of the desktop is readable.
        display.admin.set_text(root, 23, STRING, b"Xft.dpi: 96").unwrap();
        assert_eq!(attacker.text(root, 23).unwrap(), b"Xft.dpi: 96");
        attacker.text(root, CUT_BUFFER0).unwrap() == b"old secret"
    });
}

fn other_containers_are_out_of_reach() {
    let mut display = Display::start();
    let (mut a, mut b) = (display.untrusted(), display.untrusted());
    let stolen = reach(&mut a, &mut b);
    assert_eq!(stolen, [true; 6], "without gates");
    let (one, two) = (display.gate("one"), display.gate("two"));
    let (mut a, mut b) = (one.connect(), two.connect());
    assert_eq!(reach(&mut a, &mut b), [false; 6], "through gates");
    b.sync();
    // Two programs of one container are no secret to each other.
    let (mut a, mut b) = (one.connect(), one.connect());
    assert_eq!(reach(&mut a, &mut b), [true; 6], "within a container");
    display.admin.sync();
}

/// What `a` can do to `b`: see its picture, press its keys, change its properties, use its pixmap, draw, end it.
fn reach(a: &mut X, b: &mut X) -> [bool; 6] {
    let window = b.shown((200, 200, 50, 50));
    let depth = u32::from(b.visual_depth);
    let pixmap = b.id();
    b.send(53, depth as u8, &[pixmap, window, 8 | 8 << 16]);
    b.sync();
    let picture = a.ask(73, 2, &[window, 0, 8 | 8 << 16, !0]).is_ok();
    let mut press = vec![window, 1, 2 | 38 << 8, 0, window, window, 0, 0, 0, 0, 1];
    press.truncate(10);
    a.send(25, 0, &press);
    a.sync();
    let pressed = !b.events(2).is_empty();
    let changed = a.set_text(window, WM_NAME, STRING, b"changed").is_ok();
    let (mine, gc) = (a.window((0, 0, 10, 10), 0, &[]), a.id());
    // A tile.
    let tiled = a.try_send(55, 0, &[gc, mine, 1 << 10, pixmap]).is_ok();
    let plain = a.id();
    a.send(55, 0, &[plain, mine, 0]);
    let drawn = a.try_send(70, 0, &[window, plain, 0, 5 | 5 << 16]).is_ok();
    // Not the last one: whoever is ended can't tell.
    let ended = a.try_send(113, 0, &[window]).is_ok();
    [picture, pressed, changed, tiled, drawn, ended]
}

/// Windows that no window manager minds, as the server has them: their area, in hundredths of the screen.
fn unmanaged(display: &mut Display, ids: &[u32]) -> u64 {
    let admin = &mut display.admin;
    let mut covered = 0;
    for &id in ids {
        let look = admin.ask(3, 0, &[id]).unwrap();
        let size = admin.ask(14, 0, &[id]).unwrap();
        // Shown, and override-redirect.
        if look[26] == 2 && look[27] == 1 {
            covered += u64::from(u16_at(&size, 16)) * u64::from(u16_at(&size, 18));
        }
    }
    covered * 100 / (u64::from(admin.width) * u64::from(admin.height))
}

fn the_screen_is_not_covered() {
    both(|display, mut attacker| {
        let (width, height) = (attacker.width, attacker.height);
        let mut most = 0;
        let mut seen = |display: &mut Display, attacker: &mut X, ids: &[u32]| {
            attacker.sync();
            most = most.max(unmanaged(display, ids));
        };
        // At once.
        let one = attacker.window((0, 0, width, height), 1 << 9, &[1]);
        attacker.send(8, 0, &[one]);
        seen(display, &mut attacker, &[one]);
        // By growing.
        let two = attacker.window((0, 0, 10, 10), 1 << 9, &[1]);
        attacker.send(8, 0, &[two]);
        attacker.send(12, 0, &[two, 4 | 8, width.into(), height.into()]);
        seen(display, &mut attacker, &[two]);
        attacker.send(10, 0, &[two]);
        // By changing its mind.
        let three = attacker.window((0, 0, width, height), 0, &[]);
        attacker.send(2, 0, &[three, 1 << 9, 1]);
        attacker.send(8, 0, &[three]);
        seen(display, &mut attacker, &[three]);
        // By coming from inside another one.
        let four = attacker.window((0, 0, width, height), 1 << 9, &[1]);
        attacker.send(7, 0, &[four, one, 0]);
        attacker.send(7, 0, &[four, attacker.root, 0]);
        attacker.send(2, 0, &[four, 1 << 9, 1]);
        attacker.send(8, 0, &[four]);
        seen(display, &mut attacker, &[four]);
        // By being many.
        let halves: Vec<u32> = (0..2)
            .map(|at| {
                let x = at * width as i16 / 2;
                let half = attacker.window((x, 0, width / 2, height), 1 << 9, &[1]);
                attacker.send(8, 0, &[half]);
                half
            })
            .collect();
        seen(display, &mut attacker, &halves);
        // A menu is fine.
        let menu = attacker.window((0, 0, 100, 300), 1 << 9, &[1]);
        attacker.send(8, 0, &[menu]);
        attacker.sync();
        assert!(unmanaged(display, &[menu]) > 0);
        most > 90
    });
}

fn windows_of_others_are_told_nothing() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut attacker = gate.connect();
    let (mut typist, window) = victim(&display);
    let message = |kind: u32, about: u32| vec![33 | 32 << 8, about, kind, 2, 0, 0, 0, 0];
    // Straight to the window, or to whoever has the keyboard.
    let protocols = attacker.atom("WM_PROTOCOLS");
    for to in [window, 0, 1] {
        attacker.send(25, 0, &[vec![to, 0], message(protocols, window)].concat());
    }
    attacker.sync();
    assert!(typist.events(33).is_empty());
    // Through the window manager: only about windows of its own, and as a program, not as a pager.
    let mut manager = display.trusted();
    let root = manager.root;
    manager.send(2, 0, &[root, 1 << 11, 0x0008_0000]);
    manager.sync();
    let mine = attacker.window((0, 0, 10, 10), 0, &[]);
    let activate = attacker.atom("_NET_ACTIVE_WINDOW");
    for (kind, about) in [(activate, window), (activate, root), (protocols, mine), (activate, mine)] {
        attacker.send(25, 0, &[vec![root, 0x0018_0000], message(kind, about)].concat());
    }
    attacker.sync();
    let told = manager.wait_for(33);
    assert_eq!((u32_at(&told, 4), u32_at(&told, 8), u32_at(&told, 12)), (mine, activate, 1));
    assert!(manager.events(33).is_empty());
}

fn the_bell_is_silent_and_harmless() {
    both(|_, mut attacker| {
        // The server's error makes GTK 3 abort; through the gate there is none.
        attacker.try_send(104, 0, &[]) == Err(10) || attacker.try_send(102, 0, &[0]) == Err(10)
    });
}

fn the_user_id_opens_nothing() {
    let mut display = Display::start();
    // xhost +si:localuser:root, as Debian does it for the login user.
    let mut host = vec![5, 0];
    host.extend(14u16.to_le_bytes());
    host.extend(b"localuser\0root\0\0");
    display.admin.try_send_bytes(109, 0, &host).unwrap();
    let mut direct = X::connect(&display.socket, None);
    assert!(direct.extension("SECURITY").is_some(), "without a cookie and a gate: trusted");
    let mut wrong = X::connect(&display.socket, Some([1; 16]));
    assert!(wrong.extension("SECURITY").is_some(), "with a wrong cookie, too");
    let gate = display.gate("ff");
    for cookie in [None, Some([1; 16]), Some([0xa5; 16])] {
        let mut gated = X::connect(&gate.socket, cookie);
        let mut x = display.trusted();
        let window = x.window((0, 0, 10, 10), 0, &[]);
        x.sync();
        assert_eq!(gated.ask(73, 2, &[window, 0, 8 | 8 << 16, !0]), Err(9));
        assert_eq!(gated.extension("SECURITY"), None);
        // The server itself does not trust it: it may not change the keyboard even where the gate would let it.
        assert_eq!(gated.extension("XTEST"), None);
    }
}

fn extensions_are_hidden() {
    let display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    for name in ["MIT-SHM", "XTEST", "RECORD", "XInputExtension", "Composite", "SECURITY", "RENDER"] {
        assert_eq!(x.extension(name), None, "{name}");
    }
    assert!(x.extension("BIG-REQUESTS").is_some());
    let list = x.ask(99, 0, &[]).unwrap();
    assert_eq!(list[1], 2);
    let mut trusted = display.trusted();
    let security = trusted.extension("SECURITY").unwrap();
    assert_eq!(x.ask(security, 0, &[1]), Err(1), "known by its number, it is not there either");
}

fn titles_say_where_they_come_from() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    let window = x.window((0, 0, 100, 100), 0, &[]);
    x.set_text(window, WM_NAME, STRING, b"My bank\n").unwrap();
    let (name, utf8) = (x.atom("_NET_WM_NAME"), x.atom("UTF8_STRING"));
    x.set_text(window, name, utf8, "\u{202e}\u{fc}ber".as_bytes()).unwrap();
    let admin = &mut display.admin;
    assert_eq!(admin.text(window, WM_NAME).unwrap(), b"[ff] My bank ");
    assert_eq!(admin.text(window, name).unwrap(), "[ff] \u{fffd}\u{fc}ber".as_bytes());
    let hint = admin.atom("_LAZARET_CONTAINER");
    assert_eq!(admin.text(window, hint).unwrap(), b"ff");
    // Neither of them can be taken away, nor added to from the front.
    x.send(19, 0, &[window, hint]);
    x.set_text(window, hint, utf8, b"other").unwrap();
    let mut before: Vec<u8> = [window, WM_NAME, STRING, 8, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
    before.extend(b"A ");
    x.try_send_bytes(18, 1, &before).unwrap();
    x.set_text(window, 36, STRING, b"localhost").unwrap();
    assert_eq!(admin.text(window, hint).unwrap(), b"ff");
    assert!(admin.text(window, WM_NAME).unwrap().starts_with(b"[ff] "));
    assert_eq!(admin.text(window, 36).unwrap(), b"ff", "the machine is the container");
    assert!(!x.text(window, hint).unwrap().is_empty());
    // What kind of program it is, says it, too.
    x.set_text(window, 67, STRING, b"navigator\0Firefox\0more\0").unwrap();
    assert_eq!(admin.text(window, 67).unwrap(), b"lazaret-ff-navigator\0lazaret-ff-Firefox\0");
    x.set_text(window, 67, STRING, b"x\n").unwrap();
    assert_eq!(admin.text(window, 67).unwrap(), b"lazaret-ff-x\0lazaret-ff-\0");
    // A title longer than anybody reads.
    x.set_text(window, WM_NAME, STRING, &[b'a'; 100_000]).unwrap();
    assert_eq!(admin.text(window, WM_NAME).unwrap().len(), 4096 + 5);
}

fn keymaps_and_hosts_are_closed() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let mut x = gate.connect();
    display.admin.fake(2, 38, 0, 0);
    let keys = x.ask(44, 0, &[]).unwrap();
    display.admin.fake(3, 38, 0, 0);
    assert_eq!(keys.len(), 40);
    assert!(keys[8..].iter().all(|&byte| byte == 0));
    assert_eq!(x.ask(110, 0, &[]), Err(10), "ListHosts");
    assert_eq!(x.try_send(111, 0, &[]), Err(10), "SetAccessControl");
    assert_eq!(x.ask(118, 0, &[]), Err(10), "SetModifierMapping");
    let root = x.root;
    assert_eq!(x.try_send(28, 1, &[root, 4 | 1 << 16 | 1 << 24, 0, 0, 1]), Err(10), "GrabButton on the root");
    assert_eq!(x.try_send(33, 1, &[root, 0x8000 | 38 << 16, 1 | 1 << 8]), Err(10), "GrabKey on the root");
}

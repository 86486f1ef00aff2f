//! Real programs, used as a person uses them: through the keyboard and the pointer of the server.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use lazaret_gate::x11::Clipboard;

use crate::Test;
use crate::world::{Display, Gate, Running, until};
use crate::x::{STRING, WM_NAME, X};

pub const TESTS: &[Test] = &[
    ("xterm_is_typed_into", xterm_is_typed_into),
    ("a_clock_is_drawn", a_clock_is_drawn),
    ("a_gtk_dialog_is_used", a_gtk_dialog_is_used),
    ("a_gtk_menu_opens_and_closes", a_gtk_menu_opens_and_closes),
    ("a_qt_menu_opens_and_closes", a_qt_menu_opens_and_closes),
    ("a_browser_opens_its_own_window", a_browser_opens_its_own_window),
    ("copied_inside_is_pasted_outside", copied_inside_is_pasted_outside),
    ("copied_outside_is_pasted_inside_when_asked", copied_outside_is_pasted_inside_when_asked),
    ("both_ways_if_wanted", both_ways_if_wanted),
    ("within_a_container_copying_needs_nobody", within_a_container_copying_needs_nobody),
    ("pictures_of_megabytes_are_copied", pictures_of_megabytes_are_copied),
];

fn with_manager(display: &Display) -> Running {
    let manager = Running(display.command("openbox").spawn().expect("openbox is installed"));
    let mut x = display.trusted();
    let check = x.atom("_NET_SUPPORTING_WM_CHECK");
    let root = x.root;
    until("the window manager is there", || !x.text(root, check).unwrap().is_empty());
    manager
}

/// The windows with this in their title.
fn titled(x: &mut X, title: &str) -> Vec<u32> {
    let mut found = Vec::new();
    let mut left = vec![x.root];
    while let Some(window) = left.pop() {
        let Ok(tree) = x.ask(15, 0, &[window]) else { continue };
        left.extend(tree[32..].chunks_exact(4).map(|id| crate::x::u32_at(id, 0)));
        let name = x.text(window, WM_NAME).unwrap_or_default();
        let state = x.ask(3, 0, &[window]).map(|look| look[26]);
        if String::from_utf8_lossy(&name).contains(title) && state == Ok(2) {
            found.push(window);
        }
    }
    found
}

/// Waits for a window of this title, and gives it the keyboard.
fn appears(display: &mut Display, title: &str) -> u32 {
    let mut found = Vec::new();
    until(&format!("a window with `{title}` in its title"), || {
        found = titled(&mut display.admin, title);
        !found.is_empty()
    });
    display.admin.focus(found[0]);
    found[0]
}

fn xdotool(display: &Display, arguments: &[&str]) {
    let status = display.command("xdotool").args(arguments).stdout(Stdio::null()).status();
    assert!(status.expect("xdotool is installed").success());
}

fn xterm_is_typed_into() {
    let mut display = Display::start();
    let _manager = with_manager(&display);
    let gate = display.gate("ff");
    let file = display.dir.join("typed");
    let script = format!("read line; echo \"$line\" > {0}.new; mv {0}.new {0}", file.display());
    let _xterm = Running(gate.command("xterm").args(["-T", "Shell", "-e", "sh", "-c", &script]).spawn().unwrap());
    appears(&mut display, "[ff] Shell");
    xdotool(&display, &["type", "Hello, gate 42"]);
    xdotool(&display, &["key", "Return"]);
    until("the line has arrived", || file.exists());
    assert_eq!(fs::read_to_string(&file).unwrap(), "Hello, gate 42\n");
}

/// How many different colours a window shows.
fn colours(display: &mut Display, window: u32) -> usize {
    let size = display.admin.ask(14, 0, &[window]).unwrap();
    let picture = display.admin.ask(73, 2, &[window, 0, crate::x::u32_at(&size, 16), !0]);
    let picture = picture.unwrap_or_default();
    let mut colours: Vec<&[u8]> = picture.get(32..).unwrap_or_default().chunks_exact(4).collect();
    colours.sort();
    colours.dedup();
    colours.len()
}

fn a_clock_is_drawn() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let _clock = Running(gate.command("xclock").args(["-norender", "-geometry", "200x200+50+50"]).spawn().unwrap());
    let window = appears(&mut display, "[ff] xclock");
    until("hands and marks are there", || colours(&mut display, window) >= 2);
}

fn a_gtk_dialog_is_used() {
    let mut display = Display::start();
    let _manager = with_manager(&display);
    let gate = display.gate("ff");
    let mut command = gate.command("zenity");
    command.args(["--entry", "--title", "Question", "--text", "Name?"]).stdout(Stdio::piped());
    let mut dialog = Running(command.spawn().expect("zenity is installed"));
    let window = appears(&mut display, "[ff] Question");
    until("text is drawn", || colours(&mut display, window) > 10);
    xdotool(&display, &["type", "Ada"]);
    // Beyond the beginning: GTK beeps, which must not end it.
    xdotool(&display, &["key", "Home", "BackSpace", "BackSpace", "End", "Return"]);
    let mut answer = String::new();
    dialog.0.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "Ada\n");
    assert!(dialog.0.wait().unwrap().success());
}

fn a_gtk_menu_opens_and_closes() {
    an_editor_is_used("mousepad", &["--disable-server"]);
}

fn a_qt_menu_opens_and_closes() {
    an_editor_is_used("featherpad", &["--standalone"]);
}

/// Types, opens a menu by its key and closes it, and saves.
fn an_editor_is_used(program: &str, arguments: &[&str]) {
    let mut display = Display::start();
    let _manager = with_manager(&display);
    let gate = display.gate("ff");
    let note = display.dir.join("note.txt");
    fs::write(&note, "").unwrap();
    let mut command = gate.command(program);
    command.args(arguments).arg(&note).env("HOME", &display.dir).env("GSETTINGS_BACKEND", "memory");
    command.env("XDG_RUNTIME_DIR", &display.dir).env("LANG", "C.UTF-8");
    let mut editor = Running(command.spawn().unwrap_or_else(|e| panic!("{program} is installed: {e}")));
    let window = appears(&mut display, "[ff] ");
    until("it is drawn", || colours(&mut display, window) > 10);
    xdotool(&display, &["type", "written"]);
    // The File menu, by its key; Save, by its letter: popups get what is typed although no grab is made.
    xdotool(&display, &["key", "alt+f"]);
    let menus = |display: &mut Display| {
        let root = display.admin.root;
        let children = display.admin.children(root);
        let shown = |id: &u32| {
            let look = display.admin.ask(3, 0, &[*id]);
            look.is_ok_and(|look| look[26] == 2 && look[27] == 1)
        };
        let frames = children.into_iter().filter(shown).filter(|id| *id != 0).collect::<Vec<_>>();
        frames.len()
    };
    until("a menu is there", || menus(&mut display) > 0 && note.exists());
    xdotool(&display, &["key", "Escape"]);
    xdotool(&display, &["key", "ctrl+s"]);
    until("the text is saved", || fs::read_to_string(&note).is_ok_and(|text| text.contains("written")));
    assert!(editor.0.try_wait().unwrap().is_none());
}

/// A browser that finds another one of its kind on the screen has that open the page, by properties of its windows.
/// Here the other is a window that says so, and is not the container's.
fn a_browser_opens_its_own_window() {
    let mut display = Display::start();
    let other = display.admin.shown((0, 0, 50, 50));
    let _manager = with_manager(&display);
    let gate = display.gate("ff");
    let user = std::env::var("LOGNAME").unwrap_or_else(|_| "root".into());
    let says = [("VERSION", "5.1"), ("PROGRAM", "firefox-esr"), ("USER", &user), ("PROFILE", "default-esr")];
    for (name, value) in says {
        let property = display.admin.atom(&format!("_MOZILLA_{name}"));
        display.admin.set_text(other, property, STRING, value.as_bytes()).unwrap();
    }
    let page = display.dir.join("page.html");
    let script = "onkeydown = e => document.title += e.key";
    let content = "<body style='background: #13579b'><input autofocus>";
    fs::write(&page, format!("<title>Page</title><script>{script}</script>{content}")).unwrap();
    let mut command = gate.command("firefox-esr");
    command.arg(format!("file://{}", page.display())).env("HOME", &display.dir).env("LOGNAME", &user);
    command.env("MOZ_DISABLE_CONTENT_SANDBOX", "1").env("XDG_RUNTIME_DIR", &display.dir).stdout(Stdio::null());
    let _browser = Running(command.spawn().expect("firefox-esr is installed"));
    let window = appears(&mut display, "[ff] Page");
    until("the page is drawn", || pixels(&mut display, window, [0x9b, 0x57, 0x13]) > 10_000);
    xdotool(&display, &["type", "abc"]);
    until("it is typed into", || !titled(&mut display.admin, "[ff] Pageabc").is_empty());
    let asked = display.admin.atom("_MOZILLA_COMMANDLINE");
    assert!(display.admin.text(other, asked).unwrap().is_empty(), "the other one is left alone");
}

/// How many of a window's pixels have a colour: blue, green, red.
fn pixels(display: &mut Display, window: u32, colour: [u8; 3]) -> usize {
    let size = display.admin.ask(14, 0, &[window]).unwrap();
    let picture = display.admin.ask(73, 2, &[window, 0, crate::x::u32_at(&size, 16), !0]).unwrap_or_default();
    picture.get(32..).unwrap_or_default().chunks_exact(4).filter(|pixel| pixel[..3] == colour).count()
}

/// A window of the container that has the keyboard: the person works in it.
fn at_work(display: &mut Display, gate: &Gate) -> X {
    let mut x = gate.connect();
    let window = x.shown((0, 0, 50, 50));
    display.admin.focus(window);
    x
}

fn copy(mut xclip: Command, text: &[u8]) -> Running {
    let mut owner = xclip.args(["-quiet", "-selection", "clipboard"]).stdin(Stdio::piped()).spawn().unwrap();
    owner.stdin.take().unwrap().write_all(text).unwrap();
    Running(owner)
}

fn paste(mut xclip: Command) -> Vec<u8> {
    xclip.args(["-o", "-selection", "clipboard"]).output().expect("xclip is installed").stdout
}

fn copied_inside_is_pasted_outside() {
    let mut display = Display::start();
    let gate = display.gate("ff");
    let clipboard = display.admin.atom("CLIPBOARD");
    // While the person works elsewhere, nobody's clipboard changes.
    let sneaky = copy(gate.command("xclip"), b"sneaky");
    until("inside it can be pasted", || paste(gate.command("xclip")) == b"sneaky");
    assert_eq!(display.admin.owner(clipboard), 0);
    drop(sneaky);
    let _work = at_work(&mut display, &gate);
    let _owner = copy(gate.command("xclip"), b"from inside");
    until("it is offered", || display.admin.owner(clipboard) != 0);
    assert_eq!(paste(display.command("xclip")), b"from inside");
}

fn copied_outside_is_pasted_inside_when_asked() {
    let display = Display::start();
    let mut gate = display.gate("ff");
    let _owner = copy(display.command("xclip"), b"from outside");
    until("it is there", || paste(display.command("xclip")) == b"from outside");
    assert_eq!(paste(gate.command("xclip")), b"");
    assert_eq!(gate.say("paste"), "ok");
    assert_eq!(paste(gate.command("xclip")), b"from outside");
    // Once: what is copied later is not pasted with it.
    let _later = copy(display.command("xclip"), b"later");
    until("it is there", || paste(display.command("xclip")) == b"later");
    assert_eq!(paste(gate.command("xclip")), b"from outside");
}

fn both_ways_if_wanted() {
    let mut display = Display::start();
    let mut gate = Gate::start(&display, "ff", Clipboard::Both);
    let _owner = copy(display.command("xclip"), b"from outside");
    until("it can be pasted inside", || paste(gate.command("xclip")) == b"from outside");
    let _work = at_work(&mut display, &gate);
    let _inside = copy(gate.command("xclip"), b"from inside");
    until("and the other way", || paste(display.command("xclip")) == b"from inside");
    assert_eq!(gate.say("clipboard off"), "ok");
    assert_ne!(paste(display.command("xclip")), b"from inside");
}

fn within_a_container_copying_needs_nobody() {
    let display = Display::start();
    let gate = Gate::start(&display, "ff", Clipboard::Off);
    let _owner = copy(gate.command("xclip"), b"inside");
    until("inside it can be pasted", || paste(gate.command("xclip")) == b"inside");
    let other = display.gate("other");
    assert_eq!(paste(other.command("xclip")), b"");
    assert_eq!(paste(display.command("xclip")), b"");
}

fn pictures_of_megabytes_are_copied() {
    let mut display = Display::start();
    let mut gate = display.gate("ff");
    let _work = at_work(&mut display, &gate);
    let big: Vec<u8> = (0..3_000_000u32).map(|at| b'a' + (at % 23) as u8).collect();
    let clipboard = display.admin.atom("CLIPBOARD");
    let inside = copy(gate.command("xclip"), &big);
    until("it is offered", || display.admin.owner(clipboard) != 0);
    assert!(paste(display.command("xclip")) == big, "outwards");
    drop(inside);
    let _outside = copy(display.command("xclip"), &big);
    until("it is there", || paste(display.command("xclip")) == big);
    assert_eq!(gate.say("paste"), "ok");
    assert!(paste(gate.command("xclip")) == big, "inwards");
}

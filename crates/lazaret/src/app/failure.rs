//! What programs say when the level they are shown on is not enough for them.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use lazaret_config::{Display, Name};

use super::Screens;
use crate::relay::Beside;

/// What a program said last; more is not remembered.
const MOST: usize = 16 << 10;

/// The end of what a program has said on a terminal.
#[derive(Debug, Default)]
pub(super) struct Overheard(VecDeque<u8>);

impl Overheard {
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.0.make_contiguous()).into_owned()
    }
}

impl Beside for Overheard {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn until_due(&self) -> Option<Duration> {
        None
    }

    fn see_to_it(&mut self) {}

    fn overhear(&mut self, bytes: &[u8]) {
        self.0.extend(bytes.iter().skip(bytes.len().saturating_sub(MOST)));
        let over = self.0.len().saturating_sub(MOST);
        self.0.drain(..over);
    }
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// A part of X that the server keeps from programs it does not trust.
    Extension(&'static str),
    /// An X server at all, beside a compositor.
    Server,
    /// Something that compositors have for some programs, and the gate for none.
    Privilege,
}

/// Words that programs and their libraries say, and what is missing then. The first that fits counts.
const SAID: &[(&str, Lack)] = &[
    // GTK 4
    ("XInput2 support not found", Lack::Extension("XInput")),
    ("XInput extension not available", Lack::Extension("XInput")),
    ("extension \"XInputExtension\" missing", Lack::Extension("XInput")),
    // glxgears and others that draw by OpenGL
    ("couldn't get an RGB, Double-buffered visual", Lack::Extension("GLX")),
    ("extension \"GLX\" missing", Lack::Extension("GLX")),
    ("unable to open display with GLX", Lack::Extension("GLX")),
    ("GLX extension not found", Lack::Extension("GLX")),
    ("GLX is not supported", Lack::Extension("GLX")),
    ("Could not initialize GLX", Lack::Extension("GLX")),
    ("extension \"RANDR\" missing", Lack::Extension("RANDR")),
    ("extension \"XTEST\" missing", Lack::Extension("XTEST")),
    ("extension \"MIT-SHM\" missing", Lack::Extension("MIT-SHM")),
    ("BadAccess (attempt to access private resource denied)", Lack::Extension("something")),
    ("BadRequest (invalid request code or no such operation)", Lack::Extension("an extension")),
    // X programs in a session without an X server for them
    ("annot open display", Lack::Server),
    ("an't open display", Lack::Server),
    ("nable to open display", Lack::Server),
    ("ould not open display", Lack::Server),
    ("could not connect to display", Lack::Server),
    ("Missing X server or $DISPLAY", Lack::Server),
    // programs that watch or steer a Wayland session
    ("compositor doesn't support", Lack::Privilege),
    ("ompositor does not support", Lack::Privilege),
    ("invalid global (", Lack::Privilege),
];

/// What would help a program that has failed and said this. `None` where the level is not to blame.
pub(super) fn advice(name: &Name, program: &str, level: Display, screens: Screens, said: &str) -> Option<String> {
    let (_, lack) = SAID.iter().find(|(words, _)| said.contains(words))?;
    let change = |level: &str| format!("lazaret config {name} set desktop.display={level}; lazaret restart {name}");
    match (lack, level) {
        (Lack::Extension(what), Display::Isolated) if screens.x11.is_some() => Some(format!(
            "`{program}` needs {what} of the X server, which programs of `{name}` do not have; on a server of their \
             own, in one window, they do: {}",
            change("nested")
        )),
        (Lack::Server, Display::Isolated) if screens.x11.is_none() => Some(format!(
            "`{program}` needs an X server, and that of this session (Xwayland) can't keep programs from each other; on \
             a server of their own, in one window, they can run: {}",
            change("nested")
        )),
        (Lack::Privilege, Display::Isolated | Display::Nested) if screens.wayland => Some(format!(
            "`{program}` wants to watch or steer the session, which programs of `{name}` may not; only \
             desktop.display=trusted would let it, and every other program of `{name}` with it"
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(level: Display, wayland: bool, x11: bool, said: &str) -> Option<String> {
        let screens = Screens { wayland, x11: x11.then_some(0) };
        advice(&"ff".parse().unwrap(), "prog", level, screens, said)
    }

    #[test]
    fn the_level_that_would_work_is_named() {
        let gtk = "(x): Gdk-ERROR: XInput2 support not found on display\nTrace/breakpoint trap";
        let said = on(Display::Isolated, false, true, gtk).unwrap();
        assert!(said.contains("XInput") && said.contains("set desktop.display=nested; lazaret restart ff"), "{said}");
        assert_eq!(on(Display::Nested, false, true, gtk), None, "that level has it");
        assert_eq!(on(Display::Isolated, false, true, "no such file"), None);

        let xterm = "xterm: Xt error: Can't open display:";
        assert!(on(Display::Isolated, true, false, xterm).unwrap().contains("Xwayland"));
        assert_eq!(on(Display::Isolated, false, true, xterm), None, "there is one");
        assert!(on(Display::Isolated, true, false, "compositor doesn't support wlr-screencopy-unstable-v1").is_some());
    }

    #[test]
    fn only_the_end_is_remembered() {
        let mut heard = Overheard::default();
        heard.overhear(&[b'a'; MOST]);
        heard.overhear(b"end");
        assert!(heard.text().len() == MOST && heard.text().ends_with("aend"));
        heard.overhear(&[b'b'; 3 * MOST]);
        assert_eq!(heard.text(), "b".repeat(MOST));
    }
}

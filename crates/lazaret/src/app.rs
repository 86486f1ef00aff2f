//! Applications: programs of a container on a person's screen.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_base::{Error, Kind, Result, error};
use lazaret_config::{Config, Display, Name};
use lazaret_desktop::{Session, follow, fonts};
use lazaret_runtime::attach;
use lazaret_runtime::plan::Bind;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};

use crate::bus;
use crate::exec::{self, Running, running};
use crate::gate;
use crate::keeper::Ended;
use crate::launcher;
use crate::recover::recover_locked;
use crate::start::start_if_stopped;
use crate::store::{DOOR, Record, Store};

mod failure;
mod inner;
use failure::Overheard;

/// Where programs look for X servers (X(7)).
const X11: &str = "/tmp/.X11-unix";
/// Names of locales stand in the first part of glibc's archive of them (locale/locarchive.h).
const BEGINNING_OF_ARCHIVE: usize = 1 << 20;

/// What to run.
pub struct App<'a> {
    /// In which container. It is started if it does not run.
    pub name: &'a Name,
    /// The program and its arguments, or the arguments of the entry.
    pub words: Vec<String>,
    /// The entry of the container's menu that says which program it is.
    pub entry: Option<String>,
    /// On whose screen.
    pub session: &'a Session,
    /// Whether nobody waits for its end.
    pub detach: bool,
    /// Variables beside those that follow from the session.
    pub environment: Vec<(String, String)>,
}

/// Runs an application. How it ended comes back, or nothing if nobody waits for it.
///
/// # Errors
///
/// What is missing of the session, of the container's configuration, or of its programs; with what to do about it.
pub fn app(
    store: &Store,
    app: &App<'_>,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<Option<Ended>> {
    let name = app.name;
    store.require(name)?;
    if store.document(name)?.config().desktop.display == Display::None {
        return Err(no_display(name, "set"));
    }
    // Without a session there is no need to start anything.
    let level = store.document(name)?.config().desktop.display;
    if !has_compositor(app.session) {
        app.session.display()?;
        if level == Display::Nested {
            gate::installed()?;
        }
    }
    let begins = start_if_stopped(store, name, &variable, say)?;
    let (running, screens, plays, has_bus) = {
        let _lock = store.lock(name)?;
        recover_locked(store, name)?;
        let running = running(store, name)?;
        if running.config.desktop.display == Display::None {
            return Err(no_display(name, "restart"));
        }
        let screens = screens(store, name, &running, app.session, &variable)?;
        // A program is shown without sound rather than not at all.
        let plays = running.config.desktop.sound.plays()
            && gate::ensure_sound(store, name, &running, app.session).unwrap_or_else(|e| {
                say(&format!("there is no sound: {e}"));
                false
            });
        let has_bus = bus::ensure(store, name, &running, app.session).map(|()| true).unwrap_or_else(|e| {
            say(&format!("there is no bus: {e}"));
            false
        });
        (running, screens, plays, has_bus)
    };
    let root = root_of(&running);
    let knows = |locale: &str| root.as_ref().is_ok_and(|root| has_locale(root.as_fd(), locale));
    if let Some(lang) = app.session.variable("LANG").filter(|lang| begins && !knows(lang)) {
        say(&format!("`{name}` has no locale `{lang}`: its programs speak English"));
    }
    let words = match &app.entry {
        Some(id) => launcher::command_of(store, name, id, &app.words)?,
        None => app.words.clone(),
    };
    let command = attach::Command {
        words: words.clone(),
        user: running.config.desktop.user.as_ref().map(ToString::to_string),
        environment: environment(app, &running, screens, [plays, has_bus], knows),
        runtime_directory: true,
        ..attach::Command::default()
    };
    let ran = match app.detach {
        true => exec::begin(store, name, &command, &variable).map(|()| None),
        false => {
            let mut heard = Overheard::default();
            let ended = exec::exec_beside(store, name, &command, stdio, &variable, Some(&mut heard));
            let program = words.first().map_or("", String::as_str);
            let failed = ended.as_ref().is_ok_and(|ended| ended.status() != 0);
            let level = running.config.desktop.display;
            let advice = failed.then(|| failure::advice(name, program, level, screens, &heard.text())).flatten();
            advice.into_iter().for_each(|advice| say(&advice));
            ended.map(Some)
        }
    };
    ran.map_err(|e| explained(e, name, &words, root))
}

pub(crate) fn no_display(name: &Name, act: &str) -> Error {
    let hint = match act {
        "set" => format!("give it one: lazaret config {name} set desktop.display=isolated; lazaret restart {name}"),
        _ => format!("it has one from its next start on: lazaret restart {name}"),
    };
    error(format!("`{name}` has no display")).kind(Kind::Invalid).hint(hint)
}

/// What a program can be shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Screens {
    wayland: bool,
    /// The number of an X display.
    x11: Option<u32>,
}

fn has_compositor(session: &Session) -> bool {
    // Root has no business on a compositor; see the gate.
    session.person.uid != 0 && session.wayland().is_some_and(|socket| std::fs::symlink_metadata(socket).is_ok())
}

/// Opens what the session has: both doors where there are two.
fn screens(
    store: &Store,
    name: &Name,
    running: &Running,
    session: &Session,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Screens> {
    let wayland = gate::ensure_wayland(store, name, running, session)?;
    let x11 = match (wayland, running.config.desktop.display) {
        (false, _) => true,
        // The server beside a compositor is Xwayland, which trusts all alike; X programs go without it.
        (true, Display::Isolated) => gate::can_isolate(session),
        (true, Display::Nested) if session.display().is_err() || gate::installed().is_err() => {
            inner::ensure(store, name, running, variable)?;
            return Ok(Screens { wayland, x11: Some(inner::DISPLAY) });
        }
        (true, _) => session.display().is_ok(),
    };
    if x11 {
        gate::ensure(store, name, running, session)?;
    }
    Ok(Screens { wayland, x11: x11.then_some(gate::DISPLAY) })
}

/// Variables of a program of the desktop. What the configuration says counts before what follows from the session.
fn environment(
    app: &App<'_>,
    running: &Running,
    screens: Screens,
    [plays, has_bus]: [bool; 2],
    knows: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    all.extend(screens.x11.map(|number| ("DISPLAY".to_owned(), format!(":{number}"))));
    if screens.wayland {
        all.extend(gate::variables().map(|(name, value)| (name.to_owned(), value)));
    }
    // There is no accessibility bus, which programs of GTK would wait for.
    all.push(("NO_AT_BRIDGE".into(), "1".into()));
    if matches!(running.config.desktop.display, Display::Trusted | Display::Nested) {
        // Ids of System V's shared memory mean other segments to the server, or none.
        all.extend(["QT_X11_NO_MITSHM", "_X11_NO_MITSHM"].map(|name| (name.to_owned(), "1".to_owned())));
    }
    if plays {
        all.push(("PULSE_SERVER".into(), format!("unix:{DOOR}/pulse/native")));
    }
    if has_bus {
        all.extend(bus::environment(&running.config));
    }
    all.extend(follow(app.session, knows));
    all.retain(|(key, _)| !running.config.env.contains_key(key));
    all.extend(app.environment.iter().cloned());
    all
}

/// The container's root directory, as its init has it. Nothing is opened below it by a name that could lead out.
pub(crate) fn root_of(running: &Running) -> Result<OwnedFd> {
    let path = format!("/proc/{}/root", running.state.init);
    let root = openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    // The number is still the init's: its descriptor says that it lives.
    let mut fds = [rustix::event::PollFd::new(&running.init, rustix::event::PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))? {
        0 => Ok(root),
        _ => Err(error("its init has ended").kind(Kind::Stopped)),
    }
}

pub(crate) fn look(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = path.trim_start_matches('/');
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

pub(crate) fn is_there(root: BorrowedFd<'_>, path: &str) -> bool {
    look(root, path, OFlags::PATH).is_ok()
}

/// Whether the container's C library knows a locale: as a directory, or in the archive.
pub(crate) fn has_locale(root: BorrowedFd<'_>, locale: &str) -> bool {
    if matches!(locale, "C" | "POSIX" | "C.UTF-8" | "C.utf8") {
        return true;
    }
    let Some(known) = as_filed(locale) else { return false };
    if is_there(root, &format!("/usr/lib/locale/{known}")) {
        return true;
    }
    let Ok(file) = look(root, "/usr/lib/locale/locale-archive", OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    else {
        return false;
    };
    let is_file = fstat(&file).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::RegularFile);
    let mut beginning = Vec::new();
    let read = std::io::Read::take(File::from(file), BEGINNING_OF_ARCHIVE as u64);
    let name = [known.as_bytes(), b"\0"].concat();
    is_file
        && std::io::Read::read_to_end(&mut { read }, &mut beginning).is_ok()
        && beginning.windows(name.len()).any(|window| window == name)
}

/// A locale as glibc files it: `de_DE.UTF-8` is `de_DE.utf8` there. `None` for what is no name.
fn as_filed(locale: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.@".contains(c);
    if locale.is_empty() || locale.len() > 64 || !locale.chars().all(good) || locale.starts_with('.') {
        return None;
    }
    let (rest, modifier) = locale.split_once('@').map_or((locale, String::new()), |(rest, m)| (rest, format!("@{m}")));
    Some(match rest.split_once('.') {
        Some((language, codeset)) => {
            let codeset: String = codeset.chars().filter(char::is_ascii_alphanumeric).collect();
            format!("{language}.{}{modifier}", codeset.to_ascii_lowercase())
        }
        None => locale.to_owned(),
    })
}

/// Managers of packages, and how they are asked for one.
const PACKAGE_MANAGERS: &[(&str, &str)] = &[
    ("/usr/bin/apt-get", "apt-get install -y"),
    ("/sbin/apk", "apk add"),
    ("/usr/bin/dnf", "dnf install -y"),
    ("/usr/bin/pacman", "pacman -S --noconfirm"),
    ("/usr/bin/zypper", "zypper install -y"),
    ("/usr/bin/xbps-install", "xbps-install -Sy"),
];

/// The manager of packages inside, by its path, and how it is asked for one.
pub(crate) fn manager(root: BorrowedFd<'_>) -> Option<(&'static str, &'static str)> {
    PACKAGE_MANAGERS.iter().find(|(path, _)| is_there(root, path)).copied()
}

/// What went wrong with a program of a running container, and what can be done about it inside.
pub fn with_advice(store: &Store, e: Error, name: &Name, words: &[String]) -> Error {
    explained(e, name, words, running(store, name).and_then(|running| root_of(&running)))
}

/// What went wrong with a program, and what can be done about it inside this container.
fn explained(e: Error, name: &Name, words: &[String], root: Result<OwnedFd>) -> Error {
    let program = words.first().map_or("", String::as_str);
    if e.what() != Kind::CommandNotFound || program.contains('/') {
        return e;
    }
    let hint = match root.ok().and_then(|root| manager(root.as_fd())) {
        Some((_, install)) => format!("install it inside: lazaret exec {name} -- {install} {program}"),
        None => format!("`{name}` has no such program, and no package manager that is known here"),
    };
    // In the place of what can be said of any container.
    error(e.to_string()).kind(e.what()).hint(hint)
}

// --- at the start of a container ---

/// What of the host is shown to a container with a display, as the plan wants it.
pub(crate) fn shown(store: &Store, name: &Name, config: &Config, record: &Record) -> Vec<Bind> {
    if config.desktop.display == Display::None {
        return Vec::new();
    }
    let session = store.session(name);
    let mut shown = vec![
        Bind { source: session.clone(), target: PathBuf::from(DOOR) },
        Bind { source: session.join("x11"), target: PathBuf::from(X11) },
    ];
    // An image of the host's own programs has them already.
    let has = |target: &Path| record.image.binds.iter().any(|bind| target.starts_with(&bind.target));
    let fonts = fonts().into_iter().filter(|fonts| !has(&fonts.target));
    shown.extend(fonts.map(|fonts| Bind { source: fonts.source, target: fonts.target }));
    shown
}

/// The user that a container with a display has.
pub(crate) fn user(config: &Config) -> Option<String> {
    let user = config.desktop.user.as_ref().filter(|_| config.desktop.display != Display::None);
    user.map(ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locales_are_found_as_glibc_files_them() {
        assert_eq!(as_filed("de_DE.UTF-8").as_deref(), Some("de_DE.utf8"));
        assert_eq!(as_filed("de_DE.ISO-8859-15@euro").as_deref(), Some("de_DE.iso885915@euro"));
        assert_eq!(as_filed("de_DE@euro").as_deref(), Some("de_DE@euro"));
        for none in ["", "../x", "a/b", "a b"] {
            assert_eq!(as_filed(none), None, "{none}");
        }
    }
}

//! A server of a container's own, in one window of the session's: for programs that an X server that distrusts them
//! does not give what they need.
//!
//! Xephyr runs on the host as the session's user, as any program of theirs. The gate before it lets everything through,
//! since there is nothing on it that is not the container's. It holds a connection to it for as long as it lives; when
//! that is gone the server ends by itself, so nobody has to remember it.

use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_desktop::Session;
use lazaret_gate::x11::Cookie;
use lazaret_gate::x11::authority::{self, Entry};
use rustix::fs::MemfdFlags;
use rustix::rand::{GetRandomFlags, getrandom};

/// The server.
const SERVER: &str = "Xephyr";
/// Where it may be: not where the caller's PATH says, which may be the person's own directory.
const PLACES: &[&str] = &["/usr/bin", "/usr/local/bin", "/usr/X11R6/bin", "/run/current-system/sw/bin"];
/// How large its window is at first; it can be resized.
const SIZE: &str = "1280x800";

/// A server that has begun.
pub(super) struct Nested {
    pub number: u32,
    pub cookie: Cookie,
}

/// Where the server is installed.
///
/// # Errors
///
/// [`Kind::Missing`], with the package to install.
pub(crate) fn installed() -> Result<PathBuf> {
    let all = PLACES.iter().map(|dir| Path::new(dir).join(SERVER));
    all.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        error(format!("`{SERVER}`, which shows a screen in a window, is not installed on this host"))
            .kind(Kind::Missing)
            .hint("install it: it is in the package xserver-xephyr (Debian, Ubuntu), xorg-x11-server-Xephyr (Fedora) or xorg-server-xephyr (Arch)")
    })
}

/// Begins a server on the session's display. It ends when the last connection to it does.
pub(super) fn begin(name: &Name, session: &Session) -> Result<Nested> {
    let (program, outer) = (installed()?, session.display()?);
    let mut cookie = [0; 16];
    getrandom(&mut cookie, GetRandomFlags::empty())?;
    let cookie = Cookie(cookie);
    // A file without a name, which nobody else finds.
    let file = rustix::fs::memfd_create("authority", MemfdFlags::empty())?;
    rustix::io::write(&file, &authority::write(&[Entry::wild(&cookie)]))?;

    let mut command = Command::new(program);
    command
        .args(["-displayfd", "1", "-screen", SIZE, "-resizeable", "-nolisten", "tcp", "-terminate", "-title"])
        .arg(format!("[{name}]"))
        .arg("-auth")
        .arg(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("DISPLAY", format!(":{}", outer.number))
        .envs(session.authority().map(|path| ("XAUTHORITY", path)))
        .current_dir("/")
        .uid(session.person.uid)
        .gid(session.person.gid)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let beginning = || format!("beginning {SERVER} on display :{}", outer.number);
    let mut server = command.spawn().with_context(beginning)?;
    let mut line = String::new();
    let said = server.stdout.take().map(|said| BufReader::new(said).read_line(&mut line));
    said.transpose().with_context(beginning)?;
    match line.trim().parse() {
        Ok(number) => Ok(Nested { number, cookie }),
        Err(_) => {
            // Its end is near, and is reaped here.
            let status = server.wait()?;
            Err(error(format!("it has ended: {status}")).hint("does a program of your own show on this display?"))
                .with_context(beginning)
        }
    }
}

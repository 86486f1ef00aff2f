//! Who opens addresses outside: a process of the person's beside the bus gate, which asks them first.
//!
//! It hears addresses, a line each, from the gate and from a pipe in the container's door, where a script of ours puts
//! what programs open. Only addresses of the web count. What is said while it asks is lost, not kept.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lazaret_base::{Context, Result, read_bounded};
use lazaret_config::OpenUrls;
use lazaret_gate::bus::address;
use lazaret_sys::process::{Cloned, clone, close_copies, exit_now, set_command_line};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, mknodat, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, pidfd_open, umask};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::bus::{self, Wanted};
use crate::gate::Order;
use crate::store::DOOR;

/// How its process is called.
const SERVICE: &str = "open";
/// The pipe in the door.
const PIPE: &str = "open";
/// How long a person thinks. No answer is no.
const PATIENCE: Duration = Duration::from_secs(60);
/// How many addresses are opened, or asked about, in a while.
const MOST_IN_A_WHILE: usize = 6;
const WHILE: Duration = Duration::from_secs(10);
/// A line that is longer is none.
const LONGEST_LINE: usize = address::MOST + 32;
/// How much of an address is shown to a person.
const SHOWN: usize = 300;

/// What programs inside call: it hands an address of the web to the pipe. The pipe is opened for both, so that nobody
/// waits who opens one while nobody listens.
const SCRIPT: &str = "\
#!/bin/sh
# Opens addresses of the web outside the container, if its person agrees.
case $1 in
http://* | https://* | HTTP://* | HTTPS://*) printf '%s\\n' \"$1\" 1<> DOOR/bus/open ;;
*)
	echo \"only addresses of the web are opened outside: $1\" >&2
	exit 4
	;;
esac
";

/// The script, for the door's place.
pub(crate) fn script() -> String {
    SCRIPT.replace("DOOR", DOOR)
}

/// Makes the pipe in the bus's directory anew, and opens it: for both, so that it never ends.
pub(crate) fn addresses(dir: &OwnedFd) -> Result<OwnedFd> {
    let making = || "making the pipe for addresses";
    let new = ".open";
    let _ = unlinkat(dir, new, AtFlags::empty());
    let before = umask(Mode::empty());
    let made = mknodat(dir, new, FileType::Fifo, Mode::from_raw_mode(0o666), 0);
    umask(before);
    made.with_context(making)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = openat(dir, new, flags, Mode::empty()).with_context(making)?;
    renameat(dir, new, dir, PIPE).with_context(making)?;
    Ok(pipe)
}

/// Begins it as a process of the person's. The line on which it is told comes back; it ends with that, or with `life`.
/// What was `inherited` is none of its business. The caller has one thread.
pub(crate) fn begin(
    order: &Order,
    wanted: &Wanted,
    pipe: OwnedFd,
    life: &OwnedFd,
    inherited: [&OwnedFd; 3],
) -> Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Before there are two of them: neither is taken for another gate by its name.
    let _ = set_command_line(&["lazaret", bus::SERVICE, &order.name]);
    match clone(0, None).context("beginning who opens addresses")? {
        Cloned::Parent(_) => Ok(ours),
        Cloned::Child => {
            drop(ours);
            // Whoever waits for their end waits for the gate's alone.
            close_copies(&inherited.map(AsFd::as_fd));
            let person = become_person(order, &wanted.person);
            let _ = set_command_line(&["lazaret", SERVICE, &order.name]);
            if person.is_ok() {
                let policy = wanted.open_urls.parse().unwrap_or(OpenUrls::Deny);
                let environment = wanted.environment.clone();
                let recent = Vec::new();
                let opener = Opener { name: order.name.clone(), policy, environment, recent, children: Vec::new() };
                opener.serve(&theirs, &pipe, life);
            }
            exit_now(0)
        }
    }
}

/// The person's ids and groups. Whatever root may is gone with them.
fn become_person(order: &Order, name: &str) -> Result<()> {
    let text = File::open("/etc/group").map_err(lazaret_base::Error::from).and_then(|file| read_bounded(file, 4 << 20));
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let (uid, gid) = (Uid::from_raw(order.uid), Gid::from_raw(order.gid));
    set_thread_groups(&groups(&text, name))?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// The groups that list a person (group(5)).
fn groups(text: &str, name: &str) -> Vec<Gid> {
    let of = |line: &str| {
        let [_, _, gid, members] = line.split(':').collect::<Vec<_>>()[..] else { return None };
        members.split(',').any(|member| member == name).then(|| gid.parse().ok().map(Gid::from_raw)).flatten()
    };
    text.lines().filter_map(of).collect()
}

struct Opener {
    name: String,
    policy: OpenUrls,
    environment: Vec<(String, String)>,
    /// When the last ones were asked for.
    recent: Vec<Instant>,
    children: Vec<Child>,
}

/// How somebody is asked: the program, its arguments with `TEXT` for the question, and what it prints for yes, if the
/// status does not say it. What is typed by the way says no.
const QUESTIONS: &[(&str, &[&str], Option<&str>)] = &[
    (
        "zenity",
        &["--question", "--default-cancel", "--no-markup", "--title=Lazaret", "--ok-label=Open", "--text=TEXT"],
        None,
    ),
    ("kdialog", &["--title", "Lazaret", "--warningyesno", "TEXT"], None),
    ("xmessage", &["-center", "-default", "No", "-buttons", "No:1,Open:0", "TEXT"], None),
    ("notify-send", &["--app-name=Lazaret", "--action=open=Open", "--", "Lazaret", "TEXT"], Some("open")),
];

/// What opens an address.
const BROWSERS: &[&[&str]] = &[&["xdg-open"], &["gio", "open"], &["sensible-browser"], &["x-www-browser"]];

impl Opener {
    fn serve(mut self, line: &OwnedFd, pipe: &OwnedFd, life: &OwnedFd) {
        let (mut told, mut piped) = (Vec::new(), Vec::new());
        loop {
            let mut fds = [line, pipe, life].map(|fd| PollFd::new(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let ready = fds.map(|fd| fd.revents());
            if !ready[2].is_empty() {
                return;
            }
            self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
            if !ready[0].is_empty() && !self.read(line, &mut told, life) {
                return;
            }
            if !ready[1].is_empty() && !self.read_pipe(pipe, &mut piped, life) {
                return;
            }
        }
    }

    /// The gate's words. False at its end.
    fn read(&mut self, line: &OwnedFd, left: &mut Vec<u8>, life: &OwnedFd) -> bool {
        let Some(lines) = lines(line, left) else { return false };
        for words in lines {
            match words.split_once(' ') {
                Some(("addresses", policy)) => self.policy = policy.parse().unwrap_or(OpenUrls::Deny),
                Some(("open", address)) => self.wish(address, life),
                _ => {}
            }
        }
        true
    }

    /// What programs have written. What comes while a person is asked is lost.
    fn read_pipe(&mut self, pipe: &OwnedFd, left: &mut Vec<u8>, life: &OwnedFd) -> bool {
        let Some(lines) = lines(pipe, left) else { return false };
        if let Some(address) = lines.first() {
            self.wish(address, life);
        }
        true
    }

    /// Somebody wants an address opened.
    fn wish(&mut self, text: &str, life: &OwnedFd) {
        let Some(address) = address::checked(text) else { return };
        let now = Instant::now();
        self.recent.retain(|then| now.duration_since(*then) < WHILE);
        if self.policy == OpenUrls::Deny || self.recent.len() >= MOST_IN_A_WHILE {
            return;
        }
        self.recent.push(now);
        if self.policy == OpenUrls::Allow || self.agrees(address, life) {
            self.open(address);
        }
    }

    /// A program of the person's by its name, with the session's environment.
    fn program(&self, name: &str) -> Option<Command> {
        let path = self.environment.iter().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_str())?;
        let is_program = |file: &PathBuf| {
            fs::metadata(file).is_ok_and(|status| status.is_file() && status.permissions().mode() & 0o111 != 0)
        };
        let found = std::env::split_paths(OsStr::new(path)).map(|dir| dir.join(name)).find(is_program)?;
        let mut command = Command::new(found);
        command.env_clear().envs(self.environment.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Some(command)
    }

    /// Asks the person by what is there to ask with. Nobody to ask, no answer, and an end meanwhile are no.
    fn agrees(&self, address: &str, life: &OwnedFd) -> bool {
        let rest = if address.len() > SHOWN { " …" } else { "" };
        let shown = &address[..address.len().min(SHOWN)];
        let text = format!("The container {} wants to open this address:\n\n{shown}{rest}", self.name);
        let asked = QUESTIONS.iter().find_map(|(name, arguments, word)| {
            let mut command = self.program(name)?;
            command.args(arguments.iter().map(|argument| argument.replace("TEXT", &text)));
            if word.is_some() {
                command.stdout(Stdio::piped());
            }
            Some((command.spawn().ok()?, word))
        });
        let Some((mut child, word)) = asked else { return false };
        let thought = Pid::from_raw(child.id().cast_signed())
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .is_some_and(|end| answered(&end, life));
        if !thought {
            // It may have ended by itself just now.
            let _ = child.kill();
        }
        let Ok(status) = child.wait() else { return false };
        let said = child.stdout.take().and_then(|said| read_bounded(said, 4096).ok()).unwrap_or_default();
        let says_yes = word.is_none_or(|word| String::from_utf8_lossy(&said).trim() == word);
        thought && status.success() && says_yes
    }

    fn open(&mut self, address: &str) {
        let browser = BROWSERS.iter().find_map(|words| {
            let mut command = self.program(words[0])?;
            command.args(&words[1..]).arg(address);
            command.spawn().ok()
        });
        self.children.extend(browser);
    }
}

/// Waits until a person has answered. False when time is up, or the container ends.
fn answered(end: &OwnedFd, life: &OwnedFd) -> bool {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(end, PollFlags::IN), PollFd::new(life, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => {}
            Err(_) | Ok(0) => return false,
            Ok(_) => return !fds[0].revents().is_empty(),
        }
    }
}

/// The whole lines that can be read now; `None` at the end. One that is too long takes along what was read with it.
fn lines(from: &OwnedFd, left: &mut Vec<u8>) -> Option<Vec<String>> {
    let mut bytes = [0; 4096];
    loop {
        match rustix::io::read(from, &mut bytes) {
            Ok(0) => return None,
            Ok(n) => left.extend(&bytes[..n]),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => break,
            Err(_) => return None,
        }
        if left.len() > 16 * LONGEST_LINE {
            left.clear();
        }
        if rustix::fs::fcntl_getfl(from).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK)) {
            break;
        }
    }
    let mut lines = Vec::new();
    while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = left.drain(..=end).collect();
        lines.push(String::from_utf8_lossy(&line[..end]).into_owned());
    }
    if left.len() > LONGEST_LINE {
        left.clear();
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_keeps_their_groups() {
        let text = "root:x:0:\nvideo:x:44:bob,ann\naudio:x:29:anna\nbroken:x\nx:x:y:ann\n";
        assert_eq!(groups(text, "ann"), [Gid::from_raw(44)]);
    }

    #[test]
    fn the_script_knows_where_the_pipe_is() {
        assert!(script().contains(&format!("{DOOR}/bus/{PIPE} ")));
    }
}

//! What every verb needs: the installation, and a way to speak.

use std::cell::Cell;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use lazaret::desktop::Person;
use lazaret::image::Sources;
use lazaret::recover::recover;
use lazaret::runtime::spawn::sealed_self;
use lazaret::{Network, Stage, Store};
use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use rustix::fs::{SealFlags, fcntl_get_seals};

use crate::report::Amount;

/// One call of the program.
pub struct Session {
    /// The installation.
    pub store: Store,
    quiet: bool,
    /// Whether a progress line stands on the terminal.
    line: Cell<bool>,
}

impl Session {
    /// By `--root`, `LAZARET_ROOT`, or the system's.
    pub fn new(matches: &ArgMatches) -> Result<Session> {
        let store = match matches.get_one::<PathBuf>("root") {
            Some(root) => Store::at(root)?,
            None => Store::system(),
        };
        Ok(Session { store, quiet: matches.get_flag("quiet"), line: Cell::new(false) })
    }

    /// Refuses anybody but root, and cleans up after processes that were killed.
    pub fn ready(&self) -> Result<&Store> {
        if !rustix::process::geteuid().is_root() {
            let typed: Vec<_> = std::env::args().collect();
            return Err(error("only root can keep containers")
                .kind(Kind::Missing)
                .hint(format!("sudo {}", typed.join(" "))));
        }
        recover(&self.store)?;
        Ok(&self.store)
    }

    /// Before entering a privileged container: goes on from a sealed copy of this program in memory, since root inside
    /// could write to the file that a process which enters comes from (CVE-2019-5736). Other containers have no right
    /// to it.
    pub fn out_of_reach_of(&self, name: &Name) -> Result<()> {
        let own = File::open("/proc/self/exe").context("looking at our own program")?;
        let sealed = fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
        if sealed || !self.store.record(name).is_ok_and(|record| record.ids.is_none()) {
            return Ok(());
        }
        let copy = sealed_self()?;
        let mut arguments = std::env::args_os();
        let called = arguments.next().unwrap_or_default();
        let mut again = Command::new(format!("/proc/self/fd/{}", copy.as_raw_fd()));
        Err(again.arg0(called).args(arguments).exec()).context("going on from a copy in memory")
    }

    /// Where images come from: the servers of `remotes.toml`, reached as the caller's variables say, with the caller's
    /// logins.
    pub fn sources(&self) -> Result<Sources> {
        let person = Person::caller(rustix::process::geteuid().as_raw(), variable)?;
        let logins = lazaret::logins(&person, variable);
        Sources::of(&self.store, Network { logins, ..network(variable) })
    }

    /// Talk, for people: on standard error.
    pub fn say(&self, words: &str) {
        self.clear_line();
        if !self.quiet {
            // Nobody may be listening.
            let _ = writeln!(std::io::stderr(), "{words}");
        }
    }

    /// A progress line for long work, on a terminal only. `total` is how much there is to write, where that is known.
    pub fn progress(&self, total: Option<u64>) -> impl FnMut(lazaret::Progress) + '_ {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let (mut stage, mut begun, mut base) = (None, Instant::now(), 0);
        let mut last = begun;
        move |progress: lazaret::Progress| {
            if stage != Some(progress.stage) {
                (stage, begun, base, last) = (Some(progress.stage), Instant::now(), progress.read, Instant::now());
                if progress.stage == Stage::Waiting {
                    self.say("another process is getting it already; waiting for that one");
                }
            }
            let total = match progress.stage {
                Stage::Waiting => return,
                Stage::Fetching { total } => Some(total),
                Stage::Writing => total,
            };
            let done = total.is_some_and(|total| progress.read >= total);
            if !shown
                || begun.elapsed() < Duration::from_millis(300)
                || (!done && last.elapsed() < Duration::from_millis(100))
            {
                return;
            }
            last = Instant::now();
            let amount = Amount { done: progress.read, before: base, total, entries: progress.entries };
            let line = crate::report::bar(&amount, begun.elapsed());
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
            self.line.set(true);
        }
    }

    /// Takes an unfinished progress line away.
    fn clear_line(&self) {
        if self.line.take() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.clear_line();
    }
}

/// How the network is reached, as curl(1) and others take it from the environment. `HTTP_PROXY` in capitals is not
/// looked at: a program that serves the web has it from whoever asks.
fn network(variable: impl Fn(&str) -> Option<String>) -> Network {
    let first = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
    Network {
        http_proxy: first(&["http_proxy", "all_proxy", "ALL_PROXY"]),
        https_proxy: first(&["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
        no_proxy: first(&["no_proxy", "NO_PROXY"]).unwrap_or_default(),
        ..Network::default()
    }
}

/// The caller's environment. Read here and nowhere else.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The person for whom root acts, where sudo or pkexec says so.
pub fn caller() -> Option<u32> {
    ["SUDO_UID", "PKEXEC_UID"].iter().find_map(|name| variable(name)?.parse().ok())
}

/// Where this program is, for others who are to call it.
pub fn own_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("looking for our own program")?;
    if own.exists() {
        return Ok(own);
    }
    // Gone on from memory: it is where the caller found it.
    let called = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let path = variable("PATH").unwrap_or_default();
    let dirs = path.split(':').filter(|_| called.components().count() == 1).map(|dir| PathBuf::from(dir).join(&called));
    let found = dirs.chain(std::path::absolute(&called)).find(|candidate| candidate.is_file());
    found.ok_or_else(|| error("our own program is not where it was").kind(Kind::NotFound))
}

/// The container that a verb is about.
pub fn name(matches: &ArgMatches) -> Result<Name> {
    match matches.get_one::<String>("name") {
        Some(name) => name.parse(),
        None => Err(error("no container is named").kind(Kind::Invalid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_those_of_the_caller() {
        let of = |set: &'static [(&str, &str)]| {
            network(move |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        let network = of(&[("all_proxy", "socks5://a:1"), ("https_proxy", "http://b:2"), ("NO_PROXY", "c")]);
        assert_eq!(network.https_proxy.as_deref(), Some("http://b:2"));
        assert_eq!(network.http_proxy.as_deref(), Some("socks5://a:1"));
        assert_eq!(network.no_proxy, "c");
        assert_eq!(of(&[("HTTP_PROXY", "http://evil:1"), ("https_proxy", "")]), Network::default());
    }
}

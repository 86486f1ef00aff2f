//! What every verb needs: the installation, and a way to speak.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::ArgMatches;
use lazaret::Store;
use lazaret::recover::recover;
use lazaret::runtime::spawn::sealed_self;
use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use rustix::fs::{SealFlags, fcntl_get_seals};

/// One call of the program.
pub struct Session {
    /// The installation.
    pub store: Store,
    quiet: bool,
}

impl Session {
    /// By `--root`, `LAZARET_ROOT`, or the system's.
    pub fn new(matches: &ArgMatches) -> Result<Session> {
        let store = match matches.get_one::<PathBuf>("root") {
            Some(root) => Store::at(root)?,
            None => Store::system(),
        };
        Ok(Session { store, quiet: matches.get_flag("quiet") })
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

    /// Talk, for people: on standard error.
    pub fn say(&self, words: &str) {
        if !self.quiet {
            // Nobody may be listening.
            let _ = writeln!(std::io::stderr(), "{words}");
        }
    }

    /// A progress line for long work, on a terminal only.
    pub fn progress(&self, total: Option<u64>) -> impl FnMut(lazaret::Progress) + '_ {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let begun = Instant::now();
        let mut last = begun;
        move |progress| {
            let done = total.is_some_and(|total| progress.read >= total);
            if !shown
                || begun.elapsed() < Duration::from_millis(300)
                || (!done && last.elapsed() < Duration::from_millis(100))
            {
                return;
            }
            last = Instant::now();
            let line = crate::report::bar(progress.read, total, progress.entries, begun.elapsed());
            let end = if done { "\n" } else { "" };
            let _ = write!(std::io::stderr(), "\r\x1b[K{line}{end}");
        }
    }
}

/// The caller's environment. Read here and nowhere else.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The container that a verb is about.
pub fn name(matches: &ArgMatches) -> Result<Name> {
    match matches.get_one::<String>("name") {
        Some(name) => name.parse(),
        None => Err(error("no container is named").kind(Kind::Invalid)),
    }
}

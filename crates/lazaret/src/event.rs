//! What happens to containers, as lines that anybody (with root's eyes) can follow.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lazaret_base::{Context, Result};
use lazaret_config::Name;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::store::Store;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Milliseconds since 1970.
    pub time: u64,
    /// Whom it happened to.
    pub container: String,
    /// What happened.
    pub what: What,
    /// More, where there is more: an exit status, a new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What can happen to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It was made.
    Created,
    /// Its plan is being carried out.
    Starting,
    /// Its init executes.
    Running,
    /// It was frozen.
    Frozen,
    /// It was thawed.
    Thawed,
    /// Its init has ended; what it used is being given back.
    Stopping,
    /// Nothing of it runs any more.
    Stopped,
    /// It has another name.
    Renamed,
    /// It can be what it is now again; the detail is the label.
    Snapshotted,
    /// It is what it was when a snapshot was taken; the detail is the label.
    RolledBack,
    /// It is gone.
    Destroyed,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            What::Created => "created",
            What::Starting => "starting",
            What::Running => "running",
            What::Frozen => "frozen",
            What::Thawed => "thawed",
            What::Stopping => "stopping",
            What::Stopped => "stopped",
            What::Renamed => "renamed",
            What::Snapshotted => "snapshotted",
            What::RolledBack => "rolledback",
            What::Destroyed => "destroyed",
        })
    }
}

/// The file begins anew at this size; who follows it notices.
const LONGEST: u64 = 1 << 20;

/// Tells an event. Never fails: an event that can't be told must not undo what it tells of.
pub(crate) fn tell(store: &Store, name: &Name, what: What, detail: Option<String>) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let event = Event { time, container: name.to_string(), what, detail };
    let append = |path: &Path| -> std::io::Result<()> {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        if file.metadata()?.len() > LONGEST {
            file.set_len(0)?;
        }
        // One write: lines of several tellers don't mix (O_APPEND of open(2)).
        file.write_all(&line)
    };
    let _ = append(&store.events());
}

/// Follows events as they happen.
pub struct Follow {
    file: File,
    watch: std::os::fd::OwnedFd,
    read: Vec<u8>,
}

impl Follow {
    /// Begins now: what happened before is not told.
    pub fn start(store: &Store) -> Result<Follow> {
        let path = store.events();
        let following = || format!("following `{}`", path.display());
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).with_context(following)?;
        let watch =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).with_context(following)?;
        inotify::add_watch(&watch, &path, inotify::WatchFlags::MODIFY).with_context(following)?;
        file.seek(SeekFrom::End(0)).with_context(following)?;
        Ok(Follow { file, watch, read: Vec::new() })
    }

    /// The events since the last call; waits for the first. Empty after `timeout`, if one is given, and when `line`
    /// has hung up: a keeper that is killed tells nobody.
    pub fn next(&mut self, timeout: Option<std::time::Duration>, line: Option<BorrowedFd<'_>>) -> Result<Vec<Event>> {
        let end = timeout.map(|t| std::time::Instant::now() + t);
        loop {
            let events = self.read_new().context("reading events")?;
            if !events.is_empty() {
                return Ok(events);
            }
            let left = match end.map(|end| end.checked_duration_since(std::time::Instant::now())) {
                Some(None) => return Ok(Vec::new()),
                Some(Some(left)) => {
                    Some(Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) })
                }
                None => None,
            };
            let mut fds = vec![PollFd::new(&self.watch, PollFlags::IN)];
            fds.extend(line.map(|line| PollFd::from_borrowed_fd(line, PollFlags::RDHUP)));
            match poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e).context("waiting for events"),
            }
            if fds.get(1).is_some_and(|line| !line.revents().is_empty()) {
                return self.read_new().context("reading events");
            }
            // What the watch says matters less than that it spoke.
            let mut told = [0u8; 4096];
            while rustix::io::read(&self.watch, &mut told).is_ok_and(|n| n > 0) {}
        }
    }

    fn read_new(&mut self) -> Result<Vec<Event>> {
        if self.file.metadata()?.len() < self.file.stream_position()? {
            self.file.seek(SeekFrom::Start(0))?;
            self.read.clear();
        }
        self.file.read_to_end(&mut self.read)?;
        let whole = self.read.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines: Vec<u8> = self.read.drain(..whole).collect();
        Ok(lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

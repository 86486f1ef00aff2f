//! Whom the host asks for names, followed as it changes.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Result};
use rustix::fs::inotify;
use rustix::io::Errno;

const FILE: &str = "/etc/resolv.conf";

/// The port of DNS.
const DOMAIN: u16 = 53;

/// As many as resolv.conf(5) lets programs use.
const MOST: usize = 3;

/// The host's name servers. Readable when they may have changed.
pub(super) struct Upstream {
    events: OwnedFd,
    watched: BTreeSet<PathBuf>,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// Reads them, and watches from then on.
    pub fn follow() -> Result<Upstream> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let events = inotify::init(flags).context("watching the host's name servers")?;
        let mut upstream = Upstream { events, watched: BTreeSet::new(), servers: Vec::new() };
        upstream.look();
        Ok(upstream)
    }

    /// Who is asked.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// Whether they have changed, after something was readable.
    pub fn changed(&mut self) -> bool {
        let mut bytes = [0; 4096];
        // What has changed is looked at anew, not listened to.
        while let Ok(1..) | Err(Errno::INTR) = rustix::io::read(&self.events, &mut bytes) {}
        let before = std::mem::take(&mut self.servers);
        self.look();
        before != self.servers
    }

    fn look(&mut self) {
        // Watched before it is read: what changes in between is seen.
        for directory in directories(Path::new(FILE)) {
            let flags = inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::CLOSE_WRITE
                | inotify::WatchFlags::DELETE;
            if !self.watched.contains(&directory) && inotify::add_watch(&self.events, &directory, flags).is_ok() {
                self.watched.insert(directory);
            }
        }
        self.servers = servers(&fs::read_to_string(FILE).unwrap_or_default());
    }
}

impl AsFd for Upstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// The directories in which a change of a name changes what a file is, through its links.
fn directories(file: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut at = file.to_owned();
    // As many links as the kernel follows (path_resolution(7)).
    for _ in 0..40 {
        let Some(parent) = at.parent().map(Path::to_owned) else { break };
        found.push(parent.clone());
        match fs::read_link(&at) {
            Ok(to) => at = parent.join(to),
            Err(_) => break,
        }
    }
    found
}

/// The servers that a resolv.conf(5) names. Scopes of link-local addresses are interface names and kept apart by the
/// kernel alone, so such servers are left out.
fn servers(text: &str) -> Vec<SocketAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, DOMAIN))
    };
    text.lines().filter_map(line).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_found_among_other_lines() {
        let text = "# nameserver 1.1.1.1\nsearch home\nnameserver 127.0.0.53\n nameserver fd00::1 # mine\n\
                    nameserver fe80::1%eth0\noptions edns0\nnameserver 9.9.9.9\nnameserver 8.8.8.8\n";
        let found: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53:53", "[fd00::1]:53", "9.9.9.9:53"]);
    }
}

//! Id ranges: each container has 65536 ids of its own, shared with nobody.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_runtime::idmap::COUNT;
use rustix::io::Errno;

use crate::store::{Ids, Store};

/// Ranges come from the upper part of what systemd sets aside for containers (UIDS-GIDS.md of systemd),
/// away from where systemd-nspawn begins.
const FIRST: u32 = 0x4000_0000;
const LAST: u32 = 0x6fff_0000;

/// A line of `/etc/subuid` or `/etc/subgid`: ids that root gave to a user (subuid(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// To whom, by name or number.
    pub user: String,
    /// First id.
    pub start: u32,
    /// How many.
    pub count: u32,
}

impl Given {
    /// Whether a container's range and this one have an id in common.
    pub fn overlaps(&self, start: u32) -> bool {
        u64::from(self.start) < u64::from(start) + u64::from(COUNT)
            && u64::from(start) < u64::from(self.start) + u64::from(self.count)
    }
}

/// What root gave to users. A line that makes no sense gives nothing.
pub fn parse(text: &str) -> Vec<Given> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let (user, start, count) = (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Given { user: user.to_owned(), start, count })
    };
    text.lines().filter(|text| !text.trim_start().starts_with('#')).filter_map(line).collect()
}

/// Reads both files. Absent ones give nothing.
pub fn given() -> Vec<Given> {
    let both = ["/etc/subuid", "/etc/subgid"].map(|file| fs::read_to_string(file).unwrap_or_default());
    both.iter().flat_map(|text| parse(text)).collect()
}

/// Takes the lowest free range for a container. The caller holds the lock of all.
pub fn take(store: &Store, name: &Name) -> Result<Ids> {
    let dir = store.ids();
    // Listed, not tried one after the other: there may be hundreds.
    let (given, taken) = (given(), taken(&dir)?);
    for start in (FIRST..LAST).step_by(COUNT as usize) {
        let free = !taken.contains(&start) && !given.iter().any(|given| given.overlaps(start));
        if free && note(&dir, start, name)? {
            return Ok(Ids { start, count: COUNT });
        }
    }
    Err(error("all id ranges are taken").hint("destroy containers that are not needed any more"))
}

/// The first ids of the ranges that are noted as taken.
fn taken(dir: &Path) -> Result<HashSet<u32>> {
    let listing = || format!("listing the id ranges in `{}`", dir.display());
    let mut taken = HashSet::new();
    for entry in fs::read_dir(dir).with_context(listing)? {
        let name = entry.with_context(listing)?.file_name();
        taken.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(taken)
}

/// Notes a range as taken; `false` if it is. The file's existence is the mark, its making the decision.
fn note(dir: &Path, start: u32, name: &Name) -> Result<bool> {
    let path = dir.join(start.to_string());
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
        Ok(mut file) => {
            let written = file.write_all(name.as_str().as_bytes());
            if written.is_err() {
                let _ = fs::remove_file(&path);
            }
            written.with_context(|| format!("noting the id range {start}")).map(|()| true)
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e).with_context(|| format!("noting the id range {start}")),
    }
}

/// Gives a range back.
pub fn release(store: &Store, ids: Ids) -> Result<()> {
    match fs::remove_file(store.ids().join(ids.start.to_string())) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("giving the id range {} back", ids.start))
        }
        _ => Ok(()),
    }
}

/// Gives ranges back whose container was never finished. The caller holds the lock of all, and nobody is at work
/// on a container that has a range but no name yet.
pub fn release_abandoned(store: &Store) -> Result<()> {
    let mut used: Vec<u32> = Vec::new();
    for name in store.names()? {
        match store.record(&name) {
            Ok(record) => used.extend(record.ids.map(|ids| ids.start)),
            // Destroyed meanwhile, and its range is free.
            Err(e) if e.what() == Kind::NotFound || e.errno() == Some(Errno::NOENT) => {}
            // Whose ids it has can't be told, so none are free.
            Err(_) => return Ok(()),
        }
    }
    for start in taken(&store.ids())?.into_iter().filter(|start| !used.contains(start)) {
        fs::remove_file(store.ids().join(start.to_string())).context("giving an abandoned id range back")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_root_gave_to_a_user_are_not_taken() {
        let given = parse("# comment\nann:100000:65536\nbob:1073741824:10\nbroken\n");
        assert_eq!(given.len(), 2);
        assert!(!given[0].overlaps(FIRST));
        assert!(given[1].overlaps(FIRST));
        assert!(!given[1].overlaps(FIRST + COUNT));
    }
}

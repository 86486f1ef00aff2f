//! Changing what a container may use, while it runs and for the next time.

use lazaret_base::{Context, Result};
use lazaret_config::{Config, Document, Name, Sound, live_changes};
use lazaret_runtime::cgroup::{self, Limit};

use crate::exec::running;
use crate::recover::recover_locked;
use crate::store::Store;
use crate::{cache, device, gate, network, share};

/// What became of a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Keys that hold from now on.
    pub live: Vec<&'static str>,
    /// Keys that hold from the next start on.
    pub at_next_start: Vec<&'static str>,
    /// What the user should know, one sentence each.
    pub notes: Vec<String>,
}

/// Edits a container's configuration, and the limits of one that runs. All of it, or nothing: a limit that
/// the kernel refuses takes the others back, and the file stays as it was.
pub fn edit(store: &Store, name: &Name, edit: impl FnOnce(&mut Document) -> Result<()>) -> Result<Changed> {
    store.require(name)?;
    let _lock = store.lock(name)?;
    recover_locked(store, name)?;
    let mut document = store.document(name)?;
    let before = document.config().clone();
    edit(&mut document)?;
    refuse_other_image(&before, document.config())?;
    let new = document.config().shares.iter().filter(|share| !before.shares.contains(share));
    share::check(store, name, &new.cloned().collect::<Vec<_>>())?;
    let new = document.config().devices.iter().filter(|device| !before.devices.contains(device));
    device::check(name, &new.cloned().collect::<Vec<_>>())?;
    take_effect(store, name, &document)
}

/// Replaces the whole configuration by one that a person wrote. What was there may make no sense.
pub fn replace(store: &Store, name: &Name, document: &Document) -> Result<Changed> {
    store.require(name)?;
    let _lock = store.lock(name)?;
    recover_locked(store, name)?;
    if let Ok(before) = store.document(name) {
        refuse_other_image(before.config(), document.config())?;
    }
    share::check(store, name, &document.config().shares)?;
    device::check(name, &document.config().devices)?;
    take_effect(store, name, document)
}

/// Has a container that runs follow what is wanted, and then writes it down.
fn take_effect(store: &Store, name: &Name, document: &Document) -> Result<Changed> {
    let changed = apply(store, name, document)?;
    store.write_document(name, document)?;
    store.forget_change_of_shares(name);
    device::settled(store, name)?;
    Ok(changed)
}

/// The image is what a container was made of: another one makes another container.
fn refuse_other_image(before: &Config, after: &Config) -> Result<()> {
    if before.image == after.image && before.privileged == after.privileged {
        return Ok(());
    }
    let key = if before.image == after.image { "privileged" } else { "image" };
    Err(lazaret_base::error(format!("`{key}` can't be changed once the container is made"))
        .kind(lazaret_base::Kind::Invalid)
        .hint(format!("make a new one: lazaret create NAME --set {key}=…")))
}

fn apply(store: &Store, name: &Name, document: &Document) -> Result<Changed> {
    let wanted = document.config();
    let Ok(running) = running(store, name) else { return Ok(Changed::default()) };
    let in_force = store.running_config(name)?;
    let (live, at_next_start) = live_changes(&in_force, wanted);
    let (group, trees) = (&running.state.group, &running.host.cgroups);
    let mut to_write = cgroup::limits(wanted, Some(&in_force), group, trees)?;
    to_write.extend(cgroup::io_limits(wanted, &in_force.io, group, trees)?);
    let mut before = cgroup::limits(&in_force, Some(wanted), group, trees)?;
    before.extend(cgroup::io_limits(&in_force, &wanted.io, group, trees)?);
    if let Err((at, e)) = write_all(&to_write) {
        // As far as it goes: what the kernel held before, it takes again.
        let _ = write_all(&before);
        return Err(e).with_context(|| format!("limiting `{name}`: the kernel refuses `{}`", to_write[at].value));
    }
    // What needs a restart is not in force, and the record of what is must not say so.
    let mut now = in_force.clone();
    for key in &live {
        take_over(&mut now, wanted, key);
    }
    if let Err(e) = network::change(store, name, &running, &now.network) {
        let _ = write_all(&before);
        return Err(e);
    }
    // Last of all that can fail, since it is the most to take back.
    let mut notes = share::change(store, name, &running, &in_force.shares, &now.shares).inspect_err(|_| {
        let _ = write_all(&before);
        let _ = network::change(store, name, &running, &in_force.network);
    })?;
    if in_force.desktop.clipboard != now.desktop.clipboard {
        gate::change(store, name, now.desktop.clipboard)?;
    }
    let offers = |config: &Config| (config.desktop.notifications, config.desktop.open_urls);
    if offers(&in_force) != offers(&now) {
        crate::bus::change(store, name, &now.desktop)?;
    }
    if in_force.devices != now.devices {
        device::begin(store, name)?;
    }
    if in_force.desktop.sound != now.desktop.sound && now.desktop.sound == Sound::Off {
        gate::silence(store, name);
    }
    if in_force.desktop.sound == Sound::PlayRecord && now.desktop.sound != Sound::PlayRecord {
        crate::microphone::forget(store, name)?;
    }
    store.write_running_config(name, &now)?;
    cache::follow(store, name, &in_force, &now)?;
    // The keeper follows what is in force, so that is written before.
    if in_force.devices != now.devices {
        let given = device::give(store, name, &running, &now.devices).inspect_err(|_| {
            let _ = store.write_running_config(name, &in_force);
            let _ = device::give(store, name, &running, &in_force.devices);
            let _ = device::settled(store, name);
        });
        notes.extend(given?);
    }
    Ok(Changed { live, at_next_start, notes })
}

fn write_all(limits: &[Limit]) -> std::result::Result<(), (usize, lazaret_base::Error)> {
    // Memory and memory with swap bound each other on v1: which goes first depends on which way they go,
    // so what is refused once is tried again after the others.
    let mut refused = Vec::new();
    for (at, limit) in limits.iter().enumerate() {
        if cgroup::write(&limit.file, &limit.value).is_err() {
            refused.push(at);
        }
    }
    refused.into_iter().try_for_each(|at| cgroup::write(&limits[at].file, &limits[at].value).map_err(|e| (at, e)))
}

/// Copies one key. A key that the table calls live and this does not know would show as not in force.
fn take_over(now: &mut Config, wanted: &Config, key: &str) {
    let wanted = wanted.clone();
    match key {
        "description" => now.description = wanted.description,
        "memory" => now.memory = wanted.memory,
        "swap" => now.swap = wanted.swap,
        "cpus" => now.cpus = wanted.cpus,
        "cpu_weight" => now.cpu_weight = wanted.cpu_weight,
        "cpuset" => now.cpuset = wanted.cpuset,
        "pids" => now.pids = wanted.pids,
        "io" => now.io = wanted.io,
        "io_weight" => now.io_weight = wanted.io_weight,
        "env" => now.env = wanted.env,
        "env_pass" => now.env_pass = wanted.env_pass,
        "stop_timeout" => now.stop_timeout = wanted.stop_timeout,
        "stop_signal" => now.stop_signal = wanted.stop_signal,
        "auto_snapshots" => now.auto_snapshots = wanted.auto_snapshots,
        "devices" => now.devices = wanted.devices,
        "shares" => now.shares = wanted.shares,
        "network.internet" => now.network.internet = wanted.network.internet,
        "network.lan" => now.network.lan = wanted.network.lan,
        "network.host" => now.network.host = wanted.network.host,
        "network.peers" => now.network.peers = wanted.network.peers,
        "network.allow" => now.network.allow = wanted.network.allow,
        "network.deny" => now.network.deny = wanted.network.deny,
        "network.publish" => now.network.publish = wanted.network.publish,
        "network.rate_up" => now.network.rate_up = wanted.network.rate_up,
        "network.rate_down" => now.network.rate_down = wanted.network.rate_down,
        "network.dns" => now.network.dns = wanted.network.dns,
        "network.host_mode_confirmed" => now.network.host_mode_confirmed = wanted.network.host_mode_confirmed,
        "desktop.clipboard" => now.desktop.clipboard = wanted.desktop.clipboard,
        "desktop.sound" => now.desktop.sound = wanted.desktop.sound,
        "desktop.notifications" => now.desktop.notifications = wanted.desktop.notifications,
        "desktop.open_urls" => now.desktop.open_urls = wanted.desktop.open_urls,
        "desktop.trusted_confirmed" => now.desktop.trusted_confirmed = wanted.desktop.trusted_confirmed,
        _ => {}
    }
}

/// The keys of [`take_over`], checked against the table.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_live_key_is_taken_over() {
        for key in lazaret_config::keys().iter().filter(|key| key.live) {
            let mut wanted = Document::create("t", []).unwrap();
            // Its own example differs from the default.
            let text = match key.entries {
                Some(_) => format!("[{}]\n{}\n", key.name, key.example),
                None if key.name.contains('.') => {
                    let section = key.name.split_once('.').map_or("", |(section, _)| section);
                    format!("memory = \"1G\"\n[{section}]\n{}\n", key.example)
                }
                None => format!("memory = \"1G\"\n{}\n", key.example).replace("memory = \"1G\"\nmemory", "memory"),
            };
            wanted = Document::parse("t", &text).unwrap_or_else(|e| panic!("{}: {e}\n{wanted}", key.name));
            let mut now = Config { memory: wanted.config().memory, ..Config::default() };
            if key.name == "memory" {
                now.memory = None;
            }
            take_over(&mut now, wanted.config(), key.name);
            assert_eq!(&now, wanted.config(), "{}", key.name);
        }
    }
}

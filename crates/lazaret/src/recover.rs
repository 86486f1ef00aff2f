//! What killed processes left behind is taken away by the next command.

use std::time::Duration;

use lazaret_base::{Lock, Result};
use lazaret_config::Name;
use lazaret_runtime::cgroup::{self, Group, Hierarchies};

use crate::cache;
use crate::create;
use crate::event::{self, What};
use crate::ids;
use crate::store::{Phase, Store};

/// How long processes that were just killed may take to be gone.
pub(crate) const LAST_BREATH: Duration = Duration::from_secs(10);

/// Cleans up after keepers that are no more: their containers' processes, cgroups and files; and after commands that
/// were killed over their work.
///
/// Costs a few directory listings if there is nothing to do.
pub fn recover(store: &Store) -> Result<()> {
    for name in store.running_names()? {
        recover_one(store, &name)?;
    }
    if store.is_littered() {
        // It is in nobody's way: what can't be removed now, as on a read-only disk, is tried again next time.
        let _ = collect(store);
    }
    // Packages come without it, too.
    let _ = cache::mend(store);
    Ok(())
}

/// The same for one container, unless another command is at work on it, which will see to it itself.
fn recover_one(store: &Store, name: &Name) -> Result<()> {
    match store.try_lock(name)? {
        Some(_lock) => recover_locked(store, name),
        None => Ok(()),
    }
}

/// Takes the lock of a container that is there, and cleans up after its keeper.
pub(crate) fn hold(store: &Store, name: &Name) -> Result<Lock> {
    store.require(name)?;
    store.prepare()?;
    let lock = store.lock(name)?;
    recover_locked(store, name)?;
    Ok(lock)
}

/// The same for a command that holds the container's lock.
pub(crate) fn recover_locked(store: &Store, name: &Name) -> Result<()> {
    if !store.run_dir_exists(name) {
        return settle(store, name);
    }
    if store.is_kept(name)? {
        // What a container has put in the way keeps no command from its work.
        let _ = crate::share::settle(store, name);
        let _ = crate::device::settle(store, name);
        return thaw(store, name);
    }
    // With this in hand we are what the keeper would be: nobody else begins or ends here.
    let Some(_alive) = store.keep(name)? else { return Ok(()) };
    if let Some(mut state) = store.run_state(name)? {
        // For whoever looks meanwhile; a disk that takes no writing is no reason to leave processes alive.
        state.phase = Phase::Stopping;
        let _ = store.write_run_state(name, &state);
        clear_group(&state.group, &Hierarchies::probe()?)?;
    }
    crate::gate::end(store, name);
    let stopped = || event::tell(store, name, What::Stopped, Some("its keeper was gone".into()));
    if store.exists(name) && store.record(name)?.ephemeral {
        stopped();
        // It goes before what is left of its run, without which nobody would look for it again.
        create::remove(store, name)?;
        store.forget_run(name)?;
        store.forget_lock(name);
        return Ok(());
    }
    store.forget_run(name)?;
    stopped();
    settle(store, name)
}

/// Finishes what a killed command had decided about a container's layers.
fn settle(store: &Store, name: &Name) -> Result<()> {
    match store.record(name) {
        Ok(mut record) => {
            // It goes before what was written becomes a layer.
            let _ = cache::withdraw(store, name, &record);
            store.settle(name, &mut record)
        }
        // What is wrong with it is told by whoever needs it.
        Err(_) => Ok(()),
    }
}

/// Thaws what a killed command froze for a moment.
fn thaw(store: &Store, name: &Name) -> Result<()> {
    if !store.is_frozen_for_a_moment(name) {
        return Ok(());
    }
    if let Some(state) = store.run_state(name)? {
        cgroup::freeze(&state.group.payload(&Hierarchies::probe()?), false, LAST_BREATH)?;
    }
    store.forget_freeze(name);
    Ok(())
}

/// Ends what is left in a group and removes it.
pub(crate) fn clear_group(group: &Group, trees: &Hierarchies) -> Result<()> {
    cgroup::kill(&group.payload(trees), LAST_BREATH)?;
    cgroup::remove(group, trees)
}

/// Takes away what killed commands left half-made, trees and id ranges, and layers that nobody needs any more. Takes
/// the lock of all.
pub fn collect(store: &Store) -> Result<()> {
    let all = store.lock_all()?;
    let mut retired = Vec::new();
    if store.clear_abandoned()? {
        ids::release_abandoned(store)?;
        retired = store.retire_layers()?;
    } else {
        store.sweep_later();
    }
    drop(all);
    // What takes long is done while others work on.
    let cleared = retired.into_iter().map(|workshop| store.clear(workshop)).fold(Ok(()), Result::and);
    cleared.and(store.images()?.collect().map(drop))
}

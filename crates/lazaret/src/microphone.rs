//! The microphone of a container: a switch that is off at every start, and holds while the container runs.
//!
//! `desktop.sound` says whether it may be on at all. Switched off, nothing of what was being recorded goes on.

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Display, Name, Sound};

use crate::exec::running;
use crate::gate;
use crate::limit::edit;
use crate::recover::recover_locked;
use crate::store::Store;

/// Switches the microphone of a running container. Switching it on has `desktop.sound` allow it from now on; it is the
/// person who says so, and says it each time.
///
/// # Errors
///
/// [`Kind::Stopped`] where the container does not run; where it has no display.
pub fn switch(store: &Store, name: &Name, on: bool) -> Result<()> {
    let switching = || format!("switching the microphone of `{name}` {}", if on { "on" } else { "off" });
    if on {
        let desktop = running(store, name)
            .map_err(|e| match e.what() {
                Kind::Stopped => error(format!("`{name}` is not running"))
                    .kind(Kind::Stopped)
                    .hint("the microphone is off at every start; switch it on when a program needs it"),
                _ => e,
            })
            .with_context(switching)?
            .config
            .desktop;
        if desktop.display == Display::None {
            return Err(error("it has no display, and so no sound").kind(Kind::Invalid).hint(format!(
                "give it one: lazaret config {name} set desktop.display=isolated; lazaret restart {name}"
            )))
            .with_context(switching);
        }
        let allow = |document: &mut lazaret_config::Document| document.set("desktop.sound", "play+record");
        if desktop.sound != Sound::PlayRecord {
            edit(store, name, allow).with_context(switching)?;
        }
    }
    let _lock = store.lock(name)?;
    recover_locked(store, name)?;
    if !store.is_kept(name)? {
        return Ok(());
    }
    // Off is told first, and on is written first: killed between the two, `info` tells what the gate does, and the same
    // command once more mends it.
    let (tell, write) = (|| gate::tell_microphone(store, name, on), || store.write_microphone(name, on));
    match on {
        true => write().and_then(|()| tell()),
        false => tell().and_then(|()| write()),
    }
    .with_context(switching)
}

/// `desktop.sound` does not allow it any more. The caller holds the container's lock.
pub(crate) fn forget(store: &Store, name: &Name) -> Result<()> {
    gate::tell_microphone(store, name, false)?;
    store.write_microphone(name, false)
}

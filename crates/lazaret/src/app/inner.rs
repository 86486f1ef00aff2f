//! An X server inside a container, on the compositor that the container's programs reach: where the session has a
//! compositor and no X server. What X lets programs do to each other, they do to their own kind.

use std::fs;
use std::os::fd::AsFd;

use lazaret_base::{Kind, Result, error};
use lazaret_config::Name;
use lazaret_runtime::attach::Command;

use super::{is_there, manager, root_of};
use crate::exec::{self, Running};
use crate::gate;
use crate::store::Store;

/// Its number. The door has number 0, and its directory of sockets is read-only: this one has a name without a file.
pub(super) const DISPLAY: u32 = 1;
const SERVER: &str = "/usr/bin/Xwayland";

/// Begins the server if there is none. It says its number when it listens, and then the words that begin it have ended.
fn script() -> String {
    format!("({SERVER} :{DISPLAY} -displayfd 3 3>&1 >/dev/null 2>&1 </dev/null &) | head -n 1 | grep -q .")
}

/// Sees to it that there is one.
///
/// # Errors
///
/// [`Kind::Missing`] where it is not installed inside.
pub(super) fn ensure(
    store: &Store,
    name: &Name,
    running: &Running,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    if listens(running) {
        return Ok(());
    }
    let root = root_of(running)?;
    if !is_there(root.as_fd(), SERVER) {
        let install = manager(root.as_fd()).map_or("install", |(_, install)| install);
        return Err(error(format!("the session has no X display, and `{name}` has no X server of its own"))
            .kind(Kind::Missing)
            .hint(format!("install one inside: lazaret exec {name} -- {install} xwayland")));
    }
    let command = Command {
        words: ["/bin/sh", "-c", &script()].map(str::to_owned).to_vec(),
        user: running.config.desktop.user.as_ref().map(ToString::to_string),
        environment: gate::variables().map(|(name, value)| (name.to_owned(), value)).to_vec(),
        runtime_directory: true,
        ..Command::default()
    };
    let null = fs::File::options().read(true).write(true).open("/dev/null")?;
    match exec::exec(store, name, &command, [null.as_fd(); 3], variable)?.status() {
        0 => Ok(()),
        _ if listens(running) => Ok(()),
        _ => Err(error(format!("the X server inside `{name}` has ended at once"))
            .hint(format!("what it says: lazaret app {name} -- {SERVER} :{DISPLAY}"))),
    }
}

/// Whether somebody listens for X programs in the container's network.
fn listens(running: &Running) -> bool {
    let sockets = fs::read_to_string(format!("/proc/{}/net/unix", running.state.init)).unwrap_or_default();
    let name = format!("@/tmp/.X11-unix/X{DISPLAY}");
    sockets.lines().any(|line| line.ends_with(&name))
}

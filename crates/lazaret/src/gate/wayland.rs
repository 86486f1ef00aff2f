//! The gate to a Wayland compositor, as commands see it.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use lazaret_base::{Context, Result, error};
use lazaret_config::{Display, Name};
use lazaret_desktop::Session;
use serde::{Deserialize, Serialize};

use super::{Order, Purpose, begin, call_at, value_of};
use crate::exec::Running;
use crate::store::{DOOR, Store};

/// The socket on which the gate is called.
pub(super) const CALLS: &str = "wayland";
/// The socket on which programs find their compositor, in the door.
pub(super) const SOCKET: &str = "wayland-0";
/// Connections of one container at once.
pub(super) const MOST_CONNECTIONS: usize = 64;

/// Where a gate to a compositor leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compositor {
    /// The compositor's socket.
    pub socket: PathBuf,
    /// Its number: a compositor that starts again has another one.
    inode: u64,
    /// Whose session it is.
    pub person: String,
    /// Whom the gate runs as.
    pub uid: u32,
    /// Whether everything passes.
    pub trusted: bool,
}

/// A gate to a compositor at work.
#[derive(Clone, Debug, Serialize)]
pub struct WaylandGate {
    /// Where it leads.
    #[serde(flatten)]
    pub compositor: Compositor,
    /// Programs' connections.
    pub connections: usize,
    /// Whether the compositor is there.
    pub server: bool,
    /// Whether the compositor restricts these programs itself, too (security-context-v1).
    pub context: bool,
}

/// What programs inside are told of it.
pub(crate) fn variables() -> [(&'static str, String); 2] {
    [("WAYLAND_DISPLAY", format!("{DOOR}/{SOCKET}")), ("XDG_SESSION_TYPE", "wayland".to_owned())]
}

/// The compositor of a session, if it has one that a person uses. Root's own is none: the gate runs as its user, and
/// nothing that is near hostile bytes runs as root.
fn compositor(session: &Session, trusted: bool) -> Option<Compositor> {
    let person = &session.person;
    let socket = session.wayland().filter(|_| person.uid != 0)?;
    let status = std::fs::symlink_metadata(&socket).ok().filter(|status| status.file_type().is_socket())?;
    Some(Compositor { socket, inode: status.ino(), person: person.name.clone(), uid: person.uid, trusted })
}

/// Sees to it that a container has a gate to the session's compositor. False where the session has none.
///
/// # Errors
///
/// Where a gate could not begin, or programs of the container are on another compositor.
pub(crate) fn ensure_wayland(store: &Store, name: &Name, running: &Running, session: &Session) -> Result<bool> {
    let trusted = running.config.desktop.display == Display::Trusted;
    let Some(wanted) = compositor(session, trusted) else { return Ok(false) };
    if let Some(mut line) = call_at(store, name, CALLS)? {
        let record: Option<Compositor> = store.wayland_record(name);
        if record.as_ref() == Some(&wanted) {
            return line.ask("open").map(|_| true);
        }
        if !line.ask("info")?.contains("connections=0") {
            let where_ = record.map(|other| format!("`{}` of `{}`", other.socket.display(), other.person));
            let where_ = where_.unwrap_or_else(|| "another compositor".into());
            return Err(error(format!("programs of `{name}` are on {where_}"))
                .hint("end those first: a container is on one display at a time"));
        }
        line.stop();
    }
    let clipboard = running.config.desktop.clipboard.to_string();
    let order = Order {
        name: name.to_string(),
        socket: wanted.socket.clone(),
        uid: wanted.uid,
        gid: session.person.gid,
        purpose: Purpose::Wayland { trusted, clipboard },
    };
    store.write_wayland_record(name, &wanted)?;
    begin(store, name, running, &order).context("beginning the gate to the Wayland compositor")?;
    let mut line =
        call_at(store, name, CALLS)?.ok_or_else(|| error("the gate to the Wayland compositor has ended at once"))?;
    line.ask("open").map(|_| true)
}

/// Looks at a container's gate; `None` if it has none now.
pub fn look_wayland(store: &Store, name: &Name) -> Result<Option<WaylandGate>> {
    let (Some(mut line), Some(compositor)) = (call_at(store, name, CALLS)?, store.wayland_record(name)) else {
        return Ok(None);
    };
    let answer = line.ask("info")?;
    let of = |key: &str| value_of(&answer, key);
    Ok(Some(WaylandGate {
        compositor,
        connections: of("connections").and_then(|count| count.parse().ok()).unwrap_or(0),
        server: of("server") == Some("there"),
        context: of("context") == Some("true"),
    }))
}

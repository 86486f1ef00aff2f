//! The bus of a container with a display, as commands see it: begun with its first application, told what it offers.

use lazaret_base::{Context, Result};
use lazaret_config::{Config, Desktop, Display, Name, OpenUrls};
use lazaret_desktop::Session;
use lazaret_gate::bus::Offers;
use lazaret_runtime::plan::ENVIRONMENT;
use serde::{Deserialize, Serialize};

use crate::exec::Running;
use crate::gate::{self, BUS, Heard, Order, Purpose};
use crate::store::{DOOR, Store};

/// How its process is called.
pub(crate) const SERVICE: &str = "bus";
/// The socket on which programs find it, in its directory.
pub(crate) const SOCKET: &str = "socket";
/// Connections of one container at once.
pub(crate) const MOST_PROGRAMS: usize = 256;

/// What its gate is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wanted {
    notifications: bool,
    /// [`OpenUrls`], as it is written.
    pub open_urls: String,
    /// Of programs that are begun for the person, outside.
    pub environment: Vec<(String, String)>,
    /// Whose they are.
    pub person: String,
}

impl Wanted {
    /// What is offered beside the bus itself.
    pub fn offers(&self) -> Offers {
        Offers { notifications: self.notifications, addresses: self.open_urls != OpenUrls::Deny.to_string() }
    }
}

/// Variables of programs that have it.
pub(crate) fn environment(config: &Config) -> Vec<(String, String)> {
    let mut all = vec![("DBUS_SESSION_BUS_ADDRESS".to_owned(), format!("unix:path={DOOR}/bus/{SOCKET}"))];
    if config.desktop.open_urls != OpenUrls::Deny {
        all.push(("BROWSER".into(), format!("{DOOR}/bin/xdg-open")));
        // Last, so that a browser inside is preferred by whatever the container has for that.
        let usual = ENVIRONMENT.iter().find(|(name, _)| *name == "PATH").map_or("", |(_, path)| path);
        all.push(("PATH".into(), format!("{usual}:{DOOR}/bin")));
    }
    all
}

/// Sees to it that a container has its bus, and that the bus leads to this session. The caller holds the container's
/// lock.
///
/// # Errors
///
/// Where a gate could not begin.
pub(crate) fn ensure(store: &Store, name: &Name, running: &Running, session: &Session) -> Result<()> {
    let (person, desktop) = (&session.person, &running.config.desktop);
    let directory = |socket: &std::path::Path| {
        let dir = rustix::fs::stat(socket.parent()?).ok()?;
        Some((dir.st_dev, dir.st_ino))
    };
    // A session without a bus, or root's own, has no notifications; the container still has its bus.
    let nowhere = store.session(name).join("bus/none");
    let socket = session.bus().filter(|socket| person.uid != 0 && directory(socket).is_some()).unwrap_or(nowhere);
    let heard = Heard { directory: directory(&socket).unwrap_or_default(), socket: socket.clone(), uid: person.uid };
    if let Some(mut line) = gate::call_at(store, name, BUS)? {
        // Programs that are on it would end with it: a session that begins anew is found when they have gone.
        if store.bus_record(name).as_ref() == Some(&heard) || !line.ask("info")?.contains("connections=0") {
            return tell(&mut line, desktop);
        }
        line.stop();
    }
    let wanted = Wanted {
        notifications: desktop.notifications,
        open_urls: desktop.open_urls.to_string(),
        environment: session.environment(),
        person: person.name.clone(),
    };
    let (uid, gid) = gate::identity(person);
    store.write_bus_record(name, &heard)?;
    let order = Order { name: name.to_string(), socket, uid, gid, purpose: Purpose::Bus(wanted) };
    gate::begin(store, name, running, &order).context("beginning the bus")
}

/// Tells the gate, if there is one, what it offers from now on.
pub(crate) fn change(store: &Store, name: &Name, desktop: &Desktop) -> Result<()> {
    match gate::call_at(store, name, BUS)? {
        Some(mut line) => tell(&mut line, desktop),
        None => Ok(()),
    }
}

fn tell(line: &mut gate::Line, desktop: &Desktop) -> Result<()> {
    line.ask(if desktop.notifications { "notifications on" } else { "notifications off" })?;
    line.ask(&format!("addresses {}", desktop.open_urls)).map(drop)
}

/// What programs get out through it, in a sentence.
pub fn line(config: &Config) -> Option<String> {
    let desktop = &config.desktop;
    let notifications = if desktop.notifications { "shown with its name" } else { "not shown" };
    let addresses = match desktop.open_urls {
        OpenUrls::Ask => "opened when you say so",
        OpenUrls::Allow => "opened by your browser",
        OpenUrls::Deny => "not opened",
    };
    let words = format!("its own; notifications {notifications}; addresses of the web {addresses}");
    (desktop.display != Display::None).then_some(words)
}

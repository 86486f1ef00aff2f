//! The bridge that containers are ports of.

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Mac;

use super::{message, query, settle};
use crate::netlink::Socket;
use crate::subnet::HostAddress;

/// A bridge of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name: `lazaret0`.
    pub name: String,
    /// Its hardware address; it keeps it whatever ports come and go.
    pub mac: Mac,
    /// The largest packet, in bytes. Ports may be smaller, and their containers then are.
    pub mtu: u32,
    /// All the addresses that it has, the link-local one (`fe80::1/64`) among them.
    pub addresses: Vec<HostAddress>,
    /// Whose it is, for `ip link`.
    pub label: String,
}

/// The bridge that is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// Its number.
    pub index: u32,
    /// Whether it was made just now.
    pub created: bool,
}

/// Makes the bridge if it is not there, and gives it the settings and exactly the addresses that it
/// should have; up, and its addresses usable, when this returns. Ports that it has stay.
///
/// Fails, as [`Kind::Exists`], where another kind of interface has the name. What this call made is
/// taken away on failure; a bridge that was there stays.
pub fn ensure_bridge(host: &mut Socket, spec: &BridgeSpec) -> Result<Ensured> {
    let found = query::find(host, &spec.name)?;
    if let Some(other) = found.as_ref().filter(|link| link.kind.as_deref() != Some("bridge")) {
        return Err(error(format!("the interface `{}` is there and is not a bridge", other.name))
            .hint("give the installation another bridge, or the interface another name")
            .kind(Kind::Exists));
    }
    let created = found.is_none();
    let first = match created {
        true => message::create_bridge(&spec.name, spec.mac, spec.mtu),
        false => message::change_bridge(&spec.name, spec.mac, spec.mtu),
    };
    host.ask(first?).hint("the kernel module `bridge` is needed: `modprobe bridge`")?;
    match set_up(host, spec) {
        Ok(index) => Ok(Ensured { index, created }),
        Err(e) => {
            if created {
                super::abandon(host, &[message::delete_link(&spec.name)?]);
            }
            Err(e)
        }
    }
}

/// Labels the bridge, sets it up and corrects its addresses; its index.
fn set_up(host: &mut Socket, spec: &BridgeSpec) -> Result<u32> {
    host.ask(message::label(&spec.name, &spec.label)?)?;
    let index = super::index_of(host, &spec.name)?;
    let mut messages = vec![message::no_link_local(index, &spec.name), message::up_index(index, &spec.name)];
    let has = query::addresses(host, index)?;
    messages
        .extend(has.iter().filter(|had| !spec.addresses.contains(had)).map(|had| message::delete_address(index, *had)));
    messages.extend(spec.addresses.iter().map(|address| message::add_address(index, *address)));
    host.send(&messages)?;
    settle::addresses(host, || Socket::subscribed(settle::ROUTE6_EVENTS), spec.addresses.iter().copied())?;
    Ok(index)
}

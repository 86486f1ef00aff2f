//! An interface of a container's on an interface of the host: macvlan and ipvlan.

use std::os::fd::BorrowedFd;

use lazaret_base::{Context, Error, Kind, Result, error};
use lazaret_config::Mac;
use rustix::io::Errno;

use super::message::{self, Parented, ifla};
use super::query;
use super::{Inside, abandon, set_up_inside, settle_inside};
use crate::netlink::{Message, Socket};

/// A container on an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentedSpec {
    /// The interface of the host.
    pub parent: String,
    /// How it is shared.
    pub kind: ParentedKind,
    /// The container's interface.
    pub inside: Inside,
}

/// How an interface is shared. In both ways the container can't talk with the host itself over it: what
/// it sends goes out to the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentedKind {
    /// By hardware address: the container has its own.
    Macvlan {
        /// The container's hardware address.
        mac: Mac,
        /// Whether containers on one parent can talk with each other.
        mode: MacvlanMode,
    },
    /// By IP address, under the parent's hardware address: also over Wi-Fi, and where a switch lets
    /// only one address through.
    Ipvlan,
}

/// Whether containers on one parent can talk with each other (`enum macvlan_mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// They can't.
    Private,
    /// They can, without the wire.
    Bridge,
}

impl ParentedKind {
    fn driver(self) -> &'static str {
        match self {
            ParentedKind::Macvlan { .. } => "macvlan",
            ParentedKind::Ipvlan => "ipvlan",
        }
    }

    fn settings(self, message: Message) -> Message {
        match self {
            ParentedKind::Macvlan { mode: MacvlanMode::Private, .. } => message.u32(ifla::MACVLAN_MODE, 1),
            ParentedKind::Macvlan { mode: MacvlanMode::Bridge, .. } => message.u32(ifla::MACVLAN_MODE, 4),
            // IPVLAN_MODE_L2: ARP and broadcasts work, so DHCP of the LAN does.
            ParentedKind::Ipvlan => message.u16(ifla::IPVLAN_MODE, 0),
        }
    }
}

/// What an interface is called until it is in its namespace. It is born there, but the kernel refuses a name that an
/// interface has where the request comes from (`rtnl_newlink`, net/core/rtnetlink.c): a host may have an `eth0` itself.
const NEWBORN: &str = "lz-newborn";

/// Makes the container's interface right in its namespace; up and addressed when this returns. It goes
/// away with the namespace. Nothing is left on failure.
///
/// Fails, as [`Kind::NotFound`], without the parent, and as [`Kind::Missing`] without the driver.
pub fn attach_parented(host: &mut Socket, spec: &ParentedSpec, netns: BorrowedFd<'_>) -> Result<()> {
    let parent = query::find(host, &spec.parent)?.ok_or_else(|| {
        error(format!("there is no interface `{}`", spec.parent))
            .hint("`ip link` lists those that there are")
            .kind(Kind::NotFound)
    })?;
    let mac = match spec.kind {
        ParentedKind::Macvlan { mac, .. } => Some(mac),
        ParentedKind::Ipvlan => None,
    };
    let parented = Parented {
        name: NEWBORN,
        parent: parent.index,
        parent_name: &spec.parent,
        kind: spec.kind.driver(),
        mac,
        inside: &spec.inside,
        netns,
    };
    let creation = message::create_parented(&parented, |m| spec.kind.settings(m))?;
    host.ask(creation).map_err(|e| advise(e, spec))?;
    let done = Socket::route_in(netns).and_then(|mut inside| {
        let index = super::index_of(&mut inside, NEWBORN)?;
        let renamed = inside.ask(message::rename(index, NEWBORN, &spec.inside.name)?);
        if renamed.is_err() {
            abandon(&mut inside, &[message::delete_link(NEWBORN)?]);
        }
        renamed.map_err(|e| advise(e, spec))?;
        let done = set_up_inside(&mut inside, &spec.inside, mac)
            .and_then(|()| settle_inside(&mut inside, &spec.inside, netns));
        if done.is_err() {
            abandon(&mut inside, &[message::delete_link(&spec.inside.name)?]);
        }
        done
    });
    done.with_context(|| format!("setting up the {} on `{}`", spec.kind.driver(), spec.parent))
}

/// What to do about an interface that could not be made.
fn advise(e: Error, spec: &ParentedSpec) -> Error {
    let driver = spec.kind.driver();
    match e.errno() {
        Some(Errno::OPNOTSUPP) => {
            e.hint(format!("the kernel lacks the driver `{driver}`: `modprobe {driver}`")).kind(Kind::Missing)
        }
        Some(Errno::EXIST) => e.hint(format!("the container has an interface `{}` already", spec.inside.name)),
        // One parent serves macvlan or ipvlan, and neither while it is the port of a bridge.
        Some(Errno::BUSY) => {
            e.hint(format!("`{}` is in use by a bridge, or shared in the other way (`macvlan`, `ipvlan`)", spec.parent))
        }
        Some(Errno::INVAL) => {
            e.hint(format!("`{}` is no Ethernet interface; Wi-Fi can be shared by `ipvlan`", spec.parent))
        }
        _ => e,
    }
}

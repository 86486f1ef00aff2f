//! The one process that reads packets of containers: it answers names, addresses and routers, and has no rights.
//!
//! netd opens the sockets, which needs privilege, and starts the responder with one end of a [`Line`] over which it
//! hands them over and says who is there and who may see whom ([`View`]). All packet code is pure: bytes and a
//! [`Directory`] in, bytes out.

mod confine;
pub mod directory;
mod line;
mod live;
mod sockets;
pub mod view;

use std::os::fd::OwnedFd;

use lazaret_base::{Context, Result};

pub use confine::{Identity, confine};
pub use directory::{Asker, Directory};
pub use line::Line;
pub use live::live;
pub use sockets::Sockets;
pub use view::{Host, Order, Prefix, Report, Settings, View};

/// All of a responder's life: takes the sockets from `control`, gives up every right, and answers until netd hangs up.
///
/// # Errors
///
/// Where the rights cannot be given up, or the control line or epoll(7) fails. A packet never is an error.
pub fn serve(control: OwnedFd, identity: &Identity) -> Result<()> {
    let sockets = Sockets::take_over(&control).context("taking over the sockets")?;
    confine(identity).context("giving up all rights")?;
    live(sockets, control)
}

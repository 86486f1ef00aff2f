//! The Wayland gate: programs of a container have windows on the session's compositor, and nothing else of it.
//!
//! A compositor's socket is much more than windows: where it is one of the wlroots family, whoever is connected makes
//! pictures of the screen, reads the clipboard, types and clicks. So every message is looked at: what is not in the
//! table of the [`protocol`] is not offered, can't be named and does not pass. By the same table it is known how many
//! descriptors belong to a message, which is what they are counted by.
//!
//! Reading order: [`protocol`] (what may be said), [`Objects`] (what was made), [`Filter`] (one connection),
//! [`context`] (what compositors can do themselves), [`serve()`] (the loop).

mod objects;
mod protocol;
mod wire;

mod filter;

mod context;
mod serve;

pub use filter::{Broken, Filter, MARK, Rules};
pub use protocol::{Interface, Kind, Message, Protocol};
pub use serve::{Settings, serve};
pub use wire::{In, Out, message};

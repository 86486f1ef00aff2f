//! The bus gate: the session bus that programs of a container see.
//!
//! It is a bus of their own, and not the session's with holes in it. Names, matches and messages of a container's
//! programs stay among them: an application that wants to run once finds itself and nobody else's, and no name that the
//! host's programs talk to can be taken. Two services are the gate's: notifications, and the opening of addresses. For
//! those the gate speaks on the session's bus, as the person, in words of its own; nothing that a program says gets
//! there as it is. No descriptor travels.
//!
//! Reading order: [`wire`] (messages), [`greeting`] (before the first one), [`hub`] (the bus), [`note`] (a
//! notification), [`host`] (the session's bus, as the gate speaks there), [`address`], [`serve()`] (the loop).

mod wire;

mod greeting;

mod hub;
mod rule;

pub mod address;
mod note;

mod host;
mod serve;

pub use hub::Offers;
pub use serve::{Settings, serve};

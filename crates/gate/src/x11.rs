//! The X11 gate: programs of a container draw on the session's screen, and can do little else to it.
//!
//! Every connection gets the server's own "untrusted" treatment (the SECURITY extension), whatever credentials the
//! program sends. That leaves holes, which the [`Filter`] closes request by request: keyboards and pointers that are
//! grabbed, titles, trees and pixels of other windows, selections, windows that cover the screen.
//!
//! Reading order: [`wire`] (numbers), [`table`] (what each request may name), [`Filter`] (one connection),
//! [`Container`] (what the connections of one container share), [`client`] (the gate's own connections), [`cookie`],
//! [`authority`], [`clipboard`], [`serve()`] (the loop), [`confine()`] (the sandbox).

mod wire;

mod atoms;
mod table;

mod container;
mod filter;

pub mod authority;
mod client;
pub mod cookie;

mod clipboard;
mod confine;
mod serve;

pub use atoms::{Atoms, Known};
pub use authority::Cookie;
pub use client::Server;
pub use confine::{Confinement, Identity, Sight, confine};
pub use container::{Container, Facts};
pub use filter::{Broken, Filter, Flow, Notice};
pub use serve::{Clipboard, Ends, Settings, serve};
pub use table::REQUESTS;
pub use wire::Order;

//! What the user asked for, as values that are right ever after. No system call is made here.
//!
//! A container is described by a [`Config`], read from `container.toml` by [`parse`] and edited through
//! [`Document`], which keeps comments and layout. The one table of keys, [`keys`], serves parser, editor,
//! documentation and shell completion.

#[macro_use]
mod text;
mod decimal;
mod suggest;

mod capability;
mod cpu;
mod desktop;
mod device;
mod ids;
mod io;
mod name;
mod network;
mod rlimit;
mod share;
mod signal;
mod size;
mod span;

mod config;
mod given;
mod table;

mod check;
mod diagnostic;
mod document;
mod parse;

pub use capability::Capability;
pub use config::{Config, Init, Seccomp, live_changes};
pub use cpu::{CpuSet, Cpus};
pub use desktop::{Clipboard, Desktop, Display, OpenUrls, Sound, UserName};
pub use device::{Device, Which};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use document::Document;
pub use ids::IdRange;
pub use io::IoLimit;
pub use name::{Hostname, Name};
pub use network::{
    Destination, DomainName, Interface, Mac, Mode, Network, Ports, Prefix, Protocol, Publish, Rate, Target,
};
pub use parse::{decode, parse};
pub use rlimit::{Resource, Rlimit};
pub use share::Share;
pub use signal::Signal;
pub use size::Size;
pub use span::Span;
pub use table::{Form, Key, find, keys};

#[cfg(test)]
mod tests;

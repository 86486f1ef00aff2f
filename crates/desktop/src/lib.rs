//! What a person's graphical session offers a container: who the person is, where the screen is, and what programs
//! should look like on it.
//!
//! Nothing here acts: facts are looked up and handed on as values. The caller's environment comes in as a function.

mod display;
mod entry;
mod follow;
pub mod icon;
mod person;
mod session;

pub use display::Display;
pub use entry::{Entry, LONGEST as LONGEST_ENTRY, Launcher, is_id};
pub use follow::{Fonts, follow, fonts};
pub use person::Person;
pub use session::Session;

//! Systems built of Debian's packages, without Debian's tools.
//!
//! What an archive says is read, and what is to be installed is chosen, by functions that touch nothing: releases,
//! indexes, versions, dependencies. [`Mirror`] gets what is needed, verified from the signature down to each file.
//! [`lay_foundation`] unpacks what every system begins with; all that must be executed is executed in a container,
//! which is not this crate's business.

mod choice;
mod control;
mod deb;
mod distribution;
mod foundation;
mod index;
mod mirror;
mod recipe;
mod release;
mod site;
mod version;

pub use choice::{Choice, Variant, additions, system};
pub use control::{Paragraph, paragraphs};
pub use distribution::{DISTRIBUTIONS, Distribution, Keyring, Places, Suite};
pub use foundation::{Foundation, Script, lay_foundation};
pub use index::{Index, Package};
pub use mirror::{Lists, Mirror, file_name};
pub use recipe::{Recipe, Source, Text};
pub use release::Release;
pub use site::{Site, read_inside};
pub use version::compare;

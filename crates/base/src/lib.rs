//! What every other crate stands on: an error with a hint, an undo stack, an atomic file, a lock, how far words are
//! apart. No word of the domain is spoken here.

mod distance;
mod error;
mod file;
mod lock;
mod undo;

pub use distance::distance;
pub use error::{Context, Error, Kind, Result, Wire, error};
pub use file::{read_bounded, write_atomic};
pub use lock::Lock;
pub use undo::Undo;

//! Addresses for containers that ask: always the recorded one, for nobody else.
//!
//! Pure: a packet and a directory in, a packet out. There is no state, so nothing can be lost, given twice or used up.

pub mod v4;
pub mod v6;

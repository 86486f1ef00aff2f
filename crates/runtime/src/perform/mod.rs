//! Steps, carried out: one file a side. No decision is left here.

pub mod guest;
pub mod host;
mod newcomer;
pub mod stage;
pub mod target;

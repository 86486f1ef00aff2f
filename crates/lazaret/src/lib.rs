//! The manager: what a front end calls to create, start, enter, watch and remove containers.
//!
//! There is no daemon. Each function here is a short act of whoever calls it; what must live as long as a
//! container is its [`keeper`].

pub mod console;
pub mod create;
pub mod doctor;
pub mod event;
pub mod exec;
mod ids;
pub mod info;
pub mod keeper;
mod label;
pub mod limit;
mod process;
pub mod recover;
pub mod relay;
pub mod run;
pub mod start;
pub mod stop;
mod store;

pub use lazaret_image::Progress;
pub use store::{Ids, Image, Phase, Record, RunState, Storage, Store, Workshop};

pub use lazaret_config as config;
pub use lazaret_runtime as runtime;

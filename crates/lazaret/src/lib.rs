//! The manager: what a front end calls to create, start, enter, watch and remove containers.
//!
//! There is no daemon. Each function here is a short act of whoever calls it; what must live as long as a
//! container is its [`keeper`].

pub mod app;
pub mod build;
pub mod bus;
pub mod cache;
pub mod console;
pub mod copy;
pub mod create;
pub mod device;
pub mod df;
pub mod diff;
pub mod doctor;
pub mod event;
pub mod exec;
pub mod file;
pub mod gate;
mod home;
mod ids;
pub mod image;
pub mod info;
pub mod keeper;
mod label;
pub mod launcher;
pub mod limit;
mod look;
pub mod microphone;
pub mod missing;
pub mod network;
mod opener;
mod personal;
mod process;
pub mod publish;
pub mod recover;
pub mod relay;
pub mod run;
pub mod share;
pub mod snapshot;
pub mod ssh;
pub mod start;
pub mod stop;
mod store;
pub mod term;
pub mod transfer;

pub use lazaret_image::{Network, Progress, Stage};
pub use personal::logins;
pub use store::{Ids, Image, Label, LayerId, Phase, Record, RunState, Snapshot, Storage, Store, Why, Workshop};

pub use lazaret_config as config;
pub use lazaret_desktop as desktop;
pub use lazaret_runtime as runtime;

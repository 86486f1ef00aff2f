//! The container runtime: host facts, the plan (pure), the steps that carry it out, and what is done
//! with a running container: attach, ask to stop, freeze, limit.
//!
//! It knows no file format and has never heard of a desktop.

pub mod account;
pub mod attach;
pub mod cgroup;
pub mod confine;
pub mod devices;
pub mod hardware;
pub mod host;
pub mod idmap;
pub mod init_image;
pub mod inside;
mod perform;
pub mod plan;
pub mod seccomp;
pub mod share;
pub mod spawn;
pub mod stop;
pub mod systemd;
mod turn;

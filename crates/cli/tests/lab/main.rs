//! Real containers: each test has an installation of its own, and leaves nothing behind.
//!
//! Needs root, Debian's busybox-static, and the root file systems of `tests/fixtures/make-roots.sh`;
//! `cargo xtask test` sees to all of it.

mod harness;

mod config;
mod console;
mod desktop;
mod exec;
mod host_image;
mod images;
mod inits;
mod isolation;
mod lifecycle;
mod missing;

mod escape;
mod race;
mod survive;
mod wayland;

mod device;
mod file;
mod launcher;
mod share;
mod ssh;
mod storage;

mod network;
mod network_probe;

mod pull;
mod pull_oci;
mod pull_server;

mod build;
mod build_archive;
mod cache;

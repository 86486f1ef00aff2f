//! Protocol filters between a container and the session that shows it.
//!
//! A filter is pure: bytes go in, bytes and verdicts come out, so it is tested and fuzzed without a server. A loop runs
//! the filters of one container in one process that has nothing to lose: hostile bytes come in on one side of it.

mod caller;
mod calls;
mod stream;

pub mod bus;
pub mod pulse;
pub mod wayland;
pub mod x11;

/// What stands before the names by which windows of a container say what program they belong to: no program of the
/// person's own has a name like that.
pub fn class_prefix(container: &str) -> String {
    format!("lazaret-{container}-")
}

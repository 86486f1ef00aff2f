//! Images: where the root of a container comes from.
//!
//! An archive is unpacked by [`unpack()`] with everything GNU tar keeps, and becomes a layer of a [`Store`];
//! a directory is used in place ([`use_directory`]); the running system itself is the image `host`
//! ([`Store::host`]). [`copy_shifted`] serves file systems without id-mapped mounts, and [`remove_tree`]
//! takes any tree away. All of it works relative to directory descriptors: no name in an archive or in a
//! container's tree can lead out of it.

mod acl;
mod archive;
mod capability;
mod digest;
mod elf;
mod host;
mod remove;
mod shift;
mod store;
mod stream;
mod tree;
mod unpack;

pub use digest::Digest;
pub use host::{Bind, HOST_ETC, HostImage, host_binds, visible_from_host};
pub use remove::remove_tree;
pub use shift::{Copied, copy_shifted};
pub use store::{Collected, Layer, LayerId, Store, use_directory};
pub use unpack::{Limits, Progress, Unpacked, unpack};

//! Images: where the root of a container comes from.
//!
//! An archive is unpacked by [`unpack()`] with everything GNU tar keeps, and becomes a layer of a [`Store`];
//! a directory is used in place ([`use_directory`]); the running system itself is the image `host`
//! ([`Store::host`]). [`copy_shifted`] serves file systems without id-mapped mounts, and [`remove_tree`]
//! takes any tree away. A [`Stack`] is the layers of an overlay read as one tree, which [`Archive`] packs and
//! [`copy_tree`] copies. All of it works relative to directory descriptors: no name in an archive or in a
//! container's tree can lead out of it.

mod absorb;
mod acl;
mod archive;
pub mod build;
mod bundle;
mod capability;
mod diff;
mod digest;
mod dropin;
mod elf;
mod fetch;
mod host;
mod import;
mod named;
mod oci;
mod pack;
mod packages;
mod proxy;
mod publish;
mod pull;
mod reference;
mod remote;
mod remove;
mod seed;
mod shift;
mod simplestreams;
mod squashfs;
mod stack;
mod store;
mod stream;
mod template;
mod tree;
mod unpack;
mod usage;
mod verify;
mod yaml;

pub use absorb::absorb;
pub use archive::leading_files;
pub use bundle::{Compression, Compressor, Label, write_oci, write_unified};
pub use diff::{Change, Difference, diff};
pub use digest::Digest;
pub use dropin::{APT_PROXY, apt_archives, apt_proxy, drop_apt_proxy, put_apt_proxy};
pub use fetch::Network;
pub use host::{Bind, HOST_ETC, HostImage, host_binds, visible_from_host};
pub use named::{About, Image, Origin, Program};
pub use oci::Logins;
pub use pack::{Archive, Manner, Packed};
pub use packages::{Held, Incoming, Kept, PackageCache, Seen, Size, Stats};
pub use proxy::{Archives, Asker, Proxy, confine_proxy};
pub use pull::{Freshness, Listed, Pulled};
pub use reference::{Reference, Repository, Wanted, architecture, own_architecture};
pub use remote::{Protocol, Remote, Remotes};
pub use remove::remove_tree;
pub use seed::seed;
pub use shift::{Copied, copy_shifted, copy_tree, dress_root, is_untouched, shares_content};
pub use simplestreams::{Build, Catalogue, Form, Part, Product};
pub use stack::Stack;
pub use store::{Collected, Layer, LayerId, Store, use_directory};
pub use template::{Facts, Template};
pub use unpack::{Limits, Progress, Stage, Unpacked, unpack, unpack_changes};
pub use usage::{Usage, usage};
pub use verify::Verified;

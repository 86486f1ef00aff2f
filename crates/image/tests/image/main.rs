//! Real archives, real trees, as root: `tar`, `setfattr`, `setfacl`, `xz` and `zstd` make what is compared.

mod craft;
mod fidelity;
mod host;
mod hostile;
mod mutations;
mod pack;
mod packages;
mod shift;
mod store;
mod world;

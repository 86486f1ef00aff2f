//! The network of containers: links, firewall, leases, names, and the one process that owns them.

pub mod check;
pub mod conntrack;
pub mod dhcp;
pub mod dns;
pub mod foreign;
pub mod guard;
pub mod lease;
pub mod link;
pub mod netd;
pub mod netlink;
pub mod nft;
pub mod policy;
pub mod probe;
pub mod responder;
pub mod router;
pub mod ruleset;
pub mod shape;
pub mod subnet;
pub mod sysctl;
pub mod watch;
pub mod wire;

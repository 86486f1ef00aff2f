//! The responder: pure answers checked against another implementation's codec, and the living process in namespaces.

mod hostile;
mod leases;
mod live;
mod names;
mod view;
mod world;

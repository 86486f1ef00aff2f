//! Which container has which addresses: one small file for each, so that an address stays with its container
//! whatever else comes and goes.
//!
//! A file is named like its container and written by netd alone. Whoever renames or removes a container does the same
//! to its file; a file whose container is not there any more holds nothing that another could not have.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Result, error, read_bounded};
use lazaret_config::{Mac, Prefix};
use serde::{Deserialize, Serialize};

use crate::subnet;

/// No file of ours is longer.
const LONGEST: usize = 4096;

/// The addresses of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its hardware address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub address4: Ipv4Addr,
    /// Its IPv6 address.
    pub address6: Ipv6Addr,
}

/// What a container asks for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// A hardware address.
    pub mac: Option<Mac>,
    /// An IPv4 address.
    pub address4: Option<Ipv4Addr>,
    /// An IPv6 address.
    pub address6: Option<Ipv6Addr>,
}

/// Every lease there is.
#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    by_name: BTreeMap<String, Lease>,
    by_address: BTreeMap<Ipv4Addr, String>,
}

impl Leases {
    /// Reads them. A file that makes no sense is as good as none: its container gets what its name leads to.
    pub fn open(dir: &Path) -> Result<Leases> {
        let making = || format!("making `{}`", dir.display());
        fs::create_dir_all(dir).with_context(making)?;
        let mut leases = Leases { dir: dir.to_owned(), by_name: BTreeMap::new(), by_address: BTreeMap::new() };
        for (name, lease) in list(dir)? {
            leases.keep(&name, lease);
        }
        Ok(leases)
    }

    /// The lease of a container, as it wishes and as before where it has no wish; made, and recorded, if need be.
    ///
    /// What goes beyond this machine is derived from `salt`, too: hardware addresses and IPv6 addresses.
    /// `exists` tells whether there is a container of a name, `attached` whether it is connected now. An address that
    /// is wished for is taken from a container that has it by chance and is not connected; one that is in use is an
    /// error.
    pub fn take(
        &mut self,
        name: &str,
        salt: &str,
        wish: Wish,
        [subnet, prefix]: [Prefix; 2],
        exists: &dyn Fn(&str) -> bool,
        attached: &dyn Fn(&str) -> bool,
    ) -> Result<Lease> {
        let before = self.read_again(name);
        let fits = |lease: &Lease| subnet.contains(lease.address4.into()) && prefix.contains(lease.address6.into());
        let before = before.filter(fits);
        let address4 = match (wish.address4, before) {
            (Some(address), _) => self.claim(name, address, subnet, exists, attached)?,
            (None, Some(before)) => before.address4,
            (None, None) => self.find(name, subnet, exists)?,
        };
        let address6 = match (wish.address6, before) {
            (Some(address), _) => self.claim6(name, address, prefix, exists)?,
            (None, Some(before)) => before.address6,
            (None, None) => self.unlike_others(name, salt, exists, |key| subnet::address6(key, prefix), |l| l.address6),
        };
        let mac = match (wish.mac, before) {
            (Some(mac), _) => mac,
            (None, Some(before)) => before.mac,
            (None, None) => self.unlike_others(name, salt, exists, subnet::mac, |lease| lease.mac),
        };
        let lease = Lease { mac, address4, address6 };
        if before != Some(lease) {
            self.write(name, &lease)?;
        }
        self.forget_in_memory(name);
        self.keep(name, lease);
        Ok(lease)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Lease)> {
        self.by_name.iter().map(|(name, lease)| (name.as_str(), lease))
    }

    /// Gives a lease up.
    pub fn release(&mut self, name: &str) {
        self.forget_in_memory(name);
        remove(&self.dir, name);
    }

    /// Another process may have renamed or removed it since.
    fn read_again(&mut self, name: &str) -> Option<Lease> {
        self.forget_in_memory(name);
        let lease = read(&self.dir.join(name))?;
        // Renamed to a name that had an address in memory, or made by hand: two of one address can't be.
        if self.by_address.get(&lease.address4).is_some_and(|holder| holder != name && self.still_held(holder)) {
            return None;
        }
        self.keep(name, lease);
        Some(lease)
    }

    fn still_held(&self, holder: &str) -> bool {
        self.dir.join(holder).exists()
    }

    fn keep(&mut self, name: &str, lease: Lease) {
        self.by_address.insert(lease.address4, name.to_owned());
        self.by_name.insert(name.to_owned(), lease);
    }

    fn forget_in_memory(&mut self, name: &str) {
        if let Some(lease) = self.by_name.remove(name)
            && self.by_address.get(&lease.address4).is_some_and(|holder| holder == name)
        {
            self.by_address.remove(&lease.address4);
        }
    }

    /// What a name leads to, unless another container has it, who was called so once.
    fn unlike_others<T: PartialEq>(
        &self,
        name: &str,
        salt: &str,
        exists: &dyn Fn(&str) -> bool,
        make: impl Fn(&str) -> T,
        of: impl Fn(&Lease) -> T,
    ) -> T {
        let taken = |value: &T| {
            self.by_name
                .iter()
                .any(|(other, lease)| other != name && of(lease) == *value && self.still_held(other) && exists(other))
        };
        let mut value = make(&format!("{salt} {name}"));
        for number in 1.. {
            if !taken(&value) {
                break;
            }
            // No container is called so.
            value = make(&format!("{salt} {name} {number}"));
        }
        value
    }

    /// The first free address from where the name leads to.
    fn find(&mut self, name: &str, subnet: Prefix, exists: &dyn Fn(&str) -> bool) -> Result<Ipv4Addr> {
        let taken = |address: Ipv4Addr| {
            let holder = self.by_address.get(&address).filter(|holder| *holder != name);
            holder.is_some_and(|holder| self.still_held(holder) && exists(holder))
        };
        let found = subnet::address4(name, subnet, taken)?;
        self.evict(found);
        Ok(found)
    }

    fn claim(
        &mut self,
        name: &str,
        address: Ipv4Addr,
        subnet: Prefix,
        exists: &dyn Fn(&str) -> bool,
        attached: &dyn Fn(&str) -> bool,
    ) -> Result<Ipv4Addr> {
        refuse_outside(address.into(), subnet)?;
        let holder = self.by_address.get(&address).filter(|holder| *holder != name && exists(holder));
        if let Some(holder) = holder.filter(|holder| attached(holder)) {
            return Err(error(format!("the address `{address}` is in use by `{holder}`"))
                .kind(Kind::Exists)
                .hint("choose another, or none: then one is found that is free"));
        }
        self.evict(address);
        Ok(address)
    }

    fn claim6(
        &mut self,
        name: &str,
        address: Ipv6Addr,
        prefix: Prefix,
        exists: &dyn Fn(&str) -> bool,
    ) -> Result<Ipv6Addr> {
        refuse_outside(address.into(), prefix)?;
        let holder = self.by_name.iter().find(|(other, lease)| lease.address6 == address && *other != name);
        match holder.filter(|(holder, _)| exists(holder)) {
            Some((holder, _)) => Err(error(format!("the address `{address}` belongs to `{holder}`"))
                .kind(Kind::Exists)
                .hint("choose another, or none: then one is found that is free")),
            None => Ok(address),
        }
    }

    /// Whoever has this address gets another one next time.
    fn evict(&mut self, address: Ipv4Addr) {
        if let Some(holder) = self.by_address.get(&address).cloned() {
            self.release(&holder);
        }
    }

    /// Not forced to disk: what is lost in a power failure is mostly found again by the name.
    fn write(&self, name: &str, lease: &Lease) -> Result<()> {
        let bytes = serde_json::to_vec(lease).map_err(|e| error(e.to_string()))?;
        // No container's name begins with a dot.
        let temporary = self.dir.join(format!(".{name}"));
        let path = self.dir.join(name);
        fs::write(&temporary, bytes)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("writing `{}`", path.display()))
    }
}

fn refuse_outside(address: std::net::IpAddr, prefix: Prefix) -> Result<()> {
    let gateway = subnet::gateway(prefix);
    if prefix.contains(address) && address != gateway && address != prefix.address() && !is_last(address, prefix) {
        return Ok(());
    }
    let why = if address == gateway { "the host's own" } else { "no address for a container" };
    Err(error(format!("the address `{address}` is {why} in the containers' network `{prefix}`"))
        .kind(Kind::Invalid)
        .hint(format!("choose one of {prefix} beside the first and the last, or none: then one is found that is free")))
}

/// The broadcast address of IPv4.
fn is_last(address: std::net::IpAddr, prefix: Prefix) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => {
            v4.to_bits() | (u32::MAX.checked_shl(32 - u32::from(prefix.length())).unwrap_or(0)) == u32::MAX
        }
        std::net::IpAddr::V6(_) => false,
    }
}

/// What the files in `dir` say, by name.
pub fn list(dir: &Path) -> Result<BTreeMap<String, Lease>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other.with_context(|| format!("reading `{}`", dir.display()))?,
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names
        .filter(|name| !name.starts_with('.'))
        .filter_map(|name| Some((read(&dir.join(&name))?, name)))
        .map(|(lease, name)| (name, lease))
        .collect())
}

/// The lease goes where the container goes.
pub fn rename(dir: &Path, from: &str, to: &str) {
    // Mostly there is one; without it, the new name leads to an address.
    let _ = fs::rename(dir.join(from), dir.join(to));
}

/// The container is gone.
pub fn remove(dir: &Path, name: &str) {
    // It may never have been connected.
    let _ = fs::remove_file(dir.join(name));
}

fn read(path: &Path) -> Option<Lease> {
    let bytes = read_bounded(fs::File::open(path).ok()?, LONGEST).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct World(PathBuf);

    impl World {
        fn new(name: &str) -> World {
            let dir = std::env::temp_dir().join(format!("lazaret-leases-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            World(dir)
        }

        fn leases(&self) -> Leases {
            Leases::open(&self.0).unwrap()
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn nets() -> [Prefix; 2] {
        ["10.90.0.0/28".parse().unwrap(), "fd00:1:2:1::/64".parse().unwrap()]
    }

    fn everybody(_: &str) -> bool {
        true
    }

    fn nobody(_: &str) -> bool {
        false
    }

    fn take(leases: &mut Leases, name: &str) -> Result<Lease> {
        leases.take(name, "salt", Wish::default(), nets(), &everybody, &nobody)
    }

    fn wish4(address: &str) -> Wish {
        Wish { address4: Some(address.parse().unwrap()), ..Wish::default() }
    }

    #[test]
    fn an_address_stays_with_its_container_and_belongs_to_no_other() {
        let world = World::new("stay");
        let mut leases = world.leases();
        let all: Vec<_> = (0..13).map(|i| take(&mut leases, &format!("c{i}")).unwrap().address4).collect();
        let mut different = all.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), 13, "{all:?}");
        assert!(take(&mut leases, "one-too-many").is_err());
        let mut again = world.leases();
        assert_eq!(all, (0..13).map(|i| take(&mut again, &format!("c{i}")).unwrap().address4).collect::<Vec<_>>());
    }

    #[test]
    fn a_container_that_is_gone_holds_nothing() {
        let world = World::new("gone");
        let mut leases = world.leases();
        for i in 0..13 {
            take(&mut leases, &format!("c{i}")).unwrap();
        }
        let gone = |name: &str| name != "c5";
        let lease = leases.take("new", "salt", Wish::default(), nets(), &gone, &nobody).unwrap();
        assert_eq!(list(&world.0).unwrap().values().filter(|other| other.address4 == lease.address4).count(), 1);
        remove(&world.0, "c6");
        take(&mut leases, "newer").unwrap();
    }

    #[test]
    fn a_wish_is_granted_unless_somebody_uses_the_address() {
        let world = World::new("wish");
        let mut leases = world.leases();
        let by_chance = take(&mut leases, "a").unwrap().address4.to_string();
        let attached = |name: &str| name == "a";
        let refused = leases.take("b", "salt", wish4(&by_chance), nets(), &everybody, &attached).unwrap_err();
        assert!(refused.to_string().contains("in use by `a`"), "{refused}");
        let granted = leases.take("b", "salt", wish4(&by_chance), nets(), &everybody, &nobody).unwrap();
        assert_eq!(granted.address4.to_string(), by_chance);
        assert_ne!(take(&mut leases, "a").unwrap().address4.to_string(), by_chance);
        for bad in ["10.90.0.0", "10.90.0.1", "10.90.0.15", "10.91.0.3"] {
            assert!(leases.take("b", "salt", wish4(bad), nets(), &everybody, &nobody).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_renamed_container_keeps_its_addresses() {
        let world = World::new("rename");
        let mut leases = world.leases();
        let before = take(&mut leases, "old").unwrap();
        rename(&world.0, "old", "new");
        let after = take(&mut leases, "new").unwrap();
        assert_eq!(before, after);
        let other = take(&mut leases, "old").unwrap();
        assert_ne!(other.address4, before.address4);
        assert_ne!(other.address6, before.address6);
        assert_ne!(other.mac, before.mac);
    }

    #[test]
    fn another_subnet_makes_other_leases() {
        let world = World::new("move");
        let mut leases = world.leases();
        take(&mut leases, "a").unwrap();
        let moved = ["192.168.77.0/24".parse().unwrap(), nets()[1]];
        let lease = leases.take("a", "salt", Wish::default(), moved, &everybody, &nobody).unwrap();
        assert!(moved[0].contains(lease.address4.into()));
    }
}

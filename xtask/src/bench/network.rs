//! The network: starts with one, many on one bridge, answers for names, and what passes through.
//!
//! All of it is on a host with a network namespace of its own, and so are the peers: LXC on a bridge as lxc-net
//! makes it, dnsmasq, and a bridge without any rules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::contest::{Contender, Row, Target, begin, timed};
use super::peers::Lxc;
use super::{Effort, Field, shell};
use crate::Result;
use crate::stage::stage;

/// How many are connected to one bridge.
const MANY: usize = 200;

/// The container that is started, and the one that is loaded.
const STARTED: &str = "connected";
const LOADED: &str = "loaded";

/// The rows that need so many.
const LAST: &str = "start, as the 200th";
const CHANGE: &str = "policy change, among 200";

/// Queries of one turn.
const QUERIES: &str = "20000";

/// Bytes of one turn.
const POURED: &str = "1073741824";

/// A host with neighbours, and what runs on it.
pub struct World<'a> {
    field: &'a Field,
    host: Holder,
    _far: Holder,
    bare: Holder,
    servers: Vec<Child>,
}

/// Whoever keeps a network namespace.
struct Holder {
    child: Child,
    pid: u32,
}

/// LXC looks for its bridge in sysfs, which shows the network of whoever has mounted it.
const SHOWN: &str = "
    mkdir sysfs && mount -t sysfs sysfs sysfs
    for part in class/net devices/virtual/net; do mount --bind sysfs/$part /sys/$part; done
";

impl Holder {
    /// With something done first, in a mount namespace of its own.
    fn new(first: &str, dir: &Path) -> Result<Holder> {
        let making = |e: std::io::Error| format!("making a network namespace: {e}");
        let mut unshare = Command::new("unshare");
        let script = format!("set -e; ip link set lo up; {first}\necho ready; cd /; exec cat");
        unshare.args(["--net", "--mount", "--propagation", "private", "/bin/sh", "-c", &script]).current_dir(dir);
        let mut child = unshare.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(making)?;
        let out = child.stdout.take().ok_or("unshare says nothing")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut String::new()).map_err(making)?;
        Ok(Holder { pid: child.id(), child })
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `$HOST`, `$FAR` and `$BARE` are processes by whose namespaces the hosts are known.
const NEIGHBOURS: &str = "
    on() { nsenter --net=/proc/$1/ns/net -- sh -ec \"$2\"; }
    on $HOST \"ip link add wide0 type veth peer name eth0 netns $FAR
        ip address add 198.51.100.2/24 dev wide0; ip link set wide0 up
        ip link add lxcbr0 type bridge; ip address add 10.0.3.1/24 dev lxcbr0; ip link set lxcbr0 up
        ip link add bare0 type bridge; ip address add 10.77.0.1/24 dev bare0; ip link set bare0 up
        ip link add port0 type veth peer name eth0 netns $BARE; ip link set port0 master bare0 up\"
    on $FAR 'ip address add 198.51.100.1/24 dev eth0; ip address add 203.0.113.7/32 dev lo; ip link set eth0 up'
    on $HOST 'ip route add default via 198.51.100.1; sysctl -qw net.ipv4.ip_forward=1
        nft add table ip lxc; nft \"add chain ip lxc post { type nat hook postrouting priority 100; }\"
        nft add rule ip lxc post ip saddr 10.0.3.0/24 ip daddr != 10.0.3.0/24 counter masquerade'
    on $BARE 'ip address add 10.77.0.2/24 dev eth0; ip link set eth0 up'
";

impl<'a> World<'a> {
    /// Makes the host, its neighbours and the containers.
    pub fn prepare(field: &'a Field, lxc: &Lxc, effort: &Effort) -> Result<World<'a>> {
        let dir = &field.world.dir;
        let (host, far, bare) = (Holder::new(SHOWN, dir)?, Holder::new("", dir)?, Holder::new("", dir)?);
        let mut script = shell(NEIGHBOURS, &field.world.dir);
        for (name, holder) in [("HOST", &host), ("FAR", &far), ("BARE", &bare)] {
            script.env(name, holder.pid.to_string());
        }
        timed(script)?;
        let mut world = World { field, host, _far: far, bare, servers: Vec::new() };
        let names = [
            (world._far.pid, vec!["--listen-address=203.0.113.7", "--host-record=cached.example,203.0.113.9"]),
            (
                world.host.pid,
                vec!["--listen-address=10.0.3.1", "--server=203.0.113.7", "--host-record=two.lazaret,10.0.3.9"],
            ),
        ];
        for (pid, words) in names {
            let mut dnsmasq = inside(pid, Path::new("/usr/sbin/dnsmasq"));
            dnsmasq.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file="]);
            dnsmasq.args(["--bind-interfaces", "--local-ttl=3600", "--dns-forward-max=1000"]).args(words);
            dnsmasq.stdout(Stdio::null()).stderr(Stdio::null());
            world.servers.push(dnsmasq.spawn().map_err(|e| format!("running dnsmasq: {e}"))?);
        }
        lxc.define_connected(STARTED, "lxcbr0", "10.0.3.5/24", "10.0.3.1")?;
        stage("containers with a network", || world.create(effort).map(|count| format!("{count}")))?;
        Ok(world)
    }

    /// Two installations: one with a handful of containers, one with as many as there are to be.
    fn create(&self, effort: &Effort) -> Result<usize> {
        let alone = [STARTED, LOADED, "two"];
        alone.iter().try_for_each(|name| self.make(false, name))?;
        for (name, settings) in [
            (LOADED, &["network.peers=two", "network.host=true", "network.dns=203.0.113.7"][..]),
            ("two", &["network.peers=loaded"]),
        ] {
            timed(self.lazaret(false, &[&["config", name, "set"], settings].concat()))?;
            timed(self.lazaret(false, &["start", name]))?;
        }
        if ![LAST, CHANGE].iter().any(|row| effort.wants(row)) {
            return Ok(alone.len());
        }
        let many = if effort.quick { 20 } else { MANY };
        let names: Vec<String> = (1..many).map(|number| format!("one-of-many-{number}")).collect();
        for name in names.iter().map(String::as_str).chain([STARTED]) {
            self.make(true, name)?;
        }
        for some in names.chunks(20) {
            let begun: Vec<_> =
                some.iter().map(|name| begin(self.lazaret(true, &["start", name]))).collect::<Result<_>>()?;
            begun.into_iter().try_for_each(|one| one.end())?;
        }
        Ok(alone.len() + many)
    }

    fn make(&self, crowded: bool, name: &str) -> Result {
        let rootfs = self.field.rootfs.to_string_lossy();
        let init = r#"init=["/bin/sleep","1000000"]"#;
        timed(self.lazaret(crowded, &["create", name, "--image", &rootfs, "--set", init])).map(drop)
    }

    fn root(&self, crowded: bool) -> PathBuf {
        self.field.world.dir.join(if crowded { "crowded" } else { "connected" })
    }

    /// Our command on that host.
    fn lazaret(&self, crowded: bool, words: &[&str]) -> Command {
        let mut command = inside(self.host.pid, &self.field.lazaret);
        command.arg("--root").arg(self.root(crowded)).args(words);
        command
    }

    fn start(&self, crowded: bool) -> Result<Duration> {
        let spent = timed(self.lazaret(crowded, &["start", STARTED]))?;
        timed(self.lazaret(crowded, &["stop", "--kill", STARTED]))?;
        Ok(spent)
    }

    /// Opens the LAN to a container, or closes it again.
    fn change(&self, crowded: bool) -> Result<Duration> {
        let name = if crowded { "one-of-many-1" } else { "two" };
        let number = self.field.fresh();
        timed(self.lazaret(crowded, &["config", name, "set", &format!("network.lan={}", number.is_multiple_of(2))]))
    }

    /// A load as the loaded container sends it.
    fn load(&self, words: &[&str]) -> Result<Command> {
        let info = self.lazaret(false, &["info", "--json", LOADED]).output().map_err(|e| e.to_string())?;
        let info: serde_json::Value = serde_json::from_slice(&info.stdout).map_err(|e| e.to_string())?;
        Ok(load_in(info["pid"].as_u64().unwrap_or_default() as u32, words))
    }

    fn gateway(&self) -> Result<String> {
        let show = self.lazaret(false, &["network", "show", "--json"]).output().map_err(|e| e.to_string())?;
        let show: serde_json::Value = serde_json::from_slice(&show.stdout).map_err(|e| e.to_string())?;
        Ok(show["gateway"].as_str().unwrap_or_default().to_owned())
    }

    fn names(&self, server: &str, name: &str) -> Result<Duration> {
        timed(self.load(&["dns", server, QUERIES, name])?)
    }

    /// From somewhere to the host.
    fn pour(&self, from: Command, at: &str) -> Result<Duration> {
        let drain = begin(load_in(self.host.pid, &["drain", at]))?;
        let spent = timed(from);
        drain.end()?;
        spent
    }

    /// All rows.
    pub fn rows(&'a self, lxc: &'a Lxc) -> Result<Vec<Row<'a>>> {
        let gateway = self.gateway()?;
        let (ours, ours_too) = (format!("{gateway}:53"), format!("{gateway}:53"));
        let at = format!("{gateway}:5001");
        let starts = Row::new("start, with a network", || self.start(false)).against(Contender::new(
            "lxc-start",
            Some(Target::Ratio(0.7)),
            || {
                let spent = timed(wrapped(self.host.pid, lxc.command("lxc-start", STARTED, &["-d"])))?;
                timed(wrapped(self.host.pid, lxc.command("lxc-stop", STARTED, &["-k"])))?;
                Ok(spent)
            },
        ));
        let last = Row::new(LAST, || self.start(true)).against(Contender::new(
            "as one of few",
            Some(Target::Ratio(1.5)),
            || self.start(false),
        ));
        let change = Row::new(CHANGE, || self.change(true)).against(Contender::new(
            "among few",
            Some(Target::Ratio(1.5)),
            || self.change(false),
        ));
        let local = Row::new("20000 names of containers", move || self.names(&ours, "two.lazaret"))
            .against(Contender::new("dnsmasq", Some(Target::Ratio(1.0)), || self.names("10.0.3.1:53", "two.lazaret")));
        let cached = Row::new("20000 names, cached", move || self.names(&ours_too, "cached.example")).against(
            Contender::new("dnsmasq", Some(Target::Ratio(1.0)), || self.names("10.0.3.1:53", "cached.example")),
        );
        let through = Row::new("1 GiB to the host", move || self.pour(self.load(&["pour", &at, POURED])?, &at))
            .against(Contender::new("bare bridge", Some(Target::Ratio(1.05)), || {
                self.pour(load_in(self.bare.pid, &["pour", "10.77.0.1:5001", POURED]), "10.77.0.1:5001")
            }));
        Ok(vec![starts, last, change, local, cached, through])
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        for crowded in [false, true] {
            // The processes end with it; the containers' files go with the directory.
            let names = self.lazaret(crowded, &["list", "--names"]).output().map(|out| out.stdout).unwrap_or_default();
            for name in String::from_utf8_lossy(&names).lines() {
                let _ = timed(self.lazaret(crowded, &["destroy", "--force", name]));
            }
            let _ = timed(self.lazaret(crowded, &["network", "down", "--force"]));
            let _ = fs::remove_dir_all(self.root(crowded));
        }
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A program in the network namespace of a process.
fn inside(pid: u32, program: &Path) -> Command {
    let mut command = Command::new("/usr/bin/nsenter");
    command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program);
    command
}

/// The same of a command that is there already, with that namespace in its sysfs.
fn wrapped(pid: u32, command: Command) -> Command {
    let mut wrapped = Command::new("/usr/bin/nsenter");
    wrapped.arg(format!("--net=/proc/{pid}/ns/net")).arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("--");
    wrapped.arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(key, value),
            None => wrapped.env_remove(key),
        };
    }
    wrapped
}

fn load_in(pid: u32, words: &[&str]) -> Command {
    // Without a path of our own nothing can be loaded, which the row then says.
    let own = std::env::current_exe().unwrap_or_default();
    let mut command = inside(pid, &own);
    command.args(["bench", "--load"]).args(words);
    command
}

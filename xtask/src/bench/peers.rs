//! The others: LXC, and what else is installed, each told to do what we do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::contest::timed;
use crate::Result;

/// First id of the peers' containers, and how many.
const IDS: (u32, u32) = (1_879_048_192, 65536);

/// Debian's lxc, with containers in a directory of our own.
pub struct Lxc {
    containers: PathBuf,
    rootfs: PathBuf,
    /// Those that were defined.
    defined: std::cell::RefCell<Vec<String>>,
}

impl Lxc {
    /// Defines the one container that most rows use.
    pub fn prepare(scratch: &Path, rootfs: &Path) -> Result<Lxc> {
        let lxc = Lxc { containers: scratch.join("lxc"), rootfs: rootfs.to_owned(), defined: Default::default() };
        lxc.define(super::RUNNING)?;
        Ok(lxc)
    }

    /// Defines a container: unprivileged, files id-mapped, seccomp as Debian has it, no network.
    pub fn define(&self, name: &str) -> Result {
        self.define_with(name, "lxc.net.0.type = empty")
    }

    /// The same, on a bridge, with an address set from outside.
    pub fn define_connected(&self, name: &str, bridge: &str, address: &str, gateway: &str) -> Result {
        let network = format!(
            "lxc.net.0.type = veth\nlxc.net.0.link = {bridge}\nlxc.net.0.flags = up\n\
             lxc.net.0.ipv4.address = {address}\nlxc.net.0.ipv4.gateway = {gateway}"
        );
        self.define_with(name, &network)
    }

    fn define_with(&self, name: &str, network: &str) -> Result {
        let directory = self.containers.join(name);
        let rootfs = self.rootfs.display();
        let (first, count) = IDS;
        let config = format!(
            "lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.uts.name = {name}
lxc.rootfs.path = dir:{rootfs}
lxc.rootfs.options = idmap=container
lxc.rootfs.managed = 0
{network}
lxc.idmap = u 0 {first} {count}
lxc.idmap = g 0 {first} {count}
lxc.init.cmd = /bin/sleep 1000000
lxc.apparmor.profile = unconfined
"
        );
        let written = fs::create_dir_all(&directory).and_then(|()| fs::write(directory.join("config"), config));
        self.defined.borrow_mut().push(name.to_owned());
        written.map_err(|e| format!("writing the configuration of LXC's `{name}`: {e}"))
    }

    /// One of its tools. Without a PATH it finds no newuidmap, and root writes the id map itself: no line of
    /// /etc/subuid is needed, and no time is lost.
    pub fn command(&self, tool: &str, name: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(format!("/usr/bin/{tool}"));
        command.env("PATH", "").arg("-P").arg(&self.containers).args(["-n", name]).args(arguments);
        command
    }
}

impl Drop for Lxc {
    fn drop(&mut self) {
        for name in self.defined.borrow().iter() {
            // Mostly it does not run any more.
            let _ = timed(self.command("lxc-stop", name, &["-k"]));
        }
    }
}

/// Tools that run one program and are done.
pub struct Others {
    scratch: PathBuf,
    rootfs: PathBuf,
    installed: Vec<&'static str>,
}

const KNOWN: &[(&str, &str)] = &[
    ("bubblewrap", "/usr/bin/bwrap"),
    ("crun", "/usr/bin/crun"),
    ("podman", "/usr/bin/podman"),
    ("systemd-nspawn", "/usr/bin/systemd-nspawn"),
];

impl Others {
    /// Looks who is there.
    pub fn prepare(scratch: &Path, rootfs: &Path) -> Result<Others> {
        let installed = KNOWN.iter().filter(|(_, program)| Path::new(program).exists()).map(|(name, _)| *name);
        let others = Others { scratch: scratch.to_owned(), rootfs: rootfs.to_owned(), installed: installed.collect() };
        if others.installed.contains(&"crun") {
            others.write_bundle()?;
        }
        Ok(others)
    }

    /// Those who are there.
    pub fn names(&self) -> Vec<&'static str> {
        self.installed.clone()
    }

    /// The command that runs /bin/true in a new container; `number` was not used before.
    pub fn command(&self, name: &str, number: u32) -> Command {
        let program = KNOWN.iter().find(|(known, _)| *known == name).map_or(name, |(_, program)| *program);
        let mut command = Command::new(program);
        let (first, count) = IDS;
        match name {
            "bubblewrap" => {
                let namespaces = ["user", "pid", "net", "uts", "ipc", "cgroup"].map(|ns| format!("--unshare-{ns}"));
                command.args(namespaces).args(["--uid", "0", "--gid", "0", "--ro-bind"]).arg(&self.rootfs).arg("/");
                command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "/bin/true"]);
            }
            "crun" => {
                command.args(["--cgroup-manager", "cgroupfs", "run", "--bundle"]).arg(self.scratch.join("bundle"));
                command.arg(format!("bench-{number}"));
            }
            "podman" => {
                command.args(["--cgroup-manager", "cgroupfs", "--root"]).arg(self.scratch.join("podman"));
                command.arg("--runroot").arg(self.scratch.join("podman-run"));
                command.args(["run", "--rm", "--network", "none", "--read-only", "--rootfs"]).arg(&self.rootfs);
                command.arg("/bin/true");
            }
            _ => {
                command.args(["--quiet", "--register=no", "--keep-unit", "--private-network", "--read-only"]);
                command.arg(format!("--private-users={first}:{count}")).arg("-D").arg(&self.rootfs).arg("/bin/true");
            }
        }
        command
    }

    /// crun's own default, with our root file system, program and ids.
    fn write_bundle(&self) -> Result {
        let bundle = self.scratch.join("bundle");
        let writing = |e: std::io::Error| format!("writing a bundle for crun: {e}");
        fs::create_dir(&bundle).map_err(writing)?;
        timed({
            let mut spec = Command::new("crun");
            spec.arg("spec").current_dir(&bundle);
            spec
        })?;
        let path = bundle.join("config.json");
        let text = fs::read_to_string(&path).map_err(writing)?;
        let mut config: Value = serde_json::from_str(&text).map_err(|e| format!("reading crun's own spec: {e}"))?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/true"]);
        config["root"]["path"] = json!(self.rootfs);
        let map = json!([{ "containerID": 0, "hostID": IDS.0, "size": IDS.1 }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
        if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut() {
            namespaces.push(json!({ "type": "user" }));
        }
        fs::write(&path, config.to_string()).map_err(writing)
    }
}

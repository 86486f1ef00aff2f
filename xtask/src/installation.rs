//! An installation to throw away: a directory of its own, gone with all containers in it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::Result;
use crate::place::as_root;

/// A directory below `/var/tmp`, on a disk, with the state of an installation in it.
pub struct Installation {
    /// The directory. `state` in it is the installation's, `bin` holds the command.
    pub dir: PathBuf,
    /// Whoever holds a network namespace for it, if it has one of its own.
    host: Option<Host>,
}

/// A network namespace that lasts as long as this.
struct Host {
    holder: Child,
    pid: u32,
}

impl Host {
    fn new() -> Result<Host> {
        let making = |e: std::io::Error| format!("making a network namespace: {e}");
        let script = "ip link set lo up && echo $$ && exec cat";
        let mut unshare = as_root("unshare".as_ref(), &[])?;
        unshare.args(["--net", "/bin/sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = unshare.spawn().map_err(making)?;
        let mut said = String::new();
        let out = holder.stdout.take().ok_or("unshare says nothing")?;
        BufReader::new(out).read_line(&mut said).map_err(making)?;
        let pid = said.trim().parse().map_err(|_| "making a network namespace failed")?;
        Ok(Host { holder, pid })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Its input ends with ours, and it with its input.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

impl Installation {
    /// Makes it, for this command `lazaret`. What a killed run for the same purpose left is cleared away.
    pub fn new(purpose: &str, lazaret: &Path) -> Result<Installation> {
        let prefix = format!("lazaret-{purpose}-");
        for entry in fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(&prefix).and_then(|pid| pid.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                drop(Installation { dir: entry.path(), host: None });
            }
        }
        let dir = Path::new("/var/tmp").join(format!("{prefix}{}", std::process::id()));
        let making = |e: std::io::Error| format!("making `{}`: {e}", dir.display());
        fs::create_dir_all(dir.join("bin")).map_err(making)?;
        std::os::unix::fs::symlink(lazaret, dir.join("bin/lazaret")).map_err(making)?;
        Ok(Installation { dir, host: None })
    }

    /// The same on a host with a network of its own: tests are not to change the machine's.
    pub fn apart(purpose: &str, lazaret: &Path) -> Result<Installation> {
        let mut installation = Installation::new(purpose, lazaret)?;
        installation.host = Some(Host::new()?);
        Ok(installation)
    }

    /// A program run by root, on the host that the installation has.
    fn as_root(&self, program: &Path, variables: &[(&str, &str)]) -> Result<Command> {
        let Some(host) = &self.host else { return as_root(program, variables) };
        let mut command = as_root("nsenter".as_ref(), variables)?;
        command.arg(format!("--net=/proc/{}/ns/net", host.pid)).arg("--").arg(program);
        Ok(command)
    }

    /// The command, run by root.
    pub fn lazaret(&self, words: &[&str]) -> Result<Command> {
        let mut command = self.as_root(&self.dir.join("bin/lazaret"), &[])?;
        command.arg("--root").arg(self.dir.join("state")).args(words);
        Ok(command)
    }

    /// A script, run by root, for which `lazaret` is this installation's.
    pub fn shell(&self, script: &str) -> Result<Command> {
        let dir = self.dir.to_string_lossy();
        let path = format!("{dir}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let root = format!("{dir}/state");
        let variables = [("PATH", &*path), ("LAZARET_ROOT", &*root), ("LC_ALL", "C.UTF-8"), ("TERM", "xterm")];
        let mut shell = self.as_root("/bin/bash".as_ref(), &variables)?;
        shell.args(["-c", script]).stdin(Stdio::null());
        Ok(shell)
    }

    /// What the command prints, which is JSON.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let asking = || format!("asking `lazaret {}`", words.join(" "));
        let output = self.lazaret(words)?.output().map_err(|e| format!("{}: {e}", asking()))?;
        serde_json::from_slice(&output.stdout).map_err(|e| format!("{}: {e}", asking()))
    }

    fn clear(&self) -> Result {
        // What runs would keep the directory.
        for container in self.ask(&["list", "--json"])?.as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default();
            self.lazaret(&["destroy", "--force", "--quiet", name])?.status().map_err(|e| e.to_string())?;
        }
        if self.dir.join("state/run/netd").exists() {
            self.lazaret(&["network", "down", "--force"])?.status().map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Best effort: what can't be removed is in a place that is cleaned.
        let _ = self.clear();
        // What is mounted there: the benchmark's run directory, and what podman keeps of its own.
        for mounted in ["state/run", "podman/overlay"].map(|part| self.dir.join(part)).iter().filter(|dir| dir.exists())
        {
            let _ = as_root("umount".as_ref(), &[]).map(|mut umount| umount.args(["-q", "-l"]).arg(mounted).status());
        }
        let _ = as_root("rm".as_ref(), &[]).map(|mut rm| rm.arg("-rf").arg(&self.dir).status());
    }
}

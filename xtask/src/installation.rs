//! An installation to throw away: a directory of its own, gone with all containers in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;
use crate::place::as_root;

/// A directory below `/var/tmp`, on a disk, with the state of an installation in it.
pub struct Installation {
    /// The directory. `state` in it is the installation's, `bin` holds the command.
    pub dir: PathBuf,
}

impl Installation {
    /// Makes it, for this command `lazaret`. What a killed run for the same purpose left is cleared away.
    pub fn new(purpose: &str, lazaret: &Path) -> Result<Installation> {
        let prefix = format!("lazaret-{purpose}-");
        for entry in fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.strip_prefix(&prefix).and_then(|pid| pid.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                drop(Installation { dir: entry.path() });
            }
        }
        let dir = Path::new("/var/tmp").join(format!("{prefix}{}", std::process::id()));
        let making = |e: std::io::Error| format!("making `{}`: {e}", dir.display());
        fs::create_dir_all(dir.join("bin")).map_err(making)?;
        std::os::unix::fs::symlink(lazaret, dir.join("bin/lazaret")).map_err(making)?;
        Ok(Installation { dir })
    }

    /// The command, run by root.
    pub fn lazaret(&self, words: &[&str]) -> Result<Command> {
        let mut command = as_root(&self.dir.join("bin/lazaret"), &[])?;
        command.arg("--root").arg(self.dir.join("state")).args(words);
        Ok(command)
    }

    /// A script, run by root, for which `lazaret` is this installation's.
    pub fn shell(&self, script: &str) -> Result<Command> {
        let dir = self.dir.to_string_lossy();
        let path = format!("{dir}/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let root = format!("{dir}/state");
        let variables = [("PATH", &*path), ("LAZARET_ROOT", &*root), ("LC_ALL", "C.UTF-8"), ("TERM", "xterm")];
        let mut shell = as_root("/bin/bash".as_ref(), &variables)?;
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
        Ok(())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Best effort: what can't be removed is in a place that is cleaned.
        let _ = self.clear();
        let _ = as_root("rm".as_ref(), &[]).map(|mut rm| rm.arg("-rf").arg(&self.dir).status());
    }
}

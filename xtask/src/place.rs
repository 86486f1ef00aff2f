//! Where things are: the source, what is built of it, and who we are.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;

/// The top of the source.
pub fn source() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds: this program is `TARGET/PROFILE/xtask`.
pub fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let target = own.parent().and_then(Path::parent);
    target.map(Path::to_owned).ok_or_else(|| format!("`{}` is not where cargo puts programs", own.display()))
}

/// The user and group that runs this program.
pub fn ids() -> Result<(u32, u32)> {
    let own = fs::metadata("/proc/self").map_err(|e| format!("looking at `/proc/self`: {e}"))?;
    Ok((own.uid(), own.gid()))
}

/// A command that root runs. Variables are named, since sudo passes none on.
pub fn as_root(program: &Path, variables: &[(&str, &str)]) -> Result<Command> {
    let mut command = if ids()?.0 == 0 {
        Command::new(program)
    } else {
        let mut command = Command::new("sudo");
        command.arg("env").args(variables.iter().map(|(key, value)| format!("{key}={value}"))).arg(program);
        command
    };
    command.envs(variables.iter().copied());
    Ok(command)
}

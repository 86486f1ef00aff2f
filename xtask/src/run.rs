//! Programs that are run, and what they say: standard output and standard error as one stream.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use crate::Result;

/// Runs a program to its end; what it says is shown only if it fails.
pub fn quietly(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (said, status) = listen(command, |_| {})?;
    match status.success() {
        true => Ok(said),
        false => Err(format!("{name} failed ({status})\n{}", said.trim_end())),
    }
}

/// Runs a program to its end and hears each line as it comes.
pub fn listen(command: &mut Command, mut hear: impl FnMut(&str)) -> Result<(String, ExitStatus)> {
    let name = command.get_program().to_string_lossy().into_owned();
    let pipe = std::io::pipe().and_then(|(read, write)| Ok((read, write.try_clone()?, write)));
    let (read, out, err) = pipe.map_err(|e| format!("making a pipe: {e}"))?;
    let spawned = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
    // The command holds our copies of the pipe's other end, which would keep it open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawned.map_err(|e| format!("running {name}: {e}"))?;
    let mut said = String::new();
    for line in BufReader::new(read).split(b'\n') {
        let line = line.map_err(|e| format!("reading what {name} says: {e}"))?;
        let line = String::from_utf8_lossy(&line);
        hear(&line);
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().map_err(|e| format!("waiting for {name}: {e}"))?;
    Ok((said, status))
}

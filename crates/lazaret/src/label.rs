//! The AppArmor profile that containers run under where AppArmor is on.
//!
//! It is the outermost of several walls and no container depends on it: within its user namespace a system
//! container mounts, traces and signals as it likes, and this profile lets it. What the profile adds is that
//! the few files of proc and sys that reach the whole host stay closed even if every other wall had a hole.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use lazaret_base::{Context, Result, error};
use lazaret_runtime::host::{Host, Label};

/// Its name. The version is part of it: containers that run keep the one they were started under.
pub const PROFILE: &str = "lazaret-container-1";

/// What is denied, below proc and sys: a table, so that `lazaret info` and the manual can show it.
const DENIED: &[(&str, &str)] = &[
    ("@{PROC}/kcore", "rwklx"),
    ("@{PROC}/kmem", "rwklx"),
    ("@{PROC}/mem", "rwklx"),
    ("@{PROC}/sysrq-trigger", "rwklx"),
    ("@{PROC}/sys/fs/binfmt_misc/**", "wklx"),
    ("@{PROC}/sys/kernel/core_pattern", "wklx"),
    ("@{PROC}/sys/kernel/modprobe", "wklx"),
    ("@{PROC}/sys/kernel/hotplug", "wklx"),
    ("@{PROC}/sys/kernel/sysrq", "wklx"),
    ("@{PROC}/sys/vm/**", "wklx"),
    ("/sys/firmware/**", "wklx"),
    ("/sys/kernel/debug/**", "rwklx"),
    ("/sys/kernel/security/**", "rwklx"),
    ("/sys/kernel/tracing/**", "rwklx"),
    ("/sys/module/**", "wklx"),
    ("/sys/power/**", "wklx"),
];

/// The profile's text, in the language of apparmor.d(5).
fn text() -> String {
    let denied: String = DENIED.iter().map(|(path, access)| format!("  deny {path} {access},\n")).collect();
    format!(
        "#include <tunables/global>\n\
         profile {PROFILE} flags=(attach_disconnected,mediate_deleted) {{\n\
         \x20 file,\n  capability,\n  network,\n  mount,\n  remount,\n  umount,\n  pivot_root,\n  dbus,\n  unix,\n\
         \x20 signal (send, receive) peer={PROFILE},\n  signal (receive) peer=unconfined,\n\
         \x20 ptrace (trace, read, tracedby, readby) peer={PROFILE},\n  ptrace (tracedby, readby) peer=unconfined,\n\
         {denied}}}\n"
    )
}

/// The label for a container whose configuration names none: our profile, loaded if it was not yet.
///
/// An error where AppArmor is on but the profile can't be had: to be said aloud, not to stop a start, since
/// no wall that matters is made of it.
pub(crate) fn default_label(host: &Host) -> Result<Option<String>> {
    if host.label != Label::AppArmor {
        return Ok(None);
    }
    if !is_loaded() {
        load().context("AppArmor is on, but the container runs without its label")?;
    }
    Ok(Some(PROFILE.into()))
}

fn is_loaded() -> bool {
    let loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles").unwrap_or_default();
    loaded.lines().any(|line| line.strip_prefix(PROFILE).is_some_and(|rest| rest.starts_with(' ')))
}

/// Has apparmor_parser(8) compile and load the profile. Takes some 100 ms, once after each boot.
fn load() -> Result<()> {
    let mut parser = Command::new("/sbin/apparmor_parser")
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("running apparmor_parser")
        .hint("install it: apt install apparmor")?;
    if let Some(mut stdin) = parser.stdin.take() {
        stdin.write_all(text().as_bytes()).context("telling apparmor_parser")?;
    }
    let done = parser.wait_with_output().context("waiting for apparmor_parser")?;
    match done.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&done.stderr);
            Err(error(format!("apparmor_parser says: {}", said.lines().next().unwrap_or("nothing"))))
        }
    }
}

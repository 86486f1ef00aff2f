//! How an init is asked to end, in the way it understands.
//!
//! An init that has not yet set up its signal handlers would lose the request: the kernel drops what
//! process 1 neither catches nor blocks (pid_namespaces(7)). So its signal masks are looked at first.

use lazaret_base::{Context, Result, error};
use rustix::process::Pid;

/// What is known of an init, from the host's proc.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Init {
    /// Its name, as of `/proc/PID/comm`.
    pub name: String,
    /// Signals that would reach it: caught or blocked, bit N-1 for signal N.
    pub listens: u64,
    /// Whether it sits in sigtimedwait(2). The kernel shows what it waits for as not blocked then.
    pub waits: bool,
}

/// How to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// By a signal.
    Signal(i32),
    /// By a command of its own, run inside.
    Run(&'static [&'static str]),
    /// Not yet: it would not hear.
    NotYet,
}

const TERM: i32 = 15;
const USR2: i32 = 12;
const PWR: i32 = 30;

/// Looks at process 1 of a container.
pub fn look(pid: Pid) -> Result<Init> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))
        .context("reading the status of the container's init")?;
    let init = parse(&status).ok_or_else(|| error("the status of the container's init makes no sense"))?;
    // Where the kernel does not tell, what is caught or blocked must do.
    let call = std::fs::read_to_string(format!("/proc/{}/syscall", pid.as_raw_nonzero())).unwrap_or_default();
    Ok(Init { waits: waits_for_signals(&call), ..init })
}

/// Whether `/proc/PID/syscall` (proc_pid_syscall(5)) is of a process in rt_sigtimedwait, in the numbers of
/// x86_64 and arm64, or of 32-bit programs on them.
fn waits_for_signals(call: &str) -> bool {
    let number = call.split_whitespace().next().unwrap_or_default();
    match std::env::consts::ARCH {
        "x86_64" => ["128", "177", "421"].contains(&number),
        _ => ["137", "177", "421"].contains(&number),
    }
}

/// Reads what matters of `/proc/PID/status` (proc_pid_status(5)).
pub fn parse(status: &str) -> Option<Init> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let mask = |name| u64::from_str_radix(field(name)?, 16).ok();
    Some(Init { name: field("Name")?.to_owned(), listens: mask("SigBlk")? | mask("SigCgt")?, waits: false })
}

/// Decides how to ask: `wanted` is the signal that the configuration names, if any.
pub fn how(init: &Init, wanted: Option<i32>) -> Ask {
    let hears = |signal: i32| init.listens & (1 << (signal - 1)) != 0;
    let signal = |signal| if hears(signal) || init.waits { Ask::Signal(signal) } else { Ask::NotYet };
    if let Some(wanted) = wanted {
        return signal(wanted);
    }
    // systemd(1): SIGRTMIN+4 powers off.
    let power_off = lazaret_sys::signal::real_time(4);
    match init.name.as_str() {
        "systemd" => signal(power_off),
        "openrc-init" => Ask::Run(&["openrc-shutdown", "--poweroff", "now"]),
        // sysvinit listens to SIGPWR, which only runs what inittab(5) has for a power failure.
        "init" if hears(PWR) => Ask::Run(&["telinit", "0"]),
        // busybox init: SIGUSR2 powers off.
        "init" | "busybox" | "linuxrc" => signal(USR2),
        _ => signal(TERM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(name: &str, listens: &[i32]) -> Init {
        Init { name: name.into(), listens: listens.iter().map(|s| 1u64 << (s - 1)).sum(), waits: false }
    }

    #[test]
    fn each_init_is_asked_in_its_own_way() {
        assert_eq!(how(&init("systemd", &[38]), None), Ask::Signal(38));
        assert_eq!(how(&init("init", &[12, 15]), None), Ask::Signal(12));
        assert_eq!(how(&init("init", &[12, 30]), None), Ask::Run(&["telinit", "0"]));
        assert_eq!(how(&init("openrc-init", &[]), None), Ask::Run(&["openrc-shutdown", "--poweroff", "now"]));
        assert_eq!(how(&init("lazaret-init", &[15]), None), Ask::Signal(15));
        assert_eq!(how(&init("nginx", &[3, 15]), Some(3)), Ask::Signal(3));
    }

    #[test]
    fn an_init_that_would_not_hear_is_not_asked_yet() {
        assert_eq!(how(&init("systemd", &[]), None), Ask::NotYet);
        assert_eq!(how(&init("sh", &[]), None), Ask::NotYet);
        assert_eq!(how(&init("nginx", &[15]), Some(3)), Ask::NotYet);
    }

    #[test]
    fn an_init_that_waits_for_signals_hears() {
        let busybox = Init { waits: true, ..init("init", &[20]) };
        assert_eq!(how(&busybox, None), Ask::Signal(12));
        assert!(!waits_for_signals("running"));
        assert!(!waits_for_signals(""));
    }

    #[test]
    fn the_status_of_a_process_is_read() {
        let text = "Name:\tsystemd\nUmask:\t0000\nSigBlk:\t7fe3c0fe28014a03\nSigIgn:\t0000000000001000\nSigCgt:\t00000000000004ec\n";
        let systemd = parse(text).unwrap();
        assert_eq!(systemd.name, "systemd");
        assert_eq!(how(&systemd, None), Ask::Signal(38));
        assert_eq!(parse("Name:\tx\n"), None);
    }
}

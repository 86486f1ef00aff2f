//! Signals by name.

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::suggest::did_you_mean;
use crate::text::{invalid, quoted};

/// A signal: `SIGTERM`, `term`, `SIGRTMIN+3`, `15`; shown by its name.
///
/// Real-time names count from 34, as glibc does: what systemd calls SIGRTMIN+3 is 37, whatever library we are
/// built with (signal(7), "Real-time signals").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(u8);

const FIRST_REAL_TIME: u8 = 34;
const LAST: u8 = 64;

/// The names of signals 1 to 31 (include/uapi/asm-generic/signal.h; x86, arm, riscv and most others share them).
pub(crate) const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Signal {
    /// Asks a program to end.
    pub const TERM: Signal = Signal(15);
    /// Ends a program without asking.
    pub const KILL: Signal = Signal(9);
    /// Asks systemd to power off (systemd(1), "SIGNALS").
    pub const RTMIN_PLUS_3: Signal = Signal(FIRST_REAL_TIME + 3);
    /// Asks sysvinit and its like to power off (init(8)).
    pub const PWR: Signal = Signal(30);

    /// The number that kill(2) takes, 1 to 64.
    pub fn number(self) -> i32 {
        self.0.into()
    }
}

impl TryFrom<i32> for Signal {
    type Error = Error;

    fn try_from(number: i32) -> Result<Signal, Error> {
        match u8::try_from(number) {
            Ok(number @ 1..=LAST) => Ok(Signal(number)),
            _ => Err(invalid(format!("there is no signal {number}"), "signals are numbered from 1 to 64")),
        }
    }
}

impl FromStr for Signal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Signal, Error> {
        if let Ok(number) = text.parse::<i32>() {
            return number.try_into();
        }
        let upper = text.to_ascii_uppercase();
        let short = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some(i) = NAMES.iter().position(|name| name[3..] == *short) {
            return Ok(Signal(i as u8 + 1));
        }
        let offset = |text: &str| if text.is_empty() { Some(0) } else { text[1..].parse::<u8>().ok() };
        let real_time = match (short.strip_prefix("RTMIN"), short.strip_prefix("RTMAX")) {
            (Some(plus), _) if plus.is_empty() || plus.starts_with('+') => {
                offset(plus).and_then(|n| FIRST_REAL_TIME.checked_add(n))
            }
            (_, Some(minus)) if minus.is_empty() || minus.starts_with('-') => {
                offset(minus).and_then(|n| LAST.checked_sub(n))
            }
            _ => None,
        };
        match real_time {
            Some(number @ FIRST_REAL_TIME..=LAST) => Ok(Signal(number)),
            _ => {
                let whole = format!("SIG{short}");
                let hint = did_you_mean(&whole, NAMES, || "write a name or a number, for example SIGTERM or 15".into());
                Err(invalid(format!("unknown signal {}", quoted(text)), hint))
            }
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            n @ 1..=31 => f.pad(NAMES[usize::from(n) - 1]),
            FIRST_REAL_TIME => f.pad("SIGRTMIN"),
            n @ FIRST_REAL_TIME.. => f.pad(&format!("SIGRTMIN+{}", n - FIRST_REAL_TIME)),
            // 32 and 33 belong to the C library and have no name.
            n => f.pad(&n.to_string()),
        }
    }
}

serde_as_string!(Signal);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_reads_back_by_name_and_number() {
        for number in 1..=64 {
            let signal = Signal::try_from(number).unwrap();
            assert_eq!(signal.to_string().parse::<Signal>().unwrap(), signal);
            assert_eq!(number.to_string().parse::<Signal>().unwrap(), signal);
        }
        assert_eq!("SIGRTMIN+3".parse::<Signal>().unwrap(), Signal::RTMIN_PLUS_3);
        assert_eq!("rtmax-27".parse::<Signal>().unwrap().number(), 37);
        assert_eq!("pwr".parse::<Signal>().unwrap(), Signal::PWR);
        assert_eq!(Signal::TERM.to_string(), "SIGTERM");
        assert_eq!(Signal::KILL.to_string(), "SIGKILL");
    }

    #[test]
    fn a_mistyped_signal_is_refused_with_the_one_meant() {
        assert_eq!("SIGTREM".parse::<Signal>().unwrap_err().advice(), Some("did you mean 'SIGTERM'?"));
        for bad in ["", "0", "65", "-9", "SIG", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX+1", "RTMIN+é", "RTMINé"] {
            assert!(bad.parse::<Signal>().is_err(), "{bad}");
        }
    }
}

//! Resource limits of processes (getrlimit(2)).

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::size::Size;
use crate::suggest::did_you_mean;
use crate::text::{invalid, quoted};

macro_rules! resources {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// What is limited: RLIMIT_NOFILE is written `nofile`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Resource {
            $($(#[$doc])* $variant,)*
        }

        /// The names, in lower case.
        pub(crate) const NAMES: &[&str] = &[$($name),*];

        impl Resource {
            /// Every resource, sorted by name.
            pub const ALL: &[Resource] = &[$(Resource::$variant),*];

            /// The name after `RLIMIT_`, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Resource::$variant => $name,)*
                }
            }
        }
    };
}

resources! {
    /// Address space, in bytes.
    As "as",
    /// Size of a core file, in bytes.
    Core "core",
    /// Processor time, in seconds.
    Cpu "cpu",
    /// Data segment, in bytes.
    Data "data",
    /// Size of a file, in bytes.
    Fsize "fsize",
    /// Number of locks; no longer enforced.
    Locks "locks",
    /// Locked memory, in bytes.
    Memlock "memlock",
    /// POSIX message queues of a user, in bytes.
    Msgqueue "msgqueue",
    /// 20 minus the lowest nice value.
    Nice "nice",
    /// Number of open files, plus one.
    Nofile "nofile",
    /// Number of processes of a user.
    Nproc "nproc",
    /// Resident memory, in bytes; no longer enforced.
    Rss "rss",
    /// Highest real-time priority.
    Rtprio "rtprio",
    /// Real-time processor time without a blocking call, in microseconds.
    Rttime "rttime",
    /// Number of queued signals of a user.
    Sigpending "sigpending",
    /// Size of the stack, in bytes.
    Stack "stack",
}

impl FromStr for Resource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Resource, Error> {
        let lower = text.to_ascii_lowercase();
        let short = lower.strip_prefix("rlimit_").unwrap_or(&lower);
        Resource::ALL.iter().find(|resource| resource.name() == short).copied().ok_or_else(|| {
            let hint = did_you_mean(short, NAMES.iter().copied(), || format!("the limits are {}", NAMES.join(", ")));
            invalid(format!("unknown limit {}", quoted(text)), hint)
        })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A soft and a hard limit, `None` for unlimited: `1024:4096`, `1024` for both, `unlimited`, `64M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rlimit {
    /// What is enforced; a process may raise it up to the hard limit.
    pub soft: Option<u64>,
    /// What the soft limit may be raised to; never below it.
    pub hard: Option<u64>,
}

impl FromStr for Rlimit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Rlimit, Error> {
        let hint = "write soft:hard or one number for both, for example 1024:4096 or unlimited";
        let limit = |text: &str| match text.trim() {
            "unlimited" | "max" | "infinity" => Ok(None),
            // The kernel's own "unlimited" is the highest number.
            number => number.parse::<Size>().map(|size| Some(size.bytes()).filter(|bytes| *bytes != u64::MAX)),
        };
        let parts = match text.split_once(':') {
            Some((soft, hard)) => (limit(soft), limit(hard)),
            None => (limit(text), limit(text)),
        };
        let (Ok(soft), Ok(hard)) = parts else {
            return Err(invalid(format!("{} is not a limit", quoted(text)), hint));
        };
        if soft.unwrap_or(u64::MAX) > hard.unwrap_or(u64::MAX) {
            return Err(invalid(format!("the soft limit of {} is above its hard limit", quoted(text)), hint));
        }
        Ok(Rlimit { soft, hard })
    }
}

impl fmt::Display for Rlimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |limit: Option<u64>| limit.map_or("unlimited".into(), |number| number.to_string());
        match self.soft == self.hard {
            true => f.pad(&shown(self.soft)),
            false => f.pad(&format!("{}:{}", shown(self.soft), shown(self.hard))),
        }
    }
}

serde_as_string!(Resource, Rlimit);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_back() {
        for (text, shown) in [
            ("1024", "1024"),
            ("1024:4096", "1024:4096"),
            ("1024:unlimited", "1024:unlimited"),
            ("max", "unlimited"),
            ("64M", "67108864"),
            ("18446744073709551615", "unlimited"),
        ] {
            let limit: Rlimit = text.parse().unwrap();
            assert_eq!(limit.to_string(), shown);
            assert_eq!(shown.parse::<Rlimit>().unwrap(), limit);
        }
    }

    #[test]
    fn a_soft_limit_stays_below_the_hard_one() {
        for bad in ["2:1", "unlimited:5", "", ":", "1:", "1:2:3", "-1", "x"] {
            assert!(bad.parse::<Rlimit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn resources_are_found_by_every_spelling() {
        for resource in Resource::ALL {
            assert_eq!(resource.name().parse::<Resource>().unwrap(), *resource);
        }
        assert_eq!("RLIMIT_NOFILE".parse::<Resource>().unwrap(), Resource::Nofile);
        assert_eq!("nofiel".parse::<Resource>().unwrap_err().advice(), Some("did you mean 'nofile'?"));
    }
}

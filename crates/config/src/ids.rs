//! Ranges of user and group ids.

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::text::{invalid, quoted};

/// `count` ids from `start` on, written `100000:65536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdRange {
    /// The first id.
    pub start: u32,
    /// How many; at least one.
    pub count: u32,
}

impl IdRange {
    /// A range of at least one id, none of them 4294967295, which the kernel takes for "no id" (`(uid_t)-1`,
    /// chown(2)).
    pub fn new(start: u32, count: u32) -> Result<IdRange, Error> {
        match start.checked_add(count) {
            Some(_) if count > 0 => Ok(IdRange { start, count }),
            _ => Err(invalid(
                format!("'{start}:{count}' is not a range of ids"),
                "write the first id and how many, not beyond 4294967294, for example 100000:65536",
            )),
        }
    }
}

impl FromStr for IdRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<IdRange, Error> {
        let number = |text: &str| text.parse().ok().filter(|_: &u32| !text.starts_with('+'));
        let parts = text.split_once(':').and_then(|(start, count)| Some((number(start)?, number(count)?)));
        let (start, count) = parts.ok_or_else(|| {
            let hint = "write the first id and how many, for example 100000:65536";
            invalid(format!("{} is not a range of ids", quoted(text)), hint)
        })?;
        IdRange::new(start, count)
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.start, self.count)
    }
}

serde_as_string!(IdRange);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_never_reaches_the_id_that_means_none() {
        assert_eq!("100000:65536".parse::<IdRange>().unwrap(), IdRange { start: 100_000, count: 65_536 });
        assert_eq!("0:4294967295".parse::<IdRange>().unwrap().to_string(), "0:4294967295");
        for bad in ["", "1", "1:0", "1:4294967295", "-1:5", "+1:5", "1:2:3", "a:b", "1: 2"] {
            assert!(bad.parse::<IdRange>().is_err(), "{bad}");
        }
    }
}

//! Spans of time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lazaret_base::Error;

use crate::decimal;
use crate::text::{invalid, quoted};

/// A span of time in nanoseconds: `30s`, `2m`, `1h30m`, `250ms`, `1d`; a number alone counts seconds.
///
/// Offsets of clocks may be negative (`-1h`: the sign is for the whole). It reaches about 292 years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(i64);

/// The largest first, in nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Span {
    /// So many nanoseconds.
    pub const fn from_nanoseconds(nanoseconds: i64) -> Span {
        Span(nanoseconds)
    }

    /// So many seconds.
    pub const fn from_seconds(seconds: i32) -> Span {
        Span(seconds as i64 * 1_000_000_000)
    }

    /// The span in nanoseconds, negative for a clock that is set back.
    pub const fn nanoseconds(self) -> i64 {
        self.0
    }

    /// The span as a duration; `None` if it is negative.
    pub fn duration(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl FromStr for Span {
    type Err = Error;

    fn from_str(text: &str) -> Result<Span, Error> {
        let refuse = |why: &str| {
            invalid(format!("{} {why}", quoted(text)), "write numbers with d, h, m, s or ms, for example 30s or 1h30m")
        };
        let (negative, mut rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let mut total: i128 = 0;
        let mut last = u64::MAX;
        loop {
            let number = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
            let (number, tail) = rest.split_at(number);
            let word = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (word, tail) = tail.split_at(word);
            // Only a number that stands alone may lack its unit: `1h30` could mean two things.
            let word = if word.is_empty() && last == u64::MAX && tail.is_empty() { "s" } else { word };
            let unit = UNITS.iter().find(|(name, _)| *name == word).map(|(_, unit)| *unit);
            let unit = unit.filter(|unit| *unit < last).ok_or_else(|| refuse("is not a span of time"))?;
            let part = decimal::times(number, unit.into()).ok_or_else(|| refuse("is not a span of time"))?;
            let part = i128::try_from(part).map_err(|_| refuse("is too long"))?;
            total = total.checked_add(part).ok_or_else(|| refuse("is too long"))?;
            last = unit;
            rest = tail.trim_start();
            if rest.is_empty() {
                break;
            }
        }
        let total = if negative { -total } else { total };
        i64::try_from(total).map(Span).map_err(|_| refuse("is longer than 292 years"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::from(if self.0 < 0 { "-" } else { "" });
        let mut rest = self.0.unsigned_abs();
        for (name, unit) in UNITS {
            if rest >= unit {
                text.push_str(&format!("{}{name}", rest / unit));
                rest %= unit;
            }
        }
        f.pad(if self.0 == 0 { "0s" } else { &text })
    }
}

serde_as_string!(Span);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spans_add_up() {
        let seconds = |text: &str| text.parse::<Span>().unwrap().nanoseconds() as f64 / 1e9;
        assert_eq!(seconds("30s"), 30.0);
        assert_eq!(seconds("30"), 30.0);
        assert_eq!(seconds("1h30m"), 5400.0);
        assert_eq!(seconds("1h 30m"), 5400.0);
        assert_eq!(seconds("250ms"), 0.25);
        assert_eq!(seconds("1.5d"), 129_600.0);
        assert_eq!(seconds("-1h30m"), -5400.0);
        assert_eq!("-1s".parse::<Span>().unwrap().duration(), None);
        assert_eq!("2m".parse::<Span>().unwrap().duration(), Some(Duration::from_secs(120)));
    }

    #[test]
    fn what_is_no_span_is_refused() {
        for bad in [
            "",
            "-",
            "s",
            "1x",
            "1h30",
            "30m1h",
            "1s1s",
            "1 2s",
            "--1s",
            "1..5s",
            "300000d",
            "1s-1ms",
            "99999999999999999999d",
        ] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_span_reads_back(nanoseconds: i64) {
            let span = Span::from_nanoseconds(nanoseconds);
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
        }
    }
}

//! How much processor, and which ones.

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::decimal;
use crate::text::{invalid, quoted};

/// How many processors' time may be used, `0.01` to `10000`: `1.5` is 150 ms in each 100 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpus(u32);

impl Cpus {
    /// Length of the period that [`Cpus::quota`] is counted in, in microseconds (the kernel's own default of
    /// `cpu.max` and `cpu.cfs_period_us`).
    pub const PERIOD: u32 = 100_000;

    /// Processor time per period, in microseconds.
    pub fn quota(self) -> u32 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Cpus, Error> {
        let hint = "write how many, between 0.01 and 10000, for example 1.5";
        let quota = decimal::times(text, Cpus::PERIOD.into())
            .ok_or_else(|| invalid(format!("{} is not a number of CPUs", quoted(text)), hint))?;
        // The kernel takes no quota below one millisecond (kernel/sched/core.c, min_cfs_quota_period).
        match u32::try_from(quota) {
            Ok(quota @ 1_000..=1_000_000_000) => Ok(Cpus(quota)),
            _ => Err(invalid(format!("{} CPUs are out of range", quoted(text)), hint)),
        }
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The period has five zeros, so five places always say it exactly.
        f.pad(&decimal::exactly(self.0.into(), Cpus::PERIOD.into(), 5).unwrap_or_default())
    }
}

/// The processors that may be used, by number: `0-3,5`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CpuSet(Vec<(u16, u16)>);

/// The highest number a kernel can be built for is NR_CPUS = 8192 (arch/x86/Kconfig).
const LAST_CPU: u16 = 8191;

impl CpuSet {
    /// First and last number of each range; sorted, with gaps between them, at least one.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }
}

impl FromStr for CpuSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<CpuSet, Error> {
        let refuse = || {
            let hint = format!("write CPU numbers up to {LAST_CPU} and ranges, for example 0-3,5");
            invalid(format!("{} is not a set of CPUs", quoted(text)), hint)
        };
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|cpu| plain && *cpu <= LAST_CPU).ok_or_else(refuse)
        };
        let mut ranges = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first.trim())?, number(last.trim())?);
            if first > last {
                return Err(refuse());
            }
            ranges.push((first, last));
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1 + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Ok(CpuSet(merged))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

serde_as_string!(Cpus, CpuSet);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_becomes_a_quota_and_back() {
        for (text, quota) in
            [("1.5", 150_000), ("2", 200_000), ("0.01", 1_000), (".5", 50_000), ("10000", 1_000_000_000)]
        {
            let cpus: Cpus = text.parse().unwrap();
            assert_eq!(cpus.quota(), quota);
            assert_eq!(cpus.to_string().parse::<Cpus>().unwrap(), cpus);
        }
        for bad in ["0", "0.001", "-1", "10001", "inf", "1e3", "", "many"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_sorted_and_merged() {
        let shown = |text: &str| text.parse::<CpuSet>().unwrap().to_string();
        assert_eq!(shown("5,0-3"), "0-3,5");
        assert_eq!(shown("0,1,2,3, 2-4"), "0-4");
        assert_eq!(shown("7"), "7");
        for bad in ["", "3-1", "0-", "-1", "0,,1", "8192", "+1", "a", "0-99999"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
    }
}

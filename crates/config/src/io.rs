//! Limits of block devices.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lazaret_base::Error;

use crate::size::Size;
use crate::suggest::did_you_mean;
use crate::text::{invalid, printable, quoted};

/// How fast one block device may be used: `/dev/sda read=10M write=5M read_iops=100 write_iops=50`.
///
/// A rate that is not named, or is `max`, is not limited; at least one is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IoLimit {
    /// The device node, an absolute path without spaces and commas.
    pub device: PathBuf,
    /// Bytes read per second.
    pub read: Option<Size>,
    /// Bytes written per second.
    pub write: Option<Size>,
    /// Read operations per second.
    pub read_iops: Option<u32>,
    /// Write operations per second.
    pub write_iops: Option<u32>,
}

const RATES: [&str; 4] = ["read", "write", "read_iops", "write_iops"];

impl FromStr for IoLimit {
    type Err = Error;

    fn from_str(text: &str) -> Result<IoLimit, Error> {
        let hint = "write a device and its limits, for example '/dev/sda read=10M write_iops=50'";
        let refuse = |why: String| invalid(why, hint);
        let mut words = text.split_whitespace();
        let device = words.next().unwrap_or_default();
        if !device.starts_with('/') || device.contains(',') || !printable(device) {
            return Err(refuse(format!("{} does not start with the path of a device", quoted(text))));
        }
        let mut limit = IoLimit { device: device.into(), read: None, write: None, read_iops: None, write_iops: None };
        let mut seen = Vec::new();
        for word in words {
            let (rate, amount) = word
                .split_once('=')
                .ok_or_else(|| refuse(format!("{} is not of the form rate=amount", quoted(word))))?;
            if seen.contains(&rate) {
                return Err(refuse(format!("{} is given twice", quoted(rate))));
            }
            seen.push(rate);
            match rate {
                "read" => limit.read = bytes(amount)?,
                "write" => limit.write = bytes(amount)?,
                "read_iops" => limit.read_iops = operations(amount)?,
                "write_iops" => limit.write_iops = operations(amount)?,
                _ => {
                    let hint = did_you_mean(rate, RATES, || format!("the rates are {}", RATES.join(", ")));
                    return Err(invalid(format!("unknown rate {}", quoted(rate)), hint));
                }
            }
        }
        if limit.rates().is_empty() {
            return Err(refuse(format!("{} limits nothing", quoted(text))));
        }
        Ok(limit)
    }
}

/// Bytes per second. The kernel refuses zero (block/blk-throttle.c).
fn bytes(text: &str) -> Result<Option<Size>, Error> {
    match text {
        "max" | "unlimited" => Ok(None),
        _ => match text.parse()? {
            Size(0) => Err(invalid("a rate of 0 would stop the device", "write max for no limit")),
            size => Ok(Some(size)),
        },
    }
}

/// Operations per second.
fn operations(text: &str) -> Result<Option<u32>, Error> {
    match (text, text.parse()) {
        ("max" | "unlimited", _) => Ok(None),
        (_, Ok(count @ 1..)) => Ok(Some(count)),
        _ => Err(invalid(
            format!("{} is not a number of operations per second", quoted(text)),
            "write a number from 1 to 4294967295, for example 100",
        )),
    }
}

impl IoLimit {
    /// The limited rates as `name=amount`.
    fn rates(&self) -> Vec<String> {
        let bytes = [("read", self.read), ("write", self.write)];
        let operations = [("read_iops", self.read_iops), ("write_iops", self.write_iops)];
        let bytes = bytes.iter().filter_map(|(name, size)| size.map(|size| format!("{name}={size}")));
        let operations = operations.iter().filter_map(|(name, count)| count.map(|count| format!("{name}={count}")));
        bytes.chain(operations).collect()
    }
}

impl fmt::Display for IoLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.device.display(), self.rates().join(" "))
    }
}

serde_as_string!(IoLimit);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_reads_back() {
        for text in [
            "/dev/sda read=10M write=5M read_iops=100 write_iops=50",
            "/dev/nvme0n1 write=1.5G",
            "/dev/vda read_iops=1",
        ] {
            assert_eq!(text.parse::<IoLimit>().unwrap().to_string(), text);
        }
        assert_eq!("/dev/sda read=max write=5M".parse::<IoLimit>().unwrap().to_string(), "/dev/sda write=5M");
    }

    #[test]
    fn a_limit_that_limits_nothing_or_is_unclear_is_refused() {
        for bad in [
            "",
            "sda read=1M",
            "/dev/sda",
            "/dev/sda read=max",
            "/dev/sda read",
            "/dev/sda read=0",
            "/dev/sda read_iops=0",
            "/dev/sda read=1M read=2M",
            "/dev/a,b read=1M",
        ] {
            assert!(bad.parse::<IoLimit>().is_err(), "{bad}");
        }
        let e = "/dev/sda raed=1M".parse::<IoLimit>().unwrap_err();
        assert_eq!(e.advice(), Some("did you mean 'read'?"));
    }
}

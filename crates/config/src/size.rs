//! Amounts of bytes.

use std::fmt;
use std::str::FromStr;

use lazaret_base::Error;

use crate::decimal;
use crate::text::{invalid, quoted};

/// An amount of bytes: `512M`, `1.5G`, `64k`, `4096`. Units are binary (1k = 1024) whether or not `iB` or `B`
/// follows, and their case does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// The largest first; each is 1024 of the next.
const UNITS: [(char, u32); 6] = [('E', 60), ('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl Size {
    /// The amount in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// So many times 1024 * 1024 bytes.
    pub const fn mebibytes(count: u64) -> Size {
        Size(count << 20)
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Size, Error> {
        let refuse = |why: &str| {
            invalid(format!("{} {why}", quoted(text)), "write a number and a unit, for example 512M or 1.5G")
        };
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let unit = text[end..].trim_start().to_ascii_uppercase();
        let letter = unit.strip_suffix("IB").or(unit.strip_suffix('B')).or(unit.strip_suffix('I')).unwrap_or(&unit);
        let shift = match UNITS.iter().find(|(name, _)| letter == name.encode_utf8(&mut [0; 4])) {
            Some((_, shift)) => *shift,
            None if letter.is_empty() && matches!(unit.as_str(), "" | "B") => 0,
            None => return Err(refuse("is not a size")),
        };
        let bytes = decimal::times(&text[..end], 1 << shift).ok_or_else(|| refuse("is not a size"))?;
        u64::try_from(bytes).map(Size).map_err(|_| refuse("is more than 64 bits can count"))
    }
}

/// The shortest text that says the exact amount.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_unit = |&(unit, shift): &(char, u32)| {
            let amount = decimal::exactly(self.0.into(), 1 << shift, 3)?;
            (amount != "0").then(|| format!("{amount}{unit}"))
        };
        let shortest = UNITS.iter().filter_map(in_unit).min_by_key(String::len);
        let plain = self.0.to_string();
        f.pad(&shortest.filter(|text| text.len() <= plain.len()).unwrap_or(plain))
    }
}

serde_as_string!(Size);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_binary_in_every_spelling() {
        for text in ["1.5G", "1.5g", "1.5GB", "1.5 GiB", "1536M", "1610612736"] {
            assert_eq!(text.parse::<Size>().unwrap(), Size(3 << 29), "{text}");
        }
        assert_eq!("64k".parse::<Size>().unwrap(), Size(65536));
        assert_eq!("0".parse::<Size>().unwrap(), Size(0));
        assert_eq!("7B".parse::<Size>().unwrap(), Size(7));
    }

    #[test]
    fn the_shortest_exact_text_is_shown() {
        let shown = |bytes: u64| Size(bytes).to_string();
        assert_eq!([shown(3 << 29), shown(1 << 20), shown(1000), shown(65536)], ["1.5G", "1M", "1000", "64K"]);
        assert_eq!([shown(0), shown(100 << 10), shown(u64::MAX)], ["0", "100K", "18446744073709551615"]);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["", "G", "-1", "1X", "1MX", "1.2.3", "1iB", ".", "16E", "99999999999999999999999G", "1e3", "١"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_size_reads_back(bytes: u64, shift in 0u32..60) {
            for size in [Size(bytes), Size(bytes >> shift << shift)] {
                prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
            }
        }
    }
}

//! Xauthority files: who may connect to which display (Xau(3), "The .Xauthority file").

use std::fmt;

/// The name of the only kind of credential in use.
pub const COOKIE_NAME: &[u8] = b"MIT-MAGIC-COOKIE-1";
/// Any host (Xauth.h).
const FAMILY_WILD: u16 = 0xffff;
/// A name of this host.
const FAMILY_LOCAL: u16 = 256;

/// Sixteen secret bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cookie(pub [u8; 16]);

impl Cookie {
    /// From 32 hexadecimal digits.
    pub fn parse(digits: &str) -> Option<Cookie> {
        let mut bytes = [0; 16];
        if digits.len() != 32 || !digits.is_ascii() {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).ok()?;
        }
        Some(Cookie(bytes))
    }
}

/// Secrets do not get into logs.
impl fmt::Debug for Cookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cookie(..)")
    }
}

/// One entry of an Xauthority file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What kind of address follows: 256 for a host name, 0xffff for any.
    pub family: u16,
    /// The host.
    pub address: Vec<u8>,
    /// The display's number in digits; empty for any.
    pub display: Vec<u8>,
    /// What kind of credential it is.
    pub name: Vec<u8>,
    /// The credential.
    pub data: Vec<u8>,
}

impl Entry {
    /// An entry that programs use for every display on every host: a container's display has a number and a host name
    /// of its own.
    pub fn wild(cookie: &Cookie) -> Entry {
        Entry {
            family: FAMILY_WILD,
            address: Vec::new(),
            display: Vec::new(),
            name: COOKIE_NAME.to_vec(),
            data: cookie.0.to_vec(),
        }
    }
}

/// The entries of a file. What is cut off at the end is left out, as Xlib does.
pub fn parse(mut file: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((entry, rest)) = entry(file) {
        entries.push(entry);
        file = rest;
    }
    entries
}

fn entry(file: &[u8]) -> Option<(Entry, &[u8])> {
    let (family, rest) = file.split_first_chunk::<2>()?;
    let (address, rest) = counted(rest)?;
    let (display, rest) = counted(rest)?;
    let (name, rest) = counted(rest)?;
    let (data, rest) = counted(rest)?;
    Some((Entry { family: u16::from_be_bytes(*family), address, display, name, data }, rest))
}

/// A string after its length.
fn counted(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((value.to_vec(), rest))
}

/// A file with these entries. Each string is shorter than 64 KiB, or it is cut off.
pub fn write(entries: &[Entry]) -> Vec<u8> {
    let mut file = Vec::new();
    for entry in entries {
        file.extend(entry.family.to_be_bytes());
        for value in [&entry.address, &entry.display, &entry.name, &entry.data] {
            let length = value.len().min(0xffff);
            file.extend((length as u16).to_be_bytes());
            file.extend(&value[..length]);
        }
    }
    file
}

/// The cookie that Xlib would use for a local display: the first entry for this host (or any), this display (or any).
pub fn cookie_for(entries: &[Entry], host: &[u8], display: u32) -> Option<Cookie> {
    let number = display.to_string();
    let fits = |entry: &&Entry| {
        (entry.family == FAMILY_WILD || entry.family == FAMILY_LOCAL && entry.address == host)
            && (entry.display.is_empty() || entry.display == number.as_bytes())
            && entry.name == COOKIE_NAME
    };
    Some(Cookie(entries.iter().find(fits)?.data.clone().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(host: &[u8], display: &[u8], byte: u8) -> Entry {
        let cookie = Cookie([byte; 16]);
        Entry { family: FAMILY_LOCAL, address: host.to_vec(), display: display.to_vec(), ..Entry::wild(&cookie) }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let entries = vec![local(b"host", b"0", 1), Entry::wild(&Cookie([7; 16]))];
        assert_eq!(parse(&write(&entries)), entries);
    }

    #[test]
    fn a_file_that_is_cut_off_keeps_its_whole_entries() {
        let file = write(&[local(b"host", b"0", 1), local(b"host", b"1", 2)]);
        for cut in 0..file.len() {
            assert_eq!(parse(&file[..cut]).len(), usize::from(cut >= file.len() / 2));
        }
    }

    #[test]
    fn the_first_fitting_entry_counts() {
        let entries =
            [local(b"other", b"0", 1), local(b"host", b"1", 2), local(b"host", b"0", 3), local(b"host", b"", 4)];
        assert_eq!(cookie_for(&entries, b"host", 0), Some(Cookie([3; 16])));
        assert_eq!(cookie_for(&entries, b"host", 5), Some(Cookie([4; 16])));
        assert_eq!(cookie_for(&entries, b"nobody", 0), None);
        assert_eq!(cookie_for(&[Entry::wild(&Cookie([9; 16]))], b"nobody", 3), Some(Cookie([9; 16])));
    }

    #[test]
    fn cookies_are_32_digits_and_never_shown() {
        assert_eq!(Cookie::parse("000102030405060708090a0b0c0d0e0f").map(|c| c.0[15]), Some(15));
        assert_eq!(Cookie::parse("00"), None);
        assert_eq!(Cookie::parse("zz0102030405060708090a0b0c0d0e0f"), None);
        assert_eq!(format!("{:?}", Cookie([1; 16])), "Cookie(..)");
    }
}

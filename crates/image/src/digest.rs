//! A SHA-256 digest and a reader that makes one on the way.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use lazaret_base::{Error, Kind, Result, error};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of all that was fed to a hash.
    pub(crate) fn from_state(state: Sha256) -> Digest {
        Digest(state.finalize().into())
    }

    /// The 64 digits alone, as they appear in file names.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the 64 digits alone.
    pub fn from_hex(text: &str) -> Result<Digest> {
        let digits = text.as_bytes();
        let invalid = || error(format!("`{text}` is not 64 hexadecimal digits")).kind(Kind::Invalid);
        if digits.len() != 64 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(invalid());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Digest(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest> {
        let digits = text
            .strip_prefix("sha256:")
            .ok_or_else(|| error(format!("`{text}` does not begin with `sha256:`")).kind(Kind::Invalid))?;
        Digest::from_hex(digits)
    }
}

/// Hashes what passes through.
pub(crate) struct Hashing<R> {
    reader: R,
    state: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(crate) fn new(reader: R) -> Self {
        Hashing { reader, state: Sha256::new() }
    }

    /// Reads what is left, so that the digest is that of the whole.
    pub(crate) fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest(self.state.finalize().into()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.state.update(&buffer[..n]);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_back_and_bad_ones_are_refused() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in ["", "sha256:", "sha256:zz", &digest.hex(), &digest.to_string().to_uppercase()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert!(Digest::from_hex(&"é".repeat(32)).is_err());
    }
}

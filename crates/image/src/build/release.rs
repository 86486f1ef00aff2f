//! What an archive says of itself: its Release file, whose signature vouches for all else.

use std::collections::HashMap;
use std::time::Duration;

use lazaret_base::{Context, Kind, Result, error};

use super::control::Paragraph;
use crate::Digest;

/// A Release file. Believe it only when its signature was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// `oldstable`, `stable-security`, `noble`.
    pub suite: String,
    /// `bookworm`, `bookworm-security`.
    pub codename: String,
    /// When it was made, in seconds since 1970.
    pub date: u64,
    /// When it ceases to be believed.
    pub valid_until: Option<u64>,
    /// Whether files can be had by their digests.
    pub by_hash: bool,
    /// Parts of the archive: `main`, `contrib`.
    pub components: Vec<String>,
    /// Debian's names.
    pub architectures: Vec<String>,
    /// By path below the suite's directory.
    pub files: HashMap<String, Listed>,
}

/// A file that a Release file vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

/// A clock may be that much behind the archive's.
const SKEW: Duration = Duration::from_secs(24 * 3600);

impl Release {
    /// Reads a Release file.
    pub fn parse(text: &str) -> Result<Release> {
        let fields = Paragraph(text);
        let word = |name: &str| fields.get(name).unwrap_or_default().to_owned();
        let words = |name: &str| fields.get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        let time = |text: &str| date(text).ok_or_else(|| error(format!("`{text}` is no date")).kind(Kind::Invalid));
        let release = Release {
            suite: word("Suite"),
            codename: word("Codename"),
            date: time(fields.require("Date")?)?,
            valid_until: fields.get("Valid-Until").map(time).transpose()?,
            by_hash: fields.get("Acquire-By-Hash").is_some_and(|value| value.eq_ignore_ascii_case("yes")),
            components: words("Components"),
            architectures: words("Architectures"),
            files: files(fields.get("SHA256").unwrap_or_default())?,
        };
        match release.files.is_empty() {
            true => Err(error("it lists no SHA-256 of any file").kind(Kind::Invalid)),
            false => Ok(release),
        }
    }

    /// Refuses one that is of another suite than was asked for, too old or not yet to be believed. `now` is in seconds
    /// since 1970.
    pub fn check(&self, wanted: &str, now: u64) -> Result<()> {
        if self.codename != wanted && self.suite != wanted {
            let sentence = format!("it is of `{}` (`{}`), not of `{wanted}`", self.codename, self.suite);
            return Err(error(sentence).kind(Kind::Invalid).hint("the mirror mixes things up, or somebody else does"));
        }
        if let Some(until) = self.valid_until.filter(|until| *until < now) {
            let hours = (now - until) / 3600;
            return Err(error(format!("it expired {hours} hours ago"))
                .kind(Kind::Invalid)
                .hint("the mirror is no longer fed, or somebody holds newer packages back: use another mirror; or this machine's clock is wrong"));
        }
        if self.date > now + SKEW.as_secs() {
            return Err(error("it is of the future").kind(Kind::Invalid).hint("set this machine's clock"));
        }
        Ok(())
    }
}

/// The lines `DIGEST SIZE PATH`.
fn files(list: &str) -> Result<HashMap<String, Listed>> {
    let mut files = HashMap::new();
    for line in list.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let (Some(digest), Some(size), Some(path), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(error(format!("`{line}` lists no file")).kind(Kind::Invalid));
        };
        let listing = || format!("the line of `{path}`");
        let size = size.parse().map_err(|_| error(format!("`{size}` is no size")).kind(Kind::Invalid));
        let listed =
            Listed { digest: Digest::from_hex(digest).with_context(listing)?, size: size.with_context(listing)? };
        files.insert(path.to_owned(), listed);
    }
    Ok(files)
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Sat, 11 Jul 2026 10:16:37 UTC` in seconds since 1970. Nothing but UTC is in use.
fn date(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace();
    let _weekday = words.next()?.strip_suffix(',')?;
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (clock.next()??, clock.next()??, clock.next()??);
    if hours > 23 || minutes > 59 || seconds > 60 || !matches!(words.next()?, "UTC" | "GMT" | "+0000") {
        return None;
    }
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let years: u64 = (1970..year).map(|year| 365 + u64::from(leap(year))).sum();
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let months: u64 = lengths[..month as usize].iter().sum();
    Some((years + months + day - 1) * 86400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n\
        Valid-Until: Sat, 18 Jul 2026 10:16:37 UTC\nAcquire-By-Hash: yes\nComponents: main contrib\n\
        Architectures: all amd64\nMD5Sum:\n d41d8cd98f00b204e9800998ecf8427e 0 x\nSHA256:\n \
        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855    7 main/binary-amd64/Packages.xz\n";
    const MADE: u64 = 1_783_764_997;

    #[test]
    fn a_release_tells_its_files_and_how_long_it_holds() {
        let release = Release::parse(TEXT).unwrap();
        assert_eq!((release.date, release.valid_until), (MADE, Some(MADE + 7 * 86400)));
        assert_eq!(release.files["main/binary-amd64/Packages.xz"].size, 7);
        assert!(release.by_hash && release.components == ["main", "contrib"]);
        release.check("trixie", MADE).unwrap();
        release.check("stable", MADE + 86400).unwrap();
        assert!(release.check("trixie", MADE + 8 * 86400).unwrap_err().to_string().contains("expired 24 hours ago"));
        assert!(release.check("trixie", MADE - 2 * 86400).unwrap_err().to_string().contains("future"));
        assert!(release.check("bookworm", MADE).unwrap_err().to_string().contains("not of `bookworm`"));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let bad = [
            TEXT.replace("11 Jul 2026", "11 Xyz 2026"),
            TEXT.replace("UTC", "CEST"),
            TEXT.replace("Date:", "Data:"),
            TEXT.replace("SHA256", "SHA1"),
            TEXT.replace("    7 main", " -7 main"),
            TEXT.replace("e3b0", "zzzz"),
            String::new(),
        ];
        for text in bad {
            assert!(Release::parse(&text).is_err(), "{text}");
        }
        assert_eq!(date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(date("Sun, 22 Nov 2026  0:19:16 UTC"), Some(1_795_306_756));
        assert_eq!(date("Thu, 29 Feb 2024 12:00:00 +0000"), Some(1_709_208_000));
    }
}

//! Shares: files of the host that a container sees.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use lazaret_base::Error;

use crate::suggest::did_you_mean;
use crate::text::{invalid, printable, quoted};

/// A directory, file or socket of the host that is shown inside: `/home/me/in:/home/me/in:ro:optional`.
///
/// A colon or a backslash in a path is written with a backslash before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    /// Where it is on the host: absolute, without links in it when it was shared.
    pub source: PathBuf,
    /// Where it appears inside: absolute.
    pub target: PathBuf,
    /// Nothing in it, nor in what is mounted below it, can be changed from inside.
    pub read_only: bool,
    /// No program in it can be executed from inside.
    pub no_exec: bool,
    /// A start goes on without it if it is not there.
    pub optional: bool,
    /// Whose files inside belong to the container's user, if not those of the source's owner.
    pub owner: Option<u32>,
    /// A source that opens the host wide is meant.
    pub confirmed: bool,
}

const OPTIONS: [&str; 5] = ["ro", "noexec", "optional", "owner=", "yes-really"];
/// The kernel's PATH_MAX, its NUL included.
const LONGEST_PATH: usize = 4096;
/// What the container's kernel file systems are mounted on.
const TAKEN: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Share {
    /// A share without options. Both paths must be absolute and plain: without `.`, `..` and control characters; the
    /// target is neither the root nor in `/proc`, `/sys` or `/dev`.
    pub fn new(source: &Path, target: &Path) -> Result<Share, Error> {
        let share = Share {
            source: plain(source)?,
            target: plain(target)?,
            read_only: false,
            no_exec: false,
            optional: false,
            owner: None,
            confirmed: false,
        };
        let shown = share.target.display().to_string();
        if share.target == Path::new("/") {
            return Err(invalid("nothing can be shown at '/', the container's own root", "name a directory below it"));
        }
        if let Some(taken) = TAKEN.iter().find(|taken| share.target.starts_with(taken)) {
            return Err(invalid(
                format!("{} is in '{taken}', which belongs to the kernel", quoted(&shown)),
                "show it somewhere else, for example below /mnt",
            ));
        }
        Ok(share)
    }
}

/// An absolute path of names alone.
fn plain(path: &Path) -> Result<PathBuf, Error> {
    let text = path.to_str().ok_or_else(|| {
        let shown = path.to_string_lossy().into_owned();
        invalid(format!("{} is not UTF-8", quoted(&shown)), "give it a name that can be written in a file of text")
    })?;
    let names_only = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(names_only) {
        return Err(invalid(
            format!("{} is not an absolute path without '..'", quoted(text)),
            "write it from '/' on, for example /home/me/in:/mnt/in",
        ));
    }
    if !printable(text) || text.len() >= LONGEST_PATH {
        return Err(invalid(format!("{} is no path that can be shared", quoted(text)), "give it a plainer name"));
    }
    // Without doubled and trailing slashes, so that equal paths are equal.
    Ok(path.components().collect())
}

/// The parts between colons, with what backslashes protect.
fn parts(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let last = parts.len() - 1;
        match letter {
            '\\' => parts[last].extend(letters.next()),
            ':' => parts.push(String::new()),
            letter => parts[last].push(letter),
        }
    }
    parts
}

/// A path as [`parts`] takes it.
fn protected(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

impl FromStr for Share {
    type Err = Error;

    fn from_str(text: &str) -> Result<Share, Error> {
        let parts = parts(text);
        let [source, target, options @ ..] = parts.as_slice() else {
            return Err(invalid(
                format!("{} does not say where it appears inside", quoted(text)),
                "write HOST:GUEST, for example '/home/me/in:/mnt/in', and options behind: '/home/me/in:/mnt/in:ro'",
            ));
        };
        let mut share = Share::new(Path::new(source), Path::new(target))?;
        for option in options {
            match (option.as_str(), option.split_once('=')) {
                ("ro", _) => share.read_only = true,
                ("rw", _) => share.read_only = false,
                ("noexec", _) => share.no_exec = true,
                ("optional", _) => share.optional = true,
                ("yes-really", _) => share.confirmed = true,
                (_, Some(("owner", id))) => share.owner = Some(user_id(id)?),
                _ => {
                    let hint = did_you_mean(option, OPTIONS, || format!("the options are {}", OPTIONS.join(", ")));
                    return Err(invalid(format!("unknown option {}", quoted(option)), hint));
                }
            }
        }
        Ok(share)
    }
}

/// A user's number; 4294967295 is nobody's (chown(2)).
pub(crate) fn user_id(text: &str) -> Result<u32, Error> {
    text.parse().ok().filter(|id| *id != u32::MAX).ok_or_else(|| {
        invalid(format!("{} is not the number of a user", quoted(text)), "`id -u NAME` tells it, for example 1000")
    })
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", protected(&self.source), protected(&self.target))?;
        let flags = [(self.read_only, "ro"), (self.no_exec, "noexec"), (self.optional, "optional")];
        flags.iter().filter(|(is, _)| *is).try_for_each(|(_, word)| write!(f, ":{word}"))?;
        if let Some(owner) = self.owner {
            write!(f, ":owner={owner}")?;
        }
        f.write_str(if self.confirmed { ":yes-really" } else { "" })
    }
}

serde_as_string!(Share);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_reads_back() {
        for text in [
            "/home/me/in:/mnt/in",
            "/home/me/My Documents, all of them:/mnt/docs:ro:noexec:optional:owner=1000:yes-really",
            "/srv/a\\:b:/mnt/c\\\\d:ro",
        ] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
        let odd = "/srv/a\\:b:/mnt//x/:rw".parse::<Share>().unwrap();
        assert_eq!((odd.source.to_str(), odd.target.to_str()), (Some("/srv/a:b"), Some("/mnt/x")));
    }

    #[test]
    fn a_share_that_is_unclear_or_in_the_way_is_refused() {
        for bad in [
            "",
            "/home/me",
            "in:/mnt/in",
            "/in:mnt",
            "/in/../etc:/mnt",
            "/in:/mnt/..",
            "/in:/",
            "/in:/proc/self",
            "/in:/dev",
            "/in:/sys/fs",
            "/in:/mnt:owner=-1",
            "/in:/mnt:owner=4294967295",
            "/in:/a\nb",
        ] {
            assert!(bad.parse::<Share>().is_err(), "{bad}");
        }
        assert_eq!("/in:/mnt:noexce".parse::<Share>().unwrap_err().advice(), Some("did you mean 'noexec'?"));
    }
}

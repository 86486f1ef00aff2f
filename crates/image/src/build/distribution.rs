//! The distributions that can be built here: what their suites are called, where they are, and who signs them.

use std::fs::File;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Result, error};

/// A distribution of packages in Debian's format.
#[derive(Debug, PartialEq, Eq)]
pub struct Distribution {
    /// As in the name of an image.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// Where its packages are, unless the user knows a place nearer.
    pub mirror: &'static str,
    /// Where its security updates are; `None` if they are there as well.
    pub security: Option<&'static str>,
    /// The keys it signs with.
    pub keyring: &'static str,
    /// The package that has those keys, on most systems.
    pub keyring_package: &'static str,
    /// Its keys, for systems that have no such package.
    keys: Option<&'static [u8]>,
    /// What is used of it.
    pub components: &'static [&'static str],
    /// Other names of releases, and the names of their directories.
    aliases: &'static [(&'static str, &'static str)],
    /// Releases without suites for updates.
    rolling: &'static [&'static str],
}

/// The key of 2018, F6EC B376 2474 EDA9 D21B 7022 8719 20D1 991B C93C, which signs all releases since 18.04. Debian has
/// no package with it.
const UBUNTU: &[u8] = include_bytes!("ubuntu-archive-2018.gpg");

/// All of them.
pub const DISTRIBUTIONS: &[Distribution] = &[
    Distribution {
        name: "debian",
        title: "Debian",
        mirror: "http://deb.debian.org/debian",
        security: Some("http://deb.debian.org/debian-security"),
        keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
        keyring_package: "debian-archive-keyring",
        keys: None,
        components: &["main"],
        aliases: &[("11", "bullseye"), ("12", "bookworm"), ("13", "trixie"), ("14", "forky"), ("unstable", "sid")],
        rolling: &["sid"],
    },
    Distribution {
        name: "ubuntu",
        title: "Ubuntu",
        mirror: "http://archive.ubuntu.com/ubuntu",
        security: None,
        keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
        keyring_package: "ubuntu-keyring",
        keys: Some(UBUNTU),
        components: &["main", "universe"],
        aliases: &[("22.04", "jammy"), ("24.04", "noble"), ("26.04", "resolute")],
        rolling: &[],
    },
];

impl Distribution {
    /// Finds what `debian/bookworm` or `ubuntu/24.04` means: the distribution, and the release's directory.
    pub fn find(reference: &str) -> Result<(&'static Distribution, String)> {
        let (name, release) = reference.split_once('/').unwrap_or((reference, ""));
        let Some(found) = DISTRIBUTIONS.iter().find(|distribution| distribution.name == name) else {
            let names: Vec<_> = DISTRIBUTIONS.iter().map(|distribution| distribution.name).collect();
            return Err(error(format!("`{name}` can't be built here")).kind(Kind::Invalid).hint(format!(
                "what can: {}; others are to be pulled: lazaret image pull {reference}",
                names.join(", ")
            )));
        };
        let release = found.aliases.iter().find(|(alias, _)| *alias == release).map_or(release, |(_, release)| release);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        if release.is_empty() || !release.starts_with(|c: char| c.is_ascii_lowercase()) || !release.chars().all(plain) {
            let example = found.aliases.iter().rev().map(|(_, release)| *release).find(|r| !found.rolling.contains(r));
            return Err(error(format!("`{reference}` names no release"))
                .kind(Kind::Invalid)
                .hint(format!("for example {name}/{}", example.unwrap_or("stable"))));
        }
        Ok((found, release.to_owned()))
    }

    /// Whose signatures count: those of a file that the user names, of the system's, or else of the keys that are known
    /// here.
    pub fn keyring(&self, named: Option<&Path>) -> Result<Keyring<'_>> {
        let path = named.unwrap_or(Path::new(self.keyring)).to_owned();
        let opened = File::open(&path);
        let known = self.keys.filter(|_| named.is_none() && opened.is_err());
        match (opened, known) {
            (Err(e), None) => {
                let package = self.keyring_package;
                let hint = format!(
                    "install the package `{package}` (apt, dnf and others have it), or name a file of keys: --keyring FILE"
                );
                Err(e).with_context(|| format!("reading the keys `{}`", path.display())).hint(hint)
            }
            (_, known) => Ok(Keyring { path, known, package: self.keyring_package }),
        }
    }

    /// What an image of a release is called: `ubuntu/noble` for `ubuntu/24.04`.
    pub fn canonical(reference: &str) -> Option<String> {
        let (distribution, release) = Distribution::find(reference).ok()?;
        Some(format!("{}/{release}", distribution.name))
    }

    /// The suites of a release, beside which there are none.
    pub fn suites(&'static self, release: &str, places: &Places) -> Vec<Suite> {
        let suite = |mirror: &str, name: String| Suite {
            mirror: mirror.trim_end_matches('/').to_owned(),
            wanted: name.clone(),
            name,
        };
        let mirror = places.mirror.as_deref().unwrap_or(self.mirror);
        let mut suites = vec![suite(mirror, release.to_owned())];
        if self.rolling.contains(&release) {
            return suites;
        }
        if places.updates {
            suites.push(suite(mirror, format!("{release}-updates")));
            let security = places.security.as_deref().or(self.security).unwrap_or(mirror);
            suites.push(suite(security, format!("{release}-security")));
        }
        suites
    }
}

/// Keys whose signatures count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring<'a> {
    /// The file they are in.
    pub path: PathBuf,
    /// They themselves, if there is no such file.
    pub known: Option<&'a [u8]>,
    /// The package that has newer ones.
    pub package: &'a str,
}

/// Where packages come from, as far as the user says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Instead of the distribution's own.
    pub mirror: Option<String>,
    /// Instead of the distribution's own, for security updates.
    pub security: Option<String>,
    /// Whether updates are used at all.
    pub updates: bool,
}

impl Default for Places {
    fn default() -> Places {
        Places { mirror: None, security: None, updates: true }
    }
}

/// A suite of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// The archive, without a slash at the end.
    pub mirror: String,
    /// Its directory below `dists`.
    pub name: String,
    /// What its Release file must be of: its code name or its suite.
    pub wanted: String,
}

impl Suite {
    /// Where a file of it is.
    pub fn place(&self, path: &str) -> String {
        format!("{}/dists/{}/{path}", self.mirror, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_several_names() {
        for (reference, release) in [("debian/12", "bookworm"), ("debian/sid", "sid"), ("ubuntu/24.04", "noble")] {
            assert_eq!(Distribution::find(reference).unwrap().1, release);
        }
        for bad in ["debian", "debian/", "debian/../x", "debian/Trixie", "ubuntu/9.04", "fedora/42", ""] {
            assert!(Distribution::find(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn updates_come_from_where_the_user_says() {
        let (debian, release) = Distribution::find("debian/trixie").unwrap();
        let names = |suites: Vec<Suite>| -> Vec<_> { suites.iter().map(|suite| suite.place("InRelease")).collect() };
        let places =
            Places { mirror: Some("http://m/debian/".into()), security: Some("http://s".into()), updates: true };
        assert_eq!(
            names(debian.suites(&release, &places)),
            [
                "http://m/debian/dists/trixie/InRelease",
                "http://m/debian/dists/trixie-updates/InRelease",
                "http://s/dists/trixie-security/InRelease"
            ]
        );
        assert_eq!(debian.suites("sid", &Places::default()).len(), 1);
        assert_eq!(debian.suites("trixie", &Places { updates: false, ..Places::default() }).len(), 1);
        let (ubuntu, release) = Distribution::find("ubuntu/noble").unwrap();
        assert!(ubuntu.suites(&release, &Places::default()).iter().all(|suite| suite.mirror == ubuntu.mirror));
    }
}

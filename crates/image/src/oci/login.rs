//! Logins of registries, as `podman login` and `docker login` write them down (containers-auth.json(5)).

use std::collections::BTreeMap;
use std::fmt;

use lazaret_base::{Kind, Result, error};
use serde::Deserialize;

/// Logins, by what they are for.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Logins {
    /// By host, or host and path: a name and a password with a colon between them, in base64 (RFC 7617).
    known: BTreeMap<String, String>,
    /// What could not be made use of, one sentence each: told when a registry wants a login.
    doubts: Vec<String>,
}

/// A file of logins.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    auth: Option<String>,
}

impl Logins {
    /// No file is longer.
    pub const LONGEST: usize = 1 << 20;

    /// Reads a file. `path` is for people.
    ///
    /// # Errors
    ///
    /// Where it is no such file.
    pub fn parse(path: &str, json: &[u8]) -> Result<Logins> {
        let document: Document =
            serde_json::from_slice(json).map_err(|e| error(format!("`{path}`: {e}")).kind(Kind::Invalid))?;
        let mut logins = Logins::default();
        for (place, entry) in document.auths {
            match entry.auth {
                Some(auth) if is_base64(&auth) => drop(logins.known.insert(host_and_path(&place).to_owned(), auth)),
                Some(_) => logins.doubt(format!("`{path}`: the login for `{place}` is not in base64")),
                // A program keeps it.
                None => logins.doubt(format!("`{path}` has no password for `{place}`")),
            }
        }
        for helper in document.helpers.into_values().chain(document.store) {
            logins.doubt(format!("`{path}` leaves passwords to the program `{helper}`, which is not asked"));
        }
        Ok(logins)
    }

    /// Takes over what another file has and this one lacks.
    #[must_use]
    pub fn or(mut self, other: Logins) -> Logins {
        for (place, login) in other.known {
            self.known.entry(place).or_insert(login);
        }
        self.doubts.extend(other.doubts);
        self
    }

    /// Notes what could not be made use of.
    pub fn doubt(&mut self, what: String) {
        self.doubts.push(what);
    }

    /// What could not be made use of.
    pub(crate) fn doubts(&self) -> &[String] {
        &self.doubts
    }

    /// The login for a repository: of those for its path, its directories and its host the most exact.
    pub(crate) fn of(&self, host: &str, path: &str) -> Option<&str> {
        let mut place = format!("{host}/{path}");
        loop {
            if let Some(login) = self.known.get(&place) {
                return Some(login);
            }
            place.truncate(place.rfind('/')?);
        }
    }
}

impl fmt::Debug for Logins {
    /// Passwords are nobody's to read in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Logins").field(&self.known.keys()).finish()
    }
}

/// docker writes addresses, with the version of the protocol behind them.
fn host_and_path(place: &str) -> &str {
    let place = place.split_once("://").map_or(place, |(_, rest)| rest).trim_end_matches('/');
    ["/v1", "/v2"].iter().find_map(|version| place.strip_suffix(version)).unwrap_or(place)
}

fn is_base64(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_most_exact_login_counts() {
        let json = br#"{"auths": {"r.example": {"auth": "YQ=="}, "r.example:5000/team": {"auth": "Yg=="},
            "https://old.example/v1/": {"auth": "Yw=="}, "r.example/team/app": {"auth": "ZA=="}}}"#;
        let logins = Logins::parse("f", json).unwrap();
        assert_eq!(logins.of("r.example", "x/y"), Some("YQ=="));
        assert_eq!(logins.of("r.example", "team/app"), Some("ZA=="));
        assert_eq!(logins.of("r.example", "team/apple"), Some("YQ=="), "a name is no directory");
        assert_eq!(logins.of("r.example:5000", "team/app/x"), Some("Yg=="));
        assert_eq!(logins.of("r.example:5000", "other"), None);
        assert_eq!(logins.of("old.example", "x"), Some("Yw=="));
        assert_eq!(logins.of("example", "x"), None);
    }

    #[test]
    fn what_is_of_no_use_is_told_and_never_shown() {
        let json = br#"{"auths": {"a.example": {}, "b.example": {"auth": "x\r\ny"}}, "credsStore": "desktop"}"#;
        let logins = Logins::parse("f", json).unwrap();
        assert_eq!(logins.doubts().len(), 3, "{:?}", logins.doubts());
        assert_eq!(logins.of("b.example", "x"), None);
        let known = Logins::parse("f", br#"{"auths": {"a.example": {"auth": "c2VjcmV0"}}}"#).unwrap();
        assert!(!format!("{known:?}").contains("c2VjcmV0"));
        assert_eq!(known.clone().or(logins).of("a.example", "x"), Some("c2VjcmV0"));
    }

    proptest! {
        #[test]
        fn any_file_is_read_or_refused(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Logins::parse("f", &json);
        }
    }
}

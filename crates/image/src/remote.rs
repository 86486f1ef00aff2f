//! Where images come from: the servers that `remotes.toml` lists, and the short names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lazaret_base::{Error, Kind, Result, error};
use toml_edit::{Document, Item, TableLike};

use crate::reference::{self, Repository, Wanted};

/// All servers, and which of them is meant when none is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remotes {
    /// The name of the one for images without a remote.
    pub default: String,
    /// By name.
    pub all: BTreeMap<String, Remote>,
    /// Short names and what they stand for.
    pub aliases: BTreeMap<String, String>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// What people call it.
    pub name: String,
    /// Its address, without a slash at the end.
    pub url: String,
    /// Other places with the same content, asked in this order when one fails.
    pub mirrors: Vec<String>,
    /// How it talks.
    pub protocol: Protocol,
    /// The only authorities to be believed, as a PEM file; the system's if `None`.
    pub ca: Option<PathBuf>,
    /// Whether plain http is good enough.
    pub insecure: bool,
}

/// How a server talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// An image server such as the LXC project's.
    Simplestreams,
    /// A registry of OCI images.
    Oci,
}

/// The LXC project's image server: nearly every distribution, built daily.
const DEFAULT_NAME: &str = "images";
const DEFAULT_URL: &str = "https://images.linuxcontainers.org";
/// What a bare name means where the newest release on the server is not what people want.
const ALIASES: &[(&str, &str)] = &[("debian", "debian/trixie"), ("ubuntu", "ubuntu/noble")];

impl Default for Remotes {
    fn default() -> Remotes {
        let remote = Remote::new(DEFAULT_NAME, DEFAULT_URL, Protocol::Simplestreams);
        Remotes {
            default: DEFAULT_NAME.into(),
            all: BTreeMap::from([(DEFAULT_NAME.into(), remote)]),
            aliases: ALIASES.iter().map(|(short, long)| ((*short).into(), (*long).into())).collect(),
        }
    }
}

impl Remotes {
    /// The text of `remotes.toml`, on top of what is there without it. `file` is named in errors.
    ///
    /// ```toml
    /// default = "office"
    ///
    /// [remotes.office]
    /// url = "https://images.office.example"
    /// mirrors = ["https://mirror.office.example/images"]
    /// protocol = "simplestreams"    # or "oci": a registry
    /// ca = "/etc/ssl/office.pem"    # believe this authority only, instead of the system's
    /// insecure = false              # allow plain http
    ///
    /// [aliases]
    /// work = "office:debian/bookworm/cloud"
    /// ```
    pub fn parse(file: &str, text: &str) -> Result<Remotes> {
        let tree = Document::parse(text).map_err(|e| at(file, text, e.span(), e.message()))?;
        let mut remotes = Remotes::default();
        let context = Place { file, text };
        for (key, item) in tree.as_table().iter() {
            match (key, item) {
                ("default", item) => remotes.default = context.text("default", item)?,
                ("remotes", Item::Table(table)) => {
                    for (name, item) in table.iter() {
                        let remote = context.remote(name, item)?;
                        remotes.all.insert(name.to_owned(), remote);
                    }
                }
                ("aliases", Item::Table(table)) => {
                    for (short, item) in table.iter() {
                        let long = context.text(short, item)?;
                        long.parse::<Wanted>().map_err(|e| context.wrong(item, &e.to_string()))?;
                        remotes.aliases.insert(short.to_ascii_lowercase(), long);
                    }
                }
                (key, item) => return Err(context.wrong(item, &format!("unknown key `{key}`"))),
            }
        }
        if !remotes.all.contains_key(&remotes.default) {
            let e = error(format!("{file}: the default remote `{}` is not in [remotes]", remotes.default));
            return Err(e.kind(Kind::Invalid));
        }
        Ok(remotes)
    }

    /// What a short name stands for; anything else stands for itself.
    pub fn expand(&self, wanted: &Wanted) -> Result<Wanted> {
        if wanted.remote.is_some() {
            return Ok(wanted.clone());
        }
        let Some(long) = self.aliases.get(&wanted.name) else { return Ok(wanted.clone()) };
        let Wanted { remote, name, architecture, serial } = long.parse()?;
        let (own_architecture, own_serial) = (wanted.architecture.clone(), wanted.serial.clone());
        Ok(Wanted { remote, name, architecture: own_architecture.or(architecture), serial: own_serial.or(serial) })
    }

    /// The place in a registry that a name of one of its remotes means; `None` for those of image servers.
    pub fn repository(&self, wanted: &Wanted) -> Result<Option<Repository>> {
        let remote = self.get(wanted.remote.as_deref())?;
        if remote.protocol != Protocol::Oci {
            return Ok(None);
        }
        let place = remote.url.split_once("://").map_or(&*remote.url, |(_, place)| place);
        let tag = wanted.serial.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let architecture = wanted.architecture.as_ref().map(|last| format!("/{last}")).unwrap_or_default();
        reference::repository(&format!("{place}/{}{architecture}{tag}", wanted.name)).map(Some)
    }

    /// The remote that tells how a registry is reached; one that nobody has written down is reached as all are.
    pub fn of_host(&self, host: &str) -> Remote {
        let is = |remote: &&Remote| {
            let place = remote.url.split_once("://").map_or("", |(_, place)| place);
            remote.protocol == Protocol::Oci && place.split('/').next() == Some(host)
        };
        let known = self.all.values().find(is).cloned();
        known.unwrap_or_else(|| Remote::new(host, &format!("https://{host}"), Protocol::Oci))
    }

    /// The remote of that name; the default one without.
    pub fn get(&self, name: Option<&str>) -> Result<&Remote> {
        let name = name.unwrap_or(&self.default);
        self.all.get(name).ok_or_else(|| {
            let known: Vec<_> = self.all.keys().map(|name| format!("`{name}`")).collect();
            error(format!("there is no remote `{name}`")).kind(Kind::NotFound).hint(format!(
                "there is {}; others are written into remotes.toml: [remotes.{name}] and url = \"https://…\"",
                known.join(", ")
            ))
        })
    }
}

impl Remote {
    /// One with nothing but a name, an address and a protocol.
    pub fn new(name: &str, url: &str, protocol: Protocol) -> Remote {
        let url = url.trim_end_matches('/').to_owned();
        Remote { name: name.into(), url, mirrors: Vec::new(), protocol, ca: None, insecure: false }
    }

    /// Where a path of the server's is to be had, in the order in which to ask.
    pub fn places<'a>(&'a self, path: &'a str) -> impl Iterator<Item = String> + 'a {
        std::iter::once(&self.url).chain(&self.mirrors).map(move |base| format!("{base}/{path}"))
    }
}

/// For errors that say where.
struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn wrong(&self, item: &Item, message: &str) -> Error {
        at(self.file, self.text, item.span(), message)
    }

    fn text(&self, key: &str, item: &Item) -> Result<String> {
        let text = item.as_str().ok_or_else(|| self.wrong(item, &format!("`{key}` is a text in quotes")));
        text.map(str::to_owned)
    }

    fn remote(&self, name: &str, item: &Item) -> Result<Remote> {
        if name.is_empty()
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            || RESERVED.contains(&name)
        {
            return Err(self.wrong(item, &format!("`{name}` can't be the name of a remote")));
        }
        let table: &dyn TableLike =
            item.as_table_like().ok_or_else(|| self.wrong(item, &format!("`{name}` is a table with a `url`")))?;
        let mut remote = Remote::new(name, "", Protocol::Simplestreams);
        for (key, item) in table.iter() {
            match key {
                "url" => remote.url = self.url(item)?,
                "mirrors" => {
                    let list = item.as_array().ok_or_else(|| self.wrong(item, "`mirrors` is a list of addresses"))?;
                    for value in list.iter() {
                        remote.mirrors.push(self.url(&Item::Value(value.clone()))?);
                    }
                }
                "protocol" => {
                    remote.protocol = match item.as_str() {
                        Some("simplestreams") => Protocol::Simplestreams,
                        Some("oci") => Protocol::Oci,
                        _ => return Err(self.wrong(item, "`protocol` is \"simplestreams\" or \"oci\"")),
                    }
                }
                "ca" => match self.text(key, item)? {
                    path if path.starts_with('/') => remote.ca = Some(path.into()),
                    _ => return Err(self.wrong(item, "`ca` is the absolute path of a PEM file")),
                },
                "insecure" => {
                    remote.insecure = item.as_bool().ok_or_else(|| self.wrong(item, "`insecure` is true or false"))?;
                }
                key => return Err(self.wrong(item, &format!("unknown key `{key}`"))),
            }
        }
        if remote.url.is_empty() {
            return Err(self.wrong(item, &format!("the remote `{name}` has no `url`")));
        }
        let plain = std::iter::once(&remote.url).chain(&remote.mirrors).find(|url| url.starts_with("http://"));
        match plain {
            Some(url) if !remote.insecure => {
                let e =
                    self.wrong(item, &format!("`{url}` is plain http, whose answers anybody on the way can change"));
                Err(e.hint("use https, or allow it with `insecure = true`"))
            }
            _ => Ok(remote),
        }
    }

    fn url(&self, item: &Item) -> Result<String> {
        let url = self.text("url", item)?;
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://")).unwrap_or_default();
        if rest.is_empty() || rest.starts_with('/') || rest.contains(['?', '#', ' ', '@']) {
            return Err(
                self.wrong(item, &format!("`{url}` is no address of a server, such as \"https://images.example\""))
            );
        }
        Ok(url.trim_end_matches('/').to_owned())
    }
}

/// Words that mean something else before a colon.
const RESERVED: &[&str] = &["host", "oci", "oci-archive", "docker-archive", "docker", "sha256"];

pub(crate) fn at(file: &str, text: &str, span: Option<std::ops::Range<usize>>, message: &str) -> Error {
    let before = span.map_or(0, |span| span.start.min(text.len()));
    let line = text.as_bytes()[..before].iter().filter(|byte| **byte == b'\n').count() + 1;
    let message = message.lines().next().unwrap_or_default();
    error(format!("{file}:{line}: {message}")).kind(Kind::Invalid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_adds_to_what_is_there_and_may_change_it() {
        let remotes = Remotes::parse(
            "remotes.toml",
            "default = \"office\"\n[remotes.office]\nurl = \"https://a.example/i/\"\nmirrors = [\"https://b.example\"]\n\
             ca = \"/etc/a.pem\"\n[remotes.hub]\nurl = \"http://h.example:5000\"\nprotocol = \"oci\"\ninsecure = true\n\
             [aliases]\nwork = \"office:debian/bookworm/cloud/amd64\"\ndebian = \"debian/bookworm\"\n",
        )
        .unwrap();
        assert_eq!(remotes.all.keys().collect::<Vec<_>>(), ["hub", "images", "office"]);
        let office = remotes.get(None).unwrap();
        assert_eq!(
            office.places("x/y").collect::<Vec<_>>(),
            ["https://a.example/i/x/y", "https://b.example/x/y"],
            "the slash at the end means nothing"
        );
        assert_eq!(remotes.all["hub"].protocol, Protocol::Oci);
        let expand = |text: &str| remotes.expand(&text.parse().unwrap()).unwrap().to_string();
        assert_eq!(expand("work"), "office:debian/bookworm/cloud/amd64");
        assert_eq!(expand("work/arm64@1"), "office:debian/bookworm/cloud/arm64@1");
        assert_eq!(expand("debian"), "debian/bookworm");
        assert_eq!(expand("images:debian"), "images:debian", "a remote's own name is no short name");
        assert!(remotes.get(Some("none")).unwrap_err().advice().unwrap().contains("`office`"));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, said) in [
            ("x = 1", "remotes.toml:1: unknown key `x`"),
            ("\ndefault = \"none\"", "the default remote `none` is not in [remotes]"),
            ("[remotes.a]\nurl = \"ftp://x\"", "remotes.toml:2: `ftp://x` is no address"),
            ("[remotes.a]\nurl = \"http://x\"", "is plain http"),
            ("[remotes.a]\nmirrors = []", "the remote `a` has no `url`"),
            ("[remotes.oci]\nurl = \"https://x\"", "can't be the name of a remote"),
            ("[remotes.a]\nurl = \"https://x\"\nport = 3", "remotes.toml:3: unknown key `port`"),
            ("[aliases]\na = \"/x\"", "remotes.toml:2: `/x` names no image"),
            ("[remotes.a\n", "remotes.toml:1: "),
        ] {
            let e = Remotes::parse("remotes.toml", text).unwrap_err().to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[\\[\\]a-z.=\"\n:/# ]{0,60}") {
            let _ = Remotes::parse("remotes.toml", &text);
        }
    }
}

//! How people name an image.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lazaret_base::{Error, Kind, Result, error};

use crate::LayerId;

/// What was typed behind `--image`, taken apart. Nothing is looked up here.
///
/// | written | meaning |
/// |---|---|
/// | `host` | the running system |
/// | `/srv/rootfs`, `./root.tar.xz` | a directory, or a file of any kind that can be imported |
/// | `debian/trixie`, `alpine`, `fedora/42/amd64` | an image that is here, or of the default remote |
/// | `images:debian/trixie` | an image of that remote |
/// | `debian/trixie@20261123_05:24`, `hub:team/app:1.2` | one build of it |
/// | `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:TAG]` | as skopeo(1) has them |
/// | `docker://HOST/REPOSITORY[:TAG][@DIGEST]` | an image of a registry |
/// | `sha256:…` | a layer that is here |
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// The running system.
    Host,
    /// A file or a directory.
    Path(PathBuf),
    /// A layer of the store.
    Layer(LayerId),
    /// An image in a file or a directory of OCI's.
    Oci {
        /// A layout's directory, or an archive of either kind.
        path: PathBuf,
        /// Which image of several.
        tag: Option<String>,
    },
    /// An image of a registry.
    Registry(Repository),
    /// An image by name.
    Named(Wanted),
}

/// An image by name, here or on a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The remote; `None` for what is here, or the default one.
    pub remote: Option<String>,
    /// Lower case, without the architecture.
    pub name: String,
    /// Debian's name of the architecture; this machine's if `None`.
    pub architecture: Option<String>,
    /// The build; the newest if `None`.
    pub serial: Option<String>,
}

/// A place in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Host, and port if it is not the usual one.
    pub host: String,
    /// Its path there.
    pub path: String,
    /// The tag; `latest` if neither it nor a digest was given.
    pub tag: String,
    /// The digest of a manifest, which wins over the tag.
    pub digest: Option<crate::Digest>,
}

/// Names of architectures as people write them, and Debian's. Those of the kernel and of Go are the usual others.
const ARCHITECTURES: &[(&str, &str)] = &[
    ("amd64", "amd64"),
    ("x86_64", "amd64"),
    ("arm64", "arm64"),
    ("aarch64", "arm64"),
    ("armhf", "armhf"),
    ("armv7l", "armhf"),
    ("armel", "armel"),
    ("i386", "i386"),
    ("i686", "i386"),
    ("386", "i386"),
    ("ppc64el", "ppc64el"),
    ("ppc64le", "ppc64el"),
    ("riscv64", "riscv64"),
    ("s390x", "s390x"),
    ("loong64", "loong64"),
    ("loongarch64", "loong64"),
];

/// Debian's name of an architecture that is written in any of the usual ways.
pub fn architecture(name: &str) -> Option<&'static str> {
    ARCHITECTURES.iter().find(|(written, _)| *written == name).map(|(_, debian)| *debian)
}

/// The architecture of this machine, by Debian's name.
pub fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "arm" => "armhf",
        "x86" => "i386",
        "powerpc64" => "ppc64el",
        other => architecture(other).unwrap_or(other),
    }
}

/// What the names of files that hold an image end with.
const ENDINGS: &[&str] =
    &[".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tar.zstd", ".tzst", ".squashfs", ".sqfs"];
/// Longer than any name on a server.
const LONGEST: usize = 200;

impl Reference {
    /// Whether a text can only mean a file or a directory, wherever it is typed.
    pub fn is_path(text: &str) -> bool {
        let lower = text.to_ascii_lowercase();
        text.starts_with(['/', '.', '~']) || ENDINGS.iter().any(|ending| lower.ends_with(ending))
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        if text == "host" {
            return Ok(Reference::Host);
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return repository(rest).map(Reference::Registry);
        }
        for prefix in ["oci:", "oci-archive:", "docker-archive:"] {
            if let Some(rest) = text.strip_prefix(prefix) {
                return oci(rest, text);
            }
        }
        if text.starts_with("sha256:") || text.strip_prefix("host:").is_some_and(|hex| hex.len() == 64) {
            return text.parse().map(Reference::Layer);
        }
        if Reference::is_path(text) {
            return Ok(Reference::Path(text.into()));
        }
        text.parse().map(Reference::Named)
    }
}

/// `PATH[:TAG]`: a colon that a slash follows belongs to the path.
fn oci(rest: &str, whole: &str) -> Result<Reference> {
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if path.is_empty() || tag.as_deref() == Some("") {
        return Err(invalid(whole, "it names no file").hint("for example `oci:/srv/image:latest`"));
    }
    Ok(Reference::Oci { path: path.into(), tag })
}

impl FromStr for Wanted {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wanted> {
        let (rest, serial) = match text.split_once('@') {
            Some((rest, serial)) => (rest, Some(serial)),
            None => (text, None),
        };
        let (remote, name) = match rest.split_once(':') {
            Some((remote, name)) => (Some(remote), name),
            None => (None, rest),
        };
        // A tag, as registries have them, says which build as well.
        let (name, serial) = match (name.split_once(':'), serial) {
            (Some((name, tag)), None) => (name, Some(tag)),
            (_, serial) => (name, serial),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
        let word = |word: &str| !word.is_empty() && !word.starts_with('.') && word.chars().all(plain);
        if text.len() > LONGEST || !name.split('/').all(word) || !remote.is_none_or(word) {
            return Err(invalid(text, "an image is named by words of letters and digits with `/` between them").hint(
                "for example debian/trixie, alpine, images:fedora/42; a file or directory begins with `/` or `./`",
            ));
        }
        let serial_word = |serial: &str| !serial.is_empty() && serial.chars().all(|c| plain(c) || c == ':');
        if !serial.is_none_or(serial_word) {
            return Err(invalid(text, "behind `@` stands a build").hint("for example debian/trixie@20261123_05:24"));
        }
        let lower = name.to_ascii_lowercase();
        let (name, found) = match lower.rsplit_once('/') {
            Some((name, last)) if architecture(last).is_some() => (name, architecture(last)),
            _ => (lower.as_str(), None),
        };
        Ok(Wanted {
            remote: remote.map(str::to_owned),
            name: name.to_owned(),
            architecture: found.map(str::to_owned),
            serial: serial.map(str::to_owned),
        })
    }
}

/// `HOST[:PORT]/PATH[:TAG][@DIGEST]`, as skopeo(1) and podman(1) have it; the host may not be left out.
pub(crate) fn repository(text: &str) -> Result<Repository> {
    let bad = |why: &str| {
        invalid(text, why).hint(
            "for example `docker://registry.example/team/app:1.2`; for names without a host, give a registry a name in \
             remotes.toml (protocol = \"oci\"), and it is `NAME:app`",
        )
    };
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    let Some((host, path)) = rest.split_once('/') else { return Err(bad("a registry's host is missing")) };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    if host != "localhost" && !host.contains(['.', ':']) {
        return Err(bad("it does not begin with the host of a registry"));
    }
    // The grammar of the distribution specification, "Pulling manifests".
    let host_ok = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    let component = |part: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        part.chars().all(plain) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let tag_ok = |tag: &str| {
        tag.len() <= 128
            && tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    if !host_ok || path.len() > 255 || !path.split('/').all(component) {
        return Err(bad("it is not the name of a repository"));
    }
    if !tag.is_none_or(tag_ok) {
        return Err(bad("it has no proper tag"));
    }
    let (host, path) = (host.to_owned(), path.to_owned());
    Ok(Repository { host, path, tag: tag.unwrap_or("latest").to_owned(), digest })
}

fn invalid(text: &str, why: &str) -> Error {
    error(format!("`{}` names no image: {why}", text.escape_debug())).kind(Kind::Invalid)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Host => f.write_str("host"),
            Reference::Path(path) => write!(f, "{}", path.display()),
            Reference::Layer(id) => write!(f, "{id}"),
            Reference::Oci { path, tag: Some(tag) } => write!(f, "oci:{}:{tag}", path.display()),
            Reference::Oci { path, tag: None } => write!(f, "oci:{}", path.display()),
            Reference::Registry(repository) => write!(f, "docker://{repository}"),
            Reference::Named(wanted) => write!(f, "{wanted}"),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remote) = &self.remote {
            write!(f, "{remote}:")?;
        }
        f.write_str(&self.name)?;
        if let Some(architecture) = &self.architecture {
            write!(f, "/{architecture}")?;
        }
        match &self.serial {
            Some(serial) => write!(f, "@{serial}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.path)?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => write!(f, ":{}", self.tag),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(text: &str) -> Wanted {
        match text.parse() {
            Ok(Reference::Named(wanted)) => wanted,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn refused(text: &str) {
        let e = text.parse::<Reference>().unwrap_err();
        assert!(e.what() == Kind::Invalid && !e.to_string().contains('\n'), "{text}: {e}");
    }

    #[test]
    fn names_are_taken_apart() {
        let wanted = |remote: Option<&str>, name: &str, architecture: Option<&str>, serial: Option<&str>| Wanted {
            remote: remote.map(str::to_owned),
            name: name.to_owned(),
            architecture: architecture.map(str::to_owned),
            serial: serial.map(str::to_owned),
        };
        assert_eq!(named("alpine"), wanted(None, "alpine", None, None));
        assert_eq!(named("Debian/Trixie"), wanted(None, "debian/trixie", None, None));
        assert_eq!(named("fedora/42/amd64"), wanted(None, "fedora/42", Some("amd64"), None));
        assert_eq!(named("fedora/42/default/x86_64"), wanted(None, "fedora/42/default", Some("amd64"), None));
        assert_eq!(named("my:ubuntu/24.04"), wanted(Some("my"), "ubuntu/24.04", None, None));
        assert_eq!(
            named("images:debian/trixie/arm64@20261123_05:24"),
            wanted(Some("images"), "debian/trixie", Some("arm64"), Some("20261123_05:24"))
        );
        assert_eq!(named("alpine@20261123_05:24"), wanted(None, "alpine", None, Some("20261123_05:24")));
    }

    #[test]
    fn paths_archives_registries_and_layers_are_told_from_names() {
        let parse = |text: &str| text.parse::<Reference>().unwrap();
        assert_eq!(parse("host"), Reference::Host);
        assert_eq!(parse("./debian"), Reference::Path("./debian".into()));
        assert_eq!(parse("root.TAR.xz"), Reference::Path("root.TAR.xz".into()));
        let oci = |path: &str, tag: Option<&str>| Reference::Oci { path: path.into(), tag: tag.map(str::to_owned) };
        assert_eq!(parse("oci:/srv/a"), oci("/srv/a", None));
        assert_eq!(parse("oci:a:1.2"), oci("a", Some("1.2")));
        assert_eq!(parse("docker-archive:/srv/x:y/a.tar"), oci("/srv/x:y/a.tar", None));
        let digest = crate::Digest::of(b"x");
        let repository = |host: &str, path: &str, tag: &str, digest| {
            Reference::Registry(Repository { host: host.into(), path: path.into(), tag: tag.into(), digest })
        };
        assert_eq!(parse("docker://127.0.0.1:5000/a/b:c"), repository("127.0.0.1:5000", "a/b", "c", None));
        let pinned = format!("docker://r.example/a@{digest}");
        assert_eq!(parse(&pinned), repository("r.example", "a", "latest", Some(digest)));
        assert_eq!(parse(&digest.to_string()), Reference::Layer(LayerId::Archive(digest)));
    }

    #[test]
    fn what_names_nothing_is_refused_in_a_sentence() {
        for text in
            ["", "a//b", "a/", "-\n", "a b", "a:b:c:d e", ":a", "a@", "..a/../b@x", "é", "oci:", "oci::x", "x@y z"]
        {
            if !Reference::is_path(text) {
                refused(text);
            }
        }
        for text in ["docker://alpine", "docker://x/y", "docker://h.x/A", "docker://h.x/a:", "docker://h.x/../b"] {
            refused(text);
        }
        refused("sha256:12");
        refused(&"a".repeat(1000));
    }

    proptest! {
        /// What is printed means what was parsed, and no text makes the parser panic.
        #[test]
        fn a_reference_reads_back(text in "(oci:|docker://|images:|)[a-z0-9./:@_-]{0,24}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            let _ = text.parse::<Reference>();
        }
    }
}

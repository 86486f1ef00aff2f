//! The packages that there are: indexes of an archive, or what dpkg notes of an installed system.

use std::cmp::Ordering;
use std::collections::HashMap;

use lazaret_base::{Context, Kind, Result, error};

use super::control::Paragraph;
use super::version;
use crate::Digest;

/// How much a system needs a package (Debian policy, 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Without it the system is broken.
    Required,
    /// Without it one would ask what is wrong.
    Important,
    /// What a small text system has.
    Standard,
    /// All else.
    Optional,
}

/// A package, by the text that describes it.
#[derive(Clone, Copy, Debug)]
pub struct Package<'t> {
    /// Its name.
    pub name: &'t str,
    /// Its version.
    pub version: &'t str,
    /// Debian's name of the architecture, or `all`.
    pub architecture: &'t str,
    /// How much it is needed.
    pub priority: Priority,
    /// Whether every system must have it.
    pub essential: bool,
    /// What it stands in for.
    pub provides: &'t str,
    /// All that is said of it.
    pub text: Paragraph<'t>,
    /// Which list it is from, as the reader counts them.
    pub list: usize,
}

/// What must be there, one of several each.
pub type Clause<'t> = Vec<Relation<'t>>;

/// A package by name, in some of its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'t> {
    /// The name of a package, or of what packages provide.
    pub name: &'t str,
    /// Which versions, if not all.
    pub version: Option<(Comparison, &'t str)>,
}

/// How versions compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// `<<`
    Earlier,
    /// `<=`
    EarlierOrEqual,
    /// `=`
    Equal,
    /// `>=`
    LaterOrEqual,
    /// `>>`
    Later,
}

impl<'t> Package<'t> {
    /// Reads what an index or dpkg says of it. Names and versions become parts of file names: what can't is refused.
    pub fn parse(text: Paragraph<'t>, list: usize) -> Result<Package<'t>> {
        let mut package = Package {
            name: "",
            version: "",
            architecture: "",
            priority: Priority::Optional,
            essential: false,
            provides: "",
            text,
            list,
        };
        for (name, value) in text.fields() {
            match name {
                "Package" => package.name = value,
                "Version" => package.version = value,
                "Architecture" => package.architecture = value,
                "Provides" => package.provides = value,
                "Essential" => package.essential = value == "yes",
                "Priority" => {
                    package.priority = match value {
                        "required" => Priority::Required,
                        "important" => Priority::Important,
                        "standard" => Priority::Standard,
                        _ => Priority::Optional,
                    }
                }
                _ => {}
            }
        }
        package.check().with_context(|| format!("the package `{}`", package.name.escape_debug()))?;
        Ok(package)
    }

    fn check(&self) -> Result<()> {
        let plain = |text: &str, others: &str| {
            text.len() <= 200
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
        };
        let lower = !self.name.contains(|c: char| c.is_ascii_uppercase());
        match lower && plain(self.name, "+.-") && plain(self.version, "+.-~:") && plain(self.architecture, "-") {
            true => Ok(()),
            false => Err(error("its name, version or architecture can't be one").kind(Kind::Invalid)),
        }
    }

    /// What must be there for it to work: `Depends` and `Pre-Depends`.
    pub fn needs(&self) -> impl Iterator<Item = Clause<'t>> {
        ["Pre-Depends", "Depends"].into_iter().flat_map(|field| clauses(self.text.get(field).unwrap_or_default()))
    }

    /// What must work before it may be unpacked.
    pub fn needs_before(&self) -> impl Iterator<Item = Clause<'t>> {
        clauses(self.text.get("Pre-Depends").unwrap_or_default()).into_iter()
    }

    /// What must not be there with it.
    pub fn refuses(&self) -> impl Iterator<Item = Relation<'t>> {
        ["Conflicts", "Breaks"]
            .into_iter()
            .flat_map(|field| clauses(self.text.get(field).unwrap_or_default()))
            .flatten()
    }

    /// What it stands in for, and in which version, if that is said.
    pub fn provided(&self) -> impl Iterator<Item = (&'t str, Option<&'t str>)> {
        let version = |relation: Relation<'t>| relation.version.map(|(_, version)| version);
        clauses(self.provides).into_iter().flatten().map(move |relation| (relation.name, version(relation)))
    }

    /// Where it is, below the archive's directory.
    pub fn file(&self) -> Result<&'t str> {
        let path = self.text.require("Filename")?;
        let plain = |c: char| c.is_ascii_graphic() && !"\\?#\"'<>".contains(c);
        match path.split('/').all(|part| !part.is_empty() && part != "..") && path.chars().all(plain) {
            true => Ok(path),
            false => Err(error(format!("`{}` is no place of a file", path.escape_debug())).kind(Kind::Invalid)),
        }
    }

    /// Bytes of its file.
    pub fn size(&self) -> Result<u64> {
        let text = self.text.require("Size")?;
        text.parse().map_err(|_| error(format!("`{text}` is no size")).kind(Kind::Invalid))
    }

    /// The digest of its file.
    pub fn digest(&self) -> Result<Digest> {
        Digest::from_hex(self.text.require("SHA256")?)
    }
}

impl Relation<'_> {
    /// Whether a version is meant.
    pub fn allows(&self, candidate: &str) -> bool {
        let Some((comparison, wanted)) = self.version else { return true };
        let order = version::compare(candidate, wanted);
        match comparison {
            Comparison::Earlier => order == Ordering::Less,
            Comparison::EarlierOrEqual => order != Ordering::Greater,
            Comparison::Equal => order == Ordering::Equal,
            Comparison::LaterOrEqual => order != Ordering::Less,
            Comparison::Later => order == Ordering::Greater,
        }
    }

    /// Whether a package is meant that provides this name, in this version if it says one (policy, 7.5).
    pub fn allows_provided(&self, provided: Option<&str>) -> bool {
        match (self.version, provided) {
            (None, _) => true,
            (Some(_), Some(version)) => self.allows(version),
            (Some(_), None) => false,
        }
    }
}

/// `a (>= 1) | b, c:any` (Debian policy, 7.1). What is of another architecture is left out.
pub fn clauses(text: &str) -> Vec<Clause<'_>> {
    let clauses = text.split(',').map(str::trim).filter(|clause| !clause.is_empty());
    clauses.map(|clause| clause.split('|').filter_map(relation).collect()).collect()
}

const COMPARISONS: &[(&str, Comparison)] = &[
    ("<<", Comparison::Earlier),
    ("<=", Comparison::EarlierOrEqual),
    (">=", Comparison::LaterOrEqual),
    (">>", Comparison::Later),
    ("=", Comparison::Equal),
    // As they were written long ago: these mean "or equal".
    ("<", Comparison::EarlierOrEqual),
    (">", Comparison::LaterOrEqual),
];

fn relation(text: &str) -> Option<Relation<'_>> {
    let text = text.trim();
    let (name, version) = match text.split_once('(') {
        Some((name, rest)) => {
            let rest = rest.split(')').next()?.trim();
            let (sign, comparison) = COMPARISONS.iter().find(|(sign, _)| rest.starts_with(sign))?;
            (name, Some((*comparison, rest[sign.len()..].trim())))
        }
        None => (text, None),
    };
    let name = name.split([' ', '[', '<']).next()?;
    let name = match name.split_once(':') {
        Some((name, "any" | "native")) => name,
        Some(_) => return None,
        None => name,
    };
    (!name.is_empty()).then_some(Relation { name, version })
}

/// Packages by name, each in its latest version, and by what they provide.
#[derive(Clone, Debug, Default)]
pub struct Index<'t> {
    latest: HashMap<&'t str, Package<'t>>,
    providers: HashMap<&'t str, Vec<(&'t str, Option<&'t str>)>>,
}

impl<'t> Index<'t> {
    /// Reads indexes. Packages of other architectures are left out.
    pub fn read(lists: impl IntoIterator<Item = &'t str>, architecture: &str) -> Result<Index<'t>> {
        let mut index = Index::default();
        for (list, text) in lists.into_iter().enumerate() {
            // An index is written by a program, which ends paragraphs by empty lines; there are tens of thousands.
            for paragraph in text.split("\n\n").map(|text| text.trim_matches('\n')).filter(|text| !text.is_empty()) {
                index.add(Package::parse(Paragraph(paragraph), list)?, architecture);
            }
        }
        for package in index.latest.values() {
            for (name, version) in package.provided() {
                index.providers.entry(name).or_default().push((package.name, version));
            }
        }
        // The same choice each time.
        index.providers.values_mut().for_each(|providers| providers.sort_unstable());
        Ok(index)
    }

    fn add(&mut self, package: Package<'t>, architecture: &str) {
        if ![architecture, "all"].contains(&package.architecture) {
            return;
        }
        let known = self.latest.entry(package.name).or_insert(package);
        if version::compare(package.version, known.version) == Ordering::Greater {
            *known = package;
        }
    }

    /// The package of that name.
    pub fn get(&self, name: &str) -> Option<&Package<'t>> {
        self.latest.get(name)
    }

    /// The packages that stand in for a name, and for which version of it.
    pub fn providers(&self, name: &str) -> &[(&'t str, Option<&'t str>)] {
        self.providers.get(name).map_or(&[], Vec::as_slice)
    }

    /// All packages, in no order.
    pub fn packages(&self) -> impl Iterator<Item = &Package<'t>> {
        self.latest.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relations_are_read_as_policy_says() {
        let read = clauses("libc6 (>= 2.36), debconf (>= 0.5) | debconf-2.0, python3:any, gcc:armhf | cc [amd64], ");
        assert_eq!(read.len(), 4);
        assert_eq!(read[0], [Relation { name: "libc6", version: Some((Comparison::LaterOrEqual, "2.36")) }]);
        assert_eq!(read[1][1], Relation { name: "debconf-2.0", version: None });
        assert_eq!(read[2][0].name, "python3");
        assert_eq!(read[3], [Relation { name: "cc", version: None }]);
        assert!(read[0][0].allows("2.36-9+deb12u10") && !read[0][0].allows("2.36~rc1"));
        assert!(clauses("a (<< 2)")[0][0].allows("1") && !clauses("a (<< 2)")[0][0].allows("2"));
        assert!(!clauses("a (= 2)")[0][0].allows_provided(None) && clauses("a")[0][0].allows_provided(None));
    }

    #[test]
    fn of_several_lists_the_latest_version_counts() {
        let first = "Package: a\nVersion: 1-1\nArchitecture: amd64\nProvides: x (= 3), y\n\n\
                     Package: b\nVersion: 1\nArchitecture: arm64\n\n";
        let second = "Package: a\nVersion: 1-1+deb1\nArchitecture: amd64\nProvides: x (= 4)\n";
        let index = Index::read([first, second], "amd64").unwrap();
        let a = index.get("a").unwrap();
        assert_eq!((a.version, a.list), ("1-1+deb1", 1));
        assert_eq!(index.providers("x"), [("a", Some("4"))]);
        assert!(index.providers("y").is_empty() && index.get("b").is_none());
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for (name, version, architecture) in [
            ("../a", "1", "all"),
            ("a/b", "1", "all"),
            ("", "1", "all"),
            ("A", "1", "all"),
            ("a", "1/../..", "all"),
            ("a", "", "all"),
            ("a", "1", "al l"),
            (".a", "1", "all"),
        ] {
            let text = format!("Package: {name}\nVersion: {version}\nArchitecture: {architecture}\n");
            assert!(Package::parse(Paragraph(&text), 0).is_err(), "{text}");
        }
        for place in ["/etc/passwd", "pool/../../x", "pool//x", "pool/x?y", "a b"] {
            let text = format!("Package: a\nVersion: 1\nArchitecture: all\nFilename: {place}\n");
            assert!(Package::parse(Paragraph(&text), 0).unwrap().file().is_err(), "{place}");
        }
    }
}

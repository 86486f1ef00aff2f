//! Shared libraries that a program of a container needs and does not find, and the packages that have them.
//!
//! The program is not run: what it needs is read from its file, inside, as ld.so(8) would look for it.

mod elf;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::Name;
use lazaret_runtime::attach;
use serde::{Deserialize, Serialize};

use crate::exec;
use crate::file::Place;
use crate::look::{Root, look};
use crate::store::Store;
use elf::Object;

/// Objects of one program.
const MOST_OBJECTS: usize = 2000;
/// A longer cache of libraries is none.
const LONGEST_CACHE: usize = 16 << 20;
/// Where commands are, beside what the configuration says.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games";
/// Where libraries are, beside what the cache says.
const LIBRARIES: &[&str] = &["/lib", "/usr/lib", "/lib64", "/usr/lib64", "/usr/local/lib"];
/// Debian's directories of libraries for one kind of machine (Multiarch), by its number in ELF files.
const MACHINES: &[(u16, &str)] = &[
    (3, "i386-linux-gnu"),
    (40, "arm-linux-gnueabihf"),
    (62, "x86_64-linux-gnu"),
    (183, "aarch64-linux-gnu"),
    (243, "riscv64-linux-gnu"),
];

/// What a program lacks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Missing {
    /// The program's file.
    pub program: String,
    /// Whether it says what it needs; a script does not.
    pub is_program: bool,
    /// Libraries and loaders that are not there.
    pub libraries: Vec<Library>,
    /// How packages are installed inside, if that is known.
    pub install: Option<String>,
    /// How to ask which package has a file, if that is known.
    pub search: Option<String>,
}

/// A library that is not there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Library {
    /// What it is called.
    pub name: String,
    /// Which file needs it.
    pub needed_by: String,
    /// The packages that have it, as far as the container knows.
    pub packages: Vec<String>,
}

/// Looks for what a program of a container lacks. Whether it runs or not; only one that runs is asked for packages.
///
/// # Errors
///
/// [`Kind::CommandNotFound`] where there is no such program.
pub fn missing(store: &Store, name: &Name, program: &str) -> Result<Missing> {
    let config = store.document(name)?.config().clone();
    let variable = |key: &str| config.env.get(key).map(String::as_str);
    let path = variable("PATH").unwrap_or(PATH).to_owned();
    let preferred: Vec<String> = variable("LD_LIBRARY_PATH")
        .unwrap_or_default()
        .split(':')
        .filter(|dir| !dir.is_empty())
        .map(str::to_owned)
        .collect();
    let looking = || format!("looking at what `{program}` needs");
    let mut found = {
        let place = Place::find(store, name).with_context(looking)?;
        look(&place, |root| inside(root, program, &path, preferred)).with_context(looking)?
    };
    if store.is_kept(name)? {
        for library in &mut found.libraries {
            // Who can't tell leaves the question to the person.
            library.packages = packages(store, name, &library.name).unwrap_or_default();
        }
    }
    Ok(found)
}

// --- inside ---

fn inside(root: &Root, program: &str, path: &str, preferred: Vec<String>) -> Result<Missing> {
    let file = find(root, program, path)
        .ok_or_else(|| error(format!("there is no program `{program}`")).kind(Kind::CommandNotFound))?;
    let manager = MANAGERS.iter().find(|manager| root.has(manager.path));
    let mut missing = Missing {
        program: file.clone(),
        is_program: false,
        libraries: Vec::new(),
        install: manager.map(|manager| manager.install.to_owned()),
        search: manager.map(|manager| manager.search.to_owned()),
    };
    if let Some(interpreter) = script(root, &file) {
        missing.libraries = match find(root, &interpreter, path) {
            Some(interpreter) => walk(root, &interpreter, preferred),
            None => vec![Library { name: interpreter, needed_by: file, packages: Vec::new() }],
        };
        return Ok(missing);
    }
    missing.is_program = object(root, &file).is_some();
    missing.libraries = walk(root, &file, preferred);
    Ok(missing)
}

/// A command's file, as execvp(3) finds it.
fn find(root: &Root, program: &str, path: &str) -> Option<String> {
    let candidates: Vec<String> = match program.contains('/') {
        true => vec![program.to_owned()],
        false => path.split(':').map(|dir| format!("{dir}/{program}")).collect(),
    };
    candidates.into_iter().find(|candidate| root.file(candidate).is_some()).map(|found| root.real(&found))
}

/// Who runs a file, if it is a script. What env(1) is told to run counts.
fn script(root: &Root, path: &str) -> Option<String> {
    let mut head = [0; 256];
    let read = root.file(path)?.read_at(&mut head, 0).ok()?;
    let line = head[..read].strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let first = words.next()?;
    match first.ends_with("/env") {
        true => words.find(|word| !word.starts_with('-') && !word.contains('=')).or(Some(first)).map(str::to_owned),
        false => Some(first.to_owned()),
    }
}

fn object(root: &Root, path: &str) -> Option<Object> {
    let file = root.file(path)?;
    elf::parse(&|at, length| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    })
}

/// What is not found of all that a program needs, directly or by what it needs.
fn walk(root: &Root, program: &str, preferred: Vec<String>) -> Vec<Library> {
    let Some(first) = object(root, program) else { return Vec::new() };
    let mut search = Search::new(root, &first, preferred);
    let mut missing = Vec::new();
    let lacks =
        |name: &str, by: &str| Library { name: name.to_owned(), needed_by: by.to_owned(), packages: Vec::new() };
    if let Some(interpreter) = first.interpreter.as_deref().filter(|path| root.file(path).is_none()) {
        missing.push(lacks(interpreter, program));
    }
    let mut known = BTreeSet::new();
    let mut next = vec![(program.to_owned(), first, Vec::new())];
    while let Some((path, object, inherited)) = next.pop() {
        // What the old path says counts for all that is loaded by it, unless there is a new one.
        let own = if object.runpath.is_empty() { expanded(&object.rpath, &path) } else { Vec::new() };
        let inherited = [own, inherited].concat();
        let runpath = expanded(&object.runpath, &path);
        for name in &object.needed {
            if known.len() >= MOST_OBJECTS || !known.insert(name.clone()) {
                continue;
            }
            let old: &[String] = if object.runpath.is_empty() { &inherited } else { &[] };
            match search.library(name, old, &runpath) {
                Some((path, object)) => next.push((path, object, inherited.clone())),
                None => missing.push(lacks(name, &path)),
            }
        }
    }
    missing.sort_by(|a, b| a.name.cmp(&b.name));
    missing
}

/// Directories with what ld.so(8) replaces in them.
fn expanded(dirs: &[String], object: &str) -> Vec<String> {
    let origin = object.rsplit_once('/').map_or("", |(dir, _)| dir);
    let expand = |dir: &String| dir.replace("${ORIGIN}", origin).replace("$ORIGIN", origin);
    let known = |dir: &String| dir.starts_with('/') && !dir.contains('$');
    dirs.iter().map(expand).filter(known).collect()
}

/// Where libraries are.
struct Search<'a> {
    root: &'a Root,
    kind: (u8, u8, u16),
    preferred: Vec<String>,
    cache: BTreeMap<String, Vec<String>>,
    usual: Vec<String>,
}

impl<'a> Search<'a> {
    fn new(root: &'a Root, program: &Object, preferred: Vec<String>) -> Search<'a> {
        let mut cache: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, path) in elf::cache(&root.read("/etc/ld.so.cache", LONGEST_CACHE).unwrap_or_default()) {
            cache.entry(name).or_default().push(path);
        }
        let mut usual: Vec<String> = LIBRARIES.iter().map(|dir| (*dir).to_owned()).collect();
        let triplet = MACHINES.iter().find(|(machine, _)| *machine == program.kind.2).map(|(_, triplet)| *triplet);
        usual.extend(triplet.iter().flat_map(|triplet| ["/lib", "/usr/lib"].map(|dir| format!("{dir}/{triplet}"))));
        // musl's loader has a file of its own for each kind of machine.
        for file in
            root.names("/etc", 4096).iter().filter(|file| file.starts_with("ld-musl-") && file.ends_with(".path"))
        {
            let text = root.read(&format!("/etc/{file}"), 64 * 1024).unwrap_or_default();
            usual.extend(String::from_utf8_lossy(&text).split([':', '\n']).map(str::to_owned));
        }
        Search { root, kind: program.kind, preferred, cache, usual }
    }

    /// A library of the right kind, and its file.
    fn library(&mut self, name: &str, old: &[String], new: &[String]) -> Option<(String, Object)> {
        let fits = |path: String| {
            let object = object(self.root, &path).filter(|object| object.kind == self.kind)?;
            Some((self.root.real(&path), object))
        };
        if name.contains('/') {
            return fits(name.to_owned());
        }
        let before = old.iter().chain(&self.preferred).chain(new).map(|dir| format!("{dir}/{name}"));
        let cached = self.cache.get(name).into_iter().flatten().cloned();
        let after = self.usual.iter().map(|dir| format!("{dir}/{name}"));
        before.chain(cached).chain(after).find_map(fits)
    }
}

// --- packages ---

/// A manager of packages: where it is, how it installs, how a person asks which package has a file.
struct Manager {
    path: &'static str,
    install: &'static str,
    search: &'static str,
}

const MANAGERS: &[Manager] = &[
    Manager { path: "/usr/bin/apt-get", install: "apt-get install -y", search: "apt-file search" },
    Manager { path: "/sbin/apk", install: "apk add", search: "apk search" },
    Manager { path: "/usr/bin/dnf", install: "dnf install -y", search: "dnf provides" },
    Manager { path: "/usr/bin/pacman", install: "pacman -S --noconfirm", search: "pacman -F" },
    Manager { path: "/usr/bin/zypper", install: "zypper install -y", search: "zypper search --provides" },
    Manager { path: "/usr/bin/xbps-install", install: "xbps-install -Sy", search: "xlocate" },
];

/// Asks the container's own manager of packages. What it says is shown and nothing else is done with it.
fn packages(store: &Store, name: &Name, library: &str) -> Result<Vec<String>> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._+-".contains(&b);
    if !library.bytes().all(plain) || library.starts_with('-') {
        return Ok(Vec::new());
    }
    let question = question(library);
    let words = ["sh", "-c", QUESTION, "sh", library, &question].map(str::to_owned).into();
    let command = attach::Command { words, ..attach::Command::default() };
    let heard = exec::heard(store, name, &command)?;
    let is_name = |word: &&str| !word.is_empty() && word.len() <= 100 && word.bytes().all(plain);
    let mut names: Vec<_> = heard.lines().map(str::trim).filter(is_name).map(str::to_owned).collect();
    names.dedup();
    names.truncate(5);
    Ok(names)
}

/// One package on each line. Whoever is there and knows something answers.
const QUESTION: &str = "\
if command -v apt-file >/dev/null; then apt-file search --package-only --regexp \"/$(echo \"$1\" | sed 's/[.+]/\\\\&/g')\\$\"
elif command -v apt-cache >/dev/null; then apt-cache search --names-only \"$2\" | cut -d' ' -f1
elif command -v apk >/dev/null; then apk search --quiet --exact \"so:$1\"
elif command -v dnf >/dev/null; then dnf --quiet repoquery --qf '%{name}\\n' --whatprovides \"*/$1\"
elif command -v pacman >/dev/null; then pacman -Fq \"$1\" | sed 's,.*/,,'
fi 2>/dev/null";

/// Which package of Debian's has a library, by the rule for their names (Debian Policy, section 8.1), as a pattern:
/// `libfoo.so.1` is in `libfoo1`, `libfoo-2.0.so.0` in `libfoo-2.0-0`.
fn question(library: &str) -> String {
    let (stem, version) = library.split_once(".so").unwrap_or((library, ""));
    let version = version.trim_start_matches('.');
    let between = if stem.ends_with(|c: char| c.is_ascii_digit()) && !version.is_empty() { "-" } else { "" };
    let package = format!("{stem}{between}{version}").to_ascii_lowercase().replace('_', "-");
    let quoted: String =
        package.chars().flat_map(|c| ".+".contains(c).then_some('\\').into_iter().chain([c])).collect();
    format!("^{quoted}(t64)?$")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_in_packages_of_their_name() {
        assert_eq!(question("libfoo.so.1"), "^libfoo1(t64)?$");
        assert_eq!(question("libgtk-3.so.0"), "^libgtk-3-0(t64)?$");
        assert_eq!(question("libstdc++.so.6"), "^libstdc\\+\\+6(t64)?$");
        assert_eq!(question("libX11.so.6"), "^libx11-6(t64)?$");
    }

    #[test]
    fn origin_is_where_the_object_is() {
        let dirs = ["$ORIGIN/../lib", "${ORIGIN}", "relative", "/opt/$LIB", "/opt/x"].map(str::to_owned);
        assert_eq!(expanded(&dirs, "/opt/app/bin/app"), ["/opt/app/bin/../lib", "/opt/app/bin", "/opt/x"]);
    }
}

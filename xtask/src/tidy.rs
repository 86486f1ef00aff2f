//! `cargo xtask tidy`: what ARCHITECTURE.md promises about the source, as checks on its text.
//!
//! Each rule says what it promises; a place that breaks it is shown with its line. A place that has to break a rule
//! is named in the rule's own table, with the reason.

mod code;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::{Result, nothing_else, place};
use code::{Code, Line, NO_TEXT};

/// Checks everything.
pub fn run(arguments: &[String]) -> Result {
    nothing_else(arguments)?;
    println!("{}", check(place::source())?);
    Ok(())
}

/// Checks the source below a directory. Returns in a sentence what was checked, or all that is wrong.
pub fn check(source: &Path) -> Result<String> {
    let tree = Tree::read(source)?;
    let mut wrong: Vec<String> = Vec::new();
    for rule in RULES {
        let places = (rule.broken)(&tree);
        if !places.is_empty() {
            wrong.push(format!("{}:\n  {}", rule.promise, places.join("\n  ")));
        }
    }
    match wrong.is_empty() {
        true => Ok(format!("{} rules, {} files", RULES.len(), tree.files.len())),
        false => Err(wrong.join("\n")),
    }
}

/// Something that holds for the source.
struct Rule {
    promise: &'static str,
    /// The places where it does not hold.
    broken: fn(&Tree) -> Vec<String>,
}

const RULES: &[Rule] = &[
    Rule { promise: "`unsafe` is said in crates/sys and in the init of containers alone", broken: unsafe_elsewhere },
    Rule { promise: "no library prints, exits or reads the environment", broken: talking_libraries },
    Rule { promise: "modules that decide make no system call", broken: acting_where_deciding },
    Rule { promise: "the store alone names paths of the state directories", broken: state_paths },
    Rule { promise: "crates import downwards", broken: imports },
    Rule { promise: "a line has at most 120 columns, not counting the text of strings", broken: long_lines },
    Rule { promise: "no unfinished work, no debugging aids", broken: unfinished },
    Rule { promise: "no machine of somebody's and no package server is named", broken: somebodys_machine },
    Rule { promise: "a file begins by saying what it owns (`//!`)", broken: nameless_files },
    Rule { promise: "no source file is left out of the build", broken: dead_files },
    Rule { promise: "no symbolic link stands in the source", broken: |tree| tree.links.clone() },
    Rule { promise: "ARCHITECTURE.md tells of every crate", broken: untold_crates },
    Rule { promise: "README.md names chores that exist", broken: absent_chores },
    Rule { promise: "CHANGELOG.md speaks of this version", broken: silent_changelog },
    Rule { promise: "every crate takes the workspace's lints, and says what it is", broken: careless_manifests },
];

/// The source: every file of it that is text, by its path from the top, and every symbolic link.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
    links: Vec<String>,
}

/// Directories that hold no source.
const NO_SOURCE: &[&str] = &[".git", "target"];

impl Tree {
    fn read(source: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut directories = vec![source.to_owned()];
        while let Some(directory) = directories.pop() {
            let reading = |e: std::io::Error| format!("reading `{}`: {e}", directory.display());
            for entry in fs::read_dir(&directory).map_err(reading)? {
                let entry = entry.map_err(reading)?;
                let kind = entry.file_type().map_err(reading)?;
                let path = entry.path();
                let name = path.strip_prefix(source).unwrap_or(&path).to_string_lossy().into_owned();
                if kind.is_symlink() {
                    tree.links.push(name);
                } else if kind.is_file() {
                    // What is not text is data.
                    if let Ok(text) = String::from_utf8(fs::read(&path).map_err(reading)?) {
                        tree.files.insert(name, text);
                    }
                } else if kind.is_dir() && !NO_SOURCE.iter().any(|name| entry.file_name() == *name) {
                    directories.push(path);
                }
            }
        }
        Ok(tree)
    }

    /// Files of Rust below one of the directories.
    fn rust<'a>(&'a self, below: &'a [&str]) -> impl Iterator<Item = (&'a str, Code)> {
        let files = self.files.iter().filter(move |(path, _)| {
            path.ends_with(".rs") && below.iter().any(|directory| path.starts_with(directory))
        });
        files.map(|(path, text)| (path.as_str(), Code::of(text)))
    }

    fn text(&self, path: &str) -> &str {
        self.files.get(path).map_or("", String::as_str)
    }

    /// Manifests of crates: their directory and their text.
    fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| {
            let directory = path.strip_suffix("/Cargo.toml")?;
            Some((directory, text.as_str()))
        })
    }
}

/// Places where one of `words` stands in the code of a line, or in what else of it `part` takes.
fn lines_with<'a>(
    path: &str,
    lines: impl Iterator<Item = &'a Line>,
    part: fn(&Line) -> &str,
    words: &[&str],
) -> Vec<String> {
    let found = |line: &'a Line| words.iter().find(|word| has_word(part(line), word)).map(|word| (line.number, *word));
    lines.filter_map(found).map(|(number, word)| format!("{path}:{number}: {word}")).collect()
}

/// Whether `word` stands in `text` and is not part of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let (begins, ends) = (inside(word.chars().next()), inside(word.chars().next_back()));
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        !(begins && inside(before) || ends && inside(after))
    })
}

fn code(line: &Line) -> &str {
    &line.code
}

fn literal(line: &Line) -> &str {
    &line.literal
}

/// Files that are tests from beginning to end.
fn is_tests(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs")
}

// --- rules ---

/// Where the compiler's word is not enough, and why.
const UNSAFE: &[(&str, &str)] = &[
    ("crates/sys/", "the kernel's calls that have no safe form elsewhere"),
    ("crates/runtime/init/", "a program without any library below it"),
];

fn unsafe_elsewhere(tree: &Tree) -> Vec<String> {
    let elsewhere =
        tree.rust(&["crates/", "xtask/"]).filter(|(path, _)| UNSAFE.iter().all(|(p, _)| !path.starts_with(p)));
    elsewhere.flat_map(|(path, file)| lines_with(path, file.lines().iter(), code, &["unsafe"])).collect()
}

/// Crates that others build upon.
const LIBRARIES: &[&str] = &[
    "crates/base/src/",
    "crates/sys/src/",
    "crates/config/src/",
    "crates/runtime/src/",
    "crates/image/src/",
    "crates/lazaret/src/",
];

/// What is the business of whoever calls a library.
const CALLERS_BUSINESS: &[&str] = &[
    "print!",
    "println!",
    "eprint!",
    "eprintln!",
    "io::stdout",
    "io::stderr",
    "process::exit",
    "process::abort",
    "env::var",
    "env::var_os",
    "env::vars",
    "env::vars_os",
    "env::args",
    "env::args_os",
    "env::set_var",
    "env::home_dir",
];

fn talking_libraries(tree: &Tree) -> Vec<String> {
    let libraries = tree.rust(LIBRARIES).filter(|(path, _)| !is_tests(path));
    libraries.flat_map(|(path, file)| lines_with(path, file.in_use(), code, CALLERS_BUSINESS)).collect()
}

/// What only decides: the same in, the same out.
const DECIDING: &[&str] = &[
    "crates/config/src/",
    "crates/runtime/src/plan.rs",
    "crates/runtime/src/devices.rs",
    "crates/runtime/src/seccomp/",
];

/// What acts on the world or looks at it.
const ACTING: &[&str] = &[
    "rustix::fs",
    "rustix::process",
    "rustix::mount",
    "rustix::net",
    "rustix::thread",
    "rustix::system",
    "libc",
    "lazaret_sys::process",
    "lazaret_sys::signal",
    "lazaret_sys::net",
    "std::fs",
    "fs::",
    "File",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "std::process",
    "env::var",
    "env::args",
    "env::current_dir",
    "std::thread",
    "Command::new",
    "SystemTime",
    "Instant",
];

fn acting_where_deciding(tree: &Tree) -> Vec<String> {
    let deciding = tree.rust(DECIDING).filter(|(path, _)| !is_tests(path));
    deciding.flat_map(|(path, file)| lines_with(path, file.in_use(), code, ACTING)).collect()
}

/// Files that may say where the state is: the store, and the help text of the flag that puts it elsewhere.
const NAMES_THE_STATE: &[&str] = &["crates/lazaret/src/store.rs", "crates/cli/src/main.rs"];

fn state_paths(tree: &Tree) -> Vec<String> {
    let others = tree.rust(&["crates/"]).filter(|(path, _)| !is_tests(path) && !NAMES_THE_STATE.contains(path));
    let state = ["/var/lib/lazaret", "/run/lazaret", "/etc/lazaret"];
    others.flat_map(|(path, file)| lines_with(path, file.in_use(), literal, &state)).collect()
}

/// Every crate and the crates of ours that it may import. Siblings never import each other: what they share passes
/// through `lazaret` as values.
const IMPORTS: &[(&str, &[&str])] = &[
    ("lazaret-base", &[]),
    ("lazaret-sys", &[]),
    ("lazaret-config", &["lazaret-base"]),
    ("lazaret-image", &["lazaret-base", "lazaret-config", "lazaret-sys"]),
    ("lazaret-runtime", &["lazaret-base", "lazaret-config", "lazaret-sys"]),
    ("lazaret-net", &["lazaret-base", "lazaret-config", "lazaret-sys"]),
    ("lazaret-gate", &["lazaret-base", "lazaret-sys"]),
    ("lazaret-desktop", &["lazaret-base"]),
    (
        "lazaret",
        &[
            "lazaret-base",
            "lazaret-config",
            "lazaret-sys",
            "lazaret-image",
            "lazaret-net",
            "lazaret-runtime",
            "lazaret-gate",
            "lazaret-desktop",
        ],
    ),
    ("lazaret-cli", &["lazaret-base", "lazaret-config", "lazaret"]),
    ("xtask", &[]),
];

fn imports(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (directory, manifest) in tree.manifests() {
        let name = value_of(manifest, "name");
        let Some((_, allowed)) = IMPORTS.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{directory}: what may `{name}` import? say so in xtask/src/tidy.rs"));
            continue;
        };
        let ours = dependencies(manifest).filter(|other| other.starts_with("lazaret"));
        wrong.extend(
            ours.filter(|other| !allowed.contains(other)).map(|other| format!("{directory}: imports `{other}`")),
        );
    }
    wrong
}

/// The names in all tables of dependencies of a manifest.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().filter_map(move |line| {
        if line.starts_with('[') {
            inside = line.trim_end_matches(']').ends_with("dependencies");
            return None;
        }
        let end = line.find(|c: char| c == '.' || c == '=' || c.is_whitespace())?;
        (inside && !line.starts_with('#')).then(|| &line[..end])
    })
}

/// The text of the first `key = "text"` of a manifest.
fn value_of<'a>(manifest: &'a str, key: &str) -> &'a str {
    let values = manifest.lines().filter_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
    values.map(|value| value.trim().trim_matches('"')).next().unwrap_or_default()
}

const COLUMNS: usize = 120;

fn long_lines(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in &tree.files {
        let lengths: Vec<usize> = match path.rsplit_once('.').map(|(_, end)| end) {
            // rustfmt breaks code, but no string.
            Some("rs") => {
                let file = Code::of(text);
                let text_in_strings =
                    file.lines().iter().map(|line| line.literal.chars().filter(|c| *c != NO_TEXT).count());
                text.lines().zip(text_in_strings).map(|(line, inside)| line.chars().count() - inside).collect()
            }
            Some("sh" | "c" | "yml") => text.lines().map(|line| line.chars().count()).collect(),
            _ => continue,
        };
        let long = lengths.iter().enumerate().filter(|(_, length)| **length > COLUMNS);
        wrong.extend(long.map(|(i, length)| format!("{path}:{}: {length} columns", i + 1)));
    }
    wrong
}

/// Put together here, so that this file does not name them itself.
const UNFINISHED: &[&str] = &[concat!("todo", "!"), concat!("unimplemented", "!"), concat!("dbg", "!")];
const UNFINISHED_WORDS: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:"), concat!("HA", "CK"), concat!("W", "IP")];

fn unfinished(tree: &Tree) -> Vec<String> {
    anywhere(tree, &[UNFINISHED, UNFINISHED_WORDS].concat())
}

const SOMEBODYS_MACHINE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/root/", ".cargo"),
    concat!("/root/", ".rustup"),
    concat!("/tmp/", "t-"),
    concat!("crates", ".io"),
    concat!("rust-lang", ".org"),
    concat!("debian", ".org"),
    concat!("ubuntu", ".com"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("pypi", ".org"),
    concat!("localhost", ":"),
];

/// Where the archives of distributions have their names, which the product has to know to build images of them.
const NAMES_ARCHIVES: &[&str] = &["build/distribution.rs", "dropin.rs", "proxy.rs"];

fn somebodys_machine(tree: &Tree) -> Vec<String> {
    let mut wrong = anywhere(tree, SOMEBODYS_MACHINE);
    wrong.retain(|place| !NAMES_ARCHIVES.iter().any(|file| place.starts_with(&format!("crates/image/src/{file}:"))));
    wrong
}

/// Places in any file where one of the words stands, but for the file that cargo writes.
fn anywhere(tree: &Tree, words: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (path, text) in tree.files.iter().filter(|(path, _)| *path != "Cargo.lock") {
        for (i, line) in text.lines().enumerate() {
            let found = words.iter().find(|word| has_word(line, word));
            wrong.extend(found.map(|word| format!("{path}:{}: {word}", i + 1)));
        }
    }
    wrong
}

fn nameless_files(tree: &Tree) -> Vec<String> {
    let rust = tree.files.iter().filter(|(path, _)| path.ends_with(".rs"));
    rust.filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| path.clone()).collect()
}

/// Files that the build begins with.
fn is_root(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_tests = path.split_once("/tests/").is_some_and(|(_, rest)| !rest.contains('/') || name == "main.rs");
    let in_examples = path.split_once("/examples/").is_some_and(|(_, rest)| !rest.contains('/'));
    in_tests || in_examples || ["lib.rs", "main.rs", "build.rs"].contains(&name)
}

fn dead_files(tree: &Tree) -> Vec<String> {
    let rust = tree.files.keys().filter(|path| path.ends_with(".rs") && !is_root(path));
    let named = |path: &str| {
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        // `a/b.rs` and `a/b/mod.rs` are both module `b` of `a`.
        let (directory, module) = match file {
            "mod.rs" => directory.rsplit_once('/').unwrap_or(("", directory)),
            _ => (directory, file.trim_end_matches(".rs")),
        };
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|name| format!("{directory}/{name}"));
        let parents = parents.into_iter().chain([format!("{directory}.rs")]);
        // The verbs of the command are a table of names, from which a macro makes the `mod` lines.
        let in_table = format!("{module} \"");
        parents.filter_map(|parent| tree.files.get(&parent)).any(|text| {
            let code = Code::of(text);
            let declared = code.lines().iter().any(|line| has_word(&line.code, &format!("mod {module};")));
            declared || code.lines().iter().any(|line| line.code.trim_start().starts_with(&in_table))
        })
    };
    rust.filter(|path| !named(path)).cloned().collect()
}

fn untold_crates(tree: &Tree) -> Vec<String> {
    let told = tree.text("ARCHITECTURE.md");
    let names = tree.manifests().map(|(_, manifest)| value_of(manifest, "name"));
    names.filter(|name| !told.contains(&format!("`{name}`"))).map(str::to_owned).collect()
}

fn absent_chores(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for page in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", ".ci/run"] {
        for (i, line) in tree.text(page).lines().enumerate() {
            let named = line.split("cargo xtask ").skip(1);
            let words = named.filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next());
            let absent = words.filter(|word| !crate::CHORES.iter().any(|chore| chore.name == *word));
            wrong.extend(absent.map(|word| format!("{page}:{}: {word}", i + 1)));
        }
    }
    wrong
}

fn silent_changelog(tree: &Tree) -> Vec<String> {
    let version = value_of(tree.text("Cargo.toml"), "version");
    let mut headings = tree.text("CHANGELOG.md").lines().filter_map(|line| line.strip_prefix("## "));
    match headings.any(|heading| heading.starts_with("[Unreleased]") || heading.starts_with(&format!("[{version}]"))) {
        true => Vec::new(),
        false => vec![format!("neither `## [Unreleased]` nor `## [{version}]`")],
    }
}

fn careless_manifests(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for (directory, manifest) in tree.manifests() {
        if !manifest.contains("[lints]\nworkspace = true") {
            wrong.push(format!("{directory}: no `[lints]` of the workspace"));
        }
        if value_of(manifest, "description").is_empty() {
            wrong.push(format!("{directory}: no description"));
        }
    }
    wrong
}

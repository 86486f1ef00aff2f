//! What every system begins with: packages whose files are put into an empty tree, and what dpkg must know of them.
//!
//! Nothing is executed here. The packages are left as dpkg itself leaves them when they are unpacked and not yet
//! configured, so that its next call, inside, goes on from there.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use lazaret_base::{Context, Kind, Result, error};
use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::control::Paragraph;
use super::deb::{self, ControlFile, Section};
use super::index::Package;
use super::mirror::file_name;
use crate::archive::Kind as EntryKind;
use crate::tree::{self, INSIDE, LIST, START, STRAIGHT, Spot};
use crate::unpack::{full, unpack_package};
use crate::{Limits, Progress, Unpacked};

/// What was laid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foundation {
    /// Scripts that should have run before their packages were unpacked.
    pub scripts: Vec<Script>,
    /// Entries and bytes.
    pub unpacked: Unpacked,
}

/// A script of a package that is to run inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Whose it is.
    pub package: String,
    /// Of which architecture.
    pub architecture: String,
    /// Where it is inside.
    pub path: String,
}

/// Directories that are links into `/usr` on every system of today.
const MERGED: &[&str] = &["bin", "sbin", "lib"];
/// Where others of these are. What a distribution does not use is no harm: it is not there.
const MERGED_MORE: &[(&str, &[&str])] = &[("amd64", &["lib64"]), ("ppc64el", &["lib64"]), ("loong64", &["lib64"])];
const INFO: &str = "var/lib/dpkg/info";
/// What a package may cost.
const LIMITS: Limits = Limits { bytes: 16 << 30, entries: 1 << 20, path: 4096, ratio: 2000, ratio_floor: 256 << 20 };

/// Unpacks packages into an empty directory. Their files are in `files`, by the names that
/// [`Mirror::fetch`](super::Mirror::fetch) gives them.
pub fn lay_foundation(
    into: BorrowedFd<'_>,
    packages: &[Package<'_>],
    files: &Path,
    architecture: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Foundation> {
    let root = tree::open(into, ".", LIST, STRAIGHT)?;
    prepare(root.as_fd(), architecture).context("preparing the tree")?;
    let (mut foundation, mut status, mut triggers) = (Foundation::default(), String::new(), String::new());
    for package in packages {
        let unpacking = || format!("unpacking the package `{}`", package.name);
        let file = File::open(files.join(file_name(package))).with_context(unpacking)?;
        let laid = lay(root.as_fd(), package, &file, &mut triggers).with_context(unpacking)?;
        status.push_str(&laid.status);
        foundation.unpacked.entries += laid.unpacked.entries;
        foundation.unpacked.bytes += laid.unpacked.bytes;
        foundation.unpacked.warnings.extend(laid.unpacked.warnings);
        foundation.scripts.extend(laid.script);
        let (entries, bytes) = (foundation.unpacked.entries, foundation.unpacked.bytes);
        progress(Progress::written(entries, bytes));
    }
    // Who is a user is said first: other scripts change owners.
    foundation.scripts.sort_by_key(|script| script.package != "base-passwd");
    write(root.as_fd(), "var/lib/dpkg/status", status.as_bytes(), 0o644)?;
    write(root.as_fd(), "var/lib/dpkg/available", b"", 0o644)?;
    write(root.as_fd(), "var/lib/dpkg/triggers/File", triggers.as_bytes(), 0o644)?;
    write(root.as_fd(), "var/lib/dpkg/info/format", b"1\n", 0o644)?;
    Ok(foundation)
}

/// What must be there before the first package.
fn prepare(root: BorrowedFd<'_>, architecture: &str) -> Result<()> {
    Spot::Open(root).set_owner(0, 0)?;
    Spot::Open(root).set_mode(0o755)?;
    let more = MERGED_MORE.iter().find(|(name, _)| *name == architecture).map_or(&[][..], |(_, more)| more);
    for name in MERGED.iter().chain(more) {
        make_directory(root, &format!("usr/{name}"))?;
        fs::symlinkat(format!("usr/{name}"), root, *name).map_err(lazaret_base::Error::from).map_err(full)?;
    }
    for directory in ["info", "updates", "triggers", "alternatives", "parts"] {
        make_directory(root, &format!("var/lib/dpkg/{directory}"))?;
    }
    Ok(())
}

/// What came of one package.
struct Laid {
    status: String,
    script: Option<Script>,
    unpacked: Unpacked,
}

fn lay(root: BorrowedFd<'_>, package: &Package<'_>, file: &File, triggers: &mut String) -> Result<Laid> {
    let parts = deb::parts(file)?;
    let control = deb::control(file, &parts)?;
    let said = text_of(&control, "control")?;
    check(package, Paragraph(&said))?;
    let mut list = b"/.\n".to_vec();
    let mut note = |entry: &crate::archive::Entry| {
        let path = entry.path.strip_prefix(b".").unwrap_or(&entry.path);
        let path = path.strip_suffix(b"/").unwrap_or(path);
        if !path.is_empty() {
            if !path.starts_with(b"/") {
                list.push(b'/');
            }
            list.extend_from_slice(path);
            list.push(b'\n');
        }
        debug_assert!(entry.kind != EntryKind::Other(b'L'));
    };
    let unpacked = unpack_package(Section::new(file, parts.data), root, &LIMITS, &mut note)?;
    let name = database_name(package, Paragraph(&said));
    for file in control.iter().filter(|file| file.name != "control") {
        let mode = if file.executable { 0o755 } else { 0o644 };
        write(root, &format!("{INFO}/{name}.{}", file.name), &file.bytes, mode)?;
    }
    write(root, &format!("{INFO}/{name}.list"), &list, 0o644)?;
    let conffiles = conffiles(&text_of(&control, "conffiles").unwrap_or_default());
    for path in &conffiles {
        double(root, path).with_context(|| format!("its configuration file `{path}`"))?;
    }
    let interests = text_of(&control, "triggers").unwrap_or_default();
    note_triggers(root, &name, &interests, triggers).context("its triggers")?;
    let script = control.iter().any(|file| file.name == "preinst").then(|| Script {
        package: package.name.to_owned(),
        architecture: package.architecture.to_owned(),
        path: format!("/{INFO}/{name}.preinst"),
    });
    Ok(Laid { status: status(&said, &conffiles), script, unpacked })
}

fn text_of(control: &[ControlFile], name: &str) -> Result<String> {
    let file = control.iter().find(|file| file.name == name);
    let file = file.ok_or_else(|| error(format!("it has no `{name}`")).kind(Kind::NotFound))?;
    String::from_utf8(file.bytes.clone()).map_err(|_| error(format!("its `{name}` is no text")).kind(Kind::Invalid))
}

/// A package must be what the index says it is.
fn check(package: &Package<'_>, said: Paragraph<'_>) -> Result<()> {
    for (field, expected) in
        [("Package", package.name), ("Version", package.version), ("Architecture", package.architecture)]
    {
        let found = said.require(field)?;
        if found != expected {
            let sentence = format!("its `{field}` is `{}`, but the index says `{expected}`", found.escape_debug());
            return Err(error(sentence).kind(Kind::Invalid));
        }
    }
    Ok(())
}

/// What dpkg calls its notes of a package: of one that may be there for several architectures, with that.
fn database_name(package: &Package<'_>, said: Paragraph<'_>) -> String {
    match said.get("Multi-Arch") {
        Some("same") => format!("{}:{}", package.name, package.architecture),
        _ => package.name.to_owned(),
    }
}

/// The paths of a list of configuration files. What is to be removed by an upgrade is none of a new system.
fn conffiles(list: &str) -> Vec<String> {
    let lines = list.lines().map(str::trim).filter(|line| line.starts_with('/'));
    lines.map(str::to_owned).collect()
}

/// Gives a configuration file the second name by which dpkg finds it when it configures the package. Others need it
/// before that, so it has its own already.
fn double(root: BorrowedFd<'_>, path: &str) -> Result<()> {
    let (above, name) = path.trim_start_matches('/').rsplit_once('/').unwrap_or(("", path.trim_start_matches('/')));
    let dir = match tree::open(root, if above.is_empty() { "." } else { above }, START, INSIDE) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        dir => dir?,
    };
    match fs::linkat(&dir, name, &dir, format!("{name}.dpkg-new"), AtFlags::empty()) {
        // Listed, but not brought along: dpkg does not mind either.
        Ok(()) | Err(Errno::NOENT | Errno::EXIST) => Ok(()),
        Err(e) => Err(full(e.into())),
    }
}

/// What a package wants to hear of (deb-triggers(5)), as dpkg notes it.
fn note_triggers(root: BorrowedFd<'_>, name: &str, list: &str, files: &mut String) -> Result<()> {
    for line in list.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let (Some(directive), Some(trigger), None) = (words.next(), words.next(), words.next()) else { continue };
        let waits = match directive {
            "interest" | "interest-await" => "",
            "interest-noawait" => "/noawait",
            _ => continue,
        };
        if trigger.starts_with('/') {
            files.push_str(&format!("{trigger} {name}{waits}\n"));
            continue;
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_+.".contains(c);
        if trigger.starts_with('.') || !trigger.chars().all(plain) {
            return Err(error(format!("`{}` is no trigger", trigger.escape_debug())).kind(Kind::Invalid));
        }
        append(root, &format!("var/lib/dpkg/triggers/{trigger}"), format!("{name}{waits}\n").as_bytes())?;
    }
    Ok(())
}

/// A package's paragraph in dpkg's list: unpacked, not configured.
fn status(control: &str, conffiles: &[String]) -> String {
    let mut text = String::with_capacity(control.len() + 100);
    for line in control.trim_matches('\n').lines().filter(|line| !line.trim().is_empty()) {
        text.push_str(line);
        text.push('\n');
        if line.starts_with("Package:") {
            text.push_str("Status: install ok unpacked\n");
        }
    }
    if !conffiles.is_empty() {
        text.push_str("Conffiles:\n");
        conffiles.iter().for_each(|path| text.push_str(&format!(" {path} newconffile\n")));
    }
    text.push('\n');
    text
}

/// Makes a directory and those above it: of root's, open to all.
fn make_directory(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd> {
    let mut at = tree::open(root, ".", LIST, STRAIGHT)?;
    for part in path.split('/') {
        match fs::mkdirat(&at, part, Mode::from_raw_mode(0o755)) {
            // The umask is the caller's.
            Ok(()) => Spot::Open(tree::open(&at, part, LIST, STRAIGHT)?.as_fd()).set_mode(0o755)?,
            Err(Errno::EXIST) => {}
            Err(e) => return Err(full(e.into())).with_context(|| format!("making `{path}`")),
        }
        at = tree::open(&at, part, LIST, STRAIGHT).with_context(|| format!("entering `{path}`"))?;
    }
    Ok(at)
}

/// Writes a file of dpkg's. No link is followed, whatever a package has put there.
fn write(root: BorrowedFd<'_>, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let writing = || format!("writing `{path}`");
    let dir = tree::open(root, above, LIST, STRAIGHT).with_context(writing)?;
    match fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e).with_context(writing),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(file.map_err(lazaret_base::Error::from).map_err(full).with_context(writing)?);
    file.write_all(bytes).map_err(lazaret_base::Error::from).map_err(full).with_context(writing)?;
    Spot::Open(file.as_fd()).set_mode(mode).with_context(writing)
}

fn append(root: BorrowedFd<'_>, path: &str, bytes: &[u8]) -> Result<()> {
    let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
    let dir = tree::open(root, above, LIST, STRAIGHT)?;
    let flags = OFlags::CREATE | OFlags::APPEND | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644));
    let mut file = File::from(file.map_err(lazaret_base::Error::from).map_err(full)?);
    file.write_all(bytes).map_err(lazaret_base::Error::from).map_err(full)?;
    Ok(Spot::Open(file.as_fd()).set_mode(0o644)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_is_told_that_a_package_is_unpacked() {
        let text = "Package: a\nVersion: 1\nDescription: one\n .\n two\n";
        let files = conffiles("/etc/a\nremove-on-upgrade /etc/old\n\n");
        assert_eq!(
            status(text, &files),
            "Package: a\nStatus: install ok unpacked\nVersion: 1\nDescription: one\n .\n two\nConffiles:\n /etc/a newconffile\n\n"
        );
    }
}

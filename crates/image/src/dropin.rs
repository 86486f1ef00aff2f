//! The file by which apt in a container goes through the package cache. It is ours: written and taken away by us, while
//! all that the user has written stays as it is.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Result, error, read_bounded};
use rustix::fs::{self, AtFlags, FileType, OFlags};
use rustix::io::Errno;

use crate::proxy::Archives;
use crate::seed::seed;
use crate::template::{Facts, Template};
use crate::tree::{self, INSIDE, LIST, STRAIGHT};

/// Where it is in a container.
pub const APT_PROXY: &str = "/etc/apt/apt.conf.d/00lazaret-cache";
const DIRECTORY: &str = "etc/apt/apt.conf.d";
const NAME: &str = "00lazaret-cache";
const SOURCES: &[&str] = &["etc/apt/sources.list"];
const SOURCE_DIRECTORY: &str = "etc/apt/sources.list.d";
/// A longer list of sources is nobody's.
const LONGEST: usize = 1 << 20;

/// The archives that the apt of a container uses and the cache may go to, whatever layer names them; `None` if there is
/// no apt. `trees` are its layers, topmost first.
pub fn apt_archives(trees: &[OwnedFd], archives: &Archives) -> Option<Vec<String>> {
    if !trees.iter().any(|tree| tree::open(tree, DIRECTORY, LIST, INSIDE).is_ok()) {
        return None;
    }
    let mut hosts: BTreeSet<String> = Archives::usual().into_iter().map(str::to_owned).collect();
    for tree in trees {
        let files = SOURCES.iter().map(|path| (*path).to_owned()).chain(below(tree.as_fd()));
        for text in files.filter_map(|path| read(tree.as_fd(), &path)) {
            hosts.extend(named(&text).filter(|host| archives.have(host)));
        }
    }
    Some(hosts.into_iter().collect())
}

fn below(tree: BorrowedFd<'_>) -> Vec<String> {
    let mut files = Vec::new();
    if let Ok(dir) = tree::open(tree, SOURCE_DIRECTORY, LIST, INSIDE) {
        // What can't be listed names nothing.
        let _ = tree::list(dir.as_fd(), |entry| {
            files.extend(entry.file_name().to_str().ok().map(|name| format!("{SOURCE_DIRECTORY}/{name}")));
            Ok(())
        });
    }
    files
}

fn read(tree: BorrowedFd<'_>, path: &str) -> Option<String> {
    let fd = tree::open(tree, path, OFlags::RDONLY | OFlags::NONBLOCK, INSIDE).ok()?;
    FileType::from_raw_mode(fs::fstat(&fd).ok()?.st_mode).is_file().then_some(())?;
    String::from_utf8(read_bounded(File::from(fd), LONGEST).ok()?).ok()
}

/// The hosts of plain http addresses in a list of sources, in either form (sources.list(5)).
fn named(text: &str) -> impl Iterator<Item = String> {
    let words = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let host = |word: &str| {
        let host = word.strip_prefix("http://")?.split('/').next()?.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-:".contains(c);
        (!host.is_empty() && host.chars().all(plain)).then_some(host)
    };
    words.filter_map(host)
}

/// What the file says (apt.conf(5)).
pub fn apt_proxy(hosts: &[String], port: u16) -> String {
    let mut text = String::from(
        "// Written by lazaret: packages of these archives come through this machine's package cache.\n\
         // `lazaret cache off` on the host takes this file away.\n",
    );
    // apt names a host without its port.
    let names: BTreeSet<&str> = hosts.iter().map(|host| host.split(':').next().unwrap_or(host)).collect();
    for host in names {
        text.push_str(&format!("Acquire::http::Proxy::{host} \"http://127.0.0.1:{port}\";\n"));
    }
    text
}

/// Writes the file into a container that does not run. `trees` are its layers, topmost first, of which the first is its
/// own; `shift` is what its ids on disk are shifted by.
pub fn put_apt_proxy(trees: &[OwnedFd], text: &str, shift: u32) -> Result<()> {
    let (Some(own), Some(image)) = (trees.first(), trees.last()) else { return Ok(()) };
    let template = Template {
        path: APT_PROXY.into(),
        create_only: false,
        on_copy: false,
        text: text.into(),
        properties: Default::default(),
    };
    let facts = Facts { name: "", architecture: "", privileged: false };
    match seed(&[template], &facts, image.as_fd(), own.as_fd(), shift).pop() {
        Some(why) => Err(error(why)),
        None => Ok(()),
    }
}

/// Takes the file away from a container that does not run. Where a layer below its own has it, an empty one covers
/// that.
pub fn drop_apt_proxy(trees: &[OwnedFd], shift: u32) -> Result<()> {
    let Some((own, lower)) = trees.split_first() else { return Ok(()) };
    let has = |tree: &OwnedFd| {
        tree::open(tree, DIRECTORY, LIST, STRAIGHT).is_ok_and(|dir| tree::stat(&dir, NAME).is_ok_and(|s| s.st_size > 0))
    };
    if lower.iter().any(has) {
        return put_apt_proxy(trees, "", shift);
    }
    match tree::open(own, DIRECTORY, LIST, STRAIGHT).and_then(|dir| fs::unlinkat(dir, NAME, AtFlags::empty())) {
        // What a container has put in the way is its own.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn layer(name: &str, files: &[(&str, &str)]) -> (PathBuf, OwnedFd) {
        let dir = std::env::temp_dir().join(format!("lazaret-dropin-{name}-{:?}", std::thread::current().id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        for (path, text) in files {
            std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
            std::fs::write(dir.join(path), text).unwrap();
        }
        let fd = fs::open(&dir, LIST, fs::Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn apt_goes_through_the_cache_to_the_archives_it_uses_and_no_others() {
        let sources = "deb http://ftp.de.debian.org/debian x main\n# deb http://old.debian.org/ x\n\
                       deb https://dl.example/ x main\ndeb http://10.0.0.1/debian x main\ndeb http://h:8080/x y\n";
        let (_, tree) = layer("sources", &[("etc/apt/sources.list", sources), ("etc/apt/apt.conf.d/x", "")]);
        let hosts = apt_archives(&[tree], &Archives { more: vec!["h:8080".into()] }).unwrap();
        let has = |host: &str| hosts.iter().any(|other| other == host);
        assert!(has("ftp.de.debian.org") && has("deb.debian.org") && has("h:8080"));
        assert!(!has("old.debian.org") && !has("dl.example") && !has("10.0.0.1"));
        assert!(apt_proxy(&hosts, 3142).contains("Acquire::http::Proxy::h \"http://127.0.0.1:3142\";\n"));
        let (_, bare) = layer("bare", &[("etc/passwd", "")]);
        assert_eq!(apt_archives(&[bare], &Archives::default()), None);
    }

    #[test]
    fn the_file_comes_and_goes_and_leaves_the_layers_below_alone() {
        let (image_dir, image) = layer("image", &[("etc/apt/apt.conf.d/70other", "x")]);
        let (own_dir, own) = layer("own", &[]);
        let file = own_dir.join("etc/apt/apt.conf.d/00lazaret-cache");
        let trees = [own, image];
        put_apt_proxy(&trees, "text\n", 0).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "text\n");
        drop_apt_proxy(&trees, 0).unwrap();
        assert!(!file.exists());
        // Published with it: then it is covered.
        std::fs::write(image_dir.join("etc/apt/apt.conf.d/00lazaret-cache"), "old\n").unwrap();
        drop_apt_proxy(&trees, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
        // A link that a container has put in the way is not followed.
        std::fs::remove_dir_all(own_dir.join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", own_dir.join("etc")).unwrap();
        assert!(put_apt_proxy(&trees, "text\n", 0).is_err());
        for dir in [image_dir, own_dir] {
            std::fs::remove_dir_all(dir).unwrap();
        }
    }
}

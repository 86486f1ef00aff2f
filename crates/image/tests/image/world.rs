//! A directory of its own for each test, and everything that can be said about a tree.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use lazaret_image::{Digest, remove_tree};
use rustix::fs::{Mode, OFlags, SeekFrom};

/// A temporary directory that goes with the test.
pub struct World {
    pub dir: PathBuf,
}

impl World {
    pub fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("lazaret-image-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        World { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Makes a directory in it.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let parent = open_dir(self.dir.parent().unwrap());
        let name = CString::new(self.dir.file_name().unwrap().as_bytes()).unwrap();
        let removed = remove_tree(parent.as_fd(), &name);
        if !std::thread::panicking() {
            removed.unwrap();
        }
    }
}

pub fn open_dir(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Runs a shell script in a directory; all of it must succeed.
pub fn sh(dir: &Path, script: &str) {
    let output = Command::new("bash").arg("-ec").arg(script).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of its own, gone with the value.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(dir: &Path, options: &str) -> Tmpfs {
        let options = CString::new(options).unwrap();
        rustix::mount::mount("none", dir, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str()).unwrap();
        Tmpfs(dir.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// What is compared of two trees.
#[derive(Clone, Copy)]
pub struct View {
    pub nanoseconds: bool,
    pub attributes: bool,
    pub holes: bool,
    /// Ids are taken down by this, in attributes too.
    pub unshift: u32,
}

pub const ALL: View = View { nanoseconds: true, attributes: true, holes: true, unshift: 0 };

/// A line for each file of a tree, the root included.
pub fn manifest(root: &Path, view: View) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    for path in walk(root) {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let first = inodes.entry(path.symlink_metadata().unwrap().ino()).or_insert_with(|| name.clone()).clone();
        lines.insert(name, describe(&path, &first, view));
    }
    lines
}

/// All paths of a tree in order, the root first.
pub fn walk(root: &Path) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        if path.symlink_metadata().unwrap().is_dir() {
            paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        files.push(path);
    }
    files.sort();
    files
}

fn describe(path: &Path, first: &str, view: View) -> String {
    let meta = path.symlink_metadata().unwrap();
    let kind = meta.file_type();
    let mut line = format!(
        "{:o} {}:{} {}",
        meta.mode(),
        meta.uid().wrapping_sub(view.unshift),
        meta.gid().wrapping_sub(view.unshift),
        meta.mtime()
    );
    if view.nanoseconds {
        line += &format!(".{:09}", meta.mtime_nsec());
    }
    if !kind.is_dir() && meta.nlink() > 1 {
        line += &format!(" {} names, first {first}", meta.nlink());
    }
    if kind.is_symlink() {
        line += &format!(" -> {}", fs::read_link(path).unwrap().into_os_string().into_vec().escape_ascii());
    }
    if kind.is_char_device() || kind.is_block_device() {
        let device = meta.rdev();
        line += &format!(" {}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    }
    if kind.is_file() {
        line += &format!(" {} {}", meta.len(), Digest::of(&fs::read(path).unwrap()).hex());
        if view.holes {
            line += &format!(" {:?}", extents(path));
        }
    }
    if view.attributes {
        for (name, value) in attributes(path) {
            line += &format!(" {name}={}", unshifted(&name, value, view.unshift).escape_ascii());
        }
    }
    line
}

/// Where a file holds data.
pub fn extents(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
        found.push((start, at));
    }
    found
}

pub fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..n].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (String::from_utf8(name.to_vec()).unwrap(), value[..n].to_vec())
        })
        .collect()
}

/// Undoes a shift by hand, so that the shifted tree can be compared with its original.
fn unshifted(name: &str, mut value: Vec<u8>, shift: u32) -> Vec<u8> {
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    if shift == 0 {
        return value;
    }
    if name == "security.capability" && value.len() == 24 && word(&value[20..]) == shift {
        value.truncate(20);
        value[3] = 2;
    }
    if name.starts_with("system.posix_acl_") {
        for line in value[4..].chunks_mut(8) {
            if matches!(line[0], 2 | 8) {
                let id = word(&line[4..]) - shift;
                line[4..].copy_from_slice(&id.to_le_bytes());
            }
        }
    }
    value
}

/// Shows the lines that differ, not two whole trees.
#[track_caller]
pub fn assert_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    let mut differences = Vec::new();
    for name in found.keys().chain(expected.keys()) {
        if found.get(name) != expected.get(name) {
            differences.push(format!("{name}\n  found    {:?}\n  expected {:?}", found.get(name), expected.get(name)));
        }
    }
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

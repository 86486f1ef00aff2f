//! The image `host`: the running system's programs, and nothing of its people.
//!
//! `/usr` is bound read-only when a container starts. Around it stands a skeleton: empty directories, generated
//! accounts, and those parts of `/etc` that programs need and that tell nothing about the machine's users, its
//! network or its secrets. What the skeleton holds is decided first, from names, sizes and times alone; it is
//! only built if that differs from all that were built before.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use lazaret_base::{Context, Result, error, read_bounded};
use rustix::fs::{self, FileType, Gid, Mode, OFlags, Stat, Timespec, Uid};
use rustix::io::Errno;

use crate::store::{Record, now};
use crate::tree::{self, LIST, STRAIGHT, Spot};
use crate::unpack::full;
use crate::{Digest, Layer, LayerId, Store, elf};

/// Counted up when the same inputs shall give another skeleton.
const GENERATOR: u32 = 1;
/// Bytes of a single copied file and of all together; more is left out, with a warning.
const FILE_LIMIT: u64 = 4 << 20;
const TOTAL_LIMIT: u64 = 64 << 20;
/// Directories below one of [`HOST_ETC`].
const DEPTH_LIMIT: usize = 16;

/// What is copied from the host's `/etc`, and what for. A `*` at the end stands for any ending.
///
/// Whatever is named here, only files and directories are copied that belong to root and that everyone may
/// read, and links that lead to what a container sees.
pub const HOST_ETC: &[(&str, &str)] = &[
    ("ld.so.cache", "the dynamic linker: without it libraries in subdirectories are not found"),
    ("ld.so.conf", "ldconfig"),
    ("ld.so.conf.d", "ldconfig"),
    ("os-release", "which distribution /usr is of"),
    ("lsb-release", "the same, older"),
    ("debian_version", "the same, older"),
    ("redhat-release", "the same, older"),
    ("fedora-release", "the same, older"),
    ("system-release", "the same, older"),
    ("arch-release", "the same, older"),
    ("alternatives", "the names of programs on Debian and Fedora lead through it"),
    ("localtime", "the time zone"),
    ("timezone", "the time zone, for programs that want its name"),
    ("locale.conf", "the language"),
    ("default/locale", "the language, on Debian"),
    ("locale.alias", "the language"),
    ("profile", "login shells"),
    ("bash.bashrc", "interactive shells"),
    ("bashrc", "interactive shells"),
    ("bash_completion", "interactive shells"),
    ("bash_completion.d", "interactive shells"),
    ("inputrc", "keys at the prompt"),
    ("shells", "which login shells are valid"),
    ("skel", "the first content of a home"),
    ("login.defs", "useradd and login"),
    ("adduser.conf", "adduser"),
    ("default/useradd", "useradd"),
    ("host.conf", "the resolver"),
    ("gai.conf", "which address family comes first"),
    ("services", "names of ports"),
    ("protocols", "names of protocols"),
    ("rpc", "names of RPC programs"),
    ("ethertypes", "names of protocols"),
    ("netconfig", "RPC programs"),
    ("terminfo", "terminals"),
    ("ssl/certs", "whom TLS trusts"),
    ("ssl/openssl.cnf", "OpenSSL"),
    ("ssl/ct_log_list.cnf", "OpenSSL"),
    ("ca-certificates", "whom TLS trusts"),
    ("ca-certificates.conf", "whom TLS trusts"),
    ("pki/tls/certs", "whom TLS trusts, on Fedora"),
    ("pki/tls/cert.pem", "whom TLS trusts, on Fedora"),
    ("pki/tls/openssl.cnf", "OpenSSL, on Fedora"),
    ("pki/ca-trust/extracted", "whom TLS trusts, on Fedora"),
    ("crypto-policies", "which ciphers are good, on Fedora"),
    ("java*", "Java finds its configuration here, not below /usr"),
    ("python3*", "Python"),
    ("perl", "Perl"),
    ("fonts", "fontconfig"),
    ("pango", "text layout"),
    ("X11/rgb.txt", "colours"),
    ("X11/xkb", "keyboard layouts"),
    ("X11/app-defaults", "classic X programs"),
    ("X11/cursors", "the mouse pointer"),
    ("xdg", "defaults of desktop programs"),
    ("gtk-2.0", "GTK"),
    ("gtk-3.0", "GTK"),
    ("gtk-4.0", "GTK"),
    ("dconf", "defaults of GNOME programs"),
    ("glvnd", "OpenGL"),
    ("drirc", "OpenGL"),
    ("vulkan", "Vulkan"),
    ("OpenCL", "OpenCL"),
    ("alsa", "sound"),
    ("openal", "sound"),
    ("pulse/client.conf", "sound"),
    ("pulse/client.conf.d", "sound"),
    ("pipewire", "sound"),
    ("firefox*", "defaults of the browser"),
    ("chromium*", "defaults of the browser"),
    ("thunderbird*", "defaults of the mail program"),
    ("libreoffice", "defaults of the office programs"),
    ("ImageMagick*", "its policy, without which it refuses to work"),
    ("mime.types", "types of files"),
    ("mailcap", "which program shows which type"),
    ("magic", "file(1)"),
    ("magic.mime", "file(1)"),
    ("vim", "the editor"),
    ("nanorc", "the editor"),
    ("wgetrc", "wget"),
    ("groff", "man(1)"),
    ("manpath.config", "man(1)"),
    ("man_db.conf", "man(1)"),
    ("papersize", "printing"),
];

/// Directories that stand around `/usr`, their modes, and the group that owns one, if the host has it.
const DIRECTORIES: &[(&str, u32, &str)] = &[
    ("dev", 0o755, ""),
    ("etc", 0o755, ""),
    ("home", 0o755, ""),
    ("media", 0o755, ""),
    ("mnt", 0o755, ""),
    ("opt", 0o755, ""),
    ("proc", 0o555, ""),
    ("root", 0o700, ""),
    ("run", 0o755, ""),
    ("srv", 0o755, ""),
    ("sys", 0o555, ""),
    ("tmp", 0o1777, ""),
    ("usr", 0o755, ""),
    ("var", 0o755, ""),
    ("var/cache", 0o755, ""),
    ("var/lib", 0o755, ""),
    ("var/lib/misc", 0o755, ""),
    ("var/local", 0o2775, "staff"),
    ("var/log", 0o755, ""),
    ("var/mail", 0o2775, "mail"),
    ("var/opt", 0o755, ""),
    ("var/spool", 0o755, ""),
    ("var/tmp", 0o1777, ""),
];

const LINKS: &[(&str, &str)] = &[
    ("etc/mtab", "../proc/self/mounts"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
    ("var/spool/mail", "../mail"),
];

/// Links into `/usr` on most systems, directories of their own on others.
const BESIDE_USR: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];

/// Written anew: the host's would tell whom it knows, and how it is reached.
const GENERATED: &[(&str, &str)] = &[
    (
        "etc/hosts",
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    ),
    ("etc/networks", "default\t0.0.0.0\nloopback\t127.0.0.0\nlink-local\t169.254.0.0\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\ngshadow: files\nhosts: files dns\nnetworks: files\n\
         protocols: files\nservices: files\nethers: files\nrpc: files\nnetgroup: files\n",
    ),
    ("etc/resolv.conf", ""),
    // Root becomes anyone, nobody else becomes anyone: no password exists to ask for.
    ("etc/pam.d/other", "auth required pam_deny.so\naccount required pam_permit.so\nsession required pam_permit.so\n"),
    ("etc/pam.d/su", BY_ROOT),
    ("etc/pam.d/su-l", BY_ROOT),
    ("etc/pam.d/runuser", BY_ROOT),
    ("etc/pam.d/runuser-l", BY_ROOT),
];
const BY_ROOT: &str = "auth sufficient pam_rootok.so\nauth required pam_deny.so\naccount required pam_permit.so\nsession required pam_permit.so\n";

/// A read-only bind mount that a container of the image `host` needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: PathBuf,
}

/// The image made of the running system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostImage {
    /// The skeleton.
    pub layer: Layer,
    /// What is mounted over it at each start, read-only.
    pub binds: Vec<Bind>,
}

/// All that a container of the image `host` sees of the host, as absolute paths; a `*` at the end stands for
/// any ending. What else it has is generated or empty.
pub fn visible_from_host() -> impl Iterator<Item = String> {
    let beside = BESIDE_USR.iter().map(|name| format!("/{name}"));
    let etc = HOST_ETC.iter().map(|(name, _)| format!("/etc/{name}"));
    std::iter::once("/usr".to_owned()).chain(beside).chain(etc)
}

/// The binds that `/usr` and, where they are no links into it, `/bin` and its like need.
pub fn host_binds(root: &Path) -> Result<Vec<Bind>> {
    let is_dir = |name: &str| root.join(name).symlink_metadata().is_ok_and(|meta| meta.is_dir());
    if !is_dir("usr") {
        return Err(error(format!("`{}` has no `usr`", root.display())));
    }
    let names = std::iter::once("usr").chain(BESIDE_USR.iter().copied().filter(|name| is_dir(name)));
    Ok(names.map(|name| Bind { source: root.join(name), target: Path::new("/").join(name) }).collect())
}

impl Store {
    /// The image of the running system. A few milliseconds if the host's `/etc` has not changed since the last.
    pub fn host(&self) -> Result<HostImage> {
        self.host_at(Path::new("/"))
    }

    /// The same for a root elsewhere.
    pub fn host_at(&self, root: &Path) -> Result<HostImage> {
        let making = || format!("making an image of `{}`", root.display());
        let binds = host_binds(root).with_context(making)?;
        let skeleton = Skeleton::compile(root, &binds).with_context(making)?;
        let id = LayerId::Host(skeleton.digest());
        if let Some(layer) = self.find(&id)? {
            return Ok(HostImage { layer, binds });
        }
        let temporary = self.temporary().with_context(making)?;
        let rootfs = temporary.make_rootfs().with_context(making)?;
        let size = skeleton.build(rootfs.as_fd()).map_err(full).with_context(making)?;
        let top = fs::open(root, LIST.difference(OFlags::NOFOLLOW), Mode::empty()).with_context(making)?;
        let record = Record {
            source: "host".to_owned(),
            archive_size: None,
            size,
            entries: skeleton.items.len() as u64,
            created: now(),
            architecture: elf::architecture(top.as_fd()),
            warnings: skeleton.warnings,
        };
        let layer = self.publish(temporary, id, &record).with_context(making)?;
        Ok(HostImage { layer, binds })
    }
}

/// All that the layer holds.
struct Skeleton {
    etc: OwnedFd,
    /// By path, as bytes: so a directory comes before what it holds, and comparing is cheap.
    items: BTreeMap<Vec<u8>, Item>,
    copied: u64,
    warnings: Vec<String>,
}

#[derive(Debug)]
struct Item {
    mode: u32,
    gid: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Directory,
    Link(PathBuf),
    Text(String),
    /// A file of the host's `/etc`, as it was seen.
    Copy {
        size: u64,
        mtime: (i64, i64),
    },
}

impl Skeleton {
    /// Decides; of the host only `passwd` and `group` are read.
    fn compile(root: &Path, binds: &[Bind]) -> Result<Skeleton> {
        let etc = fs::open(root.join("etc"), LIST, Mode::empty()).context("opening its `etc`")?;
        let accounts = Accounts::of(&etc)?;
        let mut skeleton = Skeleton { etc, items: BTreeMap::new(), copied: 0, warnings: Vec::new() };
        for (path, mode, group) in DIRECTORIES {
            let gid = accounts.gid(group).unwrap_or(0);
            skeleton.add(path, Item { mode: *mode, gid, what: What::Directory });
        }
        for bind in binds {
            let path = bind.target.strip_prefix("/").unwrap_or(&bind.target);
            skeleton.add(path, Item { mode: 0o755, gid: 0, what: What::Directory });
        }
        for name in BESIDE_USR {
            if let Ok(target) = std::fs::read_link(root.join(name)) {
                skeleton.add(name, Item { mode: 0o777, gid: 0, what: What::Link(target) });
            }
        }
        for (path, target) in LINKS {
            skeleton.add(path, Item { mode: 0o777, gid: 0, what: What::Link(PathBuf::from(target)) });
        }
        for (pattern, _) in HOST_ETC {
            skeleton.add_matching(Path::new(pattern)).with_context(|| format!("looking at `/etc/{pattern}`"))?;
        }
        let generated = GENERATED.iter().map(|(path, text)| (*path, (*text).to_owned()));
        let shell = ["bin/bash", "bin/sh"].into_iter().find(|shell| root.join("usr").join(shell).exists());
        for (path, text) in generated.chain(accounts.files(shell.unwrap_or("bin/sh"))) {
            let secret = path.ends_with("shadow");
            let (mode, gid) = if secret { (0o640, accounts.gid("shadow").unwrap_or(0)) } else { (0o644, 0) };
            skeleton.add(path, Item { mode, gid, what: What::Text(text) });
        }
        Ok(skeleton)
    }

    /// Adds an item and the directories that it stands in.
    fn add(&mut self, path: impl AsRef<OsStr>, item: Item) {
        let path = path.as_ref().as_bytes();
        let mut parent = tree::split(path).0;
        while !parent.is_empty() && !self.items.contains_key(parent) {
            let directory = Item { mode: 0o755, gid: 0, what: What::Directory };
            self.items.insert(parent.to_vec(), directory);
            parent = tree::split(parent).0;
        }
        self.items.insert(path.to_vec(), item);
    }

    fn add_matching(&mut self, pattern: &Path) -> Result<()> {
        let (Some(parent), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Ok(()) };
        let start = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let Some(dir) = enter(self.etc.as_fd(), start)? else { return Ok(()) };
        let Some(prefix) = name.as_bytes().strip_suffix(b"*") else {
            return self.add_one(dir.as_fd(), pattern, 0);
        };
        let mut found = Vec::new();
        tree::list(dir.as_fd(), |entry| {
            if entry.file_name().to_bytes().starts_with(prefix) {
                found.push(parent.join(OsStr::from_bytes(entry.file_name().to_bytes())));
            }
            Ok(())
        })?;
        found.iter().try_for_each(|path| self.add_one(dir.as_fd(), path, 0))
    }

    /// Adds what stands at `path` below `/etc`, if it may be seen. `dir` is its parent.
    fn add_one(&mut self, dir: BorrowedFd<'_>, path: &Path, depth: usize) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let stat = match tree::stat(dir, name) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        let place = Path::new("etc").join(path);
        let permissions = stat.st_mode & 0o7777;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new())?;
                let target = PathBuf::from(OsStr::from_bytes(target.as_bytes()));
                if stays_visible(&place, &target) {
                    self.add(place, Item { mode: 0o777, gid: 0, what: What::Link(target) });
                }
            }
            FileType::RegularFile if is_public(&stat) => {
                let size = stat.st_size as u64;
                if size > FILE_LIMIT || self.copied + size > TOTAL_LIMIT {
                    self.warnings.push(format!("`/etc/{}` was left out: {size} bytes are too much", path.display()));
                    return Ok(());
                }
                self.copied += size;
                let what = What::Copy { size, mtime: modified(&stat) };
                self.add(place, Item { mode: permissions & 0o755, gid: 0, what });
            }
            FileType::Directory if is_public(&stat) && permissions & 0o001 != 0 && depth < DEPTH_LIMIT => {
                let Some(inner) = enter(dir, Path::new(name))? else { return Ok(()) };
                self.add(&place, Item { mode: 0o755, gid: 0, what: What::Directory });
                let mut names = Vec::new();
                tree::list(inner.as_fd(), |entry| {
                    names.push(path.join(OsStr::from_bytes(entry.file_name().to_bytes())));
                    Ok(())
                })?;
                for path in names {
                    self.add_one(inner.as_fd(), &path, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Of all that decides what is built.
    fn digest(&self) -> Digest {
        let mut text = format!("{GENERATOR}\n").into_bytes();
        // No path and no target holds a zero byte, so no two lists look alike.
        for (path, Item { mode, gid, what }) in &self.items {
            text.extend_from_slice(path);
            let (kind, value): (String, &[u8]) = match what {
                What::Directory => ("directory".to_owned(), b""),
                What::Link(target) => ("link".to_owned(), target.as_os_str().as_bytes()),
                What::Text(content) => (format!("text {}", content.len()), content.as_bytes()),
                What::Copy { size, mtime } => (format!("copy {size} {}.{}", mtime.0, mtime.1), b""),
            };
            text.extend(format!("\0{mode:o} {gid} {kind}\0").into_bytes());
            text.extend_from_slice(value);
            text.extend_from_slice(b"\0\n");
        }
        Digest::of(&text)
    }

    /// Builds the decided into an empty directory; the bytes it holds.
    fn build(&self, rootfs: BorrowedFd<'_>) -> Result<u64> {
        let mut size = 0;
        for (path, item) in &self.items {
            let path = Path::new(OsStr::from_bytes(path));
            size += self.build_one(rootfs, path, item).with_context(|| format!("writing `/{}`", path.display()))?;
        }
        Spot::Open(rootfs).set_mode(0o755)?;
        Ok(size)
    }

    fn build_one(&self, rootfs: BorrowedFd<'_>, path: &Path, item: &Item) -> Result<u64> {
        let (text, times) = match &item.what {
            What::Link(target) => {
                fs::symlinkat(target, rootfs, path)?;
                return Ok(0);
            }
            What::Directory => {
                fs::mkdirat(rootfs, path, Mode::RWXU)?;
                let fd = fs::openat(rootfs, path, LIST, Mode::empty())?;
                own(fd.as_fd(), item)?;
                return Ok(0);
            }
            What::Text(text) => (text.clone().into_bytes(), None),
            What::Copy { size, mtime } => (self.read(path, *size, *mtime)?, Some(*mtime)),
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(fs::openat(rootfs, path, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(&text)?;
        own(file.as_fd(), item)?;
        if let Some((seconds, nanoseconds)) = times {
            let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            Spot::Open(file.as_fd()).set_times(time, time)?;
        }
        Ok(text.len() as u64)
    }

    /// Reads a file that was decided on, if it is still the same.
    fn read(&self, path: &Path, size: u64, mtime: (i64, i64)) -> Result<Vec<u8>> {
        let path = path.strip_prefix("etc").unwrap_or(path);
        let fd = tree::open(&self.etc, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, STRAIGHT)?;
        let stat = fs::fstat(&fd)?;
        let same = FileType::from_raw_mode(stat.st_mode).is_file()
            && is_public(&stat)
            && (stat.st_size as u64, modified(&stat)) == (size, mtime);
        if !same {
            return Err(error("the host's file changed meanwhile").hint("try again"));
        }
        read_bounded(File::from(fd), FILE_LIMIT as usize)
    }
}

fn own(fd: BorrowedFd<'_>, item: &Item) -> Result<()> {
    if item.gid != 0 {
        fs::fchown(fd, Some(Uid::ROOT), Some(Gid::from_raw(item.gid)))?;
    }
    Ok(Spot::Open(fd).set_mode(item.mode)?)
}

/// Opens a directory of the host's `/etc`; `None` if it is not there, is a link, or is mounted.
fn enter(dir: BorrowedFd<'_>, name: &Path) -> Result<Option<OwnedFd>> {
    match tree::open(dir, name, LIST, STRAIGHT) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Root's own, readable by everyone, and nothing that runs as its owner.
fn is_public(stat: &Stat) -> bool {
    stat.st_uid == 0 && stat.st_mode & 0o004 != 0 && stat.st_mode & 0o6000 & !directory_setgid(stat) == 0
}

/// On a directory the bit says whose group new files get.
fn directory_setgid(stat: &Stat) -> u32 {
    if FileType::from_raw_mode(stat.st_mode).is_dir() { 0o2000 } else { 0 }
}

fn modified(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec as i64)
}

/// Whether a link at `place` leads, by its words, to `/usr` or stays in `/etc`.
fn stays_visible(place: &Path, target: &Path) -> bool {
    let absolute = Path::new("/").join(place.parent().unwrap_or(place)).join(target);
    let mut at: Vec<&OsStr> = Vec::new();
    for component in absolute.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => drop(at.pop()),
            _ => {}
        }
    }
    at.first().is_some_and(|first| ["usr", "etc"].iter().chain(BESIDE_USR).any(|seen| first == seen))
}

/// The host's static system accounts: ids below 100, whose meaning is the distribution's and not the machine's.
struct Accounts {
    users: BTreeMap<u32, (String, u32)>,
    groups: BTreeMap<u32, String>,
}

const STATIC: std::ops::Range<u32> = 0..100;
const NOBODY: u32 = 65534;

impl Accounts {
    fn of(etc: &OwnedFd) -> Result<Accounts> {
        let read = |name: &str| -> Result<String> {
            let fd = match fs::openat(etc, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(String::new()),
                fd => fd.with_context(|| format!("opening `/etc/{name}`"))?,
            };
            let mut text = Vec::new();
            File::from(fd).take(FILE_LIMIT).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        };
        Ok(Accounts::parse(&read("passwd")?, &read("group")?))
    }

    /// Names and ids alone: homes, shells and comments say more.
    fn parse(passwd: &str, group: &str) -> Accounts {
        let is_name = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b))
        };
        let mut users = BTreeMap::from([(0, ("root".to_owned(), 0)), (NOBODY, ("nobody".to_owned(), NOBODY))]);
        let mut groups = BTreeMap::from([(0, "root".to_owned())]);
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, gid, ..] = fields[..] else { continue };
            let Ok(gid) = gid.parse() else { continue };
            if is_name(name) && (STATIC.contains(&gid) || gid == NOBODY) {
                groups.entry(gid).or_insert_with(|| name.to_owned());
            }
        }
        groups.entry(NOBODY).or_insert_with(|| "nogroup".to_owned());
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else { continue };
            let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { continue };
            let gid = if groups.contains_key(&gid) { gid } else { NOBODY };
            if is_name(name) && STATIC.contains(&uid) {
                users.entry(uid).or_insert_with(|| (name.to_owned(), gid));
            }
        }
        Accounts { users, groups }
    }

    fn gid(&self, group: &str) -> Option<u32> {
        self.groups.iter().find(|(_, name)| *name == group).map(|(gid, _)| *gid)
    }

    /// passwd(5), group(5), shadow(5) and gshadow(5), in which no password fits.
    fn files(&self, root_shell: &str) -> [(&'static str, String); 4] {
        let mut files = [
            ("etc/passwd", String::new()),
            ("etc/group", String::new()),
            ("etc/shadow", String::new()),
            ("etc/gshadow", String::new()),
        ];
        let [passwd, group, shadow, gshadow] = &mut files;
        // Writing to a string can't fail.
        for (uid, (name, gid)) in &self.users {
            let _ = match uid {
                0 => writeln!(passwd.1, "root:x:0:0:root:/root:/{root_shell}"),
                uid => writeln!(passwd.1, "{name}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin"),
            };
            let _ = writeln!(shadow.1, "{name}:*:::::::");
        }
        for (gid, name) in &self.groups {
            let _ = writeln!(group.1, "{name}:x:{gid}:");
            let _ = writeln!(gshadow.1, "{name}:*::");
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_static_accounts_are_taken_and_nothing_but_names_and_ids() {
        let passwd = "root:x:0:0:The Boss:/root:/usr/bin/zsh\ntoor:x:0:0::/root:/bin/sh\nman:x:6:12:man:/var/cache/man:/bin/sh\n\
                      odd name:x:7:7:::\nalice:x:1000:1000:Alice,Room 7:/home/alice:/bin/bash\npostgres:x:101:104:::\n\
                      nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
        let group = "root:x:0:\nadm:x:4:alice\nman:x:12:\nsudo:x:27:alice\nalice:x:1000:\nnogroup:x:65534:\n";
        let files = Accounts::parse(passwd, group).files("bin/bash");
        assert_eq!(
            files[0].1,
            "root:x:0:0:root:/root:/bin/bash\nman:x:6:12::/nonexistent:/usr/sbin/nologin\n\
             nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
        );
        assert_eq!(files[1].1, "root:x:0:\nadm:x:4:\nman:x:12:\nsudo:x:27:\nnogroup:x:65534:\n");
        assert_eq!(files[2].1, "root:*:::::::\nman:*:::::::\nnobody:*:::::::\n");
        assert!(files.iter().all(|(_, text)| !text.contains("alice")));
    }

    #[test]
    fn links_that_leave_what_is_visible_are_dropped() {
        let check = |place: &str, target: &str| stays_visible(Path::new(place), Path::new(target));
        assert!(check("etc/os-release", "../usr/lib/os-release"));
        assert!(check("etc/alternatives/vi", "/usr/bin/vim.basic"));
        assert!(check("etc/alternatives/nc", "/bin/nc.openbsd"));
        assert!(check("etc/fonts/conf.d/10-x.conf", "../conf.avail/10-x.conf"));
        assert!(!check("etc/localtime", "/var/db/zone"));
        assert!(!check("etc/xdg/a", "../../../../home/alice/x"));
        assert!(!check("etc/xdg/a", "/usr/../root/secret"));
        assert!(!check("etc/a", "/"));
        assert!(visible_from_host().any(|path| path == "/etc/ssl/certs"));
    }

    #[test]
    fn a_file_for_some_or_of_someone_is_not_public() {
        let file = tempfile_with_mode(0o644);
        let stat = || fs::fstat(&file).unwrap();
        assert!(is_public(&stat()));
        for mode in [0o640, 0o600, 0o4755, 0o2755] {
            file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(!is_public(&stat()), "{mode:o}");
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
        fs::fchown(&file, Some(Uid::from_raw(1000)), None).unwrap();
        assert!(!is_public(&stat()));
    }

    fn tempfile_with_mode(mode: u32) -> File {
        let fd = fs::open(std::env::temp_dir(), OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(mode)).unwrap();
        let file = File::from(fd);
        file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }
}

//! A root that comes as a squashfs file system.
//!
//! It is never mounted: mounting gives the bytes of strangers to a parser in the kernel, where a mistake is the end of
//! all walls. `unsquashfs` reads it as a process that is shut in: it can write below the new tree and nowhere else
//! (Landlock), has no network, and of root's powers only those that dressing files needs. Where a host has no Landlock,
//! such an image is refused; every server that offers squashfs offers an archive as well, which is preferred anyway.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use lazaret_base::{Context, Kind, Result, error, read_bounded};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::tree::{self, LIST, Ladder, STRAIGHT, Spot};
use crate::{Limits, Unpacked};

/// By fixed paths: whose name stands first in somebody's `PATH` must not matter.
const UNSQUASHFS: &str = "/usr/bin/unsquashfs";
const SETPRIV: &str = "/usr/bin/setpriv";
/// What giving files their owners, modes, attributes and types takes (capabilities(7)).
const POWERS: &str = "-all,+chown,+dac_override,+fowner,+fsetid,+mknod,+setfcap,+sys_admin";
/// What a program needs to run at all.
const READABLE: &[&str] = &["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/sys/devices/system/cpu", "/proc"];
const READ_WRITE: &[&str] = &["/dev/null"];

/// The first bytes of such a file.
pub(crate) const MAGIC: &[u8] = b"hsqs";

/// Unpacks a file system into the empty directory `into`, which `path` names.
pub(crate) fn unpack(image: &File, into: BorrowedFd<'_>, path: &Path, limits: &Limits) -> Result<Unpacked> {
    if !Path::new(UNSQUASHFS).exists() {
        return Err(error(format!("`{UNSQUASHFS}` is not there"))
            .kind(Kind::Missing)
            .hint("apt install squashfs-tools"));
    }
    let size = image.metadata()?.len();
    let claimed = list(image, path, limits)?;
    if claimed > size.saturating_mul(limits.ratio).max(limits.ratio_floor) {
        return Err(error(format!("the file system expands to more than {} times its size", limits.ratio)));
    }
    extract(image, path)?;
    count(into, limits)
}

/// How many bytes its files have. A file system image can claim far more than it holds, so it is asked first.
fn list(image: &File, path: &Path, limits: &Limits) -> Result<u64> {
    let mut child = shut_in(image, path, &["-lln"], Stdio::piped())?;
    let Some(output) = child.stdout.take() else { return Err(error("the list has no output")) };
    let (mut bytes, mut entries) = (0u64, 0u64);
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    let counted = loop {
        line.clear();
        // A name may hold anything, so a line may be no line of the list; it can only make the sum larger.
        match (&mut reader).take(16 << 10).read_until(b'\n', &mut line) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(e) => break Err(e.into()),
        }
        entries += 1;
        bytes = bytes.saturating_add(size_in(&line));
        if entries > limits.entries || bytes > limits.bytes {
            break Err(error(format!(
                "the file system claims {bytes} bytes in {entries} entries; the limits are {} and {}",
                limits.bytes, limits.entries
            )));
        }
    };
    if counted.is_err() {
        // It may have ended.
        let _ = child.kill();
    }
    drop(reader);
    let ended = finish(child, "looking into the file system");
    counted.and(ended).map(|()| bytes)
}

/// The size in a line such as `-rw-r--r-- 0/0  1234 2026-11-23 05:24 squashfs-root/etc/hosts`.
fn size_in(line: &[u8]) -> u64 {
    if !line.starts_with(b"-") {
        return 0;
    }
    let text = String::from_utf8_lossy(line);
    text.split_ascii_whitespace().nth(2).and_then(|size| size.parse().ok()).unwrap_or(0)
}

fn extract(image: &File, path: &Path) -> Result<()> {
    let child = shut_in(image, path, &["-force", "-xattrs", "-no-progress", "-strict-errors"], Stdio::null())?;
    finish(child, "unpacking the file system")
}

fn finish(mut child: std::process::Child, what: &str) -> Result<()> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // It says a line for each file at worst: the first are enough, the rest only must not block it.
        let mut stderr = BufReader::new(stderr);
        said = read_bounded((&mut stderr).take(4096), 4096)?;
        std::io::copy(&mut stderr, &mut std::io::sink())?;
    }
    let status = child.wait().context("waiting for unsquashfs")?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it did not say why");
    let line: String = line.chars().filter(|c| !c.is_control()).take(300).collect();
    Err(error(format!("unsquashfs: {line}")).context(what.to_owned()))
}

/// Starts unsquashfs behind walls. They are put around a thread that does nothing else, and a child is in them as its
/// parent is.
fn shut_in(image: &File, path: &Path, options: &[&str], output: Stdio) -> Result<std::process::Child> {
    let begun = thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<std::process::Child> {
            wall(image, path)?;
            let mut command = match Path::new(SETPRIV).exists() {
                true => {
                    let mut command = Command::new(SETPRIV);
                    command.args(["--no-new-privs", "--bounding-set", POWERS, "--inh-caps=-all", "--", UNSQUASHFS]);
                    command
                }
                false => Command::new(UNSQUASHFS),
            };
            command.args(options).arg("-dest").arg(path).arg("/dev/fd/0");
            // By descriptor: what has the file's name by now does not matter.
            command.stdin(image.try_clone()?).stdout(output).stderr(Stdio::piped());
            command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
            command.spawn().context("starting unsquashfs")
        });
        thread.join()
    });
    begun.map_err(|_| error("starting unsquashfs failed"))?
}

fn wall(image: &File, path: &Path) -> Result<()> {
    let abi = ABI::V6;
    let failed = |e: String| error(format!("Landlock: {e}")).kind(Kind::Missing);
    let make = || -> std::result::Result<RulesetStatus, Box<dyn std::error::Error>> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .handle_access(AccessNet::from_all(abi))?
            .scope(Scope::from_all(abi))?
            .create()?;
        for name in READABLE.iter().filter(|name| Path::new(name).exists()) {
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(name)?, AccessFs::from_read(abi)))?;
        }
        for name in READ_WRITE {
            ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(name)?, AccessFs::from_file(abi)))?;
        }
        let own = format!("/proc/self/fd/{}", image.as_fd().as_raw_fd());
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(own)?, AccessFs::ReadFile))?;
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, AccessFs::from_all(abi)))?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match make().map_err(|e| failed(e.to_string()))? {
        RulesetStatus::NotEnforced => Err(error("this kernel has no Landlock to shut unsquashfs in with")
            .kind(Kind::Missing)
            .hint("use the tar archive of the image, or boot with `lsm=landlock,…`")),
        _ => Ok(()),
    }
}

/// Counts what is there and takes away the labels that are the host's business, as for archives.
fn count(root: BorrowedFd<'_>, limits: &Limits) -> Result<Unpacked> {
    let mut done = Unpacked::default();
    let mut ladder = Ladder::new(tree::open(root, ".", LIST, STRAIGHT)?)?;
    let mut left = vec![entries(ladder.fd())?];
    strip(Spot::Open(ladder.fd()))?;
    while let Some(names) = left.last_mut() {
        let Some((name, kind)) = names.pop() else {
            left.pop();
            ladder.ascend()?;
            continue;
        };
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(error(format!("the file system holds more than the limit of {} entries", limits.entries)));
        }
        if kind.is_dir() {
            ladder.descend(tree::open(ladder.fd(), &*name, LIST, STRAIGHT)?)?;
            strip(Spot::Open(ladder.fd()))?;
            left.push(entries(ladder.fd())?);
            continue;
        }
        strip(Spot::Named(ladder.fd(), &name))?;
        if kind.is_file() {
            done.bytes += u64::try_from(tree::stat(ladder.fd(), &*name)?.st_size).unwrap_or(0);
        }
    }
    Ok(done)
}

type Names = Vec<(std::ffi::CString, FileType)>;

fn entries(dir: BorrowedFd<'_>) -> Result<Names> {
    let mut names = Vec::new();
    tree::list(dir, |entry| {
        names.push((entry.file_name().to_owned(), tree::type_of(dir, entry)?));
        Ok(())
    })?;
    Ok(names)
}

fn strip(spot: Spot<'_>) -> Result<()> {
    for (name, _) in spot.xattrs()? {
        if name.starts_with(b"security.") && name != crate::capability::NAME.as_bytes() {
            match spot.remove_xattr(&name) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e).context("removing a label"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_the_list_of_files_alone() {
        assert_eq!(size_in(b"-rw-r--r-- 0/0                 1234 2026-11-23 05:24 squashfs-root/etc/hosts\n"), 1234);
        assert_eq!(size_in(b"-rwsr-xr-x 0/42   18446744073709551615 2026-11-23 05:24 squashfs-root/x\n"), u64::MAX);
        assert_eq!(size_in(b"drwxr-xr-x 0/0                   29 2026-11-23 05:24 squashfs-root\n"), 0);
        assert_eq!(size_in(b"crw-rw-rw- 0/0             1,  3 2026-11-23 05:24 squashfs-root/dev/null\n"), 0);
        assert_eq!(size_in(b"-\xff"), 0);
    }
}

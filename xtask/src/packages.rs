//! What the chores need of Debian, and why: one table.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Result, place};

/// A chore that needs packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    Try,
    Test,
    Bench,
}

use For::{Bench, Test, Try};

/// Package, the chores that need it, and what for. What a minimal Debian lacks; a compiler is there already, or this
/// program would not be. `tests/fixtures/make-roots.sh` sees to its own tools.
const TABLE: &[(&str, &[For], &str)] = &[
    ("procps", &[Try, Test], "ps and free, to look around in a container of this system's programs"),
    ("iproute2", &[Try, Test, Bench], "ip, to look at a container's network, and to make others beside it"),
    ("nftables", &[Try, Test, Bench], "nft, which sets the rules of the network"),
    ("musl-tools", &[Try, Bench], "a C library that is fast to start, for the program to install"),
    ("busybox-static", &[Test, Bench], "the one program in the smallest images"),
    ("btrfs-progs", &[Test], "makes a file system whose files can share their content"),
    ("xfsprogs", &[Test], "makes another"),
    ("attr", &[Test], "setfattr: an unpacked archive keeps extended attributes"),
    ("acl", &[Test], "setfacl: an unpacked archive keeps access lists"),
    ("gzip", &[Test], "makes archives to unpack"),
    ("skopeo", &[Test], "writes OCI images in every form there is, for us to read"),
    ("squashfs-tools", &[Test], "makes images that come as squashfs, and unpacks them"),
    ("xz-utils", &[Test], "makes archives to unpack"),
    ("zstd", &[Test], "makes archives to unpack"),
    ("podman", &[Test], "loads and runs what is exported for it"),
    ("runc", &[Test], "what podman runs containers by on hosts with both versions of cgroups"),
    ("gnupg", &[Test], "signs the archive of packages that a test makes"),
    ("gpgv", &[Test], "says whether an archive of packages is who it claims to be"),
    ("openssh-client", &[Test], "ssh, scp and sftp, into containers"),
    ("rsync", &[Test], "copies by ssh"),
    ("strace", &[Test], "what a program asks for, in a container of this system's programs"),
    ("xauth", &[Test], "cookies, for ssh -X"),
    ("xvfb", &[Test], "an X server without a screen, for the gate before it"),
    ("x11-apps", &[Test], "small X programs"),
    ("x11-utils", &[Test], "xwininfo and xprop: what is on a screen"),
    ("pulseaudio", &[Test], "a sound server without a card, for the gate before it"),
    ("pulseaudio-utils", &[Test], "plays, records, and tries what it should not"),
    ("pipewire-pulse", &[Test], "another sound server, which speaks the same protocol"),
    ("wireplumber", &[Test], "what connects its streams to its devices"),
    ("dbus", &[Test], "the bus of a session, for the gate before it, and what the sound server above needs"),
    ("libnotify-bin", &[Test], "shows notifications, as a program would"),
    ("libglib2.0-bin", &[Test], "gdbus: calls whatever there is on a bus"),
    ("xterm", &[Test], "an X program that is typed into"),
    ("xclip", &[Test], "copies and pastes"),
    ("xdotool", &[Test], "types and clicks, as a person would"),
    ("openbox", &[Test], "a window manager"),
    ("zenity", &[Test], "an X program of GTK"),
    ("mousepad", &[Test], "an X program of GTK with menus"),
    ("featherpad", &[Test], "the same of Qt"),
    ("firefox-esr", &[Test], "a browser"),
    ("xserver-xephyr", &[Test], "an X server in a window, for programs that need one of their own"),
    ("xwayland", &[Test], "an X server on a compositor"),
    ("gtk-4-examples", &[Test], "a program that does"),
    ("sway", &[Test], "a Wayland compositor that lets its programs do everything"),
    ("weston", &[Test], "another one, and small programs for it"),
    ("foot", &[Test], "a terminal on Wayland"),
    ("grim", &[Test], "a picture of what is on the screen, and what must not be possible inside"),
    ("wtype", &[Test], "types on Wayland, which must not be possible inside either"),
    ("wl-clipboard", &[Test], "copies and pastes on Wayland"),
    ("wayland-utils", &[Test], "wayland-info: what a compositor offers"),
    ("wayland-protocols", &[Test], "what is in the table of the Wayland gate"),
    ("libwayland-dev", &[Test], "the same, for the core of the protocol"),
    ("debian-archive-keyring", &[Bench], "whose signatures count for the packages that images are built of"),
    ("mmdebstrap", &[Bench], "what builds of images are measured against"),
    ("time", &[Bench], "how much memory a command has taken at most"),
    ("dnsmasq-base", &[Bench], "the name server that ours is measured against"),
    ("lxc", &[Bench], "the containers that ours are measured against"),
];

/// Installs what is missing of what a chore needs. Says in a sentence what it did.
pub fn install(chore: For) -> Result<String> {
    let wanted: Vec<_> = TABLE.iter().filter(|(_, chores, _)| chores.contains(&chore)).collect();
    let installed = installed()?;
    let missing: Vec<_> = wanted.iter().filter(|(name, ..)| !installed.iter().any(|other| other == name)).collect();
    if missing.is_empty() {
        return Ok(format!("all {} there", wanted.len()));
    }
    let names: Vec<_> = missing.iter().map(|(name, ..)| *name).collect();
    // The lists may never have been fetched, or be too old to be true.
    if apt_get(&[&["install"], &names[..]].concat()).is_err() {
        apt_get(&["update"])?;
        apt_get(&[&["install"], &names[..]].concat()).map_err(|e| {
            let lines: Vec<_> = missing.iter().map(|(name, _, why)| format!("  {name:<16}{why}")).collect();
            format!("{e}\nthese packages are needed:\n{}", lines.join("\n"))
        })?;
    }
    Ok(format!("installed {}", names.join(", ")))
}

/// The names of all installed packages.
fn installed() -> Result<Vec<String>> {
    let output = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status} ${Package}\n"]).output();
    let output = output.map_err(|_| {
        let names: Vec<_> = TABLE.iter().map(|(name, ..)| *name).collect();
        format!("this is no Debian; the tests need what Debian calls {}", names.join(", "))
    })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

fn apt_get(words: &[&str]) -> Result {
    let mut command = place::as_root(Path::new("apt-get"), &[("DEBIAN_FRONTEND", "noninteractive")])?;
    command.args(["-y", "-qq", "--no-install-recommends"]).args(words).stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("running apt-get: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("apt-get {} failed\n{}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
    }
}

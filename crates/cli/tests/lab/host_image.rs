//! The image `host`: the running system's programs, and nothing else of it. What is visible is listed here, by
//! name: anything that is not fails the test.

use std::collections::BTreeSet;
use std::fs;

use crate::harness::*;

/// All there is at the top. The links are the merged-usr ones; where the host has none, directories of programs.
const TOP: &[&str] = &[
    "bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt", "proc", "root", "run",
    "sbin", "srv", "sys", "tmp", "usr", "var",
];

/// All there may be in /etc, from the host or generated; a `*` stands for any ending. None of it tells who uses
/// the machine, how it is reached or what it keeps secret.
const ETC: &[&str] = &[
    "ImageMagick*",
    "OpenCL",
    "X11",
    "adduser.conf",
    "alsa",
    "alternatives",
    "bash.bashrc",
    "bash_completion",
    "bash_completion.d",
    "ca-certificates",
    "ca-certificates.conf",
    "chromium*",
    "dconf",
    "debian_version",
    "default",
    "drirc",
    "ethertypes",
    "firefox*",
    "fonts",
    "gai.conf",
    "glvnd",
    "groff",
    "group",
    "gshadow",
    "gtk-2.0",
    "gtk-3.0",
    "gtk-4.0",
    "host.conf",
    "hostname",
    "hosts",
    "inputrc",
    "java*",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "libreoffice",
    "locale.alias",
    "locale.conf",
    "localtime",
    "login.defs",
    "lsb-release",
    "magic",
    "magic.mime",
    "mailcap",
    "man_db.conf",
    "manpath.config",
    "mime.types",
    "mtab",
    "nanorc",
    "netconfig",
    "networks",
    "nsswitch.conf",
    "openal",
    "os-release",
    "pam.d",
    "pango",
    "papersize",
    "passwd",
    "perl",
    "pipewire",
    "profile",
    "protocols",
    "pulse",
    "python3*",
    "resolv.conf",
    "rpc",
    "services",
    "shadow",
    "shells",
    "skel",
    "ssl",
    "terminfo",
    "thunderbird*",
    "timezone",
    "vim",
    "vulkan",
    "wgetrc",
    "xdg",
];

/// The same of those directories in which the host may keep more than programs need.
const BELOW_ETC: &[(&str, &[&str])] = &[
    ("X11", &["app-defaults", "cursors", "rgb.txt", "xkb"]),
    ("default", &["locale", "useradd"]),
    ("pam.d", &["other", "runuser", "runuser-l", "su", "su-l"]),
    ("pulse", &["client.conf", "client.conf.d"]),
    ("ssl", &["certs", "ct_log_list.cnf", "openssl.cnf"]),
];

/// All there is in the directories that programs write to, but for what they find in /dev, /proc and /sys.
const EMPTY: &str = "/home /media /mnt /opt /root /run /srv /tmp /var /var/cache /var/lib /var/lib/misc /var/local \
                     /var/lock /var/log /var/mail /var/opt /var/run /var/spool /var/spool/mail /var/tmp";

fn running() -> World {
    let world = World::new();
    world.ok(&["create", "web"]);
    world.ok(&["start", "web"]);
    world
}

#[track_caller]
fn only(listed: &str, allowed: &[&str], of: &str) {
    let matches = |name: &str| {
        allowed.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(head) => name.starts_with(head),
            None => name == *allowed,
        })
    };
    let others: Vec<_> = listed.lines().filter(|name| !matches(name)).collect();
    assert!(others.is_empty(), "visible in {of}, but not listed here: {others:?}");
}

#[test]
fn nothing_is_visible_but_what_is_listed_here() {
    let world = running();
    only(&world.exec("web", &["ls", "-A", "/"]), TOP, "/");
    only(&world.exec("web", &["ls", "-A", "/etc"]), ETC, "/etc");
    for (dir, names) in BELOW_ETC {
        only(&world.exec_sh("web", &format!("ls -A /etc/{dir} 2>/dev/null || true")), names, dir);
    }
    let found =
        world.exec("web", &["find", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var"]);
    let found: BTreeSet<_> = found.lines().collect();
    assert_eq!(found, EMPTY.split_whitespace().collect());
    // What the host has mounted elsewhere is not there by any name.
    let mounts = world.exec_sh("web", "cut -d' ' -f5 /proc/self/mountinfo");
    let known = ["/", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/run"];
    let others: Vec<_> = mounts
        .lines()
        .filter(|at| !known.contains(at) && !["/proc", "/sys", "/dev"].iter().any(|top| at.starts_with(top)))
        .collect();
    assert!(others.is_empty(), "mounted inside: {others:?}");
    let hidden = world.exec_sh("web", &format!("test -e {} && echo there || echo no", text(world.root())));
    assert_eq!(hidden, "no", "not even the directory the container is kept in");
}

#[test]
fn accounts_names_and_secrets_are_not_the_hosts() {
    let world = running();
    let shadow = world.exec("web", &["cat", "/etc/shadow"]);
    for line in shadow.lines() {
        let password = line.split(':').nth(1).unwrap_or("missing");
        assert!(["*", "!", "!*", "!!"].contains(&password), "no password is known: {line}");
    }
    let passwd = world.exec("web", &["cat", "/etc/passwd"]);
    for line in passwd.lines() {
        let uid: u32 = line.split(':').nth(2).and_then(|uid| uid.parse().ok()).unwrap();
        assert!(!(1000..60000).contains(&uid), "a person of the host: {line}");
    }
    let host = fs::read_to_string("/etc/passwd").unwrap();
    assert_ne!(passwd.trim_end(), host.trim_end(), "generated, not copied");
    assert_eq!(world.exec("web", &["hostname"]), "web");
    assert_eq!(world.exec("web", &["cat", "/etc/hostname"]), "web");
    let host_name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let told = world.lazaret(&["exec", "web", "--", "grep", "-rlw", host_name.trim(), "/etc/hosts", "/etc/hostname"]);
    assert!(told.stdout.is_empty(), "{told}");
    assert_eq!(world.exec("web", &["cat", "/etc/resolv.conf"]), "");
    assert_ne!(world.lazaret(&["exec", "web", "--", "test", "-e", "/etc/machine-id"]).status, 0);
}

#[test]
fn the_hosts_programs_run_and_cannot_be_changed() {
    let world = running();
    assert_eq!(world.exec("web", &["bash", "-lc", "echo $BASH_VERSION | cut -c1 | grep -c ."]), "1");
    assert_eq!(world.exec("web", &["perl", "-e", "print 6 * 7"]), "42");
    assert_eq!(world.exec("web", &["getent", "passwd", "root"]), "root:x:0:0:root:/root:/bin/bash");
    assert!(world.exec("web", &["getent", "hosts", "localhost"]).contains("localhost"));
    assert_eq!(world.exec_sh("web", ". /etc/os-release; echo $ID"), host_id());
    assert_eq!(world.exec_sh("web", "date +%Z; mktemp -u /tmp/x.XXX | cut -c1-7").lines().last(), Some("/tmp/x."));
    // A terminal, of which programs know the name.
    let mut pty = world.pty(&["exec", "web", "--", "sh", "-c", "tput cols; id -un"]);
    pty.expect("80\r\nroot\r\n");

    for script in [
        "touch /usr/new",
        "rm -f /usr/bin/env && test ! -e /usr/bin/env",
        "chmod 4777 /usr/bin/env",
        "echo x >> /usr/bin/env",
        "mount -o remount,rw /usr",
        "mount -o remount,bind,rw /usr && touch /usr/new",
        "umount /usr",
        "umount -l /usr",
        "mount --bind /usr /mnt && mount -o remount,bind,rw /mnt && touch /mnt/new",
        "unshare -m sh -c 'umount -l /usr || mount -o remount,bind,rw /usr'",
    ] {
        let out = world.lazaret(&["exec", "web", "--", "sh", "-c", script]);
        assert_ne!(out.status, 0, "`{script}` should fail: {out}");
    }
    assert!(!fs::exists("/usr/new").unwrap());
    // But what is the container's own can be.
    world
        .exec_sh("web", "echo x > /etc/new; echo y >> /etc/profile; mkdir /home/ann; rm /etc/inputrc /etc/magic; true");
    world.ok(&["restart", "web"]);
    assert_eq!(world.exec_sh("web", "cat /etc/new; tail -1 /etc/profile; ls /home"), "x\ny\nann");
}

#[test]
fn a_second_container_of_the_host_shares_the_layer() {
    let world = World::new();
    world.ok(&["create", "one"]);
    world.ok(&["create", "two", "--image", "host"]);
    let (one, two) = (world.info("one"), world.info("two"));
    assert_eq!(one["image"], "host");
    assert_eq!(one["rootfs"], two["rootfs"]);
    assert_eq!(one["openings"][0], "sees the host's `/usr`, read-only");
    assert_eq!(world.ok(&["run", "--", "echo", "works"]).stdout, "works\n");
}

fn host_id() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap();
    let id = text.lines().find_map(|line| line.strip_prefix("ID=")).unwrap_or_default();
    id.trim_matches('"').to_owned()
}

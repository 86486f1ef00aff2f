//! What a build runs inside: a shell script, written whole.

use lazaret_image::build::{Choice, Package, Script, file_name};

use super::INSIDE;

/// For package managers that must not ask anybody.
pub(crate) const ENVIRONMENT: &[(&str, &str)] = &[
    ("DEBIAN_FRONTEND", "noninteractive"),
    ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
    ("LC_ALL", "C"),
    ("HOME", "/root"),
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
];

/// Configures a system whose base is unpacked, installs the rest, and makes a container's system of it.
pub(super) fn system(scripts: &[Script], choice: &Choice<'_>, sources: &str, distribution: &str) -> String {
    let mut text = String::from(QUIET);
    for script in scripts {
        let Script { package, architecture, path } = script;
        text.push_str(&format!(
            "DPKG_MAINTSCRIPT_PACKAGE={package} DPKG_MAINTSCRIPT_ARCH={architecture} \
             DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_DEBUG=0 DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 \
             DPKG_ROOT= DPKG_ADMINDIR=/var/lib/dpkg DPKG_RUNNING_VERSION=1.21 {path} install\n"
        ));
    }
    text.push_str(CONFIGURE_BASE);
    install(&mut text, choice);
    text.push_str(TIDY);
    text.push_str(&format!(
        "NAME={distribution}\ncat >\"/etc/apt/sources.list.d/$NAME.sources\" <<'EOF'\n{sources}EOF\n"
    ));
    text.push_str(CONTAINER);
    text
}

/// Adds packages to a system that is there.
pub(crate) fn additions(choice: &Choice<'_>) -> String {
    let mut text = String::from(QUIET);
    install(&mut text, choice);
    text.push_str(TIDY);
    text
}

fn install(text: &mut String, choice: &Choice<'_>) {
    for portion in &choice.portions {
        let files: Vec<_> = portion.iter().map(file_name).collect();
        text.push_str(&format!("cd {INSIDE}\n/usr/bin/dpkg --force-unsafe-io --unpack {}\ncd /\n", files.join(" ")));
        text.push_str("/usr/bin/dpkg --force-unsafe-io --configure -a\n");
    }
    if !choice.automatic.is_empty() {
        text.push_str("mkdir -p /var/lib/apt\ncat >>/var/lib/apt/extended_states <<EOF\n");
        let of = |name: &str| choice.all().find(|package| package.name == name).copied();
        for Package { name, architecture, .. } in choice.automatic.iter().filter_map(|name| of(name)) {
            // What is for all architectures is noted with the system's own.
            let architecture =
                if architecture == "all" { "$(/usr/bin/dpkg --print-architecture)" } else { architecture };
            text.push_str(&format!("Package: {name}\nArchitecture: {architecture}\nAuto-Installed: 1\n\n"));
        }
        text.push_str("EOF\n");
    }
}

/// No service is started while packages are installed (Debian policy, 9.3.3).
const QUIET: &str = "\
umask 022
mkdir -p /usr/sbin
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
";

/// What others take for granted comes first.
const CONFIGURE_BASE: &str = "\
[ -e /usr/bin/awk ] || [ ! -e /usr/bin/mawk ] || ln -s mawk /usr/bin/awk
/usr/bin/dpkg --force-unsafe-io --force-depends --configure base-passwd
/usr/bin/dpkg --force-unsafe-io --configure -a
";

/// Traces of the making.
const TIDY: &str = "\
rm -f /usr/sbin/policy-rc.d
rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- /etc/.pwd.lock
rm -f /var/lib/dpkg/*-old /var/cache/debconf/*-old /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache
rm -rf /var/log/apt/*
[ ! -d /var/lib/apt/lists ] || find /var/lib/apt/lists -type f -delete
rm -f /var/log/dpkg.log /var/log/alternatives.log /var/lib/systemd/random-seed
";

/// What a system needs to be at home in a container, and what belongs to one machine only.
const CONTAINER: &str = r#"
echo localhost >/etc/hostname
[ ! -e /etc/fstab ] || : >/etc/fstab
[ ! -d /etc/initramfs-tools/conf.d ] || echo RESUME=none >/etc/initramfs-tools/conf.d/resume
[ ! -d /etc/default ] || echo LANG=C.UTF-8 >/etc/default/locale
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
# Noted in the build's own container.
rm -f /etc/resolv.conf

if [ -d /usr/lib/systemd/system ] && [ -e /usr/bin/systemctl ]; then
  # Made at the first start.
  : >/etc/machine-id
  # A container's files in /tmp are on its disk: memory is the machine's.
  [ ! -e /usr/lib/systemd/system/tmp.mount ] || ln -sf /dev/null /etc/systemd/system/tmp.mount
  mkdir -p /etc/systemd/network
  printf '[Match]\nName=eth0\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\nUseDomains=yes\n' \
    >/etc/systemd/network/eth0.network
  systemctl --root=/ enable systemd-networkd.service
  # Nobody waits for a network that may not be there.
  systemctl --root=/ disable systemd-networkd-wait-online.service
  if [ -e /usr/lib/systemd/system/systemd-resolved.service ]; then
    systemctl --root=/ enable systemd-resolved.service
    ln -s ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
  fi
  if [ -e /usr/sbin/sshd ]; then
    mkdir -p /etc/systemd/system/ssh.service.d
    printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
      >/etc/systemd/system/ssh.service.d/host-keys.conf
  fi
fi
if [ -d /etc/network ] && [ -e /sbin/ifup ]; then
  printf 'auto lo\niface lo inet loopback\n' >/etc/network/interfaces
  # Where another client looks after the interface, this one leaves it alone.
  [ -e /etc/systemd/network/eth0.network ] || printf '\nauto eth0\niface eth0 inet dhcp\n' >>/etc/network/interfaces
fi
if [ -e /etc/inittab ]; then
  sed -i -e '/^[1-6]:.*getty/d' -e '/^p[fno]:/d' -e '/^ca:/d' /etc/inittab
  printf '1:2345:respawn:/sbin/getty --noclear --keep-baud console 115200,38400 linux\n' >>/etc/inittab
  printf 'p0::powerfail:/sbin/init 0\np6::ctrlaltdel:/sbin/init 6\n' >>/etc/inittab
fi
"#;

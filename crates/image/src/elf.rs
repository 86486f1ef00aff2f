//! For which processor a root filesystem was made.

use std::fs::File;
use std::io::Read;
use std::os::fd::BorrowedFd;

use rustix::fs::OFlags;

use crate::tree::{self, INSIDE};

/// Programs that every root has one of; a link among them is followed inside the root.
const PROGRAMS: &[&str] =
    &["bin/sh", "usr/bin/env", "bin/busybox", "sbin/init", "usr/sbin/init", "usr/lib/systemd/systemd", "init"];

/// The word size, byte order and machine of an ELF header (elf(5)) and Debian's name for the three.
const MACHINES: &[(u8, u8, u16, &str)] = &[
    (2, 1, 62, "amd64"),
    (1, 1, 3, "i386"),
    (2, 1, 183, "arm64"),
    (1, 1, 40, "armhf"),
    (2, 1, 243, "riscv64"),
    (2, 1, 21, "ppc64el"),
    (2, 2, 22, "s390x"),
    (2, 1, 258, "loong64"),
];

/// Debian's name of the architecture, if a program tells it.
pub(crate) fn architecture(root: BorrowedFd<'_>) -> Option<String> {
    PROGRAMS.iter().find_map(|program| {
        let fd = tree::open(root, *program, OFlags::RDONLY | OFlags::NONBLOCK, INSIDE).ok()?;
        let mut header = [0; 20];
        File::from(fd).read_exact(&mut header).ok()?;
        machine(&header).map(str::to_owned)
    })
}

fn machine(header: &[u8; 20]) -> Option<&'static str> {
    let (size, order) = (header[4], header[5]);
    let machine = [header[18], header[19]];
    let machine = if order == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    let found = MACHINES.iter().find(|(s, o, m, _)| (*s, *o, *m) == (size, order, machine));
    found.filter(|_| header.starts_with(b"\x7fELF")).map(|(.., name)| *name)
}

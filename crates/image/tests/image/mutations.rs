//! Any bytes at all: no panic, and nothing outside.

use std::sync::LazyLock;

use lazaret_image::Limits;
use proptest::prelude::*;

use crate::craft::fix_sum;
use crate::fidelity::unpack_bytes;
use crate::hostile::Jail;
use crate::world::{World, sh};

/// Small archives of each format, with everything in them.
static ARCHIVES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let world = World::new();
    let tree = r#"
        mkdir -p tree/etc tree/usr/lib; cd tree; ln -s usr/lib lib; printf text > etc/file; ln etc/file etc/link
        ln -s /etc/passwd etc/absolute; mkfifo fifo; mknod null c 1 3; truncate -s 1M etc/sparse; printf x >> etc/sparse
        setfattr -n user.x -v y etc/file; setfacl -m u:1:r,d:u:1:r etc; printf x > "$(printf 'n%.0s' $(seq 120))""#;
    sh(&world.dir, tree);
    let formats = ["ustar", "gnu --sparse", "pax --sparse --xattrs --acls", "pax --sparse-version=0.0 --sparse"];
    formats
        .iter()
        .map(|format| {
            // ustar has no room for the long name in one piece.
            sh(&world.dir, &format!("tar -C tree --exclude='nnn*' --format={format} -cf {} . ", "archive"));
            std::fs::read(world.path("archive")).unwrap()
        })
        .collect()
});

#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    SwapBlocks(prop::sample::Index, prop::sample::Index),
    RepeatBlock(prop::sample::Index),
    Cut(prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let words = prop::sample::select(vec![
        "../", "/", "rootfs", "..", "\0", "\n", "9999999", "=", ",", "\u{ff}", "5", "1", "2", "x",
    ]);
    prop_oneof![
        6 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), words).prop_map(|(at, word)| Change::Insert(at, word.as_bytes().to_vec())),
        2 => (at(), at()).prop_map(|(a, b)| Change::SwapBlocks(a, b)),
        2 => at().prop_map(Change::RepeatBlock),
        1 => at().prop_map(Change::Cut),
    ]
}

fn apply(archive: &mut Vec<u8>, change: &Change) {
    // Most of an archive is padding: aim at what is not.
    let used = archive.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let blocks = used / 512;
    if blocks == 0 {
        return;
    }
    match change {
        Change::Set(at, byte) => {
            let at = at.index(used);
            archive[at] = *byte;
        }
        Change::Insert(at, bytes) => {
            let at = at.index(used);
            let end = (at + bytes.len()).min(archive.len());
            archive[at..end].copy_from_slice(&bytes[..end - at]);
        }
        Change::SwapBlocks(a, b) => {
            let (a, b) = (a.index(blocks) * 512, b.index(blocks) * 512);
            for i in 0..512 {
                archive.swap(a + i, b + i);
            }
        }
        Change::RepeatBlock(at) => {
            let at = at.index(blocks) * 512;
            let block = archive[at..at + 512].to_vec();
            archive.splice(at..at, block);
        }
        Change::Cut(at) => archive.truncate(at.index(used).max(1)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mutated_archive_never_panics_and_never_writes_outside(
        which in 0usize..4,
        changes in prop::collection::vec(change(), 1..12),
        fix in prop::bool::weighted(0.9),
    ) {
        let mut archive = ARCHIVES[which].clone();
        for change in &changes {
            apply(&mut archive, change);
        }
        if fix {
            // Otherwise hardly anything would get past the checksums.
            for block in archive.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
                fix_sum(block);
            }
        }
        let jail = Jail::new();
        let limits = Limits { bytes: 16 << 20, ..Limits::default() };
        // Most are refused, some are not: either way all stays inside.
        let _ = unpack_bytes(&archive, &jail.into, &limits);
        jail.check();
    }
}

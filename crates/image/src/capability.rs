//! File capabilities (`security.capability`, include/uapi/linux/capability.h).

use lazaret_base::{Result, error};

/// The attribute.
pub(crate) const NAME: &str = "security.capability";

const REVISION_MASK: u32 = 0xff00_0000;
const REVISION_1: u32 = 0x0100_0000;
const REVISION_2: u32 = 0x0200_0000;
const REVISION_3: u32 = 0x0300_0000;

/// Makes the capabilities count for the user namespace whose root is `shift` further on.
///
/// Only revision 3 names a root user; the kernel ignores it everywhere but in namespaces of that root
/// (capabilities(7), "Namespaced file capabilities").
pub(crate) fn shift(bytes: &[u8], shift: i64) -> Result<Vec<u8>> {
    if shift == 0 {
        return Ok(bytes.to_vec());
    }
    let words: Vec<u32> = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    let (magic, sets, root) = match words[..] {
        [magic, a, b] if magic & REVISION_MASK == REVISION_1 => (magic, [a, b, 0, 0], 0),
        [magic, a, b, c, d] if magic & REVISION_MASK == REVISION_2 => (magic, [a, b, c, d], 0),
        [magic, a, b, c, d, root] if magic & REVISION_MASK == REVISION_3 => (magic, [a, b, c, d], root),
        _ => return Err(error("file capabilities of an unknown form")),
    };
    let root = crate::shift::shifted(root, shift)?;
    Ok(encode(magic, sets, root))
}

/// The form that every program knows: one that is for the host's root names no root.
pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    let words: Vec<u32> = bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect();
    match words[..] {
        [magic, a, b, c, d, 0] if magic & REVISION_MASK == REVISION_3 => encode(magic, [a, b, c, d], 0),
        _ => bytes.to_vec(),
    }
}

/// Revision 2 says the same as revision 3 with the root user 0.
fn encode(magic: u32, sets: [u32; 4], root: u32) -> Vec<u8> {
    let revision = if root == 0 { REVISION_2 } else { REVISION_3 };
    let named = (root != 0).then_some(root);
    let words = [(magic & !REVISION_MASK) | revision].into_iter().chain(sets).chain(named);
    words.flat_map(u32::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_revision_becomes_the_third_with_its_root_shifted() {
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
        let expected = words(&[0x0300_0001, 0x2000, 7, 0, 0, 100_000]);
        assert_eq!(shift(&words(&[0x0200_0001, 0x2000, 7, 0, 0]), 100_000).unwrap(), expected);
        assert_eq!(shift(&words(&[0x0100_0001, 0x2000, 7]), 100_000).unwrap(), expected);
        assert_eq!(shift(&words(&[0x0300_0001, 0x2000, 7, 0, 0, 99_000]), 1000).unwrap(), expected);
        assert!(shift(&words(&[0x0400_0001, 0, 0, 0, 0]), 1).is_err());
        assert!(shift(b"abc", 1).is_err());
        assert_eq!(shift(b"abc", 0).unwrap(), b"abc");
        let plain_form = words(&[0x0200_0001, 0x2000, 7, 0, 0]);
        assert_eq!(shift(&expected, -100_000).unwrap(), plain_form);
        assert_eq!(plain(&words(&[0x0300_0001, 0x2000, 7, 0, 0, 0])), plain_form);
        assert_eq!(plain(&expected), expected);
    }
}

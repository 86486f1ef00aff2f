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
pub(crate) fn shift(bytes: &[u8], shift: u32) -> Result<Vec<u8>> {
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
    let mut shifted = ((magic & !REVISION_MASK) | REVISION_3).to_le_bytes().to_vec();
    for word in sets.into_iter().chain([crate::shift::shifted(root, shift)?]) {
        shifted.extend(word.to_le_bytes());
    }
    Ok(shifted)
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
    }
}

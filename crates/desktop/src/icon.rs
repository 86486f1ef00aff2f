//! Pictures from a container, as the person's menu may have them.

/// A file that is longer is no icon.
pub const LONGEST: usize = 1 << 20;
/// Neither side is longer, in pixels.
const WIDEST: u32 = 1024;
/// Chunks that are the picture (PNG specification, section 11.2). All others are text, colour profiles and the like, in
/// whose readers mistakes have been found before.
const PICTURE: &[&[u8; 4]] = &[b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"];
const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";

/// The same picture with nothing in it but the picture; `None` for what is no PNG of a sensible size.
pub fn png(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes.strip_prefix(SIGNATURE).filter(|_| bytes.len() <= LONGEST)?;
    let mut picture = SIGNATURE.to_vec();
    let mut seen: Vec<[u8; 4]> = Vec::new();
    while seen.last() != Some(b"IEND") {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (content, after) = after.split_at_checked(length)?;
        rest = after.get(4..)?;
        if !PICTURE.contains(&kind) {
            // What has to be understood for the picture to be right (a capital first) is in the list.
            if kind[0].is_ascii_uppercase() {
                return None;
            }
            continue;
        }
        let fits = match kind {
            b"IHDR" => seen.is_empty() && is_header(content),
            b"IDAT" => seen.contains(b"IHDR"),
            b"PLTE" => {
                content.len() % 3 == 0 && content.len() <= 768 && !seen.contains(b"PLTE") && !seen.contains(b"IDAT")
            }
            b"tRNS" => content.len() <= 256 && !seen.contains(b"tRNS") && !seen.contains(b"IDAT"),
            _ => content.is_empty() && seen.contains(b"IDAT"),
        };
        if !fits || (seen.is_empty() && kind != b"IHDR") {
            return None;
        }
        seen.push(*kind);
        picture.extend((length as u32).to_be_bytes());
        let begin = picture.len();
        picture.extend(kind);
        picture.extend(content);
        picture.extend(crc(&picture[begin..]).to_be_bytes());
    }
    Some(picture)
}

/// Width, height, and what the specification allows of the rest.
fn is_header(content: &[u8]) -> bool {
    let [w0, w1, w2, w3, h0, h1, h2, h3, depth, colour, 0, 0, 0 | 1] = *content else { return false };
    let side = |bytes| (1..=WIDEST).contains(&u32::from_be_bytes(bytes));
    side([w0, w1, w2, w3])
        && side([h0, h1, h2, h3])
        && matches!((colour, depth), (0, 1 | 2 | 4 | 8 | 16) | (3, 1 | 2 | 4 | 8) | (2 | 4 | 6, 8 | 16))
}

/// CRC-32 as PNG has it (annex D).
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { 0xedb8_8320 ^ (crc >> 1) } else { crc >> 1 })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let body = [&kind[..], content].concat();
        [&(content.len() as u32).to_be_bytes()[..], &body, &crc(&body).to_be_bytes()].concat()
    }

    fn header(width: u32) -> Vec<u8> {
        chunk(b"IHDR", &[&width.to_be_bytes()[..], &[0, 0, 0, 1, 8, 6, 0, 0, 0]].concat())
    }

    fn picture(chunks: &[Vec<u8>]) -> Vec<u8> {
        [SIGNATURE.to_vec(), chunks.concat()].concat()
    }

    #[test]
    fn the_picture_stays_and_all_else_goes() {
        // The checksum of an empty end is in every PNG.
        assert_eq!(chunk(b"IEND", b"")[8..], [0xae, 0x42, 0x60, 0x82]);
        let (data, end) = (chunk(b"IDAT", b"zlib"), chunk(b"IEND", b""));
        let clean = picture(&[header(1), data.clone(), end.clone()]);
        let text = chunk(b"zTXt", b"evil");
        let dirty =
            [picture(&[header(1), chunk(b"iCCP", b"x"), data.clone(), text, end.clone()]), b"PK..".to_vec()].concat();
        assert_eq!(png(&dirty).unwrap(), clean);
        assert_eq!(png(&clean).unwrap(), clean);
    }

    #[test]
    fn what_is_no_sensible_picture_is_none() {
        let (data, end) = (chunk(b"IDAT", b"zlib"), chunk(b"IEND", b""));
        let good = picture(&[header(1), data.clone(), end.clone()]);
        for bad in [
            b"<svg/>".to_vec(),
            picture(&[header(1025), data.clone(), end.clone()]),
            picture(&[header(0), data.clone(), end.clone()]),
            picture(&[data.clone(), header(1), end.clone()]),
            picture(&[header(1), chunk(b"EVIL", b""), data.clone(), end.clone()]),
            picture(&[header(1), end.clone()]),
            picture(&[header(1), chunk(b"PLTE", b"xx"), data, end]),
            good[..good.len() - 1].to_vec(),
            [&SIGNATURE[..], &[0xff; 8]].concat(),
        ] {
            assert_eq!(png(&bad), None, "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_comes_is_a_picture_or_nothing(bytes: Vec<u8>) {
            let _ = png(&bytes);
            let _ = png(&[&SIGNATURE[..], &bytes].concat());
        }
    }
}

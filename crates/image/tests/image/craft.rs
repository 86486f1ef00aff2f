//! Archives that no archiver would write.

/// Bytes of an archive that grows entry by entry.
#[derive(Clone, Default)]
pub struct Craft(pub Vec<u8>);

impl Craft {
    pub fn new() -> Craft {
        Craft::default()
    }

    /// Any header with any data.
    pub fn entry(mut self, kind: u8, name: &str, target: &str, size: u64, data: &[u8]) -> Craft {
        let mut block = [0u8; 512];
        put(&mut block, 0, name.as_bytes());
        put(&mut block, 100, b"0000644\0");
        put(&mut block, 108, b"0000000\0");
        put(&mut block, 116, b"0000000\0");
        match size {
            0..0o77777777777 => put(&mut block, 124, format!("{size:011o}\0").as_bytes()),
            _ => {
                block[124] = 0x80;
                put(&mut block, 128, &size.to_be_bytes());
            }
        }
        put(&mut block, 136, b"14000000000\0");
        block[156] = kind;
        put(&mut block, 157, target.as_bytes());
        put(&mut block, 257, b"ustar\x0000");
        self.0.extend(block);
        let at = self.0.len() - 512;
        fix_sum(&mut self.0[at..]);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &str) -> Craft {
        self.entry(b'0', name, "", data.len() as u64, data.as_bytes())
    }

    pub fn dir(self, name: &str) -> Craft {
        self.entry(b'5', name, "", 0, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Craft {
        self.entry(b'2', name, target, 0, b"")
    }

    pub fn hardlink(self, name: &str, target: &str) -> Craft {
        self.entry(b'1', name, target, 0, b"")
    }

    /// An extension header for the entry that follows.
    pub fn pax(self, records: &[(&str, &str)]) -> Craft {
        let mut data = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data += &format!("{length} {key}={value}\n");
        }
        self.entry(b'x', "pax", "", data.len() as u64, data.as_bytes())
    }

    /// The whole, with its end mark.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Makes the checksum of a header right.
pub fn fix_sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|byte| u32::from(*byte)).sum();
    put(block, 148, format!("{sum:06o}\0 ").as_bytes());
}

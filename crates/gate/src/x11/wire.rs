//! Numbers on the wire, in the byte order that the client has chosen.

/// The byte order of a connection: the first byte that its client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `l`
    Little,
    /// `B`
    Big,
}

impl Order {
    /// The 16 bits at `at`; 0 beyond the end, where a caller has already asked for the length that matters.
    pub fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let Some(&[a, b]) = bytes.get(at..at + 2) else { return 0 };
        match self {
            Order::Little => u16::from_le_bytes([a, b]),
            Order::Big => u16::from_be_bytes([a, b]),
        }
    }

    /// The 32 bits at `at`; 0 beyond the end.
    pub fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let Some(&[a, b, c, d]) = bytes.get(at..at + 4) else { return 0 };
        match self {
            Order::Little => u32::from_le_bytes([a, b, c, d]),
            Order::Big => u32::from_be_bytes([a, b, c, d]),
        }
    }

    /// Sets the 16 bits at `at`, if they are there.
    pub fn set16(self, bytes: &mut [u8], at: usize, value: u16) {
        if let Some(place) = bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&self.bytes16(value));
        }
    }

    /// Sets the 32 bits at `at`, if they are there.
    pub fn set32(self, bytes: &mut [u8], at: usize, value: u32) {
        if let Some(place) = bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&self.bytes32(value));
        }
    }

    /// 16 bits as they travel.
    pub fn bytes16(self, value: u16) -> [u8; 2] {
        match self {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        }
    }

    /// 32 bits as they travel.
    pub fn bytes32(self, value: u32) -> [u8; 4] {
        match self {
            Order::Little => value.to_le_bytes(),
            Order::Big => value.to_be_bytes(),
        }
    }
}

/// A length, rounded up to the four bytes that everything on the wire is a multiple of.
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Puts one request together: opcode, the byte after it, and words of four bytes.
pub fn request(order: Order, opcode: u8, second: u8, words: &[u32]) -> Vec<u8> {
    let mut bytes = vec![opcode, second];
    bytes.extend(order.bytes16(1 + words.len() as u16));
    for &word in words {
        bytes.extend(order.bytes32(word));
    }
    bytes
}

/// Puts a ChangeProperty together that replaces a property of bytes. `value` is short: the length has 16 bits.
pub fn set_bytes(order: Order, window: u32, property: u32, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = request(order, 18, 0, &[window, property, kind, 0, 0]);
    // The format is one byte with three of padding after it, which no byte order changes.
    bytes[16..20].copy_from_slice(&[8, 0, 0, 0]);
    order.set32(&mut bytes, 20, value.len() as u32);
    order.set16(&mut bytes, 2, (6 + padded(value.len()) / 4) as u16);
    bytes.extend(value);
    bytes.resize(24 + padded(value.len()), 0);
    bytes
}

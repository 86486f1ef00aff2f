//! What we say in the server's place. Sequence numbers are filled in when it is said.

use crate::x11::wire::{Order, padded};

/// An error about request `opcode`.
pub fn error(order: Order, code: u8, value: u32, opcode: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[1] = code;
    order.set32(&mut bytes, 4, value);
    bytes[10] = opcode;
    bytes
}

/// A reply that is all zero but for its second byte.
pub fn reply(second: u8) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    (bytes[0], bytes[1]) = (1, second);
    bytes
}

/// QueryKeymap: no key is down.
pub fn keymap(order: Order) -> Vec<u8> {
    let mut bytes = reply(0);
    order.set32(&mut bytes, 4, 2);
    bytes.resize(40, 0);
    bytes
}

/// SelectionNotify: nobody has anything for the request `head` (ConvertSelection).
pub fn nothing_to_paste(order: Order, head: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 32];
    bytes[0] = 31;
    order.set32(&mut bytes, 4, order.u32(head, 20));
    for (from, to) in [(4, 8), (8, 12), (12, 16)] {
        order.set32(&mut bytes, to, order.u32(head, from));
    }
    bytes
}

/// ListExtensions.
pub fn extensions(order: Order, names: &[&str]) -> Vec<u8> {
    let mut bytes = reply(names.len() as u8);
    for name in names {
        bytes.push(name.len() as u8);
        bytes.extend(name.as_bytes());
    }
    bytes.resize(padded(bytes.len()), 0);
    let length = (bytes.len() - 32) / 4;
    order.set32(&mut bytes, 4, length as u32);
    bytes
}

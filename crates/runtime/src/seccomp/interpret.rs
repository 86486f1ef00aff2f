//! Runs a filter as the kernel would: what the tests ask instead of loading it.

use super::{Program, emit};

/// `struct seccomp_data` of linux/seccomp.h.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    pub number: u32,
    pub arch: u32,
    pub arguments: [u64; 6],
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(self.arch.to_le_bytes());
        bytes.extend(0x7f00_dead_beef_u64.to_le_bytes()); // The instruction pointer.
        bytes.extend(self.arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let at = offset as usize;
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }
}

/// The filter's return value, and how many instructions it took.
pub fn run(program: &Program, data: &Data) -> (u32, usize) {
    let (mut accumulator, mut at) = (0u32, 0usize);
    for steps in 1.. {
        let i = program.instructions()[at];
        at += 1;
        let mut skip_if = |holds: bool| at += usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            emit::LOAD => accumulator = data.word(i.k),
            emit::AND => accumulator &= i.k,
            emit::JUMP => at += i.k as usize,
            emit::JUMP_EQUAL => skip_if(accumulator == i.k),
            emit::JUMP_AT_LEAST => skip_if(accumulator >= i.k),
            emit::RETURN => return (i.k, steps),
            code => panic!("instruction {code:#x}"),
        }
    }
    unreachable!("jumps only go forward")
}

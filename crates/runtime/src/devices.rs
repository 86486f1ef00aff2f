//! Which device nodes a container may open: rules, and the cgroup filter they compile to.
//!
//! The kernel asks a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` whenever a process of the cgroup opens or makes a
//! device node (security/device_cgroup.c). Everything is refused but what a rule allows. A node's permissions and the
//! user namespace decide before and beside this: the filter is the second lock, and the only one of a privileged
//! container.
//!
//! [`lazaret_sys::bpf`] loads the program and attaches it.

use std::fmt;
use std::str::FromStr;

use lazaret_base::{Error, Kind, Result, error};
use lazaret_sys::bpf::BpfInsn;

/// Allows some accesses to some device nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which kind of node.
    pub kind: NodeKind,
    /// The driver's number; `None`: all.
    pub major: Option<u32>,
    /// The device's number within the driver; `None`: all.
    pub minor: Option<u32>,
    /// What is allowed.
    pub access: Access,
}

/// The kind of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// Both.
    All,
}

/// A set of accesses to a device node. The bits are the kernel's (`BPF_DEVCG_ACC_*` of linux/bpf.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Making a node; it can be made without the right to open it.
    pub const MKNOD: Access = Access(1);
    /// Opening for reading.
    pub const READ: Access = Access(2);
    /// Opening for writing.
    pub const WRITE: Access = Access(4);
    /// Opening.
    pub const OPEN: Access = Access(6);
    /// Everything.
    pub const ALL: Access = Access(7);

    /// Whether all of `other` is in this set.
    pub const fn contains(self, other: Access) -> bool {
        self.0 & other.0 == other.0
    }
}

impl std::ops::BitOr for Access {
    type Output = Access;

    fn bitor(self, other: Access) -> Access {
        Access(self.0 | other.0)
    }
}

const fn char(major: u32, minor: u32, access: Access) -> Rule {
    Rule { kind: NodeKind::Char, major: Some(major), minor: Some(minor), access }
}

/// What every container may do. The numbers are those of the kernel's admin-guide/devices.txt.
pub const DEFAULT_RULES: &[Rule] = &[
    char(1, 3, Access::ALL), // null
    char(1, 5, Access::ALL), // zero
    char(1, 7, Access::ALL), // full
    char(1, 8, Access::ALL), // random
    char(1, 9, Access::ALL), // urandom
    char(5, 0, Access::ALL), // tty
    char(5, 2, Access::ALL), // ptmx
    // The console inside is a pseudo-terminal. The real one is the host's: system installers make the node, and a
    // privileged container could open it.
    char(5, 1, Access::MKNOD),
    // Pseudo-terminals. Those of the host are out of reach: the container has a devpts of its own.
    Rule { kind: NodeKind::Char, major: Some(136), minor: None, access: Access::ALL },
    char(10, 229, Access::ALL), // fuse: file systems of one's own; the kernel confines them to the user namespace
];

/// What `nesting = true` adds: containers inside have networks to build.
pub const NESTING_RULES: &[Rule] = &[
    char(10, 200, Access::ALL), // net/tun
];

/// Compiles rules to a program that allows an access if each part of it (reading, writing, making) is allowed by some
/// rule, and refuses all else. No rule: refuses everything.
pub fn assemble(rules: &[Rule]) -> Vec<BpfInsn> {
    let mut code = vec![
        // struct bpf_cgroup_dev_ctx: access in the upper half and kind in the lower half of a word, major, minor.
        instruction(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        instruction(MOVE_REGISTER, KIND, ACCESS, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(MOVE, VERDICT, 0, 0, ALLOWED),
    ];
    for rule in rules {
        code.extend(try_rule(rule));
    }
    code.push(instruction(MOVE, VERDICT, 0, 0, REFUSED));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

/// If the rule speaks of the node, takes what it allows out of what is asked; nothing left: allowed.
///
/// So `r` by one rule and `w` by another make `rw`, however the rules overlap.
fn try_rule(rule: &Rule) -> Vec<BpfInsn> {
    let kind = match rule.kind {
        NodeKind::Block => Some(1),
        NodeKind::Char => Some(2),
        NodeKind::All => None,
    };
    let questions: Vec<(u8, u32)> = [(KIND, kind), (MAJOR, rule.major), (MINOR, rule.minor)]
        .into_iter()
        .filter_map(|(register, wanted)| Some((register, wanted?)))
        .collect();
    let allow = [
        instruction(AND, ACCESS, 0, 0, !i32::from(rule.access.0)),
        instruction(JUMP_DIFFERENT, ACCESS, 0, 1, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    let mut code = Vec::with_capacity(2 * questions.len() + allow.len());
    for (i, &(register, wanted)) in questions.iter().enumerate() {
        let rest = 2 * (questions.len() - i - 1) + allow.len();
        // "Equal: skip the way out", not "different: skip the rest": the verifier follows the fall-through first, here
        // the path that knows nothing of the node, and then sees that paths that know more can do no worse. The other
        // way round its work grows with the square of the number of rules.
        code.push(instruction(JUMP_EQUAL, register, 0, 1, wanted as i32));
        code.push(instruction(JUMP, 0, 0, rest as i16, 0));
    }
    code.extend(allow);
    code
}

// Registers. The kernel passes the context in the first and takes the verdict from number zero.
const VERDICT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const KIND: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

const REFUSED: i32 = 0;
const ALLOWED: i32 = 1;

/// `BPF_LDX | BPF_MEM | BPF_W`.
const LOAD_WORD: u8 = 0x61;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
/// `BPF_ALU | BPF_MOV | BPF_X`, in 32 bits as the next two.
const MOVE_REGISTER: u8 = 0xbc;
/// `BPF_ALU | BPF_AND | BPF_K`.
const AND: u8 = 0x54;
/// `BPF_ALU | BPF_RSH | BPF_K`.
const SHIFT_RIGHT: u8 = 0x74;
/// `BPF_JMP | BPF_JA`.
const JUMP: u8 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`. Compares 64 bits with the sign-extended operand: device numbers are at most 20 bits.
const JUMP_EQUAL: u8 = 0x15;
/// `BPF_JMP | BPF_JNE | BPF_K`, likewise.
const JUMP_DIFFERENT: u8 = 0x55;
/// `BPF_JMP | BPF_EXIT`.
const EXIT: u8 = 0x95;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> BpfInsn {
    BpfInsn { code, registers: source << 4 | destination, offset, immediate }
}

/// As the kernel's cgroup v1 files and LXC write it: `c 136:* rwm`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            NodeKind::Char => 'c',
            NodeKind::Block => 'b',
            NodeKind::All => 'a',
        };
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// Letters of `rwm`; nothing for the empty set.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (access, letter) in [(Access::READ, "r"), (Access::WRITE, "w"), (Access::MKNOD, "m")] {
            if self.contains(access) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// The largest major and minor the kernel has (linux/kdev_t.h).
const MOST_MAJOR: u32 = (1 << 12) - 1;
const MOST_MINOR: u32 = (1 << 20) - 1;

/// Reads what [`Display`](fmt::Display) writes, and a lone `a` for everything. Anything else is [`Kind::Invalid`].
impl FromStr for Rule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Rule> {
        let parsed = match text.split_ascii_whitespace().collect::<Vec<_>>()[..] {
            ["a"] => Some(Rule { kind: NodeKind::All, major: None, minor: None, access: Access::ALL }),
            [kind, numbers, access] => parse(kind, numbers, access),
            _ => None,
        };
        parsed.ok_or_else(|| {
            error(format!("`{text}` is no device rule")).kind(Kind::Invalid).hint("write it like `c 10:200 rwm`")
        })
    }
}

fn parse(kind: &str, numbers: &str, access: &str) -> Option<Rule> {
    let kind = match kind {
        "c" => NodeKind::Char,
        "b" => NodeKind::Block,
        "a" => NodeKind::All,
        _ => return None,
    };
    let number = |text: &str, most: u32| match text {
        "*" => Some(None),
        _ => text.parse().ok().filter(|n| *n <= most).map(Some),
    };
    let (major, minor) = numbers.split_once(':')?;
    let letters = access.chars().map(|letter| match letter {
        'r' => Some(Access::READ),
        'w' => Some(Access::WRITE),
        'm' => Some(Access::MKNOD),
        _ => None,
    });
    let access = letters.sum::<Option<Access>>().filter(|access| *access != Access::default())?;
    Some(Rule { kind, major: number(major, MOST_MAJOR)?, minor: number(minor, MOST_MINOR)?, access })
}

impl std::iter::Sum for Access {
    fn sum<I: Iterator<Item = Access>>(accesses: I) -> Access {
        accesses.fold(Access::default(), |all, one| all | one)
    }
}

#[cfg(test)]
mod tests;

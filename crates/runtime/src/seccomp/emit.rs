//! Rules to classic BPF, the language of seccomp(2).
//!
//! The call's number is looked up by binary search, so that the cost is a dozen instructions however many calls are
//! listed. Since Linux 5.11 the kernel learns at load time which numbers are allowed whatever their arguments
//! (kernel/seccomp.c, `seccomp_cache_prepare`) and does not run the filter for them at all; for that the way to such a
//! verdict must load nothing but number and architecture, and so it does here. What still runs the filter is calls
//! with conditions, `ioctl` above all: they weigh more in the search and are found in fewer steps.
//!
//! Code is built from the end: a piece is instructions that always return and jump only inside the piece. Pieces
//! join without labels.

use std::collections::BTreeMap;

use lazaret_sys::seccomp::SockFilter;
use rustix::io::Errno;

use super::policy::{Condition, Test};
use super::syscalls::{Arch, Family};

/// What is refused on one architecture: checks by the call's number. Other calls are allowed.
pub type Refused = BTreeMap<u32, Vec<Check>>;

/// Refuses a call that meets all conditions. The first check of a call that applies has the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// No condition: always.
    pub when: Vec<Condition>,
    /// What the caller sees.
    pub errno: Errno,
}

/// `BPF_LD | BPF_W | BPF_ABS`: loads 32 bits of `seccomp_data` at offset `k`.
pub const LOAD: u16 = 0x20;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub const AND: u16 = 0x54;
/// `BPF_JMP | BPF_JA`: skips `k` instructions.
pub const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`: skips `jt` instructions if equal to `k`, else `jf`.
pub const JUMP_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGE | BPF_K`: skips `jt` instructions if `k` or more, else `jf`.
pub const JUMP_AT_LEAST: u16 = 0x35;
/// `BPF_RET | BPF_K`.
pub const RETURN: u16 = 0x06;

/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO`, to which the errno is added.
pub const ERRNO: u32 = 0x0005_0000;

/// Offsets in `struct seccomp_data` (linux/seccomp.h), little endian.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `__X32_SYSCALL_BIT`.
const X32: u32 = 0x4000_0000;

type Code = Vec<SockFilter>;

/// The whole filter: finds the architecture, then the number, then looks at arguments.
pub fn filter(family: Family, refused: &[Refused; 2]) -> Code {
    let [native, compat] = family.arches();
    // No other architecture can run under this kernel; if one could, its numbers would mean something else.
    let mut code = refuse(Errno::NOSYS);
    code = branch(JUMP_EQUAL, compat.audit(), by_number(&refused[1]), code);
    let mut by_native_number = numbers(&refused[0]);
    if native == Arch::X86_64 {
        by_native_number = branch(JUMP_AT_LEAST, X32, x32(), by_native_number);
    }
    by_native_number.insert(0, statement(LOAD, NUMBER));
    code = branch(JUMP_EQUAL, native.audit(), by_native_number, code);
    code.insert(0, statement(LOAD, ARCH));
    code
}

/// Refused, as by a kernel without x32: its numbers would slip past a table that knows only x86_64.
///
/// The number -1 is not x32 but a call that a tracer cancelled (ptrace(2), PTRACE_SYSCALL); the tracer sets its result.
fn x32() -> Code {
    branch(JUMP_EQUAL, u32::MAX, allow(), refuse(Errno::NOSYS))
}

fn by_number(refused: &Refused) -> Code {
    let mut code = numbers(refused);
    code.insert(0, statement(LOAD, NUMBER));
    code
}

/// Finds the number that is in the accumulator.
fn numbers(refused: &Refused) -> Code {
    search(&ranges(refused))
}

/// Numbers from `start` to the next range's start, all treated alike.
struct Range {
    start: u32,
    code: Code,
    /// How often it is expected to be searched for, roughly.
    weight: u32,
}

/// The number line, cut where the treatment changes.
fn ranges(refused: &Refused) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut next = 0;
    for (&number, checks) in refused {
        if number > next {
            add(&mut ranges, next, allow(), 1);
        }
        let conditional = checks.iter().all(|check| !check.when.is_empty());
        add(&mut ranges, number, first_that_applies(checks), if conditional { 16 } else { 1 });
        next = number + 1;
    }
    add(&mut ranges, next, allow(), 1);
    ranges
}

/// Adds a range, or widens the last one if it does the same.
fn add(ranges: &mut Vec<Range>, start: u32, code: Code, weight: u32) {
    if ranges.last().is_none_or(|last| last.code != code) {
        ranges.push(Range { start, code, weight });
    }
}

/// Binary search, halving the weight at each step.
fn search(ranges: &[Range]) -> Code {
    if let [only] = ranges {
        return only.code.clone();
    }
    let total: u32 = ranges.iter().map(|range| range.weight).sum();
    let mut below = 0;
    let balance = |range: &Range| {
        below += range.weight;
        below.abs_diff(total - below)
    };
    let balances: Vec<u32> = ranges[..ranges.len() - 1].iter().map(balance).collect();
    let best = balances.iter().enumerate().min_by_key(|(_, balance)| **balance).map_or(0, |(i, _)| i);
    let (lower, upper) = ranges.split_at(best + 1);
    branch(JUMP_AT_LEAST, upper[0].start, search(upper), search(lower))
}

fn first_that_applies(checks: &[Check]) -> Code {
    let mut code = allow();
    for check in checks.iter().rev() {
        code = refuse_when(check, code);
    }
    code
}

/// Refuses if all conditions are met; goes on with `otherwise` at the first that is not.
fn refuse_when(check: &Check, otherwise: Code) -> Code {
    let mut code = refuse(check.errno);
    for condition in check.when.iter().rev() {
        // `code` comes next if the condition is met, `otherwise` lies behind it.
        let mut test = test(condition, code.len());
        test.append(&mut code);
        code = test;
    }
    if !check.when.is_empty() {
        code.extend(otherwise);
    }
    code
}

/// Falls through if the condition is met, and skips `rest` further instructions if not.
///
/// BPF computes in 32 bits: a 64-bit argument is two words, and they are equal if both halves are.
fn test(condition: &Condition, rest: usize) -> Code {
    let (value, equal) = match condition.test {
        Test::Is(value) => (value, true),
        Test::IsNot(value) => (value, false),
    };
    let low_at = ARGUMENTS + 8 * u32::from(condition.argument);
    let low = masked(low_at, condition.mask as u32);
    let (met, unmet) = (0, rest);
    let (if_equal, if_different) = if equal { (met, unmet) } else { (unmet, met) };
    let mut code = low;
    code.extend(jump(JUMP_EQUAL, value as u32, if_equal, if_different));

    let high_mask = (condition.mask >> 32) as u32;
    if high_mask != 0 || value >> 32 != 0 {
        // The lower half decides only if the upper halves are equal; else its code is skipped as well.
        let mut high = masked(low_at + 4, high_mask);
        high.extend(jump(JUMP_EQUAL, (value >> 32) as u32, 0, code.len() + if_different));
        high.append(&mut code);
        code = high;
    }
    code
}

/// Loads a word and keeps the bits of the mask.
fn masked(offset: u32, mask: u32) -> Code {
    let mut code = vec![statement(LOAD, offset)];
    if mask != u32::MAX {
        code.push(statement(AND, mask));
    }
    code
}

/// Compares the accumulator with `k` and goes on with one of two pieces.
fn branch(comparison: u16, k: u32, yes: Code, mut no: Code) -> Code {
    let mut code = jump(comparison, k, no.len(), 0);
    code.append(&mut no);
    code.extend(yes);
    code
}

/// Skips `yes` or `no` instructions. A comparison can skip 255; beyond that it chooses between two plain jumps.
fn jump(comparison: u16, k: u32, yes: usize, no: usize) -> Code {
    if let (Ok(jt), Ok(jf)) = (u8::try_from(yes), u8::try_from(no)) {
        return vec![SockFilter { code: comparison, jt, jf, k }];
    }
    vec![SockFilter { code: comparison, jt: 0, jf: 1, k }, statement(JUMP, yes as u32 + 1), statement(JUMP, no as u32)]
}

fn allow() -> Code {
    vec![statement(RETURN, ALLOW)]
}

fn refuse(errno: Errno) -> Code {
    vec![statement(RETURN, ERRNO | errno.raw_os_error() as u32)]
}

fn statement(code: u16, k: u32) -> SockFilter {
    SockFilter { code, jt: 0, jf: 0, k }
}

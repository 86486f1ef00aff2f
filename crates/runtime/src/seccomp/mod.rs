//! The seccomp filter of a container: which system calls it may make.
//!
//! [`policy::DENIED`] says what is refused and why. A [`Profile`] is that table with the user's wishes applied; it
//! tells what it refuses, and compiles to the [`Program`] that the kernel runs before every call. All of it is pure;
//! [`lazaret_sys::seccomp::set_filter`] loads the program.

mod emit;
#[cfg(test)]
mod interpret;
pub mod policy;
pub mod syscalls;
#[cfg(test)]
mod tests;

use lazaret_base::{Kind, Result, error};
use lazaret_sys::seccomp::SockFilter;
use rustix::io::Errno;

use emit::{Check, Refused};
use policy::{Condition, DENIED};
use syscalls::{Arch, Family, Syscall};

/// What the user says about system calls.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Containers and sandboxes may be made inside: opens the groups marked so in the table.
    pub nesting: bool,
    /// Names of calls to open, for all uses.
    pub allow: &'a [String],
    /// Names of calls to refuse with `EPERM`, for all uses.
    pub deny: &'a [String],
}

/// Compiles the filter for the running machine's architectures.
///
/// Fails as [`Profile::new`] does, and with [`Kind::Missing`] on an architecture without a table.
pub fn compile(options: &Options<'_>) -> Result<Program> {
    Ok(Profile::new(options)?.program(Family::host()?))
}

/// What a container is refused: the table, with the user's wishes applied.
#[derive(Clone, Debug)]
pub struct Profile {
    /// The first rule of a call that applies has the verdict; no rule: allowed.
    rules: Vec<Rule>,
}

/// One line of a profile.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Why: the name of its group in the table, or that the user asked for it.
    pub group: &'static str,
    /// The call.
    pub syscall: Syscall,
    /// Which uses are refused, in words; empty if all are.
    pub uses: &'static str,
    /// Which uses are refused: those that meet all conditions.
    pub when: &'static [Condition],
    /// What the program gets to see.
    pub errno: Errno,
}

impl Profile {
    /// Applies the user's wishes to the table.
    ///
    /// A name that is no system call, or that is both allowed and denied, is [`Kind::Invalid`].
    pub fn new(options: &Options<'_>) -> Result<Profile> {
        let allowed = options.allow.iter().map(|name| Syscall::named(name)).collect::<Result<Vec<_>>>()?;
        let denied = options.deny.iter().map(|name| Syscall::named(name)).collect::<Result<Vec<_>>>()?;
        if let Some(both) = denied.iter().find(|call| allowed.contains(call)) {
            let sentence = format!("the system call `{}` is both allowed and denied", both.name);
            return Err(error(sentence).kind(Kind::Invalid).hint("take it out of one of the two lists"));
        }
        let mut rules = Vec::new();
        for group in DENIED.iter().filter(|group| !(options.nesting && group.opened_by_nesting)) {
            for call in group.calls {
                let syscall = Syscall::named(call.name)?;
                // A call that the user names is wholly in the user's hands.
                if !allowed.contains(&syscall) && !denied.contains(&syscall) {
                    let (group, errno) = (group.name, group.errno);
                    rules.push(Rule { group, syscall, uses: call.uses, when: call.when, errno });
                }
            }
        }
        for syscall in denied {
            rules.push(Rule { group: "by configuration", syscall, uses: "", when: &[], errno: Errno::PERM });
        }
        Ok(Profile { rules })
    }

    /// The rules in the table's order, the user's last.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// One line for each group, as `lazaret plan` shows it: `kernel log (EPERM): syslog`.
    pub fn describe(&self) -> Vec<String> {
        self.rules
            .chunk_by(|a, b| a.group == b.group)
            .map(|rules| {
                let calls: Vec<String> = rules.iter().map(Rule::describe).collect();
                format!("{} ({}): {}", rules[0].group, symbol(rules[0].errno), calls.join(", "))
            })
            .collect()
    }

    /// The filter for a machine of that family, both its architectures.
    pub fn program(&self, family: Family) -> Program {
        Program(emit::filter(family, &family.arches().map(|arch| self.refused(arch))))
    }

    /// The rules by number. A call that `arch` does not have needs no rule there.
    fn refused(&self, arch: Arch) -> Refused {
        let mut refused = Refused::new();
        for rule in &self.rules {
            if let Some(number) = rule.syscall.number(arch) {
                let check = Check { when: rule.when.to_vec(), errno: rule.errno };
                refused.entry(number).or_default().push(check);
            }
        }
        refused
    }
}

impl Rule {
    fn describe(&self) -> String {
        match self.uses {
            "" => self.syscall.name.to_owned(),
            uses => format!("{} [{uses}]", self.syscall.name),
        }
    }
}

/// The errnos of the table by their C names.
fn symbol(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSYS => "ENOSYS",
        Errno::AFNOSUPPORT => "EAFNOSUPPORT",
        _ => "EPERM",
    }
}

/// A compiled filter, right for the kernel: it starts, ends and jumps where it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(Vec<SockFilter>);

/// `BPF_MAXINSNS` of linux/bpf_common.h.
const MOST_INSTRUCTIONS: usize = 4096;
/// Size of `struct seccomp_data`.
const DATA_BYTES: u32 = 64;

impl Program {
    /// What [`lazaret_sys::seccomp::set_filter`] takes.
    pub fn instructions(&self) -> &[SockFilter] {
        &self.0
    }

    /// Eight bytes for each instruction, little endian, as in the kernel's `struct sock_filter`. The same options give
    /// the same bytes on every run of one build.
    pub fn to_bytes(&self) -> Vec<u8> {
        let words = self.0.iter().map(|i| {
            let [a, b] = i.code.to_le_bytes();
            let [c, d, e, f] = i.k.to_le_bytes();
            [a, b, i.jt, i.jf, c, d, e, f]
        });
        words.flatten().collect()
    }

    /// Reads what [`Program::to_bytes`] wrote.
    ///
    /// Bytes that are not a filter as written here (a torn file, another program's filter) are [`Kind::Invalid`]: each
    /// instruction must be one of those in use, with its jumps inside the program and its verdict "allow" or an errno.
    pub fn from_bytes(bytes: &[u8]) -> Result<Program> {
        let invalid = |what: String| error(format!("not a compiled seccomp filter: {what}")).kind(Kind::Invalid);
        let (words, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || words.is_empty() || words.len() > MOST_INSTRUCTIONS {
            return Err(invalid(format!("{} bytes", bytes.len())));
        }
        let instruction = |&[a, b, jt, jf, c, d, e, f]: &[u8; 8]| SockFilter {
            code: u16::from_le_bytes([a, b]),
            jt,
            jf,
            k: u32::from_le_bytes([c, d, e, f]),
        };
        let program: Vec<SockFilter> = words.iter().map(instruction).collect();
        for (at, i) in program.iter().enumerate() {
            if !is_sound(i, program.len() - at - 1) {
                return Err(invalid(format!("instruction {at} is unknown or leaves the program")));
            }
        }
        Ok(Program(program))
    }
}

/// Whether the kernel would take the instruction with `following` others behind it. One that can go on needs another.
fn is_sound(i: &SockFilter, following: usize) -> bool {
    let inside = |skipped: u32| (skipped as usize) < following;
    match i.code {
        emit::LOAD => i.k.is_multiple_of(4) && i.k < DATA_BYTES && inside(0),
        emit::AND => inside(0),
        emit::JUMP => inside(i.k),
        emit::JUMP_EQUAL | emit::JUMP_AT_LEAST => inside(i.jt.into()) && inside(i.jf.into()),
        emit::RETURN => i.k == emit::ALLOW || (emit::ERRNO + 1..emit::ERRNO + 4096).contains(&i.k),
        _ => false,
    }
}

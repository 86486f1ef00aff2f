//! The filter against the rules, in a small interpreter and in the kernel.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lazaret_sys::bpf::{bpf_attach, bpf_detach, bpf_prog_load_cgroup_device};
use proptest::prelude::*;
use rustix::io::Errno;

use super::*;

fn rule(text: &str) -> Rule {
    text.parse().unwrap()
}

/// Runs the program as the kernel would, on one access to one node.
fn allows(program: &[BpfInsn], kind: NodeKind, major: u32, minor: u32, access: Access) -> bool {
    let kind = if kind == NodeKind::Block { 1 } else { 2 };
    let context = [u32::from(access.0) << 16 | kind, major, minor];
    let mut registers = [0u64; 6];
    let mut at = 0;
    loop {
        let i = program[at];
        at += 1;
        let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        match i.code {
            LOAD_WORD => registers[to] = context[i.offset as usize / 4].into(),
            MOVE => registers[to] = i64::from(i.immediate) as u64,
            MOVE_REGISTER => registers[to] = registers[from] & 0xffff_ffff,
            AND => registers[to] = (registers[to] as u32 & i.immediate as u32).into(),
            SHIFT_RIGHT => registers[to] = (registers[to] as u32 >> i.immediate).into(),
            JUMP => at += i.offset as usize,
            JUMP_EQUAL if registers[to] == i64::from(i.immediate) as u64 => at += i.offset as usize,
            JUMP_DIFFERENT if registers[to] != i64::from(i.immediate) as u64 => at += i.offset as usize,
            JUMP_EQUAL | JUMP_DIFFERENT => {}
            EXIT => return registers[usize::from(VERDICT)] != 0,
            code => panic!("instruction {code:#x}"),
        }
    }
}

#[test]
fn a_container_has_the_usual_nodes_and_no_disk_or_kernel_memory() {
    let program = assemble(DEFAULT_RULES);
    let open = |kind, major, minor| allows(&program, kind, major, minor, Access::OPEN);
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, 0), (136, 70_000), (10, 229)] {
        assert!(open(NodeKind::Char, major, minor), "{major}:{minor}");
    }
    // mem, kmsg, the host's consoles, tun; disks with numbers of allowed character devices.
    for (major, minor) in [(1, 1), (1, 11), (4, 0), (4, 1), (5, 1), (10, 200)] {
        assert!(!open(NodeKind::Char, major, minor), "{major}:{minor}");
    }
    for (major, minor) in [(8, 0), (259, 0), (1, 3), (136, 0)] {
        assert!(!open(NodeKind::Block, major, minor), "{major}:{minor}");
    }
    assert!(allows(&program, NodeKind::Char, 5, 1, Access::MKNOD));
    assert!(!allows(&program, NodeKind::Char, 1, 1, Access::MKNOD));
}

#[test]
fn nesting_adds_tunnels() {
    let program = assemble(&[DEFAULT_RULES, NESTING_RULES].concat());
    assert!(allows(&program, NodeKind::Char, 10, 200, Access::OPEN));
}

#[test]
fn rules_add_up() {
    let program = assemble(&[rule("c *:* r"), rule("c 1:* w"), rule("a 1:3 m")]);
    assert!(allows(&program, NodeKind::Char, 1, 3, Access::ALL));
    assert!(allows(&program, NodeKind::Char, 1, 5, Access::OPEN));
    assert!(!allows(&program, NodeKind::Char, 1, 5, Access::ALL));
    assert!(!allows(&program, NodeKind::Char, 2, 5, Access::OPEN));
    assert!(allows(&program, NodeKind::Block, 1, 3, Access::MKNOD));
    assert!(!allows(&program, NodeKind::Block, 1, 3, Access::READ));
}

#[test]
fn a_rule_reads_as_lxc_writes_it() {
    assert_eq!(rule("c 10:200 rwm"), NESTING_RULES[0]);
    assert_eq!(rule(" c  136:*  wr").to_string(), "c 136:* rw");
    assert_eq!(rule("a").to_string(), "a *:* rwm");
    for wrong in ["", "c", "x 1:3 rwm", "c 1 rwm", "c 1:3", "c 1:3 rwx", "c 1:-3 r", "c 4096:0 r", "c 1:1048576 r"] {
        let e = wrong.parse::<Rule>().unwrap_err();
        assert_eq!((e.what(), e.advice()), (Kind::Invalid, Some("write it like `c 10:200 rwm`")), "{wrong}");
    }
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let kind = proptest::sample::select(vec![NodeKind::Char, NodeKind::Block, NodeKind::All]);
    let number = || proptest::option::of(0..3u32);
    let rule = (kind, number(), number(), 1..8u8).prop_map(|(kind, major, minor, access)| Rule {
        kind,
        major,
        minor,
        access: Access(access),
    });
    proptest::collection::vec(rule, 0..40)
}

proptest! {
    #[test]
    fn any_rules_mean_the_same_compiled(rules in rules()) {
        let program = assemble(&rules);
        for kind in [NodeKind::Char, NodeKind::Block] {
            let all = (0..3).flat_map(|a| (0..3).flat_map(move |b| (1..8).map(move |c| (a, b, c))));
            for (major, minor, access) in all {
                let speaks_of_it = |rule: &&Rule| {
                    (rule.kind == kind || rule.kind == NodeKind::All)
                        && rule.major.is_none_or(|m| m == major)
                        && rule.minor.is_none_or(|m| m == minor)
                };
                let allowed: Access = rules.iter().filter(speaks_of_it).map(|rule| rule.access).sum();
                let access = Access(access);
                prop_assert_eq!(allows(&program, kind, major, minor, access), allowed.contains(access));
            }
        }
    }

    #[test]
    fn any_rule_reads_as_it_was_written(rules in rules()) {
        for one in rules {
            prop_assert_eq!(rule(&one.to_string()), one);
        }
    }
}

/// A cgroup with a shell in it that opens what it is told; both are gone at the end.
struct Cell {
    cgroup: PathBuf,
    shell: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Cell {
    fn new(name: &str) -> Cell {
        let cgroup = unified_hierarchy().join(format!("lztest-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let script = r#"while read -r redirection; do
            if eval "exec 3$redirection" 2>&-; then echo open; else echo refused; fi
        done"#;
        // bash: `exec` with a failing redirection ends other shells.
        let mut shell =
            Command::new("bash").args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        fs::write(cgroup.join("cgroup.procs"), shell.id().to_string()).unwrap();
        let answers = BufReader::new(shell.stdout.take().unwrap());
        Cell { cgroup, shell, answers }
    }

    fn fd(&self) -> OwnedFd {
        fs::File::open(&self.cgroup).unwrap().into()
    }

    /// Whether the shell can do this redirection: `</dev/null`.
    fn can(&mut self, redirection: &str) -> bool {
        writeln!(self.shell.stdin.as_mut().unwrap(), "{redirection}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        match answer.trim_end() {
            "open" => true,
            "refused" => false,
            other => panic!("the shell said `{other}`"),
        }
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // End of input ends the shell; a cgroup can be removed once its last process was waited for.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
        fs::remove_dir(&self.cgroup).unwrap();
    }
}

/// Where cgroup v2 is mounted, alone or beside v1.
fn unified_hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).expect("a cgroup2 mount");
    Path::new(line.split(' ').nth(1).unwrap()).to_owned()
}

fn load(rules: &[&str]) -> OwnedFd {
    let rules: Vec<Rule> = rules.iter().map(|text| rule(text)).collect();
    bpf_prog_load_cgroup_device(&assemble(&rules)).unwrap()
}

#[test]
#[ignore = "needs root and a writable cgroup v2 tree"]
fn the_kernel_opens_what_the_rules_allow() {
    let mut cell = Cell::new("open");
    assert!(cell.can("</dev/ptmx"));
    let program = load(&["c 1:3 rw", "c 1:5 r"]);
    bpf_attach(cell.fd().as_fd(), program.as_fd(), None).unwrap();
    assert!(cell.can("<>/dev/null"));
    assert!(cell.can("</dev/zero"));
    assert!(!cell.can(">/dev/zero"));
    assert!(!cell.can("<>/dev/zero"));
    assert!(!cell.can("</dev/ptmx"));
    assert!(!cell.can("</dev/urandom"));
    assert!(cell.can("</proc/self/status"));
}

#[test]
#[ignore = "needs root and a writable cgroup v2 tree"]
fn rules_are_replaced_while_the_container_runs() {
    let mut cell = Cell::new("replace");
    let before = load(&["c 1:3 rw"]);
    let after = load(&["c 1:3 rw", "c 5:2 rw"]);
    let none = load(&[]);
    bpf_attach(cell.fd().as_fd(), before.as_fd(), None).unwrap();
    assert!(!cell.can("<>/dev/ptmx"));
    bpf_attach(cell.fd().as_fd(), after.as_fd(), Some(before.as_fd())).unwrap();
    assert!(cell.can("<>/dev/ptmx"));
    // The first one is no longer there to be replaced or taken off.
    assert_eq!(bpf_attach(cell.fd().as_fd(), none.as_fd(), Some(before.as_fd())), Err(Errno::NOENT));
    assert_eq!(bpf_detach(cell.fd().as_fd(), before.as_fd()), Err(Errno::NOENT));
    bpf_attach(cell.fd().as_fd(), none.as_fd(), Some(after.as_fd())).unwrap();
    assert!(!cell.can("</dev/null"));
    bpf_detach(cell.fd().as_fd(), none.as_fd()).unwrap();
    assert!(cell.can("</dev/null"));
    assert!(cell.can("<>/dev/ptmx"));
}

#[test]
#[ignore = "needs root and a writable cgroup v2 tree"]
fn a_second_filter_only_takes_away() {
    let mut cell = Cell::new("both");
    let (null, all) = (load(&["c 1:3 rw"]), load(&["a"]));
    bpf_attach(cell.fd().as_fd(), null.as_fd(), None).unwrap();
    bpf_attach(cell.fd().as_fd(), all.as_fd(), None).unwrap();
    assert!(cell.can("</dev/null"));
    assert!(!cell.can("</dev/zero"));
}

#[test]
#[ignore = "needs root and a writable cgroup v2 tree"]
fn the_kernel_takes_programs_of_many_rules() {
    let mut cell = Cell::new("many");
    let mut rules: Vec<Rule> = (0..4000).map(|minor| char(200, minor, Access::OPEN)).collect();
    rules.extend(DEFAULT_RULES);
    let program = bpf_prog_load_cgroup_device(&assemble(&rules)).unwrap();
    bpf_attach(cell.fd().as_fd(), program.as_fd(), None).unwrap();
    assert!(cell.can("<>/dev/null"));
    assert!(!cell.can("</dev/console"));
}

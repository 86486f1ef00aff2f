//! The filter against the table, in the interpreter and in the kernel.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::emit::{self, ALLOW, ERRNO};
use super::interpret::{Data, run};
use super::policy::Test;
use super::*;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn profile(nesting: bool, allow: &[&str], deny: &[&str]) -> Profile {
    Profile::new(&Options { nesting, allow: &names(allow), deny: &names(deny) }).unwrap()
}

/// What the filter says to a call by name: 0 or the errno's C name.
fn verdict(profile: &Profile, arch: Arch, call: &str, arguments: &[u64]) -> &'static str {
    let family = if profile_has(Family::X86, arch) { Family::X86 } else { Family::Arm };
    let mut padded = [0; 6];
    padded[..arguments.len()].copy_from_slice(arguments);
    let number = Syscall::named(call).unwrap().number(arch).unwrap();
    let data = Data { number, arch: arch.audit(), arguments: padded };
    match run(&profile.program(family), &data).0 {
        ALLOW => "allowed",
        refused => symbol(Errno::from_raw_os_error((refused - ERRNO) as i32)),
    }
}

fn profile_has(family: Family, arch: Arch) -> bool {
    family.arches().contains(&arch)
}

const EVERY_ARCH: [Arch; 4] = [Arch::X86_64, Arch::I386, Arch::Aarch64, Arch::Arm];

#[test]
fn a_system_container_boots_and_the_host_kernel_is_closed() {
    let profile = profile(false, &[], &[]);
    for arch in EVERY_ARCH {
        let says = |call: &str, arguments: &[u64]| verdict(&profile, arch, call, arguments);
        for open in ["mount", "pivot_root", "setns", "open_tree", "move_mount", "ptrace", "reboot", "seccomp"] {
            assert_eq!(says(open, &[]), "allowed", "{open}");
        }
        for closed in ["init_module", "kexec_load", "bpf", "open_by_handle_at", "swapon", "syslog", "quotactl_fd"] {
            assert_eq!(says(closed, &[]), "EPERM", "{closed}");
        }
        for absent in ["io_uring_setup", "clone3", "keyctl", "mbind"] {
            assert_eq!(says(absent, &[]), "ENOSYS", "{absent}");
        }
        assert_eq!(says("unshare", &[0x0002_0000]), "allowed"); // CLONE_NEWNS
        assert_eq!(says("unshare", &[0x1002_0000]), "EPERM"); // CLONE_NEWNS | CLONE_NEWUSER
        assert_eq!(says("clone", &[17]), "allowed");
        assert_eq!(says("clone", &[0x1000_0011]), "EPERM");
        assert_eq!(says("socket", &[1, 1]), "allowed");
        assert_eq!(says("socket", &[40, 1]), "EAFNOSUPPORT");
        assert_eq!(says("socket", &[38, 5]), "EAFNOSUPPORT");
        assert_eq!(says("umount2", &[0, 2]), "allowed"); // MNT_DETACH
        assert_eq!(says("umount2", &[0, 3]), "EPERM"); // MNT_DETACH | MNT_FORCE
    }
}

#[test]
fn bits_that_the_kernel_ignores_do_not_hide_a_call() {
    let profile = profile(false, &[], &[]);
    let says = |call: &str, arguments: &[u64]| verdict(&profile, Arch::X86_64, call, arguments);
    assert_eq!(says("ioctl", &[0, 0x5401]), "allowed");
    assert_eq!(says("ioctl", &[0, 0x5412]), "EPERM");
    assert_eq!(says("ioctl", &[0, 0x1_0000_5412]), "EPERM");
    assert_eq!(says("socket", &[0xffff_ffff_0000_0028]), "EAFNOSUPPORT");
}

#[test]
fn only_common_personalities_are_open() {
    let profile = profile(false, &[], &[]);
    for (personality, expected) in [
        (0, "allowed"),
        (0x8, "allowed"),
        (0x0002_0008, "allowed"),
        (0x0004_0000, "allowed"),
        (0xffff_ffff, "allowed"),
        (0xffff_ffff_ffff_ffff, "allowed"), // The query, sign-extended.
        (0x6, "EPERM"),
        (0x0040_0000, "EPERM"),
        (0xffff_fff7, "EPERM"),
    ] {
        assert_eq!(verdict(&profile, Arch::X86_64, "personality", &[personality]), expected, "{personality:#x}");
    }
}

#[test]
fn nesting_opens_namespaces_and_keys_but_no_kernel_programs() {
    let profile = profile(true, &[], &[]);
    for arch in EVERY_ARCH {
        let says = |call: &str, arguments: &[u64]| verdict(&profile, arch, call, arguments);
        assert_eq!(says("unshare", &[0x1000_0000]), "allowed");
        assert_eq!(says("clone3", &[]), "allowed");
        assert_eq!(says("keyctl", &[]), "allowed");
        assert_eq!(says("bpf", &[]), "EPERM");
        assert_eq!(says("io_uring_setup", &[]), "ENOSYS");
    }
}

#[test]
fn the_user_has_the_last_word_on_a_call() {
    let profile = profile(false, &["bpf", "ioctl"], &["ptrace", "clone", "keyctl"]);
    let says = |call: &str, arguments: &[u64]| verdict(&profile, Arch::X86_64, call, arguments);
    assert_eq!(says("bpf", &[]), "allowed");
    assert_eq!(says("ioctl", &[0, 0x5412]), "allowed");
    assert_eq!(says("ptrace", &[]), "EPERM");
    assert_eq!(says("clone", &[17]), "EPERM");
    assert_eq!(says("keyctl", &[]), "EPERM");
}

#[test]
fn a_wrong_list_is_refused_with_advice() {
    let refused = |allow: &[&str], deny: &[&str]| {
        let e = Profile::new(&Options { nesting: false, allow: &names(allow), deny: &names(deny) }).unwrap_err();
        assert_eq!(e.what(), Kind::Invalid);
        format!("{e}; {}", e.advice().unwrap())
    };
    assert_eq!(refused(&[], &["prtace"]), "no system call is named `prtace`; did you mean `ptrace`?");
    assert_eq!(
        refused(&["bpf"], &["bpf"]),
        "the system call `bpf` is both allowed and denied; take it out of one of the two lists"
    );
}

#[test]
fn a_profile_tells_what_it_refuses() {
    insta::assert_snapshot!(profile(true, &["syslog"], &["mount", "ptrace"]).describe().join("\n"), @"
    kernel code (EPERM): init_module, finit_module, delete_module, kexec_load, kexec_file_load
    kernel programs (EPERM): bpf, perf_event_open
    io_uring (ENOSYS): io_uring_setup, io_uring_enter, io_uring_register
    page fault handling (EPERM): userfaultfd
    file handles (EPERM): open_by_handle_at
    file watching (EPERM): fanotify_init
    host resources (EPERM): acct, swapon, swapoff, quotactl, quotactl_fd
    host clock (EPERM): settimeofday, stime, clock_settime, clock_settime64
    hardware ports (EPERM): iopl, ioperm, pciconfig_iobase, pciconfig_read, pciconfig_write
    personalities (EPERM): personality [but for 32-bit, UNAME26, ADDR_NO_RANDOMIZE]
    sockets past the network (EAFNOSUPPORT): socket [AF_VSOCK], socket [AF_ALG]
    terminal input (EPERM): ioctl [TIOCSTI], ioctl [TIOCLINUX]
    terminal hangup (EPERM): vhangup
    forced unmount (EPERM): umount2 [MNT_FORCE]
    memory placement (ENOSYS): get_mempolicy, set_mempolicy, set_mempolicy_home_node, mbind, migrate_pages, move_pages
    security modules (ENOSYS): lsm_get_self_attr, lsm_set_self_attr, lsm_list_modules
    relics (ENOSYS): _sysctl, bdflush, create_module, get_kernel_syms, lookup_dcookie, nfsservctl, query_module, sysfs, uselib, ustat, vm86, vm86old
    by configuration (EPERM): mount, ptrace
    ");
}

#[test]
fn foreign_numbers_and_architectures_are_refused() {
    let x86 = profile(false, &[], &[]).program(Family::X86);
    let says = |arch: u32, number: u32| run(&x86, &Data { number, arch, arguments: [0; 6] }).0;
    let enosys = ERRNO + Errno::NOSYS.raw_os_error() as u32;
    let x32_getpid = 0x4000_0000 + 39;
    assert_eq!(says(Arch::X86_64.audit(), x32_getpid), enosys);
    // A call that a tracer cancelled is not a call.
    assert_eq!(says(Arch::X86_64.audit(), u32::MAX), ALLOW);
    assert_eq!(says(Arch::I386.audit(), 20), ALLOW);
    for foreign in [Arch::Aarch64.audit(), Arch::Arm.audit(), 0x8000_0016] {
        assert_eq!(says(foreign, 0), enosys);
    }
}

#[test]
fn no_call_is_looked_up_for_long() {
    let profile = profile(false, &[], &[]);
    for family in [Family::X86, Family::Arm] {
        let program = profile.program(family);
        for arch in family.arches() {
            let steps = |number| run(&program, &Data { number, arch: arch.audit(), arguments: [0; 6] }).1;
            let longest = (0..1000).map(steps).max().unwrap();
            assert!(longest <= 24, "{arch:?}: {longest} instructions");
            let ioctl = steps(Syscall::named("ioctl").unwrap().number(arch).unwrap());
            assert!(ioctl <= 14, "{arch:?}: {ioctl} instructions for an ioctl");
        }
    }
}

#[test]
fn a_filter_that_refuses_everything_still_fits() {
    let every: Vec<String> = syscalls::names().map(str::to_owned).collect();
    let every_second: Vec<String> = every.iter().step_by(2).cloned().collect();
    for deny in [every, every_second] {
        let profile = Profile::new(&Options { nesting: false, allow: &[], deny: &deny }).unwrap();
        for family in [Family::X86, Family::Arm] {
            assert!(profile.program(family).instructions().len() <= MOST_INSTRUCTIONS);
        }
    }
}

#[test]
fn bytes_come_back_as_the_program_they_were() {
    for family in [Family::X86, Family::Arm] {
        let program = profile(false, &[], &["mount"]).program(family);
        assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
    }
}

#[test]
fn bytes_of_anything_else_are_refused() {
    let good = profile(false, &[], &[]).program(Family::X86).to_bytes();
    let refused = |bytes: &[u8]| Program::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(refused(&[]), "not a compiled seccomp filter: 0 bytes");
    assert_eq!(refused(&good[..good.len() - 1]), format!("not a compiled seccomp filter: {} bytes", good.len() - 1));
    // Torn at an instruction's edge: some jump leads out, or the last instruction goes on.
    for end in (8..good.len()).step_by(8) {
        assert!(refused(&good[..end]).contains("leaves the program"));
    }
    let kill_all = [6, 0, 0, 0, 0, 0, 0, 0x80];
    assert!(refused(&kill_all).contains("instruction 0"));
    assert!(refused(&good.repeat(4096 / (good.len() / 8) + 1)).contains("bytes"));
}

/// The verdict by the plain meaning of the rules.
fn plain(checks: &[Check], arguments: &[u64; 6]) -> u32 {
    let met = |condition: &Condition| {
        let bits = arguments[usize::from(condition.argument)] & condition.mask;
        match condition.test {
            Test::Is(value) => bits == value,
            Test::IsNot(value) => bits != value,
        }
    };
    let applies = |check: &&Check| check.when.iter().all(met);
    checks.iter().find(applies).map_or(ALLOW, |check| ERRNO + check.errno.raw_os_error() as u32)
}

/// Values that the rules look for, and those next to them that must not be mistaken for them.
fn value() -> impl Strategy<Value = u64> {
    let notable = [0, 1, 3, 38, 40, 0x8, 0x6, 0x5412, 0x541c, 0x1_0000_5412, 0x1000_0000, 0x1000_0011, 0xffff_ffff];
    let high = [1 << 32, 1 << 63, 0x0004_0000, 0xffff_ffff_0000_0000, 0xffff_ffff_0000_0028, u64::MAX];
    prop_oneof![4 => proptest::sample::select([&notable[..], &high[..]].concat()), 1 => any::<u64>()]
}

fn condition() -> impl Strategy<Value = Condition> {
    (0..2u8, value(), value(), any::<bool>()).prop_map(|(argument, mask, value, is)| {
        let value = value & mask;
        Condition { argument, mask, test: if is { Test::Is(value) } else { Test::IsNot(value) } }
    })
}

fn check() -> impl Strategy<Value = Check> {
    (proptest::collection::vec(condition(), 0..4), 1..133i32)
        .prop_map(|(when, errno)| Check { when, errno: Errno::from_raw_os_error(errno) })
}

/// Few numbers, so that neighbours are frequent, or many, so that the code needs long jumps.
fn refused() -> impl Strategy<Value = Refused> {
    let checks = || proptest::collection::vec(check(), 1..4);
    prop_oneof![
        proptest::collection::btree_map(0..12u32, checks(), 0..12),
        proptest::collection::btree_map(0..600u32, checks(), 0..300),
        proptest::collection::btree_map(0xf_0000..0xf_0008u32, checks(), 0..8),
    ]
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::X86), Just(Family::Arm)]
}

proptest! {
    #[test]
    fn any_rules_mean_the_same_compiled(
        family in family(),
        tables in [refused(), refused()],
        calls in proptest::collection::vec((0..2usize, 0..620u32, [value(), value()]), 64),
    ) {
        let program = Program(emit::filter(family, &tables));
        let empty = Vec::new();
        for (i, number, [a, b]) in calls {
            // Aim at what is listed more often than chance would.
            let listed: Vec<u32> = tables[i].keys().copied().collect();
            let number = listed.get(number as usize).copied().unwrap_or(number);
            let arguments = [a, b, 0, 0, 0, 0];
            let data = Data { number, arch: family.arches()[i].audit(), arguments };
            prop_assert_eq!(run(&program, &data).0, plain(tables[i].get(&number).unwrap_or(&empty), &arguments));
        }
    }

    #[test]
    fn any_profile_means_the_same_compiled(
        family in family(),
        nesting: bool,
        deny in proptest::sample::subsequence(vec!["ioctl", "mount", "read", "set_tls", "clone", "socketcall"], 0..4),
        arguments in proptest::collection::vec([value(), value()], 16),
    ) {
        let profile = profile(nesting, &["umount2"], &deny);
        let program = profile.program(family);
        for arch in family.arches() {
            let mut by_number: BTreeMap<u32, Vec<Check>> = BTreeMap::new();
            for rule in &profile.rules {
                if let Some(number) = rule.syscall.number(arch) {
                    let check = Check { when: rule.when.to_vec(), errno: rule.errno };
                    by_number.entry(number).or_default().push(check);
                }
            }
            for number in (0..1000).chain(0xf_0000..0xf_0010) {
                let checks = by_number.get(&number).map_or(&[][..], Vec::as_slice);
                for [a, b] in &arguments {
                    let arguments = [*a, *b, 0, 0, 0, 0];
                    let data = Data { number, arch: arch.audit(), arguments };
                    prop_assert_eq!(run(&program, &data).0, plain(checks, &arguments), "{:?} {}", arch, number);
                }
            }
        }
    }
}

/// The same questions, answered by the kernel.
#[cfg(target_arch = "x86_64")]
mod kernel {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    const ME: &str = "LAZARET_TEST_UNDER_FILTER";

    /// Runs `test` under the filter in a process of its own, since a filter can't be taken back.
    ///
    /// The process is this test binary, told to run only the calling test, which comes here again.
    fn under_filter(name: &str, nesting: bool, test: impl FnOnce()) {
        if std::env::var_os(ME).is_some() {
            let program = compile(&Options { nesting, allow: &[], deny: &[] }).unwrap();
            rustix::thread::set_no_new_privs(true).unwrap();
            lazaret_sys::seccomp::set_filter(program.instructions()).unwrap();
            return test();
        }
        let path = format!("{}::{name}", module_path!().split_once("::").unwrap().1);
        let mut child = Command::new(std::env::current_exe().unwrap());
        let output = child.args([&path, "--exact", "--nocapture"]).env(ME, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
    }

    /// Makes one system call in a program of its own: 0 or the errno.
    ///
    /// The program is a static executable of one page: a header, one segment, and code that makes the call and exits
    /// with its errno. So the 32-bit side is tested by a real 32-bit program, without a compiler for it.
    fn answer(arch: Arch, number: u32, arguments: [u64; 3]) -> i32 {
        let bytes = if arch == Arch::X86_64 { elf64(number, arguments) } else { elf32(number, arguments) };
        let path = Scratch(std::env::temp_dir().join(format!("lazaret-seccomp-{}", std::process::id())));
        std::fs::write(&path.0, bytes).unwrap();
        std::fs::set_permissions(&path.0, std::fs::Permissions::from_mode(0o755)).unwrap();
        Command::new(&path.0).status().unwrap().code().expect("the program exits")
    }

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).unwrap();
        }
    }

    fn elf64(number: u32, [a, b, c]: [u64; 3]) -> Vec<u8> {
        let mut code = Vec::new();
        code.extend([0x48, 0xb8]); // mov rax, number
        code.extend(u64::from(number).to_le_bytes());
        for (register, value) in [(0xbf, a), (0xbe, b), (0xba, c)] {
            code.extend([0x48, register]); // mov rdi, rsi, rdx
            code.extend(value.to_le_bytes());
        }
        code.extend([0x0f, 0x05]); // syscall
        code.extend([0x48, 0x85, 0xc0, 0x78, 0x02, 0x31, 0xc0]); // test rax, rax; js +2; xor eax, eax
        code.extend([0xf7, 0xd8, 0x89, 0xc7]); // neg eax; mov edi, eax
        code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // mov eax, exit; syscall

        let base: u64 = 0x40_0000;
        let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for word in [base + 120, 64, 0] {
            elf.extend(u64::to_le_bytes(word)); // entry, program headers, section headers
        }
        elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD, read and execute
        let size = 120 + code.len() as u64;
        for word in [0, base, base, size, size, 0x1000] {
            elf.extend(u64::to_le_bytes(word));
        }
        elf.extend(code);
        elf
    }

    fn elf32(number: u32, [a, b, c]: [u64; 3]) -> Vec<u8> {
        let mut code = Vec::new();
        for (register, value) in [(0xb8, number), (0xbb, a as u32), (0xb9, b as u32), (0xba, c as u32)] {
            code.push(register); // mov eax, ebx, ecx, edx
            code.extend(value.to_le_bytes());
        }
        code.extend([0xcd, 0x80]); // int 0x80
        code.extend([0x85, 0xc0, 0x78, 0x02, 0x31, 0xc0]); // test eax, eax; js +2; xor eax, eax
        code.extend([0xf7, 0xd8, 0x89, 0xc3]); // neg eax; mov ebx, eax
        code.extend([0xb8, 1, 0, 0, 0, 0xcd, 0x80]); // mov eax, exit; int 0x80

        let base: u32 = 0x40_0000;
        let mut elf = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
        for word in [base + 84, 52, 0, 0] {
            elf.extend(u32::to_le_bytes(word)); // entry, program headers, section headers, flags
        }
        elf.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let size = 84 + code.len() as u32;
        for word in [1, 0, base, base, size, size, 5, 0x1000] {
            elf.extend(u32::to_le_bytes(word)); // PT_LOAD ... read and execute
        }
        elf.extend(code);
        elf
    }

    fn asks(arch: Arch, call: &str, arguments: [u64; 3]) -> i32 {
        answer(arch, Syscall::named(call).unwrap().number(arch).unwrap(), arguments)
    }

    const PERM: i32 = Errno::PERM.raw_os_error();
    const FAULT: i32 = Errno::FAULT.raw_os_error();

    #[test]
    fn the_kernel_refuses_what_the_table_says_in_both_widths() {
        under_filter("the_kernel_refuses_what_the_table_says_in_both_widths", false, || {
            let profile = profile(false, &[], &[]);
            for arch in Family::X86.arches() {
                for rule in profile.rules().iter().filter(|rule| rule.when.is_empty()) {
                    if let Some(number) = rule.syscall.number(arch) {
                        let got = answer(arch, number, [0; 3]);
                        assert_eq!(got, rule.errno.raw_os_error(), "{} on {arch:?}", rule.syscall.name);
                    }
                }
            }
        });
    }

    #[test]
    fn the_kernel_looks_at_arguments_in_both_widths() {
        under_filter("the_kernel_looks_at_arguments_in_both_widths", false, || {
            for arch in Family::X86.arches() {
                assert_eq!(asks(arch, "unshare", [0; 3]), 0);
                assert_eq!(asks(arch, "unshare", [0x1000_0000, 0, 0]), PERM);
                assert_eq!(asks(arch, "clone", [17, 0, 0]), 0);
                assert_eq!(asks(arch, "clone", [0x1000_0011, 0, 0]), PERM);
                assert_eq!(asks(arch, "personality", [0x0040_0000, 0, 0]), PERM);
                assert_eq!(asks(arch, "personality", [0x0004_0000, 0, 0]), 0);
                assert_eq!(asks(arch, "socket", [40, 1, 0]), Errno::AFNOSUPPORT.raw_os_error());
                assert_eq!(asks(arch, "socket", [1, 1, 0]), 0);
                // Descriptor -1: refused before the kernel would see that there is no such file.
                assert_eq!(asks(arch, "ioctl", [0xffff_ffff, 0x5412, 0]), PERM);
                assert_eq!(asks(arch, "ioctl", [0xffff_ffff, 0x5401, 0]), Errno::BADF.raw_os_error());
            }
            assert_eq!(asks(Arch::X86_64, "ioctl", [0xffff_ffff, 0x1_0000_5412, 0]), PERM);
            let x32_getpid = 0x4000_0000 + 39;
            assert_eq!(answer(Arch::X86_64, x32_getpid, [0; 3]), Errno::NOSYS.raw_os_error());
        });
    }

    #[test]
    fn what_is_left_open_reaches_the_kernel_in_both_widths() {
        under_filter("what_is_left_open_reaches_the_kernel_in_both_widths", false, || {
            for arch in Family::X86.arches() {
                // The kernel itself misses the pointers.
                for call in ["adjtimex", "name_to_handle_at", "seccomp"] {
                    let arguments = if call == "seccomp" { [1, 0, 0] } else { [0; 3] };
                    assert_eq!(asks(arch, call, arguments), FAULT, "{call} on {arch:?}");
                }
                assert_eq!(asks(arch, "getpid", [0; 3]), 0);
            }
            // SYS_SOCKET by the door that 32-bit programs use; its arguments are in memory, here nowhere.
            assert_eq!(asks(Arch::I386, "socketcall", [1, 0, 0]), FAULT);
        });
    }

    #[test]
    fn threads_and_programs_start_without_clone3() {
        under_filter("threads_and_programs_start_without_clone3", false, || {
            assert_eq!(std::thread::spawn(|| 7).join().unwrap(), 7);
            assert!(Command::new("/bin/sh").args(["-c", "(exit 0) | cat"]).status().unwrap().success());
        });
    }

    #[test]
    fn a_nesting_container_may_make_user_namespaces() {
        under_filter("a_nesting_container_may_make_user_namespaces", true, || {
            for arch in Family::X86.arches() {
                assert_eq!(asks(arch, "unshare", [0x1000_0000, 0, 0]), 0);
                // clone3 with no arguments: not "no such call".
                assert_eq!(asks(arch, "clone3", [0; 3]), Errno::INVAL.raw_os_error());
                assert_eq!(asks(arch, "bpf", [0; 3]), PERM);
            }
        });
    }

    #[test]
    fn a_program_that_the_kernel_would_not_take_is_an_error() {
        assert_eq!(lazaret_sys::seccomp::set_filter(&[]), Err(Errno::INVAL));
        let endless = SockFilter { code: emit::JUMP, jt: 0, jf: 0, k: 5 };
        assert_eq!(lazaret_sys::seccomp::set_filter(&vec![endless; 70_000]), Err(Errno::INVAL));
    }
}

//! What a container may not ask of the kernel, and why: the tables are the documentation.
//!
//! The containers of this project are whole systems. Their root is root in a user namespace only, and the kernel
//! already refuses it what concerns the host. The list closes what is left: calls whose only protection is that one
//! check, calls with a long record of kernel bugs, and calls whose effect the namespaces do not confine. What is not
//! listed is allowed, so that systemd, package managers, debuggers, Wine and Steam run as on the host.
//!
//! A call is refused with `EPERM` where programs expect that it may be forbidden, and with `ENOSYS` where they have
//! another way for kernels that lack it.

use rustix::io::Errno;

/// Calls that are refused for one reason.
#[derive(Debug)]
pub struct Group {
    /// Two or three words for a line of `lazaret plan`.
    pub name: &'static str,
    /// Why nobody inside needs it, or why it is closed although somebody might.
    pub reason: &'static str,
    /// What the program gets to see.
    pub errno: Errno,
    /// Whether `nesting = true` opens it.
    pub opened_by_nesting: bool,
    /// What is refused.
    pub calls: &'static [Call],
}

/// A system call, or some uses of it.
#[derive(Debug)]
pub struct Call {
    /// Its name in the table of system calls.
    pub name: &'static str,
    /// Which uses are refused, in words; empty if all are.
    pub uses: &'static str,
    /// Which uses are refused: those that meet all conditions. No condition: every use.
    pub when: &'static [Condition],
}

/// A question about one argument of a call: `argument & mask` compared with a value.
///
/// Where the kernel takes an argument as `int` or `unsigned int`, it ignores the register's upper half. The mask must
/// ignore it too, or a program steps around the rule by setting a bit there (CVE-2019-10063).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0 to 5.
    pub argument: u8,
    /// The bits that are looked at.
    pub mask: u64,
    /// What they are asked.
    pub test: Test,
}

/// The comparison of a [`Condition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// The bits are this value.
    Is(u64),
    /// The bits are not this value.
    IsNot(u64),
}

const fn all(name: &'static str) -> Call {
    Call { name, uses: "", when: &[] }
}

const fn when(name: &'static str, uses: &'static str, when: &'static [Condition]) -> Call {
    Call { name, uses, when }
}

/// The argument, taken as `int`, is `value`.
const fn int_is(argument: u8, value: u32) -> Condition {
    Condition { argument, mask: INT, test: Test::Is(value as u64) }
}

/// The flag, a single bit, is set.
const fn has(argument: u8, flag: u64) -> Condition {
    Condition { argument, mask: flag, test: Test::Is(flag) }
}

/// An `int` is the lower half of its register.
const INT: u64 = 0xffff_ffff;

const AF_ALG: u32 = 38;
const AF_VSOCK: u32 = 40;
const CLONE_NEWUSER: u64 = 0x1000_0000;
const MNT_FORCE: u64 = 1;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// PER_LINUX32, UNAME26 and ADDR_NO_RANDOMIZE: what `setarch`, package builders and gdb ask for.
const COMMON_PERSONALITY: u64 = 0x0008 | 0x0002_0000 | 0x0004_0000;

/// What is refused unless the user opens it.
pub const DENIED: &[Group] = &[
    Group {
        name: "kernel code",
        reason: "loads code into the host's kernel, or replaces it; modules are the host's business",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[
            all("init_module"),
            all("finit_module"),
            all("delete_module"),
            all("kexec_load"),
            all("kexec_file_load"),
        ],
    },
    Group {
        name: "kernel programs",
        reason: "runs programs of the caller's making in the kernel, or traces it; the verifier and perf have been the \
                 way out of many sandboxes. systemd and nested runc do without (they are used to EPERM here)",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("bpf"), all("perf_event_open")],
    },
    Group {
        name: "io_uring",
        reason: "a second way to make most calls, unseen by this filter, and a large source of kernel bugs; programs \
                 fall back to ordinary calls on ENOSYS",
        errno: Errno::NOSYS,
        opened_by_nesting: false,
        calls: &[all("io_uring_setup"), all("io_uring_enter"), all("io_uring_register")],
    },
    Group {
        name: "page fault handling",
        reason: "halts the kernel in the middle of a call for as long as the caller likes, which wins its races",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("userfaultfd")],
    },
    Group {
        name: "file handles",
        reason: "opens any file of a file system by its number, past all mounts and directories. Making a handle is \
                 harmless, and systemd does (name_to_handle_at is open)",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("open_by_handle_at")],
    },
    Group {
        name: "file watching",
        reason: "watching whole mounts and file systems takes the host's root; for the rest programs have inotify",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("fanotify_init")],
    },
    Group {
        name: "host resources",
        reason: "accounting, swap and quotas belong to the machine, not to a namespace",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("acct"), all("swapon"), all("swapoff"), all("quotactl"), all("quotactl_fd")],
    },
    Group {
        name: "host clock",
        reason: "there is one clock. Asking for its state stays open: adjtimex and clock_adjtime do both, and the \
                 kernel lets only the host's root change it",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("settimeofday"), all("stime"), all("clock_settime"), all("clock_settime64")],
    },
    Group {
        name: "hardware ports",
        reason: "reads and writes the machine's input/output ports and bus",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("iopl"), all("ioperm"), all("pciconfig_iobase"), all("pciconfig_read"), all("pciconfig_write")],
    },
    Group {
        name: "kernel log",
        reason: "the log tells of the host and of other containers, with kernel addresses at times",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("syslog")],
    },
    Group {
        name: "keyrings",
        reason: "keys belong to users, not to containers, and have a long record of kernel bugs. systemd 252 to 257 \
                 goes on without session keyrings (KeyringMode=); runc insists on them unless it gets ENOSYS",
        errno: Errno::NOSYS,
        opened_by_nesting: true,
        calls: &[all("add_key"), all("request_key"), all("keyctl")],
    },
    Group {
        name: "nested user namespaces",
        reason: "makes any user root over new network stacks, mounts and firewalls, which is where most ways from user \
                 to kernel begin. Browsers, bubblewrap, Steam, and services with PrivateUsers= need it: nesting",
        errno: Errno::PERM,
        opened_by_nesting: true,
        calls: &[
            when("clone", "CLONE_NEWUSER", &[has(0, CLONE_NEWUSER)]),
            when("unshare", "CLONE_NEWUSER", &[has(0, CLONE_NEWUSER)]),
        ],
    },
    Group {
        name: "clone3",
        reason: "its flags lie in memory, where a filter cannot see CLONE_NEWUSER; the C library falls back to clone, \
                 and systemd 257 starts a service outside of its cgroup and then moves it",
        errno: Errno::NOSYS,
        opened_by_nesting: true,
        calls: &[all("clone3")],
    },
    Group {
        name: "personalities",
        reason: "emulations of other systems are old and untested code; what is common on Linux (32-bit uname, uname \
                 of 2.6, fixed addresses for debuggers) and asking (0xffffffff) stay open",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[when(
            "personality",
            "but for 32-bit, UNAME26, ADDR_NO_RANDOMIZE",
            &[
                Condition { argument: 0, mask: INT & !COMMON_PERSONALITY, test: Test::IsNot(0) },
                Condition { argument: 0, mask: INT, test: Test::IsNot(INT) },
            ],
        )],
    },
    Group {
        name: "sockets past the network",
        reason: "AF_VSOCK talks to the hypervisor and no network namespace is between; AF_ALG is kernel cryptography \
                 with a record of bugs. As on a kernel without them. 32-bit programs that use socketcall are not \
                 stopped: its arguments lie in memory",
        errno: Errno::AFNOSUPPORT,
        opened_by_nesting: false,
        calls: &[when("socket", "AF_VSOCK", &[int_is(0, AF_VSOCK)]), when("socket", "AF_ALG", &[int_is(0, AF_ALG)])],
    },
    Group {
        name: "terminal input",
        reason: "types into a terminal in the name of its user: a terminal that was handed in from the host would obey \
                 the container",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[
            when("ioctl", "TIOCSTI", &[int_is(1, TIOCSTI)]),
            // Its sub-command, among them "paste the selection", lies in memory: all or none.
            when("ioctl", "TIOCLINUX", &[int_is(1, TIOCLINUX)]),
        ],
    },
    Group {
        name: "terminal hangup",
        reason: "cuts off all who use the terminal, on the host's side too; the kernel already wants the host's root",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[all("vhangup")],
    },
    Group {
        name: "forced unmount",
        reason: "aborts the file system's server connection for every mount of it, the host's too",
        errno: Errno::PERM,
        opened_by_nesting: false,
        calls: &[when("umount2", "MNT_FORCE", &[has(1, MNT_FORCE)])],
    },
    Group {
        name: "memory placement",
        reason: "moves memory between the machine's nodes, behind the back of the limits set from outside. All of it \
                 or none: a library that may ask takes it that it may also set",
        errno: Errno::NOSYS,
        opened_by_nesting: false,
        calls: &[
            all("get_mempolicy"),
            all("set_mempolicy"),
            all("set_mempolicy_home_node"),
            all("mbind"),
            all("migrate_pages"),
            all("move_pages"),
        ],
    },
    Group {
        name: "security modules",
        reason: "a new door to what /proc/self/attr offers; libraries take the old one on ENOSYS, and it can be masked",
        errno: Errno::NOSYS,
        opened_by_nesting: false,
        calls: &[all("lsm_get_self_attr"), all("lsm_set_self_attr"), all("lsm_list_modules")],
    },
    Group {
        name: "relics",
        reason: "gone from current kernels or kept for programs of the last century",
        errno: Errno::NOSYS,
        opened_by_nesting: false,
        calls: &[
            all("_sysctl"),
            all("bdflush"),
            all("create_module"),
            all("get_kernel_syms"),
            all("lookup_dcookie"),
            all("nfsservctl"),
            all("query_module"),
            all("sysfs"),
            all("uselib"),
            all("ustat"),
            all("vm86"),
            all("vm86old"),
        ],
    },
];

/// What other container programs close and this one leaves open on purpose: calls, and why.
pub const LEFT_OPEN: &[(&[&str], &str)] = &[
    (
        &["mount", "umount", "umount2", "pivot_root", "chroot", "setns", "unshare"],
        "systemd gives most services a mount namespace (PrivateTmp=, ProtectSystem=); the user namespace confines it",
    ),
    (
        &[
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "open_tree",
            "open_tree_attr",
            "move_mount",
            "mount_setattr",
            "statmount",
            "listmount",
        ],
        "the same by descriptors: systemd 257 builds its sandboxes with open_tree, mount_setattr and move_mount",
    ),
    (
        &["ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "pidfd_getfd", "kcmp"],
        "debuggers, strace and graphics drivers; the kernel checks the target's user namespace",
    ),
    (&["reboot"], "in a pid namespace it ends the namespace's init, no more: this is how `poweroff` works inside"),
    (&["name_to_handle_at"], "systemd tells mounts and cgroups apart by it; opening by a handle is closed"),
    (&["adjtimex", "clock_adjtime", "clock_adjtime64"], "tells the clock's state; setting it needs the host's root"),
    (&["modify_ldt"], "Wine runs 16-bit code with it"),
    (&["socketcall", "ipc"], "all that the 32-bit C library has for sockets and shared memory"),
    (&["sethostname", "setdomainname"], "the UTS namespace confines them"),
    (&["seccomp", "landlock_restrict_self", "memfd_secret"], "what programs protect themselves with"),
];

#[cfg(test)]
mod tests {
    use super::super::syscalls::Syscall;
    use super::*;

    #[test]
    fn the_tables_name_calls_that_exist() {
        let denied = DENIED.iter().flat_map(|group| group.calls).map(|call| call.name);
        let open = LEFT_OPEN.iter().flat_map(|(names, _)| names.iter().copied());
        for name in denied.chain(open) {
            Syscall::named(name).unwrap();
        }
    }

    #[test]
    fn what_is_said_to_be_open_is_not_closed() {
        for name in LEFT_OPEN.iter().flat_map(|(names, _)| *names) {
            let mut closed = DENIED.iter().flat_map(|group| group.calls).filter(|call| call.when.is_empty());
            assert!(closed.all(|call| call.name != *name), "{name}");
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        let mut listed: Vec<_> =
            DENIED.iter().flat_map(|group| group.calls).map(|call| (call.name, call.uses)).collect();
        let count = listed.len();
        listed.sort();
        listed.dedup();
        assert_eq!(listed.len(), count);
    }

    #[test]
    fn conditions_can_be_met() {
        for condition in DENIED.iter().flat_map(|group| group.calls).flat_map(|call| call.when) {
            let (Test::Is(value) | Test::IsNot(value)) = condition.test;
            assert!(condition.argument < 6 && value & !condition.mask == 0, "{condition:?}");
        }
    }
}

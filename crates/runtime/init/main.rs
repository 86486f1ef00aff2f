//! `lazaret-init`: PID 1 of a container whose image has no init of its own. Reaps, forwards signals, ends cleanly.
//!
//! A freestanding program (no libc, no allocation), so that it runs in any root file system, also in an empty one.
//! It is not part of the crate: build.rs compiles this file alone, and the crate carries the result as bytes.
//! `unsafe` is at home here because there is no library below: every block is a system call or a walk over the
//! argument vector the kernel laid out, and the process has one thread.
//!
//! ```text
//! lazaret-init                                        no command: reap until told to end, exit 0
//! lazaret-init [--cwd DIR] [--ids UID:GID[:G1,G2,..]] [--setsid-tty] -- CMD ARGS..
//! ```
//!
//! Exit status with a command: the command's own, 128 + S if signal S killed it, 127 if it was not found, 126 if it
//! could not be executed, 125 if it was not even tried (this program was called wrongly, or DIR or the ids can't be
//! had).
//!
//! Signals are blocked and read from a signalfd(2). sigwaitinfo(2) would do too, but it unblocks what it waits for
//! (kernel/signal.c, do_sigtimedwait), and the runtime takes the blocked set of /proc/1/status as the sign that PID 1
//! is ready for them.
#![no_std]
#![no_main]
// Otherwise the compiler would make a call of memset out of the loop in memset.
#![no_builtins]

use core::arch::{asm, global_asm};
use core::ptr::{null, null_mut};

/// What is left of a container after its command ended gets this long to end too, in seconds.
const GRACE_AFTER_COMMAND: i64 = 2;
/// What runs in a container gets this long after a signal to stop, in seconds.
const GRACE_AFTER_STOP: i64 = 5;
/// A killed process that does not die hangs in the kernel; then nobody waits for it any longer, in seconds.
const GRACE_AFTER_KILL: i64 = 1;

/// Passed on to the command.
const FORWARDED: &[i32] = &[SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT];
/// End the container whether there is a command or not: what runtimes send to an init to halt it.
const STOP_ALWAYS: &[i32] = &[SIGPWR, HALT, POWEROFF];
/// End a container that has no command to pass them on to.
const STOP_IDLE: &[i32] = &[SIGTERM, SIGINT, SIGUSR1, SIGUSR2];

#[unsafe(no_mangle)]
extern "C" fn begin(stack: *const usize) -> ! {
    let vectors = Vectors::of(stack);
    let command = match parse(&vectors) {
        Ok(command) => command,
        Err(sentence) => {
            say(&[sentence]);
            exit(125)
        }
    };
    // kill(-1) below means the whole container; anywhere else it would mean the whole machine.
    if getpid() != 1 {
        say(&[b"this program is the init of a container and runs as PID 1 only"]);
        exit(125)
    }
    close_from(3);
    set_name(b"lazaret-init\0");
    let signals = watched();
    default_dispositions();
    set_mask(signals);
    let events = signalfd(signals);
    let child = command.map(|command| match fork() {
        0 => run(&command, vectors.environment),
        pid if pid > 0 => pid as i32,
        error => {
            say(&[b"starting `", text(command.program()), b"`: ", sentence_of(error)]);
            exit(125)
        }
    });
    // The command has them. PID 1 must not keep the writing end of a pipe, or its reader would wait for ever.
    for fd in 0..3 {
        close(fd);
    }
    exit(serve(events, child))
}

/// What is to be executed, as asked for on the command line.
struct Command {
    directory: *const u8,
    ids: Option<Ids>,
    terminal: bool,
    /// `CMD ARGS..`, ended by a null pointer.
    arguments: *const *const u8,
}

impl Command {
    fn program(&self) -> *const u8 {
        // SAFETY: parse() made sure that there is a first argument.
        unsafe { *self.arguments }
    }
}

struct Ids {
    user: u32,
    group: u32,
    groups: [u32; MAX_GROUPS],
    count: usize,
}

const MAX_GROUPS: usize = 1024;

/// Where the kernel put arguments and environment (Linux/x86-64 and AArch64 psABI: argc, argv, null, envp, null).
struct Vectors {
    arguments: *const *const u8,
    environment: *const *const u8,
}

impl Vectors {
    fn of(stack: *const usize) -> Vectors {
        // SAFETY: `stack` is the stack pointer at process entry; argc is there and argv follows it.
        unsafe {
            let count = *stack;
            let arguments = stack.add(1).cast::<*const u8>();
            Vectors { arguments, environment: arguments.add(count + 1) }
        }
    }
}

/// Reads the command line; `None` if there is no command.
fn parse(vectors: &Vectors) -> Result<Option<Command>, &'static [u8]> {
    // SAFETY: argv is ended by a null pointer, and `next` is never moved past it.
    let mut next = vectors.arguments;
    let mut take = || unsafe {
        let argument = *next;
        if !argument.is_null() {
            next = next.add(1);
        }
        (argument, next)
    };
    take();
    let mut command = Command { directory: null(), ids: None, terminal: false, arguments: null() };
    let mut any = false;
    loop {
        let (argument, rest) = take();
        if argument.is_null() {
            return if any { Err(b"a command is missing after the options") } else { Ok(None) };
        }
        any = true;
        match text(argument) {
            b"--cwd" => {
                command.directory = take().0;
                if command.directory.is_null() {
                    return Err(b"--cwd needs a directory");
                }
            }
            b"--ids" => {
                let value = take().0;
                let ids = if value.is_null() { None } else { parse_ids(text(value)) };
                command.ids = Some(ids.ok_or(b"--ids needs UID:GID or UID:GID:G1,G2,..".as_slice())?);
            }
            b"--setsid-tty" => command.terminal = true,
            b"--" if take().0.is_null() => return Err(b"a command is missing after `--`"),
            b"--" => {
                command.arguments = rest;
                return Ok(Some(command));
            }
            _ => return Err(b"unknown option"),
        }
    }
}

/// `1000:1000` or `1000:1000:4,24,27`.
fn parse_ids(value: &[u8]) -> Option<Ids> {
    let mut parts = value.splitn(3, |byte| *byte == b':');
    let mut ids =
        Ids { user: number(parts.next()?)?, group: number(parts.next()?)?, groups: [0; MAX_GROUPS], count: 0 };
    if let Some(list) = parts.next() {
        for group in list.split(|byte| *byte == b',') {
            *ids.groups.get_mut(ids.count)? = number(group)?;
            ids.count += 1;
        }
    }
    Some(ids)
}

fn number(digits: &[u8]) -> Option<u32> {
    let mut value: u32 = 0;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u32::from(byte - b'0'))?;
    }
    if digits.is_empty() { None } else { Some(value) }
}

/// The child's way from fork to exec.
fn run(command: &Command, environment: *const *const u8) -> ! {
    set_mask(0);
    if command.terminal {
        setsid();
        // Best effort: without a terminal as standard input the command runs, only without job control.
        take_terminal(0);
    }
    if let Some(ids) = &command.ids {
        let error = set_ids(ids);
        if error != 0 {
            say(&[b"setting the user and groups of `", text(command.program()), b"`: ", sentence_of(error)]);
            exit(125)
        }
    }
    if !command.directory.is_null() {
        let error = chdir(command.directory);
        if error != 0 {
            say(&[b"entering `", text(command.directory), b"`: ", sentence_of(error)]);
            exit(125)
        }
    }
    let program = text(command.program());
    match execute(command, environment) {
        Failure::NotFound => {
            say(&[program, b": not found in the container"]);
            exit(127)
        }
        Failure::NoInterpreter => {
            say(&[program, b": cannot be executed (the interpreter or loader it names is not in the container)"]);
            exit(126)
        }
        Failure::Refused(error) => {
            say(&[program, b": cannot be executed (", sentence_of(error), b")"]);
            exit(126)
        }
    }
}

enum Failure {
    NotFound,
    NoInterpreter,
    Refused(isize),
}

/// Executes the command, looked up as execvp(3) does, but a file without a known header is not given to a shell.
fn execute(command: &Command, environment: *const *const u8) -> Failure {
    let program = text(command.program());
    if program.iter().any(|byte| *byte == b'/') {
        return failure_of(execve(command.program(), command.arguments, environment), command.program());
    }
    if program.is_empty() {
        return Failure::NotFound;
    }
    let search = variable(environment, b"PATH=").unwrap_or(DEFAULT_PATH);
    let mut worst = Failure::NotFound;
    for directory in search.split(|byte| *byte == b':') {
        let mut buffer = [0_u8; 4096];
        let Some(path) = join(&mut buffer, directory, program) else { continue };
        match failure_of(execve(path, command.arguments, environment), path) {
            // The next directory may have one; if not, this is what the user has to know.
            Failure::Refused(EACCES) => worst = Failure::Refused(EACCES),
            Failure::NotFound | Failure::Refused(ENOTDIR) => {}
            failure => return failure,
        }
    }
    worst
}

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn failure_of(error: isize, path: *const u8) -> Failure {
    match error {
        // execve(2) says so too when the file is there and its interpreter is not.
        ENOENT if exists(path) => Failure::NoInterpreter,
        ENOENT => Failure::NotFound,
        error => Failure::Refused(error),
    }
}

/// `DIRECTORY/PROGRAM`, with the terminating zero; an empty directory is the current one. `None` if it is too long.
fn join(buffer: &mut [u8], directory: &[u8], program: &[u8]) -> Option<*const u8> {
    let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    let mut at = 0;
    for part in [directory, slash, program, b"\0"] {
        for byte in part {
            *buffer.get_mut(at)? = *byte;
            at += 1;
        }
    }
    Some(buffer.as_ptr())
}

fn variable(environment: *const *const u8, prefix: &[u8]) -> Option<&'static [u8]> {
    let mut next = environment;
    // SAFETY: the environment is ended by a null pointer.
    while let entry = unsafe { *next }
        && !entry.is_null()
    {
        if let Some(value) = text(entry).strip_prefix(prefix) {
            return Some(value);
        }
        // SAFETY: this entry was not the null pointer, so there is another.
        next = unsafe { next.add(1) };
    }
    None
}

/// PID 1's life: reaps, forwards, and ends the container. Returns the exit status.
fn serve(events: i32, child: Option<i32>) -> i32 {
    let mut status = 0;
    let mut child = child;
    let mut ending = Ending::No;
    loop {
        loop {
            let (pid, wait_status) = reap();
            if pid <= 0 {
                // Nobody left. Without a command to wait for that is the normal state of an idle container.
                if pid != 0 && child.is_none() && !matches!(ending, Ending::No) {
                    return status;
                }
                break;
            }
            if Some(pid) == child {
                child = None;
                status = exit_status(wait_status);
                if matches!(ending, Ending::No) {
                    ending = terminate(GRACE_AFTER_COMMAND);
                }
            }
        }
        match (wait(events, &ending), &ending) {
            (0, Ending::No) => {}
            (0, Ending::Terminated(_)) => ending = destroy(),
            // What is left is stuck in the kernel. It goes with the namespace, whenever it wakes.
            (0, Ending::Killed(_)) => return status,
            (signal, _) => {
                let stop = STOP_ALWAYS.contains(&signal) || (child.is_none() && STOP_IDLE.contains(&signal));
                match (stop, &ending, child) {
                    (true, Ending::No, _) => ending = terminate(GRACE_AFTER_STOP),
                    (true, Ending::Terminated(_), _) => ending = destroy(),
                    (false, _, Some(pid)) if FORWARDED.contains(&signal) => kill(pid, signal),
                    _ => {}
                }
            }
        }
    }
}

enum Ending {
    No,
    /// All were asked to end; the time (CLOCK_MONOTONIC) when they are made to.
    Terminated(Time),
    /// All were killed; the time when we go all the same.
    Killed(Time),
}

fn terminate(grace: i64) -> Ending {
    kill(-1, SIGTERM);
    // A stopped process ends only after it goes on.
    kill(-1, SIGCONT);
    Ending::Terminated(Time::from_now(grace))
}

fn destroy() -> Ending {
    kill(-1, SIGKILL);
    Ending::Killed(Time::from_now(GRACE_AFTER_KILL))
}

/// Of wait(2): the exit code, or 128 + the signal.
fn exit_status(wait_status: i32) -> i32 {
    match wait_status & 0x7f {
        0 => (wait_status >> 8) & 0xff,
        signal => 128 + signal,
    }
}

/// The next signal, or 0 when the time is over.
fn wait(events: i32, ending: &Ending) -> i32 {
    let deadline = match ending {
        Ending::No => None,
        Ending::Terminated(time) | Ending::Killed(time) => Some(time),
    };
    loop {
        let signal = next_signal(events);
        if signal != 0 {
            return signal;
        }
        if let Some(deadline) = deadline {
            let Some(left) = deadline.left() else { return 0 };
            poll(events, Some(&left));
        } else {
            poll(events, None);
        }
    }
}

fn watched() -> u64 {
    let mut mask = bit(SIGCHLD);
    for signal in FORWARDED.iter().chain(STOP_ALWAYS).chain(STOP_IDLE) {
        mask |= bit(*signal);
    }
    mask
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// One line on standard error, in one write so that it stays one line.
fn say(parts: &[&[u8]]) {
    let mut line = [0_u8; 1024];
    let mut length = 0;
    let prefix: &[u8] = b"lazaret: ";
    for byte in core::iter::once(&prefix).chain(parts).flat_map(|part| part.iter()) {
        // A longer line is cut; the last byte is kept for its end.
        let Some(place) = line[..1023].get_mut(length) else { break };
        *place = *byte;
        length += 1;
    }
    if let Some(place) = line.get_mut(length) {
        *place = b'\n';
    }
    write(2, line.as_ptr(), length + 1);
}

fn sentence_of(error: isize) -> &'static [u8] {
    for (number, sentence) in SENTENCES {
        if *number == error {
            return sentence;
        }
    }
    b"the kernel refused"
}

const EACCES: isize = -13;
const ENOENT: isize = -2;
const ENOTDIR: isize = -20;
const EPERM: isize = -1;

/// As strerror(3) says them, for what execve(2), chdir(2), setresuid(2) and clone(2) return.
const SENTENCES: &[(isize, &[u8])] = &[
    (EPERM, b"operation not permitted"),
    (ENOENT, b"no such file or directory"),
    (-5, b"input/output error"),
    (-7, b"argument list too long"),
    (-8, b"exec format error"),
    (-11, b"resource temporarily unavailable"),
    (-12, b"cannot allocate memory"),
    (EACCES, b"permission denied"),
    (ENOTDIR, b"not a directory"),
    (-21, b"is a directory"),
    (-22, b"an id is not mapped in the container"),
    (-26, b"text file busy"),
    (-36, b"file name too long"),
    (-40, b"too many levels of symbolic links"),
];

/// The bytes of a C string, without the zero.
fn text(string: *const u8) -> &'static [u8] {
    let mut length = 0;
    // SAFETY: only strings of argv and envp come here; the kernel ended them with a zero, and they are never freed.
    unsafe {
        while *string.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(string, length)
    }
}

// The system calls, one function each. Arguments are in the order of the manual; a negative result is -errno.

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;
const SIGUSR1: i32 = 10;
const SIGUSR2: i32 = 12;
const SIGTERM: i32 = 15;
const SIGCHLD: i32 = 17;
const SIGCONT: i32 = 18;
const SIGWINCH: i32 = 28;
const SIGPWR: i32 = 30;
/// SIGRTMIN+3 and +4 of glibc, which keeps the first two real-time signals: systemd(1) halts and powers off by them.
const HALT: i32 = 37;
const POWEROFF: i32 = 38;

/// struct timespec.
#[repr(C)]
struct Time {
    seconds: i64,
    nanoseconds: i64,
}

impl Time {
    fn now() -> Time {
        let mut now = Time { seconds: 0, nanoseconds: 0 };
        call(nr::CLOCK_GETTIME, [CLOCK_MONOTONIC, &raw mut now as usize, 0, 0, 0]);
        now
    }

    fn from_now(seconds: i64) -> Time {
        let now = Time::now();
        Time { seconds: now.seconds.wrapping_add(seconds), nanoseconds: now.nanoseconds }
    }

    /// How long it is until then; `None` when it is past.
    fn left(&self) -> Option<Time> {
        let now = Time::now();
        let mut left = Time {
            seconds: self.seconds.wrapping_sub(now.seconds),
            nanoseconds: self.nanoseconds.wrapping_sub(now.nanoseconds),
        };
        if left.nanoseconds < 0 {
            left.seconds = left.seconds.wrapping_sub(1);
            left.nanoseconds = left.nanoseconds.wrapping_add(1_000_000_000);
        }
        if left.seconds < 0 { None } else { Some(left) }
    }
}

const CLOCK_MONOTONIC: usize = 1;

fn exit(status: i32) -> ! {
    loop {
        call(nr::EXIT_GROUP, [status as usize, 0, 0, 0, 0]);
    }
}

fn getpid() -> isize {
    call(nr::GETPID, [0; 5])
}

fn close(fd: i32) {
    call(nr::CLOSE, [fd as usize, 0, 0, 0, 0]);
}

fn close_from(fd: u32) {
    call(nr::CLOSE_RANGE, [fd as usize, u32::MAX as usize, 0, 0, 0]);
}

fn write(fd: i32, bytes: *const u8, length: usize) {
    call(nr::WRITE, [fd as usize, bytes as usize, length, 0, 0]);
}

fn set_name(name: &'static [u8]) {
    const PR_SET_NAME: usize = 15;
    call(nr::PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0]);
}

/// What the parent ignored stays ignored over execve(2); the command starts from defaults, and an ignored SIGCHLD
/// would take the children's exit status from us.
fn default_dispositions() {
    let default = [0_usize; 4];
    for signal in 1..=64 {
        call(nr::RT_SIGACTION, [signal, default.as_ptr() as usize, 0, 8, 0]);
    }
}

fn set_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    call(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const mask as usize, 0, 8, 0]);
}

fn signalfd(mask: u64) -> i32 {
    const SFD_CLOEXEC_NONBLOCK: usize = 0o2000000 | 0o4000;
    let fd = call(nr::SIGNALFD4, [-1_isize as usize, &raw const mask as usize, 8, SFD_CLOEXEC_NONBLOCK, 0]);
    if fd < 0 {
        say(&[b"watching signals: ", sentence_of(fd)]);
        exit(125)
    }
    fd as i32
}

/// Takes a signal from the signalfd; 0 if none is there.
fn next_signal(fd: i32) -> i32 {
    // struct signalfd_siginfo is 128 bytes and begins with the number.
    let mut event = [0_u32; 32];
    let length = call(nr::READ, [fd as usize, event.as_mut_ptr() as usize, size_of_val(&event), 0, 0]);
    if length == 128 { event[0] as i32 } else { 0 }
}

/// Waits until the descriptor is readable or the time is over.
fn poll(fd: i32, timeout: Option<&Time>) {
    #[repr(C)]
    struct Entry {
        fd: i32,
        events: i16,
        found: i16,
    }
    const POLLIN: i16 = 1;
    let mut entry = Entry { fd, events: POLLIN, found: 0 };
    // ppoll(2) of the kernel writes the remaining time back.
    let mut time = timeout.map(|time| Time { seconds: time.seconds, nanoseconds: time.nanoseconds });
    let time = time.as_mut().map_or(null_mut(), |time| &raw mut *time);
    call(nr::PPOLL, [&raw mut entry as usize, 1, time as usize, 0, 0]);
}

/// One child that ended: its pid and status. Pid 0: none has ended; negative: there is none.
fn reap() -> (i32, i32) {
    const WNOHANG_WALL: usize = 1 | 0x4000_0000;
    let mut status: i32 = 0;
    let pid = call(nr::WAIT4, [-1_isize as usize, &raw mut status as usize, WNOHANG_WALL, 0, 0]);
    (pid as i32, status)
}

fn kill(pid: i32, signal: i32) {
    call(nr::KILL, [pid as isize as usize, signal as usize, 0, 0, 0]);
}

fn fork() -> isize {
    call(nr::CLONE, [SIGCHLD as usize, 0, 0, 0, 0])
}

fn setsid() {
    call(nr::SETSID, [0; 5]);
}

fn take_terminal(fd: i32) {
    const TIOCSCTTY: usize = 0x540e;
    call(nr::IOCTL, [fd as usize, TIOCSCTTY, 0, 0, 0]);
}

/// Groups first: afterwards the right to change them is gone. 0, or what the kernel said.
fn set_ids(ids: &Ids) -> isize {
    let error = call(nr::SETGROUPS, [ids.count, ids.groups.as_ptr() as usize, 0, 0, 0]);
    // A user namespace made without privilege forbids setgroups(2) for ever (user_namespaces(7)): there the groups
    // are what they are, and only asking for more of them is an error.
    if error != 0 && !(error == EPERM && ids.count == 0) {
        return error;
    }
    let (user, group) = (ids.user as usize, ids.group as usize);
    match call(nr::SETRESGID, [group, group, group, 0, 0]) {
        0 => call(nr::SETRESUID, [user, user, user, 0, 0]),
        error => error,
    }
}

fn chdir(path: *const u8) -> isize {
    call(nr::CHDIR, [path as usize, 0, 0, 0, 0])
}

fn exists(path: *const u8) -> bool {
    const AT_FDCWD: isize = -100;
    call(nr::FACCESSAT, [AT_FDCWD as usize, path as usize, 0, 0, 0]) == 0
}

fn execve(path: *const u8, arguments: *const *const u8, environment: *const *const u8) -> isize {
    call(nr::EXECVE, [path as usize, arguments as usize, environment as usize, 0, 0])
}

#[cfg(target_arch = "x86_64")]
mod nr {
    //! arch/x86/entry/syscalls/syscall_64.tbl
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const GETPID: usize = 39;
    pub const CLONE: usize = 56;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const CHDIR: usize = 80;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const SETRESUID: usize = 117;
    pub const SETRESGID: usize = 119;
    pub const PRCTL: usize = 157;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const FACCESSAT: usize = 269;
    pub const PPOLL: usize = 271;
    pub const SIGNALFD4: usize = 289;
    pub const CLOSE_RANGE: usize = 436;
}

#[cfg(target_arch = "aarch64")]
mod nr {
    //! include/uapi/asm-generic/unistd.h
    pub const IOCTL: usize = 29;
    pub const FACCESSAT: usize = 48;
    pub const CHDIR: usize = 49;
    pub const CLOSE: usize = 57;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const PPOLL: usize = 73;
    pub const SIGNALFD4: usize = 74;
    pub const EXIT_GROUP: usize = 94;
    pub const CLOCK_GETTIME: usize = 113;
    pub const KILL: usize = 129;
    pub const RT_SIGACTION: usize = 134;
    pub const RT_SIGPROCMASK: usize = 135;
    pub const SETRESUID: usize = 147;
    pub const SETRESGID: usize = 149;
    pub const SETSID: usize = 157;
    pub const SETGROUPS: usize = 159;
    pub const PRCTL: usize = 167;
    pub const GETPID: usize = 172;
    pub const CLONE: usize = 220;
    pub const EXECVE: usize = 221;
    pub const WAIT4: usize = 260;
    pub const CLOSE_RANGE: usize = 436;
}

#[cfg(target_arch = "x86_64")]
fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the callers above pass pointers only to objects that live across the call, in the layout the call
    // expects. The forked child goes on with a copy of everything.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: as above.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            options(nostack));
    }
    result
}

// The kernel enters with the stack pointer at argc and no return address.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {begin}",
    "ud2",
    begin = sym begin,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {begin}",
    "brk 1",
    begin = sym begin,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(125)
}

/// The prebuilt core library names it in its unwind tables, though nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

// What the compiler calls for copies and comparisons, and a libc would have.

/// # Safety
/// `length` bytes are readable at `from` and writable at `to`, and they do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
    for at in 0..length {
        // SAFETY: the caller's promise.
        unsafe { *to.add(at) = *from.add(at) };
    }
    to
}

/// # Safety
/// `length` bytes are writable at `to`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
    for at in 0..length {
        // SAFETY: the caller's promise.
        unsafe { *to.add(at) = byte as u8 };
    }
    to
}

/// # Safety
/// `length` bytes are readable at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    for at in 0..length {
        // SAFETY: the caller's promise.
        let (l, r) = unsafe { (*left.add(at), *right.add(at)) };
        if l != r {
            return i32::from(l) - i32::from(r);
        }
    }
    0
}

/// # Safety
/// As memcmp.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, length) }
}

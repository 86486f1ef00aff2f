//! Making processes, and turning one into another program.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::io::{self, Errno};
use rustix::process::Pid;

use crate::check;

/// clone3(2); libc still types it too narrowly.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Namespaces to make anew, as the `CLONE_NEW*` bits of clone(2).
pub mod namespace {
    /// A user namespace.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
    /// A mount namespace.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// A process id namespace.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// A network namespace.
    pub const NET: u64 = libc::CLONE_NEWNET as u64;
    /// Host and domain name.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// System V IPC and POSIX message queues.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// The view of the cgroup trees.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Monotonic and boot time. Only for unshare(2) and setns(2): clone(2) has no bit left for it.
    pub const TIME: u64 = 0x80;
}

/// Which side of a clone this is.
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, with the new process's id and a descriptor of it.
    Parent(Child),
}

/// A process of ours, known by a descriptor that can't come to mean another process.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's namespace.
    pub pid: Pid,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
}

/// Makes a child with its own copy of memory, in new `namespaces`, born in `cgroup` (clone3(2)).
///
/// Only for processes of one thread: the child of a threaded process may hold a lock that no thread
/// of its own will ever release. A caller with more threads gets `EDEADLK` and no child.
pub fn clone(namespaces: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    if !is_alone()? {
        return Err(Errno::DEADLK);
    }
    let mut pidfd: libc::c_int = -1;
    let mut flags = namespaces | libc::CLONE_PIDFD as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let arguments = libc::clone_args {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: one thread (checked above), so the child inherits no held lock; without CLONE_VM it has
    // its own copy of the stack, and `pidfd` lives across the call.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
    match Pid::from_raw(pid as i32) {
        None => Ok(Cloned::Child),
        // SAFETY: CLONE_PIDFD made this descriptor for us alone.
        Some(pid) => Ok(Cloned::Parent(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// Whether no other thread of this process will ever run: `/proc/self/task` has one directory for each.
///
/// One that was joined may be listed for a while, since the kernel tells the joiner first and clears up afterwards
/// (`exit_mm` and `release_task` in kernel/exit.c).
fn is_alone() -> io::Result<bool> {
    const TASKS: &str = "/proc/self/task";
    if rustix::fs::stat(TASKS)?.st_nlink == 3 {
        return Ok(true);
    }
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    for task in std::fs::read_dir(TASKS).map_err(errno)? {
        let task = task.map_err(errno)?;
        match std::fs::read_to_string(task.path().join("stat")) {
            Ok(stat) if task.file_name() == *own || is_ending(&stat) => {}
            Ok(_) => return Ok(false),
            // It has just gone.
            Err(_) => {}
        }
    }
    Ok(true)
}

/// Whether a task is past its last instruction, from its `stat` (proc_pid_stat(5), field 9).
fn is_ending(stat: &str) -> bool {
    /// include/linux/sched.h.
    const PF_EXITING: u32 = 4;
    // The name before may hold anything.
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

fn errno(e: std::io::Error) -> Errno {
    Errno::from_io_error(&e).unwrap_or(Errno::IO)
}

/// Leaves namespaces for new ones (unshare(2)).
pub fn unshare(namespaces: u64) -> io::Result<()> {
    // SAFETY: namespaces change what names mean, not memory; CLONE_FILES and CLONE_VM are not offered here.
    check(unsafe { libc::unshare(namespaces as libc::c_int) }.into()).map(drop)
}

/// Joins namespaces: those `namespaces` names of a pidfd, or the one an `nsfs` descriptor is (setns(2)).
pub fn join(of: BorrowedFd<'_>, namespaces: u64) -> io::Result<()> {
    // SAFETY: as for `unshare`.
    check(unsafe { libc::setns(of.as_raw_fd(), namespaces as libc::c_int) }.into()).map(drop)
}

/// Closes every descriptor from `first` on, or marks it close-on-exec (close_range(2)).
///
/// With `on_exec` nothing is closed now. Without it, descriptors that Rust values still own are closed
/// under them: only for a process that is about to execute or end.
pub fn close_from(first: u32, on_exec: bool) -> io::Result<()> {
    let flags = if on_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: takes three numbers; the caller owns up to what the doc says.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// Closes this process's copies of descriptors whose owners live on in the process it was cloned from.
///
/// For the child of [`clone`] only, which never drops those owners: it ends by execution or by [`exit_now`].
pub fn close_copies(of: &[BorrowedFd<'_>]) {
    for fd in of {
        // SAFETY: no value of this process that owns the number will ever be dropped (see above), so nothing is
        // closed twice; what follows in the child does not use it.
        unsafe { libc::close(fd.as_raw_fd()) };
    }
}

/// Executes the program `path` names; returns only on failure (execve(2)).
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in null and point to C strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Executes the program that `file` refers to; returns only on failure (execveat(2), `AT_EMPTY_PATH`).
pub fn execute_file(file: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> Errno {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: as in `execute`; the empty path makes the kernel use `file` itself.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Joins a new, anonymous session keyring, so that the caller's keys are out of reach (keyctl(2)).
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read or written.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>(), 0, 0, 0)
    };
    check(result).map(drop)
}

/// Changes what process lists show as this process's command line, and forgets the environment it was started with.
///
/// The arguments and the environment lie one after the other in memory (`arg_start` to `env_end` in proc_pid_stat(5)).
/// What is longer than the arguments were reaches into the environment; then the kernel shows the text up to its first
/// null (get_mm_cmdline in fs/proc/base.c), so that the words are separated by spaces.
pub fn set_command_line(words: &[&str]) -> std::io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name of the program may hold spaces; fields are counted from its closing parenthesis, the third first.
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .map_or("", |(_, fields)| fields)
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let (Some(&[arguments, end_of_arguments, environment, end]), true) =
        (fields.get(45..49).and_then(|four| <&[u64; 4]>::try_from(four).ok()), fields.len() > 48)
    else {
        return Err(std::io::ErrorKind::Unsupported.into());
    };
    let room = (end_of_arguments - arguments) as usize;
    let mut text = words.join("\0").into_bytes();
    if text.len() >= room {
        text = words.join(" ").into_bytes();
    }
    // Arguments and environment are neighbours, unless somebody has moved them (PR_SET_MM).
    let all = if environment == end_of_arguments && end >= environment { (end - arguments) as usize } else { room };
    text.resize(all.max(1) - 1, 0);
    text.push(0);
    std::fs::OpenOptions::new().write(true).open("/proc/self/mem")?.write_all_at(&text, arguments)
}

/// Ends this process at once, without running anything that belongs to the process it was cloned from.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: never returns; no destructor or exit handler of the parent's copy runs, which is the point.
    unsafe { libc::_exit(status) }
}

/// Runs `act` with other file system ids, so that what it creates belongs to them (setfsuid(2)).
pub fn with_file_ids<T>(uid: u32, gid: u32, act: impl FnOnce() -> T) -> T {
    // SAFETY: the calls take numbers and change only this thread's file system ids.
    let (old_gid, old_uid) = unsafe { (libc::setfsgid(gid), libc::setfsuid(uid)) };
    let result = act();
    // SAFETY: as above; a caller that could leave its ids has the capability to take them back.
    unsafe {
        libc::setfsuid(old_uid as libc::uid_t);
        libc::setfsgid(old_gid as libc::gid_t);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_ending_does_not_count() {
        // As proc_pid_stat(5) has it, with a name that does its worst.
        assert!(is_ending("7 (a) S 1 4) R 1 7 7 0 -1 4194372 0 0"));
        assert!(!is_ending("7 (a) S 1 4) R 1 7 7 0 -1 4194368 0 0"));
        assert!(!is_ending(""));
    }

    #[test]
    fn a_process_of_several_threads_can_not_be_cloned() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || receiver.recv().is_err());
        assert!(matches!(clone(0, None), Err(Errno::DEADLK)));
        drop(sender);
        assert!(other.join().unwrap());
    }
}

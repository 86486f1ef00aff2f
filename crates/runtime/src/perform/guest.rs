//! The guest's steps: a process becomes the init of a container.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_sys::process::{
    close_from, execute, execute_file, exit_now, join, namespace, new_session_keyring, unshare,
};
use lazaret_sys::{net, seccomp as filter, signal};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::account;
use crate::confine::{self, Capabilities};
use crate::host::Label;
use crate::perform::newcomer;
use crate::plan::{Api, GuestStep, OurInit, Program, Side, Step};
use crate::spawn::HostSide;
use crate::turn::{Fds, Line, Slot};

/// What the guest has in hand.
struct Guest<'a> {
    line: &'a Line,
    fds: Fds,
    made: Fds,
    /// The container's own end of the console, kept open until the program has it.
    terminal: Option<OwnedFd>,
    /// The container's devpts, by a descriptor that no name can divert.
    devpts: Option<OwnedFd>,
    init: BorrowedFd<'a>,
    stdio: Option<[BorrowedFd<'a>; 3]>,
}

/// The life of the guest process: its turns, the last of which ends in another program. Never returns.
pub fn live(side: &mut HostSide<'_>) -> ! {
    let line = side.become_guest();
    rustix::process::umask(Mode::from(0o022));
    let mut guest = Guest {
        line: &line,
        fds: Fds::default(),
        made: Fds::default(),
        terminal: None,
        devpts: None,
        init: side.init,
        stdio: side.stdio,
    };
    let mut next = 0;
    while let Ok(true) = line.wait(&mut guest.fds) {
        let turn = side.turn(Side::Guest, next);
        next = turn.end;
        for index in turn {
            side.inject_in_guest(index, &line);
            let Step::Guest(step) = &side.steps()[index] else { continue };
            if let Err(e) = perform(step, &mut guest) {
                // The host may be gone; then nobody is left to tell.
                let _ = line.failed(index, e);
                exit_now(1);
            }
        }
        if line.done(std::mem::take(&mut guest.made)).is_err() {
            break;
        }
    }
    exit_now(1)
}

fn perform(step: &GuestStep, guest: &mut Guest<'_>) -> Result<()> {
    match step {
        GuestStep::JoinCgroups(groups) => groups.iter().try_for_each(|dir| join_v1(dir)),
        GuestStep::BecomeRoot => become_root(),
        GuestStep::NewCgroupNamespace => Ok(unshare(namespace::CGROUP)?),
        GuestStep::NewClocks { monotonic, boottime } => new_clocks(*monotonic, *boottime),
        GuestStep::Mount(api) => mount(guest, *api),
        GuestStep::OpenConsole => open_console(guest),
        GuestStep::EnterMounts => Ok(join(guest.fds.get(Slot::Mounts)?, namespace::MOUNT)?),
        GuestStep::ShareMounts => {
            use lazaret_sys::mount::{Change, SHARED, set_attributes};
            Ok(set_attributes(CWD, c"/", true, Change { propagation: SHARED, ..Change::default() })?)
        }
        GuestStep::HostName(name) => Ok(rustix::system::sethostname(name.as_bytes())?),
        GuestStep::HostNameFile(name) => host_name_file(name),
        GuestStep::User(name) => newcomer::add(name),
        GuestStep::Loopback => Ok(net::loopback_up()?),
        GuestStep::Resolver => resolver_file(&guest.fds),
        GuestStep::Keyring => keyring(),
        GuestStep::Bound(set) => bound(*set),
        GuestStep::Label { module, label } => take_label(*module, label),
        GuestStep::NoNewPrivileges => Ok(rustix::thread::set_no_new_privs(true)?),
        GuestStep::Filter(program) => Ok(filter::set_filter(program.instructions())?),
        GuestStep::Execute { program, environment } => run(guest, program, environment),
    }
}

/// Joins one v1 group by its `tasks` file: the kernel moves a single thread that names itself without
/// waiting for a grace period, which `cgroup.procs` costs (cgroup_procs_write_start in cgroup.c).
pub fn join_v1(dir: &std::path::Path) -> Result<()> {
    crate::cgroup::write(&dir.join("tasks"), "0")
}

/// User 0, group 0 and no other group, as of the container.
fn become_root() -> Result<()> {
    use rustix::fs::{Gid, Uid};
    set_thread_groups(&[])?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    Ok(())
}

/// The offsets hold for processes to come, and for this one from its execve(2) on (time_namespaces(7)).
fn new_clocks(monotonic: i64, boottime: i64) -> Result<()> {
    unshare(namespace::TIME)?;
    let line = |clock: &str, offset: i64| {
        format!("{clock} {} {}\n", offset.div_euclid(1_000_000_000), offset.rem_euclid(1_000_000_000))
    };
    let lines = line("monotonic", monotonic) + &line("boottime", boottime);
    std::fs::write("/proc/self/timens_offsets", lines)
        .hint("the kernel refuses an offset that would make a clock negative or overflow")
}

fn mount(guest: &mut Guest<'_>, api: Api) -> Result<()> {
    let how = api.mount();
    let context = fsopen(how.kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", how.kind)?;
    for (key, value) in how.options {
        if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)?;
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)?;
        }
    }
    let refused = "the kernel shows a new proc or sysfs only where a whole one is visible: \
                   this host looks like a container itself; give it `nesting`";
    fsconfig_create(context.as_fd()).hint(refused)?;
    let attributes = MountAttrFlags::from_bits_retain(how.attributes as u32);
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).hint(refused)?;
    if api == Api::Devpts {
        guest.devpts = Some(rustix::io::fcntl_dupfd_cloexec(&mount, 3)?);
    }
    guest.made.put(Slot::Api(api.index()), mount);
    Ok(())
}

/// Both ends of pseudo-terminal 0; ours goes to the keeper.
fn open_console(guest: &mut Guest<'_>) -> Result<()> {
    let devpts = guest.devpts.as_ref().ok_or_else(|| error("devpts is not mounted yet"))?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let ours = openat(devpts, "ptmx", flags, Mode::empty())?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    guest.made.put(Slot::Console, ours);
    guest.terminal = Some(theirs);
    Ok(())
}

/// An init reads the name from this file and would set it back. An image without `/etc` has no such init.
fn host_name_file(name: &str) -> Result<()> {
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open =
        |flags| openat2(&root, "etc/hostname", flags | OFlags::CLOEXEC | OFlags::NONBLOCK, mode_for(flags), resolve);
    let line = format!("{name}\n");
    // Reading first spares the overlay a copy at every start.
    if let Ok(file) = open(OFlags::RDONLY)
        && lazaret_base::read_bounded(std::fs::File::from(file), 4096).is_ok_and(|text| text == line.as_bytes())
    {
        return Ok(());
    }
    match open(OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW) {
        Ok(file) => {
            rustix::io::write(&file, line.as_bytes())?;
            Ok(())
        }
        // No /etc, a link in the file's place, a FIFO, a read-only root: the image wants it so.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ROFS | Errno::ISDIR | Errno::ACCESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// openat2(2) takes no mode where nothing is to be made.
fn mode_for(flags: OFlags) -> Mode {
    if flags.contains(OFlags::CREATE) { Mode::from(0o644) } else { Mode::empty() }
}

/// How a `/etc/resolv.conf` of ours begins; one that begins otherwise is somebody else's.
pub const RESOLVER_MARK: &str = "# Written by Lazaret at each start";

/// Programs find their name servers in this file. What the image or its DHCP client wrote there stays; a link belongs
/// to a resolver of the image's own.
fn resolver_file(fds: &Fds) -> Result<()> {
    // Nothing to say: a DHCP client of the image's will.
    let Ok(given) = fds.get(Slot::Resolver) else { return Ok(()) };
    let wanted = read_from_start(given)?;
    let root = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let open = |more| openat2(&root, "etc/resolv.conf", flags | more, mode_for(more), resolve);
    if let Ok(file) = open(OFlags::RDONLY) {
        let there = lazaret_base::read_bounded(std::fs::File::from(file), 64 * 1024).unwrap_or_default();
        let ours = there.iter().all(u8::is_ascii_whitespace) || there.starts_with(RESOLVER_MARK.as_bytes());
        if !ours || there == wanted {
            return Ok(());
        }
    }
    match open(OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC) {
        Ok(file) => {
            rustix::io::write(&file, &wanted)?;
            Ok(())
        }
        // As with the host name: the image wants it so.
        Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::ROFS | Errno::ISDIR | Errno::ACCESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// All of a file in memory, wherever its writer left off.
fn read_from_start(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; rustix::fs::fstat(file)?.st_size as usize];
    let read = rustix::io::pread(file, &mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn keyring() -> Result<()> {
    match new_session_keyring() {
        // A kernel without keyrings has no keys to keep from anybody.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Drops what is not in `set`: the bounding set limits every program executed from here on (capabilities(7)).
pub fn bound(set: Capabilities) -> Result<()> {
    for number in set.missing(confine::last_capability()) {
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel knows fewer capabilities than the table.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(e).with_context(|| format!("dropping capability {number}")),
        }
    }
    Ok(())
}

/// Sets the label of the next execution, in the host's own proc: one that a container offers may lead
/// elsewhere (CVE-2019-19921), so this is done before its mounts are entered.
pub fn take_label(module: Label, label: &str) -> Result<()> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    let proc = openat(CWD, "/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type as u64 != PROC_SUPER_MAGIC {
        return Err(error("`/proc` is not a proc file system"));
    }
    let (path, value) = match module {
        Label::AppArmor => ("thread-self/attr/apparmor/exec", format!("exec {label}")),
        Label::Selinux => ("thread-self/attr/exec", label.to_owned()),
        Label::None => return Err(error("this host labels no processes")),
    };
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
    let open = |path: &str| openat2(&proc, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve);
    // Before Linux 5.8 AppArmor had no directory of its own.
    let file = open(path).or_else(|_| open("thread-self/attr/exec"))?;
    rustix::io::write(&file, value.as_bytes()).hint("is the profile loaded? `aa-status` lists those that are")?;
    Ok(())
}

/// Turns into the program. Returns only if that fails.
fn run(guest: &mut Guest<'_>, program: &Program, environment: &[(String, String)]) -> Result<()> {
    let environment = c_strings(environment.iter().map(|(key, value)| format!("{key}={value}")))?;
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    let arguments = match program {
        Program::Ours(ours) => our_arguments(ours)?,
        Program::First { .. } => Vec::new(),
    };
    let inherit = matches!(program, Program::Ours(OurInit { inherit_stdio: true, .. }));
    let terminal = guest.terminal.take().ok_or_else(|| error("there is no console"))?;
    if let Program::Ours(OurInit { window: Some((rows, columns)), .. }) = program {
        let size = Winsize { ws_row: *rows, ws_col: *columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&terminal, size).context("giving the terminal its size")?;
    }
    let stdio = match guest.stdio.filter(|_| inherit) {
        Some(given) => given,
        None => [terminal.as_fd(); 3],
    };
    take_stdio(stdio)?;
    signal::reset();
    die_with_keeper(guest.line)?;
    close_from(3, true)?;
    // From here on the line closes by execution.
    guest.line.done(Fds::default())?;
    match program {
        Program::Ours(_) => Err(execute_file(guest.init, &arguments, &environment)).context("executing our own init"),
        Program::First { candidates, or_ours } => {
            let (name, errno) = first(candidates, &environment)?;
            if *or_ours && errno == Errno::NOENT {
                let arguments = our_arguments(&OurInit::default())?;
                return Err(execute_file(guest.init, &arguments, &environment)).context("executing our own init");
            }
            Err(not_executable(&name, errno))
        }
    }
}

/// Executes the first candidate that is there; on failure, its name and why.
fn first(candidates: &[Vec<String>], environment: &[CString]) -> Result<(String, Errno)> {
    let mut last = (String::new(), Errno::NOENT);
    for words in candidates {
        let Some(name) = words.first() else { continue };
        let arguments = c_strings(words.iter().cloned())?;
        let errno = execute(&arguments[0], &arguments, environment);
        last = (name.clone(), errno);
        if errno != Errno::NOENT {
            break;
        }
    }
    Ok(last)
}

/// Why a program of the container could not be executed, with what to do about it.
pub fn not_executable(name: &str, errno: Errno) -> lazaret_base::Error {
    let e = lazaret_base::Error::from(errno).context(format!("executing `{name}`"));
    match errno {
        Errno::NOENT | Errno::NOTDIR => e
            .kind(Kind::CommandNotFound)
            .hint("it is not in the container, or the interpreter it names (first line, ELF loader) is not"),
        Errno::NOEXEC => e
            .kind(Kind::CommandNotExecutable)
            .hint("it is no program of this machine's architecture, or a script without a `#!` line"),
        _ => e.kind(Kind::CommandNotExecutable),
    }
}

/// The keeper's end is this process's end. Set as late as can be: a change of ids would clear it.
fn die_with_keeper(line: &Line) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // If the keeper ended before that took hold, its end of the line is closed.
    let mut fds = [rustix::event::PollFd::new(line, rustix::event::PollFlags::RDHUP)];
    let gone = rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0;
    if gone {
        exit_now(1);
    }
    Ok(())
}

/// Makes three descriptors standard input, output and error; they survive execution.
pub fn take_stdio(stdio: [BorrowedFd<'_>; 3]) -> Result<()> {
    // Copies first: one of the three may sit on a number that another is about to take.
    let copies = [
        rustix::io::fcntl_dupfd_cloexec(stdio[0], 10)?,
        rustix::io::fcntl_dupfd_cloexec(stdio[1], 10)?,
        rustix::io::fcntl_dupfd_cloexec(stdio[2], 10)?,
    ];
    rustix::stdio::dup2_stdin(&copies[0])?;
    rustix::stdio::dup2_stdout(&copies[1])?;
    rustix::stdio::dup2_stderr(&copies[2])?;
    Ok(())
}

/// What our own init is told, as its arguments (see crates/runtime/init).
fn our_arguments(ours: &OurInit) -> Result<Vec<CString>> {
    let mut words = vec!["lazaret-init".to_owned()];
    if let Some(cwd) = &ours.cwd {
        words.extend(["--cwd".into(), cwd.clone()]);
    }
    if let Some(user) = &ours.user {
        let account = account::look_up(user)?;
        let groups: Vec<_> = account.groups.iter().map(u32::to_string).collect();
        let groups = if groups.is_empty() { String::new() } else { format!(":{}", groups.join(",")) };
        words.extend(["--ids".into(), format!("{}:{}{groups}", account.uid, account.gid)]);
    }
    if ours.terminal {
        words.push("--setsid-tty".into());
    }
    if !ours.command.is_empty() {
        words.push("--".into());
        words.extend(ours.command.iter().cloned());
    }
    c_strings(words)
}

/// Strings for the kernel. A NUL byte inside one is an error.
pub fn c_strings(strings: impl IntoIterator<Item = String>) -> Result<Vec<CString>> {
    let convert =
        |s: String| CString::new(s).map_err(|e| error(format!("a NUL byte in `{}`", e.into_vec().escape_ascii())));
    strings.into_iter().map(convert).collect()
}

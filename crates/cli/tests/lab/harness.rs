//! What the tests stand on: an installation of their own, the command under a time limit, terminals, and
//! images made of one static program.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

/// The command that is tested.
pub const LAZARET: &str = env!("CARGO_BIN_EXE_lazaret");

/// No single command takes longer, on the slowest machine that these tests shall pass on.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long output may go on coming after the end of the command that wrote it.
const LAST_OUTPUT: Duration = Duration::from_secs(10);

/// An installation of one test. Dropped, it removes all containers and fails the test if anything is left.
pub struct World {
    root: PathBuf,
    /// Where the root is on a file system of its own: the process whose mount namespace has it mounted.
    elsewhere: Option<Running>,
    /// Where the host is one of its own: the process whose network and mount namespaces are the host's.
    host: Option<Running>,
}

impl World {
    /// A new installation without containers.
    pub fn new() -> World {
        need_root();
        World { root: fresh_directory(), elsewhere: None, host: None }
    }

    /// A new installation on a host with a network namespace of its own, where containers are connected unless they say
    /// otherwise. `setup` (a shell script) is run in it, with a mount namespace of its own, too, and `$SPACE`, an empty
    /// directory.
    pub fn on_a_host_of_its_own(setup: &str) -> World {
        need_root();
        let root = fresh_directory();
        let space = root.join("space");
        fs::create_dir(&space).unwrap();
        let mut holder = Command::new("unshare");
        let script = format!("set -e; ip link set lo up; {setup}\necho ready; exec cat");
        holder.args(["--net", "--mount", "--propagation", "private", "/bin/sh", "-c", &script]).env("SPACE", &space);
        let mut holder = Running::start(holder);
        holder.allow(Duration::from_secs(3600));
        holder.expect("ready\n");
        World { root, elsewhere: None, host: Some(holder) }
    }

    /// A process of the host's, by whose namespaces it is known.
    pub fn host_pid(&self) -> u32 {
        self.host.as_ref().map_or_else(std::process::id, Running::pid)
    }

    /// A new installation on a file system of its own, which `mount` (a shell script) mounts on `$ROOT`, in a
    /// mount namespace that ends with the world. `$SPACE` is a directory beside it.
    pub fn mounted_by(mount: &str) -> World {
        need_root();
        let base = fresh_directory();
        let (root, space) = (base.join("root"), base.join("space"));
        for dir in [&root, &space] {
            fs::create_dir(dir).unwrap();
        }
        let mut holder = Command::new("unshare");
        let script = format!("set -e; {mount}\necho mounted; exec cat");
        holder.args(["--mount", "--propagation", "private", "/bin/sh", "-c", &script]);
        holder.env("ROOT", &root).env("SPACE", &space);
        let mut holder = Running::start(holder);
        holder.expect("mounted\n");
        World { root, elsewhere: Some(holder), host: None }
    }

    /// Where everything of this installation is kept.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path of this installation.
    pub fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// What names of this installation's cgroups contain: FNV-1a of its directory, as the store has it.
    pub fn cgroup_prefix(&self) -> String {
        let bytes = self.root.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("{hash:08x}.")
    }

    // --- running the command ---

    /// The command with these arguments, to be changed and then run by [`World::run`], [`Running::start`] or
    /// [`Pty::start`]. Its environment holds nothing but what every login has.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(LAZARET);
        command.arg("--root").arg(&self.root).args(arguments);
        command
    }

    /// A program that sees this installation.
    fn program(&self, program: &str) -> Command {
        let mut command = match (&self.elsewhere, &self.host) {
            (Some(holder), _) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--mount=/proc/{}/ns/mnt", holder.pid())).arg("--").arg(program);
                command
            }
            (None, Some(host)) => {
                let mut command = Command::new("nsenter");
                let pid = host.pid();
                command.args([format!("--mount=/proc/{pid}/ns/mnt"), format!("--net=/proc/{pid}/ns/net")]);
                command.arg("--").arg(program);
                command
            }
            (None, None) => Command::new(program),
        };
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root").env("TERM", "xterm");
        // Most tests are not about the network, and the machine's own is not theirs to change.
        if self.host.is_none() {
            command.env("LAZARET_NETWORK", "none");
        }
        command
    }

    /// Runs the command to its end.
    #[track_caller]
    pub fn lazaret(&self, arguments: &[&str]) -> Out {
        self.run(self.command(arguments), b"")
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub fn feed(&self, input: &[u8], arguments: &[&str]) -> Out {
        self.run(self.command(arguments), input)
    }

    /// The same of a prepared command.
    #[track_caller]
    pub fn run(&self, command: Command, input: &[u8]) -> Out {
        let mut running = Running::start(command);
        running.feed(input);
        running.wait()
    }

    /// Runs the command, which must succeed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> Out {
        self.lazaret(arguments).succeeded(arguments)
    }

    /// Runs the command, which must refuse with status 1, say all of `words`, print nothing and change nothing.
    #[track_caller]
    pub fn refused(&self, arguments: &[&str], words: &[&str]) -> Out {
        let before = self.snapshot();
        let out = self.lazaret(arguments);
        assert_eq!(out.status, 1, "`lazaret {}` should have been refused\n{out}", arguments.join(" "));
        assert!(out.stdout.is_empty(), "a refusal is no data\n{out}");
        assert!(out.stderr.starts_with("error: "), "an error says that it is one\n{out}");
        for word in words {
            assert!(out.stderr.contains(word), "`lazaret {}` does not say `{word}`\n{out}", arguments.join(" "));
        }
        assert_eq!(before, self.snapshot(), "a refused command changed something");
        out
    }

    /// Everything that commands are to change together or not at all: configurations, records, taken ids, and
    /// what runs.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut all = BTreeMap::new();
        for name in entries(&self.path("containers")) {
            for file in ["container.toml", "record.json"] {
                let path = self.path("containers").join(&name).join(file);
                all.insert(path.clone(), fs::read(path).unwrap_or_default());
            }
        }
        for dir in ["ids", "run/containers", "tmp"] {
            all.extend(entries(&self.path(dir)).into_iter().map(|name| (self.path(dir).join(name), Vec::new())));
        }
        all
    }

    /// Begins the command; goes on while it runs.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    /// Begins the command on a terminal of 24 rows and 80 columns.
    #[track_caller]
    pub fn pty(&self, arguments: &[&str]) -> Pty {
        Pty::start(self.command(arguments))
    }

    /// Runs a shell script; `$LAZARET` is the command, and the installation is in its environment.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Out {
        self.run(self.script(script), b"")
    }

    /// The same, not run yet.
    pub fn script(&self, script: &str) -> Command {
        let mut command = self.program("/bin/sh");
        command.args(["-c", script]).env("LAZARET", LAZARET).env("LAZARET_ROOT", &self.root);
        command
    }

    // --- containers ---

    /// Makes a container of an image.
    #[track_caller]
    pub fn create(&self, name: &str, image: impl AsRef<Path>) {
        self.ok(&["create", name, "--image", text(image.as_ref())]);
    }

    /// Makes a container of an image and starts it.
    #[track_caller]
    pub fn start_container(&self, name: &str, image: impl AsRef<Path>) {
        self.create(name, image);
        self.ok(&["start", name]);
    }

    /// What a command in a container printed, without the last line break. It must succeed.
    #[track_caller]
    pub fn exec(&self, name: &str, words: &[&str]) -> String {
        let arguments = [&["exec", name, "--"], words].concat();
        self.ok(&arguments).stdout.trim_end_matches('\n').to_owned()
    }

    /// The same of a shell script.
    #[track_caller]
    pub fn exec_sh(&self, name: &str, script: &str) -> String {
        self.exec(name, &["sh", "-c", script])
    }

    /// What `info --json` says.
    #[track_caller]
    pub fn info(&self, name: &str) -> Value {
        self.ok(&["info", name, "--json"]).json()
    }

    /// The state, in a word.
    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        word(&self.info(name)["state"])
    }

    /// Process 1 as the host knows it.
    #[track_caller]
    pub fn init_pid(&self, name: &str) -> i32 {
        self.info(name)["pid"].as_i64().unwrap_or_else(|| panic!("`{name}` has no init")) as i32
    }

    /// The keeper.
    #[track_caller]
    pub fn keeper_pid(&self, name: &str) -> i32 {
        self.info(name)["keeper"].as_i64().unwrap_or_else(|| panic!("`{name}` has no keeper")) as i32
    }

    /// Waits until a container is in a state.
    #[track_caller]
    pub fn wait(&self, name: &str, state: &str) {
        self.ok(&["wait", name, state, "--timeout", "40s"]);
    }

    /// Every cgroup directory of this installation, in all hierarchies.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let (prefix, mut found) = (self.cgroup_prefix(), Vec::new());
        directories(Path::new("/sys/fs/cgroup"), &mut |dir| {
            if dir.file_name().is_some_and(|name| name.to_string_lossy().contains(&prefix)) {
                found.push(dir.to_owned());
            }
        });
        found
    }

    /// What there should not be when no container is there: one line for each thing.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = self.cgroups().iter().map(|dir| format!("cgroup {}", dir.display())).collect();
        for mountinfo in ["self".to_owned()].into_iter().chain(self.elsewhere.as_ref().map(|h| h.pid().to_string())) {
            let table = fs::read_to_string(format!("/proc/{mountinfo}/mountinfo")).unwrap();
            let below = format!("{}/", text(&self.root));
            let mounts = table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|at| at.starts_with(&below)));
            left.extend(mounts.map(|line| format!("mount {line}")));
        }
        left.extend(self.processes().iter().map(|(pid, why)| format!("process {pid} ({why})")));
        for dir in ["containers", "layers", "ids", "tmp", "run/containers", "run/gone"] {
            left.extend(entries(&self.path(dir)).iter().map(|name| format!("file {dir}/{name}")));
        }
        left
    }

    /// Processes that have to do with this installation: named in their arguments, or holding a file of it.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let root = text(&self.root);
        let concerns = |pid: i32| {
            let proc = PathBuf::from(format!("/proc/{pid}"));
            let arguments = fs::read(proc.join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            let links = ["cwd", "root", "exe"].map(|link| proc.join(link));
            let fds = entries(&proc.join("fd")).into_iter().map(|fd| proc.join("fd").join(fd));
            let below = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.to_string_lossy().starts_with(root));
            let concerned = arguments.contains(root) || links.into_iter().chain(fds).any(below);
            concerned.then_some((pid, arguments))
        };
        let holder = |holder: &Option<Running>| holder.as_ref().map_or(0, |holder| holder.pid() as i32);
        let known = [std::process::id() as i32, holder(&self.elsewhere), holder(&self.host)];
        let all = entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse::<i32>().ok());
        all.filter(|pid| !known.contains(pid)).filter_map(concerns).collect()
    }

    /// Removes every container, whatever its state. `Err` with what was said where that fails.
    fn clear(&self) -> Result<(), String> {
        let listed = self.lazaret(&["list", "--names"]);
        let mut said = String::new();
        for name in listed.stdout.lines() {
            let out = self.lazaret(&["destroy", "--force", name]);
            if out.status != 0 {
                said += &format!("destroying `{name}`: {out}\n");
            }
        }
        if self.path("run/netd").exists() {
            let down = self.lazaret(&["network", "down", "--force"]);
            if down.status != 0 {
                said += &format!("taking the network down: {down}\n");
            }
        }
        // What killed commands left half-made goes with the next one that removes something.
        let sweep = self.sh(&format!("$LAZARET -q create sweep -i {} && $LAZARET destroy sweep", text(&bare())));
        if sweep.status != 0 {
            said += &format!("making and removing a container: {sweep}\n");
        }
        if said.is_empty() { Ok(()) } else { Err(said) }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed already. A second panic would abort all the others.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clear()));
            self.elsewhere.take();
            let _ = fs::remove_dir_all(self.directory());
            return;
        }
        let cleared = self.clear();
        let left = match self.elsewhere {
            // Its files are out of our sight; the commands in there have seen to them.
            Some(_) => {
                self.sh("cd $LAZARET_ROOT && ls containers ids tmp run/containers | grep -v ':$' | grep .").stdout
            }
            None => self.leftovers().join("\n"),
        };
        self.elsewhere.take();
        let removed = fs::remove_dir_all(self.directory());
        assert!(left.is_empty(), "left behind:\n{left}");
        cleared.unwrap_or_else(|said| panic!("clearing up: {said}"));
        removed.unwrap_or_else(|e| panic!("removing `{}`: {e}", self.root.display()));
    }
}

impl World {
    /// The directory that was made for this world.
    fn directory(&self) -> &Path {
        let own = self.root.file_name().is_some_and(|name| name == "root");
        if own { self.root.parent().unwrap() } else { &self.root }
    }
}

#[track_caller]
fn need_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests run real containers, which needs root: sudo -E cargo xtask test"
    );
}

/// An empty directory below `LAZARET_LAB_DIR`, or /var/tmp: on a disk where /tmp may be in memory.
fn fresh_directory() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let base = std::env::var_os("LAZARET_LAB_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    // No name is the beginning of another: who looks for one must not find its neighbours.
    let dir = base.join(format!("lazaret-lab-{}-{number:04}", std::process::id()));
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("making `{}`: {e}", dir.display()));
    // Mount points and cgroup names are compared by path: there must be but one.
    fs::canonicalize(dir).unwrap()
}

/// The names in a directory, sorted; none if it is not there.
pub fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Calls `see` with every directory below `dir`.
fn directories(dir: &Path, see: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            see(&entry.path());
            directories(&entry.path(), see);
        }
    }
}

/// A path of ours, which is text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the tests is text")
}

/// A JSON string.
#[track_caller]
pub fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no word")).to_owned()
}

/// What came of a command.
#[derive(Debug)]
pub struct Out {
    /// The exit status; minus the signal that killed it, if one did.
    pub status: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// Standard output as it came.
    pub bytes: Vec<u8>,
}

impl Out {
    /// Its standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("no JSON: {e}\n{self}"))
    }

    #[track_caller]
    fn succeeded(self, arguments: &[&str]) -> Out {
        assert_eq!(self.status, 0, "`lazaret {}` failed\n{self}", arguments.join(" "));
        self
    }
}

impl fmt::Display for Out {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (shown(&self.bytes), shown(self.stderr.as_bytes()));
        write!(f, "status {}\n--- stdout\n{stdout}\n--- stderr\n{stderr}", self.status)
    }
}

/// Output as it is shown when a test fails: its end, if there is much of it.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 4000;
    let from = bytes.len().saturating_sub(MOST);
    let omitted = if from > 0 { format!("[{from} bytes before that]\n") } else { String::new() };
    omitted + &String::from_utf8_lossy(&bytes[from..])
}

/// A command that runs, with pipes to it. Dropped, it is killed.
pub struct Running {
    child: Child,
    pidfd: OwnedFd,
    input: Option<ChildStdin>,
    /// Standard output and standard error, while they are open.
    open: [Option<OwnedFd>; 2],
    came: [Vec<u8>; 2],
    /// How much of the output [`Running::expect`] has gone through.
    seen: usize,
    /// Whether its end has been seen: from then on there is only output to wait for.
    over: bool,
    deadline: Instant,
}

impl Running {
    /// Starts a command with pipes for its input and output. It must end within [`LIMIT`].
    #[track_caller]
    pub fn start(mut command: Command) -> Running {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("running {command:?}: {e}"));
        let pidfd = pidfd_of(&child);
        let input = child.stdin.take();
        let open = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        for fd in open.iter().flatten() {
            never_block(fd);
        }
        let deadline = Instant::now() + LIMIT;
        Running { child, pidfd, input, open, came: Default::default(), seen: 0, over: false, deadline }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Allows it another span of time from now on.
    pub fn allow(&mut self, time: Duration) {
        self.deadline = Instant::now() + time;
    }

    /// Writes to its standard input, reading meanwhile what it says; a reader that has gone is no error.
    #[track_caller]
    pub fn feed(&mut self, bytes: &[u8]) {
        let Some(mut input) = self.input.take() else { panic!("its input is closed") };
        never_block(&input);
        let mut rest = bytes;
        while !rest.is_empty() {
            match input.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.pump(Some(&input), "to read"),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => break,
                Err(e) => panic!("writing to a command: {e}"),
            }
        }
        self.input = Some(input);
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until it has printed `text`, after what was expected before; returns all up to there.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(found) = take_through(&self.came[0], &mut self.seen, text) {
                return found;
            }
            if self.open[0].is_none() {
                panic!("it never said `{text}`\n{}", self.so_far());
            }
            self.pump(None, text);
        }
    }

    /// The same on standard error; from its beginning.
    #[track_caller]
    pub fn expect_error(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.came[1]).contains(text) {
            assert!(self.open[1].is_some(), "it never said `{text}`\n{}", self.so_far());
            self.pump(None, text);
        }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Whether it ends within this time.
    pub fn ends_within(&self, time: Duration) -> bool {
        readable_within(&self.pidfd, time)
    }

    /// Waits for its end, with its input closed.
    #[track_caller]
    pub fn wait(mut self) -> Out {
        self.input = None;
        while !self.over {
            self.pump(None, "to end");
        }
        self.deadline = self.deadline.min(Instant::now() + LAST_OUTPUT);
        while self.open.iter().any(Option::is_some) {
            self.pump(None, "its output to end (does something it started hold it?)");
        }
        let status = self.child.wait().unwrap();
        let [stdout, stderr] = std::mem::take(&mut self.came);
        Out {
            status: status.code().unwrap_or_else(|| -status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            bytes: stdout,
        }
    }

    /// Waits for one thing to happen and takes what there is to read. Panics when time is up.
    #[track_caller]
    fn pump(&mut self, writable: Option<&ChildStdin>, for_what: &str) {
        let mut fds: Vec<PollFd<'_>> = self.open.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        if !self.over {
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        fds.extend(writable.map(|fd| PollFd::new(fd, PollFlags::OUT)));
        if !poll_until(&mut fds, self.deadline) {
            let _ = self.child.kill();
            panic!("time is up waiting for `{for_what}`\n{}", self.so_far());
        }
        self.over = self.over || self.has_ended();
        for (open, came) in self.open.iter_mut().zip(&mut self.came) {
            if open.as_ref().is_some_and(|fd| !take_all(fd, came)) {
                *open = None;
            }
        }
    }

    fn so_far(&self) -> String {
        let [stdout, stderr] = &self.came;
        format!("--- stdout so far\n{}\n--- stderr so far\n{}", shown(stdout), shown(stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command on a terminal, as a person has it: with a session and a window of its own.
pub struct Pty {
    child: Child,
    pidfd: OwnedFd,
    /// The person's side.
    screen: OwnedFd,
    /// The command's side, kept open so that its mode outlives the command.
    terminal: OwnedFd,
    came: Vec<u8>,
    seen: usize,
    deadline: Instant,
}

impl Pty {
    /// Starts a command whose input, output and controlling terminal is a new terminal.
    #[track_caller]
    pub fn start(command: Command) -> Pty {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let screen = openpt(flags).unwrap();
        grantpt(&screen).and_then(|()| unlockpt(&screen)).unwrap();
        let terminal = ioctl_tiocgptpeer(&screen, flags).unwrap();
        tcsetwinsize(&terminal, window(24, 80)).unwrap();
        never_block(&screen);
        // A controlling terminal can only be taken by a process itself, so setsid(1) of util-linux does.
        let mut words = Command::new("setsid");
        words.arg("--ctty").arg(command.get_program()).args(command.get_args()).env_clear();
        words.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let side = || Stdio::from(terminal.try_clone().unwrap());
        let child = words.stdin(side()).stdout(side()).stderr(side()).spawn();
        let child = child.unwrap_or_else(|e| panic!("running {words:?}: {e}"));
        let pidfd = pidfd_of(&child);
        Pty { child, pidfd, screen, terminal, came: Vec::new(), seen: 0, deadline: Instant::now() + LIMIT }
    }

    /// Types; a line ends with `\r`, as the key sends it.
    #[track_caller]
    pub fn type_in(&mut self, keys: &str) {
        let mut rest = keys.as_bytes();
        while !rest.is_empty() {
            match rustix::io::write(&self.screen, rest) {
                Ok(written) => rest = &rest[written..],
                Err(Errno::AGAIN) => self.pump(PollFlags::IN | PollFlags::OUT, "to take what is typed"),
                Err(e) => panic!("typing: {e}"),
            }
        }
    }

    /// Waits until the screen has shown `text`, after what was expected before; returns all up to there.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        loop {
            if let Some(found) = take_through(&self.came, &mut self.seen, text) {
                return found;
            }
            if readable_within(&self.pidfd, Duration::ZERO) {
                take_all(&self.screen, &mut self.came);
                match take_through(&self.came, &mut self.seen, text) {
                    Some(found) => return found,
                    None => panic!("the screen never showed `{text}`\n{}", self.so_far()),
                }
            }
            self.pump(PollFlags::IN, text);
        }
    }

    /// Gives the window another size.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.screen, window(rows, columns)).unwrap();
    }

    /// The terminal's mode.
    pub fn mode(&self) -> Termios {
        tcgetattr(&self.terminal).unwrap()
    }

    /// Sends the command a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Waits for the command's end. What the screen showed is the standard output.
    #[track_caller]
    pub fn wait(&mut self) -> Out {
        while !readable_within(&self.pidfd, Duration::ZERO) {
            self.pump(PollFlags::IN, "to end");
        }
        take_all(&self.screen, &mut self.came);
        let status = self.child.wait().unwrap();
        Out {
            status: status.code().unwrap_or_else(|| -status.signal().unwrap_or_default()),
            stdout: String::from_utf8_lossy(&self.came).into_owned(),
            stderr: String::new(),
            bytes: self.came.clone(),
        }
    }

    #[track_caller]
    fn pump(&mut self, flags: PollFlags, for_what: &str) {
        let mut fds = [PollFd::new(&self.screen, flags), PollFd::new(&self.pidfd, PollFlags::IN)];
        if !poll_until(&mut fds, self.deadline) {
            let _ = self.child.kill();
            panic!("time is up waiting for `{for_what}`\n{}", self.so_far());
        }
        take_all(&self.screen, &mut self.came);
    }

    fn so_far(&self) -> String {
        format!("--- screen so far\n{}", shown(&self.came))
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn pidfd_of(child: &Child) -> OwnedFd {
    pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap()
}

fn never_block(fd: impl AsFd) {
    fcntl_setfl(&fd, fcntl_getfl(&fd).unwrap() | OFlags::NONBLOCK).unwrap();
}

/// Whether `fd` has something to read within this time.
pub fn readable_within(fd: impl AsFd, time: Duration) -> bool {
    poll_until(&mut [PollFd::new(&fd, PollFlags::IN)], Instant::now() + time)
}

/// Whether one of them is ready before the time is up.
fn poll_until(fds: &mut [PollFd<'_>], end: Instant) -> bool {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(e) => panic!("waiting: {e}"),
        }
    }
}

/// Takes what there is to read without waiting; `false` at the end.
fn take_all(fd: &OwnedFd, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0u8; 65536];
    loop {
        match rustix::io::read(fd, &mut buffer) {
            // A terminal that nobody has open on the other side ends with EIO (pty(7)).
            Ok(0) | Err(Errno::IO) => return false,
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(e) => panic!("reading what a command says: {e}"),
        }
    }
}

/// What came from `seen` on through `text`, if it came; `seen` is then after it.
fn take_through(came: &[u8], seen: &mut usize, text: &str) -> Option<String> {
    let rest = &came[*seen..];
    let at = rest.windows(text.len()).position(|window| window == text.as_bytes())?;
    let end = at + text.len();
    *seen += end;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

// --- images ---

/// A root file system of busybox with neither an init nor anything else: our init is process 1. Users: `root`,
/// and `user` (1000) who is in the groups `staff` (50) and `video` (44), too.
pub fn bare() -> PathBuf {
    roots().join("bare")
}

/// The same with busybox's own init, which starts a shell on the console.
pub fn busybox() -> PathBuf {
    roots().join("busybox")
}

/// A root file system of `tests/fixtures/make-roots.sh`.
#[track_caller]
pub fn fixture(name: &str) -> PathBuf {
    let dir = std::env::var_os("LAZARET_FIXTURES").map(PathBuf::from);
    let dir = dir.expect("LAZARET_FIXTURES names no directory; run the tests by `cargo xtask test`, which makes it");
    let path = dir.join(format!("{name}.tar"));
    assert!(path.exists(), "`{}` is missing; tests/fixtures/make-roots.sh {} makes it", path.display(), dir.display());
    path
}

/// Where the images are, made once by each process.
fn roots() -> &'static Path {
    static ROOTS: OnceLock<PathBuf> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for old in entries(base) {
            let owner = old.strip_prefix("roots-").unwrap_or_default();
            if !owner.is_empty() && !Path::new("/proc").join(owner).exists() {
                let _ = fs::remove_dir_all(base.join(&old));
            }
        }
        let roots = base.join(format!("roots-{}", std::process::id()));
        let program = static_busybox();
        busybox_tree(&roots.join("bare"), &program);
        busybox_tree(&roots.join("busybox"), &program);
        add_init(&roots.join("busybox"));
        roots
    })
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
const GROUP: &str = "root:x:0:\nvideo:x:44:user\nstaff:x:50:root,user\nuser:x:1000:\n";

fn busybox_tree(root: &Path, program: &[u8]) {
    for dir in ["bin", "sbin", "usr/bin", "usr/sbin", "etc", "root", "home/user", "proc", "sys", "dev", "run", "mnt"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (dir, mode) in [("tmp", 0o1777), ("root", 0o700)] {
        fs::create_dir_all(root.join(dir)).unwrap();
        fs::set_permissions(root.join(dir), fs::Permissions::from_mode(mode)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    fs::write(&busybox, program).unwrap();
    fs::set_permissions(&busybox, fs::Permissions::from_mode(0o755)).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines() {
        if !["busybox", "init", "linuxrc"].contains(&applet) {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(root.join("etc/passwd"), PASSWD).unwrap();
    fs::write(root.join("etc/group"), GROUP).unwrap();
    std::os::unix::fs::chown(root.join("home/user"), Some(1000), Some(1000)).unwrap();
}

fn add_init(root: &Path) {
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/inittab"), "::respawn:-/bin/sh\n::ctrlaltdel:/bin/reboot\n").unwrap();
}

/// The bytes of Debian's busybox-static.
fn static_busybox() -> Vec<u8> {
    const REMEDY: &str = "these tests need /bin/busybox, statically linked: apt-get install busybox-static";
    let mut bytes = Vec::new();
    fs::File::open("/bin/busybox")
        .and_then(|mut f| f.read_to_end(&mut bytes))
        .unwrap_or_else(|e| panic!("{REMEDY} ({e})"));
    assert!(!has_interpreter(&bytes), "{REMEDY}");
    bytes
}

/// Whether a 64-bit ELF file asks for a dynamic loader (elf(5), PT_INTERP).
fn has_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| u16::from_le_bytes([elf[at], elf[at + 1]]) as usize;
    let table = u64::from_le_bytes(elf[32..40].try_into().unwrap()) as usize;
    let (size, count) = (u16_at(54), u16_at(56));
    (0..count).map(|at| table + at * size).any(|at| elf[at..at + 4] == PT_INTERP.to_le_bytes())
}

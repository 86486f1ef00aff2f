//! Starting a container: the command asks a keeper to, and hears how it went.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use lazaret_base::{Context, Error, Kind, Result, Wire, error, read_bounded};
use lazaret_config::{Config, Init, Name};
use lazaret_runtime::cgroup::Group;
use lazaret_runtime::host::Host;
use lazaret_runtime::plan::{OurInit, Plan, Program, Spec, program};
use lazaret_sys::process::{Cloned, clone};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::keeper;
use crate::process;
use crate::recover::hold;
use crate::snapshot;
use crate::store::{Record, Store};

/// What the keeper is told: over its standard input, if it is our program started anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// The installation's directory, if it is not the system's.
    pub root: Option<PathBuf>,
    /// The container.
    pub name: Name,
    /// Variables of the caller's that the configuration lets in.
    pub environment: Vec<(String, String)>,
    /// For tests: whom to kill at which step.
    pub inject: Option<(usize, String)>,
}

/// How the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Its init executes. With what the user should know.
    Running(Vec<String>),
    /// It could not be started, and nothing is left of the try.
    Failed(Wire),
}

/// Starts a container and returns when its init executes. What the user should know comes back.
///
/// `environment` are the caller's variables; only those that `env_pass` names are let in. Errors tell the
/// step, the cause and a hint; an already running container is [`Kind::Running`].
pub fn start(
    store: &Store,
    name: &Name,
    environment: impl Fn(&str) -> Option<String>,
    inject: Option<(usize, String)>,
) -> Result<Vec<String>> {
    let lock = hold(store, name)?;
    store.require(name)?;
    if store.is_kept(name)? {
        return Err(already(name));
    }
    // Read here first: what is wrong with it is told before anything begins.
    let config = store.document(name)?.config().clone();
    let environment = passed(&config, environment);
    let request = Request { root: store.root().map(Into::into), name: name.clone(), environment, inject };
    let mut record = store.record(name)?;
    let privileged = record.ids.is_none();
    let mut said = Vec::new();
    if config.auto_snapshots > 0 && !config.volatile {
        said.extend(snapshot::before_start(store, name, &mut record, config.auto_snapshots)?);
    }
    let mut answer = spawn_keeper(&request, privileged).with_context(|| format!("starting `{name}`"))?;
    let answer = hear(&mut answer).with_context(|| format!("starting `{name}`"))?;
    drop(lock);
    match answer {
        Answer::Running(notes) => Ok([said, notes].concat()),
        Answer::Failed(e) => Err(Error::from(e).context(format!("starting `{name}`"))),
    }
}

/// Starts a container that does not run; whether it was started. What the user should know is said.
///
/// # Errors
///
/// As [`start`]'s.
pub fn start_if_stopped(
    store: &Store,
    name: &Name,
    environment: impl Fn(&str) -> Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<bool> {
    store.require(name)?;
    if store.is_kept(name)? {
        return Ok(false);
    }
    match start(store, name, environment, None) {
        Ok(notes) => notes.iter().for_each(|note| say(note)),
        // Somebody else was faster.
        Err(e) if e.what() == Kind::Running => {}
        Err(e) => return Err(e),
    }
    Ok(true)
}

pub(crate) fn already(name: &Name) -> Error {
    error(format!("`{name}` is running already")).kind(Kind::Running).hint(format!("enter it: lazaret shell {name}"))
}

/// The variables that a container takes from its caller, by name.
pub fn passed(config: &Config, environment: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    config.env_pass.iter().filter_map(|key| Some((key.clone(), environment(key)?))).collect()
}

/// Makes the keeper: a child of this process, which it outlives.
///
/// A privileged container could write to the file that process 1 comes from (CVE-2019-5736), so for one of those our
/// program is started anew from a sealed copy in memory; likewise where a front end of several threads can't be copied.
fn spawn_keeper(request: &Request, privileged: bool) -> Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let cloned = match privileged {
        true => Err(Errno::DEADLK),
        false => clone(0, None),
    };
    match cloned {
        Ok(Cloned::Child) => keeper::live(request, theirs.into()),
        Ok(Cloned::Parent(_)) => Ok(ours),
        Err(Errno::DEADLK) => execute_keeper(request, privileged, ours, theirs),
        Err(e) => Err(e).context("making its keeper"),
    }
}

/// Starts our own program anew as a keeper.
fn execute_keeper(request: &Request, sealed: bool, ours: UnixStream, theirs: UnixStream) -> Result<UnixStream> {
    let copy = match sealed {
        true => Some(lazaret_runtime::spawn::sealed_self()?),
        false => None,
    };
    let path = match &copy {
        Some(file) => format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)),
        None => process::OWN_PROGRAM.to_owned(),
    };
    let mut program = process::anew(&path, OwnedFd::from(theirs));
    program.arg("keeper").arg(request.name.as_str()).spawn().context("starting its keeper")?;
    // Or its end would go unheard.
    drop(program);
    let mut line = ours;
    let bytes = serde_json::to_vec(request).map_err(|e| error(e.to_string()))?;
    line.write_all(&bytes).and_then(|()| line.shutdown(std::net::Shutdown::Write)).context("telling its keeper")?;
    Ok(line)
}

const LONGEST_ANSWER: usize = 1 << 20;

fn hear(from: &mut UnixStream) -> Result<Answer> {
    let bytes = read_bounded(from, LONGEST_ANSWER).context("hearing from its keeper")?;
    if bytes.is_empty() {
        return Err(error("its keeper ended before it answered")
            .hint("what it had begun is cleaned up by the next command; `dmesg` tells if memory ran out"));
    }
    serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()).context("hearing from its keeper"))
}

/// Keeper: what it is told.
pub(crate) fn read_request(from: impl Read) -> Result<Request> {
    let bytes = read_bounded(from, LONGEST_ANSWER).context("reading what the keeper is told")?;
    serde_json::from_slice(&bytes).map_err(|e| error(e.to_string()).context("reading what the keeper is told"))
}

/// Keeper: how it went.
pub(crate) fn answer(to: impl AsFd, answer: &Answer) {
    // The command may be gone; the container goes on without it.
    if let Ok(bytes) = serde_json::to_vec(answer) {
        let mut rest = &bytes[..];
        while let Ok(n @ 1..) = rustix::net::send(&to, rest, rustix::net::SendFlags::NOSIGNAL) {
            rest = &rest[n..];
        }
    }
}

/// What is planned from: the container as it is on disk, and what it runs.
pub(crate) fn spec(
    store: &Store,
    name: &Name,
    config: Config,
    record: &Record,
    group: Group,
    ours: Option<OurInit>,
    passed: Vec<(String, String)>,
) -> Spec {
    let program: Program = match ours {
        Some(ours) => Program::Ours(ours),
        None => own_program(&config, record),
    };
    let environment = environment(record, passed, &config);
    // Where nothing is theirs, nobody needs to look for them.
    let person = match config.shares.is_empty() && config.devices.is_empty() {
        true => (0, 0),
        false => crate::share::person(store, name, record, &config),
    };
    Spec {
        name: name.clone(),
        root: store.root_of(name, record, config.volatile),
        binds: record.image.plan_binds(),
        shown: crate::app::shown(store, name, &config, record),
        user: crate::app::user(&config),
        ids: record.ids.map(Into::into),
        group,
        scratch: store.scratch(name),
        person,
        network: crate::network::of(&config),
        program,
        environment,
        config,
    }
}

/// What a container runs by itself: what its configuration says, or else the program that its image is made for.
fn own_program(config: &Config, record: &Record) -> Program {
    match (&config.init, &record.image.program) {
        (Init::Auto, Some(image)) => Program::Ours(OurInit {
            command: image.entrypoint.iter().chain(&image.command).cloned().collect(),
            user: image.user.clone(),
            cwd: image.directory.clone(),
            ..OurInit::default()
        }),
        (init, _) => program(init, record.image.bare),
    }
}

/// The image's variables, those that the caller lets in, and those of the configuration; the last of a name counts.
pub(crate) fn environment(record: &Record, passed: Vec<(String, String)>, config: &Config) -> Vec<(String, String)> {
    let image = record.image.program.iter().flat_map(|program| program.environment.clone());
    image.chain(passed).chain(config.env.clone()).collect()
}

/// The plan of a start, as it would be carried out now.
pub fn plan(store: &Store, name: &Name) -> Result<Plan> {
    let config = store.document(name)?.config().clone();
    let record = store.record(name)?;
    let host = Host::probe()?;
    let group = group_of(store, name, &host);
    Plan::compile(&spec(store, name, config, &record, group, None, Vec::new()), &host)
}

/// The groups of a container; where systemd runs, below a scope that it makes when asked.
pub(crate) fn group_of(store: &Store, name: &Name, host: &Host) -> Group {
    let unit = store.unit(name);
    match host.systemd {
        true => {
            let scope = lazaret_runtime::systemd::scope_name(&unit);
            Group { base: format!("lazaret.slice/{scope}"), scope: Some(scope) }
        }
        false => Group { base: format!("lazaret/{unit}"), scope: None },
    }
}

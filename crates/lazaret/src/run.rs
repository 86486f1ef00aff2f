//! A container for one command: made, run and removed by the caller itself, who is its keeper.

use std::os::fd::{AsFd, BorrowedFd};

use lazaret_base::{Kind, Lock, Result, error};
use lazaret_config::{Document, Name};
use lazaret_image::Progress;
use lazaret_runtime::plan::OurInit;
use lazaret_runtime::spawn::Started;

use crate::create::{self, Create, create_locked};
use crate::keeper::{Ended, Keeper};
use crate::relay::{self, Ends};
use crate::start::{Request, passed};
use crate::store::{Record, Store};

/// What to run.
pub struct Run<'a> {
    /// The container's name; a free one is found if there is none.
    pub name: Option<Name>,
    /// Its configuration.
    pub document: &'a Document,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Who runs it, by the container's own files.
    pub user: Option<String>,
    /// Where.
    pub cwd: Option<String>,
    /// Whether the container stays when the command has ended.
    pub keep: bool,
    /// Its variables, beside those of the configuration.
    pub environment: Vec<(String, String)>,
}

/// Runs it. How the command ended comes back, with the container's name.
pub fn run(
    store: &Store,
    run: Run<'_>,
    stdio: [BorrowedFd<'_>; 3],
    variable: impl Fn(&str) -> Option<String>,
    progress: &mut dyn FnMut(Progress),
    notes: &mut dyn FnMut(&str),
) -> Result<(Ended, Name)> {
    store.prepare()?;
    let name = match run.name {
        Some(name) => name,
        None => create::free_name(store, "run")?
            .ok_or_else(|| error("no free name was found").hint("name the container yourself: --name NAME"))?,
    };
    // Held until it runs: nobody comes in between.
    let lock = store.lock(&name)?;
    let created =
        create_locked(store, &Create { name: &name, document: run.document, ephemeral: !run.keep }, progress)?;
    created.notes.iter().for_each(|note| notes(note));

    let with_terminal = relay::wants_terminal(stdio);
    let mut environment = passed(run.document.config(), &variable);
    if with_terminal && let Some(term) = variable("TERM") {
        environment.push(("TERM".into(), term));
    }
    environment.extend(run.environment);
    let request = Request { root: store.root().map(Into::into), name: name.clone(), environment, inject: None };
    let (command, user, cwd) = program(&created.record, run.command, run.user, run.cwd);
    if command.is_empty() {
        create::discard(store, &name);
        let e = error("there is nothing to run: the image names no program").kind(Kind::Invalid);
        return Err(e.hint("name a command: lazaret run … -- sh; or boot it: lazaret create, lazaret start"));
    }
    let ours = OurInit {
        command,
        user,
        cwd,
        inherit_stdio: !with_terminal,
        terminal: with_terminal,
        window: relay::window(stdio[0]).map(|size| (size.ws_row, size.ws_col)),
    };
    let ended = attend(store, lock, &request, ours, stdio, !run.keep)?;
    Ok((ended, name))
}

/// What is run, by whom and where: what the user says, and for the rest what the image says. Its entry point comes
/// before the user's words.
fn program(
    record: &Record,
    words: Vec<String>,
    user: Option<String>,
    cwd: Option<String>,
) -> (Vec<String>, Option<String>, Option<String>) {
    let Some(image) = &record.image.program else { return (words, user, cwd) };
    let words = if words.is_empty() { image.command.clone() } else { words };
    let command = image.entrypoint.iter().cloned().chain(words).collect();
    (command, user.or(image.user.clone()), cwd.or(image.directory.clone()))
}

fn attend(
    store: &Store,
    lock: Lock,
    request: &Request,
    ours: OurInit,
    stdio: [BorrowedFd<'_>; 3],
    ephemeral: bool,
) -> Result<Ended> {
    let name = &request.name;
    let mut keeper = match Keeper::take(request) {
        Ok(keeper) => keeper,
        Err(e) => {
            if ephemeral {
                create::discard(store, name);
            }
            return Err(e);
        }
    };
    keeper.lock = Some(lock);
    let with_terminal = ours.terminal;
    let ended = if with_terminal {
        let Started { init, console, outgrown: _outgrown, .. } = keeper.start(Some(ours), None, None)?;
        keeper.lock = None;
        let mut beside = keeper.beside(init.pid);
        relay::terminal(init.pidfd.as_fd(), stdio[0], stdio[1], console, relay::signals()?, Some(&mut beside))
    } else {
        let ends = Ends::of(stdio)?;
        let started = keeper.start(Some(ours), Some(ends.for_command()), None)?;
        keeper.lock = None;
        let mut beside = keeper.beside(started.init.pid);
        ends.serve(started.init.pidfd.as_fd(), relay::signals()?, Some(&mut beside))
    };
    let given_back = keeper.give_back();
    if ephemeral && let Ok(Some(_lock)) = store.try_lock(name) {
        store.forget_lock(name);
    }
    let ended = ended?;
    given_back?;
    Ok(ended)
}

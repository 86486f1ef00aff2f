//! `lazaret config`: what a container is and what it may do.

use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use lazaret::limit::{Changed, edit};
use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Document, Name, keys};

use super::{json_flag, key_and_value, name_argument, words};
use crate::report::{json, print};
use crate::session::{Session, name, variable};

pub fn command(command: Command) -> Command {
    let key = |help| {
        Arg::new("key").value_name("KEY").required(true).help(help).add(ArgValueCompleter::new(complete_key))
    };
    command
        .about("Show and change a container's configuration; what can change at once, does")
        .arg(name_argument("The container"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .disable_help_subcommand(true)
        .subcommands([
            Command::new("show").about("Show the file, or all values").arg(json_flag()),
            Command::new("get")
                .about("Show one value, the default if it is not set")
                .args([key("The key, such as memory"), json_flag()]),
            Command::new("set").about("Set values, all or none").arg(
                Arg::new("pairs")
                    .value_name("KEY=VALUE")
                    .required(true)
                    .num_args(1..)
                    .help("Such as memory=1G or env.LANG=C.UTF-8")
                    .add(ArgValueCompleter::new(super::complete_key)),
            ),
            Command::new("unset").about("Go back to the default").arg(key("The key")),
            Command::new("edit").about("Edit the file in $EDITOR"),
            Command::new("keys").about("List every key there is").arg(json_flag()),
        ])
        .after_help(
            "\
Examples:
  lazaret config web show
  lazaret config web set memory=1G swap=0 cpus=1.5
  lazaret config web set env.LANG=de_DE.UTF-8
  lazaret config web unset memory
  lazaret config web keys            every key, its default, and whether it changes at once",
        )
}

fn complete_key(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let known = keys().iter().filter(|key| key.name.starts_with(&*typed));
    known.map(|key| CompletionCandidate::new(key.name).help(Some(key.doc.into()))).collect()
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let name = name(matches)?;
    let Some((act, matches)) = matches.subcommand() else { return Ok(ExitCode::from(2)) };
    if act == "keys" && matches.get_flag("json") {
        return json(&keys().iter().map(described).collect::<Vec<_>>());
    }
    if act == "keys" {
        print(&table_of_keys());
        return Ok(ExitCode::SUCCESS);
    }
    let store = session.ready()?;
    let key = || matches.get_one::<String>("key").map(String::as_str).unwrap_or_default();
    match act {
        "show" if matches.get_flag("json") => return json(store.document(&name)?.config()),
        "show" => print(&store.document_text(&name)?),
        "get" if matches.get_flag("json") => return json(&store.document(&name)?.get(key())?),
        "get" => {
            if let Some(value) = store.document(&name)?.get(key())? {
                print(&format!("{value}\n"));
            }
        }
        "set" => {
            let pairs = words(matches, "pairs").iter().map(|p| key_and_value(p, "memory=1G")).collect::<Result<Vec<_>>>()?;
            let changed = edit(store, &name, |document| {
                document.set_all(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())))
            })?;
            say(session, &name, &changed);
        }
        "unset" => {
            let changed = edit(store, &name, |document| document.unset(key()).map(drop))?;
            say(session, &name, &changed);
        }
        _ => edit_by_hand(session, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn say(session: &Session, name: &Name, changed: &Changed) {
    changed.notes.iter().for_each(|note| session.say(note));
    if !changed.at_next_start.is_empty() {
        session.say(&format!("{} will hold from the next start on: lazaret restart {name}", changed.at_next_start.join(", ")));
    }
}

/// The person's editor on a copy; what comes back is taken if it is sound, and offered again if it is not.
fn edit_by_hand(session: &Session, name: &Name) -> Result<()> {
    let workshop = session.store.editing_directory()?;
    let edited = edit_copy(session, name, &workshop.path().join("container.toml"));
    session.store.clear(workshop)?;
    edited
}

fn edit_copy(session: &Session, name: &Name, path: &Path) -> Result<()> {
    let before = session.store.document_text(name)?;
    let editor = variable("VISUAL").or_else(|| variable("EDITOR")).unwrap_or_else(|| "vi".into());
    std::fs::write(path, &before).context("writing a copy to edit")?;
    loop {
        // By the shell, so that EDITOR="code --wait" works (environ(7)).
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", &format!("{editor} \"$1\""), "sh"])
            .arg(path)
            .status()
            .with_context(|| format!("running the editor `{editor}`"))?;
        if !status.success() {
            return Err(error(format!("the editor `{editor}` ended with an error; nothing was changed")));
        }
        let text = std::fs::read_to_string(path).context("reading what was edited")?;
        if text == before {
            session.say("nothing was changed");
            return Ok(());
        }
        match take(session, name, &text) {
            Err(e) if e.what() == Kind::Invalid && again(session, &e)? => {}
            other => return other,
        }
    }
}

fn take(session: &Session, name: &Name, text: &str) -> Result<()> {
    let edited = Document::parse("container.toml", text)?;
    let changed = lazaret::limit::replace(&session.store, name, &edited)?;
    say(session, name, &changed);
    Ok(())
}

/// Asks whether to edit again; without a person to ask, no.
fn again(session: &Session, e: &lazaret_base::Error) -> Result<bool> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    session.say(&format!("{e}\nEnter edits again, Ctrl-D gives up"));
    Ok(std::io::stdin().read_line(&mut String::new())? > 0)
}

fn described(key: &lazaret_config::Key) -> serde_json::Value {
    serde_json::json!({
        "key": key.name,
        "value": key.shape,
        "default": key.default,
        "live": key.live,
        "meaning": key.doc,
        "example": key.example,
    })
}

fn table_of_keys() -> String {
    let row = |key: &lazaret_config::Key| {
        let when = if key.live { "at once" } else { "next start" };
        vec![key.name.to_owned(), key.default.to_owned(), when.to_owned(), key.doc.to_owned()]
    };
    let rows: Vec<_> = keys().iter().map(row).collect();
    crate::table::render(&["KEY", "DEFAULT", "CHANGES", "MEANING"], &rows)
}

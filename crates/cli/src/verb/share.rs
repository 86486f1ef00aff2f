//! `lazaret share`: a directory, file or socket of the host inside, now and from now on.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use lazaret::share::{Create, Wanted, add};
use lazaret_base::{Kind, Result, error};

use super::name_argument;
use crate::session::{Session, caller, name};

pub fn command(command: Command) -> Command {
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    command
        .about("Show a directory, file or socket of the host inside; at once, and at every start")
        .args([
            name_argument("The container"),
            Arg::new("path")
                .value_name("HOSTDIR[:GUESTDIR]")
                .required(true)
                .value_hint(clap::ValueHint::AnyPath)
                .help("Where it is, and where it appears inside; without GUESTDIR, at the same path"),
            flag("ro", "Nothing in it, nor in what is mounted below it, can be changed from inside"),
            flag("noexec", "No program in it can be executed from inside"),
            flag("optional", "The container starts without it if it is not there"),
            Arg::new("create")
                .long("create")
                .value_name("KIND")
                .value_parser(["dir", "file"])
                .help("What is made where GUESTDIR is missing [default: what HOSTDIR is]"),
            Arg::new("owner")
                .long("owner")
                .value_name("UID")
                .value_parser(value_parser!(u32).range(..u32::MAX as i64))
                .help("Whose files belong to the container's user inside [default: those of HOSTDIR's owner]"),
            flag("yes-really", "Share what opens the host wide, such as /etc or a whole home"),
        ])
        .after_help(
            "\
Files belong to the same person on both sides: what HOSTDIR's owner has outside is the container's user's \
inside, who is user 1000 if there is one, else root (the key `person` names another). What other users inside \
make there is nobody's outside. Programs in it gain nothing by set-user-ID, and devices in it are no devices.

Examples:
  lazaret share ff ~/Downloads/ff:/home/me/Downloads
  lazaret share ff /srv/music --ro
  lazaret share ff /run/mpd/socket:/run/mpd/socket --optional
  lazaret unshare ff /home/me/Downloads",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let typed = matches.get_one::<String>("path").map(String::as_str).unwrap_or_default();
    let (source, target) = source_and_target(typed, Path::exists);
    if source.is_empty() {
        return Err(error("nothing is named that could be shared").kind(Kind::Invalid).hint("for example ~/in:/mnt/in"));
    }
    let create = matches.get_one::<String>("create").map(|kind| match kind.as_str() {
        "dir" => Create::Directory,
        _ => Create::File,
    });
    let target = target.map(PathBuf::from);
    let wanted = Wanted {
        source: Path::new(source),
        target: target.as_deref(),
        read_only: matches.get_flag("ro"),
        no_exec: matches.get_flag("noexec"),
        optional: matches.get_flag("optional"),
        owner: matches.get_one::<u32>("owner").copied(),
        really: matches.get_flag("yes-really"),
        create,
    };
    let shared = add(session.ready()?, &name(matches)?, &wanted, caller())?;
    shared.notes.iter().for_each(|note| session.say(note));
    let (source, target) = (shared.share.source.display(), shared.share.target.display());
    let how = if shared.share.read_only { ", read-only" } else { "" };
    session.say(&format!("`{source}` is at `{target}` inside{how}"));
    Ok(ExitCode::SUCCESS)
}

/// A whole path that is there is no pair, whatever colons it has.
fn source_and_target(typed: &str, is_there: impl Fn(&Path) -> bool) -> (&str, Option<&str>) {
    match typed.rfind(":/") {
        Some(at) if !is_there(Path::new(typed)) => (&typed[..at], Some(&typed[at + 1..])),
        _ => (typed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_split_where_the_second_path_begins() {
        let nothing = |_: &Path| false;
        assert_eq!(source_and_target("/a:/b", nothing), ("/a", Some("/b")));
        assert_eq!(source_and_target("/a:b/c:/d", nothing), ("/a:b/c", Some("/d")));
        assert_eq!(source_and_target("in", nothing), ("in", None));
        assert_eq!(source_and_target("/a:/b", |_| true), ("/a:/b", None));
    }
}

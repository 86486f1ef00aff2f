//! `lazaret device`: devices of the host inside, now and from now on.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use lazaret::device::{add, lines, remove};
use lazaret_base::Result;
use lazaret_config::Device;

use super::{json_flag, name_argument};
use crate::report::{json, print};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    let flag = |name: &'static str, help| Arg::new(name).long(name).action(ArgAction::SetTrue).requires("device").help(help);
    command
        .about("Give a device of the host to a container, or take it away; at once, and at every start")
        .args([
            name_argument("The container"),
            Arg::new("device")
                .value_name("DEVICE")
                .add(ArgValueCompleter::new(complete))
                .help("camera, gpu, gamepad, serial, usb:VENDOR:PRODUCT[:SERIAL] or /dev/NODE; without it, list them"),
            flag("ro", "It may be opened for reading alone"),
            flag("off", "Take it away").conflicts_with("ro"),
            flag("yes-really", "Give what opens the host wide, such as a disk"),
            json_flag(),
        ])
        .after_help(
            "\
All devices that match are given, under the names they have outside, to the container's user; those that are \
plugged in later, too. One that is not there stops no start. `gpu` is what renders without a screen \
(/dev/dri/renderD*). A program that has a device open which is taken away can use it until it closes it.

Examples:
  lazaret device ff camera
  lazaret device ff usb:046d:0825
  lazaret device ff /dev/serial/by-id/usb-FTDI_FT232R-if00-port0
  lazaret device ff camera --off
  lazaret device ff",
        )
}

fn complete(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let key = lazaret_config::keys().iter().find(|key| key.name == "devices");
    let words = key.map_or(&[][..], |key| key.words);
    let typed = typed.to_string_lossy();
    words.iter().filter(|word| word.starts_with(&*typed)).map(|word| CompletionCandidate::new(*word)).collect()
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    if let Some(typed) = matches.get_one::<String>("device") {
        let device = Device {
            which: typed.parse()?,
            read_only: matches.get_flag("ro"),
            confirmed: matches.get_flag("yes-really"),
        };
        if matches.get_flag("off") {
            remove(store, &name, &device)?;
            session.say(&format!("`{}` is taken away", device.which));
            return Ok(ExitCode::SUCCESS);
        }
        add(store, &name, &device)?.iter().for_each(|note| session.say(note));
    }
    let lines = lines(store.document(&name)?.config());
    match matches.get_flag("json") {
        true => return json(&lines),
        false if lines.is_empty() => session.say(&format!("`{name}` has no devices; for example: lazaret device {name} camera")),
        false => lines.iter().for_each(|line| print(&format!("{line}\n"))),
    }
    Ok(ExitCode::SUCCESS)
}

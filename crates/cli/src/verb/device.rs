//! `lazaret device`: devices of the host inside, now and from now on.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use lazaret::device::{add, lines, remove};
use lazaret::microphone::switch;
use lazaret_base::{Kind, Result, error};
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
                .help(
                    "camera, gpu, gamepad, serial, usb:VENDOR:PRODUCT[:SERIAL], /dev/NODE, or microphone; without it, \
                     list them",
                ),
            Arg::new("state").value_name("on|off").value_parser(["on", "off"]).hide_possible_values(true).help(
                "Give it or take it away [default: on]",
            ),
            flag("ro", "It may be opened for reading alone"),
            flag("off", "Take it away; `off` says the same").conflicts_with_all(["ro", "state"]),
            flag("yes-really", "Give what opens the host wide, such as a disk"),
            json_flag(),
        ])
        .after_help(
            "\
All devices that match are given, under the names they have outside, to the container's user; those that are \
plugged in later, too. One that is not there stops no start. `gpu` is what renders without a screen \
(/dev/dri/renderD*). A program that has a device open which is taken away can use it until it closes it.

The microphone is no node of /dev but a switch of the sound gate. It is off at every start. Switched on, programs \
record from the microphones of your session, and from nothing else; switched off, what they record ends at once.

Examples:
  lazaret device ff camera
  lazaret device ff usb:046d:0825
  lazaret device ff /dev/serial/by-id/usb-FTDI_FT232R-if00-port0
  lazaret device ff camera --off
  lazaret device ff microphone on
  lazaret device ff",
        )
}

/// What is no device for the kernel.
const MICROPHONE: &str = "microphone";

fn complete(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let key = lazaret_config::keys().iter().find(|key| key.name == "devices");
    let words = key.map_or(&[][..], |key| key.words);
    let typed = typed.to_string_lossy();
    let words = words.iter().chain(&[MICROPHONE]).filter(|word| word.starts_with(&*typed));
    words.map(|word| CompletionCandidate::new(*word)).collect()
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let (store, name) = (session.ready()?, name(matches)?);
    let off = matches.get_flag("off") || matches.get_one::<String>("state").is_some_and(|state| state == "off");
    if matches.get_one::<String>("device").is_some_and(|typed| typed == MICROPHONE) {
        if matches.get_flag("ro") || matches.get_flag("yes-really") {
            return Err(error("the microphone is on or off").kind(Kind::Invalid).hint("leave the option away"));
        }
        switch(store, &name, !off)?;
        session.say(match off {
            true => "the microphone is off",
            false => "the microphone is on, until it is switched off or the container stops",
        });
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(typed) = matches.get_one::<String>("device") {
        let device = Device {
            which: typed.parse()?,
            read_only: matches.get_flag("ro"),
            confirmed: matches.get_flag("yes-really"),
        };
        if off {
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

//! `lazaret info`: one container on one screen.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::info::{Info, State, info};
use lazaret_base::Result;
use lazaret_config::{Clipboard, Display, Sound};

use super::{json_flag, name_argument};
use crate::report::{Colour, json, paint, print, size};
use crate::session::{Session, name};

pub fn command(command: Command) -> Command {
    command
        .about("Show what a container is, what holds it in, and every opening in its wall")
        .args([name_argument("The container"), json_flag()])
        .after_help("Examples:\n  lazaret info web\n  lazaret info web --json | jq .pid")
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let info = info(session.ready()?, &name(matches)?)?;
    if matches.get_flag("json") {
        return json(&info);
    }
    print(&render(&info, std::io::stdout().is_terminal()));
    Ok(ExitCode::SUCCESS)
}

/// Lines of `label: value`; what weakens the wall is red.
fn render(info: &Info, terminal: bool) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text.push_str(&format!("{:<14}{value}\n", format!("{label}:")));
    let colour = match info.state {
        State::Running => Colour::Green,
        State::Stopped => Colour::Dim,
        _ => Colour::Yellow,
    };
    line("name", info.name.as_str());
    if !info.config.description.is_empty() {
        line("description", &info.config.description);
    }
    line("state", &paint(&info.state.to_string(), colour, terminal));
    if let (Some(pid), Some(since)) = (info.pid, info.since) {
        line("init", &format!("process {pid}, up {}", super::list::up(since)));
    }
    line("image", &info.image);
    if let Some(usage) = &info.usage {
        let limit = info.config.memory.map(|limit| format!(" of {}", size(limit.bytes()))).unwrap_or_default();
        let parts = [
            usage.memory.map(|memory| format!("memory {}{limit}", size(memory))),
            usage.tasks.map(|tasks| format!("tasks {tasks}")),
            usage.cpu_microseconds.map(|cpu| format!("processor {:.1} s", cpu as f64 / 1e6)),
        ];
        line("uses", &parts.into_iter().flatten().collect::<Vec<_>>().join(", "));
    }
    match info.ids {
        Some(ids) => {
            line("ids", &format!("0-{} are {}-{} outside", ids.count - 1, ids.start, ids.start + ids.count - 1))
        }
        None => line("ids", &paint("the host's own: root inside is root outside", Colour::Red, terminal)),
    }
    if let Some(cgroup) = &info.cgroup {
        line("cgroup", cgroup);
    }
    if let Some(walls) = &info.confinement {
        line("namespaces", &walls.namespaces.join(", "));
        if !walls.shared_with_host.is_empty() {
            line("shares", &format!("with the host: {}", walls.shared_with_host.join(", ")));
        }
        line("seccomp", if walls.seccomp { "on" } else { "off" });
        line("capabilities", &walls.capabilities.join(" "));
        line("label", walls.label.as_deref().unwrap_or("none (this host has no AppArmor or SELinux)"));
        if walls.no_new_privileges {
            line("privileges", "none can be gained (no_new_privs)");
        }
    }
    for (label, words) in network_lines(info) {
        line(label, &words);
    }
    for (label, words) in desktop_lines(info, terminal) {
        line(label, &words);
    }
    if info.openings.is_empty() {
        line("openings", "none");
    }
    for (at, opening) in info.openings.iter().enumerate() {
        let red = !opening.ends_with("read-only");
        let shown = if red { paint(opening, Colour::Red, terminal) } else { opening.clone() };
        line(if at == 0 { "openings" } else { " " }.trim_end(), &shown);
    }
    if !info.at_next_start.is_empty() {
        line("next start", &format!("{} changed; lazaret restart {}", info.at_next_start.join(", "), info.name));
    }
    info.notes.iter().for_each(|note| line("note", note));
    text.replace("\n:             ", "\n              ")
}

/// The display, by what mechanism, and the clipboard.
fn desktop_lines(info: &Info, terminal: bool) -> Vec<(&'static str, String)> {
    let desktop = &info.config.desktop;
    let level = match desktop.display {
        Display::None => return Vec::new(),
        Display::Isolated => "isolated".to_owned(),
        Display::Nested => "nested".to_owned(),
        Display::Trusted => paint("trusted", Colour::Red, terminal),
    };
    let programs = |count: usize| if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") };
    let gone = |there: bool| if there { "" } else { " (gone)" };
    let mut mechanisms: Vec<String> = Vec::new();
    mechanisms.extend(info.wayland.as_ref().map(|gate| {
        let how = match (gate.compositor.trusted, gate.context) {
            (true, _) => "unfiltered",
            (false, true) => "filtered, and restricted by the compositor (security-context)",
            (false, false) => "filtered",
        };
        let (socket, there, person) = (gate.compositor.socket.display(), gone(gate.server), &gate.compositor.person);
        format!("compositor `{socket}`{there} of {person} by the Wayland gate, {how}; {}", programs(gate.connections))
    }));
    mechanisms.extend(info.gate.as_ref().map(|gate| {
        let how = match (gate.shown.nested, gate.shown.trusted) {
            (true, _) => "on a server of its own in a window (Xephyr)",
            (false, true) => "with a trusted cookie",
            (false, false) => "filtered, with an untrusted cookie",
        };
        let (shown, there) = (&gate.shown, gone(gate.server));
        format!("display {}{there} of {} by the X11 gate, {how}; {}", shown.display, shown.person, programs(gate.connections))
    }));
    let mechanism = match mechanisms.is_empty() {
        true => "no program is on a screen".to_owned(),
        false => mechanisms.join("; "),
    };
    let clipboard = match desktop.clipboard {
        _ if desktop.display == Display::Trusted => paint("the session's own", Colour::Red, terminal),
        _ if desktop.display == Display::Nested => "the window's own; closed both ways".to_owned(),
        Clipboard::Off => "closed both ways".to_owned(),
        Clipboard::Out => format!("out; in by `lazaret paste {}`", info.name),
        Clipboard::Both => paint("both ways", Colour::Red, terminal),
    };
    let sound = match (desktop.sound, info.hearing) {
        (Sound::Off, _) => "off".to_owned(),
        (Sound::Play, Some(_)) => "plays, by the sound gate; records nothing".to_owned(),
        (Sound::Play, None) => "may play; no sound server is connected".to_owned(),
        (Sound::PlayRecord, hearing) => {
            let plays = if hearing.is_some() { "plays, by the sound gate" } else { "may play; no sound server is connected" };
            let programs = match hearing.map_or(0, |hearing| hearing.recording) {
                0 => "nobody records now".to_owned(),
                1 => "1 program records now".to_owned(),
                several => format!("{several} programs record now"),
            };
            let microphone = match info.microphone {
                true => paint(&format!("microphone on, {programs}"), Colour::Red, terminal),
                false => format!("microphone off (`lazaret device {} microphone on`)", info.name),
            };
            format!("{plays}; {microphone}")
        }
    };
    let user = desktop.user.as_ref().map_or_else(|| "root".to_owned(), ToString::to_string);
    let bus = lazaret::bus::line(&info.config).unwrap_or_default();
    vec![("display", format!("{level}; {mechanism}")), ("clipboard", clipboard), ("sound", sound), ("bus", bus), ("desktop user", user)]
}

/// Addresses, names, policy and traffic.
fn network_lines(info: &Info) -> Vec<(&'static str, String)> {
    let Some(one) = &info.network else {
        return match info.config.network.mode {
            lazaret_config::Mode::None => vec![("network", "none, but its own loopback".into())],
            _ => vec![("network", info.config.network.mode.to_string())],
        };
    };
    let mode = if one.mode.is_empty() { info.config.network.mode.to_string() } else { one.mode.clone() };
    let mut lines =
        vec![("network", [mode, one.attached.addresses.join(", ")].join(", ").trim_end_matches(", ").to_owned())];
    if !one.attached.names.is_empty() {
        lines.push(("names", one.attached.names.join(", ")));
    }
    if !one.policy.is_empty() {
        lines.push(("policy", one.policy.join("; ")));
    }
    if !one.peers.is_empty() {
        lines.push(("peers", one.peers.join(", ")));
    }
    if one.attached.link.is_some() {
        lines.push(("traffic", format!("{} received, {} sent", size(one.received), size(one.sent))));
    }
    lines.extend(one.impairments.iter().map(|impairment| ("impaired", impairment.clone())));
    lines
}

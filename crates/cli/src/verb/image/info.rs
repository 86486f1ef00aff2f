//! `lazaret image info`: one image on one screen.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::image::{Line, find_here, used_by};
use lazaret_base::Result;

use super::{Shown, ago, here_argument};
use crate::report::{json, print, size};
use crate::session::Session;
use crate::verb::{absolute, json_flag, words};

pub fn command(command: Command) -> Command {
    command
        .about("Show what an image is, where it came from, and what it runs")
        .args([here_argument("The image", true), json_flag()])
        .after_help(
            "Examples:\n  lazaret image info debian/trixie\n  lazaret image info debian/trixie --json | jq .[0].layer",
        )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let store = session.ready()?;
    let mut lines = Vec::new();
    for reference in words(matches, "image") {
        let found = find_here(store, &absolute(&reference)?)?;
        let used_by = used_by(store, &found.layer.id)?;
        lines.push(Line { name: found.name, image: found.image, layer: found.layer, used_by });
    }
    if matches.get_flag("json") {
        return json(&lines.iter().map(Shown::of).collect::<Vec<_>>());
    }
    let shown: Vec<_> = lines.iter().map(|line| text(&Shown::of(line))).collect();
    print(&shown.join("\n"));
    Ok(ExitCode::SUCCESS)
}

fn text(image: &Shown<'_>) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{:<14}{value}\n", format!("{label}:")));
        }
    };
    line("name", image.name);
    line("other names", &image.other_names.join(" "));
    line("description", image.description);
    line("architecture", image.architecture);
    line("build", image.build);
    line("came", &ago(image.since));
    line("expires", &image.expires.map(ago).unwrap_or_default());
    line("size", &format!("{} in {} files", size(image.size), image.files));
    line("layer", &image.layer);
    line("fingerprint", image.fingerprint.unwrap_or_default());
    line("source", image.source);
    line("tree", &image.rootfs.to_string_lossy());
    line("containers", &image.used_by.join(" "));
    line("writes", &image.templates.join(" "));
    if let Some(program) = image.program {
        let words: Vec<_> =
            program.entrypoint.iter().chain(&program.command).map(|word| word.escape_debug().to_string()).collect();
        line("runs", &words.join(" "));
        line("as", program.user.as_deref().unwrap_or_default());
        line("in", program.directory.as_deref().unwrap_or_default());
        let variables: Vec<_> = program
            .environment
            .iter()
            .map(|(key, value)| format!("{key}={value}").escape_debug().to_string())
            .collect();
        line("with", &variables.join(" "));
    }
    image.warnings.iter().for_each(|warning| line("note", warning));
    text
}

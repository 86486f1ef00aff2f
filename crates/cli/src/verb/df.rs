//! `lazaret df`: where the disk space has gone.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use lazaret::df::{Line, Sort, Space, df};
use lazaret_base::Result;

use super::json_flag;
use crate::report::{json, print, size};
use crate::session::Session;
use crate::table;

pub fn command(command: Command) -> Command {
    command.about("Show what images, containers and snapshots take on the disk").arg(json_flag()).after_help(
        "\
OWN is what would be free if that line was gone. SHARED is needed by others as well: other containers, other \
snapshots. In the picture, `#` is own and `-` is shared.

Examples:
  lazaret df
  lazaret df --json | jq .total",
    )
}

pub fn run(session: &Session, matches: &ArgMatches) -> Result<ExitCode> {
    let space = df(session.ready()?)?;
    if matches.get_flag("json") {
        return json(&space);
    }
    let largest = space.lines.iter().map(|line| line.own + line.shared).max().unwrap_or(0);
    let rows: Vec<_> = space.lines.iter().map(|line| row(line, largest)).collect();
    if !rows.is_empty() {
        print(&table::render(&["WHAT", "NAME", "OWN", "SHARED", "FILES", ""], &rows));
    }
    print(&summary(&space));
    Ok(ExitCode::SUCCESS)
}

fn summary(space: &Space) -> String {
    format!("{} in all; {} of {} are free there\n", size(space.total), size(space.free), size(space.size))
}

fn row(line: &Line, largest: u64) -> Vec<String> {
    let (what, name) = match (&line.sort, &line.snapshot) {
        (Sort::Image, _) => ("image", line.name.clone()),
        (Sort::Container, _) => ("container", line.name.clone()),
        (Sort::Snapshot, label) => ("snapshot", format!("{} {}", line.name, label.clone().unwrap_or_default())),
    };
    let shared = if line.sort == Sort::Image { "-".into() } else { size(line.shared) };
    vec![what.into(), name, size(line.own), shared, line.entries.to_string(), bar(line, largest)]
}

const WIDTH: u64 = 24;

/// As long as the line's part of the largest.
fn bar(line: &Line, largest: u64) -> String {
    let cells = |bytes: u64| (u128::from(bytes) * u128::from(WIDTH)).div_ceil(u128::from(largest.max(1))) as usize;
    let whole = cells(line.own + line.shared);
    let own = cells(line.own).min(whole);
    format!("{}{}", "#".repeat(own), "-".repeat(whole - own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_parts_of_the_largest() {
        let line =
            |own, shared| Line { sort: Sort::Container, name: "c".into(), snapshot: None, own, shared, entries: 1 };
        assert_eq!(bar(&line(50, 50), 100), "############------------");
        assert_eq!(bar(&line(1, 0), 1 << 40), "#");
        assert_eq!(bar(&line(0, 0), 0), "");
        assert_eq!(bar(&line(u64::MAX / 2, u64::MAX / 2), u64::MAX), "############------------");
    }
}

//! How things are said. The only file that writes errors.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use lazaret_base::{Error, Kind};
use serde::Serialize;

/// Colours, on a terminal only and not where NO_COLOR is set (no-color.org).
pub fn paint(text: &str, colour: Colour, to_terminal: bool) -> String {
    if !to_terminal || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return text.to_owned();
    }
    format!("\x1b[{}m{text}\x1b[0m", colour as u8)
}

/// The few colours there are.
#[derive(Clone, Copy)]
pub enum Colour {
    /// Wrong, or dangerous.
    Red = 31,
    /// As it should be.
    Green = 32,
    /// Worth a look.
    Yellow = 33,
    /// In the background.
    Dim = 2,
    /// A heading.
    Bold = 1,
}

/// Says what went wrong and what to do about it; the status is by the verb's rules.
pub fn failure(e: &Error, verb: &str) -> ExitCode {
    let mut stderr = std::io::stderr();
    let terminal = stderr.is_terminal();
    for line in e.to_string().lines() {
        let _ = writeln!(stderr, "{} {line}", paint("error:", Colour::Red, terminal));
    }
    if let Some(hint) = e.advice() {
        let _ = writeln!(stderr, "{} {hint}", paint("hint:", Colour::Yellow, terminal));
    }
    let passes_status_on = matches!(verb, "exec" | "run" | "shell" | "app" | "trace");
    ExitCode::from(match e.what() {
        _ if verb == "ssh" => lazaret::ssh::FAILED as u8,
        Kind::CommandNotFound if passes_status_on => 127,
        Kind::CommandNotExecutable if passes_status_on => 126,
        // Ours, not the command's: as podman and env(1) have it.
        _ if passes_status_on => 125,
        _ => 1,
    })
}

/// What clap has to say: help is data, a mistake is talk.
pub fn usage(e: &clap::Error) -> ExitCode {
    // Nobody may be listening.
    let _ = e.print();
    ExitCode::from(e.exit_code() as u8)
}

/// Writes data. A reader that has gone away is no error (`lazaret list | head -1`).
pub fn print(text: &str) {
    let mut stdout = std::io::stdout();
    // At once: the line that is being followed may be a prompt, without an end.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes a value as JSON, one document.
pub fn json(value: &impl Serialize) -> lazaret_base::Result<ExitCode> {
    let text = serde_json::to_string_pretty(value).map_err(|e| lazaret_base::error(e.to_string()))?;
    print(&text);
    print("\n");
    Ok(ExitCode::SUCCESS)
}

/// How much of long work is done.
pub struct Amount {
    /// Bytes.
    pub done: u64,
    /// How many of them were there before: they took no time.
    pub before: u64,
    /// How many there are, if that is known.
    pub total: Option<u64>,
    /// Files, if it is about files.
    pub entries: u64,
}

/// How far long work is, how fast, and how long it will take.
pub fn bar(amount: &Amount, elapsed: Duration) -> String {
    let rate = amount.done.saturating_sub(amount.before) as f64 / elapsed.as_secs_f64().max(0.001);
    let files = if amount.entries > 0 { format!(", {} files", amount.entries) } else { String::new() };
    let Some(total) = amount.total.filter(|total| *total > 0) else {
        return format!("{}{files}", size(amount.done));
    };
    let part = (amount.done as f64 / total as f64).min(1.0);
    let filled = (part * 24.0) as usize;
    let left = Duration::from_secs_f64(total.saturating_sub(amount.done) as f64 / rate.max(1.0));
    format!(
        "[{}{}] {:>3.0} %  {} of {}, {}/s, {} left{files}",
        "#".repeat(filled),
        "-".repeat(24 - filled),
        part * 100.0,
        size(amount.done),
        size(total),
        size(rate as u64),
        span(left),
    )
}

/// Bytes for people: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A length of time for people: `3 d 4 h`, `12 s`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, m) => format!("{m} min {} s", seconds % 60),
        (0, h, m) => format!("{h} h {m} min"),
        (d, h, _) => format!("{d} d {h} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_tells_rate_and_time_left_of_what_is_done_now() {
        let amount = Amount { done: 6 << 20, before: 4 << 20, total: Some(8 << 20), entries: 0 };
        assert_eq!(
            bar(&amount, Duration::from_secs(2)),
            "[##################------]  75 %  6.0 MiB of 8.0 MiB, 1.0 MiB/s, 2 s left"
        );
        let amount = Amount { done: 1536, before: 0, total: None, entries: 7 };
        assert_eq!(bar(&amount, Duration::from_secs(1)), "1.5 KiB, 7 files");
    }

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(size(512), "512 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
        assert_eq!(span(Duration::from_secs(59)), "59 s");
        assert_eq!(span(Duration::from_secs(3661)), "1 h 1 min");
        assert_eq!(span(Duration::from_secs(90000)), "1 d 1 h");
    }
}

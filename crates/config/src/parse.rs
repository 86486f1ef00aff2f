//! From the text of `container.toml` to a [`Config`], or to all that is wrong with it.

use toml_edit::{Document, Item, Table, TableLike};

use crate::check::contradictions;
use crate::config::Config;
use crate::diagnostic::{Diagnostics, Fault, boundary, located};
use crate::given::{Given, LONGEST_LIST};
use crate::table::{self, Key};
use crate::text::quoted;

/// Larger than any file a person writes.
const LARGEST_FILE: usize = 1 << 20;
/// More than anyone reads at once.
const MOST_FAULTS: usize = 100;
/// Syntax errors looked for after the first; each costs another parse.
const MOST_SYNTAX_FAULTS: usize = 20;

/// Reads a configuration. `file_name` is only named in diagnostics.
///
/// All that is wrong is told at once, sorted by place (100 at most). The text may have 1 MiB.
pub fn parse(file_name: &str, text: &str) -> Result<Config, Diagnostics> {
    read(text).map_err(|faults| located(file_name, text, faults))
}

/// The text of a file read as bytes; TOML is UTF-8.
pub fn decode<'a>(file_name: &str, bytes: &'a [u8]) -> Result<&'a str, Diagnostics> {
    std::str::from_utf8(bytes).map_err(|e| {
        let good = String::from_utf8_lossy(&bytes[..e.valid_up_to()]);
        let fault = Fault::new(
            Some(good.len()..good.len()),
            "this is not UTF-8 text",
            "save the file as UTF-8, or remove the bytes at this place",
        );
        located(file_name, &good, vec![fault])
    })
}

fn read(text: &str) -> Result<Config, Vec<Fault>> {
    if text.len() > LARGEST_FILE {
        let hint = "a configuration has at most 1 MiB";
        return Err(vec![Fault::new(None, format!("the file has {} bytes", text.len()), hint)]);
    }
    let (tree, mut faults) = syntax(text);
    let Some(tree) = tree else { return Err(faults) };
    let mut config = Config::default();
    let root = tree.as_table();
    read_root(root, &mut config, &mut faults);
    // What could not be read has its default here and would contradict by accident.
    if faults.is_empty() {
        for contradiction in contradictions(&config) {
            let span = place_of(root, contradiction.key);
            faults.push(Fault { span, ..contradiction.fault });
        }
    }
    if faults.is_empty() { Ok(config) } else { Err(faults) }
}

/// The tree of what is well-formed, and what is not.
///
/// The parser stops at its first error, so a bad line is blanked and the rest tried again, as long as the
/// line is bad in itself: where it is not, the fault began earlier, what follows would be misread, and the
/// tree ends there.
fn syntax(text: &str) -> (Option<Document<String>>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut rest = text.to_string();
    loop {
        let e = match Document::parse(rest.clone()) {
            Ok(tree) => return (Some(tree), faults),
            Err(e) => e,
        };
        let at = boundary(&rest, e.span().map_or(rest.len(), |span| span.start));
        let start = rest[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = rest[at..].find('\n').map_or(rest.len(), |newline| at + newline);
        let line = &rest[start..end];
        let description = e.message().split(", expected").next().unwrap_or_default();
        let duplicate = description == "duplicate key";
        let alone = Document::parse(line);
        // Without its header, what follows would be read as keys of another table.
        let header = line.trim_start().starts_with('[');
        let contained = !header
            && match &alone {
                Ok(_) => duplicate,
                Err(alone) => alone.message() == e.message() && !duplicate,
            };
        let (message, hint) = match duplicate {
            true => {
                let key = e.span().and_then(|span| rest.get(span)).unwrap_or_default();
                (format!("duplicate key {}", quoted(key)), "remove this line or the earlier one".into())
            }
            false => explained(description, line),
        };
        faults.push(Fault { span: Some(at..at), message, hint: Some(hint) });
        if !contained || line.is_empty() || faults.len() > MOST_SYNTAX_FAULTS {
            return (Document::parse(rest[..start].to_string()).ok(), faults);
        }
        rest.replace_range(start..end, &" ".repeat(end - start));
    }
}

/// A syntax error in words that tell what to write.
fn explained(description: &str, line: &str) -> (String, String) {
    let (key, value) = line.split_once('=').unwrap_or((line, ""));
    let (key, value) = (key.trim(), value.trim());
    let value = value.split(" #").next().unwrap_or_default().trim_end();
    match description {
        "string values must be quoted" if value.is_empty() => {
            (format!("{} has no value", quoted(key)), "write a value after '=', or remove the line".into())
        }
        "string values must be quoted" if !value.starts_with(['[', '{', '"', '\'']) && value.len() <= 60 => {
            (format!("text must be in quotes: {}", quoted(value)), format!("write {key} = \"{value}\""))
        }
        "invalid boolean" if value.len() <= 60 => (
            format!("{} is neither true nor false", quoted(value)),
            format!("write {key} = true, {key} = false, or text in quotes"),
        ),
        "key with no value" => (format!("{} has no value", quoted(line.trim())), "write key = value".into()),
        "unclosed table" => (format!("{} is not closed", quoted(line.trim())), "write a ']' at its end".into()),
        "missing comma between array elements" => {
            ("the list lacks a comma or its end".into(), "write ',' between the entries and ']' behind the last".into())
        }
        "invalid basic string" | "invalid literal string" => {
            ("the text in quotes has no end".into(), "close it on the same line with the quote it began with".into())
        }
        "invalid multi-line basic string" | "invalid multi-line literal string" => {
            ("the text in three quotes has no end".into(), "close it with three of the same quotes".into())
        }
        "missing escaped value" => (
            "unknown escape after '\\'".into(),
            "write '\\\\' for a backslash, or put the text in single quotes".into(),
        ),
        _ => (description.replace('`', "'"), "write key = value, one per line, with text in quotes".into()),
    }
}

/// Where the key of a dotted name stands.
fn place_of(root: &Table, name: &str) -> Option<std::ops::Range<usize>> {
    match name.split_once('.') {
        Some((section, leaf)) => root.get(section)?.as_table_like()?.key(leaf)?.span(),
        None => root.key(name)?.span(),
    }
}

fn read_root(root: &Table, config: &mut Config, faults: &mut Vec<Fault>) {
    for (name, item) in root.iter() {
        if faults.len() >= MOST_FAULTS {
            return;
        }
        let key = table::keys().iter().find(|key| key.name == name);
        match key {
            Some(key) if key.entries.is_none() => read_value(Given { key, entry: "", item }, config, faults),
            Some(_) => read_section(name, item, config, faults),
            None if table::is_section(name) => read_section(name, item, config, faults),
            None => faults.push(unknown(root, name, name)),
        }
    }
}

/// A table: of named keys (`time`), or of entries with names of the user's (`env`).
fn read_section(section: &str, item: &Item, config: &mut Config, faults: &mut Vec<Fault>) {
    let Some(entries) = item.as_table_like() else {
        let message = format!("'{section}' takes a table");
        faults.push(Fault::new(item.span(), message, format!("write [{section}] on a line and its entries below")));
        return;
    };
    if entries.len() > LONGEST_LIST {
        let message = format!("'{section}' has {} entries", entries.len());
        faults.push(Fault::new(item.span(), message, format!("at most {LONGEST_LIST} are allowed")));
        return;
    }
    for (leaf, item) in entries.iter() {
        if faults.len() >= MOST_FAULTS {
            return;
        }
        let full = format!("{section}.{leaf}");
        let named = |key: &&Key| key.name == section || key.name == full;
        match table::keys().iter().find(named) {
            Some(key) => {
                let entry = if key.entries.is_some() { leaf } else { "" };
                let before = faults.len();
                read_value(Given { key, entry, item }, config, faults);
                // A bad name of an entry is told where the name stands.
                let place = entries.key(leaf).and_then(toml_edit::Key::span);
                faults[before..].iter_mut().for_each(|fault| fault.span = fault.span.take().or(place.clone()));
            }
            None => faults.push(unknown(entries, leaf, &full)),
        }
    }
}

fn read_value(given: Given<'_>, config: &mut Config, faults: &mut Vec<Fault>) {
    if let Err(found) = (given.key.read)(config, &given) {
        let room = MOST_FAULTS.saturating_sub(faults.len());
        faults.extend(found.into_iter().take(room));
    }
}

/// The fault of a key that is not in the table.
fn unknown(place: &dyn TableLike, leaf: &str, full: &str) -> Fault {
    let span = place.key(leaf).and_then(toml_edit::Key::span);
    let e = table::unknown_key(full);
    Fault { span, message: e.to_string(), hint: e.advice().map(String::from) }
}

//! `container.toml` as text that a person wrote: edits keep the comments and the layout.

use std::fmt;
use std::ops::Range;

use lazaret_base::{Error, Kind, error};
use toml_edit::{Array, InlineTable, Item, Key, RawString, Table, Value};

use crate::config::Config;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::parse::parse;
use crate::table::{self, Form};

/// A `container.toml` without faults, and the [`Config`] it describes. Only what is edited changes in the text.
#[derive(Clone, Debug)]
pub struct Document {
    file: String,
    text: String,
    config: Config,
}

/// The first lines of a new file.
const HEADER: &str = "\
# What this container is and what it may do. A key that is not here has its default.
# Comments and layout are kept when `lazaret config` changes a value.

";

impl Document {
    /// Takes the text of a file; `file_name` is only named in diagnostics.
    pub fn parse(file_name: &str, text: &str) -> Result<Document, Diagnostics> {
        Ok(Document { file: file_name.into(), text: text.into(), config: parse(file_name, text)? })
    }

    /// A fresh file: a comment that explains it, then the given keys, as [`Document::set`] takes them.
    pub fn create<'a>(file_name: &str, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Document, Error> {
        let mut document = Document { file: file_name.into(), text: HEADER.into(), config: Config::default() };
        document.set_all(pairs)?;
        Ok(document)
    }

    /// What the text describes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The value of a key, also of one that has its default; see [`Config::get`].
    pub fn get(&self, name: &str) -> Result<Option<String>, Error> {
        self.config.get(name)
    }

    /// Sets one key (`memory`, `env.LANG`) to a value as typed on a command line: `1G`, `yes`, `a,b`, `["a"]`.
    ///
    /// Nothing changes if the whole would then be invalid.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.set_all([(name, value)])
    }

    /// Sets several keys at once, which may be valid only together.
    pub fn set_all<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
        let mut text = self.text.clone();
        for (name, value) in pairs {
            let (key, entry) = table::find(name)?;
            if key.entries.is_some() && entry.is_empty() {
                return Err(table::is_a_table(name));
            }
            text = with(&text, Place::of(key, entry), New { value: key.typed(value)?, form: key.form })?;
        }
        self.adopt(text)
    }

    /// Sets a key that is a list to these elements; to none by taking it out of the file.
    pub fn set_list<T: fmt::Display>(&mut self, name: &str, values: &[T]) -> Result<(), Error> {
        if values.is_empty() {
            return self.unset(name).map(drop);
        }
        self.set(name, &Array::from_iter(values.iter().map(T::to_string)).to_string())
    }

    /// Takes a key out of the file, so that its default holds; a table loses all entries.
    ///
    /// Says whether it was there. Nothing changes if the rest would be invalid.
    pub fn unset(&mut self, name: &str) -> Result<bool, Error> {
        let (key, entry) = table::find(name)?;
        let place = Place::of(key, entry);
        let text = without(&self.text, place)?;
        let found = text != self.text;
        self.adopt(text)?;
        Ok(found)
    }

    /// Replaces the text by one that is valid as a whole.
    fn adopt(&mut self, text: String) -> Result<(), Error> {
        // The file does not have these lines, so the first sentence is said without its place.
        let config = parse(&self.file, &text).map_err(|diagnostics| match diagnostics.0.into_iter().next() {
            Some(Diagnostic { message, hint: Some(hint), .. }) => error(message).hint(hint).kind(Kind::Invalid),
            Some(Diagnostic { message, .. }) => error(message).kind(Kind::Invalid),
            None => error("the configuration would be invalid").kind(Kind::Invalid),
        })?;
        self.text = text;
        self.config = config;
        Ok(())
    }
}

/// The text of the file.
impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where a value stands: in the root, or in a table of it.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root(&'a str),
    In {
        section: &'a str,
        leaf: &'a str,
    },
    /// The table itself with all its entries.
    Whole(&'a str),
}

impl<'a> Place<'a> {
    fn of(key: &table::Key, entry: &'a str) -> Place<'a>
    where
        'static: 'a,
    {
        match (key.entries, key.name.split_once('.')) {
            (Some(_), _) if entry.is_empty() => Place::Whole(key.name),
            (Some(_), _) => Place::In { section: key.name, leaf: entry },
            (None, Some((section, leaf))) => Place::In { section, leaf },
            (None, None) => Place::Root(key.name),
        }
    }
}

/// A value to be written, and how its key is used to be.
struct New {
    value: Value,
    form: Form,
}

/// The text with a value put in its place.
fn with(text: &str, place: Place<'_>, new: New) -> Result<String, Error> {
    let tree = tree(text)?;
    let root = tree.as_table();
    let (section, leaf) = match place {
        Place::Root(leaf) | Place::Whole(leaf) => return Ok(put(text, (root, leaf), leaf_of(leaf), new)),
        Place::In { section, leaf } => (section, leaf),
    };
    match root.get(section) {
        Some(Item::Value(Value::InlineTable(inline))) => {
            let span = inline.span().unwrap_or_default();
            let mut inline = owned::<InlineTable>(text, span.clone(), Value::as_inline_table)?;
            inline_put(&mut inline, leaf, new.value);
            Ok(spliced(text, span, &inline.to_string()))
        }
        Some(Item::Table(table)) if table.is_dotted() => {
            Ok(put(text, (table, leaf), format!("{section}.{}", leaf_of(leaf)), new))
        }
        // A table that only `[section.deeper]` implies has no line of its own.
        Some(Item::Table(table)) if !table.is_implicit() => Ok(put(text, (table, leaf), leaf_of(leaf), new)),
        _ => {
            let gap = if text.is_empty() || text.ends_with("\n\n") { "" } else { newline(text) };
            let lines = format!("{gap}[{section}]{0}{1} = {2}", newline(text), leaf_of(leaf), new.value);
            Ok(with_line(text, text.len(), &lines))
        }
    }
}

/// Sets one entry of `{ A = "1" }`; the space before the brace stays there.
fn inline_put(inline: &mut InlineTable, leaf: &str, value: Value) {
    let value = match (inline.get(leaf).map(suffix_of), inline.iter_mut().last()) {
        (Some(suffix), _) => value.decorated(" ", suffix),
        (None, Some((_, last))) => {
            let suffix = suffix_of(last);
            last.decor_mut().set_suffix("");
            value.decorated(" ", suffix)
        }
        (None, None) => value,
    };
    inline.insert(leaf, value);
}

/// Replaces the value of a key in its table, or adds a line `written = value` where the table's lines end.
fn put(text: &str, (table, leaf): (&Table, &str), written: String, new: New) -> String {
    if let Some(old) = table.get(leaf).and_then(Item::span) {
        let value = match new {
            New { value: Value::Array(list), form: Form::List } => relisted(text, old.clone(), list),
            New { value, .. } => value.to_string(),
        };
        return spliced(text, old, &value);
    }
    let line = format!("{written} = {}", new.value);
    // The root has no header, and dotted keys would not be there without a value.
    let header = table.span().filter(|span| text[span.clone()].starts_with('['));
    match last_value(table).or(header.map(|span| span.end)) {
        Some(end) => with_line(text, end, &line),
        None => with_first_line(text, table, &line),
    }
}

/// The text with the first key of the root, which stands before all tables and their comments.
fn with_first_line(text: &str, root: &Table, line: &str) -> String {
    let starts = root.iter().filter_map(|(_, item)| match item {
        Item::ArrayOfTables(tables) => tables.iter().filter_map(Table::span).map(|span| span.start).min(),
        Item::Table(table) => first_header(table),
        _ => None,
    });
    let Some(mut at) = starts.min() else { return with_line(text, text.len(), line) };
    let start_of_line = |at: usize| text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    at = start_of_line(at);
    // Comments right above a header belong to it.
    while at > 0 && text[start_of_line(at - 1)..].trim_start_matches([' ', '\t']).starts_with('#') {
        at = start_of_line(at - 1);
    }
    let newline = newline(text);
    spliced(text, at..at, &format!("{line}{newline}{newline}"))
}

/// Where the first header of a table or of those below it starts.
fn first_header(table: &Table) -> Option<usize> {
    let below = table.iter().filter_map(|(_, item)| item.as_table().and_then(first_header)).min();
    match table.is_implicit() || table.is_dotted() {
        true => below,
        false => table.span().map(|span| span.start).into_iter().chain(below).min(),
    }
}

/// Where the last value of a table's own lines ends.
fn last_value(table: &Table) -> Option<usize> {
    let ends = table.iter().filter_map(|(_, item)| match item {
        Item::Value(value) => value.span().map(|span| span.end),
        Item::Table(dotted) if dotted.is_dotted() => last_value(dotted),
        _ => None,
    });
    ends.max()
}

/// The new list with the layout, the comments and the order of the old: order means nothing in a list of words.
fn relisted(text: &str, old: Range<usize>, new: Array) -> String {
    let Ok(old) = owned::<Array>(text, old, Value::as_array) else { return new.to_string() };
    let has = |list: &Array, value: &Value| list.iter().any(|other| other.as_str() == value.as_str());
    let (mut list, mut comments) = (old.clone(), CommentCarrier::default());
    list.clear();
    let mut lead = String::new();
    // Without a comma behind the last element, what follows it is its suffix and not the list's trailing text.
    let mut trailing = old.trailing().as_str().unwrap_or("").to_string();
    for (i, value) in old.iter().enumerate() {
        let (behind_last, above) = split_lead(value.decor().prefix().and_then(RawString::as_str).unwrap_or(""));
        comments.behind(behind_last);
        let mut suffix = value.decor().suffix().and_then(RawString::as_str).unwrap_or("");
        if i + 1 == old.len() {
            trailing.insert_str(0, suffix);
            suffix = "";
        }
        match has(&new, value) {
            true => list.push_formatted(value.clone().decorated(comments.before(above), suffix)),
            false => comments.removed(above),
        }
        lead = above.into();
    }
    let (behind_last, above) = split_lead(&trailing);
    comments.behind(behind_last);
    // New elements stand as the last one stood, without the comments above it.
    let lead = if lead.contains('#') { &lead[lead.rfind('\n').unwrap_or(0)..] } else { &*lead };
    for added in new.iter() {
        if !has(&list, added) {
            let lead = if list.is_empty() || !lead.is_empty() { lead } else { " " };
            list.push_formatted(added.clone().decorated(comments.before(lead), ""));
        }
    }
    list.set_trailing(comments.before(above));
    list.to_string()
}

/// Comments of a list on their way to the element, or the bracket, that they will stand before.
#[derive(Default)]
struct CommentCarrier {
    carried: String,
    /// The element before has been removed, and the comment behind it goes with it.
    removed: bool,
}

impl CommentCarrier {
    /// A comment on the line of the element before.
    fn behind(&mut self, comment: &str) {
        if !self.removed {
            self.carried.push_str(comment);
        }
        self.removed = false;
    }

    /// The element is left away; the lines of comment above it stay.
    fn removed(&mut self, above: &str) {
        self.removed = true;
        if above.contains('#') {
            self.carried.push_str(above.trim_end());
        }
    }

    /// What stands before the next element or the bracket.
    fn before(&mut self, above: &str) -> String {
        let newline = if self.carried.contains('#') && !above.starts_with(['\n', '\r']) { "\n" } else { "" };
        format!("{}{newline}{above}", std::mem::take(&mut self.carried))
    }
}

/// What stands before an element of a list: a comment that belongs to the element before, on its line, and the
/// lines above.
fn split_lead(prefix: &str) -> (&str, &str) {
    let line = prefix.find('\n').unwrap_or(prefix.len());
    match prefix[..line].contains('#') {
        true => prefix.split_at(line),
        false => ("", prefix),
    }
}

fn suffix_of(value: &Value) -> RawString {
    value.decor().suffix().cloned().unwrap_or_default()
}

/// The text without the lines of a value.
fn without(text: &str, place: Place<'_>) -> Result<String, Error> {
    let tree = tree(text)?;
    let root = tree.as_table();
    let (parent, leaf) = match place {
        Place::Root(leaf) => (root, leaf),
        Place::Whole(section) => match root.get(section) {
            Some(Item::Table(table)) => {
                let mut lines: Vec<_> = table.iter().filter_map(|(leaf, _)| lines_of(text, table, leaf)).collect();
                lines.sort_by_key(|lines| lines.start);
                return Ok(lines.into_iter().rev().fold(text.to_string(), |text, lines| spliced(&text, lines, "")));
            }
            _ => (root, section),
        },
        Place::In { section, leaf } => match root.get(section) {
            Some(Item::Table(table)) => (table, leaf),
            Some(Item::Value(Value::InlineTable(inline))) if inline.contains_key(leaf) => {
                let span = inline.span().unwrap_or_default();
                let mut inline = owned::<InlineTable>(text, span.clone(), Value::as_inline_table)?;
                inline.remove(leaf);
                return Ok(spliced(text, span, &inline.to_string()));
            }
            _ => return Ok(text.into()),
        },
    };
    match lines_of(text, parent, leaf) {
        Some(lines) => Ok(spliced(text, with_gap(text, lines), "")),
        None => Ok(text.into()),
    }
}

/// Lines with the empty one below, if there is one above, too: one gap is left of two.
fn with_gap(text: &str, lines: Range<usize>) -> Range<usize> {
    let above = &text[..lines.start];
    let below = ["\n", "\r\n"].into_iter().find(|newline| text[lines.end..].starts_with(newline));
    match below {
        Some(newline) if above.ends_with("\n\n") || above.ends_with("\n\r\n") => lines.start..lines.end + newline.len(),
        _ => lines,
    }
}

/// The whole lines of one `key = value`, with what is behind it; comments above stay.
fn lines_of(text: &str, table: &Table, leaf: &str) -> Option<Range<usize>> {
    let (key, item) = table.get_key_value(leaf)?;
    let start = text[..key.span()?.start].rfind('\n').map_or(0, |newline| newline + 1);
    Some(start..end_of_line(text, item.span()?.end))
}

/// Where the line ends, behind its newline.
fn end_of_line(text: &str, at: usize) -> usize {
    text[at..].find('\n').map_or(text.len(), |newline| at + newline + 1)
}

/// The text with a line below the one that `at` is in.
fn with_line(text: &str, at: usize, line: &str) -> String {
    let at = if at == text.len() { at } else { end_of_line(text, at) };
    let newline = newline(text);
    let gap = if at == 0 || text[..at].ends_with('\n') { "" } else { newline };
    spliced(text, at..at, &format!("{gap}{line}{newline}"))
}

fn spliced(text: &str, range: Range<usize>, new: &str) -> String {
    format!("{}{new}{}", &text[..range.start], &text[range.end..])
}

fn newline(text: &str) -> &'static str {
    if text.contains("\r\n") { "\r\n" } else { "\n" }
}

/// A key as TOML writes it, quoted where it must be.
fn leaf_of(leaf: &str) -> String {
    Key::new(leaf).to_string()
}

fn tree(text: &str) -> Result<toml_edit::Document<&str>, Error> {
    toml_edit::Document::parse(text).map_err(|e| error(e.message()).kind(Kind::Invalid))
}

/// A value of the text that can be changed on its own.
fn owned<T: Clone>(text: &str, span: Range<usize>, of: impl Fn(&Value) -> Option<&T>) -> Result<T, Error> {
    let value = text[span].parse::<Value>().map_err(|e| error(e.message()).kind(Kind::Invalid))?;
    of(&value).cloned().ok_or_else(|| error("the value changed its type").kind(Kind::Invalid))
}

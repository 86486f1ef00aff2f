//! What stands behind a key in a file, and the readers that turn it into values.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::str::FromStr;

use lazaret_base::Error;
use toml_edit::{Array, Item, Value};

use crate::diagnostic::Fault;
use crate::table::Key;
use crate::text::{invalid, quoted};

/// More elements than any list needs; what is longer is a mistake or an attack.
pub(crate) const LONGEST_LIST: usize = 4096;

/// One value that the file gives.
pub(crate) struct Given<'a> {
    pub key: &'static Key,
    /// The part behind the dot, for a key that is a table; else empty.
    pub entry: &'a str,
    pub item: &'a Item,
}

/// What reading gives, or all that is wrong with it.
pub(crate) type Read<T = ()> = Result<T, Vec<Fault>>;

impl<'a> Given<'a> {
    /// The key as the user knows it: `memory`, `env.LANG`.
    pub fn name(&self) -> String {
        match self.entry {
            "" => self.key.name.into(),
            entry => format!("{}.{entry}", self.key.name),
        }
    }

    /// Text in quotes.
    pub fn text(&self) -> Read<&'a str> {
        self.item.as_str().ok_or_else(|| self.takes("text in quotes"))
    }

    /// `true` or `false`.
    pub fn flag(&self) -> Read<bool> {
        self.item.as_bool().ok_or_else(|| self.takes("true or false"))
    }

    /// Text or a number, read from its text.
    pub fn parsed<T: FromStr<Err = Error>>(&self) -> Read<T> {
        self.checked(str::parse)
    }

    /// Text or a number, through the given reader.
    pub fn checked<T>(&self, parse: impl FnOnce(&str) -> Result<T, Error>) -> Read<T> {
        parse(&self.scalar()?).map_err(|e| vec![self.fault(&e)])
    }

    /// As [`Given::checked`], where `max` or `unlimited` means none.
    pub fn limit<T>(&self, parse: impl FnOnce(&str) -> Result<T, Error>) -> Read<Option<T>> {
        self.checked(|text| match text {
            "max" | "unlimited" => Ok(None),
            _ => parse(text).map(Some),
        })
    }

    /// A list of texts, each through the given reader; every bad element is told.
    pub fn list<T>(&self, parse: impl Fn(&str) -> Result<T, Error>) -> Read<Vec<T>> {
        let list: &Array = self.item.as_array().ok_or_else(|| self.takes("a list"))?;
        if list.len() > LONGEST_LIST {
            let sentence = format!("a list of {} entries is too long", list.len());
            return Err(vec![self.fault(&invalid(sentence, format!("at most {LONGEST_LIST} are allowed")))]);
        }
        let (mut values, mut faults) = (Vec::new(), Vec::new());
        for element in list {
            let at = |fault: Fault| Fault { span: element.span().or(fault.span), ..fault };
            match element.as_str().map(&parse) {
                Some(Ok(value)) => values.push(value),
                Some(Err(e)) => faults.push(at(self.fault(&e))),
                None => {
                    let sentence = format!("{} stands in a list of texts", kind_of(element));
                    faults.push(at(self.fault(&invalid(sentence, format!("write {}", self.key.example)))));
                }
            }
        }
        if faults.is_empty() { Ok(values) } else { Err(faults) }
    }

    /// The text of a text or a number.
    fn scalar(&self) -> Read<Cow<'a, str>> {
        match self.item.as_value() {
            Some(Value::String(text)) => Ok(text.value().into()),
            Some(Value::Integer(number)) => Ok(number.value().to_string().into()),
            Some(Value::Float(number)) => Ok(number.value().to_string().into()),
            _ => Err(self.takes(self.key.shape)),
        }
    }

    /// The fault of a value of another type.
    fn takes(&self, what: &str) -> Vec<Fault> {
        let found = match self.item {
            Item::Value(value) => kind_of(value),
            _ => "a table",
        };
        vec![Fault {
            span: self.item.span(),
            message: format!("{} takes {what}, not {found}", quoted(&self.name())),
            hint: Some(format!("write for example {}", self.key.example)),
        }]
    }

    /// The fault of a value that its type refuses.
    pub fn fault(&self, e: &Error) -> Fault {
        Fault {
            span: self.item.span(),
            message: format!("{}: {e}", quoted(&self.name())),
            hint: e.advice().map(String::from),
        }
    }
}

/// A reader of whole numbers in a range.
pub(crate) fn whole(range: RangeInclusive<u32>) -> impl Fn(&str) -> Result<u32, Error> {
    move |text| match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(invalid(
            format!("{} is not a number from {} to {}", quoted(text), range.start(), range.end()),
            "write a whole number in that range",
        )),
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) | Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::InlineTable(_) => "a table",
    }
}

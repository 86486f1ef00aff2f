//! A notification, as a program wants it and as the session shows it (the Desktop Notifications Specification).
//!
//! Words come through, bounded and plain, marked with the container's name. Pictures, sounds, files and the names of
//! other applications do not: a server would open them as the person's.

use super::wire::{Message, Writer};

/// The service, which is its interface, too, and its object.
pub const SERVICE: &str = "org.freedesktop.Notifications";
pub const PATH: &str = "/org/freedesktop/Notifications";
/// What a server may be able to do that programs may know of.
pub const ABILITIES: &[&str] = &["actions", "body", "icon-static", "persistence"];

/// How long things may be, in characters.
const MOST_TITLE: usize = 120;
const MOST_BODY: usize = 1000;
const MOST_ICON: usize = 64;
const MOST_LABEL: usize = 40;
/// Buttons.
const MOST_ACTIONS: usize = 6;
/// The longest that one asks to stay, in milliseconds.
const LONGEST: i32 = 60_000;

/// What a program wants to have shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    application: String,
    /// The number of one that it takes the place of; zero for none.
    pub replaces: u32,
    icon: String,
    title: String,
    body: String,
    /// Keys and labels.
    actions: Vec<(String, String)>,
    /// Low or not; nothing is critical.
    low: bool,
    category: String,
    transient: bool,
    timeout: i32,
}

impl Note {
    /// Reads a call of `Notify`.
    pub fn read(call: &Message) -> Option<Note> {
        let mut body = call.read("susssasa{sv}i")?;
        let mut note = Note { application: line(body.text()?, MOST_LABEL), ..Note::default() };
        note.replaces = body.number()?;
        note.icon = name(body.text()?);
        note.title = line(body.text()?, MOST_TITLE);
        note.body = plain(body.text()?, MOST_BODY);
        let mut words = Vec::new();
        body.array(b's', |word| {
            words.push(word.text()?);
            Some(())
        })?;
        let pairs = words.chunks_exact(2).filter(|pair| !pair[0].is_empty() && name(pair[0]) == pair[0]);
        note.actions = pairs.take(MOST_ACTIONS).map(|pair| (pair[0].into(), line(pair[1], MOST_LABEL))).collect();
        body.table(|hint, signature, value| {
            match (hint, signature) {
                ("urgency", "y") => note.low = value.byte()? == 0,
                ("transient", "b") => note.transient = value.number()? != 0,
                ("category", "s") => note.category = name(value.text()?),
                _ => value.skip(signature)?,
            }
            Some(())
        })?;
        note.timeout = body.signed()?.clamp(-1, LONGEST);
        Some(note)
    }

    /// The call to the session's server. `markup`: it takes `<` for the beginning of something.
    pub fn call(&self, container: &str, replaces: u32, markup: bool) -> Message {
        let escaped = self.body.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let shown = if markup { &escaped } else { &self.body };
        Message::call(SERVICE, PATH, SERVICE, "Notify").with("susssasa{sv}i", |body| {
            body.text(&format!("[{container}] {}", self.application));
            body.number(replaces);
            body.text(&self.icon);
            body.text(&format!("[{container}] {}", self.title));
            body.text(shown);
            body.texts(self.actions.iter().flat_map(|(key, label)| [key.as_str(), label.as_str()]));
            body.array(8, |body| self.hints(body));
            body.number(self.timeout.cast_unsigned());
        })
    }

    fn hints(&self, body: &mut Writer) {
        body.entry("urgency", "y", |body| body.byte(u8::from(!self.low)));
        body.entry("suppress-sound", "b", |body| body.number(1));
        if self.transient {
            body.entry("transient", "b", |body| body.number(1));
        }
        if !self.category.is_empty() {
            body.entry("category", "s", |body| body.text(&self.category));
        }
    }
}

/// Whether a character shows what it is: none that controls, or turns the direction of what is around it.
fn shows(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// One line of text.
fn line(text: &str, most: usize) -> String {
    text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).filter(|c| shows(*c)).take(most).collect()
}

/// A name in a theme, a list or a program: of an icon, a category, an action. Empty for what is none, such as a path.
fn name(text: &str) -> String {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b' ');
    if text.len() <= MOST_ICON && text.bytes().all(good) && !text.contains("..") { text.into() } else { String::new() }
}

/// Text without the marks that some servers take (`<b>`, `<a href>`, `<img>`), which programs write whether they may or
/// not.
fn plain(text: &str, most: usize) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('<') {
        plain.push_str(&rest[..at]);
        let tag = &rest[at + 1..];
        let is_tag = tag.starts_with(|c: char| c == '/' || c.is_ascii_alphabetic());
        match tag.find('>').filter(|_| is_tag) {
            Some(end) => rest = &tag[end + 1..],
            None => {
                plain.push('<');
                rest = tag;
            }
        }
    }
    plain.push_str(rest);
    for (entity, character) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")] {
        plain = plain.replace(entity, character);
    }
    plain.chars().filter(|c| *c == '\n' || shows(*c)).take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notify(icon: &str, title: &str, body: &str, actions: &[&str]) -> Message {
        Message::call(SERVICE, PATH, SERVICE, "Notify").with("susssasa{sv}i", |out| {
            out.text("mail");
            out.number(7);
            out.text(icon);
            out.text(title);
            out.text(body);
            out.texts(actions.iter().copied());
            out.array(8, |out| {
                out.entry("image-path", "s", |out| out.text("file:///home/ann/secret.png"));
                out.entry("sound-file", "s", |out| out.text("/dev/zero"));
                out.entry("urgency", "y", |out| out.byte(2));
                out.entry("desktop-entry", "s", |out| out.text("org.bank.App"));
                out.entry("category", "s", |out| out.text("email.arrived"));
            });
            out.number(0x7fff_ffff);
        })
    }

    fn shown(call: &Message, markup: bool) -> String {
        let note = Note::read(call).unwrap();
        format!("{:?}", String::from_utf8_lossy(&note.call("ff", 0, markup).body))
    }

    #[test]
    fn words_come_through_and_are_marked() {
        let call = notify("mail-unread", "New mail", "from <b>Bob</b> &amp; co", &["open", "Open it"]);
        let (with, without) = (shown(&call, true), shown(&call, false));
        for word in ["[ff] mail", "[ff] New mail", "mail-unread", "open", "Open it", "email.arrived", "urgency"] {
            assert!(with.contains(word), "{word}: {with}");
        }
        assert!(with.contains("from Bob &amp; co") && without.contains("from Bob & co"), "{with} {without}");
        for word in ["secret", "/dev/zero", "sound-file", "image", "org.bank.App"] {
            assert!(!with.contains(word), "{word}: {with}");
        }
    }

    #[test]
    fn nothing_is_opened_and_nothing_is_feigned() {
        let call = notify(
            "/home/ann/x.png",
            "two\nlines\u{202e}",
            "a < b <img src='http://x/'/> <a href='http://y'>z</a>\u{7}",
            &["a/b", "bad", "ok", "fine", "alone"],
        );
        let shown = shown(&call, false);
        for word in ["x.png", "http", "a/b", "alone", "\\u{202e}", "two\\nlines"] {
            assert!(!shown.contains(word), "{word}: {shown}");
        }
        assert_eq!(plain("a\u{7}b", 9), "ab");
        assert!(shown.contains("two lines") && shown.contains("a < b  z") && shown.contains("fine"), "{shown}");
        let long = notify("", &"x".repeat(100_000), &"<".repeat(100_000), &[]);
        assert!(Note::read(&long).unwrap().call("ff", 0, true).body.len() < 10_000);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,80}", junk: Vec<u8>) {
            let marked = format!("<{text}><b>{text}&lt;");
            prop_plain(&marked);
            let call = Message { body: junk, ..notify("", "", "", &[]) };
            let _ = Note::read(&call);
        }
    }

    fn prop_plain(text: &str) {
        assert!(plain(text, 50).chars().count() <= 50);
        assert!(line(text, 50).chars().all(shows));
    }
}

//! Programs as a container's own menu has them: desktop entries, read as what they are, a stranger's text.
//!
//! Of an entry's keys those are taken that a menu shows, and what they say has no power outside: the command stays
//! inside, and is known outside by the entry's name alone.

use std::collections::BTreeMap;

/// A file that is longer is no entry.
pub const LONGEST: usize = 256 * 1024;
/// What is shown of a text.
const LONGEST_TEXT: usize = 512;
/// Languages of one text.
const MOST_LANGUAGES: usize = 200;
/// Categories and keywords.
const MOST_WORDS: usize = 64;

/// A program that can be in a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry's name among others, as `org.kde.kate` or `firefox-esr`.
    pub id: String,
    /// What it is called, by language; the empty one is the untranslated.
    pub names: BTreeMap<String, String>,
    /// What kind of program it is.
    pub kinds: BTreeMap<String, String>,
    /// What it is for.
    pub comments: BTreeMap<String, String>,
    /// Its command as it stands there: [`Entry::command`].
    exec: String,
    /// The icon's name in a theme, or its path.
    pub icon: Option<String>,
    /// Whether it wants a terminal.
    pub terminal: bool,
    /// Where in a menu.
    pub categories: Vec<String>,
    /// By which words it is found, besides.
    pub keywords: Vec<String>,
    /// What its windows call themselves (`WM_CLASS` on X, the app id on Wayland), so that docks know whose they are.
    pub class: Option<String>,
    /// Whether it is left out of menus.
    pub hidden: bool,
}

/// Whether it can be the name of an entry: letters, digits, `.`, `_` and `-`.
pub fn is_id(id: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !id.is_empty() && id.len() <= 200 && id.bytes().all(good) && !id.starts_with(['.', '-'])
}

impl Entry {
    /// Reads an entry (Desktop Entry Specification 1.5). `None` for what is no program that a menu could have.
    pub fn parse(id: &str, text: &[u8]) -> Option<Entry> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= LONGEST && is_id(id))?;
        let mut keys = BTreeMap::new();
        let lines = text.lines().map(str::trim).skip_while(|line| *line != "[Desktop Entry]").skip(1);
        for line in lines.take_while(|line| !line.starts_with('[')).filter(|line| !line.starts_with('#')) {
            if let Some((key, value)) = line.split_once('=') {
                // The first counts: a file that has two is broken.
                keys.entry(key.trim_end()).or_insert(value.trim_start());
            }
        }
        let get = |key: &str| keys.get(key).copied();
        let is_set = |key: &str| get(key) == Some("true");
        let texts = |key: &str| {
            let of = |(full, value): (&&str, &&str)| Some((language(full, key)?.to_owned(), shown(&unescape(value))?));
            keys.iter().filter_map(of).take(MOST_LANGUAGES).collect::<BTreeMap<_, _>>()
        };
        let words = |key: &str| {
            let words = get(key).unwrap_or_default().split(';').filter_map(|word| shown(&unescape(word)));
            words.filter(|word| !word.contains(';')).take(MOST_WORDS).collect::<Vec<_>>()
        };
        let names = texts("Name");
        let exec = unescape(get("Exec")?);
        if get("Type") != Some("Application") || !names.contains_key("") || parse_exec(&exec)?.is_empty() {
            return None;
        }
        let is_category = |word: &String| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        Some(Entry {
            id: id.to_owned(),
            names,
            kinds: texts("GenericName"),
            comments: texts("Comment"),
            exec,
            icon: get("Icon").and_then(|icon| shown(&unescape(icon))),
            terminal: is_set("Terminal"),
            categories: words("Categories").into_iter().filter(is_category).collect(),
            keywords: words("Keywords"),
            class: get("StartupWMClass").and_then(|class| shown(&unescape(class))),
            hidden: is_set("NoDisplay") || is_set("Hidden"),
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        self.names.get("").map_or(&self.id, String::as_str)
    }

    /// The command, to be run inside; `arguments` are files or addresses.
    pub fn command(&self, arguments: &[String]) -> Vec<String> {
        let mut words = Vec::new();
        for word in parse_exec(&self.exec).unwrap_or_default() {
            match word.as_str() {
                "%F" | "%U" => words.extend(arguments.iter().cloned()),
                // One instance for one argument would be asked for: the first is shown rather than none.
                "%f" | "%u" => words.extend(arguments.first().cloned()),
                _ => words.extend(self.expand(&word, arguments)),
            }
        }
        words
    }

    /// A word with its field codes replaced; nothing is left of one that is a deprecated code.
    fn expand(&self, word: &str, arguments: &[String]) -> Option<String> {
        let (mut text, mut codes) = (String::new(), 0);
        let mut letters = word.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            codes += 1;
            match letters.next() {
                Some('%') => text.push('%'),
                Some('c') => text += self.name(),
                Some('f' | 'u') => text += arguments.first().map_or("", String::as_str),
                _ => {}
            }
        }
        (codes == 0 || !text.is_empty()).then_some(text)
    }

    /// The program that is run: by it, entries are known as well.
    pub fn program(&self) -> String {
        let words = parse_exec(&self.exec).unwrap_or_default();
        let first = words.first().map_or("", String::as_str);
        first.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// An entry for the person's own menu.
    pub fn launcher(&self, launcher: &Launcher<'_>) -> String {
        let mut text = String::from("[Desktop Entry]\nType=Application\n");
        let container = launcher.container;
        for (language, name) in &self.names {
            text += &line("Name", language, &format!("[{container}] {name}"));
        }
        for (key, texts) in [("GenericName", &self.kinds), ("Comment", &self.comments)] {
            for (language, value) in texts {
                text += &line(key, language, value);
            }
        }
        text += &line("Icon", "", launcher.icon);
        let words = launcher.command.iter().map(|word| quoted(word)).collect::<Vec<_>>();
        text += &line("Exec", "", &words.join(" "));
        text += &line("Terminal", "", if self.terminal { "true" } else { "false" });
        let list = |words: &[String]| words.iter().map(|word| escape(word) + ";").collect::<String>();
        if !self.categories.is_empty() {
            text += &format!("Categories={}\n", list(&self.categories));
        }
        let own = [container.to_owned()];
        text += &format!("Keywords={}\n", list(&[&self.keywords[..], &own].concat()));
        text += &line("StartupWMClass", "", &shown(launcher.class).unwrap_or_default());
        text + &line("X-Lazaret-Container", "", container)
    }
}

/// What an entry outside has that none inside says.
pub struct Launcher<'a> {
    /// The container.
    pub container: &'a str,
    /// What is run, outside.
    pub command: &'a [String],
    /// A file of ours, or a name that themes have.
    pub icon: &'a str,
    /// What its windows call themselves outside.
    pub class: &'a str,
}

/// The language of a key, if it is this key.
fn language<'a>(full: &'a str, key: &str) -> Option<&'a str> {
    let rest = full.strip_prefix(key)?;
    if rest.is_empty() {
        return Some("");
    }
    let language = rest.strip_prefix('[')?.strip_suffix(']')?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.@".contains(&b);
    (!language.is_empty() && language.len() <= 32 && language.bytes().all(good)).then_some(language)
}

/// A text as it may be shown: neither control characters, nor such that turn the direction of what is beside it.
fn shown(text: &str) -> Option<String> {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let spaced = text.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let cut: String = spaced.filter(|c| !c.is_control() && !turns(*c)).take(LONGEST_TEXT).collect();
    let cut = cut.trim();
    (!cut.is_empty()).then(|| cut.to_owned())
}

fn unescape(value: &str) -> String {
    let mut text = String::new();
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match (letter, letter == '\\') {
            (_, true) => match letters.next() {
                Some('s') => text.push(' '),
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('r') => text.push('\r'),
                // `\;` is of lists, which are split before: such a word is dropped. Others are themselves.
                Some(other) => text.extend((other != '\\').then_some('\\').into_iter().chain([other])),
                None => text.push('\\'),
            },
            _ => text.push(letter),
        }
    }
    text
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\")
}

fn line(key: &str, language: &str, value: &str) -> String {
    match language {
        "" => format!("{key}={}\n", escape(value)),
        _ => format!("{key}[{language}]={}\n", escape(value)),
    }
}

/// The words of a command. `None` where a quote is not closed.
fn parse_exec(exec: &str) -> Option<Vec<String>> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let mut letters = exec.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next()? {
                        '"' => break,
                        '\\' => word.push(letters.next()?),
                        letter => word.push(letter),
                    }
                }
            }
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Some(words)
}

/// A word of a command of ours, quoted if it has to be.
fn quoted(word: &str) -> String {
    let word = word.replace('%', "%%");
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word;
    }
    let escaped: String =
        word.chars().flat_map(|c| "\"`$\\".contains(c).then_some('\\').into_iter().chain([c])).collect();
    format!("\"{escaped}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIREFOX: &str = "# comment\n[Desktop Entry]\nType=Application\nName=Firefox\nName[de]=Feuer\\sfuchs\nName[../x]=no\n\
        Comment=Browse\\nthe \u{202e}web\u{7}\nExec=/usr/lib/firefox-esr/firefox-esr --class \"My $\\\\\\\\`X\" %u\nIcon=firefox-esr\n\
        Categories=Network;WebBrowser;Bad Word!;\nKeywords=Internet;WWW;\nStartupWMClass=Firefox-esr\nMimeType=text/html;\n\
        Name=Second\nX-Evil=yes\n\n[Desktop Action new]\nName=New\nExec=rm -rf /\n";

    fn firefox() -> Entry {
        Entry::parse("firefox-esr", FIREFOX.as_bytes()).unwrap()
    }

    #[test]
    fn what_a_menu_shows_is_taken_and_nothing_that_acts() {
        let command: Vec<_> =
            ["pkexec", "/opt/50% $x/lazaret", "app", "--entry", "firefox-esr", "ff"].map(str::to_owned).into();
        let text = firefox().launcher(&Launcher {
            container: "ff",
            command: &command,
            icon: "/icons/ff.png",
            class: "ff-Firefox",
        });
        assert_eq!(
            text,
            "[Desktop Entry]
Type=Application
Name=[ff] Firefox
Name[de]=[ff] Feuer fuchs
Comment=Browse the web
Icon=/icons/ff.png
Exec=pkexec \"/opt/50%% \\\\$x/lazaret\" app --entry firefox-esr ff
Terminal=false
Categories=Network;WebBrowser;
Keywords=Internet;WWW;ff;
StartupWMClass=ff-Firefox
X-Lazaret-Container=ff
"
        );
    }

    #[test]
    fn the_command_is_for_the_inside_with_its_codes_replaced() {
        let words = firefox().command(&["https://a".to_owned(), "b".to_owned()]);
        assert_eq!(words, ["/usr/lib/firefox-esr/firefox-esr", "--class", "My $\\`X", "https://a"]);
        assert_eq!(firefox().command(&[]).len(), 3);
        assert_eq!(firefox().program(), "firefox-esr");
        let entry = |exec: &str| {
            let text = format!("[Desktop Entry]\nType=Application\nName=N\nExec={exec}\n");
            Entry::parse("x", text.as_bytes())
        };
        let words = entry("a %i --name=%c 100%% %F %d -x").unwrap().command(&["1".to_owned(), "2".to_owned()]);
        assert_eq!(words, ["a", "--name=N", "100%", "1", "2", "-x"]);
        assert_eq!(entry("\"not closed"), None);
        assert_eq!(entry(""), None);
    }

    #[test]
    fn what_is_no_program_is_none() {
        for text in ["", "[Desktop Entry]\nType=Link\nName=x\nExec=y", "[Desktop Entry]\nType=Application\nExec=y"] {
            assert_eq!(Entry::parse("x", text.as_bytes()), None, "{text}");
        }
        for id in ["", "../x", "a b", "-x", ".x", "x\n"] {
            assert_eq!(Entry::parse(id, FIREFOX.as_bytes()), None, "{id}");
        }
        let hidden = FIREFOX.replace("Name=Second", "NoDisplay=true");
        assert!(Entry::parse("x", hidden.as_bytes()).unwrap().hidden);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_an_entry_with_lines_of_its_own(
            name in "\\PC{1,20}|[\\x00-\\x7f]{1,20}", class in "[\\x00-\\x7f]{0,20}", exec in "[\\x20-\\x7f]{1,30}"
        ) {
            let text = format!("[Desktop Entry]\nType=Application\nName={name}\nExec={exec}\nStartupWMClass={class}\nKeywords={class};\n");
            if let Some(entry) = Entry::parse("x", text.as_bytes()) {
                let command = ["lazaret".to_owned()];
                let text = entry.launcher(&Launcher { container: "c", command: &command, icon: "i", class: &class });
                let keys = ["Type=", "Name=[c] ", "Icon=i", "Exec=lazaret", "Terminal=", "Keywords=", "StartupWMClass=", "X-Lazaret"];
                for line in text.lines().skip(1) {
                    assert!(keys.iter().any(|key| line.starts_with(key)), "{line}");
                    assert!(!line.chars().any(char::is_control), "{line:?}");
                }
                let _ = entry.command(&[exec]);
            }
        }
    }
}

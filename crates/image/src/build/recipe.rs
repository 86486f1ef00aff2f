//! A recipe: an image written down, so that it can be made again. `image.toml`.

use lazaret_base::{Error, Kind, Result, error};
use toml_edit::{Document, Item, TableLike, Value};

use crate::remote::at;

/// What an image is made of, in the order in which it is made.
///
/// ```toml
/// base = "debian/trixie"              # an image that is here or on a server; or:
/// # build = "debian/trixie"           # one that is built here, unless it was
/// mirror = "http://mirror.example/debian"   # if not the distribution's own; also `keyring` and `updates`
/// packages = ["nginx", "curl"]
/// user = "me"                         # a user to log in as, with a home
/// run = ["systemctl enable nginx", ["/usr/local/bin/setup", "--all"]]
///
/// [[files]]
/// to = "/etc/nginx/nginx.conf"
/// from = "nginx.conf"                 # beside the recipe; or: text = """…"""
/// mode = "0644"
/// owner = "0:0"
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// What it begins with.
    pub base: String,
    /// Whether that is built here when it is not.
    pub build: bool,
    /// Where packages come from, if not from the distribution.
    pub mirror: Option<String>,
    /// Whose signatures count, if not the distribution's: a file of keys.
    pub keyring: Option<String>,
    /// Whether suites of updates are left alone.
    pub without_updates: bool,
    /// For people.
    pub description: String,
    /// Packages to install.
    pub packages: Vec<String>,
    /// A user to make.
    pub user: Option<String>,
    /// Files to put there.
    pub files: Vec<Text>,
    /// Commands to run; one of a single word is for the shell.
    pub run: Vec<Vec<String>>,
}

/// A file of a recipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Where, absolute.
    pub to: String,
    /// What.
    pub source: Source,
    /// Permissions.
    pub mode: u32,
    /// User and group, as numbers.
    pub owner: (u32, u32),
}

/// Where a file of a recipe comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file beside the recipe.
    File(String),
    /// The recipe itself.
    Text(String),
}

impl Recipe {
    /// Reads a recipe. `file` is named in errors, with the line.
    pub fn parse(file: &str, text: &str) -> Result<Recipe> {
        let tree = Document::parse(text).map_err(|e| at(file, text, e.span(), e.message()))?;
        let place = Place { file, text };
        let (mut recipe, mut base, mut build) = (Recipe::default(), None, None);
        for (key, item) in tree.as_table().iter() {
            match key {
                "base" => base = Some(place.word(key, item)?),
                "build" => build = Some(place.word(key, item)?),
                "mirror" => recipe.mirror = Some(place.word(key, item)?),
                "keyring" => recipe.keyring = Some(place.word(key, item)?),
                "updates" => {
                    let updates = item.as_bool().ok_or_else(|| place.wrong(item, "`updates` is true or false"))?;
                    recipe.without_updates = !updates;
                }
                "description" => recipe.description = place.word(key, item)?,
                "packages" => recipe.packages = place.packages(item)?,
                "user" => recipe.user = Some(place.user(item)?),
                "run" => recipe.run = place.commands(item)?,
                "files" => recipe.files = place.files(item)?,
                key => {
                    let known = "base, build, mirror, keyring, updates, description, packages, user, files and run";
                    return Err(place
                        .wrong(item, &format!("unknown key `{key}`"))
                        .hint(format!("a recipe has {known}")));
                }
            }
        }
        (recipe.base, recipe.build) = match (base, build) {
            (Some(base), None) => (base, false),
            (None, Some(build)) => (build, true),
            _ => {
                let e = error(format!("{file}: a recipe has a `base`, or something to `build`")).kind(Kind::Invalid);
                return Err(e.hint("for example base = \"debian/trixie\""));
            }
        };
        Ok(recipe)
    }
}

struct Place<'a> {
    file: &'a str,
    text: &'a str,
}

impl Place<'_> {
    fn wrong(&self, item: &Item, message: &str) -> Error {
        at(self.file, self.text, item.span(), message)
    }

    fn word(&self, key: &str, item: &Item) -> Result<String> {
        let word = item.as_str().filter(|word| !word.contains('\0'));
        word.map(str::to_owned).ok_or_else(|| self.wrong(item, &format!("`{key}` is a text in quotes")))
    }

    fn list<'i>(&self, key: &str, item: &'i Item) -> Result<impl Iterator<Item = &'i Value>> {
        let list = item.as_array().ok_or_else(|| self.wrong(item, &format!("`{key}` is a list: [\"…\", \"…\"]")))?;
        Ok(list.iter())
    }

    fn packages(&self, item: &Item) -> Result<Vec<String>> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "+-._:@/".contains(c);
        let package = |value: &Value| match value.as_str() {
            Some(name) if name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain) => {
                Ok(name.to_owned())
            }
            _ => Err(self.wrong(item, &format!("`{}` is no name of a package", value.to_string().trim()))),
        };
        self.list("packages", item)?.map(package).collect()
    }

    fn user(&self, item: &Item) -> Result<String> {
        let name = self.word("user", item)?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
        let good = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && name.chars().all(plain);
        match good && name.len() <= 32 && name != "root" {
            true => Ok(name),
            false => Err(self.wrong(item, &format!("`{name}` is no name of a user"))),
        }
    }

    fn commands(&self, item: &Item) -> Result<Vec<Vec<String>>> {
        let bad = || self.wrong(item, "a command is a text for the shell, or a list of words");
        let command = |value: &Value| match value {
            Value::String(text) => Ok(vec![text.value().clone()]),
            Value::Array(words)
                if words.len() > 1 || words.iter().all(|word| word.as_str().is_some_and(|w| w.starts_with('/'))) =>
            {
                let words: Option<Vec<_>> = words.iter().map(|word| word.as_str().map(str::to_owned)).collect();
                words.filter(|words| !words.is_empty()).ok_or_else(bad)
            }
            _ => Err(bad()),
        };
        self.list("run", item)?.map(command).collect()
    }

    fn files(&self, item: &Item) -> Result<Vec<Text>> {
        let tables = item.as_array_of_tables().ok_or_else(|| self.wrong(item, "files are written as [[files]]"))?;
        tables.iter().map(|table| self.one_file(item, table)).collect()
    }

    fn one_file(&self, above: &Item, table: &dyn TableLike) -> Result<Text> {
        let (mut to, mut source) = (None, Vec::new());
        let (mut mode, mut owner) = (0o644, (0, 0));
        for (key, item) in table.iter() {
            match key {
                "to" => to = Some(self.word(key, item)?).filter(|to| to.starts_with('/') && !to.ends_with('/')),
                "from" => source.push(Source::File(self.word(key, item)?)),
                "text" => source.push(Source::Text(self.word(key, item)?)),
                "mode" => {
                    let mode_of = |text: &str| u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
                    let bad = || self.wrong(item, "`mode` is an octal number in quotes, such as \"0755\"");
                    mode = item.as_str().and_then(mode_of).ok_or_else(bad)?;
                }
                "owner" => {
                    let ids = item.as_str().and_then(|text| {
                        let (user, group) = text.split_once(':').unwrap_or((text, text));
                        Some((user.parse().ok()?, group.parse().ok()?))
                    });
                    owner = ids.ok_or_else(|| self.wrong(item, "`owner` is two numbers, such as \"1000:1000\""))?;
                }
                key => return Err(self.wrong(item, &format!("unknown key `{key}`"))),
            }
        }
        match (to, source.pop(), source.is_empty()) {
            (Some(to), Some(source), true) => Ok(Text { to, source, mode, owner }),
            _ => Err(self.wrong(above, "a file has an absolute path `to`, and either `from` or `text`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_recipe_says_what_and_in_which_order() {
        let recipe = Recipe::parse(
            "image.toml",
            "base = \"debian/trixie\"\npackages = [\"nginx\", \"g++\"]\nuser = \"me\"\n\
             run = [\"a && b\", [\"/bin/c\", \"d e\"]]\n[[files]]\nto = \"/etc/motd\"\ntext = \"hi\"\n\
             [[files]]\nto = \"/x\"\nfrom = \"x\"\nmode = \"4755\"\nowner = \"1000:50\"\n",
        )
        .unwrap();
        assert_eq!((recipe.base.as_str(), recipe.build), ("debian/trixie", false));
        assert_eq!(recipe.run, [vec!["a && b".to_owned()], vec!["/bin/c".into(), "d e".into()]]);
        assert_eq!(recipe.files[0].source, Source::Text("hi".into()));
        assert_eq!((recipe.files[1].mode, recipe.files[1].owner), (0o4755, (1000, 50)));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, said) in [
            ("", "a recipe has a `base`"),
            ("base = \"a\"\nbuild = \"b\"", "a recipe has a `base`"),
            ("base = \"a\"\npackage = []", "image.toml:2: unknown key `package`"),
            ("base = \"a\"\npackages = [\"-oDpkg::x=y\"]", "no name of a package"),
            ("base = \"a\"\npackages = [\"a; rm\"]", "no name of a package"),
            ("base = \"a\"\nuser = \"root\"", "no name of a user"),
            ("base = \"a\"\nuser = \"a b\"", "no name of a user"),
            ("base = \"a\"\nrun = [[]]", "a command is"),
            ("base = \"a\"\nrun = [[\"not a path\"]]", "a command is"),
            ("base = \"a\"\n[[files]]\nto = \"x\"\ntext = \"\"", "absolute path"),
            ("base = \"a\"\n[[files]]\nto = \"/x\"\ntext = \"\"\nfrom = \"y\"", "either `from` or `text`"),
            ("base = \"a\"\n[[files]]\nto = \"/x\"\ntext = \"\"\nmode = \"9\"", "octal"),
        ] {
            let e = Recipe::parse("image.toml", text).unwrap_err().to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(base|run|files|=|\\[|\\]|\"|\n| |/){0,40}") {
            let _ = Recipe::parse("image.toml", &text);
        }
    }
}

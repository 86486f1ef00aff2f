//! A container's programs in the person's menu.
//!
//! What a container says of its programs is read inside, and what of it reaches the menu is text and pictures that were
//! taken apart and put together anew (`lazaret-desktop`). An entry outside runs `lazaret app` with the name of the
//! entry inside, so what it does is decided inside, each time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lazaret_base::{Context, Kind, Result, error};
use lazaret_config::{Config, Display, Name};
use lazaret_desktop::{Entry, LONGEST_ENTRY, Launcher, Person, icon, is_id};
use serde::{Deserialize, Serialize};

use crate::app::no_display;
use crate::file::Place;
use crate::home;
use crate::look::{Root, look};
use crate::store::Store;

/// More entries are not looked at.
const MOST_ENTRIES: usize = 2000;
/// Directories below `applications` that name entries, too (`kde/x.desktop` is `kde-x`).
const DEEPEST: usize = 4;
/// Sizes of icons in the order in which they are wanted.
const SIZES: [u32; 10] = [256, 128, 96, 192, 512, 64, 48, 32, 24, 16];

/// A program of a container's.
#[derive(Clone, Debug, Serialize)]
pub struct Program {
    /// The name of its entry.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub comment: Option<String>,
    /// What is run.
    pub program: String,
    /// Whether it wants a terminal.
    pub terminal: bool,
    /// Whether it is in the person's menu.
    pub in_menu: bool,
}

/// What of a container is in a person's menu.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    /// What the container was called then.
    name: Name,
    uid: u32,
    gid: u32,
    person: String,
    menu: Menu,
    ids: Vec<String>,
}

/// A person's menu, and how an entry in it calls us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Menu {
    /// Where the person's programs keep their data (`XDG_DATA_HOME`).
    pub data: PathBuf,
    /// What makes root of the person; nothing for root.
    pub become_root: Option<String>,
    /// Our own program.
    pub program: PathBuf,
}

impl Menu {
    /// The usual one of a person.
    ///
    /// # Errors
    ///
    /// Where the person has no home.
    pub fn of(person: &Person, data: Option<&str>, become_root: Option<&str>, program: PathBuf) -> Result<Menu> {
        let data = match data.map(PathBuf::from).filter(|data| data.is_absolute()) {
            Some(data) => data,
            None => home::data(person)?,
        };
        Ok(Menu { data, become_root: become_root.map(str::to_owned), program })
    }

    fn entries(&self, name: &Name) -> PathBuf {
        self.data.join("applications/lazaret").join(name.as_str())
    }

    fn icons(&self, name: &Name) -> PathBuf {
        self.data.join("lazaret/icons").join(name.as_str())
    }
}

/// The programs that a container could show in a menu, whether it runs or not.
///
/// # Errors
///
/// Where its files can't be looked at.
pub fn programs(store: &Store, name: &Name, person: &Person) -> Result<Vec<Program>> {
    let found = entries(store, name)?;
    let shown = store.shown_launchers(name)?;
    let of_person = |id: &String| shown.iter().any(|shown| shown.uid == person.uid && shown.ids.contains(id));
    let line = |entry: Entry| Program {
        name: entry.name().to_owned(),
        comment: entry.comments.get("").cloned(),
        program: entry.program(),
        terminal: entry.terminal,
        in_menu: of_person(&entry.id),
        id: entry.id,
    };
    Ok(found.into_values().filter(|entry| !entry.hidden).map(line).collect())
}

/// Puts programs into a person's menu: those that are named, by entry or by program, or all. Their names come back.
///
/// # Errors
///
/// [`Kind::NotFound`] for a program that is not there; [`Kind::Invalid`] for a container without a display.
pub fn add(store: &Store, name: &Name, wanted: Option<&[String]>, person: &Person, menu: &Menu) -> Result<Vec<String>> {
    store.require(name)?;
    let display = store.document(name)?.config().desktop.display;
    if display == Display::None {
        return Err(no_display(name, "set"));
    }
    let found = entries(store, name)?;
    let chosen: Vec<&Entry> = match wanted {
        None => found.values().filter(|entry| !entry.hidden).collect(),
        Some(words) => words.iter().map(|word| choose(&found, word, name)).collect::<Result<_>>()?,
    };
    let pictures = pictures(store, name, &chosen)?;
    let _lock = store.lock(name)?;
    store.require(name)?;
    let mut all = store.shown_launchers(name)?;
    let at = all.iter().position(|shown| shown.uid == person.uid && &shown.menu == menu && &shown.name == name);
    let at = at.unwrap_or(all.len());
    if at == all.len() {
        let (person, uid, gid) = (person.name.clone(), person.uid, person.gid);
        all.push(Shown { name: name.clone(), uid, gid, person, menu: menu.clone(), ids: Vec::new() });
    }
    for entry in &chosen {
        if !all[at].ids.contains(&entry.id) {
            all[at].ids.push(entry.id.clone());
        }
    }
    // Before they are there: who removes the container removes them.
    store.write_shown_launchers(name, &all)?;
    let _writing = home::enter(person, &menu.data.join("lazaret"))?;
    for dir in [menu.entries(name), menu.icons(name)] {
        home::make(person, &dir)?;
    }
    for entry in &chosen {
        let icon = match pictures.get(&entry.id) {
            Some(picture) => {
                let path = menu.icons(name).join(format!("{}.png", entry.id));
                home::write(person, &path, picture)?;
                path.to_string_lossy().into_owned()
            }
            // The host's theme may have one of that name.
            None => entry.icon.clone().filter(|icon| is_id(icon)).unwrap_or_else(|| "application-x-executable".into()),
        };
        let command = command(store, name, menu, entry);
        let class = class(name, display, entry);
        let launcher = Launcher { container: name.as_str(), command: &command, icon: &icon, class: &class };
        let text = entry.launcher(&launcher);
        home::write(person, &menu.entries(name).join(format!("{}.desktop", entry.id)), text.as_bytes())?;
    }
    Ok(chosen.iter().map(|entry| entry.name().to_owned()).collect())
}

/// Takes programs out of a person's menu: those that are named, or all. How many there were.
///
/// # Errors
///
/// [`Kind::NotFound`] for one that is not there.
pub fn remove(store: &Store, name: &Name, wanted: Option<&[String]>, person: &Person) -> Result<usize> {
    let _lock = store.lock(name)?;
    store.require(name)?;
    let mut all = store.shown_launchers(name)?;
    let mut removed = 0;
    for word in wanted.unwrap_or_default() {
        let id = word.strip_suffix(".desktop").unwrap_or(word);
        if !all.iter().any(|shown| shown.uid == person.uid && shown.ids.iter().any(|known| known == id)) {
            return Err(error(format!("`{id}` of `{name}` is not in the menu of `{}`", person.name))
                .kind(Kind::NotFound)
                .hint(format!("lazaret apps {name} shows which are")));
        }
    }
    for shown in all.iter_mut().filter(|shown| shown.uid == person.uid) {
        let goes = |id: &String| {
            wanted.is_none_or(|words| words.iter().any(|word| word.strip_suffix(".desktop").unwrap_or(word) == id))
        };
        let (gone, stay): (Vec<_>, Vec<_>) = shown.ids.drain(..).partition(goes);
        shown.ids = stay;
        removed += gone.len();
        match shown.ids.is_empty() {
            true => take_away(shown)?,
            false => {
                for id in &gone {
                    let files = [shown.menu.entries(&shown.name), shown.menu.icons(&shown.name)];
                    for (dir, end) in files.iter().zip(["desktop", "png"]) {
                        home::remove(person, &dir.join(format!("{id}.{end}")))?;
                    }
                }
            }
        }
    }
    all.retain(|shown| !shown.ids.is_empty());
    store.write_shown_launchers(name, &all)?;
    Ok(removed)
}

/// The command of an entry, by the container as it is now.
pub(crate) fn command_of(store: &Store, name: &Name, id: &str, arguments: &[String]) -> Result<Vec<String>> {
    let found = entries(store, name)?;
    let entry = choose(&found, id, name)?;
    Ok(entry.command(arguments))
}

/// What of a container that is about to go is in menus.
pub(crate) fn of(store: &Store, name: &Name) -> Vec<Shown> {
    // Who can't read what there is, can't keep the container either.
    store.shown_launchers(name).unwrap_or_default()
}

/// The container has gone.
pub(crate) fn forget(all: &[Shown]) {
    for shown in all {
        // The person's home may have gone as well.
        let _ = take_away(shown);
    }
}

/// The container is called otherwise: entries of the old name go, others come. The caller holds no lock.
pub(crate) fn follow(store: &Store, name: &Name) -> Result<()> {
    for shown in store.shown_launchers(name)?.iter().filter(|shown| &shown.name != name) {
        take_away(shown)?;
        let person = person(shown);
        let known = entries(store, name)?;
        let there: Vec<String> = shown.ids.iter().filter(|id| known.contains_key(*id)).cloned().collect();
        add(store, name, Some(&there), &person, &shown.menu)?;
        let _lock = store.lock(name)?;
        let mut all = store.shown_launchers(name)?;
        all.retain(|other| other.name == *name || other.uid != shown.uid);
        store.write_shown_launchers(name, &all)?;
    }
    Ok(())
}

fn person(shown: &Shown) -> Person {
    Person { name: shown.person.clone(), uid: shown.uid, gid: shown.gid, home: None }
}

fn take_away(shown: &Shown) -> Result<()> {
    for dir in [shown.menu.entries(&shown.name), shown.menu.icons(&shown.name)] {
        home::remove_all(&person(shown), &dir)?;
    }
    Ok(())
}

/// The entry that is meant: by its own name, or by that of its program if only one has it.
fn choose<'a>(found: &'a BTreeMap<String, Entry>, word: &str, name: &Name) -> Result<&'a Entry> {
    let id = word.strip_suffix(".desktop").unwrap_or(word);
    if let Some(entry) = found.get(id) {
        return Ok(entry);
    }
    let same: Vec<_> = found.values().filter(|entry| entry.program() == word && !entry.hidden).collect();
    match same[..] {
        [entry] => Ok(entry),
        [] => Err(error(format!("`{name}` has no entry `{word}` in its menu"))
            .kind(Kind::NotFound)
            .hint(format!("lazaret apps {name} lists those there are"))),
        _ => {
            let ids: Vec<_> = same.iter().map(|entry| entry.id.as_str()).collect();
            Err(error(format!("several entries of `{name}` run `{word}`"))
                .kind(Kind::Invalid)
                .hint(format!("name one of {}", ids.join(", "))))
        }
    }
}

/// What the windows of a program call themselves outside: by that, desktops know that they are the entry's. Without a
/// word of the entry's, most are called as their program is.
fn class(name: &Name, display: Display, entry: &Entry) -> String {
    let class = entry.class.clone().unwrap_or_else(|| entry.program());
    match display {
        Display::Trusted => class,
        _ => lazaret_gate::class_prefix(name.as_str()) + &class,
    }
}

/// What an entry outside runs.
fn command(store: &Store, name: &Name, menu: &Menu, entry: &Entry) -> Vec<String> {
    let lossy = |path: &Path| path.to_string_lossy().into_owned();
    let mut command: Vec<String> =
        menu.become_root.iter().flat_map(|words| words.split_whitespace()).map(str::to_owned).collect();
    command.push(lossy(&menu.program));
    command.extend(store.root().iter().flat_map(|root| ["--root".to_owned(), lossy(root)]));
    command.push("app".into());
    if !entry.terminal {
        command.push("--detach".into());
    }
    command.extend(["--entry".to_owned(), entry.id.clone(), name.to_string()]);
    command
}

// --- inside ---

/// Where a container's programs say what they are, the one that counts most first.
fn places(config: &Config) -> Vec<String> {
    let own = config.desktop.user.as_ref().map(|user| format!("/home/{user}/.local/share"));
    let all = ["/usr/local/share", "/usr/share", "/var/lib/flatpak/exports/share"];
    own.into_iter().chain(all.map(str::to_owned)).collect()
}

fn entries(store: &Store, name: &Name) -> Result<BTreeMap<String, Entry>> {
    let places = places(store.document(name)?.config());
    let looking = || format!("looking for programs in `{name}`");
    let place = Place::find(store, name).with_context(looking)?;
    let texts = look(&place, |root| Ok(texts(root, &places))).with_context(looking)?;
    Ok(texts.into_iter().filter_map(|(id, text)| Some((id.clone(), Entry::parse(&id, text.as_bytes())?))).collect())
}

/// The entries' texts by their names: what is found first hides what is found later.
fn texts(root: &Root, places: &[String]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for place in places {
        let mut dirs = vec![(format!("{place}/applications"), String::new(), 0)];
        while let Some((dir, prefix, depth)) = dirs.pop() {
            for file in root.names(&dir, MOST_ENTRIES) {
                let path = format!("{dir}/{file}");
                match file.strip_suffix(".desktop") {
                    Some(id) if found.len() < MOST_ENTRIES => {
                        let id = format!("{prefix}{id}");
                        let text = || String::from_utf8(root.read(&path, LONGEST_ENTRY)?).ok();
                        if !found.contains_key(&id)
                            && is_id(&id)
                            && let Some(text) = text()
                        {
                            found.insert(id, text);
                        }
                    }
                    None if depth < DEEPEST && dirs.len() < MOST_ENTRIES && !file.contains('.') => {
                        dirs.push((path, format!("{prefix}{file}-"), depth + 1));
                    }
                    _ => {}
                }
            }
        }
    }
    found
}

/// Pictures of entries, by the entries' names.
fn pictures(store: &Store, name: &Name, entries: &[&Entry]) -> Result<BTreeMap<String, Vec<u8>>> {
    let places = places(store.document(name)?.config());
    let wanted: Vec<(String, Vec<String>)> = entries
        .iter()
        .filter_map(|entry| Some((entry.id.clone(), candidates(entry.icon.as_deref()?, &places))))
        .collect();
    let place = Place::find(store, name)?;
    let found = look(&place, |root| {
        let picture = |paths: &[String]| paths.iter().find_map(|path| icon::png(&root.read(path, icon::LONGEST)?));
        Ok(wanted.iter().filter_map(|(id, paths)| Some((id.clone(), picture(paths)?))).collect::<BTreeMap<_, _>>())
    });
    found.with_context(|| format!("looking for icons in `{name}`"))
}

/// Where the picture of an icon may be (Icon Theme Specification), the best first.
fn candidates(icon: &str, places: &[String]) -> Vec<String> {
    if icon.starts_with('/') {
        return vec![icon.to_owned()];
    }
    let stem = icon.strip_suffix(".png").unwrap_or(icon);
    if stem.contains('/') {
        return Vec::new();
    }
    let themes = SIZES.iter().flat_map(|size| {
        places.iter().map(move |place| format!("{place}/icons/hicolor/{size}x{size}/apps/{stem}.png"))
    });
    themes.chain(places.iter().map(|place| format!("{place}/pixmaps/{stem}.png"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn icons_are_looked_for_where_they_are() {
        let places = ["/usr/share".to_owned()];
        let all = candidates("xterm", &places);
        assert_eq!(all[0], "/usr/share/icons/hicolor/256x256/apps/xterm.png");
        assert_eq!(all.last().unwrap(), "/usr/share/pixmaps/xterm.png");
        assert_eq!(candidates("/opt/x.png", &places), ["/opt/x.png"]);
        assert_eq!(candidates("../x", &places), [""; 0]);
    }
}

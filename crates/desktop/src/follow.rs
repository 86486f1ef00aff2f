//! What programs inside follow of the host: language, time, looks, fonts.

use std::fs;
use std::path::{Path, PathBuf};

use crate::session::Session;

/// Handed on as they are: they name things, and hold nothing.
pub(crate) const LOOKS: &[&str] = &[
    "XCURSOR_THEME",
    "XCURSOR_SIZE",
    "GTK_THEME",
    "GDK_SCALE",
    "GDK_DPI_SCALE",
    "QT_STYLE_OVERRIDE",
    "QT_SCALE_FACTOR",
    "QT_AUTO_SCREEN_SCALE_FACTOR",
];
/// The locale, whole and by category (locale(7)).
pub(crate) const LANGUAGE: &[&str] = &[
    "LANG",
    "LC_CTYPE",
    "LC_NUMERIC",
    "LC_TIME",
    "LC_COLLATE",
    "LC_MONETARY",
    "LC_MESSAGES",
    "LC_PAPER",
    "LC_MEASUREMENT",
];
/// Messages in the person's languages, the best first (gettext).
pub(crate) const MESSAGES: &[&str] = &["LANGUAGE"];
/// The time zone (tzset(3)).
pub(crate) const ZONE: &[&str] = &["TZ"];
/// A value that is longer names nothing.
const LONGEST: usize = 255;

/// Variables for programs of the desktop. `has_locale` says whether the container knows a locale: a program that is
/// told of one that is not there falls back to plain ASCII.
pub fn follow(session: &Session, has_locale: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let of = |name: &&str| Some(((*name).to_owned(), session.variable(name)?.to_owned()));
    let locales = LANGUAGE.iter().filter_map(of).filter(|(_, locale)| has_locale(locale));
    let mut all: Vec<(String, String)> = locales.collect();
    // Of no effect without a language.
    if all.iter().any(|(name, _)| name == "LANG") {
        all.extend(MESSAGES.iter().filter_map(of));
    }
    all.extend(LOOKS.iter().filter_map(of));
    let zone = session.variable(ZONE[0]).map(str::to_owned).or_else(|| zone(Path::new("/etc/localtime")));
    all.extend(zone.map(|zone| ("TZ".to_owned(), zone)));
    all.retain(|(_, value)| value.len() <= LONGEST && !value.chars().any(char::is_control));
    all
}

/// The name of the host's time zone, by where the link leads (localtime(5)).
fn zone(link: &Path) -> Option<String> {
    let to = fs::read_link(link).ok()?;
    let (_, zone) = to.to_str()?.rsplit_once("zoneinfo/")?;
    Some(zone.to_owned())
}

/// A directory of the host's fonts, and where it is shown inside: beside the container's own fonts, where fontconfig
/// looks, and in the way of no package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fonts {
    /// Where they are.
    pub source: PathBuf,
    /// Where they appear.
    pub target: PathBuf,
}

/// The host's fonts, as far as there are some.
pub fn fonts() -> Vec<Fonts> {
    let all = [
        ("/usr/share/fonts", "/usr/local/share/fonts/host"),
        ("/usr/local/share/fonts", "/usr/local/share/fonts/host-local"),
    ];
    let is_there = |source: &str| fs::read_dir(source).is_ok_and(|mut entries| entries.next().is_some());
    let there = all.into_iter().filter(|(source, _)| is_there(source));
    there.map(|(source, target)| Fonts { source: source.into(), target: target.into() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::person::Person;

    fn session(pairs: &'static [(&str, &str)]) -> Session {
        let person = Person { name: "ann".into(), uid: 0, gid: 0, home: None };
        Session::find(person, |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn a_language_is_followed_where_the_container_knows_it() {
        let session =
            session(&[("LANG", "de_DE.UTF-8"), ("LC_TIME", "nl_NL.UTF-8"), ("LANGUAGE", "de"), ("TZ", "UTC")]);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let knows_german = follow(&session, |locale| locale.starts_with("de"));
        assert_eq!(knows_german, [pair("LANG", "de_DE.UTF-8"), pair("LANGUAGE", "de"), pair("TZ", "UTC")]);
        assert_eq!(follow(&session, |_| false), [pair("TZ", "UTC")]);
    }

    #[test]
    fn what_names_nothing_is_left_out() {
        let session = session(&[("GTK_THEME", "a\nb"), ("XCURSOR_SIZE", "24"), ("TZ", "UTC")]);
        let names: Vec<_> = follow(&session, |_| true).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["XCURSOR_SIZE", "TZ"]);
    }

    #[test]
    fn a_zone_has_the_name_of_its_file() {
        let dir = std::env::temp_dir().join(format!("lazaret-zone-{}", std::process::id()));
        let _ = fs::remove_file(&dir);
        std::os::unix::fs::symlink("/usr/share/zoneinfo/America/Argentina/Ushuaia", &dir).unwrap();
        assert_eq!(zone(&dir).as_deref(), Some("America/Argentina/Ushuaia"));
        fs::remove_file(&dir).unwrap();
        assert_eq!(zone(&dir), None);
    }
}

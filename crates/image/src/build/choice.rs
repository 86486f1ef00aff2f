//! Which packages are to be installed: those that were asked for, and all that these need.

use std::collections::{BTreeMap, HashMap, HashSet};

use lazaret_base::{Context, Kind, Result, error};

use super::index::{Clause, Index, Package, Priority, Relation};

/// How much a built system has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// What is essential or required, and the package manager. It has no init of its own.
    Minbase,
    /// A small system: an init, a network client, what one expects on a command line.
    #[default]
    Standard,
}

/// Packages in the order in which they may be installed.
#[derive(Clone, Debug, Default)]
pub struct Choice<'t> {
    /// What every system begins with.
    pub base: Vec<Package<'t>>,
    /// The rest, in portions: what one needs before it may be unpacked is in an earlier one.
    pub portions: Vec<Vec<Package<'t>>>,
    /// Names of those that nobody asked for by name, so that they may go with those that need them.
    pub automatic: Vec<&'t str>,
}

impl<'t> Choice<'t> {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Package<'t>> {
        self.base.iter().chain(self.portions.iter().flatten())
    }
}

/// What a container's system needs that is not important in Debian's sense, as far as the archive has it.
const COMPANIONS: &[&str] = &["systemd-sysv", "dbus", "systemd-resolved", "iproute2", "iputils-ping", "netbase"];
/// Needed by everything, said by nothing: without the first, a program that merges directories would be installed.
const FOUNDATION: &[&str] = &["usr-is-merged", "apt"];

/// Chooses a whole system.
pub fn system<'t>(index: &Index<'t>, variant: Variant, include: &[String]) -> Result<Choice<'t>> {
    let mut choosing = Choosing::new(index);
    let roots = index.packages().filter(|package| package.essential || package.priority == Priority::Required);
    let mut roots: Vec<_> = roots.copied().collect();
    roots.sort_unstable_by_key(|package| package.name);
    let base_names: Vec<_> = roots.iter().map(|package| package.name).collect();
    roots.extend(FOUNDATION.iter().filter_map(|name| index.get(name)));
    if !roots.iter().any(|package| package.essential) {
        return Err(error("the archive has no essential packages").kind(Kind::Invalid));
    }
    choosing.add_all(&roots)?;
    let base: HashSet<&str> = choosing.new.iter().copied().collect();
    let mut more = Vec::new();
    if variant == Variant::Standard {
        let important = index.packages().filter(|package| package.priority == Priority::Important);
        more.extend(important.copied());
        more.extend(COMPANIONS.iter().filter_map(|name| index.get(name)));
        more.sort_unstable_by_key(|package| package.name);
        more.dedup_by_key(|package| package.name);
    }
    let asked = asked(index, include)?;
    more.extend(&asked);
    choosing.add_all(&more)?;
    choosing.check()?;
    let named: HashSet<&str> = base_names.into_iter().chain(more.iter().map(|package| package.name)).collect();
    let (base, rest): (Vec<_>, Vec<_>) = choosing.packages().into_iter().partition(|p| base.contains(p.name));
    let automatic = base.iter().chain(&rest).map(|package| package.name);
    let automatic = automatic.filter(|name| !named.contains(name) && !FOUNDATION.contains(name)).collect();
    Ok(Choice { base, portions: portions(rest), automatic })
}

/// Chooses what is to be added to a system that is there.
pub fn additions<'t>(index: &Index<'t>, installed: &[Package<'t>], include: &[String]) -> Result<Choice<'t>> {
    let mut choosing = Choosing::new(index);
    installed.iter().for_each(|package| choosing.have(*package));
    let asked = asked(index, include)?;
    let missing: Vec<_> = asked.iter().filter(|package| !choosing.chosen.contains_key(package.name)).copied().collect();
    choosing.add_all(&missing)?;
    choosing.check()?;
    let named: HashSet<&str> = asked.iter().map(|package| package.name).collect();
    let packages = choosing.packages();
    // What was there before, in an older version, is what it was.
    let was_there = |name: &str| installed.iter().any(|package| package.name == name);
    let automatic = packages.iter().map(|package| package.name);
    let automatic = automatic.filter(|name| !named.contains(name) && !was_there(name)).collect();
    Ok(Choice { base: Vec::new(), portions: portions(packages), automatic })
}

/// The packages that were named. What is only provided means the one package that provides it.
fn asked<'t>(index: &Index<'t>, include: &[String]) -> Result<Vec<Package<'t>>> {
    let find = |name: &String| match (index.get(name), index.providers(name)) {
        (Some(package), _) => Ok(*package),
        (None, [(only, _)]) => Ok(index.latest(only)),
        (None, []) => Err(error(format!("there is no package `{name}`"))
            .kind(Kind::NotFound)
            .hint(near(index, name).unwrap_or_else(|| "is it of another component or suite?".into()))),
        (None, several) => {
            let names: Vec<_> = several.iter().take(8).map(|(name, _)| *name).collect();
            let e = error(format!("several packages provide `{name}`")).kind(Kind::Invalid);
            Err(e.hint(format!("name one of them: {}", names.join(", "))))
        }
    };
    include.iter().map(find).collect()
}

impl<'t> Index<'t> {
    /// A package whose name comes from the index itself.
    fn latest(&self, name: &str) -> Package<'t> {
        *self.get(name).expect("an index has what it names as provider")
    }
}

/// A name that begins or ends alike.
fn near(index: &Index<'_>, wanted: &str) -> Option<String> {
    let common = |name: &str| name.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
    let close = |name: &&str| common(name) + 2 >= wanted.len().max(name.len()) && wanted.len() > 2;
    let mut names: Vec<_> = index.packages().map(|package| package.name).filter(close).collect();
    names.sort_unstable_by_key(|name| (std::cmp::Reverse(common(name)), *name));
    names.first().map(|name| format!("did you mean `{name}`?"))
}

struct Choosing<'i, 't> {
    index: &'i Index<'t>,
    chosen: BTreeMap<&'t str, Package<'t>>,
    /// By what chosen packages stand in for: who does, and for which version.
    provided: HashMap<&'t str, Vec<(&'t str, Option<&'t str>)>>,
    /// Those that are to be installed, in the order in which they were found.
    new: Vec<&'t str>,
    /// Whether something that was there is replaced.
    upgrades: bool,
}

impl<'i, 't> Choosing<'i, 't> {
    fn new(index: &'i Index<'t>) -> Self {
        Choosing { index, chosen: BTreeMap::new(), provided: HashMap::new(), new: Vec::new(), upgrades: false }
    }

    /// What is installed already.
    fn have(&mut self, package: Package<'t>) {
        if let Some(before) = self.chosen.insert(package.name, package) {
            self.provided.values_mut().for_each(|providers| providers.retain(|(name, _)| *name != before.name));
        }
        for (name, version) in package.provided() {
            self.provided.entry(name).or_default().push((package.name, version));
        }
    }

    fn take(&mut self, package: Package<'t>) {
        self.upgrades |= self.chosen.contains_key(package.name);
        self.have(package);
        self.new.push(package.name);
    }

    /// Takes packages and all that they need. Those that were named come first: where one of several will do, one that
    /// is there anyway is taken.
    fn add_all(&mut self, packages: &[Package<'t>]) -> Result<()> {
        let mut next = self.new.len();
        for package in packages {
            if !self.chosen.contains_key(package.name) {
                self.take(*package);
            }
        }
        while let Some(name) = self.new.get(next).copied() {
            next += 1;
            let package = self.chosen[name];
            for clause in package.needs() {
                if !self.is_met(&clause) {
                    let found = self.find(&clause).with_context(|| format!("`{name}` needs {}", in_words(&clause)))?;
                    self.take(found);
                }
            }
        }
        Ok(())
    }

    fn is_met(&self, clause: &Clause<'t>) -> bool {
        // A clause for other architectures only asks for nothing here.
        clause.is_empty() || clause.iter().any(|relation| self.is_there(relation))
    }

    fn is_there(&self, relation: &Relation<'t>) -> bool {
        let itself = self.chosen.get(relation.name).is_some_and(|package| relation.allows(package.version));
        itself || self.stands_in(relation).next().is_some()
    }

    /// The chosen packages that provide what is meant.
    fn stands_in<'a>(&'a self, relation: &'a Relation<'t>) -> impl Iterator<Item = &'t str> + 'a {
        let providers = self.provided.get(relation.name).into_iter().flatten();
        providers.filter(|(_, version)| relation.allows_provided(*version)).map(|(name, _)| *name)
    }

    /// The package that is to meet a clause: the first that is named and fits, else the most needed that provides it.
    fn find(&self, clause: &Clause<'t>) -> Result<Package<'t>> {
        let mut candidates = Vec::new();
        for relation in clause {
            candidates.extend(self.index.get(relation.name).filter(|package| relation.allows(package.version)));
            let mut providers: Vec<_> = self
                .index
                .providers(relation.name)
                .iter()
                .filter(|(_, version)| relation.allows_provided(*version))
                .map(|(name, _)| self.index.latest(name))
                .collect();
            providers.sort_by_key(|package| (package.priority, package.name));
            candidates.extend(providers);
        }
        let peaceful = candidates.iter().find(|candidate| self.quarrel(candidate).is_none());
        match peaceful.or(candidates.first()) {
            Some(package) => Ok(*package),
            None => Err(error("no package of the archive fits").kind(Kind::NotFound)),
        }
    }

    /// A chosen package that can't be with this one.
    fn quarrel(&self, package: &Package<'t>) -> Option<&'t str> {
        let meant = |relation: &Relation<'t>| {
            let itself = self.chosen.get(relation.name).filter(|other| relation.allows(other.version));
            let itself = itself.map(|other| other.name);
            // Nobody quarrels with itself: a package provides what it replaces.
            itself.into_iter().chain(self.stands_in(relation)).find(|name| *name != package.name)
        };
        let refused = package.refuses().find_map(|relation| meant(&relation));
        let names = || std::iter::once((package.name, Some(package.version))).chain(package.provided());
        let refuses = |other: &&Package<'t>| {
            let hits = |relation: Relation<'t>| {
                names().any(|(name, version)| name == relation.name && relation.allows_provided(version))
            };
            other.name != package.name && other.refuses().any(hits)
        };
        refused.or_else(|| self.chosen.values().find(refuses).map(|other| other.name))
    }

    /// Refuses a choice that can't be installed.
    fn check(&self) -> Result<()> {
        for name in &self.new {
            if let Some(other) = self.quarrel(&self.chosen[name]) {
                let e = error(format!("`{name}` and `{other}` can't be installed together")).kind(Kind::Invalid);
                return Err(e.hint("leave out what needs one of them"));
            }
        }
        // An upgrade may have taken from installed packages what they needed.
        for package in self.chosen.values().filter(|_| self.upgrades) {
            if let Some(clause) = package.needs().find(|clause| !self.is_met(clause)) {
                return Err(error(format!("`{}` would lack {}", package.name, in_words(&clause))).kind(Kind::Invalid));
            }
        }
        Ok(())
    }

    fn packages(&self) -> Vec<Package<'t>> {
        let mut seen = HashSet::new();
        self.new.iter().filter(|name| seen.insert(**name)).map(|name| self.chosen[name]).collect()
    }
}

fn in_words(clause: &Clause<'_>) -> String {
    let sign = |relation: &Relation<'_>| match relation.version {
        Some((_, version)) => format!("`{}` (another version than {version} is there or none)", relation.name),
        None => format!("`{}`", relation.name),
    };
    clause.iter().map(sign).collect::<Vec<_>>().join(" or ")
}

/// Sorts packages into portions, so that what one needs before it is unpacked works by then: it and all that it needs
/// come in an earlier portion.
fn portions(packages: Vec<Package<'_>>) -> Vec<Vec<Package<'_>>> {
    let mut portions = Vec::new();
    let mut rest = packages;
    while !rest.is_empty() {
        let by_name = names(&rest);
        let mut first: HashSet<usize> = HashSet::new();
        let mut todo: Vec<usize> = (0..rest.len())
            .flat_map(|at| rest[at].needs_before().flat_map(|clause| meeting(&clause, &by_name)).collect::<Vec<_>>())
            .collect();
        while let Some(at) = todo.pop() {
            if first.insert(at) {
                todo.extend(rest[at].needs().flat_map(|clause| meeting(&clause, &by_name)));
            }
        }
        // Nobody waits for anybody, or all for each other: then dpkg is told to go on.
        if first.is_empty() || first.len() == rest.len() {
            portions.push(rest);
            break;
        }
        // What is left after this portion waits for nothing but it.
        let mut later = Vec::new();
        let mut sooner = Vec::new();
        for (at, package) in rest.into_iter().enumerate() {
            if first.contains(&at) { sooner.push(package) } else { later.push(package) }
        }
        portions.extend(self::portions(sooner));
        portions.push(later);
        rest = Vec::new();
    }
    portions
}

fn names<'t>(packages: &[Package<'t>]) -> HashMap<&'t str, Vec<usize>> {
    let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
    for (at, package) in packages.iter().enumerate() {
        let provided = package.provided().map(|(name, _)| name);
        std::iter::once(package.name).chain(provided).for_each(|name| by_name.entry(name).or_default().push(at));
    }
    by_name
}

fn meeting(clause: &Clause<'_>, by_name: &HashMap<&str, Vec<usize>>) -> Vec<usize> {
    clause.iter().filter_map(|relation| by_name.get(relation.name)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME FIELD: VALUE; FIELD: VALUE` a line.
    fn index(lines: &str) -> String {
        let line = |line: &str| {
            let (name, fields) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            let fields: String = fields.split(';').map(|field| format!("{}\n", field.trim())).collect();
            format!("Package: {name}\nVersion: 1\nArchitecture: all\n{fields}").trim_end().to_owned() + "\n\n"
        };
        lines.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// What is chosen, portions between `/`.
    #[track_caller]
    fn check(lines: &str, include: &str, expected: &str) {
        let text = index(&format!("base Essential: yes\n{lines}"));
        let index = Index::read([text.as_str()], "amd64").unwrap();
        let choice = system(&index, Variant::Minbase, &words(include)).unwrap();
        let show = |packages: &Vec<Package<'_>>| {
            let mut names: Vec<_> = packages.iter().map(|package| package.name).collect();
            names.sort_unstable();
            names.join(" ")
        };
        let all: Vec<_> = std::iter::once(&choice.base).chain(&choice.portions).map(show).collect();
        assert_eq!(all.join(" / "), expected);
    }

    #[track_caller]
    fn refuse(lines: &str, include: &str, words_of_error: &str) {
        let text = index(&format!("base Essential: yes\n{lines}"));
        let index = Index::read([text.as_str()], "amd64").unwrap();
        let e = system(&index, Variant::Minbase, &words(include)).unwrap_err();
        let said = format!("{e} ({})", e.advice().unwrap_or_default());
        assert!(said.contains(words_of_error), "{said}");
    }

    #[test]
    fn the_base_is_what_is_essential_or_required_and_what_that_needs() {
        check(
            "r Priority: required; Depends: lib (>= 1)\nlib Pre-Depends: libc\nlibc\napt\nother Priority: important",
            "",
            "apt base lib libc r",
        );
    }

    #[test]
    fn of_alternatives_what_is_there_anyway_is_taken_and_else_the_first() {
        check("a Depends: x | y\nx\ny", "a", "base / a x");
        check("a Depends: x | y\nx\ny", "a y", "base / a y");
        check("a Depends: none | y\ny", "a", "base / a y");
        check("a Depends: x (>= 2) | y\nx\ny", "a", "base / a y");
        check("a Depends: v\nq Provides: v\np Provides: v; Priority: standard", "a", "base / a p");
        check("a Depends: v (>= 2)\nq Provides: v\np Provides: v (= 3)", "a", "base / a p");
        // One that quarrels with what was named is no choice if there is another.
        check("a Depends: x | y\nx Conflicts: b\ny\nb", "a b", "base / a b y");
    }

    #[test]
    fn what_must_work_first_comes_in_an_earlier_portion_with_all_it_needs() {
        check("a Pre-Depends: b\nb Depends: c\nc\nd", "a d", "base / b c / a d");
        check("a Pre-Depends: b\nb Pre-Depends: c\nc", "a", "base / c / b / a");
        check("a Pre-Depends: b\nb Pre-Depends: a", "a", "base / a b");
    }

    #[test]
    fn what_can_not_be_is_refused_with_a_reason() {
        refuse("a Depends: nothing", "a", "`a` needs `nothing`: no package");
        refuse("a Conflicts: b\nb", "a b", "can't be installed together");
        refuse("a Breaks: b (<< 2)\nb", "a b", "can't be installed together");
        refuse("firefox-esr", "firefox-es", "did you mean `firefox-esr`?");
        refuse("p Provides: v\nq Provides: v", "v", "name one of them: p, q");
        // A package may refuse what it provides itself.
        check("a Conflicts: v; Provides: v", "a", "base / a");
    }

    #[test]
    fn additions_leave_alone_what_is_there_unless_it_is_too_old() {
        let installed = index("base Essential: yes\nlib\nold");
        let installed: Vec<_> =
            crate::build::control::paragraphs(&installed).map(|text| Package::parse(text, 0).unwrap()).collect();
        let text = index("a Depends: lib, old (>= 1.5), fresh\nlib\nfresh")
            .replace("Package: lib\nVersion: 1", "Package: lib\nVersion: 2")
            + "Package: old\nVersion: 1.6\nArchitecture: all\n";
        let index = Index::read([text.as_str()], "amd64").unwrap();
        let choice = additions(&index, &installed, &words("a")).unwrap();
        let mut names: Vec<_> = choice.all().map(|package| (package.name, package.version)).collect();
        names.sort_unstable();
        assert_eq!(names, [("a", "1"), ("fresh", "1"), ("old", "1.6")]);
        assert_eq!(choice.automatic, ["fresh"]);
    }

    #[test]
    fn what_was_chosen_for_others_is_marked_so() {
        let text = index("base Essential: yes; Depends: lib\nlib\napt Depends: lib2\nlib2\na Depends: b\nb");
        let index = Index::read([text.as_str()], "amd64").unwrap();
        let mut automatic = system(&index, Variant::Minbase, &words("a")).unwrap().automatic;
        automatic.sort_unstable();
        assert_eq!(automatic, ["b", "lib", "lib2"]);
    }
}

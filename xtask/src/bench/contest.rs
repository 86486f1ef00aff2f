//! A row of the table: contenders take turns, their medians are compared.

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::stage::{progress, stage};

/// What must be reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this part of a peer's median.
    Ratio(f64),
    /// At most this long.
    Milliseconds(f64),
    /// At most this large.
    Megabytes(f64),
}

type Sample<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;
type Chore<'a> = Box<dyn Fn() -> Result + 'a>;

/// Somebody to be measured against.
pub struct Contender<'a> {
    name: &'static str,
    target: Option<Target>,
    sample: Sample<'a>,
}

impl<'a> Contender<'a> {
    /// A peer; one without a target is there to be looked at.
    pub fn new(name: &'static str, target: Option<Target>, sample: impl FnMut() -> Result<Duration> + 'a) -> Self {
        Contender { name, target, sample: Box::new(sample) }
    }
}

/// What is done in turns.
pub struct Row<'a> {
    pub what: &'static str,
    /// How often each contender has its turn.
    pub rounds: usize,
    own: Option<Target>,
    contenders: Vec<Contender<'a>>,
    before: Chore<'a>,
    after: Chore<'a>,
}

impl<'a> Row<'a> {
    /// What we do.
    pub fn new(what: &'static str, ours: impl FnMut() -> Result<Duration> + 'a) -> Row<'a> {
        let ours = Contender::new("lazaret", None, ours);
        let nothing = || -> Chore<'a> { Box::new(|| Ok(())) };
        Row { what, rounds: 0, own: None, contenders: vec![ours], before: nothing(), after: nothing() }
    }

    /// A peer who does it, too.
    pub fn against(mut self, peer: Contender<'a>) -> Row<'a> {
        self.contenders.push(peer);
        self
    }

    /// A target of our own, whatever the peers do.
    pub fn within(mut self, target: Target) -> Row<'a> {
        self.own = Some(target);
        self
    }

    /// What is done before the first turn and after the last.
    pub fn between(mut self, before: impl Fn() -> Result + 'a, after: impl Fn() -> Result + 'a) -> Row<'a> {
        (self.before, self.after) = (Box::new(before), Box::new(after));
        self
    }

    /// Holds the contest. A peer who fails is out, and the table says why; our own failure ends it.
    pub fn hold(mut self) -> Result<Vec<Finding>> {
        let mut results: Vec<Result<Vec<f64>>> = self.contenders.iter().map(|_| Ok(Vec::new())).collect();
        stage(self.what, || {
            (self.before)()?;
            // The first round is for the caches and counts for nothing.
            let done = (0..=self.rounds).try_for_each(|round| {
                progress(self.what, &format!("{round} of {}", self.rounds));
                self.round(round, &mut results)
            });
            (self.after)().and(done).map(|()| format!("{} rounds", self.rounds))
        })
        .map_err(|e| format!("{}: {e}", self.what))?;
        Ok(self.findings(results))
    }

    /// Everybody's turn, each round in another order.
    fn round(&mut self, round: usize, results: &mut [Result<Vec<f64>>]) -> Result {
        let number = self.contenders.len();
        for place in 0..number {
            let who = (place + round) % number;
            let Ok(samples) = &mut results[who] else { continue };
            match (self.contenders[who].sample)() {
                Ok(_) if round == 0 => {}
                Ok(spent) => samples.push(spent.as_secs_f64() * 1000.0),
                Err(e) if who == 0 => return Err(e),
                Err(e) => results[who] = Err(e),
            }
        }
        Ok(())
    }

    fn findings(self, results: Vec<Result<Vec<f64>>>) -> Vec<Finding> {
        let mut results = results.into_iter().zip(self.contenders);
        let ours = results.next().and_then(|(samples, _)| samples.ok()).map(Spread::of).unwrap_or_default();
        let own = self.own.map(|target| Finding::absolute(self.what, ours, target));
        let against = results.map(|(samples, peer)| Finding::relative(self.what, ours, &peer, samples.map(Spread::of)));
        own.into_iter().chain(against).collect()
    }
}

/// Smallest, middle and largest of a number of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Spread {
        samples.sort_by(f64::total_cmp);
        let middle = samples.len() / 2;
        let median = match samples[..] {
            [] => 0.0,
            _ if samples.len() % 2 == 1 => samples[middle],
            _ => (samples[middle - 1] + samples[middle]) / 2.0,
        };
        let end = |sample: Option<&f64>| sample.copied().unwrap_or_default();
        Spread { least: end(samples.first()), median, most: end(samples.last()) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>7.2} ({:.2}-{:.2})", self.median, self.least, self.most)
    }
}

/// A line of the table.
#[derive(Debug)]
pub struct Finding {
    what: &'static str,
    ours: String,
    peer: String,
    ratio: String,
    target: String,
    /// Whether the target was reached, if there is one.
    pub met: Option<bool>,
}

impl Finding {
    fn absolute(what: &'static str, ours: Spread, target: Target) -> Finding {
        let (most, unit) = match target {
            Target::Ratio(most) => (most, ""),
            Target::Milliseconds(most) => (most, " ms"),
            Target::Megabytes(most) => (most, " MB"),
        };
        Finding {
            what,
            ours: ours.to_string(),
            peer: String::new(),
            ratio: String::new(),
            target: format!("{most:.1}{unit}"),
            met: Some(ours.median <= most),
        }
    }

    /// What takes memory and no time; all of them count, not the middle one.
    pub fn size(what: &'static str, sizes: Vec<f64>, target: Target) -> Finding {
        let spread = Spread::of(sizes);
        Finding {
            ours: spread.to_string(),
            ..Finding::absolute(what, Spread { median: spread.most, ..spread }, target)
        }
    }

    fn relative(what: &'static str, ours: Spread, peer: &Contender<'_>, theirs: Result<Spread>) -> Finding {
        let name = peer.name;
        let theirs = match theirs {
            Ok(theirs) => theirs,
            Err(why) => {
                let short: String = why.chars().take(80).collect();
                let peer = format!("{name:<15}n/a: {short}");
                return Finding { what, ours: ours.to_string(), peer, ratio: "".into(), target: "".into(), met: None };
            }
        };
        let ratio = ours.median / theirs.median;
        let most = match peer.target {
            Some(Target::Ratio(most)) => Some(most),
            _ => None,
        };
        Finding {
            what,
            ours: ours.to_string(),
            peer: format!("{name:<15}{theirs}"),
            ratio: format!("{ratio:.2}"),
            target: most.map_or(String::new(), |most| format!("{most}")),
            met: most.map(|most| ratio <= most),
        }
    }
}

/// All findings, aligned. Times are in milliseconds, sizes in MB: the median, in brackets the extremes.
pub fn table(findings: &[Finding]) -> String {
    let mut text = format!("\n{:<30}{:<26}{:<42}{:>6}  {:<16}\n", "", "lazaret", "against", "ratio", "at most");
    let mut before = "";
    for finding in findings {
        let met = match finding.met {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "",
        };
        let (what, ours) = if finding.what == before { ("", "") } else { (finding.what, &*finding.ours) };
        before = finding.what;
        let line = format!("{what:<30}{ours:<26}{:<42}{:>6}  {:<8}{met}", finding.peer, finding.ratio, finding.target);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text + "\nms or MB: median (least-most); a ratio is ours by theirs"
}

/// A command that runs.
pub struct Begun {
    child: Child,
    words: String,
    said: File,
}

/// Starts a command; what it says is kept for the case that it fails.
pub fn begin(mut command: Command) -> Result<Begun> {
    let words = command.get_args().fold(command.get_program().to_string_lossy().into_owned(), |words, word| {
        format!("{words} {}", word.to_string_lossy())
    });
    let said = unnamed_file()?;
    let copy = said.try_clone().map_err(|e| e.to_string())?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(copy).spawn();
    Ok(Begun { child: child.map_err(|e| format!("running `{words}`: {e}"))?, words, said })
}

impl Begun {
    /// Waits for it. It must have succeeded.
    pub fn end(mut self) -> Result {
        use std::io::{Read, Seek};
        let status = self.child.wait().map_err(|e| format!("waiting for `{}`: {e}", self.words))?;
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        let _ = self.said.rewind().and_then(|()| self.said.read_to_string(&mut said));
        // What it says first is mostly the cause.
        let cause = said.lines().next().unwrap_or("it says nothing");
        Err(format!("{cause} (`{}`: {status})", self.words))
    }
}

/// A pipe would keep a daemon's writer waiting, or us; a file does neither.
fn unnamed_file() -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    const O_TMPFILE: i32 = 0o20200000;
    let open = std::fs::OpenOptions::new().read(true).write(true).custom_flags(O_TMPFILE).open("/var/tmp");
    open.map_err(|e| format!("making a file in `/var/tmp`: {e}"))
}

/// How long a command takes from its start to its end.
pub fn timed(command: Command) -> Result<Duration> {
    let begun = Instant::now();
    begin(command)?.end()?;
    Ok(begun.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_whatever_the_order() {
        assert_eq!(Spread::of(vec![9.0, 1.0, 2.0]), Spread { least: 1.0, median: 2.0, most: 9.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn a_peer_that_fails_is_out_and_ours_is_not() {
        let row = Row::new("sleep", || Ok(Duration::from_millis(2)))
            .against(Contender::new("slow", Some(Target::Ratio(0.6)), || Ok(Duration::from_millis(10))))
            .against(Contender::new("broken", Some(Target::Ratio(0.6)), || Err("it broke".into())))
            .within(Target::Milliseconds(1.0));
        let findings = Row { rounds: 3, ..row }.hold().unwrap();
        let met: Vec<_> = findings.iter().map(|finding| finding.met).collect();
        assert_eq!(met, [Some(false), Some(true), None]);
        assert_eq!(findings[1].ratio, "0.20");
        assert!(findings[2].peer.contains("it broke"));
        assert!(Row::new("ours", || Err("no".into())).hold().is_err());
    }
}

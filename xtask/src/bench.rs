//! `cargo xtask bench`: how fast, against other container tools and against the kernel's own floor.
//!
//! All contenders start the same root file system, one static busybox, one after another in each round and in another
//! order every round, so that a busy machine is busy for all of them. What is compared is the median of one run of
//! this program, as a ratio; every sample must succeed. LXC is given a user namespace, id-mapped files and its own
//! seccomp filter, as our containers have them.

mod contest;
mod images;
mod load;
mod network;
mod peers;

use std::cell::{Cell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::installation::Installation;
use crate::packages::{self, For};
use crate::place::{self, as_root};
use crate::run::quietly;
use crate::stage::stage;
use crate::{Result, build, flags, nothing_else};
use contest::{Contender, Finding, Row, Target, timed};
use peers::{Lxc, Others};

pub const ARGUMENTS: &str = "[--rounds N] [--quick] [--check] [--network] [--images] [--only WORDS]";

/// Builds, and measures. Root's part is a run of this same program: `bench --with LAZARET`.
pub fn run(arguments: &[String]) -> Result {
    let ([quick, check, network, images], mut rest) = flags(arguments, ["--quick", "--check", "--network", "--images"]);
    let rounds = match take(&mut rest, "--rounds") {
        Some(number) => number.parse().map_err(|_| format!("`--rounds {number}` is no number"))?,
        None if quick => 10,
        None => 40,
    };
    let only = take(&mut rest, "--only").unwrap_or_default();
    if rest.first().is_some_and(|word| word == "--load") {
        return load::run(&rest[1..]);
    }
    if let Some(lazaret) = take(&mut rest, "--with") {
        nothing_else(&rest)?;
        return measure(Path::new(&lazaret), &Effort { rounds, quick, check, network, images, only });
    }
    nothing_else(&rest)?;
    stage("packages", || packages::install(For::Bench))?;
    let lazaret = build::dist()?;
    let own = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    // What is mounted for it goes when it does.
    let mut measuring = as_root("unshare".as_ref(), &[])?;
    measuring.args(["--mount", "--"]).arg(&own).arg("bench").args(arguments).arg("--with").arg(&lazaret);
    match measuring.status().map_err(|e| format!("running sudo: {e}; run this as root"))?.success() {
        true => Ok(()),
        false => Err("the measurement ended early, or a target was missed".into()),
    }
}

/// Takes an option and its value out of the arguments.
fn take(arguments: &mut Vec<String>, option: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == option)?;
    arguments.remove(at);
    (at < arguments.len()).then(|| arguments.remove(at))
}

struct Effort {
    rounds: usize,
    quick: bool,
    check: bool,
    /// Whether only the rows of the network are measured.
    network: bool,
    /// Whether only the rows of images are measured.
    images: bool,
    /// Only rows whose names have these words in them.
    only: String,
}

impl Effort {
    /// Whether a row is measured.
    fn wants(&self, row: &str) -> bool {
        row.contains(&self.only)
    }
}

/// All rows, one after another, then the table.
fn measure(lazaret: &Path, effort: &Effort) -> Result {
    let field = Field::prepare(lazaret, effort)?;
    if effort.images {
        return report(images(&field, effort)?, effort);
    }
    let lxc = Lxc::prepare(&field.world.dir, &field.rootfs)?;
    let others = Others::prepare(&field.world.dir, &field.rootfs)?;
    let mut findings = Vec::new();
    if !effort.network {
        for row in rows(&field, &lxc, &others, effort).into_iter().filter(|row| effort.wants(row.what)) {
            findings.extend(row.hold()?);
        }
        if effort.only.is_empty() {
            findings.extend(keeper_memory(&field)?);
        }
        // They take minutes.
        if !effort.quick && effort.only.is_empty() {
            findings.extend(images(&field, effort)?);
        }
    }
    let network = network::World::prepare(&field, &lxc, effort)?;
    for mut row in network.rows(&lxc)?.into_iter().filter(|row| effort.wants(row.what)) {
        row.rounds = effort.rounds.min(20);
        findings.extend(row.hold()?);
    }
    report(findings, effort)
}

fn images(field: &Field, effort: &Effort) -> Result<Vec<Finding>> {
    let images = images::Images::prepare(field)?;
    let mut findings = Vec::new();
    for row in images.rows(effort.rounds.min(5)) {
        findings.extend(row.hold()?);
    }
    findings.extend(images.memory()?);
    Ok(findings)
}

/// Shows what came of it.
fn report(findings: Vec<Finding>, effort: &Effort) -> Result {
    println!("{}", contest::table(&findings));
    let missed = findings.iter().filter(|finding| finding.met == Some(false)).count();
    match effort.check && missed > 0 {
        true => Err(format!("{missed} targets missed")),
        false => Ok(()),
    }
}

/// What all contenders share.
struct Field {
    world: Installation,
    lazaret: PathBuf,
    rootfs: PathBuf,
    floor: PathBuf,
    /// A tar archive of 1 GiB and many files; absent if this is to be quick.
    large: Option<PathBuf>,
    /// Counts what needs a name of its own.
    count: Cell<u32>,
    /// What the keepers of a crowd took, each in bytes.
    crowd: RefCell<Vec<f64>>,
}

/// The container that is entered and looked at.
const RUNNING: &str = "bench";

impl Field {
    fn prepare(lazaret: &Path, effort: &Effort) -> Result<Field> {
        let world = Installation::new("bench", lazaret)?;
        let base = world.dir.clone();
        let field = Field {
            rootfs: base.join("rootfs"),
            floor: base.join("floor"),
            large: (!effort.quick && !effort.network && !effort.images).then(|| base.join("large.tar")),
            lazaret: lazaret.to_owned(),
            count: Cell::new(0),
            crowd: RefCell::default(),
            world,
        };
        // Where it belongs, /run, is in memory on every host; LXC keeps there what lasts as long.
        stage("run directory", || {
            let run = base.join("state/run");
            fs::create_dir_all(&run).map_err(|e| format!("making `{}`: {e}", run.display()))?;
            quietly(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(run)).map(|_| "in memory")
        })?;
        stage("root file system", || quietly(&mut shell(ROOTFS, &base)).map(|_| ""))?;
        stage("floor", || {
            let source = place::source().join("xtask/src/bench/floor.c");
            quietly(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&field.floor).arg(source)).map(|_| "")
        })?;
        if let Some(large) = &field.large {
            stage("image of 1 GiB", || quietly(&mut shell(LARGE, &base)).map(|_| "20000 files"))?;
            stage("its import", || field.create("large", large).map(|_| "into a layer, once"))?;
            field.destroy("large")?;
        }
        // The layer of the running system is made once, too.
        field.create("host", Path::new("host"))?;
        field.destroy("host")?;
        field.create(RUNNING, &field.rootfs)?;
        Ok(field)
    }

    fn lazaret(&self, words: &[&str]) -> Command {
        let mut command = self.lazaret_of(&self.world.dir.join("state"));
        command.args(words);
        command
    }

    /// Of an installation of its own.
    fn lazaret_of(&self, state: &Path) -> Command {
        let mut command = Command::new(&self.lazaret);
        command.arg("--root").arg(state);
        // What is measured with a network says so.
        command.env("LAZARET_NETWORK", "none");
        command
    }

    fn create(&self, name: &str, image: &Path) -> Result<Duration> {
        let image = image.to_string_lossy();
        timed(self.lazaret(&["create", name, "--image", &image, "--set", r#"init=["/bin/sleep","1000000"]"#]))
    }

    fn destroy(&self, name: &str) -> Result<Duration> {
        timed(self.lazaret(&["destroy", "--force", name]))
    }

    fn kill(&self, name: &str) -> Result<Duration> {
        timed(self.lazaret(&["stop", "--kill", name]))
    }

    /// A number that was not used before.
    fn fresh(&self) -> u32 {
        self.count.set(self.count.get() + 1);
        self.count.get()
    }

    /// What each running container's keeper takes of memory, in MB, its part of what is shared included (the Pss of
    /// proc_pid_smaps(5)). The keeper is the parent of process 1.
    fn keepers(&self) -> Result<Vec<f64>> {
        let running = self.world.ask(&["list", "--json"])?;
        let pids = running.as_array().into_iter().flatten().filter_map(|container| container["pid"].as_u64());
        pids.map(|init| {
            let keeper = field_of(&format!("/proc/{init}/status"), "PPid:")?;
            Ok(field_of(&format!("/proc/{keeper}/smaps_rollup"), "Pss:")? as f64 * 1024.0 / 1e6)
        })
        .collect()
    }

    /// The kernel's share, in a directory of its own.
    fn floor(&self, what: &str, program: &str) -> Result<Duration> {
        timed(self.floor_command(what, program)?)
    }

    fn floor_command(&self, what: &str, program: &str) -> Result<Command> {
        let space = self.world.dir.join(format!("floor-{}", self.fresh()));
        for part in ["", "upper", "work", "root"] {
            fs::create_dir(space.join(part)).map_err(|e| format!("making `{}`: {e}", space.display()))?;
        }
        let mut floor = Command::new(&self.floor);
        floor.arg(what).arg(&self.rootfs).arg(&space).arg(program);
        Ok(floor)
    }
}

/// The number after a word at the beginning of a line.
fn field_of(path: &str, word: &str) -> Result<u64> {
    let text = fs::read_to_string(path).map_err(|e| format!("reading `{path}`: {e}"))?;
    let number = text.lines().find_map(|line| line.strip_prefix(word)?.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("`{path}` has no line `{word}`"))
}

fn shell(script: &str, directory: &Path) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-ec", script]).current_dir(directory);
    shell
}

/// busybox alone. The directories are mount points for those that make none.
const ROOTFS: &str = "
    mkdir -p rootfs/bin rootfs/sbin rootfs/etc rootfs/usr rootfs/var rootfs/root rootfs/mnt \
        rootfs/proc rootfs/sys rootfs/dev rootfs/run rootfs/tmp
    cp /bin/busybox rootfs/bin/busybox
    for applet in sh true sleep cat ls mkdir touch seq xargs; do ln -s busybox rootfs/bin/$applet; done
    echo root:x:0:0:root:/root:/bin/sh >rootfs/etc/passwd
    echo root:x:0: >rootfs/etc/group
";

const LARGE: &str = "
    cp -a rootfs large
    seq 200 | while read d; do
        mkdir -p large/srv/$d
        (cd large/srv/$d && seq 100 | sed 's/.*/file & of a tree with many small files/' | split -l 1 -a 3)
    done
    truncate -s 1G large/srv/sparse
    tar -C large --sparse --format=posix -cf large.tar .
    rm -rf large
";

/// All that is compared, with what must be reached.
fn rows<'a>(field: &'a Field, lxc: &'a Lxc, others: &'a Others, effort: &Effort) -> Vec<Row<'a>> {
    let mut rows = vec![start(field, lxc), exec(field, lxc), info(field, lxc), execute(field, lxc, others)];
    rows.extend(create(field));
    rows.extend([snapshot(field), copy(field)]);
    rows.push(destroy(field));
    rows.push(help(field));
    for row in &mut rows {
        row.rounds = effort.rounds;
    }
    rows.push(many(field, lxc, effort));
    rows
}

fn start<'a>(field: &'a Field, lxc: &'a Lxc) -> Row<'a> {
    Row::new("start, without a network", || {
        let spent = timed(field.lazaret(&["start", RUNNING]))?;
        field.kill(RUNNING)?;
        Ok(spent)
    })
    .against(Contender::new("lxc-start", Some(Target::Ratio(0.6)), || {
        let spent = timed(lxc.command("lxc-start", RUNNING, &["-d"]))?;
        timed(lxc.command("lxc-stop", RUNNING, &["-k"]))?;
        Ok(spent)
    }))
    .against(Contender::new("floor", Some(Target::Ratio(3.0)), || field.floor("start", "/bin/true")))
}

/// A container that runs for as long as a row is measured.
fn while_running<'a>(field: &'a Field, lxc: &'a Lxc, row: Row<'a>) -> Row<'a> {
    row.between(
        || {
            timed(field.lazaret(&["start", RUNNING]))?;
            // A broken peer is out of the contest by its own samples.
            let _ = timed(lxc.command("lxc-start", RUNNING, &["-d"]));
            Ok(())
        },
        || {
            let _ = timed(lxc.command("lxc-stop", RUNNING, &["-k"]));
            field.kill(RUNNING).map(drop)
        },
    )
}

fn exec<'a>(field: &'a Field, lxc: &'a Lxc) -> Row<'a> {
    let row = Row::new("exec /bin/true", || timed(field.lazaret(&["exec", RUNNING, "--", "/bin/true"])))
        .against(Contender::new("lxc-attach", Some(Target::Ratio(0.4)), || {
            timed(lxc.command("lxc-attach", RUNNING, &["--", "/bin/true"]))
        }))
        .against(Contender::new("nsenter", None, || {
            let info = field.world.ask(&["info", "--json", RUNNING])?;
            let mut nsenter = Command::new("nsenter");
            nsenter.args(["--all", "--target", &info["pid"].to_string(), "/bin/true"]);
            timed(nsenter)
        }));
    while_running(field, lxc, row)
}

fn info<'a>(field: &'a Field, lxc: &'a Lxc) -> Row<'a> {
    let row = Row::new("info", || timed(field.lazaret(&["info", RUNNING]))).against(Contender::new(
        "lxc-info",
        Some(Target::Ratio(0.5)),
        || timed(lxc.command("lxc-info", RUNNING, &[])),
    ));
    while_running(field, lxc, row)
}

fn execute<'a>(field: &'a Field, lxc: &'a Lxc, others: &'a Others) -> Row<'a> {
    let row = Row::new("run -- /bin/true, and gone", || {
        timed(field.lazaret(&["run", "--image", &field.rootfs.to_string_lossy(), "--", "/bin/true"]))
    });
    let row = row
        .against(Contender::new("lxc-execute", Some(Target::Ratio(0.3)), || {
            timed(lxc.command("lxc-execute", RUNNING, &["--", "/bin/true"]))
        }))
        .against(Contender::new("floor", None, || field.floor("run", "/bin/true")));
    others.names().into_iter().fold(row, |row, name| {
        row.against(Contender::new(name, None, move || timed(others.command(name, field.fresh()))))
    })
}

fn create(field: &Field) -> Vec<Row<'_>> {
    let mut images = vec![("create, from a directory", field.rootfs.clone()), ("create, from host", "host".into())];
    if let Some(large) = &field.large {
        images.push(("create, from a layer of 1 GiB", large.clone()));
    }
    let row = |(what, image): (&'static str, PathBuf)| {
        Row::new(what, move || {
            let name = format!("new-{}", field.fresh());
            let spent = field.create(&name, &image)?;
            field.destroy(&name)?;
            Ok(spent)
        })
        .within(Target::Milliseconds(20.0))
    };
    images.into_iter().map(row).collect()
}

/// A stopped container of 1 GiB that has something of its own.
fn written(field: &Field) -> Result<String> {
    let name = format!("kept-{}", field.fresh());
    field.create(&name, field.large.as_deref().unwrap_or(&field.rootfs))?;
    let own = field.world.dir.join("state/containers").join(&name).join("upper/own");
    fs::write(&own, "written").map_err(|e| format!("writing `{}`: {e}", own.display()))?;
    Ok(name)
}

fn snapshot(field: &Field) -> Row<'_> {
    Row::new("snapshot, of 1 GiB", || {
        let name = written(field)?;
        let spent = timed(field.lazaret(&["snapshot", &name]))?;
        field.destroy(&name)?;
        Ok(spent)
    })
    .within(Target::Milliseconds(30.0))
}

fn copy(field: &Field) -> Row<'_> {
    Row::new("copy, of 1 GiB", || {
        let name = written(field)?;
        let spent = timed(field.lazaret(&["copy", &name, "copy"]))?;
        field.destroy(&name)?;
        field.destroy("copy")?;
        Ok(spent)
    })
    .within(Target::Milliseconds(30.0))
}

fn destroy(field: &Field) -> Row<'_> {
    Row::new("destroy, after 1000 new files", || {
        field.create("old", &field.rootfs)?;
        timed(field.lazaret(&["start", "old"]))?;
        let fill = "mkdir /srv; seq 1000 | xargs -I_ touch /srv/_";
        timed(field.lazaret(&["exec", "old", "--", "sh", "-c", fill]))?;
        field.kill("old")?;
        timed(field.lazaret(&["destroy", "old"]))
    })
    .within(Target::Milliseconds(50.0))
}

fn help(field: &Field) -> Row<'_> {
    Row::new("--help", || timed(field.lazaret(&["--help"]))).within(Target::Milliseconds(3.0)).against(Contender::new(
        "/bin/true",
        None,
        || timed(Command::new("/bin/true")),
    ))
}

/// How many containers are started at once.
const CROWD: usize = 100;

fn many<'a>(field: &'a Field, lxc: &'a Lxc, effort: &Effort) -> Row<'a> {
    let names: Vec<String> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
    let (ours, theirs, all) = (names.clone(), names.clone(), names);
    let mut row = Row::new("start of 100 at once", move || {
        let spent = at_once(ours.iter().map(|name| field.lazaret(&["start", name])))?;
        let keepers = field.keepers()?;
        let running = keepers.len();
        field.crowd.replace(keepers);
        for name in &ours {
            field.kill(name)?;
        }
        match running {
            CROWD => Ok(spent),
            _ => Err(format!("{running} of {CROWD} run")),
        }
    })
    .against(Contender::new("lxc-start", Some(Target::Ratio(0.5)), move || {
        let spent = at_once(theirs.iter().map(|name| lxc.command("lxc-start", name, &["-d"])));
        for name in &theirs {
            let _ = timed(lxc.command("lxc-stop", name, &["-k"]));
        }
        spent
    }))
    .between(
        move || all.iter().try_for_each(|name| field.create(name, &field.rootfs).and_then(|_| lxc.define(name))),
        || Ok(()),
    );
    row.rounds = if effort.quick { 1 } else { 5 };
    row
}

/// Runs all of them side by side; all must succeed.
fn at_once(commands: impl Iterator<Item = Command>) -> Result<Duration> {
    let begun = Instant::now();
    let started: Vec<_> = commands.map(contest::begin).collect::<Result<_>>()?;
    let failed = started.into_iter().filter_map(|one| one.end().err()).collect::<Vec<_>>();
    let spent = begun.elapsed();
    match failed.first() {
        None => Ok(spent),
        Some(first) => Err(format!("{} of {CROWD} failed, the first: {first}", failed.len())),
    }
}

/// A keeper alone, and one of a crowd.
fn keeper_memory(field: &Field) -> Result<Vec<Finding>> {
    timed(field.lazaret(&["start", RUNNING]))?;
    let alone = field.keepers();
    field.kill(RUNNING)?;
    let finding = |what, sizes: Vec<f64>| Finding::size(what, sizes, Target::Megabytes(1.5));
    Ok(vec![finding("keeper's memory, alone", alone?), finding("keeper's memory, of 100", field.crowd.take())])
}

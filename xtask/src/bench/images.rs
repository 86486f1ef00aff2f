//! The rows of images: unpacking against tar, building against mmdebstrap, making containers against lxc-create. The
//! archives are of a system that is built first, of a distribution's own packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::contest::{Contender, Finding, Row, Target, timed};
use super::{Field, shell};
use crate::Result;
use crate::run::quietly;
use crate::stage::stage;

/// What all rows need.
///
/// What a turn has made stays until the bench ends: a file system takes long to make files where thousands have just
/// been removed (ext4 looks for inodes that were not used lately), and the next turn, of whoever, would pay for it.
pub struct Images<'a> {
    field: &'a Field,
    dir: PathBuf,
}

const RELEASE: &str = "bookworm";
/// No process may take more memory for it, however large the archive.
const MOST_MEMORY: f64 = 200.0;

/// Makes the archives: one of about 200 MB with all of a usual system, compressed as the image servers' are; and what
/// lxc-create wants beside it.
const ARCHIVES: &str = r#"
    "$LAZARET" --root state -q image export large images/root.tar
    cd images
    xz -T0 -1 --keep root.tar
    zstd -q -T0 -3 root.tar
    mkdir meta; cd meta
    printf 'lxc.include = LXC_TEMPLATE_CONFIG/common.conf\nlxc.arch = linux64\n' >config
    cp config config-user; touch templates excludes-user; echo 4000000000 >expiry; echo made >create-message
    tar -cJf ../meta.tar.xz *
"#;

impl<'a> Images<'a> {
    /// Builds and packs.
    pub fn prepare(field: &'a Field) -> Result<Images<'a>> {
        let images = Images { field, dir: field.world.dir.join("images") };
        fs::create_dir(&images.dir).map_err(|e| format!("making `{}`: {e}", images.dir.display()))?;
        stage("packages of a distribution", || {
            // Both ways fill their caches; what is measured then needs the network for lists alone.
            images.build("large", &["--variant", "minbase", "--include", "systemd-sysv,dbus,udev,python3"])?;
            images.build("small", &["--variant", "minbase"])?;
            images.mmdebstrap()?;
            Ok("fetched".to_owned())
        })?;
        stage("archives of them", || {
            let mut making = shell(ARCHIVES, &field.world.dir);
            quietly(making.env("LAZARET", &field.lazaret))?;
            let bytes = fs::metadata(images.dir.join("root.tar")).map_or(0, |meta| meta.len());
            Ok(format!("{} MB", bytes / 1_000_000))
        })?;
        Ok(images)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn build(&self, name: &str, more: &[&str]) -> Result<Duration> {
        let reference = format!("debian/{RELEASE}");
        let fixed = ["-q", "image", "build", &reference, "--no-updates", "--name", name];
        timed(self.field.lazaret(&[&fixed[..], more].concat()))
    }

    /// The same set of packages, from a local cache as well: left to itself, it takes usrmerge, which brings all of
    /// perl.
    fn mmdebstrap(&self) -> Result<Duration> {
        let (tree, cache) = (self.new_path(), self.path("mm-cache"));
        fs::create_dir_all(&cache).map_err(|e| format!("making `{}`: {e}", cache.display()))?;
        let cache = cache.display();
        let fill =
            format!(r#"mkdir -p "$1"/var/cache/apt/archives; cp -l {cache}/*.deb "$1"/var/cache/apt/archives || :"#);
        let keep = format!(r#"cp -lu "$1"/var/cache/apt/archives/*.deb {cache} || :"#);
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args([
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--include=usr-is-merged",
            "--skip=download/empty,essential/unlink",
        ]);
        mmdebstrap.args([format!("--setup-hook={fill}"), format!("--customize-hook={keep}")]);
        mmdebstrap.arg(RELEASE).arg(&tree);
        timed(mmdebstrap)
    }

    /// A path that was not used before.
    fn new_path(&self) -> PathBuf {
        self.path(&format!("made-{}", self.field.fresh()))
    }

    /// Each begins with an idle disk, and pays for no other.
    fn settle(&self) -> Result<()> {
        timed(Command::new("sync")).map(drop)
    }

    fn import(&self, archive: &Path) -> Result<Duration> {
        self.settle()?;
        // Where nobody has seen the archive.
        let mut import = self.field.lazaret_of(&self.new_path());
        import.args(["-q", "image", "import"]).arg(archive).arg("imported");
        timed(import)
    }

    /// As a person would unpack it, into a directory on the same disk, all attributes kept.
    fn tar(&self, archive: &Path, how: &str) -> Result<Duration> {
        self.settle()?;
        let into = self.new_path();
        fs::create_dir(&into).map_err(|e| format!("making `{}`: {e}", into.display()))?;
        let mut tar = Command::new("tar");
        tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls", how, "-xf"]).arg(archive);
        tar.arg("-C").arg(&into);
        timed(tar)
    }

    fn lxc_create(&self) -> Result<Duration> {
        let mut create = Command::new("lxc-create");
        create.arg("-P").arg(self.new_path()).args(["-n", "made", "-t", "local", "--", "--metadata"]);
        create.arg(self.path("meta.tar.xz")).arg("--fstree").arg(self.path("root.tar.xz"));
        timed(create)
    }

    /// All of them. Each takes seconds: few rounds.
    pub fn rows(&self, rounds: usize) -> Vec<Row<'_>> {
        let (xz, zstd) = (self.path("root.tar.xz"), self.path("root.tar.zst"));
        let (by_xz, by_zstd) = (xz.clone(), zstd.clone());
        let mut rows =
            vec![
                Row::new("import, tar.xz", move || self.import(&xz)).against(Contender::new(
                    "tar --xz",
                    Some(Target::Ratio(0.6)),
                    move || self.tar(&by_xz, "--xz"),
                )),
                Row::new("import, tar.zst", move || self.import(&zstd)).against(Contender::new(
                    "tar --zstd",
                    Some(Target::Ratio(1.1)),
                    move || self.tar(&by_zstd, "--zstd"),
                )),
                Row::new("create, from an archive", || {
                    // It was imported by the first turn, as a person's would have been by the first container.
                    let archive = self.path("root.tar.xz");
                    let spent = self.field.create("made", &archive)?;
                    self.field.destroy("made")?;
                    Ok(spent)
                })
                .within(Target::Milliseconds(20.0))
                .against(Contender::new("lxc-create", Some(Target::Ratio(0.02)), || self.lxc_create())),
                Row::new("build, of packages", || self.build("small", &["--variant", "minbase"]))
                    .against(Contender::new("mmdebstrap", Some(Target::Ratio(0.7)), || self.mmdebstrap())),
            ];
        rows.iter_mut().for_each(|row| row.rounds = rounds);
        rows
    }

    /// The most memory that an import has at any time, in MB.
    pub fn memory(&self) -> Result<Vec<Finding>> {
        let peak = |archive: &str| -> Result<f64> {
            let (archive, said) = (self.path(archive), self.path("peak"));
            let mut import = self.field.lazaret_of(&self.new_path());
            import.args(["-q", "image", "import"]).arg(archive).arg("measured");
            let mut time = Command::new("/usr/bin/time");
            time.args(["-f", "%M", "-o"]).arg(&said).arg(import.get_program()).args(import.get_args());
            timed(time)?;
            let text = fs::read_to_string(&said).map_err(|e| format!("reading `{}`: {e}", said.display()))?;
            let kibibytes: f64 = text.trim().parse().map_err(|_| format!("time(1) says `{}`", text.trim()))?;
            Ok(kibibytes * 1024.0 / 1e6)
        };
        let sizes = ["root.tar.xz", "root.tar.zst"].map(peak).into_iter().collect::<Result<Vec<_>>>()?;
        Ok(vec![Finding::size("memory of an import", sizes, Target::Megabytes(MOST_MEMORY))])
    }
}

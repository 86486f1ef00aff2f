//! `cargo xtask try`: builds Lazaret and shows a container, from its creation to its end.
//!
//! Every command is shown as it is run, on an installation that is gone afterwards. A scene that does not end as it
//! should ends the tour: what is shown is true.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::installation::Installation;
use crate::packages::{self, For};
use crate::place::{self, as_root};
use crate::run::{listen, quietly};
use crate::{Result, build, nothing_else};

/// Builds, and shows. Root's part is a run of this same program: `try --with LAZARET`.
pub fn run(arguments: &[String]) -> Result {
    if let [flag, lazaret] = arguments
        && flag == "--with"
    {
        return Tour::begin(Path::new(lazaret))?.show();
    }
    nothing_else(arguments)?;
    packages::install(For::Try)?;
    println!("Building Lazaret. The first time, this takes some minutes.");
    let lazaret = build::dist()?;
    if place::ids()?.0 != 0 {
        println!("Making containers takes root: sudo may ask for your password.");
    }
    match as_roots_part(&lazaret)?.status().map_err(|e| format!("running sudo: {e}; run this as root"))?.success() {
        true => Ok(()),
        false => Err("the tour ended early".into()),
    }
}

/// The tour as a test: nobody looks at it, but it has to be true.
pub fn take(lazaret: &Path) -> Result<String> {
    // On a host with a network of its own, as tests are not to change the machine's.
    let own = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let mut tour = as_root("unshare".as_ref(), &[])?;
    tour.args(["--net", "--"]).arg(&own).args(["try", "--with"]).arg(lazaret);
    quietly(&mut tour)?;
    Ok(format!("{} scenes", SCENES.len()))
}

fn as_roots_part(lazaret: &Path) -> Result<Command> {
    let own = std::env::current_exe().map_err(|e| format!("finding this program: {e}"))?;
    let mut tour = as_root(&own, &[])?;
    tour.args(["try", "--with"]).arg(lazaret);
    Ok(tour)
}

/// How a command is to end.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    Well,
    Refused,
}

use Ends::{Refused, Well};

/// A sentence and the commands that show that it is true.
struct Scene {
    words: &'static str,
    commands: &'static [(&'static str, Ends)],
}

/// `$SECRET` is a file of the host's that everybody may read, `$INIT` the host's number of the container's init.
const SCENES: &[Scene] = &[
    Scene {
        words: "A container of this system's own programs: nothing to download, nothing to copy.",
        commands: &[("lazaret create demo", Well), ("lazaret start demo", Well)],
    },
    Scene {
        words: "In it you are root. Outside you are nobody: its ids belong to no user of this machine.",
        commands: &[
            ("lazaret exec demo -- id", Well),
            ("lazaret exec demo -- cat /proc/self/uid_map", Well),
            ("ps -o uid,pid,args -p $INIT", Well),
        ],
    },
    Scene { words: "It sees its own processes and no others.", commands: &[("lazaret exec demo -- ps -ef", Well)] },
    Scene {
        words: "It is connected to the Internet, but neither to your LAN nor to your machine.",
        commands: &[
            ("lazaret exec demo -- ip -brief address", Well),
            ("lazaret network check demo 203.0.113.7:443 --no-proof", Well),
            ("lazaret network check demo 192.168.1.1 --no-proof", Refused),
            ("lazaret config demo set network.allow=192.168.1.20:631/tcp", Well),
            ("lazaret network show", Well),
        ],
    },
    Scene {
        words: "It sees none of your files: here is one that everybody on this machine may read.",
        commands: &[
            ("cat $SECRET", Well),
            ("lazaret exec demo -- cat $SECRET", Refused),
            ("lazaret exec demo -- ls -A /home /root /srv /mnt", Well),
            ("lazaret exec demo -- head -n 2 /etc/shadow", Well),
        ],
    },
    Scene {
        words: "Its root changes neither your programs nor your kernel, and gets at no disk.",
        commands: &[
            ("lazaret exec demo -- touch /usr/bin/sudo", Refused),
            ("lazaret exec demo -- mount -o remount,bind,rw /usr", Refused),
            ("lazaret exec demo -- mknod /tmp/disk b 8 0", Refused),
            ("lazaret exec demo -- sh -c 'echo /tmp/x >/proc/sys/kernel/core_pattern'", Refused),
        ],
    },
    Scene {
        words: "A limit, set while it runs; and all that holds it in, with every opening, on one screen:",
        commands: &[("lazaret config demo set memory=200M cpus=0.5", Well), ("lazaret info demo", Well)],
    },
    Scene {
        words: "And it is gone, with all that belonged to it.",
        commands: &[("lazaret stop demo", Well), ("lazaret destroy demo", Well), ("lazaret list", Well)],
    },
    Scene {
        words: "For a single command, one line does all of this; of the network nothing is left when it is taken down.",
        commands: &[("echo hello | lazaret run -- sha256sum", Well), ("lazaret network down", Well)],
    },
];

struct Tour {
    world: Installation,
    lazaret: PathBuf,
    /// The escape sequences for bold, dim and plain; empty where nobody sees them.
    ink: [&'static str; 3],
    spent: Duration,
}

impl Tour {
    fn begin(lazaret: &Path) -> Result<Tour> {
        let world = Installation::new("try", lazaret)?;
        let secret = world.dir.join("secret");
        std::fs::write(&secret, "a letter to my bank\n").map_err(|e| format!("writing `{}`: {e}", secret.display()))?;
        let ink = if std::io::stdout().is_terminal() { ["\x1b[1m", "\x1b[2m", "\x1b[0m"] } else { [""; 3] };
        Ok(Tour { world, lazaret: lazaret.to_owned(), ink, spent: Duration::ZERO })
    }

    fn show(&mut self) -> Result {
        for scene in SCENES {
            let [bold, _, plain] = self.ink;
            println!("\n{bold}{}{plain}", scene.words);
            for (command, ends) in scene.commands {
                self.act(command, *ends)?;
            }
        }
        println!("\nThe commands took {:.2} s together. To go on:\n", self.spent.as_secs_f64());
        let shown = self.lazaret.strip_prefix(place::source()).unwrap_or(&self.lazaret);
        println!("{}", GO_ON.replace("LAZARET", &shown.to_string_lossy()));
        Ok(())
    }

    /// Shows a command, what it says, and how it ended.
    fn act(&mut self, command: &str, ends: Ends) -> Result {
        let mut command = command.replace("$SECRET", &self.world.dir.join("secret").to_string_lossy());
        if command.contains("$INIT") {
            let info = self.world.ask(&["info", "demo", "--json"])?;
            command = command.replace("$INIT", &info["pid"].to_string());
        }
        let [_, dim, plain] = self.ink;
        println!("{dim}${plain} {command}");
        let begun = Instant::now();
        let (_, status) = listen(&mut self.world.shell(&command)?, |line| println!("  {line}"))?;
        let spent = begun.elapsed();
        self.spent += spent;
        let how = if status.success() { "" } else { "refused after " };
        println!("  {dim}({how}{:.0} ms){plain}", spent.as_secs_f64() * 1000.0);
        match (ends, status.success()) {
            (Well, true) | (Refused, false) => Ok(()),
            (Well, false) => {
                let doctor = format!("{} doctor", self.lazaret.display());
                Err(format!("`{command}` failed; `{doctor}` says what this machine lacks"))
            }
            (Refused, true) => Err(format!("`{command}` should have been refused; please report this")),
        }
    }
}

const GO_ON: &str = "  sudo install -m 755 LAZARET /usr/local/bin/
  lazaret completions bash | sudo tee /usr/share/bash-completion/completions/lazaret >/dev/null

  sudo lazaret run -- sh                            a throw-away container
  sudo lazaret create web --image root.tar.xz       one of an image: a tar archive or a directory
  sudo lazaret shell web                            a login shell in it; starts it if need be
  lazaret --help                                    and --help of every verb, with examples
  sudo lazaret doctor                               what this machine can and cannot do

README.md tells more; `cargo xtask test` runs every test.";

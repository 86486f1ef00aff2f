//! The only program that is run for the network: `nft -f -`, which takes a whole transaction or nothing of it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lazaret_base::{Context, Kind, Result, error};

/// The nft program of this machine.
#[derive(Clone, Debug)]
pub struct Nft {
    program: PathBuf,
}

/// Where distributions put it; PATH is not ours to trust.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

impl Nft {
    /// Looks where distributions put it. Fails, as [`Kind::Missing`], where it is not.
    pub fn find() -> Result<Nft> {
        let program = PLACES.iter().map(Path::new).find(|path| path.exists());
        let program = program.ok_or_else(|| {
            error("nft is not installed, and the network needs it for its rules")
                .hint("install the package nftables, for example: apt install nftables")
                .kind(Kind::Missing)
        })?;
        Ok(Nft { program: program.into() })
    }

    /// Applies a text of nft commands in the caller's network namespace, in one transaction: all of it or nothing.
    pub fn apply(&self, text: &str) -> Result<()> {
        self.begin(text)?.finish()
    }

    /// Begins what [`Nft::apply`] does, and does not wait for its end.
    pub fn begin(&self, text: &str) -> Result<Begun> {
        Begun::new(&self.program, &["-f", "-"], text).context(APPLYING)
    }

    /// Checks a text as the kernel would take it, and changes nothing.
    pub fn check(&self, text: &str) -> Result<()> {
        self.run(&["-c", "-f", "-"], text).map(drop).context("checking the rules of the firewall")
    }

    /// All rules of the caller's network namespace, also those of others, as nft's JSON.
    pub fn list(&self) -> Result<String> {
        self.run(&["-j", "-f", "-"], r#"{"nftables": [{"list": {"ruleset": null}}]}"#)
            .context("listing the rules of the firewall")
    }

    /// The tables of this name, as nft shows them to people.
    pub fn show(&self, table: &str) -> Result<String> {
        // One after another: nft 1.0.6 finds the tables of one family alone in one go.
        let list = |family: &str| {
            self.run(&["-f", "-"], &format!("list table {family} {table}\n"))
                .with_context(|| format!("listing the tables `{table}`"))
                .hint("they are there while the network is up: lazaret network up")
        };
        Ok(list("inet")? + &list("bridge")?)
    }

    /// Runs it to its end.
    fn run(&self, arguments: &[&str], text: &str) -> Result<String> {
        Begun::new(&self.program, arguments, text)?.end()
    }
}

/// A transaction on its way into the kernel. Dropped, it goes on without anybody to hear of its end.
#[must_use = "nobody hears whether it was refused"]
pub struct Begun {
    program: PathBuf,
    child: Child,
    text: String,
    written: std::io::Result<()>,
}

impl Begun {
    /// Runs nft, with nothing of our environment, and gives it all of the text.
    fn new(program: &Path, arguments: &[&str], text: &str) -> Result<Begun> {
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running `{}`", program.display()))?;
        // nft reads all of its input before it writes, so neither waits for the other. Where it ends early, its
        // words and not the broken pipe are the reason to tell.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(text.as_bytes()));
        Ok(Begun { program: program.into(), child, text: text.into(), written })
    }

    /// The port of its netlink socket: the kernel gives one that asks for none the number of its process
    /// (`netlink_autobind`), and any other only where somebody has that.
    pub fn port(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the transaction is in force, or was refused as a whole.
    pub fn finish(self) -> Result<()> {
        self.end().map(drop).context(APPLYING)
    }

    fn end(self) -> Result<String> {
        let Begun { program, child, text, written } = self;
        let Output { status, stdout, stderr } =
            child.wait_with_output().with_context(|| format!("waiting for `{}`", program.display()))?;
        if !status.success() {
            let said = reason(&String::from_utf8_lossy(&stderr), &text);
            return Err(error(said.unwrap_or_else(|| format!("`{}` failed: {status}", program.display()))));
        }
        written.with_context(|| format!("writing to `{}`", program.display()))?;
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}

const APPLYING: &str = "setting the rules of the firewall";

/// What nft complained about, as a sentence: `/dev/stdin:7:3-9: Error: Could not process rule: No such file` becomes
/// ``no such file, at `delete element ...` ``.
fn reason(stderr: &str, text: &str) -> Option<String> {
    let line = stderr.lines().find(|line| line.contains("Error: "))?;
    let (place, message) = line.split_once("Error: ")?;
    let message = message.strip_prefix("Could not process rule: ").unwrap_or(message);
    let mut chars = message.chars();
    let message: String = chars.next().into_iter().flat_map(char::to_lowercase).chain(chars).collect();
    let number = place.split(':').nth(1).and_then(|number| number.parse::<usize>().ok());
    let at = number.and_then(|number| text.lines().nth(number.checked_sub(1)?)).map(str::trim);
    Some(match at {
        Some(at) if at.chars().count() > SHOWN => {
            format!("{message}, at `{}...`", at.chars().take(SHOWN).collect::<String>())
        }
        Some(at) if !at.is_empty() => format!("{message}, at `{at}`"),
        _ => message,
    })
}

/// Longest piece of a rule that an error repeats, in characters.
const SHOWN: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_the_reason_and_the_line() {
        let text = "add table inet x\ndelete element inet x y { 1.2.3.4 }\n";
        let stderr = "/dev/stdin:2:23-23: Error: No such file or directory; did you mean set `z`?\ndelete ...\n   ^\n";
        assert_eq!(
            reason(stderr, text).unwrap(),
            "no such file or directory; did you mean set `z`?, at `delete element inet x y { 1.2.3.4 }`"
        );
        let stderr = "/dev/stdin:1:1-2: Error: Could not process rule: Operation not supported\n";
        assert_eq!(reason(stderr, text).unwrap(), "operation not supported, at `add table inet x`");
        assert_eq!(reason("something else", text), None);
        assert_eq!(
            reason("netlink: Error: cache initialization failed: Operation not permitted", text).unwrap(),
            "cache initialization failed: Operation not permitted"
        );
    }
}

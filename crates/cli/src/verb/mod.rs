//! One verb, one file.

use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use lazaret::image::Reference;
use lazaret_base::Result;

use crate::session::Session;

/// A verb: how it is typed and what it does.
pub struct Verb {
    /// The word.
    pub name: &'static str,
    /// Adds what it takes.
    pub command: fn(Command) -> Command,
    /// Does it.
    pub run: fn(&Session, &ArgMatches) -> Result<ExitCode>,
}

macro_rules! verbs {
    ($($module:ident $name:literal,)*) => {
        $(mod $module;)*
        /// All verbs, in the order of the help.
        pub const ALL: &[Verb] = &[$(Verb { name: $name, command: $module::command, run: $module::run },)*];
    };
}

verbs! {
    run "run",
    create "create",
    start "start",
    stop "stop",
    restart "restart",
    freeze "freeze",
    unfreeze "unfreeze",
    exec "exec",
    shell "shell",
    app "app",
    apps "apps",
    launcher "launcher",
    paste "paste",
    ssh "ssh",
    ssh_config "ssh-config",
    ssh_proxy "ssh-proxy",
    trace "trace",
    missing "missing",
    console "console",
    logs "logs",
    list "list",
    info "info",
    wait "wait",
    events "events",
    config "config",
    share "share",
    unshare "unshare",
    device "device",
    file "file",
    network "network",
    plan "plan",
    snapshot "snapshot",
    snapshots "snapshots",
    rollback "rollback",
    copy "copy",
    diff "diff",
    df "df",
    publish "publish",
    export "export",
    import "import",
    rename "rename",
    destroy "destroy",
    image "image",
    cache "cache",
    doctor "doctor",
    completions "completions",
    man "man",
}

/// The container, completed from those there are.
fn name_argument(help: &'static str) -> Arg {
    Arg::new("name").value_name("NAME").required(true).help(help).add(ArgValueCompleter::new(complete_name))
}

fn complete_name(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let store = match std::env::var_os("LAZARET_ROOT") {
        Some(root) => lazaret::Store::at(std::path::Path::new(&root)),
        None => Ok(lazaret::Store::system()),
    };
    let names = store.and_then(|store| store.names()).unwrap_or_default();
    let typed = typed.to_string_lossy();
    names
        .iter()
        .filter(|name| name.as_str().starts_with(&*typed))
        .map(|name| CompletionCandidate::new(name.as_str()))
        .collect()
}

fn json_flag() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

/// The command to run and its arguments, after `--` or simply last.
fn command_argument(required: bool) -> Arg {
    Arg::new("command")
        .value_name("CMD")
        .num_args(1..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .required(required)
        .help("The command and its arguments")
}

fn words(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).unwrap_or_default().cloned().collect()
}

/// `--env K=V`, more than once.
fn environment_argument() -> Arg {
    Arg::new("env").short('e').long("env").value_name("K=V").action(ArgAction::Append).help("Set a variable")
}

fn environment(matches: &ArgMatches) -> Result<Vec<(String, String)>> {
    let pairs = words(matches, "env");
    pairs.iter().map(|pair| key_and_value(pair, "--env LANG=de_DE.UTF-8")).collect()
}

/// `--set K=V`, more than once.
fn set_argument() -> Arg {
    Arg::new("set")
        .long("set")
        .value_name("KEY=VALUE")
        .action(ArgAction::Append)
        .help("Set a key of the configuration, such as memory=1G")
        .add(ArgValueCompleter::new(complete_key))
}

fn complete_key(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let keys = lazaret_config::keys().iter().filter(|key| key.name.starts_with(&*typed));
    keys.map(|key| CompletionCandidate::new(format!("{}=", key.name)).help(Some(key.doc.into()))).collect()
}

fn key_and_value(pair: &str, example: &str) -> Result<(String, String)> {
    match pair.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(lazaret_base::error(format!("`{pair}` is not KEY=VALUE"))
            .kind(lazaret_base::Kind::Invalid)
            .hint(format!("for example {example}"))),
    }
}

/// The document that `--image` and `--set` describe.
fn document(matches: &ArgMatches) -> Result<lazaret_config::Document> {
    let image = matches.get_one::<String>("image").map(|image| Ok(("image".to_owned(), absolute(image)?)));
    let sets = words(matches, "set");
    let sets = sets.iter().map(|pair| key_and_value(pair, "--set memory=1G"));
    let mut pairs = image.into_iter().chain(sets).collect::<Result<Vec<_>>>()?;
    add_network(matches, &mut pairs)?;
    add_desktop(matches, &mut pairs)?;
    let pairs = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    lazaret_config::Document::create("--set", pairs)
}

/// `--network MODE`.
fn network_arguments() -> [Arg; 2] {
    [
        Arg::new("network")
            .short('n')
            .long("network")
            .value_name("MODE")
            .env("LAZARET_NETWORK")
            .add(ArgValueCompleter::new(complete_network))
            .help("How it is connected: internet, none, host, bridge:NAME, macvlan:NAME, ipvlan:NAME or phys:NAME [default: internet]"),
        Arg::new("yes")
            .short('y')
            .long("yes")
            .action(ArgAction::SetTrue)
            .help("Do not ask whether `--network host` is meant"),
    ]
}

fn complete_network(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let typed = typed.to_string_lossy();
    let key = lazaret_config::keys().iter().find(|key| key.name == "network.mode");
    let words = key.map_or(&[][..], |key| key.words);
    words.iter().filter(|word| word.starts_with(&*typed)).map(|word| CompletionCandidate::new(*word)).collect()
}

/// What `--network` says is said before what `--set` says. Sharing the host's network is asked for twice.
fn add_network(matches: &ArgMatches, pairs: &mut Vec<(String, String)>) -> Result<()> {
    let is_set = |key: &str| pairs.iter().any(|(set, _)| set == key);
    let Some(mode) = matches.get_one::<String>("network").filter(|_| !is_set("network.mode")) else { return Ok(()) };
    let confirmed = is_set("network.host_mode_confirmed");
    pairs.push(("network.mode".into(), mode.clone()));
    if mode == "host" && !confirmed && (matches.get_flag("yes") || is_meant()?) {
        pairs.push(("network.host_mode_confirmed".into(), "true".into()));
    }
    Ok(())
}

/// `--desktop`.
fn desktop_argument() -> Arg {
    Arg::new("desktop")
        .long("desktop")
        .action(ArgAction::SetTrue)
        .help("Let its programs draw on your screen (`lazaret app`), as a user of your name with a home of its own")
}

/// What `--desktop` says is said before what `--set` says.
fn add_desktop(matches: &ArgMatches, pairs: &mut Vec<(String, String)>) -> Result<()> {
    if !matches.try_get_one::<bool>("desktop").is_ok_and(|flag| flag.is_some_and(|flag| *flag)) {
        return Ok(());
    }
    let person = caller()?;
    for (key, value) in
        [("desktop.display", "isolated"), ("desktop.user", person.name_inside()), ("desktop.sound", "play")]
    {
        if !pairs.iter().any(|(set, _)| set == key) {
            pairs.push((key.into(), value.into()));
        }
    }
    Ok(())
}

/// Who typed the command.
fn caller() -> Result<lazaret::desktop::Person> {
    lazaret::desktop::Person::caller(rustix::process::geteuid().as_raw(), crate::session::variable)
}

/// The graphical session that the command was typed in.
fn desktop_session() -> Result<lazaret::desktop::Session> {
    Ok(lazaret::desktop::Session::find(caller()?, crate::session::variable))
}

/// Asks a person who is there.
fn is_meant() -> Result<bool> {
    use std::io::{BufRead, IsTerminal, Write};
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(false);
    }
    let question = "It will share this machine's network: it reaches every service that listens on 127.0.0.1, and no \
                    policy holds it. Is that meant? [y/N] ";
    let _ = std::io::stderr().write_all(question.as_bytes());
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// An image that is a path stays what it is when the working directory changes. A word is a path if it can be nothing
/// else, or if something of that name is here; an image of a server that shares its name has its remote's before it.
fn absolute(image: &str) -> Result<String> {
    for prefix in ["oci:", "oci-archive:", "docker-archive:"] {
        if let Some(path) = image.strip_prefix(prefix) {
            return Ok(format!("oci:{}", std::path::absolute(path)?.to_string_lossy()));
        }
    }
    let here = !image.contains([':', '@']) && std::path::Path::new(image).exists();
    match image != "host" && (here || Reference::is_path(image)) {
        true => Ok(std::path::absolute(image)?.to_string_lossy().into_owned()),
        false => Ok(image.to_owned()),
    }
}

/// Gets the image that a document names from its server, if it is not here.
fn have_image(session: &Session, store: &lazaret::Store, document: &lazaret_config::Document) -> Result<()> {
    let image = &document.config().image;
    if image == "host" || Reference::is_path(image) {
        return Ok(());
    }
    let notes = lazaret::image::ensure(store, &session.sources()?, image, &mut session.progress(None))?;
    notes.iter().for_each(|note| session.say(note));
    Ok(())
}

/// An image that is here, completed.
fn complete_image(typed: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
    let store = match std::env::var_os("LAZARET_ROOT") {
        Some(root) => lazaret::Store::at(std::path::Path::new(&root)),
        None => Ok(lazaret::Store::system()),
    };
    let lines = store.and_then(|store| lazaret::image::list(&store)).unwrap_or_default();
    let typed = typed.to_string_lossy();
    let fitting = lines.iter().filter(|line| line.name.starts_with(&*typed));
    fitting.map(|line| CompletionCandidate::new(&line.name)).collect()
}

fn image_argument() -> Arg {
    Arg::new("image")
        .short('i')
        .long("image")
        .value_name("IMAGE")
        .value_hint(clap::ValueHint::AnyPath)
        .help("What it is made from: `host`, a name such as debian/trixie or alpine, an archive or a directory [default: host]")
}

/// How much there is to read of an image that is an archive, for the progress bar.
fn size_of_image(document: &lazaret_config::Document) -> Option<u64> {
    std::fs::metadata(&document.config().image).ok().filter(|m| m.is_file()).map(|m| m.len())
}

/// The caller's three descriptors.
fn stdio<T>(act: impl FnOnce([std::os::fd::BorrowedFd<'_>; 3]) -> T) -> T {
    use std::os::fd::AsFd;
    let (input, output, error) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    act([input.as_fd(), output.as_fd(), error.as_fd()])
}

fn duration_argument(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).short('t').long(name).value_name("SPAN").help(help)
}

fn duration(matches: &ArgMatches, name: &str) -> Result<Option<std::time::Duration>> {
    let Some(text) = matches.get_one::<String>(name) else { return Ok(None) };
    // A bare number is seconds, as everywhere.
    let span: lazaret_config::Span =
        if text.bytes().all(|b| b.is_ascii_digit()) { format!("{text}s").parse()? } else { text.parse()? };
    span.duration().map(Some).ok_or_else(|| {
        lazaret_base::error(format!("`--{name} {text}` is negative"))
            .kind(lazaret_base::Kind::Invalid)
            .hint("for example 30s or 2m")
    })
}

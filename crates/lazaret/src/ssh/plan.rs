//! How both ends of ssh are called. Pure.

use std::path::Path;

use lazaret_config::Name;
use lazaret_desktop::Person;

use super::keys::{HOST_KEY, INSIDE, keys_of};

/// A server for one connection.
pub(super) struct Server<'a> {
    /// Its path inside.
    pub(super) program: &'a str,
    /// The user id of the person who connects.
    pub(super) person: u32,
    /// Whether it may forward a screen. For that it listens on the container's own loopback interface.
    pub(super) forwards: bool,
    /// What every session has in its environment.
    pub(super) environment: &'a [(String, String)],
}

/// `sshd` with all that it has to know, so that nothing counts that a file inside says.
pub(super) fn server_words(server: &Server<'_>) -> Vec<String> {
    let yes_or_no = |yes: bool| if yes { "yes" } else { "no" };
    let mut words: Vec<String> = [server.program, "-i", "-e", "-f", "none"].map(str::to_owned).into();
    let mut options = vec![
        ("HostKey".to_owned(), format!("{INSIDE}/{HOST_KEY}")),
        ("AuthorizedKeysFile".into(), format!("{INSIDE}/{}", keys_of(server.person))),
    ];
    let x = yes_or_no(server.forwards);
    let fixed = [
        ("AuthenticationMethods", "publickey"),
        ("PasswordAuthentication", "no"),
        ("KbdInteractiveAuthentication", "no"),
        // By the key: whoever may connect is root inside anyway.
        ("PermitRootLogin", "prohibit-password"),
        // No file is looked at that the container's users could have written.
        ("StrictModes", "no"),
        ("PermitUserEnvironment", "no"),
        // A session of PAM's would refuse those who come while the system boots.
        ("UsePAM", "no"),
        ("UseDNS", "no"),
        ("X11Forwarding", x),
        ("PrintMotd", "no"),
        ("PrintLastLog", "no"),
        ("PidFile", "none"),
        ("Subsystem", "sftp internal-sftp"),
        ("LogLevel", "ERROR"),
    ];
    options.extend(fixed.map(|(key, value)| (key.to_owned(), value.to_owned())));
    // What would have to be written in sshd's own way of quoting is left out.
    let plain = |value: &str| !value.chars().any(|c| c.is_control() || "\"'\\".contains(c));
    let set = server.environment.iter().filter(|(key, value)| plain(key) && plain(value));
    let set: Vec<String> = set.map(|(key, value)| format!("\"{key}={value}\"")).collect();
    if !set.is_empty() {
        options.push(("SetEnv".into(), set.join(" ")));
    }
    for (key, value) in options {
        words.extend(["-o".to_owned(), format!("{key}={value}")]);
    }
    words
}

/// What ssh has to know of any container of ours.
pub(super) fn client_options(keys: &Path) -> Vec<(&'static str, String)> {
    let file = |name: &str| format!("\"{}\"", token(&keys.join(name).to_string_lossy()));
    let fixed = |key: &'static str, value: &str| (key, value.to_owned());
    vec![
        ("IdentityFile", file("key")),
        // No other key of the person's is shown to a container.
        fixed("IdentitiesOnly", "yes"),
        fixed("IdentityAgent", "none"),
        fixed("PreferredAuthentications", "publickey"),
        ("UserKnownHostsFile", file("known_hosts")),
        fixed("GlobalKnownHostsFile", "/dev/null"),
        fixed("StrictHostKeyChecking", "yes"),
        fixed("UpdateHostKeys", "no"),
        fixed("CheckHostIP", "no"),
        // What -X means, where a distribution has it mean -Y.
        fixed("ForwardX11Trusted", "no"),
        // How long a distrusted program keeps the screen. Servers count milliseconds in 32 bits, and end if told of
        // more than 24 days and 20 hours.
        fixed("ForwardX11Timeout", "24d"),
    ]
}

/// What a person's configuration of ssh is made of.
pub struct Recipe<'a> {
    /// Whose.
    pub person: &'a Person,
    /// Our program.
    pub program: &'a Path,
    /// The installation's directory, if it is not the system's.
    pub root: Option<&'a Path>,
    /// What makes root of the person, such as sudo(8); nothing for root.
    pub become_root: Option<&'a str>,
    /// Where the person's keys are.
    pub keys: &'a Path,
    /// Containers in which somebody else is logged in, and who.
    pub others: &'a [(Name, String)],
}

/// A part of ssh_config(5).
pub fn recipe(recipe: &Recipe<'_>) -> String {
    let mut text = String::from("# Containers of lazaret, as NAME.lazaret.\n");
    for (name, user) in recipe.others {
        text += &format!("Host {name}.lazaret\n    User {user}\n");
    }
    text += "Host *.lazaret\n";
    let person = recipe.person.name_inside();
    if person != recipe.person.name {
        text += &format!("    User {person}\n");
    }
    let mut words: Vec<String> = recipe.become_root.map(str::to_owned).into_iter().collect();
    words.push(word(&recipe.program.to_string_lossy()));
    if let Some(root) = recipe.root {
        words.extend(["--root".to_owned(), word(&root.to_string_lossy())]);
    }
    text += &format!("    ProxyCommand {} ssh-proxy %n\n", words.join(" "));
    for (key, value) in client_options(recipe.keys) {
        text += &format!("    {key} {value}\n");
    }
    text
}

/// A word of a command that ssh has a shell run.
pub(super) fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    token(&match text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    })
}

/// A percent sign begins a token of ssh's.
fn token(text: &str) -> String {
    text.replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ann() -> Person {
        Person { name: "ann".into(), uid: 1000, gid: 1000, home: Some("/home/ann".into()) }
    }

    #[test]
    fn the_recipe_leads_to_containers_and_shows_them_no_other_key() {
        let others = [("db".parse().unwrap(), "root".to_owned())];
        let text = recipe(&Recipe {
            person: &ann(),
            program: Path::new("/usr/local/bin/lazaret"),
            root: None,
            become_root: Some("sudo"),
            keys: Path::new("/home/ann/.local/share/lazaret/ssh"),
            others: &others,
        });
        assert_eq!(
            text,
            "# Containers of lazaret, as NAME.lazaret.
Host db.lazaret
    User root
Host *.lazaret
    ProxyCommand sudo /usr/local/bin/lazaret ssh-proxy %n
    IdentityFile \"/home/ann/.local/share/lazaret/ssh/key\"
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    UserKnownHostsFile \"/home/ann/.local/share/lazaret/ssh/known_hosts\"
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    ForwardX11Trusted no
    ForwardX11Timeout 24d
"
        );
        let odd = recipe(&Recipe {
            person: &Person { name: "root".into(), uid: 0, ..ann() },
            program: Path::new("/opt/it's/50%"),
            root: Some(Path::new("/srv/x y")),
            become_root: None,
            keys: Path::new("/k"),
            others: &[],
        });
        assert!(odd.contains("    User user\n"), "{odd}");
        assert!(odd.contains(r"    ProxyCommand '/opt/it'\''s/50%%' --root '/srv/x y' ssh-proxy %n"), "{odd}");
    }

    #[test]
    fn the_server_hears_everything_from_us() {
        let environment = [("LANG", "C.UTF-8"), ("A", "b c"), ("EVIL", "x\" PATH=\"/x"), ("LINES", "1\n2")];
        let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let server = Server { program: "/usr/sbin/sshd", person: 1000, forwards: false, environment: &environment };
        let words = server_words(&server);
        assert_eq!(words[..5], ["/usr/sbin/sshd", "-i", "-e", "-f", "none"]);
        for option in [
            "AuthorizedKeysFile=/dev/lazaret-ssh/keys_of_1000",
            "AuthenticationMethods=publickey",
            "X11Forwarding=no",
            "SetEnv=\"LANG=C.UTF-8\" \"A=b c\"",
        ] {
            assert!(words.iter().any(|word| word == option), "{option}: {words:?}");
        }
        assert!(server_words(&Server { forwards: true, ..server }).iter().any(|word| word == "X11Forwarding=yes"));
    }
}

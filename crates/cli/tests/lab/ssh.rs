//! ssh into containers: everything that is done by it works, nothing listens anywhere, and the container's word is not
//! believed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::desktop::{Screen, become_person};
use crate::harness::*;

/// A machine with a person `ann` at a screen, who has a home, and where root has another than the machine's own.
struct Desk {
    screen: Screen,
    world: World,
    /// The program, where the person can run it.
    program: PathBuf,
}

impl Desk {
    fn new() -> Desk {
        let setup = "mkdir -m 700 $SPACE/root; echo root:x:0:0::$SPACE/root:/bin/sh > $SPACE/passwd
                     mount --bind $SPACE/passwd /etc/passwd";
        let world = World::on_a_host_of_its_own(setup);
        let screen = Screen::start(&world);
        let home = screen.dir.join("home");
        fs::create_dir(&home).unwrap();
        std::os::unix::fs::chown(&home, Some(screen.person), Some(screen.person)).unwrap();
        let passwd = world.path("space/passwd");
        let line = format!("ann:x:{id}:{id}::{}:/bin/sh\n", text(&home), id = screen.person);
        let known = fs::read_to_string(&passwd).unwrap() + &line;
        // In place: another file of that name would not be the one that is mounted.
        fs::write(&passwd, known).unwrap();
        // As a display manager leaves it: xauth finds no entry that is for any display.
        let cookie = fs::read(screen.dir.join("authority")).unwrap();
        let cookie: String = cookie[cookie.len() - 16..].iter().map(|byte| format!("{byte:02x}")).collect();
        let mut xauth = become_person(screen.person);
        let display = format!(":{}", screen.number);
        xauth.args([
            "xauth",
            "-q",
            "-f",
            text(&home.join(".Xauthority")),
            "add",
            &display,
            "MIT-MAGIC-COOKIE-1",
            &cookie,
        ]);
        assert!(xauth.status().unwrap().success());
        let program = screen.dir.join("lazaret");
        fs::copy(LAZARET, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Desk { screen, world, program }
    }

    fn create(&self, name: &str, more: &[&str]) {
        let image = fixture("programs");
        self.world.ok(&[&["create", name, "--image", text(&image), "--network", "none"], more].concat());
    }

    /// A script of root's, in which `$LAZARET` is the program.
    fn script(&self, script: &str) -> Command {
        let mut command = self.world.script(script);
        command.env("LAZARET", &self.program).env("SPACE_OF_TEST", self.world.path("space"));
        command
    }

    /// What ann types with sudo.
    fn typed(&self, script: &str) -> Command {
        let mut command = self.script(script);
        self.screen.sudo(&mut command);
        command.env("DISPLAY", format!(":{}", self.screen.number));
        command.env("XAUTHORITY", self.screen.dir.join("home/.Xauthority"));
        command
    }

    #[track_caller]
    fn ann(&self, script: &str) -> Out {
        self.world.run(self.typed(script), b"")
    }

    #[track_caller]
    fn root(&self, script: &str) -> Out {
        self.world.run(self.script(script), b"")
    }

    fn listening(&self, name: &str) -> String {
        let script = "cat /proc/net/tcp /proc/net/tcp6 | awk '$4 == \"0A\"'";
        self.world.exec_sh(name, script) + &self.root(script).stdout
    }
}

#[test]
fn a_command_by_ssh_is_the_desktop_users_and_nothing_listens() {
    let desk = Desk::new();
    let own = ["desktop.display=isolated", "desktop.user=ann", "env.GREETING=hi you"];
    desk.create("ssh1", &own.map(|set| ["--set", set]).concat());
    // It is started by the way; everything passes, and the status comes back.
    let script = "$LAZARET ssh ssh1 -- 'id -un; echo $GREETING $HOME; cat; echo bad >&2; exit 7'";
    let out = desk.world.run(desk.typed(script), b"words\n");
    assert_eq!((out.status, out.stdout.as_str()), (7, "ann\nhi you /home/ann\nwords\n"), "{out}");
    assert!(out.stderr.ends_with("bad\n"), "{out}");
    assert_eq!(desk.ann("$LAZARET ssh ssh1 -u root id -un").stdout, "root\n");
    // While somebody is logged in.
    let mut login = Pty::start(desk.typed("exec $LAZARET ssh ssh1"));
    login.expect("$ ");
    assert_eq!(desk.listening("ssh1"), "");
    login.type_in("test -t 0 && echo term''inal $TERM\r");
    login.expect("terminal xterm");
    login.type_in("exit 3\r");
    assert_eq!(login.wait().status, 3);
    // What the container was shown of the person is a key of ours, and not on its disk.
    let key = fs::read_to_string(desk.screen.dir.join("home/.local/share/lazaret/ssh/key.pub")).unwrap();
    let shown = desk.world.exec_sh("ssh1", "cat /dev/lazaret-ssh/keys_of_*; ls /home/ann/.ssh /root/.ssh 2>&1; true");
    assert!(shown.starts_with(key.trim()) && shown.contains("No such file"), "{shown}");
    let private = fs::metadata(desk.screen.dir.join("home/.local/share/lazaret/ssh/key")).unwrap();
    assert_eq!(private.permissions().mode() & 0o777, 0o600);
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&private), desk.screen.person);
}

#[test]
fn files_go_both_ways_by_the_name() {
    let desk = Desk::new();
    desk.create("copy1", &[]);
    // The person is root here, whom ssh calls us as.
    let out = desk.root(
        "set -e; cd $SPACE_OF_TEST; export HOME=$SPACE_OF_TEST/root; mkdir -p root/.ssh; $LAZARET ssh-config > root/.ssh/lazaret
         echo Include lazaret > root/.ssh/config; umask 022
         echo out > letter; scp -q letter copy1.lazaret:/root/letter; ssh copy1.lazaret cat letter
         scp -q copy1.lazaret:/etc/debian_version back; test -s back
         mkdir -p tree/below; echo deep > tree/below/file; rsync -a tree/ copy1.lazaret:tree/
         ssh copy1.lazaret cat tree/below/file
         rsync -a copy1.lazaret:tree/ again/; cat again/below/file
         echo 'get letter fetched' | sftp -q -b - copy1.lazaret >/dev/null; cat fetched
         ssh copy1.lazaret 'exit 5' || echo status $?",
    );
    assert_eq!(out.stdout, "out\ndeep\ndeep\nout\nstatus 5\n", "{out}");
    assert_eq!(desk.listening("copy1"), "");
}

#[test]
fn another_key_is_refused_and_a_new_container_is_not() {
    let desk = Desk::new();
    desk.create("key1", &[]);
    assert_eq!(desk.ann("$LAZARET ssh key1 echo in").stdout, "in\n");
    // Something that says it were sshd has a key of its own.
    desk.world.exec_sh(
        "key1",
        "ssh-keygen -q -t ed25519 -N '' -f /root/evil; mv /usr/sbin/sshd /usr/sbin/sshd.real
         printf '#!/bin/bash\\nexec /usr/sbin/sshd.real \"${@//\\\\/dev\\\\/lazaret-ssh\\\\/host_key//root/evil}\"\\n' > /usr/sbin/sshd
         chmod 755 /usr/sbin/sshd",
    );
    let out = desk.ann("$LAZARET ssh key1 echo in");
    assert!(out.status == 255 && out.stdout.is_empty(), "{out}");
    assert!(out.stderr.contains("Host key verification failed"), "{out}");
    // Another container of that name has another key, and a renamed one is known by its new name.
    desk.world.ok(&["destroy", "--force", "key1"]);
    desk.create("key1", &[]);
    assert_eq!(desk.ann("$LAZARET ssh key1 echo in").stdout, "in\n");
    desk.world.ok(&["stop", "key1"]);
    desk.world.ok(&["rename", "key1", "key2"]);
    assert_eq!(desk.ann("$LAZARET ssh key2 echo in").stdout, "in\n");
}

#[test]
fn nobody_comes_in_by_what_the_container_says() {
    let desk = Desk::new();
    desk.create("only1", &[]);
    assert_eq!(desk.ann("$LAZARET ssh only1 echo in").stdout, "in\n");
    // A key that is authorized by the container's own file, and a password that is none.
    desk.root("ssh-keygen -q -t ed25519 -N '' -f $SPACE_OF_TEST/other");
    desk.world.exec_sh(
        "only1",
        "mkdir -p -m 700 /root/.ssh; passwd -d root; printf 'PermitEmptyPasswords yes\\n' > /etc/ssh/sshd_config",
    );
    let public = fs::read(desk.world.path("space/other.pub")).unwrap();
    let pushed = desk.world.feed(&public, &["file", "push", "only1", "-", "/root/.ssh/authorized_keys"]);
    assert_eq!(pushed.status, 0, "{pushed}");
    let out = desk.root(
        "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o \"ProxyCommand=$LAZARET --root $LAZARET_ROOT ssh-proxy %n\" -i $SPACE_OF_TEST/other root@only1.lazaret echo in",
    );
    assert!(out.status == 255 && out.stderr.contains("Permission denied (publickey)"), "{out}");
}

#[test]
fn x_is_forwarded_with_and_without_trust() {
    let desk = Desk::new();
    desk.create("fwd1", &[]);
    // Asks the server that DISPLAY leads to for an extension that no distrusted program gets.
    let probe = r#"use IO::Socket::INET; my ($n) = $ENV{DISPLAY} =~ /:(\d+)/; my ($k) = `xauth list $ENV{DISPLAY}` =~ /([0-9a-f]{32})/;
        my $s = IO::Socket::INET->new("127.0.0.1:" . (6000 + $n)) or die "no display: $!";
        print $s pack("a1xvvvvx2", "l", 11, 0, 18, 16) . "MIT-MAGIC-COOKIE-1xx" . pack("H*", $k); $s->flush;
        read $s, my $b, 8; my ($ok, $len) = unpack "Cx5v", $b; read $s, my $r, 4 * $len; $ok == 1 or die "refused: $r";
        print $s pack("Cxvvx2a5x3", 98, 4, 5, "XTEST"); $s->flush; read $s, my $a, 32; print ord(substr $a, 8, 1), "\n""#;
    fs::write(desk.world.path("space/probe"), probe).unwrap();
    desk.world.ok(&["start", "fwd1"]);
    desk.world.ok(&["file", "push", "fwd1", text(&desk.world.path("space/probe")), "/root/probe"]);
    for (flag, trusted) in [("-X", "0\n"), ("-Y", "1\n")] {
        let out = desk.ann(&format!("$LAZARET ssh fwd1 {flag} perl /root/probe"));
        assert_eq!((out.status, out.stdout.as_str()), (0, trusted), "{flag}: {out}");
    }
    let out = desk.ann("$LAZARET ssh fwd1 'echo none: $DISPLAY'");
    assert_eq!(out.stdout, "none:\n", "{out}");
    let out = desk.root("$LAZARET ssh fwd1 -X true");
    assert!(out.status == 255 && out.stderr.contains("has no graphical session"), "{out}");
}

#[test]
fn what_ssh_lacks_is_told() {
    let desk = Desk::new();
    desk.world.ok(&["create", "lack1", "--image", text(&bare()), "--network", "none"]);
    let out = desk.ann("$LAZARET ssh lack1");
    assert!(out.status == 255 && out.stderr.contains("`lack1` has no sshd"), "{out}");
    desk.world.ok(&["create", "lack2", "--image", text(&fixture("debian12")), "--network", "none"]);
    let out = desk.ann("$LAZARET ssh lack2");
    assert!(out.stderr.contains("lazaret exec lack2 -- apt-get install -y openssh-server"), "{out}");
    let out = desk.ann("$LAZARET ssh nobody");
    assert!(out.status == 255 && out.stderr.contains("nobody"), "{out}");
}

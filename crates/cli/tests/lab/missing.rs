//! What a program of a container lacks, and what it asks for.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::*;

/// A program that needs `libgone.so.1`, which needs `libdeep.so.2`; where each is sought is the linker's to be told.
struct Built {
    world: World,
}

impl Built {
    fn new(flags: &[&str]) -> Built {
        let built = Built { world: World::new() };
        let source = |name: &str, text: &str| std::fs::write(built.path(name), text).unwrap();
        source("deep.c", "int deep(void) { return 7; }");
        source("gone.c", "int deep(void); int gone(void) { return deep(); }");
        source("main.c", "int gone(void); int main(void) { return gone(); }");
        built.cc(&["-shared", "-Wl,-soname,libdeep.so.2", "-o", "libdeep.so", "deep.c"]);
        built.cc(&["-shared", "-Wl,-soname,libgone.so.1", "-o", "libgone.so", "gone.c", "-L.", "-ldeep"]);
        built.cc(&[&["-o", "main", "main.c", "-L.", "-lgone", "-Wl,--allow-shlib-undefined"], flags].concat());
        built
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.path(name)
    }

    fn cc(&self, arguments: &[&str]) {
        let done = Command::new("cc").args(arguments).current_dir(self.world.root()).status().unwrap();
        assert!(done.success(), "{arguments:?}");
    }

    fn push(&self, name: &str, file: &str, to: &str) {
        self.world.ok(&["file", "push", "--parents", name, text(&self.path(file)), to]);
    }

    /// The names that are missing, and who needs them.
    fn missing(&self, name: &str, program: &str) -> Vec<(String, String, String)> {
        let json = self.world.lazaret(&["missing", name, program, "--json"]).json();
        let packages = |library: &serde_json::Value| {
            library["packages"].as_array().unwrap().iter().map(word).collect::<Vec<_>>().join(" ")
        };
        let libraries = json["libraries"].as_array().unwrap();
        libraries.iter().map(|one| (word(&one["name"]), word(&one["needed_by"]), packages(one))).collect()
    }
}

fn line(name: &str, by: &str, package: &str) -> (String, String, String) {
    (name.into(), by.into(), package.into())
}

#[test]
fn libraries_are_looked_for_as_the_loader_does() {
    let built = Built::new(&["-Wl,--enable-new-dtags,-rpath,$ORIGIN/../lib"]);
    built.world.ok(&["create", "lib1"]);
    built.push("lib1", "main", "/opt/app/bin/main");
    // Whether it runs or not.
    assert_eq!(built.missing("lib1", "/opt/app/bin/main"), [line("libgone.so.1", "/opt/app/bin/main", "")]);
    built.push("lib1", "libgone.so", "/opt/app/lib/libgone.so.1");
    // What the program says counts for its own libraries alone: theirs are sought elsewhere.
    built.push("lib1", "libdeep.so", "/opt/app/lib/libdeep.so.2");
    let deep = [line("libdeep.so.2", "/opt/app/lib/libgone.so.1", "")];
    assert_eq!(built.missing("lib1", "/opt/app/bin/main"), deep);
    built.world.ok(&["start", "lib1"]);
    assert_eq!(built.world.lazaret(&["exec", "lib1", "--", "/opt/app/bin/main"]).status, 127);
    built.world.ok(&["config", "lib1", "set", "env.LD_LIBRARY_PATH=/opt/app/lib"]);
    built.world.ok(&["restart", "lib1"]);
    assert_eq!(built.missing("lib1", "/opt/app/bin/main"), [] as [(String, String, String); 0]);
    assert_eq!(built.world.lazaret(&["exec", "lib1", "--", "/opt/app/bin/main"]).status, 7);
    // By name, by links, and by way of a script.
    built
        .world
        .exec_sh("lib1", "mkdir -p /root/bin; printf '#!/usr/bin/env perl\\n' > /root/script; chmod 755 /root/script");
    for program in ["ls", "/bin/sh", "/root/script"] {
        let out = built.world.lazaret(&["missing", "lib1", program]);
        assert!(out.status == 0 && out.stdout.is_empty() && out.stderr.contains("all libraries"), "{out}");
    }
    built.world.refused(&["missing", "lib1", "no-such"], &["no program `no-such`"]);
}

#[test]
fn packages_are_those_that_the_container_knows() {
    let built = Built::new(&[]);
    built.world.start_container("lib2", bare());
    built.push("lib2", "main", "/root/main");
    // What its package manager says is shown, as far as it is a name.
    let fake = b"#!/bin/sh\n[ \"$4\" = so:libgone.so.1 ] && printf 'gone\\n$(evil) x\\n\\033[31m\\n'\n";
    built.world.feed(fake, &["file", "push", "lib2", "-", "/sbin/apk"]);
    built.world.exec("lib2", &["chmod", "755", "/sbin/apk"]);
    let found = built.missing("lib2", "/root/main");
    assert!(found.contains(&line("libgone.so.1", "/root/main", "gone")), "{found:?}");
    let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
    assert!(names.contains(&"libc.so.6") && names.iter().any(|name| name.contains("ld-linux")), "{names:?}");
    let out = built.world.lazaret(&["missing", "lib2", "/root/main"]);
    assert!(out.status == 1 && out.stderr.contains("install: lazaret exec lib2 -- apk add gone"), "{out}");
    // Files that are no programs: a FIFO is not waited for, a device not read.
    built
        .world
        .exec_sh("lib2", "mkfifo /root/fifo; ln -s /dev/zero /root/zero; printf '\\177ELF\\002\\001' > /root/cut");
    for program in ["/root/fifo", "/root/zero"] {
        built.world.refused(&["missing", "lib2", program], &["no program"]);
    }
    assert_eq!(built.missing("lib2", "/root/cut"), [] as [(String, String, String); 0]);
}

#[test]
fn a_trace_shows_what_a_program_does_not_get() {
    let world = World::new();
    world.ok(&["create", "trace1"]);
    let out = world.lazaret(&["trace", "trace1", "--", "cat", "/no/such/file"]);
    assert_eq!(out.status, 1, "{out}");
    assert!(out.stderr.contains("\"/no/such/file\"") && out.stderr.contains("ENOENT"), "{out}");
    assert!(!out.stderr.contains("write("), "{out}");
    let out = world.lazaret(&["trace", "trace1", "--all", "--", "echo", "words"]);
    assert!(out.status == 0 && out.stdout == "words\n" && out.stderr.contains("write(1, \"words"), "{out}");
    let out = world.lazaret(&["trace", "trace1", "-e", "trace=chdir", "sh", "-c", "cd /usr; exit 4"]);
    assert!(out.status == 4 && out.stderr.contains("chdir(\"/usr\")"), "{out}");
    world.create("trace2", fixture("debian12"));
    let out = world.lazaret(&["trace", "trace2", "ls"]);
    assert!(out.status == 127 && out.stderr.contains("apt-get install -y strace"), "{out}");
}

#[test]
fn an_unknown_terminal_is_shown_as_one_that_is_known() {
    let world = World::new();
    world.start_container("term1", fixture("programs"));
    let mut command = world.command(&["shell", "term1"]);
    command.env("TERM", "xterm-of-tomorrow");
    let mut login = Pty::start(command);
    login.expect("does not know the terminal `xterm-of-tomorrow`");
    login.type_in("echo told $TERM.; tput lines && clear && echo do''ne\r");
    login.expect("told xterm-256color.");
    login.expect("24");
    login.expect("done");
    login.type_in("exit\r");
    assert_eq!(login.wait().status, 0);
    let mut command = world.command(&["exec", "term1", "--", "sh", "-c", "echo $TERM."]);
    command.env("TERM", "xterm");
    assert!(Pty::start(command).wait().stdout.contains("xterm."), "a known one is itself");
}

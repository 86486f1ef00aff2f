//! Images that are built here: of packages, and by recipes.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::build_archive::{Archive, Release, Signer};
use crate::harness::*;

/// Nothing of a build is left that is not an image or a package.
#[track_caller]
fn assert_clean(world: &World) {
    for dir in ["tmp", "images/tmp", "images/locks", "containers", "ids"] {
        let left: Vec<_> =
            entries(&world.path(dir)).into_iter().filter(|name| name != "stats" && name != "names").collect();
        assert_eq!(left, [] as [String; 0], "{dir}");
    }
}

#[test]
fn a_system_is_built_of_packages_and_the_second_time_of_those_that_are_here() {
    let world = World::new();
    let archive = Archive::new(world.root());
    let out = world.ok(&archive.build(&["--include", "tool"]));
    assert!(out.stderr.contains("built `debian/bookworm`"), "{out}");
    assert_clean(&world);
    assert_eq!(archive.asked(".deb"), 5);

    world.create("web", "debian/bookworm");
    world.ok(&["start", "web"]);
    assert_eq!(world.exec("web", &["cat", "/etc/hostname"]), "web");
    assert!(world.exec("web", &["cat", "/etc/hosts"]).contains("127.0.1.1\tweb"));
    // What every system begins with was unpacked by us, the rest by its dpkg, in an order that works.
    let calls = world.exec("web", &["cat", "/var/log/dpkg-calls"]);
    let expected = ["--configure base-passwd", "--configure -a", "--unpack", "--configure -a"];
    let positions: Vec<_> = expected.iter().map(|word| calls.find(word)).collect();
    assert!(positions.iter().all(Option::is_some), "{calls}");
    assert_eq!(world.exec_sh("web", "cat /var/lib/unpacked"), "tool\nhelper");
    let status = world.exec("web", &["cat", "/var/lib/dpkg/status"]);
    assert_eq!(status.matches("Status: install ok unpacked").count(), 3, "{status}");
    let sources = world.exec("web", &["cat", "/etc/apt/sources.list.d/debian.sources"]);
    assert!(sources.contains(&format!("URIs: {}\nSuites: bookworm\n", archive.mirror)), "{sources}");
    let automatic = world.exec("web", &["cat", "/var/lib/apt/extended_states"]);
    assert!(automatic.contains("Package: helper") && !automatic.contains("Package: tool"), "{automatic}");
    assert_eq!(world.exec_sh("web", "ls -a /tmp /usr/sbin"), "/tmp:\n.\n..\nkeep\n\n/usr/sbin:\n.\n..");

    let before = world.ok(&["cache", "stats", "--json"]).json();
    world.ok(&archive.build(&["--include", "tool"]));
    assert_eq!(archive.asked(".deb"), 0, "all packages are here");
    let after = world.ok(&["cache", "stats", "--json"]).json();
    assert_eq!(after["fetched"], before["fetched"]);
    assert_eq!(after["saved"], before["fetched"], "every byte came from here");
    // Nobody answers: what is here and still holds will do, and it is said.
    archive.go_down();
    let out = world.ok(&archive.build(&["--name", "offline"]));
    assert!(out.stderr.contains("was not asked"), "{out}");
    world.ok(&["destroy", "--force", "web"]);
    assert_clean(&world);
}

#[test]
fn ubuntu_is_built_of_its_own_suites_and_found_by_its_number() {
    let world = World::new();
    let archive = Archive::new(world.root());
    for suite in ["noble", "noble-updates", "noble-security"] {
        // Those for updates bear the release's own name.
        archive.publish(&Release { suite, codename: "noble", ..Release::default() });
    }
    let (mirror, keyring) = (&archive.mirror, text(&archive.keyring));
    let build = ["image", "build", "ubuntu/24.04", "--variant", "minbase", "--mirror", mirror, "--include", "tool"];
    // The archive signs with another key than Ubuntu's, which is known where no package has it.
    world.refused(&[&build[..], &["-q"]].concat(), &["by a key that is not known", "ubuntu-keyring"]);
    let out = world.ok(&[&build[..], &["--keyring", keyring]].concat());
    assert!(out.stderr.contains("built `ubuntu/noble`"), "{out}");
    assert_clean(&world);
    archive.go_down();
    // By neither name is anybody asked for it.
    for name in ["ubuntu/24.04", "ubuntu/noble"] {
        let out = world.ok(&["run", "--image", name, "--", "cat", "/etc/apt/sources.list.d/ubuntu.sources"]);
        let suites = "Suites: noble noble-updates noble-security\nComponents: main universe\n";
        assert_eq!(out.stdout.matches(suites).count(), 1, "{out}");
        assert!(out.stdout.contains(&format!("URIs: {mirror}\n")), "{out}");
    }
}

#[test]
fn what_is_not_vouched_for_is_not_built() {
    let world = World::new();
    let mut archive = Archive::new(world.root());
    let refused = |archive: &Archive, words: &[&str]| {
        let out = world.refused(&archive.build(&["-q"]), words);
        assert_clean(&world);
        assert_eq!(world.ok(&["image", "list", "--json"]).json().as_array().map(Vec::len), Some(0));
        out
    };
    for (release, words) in [
        (Release { signed_by: Signer::Forged, ..Release::default() }, "the signature is wrong"),
        (Release { signed_by: Signer::Other, ..Release::default() }, "by a key that is not known"),
        (Release { signed_by: Signer::Nobody, ..Release::default() }, "it is not signed"),
        (Release { valid_until: Some(-7200), ..Release::default() }, "it expired 2 hours ago"),
        (Release { codename: "trixie", ..Release::default() }, "not of `bookworm`"),
    ] {
        archive.publish(&release);
        refused(&archive, &[words]);
    }
    archive.publish(&Release::default());
    let (list, deb) = ("dists/bookworm/main/binary-amd64/Packages.xz", "pool/lib_1.0_amd64.deb");
    for path in [list, deb] {
        let right = archive.get(path);
        let mut wrong = right.clone();
        wrong[100] ^= 1;
        archive.put(path, wrong);
        refused(&archive, &["its SHA-256 is", "but the list says"]);
        archive.put(path, right[..right.len() / 2].to_vec());
        refused(&archive, &["bytes came in the place of"]);
        archive.put(path, [&right[..], b"more"].concat());
        refused(&archive, &["more bytes came in the place of"]);
        archive.take(path);
        refused(&archive, &["404"]);
        archive.put(path, right);
    }
    // A package that is what the list says, and still no package.
    archive.package("wrong", "", vec![]);
    archive.package("evil", "Essential: yes\n", vec![("./etc/x".into(), vec![], 0o644)]);
    let keyring = text(&archive.keyring).to_owned();
    let missing = archive.build(&["-q", "--include", "tol"]);
    world.refused(&missing, &["there is no package `tol`", "did you mean `tool`?"]);
    fs::remove_file(&keyring).unwrap();
    refused(&archive, &["reading the keys", "debian-archive-keyring", "--keyring"]);
    world.refused(&["image", "build", "fedora/42"], &["can't be built here", "image pull fedora/42"]);
    world.refused(&["image", "build", "debian/12345"], &["names no release", "for example debian/"]);
}

#[test]
fn a_package_that_can_not_be_configured_is_told_with_its_last_words() {
    let world = World::new();
    let mut archive = Archive::new(world.root());
    archive.package("broken", "Essential: yes\n", vec![("./etc/fail".into(), b"x".to_vec(), 0o644)]);
    archive.publish(&Release::default());
    world.refused(
        &archive.build(&["-q"]),
        &["configuring the packages failed (status 3)", "the package is broken: \"x\""],
    );
    assert_clean(&world);
}

#[test]
fn a_script_runs_inside_at_the_end() {
    let world = World::new();
    let archive = Archive::new(world.root());
    let script = world.path("script");
    fs::write(&script, "#!/bin/sh\nset -e\nid -u >/etc/built\nls -d /var/lib/dpkg/info >>/etc/built\n").unwrap();
    world.ok(&archive.build(&["--script", text(&script), "--name", "mine"]));
    assert_eq!(world.ok(&["run", "--image", "mine", "--", "cat", "/etc/built"]).stdout, "0\n/var/lib/dpkg/info\n");
    fs::write(&script, "#!/bin/sh\necho last words\nexit 7\n").unwrap();
    world.refused(
        &archive.build(&["--script", text(&script), "--name", "other", "-q"]),
        &["running the script failed (status 7)", "last words"],
    );
    assert_clean(&world);
}

#[test]
fn a_build_that_is_killed_leaves_nothing_and_the_next_goes_on() {
    let world = World::new();
    let archive = Archive::new(world.root());
    let script = world.path("script");
    fs::write(&script, "#!/bin/sh\necho ready >/dev/null\nwhile :; do :; done\n").unwrap();
    // While lists and packages are fetched.
    for part in ["InRelease", "Packages.xz", "lib_1.0"] {
        archive.hold(part);
        let build = world.spawn(&archive.build(&[]));
        archive.wait_until_held();
        kill(&build);
        archive.release();
        world.ok(&["list"]);
        assert_clean(&world);
    }
    // While something runs inside: the container goes with the build.
    let build = world.spawn(&archive.build(&["--script", text(&script)]));
    let mut names = Vec::new();
    while !names.iter().any(|name: &String| name.starts_with("build-"))
        || !world.sh("pgrep -f lazaret-script").stdout.contains('\n')
    {
        names = entries(&world.path("run/containers"));
        std::thread::yield_now();
    }
    kill(&build);
    world.ok(&["list"]);
    world.ok(&["list"]);
    assert_clean(&world);
    // The agent is the archive's own, which signs with it.
    let left: Vec<_> = world.leftovers().into_iter().filter(|left| !left.contains("gpg-agent")).collect();
    assert_eq!(left, [] as [String; 0]);
    archive.asked("");
    world.ok(&archive.build(&[]));
    assert_eq!(archive.asked(".deb"), 0, "what was whole is not fetched again");
    assert_eq!(entries(&world.path("packages/locks")), ["stats"]);
}

fn kill(running: &Running) {
    let pid = rustix::process::Pid::from_raw(running.pid() as i32).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    readable_within(&pidfd, LIMIT);
}

#[test]
fn a_full_disk_is_told_and_nothing_stays() {
    let world = World::mounted_by("mount -t tmpfs -o size=700k tmpfs $ROOT");
    let archive = Archive::new(world.root().parent().unwrap());
    let out = world.lazaret(&archive.build(&[]));
    assert_eq!(out.status, 1, "{out}");
    assert!(out.stderr.contains("no space left on device") && out.stderr.contains("hint: make room"), "{out}");
    let left = world.sh("cd $LAZARET_ROOT && ls tmp images/tmp containers ids 2>/dev/null | grep -v ':$' | grep .");
    assert_eq!(left.stdout, "", "{left}");
}

/// Makes an image by a recipe; what was said.
#[track_caller]
fn follow(world: &World, text_of_recipe: &str, more: &[&str]) -> Out {
    let dir = world.path("recipe");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("image.toml"), text_of_recipe).unwrap();
    world.ok(&[&["image", "build", text(&dir.join("image.toml")), "--name", "mine"], more].concat())
}

#[test]
fn a_recipe_is_followed_and_steps_that_were_done_are_not_done_again() {
    let world = World::new();
    let recipe = |greeting: &str, last: &str| {
        format!(
            "base = {:?}\nuser = \"me\"\nrun = [\"echo $(cat /etc/motd) >/first\", [\"/bin/sh\", \"-c\", {last:?}]]\n\
             [[files]]\nto = \"/etc/motd\"\ntext = {greeting:?}\nmode = \"0600\"\nowner = \"1000:50\"\n\
             [[files]]\nto = \"/opt/new/tool\"\nfrom = \"tool\"\nmode = \"4755\"\n",
            text(&bare())
        )
    };
    fs::create_dir_all(world.path("recipe")).unwrap();
    fs::write(world.path("recipe/tool"), "#!/bin/sh\necho tool\n").unwrap();
    let out = follow(&world, &recipe("hello", "echo 1 >/second"), &[]);
    assert!(out.stderr.contains("step 5 of 5") && !out.stderr.contains("as before"), "{out}");
    assert_clean(&world);
    let seen = "cat /first /second; stat -c '%u:%g %a' /etc/motd /opt/new/tool; /opt/new/tool; id -u me; ls -a /tmp";
    let run = |script: &str| world.ok(&["run", "--image", "mine", "--", "sh", "-c", script]).stdout;
    assert_eq!(run(seen), "hello\n1\n1000:50 600\n0:0 4755\ntool\n1001\n.\n..\n");

    let out = follow(&world, &recipe("hello", "echo 1 >/second"), &[]);
    assert_eq!(out.stderr.matches("as before").count(), 5, "{out}");
    let out = follow(&world, &recipe("hello", "echo 2 >/second"), &[]);
    assert_eq!(out.stderr.matches("as before").count(), 4, "only what is new is done: {out}");
    assert_eq!(run("cat /second"), "2\n");
    // A file of another content is another step, and so is all after it.
    fs::write(world.path("recipe/tool"), "#!/bin/sh\necho other\n").unwrap();
    let out = follow(&world, &recipe("hello", "echo 2 >/second"), &[]);
    assert_eq!(out.stderr.matches("as before").count(), 2, "{out}");
    assert_eq!(run("/opt/new/tool"), "other\n");
    let out = follow(&world, &recipe("hello", "echo 2 >/second"), &["--again"]);
    assert_eq!(out.stderr.matches("as before").count(), 0, "{out}");

    // What containers and other commands clear away are not the steps.
    world.create("web", bare());
    world.ok(&["destroy", "web"]);
    let out = follow(&world, &recipe("hello", "echo 2 >/second"), &[]);
    assert_eq!(out.stderr.matches("as before").count(), 5, "{out}");
    let dir = world.path("recipe");
    fs::write(dir.join("image.toml"), recipe("hello", "echo why; exit 9")).unwrap();
    world.refused(&["-q", "image", "build", text(&dir)], &["failed (status 9)", "why"]);
    fs::write(dir.join("image.toml"), "base = \"none/such\"\nx = 1\n").unwrap();
    world.refused(&["-q", "image", "build", text(&dir)], &["image.toml:2: unknown key `x`"]);
    assert_clean(&world);
    // What the steps made stays for the next time: the world is told that this is no litter.
    fs::remove_dir_all(world.path("layers")).unwrap();
}

#[test]
fn a_recipe_adds_packages_to_a_base_that_was_built_here() {
    let world = World::new();
    let archive = Archive::new(world.root());
    world.ok(&archive.build(&[]));
    let follow = |more: &str| {
        let (mirror, keyring) = (&archive.mirror, text(&archive.keyring));
        let fixed =
            format!("base = \"debian/bookworm\"\nmirror = {mirror:?}\nkeyring = {keyring:?}\nupdates = false\n");
        fs::write(world.path("image.toml"), fixed + more).unwrap();
        world.lazaret(&["image", "build", text(&world.path("image.toml")), "--name", "mine"])
    };
    archive.asked("");
    let out = follow("packages = [\"tool\"]\n");
    assert_eq!(out.status, 0, "{out}");
    assert_eq!(archive.asked(".deb"), 2, "what is installed is not fetched: {out}");
    let seen = world.ok(&["run", "--image", "mine", "--", "sh", "-c", "cat /var/lib/unpacked; ls -a /tmp"]);
    // The stand-in for dpkg configures nothing: what it was given before is given to it again.
    assert_eq!(seen.stdout, "tool\nlib\nhelper\n.\n..\nkeep\n");
    let out = follow("packages = [\"tool\"]\n");
    assert!(out.stderr.contains("step 1 of 1: installing packages, as before"), "{out}");
    let out = follow("packages = [\"tol\"]\n");
    assert!(out.status == 1 && out.stderr.contains("did you mean `tool`?"), "{out}");
    assert_clean(&world);
    // As above.
    fs::remove_dir_all(world.path("layers")).unwrap();
}

/// The archive that this machine's apt uses.
fn mirror_of_apt() -> String {
    let out = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages", "Origin: Debian"])
        .output()
        .unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let line = text.lines().find(|line| !line.contains("security") && !line.contains("updates"));
    let line = line.map(str::to_owned).or_else(|| {
        let files = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
        let files = files.chain([Path::new("/etc/apt/sources.list").to_owned()]);
        let texts: Vec<_> = files.filter_map(|path| fs::read_to_string(path).ok()).collect();
        let words = texts.iter().flat_map(|text| text.split_whitespace());
        words
            .into_iter()
            .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
            .map(str::to_owned)
    });
    let line = line.expect("apt is configured with an archive of Debian");
    line.split(' ').next().unwrap().trim_end_matches('/').to_owned()
}

fn proxy_of_apt() -> Option<String> {
    let out = Command::new("apt-config").args(["shell", "PROXY", "Acquire::http::Proxy"]).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    Some(text.trim().strip_prefix("PROXY='")?.strip_suffix('\'')?.to_owned())
}

/// The one test that takes long: Debian itself.
#[test]
fn debian_is_built_and_the_second_time_without_fetching_a_package() {
    let world = World::new();
    let mirror = mirror_of_apt();
    let build = |name: &str| {
        let mut command = world.command(&[
            "image",
            "build",
            "debian/bookworm",
            "--variant",
            "minbase",
            "--no-updates",
            "--mirror",
            &mirror,
            "--name",
            name,
        ]);
        if let Some(proxy) = proxy_of_apt() {
            command.env("http_proxy", proxy);
        }
        let out = world.run(command, b"");
        assert_eq!(out.status, 0, "{out}");
    };
    build("one");
    let first = world.ok(&["cache", "stats", "--json"]).json();
    build("two");
    let second = world.ok(&["cache", "stats", "--json"]).json();
    let bytes = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap();
    let (saved, fetched) = (bytes(&second, "saved"), bytes(&second, "fetched") - bytes(&first, "fetched"));
    assert!(saved * 100 >= (saved + fetched) * 99, "{first} {second}");

    world.create("web", "two");
    world.ok(&["start", "web", "-q"]);
    // Every package is configured and has all of its files, and apt has nothing to mend.
    assert_eq!(
        world.exec_sh("web", "dpkg --audit; dpkg-query -W -f '${db:Status-Abbrev}\\n' | tr -d ' ' | sort -u"),
        "ii"
    );
    assert_eq!(
        world.exec_sh(
            "web",
            "dpkg -V; find / -xdev -name '*.dpkg-new' -o -xdev -name '.lazaret*'; apt-get check >/dev/null"
        ),
        ""
    );
    assert_eq!(world.exec_sh("web", "cat /etc/hostname; . /etc/os-release; echo $VERSION_CODENAME"), "web\nbookworm");
    assert_eq!(
        world.exec_sh(
            "web",
            "apt-get -s autoremove | grep -c ^Remv; readlink /bin; ls /usr/sbin/policy-rc.d 2>&1 | wc -l"
        ),
        "0\nusr/bin\n1"
    );
}

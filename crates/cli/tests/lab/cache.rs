//! The package cache: real apt in real containers, that nobody has told anything; and containers that want more of it
//! than packages.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::build_archive::{Archive, Release};
use crate::harness::*;
use crate::network_probe::Namespace;

const NAME: &str = "archive.example";
const DROPIN: &str = "/etc/apt/apt.conf.d/00lazaret-cache";

/// A host on whose loopback interface, out of every container's reach, there is an archive.
struct Lab {
    archive: Archive,
    /// As `cache on --host` has it.
    host: String,
    world: World,
}

impl Lab {
    fn new() -> Lab {
        let world = World::on_a_host_of_its_own(&format!(
            "echo 127.0.0.1 localhost {NAME} >$SPACE/hosts && mount --bind $SPACE/hosts /etc/hosts"
        ));
        let listener = Namespace::of(world.host_pid()).inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let host = format!("{NAME}:{}", listener.local_addr().unwrap().port());
        let archive = Archive::at(world.root(), listener, &host);
        Lab { archive, host: format!("{host}/debian"), world }
    }

    fn on(&self, more: &[&str]) {
        let out = self.world.ok(&[&["cache", "on", "--host", &self.host], more].concat());
        assert_eq!(out.stderr, "the package cache is on\n", "{out}");
    }

    /// A root of busybox that has a directory for apt's configuration, and what else is in a tree of that name.
    fn tree(&self) -> PathBuf {
        let tree = self.world.path("tree");
        if !tree.exists() {
            let copied = Command::new("cp").arg("-a").arg(bare()).arg(&tree).status().unwrap();
            assert!(copied.success());
            fs::create_dir_all(tree.join("etc/apt/apt.conf.d")).unwrap();
            let sources = format!("deb {} bookworm main\n", self.archive.mirror);
            fs::write(tree.join("etc/apt/sources.list"), sources).unwrap();
        }
        tree
    }

    /// What a container gets by way of the cache: the answer's head and body, as text.
    fn ask(&self, name: &str, target: &str) -> String {
        self.say(name, &format!("GET {target} HTTP/1.1\r\nConnection: close\r\n\r\n"))
    }

    fn say(&self, name: &str, request: &str) -> String {
        self.world.feed(request.as_bytes(), &["exec", name, "--", "nc", "127.0.0.1", "942"]).stdout
    }

    fn stats(&self) -> serde_json::Value {
        self.world.ok(&["cache", "stats", "--json"]).json()
    }

    /// The process that serves.
    fn service(&self) -> Option<i32> {
        let all = self.world.processes();
        all.into_iter().find(|(_, arguments)| arguments.contains("package-cache")).map(|(pid, _)| pid)
    }

    /// Every file that tells apt of the cache, wherever it is on the disk.
    fn told(&self) -> Vec<String> {
        let out = self.world.sh("find $LAZARET_ROOT -name 00lazaret-cache -type f -size +0");
        out.stdout.lines().map(str::to_owned).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The world counts processes.
        self.world.lazaret(&["cache", "off"]);
    }
}

fn kill(pid: i32) {
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
    readable_within(&pidfd, LIMIT);
}

/// Debian's root with the test's archive as its only one.
fn debian_of(lab: &Lab) -> PathBuf {
    let tar = lab.world.path("debian.tar");
    let more = lab.world.path("more");
    fs::create_dir_all(more.join("etc/apt")).unwrap();
    fs::create_dir_all(more.join("usr/share/keyrings")).unwrap();
    fs::copy(&lab.archive.keyring, more.join("usr/share/keyrings/test.gpg")).unwrap();
    let line = format!("deb [signed-by=/usr/share/keyrings/test.gpg] {} bookworm main\n", lab.archive.mirror);
    fs::write(more.join("etc/apt/sources.list"), line).unwrap();
    let script = "set -e; cp $0 $1; tar --delete -f $1 ./etc/apt/sources.list
        tar -rf $1 --owner=0 --group=0 --mode=go=rX -C $2 ./etc/apt/sources.list ./usr/share/keyrings/test.gpg";
    let root = fixture("debian13");
    let words = ["-c", script, text(&root), text(&tar), text(&more)];
    assert!(Command::new("sh").args(words).status().unwrap().success());
    tar
}

/// Bytes that nothing makes smaller.
fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (seed << 1);
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(bytes)
    .collect()
}

#[test]
fn apt_gets_each_package_once_for_all_containers_and_then_without_an_archive() {
    let mut lab = Lab::new();
    lab.archive.package("probe", "Depends: weight\n", vec![("./etc/probe".into(), b"here".to_vec(), 0o644)]);
    lab.archive.package("weight", "", vec![("./etc/weight".into(), noise(2 << 20, 1), 0o644)]);
    lab.archive.publish(&Release::default());
    let (world, archive) = (&lab.world, &lab.archive);
    world.ok(&["-q", "image", "import", text(&debian_of(&lab)), "debian"]);
    let start = |name: &str| {
        world.ok(&["create", name, "--image", "debian", "--set", "init=lazaret"]);
        world.ok(&["start", name]);
    };
    let apt = |name: &str, script: &str| world.lazaret(&["exec", name, "--", "sh", "-c", script]);
    let install = "apt-get update -q && apt-get install -yq probe && cat /etc/probe";

    // Without it there is no way to that archive, and nothing tells of a cache.
    start("one");
    let out = apt("one", "apt-get update -q -o APT::Update::Error-Mode=any");
    assert!(out.status != 0 && archive.asked("") == 0, "{out}");
    assert!(lab.told().is_empty());

    // A container that runs is told, too. What an archive spoils, apt does not install, and the cache does not keep.
    lab.on(&[]);
    let deb = "pool/weight_1.0_amd64.deb";
    let right = archive.get(deb);
    let mut wrong = right.clone();
    wrong[1 << 20] ^= 1;
    for spoilt in [wrong, right[..1 << 20].to_vec()] {
        archive.put(deb, spoilt);
        let out = apt("one", install);
        assert!(out.status != 0 && out.stdout.contains("probe"), "{out}");
        assert!(out.stderr.contains("Hash Sum mismatch") || out.stderr.contains("unexpected size"), "{out}");
    }
    archive.put(deb, right.clone());
    let out = apt("one", install);
    assert!(out.status == 0 && out.stdout.ends_with("here"), "{out}");

    // Another one that is started now gets all of it from here: the rest are lists, which are asked for each time.
    let before = lab.stats();
    archive.asked("");
    start("two");
    let out = apt("two", install);
    assert!(out.status == 0 && out.stdout.ends_with("here"), "{out}");
    assert_eq!(archive.asked(".deb"), 0);
    let after = lab.stats();
    let grown = |key: &str| after[key].as_u64().unwrap() - before[key].as_u64().unwrap();
    assert!(grown("saved") >= right.len() as u64);
    assert!(grown("saved") * 100 >= (grown("saved") + grown("fetched")) * 99, "{before} {after}");
    let shown = world.ok(&["cache", "stats"]).stdout;
    assert!(shown.contains("state    on") && shown.contains("saved "), "{shown}");

    // Nobody answers any more.
    archive.go_down();
    start("three");
    let out = apt("three", install);
    assert!(out.status == 0 && out.stdout.ends_with("here"), "{out}");
    archive.come_back();

    // It goes from those that run and from those that do not.
    assert_eq!(lab.told().len(), 3);
    world.ok(&["stop", "two"]);
    kill(world.keeper_pid("three"));
    world.ok(&["cache", "off"]);
    assert_eq!(lab.told(), [] as [String; 0]);
    assert_eq!(lab.service(), None);
    assert_eq!(world.exec_sh("one", &format!("ls {DROPIN} 2>&1 | grep -c 'No such file'")), "1");
    world.ok(&["start", "two"]);
    archive.asked("");
    assert_ne!(apt("two", "apt-get update -q -o APT::Update::Error-Mode=any").status, 0);
    assert_eq!(archive.asked(""), 0);
    // On again, what was kept is there.
    lab.on(&[]);
    assert_eq!(apt("two", "apt-get clean && apt-get install -yq --reinstall weight").status, 0);
    assert_eq!(archive.asked(".deb"), 0);
    world.ok(&["cache", "clear"]);
    assert_eq!(lab.stats()["files"], 0);
}

#[test]
fn what_apt_is_told_is_in_no_snapshot_no_copy_and_no_image() {
    let lab = Lab::new();
    let world = &lab.world;
    lab.on(&[]);
    world.start_container("web", lab.tree());
    assert!(world.exec("web", &["cat", DROPIN]).contains(&format!("Proxy::{NAME} \"http://127.0.0.1:942\"")));
    world.exec_sh("web", "echo mine >/etc/mine");
    assert_eq!(lab.told().len(), 1);
    world.ok(&["snapshot", "web", "running"]);
    world.ok(&["copy", "web", "other"]);
    world.ok(&["-q", "publish", "web", "image"]);
    world.ok(&["-q", "export", "web", text(&world.path("web.tar"))]);
    let listed = Command::new("tar").arg("tf").arg(world.path("web.tar")).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains("etc/mine") && !listed.contains("00lazaret-cache"), "{listed}");
    assert_eq!(lab.told().len(), 1, "that of the one that runs: {:?}", lab.told());

    // Its keeper is killed: whoever takes the container's lock next, takes it away first.
    kill(world.keeper_pid("web"));
    world.ok(&["snapshot", "web", "after"]);
    assert_eq!(lab.told(), [] as [String; 0]);
    world.ok(&["start", "web"]);
    assert_eq!(lab.told().len(), 1);
    // Frozen, it can't be told: that is said, and the next `off` sees to it.
    world.ok(&["freeze", "web"]);
    let out = world.ok(&["cache", "off"]);
    assert!(out.stderr.contains("`web`: it is frozen"), "{out}");
    world.ok(&["unfreeze", "web"]);
    world.ok(&["cache", "off"]);
    assert_eq!(lab.told(), [] as [String; 0]);
    world.ok(&["stop", "web"]);
    world.ok(&["rollback", "web", "running"]);
    for name in ["web", "other"] {
        world.ok(&["start", name]);
        assert_eq!(world.exec_sh(name, &format!("cat /etc/mine; ls {DROPIN} 2>/dev/null | wc -l")), "mine\n0");
    }
    // A container without apt is told nothing, and one whose files are in the way keeps them.
    lab.on(&[]);
    world.start_container("bare", bare());
    world.exec_sh("other", &format!("rm {DROPIN} && mkdir -p {DROPIN}/mine"));
    assert_eq!(world.ok(&["stop", "other"]).status, 0);
    world.ok(&["start", "other"]);
    assert_eq!(world.exec_sh("other", &format!("ls {DROPIN}")), "mine");
    assert_eq!(lab.told().len(), 1, "{:?}", lab.told());
}

#[test]
fn the_cache_leads_to_archives_and_nowhere_else() {
    let lab = Lab::new();
    let world = &lab.world;
    let host = Namespace::of(world.host_pid());
    // A service of the host's, on its loopback interface, and one in its LAN.
    let secret = host.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = secret.local_addr().unwrap().port();
    secret.set_nonblocking(true).unwrap();
    let archive = lab.host.strip_suffix("/debian").unwrap();
    lab.on(&[]);
    world.start_container("web", lab.tree());
    let list = format!("http://{}/dists/bookworm/InRelease", lab.host);
    assert!(lab.ask("web", &list).contains("Codename: bookworm"));
    lab.archive.asked("");
    for target in [
        format!("http://127.0.0.1:{port}/x.deb"),
        format!("http://{NAME}:{port}/debian/x.deb"),
        format!("http://{archive}/other/x.deb"),
        format!("http://{archive}/debian/../other/x.deb"),
        format!("http://{archive}/debian/%2e%2e/other/x.deb"),
        format!("http://user@{archive}/debian/x.deb"),
        format!("https://{archive}/debian/x.deb"),
        "http://10.0.0.1/debian/x.deb".into(),
        "http://169.254.169.254/latest/meta-data".into(),
        "http://[::1]:80/debian/x.deb".into(),
        "/etc/passwd".into(),
        "file:///etc/passwd".into(),
    ] {
        let answer = lab.ask("web", &target);
        assert!(answer.starts_with("HTTP/1.1 403"), "{target}: {answer}");
    }
    for request in [format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n"), format!("PUT {list} HTTP/1.1\r\n\r\n")] {
        assert!(lab.say("web", &request).starts_with("HTTP/1.1 403"), "{request}");
    }
    assert_eq!(lab.archive.asked(""), 0);
    assert!(secret.accept().is_err(), "somebody has come");

    // From outside of containers it is no proxy at all.
    host.inside(|| assert!(TcpStream::connect("127.0.0.1:942").is_err()));
    // Who may not go into the Internet, or not everywhere, does not go there by this.
    for (name, setting) in [("alone", "network.mode=none"), ("closed", "network.internet=false")] {
        world.ok(&["create", name, "--image", text(&lab.tree()), "--set", setting]);
        world.ok(&["start", name]);
        assert_eq!(lab.ask(name, &list), "", "{name}");
        assert_eq!(world.exec_sh(name, &format!("ls {DROPIN} 2>/dev/null | wc -l")), "0");
    }
    // The same while it runs, and back again.
    for (setting, back) in [("internet=false", "internet=true"), ("deny=[\"192.0.2.0/24\"]", "deny=[]")] {
        world.ok(&["config", "web", "set", &format!("network.{setting}")]);
        assert_eq!(lab.ask("web", &list), "", "{setting}");
        assert_eq!(world.exec_sh("web", &format!("ls {DROPIN} 2>/dev/null | wc -l")), "0");
        world.ok(&["config", "web", "set", &format!("network.{back}")]);
        assert!(lab.ask("web", &list).contains("Codename: bookworm"), "{back}");
        assert_eq!(world.exec_sh("web", &format!("ls {DROPIN} | wc -l")), "1");
    }
}

#[test]
fn a_cache_that_is_killed_is_there_again_after_the_next_command() {
    let lab = Lab::new();
    let world = &lab.world;
    lab.on(&[]);
    world.start_container("web", lab.tree());
    let (list, deb) = (
        format!("http://{}/dists/bookworm/InRelease", lab.host),
        format!("http://{}/pool/lib_1.0_amd64.deb", lab.host),
    );
    for _ in 0..3 {
        // In the middle of a package.
        lab.archive.hold("lib_1.0");
        let mut ask = world.spawn(&["exec", "web", "--", "nc", "127.0.0.1", "942"]);
        ask.feed(format!("GET {deb} HTTP/1.1\r\n\r\n").as_bytes());
        lab.archive.wait_until_held();
        kill(lab.service().expect("it serves"));
        ask.wait();
        lab.archive.release();
        world.ok(&["list"]);
        assert!(lab.ask("web", &list).contains("Codename: bookworm"));
    }
    assert_eq!(lab.stats()["misses"], 3, "the list each time, and the package never came");
    assert!(lab.ask("web", &deb).contains("X-Cache: MISS"));
    // It ends with the last word, and starts of containers begin it.
    kill(lab.service().unwrap());
    world.start_container("next", lab.tree());
    assert!(lab.ask("next", &list).contains("Codename: bookworm"));
    assert!(lab.ask("web", &list).contains("Codename: bookworm"));
}

#[test]
fn it_keeps_no_more_than_it_may_whatever_is_asked_for() {
    let lab = Lab::new();
    let world = &lab.world;
    world.refused(&["cache", "on", "--limit", "1M"], &["keeps nothing", "16M"]);
    world.refused(&["cache", "on", "--host", "a b"], &["is no archive"]);
    lab.on(&["--limit", "16M"]);
    world.start_container("web", lab.tree());
    for number in 0..12u64 {
        lab.archive.put(&format!("pool/p{number}_1_all.deb"), noise(2 << 20, number));
    }
    lab.archive.put("pool/large_1_all.deb", noise(5 << 20, 99));
    let fetch = |name: &str| {
        world.exec_sh(
            "web",
            &format!("http_proxy=http://127.0.0.1:942 wget -qO- http://{}/pool/{name}_1_all.deb | wc -c", lab.host),
        )
    };
    for number in 0..12 {
        assert_eq!(fetch(&format!("p{number}")), (2 << 20).to_string());
        assert!(lab.stats()["bytes"].as_u64().unwrap() <= 18 << 20);
    }
    // Too large to be kept beside others: handed on.
    assert_eq!(fetch("large"), (5 << 20).to_string());
    lab.archive.asked("");
    fetch("p11");
    assert_eq!(lab.archive.asked(""), 1, "it is asked for again so soon: it may have been spoilt");
    world.ok(&["stop", "web"]);
    world.ok(&["start", "web"]);
    fetch("p11");
    assert_eq!(lab.archive.asked(""), 0);
    fetch("p0");
    assert_eq!(lab.archive.asked(""), 1, "what was not used for longest has made room");
}

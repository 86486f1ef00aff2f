//! Programs of a container in a person's menu: what is there is ours, and goes with the container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use crate::desktop::{Screen, until};
use crate::harness::*;

/// A person with a home, and a container with a menu of its own.
struct Menu {
    screen: Screen,
    world: World,
    data: PathBuf,
}

/// The smallest picture: one pixel.
const PNG: &[u8] =
    b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00\x1f\x15\
    \xc4\x89\x00\x00\x00\x0bIDATx\x9cc\xf8\x0f\x04\x00\x09\xfb\x03\xfd\xfb^k+\x00\x00\x00\x00IEND\xaeB`\x82";

impl Menu {
    fn new(name: &str) -> Menu {
        let world = World::new();
        let screen = Screen::start(&world);
        let data = screen.dir.join("data");
        fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(screen.person), Some(screen.person)).unwrap();
        screen.ok(&world, &["create", name, "--desktop"]);
        world.ok(&["start", name]);
        let menu = Menu { screen, world, data };
        menu.world.exec_sh(
            name,
            "mkdir -p /home/ann/.local/share/applications/kde /home/ann/.local/share/icons/hicolor/48x48/apps",
        );
        let clock = "[Desktop Entry]\nType=Application\nName=Clock\nExec=xclock -title %u\nIcon=clock\n                     StartupWMClass=XClock\nX-Evil=1\nDBusActivatable=true\n";
        menu.push(name, clock.as_bytes(), "applications/clock.desktop");
        menu.push(
            name,
            clock.replace("Icon=clock", "Icon=/etc/passwd").replace("xclock", "evil").as_bytes(),
            "applications/kde/two.desktop",
        );
        menu.push(name, &[PNG, b"trailing"].concat(), "icons/hicolor/48x48/apps/clock.png");
        menu
    }

    fn push(&self, name: &str, bytes: &[u8], to: &str) {
        let out = self.world.feed(bytes, &["file", "push", name, "-", &format!("/home/ann/.local/share/{to}")]);
        assert_eq!(out.status, 0, "{out}");
    }

    /// Typed in the session.
    fn typed(&self, arguments: &[&str]) -> Out {
        let mut command = self.screen.typed(&self.world, arguments);
        command.env("XDG_DATA_HOME", &self.data);
        self.world.run(command, b"")
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let out = self.typed(arguments);
        assert_eq!(out.status, 0, "{out}");
        out.stdout
    }

    fn entry(&self, name: &str, id: &str) -> PathBuf {
        self.data.join(format!("applications/lazaret/{name}/{id}.desktop"))
    }
}

#[test]
fn a_program_is_chosen_from_the_menu() {
    let menu = Menu::new("menu1");
    let listed = menu.ok(&["apps", "menu1"]);
    assert!(listed.contains("clock") && listed.contains("kde-two"), "{listed}");
    menu.ok(&["launcher", "menu1", "xclock", "--become", "env"]);
    let entry = menu.entry("menu1", "clock");
    let shown = fs::read_to_string(&entry).unwrap();
    let icon = menu.data.join("lazaret/icons/menu1/clock.png");
    let root = menu.world.root();
    for line in [
        "Name=[menu1] Clock".to_owned(),
        format!("Icon={}", text(&icon)),
        format!("Exec=env {LAZARET} --root {} app --detach --entry clock menu1", text(root)),
        "StartupWMClass=lazaret-menu1-XClock".to_owned(),
    ] {
        assert!(shown.lines().any(|known| known == line), "{line}: {shown}");
    }
    assert!(!shown.contains("X-Evil") && !shown.contains("DBusActivatable") && !shown.contains("xclock"), "{shown}");
    assert_eq!(fs::read(&icon).unwrap(), PNG);
    for path in [&entry, &icon] {
        let status = fs::metadata(path).unwrap();
        assert_eq!((status.uid(), status.permissions().mode() & 0o777), (menu.screen.person, 0o600));
    }
    let json = menu.typed(&["apps", "menu1", "--json"]).json();
    assert_eq!((&json[0]["id"], &json[0]["in_menu"]), (&"clock".into(), &true.into()), "{json}");

    // What the entry runs, without what makes root of a person.
    menu.ok(&["app", "--detach", "--entry", "clock", "menu1", "--", "later"]);
    until("the clock is on the screen", || menu.screen.windows().contains("[menu1] later"));
    // By its class, desktops know whose window it is.
    let windows = menu.screen.windows();
    assert!(windows.contains("(\"lazaret-menu1-xclock\" \"lazaret-menu1-XClock\")"), "{windows}");
}

#[test]
fn what_is_in_the_menu_follows_the_container() {
    let menu = Menu::new("menu2");
    menu.ok(&["launcher", "menu2", "--all"]);
    let text = fs::read_to_string(menu.entry("menu2", "kde-two")).unwrap();
    // A path that leads to no picture: no file of either side is copied.
    assert!(text.contains("\nIcon=application-x-executable\n"), "{text}");
    menu.world.ok(&["stop", "menu2"]);
    menu.world.ok(&["rename", "menu2", "menu3"]);
    assert!(!menu.entry("menu2", "clock").exists());
    let text = fs::read_to_string(menu.entry("menu3", "clock")).unwrap();
    assert!(text.contains("Name=[menu3] Clock") && text.contains("--entry clock menu3\n"), "{text}");
    menu.ok(&["launcher", "menu3", "clock", "--remove"]);
    assert!(!menu.entry("menu3", "clock").exists() && menu.entry("menu3", "kde-two").exists());
    assert_eq!(menu.typed(&["launcher", "menu3", "clock", "--remove"]).status, 1);
    menu.world.ok(&["destroy", "menu3"]);
    assert!(!menu.entry("menu3", "kde-two").parent().unwrap().exists());
    assert!(!menu.data.join("lazaret/icons/menu3").exists());
}

#[test]
fn nothing_inside_or_outside_leads_a_launcher_astray() {
    let menu = Menu::new("menu4");
    // Inside: links out of the root, a FIFO, a device, and names that are paths.
    menu.world.exec_sh(
        "menu4",
        "cd /home/ann/.local/share/applications; ln -s /proc/1/root/etc/passwd a.desktop; mkfifo b.desktop
         ln -s /dev/zero c.desktop; ln -s / deep; touch 'd e.desktop' -- -f.desktop; head -c 300000 /dev/zero > g.desktop
         ln -s /etc/hostname ../icons/hicolor/256x256; rm ../icons/hicolor/48x48/apps/clock.png
         mkfifo ../icons/hicolor/48x48/apps/clock.png",
    );
    let json = menu.typed(&["apps", "menu4", "--json"]).json();
    let ids: Vec<_> = json.as_array().unwrap().iter().map(|entry| word(&entry["id"])).collect();
    assert!(ids.iter().filter(|id| ["clock", "kde-two"].contains(&id.as_str())).count() == 2, "{json}");
    for id in ["a", "b", "c", "d e", "-f", "g"] {
        assert!(!ids.contains(&id.to_owned()), "{json}");
    }
    // Outside: the person's own link leads no further than the person may go.
    let secret = menu.world.path("secret");
    fs::create_dir(&secret).unwrap();
    fs::create_dir_all(menu.data.join("applications")).unwrap();
    std::os::unix::fs::symlink(&secret, menu.data.join("applications/lazaret")).unwrap();
    std::os::unix::fs::chown(menu.data.join("applications"), Some(menu.screen.person), None).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o755)).unwrap();
    let out = menu.typed(&["launcher", "menu4", "clock"]);
    assert!(out.status == 1 && out.stderr.contains("as `ann`"), "{out}");
    assert_eq!(entries(&secret), [""; 0]);
}

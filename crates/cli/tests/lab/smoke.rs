use crate::harness::*;
#[test]
fn smoke() {
    let world = World::new();
    world.start_container("c", bare());
    assert_eq!(world.exec("c", &["id", "-u"]), "0");
    let mut p = world.pty(&["exec", "c", "--", "sh", "-c", "tty; stty size"]);
    eprintln!("{}", p.wait());
    let mut p = world.spawn(&["exec", "c", "--", "cat"]);
    p.feed(b"hello\n");
    p.expect("hello\n");
    assert_eq!(p.wait().status, 0);
    eprintln!("{}", world.info("c"));
}

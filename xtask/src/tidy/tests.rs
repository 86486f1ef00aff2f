//! Each rule finds what it is for, and nothing else.

use super::*;

/// What a rule says about a source of these files.
fn check(broken: fn(&Tree) -> Vec<String>, files: &[(&str, &str)]) -> Vec<String> {
    let files = files.iter().map(|(path, text)| (path.to_string(), text.to_string()));
    broken(&Tree { files: files.collect(), links: Vec::new() })
}

fn check_line(broken: fn(&Tree) -> Vec<String>, path: &str, line: &str) -> bool {
    check(broken, &[(path, line)]).is_empty()
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = "let a = \"// no comment \\\" unsafe\"; // unsafe\nlet b = r#\"un\"safe\"#; /* unsafe\n/* */ unsafe */ x('\"');\n";
    let code = Code::of(text);
    let lines: Vec<_> = code.lines().iter().map(|line| line.code.trim_end()).collect();
    assert_eq!(lines.len(), 3);
    assert!(!lines.iter().any(|line| line.contains("unsafe")), "{lines:?}");
    assert!(lines[2].ends_with("x('\"');"), "{lines:?}");
    assert!(code.lines()[0].literal.contains("no comment"));
    assert_eq!(
        Code::of("fn f<'a>(x: &'a str) { '\\u{1f}' }").lines()[0].code.trim(),
        "fn f<'a>(x: &'a str) { '\\u{1f}' }"
    );
}

#[test]
fn unsafe_is_for_two_places() {
    assert!(check_line(unsafe_elsewhere, "crates/sys/src/lib.rs", "unsafe { f() }"));
    assert!(!check_line(unsafe_elsewhere, "crates/image/src/lib.rs", "unsafe { f() }"));
    assert!(check_line(unsafe_elsewhere, "crates/image/src/lib.rs", "#![deny(unsafe_code)] // unsafe"));
}

#[test]
fn libraries_are_silent_outside_their_tests() {
    let text =
        "fn f() { println!(); }\n#[cfg(test)]\nmod tests {\n    fn g() { println!(); }\n}\nfn h() { eprintln!(); }\n";
    let found = check(talking_libraries, &[("crates/image/src/lib.rs", text)]);
    assert_eq!(found, ["crates/image/src/lib.rs:1: println!", "crates/image/src/lib.rs:6: eprintln!"]);
    assert!(check_line(talking_libraries, "crates/cli/src/main.rs", "println!()"));
    assert!(check_line(talking_libraries, "crates/image/src/tests.rs", "println!()"));
    assert!(!check_line(talking_libraries, "crates/base/src/a.rs", "std::env::var(\"HOME\")"));
}

#[test]
fn deciding_modules_may_name_errors_but_not_files() {
    assert!(check_line(acting_where_deciding, "crates/runtime/src/seccomp/policy.rs", "use rustix::io::Errno;"));
    assert!(!check_line(acting_where_deciding, "crates/runtime/src/plan.rs", "std::fs::read(path)"));
    assert!(!check_line(acting_where_deciding, "crates/config/src/parse.rs", "use std::fs::File;"));
    assert!(check_line(acting_where_deciding, "crates/runtime/src/cgroup.rs", "std::fs::read(path)"));
}

#[test]
fn a_path_of_the_state_outside_the_store_is_found_in_strings_only() {
    let path = "crates/lazaret/src/doctor.rs";
    assert!(!check_line(state_paths, path, "f(\"/run/lazaret/x\")"));
    assert!(check_line(state_paths, path, "// as in /run/lazaret"));
    assert!(check_line(state_paths, "crates/lazaret/src/store.rs", "f(\"/run/lazaret/x\")"));
}

#[test]
fn a_sibling_may_not_be_imported() {
    let manifest =
        |name: &str, other: &str| format!("[package]\nname = \"{name}\"\n[dependencies]\n{other}.workspace = true\n");
    let of = |name: &str, other: &str| check(imports, &[("crates/x/Cargo.toml", &manifest(name, other))]);
    assert!(of("lazaret-runtime", "lazaret-sys").is_empty());
    assert_eq!(of("lazaret-runtime", "lazaret-image"), ["crates/x: imports `lazaret-image`"]);
    assert_eq!(of("lazaret-new", "lazaret-base").len(), 1, "a new crate has to say what it may import");
}

#[test]
fn only_the_text_of_strings_may_make_a_line_long() {
    let words = "w".repeat(130);
    assert!(check_line(long_lines, "a.rs", &format!("f(\"{words}\")")));
    assert!(!check_line(long_lines, "a.rs", &format!("f({words})")));
    assert!(!check_line(long_lines, "a.rs", &format!("// {words}")));
    assert!(!check_line(long_lines, "a.sh", &format!("echo '{words}'")));
    assert!(check_line(long_lines, "Cargo.lock", &words));
}

#[test]
fn banned_words_are_whole_words() {
    assert!(!check_line(unfinished, "a.md", concat!("FIX", "ME: later")));
    assert!(check_line(unfinished, "a.md", concat!("PRE", "FIX", "MEANT")));
    assert!(!check_line(somebodys_machine, "a.sh", concat!("cd /wo", "rk/x")));
    assert!(check_line(somebodys_machine, "a.sh", "cd /network/x; ls /root"));
}

#[test]
fn files_are_named_by_a_module_or_a_table() {
    let files = [
        ("crates/a/src/main.rs", "mod b;\nmod verb;"),
        ("crates/a/src/b.rs", "mod c;"),
        ("crates/a/src/b/c.rs", ""),
        ("crates/a/src/b/tests.rs", ""),
        ("crates/a/src/d.rs", "// mod d;"),
        ("crates/a/src/verb/mod.rs", "verbs! {\n    run \"run\",\n}"),
        ("crates/a/src/verb/run.rs", ""),
        ("crates/a/tests/one.rs", ""),
        ("crates/a/tests/many/main.rs", ""),
        ("crates/a/tests/many/lost.rs", ""),
    ];
    let dead = check(dead_files, &files);
    assert_eq!(dead, ["crates/a/src/b/tests.rs", "crates/a/src/d.rs", "crates/a/tests/many/lost.rs"]);
}

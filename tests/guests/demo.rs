//! The demo's command line. What it does is what the other tests do, and it is run by hand: it builds a release.

use std::process::Command;

fn demo(arguments: &[&str]) -> (Option<i32>, String) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-examples/demo.sh");
    let output = Command::new(script).args(arguments).output().expect("the demo can be started");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn the_demo_refuses_modes_that_it_does_not_have_in_one_clear_line() {
    for mode in ["tap", "bus", "", "../internal", "internal host-only"] {
        let (code, text) = demo(&["--mode", mode]);
        assert_eq!(code, Some(2), "{mode}");
        let (refused, others) = text.split_once("; it has ").unwrap();
        assert_eq!(refused, format!("demo: --mode {mode}: the demo has no such mode"));
        assert!(
            ["bridged", "host-only", "nat"].iter().all(|mode| others.contains(mode))
                && others.contains("internal")
                && text.lines().count() == 1,
            "{text}"
        );
    }
}

#[test]
fn the_demo_refuses_what_it_does_not_know() {
    for arguments in [&["--mode"][..], &["--mode", "bus"], &["--fast"]] {
        let (code, text) = demo(arguments);
        assert_eq!(code, Some(2), "{arguments:?}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

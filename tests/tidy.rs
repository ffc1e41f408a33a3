//! Taste, written down and executed. Each rule is a function from a text to what is wrong with it, is held against the
//! whole tree, and has a self-check that shows it can fail.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use guestwire::metrics::Counter;
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 600;
const MAIN_LINES_MAX: usize = 80;
const WIDTH_MAX: usize = 120;

/// The rooms of `src`, each with its floor: a room may name rooms on lower floors only.
const FLOORS: &[(&str, u8)] = &[
    ("cli", 6),
    ("control", 6),
    ("worker", 5),
    ("mode", 4),
    ("vhost", 3),
    ("uplink", 3),
    ("nat", 3),
    ("service", 2),
    ("switch", 1),
    ("frame", 0),
];
/// Rooms that all may name, and that name only each other.
const LEAVES: &[&str] = &["config", "ring", "sys", "metrics"];
/// Rooms that compute and do nothing else.
const PURE: &[&str] = &["service", "switch", "frame"];
/// What a pure room does not name: rooms and crates that touch the world.
const IMPURE_CRATES: &[&str] = &["ring", "vhost", "sys", "libc", "nix", "rustix", "epoll", "vm_memory"];
/// What a pure room does not name: clocks and sockets.
const IMPURE_NAMES: &[&str] =
    &["Instant", "SystemTime", "TcpStream", "TcpListener", "UdpSocket", "UnixStream", "UnixListener", "UnixDatagram"];
/// Rooms that may have `unsafe`.
const UNSAFE_ROOMS: &[&str] = &["src/ring/", "src/sys/", "tests/wire/memory.rs", "fuzz/src/memory.rs"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below a folder of the tree with one of these endings, by their paths from the root.
fn files(folder: &str, endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "corpus" {
                    folders.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((relative, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    assert!(!found.is_empty() || folder != "src");
    found
}

fn rust_files() -> Vec<(String, String)> {
    files("", &[".rs"])
}

/// Holds a rule against files and fails with all that is wrong.
fn hold(files: Vec<(String, String)>, rule: impl Fn(&str, &str) -> Vec<String>) {
    let wrong: Vec<String> = files.iter().flat_map(|(path, text)| rule(path, text)).collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn tokens(path: &str, text: &str) -> TokenStream {
    text.parse().unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Calls back with each token and those that follow it, at all depths.
fn each_token(stream: TokenStream, see: &mut impl FnMut(&[TokenTree])) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    for i in 0..trees.len() {
        see(&trees[i..]);
        if let TokenTree::Group(group) = &trees[i] {
            each_token(group.stream(), see);
        }
    }
}

fn is_ident(tree: Option<&TokenTree>, name: &str) -> bool {
    matches!(tree, Some(TokenTree::Ident(ident)) if ident == name)
}

fn is_punct(tree: Option<&TokenTree>, c: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == c)
}

fn line_of(tree: &TokenTree) -> usize {
    tree.span().start().line
}

// Functions and files are short.

fn long_functions(path: &str, text: &str) -> Vec<String> {
    struct Finder<'a>(&'a str, Vec<String>);
    impl Finder<'_> {
        fn look(&mut self, name: &syn::Ident, begin: usize, end: usize) {
            if end + 1 - begin >= FUNCTION_LINES_MAX {
                self.1.push(format!("{}:{begin}: fn {name} has {} lines", self.0, end + 1 - begin));
            }
        }
    }
    impl<'a> Visit<'a> for Finder<'_> {
        fn visit_item_fn(&mut self, f: &'a syn::ItemFn) {
            self.look(&f.sig.ident, f.sig.span().start().line, f.block.span().end().line);
            syn::visit::visit_item_fn(self, f);
        }
        fn visit_impl_item_fn(&mut self, f: &'a syn::ImplItemFn) {
            self.look(&f.sig.ident, f.sig.span().start().line, f.block.span().end().line);
            syn::visit::visit_impl_item_fn(self, f);
        }
        fn visit_trait_item_fn(&mut self, f: &'a syn::TraitItemFn) {
            self.look(&f.sig.ident, f.sig.span().start().line, f.span().end().line);
            syn::visit::visit_trait_item_fn(self, f);
        }
    }
    let mut finder = Finder(path, Vec::new());
    finder.visit_file(&syn::parse_file(text).unwrap_or_else(|e| panic!("{path}: {e}")));
    finder.1
}

#[test]
fn functions_are_short() {
    let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(FUNCTION_LINES_MAX - 2));
    assert_eq!(long_functions("x.rs", &long).len(), 1);
    assert_eq!(long_functions("x.rs", &format!("impl X {{\n{long}}}\ntrait Y {{\n{long}}}")).len(), 2);
    assert!(long_functions("x.rs", &long.replacen("    g();\n", "", 1)).is_empty());
    hold(files("src", &[".rs"]), long_functions);
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

fn long_files(path: &str, text: &str) -> Vec<String> {
    let max = if path == "src/main.rs" { MAIN_LINES_MAX } else { FILE_LINES_MAX };
    let code = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if code < max || is_test_file(path) { Vec::new() } else { vec![format!("{path}: {code} lines without tests")] }
}

#[test]
fn files_are_short() {
    let long = "//\n".repeat(FILE_LINES_MAX);
    assert_eq!(long_files("src/x.rs", &long).len(), 1);
    assert_eq!(long_files("src/main.rs", &"//\n".repeat(MAIN_LINES_MAX)).len(), 1);
    assert!(long_files("src/x.rs", &format!("#[cfg(test)]\n{long}")).is_empty());
    hold(files("src", &[".rs"]), long_files);
}

// Imports go one way.

/// The rooms that a file of `src` names, with lines. `module` is the path of the module that the tokens are in.
fn rooms_named(stream: TokenStream, module: &[String], found: &mut Vec<(usize, String)>) {
    let trees: Vec<TokenTree> = stream.into_iter().collect();
    for (i, tree) in trees.iter().enumerate() {
        if let TokenTree::Group(group) = tree {
            let mut inner = module.to_vec();
            // `mod name { ... }`
            if let (Some(TokenTree::Ident(name)), true) = (
                i.checked_sub(1).and_then(|i| trees.get(i)),
                i >= 2 && is_ident(trees.get(i - 2), "mod") && group.delimiter() == Delimiter::Brace,
            ) {
                inner.push(name.to_string());
            }
            rooms_named(group.stream(), &inner, found);
        }
        let path_begins = !is_punct(i.checked_sub(1).and_then(|i| trees.get(i)), ':');
        if path_begins && (is_ident(Some(tree), "crate") || is_ident(Some(tree), "super")) {
            let mut depth = if is_ident(Some(tree), "crate") { 0 } else { module.len().saturating_sub(1) };
            let mut rest = &trees[i + 1..];
            while is_punct(rest.first(), ':') && is_ident(rest.get(2), "super") {
                depth = depth.saturating_sub(1);
                rest = &rest[3..];
            }
            if depth == 0 && is_punct(rest.first(), ':') && is_punct(rest.get(1), ':') {
                first_names(rest.get(2), found);
            }
        }
    }
}

/// The first name of a path, or of each path in braces.
fn first_names(tree: Option<&TokenTree>, found: &mut Vec<(usize, String)>) {
    match tree {
        Some(TokenTree::Ident(name)) => found.push((name.span().start().line, name.to_string())),
        Some(TokenTree::Group(group)) => {
            let trees: Vec<TokenTree> = group.stream().into_iter().collect();
            for (i, tree) in trees.iter().enumerate() {
                if i == 0 || is_punct(trees.get(i - 1), ',') {
                    first_names(Some(tree), found);
                }
            }
        }
        _ => {}
    }
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

fn upward_imports(path: &str, text: &str) -> Vec<String> {
    let module = module_of(path);
    let room = module[0].as_str();
    if matches!(room, "main" | "lib") {
        return Vec::new();
    }
    let floor = |name: &str| FLOORS.iter().find(|(room, _)| *room == name).map(|(_, floor)| *floor);
    if floor(room).is_none() && !LEAVES.contains(&room) {
        return vec![format!("{path}: the room {room} has no floor")];
    }
    let mut named = Vec::new();
    rooms_named(tokens(path, text), &module, &mut named);
    let allowed = |name: &str| {
        name == room
            || LEAVES.contains(&name)
            || match (floor(room), floor(name)) {
                (Some(own), Some(other)) => other < own,
                // A leaf names no room that is not one.
                (None, Some(_)) => false,
                // Not a room: an item or a macro of the crate's root.
                (_, None) => true,
            }
    };
    let wrong = named.iter().filter(|(_, name)| !allowed(name));
    wrong.map(|(line, name)| format!("{path}:{line}: {room} may not name {name}")).collect()
}

#[test]
fn imports_go_one_way() {
    for (path, text, count) in [
        ("src/switch/fdb.rs", "use crate::worker::Worker;", 1),
        ("src/switch/fdb.rs", "use crate::{frame::Frame, metrics::Counter, vhost::{a, b}};", 1),
        ("src/vhost/gate.rs", "fn f() { let x = crate::worker::spawn(); }", 1),
        ("src/vhost/gate.rs", "fn f() { tracing::info!(x = crate::control::y); }", 1),
        ("src/vhost/gate.rs", "use super::super::worker::Worker;", 1),
        ("src/vhost/mod.rs", "use super::worker::Worker;", 1),
        ("src/vhost/gate.rs", "mod tests { use super::super::super::worker::Worker; use super::super::worker; }", 1),
        ("src/vhost/gate.rs", "use super::worker; use crate::ring::x; use crate::switch::y; use std::io;", 0),
        ("src/ring/tx.rs", "use crate::frame::Frame;", 1),
        ("src/ring/tx.rs", "use crate::metrics::Counter;", 0),
        ("src/cli/mod.rs", "use crate::control::run;", 1),
        ("src/attic/mod.rs", "", 1),
    ] {
        assert_eq!(upward_imports(path, text).len(), count, "{path}: {text}");
    }
    hold(files("src", &[".rs"]), upward_imports);
}

fn impurities(path: &str, text: &str) -> Vec<String> {
    let module = module_of(path);
    if !PURE.contains(&module[0].as_str()) {
        return Vec::new();
    }
    let mut named = Vec::new();
    rooms_named(tokens(path, text), &module, &mut named);
    named.retain(|(_, name)| IMPURE_CRATES.contains(&name.as_str()));
    each_token(tokens(path, text), &mut |trees| {
        if let TokenTree::Ident(ident) = &trees[0] {
            let name = ident.to_string();
            let is_crate = IMPURE_CRATES.contains(&name.as_str()) && is_punct(trees.get(1), ':');
            if IMPURE_NAMES.contains(&name.as_str()) || is_crate {
                named.push((line_of(&trees[0]), name));
            }
        }
    });
    named.dedup();
    named.iter().map(|(line, name)| format!("{path}:{line}: {} is pure and names {name}", module[0])).collect()
}

#[test]
fn pure_rooms_are_pure() {
    for bad in [
        "use std::time::Instant;",
        "fn f() { std::time::SystemTime::now(); }",
        "use crate::ring::Burst;",
        "use std::net::UdpSocket;",
        "use std::os::unix::net::{UnixStream};",
        "fn f() { libc::close(3); }",
    ] {
        assert!(!impurities("src/switch/fdb.rs", bad).is_empty(), "{bad}");
        assert!(impurities("src/worker/mod.rs", bad).is_empty(), "{bad}");
    }
    assert!(impurities("src/frame/ip.rs", "use std::net::Ipv4Addr; use std::time::Duration;").is_empty());
    hold(files("src", &[".rs"]), impurities);
}

// `unsafe` has its rooms and its reasons.

fn unsafe_problems(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut wrong = Vec::new();
    each_token(tokens(path, text), &mut |trees| {
        if !is_ident(trees.first(), "unsafe") {
            return;
        }
        let line = line_of(&trees[0]);
        if !UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
            wrong.push(format!("{path}:{line}: unsafe has no business here"));
        }
        let is_type = trees.iter().take(4).any(|t| is_ident(Some(t), "fn")) && !names_a_function(trees);
        if !is_type && !reason_above(&lines, line) {
            wrong.push(format!("{path}:{line}: unsafe without a SAFETY comment or a '# Safety' section"));
        }
    });
    wrong
}

/// Whether `unsafe ... fn` is followed by a name; otherwise it is the type of a pointer.
fn names_a_function(trees: &[TokenTree]) -> bool {
    let after = trees.iter().position(|t| is_ident(Some(t), "fn")).map(|i| i + 1);
    after.is_some_and(|i| matches!(trees.get(i), Some(TokenTree::Ident(_))))
}

/// Whether the statement or item on `line` (from 1) has a reason: on the line or in the comment above the statement.
fn reason_above(lines: &[&str], line: usize) -> bool {
    let is_reason = |text: &str| text.contains("// SAFETY:") || text.contains("/// # Safety");
    for (above, text) in lines[..line].iter().rev().enumerate() {
        let trimmed = text.trim();
        if is_reason(trimmed) {
            return true;
        }
        let is_comment = trimmed.starts_with("//") || trimmed.starts_with("#[");
        // Above the statement begins another one, whose reason is not ours.
        if above > 0 && !is_comment && (trimmed.is_empty() || trimmed.ends_with([';', '}', '{'])) {
            return false;
        }
    }
    false
}

#[test]
fn unsafe_has_rooms_and_reasons() {
    let good = "fn f() {\n    // SAFETY: it is so,\n    // really.\n    let x =\n        unsafe { g() };\n}\n\
                /// # Safety\n/// Be careful.\n#[inline]\npub unsafe fn g() {}\ntype T = unsafe extern \"C\" fn(u8);\n\
                // SAFETY: all bits are valid.\nunsafe impl Send for X {}\n";
    assert_eq!(unsafe_problems("src/ring/x.rs", good), Vec::<String>::new());
    assert_eq!(unsafe_problems("src/worker/x.rs", good).len(), 4);
    for bad in [
        "fn f() {\n    unsafe { g() };\n}",
        "fn f() {\n    // SAFETY: mine.\n    g();\n    unsafe { g() };\n}",
        "/// Be careful.\npub unsafe fn g() {}",
        "unsafe impl Send for X {}",
        "macro_rules! m { () => { unsafe { g() } } }",
    ] {
        assert_eq!(unsafe_problems("src/sys/x.rs", bad).len(), 1, "{bad}");
    }
    hold(rust_files(), unsafe_problems);
}

// Nothing is left half done.

fn leftovers(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    each_token(tokens(path, text), &mut |trees| {
        let macros = ["todo", "unimplemented", "dbg"];
        if let Some(name) = macros.iter().find(|name| is_ident(trees.first(), name) && is_punct(trees.get(1), '!')) {
            wrong.push(format!("{path}:{}: {name}!", line_of(&trees[0])));
        }
        let attribute = |group: &Group| group.stream().into_iter().next();
        if let (true, Some(TokenTree::Group(group))) = (is_punct(trees.first(), '#'), trees.get(1))
            && is_ident(attribute(group).as_ref(), "ignore")
        {
            wrong.push(format!("{path}:{}: an ignored test", line_of(&trees[0])));
        }
    });
    wrong
}

#[test]
fn nothing_is_left_half_done() {
    for bad in
        ["fn f() { todo!() }", "fn f() { unimplemented!(\"x\") }", "fn f() { dbg!(x); }", "#[ignore = \"x\"] fn f() {}"]
    {
        assert_eq!(leftovers("src/x.rs", bad).len(), 1, "{bad}");
    }
    assert!(leftovers("src/x.rs", "fn ignore() { let dbg = todo; }").is_empty());
    hold(rust_files(), leftovers);
}

/// Files of `src` that no `mod` names: they look like code and are not compiled.
fn is_named_by_parent(path: &str, exists: &impl Fn(&str) -> Option<String>) -> bool {
    let mut module = module_of(path);
    let Some(name) = module.pop() else { return false };
    let parents = match module.join("/") {
        above if above.is_empty() => vec!["src/lib.rs".to_owned()],
        above => vec![format!("src/{above}/mod.rs"), format!("src/{above}.rs")],
    };
    let mut named = false;
    for (parent, text) in parents.iter().filter_map(|parent| Some((parent, exists(parent)?))) {
        each_token(tokens(parent, &text), &mut |t| named |= is_ident(t.first(), "mod") && is_ident(t.get(1), &name));
    }
    named
}

#[test]
fn every_file_is_compiled() {
    let tree = |path: &str| (path == "src/a/mod.rs").then(|| "pub mod b;".to_owned());
    assert!(is_named_by_parent("src/a/b.rs", &tree) && is_named_by_parent("src/a/b/mod.rs", &tree));
    assert!(!is_named_by_parent("src/a/c.rs", &tree));
    let read = |path: &str| fs::read_to_string(root().join(path)).ok();
    hold(files("src", &[".rs"]), |path, _| {
        let top = matches!(path, "src/main.rs" | "src/lib.rs");
        if top || is_named_by_parent(path, &read) { Vec::new() } else { vec![format!("{path}: no mod names it")] }
    });
}

// Texts.

fn wide_lines(path: &str, text: &str) -> Vec<String> {
    // A table's row cannot be broken, and neither can an address.
    let may_be_wide = |line: &str| path.ends_with(".md") && (line.starts_with('|') || line.contains("://"));
    let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > WIDTH_MAX && !may_be_wide(line));
    wide.map(|(i, line)| format!("{path}:{}: {} characters wide", i + 1, line.chars().count())).collect()
}

#[test]
fn lines_fit_the_screen() {
    let wide = "x".repeat(WIDTH_MAX + 1);
    assert_eq!(wide_lines("x.rs", &wide).len(), 1);
    assert_eq!(wide_lines("x.md", &format!("| {wide} |\nhttps://{wide}\n{wide}")).len(), 1);
    assert!(wide_lines("x.rs", &"ä".repeat(WIDTH_MAX)).is_empty());
    hold(files("", &[".rs", ".md"]), wide_lines);
}

/// Folders of one person's machine.
const PRIVATE_FOLDERS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/fa", "rm/")];

fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let names_one = |line: &str| PRIVATE_FOLDERS.iter().any(|folder| line.contains(folder));
    let wrong = text.lines().enumerate().filter(|(_, line)| names_one(line));
    wrong.map(|(i, line)| format!("{path}:{}: names a folder of one machine: {}", i + 1, line.trim())).collect()
}

#[test]
fn no_paths_of_one_machine() {
    for folder in PRIVATE_FOLDERS {
        assert_eq!(machine_paths("x.md", &format!("see {folder}x")).len(), 1, "{folder}");
    }
    hold(files("", &[".rs", ".md", ".sh", ".toml", ".xml", ".json", ".yml", ".yaml"]), machine_paths);
}

/// Links and paths of a document that lead nowhere. A path is a word in backticks that begins with a folder of the
/// tree.
fn dead_references(path: &str, text: &str, exists: &impl Fn(&Path) -> bool) -> Vec<String> {
    let here = Path::new(path).parent().map(Path::to_owned).unwrap_or_default();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#') && !link.starts_with("mailto:"));
    let links = links.map(|link| here.join(link.split('#').next().unwrap_or(link)));
    let top = ["src/", "tests/", "benches/", "docs/", "qemu-examples/", "fuzz/", "packaging/"];
    let words = text.split('`').skip(1).step_by(2);
    let words =
        words.filter(|word| top.iter().any(|t| word.starts_with(t)) && !word.contains(['*', ' ', '<', '{', '$']));
    let words = words.map(|word| PathBuf::from(word.split([':', '#']).next().unwrap_or(word)));
    let dead = links.chain(words).filter(|target| !exists(target));
    dead.map(|target| format!("{path}: {} does not exist", target.display())).collect()
}

#[test]
fn documents_lead_somewhere() {
    let exists = |target: &Path| ["src/lib.rs", "docs/a.md"].iter().any(|known| target == Path::new(known));
    let wrong = |text: &str| dead_references("docs/x.md", text, &exists);
    assert!(wrong("[a](a.md#top) [b](https://example.org) [c](#d) `src/lib.rs` `cargo test`").is_empty());
    assert_eq!(wrong("[b](b.md)").len(), 1);
    assert_eq!(wrong("`src/gone.rs`").len(), 1);
    hold(files("", &[".md"]), |path, text| dead_references(path, text, &|target| root().join(target).exists()));
}

// Counters.

fn counter_problems(names: &[&str]) -> Vec<String> {
    let snake = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let mut seen = BTreeSet::new();
    let wrong = names.iter().filter(|name| !seen.insert(**name) || !snake(name) || ["port", "ended"].contains(name));
    wrong.map(|name| format!("the counter {name} is named twice, badly, or like something else")).collect()
}

#[test]
fn every_counter_is_named_once() {
    assert_eq!(counter_problems(&["a", "b", "a", "B", "port"]).len(), 3);
    let names: Vec<&str> = Counter::ALL.iter().map(|counter| counter.name()).collect();
    assert_eq!(counter_problems(&names), Vec::<String>::new());
}

/// Counters that nothing counts.
fn uncounted<'a>(counters: &[&'a str], texts: &[String]) -> Vec<&'a str> {
    let mut counted = BTreeSet::new();
    for text in texts {
        each_token(tokens("src", text), &mut |trees| {
            if let TokenTree::Ident(ident) = &trees[0] {
                counted.insert(ident.to_string());
            }
        });
    }
    counters.iter().copied().filter(|counter| !counted.contains(*counter)).collect()
}

#[test]
fn every_counter_is_counted_somewhere() {
    assert_eq!(uncounted(&["A", "B"], &["fn f() { count(A) }".to_owned()]), ["B"]);
    let elsewhere =
        files("src", &[".rs"]).into_iter().filter(|(path, _)| !path.starts_with("src/metrics/") && !is_test_file(path));
    let texts: Vec<String> = elsewhere.map(|(_, text)| text).collect();
    let names: Vec<String> = Counter::ALL.iter().map(|counter| format!("{counter:?}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(uncounted(&names, &texts), Vec::<&str>::new());
}

//! What a run leaves behind: a folder with every reading, every command and the machine.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::guests::Figure;
use crate::machine::Watch;
use crate::process::run;
use crate::ratios::pairs_done;

/// The first line of `readings.csv`.
const COLUMNS: &str = "load,case,peer,pair,side,metric,unit,value";

/// One side of a pair.
#[derive(Clone, Copy)]
pub(crate) struct At<'a> {
    pub(crate) load: &'a str,
    pub(crate) case: &'a str,
    /// Whom guestwire is compared with in this pair.
    pub(crate) peer: &'a str,
    /// Counted from 0 for each case and peer. Its two sides are measured one after the other.
    pub(crate) pair: usize,
    /// The peer, or whom it is compared with: guestwire.
    pub(crate) side: &'a str,
}

/// Writes readings down as they come: whatever ends a run, those before are there, and none is ever taken out.
pub(crate) struct Recorder {
    readings: File,
    commands: File,
    /// Commands that have been written.
    known: HashSet<String>,
    /// How many pairs of a load, a case and a peer an earlier run has written to the same folder: ours follow them.
    before: HashMap<[String; 3], usize>,
}

impl Recorder {
    /// Writes to `folder`, which is made if it is not there; a run that is there already is continued.
    pub(crate) fn new(folder: &Path) -> Self {
        create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let open = |name: &str| {
            let path = folder.join(name);
            let file = OpenOptions::new().append(true).create(true).open(&path);
            file.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let before =
            std::fs::read_to_string(folder.join("readings.csv")).map(|csv| pairs_done(&csv)).unwrap_or_default();
        let mut readings = open("readings.csv");
        if readings.metadata().unwrap().len() == 0 {
            writeln!(readings, "{COLUMNS}").unwrap();
        }
        let commands = open("commands.txt");
        let known = std::fs::read_to_string(folder.join("commands.txt")).unwrap().lines().map(str::to_owned).collect();
        Self { readings, commands, known, before }
    }

    /// Measures one side of a pair. Writes down what comes out and how the machine was before and after, and shows it.
    pub(crate) fn measure(&mut self, at: At<'_>, work: impl FnOnce(&mut Self) -> Vec<Figure>) {
        let At { load, case, peer, pair, side } = at;
        let watch = Watch::begin();
        let figures = work(self);
        let pair = pair + self.before.get(&[load, case, peer].map(str::to_owned)).copied().unwrap_or(0);
        for (metric, unit, value) in figures.into_iter().chain(watch.end()) {
            writeln!(self.readings, "{load},{case},{peer},{pair},{side},{metric},{unit},{value}").unwrap();
            eprintln!("{load:8} {case:14} {peer:8} {pair:2} {side:10} {metric:16} {value:12.3} {unit}");
        }
    }

    /// Writes down how something was started, once.
    pub(crate) fn command(&mut self, what: &str, line: &str) {
        let line = format!("{what}: {}", without_folders(line));
        if self.known.insert(line.clone()) {
            writeln!(self.commands, "{line}").unwrap();
        }
    }
}

/// A command with `DIR` for each temporary folder, which has another name each time, `CACHE` for the lab's, and paths
/// in the repository from its root.
fn without_folders(line: &str) -> String {
    let cache = std::env::var("HOME").unwrap_or_default() + "/.cache/guestwire";
    let line = line.replace(concat!(env!("CARGO_MANIFEST_DIR"), "/"), "").replace(&cache, "CACHE");
    let prefix = std::env::temp_dir().join("guestwire-");
    let mut parts = line.split(prefix.to_str().unwrap());
    let first = parts.next().unwrap_or_default().to_owned();
    let line = parts.fold(first, |line, rest| line + "DIR" + rest.find(['/', ' ', ',']).map_or("", |end| &rest[end..]));
    // Namespaces are entered by the number of a process that is in them.
    let words = line.split(' ').scan(false, |is_number, word| {
        let shown = if std::mem::replace(is_number, word == "--target") { "PID" } else { word };
        Some(shown)
    });
    words.collect::<Vec<_>>().join(" ")
}

/// The folder of a run that begins now: the day and the commit, with a mark if the tree is not as committed.
pub(crate) fn folder_of_today() -> PathBuf {
    let date = run(&["date", "-u", "+%Y-%m-%d"], &[]);
    let commit = run(&["git", "rev-parse", "--short", "HEAD"], &[]);
    let changed = !run(&["git", "status", "--porcelain", "--untracked-files=no"], &[]).trim().is_empty();
    let mark = if changed { "-changed" } else { "" };
    Path::new("benches/runs").join(format!("{}-{}{mark}", date.trim(), commit.trim()))
}

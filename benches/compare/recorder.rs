//! What a run leaves behind: a folder with every reading, every command and the machine.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, create_dir_all};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::process::run;

/// The first line of `readings.csv`.
const COLUMNS: &str = "load,case,peer,pair,side,metric,unit,value";

/// One figure.
pub(crate) struct Reading<'a> {
    pub(crate) load: &'a str,
    pub(crate) case: &'a str,
    /// Whom guestwire is compared with in this pair.
    pub(crate) peer: &'a str,
    /// Counted from 0 for each case and peer. Its two sides are measured one after the other.
    pub(crate) pair: usize,
    /// The peer, or whom it is compared with: guestwire.
    pub(crate) side: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) value: f64,
}

/// Writes readings down as they come: whatever ends a run, those before are there, and none is ever taken out.
pub(crate) struct Recorder {
    readings: File,
    commands: File,
    /// Commands that have been written.
    known: HashSet<String>,
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
        let mut readings = open("readings.csv");
        if readings.metadata().unwrap().len() == 0 {
            writeln!(readings, "{COLUMNS}").unwrap();
        }
        let commands = open("commands.txt");
        let known = std::fs::read_to_string(folder.join("commands.txt")).unwrap().lines().map(str::to_owned).collect();
        Self { readings, commands, known }
    }

    /// Writes a reading down, and shows it.
    pub(crate) fn record(&mut self, reading: &Reading<'_>) {
        let Reading { load, case, peer, pair, side, metric, unit, value } = *reading;
        writeln!(self.readings, "{load},{case},{peer},{pair},{side},{metric},{unit},{value}").unwrap();
        eprintln!("{load:8} {case:14} {peer:8} {pair:2} {side:10} {metric:16} {value:12.3} {unit}");
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

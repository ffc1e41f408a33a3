//! The command line: flags, each defined once, and what they amount to.
//!
//! [`parse`] turns arguments into a [`Config`]; the flags themselves end here and no other module knows them.

mod flags;
pub mod log;
mod show;
mod verbs;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;

use crate::config::file::{self, FileError};
use crate::config::{Config, Verbosity};
pub use show::check;
pub use verbs::Form;
use verbs::{Cli, Verb};

/// What the process should do.
#[derive(Debug)]
pub enum Command {
    /// Run a network.
    Run(Box<Config>),
    /// Run the networks of a file: see [`read`].
    RunFile {
        /// The file.
        file: PathBuf,
        /// How much to log, if the command line says so.
        verbosity: Option<Verbosity>,
    },
    /// Say what a file would run.
    Check {
        /// The file.
        file: PathBuf,
        /// How.
        form: Form,
    },
    /// Print a help text or the version, and end.
    Help(clap::Error),
    /// Print what QEMU's conventions for back-ends ask for, and end.
    PrintCapabilities,
}

/// What `--print-capabilities` prints (QEMU, `VHostUserBackendCapabilities`). A network back-end has no features to
/// name.
pub const CAPABILITIES: &str = r#"{"type": "net"}"#;

/// The exit code for a command line that makes no sense.
pub const EXIT_USAGE: u8 = 2;

/// All verbs.
const VERBS: &[&str] = &["internal", "host-only", "bridged", "nat", "run", "check"];

/// What is wrong with a command line: one line for each problem.
#[derive(Debug, PartialEq, Eq)]
pub struct UsageError(Vec<String>);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

/// Makes sense of the arguments. The first is the program's name.
///
/// # Errors
/// [`UsageError`] when they make none.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    // What many try first: `help`, and `help internal`.
    if arguments.get(1).is_some_and(|word| word == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    // QEMU's conventions: every other option is ignored, so nothing else is even looked at.
    if arguments.iter().skip(1).any(|argument| argument == "--print-capabilities") {
        return Ok(Command::PrintCapabilities);
    }
    // For the hint: whose help tells more.
    let verb = arguments.iter().filter_map(|argument| argument.to_str()).find(|word| VERBS.contains(word));
    let command = verb.map_or("guestwire".to_owned(), |verb| format!("guestwire {verb}"));
    let wrong = |text: &dyn fmt::Display| format!("error: {text}; see '{command} --help'");
    let Cli { verb, log, .. } = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Command::Help(error));
        }
        Err(error) => return Err(UsageError(vec![one_line(&error, &command)])),
    };
    let config = match verb {
        Verb::Internal(flags) => flags.into_config(&log),
        Verb::HostOnly(flags) => flags.into_config(&log),
        Verb::Bridged(flags) => flags.into_config(&log),
        Verb::Nat(flags) => flags.into_config(&log),
        Verb::Run(flags) => return Ok(Command::RunFile { file: flags.config, verbosity: log.asked() }),
        Verb::Check(flags) => return Ok(Command::Check { file: flags.file, form: flags.output }),
    };
    let config = config.map_err(|text| UsageError(vec![wrong(&text)]))?;
    let problems = config.problems();
    if problems.is_empty() {
        return Ok(Command::Run(Box::new(config)));
    }
    Err(UsageError(problems.iter().map(|(_, problem)| wrong(problem)).collect()))
}

/// Reads the file of `guestwire run`. `verbosity` overrules what it says of the log.
///
/// # Errors
/// [`FileError`] with everything that is wrong.
pub fn read(file: &Path, verbosity: Option<Verbosity>) -> Result<Config, FileError> {
    let mut config = file::read(file)?;
    config.verbosity = verbosity.unwrap_or(config.verbosity);
    Ok(config)
}

/// clap's message in one line: what is wrong, what would be right, and which command's help tells more.
fn one_line(error: &clap::Error, command: &str) -> String {
    if let ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand = error.kind() {
        let example = "guestwire internal --socket-path /tmp/lab.sock";
        return format!("error: no network asked for: try '{example}', or see 'guestwire --help'");
    }
    let text = error.render().to_string();
    let said =
        text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let mut line = said.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    line = line.replace(" tip: ", "; ");
    format!("{line}; see '{command} --help'")
}

#[cfg(test)]
mod tests;

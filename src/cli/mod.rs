//! The command line: flags, each defined once, and what they amount to.
//!
//! [`parse`] turns arguments into a [`Config`]; the flags themselves end here and no other module knows them.

mod flags;
pub mod log;

use std::ffi::OsString;
use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::config::{Config, Problem};
use flags::{Cli, Verb};

/// What the process should do.
#[derive(Debug)]
pub enum Command {
    /// Run networks.
    Run(Box<Config>),
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

/// Verbs that are planned and not there yet.
const VERBS_TO_COME: &[&str] = &["bridged", "nat", "host-only", "run", "check"];

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
    let command = if arguments.iter().any(|a| a == "internal") { "guestwire internal" } else { "guestwire" };
    match Cli::try_parse_from(arguments) {
        Ok(Cli { verb: Verb::Internal(flags), log, .. }) => {
            if let Some(flag) = flags.misplaced() {
                let error = format!("error: {flag} says how to listen, and nothing listens: add --socket-path PATH");
                return Err(UsageError(vec![format!("{error}; see 'guestwire internal --help'")]));
            }
            let config = flags.into_config(log);
            let problems = config.problems();
            if problems.is_empty() {
                return Ok(Command::Run(Box::new(config)));
            }
            let line = |(_, p): &(_, Problem)| format!("error: {p}; see 'guestwire internal --help'");
            Err(UsageError(problems.iter().map(line).collect()))
        }
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Ok(Command::Help(error))
        }
        Err(error) => Err(UsageError(vec![one_line(&error, command)])),
    }
}

/// clap's message in one line: what is wrong, what would be right, and which command's help tells more.
fn one_line(error: &clap::Error, command: &str) -> String {
    let verbs = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect::<Vec<_>>().join(", ");
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let example = "guestwire internal --socket-path /tmp/lab.sock";
            return format!("error: no network asked for: try '{example}', or see 'guestwire --help'");
        }
        ErrorKind::InvalidSubcommand => {
            if let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand)
                && VERBS_TO_COME.contains(&verb.as_str())
            {
                return format!("error: '{verb}' is not there yet: this version knows {verbs}; see 'guestwire --help'");
            }
        }
        _ => {}
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

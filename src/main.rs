//! guestwire: parse the command line, check it, run.

use std::process::ExitCode;

use guestwire::cli::{self, Command};
use guestwire::config::Config;
use guestwire::control;

/// The exit code for what could not start or go on.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(Command::Run(config)) => run(&config),
        Ok(Command::RunFile { file, verbosity }) => match cli::read(&file, verbosity) {
            Ok(config) => run(&config),
            Err(error) => refused(cli::EXIT_USAGE, &format_args!("error: {error}")),
        },
        Ok(Command::Check { file, form }) => match cli::check(&file, form) {
            Ok(text) => answered(print_line(&text)),
            Err(text) => {
                print_line(&text);
                ExitCode::from(cli::EXIT_USAGE)
            }
        },
        Ok(Command::Help(text)) => answered(text.print().is_ok()),
        Ok(Command::PrintCapabilities) => answered(print_line(cli::CAPABILITIES)),
        Err(error) => refused(cli::EXIT_USAGE, &error),
    }
}

fn run(config: &Config) -> ExitCode {
    let log = match cli::log::start(config.verbosity) {
        Ok(log) => log,
        Err(error) => return refused(cli::EXIT_USAGE, &error),
    };
    let result = control::run(config);
    log.finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = if error.is_usage() { cli::EXIT_USAGE } else { EXIT_FAILURE };
            refused(code, &format_args!("error: {error}"))
        }
    }
}

fn print_line(text: &str) -> bool {
    use std::io::Write;
    writeln!(std::io::stdout(), "{text}").is_ok()
}

fn answered(printed: bool) -> ExitCode {
    if printed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
}

fn refused(code: u8, why: &dyn std::fmt::Display) -> ExitCode {
    use std::io::Write;
    // When the standard error is closed as well, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "guestwire: {why}");
    ExitCode::from(code)
}

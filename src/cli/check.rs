//! `hostward check`: everything that is wrong with a configuration, at once.

use super::{ConfigFile, complain, say};
use crate::config::{self, Severity};
use crate::control::{Failure, assemble};

/// The arguments of `check`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
    /// Open every certificate, key and CA too.
    #[arg(long)]
    full: bool,
}

/// Prints warnings and errors; succeeds when there are no errors.
pub fn check(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.file.config;
    let problems = if arguments.full {
        assemble::check_full(path).problems
    } else {
        match config::load(path) {
            Ok(config) => config.warnings,
            Err(report) => report.problems,
        }
    };
    let (errors, warnings): (Vec<_>, Vec<_>) = problems.iter().partition(|problem| problem.severity == Severity::Error);
    if errors.is_empty() {
        warnings.iter().for_each(|warning| complain(&warning.to_string()));
        let opened = if arguments.full { "every file it names was opened" } else { "--full opens the files it names" };
        say(format_args!("{}: ok; {opened}", path.display()));
        return Ok(());
    }
    Err(Failure::Input(problems.iter().map(ToString::to_string).collect()))
}

//! The command line: one file a subcommand. Exit codes: 0 done, 1 the input was wrong, 2 the usage was wrong, 3 the
//! system refused, 4 `explain` answers no; each failure prints lines that say what to do.
#![forbid(unsafe_code)]

mod admin;
mod check;
mod demo;
mod explain;
mod run;
mod version;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::control::Failure;

/// A TLS terminator for SaaS providers: each customer's hostname with its own client CAs, on io_uring.
#[derive(Parser, Debug)]
#[command(name = "hostward", disable_version_flag = true, arg_required_else_help = true)]
struct Arguments {
    /// Print version, kernel features found, crypto providers and kTLS.
    #[arg(short = 'V', long = "version")]
    version: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve, in the foreground.
    Run(run::Arguments),
    /// Read a configuration and report everything that is wrong with it.
    Check(check::Arguments),
    /// A working edge in one command: two customers, their own CAs, and the curl lines to try.
    Demo(demo::Arguments),
    /// Would this client get in, and exactly why or why not.
    Explain(explain::Arguments),
    /// Make the running process read its configuration again.
    Reload(admin::Target),
    /// Make the running process stop accepting, let connections end, and exit.
    Drain(admin::Target),
    /// Show what the running process does.
    Status(admin::StatusArguments),
}

/// The exit code of a question that was answered with no: not 1, so that a script that expects a refusal does not take a
/// broken configuration for one.
const REFUSED: u8 = 4;

/// Which configuration.
#[derive(clap::Args, Debug)]
struct ConfigFile {
    /// The configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    config: PathBuf,
}

/// Parses the command line, runs the subcommand, and reports what went wrong.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        _ if arguments.version => version::print(),
        Some(Command::Run(arguments)) => run::run(arguments),
        Some(Command::Check(arguments)) => check::check(&arguments),
        Some(Command::Demo(arguments)) => demo::demo(&arguments),
        Some(Command::Explain(arguments)) => match explain::explain(&arguments) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(REFUSED),
            Err(failure) => Err(failure),
        },
        Some(Command::Reload(target)) => admin::reload(&target),
        Some(Command::Drain(target)) => admin::drain(&target),
        Some(Command::Status(arguments)) => admin::status(&arguments),
        None => Arguments::command().error(ErrorKind::MissingSubcommand, "a subcommand is missing").exit(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Input(lines)) => {
            lines.iter().for_each(|line| complain(line));
            ExitCode::from(1)
        }
        Err(Failure::System(line)) => {
            complain(&line);
            ExitCode::from(3)
        }
    }
}

/// One line on standard error. A reader that is gone changes nothing.
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "hostward: {line}");
}

/// Text on standard output. A reader that is gone (`hostward status | head`) changes nothing.
fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::Arguments;
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_people_type_is_understood() {
        for line in [
            "hostward run -c a.toml",
            "hostward check -c a.toml --full",
            "hostward demo",
            "hostward demo --dir x --once",
            "hostward explain -c a.toml --host a.test --cert b.pem --path /x --method POST --source ::1 --json",
            "hostward reload -c a.toml",
            "hostward drain --socket s",
            "hostward status --socket s --json",
            "hostward -V",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in
            ["hostward", "hostward run", "hostward check", "hostward reload -c a --socket b", "hostward explain"]
        {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}

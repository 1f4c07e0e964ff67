//! `hostward run`: serve until a signal or the admin socket ends it.

use super::ConfigFile;
use crate::control::handover::Program;
use crate::control::{self, Failure, Options};

/// The arguments of `run`.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    file: ConfigFile,
}

/// Serves.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    control::run(Options { config: arguments.file.config, program: Program::current(), on_ready: None })
}

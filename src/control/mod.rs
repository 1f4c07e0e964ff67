//! The control plane: one thread that starts the workers, tells them what changed, and answers people and probes.
//!
//! It never touches a client's bytes. Whatever it does may be slow or fail: the workers keep serving what was published
//! last.
//!
//! | file | what it holds |
//! |---|---|
//! | `assemble` | from a configuration to a snapshot: certificates, keys, CAs |
//! | `explain` | whether a client would get in, and why |
//! | `plan` | from a configuration to workers; which keys a reload cannot change |
//! | `listen` | the listening sockets |
//! | `start` | from nothing to running workers |
//! | `serve` | the loop: signals, reloads, worker events, drain |
//! | `reload` | one reload, from the file to the last worker's answer |
//! | `handover` | a new process takes over from an old one |
//! | `resolve` | names of origins |
//! | `checks` | whether the addresses of origins answer |
//! | `scrape` | what `/metrics` and `/status` show |
//! | `admin` | the admin server and its client |
//! | `notify` | what systemd is told |
#![forbid(unsafe_code)]

pub mod admin;
pub mod assemble;
mod checks;
pub mod explain;
pub mod handover;
pub mod listen;
mod notify;
mod plan;
mod reload;
mod resolve;
mod scrape;
mod serve;
mod start;

#[cfg(test)]
mod serve_tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::config::Report;
use crate::telemetry::log::{Level, Log};
use admin::Ask;
use handover::{Inherited, Program};

/// How long an exit waits for log lines nobody reads.
const LOG_FINISH: Duration = Duration::from_secs(1);

/// Why the control plane ended, as the command line reports it: each line says what to do.
#[derive(Debug)]
pub enum Failure {
    /// The configuration is wrong; one line a problem.
    Input(Vec<String>),
    /// The system refused: a port in use, io_uring not allowed, a worker that died.
    System(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Input(problems) => f.write_str(&problems.join("; ")),
            Self::System(message) => f.write_str(message),
        }
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Input(report.problems.iter().map(ToString::to_string).collect())
    }
}

/// What runs.
pub struct Options {
    /// The main configuration file.
    pub config: PathBuf,
    /// What SIGUSR2 starts to take over from this process; `None`: nothing, nor does this one take over from another.
    pub program: Option<Program>,
    /// Called once on the control thread when all workers serve; must not block.
    pub on_ready: Option<OnReady>,
}

/// See [`Options::on_ready`].
pub type OnReady = Box<dyn FnOnce(Ready) + Send>;

/// A running edge, to those who started it in their own process.
#[derive(Debug)]
pub struct Ready {
    /// Where clients are served; the ports are the real ones.
    pub listen: Vec<SocketAddr>,
    /// Where metrics are served.
    pub admin: Option<SocketAddr>,
    /// What the admin server asks through.
    pub asks: mpsc::Sender<Ask>,
}

/// Serves until a signal or the admin socket ends it.
///
/// The process is this function's: it installs signal handlers and raises limits. A thread that panics ends the process,
/// because half an edge must not go on answering.
///
/// # Errors
/// A [`Failure`], after which the process should exit with the code it stands for.
pub fn run(options: Options) -> Result<(), Failure> {
    // First of all, while no descriptor is this process's own.
    let inherited = match options.program {
        Some(_) => handover::receive().map_err(Failure::System)?,
        None => None,
    };
    let predecessor = inherited.as_ref().map(|inherited| inherited.predecessor.clone());
    let result = run_process(options, inherited);
    if let (Err(failure), Some(predecessor)) = (&result, predecessor) {
        predecessor.failed(&failure.to_string());
    }
    result
}

fn run_process(options: Options, mut inherited: Option<Inherited>) -> Result<(), Failure> {
    let state = inherited.as_mut().and_then(|inherited| inherited.state.take());
    // Faults are told as `check --full` tells them.
    let (config, assembled) = match &state {
        Some(state) => assemble::load(&options.config, Some(&state.ids), state.generation + 1)?,
        None => assemble::load(&options.config, None, start::FIRST_GENERATION)?,
    };
    let features = crate::ring::probe().map_err(|unavailable| Failure::System(unavailable.to_string()))?;
    crate::sys::ignore_write_signals();
    abort_on_panic();

    let log = Log::start(plan::log_level(config.log.level)).map_err(|error| system("cannot start a thread", &error))?;
    let handle = log.handle();
    handle.event(
        Level::Info,
        "starting",
        vec![
            ("version", env!("CARGO_PKG_VERSION").into()),
            ("pid", std::process::id().into()),
            ("config", options.config.display().to_string().into()),
            ("ring", features.to_string().into()),
        ],
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Only the system's resolver runs on these; `resolve` bounds how many it uses at once.
        .max_blocking_threads(32)
        .thread_name("hostward-dns")
        .build()
        .map_err(|error| system("cannot start the control plane", &error));
    let result = runtime.and_then(|runtime| {
        let result = runtime.block_on(async {
            let keyring = state.map(|state| state.keyring);
            let control = start::start(options, config, assembled, inherited, keyring, handle.clone()).await?;
            control.serve().await
        });
        // A resolver that hangs must not hold up the exit.
        runtime.shutdown_background();
        result
    });
    match &result {
        Ok(ended) => {
            let fields = vec![("pid", std::process::id().into()), ("connections_cut", ended.cut.into())];
            handle.event(Level::Info, "stopped", fields);
        }
        Err(Failure::Input(problems)) => {
            handle.event(Level::Error, "fatal", vec![("problems", problems.clone().into())]);
        }
        Err(Failure::System(message)) => {
            handle.event(Level::Error, "fatal", vec![("message", message.clone().into())]);
        }
    }
    log.finish(LOG_FINISH);
    result.map(|_| ())
}

fn system(what: &str, error: &std::io::Error) -> Failure {
    Failure::System(format!("{what}: {error}"))
}

/// A panic anywhere ends the whole process, in builds that unwind too: a worker that is gone leaves its listeners' share
/// of the clients without an answer.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        eprintln!("hostward: this is a defect; the process ends so that it never serves half");
        std::process::abort();
    }));
}

//! One reload, from the file to the last worker's answer. Nothing changes before everything is known to be good (I10).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::admin::ReloadResult;
use super::assemble::{self, Assembled};
use super::{plan, resolve};
use crate::config::Config;
use crate::registry::{Snapshot, origins};
use crate::telemetry::log::access::{Sink, Target};

/// How long a reload waits for the names of new origins. Those not answered by then come with the next refresh.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// How long workers may take to serve what was published. It takes them a turn; one that is stuck is reported, and it
/// keeps serving the old state as long as it does anything.
pub const APPLY_LIMIT: Duration = Duration::from_secs(10);

/// Who waits for a reload's result; nobody does for SIGHUP.
pub type Waiting = Vec<oneshot::Sender<ReloadResult>>;

/// Where a reload stands.
#[derive(Debug, Default)]
pub enum Stage {
    #[default]
    Idle,
    /// The files are being read on a thread of their own.
    Loading,
    /// Published; these workers have not answered yet.
    Applying { generation: u64, workers: BTreeSet<usize>, deadline: Instant, warnings: Vec<String> },
}

/// The reload under way, and the one asked for meanwhile.
#[derive(Debug, Default)]
pub struct Reload {
    pub stage: Stage,
    pub waiting: Waiting,
    /// Asked for while one was under way: the file may have changed since that one read it. Those who ask later join it.
    pub next: Option<Waiting>,
}

/// A configuration that was read and found good, and what its new names resolved to.
pub struct Loaded {
    pub config: Config,
    pub assembled: Assembled,
    /// Where the access log goes from now on, if that changed.
    pub access: Option<Sink>,
    /// The names that were looked up: those nothing was known of.
    pub asked: BTreeSet<String>,
    pub answers: Vec<resolve::Answer>,
}

/// Reads the configuration on a thread of its own and looks its new origin names up. With a `current` configuration, what
/// cannot change while that one is in force must not differ.
///
/// # Errors
/// Every problem, one line each.
pub async fn load(
    path: Arc<Path>,
    current: Option<Arc<Config>>,
    previous: Arc<Snapshot>,
    known: BTreeSet<String>,
) -> Result<Loaded, Vec<String>> {
    let (sender, receiver) = oneshot::channel();
    let thread = std::thread::Builder::new().name("hostward-load".into());
    let thread = thread.spawn(move || drop(sender.send(read(&path, current.as_deref(), &previous))));
    if let Err(error) = thread {
        return Err(vec![format!("cannot start a thread to read the configuration: {error}")]);
    }
    let (config, assembled, access) =
        receiver.await.unwrap_or_else(|_| Err(vec!["reading the configuration ended early".to_owned()]))?;
    let names = origins::names_to_resolve(&assembled.snapshot);
    let asked: BTreeSet<String> = names.difference(&known).cloned().collect();
    let answers = resolve::look_up(asked.clone(), RESOLVE_LIMIT).await;
    Ok(Loaded { config, assembled, access, asked, answers })
}

fn read(
    path: &Path,
    current: Option<&Config>,
    previous: &Snapshot,
) -> Result<(Config, Assembled, Option<Sink>), Vec<String>> {
    let lines = |report: crate::config::Report| report.problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    let config = crate::config::load(path).map_err(lines)?;
    let fixed = current.map(|current| plan::needs_restart(current, &config)).unwrap_or_default();
    if !fixed.is_empty() {
        let problem = |key| {
            format!(
                "{}: {key} changed, which takes a new process (SIGUSR2, or a restart); nothing was changed",
                path.display()
            )
        };
        return Err(fixed.into_iter().map(problem).collect());
    }
    let assembled = assemble::assemble(&config, Some(previous), previous.generation + 1).map_err(lines)?;
    // Opened here, where a path that cannot be used still changes nothing. Without a current configuration this process
    // ends soon, and writes where it wrote.
    let access = match current {
        Some(current) if current.log.access != config.log.access => {
            Some(open_access_log(&config).map_err(|problem| vec![format!("{}: {problem}", path.display())])?)
        }
        _ => None,
    };
    Ok((config, assembled, access))
}

/// Opens where the access log goes.
///
/// # Errors
/// Says what could not be opened, and what to do.
pub fn open_access_log(config: &Config) -> Result<Sink, String> {
    let target = plan::access_target(&config.log.access);
    Sink::open(&target).map_err(|error| match &target {
        Target::File(path) => format!(
            "log.access: cannot open {}: {error}; give this user write access to its directory, or change the key",
            path.display()
        ),
        _ => format!("log.access: cannot use standard output: {error}"),
    })
}

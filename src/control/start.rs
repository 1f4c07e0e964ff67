//! From nothing to running workers: sockets, directories, names, threads, in the order in which they may fail.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::DirBuilder;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::admin::{self, Ask, Listener, OwnSocket};
use super::assemble::Assembled;
use super::reload::{self, Reload};
use super::resolve::{self, Names};
use super::scrape::Busy;
use super::serve::{Control, Inbox, Phase, Signals};
use super::{Failure, Options, Ready, listen, plan, system};
use crate::config::Config;
use crate::registry::{Snapshot, origins};
use crate::telemetry::log::access::{self, Sink};
use crate::telemetry::log::{Handle, Level};
use crate::telemetry::metrics::ControlMetrics;
use crate::telemetry::{Histograms, Shard};
use crate::tls::ticket::Keyring;
use crate::worker::{Event, Listeners, Logs, Published, Worker, WorkerConfig};

/// The generation of the first snapshot.
pub const FIRST_GENERATION: u64 = 1;

/// How long the start waits for origin names. What is not answered by then is served without (connections to it are
/// refused and counted) and found later: one customer's broken DNS must not keep the others out.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// How long workers may take to start. It takes them milliseconds.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Questions from the admin server that may wait.
const ASKS: usize = 64;

/// What was opened before anything runs: what may fail because of the system fails here.
struct Opened {
    access: Sink,
    plans: Vec<WorkerConfig>,
    listeners: Vec<Listeners>,
    listen: Vec<SocketAddr>,
    redirect: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    own_socket: OwnSocket,
    signals: Signals,
    asks_sender: mpsc::Sender<Ask>,
    asks: mpsc::Receiver<Ask>,
}

/// The workers, all of them serving.
struct Running {
    workers: Vec<Worker>,
    shards: Vec<Arc<Shard>>,
    events: mpsc::UnboundedReceiver<Event>,
    names: Names,
    published: Arc<Published>,
}

/// Starts everything and waits until every worker serves.
pub async fn start(options: Options, config: Config, assembled: Assembled, log: Handle) -> Result<Control, Failure> {
    raise_limits(&log);
    for warning in config.warnings.iter().chain(&assembled.warnings) {
        log.event(Level::Warn, "config_warning", vec![("problem", warning.to_string().into())]);
    }
    let mut opened = open(&config).await?;
    let cpus: Value = opened.plans.iter().map(|plan| Value::from(plan.cpu)).collect();
    let identify = |der: &[u8]| crate::tls::identity::parse(der).ok();
    let access = access::Log::start(opened.access, log.clone(), identify)
        .map_err(|error| system("cannot start a thread", &error))?;
    let bring_up = bring_up(opened.plans, opened.listeners, assembled.snapshot, &log, &access);
    let running = tokio::select! {
        running = bring_up => running?,
        never = answer_while_starting(&mut opened.asks) => match never {},
    };
    let snapshot = &running.published.snapshot;
    log.event(
        Level::Info,
        "listening",
        vec![
            ("listen", opened.listen.iter().map(ToString::to_string).collect()),
            ("redirect", opened.redirect.iter().map(ToString::to_string).collect()),
            ("admin", opened.admin.map(|address| address.to_string()).into()),
            ("workers", running.workers.len().into()),
            ("cpus", cpus),
            ("hostnames", snapshot.len().into()),
            ("generation", snapshot.generation.into()),
        ],
    );
    super::notify::ready(snapshot.len(), snapshot.generation);
    if let Some(on_ready) = options.on_ready {
        on_ready(Ready { listen: opened.listen.clone(), admin: opened.admin, asks: opened.asks_sender });
    }

    let (internal_sender, internal) = mpsc::unbounded_channel();
    let metrics = ControlMetrics {
        last_reload_ok: true,
        origins_unresolved: running.names.failing.len() as u64,
        provider: config.tls.provider.name(),
        ..ControlMetrics::default()
    };
    Ok(Control {
        path: options.config,
        histograms: Arc::new(Mutex::new(vec![Histograms::default(); running.workers.len()])),
        config: Arc::new(config),
        log,
        access,
        workers: running.workers,
        shards: running.shards,
        listen: opened.listen,
        redirect: opened.redirect,
        admin: opened.admin,
        own_socket: opened.own_socket,
        published: running.published,
        names: running.names,
        phase: Phase::Serving,
        reload: Reload::default(),
        busy: Busy::default(),
        metrics,
        started: Instant::now(),
        last_reload: None,
        refreshed: Instant::now(),
        refreshing: false,
        internal: internal_sender,
        inbox: Inbox { signals: opened.signals, events: running.events, asks: opened.asks, internal },
    })
}

async fn open(config: &Config) -> Result<Opened, Failure> {
    let allowed = crate::sys::allowed_cpus().map_err(|error| system("cannot read the CPU affinity", &error))?;
    let open_files = crate::sys::raise_open_files().ok().flatten();
    let mut plans = plan::workers(config, &allowed, open_files).map_err(Failure::System)?;
    let access = reload::open_access_log(config).map_err(Failure::System)?;
    let state_dir = &config.server.state_dir;
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|error| {
        system(&format!("cannot make server.state_dir {}; create it, or change the key", state_dir.display()), &error)
    })?;
    let addresses = [config.server.listen.as_slice(), &config.server.redirect].concat();
    let opened = listen::open(&addresses, plans.len());
    let (sockets, mut listen) = opened.map_err(|error| Failure::System(error.to_string()))?;
    let redirect = listen.split_off(config.server.listen.len());
    let split = |mut tls: Vec<TcpListener>| Listeners { redirect: tls.split_off(listen.len()), tls };
    let listeners = sockets.into_iter().map(split).collect();
    for plan in &mut plans {
        plan.https_port = plan.https_port.or(listen.first().map(SocketAddr::port));
    }
    let signals = signals().map_err(|error| system("cannot handle signals", &error))?;
    let (asks_sender, asks) = mpsc::channel(ASKS);
    let (socket, own_socket) = admin::bind_socket(&config.admin.socket).map_err(Failure::System)?;
    let socket = tokio::net::UnixListener::from_std(socket);
    let socket = socket.map_err(|error| system("cannot use admin.socket", &error))?;
    tokio::spawn(admin::serve(Listener::Unix(socket), asks_sender.clone()));
    let admin = open_admin(config, &asks_sender).await?;
    Ok(Opened { access, plans, listeners, listen, redirect, admin, own_socket, signals, asks_sender, asks })
}

async fn open_admin(config: &Config, asks: &mpsc::Sender<Ask>) -> Result<Option<SocketAddr>, Failure> {
    let Some(address) = config.admin.listen else { return Ok(None) };
    let fail =
        |error| system(&format!("cannot listen on admin.listen {address}; free the port or change the key"), &error);
    let listener = tokio::net::TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    tokio::spawn(admin::serve(Listener::Tcp(listener), asks.clone()));
    Ok(Some(bound))
}

fn signals() -> std::io::Result<Signals> {
    Ok(Signals {
        hangup: signal(SignalKind::hangup())?,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        user1: signal(SignalKind::user_defined1())?,
    })
}

/// Answers probes until the workers serve. Never ends by itself.
async fn answer_while_starting(asks: &mut mpsc::Receiver<Ask>) -> Infallible {
    loop {
        match asks.recv().await {
            Some(Ask::Ready(reply)) => drop(reply.send(Err("starting".into()))),
            Some(Ask::Status(reply)) => drop(reply.send(json!({ "state": "starting" }))),
            Some(Ask::Reload(reply)) => drop(reply.send(Err(vec!["starting: try again in a moment".into()]))),
            // Unanswered, which the admin server makes a 503 of.
            Some(Ask::Metrics(_) | Ask::Drain(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// Resolves names, makes ticket keys, starts the workers and waits for them.
async fn bring_up(
    plans: Vec<WorkerConfig>,
    listeners: Vec<Listeners>,
    snapshot: Arc<Snapshot>,
    log: &Handle,
    access: &access::Log,
) -> Result<Running, Failure> {
    let wanted = origins::names_to_resolve(&snapshot);
    let answers = resolve::look_up(wanted.clone(), RESOLVE_LIMIT).await;
    let mut names = Names::default();
    for (host, why) in names.learn(&wanted, wanted.clone(), answers) {
        log.event(Level::Warn, "origin_unresolved", vec![("host", host.into()), ("why", why.into())]);
    }
    let keyring = Keyring::generate(crate::sys::now_unix_s()).map_err(|error| Failure::System(error.to_string()))?;
    let published = Arc::new(Published {
        origins: Arc::new(origins::table(&snapshot, &names.known)),
        snapshot,
        ticket_keys: Arc::new(keyring),
    });
    let (events_sender, mut events) = mpsc::unbounded_channel();
    let (mut workers, mut shards) = (Vec::with_capacity(plans.len()), Vec::with_capacity(plans.len()));
    for (plan, own) in plans.into_iter().zip(listeners) {
        let shard = Arc::new(Shard::default());
        shards.push(Arc::clone(&shard));
        let logs = Logs { events: log.clone(), access: access.writer() };
        let worker = Worker::spawn(plan, own, Arc::clone(&published), shard, logs, events_sender.clone());
        workers.push(worker.map_err(|error| system("cannot start a worker", &error))?);
    }
    all_started(&mut events, workers.len()).await?;
    Ok(Running { workers, shards, events, names, published })
}

async fn all_started(events: &mut mpsc::UnboundedReceiver<Event>, count: usize) -> Result<(), Failure> {
    let mut waiting: BTreeSet<usize> = (0..count).collect();
    let wait = async {
        while !waiting.is_empty() {
            match events.recv().await {
                Some(Event::Started { worker }) => _ = waiting.remove(&worker),
                Some(Event::Failed { message, .. }) => return Err(Failure::System(message)),
                Some(_) => {}
                None => return Err(Failure::System("the workers ended at their start".into())),
            }
        }
        Ok(())
    };
    match tokio::time::timeout(START_LIMIT, wait).await {
        Ok(result) => result,
        Err(_) => Err(Failure::System(format!("workers {waiting:?} did not start within {START_LIMIT:?}"))),
    }
}

/// More descriptors and locked memory, as far as the hard limits go. Less than wished is not a failure here: whatever
/// runs out later is counted and told where it bites.
fn raise_limits(log: &Handle) {
    let limits = [("open_files", crate::sys::raise_open_files()), ("locked_memory", crate::sys::raise_locked_memory())];
    for (limit, result) in limits {
        match result {
            Ok(value) => log.event(Level::Debug, "limit", vec![("limit", limit.into()), ("value", value.into())]),
            Err(error) => {
                let fields = vec![("limit", limit.into()), ("why", error.to_string().into())];
                log.event(Level::Warn, "limit_not_raised", fields);
            }
        }
    }
}

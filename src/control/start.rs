//! From nothing to running workers: sockets, directories, names, threads, in the order in which they may fail.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs::DirBuilder;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::admin::{self, Ask, Listener, OwnSocket};
use super::assemble::Assembled;
use super::checks::Checks;
use super::handover::{AdminAddress, AdminSocket, AdminTasks, Handover, Inherited, Sockets};
use super::listen::Group;
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
use crate::worker::{Command, Event, Listeners, Logs, Published, Worker, WorkerConfig};

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
    sockets: Sockets,
    /// What the predecessor keeps, for it to end.
    refused: Refused,
    own_socket: OwnSocket,
    signals: Signals,
    asks_sender: mpsc::Sender<Ask>,
    asks: mpsc::Receiver<Ask>,
}

/// What was inherited and is not used.
#[derive(Default)]
struct Refused {
    groups: Vec<SocketAddr>,
    admin_address: bool,
    admin_socket: bool,
}

/// The workers, all of them ready to accept.
struct Running {
    workers: Vec<Worker>,
    shards: Vec<Arc<Shard>>,
    events: mpsc::UnboundedReceiver<Event>,
    names: Names,
    published: Arc<Published>,
}

/// Starts everything and waits until every worker serves.
///
/// A process that takes over touches nothing that its predecessor uses until that one gives leave: until then it may fail and
/// nobody notices but the log.
pub async fn start(
    options: Options,
    config: Config,
    assembled: Assembled,
    inherited: Option<Inherited>,
    keyring: Option<Keyring>,
    log: Handle,
) -> Result<Control, Failure> {
    raise_limits(&log);
    for warning in config.warnings.iter().chain(&assembled.warnings) {
        log.event(Level::Warn, "config_warning", vec![("problem", warning.to_string().into())]);
    }
    let (predecessor, sockets) = match inherited {
        Some(Inherited { predecessor, sockets, .. }) => (Some(predecessor), sockets),
        None => (None, Sockets::default()),
    };
    let keys_inherited = keyring.is_some();
    let mut opened = open(&config, sockets)?;
    note_limits(&config, &opened.plans, &log);
    let cpus: Value = opened.plans.iter().map(|plan| Value::from(plan.cpu)).collect();
    let mut admin = AdminTasks::default();
    if predecessor.is_none() {
        admin = serve_admin(&opened.sockets, &opened.asks_sender)?;
    }
    let identify = |der: &[u8]| crate::tls::identity::parse(der).ok();
    let access = access::Log::start(opened.access, log.clone(), identify)
        .map_err(|error| system("cannot start a thread", &error))?;
    let workers = opened.plans.len();
    let bring_up = bring_up(std::mem::take(&mut opened.plans), assembled.snapshot, keyring, &log, &access);
    let running = tokio::select! {
        running = bring_up => running?,
        never = answer_while_starting(&mut opened.asks) => match never {},
    };
    if let Some(predecessor) = &predecessor {
        let Refused { groups, admin_address, admin_socket } = std::mem::take(&mut opened.refused);
        // Blocks: there is nothing else to do, and the answer comes at once or never.
        predecessor.ready(groups, !admin_address, !admin_socket).map_err(Failure::System)?;
        admin = serve_admin(&opened.sockets, &opened.asks_sender)?;
    }
    for failed in listen::begin(&mut opened.sockets.groups) {
        log.event(Level::Error, "listener_lost", vec![("why", failed.to_string().into())]);
    }
    // As they were opened: those of `server.listen`, then those of `server.redirect`.
    let (tls, redirect) = opened.sockets.groups.split_at(config.server.listen.len());
    let shares = listen::share(tls, workers).and_then(|tls| Ok((tls, listen::share(redirect, workers)?)));
    let shares = shares.map_err(|error| system("cannot hand the listeners to the workers", &error))?;
    for ((worker, tls), redirect) in running.workers.iter().zip(shares.0).zip(shares.1) {
        worker.send(Command::Accept(Listeners { tls, redirect }));
    }
    let bound = |groups: &[Group]| groups.iter().map(|group| group.bound).collect::<Vec<SocketAddr>>();
    let (listen, redirect) = (bound(tls), bound(redirect));
    let admin_address = opened.sockets.admin.as_ref().map(|admin| admin.bound);
    let snapshot = &running.published.snapshot;
    log.event(
        Level::Info,
        "listening",
        vec![
            ("pid", std::process::id().into()),
            ("listen", listen.iter().map(ToString::to_string).collect()),
            ("redirect", redirect.iter().map(ToString::to_string).collect()),
            ("admin", admin_address.map(|address| address.to_string()).into()),
            ("workers", running.workers.len().into()),
            ("cpus", cpus),
            ("hostnames", snapshot.len().into()),
            ("generation", snapshot.generation.into()),
        ],
    );
    match &predecessor {
        Some(predecessor) => {
            let fields = vec![("predecessor", predecessor.pid.into()), ("ticket_keys", keys_inherited.into())];
            log.event(Level::Info, "took_over", fields);
            predecessor.serving();
        }
        None => super::notify::ready(snapshot.len(), snapshot.generation),
    }
    if let Some(on_ready) = options.on_ready {
        on_ready(Ready { listen: listen.clone(), admin: admin_address, asks: opened.asks_sender });
    }

    let (internal_sender, internal) = mpsc::unbounded_channel();
    let metrics = ControlMetrics {
        last_reload_ok: true,
        handovers_ok: u64::from(predecessor.is_some()),
        origins_unresolved: running.names.failing.len() as u64,
        provider: config.tls.provider.name(),
        ..ControlMetrics::default()
    };
    let handover = Handover::new(options.program, opened.sockets, admin, predecessor, &internal_sender);
    Ok(Control {
        checks: Checks::new(internal_sender.clone()),
        path: options.config,
        histograms: Arc::new(Mutex::new(vec![Histograms::default(); running.workers.len()])),
        config: Arc::new(config),
        log,
        access,
        workers: running.workers,
        shards: running.shards,
        listen,
        redirect,
        admin: admin_address,
        handover,
        own_socket: opened.own_socket,
        published: running.published,
        names: running.names,
        phase: Phase::Serving,
        cut: 0,
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

fn open(config: &Config, inherited: Sockets) -> Result<Opened, Failure> {
    let allowed = crate::sys::allowed_cpus().map_err(|error| system("cannot read the CPU affinity", &error))?;
    let open_files = crate::sys::raise_open_files().ok().flatten();
    let mut plans = plan::workers(config, &allowed, open_files).map_err(Failure::System)?;
    let access = reload::open_access_log(config).map_err(Failure::System)?;
    let state_dir = &config.server.state_dir;
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir).map_err(|error| {
        system(&format!("cannot make server.state_dir {}; create it, or change the key", state_dir.display()), &error)
    })?;
    let Sockets { groups: mut left, admin, socket } = inherited;
    let addresses = [config.server.listen.as_slice(), &config.server.redirect].concat();
    let groups = listen::open(&addresses, plans.len(), &mut left);
    let groups = groups.map_err(|error| Failure::System(error.to_string()))?;
    for plan in &mut plans {
        plan.https_port = plan.https_port.or(groups.first().map(|group| group.bound.port()));
    }
    let signals = signals().map_err(|error| system("cannot handle signals", &error))?;
    let (asks_sender, asks) = mpsc::channel(ASKS);
    let (socket, own_socket, admin_socket) = open_socket(config, socket)?;
    let (admin, admin_address) = open_admin(config, admin)?;
    // What is left is closed here: a socket that nobody accepts from must not be held.
    let refused = Refused { groups: left.into_iter().map(|group| group.bound).collect(), admin_address, admin_socket };
    let sockets = Sockets { groups, admin, socket: Some(socket) };
    Ok(Opened { access, plans, sockets, refused, own_socket, signals, asks_sender, asks })
}

/// The listener of `admin.socket`, and whether one was inherited and is not used.
fn open_socket(config: &Config, inherited: Option<AdminSocket>) -> Result<(AdminSocket, OwnSocket, bool), Failure> {
    let path = &config.admin.socket;
    let offered = inherited.is_some();
    let taken = inherited.filter(|socket| socket.path == *path);
    if let Some((socket, own)) = taken.and_then(|socket| Some((socket, OwnSocket::adopt(path)?))) {
        return Ok((socket, own, false));
    }
    let (listener, own) = admin::bind_socket(path).map_err(Failure::System)?;
    Ok((AdminSocket { path: path.clone(), listener }, own, offered))
}

/// The listener of `admin.listen`, and whether one was inherited and is not used.
fn open_admin(config: &Config, inherited: Option<AdminAddress>) -> Result<(Option<AdminAddress>, bool), Failure> {
    let offered = inherited.is_some();
    let Some(address) = config.admin.listen else { return Ok((None, offered)) };
    let known = |admin: &AdminAddress| admin.configured == address || admin.bound == address;
    if let Some(admin) = inherited.filter(known) {
        return Ok((Some(AdminAddress { configured: address, ..admin }), false));
    }
    let fail =
        |error| system(&format!("cannot listen on admin.listen {address}; free the port or change the key"), &error);
    let listener = TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    Ok((Some(AdminAddress { configured: address, bound, listener }), offered))
}

/// Answers on the admin listeners from now on.
fn serve_admin(sockets: &Sockets, asks: &mpsc::Sender<Ask>) -> Result<AdminTasks, Failure> {
    let fail = |error| system("cannot serve the admin listeners", &error);
    let mut tasks = AdminTasks::default();
    if let Some(socket) = &sockets.socket {
        let listener: UnixListener = socket.listener.try_clone().map_err(fail)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(fail)?;
        tasks.socket = Some(tokio::spawn(admin::serve(Listener::Unix(listener), asks.clone())));
    }
    if let Some(admin) = &sockets.admin {
        let listener = admin.listener.try_clone().map_err(fail)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(fail)?;
        tasks.address = Some(tokio::spawn(admin::serve(Listener::Tcp(listener), asks.clone())));
    }
    Ok(tasks)
}

/// Says so where there are fewer descriptors than connections asked for.
fn note_limits(config: &Config, plans: &[WorkerConfig], log: &Handle) {
    let configured = config.limits.connections_per_worker;
    let Some(allowed) = plans.first().map(|plan| plan.connections_max).filter(|allowed| *allowed < configured) else {
        return;
    };
    let fields = vec![
        ("limit", "limits.connections_per_worker".into()),
        ("configured", configured.into()),
        ("allowed", allowed.into()),
        ("cure", "raise the hard limit on open files (LimitNOFILE= in the unit, ulimit -Hn), or lower the key".into()),
    ];
    log.event(Level::Warn, "limit_lowered", fields);
}

fn signals() -> std::io::Result<Signals> {
    Ok(Signals {
        hangup: signal(SignalKind::hangup())?,
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
        user1: signal(SignalKind::user_defined1())?,
        user2: signal(SignalKind::user_defined2())?,
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

/// Resolves names, makes ticket keys unless there are some, starts the workers and waits for them.
async fn bring_up(
    plans: Vec<WorkerConfig>,
    snapshot: Arc<Snapshot>,
    keyring: Option<Keyring>,
    log: &Handle,
    access: &access::Log,
) -> Result<Running, Failure> {
    let wanted = origins::names_to_resolve(&snapshot);
    let answers = resolve::look_up(wanted.clone(), RESOLVE_LIMIT).await;
    let mut names = Names::default();
    for (host, why) in names.learn(&wanted, wanted.clone(), answers) {
        log.event(Level::Warn, "origin_unresolved", vec![("host", host.into()), ("why", why.into())]);
    }
    let keyring = match keyring {
        Some(keyring) => keyring,
        None => Keyring::generate(crate::sys::now_unix_s()).map_err(|error| Failure::System(error.to_string()))?,
    };
    let published = Arc::new(Published {
        origins: Arc::new(origins::table(&snapshot, &names.known)),
        down: Arc::default(),
        snapshot,
        ticket_keys: Arc::new(keyring),
    });
    let (events_sender, mut events) = mpsc::unbounded_channel();
    let (mut workers, mut shards) = (Vec::with_capacity(plans.len()), Vec::with_capacity(plans.len()));
    for plan in plans {
        let shard = Arc::new(Shard::default());
        shards.push(Arc::clone(&shard));
        let logs = Logs { events: log.clone(), access: access.writer() };
        let worker = Worker::spawn(plan, Arc::clone(&published), shard, logs, events_sender.clone());
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

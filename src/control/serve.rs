//! The control loop: signals, reloads, what workers tell, what people ask, and the drain. Nothing in it blocks.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;

use super::admin::{Ask, OwnSocket, ReloadResult, Reloaded};
use super::checks::{Checks, News};
use super::handover::{self, Handover};
use super::reload::{self, Loaded, Reload, Stage, Waiting};
use super::scrape::{Busy, LastHistograms, Scrape, connections_open, refusals_status, workers_status};
use super::{Failure, notify, plan, resolve};
use crate::config::Config;
use crate::registry::Snapshot;
use crate::registry::origins;
use crate::telemetry::log::{Handle, Level, Value as Field, access};
use crate::telemetry::metrics::ControlMetrics;
use crate::telemetry::{Gauge, Shard};
use crate::worker::{Command, Event, Published, Worker};

/// How often deadlines are looked at: the bound on how late the control plane acts on one.
const TICK: Duration = Duration::from_millis(100);

/// How often the workers' busy time is sampled.
const BUSY_SAMPLE_TICKS: u32 = 10;

/// How long a refresh of all origin names may take.
const REFRESH_LIMIT: Duration = Duration::from_secs(20);

/// How long beyond `limits.drain_timeout` workers may take to say that they are done; they end their own connections at
/// that timeout.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// How long stopped workers may take to end.
const JOIN_LIMIT: Duration = Duration::from_secs(5);

/// Ticket keys are not replaced more often than this, however short tickets live.
const ROTATION_MIN_S: u64 = 1;

/// The signals that mean something.
pub struct Signals {
    pub hangup: Signal,
    pub terminate: Signal,
    pub interrupt: Signal,
    pub user1: Signal,
    pub user2: Signal,
}

/// Everything the loop listens to.
pub struct Inbox {
    pub signals: Signals,
    pub events: mpsc::UnboundedReceiver<Event>,
    pub asks: mpsc::Receiver<Ask>,
    pub internal: mpsc::UnboundedReceiver<Internal>,
}

/// What the loop's own tasks bring back.
pub enum Internal {
    Loaded(Result<Box<Loaded>, Vec<String>>),
    Refreshed(BTreeSet<String>, Vec<resolve::Answer>),
    /// Of an address that is checked.
    Checked(News),
    /// Of the process that takes over from this one.
    Successor(handover::Report),
    /// Of the process this one took over from.
    Predecessor(handover::Word),
    /// What the successor's new configuration says about the connections that are still here.
    Rejudged(Result<Box<Loaded>, Vec<String>>),
}

/// What the process is doing.
#[derive(Debug)]
pub enum Phase {
    Serving,
    /// No new connections; these workers still have some.
    Draining {
        workers: BTreeSet<usize>,
        deadline: Instant,
        /// A successor serves: the first signal to end finds that already under way.
        handed_over: bool,
    },
}

/// How the process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ended {
    /// Connections that were still open.
    pub cut: u64,
}

/// Why the loop goes on or not.
pub enum Flow {
    On,
    /// Stop the workers and end.
    Stop,
}

/// The control plane's state. Owned by its loop alone.
pub struct Control {
    pub path: PathBuf,
    pub config: Arc<Config>,
    pub log: Handle,
    pub access: access::Log,
    pub workers: Vec<Worker>,
    pub shards: Vec<Arc<Shard>>,
    pub listen: Vec<SocketAddr>,
    /// Where plain HTTP is redirected.
    pub redirect: Vec<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub own_socket: OwnSocket,
    pub handover: Handover,
    pub published: Arc<Published>,
    pub names: resolve::Names,
    pub checks: Checks,
    pub phase: Phase,
    /// Connections cut at the drain timeout, so far.
    pub cut: u64,
    pub reload: Reload,
    pub histograms: LastHistograms,
    pub busy: Busy,
    pub metrics: ControlMetrics,
    pub started: Instant,
    /// When the last reload ended, seconds since the Unix epoch, and its problems.
    pub last_reload: Option<(u64, Vec<String>)>,
    /// When origin names were last asked for.
    pub refreshed: Instant,
    pub refreshing: bool,
    pub internal: mpsc::UnboundedSender<Internal>,
    pub inbox: Inbox,
}

impl Control {
    /// Runs until a drain has ended or a worker failed.
    ///
    /// # Errors
    /// A worker that failed: the process must end, so that it never serves half.
    pub async fn serve(mut self) -> Result<Ended, Failure> {
        self.note_snapshot();
        self.checks.sync(&self.published.snapshot, &self.published.origins);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        loop {
            let signals = &mut self.inbox.signals;
            let flow = tokio::select! {
                Some(()) = signals.terminate.recv() => self.drain("SIGTERM"),
                Some(()) = signals.interrupt.recv() => self.drain("SIGINT"),
                Some(()) = signals.hangup.recv() => { self.reload(None); Flow::On }
                Some(()) = signals.user1.recv() => { self.access.reopen(); Flow::On }
                Some(()) = signals.user2.recv() => { self.hand_over(); Flow::On }
                Some(event) = self.inbox.events.recv() => self.worker_event(event)?,
                Some(ask) = self.inbox.asks.recv() => self.answer(ask),
                Some(internal) = self.inbox.internal.recv() => self.internal(internal),
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.tick(ticks)
                }
            };
            if let Flow::Stop = flow {
                return self.stop().await;
            }
        }
    }

    pub fn event(&self, level: Level, event: &'static str, fields: Vec<(&'static str, Field)>) {
        self.log.event(level, event, fields);
    }

    fn worker_event(&mut self, event: Event) -> Result<Flow, Failure> {
        match event {
            Event::Started { .. } => {}
            Event::Applied { worker, generation: applied } => {
                if let Stage::Applying { generation, workers, .. } = &mut self.reload.stage
                    && applied >= *generation
                {
                    workers.remove(&worker);
                    if workers.is_empty() {
                        self.applied();
                    }
                }
            }
            Event::Drained { worker, cut } => {
                self.cut += cut;
                if let Phase::Draining { workers, .. } = &mut self.phase {
                    workers.remove(&worker);
                }
                return Ok(self.drained());
            }
            Event::Failed { worker, message } => {
                return Err(Failure::System(format!(
                    "worker {worker} failed: {message}; ending, so that a restart serves whole"
                )));
            }
        }
        Ok(Flow::On)
    }

    fn answer(&mut self, ask: Ask) -> Flow {
        // Whoever asked may be gone; then nobody misses the answer.
        match ask {
            Ask::Metrics(reply) => {
                let metrics = ControlMetrics {
                    log_dropped: self.log.dropped(),
                    access_log: self.access.counts(),
                    addresses_up: self.checks.count() - self.checks.down_count(),
                    addresses_down: self.checks.down_count(),
                    ..self.metrics.clone()
                };
                let scrape = Scrape::begin(&self.workers, &self.shards, &self.busy, metrics, &self.histograms);
                tokio::spawn(async move { drop(reply.send(scrape.finish().await)) });
            }
            Ask::Ready(reply) => {
                let draining = matches!(self.phase, Phase::Draining { .. });
                drop(reply.send(if draining { Err("draining".into()) } else { Ok(()) }));
            }
            Ask::Status(reply) => drop(reply.send(self.status())),
            Ask::Reload(reply) => self.reload(Some(reply)),
            Ask::Drain(reply) => {
                let _ = reply.send(());
                if let Phase::Serving = self.phase {
                    return self.drain("admin socket");
                }
            }
        }
        Flow::On
    }

    fn internal(&mut self, internal: Internal) -> Flow {
        match internal {
            Internal::Loaded(Err(problems)) => self.reload_failed(problems),
            Internal::Loaded(Ok(_)) if matches!(self.phase, Phase::Draining { .. }) => {
                self.reload_failed(vec!["draining: nothing is changed any more".into()]);
            }
            Internal::Loaded(Ok(loaded)) => self.loaded(*loaded),
            Internal::Successor(report) => return self.successor_reported(report),
            Internal::Predecessor(word) => {
                self.predecessor_said(word);
                return self.drained();
            }
            Internal::Rejudged(loaded) => self.rejudged(loaded),
            Internal::Checked(news) => self.checked(news),
            Internal::Refreshed(asked, answers) => {
                self.refreshing = false;
                self.refreshed = Instant::now();
                // The names may be others since the refresh began.
                let wanted = origins::names_to_resolve(&self.published.snapshot);
                self.learn(&wanted, asked, answers);
                self.publish(Arc::clone(&self.published.snapshot), None);
            }
        }
        Flow::On
    }

    fn tick(&mut self, ticks: u32) -> Flow {
        let now = Instant::now();
        if ticks.is_multiple_of(BUSY_SAMPLE_TICKS) {
            self.busy.sample(now, &self.shards);
        }
        self.rotate_ticket_keys();
        self.publish_down();
        if !self.refreshing && now.duration_since(self.refreshed) >= resolve::REFRESH {
            self.refresh();
        }
        if let Stage::Applying { generation, workers, deadline, .. } = &self.reload.stage
            && now >= *deadline
        {
            let problem = format!(
                "workers {workers:?} have not applied generation {generation} within {:?}",
                reload::APPLY_LIMIT
            );
            self.reload_failed(vec![problem]);
        }
        if let Phase::Draining { workers, deadline, .. } = &self.phase
            && now >= *deadline
        {
            if workers.is_empty() {
                return Flow::Stop;
            }
            let fields = vec![("workers", json!(workers)), ("connections_open", connections_open(&self.shards).into())];
            self.event(Level::Error, "drain_incomplete", fields);
            return Flow::Stop;
        }
        Flow::On
    }

    pub fn learn(&mut self, wanted: &BTreeSet<String>, asked: BTreeSet<String>, answers: Vec<resolve::Answer>) {
        for (host, why) in self.names.learn(wanted, asked, answers) {
            let kept = self.names.known.get(&host).map_or(0, Vec::len);
            self.event(
                Level::Warn,
                "origin_unresolved",
                vec![("host", host.into()), ("why", why.into()), ("old_addresses_kept", kept.into())],
            );
        }
        self.metrics.origins_unresolved = self.names.failing.len() as u64;
    }

    /// Starts a reload, or lets this one join the next if one is under way.
    pub fn reload(&mut self, reply: Option<tokio::sync::oneshot::Sender<ReloadResult>>) {
        if let Phase::Draining { .. } = self.phase {
            if let Some(reply) = reply {
                drop(reply.send(Err(vec!["draining: nothing is changed any more".into()])));
            }
            return;
        }
        self.handover.note_reload();
        match self.reload.stage {
            Stage::Idle => self.begin_reload(reply.into_iter().collect()),
            Stage::Loading | Stage::Applying { .. } => self.reload.next.get_or_insert_default().extend(reply),
        }
    }

    fn begin_reload(&mut self, waiting: Waiting) {
        notify::reloading();
        self.reload.stage = Stage::Loading;
        self.reload.waiting = waiting;
        let known = self.names.known.keys().cloned().collect();
        let (path, config) = (self.path.as_path().into(), Some(Arc::clone(&self.config)));
        let load = reload::load(path, config, Arc::clone(&self.published.snapshot), known);
        let internal = self.internal.clone();
        tokio::spawn(async move { drop(internal.send(Internal::Loaded(load.await.map(Box::new)))) });
    }

    /// A good configuration was read: from here on it is in force.
    fn loaded(&mut self, loaded: Loaded) {
        let Loaded { config, assembled, access, asked, answers } = loaded;
        let generation = assembled.snapshot.generation;
        let wanted = origins::names_to_resolve(&assembled.snapshot);
        self.learn(&wanted, asked, answers);
        let warnings = config.warnings.iter().chain(&assembled.warnings).map(ToString::to_string).collect();
        self.log.set_level(plan::log_level(config.log.level));
        if let Some(sink) = access {
            self.access.set(sink);
        }
        self.config = Arc::new(config);
        self.reload.stage = Stage::Applying {
            generation,
            workers: (0..self.workers.len()).collect(),
            deadline: Instant::now() + reload::APPLY_LIMIT,
            warnings,
        };
        self.publish(assembled.snapshot, None);
        self.note_snapshot();
    }

    /// Every worker serves the new generation.
    fn applied(&mut self) {
        let Stage::Applying { generation, warnings, .. } = std::mem::take(&mut self.reload.stage) else { return };
        self.metrics.reloads_ok += 1;
        self.metrics.last_reload_ok = true;
        self.event(
            Level::Info,
            "reloaded",
            vec![
                ("generation", generation.into()),
                ("hostnames", self.published.snapshot.len().into()),
                ("warnings", warnings.clone().into()),
            ],
        );
        self.end_reload(Ok(Reloaded { generation, warnings }));
        self.handover.tell_reloaded();
    }

    fn reload_failed(&mut self, problems: Vec<String>) {
        self.metrics.reloads_failed += 1;
        self.metrics.last_reload_ok = false;
        self.event(
            Level::Error,
            "reload_failed",
            vec![("problems", problems.clone().into()), ("generation", self.published.snapshot.generation.into())],
        );
        self.end_reload(Err(problems));
    }

    fn end_reload(&mut self, result: ReloadResult) {
        self.reload.stage = Stage::Idle;
        self.last_reload = Some((crate::sys::now_unix_s(), result.as_ref().err().cloned().unwrap_or_default()));
        for waiting in self.reload.waiting.drain(..) {
            drop(waiting.send(result.clone()));
        }
        notify::ready(self.published.snapshot.len(), self.published.snapshot.generation);
        if let Some(waiting) = self.reload.next.take() {
            self.begin_reload(waiting);
        }
    }

    /// Publishes what changed to every worker; nothing, if nothing did.
    pub fn publish(&mut self, snapshot: Arc<Snapshot>, ticket_keys: Option<Arc<crate::tls::ticket::Keyring>>) {
        let origins = origins::table(&snapshot, &self.names.known);
        let same = Arc::ptr_eq(&snapshot, &self.published.snapshot) && origins == *self.published.origins;
        if same && ticket_keys.is_none() {
            return;
        }
        self.checks.sync(&snapshot, &origins);
        // The same table stays the same `Arc`, by which workers see that there is nothing to compare.
        let origins = match origins == *self.published.origins {
            true => Arc::clone(&self.published.origins),
            false => Arc::new(origins),
        };
        let ticket_keys = ticket_keys.unwrap_or_else(|| Arc::clone(&self.published.ticket_keys));
        let down = self.down();
        self.published = Arc::new(Published { snapshot, origins, down, ticket_keys });
        for worker in &self.workers {
            worker.send(Command::Publish(Arc::clone(&self.published)));
        }
    }

    /// What the checks say now. The same table stays the same `Arc`.
    fn down(&mut self) -> Arc<origins::DownTable> {
        if std::mem::take(&mut self.checks.changed) {
            return Arc::new(self.checks.down());
        }
        Arc::clone(&self.published.down)
    }

    /// Publishes what the checks found since the last time. Once a tick at most: a network that fails as a whole brings news
    /// of every address at once.
    fn publish_down(&mut self) {
        if !self.checks.changed {
            return;
        }
        let down = self.down();
        let Published { snapshot, origins, ticket_keys, .. } = &*self.published;
        let (snapshot, origins, ticket_keys) = (Arc::clone(snapshot), Arc::clone(origins), Arc::clone(ticket_keys));
        self.published = Arc::new(Published { snapshot, origins, down, ticket_keys });
        for worker in &self.workers {
            worker.send(Command::Publish(Arc::clone(&self.published)));
        }
    }

    fn checked(&mut self, news: News) {
        if !self.checks.learn(&news) {
            return;
        }
        let mut fields =
            vec![("origin", news.target.origin.into()), ("address", news.target.address.to_string().into())];
        match news.down {
            Some(cause) => {
                fields.push(("cause", cause.into()));
                self.event(Level::Warn, "origin_down", fields);
            }
            None => self.event(Level::Info, "origin_up", fields),
        }
    }

    /// Asks for all origin names again, in the background.
    fn refresh(&mut self) {
        let names = origins::names_to_resolve(&self.published.snapshot);
        if names.is_empty() {
            self.refreshed = Instant::now();
            return;
        }
        self.refreshing = true;
        let internal = self.internal.clone();
        tokio::spawn(async move {
            let answers = resolve::look_up(names.clone(), REFRESH_LIMIT).await;
            drop(internal.send(Internal::Refreshed(names, answers)));
        });
    }

    /// Makes a new ticket key every half lifetime, so that a ticket always finds its key and no key seals for long.
    fn rotate_ticket_keys(&mut self) {
        let lifetime_s = self.config.tls.ticket_lifetime.as_secs();
        let now_unix_s = crate::sys::now_unix_s();
        let due = self.published.ticket_keys.created_unix_s() + (lifetime_s / 2).max(ROTATION_MIN_S);
        if !self.config.tls.tickets || now_unix_s < due {
            return;
        }
        match self.published.ticket_keys.rotate(now_unix_s, lifetime_s) {
            Ok(keys) => {
                self.event(Level::Debug, "ticket_keys_rotated", vec![]);
                self.publish(Arc::clone(&self.published.snapshot), Some(Arc::new(keys)));
            }
            // The old key goes on sealing; the next tick tries again.
            Err(error) => self.event(Level::Error, "ticket_keys_not_rotated", vec![("why", error.to_string().into())]),
        }
    }

    fn drain(&mut self, cause: &'static str) -> Flow {
        if let Phase::Draining { handed_over, .. } = &mut self.phase {
            let first = std::mem::take(handed_over);
            let fields = vec![("cause", cause.into()), ("connections_open", connections_open(&self.shards).into())];
            if first {
                // Who stops the service signals all of its processes, this one too, which is about to end as it is.
                self.event(Level::Info, "draining_already", fields);
                return Flow::On;
            }
            self.event(Level::Warn, "stopped_at_once", fields);
            return Flow::Stop;
        }
        self.give_up_handover();
        notify::stopping();
        self.begin_drain(cause, None);
        Flow::On
    }

    /// Whether a drain is over: no worker has anything left, nor has a predecessor that hears of reloads through this process.
    fn drained(&self) -> Flow {
        match &self.phase {
            Phase::Draining { workers, .. } if workers.is_empty() && !self.handover.stands_between() => Flow::Stop,
            _ => Flow::On,
        }
    }

    /// Stops accepting. With `handed_over`, another process has taken over, and goes on at these addresses.
    pub fn begin_drain(&mut self, cause: &'static str, handed_over: Option<Vec<SocketAddr>>) {
        let limit = self.config.limits.drain_timeout;
        self.event(
            Level::Info,
            "draining",
            vec![
                ("pid", std::process::id().into()),
                ("cause", cause.into()),
                ("connections_open", connections_open(&self.shards).into()),
                ("limit_s", limit.as_secs_f64().into()),
            ],
        );
        self.phase = Phase::Draining {
            workers: (0..self.workers.len()).collect(),
            deadline: Instant::now() + limit + DRAIN_GRACE,
            handed_over: handed_over.is_some(),
        };
        // The workers' are the last copies then, so that a socket closes with its worker's accepting.
        self.handover.let_go_of_sockets();
        let handed_over: Arc<[SocketAddr]> = handed_over.unwrap_or_default().into();
        for worker in &self.workers {
            worker.send(Command::Drain { handed_over: Arc::clone(&handed_over) });
        }
    }

    /// Ends the workers and, with them, what is left of their connections.
    async fn stop(self) -> Result<Ended, Failure> {
        let cut = self.connections_cut();
        // Kept until the workers have ended: their last lines are written when it is dropped.
        let Self { workers, own_socket, access: _access, .. } = self;
        for worker in &workers {
            worker.send(Command::Stop);
        }
        drop(own_socket);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let joining = std::thread::Builder::new().name("hostward-join".into()).spawn(move || {
            let panicked = workers.into_iter().map(Worker::join).filter(Result::is_err).count();
            let _ = sender.send(panicked);
        });
        joining.map_err(|error| super::system("cannot start a thread", &error))?;
        match tokio::time::timeout(JOIN_LIMIT, receiver).await {
            Ok(Ok(0)) => Ok(Ended { cut }),
            Ok(Ok(panicked)) => Err(Failure::System(format!("{panicked} workers panicked"))),
            _ => Err(Failure::System(format!("workers did not stop within {JOIN_LIMIT:?}; ending anyway"))),
        }
    }

    /// Connections that end with the process: what workers said they cut, and what those have open that said nothing.
    fn connections_cut(&self) -> u64 {
        let Phase::Draining { workers, .. } = &self.phase else { return connections_open(&self.shards) };
        let open = |worker: &usize| self.shards.get(*worker).map_or(0, |shard| shard.gauge(Gauge::Connections));
        self.cut + workers.iter().map(open).sum::<u64>()
    }

    pub fn note_snapshot(&mut self) {
        let snapshot = &self.published.snapshot;
        let certificates = snapshot.records().flat_map(|record| &record.certificates);
        self.metrics.certificate_min_not_after_unix_s =
            certificates.map(|certificate| certificate.not_after_unix_s).min();
        self.metrics.hostnames = snapshot.len() as u64;
        self.metrics.generation = snapshot.generation;
    }

    fn status(&self) -> Value {
        let draining = matches!(self.phase, Phase::Draining { .. });
        let last_reload = self
            .last_reload
            .as_ref()
            .map(|(at, problems)| json!({ "at_unix_s": at, "ok": problems.is_empty(), "problems": problems }));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "state": if draining { "draining" } else { "serving" },
            "config": self.path,
            "provider": self.config.tls.provider.name(),
            "predecessor": self.handover.predecessor_pid(),
            "listen": self.listen,
            "redirect": self.redirect,
            "admin": self.admin,
            "generation": self.published.snapshot.generation,
            "hostnames": self.published.snapshot.len(),
            "connections_open": connections_open(&self.shards),
            "refused": refusals_status(&self.shards),
            "workers": workers_status(&self.shards, &self.busy),
            "origins_unresolved": self.names.failing,
            "origins_down": self.checks.status(),
            "last_reload": last_reload,
        })
    }
}

//! One core: a pinned thread with its own ring, listeners, caches and origins.
//!
//! Workers share nothing mutable. The control plane reaches a worker through its mailbox and is told of what happened
//! through events.
#![forbid(unsafe_code)]

mod accept;
mod access;
mod admission;
mod cache;
mod core;
mod extras;
mod handshake;
mod hellos;
mod http;
mod http2;
mod redirect;
mod remote;
mod request_ids;
mod requests;
mod session;
mod sessions;
mod traces;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc::UnboundedSender;

use crate::proxy::http1::HeadLimits;
use crate::proxy::origin::Origins;
use crate::proxy::origin::tell::Tell;
use crate::registry::origins::{DownTable, OriginTable};
use crate::registry::{HostnameRecord, Snapshot};
use crate::ring::{self, Receiver, RingConfig, Runtime, Sender};
use crate::telemetry::counters::{Counter, Gauge, Limit, Shard, Timeout, TunnelEnd};
use crate::telemetry::histograms::Histograms;
use crate::telemetry::log::access::Writer;
use crate::telemetry::log::{Handle, Refusals};
use crate::tls::ticket::Keyring;
use crate::tls::{Factory, Options, Provider};

use self::accept::Accepting;
use self::cache::Cache;
use self::core::Core;
use self::request_ids::RequestIds;

/// Connections the kernel may hold for one listener before it drops them.
///
/// A worker that runs through one budget of handshakes leaves new connections waiting for less than a millisecond; at
/// 100,000 arrivals a second that is a hundred. 4096 covers a pause of 40 ms, and it is what Linux caps it at
/// (`net.core.somaxconn`, since 5.4).
pub const BACKLOG: u16 = 4096;

/// How one worker serves.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Names the worker; from 0.
    pub index: usize,
    /// The CPU to pin to; `None`: wherever the scheduler puts it.
    pub cpu: Option<usize>,
    pub provider: Provider,
    /// In order of preference; empty: the provider's.
    pub groups: Vec<String>,
    /// In order of preference; empty: the provider's.
    pub cipher_suites: Vec<String>,
    pub tickets: bool,
    pub ticket_lifetime: Duration,
    /// Most open client connections; beyond it accepting pauses.
    pub connections_max: usize,
    /// Most streams of HTTP/2 under way beyond the first of their connection.
    pub extra_streams_max: usize,
    /// Most handshakes in progress; beyond it they wait in order of arrival.
    pub handshakes_max: usize,
    /// From accept to the end of the handshake, waiting included.
    pub handshake_timeout: Duration,
    /// Longest silence of a tunnel.
    pub tunnel_timeout: Duration,
    /// How long a drain waits for connections to end by themselves.
    pub drain_timeout: Duration,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are kept.
    pub trusted_proxies: Vec<IpNet>,
    /// Peers whose connections begin with a PROXY header.
    pub proxy_protocol_from: Vec<IpNet>,
    /// Of traces that begin here, how many of a million are to be recorded; `None`: none begins.
    pub trace_sampling: Option<u32>,
    pub http: HttpLimits,
    pub tenants_bytes_max: usize,
    pub misses_max: usize,
    /// The port plain HTTP is redirected to; `None`: that of https.
    pub https_port: Option<u16>,
}

/// A worker's listening sockets.
#[derive(Debug)]
pub struct Listeners {
    pub tls: Vec<TcpListener>,
    /// Where plain HTTP is answered with a redirect to https.
    pub redirect: Vec<TcpListener>,
}

/// What a worker logs with.
#[derive(Debug)]
pub struct Logs {
    pub events: Handle,
    pub access: Writer,
}

/// The limits of HTTP connections.
#[derive(Clone, Copy, Debug)]
pub struct HttpLimits {
    /// From the first byte of a head to its last.
    pub header_timeout: Duration,
    /// Longest wait for the next request.
    pub idle_timeout: Duration,
    pub head: HeadLimits,
    /// Largest body of a request, bytes; `None`: any.
    pub body_bytes_max: Option<u64>,
    /// The slowest a client may send or take a body, bytes a second; `None`: as slow as it likes.
    pub min_body_rate: Option<u64>,
    /// Most streams of one HTTP/2 connection at once.
    pub http2_streams_max: u32,
    /// How many bytes of bodies an HTTP/2 client may send ahead of its origins, all its streams together.
    pub http2_window_bytes: u32,
}

/// What all workers serve at one generation; published whole.
#[derive(Debug)]
pub struct Published {
    pub snapshot: Arc<Snapshot>,
    pub origins: Arc<OriginTable>,
    /// The addresses that checks found down.
    pub down: Arc<DownTable>,
    pub ticket_keys: Arc<Keyring>,
}

/// What the control plane asks of a worker.
pub enum Command {
    /// Serve this from now on, and judge open connections by it.
    Publish(Arc<Published>),
    /// Accept from these sockets too. They listen already.
    Accept(Listeners),
    /// Stop accepting; end when the last connection has ended, or at the drain timeout. At the addresses of `handed_over`
    /// another process accepts from the same sockets: their backlog is left to it. Elsewhere the backlog is served first.
    Drain { handed_over: Arc<[SocketAddr]> },
    /// End now.
    Stop,
    /// Send a copy of the histograms.
    Histograms(crossbeam::channel::Sender<Histograms>),
}

/// What a worker tells the control plane.
#[derive(Debug)]
pub enum Event {
    Started {
        worker: usize,
    },
    Applied {
        worker: usize,
        generation: u64,
    },
    /// Nothing is accepted and nothing is open any more; `cut` connections were still open at the drain timeout.
    Drained {
        worker: usize,
        cut: u64,
    },
    Failed {
        worker: usize,
        message: String,
    },
}

/// A running worker.
pub struct Worker {
    commands: Sender<Command>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts a worker's thread. Its first event is `Started`, or `Failed` with the reason. It accepts nothing until it is
    /// told where from.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn spawn(
        config: WorkerConfig,
        initial: Arc<Published>,
        shard: Arc<Shard>,
        logs: Logs,
        events: UnboundedSender<Event>,
    ) -> io::Result<Self> {
        let (commands, mailbox) = ring::mailbox();
        let index = config.index;
        let thread = thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let result = prepare(config, initial, shard, logs).map(|(runtime, core)| {
                let on_turn = turn_recorder(&core);
                runtime.run(async { run(&core, mailbox.claim(), &events).await }, on_turn);
            });
            if let Err(message) = result {
                // The receiver is gone only when the process ends anyway.
                let _ = events.send(Event::Failed { worker: index, message });
            }
        })?;
        Ok(Self { commands, thread })
    }

    /// Posts a command. Never blocks.
    pub fn send(&self, command: Command) {
        self.commands.send(command);
    }

    /// Waits for the thread's end.
    ///
    /// # Errors
    ///
    /// The worker's panic.
    pub fn join(self) -> thread::Result<()> {
        self.thread.join()
    }
}

fn prepare(
    config: WorkerConfig,
    initial: Arc<Published>,
    shard: Arc<Shard>,
    logs: Logs,
) -> Result<(Runtime, Rc<Core>), String> {
    if let Some(cpu) = config.cpu {
        crate::sys::pin_current_thread(cpu)
            .map_err(|error| format!("cannot pin worker {} to CPU {cpu}: {error}", config.index))?;
    }
    let runtime = Runtime::new(&RingConfig::default()).map_err(|error| error.to_string())?;
    let factory = Factory::new(Options {
        provider: config.provider,
        groups: config.groups.clone(),
        cipher_suites: config.cipher_suites.clone(),
        tickets: config.tickets,
        ticket_lifetime_s: u32::try_from(config.ticket_lifetime.as_secs()).unwrap_or(u32::MAX),
    })?;
    let cache = Cache::new(factory, Arc::clone(&shard), config.tenants_bytes_max, config.misses_max);
    let refusals = Refusals::new(logs.events.clone(), Arc::clone(&shard), 0);
    let request_ids = RequestIds::new()?;
    // What `tls.cipher_suites` narrows is what clients are served with.
    let provider = Arc::new(config.provider.build(&config.groups, &[])?);
    let origins = Origins::new(Tell::new(logs.events, config.index), provider, config.http.head.bytes_max);
    let core = Core::new(config, shard, initial, cache, refusals, request_ids, logs.access, origins);
    Ok((runtime, core))
}

/// Records what each turn did.
fn turn_recorder(core: &Rc<Core>) -> impl FnMut(ring::Turn) + use<> {
    let core = Rc::clone(core);
    move |turn| {
        core.shard.count(Counter::Turns);
        core.shard.add(Counter::BusyMicros, turn.busy_us);
        if turn.starved_receives > 0 {
            core.shard.add(Counter::Limit(Limit::ReceiveBuffers), turn.starved_receives);
        }
        core.histograms.borrow_mut().turn.record_us(turn.busy_us);
    }
}

/// A worker's main task: does what the mailbox says.
async fn run(core: &Rc<Core>, mut commands: Receiver<Command>, events: &UnboundedSender<Event>) {
    let worker = core.config.index;
    // The receiver of events is gone only when the process ends anyway.
    let tell = |event| drop(events.send(event));
    let mut accepting: Vec<Rc<Accepting>> = Vec::new();
    {
        let core = Rc::clone(core);
        ring::spawn(async move { core.origins.watch(&core.shard).await });
    }
    tell(Event::Started { worker });
    loop {
        match commands.receive().await {
            Command::Publish(published) => {
                publish(core, published);
                tell(Event::Applied { worker, generation: core.published().snapshot.generation });
            }
            // A worker that drains takes no more: dropped, they close.
            Command::Accept(listeners) if core.draining.get().is_none() => {
                accepting.extend(listeners.tls.into_iter().map(|socket| accept::start(core, socket, session::serve)));
                let redirect = listeners.redirect.into_iter();
                accepting.extend(redirect.map(|socket| accept::start(core, socket, redirect::serve)));
            }
            Command::Accept(_) => {}
            Command::Histograms(reply) => drop(reply.try_send(core.histograms.borrow().clone())),
            Command::Stop => return,
            Command::Drain { handed_over } => {
                if core.draining.get().is_none() {
                    core.draining.set(());
                    core.sessions.drain_all();
                    for listener in &accepting {
                        listener.end(&handed_over);
                    }
                    ring::spawn(drain(Rc::clone(core), std::mem::take(&mut accepting), events.clone()));
                }
            }
        }
    }
}

fn publish(core: &Rc<Core>, published: Arc<Published>) {
    core.shard.set(Gauge::Generation, published.snapshot.generation);
    {
        let before = core.published();
        if Arc::ptr_eq(&before.origins, &published.origins) {
            core.origins.update_down(&before.down, &published.down);
        } else {
            core.origins.update(&published.origins, &published.down, ring::now(), &core.shard);
        }
    }
    let changed = !Arc::ptr_eq(&core.published().snapshot, &published.snapshot);
    if changed {
        core.cache.publish(&published.snapshot);
        let same = |record: &Arc<HostnameRecord>| {
            published.snapshot.get(record.name.as_str()).is_some_and(|now| Arc::ptr_eq(now, record))
        };
        core.origins.keep_owners(same, &core.shard);
    }
    *core.published.borrow_mut() = published;
    if changed {
        ring::spawn(sessions::sweep(Rc::clone(core)));
    }
}

/// Waits for the listeners' ends and the last connection; at the deadline ends those that are left.
async fn drain(core: Rc<Core>, accepting: Vec<Rc<Accepting>>, events: UnboundedSender<Event>) {
    let ended = async {
        for listener in &accepting {
            listener.ended().await;
        }
        core.connections.below(1).await;
    };
    let mut cut = 0;
    if ring::timeout(core.config.drain_timeout, ended).await.is_err() {
        cut = core.connections.open() as u64;
        core.shard.add(Counter::Timeout(Timeout::Drain), cut);
        core.sessions.end_all(TunnelEnd::Drained);
    }
    let _ = events.send(Event::Drained { worker: core.config.index, cut });
}

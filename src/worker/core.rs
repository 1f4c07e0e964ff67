//! What the tasks of one worker share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::proxy::buffers::Buffers;
use crate::proxy::http1::Slots;
use crate::proxy::origin::Origins;
use crate::ring::{self, Signal};
use crate::telemetry::counters::{Counter, Gauge, Shard};
use crate::telemetry::histograms::Histograms;
use crate::telemetry::log::access::Writer;
use crate::telemetry::log::{OriginFault, Refusals, Refused};
use crate::tls::Verdicts;

use super::admission::Admission;
use super::cache::Cache;
use super::extras::Extras;
use super::hellos::{HELLOS_BYTES_MAX, Hellos};
use super::request_ids::RequestIds;
use super::sessions::Sessions;
use super::traces::Traces;
use super::{Published, WorkerConfig};

/// The shared state of one worker. Single-threaded; nothing of it is seen by another core.
pub struct Core {
    pub config: WorkerConfig,
    pub shard: Arc<Shard>,
    pub published: RefCell<Arc<Published>>,
    pub cache: Cache,
    /// Client chains this worker has verified.
    pub verdicts: Rc<Verdicts>,
    pub admission: Rc<Admission>,
    pub extras: Rc<Extras>,
    pub hellos: Rc<Hellos>,
    pub sessions: Sessions,
    pub origins: Origins,
    pub buffers: Buffers,
    pub histograms: RefCell<Histograms>,
    pub refusals: RefCell<Refusals>,
    /// Storage for parsing heads, used by one at a time.
    pub slots: RefCell<Slots>,
    pub request_ids: RequestIds,
    /// `None`: no trace begins here.
    pub traces: Option<Traces>,
    pub access: Writer,
    /// Set when the worker drains: accepting ends.
    pub draining: Signal<()>,
    pub connections: Connections,
    started: Instant,
    open_handshakes: Cell<u64>,
}

/// How many client connections are open, and who waits for there to be fewer.
#[derive(Default)]
pub struct Connections {
    open: Cell<usize>,
    waiting: RefCell<Vec<std::task::Waker>>,
}

impl Connections {
    /// How many are open.
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// Waits until fewer than `max` are open.
    pub async fn below(&self, max: usize) {
        std::future::poll_fn(|cx| {
            if self.open.get() < max {
                return std::task::Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            std::task::Poll::Pending
        })
        .await;
    }
}

/// Counts a client connection as open for as long as it lives.
pub struct Counted {
    core: Rc<Core>,
}

impl Counted {
    /// Counts one more.
    pub fn new(core: &Rc<Core>) -> Self {
        let open = core.connections.open.get() + 1;
        core.connections.open.set(open);
        core.shard.count(Counter::Connections);
        core.shard.set(Gauge::Connections, open as u64);
        Self { core: Rc::clone(core) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let open = self.core.connections.open.get() - 1;
        self.core.connections.open.set(open);
        self.core.shard.set(Gauge::Connections, open as u64);
        for waker in self.core.connections.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// Counts a handshake in progress for as long as it lives.
pub struct Shaking<'a>(&'a Core);

impl<'a> Shaking<'a> {
    /// Counts one more.
    pub fn new(core: &'a Core) -> Self {
        core.set_open_handshakes(core.open_handshakes.get() + 1);
        Self(core)
    }
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.0.set_open_handshakes(self.0.open_handshakes.get() - 1);
    }
}

impl Core {
    /// Puts a worker's state together.
    #[allow(clippy::too_many_arguments, reason = "each part is made where its failure can be told")]
    pub fn new(
        config: WorkerConfig,
        shard: Arc<Shard>,
        published: Arc<Published>,
        cache: Cache,
        refusals: Refusals,
        request_ids: RequestIds,
        access: Writer,
        origins: Origins,
    ) -> Rc<Self> {
        origins.update(&published.origins, &published.down, Instant::now(), &shard);
        let traces = config.trace_sampling.map(Traces::new);
        shard.set(Gauge::Generation, published.snapshot.generation);
        Rc::new(Self {
            verdicts: Rc::default(),
            admission: Admission::new(config.handshakes_max),
            extras: Extras::new(config.extra_streams_max),
            hellos: Hellos::new(HELLOS_BYTES_MAX),
            config,
            shard,
            published: RefCell::new(published),
            cache,
            sessions: Sessions::default(),
            origins,
            buffers: Buffers::default(),
            histograms: RefCell::default(),
            refusals: RefCell::new(refusals),
            slots: RefCell::default(),
            request_ids,
            traces,
            access,
            draining: Signal::default(),
            connections: Connections::default(),
            started: Instant::now(),
            open_handshakes: Cell::new(0),
        })
    }

    /// What is served now.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published.borrow())
    }

    /// Logs a refusal, if the rate limit allows.
    pub fn log_refused(&self, refused: impl FnOnce() -> Refused) {
        self.refusals.borrow_mut().log(self.now_us(), refused);
    }

    /// Logs what is wrong with an origin, if the rate limit allows.
    pub fn log_origin(&self, fault: &OriginFault<'_>) {
        self.refusals.borrow_mut().origin(self.now_us(), fault);
    }

    fn now_us(&self) -> u64 {
        ring::now().saturating_duration_since(self.started).as_micros() as u64
    }

    fn set_open_handshakes(&self, count: u64) {
        self.open_handshakes.set(count);
        self.shard.set(Gauge::Handshakes, count);
    }
}

/// Seconds since the Unix epoch.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

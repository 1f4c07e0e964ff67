//! What a run adds up to: counts, latencies, failures, and the generator's own cost.

use std::cell::RefCell;
use std::fmt::Display;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::common::Failure;

/// Three digits: a latency is told within 0.1 %.
const LATENCY_DIGITS: u8 = 3;

/// The longest latency the histogram tells apart, in microseconds: a transfer's own limit of 60 s.
const LATENCY_MAX_US: u64 = 60_000_000;

/// The first failures are worth reading, the thousandth is not.
const FAILURES_SHOWN: usize = 5;

/// After this many failures a run says nothing about its server any more and ends.
const FAILURES_MAX: u64 = 1000;

/// The result of a run; one line of JSON, read by `perf/run`.
#[derive(Serialize)]
pub struct Summary {
    /// Operations that succeeded.
    pub ops: u64,
    /// Length of the measured part, up to the end of the last operation.
    pub seconds: f64,
    pub ops_per_second: f64,
    /// Bytes of bodies, both directions.
    pub bytes: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub errors: u64,
    /// The first few failures in words.
    pub failures: Vec<String>,
    /// Operations of `resumed` that went through a full handshake.
    pub not_resumed: u64,
    /// User and system CPU of this generator in the measured part.
    pub cpu_seconds: f64,
    /// The share of the measured part in which this generator did not run. Near 0: it was the bottleneck.
    pub idle_share: f64,
    /// Idle only: connections that answered a second request after the holding time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive: Option<u64>,
}

/// Counts for all tasks of a run.
pub struct Tally {
    inner: RefCell<Inner>,
}

struct Inner {
    started: Instant,
    cpu_at_start: Duration,
    latencies: Histogram<u64>,
    bytes: u64,
    errors: u64,
    failures: Vec<String>,
    not_resumed: u64,
}

impl Tally {
    /// Begins now: time and CPU count from here.
    ///
    /// # Errors
    /// Never with the constants above; the histogram library checks them.
    pub fn start() -> Result<Rc<Self>, Failure> {
        Ok(Rc::new(Self {
            inner: RefCell::new(Inner {
                started: Instant::now(),
                cpu_at_start: own_cpu(),
                latencies: Histogram::new_with_max(LATENCY_MAX_US, LATENCY_DIGITS)?,
                bytes: 0,
                errors: 0,
                failures: Vec::new(),
                not_resumed: 0,
            }),
        }))
    }

    /// One operation more, begun at `since`.
    pub fn success(&self, since: Instant, bytes: u64) {
        let mut inner = self.inner.borrow_mut();
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        inner.latencies.saturating_record(us);
        inner.bytes += bytes;
    }

    /// One failure more.
    pub fn failure(&self, what: impl Display) {
        let mut inner = self.inner.borrow_mut();
        inner.errors += 1;
        if inner.failures.len() < FAILURES_SHOWN {
            inner.failures.push(what.to_string());
        }
    }

    /// A handshake that should have resumed did not.
    pub fn not_resumed(&self) {
        self.inner.borrow_mut().not_resumed += 1;
    }

    /// Whether going on is pointless.
    pub fn hopeless(&self) -> bool {
        self.inner.borrow().errors >= FAILURES_MAX
    }

    /// Ends the run.
    pub fn summary(&self) -> Summary {
        let inner = self.inner.borrow();
        let seconds = inner.started.elapsed().as_secs_f64();
        let cpu_seconds = own_cpu().saturating_sub(inner.cpu_at_start).as_secs_f64();
        let ops = inner.latencies.len();
        Summary {
            ops,
            seconds,
            #[expect(clippy::cast_precision_loss, reason = "a rate, shown with a few digits")]
            ops_per_second: ops as f64 / seconds,
            bytes: inner.bytes,
            p50_us: inner.latencies.value_at_quantile(0.50),
            p99_us: inner.latencies.value_at_quantile(0.99),
            max_us: inner.latencies.max(),
            errors: inner.errors,
            failures: inner.failures.clone(),
            not_resumed: inner.not_resumed,
            cpu_seconds,
            idle_share: (1.0 - cpu_seconds / seconds).max(0.0),
            alive: None,
        }
    }
}

/// User and system CPU of this process since it began.
fn own_cpu() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

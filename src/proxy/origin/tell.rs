//! What the log says when an address of an origin is left out, and when it is back.

use std::cell::RefCell;

use crate::registry::origins::ResolvedAddress;
use crate::telemetry::counters::{Counter, Limit, Shard};
use crate::telemetry::log::{Handle, Level};
use crate::telemetry::rate::TokenBucket;

/// Lines a worker may write at once: a large origin that fails as a whole is shown in full.
const BURST: u32 = 64;

/// Lines a second after that: an address that comes and goes does so once in a second at most, and its origin has more of
/// its kind.
const PER_SECOND: u32 = 2;

/// A worker's way to tell of its origins' addresses: rate-limited, never blocking.
#[derive(Debug)]
pub struct Tell {
    handle: Handle,
    worker: usize,
    bucket: RefCell<TokenBucket>,
}

impl Tell {
    /// For one worker. Time is of the clock that later calls bring.
    pub fn new(handle: Handle, worker: usize) -> Self {
        Self { handle, worker, bucket: RefCell::new(TokenBucket::new(BURST, PER_SECOND, 0)) }
    }

    /// An address is left out from now on.
    pub fn ejected(&self, origin: &str, address: &ResolvedAddress, cause: &'static str, now_us: u64, shard: &Shard) {
        self.event(Level::Warn, "origin_ejected", origin, address, Some(cause), now_us, shard);
    }

    /// It is no longer.
    pub fn came_back(&self, origin: &str, address: &ResolvedAddress, now_us: u64, shard: &Shard) {
        self.event(Level::Info, "origin_returned", origin, address, None, now_us, shard);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of a line")]
    fn event(
        &self,
        level: Level,
        event: &'static str,
        origin: &str,
        address: &ResolvedAddress,
        cause: Option<&'static str>,
        now_us: u64,
        shard: &Shard,
    ) {
        if !self.handle.enabled(level) {
            return;
        }
        if !self.bucket.borrow_mut().take(now_us) {
            return shard.count(Counter::Limit(Limit::LogLines));
        }
        let mut fields =
            vec![("origin", origin.into()), ("address", address.to_string().into()), ("worker", self.worker.into())];
        fields.extend(cause.map(|cause| ("cause", cause.into())));
        self.handle.event(level, event, fields);
    }
}

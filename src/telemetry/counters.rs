//! Counters and gauges, one shard a worker.
//!
//! A shard is written by its own worker only: an increment is a relaxed load and a relaxed store, never an atomic
//! read-modify-write, and no two workers share a cache line. The control plane sums the shards when someone asks.

use std::sync::atomic::{AtomicU64, Ordering};

pub use super::labels::{
    Ejection, GoAway, Limit, OriginConnect, OriginHandshake, Pool, Protocol, ProxyHeader, Redirect, Retry, StatusClass,
    StreamReset, TenantCache, Ticket, Timeout, TunnelEnd, Verified, Version,
};
use crate::policy::Refusal;

/// Everything a worker counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// `hostward_connections_total`.
    Connections,
    /// `hostward_handshakes_total{result="ok",version,resumed}`.
    HandshakeOk { version: Version, resumed: bool },
    /// `hostward_handshakes_total{result="refused"}` and `hostward_handshake_failures_total{reason}`.
    HandshakeRefused(Refusal),
    /// `hostward_handshake_aborts_total`: the client went away before the handshake ended.
    HandshakeAborted,
    /// `hostward_tickets_total{result}`.
    Ticket(Ticket),
    /// `hostward_client_auth_total{result="accepted"}`.
    ClientAccepted,
    /// `hostward_client_auth_total{result="none"}`: asked, and none was sent.
    ClientNone,
    /// `hostward_client_auth_total{result=<reason>}`, in `request` mode too.
    ClientRefused(Refusal),
    /// `hostward_bytes_total{direction="in"}`: plaintext bytes from client to origin.
    BytesIn,
    /// `hostward_bytes_total{direction="out"}`: plaintext bytes from origin to client.
    BytesOut,
    /// `hostward_tenant_cache_total{result}`.
    TenantCache(TenantCache),
    /// `hostward_client_chains_total{verified}`.
    Verified(Verified),
    /// `hostward_limit_reached_total{limit}`.
    Limit(Limit),
    /// `hostward_timeouts_total{timeout}`.
    Timeout(Timeout),
    /// `hostward_origin_connects_total{result}`.
    OriginConnect(OriginConnect),
    /// `hostward_origin_ejections_total{cause}`.
    Ejection(Ejection),
    /// `hostward_origin_panics_total`: an address was chosen although all were left out.
    OriginPanic,
    /// `hostward_origin_handshakes_total{kind}`.
    OriginHandshake(OriginHandshake),
    /// `hostward_tunnels_ended_total{end}`.
    TunnelEnd(TunnelEnd),
    /// `hostward_requests_total{protocol,status_class}`.
    Request(Protocol, StatusClass),
    /// `hostward_http2_goaways_total{code}`.
    GoAway(GoAway),
    /// `hostward_http2_resets_total{reason}`.
    StreamReset(StreamReset),
    /// `hostward_requests_refused_total{reason}`: requests we answered ourselves because of what the client sent.
    RequestRefused(Refusal),
    /// `hostward_origin_pool_total{result}`.
    Pool(Pool),
    /// `hostward_origin_retries_total{result}`.
    Retry(Retry),
    /// `hostward_redirects_total{result}`.
    Redirect(Redirect),
    /// `hostward_proxy_headers_total{result}`.
    ProxyHeader(ProxyHeader),
    /// `hostward_worker_turns_total`.
    Turns,
    /// `hostward_worker_busy_microseconds_total`: time the worker spent outside the kernel's wait.
    BusyMicros,
}

const HANDSHAKE_OK: usize = 1;
const HANDSHAKE_REFUSED: usize = HANDSHAKE_OK + 2 * Version::ALL.len();
const HANDSHAKE_ABORTED: usize = HANDSHAKE_REFUSED + Refusal::ALL.len();
const TICKET: usize = HANDSHAKE_ABORTED + 1;
const CLIENT_ACCEPTED: usize = TICKET + Ticket::ALL.len();
const CLIENT_REFUSED: usize = CLIENT_ACCEPTED + 2;
const BYTES_IN: usize = CLIENT_REFUSED + Refusal::ALL.len();
const TENANT_CACHE: usize = BYTES_IN + 2;
const VERIFIED: usize = TENANT_CACHE + TenantCache::ALL.len();
const LIMIT: usize = VERIFIED + Verified::ALL.len();
const TIMEOUT: usize = LIMIT + Limit::ALL.len();
const ORIGIN_CONNECT: usize = TIMEOUT + Timeout::ALL.len();
const EJECTION: usize = ORIGIN_CONNECT + OriginConnect::ALL.len();
const ORIGIN_PANIC: usize = EJECTION + Ejection::ALL.len();
const ORIGIN_HANDSHAKE: usize = ORIGIN_PANIC + 1;
const TUNNEL_END: usize = ORIGIN_HANDSHAKE + OriginHandshake::ALL.len();
const REQUEST: usize = TUNNEL_END + TunnelEnd::ALL.len();
const GOAWAY: usize = REQUEST + Protocol::ALL.len() * StatusClass::ALL.len();
const STREAM_RESET: usize = GOAWAY + GoAway::ALL.len();
const REQUEST_REFUSED: usize = STREAM_RESET + StreamReset::ALL.len();
const POOL: usize = REQUEST_REFUSED + Refusal::ALL.len();
const RETRY: usize = POOL + Pool::ALL.len();
const REDIRECT: usize = RETRY + Retry::ALL.len();
const PROXY_HEADER: usize = REDIRECT + Redirect::ALL.len();
const TURNS: usize = PROXY_HEADER + ProxyHeader::ALL.len();
const COUNTERS: usize = TURNS + 2;

impl Counter {
    /// Every counter once, grouped as the metrics text groups them.
    pub fn all() -> impl Iterator<Item = Self> {
        let handshakes = Version::ALL
            .iter()
            .flat_map(|&version| [false, true].map(|resumed| Self::HandshakeOk { version, resumed }));
        [Self::Connections]
            .into_iter()
            .chain(handshakes)
            .chain(Refusal::ALL.map(Self::HandshakeRefused))
            .chain([Self::HandshakeAborted])
            .chain(Ticket::ALL.iter().copied().map(Self::Ticket))
            .chain([Self::ClientAccepted, Self::ClientNone])
            .chain(Refusal::ALL.map(Self::ClientRefused))
            .chain([Self::BytesIn, Self::BytesOut])
            .chain(TenantCache::ALL.iter().copied().map(Self::TenantCache))
            .chain(Verified::ALL.iter().copied().map(Self::Verified))
            .chain(Limit::ALL.iter().copied().map(Self::Limit))
            .chain(Timeout::ALL.iter().copied().map(Self::Timeout))
            .chain(OriginConnect::ALL.iter().copied().map(Self::OriginConnect))
            .chain(Ejection::ALL.iter().copied().map(Self::Ejection))
            .chain([Self::OriginPanic])
            .chain(OriginHandshake::ALL.iter().copied().map(Self::OriginHandshake))
            .chain(TunnelEnd::ALL.iter().copied().map(Self::TunnelEnd))
            .chain(
                Protocol::ALL
                    .iter()
                    .flat_map(|&protocol| StatusClass::ALL.iter().map(move |&class| Self::Request(protocol, class))),
            )
            .chain(GoAway::ALL.iter().copied().map(Self::GoAway))
            .chain(StreamReset::ALL.iter().copied().map(Self::StreamReset))
            .chain(Refusal::ALL.map(Self::RequestRefused))
            .chain(Pool::ALL.iter().copied().map(Self::Pool))
            .chain(Retry::ALL.iter().copied().map(Self::Retry))
            .chain(Redirect::ALL.iter().copied().map(Self::Redirect))
            .chain(ProxyHeader::ALL.iter().copied().map(Self::ProxyHeader))
            .chain([Self::Turns, Self::BusyMicros])
    }

    /// The counter's place in a shard.
    const fn index(self) -> usize {
        match self {
            Self::Connections => 0,
            Self::HandshakeOk { version, resumed } => HANDSHAKE_OK + version as usize * 2 + resumed as usize,
            Self::HandshakeRefused(reason) => HANDSHAKE_REFUSED + reason as usize,
            Self::HandshakeAborted => HANDSHAKE_ABORTED,
            Self::Ticket(result) => TICKET + result as usize,
            Self::ClientAccepted => CLIENT_ACCEPTED,
            Self::ClientNone => CLIENT_ACCEPTED + 1,
            Self::ClientRefused(reason) => CLIENT_REFUSED + reason as usize,
            Self::BytesIn => BYTES_IN,
            Self::BytesOut => BYTES_IN + 1,
            Self::TenantCache(result) => TENANT_CACHE + result as usize,
            Self::Verified(result) => VERIFIED + result as usize,
            Self::Limit(limit) => LIMIT + limit as usize,
            Self::Timeout(timeout) => TIMEOUT + timeout as usize,
            Self::OriginConnect(result) => ORIGIN_CONNECT + result as usize,
            Self::Ejection(cause) => EJECTION + cause as usize,
            Self::OriginPanic => ORIGIN_PANIC,
            Self::OriginHandshake(kind) => ORIGIN_HANDSHAKE + kind as usize,
            Self::TunnelEnd(end) => TUNNEL_END + end as usize,
            Self::Request(protocol, class) => REQUEST + protocol as usize * StatusClass::ALL.len() + class as usize,
            Self::GoAway(code) => GOAWAY + code as usize,
            Self::StreamReset(reason) => STREAM_RESET + reason as usize,
            Self::RequestRefused(reason) => REQUEST_REFUSED + reason as usize,
            Self::Pool(result) => POOL + result as usize,
            Self::Retry(result) => RETRY + result as usize,
            Self::Redirect(result) => REDIRECT + result as usize,
            Self::ProxyHeader(result) => PROXY_HEADER + result as usize,
            Self::Turns => TURNS,
            Self::BusyMicros => TURNS + 1,
        }
    }
}

/// What a worker has now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Gauge {
    /// `hostward_connections_open`.
    Connections,
    /// `hostward_handshakes_open`: handshakes in progress.
    Handshakes,
    /// `hostward_tenants_cached`.
    Tenants,
    /// `hostward_worker_generation`: the registry generation the worker serves.
    Generation,
    /// `hostward_origin_connections_idle`: pooled connections.
    IdleOrigins,
    /// `hostward_origin_addresses_ejected`: addresses this worker leaves out because of what happened to exchanges.
    EjectedOrigins,
}

impl Gauge {
    /// Every gauge, in the order of the discriminants.
    pub const ALL: [Self; 6] =
        [Self::Connections, Self::Handshakes, Self::Tenants, Self::Generation, Self::IdleOrigins, Self::EjectedOrigins];
}

const GAUGES: usize = Gauge::ALL.len();

/// One worker's counters. Aligned to a pair of cache lines, which is what x86 prefetches together.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shard {
    counters: [AtomicU64; COUNTERS],
    gauges: [AtomicU64; GAUGES],
}

impl Default for Shard {
    fn default() -> Self {
        Self { counters: [const { AtomicU64::new(0) }; COUNTERS], gauges: [const { AtomicU64::new(0) }; GAUGES] }
    }
}

impl Shard {
    /// Adds to a counter. Only the owning worker calls this.
    pub fn add(&self, counter: Counter, n: u64) {
        let cell = &self.counters[counter.index()];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Adds one to a counter. Only the owning worker calls this.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Sets a gauge. Only the owning worker calls this.
    pub fn set(&self, gauge: Gauge, value: u64) {
        self.gauges[gauge as usize].store(value, Ordering::Relaxed);
    }

    /// Reads a counter; any thread.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter.index()].load(Ordering::Relaxed)
    }

    /// Reads a gauge; any thread.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.gauges[gauge as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNTERS, Counter, Gauge, Shard};

    #[test]
    fn every_place_of_a_shard_belongs_to_exactly_one_listed_counter() {
        let mut seen = vec![0; COUNTERS];
        for counter in Counter::all() {
            seen[counter.index()] += 1;
        }
        assert!(seen.iter().all(|&times| times == 1), "{seen:?}");
    }

    #[test]
    fn adding_touches_the_named_counter_only() {
        for counter in Counter::all() {
            let shard = Shard::default();
            shard.count(counter);
            shard.add(counter, 2);
            for other in Counter::all() {
                assert_eq!(shard.get(other), if other == counter { 3 } else { 0 }, "{counter:?}, {other:?}");
            }
        }
    }

    #[test]
    fn gauges_index_their_list() {
        let shard = Shard::default();
        for (index, gauge) in Gauge::ALL.into_iter().enumerate() {
            assert_eq!(gauge as usize, index);
            shard.set(gauge, index as u64 + 7);
        }
        assert!(Gauge::ALL.iter().enumerate().all(|(index, &gauge)| shard.gauge(gauge) == index as u64 + 7));
    }
}

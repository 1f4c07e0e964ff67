//! The metrics text: every counter, gauge and histogram under the name people know it by.
//!
//! For the admin server, which gathers [`Sources`] and answers a scrape with [`render`]. Label sets are closed: a scrape
//! has the same series whatever clients do, so that no client can grow it.

use std::sync::Arc;

use super::counters::{Counter, Gauge, Limit, Shard};
use super::exposition::{Exposition, Family, Label};
use super::histograms::Histograms;
use super::log::access::Counts;

/// Everything a scrape shows.
#[derive(Debug)]
pub struct Sources<'a> {
    /// One a worker.
    pub shards: &'a [Arc<Shard>],
    /// The share of the last seconds each worker was busy, 0 to 1.
    pub busy_ratios: &'a [f64],
    /// All workers' times.
    pub histograms: &'a Histograms,
    pub control: &'a ControlMetrics,
    pub process: Process,
}

/// What the control plane counts itself.
#[derive(Clone, Debug, Default)]
pub struct ControlMetrics {
    /// Reloads that took effect.
    pub reloads_ok: u64,
    /// Reloads that were refused and changed nothing.
    pub reloads_failed: u64,
    /// Whether the last load, the first included, took effect.
    pub last_reload_ok: bool,
    /// Hand-overs this process took over by: 0 or 1.
    pub handovers_ok: u64,
    /// Hand-overs this process began that changed nothing.
    pub handovers_failed: u64,
    pub hostnames: u64,
    pub generation: u64,
    /// The earliest notAfter of all server certificates, seconds since the Unix epoch; `None` without certificates.
    pub certificate_min_not_after_unix_s: Option<i64>,
    /// Origin names that did not resolve at the last try.
    pub origins_unresolved: u64,
    /// Addresses of origins whose checks pass, or have not been made.
    pub addresses_up: u64,
    /// Addresses of origins whose checks fail.
    pub addresses_down: u64,
    /// Log lines the control plane dropped because the queue was full.
    pub log_dropped: u64,
    /// What the access log has counted.
    pub access_log: Counts,
    /// The crypto provider's name.
    pub provider: &'static str,
}

/// What the kernel says about this process; a field is `None` where /proc does not tell.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub resident_bytes: Option<u64>,
    pub open_fds: Option<u64>,
    pub max_fds: Option<u64>,
    /// User and system time since start, microseconds.
    pub cpu_us: Option<u64>,
    pub start_unix_s: Option<u64>,
}

const CONNECTIONS: Family = Family { name: "hostward_connections_total", help: "Connections accepted." };
const HANDSHAKES: Family = Family { name: "hostward_handshakes_total", help: "TLS handshakes that ended, by result." };
const FAILURES: Family = Family { name: "hostward_handshake_failures_total", help: "Clients refused, by reason." };
const ABORTS: Family =
    Family { name: "hostward_handshake_aborts_total", help: "Clients that went away before the handshake ended." };
const TICKETS: Family =
    Family { name: "hostward_tickets_total", help: "Session tickets minted, honoured or declined." };
const CLIENT_AUTH: Family =
    Family { name: "hostward_client_auth_total", help: "Verdicts on client certificates, resumed sessions excluded." };
const BYTES: Family =
    Family { name: "hostward_bytes_total", help: "Plaintext bytes forwarded; in is towards the origin." };
const TENANT_CACHE: Family =
    Family { name: "hostward_tenant_cache_total", help: "Hostname look-ups in the workers' caches, and evictions." };
const CLIENT_CHAINS: Family = Family {
    name: "hostward_client_chains_total",
    help: "Client chains verified, anew or remembered from before; the client's own signature is always checked.",
};
const LIMITS: Family = Family { name: "hostward_limit_reached_total", help: "Times a limit was reached, by limit." };
const TIMEOUTS: Family = Family { name: "hostward_timeouts_total", help: "Time limits that ended something." };
const ORIGIN_CONNECTS: Family =
    Family { name: "hostward_origin_connects_total", help: "Attempts to reach an origin, by result." };
const EJECTIONS: Family = Family {
    name: "hostward_origin_ejections_total",
    help: "Addresses of origins that a worker left out, failed trials included, by cause.",
};
const PANICS: Family = Family {
    name: "hostward_origin_panics_total",
    help: "Exchanges sent to an address although all of its origin were left out or down.",
};
const ORIGIN_HANDSHAKES: Family = Family {
    name: "hostward_origin_handshakes_total",
    help: "TLS handshakes with origins that succeeded, in full or resumed.",
};
const TUNNELS_ENDED: Family =
    Family { name: "hostward_tunnels_ended_total", help: "Established connections that ended, by the way they did." };
const REQUESTS: Family =
    Family { name: "hostward_requests_total", help: "HTTP requests that ended, by the class of their status." };
const REQUESTS_REFUSED: Family =
    Family { name: "hostward_requests_refused_total", help: "HTTP requests refused, by reason." };
const POOL: Family = Family {
    name: "hostward_origin_pool_total",
    help: "Where requests found their origin connection, and what became of it afterwards.",
};
const RETRIES: Family = Family {
    name: "hostward_origin_retries_total",
    help: "Requests that might be sent again to their origin, by what became of that.",
};
const GOAWAYS: Family =
    Family { name: "hostward_http2_goaways_total", help: "HTTP/2 connections we ended with GOAWAY, by its code." };
const STREAM_RESETS: Family = Family {
    name: "hostward_http2_resets_total",
    help: "HTTP/2 streams that were reset before they were whole, by reason.",
};
const REDIRECTS: Family =
    Family { name: "hostward_redirects_total", help: "Requests over plain HTTP, by what they were answered." };
const PROXY_HEADERS: Family = Family {
    name: "hostward_proxy_headers_total",
    help: "PROXY protocol headers that peers sent or should have sent, by what became of them.",
};
const TURNS: Family = Family { name: "hostward_worker_turns_total", help: "Turns of a worker's loop." };
const BUSY: Family = Family {
    name: "hostward_worker_busy_microseconds_total",
    help: "Time a worker spent outside the kernel's wait, in microseconds.",
};

const CONNECTIONS_OPEN: Family = Family { name: "hostward_connections_open", help: "Client connections open." };
const HANDSHAKES_OPEN: Family = Family { name: "hostward_handshakes_open", help: "TLS handshakes in progress." };
const TENANTS_CACHED: Family =
    Family { name: "hostward_tenants_cached", help: "Hostnames assembled in workers' caches." };
const WORKER_GENERATION: Family =
    Family { name: "hostward_worker_generation", help: "The registry generation a worker serves." };

const EJECTED_ORIGINS: Family = Family {
    name: "hostward_origin_addresses_ejected",
    help: "Addresses of origins that workers leave out because connections or exchanges failed, all workers together.",
};
const IDLE_ORIGINS: Family =
    Family { name: "hostward_origin_connections_idle", help: "Origin connections kept for the next request." };

const REQUEST_SECONDS: Family = Family {
    name: "hostward_request_seconds",
    help: "From the first byte of a request to the last byte of its response, sent to the client.",
};
const ORIGIN_SECONDS: Family = Family {
    name: "hostward_origin_seconds",
    help: "From a request judged to the first byte of its response, connecting included.",
};
const HANDSHAKE_SECONDS: Family =
    Family { name: "hostward_handshake_seconds", help: "From accept to the end of the TLS handshake." };
const CONNECT_SECONDS: Family =
    Family { name: "hostward_origin_connect_seconds", help: "From the first attempt to a connected origin." };
const TURN_SECONDS: Family =
    Family { name: "hostward_worker_turn_seconds", help: "One turn of a worker's loop, its wait excluded." };

const BUSY_RATIO: Family =
    Family { name: "hostward_worker_busy_ratio", help: "The share of the last seconds a worker was busy, 0 to 1." };
const RELOADS: Family = Family { name: "hostward_config_reload_total", help: "Configuration reloads, by result." };
const HANDOVERS: Family = Family {
    name: "hostward_handovers_total",
    help: "Hand-overs: ok where this process took over, failed where a successor did not.",
};
const LAST_RELOAD: Family = Family {
    name: "hostward_config_last_reload_success",
    help: "Whether the last load of the configuration took effect.",
};
const MIN_NOT_AFTER: Family = Family {
    name: "hostward_certificate_min_not_after_seconds",
    help: "When the first server certificate expires, seconds since the Unix epoch.",
};
const HOSTNAMES: Family = Family { name: "hostward_registry_hostnames", help: "Hostnames served." };
const GENERATION: Family =
    Family { name: "hostward_registry_generation", help: "The registry generation published last." };
const UNRESOLVED: Family =
    Family { name: "hostward_origins_unresolved", help: "Origin names that did not resolve at the last try." };
const ADDRESSES: Family = Family {
    name: "hostward_origin_addresses",
    help: "Addresses of origins that are checked, by what the checks say.",
};
const LOG_DROPPED: Family =
    Family { name: "hostward_log_lines_dropped_total", help: "Log lines that were not written, by log." };
const LOG_WRITE_ERRORS: Family =
    Family { name: "hostward_log_write_errors_total", help: "Writes to a log that failed, by log." };
const LOG_REOPENS: Family =
    Family { name: "hostward_log_reopens_total", help: "Times a log file was to be opened again, by result." };
const BUILD_INFO: Family = Family { name: "hostward_build_info", help: "Version and crypto provider; always 1." };
const RESIDENT: Family = Family { name: "process_resident_memory_bytes", help: "Resident memory size in bytes." };
const OPEN_FDS: Family = Family { name: "process_open_fds", help: "Open file descriptors." };
const MAX_FDS: Family = Family { name: "process_max_fds", help: "Limit on open file descriptors." };
const CPU: Family = Family { name: "process_cpu_seconds_total", help: "User and system CPU time in seconds." };
const START: Family =
    Family { name: "process_start_time_seconds", help: "Start time of the process, seconds since the Unix epoch." };

/// Upper bounds of the histograms of network work, in microseconds: a handshake without a client certificate takes
/// about 100 us on an idle machine, and a client over a bad line ten seconds.
const NETWORK_BOUNDS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Upper bounds for turns of the loop, in microseconds: an idle turn takes about ten, one turn's budget of handshakes
/// several hundred, and beyond 10 ms something is wrong.
const TURN_BOUNDS_US: [u64; 12] = [10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000];

/// The family and labels under which a counter is shown. Exhaustive: a counter without a place does not compile.
fn describe(counter: Counter) -> (&'static Family, Vec<Label<'static>>) {
    match counter {
        Counter::Connections => (&CONNECTIONS, vec![]),
        Counter::HandshakeOk { version, resumed } => {
            let resumed = if resumed { "true" } else { "false" };
            (&HANDSHAKES, vec![("result", "ok"), ("version", version.label()), ("resumed", resumed)])
        }
        Counter::HandshakeRefused(reason) => (&FAILURES, vec![("reason", reason.label())]),
        Counter::HandshakeAborted => (&ABORTS, vec![]),
        Counter::Ticket(result) => (&TICKETS, vec![("result", result.label())]),
        Counter::ClientAccepted => (&CLIENT_AUTH, vec![("result", "accepted")]),
        Counter::ClientNone => (&CLIENT_AUTH, vec![("result", "none")]),
        Counter::ClientRefused(reason) => (&CLIENT_AUTH, vec![("result", reason.label())]),
        Counter::BytesIn => (&BYTES, vec![("direction", "in"), ("path", "user")]),
        Counter::BytesOut => (&BYTES, vec![("direction", "out"), ("path", "user")]),
        Counter::TenantCache(result) => (&TENANT_CACHE, vec![("result", result.label())]),
        Counter::Verified(result) => (&CLIENT_CHAINS, vec![("verified", result.label())]),
        Counter::Limit(limit) => (&LIMITS, vec![("limit", limit.label())]),
        Counter::Timeout(timeout) => (&TIMEOUTS, vec![("timeout", timeout.label())]),
        Counter::OriginConnect(result) => (&ORIGIN_CONNECTS, vec![("result", result.label())]),
        Counter::Ejection(cause) => (&EJECTIONS, vec![("cause", cause.label())]),
        Counter::OriginPanic => (&PANICS, vec![]),
        Counter::OriginHandshake(kind) => (&ORIGIN_HANDSHAKES, vec![("kind", kind.label())]),
        Counter::TunnelEnd(end) => (&TUNNELS_ENDED, vec![("end", end.label())]),
        Counter::Request(protocol, class) => {
            (&REQUESTS, vec![("protocol", protocol.label()), ("status_class", class.label())])
        }
        Counter::GoAway(code) => (&GOAWAYS, vec![("code", code.label())]),
        Counter::StreamReset(reason) => (&STREAM_RESETS, vec![("reason", reason.label())]),
        Counter::RequestRefused(reason) => (&REQUESTS_REFUSED, vec![("reason", reason.label())]),
        Counter::Pool(result) => (&POOL, vec![("result", result.label())]),
        Counter::Retry(result) => (&RETRIES, vec![("result", result.label())]),
        Counter::Redirect(result) => (&REDIRECTS, vec![("result", result.label())]),
        Counter::ProxyHeader(result) => (&PROXY_HEADERS, vec![("result", result.label())]),
        Counter::Turns => (&TURNS, vec![]),
        Counter::BusyMicros => (&BUSY, vec![]),
    }
}

/// The family of a gauge, and whether each worker's is shown on its own instead of their sum.
fn describe_gauge(gauge: Gauge) -> (&'static Family, bool) {
    match gauge {
        Gauge::Connections => (&CONNECTIONS_OPEN, false),
        Gauge::Handshakes => (&HANDSHAKES_OPEN, false),
        Gauge::Tenants => (&TENANTS_CACHED, false),
        Gauge::Generation => (&WORKER_GENERATION, true),
        Gauge::IdleOrigins => (&IDLE_ORIGINS, false),
        Gauge::EjectedOrigins => (&EJECTED_ORIGINS, false),
    }
}

/// Writes the whole text.
pub fn render(sources: &Sources<'_>) -> String {
    let mut text = Exposition::default();
    counters(&mut text, sources);
    gauges(&mut text, sources);
    let histograms = sources.histograms;
    text.histogram(&HANDSHAKE_SECONDS, &NETWORK_BOUNDS_US, &histograms.handshake);
    text.histogram(&CONNECT_SECONDS, &NETWORK_BOUNDS_US, &histograms.origin_connect);
    text.histogram(&REQUEST_SECONDS, &NETWORK_BOUNDS_US, &histograms.request);
    text.histogram(&ORIGIN_SECONDS, &NETWORK_BOUNDS_US, &histograms.origin);
    text.histogram(&TURN_SECONDS, &TURN_BOUNDS_US, &histograms.turn);
    control(&mut text, sources.control);
    process(&mut text, sources.process);
    text.finish()
}

fn counters(text: &mut Exposition, sources: &Sources<'_>) {
    let sum = |counter| sources.shards.iter().map(|shard| shard.get(counter)).sum::<u64>();
    let mut open: Option<&'static Family> = None;
    for counter in Counter::all() {
        let (family, labels) = describe(counter);
        if open.is_none_or(|open| open.name != family.name) {
            text.counter(family);
            open = Some(family);
            if family.name == HANDSHAKES.name {
                let refused = crate::policy::Refusal::ALL.map(|reason| sum(Counter::HandshakeRefused(reason)));
                text.sample(family, &[("result", "refused")], refused.iter().sum::<u64>());
            }
        }
        match counter {
            Counter::Turns | Counter::BusyMicros => {
                for (worker, shard) in sources.shards.iter().enumerate() {
                    text.sample(family, &[("worker", &worker.to_string())], shard.get(counter));
                }
            }
            Counter::Limit(Limit::LogQueue) => text.sample(family, &labels, sum(counter) + sources.control.log_dropped),
            _ => text.sample(family, &labels, sum(counter)),
        }
    }
}

fn gauges(text: &mut Exposition, sources: &Sources<'_>) {
    for gauge in Gauge::ALL {
        let (family, by_worker) = describe_gauge(gauge);
        text.gauge(family);
        if by_worker {
            for (worker, shard) in sources.shards.iter().enumerate() {
                text.sample(family, &[("worker", &worker.to_string())], shard.gauge(gauge));
            }
        } else {
            text.sample(family, &[], sources.shards.iter().map(|shard| shard.gauge(gauge)).sum::<u64>());
        }
    }
    text.gauge(&BUSY_RATIO);
    for (worker, ratio) in sources.busy_ratios.iter().enumerate() {
        text.sample(&BUSY_RATIO, &[("worker", &worker.to_string())], ratio);
    }
}

fn control(text: &mut Exposition, control: &ControlMetrics) {
    text.counter(&RELOADS);
    text.sample(&RELOADS, &[("result", "ok")], control.reloads_ok);
    text.sample(&RELOADS, &[("result", "failed")], control.reloads_failed);
    text.counter(&HANDOVERS);
    text.sample(&HANDOVERS, &[("result", "ok")], control.handovers_ok);
    text.sample(&HANDOVERS, &[("result", "failed")], control.handovers_failed);
    text.single_gauge(&LAST_RELOAD, u8::from(control.last_reload_ok));
    if let Some(not_after) = control.certificate_min_not_after_unix_s {
        text.single_gauge(&MIN_NOT_AFTER, not_after);
    }
    text.single_gauge(&HOSTNAMES, control.hostnames);
    text.single_gauge(&GENERATION, control.generation);
    text.single_gauge(&UNRESOLVED, control.origins_unresolved);
    text.gauge(&ADDRESSES);
    text.sample(&ADDRESSES, &[("state", "up")], control.addresses_up);
    text.sample(&ADDRESSES, &[("state", "down")], control.addresses_down);
    let access = control.access_log;
    text.counter(&LOG_DROPPED);
    text.sample(&LOG_DROPPED, &[("log", "access")], access.dropped);
    text.counter(&LOG_WRITE_ERRORS);
    text.sample(&LOG_WRITE_ERRORS, &[("log", "access")], access.write_errors);
    text.counter(&LOG_REOPENS);
    text.sample(&LOG_REOPENS, &[("result", "ok")], access.reopened);
    text.sample(&LOG_REOPENS, &[("result", "failed")], access.reopen_failed);
    text.gauge(&BUILD_INFO);
    text.sample(&BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION")), ("provider", control.provider)], 1);
}

fn process(text: &mut Exposition, process: Process) {
    let gauges = [
        (&RESIDENT, process.resident_bytes),
        (&OPEN_FDS, process.open_fds),
        (&MAX_FDS, process.max_fds),
        (&START, process.start_unix_s),
    ];
    for (family, value) in gauges {
        if let Some(value) = value {
            text.single_gauge(family, value);
        }
    }
    if let Some(us) = process.cpu_us {
        text.counter(&CPU);
        text.sample(&CPU, &[], std::time::Duration::from_micros(us).as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::strict;
    use super::{ControlMetrics, Counter, Gauge, Histograms, Process, Shard, Sources, describe, render};
    use crate::policy::Refusal;
    use std::sync::Arc;

    fn scrape(shards: &[Arc<Shard>], histograms: &Histograms) -> strict::Parsed {
        let control = ControlMetrics {
            reloads_failed: 2,
            certificate_min_not_after_unix_s: Some(1_900_000_000),
            hostnames: 2,
            provider: "aws-lc-rs",
            log_dropped: 5,
            ..ControlMetrics::default()
        };
        let process = Process { resident_bytes: Some(1 << 20), cpu_us: Some(1_500_000), ..Process::default() };
        let sources = Sources { shards, busy_ratios: &[0.25, 0.5], histograms, control: &control, process };
        strict::parse(&render(&sources)).unwrap()
    }

    #[test]
    fn every_counter_has_a_series_of_its_own_and_shows_its_sum() {
        let none = scrape(&[Arc::default(), Arc::default()], &Histograms::default());
        for (index, counter) in Counter::all().enumerate() {
            let shards = [Arc::new(Shard::default()), Arc::new(Shard::default())];
            shards[0].add(counter, 1_000 + index as u64);
            shards[1].add(counter, 2_000);
            let some = scrape(&shards, &Histograms::default());
            let changed: Vec<_> =
                some.samples.iter().filter(|(series, value)| none.samples[*series] != **value).collect();
            let expected = match counter {
                Counter::Turns | Counter::BusyMicros => 2,
                Counter::HandshakeRefused(_) => 2,
                _ => 1,
            };
            assert_eq!(changed.len(), expected, "{counter:?}: {changed:?}");
            let grown: f64 = changed.iter().map(|(series, value)| *value - none.samples[*series]).sum();
            let added = (3_000 + index) as f64;
            let wanted = if matches!(counter, Counter::HandshakeRefused(_)) { 2.0 * added } else { added };
            assert_eq!(grown, wanted, "{counter:?}");
            assert!(changed.iter().any(|(series, _)| series.starts_with(describe(counter).0.name)));
        }
    }

    #[test]
    fn names_people_rely_on_are_there() {
        let shards = [Arc::new(Shard::default()), Arc::new(Shard::default())];
        shards[0].count(Counter::HandshakeRefused(Refusal::UnknownCa));
        shards[0].set(Gauge::Connections, 3);
        shards[1].set(Gauge::Connections, 4);
        shards[1].set(Gauge::Generation, 9);
        let mut histograms = Histograms::default();
        histograms.handshake.record_us(400);
        let parsed = scrape(&shards, &histograms);
        for (series, value) in [
            ("hostward_connections_open", 7.0),
            ("hostward_handshakes_total{result=\"refused\"}", 1.0),
            ("hostward_handshakes_total{result=\"ok\",version=\"1.3\",resumed=\"true\"}", 0.0),
            ("hostward_handshake_failures_total{reason=\"unknown_ca\"}", 1.0),
            ("hostward_tickets_total{result=\"minted\"}", 0.0),
            ("hostward_client_auth_total{result=\"accepted\"}", 0.0),
            ("hostward_bytes_total{direction=\"out\",path=\"user\"}", 0.0),
            ("hostward_tenant_cache_total{result=\"negative\"}", 0.0),
            ("hostward_limit_reached_total{limit=\"log_queue\"}", 5.0),
            ("hostward_handshake_seconds_bucket{le=\"0.00025\"}", 0.0),
            ("hostward_handshake_seconds_bucket{le=\"0.0005\"}", 1.0),
            ("hostward_handshake_seconds_count", 1.0),
            ("hostward_worker_generation{worker=\"1\"}", 9.0),
            ("hostward_worker_busy_ratio{worker=\"1\"}", 0.5),
            ("hostward_registry_hostnames", 2.0),
            ("hostward_registry_generation", 0.0),
            ("hostward_config_reload_total{result=\"failed\"}", 2.0),
            ("hostward_config_last_reload_success", 0.0),
            ("hostward_certificate_min_not_after_seconds", 1_900_000_000.0),
            ("process_resident_memory_bytes", 1_048_576.0),
            ("process_cpu_seconds_total", 1.5),
        ] {
            assert_eq!(parsed.samples.get(series), Some(&value), "{series}");
        }
    }
}

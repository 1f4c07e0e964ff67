//! From a configuration to workers: how many, where, with which settings; and what a reload cannot change. Pure.

use crate::config::{self, Config, Workers};
use crate::proxy::http1::HeadLimits;
use crate::telemetry::log::Level;
use crate::telemetry::log::access::Target;
use crate::worker::{HttpLimits, WorkerConfig};

/// One configuration a worker.
///
/// Workers are pinned one to a CPU. More workers than CPUs are not pinned at all: two on one CPU would wait for each
/// other while the scheduler could do better.
///
/// # Errors
/// Says which CPU of `server.cpus` this process may not use.
pub fn workers(config: &Config, allowed_cpus: &[usize], open_files: Option<u64>) -> Result<Vec<WorkerConfig>, String> {
    let cpus = config.server.cpus.as_deref().unwrap_or(allowed_cpus);
    if let Some(cpu) = cpus.iter().find(|cpu| !allowed_cpus.contains(cpu)) {
        let allowed = allowed_cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        return Err(format!(
            "server.cpus names CPU {cpu}, which this process may not use (allowed: {allowed}); change server.cpus, or \
             the affinity it is started with (taskset, CPUAffinity= in the unit)"
        ));
    }
    let count = match config.server.workers {
        Workers::Auto => cpus.len().max(1),
        Workers::Count(count) => count,
    };
    let pinned = count <= cpus.len();
    let within = connections_within(open_files, count, config.server.listen.len() + config.server.redirect.len());
    let connections_max = config.limits.connections_per_worker.min(within);
    // By the descriptors there are, not by what the configuration makes of them: who allows few connections means few
    // clients, and not few requests of each.
    let extra_streams_max = (within / CONNECTIONS_PER_EXTRA).max(EXTRA_STREAMS_MIN);
    let plan = |index| {
        let cpu = cpus.get(index).copied().filter(|_| pinned);
        WorkerConfig { connections_max, extra_streams_max, ..worker(config, index, cpu) }
    };
    Ok((0..count).map(plan).collect())
}

/// Descriptors kept for what is not a client: rings, the admin server's 2 x 64 connections, 64 checks of origins, files of a
/// reload.
const DESCRIPTORS_RESERVED: u64 = 256;

/// Descriptors for each listener: the worker's, and the control plane's, which a successor is given.
const DESCRIPTORS_PER_LISTENER: u64 = 2;

/// For so many connections a worker may have there is one descriptor more, for a stream of HTTP/2 beyond the first of its
/// connection. With two, a fifth of the descriptors goes to such streams, and connections are four fifths of what they would
/// be without them.
const CONNECTIONS_PER_EXTRA: usize = 2;

/// Two hostnames with one such stream each, however few descriptors there are.
const EXTRA_STREAMS_MIN: usize = 2;

/// How many client connections a worker may have so that the process never runs out of descriptors: each takes two, its own
/// and its origin's, and further streams of HTTP/2 one for each [`CONNECTIONS_PER_EXTRA`] connections. Otherwise a flood would
/// keep reloads from reading their files, and so withdrawn clients in.
fn connections_within(open_files: Option<u64>, workers: usize, addresses: usize) -> usize {
    let Some(open_files) = open_files else { return usize::MAX };
    let reserved = DESCRIPTORS_RESERVED + DESCRIPTORS_PER_LISTENER * (workers * addresses) as u64;
    // A very small limit is split in half.
    let for_clients = open_files.saturating_sub(reserved).max(open_files / 2);
    let extra = CONNECTIONS_PER_EXTRA as u64;
    let connections = for_clients * extra / (2 * extra + 1);
    usize::try_from(connections).unwrap_or(usize::MAX).div_euclid(workers.max(1)).max(1)
}

/// What the configuration says of a worker; how many connections and streams it may have is up to the caller.
fn worker(config: &Config, index: usize, cpu: Option<usize>) -> WorkerConfig {
    let Config { tls, limits, cache, .. } = config;
    WorkerConfig {
        index,
        cpu,
        provider: tls.provider,
        groups: tls.groups.iter().map(|group| group.name().to_owned()).collect(),
        // The configuration has applied `tls.cipher_suites` to every record, so that a reload may change it.
        cipher_suites: Vec::new(),
        tickets: tls.tickets,
        ticket_lifetime: tls.ticket_lifetime,
        connections_max: limits.connections_per_worker,
        extra_streams_max: EXTRA_STREAMS_MIN,
        handshakes_max: limits.handshakes_per_worker,
        handshake_timeout: limits.handshake_timeout,
        tunnel_timeout: limits.tunnel_timeout,
        drain_timeout: limits.drain_timeout,
        trusted_proxies: config.server.trusted_proxies.clone(),
        proxy_protocol_from: config.server.proxy_protocol_from.clone(),
        trace_sampling: config.server.trace_sampling,
        http: HttpLimits {
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            head: HeadLimits { bytes_max: limits.header_bytes, fields_max: limits.headers },
            body_bytes_max: limits.body_bytes,
            min_body_rate: limits.min_body_rate,
            http2_streams_max: limits.http2_streams,
            http2_window_bytes: limits.http2_window,
        },
        tenants_bytes_max: usize::try_from(cache.tenants_per_worker).unwrap_or(usize::MAX),
        misses_max: cache.misses_per_worker,
        // What is still unknown here is the port of the first listener, once it is open.
        https_port: config.server.redirect_port,
    }
}

/// The log's level.
pub fn log_level(level: config::LogLevel) -> Level {
    match level {
        config::LogLevel::Error => Level::Error,
        config::LogLevel::Warn => Level::Warn,
        config::LogLevel::Info => Level::Info,
        config::LogLevel::Debug => Level::Debug,
    }
}

/// Where the access log goes.
pub fn access_target(access: &config::Access) -> Target {
    match access {
        config::Access::Off => Target::Off,
        config::Access::Stdout => Target::Stdout,
        config::Access::File(path) => Target::File(path.clone()),
    }
}

/// The keys that differ and are fixed for the life of the process: a reload that changes one is refused whole, because
/// a configuration that is half in force is worse than the old one (DECISIONS 32).
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let (tls, limits, cache) = (&old.tls, &old.limits, &old.cache);
    let changed = [
        ("server.listen", old.server.listen != new.server.listen),
        ("server.workers", old.server.workers != new.server.workers),
        ("server.cpus", old.server.cpus != new.server.cpus),
        ("server.redirect", old.server.redirect != new.server.redirect),
        ("server.redirect_port", old.server.redirect_port != new.server.redirect_port),
        ("server.state_dir", old.server.state_dir != new.server.state_dir),
        ("server.proxy_protocol_from", old.server.proxy_protocol_from != new.server.proxy_protocol_from),
        ("server.trusted_proxies", old.server.trusted_proxies != new.server.trusted_proxies),
        ("server.trace_sampling", old.server.trace_sampling != new.server.trace_sampling),
        ("admin.socket", old.admin.socket != new.admin.socket),
        ("admin.listen", old.admin.listen != new.admin.listen),
        ("tls.provider", tls.provider != new.tls.provider),
        // What follows is part of each worker's own state since its start.
        ("tls.groups", tls.groups != new.tls.groups),
        ("tls.tickets", tls.tickets != new.tls.tickets),
        ("tls.ticket_lifetime", tls.ticket_lifetime != new.tls.ticket_lifetime),
        ("limits.connections_per_worker", limits.connections_per_worker != new.limits.connections_per_worker),
        ("limits.handshakes_per_worker", limits.handshakes_per_worker != new.limits.handshakes_per_worker),
        ("limits.handshake_timeout", limits.handshake_timeout != new.limits.handshake_timeout),
        ("limits.tunnel_timeout", limits.tunnel_timeout != new.limits.tunnel_timeout),
        ("limits.drain_timeout", limits.drain_timeout != new.limits.drain_timeout),
        ("limits.header_timeout", limits.header_timeout != new.limits.header_timeout),
        ("limits.idle_timeout", limits.idle_timeout != new.limits.idle_timeout),
        ("limits.header_bytes", limits.header_bytes != new.limits.header_bytes),
        ("limits.headers", limits.headers != new.limits.headers),
        ("limits.body_bytes", limits.body_bytes != new.limits.body_bytes),
        ("limits.min_body_rate", limits.min_body_rate != new.limits.min_body_rate),
        ("cache.tenants_per_worker", cache.tenants_per_worker != new.cache.tenants_per_worker),
        ("cache.misses_per_worker", cache.misses_per_worker != new.cache.misses_per_worker),
    ];
    changed.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Access, Admin, Cache, Group, Limits, Log, LogLevel, Server, Tls};
    use crate::registry::TlsVersion;
    use crate::tls::Provider;
    use std::time::Duration;

    /// A configuration with nothing to serve, for the tests of this room.
    pub fn config() -> Config {
        let second = Duration::from_secs(1);
        Config {
            files: vec![],
            server: Server {
                listen: vec!["127.0.0.1:0".parse().unwrap()],
                workers: Workers::Auto,
                cpus: None,
                state_dir: "state".into(),
                trusted_proxies: vec![],
                proxy_protocol_from: vec![],
                trace_sampling: None,
                redirect: vec![],
                redirect_port: None,
            },
            admin: Admin { socket: "admin.sock".into(), listen: None },
            tls: Tls {
                provider: Provider::AwsLcRs,
                min_version: TlsVersion::V1_2,
                groups: Group::ALL.to_vec(),
                cipher_suites: vec![],
                tickets: true,
                ticket_lifetime: 3600 * second,
            },
            limits: Limits {
                connections_per_worker: 1,
                handshakes_per_worker: 1,
                handshake_timeout: second,
                drain_timeout: second,
                tunnel_timeout: second,
                header_timeout: second,
                idle_timeout: second,
                header_bytes: 1,
                headers: 1,
                body_bytes: None,
                min_body_rate: None,
                http2_streams: 1,
                http2_window: 65_535,
            },
            cache: Cache { tenants_per_worker: 1, misses_per_worker: 1 },
            log: Log { level: LogLevel::Info, access: Access::Off },
            origins: vec![],
            hostnames: vec![],
            warnings: vec![],
        }
    }

    fn cpus(config: &Config, allowed: &[usize]) -> Vec<Option<usize>> {
        workers(config, allowed, None).unwrap().iter().map(|worker| worker.cpu).collect()
    }

    #[test]
    fn a_worker_for_each_cpu_pinned_to_it() {
        let mut config = config();
        assert_eq!(cpus(&config, &[1, 3]), [Some(1), Some(3)]);
        config.server.cpus = Some(vec![3]);
        assert_eq!(cpus(&config, &[1, 3]), [Some(3)]);
        config.server.workers = Workers::Count(1);
        config.server.cpus = None;
        assert_eq!(cpus(&config, &[1, 3]), [Some(1)]);
        config.server.workers = Workers::Count(3);
        assert_eq!(cpus(&config, &[1, 3]), [None; 3]);
        config.server.cpus = Some(vec![2]);
        assert!(workers(&config, &[1, 3], None).unwrap_err().contains("CPU 2"));
    }

    #[test]
    fn what_needs_a_restart_is_named_and_the_rest_is_not() {
        let old = config();
        let mut new = config();
        new.log.level = LogLevel::Debug;
        new.log.access = Access::Stdout;
        new.tls.cipher_suites = vec!["TLS13_AES_128_GCM_SHA256".into()];
        assert!(needs_restart(&old, &new).is_empty());
        new.server.listen.push("127.0.0.1:1".parse().unwrap());
        new.tls.provider = Provider::Ring;
        new.admin.listen = Some("127.0.0.1:2".parse().unwrap());
        assert_eq!(needs_restart(&old, &new), ["server.listen", "admin.listen", "tls.provider"]);
    }

    #[test]
    fn clients_never_take_the_last_descriptors() {
        assert_eq!(connections_within(None, 4, 1), usize::MAX);
        assert_eq!(connections_within(Some(20_264), 2, 2), 4_000);
        for (open_files, workers) in [(80, 1), (300, 1), (1024, 2), (65_536, 8)] {
            let connections = workers * connections_within(Some(open_files), workers, 1);
            let taken = 2 * connections + connections / CONNECTIONS_PER_EXTRA;
            assert!(taken as u64 <= open_files - open_files.min(2 * DESCRIPTORS_RESERVED) / 2, "{open_files}: {taken}");
        }
        assert_eq!(connections_within(Some(1), 8, 1), 1);
    }
}

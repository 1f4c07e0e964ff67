//! `[server]`, `[admin]`, `[limits]`, `[cache]` and `[log]`.
//!
//! A limit's lower bound is the smallest value with which the thing still works, its upper bound the largest that is not
//! surely a slip; both are generous. Zero never means "unlimited".

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::reader::{Table, Value, quote, with_suggestion};
use crate::config::types::{Access, Admin, Cache, Limits, Log, LogLevel, Server, Workers};

use super::rule::network;

pub const SERVER_KEYS: &[&str] = &[
    "listen",
    "workers",
    "cpus",
    "state_dir",
    "redirect",
    "redirect_port",
    "trusted_proxies",
    "proxy_protocol_from",
    "trace_sampling",
];
pub const ADMIN_KEYS: &[&str] = &["socket", "listen"];
pub const LIMITS_KEYS: &[&str] = &[
    "connections_per_worker",
    "handshakes_per_worker",
    "handshake_timeout",
    "drain_timeout",
    "tunnel_timeout",
    "header_timeout",
    "idle_timeout",
    "header_bytes",
    "headers",
    "body_bytes",
    "min_body_rate",
    "http2_streams",
    "http2_window",
];
pub const CACHE_KEYS: &[&str] = &["tenants_per_worker", "misses_per_worker"];
pub const LOG_KEYS: &[&str] = &["level", "access"];

/// The port of HTTPS, where the front door stands unless told otherwise.
const DEFAULT_PORT: u16 = 443;

/// One more than the highest CPU that `sched_setaffinity` takes in its fixed-size set (`CPU_SETSIZE`); also the most
/// workers, since each has a CPU of its own.
const CPUS_MAX: usize = 1024;

/// The longest path a Unix-domain socket can have: `sockaddr_un.sun_path` has 108 bytes, the last of them NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// From one connection to the most descriptors a process can have on today's kernels (`nr_open` is rarely raised past it).
const CONNECTIONS: RangeInclusive<usize> = 1..=10_000_000;

/// A handshake in progress holds some 40 KiB; a million of them would be 40 GiB.
const HANDSHAKES: RangeInclusive<usize> = 1..=1_000_000;

/// From the round trips of a nearby client to what no live client needs.
const HANDSHAKE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// Up to a day, for those who wait for the last long transfer.
const DRAIN_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

/// Up to a week; a connection idle for longer has a dead peer.
const TUNNEL_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 86_400);

/// As for a handshake.
const HEADER_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);

/// Up to a day, for clients that keep a connection warm.
const IDLE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);

/// From a bare request with a cookie to more than any server takes: a head is held in memory as a whole.
const HEADER_BYTES: RangeInclusive<u64> = (1 << 10)..=(1 << 20);

/// From what curl sends to what the parser has room for.
const HEADERS: RangeInclusive<usize> = 8..=256;

/// A byte to a tebibyte.
const BODY_BYTES: RangeInclusive<u64> = 1..=(1 << 40);

/// From a byte a second to a fast disk.
const MIN_BODY_RATE: RangeInclusive<u64> = 1..=(1 << 30);

/// One at a time, up to what a proxy in front of us could want on one connection.
const HTTP2_STREAMS: RangeInclusive<usize> = 1..=10_000;

/// What HTTP/2 begins with (RFC 9113 section 6.9.2), up to what fills a fast link around the world.
const HTTP2_WINDOW: RangeInclusive<u64> = 65_535..=(64 << 20);

/// Room for at least some hundreds of tenants, up to more memory than an edge has.
const TENANTS_BYTES: RangeInclusive<u64> = (1 << 20)..=(1 << 40);

/// Up to as many remembered misses as make a gigabyte.
const MISSES: RangeInclusive<usize> = 1..=(1 << 24);

impl Default for Server {
    fn default() -> Self {
        let listen = vec![(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT).into(), (Ipv6Addr::UNSPECIFIED, DEFAULT_PORT).into()];
        Self {
            listen,
            workers: Workers::Auto,
            cpus: None,
            state_dir: PathBuf::from("/var/lib/hostward"),
            redirect: Vec::new(),
            redirect_port: None,
            trusted_proxies: Vec::new(),
            proxy_protocol_from: Vec::new(),
            trace_sampling: None,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: PathBuf::from("/run/hostward/admin.sock"), listen: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_worker: 100_000,
            handshakes_per_worker: 1024,
            handshake_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            tunnel_timeout: Duration::from_secs(3600),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            header_bytes: 64 << 10,
            headers: 128,
            body_bytes: None,
            // A modem of 2400 baud: nobody real is slower, and a thousand connections at this rate are one of 240 KB/s.
            min_body_rate: Some(240),
            // RFC 9113 section 6.5.2 recommends no fewer than 100; nginx allows 128.
            http2_streams: 128,
            // A stream has a quarter of it: over a round trip of 0.1 s one upload takes ten megabits a second. It is what a
            // connection whose origins do not keep up holds in memory.
            http2_window: 512 << 10,
        }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { tenants_per_worker: 256 << 20, misses_per_worker: 8192 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, access: Access::Off }
    }
}

/// `[server]`
pub fn server(table: &Table<'_>) -> Server {
    let mut server = Server::default();
    if let Some(value) = table.get("listen") {
        server.listen = listen(value, &[]);
    }
    if let Some(value) = table.get("redirect") {
        server.redirect = listen(value, &server.listen);
    }
    if let Some(value) = table.get("redirect_port") {
        let port = value.integer(&(1..=usize::from(u16::MAX)));
        server.redirect_port = port.and_then(|port| u16::try_from(port).ok());
        if server.redirect.is_empty() {
            value.warning("has no effect without redirect");
        }
    }
    if let Some(value) = table.get("workers") {
        server.workers = workers(value).unwrap_or(Workers::Auto);
    }
    if let Some(value) = table.get("cpus") {
        server.cpus = cpus(value);
    }
    if let (Workers::Count(workers), Some(cpus), Some(value)) = (server.workers, &server.cpus, table.get("workers"))
        && workers > cpus.len()
    {
        value.warning(format!("is {workers}, but cpus names {}: workers will share a CPU", cpus.len()));
    }
    if let Some(path) = table.get("state_dir").and_then(|value| value.path()) {
        server.state_dir = path;
    }
    if let Some(value) = table.get("trusted_proxies") {
        server.trusted_proxies = value.list().unwrap_or_default().into_iter().filter_map(network).collect();
    }
    if let Some(value) = table.get("proxy_protocol_from") {
        for element in value.list().unwrap_or_default() {
            let Some(network) = network(element) else { continue };
            if network.prefix_len() == 0 {
                element.warning("is every address: whoever reaches listen may say who it is, and nobody else gets in");
            }
            server.proxy_protocol_from.push(network);
        }
    }
    // 0 is what is written to have no traces: then none is begun, sampled or not.
    server.trace_sampling = table.get("trace_sampling").and_then(|value| value.millionths()).filter(|share| *share > 0);
    server
}

/// Every worker listens on each of these addresses. None of them may be `taken`; port 0 never is, since the kernel chooses
/// another one each time.
fn listen(value: Value<'_>, taken: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for element in value.one_or_more() {
        let Some(address) = socket_address(element) else { continue };
        if addresses.contains(&address) {
            element.error(format!("names {address} twice"));
        }
        if address.port() != 0 && taken.contains(&address) {
            element.error(format!("names {address}, which listen has already"));
        }
        addresses.push(address);
    }
    addresses
}

/// An address with a port. Port 0 lets the kernel choose one, the same for all workers; the log's `listening` line and
/// `hostward status` tell which.
fn socket_address(value: Value<'_>) -> Option<SocketAddr> {
    let text = value.string()?;
    let address = text.parse::<SocketAddr>().ok();
    if address.is_none() {
        value.error(format!(
            "must be an IP address with a port, as in \"0.0.0.0:443\" or \"[::]:443\", not {}",
            quote(text)
        ));
    }
    address
}

fn workers(value: Value<'_>) -> Option<Workers> {
    match value.as_word() {
        Some("auto") => Some(Workers::Auto),
        Some(text) => {
            value.error(format!("must be \"auto\" or a number, not {}", quote(text)));
            None
        }
        None => value.integer(&(1..=CPUS_MAX)).map(Workers::Count),
    }
}

/// A list of CPUs as the kernel writes them: "0-3,8".
fn cpus(value: Value<'_>) -> Option<Vec<usize>> {
    let text = value.string()?;
    let cpus = parse_cpus(text);
    if cpus.is_none() {
        value.error(format!(
            "must list CPUs from 0 to {}, each once, as in \"0-3,8\", not {}",
            CPUS_MAX - 1,
            quote(text)
        ));
    }
    cpus
}

fn parse_cpus(text: &str) -> Option<Vec<usize>> {
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<usize>().ok().filter(|cpu| plain && *cpu < CPUS_MAX)
    };
    let mut cpus = BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        for cpu in first..=last {
            if !cpus.insert(cpu) {
                return None;
            }
        }
    }
    Some(cpus.into_iter().collect())
}

/// `[admin]`
pub fn admin(table: &Table<'_>) -> Admin {
    let mut admin = Admin::default();
    if let Some(value) = table.get("socket")
        && let Some(path) = value.path()
    {
        check_socket_path(value, &path);
        admin.socket = path;
    }
    if let Some(value) = table.get("listen") {
        admin.listen = socket_address(value);
        // Metrics name hostnames and counts of customers' traffic; there is no token to ask for yet.
        if admin.listen.is_some_and(|address| !address.ip().is_loopback()) {
            value.warning("is not a loopback address: everyone who reaches it can read the metrics");
        }
    }
    admin
}

/// Reports a path that is too long for a Unix-domain socket.
pub fn check_socket_path(value: Value<'_>, path: &std::path::Path) {
    let bytes = path.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        value.error(format!("has {bytes} bytes; the path of a Unix-domain socket has at most {SOCKET_PATH_BYTES_MAX}"));
    }
}

/// `[limits]`
pub fn limits(table: &Table<'_>) -> Limits {
    let defaults = Limits::default();
    let integer = |key, range, default| table.get(key).and_then(|value| value.integer(range)).unwrap_or(default);
    let duration = |key, range, default| table.get(key).and_then(|value| value.duration(range)).unwrap_or(default);
    let size = |key, range| table.get(key).and_then(|value: Value<'_>| value.size(range));
    let to_usize = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
    // A size, or the word that stands for none.
    let unless_word = |key, word, range, default| match table.get(key) {
        Some(value) if value.as_word() == Some(word) => None,
        Some(value) => value.size(range),
        None => default,
    };
    let limits = Limits {
        connections_per_worker: integer("connections_per_worker", &CONNECTIONS, defaults.connections_per_worker),
        handshakes_per_worker: integer("handshakes_per_worker", &HANDSHAKES, defaults.handshakes_per_worker),
        handshake_timeout: duration("handshake_timeout", &HANDSHAKE_TIMEOUT, defaults.handshake_timeout),
        drain_timeout: duration("drain_timeout", &DRAIN_TIMEOUT, defaults.drain_timeout),
        tunnel_timeout: duration("tunnel_timeout", &TUNNEL_TIMEOUT, defaults.tunnel_timeout),
        header_timeout: duration("header_timeout", &HEADER_TIMEOUT, defaults.header_timeout),
        idle_timeout: duration("idle_timeout", &IDLE_TIMEOUT, defaults.idle_timeout),
        header_bytes: size("header_bytes", &HEADER_BYTES).map_or(defaults.header_bytes, to_usize),
        headers: integer("headers", &HEADERS, defaults.headers),
        body_bytes: unless_word("body_bytes", "unlimited", &BODY_BYTES, defaults.body_bytes),
        min_body_rate: unless_word("min_body_rate", "off", &MIN_BODY_RATE, defaults.min_body_rate),
        // Both ranges lie within 32 bits.
        http2_streams: integer("http2_streams", &HTTP2_STREAMS, defaults.http2_streams as usize) as u32,
        http2_window: size("http2_window", &HTTP2_WINDOW).map_or(defaults.http2_window, |bytes| bytes as u32),
    };
    if let Some(value) = table.get("handshakes_per_worker")
        && limits.handshakes_per_worker > limits.connections_per_worker
    {
        value.warning("is more than connections_per_worker and will never be reached");
    }
    limits
}

/// `[cache]`
pub fn cache(table: &Table<'_>) -> Cache {
    let defaults = Cache::default();
    let tenants = table.get("tenants_per_worker").and_then(|value| value.size(&TENANTS_BYTES));
    let misses = table.get("misses_per_worker").and_then(|value| value.integer(&MISSES));
    Cache {
        tenants_per_worker: tenants.unwrap_or(defaults.tenants_per_worker),
        misses_per_worker: misses.unwrap_or(defaults.misses_per_worker),
    }
}

/// `[log]`
pub fn log(table: &Table<'_>) -> Log {
    let levels =
        [("error", LogLevel::Error), ("warn", LogLevel::Warn), ("info", LogLevel::Info), ("debug", LogLevel::Debug)];
    let level = table.get("level").and_then(|value| value.choice(&levels));
    let defaults = Log::default();
    let access = table.get("access").and_then(access);
    Log { level: level.unwrap_or(defaults.level), access: access.unwrap_or(defaults.access) }
}

/// Where the access log goes: one of two words, or a file in a directory that is there. The file itself is made when it is
/// missing; a directory that is missing is more likely a slip.
fn access(value: Value<'_>) -> Option<Access> {
    let words = ["off", "stdout"];
    let text = value.string()?;
    match text {
        "off" => return Some(Access::Off),
        "stdout" => return Some(Access::Stdout),
        // A word that is neither is a slip too, and must not become a file of that name.
        _ if !text.contains(['/', '.']) => {
            let problem = format!("must be \"off\", \"stdout\" or the path of a file, not {}", quote(text));
            value.error(with_suggestion(problem, text, &words));
            return None;
        }
        _ => {}
    }
    let path = value.path()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        value.error(format!("is {}, and there is no directory {}; create it", quote(text), directory.display()));
        return None;
    }
    if path.exists() && !path.is_file() {
        value.error(format!("is {}, which is no regular file; for standard output write \"stdout\"", quote(text)));
        return None;
    }
    Some(Access::File(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_headers_are_allowed_than_the_parser_has_room_for() {
        assert_eq!(*HEADERS.end(), crate::proxy::http1::FIELDS_MAX);
    }

    #[test]
    fn cpu_lists_are_those_of_the_kernel() {
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("8, 0-2"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpus("1023"), Some(vec![1023]));
        for text in ["", "a", "0,", "2-1", "0-1,1", "1024", "-1", "0--1", "+1", "0-"] {
            assert_eq!(parse_cpus(text), None, "{text}");
        }
    }
}

//! `[origin.NAME]`, and the URLs of origins.
//!
//! | URL | meaning |
//! |---|---|
//! | `http://HOST:PORT` | HTTP/1.1 to a name, an IPv4 address or a bracketed IPv6 address; without a port: 80 |
//! | `https://HOST:PORT` | the same over TLS; without a port: 443 |
//! | `h2c://HOST:PORT` | HTTP/2 without TLS |
//! | `tcp://HOST:PORT` | bytes over TCP to a name, an IPv4 address or a bracketed IPv6 address |
//! | `unix:PATH` | a Unix-domain stream socket; the path is relative to the file that names it |

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::balancing::{balancing, retries};
use super::check::check;
use super::settings::SOCKET_PATH_BYTES_MAX;
use super::tls::min_version;
use crate::config::reader::{Table, Value, quote};
use crate::config::report::Place;
use crate::config::types::{CertificateFiles, OriginTlsFiles};
use crate::registry::balancing::CheckKind;
use crate::registry::{Mode, Name, Origin, OriginAddress, ProxyProtocol, Scheme, TlsVersion};

pub const ORIGIN_KEYS: &[&str] = &[
    "url",
    "connect_timeout",
    "proxy_protocol",
    "idle_connections_per_worker",
    "share",
    "response_timeout",
    "balance",
    "eject_after",
    "slow_start",
    "check",
    "request_timeout",
    "retries",
    "retry_on_status",
    "tls",
    "http2",
];

const ORIGIN_TLS_KEYS: &[&str] = &["ca", "sni", "certificate", "private_key", "min_version"];

/// From a neighbour in the rack to the longest that a client waits.
const CONNECT_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(300);

/// From a fast service to a report that takes all night.
const RESPONSE_TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);

/// None, up to as many as a large application server takes from one front; they are looked through one by one.
const IDLE_CONNECTIONS: RangeInclusive<usize> = 0..=4096;

/// The port of an `http://` URL that names none.
const HTTP_PORT: u16 = 80;

/// The port of an `https://` URL that names none.
const HTTPS_PORT: u16 = 443;

/// The most addresses one origin may have: every worker tries them in turn, and a client that waits for more of them to
/// fail has long gone.
const ADDRESSES_MAX: usize = 64;

/// The longest name of an origin, in bytes; it is a label in metrics.
const NAME_BYTES_MAX: usize = 64;

/// An origin as the file says it, and the files its TLS rests on.
#[derive(Clone, Debug)]
pub struct OriginDraft {
    pub origin: Arc<Origin>,
    /// Present exactly when the scheme is https.
    pub tls: Option<Arc<OriginTlsFiles>>,
}

/// `[origin.NAME]`
pub fn origin(value: Value<'_>) -> Option<OriginDraft> {
    let name = value.key;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        let remedy = format!("is not a name: up to {NAME_BYTES_MAX} letters, digits, hyphens, underscores and dots");
        value.error(remedy);
        return None;
    }
    let table = value.table(format!("[origin.{name}]"), ORIGIN_KEYS)?;
    let mut origin = Origin::new(name.to_owned(), Vec::new(), Scheme::Any);
    if let Some(url) = table.require("url", "where its connections go, as in \"http://10.0.0.5:8080\"") {
        let elements = url.one_or_more();
        if elements.len() > ADDRESSES_MAX {
            url.error(format!("has {} addresses; an origin has at most {ADDRESSES_MAX}", elements.len()));
        }
        for element in elements {
            let Some((scheme, address)) = address(element) else { continue };
            match (origin.scheme, scheme) {
                (_, Scheme::Any) => {}
                (Scheme::Any, scheme) => origin.scheme = scheme,
                (before, scheme) if before != scheme => {
                    element.error(
                        "names another scheme than those before it; the addresses of an origin speak one protocol",
                    );
                }
                _ => {}
            }
            if origin.addresses.contains(&address) {
                element.error("names the same address twice");
            }
            origin.addresses.push(address);
        }
    }
    if let Some(timeout) = table.get("connect_timeout").and_then(|value| value.duration(&CONNECT_TIMEOUT)) {
        origin.connect_timeout = timeout;
    }
    if let Some(value) = table.get("proxy_protocol") {
        const VERSIONS: [(&str, ProxyProtocol); 3] =
            [("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
        origin.proxy_protocol = value.choice(&VERSIONS).unwrap_or(ProxyProtocol::Off);
        if origin.proxy_protocol != ProxyProtocol::Off && origin.scheme.is_http() {
            value.error(
                "has no meaning for HTTP: connections are used by one client after the other, and each request says \
                 who it is from; remove it, or write tcp:// and mode = \"tcp\"",
            );
        }
    }
    if let Some(idle) = table.get("idle_connections_per_worker").and_then(|value| value.integer(&IDLE_CONNECTIONS)) {
        origin.idle_connections_max = idle;
    }
    if let Some(value) = table.get("share") {
        origin.share = value.boolean() == Some(true);
    }
    if let Some(timeout) = table.get("response_timeout").and_then(|value| value.duration(&RESPONSE_TIMEOUT)) {
        origin.response_timeout = timeout;
    }
    if let Some(value) = table.get("request_timeout").filter(|value| value.as_word() != Some("off")) {
        origin.request_timeout = value.duration(&RESPONSE_TIMEOUT);
    }
    origin.retries = retries(&table);
    origin.balancing = balancing(&table, origin.scheme);
    if let Some(value) = table.get("check") {
        origin.check = check(value, name);
        let asks = origin.check.as_ref().is_some_and(|check| matches!(check.kind, CheckKind::Http { .. }));
        if asks && matches!(origin.scheme, Scheme::Https | Scheme::H2c) {
            value.error("of kind = \"http\" speaks neither TLS nor HTTP/2 yet; for this origin write kind = \"tcp\"");
        }
    }
    let of_requests =
        ["idle_connections_per_worker", "share", "response_timeout", "request_timeout", "retries", "retry_on_status"];
    for key in of_requests {
        if let Some(value) = table.get(key).filter(|_| origin.scheme == Scheme::Tcp) {
            value.error("has no meaning for tcp://, where each client has a connection of its own; remove it");
        }
    }
    let mut tls = None;
    if let Some(value) = table.get("tls") {
        let files = value.table(format!("[origin.{name}.tls]"), ORIGIN_TLS_KEYS).map(|table| origin_tls(&table));
        if origin.scheme == Scheme::Https {
            tls = files;
        } else {
            value.error("has no meaning here: TLS is spoken with https:// origins only; remove it, or write https://");
        }
    } else if origin.scheme == Scheme::Https {
        tls = Some(OriginTlsFiles::of_system(table.place()));
    }
    if let Some(value) = table.get("http2") {
        let wanted = value.boolean() == Some(true);
        match (origin.scheme, &mut tls) {
            (Scheme::Https, Some(tls)) => tls.http2 = wanted,
            (Scheme::Https, None) => {}
            (Scheme::H2c, _) if wanted => {}
            (Scheme::H2c, _) => value.error("is false, and the url is h2c://, which is HTTP/2; write http://"),
            (Scheme::Http, _) if wanted => {
                value.error("cannot be negotiated without TLS; write h2c:// for an origin that speaks HTTP/2");
            }
            (Scheme::Http, _) => {}
            _ => value.error("has no meaning here: it is for https:// origins; remove it"),
        }
    }
    Some(OriginDraft { origin: Arc::new(origin), tls: tls.map(Arc::new) })
}

impl OriginTlsFiles {
    /// Every default: the CAs of the system, the host of the URL, no certificate of our own.
    fn of_system(place: Place) -> Self {
        Self {
            place,
            ca: Vec::new(),
            server_name: None,
            certificate: None,
            min_version: TlsVersion::V1_2,
            http2: false,
        }
    }
}

/// `[origin.NAME.tls]`
fn origin_tls(table: &Table<'_>) -> OriginTlsFiles {
    let mut tls = OriginTlsFiles::of_system(table.place());
    if let Some(value) = table.get("ca") {
        tls.ca = value.one_or_more().iter().filter_map(|element| Some((element.path()?, element.place()))).collect();
    }
    tls.server_name = table.get("sni").and_then(server_name);
    let certificate = table.get("certificate").and_then(|value| Some((value.path()?, value.place())));
    let key = table.get("private_key").and_then(|value| Some((value.path()?, value.place())));
    if let (None, Some((_, place))) = (&certificate, &key) {
        table.error_at(
            place,
            "private_key stands without a certificate; name the file of our certificate as certificate",
        );
    }
    tls.certificate = certificate.map(|(certificate, place)| {
        let (private_key, key_place) = key.unwrap_or_else(|| (certificate.clone(), place.clone()));
        CertificateFiles { place, certificate, private_key, key_place }
    });
    if let Some(version) = table.get("min_version").and_then(min_version) {
        tls.min_version = version;
    }
    tls
}

/// `sni`: a name, since addresses are never sent in it (RFC 6066 section 3).
fn server_name(value: Value<'_>) -> Option<String> {
    let text = value.string()?;
    let reason = match Name::parse_record(text) {
        Ok(name) if name.is_wildcard() => "an origin has one name, not a wildcard".to_owned(),
        Ok(name) => return Some(name.as_str().to_owned()),
        Err(crate::registry::name::NameError::IpAddress) => {
            "an address is verified as the host of the URL, and never sent; remove the key".to_owned()
        }
        Err(error) => error.to_string(),
    };
    value.error(format!("is {}: {reason}", quote(text)));
    None
}

/// What `hostname.origin` says: the name of a table, or a URL that is an origin of its own with every default.
pub enum OriginReference {
    Named(String),
    Url(OriginDraft),
}

/// `hostname.origin`
pub fn reference(value: Value<'_>) -> Option<OriginReference> {
    let text = value.string()?;
    // A name has no colon, a URL always has one.
    if !text.contains(':') {
        return Some(OriginReference::Named(text.to_owned()));
    }
    let (scheme, address) = address(value)?;
    // The name is the key of the origin's state, so it comes from the address: relative paths of two files are two origins,
    // two spellings of one address are one.
    let name = match &address {
        OriginAddress::Tcp { host, port } => {
            let scheme = scheme.word();
            if host.contains(':') { format!("{scheme}://[{host}]:{port}") } else { format!("{scheme}://{host}:{port}") }
        }
        OriginAddress::Unix(path) => format!("unix:{}", path.display()),
    };
    let tls = (scheme == Scheme::Https).then(|| Arc::new(OriginTlsFiles::of_system(value.place())));
    Some(OriginReference::Url(OriginDraft { origin: Arc::new(Origin::new(name, vec![address], scheme)), tls }))
}

/// Says what is wrong with an origin for a hostname of this mode, and what to write instead.
pub fn unfit(origin: &Origin, mode: Mode) -> Option<String> {
    let name = quote(&origin.name);
    let example = |scheme| match origin.addresses.first() {
        Some(OriginAddress::Tcp { host, port }) if host.contains(':') => format!("{scheme}://[{host}]:{port}"),
        Some(OriginAddress::Tcp { host, port }) => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://10.0.0.5:8080"),
    };
    match (mode, origin.scheme) {
        (Mode::Http, Scheme::Tcp) => Some(format!(
            "origin {name} is tcp://, and mode is \"http\"; write \"{}\", or mode = \"tcp\" to forward bytes as they come",
            example("http")
        )),
        (Mode::Tcp, scheme) if scheme.is_http() => Some(format!(
            "origin {name} is {}://, and mode is \"tcp\"; write \"{}\", or mode = \"http\"",
            scheme.word(),
            example("tcp")
        )),
        (Mode::Http, _) if origin.proxy_protocol != ProxyProtocol::Off => Some(format!(
            "origin {name} asks for proxy_protocol, which mode \"http\" does not send: its connections serve many clients; \
             remove it there, or write mode = \"tcp\""
        )),
        _ => None,
    }
}

fn address(value: Value<'_>) -> Option<(Scheme, OriginAddress)> {
    let text = value.string()?;
    match parse_url(text) {
        Ok((scheme, OriginAddress::Unix(path))) => {
            let path = value.directory().join(path);
            if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                value.error(format!(
                    "has the path of a Unix-domain socket of more than {SOCKET_PATH_BYTES_MAX} bytes: {}",
                    quote(text)
                ));
                return None;
            }
            Some((scheme, OriginAddress::Unix(path)))
        }
        Ok(address) => Some(address),
        Err(reason) => {
            value.error(format!("is {}: {reason}", quote(text)));
            None
        }
    }
}

/// Reads the URL of an origin.
fn parse_url(text: &str) -> Result<(Scheme, OriginAddress), String> {
    const EXAMPLES: &str = "write \"http://10.0.0.5:8080\", \"tcp://10.0.0.5:8080\" or \"unix:/run/app.sock\"";
    if let Some(path) = text.strip_prefix("unix:") {
        // Both unix:/run/app.sock and unix:///run/app.sock are in use; a host between the slashes is not.
        let path = match path.strip_prefix("//") {
            Some(rest) if rest.starts_with('/') => rest,
            Some(_) => return Err(format!("the path of a socket must follow the colon; {EXAMPLES}")),
            None => path,
        };
        if path.is_empty() || path.contains(char::is_control) {
            return Err(format!("the path of a socket must follow the colon; {EXAMPLES}"));
        }
        return Ok((Scheme::Any, OriginAddress::Unix(PathBuf::from(path))));
    }
    let (scheme, authority) = match text.split_once("://") {
        Some(("http", authority)) => (Scheme::Http, authority),
        Some(("https", authority)) => (Scheme::Https, authority),
        Some(("h2c", authority)) => (Scheme::H2c, authority),
        Some(("tcp", authority)) => (Scheme::Tcp, authority),
        _ => {
            return Err(format!("an origin's scheme is http, https, h2c, tcp or unix; {EXAMPLES}"));
        }
    };
    if authority.contains(['/', '?', '#', '@']) {
        return Err(format!("only a host and a port may follow the scheme; {EXAMPLES}"));
    }
    let without_port = !authority.ends_with(']') && authority.contains(':');
    let default_port = match scheme {
        Scheme::Http => Some(HTTP_PORT),
        Scheme::Https => Some(HTTPS_PORT),
        _ => None,
    };
    if let Some(port) = default_port.filter(|_| !without_port) {
        return Ok((scheme, OriginAddress::Tcp { host: parse_host(authority)?, port }));
    }
    let (host, port) = authority.rsplit_once(':').ok_or_else(|| format!("the port is missing; {EXAMPLES}"))?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    let port = port.parse::<u16>().ok().filter(|port| digits && *port != 0);
    let port = port.ok_or("the port must be a number between 1 and 65535")?;
    Ok((scheme, OriginAddress::Tcp { host: parse_host(host)?, port }))
}

/// An IP address in its canonical text, or a hostname in its normalised form.
fn parse_host(host: &str) -> Result<String, String> {
    if let Some(inside) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address = inside.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6);
        return address
            .map(|ip| ip.to_string())
            .ok_or_else(|| "there is no IPv6 address between the brackets".to_owned());
    }
    if host.contains(':') {
        return Err("an IPv6 address must be in brackets, as in \"tcp://[::1]:8080\"".to_owned());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    match Name::parse_record(host) {
        Ok(name) if name.is_wildcard() => Err("an origin's host must not be a wildcard".to_owned()),
        Ok(name) => Ok(name.as_str().to_owned()),
        // The general text says that clients never send addresses, which is beside the point here.
        Err(crate::registry::name::NameError::IpAddress) => Err("the host is neither an address nor a name".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Result<(Scheme, OriginAddress), String> {
        Ok((Scheme::Tcp, OriginAddress::Tcp { host: host.to_owned(), port }))
    }

    fn http(host: &str, port: u16) -> Result<(Scheme, OriginAddress), String> {
        Ok((Scheme::Http, OriginAddress::Tcp { host: host.to_owned(), port }))
    }

    fn unix(path: &str) -> Result<(Scheme, OriginAddress), String> {
        Ok((Scheme::Any, OriginAddress::Unix(path.into())))
    }

    #[test]
    fn urls_are_read() {
        assert_eq!(parse_url("tcp://10.0.0.5:8080"), tcp("10.0.0.5", 8080));
        assert_eq!(parse_url("tcp://[2001:DB8:0::1]:1"), tcp("2001:db8::1", 1));
        assert_eq!(parse_url("tcp://App.Internal.:65535"), tcp("app.internal", 65535));
        assert_eq!(parse_url("http://10.0.0.5:8080"), http("10.0.0.5", 8080));
        assert_eq!(parse_url("http://App.internal"), http("app.internal", 80));
        assert_eq!(parse_url("http://[::1]"), http("::1", 80));
        assert_eq!(parse_url("http://[::1]:81"), http("::1", 81));
        assert_eq!(parse_url("unix:/run/app.sock"), unix("/run/app.sock"));
        assert_eq!(parse_url("unix:///run/app.sock"), unix("/run/app.sock"));
        assert_eq!(parse_url("unix:app.sock"), unix("app.sock"));
    }

    #[test]
    fn what_is_no_url_says_why() {
        for (text, part) in [
            ("http://::1", "brackets"),
            ("http://10.0.0.5:80/", "only a host and a port"),
            ("h2c://10.0.0.5", "port is missing"),
            ("ftp://10.0.0.5:80", "scheme is http, https, h2c, tcp or unix"),
            ("10.0.0.5:80", "scheme is http, https, h2c, tcp or unix"),
            ("tcp://10.0.0.5", "port is missing"),
            ("tcp://10.0.0.5:0", "between 1 and 65535"),
            ("tcp://10.0.0.5:+80", "between 1 and 65535"),
            ("tcp://10.0.0.5:65536", "between 1 and 65535"),
            ("tcp://10.0.0.5:80/", "only a host and a port"),
            ("tcp://user@10.0.0.5:80", "only a host and a port"),
            ("tcp://::1:80", "in brackets"),
            ("tcp://[10.0.0.5]:80", "no IPv6 address"),
            ("tcp://*.example:80", "wildcard"),
            ("tcp://10.0.5:80", "neither an address nor a name"),
            ("tcp://a b:80", "letters, digits"),
            ("unix:", "follow the colon"),
            ("unix://host/run/app.sock", "follow the colon"),
        ] {
            let error = parse_url(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

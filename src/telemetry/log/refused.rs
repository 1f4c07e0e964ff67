//! The line a refused client leaves, and its rate limit.
//!
//! The worker hands over what it knows as it is; text is made on the writing thread. A flood of refused clients costs a
//! worker a subtraction each once its allowance is spent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::line::Line;
use super::{Handle, Level, Value};
use crate::policy::{Identity, Refusal};
use crate::telemetry::counters::{Counter, Limit, Shard};
use crate::telemetry::rate::TokenBucket;

/// Refusal lines a worker may write at once: every client of a small customer that is refused after a mistaken change
/// shows up, and the queue holds the bursts of many workers.
const BURST: u32 = 50;

/// Refusal lines a second a worker may write after that: what a person can follow and a disk does not notice (about
/// 5 KB/s), while the counters still count every one.
const PER_SECOND: u32 = 10;

/// The most characters of a name from a certificate that a line shows; a chain may bring 16 KiB of them.
const TEXT_MAX_CHARS: usize = 512;

/// One refused client.
#[derive(Clone, Debug)]
pub struct Refused {
    pub reason: Refusal,
    /// The name the client asked for, as far as it is known.
    pub hostname: Option<String>,
    /// The client's address.
    pub peer: Option<SocketAddr>,
    /// The balancer whose PROXY header told it.
    pub via: Option<SocketAddr>,
    /// The alert the client was sent, by its RFC 8446 name; `None`: closed without one.
    pub alert: Option<&'static str>,
    /// What its certificate says, when there was one that parses.
    pub identity: Option<Box<Identity>>,
    /// What there is to say beyond the reason, in a few words.
    pub detail: Option<String>,
}

impl Refused {
    /// A refusal of which only the reason is known.
    pub fn new(reason: Refusal) -> Self {
        Self { reason, hostname: None, peer: None, via: None, alert: None, identity: None, detail: None }
    }

    /// Calls `field` for each field of the line, in order. `hostname`, `peer` and `alert` are always there, `null` when
    /// unknown.
    pub(super) fn fields(&self, mut field: impl FnMut(&'static str, Value)) {
        field("reason", self.reason.label().into());
        field("hostname", self.hostname.as_deref().map(shorten).into());
        field("peer", self.peer.map(|peer| peer.to_string()).into());
        if let Some(via) = self.via {
            field("via", via.to_string().into());
        }
        field("alert", self.alert.into());
        if let Some(identity) = &self.identity {
            field("subject", shorten(&identity.subject).into());
            field("issuer", shorten(&identity.issuer).into());
            field("serial", shorten(&identity.serial).into());
            field("fingerprint", hexadecimal(&identity.fingerprint_sha256).into());
        }
        if let Some(detail) = &self.detail {
            field("detail", shorten(detail).into());
        }
    }
}

/// Lower-case hexadecimal, two digits a byte.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// A worker's way to log refusals: rate-limited, never blocking, counting what it swallows.
#[derive(Debug)]
pub struct Refusals {
    handle: Handle,
    shard: Arc<Shard>,
    bucket: TokenBucket,
    suppressed: u64,
    origins: TokenBucket,
}

/// What is wrong with an origin, as a client just found out.
#[derive(Clone, Copy)]
pub struct OriginFault<'a> {
    pub event: &'static str,
    pub origin: &'a str,
    /// The name the client asked for.
    pub hostname: Option<&'a str>,
    /// The address that was tried last; `None`: none is known.
    pub address: Option<&'a dyn std::fmt::Display>,
    /// The error by RFC 9209 section 2.3.
    pub error: &'static str,
    /// What there is to say beyond it.
    pub detail: Option<&'a str>,
}

impl OriginFault<'_> {
    /// No address could be reached.
    pub const UNREACHABLE: &'static str = "origin_unreachable";
    /// One was, and gave no answer that could be passed on.
    pub const FAILED: &'static str = "origin_failed";
}

/// Lines about unreachable origins a worker may write at once: one for each of a handful of origins that fail together.
const ORIGINS_BURST: u32 = 10;

impl Refusals {
    /// For one worker, whose shard counts the lines that are not written (`Limit::LogLines`, `Limit::LogQueue`).
    pub fn new(handle: Handle, shard: Arc<Shard>, now_us: u64) -> Self {
        let bucket = TokenBucket::new(BURST, PER_SECOND, now_us);
        Self { handle, shard, bucket, suppressed: 0, origins: TokenBucket::new(ORIGINS_BURST, 1, now_us) }
    }

    /// Logs what is wrong with an origin, about once a second at most; the access log tells each time.
    pub fn origin(&mut self, now_us: u64, fault: &OriginFault<'_>) {
        if !self.origins.take(now_us) {
            self.shard.count(Counter::Limit(Limit::LogLines));
            return;
        }
        let mut fields = vec![
            ("origin", fault.origin.into()),
            ("hostname", fault.hostname.into()),
            ("address", fault.address.map(|address| address.to_string()).into()),
            ("error", fault.error.into()),
        ];
        fields.extend(fault.detail.map(|detail| ("detail", shorten(detail).into())));
        self.handle.event(Level::Warn, fault.event, fields);
    }

    /// Logs a refusal, if the rate limit allows it. `now_us` is of any monotonic clock; `refused` is called only if the
    /// line will be written, so that a flood does not pay for copies.
    pub fn log(&mut self, now_us: u64, refused: impl FnOnce() -> Refused) {
        if !self.handle.enabled(Level::Info) {
            return;
        }
        if !self.bucket.take(now_us) {
            self.suppressed += 1;
            self.shard.count(Counter::Limit(Limit::LogLines));
            return;
        }
        let line = Line::refused(SystemTime::now(), refused(), self.suppressed);
        if self.handle.push(line) {
            self.suppressed = 0;
        } else {
            self.shard.count(Counter::Limit(Limit::LogQueue));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn formatted(line: Line, dropped: u64) -> Value {
        let mut out = Vec::new();
        line.format(dropped, &mut out);
        assert_eq!(out.pop(), Some(b'\n'));
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_refusal_tells_everything_known() {
        let identity = Identity {
            subject: "CN=eve\",O=Öl\n".into(),
            issuer: "CN=Acme CA".into(),
            serial: "0a".into(),
            fingerprint_sha256: [0xfe; 32],
            ..Identity::default()
        };
        let refused = Refused {
            hostname: Some("pay.acme.test".into()),
            peer: Some("[2001:db8::1]:443".parse().unwrap()),
            alert: Some("unknown_ca"),
            identity: Some(Box::new(identity)),
            ..Refused::new(Refusal::UnknownCa)
        };
        let mut value = formatted(Line::refused(SystemTime::UNIX_EPOCH, refused, 7), 2);
        assert_eq!(value["ts"].take(), json!("1970-01-01T00:00:00.000Z"));
        let expected = json!({
            "ts": null, "level": "info", "event": "refused", "reason": "unknown_ca", "hostname": "pay.acme.test",
            "peer": "[2001:db8::1]:443", "alert": "unknown_ca", "subject": "CN=eve\",O=Öl\n", "issuer": "CN=Acme CA",
            "serial": "0a", "fingerprint": "fe".repeat(32), "suppressed": 7, "dropped": 2,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn what_is_unknown_is_null_and_what_is_long_is_cut() {
        let refused = Refused { detail: Some("ä".repeat(20_000)), ..Refused::new(Refusal::NoSni) };
        let value = formatted(Line::refused(SystemTime::now(), refused, 0), 0);
        assert_eq!(value["hostname"], Value::Null);
        assert_eq!(value["peer"], Value::Null);
        assert_eq!(value["detail"].as_str().unwrap().chars().count(), TEXT_MAX_CHARS + 3);
        assert!(value.get("subject").is_none() && value.get("suppressed").is_none() && value.get("dropped").is_none());
    }

    #[test]
    fn a_flood_is_cut_counted_and_told() {
        let log = super::super::Log::start_with(Level::Info, 4096, Box::new(std::io::sink())).unwrap();
        let shard = Arc::new(Shard::default());
        let mut refusals = Refusals::new(log.handle(), Arc::clone(&shard), 0);
        let mut built = 0;
        for _ in 0..1_000 {
            refusals.log(0, || {
                built += 1;
                Refused::new(Refusal::NoSni)
            });
        }
        assert_eq!(built, BURST);
        assert_eq!(refusals.suppressed, 1_000 - u64::from(BURST));
        assert_eq!(shard.get(Counter::Limit(Limit::LogLines)), 1_000 - u64::from(BURST));
        refusals.log(1_000_000, || Refused::new(Refusal::NoSni));
        assert_eq!(refusals.suppressed, 0, "told on the line that got through");
        log.finish(std::time::Duration::from_secs(10));
    }
}

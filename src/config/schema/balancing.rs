//! The keys of `[origin.NAME]` that say how its addresses share the work, and what is sent to another of them.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::reader::{Table, Value, quote};
use crate::policy::rules::is_token;
use crate::registry::Scheme;
use crate::registry::balancing::{Balancing, Policy, Retries};

/// From the first failure to the last that a patient operator watches.
const EJECT_AFTER: RangeInclusive<usize> = 1..=1000;

/// A share that grows for longer than an hour is a plan, not a start.
const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(3600);

/// Each is another wait for the client; beyond a few it has gone.
const RETRIES: RangeInclusive<usize> = 0..=5;

/// What a gateway says when it has no answer: the next address may have one.
const RETRY_STATUSES: [usize; 3] = [502, 503, 504];

/// The longest name of a field to hash by.
const FIELD_BYTES_MAX: usize = 128;

/// Reads `balance`, `eject_after` and `slow_start`.
pub fn balancing(table: &Table<'_>, scheme: Scheme) -> Balancing {
    let mut balancing = Balancing::default();
    if let Some(policy) = table.get("balance").and_then(|value| policy(value, scheme)) {
        balancing.policy = policy;
    }
    if let Some(value) = table.get("eject_after") {
        if scheme == Scheme::Tcp {
            value.error(
                "has no meaning for tcp://, where nobody sees whether an exchange failed; remove it: an address that does \
                 not accept is always left out for a while",
            );
        } else if value.as_word() == Some("off") {
            balancing.eject_after = None;
        } else if let Some(after) = value.integer(&EJECT_AFTER) {
            balancing.eject_after = u32::try_from(after).ok();
        }
    }
    if let Some(slow_start) = table.get("slow_start").and_then(|value| value.duration(&SLOW_START)) {
        balancing.slow_start = slow_start;
    }
    balancing
}

/// Reads `retries` and `retry_on_status`.
pub fn retries(table: &Table<'_>) -> Retries {
    let mut retries = Retries::default();
    if let Some(max) = table.get("retries").and_then(|value| value.integer(&RETRIES)) {
        retries.max = u32::try_from(max).unwrap_or_default();
    }
    let Some(statuses) = table.get("retry_on_status") else { return retries };
    for value in statuses.one_or_more() {
        let Some(status) = value.integer(&(100..=599)) else { continue };
        if RETRY_STATUSES.contains(&status) {
            retries.on_status.extend(u16::try_from(status));
        } else {
            value.error(format!(
                "must be 502, 503 or 504, not {status}: every other status is an answer to this request"
            ));
        }
    }
    if retries.max == 0 {
        statuses.error("has no meaning without retries; write retries = 1 or more, or remove it");
    }
    retries
}

/// A word, or a table with what to hash.
fn policy(value: Value<'_>, scheme: Scheme) -> Option<Policy> {
    const FORMS: &str = "write \"round_robin\", \"least_pending\", { hash = \"client_address\" } or \
                         { hash_header = \"X-Tenant\" }";
    match value.as_word() {
        Some("round_robin") => return Some(Policy::RoundRobin),
        Some("least_pending") => return Some(Policy::LeastPending),
        Some(other) => {
            value.error(format!("is {}, which is no way to balance; {FORMS}", quote(other)));
            return None;
        }
        None => {}
    }
    if !value.is_table() {
        value.error(format!("must be a word or a table; {FORMS}"));
        return None;
    }
    let table = value.table("balance", &["hash", "hash_header"])?;
    match (table.get("hash"), table.get("hash_header")) {
        (Some(what), None) => what.choice(&[("client_address", ())]).map(|()| Policy::HashClientAddress),
        (None, Some(field)) => {
            let name = field.string()?;
            if scheme == Scheme::Tcp {
                field.error("has no meaning for tcp://, where no header is read; write { hash = \"client_address\" }");
                return None;
            }
            if name.is_empty() || name.len() > FIELD_BYTES_MAX || !name.bytes().all(is_token) {
                field.error(format!("is {}, which is no name of a header", quote(name)));
                return None;
            }
            Some(Policy::HashHeader(name.to_ascii_lowercase().into()))
        }
        _ => {
            value.error(format!("must have one key, hash or hash_header; {FORMS}"));
            None
        }
    }
}

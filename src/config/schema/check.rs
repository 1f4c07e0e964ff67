//! `[origin.NAME.check]`

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::reader::{Table, Value, quote};
use crate::registry::balancing::{Check, CheckKind};

pub const CHECK_KEYS: &[&str] =
    &["kind", "path", "host", "expect", "interval", "timeout", "healthy_after", "unhealthy_after"];

/// From a test bench to an origin that is paid by the request.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// From a neighbour in the rack to a report that is made on each check.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// From the first that says so to an hour of the default interval.
const IN_A_ROW: RangeInclusive<usize> = 1..=720;

/// The statuses a final response may have.
const STATUS: RangeInclusive<usize> = 200..=599;

/// The longest path or host: they are sent with each check.
const TEXT_BYTES_MAX: usize = 1024;

/// `[origin.NAME.check]`
pub fn check(value: Value<'_>, origin: &str) -> Option<Check> {
    let table = value.table(format!("[origin.{origin}.check]"), CHECK_KEYS)?;
    let kind = table.require("kind", "\"http\" asks with a request, \"tcp\" only connects");
    let is_http = kind.and_then(|kind| kind.choice(&[("http", true), ("tcp", false)]))?;
    let kind = if is_http {
        http(&table)
    } else {
        for key in ["path", "host", "expect"] {
            if let Some(value) = table.get(key) {
                value.error(
                    "has no meaning for kind = \"tcp\", which asks nothing; remove it, or write kind = \"http\"",
                );
            }
        }
        CheckKind::Tcp
    };
    let duration = |key, range, default| table.get(key).and_then(|value| value.duration(range)).unwrap_or(default);
    let in_a_row = |key, default| {
        let count = table.get(key).and_then(|value| value.integer(&IN_A_ROW));
        count.and_then(|count| u32::try_from(count).ok()).unwrap_or(default)
    };
    Some(Check {
        kind,
        interval: duration("interval", &INTERVAL, Check::INTERVAL_DEFAULT),
        timeout: duration("timeout", &TIMEOUT, Check::TIMEOUT_DEFAULT),
        healthy_after: in_a_row("healthy_after", Check::HEALTHY_AFTER_DEFAULT),
        unhealthy_after: in_a_row("unhealthy_after", Check::UNHEALTHY_AFTER_DEFAULT),
    })
}

fn http(table: &Table<'_>) -> CheckKind {
    let text = |key, what: &str, fits: fn(&str) -> bool| {
        let value = table.get(key)?;
        let text = value.string()?;
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > TEXT_BYTES_MAX || !plain || !fits(text) {
            value.error(format!("is {}, which is {what}", quote(text)));
            return None;
        }
        Some(text.to_owned())
    };
    let is_path = |text: &str| text.starts_with('/') && text.parse::<hyper::Uri>().is_ok();
    let is_host = |text: &str| text.parse::<hyper::http::uri::Authority>().is_ok() && !text.contains('@');
    let path = text("path", "no path: write \"/healthz\", or whatever your origin answers at", is_path);
    let host = text("host", "no host: write \"app.example\"", is_host);
    let expect = table.get("expect").map(|value| value.one_or_more()).unwrap_or_default();
    let status = |value: &Value<'_>| value.integer(&STATUS).and_then(|status| u16::try_from(status).ok());
    let mut expect: Vec<u16> = expect.iter().filter_map(status).collect();
    expect.sort_unstable();
    expect.dedup();
    CheckKind::Http { path: path.unwrap_or_else(|| "/".to_owned()), host, expect }
}

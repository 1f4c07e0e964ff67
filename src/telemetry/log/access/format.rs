//! From an entry to a line of JSON. On the writing thread only.
//!
//! A field that does not apply is left out. Text from clients goes through serde_json's escaping, whatever bytes it has:
//! no line can be made to look like two.

use std::time::Duration;

use super::super::Value;
use super::super::line::{field, timestamp, write};
use super::super::refused::shorten;
use super::{Connection, Entry, Stamped};
use crate::policy::Identity;

/// Appends a line. `dropped` lines of the same worker went missing before it.
pub fn line(stamped: &Stamped, identify: fn(&[u8]) -> Option<Identity>, dropped: u64, out: &mut Vec<u8>) {
    let Stamped { at, entry } = stamped;
    let Entry { connection, protocol, request, bytes_in, bytes_out, duration, origin, end } = entry;
    out.extend_from_slice(b"{\"time\":");
    write(&timestamp(*at), out);
    field("protocol", &(*protocol).into(), out);
    out.extend_from_slice(connection.text.get_or_init(|| of_connection(connection, identify)));
    if let Some(request) = request {
        let [method, path, authority, id] = request.parts();
        field("method", &text(method), out);
        field("path", &text(path), out);
        field("authority", &text(authority), out);
        if request.status > 0 {
            field("status", &request.status.into(), out);
        }
        if !id.is_empty() {
            field("request_id", &text(id), out);
        }
        optional("trace_id", request.trace_id.map(|id| text(&id)), out);
    }
    field("bytes_in", &(*bytes_in).into(), out);
    field("bytes_out", &(*bytes_out).into(), out);
    field("duration_us", &micros(*duration), out);
    if let Some(origin) = origin {
        field("origin", &origin.name.as_ref().into(), out);
        optional("origin_address", origin.address.map(|address| address.to_string().into()), out);
        optional("origin_connect_us", origin.connect.map(micros), out);
        optional("origin_us", origin.response.map(micros), out);
    }
    if let Some(request) = request {
        if request.retried {
            field("retried", &true.into(), out);
        }
        optional("proxy_error", request.proxy_error.map(Value::from), out);
    }
    optional("end", end.map(Value::from), out);
    if dropped > 0 {
        field("dropped", &dropped.into(), out);
    }
    out.extend_from_slice(b"}\n");
}

/// The part that all lines of a connection share; begins with a comma.
fn of_connection(connection: &Connection, identify: fn(&[u8]) -> Option<Identity>) -> Box<[u8]> {
    let mut out = Vec::with_capacity(512);
    field("worker", &connection.worker.into(), &mut out);
    optional("hostname", connection.hostname.as_deref().map(Value::from), &mut out);
    field("record", &connection.record.as_ref().into(), &mut out);
    field("tls", &connection.tls_version.into(), &mut out);
    field("cipher", &connection.cipher.as_str().into(), &mut out);
    field("resumed", &connection.resumed.into(), &mut out);
    optional("client_address", connection.client.map(|client| client.ip().to_canonical().to_string().into()), &mut out);
    optional("client_port", connection.client.map(|client| client.port().into()), &mut out);
    optional("via", connection.via.map(|via| via.to_string().into()), &mut out);
    optional("unique_id", connection.unique_id.as_deref().map(id), &mut out);
    field("verdict", &connection.verdict.to_string().into(), &mut out);
    if let Some(identity) = connection.leaf.as_deref().and_then(identify) {
        field("client_subject", &shorten(&identity.subject).into(), &mut out);
        field("client_serial", &shorten(&identity.serial).into(), &mut out);
        field("client_fingerprint", &super::super::refused::hexadecimal(&identity.fingerprint_sha256).into(), &mut out);
    }
    out.into()
}

fn optional(name: &str, value: Option<Value>, out: &mut Vec<u8>) {
    if let Some(value) = value {
        field(name, &value, out);
    }
}

/// Bytes as text. What is no UTF-8 shows as U+FFFD.
fn text(bytes: &[u8]) -> Value {
    String::from_utf8_lossy(bytes).into_owned().into()
}

/// An id as text, or in hexadecimal if it has bytes that are no visible ASCII.
fn id(bytes: &[u8]) -> Value {
    if bytes.iter().all(u8::is_ascii_graphic) { text(bytes) } else { super::super::refused::hexadecimal(bytes).into() }
}

fn micros(duration: Duration) -> Value {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).into()
}

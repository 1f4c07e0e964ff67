//! What a hostname changes in requests and responses: `host_header`, `strip_prefix`, added and removed headers.
//!
//! Checked here, where a fault has a line: a name with a meaning for Hostward would undo what keeps requests apart, or
//! speak for a client.

use std::sync::Arc;

use super::hostname::http_only;
use crate::config::reader::{Table, Value, quote};
use crate::policy::path;
use crate::proxy::headers::{Meaning, meaning};
use crate::proxy::http1::authority;
use crate::registry::{FieldChanges, Mode, Rewrites};

/// The most names in one of these keys. Each is compared with every field of every head.
const NAMES_MAX: usize = 32;

/// The longest name. Registered ones have at most 40 bytes.
const NAME_BYTES_MAX: usize = 64;

/// The longest value: twice the Content-Security-Policy of a large site.
const VALUE_BYTES_MAX: usize = 4096;

/// The longest prefix of a path.
const PREFIX_BYTES_MAX: usize = 1024;

/// The longest authority: a hostname and a port.
const AUTHORITY_BYTES_MAX: usize = 260;

/// Which way a head goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToOrigin,
    ToClient,
}

/// The changes of one hostname; `None` if there are none.
pub fn rewrites(table: &Table<'_>, mode: Option<Mode>) -> Option<Arc<Rewrites>> {
    let rewrites = Rewrites {
        host: http_only(table, "host_header", mode).and_then(host),
        strip_prefix: http_only(table, "strip_prefix", mode).and_then(prefix),
        request: changes(
            http_only(table, "add_headers", mode),
            http_only(table, "remove_headers", mode),
            Way::ToOrigin,
        ),
        response: changes(
            http_only(table, "response_headers", mode),
            http_only(table, "remove_response_headers", mode),
            Way::ToClient,
        ),
    };
    (!rewrites.is_empty()).then(|| Arc::new(rewrites))
}

fn host(value: Value<'_>) -> Option<Box<str>> {
    let text = value.string()?;
    if text.len() > AUTHORITY_BYTES_MAX || authority::host(text).is_none() {
        value.error(format!(
            "must be a hostname or address, with a port if need be, as in \"app.internal:8080\", not {}",
            quote(text)
        ));
        return None;
    }
    Some(text.into())
}

fn prefix(value: Value<'_>) -> Option<Box<str>> {
    let text = value.string()?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~');
    let is_one_path = path::canonical(text, &mut String::new()).is_ok();
    if !text.starts_with('/') || text.len() > PREFIX_BYTES_MAX || !text.bytes().all(is_plain) || !is_one_path {
        value.error(format!(
            "must be a path of letters, digits and \"-._~\" that begins with a slash, as in \"/api\", not {}",
            quote(text)
        ));
        return None;
    }
    if text.ends_with('/') {
        value.error(format!(
            "must not end with a slash, and \"/\" alone strips nothing: write {}, or leave it out",
            quote(if text == "/" { "/api" } else { text.trim_end_matches('/') })
        ));
        return None;
    }
    Some(text.into())
}

/// Reads a table of headers that are put in and a list of those that are taken out.
fn changes(add: Option<Value<'_>>, remove: Option<Value<'_>>, way: Way) -> FieldChanges {
    let mut added: Vec<(String, String)> = Vec::new();
    for value in add.map(|value| value.members("of names and values")).unwrap_or_default() {
        let Some(text) = value.string() else { continue };
        if let Err(why) = check_name(value.key, way) {
            value.error(format!("cannot be put in: {why}"));
        } else if added.iter().any(|(name, _)| name.eq_ignore_ascii_case(value.key)) {
            value.error("stands twice: the case of a name means nothing");
        } else if way == Way::ToClient && value.key.eq_ignore_ascii_case("set-cookie") {
            value.error("cannot be put in: it would take the place of the origin's own cookies");
        } else if let Err(why) = check_value(text) {
            value.error(why);
        } else {
            added.push((value.key.to_owned(), text.to_owned()));
        }
    }
    let mut removed: Vec<String> = Vec::new();
    for element in remove.map(|value| value.list().unwrap_or_default()).unwrap_or_default() {
        let Some(name) = element.string() else { continue };
        if let Err(why) = check_name(name, way) {
            element.error(format!("names {}, which cannot be taken out: {why}", quote(name)));
        } else if added.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
            element
                .error(format!("names {}, which is put in too; what is put in takes the place of others", quote(name)));
        } else {
            removed.push(name.to_owned());
        }
    }
    if let Some(value) = add.or(remove)
        && added.len() + removed.len() > NAMES_MAX
    {
        value.error(format!("and its counterpart name {} headers; at most {NAMES_MAX}", added.len() + removed.len()));
    }
    FieldChanges::new(added, &removed)
}

/// Whether a header of this name may be put in or taken out; says why not.
fn check_name(name: &str, way: Way) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err("a name here has letters, digits and hyphens, 64 at most");
    }
    match meaning(name.as_bytes()) {
        Meaning::Ordinary if name.eq_ignore_ascii_case("trailer") => Err("it belongs to the framing of messages"),
        Meaning::Ordinary => Ok(()),
        Meaning::Identity => Err("who the client is, Hostward alone tells; see client_auth.headers"),
        Meaning::Host => Err("for the Host of the origin there is host_header"),
        Meaning::ContentLength | Meaning::TransferEncoding => Err("it belongs to the framing of messages"),
        Meaning::Hop | Meaning::Connection | Meaning::Upgrade | Meaning::Expect => {
            Err("it is about one connection, and Hostward writes it as its own connections need")
        }
        Meaning::Forwarded
        | Meaning::ForwardedFor
        | Meaning::ForwardedProto
        | Meaning::ForwardedHost
        | Meaning::ForwardedPort
        | Meaning::ForwardedOther
        | Meaning::RequestId
        | Meaning::Traceparent
        | Meaning::Tracestate
            if way == Way::ToOrigin =>
        {
            Err("Hostward writes it itself; server.trusted_proxies says from whom it is kept")
        }
        Meaning::Forwarded
        | Meaning::ForwardedFor
        | Meaning::ForwardedProto
        | Meaning::ForwardedHost
        | Meaning::ForwardedPort
        | Meaning::ForwardedOther
        | Meaning::RequestId
        | Meaning::Traceparent
        | Meaning::Tracestate => Ok(()),
        // No spelling of a name of letters, digits and hyphens is one of these, nor has a name alone.
        Meaning::Unusual | Meaning::Disguised | Meaning::Named => Err("it has a meaning for Hostward"),
    }
}

/// A value that every reader ends at the same place (RFC 9110 section 5.5, without what is beyond ASCII).
fn check_value(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("must not be empty; to take a header out, name it in the list of those that are removed");
    }
    if text.len() > VALUE_BYTES_MAX {
        return Err("has more than 4096 bytes");
    }
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) || text.trim_matches(' ').len() != text.len() {
        return Err("must be printable ASCII in one line, without spaces at its ends");
    }
    Ok(())
}

//! What the origin of a client that is let in gets over HTTP, and what becomes of its responses.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Client;
use crate::policy::{Identity, Verdict};
use crate::proxy::headers::{SessionFacts, identity_fields};
use crate::proxy::http1::{Rejected, stripped_path};
use crate::registry::{FieldChanges, HostnameRecord, Rewrites};

/// How much of a header's value a line shows, in bytes (they are ASCII): enough to tell whose it is.
const SHOWN_BYTES: usize = 100;

/// What is sent to the origin beside the client's own request.
#[derive(Debug, Default)]
pub struct Sent {
    /// Names and values of the headers that tell who the client is.
    pub identity: Vec<(String, String)>,
    /// The path as the origin gets it, if a request was asked about.
    path: Option<String>,
    rewrites: Option<Arc<Rewrites>>,
}

impl Sent {
    /// What a worker would send for this client.
    ///
    /// # Errors
    ///
    /// The answer to a path the hostname's prefix cannot be cut from.
    pub fn of(
        record: &HostnameRecord,
        client: &Client,
        verdict: Verdict,
        identity: Option<&Identity>,
    ) -> Result<Self, Rejected> {
        let identity = identity_fields(&SessionFacts {
            mode: record.client_auth.mode,
            verdict,
            sets: record.client_auth.headers,
            identity,
            chain: &client.chain,
            client: client.source.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
            trusted_peer: false,
            keep_unusual_names: record.keep_unusual_headers,
            rewrites: record.rewrites.as_ref(),
        });
        let prefix = record.rewrites.as_ref().and_then(|rewrites| rewrites.strip_prefix.as_deref());
        let path = match (client.path.as_deref(), prefix) {
            (Some(path), Some(prefix)) => Some(stripped_path(prefix, path)?),
            (path, _) => path.map(str::to_owned),
        };
        Ok(Self { identity, path, rewrites: record.rewrites.clone() })
    }

    /// For people: lines of a label and a text.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        for (name, value) in &self.identity {
            let text = match value.get(..SHOWN_BYTES) {
                Some(start) => format!("{name}: {start}... ({} bytes)", value.len()),
                None => format!("{name}: {value}"),
            };
            lines.push(("header", text));
        }
        let Some(rewrites) = &self.rewrites else { return lines };
        if let Some(host) = &rewrites.host {
            lines.push(("host", format!("{host}, instead of what the client asks for")));
        }
        if let Some(prefix) = &rewrites.strip_prefix {
            let path = self.path.as_ref().map(|path| format!(": {path}")).unwrap_or_default();
            lines.push(("path", format!("without {prefix}{path}")));
        }
        for (label, changes) in [("request", &rewrites.request), ("response", &rewrites.response)] {
            lines.extend(changes.added().iter().map(|(name, value)| (label, format!("with {name}: {value}"))));
            lines.extend(changes.removed().map(|name| (label, format!("without {name}"))));
        }
        lines
    }

    /// For programs: identity headers, the request to the origin, the response to the client.
    pub fn json(&self) -> [Value; 3] {
        let identity: Map<_, _> =
            self.identity.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        let rewrites = self.rewrites.as_deref();
        let changes = |changes: Option<&FieldChanges>| {
            let added = changes.map(FieldChanges::added).unwrap_or_default().iter();
            let added: Map<_, _> = added.map(|(name, value)| (name.to_string(), value.as_ref().into())).collect();
            let removed: Vec<_> = changes.into_iter().flat_map(FieldChanges::removed).collect();
            json!({ "added": added, "removed": removed })
        };
        let mut request = changes(rewrites.map(|rewrites| &rewrites.request));
        request["host"] = rewrites.and_then(|rewrites| rewrites.host.as_deref()).into();
        request["path"] = self.path.as_deref().into();
        [identity.into(), request, changes(rewrites.map(|rewrites| &rewrites.response))]
    }
}

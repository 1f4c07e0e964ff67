//! The fields that are the same for every request of a connection, and those about its way here.

use std::net::IpAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::identity;
use super::names::Meaning;
use crate::policy::{Identity, IdentitySets, Verdict};
use crate::registry::{ClientAuthMode, Rewrites};

/// What is known of a connection once its handshake is over.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    pub mode: ClientAuthMode,
    pub verdict: Verdict,
    /// Which sets of identity headers are sent.
    pub sets: IdentitySets,
    /// The leaf's identity; looked at only if the verdict is SUCCESS.
    pub identity: Option<&'a Identity>,
    /// The chain as the client presented it, leaf first; looked at only if the verdict is SUCCESS.
    pub chain: &'a [CertificateDer<'a>],
    /// The client, or the proxy before us.
    pub client: IpAddr,
    /// The peer is one of `trusted_proxies`: its `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are kept and added to.
    pub trusted_peer: bool,
    /// Names outside `[A-Za-z0-9-]` pass, unless they are another spelling of a name that means something here.
    pub keep_unusual_names: bool,
    /// What the hostname changes in requests.
    pub rewrites: Option<&'a Arc<Rewrites>>,
}

/// Prepared once per connection: the bytes of the fields that are the same for each of its requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionFields {
    /// The identity fields.
    identity: Vec<u8>,
    /// The client's address.
    client: String,
    /// Our element of `Forwarded`, up to the host.
    forwarded: String,
    trusted_peer: bool,
    keep_unusual_names: bool,
    rewrites: Option<Arc<Rewrites>>,
}

impl SessionFields {
    /// Prepares the fields.
    pub fn new(facts: &SessionFacts<'_>) -> Self {
        let mut identity = String::new();
        identity::push_fields(&mut identity, facts);
        let client = facts.client.to_canonical();
        // RFC 7239 section 6: an IPv6 address stands in brackets, and so in quotes.
        let node = if client.is_ipv6() { format!("\"[{client}]\"") } else { client.to_string() };
        Self {
            identity: identity.into_bytes(),
            client: client.to_string(),
            forwarded: format!("for={node};proto=https;host="),
            trusted_peer: facts.trusted_peer,
            keep_unusual_names: facts.keep_unusual_names,
            rewrites: facts.rewrites.map(Arc::clone),
        }
    }

    /// Whether what the peer says of a request's way here is believed.
    pub fn trusts_peer(&self) -> bool {
        self.trusted_peer
    }

    pub(in crate::proxy) fn keeps_unusual_names(&self) -> bool {
        self.keep_unusual_names
    }

    pub(in crate::proxy) fn rewrites(&self) -> Option<&Rewrites> {
        self.rewrites.as_deref()
    }

    /// At most how many bytes [`SessionFields::write`] appends, without what a trusted peer sent.
    pub(in crate::proxy) fn bytes_max(&self, authority: &str, request_id: &str) -> usize {
        /// Names of the six fields with their separators, `https`, a port and two quotes.
        const NAMES_BYTES: usize = 160;
        let own = self.identity.len() + self.client.len() + self.forwarded.len();
        own + 2 * authority.len() + request_id.len() + NAMES_BYTES
    }

    /// Appends the fields of one request. `inbound` gives the values of the request's own fields of one meaning, which
    /// count only if they come from a trusted peer.
    pub(in crate::proxy) fn write<'a, Values: Iterator<Item = &'a [u8]>>(
        &self,
        authority: &str,
        request_id: &str,
        out: &mut Vec<u8>,
        inbound: impl Fn(Meaning) -> Values,
    ) {
        out.extend_from_slice(&self.identity);
        if self.trusted_peer {
            self.write_way(authority, out, |meaning| Some(inbound(meaning)).into_iter().flatten());
        } else {
            self.write_way(authority, out, |_| std::iter::empty());
        }
        out.extend_from_slice(b"X-Request-Id: ");
        out.extend_from_slice(request_id.as_bytes());
        out.extend_from_slice(b"\r\n");
    }

    /// Appends what tells the request's way: ours after what is kept, in one field each, because many readers look at the
    /// first or the last field of a name only.
    fn write_way<'a, Values: Iterator<Item = &'a [u8]>>(
        &self,
        authority: &str,
        out: &mut Vec<u8>,
        kept: impl Fn(Meaning) -> Values,
    ) {
        out.extend_from_slice(b"X-Forwarded-For: ");
        push_list(out, kept(Meaning::ForwardedFor));
        out.extend_from_slice(self.client.as_bytes());
        // The first proxy knows what the client spoke and asked for; ours is said only if it said nothing.
        let mut is_ours = true;
        for (name, meaning, own) in [
            ("\r\nX-Forwarded-Proto: ", Meaning::ForwardedProto, "https"),
            ("\r\nX-Forwarded-Host: ", Meaning::ForwardedHost, authority),
        ] {
            out.extend_from_slice(name.as_bytes());
            let theirs = kept(meaning).find(|value| !value.is_empty());
            is_ours &= theirs.is_none();
            out.extend_from_slice(theirs.unwrap_or(own.as_bytes()));
        }
        // A port belongs to its host and protocol: ours beside theirs would make an address that is nobody's.
        let theirs = kept(Meaning::ForwardedPort).find(|value| !value.is_empty());
        if let Some(port) = theirs.or(is_ours.then_some(port_of(authority).as_bytes())) {
            out.extend_from_slice(b"\r\nX-Forwarded-Port: ");
            out.extend_from_slice(port);
        }
        out.extend_from_slice(b"\r\nForwarded: ");
        // A quote that never ends would swallow our element.
        if kept(Meaning::Forwarded).all(has_whole_quotes) {
            push_list(out, kept(Meaning::Forwarded));
        }
        out.extend_from_slice(self.forwarded.as_bytes());
        // An authority has no characters that need more than quotes; a port and an IPv6 address need these.
        let quote: &[u8] = if authority.contains(':') { b"\"" } else { b"" };
        for part in [quote, authority.as_bytes(), quote, b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

/// The port a client asked for: what it wrote into the authority, or that of https. The port it reached us by may be
/// another one, behind a translation of addresses.
fn port_of(authority: &str) -> &str {
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    match after_host.rsplit_once(':') {
        Some((_, port)) if !port.is_empty() => port,
        _ => "443",
    }
}

/// Appends the elements of a list, each with a comma after it.
fn push_list<'a>(out: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>) {
    for value in values.filter(|value| !value.is_empty()) {
        out.extend_from_slice(value);
        out.extend_from_slice(b", ");
    }
}

/// Whether every quoted string (RFC 9110 section 5.6.4) of the value ends in it.
fn has_whole_quotes(value: &[u8]) -> bool {
    let mut is_quoted = false;
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => drop(bytes.next()),
            _ => {}
        }
    }
    !is_quoted
}

//! What every request of a connection is asked before it is forwarded, whichever protocol it came in.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::policy::{Refusal, Verdict};
use crate::proxy::grpc;
use crate::proxy::headers::{SessionFacts, SessionFields};
use crate::proxy::http1::exchange::{Late, Limits, Order, Setting};
use crate::proxy::http1::reply::{Asked, Dialect};
use crate::proxy::http1::{Added, Framing, ProxyError, Rejected, Request, authority};
use crate::proxy::origin::Address;
use crate::proxy::origin::balance::hash;
use crate::registry::Snapshot;
use crate::registry::balancing::Policy;
use crate::telemetry::counters::{Counter, Protocol, StatusClass, Timeout, TunnelEnd};
use crate::telemetry::log::OriginFault;
use crate::telemetry::log::access;
use crate::tls::{Tenant, identity};

use super::core::Core;
use super::sessions::{self, Requested, Session};
use super::traces::Traces;

/// What the origin is told about a client, for one tenant; `None` before the first request, and after a long silence.
pub type Fields = Option<(Rc<Tenant>, SessionFields)>;

/// How long a connection that waits for its next request keeps what it tells the origin about its client. A certificate
/// is some hundred bytes; thousands of idle connections add up, and making it anew takes a few microseconds.
pub const FIELDS_WAIT: Duration = Duration::from_secs(1);

/// What a call's deadline is exceeded by before we end it: whoever set it ends it first, on both sides.
const CALL_GRACE: Duration = Duration::from_secs(1);

/// A request that may be forwarded.
pub struct Judged {
    pub order: Order,
    /// What rules that are published later may ask of it.
    pub requested: Requested,
    pub line: Option<access::Request>,
}

/// What the exchanges of this worker share.
pub fn setting<'a>(core: &'a Core, draining: &'a dyn Fn() -> bool) -> Setting<'a> {
    let http = &core.config.http;
    Setting {
        origins: &core.origins,
        shard: &core.shard,
        histograms: &core.histograms,
        slots: &core.slots,
        limits: Limits {
            head: http.head,
            body_bytes_max: http.body_bytes_max,
            min_body_rate: http.min_body_rate,
            silence: core.config.tunnel_timeout,
        },
        draining,
    }
}

/// Counts a request that has ended; status 0: unanswered.
pub fn count(core: &Core, protocol: Protocol, status: u16, began: Instant) {
    let class = match status {
        0 => StatusClass::Unanswered,
        100..200 => StatusClass::Switched,
        200..300 => StatusClass::Success,
        300..400 => StatusClass::Redirect,
        400..500 => StatusClass::ClientError,
        _ => StatusClass::ServerError,
    };
    core.shard.count(Counter::Request(protocol, class));
    let us = Instant::now().saturating_duration_since(began).as_micros() as u64;
    core.histograms.borrow_mut().request.record_us(us);
}

/// How a response ended that broke off behind its head: not every one is the origin's fault.
pub fn broken_off(late: Option<Late>) -> TunnelEnd {
    match late {
        Some(Late::Request { .. }) => TunnelEnd::RequestTimedOut,
        _ => TunnelEnd::OriginAborted,
    }
}

/// Counts the time limit that ended an exchange, if one did.
pub fn count_late(core: &Core, late: Option<Late>) {
    let Some(late) = late else { return };
    core.shard.count(Counter::Timeout(match late {
        Late::Response => Timeout::Response,
        Late::Silence => Timeout::Tunnel,
        Late::Body => Timeout::BodyRate,
        Late::Reader => Timeout::SlowReader,
        Late::Request { .. } => Timeout::Request,
    }));
}

/// Logs a request that its origin gave no answer to: the error the client is told, and where it happened.
pub fn log_unanswered(
    core: &Core,
    session: &Session,
    tenant: &Tenant,
    error: ProxyError,
    address: Option<&Address>,
    detail: Option<&str>,
) {
    let unreachable = matches!(
        error,
        ProxyError::ConnectionRefused
            | ProxyError::ConnectionTimeout
            | ProxyError::ConnectionLimitReached
            | ProxyError::DestinationIpUnroutable
            | ProxyError::DestinationUnavailable
    );
    core.log_origin(&OriginFault {
        event: if unreachable { OriginFault::UNREACHABLE } else { OriginFault::FAILED },
        origin: &tenant.record.origin.name,
        hostname: session.server_name.as_deref(),
        address: address.map(|address| address.key() as &dyn std::fmt::Display),
        error: error.label(),
        detail,
    });
}

/// Why a request is not forwarded.
pub enum Unfit {
    Rejected(Rejected),
    /// The connection ends with it.
    End(TunnelEnd),
}

impl From<Rejected> for Unfit {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

/// What the access log says of a request.
pub fn line(request: &Request<'_>, id: &str) -> access::Request {
    let [method, target, authority] = [request.method, request.target, request.authority].map(str::as_bytes);
    let mut line = access::Request::new(method, target, authority, id.as_bytes());
    line.trace_id = request.trace_id();
    line
}

/// Judges a request: its authority, the hostname's rules, the length of its body. What comes of it is the request as it is
/// forwarded, what rules may ask of it later, and its line in the access log, if that is on.
pub fn judge(core: &Rc<Core>, session: &Session, fields: &mut Fields, request: &Request<'_>) -> Result<Judged, Unfit> {
    let rejected = |status, reason, detail| Rejected { status, reason, detail };
    {
        let published = core.published.borrow();
        // DECISIONS 14: what was published since counts, whether the sweep has come by or not.
        if published.snapshot.generation != session.generation.get() {
            if sessions::rejudge(core, &published.snapshot, session).is_err() {
                return Err(Unfit::End(TunnelEnd::TrustChanged));
            }
            session.generation.set(published.snapshot.generation);
        }
        if !is_own(session, &published.snapshot, request.authority) {
            return Err(rejected(421, Refusal::AuthorityMismatch, "the request is for another hostname").into());
        }
    }
    let tenant = Rc::clone(&session.tenant.borrow());
    let rules = &tenant.record.rules;
    let mut requested = Requested::Unseen;
    let mut scratch = String::new();
    // Remembered whether a rule looks at it now or not: one that is published while the request is under way may.
    match request.judged_path(&mut scratch) {
        Ok(path) => requested = Requested::Seen { method: request.method.into(), path: path.into() },
        Err(rejected) if rules.needs_request() => return Err(rejected.into()),
        Err(_) => {}
    }
    if rules.needs_request()
        && let Requested::Seen { method, path } = &requested
    {
        sessions::judge_request(&tenant, session, Some((method, path)))
            .map_err(|reason| rejected(403, reason, "the hostname's rules deny this request"))?;
    }
    if request.framing.exceeds(core.config.http.body_bytes_max) {
        return Err(rejected(413, Refusal::MalformedRequest, "the body is larger than limits.body_bytes").into());
    }
    if fields.as_ref().is_none_or(|(known, _)| !Rc::ptr_eq(known, &tenant)) {
        *fields = Some((Rc::clone(&tenant), session_fields(core, session, &tenant)));
    }
    let Some((_, fields)) = fields else { return Err(Unfit::End(TunnelEnd::ClientAborted)) };
    let mut head = core.buffers.plain();
    let own = core.request_ids.next();
    let request_id = match request.request_id(fields) {
        Some(id) => id,
        None => std::str::from_utf8(&own).unwrap_or_default(),
    };
    // A request that brings a trace goes on in that one.
    let begun = core.traces.as_ref().filter(|_| request.trace_id().is_none()).and_then(Traces::begin);
    if let Err(rejected) = request.write(&Added { session: fields, request_id, begun: begun.as_ref() }, &mut head) {
        core.buffers.keep_plain(head);
        return Err(rejected.into());
    }
    let origin = &tenant.record.origin;
    // A call of gRPC needs HTTP/2 to its origin; elsewhere these fields are nobody's business, and not looked for.
    let framed = origin.may_speak_http2();
    let is_call = framed && request.value_of("content-type").is_some_and(grpc::is_grpc);
    let timeout = if is_call { request.value_of("grpc-timeout").and_then(grpc::timeout) } else { None };
    let order = Order {
        head,
        framing: request.framing,
        asked: Asked {
            head: request.is_head(),
            websocket: request.websocket && request.framing == Framing::None,
            dialect: if request.is_http_1_0 { Dialect::Http1_0 } else { Dialect::Http1_1 },
        },
        keep_alive: request.keep_alive,
        expects_continue: request.expects_continue,
        idempotent: request.is_idempotent(),
        streams: is_call,
        asked_timeout: timeout.map_or(Duration::ZERO, |timeout| timeout + CALL_GRACE),
        takes_trailers: framed && request.takes_trailers(),
        balance_key: balance_key(&origin.balancing.policy, request, session),
    };
    let line = core.access.enabled().then(|| {
        let mut line = line(request, request_id);
        line.trace_id = line.trace_id.or(begun.map(|begun| begun.trace_id()));
        line
    });
    Ok(Judged { order, requested, line })
}

/// What a request goes by where its origin's addresses are chosen by a hash.
fn balance_key(policy: &Policy, request: &Request<'_>, session: &Session) -> u64 {
    let by_field = match policy {
        Policy::RoundRobin | Policy::LeastPending => return 0,
        Policy::HashClientAddress => None,
        Policy::HashHeader(name) => request.hash_of(name),
    };
    by_field.unwrap_or_else(|| hash::of(&session.remote.source().map(|source| source.to_canonical())))
}

/// Whether an authority belongs to the connection's own record (I4).
fn is_own(session: &Session, snapshot: &Snapshot, written: &str) -> bool {
    let mut memory = [0; 255];
    let name = authority::normalise(written, &mut memory);
    if name.is_some() && name == session.server_name.as_deref() {
        return true;
    }
    let resolution = match name {
        Some(name) => snapshot.resolve(name),
        None => snapshot.resolve_default(),
    };
    resolution.record().is_some_and(|record| record.id == session.tenant.borrow().record.id)
}

/// What the origin is told about this client.
fn session_fields(core: &Core, session: &Session, tenant: &Tenant) -> SessionFields {
    let source =
        session.remote.source().unwrap_or(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)).to_canonical();
    let verdict = session.standing.verdict;
    let tls = session.tls.borrow();
    // Read for this once and not kept: what comes of it is, and that is smaller.
    let leaf = tls.peer_certificates().and_then(|chain| chain.first()).filter(|_| verdict == Verdict::Success);
    let identity = leaf.and_then(|leaf| identity::parse(leaf).ok());
    SessionFields::new(&SessionFacts {
        mode: tenant.record.client_auth.mode,
        verdict,
        sets: tenant.record.client_auth.headers,
        identity: identity.as_ref(),
        chain: tls.peer_certificates().unwrap_or_default(),
        client: source,
        // By whoever speaks HTTP with us: behind a balancer that passes bytes on, the client it names.
        trusted_peer: session.remote.is_known() && core.config.trusted_proxies.iter().any(|net| net.contains(&source)),
        keep_unusual_names: tenant.record.keep_unusual_headers,
        rewrites: tenant.record.rewrites.as_ref(),
    })
}

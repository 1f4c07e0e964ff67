//! One stream: a request that is judged, forwarded and answered by itself.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol as ConnectProtocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};

use crate::policy::Refusal;
use crate::proxy::grpc;
use crate::proxy::http1::client::Gone;
use crate::proxy::http1::exchange::{self, DISCARD_BYTES, End, Ended, Facts};
use crate::proxy::http1::reply::Dialect;
use crate::proxy::http1::{Framing, Parsed, ProxyError, Rejected, Request, answer};
use crate::proxy::http2::client::Stream;
use crate::proxy::http2::head::{self, Kind, Malformed};
use crate::proxy::http2::tunnel::Tunnel;
use crate::proxy::origin::Lease;
use crate::proxy::tunnel::Traffic;
use crate::registry::Scheme;
use crate::ring;
use crate::telemetry::counters::{Counter, Limit, Protocol, StreamReset, TunnelEnd};
use crate::telemetry::log::{Refused, access};

use super::Shared;
use crate::worker::access::Line;
use crate::worker::core::Core;
use crate::worker::extras::Extra;
use crate::worker::requests::{self, Judged, Unfit};
use crate::worker::sessions::{Session, Underway};

/// Serves one stream to its end.
pub(super) async fn run(
    core: &Rc<Core>,
    session: &Rc<Session>,
    shared: &Rc<Shared>,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
    is_first: bool,
) {
    let began = ring::now();
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get(http::header::CONTENT_TYPE);
    let grpc = content_type.is_some_and(|value| grpc::is_grpc(value.as_bytes()));
    let served = Served { core, session, shared, began, grpc, is_first };
    let (verdict, framing) = served.judge(&parts, &body);
    let line = (verdict.is_err() && core.access.enabled()).then(|| as_sent(&parts));
    // The fields of the request are text by now: they need no memory while it is under way.
    let is_head = parts.method == http::Method::HEAD;
    drop(parts);
    let stream = Stream::new(&core.buffers, body, framing, respond, &shared.pieces);
    match verdict {
        Ok(Verdict::Forward(judged, websocket_accept)) => {
            if let Some(accept) = websocket_accept {
                stream.expect_websocket(accept);
            }
            let left = match served.enter() {
                Ok(extra) => {
                    let left = served.forward(stream, *judged).await;
                    drop(extra);
                    left
                }
                Err(error) => {
                    served.turn_away(&stream, error, *judged);
                    Some(stream)
                }
            };
            if let Some(stream) = left {
                Box::pin(discard(&stream, framing)).await;
            }
        }
        Ok(Verdict::Answer(rejected, line)) => {
            served.refuse(&stream, rejected, line, is_head);
            Box::pin(discard(&stream, framing)).await;
        }
        Ok(Verdict::End(end)) => {
            stream.reset(Reason::REFUSED_STREAM);
            shared.end(end);
        }
        Err(Malformed(detail)) => {
            // Counted as a reset where it is sent, with those of `h2`.
            stream.reset(Reason::PROTOCOL_ERROR);
            core.shard.count(Counter::RequestRefused(Refusal::MalformedRequest));
            served.record(0, line.map(|line| served.line(line, false)), None);
            served.log_refused(Refusal::MalformedRequest, detail);
        }
    }
}

/// What the access log says of a request that could not be translated.
fn as_sent(parts: &http::request::Parts) -> access::Request {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    access::Request::new(parts.method.as_str().as_bytes(), target.as_bytes(), authority.as_bytes(), b"")
}

/// What becomes of a request that is well-formed as HTTP/2 has it.
enum Verdict {
    /// It is forwarded; a WebSocket is open if the origin proves it with these words (RFC 6455 section 4.2.2).
    Forward(Box<Judged>, Option<String>),
    Answer(Rejected, Option<access::Request>),
    /// The connection ends with it.
    End(TunnelEnd),
}

/// One request.
struct Served<'a> {
    core: &'a Rc<Core>,
    session: &'a Rc<Session>,
    shared: &'a Shared,
    began: Instant,
    /// It is a call of gRPC, whose clients want to be refused in its terms.
    grpc: bool,
    /// No other stream of its connection was open when it began.
    is_first: bool,
}

impl Served<'_> {
    /// Takes a share of the worker's connections to origins, where the stream may need one beyond its connection's own.
    fn enter(&self) -> Result<Option<Extra>, ProxyError> {
        let tenant = self.session.tenant.borrow();
        // On HTTP/2 to the origin many streams share a connection.
        if self.is_first || tenant.record.origin.scheme == Scheme::H2c {
            return Ok(None);
        }
        match self.core.extras.enter(tenant.record.id) {
            Some(extra) => Ok(Some(extra)),
            None => {
                self.core.shard.count(Counter::Limit(Limit::OriginConnections));
                Err(ProxyError::ConnectionLimitReached)
            }
        }
    }

    /// Answers a request that would have been forwarded.
    fn turn_away(&self, stream: &Stream<'_>, error: ProxyError, judged: Judged) {
        let mut line = judged.line.map(|request| self.line(request, false));
        if let Some(line) = &mut line {
            line.request.proxy_error = Some(error.label());
        }
        let bytes = self.answer(stream, error.status(), Some(error), judged.order.asked.head);
        self.record(error.status(), with_bytes(line, bytes.unwrap_or(0)), None);
    }

    /// Translates and judges.
    fn judge(&self, parts: &http::request::Parts, body: &RecvStream) -> (Result<Verdict, Malformed>, Framing) {
        let mut key = String::new();
        let kind = match kind(parts, body, &mut key) {
            Ok(kind) => kind,
            Err(rejected) => return (Ok(Verdict::Answer(rejected, None)), Framing::None),
        };
        // Before anything is made of them: a few bytes of HPACK can stand for thousands of fields.
        if parts.headers.len() > self.core.config.http.head.fields_max {
            let rejected =
                Rejected { status: 431, reason: Refusal::MalformedRequest, detail: "the head has too many fields" };
            return (Ok(Verdict::Answer(rejected, None)), Framing::None);
        }
        let mut text = self.core.buffers.plain();
        let verdict = match head::push_request(parts, kind, &mut text) {
            Err(malformed) => (Err(malformed), Framing::None),
            Ok(()) => {
                let (verdict, framing) = self.judge_text(&text, kind);
                (Ok(verdict), framing)
            }
        };
        self.core.buffers.keep_plain(text);
        verdict
    }

    fn judge_text(&self, text: &[u8], kind: Kind<'_>) -> (Verdict, Framing) {
        let core = self.core;
        let mut slots = core.slots.borrow_mut();
        let request = match Request::parse(text, &core.config.http.head, &mut slots) {
            Ok(Parsed::Complete(request)) => request,
            // What was written has an end; only a limit keeps it from being seen.
            Ok(Parsed::Incomplete) => {
                let rejected =
                    Rejected { status: 431, reason: Refusal::MalformedRequest, detail: "the head is too large" };
                return (Verdict::Answer(rejected, None), Framing::None);
            }
            Err(rejected) => return (Verdict::Answer(rejected, None), Framing::None),
        };
        let framing = request.framing;
        let verdict = match requests::judge(core, self.session, &mut self.shared.fields.borrow_mut(), &request) {
            Ok(mut judged) => {
                judged.order.asked.dialect = Dialect::Http2;
                judged.order.streams |= self.grpc;
                let accept = match kind {
                    Kind::WebSocket { key } => Some(head::websocket_accept(key)),
                    Kind::Bodiless | Kind::WithBody => None,
                };
                Verdict::Forward(Box::new(judged), accept)
            }
            Err(Unfit::End(end)) => Verdict::End(end),
            Err(Unfit::Rejected(rejected)) => {
                let line = core.access.enabled().then(|| requests::line(&request, ""));
                Verdict::Answer(rejected, line)
            }
        };
        (verdict, framing)
    }

    /// Forwards a request and passes its response on. Returns the stream, unless it has become a tunnel's.
    async fn forward<'s>(&self, stream: Stream<'s>, judged: Judged) -> Option<Stream<'s>> {
        let Judged { order, requested, line } = judged;
        let (core, session) = (self.core, self.session);
        let underway = Rc::new(Underway { requested, ..Underway::default() });
        let key = session.streams.borrow_mut().insert(Rc::clone(&underway));
        let leave = Leave { session, key };
        let mut line = line.map(|request| self.line(request, true));
        let tenant = Rc::clone(&session.tenant.borrow());
        let head_only = order.asked.head;
        let mut sleep = ring::sleep_until(self.began);
        let ended = {
            let draining = || false;
            let setting = requests::setting(core, &draining);
            let mut exchange = pin!(exchange::run(&setting, &stream, &tenant, order, &mut sleep));
            poll_fn(|cx| match underway.denied.poll(cx) {
                Poll::Ready(reason) => Poll::Ready(Err(reason)),
                Poll::Pending => exchange.as_mut().poll(cx).map(Ok),
            })
            .await
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(_) => {
                core.shard.count(Counter::ClientRefused(Refusal::TrustChanged));
                self.log_refused(Refusal::TrustChanged, "the hostname's rules deny this request now");
                self.reset(&stream, Reason::CANCEL, StreamReset::TrustChanged);
                self.record(0, line, Some(TunnelEnd::TrustChanged));
                return Some(stream);
            }
        };
        requests::count_late(core, ended.late);
        if let Some(line) = &mut line {
            line.facts = ended.facts;
            line.request.retried = ended.facts.retried;
        }
        let Ended { end, status, late, address, detail, .. } = ended;
        match end {
            End::Whole { .. } => self.record(status, line, None),
            End::Switched(lease, leftover) => {
                requests::count(core, Protocol::Http2, 101, self.began);
                if let Some(line) = &mut line {
                    line.request.status = 200;
                }
                // Boxed, as is what else most streams do not do: each of them is copied into a task of its own.
                Box::pin(self.tunnel(stream, lease, leftover, &underway, line)).await;
                return None;
            }
            End::Unanswered(error) => {
                requests::log_unanswered(core, session, &tenant, error, address.as_deref(), detail.as_deref());
                if let Some(line) = &mut line {
                    line.request.proxy_error = Some(error.label());
                }
                let bytes = self.answer(&stream, error.status(), Some(error), head_only);
                self.record(error.status(), with_bytes(line, bytes.unwrap_or(0)), None);
            }
            End::Refused(status) => {
                core.shard.count(Counter::RequestRefused(Refusal::MalformedRequest));
                let bytes = self.answer(&stream, status, None, head_only);
                self.record(status, with_bytes(line, bytes.unwrap_or(0)), None);
            }
            End::BrokenOff => {
                self.reset(&stream, Reason::INTERNAL_ERROR, StreamReset::BrokenOff);
                self.record(status, line, Some(requests::broken_off(late)));
            }
            End::SlowReader => {
                self.reset(&stream, Reason::CANCEL, StreamReset::SlowReader);
                self.record(status, line, Some(TunnelEnd::TimedOut));
            }
            End::Gone(Gone::Broke) if stream.is_malformed() => {
                core.shard.count(Counter::RequestRefused(Refusal::MalformedRequest));
                self.log_refused(Refusal::MalformedRequest, "its trailers are malformed");
                stream.reset(Reason::PROTOCOL_ERROR);
                self.record(status, line, None);
            }
            // What the origin said cannot be said in HTTP/2, or is no WebSocket.
            End::Gone(Gone::Broke) => {
                let error = ProxyError::HttpProtocolError;
                if let Some(line) = &mut line {
                    line.request.proxy_error = Some(error.label());
                }
                let bytes = self.answer(&stream, error.status(), Some(error), head_only);
                if bytes.is_none() {
                    self.reset(&stream, Reason::INTERNAL_ERROR, StreamReset::BrokenOff);
                }
                self.record(error.status(), with_bytes(line, bytes.unwrap_or(0)), None);
            }
            End::Gone(Gone::Cut) => {
                core.shard.count(Counter::StreamReset(StreamReset::Client));
                // A connection that was ended from outside says so itself.
                let by_client = session.end.get().is_none().then_some(TunnelEnd::ClientAborted);
                self.record(status, line, by_client);
            }
        }
        drop(leave);
        Some(stream)
    }

    /// Joins a WebSocket's two sides.
    async fn tunnel(
        &self,
        stream: Stream<'_>,
        lease: Lease,
        leftover: Vec<u8>,
        underway: &Underway,
        mut line: Option<Line<'_>>,
    ) {
        let core = self.core;
        let traffic = Traffic::default();
        traffic.out_bytes.set(leftover.len() as u64);
        let end = match stream.into_tunnel() {
            None => TunnelEnd::ClientAborted,
            Some((client, answer)) => {
                let tunnel = Tunnel {
                    origin: &lease.wire,
                    shard: &core.shard,
                    buffers: &core.buffers,
                    traffic: &traffic,
                    pieces: &self.shared.pieces,
                    idle: core.config.tunnel_timeout,
                };
                let mut running = pin!(tunnel.run(client, answer, leftover));
                poll_fn(|cx| match underway.denied.poll(cx) {
                    Poll::Ready(_) => Poll::Ready(TunnelEnd::TrustChanged),
                    Poll::Pending => running.as_mut().poll(cx),
                })
                .await
            }
        };
        match end {
            TunnelEnd::TrustChanged => {
                core.shard.count(Counter::ClientRefused(Refusal::TrustChanged));
                core.shard.count(Counter::StreamReset(StreamReset::TrustChanged));
                self.log_refused(Refusal::TrustChanged, "the hostname's rules deny this WebSocket now");
                lease.wire.reset_on_close();
            }
            TunnelEnd::TimedOut => core.shard.count(Counter::Timeout(crate::telemetry::counters::Timeout::Tunnel)),
            _ => {}
        }
        core.shard.count(Counter::TunnelEnd(end));
        if let Some(line) = &mut line {
            (line.facts.in_bytes, line.facts.out_bytes) = (traffic.in_bytes.get(), traffic.out_bytes.get());
            line.end = Some(end);
        }
    }

    /// Answers a request that is not forwarded.
    fn refuse(&self, stream: &Stream<'_>, rejected: Rejected, line: Option<access::Request>, head_only: bool) {
        let Rejected { status, reason, detail } = rejected;
        self.core.shard.count(Counter::RequestRefused(reason));
        self.log_refused(reason, detail);
        let bytes = self.answer(stream, status, None, head_only);
        let line = self.core.access.enabled().then(|| {
            let request = line.unwrap_or_else(|| access::Request::new(b"", b"", b"", b""));
            self.line(request, false)
        });
        self.record(status, with_bytes(line, bytes.unwrap_or(0)), None);
    }

    /// Sends an answer of ours. Returns how many bytes of it are content; `None` where nothing can be said any more.
    fn answer(&self, stream: &Stream<'_>, status: u16, error: Option<ProxyError>, head_only: bool) -> Option<u64> {
        if self.grpc {
            return stream.answer(grpc::answer(status, error.map(ProxyError::label)), Bytes::new()).then_some(0);
        }
        let mut text = Vec::new();
        answer::answer(status, error, true, head_only, &mut text);
        let (head, body) = head::own_answer(&text)?;
        let body = Bytes::copy_from_slice(body);
        let bytes = body.len() as u64;
        stream.answer(head, body).then_some(bytes)
    }

    fn reset(&self, stream: &Stream<'_>, code: Reason, reason: StreamReset) {
        self.core.shard.count(Counter::StreamReset(reason));
        stream.reset(code);
    }

    /// Counts a request that has ended, and writes its line.
    fn record(&self, status: u16, line: Option<Line<'_>>, end: Option<TunnelEnd>) {
        requests::count(self.core, Protocol::Http2, status, self.began);
        if let Some(mut line) = line {
            line.request.status = status;
            line.end = end;
        }
    }

    /// The line of a request that is under way.
    fn line(&self, request: access::Request, asked_origin: bool) -> Line<'_> {
        let mut logged = self.shared.logged.borrow_mut();
        let connection = logged.get_or_insert_with(|| crate::worker::access::connection(self.core, self.session));
        Line {
            core: self.core,
            session: self.session,
            connection: std::sync::Arc::clone(connection),
            began: self.began,
            protocol: Protocol::Http2,
            request,
            facts: Facts::default(),
            asked_origin,
            end: None,
        }
    }

    fn log_refused(&self, reason: Refusal, detail: &str) {
        let session = self.session;
        self.core.log_refused(|| Refused {
            hostname: session.server_name.as_deref().map(str::to_owned),
            peer: session.remote.client,
            via: session.remote.announced_by(),
            detail: Some(detail.to_owned()),
            ..Refused::new(reason)
        });
    }
}

/// Reads the rest of a request that has been answered, as far as it is little, and forgets it.
///
/// Whoever is told to stop sending (RST_STREAM with NO_ERROR, RFC 9113 section 8.1) together with the answer may lose the
/// answer: curl 7.88 takes both in one record for a failure. So a small rest is waited for, and the client of a large one
/// has time to read first.
async fn discard(stream: &Stream<'_>, framing: Framing) {
    let is_small = match framing {
        Framing::None => true,
        Framing::Length(length) => length <= DISCARD_BYTES,
        Framing::Chunked => false,
    };
    let wait = if is_small { DISCARD_WAIT } else { ANSWER_WAIT };
    let mut left = DISCARD_BYTES;
    // What ends it does not matter: the stream ends next.
    let _ = ring::timeout(wait, poll_fn(|cx| stream.poll_discard(cx, &mut left))).await;
}

/// How long the rest of a request that nobody wants is waited for, at most.
const DISCARD_WAIT: Duration = Duration::from_secs(5);

/// How long a client has for its answer before it is told to stop sending: a round trip around the world.
const ANSWER_WAIT: Duration = Duration::from_millis(300);

/// Takes a stream out of its session's when it is dropped.
struct Leave<'a> {
    session: &'a Session,
    key: usize,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let underway = self.session.streams.borrow_mut().try_remove(self.key);
        drop(underway);
    }
}

fn with_bytes(line: Option<Line<'_>>, bytes: u64) -> Option<Line<'_>> {
    line.map(|mut line| {
        line.facts.out_bytes += bytes;
        line
    })
}

/// What the request is, in the terms of HTTP/1.1. `key` holds the key of a WebSocket.
fn kind<'k>(parts: &http::request::Parts, body: &RecvStream, key: &'k mut String) -> Result<Kind<'k>, Rejected> {
    let rejected = |status, detail| Rejected { status, reason: Refusal::MalformedRequest, detail };
    if parts.method != http::Method::CONNECT {
        return Ok(if body.is_end_stream() { Kind::Bodiless } else { Kind::WithBody });
    }
    match parts.extensions.get::<ConnectProtocol>().map(ConnectProtocol::as_str) {
        Some("websocket") if parts.headers.contains_key(http::header::CONTENT_LENGTH) => {
            Err(rejected(400, "content-length in an extended CONNECT"))
        }
        Some("websocket") => {
            let mut random = [0; 16];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| rejected(500, "the system gave no random bytes"))?;
            STANDARD.encode_string(random, key);
            Ok(Kind::WebSocket { key })
        }
        // RFC 9220 section 3, of the same thing in HTTP/3.
        Some(_) => Err(rejected(501, "extended CONNECT to something else than websocket")),
        None => Err(rejected(405, "CONNECT")),
    }
}

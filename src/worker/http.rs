//! The requests of one client connection, one after the other: each is judged by itself, and answered in its turn.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::policy::Refusal;
use crate::proxy::http1::client::{Client, Gone};
use crate::proxy::http1::exchange::{self, End, Facts, Order, is_small};
use crate::proxy::http1::reply::Dialect;
use crate::proxy::http1::{Body, Framing, Parsed, ProxyError, Rejected, Request, answer};
use crate::proxy::origin::Lease;
use crate::proxy::tunnel::{Traffic, Tunnel};
use crate::ring::{self, Sleep, Socket};
use crate::telemetry::counters::{Counter, Protocol, Timeout, TunnelEnd};
use crate::telemetry::log::{Refused, access};
use crate::tls::Outgoing;

use super::access::Line;
use super::core::Core;
use super::requests::{self, FIELDS_WAIT, Fields, Unfit, line};
use super::session::{LINGER, say_goodbye};
use super::sessions::{Requested, Session};

/// How long a session ticket waits for the first answer to travel with. Clients that mean to ask do so at once, or within
/// a round trip; those that open connections ahead of time get it by itself.
const TICKET_WAIT: Duration = Duration::from_millis(200);

/// How long a connection of a worker that drains is kept after its last request, for one more. A client that asks one
/// request after the other may have sent the next, or is about to: an answer tells it that the connection ends, where a
/// close would leave it in doubt whether a request was served (RFC 9112 section 9.6). A new one has its first request in it.
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// How long the rest of a request that nobody wants is waited for, at most.
const DISCARD_WAIT: Duration = Duration::from_secs(5);

/// Serves requests until the connection ends. Returns how it ended, and what is still to be sent.
pub async fn serve(
    core: &Rc<Core>,
    socket: &Socket,
    session: &Session,
    early: Vec<u8>,
    out: Outgoing,
) -> (TunnelEnd, Outgoing) {
    let now = ring::now();
    let mut connection = Connection {
        core,
        session,
        client: Client::new(socket, &session.tls, &core.buffers, early, out),
        fields: None,
        sleep: ring::sleep_until(now + core.config.http.idle_timeout),
        idle_since: now,
        head_since: None,
        searched: 0,
        logged: None,
        answered_bytes: Cell::new(0),
    };
    let end = loop {
        match poll_fn(|cx| connection.poll_step(cx)).await {
            Step::Flush => {
                if Box::pin(connection.client.flush()).await.is_err() {
                    break TunnelEnd::ClientAborted;
                }
            }
            // Boxed, so that a connection that waits for its next request does not carry it along.
            Step::Forward(order) => match Box::pin(connection.forward(order)).await {
                Next::Again => connection.begin_again(),
                Next::End(end) => break end,
                Next::Tunnel(switched) => {
                    let Connection { client, .. } = connection;
                    return Box::pin(tunnel(core, session, client, switched)).await;
                }
            },
            Step::Answer(denied) => match Box::pin(connection.refuse(*denied)).await {
                Next::Again => connection.begin_again(),
                Next::End(end) => break end,
                Next::Tunnel(_) => break TunnelEnd::ProtocolError,
            },
            Step::End(end) => break end,
        }
    };
    Box::pin(connection.finish(end)).await
}

/// A connection to an origin that has become a WebSocket's.
struct Switched<'a> {
    lease: Lease,
    /// What the origin has sent on it already.
    leftover: Vec<u8>,
    line: Option<Line<'a>>,
}

/// Joins a WebSocket's two sides.
async fn tunnel(
    core: &Core,
    session: &Session,
    client: Client<'_>,
    switched: Box<Switched<'_>>,
) -> (TunnelEnd, Outgoing) {
    let Switched { lease, leftover, mut line } = *switched;
    if client.write(&leftover).is_err() {
        return (TunnelEnd::ProtocolError, Outgoing::default());
    }
    core.shard.add(Counter::BytesOut, leftover.len() as u64);
    let socket = client.socket;
    let (early, out) = client.into_waiting();
    let traffic = Traffic::default();
    traffic.out_bytes.set(leftover.len() as u64);
    let tunnel = Tunnel {
        client: socket,
        tls: &session.tls,
        origin: &lease.wire,
        shard: &core.shard,
        buffers: &core.buffers,
        traffic: &traffic,
        idle: core.config.tunnel_timeout,
    };
    let (end, last) = tunnel.run(early, out).await;
    if let Some(line) = &mut line {
        (line.facts.in_bytes, line.facts.out_bytes) = (traffic.in_bytes.get(), traffic.out_bytes.get());
        line.end = Some(end);
    }
    (end, last)
}

/// What is to be done next.
enum Step {
    /// Send what waits.
    Flush,
    Forward(Box<(Order, Option<access::Request>)>),
    Answer(Box<Denied>),
    End(TunnelEnd),
}

/// A request that is answered here.
struct Denied {
    status: u16,
    reason: Refusal,
    detail: &'static str,
    head_only: bool,
    /// What is still to come of the request, if the connection may go on after it.
    rest: Option<(Framing, Body)>,
    /// For the access log, if it is on and the head was understood.
    line: Option<access::Request>,
}

/// What becomes of the connection.
enum Next<'a> {
    Again,
    End(TunnelEnd),
    Tunnel(Box<Switched<'a>>),
}

struct Connection<'a> {
    core: &'a Rc<Core>,
    session: &'a Session,
    client: Client<'a>,
    /// What the origin is told about the client, for this tenant.
    fields: Fields,
    /// One timer for all limits: they are moved later far more often than earlier.
    sleep: Sleep,
    idle_since: Instant,
    /// When the first byte of the head that waits came.
    head_since: Option<Instant>,
    /// How much of what waits has been searched for the end of a head.
    searched: usize,
    /// What all access log lines of this connection say, once there was one.
    logged: Option<Arc<access::Connection>>,
    /// Bytes of the body of our own answer to the request that is under way.
    answered_bytes: Cell<u64>,
}

impl<'a> Connection<'a> {
    fn begin_again(&mut self) {
        self.idle_since = ring::now();
        self.head_since = None;
        self.searched = 0;
        *self.session.request.borrow_mut() = Requested::Nothing;
    }

    /// Waits for a request and judges it.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        loop {
            let waiting = self.client.waiting();
            if waiting > 0 && self.head_since.is_none() {
                self.head_since = Some(ring::now());
            }
            if let Some(step) = self.look(waiting) {
                return Poll::Ready(step);
            }
            match self.client.poll_read(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    let end = if self.head_since.is_some() { TunnelEnd::ClientAborted } else { TunnelEnd::Clean };
                    return Poll::Ready(Step::End(end));
                }
                // Between requests nothing can be cut short: that a client saves its goodbye harms nobody.
                Poll::Ready(Err(Gone::Cut)) if self.head_since.is_none() => {
                    return Poll::Ready(Step::End(TunnelEnd::Clean));
                }
                Poll::Ready(Err(gone)) => return Poll::Ready(Step::End(end_of(gone))),
                Poll::Pending => return self.poll_limits(cx),
            }
        }
    }

    /// Judges the request that waits, if all of its head is here.
    fn look(&mut self, waiting: usize) -> Option<Step> {
        // A head ends with a line. Looking only when one has come bounds what a client that sends byte by byte costs.
        let searched = std::mem::replace(&mut self.searched, waiting);
        let full = waiting >= self.core.config.http.head.bytes_max;
        let client = &self.client;
        let (fields, core, session) = (&mut self.fields, self.core, self.session);
        client.consume(|bytes| {
            let fresh = &bytes[searched.min(bytes.len())..];
            if fresh.is_empty() || !(full || fresh.contains(&b'\n')) {
                return (0, None);
            }
            judge(core, session, fields, bytes)
        })
    }

    /// Nothing has come: looks at the limits, and gives back what an idle connection does not need.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let http = &self.core.config.http;
        let draining = self.head_since.is_none() && self.session.draining.poll(cx).is_ready();
        let due = match self.head_since {
            Some(since) => since + http.header_timeout,
            None => {
                self.client.release();
                let wait = if self.client.unsent() > 0 {
                    TICKET_WAIT
                } else if draining {
                    DRAIN_WAIT
                } else if self.fields.is_some() {
                    FIELDS_WAIT
                } else {
                    http.idle_timeout
                };
                self.idle_since + wait.min(http.idle_timeout)
            }
        };
        self.sleep.reset(due);
        if Pin::new(&mut self.sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(match self.head_since {
            Some(_) => {
                self.core.shard.count(Counter::Timeout(Timeout::Header));
                Step::Answer(Box::new(Denied {
                    status: 408,
                    reason: Refusal::MalformedRequest,
                    detail: "the head did not come in time",
                    head_only: false,
                    rest: None,
                    line: None,
                }))
            }
            None if self.client.unsent() > 0 => Step::Flush,
            None if draining => Step::End(TunnelEnd::DrainedIdle),
            None if self.fields.is_some() && due < self.idle_since + http.idle_timeout => {
                self.fields = None;
                return self.poll_limits(cx);
            }
            None => Step::End(TunnelEnd::Idle),
        })
    }

    /// Forwards a request and passes its response on.
    async fn forward(&mut self, order: Box<(Order, Option<access::Request>)>) -> Next<'a> {
        let (order, request) = *order;
        let core = self.core;
        let began = self.head_since.unwrap_or_else(ring::now);
        let mut line = request.map(|request| self.line(request, began, true));
        let written = self.client.written_bytes();
        let draining = || core.draining.get().is_some();
        let setting = requests::setting(core, &draining);
        let tenant = Rc::clone(&self.session.tenant.borrow());
        let (head_only, framing) = (order.asked.head, order.framing);
        self.client.set_http_1_0(order.asked.dialect == Dialect::Http1_0);
        let ended = exchange::run(&setting, &self.client, &tenant, order, &mut self.sleep).await;
        core.shard.add(Counter::BytesOut, self.client.written_bytes() - written);
        requests::count_late(core, ended.late);
        if let Some(line) = &mut line {
            line.facts = ended.facts;
            line.request.retried = ended.facts.retried;
        }
        let (status, next) = match ended.end {
            End::Whole { keep, rest } => {
                let goes_on = match rest {
                    Some(rest) => keep && self.discard(framing, rest).await,
                    None => keep,
                };
                (ended.status, if goes_on { Next::Again } else { Next::End(TunnelEnd::Answered) })
            }
            End::Switched(lease, leftover) => {
                self.count(ended.status, began);
                if let Some(line) = &mut line {
                    line.request.status = ended.status;
                }
                return Next::Tunnel(Box::new(Switched { lease, leftover, line }));
            }
            End::Unanswered(error) => {
                requests::log_unanswered(
                    core,
                    self.session,
                    &tenant,
                    error,
                    ended.address.as_deref(),
                    ended.detail.as_deref(),
                );
                if let Some(line) = &mut line {
                    line.request.proxy_error = Some(error.label());
                }
                let next = self.answer(error.status(), Some(error), false, head_only).await;
                (error.status(), next)
            }
            End::Refused(status) => {
                self.count_refused(Refusal::MalformedRequest);
                (status, self.answer(status, None, false, head_only).await)
            }
            End::BrokenOff => (ended.status, Next::End(requests::broken_off(ended.late))),
            End::SlowReader => (ended.status, Next::End(TunnelEnd::TimedOut)),
            End::Gone(gone) => (ended.status, Next::End(end_of(gone))),
        };
        self.record(status, began, line, &next);
        next
    }

    /// Counts a request that has ended, and writes its line.
    fn record(&mut self, status: u16, began: Instant, line: Option<Line<'_>>, next: &Next<'_>) {
        self.count(status, began);
        let answered_bytes = self.answered_bytes.take();
        if let Some(mut line) = line {
            line.request.status = status;
            line.facts.out_bytes += answered_bytes;
            // Whoever reads the line must not take what was cut off for whole.
            line.end = match next {
                Next::End(TunnelEnd::Answered | TunnelEnd::Clean) | Next::Again | Next::Tunnel(_) => None,
                Next::End(end) => Some(*end),
            };
        }
    }

    /// The line of a request that is under way.
    fn line(&mut self, request: access::Request, began: Instant, asked_origin: bool) -> Line<'a> {
        let (core, session) = (self.core, self.session);
        let connection = self.logged.get_or_insert_with(|| super::access::connection(core, session));
        let connection = Arc::clone(connection);
        Line {
            core,
            session,
            connection,
            began,
            protocol: Protocol::Http1,
            request,
            facts: Facts::default(),
            asked_origin,
            end: None,
        }
    }

    fn count(&self, status: u16, began: Instant) {
        requests::count(self.core, Protocol::Http1, status, began);
    }

    fn count_refused(&self, reason: Refusal) {
        self.core.shard.count(Counter::RequestRefused(reason));
    }

    /// Answers a request that is not forwarded.
    async fn refuse(&mut self, denied: Denied) -> Next<'a> {
        let Denied { status, reason, detail, head_only, rest, line } = denied;
        let began = self.head_since.unwrap_or_else(ring::now);
        self.count_refused(reason);
        let session = self.session;
        self.core.log_refused(|| Refused {
            hostname: session.server_name.as_deref().map(str::to_owned),
            peer: session.remote.client,
            via: session.remote.announced_by(),
            detail: Some(detail.to_owned()),
            ..Refused::new(reason)
        });
        let keep = rest.as_ref().is_some_and(|(framing, body)| is_small(framing, body)) && !self.is_ending();
        let mut next = self.answer(status, None, keep, head_only).await;
        if let (Next::Again, Some((framing, body))) = (&next, rest)
            && !self.discard(framing, body).await
        {
            next = Next::End(TunnelEnd::Answered);
        }
        let line = self.core.access.enabled().then(|| {
            let request = line.unwrap_or_else(|| access::Request::new(b"", b"", b"", b""));
            self.line(request, began, false)
        });
        self.record(status, began, line, &next);
        next
    }

    fn is_ending(&self) -> bool {
        self.core.draining.get().is_some() || self.client.has_finished() && self.client.waiting() == 0
    }

    /// Sends an answer of ours.
    async fn answer(&self, status: u16, error: Option<ProxyError>, keep_alive: bool, head_only: bool) -> Next<'a> {
        let mut plain = self.core.buffers.plain();
        let keeps = answer::answer(status, error, keep_alive, head_only, &mut plain);
        let written = self.client.write(&plain);
        let head = memchr::memmem::find(&plain, b"\r\n\r\n").map_or(plain.len(), |at| at + 4);
        self.answered_bytes.set((plain.len() - head) as u64);
        self.core.buffers.keep_plain(plain);
        if let Err(gone) = written {
            return Next::End(end_of(gone));
        }
        if !keeps {
            return Next::End(TunnelEnd::Answered);
        }
        match self.client.flush().await {
            Ok(()) => Next::Again,
            Err(gone) => Next::End(end_of(gone)),
        }
    }

    /// Reads the rest of a request that nobody wants. Whether the connection can go on afterwards.
    async fn discard(&mut self, framing: Framing, mut body: Body) -> bool {
        if !is_small(&framing, &body) {
            return false;
        }
        let client = &self.client;
        let reading = poll_fn(|cx| {
            loop {
                let sound = client.consume(|waiting| match body.pass(waiting, &mut |_| ()) {
                    Ok(consumed) => (consumed, true),
                    Err(_) => (0, false),
                });
                if !sound || body.is_done() {
                    return Poll::Ready(sound);
                }
                match client.poll_read(cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(false),
                    Poll::Pending => return Poll::Pending,
                }
            }
        });
        let read = ring::timeout(DISCARD_WAIT, reading).await;
        if read.is_err() {
            self.core.shard.count(Counter::Timeout(Timeout::BodyRate));
        }
        read.unwrap_or(false)
    }

    /// Says what there is to say at the end of the connection. What is returned is still to be sent.
    async fn finish(self, end: TunnelEnd) -> (TunnelEnd, Outgoing) {
        let (core, client) = (self.core, &self.client);
        match end {
            TunnelEnd::Clean | TunnelEnd::Answered | TunnelEnd::Idle | TunnelEnd::DrainedIdle => {
                if end == TunnelEnd::Idle {
                    core.shard.count(Counter::Timeout(Timeout::Idle));
                }
                client.say_goodbye();
                let (bytes, filled) = client.last_words().take();
                say_goodbye(core, client.socket, bytes, filled, LINGER).await;
            }
            TunnelEnd::ProtocolError => return (end, client.last_words()),
            _ => {}
        }
        (end, Outgoing::default())
    }
}

fn end_of(gone: Gone) -> TunnelEnd {
    match gone {
        Gone::Cut => TunnelEnd::ClientAborted,
        Gone::Broke => TunnelEnd::ProtocolError,
    }
}

/// Judges the request at the start of `bytes`: how many bytes its head takes, and what is to be done.
fn judge(core: &Rc<Core>, session: &Session, fields: &mut Fields, bytes: &[u8]) -> (usize, Option<Step>) {
    let mut slots = core.slots.borrow_mut();
    let request = match Request::parse(bytes, &core.config.http.head, &mut slots) {
        Ok(Parsed::Complete(request)) => request,
        Ok(Parsed::Incomplete) => return (0, None),
        Err(rejected) => return (0, Some(Step::Answer(Box::new(Denied::of(rejected))))),
    };
    let step = match requests::judge(core, session, fields, &request) {
        Ok(judged) => {
            *session.request.borrow_mut() = judged.requested;
            Step::Forward(Box::new((judged.order, judged.line)))
        }
        Err(Unfit::End(end)) => Step::End(end),
        Err(Unfit::Rejected(rejected)) => {
            // The head was understood, and so the connection can go on behind the request.
            let body = Body::request(request.framing, None, false);
            // RFC 9110 section 10.1.1: a client that waits for 100 may or may not send its body after this answer.
            let goes_on = request.keep_alive && (!request.expects_continue || body.is_done());
            Step::Answer(Box::new(Denied {
                head_only: request.is_head(),
                rest: goes_on.then_some((request.framing, body)),
                line: core.access.enabled().then(|| line(&request, "")),
                ..Denied::of(rejected)
            }))
        }
    };
    (request.head_bytes, Some(step))
}

impl Denied {
    fn of(rejected: Rejected) -> Self {
        let Rejected { status, reason, detail } = rejected;
        Self { status, reason, detail, head_only: false, rest: None, line: None }
    }
}

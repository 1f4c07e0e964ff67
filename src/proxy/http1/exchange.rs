//! One request to its origin, and the response back.
//!
//! Both directions run at once, each with one buffer under way: a side reads only when what it read before has been sent,
//! so that memory is bounded and a slow peer holds back its own counterpart only. What is cut off stays recognisable: an
//! origin that dies in the middle of a response leaves the client without close_notify or last chunk, a client that does so
//! leaves the origin with a reset.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::client::Gone;
use super::downstream::{Downstream, Ending};
use super::reply::{Asked, Dialect, Fate, Reply};
use super::{BadBody, Body, Framing, HeadLimits, ProxyError, Slots};
use crate::proxy::buffers::GATHER_BYTES;
use crate::proxy::origin::http2::Stream;
use crate::proxy::origin::{Address, Lease, Manner, Origins, Place, Unreachable, Wire};
use crate::registry::Origin;
use crate::ring::{self, Receive, Sleep};
use crate::telemetry::counters::{Counter, Pool, Retry, Shard};
use crate::telemetry::histograms::Histograms;
use crate::tls::Tenant;

/// The rest of a body that nobody wants any more is read up to here to keep the connection; a longer one ends it.
pub const DISCARD_BYTES: u64 = 64 * 1024;

/// How often a request that the origin has not looked at is sent again. Once is enough for a connection that is ending; beyond
/// that the origin refuses, which it had better say itself.
const UNPROCESSED_RETRIES_MAX: u8 = 2;

/// How much of a request is kept, to be sent again if the origin has not looked at it. A refusal takes a round trip, in which
/// small bodies have been sent whole.
const UNPROCESSED_BYTES_MAX: usize = 64 * 1024;

/// How long a body may be slower than `min_body_rate`: time for a lost packet and a link that wakes up.
const RATE_GRACE: Duration = Duration::from_secs(10);

/// What exchanges of one worker share.
pub struct Setting<'a> {
    pub origins: &'a Origins,
    pub shard: &'a Shard,
    pub histograms: &'a RefCell<Histograms>,
    pub slots: &'a RefCell<Slots>,
    pub limits: Limits,
    /// No further request is wanted on any connection.
    pub draining: &'a dyn Fn() -> bool,
}

/// What bounds an exchange.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub head: HeadLimits,
    /// Largest body of a request, bytes; `None`: any.
    pub body_bytes_max: Option<u64>,
    /// The slowest a client may send or take a body, bytes a second; `None`: as slow as it likes.
    pub min_body_rate: Option<u64>,
    /// Longest silence of the origin once its response has begun.
    pub silence: Duration,
}

/// A request that has been judged, as it is forwarded.
pub struct Order {
    pub head: Vec<u8>,
    pub framing: Framing,
    pub asked: Asked,
    pub keep_alive: bool,
    pub expects_continue: bool,
    pub idempotent: bool,
    /// A call that may say something now and then for as long as it likes, as those of gRPC do: that its client is silent is
    /// no stall.
    pub streams: bool,
    /// How long its client waits for the response, with what the way takes, as far as it says so.
    pub asked_timeout: Duration,
    /// The client takes trailers, and the origin may speak HTTP/2, where that is said.
    pub takes_trailers: bool,
    /// What it goes by where the addresses of its origin are chosen by a hash.
    pub balance_key: u64,
}

impl Order {
    fn manner(&self) -> Manner {
        Manner {
            key: self.balance_key,
            to_head: self.asked.head,
            takes_trailers: self.takes_trailers,
            upgrade: self.asked.websocket,
        }
    }
}

/// How an exchange ended.
pub enum End {
    /// The response is with the client, whole. The connection goes on if `keep`; `rest` of the request is still to come.
    Whole { keep: bool, rest: Option<Body> },
    /// The connection is a WebSocket: a tunnel to this origin, which has sent these bytes already.
    Switched(Lease, Vec<u8>),
    /// Nothing of a response was passed on: the client is to be told why.
    Unanswered(ProxyError),
    /// The request's body is at fault, and nothing of a response was passed on: the status to answer with.
    Refused(u16),
    /// The response broke off behind its head: the client must not take it for whole.
    BrokenOff,
    /// The client took the response too slowly.
    SlowReader,
    /// The client went away.
    Gone(Gone),
}

/// What there is to say about an exchange.
pub struct Ended {
    pub end: End,
    /// The status that was passed on; 0: none.
    pub status: u16,
    /// A time limit that ended it.
    pub late: Option<Late>,
    /// Where it went last.
    pub address: Option<Rc<Address>>,
    /// What there is to say about an error beyond its name, for the log.
    pub detail: Option<String>,
    pub facts: Facts,
}

impl Ended {
    /// Nothing of a response was passed on.
    fn early(end: End, address: Option<Rc<Address>>, facts: Facts) -> Self {
        Self { end, status: 0, late: None, address, detail: None, facts }
    }
}

/// What an exchange was, for those who keep a log.
#[derive(Clone, Copy, Default, Debug)]
pub struct Facts {
    /// The origin's address; `None` for a Unix-domain socket, and where none was reached.
    pub address: Option<SocketAddr>,
    /// How long connecting took; `None` on a pooled connection.
    pub connect: Option<Duration>,
    /// From the beginning of the exchange to the first byte of the response.
    pub response: Option<Duration>,
    /// A dead pooled connection made a second try necessary.
    pub retried: bool,
    /// Bytes of the request's body that were passed on.
    pub in_bytes: u64,
    /// Bytes of the response's body that were passed on.
    pub out_bytes: u64,
}

/// A time limit of an exchange.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Late {
    /// The origin did not begin its response.
    Response,
    /// The origin fell silent in the middle of it.
    Silence,
    /// The client sends its body too slowly.
    Body,
    /// The client takes its response too slowly.
    Reader,
    /// The whole took too long; `of_client`: the client was waited for at the time.
    Request { of_client: bool },
}

/// Sends a request and passes the response on.
pub async fn run<D: Downstream>(
    setting: &Setting<'_>,
    client: &D,
    tenant: &Rc<Tenant>,
    mut order: Order,
    sleep: &mut Sleep,
) -> Ended {
    let origin = &tenant.record.origin;
    let began = ring::now();
    let deadline = origin.request_timeout.map(|timeout| began + timeout);
    let may_repeat = order.idempotent && order.framing == Framing::None;
    let mut retries_left = if may_repeat { origin.retries.max } else { 0 };
    let mut unprocessed_left = UNPROCESSED_RETRIES_MAX;
    // In which form a chunked body goes depends on the connection where HTTP/2 may be spoken on it.
    let mut decoded = None;
    let mut body = Body::request(order.framing, setting.limits.body_bytes_max, false);
    let mut up = std::mem::take(&mut order.head);
    if !origin.may_speak_http2() {
        decoded = Some(false);
        if let Err(bad) = first_piece(client, &mut body, &mut up) {
            return Ended::early(End::Refused(status_of(bad)), None, Facts::default());
        }
    }
    let mut facts = Facts::default();
    let mut tried = Vec::new();
    loop {
        let found = match pooled(setting, tenant, &order, &tried, facts.retried) {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(place)) => {
                // Boxed, so that the many exchanges with a connection at hand do not carry it along.
                let connecting = Box::pin(connect(setting, tenant, place, &order, &mut tried, deadline));
                match watched(client, connecting).await {
                    Ok(result) => result.map(|(lease, took)| {
                        facts.connect = Some(took);
                        lease
                    }),
                    Err(gone) => return Ended::early(End::Gone(gone), None, facts),
                }
            }
            Err(unreachable) => Err(unreachable),
        };
        let lease = match found {
            Ok(lease) => lease,
            Err(unreachable) => {
                client.buffers().keep_plain(up);
                facts.address = unreachable.address.as_ref().and_then(|address| address.key().tcp());
                let late = unreachable.out_of_time.then_some(Late::Request { of_client: false });
                let end = End::Unanswered(unreachable.error());
                let detail = unreachable.detail;
                return Ended { late, detail, ..Ended::early(end, unreachable.address, facts) };
            }
        };
        facts.address = lease.address().key().tcp();
        let is_http2 = lease.wire.is_http2();
        if decoded.is_none() {
            decoded = Some(is_http2);
            body = Body::request(order.framing, setting.limits.body_bytes_max, is_http2);
            if let Err(bad) = first_piece(client, &mut body, &mut up) {
                // Nothing has been sent.
                setting.origins.keep(lease, tenant, setting.shard);
                return Ended::early(End::Refused(status_of(bad)), None, facts);
            }
        }
        if order.framing == Framing::Chunked && decoded != Some(is_http2) {
            // Begun over HTTP/2, and the origin speaks it no more.
            setting.origins.keep(lease, tenant, setting.shard);
            return Ended::early(End::Unanswered(ProxyError::ConnectionTerminated), None, facts);
        }
        if origin.retries.max > 0 && !facts.retried {
            setting.origins.earn_retry(&lease);
        }
        let withhold = |status: u16| {
            retries_left > 0
                && origin.retries.on_status.contains(&status)
                && setting.origins.may_retry(&lease, setting.shard)
        };
        let flight = Flight {
            setting,
            client,
            origin: &lease.wire,
            order: &order,
            response_timeout: origin.response_timeout.max(order.asked_timeout),
            deadline,
            // One safe retry (DECISIONS 24): a connection that was idle may have been closed at the very moment.
            retriable: may_repeat && (lease.reused || retries_left > 0),
            withhold: &withhold,
            body: RefCell::new(body),
            reply: RefCell::new(
                Reply::new(order.asked, setting.limits.head).rewritten(tenant.record.rewrites.as_ref()),
            ),
            request_sent: Cell::new(false),
            moved: Cell::new(ring::now()),
            first_byte: Cell::new(None),
            waiting: Cell::new(None),
            waited: Cell::new(Duration::ZERO),
            sending: Cell::new(None),
            spare: RefCell::default(),
        };
        let landed = flight.fly(up, sleep).await;
        let Flight { body: left, reply, request_sent, first_byte, spare, .. } = flight;
        let (reply, spare) = (reply.into_inner(), spare.into_inner());
        let is_stale = matches!(landed, Landed::Dead) && lease.reused;
        // What is sent again was sent whole, and nothing has come of it.
        let again = !spare.is_empty()
            && match landed {
                Landed::Unprocessed => unprocessed_left > 0,
                Landed::Withheld => true,
                Landed::Dead if lease.reused && may_repeat => true,
                Landed::Dead | Landed::Late(Late::Response) if retries_left > 0 && !reply.started => {
                    setting.origins.may_retry(&lease, setting.shard)
                }
                _ => false,
            };
        report(setting, origin, &lease, &landed, reply.status);
        if again {
            if matches!(landed, Landed::Unprocessed) {
                unprocessed_left -= 1;
                setting.shard.count(Counter::Retry(Retry::Unprocessed));
            } else if is_stale {
                setting.shard.count(Counter::Retry(Retry::Stale));
            } else {
                retries_left -= 1;
                tried.push(Rc::clone(lease.address()));
                lease.wire.reset_on_close();
            }
            facts.retried = true;
            (up, body) = (spare, left.into_inner());
            continue;
        }
        if let Some(at) = first_byte.get() {
            let took = at.saturating_duration_since(began);
            setting.histograms.borrow_mut().origin.record_us(took.as_micros() as u64);
            facts.response = Some(took);
        }
        client.buffers().keep_plain(spare);
        let body = left.into_inner();
        (facts.in_bytes, facts.out_bytes) = (body.passed_bytes(), reply.body_bytes);
        return Ended { facts, ..conclude(setting, tenant, lease, landed, reply, body, request_sent.get()) };
    }
}

/// Waits, unless the client goes away meanwhile.
async fn watched<T>(client: &impl Downstream, wait: impl Future<Output = T>) -> Result<T, Gone> {
    let mut wait = pin!(wait);
    poll_fn(|cx| match client.poll_gone(cx, false) {
        Poll::Ready(gone) => Poll::Ready(Err(gone)),
        Poll::Pending => wait.as_mut().poll(cx).map(Ok),
    })
    .await
}

/// The part of the body that came with the head.
fn first_piece(client: &impl Downstream, body: &mut Body, up: &mut Vec<u8>) -> Result<(), BadBody> {
    if body.is_done() {
        return Ok(());
    }
    client.consume(|waiting| match body.pass(waiting, &mut |piece| up.extend_from_slice(piece)) {
        Ok(consumed) => (consumed, Ok(())),
        Err(bad) => (0, Err(bad)),
    })
}

/// An idle connection to the address that the balance chose, or the place where one is to be made.
fn pooled(
    setting: &Setting<'_>,
    tenant: &Tenant,
    order: &Order,
    tried: &[Rc<Address>],
    again: bool,
) -> Result<Result<Lease, Place>, Unreachable> {
    let Setting { origins, shard, .. } = *setting;
    let origin = &tenant.record.origin;
    let place = origins.choose(origin, order.balance_key, tried, shard)?;
    // What is sent again goes over a new connection: other idle ones may be as dead.
    let found = if again { Err(place) } else { origins.pooled(place, tenant, order.manner(), shard) };
    shard.count(Counter::Pool(if found.is_ok() { Pool::Hit } else { Pool::Miss }));
    Ok(found)
}

/// A new connection to that place, or to another if it fails.
async fn connect(
    setting: &Setting<'_>,
    tenant: &Rc<Tenant>,
    place: Place,
    order: &Order,
    tried: &mut Vec<Rc<Address>>,
    deadline: Option<Instant>,
) -> Result<(Lease, Duration), Unreachable> {
    let began = ring::now();
    let address = Rc::clone(place.address());
    let connecting = setting.origins.connect(place, tenant, order.manner(), tried, setting.shard);
    let lease = match deadline {
        None => connecting.await?,
        Some(deadline) => match ring::timeout_at(deadline, connecting).await {
            Ok(result) => result?,
            Err(ring::Elapsed) => return Err(Unreachable::out_of_time(address)),
        },
    };
    let took = Instant::now().saturating_duration_since(began);
    setting.histograms.borrow_mut().origin_connect.record_us(took.as_micros() as u64);
    lease.wire.set_receive(Receive::Stream);
    Ok((lease, took))
}

/// Tells the balance what an exchange says about the address: whether it answers, or the error is ours to make.
fn report(setting: &Setting<'_>, origin: &Origin, lease: &Lease, landed: &Landed, status: u16) {
    let error = match landed {
        Landed::Withheld => return setting.origins.answered(lease, origin, setting.shard),
        _ if status != 0 => return setting.origins.answered(lease, origin, setting.shard),
        // An idle connection that was closed says nothing: the request did not reach the origin.
        Landed::Dead if lease.reused => return,
        Landed::Dead => ProxyError::ConnectionTerminated,
        Landed::Unfinished => ProxyError::HttpResponseIncomplete,
        Landed::Garbled => ProxyError::HttpProtocolError,
        Landed::Late(Late::Response) => ProxyError::HttpResponseTimeout,
        _ => return,
    };
    setting.origins.response_failed(lease, origin, error, setting.shard);
}

/// The status for a request body that cannot be passed on.
fn status_of(bad: BadBody) -> u16 {
    match bad {
        BadBody::TooLarge => 413,
        BadBody::TooLong => 431,
        BadBody::Malformed(_) | BadBody::CutShort => 400,
    }
}

/// How a flight came down.
enum Landed {
    /// The response is with the client.
    Whole,
    Switched,
    /// The origin's connection ended before a byte of a response.
    Dead,
    /// The origin has not looked at the request.
    Unprocessed,
    /// It ended in the middle of a head.
    Unfinished,
    /// It ended in the middle of a body.
    BrokenOff,
    /// What the origin sent is no response.
    Garbled,
    /// The response is not passed on: the request is sent again.
    Withheld,
    Late(Late),
    Bad(BadBody),
    Gone(Gone),
}

/// Decides what becomes of both connections.
fn conclude(
    setting: &Setting<'_>,
    tenant: &Rc<Tenant>,
    lease: Lease,
    landed: Landed,
    mut reply: Reply,
    body: Body,
    request_sent: bool,
) -> Ended {
    let status = reply.status;
    let address = Some(Rc::clone(lease.address()));
    let ended = |end| Ended { status, ..Ended::early(end, address.clone(), Facts::default()) };
    let whole = matches!(landed, Landed::Whole);
    let fault = if whole { None } else { lease.wire.fault() };
    if whole && request_sent && reply.keeps_origin {
        setting.origins.keep(lease, tenant, setting.shard);
    } else if matches!(landed, Landed::Switched) {
        let leftover = reply.take_leftover();
        return ended(End::Switched(lease, leftover));
    } else {
        setting.shard.count(Counter::Pool(Pool::Unfit));
        if !(whole && request_sent) {
            // The origin must not take what it has of the request for all of it.
            lease.wire.reset_on_close();
        }
    }
    let broken = |error| if status == 0 { End::Unanswered(error) } else { End::BrokenOff };
    if let (Landed::Dead | Landed::Unprocessed | Landed::Unfinished | Landed::BrokenOff, Some((error, detail))) =
        (&landed, fault)
    {
        return Ended { detail: Some(detail), ..ended(broken(error)) };
    }
    match landed {
        Landed::Whole => {
            let rest = (!request_sent && !body.is_done()).then_some(body);
            ended(End::Whole { keep: reply.keeps_client, rest })
        }
        Landed::Switched | Landed::Dead | Landed::Unprocessed => ended(broken(ProxyError::ConnectionTerminated)),
        Landed::Unfinished | Landed::BrokenOff => ended(broken(ProxyError::HttpResponseIncomplete)),
        Landed::Garbled | Landed::Withheld => ended(broken(ProxyError::HttpProtocolError)),
        Landed::Bad(bad) => ended(if status == 0 { End::Refused(status_of(bad)) } else { End::BrokenOff }),
        Landed::Gone(gone) => ended(End::Gone(gone)),
        Landed::Late(late) => Ended {
            end: match late {
                Late::Response | Late::Silence => broken(ProxyError::HttpResponseTimeout),
                Late::Body if status == 0 => End::Refused(408),
                Late::Body => End::BrokenOff,
                Late::Reader => End::SlowReader,
                Late::Request { of_client: true } if status == 0 => End::Refused(408),
                Late::Request { .. } => broken(ProxyError::HttpResponseTimeout),
            },
            status,
            late: Some(late),
            address,
            detail: None,
            facts: Facts::default(),
        },
    }
}

/// A request and its response between two connections.
struct Flight<'a, D> {
    setting: &'a Setting<'a>,
    client: &'a D,
    origin: &'a Wire,
    order: &'a Order,
    response_timeout: Duration,
    /// When the whole has taken too long.
    deadline: Option<Instant>,
    /// Whether a response of this status is not passed on, because the request will be sent again.
    withhold: &'a dyn Fn(u16) -> bool,
    /// What was sent is kept until the response begins, to be sent again.
    retriable: bool,
    body: RefCell<Body>,
    reply: RefCell<Reply>,
    /// All of the request is with the origin.
    request_sent: Cell<bool>,
    /// When bytes last moved to or from the origin.
    moved: Cell<Instant>,
    first_byte: Cell<Option<Instant>>,
    /// Since when the client is waited for, for more of the body.
    waiting: Cell<Option<Instant>>,
    /// How long it was waited for before that.
    waited: Cell<Duration>,
    /// Since when so many bytes of records are on their way to the client.
    sending: Cell<Option<(Instant, usize)>>,
    spare: RefCell<Vec<u8>>,
}

/// How the way to the origin ended.
enum Up {
    Done,
    /// It takes no more; it may have answered.
    Refused,
    Bad(BadBody),
    Gone(Gone),
}

impl<D: Downstream> Flight<'_, D> {
    async fn fly(&self, up: Vec<u8>, sleep: &mut Sleep) -> Landed {
        let mut upward = pin!(async {
            match self.origin {
                // Boxed, so that exchanges without HTTP/2 do not carry it along.
                Wire::Http2(stream) => Box::pin(self.upward_http2(stream, up)).await,
                _ => self.upward(up).await,
            }
        });
        let mut downward = pin!(self.downward());
        let mut up_open = true;
        let mut landed = None;
        poll_fn(|cx| {
            if up_open {
                match upward.as_mut().poll(cx) {
                    Poll::Ready(Up::Done | Up::Refused) => up_open = false,
                    Poll::Ready(Up::Bad(bad)) => return Poll::Ready(Landed::Bad(bad)),
                    Poll::Ready(Up::Gone(gone)) => return Poll::Ready(Landed::Gone(gone)),
                    Poll::Pending => {}
                }
            }
            if landed.is_none()
                && let Poll::Ready(end) = downward.as_mut().poll(cx)
            {
                landed = Some(end);
            }
            // A request that will be sent again is waited for: its bytes are on their way still.
            let again = up_open && self.retriable && matches!(landed, Some(Landed::Dead)) && !self.origin.is_http2();
            if !again && let Some(end) = landed.take() {
                return Poll::Ready(end);
            }
            if let Poll::Ready(gone) = self.client.poll_gone(cx, !up_open) {
                return Poll::Ready(Landed::Gone(gone));
            }
            let (due, late) = self.due();
            sleep.reset(due);
            Pin::new(&mut *sleep).poll(cx).map(|()| Landed::Late(late))
        })
        .await
    }

    /// Client to origin.
    async fn upward(&self, mut up: Vec<u8>) -> Up {
        loop {
            if !up.is_empty() {
                let filled = up.len();
                self.setting.shard.add(Counter::BytesIn, filled as u64);
                let (result, buffer) = self.origin.send_prefix(self.client.buffers(), up, filled).await;
                self.moved.set(ring::now());
                if self.retriable {
                    *self.spare.borrow_mut() = buffer;
                } else {
                    self.client.buffers().keep_plain(buffer);
                }
                up = Vec::new();
                if result.is_err() {
                    return Up::Refused;
                }
            }
            if self.body.borrow().is_done() {
                self.request_sent.set(true);
                return Up::Done;
            }
            if let Err(end) = self.more(&mut up).await {
                return end;
            }
        }
    }

    /// Client to origin, over a stream that frames what it carries itself. What is little is kept, to be sent again if
    /// the origin says that it has not looked at it.
    async fn upward_http2(&self, stream: &Stream, mut up: Vec<u8>) -> Up {
        let mut is_first = true;
        loop {
            let ends = self.body.borrow().is_done();
            self.keep_unprocessed(&up, is_first);
            if is_first || ends || !up.is_empty() {
                let trailers = if ends { self.body.borrow().trailers().to_vec() } else { Vec::new() };
                self.setting.shard.add(Counter::BytesIn, up.len() as u64);
                let sent = stream.send(&up, ends, &trailers).await;
                self.moved.set(ring::now());
                self.client.buffers().keep_plain(std::mem::take(&mut up));
                if sent.is_err() {
                    return Up::Refused;
                }
            }
            if ends {
                self.request_sent.set(true);
                return Up::Done;
            }
            is_first = false;
            if let Err(end) = self.more(&mut up).await {
                return end;
            }
        }
    }

    /// Keeps what is sent over a stream, as long as it is little.
    fn keep_unprocessed(&self, up: &[u8], is_first: bool) {
        let mut spare = self.spare.borrow_mut();
        let begun = is_first || !spare.is_empty();
        if begun && spare.len() + up.len() <= UNPROCESSED_BYTES_MAX {
            spare.extend_from_slice(up);
        } else {
            spare.clear();
        }
    }

    /// Waits for more of the request's body.
    async fn more(&self, up: &mut Vec<u8>) -> Result<(), Up> {
        let since = ring::now();
        self.waiting.set(Some(since));
        let read = poll_fn(|cx| self.poll_body(cx, up)).await;
        self.waiting.set(None);
        if !self.is_excused() {
            self.waited.set(self.waited.get() + ring::now().saturating_duration_since(since));
        }
        read
    }

    /// Reads more of the request's body into `up`.
    fn poll_body(&self, cx: &mut Context<'_>, up: &mut Vec<u8>) -> Poll<Result<(), Up>> {
        loop {
            let mut body = self.body.borrow_mut();
            let mut bad = None;
            let read = self.client.poll_pass(cx, |plain| {
                if bad.is_some() || body.is_done() {
                    return 0;
                }
                if up.capacity() == 0 {
                    *up = self.client.buffers().plain();
                }
                match body.pass(plain, &mut |piece| up.extend_from_slice(piece)) {
                    Ok(consumed) => consumed,
                    Err(error) => {
                        bad = Some(error);
                        0
                    }
                }
            });
            if let Some(bad) = bad {
                return Poll::Ready(Err(Up::Bad(bad)));
            }
            match read {
                Poll::Ready(Ok(true)) if up.is_empty() && !body.is_done() => {}
                Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                // close_notify in the middle of a body: the client has given up, however politely.
                Poll::Ready(Ok(false)) => return Poll::Ready(Err(Up::Gone(Gone::Cut))),
                Poll::Ready(Err(gone)) => return Poll::Ready(Err(Up::Gone(gone))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Origin to client.
    async fn downward(&self) -> Landed {
        loop {
            let gathered = RefCell::new(self.client.gather());
            let end = poll_fn(|cx| self.gather(cx, &gathered)).await;
            self.moved.set(ring::now());
            let is_last = self.request_sent.get() && !self.reply.borrow().keeps_client;
            let ending = match end {
                Some(Landed::Whole) if is_last => Ending::WholeAndLast,
                Some(Landed::Whole) => Ending::Whole,
                _ => Ending::More,
            };
            if let Err(gone) = self.client.write(gathered.into_inner(), ending) {
                return Landed::Gone(gone);
            }
            // Where nothing of a response was passed on, what waits (a ticket) goes with the answer that follows.
            if self.reply.borrow().has_spoken {
                self.sending.set(Some((ring::now(), self.client.unsent())));
                let sent = self.client.flush().await;
                self.sending.set(None);
                self.moved.set(ring::now());
                if let Err(gone) = sent {
                    return Landed::Gone(gone);
                }
            }
            if let Some(landed) = end {
                return landed;
            }
        }
    }

    /// Takes what has come of the response, as far as there is any and it fits. Ready with how the response ended, or with
    /// none when there is something to send.
    fn gather(&self, cx: &mut Context<'_>, gathered: &RefCell<D::Gathered>) -> Poll<Option<Landed>> {
        let take = |bytes: &[u8]| {
            if self.first_byte.get().is_none() {
                self.first_byte.set(Some(ring::now()));
            }
            let mut gathered = gathered.borrow_mut();
            let mut sink = self.client.sink(&mut gathered);
            self.reply.borrow_mut().take(bytes, self.setting.slots, &|status| self.fate(status), &mut sink)
        };
        let mut received = self.origin.poll_receive(cx, take);
        loop {
            let bytes = self.client.gathered_bytes(&gathered.borrow());
            let mut reply = self.reply.borrow_mut();
            match received {
                Poll::Ready(Ok(Some(Ok(())))) if reply.is_done() => return Poll::Ready(Some(Landed::Whole)),
                Poll::Ready(Ok(Some(Ok(())))) if reply.is_withheld() => return Poll::Ready(Some(Landed::Withheld)),
                Poll::Ready(Ok(Some(Ok(())))) if reply.has_switched() => return Poll::Ready(Some(Landed::Switched)),
                Poll::Ready(Ok(Some(Ok(())))) if bytes >= GATHER_BYTES => return Poll::Ready(None),
                Poll::Ready(Ok(Some(Ok(())))) => {}
                Poll::Ready(Ok(Some(Err(_)))) => return Poll::Ready(Some(Landed::Garbled)),
                // What came before the break is the client's; the break is met again by the next call.
                Poll::Ready(Err(_)) if bytes > 0 => return Poll::Ready(None),
                Poll::Ready(Ok(None)) if reply.end_of_stream() => return Poll::Ready(Some(Landed::Whole)),
                Poll::Ready(Ok(None) | Err(_)) => {
                    return Poll::Ready(Some(match reply.status {
                        0 if !reply.started && self.origin.is_unprocessed() => Landed::Unprocessed,
                        0 if !reply.started => Landed::Dead,
                        0 => Landed::Unfinished,
                        _ => Landed::BrokenOff,
                    }));
                }
                Poll::Pending if bytes > 0 => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
            drop(reply);
            received = match self.origin.arrived(take) {
                Some(result) => Poll::Ready(result),
                None if bytes > 0 => Poll::Pending,
                None => self.origin.poll_receive(cx, take),
            };
        }
    }

    /// What becomes of a response of this status. A request that is not with the origin yet is not sent again.
    fn fate(&self, status: u16) -> Fate {
        if self.request_sent.get() && (self.withhold)(status) {
            return Fate::Withhold;
        }
        Fate::PassOn { keep_alive: self.may_keep(status) }
    }

    /// Whether the client's connection may stay open after a response of this status.
    fn may_keep(&self, status: u16) -> bool {
        let wanted = self.order.keep_alive && !(self.setting.draining)() && self.client.may_ask_more();
        if self.request_sent.get() {
            return wanted;
        }
        // An early response: the rest of the request is read and forgotten, or the connection ends. A success may well be
        // an origin that answers while it reads. A client that waits for 100 may or may not send its body after another
        // answer (RFC 9110 section 10.1.1), so that its next bytes could be either: that connection ends.
        let may_withhold = self.order.expects_continue && self.body.borrow().passed_bytes() == 0;
        wanted && !may_withhold && (status < 300 || is_small(&self.order.framing, &self.body.borrow()))
    }

    /// The client waits for the origin's word before it sends its body (RFC 9110 section 10.1.1).
    fn is_excused(&self) -> bool {
        self.order.expects_continue && !self.reply.borrow().started
    }

    /// When the exchange has taken too long, and whose fault it is then.
    fn due(&self) -> (Instant, Late) {
        let due = self.next_due();
        match self.deadline {
            Some(deadline) if deadline <= due.0 => {
                let of_client = self.waiting.get().is_some() && !self.is_excused();
                (deadline, Late::Request { of_client })
            }
            _ => due,
        }
    }

    fn next_due(&self) -> (Instant, Late) {
        let limits = &self.setting.limits;
        let pace = |bytes: u64| match limits.min_body_rate {
            Some(rate) => RATE_GRACE + Duration::from_secs(bytes / rate.max(1)),
            None => limits.silence,
        };
        if let Some((since, bytes)) = self.sending.get() {
            return (since + pace(bytes as u64), Late::Reader);
        }
        let answered = self.reply.borrow().status != 0;
        let origin = match answered {
            true => (self.moved.get() + limits.silence, Late::Silence),
            false => (self.moved.get() + self.response_timeout, Late::Response),
        };
        match self.waiting.get() {
            Some(since) if !self.is_excused() => {
                // Messages go both ways at once, in any order, once a stream of HTTP/2 is answered.
                let is_dialogue = self.order.streams || answered && self.order.asked.dialect == Dialect::Http2;
                let left = match limits.min_body_rate {
                    Some(_) if !is_dialogue => {
                        pace(self.body.borrow().passed_bytes()).saturating_sub(self.waited.get())
                    }
                    _ => limits.silence,
                };
                let client = (since + left, Late::Body);
                if answered && origin.0 < client.0 { origin } else { client }
            }
            _ => origin,
        }
    }
}

/// Whether so little of a request's body is still to come that it can be read and forgotten.
pub fn is_small(framing: &Framing, body: &Body) -> bool {
    match framing {
        Framing::None => true,
        Framing::Length(length) => length.saturating_sub(body.passed_bytes()) <= DISCARD_BYTES,
        Framing::Chunked => false,
    }
}

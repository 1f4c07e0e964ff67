//! A client's HTTP/2 connection: `h2` turned by the ring, its streams as tasks of their own, its limits.
//!
//! Each stream is one request of the connection's own hostname, judged and forwarded as one of HTTP/1.1 is
//! ([`streams`]). What one connection can hold in memory: `limits.http2_window` from the client,
//! `SMALL_FRAMES_SHARE` times as much around it if it comes in small frames, for each stream its head until the origin has
//! it, what an exchange gathers and `SEND_BUFFER_BYTES` more to the client, and two batches of records.

mod streams;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::Reason;
use h2::server::{Connection, Handshake};

use crate::proxy::http1::client::{Client, Gone};
use crate::proxy::http2::io::{Io, Transport};
use crate::proxy::http2::meter::Fault;
use crate::ring::{self, Sleep, Socket};
use crate::telemetry::counters::{Counter, GoAway, Limit, StreamReset, Timeout, TunnelEnd};
use crate::tls::Outgoing;

use super::core::Core;
use super::requests::{FIELDS_WAIT, Fields};
use super::sessions::Session;

/// How many bytes of one stream wait in `h2` for its turn at most: four frames, so that the next batch of records is full
/// whichever stream has something to say.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// What `h2` may hold in small DATA frames that no stream has taken yet, for each byte of the connection's window.
///
/// It counts what a frame has less than 256 bytes. By its default, half a window, a burst of 1,100 messages of 10 bytes ended the
/// connection, as gRPC clients send them. With eight windows one stream's share of the window can be full of messages of 8
/// bytes (gRPC's own head takes 5) while its origin takes none, and memory stays bounded.
const SMALL_FRAMES_SHARE: usize = 8;

/// What part of the connection's window one stream may fill. An origin that takes no more of its body stops that stream;
/// four of them stop the connection, whose memory is bounded by its window.
const STREAM_SHARE: u32 = 4;

/// The window every stream has before the client has read our SETTINGS (RFC 9113 section 6.9.2).
const WINDOW_BYTES_MIN: u32 = 65_535;

/// How many streams one connection may begin before others have their turn: a head of 1,800 fields was measured to take
/// 140 us, most of it before it can be refused.
const STREAMS_A_TURN: usize = 64;

/// The largest dynamic table of HPACK we keep for a client (RFC 7541 section 4.2), the protocol's default.
const HEADER_TABLE_BYTES: u32 = 4 * 1024;

/// How long a connection that drains waits for the client to see it, once nothing is under way: about a round trip, in which
/// requests that crossed the first GOAWAY still come (RFC 9113 section 6.8).
const DRAIN_WAIT: Duration = Duration::from_secs(1);

/// How long a client that was just sent something may take to end its side after ours: it goes on sending window updates
/// while the last bytes are on their way, and a connection closed meanwhile would be reset before they arrive.
const LINGER: Duration = Duration::from_secs(5);

/// How long the last frames may take to leave, to a client that is at fault.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(1);

/// Streams that were reset and whose frames may still be on their way (RFC 9113 section 5.1). Beyond them the connection
/// ends: a client that makes us reset streams is no better than one that resets them itself ("made you reset").
const RESETS_BY_US_MAX: usize = 256;

/// Streams reset by the client that we have not looked at yet ("rapid reset", CVE-2023-44487).
const RESETS_UNSEEN_MAX: usize = 64;

/// Serves streams until the connection ends. Returns how it ended, and what is still to be sent.
pub async fn serve(
    core: &Rc<Core>,
    socket: &Socket,
    session: &Rc<Session>,
    early: Vec<u8>,
    out: Outgoing,
) -> (TunnelEnd, Outgoing) {
    let transport = Transport::new(Client::new(socket, &session.tls, &core.buffers, early, out));
    let config = &core.config.http;
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(config.http2_streams_max)
        .initial_window_size((config.http2_window_bytes / STREAM_SHARE).max(WINDOW_BYTES_MIN))
        .initial_connection_window_size(config.http2_window_bytes)
        .max_header_list_size(u32::try_from(config.head.bytes_max).unwrap_or(u32::MAX))
        .header_table_size(HEADER_TABLE_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_local_error_reset_streams(Some(RESETS_BY_US_MAX))
        .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
        .data_frame_budget(SMALL_FRAMES_SHARE * config.http2_window_bytes as usize)
        .enable_connect_protocol()
        .handshake(Io(Rc::clone(&transport)));
    let now = ring::now();
    let mut driver = Driver {
        core,
        session,
        transport: Rc::clone(&transport),
        stage: Stage::Preface(Box::new(handshake)),
        shared: Rc::default(),
        sleep: ring::sleep_until(now + config.header_timeout),
        idle_since: now,
        drain_since: None,
        ending: None,
    };
    let end = poll_fn(|cx| driver.poll(cx)).await;
    let was_busy = driver.idle_since.elapsed() < DRAIN_WAIT;
    // The streams that are left learn of the end here.
    drop(driver);
    let in_order = matches!(end, TunnelEnd::Clean | TunnelEnd::DrainedIdle | TunnelEnd::Idle);
    let flushed = flush(&transport, if in_order { config.idle_timeout } else { LAST_WORDS_WAIT }).await;
    core.shard.add(Counter::BytesOut, transport.take_written_bytes());
    if !flushed {
        return (end, Outgoing::default());
    }
    match end {
        TunnelEnd::ClientAborted | TunnelEnd::TimedOut => (end, Outgoing::default()),
        _ => {
            // Cannot fail in a way that matters: the connection is closed next.
            let _ = transport.say_goodbye();
            let (bytes, filled) = transport.last_words().take();
            let linger = if in_order && was_busy { LINGER } else { super::session::LINGER };
            super::session::say_goodbye(core, socket, bytes, filled, linger).await;
            (end, Outgoing::default())
        }
    }
}

/// Sends what waits, as long as the client takes some of it at least this often. Whether it took all.
async fn flush(transport: &Transport<'_>, patience: Duration) -> bool {
    let mut sleep = pin!(ring::sleep_until(ring::now() + patience));
    poll_fn(|cx| match transport.push(cx) {
        Poll::Ready(pushed) => Poll::Ready(pushed.is_ok()),
        Poll::Pending => {
            if let Some(since) = transport.stalled_since() {
                sleep.as_mut().reset(since + patience);
            }
            sleep.as_mut().poll(cx).map(|()| false)
        }
    })
    .await
}

/// What a connection and its streams share.
#[derive(Default)]
pub(super) struct Shared {
    /// What origins are told about the client.
    fields: RefCell<Fields>,
    /// Streams whose task runs.
    live: Cell<u32>,
    /// Pieces of responses that were written since the meter was told.
    pieces: Cell<u32>,
    /// The connection's task, which looks at its limits when the last stream has ended.
    waker: RefCell<Option<Waker>>,
    /// What all access log lines of this connection say, once there was one.
    logged: RefCell<Option<std::sync::Arc<crate::telemetry::log::access::Connection>>>,
    /// Set to end the connection from one of its streams.
    end: Cell<Option<TunnelEnd>>,
}

/// Counts a stream as live for as long as it lives.
struct Live(Rc<Shared>);

impl Live {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.live.set(shared.live.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get() - 1);
        self.0.wake();
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ends the connection.
    fn end(&self, end: TunnelEnd) {
        self.end.set(Some(end));
        self.wake();
    }
}

enum Stage<'a> {
    /// The client's preface is waited for.
    Preface(Box<Handshake<Io<'a>, Bytes>>),
    Open(Box<Connection<Io<'a>, Bytes>>),
}

struct Driver<'a> {
    core: &'a Rc<Core>,
    session: &'a Rc<Session>,
    transport: Rc<Transport<'a>>,
    stage: Stage<'a>,
    shared: Rc<Shared>,
    /// One timer for all limits.
    sleep: Sleep,
    /// Since when no stream is open.
    idle_since: Instant,
    /// Since when the client is told that no more streams are wanted.
    drain_since: Option<Instant>,
    /// GOAWAY was said, with this code and for this reason: the connection ends once it has left.
    ending: Option<(Reason, TunnelEnd)>,
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        if self.shared.waker.borrow().as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *self.shared.waker.borrow_mut() = Some(cx.waker().clone());
        }
        loop {
            if let Some(end) = self.shared.end.get() {
                return Poll::Ready(end);
            }
            self.transport.answered(self.shared.pieces.take());
            let turned = self.turn(cx);
            for code in self.transport.take_reset_codes() {
                if let Some(reason) = stream_fault(code.into()) {
                    self.core.shard.count(Counter::StreamReset(reason));
                    self.transport.made_us_reset();
                }
            }
            if let Poll::Ready(end) = turned {
                return Poll::Ready(end);
            }
            if let Some(fault) = self.transport.fault().filter(|_| self.ending.is_none()) {
                let reason = match fault {
                    Fault::Flood => {
                        self.core.shard.count(Counter::Limit(Limit::ControlFrames));
                        Reason::ENHANCE_YOUR_CALM
                    }
                    Fault::Length => Reason::FRAME_SIZE_ERROR,
                    Fault::NoSettings => Reason::PROTOCOL_ERROR,
                };
                self.go_away(reason, TunnelEnd::ProtocolError);
                continue;
            }
            let pushed = self.transport.push(cx);
            self.core.shard.add(Counter::BytesOut, self.transport.take_written_bytes());
            if let Poll::Ready(Err(gone)) = pushed {
                return Poll::Ready(self.lost(gone));
            }
            // There was no room, and now there is.
            if self.transport.take_blocked() {
                continue;
            }
            if self.poll_limits(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    /// Lets `h2` read, and write what its streams have to say. Ready when the connection has ended.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<TunnelEnd> {
        for _ in 0..STREAMS_A_TURN {
            match &mut self.stage {
                Stage::Preface(handshake) => match Pin::new(&mut **handshake).poll(cx) {
                    Poll::Ready(Ok(connection)) => self.stage = Stage::Open(Box::new(connection)),
                    Poll::Ready(Err(error)) => return Poll::Ready(self.ended(Some(&error))),
                    Poll::Pending => return Poll::Pending,
                },
                Stage::Open(connection) => match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => self.open(request, respond),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(self.ended(Some(&error))),
                    Poll::Ready(None) => return Poll::Ready(self.ended(None)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives a stream a task of its own.
    fn open(&mut self, request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
        // `h2` holds the client to its limit of streams, but a stream that was reset leaves its task behind for a moment.
        if self.shared.live.get() >= 2 * self.core.config.http.http2_streams_max {
            self.core.shard.count(Counter::Limit(Limit::Streams));
            respond.send_reset(Reason::REFUSED_STREAM);
            return;
        }
        let is_first = self.shared.live.get() == 0;
        let live = Live::new(&self.shared);
        let (core, session, shared) = (Rc::clone(self.core), Rc::clone(self.session), Rc::clone(&self.shared));
        ring::spawn(async move {
            streams::run(&core, &session, &shared, request, respond, is_first).await;
            drop(live);
        });
    }

    /// Looks at the limits. Ready when one has made something to say.
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let config = &self.core.config.http;
        let now = ring::now();
        let live = self.shared.live.get() > 0;
        if live {
            self.idle_since = now;
        }
        if self.ending.is_some() {
            // `h2` has said its last word once it is asked again, unless the client takes nothing.
            self.sleep.reset(now + LAST_WORDS_WAIT);
            return match Pin::new(&mut self.sleep).poll(cx) {
                Poll::Ready(()) => {
                    self.shared.end.set(self.ending.map(|(_, end)| end));
                    Poll::Ready(())
                }
                Poll::Pending => Poll::Pending,
            };
        }
        if self.drain_since.is_none() && self.session.draining.poll(cx).is_ready() {
            self.drain_since = Some(now);
            if let Stage::Open(connection) = &mut self.stage {
                connection.graceful_shutdown();
                return Poll::Ready(());
            }
        }
        let waiting = self.transport.waiting_since().map(|since| since + config.header_timeout);
        let idle = (!live).then(|| match (self.transport.stalled_since(), self.drain_since) {
            // The last responses are on their way still.
            (Some(since), _) => since.max(self.idle_since) + config.idle_timeout,
            (None, Some(since)) => since.max(self.idle_since) + DRAIN_WAIT.min(config.idle_timeout),
            (None, None) => self.idle_since + config.idle_timeout,
        });
        let mut fields = None;
        if !live && waiting.is_none() {
            self.transport.release();
            fields = self.shared.fields.borrow().as_ref().map(|_| self.idle_since + FIELDS_WAIT);
        }
        let Some(due) = [waiting, idle, fields].into_iter().flatten().min() else { return Poll::Pending };
        self.sleep.reset(due);
        if Pin::new(&mut self.sleep).poll(cx).is_pending() {
            return Poll::Pending;
        }
        if fields == Some(due) {
            *self.shared.fields.borrow_mut() = None;
        } else if waiting == Some(due) {
            self.core.shard.count(Counter::Timeout(Timeout::Header));
            self.go_away(Reason::PROTOCOL_ERROR, TunnelEnd::Answered);
        } else if self.drain_since.is_some() {
            self.go_away(Reason::NO_ERROR, TunnelEnd::DrainedIdle);
        } else {
            self.core.shard.count(Counter::Timeout(Timeout::Idle));
            self.go_away(Reason::NO_ERROR, TunnelEnd::Idle);
        }
        Poll::Ready(())
    }

    /// Ends the connection with GOAWAY: streams that are not under way yet may be tried again elsewhere.
    fn go_away(&mut self, reason: Reason, end: TunnelEnd) {
        self.ending = Some((reason, end));
        match &mut self.stage {
            Stage::Open(connection) => connection.abrupt_shutdown(reason),
            // Who has not said a preface does not speak HTTP/2, and would not understand.
            Stage::Preface(_) => self.shared.end.set(Some(end)),
        }
    }

    /// What `h2` says of the end.
    fn ended(&self, error: Option<&h2::Error>) -> TunnelEnd {
        if let Some(gone) = self.transport.gone() {
            return self.lost(gone);
        }
        if let Some(reason) = error.filter(|error| !error.is_remote()).and_then(h2::Error::reason) {
            self.core.shard.count(Counter::GoAway(code(reason)));
        } else if let Some((reason, _)) = self.ending {
            // A shutdown of our own is no error to `h2`, whatever its code.
            self.core.shard.count(Counter::GoAway(code(reason)));
        } else if error.is_none() && self.drain_since.is_some() {
            self.core.shard.count(Counter::GoAway(GoAway::NoError));
        }
        match (self.ending, error) {
            (Some((_, end)), _) => end,
            (None, None) if self.drain_since.is_some() => TunnelEnd::DrainedIdle,
            (None, None) => TunnelEnd::Clean,
            (None, Some(error)) if error.is_io() => TunnelEnd::ClientAborted,
            (None, Some(error)) if error.is_remote() => TunnelEnd::Clean,
            (None, Some(_)) => TunnelEnd::ProtocolError,
        }
    }

    /// The client is gone.
    fn lost(&self, gone: Gone) -> TunnelEnd {
        match gone {
            Gone::Broke => TunnelEnd::ProtocolError,
            // Nothing is cut short where nothing is under way: that a client saves its goodbye harms nobody.
            Gone::Cut if self.shared.live.get() == 0 => TunnelEnd::Clean,
            Gone::Cut => TunnelEnd::ClientAborted,
        }
    }
}

/// What a stream that was reset with this code did wrong, if it did: we use these for nothing else, and other codes are
/// counted where they are used.
fn stream_fault(code: Reason) -> Option<StreamReset> {
    match code {
        Reason::PROTOCOL_ERROR => Some(StreamReset::Malformed),
        Reason::FLOW_CONTROL_ERROR => Some(StreamReset::FlowControl),
        Reason::STREAM_CLOSED => Some(StreamReset::Closed),
        Reason::REFUSED_STREAM => Some(StreamReset::Refused),
        _ => None,
    }
}

/// The label of a GOAWAY's code.
fn code(reason: Reason) -> GoAway {
    match reason {
        Reason::NO_ERROR => GoAway::NoError,
        Reason::PROTOCOL_ERROR => GoAway::ProtocolError,
        Reason::FLOW_CONTROL_ERROR => GoAway::FlowControlError,
        Reason::FRAME_SIZE_ERROR => GoAway::FrameSizeError,
        Reason::COMPRESSION_ERROR => GoAway::CompressionError,
        Reason::STREAM_CLOSED => GoAway::StreamClosed,
        Reason::ENHANCE_YOUR_CALM => GoAway::EnhanceYourCalm,
        _ => GoAway::Other,
    }
}

//! Bytes mode: what the client sends goes to the origin decrypted, what the origin sends goes back encrypted.
//!
//! Each direction reads only when its last bytes have been sent, so memory is bounded and a slow side holds the other
//! back. A side that says goodbye properly (close_notify, FIN) is passed on as a half-close; one that breaks off is passed
//! on as a break: the origin sees a reset, the client a connection without close_notify, and neither can take half a
//! message for a whole one.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::proxy::origin::Wire;
use crate::ring::{self, Receive, Socket};
use crate::telemetry::counters::{Counter, Shard, TunnelEnd};
use crate::tls::{Connection, Fatal, Outgoing};

use super::buffers::{Buffers, GATHER_BYTES};

/// How long a tunnel may be silent once one side has said goodbye. Peers that keep half a connection open on purpose keep
/// bytes moving; those that forgot about it should not hold two descriptors for the whole tunnel timeout.
pub const HALF_CLOSED_IDLE: Duration = Duration::from_secs(60);

/// One client connection joined to one origin connection.
pub struct Tunnel<'a> {
    pub client: &'a Socket,
    pub tls: &'a RefCell<Connection>,
    pub origin: &'a Wire,
    pub shard: &'a Shard,
    pub buffers: &'a Buffers,
    /// What this connection has carried; kept by the caller, who may end the tunnel at any moment.
    pub traffic: &'a Traffic,
    /// Longest silence of both sides.
    pub idle: Duration,
}

/// Plaintext bytes a connection has carried.
#[derive(Default, Debug)]
pub struct Traffic {
    /// From the client.
    pub in_bytes: Cell<u64>,
    /// To the client.
    pub out_bytes: Cell<u64>,
}

/// How one direction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    Clean,
    ClientAborted,
    ClientBroke,
    OriginAborted,
}

struct State {
    out: RefCell<Outgoing>,
    /// Records are on their way to the client.
    sending: Cell<bool>,
    moved_at: Cell<Instant>,
    half_closed: Cell<bool>,
}

impl Tunnel<'_> {
    /// Runs until both directions have ended, one broke, or nothing moved for too long.
    ///
    /// `early` is plaintext that came with the end of the handshake; `out` holds records that wait to be sent (a ticket).
    /// Returns how it ended, and the alert that is still to be sent.
    pub async fn run(&self, early: Vec<u8>, out: Outgoing) -> (TunnelEnd, Outgoing) {
        self.client.set_receive(Receive::Stream);
        self.origin.set_receive(Receive::Stream);
        let state = State {
            out: RefCell::new(out),
            sending: Cell::new(false),
            moved_at: Cell::new(ring::now()),
            half_closed: Cell::new(false),
        };
        let mut upward = pin!(self.upward(&state, early));
        let mut downward = pin!(self.downward(&state));
        let mut idle = pin!(self.idle(&state));
        let mut up = None;
        let mut down = None;
        let seen = Cell::new(state.moved_at.get());
        let watched = Cell::new(false);
        let ended = poll_fn(|cx| {
            // The client's side first: what it makes rustls say (a key update's answer) is sent by the other one.
            if up.is_none()
                && let Poll::Ready(ended) = upward.as_mut().poll(cx)
            {
                up = Some(ended);
                if ended != Ended::Clean {
                    // Over: the other direction must not go on with a TLS connection that has failed.
                    return Poll::Ready(ended.into());
                }
            }
            if down.is_none()
                && let Poll::Ready(ended) = downward.as_mut().poll(cx)
            {
                down = Some(ended);
            }
            match (up, down) {
                (Some(Ended::Clean), Some(Ended::Clean)) => return Poll::Ready(TunnelEnd::Clean),
                (Some(Ended::Clean) | None, Some(Ended::Clean) | None) => {}
                (_, Some(ended)) => return Poll::Ready(ended.into()),
                (Some(_), None) => {}
            }
            // The silence is looked at when this pass moved nothing, or when the limit has just become shorter.
            let half_closed = up.is_some() || down.is_some();
            let moved = state.moved_at.get() != seen.replace(state.moved_at.get());
            if moved && watched.get() && state.half_closed.get() == half_closed {
                return Poll::Pending;
            }
            watched.set(true);
            state.half_closed.set(half_closed);
            idle.as_mut().poll(cx).map(|()| TunnelEnd::TimedOut)
        })
        .await;
        if ended != TunnelEnd::Clean {
            self.origin.reset_on_close();
        }
        // What rustls wants to say to a client that broke TLS stands in `out`. It is not said in the middle of a record.
        let mut last = Outgoing::default();
        if ended == TunnelEnd::ProtocolError && !state.sending.get() {
            last = state.out.take();
        }
        (ended, last)
    }

    /// Client to origin.
    async fn upward(&self, state: &State, early: Vec<u8>) -> Ended {
        let mut plain = early;
        loop {
            if !plain.is_empty() {
                self.shard.add(Counter::BytesIn, plain.len() as u64);
                self.traffic.in_bytes.set(self.traffic.in_bytes.get() + plain.len() as u64);
                let filled = plain.len();
                let (result, buffer) = self.origin.send_prefix(self.buffers, plain, filled).await;
                self.buffers.keep_plain(buffer);
                plain = Vec::new();
                state.moved_at.set(ring::now());
                if result.is_err() {
                    return Ended::OriginAborted;
                }
            }
            if self.tls.borrow().peer_closed() {
                // Fails only if the origin has reset, which its own direction reports.
                let _ = self.origin.finish(self.buffers).await;
                return Ended::Clean;
            }
            let received = poll_fn(|cx| self.gather_upward(state, &mut plain, cx)).await;
            match received {
                Ok(true) => state.moved_at.set(ring::now()),
                // FIN without close_notify: the stream was cut (RFC 8446 section 6.1).
                Ok(false) => return Ended::ClientAborted,
                Err(ended) => return ended,
            }
        }
    }

    /// Decrypts what has come, as far as there is any and it fits. Ready with false at a bare end of stream.
    fn gather_upward(&self, state: &State, plain: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<Result<bool, Ended>> {
        let mut take = |bytes: &mut [u8]| {
            if plain.capacity() == 0 {
                *plain = self.buffers.plain();
            }
            let mut out = state.out.borrow_mut();
            self.tls.borrow_mut().receive(bytes, &mut out, |record| plain.extend_from_slice(record))?;
            Ok::<usize, Fatal>(plain.len())
        };
        // Records that carry no plaintext (a key update, a part of one) are not worth an answer: wait for more.
        let mut filled = 0;
        let mut received = self.client.poll_receive(cx, &mut take);
        loop {
            filled = match received {
                Poll::Ready(Ok(Some(Ok(filled)))) => filled,
                Poll::Ready(Ok(Some(Err(_)))) => return Poll::Ready(Err(Ended::ClientBroke)),
                // What came before the end goes out first; the end is met again by the next call.
                Poll::Ready(Ok(None) | Err(_)) if filled > 0 => return Poll::Ready(Ok(true)),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(false)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Ended::ClientAborted)),
                Poll::Pending => return Poll::Pending,
            };
            if filled >= GATHER_BYTES || self.tls.borrow().peer_closed() {
                return Poll::Ready(Ok(true));
            }
            received = match self.client.arrived(&mut take) {
                Some(result) => Poll::Ready(result),
                None if filled > 0 => return Poll::Ready(Ok(true)),
                None => self.client.poll_receive(cx, &mut take),
            };
        }
    }

    /// Origin to client.
    async fn downward(&self, state: &State) -> Ended {
        loop {
            let gathered = poll_fn(|cx| self.gather_downward(state, cx)).await;
            state.moved_at.set(ring::now());
            let end = match gathered {
                Ok(end) => end,
                Err(ended) => return ended,
            };
            if end {
                self.tls.borrow_mut().close(&mut state.out.borrow_mut());
            }
            let (bytes, filled) = state.out.borrow_mut().take();
            if filled > 0 {
                state.sending.set(true);
                let (result, memory) = self.client.send_prefix(bytes, filled).await;
                state.sending.set(false);
                self.buffers.keep_records(memory);
                if result.is_err() {
                    return Ended::ClientAborted;
                }
            }
            if end {
                // A client that has ended its side too is closed in a moment, which says the same.
                if !self.client.peer_ended() {
                    let _ = self.client.shutdown_write();
                }
                return Ended::Clean;
            }
        }
    }

    /// Encrypts what has come, as far as there is any and it fits; ready as well when there are only records of rustls' own
    /// to send. Ready with true when the origin has ended its side.
    fn gather_downward(&self, state: &State, cx: &mut Context<'_>) -> Poll<Result<bool, Ended>> {
        let take = |bytes: &[u8]| {
            let mut out = state.out.borrow_mut();
            if out.is_empty() {
                *out = Outgoing::with_memory(self.buffers.records());
            }
            self.shard.add(Counter::BytesOut, bytes.len() as u64);
            self.traffic.out_bytes.set(self.traffic.out_bytes.get() + bytes.len() as u64);
            self.tls.borrow_mut().send(bytes, &mut out)
        };
        let mut received = self.origin.poll_receive(cx, take);
        loop {
            let waiting = state.out.borrow().len();
            match received {
                Poll::Ready(Ok(Some(Ok(())))) if waiting < GATHER_BYTES => {}
                Poll::Ready(Ok(Some(Ok(())))) => return Poll::Ready(Ok(false)),
                Poll::Ready(Ok(Some(Err(_)))) => return Poll::Ready(Err(Ended::ClientBroke)),
                Poll::Ready(Ok(None)) => return Poll::Ready(Ok(true)),
                // What came before the break is the client's; the break is met again by the next call.
                Poll::Ready(Err(_)) if waiting > 0 => return Poll::Ready(Ok(false)),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Ended::OriginAborted)),
                Poll::Pending if waiting > 0 => return Poll::Ready(Ok(false)),
                Poll::Pending => return Poll::Pending,
            }
            received = self.origin.arrived(take).map_or(Poll::Pending, Poll::Ready);
        }
    }

    /// Ends when nothing has moved for too long.
    async fn idle(&self, state: &State) {
        let limit = |state: &State| if state.half_closed.get() { HALF_CLOSED_IDLE.min(self.idle) } else { self.idle };
        let deadline = |state: &State| state.moved_at.get() + limit(state);
        let mut sleep = pin!(ring::sleep_until(deadline(state)));
        poll_fn(|cx| {
            let deadline = deadline(state);
            sleep.reset(deadline);
            sleep.as_mut().poll(cx)
        })
        .await;
    }
}

impl From<Ended> for TunnelEnd {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Clean => Self::Clean,
            Ended::ClientAborted => Self::ClientAborted,
            Ended::ClientBroke => Self::ProtocolError,
            Ended::OriginAborted => Self::OriginAborted,
        }
    }
}

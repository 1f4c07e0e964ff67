//! A WebSocket of HTTP/2 (RFC 8441): one stream joined to one origin connection.
//!
//! As in the [tunnel](crate::proxy::tunnel) of a whole connection, each direction reads only when its last bytes are on
//! their way, an end in order is passed on as one, and a break as a break (RFC 9113 section 8.5: RST_STREAM for a reset).

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

use super::send::poll_send;
use crate::proxy::buffers::{Buffers, GATHER_BYTES};
use crate::proxy::origin::Wire;
use crate::proxy::tunnel::{HALF_CLOSED_IDLE, Traffic};
use crate::ring;
use crate::telemetry::counters::{Counter, Shard, TunnelEnd};

/// One stream joined to one origin connection.
pub struct Tunnel<'a> {
    pub origin: &'a Wire,
    pub shard: &'a Shard,
    pub buffers: &'a Buffers,
    pub traffic: &'a Traffic,
    /// Pieces of what the origin says, which the connection's meter is told of.
    pub pieces: &'a Cell<u32>,
    /// Longest silence of both sides.
    pub idle: Duration,
}

impl Tunnel<'_> {
    /// Runs until both directions have ended, one broke, or nothing moved for too long. `leftover` is what the origin has
    /// sent already.
    pub async fn run(&self, mut client: RecvStream, mut stream: SendStream<Bytes>, leftover: Vec<u8>) -> TunnelEnd {
        let moved = Cell::new(ring::now());
        let half_closed = Cell::new(false);
        let ended = {
            let mut upward = pin!(self.upward(&mut client, &moved));
            let mut downward = pin!(self.downward(&mut stream, leftover, &moved));
            let mut sleep = pin!(ring::sleep_until(moved.get() + self.idle));
            let (mut up_open, mut down_open) = (true, true);
            poll_fn(|cx| {
                if up_open && let Poll::Ready(end) = upward.as_mut().poll(cx) {
                    up_open = false;
                    if end != TunnelEnd::Clean {
                        return Poll::Ready(end);
                    }
                }
                if down_open && let Poll::Ready(end) = downward.as_mut().poll(cx) {
                    down_open = false;
                    if end != TunnelEnd::Clean {
                        return Poll::Ready(end);
                    }
                }
                if !up_open && !down_open {
                    return Poll::Ready(TunnelEnd::Clean);
                }
                half_closed.set(!up_open || !down_open);
                let idle = if half_closed.get() { HALF_CLOSED_IDLE.min(self.idle) } else { self.idle };
                sleep.as_mut().reset(moved.get() + idle);
                sleep.as_mut().poll(cx).map(|()| TunnelEnd::TimedOut)
            })
            .await
        };
        if ended != TunnelEnd::Clean {
            self.origin.reset_on_close();
            stream.send_reset(Reason::CANCEL);
        }
        ended
    }

    /// Client to origin.
    async fn upward(&self, client: &mut RecvStream, moved: &Cell<Instant>) -> TunnelEnd {
        while let Some(data) = poll_fn(|cx| client.poll_data(cx)).await {
            let Ok(data) = data else { return TunnelEnd::ClientAborted };
            moved.set(ring::now());
            if !data.is_empty() {
                self.shard.add(Counter::BytesIn, data.len() as u64);
                self.traffic.in_bytes.set(self.traffic.in_bytes.get() + data.len() as u64);
                let mut bytes = self.buffers.plain();
                bytes.extend_from_slice(&data);
                let (result, memory) = self.origin.send_prefix(self.buffers, bytes, data.len()).await;
                self.buffers.keep_plain(memory);
                if result.is_err() {
                    return TunnelEnd::OriginAborted;
                }
                moved.set(ring::now());
            }
            // The window opens as the origin takes the bytes.
            if client.flow_control().release_capacity(data.len()).is_err() {
                return TunnelEnd::ClientAborted;
            }
        }
        // Fails only if the origin has reset, which its own direction reports.
        let _ = self.origin.finish(self.buffers).await;
        TunnelEnd::Clean
    }

    /// Origin to client.
    async fn downward(&self, stream: &mut SendStream<Bytes>, leftover: Vec<u8>, moved: &Cell<Instant>) -> TunnelEnd {
        let mut bytes = Bytes::from(leftover);
        loop {
            moved.set(ring::now());
            let sent = poll_fn(|cx| poll_send(stream, cx, &mut bytes, false)).await;
            if sent.is_err() {
                return TunnelEnd::ClientAborted;
            }
            let mut gathered = BytesMut::new();
            let received = poll_fn(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(TunnelEnd::ClientAborted));
                }
                loop {
                    let take = |bytes: &[u8]| {
                        gathered.extend_from_slice(bytes);
                        Ok::<(), std::convert::Infallible>(())
                    };
                    match self.origin.poll_receive(cx, take) {
                        Poll::Ready(Ok(Some(_))) if gathered.len() < GATHER_BYTES => {}
                        Poll::Ready(Ok(Some(_))) => return Poll::Ready(Ok(true)),
                        // What came before the end is the client's; the end is met again by the next call.
                        Poll::Ready(_) | Poll::Pending if !gathered.is_empty() => return Poll::Ready(Ok(true)),
                        Poll::Ready(Ok(None)) => return Poll::Ready(Ok(false)),
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(TunnelEnd::OriginAborted)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            })
            .await;
            match received {
                Ok(true) => {
                    self.shard.add(Counter::BytesOut, gathered.len() as u64);
                    self.traffic.out_bytes.set(self.traffic.out_bytes.get() + gathered.len() as u64);
                    self.pieces.set(self.pieces.get().saturating_add(1));
                    bytes = gathered.freeze();
                }
                Ok(false) => {
                    return match stream.send_data(Bytes::new(), true) {
                        Ok(()) => TunnelEnd::Clean,
                        Err(_) => TunnelEnd::ClientAborted,
                    };
                }
                Err(end) => return end,
            }
        }
    }
}

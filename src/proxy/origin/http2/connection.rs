//! One HTTP/2 connection to an origin: who may use it, how many streams it has room for, how it ends.
//!
//! A task of its own drives it until it has ended. Whoever holds it opens streams; what has been told to end (GOAWAY, a
//! reload, its age) carries those it has to their end and opens no more.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong};

use super::link::{Io, Link};
use super::pings::{Act, Pings};
use super::{CONNECTION_WINDOW_BYTES, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_MAX};
use crate::proxy::buffers::Buffers;
use crate::proxy::origin::pool::Whose;
use crate::proxy::origin::{Address, Wire};
use crate::ring::{self, Signal};
use crate::tls::Tenant;

/// How long a connection without streams is kept.
///
/// Servers announce an end by GOAWAY, and what crosses it is sent again, so that it may be long: a minute without a request
/// is what nginx and Envoy users see too.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// One connection.
pub struct Connection {
    send: RefCell<Option<SendRequest<Bytes>>>,
    pub address: Rc<Address>,
    pub whose: Whose,
    /// The hostname it belongs to; `None`: everybody's, the origin is shared.
    pub owner: Option<Rc<Tenant>>,
    pub is_tls: bool,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    /// Wakes whoever drives it.
    driver: RefCell<Option<Waker>>,
}

/// The origin does not speak HTTP/2 there, or went away.
pub struct NotHttp2(pub String);

impl Connection {
    /// Opens HTTP/2 on a connection and waits for the origin's SETTINGS, which say how many streams there may be. The caller
    /// bounds its time.
    ///
    /// # Errors
    ///
    /// [`NotHttp2`].
    pub async fn open(
        wire: Wire,
        buffers: &Rc<Buffers>,
        header_bytes_max: u32,
        address: &Rc<Address>,
        whose: Whose,
        owner: Option<Rc<Tenant>>,
    ) -> Result<Rc<Self>, NotHttp2> {
        let is_tls = matches!(wire, Wire::Tls(_));
        let link = Link::new(wire, Rc::clone(buffers));
        let handshake = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(header_bytes_max)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake(Io(Rc::clone(&link)))
            .await;
        let (send, connection) = handshake.map_err(|error| NotHttp2(error.to_string()))?;
        let shared = Rc::new(Self {
            send: RefCell::new(Some(send)),
            address: Rc::clone(address),
            whose,
            owner,
            is_tls,
            streams: Cell::new(0),
            idle_since: Cell::new(ring::now()),
            driver: RefCell::default(),
        });
        let begun = Rc::new(Signal::default());
        let why = Rc::new(RefCell::new(String::new()));
        ring::spawn(drive(connection, link, Rc::clone(&shared), Rc::clone(&begun), Rc::clone(&why)));
        if begun.wait().await {
            return Ok(shared);
        }
        Err(NotHttp2(why.take()))
    }

    /// What a stream is opened with; `None`: no more are opened.
    pub(super) fn sender(&self) -> Option<SendRequest<Bytes>> {
        self.send.borrow().clone()
    }

    /// Whether there is room for one more stream.
    pub fn has_room(&self) -> bool {
        self.send
            .borrow()
            .as_ref()
            .is_some_and(|send| self.streams.get() < send.current_max_send_streams().min(STREAMS_MAX))
    }

    /// Whether no more streams are opened.
    pub fn has_ended(&self) -> bool {
        self.send.borrow().is_none()
    }

    /// Whether it has no streams.
    pub fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// Opens no more streams, and ends with the last of them.
    pub fn end(&self) {
        self.send.borrow_mut().take();
        self.wake();
    }

    pub(super) fn stream_began(&self) {
        self.streams.set(self.streams.get() + 1);
    }

    pub(super) fn stream_ended(&self) {
        self.streams.set(self.streams.get() - 1);
        self.idle_since.set(ring::now());
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.driver.borrow() {
            waker.wake_by_ref();
        }
    }
}

/// Drives a connection to its end.
async fn drive(
    connection: h2::client::Connection<Io, Bytes>,
    link: Rc<Link>,
    shared: Rc<Connection>,
    begun: Rc<Signal<bool>>,
    why: Rc<RefCell<String>>,
) {
    let mut connection = pin!(connection);
    let mut ping_pong: Option<PingPong> = connection.ping_pong();
    let mut pings = Pings::default();
    let mut sleep = pin!(ring::sleep_until(ring::now() + IDLE_MAX));
    let opened = ring::now();
    poll_fn(|cx| {
        if shared.driver.borrow().as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *shared.driver.borrow_mut() = Some(cx.waker().clone());
        }
        loop {
            let polled = connection.as_mut().poll(cx);
            if let Poll::Ready(Err(error)) = &polled {
                *why.borrow_mut() = error.to_string();
            }
            if polled.is_pending() && link.heard().is_some() {
                begun.set(true);
            }
            let pushed = link.push(cx);
            if polled.is_ready() || matches!(pushed, Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            if link.take_blocked() {
                continue;
            }
            let now = ring::now();
            let due = if shared.is_idle() {
                let due = shared.idle_since.get() + IDLE_MAX;
                if now >= due && !shared.has_ended() {
                    shared.send.borrow_mut().take();
                    continue;
                }
                due.max(now + Duration::from_secs(1))
            } else {
                match pings.next(link.heard().unwrap_or(opened), now) {
                    Act::Wait(until) => until,
                    Act::Dead => return Poll::Ready(()),
                    Act::Ping => {
                        // Its answer counts as any byte does.
                        if let Some(ping_pong) = &mut ping_pong {
                            let _ = ping_pong.poll_pong(cx);
                            let _ = ping_pong.send_ping(Ping::opaque());
                        }
                        continue;
                    }
                }
            };
            sleep.as_mut().reset(due);
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
    shared.send.borrow_mut().take();
    begun.set(false);
    // What it said last (GOAWAY) is given a moment.
    let _ = ring::timeout(LAST_WORDS, poll_fn(|cx| link.push(cx))).await;
    link.end();
}

/// How long the last frames may take to leave.
const LAST_WORDS: Duration = Duration::from_millis(500);

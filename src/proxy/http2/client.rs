//! One stream of a client's HTTP/2 connection as the client's side of an exchange.
//!
//! The request's body is framed as HTTP/1.1 on its way in, the response is unframed on its way out. Flow control couples
//! both sides: the client's window opens as the origin takes its bytes, the origin is read as the client's window allows.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::Write;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;

use super::head;
use super::send::poll_send;
use crate::proxy::buffers::{Buffers, GATHER_BYTES};
use crate::proxy::http1::client::Gone;
use crate::proxy::http1::downstream::{Downstream, Ending};
use crate::proxy::http1::reply::Sink;
use crate::proxy::http1::{Framing, Response};

/// A stream that waits for its response.
pub struct Stream<'a> {
    buffers: &'a Buffers,
    body: RefCell<RecvStream>,
    framing: Framing,
    inbox: RefCell<Inbox>,
    /// The request has ended.
    finished: Cell<bool>,
    response: RefCell<Speaking>,
    outbox: RefCell<Outbox>,
    /// What the origin proves a WebSocket with.
    websocket_accept: RefCell<Option<String>>,
    /// The request's trailers are malformed.
    malformed: Cell<bool>,
    /// Pieces of responses, which the connection's meter is told of.
    pieces: &'a Cell<u32>,
}

/// What of a body has come and was not consumed, framed.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    consumed: usize,
}

/// How far the response is.
enum Speaking {
    Head(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
    /// END_STREAM was sent.
    Ended,
}

/// What waits for the client's window.
#[derive(Default)]
struct Outbox {
    bytes: Bytes,
    /// The response ends behind the bytes, with these fields if there are any.
    end: Option<HeaderMap>,
}

/// A part of a response that is gathered.
#[derive(Default)]
pub struct Gathered {
    interim: Vec<http::Response<()>>,
    head: Option<http::Response<()>>,
    body: BytesMut,
    trailers: HeaderMap,
    /// A head that HTTP/2 cannot say.
    garbled: bool,
}

/// Takes a response apart.
struct Parts<'s> {
    gathered: &'s mut Gathered,
    websocket_accept: &'s RefCell<Option<String>>,
}

impl Sink for Parts<'_> {
    fn head(&mut self, response: &Response<'_>, keep_alive: bool) -> bool {
        let Some(mut head) = head::response(response) else {
            self.gathered.garbled = true;
            return keep_alive;
        };
        match response.status {
            // RFC 8441 section 5: the tunnel opens with a success, and what proves HTTP/1.1's upgrade means nothing here.
            101 => {
                *head.status_mut() = http::StatusCode::OK;
                let proof = head.headers_mut().remove("sec-websocket-accept");
                let expected = self.websocket_accept.borrow();
                let is_proved = proof.zip(expected.as_ref()).is_some_and(|(proof, expected)| proof == **expected);
                self.gathered.garbled |= !is_proved;
                self.gathered.head = Some(head);
            }
            100..200 => self.gathered.interim.push(head),
            // To this client a success would mean that its WebSocket is open; only a 101 can say that.
            200..300 if self.websocket_accept.borrow().is_some() => self.gathered.garbled = true,
            _ => {
                let length = response.content_length().unwrap_or(0).min(GATHER_BYTES as u64);
                self.gathered.body.reserve(length as usize);
                self.gathered.head = Some(head);
            }
        }
        keep_alive
    }

    fn piece(&mut self, piece: &[u8]) {
        self.gathered.body.extend_from_slice(piece);
    }

    fn trailers(&mut self, lines: &[u8]) {
        self.gathered.trailers = head::trailers(lines);
    }
}

impl<'a> Stream<'a> {
    /// `framing` is what the request's head says, as text, of the body that comes from `body`.
    /// Each piece of the response is counted in `pieces`.
    pub fn new(
        buffers: &'a Buffers,
        body: RecvStream,
        framing: Framing,
        respond: SendResponse<Bytes>,
        pieces: &'a Cell<u32>,
    ) -> Self {
        Self {
            buffers,
            body: RefCell::new(body),
            framing,
            inbox: RefCell::default(),
            finished: Cell::new(false),
            response: RefCell::new(Speaking::Head(respond)),
            outbox: RefCell::default(),
            websocket_accept: RefCell::default(),
            malformed: Cell::new(false),
            pieces,
        }
    }

    /// Whether the request turned out to be malformed behind its head.
    pub fn is_malformed(&self) -> bool {
        self.malformed.get()
    }

    /// The request becomes a WebSocket if the origin's 101 has this `Sec-WebSocket-Accept`.
    pub fn expect_websocket(&self, accept: String) {
        *self.websocket_accept.borrow_mut() = Some(accept);
    }

    /// Answers with a head and a body of our own. Whether that could be said: nothing of a response was before.
    pub fn answer(&self, head: http::Response<()>, body: Bytes) -> bool {
        let mut response = self.response.borrow_mut();
        let Speaking::Head(respond) = &mut *response else { return false };
        let Ok(mut stream) = respond.send_response(head, body.is_empty()) else { return false };
        // Some words; `h2` keeps them where the client's window is closed.
        let said = body.is_empty() || stream.send_data(body, true).is_ok();
        *response = Speaking::Ended;
        said
    }

    /// Breaks the stream off, so that nobody takes it for whole.
    pub fn reset(&self, reason: Reason) {
        match &mut *self.response.borrow_mut() {
            Speaking::Head(respond) => respond.send_reset(reason),
            Speaking::Body(stream) => stream.send_reset(reason),
            Speaking::Ended => {}
        }
    }

    /// Gives the stream up for a tunnel, once its head was sent.
    pub fn into_tunnel(self) -> Option<(RecvStream, SendStream<Bytes>)> {
        match self.response.into_inner() {
            Speaking::Body(stream) => Some((self.body.into_inner(), stream)),
            Speaking::Head(_) | Speaking::Ended => None,
        }
    }

    /// Reads and forgets what is left of the request, up to `left` bytes, behind which the client's window stays closed. Ready
    /// when the request has ended.
    pub fn poll_discard(&self, cx: &mut Context<'_>, left: &mut u64) -> Poll<()> {
        let mut body = self.body.borrow_mut();
        loop {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) if data.len() as u64 <= *left => {
                    *left -= data.len() as u64;
                    // Fails where the stream has ended, which is met next.
                    let _ = body.flow_control().release_capacity(data.len());
                }
                Some(Ok(_)) => *left = 0,
                Some(Err(_)) | None => return Poll::Ready(()),
            }
        }
    }

    /// Hands bytes to the sink, or lets them wait behind others.
    fn feed(inbox: &mut Inbox, sink: &mut impl FnMut(&[u8]) -> usize, bytes: &[u8]) {
        let taken = if inbox.bytes.is_empty() { sink(bytes) } else { 0 };
        inbox.bytes.extend_from_slice(&bytes[taken..]);
    }
}

impl Downstream for Stream<'_> {
    type Gathered = Gathered;

    fn buffers(&self) -> &Buffers {
        self.buffers
    }

    fn consume<R>(&self, consume: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut inbox = self.inbox.borrow_mut();
        let (consumed, result) = consume(&inbox.bytes[inbox.consumed..]);
        inbox.consumed += consumed;
        if inbox.consumed >= inbox.bytes.len() {
            *inbox = Inbox::default();
        }
        result
    }

    fn poll_pass(&self, cx: &mut Context<'_>, mut sink: impl FnMut(&[u8]) -> usize) -> Poll<Result<bool, Gone>> {
        let mut inbox = self.inbox.borrow_mut();
        debug_assert!(inbox.bytes.is_empty(), "what waits comes first");
        let mut body = self.body.borrow_mut();
        let mut passed = 0;
        while !self.finished.get() && passed < GATHER_BYTES {
            let data = match body.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => data,
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(Gone::Cut)),
                Poll::Ready(None) => {
                    let trailers = match ready!(body.poll_trailers(cx)) {
                        Ok(trailers) => trailers.unwrap_or_default(),
                        Err(_) => return Poll::Ready(Err(Gone::Cut)),
                    };
                    self.finished.set(true);
                    // A body whose length was told has no room for trailers in HTTP/1.1 (RFC 9112 section 7.1.2).
                    if self.framing == Framing::Chunked {
                        let mut last = b"0\r\n".to_vec();
                        if head::push_trailers(&trailers, &mut last).is_err() {
                            self.malformed.set(true);
                            return Poll::Ready(Err(Gone::Broke));
                        }
                        Self::feed(&mut inbox, &mut sink, &last);
                    }
                    return Poll::Ready(Ok(self.framing == Framing::Chunked || passed > 0));
                }
                Poll::Pending if passed > 0 => break,
                Poll::Pending => return Poll::Pending,
            };
            // A chunk of no bytes would be the last.
            if data.is_empty() {
                continue;
            }
            passed += data.len();
            if self.framing == Framing::Chunked {
                let mut size = [0_u8; 18];
                let mut rest = &mut size[..];
                // 64 bits have at most 16 digits: it always fits.
                let _ = write!(rest, "{:x}\r\n", data.len());
                let left = rest.len();
                Self::feed(&mut inbox, &mut sink, &size[..18 - left]);
                Self::feed(&mut inbox, &mut sink, &data);
                Self::feed(&mut inbox, &mut sink, b"\r\n");
            } else {
                Self::feed(&mut inbox, &mut sink, &data);
            }
            // The next call comes when the origin has taken these: only then is more wanted.
            if body.flow_control().release_capacity(data.len()).is_err() {
                return Poll::Ready(Err(Gone::Cut));
            }
        }
        Poll::Ready(Ok(passed > 0))
    }

    /// Its stream is reset, or its connection is gone.
    fn poll_gone(&self, cx: &mut Context<'_>, _body_read: bool) -> Poll<Gone> {
        match &mut *self.response.borrow_mut() {
            Speaking::Head(respond) => respond.poll_reset(cx).map(|_| Gone::Cut),
            Speaking::Body(stream) => stream.poll_reset(cx).map(|_| Gone::Cut),
            Speaking::Ended => Poll::Pending,
        }
    }

    fn may_ask_more(&self) -> bool {
        true
    }

    fn gather(&self) -> Gathered {
        Gathered::default()
    }

    fn sink<'s>(&'s self, gathered: &'s mut Gathered) -> impl Sink + 's {
        Parts { gathered, websocket_accept: &self.websocket_accept }
    }

    fn gathered_bytes(&self, gathered: &Gathered) -> usize {
        // A head alone is worth sending.
        gathered.body.len() + usize::from(gathered.head.is_some() || !gathered.interim.is_empty())
    }

    fn write(&self, gathered: Gathered, ending: Ending) -> Result<(), Gone> {
        let Gathered { interim, head, body, trailers, garbled } = gathered;
        let mut response = self.response.borrow_mut();
        if garbled {
            return Err(Gone::Broke);
        }
        let ends = ending != Ending::More;
        if let Speaking::Head(respond) = &mut *response {
            for head in interim {
                respond.send_informational(head).map_err(|_| Gone::Cut)?;
            }
            if let Some(head) = head {
                let ends = ends && body.is_empty() && trailers.is_empty();
                let stream = respond.send_response(head, ends).map_err(|_| Gone::Cut)?;
                *response = if ends { Speaking::Ended } else { Speaking::Body(stream) };
            }
        }
        let mut outbox = self.outbox.borrow_mut();
        debug_assert!(outbox.bytes.is_empty(), "flushed before more is written");
        self.pieces.set(self.pieces.get().saturating_add(1));
        outbox.bytes = body.freeze();
        if ends && !matches!(*response, Speaking::Ended) {
            outbox.end = Some(trailers);
        }
        Ok(())
    }

    fn unsent(&self) -> usize {
        self.outbox.borrow().bytes.len()
    }

    async fn flush(&self) -> Result<(), Gone> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }
}

impl Stream<'_> {
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut response = self.response.borrow_mut();
        let mut outbox = self.outbox.borrow_mut();
        let Speaking::Body(stream) = &mut *response else { return Poll::Ready(Ok(())) };
        let Outbox { bytes, end } = &mut *outbox;
        let ends_with_data = end.as_ref().is_some_and(HeaderMap::is_empty);
        ready!(poll_send(stream, cx, bytes, ends_with_data)).map_err(|_| Gone::Cut)?;
        if let Some(trailers) = end.take() {
            if !trailers.is_empty() {
                stream.send_trailers(trailers).map_err(|_| Gone::Cut)?;
            }
            *response = Speaking::Ended;
        }
        Poll::Ready(Ok(()))
    }
}

//! One exchange on an HTTP/2 connection: a wire like a socket, whose bytes have the form of HTTP/1.1.
//!
//! Both directions are coupled to the client by flow control: a request's bytes are taken only as the origin's window takes
//! them, and the window of a response opens only as the client has been sent what came before.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};

use super::connection::Connection;
use super::head::{self, Coding};
use crate::proxy::http1::ProxyError;
use crate::proxy::http2::head::trailers as trailer_fields;
use crate::proxy::http2::send::poll_send;
use crate::ring;

/// How long the end of a stream whose response is whole already is waited for.
const END_WAIT: Duration = Duration::from_secs(1);

/// Why a stream carries nothing more.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The origin has not looked at the request, which may be sent again whatever it is (RFC 9113 section 8.7).
    pub unprocessed: bool,
    pub error: ProxyError,
    pub detail: String,
}

/// Where a response is.
enum Stage {
    /// The request has not been sent.
    Unsent,
    Head(ResponseFuture),
    Body(RecvStream, Coding),
    Done,
}

/// One stream.
pub struct Stream {
    connection: Rc<Connection>,
    stage: RefCell<Stage>,
    send: RefCell<Option<SendStream<Bytes>>>,
    /// The request has been sent whole.
    ended: Cell<bool>,
    /// Bytes that were handed on and whose window is still closed.
    unreleased: Cell<usize>,
    to_head: bool,
    takes_trailers: bool,
    fault: RefCell<Option<Fault>>,
}

impl Stream {
    /// A stream that has not sent anything yet. It counts as one of the connection's from now on.
    pub fn new(connection: Rc<Connection>, to_head: bool, takes_trailers: bool) -> Self {
        connection.stream_began();
        Self {
            connection,
            stage: RefCell::new(Stage::Unsent),
            send: RefCell::default(),
            ended: Cell::new(false),
            unreleased: Cell::new(0),
            to_head,
            takes_trailers,
            fault: RefCell::default(),
        }
    }

    /// Why it carries nothing more, if it does not.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.borrow().clone()
    }

    /// Sends the first `filled` bytes of a buffer: the head first, with what belongs to it of the body, then content. `ends`:
    /// that was all, but for trailers (lines with an empty one behind; none if empty).
    pub async fn send(&self, bytes: &[u8], ends: bool, trailers: &[u8]) -> io::Result<()> {
        let fields = trailer_fields(trailers);
        let ends_with_data = ends && fields.is_empty();
        let mut content = bytes;
        if self.send.borrow().is_none() {
            let head_bytes = self.open(bytes, ends_with_data)?;
            content = &bytes[head_bytes..];
        }
        let mut rest = Bytes::copy_from_slice(content);
        poll_fn(|cx| self.poll_send(cx, &mut rest, ends_with_data)).await?;
        if ends && !fields.is_empty() {
            let mut send = self.send.borrow_mut();
            let sent = send.as_mut().map(|send| send.send_trailers(fields));
            sent.transpose().map_err(|error| self.broke(&error))?;
        }
        if ends {
            self.ended.set(true);
        }
        Ok(())
    }

    /// Opens the stream by its head; returns how many bytes that takes.
    fn open(&self, bytes: &[u8], ends: bool) -> io::Result<usize> {
        let refuse = |fault: Fault| {
            *self.fault.borrow_mut() = Some(fault);
            io::Error::from(io::ErrorKind::InvalidData)
        };
        let unsaid = || Fault {
            unprocessed: false,
            error: ProxyError::HttpProtocolError,
            detail: "the request cannot be said in HTTP/2".to_owned(),
        };
        let (head_bytes, request) =
            head::request(bytes, self.connection.is_tls, self.takes_trailers).ok_or_else(|| refuse(unsaid()))?;
        let Some(mut sender) = self.connection.sender() else {
            return Err(refuse(Fault {
                unprocessed: true,
                error: ProxyError::ConnectionTerminated,
                detail: "the origin's connection has ended".to_owned(),
            }));
        };
        let ends = ends && bytes.len() == head_bytes;
        match sender.send_request(request, ends) {
            Ok((response, send)) => {
                *self.send.borrow_mut() = Some(send);
                *self.stage.borrow_mut() = Stage::Head(response);
                self.ended.set(ends);
                Ok(head_bytes)
            }
            Err(error) => {
                // A connection that is ending, or has used up its streams: nothing has left.
                self.connection.end();
                Err(refuse(Fault {
                    unprocessed: true,
                    error: ProxyError::ConnectionTerminated,
                    detail: error.to_string(),
                }))
            }
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, rest: &mut Bytes, ends: bool) -> Poll<io::Result<()>> {
        let mut send = self.send.borrow_mut();
        let Some(send) = send.as_mut() else { return Poll::Ready(Err(io::ErrorKind::NotConnected.into())) };
        if self.ended.get() {
            return Poll::Ready(Ok(()));
        }
        if !rest.is_empty() || ends {
            // The response says why it takes no more, if there is one.
            ready!(poll_send(send, cx, rest, ends)).map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.ended.set(ends);
        }
        Poll::Ready(Ok(()))
    }

    /// Hands on what comes of the response. `None`: it has ended.
    pub fn poll_receive<E>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Poll<io::Result<Option<Result<(), E>>>> {
        if self.fault.borrow().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        // What was handed on before is with the client by now.
        let released = self.unreleased.take();
        let mut stage = self.stage.borrow_mut();
        match &mut *stage {
            Stage::Unsent => Poll::Pending,
            Stage::Done => Poll::Ready(Ok(None)),
            Stage::Head(response) => {
                let mut text = Vec::new();
                if let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
                    let interim = interim.map_err(|error| self.broke(&error))?;
                    head::push_response(&interim, false, self.to_head, &mut text);
                    return Poll::Ready(Ok(Some(take(&text))));
                }
                let received = ready!(std::pin::Pin::new(response).poll(cx));
                let (parts, body) = received.map_err(|error| self.broke(&error))?.into_parts();
                let ends = body.is_end_stream();
                let head = http::Response::from_parts(parts, ());
                let coding = head::push_response(&head, ends, self.to_head, &mut text);
                *stage = if ends { Stage::Done } else { Stage::Body(body, coding) };
                Poll::Ready(Ok(Some(take(&text))))
            }
            Stage::Body(body, coding) => {
                if released > 0 {
                    // Fails only on a stream that has ended, whose end comes next.
                    let _ = body.flow_control().release_capacity(released);
                }
                match ready!(body.poll_data(cx)) {
                    Some(Ok(data)) => {
                        self.unreleased.set(data.len());
                        Poll::Ready(Ok(Some(match coding {
                            Coding::Plain => take(&data),
                            // An empty chunk would be the last.
                            Coding::Chunked if data.is_empty() => take(&[]),
                            Coding::Chunked => {
                                let size = format!("{:x}\r\n", data.len());
                                take(size.as_bytes()).and_then(|()| take(&data)).and_then(|()| take(b"\r\n"))
                            }
                        })))
                    }
                    Some(Err(error)) => Poll::Ready(Err(self.broke(&error))),
                    None => {
                        let trailers = ready!(body.poll_trailers(cx)).map_err(|error| self.broke(&error))?;
                        let coding = *coding;
                        *stage = Stage::Done;
                        if coding == Coding::Plain {
                            // Where the length was told there is no place for trailers.
                            return Poll::Ready(Ok(None));
                        }
                        let mut text = Vec::new();
                        head::push_last_chunk(trailers.as_ref(), &mut text);
                        Poll::Ready(Ok(Some(take(&text))))
                    }
                }
            }
        }
    }

    /// Ends the stream without waiting for its end: the origin is to give up (RFC 9113 section 8.1: CANCEL).
    pub fn reset(&self) {
        if let Some(send) = self.send.borrow_mut().as_mut() {
            send.send_reset(Reason::CANCEL);
        }
    }

    /// What an error means.
    fn broke(&self, error: &h2::Error) -> io::Error {
        let refused = error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        // `h2` ends only those streams so that the origin says it has not looked at.
        let left = error.is_go_away() && error.is_remote();
        if left {
            self.connection.end();
        }
        let protocol = error.is_library() && !error.is_io();
        *self.fault.borrow_mut() = Some(Fault {
            unprocessed: refused || left,
            error: if protocol { ProxyError::HttpProtocolError } else { ProxyError::ConnectionTerminated },
            detail: error.to_string(),
        });
        io::ErrorKind::ConnectionReset.into()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.connection.stream_ended();
        let stage = std::mem::replace(&mut *self.stage.borrow_mut(), Stage::Done);
        // A response whose length is reached may end with a frame of its own. Dropped now, it would be a reset.
        if let (Stage::Body(mut body, _), true) = (stage, self.ended.get() && self.fault.borrow().is_none())
            && !body.is_end_stream()
        {
            let send = self.send.borrow_mut().take();
            ring::spawn(async move {
                let end = async {
                    while let Some(Ok(data)) = poll_fn(|cx| body.poll_data(cx)).await {
                        if !data.is_empty() {
                            return;
                        }
                    }
                };
                let _ = ring::timeout(END_WAIT, end).await;
                drop(send);
            });
        }
    }
}

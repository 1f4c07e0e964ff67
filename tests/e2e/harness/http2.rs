//! A well-behaved HTTP/2 client: the `h2` crate over tokio, on a runtime of this process; every wait has a bound.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::LazyLock;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::pki_types::ServerName;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::client::Client;
use super::payload::{Hash, Payload};

/// The bound on one wait.
const PATIENCE: Duration = Duration::from_secs(30);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("a runtime")
});

/// Runs to the end, for a bounded time.
#[track_caller]
pub fn block<T>(future: impl Future<Output = T>) -> T {
    RUNTIME
        .block_on(async { tokio::time::timeout(PATIENCE, future).await })
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}"))
}

/// One connection.
pub struct Http2 {
    send: SendRequest<Bytes>,
    connection: Option<JoinHandle<Result<(), h2::Error>>>,
}

/// A response, whole.
#[derive(Debug)]
pub struct Answer {
    /// Those before the final one.
    pub interim: Vec<Response<()>>,
    pub status: u16,
    pub headers: HeaderMap,
    /// The content's beginning, at most 64 KiB.
    pub start: Vec<u8>,
    /// Its length and SHA-256.
    pub digest: String,
    pub trailers: HeaderMap,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.start).into_owned()
    }

    /// A field's value, or nothing.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        assert!(self.headers.get_all(name).iter().count() <= 1, "{name} stands more than once: {self:?}");
        self.headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }
}

/// A request under way.
pub struct Stream {
    response: Option<ResponseFuture>,
    pub body: SendStream<Bytes>,
}

/// A GET of a path.
pub fn get(host: &str, path: &str) -> Request<()> {
    with_method("GET", host, path)
}

/// A request without fields.
pub fn with_method(method: &str, host: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://{host}{path}")).body(()).expect("a request")
}

/// Adds a field.
pub fn field(mut request: Request<()>, name: &str, value: &str) -> Request<()> {
    let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
    request.headers_mut().append(name, value.parse().expect("a value"));
    request
}

/// The request that opens a WebSocket (RFC 8441), or something else.
pub fn extended_connect(host: &str, path: &str, protocol: &str) -> Request<()> {
    let mut request = field(with_method("CONNECT", host, path), "sec-websocket-version", "13");
    request.extensions_mut().insert(Protocol::from(protocol));
    request
}

impl Http2 {
    /// Connects as h2's defaults have it, with windows that never are in the way.
    #[track_caller]
    pub fn connect(client: &Client, server: SocketAddr, name: &str) -> Self {
        let mut builder = Builder::new();
        builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
        Self::connect_with(client, server, name, &builder)
    }

    #[track_caller]
    pub fn connect_with(client: &Client, server: SocketAddr, name: &str, builder: &Builder) -> Self {
        Self::try_connect(client, server, name, builder).unwrap_or_else(|error| panic!("no connection: {error}"))
    }

    pub fn try_connect(client: &Client, server: SocketAddr, name: &str, builder: &Builder) -> Result<Self, String> {
        let connector = TlsConnector::from(std::sync::Arc::new(client.clone().alpn(&["h2"]).config()));
        let name = ServerName::try_from(name.to_owned()).expect("a server name");
        block(async {
            let socket = tokio::net::TcpStream::connect(server).await.map_err(|error| error.to_string())?;
            socket.set_nodelay(true).map_err(|error| error.to_string())?;
            let tls = connector.connect(name, socket).await.map_err(|error| error.to_string())?;
            assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            let (send, connection) = builder.handshake(tls).await.map_err(|error| error.to_string())?;
            Ok(Self { send, connection: Some(tokio::spawn(connection)) })
        })
    }

    /// Waits for the server's settings, which allow the extended CONNECT.
    #[track_caller]
    pub fn wait_for_extended_connect(&mut self) {
        super::wait::until("extended CONNECT is allowed", super::SOON, || {
            self.send.is_extended_connect_protocol_enabled()
        });
    }

    /// Sends a head; `ends`: there is no body. Waits for a place among the streams that may be open at once.
    pub fn try_start(&mut self, request: Request<()>, ends: bool) -> Result<Stream, h2::Error> {
        block(async {
            poll_fn(|cx| self.send.poll_ready(cx)).await?;
            let (response, body) = self.send.send_request(request, ends)?;
            Ok(Stream { response: Some(response), body })
        })
    }

    #[track_caller]
    pub fn start(&mut self, request: Request<()>, ends: bool) -> Stream {
        self.try_start(request, ends).unwrap_or_else(|error| panic!("not sent: {error}"))
    }

    /// A request without a body, and its response.
    pub fn try_ask(&mut self, request: Request<()>) -> Result<Answer, h2::Error> {
        self.try_start(request, true)?.try_answer()
    }

    #[track_caller]
    pub fn ask(&mut self, request: Request<()>) -> Answer {
        self.try_ask(request).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    #[track_caller]
    pub fn get(&mut self, host: &str, path: &str) -> Answer {
        self.ask(get(host, path))
    }

    /// A request with a body.
    #[track_caller]
    pub fn post(&mut self, request: Request<()>, payload: Payload) -> Answer {
        let mut stream = self.start(request, false);
        stream.send_payload(payload);
        stream.answer()
    }

    /// Whether the connection has ended.
    pub fn has_ended(&self) -> bool {
        self.connection.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abort();
        }
    }
}

impl Stream {
    /// Sends some of the body, as the server's windows open.
    pub fn try_send(&mut self, bytes: Bytes, ends: bool) -> Result<(), h2::Error> {
        block(send_all(&mut self.body, bytes, ends))
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8], ends: bool) {
        self.try_send(Bytes::copy_from_slice(bytes), ends).unwrap_or_else(|error| panic!("not sent: {error}"));
    }

    /// Sends a payload and the end; returns its digest.
    #[track_caller]
    pub fn send_payload(&mut self, mut payload: Payload) -> String {
        let sent: Result<(), h2::Error> = block(async {
            while let Some(piece) = payload.next_block() {
                send_all(&mut self.body, Bytes::copy_from_slice(piece), false).await?;
            }
            self.body.send_data(Bytes::new(), true)
        });
        sent.unwrap_or_else(|error| panic!("not sent: {error}"));
        payload.digest()
    }

    /// Whether so much of the body is taken within a time.
    pub fn sends_within(&mut self, bytes: Bytes, bound: Duration) -> bool {
        RUNTIME
            .block_on(async { tokio::time::timeout(bound, send_all(&mut self.body, bytes, false)).await })
            .is_ok_and(|sent| sent.is_ok())
    }

    #[track_caller]
    pub fn send_trailers(&mut self, fields: &[(&str, &str)]) {
        let mut trailers = HeaderMap::new();
        for (name, value) in fields {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            trailers.append(name, value.parse().expect("a value"));
        }
        self.body.send_trailers(trailers).expect("sent");
    }

    pub fn reset(&mut self, reason: Reason) {
        self.body.send_reset(reason);
    }

    /// The response's head, and its body to be read.
    pub fn try_head(&mut self) -> Result<(Vec<Response<()>>, Response<RecvStream>), h2::Error> {
        let mut future = self.response.take().expect("asked once");
        let mut interim = Vec::new();
        block(poll_fn(|cx| {
            while let Poll::Ready(Some(head)) = future.poll_informational(cx) {
                interim.push(head?);
            }
            pin!(&mut future).poll(cx)
        }))
        .map(|head| (interim, head))
    }

    #[track_caller]
    pub fn head(&mut self) -> Response<RecvStream> {
        self.try_head().unwrap_or_else(|error| panic!("no head: {error}")).1
    }

    /// The response, whole.
    pub fn try_answer(&mut self) -> Result<Answer, h2::Error> {
        let (interim, head) = self.try_head()?;
        let (parts, mut body) = head.into_parts();
        block(async move {
            let mut hash = Hash::new();
            let mut start = Vec::new();
            while let Some(piece) = body.data().await {
                let piece = piece?;
                hash.update(&piece);
                let room = (64 * 1024_usize).saturating_sub(start.len()).min(piece.len());
                start.extend_from_slice(&piece[..room]);
                body.flow_control().release_capacity(piece.len())?;
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            Ok(Answer { interim, status, headers, start, digest: hash.digest(), trailers })
        })
    }

    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        self.try_answer().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// Why there is no whole response.
    #[track_caller]
    pub fn reset_code(&mut self) -> Reason {
        let error = self.try_answer().expect_err("the stream is reset");
        error.reason().unwrap_or_else(|| panic!("no code: {error}"))
    }
}

/// Reads some of a body and gives its room back; `None` at its end.
#[track_caller]
pub fn read_some(body: &mut RecvStream) -> Option<Result<Bytes, h2::Error>> {
    block(async {
        loop {
            match body.data().await? {
                // END_STREAM may come in a frame of its own.
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => break Some(body.flow_control().release_capacity(piece.len()).map(|()| piece)),
                Err(error) => break Some(Err(error)),
            }
        }
    })
}

/// Reads until this text is there.
#[track_caller]
pub fn expect_text(body: &mut RecvStream, text: &str) {
    let mut read = Vec::new();
    while read.len() < text.len() {
        let piece = read_some(body).unwrap_or_else(|| panic!("the end after {:?}", String::from_utf8_lossy(&read)));
        read.extend_from_slice(&piece.unwrap_or_else(|error| panic!("{error}")));
    }
    assert_eq!(String::from_utf8_lossy(&read), text);
}

async fn send_all(stream: &mut SendStream<Bytes>, mut bytes: Bytes, ends: bool) -> Result<(), h2::Error> {
    if bytes.is_empty() {
        return stream.send_data(bytes, ends);
    }
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Err(Reason::CANCEL.into()),
        };
        let piece = bytes.split_to(room.min(bytes.len()));
        let last = ends && bytes.is_empty();
        stream.send_data(piece, last)?;
    }
    Ok(())
}

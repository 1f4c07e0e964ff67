//! The admin socket from the other side: what `hostward status`, `reload` and `drain` say to a running process.

use std::io;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// How long an answer may take. A reload of many hostnames reads as many files, and it is over when every worker has it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// The largest answer taken.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Sends one request and returns status and body. Blocks.
///
/// # Errors
/// What connecting, sending or reading said; `TimedOut` after two minutes.
pub fn request(socket: &Path, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::timeout(ANSWER_TIMEOUT, exchange(socket, method, path))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    })
}

async fn exchange(socket: &Path, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header(HOST, "hostward");
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    connection.abort();
    Ok((status, body.to_bytes()))
}

//! HTTP/1.1 for people, probes and scrapers: bounded in connections, header time and body size.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Ask, ReloadResult};
use crate::telemetry::exposition;

/// Connections served at once on each listener: a scraper, a few probes and a few people. Whoever comes beyond is
/// closed at once, so that a leak on the other side cannot take descriptors from clients.
const CONNECTIONS_MAX: usize = 64;

/// How long a request's head may take, and how long a connection may stay silent between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// No request here has a body; one up to this size is ignored, above it the answer is 413.
const BODY_BYTES_MAX: u64 = 64 * 1024;

/// How much of a request's head is held.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Pause after a failed accept (out of descriptors, most likely), so that the loop does not spin on it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a listener's clients may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read: the TCP address has no notion of who asks.
    Read,
    /// Command too: the socket's mode says who asks.
    Command,
}

/// Where the server listens.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    fn access(&self) -> Access {
        match self {
            Self::Tcp(_) => Access::Read,
            Self::Unix(_) => Access::Command,
        }
    }
}

/// Serves one listener, for ever.
pub async fn serve(listener: Listener, asks: mpsc::Sender<Ask>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let access = listener.access();
    loop {
        let accepted: io::Result<()> = async {
            // Without a permit the accepted stream is dropped, which closes it.
            match &listener {
                Listener::Tcp(listener) => {
                    let (stream, _) = listener.accept().await?;
                    spawn(stream, access, &permits, &asks);
                }
                Listener::Unix(listener) => {
                    let (stream, _) = listener.accept().await?;
                    spawn(stream, access, &permits, &asks);
                }
            }
            Ok(())
        }
        .await;
        if accepted.is_err() {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn spawn<S>(stream: S, access: Access, permits: &Arc<Semaphore>, asks: &mpsc::Sender<Ask>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Ok(permit) = Arc::clone(permits).try_acquire_owned() else { return };
    let asks = asks.clone();
    tokio::spawn(async move {
        let service = service_fn(move |request| {
            let asks = asks.clone();
            async move { Ok::<_, Infallible>(answer(&request, access, &asks).await) }
        });
        // What goes wrong with one connection concerns only its client.
        let _ = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        drop(permit);
    });
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: &Request<Incoming>, access: Access, asks: &mpsc::Sender<Ask>) -> Answer {
    if request.body().size_hint().lower() > BODY_BYTES_MAX {
        return text(StatusCode::PAYLOAD_TOO_LARGE, "no request here has a body\n");
    }
    let read = matches!(*request.method(), Method::GET | Method::HEAD);
    match (request.uri().path(), read, request.method() == Method::POST, access) {
        ("/healthz", true, ..) => text(StatusCode::OK, "ok\n"),
        ("/readyz", true, ..) => match ask(asks, Ask::Ready).await {
            Some(Ok(())) => text(StatusCode::OK, "ready\n"),
            Some(Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            None => gone(),
        },
        ("/metrics", true, ..) => match ask(asks, Ask::Metrics).await {
            Some(metrics) => {
                let mut answer = text(StatusCode::OK, metrics);
                answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(exposition::CONTENT_TYPE));
                answer
            }
            None => gone(),
        },
        ("/status", true, ..) => match ask(asks, Ask::Status).await {
            Some(status) => json(StatusCode::OK, &status),
            None => gone(),
        },
        ("/reload", _, true, Access::Command) => reloaded(ask(asks, Ask::Reload).await),
        ("/drain", _, true, Access::Command) => match ask(asks, Ask::Drain).await {
            Some(()) => json(StatusCode::ACCEPTED, &json!({ "draining": true })),
            None => gone(),
        },
        ("/reload" | "/drain", _, true, Access::Read) => {
            text(StatusCode::FORBIDDEN, "commands are taken on admin.socket only\n")
        }
        ("/reload" | "/drain", ..) => not_allowed("POST"),
        ("/healthz" | "/readyz" | "/metrics" | "/status", ..) => not_allowed("GET, HEAD"),
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz, /readyz and /status\n"),
    }
}

/// Asks the control loop; `None` when it is gone, which is the end of the process.
async fn ask<T>(asks: &mpsc::Sender<Ask>, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (sender, receiver) = oneshot::channel();
    asks.send(question(sender)).await.ok()?;
    receiver.await.ok()
}

fn reloaded(result: Option<ReloadResult>) -> Answer {
    match result {
        Some(Ok(reloaded)) => {
            json(StatusCode::OK, &json!({ "generation": reloaded.generation, "warnings": reloaded.warnings }))
        }
        Some(Err(problems)) => json(StatusCode::UNPROCESSABLE_ENTITY, &json!({ "problems": problems })),
        None => gone(),
    }
}

fn gone() -> Answer {
    text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
}

fn not_allowed(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("allowed: {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn json(status: StatusCode, value: &serde_json::Value) -> Answer {
    let mut answer = text(status, format!("{value}\n"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;

//! One check of one address.

use std::io;
use std::pin::pin;

use http_body_util::Empty;
use hyper::Request;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::registry::balancing::{Check, CheckKind};
use crate::registry::origins::ResolvedAddress;

/// Checks an address, within the check's time limit.
///
/// # Errors
/// Why it did not pass, for the log.
pub async fn probe(address: &ResolvedAddress, check: &Check) -> Result<(), String> {
    let asking = async {
        match address {
            ResolvedAddress::Tcp(tcp) | ResolvedAddress::Tls(tcp, _) => {
                ask(TcpStream::connect(tcp).await, address, &check.kind).await
            }
            ResolvedAddress::Unix(path) => ask(UnixStream::connect(path).await, address, &check.kind).await,
        }
    };
    match tokio::time::timeout(check.timeout, asking).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {:?}", check.timeout)),
    }
}

async fn ask<S>(connected: io::Result<S>, address: &ResolvedAddress, kind: &CheckKind) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = connected.map_err(|error| format!("cannot connect: {error}"))?;
    let CheckKind::Http { path, host, expect } = kind else { return Ok(()) };
    let host = match (host, address) {
        (Some(host), _) => host.clone(),
        (None, ResolvedAddress::Tcp(address) | ResolvedAddress::Tls(address, _)) => address.to_string(),
        (None, ResolvedAddress::Unix(_)) => "localhost".to_owned(),
    };
    let status = status(stream, path, &host).await.map_err(|error| format!("no answer: {error}"))?;
    let passes = if expect.is_empty() { (200..400).contains(&status) } else { expect.contains(&status) };
    if passes { Ok(()) } else { Err(format!("answered {status}")) }
}

/// The status of the response to a GET. Its body is nobody's business: the connection is closed.
async fn status<S>(stream: S, path: &str, host: &str) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
    let request =
        Request::get(path).header(HOST, host).header(USER_AGENT, "hostward-check").header(CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let mut asking = pin!(sender.send_request(request));
    // Polled here and nowhere else, so that it ends with this check.
    let response = tokio::select! {
        response = &mut asking => response,
        ended = connection => {
            ended.map_err(text)?;
            // The answer may have come with the end of the connection.
            asking.await
        }
    };
    let response = response.map_err(text)?;
    Ok(response.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn check(kind: CheckKind) -> Check {
        Check { kind, interval: Duration::ZERO, timeout: Duration::from_secs(5), healthy_after: 1, unhealthy_after: 1 }
    }

    fn http(expect: &[u16]) -> Check {
        check(CheckKind::Http { path: "/up?x".into(), host: Some("app.test".into()), expect: expect.to_vec() })
    }

    /// Answers one connection with these bytes, and returns what it was sent.
    async fn against(check: &Check, answer: &'static str) -> (Result<(), String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ResolvedAddress::Tcp(listener.local_addr().unwrap());
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let count = socket.read(&mut asked).await.unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..count]).into_owned()
        };
        tokio::join!(probe(&address, check), serve)
    }

    #[tokio::test]
    async fn the_status_decides() {
        let ok = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
        let (result, asked) = against(&http(&[]), ok).await;
        assert_eq!(result, Ok(()));
        assert!(asked.starts_with("GET /up?x HTTP/1.1\r\nhost: app.test\r\n"), "{asked}");
        let refused = |status: &str| Err(format!("answered {status}"));
        assert_eq!(against(&http(&[200]), ok).await.0, refused("204"));
        assert_eq!(against(&http(&[200, 204]), ok).await.0, Ok(()));
        let busy = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100000\r\n\r\n";
        assert_eq!(against(&http(&[]), busy).await.0, refused("503"));
        assert_eq!(against(&http(&[503]), busy).await.0, Ok(()));
        for nonsense in ["", "220 mail.test ESMTP\r\n"] {
            let error = against(&http(&[]), nonsense).await.0.unwrap_err();
            assert!(error.starts_with("no answer: "), "{error}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_enough_for_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = ResolvedAddress::Tcp(listener.local_addr().unwrap());
        assert_eq!(probe(&address, &check(CheckKind::Tcp)).await, Ok(()));
        let silent = Check { timeout: Duration::from_millis(50), ..http(&[]) };
        assert_eq!(probe(&address, &silent).await, Err("no answer within 50ms".into()));
        drop(listener);
        assert!(probe(&address, &check(CheckKind::Tcp)).await.unwrap_err().contains("refused"));
        let nowhere = ResolvedAddress::Unix("/nonexistent/app.sock".into());
        assert!(probe(&nowhere, &check(CheckKind::Tcp)).await.unwrap_err().starts_with("cannot connect"));
    }
}

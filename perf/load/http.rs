//! As much HTTP/1.1 as the load needs: a request, and a response framed by Content-Length.

use std::io;

use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The end of a head (RFC 9112 section 2.1).
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A GET that leaves the connection open.
pub fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// The head of a POST with `body_bytes` to follow.
pub fn post(host: &str, path: &str, body_bytes: u64) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {body_bytes}\r\n\r\n").into_bytes()
}

/// Writes a whole request and pushes it out; the TLS stream may hold bytes back until told.
///
/// # Errors
/// Those of the stream.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), request: &[u8]) -> io::Result<()> {
    stream.write_all(request).await?;
    stream.flush().await
}

/// Reads one response to the last byte of its body and returns the body's length in bytes.
///
/// # Errors
/// Anything but status 200, a response without Content-Length, bytes beyond the response, and those of the stream.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> io::Result<u64> {
    let mut filled = 0;
    let head_bytes = loop {
        let free = buffer.get_mut(filled..).filter(|free| !free.is_empty());
        let free = free.ok_or_else(|| io::Error::other("a response head larger than the buffer"))?;
        match stream.read(free).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => filled += n,
        }
        if let Some(at) = memmem::find(&buffer[..filled], HEAD_END) {
            break at + HEAD_END.len();
        }
    };
    let body_bytes = body_bytes(&buffer[..head_bytes])?;
    let mut received = (filled - head_bytes) as u64;
    while received < body_bytes {
        match stream.read(buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => received += n as u64,
        }
    }
    if received > body_bytes {
        return Err(io::Error::other("bytes after the end of the response"));
    }
    Ok(body_bytes)
}

/// Checks the status line and finds the length of the body.
fn body_bytes(head: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(head).map_err(io::Error::other)?;
    let mut lines = text.lines();
    let status = lines.next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(io::Error::other(format!("the server answered {status:?}")));
    }
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .ok_or_else(|| io::Error::other("a response without a usable Content-Length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `receive` makes of `response`, delivered in pieces of `piece` bytes.
    fn received(response: &[u8], piece: usize) -> io::Result<u64> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(piece);
            let (body, sent) = tokio::join!(
                async {
                    let body = receive(&mut near, &mut [0; 64]).await;
                    // A far end still writing learns that nobody reads any more.
                    drop(near);
                    body
                },
                async {
                    let sent = far.write_all(response).await;
                    drop(far);
                    sent
                }
            );
            if body.is_ok() {
                sent?;
            }
            body
        })
    }

    #[test]
    fn a_response_ends_with_its_body_however_it_arrives() {
        let response = [b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n".as_slice(), &[7; 100]].concat();
        for piece in [1, 2, 39, 40, 1000] {
            assert_eq!(received(&response, piece).unwrap(), 100, "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_not_a_whole_good_response_is_an_error() {
        for response in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n1234",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n123456",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            assert!(received(response.as_bytes(), 1000).is_err(), "{response}");
        }
        let endless = "a".repeat(1000);
        assert!(received(endless.as_bytes(), 1000).is_err(), "a head without an end");
    }
}

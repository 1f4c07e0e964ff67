//! `perf-sink`: the origin of the upload workload; it reads each request's body to its last byte and only then answers.
//!
//! A static nginx answers an upload at once and discards the body behind the answer, so the client could not tell when
//! its bytes have arrived. HTTP/1.1 with Content-Length only, as the load generator speaks it.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io;
use std::net::SocketAddr;

use clap::Parser;
use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Large reads keep the sink's share of its core small next to the load generator's.
const BUFFER_BYTES: usize = 256 * 1024;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An origin that swallows uploads.
#[derive(Parser)]
struct Options {
    #[arg(long)]
    listen: SocketAddr,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(Options::parse().listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            if let Err(e) = swallow(stream).await {
                eprintln!("perf-sink: {e}");
            }
        });
    }
}

/// Serves one connection until the peer ends it.
async fn swallow(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut filled = 0;
    loop {
        let Some(head_bytes) = memmem::find(&buffer[..filled], b"\r\n\r\n").map(|at| at + 4) else {
            if filled == buffer.len() {
                return Err(io::Error::other("a request head larger than the buffer"));
            }
            match stream.read(&mut buffer[filled..]).await? {
                0 if filled == 0 => return Ok(()),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
            continue;
        };
        let body_bytes = content_length(&buffer[..head_bytes])?;
        let mut left = body_bytes.saturating_sub(filled - head_bytes);
        // What follows a body that is already here whole is the next request's head.
        let used = (head_bytes + body_bytes).min(filled);
        buffer.copy_within(used..filled, 0);
        filled -= used;
        while left > 0 {
            let window = left.min(BUFFER_BYTES);
            match stream.read(&mut buffer[..window]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => left -= n,
            }
        }
        stream.write_all(ANSWER).await?;
    }
}

/// The declared length of the body; 0 when the head has none.
fn content_length(head: &[u8]) -> io::Result<usize> {
    let text = std::str::from_utf8(head).map_err(io::Error::other)?;
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return value.trim().parse().map_err(io::Error::other);
        }
    }
    Ok(0)
}

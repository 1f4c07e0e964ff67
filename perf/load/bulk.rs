//! The bulk workloads: downloads and uploads one after another on connections that stay open.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use crate::client::Dialer;
use crate::common::Failure;
use crate::options::{Options, Work};
use crate::report::{Summary, Tally};
use crate::{http, pass_gate};

/// Bytes read or written at once: four TLS records of 16 KiB, what rustls holds back for a slow socket at most.
const CHUNK_BYTES: usize = 64 * 1024;

/// A transfer that takes longer than this has failed.
const TRANSFER_MAX: Duration = Duration::from_secs(60);

/// One connection with its next request.
struct Lane {
    stream: TlsStream<TcpStream>,
    head: Vec<u8>,
    body_bytes: u64,
    buffer: Vec<u8>,
    payload: Rc<[u8]>,
}

/// Runs `download` or `upload`.
///
/// # Errors
/// A connection that cannot be opened, or a first transfer that fails.
pub async fn run(options: &Options) -> Result<Summary, Failure> {
    let dialer = Dialer::new(options, false)?;
    // Not all zeroes, so that nothing on the way could make bulk look cheaper than it is.
    let payload: Rc<[u8]> = (0..CHUNK_BYTES).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect();
    let mut lanes = Vec::with_capacity(options.concurrency);
    for number in 0..options.concurrency {
        let targets = dialer.targets(number)?;
        let target = targets.first().ok_or("no hostnames")?;
        let (head, body_bytes) = match options.work {
            Work::Upload => (http::post(&target.host, &options.path, options.bytes), options.bytes),
            _ => (http::get(&target.host, &options.path), 0),
        };
        let stream = dialer.dial(target).await?;
        let mut lane = Lane { stream, head, body_bytes, buffer: vec![0; CHUNK_BYTES], payload: payload.clone() };
        // One transfer before the clock starts: congestion windows and adaptive buffers have grown.
        lane.transfer().await.map_err(|e| format!("warm-up: {e}"))?;
        lanes.push(lane);
    }
    pass_gate(options)?;

    let tally = Tally::start()?;
    let deadline = Instant::now() + options.duration();
    let left = Rc::new(Cell::new(options.count.unwrap_or(u64::MAX)));
    let mut tasks = JoinSet::new();
    for mut lane in lanes {
        let (tally, left) = (tally.clone(), left.clone());
        tasks.spawn_local(async move {
            while Instant::now() < deadline && left.get() > 0 {
                left.set(left.get() - 1);
                let since = Instant::now();
                match tokio::time::timeout(TRANSFER_MAX, lane.transfer()).await {
                    Ok(Ok(bytes)) => tally.success(since, bytes),
                    // The connection is in an unknown state now: this lane ends.
                    Ok(Err(e)) => return tally.failure(e),
                    Err(_) => return tally.failure("a transfer took longer than 60 s"),
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(tally.summary())
}

impl Lane {
    /// One request with its body and one response with its body; returns the bytes of both bodies.
    async fn transfer(&mut self) -> io::Result<u64> {
        self.stream.write_all(&self.head).await?;
        let mut left = self.body_bytes;
        while left > 0 {
            let chunk = usize::try_from(left).unwrap_or(usize::MAX).min(self.payload.len());
            self.stream.write_all(&self.payload[..chunk]).await?;
            left -= chunk as u64;
        }
        self.stream.flush().await?;
        Ok(self.body_bytes + http::receive(&mut self.stream, &mut self.buffer).await?)
    }
}

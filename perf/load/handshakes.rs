//! The handshake workloads: connect, handshake (full or resumed), one GET, close.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use crate::client::{Dialer, Target};
use crate::common::Failure;
use crate::options::{Options, Work};
use crate::report::{Summary, Tally};
use crate::{http, pass_gate};

/// Room for a head and the 1 KiB body in one read.
const BUFFER_BYTES: usize = 16 * 1024;

/// An operation that takes longer than this has failed; no server under test takes a hundredth of it.
const OPERATION_MAX: Duration = Duration::from_secs(10);

/// Pause of a task after a failure, so that a dead server does not become a busy loop.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);

/// One of the concurrent clients: its hostnames with their own tickets, and its buffer.
struct Worker {
    dialer: Rc<Dialer>,
    targets: Vec<(Target, Vec<u8>)>,
    next: usize,
    buffer: Vec<u8>,
}

/// Runs `full` or `resumed`.
///
/// # Errors
/// A warm-up that fails: then there is nothing to measure.
pub async fn run(options: &Options) -> Result<Summary, Failure> {
    let resume = options.work == Work::Resumed;
    let dialer = Dialer::new(options, resume)?;
    let mut workers = Vec::with_capacity(options.concurrency);
    for number in 0..options.concurrency {
        let mut worker = Worker::new(&dialer, number, &options.path)?;
        // The warm-up: every hostname once, which leaves one ticket each and a warm server.
        for _ in 0..options.hosts {
            worker.once().await.map_err(|e| format!("warm-up: {e}"))?;
        }
        workers.push(worker);
    }
    pass_gate(options)?;

    let tally = Tally::start()?;
    let deadline = Instant::now() + options.duration();
    let left = Rc::new(Cell::new(options.count.unwrap_or(u64::MAX)));
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (tally, left) = (tally.clone(), left.clone());
        tasks.spawn_local(async move {
            while Instant::now() < deadline && left.get() > 0 && !tally.hopeless() {
                left.set(left.get() - 1);
                worker.measured(&tally, resume).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(tally.summary())
}

impl Worker {
    fn new(dialer: &Rc<Dialer>, number: usize, path: &str) -> Result<Self, Failure> {
        let targets = dialer.targets(number)?;
        let targets = targets.into_iter().map(|t| (http::get(&t.host, path), t)).map(|(get, t)| (t, get)).collect();
        Ok(Self { dialer: dialer.clone(), targets, next: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// One operation, counted.
    async fn measured(&mut self, tally: &Tally, resume: bool) {
        let since = Instant::now();
        match tokio::time::timeout(OPERATION_MAX, self.once()).await {
            Ok(Ok((kind, bytes))) => {
                tally.success(since, bytes);
                if resume && kind != Some(HandshakeKind::Resumed) {
                    tally.not_resumed();
                }
            }
            Ok(Err(e)) => {
                tally.failure(e);
                tokio::time::sleep(FAILURE_PAUSE).await;
            }
            Err(_) => tally.failure("an operation took longer than 10 s"),
        }
    }

    /// Connect, handshake, GET, close. The close is ours: `close_notify` and FIN, without waiting for the server's.
    async fn once(&mut self) -> io::Result<(Option<HandshakeKind>, u64)> {
        let (target, get) = &self.targets[self.next];
        self.next = (self.next + 1) % self.targets.len();
        let mut stream = self.dialer.dial(target).await?;
        http::send(&mut stream, get).await?;
        let bytes = http::receive(&mut stream, &mut self.buffer).await?;
        let kind = stream.get_ref().1.handshake_kind();
        stream.shutdown().await?;
        Ok((kind, bytes))
    }
}

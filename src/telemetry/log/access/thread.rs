//! The thread that formats and writes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crossbeam::channel::Receiver;

use super::super::{Handle, Level};
use super::{Command, NAP, Queue, Shared, Sink, format};
use crate::policy::Identity;
use crate::telemetry::rate::TokenBucket;

/// One write holds at most about this much, so that a reader that follows along sees lines early and a failed write loses
/// few.
const BATCH_BYTES: usize = 64 * 1024;

/// Complaints about failing writes that may come at once; after that one every ten seconds says that it still fails.
const COMPLAINTS: u32 = 2;

/// The bucket earns a token a second; its clock goes this much slower.
const COMPLAINT_SLOWDOWN: u64 = 10;

/// The thread's state.
pub struct Writing {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    sink: Sink,
    events: Handle,
    identify: fn(&[u8]) -> Option<Identity>,
    batch: Vec<u8>,
    /// Of each queue: how many of its dropped lines have been told.
    told: Vec<u64>,
    /// Lines a failed write lost that no line has told of yet.
    lost: u64,
    /// Of how many missing lines the batch tells.
    telling: u64,
    complaints: TokenBucket,
    started: Instant,
}

impl Writing {
    pub fn new(
        shared: Arc<Shared>,
        commands: Receiver<Command>,
        sink: Sink,
        events: Handle,
        identify: fn(&[u8]) -> Option<Identity>,
    ) -> Self {
        Self {
            shared,
            commands,
            sink,
            events,
            identify,
            batch: Vec::with_capacity(BATCH_BYTES + 4096),
            told: Vec::new(),
            lost: 0,
            telling: 0,
            complaints: TokenBucket::new(COMPLAINTS, 1, 0),
            started: Instant::now(),
        }
    }

    /// Runs until the log is closed and everything queued is written.
    pub fn run(mut self) {
        loop {
            let closed = self.shared.closed.load(Ordering::Acquire);
            while let Ok(command) = self.commands.try_recv() {
                match command {
                    Command::Set(sink) => {
                        while self.round() {}
                        self.sink = sink;
                    }
                    Command::Reopen => self.reopen(),
                }
            }
            if !self.round() {
                if closed {
                    return;
                }
                std::thread::park_timeout(NAP);
            }
        }
    }

    /// Writes about a batch from every queue; `false`: nothing was there.
    fn round(&mut self) -> bool {
        let queues: Vec<Arc<Queue>> = self.shared.queues().clone();
        self.told.resize(queues.len(), 0);
        let mut any = false;
        for (index, queue) in queues.iter().enumerate() {
            while self.batch.len() < BATCH_BYTES
                && let Some(stamped) = queue.lines.pop()
            {
                let dropped = queue.dropped.load(Ordering::Relaxed);
                let untold = dropped - std::mem::replace(&mut self.told[index], dropped);
                let untold = untold + std::mem::take(&mut self.lost);
                self.telling += untold;
                format::line(&stamped, self.identify, untold, &mut self.batch);
                any = true;
            }
            self.flush();
        }
        any
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let result = self.sink.write(&self.batch);
        self.batch.clear();
        let telling = std::mem::take(&mut self.telling);
        let Err(failed) = result else { return };
        // The first line of a batch is the one that tells.
        self.lost += failed.lines + if failed.nothing_written { telling } else { 0 };
        self.shared.unwritten.fetch_add(failed.lines, Ordering::Relaxed);
        self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
        let now_us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX) / COMPLAINT_SLOWDOWN;
        if self.complaints.take(now_us) {
            let fields = vec![
                ("path", self.sink.path().map(|path| path.display().to_string()).into()),
                ("why", failed.error.to_string().into()),
                ("lines_lost", self.lost.into()),
            ];
            self.events.event(Level::Error, "access_log_not_written", fields);
        }
    }

    fn reopen(&mut self) {
        let path = self.sink.path().map(|path| path.display().to_string());
        match self.sink.reopen() {
            Ok(()) => {
                self.shared.reopened.fetch_add(u64::from(path.is_some()), Ordering::Relaxed);
                self.events.event(Level::Info, "logs_reopened", vec![("files", u64::from(path.is_some()).into())]);
            }
            Err(error) => {
                self.shared.reopen_failed.fetch_add(1, Ordering::Relaxed);
                let fields = vec![("path", path.into()), ("why", error.to_string().into())];
                self.events.event(Level::Error, "log_not_reopened", fields);
            }
        }
    }
}

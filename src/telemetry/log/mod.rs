//! The log: JSON lines on standard error, written by a thread of their own.
//!
//! Nobody who logs ever waits: a line is pushed as plain data into a bounded queue and formatted by the writing thread.
//! A full queue drops the line and counts it; the next line that is written says how many went missing.

pub mod access;
mod line;
mod refused;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, SystemTime};

use crossbeam::queue::ArrayQueue;

pub use self::refused::{OriginFault, Refusals, Refused};
use line::Line;

/// A field's value. Control plane code makes them with `serde_json::json!` or `.into()`.
pub type Value = serde_json::Value;

/// Lines that may wait for the writing thread.
///
/// The rate limits of sixteen workers let at most 800 refusal lines through at once, so that a burst of refusals with
/// room for the control plane's own lines fits; at about 200 bytes an entry that is well below a megabyte.
const QUEUE_LINES: usize = 4096;

/// How long the writing thread sleeps when nothing wakes it. Every push wakes it, so that this only bounds the harm of
/// a wake-up that comes between its last look and its sleep.
const IDLE: Duration = Duration::from_millis(200);

/// How serious a line is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    const ALL: [Self; 4] = [Self::Error, Self::Warn, Self::Info, Self::Debug];

    /// The word in the log and in `log.level`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    /// The level `log.level` names.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.label() == text)
    }
}

/// What loggers and the writing thread share.
#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Line>,
    level: AtomicU8,
    /// Lines dropped since the last line that told of them.
    untold: AtomicU64,
    /// Lines dropped through [`Handle::event`] since the start.
    dropped: AtomicU64,
    closed: AtomicBool,
}

/// What one logs with. Cheap to clone, never blocks.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    writer: Thread,
}

impl Handle {
    /// Whether lines of this level are written at all.
    pub fn enabled(&self, level: Level) -> bool {
        level as u8 <= self.shared.level.load(Ordering::Relaxed)
    }

    /// Changes what is written, for everyone.
    pub fn set_level(&self, level: Level) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
    }

    /// Logs an event with its fields, in their order.
    pub fn event(&self, level: Level, event: &'static str, fields: Vec<(&'static str, Value)>) {
        let line = Line::event(SystemTime::now(), level, event, fields);
        if self.enabled(level) && !self.push(line) {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines [`Handle::event`] dropped because the queue was full, all handles together.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Queues a line and wakes the writer; `false`: the queue is full and the line is gone.
    fn push(&self, line: Line) -> bool {
        let queued = self.shared.queue.push(line).is_ok();
        if !queued {
            self.shared.untold.fetch_add(1, Ordering::Relaxed);
        }
        // A system call only when the writer sleeps.
        self.writer.unpark();
        queued
    }
}

/// The running log. Dropping it leaves the thread running; [`Log::finish`] writes what is queued and ends it.
#[derive(Debug)]
pub struct Log {
    handle: Handle,
    thread: JoinHandle<()>,
}

impl Log {
    /// Starts the writing thread on standard error.
    pub fn start(level: Level) -> std::io::Result<Self> {
        Self::start_with(level, QUEUE_LINES, Box::new(std::io::stderr()))
    }

    fn start_with(level: Level, queue_lines: usize, sink: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: ArrayQueue::new(queue_lines),
            level: AtomicU8::new(level as u8),
            untold: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let writer = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("hostward-log".into()).spawn(move || write(&writer, sink))?;
        let handle = Handle { shared, writer: thread.thread().clone() };
        Ok(Self { handle, thread })
    }

    /// A handle to log with.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Writes what is queued and ends the thread. Waits at most `limit`: whoever reads our standard error may have
    /// stopped reading, and an exit must not hang on that.
    pub fn finish(self, limit: Duration) {
        self.handle.shared.closed.store(true, Ordering::Release);
        self.handle.writer.unpark();
        let deadline = std::time::Instant::now() + limit;
        while !self.thread.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The writing thread: formats whatever is queued, writes it in one go, sleeps.
fn write(shared: &Shared, mut sink: Box<dyn Write + Send>) {
    /// One write holds at most about this much, so that a reader that follows along sees lines early.
    const BATCH_BYTES: usize = 64 * 1024;
    let mut batch = Vec::new();
    loop {
        let closed = shared.closed.load(Ordering::Acquire);
        while batch.len() < BATCH_BYTES
            && let Some(line) = shared.queue.pop()
        {
            line.format(shared.untold.swap(0, Ordering::Relaxed), &mut batch);
        }
        if !batch.is_empty() {
            // Nobody is left to tell when standard error is gone.
            let _ = sink.write_all(&batch).and_then(|()| sink.flush());
            batch.clear();
        } else if closed {
            return;
        } else {
            std::thread::park_timeout(IDLE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Handle, Level, Log};
    use serde_json::{Value, json};
    use std::io::Write;
    use std::sync::{Arc, Condvar, Mutex};
    use std::time::Duration;

    const BOUND: Duration = Duration::from_secs(10);

    /// A sink that can be held shut, as a pipe nobody reads is.
    #[derive(Clone, Default)]
    struct Sink(Arc<(Mutex<Written>, Condvar)>);

    #[derive(Default)]
    struct Written {
        bytes: Vec<u8>,
        held: bool,
        waiting: bool,
    }

    impl Sink {
        fn hold(&self, held: bool) {
            self.0.0.lock().unwrap().held = held;
            self.0.1.notify_all();
        }

        fn wait_for_writer(&self) {
            let guard = self.0.0.lock().unwrap();
            let (guard, _) = self.0.1.wait_timeout_while(guard, BOUND, |written| !written.waiting).unwrap();
            assert!(guard.waiting);
        }

        fn lines(&self) -> Vec<Value> {
            let guard = self.0.0.lock().unwrap();
            let text = std::str::from_utf8(&guard.bytes).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
    }

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let mut guard = self.0.0.lock().unwrap();
            guard.waiting = guard.held;
            self.0.1.notify_all();
            let (mut guard, _) = self.0.1.wait_timeout_while(guard, BOUND, |written| written.held).unwrap();
            guard.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn number(handle: &Handle, n: usize) {
        handle.event(Level::Info, "counted", vec![("n", n.into())]);
    }

    #[test]
    fn lines_are_json_in_order_and_levels_are_kept() {
        let sink = Sink::default();
        let log = Log::start_with(Level::Info, 16, Box::new(sink.clone())).unwrap();
        let handle = log.handle();
        handle.event(Level::Debug, "unseen", vec![]);
        handle.event(Level::Warn, "odd", vec![("text", "a\"b\n\u{1}".into()), ("list", json!(["x"]))]);
        handle.set_level(Level::Debug);
        handle.event(Level::Debug, "seen", vec![]);
        log.finish(BOUND);
        let lines = sink.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0]["level"], "warn");
        assert_eq!(lines[0]["event"], "odd");
        assert_eq!(lines[0]["text"], "a\"b\n\u{1}");
        assert_eq!(lines[0]["list"], json!(["x"]));
        assert_eq!(lines[1]["event"], "seen");
        let ts = lines[0]["ts"].as_str().unwrap();
        let parsed = time::OffsetDateTime::parse(ts, &time::format_description::well_known::Rfc3339).unwrap();
        assert!(ts.ends_with('Z') && (time::OffsetDateTime::now_utc() - parsed).whole_minutes() == 0, "{ts}");
    }

    #[test]
    fn a_full_queue_drops_without_waiting_and_tells_how_many() {
        let sink = Sink::default();
        sink.hold(true);
        let log = Log::start_with(Level::Info, 8, Box::new(sink.clone())).unwrap();
        let handle = log.handle();
        number(&handle, 0);
        sink.wait_for_writer();
        (1..=1_000).for_each(|n| number(&handle, n));
        let dropped = handle.dropped();
        assert_eq!(dropped, 1_000 - 8);
        sink.hold(false);
        log.finish(BOUND);
        let lines = sink.lines();
        assert_eq!(lines.len() as u64 + dropped, 1_001);
        let told: u64 = lines.iter().filter_map(|line| line.get("dropped")).map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(told, dropped, "{lines:?}");
        let numbers: Vec<_> = lines.iter().map(|line| line["n"].as_u64().unwrap()).collect();
        assert!(numbers.is_sorted());
    }

    #[test]
    fn finishing_is_bounded_even_if_nobody_reads() {
        let sink = Sink::default();
        sink.hold(true);
        let log = Log::start_with(Level::Info, 8, Box::new(sink.clone())).unwrap();
        number(&log.handle(), 1);
        let start = std::time::Instant::now();
        log.finish(Duration::from_millis(50));
        assert!(start.elapsed() < BOUND / 2);
        sink.hold(false);
    }
}

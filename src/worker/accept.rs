//! Accepting: one task for each listener, which stops asking the kernel when the worker is full.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::ring::{self, Listener};
use crate::telemetry::counters::{Counter, Limit};

use super::core::{Core, Counted};

/// How long accepting pauses when the process or the system is out of descriptors or memory. Connections that end make
/// room; the backlog holds those who come.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What a multishot accept may take at once: the listener's whole backlog. With less room than that, connections are
/// accepted one by one, so that the limit holds exactly.
const BACKLOG: usize = super::BACKLOG as usize;

/// Accepts until the worker drains; `serve` has each connection to its end.
pub async fn run<F>(core: Rc<Core>, listener: Listener, serve: fn(Rc<Core>, Counted, OwnedFd) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let max = core.config.connections_max;
    loop {
        if core.connections.open() >= max {
            core.shard.count(Counter::Limit(Limit::Connections));
            listener.pause();
            if until_draining(&core, core.connections.below(max)).await.is_none() {
                return;
            }
        }
        listener.set_one_by_one(core.connections.open() + BACKLOG >= max);
        match until_draining(&core, listener.accept()).await {
            None => return,
            Some(Ok(fd)) => {
                let counted = Counted::new(&core);
                ring::spawn(serve(Rc::clone(&core), counted, fd));
            }
            Some(Err(error)) if is_exhaustion(&error) => {
                core.shard.count(Counter::Limit(Limit::FileDescriptors));
                if until_draining(&core, ring::sleep_until(ring::now() + EXHAUSTED_PAUSE)).await.is_none() {
                    return;
                }
            }
            // The client was gone before it was accepted (ECONNABORTED and its kin): the next one.
            Some(Err(_)) => {}
        }
    }
}

/// Runs `future` unless the worker begins to drain.
async fn until_draining<T>(core: &Core, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if core.draining.poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

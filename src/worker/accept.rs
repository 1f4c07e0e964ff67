//! Accepting: one task for each listener, which stops asking the kernel when the worker is full.
//!
//! The end of a listener loses no client: what the ring has accepted is served, and so is what stands in the backlog, unless
//! another process accepts from the same socket and finds it there.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use crate::ring::{self, Listener, Signal};
use crate::telemetry::counters::{Counter, Limit};

use super::core::{Core, Counted};

/// How long accepting pauses when the process or the system is out of descriptors or memory. Connections that end make
/// room; the backlog holds those who come.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// What a multishot accept may take at once: the listener's whole backlog. With less room than that, connections are
/// accepted one by one, so that the limit holds exactly.
const BACKLOG: usize = super::BACKLOG as usize;

/// What becomes of the backlog when a listener ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// This process is the last to have the socket: who stands there is served, then it closes.
    ServeBacklog,
    /// Another process accepts from the socket.
    LeaveBacklog,
}

/// A listener that is accepted from.
pub struct Accepting {
    address: Option<SocketAddr>,
    end: Signal<End>,
    ended: Signal<()>,
}

impl Accepting {
    /// Ends it; another process has the sockets of these addresses.
    pub fn end(&self, handed_over: &[SocketAddr]) {
        let elsewhere = self.address.is_some_and(|address| handed_over.contains(&address));
        self.end.set(if elsewhere { End::LeaveBacklog } else { End::ServeBacklog });
    }

    /// Waits until nothing more will be accepted.
    pub async fn ended(&self) {
        self.ended.wait().await;
    }
}

/// What serves an accepted connection to its end.
type Serve<F> = fn(Rc<Core>, Counted, OwnedFd) -> F;

/// Accepts from a listening socket from now on; `serve` has each connection.
pub fn start<F>(core: &Rc<Core>, socket: TcpListener, serve: Serve<F>) -> Rc<Accepting>
where
    F: Future<Output = ()> + 'static,
{
    let address = socket.local_addr().ok();
    let accepting = Rc::new(Accepting { address, end: Signal::default(), ended: Signal::default() });
    let (core, own) = (Rc::clone(core), Rc::clone(&accepting));
    ring::spawn(async move {
        let listener = Listener::new(socket);
        let end = run(&core, &listener, serve, &own.end).await;
        finish(&core, &listener, serve, end).await;
        drop(listener);
        own.ended.set(());
    });
    accepting
}

/// Accepts until the listener's end.
async fn run<F>(core: &Rc<Core>, listener: &Listener, serve: Serve<F>, end: &Signal<End>) -> End
where
    F: Future<Output = ()> + 'static,
{
    let max = core.config.connections_max;
    loop {
        if core.connections.open() >= max {
            core.shard.count(Counter::Limit(Limit::Connections));
            listener.pause();
            if let Err(end) = unless(end, core.connections.below(max)).await {
                return end;
            }
        }
        listener.set_one_by_one(core.connections.open() + BACKLOG >= max);
        match unless(end, listener.accept()).await {
            Err(end) => return end,
            Ok(Ok(fd)) => spawn(core, serve, fd),
            Ok(Err(error)) if is_exhaustion(&error) => {
                core.shard.count(Counter::Limit(Limit::FileDescriptors));
                if let Err(end) = unless(end, ring::sleep_until(ring::now() + EXHAUSTED_PAUSE)).await {
                    return end;
                }
            }
            // The client was gone before it was accepted (ECONNABORTED and its kin): the next one.
            Ok(Err(_)) => {}
        }
    }
}

/// Serves what was accepted already, then the backlog.
///
/// Where another process accepts too, the backlog is emptied once all the same. The kernel wakes one waiter for each
/// connection (an accept on a ring waits exclusively): if that was our accept and it was cancelled before it acted, nobody
/// else knows of the connection until the next one comes. Such a wake-up exists only where we had room to accept.
async fn finish<F>(core: &Rc<Core>, listener: &Listener, serve: Serve<F>, end: End)
where
    F: Future<Output = ()> + 'static,
{
    let max = core.config.connections_max;
    while let Some(fd) = listener.last().await {
        spawn(core, serve, fd);
    }
    // As many as stood there at most when it began: whoever comes later comes to an edge that stops.
    for _ in 0..BACKLOG {
        if end == End::LeaveBacklog && core.connections.open() >= max {
            return;
        }
        core.connections.below(max).await;
        match listener.accept_now() {
            Ok(Some(fd)) => spawn(core, serve, fd),
            Ok(None) => return,
            Err(error) if is_exhaustion(&error) => ring::sleep_until(ring::now() + EXHAUSTED_PAUSE).await,
            Err(_) => {}
        }
    }
}

fn spawn<F>(core: &Rc<Core>, serve: Serve<F>, fd: OwnedFd)
where
    F: Future<Output = ()> + 'static,
{
    let counted = Counted::new(core);
    ring::spawn(serve(Rc::clone(core), counted, fd));
}

/// Runs `future` unless the listener ends.
async fn unless<T>(end: &Signal<End>, future: impl Future<Output = T>) -> Result<T, End> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| {
        if let Poll::Ready(end) = end.poll(cx) {
            return Poll::Ready(Err(end));
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

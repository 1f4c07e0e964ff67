//! io_uring for one pinned thread: driver, executor, buffers, timers, sockets, mailbox.
//!
//! A [`Runtime`] owns one ring and runs plain `async` code on the thread that made it. A turn of its loop is: run the
//! tasks that are ready, run heavy tasks within a time budget, then one system call that submits what was queued and
//! waits for the next completion or timer. Nothing here knows TLS, proxies or workers.
//!
//! What must hold, whatever future is dropped at whatever point:
//!
//!  - memory the kernel may still write to or read from belongs to the driver until the last completion of its operation;
//!  - what a late completion brings is released: an accepted descriptor is closed, a filled buffer goes back to its ring;
//!  - bytes already received stay with their socket, for the next read;
//!  - no provided buffer outlives the turn in which it was filled: what nobody took is copied to its socket's own queue.
//!
//! `unsafe` is allowed in this room; each block says why it is sound.

mod accept;
mod buffers;
mod driver;
mod executor;
mod handle;
mod heavy;
mod mailbox;
mod op;
mod probe;
mod signal;
mod socket;
#[cfg(test)]
mod tests;
mod timer;
mod wheel;

pub use accept::Listener;
pub use driver::RingConfig;
pub use executor::{Held, Runtime, Turn, heavy, held, now, spawn, yield_now};
pub use mailbox::{Receiver, Sender, Unclaimed, mailbox};
pub use probe::{Features, Unavailable, probe};
pub use signal::Signal;
pub use socket::{Receive, Socket};
pub use timer::{Elapsed, Sleep, sleep_until, timeout, timeout_at};

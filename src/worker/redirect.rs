//! A plain-HTTP connection: redirected to https, request by request, and closed.
//!
//! It counts as a client connection. What it may hold and how long is bounded: one head of `HEAD_BYTES_MAX`, for
//! `limits.header_timeout` each, `REQUESTS_MAX` times.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::policy::Refusal;
use crate::proxy::redirect::{self, Outcome};
use crate::ring::{self, Socket};
use crate::telemetry::counters::{Counter, Redirect, Timeout};
use crate::telemetry::log::Refused;

use super::core::{Core, Counted};
use super::remote::{self, Remote, Unannounced};
use super::session::{LINGER, say_goodbye};

/// The most requests of one connection. Who is redirected goes where it was sent; more than a few come from tools.
const REQUESTS_MAX: usize = 100;

/// The port of https, which a URI need not name.
const HTTPS_PORT: u16 = 443;

/// How often a connection that waits looks whether its worker drains. An idle one ends then, as between two requests it may
/// at any moment; one whose request is on its way, or whose first one is, has its time.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// Serves an accepted connection to its end.
pub async fn serve(core: Rc<Core>, counted: Counted, fd: OwnedFd) {
    let socket = Socket::from(fd);
    let port = core.config.https_port.filter(|port| *port != HTTPS_PORT);
    let Some(mut received) = begin(&core, &socket).await else { return };
    for served in 1..=REQUESTS_MAX {
        let answer = next(&core, &socket, &mut received, port, served).await;
        let Some((response, keep_alive)) = answer else { break };
        let sent = ring::timeout(core.config.http.header_timeout, socket.send(response)).await;
        if !matches!(sent, Ok((Ok(()), _))) {
            break;
        }
        if !keep_alive {
            say_goodbye(&core, &socket, Vec::new(), 0, LINGER).await;
            break;
        }
    }
    drop(counted);
}

/// Reads the PROXY header of a peer that must send one; what came behind it. `None`: there will be no request.
async fn begin(core: &Core, socket: &Socket) -> Option<Vec<u8>> {
    let Some(by) = Remote::of(socket).must_announce(&core.config).ok()? else { return Some(Vec::new()) };
    let reading = Box::pin(remote::read_header(socket, by, &core.shard, |_| ()));
    let refused = match ring::timeout(core.config.http.header_timeout, reading).await {
        // Whoever it is, the answer is the same.
        Ok(Ok((_, received))) => return Some(received),
        Ok(Err(Unannounced::Gone)) => return None,
        Ok(Err(Unannounced::Refused(detail))) => {
            core.shard.count(Counter::Redirect(Redirect::Malformed));
            Refused { detail: Some(detail), ..Refused::new(Refusal::ProtocolError) }
        }
        Err(ring::Elapsed) => {
            core.shard.count(Counter::Redirect(Redirect::TimedOut));
            core.shard.count(Counter::Timeout(Timeout::Header));
            return None;
        }
    };
    core.log_refused(|| Refused { peer: Some(by), ..refused });
    None
}

/// The answer to the request that is the `served`th, and whether another may follow; `None`: the client has gone, or does
/// not come in time.
async fn next(
    core: &Core,
    socket: &Socket,
    received: &mut Vec<u8>,
    port: Option<u16>,
    served: usize,
) -> Option<(Vec<u8>, bool)> {
    let deadline = ring::now() + core.config.http.header_timeout;
    loop {
        let last = core.draining.get().is_some() || served == REQUESTS_MAX;
        let published = core.published();
        let serves = |name: &str| published.snapshot.resolve(name).record().is_some();
        match redirect::answer(received, port, last, SystemTime::now(), serves) {
            Outcome::Answer { response, consumed, keep_alive, result } => {
                core.shard.count(Counter::Redirect(result));
                received.drain(..consumed);
                return Some((response, keep_alive));
            }
            Outcome::Incomplete => {}
        }
        drop(published);
        // An incomplete head has at most `HEAD_BYTES_MAX`, or it would have been refused: no more than one chunk beyond that
        // is ever held.
        let receive = socket.receive(|chunk| received.extend_from_slice(chunk));
        let look = deadline.min(ring::now() + DRAIN_LOOK);
        match ring::timeout_at(look, receive).await {
            Ok(Ok(Some(()))) => {}
            // The client has gone.
            Ok(Ok(None) | Err(_)) => return None,
            Err(ring::Elapsed) if ring::now() >= deadline => {
                // Silence between requests is how a kept connection usually ends.
                if !received.is_empty() || served == 1 {
                    core.shard.count(Counter::Redirect(Redirect::TimedOut));
                    core.shard.count(Counter::Timeout(Timeout::Header));
                }
                return None;
            }
            Err(ring::Elapsed) => {
                if core.draining.get().is_some() && received.is_empty() && served > 1 {
                    return None;
                }
            }
        }
    }
}

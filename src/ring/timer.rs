//! Sleeping and time limits, on the runtime's timer wheel. Resolution is a millisecond; a timer never fires early.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::executor::{insert_timer, now, poll_timer, remove_timer};
use super::wheel::TimerKey;

/// Waits until `at`.
pub fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, timer: None }
}

/// The future of [`sleep_until`]. Dropped early, its timer is removed.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep {
    at: Instant,
    /// The timer in the wheel, and when it fires: at `at` or earlier.
    timer: Option<(TimerKey, Instant)>,
}

impl Sleep {
    /// Moves the deadline. Moving it later costs no look at the wheel: call this whenever bytes move. The wait ends at the
    /// last deadline given; a deadline moved earlier acts from the next poll on.
    pub fn reset(&mut self, at: Instant) {
        self.at = at;
    }

    fn arm(&mut self, cx: &Context<'_>) -> Poll<()> {
        self.disarm();
        self.timer = Some((insert_timer(self.at, cx.waker().clone()), self.at));
        Poll::Pending
    }

    fn disarm(&mut self) {
        if let Some((timer, _)) = self.timer.take() {
            remove_timer(timer);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.timer {
            Some((timer, set_for)) if set_for <= self.at => {
                if !poll_timer(timer, cx) {
                    return Poll::Pending;
                }
                self.disarm();
                if self.at <= now() {
                    return Poll::Ready(());
                }
                // Postponed since the timer was set.
                self.arm(cx)
            }
            _ => self.arm(cx),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.disarm();
    }
}

/// A time limit was reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("time limit reached")
    }
}

impl std::error::Error for Elapsed {}

/// Runs `future` for at most `limit` from now.
///
/// # Errors
///
/// [`Elapsed`]; the future has been dropped.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    timeout_at(now() + limit, future).await
}

/// Runs `future` until `at` at the latest.
///
/// # Errors
///
/// [`Elapsed`]; the future has been dropped.
pub async fn timeout_at<F: Future>(at: Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = std::pin::pin!(future);
    let mut sleep = std::pin::pin!(sleep_until(at));
    std::future::poll_fn(move |cx| {
        // The future first: what is ready in time counts, even if the limit passed in the same turn.
        if let Poll::Ready(value) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(value));
        }
        sleep.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

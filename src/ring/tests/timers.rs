//! Sleeping and time limits against the real clock.

use std::cell::Cell;
use std::future::{pending, ready};
use std::pin::pin;
use std::rc::Rc;

use super::*;
use crate::ring::{Elapsed, held, spawn, timeout, timeout_at};

/// How late a timer may be on a machine that builds other things at the same time.
const LATE: Duration = Duration::from_secs(2);

#[test]
fn thousands_of_timers_fire_after_their_time_and_never_before() {
    run(|| async {
        let fired = Rc::new(Cell::new(0));
        let mut chance = Chance(21);
        for _ in 0..5000 {
            let at = Instant::now() + Duration::from_micros(chance.below(300_000));
            let fired = Rc::clone(&fired);
            spawn(async move {
                sleep_until(at).await;
                let now = Instant::now();
                assert!(now >= at, "{:?} too early", at - now);
                assert!(now < at + LATE, "{:?} too late", now - at);
                fired.set(fired.get() + 1);
            });
        }
        assert!(eventually(|| fired.get() == 5000).await, "{} of 5000", fired.get());
        assert_eq!(held().timers, 0);
    });
}

#[test]
fn a_time_that_has_passed_does_not_wait() {
    run(|| async {
        let started = Instant::now();
        sleep_until(started - Duration::from_secs(3)).await;
        sleep_until(now()).await;
        assert!(started.elapsed() < LATE);
    });
}

#[test]
fn a_postponed_sleep_ends_at_the_last_deadline() {
    run(|| async {
        let started = now();
        let mut sleep = pin!(sleep_until(started + Duration::from_millis(20)));
        let mut last = started;
        for step in 1..=10 {
            last = started + Duration::from_millis(20 + step * 10);
            sleep.as_mut().get_mut().reset(last);
            assert_eq!(timeout_at(started + Duration::from_millis(step * 5), &mut sleep).await, Err(Elapsed));
        }
        sleep.await;
        assert!(Instant::now() >= last);
        assert!(Instant::now() < last + LATE);
    });
}

/// A deadline may also move closer, even into the past; the timer that stood for the later one is gone.
#[test]
fn a_sleep_moved_earlier_ends_earlier() {
    run(|| async {
        for earlier in [now() + Duration::from_millis(15), now(), now() - Duration::from_secs(1)] {
            let started = Instant::now();
            let mut sleep = pin!(sleep_until(now() + Duration::from_secs(1000)));
            assert_eq!(timeout(Duration::from_millis(2), &mut sleep).await, Err(Elapsed));
            sleep.as_mut().get_mut().reset(earlier);
            sleep.await;
            assert!(Instant::now() >= earlier);
            assert!(started.elapsed() < LATE);
            assert_eq!(held().timers, 0);
        }
    });
}

#[test]
fn a_limit_ends_what_is_not_ready_and_passes_on_what_is() {
    run(|| async {
        assert_eq!(timeout(Duration::ZERO, ready(7)).await, Ok(7));
        assert_eq!(timeout_at(now() - Duration::from_secs(1), ready(8)).await, Ok(8), "ready in time counts");
        let started = now();
        assert_eq!(timeout(Duration::from_millis(30), pending::<()>()).await, Err(Elapsed));
        assert!(Instant::now() >= started + Duration::from_millis(30));
        let inner = async {
            sleep_ms(5).await;
            9
        };
        assert_eq!(timeout(Duration::from_secs(10), inner).await, Ok(9));
        assert_eq!(held().timers, 0, "a limit that was not reached leaves no timer");
    });
}

/// The limit drops what it limits before it says so.
#[test]
fn a_limit_that_was_reached_has_dropped_the_future() {
    run(|| async {
        let held_by_future = Rc::new(());
        let inside = Rc::clone(&held_by_future);
        let limited = timeout(Duration::from_millis(1), async move {
            let _inside = inside;
            pending::<()>().await;
        });
        assert_eq!(limited.await, Err(Elapsed));
        assert_eq!(Rc::strong_count(&held_by_future), 1);
    });
}

/// A timer polled by one task and then by another wakes the latter; dropped, it is gone.
#[test]
fn a_sleep_wakes_who_polled_it_last() {
    run(|| async {
        let mut sleep = Box::pin(sleep_until(now() + Duration::from_millis(10)));
        assert!(sleep.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
        assert_eq!(held().timers, 1);
        // The limit polls once more when it is reached, so it is the time that tells.
        let started = Instant::now();
        timeout(Duration::from_secs(5), sleep).await.expect("fired");
        assert!(started.elapsed() < Duration::from_secs(4), "the task that waits now was not woken");
        for _ in 0..100 {
            let mut sleep = Box::pin(sleep_until(now() + Duration::from_secs(1000)));
            assert!(sleep.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending());
        }
        assert_eq!(held().timers, 0);
    });
}

/// A long computation in one task makes others late, never early, and loses none.
#[test]
fn timers_survive_a_turn_that_took_long() {
    run(|| async {
        let fired = Rc::new(Cell::new(0));
        for step in 0..100 {
            let at = now() + Duration::from_millis(step);
            let fired = Rc::clone(&fired);
            spawn(async move {
                sleep_until(at).await;
                assert!(Instant::now() >= at);
                fired.set(fired.get() + 1);
            });
        }
        sleep_ms(3).await;
        std::thread::sleep(Duration::from_millis(150));
        sleep_ms(1).await;
        assert!(eventually(|| fired.get() == 100).await);
    });
}

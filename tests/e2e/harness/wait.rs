//! Bounded waits: the only way a test lets time pass.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long to rest between two looks. Short enough that a test does not feel it, long enough that a hundred waiting
/// threads leave the cores to what they wait for.
const PAUSE: Duration = Duration::from_millis(5);

/// Asks until the answer is true.
///
/// # Panics
/// With `what`, when `bound` has passed.
#[track_caller]
pub fn until(what: &str, bound: Duration, mut condition: impl FnMut() -> bool) {
    assert!(within(bound, &mut condition), "not within {bound:?}: {what}");
}

/// Asks until the answer is true or `bound` has passed; says which.
pub fn within(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + bound;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Asks until there is an answer.
///
/// # Panics
/// With `what`, when `bound` has passed.
#[track_caller]
pub fn for_some<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    let come = within(bound, || {
        found = probe();
        found.is_some()
    });
    assert!(come, "not within {bound:?}: {what}");
    found.expect("within() said so")
}

/// Reads until the value equals what is expected.
///
/// # Panics
/// With the last value seen, when `bound` has passed.
#[track_caller]
pub fn for_value<T: PartialEq + Debug>(what: &str, bound: Duration, expected: &T, mut read: impl FnMut() -> T) {
    let mut last = None;
    if !within(bound, || *last.insert(read()) == *expected) {
        panic!("not within {bound:?}: {what} is {last:?}, expected {expected:?}");
    }
}

/// Reads until the value has stayed the same for `quiet`, and returns it: how a test knows that something has stalled.
///
/// # Panics
/// With `what`, when it still moves after `bound`.
#[track_caller]
pub fn until_still<T: PartialEq>(what: &str, quiet: Duration, bound: Duration, mut read: impl FnMut() -> T) -> T {
    let mut last = read();
    let mut since = Instant::now();
    until(&format!("{what} stands still for {quiet:?}"), bound, || {
        let now = read();
        if now != last {
            last = now;
            since = Instant::now();
        }
        since.elapsed() >= quiet
    });
    last
}

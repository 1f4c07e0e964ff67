//! The balance in virtual time: fair when all is well, away from what failed, one trial at a time.

use proptest::prelude::*;

use super::{BACK_OFF_MAX_MS, BACK_OFF_MIN_MS, Balance};

fn abc() -> Balance<char> {
    Balance::new(['a', 'b', 'c'])
}

fn pick(balance: &mut Balance<char>, now_ms: u64) -> char {
    *balance.next(now_ms).unwrap()
}

#[test]
fn takes_turns() {
    let mut balance = abc();
    let picks: String = (0..7).map(|_| pick(&mut balance, 0)).collect();
    assert_eq!(picks, "abcabca");
    assert_eq!(Balance::<char>::new([]).next(0), None);
}

#[test]
fn after_the_back_off_one_connection_tries() {
    let mut balance = abc();
    balance.failed(&'b', 100);
    let before: String = (0..4).map(|_| pick(&mut balance, 100 + BACK_OFF_MIN_MS - 1)).collect();
    assert_eq!(before, "acac");
    let after: String = (0..6).map(|_| pick(&mut balance, 100 + BACK_OFF_MIN_MS)).collect();
    assert_eq!(after, "abcaca", "one trial, not two");
    balance.succeeded(&'b');
    let healthy: String = (0..3).map(|_| pick(&mut balance, 100 + BACK_OFF_MIN_MS)).collect();
    assert_eq!(healthy, "bca");
}

#[test]
fn each_failed_trial_doubles_the_back_off_up_to_its_bound() {
    let mut balance = abc();
    let mut now_ms = 0;
    balance.failed(&'b', now_ms);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let failed_ms = now_ms;
        while pick(&mut balance, now_ms) != 'b' {
            now_ms += 10;
        }
        waits.push((now_ms - failed_ms) / BACK_OFF_MIN_MS);
        balance.failed(&'b', now_ms);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn a_burst_of_failures_counts_once() {
    let mut balance = abc();
    for _ in 0..100 {
        balance.failed(&'b', 0);
    }
    let picks: Vec<char> = (0..3).map(|_| pick(&mut balance, BACK_OFF_MIN_MS)).collect();
    assert!(picks.contains(&'b'), "{picks:?}");
}

#[test]
fn with_all_down_the_longest_ago_is_tried_anyway() {
    let mut balance = abc();
    for (at, key) in [(0, 'b'), (1, 'c'), (2, 'a')] {
        balance.failed(&key, at);
    }
    assert_eq!(pick(&mut balance, 3), 'b');
    balance.failed(&'b', 3);
    assert_eq!(pick(&mut balance, 4), 'c');
    balance.succeeded(&'c');
    assert_eq!(pick(&mut balance, 5), 'c');
    assert_eq!(balance.down(), 2);
    // Attempts that had to be made anyway are no trials: they did not lengthen the back-off of b.
    let picks: Vec<char> = (0..3).map(|_| pick(&mut balance, BACK_OFF_MIN_MS)).collect();
    assert!(picks.contains(&'b'), "{picks:?}");
}

#[test]
fn a_trial_nobody_reports_is_given_up() {
    let mut balance = Balance::new(['a', 'b']);
    balance.failed(&'b', 0);
    let trials = |balance: &mut Balance<char>, now_ms| (0..4).filter(|_| pick(balance, now_ms) == 'b').count();
    assert_eq!(trials(&mut balance, BACK_OFF_MIN_MS), 1);
    assert_eq!(trials(&mut balance, 2 * BACK_OFF_MIN_MS - 1), 0);
    assert_eq!(trials(&mut balance, 2 * BACK_OFF_MIN_MS), 1);
}

#[test]
fn a_new_list_keeps_the_marks_and_the_turn() {
    let mut balance = abc();
    balance.failed(&'b', 0);
    assert_eq!(pick(&mut balance, 1), 'a');
    assert_eq!(pick(&mut balance, 1), 'c');
    balance.replace(['x', 'b', 'a']);
    let picks: String = (0..4).map(|_| pick(&mut balance, 1)).collect();
    assert_eq!(picks, "axax", "b is still down, and it was the turn of a");
    // Reports about an address that is gone are passed over.
    balance.failed(&'c', 1);
    balance.succeeded(&'c');
    assert_eq!((balance.len(), balance.down()), (3, 1));
    balance.replace([]);
    assert_eq!(balance.next(2), None);
    assert!(balance.is_empty());
    balance.replace(['b']);
    assert_eq!((balance.next(2).copied(), balance.down()), (Some('b'), 0), "what left is forgotten");
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Next,
    Failed(usize),
    Succeeded(usize),
    Replace(Vec<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..BACK_OFF_MAX_MS / 10).prop_map(Step::Wait),
        6 => Just(Step::Next),
        4 => (0..5usize).prop_map(Step::Failed),
        1 => (0..5usize).prop_map(Step::Succeeded),
        1 => proptest::sample::subsequence(vec![0, 1, 2, 3, 4], 0..=5).prop_shuffle().prop_map(Step::Replace),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What a bystander knows of an address: nothing but the reports and the picks.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    /// When it was first reported as failed since it was last up.
    down_since_ms: Option<u64>,
    last_failed_ms: u64,
    /// When it was last picked for a trial, since the last report about it.
    trial_ms: Option<u64>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_a_bystander_sees_is_as_promised(steps in steps()) {
        let mut balance = Balance::new([0usize, 1, 2]);
        let mut present = vec![0usize, 1, 2];
        let mut seen = [Seen::default(); 5];
        let mut now_ms = 1_000_000;
        for step in steps {
            match step {
                Step::Wait(ms) => now_ms += ms,
                Step::Failed(key) => {
                    balance.failed(&key, now_ms);
                    if present.contains(&key) {
                        seen[key].down_since_ms.get_or_insert(now_ms);
                        seen[key].last_failed_ms = now_ms;
                        seen[key].trial_ms = None;
                    }
                }
                Step::Succeeded(key) => {
                    balance.succeeded(&key);
                    if present.contains(&key) {
                        seen[key] = Seen::default();
                    }
                }
                Step::Replace(keys) => {
                    balance.replace(keys.clone());
                    for (key, seen) in seen.iter_mut().enumerate() {
                        if !(keys.contains(&key) && present.contains(&key)) {
                            *seen = Seen::default();
                        }
                    }
                    present = keys;
                }
                Step::Next => {
                    let picked = balance.next(now_ms).copied();
                    prop_assert_eq!(picked.is_none(), present.is_empty());
                    let Some(key) = picked else { continue };
                    prop_assert!(present.contains(&key));
                    let some_up = present.iter().any(|&other| seen[other].down_since_ms.is_none());
                    if let (Some(since_ms), true) = (seen[key].down_since_ms, some_up) {
                        prop_assert!(now_ms >= since_ms + BACK_OFF_MIN_MS, "picked within its back-off");
                        if let Some(trial_ms) = seen[key].trial_ms {
                            prop_assert!(now_ms >= trial_ms + BACK_OFF_MIN_MS, "a second trial beside the first");
                        }
                        seen[key].trial_ms = Some(now_ms);
                    }
                }
            }
            let down = present.iter().filter(|&&key| seen[key].down_since_ms.is_some()).count();
            prop_assert_eq!(balance.down(), down);
        }
        // However bad it was, the longest back-off later every address gets its turn again.
        now_ms += BACK_OFF_MAX_MS;
        let mut picks: Vec<_> = (0..present.len()).map(|_| *balance.next(now_ms).unwrap()).collect();
        picks.sort_unstable();
        present.sort_unstable();
        prop_assert_eq!(picks, present);
    }
}

//! The balance in virtual time: fair when all is well, away from what failed, one trial at a time, slow to come back.

use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::*;

use super::slot::{BACK_OFF_MAX_MS, BACK_OFF_MIN_MS};
use super::{Ask, Balance, Ejected, Slot, Taken, hash};
use crate::registry::balancing::Policy;

const RANDOM: u64 = 7;

fn balance<const N: usize>(keys: [char; N]) -> Balance<char> {
    let mut balance = Balance::default();
    balance.replace(keys, |_| false, 0);
    balance
}

fn abc() -> Balance<char> {
    balance(['a', 'b', 'c'])
}

fn ask(policy: &Policy, now_ms: u64) -> Ask<'_, char> {
    Ask { policy, key: 0, random: RANDOM, now_ms, slow_start_ms: 0, tried: &[] }
}

fn pick(balance: &mut Balance<char>, now_ms: u64) -> char {
    *balance.choose(&ask(&Policy::RoundRobin, now_ms)).unwrap().slot.key()
}

fn picks(balance: &mut Balance<char>, now_ms: u64, count: usize) -> String {
    (0..count).map(|_| pick(balance, now_ms)).collect()
}

fn slot<K: Eq + std::hash::Hash>(balance: &Balance<K>, key: &K) -> Rc<Slot<K>> {
    Rc::clone(balance.slots.iter().find(|slot| slot.key() == key).unwrap())
}

fn connect_failed(balance: &Balance<char>, key: char, now_ms: u64) -> Option<Ejected> {
    slot(balance, &key).connect_failed(now_ms)
}

#[test]
fn takes_turns() {
    let mut balance = abc();
    assert_eq!(picks(&mut balance, 0, 7), "abcabca");
    assert!(Balance::<char>::default().choose(&ask(&Policy::RoundRobin, 0)).is_none());
}

#[test]
fn after_the_back_off_one_connection_tries() {
    let mut balance = abc();
    connect_failed(&balance, 'b', 100);
    assert_eq!(picks(&mut balance, 100 + BACK_OFF_MIN_MS - 1, 4), "acac");
    assert_eq!(picks(&mut balance, 100 + BACK_OFF_MIN_MS, 6), "abcaca", "one trial, not two");
    assert!(slot(&balance, &'b').connected(100 + BACK_OFF_MIN_MS));
    assert_eq!(picks(&mut balance, 100 + BACK_OFF_MIN_MS, 3), "bca");
}

#[test]
fn each_failed_trial_doubles_the_back_off_up_to_its_bound() {
    let mut balance = abc();
    let mut now_ms = 0;
    connect_failed(&balance, 'b', now_ms);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let failed_ms = now_ms;
        while pick(&mut balance, now_ms) != 'b' {
            now_ms += 10;
        }
        waits.push((now_ms - failed_ms) / BACK_OFF_MIN_MS);
        connect_failed(&balance, 'b', now_ms);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
}

#[test]
fn who_fails_again_at_once_has_not_come_back() {
    let mut balance = abc();
    assert_eq!(connect_failed(&balance, 'b', 0).unwrap().back_off_ms, BACK_OFF_MIN_MS);
    let trial_ms = BACK_OFF_MIN_MS;
    assert_eq!(picks(&mut balance, trial_ms, 2), "ab");
    assert!(slot(&balance, &'b').connected(trial_ms));
    assert_eq!(connect_failed(&balance, 'b', trial_ms + 1).unwrap().back_off_ms, 2 * BACK_OFF_MIN_MS);
    let trial_ms = trial_ms + 1 + 2 * BACK_OFF_MIN_MS;
    assert_eq!(picks(&mut balance, trial_ms, 3), "cab");
    assert!(slot(&balance, &'b').connected(trial_ms));
    let later_ms = trial_ms + 2 * BACK_OFF_MIN_MS;
    assert_eq!(connect_failed(&balance, 'b', later_ms).unwrap().back_off_ms, BACK_OFF_MIN_MS, "it had been back");
}

#[test]
fn a_burst_of_failures_counts_once() {
    let mut balance = abc();
    assert!(connect_failed(&balance, 'b', 0).is_some());
    assert!((0..100).all(|_| connect_failed(&balance, 'b', 0).is_none()));
    assert!(picks(&mut balance, BACK_OFF_MIN_MS, 3).contains('b'));
}

#[test]
fn with_all_left_out_all_are_chosen() {
    let mut balance = abc();
    balance.replace(['a', 'b', 'c'], |key| *key == 'a', 0);
    for key in ['b', 'c'] {
        connect_failed(&balance, key, 1);
    }
    assert!(balance.choose(&ask(&Policy::RoundRobin, 1)).unwrap().in_panic);
    assert_eq!(picks(&mut balance, 1, 5), "bcabc");
    assert_eq!(balance.ejected(), 2);
    assert!(!balance.is_down());
    // What had to be chosen anyway was no trial: it does not lengthen the back-off.
    assert!(connect_failed(&balance, 'b', 2).is_none());
    assert!(picks(&mut balance, 1 + BACK_OFF_MIN_MS, 2).contains('b'));
    assert!(slot(&balance, &'c').connected(3));
    assert_eq!(picks(&mut balance, 3, 3), "ccc");
    balance.replace(['a', 'b', 'c'], |_| true, 4);
    assert!(balance.is_down());
}

#[test]
fn a_trial_nobody_reports_is_given_up() {
    let mut balance = balance(['a', 'b']);
    connect_failed(&balance, 'b', 0);
    let mut trials = |now_ms| picks(&mut balance, now_ms, 4).matches('b').count();
    assert_eq!(trials(BACK_OFF_MIN_MS), 1);
    assert_eq!(trials(2 * BACK_OFF_MIN_MS - 1), 0);
    assert_eq!(trials(2 * BACK_OFF_MIN_MS), 1);
}

#[test]
fn failed_exchanges_eject_after_some_in_a_row_and_an_answer_ends_it() {
    let mut balance = abc();
    let b = slot(&balance, &'b');
    let fail = |balance: &Balance<char>, now_ms| balance.response_failed(&b, now_ms, Some(3));
    assert!(fail(&balance, 0).is_none() && fail(&balance, 0).is_none());
    assert!(!b.answered(0), "nothing to come back from");
    assert!(fail(&balance, 0).is_none() && fail(&balance, 0).is_none());
    assert_eq!(fail(&balance, 0).unwrap().back_off_ms, BACK_OFF_MIN_MS);
    assert_eq!(picks(&mut balance, 1, 4), "acac");
    assert_eq!(picks(&mut balance, BACK_OFF_MIN_MS, 2), "ab");
    assert!(!b.connected(BACK_OFF_MIN_MS), "that it accepts proves nothing");
    assert_eq!(fail(&balance, BACK_OFF_MIN_MS).unwrap().back_off_ms, 2 * BACK_OFF_MIN_MS);
    assert!(picks(&mut balance, 3 * BACK_OFF_MIN_MS, 3).contains('b'));
    assert!(b.answered(3 * BACK_OFF_MIN_MS));
    assert_eq!(balance.ejected(), 0);
    assert!((0..9).all(|_| balance.response_failed(&b, 0, None).is_none()), "switched off");
}

#[test]
fn half_of_the_addresses_stay() {
    for (keys, ejected) in [("a", 0), ("ab", 1), ("abc", 1), ("abcd", 2), ("abcde", 2)] {
        let mut balance = Balance::default();
        balance.replace(keys.chars(), |_| false, 0);
        for key in keys.chars() {
            balance.response_failed(&slot(&balance, &key), 0, Some(1));
        }
        assert_eq!(balance.ejected(), ejected, "{keys}");
    }
    let mut balance = balance(['a', 'b', 'c', 'd']);
    balance.replace(['a', 'b', 'c', 'd'], |key| "ab".contains(*key), 0);
    assert!(balance.response_failed(&slot(&balance, &'c'), 0, Some(1)).is_none(), "the checks have taken their half");
    assert!(connect_failed(&balance, 'c', 0).is_some(), "nobody can use an address that does not accept");
}

#[test]
fn one_address_is_no_choice_unless_something_is_wrong_with_it() {
    let mut one = balance(['a']);
    assert!(one.sole().is_some() && abc().sole().is_none() && Balance::<char>::default().sole().is_none());
    one.mark_down(|_| true, 0);
    assert!(one.sole().is_none(), "down");
    one.mark_down(|_| false, 0);
    connect_failed(&one, 'a', 0);
    assert!(one.sole().is_none(), "left out");
    assert!(one.choose(&ask(&Policy::RoundRobin, 1)).unwrap().in_panic);
}

#[test]
fn a_share_grows() {
    let mut balance = balance(['a', 'b']);
    connect_failed(&balance, 'b', 0);
    slot(&balance, &'b').connected(1_000);
    let share = |balance: &mut Balance<char>, now_ms| {
        let ask = Ask { slow_start_ms: 10_000, ..ask(&Policy::RoundRobin, now_ms) };
        (0..1_000).filter(|_| *balance.choose(&ask).unwrap().slot.key() == 'b').count()
    };
    // One turn in eleven, then one in three, then every second one.
    assert_eq!(share(&mut balance, 1_000), 1_000 / 11);
    assert!((330..=336).contains(&share(&mut balance, 6_000)));
    assert_eq!(share(&mut balance, 11_000), 500);
}

#[test]
fn who_joins_begins_slowly_and_the_first_do_not() {
    let slow = |balance: &mut Balance<char>| {
        let ask = Ask { slow_start_ms: 10_000, ..ask(&Policy::RoundRobin, 5_000) };
        (0..100).filter(|_| *balance.choose(&ask).unwrap().slot.key() == 'c').count()
    };
    assert!((33..=34).contains(&slow(&mut abc())));
    let mut joined = balance(['a', 'b']);
    joined.replace(['a', 'b', 'c'], |_| false, 5_000);
    assert!(slow(&mut joined) < 10);
    let mut checked = abc();
    checked.replace(['a', 'b', 'c'], |key| *key == 'c', 4_000);
    assert_eq!(slow(&mut checked), 0);
    checked.replace(['a', 'b', 'c'], |_| false, 5_000);
    assert!((1..10).contains(&slow(&mut checked)));
}

#[test]
fn fewer_pending_exchanges_win() {
    let mut balance = balance(['a', 'b']);
    let stalled: Vec<_> = (0..3).map(|_| Taken::new(slot(&balance, &'a'))).collect();
    assert_eq!(slot(&balance, &'a').pending(), 3);
    let picked = |balance: &mut Balance<char>, random| {
        *balance.choose(&Ask { random, ..ask(&Policy::LeastPending, 0) }).unwrap().slot.key()
    };
    for random in 0..100 {
        assert_eq!(picked(&mut balance, random << 31), 'b');
    }
    drop(stalled);
    let even: String = (0..100).map(|n| picked(&mut balance, n)).collect();
    assert_eq!(even.matches('a').count(), 50, "a tie is for chance");
}

#[test]
fn an_address_that_was_tried_comes_after_the_others() {
    let mut balance = abc();
    for policy in [Policy::RoundRobin, Policy::LeastPending, Policy::HashClientAddress] {
        let mut tried = Vec::new();
        for _ in 0..3 {
            let choice = balance.choose(&Ask { tried: &tried, ..ask(&policy, 0) }).unwrap();
            assert!(!tried.iter().any(|slot| Rc::ptr_eq(slot, &choice.slot)), "{policy:?}");
            tried.push(choice.slot);
        }
        assert!(balance.choose(&Ask { tried: &tried, ..ask(&policy, 0) }).is_some());
    }
    // One that is up and was tried is better than one that is down.
    balance.replace(['a', 'b'], |key| *key == 'b', 0);
    let tried = [slot(&balance, &'a')];
    let choice = balance.choose(&Ask { tried: &tried, ..ask(&Policy::RoundRobin, 0) }).unwrap();
    assert_eq!((*choice.slot.key(), choice.in_panic), ('a', false));
}

#[test]
fn a_new_list_keeps_what_is_known_and_the_turn() {
    let mut balance = abc();
    connect_failed(&balance, 'b', 0);
    let (b, c) = (slot(&balance, &'b'), slot(&balance, &'c'));
    assert_eq!(picks(&mut balance, 1, 2), "ac");
    balance.replace(['x', 'b', 'a'], |_| false, 1);
    assert_eq!(picks(&mut balance, 1, 4), "axax", "b is still out, and it was the turn of a");
    // Reports about an address that is gone are passed over.
    assert!(c.connect_failed(1).is_none() && !c.answered(1));
    assert_eq!((balance.len(), balance.ejected()), (3, 1));
    balance.replace([], |_| false, 2);
    assert!(balance.choose(&ask(&Policy::RoundRobin, 2)).is_none() && balance.is_empty() && !balance.is_down());
    balance.replace(['b'], |_| false, 2);
    assert!(balance.ejected() == 0 && !Rc::ptr_eq(&b, &slot(&balance, &'b')), "what left is forgotten");
}

fn by_key(balance: &mut Balance<u16>, key: u64, now_ms: u64, slow_start_ms: u64) -> u16 {
    let ask = Ask { policy: &Policy::HashClientAddress, key, random: 0, now_ms, slow_start_ms, tried: &[] };
    *balance.choose(&ask).unwrap().slot.key()
}

#[test]
fn keys_come_back_one_by_one_while_the_share_grows() {
    let mut balance = Balance::default();
    balance.replace(0u16..4, |_| false, 0);
    let keys: Vec<u64> = (0..1_000u64).map(|n| hash::of(&n)).collect();
    let own: Vec<u64> = keys.into_iter().filter(|&key| by_key(&mut balance, key, 0, 0) == 2).collect();
    slot(&balance, &2).connect_failed(0);
    assert!(own.iter().all(|&key| by_key(&mut balance, key, 1, 0) != 2));
    slot(&balance, &2).connected(1_000);
    let mut back = Vec::new();
    for elapsed_ms in [0, 3_000, 6_000, 9_000, 10_000] {
        let now: Vec<bool> =
            own.iter().map(|&key| by_key(&mut balance, key, 1_000 + elapsed_ms, 10_000) == 2).collect();
        let share = now.iter().filter(|&&back| back).count() * 100 / own.len();
        let expected = (elapsed_ms as usize / 100).max(10);
        assert!(share.abs_diff(expected) < 12, "{share} % after {elapsed_ms} ms");
        assert!(back.iter().zip(&now).all(|(before, now)| !before || *now), "who is back stays");
        back = now;
    }
    assert!(back.iter().all(|&back| back));
}

proptest! {
    #[test]
    fn hashing_is_even_and_losing_an_address_moves_only_its_keys(
        addresses in proptest::collection::hash_set(any::<u16>(), 2..12), seed: u64, lost: prop::sample::Index,
    ) {
        let addresses: Vec<u16> = addresses.into_iter().collect();
        let mut whole = Balance::default();
        whole.replace(addresses.iter().copied(), |_| false, 0);
        let gone = addresses[lost.index(addresses.len())];
        let mut less = Balance::default();
        less.replace(addresses.iter().copied().filter(|address| *address != gone), |_| false, 0);
        let mut down = Balance::default();
        down.replace(addresses.iter().copied(), |address| *address == gone, 0);
        let keys = 500;
        let mut counts = HashMap::new();
        for n in 0..keys {
            let key = hash::of(&(seed, n));
            let before = by_key(&mut whole, key, 0, 0);
            *counts.entry(before).or_insert(0usize) += 1;
            let after = by_key(&mut less, key, 0, 0);
            if before != gone {
                prop_assert_eq!(before, after);
            }
            prop_assert_eq!(by_key(&mut down, key, 0, 0), after, "down or gone, the keys go to the same place");
        }
        // Five standard deviations and a little, so that chance alone never fails this.
        let fair = keys as f64 / addresses.len() as f64;
        for address in &addresses {
            let count = *counts.get(address).unwrap_or(&0) as f64;
            prop_assert!((count - fair).abs() < 5.5 * fair.sqrt() + 1.0, "{} of {}", count, fair);
        }
    }

    #[test]
    fn least_pending_never_takes_the_busiest(pending in proptest::collection::vec(0u32..50, 2..10), random: u64) {
        let mut balance = Balance::default();
        balance.replace(0..pending.len(), |_| false, 0);
        let _taken: Vec<_> = pending.iter().enumerate()
            .flat_map(|(index, &count)| (0..count).map(move |_| index))
            .map(|index| Taken::new(slot(&balance, &index)))
            .collect();
        let ask =
            Ask { policy: &Policy::LeastPending, key: 0, random, now_ms: 0, slow_start_ms: 0, tried: &[] };
        let chosen = *balance.choose(&ask).unwrap().slot.key();
        let most = *pending.iter().max().unwrap();
        let busiest = pending.iter().filter(|&&count| count == most).count();
        prop_assert!(pending[chosen] < most || busiest > 1);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Choose,
    ConnectFailed(usize),
    ResponseFailed(usize),
    Connected(usize),
    Answered(usize),
    Replace(Vec<usize>, Vec<usize>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || proptest::sample::subsequence(vec![0, 1, 2, 3, 4], 0..=5).prop_shuffle();
    let step = prop_oneof![
        2 => (0..BACK_OFF_MAX_MS / 10).prop_map(Step::Wait),
        6 => Just(Step::Choose),
        3 => (0..5usize).prop_map(Step::ConnectFailed),
        3 => (0..5usize).prop_map(Step::ResponseFailed),
        1 => (0..5usize).prop_map(Step::Connected),
        1 => (0..5usize).prop_map(Step::Answered),
        1 => (some(), some()).prop_map(|(keys, down)| Step::Replace(keys, down)),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What a bystander knows of an address: nothing but the reports and the choices.
#[derive(Clone, Copy, Default, Debug)]
struct Seen {
    /// Since when it is left out.
    out_since_ms: Option<u64>,
    /// When it was last chosen for a trial, since the last report about it.
    trial_ms: Option<u64>,
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::RoundRobin), Just(Policy::LeastPending), Just(Policy::HashClientAddress)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_a_bystander_sees_is_as_promised(steps in steps(), policy in policies(), slow_start_ms in 0u64..20_000) {
        let mut balance = Balance::default();
        let mut present = vec![0usize, 1, 2];
        let mut down: Vec<usize> = vec![];
        balance.replace(present.clone(), |_| false, 1_000_000);
        let mut seen = [Seen::default(); 5];
        let mut now_ms = 1_000_000;
        let mut random = 1;
        for step in steps {
            match step {
                Step::Wait(ms) => now_ms += ms,
                Step::ConnectFailed(key) if present.contains(&key) => {
                    slot(&balance, &key).connect_failed(now_ms);
                    seen[key].out_since_ms.get_or_insert(now_ms);
                    seen[key].trial_ms = None;
                }
                Step::ResponseFailed(key) if present.contains(&key) => {
                    let began = balance.response_failed(&slot(&balance, &key), now_ms, Some(2));
                    if began.is_some() {
                        seen[key].out_since_ms.get_or_insert(now_ms);
                    }
                    seen[key].trial_ms = None;
                }
                Step::Connected(key) if present.contains(&key) && slot(&balance, &key).connected(now_ms) => {
                    seen[key] = Seen::default();
                }
                Step::Answered(key) if present.contains(&key) => {
                    slot(&balance, &key).answered(now_ms);
                    seen[key] = Seen::default();
                }
                Step::Replace(keys, new_down) => {
                    balance.replace(keys.clone(), |key| new_down.contains(key), now_ms);
                    for (key, seen) in seen.iter_mut().enumerate() {
                        if !(keys.contains(&key) && present.contains(&key)) {
                            *seen = Seen::default();
                        }
                    }
                    (present, down) = (keys, new_down);
                }
                Step::Choose => {
                    random = hash::mix(random);
                    let ask = Ask { policy: &policy, key: random, random, now_ms, slow_start_ms, tried: &[] };
                    let choice = balance.choose(&ask);
                    prop_assert_eq!(choice.is_none(), present.is_empty());
                    let Some(choice) = choice else { continue };
                    let key = *choice.slot.key();
                    prop_assert!(present.contains(&key));
                    let some_up =
                        present.iter().any(|&other| seen[other].out_since_ms.is_none() && !down.contains(&other));
                    prop_assert!(!(some_up && choice.in_panic));
                    if !choice.in_panic {
                        prop_assert!(!down.contains(&key), "down, and others are not");
                        if let Some(since_ms) = seen[key].out_since_ms {
                            prop_assert!(now_ms >= since_ms + BACK_OFF_MIN_MS, "chosen within its back-off");
                            if let Some(trial_ms) = seen[key].trial_ms {
                                prop_assert!(now_ms >= trial_ms + BACK_OFF_MIN_MS, "a second trial beside the first");
                            }
                            seen[key].trial_ms = Some(now_ms);
                        }
                    }
                }
                _ => {}
            }
            let out = present.iter().filter(|&&key| seen[key].out_since_ms.is_some()).count();
            prop_assert_eq!(balance.ejected(), out);
        }
        // However bad it was, the longest back-off later every address that is not down gets its turn again.
        now_ms += BACK_OFF_MAX_MS;
        let mut up: Vec<_> = present.iter().copied().filter(|key| !down.contains(key)).collect();
        let ask = Ask { policy: &Policy::RoundRobin, key: 0, random: 0, now_ms, slow_start_ms: 0, tried: &[] };
        let mut chosen: Vec<_> = up.iter().map(|_| *balance.choose(&ask).unwrap().slot.key()).collect();
        chosen.sort_unstable();
        up.sort_unstable();
        prop_assert_eq!(chosen, up);
    }
}

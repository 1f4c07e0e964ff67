//! Messages from other threads.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::ring::{mailbox, spawn, yield_now};

/// Eight threads post in bursts and alone, to a runtime that is asleep at times and busy at others.
#[test]
fn nothing_is_lost_and_each_sender_keeps_its_order() {
    const SENDERS: usize = 8;
    const EACH: usize = 20_000;
    run(|| async {
        let (sender, receiver) = mailbox::<(usize, usize)>();
        let mut receiver = receiver.claim();
        let threads: Vec<_> = (0..SENDERS)
            .map(|name| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    let mut chance = Chance(name as u64);
                    for count in 0..EACH {
                        sender.send((name, count));
                        if chance.below(500) == 0 {
                            // Long enough for the receiver to fall asleep.
                            std::thread::sleep(Duration::from_micros(chance.below(1500)));
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; SENDERS];
        let mut chance = Chance(99);
        while next.iter().sum::<usize>() < SENDERS * EACH {
            // No time limit: its timer would wake the runtime. A lost wake-up runs into the test's deadline.
            let (name, count) = receiver.receive().await;
            assert_eq!(count, next[name], "sender {name}");
            next[name] += 1;
            match chance.below(2000) {
                0 => sleep_ms(1).await,
                1..20 => yield_now().await,
                _ => {}
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// One message at a time, the next one only after the answer: each must wake a runtime that sleeps.
#[test]
fn each_message_wakes_a_runtime_that_sleeps() {
    run(|| async {
        let (sender, receiver) = mailbox::<usize>();
        let mut receiver = receiver.claim();
        let answered = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&answered);
        let thread = std::thread::spawn(move || {
            for count in 1..=5000 {
                sender.send(count);
                let give_up = Instant::now() + Duration::from_secs(10);
                while seen.load(Ordering::Acquire) < count {
                    assert!(Instant::now() < give_up, "message {count} woke nobody");
                    std::thread::yield_now();
                }
            }
        });
        for count in 1..=5000 {
            // No timer runs: the runtime waits without a limit.
            assert_eq!(receiver.receive().await, count);
            answered.store(count, Ordering::Release);
        }
        thread.join().unwrap();
    });
}

/// A runtime that never sleeps, because tasks are always ready, sees its messages too.
#[test]
fn messages_reach_a_runtime_that_is_always_busy() {
    run(|| async {
        let stop = Rc::new(Cell::new(false));
        let stopped = Rc::clone(&stop);
        spawn(async move {
            while !stopped.get() {
                yield_now().await;
            }
        });
        let (sender, receiver) = mailbox::<u32>();
        let mut receiver = receiver.claim();
        let thread = std::thread::spawn(move || {
            for count in 0..200 {
                sender.send(count);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        for count in 0..200 {
            assert_eq!(receiver.receive().await, count);
        }
        stop.set(true);
        thread.join().unwrap();
    });
}

#[test]
fn messages_posted_before_the_receiver_was_claimed_are_there() {
    let (sender, receiver) = mailbox::<u32>();
    for count in 0..10 {
        sender.send(count);
    }
    run(move || async move {
        let mut receiver = receiver.claim();
        for count in 0..10 {
            assert_eq!(receiver.receive().await, count);
        }
        drop(sender);
    });
}

/// The runtime ends while other threads still post: they neither fail nor wait.
#[test]
fn senders_outlive_the_runtime() {
    for _ in 0..30 {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mailbox::<u64>();
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let (sender, stop) = (sender.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut sent = 0;
                    while !stop.load(Ordering::Relaxed) && sent < 1_000_000 {
                        sender.send(sent);
                        sent += 1;
                        if sent % 64 == 0 {
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        run(|| async move {
            let mut receiver = receiver.claim();
            for _ in 0..100 {
                receiver.receive().await;
            }
        });
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

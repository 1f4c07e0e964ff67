//! What happens at the ring's limits: buffers run out, the submission queue is full, a reader stalls.

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;

use super::*;
use crate::ring::driver::BACKLOG_BYTES;
use crate::ring::{held, spawn, timeout};

/// A sender of 100 MB at a socket that nobody reads: the socket's own queue stays within its bound, the kernel's window
/// holds the rest back, and every byte is there once the reader comes.
#[test]
fn a_stalled_reader_holds_its_sender_back() {
    const TOTAL: u64 = 100_000_000;
    for mode in [Receive::Single, Receive::Stream] {
        run_with(
            small_config(),
            |_| {},
            move || async move {
                let (socket, mut peer) = pair();
                SockRef::from(&socket).set_recv_buffer_size(256 * 1024).unwrap();
                socket.set_receive(mode);
                // The reader reads once, so that a receive is armed, and then stalls.
                peer.write_all(&[pattern(9, 0)]).unwrap();
                expect_stream(&socket, 9, 0, 1).await;
                assert!(timeout(Duration::from_millis(5), socket.receive(|bytes| bytes.len())).await.is_err());
                let sent = Arc::new(AtomicU64::new(1));
                let counter = Arc::clone(&sent);
                let sender = std::thread::spawn(move || {
                    peer.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
                    while counter.load(Ordering::Relaxed) < TOTAL {
                        let at = counter.load(Ordering::Relaxed);
                        let bytes = stream_bytes(9, at, (TOTAL - at).min(64 * 1024) as usize);
                        peer.write_all(&bytes).unwrap();
                        counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    }
                });
                // Until the sender has not moved for a while.
                let mut before = 0;
                while before != sent.load(Ordering::Relaxed) {
                    before = sent.load(Ordering::Relaxed);
                    sleep_ms(100).await;
                }
                assert!(before < 30_000_000, "{before} bytes went somewhere");
                // All that was kept comes with the first receive. One turn may bring every small buffer on top of the bound.
                let config = small_config();
                let bound = BACKLOG_BYTES + usize::from(config.small_buffers) * config.small_bytes;
                let first = socket.receive(|bytes| check(9, 1, bytes)).await.unwrap().unwrap();
                assert!(first <= bound as u64, "{first} bytes were kept, at most {bound} may be");
                expect_stream(&socket, 9, 1 + first, TOTAL - 1 - first).await;
                assert_eq!(socket.receive(|bytes| bytes.len()).await.unwrap(), None);
                sender.join().unwrap();
            },
        );
    }
}

/// Two small buffers for sixty connections: receives starve, are counted, and lose nothing.
#[test]
fn receives_that_find_no_buffer_are_armed_again() {
    for mode in [Receive::Single, Receive::Stream] {
        let starved = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&starved);
        let config = RingConfig { small_buffers: 2, small_bytes: 512, large_buffers: 2, ..RingConfig::default() };
        let on_turn = move |turn: Turn| {
            counter.fetch_add(turn.starved_receives, Ordering::Relaxed);
        };
        run_with(config, on_turn, move || async move {
            const EACH: u64 = 100_000;
            let done = Rc::new(Cell::new(0));
            for seed in 0..60 {
                let (ours, theirs) = ring_pair();
                spawn(async move {
                    let mut at = 0;
                    while at < EACH {
                        let bytes = stream_bytes(seed, at, 3_000.min((EACH - at) as usize));
                        at += bytes.len() as u64;
                        theirs.send(bytes).await.0.unwrap();
                    }
                });
                let done = Rc::clone(&done);
                spawn(async move {
                    ours.set_receive(mode);
                    expect_stream(&ours, seed, 0, EACH).await;
                    assert_eq!(ours.receive(|bytes| bytes.len()).await.unwrap(), None);
                    done.set(done.get() + 1);
                });
            }
            let give_up = Instant::now() + Duration::from_secs(60);
            while done.get() < 60 && Instant::now() < give_up {
                sleep_ms(5).await;
            }
            assert_eq!(done.get(), 60);
        });
        assert!(starved.load(Ordering::Relaxed) > 0, "two buffers were never enough");
    }
}

/// Eight submission entries and hundreds of operations in one turn.
#[test]
fn a_full_submission_queue_loses_no_operation() {
    let config = RingConfig { submission_entries: 8, ..small_config() };
    run_with(
        config,
        |_| {},
        || async {
            let start = held();
            let mut pairs: Vec<_> = (0..200).map(|_| ring_pair()).collect();
            let done = Rc::new(Cell::new(0));
            for round in 0..5u64 {
                done.set(0);
                for (ours, theirs) in std::mem::take(&mut pairs) {
                    let (ours, theirs) = (Rc::new(ours), Rc::new(theirs));
                    for (from, to) in [(Rc::clone(&ours), Rc::clone(&theirs)), (theirs, ours)] {
                        let done = Rc::clone(&done);
                        let sender = Rc::clone(&from);
                        spawn(async move {
                            sender.send(stream_bytes(round, 0, 2000)).await.0.unwrap();
                        });
                        spawn(async move {
                            let _alive = from;
                            expect_stream(&to, round, 0, 2000).await;
                            done.set(done.get() + 1);
                        });
                    }
                }
                assert!(eventually(|| done.get() == 400).await, "{} of 400 in round {round}", done.get());
                // All of them closed and cancelled in one turn; then anew.
                pairs = (0..200).map(|_| ring_pair()).collect();
            }
            drop(pairs);
            assert!(eventually(|| held().operations == start.operations).await);
        },
    );
}

/// No operation of the ring is of the kind that needs a kernel thread.
#[test]
fn no_kernel_worker_thread_appears_under_load() {
    run(|| async {
        let listener = listen();
        let address = listener.local_addr().unwrap();
        let listener = crate::ring::Listener::new(listener);
        spawn(async move {
            loop {
                let socket = Socket::from(listener.accept().await.unwrap());
                spawn(async move {
                    socket.set_receive(Receive::Stream);
                    while let Ok(Some(bytes)) = socket.receive(|bytes| bytes.to_vec()).await {
                        let half = bytes.len() / 2;
                        let parts = vec![bytes[..half].to_vec(), bytes[half..].to_vec()];
                        if socket.send_vectored(parts).await.0.is_err() {
                            return;
                        }
                    }
                    let _ = socket.shutdown_write();
                });
            }
        });
        let done = Rc::new(Cell::new(0));
        for seed in 0..50u64 {
            let done = Rc::clone(&done);
            spawn(async move {
                for _ in 0..10 {
                    let socket = Rc::new(Socket::connect(address.into()).await.unwrap());
                    socket.set_receive(Receive::Stream);
                    let sender = Rc::clone(&socket);
                    let count = 1 + mix(seed) % 200_000;
                    spawn(async move {
                        sender.send(stream_bytes(seed, 0, count as usize)).await.0.unwrap();
                        assert!(sender.ready(libc::POLLOUT).await.is_ok());
                        sender.shutdown_write().unwrap();
                    });
                    expect_stream(&socket, seed, 0, count).await;
                    assert_eq!(kernel_workers(), 0);
                }
                done.set(done.get() + 1);
            });
        }
        let give_up = Instant::now() + Duration::from_secs(60);
        while done.get() < 50 && Instant::now() < give_up {
            assert_eq!(kernel_workers(), 0);
            sleep_ms(2).await;
        }
        assert_eq!(done.get(), 50);
    });
}

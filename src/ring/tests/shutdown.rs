//! A runtime ends, in whatever state its tasks and sockets are, and leaves nothing in the process.

use std::time::Instant;

use super::*;
use crate::ring::{Listener, spawn, timeout, yield_now};

/// Operations of every kind in flight when the main future ends.
#[test]
fn a_runtime_ends_at_once_with_operations_in_flight() {
    bounded_alone(|| {
        let fds = open_fds();
        for round in 0..50 {
            let config = RingConfig { submission_entries: if round % 2 == 0 { 8 } else { 256 }, ..small_config() };
            let started = Instant::now();
            let mut peers = Vec::new();
            runtime(&config).run(
                async {
                    let listener = Listener::new(listen());
                    spawn(async move {
                        let _ = listener.accept().await;
                    });
                    for each in 0..20 {
                        let (ours, peer) = pair();
                        peers.push(peer);
                        spawn(async move {
                            match each % 4 {
                                0 => drop(ours.receive(|_| ()).await),
                                1 => drop(ours.send(vec![1; 16 << 20]).await),
                                2 => drop(ours.ready(libc::POLLPRI).await),
                                _ => {
                                    ours.set_receive(Receive::Stream);
                                    while let Ok(Some(())) = ours.receive(|_| ()).await {}
                                }
                            }
                        });
                    }
                    if round % 3 == 0 {
                        yield_now().await;
                    } else {
                        sleep_ms(2).await;
                    }
                },
                |_| {},
            );
            assert!(started.elapsed() < Duration::from_secs(1), "nothing had to be waited for");
            drop(peers);
        }
        assert_eq!(open_fds(), fds);
    });
}

/// Sockets that main gives out of the runtime, idle or with a receive armed: the runtime does not wait for them, and they
/// close when they are dropped.
#[test]
fn a_socket_may_outlive_its_runtime() {
    bounded_alone(|| {
        let fds = open_fds();
        for armed in [false, true] {
            let started = Instant::now();
            let (kept, peer, listener) = runtime(&small_config()).run(
                async {
                    let (socket, peer) = pair();
                    let listener = Listener::new(listen());
                    if armed {
                        assert!(timeout(Duration::from_millis(2), socket.receive(|_| ())).await.is_err());
                        assert!(timeout(Duration::from_millis(2), listener.accept()).await.is_err());
                    } else {
                        // Not even that: the slots exist, nothing is in flight.
                        socket.stop_receiving();
                    }
                    (socket, peer, listener)
                },
                |_| {},
            );
            assert!(started.elapsed() < Duration::from_secs(1), "armed {armed}: {:?}", started.elapsed());
            drop((kept, peer, listener));
        }
        assert_eq!(open_fds(), fds);
    });
}

/// Runtimes made one after the other on one thread, run and not run. A registered ring that is not given back would hold
/// its kernel memory until the thread ends, and after sixteen of them no further one could register.
#[test]
fn runtimes_that_are_made_and_dropped_leave_nothing() {
    bounded_alone(|| {
        let fds = open_fds();
        let names = crate::ring::mailbox::runtimes();
        for round in 0..40 {
            let runtime = runtime(&small_config());
            assert!(runtime.has_registered_ring(), "round {round}");
            if round % 2 == 0 {
                runtime.run(async { yield_now().await }, |_| {});
            }
        }
        assert_eq!(open_fds(), fds);
        // Other tests start and end runtimes at the same time; forty leaked ones would still show.
        assert!(crate::ring::mailbox::runtimes() < names + 30);
    });
}

/// The main future ends by a panic: the runtime is left in order, and the thread may make another one.
#[test]
fn a_panic_leaves_the_thread_usable() {
    bounded_alone(|| {
        let fds = open_fds();
        for _ in 0..3 {
            let outcome = std::panic::catch_unwind(|| {
                runtime(&small_config()).run(
                    async {
                        let (ours, _peer) = pair();
                        spawn(async move {
                            drop(ours.receive(|_| ()).await);
                        });
                        sleep_ms(2).await;
                        std::panic::resume_unwind(Box::new("on purpose"));
                    },
                    |_| {},
                );
            });
            assert!(outcome.is_err());
        }
        assert_eq!(open_fds(), fds);
    });
}

//! Several runtimes, one a thread, and wakers that cross between them.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::task::{Poll, Waker};

use super::*;
use crate::ring::{Listener, mailbox, spawn};

/// Two runtimes play ping-pong through mailboxes: each wakes the other, thousands of times.
#[test]
fn runtimes_wake_each_other() {
    const ROUNDS: usize = 5000;
    bounded(|| {
        let (to_right, right) = mailbox::<usize>();
        let (to_left, left) = mailbox::<usize>();
        let other = std::thread::spawn(move || {
            runtime(&small_config()).run(
                async move {
                    let mut right = right.claim();
                    for round in 0..ROUNDS {
                        assert_eq!(right.receive().await, round);
                        to_left.send(round);
                    }
                },
                |_| {},
            );
        });
        runtime(&small_config()).run(
            async move {
                let mut left = left.claim();
                for round in 0..ROUNDS {
                    to_right.send(round);
                    assert_eq!(left.receive().await, round);
                }
            },
            |_| {},
        );
        other.join().unwrap();
    });
}

/// A condition set by a thread that then wakes: whatever the interleaving, the task sees it. The threads race with the
/// runtime's falling asleep and with each other.
#[test]
fn a_wake_from_a_thread_is_never_lost() {
    run(|| async {
        let (sender, requests) = sync_channel::<(Arc<AtomicBool>, Waker)>(64);
        let requests = Arc::new(std::sync::Mutex::new(requests));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let requests = Arc::clone(&requests);
                std::thread::spawn(move || {
                    let mut chance = Chance(5);
                    loop {
                        let request = requests.lock().unwrap().recv();
                        let Ok((flag, waker)) = request else { return };
                        for _ in 0..chance.below(300) {
                            std::hint::spin_loop();
                        }
                        flag.store(true, Ordering::Release);
                        waker.wake();
                    }
                })
            })
            .collect();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..16 {
            let (sender, done) = (sender.clone(), Arc::clone(&done));
            spawn(async move {
                for _ in 0..2000 {
                    let flag = Arc::new(AtomicBool::new(false));
                    let mut asked = false;
                    poll_fn(|cx| {
                        if flag.load(Ordering::Acquire) {
                            return Poll::Ready(());
                        }
                        if !std::mem::replace(&mut asked, true) {
                            sender.send((Arc::clone(&flag), cx.waker().clone())).unwrap();
                        }
                        Poll::Pending
                    })
                    .await;
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        drop(sender);
        // The threads end when the last task has ended. No timer but this slow one ends the runtime's sleep.
        let give_up = Instant::now() + Duration::from_secs(60);
        while done.load(Ordering::Relaxed) < 16 && Instant::now() < give_up {
            sleep_ms(500).await;
        }
        assert_eq!(done.load(Ordering::Relaxed), 16, "a task sleeps for ever");
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Listeners on one port, a runtime each, as workers have them: every connection is served by one of them.
#[test]
fn runtimes_share_a_port() {
    bounded(|| {
        let bind = |address: SocketAddr| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(128).unwrap();
            std::net::TcpListener::from(socket)
        };
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = first.local_addr().unwrap();
        let mut listeners = vec![first];
        listeners.push(bind(address));
        listeners.push(bind(address));
        let mut stops = Vec::new();
        let workers: Vec<_> = listeners
            .into_iter()
            .map(|listener| {
                let (stop, stopped) = mailbox::<()>();
                stops.push(stop);
                std::thread::spawn(move || {
                    runtime(&small_config()).run(
                        async move {
                            spawn(async move {
                                let listener = Listener::new(listener);
                                loop {
                                    let socket = Socket::from(listener.accept().await.unwrap());
                                    spawn(async move {
                                        while let Ok(Some(bytes)) = socket.receive(|bytes| bytes.to_vec()).await {
                                            let _ = socket.send(bytes).await;
                                        }
                                    });
                                }
                            });
                            stopped.claim().receive().await;
                        },
                        |_| {},
                    );
                })
            })
            .collect();
        runtime(&small_config()).run(
            async {
                for seed in 0..200 {
                    let socket = Socket::connect(address.into()).await.unwrap();
                    socket.send(stream_bytes(seed, 0, 500)).await.0.unwrap();
                    expect_stream(&socket, seed, 0, 500).await;
                }
            },
            |_| {},
        );
        stops.iter().for_each(|stop| stop.send(()));
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

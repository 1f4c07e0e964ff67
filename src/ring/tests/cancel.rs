//! Futures dropped at every point where they wait: nothing leaks, and no byte is lost.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use super::*;
use crate::ring::{Held, Listener, heavy, held, spawn, timeout, yield_now};

/// Polls `future` at most `polls` times, then drops it. Now and then it is polled again without having been woken.
async fn polled<F: Future>(polls: u64, impatient: bool, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => {
                if impatient {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
        }
    })
    .await
}

/// Drops `future` after some polls or after some time, or lets it end.
async fn maybe_dropped<F: Future>(chance: &Rc<RefChance>, future: F) -> Option<F::Output> {
    let polls = match chance.below(4) {
        0 => 1 + chance.below(3),
        _ => 1000,
    };
    let impatient = chance.below(4) == 0 && polls < 1000;
    let limit = Duration::from_millis(chance.below(5));
    timeout(limit, polled(polls, impatient, future)).await.ok().flatten()
}

/// As [`maybe_dropped`], with time to pass after a drop at times.
async fn perhaps<F: Future>(chance: &Rc<RefChance>, future: F) -> Option<F::Output> {
    let outcome = maybe_dropped(chance, future).await;
    // What was started goes to the kernel before the next look, or in the same breath as it.
    if outcome.is_none() && chance.below(3) > 0 {
        sleep_ms(chance.below(3)).await;
    }
    outcome
}

/// Chance that the tasks of a test share.
struct RefChance(Cell<u64>);

impl RefChance {
    fn below(&self, limit: u64) -> u64 {
        let mut chance = Chance(self.0.get());
        let value = chance.below(limit);
        self.0.set(chance.0);
        value
    }
}

/// How a connection of the random test ends.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// Everything is sent and read.
    Whole,
    /// The client goes away at a random point.
    ClientLeaves,
    /// The server does.
    ServerLeaves,
}

/// The server's side: reads a stream whose seed and length come first, dropping receives all the time.
async fn serve(socket: Socket, chance: Rc<RefChance>, whole: Rc<Cell<u64>>) {
    let leaves_after = if chance.below(4) == 0 { chance.below(20_000) } else { u64::MAX };
    let mut header = Vec::new();
    let mut at = 0;
    loop {
        if chance.below(3) == 0 {
            socket.set_receive(if chance.below(3) == 0 { Receive::Single } else { Receive::Stream });
        }
        if chance.below(20) == 0 {
            socket.stop_receiving();
        }
        if chance.below(10) == 0 {
            perhaps(&chance, heavy()).await;
        }
        if chance.below(10) == 0 {
            perhaps(&chance, socket.ready(libc::POLLIN | libc::POLLRDHUP)).await;
        }
        let taken = perhaps(
            &chance,
            socket.receive(|bytes| {
                let mut rest: &[u8] = bytes;
                while header.len() < 8 && !rest.is_empty() {
                    header.push(rest[0]);
                    rest = &rest[1..];
                }
                if let Ok(seed) = header.as_slice().try_into() {
                    at += check(u64::from_le_bytes(seed), at, rest);
                }
            }),
        )
        .await;
        match taken {
            None | Some(Ok(Some(()))) if at > leaves_after => return,
            None | Some(Ok(Some(()))) => {}
            Some(Ok(None)) => break,
            Some(Err(_)) => return,
        }
    }
    // An answer of eight bytes says how many there were.
    if socket.send(at.to_le_bytes().to_vec()).await.0.is_ok() {
        whole.set(whole.get() + 1);
    }
}

/// The client's side. Returns whether the whole stream arrived.
async fn call(address: std::net::SocketAddr, seed: u64, chance: Rc<RefChance>) -> Ending {
    let ending = match chance.below(4) {
        0 => Ending::ClientLeaves,
        _ => Ending::Whole,
    };
    // Dropped attempts may have reached the server, which then sees a connection that ends. Not more than a few of them, or
    // a hundred clients are a SYN flood.
    let mut socket = None;
    for _ in 0..chance.below(3) {
        socket = perhaps(&chance, Socket::connect(address.into())).await;
        if socket.is_some() {
            break;
        }
    }
    let socket = match socket {
        Some(socket) => socket,
        None => Socket::connect(address.into()).await,
    };
    let socket = socket.expect("connects");
    let total = chance.below(60_000);
    let mut at = 0;
    let mut first = Some(seed.to_le_bytes().to_vec());
    while at < total || first.is_some() {
        let piece = (1 + chance.below(20_000)).min(total - at);
        let bytes = stream_bytes(seed, at, piece as usize);
        at += piece;
        let mut parts = vec![bytes];
        parts.splice(0..0, first.take());
        if ending == Ending::ClientLeaves && chance.below(3) == 0 {
            // A send that is dropped leaves the stream broken: the socket goes with it.
            perhaps(&chance, socket.send_vectored(parts)).await;
            if chance.below(2) == 0 {
                socket.reset_on_close();
            }
            return ending;
        }
        for part in parts {
            if socket.send(part).await.0.is_err() {
                return Ending::ServerLeaves;
            }
        }
        if chance.below(4) == 0 {
            perhaps(&chance, sleep_ms(2)).await;
        }
    }
    socket.shutdown_write().unwrap_or_default();
    let mut answer = Vec::new();
    loop {
        match perhaps(&chance, socket.receive(|bytes| answer.extend_from_slice(bytes))).await {
            None | Some(Ok(Some(()))) => {}
            Some(Ok(None)) => break,
            Some(Err(_)) => return Ending::ServerLeaves,
        }
    }
    if answer.is_empty() {
        return Ending::ServerLeaves;
    }
    assert_eq!(answer, total.to_le_bytes(), "bytes of stream {seed} that arrived");
    Ending::Whole
}

/// Thousands of connections whose futures are dropped at random polls. Afterwards operations, tasks, timers, descriptors
/// and buffers are what they were before.
#[test]
fn a_random_dropper_leaves_nothing_behind_and_loses_nothing() {
    alone(|| {
        drop_at_random(small_config(), 3000, 100);
        // With few entries the kernel runs in the middle of turns, and completions come for what was just dropped.
        drop_at_random(RingConfig { submission_entries: 8, ..small_config() }, 1500, 100);
    });
}

fn drop_at_random(config: RingConfig, connections: u64, at_once: u64) {
    let starved = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&starved);
    let on_turn = move |turn: Turn| {
        counter.fetch_add(turn.starved_receives, Ordering::Relaxed);
    };
    let small_buffers = config.small_buffers;
    run_with(config, on_turn, move || async move {
        let (fds, start) = (open_fds(), held());
        let chance = Rc::new(RefChance(Cell::new(0x5eed)));
        let served_whole = Rc::new(Cell::new(0));
        // An address of its own for each run: closed connections keep their ports for a minute, and a run has thousands.
        let host = std::process::id().to_be_bytes();
        let bind = std::net::SocketAddr::from(([127, host[2] | 1, host[3], 1], 0));
        let listener = std::net::TcpListener::bind(bind).unwrap();
        let address = listener.local_addr().unwrap();
        let finished = Rc::new(Cell::new(false));
        {
            let (chance, whole, finished) = (Rc::clone(&chance), Rc::clone(&served_whole), Rc::clone(&finished));
            spawn(async move {
                let listener = Listener::new(listener);
                while !finished.get() {
                    match maybe_dropped(&chance, listener.accept()).await {
                        Some(Ok(fd)) if chance.below(50) == 0 => drop(Socket::from(fd)),
                        Some(Ok(fd)) => spawn(serve(Socket::from(fd), Rc::clone(&chance), Rc::clone(&whole))),
                        Some(Err(error)) => panic!("accept: {error}"),
                        None if chance.below(10) == 0 => listener.pause(),
                        None => yield_now().await,
                    }
                }
            });
        }
        let (started, ended, whole) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for _ in 0..at_once {
            let (chance, started, ended) = (Rc::clone(&chance), Rc::clone(&started), Rc::clone(&ended));
            let whole = Rc::clone(&whole);
            spawn(async move {
                while started.get() < connections {
                    let seed = started.get();
                    started.set(seed + 1);
                    if call(address, seed, Rc::clone(&chance)).await == Ending::Whole {
                        whole.set(whole.get() + 1);
                    }
                    ended.set(ended.get() + 1);
                }
            });
        }
        let give_up = Instant::now() + Duration::from_secs(100);
        while ended.get() < connections && Instant::now() < give_up {
            sleep_ms(10).await;
        }
        assert_eq!(ended.get(), connections, "connections that ended");
        assert!(whole.get() > connections / 4, "{} went through whole", whole.get());
        finished.set(true);
        let back = |held: Held| held.operations == start.operations && held.tasks == start.tasks && held.timers <= 1;
        assert!(eventually(|| back(held())).await, "{start:?} became {:?}", held());
        assert!(eventually(|| open_fds() == fds).await, "{fds} descriptors became {}", open_fds());
        assert_eq!(kernel_workers(), 0);

        every_buffer_is_there(small_buffers, &starved).await;
    });
}

/// As many sockets as there are small buffers get a byte within one turn: if a buffer were missing, one would starve.
async fn every_buffer_is_there(small_buffers: u16, starved: &AtomicU64) {
    let mut pairs: Vec<_> = (0..small_buffers).map(|_| pair()).collect();
    for (ours, _) in &pairs {
        ours.set_receive(Receive::Stream);
        assert!(polled(1, false, ours.receive(|_| ())).await.is_none());
    }
    sleep_ms(5).await;
    for (_, peer) in &mut pairs {
        peer.write_all(b"x").unwrap();
    }
    let before = starved.load(Ordering::Relaxed);
    let unread = Rc::new(Cell::new(pairs.len()));
    for (ours, peer) in pairs {
        let unread = Rc::clone(&unread);
        spawn(async move {
            assert_eq!(ours.receive(|bytes| bytes.len()).await.unwrap(), Some(1));
            unread.set(unread.get() - 1);
            drop(peer);
        });
    }
    assert!(eventually(|| unread.get() == 0).await);
    yield_now().await;
    sleep_ms(5).await;
    assert_eq!(starved.load(Ordering::Relaxed), before, "a buffer never came back");
}

/// The byte stream goes on where the dropped receive left it, in both modes and through the large buffers.
#[test]
fn bytes_that_arrive_after_a_dropped_receive_are_read_by_the_next() {
    run(|| async {
        for mode in [Receive::Single, Receive::Stream] {
            const TOTAL: u64 = 4_000_000;
            let (socket, mut peer) = pair();
            socket.set_receive(mode);
            let writer = std::thread::spawn(move || {
                let mut chance = Chance(51);
                let mut at = 0;
                while at < TOTAL {
                    let piece = (1 + chance.below(100_000)).min(TOTAL - at);
                    peer.write_all(&stream_bytes(51, at, piece as usize)).unwrap();
                    at += piece;
                    if chance.below(3) == 0 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            let chance = Rc::new(RefChance(Cell::new(52)));
            let at = Cell::new(0);
            while at.get() < TOTAL {
                // Armed and dropped at once, in the same turn, a turn later, or kept.
                perhaps(&chance, socket.receive(|bytes| at.set(at.get() + check(51, at.get(), bytes)))).await;
                if chance.below(10) == 0 {
                    sleep_ms(1).await;
                }
            }
            assert_eq!(at.get(), TOTAL);
            writer.join().unwrap();
        }
    });
}

/// A heavy waiter, a sleep and a limit dropped at any poll leave the runtime as it was.
#[test]
fn dropped_waits_leave_no_task_and_no_timer() {
    run(|| async {
        let chance = Rc::new(RefChance(Cell::new(61)));
        let before = held();
        let running = Rc::new(Cell::new(0));
        for _ in 0..2000 {
            running.set(running.get() + 1);
            let (chance, running) = (Rc::clone(&chance), Rc::clone(&running));
            spawn(async move {
                match chance.below(3) {
                    0 => drop(perhaps(&chance, heavy()).await),
                    1 => drop(perhaps(&chance, sleep_ms(1)).await),
                    _ => drop(perhaps(&chance, timeout(Duration::from_millis(1), std::future::pending::<()>())).await),
                }
                running.set(running.get() - 1);
            });
        }
        assert!(eventually(|| running.get() == 0).await);
        assert_eq!(held(), before);
    });
}

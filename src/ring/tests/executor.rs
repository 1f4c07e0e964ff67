//! Tasks, wakers and the turn: who is polled, when, and in which order.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::Write;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender as ThreadSender;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;
use crate::ring::executor::{HEAVY_BUDGET_US, POLLS_PER_TURN};
use crate::ring::{Signal, heavy, held, spawn, timeout, yield_now};

// --- wakers ---------------------------------------------------------------------------------------------------------

/// What one task of a generated program does next.
#[derive(Clone, Debug)]
enum Step {
    /// Hands a token to a task and wakes it.
    Give(usize),
    /// The same from another thread.
    GiveFromThread(usize),
    /// Waits for a token.
    Take,
    Yield,
    Sleep,
    Heavy,
    /// Starts a task that gives a token.
    SpawnGiver(usize),
    /// Wakes a task without a reason.
    WakeIdly(usize),
}

fn step(tasks: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..tasks).prop_map(Step::Give),
        3 => (0..tasks).prop_map(Step::GiveFromThread),
        4 => Just(Step::Take),
        2 => Just(Step::Yield),
        1 => Just(Step::Sleep),
        1 => Just(Step::Heavy),
        2 => (0..tasks).prop_map(Step::SpawnGiver),
        1 => (0..tasks).prop_map(Step::WakeIdly),
    ]
}

/// What the tasks of a generated program share: tokens by task, and who waits for them.
struct World {
    tokens: Vec<Arc<AtomicUsize>>,
    wakers: RefCell<Vec<Option<Waker>>>,
    thread: ThreadSender<(Arc<AtomicUsize>, Option<Waker>)>,
    finished: Cell<usize>,
}

impl World {
    fn give(&self, to: usize) {
        self.tokens[to].fetch_add(1, Ordering::SeqCst);
        self.wake(to);
    }

    fn wake(&self, task: usize) {
        if let Some(waker) = &self.wakers.borrow()[task] {
            waker.wake_by_ref();
        }
    }

    async fn take(&self, task: usize) {
        poll_fn(|cx| {
            self.wakers.borrow_mut()[task] = Some(cx.waker().clone());
            let taken =
                self.tokens[task].fetch_update(Ordering::SeqCst, Ordering::SeqCst, |tokens| tokens.checked_sub(1));
            if taken.is_ok() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

async fn play(world: Rc<World>, me: usize, steps: Vec<Step>) {
    poll_fn(|cx| {
        world.wakers.borrow_mut()[me] = Some(cx.waker().clone());
        Poll::Ready(())
    })
    .await;
    for step in steps {
        match step {
            Step::Give(to) => world.give(to),
            Step::GiveFromThread(to) => {
                let waker = world.wakers.borrow()[to].clone();
                world.thread.send((Arc::clone(&world.tokens[to]), waker)).unwrap();
            }
            Step::Take => world.take(me).await,
            Step::Yield => yield_now().await,
            Step::Sleep => sleep_ms(1).await,
            Step::Heavy => heavy().await,
            Step::SpawnGiver(to) => {
                let world = Rc::clone(&world);
                spawn(async move {
                    yield_now().await;
                    world.give(to);
                });
            }
            Step::WakeIdly(task) => world.wake(task),
        }
    }
    world.finished.set(world.finished.get() + 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whoever gets a token goes on: from its own task, from other tasks, from tasks started in a poll, from threads.
    #[test]
    fn no_wake_up_is_lost(programs in prop::collection::vec(prop::collection::vec(step(6), 0..25), 6)) {
        run(move || async move {
            let (thread, requests) = channel::<(Arc<AtomicUsize>, Option<Waker>)>();
            let helper = std::thread::spawn(move || {
                for (tokens, waker) in requests {
                    tokens.fetch_add(1, Ordering::SeqCst);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
            });
            let tasks = programs.len();
            let world = Rc::new(World {
                tokens: (0..tasks).map(|_| Arc::default()).collect(),
                wakers: RefCell::new(vec![None; tasks]),
                thread,
                finished: Cell::new(0),
            });
            // A program may take more than the others give: the missing tokens are given at the start, one by one.
            let mut balance = vec![0isize; tasks];
            for (me, program) in programs.iter().enumerate() {
                balance[me] -= program.iter().filter(|step| matches!(step, Step::Take)).count() as isize;
            }
            for (me, program) in programs.into_iter().enumerate() {
                spawn(play(Rc::clone(&world), me, program));
            }
            for (me, balance) in balance.into_iter().enumerate() {
                for _ in balance..0 {
                    yield_now().await;
                    world.give(me);
                }
            }
            let gave_up = !eventually(|| world.finished.get() == tasks).await;
            assert!(!gave_up, "{} of {tasks} tasks ended", world.finished.get());
            drop(world);
            // Spawned givers hold the world until they ran; the helper ends when the last of them has.
            assert!(eventually(|| helper.is_finished()).await);
            assert_eq!(held().tasks, 1, "only the main future's stand-in");
        });
    }
}

/// Ends when told; counts how often it was polled.
struct Counted {
    polls: Rc<Cell<usize>>,
    end: Rc<Cell<bool>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Future for Counted {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.polls.set(self.polls.get() + 1);
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        if self.end.get() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The waker of a task that ended wakes nobody, also when another task stands in its place.
#[test]
fn a_stale_waker_wakes_nobody() {
    run(|| async {
        let start = |polls: &Rc<Cell<usize>>| {
            let counted = Counted { polls: Rc::clone(polls), end: Rc::default(), waker: Rc::default() };
            let (end, waker) = (Rc::clone(&counted.end), Rc::clone(&counted.waker));
            spawn(counted);
            (end, waker)
        };
        let mut stale = Vec::new();
        for _ in 0..50 {
            let polls = Rc::default();
            let (end, waker) = start(&polls);
            yield_now().await;
            let waker = waker.borrow().clone().expect("polled");
            end.set(true);
            waker.wake_by_ref();
            yield_now().await;
            assert_eq!(polls.get(), 2);
            stale.push(waker);
        }
        assert_eq!(held().tasks, 1);
        // One new task, in the place all of them had.
        let polls = Rc::default();
        let (_end, waker) = start(&polls);
        yield_now().await;
        let fresh = waker.borrow().clone().unwrap();
        assert!(!stale.iter().any(|stale| stale.will_wake(&fresh)));
        for waker in &stale {
            waker.wake_by_ref();
        }
        let from_thread = stale.clone();
        std::thread::spawn(move || from_thread.into_iter().for_each(Waker::wake)).join().unwrap();
        sleep_ms(20).await;
        assert_eq!(polls.get(), 1, "polled once at its start and never since");
        fresh.wake();
        yield_now().await;
        assert_eq!(polls.get(), 2);
    });
}

/// Wakers outlive their runtime, on any thread.
#[test]
fn a_waker_may_outlive_its_runtime() {
    let waker = run(|| poll_fn(|cx| Poll::Ready(cx.waker().clone())));
    waker.wake_by_ref();
    std::thread::spawn(move || waker.wake()).join().unwrap();
    run(|| sleep_ms(1));
}

#[test]
fn a_task_woken_many_times_is_polled_once() {
    run(|| async {
        let counted = Counted { polls: Rc::default(), end: Rc::default(), waker: Rc::default() };
        let (polls, waker) = (Rc::clone(&counted.polls), Rc::clone(&counted.waker));
        spawn(counted);
        yield_now().await;
        for _ in 0..100 {
            waker.borrow().as_ref().unwrap().wake_by_ref();
        }
        sleep_ms(5).await;
        assert_eq!(polls.get(), 2);
    });
}

/// What a task owns is dropped when it ends or when the runtime ends, and dropping may wake and spawn.
#[test]
fn tasks_that_still_run_are_dropped_with_the_runtime() {
    struct OnDrop(Arc<AtomicUsize>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
            let again = Arc::clone(&self.0);
            spawn(async move {
                again.fetch_add(1000, Ordering::SeqCst);
            });
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&dropped);
    run(move || async move {
        for _ in 0..10 {
            let owned = OnDrop(Arc::clone(&counter));
            spawn(async move {
                let _owned = owned;
                std::future::pending::<()>().await;
            });
        }
        yield_now().await;
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 10, "each dropped once, what they spawned never ran");
}

/// A value set once reaches everyone who waits, and everyone who asks later.
#[test]
fn a_signal_wakes_all_who_wait() {
    run(|| async {
        let signal = Rc::new(Signal::default());
        let seen = Rc::new(Cell::new(0));
        for _ in 0..10 {
            let (signal, seen) = (Rc::clone(&signal), Rc::clone(&seen));
            spawn(async move {
                assert_eq!(signal.wait().await, 7);
                seen.set(seen.get() + 1);
            });
        }
        yield_now().await;
        assert_eq!((signal.get(), seen.get()), (None, 0));
        signal.set(7);
        signal.set(8);
        yield_now().await;
        yield_now().await;
        assert_eq!(seen.get(), 10);
        assert_eq!((signal.get(), signal.wait().await), (Some(7), 7));
    });
}

// --- fairness -------------------------------------------------------------------------------------------------------

#[test]
fn tasks_that_yield_take_turns() {
    run(|| async {
        let order = Rc::new(RefCell::new(Vec::new()));
        for name in 0..3 {
            let order = Rc::clone(&order);
            spawn(async move {
                for _ in 0..100 {
                    order.borrow_mut().push(name);
                    yield_now().await;
                }
            });
        }
        sleep_ms(5).await;
        let order = order.borrow();
        assert_eq!(order.len(), 300);
        for round in order.chunks(3) {
            assert_eq!(round, [0, 1, 2]);
        }
    });
}

/// Tasks that wake each other without end do not keep completions and timers waiting; nor does the main future.
#[test]
fn busy_tasks_do_not_starve_io() {
    let polls = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (counter, seen) = (Arc::clone(&polls), Arc::clone(&most));
    let on_turn = move |_| {
        seen.fetch_max(counter.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    };
    run_with(RingConfig::default(), on_turn, move || async move {
        for _ in 0..3 {
            let polls = Arc::clone(&polls);
            spawn(async move {
                loop {
                    polls.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            });
        }
        let (ours, mut peer) = pair();
        for round in 0..20u8 {
            peer.write_all(&[round]).unwrap();
            let got = timeout(Duration::from_secs(5), ours.receive(|bytes| bytes.to_vec())).await;
            assert_eq!(got.unwrap().unwrap(), Some(vec![round]));
        }
        sleep_ms(2).await;
    });
    // A turn polls ready tasks up to the limit, once more after the main future.
    assert!(most.load(Ordering::Relaxed) <= 2 * POLLS_PER_TURN, "{most:?} polls in one turn");
}

/// The main future may poll for something in a loop, as any task may.
#[test]
fn a_main_future_that_yields_does_not_starve_io() {
    run(|| async {
        let (ours, mut peer) = pair();
        let arrived = Rc::new(Cell::new(false));
        let set = Rc::clone(&arrived);
        spawn(async move {
            ours.receive(|_| ()).await.unwrap();
            set.set(true);
        });
        yield_now().await;
        peer.write_all(b"x").unwrap();
        let give_up = Instant::now() + Duration::from_secs(5);
        while !arrived.get() {
            assert!(Instant::now() < give_up, "the completion is never looked at");
            yield_now().await;
        }
    });
}

// --- heavy steps ----------------------------------------------------------------------------------------------------

fn burn(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

#[test]
fn heavy_steps_run_in_order() {
    run(|| async {
        let order = Rc::new(RefCell::new(Vec::new()));
        for name in 0..20 {
            let order = Rc::clone(&order);
            spawn(async move {
                for step in 0..3 {
                    heavy().await;
                    order.borrow_mut().push((step, name));
                }
            });
        }
        assert!(eventually(|| order.borrow().len() == 60).await);
        let wanted: Vec<_> = (0..3).flat_map(|step| (0..20).map(move |name| (step, name))).collect();
        assert_eq!(*order.borrow(), wanted);
    });
}

/// While heavy steps queue, a connection is served between them: a step longer than the budget delays it by that step.
#[test]
fn io_runs_between_heavy_steps() {
    run(|| async {
        let log = Rc::new(RefCell::new(Vec::new()));
        let (ours, theirs) = ring_pair();
        spawn(async move {
            while let Ok(Some(bytes)) = theirs.receive(|bytes| bytes.to_vec()).await {
                theirs.send(bytes).await.0.unwrap();
            }
        });
        for _ in 0..100 {
            let log = Rc::clone(&log);
            spawn(async move {
                heavy().await;
                burn(Duration::from_micros(2 * HEAVY_BUDGET_US));
                log.borrow_mut().push('h');
            });
        }
        while log.borrow().iter().filter(|event| **event == 'h').count() < 100 {
            ours.send(vec![1]).await.0.unwrap();
            ours.receive(|_| ()).await.unwrap();
            log.borrow_mut().push('i');
        }
        let log: String = log.borrow().iter().collect();
        // A round trip is four completions, so at most four turns of one step each, and the turn it begins in.
        let longest = log.split('i').map(str::len).max().unwrap();
        assert!(longest <= 5, "{longest} heavy steps in a row: {log}");
    });
}

/// However long I/O takes, each turn makes one heavy step; waiters that gave up do not use these steps up.
#[test]
fn each_turn_makes_a_heavy_step() {
    let turns = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&turns);
    let on_turn = move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    run_with(RingConfig::default(), on_turn, move || async move {
        for _ in 0..2 {
            // Handshakes that timed out while they waited.
            let mut gone: Vec<_> = (0..500).map(|_| Box::pin(heavy())).collect();
            for waiter in &mut gone {
                assert!(waiter.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            drop(gone);
            let done = Rc::new(Cell::new(0));
            for _ in 0..20 {
                let done = Rc::clone(&done);
                spawn(async move {
                    heavy().await;
                    done.set(done.get() + 1);
                });
            }
            burn(Duration::from_micros(HEAVY_BUDGET_US + 100));
            yield_now().await;
            let before = turns.load(Ordering::Relaxed);
            // The main future, which is polled once a turn, uses the whole budget up in every turn.
            while done.get() < 20 {
                assert!(turns.load(Ordering::Relaxed) < before + 1000);
                burn(Duration::from_micros(HEAVY_BUDGET_US + 100));
                yield_now().await;
            }
            let took = turns.load(Ordering::Relaxed) - before;
            assert!((18..=22).contains(&took), "{took} turns for 20 steps");
        }
    });
}

/// A waiter that is handed on to another task wakes the task that polled it last.
#[test]
fn a_heavy_waiter_wakes_who_polled_it_last() {
    run(|| async {
        let mut waiter = Box::pin(heavy());
        assert!(waiter.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        // The limit polls once more when it is reached, so it is the time that tells.
        let started = Instant::now();
        timeout(Duration::from_secs(5), waiter).await.expect("granted");
        assert!(started.elapsed() < Duration::from_secs(4), "the task that waits now was not woken");
    });
}

/// Dropped before, while and after it waits, a heavy waiter neither blocks nor wakes the wrong one.
#[test]
fn dropped_heavy_waiters_do_not_block_the_others() {
    run(|| async {
        let mut chance = Chance(11);
        let done = Rc::new(RefCell::new(Vec::new()));
        let mut kept = Vec::new();
        for name in 0..500 {
            let gives_up = chance.below(2) == 0;
            if !gives_up {
                kept.push(name);
            }
            let done = Rc::clone(&done);
            let patience = chance.below(4);
            spawn(async move {
                if gives_up {
                    let mut waiter = pin!(heavy());
                    for _ in 0..patience {
                        if poll_fn(|cx| Poll::Ready(waiter.as_mut().poll(cx))).await.is_ready() {
                            return;
                        }
                        yield_now().await;
                    }
                } else {
                    heavy().await;
                    done.borrow_mut().push(name);
                }
            });
        }
        assert!(eventually(|| done.borrow().len() == kept.len()).await);
        assert_eq!(*done.borrow(), kept);
    });
}

//! The executor of one thread: tasks, wakers without reference counts, and the turn.
//!
//! I/O goes first: a turn polls the tasks that completions woke, then runs heavy steps (handshakes) until their time
//! budget is spent, then enters the kernel once.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};
use std::time::{Duration, Instant};

use slab::Slab;

use super::driver::{Driver, RingConfig, Wait};
use super::heavy::HeavyLane;
use super::mailbox::{self, Remote};
use super::probe::Unavailable;
use super::wheel::{TimerKey, Wheel};

/// How long one turn may spend on heavy steps before I/O goes first again, in microseconds.
///
/// A P-256 mutual handshake step takes about 60 to 180 us and an RSA-2048 signature about 270 us (in-memory rustls on
/// aws-lc-rs), so at least one step always fits and established traffic waits at most one budget and one step: under a
/// millisecond. Several P-256 steps a turn keep the one system call a turn cheap in comparison.
pub(super) const HEAVY_BUDGET_US: u64 = 400;

/// How many polls of ready tasks one turn makes at most, so that tasks which wake each other cannot keep I/O waiting.
pub(super) const POLLS_PER_TURN: usize = 4096;

/// How long the runtime waits, after its tasks are gone, for the kernel to end their operations.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Names a task: its place in the executor, and a generation so that a stale waker wakes nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TaskRef {
    ring: u16,
    index: u32,
    generation: u32,
}

/// Bits of index and generation inside a waker's 64-bit word; the rest names the ring.
const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;

impl TaskRef {
    const fn pack(self) -> u64 {
        (self.ring as u64) << (INDEX_BITS + GENERATION_BITS)
            | (self.generation as u64) << INDEX_BITS
            | self.index as u64
    }

    const fn unpack(word: u64) -> Self {
        Self {
            ring: (word >> (INDEX_BITS + GENERATION_BITS)) as u16,
            generation: (word >> INDEX_BITS) as u32 & ((1 << GENERATION_BITS) - 1),
            index: word as u32 & ((1 << INDEX_BITS) - 1),
        }
    }

    fn waker(self) -> Waker {
        // SAFETY: the vtable never dereferences the data pointer; it is a number that names a task, valid for as long as
        // anyone cares to keep it, on any thread.
        unsafe { Waker::from_raw(RawWaker::new(std::ptr::without_provenance(self.pack() as usize), &VTABLE)) }
    }
}

const _: () = assert!(usize::BITS == 64, "a waker names its task in one 64-bit word");

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone_waker, wake, wake, |_| {});

fn clone_waker(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn wake(data: *const ()) {
    let task = TaskRef::unpack(data.addr() as u64);
    let here = CURRENT.with(|current| match &*current.borrow() {
        Some(core) if core.id == task.ring => {
            core.schedule(task);
            true
        }
        _ => false,
    });
    if !here {
        mailbox::wake_remote(task.ring, task);
    }
}

struct Task {
    generation: u32,
    /// It stands in the ready queue already.
    queued: bool,
    /// `None` while it is being polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

/// What one turn did, for the worker's metrics.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Time outside the kernel's wait, in microseconds.
    pub busy_us: u64,
    /// Completions handed out.
    pub completions: usize,
    /// Receives that found no free buffer since the last turn.
    pub starved_receives: u64,
    /// Heavy steps still waiting at the end of the turn.
    pub heavy_waiting: usize,
}

/// What the tasks of a thread share.
pub(super) struct Core {
    id: u16,
    driver: RefCell<Driver>,
    tasks: RefCell<Slab<Task>>,
    ready: RefCell<VecDeque<TaskRef>>,
    heavy: RefCell<HeavyLane>,
    wheel: RefCell<Wheel<Option<Waker>>>,
    started: Instant,
    now: Cell<Instant>,
    generation: Cell<u32>,
    pub(super) remote: Arc<Remote>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

impl Core {
    fn schedule(&self, task: TaskRef) {
        let mut tasks = self.tasks.borrow_mut();
        if let Some(entry) = tasks.get_mut(task.index as usize)
            && entry.generation == task.generation
            && !entry.queued
        {
            entry.queued = true;
            self.ready.borrow_mut().push_back(task);
        }
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let generation = (self.generation.get() + 1) & ((1 << GENERATION_BITS) - 1);
        self.generation.set(generation);
        let index = self.tasks.borrow_mut().insert(Task { generation, queued: true, future: Some(future) });
        assert!(index < 1 << INDEX_BITS, "more tasks than a waker can name");
        self.ready.borrow_mut().push_back(TaskRef { ring: self.id, index: index as u32, generation });
    }

    /// Polls one ready task. Returns false when none is ready.
    fn run_one(&self) -> bool {
        let Some(task) = self.ready.borrow_mut().pop_front() else { return false };
        let future = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(entry) = tasks.get_mut(task.index as usize).filter(|entry| entry.generation == task.generation)
            else {
                return true;
            };
            entry.queued = false;
            entry.future.take()
        };
        let Some(mut future) = future else { return true };
        let waker = task.waker();
        if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.tasks.borrow_mut()[task.index as usize].future = Some(future);
        } else {
            // The future goes first, while its slot still stands: what it drops may wake or spawn.
            drop(future);
            self.tasks.borrow_mut().remove(task.index as usize);
        }
        true
    }

    fn run_ready(&self) {
        for _ in 0..POLLS_PER_TURN {
            if !self.run_one() {
                return;
            }
        }
    }

    /// Runs heavy steps until the budget is spent; at least one if any waits.
    fn run_heavy(&self, started: Instant) {
        loop {
            let Some(waker) = self.heavy.borrow_mut().grant() else { return };
            waker.wake();
            self.run_ready();
            if started.elapsed() >= Duration::from_micros(HEAVY_BUDGET_US) {
                return;
            }
        }
    }

    fn tick(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64
    }

    fn run_timers(&self) {
        let tick = self.tick(self.now.get());
        self.wheel.borrow_mut().advance(tick, |waker| {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        });
    }

    fn next_wait(&self) -> Wait {
        if !self.ready.borrow().is_empty() || self.heavy.borrow().waiting() > 0 {
            return Wait::Poll;
        }
        match self.wheel.borrow().next_tick() {
            Some(tick) => {
                let at = self.started + Duration::from_millis(tick);
                Wait::AtMost(at.saturating_duration_since(Instant::now()).max(Duration::from_micros(50)))
            }
            None => Wait::Forever,
        }
    }
}

/// Runs `f` with the thread's driver.
///
/// # Panics
///
/// Outside a [`Runtime`]: sockets and timers of this room exist only inside one.
pub(super) fn with_driver<R>(f: impl FnOnce(&mut Driver) -> R) -> R {
    try_with_driver(f).expect("ring operations run inside a ring::Runtime")
}

/// As [`with_driver`]; `None` when the thread's runtime is gone already.
pub(super) fn try_with_driver<R>(f: impl FnOnce(&mut Driver) -> R) -> Option<R> {
    CURRENT.with(|current| current.borrow().as_ref().map(|core| f(&mut core.driver.borrow_mut())))
}

fn with_core<R>(f: impl FnOnce(&Core) -> R) -> R {
    CURRENT.with(|current| f(current.borrow().as_ref().expect("inside a ring::Runtime")))
}

pub(super) fn current_remote() -> Arc<Remote> {
    with_core(|core| Arc::clone(&core.remote))
}

/// One thread's ring and executor. Made and used on the same thread.
pub struct Runtime {
    core: Rc<Core>,
}

impl Runtime {
    /// Sets up the ring. One runtime at a time for each thread.
    ///
    /// # Errors
    ///
    /// [`Unavailable`], whose text names cause and cure.
    pub fn new(config: &RingConfig) -> Result<Self, Unavailable> {
        let driver = Driver::new(config)?;
        let (id, remote) = mailbox::register().map_err(|error| Unavailable::from_setup(&error))?;
        let started = Instant::now();
        let core = Rc::new(Core {
            id,
            driver: RefCell::new(driver),
            tasks: RefCell::new(Slab::new()),
            ready: RefCell::new(VecDeque::new()),
            heavy: RefCell::new(HeavyLane::default()),
            wheel: RefCell::new(Wheel::new(0)),
            started,
            now: Cell::new(started),
            generation: Cell::new(0),
            remote,
        });
        core.driver.borrow_mut().arm_wakeup(core.remote.fd());
        Ok(Self { core })
    }

    #[cfg(test)]
    pub(super) fn has_registered_ring(&self) -> bool {
        self.core.driver.borrow().has_registered_ring()
    }

    /// Runs `main` to its end, and every task it spawns alongside. `on_turn` is told what each turn did.
    ///
    /// Tasks still running when `main` ends are dropped.
    pub fn run<T>(self, main: impl Future<Output = T>, mut on_turn: impl FnMut(Turn)) -> T {
        let previous = CURRENT.with(|current| current.borrow_mut().replace(Rc::clone(&self.core)));
        assert!(previous.is_none(), "one runtime at a time for each thread");
        let guard = Leave { core: Rc::clone(&self.core) };
        let core = &self.core;
        let result: Rc<Cell<Option<T>>> = Rc::new(Cell::new(None));
        {
            // The main future borrows from the caller's stack, so it is polled here and not boxed among the tasks; a slot
            // among them gives it a waker.
            let mut main = std::pin::pin!(main);
            let main_woken = Rc::new(Cell::new(true));
            core.spawn(Box::pin(MainProxy { woken: Rc::clone(&main_woken) }));
            let main_task = core.ready.borrow().front().copied().expect("just spawned");
            let main_waker = main_task.waker();
            loop {
                let started = Instant::now();
                core.now.set(started);
                let dispatched = core.driver.borrow_mut().dispatch();
                if dispatched.mailbox {
                    core.remote.drain(|task| core.schedule(task));
                    if dispatched.wakeup_ended {
                        core.driver.borrow_mut().arm_wakeup(core.remote.fd());
                    }
                }
                core.run_timers();
                core.run_ready();
                // Once a turn: a main future that wakes itself must not keep completions waiting.
                if main_woken.replace(false) {
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&main_waker)) {
                        result.set(Some(value));
                        break;
                    }
                    core.run_ready();
                }
                core.run_heavy(started);
                let starved_receives = {
                    let mut driver = core.driver.borrow_mut();
                    driver.end_turn();
                    std::mem::take(&mut driver.pressure).starved_receives
                };
                on_turn(Turn {
                    busy_us: started.elapsed().as_micros() as u64,
                    completions: dispatched.completions,
                    starved_receives,
                    heavy_waiting: core.heavy.borrow().waiting(),
                });
                let wait = if main_woken.get() { Wait::Poll } else { core.next_wait() };
                core.driver.borrow_mut().enter(wait);
            }
        }
        drop(guard);
        result.take().expect("set when main ended")
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Run or not: nobody can wake its tasks any more.
        mailbox::unregister(self.core.id);
    }
}

/// Stands for the main future among the tasks: notes that it was woken.
struct MainProxy {
    woken: Rc<Cell<bool>>,
}

impl Future for MainProxy {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.woken.set(true);
        Poll::Pending
    }
}

/// Leaves the runtime: drops the tasks while their driver is still there, then waits for what the kernel still holds.
struct Leave {
    core: Rc<Core>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // Dropping a task may spawn or wake; both only fill queues that nobody runs any more.
        loop {
            let task = {
                let mut tasks = self.core.tasks.borrow_mut();
                let next = tasks.iter().next().map(|(index, _)| index);
                next.map(|index| tasks.remove(index))
            };
            if task.is_none() {
                break;
            }
        }
        let in_flight = self.core.driver.borrow_mut().drain(DRAIN_LIMIT);
        CURRENT.with(|current| current.borrow_mut().take());
        if in_flight > 0 {
            // The kernel may still write to what these operations own: leaking it is the only sound way out.
            std::mem::forget(Rc::clone(&self.core));
        }
    }
}

/// Starts a task on this thread's runtime.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    with_core(|core| core.spawn(Box::pin(future)));
}

/// When this turn began: the clock of timeouts, read once a turn.
pub fn now() -> Instant {
    with_core(|core| core.now.get())
}

/// Waits for leave to do a heavy step: expensive computation that must not delay I/O. When it returns, do one step and
/// await something; the turn's budget is checked after each.
pub fn heavy() -> impl Future<Output = ()> {
    Heavy { ticket: None }
}

struct Heavy {
    ticket: Option<u64>,
}

impl Future for Heavy {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        with_core(|core| {
            let mut lane = core.heavy.borrow_mut();
            let Some(ticket) = self.ticket else {
                self.ticket = Some(lane.enter(cx.waker().clone()));
                return Poll::Pending;
            };
            match lane.place(ticket) {
                None => Poll::Ready(()),
                Some(Some(waker)) if waker.will_wake(cx.waker()) => Poll::Pending,
                Some(place) => {
                    // Another task than the one that entered waits now.
                    *place = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

impl Drop for Heavy {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            CURRENT.with(|current| {
                if let Some(core) = &*current.borrow() {
                    core.heavy.borrow_mut().leave(ticket);
                }
            });
        }
    }
}

/// Lets every other ready task run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

// --- timers: used by `timer` ------------------------------------------------------------------------------------------

pub(super) fn insert_timer(at: Instant, waker: Waker) -> TimerKey {
    with_core(|core| {
        // Rounded up: a timer never fires early.
        let tick = core.tick(at) + 1;
        core.wheel.borrow_mut().insert(tick, Some(waker))
    })
}

/// Whether the timer has fired; if not, `waker` will be woken.
pub(super) fn poll_timer(key: TimerKey, cx: &mut Context<'_>) -> bool {
    with_core(|core| {
        let mut wheel = core.wheel.borrow_mut();
        if wheel.fired(key) != Some(false) {
            return true;
        }
        if let Some(waker) = wheel.value_mut(key) {
            match waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        false
    })
}

pub(super) fn remove_timer(key: TimerKey) {
    CURRENT.with(|current| {
        if let Some(core) = &*current.borrow() {
            core.wheel.borrow_mut().remove(key);
        }
    });
}

/// What the runtime holds now, for tests: operations with the driver, tasks, timers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Operations the driver keeps, the mailbox's own included.
    pub operations: usize,
    /// Tasks, the main future's stand-in included.
    pub tasks: usize,
    /// Timers not yet removed.
    pub timers: usize,
}

/// Counts what this thread's runtime holds.
pub fn held() -> Held {
    with_core(|core| Held {
        operations: core.driver.borrow().operations(),
        tasks: core.tasks.borrow().len(),
        timers: core.wheel.borrow().len(),
    })
}

//! Where retired values are dropped: one thread of the process, `notdirty-rcu`, started by the first retirement.
//!
//! ```text
//!   drop_later(value)   any thread, any lock held        waiting ← value, wake                     never blocks, drops nothing
//!   notdirty-rcu        all of `waiting` ─▶ one grace period ─▶ drop each ─▶ own (retired by these drops) likewise ─▶ done
//!   barrier()           waits until `done` has passed all that was retired before
//! ```
//!
//! Destructors of an embedder's run here and nowhere else: with no guard pinned, no lock of this project held, and not in a
//! guest's store. They may lock, wait for vCPUs, and retire more. A destructor that never returns ends all reclamation, and
//! one that panics ends itself only.
//!
//! Values that wait are bounded by what is retired in a grace period and a drop; a vCPU's slice is the longest guard there is.

use super::{WaitError, grace_period};
use crate::sync::MODEL;
use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The thread's name.
const NAME: &str = "notdirty-rcu";

/// A value of any type; to drop it is all that can be done.
type Value = Box<dyn Send>;

// std's, not of `crate::sync`: it outlives a model's execution, and models reclaim nothing.
static QUEUE: Queue = Queue {
    state: Mutex::new(State {
        waiting: VecDeque::new(),
        batch: VecDeque::new(),
        dropping: false,
        forks: 0,
        retired: 0,
        done: 0,
        started_by: 0,
    }),
    work: Condvar::new(),
    finished: Condvar::new(),
};

struct Queue {
    state: Mutex<State>,
    /// The reclaimer sleeps here.
    work: Condvar,
    /// Callers of `barrier` sleep here, and a fork until no destructor is under way.
    finished: Condvar,
}

struct State {
    waiting: VecDeque<Value>,
    /// What the thread is about to drop: here, as a child of a fork has no such thread.
    batch: VecDeque<Value>,
    /// A destructor is under way.
    dropping: bool,
    /// Forks under way: no destructor begins.
    forks: u32,
    /// Values retired by other threads than the reclaimer, ever.
    retired: u64,
    /// Those of them that were dropped, with all that their drops retired.
    done: u64,
    /// The process that started the thread; a fork has none until it retires something.
    started_by: u32,
}

thread_local! {
    /// On the reclaimer's thread: what its drops retired. `None` elsewhere.
    static OWN: Cell<Option<VecDeque<Value>>> = const { Cell::new(None) };
}

/// Drops `value` on the thread `notdirty-rcu`, once every guard that is alive now is gone. May be called with any lock
/// held and from any destructor. A model leaks it.
pub fn drop_later<T: Send + 'static>(value: T) {
    if MODEL {
        return core::mem::forget(value);
    }
    let value: Value = Box::new(value);
    // While thread-locals are torn down there is no telling; then this is not the reclaimer, which never ends.
    let own = OWN.try_with(Cell::take).ok().flatten();
    if let Some(mut own) = own {
        own.push_back(value);
        return OWN.set(Some(own));
    }
    let mut state = QUEUE.lock();
    state.waiting.push_back(value);
    state.retired += 1;
    let idle = state.waiting.len() == 1;
    // Without a thread the values wait, and the next retirement tries again.
    let _ = state.start();
    drop(state);
    if idle {
        QUEUE.work.notify_one();
    }
}

/// As [`synchronize`](super::synchronize), and waits until everything that was retired before this call was dropped, with what
/// their destructors retired. The caller holds no lock that one of those destructors takes.
///
/// # Errors
/// [`WaitError`](super::WaitError): this thread holds a guard, or drops retired values itself, or none can.
pub fn barrier() -> Result<(), WaitError> {
    if is_reclaimer() {
        return Err(WaitError::Reclaimer);
    }
    super::synchronize()?;
    let mut state = QUEUE.lock();
    let upto = state.retired;
    if state.done < upto {
        state.start().map_err(WaitError::NoThread)?;
    }
    while state.done < upto {
        state = QUEUE.finished.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

fn is_reclaimer() -> bool {
    let Ok(Some(own)) = OWN.try_with(Cell::take) else { return false };
    OWN.set(Some(own));
    true
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics with it held but an allocation, which leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reclaim_for_ever(&self) -> ! {
        block_signals();
        OWN.set(Some(VecDeque::new()));
        let mut state = self.lock();
        loop {
            if state.waiting.is_empty() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.batch = core::mem::take(&mut state.waiting);
            let upto = state.retired;
            while !state.batch.is_empty() {
                drop(state);
                grace_period();
                self.drop_batch();
                // What that retired, likewise.
                let own = OWN.replace(Some(VecDeque::new())).unwrap_or_default();
                state = self.lock();
                state.batch = own;
            }
            state.done = upto;
            self.finished.notify_all();
        }
    }

    fn drop_batch(&self) {
        let mut state = self.lock();
        while let Some(value) = state.batch.pop_front() {
            state.dropping = true;
            drop(state);
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
                core::mem::forget(payload); // its destructor may panic, too
            }
            state = self.lock();
            state.dropping = false;
            while state.forks != 0 {
                self.finished.notify_all();
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl State {
    /// Starts the thread, once.
    fn start(&mut self) -> std::io::Result<()> {
        super::collector::hear_of_forks();
        let process = std::process::id();
        if self.started_by != process {
            std::thread::Builder::new().name(NAME.into()).spawn(|| QUEUE.reclaim_for_ever())?;
            self.started_by = process;
        }
        Ok(())
    }
}

/// The queue, locked for a fork: no destructor is under way, so a child finds no lock taken by one.
pub(super) struct Held(MutexGuard<'static, State>);

/// Waits for a destructor that is under way, but not for ever: it may want what the caller holds. Then the child leaks its value.
pub(super) fn hold() -> Held {
    const LONGEST: Duration = Duration::from_secs(1);
    let mut state = QUEUE.lock();
    state.forks += 1;
    if !is_reclaimer() {
        let under_way = |state: &mut State| state.dropping;
        state = QUEUE.finished.wait_timeout_while(state, LONGEST, under_way).unwrap_or_else(PoisonError::into_inner).0;
    }
    Held(state)
}

impl Held {
    /// In the parent.
    pub(super) fn go_on(mut self) {
        self.0.forks -= 1;
        drop(self);
        QUEUE.work.notify_all();
    }

    /// In the child, which has no thread that drops values: the next retirement or barrier starts one.
    pub(super) fn go_on_alone(mut self) {
        let state = &mut *self.0;
        (state.forks, state.dropping) = (0, false);
        let mut all = core::mem::take(&mut state.batch);
        all.append(&mut state.waiting);
        state.waiting = all;
    }
}

/// A handler of the embedder's runs on a thread of the embedder's. Faults stay with the thread that they are of.
fn block_signals() {
    #[cfg(not(miri))]
    // SAFETY: a set of our own, filled in before it is used; the mask is this thread's.
    unsafe {
        let mut set = core::mem::zeroed();
        libc::sigfillset(&raw mut set);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigdelset(&raw mut set, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const set, core::ptr::null_mut());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::rcu::{RcuCell, pin};
    use std::sync::mpsc::{Sender, channel};

    const LONG: Duration = Duration::from_secs(20);

    /// Tells when it drops, and on which thread, pinned or not.
    struct Told(Sender<(Option<String>, bool)>);
    impl Drop for Told {
        fn drop(&mut self) {
            let thread = std::thread::current().name().map(str::to_owned);
            let _ = self.0.send((thread, crate::rcu::is_pinned()));
        }
    }

    #[test]
    fn what_is_retired_is_dropped_by_the_named_thread_with_no_guard_though_nothing_else_happens() {
        let (sender, told) = channel();
        RcuCell::new(Told(sender.clone())).replace(Told(sender.clone()));
        for _ in 0..2 {
            assert_eq!(told.recv_timeout(LONG).unwrap(), (Some(NAME.to_owned()), false));
        }
        // Not by a thread that pins as often as it can, either.
        drop_later(Told(sender));
        let dropped = loop {
            pin();
            if let Ok(dropped) = told.try_recv() {
                break dropped;
            }
        };
        assert_eq!(dropped, (Some(NAME.to_owned()), false));
    }

    #[test]
    fn a_barrier_waits_for_what_destructors_retire_too() {
        struct Chain(u32, Sender<u32>);
        impl Drop for Chain {
            fn drop(&mut self) {
                self.1.send(self.0).unwrap();
                if self.0 != 0 {
                    drop_later(Chain(self.0 - 1, self.1.clone()));
                }
            }
        }
        let (sender, dropped) = channel();
        drop_later(Chain(5, sender));
        barrier().unwrap();
        assert_eq!(dropped.try_iter().collect::<Vec<_>>(), [5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn a_destructor_that_waits_for_itself_is_told_so_and_one_that_panics_is_the_only_one_to_end() {
        struct Asks(Sender<bool>);
        impl Drop for Asks {
            fn drop(&mut self) {
                self.0.send(matches!(barrier(), Err(WaitError::Reclaimer))).unwrap();
                self.0.send(crate::rcu::synchronize().is_ok()).unwrap();
            }
        }
        struct Panics;
        impl Drop for Panics {
            fn drop(&mut self) {
                panic!("a test's: not to be minded");
            }
        }
        let (sender, answers) = channel();
        drop_later(Panics);
        drop_later(Asks(sender));
        barrier().unwrap();
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), [true, true]);
    }

    #[test]
    #[cfg(not(miri))]
    fn a_destructor_is_interrupted_by_no_handler_and_its_faults_are_its_own() {
        const ASKED: [(libc::c_int, bool); 7] = [
            (libc::SIGUSR1, true),
            (libc::SIGALRM, true),
            (libc::SIGINT, true),
            (libc::SIGSEGV, false),
            (libc::SIGBUS, false),
            (libc::SIGILL, false),
            (libc::SIGTRAP, false),
        ];
        struct Asks(Sender<[bool; ASKED.len()]>);
        impl Drop for Asks {
            fn drop(&mut self) {
                // SAFETY: without a new set the call only fills in `old`, which is then asked.
                let blocked = unsafe {
                    let mut old = core::mem::zeroed();
                    libc::pthread_sigmask(libc::SIG_SETMASK, core::ptr::null(), &raw mut old);
                    ASKED.map(|(signal, _)| libc::sigismember(&raw const old, signal) == 1)
                };
                self.0.send(blocked).unwrap();
            }
        }
        let (sender, answers) = channel();
        drop_later(Asks(sender));
        assert_eq!(answers.recv_timeout(LONG).unwrap(), ASKED.map(|(_, blocked)| blocked));
    }

    #[test]
    fn a_lock_that_a_destructor_takes_may_be_held_while_values_are_retired() {
        static LOCK: Mutex<u32> = Mutex::new(0);
        struct Locks;
        impl Drop for Locks {
            fn drop(&mut self) {
                *LOCK.lock().unwrap() += 1;
            }
        }
        let cell = RcuCell::new(Locks);
        for _ in 0..1000 {
            let held = LOCK.lock().unwrap();
            cell.replace(Locks);
            drop((pin(), held));
        }
        barrier().unwrap();
        assert_eq!(*LOCK.lock().unwrap(), 1000);
    }
}

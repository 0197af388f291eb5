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
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The thread's name.
const NAME: &str = "notdirty-rcu";

/// A value of any type; to drop it is all that can be done.
type Value = Box<dyn Send>;

// std's, not of `crate::sync`: it outlives a model's execution, and models reclaim nothing.
static QUEUE: Queue = Queue {
    state: Mutex::new(State { waiting: Vec::new(), retired: 0, done: 0, started_by: 0 }),
    work: Condvar::new(),
    finished: Condvar::new(),
};

struct Queue {
    state: Mutex<State>,
    /// The reclaimer sleeps here.
    work: Condvar,
    /// Callers of `barrier` sleep here.
    finished: Condvar,
}

struct State {
    waiting: Vec<Value>,
    /// Values retired by other threads than the reclaimer, ever.
    retired: u64,
    /// Those of them that were dropped, with all that their drops retired.
    done: u64,
    /// The process that started the thread; a fork has none until it retires something.
    started_by: u32,
}

thread_local! {
    /// On the reclaimer's thread: what its drops retired. `None` elsewhere.
    static OWN: Cell<Option<Vec<Value>>> = const { Cell::new(None) };
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
        own.push(value);
        return OWN.set(Some(own));
    }
    let mut state = QUEUE.lock();
    state.waiting.push(value);
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
        OWN.set(Some(Vec::new()));
        let mut state = self.lock();
        loop {
            if state.waiting.is_empty() {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let batch = core::mem::take(&mut state.waiting);
            let upto = state.retired;
            drop(state);
            reclaim(batch);
            state = self.lock();
            state.done = upto;
            self.finished.notify_all();
        }
    }
}

impl State {
    /// Starts the thread, once.
    fn start(&mut self) -> std::io::Result<()> {
        let process = std::process::id();
        if self.started_by != process {
            std::thread::Builder::new().name(NAME.into()).spawn(|| QUEUE.reclaim_for_ever())?;
            self.started_by = process;
        }
        Ok(())
    }
}

/// Drops `values` after a grace period, and then what that retired.
fn reclaim(mut values: Vec<Value>) {
    while !values.is_empty() {
        grace_period();
        for value in values {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
                core::mem::forget(payload); // its destructor may panic, too
            }
        }
        values = OWN.take().unwrap_or_default();
        OWN.set(Some(Vec::new()));
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
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(20);

    /// Tells when it drops, and on which thread, pinned or not.
    struct Told(Sender<(Option<String>, bool)>);
    impl Drop for Told {
        fn drop(&mut self) {
            let thread = std::thread::current().name().map(str::to_owned);
            let _ = self.0.send((thread, crossbeam_epoch::is_pinned()));
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

//! Which collector the guards of this process are of, and what a fork does to it.
//!
//! ```text
//!   parent    threads A, B, notdirty-rcu     collector 0: A, B pinned now and then
//!     fork()  by A: prepare holds every lock of this module, with no destructor under way ─▶ both sides let go
//!   child     thread A alone                 collector 1: B's guard is not waited for, B does not exist here
//! ```
//!
//! A fork leaves the child one thread, and a copy of what the others had: guards that are never dropped, a queue that is locked. So a
//! child starts with a collector of its own, and `reclaim.rs` starts a thread of its own for what waited and what is retired later.
//!
//! A thread that forks with a guard held keeps the old collector in the child, as its guard is of that: then what other threads
//! had pinned is never freed there, and a wait for a grace period may not return. A parked vCPU holds no guard.

use super::reclaim;
use core::cell::RefCell;
use crossbeam_epoch::{Collector, Guard, LocalHandle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// How often this process, and those that it was forked of, are a child.
static GENERATION: AtomicU64 = AtomicU64::new(0);
/// The same, whatever guards were held.
static FORKS: AtomicU64 = AtomicU64::new(0);
static CURRENT: Mutex<Option<(u64, Collector)>> = Mutex::new(None);

thread_local! {
    static HANDLE: RefCell<Option<(u64, LocalHandle)>> = const { RefCell::new(None) };
    /// Between the two halves of a fork.
    static HELD: RefCell<Option<(reclaim::Held, Current)>> = const { RefCell::new(None) };
}

type Current = MutexGuard<'static, Option<(u64, Collector)>>;

fn current() -> Current {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle of the collector of this generation.
#[cold]
fn register(generation: u64) -> LocalHandle {
    hear_of_forks();
    let mut current = current();
    match &mut *current {
        Some((of, collector)) if *of == generation => collector.register(),
        other => {
            let collector = Collector::new();
            let handle = collector.register();
            // The old one is leaked: threads that are not there any more count as in the middle of it.
            core::mem::forget(other.replace((generation, collector)));
            handle
        }
    }
}

#[inline]
pub(super) fn pin() -> Guard {
    let generation = GENERATION.load(Ordering::Relaxed);
    let pinned = HANDLE.try_with(|handle| {
        if let Some((of, handle)) = &*handle.borrow()
            && *of == generation
        {
            return handle.pin();
        }
        let new = register(generation);
        let guard = new.pin();
        core::mem::forget(handle.borrow_mut().replace((generation, new)));
        guard
    });
    // While thread-locals are torn down.
    pinned.unwrap_or_else(|_| register(generation).pin())
}

#[inline]
pub(super) fn is_pinned() -> bool {
    HANDLE.try_with(|handle| handle.borrow().as_ref().is_some_and(|(_, handle)| handle.is_pinned())).unwrap_or(false)
}

/// From now on each fork of this process goes by `before`, `parent` and `child`.
pub(super) fn hear_of_forks() {
    static ONCE: Once = Once::new();
    #[cfg(not(any(miri, loom)))]
    // SAFETY: three functions that live as long as the program.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(Some(before), Some(parent), Some(child));
    });
    #[cfg(any(miri, loom))]
    let _ = (&ONCE, before as extern "C" fn(), parent as extern "C" fn(), child as extern "C" fn());
}

/// How often this process, and those that it was forked of, are a child of a fork since the first call of this, or of `pin`.
pub(super) fn forks() -> u64 {
    hear_of_forks();
    FORKS.load(Ordering::Acquire)
}

extern "C" fn before() {
    let held = (reclaim::hold(), current());
    let _ = HELD.try_with(|slot| *slot.borrow_mut() = Some(held));
}

extern "C" fn parent() {
    if let Some((queue, current)) = HELD.try_with(|slot| slot.borrow_mut().take()).ok().flatten() {
        drop(current);
        queue.go_on();
    }
}

extern "C" fn child() {
    FORKS.fetch_add(1, Ordering::Release);
    if let Some((queue, current)) = HELD.try_with(|slot| slot.borrow_mut().take()).ok().flatten() {
        if !is_pinned() {
            GENERATION.fetch_add(1, Ordering::Relaxed);
        }
        drop(current);
        queue.go_on_alone();
    }
}

//! The one place where std and loom are told apart.
//!
//! Everything that depends on order takes its atomics and locks from here, so `--cfg loom` lets the model checker see
//! each of them. A model explores every interleaving, therefore a dirty block shrinks to 64 pages there.
//! Reference counts and memory reclamation are not modelled: they stay std's and crossbeam's, and are checked there.

#[cfg(loom)]
pub use loom::sync::{Condvar, Mutex, MutexGuard, atomic::fence};
#[cfg(loom)]
pub use model::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, fence},
};

pub use std::sync::atomic::Ordering;

/// The number of the thread that asks: no two of a process ever share one, and none is 0 or the greatest.
#[inline]
pub fn thread_number() -> u64 {
    // Not of a model: it outlives its executions.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    #[cfg(loom)]
    {
        loom::thread_local!(static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
        NUMBER.with(|number| *number)
    }
    #[cfg(not(loom))]
    {
        #[cold]
        fn first() -> u64 {
            NEXT.fetch_add(1, Ordering::Relaxed)
        }
        std::thread_local!(static NUMBER: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
        NUMBER.with(|number| {
            if number.get() == 0 {
                number.set(first());
            }
            number.get()
        })
    }
}

/// Whether this build is a model. Memory retired under RCU is leaked in a model: it may outlive the execution that
/// made it, and loom's atomics must not.
pub const MODEL: bool = cfg!(loom);

/// Models of takes of several words, lines and words of the summary: `cargo loom-wide`. The others have one word of each.
const WIDE: bool = cfg!(loom_wide);

/// Words that share a bit of the summary: one cache line, 512 pages. Three are the fewest that are taken as a line.
pub const SUMMARY_WORDS: usize = match (MODEL, WIDE) {
    (false, _) => 8,
    (true, false) => 1,
    (true, true) => 3,
};

/// Words of one dirty block: 2 Mi pages; or 64 in a model, or a line more than a word of the summary has bits.
pub const BLOCK_WORDS: usize = match (MODEL, WIDE) {
    (false, _) => 256 * 1024 * 8 / 64,
    (true, false) => 1,
    (true, true) => 65 * SUMMARY_WORDS,
};

/// Stands between two SeqCst accesses that their total order keeps apart, say a RMW of one atomic and a load of another.
/// Loom takes such loads for acquiring ones; in a model this is the fence that means the same, elsewhere nothing.
#[inline]
pub fn in_total_order() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// Locks, and goes on if another thread panicked with the lock held: each writer here leaves its data valid at every
/// step, so there is nothing to protect the next one from.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Loom's atomics, each behind a turnstile.
///
/// Loom 0.7 remembers one last access of each atomic. In "load it, and only if need be change it", which setters here
/// do, the thread's own load is that access when the change comes, the other thread's load before it is forgotten,
/// and whole orders are never tried (two-thread models ended after one execution). A relaxed RMW of a neighbour before
/// each access makes loom try them all; being relaxed, it orders nothing else.
#[cfg(loom)]
mod model {
    use super::Ordering;
    use loom::sync::atomic;

    macro_rules! behind_a_turnstile {
        ($name:ident $(<$t:ident>)?, $inner:ty, $value:ty, $($op:ident($($arg:ident: $ty:ty),*) -> $result:ty;)*) => {
            /// Loom's atomic of this name, see above.
            #[derive(Debug)]
            pub struct $name $(<$t>)? {
                turn: atomic::AtomicUsize,
                inner: $inner,
            }

            #[allow(missing_docs)]
            impl $(<$t>)? $name $(<$t>)? {
                pub fn new(value: $value) -> Self {
                    Self { turn: atomic::AtomicUsize::new(0), inner: <$inner>::new(value) }
                }
                $(
                    #[track_caller]
                    pub fn $op(&self, $($arg: $ty),*) -> $result {
                        self.turn.fetch_add(1, Ordering::Relaxed);
                        self.inner.$op($($arg),*)
                    }
                )*
            }
        };
    }

    behind_a_turnstile! {
        AtomicBool, atomic::AtomicBool, bool,
        load(order: Ordering) -> bool;
        store(value: bool, order: Ordering) -> ();
        swap(value: bool, order: Ordering) -> bool;
    }
    behind_a_turnstile! {
        AtomicU32, atomic::AtomicU32, u32,
        load(order: Ordering) -> u32;
        store(value: u32, order: Ordering) -> ();
        fetch_or(bits: u32, order: Ordering) -> u32;
        fetch_and(bits: u32, order: Ordering) -> u32;
        fetch_add(value: u32, order: Ordering) -> u32;
    }
    behind_a_turnstile! {
        AtomicU64, atomic::AtomicU64, u64,
        load(order: Ordering) -> u64;
        store(value: u64, order: Ordering) -> ();
        swap(value: u64, order: Ordering) -> u64;
        fetch_or(bits: u64, order: Ordering) -> u64;
        fetch_and(bits: u64, order: Ordering) -> u64;
        fetch_add(value: u64, order: Ordering) -> u64;
        fetch_sub(value: u64, order: Ordering) -> u64;
        compare_exchange(old: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64>;
    }
    behind_a_turnstile! {
        AtomicU8, atomic::AtomicU8, u8,
        load(order: Ordering) -> u8;
        store(value: u8, order: Ordering) -> ();
        fetch_or(bits: u8, order: Ordering) -> u8;
        fetch_and(bits: u8, order: Ordering) -> u8;
    }
    behind_a_turnstile! {
        AtomicPtr<T>, atomic::AtomicPtr<T>, *mut T,
        load(order: Ordering) -> *mut T;
        store(value: *mut T, order: Ordering) -> ();
        swap(value: *mut T, order: Ordering) -> *mut T;
        compare_exchange(old: *mut T, new: *mut T, success: Ordering, failure: Ordering) -> Result<*mut T, *mut T>;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_thread_has_a_number_of_its_own() {
        let here = thread_number();
        let there = std::thread::scope(|scope| scope.spawn(|| [thread_number(), thread_number()]).join().unwrap());
        assert!(here != 0 && there[0] != 0 && here != there[0]);
        assert_eq!((thread_number(), there[0]), (here, there[1]));
    }
}

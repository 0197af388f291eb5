//! Read, copy, update: a few lines over crossbeam-epoch, whose types are named in this file only.
//!
//! ```text
//!   reader: pin() ─▶ Guard ─▶ cell.load(&guard) ─▶ &T, alive as long as the guard       never blocks
//!   writer: cell.replace(new) ─ swap ─▶ the old T is dropped once every guard of that time is gone
//! ```
//!
//! A guard says *this memory stays alive* and nothing more: not that it is current, and not that stores in flight
//! have landed (that is what safe points are for). A vCPU pins once per slice and repins at its safe points, so the
//! read side costs nothing per access.

use crate::sync::{self, AtomicPtr, Ordering};
use core::fmt;
use core::marker::PhantomData;
use crossbeam_epoch as epoch;

/// Proof that memory reached through RCU stays alive. Belongs to its thread.
pub struct Guard(epoch::Guard);

/// Starts a read section. Sections nest; an inner one costs a counter.
#[inline]
pub fn pin() -> Guard {
    Guard(epoch::pin())
}

impl Guard {
    /// Ends the section and starts a new one, so that writers need not wait for a reader that never leaves. What was
    /// loaded before is out of reach, as the borrow says. Does nothing while the thread holds another guard.
    #[inline]
    pub fn repin(&mut self) {
        self.0.repin();
    }

    /// Hands what this thread retired to the collector now, instead of after some more retirements.
    pub fn flush(&self) {
        self.0.flush();
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

/// A value that is read without a lock and replaced as a whole.
///
/// Writers of one cell are serialised by their own lock if they compute the new value from the old one.
pub struct RcuCell<T: Send + Sync + 'static> {
    /// From `Box::into_raw`, never null; whoever swaps a pointer out retires it.
    current: AtomicPtr<T>,
    owns: PhantomData<Box<T>>,
}

impl<T: Send + Sync + 'static> RcuCell<T> {
    /// A cell that holds `value`.
    pub fn new(value: T) -> Self {
        Self { current: AtomicPtr::new(Box::into_raw(Box::new(value))), owns: PhantomData }
    }

    /// The value of this moment. It outlives even the cell, as long as the guard lives.
    #[inline]
    pub fn load<'g>(&self, _guard: &'g Guard) -> &'g T {
        // Acquire: partner of the swap in `replace`, which published a finished T.
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: never null and from `Box::into_raw`. A pointer leaves `current` only in `replace` and `drop`, both
        // of which defer the free past every guard that is alive then, so past `_guard`.
        unsafe { &*current }
    }

    /// Publishes `value`; the old value is dropped after the grace period, on any thread.
    ///
    /// When the result is dropped, at once or later, destructors run of whatever was retired before and is out of
    /// grace now. Who holds a lock that one of them might take pins before it locks and keeps the result until it
    /// unlocked: a first `pin` may run destructors, too, a nested one does not.
    pub fn replace(&self, value: T) -> Retired {
        let new = Box::into_raw(Box::new(value));
        // AcqRel: Release publishes `value`; Acquire, because this thread may be the one that drops the old one.
        let old = self.current.swap(new, Ordering::AcqRel);
        // SAFETY: `old` came out of the cell by this swap, hence nobody else retires it, and no new reader finds it.
        unsafe { retire(old) }
    }
}

/// Something was retired; see [`RcuCell::replace`].
#[derive(Debug)]
pub struct Retired(Guard);

impl Drop for Retired {
    fn drop(&mut self) {
        // It can be a table or, through its last reference, all RAM of a block: do not hoard it.
        self.0.flush();
    }
}

impl<T: Send + Sync + 'static> Drop for RcuCell<T> {
    fn drop(&mut self) {
        if sync::MODEL {
            return; // as in `retire`
        }
        let last = self.current.load(Ordering::Relaxed);
        // SAFETY: `&mut self`: no further load or replace. References given out before may live as long as a guard.
        drop(unsafe { retire(last) });
    }
}

/// Drops the box `old` once every guard that is alive now is gone.
///
/// # Safety
/// `old` is from `Box::into_raw`, is not retired twice, and nobody can load it any more.
pub(crate) unsafe fn retire<T: Send + 'static>(old: *mut T) -> Retired {
    let guard = pin();
    if !sync::MODEL {
        // SAFETY: by this function's contract the closure frees a box that is out of reach of readers that pin later.
        // It may run on another thread: T is Send.
        unsafe { guard.0.defer_unchecked(move || drop(Box::from_raw(old))) };
    }
    Retired(guard)
}

// SAFETY: a shared cell gives out `&T` on any thread (T: Sync) and drops T on any thread (T: Send).
unsafe impl<T: Send + Sync + 'static> Sync for RcuCell<T> {}
// SAFETY: owns its T, see above.
unsafe impl<T: Send + Sync + 'static> Send for RcuCell<T> {}

impl<T: Send + Sync + fmt::Debug + 'static> fmt::Debug for RcuCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load(&pin()).fmt(f)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    struct Counted(Arc<AtomicUsize>, u64);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wait_for(dropped: &AtomicUsize, n: usize) {
        for _ in 0..100_000 {
            if dropped.load(Ordering::SeqCst) == n {
                return;
            }
            pin().flush();
            std::thread::yield_now();
        }
        panic!("still {} of {n} dropped", dropped.load(Ordering::SeqCst));
    }

    #[test]
    fn a_replaced_value_lives_as_long_as_the_guard_and_no_longer() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = RcuCell::new(Counted(dropped.clone(), 1));
        let mut guard = pin();
        let first = cell.load(&guard);
        cell.replace(Counted(dropped.clone(), 2));
        for _ in 0..1000 {
            pin().flush();
        }
        assert_eq!((first.1, dropped.load(Ordering::SeqCst)), (1, 0));
        guard.repin();
        assert_eq!(cell.load(&guard).1, 2);
        drop(guard);
        wait_for(&dropped, 1);
    }

    #[test]
    fn a_value_outlives_its_cell_under_a_guard() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = RcuCell::new(Counted(dropped.clone(), 7));
        let guard = pin();
        let value = cell.load(&guard);
        drop(cell);
        for _ in 0..1000 {
            pin().flush();
        }
        assert_eq!((value.1, dropped.load(Ordering::SeqCst)), (7, 0));
        drop(guard);
        wait_for(&dropped, 1);
    }

    #[test]
    fn readers_see_whole_values_while_a_writer_replaces_them() {
        let cell = RcuCell::new(vec![0u64; 16]);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..20_000 {
                        let guard = pin();
                        let v = cell.load(&guard);
                        assert!(v.iter().all(|x| *x == v[0]));
                    }
                });
            }
            for n in 1..2000 {
                cell.replace(vec![n; 16]);
            }
        });
    }
}

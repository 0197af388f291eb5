//! Read, copy, update: a few lines over crossbeam-epoch; its types are named in this file and `collector.rs` only.
//!
//! ```text
//!   reader: pin() ─▶ Guard ─▶ cell.load(&guard) ─▶ &T, alive as long as the guard       never blocks
//!   writer: cell.replace(new) ─ swap ─▶ the old T goes to reclaim.rs: dropped there once every guard of that time is gone
//!   waiter: synchronize()   every guard of that time is gone          barrier()   and what was retired was dropped
//! ```
//!
//! A guard says *this memory stays alive* and nothing more: not that it is current, and not that stores in flight
//! have landed (that is what safe points are for). A vCPU pins once per slice and repins at its safe points, so the
//! read side costs nothing per access.
//!
//! A child of a fork has guards and a thread of its own (`collector.rs`), whatever threads the parent had.
//!
//! Retired memory is given back with no further activity, and no destructor runs inside of `pin`, `repin` or `replace`:
//! the collector of crossbeam-epoch gets nothing but the marks by which a grace period is recognised.

mod collector;
mod reclaim;

pub use reclaim::{barrier, drop_later};

use crate::sync::{AtomicPtr, MODEL, Ordering};
use core::fmt;
use core::marker::PhantomData;
use crossbeam_epoch as epoch;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Proof that memory reached through RCU stays alive. Belongs to its thread.
pub struct Guard(epoch::Guard);

/// Goes up in the child of a fork: what a process shares with its parent by accident, as pages of a shared mapping, it makes anew then.
/// It hears of forks by `fork`, and not by a system call that goes past libc.
#[inline]
pub fn forks() -> u64 {
    collector::forks()
}

/// Starts a read section. Sections nest; an inner one costs a counter.
#[inline]
pub fn pin() -> Guard {
    Guard(collector::pin())
}

/// Whether this thread holds a guard.
#[inline]
pub fn is_pinned() -> bool {
    collector::is_pinned()
}

impl Guard {
    /// Ends the section and starts a new one, so that writers need not wait for a reader that never leaves. What was
    /// loaded before is out of reach, as the borrow says. Does nothing while the thread holds another guard.
    #[inline]
    pub fn repin(&mut self) {
        self.0.repin();
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
    /// From `Box::into_raw`, never null; the swap that takes a pointer out retires it.
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

    /// Publishes `value`; the old value is dropped after the grace period, by the thread of [`drop_later`]. May be called with
    /// any lock held.
    pub fn replace(&self, value: T) {
        let new = Box::into_raw(Box::new(value));
        // AcqRel: Release publishes `value`; Acquire, because this thread hands the old one on to be dropped.
        let old = self.current.swap(new, Ordering::AcqRel);
        // It came out of the cell by this swap: nothing else retires it, and no new reader finds it.
        drop_later(Old(old));
    }
}

impl<T: Send + Sync + 'static> Drop for RcuCell<T> {
    fn drop(&mut self) {
        // `&mut self`: no further load or replace. References given out before may live as long as a guard.
        drop_later(Old(self.current.load(Ordering::Relaxed)));
    }
}

/// What was in a cell. A pointer until it drops: readers may still have references into the box.
struct Old<T>(*mut T);

impl<T> Drop for Old<T> {
    fn drop(&mut self) {
        // SAFETY: from `Box::into_raw`; made of what left its cell, once, and dropped after the grace period: no reader that
        // found it has its guard any more.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

// SAFETY: owns its T.
unsafe impl<T: Send> Send for Old<T> {}

/// Why a wait for a grace period did not take place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It would wait for itself.
    #[error("this thread holds an RCU guard: a wait for the end of all guards would not return")]
    Pinned,
    /// A destructor of a retired value asked: what it waits for comes after it.
    #[error("the thread that drops retired values cannot wait until they are dropped")]
    Reclaimer,
    /// There is no thread to drop retired values, and none can be started.
    #[error("no thread to drop retired values: {0}")]
    NoThread(#[source] std::io::Error),
}

/// Waits until every guard that is alive now has been dropped or repinned, on whatever thread. The caller holds no lock that the
/// owner of a guard might wait for. A model does not wait: there nothing is reclaimed.
///
/// # Errors
/// [`WaitError::Pinned`] if this thread holds a guard.
pub fn synchronize() -> Result<(), WaitError> {
    if MODEL {
        return Ok(());
    }
    if collector::is_pinned() {
        return Err(WaitError::Pinned);
    }
    grace_period();
    Ok(())
}

/// As `synchronize`, for a thread without a guard.
fn grace_period() {
    /// A guard that lives long is asked for so often.
    const LONGEST: Duration = Duration::from_millis(2);
    let over = Arc::new(AtomicBool::new(false));
    {
        let (guard, over) = (collector::pin(), over.clone());
        // Release, and Acquire below: what readers did before their guards went is done.
        guard.defer(move || over.store(true, Ordering::Release));
        guard.flush();
    }
    let mut tries = 0;
    while !over.load(Ordering::Acquire) {
        // Without other guards two of these are enough.
        match tries {
            0..4 => {}
            4..16 => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(20 << (tries - 16).min(7)).min(LONGEST)),
        }
        tries += 1;
        collector::pin().flush();
    }
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
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    struct Counted(Arc<AtomicUsize>, u64);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_replaced_value_lives_as_long_as_the_guard_and_no_longer() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = RcuCell::new(Counted(dropped.clone(), 1));
        let mut guard = pin();
        let first = cell.load(&guard);
        cell.replace(Counted(dropped.clone(), 2));
        for _ in 0..1000 {
            pin();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((first.1, dropped.load(Ordering::SeqCst)), (1, 0));
        guard.repin();
        assert_eq!(cell.load(&guard).1, 2);
        drop(guard);
        barrier().unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_value_outlives_its_cell_under_a_guard() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let cell = RcuCell::new(Counted(dropped.clone(), 7));
        let guard = pin();
        let value = cell.load(&guard);
        drop(cell);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!((value.1, dropped.load(Ordering::SeqCst)), (7, 0));
        drop(guard);
        barrier().unwrap();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn who_waits_for_a_grace_period_waits_for_guards_of_before_and_for_no_later_ones() {
        let (pinned, is_pinned) = mpsc::channel();
        let (unpin, may_unpin) = mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            let guard = pin();
            pinned.send(()).unwrap();
            may_unpin.recv().unwrap();
            drop(guard);
        });
        is_pinned.recv().unwrap();
        let waiter = std::thread::spawn(|| synchronize().unwrap());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiter.is_finished());
        // Guards that come and go meanwhile, one of them always alive, hold up no wait.
        let stop = Arc::new(AtomicBool::new(false));
        let later = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut guard = pin();
                while !stop.load(Ordering::Relaxed) {
                    let next = pin();
                    drop(core::mem::replace(&mut guard, next));
                    guard.repin();
                }
            }
        });
        unpin.send(()).unwrap();
        waiter.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        later.join().unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn who_holds_a_guard_is_told_that_it_cannot_wait() {
        let guard = pin();
        assert!(matches!(synchronize(), Err(WaitError::Pinned)));
        assert!(matches!(barrier(), Err(WaitError::Pinned)));
        drop(guard);
        synchronize().unwrap();
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

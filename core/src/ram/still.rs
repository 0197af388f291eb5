//! RAM that stands still: whoever writes and is no vCPU waits.
//!
//! ```text
//!   writer   inside + 1 ─▶ open? ─▶ before, bytes, after ─▶ inside - 1          closed: inside - 1, waits, tries again; gone: refused
//!   holder   closed ─▶ inside is 0 ─▶ nothing is written ─▶ open again, or gone for good
//! ```
//!
//! Both look at the other's word after they wrote their own (SeqCst), so a writer that found the gate open is waited for. What a writer
//! writes inside of a write of its own, in a [`BeforeWrite`](super::BeforeWrite), is part of that.

use super::{RamError, RamList};
use core::cell::Cell;
// Not of `crate::sync`: models of stores need not know of it.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

const OPEN: u64 = 0;
const CLOSED: u64 = 1;
const GONE: u64 = 2;

/// How long a writer waits at most: longer than any holder holds.
const PATIENCE: Duration = Duration::from_secs(120);

thread_local! {
    /// Writes that this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// The gate of a list.
pub(super) struct Gate {
    state: AtomicU64,
    inside: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Default for Gate {
    fn default() -> Self {
        let (state, inside) = (AtomicU64::new(OPEN), AtomicU64::new(0));
        Self { state, inside, lock: Mutex::new(()), changed: Condvar::new() }
    }
}

/// A write that is under way.
pub(super) struct Inside<'g>(Option<&'g Gate>);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
        if let Some(gate) = self.0 {
            gate.leave();
        }
    }
}

impl Gate {
    /// A write begins.
    #[inline]
    pub(super) fn enter(&self) -> Result<Inside<'_>, RamError> {
        let nested = DEPTH.try_with(|depth| depth.replace(depth.get() + 1) != 0).unwrap_or(true);
        if nested {
            return Ok(Inside(None));
        }
        self.inside.fetch_add(1, Ordering::SeqCst);
        let inside = Inside(Some(self));
        if self.state.load(Ordering::SeqCst) == OPEN { Ok(inside) } else { self.wait(inside) }
    }

    #[cold]
    fn wait<'g>(&'g self, inside: Inside<'g>) -> Result<Inside<'g>, RamError> {
        drop(inside);
        let until = Instant::now() + PATIENCE;
        loop {
            let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            match self.state.load(Ordering::SeqCst) {
                OPEN => {
                    drop(held);
                    return self.enter();
                }
                CLOSED if Instant::now() < until => {
                    drop(self.changed.wait_timeout(held, Duration::from_millis(50)));
                }
                _ => return Err(RamError::Gone),
            }
        }
    }

    fn leave(&self) {
        if self.inside.fetch_sub(1, Ordering::SeqCst) == 1 && self.state.load(Ordering::SeqCst) != OPEN {
            self.changed.notify_all();
        }
    }

    fn set(&self, state: u64) {
        let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.state.store(state, Ordering::SeqCst);
        self.changed.notify_all();
    }
}

/// Nothing but a vCPU writes to the RAM of a list as long as this lives.
#[must_use = "dropped, writers go on"]
pub struct WritersHeld {
    list: Arc<RamList>,
    for_good: bool,
}

impl WritersHeld {
    /// They never go on: each gets [`RamError::Gone`].
    pub fn for_good(mut self) {
        self.for_good = true;
    }
}

impl Drop for WritersHeld {
    fn drop(&mut self) {
        self.list.gate().set(if self.for_good { GONE } else { OPEN });
    }
}

impl RamList {
    /// Holds all writers that are no vCPU, and waits until none is in the middle of a write: for a moment at which RAM stands still. `None`
    /// if one does not come to its end in time, or they are held already. Not inside of a write.
    pub fn hold_writers(self: &Arc<Self>, timeout: Duration) -> Option<WritersHeld> {
        let gate = self.gate();
        let mut held = gate.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if gate.state.load(Ordering::SeqCst) != OPEN {
            return None;
        }
        gate.state.store(CLOSED, Ordering::SeqCst);
        let all = WritersHeld { list: self.clone(), for_good: false };
        let until = Instant::now() + timeout;
        while gate.inside.load(Ordering::SeqCst) != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(held);
                return None;
            }
            let step = left.min(Duration::from_millis(1));
            held = gate.changed.wait_timeout(held, step).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(all)
    }

    /// Writers that were held for good go on.
    pub fn release_writers(&self) {
        self.gate().set(OPEN);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::ram::{RamBlockSpec, RamError, RamList};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn while_writers_are_held_nothing_is_written_and_then_all_of_it() {
        let list = Arc::new(RamList::new());
        let block = list.add(RamBlockSpec::new("ram", 1 << 16)).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (list, block, stop) = (&list, &block, &stop);
                scope.spawn(move || {
                    let mut value = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        value += 1;
                        list.write(block, 0x100 * n, &value.to_le_bytes()).unwrap();
                    }
                });
            }
            for _ in 0..100 {
                let held = list.hold_writers(Duration::from_secs(5)).unwrap();
                assert!(list.hold_writers(Duration::ZERO).is_none(), "one holder");
                let words = || [0, 0x100].map(|at| block.load(at, 8).unwrap());
                let before = words();
                std::thread::sleep(Duration::from_micros(200));
                assert_eq!(words(), before);
                drop(held);
            }
            stop.store(true, Ordering::Relaxed);
        });
        list.hold_writers(Duration::ZERO).unwrap().for_good();
        assert!(matches!(list.write(&block, 0, &[1]), Err(RamError::Gone)));
        list.release_writers();
        list.write(&block, 0, &[1]).unwrap();
    }
}

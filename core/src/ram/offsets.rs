//! The owner of each part of the space of all RAM.
//!
//! ```text
//!   0 ─ A ──── gap ─ B ── gap ─── C ─ end ─▶ never used yet
//!              alloc: the smallest gap that is long enough, else from `end`
//! ```
//!
//! Lengths round up to 512 pages, so no two blocks share a word or a summary bit of a dirty bitmap (SUM-1).
//! A [`Lease`] lives in its block and ends after the block's memory is unmapped: an address that some reader may
//! still meet in an old snapshot is not given to another block (RAM-1). Allocation and return cost O(log gaps).

use crate::addr::{PAGE_SIZE, RamAddr};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// What offsets and lengths of leases are multiples of.
pub(super) const GRAIN: u64 = 512 * PAGE_SIZE;

/// Free and used parts of the space.
#[derive(Default)]
struct Space {
    /// Gaps below `end` by start; no two touch each other, none touches `end`.
    by_start: BTreeMap<u64, u64>,
    /// The same gaps as (length, start).
    by_length: BTreeSet<(u64, u64)>,
    end: u64,
}

impl Space {
    fn alloc(&mut self, length: u64) -> Option<u64> {
        if let Some(&(gap, start)) = self.by_length.range((length, 0)..).next() {
            self.drop_gap(start, gap);
            if gap > length {
                self.put_gap(start + length, gap - length);
            }
            return Some(start);
        }
        let start = self.end;
        self.end = start.checked_add(length)?;
        Some(start)
    }

    fn free(&mut self, mut start: u64, mut length: u64) {
        if let Some((&before, &gap)) = self.by_start.range(..start).next_back()
            && before + gap == start
        {
            self.drop_gap(before, gap);
            (start, length) = (before, gap + length);
        }
        if let Some(&gap) = self.by_start.get(&(start + length)) {
            self.drop_gap(start + length, gap);
            length += gap;
        }
        if start + length == self.end {
            self.end = start;
        } else {
            self.put_gap(start, length);
        }
    }

    fn put_gap(&mut self, start: u64, length: u64) {
        self.by_start.insert(start, length);
        self.by_length.insert((length, start));
    }

    fn drop_gap(&mut self, start: u64, length: u64) {
        self.by_start.remove(&start);
        self.by_length.remove(&(length, start));
    }
}

/// Gives out parts of the space.
///
/// Its lock is a leaf: nothing is called with it held. A lease may end on the thread that drops retired values. It is std's also in a model, for a lease may end outside of one.
#[derive(Clone, Default)]
pub(super) struct Offsets(Arc<Mutex<Space>>);

impl Offsets {
    /// Leases `length` bytes, rounded up; `None` if the space has no such part left.
    pub(super) fn lease(&self, length: u64) -> Option<Lease> {
        let length = length.checked_next_multiple_of(GRAIN)?;
        let start = self.0.lock().unwrap_or_else(PoisonError::into_inner).alloc(length)?;
        Some(Lease { start, length, from: self.clone() })
    }
}

/// A part of the space that belongs to one block; ends on drop.
pub(super) struct Lease {
    start: u64,
    length: u64,
    from: Offsets,
}

impl Lease {
    /// The first address.
    pub(super) fn start(&self) -> RamAddr {
        RamAddr::new(self.start)
    }

    /// How many bytes, a multiple of `GRAIN`.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.from.0.lock().unwrap_or_else(PoisonError::into_inner).free(self.start, self.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn leases_never_overlap_and_all_of_them_returned_leave_nothing(
            steps in prop::collection::vec((any::<bool>(), 1..5 * GRAIN, any::<usize>()), 1..200),
        ) {
            let offsets = Offsets::default();
            let mut leases: Vec<Lease> = Vec::new();
            for (lease, length, pick) in steps {
                if lease || leases.is_empty() {
                    leases.push(offsets.lease(length).unwrap());
                    prop_assert!(leases.last().unwrap().length() >= length);
                } else {
                    leases.swap_remove(pick % leases.len());
                }
                leases.sort_by_key(Lease::start);
                prop_assert!(leases.iter().all(|l| l.start % GRAIN == 0 && l.length % GRAIN == 0));
                prop_assert!(leases.windows(2).all(|two| two[0].start + two[0].length <= two[1].start));
                let space = offsets.0.lock().unwrap();
                let leased: u64 = leases.iter().map(Lease::length).sum();
                prop_assert_eq!(leased + space.by_start.values().sum::<u64>(), space.end);
                prop_assert_eq!(space.by_start.len(), space.by_length.len());
            }
            drop(leases);
            let space = offsets.0.lock().unwrap();
            prop_assert_eq!((space.end, space.by_start.len()), (0, 0));
        }
    }

    #[test]
    fn the_smallest_gap_that_is_long_enough_is_used_again() {
        let offsets = Offsets::default();
        let lease = |grains| offsets.lease(grains * GRAIN).unwrap();
        let (long, _a, short, _b) = (lease(3), lease(1), lease(1), lease(1));
        let (long_at, short_at) = (long.start(), short.start());
        drop((long, short));
        assert_eq!(lease(1).start(), short_at);
        let again = lease(2);
        assert_eq!(again.start(), long_at);
        let rest = lease(1);
        assert_eq!(rest.start().get(), long_at.get() + 2 * GRAIN);
        assert_eq!(lease(1).start(), short_at);
        assert_eq!(lease(4).start().get(), 6 * GRAIN);
    }

    #[test]
    fn a_space_that_is_full_says_so_and_stays_as_it_was() {
        let offsets = Offsets::default();
        let most = offsets.lease(u64::MAX - GRAIN).unwrap();
        assert!(offsets.lease(GRAIN).is_none());
        assert!(offsets.lease(u64::MAX).is_none());
        drop(most);
        assert_eq!(offsets.lease(1).unwrap().start().get(), 0);
    }
}

//! Dropping entries: all of them, or those of a range, at the cost of those that are filled.

use super::entry::{BIAS, FLAGS};
use super::{DEVICE_BITS, FETCH_ENTRIES, NO_FETCH, NONE, Tlb};
use notdirty_core::PAGE_SIZE;

impl Tlb {
    /// Empties the TLB; returns how many entries it held.
    pub(crate) fn flush_all(&mut self) -> usize {
        // Taken out, so that the loop may write the rest; its capacity goes back in.
        let mut filled = core::mem::take(&mut self.filled);
        let dropped = filled.len();
        for slot in filled.drain(..) {
            let slot = usize::from(slot);
            // The whole chain dies: forgetting its head is enough.
            let head = Self::head_of(self.full(slot).page);
            self.heads[head] = NONE;
            self.set_empty(slot);
        }
        self.filled = filled;
        *self.fetch = [NO_FETCH; FETCH_ENTRIES];
        self.devices = [None; 1 << DEVICE_BITS];
        dropped
    }

    /// Drops what there is about the pages of guest addresses `[first, last]`, which begin and end with a page; returns
    /// how many entries that were.
    pub(crate) fn forget(&mut self, first: u64, last: u64) -> usize {
        debug_assert!(first.is_multiple_of(PAGE_SIZE) && last & FLAGS == FLAGS && first <= last);
        let inside = |biased: u64| (first..=last).contains(&(biased & !FLAGS).wrapping_sub(BIAS));
        for entry in self.fetch.iter_mut().filter(|entry| entry.tag != 0 && inside(entry.tag)) {
            *entry = NO_FETCH;
        }
        for slot in &mut self.devices {
            *slot = slot.filter(|entry| !inside(entry.tag));
        }
        let before = self.filled.len();
        if (last - first) / PAGE_SIZE < before as u64 {
            for va in (first..=last).step_by(PAGE_SIZE as usize) {
                let page = va.wrapping_add(BIAS);
                let slot = self.slot(page);
                // The last page of the address space has no entry; its biased address is what empty slots hold.
                if page != 0 && self.entry(slot).read & !FLAGS == page {
                    self.drop_slot(slot);
                }
            }
        } else {
            let mut at = 0;
            while let Some(&slot) = self.filled.get(at) {
                match inside(self.entry(usize::from(slot)).read) {
                    // The last one comes to its place.
                    true => self.drop_slot(usize::from(slot)),
                    false => at += 1,
                }
            }
        }
        before - self.filled.len()
    }

    /// Empties a filled slot.
    fn drop_slot(&mut self, slot: usize) {
        self.unlink(slot as u16);
        let at = self.full(slot).at;
        self.filled.swap_remove(usize::from(at));
        if let Some(&moved) = self.filled.get(usize::from(at)) {
            self.full_mut(moved).at = at;
        }
        self.set_empty(slot);
    }
}

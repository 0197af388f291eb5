//! Dropping entries: all of them, at the cost of those that are filled.

use super::entry::TlbEntry;
use super::{DEVICE_BITS, FETCH_ENTRIES, NO_FETCH, NONE, Tlb};

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
            self.set_entry(slot, if slot == 0 { Self::EMPTY_AT_0 } else { TlbEntry::default() });
        }
        self.filled = filled;
        *self.fetch = [NO_FETCH; FETCH_ENTRIES];
        self.devices = [None; 1 << DEVICE_BITS];
        dropped
    }
}

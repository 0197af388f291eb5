//! Arming and disarming: an entry's write flags follow who listens to its RAM page.
//!
//! One function for both directions and for every alias. TLB-1: it runs on the owner's thread; whoever clears a bit
//! posts afterwards, so what it reads here is never older than the last request it served.

use super::Tlb;
use super::entry::{CODEPAGE, DISCARD, NOTDIRTY, TlbEntry};
use crate::memmap::AddressSpace;
use notdirty_core::{ClientMask, Guard, PageIndex, PageRange};

/// The write comparator's flags and `aux` for a page of writable RAM.
pub(crate) fn store_flags(space: &AddressSpace, page: PageIndex, guard: &Guard) -> (u64, u64) {
    let listening = space.ram().dirty().listening(page, guard);
    if listening.is_empty() {
        (0, 0)
    } else if listening == ClientMask::CODE {
        let code = std::ptr::from_ref(space.code().page_or_insert(page));
        (CODEPAGE, code.expose_provenance() as u64)
    } else {
        (NOTDIRTY, 0)
    }
}

impl Tlb {
    /// Makes every entry of this RAM page say who listens now; returns how many there are.
    pub(crate) fn refresh_page(&mut self, space: &AddressSpace, page: PageIndex, guard: &Guard) -> usize {
        let flags = store_flags(space, page, guard);
        let mut found = 0;
        self.for_slots_of(page, |tlb, slot| {
            found += 1;
            tlb.set_flags(slot, flags);
        });
        found
    }

    /// As `refresh_page`, for a range of pages, at the cost of its pages or of the filled entries, whichever are fewer.
    /// Returns that.
    pub(crate) fn refresh_range(&mut self, space: &AddressSpace, range: PageRange, guard: &Guard) -> u64 {
        if range.len() <= self.filled.len() as u64 {
            for page in range.iter() {
                self.refresh_page(space, page, guard);
            }
            return range.len();
        }
        for at in 0..self.filled.len() {
            let slot = usize::from(self.filled[at]);
            let page = self.ram_page(slot);
            if range.start <= page && page < range.end {
                self.set_flags(slot, store_flags(space, page, guard));
            }
        }
        self.filled.len() as u64
    }

    fn set_flags(&mut self, slot: usize, (flags, aux): (u64, u64)) {
        let entry = self.entry(slot);
        if entry.write & DISCARD == 0 {
            let write = entry.write & !(NOTDIRTY | CODEPAGE) | flags;
            self.set_entry(slot, TlbEntry { write, aux, ..entry });
        }
    }
}

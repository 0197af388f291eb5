//! Arming and disarming: an entry's write flags follow which clients listen to its RAM page.
//!
//! One function for both directions and for every alias. TLB-1: it runs on the owner's thread; a taker that clears a bit
//! posts afterwards, so what it reads here is never older than the last request it served.

use super::Tlb;
use super::entry::{CODEPAGE, DISCARD, NOTDIRTY, TlbEntry};
use crate::memmap::AddressSpace;
use notdirty_core::{Guard, PageIndex, PageRange};

/// The write comparator's flags and `aux` for a page of writable RAM.
pub(crate) fn store_flags(space: &AddressSpace, page: PageIndex, guard: &Guard) -> (u64, u64) {
    let listening = space.ram().dirty().listening(page, guard);
    if listening.is_empty() {
        (0, 0)
    } else if listening.only_code() {
        let code = std::ptr::from_ref(space.code().page_or_insert(page));
        (CODEPAGE, code.expose_provenance() as u64)
    } else {
        (NOTDIRTY, 0)
    }
}

impl Tlb {
    /// Makes every entry of this RAM page say which clients listen now; returns how many there are.
    pub(crate) fn refresh_page(&mut self, space: &AddressSpace, page: PageIndex, guard: &Guard) -> usize {
        let flags = store_flags(space, page, guard);
        let mut found = 0;
        self.for_slots_of(page, |tlb, slot| {
            found += 1;
            tlb.set_flags(slot, flags);
        });
        found
    }

    /// As `refresh_page`, for ranges of pages in any order, at the cost of their pages or of the filled entries, whichever are
    /// fewer. Returns that.
    pub(crate) fn refresh_ranges(&mut self, space: &AddressSpace, ranges: &mut [PageRange], guard: &Guard) -> u64 {
        let filled = self.filled.len() as u64;
        let pages = ranges.iter().fold(0u64, |pages, range| pages.saturating_add(range.len()));
        if pages <= filled {
            for page in ranges.iter().flat_map(PageRange::iter) {
                self.refresh_page(space, page, guard);
            }
            return pages;
        }
        // They may overlap: the one to look at is that with the greatest end among those that start at or before a page.
        ranges.sort_unstable_by_key(|range| range.start);
        let mut end = PageIndex::new(0);
        for range in ranges.iter_mut() {
            end = end.max(range.end);
            range.end = end;
        }
        for at in 0..self.filled.len() {
            let slot = usize::from(self.filled[at]);
            let page = self.ram_page(slot);
            let before = &ranges[..ranges.partition_point(|range| range.start <= page)];
            if before.last().is_some_and(|range| page < range.end) {
                self.set_flags(slot, store_flags(space, page, guard));
            }
        }
        filled
    }

    fn set_flags(&mut self, slot: usize, (flags, aux): (u64, u64)) {
        let entry = self.entry(slot);
        if entry.write & DISCARD == 0 {
            let write = entry.write & !(NOTDIRTY | CODEPAGE) | flags;
            self.set_entry(slot, TlbEntry { write, aux, ..entry });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use notdirty_core::raw::RawDirty;
    use notdirty_core::{DirtyClient, RamBlockSpec, RamList, pin};
    use proptest::prelude::*;
    use std::sync::Arc;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

        /// Few pages are looked up, of many the filled entries are; ranges come in any order and overlap.
        #[test]
        fn a_re_arm_arms_the_entries_of_its_pages_and_no_others(
            filled in 1..300usize,
            ranges in prop::collection::vec((0..260u64, prop_oneof![Just(1u64), 0..8u64, 0..260u64]), 0..12),
        ) {
            let list = Arc::new(RamList::new());
            let block = list.add(RamBlockSpec::new("ram", 512 << 12)).unwrap();
            let space = AddressSpace::new(list.clone());
            list.dirty().test_and_clear_range(block.pages(), DirtyClient::MIGRATION, &pin(), |_, _| {});
            let mut tlb = Tlb::new(0).unwrap();
            // Each page of RAM has an entry, the first ones have two.
            let page_of = |slot: usize| PageIndex::new(slot as u64 % 260);
            for slot in 1..=filled {
                let at = (slot as u64) << 12;
                tlb.install(slot, TlbEntry { read: at, write: at, addend: 0, aux: 0 }, page_of(slot));
            }
            let range = |&(start, len): &(u64, u64)| {
                PageRange { start: PageIndex::new(start), end: PageIndex::new(start + len) }
            };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            let pages: u64 = ranges.iter().map(PageRange::len).sum();
            let cost = tlb.refresh_ranges(&space, &mut ranges.clone(), &pin());
            prop_assert_eq!(cost, pages.min(filled as u64));
            for slot in 1..=filled {
                let armed = tlb.entry(slot).write & NOTDIRTY != 0;
                prop_assert_eq!(armed, ranges.iter().any(|range| range.contains(page_of(slot))), "slot {}", slot);
            }
        }
    }
}

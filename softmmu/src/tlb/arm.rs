//! Arming and disarming: an entry's write flags follow which clients listen to its RAM page.
//!
//! A re-arm finds every alias that would let a store pass unheard, and no other; a store that was heard disarms the entry it
//! went through (see `chain.rs`). TLB-1: it runs on the owner's thread; a taker that clears a bit
//! posts afterwards, so what it reads here is never older than the last request it served.

use super::chain::State;
use super::entry::{CODEPAGE, LINES, NOTDIRTY};
use super::{Id, Tlb, is_filled};
use crate::memmap::AddressSpace;
use notdirty_core::{CodePage, Guard, PageIndex, PageRange, RamAddr};
use std::ptr::with_exposed_provenance;
use std::sync::atomic::Ordering;

/// The write comparator's flags and `aux` for a page of writable RAM.
pub(crate) fn store_flags(space: &AddressSpace, page: PageIndex, guard: &Guard) -> (u64, u64) {
    let dirty = space.ram().dirty();
    let listening = dirty.listening(page, guard);
    if !(listening.is_empty() || listening.only_code()) {
        return (NOTDIRTY, 0);
    }
    let flags = if listening.is_empty() { 0 } else { CODEPAGE };
    if let Some(noted) = dirty.noted_page(page) {
        return (flags | LINES, std::ptr::from_ref(noted).expose_provenance() as u64);
    }
    if flags == 0 {
        return (0, 0);
    }
    let code = std::ptr::from_ref(space.code().page_or_insert(page));
    (flags, code.expose_provenance() as u64)
}

impl Tlb {
    /// Makes the entries of this RAM page that would not tell a client of a store do so. What tells one too many stays as it is:
    /// its next store finds out. Returns how many changed.
    pub(crate) fn arm_page(&mut self, space: &AddressSpace, page: PageIndex, guard: &Guard) -> usize {
        let flags = store_flags(space, page, guard);
        let mut found = Vec::new();
        if flags.0 != 0 {
            self.collect(page, State::Fast, &mut found);
        }
        if flags.0 & (NOTDIRTY | LINES) != 0 {
            self.collect(page, State::Code, &mut found);
        }
        for &id in &found {
            self.set_flags(id, flags);
        }
        found.len()
    }

    /// Makes this entry, of this RAM page, say which clients listen now, more or fewer of them. It may have been dropped since it
    /// was looked up.
    pub(crate) fn refresh_entry(&mut self, space: &AddressSpace, id: Id, page: PageIndex, guard: &Guard) {
        if is_filled(&self.entry_at(id)) && self.full(id).page == page.get() {
            self.set_flags(id, store_flags(space, page, guard));
        }
    }

    /// Was a store of these bytes, which are visible, through an entry that tells the translator alone, and beside its code? Then
    /// nothing is told, as of a plain store.
    #[inline]
    pub(crate) fn is_beside_code(&self, id: Id, ram: RamAddr, len: u64) -> bool {
        let entry = self.entry_at(id);
        if !is_filled(&entry)
            || entry.write & (NOTDIRTY | CODEPAGE | LINES) != CODEPAGE
            || self.full(id).page != ram.page().get()
        {
            return false;
        }
        // SAFETY: with CODEPAGE, `aux` is the address of a `CodePage`, which lives as long as the RAM list that the entries are of.
        let code = unsafe { &*with_exposed_provenance::<CodePage>(entry.aux as usize) };
        // A page that has no code any more is made fast.
        !code.hit(ram.page_offset(), len) && code.mask.load(Ordering::Relaxed) != 0
    }

    /// As `arm_page`, for ranges of pages in any order, at the cost of their pages or of the loose entries, whichever are
    /// fewer. Returns that, and how many entries were to be changed.
    pub(crate) fn arm_ranges(&mut self, space: &AddressSpace, ranges: &mut [PageRange], guard: &Guard) -> (u64, u64) {
        let loose = self.chains.loose.len() as u64;
        let pages = ranges.iter().fold(0u64, |pages, range| pages.saturating_add(range.len()));
        let mut armed = 0;
        if pages <= loose {
            for page in ranges.iter().flat_map(PageRange::iter) {
                armed += self.arm_page(space, page, guard) as u64;
            }
            return (pages, armed);
        }
        sort(ranges);
        let mut at = 0;
        while let Some(&id) = self.chains.loose.get(at) {
            let page = PageIndex::new(self.full(id).page);
            if covers(ranges, page) {
                self.set_flags(id, store_flags(space, page, guard));
                armed += 1;
            }
            // If it is loose no more, the last one came to its place.
            at += usize::from(self.chains.loose.get(at) == Some(&id));
        }
        (loose, armed)
    }
}

/// Makes ranges, which may overlap, ready for [`covers`]: the one to look at is that with the greatest end among those that
/// start at or before a page.
fn sort(ranges: &mut [PageRange]) {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut end = PageIndex::new(0);
    for range in ranges.iter_mut() {
        end = end.max(range.end);
        range.end = end;
    }
}

/// Is this page in one of the sorted ranges?
fn covers(ranges: &[PageRange], page: PageIndex) -> bool {
    let before = &ranges[..ranges.partition_point(|range| range.start <= page)];
    before.last().is_some_and(|range| page < range.end)
}

#[cfg(test)]
mod tests {
    use super::super::entry::TlbEntry;
    use super::super::set::NO_FETCH;
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
                tlb.install(slot, TlbEntry { read: at, write: at, addend: 0, aux: 0 }, (page_of(slot), at), NO_FETCH.reach);
            }
            let range = |&(start, len): &(u64, u64)| {
                PageRange { start: PageIndex::new(start), end: PageIndex::new(start + len) }
            };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            let pages: u64 = ranges.iter().map(PageRange::len).sum();
            let (cost, changed) = tlb.arm_ranges(&space, &mut ranges.clone(), &pin());
            prop_assert_eq!(cost, pages.min(filled as u64));
            let mut armed = 0;
            for slot in 1..=filled {
                let is_armed = tlb.entry(slot).write & NOTDIRTY != 0;
                prop_assert_eq!(is_armed, ranges.iter().any(|range| range.contains(page_of(slot))), "slot {}", slot);
                armed += u64::from(is_armed);
            }
            prop_assert_eq!(changed, armed, "each once");
        }
    }
}

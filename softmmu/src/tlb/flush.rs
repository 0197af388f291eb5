//! Dropping entries, at the cost of what is dropped: all of them, those of a RAM page, those of a virtual page, superpage or
//! address space.

use super::chain::{NONE, State};
use super::entry::{BIAS, FLAGS};
use super::set::{BigPages, FETCH_ENTRIES, NO_FETCH};
use super::{Id, Tlb, id_of};
use crate::translate::Asid;
use notdirty_core::{PAGE_SIZE, PageRange};

impl Tlb {
    /// Empties the TLB; returns how many entries it held.
    pub(crate) fn flush_all(&mut self) -> usize {
        let mut dropped = 0;
        for set in 0..self.sets.len() {
            for class in 0..2 {
                // Taken out, so that the loop may write the rest; its capacity goes back in.
                let mut filled = core::mem::take(&mut self.sets[set].filled[class]);
                dropped += filled.len();
                for slot in filled.drain(..) {
                    let id = id_of(set, slot.into());
                    // All chains die: forgetting their heads is enough.
                    let page = self.full(id).page;
                    self.chains.forget(page);
                    self.set_empty(id);
                }
                self.sets[set].filled[class] = filled;
            }
            self.forget_beside(set);
            self.sets[set].big = BigPages::default();
            self.forget_flat(set);
        }
        self.chains.loose.clear();
        self.tables.clear();
        self.cut_whole(0);
        self.forget_runs();
        dropped
    }

    /// Everything of a set but its entries.
    fn forget_beside(&mut self, set: usize) {
        let set = &mut self.sets[set];
        if set.beside {
            *set.fetch = [NO_FETCH; FETCH_ENTRIES];
            set.devices.fill(None);
            set.beside = false;
            set.big_beside.clear();
        }
    }

    /// Drops what translates `va`, or everything, of this address space, where global translations stay, or of all of them; of
    /// the regimes that are not machine mode. Returns how many entries that were.
    pub(crate) fn flush_translations(&mut self, va: Option<u64>, asid: Option<Asid>) -> usize {
        let mut dropped = 0;
        for set in 1..self.sets.len() {
            if asid.is_none_or(|asid| self.sets[set].key.asid == asid) {
                dropped += match va {
                    Some(va) => self.drop_page(set, va, asid.is_some()),
                    None => self.drop_set(set, asid.is_some()),
                };
            }
        }
        dropped
    }

    /// Drops a set's entries, or those that are not global.
    pub(super) fn drop_set(&mut self, set: usize, keep_global: bool) -> usize {
        let mut dropped = 0;
        self.cut_run(set, 0, u64::MAX);
        for class in 0..if keep_global { 1 } else { 2 } {
            let mut filled = core::mem::take(&mut self.sets[set].filled[class]);
            dropped += filled.len();
            for slot in filled.drain(..) {
                self.drop_listed(id_of(set, slot.into()));
            }
            self.sets[set].filled[class] = filled;
        }
        if keep_global {
            self.sets[set].retain_beside(|fetch| fetch.reach.global, |device| device.reach.global);
        } else {
            self.forget_beside(set);
            self.sets[set].big.sizes = 0;
            self.forget_flat(set);
        }
        dropped
    }

    /// Drops what a set has of the page of `va`, and of all that was mapped with it by one leaf.
    fn drop_page(&mut self, set: usize, va: u64, keep_global: bool) -> usize {
        let mut dropped = 0;
        let page = va.wrapping_add(BIAS) & !FLAGS;
        let id = id_of(set, self.slot(page));
        let stays = |global: bool| keep_global && global;
        let start = va & !(PAGE_SIZE - 1);
        self.cut_run(set, start, start + (PAGE_SIZE - 1));
        // The page with the biased address zero has no entry: zero is what empty slots hold.
        if page != 0 && self.entry_at(id).read & !FLAGS == page && !stays(self.full(id).reach.global) {
            self.drop_entry(id);
            dropped += 1;
        }
        let mut sizes = self.sets[set].big.sizes;
        while sizes != 0 {
            let size = sizes.trailing_zeros() as u8;
            sizes &= sizes - 1;
            let key = BigPages::key(va, size);
            let start = va >> size << size;
            self.cut_run(set, start, start | ((1 << size) - 1));
            let mut id = self.sets[set].big.heads.get(&key).copied().unwrap_or(NONE);
            while id != NONE {
                let (next, global) = (self.big_mut(id).next, self.full(id).reach.global);
                if !stays(global) {
                    self.drop_entry(id);
                    dropped += 1;
                }
                id = next;
            }
        }
        self.sets[set].forget_beside(va, stays);
        dropped
    }

    /// Drops what there is about the physical pages of `[first, last]`, which show these RAM pages, at whatever virtual addresses;
    /// returns how many entries that were. Costs the pages, or what is filled.
    pub(crate) fn forget(&mut self, ranges: &[PageRange], (first, last): (u64, u64)) -> usize {
        let inside = |page: u64| (first..=last).contains(&page);
        self.tables.clear();
        self.forget_runs();
        if last >= self.flat_start {
            self.cut_whole(first);
        }
        for set in &mut self.sets {
            set.retain_beside(|fetch| !inside(fetch.page), |device| !inside(device.page));
        }
        let filled: usize = self.sets.iter().map(super::Set::len).sum();
        let pages = ranges.iter().fold(0u64, |pages, range| pages.saturating_add(range.len()));
        let mut found: Vec<Id> = Vec::new();
        if pages < filled as u64 {
            for page in ranges.iter().flat_map(PageRange::iter) {
                for state in [State::Fast, State::Code, State::Armed] {
                    self.collect(page, state, &mut found);
                }
            }
            // Two of the ranges may be of one RAM page.
            found.sort_unstable();
            found.dedup();
        } else {
            for (n, set) in self.sets.iter().enumerate() {
                found.extend(set.filled.iter().flatten().map(|&slot| id_of(n, slot.into())));
            }
        }
        found.retain(|&id| inside(self.full(id).phys));
        for &id in &found {
            self.drop_entry(id);
        }
        found.len()
    }
}

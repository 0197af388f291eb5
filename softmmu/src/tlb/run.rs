//! The pages in a row that loads need no entry for.
//!
//! ```text
//!   virtual   ──┬──────┬──────┬──────┬──────┬──      a load inside [start, start + len) adds the flat addend and is done,
//!               │ page │ page │ page │ page │        as one in machine mode is in flat RAM
//!             start   each had an entry to load from, with the flat addend, since translations were dropped last
//! ```
//!
//! A set has one run. A page joins as its entry is filled, with those next to it that have entries; of two runs the longer
//! one is kept, mostly. What lies between a page and the run is looked up, if it is not too much: pages that page tables map like
//! these belong to it before they are asked for, as a hart may walk ahead. That an entry made room for another changes nothing: the
//! architecture lets a hart keep a translation until a fence.
//! Whatever drops entries takes their pages out of the run, so this is TLB-1 for many pages at once.

use super::entry::BIAS;
use super::{Tlb, id_of};
use crate::addr::GuestVirt;
use crate::translate::Translation;
use notdirty_core::{PAGE_BITS, PAGE_SIZE};

/// Pages that are looked at, at most, when one joins: what lies further joins when it is asked for.
const AT_ONCE: u64 = 64;

/// Pages that may be looked up between two parts of runs, at first and at most: 256 MiB, some 2 ms.
pub(super) const AHEAD: u32 = 1 << 16;

/// For so many entries filled there is one page more that may be: walks ahead stay few beside those that are asked for.
const FILLS_AHEAD: u32 = 16;

/// So often must a page be asked for that could not join, before its own run is taken though it is shorter.
const VOTES: u32 = 4;

/// Whole pages of virtual addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Run {
    pub(super) start: u64,
    /// In bytes; 0 if there is none.
    pub(super) len: u64,
}

impl Run {
    fn has(&self, page: u64) -> bool {
        page.wrapping_sub(self.start) < self.len
    }

    /// Without these pages: of what is left on both sides, the longer part.
    fn without(&self, first: u64, last: u64) -> Run {
        if self.len == 0 || last < self.start || first >= self.start + self.len {
            return *self;
        }
        let end = self.start + self.len;
        let (below, above) = (first.saturating_sub(self.start), end.saturating_sub(last.saturating_add(1)));
        match below >= above {
            true => Run { start: self.start, len: below },
            false => Run { start: end - above, len: above },
        }
    }
}

/// Whole pages between the run and one that is like its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Gap {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// The run lies below it.
    pub(crate) up: bool,
}

impl Tlb {
    /// If the page of a virtual address has an entry to load from, with the flat addend of the set for loads and stores, it joins the
    /// run. `None` if it has none; else, is it in the run now?
    pub(crate) fn join_run(&mut self, va: u64) -> Option<bool> {
        let (data, page) = (self.data, va & !(PAGE_SIZE - 1));
        let run = self.sets[data].run;
        if data == 0 || !self.is_plain(page) {
            return None;
        }
        if run.has(page) {
            return Some(true);
        }
        // What the run has is known already: most pages join it as they come, one by one.
        let beyond = |next: u64, step: u64| if run.has(next) { 0 } else { self.loads_from(page, step) };
        let below = beyond(page - PAGE_SIZE, PAGE_SIZE.wrapping_neg());
        let above = beyond(page + PAGE_SIZE, PAGE_SIZE);
        let (mut start, mut end) = (page - below, page + PAGE_SIZE + above);
        if run.len != 0 {
            // It may have more than was looked at, without entries even.
            let last = run.start + run.len;
            start = if (run.start..=last).contains(&start) { run.start } else { start };
            end = if (run.start..=last).contains(&end) { last } else { end };
        }
        let len = end - start;
        let votes = &mut self.sets[data].votes;
        *votes += 1;
        // One that is much asked for is worth more than another that is not much longer.
        if len > run.len || *votes >= VOTES && len >= run.len / 4 {
            *votes = 0;
            self.sets[data].run = Run { start, len };
            self.show_selected();
        }
        Some(self.sets[data].run.has(page))
    }

    /// A page was asked about, for a load or a store: what was found there may be another than was known. Returns what lies between it
    /// and the run, if it could not join for that, and so much may be looked up.
    pub(crate) fn settle_run(&mut self, va: u64) -> Option<Gap> {
        let page = va & !(PAGE_SIZE - 1);
        if !self.is_plain(page) {
            self.cut_run(self.data, page, page + (PAGE_SIZE - 1));
            return None;
        }
        self.fills += 1;
        if self.fills.is_multiple_of(FILLS_AHEAD) {
            self.ahead = (self.ahead + 1).min(AHEAD);
        }
        if self.join_run(va) != Some(false) || self.missing {
            return None;
        }
        let run = self.sets[self.data].run;
        let gap = match page < run.start {
            true => Gap { start: page + PAGE_SIZE, end: run.start, up: false },
            false => Gap { start: run.start + run.len, end: page, up: true },
        };
        ((gap.end - gap.start) / PAGE_SIZE <= u64::from(self.ahead)).then_some(gap)
    }

    /// Can loads at `va`, a page's first address, add the flat addend, if this is where it leads?
    pub(crate) fn plain_ahead(&mut self, va: u64, to: &Translation) -> bool {
        self.ahead = self.ahead.saturating_sub(1);
        let span = self.tables.span;
        let into = span.page_at(to.at(GuestVirt::new(va)).get());
        let addend = into.map(|into| (span.host + into).wrapping_sub(va));
        if !(to.lasting && to.rights.load) || addend.is_none() || self.sets[self.data].flat != addend {
            return false;
        }
        // A fence of any of its pages drops all of a leaf; the rights of the others may be less, by PMP.
        let size = to.size_log2.clamp(PAGE_BITS as u8, 63);
        self.sets[self.data].big.sizes |= u64::from(u32::from(size) != PAGE_BITS) << size;
        true
    }

    /// The run has this too, which lies next to it: nothing was dropped since it was looked up.
    pub(crate) fn widen_run(&mut self, start: u64, end: u64) {
        let run = &mut self.sets[self.data].run;
        if start == run.start + run.len || end == run.start {
            *run = Run { start: run.start.min(start), len: run.len + (end - start) };
            self.show_selected();
        }
    }

    /// Bytes of the pages next to one, in this direction, that have entries to load from.
    fn loads_from(&self, page: u64, step: u64) -> u64 {
        let found = (1..=AT_ONCE).take_while(|n| self.is_plain(page.wrapping_add(n.wrapping_mul(step))));
        found.count() as u64 * PAGE_SIZE
    }

    /// Has this page an entry that loads may take without a question? Neither end of the address space is ever in a run: then ends
    /// need no care.
    fn is_plain(&self, page: u64) -> bool {
        let biased = page.wrapping_add(BIAS);
        let inner = (PAGE_SIZE..0u64.wrapping_sub(2 * PAGE_SIZE)).contains(&page) && biased != 0;
        inner && self.entry_at(id_of(self.data, self.slot(biased))).read == biased
    }

    /// These virtual addresses are not in the run of a set any more.
    pub(super) fn cut_run(&mut self, set: usize, first: u64, last: u64) {
        let run = self.sets[set].run.without(first, last);
        if run != self.sets[set].run {
            self.sets[set].run = run;
            if set == self.data {
                self.show_selected();
            }
        }
    }

    /// No set has a run.
    pub(super) fn forget_runs(&mut self) {
        (0..self.sets.len()).for_each(|set| self.cut_run(set, 0, u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MmuIdx;
    use crate::tlb::entry::{OTHER, TLB_ENTRIES, TlbEntry, WIDEST};
    use crate::tlb::set::Reach;
    use crate::translate::Asid;
    use notdirty_core::{PageIndex, PageRange};

    const LEAF: u8 = 14;

    fn fill(tlb: &mut Tlb, va: u64, flags: u64) {
        let biased = va.wrapping_add(BIAS);
        let entry = TlbEntry { read: biased | flags, write: biased | flags, addend: tlb.flat_for(0), aux: 0 };
        let reach = Reach { size_log2: if flags == 0 { LEAF } else { 12 }, global: false };
        tlb.install(tlb.slot(biased), entry, (PageIndex::new(va >> 12), va), reach);
    }

    /// Pages 4 to 7, mapped by one leaf, are a run; page 5 has made room for a page elsewhere.
    fn with_a_page_evicted() -> Tlb {
        let mut tlb = Tlb::new(0).unwrap();
        tlb.set_asid(Asid(1));
        tlb.select_data(MmuIdx(0));
        for page in 4..8 {
            fill(&mut tlb, page << 12, 0);
            assert_eq!(tlb.join_run(page << 12), Some(true));
        }
        fill(&mut tlb, (5 + TLB_ENTRIES as u64) << 12, OTHER);
        assert_eq!(tlb.sets[tlb.data].run, Run { start: 0x4000, len: 0x4000 });
        tlb
    }

    #[test]
    fn what_is_shown_of_a_run_leaves_room_for_the_widest_load() {
        let selected = with_a_page_evicted().selected();
        assert_eq!((selected.run_start, selected.run), (0x4000, 0x4000 - (WIDEST - 1)));
    }

    #[test]
    fn a_page_without_an_entry_leaves_the_run_with_its_leaf() {
        let mut tlb = with_a_page_evicted();
        tlb.flush_translations(Some(0x4000), None);
        assert_eq!(tlb.selected().run, 0);
    }

    #[test]
    fn a_page_without_an_entry_leaves_the_run_with_its_ram() {
        let mut tlb = with_a_page_evicted();
        let page = PageRange { start: PageIndex::new(5), end: PageIndex::new(6) };
        assert_eq!(tlb.forget(&[page], (0x5000, 0x5fff)), 0);
        assert_eq!(tlb.selected().run, 0);
    }

    #[test]
    fn a_set_that_gives_up_the_flat_addend_has_no_run() {
        let mut tlb = with_a_page_evicted();
        let set = tlb.data;
        (0..100).for_each(|_| tlb.sets[set].count_fill(false));
        assert!(tlb.settle_flat(), "it has entries");
        // Without the leaf's, which takes the run along.
        let filled: Vec<u16> = tlb.sets[set].filled.iter().flatten().copied().collect();
        filled.into_iter().for_each(|slot| tlb.drop_entry(id_of(set, slot.into())));
        assert_eq!(tlb.sets[set].len(), 0);
        assert!(!tlb.settle_flat());
        assert_eq!((tlb.selected().run, tlb.sets[set].flat), (0, None));
    }

    #[test]
    fn what_is_left_of_a_run_is_its_longer_part() {
        let run = Run { start: 0x4000, len: 0x4000 };
        for (first, last, start, len) in [
            (0, u64::MAX, 0x8000, 0),
            (0, 0x3fff, 0x4000, 0x4000),
            (0x8000, u64::MAX, 0x4000, 0x4000),
            (0x4000, 0x4fff, 0x5000, 0x3000),
            (0x7000, 0x7fff, 0x4000, 0x3000),
            (0x5000, 0x5fff, 0x6000, 0x2000),
            (0x6000, 0x6fff, 0x4000, 0x2000),
            (0x2000, 0x5fff, 0x6000, 0x2000),
        ] {
            let left = run.without(first, last);
            assert_eq!(left.len, len, "{first:#x}");
            assert!(len == 0 || left.start == start, "{first:#x}: {left:x?}");
        }
        assert!(!Run::default().has(0) && run.has(0x7000) && !run.has(0x8000) && !run.has(0x3000));
    }
}

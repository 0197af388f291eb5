//! What emitted code is told in front of the owner's state: the set for its loads and stores, the addend of most entries there, and how far loads
//! need no entry.
//!
//! ```text
//!   select_data, flat_for ───────────┐
//!   a fill ─▶ show_whole, join_run ──┼─▶ show_selected ─▶ Selected      read by emitted code, on the same thread (TLB-1)
//!   a flush ─▶ cut_whole, cut_run ───┤
//!   bytes asked about, pages missing ┘
//! ```

use super::Tlb;
use super::entry::{SELECTED, Selected, WIDEST};
use super::run::Run;
use super::tables::RamSpan;
use notdirty_core::PAGE_SIZE;

impl Tlb {
    /// Tells emitted code of the set for loads and stores.
    pub(crate) fn show_selected(&mut self) {
        let addend = if self.data == 0 { Some(self.flat_addend) } else { self.sets[self.data].flat };
        // Before the first entry of the set there is nothing that it would be added to.
        let (offset, addend) = (self.table_offset(), addend.unwrap_or_default());
        // What is asked about some bytes is in the entries, and what is missing has none.
        let whole = if self.asks.any() || self.missing { 0 } else { self.whole };
        let Run { start: run_start, len } = if self.asks.any() { Run::default() } else { self.sets[self.data].run };
        let run = len.saturating_sub(WIDEST - 1);
        let selected =
            Selected { offset, table: self.table.addr().get() as u64 + offset, addend, whole, run_start, run };
        // SAFETY: `new` made room for it in front of the prefix, zeroed; only the owner's thread touches it (TLB-1).
        unsafe { self.prefix.as_ptr().offset(SELECTED as isize).cast::<Selected>().write(selected) }
    }

    /// Are pages of RAM yet to come? A vCPU learns that they are by a flush, before which none is waited for.
    pub(crate) fn set_missing(&mut self, missing: bool) {
        if self.missing != missing {
            self.missing = missing;
            self.show_selected();
        }
    }

    pub(crate) fn selected(&self) -> Selected {
        // SAFETY: as in `show_selected`, which wrote it, or zeroes, which are one too.
        unsafe { self.prefix.as_ptr().offset(SELECTED as isize).cast::<Selected>().read() }
    }

    /// Loads find flat RAM as far as the span goes that was found last, which has the flat addend.
    pub(super) fn show_whole(&mut self) {
        let RamSpan { start, last, .. } = self.tables.span;
        let whole = if start == self.flat_start { (last - start + 1).saturating_sub(WIDEST - 1) } else { 0 };
        if whole > self.whole {
            self.whole = whole;
            self.show_selected();
        }
    }

    /// What was said of flat RAM does not hold from this physical address on.
    pub(super) fn cut_whole(&mut self, first: u64) {
        let left = first.saturating_sub(self.flat_start).saturating_sub(WIDEST - 1);
        if left < self.whole {
            self.whole = left;
            self.show_selected();
        }
    }

    /// The flat addend of the set for loads and stores, which is about to have an entry with this one.
    pub(crate) fn flat_for(&mut self, addend: u64) -> u64 {
        if self.data == 0 {
            return self.flat_addend;
        }
        if let Some(flat) = self.sets[self.data].flat {
            return flat;
        }
        let flat = addend.wrapping_add(if self.flat_beside { PAGE_SIZE } else { 0 });
        self.sets[self.data].flat = Some(flat);
        self.show_selected();
        flat
    }

    /// A set without entries may have any addend again, unless code was made that has flat RAM's for a constant.
    pub(super) fn forget_flat(&mut self, set: usize) {
        self.sets[set].flat = self.sets[set].flat.filter(|&flat| flat == self.flat_addend);
    }

    /// See [`LiveMmu::settle_flat`](crate::LiveMmu::settle_flat). Nowhere else does a set in use lose flat RAM's addend.
    #[inline]
    pub(crate) fn settle_flat(&mut self) -> bool {
        let set = &self.sets[self.data];
        if self.data == 0 {
            return true;
        }
        let flat = set.flat == Some(self.flat_addend);
        if flat && set.is_empty() && self.is_scattered() {
            self.give_up_flat();
            return false;
        }
        flat
    }

    /// Its pages are elsewhere by now.
    #[cold]
    fn give_up_flat(&mut self) {
        self.cut_run(self.data, 0, u64::MAX);
        let set = &mut self.sets[self.data];
        (set.flat, set.near, set.elsewhere) = (None, 0, 0);
        self.show_selected();
    }
}

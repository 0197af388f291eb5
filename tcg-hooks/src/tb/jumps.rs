//! Host code by pc, for TBs that the jump cache forgot once: where an indirect jump goes that it does not know.
//!
//! ```text
//!   emitted code ─▶ jump cache (context.rs, 4,096 entries, one place for each pc) ─ hit ─▶ the TB
//!                      └─ miss ─▶ this table, by the `miss` thunk ─ hit ─▶ into the jump cache, and the TB
//!                                    └─ miss ─▶ the exec loop: `Vcpu::find_or_translate`; a TB that is not new is noted here
//! ```
//!
//! Open addressing: an entry lies at its place or behind it, with no empty one between, and at most half are in use, so
//! that a search ends. A TB that runs once has no entry. Nothing is forgotten but by [`JumpTable::remove`], at the TB's death (CHAIN-1).
use crate::jit::context::{Context, JumpEntry, spread};

/// Entries at first.
const FIRST: usize = 1024;

/// The table. Emitted code finds it through [`JumpTable::publish`].
#[derive(Debug, Default)]
pub(super) struct JumpTable {
    /// A power of two, or none.
    slots: Vec<JumpEntry>,
    live: usize,
}

impl JumpTable {
    /// The index of the entry for `pc`, or of the empty one where it belongs. There must be slots.
    #[inline]
    fn place(&self, pc: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = spread(pc) as usize & mask;
        while self.slots[at].pc != pc && self.slots[at].pc != JumpEntry::EMPTY.pc {
            at = (at + 1) & mask;
        }
        at
    }

    /// The host code for `pc`.
    #[inline]
    pub(super) fn find(&self, pc: u64) -> Option<u64> {
        let slot = *self.slots.get(if self.slots.is_empty() { 0 } else { self.place(pc) })?;
        (slot.pc == pc).then_some(slot.host)
    }

    /// Notes the host code for an even `pc`, in place of what was noted before.
    pub(super) fn insert(&mut self, pc: u64, host: u64) {
        if 2 * (self.live + 1) > self.slots.len() {
            let more = (2 * self.slots.len()).max(FIRST);
            for old in std::mem::replace(&mut self.slots, vec![JumpEntry::EMPTY; more]) {
                if old.pc != JumpEntry::EMPTY.pc {
                    let at = self.place(old.pc);
                    self.slots[at] = old;
                }
            }
        }
        let at = self.place(pc);
        self.live += usize::from(self.slots[at].pc != pc);
        self.slots[at] = JumpEntry { pc, host };
    }

    /// Forgets `pc`.
    pub(super) fn remove(&mut self, pc: u64) {
        if self.find(pc).is_none() {
            return;
        }
        let mask = self.slots.len() - 1;
        let mut hole = self.place(pc);
        let mut at = hole;
        self.live -= 1;
        loop {
            self.slots[hole] = JumpEntry::EMPTY;
            // The next one behind that the hole would cut off from its place moves into it.
            loop {
                at = (at + 1) & mask;
                let entry = self.slots[at];
                if entry.pc == JumpEntry::EMPTY.pc {
                    return;
                }
                let home = spread(entry.pc) as usize & mask;
                if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                    self.slots[hole] = entry;
                    hole = at;
                    break;
                }
            }
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = JumpTable::default();
    }

    /// Shows the table to emitted code; again after each change.
    pub(super) fn publish(&self, ctx: &mut Context) {
        if !self.slots.is_empty() {
            ctx.set_far_jumps(&self.slots);
        }
    }

    /// What is noted.
    #[cfg(any(test, feature = "testkit"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &JumpEntry> {
        self.slots.iter().filter(|slot| slot.pc != JumpEntry::EMPTY.pc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_table_holds_what_a_map_does() {
        let (mut table, mut model) = (JumpTable::default(), HashMap::new());
        let mut rng = crate::testkit::Rng::new(9);
        for _ in 0..200_000 {
            // Few enough pcs to be met again, at distances that share their places.
            let pc = (rng.below(3) << 43) + (rng.below(40) << 32) + 2 * rng.below(20);
            if rng.chance(50) {
                let host = rng.bits();
                table.insert(pc, host);
                model.insert(pc, host);
            } else {
                table.remove(pc);
                model.remove(&pc);
            }
            let other = (rng.below(3) << 43) + (rng.below(40) << 32) + 2 * rng.below(20);
            assert_eq!(table.find(other), model.get(&other).copied());
            assert_eq!(table.live, model.len());
        }
        let all: HashMap<u64, u64> = table.iter().map(|slot| (slot.pc, slot.host)).collect();
        assert_eq!(all, model);
    }

    #[test]
    fn a_search_is_short_however_many_tbs_there_are() {
        for step in [2u64, 4, 100, 4096, 1 << 20] {
            let mut table = JumpTable::default();
            (0..128_000).for_each(|n| table.insert(0x8000_0000 + n * step, n));
            let mask = table.slots.len() - 1;
            let far = |pc: u64| table.place(pc).wrapping_sub(spread(pc) as usize) & mask;
            let steps: usize = (0..128_000).map(|n| far(0x8000_0000 + n * step)).sum();
            assert!(steps < 4 * 128_000, "{steps} steps to 128,000 pcs {step} bytes apart");
        }
    }
}

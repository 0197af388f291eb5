//! Where and why a run shall end: at instructions, before they are executed, and at traps, before they are taken.
//!
//! ```text
//!   pcs     part of a TB's key: in emitted code the instruction at such a pc is a site that leaves. Another set is another key, so
//!           it holds at once for code that was translated before, and what was translated for the last set is found again
//!   traps   a bit for each cause, looked at when a trap is about to be taken
//! ```
//!
//! A run that begins at such a pc executes the instruction there: so it goes on from where the last one ended.

use crate::riscv::trap::Trap;
use notdirty_core::PAGE_SIZE;
use std::sync::Arc;

/// What ends a run; the guest is as it was before the instruction or the trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The next instruction is that at `cpu.pc`, where a run shall end.
    Pc,
    /// This exception is about to be taken at `cpu.pc`.
    Trap(Trap),
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Exits {
    /// In rising order.
    pcs: Arc<[u64]>,
    /// Number of that set: part of the key of TBs. The empty one is 0.
    set: u32,
    /// The sets that there were.
    sets: Vec<Arc<[u64]>>,
    /// Exceptions, a bit for each cause.
    traps: u64,
    /// What is to end the run.
    pub(crate) why: Option<Exit>,
    /// What ended the last one.
    pub(crate) last: Option<Exit>,
}

impl Exits {
    /// Runs end here from now on. Is this set another than the last one?
    pub(crate) fn set_pcs(&mut self, pcs: &[u64]) -> bool {
        let mut pcs = pcs.to_vec();
        pcs.sort_unstable();
        pcs.dedup();
        if *self.pcs == *pcs {
            return false;
        }
        let known =
            if pcs.is_empty() { Some(0) } else { self.sets.iter().position(|set| **set == *pcs).map(|n| n as u32 + 1) };
        self.pcs = pcs.into();
        self.set = known.unwrap_or_else(|| {
            self.sets.push(self.pcs.clone());
            self.sets.len() as u32
        });
        true
    }

    pub(crate) fn pcs(&self) -> &Arc<[u64]> {
        &self.pcs
    }

    pub(crate) fn number(&self) -> u32 {
        self.set
    }

    pub(crate) fn set_traps(&mut self, causes: u64) {
        self.traps = causes;
    }

    /// Shall a run end at this pc?
    #[inline]
    pub(crate) fn has(&self, pc: u64) -> bool {
        !self.pcs.is_empty() && self.pcs.binary_search(&pc).is_ok()
    }

    /// Shall one end on the page of this pc?
    #[inline]
    pub(crate) fn has_on_page(&self, pc: u64) -> bool {
        if self.pcs.is_empty() {
            return false;
        }
        let start = pc & !(PAGE_SIZE - 1);
        let next = self.pcs.partition_point(|at| *at < start);
        self.pcs.get(next).is_some_and(|at| at - start < PAGE_SIZE)
    }

    /// Does this trap end the run, in place of being taken?
    #[inline]
    pub(crate) fn stops(&mut self, trap: &Trap) -> bool {
        let stops = !trap.is_interrupt() && self.traps >> (trap.cause & 63) & 1 != 0;
        if stops {
            self.why = Some(Exit::Trap(*trap));
        }
        stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_comes_again_has_its_old_number() {
        let mut exits = Exits::default();
        assert!(exits.set_pcs(&[8, 4, 8]) && exits.number() == 1);
        assert!(!exits.set_pcs(&[4, 8]) && exits.number() == 1);
        assert!(exits.set_pcs(&[4]) && exits.number() == 2);
        assert!(exits.set_pcs(&[]) && exits.number() == 0 && !exits.has(4));
        assert!(exits.set_pcs(&[8, 4]) && exits.number() == 1);
        assert!(exits.has(4) && !exits.has(6));
        assert!(exits.has_on_page(0xffe) && !exits.has_on_page(0x1000));
    }
}

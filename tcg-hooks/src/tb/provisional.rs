//! TBs whose bytes another vCPU may still have changed unheard.
//!
//! ```text
//!   translator              another vCPU                    announce posts a re-arm to the others; until each has
//!   announce, post                                          served it, a store of theirs may have been past its check
//!   read bytes ◀── old                                      already, and lands after the reading. Emitted code tests
//!   add the TB              store lands, nobody told        the line mask before it stores and without a fence, so
//!                           serves, answers                 this goes for stores beside code as well.
//!   compare: kill it
//! ```
//!
//! Keeps CODE-1's second half. A TB is provisional until everybody has answered; then its bytes are compared, and what
//! they store later is told. At each `fence.i` before that they are compared, too: what another hart stored before a
//! flag that this one has seen is visible by then, answered or not.
use super::{TbCache, TbId};
use crate::jit::context::Context;
use crate::translate::Insns;
use notdirty_core::{PAGE_SIZE, PageIndex, RamAddr, RamList, pin};
use notdirty_softmmu::Pending;
use std::sync::atomic::{Ordering, fence};

/// A translation that is yet to be compared for the last time.
#[derive(Debug)]
pub(crate) struct Provisional {
    tb: TbId,
    /// A number is used again after a death; this is not.
    serial: u64,
    pages: (PageIndex, Option<PageIndex>),
    /// What was translated.
    insns: Insns,
    pending: Pending,
}

impl Provisional {
    /// Are the bytes in RAM those that were translated?
    fn stands(&self, ram: &RamList) -> bool {
        let guard = pin();
        let half = |off: u32| {
            let page = if u64::from(off) < PAGE_SIZE { Some(self.pages.0) } else { self.pages.1 }?;
            let at = RamAddr::new(page.base().get() + u64::from(off) % PAGE_SIZE);
            let block = ram.find(at, &guard)?;
            block.load(at.get() - block.offset().get(), 2).ok()
        };
        self.insns.iter().all(|&(off, bits)| {
            // A short instruction has its low half only.
            half(off) == Some(u64::from(bits & 0xffff))
                && (bits & 3 != 3 || half(off + 2) == Some(u64::from(bits >> 16)))
        })
    }
}

impl TbCache {
    /// The TB was made while somebody had not answered, perhaps.
    pub(crate) fn doubt(
        &mut self,
        ctx: &mut Context,
        tb: TbId,
        pages: (PageIndex, Option<PageIndex>),
        insns: Insns,
        pending: Pending,
    ) {
        let Some(serial) = self.get(tb).map(|tb| tb.serial) else { return };
        ctx.code_work = 1;
        self.provisional.push(Provisional { tb, serial, pages, insns, pending });
    }

    /// Is anything still to be compared?
    pub(crate) fn has_provisional(&self) -> bool {
        !self.provisional.is_empty()
    }

    /// Compares the bytes of provisional TBs; what changed dies, what everybody has answered for stays for good.
    /// Returns how many died.
    #[inline]
    pub(crate) fn compare(&mut self, ctx: &mut Context) -> usize {
        if self.provisional.is_empty() { 0 } else { self.compare_provisional(ctx) }
    }

    #[cold]
    fn compare_provisional(&mut self, ctx: &mut Context) -> usize {
        // At a `fence.i`: partners what the other hart did between its stores to code and to the flag we saw.
        fence(Ordering::Acquire);
        let mut killed = 0;
        for mut one in std::mem::take(&mut self.provisional) {
            if self.get(one.tb).is_none_or(|tb| tb.serial != one.serial) {
                continue;
            }
            // Asked before the bytes are read: their stores before the answer are visible then.
            let answered = one.pending.is_served();
            if !one.stands(self.space.ram()) {
                self.kill_written(one.tb, ctx);
                killed += 1;
            } else if !answered {
                self.provisional.push(one);
            }
        }
        self.stats.invalidated += killed as u64;
        killed
    }
}

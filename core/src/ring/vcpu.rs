//! What one vCPU writes to: its ring of each client that has rings.
//!
//! ```text
//!   slow store ─▶ DirtyMemory::set_new ─ a bit went 0 -> 1 ─▶ push ─▶ own ring of that client      made when first needed
//!                                                                └─▶ full: the log's list
//! ```
//!
//! Rings are not handed to vCPUs, running or parked: a vCPU that finds a log it does not know joins it, with its first
//! page. So vCPUs may come before or after a log, and logs go without asking.

use super::table::COLUMNS;
use super::{Pushed, RingLog, RingProducer};
use crate::addr::PageIndex;
use crate::dirty::{DirtyClient, DirtyMemory, VcpuId};
use crate::ram::RamList;
use crate::rcu::Guard;
use core::fmt;
use std::sync::Arc;

/// One client's log, as a vCPU knows it.
struct Own {
    log: Arc<RingLog>,
    ring: RingProducer,
}

/// The rings of one vCPU.
#[derive(Default)]
pub struct VcpuRings {
    /// Of the table when `own` was brought up to date.
    version: u64,
    own: [Option<Own>; COLUMNS],
    any: bool,
    vcpu: VcpuId,
}

impl VcpuRings {
    /// A vCPU that has dirtied no page yet for a client with rings.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, of this vCPU: [`RingLog::pushed`] tells its pages by it.
    pub fn of(vcpu: VcpuId) -> Self {
        Self { vcpu, ..Self::default() }
    }

    /// Pages became dirty for `client` by this vCPU's store: the pages of `bits` from `first` on, a word that
    /// [`DirtyMemory::set_new`] handed out. Returns whether the vCPU should leave behind this instruction.
    pub fn push(&mut self, ram: &RamList, client: DirtyClient, first: PageIndex, bits: u64, guard: &Guard) -> bool {
        // After the RMW that found the bits clear: see table.rs.
        if !ram.dirty().rings().has(client) {
            return false;
        }
        self.refresh(ram.dirty());
        let Some(Own { log, ring }) = &mut self.own[client.column()] else { return false };
        let mut leave = false;
        let mut left = bits;
        while left != 0 {
            let bit = u64::from(left.trailing_zeros());
            left &= left - 1;
            let page = PageIndex::new(first.get() + bit);
            // Pages of a block no longer in the list are skipped.
            let Some(block) = ram.find(page.base(), guard) else { continue };
            match ring.push(block.slot(), page.get() - block.offset().page().get()) {
                Pushed::Ok => {}
                Pushed::SoftFull => leave = true,
                Pushed::Full => {
                    log.add(first, 1 << bit);
                    leave = true;
                }
            }
        }
        leave
    }

    /// Is one of the rings at its soft limit? Then the vCPU must not run, until it was harvested and reset.
    #[inline]
    pub fn is_soft_full(&mut self, dirty: &DirtyMemory) -> bool {
        self.any && self.any_soft_full(dirty)
    }

    fn any_soft_full(&mut self, dirty: &DirtyMemory) -> bool {
        // A log that stopped must not hold up its vCPUs for ever.
        self.refresh(dirty);
        self.own.iter_mut().flatten().any(|own| own.ring.is_soft_full())
    }

    /// Joins new logs and leaves those that are gone.
    #[inline]
    fn refresh(&mut self, dirty: &DirtyMemory) {
        let version = dirty.rings().version();
        if version != self.version {
            self.rejoin(dirty, version);
        }
    }

    #[cold]
    fn rejoin(&mut self, dirty: &DirtyMemory, version: u64) {
        for (own, log) in self.own.iter_mut().zip(dirty.rings().logs()) {
            match (&own, log) {
                (Some(own), Some(log)) if Arc::ptr_eq(&own.log, &log) => {}
                (_, log) => *own = log.and_then(|log| log.join(self.vcpu).map(|ring| Own { log, ring })),
            }
        }
        self.version = version;
        self.any = self.own.iter().any(Option::is_some);
    }
}

impl fmt::Debug for VcpuRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.own.iter().flatten().map(|own| own.ring.ring())).finish()
    }
}

//! The dirty ring: one vCPU's list of the pages it dirtied, with KVM's protocol.
//!
//! ```text
//!   producer: the vCPU's thread                consumer: one, on any thread (ONE-1: both ends are values, `&mut`)
//!
//!   dirty_index ──▶ next push                  reset_index ─▶ oldest entry still in use ─▶ fetch: next to harvest
//!        used = dirty_index - reset_index             free running u32, wrapping; entry = index & (size - 1)
//!
//!   flags   00 free ──push──▶ 01 DIRTY ──harvest──▶ 10 RESET ──reset──▶ 00 free
//!              │  slot, offset  ▲ Release   │ Acquire: slot, offset │         │
//!              └────────────────┘           └───────────────────────┘         └─▶ reset_index, Release
//! ```
//!
//! Keeps RING-1, the ring's half. An entry's fields are written before its DIRTY (Release), which a harvest reads first
//! (Acquire). An entry is written again only after `reset_index` has passed it: stored with Release behind the last
//! look at the entry and behind its 00, loaded with Acquire before the push. Used at or above the soft limit, each push
//! says so, and the vCPU leaves behind that instruction, again at once until enough was reset. The entries above the
//! limit are for what one instruction can dirty. A ring that is full takes nothing and says so: the page then goes to a
//! list that all writers without a ring share (`log.rs`), so nothing is lost and nothing waits.
//!
//! A harvest sees at most what the ring holds, and a reset frees at most what was harvested: both end, however fast
//! the vCPU is. Resets come in runs of one slot, 64 pages wide (`runs.rs`).
//!
//! In one thing it differs from the kernel's: a run is handed to the sink before its entries are free, so that a sink
//! that panics sees them again. Checked by tests/loom_ring.rs (order), tests/ring.rs (meaning) and tests/kvm_ring
//! (against the kernel's own).

mod log;
mod runs;
mod source;
mod table;
mod vcpu;

pub use log::RingLog;
pub(crate) use source::RingSource;
pub use table::RingStartError;
pub(crate) use table::RingTable;
pub use vcpu::VcpuRings;

use crate::dirty::VcpuId;
use crate::sync::{AtomicU32, AtomicU64, MODEL, Ordering};
use core::fmt;
use runs::Run;
use std::sync::Arc;

/// A published entry that waits to be harvested.
pub const DIRTY: u32 = 1;
/// A harvested entry that waits to be reset.
pub const RESET: u32 = 2;

/// Entries of the smallest ring.
pub const MIN_ENTRIES: u32 = if MODEL { 2 } else { 128 };
/// Entries of the largest ring.
pub const MAX_ENTRIES: u32 = 1 << 16;

/// An entry as it lies in memory: `struct kvm_dirty_gfn`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct DirtyGfn {
    /// [`DIRTY`], [`RESET`], or 0.
    pub flags: u32,
    /// The block's [`slot`](crate::RamBlock::slot).
    pub slot: u32,
    /// Which page of the block.
    pub offset: u64,
}

/// The same, as both ends share it.
#[repr(C)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<DirtyGfn>() == 16 && align_of::<DirtyGfn>() == 8);
    assert!(offset_of!(DirtyGfn, flags) == 0 && offset_of!(DirtyGfn, slot) == 4 && offset_of!(DirtyGfn, offset) == 8);
    // Loom's atomics are larger.
    assert!(MODEL || size_of::<Entry>() == 16 && offset_of!(Entry, slot) == 4 && offset_of!(Entry, offset) == 8);
};

/// A ring that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The size is no power of two, too small or too large.
    #[error("a dirty ring of {entries} entries: must be a power of two from {MIN_ENTRIES} to {MAX_ENTRIES}")]
    Size {
        /// What was asked for.
        entries: u32,
    },
    /// Nothing is left below the soft limit.
    #[error("a dirty ring of {entries} entries cannot reserve {reserved}")]
    Reserved {
        /// Entries in all.
        entries: u32,
        /// Those above the soft limit.
        reserved: u32,
    },
}

/// What became of a page that was pushed.
#[must_use = "a page that was not pushed must be told elsewhere"]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pushed {
    /// It is in the ring.
    Ok,
    /// It is in the ring, which is at its soft limit: the vCPU should leave.
    SoftFull,
    /// It is not in the ring: no entry is free.
    Full,
}

/// Alone in its cache line, so that the two ends do not write to one.
#[repr(align(64))]
struct Line<T>(T);

/// What both ends of a ring share. Made with its ends, of which there is one each (ONE-1).
pub struct DirtyRing {
    entries: Box<[Entry]>,
    soft_limit: u32,
    /// The producer's copy is the true one; this is for a test of how full the ring is.
    dirty_index: Line<AtomicU32>,
    reset_index: Line<AtomicU32>,
}

/// The vCPU's end.
pub struct RingProducer {
    ring: Arc<DirtyRing>,
    next: u32,
    /// `reset_index` when last looked at: the consumer's line is read only if the ring seems to be filling.
    reset: u32,
}

/// The harvester's end.
pub struct RingConsumer {
    ring: Arc<DirtyRing>,
    fetch: u32,
    reset: u32,
    /// The vCPU that has the other end, or had it.
    vcpu: VcpuId,
}

impl DirtyRing {
    /// A ring of `entries`, the last `reserved` of them above the soft limit.
    ///
    /// # Errors
    /// [`RingError`] if `entries` is not possible, or nothing is left below the soft limit.
    #[allow(clippy::new_ret_no_self)]
    pub fn new(entries: u32, reserved: u32) -> Result<(RingProducer, RingConsumer), RingError> {
        Self::starting_at(entries, reserved, 0)
    }

    /// As `new`, with both indices at `index`: they wrap, and a test need not push four billion pages to see it.
    #[doc(hidden)]
    pub fn starting_at(entries: u32, reserved: u32, index: u32) -> Result<(RingProducer, RingConsumer), RingError> {
        if !entries.is_power_of_two() || !(MIN_ENTRIES..=MAX_ENTRIES).contains(&entries) {
            return Err(RingError::Size { entries });
        }
        if reserved >= entries {
            return Err(RingError::Reserved { entries, reserved });
        }
        let free = |_| Entry { flags: AtomicU32::new(0), slot: AtomicU32::new(0), offset: AtomicU64::new(0) };
        let ring = Arc::new(Self {
            entries: (0..entries).map(free).collect(),
            soft_limit: entries - reserved,
            dirty_index: Line(AtomicU32::new(index)),
            reset_index: Line(AtomicU32::new(index)),
        });
        Ok((
            RingProducer { ring: ring.clone(), next: index, reset: index },
            RingConsumer { ring, fetch: index, reset: index, vcpu: VcpuId::default() },
        ))
    }

    /// How many entries there are.
    pub fn size(&self) -> u32 {
        // At most MAX_ENTRIES.
        self.entries.len() as u32
    }

    /// How many entries in use make a vCPU leave.
    pub fn soft_limit(&self) -> u32 {
        self.soft_limit
    }

    /// How many entries are in use. With the other end at work this is out of date when it returns.
    pub fn used(&self) -> u32 {
        let reset = self.reset_index.0.load(Ordering::Relaxed);
        self.dirty_index.0.load(Ordering::Relaxed).wrapping_sub(reset).min(self.size())
    }

    /// How many pages were pushed since the ring was made, wrapping. With the other end at work this is out of date when it returns.
    pub fn pushed(&self) -> u32 {
        self.dirty_index.0.load(Ordering::Relaxed)
    }

    /// What an entry holds at this moment, for a debugger: its fields mean something only between DIRTY and reset.
    pub fn peek(&self, index: u32) -> DirtyGfn {
        let entry = self.entry(index);
        let flags = entry.flags.load(Ordering::Acquire);
        DirtyGfn { flags, slot: entry.slot.load(Ordering::Relaxed), offset: entry.offset.load(Ordering::Relaxed) }
    }

    /// Any index is some entry's.
    #[inline]
    fn entry(&self, index: u32) -> &Entry {
        &self.entries[index as usize & (self.entries.len() - 1)]
    }
}

impl RingProducer {
    /// The ring this is the end of.
    pub fn ring(&self) -> &DirtyRing {
        &self.ring
    }

    /// Appends a page.
    #[inline]
    pub fn push(&mut self, slot: u32, offset: u64) -> Pushed {
        let Self { ring, next, reset } = self;
        if next.wrapping_sub(*reset).wrapping_add(1) >= ring.soft_limit {
            // Acquire: the reset that frees an entry has done with it (RING-1).
            *reset = ring.reset_index.0.load(Ordering::Acquire);
        }
        let used = next.wrapping_sub(*reset);
        if used >= ring.size() {
            return Pushed::Full;
        }
        let entry = ring.entry(*next);
        entry.slot.store(slot, Ordering::Relaxed);
        entry.offset.store(offset, Ordering::Relaxed);
        // Release: partner of the Acquire in `harvest`, which reads the fields next.
        entry.flags.store(DIRTY, Ordering::Release);
        *next = next.wrapping_add(1);
        ring.dirty_index.0.store(*next, Ordering::Relaxed);
        if used + 1 >= ring.soft_limit { Pushed::SoftFull } else { Pushed::Ok }
    }

    /// Is the ring at its soft limit? Then the vCPU must not run.
    #[inline]
    pub fn is_soft_full(&mut self) -> bool {
        if self.next.wrapping_sub(self.reset) < self.ring.soft_limit {
            return false;
        }
        // Acquire: as in `push`, which goes on from here.
        self.reset = self.ring.reset_index.0.load(Ordering::Acquire);
        self.next.wrapping_sub(self.reset) >= self.ring.soft_limit
    }
}

impl RingConsumer {
    /// The ring this is the end of.
    pub fn ring(&self) -> &DirtyRing {
        &self.ring
    }

    /// Hands each published entry's slot and offset to `sink`, in the order of pushes; returns how many. They stay in
    /// the ring until they are reset.
    pub fn harvest(&mut self, sink: impl FnMut(u32, u64)) -> u32 {
        self.harvest_up_to(u32::MAX, sink)
    }

    /// As `harvest`, and stops after `max` entries.
    pub fn harvest_up_to(&mut self, max: u32, mut sink: impl FnMut(u32, u64)) -> u32 {
        let mut taken = 0;
        while taken < max {
            let entry = self.ring.entry(self.fetch);
            // Acquire: partner of the Release in `push`. An entry that was harvested and not reset has RESET: the loop
            // ends there after a round at the latest.
            if entry.flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                break;
            }
            sink(entry.slot.load(Ordering::Relaxed), entry.offset.load(Ordering::Relaxed));
            // Release as in the kernel's protocol; here the reader of RESET is this same end.
            entry.flags.store(RESET, Ordering::Release);
            self.fetch = self.fetch.wrapping_add(1);
            taken += 1;
        }
        taken
    }

    /// Frees the entries that were harvested, in order, and tells `sink` which pages they were, as runs: slot, first
    /// page, and a bit for each page from there on. Stops at the first entry without RESET. Returns how many entries.
    pub fn reset(&mut self, mut sink: impl FnMut(u32, u64, u64)) -> u32 {
        let (first, mut at) = (self.reset, self.reset);
        let mut open: Option<Run> = None;
        // A harvested entry has RESET; the count of them bounds the walk, whatever is written meanwhile.
        while at != self.fetch {
            let entry = self.ring.entry(at);
            if entry.flags.load(Ordering::Acquire) & RESET == 0 {
                break;
            }
            let (slot, offset) = (entry.slot.load(Ordering::Relaxed), entry.offset.load(Ordering::Relaxed));
            if !open.as_mut().is_some_and(|run| run.add(slot, offset))
                && let Some(done) = open.replace(Run::new(slot, offset))
            {
                sink(done.slot, done.base, done.mask);
                self.free(at);
            }
            at = at.wrapping_add(1);
        }
        if let Some(done) = open {
            sink(done.slot, done.base, done.mask);
            self.free(at);
        }
        at.wrapping_sub(first)
    }

    /// Entries before `end` may be written again.
    fn free(&mut self, end: u32) {
        while self.reset != end {
            // Before the index, or it would wipe out the DIRTY of the next round.
            self.ring.entry(self.reset).flags.store(0, Ordering::Relaxed);
            self.reset = self.reset.wrapping_add(1);
        }
        // Release: partner of the Acquire in `push` and `is_soft_full`.
        self.ring.reset_index.0.store(end, Ordering::Release);
    }

    /// An end for another vCPU, which goes on where one that is gone stopped.
    pub(super) fn adopt(&mut self) -> Option<RingProducer> {
        // The last reference is ours, and borrowed: no other one is made meanwhile (ONE-1).
        self.is_abandoned().then(|| RingProducer {
            ring: self.ring.clone(),
            next: self.ring.dirty_index.0.load(Ordering::Relaxed),
            // Acquire: as in `push`.
            reset: self.ring.reset_index.0.load(Ordering::Acquire),
        })
    }

    /// Is the vCPU's end gone? What it pushed can still be harvested.
    pub fn is_abandoned(&self) -> bool {
        let gone = Arc::strong_count(&self.ring) == 1;
        // Acquire: partner of the Release with which the other end's reference went.
        crate::sync::fence(Ordering::Acquire);
        gone
    }
}

impl fmt::Debug for DirtyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, soft_limit, used) = (self.size(), self.soft_limit, self.used());
        write!(f, "DirtyRing {{ size: {size}, soft_limit: {soft_limit}, used: {used} }}")
    }
}

impl fmt::Debug for RingProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RingProducer").field(&self.ring).finish()
    }
}

impl fmt::Debug for RingConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RingConsumer").field(&self.ring).finish()
    }
}

//! `SoftMmu`: what one vCPU owns of the memory subsystem, and what it does at its safe points.
//!
//! ```text
//!   SoftMmu ── tlb ─────── raw pointers into RAM blocks and devices
//!      │                        ▲ kept alive by
//!      ├── view: Arc<FlatView> ─┘   changed only in `serve`, after what came from the changed places was dropped (RAM-1)
//!      ├── space: Arc<AddressSpace> ── code pages (entries point at line masks), dirty memory, registry
//!      └── port: OwnPort ◀── post, kick: everybody else, by an Arc<VcpuPort>
//! ```
//!
//! Keeps TLB-1 and SAFE-1: requests are served in `serve` and nowhere else, so a pointer whose check was elided stays
//! good across any number of loads and stores.

use crate::addr::{GuestPhys, GuestVirt};
use crate::code::{CodeInvalidator, CodePages};
use crate::memmap::{AddressSpace, FlatView, What};
use crate::registry::Pending;
use crate::safepoint::{Drained, OwnPort, Request, Running, VcpuPort};
use crate::tlb::Tlb;
use crate::tlb::entry::{BIAS, FLAGS, Reservation, TLB_BITS, TlbEntry};
use crate::tlb::fill::ram_address;
use notdirty_core::{PAGE_SIZE, PageIndex, PageRange, RamAddr, VcpuRings, pin};
use std::io;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// How long a new vCPU waits for the one that was alone to do without what it translated (WRITER-1).
const ADMIT: Duration = Duration::from_secs(10);

/// What an access needs from the engine above.
pub trait Hooks: CodeInvalidator {
    /// A device is about to be called: publish the instruction count to the clock.
    fn before_mmio(&mut self) {}
    /// The guest pages of `[start, last]` (whole pages) were RAM from `ram` on, and are so no more: drop every TB that
    /// has a guest address there. The memory is still alive.
    fn unmapped(&mut self, _start: GuestPhys, _last: GuestPhys, _ram: RamAddr) {}
    /// The memory map changed, nobody knows where: drop every TB.
    fn flushed(&mut self) {}
}

/// An engine that caches no translations.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoHooks;

impl CodeInvalidator for NoHooks {
    fn code_written(&mut self, _: &CodePages, _: RamAddr, _: u64) -> usize {
        0
    }
}
impl Hooks for NoHooks {}

/// How often the slow path was taken, and which way out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct SlowStats {
    /// Loads, stores and atomics done through this `SoftMmu`, hits too; emitted code does its hits by itself.
    pub accesses: u64,
    /// Loads and LRs without an entry.
    pub load_miss: u64,
    /// Stores, SCs and AMOs without an entry.
    pub store_miss: u64,
    /// Fetches without a fetch entry.
    pub fetch_miss: u64,
    /// Stores to pages of which CODE was the only listener and no line was hit.
    pub code_page: u64,
    /// Stores somebody listened to.
    pub notdirty: u64,
    /// Stores that hit a line with code.
    pub code_hit: u64,
    /// TBs that died of them.
    pub killed: u64,
    /// Device loads.
    pub mmio_read: u64,
    /// Device stores.
    pub mmio_write: u64,
    /// Accesses over two pages or two regions.
    pub page_cross: u64,
    /// Misaligned accesses within a page.
    pub misaligned: u64,
    /// Stores to ROM.
    pub rom_discard: u64,
    /// Accesses to pages that no entry can describe.
    pub mixed_page: u64,
    /// Accesses that ended in a fault.
    pub faults: u64,
    /// Whole TLB flushes.
    pub flushes: u64,
    /// Pages whose entries were armed or disarmed.
    pub refreshed: u64,
}

impl AddAssign for SlowStats {
    fn add_assign(&mut self, other: SlowStats) {
        let SlowStats {
            accesses,
            load_miss,
            store_miss,
            fetch_miss,
            code_page,
            notdirty,
            code_hit,
            killed,
            mmio_read,
            mmio_write,
            page_cross,
            misaligned,
            rom_discard,
            mixed_page,
            faults,
            flushes,
            refreshed,
        } = other;
        self.accesses += accesses;
        self.load_miss += load_miss;
        self.store_miss += store_miss;
        self.fetch_miss += fetch_miss;
        self.code_page += code_page;
        self.notdirty += notdirty;
        self.code_hit += code_hit;
        self.killed += killed;
        self.mmio_read += mmio_read;
        self.mmio_write += mmio_write;
        self.page_cross += page_cross;
        self.misaligned += misaligned;
        self.rom_discard += rom_discard;
        self.mixed_page += mixed_page;
        self.faults += faults;
        self.flushes += flushes;
        self.refreshed += refreshed;
    }
}

/// What was served at a safe point.
#[must_use = "killed code and flushed maps concern the engine's caches too"]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ServeReport {
    /// TBs dropped because somebody else wrote their bytes.
    pub killed: u32,
    /// Pages, or entries if there are fewer, that were looked at to be armed again.
    pub rearmed: u64,
    /// The whole TLB was emptied: the memory map (may have) changed anywhere.
    pub flushed: bool,
    /// Places where the memory map changed.
    pub remapped: u32,
}

/// One vCPU's way to memory. It belongs to that vCPU's thread (it can be moved there, not shared), which
/// [serves](Self::serve) before it stores, whenever it was [parked](Self::park) or [asleep](Self::wait).
pub struct SoftMmu {
    pub(crate) tlb: Tlb,
    /// The view the TLB's entries came from; see the header.
    pub(crate) view: Arc<FlatView>,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) port: OwnPort,
    pub(crate) rings: VcpuRings,
    pub(crate) stats: SlowStats,
}

impl SoftMmu {
    /// A vCPU's TLB on this address space, with `prefix` bytes (a multiple of 64) before the table for the owner.
    pub fn new(space: &Arc<AddressSpace>, prefix: usize) -> io::Result<SoftMmu> {
        let tlb = Tlb::new(prefix)?;
        // Registered before the view is taken: a change after that is posted to us.
        let port = space.vcpus().register();
        if !space.vcpus().admit_vcpu(&port, ADMIT) {
            let why = "the vCPU that was alone does not answer";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let view = space.snapshot();
        let (rings, stats) = Default::default();
        Ok(SoftMmu { tlb, view, space: space.clone(), port, rings, stats })
    }

    /// Start of the owner's bytes: zeroed, 64-byte aligned, `table() - prefix`. They die with this `SoftMmu`.
    pub fn prefix(&self) -> NonNull<u8> {
        self.tlb.prefix()
    }

    /// Start of the table, page-aligned. It never moves. Emitted code reads it on the owner's thread only.
    pub fn table(&self) -> NonNull<TlbEntry> {
        self.tlb.table()
    }

    /// Where others post, kick and raise interrupts.
    pub fn port(&self) -> &Arc<VcpuPort> {
        self.port.shared()
    }

    /// The address space.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Counters of the slow path.
    pub fn stats(&self) -> &SlowStats {
        &self.stats
    }

    /// The addend that emitted code may assume: entries with another carry OTHER and never match there.
    pub fn flat_addend(&self) -> u64 {
        self.tlb.flat_addend
    }

    /// Chooses the flat addend (host address - guest address, wrapping). Empties the TLB if that changes it.
    pub fn set_flat_addend(&mut self, addend: u64) {
        if self.tlb.flat_addend != addend {
            self.tlb.flat_addend = addend;
            self.flush_tlb();
        }
    }

    /// Uses only the first `1 << bits` entries of the table: to measure what the rest are worth. Empties the TLB.
    /// Emitted code must index likewise.
    /// `hashed`: the index is a hash of the address.
    pub fn set_tlb_shape(&mut self, bits: u32, hashed: bool) {
        self.flush_tlb();
        self.tlb.set_shape((1 << bits.min(TLB_BITS)) - 1, hashed);
    }

    /// The entry that would serve `va`, for tests and for emitters that want to look.
    pub fn probe(&self, va: GuestVirt) -> TlbEntry {
        self.tlb.entry(self.tlb.slot(va.get().wrapping_add(BIAS)))
    }

    /// Does the TLB hold a translation of this page that lets plain stores through?
    pub fn is_store_fast(&self, va: GuestVirt) -> bool {
        let biased = va.get().wrapping_add(BIAS) & !FLAGS;
        biased != 0 && self.probe(va).write & !crate::tlb::entry::OTHER == biased
    }

    /// Is a dirty ring of this vCPU at its soft limit? Then it must not run until its pages were harvested (RING-1).
    #[inline]
    pub fn ring_is_full(&mut self) -> bool {
        self.rings.is_soft_full(self.space.ram().dirty())
    }

    /// Empties the TLB, fetch entries too.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush_all();
        self.stats.flushes += 1;
    }

    /// Makes own entries of a RAM page say who listens now. The translator calls it after `announce`.
    pub fn arm_page(&mut self, page: PageIndex) {
        self.stats.refreshed += 1;
        self.tlb.refresh_page(&self.space, page, &pin());
    }

    /// First half of CODE-1 in one call: announce the lines, arm own entries, post the re-arm to every other vCPU.
    /// Then read the bytes. Until the rest have served it, one of them may still store there unheard: when they have,
    /// compare the bytes again, and at each `fence.i` until then.
    #[must_use = "until it is served, the bytes may change unheard"]
    pub fn announce_code(&mut self, page: PageIndex, lines: u64) -> Pending {
        let spans = (0..64).filter(|n| lines >> n & 1 != 0).map(|n| (64 * n, 64 * n + 64));
        self.announce_spans(page, spans)
    }

    /// As `announce_code`, for bytes `[from, to)` of the page: stores beside them are not heard.
    #[must_use = "until it is served, the bytes may change unheard"]
    pub fn announce_spans(&mut self, page: PageIndex, spans: impl Iterator<Item = (u64, u64)> + Clone) -> Pending {
        let guard = pin();
        self.space.code().announce_spans(self.space.ram().dirty(), page, spans, self.port.id(), &guard);
        self.stats.refreshed += 1;
        self.tlb.refresh_page(&self.space, page, &guard);
        self.space.vcpus().post_others(&self.port, Request::Rearm(PageRange::of_page(page)))
    }

    /// This vCPU does not touch guest memory from here on, until `running`: whatever is posted counts as served.
    ///
    /// Nothing checks that, as a check would cost each store. Who parks, and then stores before it has
    /// [served](Self::serve), stores unheard: a page that was just harvested changes and stays clean, code that was
    /// patched lives on, what was unmapped is written to. Its memory is still there: the entries' view is, until `serve`.
    /// A thread that owns the vCPU and harvests, too, stays parked (it cannot wait for itself) and serves after each
    /// harvest.
    pub fn park(&mut self) {
        self.port.park();
    }

    /// The vCPU is back, until the result is dropped. The next thing it does is [`serve`](Self::serve): what was posted
    /// while it was parked counts as served already.
    pub fn running(&mut self) -> Running {
        self.port.running()
    }

    /// Sleeps, parked, until kicked, or until the time is up; returns whether it was kicked. A kick that came before
    /// counts. For `wfi`: with no RCU guard held (SAFE-1), and the next thing is [`serve`](Self::serve), as a re-arm or
    /// a kill may have come without waking it.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        self.port.wait(timeout)
    }

    /// Serves what others posted. Call it at safe points only: between instructions, with no pointer into guest RAM
    /// held and no check elided across it.
    #[inline]
    pub fn serve<H: Hooks>(&mut self, hooks: &mut H) -> ServeReport {
        if self.port.kicked() { self.serve_posted(hooks) } else { ServeReport::default() }
    }

    #[cold]
    fn serve_posted<H: Hooks>(&mut self, hooks: &mut H) -> ServeReport {
        if !self.port.take_kick() {
            return ServeReport::default();
        }
        let mut drained = self.port.drain();
        match catch_unwind(AssertUnwindSafe(|| self.act(hooks, &mut drained))) {
            Ok(report) => {
                // Acted first, acknowledged last (HARVEST-1 counts on it).
                self.port.acknowledge(drained);
                report
            }
            // A hook panicked. What comes after must not be answered while this is not done.
            Err(panic) => {
                self.port.put_back(drained);
                resume_unwind(panic)
            }
        }
    }

    /// Does all that was asked. If a hook panics it may be done again, from the start.
    fn act<H: Hooks>(&mut self, hooks: &mut H, drained: &mut Drained) -> ServeReport {
        let mut report = ServeReport::default();
        let mut rearms = Vec::new();
        for &request in &drained.requests {
            match request {
                Request::KillCode { ram, len } => {
                    let killed = hooks.code_written(self.space.code(), ram, len);
                    self.stats.killed += killed as u64;
                    report.killed = report.killed.saturating_add(killed as u32);
                }
                Request::Rearm(range) => rearms.push(range),
                Request::Remap { start, last } => {
                    self.forget(hooks, start, last);
                    report.remapped += 1;
                }
                Request::FlushAll => {
                    // The order matters: no entry may outlive the view that keeps its memory alive.
                    self.flush_tlb();
                    hooks.flushed();
                    self.clear_reservation();
                    // Nothing is left of the old view, so it may be any newer one.
                    drained.view = Some(self.space.snapshot());
                    report.flushed = true;
                }
            }
        }
        if !rearms.is_empty() {
            report.rearmed = self.tlb.refresh_ranges(&self.space, &mut rearms, &pin());
            self.stats.refreshed += report.rearmed;
        }
        self.take_view(drained);
        report
    }

    /// Drops everything that came from these guest pages (RAM-1). Where nothing was, nothing came from there: more RAM
    /// costs a look at the old view.
    fn forget<H: Hooks>(&mut self, hooks: &mut H, start: GuestPhys, last: GuestPhys) {
        let (first, last) = (start.page_base().get(), last.get() | (PAGE_SIZE - 1));
        let mut was = self.view.overlapping(first, last).peekable();
        if was.peek().is_none() {
            return;
        }
        self.tlb.forget(first, last);
        self.tlb.set_reservation(Reservation::default());
        for range in was {
            if let What::Ram { block, off, .. } = &range.what {
                // Guest and RAM pages coincide, so both round to the same page.
                let from = range.start.max(first) & !(PAGE_SIZE - 1);
                let to = range.last.min(last) | (PAGE_SIZE - 1);
                let ram = ram_address(block, *off).get().wrapping_add(from.wrapping_sub(range.start));
                hooks.unmapped(GuestPhys::new(from), GuestPhys::new(to), RamAddr::new(ram));
            }
        }
    }

    /// Puts the view that came with the remaps in place of the old one, which `drained` then drops. A vCPU that is new
    /// may have a newer one than its first remap brings: then nothing came from older ones.
    fn take_view(&mut self, drained: &mut Drained) {
        if let Some(view) = &mut drained.view
            && view.version() > self.view.version()
        {
            core::mem::swap(&mut self.view, view);
        }
    }
}

impl Drop for SoftMmu {
    fn drop(&mut self) {
        // Its translations go with it.
        self.space.code().forget(self.space.ram().dirty(), self.port.id(), &pin());
        self.port.close();
    }
}

impl core::fmt::Debug for SoftMmu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftMmu").field("stats", &self.stats).finish_non_exhaustive()
    }
}

//! `SoftMmu`: one vCPU's way to memory, and the vCPU that runs, as types.
//!
//! ```text
//!   SoftMmu ── parked: touches no guest memory, holds up no log
//!      │  run(hooks), start(hooks): runs on this thread; what was posted meanwhile is served at once
//!      ▼
//!   LiveMmu ── load, store, fetch, amo, serve: live.rs
//!      ▲
//!   Running<'_> (a borrow), or Started and `SoftMmu::live` (for an engine that emitted code leads back to): parks on drop
//! ```
//!
//! So safe code cannot write a store of a parked vCPU, nor one between a start and its first `serve`, and a new vCPU
//! answers for itself. `live` is unsafe: it lends the vCPU by a borrow that does not know of the `Started`.

use crate::live::LiveMmu;
use crate::memmap::AddressSpace;
use crate::safepoint::Started;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use notdirty_core::{MissingError, RamAddr, Waiter};
use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::addr::{GuestPhys, GuestVirt, MemSize};
use crate::fault::FaultCause;
use crate::translate::{Access, Physical, Translation};

/// How long a vCPU looks for a page that is yet to come before it sleeps. A sleep costs some 6 us more than the page takes; of a source that is
/// far this is little.
const LOOK: Duration = Duration::from_micros(30);

/// What an access needs from the engine above.
pub trait Hooks: CodeInvalidator {
    /// Where does this access go? Asked on each miss, in the middle of the access: page tables are read, and their marks set, through
    /// `memory`, to which this passes itself. What comes back may be kept until [`LiveMmu::flush_translations`] says otherwise.
    ///
    /// The address space is the one that [`LiveMmu::set_asid`] named last; the hooks know its page tables. The default maps each
    /// address to itself. For tables, rights and two address spaces see `examples/tables.rs`. What the tables refuse is an error here; what
    /// [`Translation::rights`] lacks is an access fault.
    ///
    /// # Errors
    /// Why the access does not take place; it becomes the cause of the [`MemFault`](crate::MemFault) that the access returns.
    #[inline]
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause>
    where
        Self: Sized,
    {
        let _ = memory;
        Ok(Translation::identity(access.va))
    }
    /// Where would this load go? It is not made, so nothing is changed, no mark set; what comes back may be kept as if it had been.
    ///
    /// It is of one byte, the first of a page between others that are in use, in the regime and the address space of the access that has just
    /// missed: up to 65,536 pages at first, later one for each 16 misses. Emitted code alone makes use of it, which then loads from all of them
    /// without entries ([`Selected::run`](crate::tlb::entry::Selected::run)). `None`, the default, is always right.
    fn look(&mut self, memory: &mut Physical<'_>, access: Access) -> Option<Translation>
    where
        Self: Sized,
    {
        let _ = (memory, access);
        None
    }
    /// An access to bytes of [`SoftMmu::tell_of`] was made, with this value. Shall the vCPU look behind the instruction? Then it is
    /// kicked.
    fn accessed(&mut self, _va: GuestVirt, _size: MemSize, _value: u64, _store: bool) -> bool {
        false
    }
    /// A device is about to be called: publish the instruction count to the clock.
    fn before_mmio(&mut self) {}
    /// The guest pages of `[start, last]` (whole pages) were RAM from `ram` on, and are so no more: drop every TB that
    /// has a guest address there. The memory is still alive.
    fn unmapped(&mut self, _start: GuestPhys, _last: GuestPhys, _ram: RamAddr) {}
    /// The memory map changed in too many places: drop every TB.
    fn flushed(&mut self) {}
}

/// What drops translations when the bytes under them change.
pub trait CodeInvalidator {
    /// Bytes `[ram, ram + len)` were written (already visible): drop every TB that overlaps; returns how many died. One whose
    /// bytes are in RAM now may stay: whatever is written later is told later.
    fn code_written(&mut self, ram: RamAddr, len: u64) -> usize;
}

/// An engine that caches no translations.
#[derive(Clone, Copy, Default, Debug)]
pub struct NoHooks;

impl CodeInvalidator for NoHooks {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
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
    /// Stores that a client or the translator heard.
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
    /// Accesses that were not made, as their page, or a page table, is yet to come.
    pub missing: u64,
    /// Accesses that ended in a fault.
    pub faults: u64,
    /// Whole TLB flushes.
    pub flushes: u64,
    /// Entries for loads and stores that flushes of translations dropped; those for fetches are not counted.
    pub dropped: u64,
    /// Pages, or entries, that were looked at to be armed or disarmed.
    pub refreshed: u64,
    /// Entries that re-arms changed: those that let stores pass unheard.
    pub armed: u64,
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
            missing,
            faults,
            flushes,
            dropped,
            refreshed,
            armed,
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
        self.missing += missing;
        self.faults += faults;
        self.flushes += flushes;
        self.dropped += dropped;
        self.refreshed += refreshed;
        self.armed += armed;
    }
}

/// What was served at a safe point.
#[must_use = "killed code and flushed maps concern the engine's caches too"]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ServeReport {
    /// TBs dropped because another vCPU, a device or the host wrote their bytes.
    pub killed: u32,
    /// Pages, or entries if there are fewer, that were looked at to be armed again.
    pub rearmed: u64,
    /// The whole TLB was emptied: the memory map (may have) changed anywhere.
    pub flushed: bool,
    /// Places where the memory map changed.
    pub remapped: u32,
}

/// One vCPU's way to memory, parked. It belongs to one thread at a time, to which it can be moved.
///
/// What is looked at without an access ([`LiveMmu`]'s `&self` methods) can be looked at here.
///
/// ```
/// # use notdirty_softmmu::{AddressSpace, GuestPhys, GuestVirt, MemSize, MmuIdx, NoHooks, SoftMmu};
/// # use notdirty_core::{RamBlockSpec, RamList};
/// # use std::sync::Arc;
/// # let ram = Arc::new(RamList::new());
/// # let block = ram.add(RamBlockSpec::new("ram", 0x4000))?;
/// # let space = AddressSpace::new(ram);
/// # space.map_ram(GuestPhys::new(0), &block, 0, 0x4000, 0)?;
/// let mut mmu = SoftMmu::new(&space, 0)?;
/// let mut vcpu = mmu.run(&mut NoHooks);
/// vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(8), MemSize::B8, 1).unwrap();
/// drop(vcpu); // parked again
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A vCPU that runs cannot be started a second time, so no end of an inner run parks the outer one:
///
/// ```compile_fail,E0499
/// # use notdirty_softmmu::{MemSize, MmuIdx, NoHooks, SoftMmu, GuestVirt};
/// fn twice(mmu: &mut SoftMmu) {
///     let mut outer = mmu.run(&mut NoHooks);
///     drop(mmu.run(&mut NoHooks));
///     let _ = outer.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(0), MemSize::B8, 1);
/// }
/// ```
///
/// A parked vCPU does not store, and so not before it has served what was posted:
///
/// ```compile_fail,E0596
/// # use notdirty_softmmu::{MemSize, MmuIdx, NoHooks, SoftMmu, GuestVirt};
/// fn unheard(mmu: &mut SoftMmu) {
///     let _ = mmu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(0), MemSize::B8, 1);
/// }
/// ```
///
/// And requests are made in this crate only, so none is ill-formed:
///
/// ```compile_fail,E0624
/// # use notdirty_softmmu::{SoftMmu, GuestPhys};
/// fn backwards(mmu: &SoftMmu) {
///     mmu.port().post(notdirty_softmmu::Request::Remap { start: GuestPhys::new(0x3000), last: GuestPhys::new(0) });
/// }
/// ```
pub struct SoftMmu {
    mmu: LiveMmu,
}

// SAFETY: all that it owns can be sent: the TLB, whose pointers are its own or are kept alive by the view, `Arc`s, the port and the
// rings. That a `LiveMmu` cannot is of its use alone: it is lent out on the thread of its start (`run`, `live`), wherever it was
// before.
unsafe impl Send for SoftMmu {}

impl SoftMmu {
    /// A vCPU's TLB on this address space, with `prefix` bytes (a multiple of 64) before the table for the owner. Parked.
    ///
    /// # Errors
    /// The host has no memory, or `prefix` is no multiple of 64.
    pub fn new(space: &Arc<AddressSpace>, prefix: usize) -> io::Result<SoftMmu> {
        Ok(SoftMmu { mmu: LiveMmu::new(space, prefix)? })
    }

    /// Runs the vCPU on this thread until the result is dropped: requests posted to it wait for its answers, at its safe
    /// points. What was posted while it was parked is served first of all.
    pub fn run<H: Hooks>(&mut self, hooks: &mut H) -> Running<'_> {
        // What an earlier `start` left running parks: the borrow says that its engine is not in emitted code.
        self.mmu.port.park();
        self.mmu.port.begin();
        let mut running = Running { mmu: &mut self.mmu, served: ServeReport::default(), thread: PhantomData };
        running.served = running.mmu.serve(hooks);
        running
    }

    /// As `run`, for an engine that cannot hold a borrow, as emitted code leads back to what owns this: while the result
    /// lives, [`live`](Self::live) is the vCPU. `None` if it runs already.
    pub fn start<H: Hooks>(&mut self, hooks: &mut H) -> Option<(Started, ServeReport)> {
        let started = self.mmu.port.start()?;
        let served = self.mmu.serve(hooks);
        Some((started, served))
    }

    /// As `start`, for an engine that runs once in a while, for some nanoseconds.
    ///
    /// # Safety
    /// The [`Started`] is dropped before this is.
    pub unsafe fn start_within<H: Hooks>(&mut self, hooks: &mut H) -> Option<(Started, ServeReport)> {
        // SAFETY: the port goes with this.
        let started = unsafe { self.mmu.port.start_within() }?;
        let served = self.mmu.serve(hooks);
        Some((started, served))
    }

    /// The vCPU, if it runs on this thread, which is that of its start.
    ///
    /// # Safety
    /// The [`Started`] of this run is dropped only after the last use of the result, and the vCPU behind the result is not
    /// swapped with another: a vCPU that parked counts as having answered, so its stores are not heard (HARVEST-1).
    #[inline]
    pub unsafe fn live(&mut self) -> Option<&mut LiveMmu> {
        if self.mmu.port.is_live() { Some(&mut self.mmu) } else { None }
    }

    /// Sleeps, parked, until kicked, or until the time is up; returns whether it was kicked. A kick that came before
    /// counts. For `wfi`: with no RCU guard held (SAFE-1). A vCPU that goes on runs again, and so serves.
    pub fn wait(&mut self, timeout: Option<Duration>) -> bool {
        self.mmu.port.wait(timeout)
    }

    /// Sleeps, parked, until the page of RAM that [`LiveMmu::take_missing`] named is here, the vCPU is kicked, or the time is up; says whether
    /// the page is here. `number`: the vCPU's, for the times that were waited. With no RCU guard held (SAFE-1). A vCPU that goes on
    /// runs again, and so serves; it makes the access again, which finds the page, or waits once more.
    ///
    /// # Errors
    /// [`MissingError::Ended`]: it does not come any more.
    pub fn wait_for_page(
        &mut self,
        page: RamAddr,
        number: u32,
        timeout: Option<Duration>,
    ) -> Result<bool, MissingError> {
        // Before the source is asked: it may take its time.
        self.mmu.port.park();
        let Some(pages) = self.mmu.space.ram().missing() else { return Ok(true) };
        let waker = Waker::from(self.mmu.port.shared().clone());
        let Some(waiting) = pages.begin_wait(page, waker, Waiter::Vcpu(number))? else { return Ok(true) };
        // What is near comes sooner than a sleep ends; a thread that brings it may need this processor.
        let begun = Instant::now();
        while begun.elapsed() < LOOK && !waiting.is_over() && !self.mmu.port.kicked() {
            let late = || timeout.is_some_and(|most| begun.elapsed() >= most);
            if !pages.help(&mut || waiting.is_over() || self.mmu.port.kicked() || late()) {
                std::thread::yield_now();
            }
        }
        if !waiting.is_over() {
            // Held up since it began, this thread may never have asked: then the source learns here that another has to read.
            pages.help(&mut || true);
            self.mmu.port.wait(timeout);
        }
        Ok(waiting.is_over())
    }

    /// See [`LiveMmu::set_flat_addend`].
    pub fn set_flat_addend(&mut self, addend: u64) {
        self.mmu.set_flat_addend(addend);
    }

    /// See [`LiveMmu::set_flat_start`].
    pub fn set_flat_start(&mut self, start: u64) {
        self.mmu.set_flat_start(start);
    }

    /// See [`LiveMmu::set_flat_beside`].
    pub fn set_flat_beside(&mut self, beside: bool) {
        self.mmu.set_flat_beside(beside);
    }

    /// See [`LiveMmu::set_tlb_shape`].
    pub fn set_tlb_shape(&mut self, bits: u32, hashed: bool) {
        self.mmu.set_tlb_shape(bits, hashed);
    }

    /// See [`LiveMmu::ring_is_full`].
    pub fn ring_is_full(&mut self) -> bool {
        self.mmu.ring_is_full()
    }

    /// The vCPU, which is parked: the borrow says that its engine is not in emitted code.
    #[inline]
    pub(crate) fn parked_mut(&mut self) -> &mut LiveMmu {
        if !self.mmu.port.is_parked() {
            self.mmu.port.park();
        }
        &mut self.mmu
    }

    /// The vCPU, parked or not, for what concerns nobody else.
    #[inline]
    pub(crate) fn parked_or_live(&mut self) -> &mut LiveMmu {
        &mut self.mmu
    }

    /// The counters of coverage that emitted code keeps behind the table ([`tlb::COVERAGE_AT`](crate::tlb::COVERAGE_AT)); zero at first.
    pub fn coverage(&mut self) -> &mut [u8] {
        // SAFETY: plain bytes of the TLB's mapping, and the vCPU is not in emitted code, as the borrow says.
        unsafe { self.parked_mut().tlb.coverage().as_mut() }
    }

    /// The operands that emitted code keeps behind the counters ([`tlb::OPERANDS_AT`](crate::tlb::OPERANDS_AT)); zero at first.
    pub fn operands(&mut self) -> &mut [[u64; 2]] {
        // SAFETY: as in `coverage`.
        unsafe { self.parked_mut().tlb.operands().as_mut() }
    }

    /// Forgets the reservation (reset).
    pub fn clear_reservation(&mut self) {
        self.mmu.clear_reservation();
    }
}

impl Deref for SoftMmu {
    type Target = LiveMmu;

    fn deref(&self) -> &LiveMmu {
        &self.mmu
    }
}

impl core::fmt::Debug for SoftMmu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SoftMmu").field("stats", self.stats()).finish_non_exhaustive()
    }
}

/// A vCPU that runs, on this thread; it parks when this is dropped.
///
/// A thread that starts a log, syncs one, or waits for an unmapping waits for each vCPU that runs: its loop calls
/// [`serve`](LiveMmu::serve) again and again, between instructions, and this is dropped before the thread sleeps.
#[must_use = "the vCPU parks when this is dropped"]
#[derive(Debug)]
pub struct Running<'m> {
    mmu: &'m mut LiveMmu,
    served: ServeReport,
    /// As of [`Started`]: not sent to another thread.
    thread: PhantomData<*const ()>,
}

impl Running<'_> {
    /// What was served when it started.
    pub fn served(&self) -> ServeReport {
        self.served
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // Whichever vCPU is in there now: it may have been swapped with another that runs.
        self.mmu.port.park();
    }
}

impl Deref for Running<'_> {
    type Target = LiveMmu;

    fn deref(&self) -> &LiveMmu {
        self.mmu
    }
}

impl DerefMut for Running<'_> {
    fn deref_mut(&mut self) -> &mut LiveMmu {
        self.mmu
    }
}

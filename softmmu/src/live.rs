//! What one vCPU owns of the memory subsystem, and what it does at its safe points.
//!
//! ```text
//!   LiveMmu ── tlb ─────── raw pointers into RAM blocks and devices
//!      │                        ▲ kept alive by
//!      ├── view: Arc<FlatView> ─┘   changed only in `serve`, after what came from the changed places was dropped (RAM-1)
//!      ├── space: Arc<AddressSpace> ── the RAM list: code pages (entries point at line masks), dirty memory
//!      └── port: OwnPort ◀── post, kick: other threads, by an Arc<VcpuPort>
//! ```
//!
//! Keeps TLB-1 and SAFE-1: requests are served in `serve` and nowhere else, so a pointer that is used without a check stays
//! good across any number of loads and stores.

use crate::addr::{GuestPhys, GuestVirt, MmuIdx};
use crate::fault::AccessKind;
use crate::lines::Noted;
use crate::memmap::{AddressSpace, FlatView, What};
use crate::mmu::{Hooks, ServeReport, SlowStats};
use crate::registry::Pending;
use crate::reserve::HeardSets;
use crate::safepoint::{Drained, OwnPort, Request, VcpuPort};
use crate::tlb::Tlb;
use crate::tlb::entry::{BIAS, FLAGS, NotedList, OTHER, Reservation, Selected, TLB_BITS, TlbEntry};
use crate::tlb::fill::ram_address;
use crate::translate::Asid;
use hashbrown::HashMap;
use notdirty_core::{PAGE_SIZE, PageIndex, PageRange, RamAddr, VcpuRings, drop_later, pin};
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// How long a new vCPU waits for the one that was alone to do without what it translated (WRITER-1).
const ADMIT: Duration = Duration::from_secs(10);

/// A vCPU that runs: made by [`SoftMmu::run`](crate::SoftMmu::run) or [`SoftMmu::start`](crate::SoftMmu::start), and lent out
/// as long as it does, on that thread only:
///
/// ```compile_fail,E0277
/// # use notdirty_softmmu::{LiveMmu, MemSize, MmuIdx, NoHooks, GuestVirt};
/// fn elsewhere(vcpu: &mut LiveMmu) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| vcpu.store(&mut NoHooks, MmuIdx::M, GuestVirt::new(0), MemSize::B8, 1).is_ok());
///     });
/// }
/// ```
pub struct LiveMmu {
    pub(crate) tlb: Tlb,
    /// The view the TLB's entries came from; see the header.
    pub(crate) view: Arc<FlatView>,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) port: OwnPort,
    pub(crate) rings: VcpuRings,
    pub(crate) stats: SlowStats,
    /// How often translations were forgotten.
    forgotten: u64,
    /// Of each address space, the root of the page tables that its translations came from.
    roots: HashMap<u32, u64>,
    pub(crate) heard: HeardSets,
    pub(crate) noted: Noted,
    /// The page that the last access which ended in [`FaultCause::Missing`](crate::FaultCause::Missing) waits for, and what that wanted.
    pub(crate) awaited: Option<(RamAddr, AccessKind)>,
    /// Not lent to another thread: a wait for the vCPU is refused on the thread that it runs on, and on no other.
    _thread: PhantomData<*const ()>,
}

impl LiveMmu {
    pub(crate) fn new(space: &Arc<AddressSpace>, prefix: usize) -> io::Result<LiveMmu> {
        let mut tlb = Tlb::new(prefix)?;
        // Registered before the view is taken: a change after that is posted to this vCPU.
        let port = space.vcpus().register();
        if !space.vcpus().admit_vcpu(&port, ADMIT) || !space.ram().admit_writer(space.vcpus(), ADMIT) {
            let why = "the vCPU that was alone does not answer";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        let view = space.snapshot();
        let (stats, forgotten, roots, heard, noted, awaited) = Default::default();
        let rings = VcpuRings::of(port.id());
        let space = space.clone();
        // As the view: what is missing later is posted.
        tlb.set_missing(space.ram().has_missing());
        Ok(LiveMmu {
            tlb,
            view,
            space,
            port,
            rings,
            stats,
            forgotten,
            roots,
            heard,
            noted,
            awaited,
            _thread: PhantomData,
        })
    }

    /// Start of the owner's bytes: zeroed, 64-byte aligned, `table() - prefix`. They die with this `SoftMmu`.
    pub fn prefix(&self) -> NonNull<u8> {
        self.tlb.prefix()
    }

    /// One more in a counter of coverage; those beyond the last are none.
    #[inline]
    pub fn count_coverage(&mut self, at: usize) {
        let mut all = self.tlb.coverage();
        // SAFETY: plain bytes of the TLB's mapping, of which no other reference lives while the vCPU is borrowed.
        if let Some(count) = unsafe { all.as_mut() }.get_mut(at) {
            *count = count.wrapping_add(1);
        }
    }

    /// Two operands were compared at this place; those beyond the last are none.
    #[inline]
    pub fn note_operands(&mut self, at: usize, operands: [u64; 2]) {
        // SAFETY: as in `count_coverage`.
        if let Some(place) = unsafe { self.tlb.operands().as_mut() }.get_mut(at) {
            *place = operands;
        }
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

    /// The addend that emitted code may assume in machine mode: entries with another carry OTHER and never match there. For the
    /// other regimes see [`Selected`](crate::tlb::entry::Selected).
    pub fn flat_addend(&self) -> u64 {
        self.tlb.flat_addend
    }

    /// Chooses the flat addend (host address - guest address, wrapping). Empties the TLB if that changes it.
    pub fn set_flat_addend(&mut self, addend: u64) {
        if self.tlb.flat_addend != addend {
            self.tlb.flat_addend = addend;
            self.tlb.show_selected();
            self.flush_tlb();
        }
    }

    /// Where the RAM begins that machine mode's flat addend is for: see [`Selected::whole`](crate::tlb::entry::Selected). Empties the
    /// TLB if that changes it.
    pub fn set_flat_start(&mut self, start: u64) {
        if self.tlb.flat_start != start {
            self.flush_tlb();
            self.tlb.flat_start = start;
        }
    }

    /// The other regimes assume the wrong addend, if this is set: to measure what the right one is worth. Empties the TLB.
    pub fn set_flat_beside(&mut self, beside: bool) {
        self.tlb.flat_beside = beside;
        self.flush_tlb();
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

    /// Is `va` in RAM that has another addend than emitted code assumes, as far as the TLB knows?
    pub fn is_elsewhere(&self, va: GuestVirt) -> bool {
        let entry = self.probe(va);
        let page = va.get().wrapping_add(BIAS) & !FLAGS;
        entry.read & !FLAGS == page && page != 0 && entry.read & OTHER != 0
    }

    /// Is `va` a place to load from that has the addend which emitted code assumes, but outside the run of pages that it looks for no
    /// entry in, even now that it was asked for? See [`Selected::run`](crate::tlb::entry::Selected).
    pub fn is_beside_run(&mut self, va: GuestVirt) -> bool {
        self.tlb.join_run(va.get()) == Some(false)
    }

    /// Does most of the memory that loads and stores of the regime find have another addend than emitted code assumes?
    pub fn is_scattered(&self) -> bool {
        self.tlb.is_scattered()
    }

    /// Does the TLB hold a translation of this page that lets plain stores through?
    pub fn is_store_fast(&self, va: GuestVirt) -> bool {
        let biased = va.get().wrapping_add(BIAS) & !FLAGS;
        biased != 0 && self.probe(va).write & !OTHER == biased
    }

    /// Is a dirty ring of this vCPU at its soft limit? Then it must not run until its pages were harvested (RING-1).
    #[inline]
    pub fn ring_is_full(&mut self) -> bool {
        self.rings.is_soft_full(self.space.ram().dirty())
    }

    /// From [`table`](Self::table) to the table of the regime of the last load or store, or of the last [`select`](Self::select):
    /// emitted code of that regime probes there, until the next access of another regime. It also lies behind the table:
    /// [`Selected`](crate::tlb::entry::Selected).
    pub fn table_offset(&self) -> u64 {
        self.tlb.table_offset()
    }

    /// What emitted code goes by.
    pub fn selected(&self) -> Selected {
        self.tlb.selected()
    }

    /// Loads and stores of this regime come next. Accesses name theirs; this is for emitted code, which does not.
    #[inline]
    pub fn select(&mut self, idx: MmuIdx) {
        self.tlb.select_data(idx);
    }

    /// Has the set that was [selected](Self::select) the addend of flat RAM, because what it has lies at its physical address? It does, from
    /// then on, until this says that it does not: code made for that need not look again before.
    #[inline]
    pub fn settle_flat(&mut self) -> bool {
        self.tlb.settle_flat()
    }

    /// The address space of all regimes but machine mode, from here on; a new vCPU has `Asid(0)`. Other address spaces keep their
    /// translations: a vCPU has 31 tables, each of one such regime in one address space, and what needs one more takes that
    /// which was unused for longest; its translations are asked for again.
    pub fn set_asid(&mut self, asid: Asid) {
        self.tlb.set_asid(asid);
    }

    /// Translations of an address space come from this root from here on. If they came from another before, as they may where a machine
    /// was restored to a time at which the number was free, those are forgotten; were they?
    pub fn set_root(&mut self, asid: Asid, root: u64) -> bool {
        let moved = self.roots.insert(asid.0, root).is_some_and(|before| before != root);
        if moved {
            self.flush_translations(None, Some(asid));
        }
        moved
    }

    /// The address space that [`set_asid`](Self::set_asid) named last.
    pub fn asid(&self) -> Asid {
        self.tlb.asid()
    }

    /// Forgets what was translated for the regimes that are not machine mode, and nothing else. `va`: the page of this address, with
    /// whatever was mapped together with it; `None`: all pages. `asid`: this address space, global translations excepted; `None`: all
    /// of them. Other vCPUs are not told: each calls it for itself. Costs what it drops.
    pub fn flush_translations(&mut self, va: Option<GuestVirt>, asid: Option<Asid>) {
        self.forgotten += 1;
        self.stats.dropped += self.tlb.flush_translations(va.map(GuestVirt::get), asid) as u64;
    }

    /// How often translations were forgotten: an engine that keeps what came from them compares it with what it saw.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Empties the TLB, fetch entries too.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush_all();
        self.forgotten += 1;
        self.stats.flushes += 1;
    }

    /// Makes own entries of a RAM page tell whichever clients listen now. The translator calls it after `announce`.
    pub fn arm_page(&mut self, page: PageIndex) {
        self.stats.refreshed += 1;
        self.stats.armed += self.tlb.arm_page(&self.space, page, &pin()) as u64;
    }

    /// First half of CODE-1 in one call: announce the lines, arm own entries, post the re-arm to every other vCPU, of
    /// other address spaces too.
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
        self.space.ram().dirty().announce_spans(page, spans, self.port.id(), &guard);
        drop(guard);
        self.rearm_all(page)
    }

    /// Arms own entries of the page, and posts the same to every other vCPU.
    pub(crate) fn rearm_all(&mut self, page: PageIndex) -> Pending {
        self.arm_page(page);
        let (range, vcpus) = (PageRange::of_page(page), self.space.vcpus());
        let own_space = vcpus.post_others(&self.port, Request::Rearm(range));
        own_space.with(self.space.ram().rearm_others(&[range], vcpus))
    }

    /// Serves what others posted. Call it at safe points only: between instructions, with no pointer into guest RAM
    /// held and no check elided across it.
    #[inline]
    pub fn serve<H: Hooks>(&mut self, hooks: &mut H) -> ServeReport {
        if self.port.kicked() && self.take_kick() { self.serve_posted(hooks) } else { ServeReport::default() }
    }

    /// The page that an access waits for which ended in [`FaultCause::Missing`](crate::FaultCause::Missing), and what that wanted: the engine
    /// parks the vCPU, waits for it (core's `MissingPages::begin_wait`, or `wait`), and makes the access again.
    pub fn take_missing(&mut self) -> Option<(RamAddr, AccessKind)> {
        self.awaited.take()
    }

    /// Takes a kick. Was anything posted with it? Then the caller calls [`serve_posted`](Self::serve_posted), at this safe point.
    /// Most kicks are those of devices, which post nothing.
    #[inline]
    pub fn take_kick(&mut self) -> bool {
        self.port.take_kick()
    }

    /// As [`serve`](Self::serve), whether the vCPU is kicked or not.
    #[cold]
    pub fn serve_posted<H: Hooks>(&mut self, hooks: &mut H) -> ServeReport {
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
        self.tlb.set_missing(self.space.ram().has_missing());
        for &request in &drained.requests {
            match request {
                Request::KillCode { ram, len } => {
                    let killed = hooks.code_written(ram, len);
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
                    // Perhaps another vCPU is about to come (WRITER-1).
                    self.tlb.set_noted_list(NotedList { alone: 0, ..self.tlb.noted_list() });
                    hooks.flushed();
                    self.clear_reservation();
                    // Nothing is left of the old view, so it may be any newer one.
                    // A vCPU's thread runs no destructor of a device.
                    drained.view.replace(self.space.snapshot()).into_iter().for_each(drop_later);
                    report.flushed = true;
                }
            }
        }
        if !rearms.is_empty() {
            let (cost, armed) = self.tlb.arm_ranges(&self.space, &mut rearms, &pin());
            report.rearmed = cost;
            self.stats.refreshed += cost;
            self.stats.armed += armed;
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
        self.tlb.set_reservation(Reservation::default());
        let mut pages = Vec::new();
        for range in was {
            if let What::Ram { block, off, .. } = &range.what {
                // Guest and RAM pages coincide, so both round to the same page.
                let from = range.start.max(first) & !(PAGE_SIZE - 1);
                let to = range.last.min(last) | (PAGE_SIZE - 1);
                let ram = ram_address(block, *off).get().wrapping_add(from.wrapping_sub(range.start));
                let start = RamAddr::new(ram).page();
                pages.push(PageRange { start, end: PageIndex::new(start.get() + (to - from) / PAGE_SIZE + 1) });
                hooks.unmapped(GuestPhys::new(from), GuestPhys::new(to), RamAddr::new(ram));
            }
        }
        self.tlb.forget(&pages, (first, last));
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

impl Drop for LiveMmu {
    fn drop(&mut self) {
        // Its translations go with it.
        self.space.ram().dirty().forget_code_of(self.port.id(), &pin());
        self.port.close();
    }
}

impl core::fmt::Debug for LiveMmu {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("LiveMmu").field("stats", &self.stats).finish_non_exhaustive()
    }
}

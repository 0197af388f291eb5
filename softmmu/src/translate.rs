//! What an embedder says of an address: the way from virtual to physical, which only the guest's architecture knows.
//!
//! ```text
//!   a miss ─▶ Hooks::translate(Access) ─ reads and changes page tables through Physical ─▶ Translation ─▶ an entry
//!                                                    │
//!                                                    └ a store is a store: old bytes, dirty bits, rings, code
//! ```
//!
//! A vCPU keeps translations by regime ([`MmuIdx`], which each access names) and by address space ([`Asid`], which
//! [`LiveMmu::set_asid`] names), and forgets what [`LiveMmu::flush_translations`] says. Machine mode ([`MmuIdx::M`]) has one
//! address space.

use crate::addr::{GuestPhys, GuestVirt, MemSize, MmuIdx};
use crate::fault::AccessKind;
use crate::host;
use crate::live::LiveMmu;
use crate::memmap::{Resolved, Span};
use crate::mmu::Hooks;
use crate::rights::Rights;
use crate::tlb::fill::{host_address, ram_address};
use crate::tlb::tables::TablePage;
use notdirty_core::{PAGE_BITS, RamAddr};
use std::ptr::with_exposed_provenance_mut;

/// An address space of the guest's: a number of the embedder's, such as an ASID with the mode of translation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Asid(pub u32);

/// An access that has no entry: what [`Hooks::translate`] is asked about. Of an access over two pages each page is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// The regime that the access was made in.
    pub idx: MmuIdx,
    /// Its first byte on this page.
    pub va: GuestVirt,
    /// Its bytes from there on, on this page; 1 to 8.
    pub len: u64,
    /// What it wants. LR loads; SC and AMOs store.
    pub kind: AccessKind,
}

/// Where a virtual page leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical page of 4 KiB that this address is on, also where it is part of a superpage: each of its pages is asked about by itself. What lies below a
    /// page in it is ignored.
    pub page: GuestPhys,
    /// Base-2 logarithm of the bytes mapped as one, aligned to that: [`LiveMmu::flush_translations`] of any address there forgets all of
    /// it. 12 is a page, and the least; more than 63 counts as 63.
    pub size_log2: u8,
    /// What may be done there until it is forgotten. If the kind of this access is not among them, the access ends in
    /// [`FaultCause::Access`](crate::FaultCause::Access): where the page tables refuse it, return `Err(FaultCause::Page)` instead. A later
    /// access of another kind is asked about again, so a page without its dirty mark is given without `store`.
    pub rights: Rights,
    /// It holds in every address space, each of which asks once, and outlives a flush of one.
    pub global: bool,
    /// May it be kept? Else it is for this access alone, as where protection is finer than a page.
    pub lasting: bool,
    /// In machine mode: is virtual physical everywhere, and may everything be loaded, until a flush of all?
    pub everywhere: bool,
}

impl Translation {
    /// Virtual is physical, and anything goes.
    #[inline]
    pub const fn identity(va: GuestVirt) -> Translation {
        let page = GuestPhys::new(va.page_base().get());
        Translation {
            page,
            size_log2: PAGE_BITS as u8,
            rights: Rights::ALL,
            global: false,
            lasting: true,
            everywhere: false,
        }
    }

    /// Where this address of the page is.
    #[inline]
    pub(crate) const fn at(&self, va: GuestVirt) -> GuestPhys {
        GuestPhys::new(self.page.page_base().get() | va.page_offset())
    }
}

/// The guest's memory by physical addresses, for a page walk in the middle of an access. RAM only: a table in a device or in a
/// hole is not there.
pub struct Physical<'m> {
    mmu: &'m mut LiveMmu,
}

impl<'m> Physical<'m> {
    #[inline]
    pub(crate) fn new(mmu: &'m mut LiveMmu) -> Physical<'m> {
        Physical { mmu }
    }

    /// The eight bytes at `at` as a little-endian number, in one host access; `None` if `at` is no multiple of eight, or not RAM, or RAM
    /// that is yet to come: then whatever error the walk ends in becomes [`FaultCause::Missing`](crate::FaultCause::Missing).
    #[inline]
    pub fn read(&mut self, at: GuestPhys) -> Option<u64> {
        let host = match self.mmu.tlb.tables.get(at.get()) {
            Some(page) if at.get().is_multiple_of(8) => page.host.wrapping_add(at.page_offset() as usize),
            _ => self.cell(at)?.0,
        };
        // SAFETY: `cell` found an aligned cell of live RAM.
        Some(unsafe { host::load(host, MemSize::B8) })
    }

    /// Replaces the eight bytes at `at` (little-endian) if they are `old`, atomically, as a store does: dirty bits are set, and code that
    /// lies there is reported to `hooks`. `Some(true)` if they were replaced, `Some(false)` if they were others: read again. `None` if
    /// `at` is no multiple of eight, not RAM, or ROM.
    pub fn replace<H: Hooks>(&mut self, hooks: &mut H, at: GuestPhys, old: u64, new: u64) -> Option<bool> {
        let (host, ram, readonly) = self.cell(at)?;
        if readonly {
            return None;
        }
        self.mmu.space.ram().before(ram, 8).ok()?;
        let entered = self.mmu.enter(false, ram, 8);
        // SAFETY: `cell` found an aligned cell of live, writable RAM.
        let wrote = unsafe { host::compare_exchange(host, MemSize::B8, old, new) };
        drop(entered);
        if wrote {
            // The vCPU leaves behind this instruction if a ring is full: it was kicked.
            let _ = self.mmu.notdirty_store(hooks, None, ram, 8);
        }
        Some(wrote)
    }

    /// Where the cell at `at` is: in the host, in RAM, and whether it is ROM.
    #[cold]
    fn cell(&mut self, at: GuestPhys) -> Option<(*mut u8, RamAddr, bool)> {
        if !at.get().is_multiple_of(8) {
            return None;
        }
        let page = self.mmu.tlb.tables.get(at.get());
        let TablePage { host, ram, readonly, .. } = match page {
            Some(page) => *page,
            None => self.add_page(at)?,
        };
        let off = at.page_offset();
        Some((host.wrapping_add(off as usize), RamAddr::new(ram.get() + off), readonly))
    }

    fn add_page(&mut self, at: GuestPhys) -> Option<TablePage> {
        let LiveMmu { view, tlb, space, .. } = &mut *self.mmu;
        let (block, off, readonly, whole) = match (view.page(at), view.resolve(at)) {
            (Span::Whole(..), Resolved::Ram { block, off, readonly, .. }) => (block, off, readonly, true),
            (Span::Mixed, Resolved::Ram { block, off, readonly, len_left: 8.. }) => (block, off, readonly, false),
            _ => return None,
        };
        // Guest and RAM pages coincide, so the page's start lies in the block.
        let off = off - at.page_offset();
        if space.ram().is_missing(ram_address(block, off)) {
            // The access that walks waits for it.
            self.mmu.awaited = Some((ram_address(block, off), AccessKind::Load));
            return None;
        }
        let host = with_exposed_provenance_mut(host_address(block, off) as usize);
        let page = TablePage::new(at.get(), host, ram_address(block, off), readonly);
        space.code().page_or_insert(ram_address(block, off).page()).note_table();
        if whole {
            tlb.tables.add(page);
        }
        Some(page)
    }
}

impl core::fmt::Debug for Physical<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Physical").finish_non_exhaustive()
    }
}

//! Stores whose lines a checkpoint wants to know: the vCPU's part of LINE-1.
//!
//! ```text
//!   entry with LINES, aligned ─▶ host store ─▶ CodePage::note ─┬─ first of its page: into the vCPU's list
//!                                                              └─ one too many: the page counts as written whole, the entry is plain
//!   any other store that is heard ─▶ notdirty.rs ─▶ the same
//!   restore, the vCPU is parked:  SoftMmu::noted_pages ─▶ the image puts them back ─▶ SoftMmu::arm_noted
//! ```
//!
//! Emitted code does the first of these by itself (tcg-hooks `jit/x86_64/again.rs`) and comes here when the list is full or the page
//! was stored to often. The list is the vCPU's own, and the page's record all vCPUs': two may both list a page, and the second
//! finds nothing.

use crate::access::StoreEffect;
use crate::addr::{GuestVirt, MemSize};
use crate::host;
use crate::live::LiveMmu;
use crate::mmu::SoftMmu;
use crate::reserve::STRICT;
use crate::tlb::entry::{NotedList, Reservation};
use notdirty_core::{CodePage, PageIndex, PageRange, RamAddr, lines_of, pin};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Places of a list that is new.
const PLACES: usize = 1024;

/// The pages that a vCPU noted, by the host addresses of their `CodePage`s.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// Used by address only; how far, the table's `NotedList` says.
    _places: Vec<u64>,
    /// Its address; zero before there is one.
    start: u64,
}

impl LiveMmu {
    /// A store through an entry with LINES alone, aligned.
    pub(crate) fn store_and_note(&mut self, slot: usize, va: GuestVirt, size: MemSize, value: u64) -> StoreEffect {
        let entry = self.tlb.entry(slot);
        let host = va.get().wrapping_add(entry.addend);
        // SAFETY: the write comparator matched but for LINES: aligned, live, writable RAM.
        unsafe { host::store(with_exposed_provenance_mut(host as usize), size, value) };
        // SAFETY: with LINES, `aux` is the address of a `CodePage`, which lives as long as the RAM list, and so as `self.space`.
        let page = unsafe { &*with_exposed_provenance::<CodePage>(entry.aux as usize) };
        self.note(page, lines_of(va.page_offset(), size.bytes()));
        if page.is_noted_whole() {
            self.stats.refreshed += 1;
            self.tlb.refresh_entry(&self.space, self.tlb.id(slot), page.index(), &pin());
        }
        StoreEffect::NONE
    }

    /// Bytes on one page were stored by this vCPU, heard by whatever listens.
    #[inline]
    pub(crate) fn note_lines(&mut self, ram: RamAddr, len: u64) {
        let dirty = self.space.ram().dirty();
        if dirty.notes_lines()
            && let Some(page) = dirty.noted_page(ram.page())
        {
            let page = std::ptr::from_ref(page);
            // SAFETY: it lives as long as the RAM list, and so as `self.space`.
            self.note(unsafe { &*page }, lines_of(ram.page_offset(), len));
        }
    }

    fn note(&mut self, page: &CodePage, lines: u64) {
        if page.note(lines) {
            return;
        }
        let mut list = self.tlb.noted_list();
        if list.top == list.end {
            list = self.grow_noted();
        }
        // SAFETY: `top` is below `end`, so it is a place of `places`, which this thread alone uses.
        unsafe {
            with_exposed_provenance_mut::<u64>(list.top as usize)
                .write(std::ptr::from_ref(page).expose_provenance() as u64)
        };
        list.top += size_of::<u64>() as u64;
        self.tlb.set_noted_list(list);
    }

    /// Twice as many places.
    #[cold]
    fn grow_noted(&mut self) -> NotedList {
        let mut places: Vec<u64> = self.noted_addresses().collect();
        let (used, len) = (places.len(), (2 * places.len()).max(PLACES));
        places.resize(len, 0);
        let start = places.as_mut_ptr().expose_provenance() as u64;
        self.noted = Noted { _places: places, start };
        let place = size_of::<u64>();
        let alone = self.tlb.noted_list().alone;
        let list = NotedList { top: start + (used * place) as u64, end: start + (len * place) as u64, alone };
        self.tlb.set_noted_list(list);
        list
    }

    /// What is in the list.
    #[inline]
    fn noted_addresses(&self) -> impl Iterator<Item = u64> + use<> {
        let places = self.noted.start..self.tlb.noted_list().top;
        // SAFETY: the places below `top` were written, and only the owner's thread, which this is, writes them.
        places.step_by(size_of::<u64>()).map(|at| unsafe { with_exposed_provenance::<u64>(at as usize).read() })
    }
}

impl SoftMmu {
    /// Calls `take` with each page that this vCPU stored to since the last time, and forgets them.
    #[inline]
    pub fn take_noted(&mut self, mut take: impl FnMut(&CodePage)) {
        let mmu = self.parked_mut();
        for at in mmu.noted_addresses() {
            // SAFETY: the addresses in the list are those of `CodePage`s, which live as long as the RAM list, and so as `mmu.space`.
            take(unsafe { &*with_exposed_provenance::<CodePage>(at as usize) });
        }
        mmu.tlb.set_noted_list(NotedList { top: mmu.noted.start, ..mmu.tlb.noted_list() });
    }

    /// Forgets what was translated for the regimes that are not machine mode: page tables are as they were before.
    pub fn forget_translations(&mut self) {
        self.parked_mut().flush_translations(None, None);
    }

    /// What LR left for SC, to be left again later. One that any other store breaks cannot be: what it saw of stores is of this moment. It
    /// is lost, as any may be.
    pub fn reservation(&mut self) -> Reservation {
        let mmu = self.parked_mut();
        if mmu.tlb.reservation().tag & STRICT != 0 {
            mmu.clear_reservation();
        }
        mmu.tlb.reservation()
    }

    /// Leaves it again. The memory must be mapped as it was.
    pub fn set_reservation(&mut self, reservation: Reservation) {
        self.parked_mut().tlb.set_reservation(reservation);
    }

    /// Makes the entries of a page say what is to be done at a store now.
    pub fn arm_noted(&mut self, page: PageIndex) {
        self.parked_mut().arm_page(page);
    }

    /// The same of all pages, as a checkpoint begins; what was noted until then is forgotten.
    pub fn arm_all(&mut self) {
        self.take_noted(CodePage::forget_noted);
        let mmu = self.parked_mut();
        let alone = mmu.space.vcpus().one_writer().into();
        mmu.tlb.set_noted_list(NotedList { alone, ..mmu.tlb.noted_list() });
        let mut all = [PageRange { start: PageIndex::new(0), end: PageIndex::new(u64::MAX) }];
        let (cost, armed) = mmu.tlb.arm_ranges(&mmu.space, &mut all, &pin());
        mmu.stats.refreshed += cost;
        mmu.stats.armed += armed;
    }
}

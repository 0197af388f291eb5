//! One vCPU's TLB.
//!
//! ```text
//!   one mapping    [pad][ prefix: the owner's state ][ TlbEntry × 16 Ki ][ Reservation ]   emitted code reads this
//!                                                    ▲ page-aligned, base in a host register
//!   beside it      FullEntry × 16 Ki   the RAM page of an entry; touched only where entries are filled
//!                  heads[page]─▶slot─▶slot           a RAM page's slots: re-arming finds every alias (two guest
//!                                                    addresses of one page) without a scan
//!                  filled [slot, slot, …]            a flush wipes these, not 512 KiB
//!                  fetch × 64                        fetch translations; emitted code never probes for fetch
//!                  devices × 16                      device pages: always slow, so they need not evict RAM
//! ```
//!
//! Keeps TLB-1: every method is behind the owner's `&mut`, and the mapping is never shared between threads. `fill`
//! and `refresh` read which clients listen on the owner's thread, and others clear bits first and post second; so a fill that
//! missed the change has the request still before it (races A and B of QEMU's TLBs cannot happen).

pub(crate) mod arm;
pub mod entry;
pub(crate) mod fill;
pub(crate) mod flush;
mod mapping;

use crate::mmio::{MmioDevice, SizeMask};
use entry::{FLAGS, INVALID, RESERVATION, Reservation, TLB_ENTRIES, TlbEntry};
use mapping::Mapping;
use notdirty_core::{PAGE_SIZE, PageIndex};
use std::io;
use std::ptr::NonNull;

/// Ends a chain of slots.
const NONE: u16 = u16::MAX;
const _: () = assert!(TLB_ENTRIES <= NONE as usize);

const FETCH_ENTRIES: usize = 64;
const DEVICE_BITS: u32 = 4;

/// What the slow path knows about an entry beyond the comparators. Read only while the entry is filled.
#[derive(Clone, Copy)]
struct FullEntry {
    /// Index of the RAM page.
    page: u64,
    /// Neighbours in the chain of this RAM page.
    next: u16,
    prev: u16,
    /// Where it stands in `filled`.
    at: u16,
}

/// A device on one page. The device is kept alive by the vCPU's view, which outlives the entry.
#[derive(Clone, Copy)]
pub(crate) struct DeviceEntry {
    /// Biased page address.
    tag: u64,
    /// The bytes of the page that are the device's: `[from, to)`. Most boards give small devices less than a page.
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// Offset in the region of the page's first byte (wrapping, if the region starts later).
    pub(crate) off: u64,
    pub(crate) dev: NonNull<dyn MmioDevice>,
    pub(crate) sizes: SizeMask,
}

/// A page to fetch from.
#[derive(Clone, Copy)]
pub(crate) struct FetchEntry {
    /// Biased page address; zero is empty.
    pub(crate) tag: u64,
    pub(crate) host: *const u8,
    pub(crate) ram: u64,
    /// Offsets in the page between which there is RAM.
    pub(crate) from: u32,
    pub(crate) to: u32,
}

const NO_FETCH: FetchEntry = FetchEntry { tag: 0, host: std::ptr::null(), ram: 0, from: 0, to: 0 };

pub(crate) struct Tlb {
    /// Holds prefix and table.
    _shared: Mapping,
    table: NonNull<TlbEntry>,
    prefix: NonNull<u8>,
    /// Holds `full`.
    _side: Mapping,
    full: NonNull<FullEntry>,
    heads: Box<[u16]>,
    filled: Vec<u16>,
    fetch: Box<[FetchEntry; FETCH_ENTRIES]>,
    /// The slots in use: all, but for measurements.
    mask: usize,
    /// Is the index a hash of the address? For measurements too.
    hashed: bool,
    devices: [Option<DeviceEntry>; 1 << DEVICE_BITS],
    pub(crate) flat_addend: u64,
}

// SAFETY: the raw pointers lead to mappings that this value owns alone, and to devices, which are Send + Sync, and
// guest RAM, which any thread may touch; the view beside the TLB in `SoftMmu` keeps both alive.
unsafe impl Send for Tlb {}

impl Tlb {
    /// What a slot holds when empty, if it is asked for the last page of the 64-bit space, whose biased address is zero and
    /// would match zeroes: slot 0 by the last page itself, and the slot of the page before by accesses that begin there
    /// and end on the last (a probe looks where the first byte is, for the page of the last byte).
    const EMPTY_ON_TOP: TlbEntry = TlbEntry { read: INVALID, write: INVALID, addend: 0, aux: 0 };

    pub(crate) fn new(prefix: usize) -> io::Result<Tlb> {
        let page = PAGE_SIZE as usize;
        let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if !prefix.is_multiple_of(64) {
            return Err(refused("the TLB's prefix must be a multiple of 64 bytes"));
        }
        let room = prefix.checked_next_multiple_of(page).filter(|&room| room <= 1 << 30);
        let room = room.ok_or_else(|| refused("the TLB's prefix must be at most 1 GiB"))?;
        let shared = Mapping::zeroed(room + RESERVATION as usize + size_of::<Reservation>())?;
        let side = Mapping::zeroed(TLB_ENTRIES * size_of::<FullEntry>())?;
        // SAFETY: `room` and `room - prefix` lie inside the mapping.
        let (table, prefix) = unsafe { (shared.start().add(room).cast(), shared.start().add(room - prefix)) };
        let mut tlb = Tlb {
            table,
            prefix,
            _shared: shared,
            full: side.start().cast(),
            _side: side,
            mask: TLB_ENTRIES - 1,
            hashed: false,
            heads: vec![NONE; TLB_ENTRIES].into_boxed_slice(),
            filled: Vec::with_capacity(TLB_ENTRIES),
            fetch: Box::new([NO_FETCH; FETCH_ENTRIES]),
            devices: [None; 1 << DEVICE_BITS],
            flat_addend: 0,
        };
        tlb.set_shape(TLB_ENTRIES - 1, false);
        Ok(tlb)
    }

    /// Which slots are used, and how an address finds its own. The TLB is empty.
    pub(crate) fn set_shape(&mut self, mask: usize, hashed: bool) {
        debug_assert!(self.filled.is_empty());
        let before = self.slot(Self::BEFORE_LAST);
        (self.mask, self.hashed) = (mask, hashed);
        for slot in [0, before, self.slot(Self::BEFORE_LAST)] {
            self.set_empty(slot);
        }
    }

    /// The page before the last of the 64-bit space, biased.
    const BEFORE_LAST: u64 = 0u64.wrapping_sub(PAGE_SIZE);

    /// Nothing is in this slot.
    fn set_empty(&mut self, slot: usize) {
        let on_top = slot == 0 || slot == self.slot(Self::BEFORE_LAST);
        self.set_entry(slot, if on_top { Self::EMPTY_ON_TOP } else { TlbEntry::default() });
    }

    pub(crate) fn prefix(&self) -> NonNull<u8> {
        self.prefix
    }
    pub(crate) fn table(&self) -> NonNull<TlbEntry> {
        self.table
    }

    /// What LR left for SC.
    #[inline]
    pub(crate) fn reservation(&self) -> Reservation {
        // SAFETY: `new` made room for it behind the table, zeroed; only the owner's thread touches it (TLB-1).
        unsafe { self.table.as_ptr().byte_add(RESERVATION as usize).cast::<Reservation>().read() }
    }
    #[inline]
    pub(crate) fn set_reservation(&mut self, reservation: Reservation) {
        // SAFETY: as above, and `&mut self`.
        unsafe { self.table.as_ptr().byte_add(RESERVATION as usize).cast::<Reservation>().write(reservation) }
    }

    #[inline]
    fn entry_ptr(&self, slot: usize) -> *mut TlbEntry {
        debug_assert!(slot < TLB_ENTRIES);
        // SAFETY: slots come from `entry::index`, which is below TLB_ENTRIES, or were stored from it.
        unsafe { self.table.as_ptr().add(slot) }
    }
    #[inline]
    pub(crate) fn entry(&self, slot: usize) -> TlbEntry {
        // SAFETY: inside the table, which lives as long as `self`; only the owner's thread writes it (TLB-1).
        unsafe { self.entry_ptr(slot).read() }
    }
    #[inline]
    pub(crate) fn read_comparator(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry`.
        unsafe { (*self.entry_ptr(slot)).read }
    }
    #[inline]
    pub(crate) fn write_comparator(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry`.
        unsafe { (*self.entry_ptr(slot)).write }
    }
    #[inline]
    pub(crate) fn addend(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry`.
        unsafe { (*self.entry_ptr(slot)).addend }
    }
    #[inline]
    fn set_entry(&mut self, slot: usize, entry: TlbEntry) {
        // SAFETY: as in `entry`, and `&mut self`.
        unsafe { self.entry_ptr(slot).write(entry) }
    }

    /// What the slow path knows of a filled slot.
    #[inline]
    fn full(&self, slot: usize) -> FullEntry {
        debug_assert!(slot < TLB_ENTRIES && is_filled(&self.entry(slot)));
        // SAFETY: the side table has as many entries as the table; a filled slot's was written by `install`.
        unsafe { self.full.as_ptr().add(slot).read() }
    }
    fn full_mut(&mut self, slot: u16) -> &mut FullEntry {
        debug_assert!((slot as usize) < TLB_ENTRIES);
        // SAFETY: as in `full`; `&mut self` makes it the only reference. Called for filled slots only.
        unsafe { &mut *self.full.as_ptr().add(slot as usize) }
    }
    /// The RAM page of a filled slot.
    #[inline]
    pub(crate) fn ram_page(&self, slot: usize) -> PageIndex {
        PageIndex::new(self.full(slot).page)
    }

    /// Puts an entry for a RAM page into a slot, in place of whatever was there.
    fn install(&mut self, slot: usize, entry: TlbEntry, page: PageIndex) {
        let at = if is_filled(&self.entry(slot)) {
            self.unlink(slot as u16);
            self.full(slot).at
        } else {
            // Once per slot, so the vector never grows past its first capacity.
            self.filled.push(slot as u16);
            (self.filled.len() - 1) as u16
        };
        let next = core::mem::replace(&mut self.heads[Self::head_of(page.get())], slot as u16);
        if next != NONE {
            self.full_mut(next).prev = slot as u16;
        }
        let full = FullEntry { page: page.get(), next, prev: NONE, at };
        // SAFETY: `slot` is below TLB_ENTRIES, and `&mut self`.
        unsafe { self.full.as_ptr().add(slot).write(full) };
        self.set_entry(slot, entry);
    }

    /// RAM pages with the same low bits share a chain; entries tell by `page`.
    fn head_of(page: u64) -> usize {
        page as usize & (TLB_ENTRIES - 1)
    }

    fn unlink(&mut self, slot: u16) {
        let FullEntry { page, next, prev, .. } = self.full(slot as usize);
        if prev == NONE {
            self.heads[Self::head_of(page)] = next;
        } else {
            self.full_mut(prev).next = next;
        }
        if next != NONE {
            self.full_mut(next).prev = prev;
        }
    }

    /// Calls `each` with every slot that maps this RAM page.
    fn for_slots_of(&mut self, page: PageIndex, mut each: impl FnMut(&mut Self, usize)) {
        let mut slot = self.heads[Self::head_of(page.get())];
        while slot != NONE {
            let FullEntry { page: mapped, next, .. } = self.full(slot as usize);
            if mapped == page.get() {
                each(self, slot as usize);
            }
            slot = next;
        }
    }

    #[inline]
    fn fetch_slot(biased: u64) -> usize {
        (biased >> notdirty_core::PAGE_BITS) as usize & (FETCH_ENTRIES - 1)
    }
    /// The fetch translation of a biased address's page, if there is one.
    #[inline]
    pub(crate) fn fetch_entry(&self, biased: u64) -> Option<FetchEntry> {
        let entry = self.fetch[Self::fetch_slot(biased)];
        let tag = biased & !FLAGS;
        (entry.tag == tag && tag != 0).then_some(entry)
    }

    /// The slot of a biased address.
    #[inline]
    pub(crate) fn slot(&self, biased: u64) -> usize {
        let biased = if self.hashed { entry::hashed(biased) } else { biased };
        entry::index(biased) & self.mask
    }

    /// Fibonacci hashing: boards put devices at round addresses.
    #[inline]
    fn device_slot(tag: u64) -> usize {
        ((tag >> notdirty_core::PAGE_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - DEVICE_BITS)) as usize
    }
    /// The device on a biased address's page, if it was looked up before.
    #[inline]
    pub(crate) fn device(&self, biased: u64) -> Option<&DeviceEntry> {
        let tag = biased & !FLAGS;
        self.devices[Self::device_slot(tag)].as_ref().filter(|entry| entry.tag == tag)
    }
}

/// Does a slot hold a translation? Both comparators are filled together, and a biased page is never zero.
fn is_filled(entry: &TlbEntry) -> bool {
    entry.read & !FLAGS != 0
}

#[cfg(test)]
mod tests {
    use super::entry::BIAS;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn the_slots_of_a_page_are_found_whatever_was_evicted_before(
            steps in prop::collection::vec((1..7usize, 0..4u64, 0..40u8), 1..200),
        ) {
            let mut tlb = Tlb::new(0).unwrap();
            let mut model = BTreeMap::new();
            for (slot, page, dice) in steps {
                // Pages 0 and 1 and their neighbours 16 Ki further share a chain.
                let page = PageIndex::new(page % 2 + (page / 2) * TLB_ENTRIES as u64);
                if dice == 0 {
                    prop_assert_eq!(tlb.flush_all(), model.len());
                    model.clear();
                } else if dice < 8 {
                    // From this slot's page on, or all pages from it on: both ways of looking.
                    let first = ((slot as u64) << 12) - BIAS;
                    let last = if dice < 4 { first + 0xfff } else { u64::MAX };
                    let gone = model.keys().filter(|&&s| s >= slot && (dice >= 4 || s == slot)).count();
                    prop_assert_eq!(tlb.forget(first, last), gone);
                    model.retain(|&s, _| s < slot || (dice < 4 && s != slot));
                } else {
                    let read = (slot as u64) << 12;
                    tlb.install(slot, TlbEntry { read, write: read, addend: 0, aux: 0 }, page);
                    model.insert(slot, page);
                }
                prop_assert_eq!(tlb.filled.len(), model.len());
                for &page in model.values() {
                    let mut found = Vec::new();
                    tlb.for_slots_of(page, |_, slot| found.push(slot));
                    found.sort_unstable();
                    let want: Vec<_> = model.iter().filter(|(_, p)| **p == page).map(|(slot, _)| *slot).collect();
                    prop_assert_eq!(found, want);
                }
            }
        }
    }

    #[test]
    fn a_prefix_that_cannot_be_is_refused() {
        for prefix in [1, 63, 4097, usize::MAX, usize::MAX - 63, (1 << 30) + 64] {
            assert!(Tlb::new(prefix).is_err(), "{prefix:#x}");
        }
        for prefix in [0, 64, 4096, 8192 + 64] {
            let tlb = Tlb::new(prefix).unwrap();
            assert_eq!(tlb.table().as_ptr() as usize % 4096, 0);
            assert_eq!(tlb.prefix().as_ptr() as usize + prefix, tlb.table().as_ptr() as usize);
        }
    }
}

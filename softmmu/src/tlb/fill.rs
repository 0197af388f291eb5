//! A miss: what is the page, which clients listen, and the entry that says so.

use super::entry::{BIAS, DISCARD, FLAGS, OTHER, TlbEntry};
use super::{DeviceEntry, FetchEntry, Tlb};
use crate::addr::{GuestPhys, GuestVirt};
use crate::memmap::{AddressSpace, FlatView, Resolved, Span, What};
use crate::tlb::arm::store_flags;
use notdirty_core::{PAGE_SIZE, RamAddr, RamBlock, pin};
use std::ptr::NonNull;

/// What became of a miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Filled {
    /// The slot holds the page now.
    Entry,
    /// A device's page is known now.
    Device,
    /// There is something, but no entry can describe it: regions smaller than a page, or the last page of the
    /// 64-bit space. Each access asks the view.
    Mixed,
    /// Nothing is there.
    Empty,
}

/// Host address of a byte of a block, as a number that may be turned back into a pointer.
pub(crate) fn host_address(block: &RamBlock, off: u64) -> u64 {
    block.host().expose_provenance() as u64 + off
}

/// Where a byte of a block lies in all RAM.
pub(crate) fn ram_address(block: &RamBlock, off: u64) -> RamAddr {
    RamAddr::new(block.offset().get() + off)
}

impl Tlb {
    /// Fills the slot of `va` from the view. `view` must be the one that outlives the entries (see `SoftMmu`).
    pub(crate) fn fill(&mut self, space: &AddressSpace, view: &FlatView, va: GuestVirt) -> Filled {
        let biased = va.get().wrapping_add(BIAS);
        let page = biased & !FLAGS;
        // No walk yet: machine mode sees physical addresses.
        let at = GuestPhys::new(va.get());
        let (range, into) = match view.page(at) {
            Span::Whole(range, into) if page != 0 => (range, into),
            Span::Whole(..) | Span::Mixed => return Filled::Mixed,
            Span::Empty => return Filled::Empty,
        };
        match &range.what {
            What::Ram { block, off, readonly } => {
                let ram = ram_address(block, off + into).page();
                let addend = host_address(block, off + into).wrapping_sub(va.page_base().get());
                let other = if addend == self.flat_addend { 0 } else { OTHER };
                let (flags, aux) = if *readonly { (DISCARD, 0) } else { store_flags(space, ram, &pin()) };
                let entry = TlbEntry { read: page | other, write: page | other | flags, addend, aux };
                self.install(self.slot(biased), entry, ram);
                Filled::Entry
            }
            What::Mmio { dev, off } => {
                let (from, to) = (0, PAGE_SIZE as u32);
                let (dev, sizes) = (NonNull::from(&**dev), dev.sizes());
                let entry = DeviceEntry { tag: page, from, to, off: off + into, dev, sizes };
                self.devices[Self::device_slot(page)] = Some(entry);
                Filled::Device
            }
        }
    }

    /// Notes the device at `va` on a page of several regions, so that it is not looked for again.
    pub(crate) fn fill_device(&mut self, view: &FlatView, va: GuestVirt) {
        let tag = va.get().wrapping_add(BIAS) & !FLAGS;
        let (Some(range), base) = (view.find(va.get()), va.page_base().get()) else { return };
        let What::Mmio { dev, off } = &range.what else { return };
        if tag == 0 {
            return;
        }
        self.devices[Self::device_slot(tag)] = Some(DeviceEntry {
            tag,
            from: range.start.saturating_sub(base) as u32,
            to: (range.last - base).min(PAGE_SIZE - 1) as u32 + 1,
            off: off.wrapping_add(base.wrapping_sub(range.start)),
            dev: NonNull::from(&**dev),
            sizes: dev.sizes(),
        });
    }

    /// Looks up and caches the page that `va` is fetched from.
    pub(crate) fn fill_fetch(&mut self, view: &FlatView, va: GuestVirt) -> Option<FetchEntry> {
        let at = GuestPhys::new(va.get());
        let Resolved::Ram { block, off, .. } = view.resolve(at) else { return None };
        let base = at.page_base().get();
        let range = view.find(at.get())?;
        // Guest and RAM pages coincide, so the page's start lies in the block even where the range starts later.
        let base_off = off - at.page_offset();
        let entry = FetchEntry {
            tag: va.get().wrapping_add(BIAS) & !FLAGS,
            host: std::ptr::with_exposed_provenance(host_address(block, base_off) as usize),
            ram: ram_address(block, base_off).get(),
            from: range.start.saturating_sub(base) as u32,
            to: (range.last - base).min(PAGE_SIZE - 1) as u32 + 1,
        };
        if entry.tag != 0 {
            self.fetch[Self::fetch_slot(entry.tag)] = entry;
        }
        Some(entry)
    }
}

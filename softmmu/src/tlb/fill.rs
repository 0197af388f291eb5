//! A miss: what is the page, which clients listen, and the entry that says so.

use super::Tlb;
use super::entry::{ASK, BIAS, DISCARD, FLAGS, INVALID, OTHER, TlbEntry};
use super::set::{DeviceEntry, FetchEntry, Reach};
use super::tables::RamSpan;
use crate::addr::GuestVirt;
use crate::memmap::{AddressSpace, FlatView, Resolved, Span, What};
use crate::tlb::arm::store_flags;
use crate::translate::Translation;
use notdirty_core::hint::{self, Soon};
use notdirty_core::{PAGE_SIZE, RamAddr, RamBlock, pin};
use std::ptr::NonNull;

/// What became of a miss.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Filled {
    /// The slot holds the page now.
    Entry,
    /// A device's page is known now.
    Device,
    /// There is something, but no entry can describe it: regions smaller than a page, or the page with
    /// the biased address zero. Each access asks the view.
    Mixed,
    /// Nothing is there.
    Empty,
    /// RAM that is yet to come, from this byte on.
    Missing(RamAddr),
}

/// What became of a look for a page to fetch from.
pub(crate) enum Fetched {
    Entry(FetchEntry),
    /// No RAM.
    Empty,
    /// RAM that is yet to come, from this byte on.
    Missing(RamAddr),
}

/// Host address of a byte of a block, as a number that may be turned back into a pointer.
pub(crate) fn host_address(block: &RamBlock, off: u64) -> u64 {
    block.host().expose_provenance() as u64 + off
}

/// Where a byte of a block lies in all RAM.
pub(crate) fn ram_address(block: &RamBlock, off: u64) -> RamAddr {
    RamAddr::new(block.offset().get() + off)
}

/// How far what came from a translation reaches.
fn reach(to: &Translation) -> Reach {
    Reach { size_log2: to.size_log2.clamp(notdirty_core::PAGE_BITS as u8, 63), global: to.global }
}

impl Tlb {
    /// Fills the slot of `va` from the view. `view` must be the one that outlives the entries (see `SoftMmu`).
    pub(crate) fn fill(&mut self, space: &AddressSpace, view: &FlatView, va: GuestVirt, to: &Translation) -> Filled {
        let biased = va.get().wrapping_add(BIAS);
        let page = biased & !FLAGS;
        let at = to.at(va);
        let phys = at.page_base().get();
        if let Some(into) = self.tables.span.page_at(phys).filter(|_| page != 0) {
            // A page that was long unused is not in the host's cache; there is enough to do until its bytes are wanted.
            let at = self.tables.span.host + into + va.page_offset();
            hint::expect(at as *const u8, Soon::Read);
            let ram = RamAddr::new(self.tables.span.ram + into);
            if space.ram().is_missing(ram) {
                return Filled::Missing(ram);
            }
            self.fill_ram(space, va, to, into);
            return Filled::Entry;
        }
        let (range, into) = match view.page(at) {
            Span::Whole(range, into) if page != 0 => (range, into),
            Span::Whole(..) | Span::Mixed => return Filled::Mixed,
            Span::Empty => return Filled::Empty,
        };
        match &range.what {
            What::Ram { block, off, readonly } => {
                let (host, ram) = (host_address(block, *off), ram_address(block, *off).get());
                // PLACE-1: no entry of a page that is not received.
                let from = RamAddr::new(ram.wrapping_add(into));
                if space.ram().is_missing(from) {
                    return Filled::Missing(from);
                }
                self.tables.span = RamSpan { start: range.start, last: range.last, host, ram, readonly: *readonly };
                self.fill_ram(space, va, to, into);
                Filled::Entry
            }
            What::Mmio { dev, off } => {
                let (from, end) = (0, PAGE_SIZE as u32);
                let (dev, sizes) = (NonNull::from(&**dev), dev.sizes());
                let (rights, at) = (to.rights, at.page_base().get());
                let entry = DeviceEntry {
                    tag: page,
                    from,
                    to: end,
                    off: off + into,
                    dev,
                    sizes,
                    rights,
                    page: at,
                    reach: reach(to),
                };
                self.sets[self.data].set_device(entry);
                Filled::Device
            }
        }
    }

    /// The same of a page so far inside the span that was found.
    fn fill_ram(&mut self, space: &AddressSpace, va: GuestVirt, to: &Translation, into: u64) {
        let biased = va.get().wrapping_add(BIAS);
        let (page, at) = (biased & !FLAGS, to.at(va).page_base().get());
        let RamSpan { host, ram, readonly, .. } = self.tables.span;
        let ram = RamAddr::new(ram + into).page();
        let addend = (host + into).wrapping_sub(va.page_base().get());
        let near = addend == self.flat_for(addend);
        self.sets[self.data].count_fill(near);
        if near && to.everywhere && self.data == 0 {
            self.show_whole();
        }
        let other = if near { 0 } else { OTHER };
        let (flags, aux) = match (to.rights.store, readonly) {
            (false, _) => (INVALID, 0),
            (true, true) => (DISCARD, 0),
            (true, false) => store_flags(space, ram, &pin()),
        };
        let unreadable = if to.rights.load { 0 } else { INVALID };
        let (loads, stores) = self.asks.flags(va.page_base().get());
        let ask = |asked: bool| if asked { ASK } else { 0 };
        let (read, write) = (page | other | unreadable | ask(loads), page | other | flags | ask(stores));
        let entry = TlbEntry { read, write, addend, aux };
        self.install(self.slot(biased), entry, (ram, at), reach(to));
    }

    /// Notes the device at `va` on a page of several regions, so that it is not looked for again.
    pub(crate) fn fill_device(&mut self, view: &FlatView, va: GuestVirt, to: &Translation) {
        let tag = va.get().wrapping_add(BIAS) & !FLAGS;
        let at = to.at(va);
        let (Some(range), base) = (view.find(at.get()), at.page_base().get()) else { return };
        let What::Mmio { dev, off } = &range.what else { return };
        self.sets[self.data].set_device(DeviceEntry {
            tag,
            from: range.start.saturating_sub(base) as u32,
            to: (range.last - base).min(PAGE_SIZE - 1) as u32 + 1,
            off: off.wrapping_add(base.wrapping_sub(range.start)),
            dev: NonNull::from(&**dev),
            sizes: dev.sizes(),
            rights: to.rights,
            page: base,
            reach: reach(to),
        });
    }

    /// Looks up the page that `va` is fetched from, and keeps it if the translation may be kept.
    pub(crate) fn fill_fetch(
        &mut self,
        space: &AddressSpace,
        view: &FlatView,
        va: GuestVirt,
        to: &Translation,
    ) -> Fetched {
        let at = to.at(va);
        let (Resolved::Ram { block, off, .. }, Some(range)) = (view.resolve(at), view.find(at.get())) else {
            return Fetched::Empty;
        };
        if space.ram().is_missing(ram_address(block, off)) {
            return Fetched::Missing(ram_address(block, off));
        }
        let base = at.page_base().get();
        // Guest and RAM pages coincide, so the page's start lies in the block even where the range starts later.
        let base_off = off - at.page_offset();
        let entry = FetchEntry {
            tag: va.get().wrapping_add(BIAS) & !FLAGS,
            host: std::ptr::with_exposed_provenance(host_address(block, base_off) as usize),
            ram: ram_address(block, base_off).get(),
            page: base,
            from: range.start.saturating_sub(base) as u32,
            to: (range.last - base).min(PAGE_SIZE - 1) as u32 + 1,
            lasting: to.lasting,
            reach: reach(to),
        };
        if to.lasting {
            self.sets[self.fetching].set_fetch(entry);
        }
        Fetched::Entry(entry)
    }
}

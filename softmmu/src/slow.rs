//! The slow path, top to bottom as in the picture.
//!
//! ```text
//!   miss, flag or misalignment
//!     ├─ bytes are asked about ────────── watched ─▶ no access; told ─▶ behind it                   ask.rs
//!     ├─ no flag, within the page ─────── misaligned: host access
//!     ├─ CODEPAGE, aligned ───────────── host store, test the halves, only a hit goes on        notdirty.rs
//!     ├─ LINES, aligned ──────────────── host store, note the line                              lines.rs
//!     ├─ locate: entry, else device, else translate and fill, else (mixed page) the view; nothing there ─▶ access fault
//!     │                                                                  └ RAM that is yet to come ─▶ Missing: no access
//!     ├─ bytes reach past the page or the region ─▶ pieces: all located, then RAM, then devices (SAFE-1)
//!     ├─ RAM, nothing listens ─────────── host store (the first one: the miss)
//!     ├─ RAM, something listens ───────── before, host store, then steps b to d                 notdirty.rs
//!     ├─ ROM ──────────────────────────── store ignored
//!     └─ device ───────────────────────── misaligned ─▶ access fault, else call it              mmio.rs
//! ```
//!
//! Nothing here serves, and nothing waits but what subscribes to `before` (SAFE-1). No entry is used after a device or the invalidator was called: a `Place`
//! is a copy: its pointers live as long as `self.view`.

use crate::access::{StoreEffect, wanted};
use crate::addr::{GuestVirt, MemSize};
use crate::fault::{AccessKind, FaultCause, MemFault};
use crate::host;
use crate::live::LiveMmu;
use crate::memmap::Resolved;
use crate::mmio::{self, MmioDevice, SizeMask};
use crate::mmu::Hooks;
use crate::tlb::entry::{BIAS, CODEPAGE, DISCARD, FLAGS, INVALID, LINES, NOTDIRTY, OTHER};
use crate::tlb::fill::{Filled, host_address, ram_address};
use crate::tlb::{DeviceEntry, Gap};
use crate::translate::{Access, Physical, Translation};
use notdirty_core::{PAGE_SIZE, RamAddr};
use smallvec::SmallVec;
use std::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};

/// Where a byte is, and what a store there must do.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// RAM, by this entry of the TLB if it has one; `silent` if that says that nothing listens.
    Ram { host: *mut u8, ram: RamAddr, entry: Option<u32>, silent: bool },
    /// Located for a store, but read-only.
    Rom { host: *mut u8 },
    /// A device, which the view keeps alive.
    Mmio { dev: NonNull<dyn MmioDevice>, off: u64, sizes: SizeMask },
}

/// A part of an access: `len` bytes, `at` bytes into it.
struct Piece {
    at: u64,
    len: u64,
    place: Place,
}
type Pieces = SmallVec<[Piece; 2]>;

impl LiveMmu {
    #[cold]
    #[inline(never)]
    pub(crate) fn load_slow<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        if self.tlb.asks.is_active() && self.asked(va, size.bytes(), false)? {
            let value = self.load_unasked(hooks, va, size)?;
            self.tell(hooks, va, size, value, false);
            return Ok(value);
        }
        self.load_unasked(hooks, va, size)
    }

    #[inline]
    fn load_unasked<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        if fits_page(va, size) && self.tlb.read_comparator(slot) & !OTHER == biased & !FLAGS && biased > FLAGS {
            let host = va.get().wrapping_add(self.tlb.addend(slot));
            if aligned(va, size) {
                // Emitted code sends some that would hit, to learn of them.
                // SAFETY: the comparator matched: a live page of RAM, at an address congruent with `va`, here aligned.
                return Ok(unsafe { host::load(with_exposed_provenance(host as usize), size) });
            }
            self.stats.misaligned += 1;
            // SAFETY: the comparator matched: a live page of RAM, which the access does not leave.
            return Ok(unsafe { host::load_misaligned(with_exposed_provenance(host as usize), size) });
        }
        let (place, left) = self.locate(hooks, va, size.bytes(), AccessKind::Load)?;
        self.load_at(hooks, va, size, place, left)
    }

    /// A load of a page that has no entry yet. It is mostly RAM: the entry is made, and the load is done by it.
    #[inline(never)]
    pub(crate) fn load_refilled<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
    ) -> Result<u64, MemFault> {
        let (to, filled) = self.refill(hooks, va, size.bytes(), AccessKind::Load)?;
        if filled == Filled::Entry && aligned(va, size) {
            let slot = self.tlb.slot(va.get().wrapping_add(BIAS));
            let host = va.get().wrapping_add(self.tlb.addend(slot));
            // SAFETY: the slot was just filled with a live page of RAM that may be loaded, which the access does not leave.
            return Ok(unsafe { host::load(with_exposed_provenance(host as usize), size) });
        }
        let (place, left) = self.filled_place(va, AccessKind::Load, &to, filled)?;
        self.load_at(hooks, va, size, place, left)
    }

    fn load_at<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        place: Place,
        left: u64,
    ) -> Result<u64, MemFault> {
        if left < size.bytes() {
            return self.load_pieces(hooks, va, size);
        }
        match place {
            Place::Ram { host, .. } | Place::Rom { host, .. } if aligned(va, size) => {
                // SAFETY: `locate` found `left` bytes of live RAM at an address congruent with `va`, here aligned.
                Ok(unsafe { host::load(host, size) })
            }
            Place::Ram { host, .. } | Place::Rom { host, .. } => {
                self.stats.misaligned += 1;
                // SAFETY: `locate` found `left` bytes of live RAM.
                Ok(unsafe { host::load_misaligned(host, size) })
            }
            Place::Mmio { dev, off, sizes } => {
                if !aligned(va, size) {
                    return Err(self.fault(AccessKind::Load, va));
                }
                self.device_load(hooks, (dev, off, sizes), size).ok_or_else(|| self.fault(AccessKind::Load, va))
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn store_slow<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<StoreEffect, MemFault> {
        if self.tlb.asks.is_active() && self.asked(va, size.bytes(), true)? {
            let effect = self.store_unasked(hooks, va, size, value)?;
            self.tell(hooks, va, size, value, true);
            return Ok(StoreEffect { told: true, ..effect });
        }
        self.store_unasked(hooks, va, size, value)
    }

    #[inline]
    fn store_unasked<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<StoreEffect, MemFault> {
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        if self.tlb.write_comparator(slot) & !OTHER == wanted(biased, size) | CODEPAGE {
            return Ok(self.store_to_code_page(hooks, slot, va, size, value));
        }
        if self.tlb.write_comparator(slot) & !OTHER == wanted(biased, size) | LINES {
            return Ok(self.store_and_note(slot, va, size, value));
        }
        if fits_page(va, size) && self.tlb.write_comparator(slot) & !OTHER == biased & !FLAGS && biased > FLAGS {
            let host = va.get().wrapping_add(self.tlb.addend(slot));
            if aligned(va, size) {
                // SAFETY: as in `load_slow`, and writable.
                unsafe { host::store(with_exposed_provenance_mut(host as usize), size, value) };
                return Ok(StoreEffect::NONE);
            }
            self.stats.misaligned += 1;
            // SAFETY: the comparator matched: a live page of writable RAM, which the access does not leave.
            unsafe { host::store_misaligned(with_exposed_provenance_mut(host as usize), size, value) };
            return Ok(StoreEffect::NONE);
        }
        let (place, left) = self.locate(hooks, va, size.bytes(), AccessKind::Store)?;
        if left < size.bytes() {
            return self.store_pieces(hooks, va, size, value);
        }
        match place {
            Place::Ram { host, ram, entry, silent } => {
                if !silent {
                    self.before(va, ram, size.bytes())?;
                }
                self.stats.misaligned += u64::from(!aligned(va, size));
                let entered = self.enter(silent, ram, size.bytes());
                if aligned(va, size) {
                    // SAFETY: `locate` found `left` bytes of live, writable RAM, here aligned.
                    unsafe { host::store(host, size, value) };
                } else {
                    // SAFETY: as above, at any alignment.
                    unsafe { host::store_misaligned(host, size, value) };
                }
                drop(entered);
                Ok(if silent { StoreEffect::NONE } else { self.notdirty_store(hooks, entry, ram, size.bytes()) })
            }
            Place::Rom { .. } => {
                self.stats.rom_discard += 1;
                Ok(StoreEffect::NONE)
            }
            Place::Mmio { dev, off, sizes } => {
                if !aligned(va, size) {
                    return Err(self.fault(AccessKind::Store, va));
                }
                self.device_store(hooks, (dev, off, sizes), size, value)
                    .ok_or_else(|| self.fault(AccessKind::Store, va))?;
                Ok(StoreEffect { mmio: true, ..StoreEffect::NONE })
            }
        }
    }

    /// Where `va` is, for `len` bytes as far as they are on its page, and how many bytes from there are the same thing.
    #[inline]
    pub(crate) fn locate<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        len: u64,
        kind: AccessKind,
    ) -> Result<(Place, u64), MemFault> {
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        let comparator = match kind {
            AccessKind::Store => self.tlb.write_comparator(slot),
            _ => self.tlb.read_comparator(slot),
        };
        if comparator & (!FLAGS | INVALID) == biased & !FLAGS {
            return Ok((self.place(slot, comparator, va), PAGE_SIZE - va.page_offset()));
        }
        if let Some(found) = self.device_place(va, kind) {
            return Ok(found);
        }
        self.locate_missed(hooks, va, len, kind)
    }

    #[inline]
    fn device_place(&self, va: GuestVirt, kind: AccessKind) -> Option<(Place, u64)> {
        let &DeviceEntry { off, dev, sizes, from, to, rights, .. } = self.tlb.device(va.get().wrapping_add(BIAS))?;
        let at = va.page_offset();
        if !(u64::from(from)..u64::from(to)).contains(&at) || !rights.has(kind) {
            return None;
        }
        Some((Place::Mmio { dev, off: off.wrapping_add(at), sizes }, u64::from(to) - at))
    }

    /// The place that an entry says.
    #[inline]
    fn place(&self, slot: usize, comparator: u64, va: GuestVirt) -> Place {
        let host = with_exposed_provenance_mut(va.get().wrapping_add(self.tlb.addend(slot)) as usize);
        let ram = RamAddr::new(self.tlb.ram_page(slot).base().get() + va.page_offset());
        if comparator & DISCARD != 0 {
            Place::Rom { host }
        } else {
            Place::Ram {
                host,
                ram,
                entry: Some(self.tlb.id(slot)),
                silent: comparator & (NOTDIRTY | CODEPAGE | LINES) == 0,
            }
        }
    }

    fn locate_missed<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        len: u64,
        kind: AccessKind,
    ) -> Result<(Place, u64), MemFault> {
        let (to, filled) = self.refill(hooks, va, len, kind)?;
        self.filled_place(va, kind, &to, filled)
    }

    /// Asks where the page of `va` is, and notes it if that may be.
    #[inline]
    fn refill<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        len: u64,
        kind: AccessKind,
    ) -> Result<(Translation, Filled), MemFault> {
        match kind {
            AccessKind::Store => self.stats.store_miss += 1,
            _ => self.stats.load_miss += 1,
        }
        let len = len.min(PAGE_SIZE - va.page_offset());
        let to = self.translate(hooks, Access { idx: self.tlb.data_idx(), va, len, kind })?;
        // What may not be kept is asked for each time, as on a page of several regions.
        let filled = if to.lasting { self.tlb.fill(&self.space, &self.view, va, &to) } else { Filled::Mixed };
        if let Some(gap) = self.tlb.settle_run(va.get()) {
            self.close_gap(hooks, gap);
        }
        Ok((to, filled))
    }

    /// Looks up the pages next to the run, as far as they are like its own.
    #[cold]
    fn close_gap<H: Hooks>(&mut self, hooks: &mut H, gap: Gap) {
        let Gap { start, end, up } = gap;
        let (mut from, mut to) = if up { (start, start) } else { (end, end) };
        while (start, end) != (from, to) {
            let va = GuestVirt::new(if up { to } else { from - PAGE_SIZE });
            let access = Access { idx: self.tlb.data_idx(), va, len: 1, kind: AccessKind::Load };
            let found = hooks.look(&mut Physical::new(self), access);
            if !found.is_some_and(|found| self.tlb.plain_ahead(va.get(), &found)) {
                break;
            }
            (from, to) = if up { (from, to + PAGE_SIZE) } else { (from - PAGE_SIZE, to) };
        }
        self.awaited = None;
        self.tlb.widen_run(from, to);
        self.tlb.join_run(if up { end } else { start - PAGE_SIZE });
    }

    fn filled_place(
        &mut self,
        va: GuestVirt,
        kind: AccessKind,
        to: &Translation,
        filled: Filled,
    ) -> Result<(Place, u64), MemFault> {
        match filled {
            Filled::Entry => {
                let slot = self.tlb.slot(va.get().wrapping_add(BIAS));
                let entry = self.tlb.entry(slot);
                let comparator = if kind == AccessKind::Store { entry.write } else { entry.read };
                Ok((self.place(slot, comparator, va), PAGE_SIZE - va.page_offset()))
            }
            Filled::Device => self.device_place(va, kind).ok_or_else(|| self.fault(kind, va)),
            Filled::Mixed => self.locate_mixed(va, kind, to),
            Filled::Empty => Err(self.fault(kind, va)),
            Filled::Missing(ram) => Err(self.missing(kind, va, ram)),
        }
    }

    /// Asks the embedder where an access goes.
    #[inline]
    pub(crate) fn translate<H: Hooks>(&mut self, hooks: &mut H, access: Access) -> Result<Translation, MemFault> {
        self.awaited = None;
        match hooks.translate(&mut Physical::new(self), access) {
            Ok(to) if to.rights.has(access.kind) => Ok(to),
            Ok(_) => Err(self.fault(access.kind, access.va)),
            // A page table is yet to come: what the hooks made of that is not so.
            Err(_) if self.awaited.is_some() => Err(self.await_page(access.kind, access.va)),
            Err(cause) => {
                self.stats.faults += 1;
                Err(MemFault { kind: access.kind, cause, addr: access.va })
            }
        }
    }

    /// On a page that no entry describes, the view is asked each time (but for the device last used on it).
    fn locate_mixed(&mut self, va: GuestVirt, kind: AccessKind, to: &Translation) -> Result<(Place, u64), MemFault> {
        self.stats.mixed_page += 1;
        let at = to.at(va);
        // A page at a time, so that the pieces of an access wrap at the end of the address space.
        let page_left = PAGE_SIZE - at.page_offset();
        match self.view.resolve(at) {
            Resolved::Ram { block, off, readonly, len_left } => {
                let host = with_exposed_provenance_mut(host_address(block, off) as usize);
                let ram = ram_address(block, off);
                if self.space.ram().is_missing(ram) {
                    return Err(self.missing(kind, va, ram));
                }
                let place =
                    if readonly { Place::Rom { host } } else { Place::Ram { host, ram, entry: None, silent: false } };
                Ok((place, len_left.min(page_left)))
            }
            Resolved::Mmio { dev, off, len_left } => {
                let place = Place::Mmio { dev: NonNull::from(&**dev), off, sizes: dev.sizes() };
                if to.lasting {
                    self.tlb.fill_device(&self.view, va, to);
                }
                Ok((place, len_left.min(page_left)))
            }
            Resolved::None => Err(self.fault(kind, va)),
        }
    }

    /// Locates every byte of an access before any is touched (SAFE-1), and refuses what a device would refuse.
    fn pieces<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        kind: AccessKind,
    ) -> Result<Pieces, MemFault> {
        self.stats.page_cross += 1;
        let mut pieces = Pieces::new();
        let mut at = 0;
        while at < size.bytes() {
            let here = va.wrapping_add(at);
            let (place, left) = self.locate(hooks, here, size.bytes() - at, kind)?;
            let len = left.min(size.bytes() - at);
            if let Place::Mmio { off, sizes, .. } = place {
                let takes = |(_, part): (u64, MemSize)| sizes.widest_within(part).is_some();
                if !aligned(va, size) || !mmio::aligned_parts(off, len).all(takes) {
                    return Err(self.fault(kind, here));
                }
            }
            pieces.push(Piece { at, len, place });
            at += len;
        }
        Ok(pieces)
    }

    fn load_pieces<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        let mut value = 0;
        for Piece { at, len, place } in self.pieces(hooks, va, size, AccessKind::Load)? {
            let part = match place {
                // SAFETY: `locate` found at least `len` bytes of live RAM.
                Place::Ram { host, .. } | Place::Rom { host, .. } => unsafe { host::load_bytes(host, len) },
                Place::Mmio { dev, off, sizes } => {
                    mmio::aligned_parts(off, len).fold(0, |value, (into, part)| {
                        // `pieces` asked about every part.
                        let read = self.device_load(hooks, (dev, off + into, sizes), part).unwrap_or(0);
                        value | read << (8 * into)
                    })
                }
            };
            value |= part << (8 * at);
        }
        Ok(value)
    }

    fn store_pieces<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<StoreEffect, MemFault> {
        let pieces = self.pieces(hooks, va, size, AccessKind::Store)?;
        let mut effect = StoreEffect::NONE;
        for piece in &pieces {
            if let Place::Ram { ram, silent: false, .. } = piece.place {
                self.before(va.wrapping_add(piece.at), ram, piece.len)?;
            }
        }
        for piece in &pieces {
            match piece.place {
                Place::Ram { host, ram, silent, .. } => {
                    let _entered = self.enter(silent, ram, piece.len);
                    // SAFETY: `locate` found at least `len` bytes of live, writable RAM.
                    unsafe { host::store_bytes(host, piece.len, value >> (8 * piece.at)) }
                }
                Place::Rom { .. } => self.stats.rom_discard += 1,
                Place::Mmio { .. } => {}
            }
        }
        for piece in &pieces {
            if let Place::Ram { ram, entry, silent: false, .. } = piece.place {
                let told = self.notdirty_store(hooks, entry, ram, piece.len);
                effect.killed += told.killed;
                effect.ring_full |= told.ring_full;
            }
        }
        for piece in &pieces {
            if let Place::Mmio { dev, off, sizes } = piece.place {
                for (into, part) in mmio::aligned_parts(off, piece.len) {
                    let bytes = value >> (8 * (piece.at + into));
                    // `pieces` asked about every part.
                    let _ = self.device_store(hooks, (dev, off + into, sizes), part, bytes);
                }
                effect.mmio = true;
            }
        }
        Ok(effect)
    }

    #[inline]
    pub(crate) fn device_load<H: Hooks>(
        &mut self,
        hooks: &mut H,
        (dev, off, sizes): (NonNull<dyn MmioDevice>, u64, SizeMask),
        size: MemSize,
    ) -> Option<u64> {
        self.stats.mmio_read += 1;
        hooks.before_mmio();
        // SAFETY: the device is kept alive by `self.view`, which nothing replaces during an access.
        mmio::read(unsafe { dev.as_ref() }, sizes, off, size)
    }

    #[inline]
    pub(crate) fn device_store<H: Hooks>(
        &mut self,
        hooks: &mut H,
        (dev, off, sizes): (NonNull<dyn MmioDevice>, u64, SizeMask),
        size: MemSize,
        value: u64,
    ) -> Option<()> {
        self.stats.mmio_write += 1;
        hooks.before_mmio();
        // SAFETY: as in `device_load`.
        mmio::write(unsafe { dev.as_ref() }, sizes, off, size, value)
    }

    /// What [`load`](Self::load) does with a device that was used before and takes the access whole; else `None`, and nothing
    /// was done. `before` is called before the device is.
    #[inline]
    pub fn load_device(&mut self, va: GuestVirt, size: MemSize, before: impl FnOnce()) -> Option<u64> {
        let (dev, off) = self.whole_device(va, size, AccessKind::Load)?;
        self.stats.accesses += 1;
        self.stats.mmio_read += 1;
        before();
        // SAFETY: the device is kept alive by `self.view`, which nothing replaces during an access.
        let dev = unsafe { dev.as_ref() };
        Some(mmio::calling(dev, || dev.read(off, size)) & size.mask())
    }

    /// The same of [`store`](Self::store).
    #[inline]
    pub fn store_device(&mut self, va: GuestVirt, size: MemSize, value: u64, before: impl FnOnce()) -> Option<()> {
        let (dev, off) = self.whole_device(va, size, AccessKind::Store)?;
        self.stats.accesses += 1;
        self.stats.mmio_write += 1;
        before();
        // SAFETY: as in `load_device`.
        let dev = unsafe { dev.as_ref() };
        mmio::calling(dev, || dev.write(off, size, value & size.mask()));
        Some(())
    }

    /// The device that all of an aligned access goes to, in one piece. There is no RAM where one is: no entry of the table
    /// need be looked at.
    #[inline]
    fn whole_device(&self, va: GuestVirt, size: MemSize, kind: AccessKind) -> Option<(NonNull<dyn MmioDevice>, u64)> {
        if self.tlb.asks.is_active() {
            return None;
        }
        let &DeviceEntry { off, dev, sizes, from, to, rights, .. } = self.tlb.device(va.get().wrapping_add(BIAS))?;
        let at = va.page_offset();
        let within = at >= from.into() && at + size.bytes() <= to.into();
        (within && aligned(va, size) && sizes.contains(size) && rights.has(kind)).then_some((dev, off.wrapping_add(at)))
    }

    /// An access to RAM that is yet to come.
    #[cold]
    pub(crate) fn missing(&mut self, kind: AccessKind, va: GuestVirt, ram: RamAddr) -> MemFault {
        self.awaited = Some((ram, kind));
        self.await_page(kind, va)
    }

    #[cold]
    fn await_page(&mut self, kind: AccessKind, va: GuestVirt) -> MemFault {
        self.stats.missing += 1;
        self.awaited = self.awaited.map(|(ram, _)| (ram, kind));
        MemFault { kind, cause: FaultCause::Missing, addr: va }
    }

    #[cold]
    pub(crate) fn fault(&mut self, kind: AccessKind, va: GuestVirt) -> MemFault {
        self.stats.faults += 1;
        MemFault::access(kind, va)
    }
}

/// Does the access stay on its page?
#[inline]
const fn fits_page(va: GuestVirt, size: MemSize) -> bool {
    va.page_offset() + size.bytes() <= PAGE_SIZE
}

#[inline]
pub(crate) const fn aligned(va: GuestVirt, size: MemSize) -> bool {
    va.get() & (size.bytes() - 1) == 0
}

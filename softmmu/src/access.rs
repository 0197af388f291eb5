//! Loads, stores and fetches: the hit inline, everything else in `slow.rs`.
//!
//! The oracle and tier 0 come through here for every access; emitted code has the same probe inline and comes through
//! here when it misses.

use crate::addr::{GuestVirt, MemSize, MmuIdx};
use crate::fault::{AccessKind, MemFault};
use crate::host;
use crate::live::LiveMmu;
use crate::mmu::Hooks;
use crate::tlb::FetchEntry;
use crate::tlb::entry::{BIAS, FLAGS, INVALID, OTHER};
use crate::tlb::fill::Fetched;
use crate::translate::Access;
use notdirty_core::RamAddr;

/// What a store did beyond storing.
#[must_use = "a store may have killed the TB that made it"]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreEffect {
    /// TBs dropped.
    pub killed: u32,
    /// A device was called.
    pub mmio: bool,
    /// A dirty ring asks the vCPU to leave behind this instruction.
    pub ring_full: bool,
    /// [`Hooks::accessed`] was called.
    pub told: bool,
}

impl StoreEffect {
    /// Nothing but the store.
    pub const NONE: StoreEffect = StoreEffect { killed: 0, mmio: false, ring_full: false, told: false };
}

/// A page that instructions can be read from.
#[derive(Clone, Copy, Debug)]
pub struct FetchPage {
    /// Where the page starts in all RAM.
    pub ram: RamAddr,
    /// Where the page starts in the host; alive until the next `serve` that flushes. Read it with volatile loads.
    pub host: *const u8,
    /// Logarithm of what one leaf of the page tables maps there: it is forgotten together.
    pub size_log2: u8,
    /// May what is made of its bytes be kept? Else the next instruction may be refused where this one was not.
    pub lasting: bool,
    /// Bytes that can be fetched from the address asked for on: to the end of the page, or less where RAM ends, or where the next
    /// ones may be refused.
    pub len_ok: u64,
}

/// What the comparator of an aligned access with nothing special must be: page and alignment bits of the biased
/// address. Any flag, and any misalignment, makes it differ.
#[inline]
pub(crate) const fn wanted(biased: u64, size: MemSize) -> u64 {
    biased & (!FLAGS | (size.bytes() - 1))
}

impl LiveMmu {
    /// Loads a value, zero-extended. Misaligned loads of RAM work.
    ///
    /// # Errors
    /// [`MemFault`]: [`Hooks::translate`] refuses it, nothing is mapped there, or the device takes no such width.
    #[inline]
    pub fn load<H: Hooks>(
        &mut self,
        hooks: &mut H,
        idx: MmuIdx,
        va: GuestVirt,
        size: MemSize,
    ) -> Result<u64, MemFault> {
        self.stats.accesses += 1;
        self.tlb.select_data(idx);
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        if self.tlb.read_comparator(slot) & !OTHER == wanted(biased, size) {
            let host = va.get().wrapping_add(self.tlb.addend(slot));
            // SAFETY: the comparator matched: aligned, and the entry covers a live page of RAM (kept by `view`).
            return Ok(unsafe { host::load(std::ptr::with_exposed_provenance(host as usize), size) });
        }
        self.load_slow(hooks, va, size)
    }

    /// As [`load`](Self::load), in the regime that was selected last, by code that looked for the entry in vain.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn load_missed<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        self.stats.accesses += 1;
        let biased = va.get().wrapping_add(BIAS);
        let comparator = self.tlb.read_comparator(self.tlb.slot(biased));
        if comparator & (!FLAGS | INVALID) != biased & !FLAGS
            && self.tlb.device(biased).is_none()
            && !self.tlb.asks.is_active()
        {
            return self.load_refilled(hooks, va, size);
        }
        self.load_slow(hooks, va, size)
    }

    /// As [`store`](Self::store), in the regime that was selected last, by code that looked for the entry in vain.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn store_missed<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<StoreEffect, MemFault> {
        self.stats.accesses += 1;
        self.store_slow(hooks, va, size, value)
    }

    /// Stores a value. Misaligned stores to RAM work. It never serves requests.
    ///
    /// # Errors
    /// [`MemFault`] as for [`load`](Self::load); then nothing was written, of either page.
    #[inline]
    pub fn store<H: Hooks>(
        &mut self,
        hooks: &mut H,
        idx: MmuIdx,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<StoreEffect, MemFault> {
        self.stats.accesses += 1;
        self.tlb.select_data(idx);
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        if self.tlb.write_comparator(slot) & !OTHER == wanted(biased, size) {
            let host = va.get().wrapping_add(self.tlb.addend(slot));
            // SAFETY: the comparator matched: aligned, a live page of RAM, not ROM, and no client listens.
            unsafe { host::store(std::ptr::with_exposed_provenance_mut(host as usize), size, value) };
            return Ok(StoreEffect::NONE);
        }
        self.store_slow(hooks, va, size, value)
    }

    #[inline]
    fn fetch_entry<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt) -> Result<FetchEntry, MemFault> {
        self.tlb.select_fetch(idx);
        let at = va.page_offset() as u32;
        match self.tlb.fetch_entry(va.get().wrapping_add(BIAS)) {
            // On a mixed page the entry stands for one range: outside it there may be another.
            Some(entry) if (entry.from..entry.to).contains(&at) => Ok(entry),
            _ => self.fetch_missed(hooks, idx, va),
        }
    }

    #[cold]
    fn fetch_missed<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt) -> Result<FetchEntry, MemFault> {
        self.stats.fetch_miss += 1;
        // The smallest part of an instruction.
        let access = Access { idx, va, len: 2, kind: AccessKind::Fetch };
        let to = self.translate(hooks, access)?;
        let mut found = match self.tlb.fill_fetch(&self.space, &self.view, va, &to) {
            Fetched::Entry(entry) => entry,
            Fetched::Empty => return Err(self.fault(AccessKind::Fetch, va)),
            Fetched::Missing(ram) => return Err(self.missing(AccessKind::Fetch, va, ram)),
        };
        if !to.lasting {
            // What holds for this access alone says nothing of what comes after it.
            found.to = found.to.min(va.page_offset() as u32 + 2);
        }
        Ok(found)
    }

    /// The page that `va`, which is even, is fetched from. Devices and holes cannot be fetched from.
    ///
    /// # Errors
    /// [`MemFault`]: [`Hooks::translate`] refuses it, or no RAM is mapped there.
    #[inline]
    pub fn fetch<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt) -> Result<FetchPage, MemFault> {
        let entry = self.fetch_entry(hooks, idx, va)?;
        let len_ok = u64::from(entry.to) - va.page_offset();
        let (size_log2, lasting) = (entry.size_log2(), entry.lasting);
        Ok(FetchPage { ram: RamAddr::new(entry.ram), host: entry.host, size_log2, lasting, len_ok })
    }

    /// The 32 bits at `va`, which must be even, in one host access; `None` if not all of them lie on its page.
    ///
    /// # Errors
    /// [`MemFault`]: [`Hooks::translate`] refuses it, no RAM is mapped there, or the address is odd.
    #[inline]
    pub fn fetch_u32<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt) -> Result<Option<u32>, MemFault> {
        if va.get() & 1 != 0 {
            return Err(MemFault::misaligned(AccessKind::Fetch, va));
        }
        let page = self.fetch(hooks, idx, va)?;
        if page.len_ok < 4 {
            return Ok(None);
        }
        // SAFETY: `len_ok` says that all four bytes are live RAM.
        Ok(Some(unsafe { host::load_misaligned(page.host.add(va.page_offset() as usize), MemSize::B4) } as u32))
    }

    /// The 16 bits at `va`, which must be even.
    ///
    /// # Errors
    /// [`MemFault`]: [`Hooks::translate`] refuses it, no RAM is mapped there, or the address is odd.
    #[inline]
    pub fn fetch_u16<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt) -> Result<u16, MemFault> {
        if va.get() & 1 != 0 {
            return Err(MemFault::misaligned(AccessKind::Fetch, va));
        }
        let page = self.fetch(hooks, idx, va)?;
        if page.len_ok < 2 {
            return Err(MemFault::access(AccessKind::Fetch, va.wrapping_add(1)));
        }
        // SAFETY: `len_ok` says that both bytes are live RAM; even address on an aligned page.
        Ok(unsafe { host::load(page.host.add(va.page_offset() as usize), MemSize::B2) } as u16)
    }
}

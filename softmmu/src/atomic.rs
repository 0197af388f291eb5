//! LR, SC and AMOs. Misalignment and faults of the read half of an AMO are store faults (RISC-V).
//!
//! MARK-1: marks come after the host operation, and SC marks only if it wrote. A reservation is the cell and its
//! width and the value that LR saw; SC is a compare-and-exchange of that value. So a cell that other harts changed and
//! changed back in between (ABA) does not fail an SC, which the specification would have; lists whose heads are swung by
//! LR and SC alone, without a count beside the pointer, are the one idiom that notices. RAM that was asked to
//! ([`RamList::break_reservations`](notdirty_core::RamList::break_reservations)) notices: `reserve.rs`.
//!
//! Emitted code does the same in line where the comparator is equal, and comes here where it is not.

use crate::access::{StoreEffect, wanted};
use crate::addr::{GuestVirt, MemSize, MmuIdx};
use crate::fault::{AccessKind, MemFault};
use crate::host::{self, AmoOp};
use crate::live::LiveMmu;
use crate::mmu::Hooks;
use crate::reserve::STRICT;
use crate::slow::{Place, aligned};
use crate::tlb::entry::{BIAS, OTHER, Reservation};
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{Ordering, fence};

/// How a reservation names a cell: its host address is that of every alias.
pub(crate) fn tag(host: *mut u8, size: MemSize) -> u64 {
    host.expose_provenance() as u64 + u64::from(size == MemSize::B8)
}

impl LiveMmu {
    /// Atomic read-modify-write; the old value, zero-extended. On a device it is a load and a store.
    ///
    /// # Errors
    /// [`MemFault`]: not naturally aligned, refused by [`Hooks::translate`] as a store, or nothing there takes it.
    #[inline]
    pub fn amo<H: Hooks>(
        &mut self,
        hooks: &mut H,
        idx: MmuIdx,
        va: GuestVirt,
        size: MemSize,
        op: AmoOp,
        operand: u64,
    ) -> Result<(u64, StoreEffect), MemFault> {
        self.stats.accesses += 1;
        self.tlb.select_data(idx);
        let biased = va.get().wrapping_add(BIAS);
        let slot = self.tlb.slot(biased);
        if self.tlb.write_comparator(slot) & !OTHER == wanted(biased, size) {
            let host = with_exposed_provenance_mut(va.get().wrapping_add(self.tlb.addend(slot)) as usize);
            // SAFETY: the comparator matched: aligned, live, writable RAM; no client listens.
            return Ok((unsafe { host::amo(host, size, op, operand) }, StoreEffect::NONE));
        }
        self.amo_slow(hooks, va, size, op, operand)
    }

    #[cold]
    #[inline(never)]
    fn amo_slow<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        op: AmoOp,
        operand: u64,
    ) -> Result<(u64, StoreEffect), MemFault> {
        if self.tlb.asks.is_active() {
            // It loads, and it stores.
            let (loads, stores) = (self.asked(va, size.bytes(), false)?, self.asked(va, size.bytes(), true)?);
            let (old, mut effect) = self.amo_unasked(hooks, va, size, op, operand)?;
            if loads {
                self.tell(hooks, va, size, old, false);
            }
            if stores {
                self.tell(hooks, va, size, host::apply(op, old, operand, size.bytes() as usize), true);
            }
            effect.told = loads || stores;
            return Ok((old, effect));
        }
        self.amo_unasked(hooks, va, size, op, operand)
    }

    #[inline]
    fn amo_unasked<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        op: AmoOp,
        operand: u64,
    ) -> Result<(u64, StoreEffect), MemFault> {
        match self.locate_atomic(hooks, va, size, AccessKind::Store)? {
            Place::Ram { host, ram, entry, silent } => {
                if !silent {
                    self.before(va, ram, size.bytes())?;
                }
                let entered = self.enter(silent, ram, size.bytes());
                // SAFETY: `locate_atomic` found an aligned cell of live, writable RAM.
                let old = unsafe { host::amo(host, size, op, operand) };
                drop(entered);
                let effect =
                    if silent { StoreEffect::NONE } else { self.notdirty_store(hooks, entry, ram, size.bytes()) };
                Ok((old, effect))
            }
            Place::Rom { host, .. } => {
                self.stats.rom_discard += 1;
                // SAFETY: `locate_atomic` found an aligned cell of live RAM.
                Ok((unsafe { host::load(host, size) }, StoreEffect::NONE))
            }
            Place::Mmio { dev, off, sizes } => {
                let fault = MemFault::access(AccessKind::Store, va);
                let old = self.device_load(hooks, (dev, off, sizes), size).ok_or(fault)?;
                let new = host::apply(op, old, operand, size.bytes() as usize);
                self.device_store(hooks, (dev, off, sizes), size, new).ok_or(fault)?;
                Ok((old, StoreEffect { mmio: true, ..StoreEffect::NONE }))
            }
        }
    }

    /// Load-reserved. Devices cannot be reserved.
    ///
    /// # Errors
    /// [`MemFault`]: not naturally aligned, refused by [`Hooks::translate`], or no RAM.
    pub fn lr<H: Hooks>(&mut self, hooks: &mut H, idx: MmuIdx, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        self.tlb.select_data(idx);
        let told = self.tlb.asks.is_active() && self.asked(va, size.bytes(), false)?;
        let value = self.lr_unasked(hooks, va, size)?;
        if told {
            self.tell(hooks, va, size, value, false);
        }
        Ok(value)
    }

    #[inline]
    fn lr_unasked<H: Hooks>(&mut self, hooks: &mut H, va: GuestVirt, size: MemSize) -> Result<u64, MemFault> {
        self.clear_reservation();
        self.stats.accesses += 1;
        match self.locate_atomic(hooks, va, size, AccessKind::Load)? {
            Place::Ram { host, ram, .. } if self.is_strict() => Ok(self.reserve(host, ram, size)),
            Place::Ram { host, .. } | Place::Rom { host, .. } => {
                // SAFETY: `locate_atomic` found an aligned cell of live RAM.
                let value = unsafe { host::load(host, size) };
                // `lr.aq`, whether asked for or not; on the host it costs nothing.
                fence(Ordering::Acquire);
                self.tlb.set_reservation(Reservation { tag: tag(host, size), value });
                Ok(value)
            }
            Place::Mmio { .. } => Err(self.fault(AccessKind::Load, va)),
        }
    }

    /// Store-conditional: did it write? It does if the last LR was of the same cell and width and its value stands; with
    /// [`RamList::break_reservations`](notdirty_core::RamList::break_reservations), if nothing else stored there since.
    /// To ROM it succeeds as plain stores do: the value is ignored.
    ///
    /// # Errors
    /// [`MemFault`]: not naturally aligned, refused by [`Hooks::translate`], or no RAM.
    pub fn sc<H: Hooks>(
        &mut self,
        hooks: &mut H,
        idx: MmuIdx,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<(bool, StoreEffect), MemFault> {
        self.tlb.select_data(idx);
        let told = self.tlb.asks.is_active() && self.asked(va, size.bytes(), true)?;
        let (wrote, mut effect) = self.sc_unasked(hooks, va, size, value)?;
        if told && wrote {
            self.tell(hooks, va, size, value, true);
            effect.told = true;
        }
        Ok((wrote, effect))
    }

    #[inline]
    fn sc_unasked<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> Result<(bool, StoreEffect), MemFault> {
        let reserved = self.tlb.reservation();
        self.clear_reservation();
        self.stats.accesses += 1;
        let place = self.locate_atomic(hooks, va, size, AccessKind::Store)?;
        let (Place::Ram { host, .. } | Place::Rom { host, .. }) = place else {
            return Err(self.fault(AccessKind::Store, va));
        };
        let strict = matches!(place, Place::Ram { .. }) && self.is_strict();
        if reserved.tag != tag(host, size) | if strict { STRICT } else { 0 } {
            return Ok((false, StoreEffect::NONE));
        }
        let Place::Ram { ram, entry, silent, .. } = place else {
            self.stats.rom_discard += 1;
            return Ok((true, StoreEffect::NONE));
        };
        if !silent {
            self.before(va, ram, size.bytes())?;
        }
        let wrote = if strict {
            self.store_reserved(host, ram, size, (reserved.value, value))
        } else {
            let _entered = self.enter(silent, ram, size.bytes());
            // SAFETY: `locate_atomic` found an aligned cell of live, writable RAM.
            unsafe { host::compare_exchange(host, size, reserved.value, value) }
        };
        let effect =
            if wrote && !silent { self.notdirty_store(hooks, entry, ram, size.bytes()) } else { StoreEffect::NONE };
        Ok((wrote, effect))
    }

    /// Forgets the reservation (trap, context switch).
    pub fn clear_reservation(&mut self) {
        self.tlb.set_reservation(Reservation::default());
    }

    /// One aligned cell, all of it in one place.
    fn locate_atomic<H: Hooks>(
        &mut self,
        hooks: &mut H,
        va: GuestVirt,
        size: MemSize,
        kind: AccessKind,
    ) -> Result<Place, MemFault> {
        if !aligned(va, size) {
            self.stats.faults += 1;
            return Err(MemFault::misaligned(kind, va));
        }
        match self.locate(hooks, va, size.bytes(), kind)? {
            (place, left) if left >= size.bytes() => Ok(place),
            _ => Err(self.fault(kind, va)),
        }
    }
}

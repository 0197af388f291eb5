//! Stores to tracked pages: steps a to d of the store path.
//!
//! ```text
//!   before       the door's first half: what subscribes takes the old bytes       (core's ram/door.rs)
//!   a. host store                                     (by the caller, or here for a code page)
//!   ── fence ──  MARK-1: the store is visible before the bits are read
//!   b. CODE clear, and the bytes touch halves with code ─▶ CodeInvalidator::code_written, and a kill posted
//!      to every other vCPU that has announced such a line, whatever address space it is of
//!   c. each client that listens gets the page's bit (a RMW); a bit that was clear, of a client with rings, is pushed to this
//!      vCPU's own, and a ring at its soft limit makes the vCPU leave behind this instruction (RING-1)
//!   d. what listens now? nothing: NOTDIRTY goes; only code: CODEPAGE, and the next store tests its bits. Of the entry that
//!      the store went through, that is: its aliases find out by a store of their own (tlb/chain.rs)
//! ```
//!
//! A store that is not heard, or by the translator alone, needs no `before`: what subscribes has a log, so it was called for an
//! earlier store to this page, or is about to be asked to re-arm.
//!
//! Keeps MARK-1 and the store's half of CODE-1. Step d asks again after b and c: killing the last TB of a page makes
//! the entry fast at once. A walk that marks a page-table entry comes here too, and has no entry of the TLB.

use crate::access::StoreEffect;
use crate::addr::{GuestVirt, MemSize};
use crate::fault::{AccessKind, MemFault};
use crate::host;
use crate::live::LiveMmu;
use crate::mmu::Hooks;
use notdirty_core::{CodePage, PageRange, RamAddr, fence_after_store, lines_of, pin};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::atomic::Ordering;

impl LiveMmu {
    /// The door's first half, for `len` bytes at `ram`, which are at `va`: before the host store. Refused only if the embedder runs
    /// the vCPU with a guard held (SAFE-1) while something subscribes: then the access faults, and nothing was written.
    #[inline]
    pub(crate) fn before(&mut self, va: GuestVirt, ram: RamAddr, len: u64) -> Result<(), MemFault> {
        self.space.ram().before(ram, len).map_err(|_| self.fault(AccessKind::Store, va))
    }

    /// Steps b to d for `len` bytes at `ram`, on one page, that were just stored by this vCPU, through `entry` if there is one.
    pub(crate) fn notdirty_store<H: Hooks>(
        &mut self,
        hooks: &mut H,
        entry: Option<u32>,
        ram: RamAddr,
        len: u64,
    ) -> StoreEffect {
        // MARK-1: partners the RMW of `announce` and of every take of bits.
        fence_after_store();
        self.note_lines(ram, len);
        // A cell of reservations, as a rule.
        if self.space.ram().reservations().is_some()
            && entry.is_some_and(|entry| self.tlb.is_beside_code(entry, ram, len))
        {
            self.stats.code_page += 1;
            return StoreEffect::NONE;
        }
        self.stats.notdirty += 1;
        let guard = pin();
        let page = ram.page();
        let listening = self.space.ram().dirty().listening(page, &guard);
        let mut effect = StoreEffect::NONE;
        if listening.code() && self.space.code().hit(ram, len) {
            effect.killed = self.kill(hooks, ram, len);
        }
        let others = listening.clients();
        if !others.is_empty() {
            let (ram, rings) = (self.space.ram(), &mut self.rings);
            ram.dirty().set_new(PageRange::of_page(page), others, &guard, |client, first, bits| {
                effect.ring_full |= rings.push(ram, client, first, bits, &guard);
            });
            if effect.ring_full {
                // The loop looks behind this instruction, and asks `ring_is_full`.
                self.port.kick();
            }
        }
        if let Some(entry) = entry {
            self.stats.refreshed += 1;
            self.tlb.refresh_entry(&self.space, entry, page, &guard);
        }
        effect
    }

    /// A store through an entry with CODEPAGE, aligned: only a hit of the halves leaves the quick way.
    pub(crate) fn store_to_code_page<H: Hooks>(
        &mut self,
        hooks: &mut H,
        slot: usize,
        va: GuestVirt,
        size: MemSize,
        value: u64,
    ) -> StoreEffect {
        let entry = self.tlb.entry(slot);
        let host = va.get().wrapping_add(entry.addend);
        let ram = RamAddr::new(self.tlb.ram_page(slot).base().get() + va.page_offset());
        let entered = self.enter(false, ram, size.bytes());
        // SAFETY: the write comparator matched but for CODEPAGE: aligned, live, writable RAM.
        unsafe { host::store(with_exposed_provenance_mut(host as usize), size, value) };
        drop(entered);
        // MARK-1, as in `notdirty_store`.
        fence_after_store();
        // SAFETY: with CODEPAGE, `aux` is the address of a `CodePage`, which lives as long as the RAM list, and so as `self.space`.
        let code = unsafe { &*with_exposed_provenance::<CodePage>(entry.aux as usize) };
        if !code.hit(va.page_offset(), size.bytes()) {
            self.stats.code_page += 1;
            if code.mask.load(Ordering::Relaxed) == 0 {
                // Its TBs died by other means, of which this entry was not told.
                self.refresh_entry(slot);
            }
            return StoreEffect::NONE;
        }
        let killed = self.kill(hooks, ram, size.bytes());
        self.refresh_entry(slot);
        StoreEffect { killed, ..StoreEffect::NONE }
    }

    /// Step d for a filled slot.
    fn refresh_entry(&mut self, slot: usize) {
        self.stats.refreshed += 1;
        self.tlb.refresh_entry(&self.space, self.tlb.id(slot), self.tlb.ram_page(slot), &pin());
    }

    fn kill<H: Hooks>(&mut self, hooks: &mut H, ram: RamAddr, len: u64) -> u32 {
        self.stats.code_hit += 1;
        // Other vCPUs have translations of their own (TB-1). Asked first: our own lines may go with the TBs.
        let own = self.port.id();
        let mut others = self.space.code().owners(ram.page(), lines_of(ram.page_offset(), len));
        others.retain(|id| *id != own);
        if !others.is_empty() {
            // They serve it when they do: at the latest at the `fence.i` before which ours can be known.
            self.space.ram().kill_code(&others, ram, len);
        }
        let killed = hooks.code_written(ram, len);
        self.stats.killed += killed as u64;
        killed as u32
    }
}

//! LR and SC where any other store to the set breaks a reservation, and the stores that do.
//!
//! ```text
//!   lr   look at the stripe ─▶ known to be heard, and no set forgotten since? ─▶ load; reserved: what was seen
//!                                │ no: announce, arm own entries, ask the others                 core's ram/reserve.rs
//!                                └─ not answered yet ─▶ load; nothing reserved, so the SC fails, and its loop turns
//!   sc   hold the stripe as it was seen ─▶ compare and exchange
//!   a heard store, AMO or mark of a walk ─▶ enter the stripe, if the bytes may be of an announced set
//! ```
//!
//! A store that is under way when its set is announced may be past its look at the mask: it is behind it when its vCPU answers,
//! and until then nothing is reserved. With one writer (WRITER-1) there is nothing to hear: reservations are values.
//!
//! An SC compares the value as well: stores that no door hears of (`write_raw`) fail it as they do where reservations are values.

use crate::addr::MemSize;
use crate::atomic::tag;
use crate::host;
use crate::live::LiveMmu;
use crate::tlb::entry::Reservation;
use notdirty_core::{Announced, Entered, RamAddr, Seen};

/// Of a reservation's tag: emitted code, which compares values, does not know it.
pub(crate) const STRICT: u64 = 2;
const KNOWN: usize = 16;

/// What this vCPU knows of reservations that other stores break.
#[derive(Default)]
pub(crate) struct HeardSets {
    /// Announced sets with stores that are heard, by the number's low bits, with the epoch in which they are.
    known: [(u64, u64); KNOWN],
    /// What the last LR saw, if it reserved.
    seen: Seen,
}

/// A store is under way, to so many stripes as it touches.
pub(crate) type Entering<'m> = (Option<Entered<'m>>, Option<Entered<'m>>);

impl LiveMmu {
    /// Do other stores break reservations?
    #[inline]
    pub(crate) fn is_strict(&self) -> bool {
        self.space.ram().reservations().is_some() && !self.space.vcpus().one_writer()
    }

    /// An LR of a cell of live RAM: its value.
    pub(crate) fn reserve(&mut self, host: *mut u8, ram: RamAddr, size: MemSize) -> u64 {
        let seen = self.space.ram().reservations().and_then(|all| all.stripe(ram).look());
        let heard = self.is_heard(ram);
        // SAFETY: the caller's: an aligned cell of live RAM.
        let value = unsafe { host::load(host, size) };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        if let (Some(seen), true) = (seen, heard) {
            self.heard.seen = seen;
            self.tlb.set_reservation(Reservation { tag: tag(host, size) | STRICT, value });
        }
        value
    }

    /// An SC of the cell that the last LR reserved: did it write?
    pub(crate) fn store_reserved(&self, host: *mut u8, ram: RamAddr, size: MemSize, (old, new): (u64, u64)) -> bool {
        let held = self.space.ram().reservations().and_then(|all| all.stripe(ram).hold(self.heard.seen));
        // SAFETY: the caller's: an aligned cell of live, writable RAM.
        held.is_some_and(|_held| unsafe { host::compare_exchange(host, size, old, new) })
    }

    /// Is every store to the set of this cell heard from here on, until the epoch changes? If not, that is seen to.
    #[inline]
    fn is_heard(&mut self, ram: RamAddr) -> bool {
        let Some(all) = self.space.ram().reservations() else { return false };
        let set = ram.get() / 8;
        self.heard.known[set as usize % KNOWN] == (set, all.epoch()) || self.announce_set(ram)
    }

    #[cold]
    fn announce_set(&mut self, ram: RamAddr) -> bool {
        let space = self.space.clone();
        let Some(all) = space.ram().reservations() else { return false };
        let mut found = all.announce(space.ram(), ram);
        if let Announced::Ask(serial) = found {
            let answers = self.rearm_all(ram.page());
            all.asked(ram, serial, Box::new(answers));
            // There may be none to wait for.
            found = all.announce(space.ram(), ram);
        }
        let Announced::Heard(epoch) = found else { return false };
        let set = ram.get() / 8;
        self.heard.known[set as usize % KNOWN] = (set, epoch);
        true
    }

    /// A store to RAM begins: it breaks what is reserved there. Nothing is looked for if nothing listens.
    #[inline]
    pub(crate) fn enter(&self, silent: bool, ram: RamAddr, len: u64) -> Entering<'_> {
        match self.space.ram().reservations() {
            Some(_) if !silent => self.enter_set(ram, len),
            _ => (None, None),
        }
    }

    #[cold]
    fn enter_set(&self, ram: RamAddr, len: u64) -> Entering<'_> {
        let (all, code) = (self.space.ram().reservations(), self.space.code().page(ram.page()));
        let (Some(all), Some(code)) = (all, code) else { return (None, None) };
        if !code.may_be_reserved(ram.page_offset(), len) {
            return (None, None);
        }
        let (first, last) = (all.stripe(ram), all.stripe(RamAddr::new(ram.get() + len - 1)));
        (Some(first.enter()), (!std::ptr::eq(first, last)).then(|| last.enter()))
    }
}

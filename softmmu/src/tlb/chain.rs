//! Which entries show a RAM page, in whatever set and at whatever virtual address, by what their stores do.
//!
//! ```text
//!   FAST    a store calls nothing, or notes its line (LINES) ─┐ loose: a re-arm has to find them
//!   CODE    a store tests the page's code (CODEPAGE)         ─┘
//!   ARMED   a store is told (NOTDIRTY), or there is none (ROM, no right to store): a re-arm has nothing to do there
//! ```
//!
//! A slow store disarms its own entry: that becomes loose, and its aliases stay as they are, until each is stored through. So a
//! store costs the same however many aliases its page has, and a re-arm costs the entries that were disarmed since the last.

use super::entry::{CODEPAGE, DISCARD, INVALID, LINES, NOTDIRTY, TLB_ENTRIES, TlbEntry};
use super::mapping::Mapping;
use super::set::{BigPages, Reach};
use super::{Id, Tlb, id_of, is_filled, set_of, slot_of};
use notdirty_core::PageIndex;
use std::io;
use std::ptr::NonNull;

/// Ends a chain.
pub(super) const NONE: Id = Id::MAX;
/// RAM pages with the same low bits share their chains; entries tell by `page`. The table is touched as it is used.
const HEAD_BITS: u32 = 20;

/// What the slow path knows about an entry beyond the comparators. Read only while the entry is filled.
#[derive(Clone, Copy)]
pub(super) struct FullEntry {
    /// Index of the RAM page.
    pub(super) page: u64,
    /// The physical page: the map may show a RAM page at several.
    pub(super) phys: u64,
    /// Neighbours in the chain of this RAM page and this state.
    next: Id,
    prev: Id,
    /// Where it stands in `loose`, if it is loose.
    loose_at: u32,
    /// Where it stands in its set's `filled`.
    at: u16,
    pub(super) reach: Reach,
}

/// Neighbours in the chain of a superpage: of an entry that is part of one. Apart, as few are.
pub(super) struct BigLinks {
    pub(super) next: Id,
    prev: Id,
}

/// See the head of this file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum State {
    Fast = 0,
    Code = 1,
    Armed = 2,
}

impl State {
    fn of(write: u64) -> State {
        if write & (INVALID | DISCARD | NOTDIRTY) != 0 {
            State::Armed
        } else if write & CODEPAGE != 0 {
            State::Code
        } else {
            State::Fast
        }
    }
    fn is_loose(self) -> bool {
        self != State::Armed
    }
}

/// Heads of chains, and what is loose.
pub(super) struct Chains {
    _mapping: Mapping,
    /// By a RAM page's low bits, then by state: id + 1, or 0.
    heads: NonNull<[u32; 3]>,
    pub(super) loose: Vec<Id>,
}

impl Chains {
    pub(super) fn new() -> io::Result<Chains> {
        let mapping = Mapping::zeroed(size_of::<[u32; 3]>() << HEAD_BITS)?;
        Ok(Chains { heads: mapping.start().cast(), _mapping: mapping, loose: Vec::new() })
    }

    fn head(&mut self, page: u64, state: State) -> &mut u32 {
        // SAFETY: the mapping has so many heads, zeroed; `&mut self` makes it the only reference.
        unsafe { &mut (*self.heads.as_ptr().add(page as usize & ((1 << HEAD_BITS) - 1)))[state as usize] }
    }

    pub(super) fn first(&mut self, page: PageIndex, state: State) -> Id {
        self.head(page.get(), state).wrapping_sub(1)
    }

    /// Every entry that there is dies: no chain is followed any more.
    pub(super) fn forget(&mut self, page: u64) {
        for state in [State::Fast, State::Code, State::Armed] {
            *self.head(page, state) = 0;
        }
    }
}

impl Tlb {
    /// Puts an entry for a RAM page into a slot of the current set, in place of whatever was there.
    pub(super) fn install(&mut self, slot: usize, entry: TlbEntry, (page, phys): (PageIndex, u64), reach: Reach) {
        let (id, state) = (self.id(slot), State::of(entry.write));
        let there = self.entry_at(id);
        let was_loose = State::of(there.write).is_loose();
        let old = is_filled(&there).then(|| *self.full(id));
        if let Some(old) = old {
            self.unlink(id);
            self.unlink_big(id);
            if was_loose && !state.is_loose() {
                self.remove_loose(old.loose_at);
            }
            if old.reach.global != reach.global {
                self.remove_filled(id, old);
            }
        }
        let at = match old {
            Some(old) if old.reach.global == reach.global => old.at,
            _ => {
                let filled = &mut self.sets[set_of(id)].filled[usize::from(reach.global)];
                filled.push(slot as u16);
                (filled.len() - 1) as u16
            }
        };
        let loose_at = match old {
            Some(old) if was_loose => old.loose_at,
            _ if state.is_loose() => self.add_loose(id),
            _ => 0,
        };
        let full = FullEntry { page: page.get(), phys, next: NONE, prev: NONE, loose_at, at, reach };
        self.set_entry(id, entry);
        // SAFETY: `id` is that of a slot of a set, and `&mut self`.
        unsafe { self.full.as_ptr().add(id as usize).write(full) };
        self.link(id);
        if reach.size_log2 > notdirty_core::PAGE_BITS as u8 {
            self.link_big(id);
        }
    }

    /// Empties a filled slot.
    pub(super) fn drop_entry(&mut self, id: Id) {
        let full = *self.full(id);
        self.remove_filled(id, full);
        self.drop_listed(id);
    }

    /// The same of one that is not in its set's list any more.
    pub(super) fn drop_listed(&mut self, id: Id) {
        let full = *self.full(id);
        self.unlink(id);
        self.unlink_big(id);
        if self.state(id).is_loose() {
            self.remove_loose(full.loose_at);
        }
        self.set_empty(id);
    }

    /// Changes what the stores through an entry do.
    pub(super) fn set_flags(&mut self, id: Id, (flags, aux): (u64, u64)) {
        let entry = self.entry_at(id);
        if entry.write & (DISCARD | INVALID) != 0 {
            return;
        }
        let write = entry.write & !(NOTDIRTY | CODEPAGE | LINES) | flags;
        let (old, state) = (State::of(entry.write), State::of(write));
        if old == state {
            self.set_entry(id, TlbEntry { write, aux, ..entry });
            return;
        }
        self.unlink(id);
        self.set_entry(id, TlbEntry { write, aux, ..entry });
        match (old.is_loose(), state.is_loose()) {
            (true, false) => {
                let at = self.full(id).loose_at;
                self.remove_loose(at);
            }
            (false, true) => {
                let at = self.add_loose(id);
                self.full_mut(id).loose_at = at;
            }
            _ => {}
        }
        self.link(id);
    }

    /// The entries of this RAM page in this state.
    pub(super) fn collect(&mut self, page: PageIndex, state: State, into: &mut Vec<Id>) {
        let mut id = self.chains.first(page, state);
        while id != NONE {
            let full = self.full(id);
            let (mapped, next) = (full.page, full.next);
            if mapped == page.get() {
                into.push(id);
            }
            id = next;
        }
    }

    /// What the stores through a filled entry do: which chain it is in.
    fn state(&self, id: Id) -> State {
        State::of(self.entry_at(id).write)
    }

    fn link(&mut self, id: Id) {
        let (page, state) = (self.full(id).page, self.state(id));
        let next = core::mem::replace(self.chains.head(page, state), id + 1).wrapping_sub(1);
        let full = self.full_mut(id);
        (full.next, full.prev) = (next, NONE);
        if next != NONE {
            self.full_mut(next).prev = id;
        }
    }

    fn unlink(&mut self, id: Id) {
        let FullEntry { page, next, prev, .. } = *self.full(id);
        let state = self.state(id);
        if prev == NONE {
            *self.chains.head(page, state) = next.wrapping_add(1);
        } else {
            self.full_mut(prev).next = next;
        }
        if next != NONE {
            self.full_mut(next).prev = prev;
        }
    }

    fn add_loose(&mut self, id: Id) -> u32 {
        self.chains.loose.push(id);
        (self.chains.loose.len() - 1) as u32
    }

    fn remove_loose(&mut self, at: u32) {
        self.chains.loose.swap_remove(at as usize);
        // The last one comes to its place.
        if let Some(&moved) = self.chains.loose.get(at as usize) {
            self.full_mut(moved).loose_at = at;
        }
    }

    fn remove_filled(&mut self, id: Id, full: FullEntry) {
        let set = set_of(id);
        let filled = &mut self.sets[set].filled[usize::from(full.reach.global)];
        debug_assert!(usize::from(filled[usize::from(full.at)]) == slot_of(id));
        filled.swap_remove(usize::from(full.at));
        if let Some(&moved) = filled.get(usize::from(full.at)) {
            self.full_mut(id_of(set, moved.into())).at = full.at;
        }
    }

    /// The superpage of an entry that one was cut into.
    fn big_key(&self, id: Id, size_log2: u8) -> u64 {
        BigPages::key((self.entry_at(id).read & !super::FLAGS).wrapping_sub(super::entry::BIAS), size_log2)
    }

    fn link_big(&mut self, id: Id) {
        let size = self.full(id).reach.size_log2;
        let key = self.big_key(id, size);
        let big = &mut self.sets[set_of(id)].big;
        big.sizes |= 1 << size;
        let next = big.heads.insert(key, id).unwrap_or(NONE);
        *self.big_mut(id) = BigLinks { next, prev: NONE };
        if next != NONE {
            self.big_mut(next).prev = id;
        }
    }

    fn unlink_big(&mut self, id: Id) {
        let reach = self.full(id).reach;
        if reach.size_log2 <= notdirty_core::PAGE_BITS as u8 {
            return;
        }
        let BigLinks { next, prev } = *self.big_mut(id);
        if next != NONE {
            self.big_mut(next).prev = prev;
        }
        if prev != NONE {
            self.big_mut(prev).next = next;
            return;
        }
        let key = self.big_key(id, reach.size_log2);
        let heads = &mut self.sets[set_of(id)].big.heads;
        if next != NONE {
            heads.insert(key, next);
        } else {
            heads.remove(&key);
        }
    }
}

const _: () = assert!(TLB_ENTRIES <= 1 << 16 && size_of::<FullEntry>() == 32);

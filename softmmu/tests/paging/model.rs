//! The naive MMU: page tables in guest RAM that anything may write, and a list of what may be remembered.
use crate::common::{RAM, Tbs, pa, va};
use notdirty_core::{PAGE_SIZE, RamAddr};
use notdirty_softmmu::{
    Access, AccessKind, CodeInvalidator, FaultCause, GuestPhys, Hooks, MemFault, MemSize, MmuIdx, Physical, Rights,
    Translation,
};
use std::collections::{BTreeMap, BTreeSet};

/// Where virtual pages are: 64 of them.
pub const VIRT: u64 = 0x40_0000_0000;
pub const PAGES: u64 = 64;
/// Blocks: RAM, RAM that comes and goes, ROM. No two pages of them have one slot, so that nothing is evicted.
pub const BLOCKS: [(u64, u64); 3] = [(RAM, 16), (0x2_0011_8000, 4), (0x21_4000, 2)];

// A page-table entry of these tests: bits, and the physical page above them. The table of address space n is RAM's page n.
pub const V: u64 = 1;
pub const R: u64 = 2;
pub const W: u64 = 4;
pub const X: u64 = 8;
pub const G: u64 = 16;
pub const A: u64 = 32;
pub const D: u64 = 64;
/// Eight pages are one.
pub const BIG: u64 = 128;
/// The first half of the page may be used, and each access is asked about.
pub const ASK: u64 = 256;

pub fn entry_at(asid: u32, page: u64) -> u64 {
    RAM + u64::from(asid) * PAGE_SIZE + page * 8
}

/// What an entry says of an access: where to, or why not, and what the entry becomes.
pub fn decide(entry: u64, access: &Access) -> (Result<Translation, FaultCause>, u64) {
    let Access { va, len, kind, .. } = *access;
    let bit = match kind {
        AccessKind::Load => R,
        AccessKind::Store => W,
        AccessKind::Fetch => X,
    };
    if entry & V == 0 || entry & bit == 0 {
        return (Err(FaultCause::Page), entry);
    }
    if entry & ASK != 0 && va.page_offset() + len > 2048 {
        return (Err(FaultCause::Access), entry);
    }
    let after = entry | A | if kind == AccessKind::Store { D } else { 0 };
    let (size_log2, inside) = if entry & BIG != 0 { (15, 0x7000) } else { (12, 0) };
    let to = Translation {
        page: GuestPhys::new((entry & 0x3f_ffff_ffff_f000) & !inside | va.get() & inside),
        size_log2,
        rights: Rights { load: entry & R != 0, store: after & (W | D) == W | D, fetch: entry & X != 0 },
        global: entry & G != 0,
        lasting: entry & ASK == 0,
        everywhere: false,
    };
    (Ok(to), after)
}

/// The engine: remembers code, and walks.
pub struct Engine {
    pub tbs: Tbs,
    pub asid: u32,
    pub asked: u64,
    /// Does it say what lies between pages in use?
    pub looks: bool,
    /// What it said, for the model.
    pub looked: Vec<(Key, Translation)>,
}

impl CodeInvalidator for Engine {
    fn code_written(&mut self, ram: RamAddr, len: u64) -> usize {
        self.tbs.code_written(ram, len)
    }
}

impl Hooks for Engine {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        self.asked += 1;
        let page = access.va.get().wrapping_sub(VIRT) / PAGE_SIZE;
        match access.idx {
            MmuIdx::M => return Ok(Translation::identity(access.va)),
            _ if page >= PAGES => return Err(FaultCause::Page),
            _ => {}
        }
        let at = pa(entry_at(self.asid, page));
        let entry = memory.read(at).unwrap();
        let (to, after) = decide(entry, &access);
        if after != entry {
            assert_eq!(memory.replace(self, at, !entry, 0), Some(false));
            assert_eq!(memory.replace(self, at, entry, after), Some(true));
        }
        to
    }

    fn look(&mut self, memory: &mut Physical<'_>, access: Access) -> Option<Translation> {
        let page = access.va.get().wrapping_sub(VIRT) / PAGE_SIZE;
        if !self.looks || page >= PAGES {
            return None;
        }
        let entry = memory.read(pa(entry_at(self.asid, page)))?;
        let (to, after) = decide(entry, &access);
        let to = to.ok().filter(|_| after == entry)?;
        if to.lasting {
            self.looked.push(((access.idx.0, self.asid, access.va.get() / PAGE_SIZE), to));
        }
        Some(to)
    }
}

pub type Key = (u8, u32, u64);

/// The naive MMU.
#[derive(Default)]
pub struct Model {
    pub bytes: Vec<Vec<u8>>,
    /// What may be remembered of loads and stores, and of fetches.
    pub data: BTreeMap<Key, Translation>,
    pub fetches: BTreeMap<Key, Translation>,
    /// What was looked at, and not loaded from.
    pub looked: BTreeMap<Key, Translation>,
    pub dirty: BTreeSet<(usize, u64)>,
    pub code: Vec<(u64, u64)>,
    pub plugged: bool,
    pub asked: u64,
    pub asid: u32,
}

impl Model {
    /// Block and offset of a physical address.
    pub fn place(&self, at: u64) -> Option<(usize, u64)> {
        let there = |n: &usize| (BLOCKS[*n].0..BLOCKS[*n].0 + BLOCKS[*n].1 * PAGE_SIZE).contains(&at);
        (0..3).find(there).filter(|&n| n != 1 || self.plugged).map(|n| (n, at - BLOCKS[n].0))
    }

    pub fn store_byte(&mut self, (block, off): (usize, u64), byte: u8) {
        if block == 2 {
            return;
        }
        self.bytes[block][off as usize] = byte;
        self.dirty.insert((block, off / PAGE_SIZE));
        if block == 0 {
            self.code.retain(|&(at, len)| !(at..at + len).contains(&off));
        }
    }

    pub fn word(&self, at: u64) -> u64 {
        let (block, off) = self.place(at).unwrap();
        u64::from_le_bytes(self.bytes[block][off as usize..off as usize + 8].try_into().unwrap())
    }

    /// Where a part of an access on one page is.
    pub fn locate(&mut self, idx: MmuIdx, at: u64, len: u64, kind: AccessKind) -> Result<(usize, u64), FaultCause> {
        let page = at / PAGE_SIZE;
        let key = (idx.0, if idx == MmuIdx::M { 0 } else { self.asid }, page);
        let known = if kind == AccessKind::Fetch { &self.fetches } else { &self.data };
        let known = known.get(&key).filter(|to| to.rights.has(kind)).copied();
        let to = match known {
            Some(to) => to,
            None => {
                self.asked += 1;
                let number = page.wrapping_sub(VIRT / PAGE_SIZE);
                let to = if idx == MmuIdx::M {
                    Translation::identity(va(at))
                } else if number >= PAGES {
                    return Err(FaultCause::Page);
                } else {
                    let there = entry_at(self.asid, number);
                    let entry = self.word(there);
                    let (to, after) = decide(entry, &Access { idx, va: va(at), len, kind });
                    // The walk writes what it changed, whatever comes then.
                    if after != entry {
                        for (n, byte) in after.to_le_bytes().into_iter().enumerate() {
                            self.store_byte((0, there - RAM + n as u64), byte);
                        }
                    }
                    to?
                };
                if to.lasting && self.place(to.page.get()).is_some() {
                    let known = if kind == AccessKind::Fetch { &mut self.fetches } else { &mut self.data };
                    known.insert(key, to);
                }
                to
            }
        };
        self.place(to.page.get() + at % PAGE_SIZE).ok_or(FaultCause::Access)
    }

    /// Every byte of an access: where it is, or what fault.
    pub fn bytes_of(
        &mut self,
        idx: MmuIdx,
        at: u64,
        size: MemSize,
        kind: AccessKind,
    ) -> Result<Vec<(usize, u64)>, MemFault> {
        let left = PAGE_SIZE - at % PAGE_SIZE;
        let fault = |cause, at| MemFault { kind, cause, addr: va(at) };
        let first = size.bytes().min(left);
        let mut start = self.locate(idx, at, first, kind).map_err(|cause| fault(cause, at))?;
        if first == size.bytes() {
            return Ok((0..first).map(|n| (start.0, start.1 + n)).collect());
        }
        // It is looked at again, with the other page.
        start = self.locate(idx, at, first, kind).map_err(|cause| fault(cause, at))?;
        let next = at.wrapping_add(first);
        let end = self.locate(idx, next, size.bytes() - first, kind).map_err(|cause| fault(cause, next))?;
        let bytes = (0..first).map(|n| (start.0, start.1 + n));
        Ok(bytes.chain((0..size.bytes() - first).map(|n| (end.0, end.1 + n))).collect())
    }

    pub fn value(&self, places: &[(usize, u64)]) -> u64 {
        places.iter().rev().fold(0, |value, &(block, off)| value << 8 | u64::from(self.bytes[block][off as usize]))
    }

    pub fn store(&mut self, places: &[(usize, u64)], value: u64) {
        for (n, &place) in places.iter().enumerate() {
            self.store_byte(place, (value >> (8 * n)) as u8);
        }
    }
}

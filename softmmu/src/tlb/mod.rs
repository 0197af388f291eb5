//! One vCPU's TLB: a set of tables for each regime and address space in use.
//!
//! ```text
//!   one mapping    [pad][ Selected ][ prefix: the owner's state ][ TlbEntry × 16 Ki ][ Reservation ] [ TlbEntry × 16 Ki ] …
//!                                                    ▲ set 0, machine mode: page-aligned, base in a host register;
//!                                                      other sets a constant further each, touched only as used
//!   beside it      FullEntry × 16 Ki, again for each set: the RAM page of an entry; touched only where entries are filled
//!                  heads[page]─▶id─▶id               a RAM page's entries in all sets, by what their stores do (chain.rs)
//!                  loose [id, id, …]                 entries that a re-arm may have to change: nothing else is looked at
//!   a set (set.rs) filled [slot, slot, …]            a flush wipes these, not 512 KiB; global ones apart
//!                  fetch × 64                        fetch translations; emitted code never probes for fetch
//!                  devices × 16                      device pages: always slow, so they need not evict RAM
//!                  big                               the entries that one superpage was cut into
//!                  run                               pages in a row that loads need no entry for (run.rs)
//! ```
//!
//! An entry of any set has an id: the set's number, then its slot. Machine mode has set 0 for itself; the other regimes share
//! the rest, and the set that was used longest ago makes room.
//!
//! Keeps TLB-1: every method is behind the owner's `&mut`, and the mapping is never shared between threads. `fill`
//! and `refresh` read which clients listen on the owner's thread, and others clear bits first and post second; so a fill that
//! missed the change has the request still before it (races A and B of QEMU's TLBs cannot happen).

pub(crate) mod arm;
mod chain;
pub mod entry;
pub(crate) mod fill;
pub(crate) mod flush;
mod mapping;
mod run;
mod selected;
mod set;
pub(crate) mod tables;

use crate::addr::MmuIdx;
use crate::ask::Asks;
use crate::translate::Asid;
use chain::{BigLinks, Chains, FullEntry};
use entry::{
    ASK, FLAGS, INVALID, NOTED_LIST, NotedList, RESERVATION, Reservation, Selected, TLB_BITS, TLB_ENTRIES, TlbEntry,
};
use mapping::Mapping;
use notdirty_core::{PAGE_SIZE, PageIndex};
pub(crate) use run::Gap;
pub(crate) use set::{DeviceEntry, FetchEntry};
use set::{Key, Set};
use std::io;
use std::ptr::NonNull;
use tables::TableCache;

/// Sets that there are at most: each has at most 1 MiB, once it was full.
const SETS: usize = 32;
/// From one set's table to the next one's. Not a power of two, so that equal slots do not share the host's cache lines.
const STRIDE: usize = (TLB_ENTRIES * size_of::<TlbEntry>()) + PAGE_SIZE as usize;
/// From the start of the table, behind the tables of all sets: the counters of coverage, of which emitted code alone knows more.
pub const COVERAGE_AT: i32 = (SETS * STRIDE) as i32;
/// How many there are.
pub const COVERAGE_BYTES: usize = 1 << 20;
/// Behind them: the operands of comparisons, two words for each place. Emitted code writes them, too.
pub const OPERANDS_AT: i32 = COVERAGE_AT + COVERAGE_BYTES as i32;
/// How many places there are.
pub const OPERANDS: usize = 1 << 16;
const _: () = assert!(NOTED_LIST as usize + size_of::<NotedList>() <= STRIDE);

/// Fills after which a set may be one of memory that lies in no order.
const SCATTERED: u32 = 16;

/// An entry of some set.
type Id = u32;
const fn id_of(set: usize, slot: usize) -> Id {
    (set << TLB_BITS | slot) as Id
}
const fn set_of(id: Id) -> usize {
    id as usize >> TLB_BITS
}
const fn slot_of(id: Id) -> usize {
    id as usize & (TLB_ENTRIES - 1)
}

pub(crate) struct Tlb {
    /// Holds prefix and tables.
    _shared: Mapping,
    /// Set 0's.
    table: NonNull<TlbEntry>,
    /// That of the set which loads and stores look in.
    current: NonNull<TlbEntry>,
    prefix: NonNull<u8>,
    /// Holds `full`, by id.
    _side: Mapping,
    full: NonNull<FullEntry>,
    _bigs: Mapping,
    /// By id, too.
    big: NonNull<BigLinks>,
    chains: Chains,
    sets: Vec<Set>,
    /// The sets of loads and stores, and of fetches, and their regimes.
    data: usize,
    fetching: usize,
    data_idx: MmuIdx,
    fetch_idx: MmuIdx,
    /// Of all regimes but machine mode.
    asid: Asid,
    /// Goes up with each change of sets.
    clock: u64,
    /// The slots in use: all, but for measurements.
    mask: usize,
    /// Is the index a hash of the address? For measurements too.
    hashed: bool,
    /// Where page tables were read.
    pub(crate) tables: TableCache,
    /// Which bytes are asked about.
    pub(crate) asks: Asks,
    /// Of set 0. The others have one of their own, that of the first page which was found.
    pub(crate) flat_addend: u64,
    /// Where the RAM begins that it is for.
    pub(crate) flat_start: u64,
    /// See [`Selected::whole`]; as if nothing were asked about, nor missing.
    whole: u64,
    /// May pages of RAM be yet to come? Then each load needs an entry.
    missing: bool,
    /// Pages that may be looked up before they are asked for.
    ahead: u32,
    /// Entries filled, of pages that runs may have.
    fills: u32,
    /// Is it a page beside that? For measurements.
    pub(crate) flat_beside: bool,
}

// SAFETY: the raw pointers lead to mappings that this value owns alone, and to devices, which are Send + Sync, and
// guest RAM, which any thread may touch; the view beside the TLB in `SoftMmu` keeps both alive.
unsafe impl Send for Tlb {}

impl Tlb {
    /// What a slot holds when empty, if it is asked for the page that has the biased address zero and
    /// would match zeroes: slot 0 by that page itself, and the slot of the page before by accesses that begin there
    /// and end on it (a probe looks where the first byte is, for the page of the last byte).
    const EMPTY_ON_TOP: TlbEntry = TlbEntry { read: INVALID, write: INVALID, addend: 0, aux: 0 };

    pub(crate) fn new(prefix: usize) -> io::Result<Tlb> {
        let page = PAGE_SIZE as usize;
        let refused = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if !prefix.is_multiple_of(64) {
            return Err(refused("the TLB's prefix must be a multiple of 64 bytes"));
        }
        let room = Some(prefix).filter(|&prefix| prefix <= 1 << 30);
        let room = room.map(|prefix| (prefix + size_of::<Selected>()).next_multiple_of(page));
        let room = room.ok_or_else(|| refused("the TLB's prefix must be at most 1 GiB"))?;
        let shared = Mapping::zeroed(room + SETS * STRIDE + COVERAGE_BYTES + OPERANDS * 16)?;
        let side = Mapping::zeroed(SETS * TLB_ENTRIES * size_of::<FullEntry>())?;
        let bigs = Mapping::zeroed(SETS * TLB_ENTRIES * size_of::<BigLinks>())?;
        // SAFETY: `room` and `room - prefix` lie inside the mapping.
        let (table, prefix) = unsafe { (shared.start().add(room).cast(), shared.start().add(room - prefix)) };
        let mut tlb = Tlb {
            table,
            current: table,
            prefix,
            _shared: shared,
            full: side.start().cast(),
            _side: side,
            big: bigs.start().cast(),
            _bigs: bigs,
            chains: Chains::new()?,
            sets: Vec::new(),
            data: 0,
            fetching: 0,
            data_idx: MmuIdx::M,
            fetch_idx: MmuIdx::M,
            asid: Asid::default(),
            clock: 0,
            mask: TLB_ENTRIES - 1,
            hashed: false,
            tables: TableCache::default(),
            asks: Asks::default(),
            flat_addend: 0,
            flat_start: 0,
            whole: 0,
            missing: false,
            ahead: run::AHEAD,
            fills: 0,
            flat_beside: false,
        };
        tlb.add_set(Key { idx: MmuIdx::M, asid: Asid::default() });
        Ok(tlb)
    }

    /// Which slots are used, and how an address finds its own. The TLB is empty.
    pub(crate) fn set_shape(&mut self, mask: usize, hashed: bool) {
        let before = self.slot(Self::BEFORE_ZERO);
        (self.mask, self.hashed) = (mask, hashed);
        for set in 0..self.sets.len() {
            debug_assert!(self.sets[set].is_empty());
            for slot in [0, before, self.slot(Self::BEFORE_ZERO)] {
                self.set_empty(id_of(set, slot));
            }
        }
    }

    /// The page before the one with the biased address zero, biased.
    const BEFORE_ZERO: u64 = 0u64.wrapping_sub(PAGE_SIZE);

    /// Nothing is in this slot.
    fn set_empty(&mut self, id: Id) {
        let on_top = slot_of(id) == 0 || slot_of(id) == self.slot(Self::BEFORE_ZERO);
        self.set_entry(id, if on_top { Self::EMPTY_ON_TOP } else { TlbEntry::default() });
    }

    pub(crate) fn prefix(&self) -> NonNull<u8> {
        self.prefix
    }
    pub(crate) fn table(&self) -> NonNull<TlbEntry> {
        self.table
    }
    /// From set 0's table to that of the set which loads and stores look in.
    pub(crate) fn table_offset(&self) -> u64 {
        (self.data * STRIDE) as u64
    }

    /// The set for another regime's loads and stores.
    #[inline]
    pub(crate) fn select_data(&mut self, idx: MmuIdx) {
        if idx != self.data_idx {
            self.data = self.find_set(idx, self.fetching);
            self.data_idx = idx;
            self.current = self.table_of(self.data);
            self.show_selected();
        }
    }

    /// Have most entries of the set for loads and stores another addend than the flat one?
    pub(crate) fn is_scattered(&self) -> bool {
        let Set { near, elsewhere, .. } = self.sets[self.data];
        elsewhere >= SCATTERED && elsewhere / 4 >= near
    }

    /// The set for another regime's fetches.
    #[inline]
    pub(crate) fn select_fetch(&mut self, idx: MmuIdx) {
        if idx != self.fetch_idx {
            self.fetching = self.find_set(idx, self.data);
            self.fetch_idx = idx;
        }
    }

    pub(crate) fn data_idx(&self) -> MmuIdx {
        self.data_idx
    }
    pub(crate) fn asid(&self) -> Asid {
        self.asid
    }

    /// The address space of all regimes but machine mode.
    pub(crate) fn set_asid(&mut self, asid: Asid) {
        if asid == self.asid {
            return;
        }
        self.asid = asid;
        let (data, fetch) = (self.data_idx, self.fetch_idx);
        // From machine mode's, so that both are looked for.
        self.select_data(MmuIdx::M);
        self.select_fetch(MmuIdx::M);
        self.select_data(data);
        self.select_fetch(fetch);
    }

    /// The set of a regime: its own, or that of what was used longest ago, which loses it, but for `other`'s.
    #[cold]
    fn find_set(&mut self, idx: MmuIdx, other: usize) -> usize {
        if idx == MmuIdx::M {
            return 0;
        }
        let key = Key { idx, asid: self.asid };
        self.clock += 1;
        let found = self.sets.iter().position(|set| set.key == key).unwrap_or_else(|| {
            if self.sets.len() < SETS {
                return self.add_set(key);
            }
            let oldest = (1..SETS).filter(|&set| set != other).min_by_key(|&set| self.sets[set].used);
            let oldest = oldest.unwrap_or(1);
            self.drop_set(oldest, false);
            (self.sets[oldest].key, self.sets[oldest].flat) = (key, None);
            oldest
        });
        self.sets[found].used = self.clock;
        found
    }

    /// One more set; there is room for it.
    fn add_set(&mut self, key: Key) -> usize {
        let set = self.sets.len();
        self.sets.push(Set::new(key));
        for slot in [0, self.slot(Self::BEFORE_ZERO)] {
            self.set_empty(id_of(set, slot));
        }
        set
    }

    /// Where the next page goes whose lines are noted.
    #[inline]
    pub(crate) fn noted_list(&self) -> NotedList {
        // SAFETY: `new` made room for it behind the table, zeroed; only the owner's thread touches it (TLB-1).
        unsafe { self.table.as_ptr().byte_add(NOTED_LIST as usize).cast::<NotedList>().read() }
    }
    #[inline]
    pub(crate) fn set_noted_list(&mut self, list: NotedList) {
        // SAFETY: as above, and `&mut self`.
        unsafe { self.table.as_ptr().byte_add(NOTED_LIST as usize).cast::<NotedList>().write(list) }
    }

    /// The counters of coverage. Only the owner's thread touches them (TLB-1), as emitted code or by this.
    pub(crate) fn coverage(&self) -> NonNull<[u8]> {
        // SAFETY: `new` made room for them.
        let start = unsafe { self.table.cast::<u8>().byte_add(COVERAGE_AT as usize) };
        NonNull::slice_from_raw_parts(start, COVERAGE_BYTES)
    }

    /// The operands of comparisons, as the counters.
    pub(crate) fn operands(&self) -> NonNull<[[u64; 2]]> {
        // SAFETY: `new` made room for them, at a multiple of a page.
        let start = unsafe { self.table.cast::<u8>().byte_add(OPERANDS_AT as usize) };
        NonNull::slice_from_raw_parts(start.cast(), OPERANDS)
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

    fn table_of(&self, set: usize) -> NonNull<TlbEntry> {
        debug_assert!(set < SETS);
        // SAFETY: `new` made room for so many.
        unsafe { self.table.byte_add(set * STRIDE) }
    }

    /// In the current set.
    #[inline]
    fn slot_ptr(&self, slot: usize) -> *mut TlbEntry {
        debug_assert!(slot < TLB_ENTRIES);
        // SAFETY: slots come from `entry::index`, which is below TLB_ENTRIES.
        unsafe { self.current.as_ptr().add(slot) }
    }
    #[inline]
    fn entry_ptr(&self, id: Id) -> *mut TlbEntry {
        // SAFETY: slots are below TLB_ENTRIES.
        unsafe { self.table_of(set_of(id)).as_ptr().add(slot_of(id)) }
    }
    /// The entry of some set.
    #[inline]
    fn entry_at(&self, id: Id) -> TlbEntry {
        // SAFETY: inside the tables, which live as long as `self`; only the owner's thread writes them (TLB-1).
        unsafe { self.entry_ptr(id).read() }
    }
    #[inline]
    pub(crate) fn entry(&self, slot: usize) -> TlbEntry {
        // SAFETY: as in `entry_at`.
        unsafe { self.slot_ptr(slot).read() }
    }
    #[inline]
    pub(crate) fn read_comparator(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry_at`.
        unsafe { (*self.slot_ptr(slot)).read }
    }
    #[inline]
    pub(crate) fn write_comparator(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry_at`.
        unsafe { (*self.slot_ptr(slot)).write }
    }
    #[inline]
    pub(crate) fn addend(&self, slot: usize) -> u64 {
        // SAFETY: as in `entry_at`.
        unsafe { (*self.slot_ptr(slot)).addend }
    }
    #[inline]
    fn set_entry(&mut self, id: Id, entry: TlbEntry) {
        // SAFETY: as in `entry_at`, and `&mut self`.
        unsafe { self.entry_ptr(id).write(entry) }
    }

    /// The id of a slot of the current set.
    #[inline]
    pub(crate) fn id(&self, slot: usize) -> Id {
        id_of(self.data, slot)
    }

    /// What the slow path knows of a filled entry.
    #[inline]
    fn full(&self, id: Id) -> &FullEntry {
        debug_assert!(set_of(id) < SETS && is_filled(&self.entry_at(id)));
        // SAFETY: the side table has as many entries as all tables; a filled slot's was written by `install`.
        unsafe { &*self.full.as_ptr().add(id as usize) }
    }
    #[inline]
    fn full_mut(&mut self, id: Id) -> &mut FullEntry {
        debug_assert!(set_of(id) < SETS && is_filled(&self.entry_at(id)));
        // SAFETY: as in `full`; `&mut self` makes it the only reference.
        unsafe { &mut *self.full.as_ptr().add(id as usize) }
    }
    #[inline]
    fn big_mut(&mut self, id: Id) -> &mut BigLinks {
        debug_assert!(set_of(id) < SETS);
        // SAFETY: there are as many as entries, and any bits are links; `&mut self` makes it the only reference.
        unsafe { &mut *self.big.as_ptr().add(id as usize) }
    }
    /// The RAM page of a filled slot.
    #[inline]
    pub(crate) fn ram_page(&self, slot: usize) -> PageIndex {
        PageIndex::new(self.full(self.id(slot)).page)
    }

    /// Says of this page, biased, in all sets whether loads and stores are asked about.
    pub(crate) fn set_asks(&mut self, page: u64, loads: bool, stores: bool) {
        let slot = self.slot(page);
        for id in (0..self.sets.len()).map(|set| id_of(set, slot)) {
            let mut entry = self.entry_at(id);
            if is_filled(&entry) && entry.read & !FLAGS == page {
                entry.read = entry.read & !ASK | if loads { ASK } else { 0 };
                entry.write = entry.write & !ASK | if stores { ASK } else { 0 };
                self.set_entry(id, entry);
            }
        }
    }

    /// The slot of a biased address.
    #[inline]
    pub(crate) fn slot(&self, biased: u64) -> usize {
        let biased = if self.hashed { entry::hashed(biased) } else { biased };
        entry::index(biased) & self.mask
    }

    /// The fetch translation of a biased address's page, if there is one.
    #[inline]
    pub(crate) fn fetch_entry(&self, biased: u64) -> Option<FetchEntry> {
        self.sets[self.fetching].fetch_entry(biased)
    }
    /// The device on a biased address's page, if it was looked up before.
    #[inline]
    pub(crate) fn device(&self, biased: u64) -> Option<&DeviceEntry> {
        self.sets[self.data].device(biased)
    }
}

/// Does a slot hold a translation? Both comparators are filled together, and a biased page is never zero.
fn is_filled(entry: &TlbEntry) -> bool {
    entry.read & !FLAGS != 0
}

#[cfg(test)]
mod tests {
    use super::chain::State;
    use super::entry::{BIAS, CODEPAGE, DISCARD, NOTDIRTY};
    use super::set::Reach;
    use super::*;
    use notdirty_core::PageRange;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What an entry is, as a test counts it.
    #[derive(Clone, Copy, PartialEq, Debug)]
    struct Modelled {
        va: u64,
        page: u64,
        write: u64,
        reach: Reach,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Select { idx: u8, asid: u32 },
        Install { slot: usize, page: u64, write: u64, size_log2: u8, global: bool },
        Flags { page: u64, flags: u64 },
        FlushAll,
        Flush { va: Option<u64>, asid: Option<u32> },
        Forget { from: u64, pages: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        // Pages 0 and 1 and those 4 GiB further share chains.
        let page = || (0..4u64).prop_map(|n| n % 2 + ((n / 2) << 20));
        let write = prop_oneof![Just(0), Just(NOTDIRTY), Just(CODEPAGE), Just(DISCARD), Just(INVALID)];
        let size = prop_oneof![4 => Just(12u8), 1 => Just(14), 1 => Just(21)];
        let install = (1..9usize, page(), write, size, any::<bool>());
        prop_oneof![
            2 => (prop_oneof![Just(0u8), Just(1), Just(3)], 0..40u32).prop_map(|(idx, asid)| Step::Select { idx, asid: asid.min(36) % 37 }),
            10 => install.prop_map(|(slot, page, write, size_log2, global)| Step::Install { slot, page, write, size_log2, global }),
            3 => (page(), prop_oneof![Just(0), Just(NOTDIRTY), Just(CODEPAGE)]).prop_map(|(page, flags)| Step::Flags { page, flags }),
            1 => (0..20u8).prop_filter_map("seldom", |dice| (dice == 0).then_some(Step::FlushAll)),
            2 => (prop::option::of(0..9u64), prop::option::of(0..4u32))
                .prop_map(|(va, asid)| Step::Flush { va: va.map(|page| page << 12), asid }),
            1 => (page(), 1..3u64).prop_map(|(from, pages)| Step::Forget { from, pages }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn entries_are_found_by_what_they_are_whatever_came_before(steps in prop::collection::vec(step(), 1..120)) {
            let mut tlb = Tlb::new(0).unwrap();
            let mut model = BTreeMap::<Id, Modelled>::new();
            for step in steps {
                match step {
                    Step::Select { idx, asid } => {
                        tlb.set_asid(Asid(asid));
                        tlb.select_data(MmuIdx(idx));
                        let key = tlb.sets[tlb.data].key;
                        prop_assert!(key.idx == MmuIdx(idx) && (idx == 3 || key.asid == Asid(asid)));
                        prop_assert_eq!(tlb.data == 0, idx == 3);
                        // A set that another had is empty.
                        let sets = &tlb.sets;
                        model.retain(|&id, _| !(set_of(id) == tlb.data && sets[set_of(id)].is_empty()));
                    }
                    Step::Install { slot, page, write, size_log2, global } => {
                        let (va, reach) = ((slot as u64 * PAGE_SIZE).wrapping_sub(BIAS), Reach { size_log2, global });
                        let read = va.wrapping_add(BIAS);
                        let entry = TlbEntry { read, write: read | write, addend: 0, aux: 0 };
                        tlb.install(slot, entry, (PageIndex::new(page), page << 12), reach);
                        model.insert(tlb.id(slot), Modelled { va, page, write, reach });
                    }
                    Step::Flags { page, flags } => {
                        let mut found = Vec::new();
                        for state in [State::Fast, State::Code, State::Armed] {
                            tlb.collect(PageIndex::new(page), state, &mut found);
                        }
                        found.iter().for_each(|&id| tlb.set_flags(id, (flags, 0)));
                        let changes = |entry: &&mut Modelled| entry.page == page && entry.write & (DISCARD | INVALID) == 0;
                        model.values_mut().filter(changes).for_each(|entry| entry.write = flags);
                    }
                    Step::FlushAll => {
                        prop_assert_eq!(tlb.flush_all(), model.len());
                        model.clear();
                    }
                    Step::Flush { va, asid } => {
                        let before = model.len();
                        let sets = &tlb.sets;
                        model.retain(|&id, entry| {
                            let here = va.is_none_or(|va| va >> entry.reach.size_log2 == entry.va >> entry.reach.size_log2);
                            let kept = asid.is_some_and(|asid| sets[set_of(id)].key.asid != Asid(asid) || entry.reach.global);
                            set_of(id) == 0 || !here || kept
                        });
                        let dropped = tlb.flush_translations(va, asid.map(Asid));
                        prop_assert_eq!(dropped, before - model.len());
                    }
                    Step::Forget { from, pages } => {
                        let before = model.len();
                        model.retain(|_, entry| !(from..from + pages).contains(&entry.page));
                        let range = PageRange { start: PageIndex::new(from), end: PageIndex::new(from + pages) };
                        prop_assert_eq!(tlb.forget(&[range, range], (from << 12, ((from + pages) << 12) - 1)), before - model.len());
                    }
                }
                // The tables, every list and every chain say the same.
                let filled: usize = tlb.sets.iter().map(Set::len).sum();
                prop_assert_eq!(filled, model.len());
                let mut chained = Vec::new();
                for page in [0, 1, 1 << 20, 1 | 1 << 20] {
                    for state in [State::Fast, State::Code, State::Armed] {
                        let at = chained.len();
                        tlb.collect(PageIndex::new(page), state, &mut chained);
                        for &id in &chained[at..] {
                            let fits = match state {
                                State::Fast => model[&id].write == 0,
                                State::Code => model[&id].write == CODEPAGE,
                                State::Armed => model[&id].write & (NOTDIRTY | DISCARD | INVALID) != 0,
                            };
                            prop_assert!(fits && model[&id].page == page, "{:?} {:?}", state, model[&id]);
                        }
                    }
                }
                chained.sort_unstable();
                prop_assert!(chained.iter().eq(model.keys()));
                for (&id, entry) in &model {
                    prop_assert_eq!(tlb.entry_at(id).write & FLAGS, entry.write);
                    prop_assert_eq!(tlb.full(id).reach, entry.reach);
                }
                let mut loose = tlb.chains.loose.clone();
                loose.sort_unstable();
                let wanted = model.iter().filter(|(_, entry)| entry.write & (NOTDIRTY | DISCARD | INVALID) == 0);
                prop_assert!(loose.iter().eq(wanted.map(|(id, _)| id)));
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

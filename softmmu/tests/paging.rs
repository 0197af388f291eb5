//! Translations, flushes, aliases, dirty bits and code against a naive MMU: page tables in guest RAM that anything may write,
//! and a list of what may be remembered. The model says of each access what it gives, and whether the tables are asked.

mod common;

use common::{Live, RAM, Tbs, pa, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, RamAddr, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::tlb::entry::{RUN_FIRST, Selected, WIDEST};
use notdirty_softmmu::{
    Access, AccessKind, AddressSpace, AmoOp, Asid, CodeInvalidator, FaultCause, GuestPhys, Hooks, MemFault, MemSize,
    MmuIdx, Physical, RegionId, Rights, Translation,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where virtual pages are: 64 of them.
const VIRT: u64 = 0x40_0000_0000;
const PAGES: u64 = 64;
/// Blocks: RAM, RAM that comes and goes, ROM. No two pages of them have one slot, so that nothing is evicted.
const BLOCKS: [(u64, u64); 3] = [(RAM, 16), (0x2_0011_8000, 4), (0x21_4000, 2)];

// A page-table entry of these tests: bits, and the physical page above them. The table of address space n is RAM's page n.
const V: u64 = 1;
const R: u64 = 2;
const W: u64 = 4;
const X: u64 = 8;
const G: u64 = 16;
const A: u64 = 32;
const D: u64 = 64;
/// Eight pages are one.
const BIG: u64 = 128;
/// The first half of the page may be used, and each access is asked about.
const ASK: u64 = 256;

fn entry_at(asid: u32, page: u64) -> u64 {
    RAM + u64::from(asid) * PAGE_SIZE + page * 8
}

/// What an entry says of an access: where to, or why not, and what the entry becomes.
fn decide(entry: u64, access: &Access) -> (Result<Translation, FaultCause>, u64) {
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
struct Engine {
    tbs: Tbs,
    asid: u32,
    asked: u64,
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
}

type Key = (u8, u32, u64);

/// The naive MMU.
#[derive(Default)]
struct Model {
    bytes: Vec<Vec<u8>>,
    /// What may be remembered of loads and stores, and of fetches.
    data: BTreeMap<Key, Translation>,
    fetches: BTreeMap<Key, Translation>,
    dirty: BTreeSet<(usize, u64)>,
    code: Vec<(u64, u64)>,
    plugged: bool,
    asked: u64,
    asid: u32,
}

impl Model {
    /// Block and offset of a physical address.
    fn place(&self, at: u64) -> Option<(usize, u64)> {
        let there = |n: &usize| (BLOCKS[*n].0..BLOCKS[*n].0 + BLOCKS[*n].1 * PAGE_SIZE).contains(&at);
        (0..3).find(there).filter(|&n| n != 1 || self.plugged).map(|n| (n, at - BLOCKS[n].0))
    }

    fn store_byte(&mut self, (block, off): (usize, u64), byte: u8) {
        if block == 2 {
            return;
        }
        self.bytes[block][off as usize] = byte;
        self.dirty.insert((block, off / PAGE_SIZE));
        if block == 0 {
            self.code.retain(|&(at, len)| !(at..at + len).contains(&off));
        }
    }

    fn word(&self, at: u64) -> u64 {
        let (block, off) = self.place(at).unwrap();
        u64::from_le_bytes(self.bytes[block][off as usize..off as usize + 8].try_into().unwrap())
    }

    /// Where a part of an access on one page is.
    fn locate(&mut self, idx: MmuIdx, at: u64, len: u64, kind: AccessKind) -> Result<(usize, u64), FaultCause> {
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
    fn bytes_of(
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

    fn value(&self, places: &[(usize, u64)]) -> u64 {
        places.iter().rev().fold(0, |value, &(block, off)| value << 8 | u64::from(self.bytes[block][off as usize]))
    }

    fn store(&mut self, places: &[(usize, u64)], value: u64) {
        for (n, &place) in places.iter().enumerate() {
            self.store_byte(place, (value >> (8 * n)) as u8);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Load { idx: MmuIdx, at: u64, size: MemSize },
    Store { idx: MmuIdx, at: u64, size: MemSize, value: u64 },
    Amo { idx: MmuIdx, at: u64, value: u64 },
    Fetch { idx: MmuIdx, at: u64 },
    Map { asid: u32, page: u64, entry: u64, by_host: bool },
    Asid(u32),
    Flush { va: Option<u64>, asid: Option<u32> },
    Harvest,
    Code { off: u64, len: u64 },
    Plug,
}

fn step() -> impl Strategy<Value = Step> {
    let idx = || prop_oneof![4 => Just(MmuIdx::U), 4 => Just(MmuIdx::S), 1 => Just(MmuIdx::M)];
    // Few pages, so that they meet; physical ones for machine mode.
    let virt = || {
        (prop_oneof![8 => 0..12u64, 1 => 0..66u64], 0..PAGE_SIZE).prop_map(|(page, off)| VIRT + page * PAGE_SIZE + off)
    };
    let phys = || (0..3usize, 0..16u64, 0..PAGE_SIZE).prop_map(|(n, page, off)| BLOCKS[n].0 + page * PAGE_SIZE + off);
    let at = move || {
        (idx(), virt(), phys(), prop_oneof![6 => Just(0u64), 1 => 0..9u64]).prop_map(|(idx, virt, phys, edge)| {
            let at = if idx == MmuIdx::M { phys } else { virt };
            // Some cross into the next page.
            (idx, if edge == 0 { at } else { (at | 0xfff) - edge + 2 })
        })
    };
    let size = || prop::sample::select(&MemSize::ALL[..]);
    let entry = (prop_oneof![6 => Just(V | R | W | X), 2 => 0..512u64, 1 => Just(V | R)], 0..8u64, 0..3usize, 0..17u64)
        .prop_map(|(bits, dice, block, page)| {
            let more = [0, 0, G, BIG, BIG | G, ASK, A | D, 0][dice as usize];
            bits | more | (BLOCKS[block].0 + page * PAGE_SIZE)
        });
    prop_oneof![
        8 => (at(), size()).prop_map(|((idx, at), size)| Step::Load { idx, at, size }),
        10 => (at(), size(), any::<u64>()).prop_map(|((idx, at), size, value)| Step::Store { idx, at, size, value }),
        1 => (at(), any::<u64>()).prop_map(|((idx, at), value)| Step::Amo { idx, at: at & !7, value }),
        3 => at().prop_map(|(idx, at)| Step::Fetch { idx, at: at & !1 }),
        6 => (0..3u32, 0..12u64, entry, any::<bool>()).prop_map(|(asid, page, entry, by_host)| Step::Map { asid, page, entry, by_host }),
        2 => (0..3u32).prop_map(Step::Asid),
        2 => (prop::option::of(virt()), prop::option::of(0..3u32)).prop_map(|(va, asid)| Step::Flush { va, asid }),
        1 => Just(Step::Harvest),
        1 => (0..16 * PAGE_SIZE - 64, 4..64u64).prop_map(|(off, len)| Step::Code { off, len }),
        1 => Just(Step::Plug),
    ]
}

struct World {
    ram: Arc<RamList>,
    blocks: Vec<Arc<RamBlock>>,
    plug: Option<RegionId>,
    space: Arc<AddressSpace>,
    mmu: Live,
    engine: Engine,
    model: Model,
    longest_run: u64,
}

impl World {
    fn new() -> World {
        let ram = Arc::new(RamList::new());
        let add = |(n, &(_, pages)): (usize, &(u64, u64))| {
            ram.add(RamBlockSpec::new(format!("b{n}"), pages * PAGE_SIZE)).unwrap()
        };
        let blocks: Vec<_> = BLOCKS.iter().enumerate().map(add).collect();
        let space = AddressSpace::new(ram.clone());
        space.map_ram(pa(BLOCKS[0].0), &blocks[0], 0, BLOCKS[0].1 * PAGE_SIZE, 0).unwrap();
        space.map_rom(pa(BLOCKS[2].0), &blocks[2], 0, BLOCKS[2].1 * PAGE_SIZE, 0).unwrap();
        let mmu = Live::new(&space, 0);
        let mut tbs = Tbs::new(&ram);
        tbs.vcpu = mmu.port().id();
        let bytes = BLOCKS.iter().map(|&(_, pages)| vec![0; (pages * PAGE_SIZE) as usize]).collect();
        let model = Model { bytes, ..Model::default() };
        let mut world = World {
            ram,
            blocks,
            plug: None,
            space,
            mmu,
            engine: Engine { tbs, asid: 0, asked: 0 },
            model,
            longest_run: 0,
        };
        world.harvest();
        world
    }

    /// The pages that were written, re-armed.
    fn harvest(&mut self) -> BTreeSet<(usize, u64)> {
        let mut found = BTreeSet::new();
        for (n, block) in self.blocks.iter().enumerate().take(2) {
            let first = block.offset().page().get();
            self.ram.dirty().test_and_clear_range(block.pages(), DirtyClient::MIGRATION, &pin(), |at, bits| {
                found.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| (n, at.get() + bit - first)));
            });
            for page in 0..BLOCKS[n].1 {
                common::rearm(&self.space, PageIndex::new(first + page));
            }
        }
        let _ = self.mmu.serve(&mut self.engine);
        found
    }

    /// What loads need no entry for is what a hart with a larger TLB would remember.
    fn check_runs(&mut self) -> Result<(), TestCaseError> {
        for idx in [MmuIdx::U, MmuIdx::S] {
            self.mmu.select(idx);
            let Selected { run_start, run, addend, run_behind_start, run_behind, .. } = self.mmu.selected();
            let len = if run == 0 { 0 } else { run + WIDEST - 1 };
            prop_assert_eq!(len % PAGE_SIZE, 0);
            prop_assert_eq!(
                (run_behind_start, run_behind),
                (run_start.wrapping_add(RUN_FIRST), len.saturating_sub(RUN_FIRST))
            );
            self.longest_run = self.longest_run.max(len / PAGE_SIZE);
            for page in (run_start..run_start + len).step_by(PAGE_SIZE as usize) {
                let known = self.model.data.get(&(idx.0, self.model.asid, page / PAGE_SIZE));
                let Some(to) = known.filter(|to| to.rights.load) else {
                    return Err(TestCaseError::fail(format!("{idx:?}, {page:#x}: nothing is known to load from")));
                };
                let phys = to.page.page_base().get();
                let block = BLOCKS.iter().position(|&(at, pages)| (at..at + pages * PAGE_SIZE).contains(&phys));
                let host = block.map(|n| self.blocks[n].host().addr() as u64 + phys - BLOCKS[n].0);
                prop_assert_eq!(host, Some(page.wrapping_add(addend)), "{:?}, {:#x}", idx, page);
            }
        }
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        let World { mmu, engine, model, .. } = self;
        match step {
            Step::Load { idx, at, size } => {
                let places = model.bytes_of(idx, at, size, AccessKind::Load);
                let wanted = places.map(|places| model.value(&places));
                prop_assert_eq!(mmu.load(engine, idx, va(at), size), wanted);
            }
            Step::Store { idx, at, size, value } => {
                let wanted = model.bytes_of(idx, at, size, AccessKind::Store);
                let found = mmu.store(engine, idx, va(at), size, value).map(drop);
                prop_assert_eq!(found, wanted.map(|places| model.store(&places, value)));
            }
            Step::Amo { idx, at, value } => {
                let wanted = model.bytes_of(idx, at, MemSize::B8, AccessKind::Store).map(|places| {
                    let old = model.value(&places);
                    model.store(&places, old.wrapping_add(value));
                    old
                });
                let found = mmu.amo(engine, idx, va(at), MemSize::B8, AmoOp::Add, value).map(|(old, _)| old);
                prop_assert_eq!(found, wanted);
            }
            Step::Fetch { idx, at } => {
                let wanted = model.locate(idx, at, 2, AccessKind::Fetch);
                let wanted = wanted.map_err(|cause| MemFault { kind: AccessKind::Fetch, cause, addr: va(at) });
                let found = mmu.fetch_u16(engine, idx, va(at)).map(u64::from);
                let value = |(block, off)| model.value(&[(block, off), (block, off + 1)]);
                prop_assert_eq!(found, wanted.map(value));
            }
            Step::Map { asid, page, entry, by_host } => {
                let at = entry_at(asid, page);
                if by_host {
                    self.space.write(pa(at), &entry.to_le_bytes()).unwrap();
                    let _ = mmu.serve(engine);
                } else {
                    let _ = mmu.store(engine, MmuIdx::M, va(at), MemSize::B8, entry).unwrap();
                    model.locate(MmuIdx::M, at, 8, AccessKind::Store).unwrap();
                }
                let places: Vec<_> = (0..8).map(|n| (0, at - RAM + n)).collect();
                model.store(&places, entry);
            }
            Step::Asid(asid) => {
                (model.asid, engine.asid) = (asid, asid);
                mmu.set_asid(Asid(asid));
            }
            Step::Flush { va: at, asid } => {
                mmu.flush_translations(at.map(va), asid.map(Asid));
                let stays = |&(idx, of, page): &Key, to: &mut Translation| {
                    let size = to.size_log2 - 12;
                    let here = at.is_none_or(|at| at >> 12 >> size == page >> size);
                    idx == MmuIdx::M.0 || !here || asid.is_some_and(|asid| of != asid || to.global)
                };
                model.data.retain(stays);
                model.fetches.retain(stays);
            }
            Step::Harvest => {
                let wanted = core::mem::take(&mut self.model.dirty);
                prop_assert_eq!(self.harvest(), wanted);
            }
            Step::Code { off, len } => {
                engine.tbs.translate(mmu, self.blocks[0].offset().get() + off, len);
                model.code.push((off, len));
            }
            Step::Plug => {
                let (at, pages) = BLOCKS[1];
                self.plug = match self.plug.take() {
                    None => Some(self.space.map_ram(pa(at), &self.blocks[1], 0, pages * PAGE_SIZE, 0).unwrap()),
                    Some(id) => {
                        self.space.unmap(id).unwrap();
                        None
                    }
                };
                let _ = mmu.serve(engine);
                model.plugged = self.plug.is_some();
                // What came from there goes, and nothing else.
                let elsewhere = |_: &Key, to: &mut Translation| !(at..at + pages * PAGE_SIZE).contains(&to.page.get());
                model.data.retain(elsewhere);
                model.fetches.retain(elsewhere);
            }
        }
        self.check_runs()?;
        let (engine, model) = (&self.engine, &self.model);
        prop_assert_eq!(engine.asked, model.asked, "who asks the tables");
        let start = self.blocks[0].offset().get();
        let mut code: Vec<_> = model.code.iter().map(|&(off, len)| (start + off, len)).collect();
        let mut found = engine.tbs.tbs.clone();
        code.sort_unstable();
        found.sort_unstable();
        prop_assert_eq!(found, code);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_vcpu_with_page_tables_is_a_naive_mmu_that_remembers_what_it_may(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        // Something is mapped from the start.
        for asid in 0..3u32 {
            for page in 0..12u64 {
                let entry = V | R | W | X | (RAM + (page + 3 * u64::from(asid)) % 16 * PAGE_SIZE);
                world.step(Step::Map { asid, page, entry, by_host: page % 2 == 0 })?;
            }
        }
        for step in steps {
            world.step(step)?;
        }
        let wanted = core::mem::take(&mut world.model.dirty);
        prop_assert_eq!(world.harvest(), wanted);
        for (n, block) in world.blocks.iter().enumerate() {
            let mut bytes = vec![0; world.model.bytes[n].len()];
            block.read_bytes(0, &mut bytes).unwrap();
            prop_assert!(bytes == world.model.bytes[n], "block {}", n);
        }
    }
}

#[test]
fn pages_in_a_row_are_loaded_from_without_entries_until_what_maps_one_is_forgotten() {
    let mut world = mapped(|page| page % 16);
    let at = |page: u64| VIRT + page * PAGE_SIZE;
    let load = |world: &mut World, pages: &[u64]| {
        for &page in pages {
            world.step(Step::Load { idx: MmuIdx::S, at: at(page), size: MemSize::B8 }).unwrap();
        }
        let Selected { run_start, run, .. } = world.mmu.selected();
        (run != 0).then(|| (run_start, (run + WIDEST - 1) / PAGE_SIZE))
    };
    assert_eq!(load(&mut world, &[3, 4, 5]), Some((at(3), 3)));
    assert_eq!(load(&mut world, &[7, 2]), Some((at(2), 4)));
    assert_eq!(load(&mut world, &[6]), Some((at(2), 6)), "what lies between two of them joins them");
    // Frames follow each other from page to page, but not from page 15 to page 16.
    assert_eq!(load(&mut world, &[16, 17, 15]), Some((at(2), 6)));
    for (va, left) in [(at(3), (at(4), 4)), (at(7), (at(4), 3)), (at(20), (at(4), 3))] {
        world.step(Step::Flush { va: Some(va), asid: None }).unwrap();
        assert_eq!(load(&mut world, &[]), Some(left));
    }
    assert_eq!(load(&mut world, &[3]), Some((at(2), 5)), "page 2 has its entry still");
    world.step(Step::Flush { va: None, asid: Some(0) }).unwrap();
    assert_eq!(load(&mut world, &[]), None);
    assert_eq!(load(&mut world, &[9]), Some((at(9), 1)));
    world.step(Step::Asid(1)).unwrap();
    assert_eq!(load(&mut world, &[]), None, "another address space");
}

#[test]
fn what_may_not_be_kept_is_asked_about_for_each_part_of_an_instruction() {
    let mut world = mapped(|page| page % 16);
    let entry = V | A | X | ASK | (RAM + 9 * PAGE_SIZE);
    world.step(Step::Map { asid: 0, page: 20, entry, by_host: true }).unwrap();
    world.space.write(pa(RAM + 9 * PAGE_SIZE + 2044), &[1, 2, 3, 4, 5, 6]).unwrap();
    let World { mmu, engine, .. } = &mut world;
    let at = |off| va(VIRT + 20 * PAGE_SIZE + off);
    // Two bytes are known to be allowed, so an instruction of four is fetched in halves.
    assert_eq!(mmu.fetch(engine, MmuIdx::U, at(2044)).unwrap().len_ok, 2);
    assert_eq!(mmu.fetch_u32(engine, MmuIdx::U, at(2044)), Ok(None));
    assert_eq!(mmu.fetch_u16(engine, MmuIdx::U, at(2044)), Ok(0x201));
    assert_eq!(mmu.fetch_u16(engine, MmuIdx::U, at(2046)), Ok(0x403));
    let refused = MemFault { kind: AccessKind::Fetch, cause: FaultCause::Access, addr: at(2048) };
    assert_eq!(mmu.fetch_u16(engine, MmuIdx::U, at(2048)), Err(refused));
}

/// A world in which page n of address space 0 shows the RAM page that `to` says.
fn mapped(to: impl Fn(u64) -> u64) -> World {
    let mut world = World::new();
    for page in 0..PAGES {
        let entry = V | R | W | X | A | D | (RAM + to(page) * PAGE_SIZE);
        world.step(Step::Map { asid: 0, page, entry, by_host: true }).unwrap();
    }
    world
}

#[test]
fn an_address_space_that_comes_back_is_remembered_and_more_than_there_is_room_for_are_right() {
    let mut world = World::new();
    for asid in 0..3 {
        let entry = V | R | W | (RAM + (4 + u64::from(asid)) * PAGE_SIZE);
        world.step(Step::Map { asid, page: 0, entry, by_host: true }).unwrap();
        world.space.write(pa(RAM + (4 + u64::from(asid)) * PAGE_SIZE), &[asid as u8 + 1]).unwrap();
    }
    let World { mmu, engine, .. } = &mut world;
    for round in 0..3 {
        for n in 0..100u32 {
            // Three tables, for a hundred numbers.
            engine.asid = n % 3;
            mmu.set_asid(Asid(n));
            assert_eq!(mmu.load(engine, MmuIdx::S, va(VIRT), MemSize::B1), Ok(u64::from(n % 3 + 1)), "{round} {n}");
        }
    }
    // The last ones are there still.
    let asked = engine.asked;
    for n in [99, 90, 80, 99, 80] {
        engine.asid = n % 3;
        mmu.set_asid(Asid(n));
        assert_eq!(mmu.load(engine, MmuIdx::S, va(VIRT), MemSize::B1), Ok(u64::from(n % 3 + 1)));
        assert_eq!(mmu.load(engine, MmuIdx::M, va(RAM), MemSize::B8).map(drop), Ok(()));
    }
    assert_eq!(engine.asked, asked + 1, "machine mode's page, once");
}

#[test]
fn a_store_disarms_what_it_went_through_and_a_re_arm_looks_at_that_alone() {
    let mut world = mapped(|_| 5);
    let World { mmu, engine, .. } = &mut world;
    let store = |mmu: &mut Live, engine: &mut Engine, page: u64| {
        mmu.store(engine, MmuIdx::S, va(VIRT + page * PAGE_SIZE), MemSize::B8, page).map(drop)
    };
    for page in 0..PAGES {
        store(mmu, engine, page).unwrap();
    }
    world.harvest();
    let World { mmu, engine, ram, space, blocks, .. } = &mut world;
    let page = PageIndex::new(blocks[0].offset().page().get() + 5);
    for stored in [1, 7, 64] {
        let before = *mmu.stats();
        for page in 0..stored {
            store(mmu, engine, page).unwrap();
            store(mmu, engine, page).unwrap();
        }
        let after = *mmu.stats();
        assert_eq!(after.notdirty - before.notdirty, stored, "each alias hears of its own first store");
        assert_eq!(after.refreshed - before.refreshed, stored, "and of no other's");
        let fast = (0..PAGES).filter(|page| mmu.is_store_fast(va(VIRT + page * PAGE_SIZE))).count();
        assert_eq!(fast as u64, stored);
        let guard = pin();
        ram.dirty().test_and_clear(page, DirtyClient::MIGRATION, &guard);
        drop(guard);
        common::rearm(space, page);
        let _ = mmu.serve(engine);
        assert!((0..PAGES).all(|page| !mmu.is_store_fast(va(VIRT + page * PAGE_SIZE))));
    }
}

#[test]
fn a_device_and_the_memory_beside_it_are_used_through_page_tables() {
    let mut world = mapped(|page| page % 16);
    let dev = common::Regs::new(notdirty_softmmu::SizeMask::ALL);
    // On the first half of a page of RAM, and on a page of its own.
    world.space.map_mmio(pa(RAM + 7 * PAGE_SIZE), 0x800, dev.clone(), 1).unwrap();
    world.space.map_mmio(pa(common::DEV), 0x1000, dev.clone(), 0).unwrap();
    for (page, bits) in [(20, R | W), (21, R), (22, R | W | ASK)] {
        let entry = V | A | D | bits | common::DEV;
        world.step(Step::Map { asid: 0, page, entry, by_host: true }).unwrap();
    }
    let World { mmu, engine, .. } = &mut world;
    let at = |page: u64, off: u64| va(VIRT + page * PAGE_SIZE + off);
    let fault = |cause, kind, addr| Err(MemFault { kind, cause, addr });
    for _ in 0..3 {
        // Both halves, through two aliases.
        for page in [7, 23] {
            let _ = mmu.store(engine, MmuIdx::S, at(page, 0x10), MemSize::B4, page).unwrap();
            let _ = mmu.store(engine, MmuIdx::S, at(page, 0x810), MemSize::B4, page + 100).unwrap();
            assert_eq!(mmu.load(engine, MmuIdx::S, at(30 - page, 0x10), MemSize::B4), Ok(page));
            assert_eq!(mmu.load(engine, MmuIdx::S, at(page, 0x810), MemSize::B4), Ok(page + 100));
        }
        // A right to load is none to store, however well the device is known.
        let _ = mmu.store(engine, MmuIdx::S, at(20, 8), MemSize::B8, 9).unwrap();
        assert_eq!(mmu.load(engine, MmuIdx::S, at(21, 8), MemSize::B8), Ok(9));
        assert_eq!(mmu.load_device(at(21, 8), MemSize::B8, || ()), Some(9));
        let refused = fault(FaultCause::Page, AccessKind::Store, at(21, 8));
        assert_eq!(mmu.store(engine, MmuIdx::S, at(21, 8), MemSize::B8, 1).map(drop), refused);
        assert_eq!(mmu.store_device(at(21, 8), MemSize::B8, 1, || ()), None);
        // Of a page where each access is asked about nothing is known.
        assert_eq!(mmu.load(engine, MmuIdx::S, at(22, 8), MemSize::B8), Ok(9));
        assert_eq!(mmu.load_device(at(22, 8), MemSize::B8, || ()), None);
        let refused = fault(FaultCause::Access, AccessKind::Load, at(22, 0x800));
        assert_eq!(mmu.load(engine, MmuIdx::S, at(22, 0x800), MemSize::B8).map(drop), refused);
    }
    assert!(dev.log().iter().all(|&(_, _, value)| value != 1));
}

#[test]
fn a_page_that_may_be_stored_to_and_not_loaded_from_is_asked_about_at_each_load() {
    let mut world = mapped(|page| page % 16);
    let entry = V | A | D | W | (RAM + 9 * PAGE_SIZE);
    world.step(Step::Map { asid: 0, page: 20, entry, by_host: true }).unwrap();
    let World { mmu, engine, .. } = &mut world;
    let at = va(VIRT + 20 * PAGE_SIZE + 8);
    let refused = Err(MemFault { kind: AccessKind::Load, cause: FaultCause::Page, addr: at });
    for n in 0..3 {
        let _ = mmu.store(engine, MmuIdx::S, at, MemSize::B8, n).unwrap();
        assert_eq!(mmu.load(engine, MmuIdx::S, at, MemSize::B8), refused);
        assert_eq!(mmu.load_missed(engine, at, MemSize::B8), refused);
    }
    assert_eq!(engine.asked, 1 + 6, "the stores ask once");
}

#[test]
fn a_flush_of_one_page_forgets_no_device_but_that_of_the_page_and_none_that_is_global() {
    for global in [0, G] {
        let mut world = mapped(|page| page % 16);
        let dev = common::Regs::new(notdirty_softmmu::SizeMask::ALL);
        world.space.map_mmio(pa(common::DEV), 0x1000, dev, 0).unwrap();
        let entry = V | A | D | R | W | global | common::DEV;
        world.step(Step::Map { asid: 0, page: 20, entry, by_host: true }).unwrap();
        let World { mmu, engine, .. } = &mut world;
        let at = |page: u64| va(VIRT + page * PAGE_SIZE);
        mmu.load(engine, MmuIdx::S, at(20), MemSize::B8).unwrap();
        for page in (0..PAGES).filter(|&page| page != 20 || global != 0) {
            mmu.flush_translations(Some(at(page)), Some(Asid(0)));
            assert!(mmu.load_device(at(20), MemSize::B8, || ()).is_some(), "{page}");
        }
        let asid = (global == 0).then_some(Asid(0));
        mmu.flush_translations(Some(at(20)), asid);
        assert!(mmu.load_device(at(20), MemSize::B8, || ()).is_none());
    }
}

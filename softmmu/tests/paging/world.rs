//! A vCPU and the naive MMU, which do the same.
use crate::common::{self, Live, RAM, Tbs, pa, va};
use crate::model::*;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, RamBlock, RamBlockSpec, RamList, pin};
use notdirty_softmmu::tlb::entry::{Selected, WIDEST};
use notdirty_softmmu::{AccessKind, AddressSpace, AmoOp, Asid, MemFault, MemSize, MmuIdx, RegionId, Translation};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Debug)]
pub enum Step {
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

pub fn step() -> impl Strategy<Value = Step> {
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

pub struct World {
    pub ram: Arc<RamList>,
    pub blocks: Vec<Arc<RamBlock>>,
    pub plug: Option<RegionId>,
    pub space: Arc<AddressSpace>,
    pub mmu: Live,
    pub engine: Engine,
    pub model: Model,
    pub longest_run: u64,
}

impl World {
    pub fn new() -> World {
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
            engine: Engine { tbs, asid: 0, asked: 0, looks: true, looked: Vec::new() },
            model,
            longest_run: 0,
        };
        world.harvest();
        world
    }

    /// The pages that were written, re-armed.
    pub fn harvest(&mut self) -> BTreeSet<(usize, u64)> {
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
    pub fn check_runs(&mut self) -> Result<(), TestCaseError> {
        for idx in [MmuIdx::U, MmuIdx::S] {
            self.mmu.select(idx);
            let Selected { run_start, run, addend, .. } = self.mmu.selected();
            let len = if run == 0 { 0 } else { run + WIDEST - 1 };
            prop_assert_eq!(len % PAGE_SIZE, 0);
            self.longest_run = self.longest_run.max(len / PAGE_SIZE);
            for page in (run_start..run_start + len).step_by(PAGE_SIZE as usize) {
                let key = (idx.0, self.model.asid, page / PAGE_SIZE);
                let known = [&self.model.data, &self.model.looked].into_iter().filter_map(|known| known.get(&key));
                let mut hosts = known.filter(|to| to.rights.load).filter_map(|to| {
                    let phys = to.page.page_base().get();
                    let block = BLOCKS.iter().position(|&(at, pages)| (at..at + pages * PAGE_SIZE).contains(&phys))?;
                    Some(self.blocks[block].host().addr() as u64 + phys - BLOCKS[block].0)
                });
                prop_assert!(hosts.any(|host| host == page.wrapping_add(addend)), "{idx:?}, {page:#x}");
            }
        }
        Ok(())
    }

    pub fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
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
                model.looked.retain(stays);
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
                model.looked.retain(elsewhere);
                model.fetches.retain(elsewhere);
            }
        }
        self.model.looked.extend(self.engine.looked.drain(..));
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

/// A world in which page n of address space 0 shows the RAM page that `to` says.
pub fn mapped(to: impl Fn(u64) -> u64) -> World {
    let mut world = World::new();
    for page in 0..PAGES {
        let entry = V | R | W | X | A | D | (RAM + to(page) * PAGE_SIZE);
        world.step(Step::Map { asid: 0, page, entry, by_host: true }).unwrap();
    }
    world
}

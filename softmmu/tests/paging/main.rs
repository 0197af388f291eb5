//! Translations, flushes, aliases, dirty bits and code against a naive MMU: page tables in guest RAM that anything may write,
//! and a list of what may be remembered. The model says of each access what it gives, and whether the tables are asked.

#[path = "../common/mod.rs"]
mod common;
mod model;
mod world;

use common::{Live, RAM, pa, va};
use model::*;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PAGE_SIZE, PageIndex, pin};
use notdirty_softmmu::tlb::entry::{Selected, WIDEST};
use notdirty_softmmu::{AccessKind, Asid, FaultCause, MemFault, MemSize, MmuIdx};
use proptest::prelude::*;
use world::{Step, World, mapped, step};

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
    world.engine.looks = false;
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
fn pages_between_two_in_use_are_loaded_from_without_entries_before_they_are_asked_for() {
    let at = |page: u64| VIRT + page * PAGE_SIZE;
    let touch = |world: &mut World, page: u64, store: bool| {
        let (idx, at, size) = (MmuIdx::S, at(page), MemSize::B8);
        world
            .step(if store { Step::Store { idx, at, size, value: page } } else { Step::Load { idx, at, size } })
            .unwrap();
        let Selected { run_start, run, .. } = world.mmu.selected();
        (run_start, (run + WIDEST - 1) / PAGE_SIZE)
    };
    for store in [false, true] {
        let mut world = mapped(|page| page % 16);
        assert_eq!(touch(&mut world, 3, store), (at(3), 1));
        assert_eq!(touch(&mut world, 9, store), (at(3), 7), "up");
        assert_eq!(touch(&mut world, 1, store), (at(1), 9), "and down");
        assert_eq!(touch(&mut world, 15, store), (at(1), 15));
        world.step(Step::Flush { va: Some(at(5)), asid: None }).unwrap();
        assert_eq!(touch(&mut world, 9, store), (at(6), 10), "until what maps one of them is forgotten");
    }
    // The page in the middle: what stops a look, whether it comes from above or from below.
    let here = RAM + 6 * PAGE_SIZE;
    for (why, entry) in [
        ("not there", 0),
        ("nor to load from", V | A | D | W | here),
        ("its mark is not set", V | R | here),
        ("elsewhere", V | R | A | (RAM + 7 * PAGE_SIZE)),
        ("ROM", V | R | A | BLOCKS[2].0),
        ("asked about each time", V | R | A | ASK | here),
        ("no RAM", V | R | A | 0x7000_0000),
    ] {
        for (pages, run) in [([4, 8], (at(4), 2)), ([8, 4], (at(7), 2))] {
            let mut world = mapped(|page| page % 16);
            world.step(Step::Map { asid: 0, page: 6, entry, by_host: true }).unwrap();
            touch(&mut world, pages[0], false);
            assert_eq!(touch(&mut world, pages[1], false), run, "{why}");
        }
    }
}

#[test]
fn of_a_leaf_that_was_looked_at_a_flush_of_any_page_takes_all() {
    let mut world = mapped(|page| page % 16);
    for page in 8..15 {
        let entry = V | R | A | BIG | (RAM + 8 * PAGE_SIZE);
        world.step(Step::Map { asid: 0, page, entry, by_host: true }).unwrap();
    }
    let at = |page: u64| VIRT + page * PAGE_SIZE;
    for page in [6, 15] {
        world.step(Step::Load { idx: MmuIdx::S, at: at(page), size: MemSize::B8 }).unwrap();
    }
    let run = |world: &World| (world.mmu.selected().run_start, (world.mmu.selected().run + WIDEST - 1) / PAGE_SIZE);
    assert_eq!(run(&world), (at(6), 10), "no page of the leaf has an entry");
    world.step(Step::Flush { va: Some(at(12)), asid: None }).unwrap();
    assert_eq!(run(&world), (at(6), 2));
}

#[test]
fn looks_ahead_are_few_beside_what_is_asked_for() {
    let mut world = mapped(|page| page % 16);
    let World { mmu, engine, .. } = &mut world;
    let mut looks_of = |rounds: u64| {
        for n in 0..rounds {
            for page in [0, 14] {
                mmu.load(engine, MmuIdx::S, va(VIRT + page * PAGE_SIZE), MemSize::B8).unwrap();
            }
            mmu.flush_translations(None, Some(Asid(0)));
            assert!(n != 0 || mmu.selected().run == 0);
        }
        core::mem::take(&mut engine.looked).len() as u64
    };
    assert_eq!(looks_of(100), 100 * 13, "13 pages lie between");
    looks_of(6_000);
    let looks = looks_of(1_000);
    assert!((1..=1_000 * 2 / 16 + 13).contains(&looks), "{looks}");
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

//! What a vCPU keeps, and what it loses, when RAM or a device comes, shrinks or goes.

mod common;

use common::{Live, RAM, Vm, pa, va};
use notdirty_core::{RamAddr, RamBlockSpec, RamError, RamList};
use notdirty_softmmu::MemSize::B8;
use notdirty_softmmu::{
    Access, AddressSpace, CodeInvalidator, FaultCause, Hooks, MapError, MmuIdx, Physical, Translation,
};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn a_map_change_is_seen_at_the_safe_point_and_old_memory_lives_until_then() {
    let mut vm = Vm::new();
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x1000)).unwrap();
    let id = vm.space.map_ram(pa(0x2_0000_0000), &block, 0, 0x1000, 0).unwrap();
    assert_eq!(vm.mmu.serve(&mut vm.tbs).remapped, 1);
    vm.put(0x2_0000_0000, B8, 1);
    vm.space.unmap(id).unwrap();
    vm.ram.remove(&block).unwrap();
    drop(block);
    for n in 0..1000 {
        // Old entries, and even new fills, are sound: the vCPU's view holds the block.
        vm.put(0x2_0000_0000, B8, n);
    }
    assert_eq!(vm.mmu.serve(&mut vm.tbs).remapped, 1);
    assert!(vm.store(0x2_0000_0000, B8, 1).is_err());
    assert!(vm.space.unmap(id).is_err());
}

#[test]
fn a_change_of_the_map_drops_what_came_from_there_and_nothing_else() {
    let mut vm = Vm::new();
    let idx = MmuIdx::M;
    vm.put(RAM + 0x8000, B8, 1);
    vm.mmu.fetch(&mut vm.tbs, idx, va(RAM + 0x8000)).unwrap();
    let misses = |vm: &Vm| {
        let s = vm.mmu.stats();
        (s.load_miss, s.store_miss, s.fetch_miss, s.flushes)
    };
    let before = misses(&vm);
    // More RAM: nothing was there.
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x4000)).unwrap();
    let dimm = 0x2_0000_0000;
    let id = vm.space.map_ram(pa(dimm), &block, 0x1000, 0x3000, 0).unwrap();
    let again = vm.space.map_ram(pa(dimm + 0x10_0000), &block, 0x1000, 0x3000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.tbs.unmapped.is_empty());
    vm.load(RAM + 0x8000, B8).unwrap();
    vm.put(RAM + 0x8000, B8, 2);
    vm.mmu.fetch(&mut vm.tbs, idx, va(RAM + 0x8000)).unwrap();
    assert_eq!(misses(&vm), before);
    // A device over a part of a page of it: that page is asked about again, its neighbours are not.
    for at in [dimm, dimm + 0x1000, dimm + 0x2000, dimm + 0x10_1000] {
        vm.put(at, B8, at);
        vm.mmu.fetch(&mut vm.tbs, idx, va(at)).unwrap();
    }
    let before = misses(&vm);
    vm.space.map_mmio(pa(dimm + 0x1010), 16, vm.dev.clone(), 1).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let ram = block.offset().get();
    assert_eq!(vm.tbs.unmapped, [(dimm + 0x1000, dimm + 0x1fff, ram + 0x2000)]);
    for at in [dimm, dimm + 0x2000, dimm + 0x10_1000] {
        assert_eq!(vm.load(at, B8), Ok(at));
        vm.mmu.fetch(&mut vm.tbs, idx, va(at)).unwrap();
    }
    assert_eq!(misses(&vm), before);
    vm.put(dimm + 0x1010, B8, 77);
    assert_eq!(vm.dev.log(), [(0, B8, 77)]);
    // All of it goes; what is elsewhere stays, the second mapping too.
    vm.tbs.unmapped.clear();
    vm.space.unmap(id).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert_eq!(vm.tbs.unmapped.len(), 2, "{:x?}", vm.tbs.unmapped);
    assert!(vm.load(dimm, B8).is_err() && vm.load(dimm + 0x2000, B8).is_err());
    assert!(vm.mmu.fetch(&mut vm.tbs, idx, va(dimm)).is_err());
    assert!(vm.mmu.is_store_fast(va(dimm + 0x10_1000)) && vm.mmu.is_store_fast(va(RAM + 0x8000)));
    vm.space.unmap(again).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(!vm.mmu.is_store_fast(va(dimm + 0x10_1000)));
}

#[test]
fn a_mapping_that_shrinks_loses_its_end_and_keeps_the_rest() {
    let mut vm = Vm::new();
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x4000)).unwrap();
    let at = 0x2_0000_0000;
    let id = vm.space.map_ram(pa(at), &block, 0, 0x4000, 0).unwrap();
    let alias = vm.space.map_alias(pa(2 * at), pa(at), 0x4000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    for page in 0..4 {
        vm.put(at + page * 0x1000, B8, page);
    }
    let mut pending = vm.space.resize_mapping(id, 0x2000).unwrap();
    assert!(!pending.is_served());
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(pending.is_served());
    for base in [at, 2 * at] {
        assert_eq!(vm.load(base + 0x1000, B8), Ok(1));
        assert!(vm.load(base + 0x2000, B8).is_err() && vm.store(base + 0x3ff8, B8, 0).is_err());
    }
    let pending = vm.space.resize_mapping(id, 0x3000).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(pending.wait(None));
    assert_eq!(vm.load(at + 0x2000, B8), Ok(2));
    assert_eq!(vm.load(2 * at + 0x2000, B8), Ok(2));
    assert!(vm.load(at + 0x3000, B8).is_err());
    assert!(vm.space.resize_mapping(id, 0x3000).is_ok());
    assert!(vm.space.resize_mapping(id, 0).is_err());
    assert!(vm.space.resize_mapping(id, 0x5000).is_err());
    assert!(vm.space.resize_mapping(alias, u64::MAX).is_err());
    vm.space.unmap(id).unwrap();
    assert!(vm.space.resize_mapping(id, 0x1000).is_err());
}

#[test]
fn memory_that_is_mapped_is_not_cut_off() {
    let ram = Arc::new(RamList::new());
    let block = ram.add(RamBlockSpec::new("ram", 0x8000).resizable(true)).unwrap();
    let (space, other) = (AddressSpace::new(ram.clone()), AddressSpace::new(ram.clone()));
    let whole = space.map_ram(pa(0), &block, 0, 0x8000, 0).unwrap();
    let part = other.map_ram(pa(0x10_0000), &block, 0x1000, 0x5000, 0).unwrap();
    let refused = |length: u64, to: u64| match ram.resize(&block, length) {
        Err(RamError::MappedBeyond { length: asked, end, .. }) => (asked, end) == (length, to),
        _ => false,
    };
    assert!(refused(0x7000, 0x8000) && block.used_length() == 0x8000);
    assert!(space.resize_mapping(whole, 0x4000).unwrap().wait(None));
    assert!(refused(0x5000, 0x6000));
    ram.resize(&block, 0x6000).unwrap();
    let beyond = |len| MapError::BeyondBlock { block: "ram".into(), off: 0, len, used: 0x6000 };
    assert_eq!(space.resize_mapping(whole, 0x7000).err(), Some(beyond(0x7000)));
    assert_eq!(other.map_ram(pa(0), &block, 0, 0x6001, 0).err(), Some(beyond(0x6001)));
    assert!(space.resize_mapping(whole, 0x6000).unwrap().wait(None));
    other.unmap(part).unwrap();
    assert!(refused(0x4000, 0x6000));
    space.unmap(whole).unwrap();
    ram.resize(&block, 0x1000).unwrap();
    // It grows again, and so may what is mapped of it.
    ram.resize(&block, 0x8000).unwrap();
    space.map_ram(pa(0), &block, 0, 0x8000, 0).unwrap();
}

#[test]
fn a_view_that_is_newer_than_the_queue_is_not_taken_for_it() {
    // Two changes; the vCPU serves after each, and between them the newest view is already the second one's.
    let mut vm = Vm::new();
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x1000)).unwrap();
    let at = 0x2_0000_0000;
    for n in 0..50 {
        let id = vm.space.map_ram(pa(at), &block, 0, 0x1000, 0).unwrap();
        if n % 2 == 0 {
            let _ = vm.mmu.serve(&mut vm.tbs);
            vm.put(at, B8, n);
        }
        vm.space.unmap(id).unwrap();
        let second = Live::new(&vm.space, 0);
        let _ = vm.mmu.serve(&mut vm.tbs);
        assert!(vm.store(at, B8, 1).is_err());
        drop(second);
    }
}

#[test]
fn waiting_for_an_unmap_ends_when_every_vcpu_has_let_go_or_is_parked() {
    let mut vm = Vm::new();
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x1000)).unwrap();
    let at = pa(0x2_0000_0000);
    let mut parked = Live::new(&vm.space, 0);
    parked.park();
    let id = vm.space.map_ram(at, &block, 0, 0x1000, 0).unwrap();
    assert!(!vm.space.unmap_and_wait(id, Some(Duration::ZERO)).unwrap());
    let _ = vm.mmu.serve(&mut vm.tbs);
    let id = vm.space.map_ram(at, &block, 0, 0x1000, 0).unwrap();
    let (space, mmu, tbs) = (vm.space.clone(), &mut vm.mmu, &mut vm.tbs);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || space.unmap_and_wait(id, Some(Duration::from_secs(20))).unwrap());
        while !waiter.is_finished() {
            let _ = mmu.serve(tbs);
        }
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_page_that_was_never_used_is_what_the_map_says_now_and_not_part_of_the_ram_that_was_found_last() {
    let mut vm = Vm::new();
    let (page, at) = (0x1000, 0x2_0000_0000);
    let block = vm.ram.add(RamBlockSpec::new("dimm", 0x40 * page)).unwrap();
    vm.ram.fill(&block, 0, 0x40 * page, 0x55).unwrap();
    let id = vm.space.map_ram(pa(at), &block, 0, 0x40 * page, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let byte = |off: u64| {
        let mut byte = [0];
        block.read_bytes(off, &mut byte).unwrap();
        byte[0]
    };
    let mut fresh = 0x20;
    // Finds the range, by a page of it that has no entry yet; then the change.
    let mut found = |vm: &mut Vm| {
        fresh += 1;
        vm.put(at + fresh * page, B8, 1);
    };
    let (dev, alias, rom, half) = (at + page, at + 2 * page, at + 3 * page, at + 4 * page);
    for by_flush in [false, true] {
        // Many changes at once are one flush.
        let served = |vm: &mut Vm| {
            for n in 0..if by_flush { 100 } else { 0 } {
                let far = vm.space.map_ram(pa((0x40 + 2 * n) << 32), &block, 0, page, 0).unwrap();
                vm.space.unmap(far).unwrap();
            }
            assert_eq!(vm.mmu.serve(&mut vm.tbs).flushed, by_flush);
        };
        found(&mut vm);
        let over = vm.space.map_mmio(pa(dev), page, vm.dev.clone(), 1).unwrap();
        served(&mut vm);
        vm.put(dev + 8, B8, 7);
        assert_eq!((vm.dev.log().last(), byte(page + 8)), (Some(&(8, B8, 7)), 0x55));
        vm.space.unmap(over).unwrap();
        served(&mut vm);

        found(&mut vm);
        let over = vm.space.map_alias(pa(alias), pa(RAM + 3 * page), page, 1).unwrap();
        served(&mut vm);
        vm.put(alias + 8, B8, 9);
        assert_eq!((vm.load(RAM + 3 * page + 8, B8), byte(2 * page + 8)), (Ok(9), 0x55));
        vm.space.unmap(over).unwrap();
        served(&mut vm);

        found(&mut vm);
        let over = vm.space.map_rom(pa(rom), &vm.rom, 0, page, 1).unwrap();
        served(&mut vm);
        vm.put(rom + 8, B8, 9);
        assert_eq!((vm.load(rom + 8, B8), byte(3 * page + 8)), (Ok(0), 0x55));
        // ROM was found last, and what lies behind it is none.
        vm.put(rom + 10 * page, B8, 3);
        assert_eq!(byte(13 * page), 3);
        vm.ram.fill(&block, 13 * page, 1, 0x55).unwrap();
        vm.space.unmap(over).unwrap();
        served(&mut vm);

        found(&mut vm);
        let over = vm.space.map_mmio(pa(half + 0x800), 0x800, vm.dev.clone(), 1).unwrap();
        served(&mut vm);
        // The range ends in the middle of the page, and begins again behind it.
        vm.put(at + 7 * page, B8, 1);
        vm.put(half - 2 * page, B8, 1);
        vm.put(half + 0x808, B8, 11);
        vm.put(half + 8, B8, 12);
        assert_eq!((vm.dev.log().last(), byte(4 * page + 0x808)), (Some(&(8, B8, 11)), 0x55));
        assert_eq!(byte(4 * page + 8), 12);
        vm.space.unmap(over).unwrap();
        served(&mut vm);
        vm.ram.fill(&block, 0, 0x20 * page, 0x55).unwrap();
    }
    found(&mut vm);
    let _ = vm.space.resize_mapping(id, 0x38 * page).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.store(at + 0x38 * page, B8, 1).is_err() && vm.store(at + 0x37 * page, B8, 1).is_ok());
    found(&mut vm);
    vm.space.unmap(id).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.store(at + 0x36 * page, B8, 1).is_err());
    assert_eq!(byte(0x36 * page), 0x55);
}

/// Reads, and marks, one cell of a page table at each miss.
struct Walks {
    at: u64,
    read: Option<u64>,
    marked: Option<bool>,
}

impl CodeInvalidator for Walks {
    fn code_written(&mut self, _: RamAddr, _: u64) -> usize {
        0
    }
}

impl Hooks for Walks {
    fn translate(&mut self, memory: &mut Physical<'_>, _: Access) -> Result<Translation, FaultCause> {
        self.read = memory.read(pa(self.at));
        let old = self.read.unwrap_or(0);
        self.marked = memory.replace(self, pa(self.at), old, old | 1);
        // The page is known now: what lies across its cells is no cell still.
        for beside in 1..8 {
            assert_eq!(memory.read(pa(self.at + beside)), None);
            assert_eq!(memory.replace(self, pa(self.at + beside), 0, 0), None);
        }
        Err(FaultCause::Page)
    }
}

#[test]
fn a_page_of_page_tables_that_goes_or_becomes_rom_or_a_device_is_read_there_no_more() {
    let (page, at) = (0x1000, 0x2_0000_0000);
    for by_flush in [false, true] {
        let mut vm = Vm::new();
        let block = vm.ram.add(RamBlockSpec::new("dimm", 4 * page)).unwrap();
        let id = vm.space.map_ram(pa(at), &block, 0, 4 * page, 0).unwrap();
        vm.ram.write(&block, page, &0x100u64.to_le_bytes()).unwrap();
        vm.ram.write(&vm.rom, 0, &0x200u64.to_le_bytes()).unwrap();
        let walk = |vm: &mut Vm| {
            for n in 0..if by_flush { 100 } else { 0 } {
                let far = vm.space.map_ram(pa((0x40 + 2 * n) << 32), &vm.block, 0, page, 0).unwrap();
                vm.space.unmap(far).unwrap();
            }
            let _ = vm.mmu.serve(&mut vm.tbs);
            let mut walks = Walks { at: at + page, read: None, marked: None };
            // Twice: the second one knows where the page is.
            for _ in 0..2 {
                assert!(vm.mmu.load(&mut walks, MmuIdx::S, va(0x1234), B8).is_err());
            }
            (walks.read, walks.marked)
        };
        assert_eq!(walk(&mut vm), (Some(0x101), Some(true)));
        let over = vm.space.map_rom(pa(at + page), &vm.rom, 0, page, 1).unwrap();
        assert_eq!(walk(&mut vm), (Some(0x200), None));
        vm.space.unmap(over).unwrap();
        assert_eq!(walk(&mut vm), (Some(0x101), Some(true)));
        let over = vm.space.map_alias(pa(at + page), pa(RAM), page, 1).unwrap();
        assert_eq!(walk(&mut vm), (Some(1), Some(true)));
        vm.space.unmap(over).unwrap();
        assert_eq!(walk(&mut vm), (Some(0x101), Some(true)));
        let over = vm.space.map_mmio(pa(at + page), page, vm.dev.clone(), 1).unwrap();
        assert_eq!(walk(&mut vm), (None, None));
        vm.space.unmap(over).unwrap();
        assert_eq!(walk(&mut vm), (Some(0x101), Some(true)));
        vm.space.unmap(id).unwrap();
        assert_eq!(walk(&mut vm), (None, None));
        assert!(vm.dev.log().is_empty());
    }
}

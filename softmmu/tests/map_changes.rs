//! What a vCPU keeps, and what it loses, when RAM or a device comes, shrinks or goes.

mod common;

use common::{Live, RAM, Vm, pa, va};
use notdirty_core::{RamBlockSpec, RamError, RamList};
use notdirty_softmmu::MemSize::B8;
use notdirty_softmmu::{AddressSpace, MapError, MmuIdx};
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

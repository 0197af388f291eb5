//! Dirty rings under a `SoftMmu`: which stores push, what asks the vCPU to leave, and that nothing is lost.

mod common;

use common::{RAM, Vm, pa, va};
use notdirty_core::DirtyLog;
use notdirty_core::{DirtyClient, PageIndex, RamBlockSpec};
use notdirty_softmmu::{AmoOp, MemSize, MmuIdx, StoreEffect};

const MIGRATION: DirtyClient = DirtyClient::MIGRATION;
const PAGE: u64 = 4096;
/// Where a second, larger block is.
const BIG: u64 = 0x9000_0000;
const BIG_PAGES: u64 = 3000;

/// A vCPU on 64 KiB and on `BIG_PAGES` pages, all logged.
fn logged() -> (Vm, DirtyLog) {
    let mut vm = Vm::new();
    let big = vm.ram.add(RamBlockSpec::new("big", BIG_PAGES * PAGE)).unwrap();
    vm.space.map_ram(pa(BIG), &big, 0, BIG_PAGES * PAGE, 0).unwrap();
    vm.mmu.park();
    let log = vm.ram.log(MIGRATION).rings(128).start().unwrap();
    let _ = vm.mmu.start(&mut vm.tbs);
    (vm, log)
}

/// The vCPU is this thread's, hence parked meanwhile.
fn sync(vm: &mut Vm, log: &DirtyLog) -> Vec<u64> {
    vm.mmu.park();
    let pages = log.sync(None).unwrap().commit();
    let _ = vm.mmu.start(&mut vm.tbs);
    pages.ranges().flat_map(|range| range.iter()).map(PageIndex::get).collect()
}

#[test]
fn stores_atomics_crossings_and_host_writes_are_all_reported() {
    let (mut vm, log) = logged();
    let _ = sync(&mut vm, &log);
    for _ in 0..2 {
        vm.put(RAM + 8, MemSize::B8, 1);
        let amo = vm.mmu.amo(&mut vm.tbs, MmuIdx::M, va(RAM + 2 * PAGE), MemSize::B4, AmoOp::Add, 1).unwrap();
        assert_eq!(amo.1, StoreEffect::NONE);
        vm.mmu.lr(&mut vm.tbs, MmuIdx::M, va(RAM + 4 * PAGE), MemSize::B8).unwrap();
        assert!(vm.mmu.sc(&mut vm.tbs, MmuIdx::M, va(RAM + 4 * PAGE), MemSize::B8, 7).unwrap().0);
        // Lost its reservation: it stores nothing.
        assert!(!vm.mmu.sc(&mut vm.tbs, MmuIdx::M, va(RAM + 5 * PAGE), MemSize::B8, 7).unwrap().0);
        vm.put(RAM + 7 * PAGE - 3, MemSize::B8, u64::MAX);
        vm.space.write(pa(RAM + 10 * PAGE - 1), &[1; 4097]).unwrap();
        let first = vm.page(0).get();
        let expected: Vec<_> = [0, 2, 4, 6, 7, 9, 10].into_iter().map(|n| first + n).collect();
        assert_eq!(sync(&mut vm, &log), expected);
        assert_eq!(sync(&mut vm, &log), []);
    }
}

#[test]
fn the_store_that_crosses_the_soft_limit_says_so_and_kicks() {
    let (mut vm, log) = logged();
    let _ = sync(&mut vm, &log);
    for n in 1..64 {
        assert_eq!(vm.store(BIG + n * PAGE, MemSize::B8, n), Ok(StoreEffect::NONE));
        assert!(!vm.mmu.ring_is_full() && !vm.mmu.port().kicked());
    }
    let full = StoreEffect { ring_full: true, ..StoreEffect::NONE };
    assert_eq!(vm.store(BIG + 98 * PAGE, MemSize::B8, 1), Ok(full));
    assert_eq!(vm.store(BIG + 100 * PAGE - 4, MemSize::B8, 1), Ok(full), "two pages, both beyond it");
    assert!(vm.mmu.ring_is_full() && vm.mmu.port().kicked());
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.mmu.ring_is_full(), "serving makes no room");
    assert_eq!(vm.store(BIG + 99 * PAGE, MemSize::B8, 1), Ok(StoreEffect::NONE), "dirty already");
    assert_eq!(sync(&mut vm, &log).len(), 66);
    assert!(!vm.mmu.ring_is_full());
}

#[test]
fn an_atomic_that_crosses_the_soft_limit_says_so_too() {
    let (mut vm, log) = logged();
    let _ = sync(&mut vm, &log);
    (0..63).for_each(|n| vm.put(BIG + n * PAGE, MemSize::B8, n));
    let amo = vm.mmu.amo(&mut vm.tbs, MmuIdx::M, va(BIG + 63 * PAGE), MemSize::B8, AmoOp::Swap, 1).unwrap();
    assert!(amo.1.ring_full && vm.mmu.ring_is_full());
    assert_eq!(sync(&mut vm, &log).len(), 64);
}

#[test]
fn a_vcpu_that_never_leaves_loses_nothing() {
    let (mut vm, log) = logged();
    let _ = sync(&mut vm, &log);
    for round in 0..3 {
        for n in 0..BIG_PAGES {
            vm.put(BIG + n * PAGE + 8 * round, MemSize::B8, n);
            vm.put(BIG + n * PAGE + 8 * round, MemSize::B8, n + 1);
        }
        assert_eq!(sync(&mut vm, &log).len() as u64, BIG_PAGES);
    }
    assert_eq!(sync(&mut vm, &log), []);
}

#[test]
fn a_page_is_fast_from_its_first_store_to_the_next_harvest() {
    let (mut vm, log) = logged();
    let _ = sync(&mut vm, &log);
    for _ in 0..3 {
        assert!(!vm.mmu.is_store_fast(va(BIG)));
        vm.put(BIG, MemSize::B8, 1);
        assert!(vm.mmu.is_store_fast(va(BIG)));
        assert_eq!(sync(&mut vm, &log).len(), 1);
    }
    log.stop();
    vm.put(BIG, MemSize::B8, 1);
    vm.put(BIG + PAGE, MemSize::B8, 1);
    assert!(vm.mmu.is_store_fast(va(BIG)) && vm.mmu.is_store_fast(va(BIG + PAGE)));
}

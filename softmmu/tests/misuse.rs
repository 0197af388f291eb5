//! What safe code can do wrong: it may get wrong answers for it, but no dangling pointer and no panic.

mod common;

use common::{RAM, Vm, pa, va};
use notdirty_core::{DirtyClient, PageIndex, PageRange, RamAddr, RamBlockSpec, RamList, pin};
use notdirty_softmmu::{
    AddressSpace, CodeInvalidator, CodePages, Hooks, MapError, MemSize, MmuIdx, NoHooks, Request, SoftMmu,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Panics when code dies.
struct Faulty;

impl CodeInvalidator for Faulty {
    fn code_written(&mut self, _: &CodePages, _: RamAddr, _: u64) -> usize {
        panic!("as the test wants")
    }
}

impl Hooks for Faulty {}

/// A kill in front of whatever else is posted, and a serve in which it panics.
fn serve_and_panic(mmu: &mut SoftMmu) {
    mmu.port().post(Request::KillCode { ram: RamAddr::new(0), len: 1 });
    assert!(catch_unwind(AssertUnwindSafe(|| mmu.serve(&mut Faulty))).is_err());
}

#[test]
fn a_re_arm_behind_a_hook_that_panics_is_not_answered_before_it_is_done() {
    let mut vm = Vm::new();
    let running = vm.mmu.running();
    vm.put(RAM, MemSize::B8, 1);
    assert!(vm.mmu.is_store_fast(va(RAM)));
    vm.ram.dirty().test_and_clear(vm.page(0), DirtyClient::MIGRATION, &pin());
    let ticket = vm.mmu.port().post(Request::Rearm(PageRange::of_page(vm.page(0))));
    serve_and_panic(&mut vm.mmu);
    assert!(!vm.mmu.port().served(ticket) && vm.mmu.port().kicked());
    // It panics again, and a kick and a request that have nothing to do with it come in between.
    serve_and_panic(&mut vm.mmu);
    vm.mmu.port().kick();
    let late = vm.mmu.port().post(Request::Rearm(PageRange::of_page(vm.page(0x2000))));
    let report = vm.mmu.serve(&mut NoHooks);
    assert!(vm.mmu.port().served(ticket) && vm.mmu.port().served(late));
    assert!(!vm.mmu.is_store_fast(va(RAM)), "answered, and a store is fast and unheard: {report:?}");
    drop(running);
}

#[test]
fn an_unmapping_behind_a_hook_that_panics_is_done_with_the_next_one() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let id = space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
    let mut mmu = SoftMmu::new(&space, 0).unwrap();
    let store = |mmu: &mut SoftMmu| mmu.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, 1).is_ok();
    assert!(store(&mut mmu));
    mmu.port().post(Request::KillCode { ram: block.offset(), len: 1 });
    space.unmap(id).unwrap();
    let served = catch_unwind(AssertUnwindSafe(|| mmu.serve(&mut Faulty)));
    assert!(served.is_err() && mmu.port().kicked(), "the unmapping was taken, too, and is there again");
    // The next change brings a view that does not hold the block; the test does, so that a failure is no crash.
    space.map_ram(pa(RAM + 0x10_0000), &block, 0, 0x1000, 0).unwrap();
    let report = mmu.serve(&mut NoHooks);
    assert_eq!((report.remapped, report.flushed), (2, false));
    assert!(!store(&mut mmu), "the entry outlived the view that it came from");
}

#[test]
fn a_parked_vcpu_that_stores_before_it_serves_is_not_heard_and_touches_nobodys_memory() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", 0x4000)).unwrap();
    let id = space.map_ram(pa(RAM), &block, 0, 0x4000, 0).unwrap();
    let mut mmu = SoftMmu::new(&space, 0).unwrap();
    let store = |mmu: &mut SoftMmu| mmu.store(&mut NoHooks, MmuIdx::M, va(RAM), MemSize::B8, 1).is_ok();
    assert!(store(&mut mmu));
    mmu.park();
    let page = PageRange::of_page(block.offset().page());
    ram.dirty().test_and_clear(page.start, DirtyClient::MIGRATION, &pin());
    assert!(space.rearm_and_wait(&[page], None));
    assert!(store(&mut mmu) && !ram.dirty().test(page.start, DirtyClient::MIGRATION, &pin()));
    // As it should have been done.
    let _ = mmu.serve(&mut NoHooks);
    assert!(store(&mut mmu) && ram.dirty().test(page.start, DirtyClient::MIGRATION, &pin()));
    space.unmap(id).unwrap();
    ram.remove(&block).unwrap();
    let gone = Arc::downgrade(&block);
    drop(block);
    assert!(store(&mut mmu) && gone.upgrade().is_some(), "its view keeps the block");
    let _ = mmu.serve(&mut NoHooks);
    assert!(!store(&mut mmu));
}

#[test]
fn re_arms_of_everything_are_counted_for_ever() {
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let mut mmu = SoftMmu::new(&space, 0).unwrap();
    let all = PageRange { start: PageIndex::new(0), end: PageIndex::new(u64::MAX) };
    for _ in 0..4 {
        mmu.port().post(Request::Rearm(all));
        mmu.port().post(Request::Rearm(all));
        let _ = mmu.serve(&mut NoHooks);
    }
}

#[test]
fn an_alias_does_not_grow_past_the_end_of_what_it_shows() {
    let space = AddressSpace::new(Arc::new(RamList::new()));
    let alias = space.map_alias(pa(0), pa(u64::MAX - 0xfff), 0x1000, 0).unwrap();
    assert!(matches!(space.resize_mapping(alias, 0x2000), Err(MapError::Wraps { .. })));
    // And nothing has changed.
    assert!(space.resize_mapping(alias, 0x1000).is_ok());
    space.unmap(alias).unwrap();
}

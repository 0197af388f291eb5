//! The RAM list is the one owner of what hears stores: it asks every address space, keeps the code of all of them, and no
//! caller has to say whom to ask.

mod common;

use common::{Live, RAM, Tbs, Vm, pa, va};
use notdirty_core::raw::RawDirty;
use notdirty_core::{ClientMask, DirtyClient, DirtyLog, PageIndex, PageRange, RamBlockSpec, RamList, barrier, pin};
use notdirty_softmmu::{AddressSpace, MemSize, MmioDevice, MmuIdx, SoftMmu};
use std::sync::{Arc, mpsc};
use std::thread::ThreadId;
use std::time::Duration;

/// Longer than any wait here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A second address space over the RAM of `vm`, with a vCPU.
fn second(vm: &Vm) -> (Live, Tbs) {
    let other = AddressSpace::new(vm.ram.clone());
    other.map_ram(pa(RAM), &vm.block, 0, 0x1_0000, 0).unwrap();
    (Live::new(&other, 0), Tbs::new(&vm.ram))
}

#[test]
fn code_dies_of_a_store_through_another_address_space() {
    let mut vm = Vm::new();
    let (mut b, mut b_tbs) = second(&vm);
    let at = vm.at(0x40);
    vm.tbs.translate(&mut vm.mmu, at, 64);
    let _ = b.store(&mut b_tbs, MmuIdx::M, va(RAM + 0x40), MemSize::B8, 1).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.tbs.tbs.is_empty(), "the translation outlives its bytes");
}

#[test]
fn a_translation_asks_the_vcpus_of_every_address_space() {
    let mut vm = Vm::new();
    let (mut b, mut b_tbs) = second(&vm);
    let mut put = |b: &mut Live| {
        let _ = b.store(&mut b_tbs, MmuIdx::M, va(RAM + 0x40), MemSize::B8, 1).unwrap();
        let _ = b.serve(&mut b_tbs);
    };
    put(&mut b);
    assert!(b.is_store_fast(va(RAM)));
    let page = vm.page(0);
    let mut pending = vm.mmu.announce_code(page, 1 << 1);
    assert!(!pending.is_empty() && !pending.is_served(), "one of them may be past its check");
    put(&mut b);
    assert!(pending.is_served() && !b.is_store_fast(va(RAM)));
}

#[test]
fn a_log_asks_the_vcpus_of_every_address_space() {
    let mut vm = Vm::new();
    let (b, _) = second(&vm);
    let (mut b, mut b_tbs) = (b, Tbs::new(&vm.ram));
    vm.put(RAM, MemSize::B8, 1);
    let _ = b.store(&mut b_tbs, MmuIdx::M, va(RAM), MemSize::B8, 1).unwrap();
    assert!(vm.mmu.is_store_fast(va(RAM)) && b.is_store_fast(va(RAM)));
    vm.mmu.park();
    // The second one runs, on a thread that does not answer.
    let (ram, space) = (vm.ram.clone(), b.space().clone());
    let late = std::thread::spawn(move || ram.log(DirtyClient::VGA).timeout(Duration::from_millis(5)).start().is_err());
    assert!(late.join().unwrap(), "{space:?} was not asked");
    b.park();
    let log = vm.ram.log(DirtyClient::VGA).start().unwrap();
    for (mmu, tbs) in [(&mut vm.mmu, &mut vm.tbs), (&mut b, &mut b_tbs)] {
        let _ = mmu.start(tbs);
        let _ = mmu.store(tbs, MmuIdx::M, va(RAM), MemSize::B8, 2).unwrap();
        mmu.park();
        assert_eq!(log.sync(None).unwrap().commit().count(), 1, "a store was not heard");
    }
}

#[test]
fn who_comes_second_to_a_log_hears_of_stores_whoever_came_first() {
    let mut vm = Vm::new();
    vm.mmu.park();
    // A loader, before the vCPU ran.
    let _loader = vm.ram.log(DirtyClient::MIGRATION).start().unwrap();
    let log = vm.ram.log(DirtyClient::MIGRATION).start().unwrap();
    for value in 1..4 {
        let _ = vm.mmu.start(&mut vm.tbs);
        vm.put(RAM, MemSize::B8, value);
        vm.mmu.park();
        assert_eq!(log.sync(Some(LIMIT)).unwrap().commit().count(), 1, "store {value} was not heard");
    }
}

#[test]
fn a_mark_for_everybody_is_none_for_the_translator() {
    let mut vm = Vm::new();
    let at = vm.at(0x40);
    vm.tbs.translate(&mut vm.mmu, at, 64);
    vm.ram.dirty().set(PageRange::of_page(vm.page(0)), ClientMask::ALL, &pin());
    vm.put(RAM + 0x40, MemSize::B8, 1);
    assert!(vm.tbs.tbs.is_empty(), "the translation outlives its bytes");
}

#[test]
fn a_vcpu_that_was_made_and_does_not_run_yet_holds_up_no_log() {
    let mut vm = Vm::new();
    vm.mmu.park();
    let _new = SoftMmu::new(&vm.space, 0).unwrap();
    vm.ram.log(DirtyClient::VGA).timeout(LIMIT).start().expect("no vCPU runs");
}

#[test]
fn a_log_of_a_range_works_before_the_first_run() {
    let vm = Vm::new();
    drop(vm.mmu);
    let mut mmu = SoftMmu::new(&vm.space, 0).unwrap();
    let log = vm.ram.log(DirtyClient::VGA).blocks([&vm.block]).start().unwrap();
    let mut tbs = Tbs::new(&vm.ram);
    let _ = mmu.run(&mut tbs).store(&mut tbs, MmuIdx::M, va(RAM), MemSize::B8, 1).unwrap();
    assert_eq!(log.sync(None).unwrap().commit().count(), 1);
}

#[test]
fn a_start_arms_all_of_its_pages_also_those_whose_bits_were_taken_before() {
    let mut vm = Vm::new();
    vm.put(RAM, MemSize::B8, 1); // a fast entry
    // As a harvest of the same client leaves it, between its two steps.
    assert!(vm.ram.dirty().test_and_clear(vm.page(0), DirtyClient::MIGRATION, &pin()));
    vm.mmu.park();
    let log = vm.ram.log(DirtyClient::MIGRATION).timeout(LIMIT).start().unwrap();
    let _ = vm.mmu.start(&mut vm.tbs);
    vm.put(RAM, MemSize::B8, 2);
    vm.mmu.park();
    assert_eq!(log.sync(Some(LIMIT)).unwrap().commit().count(), 1, "when `start` returns, each later store is heard");
}

#[test]
fn a_re_arm_of_lone_pages_looks_at_the_entries_of_these_pages() {
    const LEN: u64 = 64 << 20;
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", LEN)).unwrap();
    space.map_ram(pa(RAM), &block, 0, LEN, 0).unwrap();
    let mut mmu = Live::new(&space, 0);
    let mut tbs = Tbs::new(&ram);
    for page in 0..LEN / 4096 {
        let _ = mmu.store(&mut tbs, MmuIdx::M, va(RAM + page * 4096), MemSize::B8, 1).unwrap();
    }
    for lone in [63, 64, 65, 100, 128, 1000] {
        mmu.park();
        let pages: Vec<_> = (0..lone).map(|n| PageIndex::new(block.offset().page().get() + 13 * n)).collect();
        let pages: Vec<_> = pages.into_iter().map(PageRange::of_page).collect();
        ram.rearm(&pages, Some(LIMIT)).unwrap();
        let looked_at = mmu.start(&mut tbs).rearmed;
        assert!((1..=lone).contains(&looked_at), "{lone} lone pages: {looked_at} entries");
    }
}

#[test]
fn what_a_restore_puts_back_is_not_dirty_for_who_put_it_back() {
    for rings in [false, true] {
        let mut vm = Vm::new();
        vm.mmu.park();
        let client = vm.ram.add_client("checkpoint").unwrap();
        let number = client.client();
        let builder = || if rings { vm.ram.log(number).rings(128) } else { vm.ram.log(number) };
        let (log, other) = (builder().start().unwrap(), builder().start().unwrap());
        let vga = vm.ram.log(DirtyClient::VGA).start().unwrap();
        let (golden, mut counts) = (vec![0u8; 4096], Vec::new());
        for run in 0..8u64 {
            let _ = vm.mmu.start(&mut vm.tbs);
            vm.put(RAM + run * 4096, MemSize::B8, run); // each run dirties one page
            vm.mmu.park();
            let pages = log.sync(None).unwrap().commit();
            counts.push(pages.count());
            vga.sync(None).unwrap().commit();
            other.sync(None).unwrap().commit();
            for page in pages.ranges().flat_map(|range| range.iter()) {
                let off = page.base().get() - vm.block.offset().get();
                vm.space.write_for(&log, pa(RAM + off), &golden).unwrap();
            }
            // Everybody else hears of it: another client, and another user of the same log.
            assert_eq!((vga.sync(None).unwrap().commit(), other.sync(None).unwrap().commit()), (pages.clone(), pages));
        }
        assert_eq!(counts, [1; 8], "pages to restore after each run, rings: {rings}");
    }
}

#[test]
fn a_device_that_holds_a_log_of_its_ram_does_not_keep_it_for_ever() {
    struct Dev(#[allow(dead_code)] DirtyLog);
    impl MmioDevice for Dev {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {}
    }
    let ram = Arc::new(RamList::new());
    let space = AddressSpace::new(ram.clone());
    let block = ram.add(RamBlockSpec::new("ram", 1 << 21)).unwrap();
    let weak = Arc::downgrade(&block);
    let log = ram.log(DirtyClient::VGA).start().unwrap();
    space.map_mmio(pa(0), 4096, Arc::new(Dev(log)), 0).unwrap();
    drop((block, space, ram));
    barrier().unwrap();
    assert!(weak.upgrade().is_none(), "all RAM is leaked");
}

/// Says on which thread it was dropped.
struct Dropped(mpsc::Sender<ThreadId>);

impl MmioDevice for Dropped {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
}

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(std::thread::current().id());
    }
}

#[test]
fn no_device_is_dropped_by_the_thread_of_a_vcpu() {
    let mut vm = Vm::new();
    let (tx, rx) = mpsc::channel();
    let (space, ram) = (vm.space.clone(), vm.ram.clone());
    let id = space.map_mmio(pa(0x7000_0000), 4096, Arc::new(Dropped(tx)), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    std::thread::spawn(move || space.unmap(id).unwrap()).join().unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let mut n = 0;
    let who = loop {
        if let Ok(who) = rx.try_recv() {
            break who;
        }
        // Slow stores: a client takes the bit again and again.
        let page = vm.page(0);
        ram.dirty().test_and_clear(page, DirtyClient::VGA, &pin());
        vm.mmu.arm_page(page);
        vm.put(RAM, MemSize::B8, n);
        n += 1;
    };
    assert_ne!(who, std::thread::current().id(), "run by the vCPU's thread inside of store {n}");
}

#[test]
fn a_device_that_unmaps_another_does_not_drop_it_inside_of_a_store() {
    struct Unmaps(std::sync::Weak<AddressSpace>, notdirty_softmmu::RegionId);
    impl MmioDevice for Unmaps {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, _: u64) {
            self.0.upgrade().unwrap().unmap(self.1).unwrap();
        }
    }
    let mut vm = Vm::new();
    let (tx, rx) = mpsc::channel();
    // Hidden by another region, so that no view has it.
    let id = vm.space.map_mmio(pa(0x7000_0000), 4096, Arc::new(Dropped(tx)), -1).unwrap();
    vm.space.map_mmio(pa(0x7000_0000), 4096, Arc::new(Unmaps(Arc::downgrade(&vm.space), id)), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(0x7000_0000, MemSize::B4, 1);
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert_ne!(rx.recv_timeout(LIMIT).unwrap(), std::thread::current().id());
}

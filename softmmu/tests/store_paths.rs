//! One test for each way out of the slow path.

mod common;

use common::{DEV, Live, RAM, ROM, Regs, Vm, emitted_probe_hits, pa, va};
use notdirty_core::{DirtyClient, PageRange, RamBlockSpec};
use notdirty_softmmu::MemSize::{B1, B2, B4, B8};
use notdirty_softmmu::raw::{self, Request};
use notdirty_softmmu::tlb::entry::{self, ADDEND, AUX, CODEPAGE, NOTDIRTY, OTHER, READ, WRITE};
use notdirty_softmmu::{
    AccessKind, AmoOp, CodePage, FaultCause, MemFault, MemSize, MmuIdx, NoHooks, SizeMask, StoreEffect,
};

fn fault(kind: AccessKind, cause: FaultCause, at: u64) -> MemFault {
    MemFault { kind, cause, addr: va(at) }
}
fn write_comparator(vm: &Vm, at: u64) -> u64 {
    let slot = (at >> 12) as usize & 0x3fff;
    // SAFETY: masked to the table.
    unsafe { vm.mmu.table().add(slot).cast::<u8>().add(WRITE as usize).cast::<u64>().read() }
}

#[test]
fn a_store_to_ram_nobody_tracks_is_fast_from_the_second_on() {
    let mut vm = Vm::new();
    assert_eq!(vm.store(RAM + 8, B8, 0x1122_3344_5566_7788), Ok(StoreEffect::NONE));
    assert_eq!(vm.mmu.stats().store_miss, 1);
    assert!(vm.mmu.is_store_fast(va(RAM + 8)));
    for n in 0..100 {
        vm.put(RAM + 8 * n, B8, n);
    }
    assert_eq!(vm.mmu.stats().store_miss, 1);
    assert_eq!(vm.mmu.stats().notdirty, 0);
    assert_eq!(vm.load(RAM + 8, B4), Ok(1));
    assert_eq!(vm.block.load(8 * 99, 8).ok(), Some(99));
}

#[test]
fn values_are_little_endian_and_zero_extended() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 0xf1f2_f3f4_f5f6_f7f8);
    assert_eq!(vm.load(RAM, B1), Ok(0xf8));
    assert_eq!(vm.load(RAM, B2), Ok(0xf7f8));
    assert_eq!(vm.load(RAM + 4, B4), Ok(0xf1f2_f3f4));
    vm.put(RAM + 1, B1, 0xffff_ff00);
    assert_eq!(vm.load(RAM, B8), Ok(0xf1f2_f3f4_f5f6_00f8));
}

#[test]
fn a_tracked_page_marks_once_and_is_fast_again() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 1);
    let page = vm.page(0);
    vm.track(page, DirtyClient::MIGRATION);
    assert!(vm.mmu.is_store_fast(va(RAM)), "the owner alone arms, at its safe point");
    assert_eq!(vm.mmu.serve(&mut vm.tbs).rearmed, 1);
    assert!(!vm.mmu.is_store_fast(va(RAM)));
    assert_eq!(vm.store(RAM, B8, 2), Ok(StoreEffect::NONE));
    assert!(vm.is_set(page, DirtyClient::MIGRATION));
    assert!(vm.mmu.is_store_fast(va(RAM)), "nobody is left to tell");
    vm.put(RAM, B8, 3);
    assert_eq!(vm.mmu.stats().notdirty, 1);
}

#[test]
fn two_clients_are_told_by_one_store() {
    let mut vm = Vm::new();
    let page = vm.page(0);
    vm.track(page, DirtyClient::MIGRATION);
    vm.track(page, DirtyClient::VGA);
    vm.put(RAM + 4, B4, 2);
    assert!(vm.is_set(page, DirtyClient::MIGRATION) && vm.is_set(page, DirtyClient::VGA));
    assert_eq!(vm.mmu.stats().notdirty, 1);
    assert!(vm.mmu.is_store_fast(va(RAM)));
}

#[test]
fn rearming_finds_every_alias_of_a_page() {
    let mut vm = Vm::new();
    let aliases = [0x9000_0000, 0x9000_0000 + (64 << 20), 0xa000_5000];
    for at in aliases {
        vm.space.map_alias(pa(at), pa(RAM + 0x1000), 0x1000, 0).unwrap();
    }
    let _ = vm.mmu.serve(&mut vm.tbs);
    let all: Vec<u64> = aliases.into_iter().chain([RAM + 0x1000]).collect();
    for &at in &all {
        vm.put(at, B8, 1);
        assert!(vm.mmu.is_store_fast(va(at)));
    }
    // The first two aliases share a slot; the second holds it now.
    vm.track(vm.page(0x1000), DirtyClient::MIGRATION);
    let _ = vm.mmu.serve(&mut vm.tbs);
    for &at in &all {
        assert!(!vm.mmu.is_store_fast(va(at)), "{at:#x}");
    }
    // The entry that is stored through is disarmed, and no other.
    vm.put(all[2], B8, 7);
    assert!(vm.mmu.is_store_fast(va(all[2])) && !vm.mmu.is_store_fast(va(RAM + 0x1000)));
    vm.put(RAM + 0x1000, B8, 7);
    assert!(vm.mmu.is_store_fast(va(RAM + 0x1000)) && !vm.mmu.is_store_fast(va(all[1])));
    assert_eq!(vm.load(RAM + 0x1000, B8), Ok(7));
}

#[test]
fn a_page_where_only_code_listens_says_so_and_points_to_its_lines() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 0);
    let at = vm.at(0x100);
    vm.tbs.translate(&mut vm.mmu, at, 0x40);
    assert_eq!(write_comparator(&vm, RAM) & (CODEPAGE | NOTDIRTY), CODEPAGE);
    let slot = (RAM >> 12) as usize & 0x3fff;
    // SAFETY: masked to the table.
    let aux = unsafe { vm.mmu.table().add(slot).cast::<u8>().add(AUX as usize).cast::<u64>().read() };
    let code: *const CodePage = vm.space.code().page(vm.page(0)).unwrap();
    assert_eq!(aux, code as u64);
    vm.track(vm.page(0), DirtyClient::MIGRATION);
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert_eq!(write_comparator(&vm, RAM) & (CODEPAGE | NOTDIRTY), NOTDIRTY);
    vm.put(RAM, B8, 0);
    assert_eq!(write_comparator(&vm, RAM) & (CODEPAGE | NOTDIRTY), CODEPAGE, "migration was told, code stays");
}

#[test]
fn a_store_beside_code_is_not_told_to_the_translator() {
    let mut vm = Vm::new();
    vm.tbs.translate(&mut vm.mmu, vm.block.offset().get() + 0x100, 0x40);
    let effect = vm.store(RAM + 0x140, B8, 1).unwrap();
    assert_eq!(effect.killed, 0);
    vm.put(RAM + 0xf8, B8, 1);
    assert!(vm.tbs.heard.is_empty());
    assert_eq!(vm.mmu.stats().code_page, 1, "the first store filled the entry, the second tested the line");
    assert_eq!(vm.tbs.tbs.len(), 1);
}

#[test]
fn a_store_into_code_kills_it_and_the_page_is_fast_again() {
    let mut vm = Vm::new();
    let at = vm.at(0x100);
    vm.put(RAM, B8, 1);
    vm.tbs.translate(&mut vm.mmu, at, 0x40);
    assert_eq!(vm.store(RAM + 0x108, B4, 0x13), Ok(StoreEffect { killed: 1, ..StoreEffect::NONE }));
    assert_eq!(vm.tbs.heard, [(at + 8, 4)]);
    assert!(vm.is_set(vm.page(0), notdirty_core::raw::CODE));
    assert!(vm.mmu.is_store_fast(va(RAM)));
    assert_eq!(vm.load(RAM + 0x108, B4), Ok(0x13));
}

#[test]
fn killing_one_of_two_blocks_leaves_the_page_protected() {
    let mut vm = Vm::new();
    let (a, b) = (vm.at(0x100), vm.at(0x800));
    vm.tbs.translate(&mut vm.mmu, a, 0x40);
    vm.tbs.translate(&mut vm.mmu, b, 0x40);
    assert_eq!(vm.store(RAM + 0x800, B8, 1).unwrap().killed, 1);
    assert!(!vm.mmu.is_store_fast(va(RAM)));
    assert_eq!(vm.store(RAM + 0x808, B8, 1).unwrap().killed, 0, "its line holds no code any more");
    assert_eq!(vm.store(RAM + 0x100, B8, 1).unwrap().killed, 1);
    assert!(vm.mmu.is_store_fast(va(RAM)));
}

#[test]
fn code_that_died_by_other_means_is_noticed_by_the_next_store() {
    let mut vm = Vm::new();
    let at = vm.at(0x100);
    vm.put(RAM, B8, 1);
    vm.tbs.translate(&mut vm.mmu, at, 0x40);
    vm.tbs.tbs.clear();
    vm.ram.dirty().set_code_lines(vm.page(0), 0, vm.mmu.port().id(), &notdirty_core::pin());
    assert!(!vm.mmu.is_store_fast(va(RAM)));
    vm.put(RAM + 0x100, B8, 1);
    assert!(vm.tbs.heard.is_empty());
    assert!(vm.mmu.is_store_fast(va(RAM)));
}

#[test]
fn the_translator_hears_of_bytes_that_are_already_there() {
    // MARK-1: step a comes before step b.
    struct Reader(std::sync::Arc<notdirty_core::RamBlock>, Vec<u64>);
    impl notdirty_softmmu::CodeInvalidator for Reader {
        fn code_written(&mut self, _: notdirty_core::RamAddr, _: u64) -> usize {
            self.1.push(self.0.load(0x100, 8).unwrap());
            0
        }
    }
    impl notdirty_softmmu::Hooks for Reader {}
    let mut vm = Vm::new();
    let mut reader = Reader(vm.block.clone(), Vec::new());
    let page = vm.page(0);
    let _ = vm.mmu.announce_code(page, 1 << 4);
    for (n, value) in [(0, 11), (1, 22)] {
        // The first through the fill (NOTDIRTY's road), the second through the CODEPAGE entry.
        let _ = vm.mmu.store(&mut reader, MmuIdx::M, va(RAM + 0x100), B8, value).unwrap();
        assert_eq!(reader.1.len(), n + 1);
    }
    let _ = vm.mmu.amo(&mut reader, MmuIdx::M, va(RAM + 0x100), B8, AmoOp::Add, 11).unwrap();
    vm.mmu.lr(&mut reader, MmuIdx::M, va(RAM + 0x100), B8).unwrap();
    assert!(vm.mmu.sc(&mut reader, MmuIdx::M, va(RAM + 0x100), B8, 44).unwrap().0);
    assert_eq!(reader.1, [11, 22, 33, 44]);
}

#[test]
fn misaligned_accesses_within_a_page_work() {
    let mut vm = Vm::new();
    vm.put(RAM + 3, B8, 0x8877_6655_4433_2211);
    assert_eq!(vm.load(RAM + 3, B8), Ok(0x8877_6655_4433_2211));
    assert_eq!(vm.load(RAM + 5, B4), Ok(0x6655_4433));
    assert_eq!(vm.load(RAM + 10, B1), Ok(0x88));
    assert!(vm.mmu.stats().misaligned >= 3);
}

#[test]
fn a_store_over_two_pages_tells_both() {
    let mut vm = Vm::new();
    vm.track(vm.page(0), DirtyClient::MIGRATION);
    let at = vm.at(0x1000);
    vm.tbs.translate(&mut vm.mmu, at, 4);
    let effect = vm.store(RAM + 0xffd, B8, 0x8877_6655_4433_2211).unwrap();
    assert_eq!(effect.killed, 1);
    assert_eq!(vm.tbs.heard, [(at, 5)]);
    assert!(vm.is_set(vm.page(0), DirtyClient::MIGRATION));
    assert_eq!(vm.load(RAM + 0xffd, B8), Ok(0x8877_6655_4433_2211));
    assert_eq!(vm.block.load(0x1000, 4).ok(), Some(0x7766_5544));
}

#[test]
fn a_store_whose_second_page_is_missing_writes_nothing() {
    let mut vm = Vm::new();
    let end = RAM + 0x1_0000;
    let missing = fault(AccessKind::Store, FaultCause::Access, end);
    assert_eq!(vm.store(end - 4, B8, u64::MAX), Err(missing));
    assert_eq!(vm.load(end - 4, B4), Ok(0));
    assert_eq!(vm.load(end - 4, B8), Err(fault(AccessKind::Load, FaultCause::Access, end)));
}

#[test]
fn a_store_that_reaches_from_ram_into_a_device_writes_nothing() {
    let mut vm = Vm::new();
    vm.space.map_mmio(pa(RAM + 0x1_0000), 0x1000, vm.dev.clone(), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let end = RAM + 0x1_0000;
    assert_eq!(vm.store(end - 2, B4, u64::MAX), Err(fault(AccessKind::Store, FaultCause::Access, end)));
    assert_eq!(vm.load(end - 2, B2), Ok(0));
    assert!(vm.dev.log().is_empty());
}

#[test]
fn a_hole_faults_for_every_kind_of_access() {
    let mut vm = Vm::new();
    let (at, idx, h) = (va(0x4000_0000), MmuIdx::M, &mut vm.tbs);
    let error = |kind| fault(kind, FaultCause::Access, at.get());
    assert_eq!(vm.mmu.load(h, idx, at, B8), Err(error(AccessKind::Load)));
    assert_eq!(vm.mmu.store(h, idx, at, B1, 0), Err(error(AccessKind::Store)));
    assert_eq!(vm.mmu.fetch(h, idx, at).unwrap_err(), error(AccessKind::Fetch));
    assert_eq!(vm.mmu.amo(h, idx, at, B4, AmoOp::Add, 1).unwrap_err(), error(AccessKind::Store));
    assert_eq!(vm.mmu.lr(h, idx, at, B4), Err(error(AccessKind::Load)));
    assert_eq!(vm.mmu.sc(h, idx, at, B4, 1).unwrap_err(), error(AccessKind::Store));
    assert_eq!(vm.mmu.stats().faults, 6);
}

#[test]
fn the_page_whose_biased_address_is_zero_matches_no_empty_entry() {
    let mut vm = Vm::new();
    let zero = 0u64.wrapping_sub(entry::BIAS);
    // Pages of the slots where that page and the one before it would look, so that the flush has something to wipe
    // there.
    let same_slot = 1 << 26;
    let slot_before = same_slot - 0x1000;
    vm.space.map_alias(pa(same_slot), pa(RAM), 0x1000, 0).unwrap();
    vm.space.map_alias(pa(slot_before), pa(RAM), 0x1000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    for round in 0..2 {
        // Misaligned, and beginning on the page before.
        for back in 1..8 {
            assert!(!emitted_probe_hits(&vm.mmu, zero - back, B8, READ), "round {round}, {back}");
            assert!(!emitted_probe_hits(&vm.mmu, zero - back, B8, WRITE));
        }
        for (at, size) in [(zero, B8), (zero + 0xff8, B8), (zero + 0xfff, B1)] {
            assert!(!emitted_probe_hits(&vm.mmu, at, size, READ), "round {round}");
            assert!(!emitted_probe_hits(&vm.mmu, at, size, WRITE));
            assert_eq!(vm.load(at, size), Err(fault(AccessKind::Load, FaultCause::Access, at)));
            assert_eq!(vm.store(at, size, 0), Err(fault(AccessKind::Store, FaultCause::Access, at)));
        }
        for at in [same_slot, slot_before] {
            vm.put(at, B8, 1);
            assert!(vm.mmu.is_store_fast(va(at)));
        }
        vm.mmu.flush_tlb();
    }
    // What is mapped there works, but never gets an entry.
    let (block, off) = (vm.block.clone(), 0x3000);
    vm.space.map_ram(pa(zero), &block, off, 0x1000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(zero + 0xff8, B8, 5);
    assert_eq!(vm.load(RAM + 0x3ff8, B8), Ok(5));
    assert!(!emitted_probe_hits(&vm.mmu, zero + 0xff8, B8, WRITE));
}

#[test]
fn the_page_whose_biased_address_is_zero_gets_no_entry_though_the_ram_around_it_was_found() {
    let mut vm = Vm::new();
    let zero = 0u64.wrapping_sub(entry::BIAS);
    let block = vm.block.clone();
    vm.space.map_ram(pa(zero - 0x1000), &block, 0x2000, 0x3000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    for idx in [MmuIdx::M, MmuIdx::S] {
        for round in 0..2 {
            for (n, at) in [zero - 0x1000, zero, zero + 0x1000].into_iter().enumerate() {
                let _ = vm.mmu.store(&mut vm.tbs, idx, va(at), B8, n as u64 + round).unwrap();
                assert_eq!(vm.mmu.load(&mut vm.tbs, idx, va(at), B8), Ok(n as u64 + round));
                assert_eq!(vm.mmu.is_store_fast(va(at)), at != zero);
            }
            let crossing = 0x0123_4567_89ab_cdef;
            let _ = vm.mmu.store(&mut vm.tbs, idx, va(zero - 3), B8, crossing).unwrap();
            assert_eq!(vm.mmu.load(&mut vm.tbs, idx, va(zero - 3), B8), Ok(crossing));
            vm.mmu.flush_translations(Some(va(zero)), None);
            vm.mmu.flush_tlb();
        }
    }
}

#[test]
fn an_access_past_the_end_of_the_address_space_wraps_to_zero() {
    let mut vm = Vm::new();
    let (block, off) = (vm.block.clone(), 0x3000);
    vm.space.map_ram(pa(u64::MAX - 0xfff), &block, off, 0x1000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(u64::MAX - 7, B8, 5);
    assert_eq!(vm.load(RAM + 0x3ff8, B8), Ok(5));
    assert!(vm.mmu.is_store_fast(va(u64::MAX - 7)));
    assert_eq!(vm.store(u64::MAX - 3, B8, 5), Err(fault(AccessKind::Store, FaultCause::Access, 0)));
    assert_eq!(vm.mmu.fetch(&mut vm.tbs, MmuIdx::M, va(u64::MAX - 1)).unwrap().len_ok, 2);
}

#[test]
fn rom_ignores_stores_and_keeps_its_bytes() {
    let mut vm = Vm::new();
    vm.space.write(pa(ROM), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    assert_eq!(vm.store(ROM, B8, 0), Ok(StoreEffect::NONE));
    assert_eq!(vm.store(ROM + 1, B2, 0), Ok(StoreEffect::NONE));
    let (old, _) = vm.mmu.amo(&mut vm.tbs, MmuIdx::M, va(ROM), B4, AmoOp::Swap, 0).unwrap();
    assert_eq!(old, 0x0403_0201);
    assert_eq!(vm.load(ROM, B8), Ok(0x0807_0605_0403_0201));
    assert_eq!(vm.mmu.stats().rom_discard, 3);
    vm.track(notdirty_core::RamAddr::new(vm.rom.offset().get()).page(), DirtyClient::MIGRATION);
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(ROM, B8, 0);
    assert_eq!(vm.load(ROM, B8), Ok(0x0807_0605_0403_0201), "re-arming a ROM page does not make it RAM");
}

#[test]
fn a_block_that_the_host_cannot_write_is_rom() {
    let mut vm = Vm::new();
    let block = vm.ram.add(RamBlockSpec::new("flash", 0x1000).readonly(true)).unwrap();
    vm.space.map_ram(pa(0x2000_0000), &block, 0, 0x1000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(0x2000_0000, B8, 7);
    vm.put(0x2000_0000, B8, 7);
    assert_eq!(vm.load(0x2000_0000, B8), Ok(0));
}

#[test]
fn a_device_is_called_with_its_offset_and_the_clock_is_told_before() {
    let mut vm = Vm::new();
    assert_eq!(vm.store(DEV + 0x1008, B4, 0xffff_ffff_1234_5678), Ok(StoreEffect { mmio: true, ..StoreEffect::NONE }));
    assert_eq!(vm.dev.log(), [(0x1008, B4, 0x1234_5678)]);
    assert_eq!(vm.load(DEV + 0x1008, B2), Ok(0x5678));
    assert_eq!(vm.tbs.before_mmio, 2);
    assert_eq!((vm.mmu.stats().mmio_read, vm.mmu.stats().mmio_write), (1, 1));
}

#[test]
fn a_device_does_not_evict_the_ram_page_of_its_slot() {
    // UART and start of RAM, as boards have them: their page numbers agree in the index bits.
    let mut vm = Vm::new();
    vm.put(RAM, B8, 1);
    vm.put(DEV, B1, 2);
    assert_eq!(vm.load(DEV, B1), Ok(2));
    assert!(vm.mmu.is_store_fast(va(RAM)));
    assert_eq!((vm.mmu.stats().store_miss, vm.mmu.stats().load_miss), (2, 0));
    assert!(!emitted_probe_hits(&vm.mmu, DEV, B1, READ) && !emitted_probe_hits(&vm.mmu, DEV, B1, WRITE));
}

#[test]
fn misaligned_device_accesses_fault() {
    let mut vm = Vm::new();
    assert_eq!(vm.store(DEV + 2, B4, 0), Err(fault(AccessKind::Store, FaultCause::Access, DEV + 2)));
    assert_eq!(vm.load(DEV + 1, B2), Err(fault(AccessKind::Load, FaultCause::Access, DEV + 1)));
    assert_eq!(vm.load(DEV + 0xffc, B8), Err(fault(AccessKind::Load, FaultCause::Access, DEV + 0xffc)));
    assert!(vm.dev.log().is_empty());
}

#[test]
fn a_device_of_words_sees_wide_accesses_split_and_narrow_ones_fault() {
    let mut vm = Vm::new();
    let words = Regs::new(SizeMask::of(&[B4]));
    vm.space.map_mmio(pa(0x2000_0000), 0x1000, words.clone(), 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    assert!(vm.store(0x2000_0008, B8, 0x2222_2222_1111_1111).unwrap().mmio);
    assert_eq!(words.log(), [(8, B4, 0x1111_1111), (12, B4, 0x2222_2222)]);
    assert_eq!(vm.load(0x2000_0008, B8), Ok(0x2222_2222_1111_1111));
    let narrow = fault(AccessKind::Store, FaultCause::Access, 0x2000_0008);
    assert_eq!(vm.store(0x2000_0008, B1, 0), Err(narrow));
}

#[test]
fn a_device_smaller_than_a_page_leaves_the_rest_of_the_page_ram() {
    let mut vm = Vm::new();
    let htif = Regs::new(SizeMask::ALL);
    vm.put(RAM + 0x2000, B8, 1);
    vm.space.map_mmio(pa(RAM + 0x2040), 16, htif.clone(), 1).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(RAM + 0x2038, B8, 0x38);
    vm.put(RAM + 0x2050, B8, 0x50);
    assert!(vm.store(RAM + 0x2048, B8, 0x48).unwrap().mmio);
    assert_eq!(htif.log(), [(8, B8, 0x48)]);
    assert_eq!(vm.block.load(0x2048, 8).ok(), Some(0), "the RAM under the device is untouched");
    assert_eq!((vm.load(RAM + 0x2038, B8), vm.load(RAM + 0x2050, B8)), (Ok(0x38), Ok(0x50)));
    assert!(!vm.mmu.is_store_fast(va(RAM + 0x2000)));
    // RAM on such a page is heard of like any other.
    vm.track(vm.page(0x2000), DirtyClient::MIGRATION);
    let at = vm.at(0x2100);
    vm.tbs.translate(&mut vm.mmu, at, 4);
    assert_eq!(vm.store(RAM + 0x2100, B4, 0).unwrap().killed, 1);
    assert!(vm.is_set(vm.page(0x2000), DirtyClient::MIGRATION));
    // Misaligned from RAM into the device: nothing happens.
    let into = fault(AccessKind::Store, FaultCause::Access, RAM + 0x2040);
    assert_eq!(vm.store(RAM + 0x203e, B4, u64::MAX), Err(into));
    assert_eq!(vm.load(RAM + 0x203e, B2), Ok(0));
}

#[test]
fn an_aligned_access_over_two_regions_writes_ram_first_and_the_device_last() {
    let mut vm = Vm::new();
    let four = Regs::new(SizeMask::ALL);
    vm.space.map_mmio(pa(RAM + 0x2040), 4, four.clone(), 1).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let effect = vm.store(RAM + 0x2040, B8, 0x2222_2222_1111_1111).unwrap();
    assert!(effect.mmio);
    assert_eq!(four.log(), [(0, B4, 0x1111_1111)]);
    assert_eq!(vm.block.load(0x2044, 4).ok(), Some(0x2222_2222));
    assert_eq!(vm.load(RAM + 0x2040, B8), Ok(0x2222_2222_1111_1111));
    let (at, h) = (va(RAM + 0x2040), &mut vm.tbs);
    let split = fault(AccessKind::Store, FaultCause::Access, at.get());
    assert_eq!(vm.mmu.amo(h, MmuIdx::M, at, B8, AmoOp::Add, 1).unwrap_err(), split, "no atomic over two regions");
}

#[test]
fn entries_off_the_flat_addend_are_flagged_but_work() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 1);
    assert_eq!(write_comparator(&vm, RAM) & OTHER, OTHER);
    let flat = (vm.block.host() as u64).wrapping_sub(RAM);
    vm.mmu.set_flat_addend(flat);
    vm.space.map_alias(pa(0x9000_0000), pa(RAM), 0x1000, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    vm.put(RAM, B8, 2);
    assert!(emitted_probe_hits(&vm.mmu, RAM, B8, WRITE) && emitted_probe_hits(&vm.mmu, RAM, B8, READ));
    let slot = (RAM >> 12) as usize & 0x3fff;
    // SAFETY: masked to the table.
    let addend = unsafe { vm.mmu.table().add(slot).cast::<u8>().add(ADDEND as usize).cast::<u64>().read() };
    assert_eq!(addend, flat);
    vm.put(0x9000_0000, B8, 3);
    assert!(!emitted_probe_hits(&vm.mmu, 0x9000_0000, B8, WRITE));
    assert!(!emitted_probe_hits(&vm.mmu, 0x9000_0000, B8, READ));
    assert!(vm.mmu.is_store_fast(va(0x9000_0000)));
    assert_eq!(vm.load(RAM, B8), Ok(3));
    assert!(emitted_probe_hits(&vm.mmu, RAM + 1, B8, READ), "misaligned, on its page");
    assert!(!emitted_probe_hits(&vm.mmu, RAM + 0xff9, B8, READ), "over its end");
}

#[test]
fn fetches_see_pages_of_ram_and_the_ends_of_regions() {
    let mut vm = Vm::new();
    vm.space.write(pa(RAM + 0x2ffe), &[0x34, 0x12, 0x78, 0x56]).unwrap();
    let idx = MmuIdx::M;
    let page = vm.mmu.fetch(&mut vm.tbs, idx, va(RAM + 0x2ffe)).unwrap();
    assert_eq!((page.ram.get(), page.len_ok), (vm.at(0x2000), 2));
    assert_eq!(page.host as u64, vm.block.host() as u64 + 0x2000);
    assert_eq!(vm.mmu.fetch_u16(&mut vm.tbs, idx, va(RAM + 0x2ffe)), Ok(0x1234));
    assert_eq!(vm.mmu.fetch_u16(&mut vm.tbs, idx, va(RAM + 0x3000)), Ok(0x5678));
    let odd = fault(AccessKind::Fetch, FaultCause::Misaligned, RAM + 1);
    assert_eq!(vm.mmu.fetch_u16(&mut vm.tbs, idx, va(RAM + 1)), Err(odd));
    let device = fault(AccessKind::Fetch, FaultCause::Access, DEV);
    assert_eq!(vm.mmu.fetch_u16(&mut vm.tbs, idx, va(DEV)), Err(device));
    // A device in the middle of a page: RAM on both sides can be fetched, the device cannot.
    vm.space.map_mmio(pa(RAM + 0x2040), 16, vm.dev.clone(), 1).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    for (at, len) in [(0x2000, 0x40), (0x203e, 2), (0x2050, 0xfb0), (0x203c, 4)] {
        assert_eq!(vm.mmu.fetch(&mut vm.tbs, idx, va(RAM + at)).unwrap().len_ok, len, "{at:#x}");
    }
    assert!(vm.mmu.fetch(&mut vm.tbs, idx, va(RAM + 0x2040)).is_err());
}

#[test]
fn loads_and_stores_never_serve() {
    let mut vm = Vm::new();
    vm.put(RAM, B8, 0);
    let ticket = raw::post(vm.mmu.port(), Request::FlushAll);
    for at in [RAM, RAM + 1, RAM + 0xffd, ROM, DEV, 0] {
        let _ = vm.load(at, B4);
        let _ = vm.store(at, B4, 0);
    }
    assert!(vm.mmu.is_store_fast(va(RAM)));
    assert!(!raw::served(vm.mmu.port(), ticket));
    assert!(vm.mmu.serve(&mut vm.tbs).flushed);
    assert!(raw::served(vm.mmu.port(), ticket));
    assert!(!vm.mmu.is_store_fast(va(RAM)));
}

#[test]
fn the_hosts_write_stores_then_kills_at_the_safe_point_then_marks() {
    let mut vm = Vm::new();
    let at = vm.at(0xff0);
    vm.tbs.translate(&mut vm.mmu, at, 0x20);
    vm.track(vm.page(0x1000), DirtyClient::MIGRATION);
    vm.space.write(pa(RAM + 0x800), &[0xaa; 0x100]).unwrap();
    assert_eq!(vm.mmu.serve(&mut vm.tbs).killed, 0, "beside the code");
    vm.space.write(pa(RAM + 0xfff), &[0xaa; 0x3000]).unwrap();
    assert_eq!(vm.tbs.tbs.len(), 1);
    assert!(vm.is_set(vm.page(0x1000), DirtyClient::MIGRATION));
    assert_eq!(vm.mmu.serve(&mut vm.tbs).killed, 1);
    // Two pages of code, adjacent: one request.
    assert_eq!(vm.tbs.heard, [(vm.at(0xfff), 0x1001)]);
}

#[test]
fn the_hosts_accesses_are_whole_or_not_at_all() {
    let vm = Vm::new();
    assert!(vm.space.write(pa(RAM + 0x1_0000 - 4), &[1; 8]).is_err());
    let mut bytes = [9; 4];
    vm.space.read(pa(RAM + 0x1_0000 - 4), &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
    assert!(vm.space.read(pa(u64::MAX), &mut bytes).is_err());
    assert!(vm.space.read(pa(0), &mut bytes).is_err());
    vm.space.write(pa(0), &[]).unwrap();
    vm.space.write(pa(DEV + 2), &[1, 2, 3, 4, 5, 6]).unwrap();
    assert_eq!(vm.dev.log(), [(2, B2, 0x0201), (4, B4, 0x0605_0403)]);
    vm.space.read(pa(DEV + 4), &mut bytes).unwrap();
    assert_eq!(bytes, [3, 4, 5, 6]);
}

#[test]
fn a_device_may_write_ram_while_it_is_called() {
    struct Dma(std::sync::Weak<notdirty_softmmu::AddressSpace>);
    impl notdirty_softmmu::MmioDevice for Dma {
        fn read(&self, _: u64, _: MemSize) -> u64 {
            0
        }
        fn write(&self, _: u64, _: MemSize, value: u64) {
            self.0.upgrade().unwrap().write(pa(value), &[0xdd; 64]).unwrap();
        }
    }
    let mut vm = Vm::new();
    let dma = std::sync::Arc::new(Dma(std::sync::Arc::downgrade(&vm.space)));
    vm.space.map_mmio(pa(0x2000_0000), 0x1000, dma, 0).unwrap();
    let _ = vm.mmu.serve(&mut vm.tbs);
    let at = vm.at(0x100);
    vm.tbs.translate(&mut vm.mmu, at, 8);
    assert!(vm.store(0x2000_0000, B8, RAM + 0x100).unwrap().mmio);
    assert!(vm.mmu.port().kicked());
    assert_eq!(vm.mmu.serve(&mut vm.tbs).killed, 1);
    assert_eq!(vm.load(RAM + 0x100, B2), Ok(0xdddd));
}

#[test]
fn a_second_vcpu_is_told_of_new_code_and_its_store_is_told_back() {
    let mut vm = Vm::new();
    let mut other = Live::new(&vm.space, 0);
    let mut no = NoHooks;
    let _ = other.store(&mut no, MmuIdx::M, va(RAM + 0x100), B8, 1).unwrap();
    assert!(other.is_store_fast(va(RAM)));
    let at = vm.at(0x100);
    vm.tbs.translate(&mut vm.mmu, at, 8);
    assert_eq!(other.serve(&mut no).rearmed, 1);
    assert!(!other.is_store_fast(va(RAM)));
    assert!(!vm.mmu.port().kicked(), "the translator arms its own at once");
    let range = PageRange::of_page(vm.page(0));
    assert!(range.contains(vm.page(0)));
    drop(other);
    common::post_all(&vm.space, Request::FlushAll);
    assert_eq!(vm.space.vcpus().all().len(), 1);
}

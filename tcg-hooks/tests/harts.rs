//! Several vCPUs of one address space, step by step: what each must know of the others' stores and of the map, and when.
//! (With real threads: `guests/tests/smp.rs`.)

mod common;

use common::*;
use notdirty_core::raw::RawDirty;
use notdirty_core::{DirtyClient, PageRange, RamBlock, RamBlockSpec, pin};
use notdirty_softmmu::{GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, Harts, RunLimits, Vcpu, VcpuExit};
use std::sync::Arc;
use std::time::{Duration, Instant};

const POKE: u64 = 0x20_0000;
const F: u64 = RAM + 0x2000;

/// A store here is another hart's store to [`F`] that no vCPU is told of, as if it had been on its way.
struct Poke(Arc<RamBlock>);

impl MmioDevice for Poke {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, value: u64) {
        self.0.store_raw(F - RAM, 4, value).unwrap();
    }
}

/// Calls F, has it poked, calls it, does `fence.i`, calls it: results in a0, a1, a2.
fn poked(vm: &Vm) {
    let mut main = Asm::at(RAM);
    main.call(F).i(addi(T2, A0, 0));
    main.la(T0, POKE).i(sw(T1, T0, 0));
    main.call(F).i(addi(A1, A0, 0));
    main.op(Op::FenceI, 0, 0, 0, 0).call(F).i(addi(A2, A0, 0)).i(addi(A0, T2, 0)).stop();
    main.put(vm);
}

/// The machine, and a second vCPU.
fn two() -> (Vm, Vcpu) {
    let vm = Vm::new();
    vm.space.map_mmio(GuestPhys::new(POKE), 0x1000, Arc::new(Poke(vm.block.clone())), 0).unwrap();
    let second = vcpu_on(&vm.space, &Setup::default(), Arc::new(Clock::insns()));
    vm.put(F, &[li(A0, 1), ret()]);
    poked(&vm);
    (vm, second)
}

#[test]
fn a_tb_that_somebody_has_not_answered_for_is_compared_at_fence_i() {
    let (mut vm, mut second) = two();
    // It runs, and is in the middle of something: a store of its may be on its way.
    let _running = second.running();
    for n in 2..10 {
        vm.vcpu.cpu_mut().x[usize::from(T1)] = li(A0, n).into();
        let before = vm.invalidated();
        vm.run(RAM);
        assert_eq!([vm.x(A0), vm.x(A1), vm.x(A2)], [n as u64 - 1, n as u64 - 1, n as u64]);
        assert_eq!(vm.invalidated() - before, 1, "at the fence");
    }
    // Nobody has asked yet, then it answers: after that such a store cannot be, and nothing is compared.
    vm.vcpu.cpu_mut().x[usize::from(T1)] = li(A0, 100).into();
    second.serve();
    vm.run(RAM);
    assert_eq!([vm.x(A0), vm.x(A1), vm.x(A2)], [9, 9, 9]);
}

#[test]
fn a_tb_dies_when_the_last_answer_is_in_and_its_bytes_are_others() {
    let (mut vm, mut second) = two();
    let _running = second.running();
    let mut main = Asm::at(RAM);
    main.call(F).stop();
    main.put(&vm);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 1);
    // Stored before it answers, and not told.
    vm.block.store_raw(F - RAM, 4, li(A0, 2).into()).unwrap();
    second.serve();
    vm.run(RAM);
    assert_eq!(vm.x(A0), 2);
}

#[test]
fn a_vcpu_that_is_parked_has_answered() {
    let (vm, mut second) = two();
    let page = [PageRange::of_page(vm.page(F))];
    assert!(vm.space.ram().rearm(&page, Some(Duration::ZERO)).is_ok(), "no vCPU runs");
    let running = second.running();
    assert!(vm.space.ram().rearm(&page, Some(Duration::ZERO)).is_err());
    drop(running);
    assert!(vm.space.ram().rearm(&page, Some(Duration::ZERO)).is_ok());
}

#[test]
fn the_lines_of_one_vcpu_stay_when_another_drops_its_own_or_goes() {
    let (mut vm, mut second) = two();
    let mut main = Asm::at(RAM);
    main.call(F).stop();
    main.put(&vm);
    vm.run(RAM);
    // The second one stops at its limit, in emitted code's own time: it has translated F too.
    let run = |vm: &Vm, second: &mut Vcpu| {
        second.cpu_mut().pc = RAM;
        let limit = second.cpu().retired + 5000;
        second.run(&RunLimits { max_insns: Some(limit), deadline: None });
        // The stop device knows the first one only.
        vm.vcpu.port().take_stop();
        second.cpu().x[usize::from(A0)]
    };
    assert_eq!(run(&vm, &mut second), 1);
    let lines = vm.lines(F);
    assert_ne!(lines, 0);
    // The host writes: both drop what they have, each for itself.
    vm.put(F, &[li(A0, 2)]);
    assert_eq!(second.serve(), 1);
    assert_eq!(vm.lines(F), lines, "the first one's are still there");
    assert!(!vm.no_code(F));
    assert_eq!(vm.vcpu.serve(), 1);
    assert_eq!(vm.lines(F), 0);
    assert!(vm.no_code(F));
    // Both have it again, then one of them goes.
    vm.run(RAM);
    assert_eq!(run(&vm, &mut second), 2);
    drop(second);
    assert_eq!(vm.lines(F), lines);
    vm.put(F, &[li(A0, 3)]);
    assert_eq!(vm.vcpu.serve(), 1);
    assert!(vm.no_code(F));
    vm.vcpu.check_invariants().unwrap();
}

#[test]
fn a_counter_in_the_line_of_another_harts_loop_costs_neither_of_them_anything() {
    let (mut vm, mut second) = two();
    let (hot, cell, rounds) = (RAM + 0x3000, RAM + 0x3030, 1000);
    let mut asm = Asm::at(hot);
    asm.i(addi(A0, A0, 1)).i(addi(T1, T1, -1)).op(Op::Bne, 0, T1, ZERO, -8).stop();
    assert!(asm.here() <= cell);
    asm.put(&vm);
    let mut main = Asm::at(RAM + 0x4000);
    main.la(T0, cell).i(li(T1, rounds));
    let again = main.here();
    main.op(Op::Ld, T2, T0, 0, 0).i(addi(T2, T2, 1)).op(Op::Sd, 0, T0, T2, 0).i(addi(T1, T1, -1));
    let back = again.wrapping_sub(main.here()) as i32;
    main.op(Op::Bne, 0, T1, ZERO, back).stop();
    main.put(&vm);
    let mut turn = |second: &mut Vcpu| {
        second.cpu_mut().pc = hot;
        second.cpu_mut().x[usize::from(T1)] = rounds as u64;
        let limits = RunLimits { max_insns: Some(second.cpu().retired + 5000), deadline: None };
        assert_eq!(second.run(&limits), VcpuExit::InsnLimit);
        vm.vcpu.port().take_stop();
        let before = vm.vcpu.stats().tlb;
        vm.run(main.base);
        let tlb = vm.vcpu.stats().tlb;
        let rust = tlb.code_page + tlb.code_hit - before.code_page - before.code_hit;
        (second.cpu().x[usize::from(A0)], vm.x(T2), rust, second.serve())
    };
    // The first time, an entry that lets the stores through is made.
    let (.., killed) = turn(&mut second);
    assert_eq!(killed, 0);
    for n in 2..5 {
        let (hot, counted, rust, killed) = turn(&mut second);
        assert_eq!((hot, counted, killed), (n * rounds as u64, n * rounds as u64, 0));
        // Rust looks at one now and then, and learns nothing.
        assert!(rust <= 4, "{rust} of {rounds} stores");
    }
    assert_eq!((vm.invalidated(), second.stats().tbs_invalidated), (0, 0));
    // A store to the code itself is heard.
    vm.put(hot, &[addi(A0, A0, 2)]);
    assert_ne!(second.serve(), 0);
}

#[test]
fn a_plug_kills_nothing_and_an_unplug_what_was_there() {
    let mut vm = Vm::new();
    vm.vcpu.set_checking(true);
    let (window, far) = (0x9000_0000u64, 0xa000_0000u64);
    let block = vm.list.add(RamBlockSpec::new("dimm", 0x3000)).unwrap();
    let map = |vm: &Vm, at: u64, off: u64, len: u64| vm.space.map_ram(GuestPhys::new(at), &block, off, len, 0).unwrap();
    let first = map(&vm, window, 0, 0x1000);
    let second = map(&vm, window + 0x1000, 0x1000, 0x1000);
    let alias = map(&vm, far, 0, 0x2000);
    // A function over the border of two mappings, one before it, and one of the program's own.
    vm.put(window + 0xffc, &[addi(A0, A0, 1), ret()]);
    vm.put(window + 0x100, &[addi(A0, A0, 2), ret()]);
    vm.put(F, &[addi(A0, A0, 4), ret()]);
    let mut main = Asm::at(RAM);
    main.i(li(A0, 0)).call(F);
    for at in [window + 0xffc, window + 0x100, far + 0x100] {
        main.op(Op::Lui, T0, 0, 0, (at & !0xfff) as u32 as i32).op(Op::Slli, T0, T0, 0, 32).op(Op::Srli, T0, T0, 0, 32);
        main.op(Op::Addi, T0, T0, 0, (at & 0xfff) as i32 - if at & 0x800 != 0 { 0x1000 } else { 0 });
        if at & 0x800 != 0 {
            main.op(Op::Lui, T1, 0, 0, 0x1000).op(Op::Add, T0, T0, T1, 0);
        }
        main.op(Op::Jalr, RA, T0, 0, 0);
    }
    main.stop();
    main.put(&vm);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 4 + 1 + 2 + 2);
    let counts = |vm: &Vm| (vm.vcpu.stats().tbs_translated, vm.vcpu.stats().tbs_evicted);
    let before = counts(&vm);
    // More RAM, elsewhere: nothing is translated anew.
    map(&vm, 0xb000_0000, 0x2000, 0x1000);
    vm.run(RAM);
    assert_eq!(counts(&vm), before);
    // The second page goes: what reached into it dies, though it began before. Now it ends in a fault, so the code is
    // changed to stay on its page; the rest is not translated anew.
    vm.space.unmap(second).unwrap();
    let _ = vm.vcpu.serve();
    assert_eq!(counts(&vm).1 - before.1, 1);
    vm.put(window + 0xffc, &[encode_ret_after_one()]);
    let translated = counts(&vm).0;
    vm.vcpu.cpu_mut().pc = RAM;
    // The first page goes too; the alias of the same RAM keeps its own.
    vm.space.unmap(first).unwrap();
    let _ = vm.vcpu.serve();
    assert_eq!(counts(&vm), (translated, before.1 + 2));
    let mut main = Asm::at(RAM);
    main.i(li(A0, 0)).call(F);
    main.op(Op::Lui, T0, 0, 0, far as u32 as i32).op(Op::Slli, T0, T0, 0, 32).op(Op::Srli, T0, T0, 0, 32);
    main.op(Op::Jalr, RA, T0, 0, 0x100).stop();
    main.put(&vm);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 4 + 2);
    vm.space.unmap(alias).unwrap();
    let _ = vm.vcpu.serve();
    assert_eq!(counts(&vm).1, before.1 + 3);
    vm.vcpu.check_invariants().unwrap();
}

/// `c.addi a0, 1 ; c.jr ra` in one word.
fn encode_ret_after_one() -> u32 {
    0x8082_0505
}

#[test]
fn harts_end_together_and_one_that_waits_for_the_other_has_not_hung() {
    let vm = Vm::new();
    // Hart 1 sleeps for ever; hart 0 counts to its limit.
    let mut main = Asm::at(RAM);
    main.op(Op::Bne, 0, A0, ZERO, 12).i(addi(A1, A1, 1)).op(Op::Jal, 0, 0, 0, -4);
    main.op(Op::Wfi, 0, 0, 0, 0).op(Op::Jal, 0, 0, 0, -4);
    main.put(&vm);
    let harts = Arc::new(Harts::default());
    let clock = Arc::new(Clock::host());
    let mut vcpus = [(); 2].map(|()| vcpu_on(&vm.space, &Setup::default(), clock.clone()));
    vcpus.iter_mut().for_each(|vcpu| vcpu.join(&harts));
    vcpus[1].cpu_mut().x[usize::from(A0)] = 1;
    for n in 1..5 {
        harts.start();
        let limits =
            RunLimits { max_insns: Some(n * 3_000_000), deadline: Some(Instant::now() + Duration::from_secs(60)) };
        std::thread::scope(|scope| {
            for vcpu in &mut vcpus {
                scope.spawn(|| harts.run(vcpu, &limits));
            }
        });
        assert_eq!(harts.first_exit(), VcpuExit::InsnLimit);
        assert_eq!(vcpus[0].cpu().retired, n * 3_000_000);
    }
}

#[test]
fn a_hart_whose_handler_traps_serves_before_it_tries_again() {
    const HANDLER: u64 = RAM + 0x3000;
    const DATA: u64 = RAM + 0x8000;
    let mut taken_in_its_sleep = 0;
    for _ in 0..40 {
        let mut vm = Vm::with(&Setup { engine: EngineKind::Interp, ..Setup::default() });
        // Never runs, but might, and write the handler.
        let mut other = vcpu_on(&vm.space, &Setup::default(), Arc::new(Clock::insns()));
        // Its second store to the page is a fast one; then it traps into itself.
        let mut main = Asm::at(RAM);
        main.la(T0, DATA).i(sw(ZERO, T0, 0)).i(sw(ZERO, T0, 0)).i(li(A1, 7));
        main.la(T1, HANDLER).op(Op::Csrrw, 0, T1, 0, 0x305).jump(HANDLER).put(&vm);
        vm.put(HANDLER, &[0, jal(ZERO, HANDLER + 4, HANDLER + 4)]);
        let harts = Arc::new(Harts::default());
        vm.vcpu.join(&harts);
        other.join(&harts);
        harts.start();
        let (space, block, data) = (vm.space.clone(), vm.block.clone(), DATA - RAM);
        let (page, handler) = (vm.page(DATA), vm.page(HANDLER));
        let port = vm.vcpu.port().clone();
        let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(20)) };
        vm.vcpu.cpu_mut().pc = RAM;
        std::thread::scope(|scope| {
            scope.spawn(|| harts.run(&mut vm.vcpu, &limits));
            let until = Instant::now() + Duration::from_secs(10);
            let asleep = || space.ram().rearm(&[PageRange::of_page(handler)], Some(Duration::ZERO)).is_ok();
            let in_handler = Instant::now() + Duration::from_millis(5);
            while (Instant::now() < in_handler || !asleep()) && Instant::now() < until {
                std::thread::yield_now();
            }
            // What sleeps counts as re-armed; what woke up meanwhile has to answer first, or may store unheard.
            let was = space.ram().dirty().test_and_clear(page, DirtyClient::MIGRATION, &pin());
            assert!(was);
            let rearm = |timeout| space.ram().rearm(&[PageRange::of_page(page)], Some(timeout)).is_ok();
            let armed = rearm(Duration::ZERO);
            let answered = armed || rearm(Duration::from_secs(10));
            let copy = block.load(data, 4).unwrap();
            space.write(GuestPhys::new(HANDLER), &bytes(&[sw(A1, T0, 0)])).unwrap();
            while block.load(data, 4).unwrap() == 0 && Instant::now() < until {
                std::thread::yield_now();
            }
            port.request_stop();
            taken_in_its_sleep += u32::from(armed && copy == 0);
            assert!(answered, "it hears nothing");
        });
        assert_eq!(block.load(data, 4).unwrap(), 7);
        assert!(space.ram().dirty().test(page, DirtyClient::MIGRATION, &pin()), "a store that was not marked");
    }
    assert!(taken_in_its_sleep > 0, "it was never asleep");
}

#[test]
fn harts_that_are_started_while_they_run_end_all_the_same() {
    let vm = Vm::new();
    let mut main = Asm::at(RAM);
    main.op(Op::Wfi, 0, 0, 0, 0).op(Op::Jal, 0, 0, 0, -4);
    main.put(&vm);
    let harts = Arc::new(Harts::default());
    let mut vcpus = [(); 2].map(|()| vcpu_on(&vm.space, &Setup::default(), Arc::new(Clock::host())));
    vcpus.iter_mut().for_each(|vcpu| vcpu.join(&harts));
    let [asleep, _] = &mut vcpus;
    let port = asleep.port().clone();
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(20)) };
    harts.start();
    std::thread::scope(|scope| {
        scope.spawn(|| harts.run(asleep, &limits));
        let nothing = [PageRange::of_page(vm.page(RAM))];
        while vm.space.ram().rearm(&nothing, Some(Duration::ZERO)).is_err() || !port.kicked() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        harts.start();
        port.request_stop();
    });
    assert_eq!(harts.first_exit(), VcpuExit::Stopped);
}

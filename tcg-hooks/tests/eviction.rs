//! A code cache that is far too small: which TBs die for room, and that all stays right (CODE-1, CODE-2).

mod common;

use common::*;
use notdirty_softmmu::{GuestPhys, lines_of};
use notdirty_tcg::RunLimits;
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use std::sync::Arc;

#[test]
fn a_cache_that_is_too_small_evicts_and_stays_right() {
    // Hundreds of pages of eight functions each, called in random order, again and again.
    let mut vm = Vm::with(&Setup { cache: 1, ram: 0x40_0000, ..Setup::default() });
    let function = |page: u64, n: u64| RAM + 0x8000 + page * 0x1000 + n * 0x200;
    const PAGES: u64 = 500;
    for page in 0..PAGES {
        for n in 0..8 {
            let mut asm = Asm::at(function(page, n));
            for k in 0..125 {
                asm.op(if k % 2 == 0 { Op::Add } else { Op::Xor }, A0, A0, [T0, T1, T2, A1][k % 4], 0);
            }
            asm.word(A0, (page * 8 + n) as u32).i(ret());
            asm.put(&vm);
        }
    }
    let mut main = Asm::at(RAM);
    main.op(Op::Jalr, RA, T5, 0, 0).stop();
    main.put(&vm);
    let mut rng = notdirty_tcg::testkit::Rng::new(7);
    let mut calls = 0;
    while vm.vcpu.stats().tbs_evicted < 6000 && calls < 100_000 {
        let (page, n) = (rng.below(PAGES), rng.below(8));
        let at = function(page, n);
        vm.vcpu.cpu_mut().x[usize::from(T5)] = at;
        vm.run(RAM);
        assert_eq!(vm.x(A0), page * 8 + n);
        calls += 1;
        // CODE-1: what can run is heard of.
        let lines = lines_of(at % 4096, 512);
        assert_eq!(vm.lines(at) & lines, lines, "call {calls} of {at:#x}");
        assert!(!vm.no_code(at), "call {calls} of {at:#x}");
    }
    let stats = vm.vcpu.stats();
    assert!(stats.tbs_evicted >= 6000, "{stats:?}");
    assert_eq!(stats.tbs_invalidated, 0);
    let alive = stats.tbs_translated - stats.tbs_evicted;
    assert!(alive < 4000, "{alive} TBs in two megabytes");
}

#[test]
fn a_store_is_heard_by_code_that_was_translated_while_the_cache_was_full() {
    // As above, but each function is patched by the guest right after it ran.
    let mut vm = Vm::with(&Setup { cache: 1, ram: 0x40_0000, ..Setup::default() });
    const PAGES: u64 = 500;
    let function = |page: u64, n: u64| RAM + 0x8000 + page * 0x1000 + n * 0x200;
    for page in 0..PAGES {
        for n in 0..8 {
            let mut asm = Asm::at(function(page, n));
            asm.i(li(A0, 0));
            for k in 0..126 {
                asm.op(if k % 2 == 0 { Op::Add } else { Op::Xor }, A1, A1, [T0, T1, T2, A1][k % 4], 0);
            }
            asm.i(ret());
            asm.put(&vm);
        }
    }
    // Call it, write t1 over its first instruction, call it again.
    let mut main = Asm::at(RAM);
    main.op(Op::Jalr, RA, T5, 0, 0).op(Op::Addi, A2, A0, 0, 0).i(sw(T1, T5, 0)).op(Op::Jalr, RA, T5, 0, 0).stop();
    main.put(&vm);
    let mut rng = notdirty_tcg::testkit::Rng::new(11);
    let mut now = vec![0u64; 8 * PAGES as usize];
    let mut calls = 0;
    while vm.vcpu.stats().tbs_evicted < 3000 && calls < 60_000 {
        let (page, n) = (rng.below(PAGES), rng.below(8));
        calls += 1;
        let value = calls % 2000;
        let x = &mut vm.vcpu.cpu_mut().x;
        (x[usize::from(T5)], x[usize::from(T1)]) = (function(page, n), li(A0, value as i32).into());
        vm.run(RAM);
        let slot = &mut now[(page * 8 + n) as usize];
        assert_eq!((vm.x(A2), vm.x(A0)), (*slot, value), "call {calls} of {page}/{n}");
        *slot = value;
    }
    assert!(vm.vcpu.stats().tbs_evicted >= 3000, "{:?}", vm.vcpu.stats());
}

#[test]
fn returns_into_evicted_callers_are_right() {
    // A chain of calls longer than the cache, then all the way back (CODE-2).
    let mut vm = Vm::with(&Setup { cache: 1, ram: 0x40_0000, ..Setup::default() });
    const DEPTH: u64 = 2500;
    let function = |n: u64| RAM + 0x1_0000 + n * 0x400;
    for n in 0..DEPTH {
        let mut asm = Asm::at(function(n));
        asm.op(Op::Addi, SP, SP, 0, -16).op(Op::Sd, 0, SP, RA, 0);
        for k in 0..110 {
            asm.op(Op::Add, A1, A1, [T0, T1, T2, A1][k % 4], 0);
        }
        if n + 1 < DEPTH {
            asm.call(function(n + 1));
        }
        asm.i(addi(A0, A0, 1));
        for k in 0..110 {
            asm.op(Op::Xor, A1, A1, [T0, T1, T2, A1][k % 4], 0);
        }
        asm.op(Op::Ld, RA, SP, 0, 0).op(Op::Addi, SP, SP, 0, 16).i(ret());
        asm.put(&vm);
    }
    let mut main = Asm::at(RAM);
    main.la(SP, RAM + 0x1_0000).i(li(A0, 0)).call(function(0)).stop();
    main.put(&vm);
    for _ in 0..3 {
        vm.run(RAM);
        assert_eq!(vm.x(A0), DEPTH);
    }
    let stats = vm.vcpu.stats();
    assert!(stats.tbs_evicted > DEPTH, "{stats:?}");
}

/// Two harts call functions that do not fit into the code cache of either. Each patches its own half of them, and calls all.
#[test]
fn two_harts_that_evict_and_patch_what_the_other_runs_find_their_own_patches() {
    const FUNCTIONS: u64 = 4096;
    const TURNS: u32 = 40_000;
    let setup = Setup { cache: 1, ram: 0x40_0000, ..Setup::default() };
    let mut vm = Vm::with(&setup);
    let (first, table) = (RAM + 0x10_0000, RAM + 0x8000);
    for n in 0..FUNCTIONS {
        let mut asm = Asm::at(first + n * 512);
        asm.i(li(A0, 0));
        for k in 0..126 {
            asm.op(if k % 2 == 0 { Op::Add } else { Op::Xor }, A1, A1, [T0, T1, T2, A1][k % 4], 0);
        }
        asm.i(ret()).put(&vm);
    }
    let program = |hart: u64| {
        let mut asm = Asm::at(RAM + 0x1000 * hart);
        asm.la(T0, first).la(T1, table).word(S2, TURNS).i(li(S4, 0)).word(S3, 0x1995_1405).i(li(A4, hart as i32));
        asm.i(li(S0, 5 + hart as i32));
        let again = asm.here();
        asm.op(Op::Mul, S0, S0, S3, 0).i(addi(S0, S0, 77));
        asm.op(Op::Srli, T2, S0, 0, 40).op(Op::Slli, T2, T2, 0, 52).op(Op::Srli, T2, T2, 0, 52);
        asm.op(Op::Slli, T3, T2, 0, 9).op(Op::Add, T3, T3, T0, 0).op(Op::Jalr, RA, T3, 0, 0);
        // The other's: what it is now, nothing tells.
        asm.op(Op::Andi, T4, T2, 0, 1).op(Op::Bne, 0, T4, A4, 4 * 15);
        asm.op(Op::Slli, T5, T2, 0, 3).op(Op::Add, T5, T5, T1, 0).op(Op::Ld, T6, T5, 0, 0);
        asm.op(Op::Sub, T6, T6, A0, 0).op(Op::Sltu, T6, ZERO, T6, 0).op(Op::Add, S4, S4, T6, 0);
        asm.op(Op::Srli, T6, S0, 0, 20).op(Op::Andi, T6, T6, 0, 3).op(Op::Bne, 0, T6, ZERO, 4 * 6);
        asm.op(Op::Andi, A2, S2, 0, 1023).op(Op::Slli, A3, A2, 0, 20).i(addi(A3, A3, 0x513));
        asm.i(sw(A3, T3, 0)).op(Op::Sd, 0, T5, A2, 0);
        asm.i(addi(S2, S2, -1));
        let back = (again as i64 - asm.here() as i64) as i32;
        asm.op(Op::Bne, 0, S2, ZERO, back);
        let end = jal(ZERO, 0, 0);
        asm.i(end);
        asm
    };
    let mut second = vcpu_on(&vm.space, &setup, Arc::new(Clock::insns()));
    for (hart, vcpu) in [&mut vm.vcpu, &mut second].into_iter().enumerate() {
        let asm = program(hart as u64);
        vm.space.write(GuestPhys::new(asm.base), &bytes(&asm.code)).unwrap();
        vcpu.cpu_mut().pc = asm.base;
    }
    let limits = RunLimits { max_insns: Some(u64::from(TURNS) * 160), ..RunLimits::default() };
    std::thread::scope(|scope| {
        let vcpus = [&mut vm.vcpu, &mut second];
        for vcpu in vcpus {
            let limits = &limits;
            scope.spawn(move || vcpu.run(limits));
        }
    });
    for vcpu in [&vm.vcpu, &second] {
        let (x, stats) = (&vcpu.cpu().x, vcpu.stats());
        assert_eq!((x[usize::from(S2)], x[usize::from(S4)]), (0, 0), "at {:#x}", vcpu.cpu().pc);
        assert!(stats.tbs_evicted > 300 && stats.tbs_invalidated > 300, "{stats:?}");
    }
}

//! Tier 2: which code it gets, that it is exact where it leaves, and that it dies as any other.

mod common;

use common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits};

const CODE: u64 = RAM + 0x1000;
const TURNS: u32 = 400_000;
/// Of no pinned register.
const COUNT: u8 = 31;

/// A rotation by two shifts, the second over its source or not, in the middle of what depends on its turn.
fn mix(asm: &mut Asm) -> u64 {
    asm.word(COUNT, TURNS).word(5, 0x1234_5678).word(6, 77).word(7, 0);
    let again = asm.here();
    asm.op(Op::Srliw, 28, 5, 0, 7).op(Op::Slliw, 29, 5, 0, 25).op(Op::Or, 28, 28, 29, 0);
    asm.op(Op::Addw, 6, 6, 28, 0).op(Op::Srliw, 28, 6, 0, 9).op(Op::Slliw, 6, 6, 0, 23).op(Op::Or, 6, 6, 28, 0);
    asm.op(Op::Mulw, 5, 5, 6, 0).op(Op::Add, 7, 7, 5, 0).op(Op::Xor, 30, 7, 6, 0);
    asm.i(addi(COUNT, COUNT, -1));
    asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
    again
}

fn run_of(setup: &Setup) -> Vm {
    let mut vm = Vm::with(setup);
    let mut asm = Asm::at(CODE);
    mix(&mut asm);
    asm.put(&vm);
    vm.run(CODE);
    vm
}

#[test]
fn a_loop_that_runs_for_long_is_made_again_once_and_ends_as_on_the_oracle() {
    let oracle = run_of(&Setup { engine: EngineKind::Interp, ..Setup::default() });
    let ours = run_of(&Setup::default());
    assert_eq!((ours.vcpu.cpu().x, ours.vcpu.cpu().retired), (oracle.vcpu.cpu().x, oracle.vcpu.cpu().retired));
    let tb = ours.vcpu.stats().tb;
    assert!((1..=2).contains(&tb.tier2), "{} by tier 2", tb.tier2);
    assert!(tb.translated <= 6, "{}", tb.translated);
    let mut flags = JitFlags::default();
    assert!(flags.set("tier2", false));
    let without = run_of(&Setup { flags, ..Setup::default() });
    assert_eq!(without.vcpu.cpu().x, oracle.vcpu.cpu().x);
    assert_eq!(without.vcpu.stats().tb.tier2, 0);
}

#[test]
fn what_ends_soon_is_not_made_again() {
    let mut vm = Vm::with(&Setup::default());
    let mut asm = Asm::at(CODE);
    mix(&mut asm);
    asm.put(&vm);
    vm.vcpu.cpu_mut().pc = CODE;
    vm.vcpu.run(&RunLimits { max_insns: Some(100_000), ..RunLimits::default() });
    assert_eq!(vm.vcpu.stats().tb.tier2, 0);
}

/// At every instruction of the loop the registers are the oracle's, whatever is in which host register.
#[test]
fn every_exact_stop_in_it_shows_every_register() {
    let setup = |engine| Setup { engine, ..Setup::default() };
    let (mut ours, mut oracle) = (Vm::with(&setup(EngineKind::Jit)), Vm::with(&setup(EngineKind::Interp)));
    for vm in [&mut ours, &mut oracle] {
        let mut asm = Asm::at(CODE);
        mix(&mut asm);
        asm.put(vm);
        vm.vcpu.cpu_mut().pc = CODE;
    }
    let mut at = 1_500_000;
    for n in 0..60 {
        for vm in [&mut ours, &mut oracle] {
            vm.vcpu.run(&RunLimits { max_insns: Some(at), ..RunLimits::default() });
        }
        let (a, b) = (ours.vcpu.cpu(), oracle.vcpu.cpu());
        assert_eq!((a.pc, a.x, a.retired), (b.pc, b.x, b.retired), "stop {n}");
        at += 2_003;
    }
    assert_ne!(ours.vcpu.stats().tb.tier2, 0);
}

#[test]
fn a_store_into_it_is_heard_and_what_is_there_then_runs() {
    let mut vm = Vm::with(&Setup::default());
    let mut asm = Asm::at(CODE);
    let again = mix(&mut asm);
    asm.put(&vm);
    vm.vcpu.cpu_mut().pc = CODE;
    vm.vcpu.run(&RunLimits { max_insns: Some(2_000_000), ..RunLimits::default() });
    assert_ne!(vm.vcpu.stats().tb.tier2, 0);
    let killed = vm.vcpu.stats().tbs_invalidated;
    // The loop's head ends the run instead.
    let mut end = Asm::at(again);
    end.word(7, 0x5eed).stop();
    end.put(&vm);
    vm.vcpu.run(&RunLimits { max_insns: Some(3_000_000), ..RunLimits::default() });
    assert_eq!(vm.vcpu.cpu().x[7], 0x5eed);
    assert!(vm.vcpu.stats().tbs_invalidated > killed);
}

/// Each block is one load of a float, that switches the unit on, and boxes: as many places in values' lives as there can be.
#[test]
fn a_region_of_the_most_blocks_and_ops_is_translated() {
    let run = |engine| {
        let flags = JitFlags { samples: false, ..eager() };
        let mut vm = Vm::with(&Setup { engine, flags, ..Setup::default() });
        let mut asm = Asm::at(CODE);
        asm.la(A0, RAM + 0x6_0000);
        for n in 0..84 {
            // To the second load behind it, which the first leads to.
            asm.op(Op::Flw, n % 32, A0, 0, 0).op(Op::Flw, 31 - n % 32, A0, 0, 4);
            asm.op(Op::Bne, 0, A0, if n % 3 == 0 { 0 } else { A0 }, 8);
        }
        asm.i(addi(0, 0, 0)).i(addi(0, 0, 0)).stop();
        asm.put(&vm);
        vm.vcpu.cpu_mut().csr.mstatus |= 0x6000;
        vm.run(CODE);
        (vm.vcpu.cpu().x, vm.vcpu.cpu().f, vm.vcpu.cpu().retired)
    };
    assert!(run(EngineKind::Jit) == run(EngineKind::Interp));
}

/// What a loop with calls reads and counts lies at constant addresses on one page, where code lies as well, if it is `beside`.
fn counters(setup: &Setup, beside: bool) -> Vm {
    let mut vm = Vm::with(setup);
    let mut asm = Asm::at(CODE);
    let at = |n: u64| if beside { CODE + 0x800 + 8 * n } else { CODE + 0x3000 + 8 * n };
    asm.word(COUNT, 200_000).word(5, 1);
    let again = asm.here();
    for n in 0..6 {
        // Some turns leave each of them alone.
        asm.op(Op::Andi, 28, COUNT, 0, 1 << n).op(Op::Bne, 0, 28, ZERO, 24);
        asm.la(29, at(n)).op(Op::Ld, 30, 29, 0, 0).op(Op::Add, 30, 30, 5, 0).op(Op::Sd, 0, 29, 30, 0);
    }
    asm.i(addi(COUNT, COUNT, -1));
    asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
    asm.put(&vm);
    vm.run(CODE);
    vm
}

/// A store beside code has no entry that a check could find, so each check fails, until the TB is made without it.
#[test]
fn a_region_whose_checks_at_the_entry_never_hold_is_made_without_them() {
    for beside in [false, true] {
        let oracle = counters(&Setup { engine: EngineKind::Interp, ..Setup::default() }, beside);
        let flags = JitFlags { samples: false, ..eager() };
        let ours = counters(&Setup { flags, ..Setup::default() }, beside);
        let (a, b) = (ours.vcpu.cpu(), oracle.vcpu.cpu());
        assert_eq!((a.x, a.retired), (b.x, b.retired));
        let stats = ours.vcpu.stats();
        // What is refused, tier 0 runs, up to a jump.
        assert!(stats.tier0 < 5_000, "{} instructions by tier 0", stats.tier0);
        assert!(stats.tier0 > if beside { 16 } else { 0 }, "nothing was refused");
    }
}

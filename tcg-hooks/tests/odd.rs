//! Misaligned accesses: a site that has many of them is emitted again to let them through, and once.

mod common;

use common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, VcpuStats};

const DATA: u64 = RAM + 0x6_0000;
const COUNT: u8 = 9;

/// Runs `body` again and again, with a0 at `at`, on both engines; what the JIT counted.
fn looped(body: impl Fn(&mut Asm), at: u64, turns: u32) -> VcpuStats {
    let run = |engine| {
        let mut vm = Vm::with(&Setup { engine, ..Setup::default() });
        let mut asm = Asm::at(RAM + 0x1000);
        asm.la(A0, at).word(COUNT, turns);
        let again = asm.here();
        body(&mut asm);
        asm.i(addi(COUNT, COUNT, -1));
        asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
        asm.put(&vm);
        vm.run(RAM + 0x1000);
        let mut memory = [0; 0x3000];
        vm.space.read(notdirty_softmmu::GuestPhys::new(DATA), &mut memory).unwrap();
        (vm.vcpu.cpu().x, memory, vm.vcpu.stats())
    };
    let (ours, exact) = (run(EngineKind::Jit), run(EngineKind::Interp));
    assert_eq!(ours.0, exact.0);
    assert!(ours.1 == exact.1, "memory differs");
    ours.2
}

#[test]
fn a_site_that_is_misaligned_again_and_again_is_emitted_for_it_once() {
    let stats = looped(
        |asm| {
            asm.op(Op::Ld, A1, A0, 0, 3).i(addi(A1, A1, 7)).op(Op::Sd, 0, A0, A1, 3);
        },
        DATA,
        100_000,
    );
    assert_eq!(stats.tb.odd, 1);
    assert!(stats.tlb.misaligned < 100, "{} went the slow way", stats.tlb.misaligned);
    assert!(stats.tier0 < 1000, "{} instructions of a hot loop in tier 0", stats.tier0);
    assert!(stats.tbs_translated <= 5, "{}", stats.tbs_translated);
}

#[test]
fn many_sites_of_one_region_that_are_misaligned_are_emitted_for_it_together() {
    let stats = looped(
        |asm| {
            for n in 0..80 {
                // Each off a base of its own, so that none shares a check.
                asm.i(addi(A2, A0, n)).op(Op::Lw, A1, A2, 0, 1).op(Op::Sw, 0, A2, A1, 0x401);
            }
        },
        DATA,
        1000,
    );
    assert!((1..=3).contains(&stats.tb.odd), "{} times", stats.tb.odd);
    assert!(stats.tlb.misaligned < 3000, "{} went the slow way", stats.tlb.misaligned);
}

#[test]
fn an_access_over_two_pages_asks_for_no_other_probe() {
    let stats = looped(
        |asm| {
            asm.op(Op::Ld, A1, A0, 0, -3).i(addi(A1, A1, 7)).op(Op::Sd, 0, A0, A1, -3);
        },
        DATA + 0x1000,
        1000,
    );
    assert_eq!(stats.tb.odd, 0);
}

#[test]
fn an_aligned_access_beside_misaligned_ones_is_emitted_as_before() {
    // The first turns are aligned, then every other is.
    let stats = looped(
        |asm| {
            asm.op(Op::Andi, A2, COUNT, 0, 1).op(Op::Add, A2, A2, A0, 0);
            asm.op(Op::Lw, A1, A2, 0, 0).op(Op::Sw, 0, A0, A1, 0x40);
        },
        DATA,
        10_000,
    );
    assert_eq!(stats.tb.odd, 1);
    assert!(stats.tlb.misaligned < 100, "{} went the slow way", stats.tlb.misaligned);
}

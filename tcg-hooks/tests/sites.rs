//! What is learned of a site: one that is often misaligned, or often stores beside code, is emitted again for it,
//! and once.

mod common;

use common::*;
use notdirty_core::{DirtyClient, RamBlockSpec};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, JitFlags, VcpuStats};

const DATA: u64 = RAM + 0x6_0000;
const COUNT: u8 = 9;

/// Runs `body` again and again, with a0 at `at`, on both engines; what the JIT counted.
fn looped(body: impl Fn(&mut Asm), at: u64, turns: u32) -> VcpuStats {
    looped_from(RAM + 0x1000, |_| (), body, at, turns)
}

/// RAM with another addend than the one that is assumed of all.
const DIMM: u64 = 0xb000_0000;

/// Pages of it, shown in no order: of the first two only is the addend the same.
const SHUFFLED: u64 = DIMM + 0x1_0000;
const SHOWN: [u64; 6] = [4, 5, 0, 3, 2, 1];

/// The same of code that lies at `code`, behind what is done once.
fn looped_from(code: u64, once: impl Fn(&mut Asm), body: impl Fn(&mut Asm), at: u64, turns: u32) -> VcpuStats {
    looped_with(Setup::default().flags, code, once, body, at, turns)
}

fn looped_with(
    flags: JitFlags,
    code: u64,
    once: impl Fn(&mut Asm),
    body: impl Fn(&mut Asm),
    at: u64,
    turns: u32,
) -> VcpuStats {
    let run = |engine| {
        let mut vm = Vm::with(&Setup { engine, flags, ..Setup::default() });
        let dimm = vm.list.add(RamBlockSpec::new("dimm", 0x6000)).unwrap();
        vm.space.map_ram(GuestPhys::new(DIMM), &dimm, 0, 0x6000, 0).unwrap();
        for (n, page) in (0..).zip(SHOWN) {
            vm.space.map_ram(GuestPhys::new(SHUFFLED + n * 0x1000), &dimm, page * 0x1000, 0x1000, 0).unwrap();
        }
        let mut asm = Asm::at(code);
        asm.la(A0, at).word(COUNT, turns);
        once(&mut asm);
        let again = asm.here();
        body(&mut asm);
        asm.i(addi(COUNT, COUNT, -1));
        asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
        asm.put(&vm);
        vm.run(code);
        let mut memory = [[0; 0x6000]; 2];
        vm.space.read(GuestPhys::new(DATA), &mut memory[0]).unwrap();
        vm.space.read(GuestPhys::new(DIMM), &mut memory[1]).unwrap();
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
fn a_site_that_was_emitted_for_it_stays_though_rust_sees_it_misaligned_still() {
    let mut vm = Vm::new();
    let log = vm.list.log(DirtyClient::MIGRATION).start().unwrap();
    let mut asm = Asm::at(RAM + 0x1000);
    asm.la(A0, DATA).word(COUNT, 100);
    let again = asm.here();
    asm.op(Op::Sd, 0, A0, COUNT, 3).i(addi(COUNT, COUNT, -1));
    asm.op(Op::Bne, 0, COUNT, 0, (again as i64 - asm.here() as i64) as i32).stop();
    asm.put(&vm);
    // Each time the first store asks Rust to note its page, however its site was emitted.
    for _ in 0..100 {
        vm.run(RAM + 0x1000);
        _ = log.sync(None).unwrap().commit();
    }
    let stats = vm.vcpu.stats();
    assert_eq!(stats.tb.odd, 1);
    assert!(stats.tlb.misaligned >= 100, "{}", stats.tlb.misaligned);
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
    // The first turns are aligned, then every other is. A load that looks for no entry is none of these.
    let stats = looped_with(
        JitFlags { whole: false, ..Setup::default().flags },
        RAM + 0x1000,
        |_| (),
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

/// On the page of the code, in another line.
const BESIDE: u64 = RAM + 0x1800;

#[test]
fn a_store_that_lies_beside_code_again_and_again_is_emitted_to_test_its_line_once() {
    for (op, load) in [(Op::Sb, Op::Lb), (Op::Sh, Op::Lhu), (Op::Sw, Op::Lw), (Op::Sd, Op::Ld)] {
        let stats = looped(
            |asm| {
                asm.op(load, A1, A0, 0, 8).i(addi(A1, A1, 7)).op(op, 0, A0, A1, 8);
            },
            BESIDE,
            100_000,
        );
        assert_eq!(stats.tb.beside, 1, "{op:?}");
        assert!(stats.tier0 < 1000, "{op:?}: {} instructions of a hot loop in tier 0", stats.tier0);
        assert!(stats.tbs_translated <= 5, "{op:?}: {}", stats.tbs_translated);
        assert_eq!(stats.tbs_invalidated, 0, "{op:?}");
    }
}

#[test]
fn stores_beside_code_are_learned_one_by_one_and_their_neighbours_stay_as_they_were() {
    let stats = looped(
        |asm| {
            let (apart, base) = (13, 14);
            asm.la(apart, DATA);
            for n in 0..10 {
                // Each off a base of its own, so that none shares a check.
                asm.i(addi(A2, A0, 16 * n)).op(Op::Sd, 0, A2, COUNT, 0);
                asm.i(addi(base, apart, 16 * n)).op(Op::Sd, 0, base, COUNT, 0);
            }
        },
        BESIDE,
        10_000,
    );
    assert!((1..=10).contains(&stats.tb.beside), "{} times", stats.tb.beside);
    // Once for each, and a few for how hot it is, which a host in use sees later.
    assert!(stats.tbs_translated <= 20, "{}", stats.tbs_translated);
}

#[test]
fn a_store_that_hits_code_is_heard_though_its_site_was_learned() {
    const BASE: u8 = 13;
    const WORD: u8 = 14;
    const MASK: u8 = 15;
    let stats = looped(
        |asm| {
            // What is stored is an instruction that adds another number each 1,024 turns.
            asm.op(Op::Srli, A2, COUNT, 0, 10).op(Op::Andi, A2, A2, 0, 7).op(Op::Slli, A2, A2, 0, 20);
            asm.word(WORD, addi(A1, A1, 1)).op(Op::Add, WORD, WORD, A2, 0);
            // Mostly it is stored beside the code; once in 1,024 turns on the instruction below.
            asm.op(Op::Andi, MASK, COUNT, 0, 0x3ff).op(Op::Sltiu, MASK, MASK, 0, 1).op(Op::Sub, MASK, 0, MASK, 0);
            let patched = asm.here() + 6 * 4;
            asm.la(BASE, patched).op(Op::Sub, BASE, BASE, A0, 0).op(Op::And, BASE, BASE, MASK, 0);
            asm.op(Op::Add, BASE, BASE, A0, 0).op(Op::Sw, 0, BASE, WORD, 0);
            assert_eq!(asm.here(), patched);
            asm.i(addi(A1, A1, 1));
        },
        BESIDE,
        20_000,
    );
    assert_eq!(stats.tb.beside, 1);
    assert!((15..=25).contains(&stats.tbs_invalidated), "{} times", stats.tbs_invalidated);
}

#[test]
fn accesses_that_are_sampled_as_they_find_another_addend_are_aligned_still() {
    for (store, load) in [(Op::Sb, Op::Lb), (Op::Sh, Op::Lhu), (Op::Sw, Op::Lw), (Op::Sd, Op::Ld)] {
        let stats = looped(
            |asm| {
                asm.op(load, A1, A0, 0, 8).i(addi(A1, A1, 7)).op(store, 0, A0, A1, 8);
            },
            DIMM,
            100_000,
        );
        assert!(stats.tb.elsewhere >= 1, "{store:?}: none was learned");
        assert_eq!(stats.tlb.misaligned, 0, "{store:?}");
        assert!(stats.tier0 < 1000, "{store:?}: {} instructions of a hot loop in tier 0", stats.tier0);
    }
}

#[test]
fn a_store_beside_code_with_another_addend_asks_the_softmmu_seldom_once_its_site_was_learned() {
    let stats = looped_from(
        DIMM + 0x1000,
        |_| (),
        |asm| {
            asm.op(Op::Ld, A1, A0, 0, 0x700).i(addi(A1, A1, 7)).op(Op::Sd, 0, A0, A1, 0x700);
            // On the page of the code, in no line of it.
            asm.op(Op::Ld, A2, A0, 0, -0x800).i(addi(A2, A2, 1)).op(Op::Sd, 0, A0, A2, -0x800);
        },
        DIMM + 0x2000,
        100_000,
    );
    assert!(stats.tb.elsewhere >= 1, "none was learned");
    let asked = stats.tlb.code_page + stats.tlb.notdirty;
    assert!(asked < 5_000, "{asked} stores of 100,000 asked");
}

/// The first of many base registers; each leads to a page of its own, as far as there are as many.
const BASES: u8 = 13;

#[test]
fn each_of_many_checks_keeps_the_addend_of_its_own_pages() {
    let hot = JitFlags { samples: false, ..eager() };
    // Checked ahead of the loop, and more than are; with few accesses in a turn, and with many.
    for (bases, passes) in [(2u8, 1), (3, 1), (6, 1), (12, 3)] {
        let once = |asm: &mut Asm| {
            for n in 0..bases {
                asm.la(BASES + n, SHUFFLED + u64::from(n) % 6 * 0x1000 + 0x100 * u64::from(n));
            }
        };
        let body = |asm: &mut Asm| {
            for pass in 0..passes {
                for base in BASES..BASES + bases {
                    asm.op(Op::Ld, A1, base, 0, 8 * pass).op(Op::Add, A2, A2, A1, 0);
                }
            }
            for pass in 0..passes {
                for base in BASES..BASES + bases {
                    asm.op(Op::Sd, 0, base, A2, 8 * pass).i(addi(A2, A2, 1));
                }
            }
        };
        let stats = looped_with(hot, RAM + 0x1000, once, body, SHUFFLED, 20_000);
        assert!(stats.tb.elsewhere >= 1 && stats.tb.tier2 >= 1, "{bases} bases: {:?}", stats.tb);
    }
}

#[test]
fn a_check_for_two_pages_with_two_addends_serves_neither_with_the_others() {
    let hot = JitFlags { samples: false, ..eager() };
    // Where the two have one addend, and where they have two; off a base, and off a table with a masked index.
    for border in 1..6 {
        let once = |asm: &mut Asm| {
            asm.la(BASES, SHUFFLED + border * 0x1000);
        };
        let off_base = |asm: &mut Asm| {
            asm.op(Op::Ld, A1, BASES, 0, -8).op(Op::Ld, A2, BASES, 0, 8).op(Op::Add, A2, A2, A1, 0);
            asm.i(addi(A2, A2, 3)).op(Op::Sd, 0, BASES, A2, -16).op(Op::Sd, 0, BASES, A1, 16);
            asm.op(Op::Sd, 0, BASES, A2, -8).op(Op::Sd, 0, BASES, COUNT, 8);
        };
        let off_table = |asm: &mut Asm| {
            let index = BASES + 1;
            for shift in 0..6 {
                asm.op(Op::Srli, index, COUNT, 0, shift).op(Op::Andi, index, index, 0, 0xff);
                asm.op(Op::Slli, index, index, 0, 3).op(Op::Add, index, index, BASES, 0);
                asm.op(Op::Ld, A1, index, 0, -0x400).op(Op::Add, A2, A2, A1, 0);
            }
            asm.op(Op::Andi, index, COUNT, 0, 0xff).op(Op::Slli, index, index, 0, 3);
            asm.op(Op::Add, index, index, BASES, 0).op(Op::Sd, 0, index, A2, -0x400);
        };
        for stats in [
            looped_with(hot, RAM + 0x1000, once, off_base, SHUFFLED, 20_000),
            looped_with(hot, RAM + 0x1000, once, off_table, SHUFFLED, 20_000),
        ] {
            assert!(stats.tb.elsewhere >= 1 && stats.tb.tier2 >= 1, "border {border}: {:?}", stats.tb);
        }
    }
}

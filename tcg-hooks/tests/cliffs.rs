//! No cliffs: work is counted, not timed, for guests whose addresses or size used to cost far more than others'.
mod common;

use common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::tb::TbStats;
use notdirty_tcg::{JitFlags, VcpuStats};

/// Distances between functions: every power of two that RAM has room for.
const SHIFTS: std::ops::Range<u32> = 5..27;
const CODE: u64 = RAM + 0x1000;

fn machine(flags: JitFlags, cache: usize, ram: u64) -> Vm {
    Vm::with(&Setup { flags, cache, ram, ..Setup::default() })
}

/// At `CODE`: `rounds` times the body, then the end.
fn looped(vm: &Vm, rounds: u32, body: impl FnOnce(&mut Asm)) {
    let mut a = Asm::at(CODE);
    a.word(S0, rounds);
    let top = a.here();
    body(&mut a);
    a.op(Op::Addi, S0, S0, 0, -1).op(Op::Beq, 0, S0, ZERO, 16).la(T0, top).op(Op::Jalr, 0, T0, 0, 0).stop();
    a.put(vm);
}

fn difference(after: TbStats, before: TbStats) -> (u64, u64) {
    (after.translated - before.translated, after.steps - before.steps)
}

#[test]
fn two_hot_functions_are_translated_whatever_their_distance() {
    for shift in SHIFTS {
        let mut vm = machine(JitFlags::default(), 0, 0x1000_0000);
        let functions = [RAM + 0x10_0000, RAM + 0x10_0000 + (1 << shift)];
        for (n, &f) in functions.iter().enumerate() {
            vm.put(f, &[addi(A0, A0, 1 + n as i32), addi(A0, A0, 1), ret()]);
        }
        looped(&vm, 2000, |a| {
            functions.iter().for_each(|&f| {
                a.la(T1, f).op(Op::Jalr, RA, T1, 0, 0);
            });
        });
        vm.run(CODE);
        assert_eq!(vm.x(A0), 2000 * 5);
        let VcpuStats { retired, tier0, tbs_translated, .. } = vm.vcpu.stats();
        assert!(retired > 30_000 && tier0 < 400, "{tier0} of {retired} in tier 0, functions {} apart", 1u64 << shift);
        assert!(tbs_translated < 20, "{tbs_translated} TBs");
    }
}

#[test]
fn sites_that_are_patched_all_the_time_stay_in_tier_0_whatever_their_distance() {
    // A TB that dies young has its pc wait; two such sites shall not make each other's wait be forgotten.
    for shift in SHIFTS {
        let mut vm = machine(JitFlags::default(), 0, 0x1000_0000);
        let sites = [RAM + 0x10_0000, RAM + 0x10_0000 + (1 << shift)];
        sites.iter().for_each(|&f| vm.put(f, &[addi(A0, A0, 1), ret()]));
        looped(&vm, 3000, |a| {
            a.word(T0, addi(A0, A0, 1)).op(Op::Andi, T1, S0, 0, 1).op(Op::Slli, T1, T1, 0, 20).op(
                Op::Add,
                T0,
                T0,
                T1,
                0,
            );
            for &site in &sites {
                a.la(A2, site).i(sw(T0, A2, 0)).op(Op::Jalr, RA, A2, 0, 0);
            }
        });
        vm.run(CODE);
        assert_eq!(vm.x(A0), 3000 * 3);
        let died = vm.invalidated();
        assert!(0 < died && died < 40, "{died} TBs died, sites {} apart", 1u64 << shift);
    }
}

#[test]
fn dropping_the_callers_of_one_function_costs_each_the_same_however_many_they_are() {
    // All of them are evicted, again and again, from a cache that is too small.
    let steps = |callers: u64| {
        let mut vm = machine(eager(), 1, 0x20_0000);
        let f = CODE + 0x10_0000;
        vm.put(f, &[ret()]);
        looped(&vm, 3, |a| {
            (0..callers).for_each(|_| {
                a.call(f);
            });
        });
        let before = vm.vcpu.stats().tb;
        vm.run(CODE);
        let after = vm.vcpu.stats().tb;
        assert!(after.evicted > callers, "no pressure: {after:?}");
        let (translated, steps) = difference(after, before);
        steps as f64 / translated as f64
    };
    let (some, many) = (steps(40_000), steps(160_000));
    assert!(some < 16.0 && many < 16.0, "{some} and {many} steps a TB");
}

#[test]
fn overwriting_code_costs_what_dies_of_it_and_not_what_lies_beside_it() {
    // A page of one TB for each instruction, each overwritten on its own; then pages of few TBs.
    let steps = |tbs: u64| {
        let mut vm = machine(eager(), 0, 0x20_0000);
        let pages = 1024 / tbs;
        let at = |n: u64| CODE + 0x1000 * (n / tbs) + 0x1000 / tbs * (n % tbs);
        (0..1024).for_each(|n| vm.put(at(n), &[ret()]));
        let mut a = Asm::at(RAM);
        a.op(Op::Jalr, RA, A2, 0, 0).stop();
        a.put(&vm);
        for n in 0..1024 {
            vm.vcpu.cpu_mut().x[usize::from(A2)] = at(n);
            vm.run(RAM);
        }
        let before = vm.vcpu.stats().tb;
        assert!(pages > 0 && before.translated >= 1024, "{before:?}");
        (0..1024).for_each(|n| {
            vm.put(at(n), &[addi(ZERO, ZERO, 0)]);
            vm.vcpu.serve();
        });
        let after = vm.vcpu.stats().tb;
        assert_eq!(after.invalidated - before.invalidated, 1024);
        difference(after, before).1
    };
    let (few, many) = (steps(8), steps(1024));
    assert!(many < 1024 * 40 && few < 1024 * 20, "{few} steps on pages of 8, {many} on one of 1,024");
}

#[test]
fn functions_that_are_called_in_turn_share_no_place_in_the_jump_cache_for_long() {
    // Indirect calls of two functions, then of 64: emitted code finds each by itself once it was looked up.
    for shift in SHIFTS {
        for count in [2, 64u64] {
            let (base, step) = (RAM + 0x10_0000, if count == 2 { 1 << shift } else { 1u64 << shift.min(21) });
            let mut vm = machine(eager(), 0, 0x1000_0000);
            (0..count).for_each(|n| vm.put(base + n * step, &[addi(A0, A0, 1), ret()]));
            let rounds = 200;
            looped(&vm, rounds, |a| {
                (0..count).for_each(|n| {
                    a.la(T1, base + n * step).op(Op::Jalr, RA, T1, 0, 0);
                });
            });
            vm.run(CODE);
            assert_eq!(vm.x(A0), u64::from(rounds) * count);
            let VcpuStats { entries, tbs_translated, .. } = vm.vcpu.stats();
            assert!(entries < 3 * tbs_translated + 50, "entered {entries} times, {count} functions {step} apart");
        }
    }
}

#[test]
fn a_hundred_thousand_callers_of_one_function_are_returned_to_without_a_look_up() {
    const CALLERS: u64 = 128_000;
    let mut vm = machine(eager(), 0, 0x20_0000);
    let f = CODE + 0xf_0000;
    vm.put(f, &[ret()]);
    looped(&vm, 6, |a| {
        (0..CALLERS).for_each(|_| {
            a.call(f);
        });
    });
    vm.run(CODE);
    let VcpuStats { entries, tbs_translated, retired, .. } = vm.vcpu.stats();
    // Most are evicted before they come again, once: both are entered as they are translated, and as they are looked up.
    assert!(retired > 12 * CALLERS && entries < 6 * CALLERS, "entered {entries} times, {tbs_translated} TBs");
}

/// `blocks` TBs of one instruction each, walked `rounds` times.
fn walk(flags: JitFlags, cache: usize, blocks: u64, rounds: u32) -> VcpuStats {
    let mut vm = machine(flags, cache, 0x20_0000);
    looped(&vm, rounds, |a| {
        (0..blocks).for_each(|_| {
            a.call(a.here() + 4);
        });
    });
    vm.run(CODE);
    vm.vcpu.stats()
}

#[test]
fn a_hundred_thousand_blocks_are_translated_once() {
    const BLOCKS: u64 = 100_000;
    for flags in [eager(), JitFlags::default()] {
        let VcpuStats { tb, tier0, retired, .. } = walk(flags, 0, BLOCKS, 20);
        assert!(retired > 20 * BLOCKS, "{retired} instructions");
        assert!(tb.translated < BLOCKS + 100 && tb.evicted == 0, "{tb:?}");
        // Six runs to get warm, and those that are forgotten when the counts grow.
        assert!(tier0 < 9 * BLOCKS, "{tier0} in tier 0");
    }
}

/// One long way through small blocks: regions, each cut for its length, follow one another and overlap little.
#[test]
fn a_way_through_a_hundred_thousand_blocks_is_covered_by_few_regions() {
    const BLOCKS: u64 = 100_000;
    let mut vm = machine(JitFlags::default(), 0, 0x40_0000);
    looped(&vm, 20, |a| {
        (0..BLOCKS).for_each(|_| {
            a.i(addi(A0, A0, 1)).i(addi(A1, A1, 1)).op(Op::Jal, ZERO, 0, 0, 8).i(0);
        });
    });
    vm.run(CODE);
    assert_eq!((vm.x(A0), vm.x(A1)), (20 * BLOCKS, 20 * BLOCKS));
    let VcpuStats { tb, tier0, .. } = vm.vcpu.stats();
    assert!(tb.translated < 5 * 3 * BLOCKS / 256, "{} regions of 256 instructions", tb.translated);
    assert!(tier0 < 6 * 3 * BLOCKS, "{tier0} in tier 0");
}

#[test]
fn what_is_kept_of_small_tbs_counts_towards_the_limit_of_the_code_cache() {
    for cache in [2 << 20, 16 << 20] {
        let VcpuStats { tb, .. } = walk(eager(), cache, 150_000, 2);
        assert!(tb.evicted > 0 && tb.bytes > cache as u64 / 2 && tb.bytes <= cache as u64 * 9 / 8, "{tb:?}");
    }
}

#[test]
fn code_of_a_megabyte_is_hot_as_soon_as_a_small_loop() {
    // 8,000 pieces of 33 instructions, each with a call of one leaf.
    const PIECES: u64 = 8000;
    let mut vm = machine(JitFlags::default(), 0, 0x40_0000);
    let leaf = CODE + 0x20_0000;
    vm.put(leaf, &[ret()]);
    looped(&vm, 20, |a| {
        (0..PIECES).for_each(|_| {
            (0..30).for_each(|_| {
                a.i(addi(A0, A0, 1));
            });
            a.la(T1, leaf).op(Op::Jalr, RA, T1, 0, 0);
        });
    });
    vm.run(CODE);
    assert_eq!(vm.x(A0), 20 * 30 * PIECES);
    let VcpuStats { tb, tier0, entries, .. } = vm.vcpu.stats();
    assert!(tb.evicted == 0 && tb.translated < PIECES + 100, "{tb:?}");
    assert!(tier0 < 8 * 34 * PIECES && entries < 10 * PIECES, "{tier0} in tier 0, entered {entries} times");
}

//! A guest that emits new code for ever: the code cache stays bounded, the process stays as large as it was, and
//! making room never holds the guest up for long.
//!
//! ```text
//!   loop:  k pseudo-random; k instructions and a return to the next place of a ring; call it; on
//!          the ring holds several times the code that the cache does, so places are met again long after eviction
//! ```
mod common;

use common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::tb::TbStats;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Both tests look at the whole process.
static ALONE: Mutex<()> = Mutex::new(());
const RING: u64 = RAM + 0x1_0000;
const RING_BYTES: u64 = 8 << 20;
/// Functions emitted between two looks.
const ROUNDS: u64 = 30_000;
/// A pause that no user notices: CPU time, as what a busy host takes besides is not ours to bound.
const PAUSE: Duration = Duration::from_millis(20);

/// Bytes of the process in memory that are of no file: what a host maps of the program itself is its own affair.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line for it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("KiB") << 10
}

/// Bytes by which the process grew in that one of three stretches in which it grew least: a list may double once,
/// and what leaks does so in each.
fn growth(mut stretch: impl FnMut()) -> u64 {
    let grown = [(); 3].map(|()| {
        let before = resident();
        stretch();
        resident().saturating_sub(before)
    });
    println!("grown by {grown:?} bytes");
    grown.into_iter().min().unwrap_or(0)
}

/// Emits and calls as many functions as s5 says: each of 8 to 71 times `add a0, a0, a1` or its like.
fn emitter() -> Asm {
    let mut a = Asm::at(RAM);
    let top = a.here();
    // s4 = s4 * 1103515245 + 12345; t2 = 8 + six of its bits: instructions to emit.
    a.word(T0, 1_103_515_245).op(Op::Mul, S4, S4, T0, 0).word(T0, 12_345).op(Op::Add, S4, S4, T0, 0);
    a.op(Op::Srli, T2, S4, 0, 16).op(Op::Andi, T2, T2, 0, 63).i(addi(T2, T2, 8));
    a.op(Op::Addi, A2, S2, 0, 0);
    // An odd number of them is `xor` and `add` by turns.
    a.word(T0, encode_op(Op::Add)).word(T1, encode_op(Op::Add) ^ encode_op(Op::Xor));
    let each = a.here();
    a.i(sw(T0, S2, 0)).i(addi(S2, S2, 4)).op(Op::Xor, T0, T0, T1, 0).i(addi(T2, T2, -1));
    let back = each.wrapping_sub(a.here()) as i32;
    a.op(Op::Bne, 0, T2, ZERO, back);
    a.word(T0, ret()).i(sw(T0, S2, 0)).i(addi(S2, S2, 4));
    a.op(Op::Jalr, RA, A2, 0, 0);
    // Round the ring.
    a.op(Op::Bltu, 0, S2, S3, 12);
    a.la(S2, RING);
    a.i(addi(S5, S5, -1));
    let back = top.wrapping_sub(a.here()) as i32;
    a.op(Op::Bne, 0, S5, ZERO, back).stop();
    a
}

fn encode_op(op: Op) -> u32 {
    notdirty_tcg::testkit::encode(op, A0, A0, A1, 0)
}

fn machine(cache: usize, ring: u64) -> Vm {
    let mut vm = Vm::with(&Setup { cache, ram: RING - RAM + ring + 0x1000, ..Setup::default() });
    emitter().put(&vm);
    let x = &mut vm.vcpu.cpu_mut().x;
    (x[usize::from(S2)], x[usize::from(S3)], x[usize::from(S4)]) = (RING, RING + ring, 1);
    (x[usize::from(A0)], x[usize::from(A1)]) = (1, 3);
    vm
}

fn rounds(vm: &mut Vm, n: u64) {
    vm.vcpu.cpu_mut().x[usize::from(S5)] = n;
    vm.run(RAM);
}

fn no_long_pause(stats: TbStats) {
    println!("longest pause {:?}; {stats:?}", stats.longest_reclaim);
    assert!(stats.longest_reclaim > Duration::ZERO && stats.longest_reclaim < PAUSE, "{stats:?}");
}

#[test]
fn a_guest_that_emits_code_for_ever_runs_at_constant_memory_and_with_short_pauses() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut vm = machine(1, RING_BYTES);
    // Several times round the ring: all of RAM is touched, the cache was filled many times, and all lists have
    // grown as long as they ever will be.
    rounds(&mut vm, 8 * ROUNDS);
    let before = vm.vcpu.stats().tb;
    let grown = growth(|| rounds(&mut vm, 4 * ROUNDS));
    let after = vm.vcpu.stats().tb;
    assert!(after.translated - before.translated >= 12 * ROUNDS, "{after:?}");
    assert!(after.evicted - before.evicted > 11 * ROUNDS, "no pressure: {after:?}");
    // One byte for each function that was translated.
    assert!(grown < 4 * ROUNDS, "it grows by {grown} bytes");
    assert_eq!(vm.vcpu.check_invariants(), Ok(()));
    no_long_pause(after);
}

#[test]
fn the_largest_piece_of_the_usual_code_cache_is_reclaimed_without_a_long_pause() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut vm = machine(0, 64 << 20);
    rounds(&mut vm, 13 * ROUNDS);
    let stats = vm.vcpu.stats().tb;
    assert!(stats.evicted > 0, "no pressure: {stats:?}");
    no_long_pause(stats);
}

#[test]
fn a_site_patched_for_ever_runs_at_constant_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    const F: u64 = RAM + 0x1000;
    let mut vm = Vm::new();
    vm.put(F, &[addi(A0, A0, 1), ret()]);
    let mut a = Asm::at(RAM);
    a.la(A2, F).word(T0, addi(A0, A0, 1)).word(T1, addi(A0, A0, 1) ^ addi(A0, A0, 2));
    let top = a.here();
    a.op(Op::Xor, T0, T0, T1, 0).i(sw(T0, A2, 0)).call(F).i(addi(S5, S5, -1));
    let back = top.wrapping_sub(a.here()) as i32;
    a.op(Op::Bne, 0, S5, ZERO, back).stop();
    a.put(&vm);
    rounds(&mut vm, 10_000);
    let before = vm.translated();
    let grown = growth(|| rounds(&mut vm, 134_000));
    assert!(vm.translated() - before >= 402_000 && vm.x(A0) == 618_000);
    // One byte for each TB; a list of the dead would be some eight.
    assert!(grown < 134_000, "it grows by {grown} bytes");
}

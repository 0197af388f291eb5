//! Every instruction that computes a value from integer registers, on operands at the edges and with registers that
//! are one another, on every engine; with the extensions of the host that are used, and without.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::opcodes::PATTERNS;
use notdirty_tcg::riscv::{Format, Op, decode};
use notdirty_tcg::testkit::Rng;
use notdirty_tcg::{EngineKind, JitFlags};

const PAIRS: u64 = RAM + 0x1_0000;
/// Bytes of a pair of operands and of the results behind it.
const ROW: i32 = 16 + 8 * WAYS.len() as i32;

/// `(rd, rs1, rs2)`: apart, some of them one, in host registers or in memory; what `rd` is first.
const WAYS: [(u8, u8, u8); 8] =
    [(A0, A1, A2), (A1, A1, A2), (A2, A1, A2), (A1, A1, A1), (A4, S2, T4), (S2, S2, A2), (T4, A1, T4), (A0, ZERO, A2)];

fn operands() -> Vec<(u64, u64)> {
    let edges = [
        0,
        1,
        2,
        31,
        32,
        63,
        64,
        0x7f,
        0x80,
        0xff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX as u64,
        i64::MIN as u64,
        u64::MAX,
        u64::MAX - 1,
        0x0102_0408_1020_4080,
        0x8000_0000_8000_0000,
        0x00ff_0000_ff00_00ff,
    ];
    let mut rng = Rng::new(7);
    let mut pairs: Vec<(u64, u64)> = edges.iter().flat_map(|&a| edges.map(|b| (a, b))).collect();
    pairs.extend((0..64).map(|_| (rng.bits(), rng.bits() >> rng.below(64))));
    pairs
}

/// The instructions: each pattern that is one, for each way, with some immediates.
fn instructions() -> Vec<(Op, [u32; WAYS.len()])> {
    let mut all = Vec::new();
    for pattern in PATTERNS {
        let op = pattern.op;
        let computes = op.writes_rd() && !op.is_memory() && !op.is_float() && !op.is_csr() && !op.ends_block();
        if !computes || matches!(op, Op::Auipc) {
            continue;
        }
        let immediates: &[u32] = if op.format() == Format::R { &[0] } else { &[0, 1, 0x1f, 0x3f, 0x7ff, 0x800, 0xfff] };
        for imm in immediates {
            all.push((
                op,
                WAYS.map(|(rd, rs1, rs2)| {
                    let high = if op.format() == Format::R { u32::from(rs2) } else { *imm };
                    let fields = u32::from(rd) << 7 | u32::from(rs1) << 15 | high << 20;
                    pattern.value | fields & !pattern.mask
                }),
            ));
        }
    }
    all
}

/// For each pair of operands, all the ways.
fn program(words: &[u32; WAYS.len()], pairs: usize) -> Asm {
    let mut asm = Asm::at(RAM);
    asm.la(T0, PAIRS).word(T1, pairs as u32);
    let again = asm.here();
    for ((way, word), (rd, ..)) in words.iter().enumerate().zip(WAYS) {
        for (at, registers) in [(0, [A1, S2]), (8, [A2, T4])] {
            for register in registers {
                asm.op(Op::Ld, register, T0, 0, at);
            }
        }
        asm.i(li(A0, -7)).i(li(A4, -7)).i(*word).op(Op::Sd, 0, T0, rd, 16 + 8 * way as i32);
    }
    asm.i(addi(T0, T0, ROW)).i(addi(T1, T1, -1));
    let back = again.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T1, ZERO, back).stop();
    asm
}

fn results(vm: &mut Vm, words: &[u32; WAYS.len()], pairs: &[(u64, u64)]) -> Vec<u64> {
    let mut rows = Vec::new();
    for (a, b) in pairs {
        rows.extend([a.to_le_bytes(), b.to_le_bytes()].concat());
        rows.extend([0xee; 8 * WAYS.len()]);
    }
    vm.space.write(GuestPhys::new(PAIRS), &rows).unwrap();
    program(words, pairs.len()).put(vm);
    vm.run(RAM);
    vm.space.read(GuestPhys::new(PAIRS), &mut rows).unwrap();
    rows.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn every_value_is_the_oracles_with_the_hosts_extensions_and_without() {
    let pairs = operands();
    let mut oracle = Vm::with(&Setup { engine: EngineKind::Interp, ..Setup::default() });
    let without = ["bmi2", "fma", "popcnt", "pinned", "optimise"].map(|name| {
        let mut flags = eager();
        assert!(flags.set(name, false));
        (name, flags)
    });
    let all = [("tier 0", JitFlags::default()), ("translated", eager())].into_iter().chain(without);
    let mut engines: Vec<(&str, Vm)> =
        all.map(|(name, flags)| (name, Vm::with(&Setup { flags, ..Setup::default() }))).collect();
    let instructions = instructions();
    let ops: std::collections::BTreeSet<&str> = instructions.iter().map(|(op, _)| op.mnemonic()).collect();
    assert!(ops.len() > 75 && ops.contains("cpopw") && ops.contains("orc.b") && ops.contains("czero.nez"), "{ops:?}");
    for (op, words) in &instructions {
        assert!(words.iter().all(|word| decode(*word).op == *op), "{op:?}");
        // Tier 0 is asked for a few: it would be translated while it runs.
        let few: Vec<(u64, u64)> = pairs.iter().copied().step_by(61).take(6).collect();
        let wanted = [&few, &pairs].map(|pairs| results(&mut oracle, words, pairs));
        for (name, vm) in &mut engines {
            let (pairs, want) = if *name == "tier 0" { (&few, &wanted[0]) } else { (&pairs, &wanted[1]) };
            let got = results(vm, words, pairs);
            if let Some(at) = (0..want.len()).find(|&at| want[at] != got[at]) {
                let per = ROW as usize / 8;
                let ((a, b), way) = (pairs[at / per], (at % per).saturating_sub(2));
                panic!(
                    "{op:?} ({:#x}) of {a:#x}, {b:#x}, {name}: {:#x}, the oracle has {:#x}",
                    words[way], got[at], want[at]
                );
            }
        }
    }
}

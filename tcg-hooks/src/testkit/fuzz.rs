//! What the fuzz targets do with their bytes. The targets are glue; plain tests run the same bodies.
//!
//! ```text
//!   smc     byte 0: what the program may do     byte 1: one switch of the JIT, and the cache model
//!           the rest: a tape of decisions for the generator: writers, places, shapes
//!           ─▶ the same program on the oracle, the JIT translating eagerly, and the JIT with its tiers,
//!              with all structures of the TB cache compared after each translation and each kill
//!   decode  words and halfwords: decoded, expanded, disassembled; never a panic
//! ```
//!
//! A body panics when it has found something.
use super::board::{Board, Make};
use super::{Options, Program, Smc};
use crate::riscv::{self, Insn, Op, compressed, decode_any, disasm};
use crate::{EngineKind, ICache, JitFlags, VcpuExit};

const RAM: (u64, u64) = (0x8000_0000, 0x4_0000);
/// Far more than a program takes that ends by itself.
const FAR: u64 = 1_000_000;

/// The program and the setting that these bytes mean.
fn program(data: &[u8]) -> (Program, Options, JitFlags, ICache) {
    let byte = |n: usize| data.get(n).copied().unwrap_or(0);
    let has = |bit: u8| byte(0) & bit != 0;
    let fencei = has(1);
    let options = Options {
        base: RAM.0,
        ram_len: RAM.1,
        // Where the model lets old code run, programs that change code without a fence have many outcomes.
        smc: if fencei { Smc::Fenced } else { Smc::Any },
        pieces: 14,
        compressed: !has(2),
        traps: !has(4) && !fencei,
        wild: !has(8) && !fencei,
        csrs: !has(16),
        modes: !has(16),
        atomics: !has(32),
        floats: !has(64),
        bits: !has(128),
    };
    let mut flags = JitFlags { tier0: false, ..JitFlags::default() };
    // Most inputs leave all switches on.
    if let Some(name) = JitFlags::NAMES.get(usize::from(byte(1))) {
        flags.set(name, false);
    }
    let seed = data.iter().fold(0xcbf2_9ce4_8422_2325, |h: u64, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let program = Program::with_tape(seed, data.get(2..).unwrap_or(&[]), &options);
    (program, options, flags, if fencei { ICache::FenceI } else { ICache::Coherent })
}

/// Runs a self-modifying program on every engine and compares.
///
/// # Panics
/// If two engines differ, or structures of the TB cache do not agree.
pub fn smc(data: &[u8]) {
    let (program, options, flags, icache) = program(data);
    let make = Make { engine: EngineKind::Interp, flags, icache, cache: 1, ram: RAM };
    let mut oracle = Board::new(make);
    oracle.load(&program, options.ram_len);
    let theirs = oracle.run(program.max_insns);
    // One that went astray stops at the same limit; one that ended does so by itself.
    let limit = if theirs == VcpuExit::InsnLimit { program.max_insns } else { FAR };
    for tier0 in [false, true] {
        let mut jit = Board::new(Make { engine: EngineKind::Jit, flags: JitFlags { tier0, ..flags }, ..make });
        jit.vcpu.set_checking(true);
        jit.load(&program, options.ram_len);
        let ours = jit.run(limit);
        let broken = jit.vcpu.check_invariants().err();
        let ended = (ours != theirs).then(|| format!("ended by {ours:?}, not {theirs:?}"));
        if let Some(what) = broken.or(ended).or_else(|| jit.difference(&oracle)) {
            panic!("{what}\ntier 0: {tier0}, {flags:?}, {icache:?}\n{}", program.listing());
        }
    }
}

/// Decodes whatever it is given.
///
/// # Panics
/// If decoder, expander and disassembler contradict each other.
pub fn decode(data: &[u8]) {
    for (n, window) in data.windows(4).enumerate() {
        let word = window.iter().rev().fold(0, |w: u32, &b| w << 8 | u32::from(b));
        let (low, pc) = (word as u16, 2 * n as u64);
        let (long, short, any) = (riscv::decode::decode(word), compressed::expand(low), decode_any(low, word));
        assert_eq!(any, if low & 3 == 3 { long } else { short }, "{word:#010x}");
        assert_eq!(u32::from(any.len), if low & 3 == 3 { 4 } else { 2 }, "{word:#010x}");
        for insn in [long, short, any] {
            shown(&insn, pc, word);
        }
    }
}

fn shown(insn: &Insn, pc: u64, word: u32) {
    assert!(insn.rd < 32 && insn.rs1 < 32 && insn.rs2 < 32, "{word:#010x}: {insn:?}");
    assert!(!disasm::text(insn, pc).is_empty() && !disasm::line(pc, word, insn).is_empty(), "{word:#010x}");
    // What it is asked by the translator.
    let _ = (insn.target(pc), insn.imm64(), insn.op.ends_block(), insn.op.mem_bytes());
    assert!(insn.op != Op::Illegal || !insn.op.is_memory());
}

/// A deterministic input: what a fuzzer might think of first.
pub fn sample(n: u64) -> Vec<u8> {
    let mut rng = super::Rng::new(n);
    let len = [4, 40, 400, 4000][n as usize % 4] as i64;
    let len = rng.within(len / 2, len);
    (0..len).map(|_| (rng.bits() >> 56) as u8).collect()
}

//! For tests here and above: instructions as bits, and random programs.
//!
//! ```text
//!   Program::generate(seed, &Options) ─▶ bytes, load address, entry, stop, suggested limit
//!
//!   base   +0        +0x1000                     +0x5000                       +0x9000
//!          ├ prologue ├ functions, body ... ──────┤ data: registers, words ─────┤ copies of code ── end of RAM
//!          └ handler
//! ```
//!
//! A program needs RAM and a hart, no device. It ends by spinning at [`Program::stop`]; a harness stops there or at
//! its limit, whatever comes first, and compares two engines at the same number of retired instructions.
//! Traps are part of it: the handler skips the instruction, counts in `mscratch` (that of S-mode in `sscratch`), and goes to
//! `stop` after 64.
//! The same seed and options give the same bytes on every host, so a seed in a report is a program.
//!
//! What `x` registers are for, in a generated program:
//!
//! | register | use |
//! | --- | --- |
//! | `sp`, `s0` | data, within reach of every offset |
//! | `s1` | the start of the code pages |
//! | `s2` | a border between two data pages |
//! | `s3` | nowhere: unmapped |
//! | `s4` | just before the end of RAM |
//! | `s10`, `s11` | loop counters |
//! | `t4` | where to go on after a jump into nowhere |
//! | `t5`, `t6` | the trap handler's |
//! | the others | anything |
//!
//! The `f` registers may hold anything; to begin with, numbers as [`floats`] makes them, each third one a single.
mod asm;
#[cfg(target_arch = "x86_64")]
pub mod board;
mod body;
pub mod encode;
mod float;
pub mod floats;
#[cfg(target_arch = "x86_64")]
pub mod fuzz;
pub mod oracle;
pub mod rng;
mod simple;
mod smc;
#[cfg(test)]
mod tests;

use crate::cpu::CpuState;
use crate::riscv::csr::mstatus;
use crate::riscv::opcodes::PATTERNS;
use crate::riscv::{Op, decode, fpu};

pub use encode::encode;
pub use oracle::{Oracle, Runs, ram_only};
pub use rng::Rng;

/// How a generated program may change its own code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Smc {
    /// Not at all (but a wild store may, once in a great many programs).
    Never,
    /// With a `fence.i` between each change and the changed code: what RISC-V asks for.
    Fenced,
    /// With and without: only engines that see their stores at once (`coherent`) agree.
    Any,
}

/// Executes one floating-point instruction as tier 0 does, by the host where that rounds alike: operands as registers hold
/// them (the integer one is the first), and `fflags` before. The destination's register and `fflags` after it.
///
/// # Panics
/// If it is none, or illegal.
pub fn float_natively(op: Op, [a, b, c]: [u64; 3], rm: u8, fflags: u8) -> (u64, u8) {
    let pattern = PATTERNS.iter().find(|pattern| pattern.op == op).expect("an instruction of the table");
    // rd 4, rs1 1, rs2 2, rs3 3; where one of these is part of the operation, it is not free.
    let fields = 4 << 7 | u32::from(rm) << 12 | 1 << 15 | 2 << 20 | 3 << 27;
    let mut cpu = CpuState::new(0, 0);
    cpu.csr.mstatus |= mstatus::FS;
    (cpu.f[1], cpu.f[2], cpu.f[3], cpu.x[1], cpu.csr.fflags) = (a, b, c, a, fflags);
    fpu::execute_natively(&mut cpu, &decode(pattern.value | fields & !pattern.mask)).expect("it is legal");
    (if op.writes_f() { cpu.f[4] } else { cpu.x[4] }, cpu.csr.fflags)
}

/// What goes into a program.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where RAM starts; the program is loaded there.
    pub base: u64,
    /// How long RAM is; at least [`Options::MIN_RAM`]. The program touches its end, and what lies behind.
    pub ram_len: u64,
    /// Pieces of the main body: straight runs, loops, calls, changes to code. More make it longer.
    pub pieces: u32,
    /// Self-modification.
    pub smc: Smc,
    /// Traps on purpose: `ecall`, unmapped addresses, words that are no instruction.
    pub traps: bool,
    /// CSR instructions (not `time`).
    pub csrs: bool,
    /// Runs in all modes, if there are traps and CSRs: goes down by returns and up by traps, delegated or not.
    pub modes: bool,
    /// 16-bit instructions.
    pub compressed: bool,
    /// LR, SC and AMOs.
    pub atomics: bool,
    /// F and D.
    pub floats: bool,
    /// Zba, Zbb, Zbc, Zbs, Zicond and cache blocks.
    pub bits: bool,
    /// Random words in the instruction stream, executed whatever they are. Such a program may do anything.
    pub wild: bool,
}

impl Options {
    /// The least RAM that a program needs.
    pub const MIN_RAM: u64 = 0xb000;
}

impl Default for Options {
    fn default() -> Self {
        Options {
            base: 0x8000_0000,
            ram_len: 0x4_0000,
            pieces: 14,
            smc: Smc::Any,
            traps: true,
            csrs: true,
            modes: true,
            compressed: true,
            atomics: true,
            floats: true,
            bits: true,
            wild: true,
        }
    }
}

/// A program in memory: the bytes, and where they go.
#[derive(Debug, Clone)]
pub struct Program {
    /// What it was made from.
    pub seed: u64,
    /// Load address; RAM starts here.
    pub base: u64,
    /// The image, to be loaded at `base`. The rest of RAM is zero.
    pub bytes: Vec<u8>,
    /// First instruction.
    pub entry: u64,
    /// Where it spins when it is done.
    pub stop: u64,
    /// Instructions after which it has most likely gone astray.
    pub max_insns: u64,
}

impl Program {
    /// The program that belongs to `seed`. The RAM length of `options` is raised to the least that is needed.
    pub fn generate(seed: u64, options: &Options) -> Program {
        Program::with_tape(seed, &[], options)
    }

    /// As [`Program::generate`], with a fuzzer's bytes deciding what they reach: see [`Rng::with_tape`].
    pub fn with_tape(seed: u64, tape: &[u8], options: &Options) -> Program {
        let mut options = options.clone();
        options.ram_len = options.ram_len.max(Options::MIN_RAM);
        options.modes &= options.traps && options.csrs;
        body::generate(seed, tape, &options)
    }

    /// The shortest beginning of a program that still fails, for a report. `None` if none does.
    pub fn smallest(seed: u64, options: &Options, mut fails: impl FnMut(&Program) -> bool) -> Option<Program> {
        (1..=options.pieces)
            .map(|pieces| Program::generate(seed, &Options { pieces, ..options.clone() }))
            .find(|program| fails(program))
    }

    /// The image as a listing, for reports; zeros are left out.
    pub fn listing(&self) -> String {
        use crate::riscv::{decode::is_compressed, decode_any, disasm};
        let mut out = format!("seed {:#x}, entry {:x}, stop {:x}\n", self.seed, self.entry, self.stop);
        let half = |at: usize| match self.bytes.get(at..at + 2) {
            Some(b) => u16::from_le_bytes([b[0], b[1]]),
            None => 0,
        };
        let mut at = 0;
        while at < asm::DATA as usize && at < self.bytes.len() {
            let (low, high) = (half(at), half(at + 2));
            if low == 0 && high == 0 {
                at += 2;
                continue;
            }
            let bits = u32::from(high) << 16 | u32::from(low);
            out.push_str(&disasm::line(self.base + at as u64, bits, &decode_any(low, bits)));
            out.push('\n');
            at += if is_compressed(low) { 2 } else { 4 };
        }
        out
    }
}

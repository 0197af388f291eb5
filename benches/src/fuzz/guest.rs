//! The target: it stores to each of some pages, then works in registers, and is at its end.
//!
//! ```text
//!   entry: a0 pages from a1 on, `lines` stores in each ─▶ a2 rounds in registers ─▶ t2 ─▶ s0 = 0: done, jump to entry
//!                                                                         s0 > 0: s0 -= 1, arguments from s2, s3, s4, entry
//! ```
//!
//! Two harts meet behind their work, at the word that s1 says (0: there is one hart): who comes first sleeps, the other is at `done`.
//!
//! With s0 = 0 each run ends at `done`, and the bench's loop puts memory and a0, a1, a2 back. With s0 = n the guest runs n times more by
//! itself: what that takes is the guest's own time.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler, dynasm};

/// Where it is loaded: the bottom of RAM.
pub const BASE: u64 = 0x8000_0000;
/// Bytes of RAM.
pub const RAM: u64 = 16 << 20;
/// The first page that it stores to.
pub const DATA: u64 = BASE + (1 << 20);
/// Of a line's bytes, where its store goes to.
pub const OFFSET: u64 = 8;
/// What one store is a multiple of, and the distance of two on a page.
const LINE: u64 = 64;
/// Instructions of a round in registers.
const ROUND: u64 = 7;

/// The target with so many stores on each page.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its code.
    pub bytes: Vec<u8>,
    /// Where a run begins.
    pub entry: u64,
    /// Where one ends.
    pub done: u64,
}

impl Guest {
    /// Assembles it.
    ///
    /// # Errors
    /// A sentence, if the assembler refuses it.
    pub fn new(lines: u64) -> Result<Guest, String> {
        let mut ops = VecAssembler::<RiscvRelocation>::new(0);
        macro_rules! rv {
            ($($insn:tt)*) => { dynasm!(ops; .arch riscv64; .feature ima; $($insn)*) };
        }
        rv!(entry: ; lui t1, 0x1000; page:);
        for line in 0..lines {
            let offset = (OFFSET + LINE * line) as i32;
            // What a store reaches from a1 is half a page.
            if offset < 0x800 {
                rv!(sd a0, [a1, offset]);
            } else {
                rv!(sd a0, [t3, offset - 0x1000]);
            }
            if offset < 0x800 && offset + LINE as i32 >= 0x800 {
                rv!(add t3, a1, t1);
            }
        }
        rv!(add a1, a1, t1
            ; addi a0, a0, -1
            ; bnez a0, <page
            ; li.32 t2, 0x9e37
            ; round:
            ; xor t2, t2, a2
            ; slli t3, t2, 3
            ; add t2, t2, t3
            ; srli t3, t2, 7
            ; xor t2, t2, t3
            ; addi a2, a2, -1
            ; bnez a2, <round
            ; bnez s0, >again
            ; bnez s1, >meet
            ; done:);
        let done = BASE + ops.offset().0 as u64;
        rv!(nop
            ; j <entry
            ; again:
            ; mv a0, s2
            ; mv a1, s3
            ; mv a2, s4
            ; addi s0, s0, -1
            ; j <entry
            ; meet:
            ; li.12 t4, 1
            ; amoadd.d t4, t4, [s1]
            ; bnez t4, <done
            ; sleep:
            ; .u32 0x1050_0073 // wfi
            ; j <sleep);
        let bytes = ops.finalize().map_err(|error| format!("the fuzz target: {error}"))?;
        Ok(Guest { bytes, entry: BASE, done })
    }
}

/// Rounds in registers that make a run of so many instructions, as near as can be.
pub fn rounds(insns: u64, pages: u64, lines: u64) -> u64 {
    (insns.saturating_sub((lines + 3) * pages) / ROUND).max(1)
}

/// What t2 is after so many rounds.
pub fn expected(rounds: u64) -> u64 {
    (1..=rounds).rev().fold(0x9e37, |t2: u64, a2| {
        let t2 = t2 ^ a2;
        let t2 = t2.wrapping_add(t2 << 3);
        t2 ^ t2 >> 7
    })
}

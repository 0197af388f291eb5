//! What every guest program is written with: the `rv!` dialect, a prologue, checks, and the ways to end.
//!
//! Registers by habit: a0 result, a1 expected, s0 loop counter, s1 address of the code that is patched, t0..t6 scratch.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};

use super::GuestImage;

/// Where programs are loaded: the bottom of RAM.
pub const BASE: u64 = 0x8000_0000;
/// Top of the stack; programs are shorter than this.
pub(super) const STACK: i64 = 0x8008_0000;

/// The code with which a program ends when it traps and has no handler of its own.
pub(super) const TRAPPED: i32 = 99;

pub(super) type Asm = VecAssembler<RiscvRelocation>;

/// Assembles RV64IMAC_Zicsr_Zifencei into an [`Asm`].
macro_rules! rv {
    ($ops:expr ; $($insn:tt)*) => {
        dynasmrt::dynasm!($ops ; .arch riscv64 ; .feature imaczicsr_zifencei_zicntr ; $($insn)*)
    };
}

/// The 32-bit encoding of one instruction.
macro_rules! word {
    ($($insn:tt)*) => {{
        let mut ops = $crate::programs::asm::start();
        $crate::programs::asm::rv!(ops ; $($insn)*);
        $crate::programs::asm::only_word(ops)
    }};
}

pub(super) use {rv, word};

/// `wfi`, which dynasm has not.
pub(super) const WFI: u32 = 0x1050_0073;
/// `mret`, which dynasm has not.
pub(super) const MRET: u32 = 0x3020_0073;
/// `addi a0, zero, 0`: `| value << 20` makes it load a small value.
pub(super) const LOAD_A0: i32 = 0x513;

/// An empty assembler.
pub(super) fn start() -> Asm {
    Asm::new(0)
}

/// An assembler with the prologue: a stack, and a handler for unexpected traps.
pub(super) fn program() -> Asm {
    let mut ops = start();
    rv!(ops ; li.43 sp, STACK ; la t0, ->trapped ; csrw mtvec, t0);
    ops
}

/// The encoding of what was assembled, which is one instruction of 32 bits.
pub(super) fn only_word(ops: Asm) -> i32 {
    let bytes = ops.finalize().expect("one instruction without labels");
    i32::from_le_bytes(bytes.try_into().expect("one instruction of 32 bits"))
}

/// `jal rd, offset` for offsets inside ±1 MiB: branches are patched to go elsewhere with it.
pub(super) fn jal(rd: u32, offset: i32) -> i32 {
    let o = offset as u32;
    let imm = (o >> 20 & 1) << 31 | (o >> 1 & 0x3ff) << 21 | (o >> 11 & 1) << 20 | (o >> 12 & 0xff) << 12;
    (imm | rd << 7 | 0x6f) as i32
}

/// Fails with `code` unless a0 == a1.
pub(super) fn expect_equal(ops: &mut Asm, code: i32) {
    rv!(ops
        ; beq a0, a1, >good
        ; li.12 a0, code
        ; jump ->fail, t6
        ; good:
    );
}

/// Fails with `code` unless a0 == `value`.
pub(super) fn expect(ops: &mut Asm, code: i32, value: i32) {
    rv!(ops ; li.32 a1, value);
    expect_equal(ops, code);
}

/// Puts `addi a0, zero, s0` into t1, for s0 below 2048.
pub(super) fn encode_load_s0(ops: &mut Asm) {
    rv!(ops ; slli t1, s0, 20 ; ori t1, t1, LOAD_A0);
}

/// Zero bytes up to the next address with this offset in its page.
pub(super) fn pad_to(ops: &mut Asm, page_offset: usize) {
    while ops.offset().0 % 4096 != page_offset {
        ops.push(0);
    }
}

/// Jumps to the end of the program that reports success.
pub(super) fn pass(ops: &mut Asm) {
    rv!(ops ; jump ->pass, t6);
}

/// Adds the two ends and closes the program.
pub(super) fn finish(name: &'static str, mut ops: Asm) -> GuestImage {
    ops.align(4, 0);
    rv!(ops
        ; ->pass:
        ; lui t0, 0x10_0000
        ; li.32 t1, 0x5555
        ; sw t1, [t0]
        ; j ->pass
        ; ->trapped:
        ; li.12 a0, TRAPPED
        ; ->fail:
        ; lui t0, 0x10_0000
        ; slli t1, a0, 16
        ; li.32 t2, 0x3333
        ; or t1, t1, t2
        ; sw t1, [t0]
        ; j ->fail
    );
    GuestImage { name, load_addr: BASE, entry: BASE, bytes: ops.finalize().expect("every label is defined once") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_are_those_of_the_manual() {
        assert_eq!(word!(addi a0, zero, 0), LOAD_A0);
        assert_eq!(word!(jal ra, 8), jal(1, 8));
        assert_eq!(jal(0, -4) as u32, 0xffdf_f06f);
        assert_eq!(jal(0, 0x1000) as u32, 0x0000_106f);
    }
}

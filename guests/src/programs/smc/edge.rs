//! Stores that meet code only in part, and data that lies beside it.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, BASE, rv, word};
use super::form::Form;
use super::frame;

/// Counts s0 up to `rounds` and goes back to `->again`, then reports success.
pub(super) fn repeat(ops: &mut Asm, rounds: i32) {
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, rounds ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(ops);
}

pub(super) fn line_crossing_store(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // sd, misaligned, over the last instruction of one 64-byte line and the first of the next.
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; li.32 t2, word!(addi a0, a0, 0)
        ; slli t3, s0, 20
        ; or t3, t3, t2
        ; slli t3, t3, 32
        ; or t3, t3, t1
        ; sd t3, [s1]
        ; .bytes m.sync()
        ; jal ra, ->f
        ; slli a1, s0, 1
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 1000);
    asm::pad_to(&mut ops, 0x43c);
    rv!(ops ; ->f: ; addi a0, zero, 0 ; addi a0, a0, 0 ; ret);
    frame::finish("line_crossing_store", m, ops)
}

pub(super) fn half_data_half_code(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // sd, misaligned: its first half is data at the end of a line, its second the code that the next line starts with.
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; slli t3, t1, 32
        ; or t3, t3, s0
        ; sd t3, [s1, -4]
        ; .bytes m.sync()
        ; jal ra, ->f
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; lw a0, [s1, -4]);
    asm::expect_equal(&mut ops, 2);
    repeat(&mut ops, 1000);
    asm::pad_to(&mut ops, 0x440);
    rv!(ops ; ->f: ; addi a0, zero, -1 ; ret);
    frame::finish("half_data_half_code", m, ops)
}

pub(super) fn misaligned_half_word(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // sh at an odd address: bytes 1 and 2 of the instruction, the immediate's lower four bits among them.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; ->again:
        ; andi a1, s0, 15
        ; slli t1, a1, 12
        ; li.12 t2, asm::LOAD_A0 >> 8
        ; or t1, t1, t2
        ; sh t1, [s1, 1]
        ; .bytes m.sync()
        ; jal ra, ->f
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 1000);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 0 ; ret);
    frame::finish("misaligned_half_word", m, ops)
}

pub(super) fn misaligned_double_word(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // sd three bytes before the function: padding, its first instruction, and a byte of its second.
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; slli t1, t1, 24
        ; li.12 t2, word!(addi a0, a0, 1) & 0xff
        ; slli t2, t2, 56
        ; or t1, t1, t2
        ; sd t1, [s1, -3]
        ; .bytes m.sync()
        ; jal ra, ->f
        ; addi a1, s0, 1
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 1000);
    asm::pad_to(&mut ops, 0x448);
    rv!(ops ; ->f: ; addi a0, zero, 0 ; addi a0, a0, 1 ; ret);
    frame::finish("misaligned_double_word", m, ops)
}

pub(super) fn two_readings(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // One word with two readings: `lui a0, n << 4` at its start, `c.li a0, ..` in its middle. Both are entered, so two
    // blocks hold the bytes that change.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; ->again:
        ; andi s2, s0, 15
        ; slli t1, s2, 2
        ; li.32 t2, 0x4501
        ; or s3, t1, t2
        ; sh s3, [s1, 2]
        ; .bytes m.sync()
        ; jalr ra, s1, 2
        ; mv a1, s2
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; jalr ra, s1, 0 ; slli a1, s3, 16);
    asm::expect_equal(&mut ops, 2);
    repeat(&mut ops, 1000);
    rv!(ops ; .align 64 ; ->f: ; .u32 0x4501_0537 ; ret);
    frame::finish("two_readings", m, ops)
}

pub(super) fn neighbours(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The bytes right before and right behind a function are data, and it stays what it is.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; ->again:
        ; sb s0, [s1, -1]
        ; sw s0, [s1, 8]
        ; jal ra, ->f
    );
    asm::expect(&mut ops, 1, 77);
    rv!(ops ; lw a0, [s1, 8] ; mv a1, s0);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; lbu a0, [s1, -1] ; andi a1, s0, 255);
    asm::expect_equal(&mut ops, 3);
    repeat(&mut ops, 1000);
    asm::pad_to(&mut ops, 0x448);
    rv!(ops ; ->f: ; addi a0, zero, 77 ; ret ; .u32 0);
    frame::finish("neighbours", m, ops)
}

pub(super) fn data_in_the_line(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->counter
        ; li.12 s0, 0
        ; li.12 s2, 2000
        ; again:
        ; jal ra, ->bump
        ; addi s0, s0, 1
        ; bne s0, s2, <again
        ; ld a0, [s1]
    );
    asm::expect(&mut ops, 1, 2000);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->bump: ; ld t0, [s1] ; addi t0, t0, 1 ; sd t0, [s1] ; ret ; ->counter: ; .u64 0);
    frame::finish("data_in_the_line", m, ops)
}

pub(super) fn same_value(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Written, but not changed: no reader may notice.
    rv!(ops ; la s1, ->f ; lw t1, [s1] ; li.12 s0, 0 ; ->again: ; sw t1, [s1] ; jal ra, ->f);
    asm::expect(&mut ops, 1, 77);
    repeat(&mut ops, 1000);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 77 ; ret);
    frame::finish("same_value", m, ops)
}

pub(super) fn stack_beside_code(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The stack is the upper half of the page that holds the code: 1 + .. + 15 by recursion.
    rv!(ops
        ; la sp, ->stack
        ; li.12 s0, 0
        ; ->again:
        ; li.12 a0, 15
        ; jal ra, ->sum
    );
    asm::expect(&mut ops, 1, 120);
    repeat(&mut ops, 500);
    asm::pad_to(&mut ops, 0x400);
    rv!(ops
        ; ->sum:
        ; beqz a0, >bottom
        ; addi sp, sp, -16
        ; sd ra, [sp]
        ; sd a0, [sp, 8]
        ; addi a0, a0, -1
        ; jal ra, ->sum
        ; ld t0, [sp, 8]
        ; add a0, a0, t0
        ; ld ra, [sp]
        ; addi sp, sp, 16
        ; bottom:
        ; ret
    );
    asm::pad_to(&mut ops, 0xc00);
    rv!(ops ; ->stack: ; .u64 0);
    frame::finish("stack_beside_code", m, ops)
}

pub(super) fn loop_over_two_pages(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A hot loop whose body lies on two pages patches the half on the second page, later the half on the first.
    rv!(ops
        ; la s1, ->body
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; li.12 s3, 0
        ; li.32 s4, word!(addi s2, s2, 3)
        ; li.32 s5, word!(addi s3, s3, 5)
        ; li.12 s6, 500
        ; li.12 s7, 800
        ; li.12 s8, 1000
        ; j ->body
    );
    asm::pad_to(&mut ops, 0xff4);
    rv!(ops
        ; ->body:
        ; addi s2, s2, 1
        ; addi s0, s0, 1
        ; xor t0, s0, s6
        ; addi s3, s3, 1      // the second page
        ; bnez t0, >not_second
        ; sw s5, [s1, 12]
        ; .bytes m.sync()
        ; not_second:
        ; bne s0, s7, >not_first
        ; sw s4, [s1]
        ; .bytes m.sync()
        ; not_first:
        ; bne s0, s8, ->body
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 800 + 3 * 200);
    rv!(ops ; mv a0, s3);
    asm::expect(&mut ops, 2, 500 + 5 * 500);
    asm::pass(&mut ops);
    frame::finish("loop_over_two_pages", m, ops)
}

pub(super) fn large_region(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function in each of 16 pages; all are patched before the one fence.i, then all are run.
    rv!(ops
        ; li.43 s1, (BASE + 0x2_0000) as i64
        ; lui s3, 0x1000
        ; slli s4, s3, 4
        ; add s4, s4, s1
        ; li.32 s5, word!(ret)
        ; li.12 s0, 0
        ; ->again:
        ; li.32 t1, word!(addi a0, a0, 0)
        ; slli t2, s0, 20
        ; or t1, t1, t2
        ; mv s2, s1
        ; write:
        ; sw t1, [s2]
        ; sw s5, [s2, 4]
        ; add s2, s2, s3
        ; bne s2, s4, <write
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; mv s2, s1
        ; run:
        ; jalr ra, s2, 0
        ; add s2, s2, s3
        ; bne s2, s4, <run
        ; slli a1, s0, 4
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 100);
    frame::finish("large_region", m, ops)
}

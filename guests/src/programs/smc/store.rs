//! What wrote the code: stores of every kind, and what the page was before.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, BASE, rv, word};
use super::Alias;
use super::form::Form;
use super::frame;

/// RAM once more, at 4 GiB.
pub(super) const ALIAS: Alias = Alias { base: 0x1_0000_0000, target: BASE, len: 1 << 20 };

pub(super) fn each_width(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    // sb: bits 31..24, the immediate's upper eight.
    rv!(ops ; sb s0, [s1, 3] ; .bytes m.sync() ; jal ra, ->f ; slli a1, s0, 4);
    asm::expect_equal(&mut ops, 1);
    // sh: the whole immediate, above the register number's upper bits, which are zero.
    rv!(ops ; slli t1, s0, 4 ; sh t1, [s1, 2] ; .bytes m.sync() ; jal ra, ->f ; mv a1, s0);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; addi t0, s0, 7 ; slli t1, t0, 20 ; ori t1, t1, asm::LOAD_A0 ; sw t1, [s1] ; .bytes m.sync() ; jal ra, ->f ; mv a1, t0);
    asm::expect_equal(&mut ops, 3);
    // sd: this instruction and the next, which adds.
    rv!(ops
        ; addi t0, s0, 9
        ; slli t1, t0, 20
        ; ori t2, t1, asm::LOAD_A0
        ; li.32 t3, word!(addi a0, a0, 0)
        ; or t1, t1, t3
        ; slli t1, t1, 32
        ; or t1, t1, t2
        ; sd t1, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; slli a1, t0, 1
    );
    asm::expect_equal(&mut ops, 4);
    // As before the round.
    rv!(ops
        ; li.32 t1, asm::LOAD_A0
        ; sw t1, [s1] ; .bytes m.sync()
        ; li.32 t1, word!(addi a0, a0, 0)
        ; sw t1, [s1, 4]
        ; addi s0, s0, 1
        ; li.12 t2, 40
        ; beq s0, t2, >done
        ; jump ->again, t6
        ; done:
    );
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 0 ; addi a0, a0, 0 ; ret);
    frame::finish("each_width", m, ops)
}

pub(super) fn page_crossing_store(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    // sd over the last instruction of one page and the first of the next.
    rv!(ops
        ; slli t1, s0, 20
        ; li.32 t2, word!(addi a0, a0, 0)
        ; or t1, t1, t2
        ; slli t3, t1, 32
        ; or t3, t3, t1
        ; sd t3, [s1, 4]
        ; .bytes m.sync() ; jal ra, ->f
        ; slli a1, s0, 1
    );
    asm::expect_equal(&mut ops, 1);
    // sw over the upper half of the one (its immediate) and the lower half of the other (which stays as it is).
    rv!(ops
        ; addi t0, s0, 1
        ; slli t1, t0, 4
        ; li.32 t2, word!(addi a0, a0, 0) << 16
        ; or t1, t1, t2
        ; ori t1, t1, word!(addi a0, a0, 0) >> 16
        ; sw t1, [s1, 6]
        ; .bytes m.sync() ; jal ra, ->f
        ; slli a1, s0, 1
        ; addi a1, a1, 1
    );
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 40 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0xff8);
    rv!(ops ; ->f: ; addi a0, zero, 0 ; addi a0, a0, 0 ; addi a0, a0, 0 ; ret);
    frame::finish("page_crossing_store", m, ops)
}

pub(super) fn misaligned_store(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // sw at an odd address: bytes 1..4 of f's first instruction and byte 0 of the next one.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; again:
        ; slli t1, s0, 12
        ; li.32 t2, (asm::LOAD_A0 >> 8) | (word!(addi a0, a0, 0) << 24)
        ; or t1, t1, t2
        ; sw t1, [s1, 1]
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 40 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 0 ; addi a0, a0, 0 ; ret);
    frame::finish("misaligned_store", m, ops)
}

pub(super) fn amo_and_sc(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 1, 0);
    rv!(ops ; ->again:);
    // amoadd moves the immediate on by one.
    rv!(ops ; lui t1, 1 << 20 ; amoadd.w t0, t1, [s1] ; .bytes m.sync() ; jal ra, ->f ; addi a1, s0, 1);
    asm::expect_equal(&mut ops, 2);
    rv!(ops
        ; addi t0, s0, 100
        ; slli t1, t0, 20
        ; ori t1, t1, asm::LOAD_A0
        ; amoswap.w t2, t1, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, t0
    );
    asm::expect_equal(&mut ops, 3);
    rv!(ops
        ; addi t0, s0, 200
        ; slli t1, t0, 20
        ; ori t1, t1, asm::LOAD_A0
        ; retry:
        ; lr.w t2, [s1]
        ; sc.w t3, t1, [s1]
        ; bnez t3, <retry
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, t0
    );
    asm::expect_equal(&mut ops, 4);
    rv!(ops
        ; ld t2, [s1]
        ; srli t2, t2, 32
        ; slli t2, t2, 32
        ; addi t0, s0, 1
        ; slli t1, t0, 20
        ; ori t1, t1, asm::LOAD_A0
        ; or t1, t1, t2
        ; amoswap.d t2, t1, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, t0
    );
    asm::expect_equal(&mut ops, 5);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 40 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 0 ; ret);
    frame::finish("amo_and_sc", m, ops)
}

pub(super) fn compressed(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // f is: c.li a0, imm; c.nop; ret. The two 16-bit instructions give way to one of 32 bits, and come back.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; ->again:
        ; andi t0, s0, 31
        ; slli t1, t0, 2
        ; li.32 t2, 0x4501         // c.li a0, 0
        ; or t1, t1, t2
        ; sh t1, [s1]
        ; li.12 t3, 1              // c.nop
        ; sh t3, [s1, 2]
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, t0
    );
    asm::expect_equal(&mut ops, 1);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; jal ra, ->f ; mv a1, s0);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 31 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; c.li a0, 0 ; c.nop ; ret);
    frame::finish("compressed", m, ops)
}

pub(super) fn data_code_data_code(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; li.43 s1, 0x8001_0000
        ; li.12 s0, 0
        ; ->again:
        // Data: 512 double words, written and added up.
        ; li.12 t0, 0
        ; mv t1, s1
        ; li.12 t2, 512
        ; fill:
        ; sd t0, [t1]
        ; addi t1, t1, 8
        ; addi t0, t0, 1
        ; bne t0, t2, <fill
        ; li.12 a0, 0
        ; mv t1, s1
        ; li.12 t0, 0
        ; sum:
        ; ld t3, [t1]
        ; add a0, a0, t3
        ; addi t1, t1, 8
        ; addi t0, t0, 1
        ; bne t0, t2, <sum
    );
    asm::expect(&mut ops, 1, 511 * 256);
    // Code: a function at the page's start and one at its end.
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; sw t1, [s1] ; .bytes m.sync()
        ; li.32 t2, word!(ret)
        ; sw t2, [s1, 4]
        ; lui t3, 0x1000
        ; add t3, t3, s1
        ; sw t1, [t3, -8]
        ; sw t2, [t3, -4]
        ; .bytes m.sync() ; jalr ra, s1, 0
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; .bytes m.sync() ; jalr ra, t3, -8 ; mv a1, s0);
    asm::expect_equal(&mut ops, 3);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 10 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    frame::finish("data_code_data_code", m, ops)
}

pub(super) fn toggling(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; li.32 s3, word!(addi s2, s2, 1)
        ; li.32 s4, word!(addi s2, s2, 2)
        ; li.12 s5, 2000
        ; again:
        ; sw s4, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; sw s3, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; addi s0, s0, 1
        ; bne s0, s5, <again
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 6000);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi s2, s2, 1 ; ret);
    frame::finish("toggling", m, ops)
}

pub(super) fn packed(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Eight words are decrypted, run, and encrypted again, with another key in each round.
    rv!(ops
        ; la s1, ->f
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; li.32 s3, 0x5a5a_1234
        ; again:
        ; jal ra, ->crypt          // first round: encrypts
        ; jal ra, ->crypt          // decrypts
        ; mv s6, ra
        ; .bytes m.sync() ; jal ra, ->f
        ; add s2, s2, a0
        ; addi s3, s3, 0x111
        ; addi s0, s0, 1
        ; li.12 t2, 20
        ; bne s0, t2, <again
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 20 * 28);
    asm::pass(&mut ops);
    rv!(ops
        ; .align 64
        ; ->crypt:
        ; mv t0, s1
        ; addi t1, s1, 32
        ; word:
        ; lw t2, [t0]
        ; xor t2, t2, s3
        ; sw t2, [t0]
        ; addi t0, t0, 4
        ; bltu t0, t1, <word
        ; ret
        ; .align 64
        ; ->f:
        ; addi a0, zero, 1
        ; addi a0, a0, 2
        ; addi a0, a0, 3
        ; addi a0, a0, 4
        ; addi a0, a0, 5
        ; addi a0, a0, 6
        ; addi a0, a0, 7
        ; ret
    );
    frame::finish("packed", m, ops)
}

pub(super) fn two_addresses(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // s1 is f, s3 is f again, through the alias. The code is written through one and run through the other.
    rv!(ops
        ; la s1, ->f
        ; li.43 t0, (ALIAS.base - ALIAS.target) as i64
        ; add s3, s1, t0
        ; .bytes m.sync() ; jalr ra, s1, 0
    );
    asm::expect(&mut ops, 1, 1000);
    rv!(ops ; .bytes m.sync() ; jalr ra, s3, 0);
    asm::expect(&mut ops, 2, 1000);
    rv!(ops ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s3] ; .bytes m.sync() ; jalr ra, s1, 0 ; mv a1, s0);
    asm::expect_equal(&mut ops, 3);
    rv!(ops ; .bytes m.sync() ; jalr ra, s3, 0 ; mv a1, s0);
    asm::expect_equal(&mut ops, 4);
    rv!(ops ; addi t0, s0, 500 ; slli t1, t0, 20 ; ori t1, t1, asm::LOAD_A0 ; sw t1, [s1] ; .bytes m.sync() ; jalr ra, s3, 0 ; mv a1, t0);
    asm::expect_equal(&mut ops, 5);
    rv!(ops ; .bytes m.sync() ; jalr ra, s1, 0 ; mv a1, t0);
    asm::expect_equal(&mut ops, 6);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 40 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 1000 ; ret);
    frame::finish("two_addresses", m, ops)
}

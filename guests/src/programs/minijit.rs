//! A guest that is itself a JIT: it turns little random programs into code, runs them, and compares with interpreting.
//!
//! A program is a list of (operation, operand) pairs on one accumulator. Each is emitted as one instruction into the
//! same buffer, over the last one's code, so every round is a fresh piece of self-modification.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, rv, word};

/// Runs `rounds` random programs of up to 16 operations each.
pub fn minijit(rounds: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; li.32 s0, rounds
        ; li.43 s2, 0x5DEE_CE66D       // multiplier of the random numbers
        ; li.32 s3, 12345              // their state
        ; la s1, ->buffer
        ; round:
        ; li.12 a0, 7                  // accumulator of the interpreter
        ; mv s4, s1                    // where the next instruction goes
        ; mul s3, s3, s2
        ; addi s3, s3, 11
        ; srli s5, s3, 20
        ; andi s5, s5, 15
        ; addi s5, s5, 1               // operations in this program
        ; operation:
        ; mul s3, s3, s2
        ; addi s3, s3, 11
        ; srli t0, s3, 24
        ; andi t1, t0, 3               // which
        ; srli t0, t0, 8
        ; andi t0, t0, 0x3ff           // operand
        ; slli t2, t0, 20
        ; bnez t1, >not_add
        ; add a0, a0, t0
        ; li.32 t3, word!(addi a0, a0, 0)
        ; j >emit
        ; not_add:
        ; addi t1, t1, -1
        ; bnez t1, >not_xor
        ; xor a0, a0, t0
        ; li.32 t3, word!(xori a0, a0, 0)
        ; j >emit
        ; not_xor:
        ; addi t1, t1, -1
        ; bnez t1, >not_shift
        ; andi t0, t0, 31
        ; slli t2, t0, 20
        ; sll a0, a0, t0
        ; li.32 t3, word!(slli a0, a0, 0)
        ; j >emit
        ; not_shift:
        ; sub a0, zero, a0
        ; li.12 t2, 0
        ; li.32 t3, word!(sub a0, zero, a0)
        ; emit:
        ; or t3, t3, t2
        ; sw t3, [s4]
        ; addi s4, s4, 4
        ; addi s5, s5, -1
        ; bnez s5, <operation
        ; li.32 t3, word!(ret)
        ; sw t3, [s4]
        ; mv a1, a0
        ; li.12 a0, 7
        ; jalr ra, s1, 0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, -1 ; beqz s0, >all ; jump <round, t6 ; all:);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->buffer:);
    for _ in 0..32 {
        rv!(ops ; .u32 0);
    }
    asm::finish("minijit", ops)
}

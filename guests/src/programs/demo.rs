//! What `notdirty` runs when it is given nothing: a program that prints, patches its own code in three ways, computes.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, rv};
use super::{basic, sieve};

const PATCHES: i32 = 60_000;
const TOGGLES: i32 = 20_000;
const EMITTED: i32 = 20_000;
const LIMIT: i32 = 2_000_000;
const PRIMES: i32 = 148_933;

/// The demo: ends well when every count is right.
pub fn demo() -> GuestImage {
    let mut ops = asm::program();
    say(&mut ops, "notdirty: a bare-metal RV64IMAC guest that rewrites itself while it runs.\n\n");

    say(&mut ops, "  a function in another page, patched before each call: ");
    rv!(ops ; la s1, ->far ; li.12 s0, 0 ; li.32 s2, PATCHES ; li.12 s3, 0
        ; again:
        ; andi t2, s0, 0x3ff
        ; slli t1, t2, 20
        ; ori t1, t1, asm::LOAD_A0
        ; sw t1, [s1]
        ; jal ra, ->far
        ; mv a1, t2
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; bne s0, s2, <again ; mv a0, s0 ; jal ra, ->number);
    say(&mut ops, " patches\n  the very next instruction, patched in a loop:          ");
    rv!(ops ; la s1, ->next ; li.12 s0, 0 ; li.32 s2, TOGGLES
        ; again:
        ; andi t2, s0, 1
        ; slli t1, t2, 20
        ; ori t1, t1, asm::LOAD_A0
        ; sw t1, [s1]
        ; ->next:
        ; addi a0, zero, -1
        ; mv a1, t2
    );
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; addi s0, s0, 1 ; bne s0, s2, <again ; mv a0, s0 ; jal ra, ->number);
    say(&mut ops, " patches\n  functions emitted one over the other, and called:      ");
    // f(x) = x + n + n + ... , eight times, then return.
    rv!(ops ; la s1, ->buffer ; li.12 s0, 0 ; li.32 s2, EMITTED
        ; again:
        ; andi t2, s0, 0xff
        ; slli t1, t2, 20
        ; li.32 t3, asm::word!(addi a0, a0, 0)
        ; or t1, t1, t3
        ; addi t4, s1, 32
        ; mv t5, s1
        ; emit:
        ; sw t1, [t5]
        ; addi t5, t5, 4
        ; bltu t5, t4, <emit
        ; li.32 t3, asm::word!(ret)
        ; sw t3, [t5]
        ; li.12 a0, 0
        ; jalr ra, s1, 0
        ; slli a1, t2, 3
    );
    asm::expect_equal(&mut ops, 3);
    rv!(ops ; addi s0, s0, 1 ; bne s0, s2, <again ; mv a0, s0 ; jal ra, ->number);
    say(&mut ops, " functions\n  and a sieve, which leaves its code alone:              ");
    rv!(ops ; li.32 a0, LIMIT ; jal ra, ->sieve ; mv s3, a0 ; jal ra, ->number ; mv a0, s3);
    asm::expect(&mut ops, 4, PRIMES);
    say(&mut ops, " primes below 2000000\n\n");
    asm::pass(&mut ops);

    basic::puts(&mut ops);
    number(&mut ops);
    sieve::routine(&mut ops);
    rv!(ops ; .align 64 ; ->buffer:);
    for _ in 0..16 {
        rv!(ops ; .u32 0);
    }
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->far: ; addi a0, zero, 0 ; ret);
    asm::finish("demo", ops)
}

/// Prints a text that stands in the code behind a jump over it.
fn say(ops: &mut Asm, text: &str) {
    rv!(ops
        ; la a0, >text
        ; jal ra, ->puts
        ; j >over
        ; text:
        ; .bytes text.as_bytes()
        ; .u8 0
        ; .align 4
        ; over:
    );
}

/// `number`: prints a0 in decimal. Uses a0, t0..t3.
fn number(ops: &mut Asm) {
    rv!(ops
        ; .align 4
        ; ->number:
        ; addi sp, sp, -48
        ; sd ra, [sp, 40]
        ; addi t0, sp, 39
        ; sb zero, [t0]
        ; li.12 t1, 10
        ; digit:
        ; remu t2, a0, t1
        ; divu a0, a0, t1
        ; addi t2, t2, 48
        ; addi t0, t0, -1
        ; sb t2, [t0]
        ; bnez a0, <digit
        ; mv a0, t0
        ; jal ra, ->puts
        ; ld ra, [sp, 40]
        ; addi sp, sp, 48
        ; ret
    );
}

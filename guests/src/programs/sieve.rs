//! The sieve of Eratosthenes: plain loads, stores and loops, one byte a number.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, rv};

/// Where the bytes are: far behind the program, in ordinary RAM.
pub(super) const TABLE: i64 = 0x8010_0000;

/// Counts the primes below `limit` and compares with `count`.
pub fn sieve(limit: i32, count: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.32 a0, limit ; jal ra, ->sieve);
    asm::expect(&mut ops, 1, count);
    asm::pass(&mut ops);
    routine(&mut ops);
    asm::finish("sieve", ops)
}

/// `sieve`: a0 = limit in, number of primes below it out. Uses t0..t5.
pub(super) fn routine(ops: &mut Asm) {
    rv!(ops
        ; .align 4
        ; ->sieve:
        ; li.43 t0, TABLE
        ; add t1, t0, a0
        ; clear:
        ; sb zero, [t0]
        ; addi t0, t0, 1
        ; bltu t0, t1, <clear
        ; li.43 t0, TABLE
        ; li.12 t1, 2          // number
        ; li.12 t2, 0          // primes so far
        ; number:
        ; add t3, t0, t1
        ; lbu t4, [t3]
        ; bnez t4, >composite
        ; addi t2, t2, 1
        ; add t5, t1, t1
        ; li.12 t4, 1
        ; strike:
        ; bgeu t5, a0, >composite
        ; add t3, t0, t5
        ; sb t4, [t3]
        ; add t5, t5, t1
        ; j <strike
        ; composite:
        ; addi t1, t1, 1
        ; bltu t1, a0, <number
        ; mv a0, t2
        ; ret
    );
}

//! A target of two harts, which both take objects from a stack and give them back without a lock.
//!
//! ```text
//!   hart 0: ready, sets GO ─┐                          ┌─ both have done as many rounds as the input's first byte says ─▶ done
//!   hart 1: waits for GO ───┴─▶ take, mark, use, give ─┴─ an object bears the other's mark: a store where nothing is
//! ```
//!
//! Most orders of the two find nothing: which do is up to the seed of their turns.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::{HEAP, INPUT, Target};
use crate::programs::asm::{self, BASE, rv};

/// From HEAP on: objects that are free, whether hart 1 may begin, harts that are done.
const COUNT: i32 = 0;
const GO: i32 = 8;
const DONE: i32 = 16;
/// The stack, and the objects.
const STACK: i32 = 64;
const OBJECTS: i32 = 256;

/// Assembles it.
pub fn race() -> Target {
    let mut ops = asm::start();
    rv!(ops
        ; mv s7, a0
        ; li.32 s2, HEAP
        ; slli s2, s2, 32 ; srli s2, s2, 32
        ; addi s3, s2, STACK
        ; addi s8, s7, 1
        ; bnez s7, >wait
        ; li.12 t0, 4 // objects
        ; sd t0, [s2, COUNT]
        ; addi t1, s2, OBJECTS
        ; mv t2, s3
        ; fill:
        ; sd t1, [t2]
        ; addi t1, t1, 64
        ; addi t2, t2, 8
        ; addi t0, t0, -1
        ; bnez t0, <fill
    );
    let ready = BASE + ops.offset().0 as u64;
    rv!(ops
        ; li.12 t0, 1
        ; sd t0, [s2, GO]
        ; j >begin
        ; wait:
        ; ld t0, [s2, GO]
        ; beqz t0, <wait
        ; begin:
        ; li.43 s0, INPUT as i64
        ; ld s1, [s0]
        ; beqz s1, >end
        ; lbu s1, [s0, 8]
        ; round:
        ; beqz s1, >end
        ; addi s1, s1, -1
        ; ld t0, [s2, COUNT]
        ; beqz t0, <round
        ; addi t0, t0, -1
        ; slli t1, t0, 3
        ; add t1, t1, s3
        ; ld t2, [t1] // here: the other takes the same
        ; sd t0, [s2, COUNT]
        ; sd s8, [t2]
        ; mul t3, s1, s8
        ; xor t3, t3, s8
        ; ld t4, [t2]
        ; beq t4, s8, >mine
        ; sd t3, [zero, 8]
        ; mine:
        ; ld t0, [s2, COUNT]
        ; slli t1, t0, 3
        ; add t1, t1, s3
        ; sd t2, [t1]
        ; addi t0, t0, 1
        ; sd t0, [s2, COUNT]
        ; j <round
        ; end:
        ; addi t1, s2, DONE
        ; li.12 t0, 1
        ; amoadd.d zero, t0, [t1]
        ; all:
        ; ld t0, [s2, DONE]
        ; addi t0, t0, -2
        ; bnez t0, <all
        ; idle:
        ; bnez s7, <idle
    );
    let done = BASE + ops.offset().0 as u64;
    asm::pass(&mut ops);
    Target { image: asm::finish("race", ops), ready, done }
}

//! Harts that share counters, locks and lists by AMOs, LR and SC.
use super::*;

/// Each hart adds 1 to shared cells `rounds` times, by AMOs of both widths and by LR and SC.
pub fn counters(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops
        ; li.32 s0, rounds
        ; li.12 s1, 1
        ; addi s2, s9, COUNTER
        ; addi s3, s9, SECOND
        ; addi s4, s9, LOCK
    );
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; amoadd.d zero, s1, [s2]
        ; amoadd.w zero, s1, [s3]
        ; retry:
        ; lr.d t0, [s4]
        ; addi t0, t0, 1
        ; sc.d t1, t0, [s4]
        ; bnez t1, <retry
        ; addi s0, s0, -1
        ; bnez s0, <again
    );
    only_hart_0(&mut ops);
    for (code, cell) in [(1, COUNTER), (2, SECOND), (3, LOCK)] {
        rv!(ops ; ld a0, [s9, cell]);
        asm::expect(&mut ops, code, harts as i32 * rounds);
    }
    finish("smp-counters", ops)
}

/// Plain words under a lock of LR and SC, released by a plain store behind a fence.
pub fn lock(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops ; li.32 s0, rounds ; addi s2, s9, LOCK ; li.12 s1, 1);
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; acquire:
        ; lr.w t0, [s2]
        ; bnez t0, <acquire
        ; sc.w t0, s1, [s2]
        ; bnez t0, <acquire
        ; .u32 FENCE_R_RW
        // Two words that agree whenever no hart is inside.
        ; ld t0, [s9, COUNTER]
        ; ld t1, [s9, SECOND]
        ; mv a0, t0
        ; mv a1, t1
        ; addi t0, t0, 1
        ; sd t0, [s9, COUNTER]
        ; addi t1, t1, 1
        ; sd t1, [s9, SECOND]
        ; .u32 FENCE_RW_W
        ; sw zero, [s2]
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, -1 ; beqz s0, >done ; j <again ; done:);
    only_hart_0(&mut ops);
    rv!(ops ; ld a0, [s9, COUNTER]);
    asm::expect(&mut ops, 2, harts as i32 * rounds);
    finish("smp-lock", ops)
}

/// Hart 0 reserves a word, hart 1 stores another value and the old one, then hart 0's SC must fail; so many times. Two harts.
pub fn changed_back(rounds: i32) -> GuestImage {
    let mut ops = program(2);
    rv!(ops
        ; li.32 s0, rounds
        ; addi s2, s9, COUNTER
        ; addi s3, s9, SECOND
        ; addi s4, s9, LOCK
        ; li.12 s5, 0
        ; li.12 s6, 0
        ; li.12 s7, 5
    );
    barrier(&mut ops);
    rv!(ops
        ; bnez s11, >other
        ; again:
        ; addi s6, s6, 1
        ; sd s7, [s2]
        ; lr.d t0, [s2]
        ; .u32 FENCE
        ; sd s6, [s3]
        ; wait:
        ; ld t1, [s4]
        ; bne t1, s6, <wait
        ; .u32 FENCE
        ; li.12 t2, 9
        ; sc.d t1, t2, [s2]
        ; seqz t1, t1
        ; add s5, s5, t1
        ; bne s6, s0, <again
        ; j >done
        ; other:
        ; addi s6, s6, 1
        ; wait:
        ; ld t1, [s3]
        ; bne t1, s6, <wait
        ; .u32 FENCE
        ; sd zero, [s2]
        ; .u32 FENCE
        ; sd s7, [s2]
        ; .u32 FENCE
        ; sd s6, [s4]
        ; bne s6, s0, <other
        ; done:
    );
    only_hart_0(&mut ops);
    rv!(ops ; mv a0, s5);
    asm::expect(&mut ops, 1, 0);
    finish("smp-changed-back", ops)
}

/// Nodes of [`free_list`].
const NODES: i32 = 8;

/// A stack of free nodes; LR and SC swing its head, without a count beside it: each hart pops two, looks that no other has
/// them, and pushes them.
pub fn free_list(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops
        ; j >start
        ; ->pop:
        ; again:
        ; lr.d a0, [s2]
        ; beqz a0, >empty
        ; ld t0, [a0]
        ; sc.d t1, t0, [s2]
        ; bnez t1, <again
        ; empty:
        ; ret
        ; ->push:
        ; beqz a0, >none
        ; again:
        ; lr.d t0, [s2]
        ; sd t0, [a0]
        ; .u32 FENCE_W_W
        ; sc.d t1, a0, [s2]
        ; bnez t1, <again
        ; none:
        ; ret
        // Takes node a0 for this hart; a0 is what had it.
        ; ->own:
        ; beqz a0, >none
        ; addi t1, a0, 8
        ; addi t2, s11, 1
        ; amoswap.d a0, t2, [t1]
        ; none:
        ; ret
        ; start:
        ; li.32 s0, rounds
        ; addi s2, s9, COUNTER
        ; li.32 t0, CELLS_X
        ; add s7, s9, t0
        ; bnez s11, >built
        ; li.12 t0, NODES
        ; li.12 t1, 0
        ; mv t2, s7
        ; build:
        ; sd t1, [t2]
        ; mv t1, t2
        ; addi t2, t2, 64
        ; addi t0, t0, -1
        ; bnez t0, <build
        ; sd t1, [s2]
        ; built:
    );
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; call ->pop
        ; mv s3, a0
        ; call ->pop
        ; mv s4, a0
        ; mv a0, s3
        ; call ->own
    );
    asm::expect(&mut ops, 1, 0);
    rv!(ops ; mv a0, s4 ; call ->own);
    asm::expect(&mut ops, 2, 0);
    rv!(ops
        ; beqz s3, >none
        ; sd zero, [s3, 8]
        ; none:
        ; beqz s4, >none
        ; sd zero, [s4, 8]
        ; none:
        ; mv a0, s3
        ; call ->push
        ; mv a0, s4
        ; call ->push
        ; addi s0, s0, -1
        ; beqz s0, >done
        ; j <again
        ; done:
    );
    only_hart_0(&mut ops);
    rv!(ops
        ; ld t0, [s2]
        ; li.12 a0, 0
        ; li.12 t1, 100
        ; count:
        ; beqz t0, >end
        ; beq a0, t1, >end
        ; addi a0, a0, 1
        ; ld t0, [t0]
        ; j <count
        ; end:
    );
    asm::expect(&mut ops, 3, NODES);
    finish("smp-free-list", ops)
}

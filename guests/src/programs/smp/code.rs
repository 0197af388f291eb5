//! Code that one hart writes and another runs.
use super::*;

/// Puts `lui a0, n` for the version in `t0` at FUNCTION, which s6 points to; uses t1 and t2.
fn write_function(ops: &mut Asm) {
    rv!(ops
        ; slli t1, t0, 12
        ; li.32 t2, LUI_A0
        ; or t1, t1, t2
        ; sw t1, [s6]
    );
}

fn function_address(ops: &mut Asm) {
    rv!(ops ; li.43 s6, FUNCTION as i64);
}

/// Hart 0 writes a function anew, then a flag; the others see the flag, do `fence.i` and call it: it must be the new
/// one. Each version waits for the others, and `pause` loops more: with a long one the code is hot, and every hart has
/// answered for it, when it is written over.
pub fn handshake(harts: usize, rounds: i32, pause: i32) -> GuestImage {
    let mut ops = program(harts);
    function_address(&mut ops);
    rv!(ops ; li.12 s0, 0 ; li.32 s1, rounds ; bnez s11, >wait ; li.12 t0, 0);
    write_function(&mut ops);
    rv!(ops ; li.32 t1, RET ; sw t1, [s6, 4] ; wait:);
    barrier(&mut ops);
    rv!(ops
        ; bnez s11, >reader
        ; again:
        ; li.32 t0, pause
        ; spin:
        ; addi t0, t0, -1
        ; bgez t0, <spin
        ; addi s0, s0, 1
        ; mv t0, s0
    );
    write_function(&mut ops);
    rv!(ops
        ; .u32 FENCE_W_W
        ; sd s0, [s9, FLAG]
        ; addi t0, s8, -1
        ; mul t0, t0, s0
        ; answered:
        ; ld t1, [s9, ACK]
        ; bne t1, t0, <answered
        ; .u32 FENCE
        ; blt s0, s1, <again
        ; j ->done
        ; reader:
        ; again_too:
        ; addi s0, s0, 1
        ; j >flag
        ; old:
        ; jalr ra, s6, 0
        ; flag:
        ; ld t0, [s9, FLAG]
        ; bne t0, s0, <old
        ; .u32 FENCE_R_RW
        ; .u32 FENCE_I
        ; jalr ra, s6, 0
        ; srli a0, a0, 12
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops
        ; .u32 FENCE
        ; li.12 t0, 1
        ; addi t1, s9, ACK
        ; amoadd.d zero, t0, [t1]
        ; blt s0, s1, <again_too
        ; ->done:
    );
    only_hart_0(&mut ops);
    finish("smp-handshake", ops)
}

/// Everybody but a writer calls the function all the time: after the flag and a `fence.i` it is at least as new as the
/// flag said, and never newer than what was begun. Ends when the flag is [`LAST`].
fn follow_loop(ops: &mut Asm) {
    rv!(ops
        ; li.32 s5, LAST as i32
        ; follow:
        ; ld s2, [s9, FLAG]
        ; .u32 FENCE_R_RW
        ; .u32 FENCE_I
        ; jalr ra, s6, 0
        ; srli s3, a0, 12
        ; .u32 FENCE
        ; ld s4, [s9, INTENT]
        ; li.12 a0, 1
        ; bltu s3, s2, ->wrong
        ; li.12 a0, 2
        ; bltu s4, s3, ->wrong
        // Without a fence.i: any version from the flag's on may run, but no other bytes.
        ; jalr ra, s6, 0
        ; srli s3, a0, 12
        ; .u32 FENCE
        ; ld s4, [s9, INTENT]
        ; li.12 a0, 3
        ; bltu s3, s2, ->wrong
        ; li.12 a0, 4
        ; bltu s4, s3, ->wrong
        ; bltu s2, s5, <follow
        ; j >over
        ; ->wrong:
        ; jump ->fail, t6
        ; over:
    );
}

/// All harts call what the host writes, see [`FUNCTION`], [`FLAG`], [`INTENT`], [`LAST`].
pub fn follow(harts: usize) -> GuestImage {
    let mut ops = program(harts);
    function_address(&mut ops);
    follow_loop(&mut ops);
    only_hart_0(&mut ops);
    finish("smp-follow", ops)
}

/// Hart 0 writes the function as fast as it can, `rounds` versions; the others call it.
pub fn race(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    function_address(&mut ops);
    rv!(ops ; bnez s11, >wait ; li.12 t0, 0);
    write_function(&mut ops);
    rv!(ops ; li.32 t1, RET ; sw t1, [s6, 4] ; wait:);
    barrier(&mut ops);
    rv!(ops ; bnez s11, >reader ; li.32 s0, LAST as i32 - rounds ; li.32 s1, LAST as i32 ; again: ; addi s0, s0, 1);
    rv!(ops ; sd s0, [s9, INTENT] ; .u32 FENCE_W_W ; mv t0, s0);
    write_function(&mut ops);
    rv!(ops
        ; .u32 FENCE_W_W
        ; sd s0, [s9, FLAG]
        // Data beside the code, and a little time, which differs.
        ; sd s0, [s6, 64]
        ; andi t0, s0, 63
        ; spin:
        ; addi t0, t0, -1
        ; bgez t0, <spin
        ; blt s0, s1, <again
        ; j ->done
        ; reader:
    );
    follow_loop(&mut ops);
    rv!(ops ; ->done:);
    only_hart_0(&mut ops);
    finish("smp-race", ops)
}

/// Each hart patches a function of its own and calls it, all on one page, two to a line; and calls its neighbour's,
/// which is never newer than what that hart has begun.
pub fn neighbours(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    function_address(&mut ops);
    // Own function at s6, the neighbour's at s7; 32 bytes each. What was begun: one word a hart, a line apart, at s4.
    rv!(ops
        ; slli t0, s11, 5
        ; add s7, s6, t0
        ; xori t1, s11, 1
        ; slli t1, t1, 5
        ; add s3, s6, t1
        ; mv s6, s7
        ; mv s7, s3
        ; li.32 t0, CELLS_X
        ; add t0, t0, s9
        ; slli t1, s11, 6
        ; add s4, t0, t1
        ; xori t1, s11, 1
        ; slli t1, t1, 6
        ; add s5, t0, t1
        ; li.12 t0, 0
    );
    write_function(&mut ops);
    rv!(ops ; li.32 t1, RET ; sw t1, [s6, 4] ; .u32 FENCE ; .u32 FENCE_I ; li.12 s0, 0 ; li.32 s1, rounds);
    barrier(&mut ops);
    rv!(ops ; .u32 FENCE_I ; again: ; addi s0, s0, 1 ; sd s0, [s4] ; .u32 FENCE_W_W ; mv t0, s0);
    write_function(&mut ops);
    rv!(ops ; .u32 FENCE_I ; jalr ra, s6, 0 ; srli a0, a0, 12 ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops
        ; jalr ra, s7, 0
        ; srli a0, a0, 12
        ; .u32 FENCE
        ; ld a1, [s5]
        ; bgeu a1, a0, >good
        ; li.12 a0, 2
        ; jump ->fail, t6
        ; good:
        ; beq s0, s1, >done
        ; j <again
        ; done:
    );
    only_hart_0(&mut ops);
    finish("smp-neighbours", ops)
}

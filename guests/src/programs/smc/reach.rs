//! More ways to reach what was patched: regions with several exits, back edges, deep returns, many targets, a trap.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, rv, word};
use super::edge::repeat;
use super::form::{Form, T0, TrapCsr};
use super::frame;

pub(super) fn region_exits(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function with four ways out; the one that is taken next is patched.
    rv!(ops ; la s1, ->exits ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; andi t0, s0, 3
        ; slli t2, t0, 3
        ; add t2, t2, s1
        ; sw t1, [t2]
        ; .bytes m.sync()
        ; jal ra, ->f
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 1000);
    rv!(ops
        ; .align 64
        ; ->f:
        ; beqz t0, >zero
        ; addi t0, t0, -1
        ; beqz t0, >one
        ; addi t0, t0, -1
        ; beqz t0, >two
        ; j >three
        ; ->exits:
        ; zero:
        ; addi a0, zero, -1
        ; ret
        ; one:
        ; addi a0, zero, -1
        ; ret
        ; two:
        ; addi a0, zero, -1
        ; ret
        ; three:
        ; addi a0, zero, -1
        ; ret
    );
    frame::finish("region_exits", m, ops)
}

pub(super) fn back_edge(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A loop without another way out ends by overwriting its own backward jump.
    rv!(ops
        ; la s1, ->edge
        ; lw s3, [s1]
        ; li.32 s4, word!(addi zero, zero, 0)
        ; li.12 s5, 20
        ; li.12 s0, 0
        ; ->again:
        ; sw s3, [s1]
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; round:
        ; addi a0, a0, 1
        ; bne a0, s5, >not_yet
        ; sw s4, [s1]
        ; .bytes m.sync()
        ; not_yet:
        ; ->edge:
        ; j <round
    );
    asm::expect(&mut ops, 1, 20);
    repeat(&mut ops, 500);
    frame::finish("back_edge", m, ops)
}

pub(super) fn deep_return(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Eight calls deep, the innermost patches where the outermost returns to.
    rv!(ops ; la s1, >site ; li.12 s0, 0 ; ->again: ; li.12 s2, 8 ; jal ra, ->g ; site: ; addi a0, zero, -1 ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 500);
    rv!(ops
        ; .align 64
        ; ->g:
        ; addi s2, s2, -1
        ; beqz s2, >bottom
        ; addi sp, sp, -16
        ; sd ra, [sp]
        ; jal ra, ->g
        ; ld ra, [sp]
        ; addi sp, sp, 16
        ; ret
        ; bottom:
    );
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; ret);
    frame::finish("deep_return", m, ops)
}

pub(super) fn many_targets(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // One call site, four functions, patched in turn; the one patched the round before has to be as it was left.
    rv!(ops ; la s1, ->functions ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; andi t2, s0, 3
        ; slli t2, t2, 3
        ; add t2, t2, s1
        ; sw t1, [t2]
        ; .bytes m.sync()
        ; jal t5, ->call
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops
        ; addi a1, s0, -1
        ; andi t2, a1, 3
        ; slli t2, t2, 3
        ; add t2, t2, s1
        ; jal t5, ->call
    );
    asm::expect_equal(&mut ops, 2);
    repeat(&mut ops, 1000);
    rv!(ops ; ->call: ; jalr ra, t2, 0 ; jr t5 ; .align 64 ; ->functions:);
    for _ in 0..4 {
        rv!(ops ; addi a0, zero, -1 ; ret);
    }
    frame::finish("many_targets", m, ops)
}

pub(super) fn trap_handler(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->handler
        ; mv t0, s1
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.12 s0, 0
        ; ->again:
    );
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; ecall ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 500);
    rv!(ops
        ; .align 64
        ; ->handler:
        ; addi a0, zero, -1
        ; .u32 m.csrr(T0, TrapCsr::Epc)
        ; addi t0, t0, 4
        ; .u32 m.csrw(TrapCsr::Epc, T0)
        ; .u32 m.ret()
    );
    frame::finish("trap_handler", m, ops)
}

/// Calls the function at s1 after one atomic operation on its first word, and compares with the word as it is loaded.
macro_rules! after_amo {
    ($ops:ident, $m:ident, $code:literal, $value:expr ; $($amo:tt)*) => {
        rv!($ops ; li.32 t1, $value ; $($amo)* t0, t1, [s1] ; .bytes $m.sync() ; jal ra, ->f ; lw a1, [s1] ; sraiw a1, a1, 20);
        asm::expect_equal(&mut $ops, $code);
    };
}

#[allow(
    unused_comparisons,
    reason = "dynasm compares operands with their limits, and a macro hides that it is dynasm's"
)]
pub(super) fn every_amo(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again: ; ld s3, [s1]);
    after_amo!(ops, m, 1, word!(addi a0, zero, 0x155) ; amoswap.w);
    after_amo!(ops, m, 2, 0x12 << 20 ; amoadd.w);
    after_amo!(ops, m, 3, 0x0ff << 20 ; amoxor.w);
    after_amo!(ops, m, 4, !(0x0f0 << 20) ; amoand.w);
    after_amo!(ops, m, 5, 0x411 << 20 ; amoor.w);
    after_amo!(ops, m, 6, word!(addi a0, zero, 3) ; amomin.w);
    after_amo!(ops, m, 7, word!(addi a0, zero, 700) ; amomax.w);
    after_amo!(ops, m, 8, word!(addi a0, zero, 9) ; amominu.w);
    after_amo!(ops, m, 9, word!(addi a0, zero, 33) ; amomaxu.w);
    after_amo!(ops, m, 10, 1 << 20 ; amoadd.d);
    rv!(ops ; amoswap.d t0, s3, [s1] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 11, 77);
    repeat(&mut ops, 100);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 77 ; ret);
    frame::finish("every_amo", m, ops)
}

pub(super) fn failed_sc(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Without a reservation an SC writes nothing, so the code stays what it is.
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sc.w a0, t1, [s1] ; snez a0, a0);
    asm::expect(&mut ops, 1, 1);
    rv!(ops ; jal ra, ->f);
    asm::expect(&mut ops, 2, 77);
    repeat(&mut ops, 500);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 77 ; ret);
    frame::finish("failed_sc", m, ops)
}

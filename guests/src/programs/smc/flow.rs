//! How the patched code is reached.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, BASE, rv, word};
use super::form::{A0, Form, Mode, T0, TrapCsr};
use super::frame;

pub(super) fn chained_target(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->middle
        ; li.32 t1, word!(addi s2, s2, 3)
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; ->again:
        ; addi s0, s0, 1
        ; j ->middle
        ; .align 64
        ; ->middle:
        ; addi s2, s2, 1
        ; j ->end
        ; .align 64
        ; ->end:
        ; li.12 t2, 500
        ; bne s0, t2, >not_yet
        ; sw t1, [s1] ; .bytes m.sync()
        ; not_yet:
        ; li.12 t2, 1000
        ; bne s0, t2, ->again
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 2000);
    asm::pass(&mut ops);
    frame::finish("chained_target", m, ops)
}

pub(super) fn chained_jump(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The jump at ->jump goes 64 bytes on, later 128.
    rv!(ops
        ; la s1, ->jump
        ; li.32 t1, asm::jal(0, 128)
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; li.12 s3, 0
        ; j ->jump
        ; .align 64
        ; ->jump:
        ; j >first
        ; .align 64
        ; first:
        ; addi s2, s2, 1
        ; j ->end
        ; .align 64
        ; addi s3, s3, 1
        ; ->end:
        ; addi s0, s0, 1
        ; li.12 t2, 500
        ; bne s0, t2, >not_yet
        ; sw t1, [s1] ; .bytes m.sync()
        ; not_yet:
        ; li.12 t2, 700
        ; bne s0, t2, ->jump
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 500);
    rv!(ops ; mv a0, s3);
    asm::expect(&mut ops, 2, 200);
    asm::pass(&mut ops);
    frame::finish("chained_jump", m, ops)
}

pub(super) fn inner_loop(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, >target
        ; li.32 t1, word!(addi s2, s2, 10)
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; li.12 t3, 50
        ; li.12 t4, 100
        ; again:
        ; target:
        ; addi s2, s2, 1
        ; addi s0, s0, 1
        ; bne s0, t3, >not_yet
        ; sw t1, [s1] ; .bytes m.sync()
        ; not_yet:
        ; bne s0, t4, <again
        ; mv a0, s2
    );
    asm::expect(&mut ops, 1, 550);
    asm::pass(&mut ops);
    frame::finish("inner_loop", m, ops)
}

pub(super) fn return_site(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The callee rewrites the instruction it returns to.
    rv!(ops ; li.12 s0, 0 ; again: ; jal ra, ->g ; addi a0, zero, -1 ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->g:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [ra] ; .bytes m.sync() ; ret);
    frame::finish("return_site", m, ops)
}

pub(super) fn own_callee(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function that rewrites its own first instruction before it returns: each call gives what the last one wrote.
    rv!(ops ; li.12 s0, 0 ; la s1, ->g ; li.12 s2, 2000 ; again: ; jal ra, ->g ; mv a1, s2 ; mv s2, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->g: ; addi a0, zero, 2000);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; ret);
    frame::finish("own_callee", m, ops)
}

pub(super) fn indirect_target(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->f
        ; la s3, ->g
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; again:
        ; .bytes m.sync() ; jalr ra, s1, 0
        ; add s2, s2, a0
        ; .bytes m.sync() ; jalr ra, s3, 0
        ; add s2, s2, a0
        ; addi s0, s0, 1
        ; li.12 t2, 200
        ; bne s0, t2, >not_first
        ; li.32 t1, word!(addi a0, zero, 3)
        ; sw t1, [s1] ; .bytes m.sync()
        ; not_first:
        ; li.12 t2, 300
        ; bne s0, t2, >not_second
        ; li.32 t1, word!(addi a0, zero, 5)
        ; sw t1, [s3] ; .bytes m.sync()
        ; not_second:
        ; li.12 t2, 400
        ; bne s0, t2, <again
        ; mv a0, s2
    );
    // f: 200 * 1 + 200 * 3; g: 300 * 2 + 100 * 5.
    asm::expect(&mut ops, 1, 1900);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 1 ; ret ; .align 64 ; ->g: ; addi a0, zero, 2 ; ret);
    frame::finish("indirect_target", m, ops)
}

pub(super) fn illegal_and_back(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la t0, ->handler
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; la s1, ->f
        ; li.12 s0, 0
        ; li.12 s4, 0
        ; again:
        ; sw zero, [s1]
        ; .bytes m.sync() ; jal ra, ->f
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 20 ; bne s0, t2, <again ; mv a0, s4);
    asm::expect(&mut ops, 2, 20);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, -1 ; ret ; .align 64 ; ->handler: ; addi s4, s4, 1 ; .u32 m.csrr(A0, TrapCsr::Cause));
    asm::expect(&mut ops, 3, 2);
    rv!(ops ; .u32 m.csrr(A0, TrapCsr::Epc) ; mv a1, s1);
    asm::expect_equal(&mut ops, 4);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; .u32 m.ret());
    frame::finish("illegal_and_back", m, ops)
}

pub(super) fn with_fence_i(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; li.12 s0, 0 ; again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; fence.i ; jal ra, ->f ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 50 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, -1 ; ret);
    frame::finish("with_fence_i", m, ops)
}

/// The function that [`polling`] calls: `addi a0, zero, 1; ret`, to be patched from outside.
pub const POLL_FUNCTION: u64 = BASE + 0x1000;
/// The word that ends [`polling`] once it is not zero.
pub const POLL_FLAG: u64 = BASE + 0x2000;

/// Calls a function and adds up what it returns in s2, with s0 calls counted, until the flag is set from outside.
///
/// Ends with the last value it returned as exit code.
pub fn polling(m: Form) -> GuestImage {
    let mut ops = match m.mode {
        Mode::Machine => asm::program(),
        Mode::Supervisor => frame::program(m),
    };
    rv!(ops
        ; li.43 s1, POLL_FLAG as i64
        ; li.12 s0, 0
        ; li.12 s2, 0
        ; again:
        ; jal ra, ->f
        ; add s2, s2, a0
        ; addi s0, s0, 1
        ; lw t0, [s1]
        ; beqz t0, <again
        ; jump ->fail, t6
    );
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 1 ; ret);
    match m.mode {
        Mode::Machine => asm::finish("polling", ops),
        Mode::Supervisor => frame::finish("polling", m, ops),
    }
}

//! Guests that talk to their debugger.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, rv};

/// The sequence of a call; operation in a0, argument in a1.
fn call(ops: &mut Asm, operation: i32) {
    rv!(ops ; li.12 a0, operation ; .u32 0x01f0_1013 ; .u32 0x0010_0073 ; .u32 0x4070_5013);
}

/// Where blocks of arguments are.
const BLOCK: i64 = 0x8010_0000;

/// Prints by three calls, looks at the features, echoes what it reads up to the end of the input, and exits with `code`.
pub fn talk(code: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.43 s1, BLOCK ; la a1, ->hello);
    call(&mut ops, 0x04);
    rv!(ops ; la a1, ->mark);
    call(&mut ops, 0x03);
    // OPEN ":semihosting-features", READ its five bytes, look at the first.
    rv!(ops ; la t0, ->features ; sd t0, [s1, 0] ; sd zero, [s1, 8] ; li.12 t0, 21 ; sd t0, [s1, 16] ; mv a1, s1);
    call(&mut ops, 0x01);
    rv!(ops ; sd a0, [s1, 0] ; addi t0, s1, 64 ; sd t0, [s1, 8] ; li.12 t0, 5 ; sd t0, [s1, 16] ; mv a1, s1);
    call(&mut ops, 0x06);
    asm::expect(&mut ops, 1, 0);
    rv!(ops ; lbu a0, [s1, 64]);
    asm::expect(&mut ops, 2, i32::from(b'S'));
    // A file of the host's is not there.
    rv!(ops ; la t0, ->hello ; sd t0, [s1, 0] ; sd zero, [s1, 8] ; li.12 t0, 5 ; sd t0, [s1, 16] ; mv a1, s1);
    call(&mut ops, 0x01);
    asm::expect(&mut ops, 3, -1);
    // One byte by READC, the others by READ, until that leaves one unread: the end.
    call(&mut ops, 0x07);
    rv!(ops ; echo: ; sb a0, [s1, 64] ; addi a1, s1, 64);
    call(&mut ops, 0x03);
    rv!(ops ; li.12 t0, 1 ; sd t0, [s1, 0] ; addi t1, s1, 64 ; sd t1, [s1, 8] ; sd t0, [s1, 16] ; mv a1, s1);
    call(&mut ops, 0x06);
    rv!(ops ; bnez a0, >end ; lbu a0, [s1, 64] ; j <echo ; end: ; li.32 t0, 0x20026 ; sd t0, [s1, 0] ; li.32 t0, code ; sd t0, [s1, 8] ; mv a1, s1);
    call(&mut ops, 0x20);
    // The run has ended, if the call is there.
    asm::pass(&mut ops);
    for (label, bytes) in [(0, &b"hello\n\0"[..]), (1, b"!"), (2, b":semihosting-features\0")] {
        ops.align(8, 0);
        match label {
            0 => rv!(ops ; ->hello:),
            1 => rv!(ops ; ->mark:),
            _ => rv!(ops ; ->features:),
        }
        ops.extend(bytes);
    }
    asm::finish("talk", ops)
}

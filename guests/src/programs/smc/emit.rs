//! Code that makes code: emitted, copied, decoded, put where other code was.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, BASE, rv, word};
use super::edge::repeat;
use super::form::Form;
use super::frame;

/// Room for what programs emit.
const ARENA: i64 = BASE as i64 + 0x1_0000;

pub(super) fn emit_fresh(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // 64 instructions at a place where nothing was, run once.
    rv!(ops
        ; li.43 s1, ARENA
        ; li.12 s0, 0
        ; li.32 s3, word!(addi a0, a0, 0)
        ; li.32 s4, word!(ret)
        ; ->again:
        ; slli t1, s0, 20
        ; or t1, t1, s3
        ; mv t0, s1
        ; addi t2, s1, 256
        ; emit:
        ; sw t1, [t0]
        ; addi t0, t0, 4
        ; bne t0, t2, <emit
        ; sw s4, [t0]
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; jalr ra, s1, 0
        ; slli a1, s0, 6
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s1, s1, 320);
    repeat(&mut ops, 1000);
    frame::finish("emit_fresh", m, ops)
}

pub(super) fn emit_same_place(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The same place again and again, with code of another length: what a guest's own JIT does after it unmaps.
    rv!(ops
        ; li.43 s1, ARENA
        ; li.12 s0, 0
        ; li.32 s3, word!(addi a0, a0, 0)
        ; li.32 s4, word!(ret)
        ; ->again:
        ; slli t1, s0, 20
        ; or t1, t1, s3
        ; andi t3, s0, 31
        ; addi t3, t3, 1
        ; mv t0, s1
        ; mv t2, t3
        ; emit:
        ; sw t1, [t0]
        ; addi t0, t0, 4
        ; addi t2, t2, -1
        ; bnez t2, <emit
        ; sw s4, [t0]
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; jalr ra, s1, 0
        ; mul a1, s0, t3
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 1000);
    frame::finish("emit_same_place", m, ops)
}

pub(super) fn toggling_kilobyte(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function of 1 KiB is overwritten by one of two versions, in turn.
    rv!(ops
        ; li.43 s1, ARENA
        ; la s3, ->one
        ; la s4, ->two
        ; li.12 s0, 0
        ; ->again:
        ; mv t0, s3
        ; mv t1, s1
        ; addi t2, s1, 1024
        ; copy:
        ; ld t3, [t0]
        ; sd t3, [t1]
        ; addi t0, t0, 8
        ; addi t1, t1, 8
        ; bne t1, t2, <copy
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; jalr ra, s1, 0
        ; andi t0, s0, 1
        ; addi t0, t0, 1
        ; li.12 t1, 255
        ; mul a1, t0, t1
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; mv t0, s3 ; mv s3, s4 ; mv s4, t0);
    repeat(&mut ops, 200);
    rv!(ops ; .align 64 ; ->one:);
    for _ in 0..255 {
        rv!(ops ; addi a0, a0, 1);
    }
    rv!(ops ; ret ; ->two:);
    for _ in 0..255 {
        rv!(ops ; addi a0, a0, 2);
    }
    rv!(ops ; ret);
    frame::finish("toggling_kilobyte", m, ops)
}

pub(super) fn function_in_data(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A page is written and read as data, then holds a function, which is run and patched by one byte.
    rv!(ops
        ; li.43 s1, ARENA
        ; li.12 s0, 0
        ; lui s3, 0x1000
        ; ->again:
        ; sd s0, [s1]
        ; sd s0, [s1, 0x700]
        ; ld t0, [s1]
        ; li.32 t1, word!(addi zero, zero, 0)
        ; sw t1, [s1]
        ; sw t1, [s1, 4]
        ; li.32 t1, word!(addi a0, zero, 5)
        ; sw t1, [s1, 8]
        ; li.32 t1, word!(ret)
        ; sw t1, [s1, 12]
        ; .bytes m.sync()
        ; jalr ra, s1, 0
    );
    asm::expect(&mut ops, 1, 5);
    rv!(ops ; sb s0, [s1, 11] ; .bytes m.sync() ; jalr ra, s1, 0 ; slli a1, s0, 4 ; ori a1, a1, 5);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; add s1, s1, s3);
    repeat(&mut ops, 64);
    frame::finish("function_in_data", m, ops)
}

pub(super) fn decoder_stub(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The first word that the decoder's loop decodes is the loop's own branch, two instructions on.
    rv!(ops
        ; la s1, ->branch
        ; la s2, ->end
        ; li.32 s3, 0x5a5a_1235
        ; li.12 s0, 0
        ; ->again:
        ; mv t0, s1
        ; encode:
        ; lw t2, [t0]
        ; xor t2, t2, s3
        ; sw t2, [t0]
        ; addi t0, t0, 4
        ; bne t0, s2, <encode
        ; .bytes m.sync()
        ; mv t0, s1
        ; jal ra, ->decode
    );
    asm::expect(&mut ops, 1, 28);
    rv!(ops ; li.12 t0, 0x100 ; add s3, s3, t0);
    repeat(&mut ops, 200);
    rv!(ops
        ; .align 64
        ; ->decode:
        ; lw t2, [t0]
        ; xor t2, t2, s3
        ; sw t2, [t0]
        ; addi t0, t0, 4
        ; .bytes m.sync()
        ; ->branch:
        ; bne t0, s2, ->decode
        ; addi a0, zero, 1
        ; addi a0, a0, 2
        ; addi a0, a0, 3
        ; addi a0, a0, 4
        ; addi a0, a0, 5
        ; addi a0, a0, 6
        ; addi a0, a0, 7
        ; ret
        ; ->end:
    );
    frame::finish("decoder_stub", m, ops)
}

pub(super) fn boot_loader(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // First stage at s1: copies the loader to s3 and goes there. The loader puts the second stage at s1, over the
    // first, and jumps to it.
    rv!(ops
        ; li.43 s1, ARENA + 0xc00
        ; li.43 s3, ARENA + 0x600
        ; li.12 s0, 0
        ; ->again:
        ; la t0, ->first
        ; addi t1, t0, 32
        ; mv t2, s1
        ; jal t5, ->copy
        ; la t0, ->second
        ; addi t1, t0, 32
        ; addi t2, s1, 128
        ; jal t5, ->copy
    );
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; sw t1, [s1, 128]      // what the second stage returns
        ; .bytes m.sync()
        ; la s4, ->copy
        ; la s5, ->loader
        ; jalr ra, s1, 0
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    repeat(&mut ops, 500);
    rv!(ops
        ; .align 64
        ; ->copy:               // [t0, t1) to t2, back to t5
        ; lw t3, [t0]
        ; sw t3, [t2]
        ; addi t0, t0, 4
        ; addi t2, t2, 4
        ; bne t0, t1, ->copy
        ; jr t5
        ; .align 64
        ; ->first:              // 32 bytes, at any address
        ; mv t0, s5
        ; addi t1, s5, 32
        ; mv t2, s3
        ; jalr t5, s4, 0
        ; addi a0, zero, -1
        ; .bytes m.sync()
        ; jr s3
        ; .u32 0
        ; .u32 0
        ; .align 64
        ; ->loader:             // 32 bytes, at any address
        ; addi t0, s1, 128
        ; addi t1, s1, 160
        ; mv t2, s1
        ; jalr t5, s4, 0
        ; .bytes m.sync()
        ; jr s1
        ; .u32 0
        ; .u32 0
        ; .align 64
        ; ->second:
        ; addi a0, zero, -2
        ; ret
        ; .u64 0
        ; .u64 0
        ; .u64 0
    );
    frame::finish("boot_loader", m, ops)
}

pub(super) fn walking_copy(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Code copies itself 128 bytes on, raises its own immediate there, and goes on in the copy: 1 + 2 + .. + 60.
    rv!(ops
        ; li.12 s0, 0
        ; lui s4, 1 << 20
        ; ->again:
        ; li.43 s1, ARENA
        ; la t0, ->walk
        ; addi t1, t0, 128
        ; mv t2, s1
        ; place:
        ; lw t3, [t0]
        ; sw t3, [t2]
        ; addi t0, t0, 4
        ; addi t2, t2, 4
        ; bne t0, t1, <place
        ; .bytes m.sync()
        ; li.12 a0, 0
        ; li.12 s3, 60
        ; jalr ra, s1, 0
    );
    asm::expect(&mut ops, 1, 60 * 61 / 2);
    repeat(&mut ops, 20);
    rv!(ops
        ; .align 64
        ; ->walk:
        ; addi a0, a0, 1
        ; mv t0, s1
        ; addi t2, s1, 128
        ; addi t1, s1, 256
        ; copy:
        ; lw t3, [t0]
        ; sw t3, [t2]
        ; addi t0, t0, 4
        ; addi t2, t2, 4
        ; bne t2, t1, <copy
        ; lw t3, [s1, 128]
        ; add t3, t3, s4
        ; sw t3, [s1, 128]
        ; addi s1, s1, 128
        ; addi s3, s3, -1
        ; .bytes m.sync()
        ; beqz s3, >done
        ; jr s1
        ; done:
        ; ret
        ; .align 64
        ; .u64 0
        ; .align 64
    );
    frame::finish("walking_copy", m, ops)
}

//! Where the patched code is, seen from the store.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, BASE, rv, word};
use super::form::Form;
use super::frame;

/// Calls `->f` twice, then patches the function at s1, where that is or leads to, to return the loop counter; calls
/// and checks.
fn patch_and_call(ops: &mut Asm, m: Form) {
    rv!(ops ; jal ra, ->f);
    asm::expect(ops, 1, 1000);
    rv!(ops ; jal ra, ->f);
    asm::expect(ops, 2, 1000);
    rv!(ops ; li.12 s0, 0 ; li.12 a2, 1000 ; ->again:);
    asm::encode_load_s0(ops);
    rv!(ops ; sw t1, [s1] ; mv a1, s0);
    frame::judge_call(ops, m, 3);
    rv!(ops ; mv a2, s0 ; addi s0, s0, 1 ; li.12 t2, 1000 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(ops);
}

pub(super) fn another_page(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f);
    patch_and_call(&mut ops, m);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 1000 ; ret);
    frame::finish("another_page", m, ops)
}

pub(super) fn same_page(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f);
    patch_and_call(&mut ops, m);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 1000 ; ret);
    frame::finish("same_page", m, ops)
}

pub(super) fn far_page(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The function is put where no direct jump from here reaches: 2 MiB away.
    rv!(ops
        ; li.43 s1, (BASE + 0x20_0000) as i64
        ; li.32 t1, word!(addi a0, zero, 1000)
        ; sw t1, [s1]
        ; li.32 t1, word!(ret)
        ; sw t1, [s1, 4]
        ; fence.i
    );
    patch_and_call(&mut ops, m);
    rv!(ops ; ->f: ; jr s1);
    frame::finish("far_page", m, ops)
}

pub(super) fn next_instruction(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; li.12 s0, 0 ; li.12 a2, -1 ; la s1, >target ; ->again: ; li.12 s3, 0 ; mv a1, s0);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; target: ; addi a0, zero, -1);
    frame::judge_inline(&mut ops, m, 1);
    rv!(ops ; mv a2, s0 ; addi s0, s0, 1 ; li.12 t2, 1000 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    frame::finish("next_instruction", m, ops)
}

pub(super) fn later_in_own_block(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; li.12 s0, 0 ; li.12 a2, -1 ; la s1, >target ; ->again: ; li.12 s3, 0 ; mv a1, s0);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; sw t1, [s1]
        ; addi t3, s0, 1
        ; xor t4, t3, s0
        ; add t5, t4, t3
        ; target:
        ; addi a0, zero, -1
    );
    frame::judge_inline(&mut ops, m, 1);
    // What stands between the store and the patched instruction was done once.
    rv!(ops ; addi a0, s0, 1 ; mv a1, t3);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; mv a2, s0 ; addi s0, s0, 1 ; li.12 t2, 1000 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    frame::finish("later_in_own_block", m, ops)
}

pub(super) fn two_patches_ahead(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The farther one first: the second store stands in a block of which a part is already gone.
    rv!(ops ; li.12 s0, 0 ; la s1, >target ; ->again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; li.32 t2, word!(addi a0, a0, 0)
        ; slli t3, s0, 20
        ; or t2, t2, t3
        ; sw t2, [s1, 4]
        ; sw t1, [s1]
        ; .bytes m.sync()
        ; target:
        ; addi a0, zero, -1
        ; addi a0, a0, -1
        ; slli a1, s0, 1
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 1000 ; beq s0, t2, >done ; jump ->again, t6 ; done:);
    asm::pass(&mut ops);
    frame::finish("two_patches_ahead", m, ops)
}

pub(super) fn earlier_in_own_block(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Each round runs what the round before it wrote.
    rv!(ops
        ; li.12 s0, 0
        ; la s1, >target
        ; li.12 s2, 1000
        ; again:
        ; target:
        ; addi a0, zero, 1000
    );
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; .bytes m.sync() ; mv a1, s2 ; mv s2, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    frame::finish("earlier_in_own_block", m, ops)
}

pub(super) fn the_store_itself(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, >target
        ; li.32 t1, word!(addi a0, zero, 7)
        ; li.12 a0, 1
        ; li.12 s0, 0
        ; again:
        ; target:
        ; sw t1, [s1] ; .bytes m.sync()
        ; addi s0, s0, 1
        ; li.12 t2, 1
        ; bne s0, t2, >second
    );
    asm::expect(&mut ops, 1, 1);
    rv!(ops ; j <again ; second:);
    asm::expect(&mut ops, 2, 7);
    asm::pass(&mut ops);
    frame::finish("the_store_itself", m, ops)
}

pub(super) fn block_over_two_pages(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 1, 5);
    // First page: the third instruction. The function lies at 0xff0; its fifth instruction is on the second page.
    rv!(ops ; li.32 t1, word!(addi a0, a0, 10) ; sw t1, [s1, 8] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 2, 14);
    rv!(ops ; li.32 t1, word!(addi a0, a0, 100) ; sw t1, [s1, 16] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 3, 113);
    rv!(ops
        ; li.12 s0, 0
        ; again:
        ; slli t1, s0, 20
        ; li.32 t2, word!(addi a0, a0, 0)
        ; or t1, t1, t2
        ; sw t1, [s1, 8]
        ; .bytes m.sync() ; jal ra, ->f
        ; addi a1, s0, 103
    );
    asm::expect_equal(&mut ops, 4);
    rv!(ops
        ; sw t1, [s1, 16]
        ; .bytes m.sync() ; jal ra, ->f
        ; slli a1, s0, 1
        ; addi a1, a1, 3
    );
    asm::expect_equal(&mut ops, 5);
    rv!(ops
        ; li.32 t1, word!(addi a0, a0, 100)
        ; sw t1, [s1, 16]
        ; addi s0, s0, 1
        ; li.12 t2, 40
        ; beq s0, t2, >done
        ; jump <again, t6
        ; done:
    );
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0xff0);
    rv!(ops
        ; ->f:
        ; addi a0, zero, 0
        ; addi a0, a0, 1
        ; addi a0, a0, 1
        ; addi a0, a0, 1
        ; addi a0, a0, 1     // second page
        ; addi a0, a0, 1
        ; ret
    );
    frame::finish("block_over_two_pages", m, ops)
}

pub(super) fn instruction_over_two_pages(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops ; la s1, ->f ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 1, 3);
    // The upper half of the straddling instruction, on the second page: its immediate.
    rv!(ops ; li.32 t1, word!(addi a0, a0, 5) >> 16 ; sh t1, [s1, 6] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 2, 6);
    // The lower half, on the first page: addi becomes andi.
    rv!(ops ; li.32 t1, word!(andi a0, a0, 0) & 0xffff ; sh t1, [s1, 4] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 3, 1);
    rv!(ops ; li.32 t1, word!(addi a0, a0, 0) & 0xffff ; sh t1, [s1, 4] ; .bytes m.sync() ; jal ra, ->f);
    asm::expect(&mut ops, 4, 6);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0xffa);
    rv!(ops ; ->f: ; addi a0, zero, 1 ; addi a0, a0, 2 ; ret);
    // The end of the program starts at a multiple of four again.
    frame::finish("instruction_over_two_pages", m, ops)
}

pub(super) fn data_beside_code(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    rv!(ops
        ; la s1, ->counter
        ; li.12 s0, 0
        ; li.32 s2, 5000
        ; again:
        ; jal ra, ->bump
        ; addi s0, s0, 1
        ; bne s0, s2, <again
        ; ld a0, [s1]
    );
    asm::expect(&mut ops, 1, 5000);
    asm::pass(&mut ops);
    // Same page, two lines further on.
    asm::pad_to(&mut ops, 0x800);
    rv!(ops ; ->bump: ; ld t0, [s1] ; addi t0, t0, 1 ; sd t0, [s1] ; ret);
    asm::pad_to(&mut ops, 0x880);
    rv!(ops ; ->counter: ; .u64 0);
    asm::pad_to(&mut ops, 0xf00);
    frame::finish("data_beside_code", m, ops)
}

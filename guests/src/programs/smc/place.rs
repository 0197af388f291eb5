//! Where the patched code is, seen from the store.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, rv, word};

/// Patches `->f` to return the loop counter, calls it, checks; fifty times, after two calls of the unpatched one.
fn patch_and_call(ops: &mut Asm) {
    rv!(ops ; la s1, ->f ; jal ra, ->f);
    asm::expect(ops, 1, 1000);
    rv!(ops ; jal ra, ->f);
    asm::expect(ops, 2, 1000);
    rv!(ops ; li.12 s0, 0 ; again:);
    asm::encode_load_s0(ops);
    rv!(ops ; sw t1, [s1] ; jal ra, ->f ; mv a1, s0);
    asm::expect_equal(ops, 3);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 50 ; bne s0, t2, <again);
    asm::pass(ops);
}

pub(super) fn another_page() -> GuestImage {
    let mut ops = asm::program();
    patch_and_call(&mut ops);
    asm::pad_to(&mut ops, 0);
    rv!(ops ; ->f: ; addi a0, zero, 1000 ; ret);
    asm::finish("another_page", ops)
}

pub(super) fn same_page() -> GuestImage {
    let mut ops = asm::program();
    patch_and_call(&mut ops);
    rv!(ops ; .align 64 ; ->f: ; addi a0, zero, 1000 ; ret);
    asm::finish("same_page", ops)
}

pub(super) fn next_instruction() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.12 s0, 0 ; la s1, >target ; again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s1] ; target: ; addi a0, zero, -1 ; mv a1, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    asm::finish("next_instruction", ops)
}

pub(super) fn later_in_own_block() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.12 s0, 0 ; la s1, >target ; again:);
    asm::encode_load_s0(&mut ops);
    rv!(ops
        ; sw t1, [s1]
        ; addi t3, s0, 1
        ; xor t4, t3, s0
        ; add t5, t4, t3
        ; target:
        ; addi a0, zero, -1
        ; mv a1, s0
    );
    asm::expect_equal(&mut ops, 1);
    // What stands between the store and the patched instruction was done once.
    rv!(ops ; addi a0, s0, 1 ; mv a1, t3);
    asm::expect_equal(&mut ops, 2);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    asm::finish("later_in_own_block", ops)
}

pub(super) fn earlier_in_own_block() -> GuestImage {
    let mut ops = asm::program();
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
    rv!(ops ; sw t1, [s1] ; mv a1, s2 ; mv s2, s0);
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, 1 ; li.12 t2, 100 ; bne s0, t2, <again);
    asm::pass(&mut ops);
    asm::finish("earlier_in_own_block", ops)
}

pub(super) fn the_store_itself() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; la s1, >target
        ; li.32 t1, word!(addi a0, zero, 7)
        ; li.12 a0, 1
        ; li.12 s0, 0
        ; again:
        ; target:
        ; sw t1, [s1]
        ; addi s0, s0, 1
        ; li.12 t2, 1
        ; bne s0, t2, >second
    );
    asm::expect(&mut ops, 1, 1);
    rv!(ops ; j <again ; second:);
    asm::expect(&mut ops, 2, 7);
    asm::pass(&mut ops);
    asm::finish("the_store_itself", ops)
}

pub(super) fn block_over_two_pages() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; la s1, ->f ; jal ra, ->f);
    asm::expect(&mut ops, 1, 5);
    // First page: the third instruction. The function lies at 0xff0; its fifth instruction is on the second page.
    rv!(ops ; li.32 t1, word!(addi a0, a0, 10) ; sw t1, [s1, 8] ; jal ra, ->f);
    asm::expect(&mut ops, 2, 14);
    rv!(ops ; li.32 t1, word!(addi a0, a0, 100) ; sw t1, [s1, 16] ; jal ra, ->f);
    asm::expect(&mut ops, 3, 113);
    rv!(ops
        ; li.12 s0, 0
        ; again:
        ; slli t1, s0, 20
        ; li.32 t2, word!(addi a0, a0, 0)
        ; or t1, t1, t2
        ; sw t1, [s1, 8]
        ; jal ra, ->f
        ; addi a1, s0, 103
    );
    asm::expect_equal(&mut ops, 4);
    rv!(ops
        ; sw t1, [s1, 16]
        ; jal ra, ->f
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
    asm::finish("block_over_two_pages", ops)
}

pub(super) fn instruction_over_two_pages() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; la s1, ->f ; jal ra, ->f);
    asm::expect(&mut ops, 1, 3);
    // The upper half of the straddling instruction, on the second page: its immediate.
    rv!(ops ; li.32 t1, word!(addi a0, a0, 5) >> 16 ; sh t1, [s1, 6] ; jal ra, ->f);
    asm::expect(&mut ops, 2, 6);
    // The lower half, on the first page: addi becomes andi.
    rv!(ops ; li.32 t1, word!(andi a0, a0, 0) & 0xffff ; sh t1, [s1, 4] ; jal ra, ->f);
    asm::expect(&mut ops, 3, 1);
    rv!(ops ; li.32 t1, word!(addi a0, a0, 0) & 0xffff ; sh t1, [s1, 4] ; jal ra, ->f);
    asm::expect(&mut ops, 4, 6);
    asm::pass(&mut ops);
    asm::pad_to(&mut ops, 0xffa);
    rv!(ops ; ->f: ; addi a0, zero, 1 ; addi a0, a0, 2 ; ret);
    // The end of the program starts at a multiple of four again.
    asm::finish("instruction_over_two_pages", ops)
}

pub(super) fn data_beside_code() -> GuestImage {
    let mut ops = asm::program();
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
    asm::finish("data_beside_code", ops)
}

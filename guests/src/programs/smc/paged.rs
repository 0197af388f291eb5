//! Code under page tables: seen at several addresses, moved under its own feet, taken away. Supervisor mode only.
//!
//! Registers by habit: s1 the window's first page, s5 its entry, s6 and s7 two values for it. What is mapped before the
//! first round was never translated otherwise, so every round has something old to be wrong about.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, rv, word};
use super::edge::repeat;
use super::form::{A0, Form, T0, TrapCsr};
use super::frame;
use super::supervisor::{
    A, ALL, CALL, D, DELEGATED, FRAMES, LARGE_ENTRY, OTHER_ENTRY, R, SPARE_TABLE, U, V, W, WINDOW, WINDOW_ENTRY, X,
    enter, entry, load_satp, put, ram_entry, sfence, tables,
};

const S1: u32 = 9;
const S9: u32 = 25;

/// The page of that number among those for cases.
pub(super) const fn page(number: u64) -> u64 {
    FRAMES + 0x1000 * number
}

/// Puts words at an address. t0 and t1 are lost.
pub(super) fn write(ops: &mut Asm, at: u64, words: &[i32]) {
    rv!(ops ; li.43 t0, at as i64);
    for (n, &word) in words.iter().enumerate() {
        rv!(ops ; li.32 t1, word ; sw t1, [t0, 4 * n as i32]);
    }
}

/// Copies `len` bytes from t2 on to an address. t0, t1 and t2 are lost.
fn copy(ops: &mut Asm, at: u64, len: u64) {
    rv!(ops
        ; li.43 t0, at as i64
        ; li.43 t1, (at + len) as i64
        ; copy:
        ; lw t6, [t2]
        ; sw t6, [t0]
        ; addi t2, t2, 4
        ; addi t0, t0, 4
        ; bne t0, t1, <copy
    );
}

/// `addi a0, a0, step; ret`.
fn adds(step: i32) -> [i32; 2] {
    [word!(addi a0, a0, 0) | step << 20, word!(ret)]
}

/// The page of the window with that number is this one.
fn map(ops: &mut Asm, number: u64, at: u64, rights: i64) {
    put(ops, WINDOW_ENTRY + 8 * number, entry(at, rights));
}

/// What was written and mapped so far holds from here on.
fn settle(ops: &mut Asm) {
    rv!(ops ; .u32 sfence(0, 0) ; fence.i);
}

/// s1, s5, s6, s7 as they are by habit: the window's first page is page 0 of the case's, and can be page 1.
fn two_pages(ops: &mut Asm) {
    map(ops, 0, page(0), ALL);
    rv!(ops
        ; li.43 s1, WINDOW as i64
        ; li.43 s5, WINDOW_ENTRY as i64
        ; li.43 s6, entry(page(0), ALL)
        ; li.43 s7, entry(page(1), ALL)
    );
    settle(ops);
}

/// Calls the function at s1 + `offset` so often and compares the sum in a0 with a1.
fn call_often(ops: &mut Asm, offset: i32, times: i32, code: i32) {
    rv!(ops
        ; li.12 a0, 0
        ; li.12 s2, times
        ; call:
        ; jalr ra, s1, offset
        ; addi s2, s2, -1
        ; bnez s2, <call
    );
    asm::expect_equal(ops, code);
}

pub(super) fn three_mappings(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // One page, to be run at two addresses and written at a third, or where RAM is.
    write(&mut ops, page(0), &adds(0));
    map(&mut ops, 0, page(0), V | R | X | A);
    map(&mut ops, 1, page(0), V | X | A);
    map(&mut ops, 2, page(0), V | R | W | A | D);
    rv!(ops
        ; li.43 s1, WINDOW as i64
        ; lui t0, 0x2000
        ; add s3, s1, t0
        ; li.43 s4, page(0) as i64
        ; li.12 s0, 0
        ; li.12 s8, 100
    );
    settle(&mut ops);
    rv!(ops ; ->again: ; li.32 t1, word!(addi a0, a0, 0) ; slli t2, s0, 20 ; or t1, t1, t2 ; sw t1, [s3] ; .bytes m.sync() ; mul a1, s0, s8);
    call_often(&mut ops, 0, 100, 1);
    rv!(ops ; lui t0, 0x1000 ; add s1, s1, t0);
    call_often(&mut ops, 0, 100, 2);
    // The other writer, and the two addresses in the other order.
    rv!(ops ; addi t2, s0, 1 ; mul a1, t2, s8 ; slli t2, t2, 20 ; li.32 t1, word!(addi a0, a0, 0) ; or t1, t1, t2 ; sw t1, [s4] ; .bytes m.sync());
    call_often(&mut ops, 0, 100, 3);
    rv!(ops ; lui t0, 0x1000 ; sub s1, s1, t0);
    call_often(&mut ops, 0, 100, 4);
    repeat(&mut ops, 200);
    frame::finish("three_mappings", m, ops)
}

/// Trips of the loops that change what is under them, and every how many.
const TRIPS: i32 = 20_000;
const EVERY: i32 = 64;

/// What a loop adds up that gets `even` and `odd` in turn, times the number of the trip: a change that is seen a trip
/// too late is not made up for by the next one.
fn in_turn(even: i64, odd: i64) -> i64 {
    (1..=i64::from(TRIPS)).map(|trip| trip * if trip / i64::from(EVERY) % 2 == 0 { even } else { odd }).sum()
}

/// Fails with `code` unless a0 == `value`.
fn expect_large(ops: &mut Asm, code: i32, value: i64) {
    rv!(ops ; li.43 a1, value);
    asm::expect_equal(ops, code);
}

/// Every so often in a loop counted by s0, exchanges s6 and s7 and maps what was in s7.
fn change_now_and_then(ops: &mut Asm) {
    rv!(ops
        ; addi s0, s0, 1
        ; andi t0, s0, EVERY - 1
        ; bnez t0, >same
        ; sd s7, [s5]
        ; .u32 sfence(S1, 0)
        ; mv t1, s6
        ; mv s6, s7
        ; mv s7, t1
        ; same:
    );
}

pub(super) fn loop_on_a_page_that_moves(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // Both pages hold the loop, but for what it adds; it maps the other one at the address it runs at.
    for (number, step) in [(0, 1), (1, 3)] {
        rv!(ops ; j >over ; .align 64 ; body:);
        change_now_and_then(&mut ops);
        rv!(ops
            ; slli t1, s0, step
            ; add s2, s2, t1
            ; bne s0, s8, <body
            ; ret
            ; over:
            ; la t2, <body
        );
        copy(&mut ops, page(number), 64);
    }
    two_pages(&mut ops);
    rv!(ops ; li.12 s0, 0 ; li.12 s2, 0 ; li.32 s8, TRIPS ; jalr ra, s1, 0 ; mv a0, s2);
    expect_large(&mut ops, 1, in_turn(2, 8));
    asm::pass(&mut ops);
    frame::finish("loop_on_a_page_that_moves", m, ops)
}

pub(super) fn data_that_moves(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A loop reads a number from the page under it, and adds up the numbers of its trips there.
    write(&mut ops, page(0), &[1, 0, 0, 0]);
    write(&mut ops, page(1), &[3, 0, 0, 0]);
    two_pages(&mut ops);
    rv!(ops ; li.12 s0, 0 ; li.12 s2, 0 ; li.32 s8, TRIPS ; body:);
    change_now_and_then(&mut ops);
    rv!(ops
        ; ld t1, [s1]
        ; mul t1, t1, s0
        ; add s2, s2, t1
        ; ld t2, [s1, 8]
        ; add t2, t2, s0
        ; sd t2, [s1, 8]
        ; bne s0, s8, <body
        ; mv a0, s2
    );
    expect_large(&mut ops, 1, in_turn(1, 3));
    for (number, trips) in [(0, in_turn(1, 0)), (1, in_turn(0, 1))] {
        rv!(ops ; li.43 t0, page(number) as i64 ; ld a0, [t0, 8]);
        expect_large(&mut ops, 2, trips);
    }
    asm::pass(&mut ops);
    frame::finish("data_that_moves", m, ops)
}

pub(super) fn with_and_without_a_fence(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    write(&mut ops, page(0), &adds(1));
    write(&mut ops, page(1), &adds(2));
    two_pages(&mut ops);
    rv!(ops ; li.12 s0, 0 ; li.12 s3, 1 ; li.12 s8, 100 ; li.12 s9, 0 ; ->again:);
    // By each form of sfence.vma in turn; s9 is the number of this address space.
    for (code, form) in [(1, sfence(0, 0)), (3, sfence(S1, 0)), (5, sfence(0, S9)), (7, sfence(S1, S9))] {
        rv!(ops
            ; sd s7, [s5]
            ; mv t1, s6
            ; mv s6, s7
            ; mv s7, t1
            ; xori s3, s3, 3
            ; li.12 s2, 50
            // Either page until the fence.
            ; either:
            ; li.12 a0, 0
            ; jalr ra, s1, 0
            ; addi t0, a0, -1
            ; sltiu t0, t0, 2
            ; bnez t0, >fine
            ; li.12 a0, code
            ; jump ->fail, t6
            ; fine:
            ; addi s2, s2, -1
            ; bnez s2, <either
            ; .u32 form
            ; mul a1, s3, s8
        );
        call_often(&mut ops, 0, 100, code + 1);
    }
    repeat(&mut ops, 200);
    frame::finish("with_and_without_a_fence", m, ops)
}

pub(super) fn superpage_split(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A page of 2 MiB that has both functions in it; split, the place of the first shows the second.
    let large = FRAMES & !0x1f_ffff;
    let first = FRAMES - large;
    write(&mut ops, page(0), &adds(1));
    write(&mut ops, page(1), &adds(2));
    rv!(ops
        ; li.43 t0, SPARE_TABLE as i64
        ; li.43 t1, SPARE_TABLE as i64 + 0x1000
        ; li.43 t2, entry(large, ALL)
        ; li.12 t3, 1024
        ; fill:
        ; sd t2, [t0]
        ; addi t0, t0, 8
        ; add t2, t2, t3
        ; bne t0, t1, <fill
        ; li.43 s1, (WINDOW + 0x20_0000 + first) as i64
        ; li.43 s4, LARGE_ENTRY as i64
        ; li.43 s5, (SPARE_TABLE + (first >> 9)) as i64
        ; li.43 s6, entry(large, ALL)
        ; li.43 s7, entry(SPARE_TABLE, V)
        ; li.43 s8, entry(page(0), ALL)
        ; li.43 s9, entry(page(1), ALL)
        ; li.12 s0, 0
        ; ->again:
    );
    let often = |ops: &mut Asm, sum: i32, code: i32| {
        rv!(ops ; li.12 a1, sum);
        call_often(ops, 0, 100, code);
    };
    // Whole.
    rv!(ops ; sd s6, [s4] ; .u32 sfence(0, 0));
    often(&mut ops, 100, 1);
    // Split, but the same; then one of the small pages moves.
    rv!(ops ; sd s7, [s4] ; .u32 sfence(0, 0));
    often(&mut ops, 100, 2);
    rv!(ops ; sd s9, [s5] ; .u32 sfence(S1, 0));
    often(&mut ops, 200, 3);
    // Whole again, and split at once with the page moved.
    rv!(ops ; sd s6, [s4] ; .u32 sfence(0, 0));
    often(&mut ops, 100, 4);
    rv!(ops ; sd s7, [s4] ; .u32 sfence(0, 0));
    often(&mut ops, 200, 5);
    rv!(ops ; sd s8, [s5] ; .u32 sfence(S1, 0));
    often(&mut ops, 100, 6);
    repeat(&mut ops, 100);
    frame::finish("superpage_split", m, ops)
}

pub(super) fn user_code(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // User mode calls a function 100 times and then the kernel, which patches it where user mode cannot see it.
    rv!(ops ; la t2, ->user);
    copy(&mut ops, page(0), 128);
    map(&mut ops, 0, page(0), V | R | X | U | A);
    settle(&mut ops);
    rv!(ops
        ; la t0, ->kernel
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.43 s1, page(0) as i64 + 64
        ; li.12 s0, 0
        ; li.12 s8, 100
        ; li.43 t0, WINDOW as i64
        ; .u32 m.csrw(TrapCsr::Epc, T0)
        ; li.32 t0, 0x100           // sstatus.SPP
        ; csrc sstatus, t0
        ; .u32 m.ret()
        ; .align 64
        ; ->user:
        ; li.12 a0, 0
        ; li.12 s2, 100
        ; call:
        ; jal ra, >f
        ; addi s2, s2, -1
        ; bnez s2, <call
        ; ecall
        ; j ->user
        ; .align 64
        ; f:
        ; addi a0, a0, 0
        ; ret
        ; .align 64
        ; ->kernel:
        ; mv s4, a0
        ; .u32 m.csrr(A0, TrapCsr::Cause)
    );
    asm::expect(&mut ops, 1, 8);
    rv!(ops ; mv a0, s4 ; mul a1, s0, s8);
    asm::expect_equal(&mut ops, 2);
    rv!(ops
        ; addi s0, s0, 1
        ; li.12 t0, 400
        ; beq s0, t0, >done
        ; slli t1, s0, 20
        ; li.32 t2, word!(addi a0, a0, 0)
        ; or t1, t1, t2
        ; sw t1, [s1]
        ; .bytes m.sync()
        ; .u32 m.csrr(T0, TrapCsr::Epc)
        ; addi t0, t0, 4
        ; .u32 m.csrw(TrapCsr::Epc, T0)
        ; .u32 m.ret()
        ; done:
    );
    asm::pass(&mut ops);
    frame::finish("user_code", m, ops)
}

pub(super) fn rights_taken_away(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function at 0, and one at 128 that takes away the right to run the page that it is on; the handler gives it
    // back. s7 is the entry without the right, or no entry.
    write(&mut ops, page(0), &adds(1));
    write(&mut ops, page(0) + 128, &[word!(sd s7, [s5]), sfence(S1, 0) as i32, word!(addi a0, a0, 5), word!(ret)]);
    two_pages(&mut ops);
    rv!(ops
        ; la t0, ->handler
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.43 s7, entry(page(0), ALL & !X)
        ; li.12 s0, 0
        ; li.12 s4, 0
        ; ->again:
        ; li.12 a1, 100
    );
    call_often(&mut ops, 0, 100, 1);
    rv!(ops ; li.12 a1, 5);
    call_often(&mut ops, 128, 1, 2);
    rv!(ops ; mv a0, s4 ; addi a1, s0, 1);
    asm::expect_equal(&mut ops, 3);
    rv!(ops ; li.43 t0, entry(page(0), ALL & !X) ; xor s7, s7, t0);
    repeat(&mut ops, 400);
    rv!(ops ; .align 64 ; ->handler: ; mv s3, a0 ; mv s8, a1 ; .u32 m.csrr(A0, TrapCsr::Cause));
    asm::expect(&mut ops, 4, 12);
    // Behind the fence; or at it, which a machine that moves in front of it walks for.
    rv!(ops ; .u32 m.csrr(A0, TrapCsr::Epc) ; sub a0, a0, s1 ; addi a0, a0, -132 ; andi a0, a0, -5);
    asm::expect(&mut ops, 5, 0);
    rv!(ops ; .u32 m.csrr(A0, TrapCsr::Epc) ; mv a1, a0 ; .u32 m.csrr(A0, TrapCsr::Tval));
    asm::expect_equal(&mut ops, 6);
    rv!(ops ; addi s4, s4, 1 ; sd s6, [s5] ; .u32 sfence(S1, 0) ; mv a0, s3 ; mv a1, s8 ; .u32 m.ret());
    frame::finish("rights_taken_away", m, ops)
}

pub(super) fn store_right_taken_away(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A loop that stores makes its page read-only now and then: that very store has to fault.
    two_pages(&mut ops);
    rv!(ops
        ; la t0, ->handler
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.43 s7, entry(page(0), V | R | A | D)
        ; li.12 s0, 0
        ; li.12 s4, 0
        ; li.32 s8, TRIPS
        ; la s3, >store
        ; body:
        ; addi s0, s0, 1
        ; andi t0, s0, EVERY - 1
        ; bnez t0, >same
        ; sd s7, [s5]
        ; .u32 sfence(S1, 0)
        ; same:
        ; ld t1, [s1]
        ; addi t1, t1, 1
        ; store:
        ; sd t1, [s1]
        ; bne s0, s8, <body
        ; mv a0, s4
    );
    asm::expect(&mut ops, 1, TRIPS / EVERY);
    rv!(ops ; ld a0, [s1]);
    asm::expect(&mut ops, 2, TRIPS);
    asm::pass(&mut ops);
    rv!(ops ; .align 64 ; ->handler: ; .u32 m.csrr(A0, TrapCsr::Cause));
    asm::expect(&mut ops, 3, 15);
    rv!(ops ; .u32 m.csrr(A0, TrapCsr::Epc) ; mv a1, s3);
    asm::expect_equal(&mut ops, 4);
    rv!(ops ; andi a0, s0, EVERY - 1);
    asm::expect(&mut ops, 5, 0);
    rv!(ops ; addi s4, s4, 1 ; sd s6, [s5] ; .u32 sfence(S1, 0) ; .u32 m.ret());
    frame::finish("store_right_taken_away", m, ops)
}

pub(super) fn two_address_spaces(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // One address, two functions, no fence between them; one of them is patched on the way.
    write(&mut ops, page(0), &adds(0));
    write(&mut ops, page(1), &adds(2));
    map(&mut ops, 0, page(0), ALL);
    put(&mut ops, OTHER_ENTRY, entry(page(1), ALL));
    settle(&mut ops);
    load_satp(&mut ops, false, 1);
    rv!(ops ; mv s6, t0);
    load_satp(&mut ops, true, 2);
    rv!(ops
        ; mv s7, t0
        ; li.43 s1, WINDOW as i64
        ; li.43 s3, page(0) as i64
        ; li.12 s8, 100
        ; li.12 s0, 0
        ; ->again:
        ; li.32 t1, word!(addi a0, a0, 0)
        ; slli t2, s0, 20
        ; or t1, t1, t2
        ; sw t1, [s3]
        ; .bytes m.sync()
        ; csrw satp, s6
        ; mul a1, s0, s8
    );
    call_often(&mut ops, 0, 100, 1);
    rv!(ops ; csrw satp, s7 ; li.12 a1, 200);
    call_often(&mut ops, 0, 100, 2);
    repeat(&mut ops, 400);
    frame::finish("two_address_spaces", m, ops)
}

pub(super) fn jump_to_a_page_that_moves(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // The caller on the window's first page goes to the second by a direct jump; what is there changes.
    write(&mut ops, page(2), &[asm::jal(1, 0x1000), word!(addi s2, s2, -1), word!(bnez s2, -8), word!(jr s3)]);
    write(&mut ops, page(0), &adds(1));
    write(&mut ops, page(1), &adds(3));
    map(&mut ops, 0, page(2), ALL);
    map(&mut ops, 1, page(0), ALL);
    settle(&mut ops);
    rv!(ops
        ; li.43 s4, WINDOW as i64
        ; lui s1, 0x1000
        ; add s1, s1, s4
        ; li.43 s5, WINDOW_ENTRY as i64 + 8
        ; li.43 s6, entry(page(0), ALL)
        ; li.43 s7, entry(page(1), ALL)
        ; li.12 s0, 0
        ; li.12 s8, 200
        ; ->again:
        ; li.12 a0, 0
        ; li.12 s2, 100
        ; jalr s3, s4, 0
        ; addi a1, s8, -100
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops
        ; sd s7, [s5]
        ; .u32 sfence(S1, 0)
        ; mv t1, s6
        ; mv s6, s7
        ; mv s7, t1
        ; xori s8, s8, 200 ^ 400   // 100 more than the sum: one or three for each of 100 calls
    );
    repeat(&mut ops, 500);
    frame::finish("jump_to_a_page_that_moves", m, ops)
}

pub(super) fn border_of_a_page_that_moves(m: Form) -> GuestImage {
    let mut ops = frame::program(m);
    // A function that begins at the end of the first page and has an instruction over the border to the second. Each
    // page has another version, by 2 and by 5 more; they change in turn.
    let across = |step: i32| word!(addi a0, a0, 0) | step << 20;
    for (number, step) in [(0, 1), (1, 3)] {
        let words = [word!(addi a0, a0, 0) | step << 20, word!(addi a0, a0, 0), across(0) << 16 | 1];
        write(&mut ops, page(number) + 0xff4, &words); // the last is c.nop and a lower half
    }
    for (number, step) in [(2, 2), (3, 7)] {
        write(&mut ops, page(number), &[word!(ret) << 16 | across(step) >> 16 & 0xffff, word!(ret) >> 16 & 0xffff]);
    }
    map(&mut ops, 0, page(0), ALL);
    map(&mut ops, 1, page(2), ALL);
    settle(&mut ops);
    rv!(ops
        ; li.43 s1, WINDOW as i64
        ; lui t0, 0x1000
        ; add s9, s1, t0
        ; addi s1, s9, -12
        ; li.43 s5, WINDOW_ENTRY as i64
        ; li.43 s6, entry(page(0), ALL)
        ; li.43 s7, entry(page(1), ALL)
        ; li.43 s3, entry(page(2), ALL)
        ; li.43 s4, entry(page(3), ALL)
        ; li.12 s0, 0
        ; ->again:
    );
    for (code, which, sum) in [(1, 0, 3), (2, 0, 5), (3, 1, 10), (4, 0, 8)] {
        if code != 1 {
            // The entry that is due, and the fence for an address on its page.
            match which {
                0 => rv!(ops ; sd s7, [s5] ; mv t1, s6 ; mv s6, s7 ; mv s7, t1 ; .u32 sfence(S1, 0)),
                _ => rv!(ops ; sd s4, [s5, 8] ; mv t1, s3 ; mv s3, s4 ; mv s4, t1 ; .u32 sfence(S9, 0)),
            }
        }
        rv!(ops ; li.12 a1, sum * 100);
        call_often(&mut ops, 0, 100, code);
    }
    rv!(ops ; sd s4, [s5, 8] ; mv t1, s3 ; mv s3, s4 ; mv s4, t1 ; .u32 sfence(S9, 0));
    repeat(&mut ops, 200);
    frame::finish("border_of_a_page_that_moves", m, ops)
}

pub(super) fn one_address_two_modes(m: Form) -> GuestImage {
    // What supervisor mode sees at this address is page 1; machine mode, as the address is physical, sees page 0.
    let mut ops = asm::start();
    frame::start_clock(&mut ops);
    tables(&mut ops);
    let own = ram_entry(page(0));
    rv!(ops ; la t0, ->machine ; csrw mtvec, t0);
    enter(&mut ops, DELEGATED & !CALL);
    frame::trap_to_the_end(&mut ops, m);
    write(&mut ops, page(0), &adds(1));
    write(&mut ops, page(1), &adds(3));
    put(&mut ops, own, entry(page(1), ALL));
    settle(&mut ops);
    rv!(ops ; li.43 s1, page(0) as i64 ; li.12 s0, 0 ; ->again: ; li.12 a1, 300);
    call_often(&mut ops, 0, 100, 1);
    rv!(ops ; ecall ; li.12 a1, 100);
    asm::expect_equal(&mut ops, 2);
    repeat(&mut ops, 400);
    rv!(ops
        ; .align 64
        ; ->machine:
        ; li.12 a0, 0
        ; li.12 s2, 100
        ; call:
        ; jalr ra, s1, 0
        ; addi s2, s2, -1
        ; bnez s2, <call
        ; csrr t0, mepc
        ; addi t0, t0, 4
        ; csrw mepc, t0
        ; .u32 asm::MRET
    );
    frame::finish("one_address_two_modes", m, ops)
}

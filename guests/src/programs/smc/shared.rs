//! Two harts under page tables: one runs code, the other writes it at another address, or moves the page under it.
//!
//! ```text
//!   hart 0, supervisor mode                       hart 1, supervisor mode
//!     INTENT = n                                    f = FLAG
//!     the new code, or the new page's entry         v = call                f <= v <= INTENT, or it fails (a page that is on
//!                                                                           its way may still show what it held last: f - 1)
//!     software interrupt ───────────────────▶       machine mode: sfence.vma, fence.i, ACK + 1
//!     ACK has come: FLAG = n                        COUNT + 1
//!     waits for some calls
//! ```

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, MRET, rv, word};
use super::form::Form;
use super::frame;
use super::paged::{page, write};
use super::supervisor::{ALL, DELEGATED, WINDOW, WINDOW_ENTRY, enter, entry, put, sfence, tables};

const DATA: i64 = page(8) as i64;
const INTENT: i32 = 0;
const FLAG: i32 = 0x40;
const ACK: i32 = 0x80;
const COUNT: i32 = 0xc0;
const READY: i32 = 0x100;
const SAVED: i32 = 0x140;

const FENCE: u32 = 0x0330_000f;
const LUI_A0: i32 = 0x537;
const MSIP_1: i32 = 0x200_0004;

const ROUNDS: i32 = 200;
/// Calls of hart 1 for each round.
const CALLS: i32 = 250;

pub(super) fn code_of_another_hart(m: Form) -> GuestImage {
    let change = |ops: &mut Asm| {
        rv!(ops ; slli t1, s0, 12 ; li.12 t2, LUI_A0 ; or t1, t1, t2 ; sw t1, [s3]);
    };
    two_harts("code_of_another_hart", m, false, change)
}

pub(super) fn page_of_another_hart(m: Form) -> GuestImage {
    // The new version is put on the page that is not mapped, then that is mapped.
    let change = |ops: &mut Asm| {
        rv!(ops
            ; slli t1, s0, 12
            ; li.12 t2, LUI_A0
            ; or t1, t1, t2
            ; sw t1, [s4]
            ; .u32 FENCE
            ; sd s7, [s5]
            ; mv t1, s6
            ; mv s6, s7
            ; mv s7, t1
            ; mv t1, s3
            ; mv s3, s4
            ; mv s4, t1
        );
    };
    two_harts("page_of_another_hart", m, true, change)
}

/// `change` makes the function return version s0: s3 is where the page in use can be written, s4 the other page; s5, s6
/// and s7 are the entry, what it holds, and what makes it the other page. Between the store to the entry and its fence hart 1
/// may see the other page, and there, as it has not done its `fence.i` either, the code of two versions ago: `moves`.
fn two_harts(name: &'static str, m: Form, moves: bool, change: impl Fn(&mut Asm)) -> GuestImage {
    let mut ops = asm::start();
    frame::start_clock(&mut ops);
    rv!(ops ; li.43 s8, DATA ; li.43 s1, WINDOW as i64 ; csrr t0, mhartid ; beqz t0, >first ; jump ->second, t6 ; first:);
    tables(&mut ops);
    for number in [0, 1] {
        write(&mut ops, page(number), &[LUI_A0, word!(ret)]);
    }
    put(&mut ops, WINDOW_ENTRY, entry(page(0), ALL));
    rv!(ops ; .u32 FENCE ; li.12 t1, 1 ; sd t1, [s8, READY]);
    enter(&mut ops, DELEGATED);
    frame::trap_to_the_end(&mut ops, m);
    rv!(ops
        ; li.43 s3, page(0) as i64
        ; li.43 s4, page(1) as i64
        ; li.43 s5, WINDOW_ENTRY as i64
        ; li.43 s6, entry(page(0), ALL)
        ; li.43 s7, entry(page(1), ALL)
        ; li.12 s0, 0
        ; ->again:
        ; addi s0, s0, 1
        ; sd s0, [s8, INTENT]
        ; .u32 FENCE
    );
    change(&mut ops);
    rv!(ops
        ; .u32 FENCE
        ; li.32 t0, MSIP_1
        ; li.12 t1, 1
        ; sw t1, [t0]
        ; answer:
        ; ld t0, [s8, ACK]
        ; bltu t0, s0, <answer
        ; .u32 FENCE
        ; sd s0, [s8, FLAG]
        ; ld t1, [s8, COUNT]
        ; addi t1, t1, CALLS
        ; calls:
        ; ld t0, [s8, COUNT]
        ; bltu t0, t1, <calls
        ; li.12 t0, ROUNDS
        ; beq s0, t0, >done
        ; jump ->again, t6
        ; done:
    );
    asm::pass(&mut ops);

    rv!(ops
        ; ->second:
        ; wait:
        ; ld t0, [s8, READY]
        ; beqz t0, <wait
        ; .u32 FENCE
        ; la t0, ->firmware
        ; csrw mtvec, t0
        ; addi t0, s8, SAVED
        ; csrw mscratch, t0
        ; li.12 t0, 8               // mie.MSIE
        ; csrw mie, t0
    );
    enter(&mut ops, DELEGATED);
    frame::trap_to_the_end(&mut ops, m);
    rv!(ops
        ; fence.i
        ; follow:
        ; ld s2, [s8, FLAG]
        ; .u32 FENCE
        ; jalr ra, s1, 0
        ; srli a0, a0, 12
        ; .u32 FENCE
        ; ld s3, [s8, INTENT]
        ; bgeu a0, s2, >not_older
    );
    if moves {
        rv!(ops ; beq s3, s2, >older ; addi t0, s2, -1 ; bgeu a0, t0, >not_older ; older:);
    }
    rv!(ops
        ; li.12 a0, 1
        ; jump ->fail, t6
        ; not_older:
        ; bgeu s3, a0, >not_newer
        ; li.12 a0, 2
        ; jump ->fail, t6
        ; not_newer:
        ; ld t0, [s8, COUNT]
        ; addi t0, t0, 1
        ; sd t0, [s8, COUNT]
        ; j <follow
        // Machine mode of hart 1: what firmware does for a remote fence.
        ; .align 4
        ; ->firmware:
        ; csrrw t0, mscratch, t0
        ; sd t1, [t0]
        ; sd t2, [t0, 8]
        ; csrr t1, mcause
        ; bltz t1, >interrupt
        ; jump ->trapped, t6
        ; interrupt:
        ; li.32 t1, MSIP_1
        ; sw zero, [t1]
        ; .u32 FENCE
        ; .u32 sfence(0, 0)
        ; fence.i
        ; li.12 t2, 1
        ; addi t1, t0, ACK - SAVED
        ; amoadd.d zero, t2, [t1]
        ; ld t1, [t0]
        ; ld t2, [t0, 8]
        ; csrrw t0, mscratch, t0
        ; .u32 MRET
    );
    frame::finish(name, m, ops)
}

//! Guests for several harts: counters, locks, litmus tests of the memory model, interrupts between harts, and code that
//! one hart writes and another runs.
//!
//! ```text
//!   every hart starts at BASE ─▶ common prologue ─▶ its part ─▶ barrier ─▶ hart 0 checks and ends; the rest waits
//!   s8 number of harts   s9 shared data   s10 what the barrier has counted   s11 this hart
//! ```
//!
//! Shared variables lie a line apart. A failure of any hart ends the run with the number of the check.

mod atomics;
mod code;
mod litmus;

pub use atomics::{changed_back, counters, free_list, lock};
pub use code::{follow, handshake, neighbours, race};
pub use litmus::{Litmus, litmus};

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, WFI, rv};

/// Where what the harts share lies.
pub const DATA: u64 = 0x8010_0000;
/// The function that [`follow`] calls: `lui a0, n ; ret`.
pub const FUNCTION: u64 = DATA + 0x4_0000;
/// Offset in [`DATA`]: the last version of the function that is complete.
pub const FLAG: i32 = 0x100;
/// Offset in [`DATA`]: the last version that was begun.
pub const INTENT: i32 = 0x140;
/// The version of the function after which no hart goes on.
pub const LAST: u64 = 0x7_0000;

const BARRIER: i32 = 0x000;
const COUNTER: i32 = 0x040;
const SECOND: i32 = 0x080;
const LOCK: i32 = 0x0c0;
const ACK: i32 = 0x180;

/// `fence rw, rw`
const FENCE: u32 = 0x0330_000f;
/// `fence rw, w`: before a release.
const FENCE_RW_W: u32 = 0x0310_000f;
/// `fence r, rw`: after an acquire.
const FENCE_R_RW: u32 = 0x0230_000f;
/// `fence w, w`
const FENCE_W_W: u32 = 0x0110_000f;
/// `fence r, r`
const FENCE_R_R: u32 = 0x0220_000f;
/// `fence w, r` with an `fm` that only `fence.tso` has.
const FENCE_RESERVED: u32 = 0x8120_000f;
/// `lr.d.rl t1, (zero)`.
const LR_D_RL_T1: u32 = 0x1200_332f;
const FENCE_I: u32 = 0x0000_100f;
/// `lui a0, 0`
const LUI_A0: i32 = 0x537;
/// `ret`
const RET: i32 = 0x8067;

/// Cells of one round of a litmus test, a line each.
const SLOTS: i32 = 256;
const CELLS_X: i32 = 0x1_0000;
const CELLS_Y: i32 = 0x2_0000;
/// Results: two words a slot, for two readers.
const RESULTS: i32 = 0x3_0000;
const READER: i32 = SLOTS * 16;

fn program(harts: usize) -> Asm {
    let mut ops = asm::program();
    rv!(ops
        ; mv s11, a0
        ; li.32 s8, harts as i32
        ; li.43 s9, DATA as i64
        ; li.12 s10, 0
        ; j >start
        ; .align 4
        ; ->barrier:
        ; .u32 FENCE
        ; add s10, s10, s8
        ; li.12 t0, 1
        ; addi t1, s9, BARRIER
        ; amoadd.d zero, t0, [t1]
        ; wait:
        ; ld t0, [t1]
        ; bltu t0, s10, <wait
        ; .u32 FENCE
        ; ret
        ; start:
    );
    ops
}

fn barrier(ops: &mut Asm) {
    rv!(ops ; call ->barrier);
}

/// Everybody is here; only hart 0 goes on.
fn only_hart_0(ops: &mut Asm) {
    barrier(ops);
    rv!(ops ; beqz s11, >first ; idle: ; .u32 WFI ; j <idle ; first:);
}

fn finish(name: &'static str, mut ops: Asm) -> GuestImage {
    asm::pass(&mut ops);
    asm::finish(name, ops)
}

/// A token goes round by software interrupts; a hart that has none sleeps in `wfi`.
pub fn ipi(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops
        ; li.32 s0, rounds
        ; lui s1, 0x200_0000
        ; slli t0, s11, 2
        ; add s2, s1, t0             // own msip
        ; addi t0, s11, 1
        ; blt t0, s8, >inside
        ; li.12 t0, 0
        ; inside:
        ; slli t0, t0, 2
        ; add s3, s1, t0             // the next hart's
        ; li.12 s4, 1
        ; csrwi mie, 8
    );
    barrier(&mut ops);
    rv!(ops
        ; bnez s11, >receive
        ; again:
        ; sw s4, [s3]
        ; receive:
        ; .u32 WFI
        ; csrr t0, mip
        ; andi t0, t0, 8
        ; beqz t0, <receive
        ; sw zero, [s2]
        ; ld t0, [s9, COUNTER]
        ; addi t0, t0, 1
        ; sd t0, [s9, COUNTER]
        ; addi s0, s0, -1
        ; beqz s0, >last
        ; j <again
        ; last:
        ; beqz s11, >done
        ; sw s4, [s3]
        ; done:
    );
    only_hart_0(&mut ops);
    rv!(ops ; ld a0, [s9, COUNTER]);
    asm::expect(&mut ops, 1, harts as i32 * rounds);
    finish("smp-ipi", ops)
}

/// All harts but hart 0 wait for what never comes, then hart 0 too.
pub fn all_wait(harts: usize) -> GuestImage {
    let mut ops = program(harts);
    barrier(&mut ops);
    rv!(ops ; csrwi mie, 8 ; here: ; .u32 WFI ; j <here);
    asm::finish("smp-all-wait", ops)
}

//! Guests for several harts: counters, locks, litmus tests of the memory model, interrupts between harts, and code that
//! one hart writes and another runs.
//!
//! ```text
//!   every hart starts at BASE ─▶ common prologue ─▶ its part ─▶ barrier ─▶ hart 0 checks and ends; the rest waits
//!   s8 number of harts   s9 shared data   s10 what the barrier has counted   s11 this hart
//! ```
//!
//! Shared variables lie a line apart. A failure of any hart ends the run with the number of the check.

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

/// Each hart adds 1 to shared cells `rounds` times, by AMOs of both widths and by LR and SC.
pub fn counters(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops
        ; li.32 s0, rounds
        ; li.12 s1, 1
        ; addi s2, s9, COUNTER
        ; addi s3, s9, SECOND
        ; addi s4, s9, LOCK
    );
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; amoadd.d zero, s1, [s2]
        ; amoadd.w zero, s1, [s3]
        ; retry:
        ; lr.d t0, [s4]
        ; addi t0, t0, 1
        ; sc.d t1, t0, [s4]
        ; bnez t1, <retry
        ; addi s0, s0, -1
        ; bnez s0, <again
    );
    only_hart_0(&mut ops);
    for (code, cell) in [(1, COUNTER), (2, SECOND), (3, LOCK)] {
        rv!(ops ; ld a0, [s9, cell]);
        asm::expect(&mut ops, code, harts as i32 * rounds);
    }
    finish("smp-counters", ops)
}

/// Plain words under a lock of LR and SC, released by a plain store behind a fence.
pub fn lock(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops ; li.32 s0, rounds ; addi s2, s9, LOCK ; li.12 s1, 1);
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; acquire:
        ; lr.w t0, [s2]
        ; bnez t0, <acquire
        ; sc.w t0, s1, [s2]
        ; bnez t0, <acquire
        ; .u32 FENCE_R_RW
        // Two words that agree whenever no hart is inside.
        ; ld t0, [s9, COUNTER]
        ; ld t1, [s9, SECOND]
        ; mv a0, t0
        ; mv a1, t1
        ; addi t0, t0, 1
        ; sd t0, [s9, COUNTER]
        ; addi t1, t1, 1
        ; sd t1, [s9, SECOND]
        ; .u32 FENCE_RW_W
        ; sw zero, [s2]
    );
    asm::expect_equal(&mut ops, 1);
    rv!(ops ; addi s0, s0, -1 ; beqz s0, >done ; j <again ; done:);
    only_hart_0(&mut ops);
    rv!(ops ; ld a0, [s9, COUNTER]);
    asm::expect(&mut ops, 2, harts as i32 * rounds);
    finish("smp-lock", ops)
}

/// Hart 0 reserves a word, hart 1 stores another value and the old one, then hart 0's SC must fail; so many times. Two harts.
pub fn changed_back(rounds: i32) -> GuestImage {
    let mut ops = program(2);
    rv!(ops
        ; li.32 s0, rounds
        ; addi s2, s9, COUNTER
        ; addi s3, s9, SECOND
        ; addi s4, s9, LOCK
        ; li.12 s5, 0
        ; li.12 s6, 0
        ; li.12 s7, 5
    );
    barrier(&mut ops);
    rv!(ops
        ; bnez s11, >other
        ; again:
        ; addi s6, s6, 1
        ; sd s7, [s2]
        ; lr.d t0, [s2]
        ; .u32 FENCE
        ; sd s6, [s3]
        ; wait:
        ; ld t1, [s4]
        ; bne t1, s6, <wait
        ; .u32 FENCE
        ; li.12 t2, 9
        ; sc.d t1, t2, [s2]
        ; seqz t1, t1
        ; add s5, s5, t1
        ; bne s6, s0, <again
        ; j >done
        ; other:
        ; addi s6, s6, 1
        ; wait:
        ; ld t1, [s3]
        ; bne t1, s6, <wait
        ; .u32 FENCE
        ; sd zero, [s2]
        ; .u32 FENCE
        ; sd s7, [s2]
        ; .u32 FENCE
        ; sd s6, [s4]
        ; bne s6, s0, <other
        ; done:
    );
    only_hart_0(&mut ops);
    rv!(ops ; mv a0, s5);
    asm::expect(&mut ops, 1, 0);
    finish("smp-changed-back", ops)
}

/// Nodes of [`free_list`].
const NODES: i32 = 8;

/// A stack of free nodes; LR and SC swing its head, without a count beside it: each hart pops two, looks that no other has
/// them, and pushes them.
pub fn free_list(harts: usize, rounds: i32) -> GuestImage {
    let mut ops = program(harts);
    rv!(ops
        ; j >start
        ; ->pop:
        ; again:
        ; lr.d a0, [s2]
        ; beqz a0, >empty
        ; ld t0, [a0]
        ; sc.d t1, t0, [s2]
        ; bnez t1, <again
        ; empty:
        ; ret
        ; ->push:
        ; beqz a0, >none
        ; again:
        ; lr.d t0, [s2]
        ; sd t0, [a0]
        ; .u32 FENCE_W_W
        ; sc.d t1, a0, [s2]
        ; bnez t1, <again
        ; none:
        ; ret
        // Takes node a0 for this hart; a0 is what had it.
        ; ->own:
        ; beqz a0, >none
        ; addi t1, a0, 8
        ; addi t2, s11, 1
        ; amoswap.d a0, t2, [t1]
        ; none:
        ; ret
        ; start:
        ; li.32 s0, rounds
        ; addi s2, s9, COUNTER
        ; li.32 t0, CELLS_X
        ; add s7, s9, t0
        ; bnez s11, >built
        ; li.12 t0, NODES
        ; li.12 t1, 0
        ; mv t2, s7
        ; build:
        ; sd t1, [t2]
        ; mv t1, t2
        ; addi t2, t2, 64
        ; addi t0, t0, -1
        ; bnez t0, <build
        ; sd t1, [s2]
        ; built:
    );
    barrier(&mut ops);
    rv!(ops
        ; again:
        ; call ->pop
        ; mv s3, a0
        ; call ->pop
        ; mv s4, a0
        ; mv a0, s3
        ; call ->own
    );
    asm::expect(&mut ops, 1, 0);
    rv!(ops ; mv a0, s4 ; call ->own);
    asm::expect(&mut ops, 2, 0);
    rv!(ops
        ; beqz s3, >none
        ; sd zero, [s3, 8]
        ; none:
        ; beqz s4, >none
        ; sd zero, [s4, 8]
        ; none:
        ; mv a0, s3
        ; call ->push
        ; mv a0, s4
        ; call ->push
        ; addi s0, s0, -1
        ; beqz s0, >done
        ; j <again
        ; done:
    );
    only_hart_0(&mut ops);
    rv!(ops
        ; ld t0, [s2]
        ; li.12 a0, 0
        ; li.12 t1, 100
        ; count:
        ; beqz t0, >end
        ; beq a0, t1, >end
        ; addi a0, a0, 1
        ; ld t0, [t0]
        ; j <count
        ; end:
    );
    asm::expect(&mut ops, 3, NODES);
    finish("smp-free-list", ops)
}

/// A question about the memory model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Litmus {
    /// Message passing: a hart that sees the flag sees the data.
    Mp,
    /// Store buffering: with full fences, one of two sees the other's store.
    Sb,
    /// The same with a fence of stores before loads whose `fm` is reserved.
    SbReserved,
    /// The same with `lr.rl` for fence and load.
    SbRelease,
    /// The same with fences that lie between accesses of the harts' own, none of which stands for another.
    SbTwice,
    /// The same with several fences in a row.
    SbRow,
    /// The same with a fence in front of an AMO on a cell of the hart's own.
    SbFenceAmo,
    /// The same with such an AMO for the fence.
    SbAmo,
    /// The same with the fence in a loop that stores nothing.
    SbLoop,
    /// Load buffering: no load sees a store that depends on it.
    Lb,
    /// Independent reads of independent writes: two readers agree on the order. Four harts.
    Iriw,
}

impl Litmus {
    /// Harts that take part.
    pub fn harts(self) -> usize {
        if self == Litmus::Iriw { 4 } else { 2 }
    }
}

/// What hart `hart` does with its cells: x at s2, y at s3, results at s4 (of the first reader) or READER behind it.
#[allow(clippy::useless_conversion, reason = "what dynasm! expands to")]
fn litmus_part(ops: &mut Asm, what: Litmus, hart: usize) {
    let store_x = |ops: &mut Asm| rv!(ops ; sd s1, [s2]);
    let store_y = |ops: &mut Asm| rv!(ops ; sd s1, [s3]);
    let read = |ops: &mut Asm, first_x: bool| {
        if first_x {
            rv!(ops ; ld t1, [s2] ; .u32 FENCE_R_R ; ld t2, [s3]);
        } else {
            rv!(ops ; ld t1, [s3] ; .u32 FENCE_R_R ; ld t2, [s2]);
        }
        rv!(ops ; sd t1, [s4] ; sd t2, [s4, 8]);
    };
    let (own, other, result) = if hart == 0 { (18, 19, 0) } else { (19, 18, 8) };
    match (what, hart) {
        (Litmus::Mp, 0) => rv!(ops ; sd s1, [s2] ; .u32 FENCE_W_W ; sd s1, [s3]),
        (Litmus::Mp, _) => read(ops, false),
        (Litmus::Sb, _) => rv!(ops ; sd s1, [X(own)] ; .u32 FENCE ; ld t1, [X(other)] ; sd t1, [s4, result]),
        (Litmus::SbReserved, _) => {
            rv!(ops ; sd s1, [X(own)] ; .u32 FENCE_RESERVED ; ld t1, [X(other)] ; sd t1, [s4, result])
        }
        (Litmus::SbRelease, _) => {
            rv!(ops ; sd s1, [X(own)] ; .u32 LR_D_RL_T1 | u32::from(other) << 15 ; sd t1, [s4, result])
        }
        (Litmus::SbTwice, _) => {
            rv!(ops ; sd zero, [s4, result] ; .u32 FENCE ; ld t2, [s4, result] ; sd s1, [X(own)] ; .u32 FENCE);
            rv!(ops ; ld t1, [X(other)] ; sd t1, [s4, result]);
        }
        (Litmus::SbRow, _) => {
            rv!(ops ; sd s1, [X(own)] ; .u32 FENCE_W_W ; .u32 FENCE ; addi t2, t2, 1 ; .u32 FENCE_RESERVED ; .u32 FENCE);
            rv!(ops ; .u32 FENCE_R_R ; ld t1, [X(other)] ; sd t1, [s4, result]);
        }
        (Litmus::SbFenceAmo, _) => {
            rv!(ops ; addi t3, s4, result ; sd s1, [X(own)] ; .u32 FENCE ; amoadd.d zero, zero, [t3]);
            rv!(ops ; ld t1, [X(other)] ; sd t1, [s4, result]);
        }
        (Litmus::SbAmo, _) => {
            rv!(ops ; addi t3, s4, result ; sd s1, [X(own)] ; amoor.d t2, s1, [t3] ; .u32 FENCE);
            rv!(ops ; ld t1, [X(other)] ; sd t1, [s4, result]);
        }
        (Litmus::SbLoop, _) => {
            rv!(ops ; li.12 t2, 2 ; sd s1, [X(own)] ; twice: ; .u32 FENCE ; ld t1, [X(other)] ; addi t2, t2, -1);
            rv!(ops ; .u32 FENCE ; bnez t2, <twice ; sd t1, [s4, result]);
        }
        (Litmus::Lb, 0) => rv!(ops ; ld t1, [s2] ; .u32 FENCE_RW_W ; sd s1, [s3] ; sd t1, [s4]),
        (Litmus::Lb, _) => rv!(ops ; ld t1, [s3] ; .u32 FENCE_RW_W ; sd s1, [s2] ; sd t1, [s4, 8]),
        (Litmus::Iriw, 0) => store_x(ops),
        (Litmus::Iriw, 1) => store_y(ops),
        (Litmus::Iriw, 2) => read(ops, true),
        (Litmus::Iriw, _) => {
            rv!(ops ; li.32 t0, READER ; add s4, s4, t0);
            read(ops, false);
            rv!(ops ; li.32 t0, READER ; sub s4, s4, t0);
        }
    }
}

/// Jumps to `bad` if the results at s4 are what must never be.
fn forbidden(ops: &mut Asm, what: Litmus) {
    rv!(ops ; ld t1, [s4] ; ld t2, [s4, 8]);
    match what {
        // The flag without the data.
        Litmus::Mp => rv!(ops ; beqz t1, >good ; beqz t2, ->bad ; good:),
        // Neither saw the other.
        Litmus::Sb
        | Litmus::SbReserved
        | Litmus::SbRelease
        | Litmus::SbTwice
        | Litmus::SbRow
        | Litmus::SbFenceAmo
        | Litmus::SbAmo
        | Litmus::SbLoop => rv!(ops ; or t1, t1, t2 ; beqz t1, ->bad),
        // Both saw the other.
        Litmus::Lb => rv!(ops ; and t1, t1, t2 ; bnez t1, ->bad),
        // One saw x and not yet y, the other y and not yet x.
        Litmus::Iriw => rv!(ops
            ; beqz t1, >good
            ; bnez t2, >good
            ; li.32 t0, READER
            ; add t0, t0, s4
            ; ld t1, [t0]
            ; ld t2, [t0, 8]
            ; beqz t1, >good
            ; beqz t2, ->bad
            ; good:
        ),
    }
}

/// `rounds` rounds of a litmus test, each with some hundred cells.
pub fn litmus(what: Litmus, rounds: i32) -> GuestImage {
    let mut ops = program(what.harts());
    rv!(ops ; li.32 s0, rounds ; li.12 s1, 1);
    let cells = |ops: &mut Asm| {
        rv!(ops
            ; li.32 s2, CELLS_X
            ; add s2, s2, s9
            ; li.32 s3, CELLS_Y
            ; add s3, s3, s9
            ; li.32 s4, RESULTS
            ; add s4, s4, s9
            ; li.32 s5, SLOTS
        );
    };
    let next = |ops: &mut Asm| rv!(ops ; addi s2, s2, 64 ; addi s3, s3, 64 ; addi s4, s4, 16 ; addi s5, s5, -1);
    rv!(ops ; again:);
    barrier(&mut ops);
    cells(&mut ops);
    for hart in 0..what.harts() {
        rv!(ops ; li.12 t0, hart as i32 ; bne s11, t0, >not_me ; slot:);
        litmus_part(&mut ops, what, hart);
        next(&mut ops);
        rv!(ops ; bnez s5, <slot ; not_me:);
    }
    barrier(&mut ops);
    rv!(ops ; bnez s11, >checked);
    cells(&mut ops);
    rv!(ops ; slot:);
    forbidden(&mut ops, what);
    rv!(ops ; sd zero, [s2] ; sd zero, [s3]);
    next(&mut ops);
    rv!(ops ; bnez s5, <slot ; checked: ; addi s0, s0, -1 ; beqz s0, >done ; j <again ; done:);
    only_hart_0(&mut ops);
    asm::pass(&mut ops);
    rv!(ops ; ->bad: ; li.12 a0, 1 ; jump ->fail, t6);
    asm::finish("smp-litmus", ops)
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

/// Puts `lui a0, n` for the version in `t0` at FUNCTION, whose address is s6; uses t1 and t2.
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

/// All harts but hart 0 wait for what never comes, then hart 0 too.
pub fn all_wait(harts: usize) -> GuestImage {
    let mut ops = program(harts);
    barrier(&mut ops);
    rv!(ops ; csrwi mie, 8 ; here: ; .u32 WFI ; j <here);
    asm::finish("smp-all-wait", ops)
}

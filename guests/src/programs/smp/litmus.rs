//! Litmus tests of the memory model: what each hart does, and what must never come of it.
use super::*;

/// A question about the memory model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Litmus {
    /// Message passing: a hart that sees the flag sees the data.
    Mp,
    /// Store buffering: with full fences, one of two sees the other's store.
    Sb,
    /// The same with a fence of stores before loads that has a reserved `fm`.
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

//! Where emitted code finds what the context and the TLB have: displacements from rbp.
//!
//! ```text
//!   rbp - 128        - 96                                    + 127
//!         [ Selected ][ Context: x0 … x27 one byte away │ x28 … x31, and all else, four ]
//! ```
use crate::cpu::CpuState;
use crate::guest::hart::seen;
use crate::jit::context::{Context, GUESSES, KEPT, PREFIX};
use notdirty_softmmu::tlb::entry::{NOTED_LIST, NotedList, SELECTED, Selected};
use notdirty_softmmu::tlb::{COVERAGE_AT, OPERANDS_AT};
use std::mem::offset_of;

/// Added to the start of the context to get `rbp`.
pub(super) const BASE: i32 = 96;

pub(super) const PC: i32 = offset_of!(Context, cpu) as i32 + offset_of!(CpuState, pc) as i32 - BASE;
pub(super) const MAPPINGS: i32 = offset_of!(Context, mappings) as i32 - BASE;
pub(super) const LINKS_NOT: i32 = offset_of!(Context, links_not) as i32 - BASE;
pub(super) const ENGINE: i32 = offset_of!(Context, engine) as i32 - BASE;
pub(super) const BUDGET: i32 = offset_of!(Context, budget) as i32 - BASE;
pub(super) const ACCESSES: i32 = offset_of!(Context, accesses) as i32 - BASE;
pub(super) const SLICE: i32 = offset_of!(Context, slice) as i32 - BASE;
pub(super) const CODE_WORK: i32 = offset_of!(Context, code_work) as i32 - BASE;
pub(super) const KICK: i32 = offset_of!(Context, kick) as i32 - BASE;
/// From the table to that of the regime of loads and stores, where that one is, and its flat addend.
pub(super) const TABLE_OFFSET: i32 = SELECTED - BASE + offset_of!(Selected, offset) as i32;
pub(super) const SET_TABLE: i32 = SELECTED - BASE + offset_of!(Selected, table) as i32;
pub(super) const SET_ADDEND: i32 = SELECTED - BASE + offset_of!(Selected, addend) as i32;
/// How much of flat RAM loads need no entry for.
pub(super) const WHOLE: i32 = SELECTED - BASE + offset_of!(Selected, whole) as i32;
/// The same of a run of pages: see softmmu's `tlb/run.rs`.
pub(super) const RUN_START: i32 = SELECTED - BASE + offset_of!(Selected, run_start) as i32;
pub(super) const RUN: i32 = SELECTED - BASE + offset_of!(Selected, run) as i32;
/// The pages whose lines were noted: see softmmu's `lines.rs`.
pub(super) const NOTED_TOP: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, top) as i32;
pub(super) const NOTED_END: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, end) as i32;
/// The counters of coverage.
pub(super) const COVERAGE: i32 = TABLE + COVERAGE_AT;
/// What was compared.
pub(super) const OPERANDS: i32 = TABLE + OPERANDS_AT;
pub(super) const NOTED_ALONE: i32 = TABLE + NOTED_LIST + offset_of!(NotedList, alone) as i32;
pub(super) const ELSEWHERE: i32 = offset_of!(Context, elsewhere) as i32 - BASE;
const KEPT_AT: i32 = offset_of!(Context, kept) as i32 - BASE;
const GUESSES_AT: i32 = offset_of!(Context, guesses) as i32 - BASE;
pub(super) const GUESSES_LEFT: i32 = offset_of!(Context, guesses_left) as i32 - BASE;
pub(super) const WRONG_SITE: i32 = offset_of!(Context, wrong_site) as i32 - BASE;
pub(super) const LIMIT: i32 = offset_of!(Context, limit) as i32 - BASE;
pub(super) const BESIDE: i32 = offset_of!(Context, beside) as i32 - BASE;
pub(super) const FLOAT_UNIT: i32 = offset_of!(Context, float_unit) as i32 - BASE;
const CPU: i32 = offset_of!(Context, cpu) as i32 - BASE;
/// How floating point rounds, and the bits that say what the unit is: see [`seen`].
pub(super) const ROUNDING: i32 = CPU + seen::ROUNDING as i32;
pub(super) const UNIT_ON: (i32, i8) = (CPU + seen::UNIT_ON.0 as i32, seen::UNIT_ON.1 as i8);
pub(super) const UNIT_DIRTY: (i32, i8) = (CPU + seen::UNIT_DIRTY.0 as i32, seen::UNIT_DIRTY.1 as i8);
/// Which counters stand still.
pub(super) const STOPPED: i32 = CPU + seen::STOPPED as i32;
const FLOATS: i32 = offset_of!(Context, cpu) as i32 + offset_of!(CpuState, f) as i32 - BASE;
pub(super) const NEAR_JUMPS: i32 = offset_of!(Context, near_jumps) as i32 - BASE;
pub(super) const FAR_JUMPS: i32 = offset_of!(Context, far_jumps) as i32 - BASE;
pub(super) const FAR_MASK: i32 = offset_of!(Context, far_mask) as i32 - BASE;
pub(super) const JUMPS: i32 = offset_of!(Context, jumps) as i32 - BASE;
pub(super) const TABLE: i32 = PREFIX as i32 - BASE;

/// Displacement of a floating-point register in the context.
pub(super) const fn float_off(register: u8) -> i32 {
    FLOATS + 8 * (register as i32 & 31)
}

/// Displacement of an addend that a check keeps.
pub(super) const fn kept_off(slot: u8) -> i32 {
    KEPT_AT + 8 * (slot as i32 % KEPT as i32)
}

/// Displacement of an addend that a load guesses.
pub(super) const fn guess_off(slot: u8) -> i32 {
    GUESSES_AT + 8 * (slot as i32 % GUESSES as i32)
}

/// One byte is enough for what loads and stores go by, and for most guest registers.
const _: () = assert!(WHOLE == -128 && TABLE_OFFSET == -120 && RUN_START == -112 && RUN == -104);

//! The way into supervisor mode, and the page tables that it finds there.
//!
//! ```text
//!   0x0000_0000  1 GiB  devices, one page of 1 GiB          what is below in physical memory
//!   0x8000_0000  4 MiB  RAM, in pages of 4 KiB              itself
//!   0xc000_0000  the window: tables that are there, pages that a case maps as it likes
//!   1_0000_0000  RAM once more
//!
//!   RAM:  0 program ··· 512K stack ··· 1M tohost ··· 2M far code ··· 3M tables ··· 3M + 64K frames for cases
//! ```
//!
//! A second address space has the same but for a window of its own.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::asm::{Asm, BASE, MRET, rv};

const TABLES: u64 = BASE + 0x30_0000;
const ROOT: u64 = TABLES;
const RAM_1: u64 = TABLES + 0x1000;
const RAM_0: u64 = TABLES + 0x2000; // two pages
const WINDOW_1: u64 = TABLES + 0x4000;
const WINDOW_0: u64 = TABLES + 0x5000;
const OTHER_ROOT: u64 = TABLES + 0x6000;
const OTHER_1: u64 = TABLES + 0x7000;
const OTHER_0: u64 = TABLES + 0x8000;

/// A page for a table of a case's own.
pub(super) const SPARE_TABLE: u64 = TABLES + 0x9000;
/// Pages for a case's code and data.
pub(super) const FRAMES: u64 = TABLES + 0x1_0000;
/// Where the window is.
pub(super) const WINDOW: u64 = 0xc000_0000;
/// The entry of the window's first page; the next ones follow.
pub(super) const WINDOW_ENTRY: u64 = WINDOW_0;
/// The same in the second address space.
pub(super) const OTHER_ENTRY: u64 = OTHER_0;
/// The entry of the window's second 2 MiB.
pub(super) const LARGE_ENTRY: u64 = WINDOW_1 + 8;

pub(super) const V: i64 = 1;
pub(super) const R: i64 = 2;
pub(super) const W: i64 = 4;
pub(super) const X: i64 = 8;
pub(super) const U: i64 = 16;
pub(super) const A: i64 = 64;
pub(super) const D: i64 = 128;
/// All a page of supervisor mode can be, with its marks set.
pub(super) const ALL: i64 = V | R | W | X | A | D;

/// All exceptions, but for calls of machine mode.
pub(super) const DELEGATED: i32 = 0xb3ff;
/// The bit of a call from supervisor mode among them.
pub(super) const CALL: i32 = 1 << 9;

/// The entry for a page; with no more than [`V`] of rights, for a table.
pub(super) const fn entry(at: u64, rights: i64) -> i64 {
    (at >> 12 << 10) as i64 | rights
}

/// `sfence.vma` of the address in a register and the address space in one; register 0 stands for all.
pub(super) const fn sfence(address: u32, space: u32) -> u32 {
    0x1200_0073 | space << 20 | address << 15
}

/// Fills the tables, in machine mode. t0 to t4 are lost.
pub(super) fn tables(ops: &mut Asm) {
    let ram = entry(RAM_1, V);
    for (at, what) in [
        (ROOT, entry(0, ALL & !X)),
        (ROOT + 8 * 2, ram),
        (ROOT + 8 * 3, entry(WINDOW_1, V)),
        (ROOT + 8 * 4, ram),
        (OTHER_ROOT, entry(0, ALL & !X)),
        (OTHER_ROOT + 8 * 2, ram),
        (OTHER_ROOT + 8 * 3, entry(OTHER_1, V)),
        (OTHER_ROOT + 8 * 4, ram),
        (RAM_1, entry(RAM_0, V)),
        (RAM_1 + 8, entry(RAM_0 + 0x1000, V)),
        (WINDOW_1, entry(WINDOW_0, V)),
        (OTHER_1, entry(OTHER_0, V)),
    ] {
        put(ops, at, what);
    }
    rv!(ops
        ; li.43 t0, RAM_0 as i64
        ; li.43 t1, RAM_0 as i64 + 0x2000
        ; li.43 t2, entry(BASE, ALL)
        ; li.12 t3, 1024
        ; fill:
        ; sd t2, [t0]
        ; addi t0, t0, 8
        ; add t2, t2, t3
        ; bne t0, t1, <fill
    );
}

/// Stores a double word. t0 and t1 are lost.
pub(super) fn put(ops: &mut Asm, at: u64, what: i64) {
    rv!(ops ; li.43 t0, at as i64 ; li.43 t1, what ; sd t1, [t0]);
}

/// From machine mode into supervisor mode, with the tables in use. t0 and t6 are lost.
pub(super) fn enter(ops: &mut Asm, delegated: i32) {
    rv!(ops
        ; li.12 t0, -1
        ; csrw pmpaddr0, t0
        ; li.12 t0, 0x1f            // all memory, for reading, writing and execution
        ; csrw pmpcfg0, t0
        ; li.32 t0, delegated
        ; csrw medeleg, t0
    );
    load_satp(ops, false, 0);
    rv!(ops
        ; csrw satp, t0
        ; .u32 sfence(0, 0)
        ; li.32 t0, 0x1800          // mstatus.MPP
        ; csrc mstatus, t0
        ; li.32 t0, 0x800
        ; csrs mstatus, t0
        ; la t0, >inside
        ; csrw mepc, t0
        ; .u32 MRET
        ; inside:
    );
}

/// What `satp` is for one of the two address spaces, into t0. t6 is lost.
pub(super) fn load_satp(ops: &mut Asm, other: bool, asid: i64) {
    let root = if other { OTHER_ROOT } else { ROOT };
    // Sv39 is 8 in the upper four bits, which li does not reach.
    rv!(ops
        ; li.43 t0, 8 << 32 | asid << 16
        ; slli t0, t0, 28
        ; li.32 t6, (root >> 12) as i32
        ; or t0, t0, t6
    );
}

/// The entry of a page of RAM, where it shows itself.
pub(super) const fn ram_entry(at: u64) -> u64 {
    RAM_0 + ((at - BASE) >> 12 << 3)
}

//! Guests that look at the edges of devices, and one that speaks HTIF in halves.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, MRET, rv};

/// Where [`halves`] wants its symbol `tohost`.
pub const TOHOST: u64 = 0x8000_1000;

/// One access: is it a store, of `1 << width` bytes, where, and the exception it raises (0: none).
pub type Probe = (bool, u32, u64, u64);

/// Tries each access; fails with the number of the first that ends otherwise, counted from 1.
pub fn probes(all: &[Probe]) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; la t0, ->handler ; csrw mtvec, t0);
    for (n, &(store, width, addr, cause)) in all.iter().enumerate() {
        rv!(ops ; li.43 s0, addr as i64 ; li.12 s1, 0);
        match (store, width) {
            (false, 0) => rv!(ops ; lb t0, [s0, 0]),
            (false, 1) => rv!(ops ; lh t0, [s0, 0]),
            (false, 2) => rv!(ops ; lw t0, [s0, 0]),
            (false, _) => rv!(ops ; ld t0, [s0, 0]),
            (true, 0) => rv!(ops ; sb zero, [s0, 0]),
            (true, 1) => rv!(ops ; sh zero, [s0, 0]),
            (true, 2) => rv!(ops ; sw zero, [s0, 0]),
            (true, _) => rv!(ops ; sd zero, [s0, 0]),
        }
        rv!(ops ; mv a0, s1);
        asm::expect(&mut ops, n as i32 + 1, cause as i32);
    }
    asm::pass(&mut ops);
    // An access is 2 or 4 bytes long, as the assembler likes.
    rv!(ops
        ; .align 4
        ; ->handler:
        ; csrr s1, mcause
        ; csrr t1, mepc
        ; lhu t2, [t1, 0]
        ; andi t2, t2, 3
        ; addi t2, t2, -3
        ; snez t2, t2
        ; slli t2, t2, 1
        ; sub t1, t1, t2
        ; addi t1, t1, 4
        ; csrw mepc, t1
        ; .u32 MRET
    );
    asm::finish("probes", ops)
}

/// Hart 0 prints `text` by halves, low first, and ends with `code` by one store of the low half; then it idles.
pub fn halves(text: &str, code: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; others: ; bnez a0, <others ; li.43 s0, TOHOST as i64 ; li.32 s1, 0x0101_0000);
    for byte in text.bytes() {
        rv!(ops ; li.12 t0, i32::from(byte) ; sw t0, [s0, 0] ; sw s1, [s0, 4]);
    }
    rv!(ops ; li.32 t0, code << 1 | 1 ; sw t0, [s0, 0] ; idle: ; j <idle);
    asm::finish("halves", ops)
}

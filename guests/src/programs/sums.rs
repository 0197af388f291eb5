//! A guest that stores to random words and keeps a checksum of them: one wrong byte of RAM and it ends with 2.
//!
//! ```text
//!   hart n   region n ─ random word: sum −= old × place, store, sum += new × place    until it is told to stop, or so many stores
//!            all of region n ─▶ the same sum?    barrier ─▶ hart 0 prints "the sums are right" and ends
//! ```
//!
//! Each word counts with its place, so a page that is elsewhere is a wrong one, too.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, rv};
use super::basic::{puts, text};

/// Not 0: each hart looks at its sum, and ends.
pub const STOP: u64 = 0x8010_0000;
/// Harts that have ended well.
const ENDED: i32 = 64;
/// The first hart's region.
pub const REGIONS: u64 = 0x8100_0000;

/// `1 << bits` bytes for each of `harts`; so many stores each, or 0: until it is told to stop.
pub fn sums(harts: usize, bits: u32, stores: u64) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; mv s11, a0
        ; li.43 s9, STOP as i64
        ; li.43 s1, REGIONS as i64
        ; li.32 t0, bits as i32
        ; li.12 s2, 1
        ; sll s2, s2, t0
        ; sll t0, s11, t0
        ; add s1, s1, t0
        ; add s5, s1, s2             // its end
        ; addi s2, s2, -8            // the place of a word
        ; li.43 s4, stores as i64
        ; li.12 s3, 0                // the sum
        ; addi s0, s11, 1
        ; li.32 t0, 0x2545_f491
        ; mul s0, s0, t0
        ; again:
        ; slli t0, s0, 13 ; xor s0, s0, t0 ; srli t0, s0, 7 ; xor s0, s0, t0 ; slli t0, s0, 17 ; xor s0, s0, t0
        ; srli t1, s0, 24 ; and t1, t1, s2 ; add t1, t1, s1
        ; ori t2, t1, 1
        ; ld t3, [t1]
        ; mul t3, t3, t2
        ; sub s3, s3, t3
        ; sd s0, [t1]
        ; mul t3, s0, t2
        ; add s3, s3, t3
        ; addi s4, s4, -1
        ; beqz s4, >done
        ; andi t3, s4, 255
        ; bnez t3, <again
        ; ld t3, [s9]
        ; beqz t3, <again
        ; done:
        ; li.12 t4, 0
        ; mv t1, s1
        ; word:
        ; ld t3, [t1]
        ; ori t2, t1, 1
        ; mul t3, t3, t2
        ; add t4, t4, t3
        ; addi t1, t1, 8
        ; bltu t1, s5, <word
        ; li.12 a0, 2
        ; bne t4, s3, ->bad
        ; li.12 t0, 1
        ; addi t1, s9, ENDED
        ; amoadd.d zero, t0, [t1]
        ; bnez s11, ->idle
        ; li.32 t2, harts as i32
        ; others:
        ; ld t0, [t1]
        ; blt t0, t2, <others
        ; la a0, ->text
        ; jal ra, ->puts
    );
    asm::pass(&mut ops);
    rv!(ops ; ->bad: ; jump ->fail, t6 ; ->idle: ; j ->idle);
    puts(&mut ops);
    text(&mut ops, "the sums are right\n");
    asm::finish("sums", ops)
}

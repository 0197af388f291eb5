//! The guest of the stress test: it stores, patches and runs code in RAM that comes and goes, and says how far it is.
//!
//! ```text
//!   a slot of the board  base of RAM | log2 of its pages; 0 is none          a page   0x000  a line of code for each hart
//!                                                                                     0x400  data (bit 10 is set)
//! ```
//!
//! Code of one hart is written by that hart alone, so what a call returns is known; unless the RAM is gone, which is a
//! trap that is counted, or gone and come again, which is an empty page and the same trap.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, MRET, rv};

/// What host and guest share: 64 slots of eight bytes, then the words of [`Count`].
pub const BOARD: u64 = 0x8010_0000;
/// How many slots there are.
pub const SLOTS: u64 = 64;
/// Boot RAM that is used like a slot, always there.
pub const BOOT: u64 = 0x8040_0000;
/// Its length.
pub const BOOT_LEN: u64 = 32 << 20;
/// Stores of a long visit to a page, and turns of an empty loop between two of them: long enough for a harvest to fall
/// into it. Other visits are a single store; so most pages have few stores from one harvest to the next, and a lost
/// one is not made good by another.
const BURST: i32 = 256;
const PAUSE: i32 = 256;

/// Words behind the slots, 64 bytes apart for each hart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Count {
    /// Not 0: end. Hart 0's.
    Stop = 0,
    /// Rounds done.
    Rounds = 8,
    /// Functions written and run.
    Calls = 16,
    /// Traps for want of RAM.
    Traps = 24,
}

impl Count {
    /// The word's address.
    pub fn address(self, hart: u64) -> u64 {
        BOARD + SLOTS * 8 + hart * 64 + self as u64
    }
}

/// Stores until it is stopped. Ends with 7 if a function returned what it should not.
pub fn stress() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        // The other hart has the stack too, but does not use it.
        ; mv s11, a0
        ; la t0, ->trap
        ; csrw mtvec, t0
        ; li.43 s1, BOARD as i64
        ; slli t0, s11, 6
        ; addi t0, t0, (SLOTS * 8) as i32
        ; add s2, s1, t0
        ; li.43 s0, 0x1234_5678_9abi64
        ; addi t0, s11, 1
        ; mul s0, s0, t0
        ; li.12 s3, 0
        ; li.12 s4, 0
        ; li.12 s6, 0
        ; ->again:
        ; ld t0, [s1, (SLOTS * 8) as i32]
        ; bnez t0, ->end
        ; addi s3, s3, 1
        ; sd s3, [s2, Count::Rounds as i32]
        // xorshift
        ; slli t0, s0, 13 ; xor s0, s0, t0
        ; srli t0, s0, 7 ; xor s0, s0, t0
        ; slli t0, s0, 17 ; xor s0, s0, t0
        ; andi t0, s0, (SLOTS - 1) as i32
        ; slli t0, t0, 3
        ; add t0, t0, s1
        ; ld t1, [t0]
        ; li.12 s5, 0
        ; bnez t1, >plugged
        ; li.12 s5, 1
        ; li.43 t1, (BOOT | u64::from((BOOT_LEN / 4096).ilog2())) as i64
        ; plugged:
        // s7 the page, t2 where in it
        ; andi t2, t1, 15
        ; li.12 t3, 1
        ; slli t3, t3, 12
        ; sll t3, t3, t2
        ; addi t3, t3, -1
        ; srli t1, t1, 12
        ; slli t1, t1, 12
        ; srli t4, s0, 8
        ; and t4, t4, t3
        ; srli s7, t4, 12
        ; slli s7, s7, 12
        ; add s7, s7, t1
        ; slli t4, t4, 52
        ; srli t4, t4, 52
        ; ori t4, t4, 0x400
        ; andi t4, t4, -8
        ; add t4, t4, s7
        ; sd s3, [t4]
        ; srli t0, s0, 60
        ; andi t0, t0, 3
        ; bnez t0, >short
        ; li.12 t0, BURST
        ; burst:
        ; li.12 t2, PAUSE
        ; pause:
        ; addi t2, t2, -1
        ; bnez t2, <pause
        ; add t3, t0, s3
        ; sd t3, [t4]
        ; addi t0, t0, -1
        ; bnez t0, <burst
        ; short:
        ; andi t0, s3, 7
        ; bnez t0, ->again
        // lui a0, s3 ; ret: the second word first
        ; slli t5, s11, 6
        ; add t5, t5, s7
        ; li.32 t0, 0x8067
        ; sw t0, [t5, 4]
        ; slli t0, s3, 12
        ; ori t0, t0, 0x537
        ; sw t0, [t5]
        ; fence.i
        ; jalr ra, t5, 0
        ; slli t0, s3, 12
        ; sext.w t0, t0
        ; bne a0, t0, >wrong
        ; addi s4, s4, 1
        ; sd s4, [s2, Count::Calls as i32]
        ; j ->again
        ; wrong:
        ; li.12 a0, 7
        ; jump ->fail, t6
        ; ->end:
    );
    asm::pass(&mut ops);
    // Illegal instructions and access faults of fetch, load and store; never where RAM is always there.
    rv!(ops
        ; .align 4
        ; ->trap:
        ; csrr t0, mcause
        ; li.32 t1, 0xa6
        ; srl t1, t1, t0
        ; andi t1, t1, 1
        ; beqz t1, ->trapped
        ; bnez s5, ->trapped
        ; addi s6, s6, 1
        ; sd s6, [s2, Count::Traps as i32]
        ; la t0, ->again
        ; csrw mepc, t0
        ; .u32 MRET
    );
    asm::finish("stress", ops)
}

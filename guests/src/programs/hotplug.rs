//! Guests for RAM that comes and goes: they probe with a trap handler, and what they see is in a mailbox in boot RAM.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, LOAD_A0, MRET, rv};

/// The words between host and [`resident`], eight bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Mail {
    /// Not 0: the guest ends well.
    Stop = 0,
    /// Where to probe.
    Probe = 8,
    /// Rounds so far.
    Rounds = 16,
    /// Rounds in which RAM was there all the time.
    Hits = 24,
    /// Rounds in which an access or a fetch there trapped.
    Faults = 32,
    /// What the code there returned last.
    Returned = 40,
}

impl Mail {
    const BASE: u64 = 0x8010_0000;

    /// The word's address.
    pub fn address(self) -> u64 {
        Mail::BASE + self as u64
    }
}

/// Where in the probed page [`resident`] stores the number of its round.
pub const RESIDENT_STORES_AT: u64 = 0x800;

/// Traps, with a handler at `at`, where no RAM is yet.
pub fn handler_to_come(at: u64) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.43 t0, at as i64 ; csrw mtvec, t0 ; ecall);
    asm::finish("handler-to-come", ops)
}

/// Lives with RAM that comes and goes: each round loads the first word at the probed address, stores its round there, runs
/// the code there if there is any, and counts what came of it.
pub fn resident() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; la t0, ->trap
        ; csrw mtvec, t0
        ; li.43 s1, Mail::BASE as i64
        ; ->again:
        ; ld t0, [s1, Mail::Stop as i32]
        ; bnez t0, >stop
        ; ld s2, [s1, Mail::Probe as i32]
        ; addi s0, s0, 1
        ; sd s0, [s1, Mail::Rounds as i32]
        ; lui t1, 0x1000
        ; srli t1, t1, 1
        ; add t1, t1, s2
        ; lw t0, [s2]
        ; sd s0, [t1]
        ; beqz t0, >no_code
        ; jalr ra, s2, 0
        ; sd a0, [s1, Mail::Returned as i32]
        ; no_code:
        ; addi s3, s3, 1
        ; sd s3, [s1, Mail::Hits as i32]
        ; j ->again
        ; ->absent:
        ; addi s4, s4, 1
        ; sd s4, [s1, Mail::Faults as i32]
        ; j ->again
        ; stop:
    );
    asm::pass(&mut ops);
    // Access faults of fetch, load and store; and an empty page where the code was, if RAM went and came in between.
    rv!(ops
        ; .align 4
        ; ->trap:
        ; csrr t0, mcause
        ; li.32 t1, 0xa6
        ; srl t1, t1, t0
        ; andi t1, t1, 1
        ; beqz t1, ->trapped
        ; la t0, ->absent
        ; csrw mepc, t0
        ; .u32 MRET
    );
    asm::finish("resident", ops)
}

/// Probes `at` up to `tries` times; when RAM is there it fills a page and checks it, runs a function from it, patches that
/// ten times and runs it. Ends well, or with 3 if RAM never came, or with the number of the check that failed.
pub fn finder(at: u64, tries: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; la t0, ->trap
        ; csrw mtvec, t0
        ; li.43 s1, at as i64
        ; li.32 s2, tries
        ; ->again:
        ; beqz s2, >never
        ; addi s2, s2, -1
        ; ld a0, [s1]
    );
    asm::expect(&mut ops, 4, 0);
    fill_and_check(&mut ops);
    // Behind the filled words, so that the page holds both: li a0, s0 ; ret.
    rv!(ops ; li.32 t2, 0x8067 ; sw t2, [s1, 0x404] ; addi s3, s1, 0x400 ; li.12 s0, 0 ; ->round:);
    asm::encode_load_s0(&mut ops);
    rv!(ops ; sw t1, [s3] ; fence.i ; jalr ra, s3, 0 ; mv a1, s0);
    asm::expect_equal(&mut ops, 6);
    rv!(ops ; addi s0, s0, 1 ; li.12 t0, 10 ; bne s0, t0, ->round);
    asm::pass(&mut ops);
    rv!(ops
        ; never:
        ; li.12 a0, 3
        ; jump ->fail, t6
        ; .align 4
        ; ->trap:
        ; csrr t0, mcause
        ; li.12 t1, 5
        ; bne t0, t1, >other
        ; la t0, ->again
        ; csrw mepc, t0
        ; .u32 MRET
        ; other:
        ; j ->trapped
    );
    asm::finish("finder", ops)
}

/// The first KiB at s1: each word its own address, twice over.
fn fill_and_check(ops: &mut Asm) {
    rv!(ops
        ; addi t1, s1, 0x400
        ; mv t0, s1
        ; fill:
        ; sd t0, [t0]
        ; addi t0, t0, 8
        ; bltu t0, t1, <fill
        ; mv t0, s1
        ; check:
        ; ld a0, [t0]
        ; mv a1, t0
    );
    asm::expect_equal(ops, 5);
    rv!(ops ; addi t0, t0, 8 ; bltu t0, t1, <check);
}

/// `li a0, value; ret`, for values below 2048: code for [`resident`] to find.
pub fn returns(value: u16) -> [u8; 8] {
    let load = u32::from(value & 0x7ff) << 20 | LOAD_A0 as u32;
    (u64::from(load) | 0x8067 << 32).to_le_bytes()
}

//! How every program of the suite begins and ends, and what the cache model asks of it.
//!
//! ```text
//!   start   the clock is read (s11), an unexpected trap goes to ->trapped
//!   end     a0 = 0, the number of the check that failed, or 99 ─▶ a line on the UART
//!                                                              ─▶ tohost = code << 1 | 1     HTIF boards stop here
//!                                                              ─▶ the test finisher          QEMU's virt stops here
//! ```
//!
//! A board lacks some of the three: a store that traps leads on to the next. `tohost` comes before the finisher, since
//! a board that has it may have anything at the finisher's address, and for one that has not it is plain RAM.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::super::GuestImage;
use super::super::asm::{self, Asm, BASE, rv};
use super::form::{CacheModel, Form, Mode, T0, TrapCsr};
use super::supervisor;

/// Where the verdict goes in HTIF's form.
pub const TOHOST: u64 = BASE + 0xf_f000;
/// The register (s11) that holds the ticks of `mtime` between start and end, once a program ended.
pub const TICKS: usize = 27;

const MTIME: i32 = 0x200_bff8;
const UART: i32 = 0x1000_0000;

/// An assembler with the prologue, which ends in the mode that the program is for.
pub(super) fn program(m: Form) -> Asm {
    program_with(m, supervisor::DELEGATED)
}

/// The same, with these exceptions delegated to supervisor mode.
pub(super) fn program_with(m: Form, delegated: i32) -> Asm {
    let mut ops = asm::start();
    start_clock(&mut ops);
    if m.mode == Mode::Supervisor {
        supervisor::tables(&mut ops);
        supervisor::enter(&mut ops, delegated);
    }
    trap_to_the_end(&mut ops, m);
    ops
}

/// Unexpected traps end the program.
pub(super) fn trap_to_the_end(ops: &mut Asm, m: Form) {
    rv!(ops ; la t0, ->trapped ; .u32 m.csrw(TrapCsr::Tvec, T0));
}

/// A stack, and the clock read into s11, in machine mode.
pub(super) fn start_clock(ops: &mut Asm) {
    rv!(ops
        ; li.43 sp, asm::STACK
        ; la t0, >no_clock
        ; csrw mtvec, t0
        ; li.12 s11, 0
        ; li.32 t1, MTIME
        ; ld s11, [t1]
        ; no_clock:
        ; la t0, ->trapped
        ; csrw mtvec, t0
    );
}

/// Adds the end and closes the program.
pub(super) fn finish(name: &'static str, m: Form, mut ops: Asm) -> GuestImage {
    ops.align(4, 0);
    rv!(ops
        ; ->trapped:
        ; li.12 a0, asm::TRAPPED
        ; j ->fail
        ; ->pass:
        ; li.12 a0, 0
        ; ->fail:
        ; mv s10, a0
        ; la t0, ->tell
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.32 t1, MTIME
        ; ld t0, [t1]
        ; sub s11, t0, s11
        ; la a2, ->name
        ; jal ra, ->print
        ; la a2, ->passed
        ; beqz s10, >good
        ; la a2, ->failed
        ; good:
        ; jal ra, ->print
        ; mv a3, s10
        ; jal ra, ->print_hex
        ; la a2, ->ticks
        ; jal ra, ->print
        ; mv a3, s11
        ; jal ra, ->print_hex
        ; li.12 a0, 10
        ; jal ra, ->put
        ; ->tell:
        ; la t0, ->finisher
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; li.43 t0, TOHOST as i64
        ; slli t1, s10, 1
        ; ori t1, t1, 1
        ; sd t1, [t0]
        ; ->finisher:
        ; la t0, ->tell
        ; .u32 m.csrw(TrapCsr::Tvec, T0)
        ; lui t0, 0x10_0000
        ; li.32 t1, 0x5555
        ; beqz s10, >end
        ; slli t1, s10, 16
        ; li.32 t2, 0x3333
        ; or t1, t1, t2
        ; end:
        ; sw t1, [t0]
        ; j ->tell
        // Eight hexadecimal digits of a3; a5 is where it returns to.
        ; ->print_hex:
        ; mv a5, ra
        ; li.12 a4, 28
        ; digit:
        ; srl a0, a3, a4
        ; andi a0, a0, 15
        ; addi t0, a0, -10
        ; addi a0, a0, 0x30
        ; bltz t0, >decimal
        ; addi a0, a0, 39
        ; decimal:
        ; jal ra, ->put
        ; addi a4, a4, -4
        ; bgez a4, <digit
        ; jr a5
        // The bytes from a2 on, up to a zero.
        ; ->print:
        ; mv a5, ra
        ; byte:
        ; lbu a0, [a2]
        ; addi a2, a2, 1
        ; beqz a0, >all
        ; jal ra, ->put
        ; j <byte
        ; all:
        ; jr a5
        // One byte, once the UART is ready, or after a while whatever it says.
        ; ->put:
        ; li.32 t0, UART
        ; li.32 t1, 4096
        ; busy:
        ; lbu t2, [t0, 5]
        ; andi t2, t2, 0x20
        ; addi t1, t1, -1
        ; beqz t1, >ready
        ; beqz t2, <busy
        ; ready:
        ; sb a0, [t0]
        ; ret
        ; ->name:
        ; .bytes format!("smc {name}\0").as_bytes()
        ; ->passed:
        ; .bytes b" pass "
        ; .u8 0
        ; ->failed:
        ; .bytes b" fail "
        ; .u8 0
        ; ->ticks:
        ; .bytes b" ticks "
        ; .u8 0
    );
    GuestImage { name, load_addr: BASE, entry: BASE, bytes: ops.finalize().expect("every label is defined once") }
}

/// Calls `->f`, which was just patched: a1 is what it returns now, a2 what it returned before.
pub(super) fn judge_call(ops: &mut Asm, m: Form, code: i32) {
    rv!(ops ; jal ra, ->f);
    if m.cache == CacheModel::FenceI {
        rv!(ops
            ; beq a0, a1, >fine
            ; beq a0, a2, >fine
            ; li.12 a0, code
            ; jump ->fail, t6
            ; fine:
            ; fence.i
            ; jal ra, ->f
        );
    }
    asm::expect_equal(ops, code);
}

/// The patched instruction stands at s1 and was just run in passing; what follows it up to here may run again. a1 is
/// the new value of a0, a2 the old one, s3 zero.
pub(super) fn judge_inline(ops: &mut Asm, m: Form, code: i32) {
    if m.cache == CacheModel::FenceI {
        rv!(ops
            ; bnez s3, >fenced
            ; beq a0, a1, >fine
            ; beq a0, a2, >fine
            ; li.12 a0, code
            ; jump ->fail, t6
            ; fine:
            ; li.12 s3, 1
            ; fence.i
            ; jr s1
            ; fenced:
        );
    }
    asm::expect_equal(ops, code);
}

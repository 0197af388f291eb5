//! Small programs that end in one way each: the tests of exit paths, and a first thing to run.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, WFI, rv};

/// Prints a line through the UART and ends well.
pub fn hello() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; la a0, ->text ; jal ra, ->puts);
    asm::pass(&mut ops);
    puts(&mut ops);
    text(&mut ops, "Hello from RV64IMAC.\n");
    asm::finish("hello", ops)
}

/// Prints lines for ever.
pub fn spam() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; again: ; la a0, ->text ; jal ra, ->puts ; j <again);
    puts(&mut ops);
    text(&mut ops, "a line of a heartbeat\n");
    asm::finish("spam", ops)
}

/// Ends with `code` (below 2048) through the finisher.
pub fn exit_with(code: u16) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; li.32 a0, i32::from(code) ; jump ->fail, t6);
    asm::finish("exit", ops)
}

/// Asks for a reset.
pub fn reset() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; lui t0, 0x10_0000 ; li.32 t1, 0x7777 ; sw t1, [t0] ; here: ; j <here);
    asm::finish("reset", ops)
}

/// Runs for ever.
pub fn spin() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops ; here: ; addi a0, a0, 1 ; j <here);
    asm::finish("spin", ops)
}

/// Waits for an interrupt that nothing can raise.
pub fn hang() -> GuestImage {
    let mut ops = asm::program();
    // A software interrupt is what only another hart could send.
    rv!(ops ; csrwi mie, 8 ; here: ; .u32 WFI ; j <here);
    asm::finish("hang", ops)
}

/// Echoes what the UART receives up to a `.`, which ends it well.
pub fn echo() -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; lui t0, 0x1000_0000
        ; li.12 t2, 46
        ; again:
        ; lbu t1, [t0, 5]
        ; andi t1, t1, 1
        ; beqz t1, <again
        ; lbu a0, [t0, 0]
        ; beq a0, t2, >end
        ; sb a0, [t0, 0]
        ; j <again
        ; end:
    );
    asm::pass(&mut ops);
    asm::finish("echo", ops)
}

/// `puts`: prints the NUL-ended string at a0. Uses t0 and t1.
pub(super) fn puts(ops: &mut asm::Asm) {
    rv!(ops
        ; .align 4
        ; ->puts:
        ; lui t0, 0x1000_0000
        ; next:
        ; lbu t1, [a0]
        ; beqz t1, >done
        ; sb t1, [t0]
        ; addi a0, a0, 1
        ; j <next
        ; done:
        ; ret
    );
}

pub(super) fn text(ops: &mut asm::Asm, text: &str) {
    rv!(ops ; ->text: ; .bytes text.as_bytes() ; .u8 0 ; .align 4);
}

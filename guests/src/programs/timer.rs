//! A guest driven by interrupts: it sleeps in `wfi` and the CLINT wakes it.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, MRET, WFI, rv};

/// Takes `ticks` (below 2048) timer interrupts `period` apart (10 MHz ticks), then one software interrupt.
///
/// Also checks that `mtime` moved by at least `ticks * period` in between.
pub fn timer_irq(ticks: i32, period: i32) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; la t0, ->handler
        ; csrw mtvec, t0
        ; csrw mscratch, zero
        ; lui s1, 0x200_0000       // CLINT
        ; lui s2, 0x200_4000       // mtimecmp
        ; lui s3, 0x200_c000       // mtime is 8 bytes below
        ; li.32 s4, period
        ; li.12 s0, 0              // timer interrupts seen
        ; li.12 s5, 0              // software interrupts seen
        ; ld s6, [s3, -8]          // start
        ; add t0, s6, s4
        ; sd t0, [s2]
        ; li.32 t0, 0x88           // MTIE | MSIE
        ; csrw mie, t0
        ; csrsi mstatus, 8
        ; wait:
        ; .u32 WFI
        ; li.32 t0, ticks
        ; blt s0, t0, <wait
        ; ld a0, [s3, -8]
        ; sub a0, a0, s6
        ; li.32 a1, ticks.saturating_mul(period)
        ; bgeu a0, a1, >late_enough
        ; li.12 a0, 1
        ; jump ->fail, t6
        ; late_enough:
        ; li.12 t0, 1
        ; sw t0, [s1]              // msip of hart 0
        ; again:
        ; beqz s5, <again
        ; mv a0, s5
    );
    asm::expect(&mut ops, 2, 1);
    rv!(ops ; csrr a0, mscratch);
    asm::expect(&mut ops, 3, 0);
    asm::pass(&mut ops);
    rv!(ops
        ; .align 4
        ; ->handler:
        ; csrr t1, mcause
        ; bgez t1, >not_an_interrupt
        ; andi t1, t1, 0xf
        ; li.12 t2, 7
        ; bne t1, t2, >software
        ; addi s0, s0, 1
        ; ld t3, [s2]
        ; add t3, t3, s4
        ; li.32 t2, ticks
        ; blt s0, t2, >next
        ; li.12 t3, -1              // enough: never again
        ; next:
        ; sd t3, [s2]
        ; .u32 MRET
        ; software:
        ; li.12 t2, 3
        ; bne t1, t2, >not_an_interrupt
        ; addi s5, s5, 1
        ; sw zero, [s1]
        ; .u32 MRET
        ; not_an_interrupt:
        ; addi t1, t1, 1
        ; csrw mscratch, t1
        ; li.12 a0, 4
        ; jump ->fail, t6
    );
    asm::finish("timer_irq", ops)
}

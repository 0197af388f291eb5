//! Guests about time that jumps and lines that fall.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, Asm, WFI, rv};

/// Where hart 0 and hart 1 meet.
const SHARED: i64 = 0x8010_0000;

fn clint(ops: &mut Asm) {
    rv!(ops
        ; lui s1, 0x200_0000       // CLINT: msip
        ; lui s2, 0x200_4000       // mtimecmp
        ; lui s3, 0x200_c000       // mtime is 8 bytes below
    );
}

/// Hart 1 waits for a deadline an hour away, in `wfi` or in a loop with interrupts on. Hart 0 sets `mtime` to 1 ms before
/// it, and passes if hart 1 hears of it within 3 s.
pub fn another_hart_sets_mtime(asleep: bool) -> GuestImage {
    let mut ops = asm::program();
    clint(&mut ops);
    rv!(ops
        ; li.43 s4, SHARED         // 0: ready, 8: the deadline has passed
        ; bnez a0, >hart1
        ; ready:
        ; ld t0, [s4]
        ; beqz t0, <ready
        ; ld t0, [s3, -8]
        ; li.32 t1, 200_000        // 20 ms, so that hart 1 sleeps
        ; add t0, t0, t1
        ; settle:
        ; ld t1, [s3, -8]
        ; bltu t1, t0, <settle
        ; ld t0, [s2, 8]
        ; li.32 t1, 10_000
        ; sub t0, t0, t1
        ; sd t0, [s3, -8]
        ; li.32 t1, 30_000_000
        ; add t0, t0, t1
        ; watch:
        ; ld t1, [s4, 8]
        ; bnez t1, >woke
        ; ld t1, [s3, -8]
        ; bltu t1, t0, <watch
        ; li.12 a0, 1
        ; jump ->fail, t6
        ; woke:
    );
    asm::pass(&mut ops);
    rv!(ops
        ; hart1:
        ; la t0, ->handler
        ; csrw mtvec, t0
        ; ld t0, [s3, -8]
        ; li.43 t1, 36_000_000_000
        ; add t0, t0, t1
        ; sd t0, [s2, 8]
        ; li.32 t0, 0x80
        ; csrw mie, t0
        ; li.12 t0, 1
        ; sd t0, [s4]
    );
    match asleep {
        true => rv!(ops ; .u32 WFI ; j ->handler),
        false => rv!(ops ; csrsi mstatus, 8 ; spin: ; j <spin),
    }
    rv!(ops
        ; .align 4
        ; ->handler:
        ; li.12 t0, 1
        ; sd t0, [s4, 8]
        ; done:
        ; .u32 WFI
        ; j <done
    );
    asm::finish("another-hart-sets-mtime", ops)
}

/// One hart, long enough in a loop for long slices, sets `mtime` to one tick before its deadline. At the end s5 is how
/// many instructions later the interrupt came.
pub fn mtime_set_shortly_before_the_deadline() -> GuestImage {
    let mut ops = asm::program();
    clint(&mut ops);
    rv!(ops
        ; la t0, ->handler
        ; csrw mtvec, t0
        ; li.32 s4, 1_000_000_000
        ; sd s4, [s2]
        ; li.32 t0, 0x80
        ; csrw mie, t0
        ; csrsi mstatus, 8
        ; li.32 t1, 3_000_000
        ; warm:
        ; addi t1, t1, -1
        ; bnez t1, <warm
        ; addi s4, s4, -1
        ; csrr s5, minstret
        ; sd s4, [s3, -8]
        ; spin:
        ; j <spin
        ; .align 4
        ; ->handler:
        ; csrr t0, minstret
        ; sub s5, t0, s5
    );
    asm::pass(&mut ops);
    asm::finish("mtime-set-shortly-before-the-deadline", ops)
}

/// `mip` is read right behind each store that raises or drops a line; s0 of these rounds.
pub fn mip_behind_each_store(rounds: i32) -> GuestImage {
    let mut ops = asm::program();
    clint(&mut ops);
    rv!(ops ; li.32 s0, rounds ; li.12 s4, 1 ; li.12 s5, -1 ; round:);
    let mut code = 0;
    let mut expect = |ops: &mut Asm, mip: i32| {
        code += 1;
        rv!(ops ; csrr a0, mip);
        asm::expect(ops, code, mip);
    };
    rv!(ops ; sw s4, [s1]);
    expect(&mut ops, 0x8);
    rv!(ops ; sw zero, [s1]);
    expect(&mut ops, 0);
    rv!(ops ; sd zero, [s2]);
    expect(&mut ops, 0x80);
    rv!(ops ; sw s4, [s1]);
    expect(&mut ops, 0x88);
    rv!(ops ; sd s5, [s2]);
    expect(&mut ops, 0x8);
    rv!(ops ; sw zero, [s1]);
    expect(&mut ops, 0);
    // A deadline that passes between two reads.
    rv!(ops
        ; ld t0, [s3, -8]
        ; addi t0, t0, 3
        ; sd t0, [s2]
        ; until:
        ; ld t1, [s3, -8]
        ; bltu t1, t0, <until
    );
    expect(&mut ops, 0x80);
    rv!(ops ; sd s5, [s2]);
    expect(&mut ops, 0);
    rv!(ops ; addi s0, s0, -1 ; bnez s0, <round);
    asm::pass(&mut ops);
    asm::finish("mip-behind-each-store", ops)
}

/// What wakes a `wfi`, what is then pending, and where a trap that it lets in says it was; `exact`: the clock stands still
/// between instructions, so nothing comes early.
pub fn corners_of_wfi(exact: bool) -> GuestImage {
    let mut ops = asm::program();
    clint(&mut ops);
    let mut code = 0;
    let mut expect = |ops: &mut Asm, value: i32| {
        code += 1;
        asm::expect(ops, code, value);
    };
    // s6 counts traps; s7 and s8 are where and why the last was.
    rv!(ops ; la t0, ->handler ; csrw mtvec, t0 ; li.12 s6, 0 ; li.12 s5, -1 ; csrr a0, mip);
    expect(&mut ops, 0);
    // Pending and enabled, but not globally: it goes on when the time has come, and no trap is taken.
    rv!(ops
        ; ld s4, [s3, -8]
        ; addi s4, s4, 1000
        ; sd s4, [s2]
        ; li.32 t0, 0x80
        ; csrw mie, t0
        ; .u32 WFI
        ; ld t1, [s3, -8]
        ; sltu a0, t1, s4
    );
    expect(&mut ops, 0);
    rv!(ops ; csrr a0, mip);
    expect(&mut ops, 0x80);
    // It is pending already: at once.
    rv!(ops ; .u32 WFI ; mv a0, s6);
    expect(&mut ops, 0);
    // A deadline of this very tick; by halves, with no deadline on the way that has passed; the last there is.
    rv!(ops ; sd s5, [s2] ; ld t0, [s3, -8] ; sd t0, [s2] ; csrr a0, mip);
    expect(&mut ops, 0x80);
    rv!(ops ; sd s5, [s2] ; ld t0, [s3, -8] ; srli t1, t0, 32 ; sw s5, [s2] ; sw t1, [s2, 4] ; csrr a0, mip);
    expect(&mut ops, 0);
    rv!(ops ; sw t0, [s2] ; csrr a0, mip);
    expect(&mut ops, 0x80);
    rv!(ops ; sw s5, [s2, 4] ; csrr a0, mip);
    expect(&mut ops, 0);
    // msip has one bit.
    rv!(ops ; li.12 t0, -2 ; sw t0, [s1] ; lw a0, [s1]);
    expect(&mut ops, 0);
    // An interrupt of one's own is taken once, in front of the instruction behind the one that lets it in.
    rv!(ops
        ; li.32 t0, 0x88
        ; csrw mie, t0
        ; li.12 t0, 1
        ; sw t0, [s1]
        ; la s4, >behind
        ; csrsi mstatus, 8
        ; behind:
        ; csrci mstatus, 8
        ; mv a0, s6
    );
    expect(&mut ops, 1);
    rv!(ops ; sub a0, s7, s4);
    expect(&mut ops, 0);
    rv!(ops ; slli a0, s8, 1);
    expect(&mut ops, 2 * 3);
    // A trap that ends a wfi comes behind it.
    rv!(ops
        ; ld t0, [s3, -8]
        ; addi t0, t0, 1000
        ; sd t0, [s2]
        ; la s4, >behind
        ; csrsi mstatus, 8
        ; .u32 WFI
        ; behind:
        ; csrci mstatus, 8
        ; mv a0, s6
    );
    if exact {
        expect(&mut ops, 2);
        rv!(ops ; sub a0, s7, s4);
        expect(&mut ops, 0);
        rv!(ops ; slli a0, s8, 1);
        expect(&mut ops, 2 * 7);
    }
    rv!(ops ; csrr a0, mip);
    expect(&mut ops, 0);
    asm::pass(&mut ops);
    rv!(ops
        ; .align 4
        ; ->handler:
        ; addi s6, s6, 1
        ; csrr s7, mepc
        ; csrr s8, mcause
        ; sw zero, [s1]
        ; sd s5, [s2]
        ; .u32 asm::MRET
    );
    asm::finish("corners-of-wfi", ops)
}

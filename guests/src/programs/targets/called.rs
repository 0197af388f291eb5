//! A target that is a function, as libFuzzer's are: `function(bytes, length)`.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::{INPUT, MAX_INPUT, Target};
use crate::programs::asm::{self, BASE, rv};

/// Assembles a program that calls its function once, with no bytes but room for [`MAX_INPUT`]; `ready` is the function, `done` where it
/// returns to. The function sums the bytes up, and stores where nothing is if the first of them is 0x80.
pub fn called() -> Target {
    let mut ops = asm::start();
    rv!(ops ; li.43 sp, asm::STACK ; li.43 a0, INPUT as i64 ; li.32 a1, MAX_INPUT as i32 ; call >function);
    let done = BASE + ops.offset().0 as u64;
    asm::pass(&mut ops);
    rv!(ops ; function:);
    let ready = BASE + ops.offset().0 as u64;
    rv!(ops
        ; add t1, a0, a1
        ; mv t0, a0
        ; li.12 a0, 0
        ; byte:
        ; bgeu t0, t1, >back
        ; lbu t2, [t0]
        ; add a0, a0, t2
        ; addi t0, t0, 1
        ; j <byte
        ; back:
        ; beqz a1, >well
        ; sub t0, t1, a1
        ; lbu t2, [t0]
        ; li.12 t0, 0x80
        ; bne t2, t0, >well
        ; sd t0, [zero, 8]
        ; well:
        ; ret
    );
    Target { image: asm::finish("called", ops), ready, done }
}

//! A guest that crashes, in each of eight ways, two calls deep.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, WFI, rv};

/// How it crashes. Where nothing else is said, `mtvec` is what it was at reset: 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// A load where nothing is.
    Load,
    /// A store where nothing is.
    Store,
    /// An instruction that is none.
    Illegal,
    /// `ebreak` with no debugger.
    Ebreak,
    /// A call by a pointer that is none.
    WildJump,
    /// An AMO at an odd address.
    Amo,
    /// A load by a stack pointer that is nowhere, and a handler that uses it, too.
    InHandler,
    /// `ecall`, and `mtvec` where no RAM is.
    NoHandler,
}

impl Crash {
    /// All of them.
    pub const ALL: [Crash; 8] = [
        Crash::Load,
        Crash::Store,
        Crash::Illegal,
        Crash::Ebreak,
        Crash::WildJump,
        Crash::Amo,
        Crash::InHandler,
        Crash::NoHandler,
    ];
}

/// The guest, and its functions as symbols of an ELF file: name, address, size. The hart of that number crashes; any
/// other sleeps. With frame pointers, each function keeps its caller's as a compiler does.
pub fn crash(how: Crash, hart: i32, frame_pointers: bool) -> (GuestImage, Vec<(&'static str, u64, u64)>) {
    let mut ops = asm::start();
    let mut symbols: Vec<(&'static str, u64, u64)> = Vec::new();
    let mut symbol = |ops: &asm::Asm, name| symbols.push((name, asm::BASE + ops.offset().0 as u64, 0));
    symbol(&ops, "_start");
    rv!(ops
        ; li.43 sp, asm::STACK
        ; li.12 s0, 0
        ; li.12 t0, hart
        ; beq a0, t0, >mine
        ; others:
        ; .u32 WFI
        ; j <others
        ; mine:
    );
    match how {
        Crash::InHandler => rv!(ops ; la t0, ->handler ; csrw mtvec, t0),
        Crash::NoHandler => rv!(ops ; li.43 t0, 0x4000_0000 ; csrw mtvec, t0),
        _ => {}
    }
    rv!(ops ; jal ra, ->main ; end: ; j <end);
    symbol(&ops, "main");
    rv!(ops ; ->main:);
    enter(&mut ops, frame_pointers);
    rv!(ops ; li.32 a1, 0x1234 ; jal ra, ->inner);
    leave(&mut ops);
    symbol(&ops, "inner");
    rv!(ops ; ->inner:);
    enter(&mut ops, frame_pointers);
    match how {
        Crash::Load => rv!(ops ; li.12 a0, 16 ; lw a0, [a0, 4]),
        Crash::InHandler => rv!(ops ; li.12 sp, 512 ; lw a0, [sp, 4]),
        Crash::Store => rv!(ops ; li.12 a0, 16 ; sd a1, [a0, 8]),
        Crash::Illegal => rv!(ops ; .u32 0xffff_ffff),
        Crash::Ebreak => rv!(ops ; .u32 0x0010_0073),
        Crash::WildJump => rv!(ops ; li.43 a0, 0x6666_6666 ; jalr ra, a0, 0),
        Crash::Amo => rv!(ops ; addi a0, sp, 1 ; amoadd.d a0, a1, [a0]),
        Crash::NoHandler => rv!(ops ; ecall),
    }
    leave(&mut ops);
    ops.align(4, 0);
    symbol(&ops, "handler");
    rv!(ops
        ; ->handler:
        ; addi sp, sp, -32
        ; sd ra, [sp, 24]
    );
    let image = asm::finish("crash", ops);
    (image, symbols)
}

fn enter(ops: &mut asm::Asm, frame_pointers: bool) {
    rv!(ops ; addi sp, sp, -32 ; sd ra, [sp, 24]);
    if frame_pointers {
        rv!(ops ; sd s0, [sp, 16] ; addi s0, sp, 32);
    }
}

fn leave(ops: &mut asm::Asm) {
    rv!(ops ; ld ra, [sp, 24] ; ld s0, [sp, 16] ; addi sp, sp, 32 ; ret);
}

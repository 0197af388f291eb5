//! A guest that draws: rectangles at random places in a band of the framebuffer, and stores elsewhere in between.

use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::GuestImage;
use super::asm::{self, rv};
use crate::devices::framebuffer::{PIXELS, REGISTERS};

/// Largest width and height of a rectangle.
pub const MAX_WIDTH: u32 = 64;
/// See [`MAX_WIDTH`].
pub const MAX_HEIGHT: u32 = 16;
/// Where the stores elsewhere go: one double word in each of 16 pages, after every rectangle.
const ELSEWHERE: i64 = 0x8010_0000;
const FACTOR: u64 = 6_364_136_223_846_793_005;
const TERM: u64 = 1_442_695_040_888_963_407;

/// A rectangle as the program draws it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Left column.
    pub x: u32,
    /// Top line.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// 0x00RRGGBB.
    pub colour: u32,
}

/// What [`draw`] draws, on a screen that wide.
pub fn rects(count: u32, seed: u32, width: u32, band: (u32, u32)) -> impl Iterator<Item = Rect> {
    let mut state = u64::from(seed);
    (0..count).map(move |_| {
        state = state.wrapping_mul(FACTOR).wrapping_add(TERM);
        let random = state >> 32;
        let (w, h) = (1 + random as u32 % MAX_WIDTH, 1 + (random >> 6) as u32 % MAX_HEIGHT);
        let x = (random >> 10) % u64::from(width - w + 1);
        let y = u64::from(band.0) + (random >> 4) % u64::from(band.1 - band.0 - h + 1);
        Rect { x: x as u32, y: y as u32, width: w, height: h, colour: random as u32 & 0xff_ffff }
    })
}

/// Draws `count` rectangles into the lines `band.0..band.1`, which are at least [`MAX_HEIGHT`] lines of a screen at
/// least [`MAX_WIDTH`] wide; tells the framebuffer of each, and ends well.
pub fn draw(count: u32, seed: u32, band: (u32, u32)) -> GuestImage {
    let mut ops = asm::program();
    rv!(ops
        ; li.43 s1, REGISTERS as i64
        ; li.43 s2, PIXELS as i64
        ; lwu s3, [s1]          // width
        ; lwu s4, [s1, 8]       // stride
        ; li.32 s5, band.0 as i32
        ; li.32 s6, band.1 as i32
        ; li.32 s0, count as i32
        ; li.32 s7, seed as i32
        ; la t0, ->factor
        ; ld s8, [t0]
        ; ld s9, [t0, 8]
        ; ->rect:
        ; mul s7, s7, s8
        ; add s7, s7, s9
        ; srli t0, s7, 32       // random
        ; andi t1, t0, MAX_WIDTH as i32 - 1
        ; addi t1, t1, 1        // w
        ; srli t2, t0, 6
        ; andi t2, t2, MAX_HEIGHT as i32 - 1
        ; addi t2, t2, 1        // h
        ; srli t3, t0, 10
        ; sub t4, s3, t1
        ; addi t4, t4, 1
        ; remu t3, t3, t4       // x
        ; srli t4, t0, 4
        ; sub t5, s6, s5
        ; sub t5, t5, t2
        ; addi t5, t5, 1
        ; remu t4, t4, t5
        ; add t4, t4, s5        // y
        ; mul t4, t4, s4
        ; slli t3, t3, 2
        ; add t4, t4, t3
        ; add t4, t4, s2        // first pixel of the line
        ; slli t0, t0, 40
        ; srli t0, t0, 40       // colour
        ; slli t1, t1, 2
        ; ->line:
        ; mv t3, t4
        ; add t5, t4, t1
        ; pixel:
        ; sw t0, [t3]
        ; addi t3, t3, 4
        ; bltu t3, t5, <pixel
        ; add t4, t4, s4
        ; addi t2, t2, -1
        ; bnez t2, ->line
        ; sw zero, [s1, 12]     // a frame
        ; li.43 t1, ELSEWHERE
        ; lui t3, 0x1000
        ; li.12 t2, 16
        ; elsewhere:
        ; sd s7, [t1]
        ; add t1, t1, t3
        ; addi t2, t2, -1
        ; bnez t2, <elsewhere
        ; addi s0, s0, -1
        ; bnez s0, ->rect
    );
    asm::pass(&mut ops);
    ops.align(8, 0);
    rv!(ops ; ->factor:);
    ops.push_u64(FACTOR);
    ops.push_u64(TERM);
    asm::finish("draw", ops)
}

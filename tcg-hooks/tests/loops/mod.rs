//! Random loops: their accesses are off bases that move, or have an index, or are look-ups; what is between them is any arithmetic.

pub mod globals;

use crate::common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::Rng;

pub const CODE: u64 = RAM + 0x8000;
pub const SIZE: u64 = 0x2_0000;
/// A page of a device within the RAM.
pub const HOLE: u64 = RAM + 0x1_4000;
/// Bases: two that move, and one that stays.
pub const P: u8 = 10;
pub const Q: u8 = 11;
pub const T: u8 = 12;
/// Values, of pinned registers and others; turns.
pub const V: [u8; 8] = [5, 6, 8, 9, 14, 18, 22, 29];
pub const COUNT: u8 = 31;
/// More values than there are host registers for, those first.
pub const MORE: [u8; 14] = [5, 6, 8, 9, 14, 18, 22, 29, 1, 3, 4, 23, 24, 25];
/// An index that is moved, and what its accesses are off.
pub const INDEX: u8 = 19;
pub const ARRAY: u8 = 20;
/// With these there are more than are checked in front of a loop.
const BASES: [u8; 7] = [P, Q, T, 13, 15, 16, 17];
const BOUND: u8 = 28;

const REGISTERS: [Op; 18] = {
    use Op::{Add, Addw, And, Mul, Mulw, Or, Sll, Sllw, Slt, Sltu, Sra, Sraw, Srl, Srlw, Sub, Subw, Xor, ZextH};
    [Add, Addw, And, Mul, Mulw, Or, Sll, Sllw, Slt, Sltu, Sra, Sraw, Srl, Srlw, Sub, Subw, Xor, ZextH]
};
/// What is done on 32 bits, mostly.
const WORDS: [Op; 10] = [Op::Addw, Op::Subw, Op::Mulw, Op::Xor, Op::Or, Op::And, Op::Sllw, Op::Srlw, Op::Srl, Op::Sra];
const ROTATIONS: [Op; 6] = [Op::Roriw, Op::Roriw, Op::Roriw, Op::Rori, Op::Rorw, Op::Rolw];
const BITS: [Op; 14] = [
    Op::Sh1add,
    Op::Sh2addUw,
    Op::AddUw,
    Op::Andn,
    Op::Orn,
    Op::Xnor,
    Op::Max,
    Op::Minu,
    Op::SextB,
    Op::SextH,
    Op::Rev8,
    Op::Clzw,
    Op::Cpopw,
    Op::CzeroEqz,
];
const SHIFTS: [Op; 6] = [Op::Slli, Op::Srli, Op::Srai, Op::Slliw, Op::Srliw, Op::Sraiw];

/// What may be in a loop beside accesses and arithmetic of integers.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    ops: i64,
    /// In a hundred ops.
    floats: u64,
    /// AMOs, LR and SC, counters, fences; with most of them no loop is split.
    rare: u64,
    fences: u64,
    /// Accesses to an array, their index moved by one step.
    indexed: u64,
    /// More bases than are checked.
    bases: bool,
    /// Values of so many registers.
    values: usize,
    /// Rotations, and what is done on 32 bits, as hashes and ciphers have it.
    words: u64,
    /// Bit manipulation.
    bits: u64,
}

impl Shape {
    fn new(rng: &mut Rng) -> Shape {
        let ops = if rng.chance(4) { rng.within(24, 70) } else { rng.within(2, 24) };
        let often = |rng: &mut Rng, percent| if rng.chance(percent) { 15 } else { 0 };
        let (floats, rare, fences) = (often(rng, 40), often(rng, 6), often(rng, 10));
        let indexed = if rng.chance(50) { 30 } else { 0 };
        let values = if rng.chance(50) { MORE.len() } else { V.len() };
        if rng.chance(25) {
            // Nothing in it may trap, so its turns are counted.
            let indexed = if rng.chance(30) { 10 } else { 0 };
            let (ops, values, words) = (rng.within(16, 50), MORE.len(), 80);
            return Shape { ops, floats: 0, rare: 0, fences: 0, indexed, bases: false, values, words, bits: 0 };
        }
        let bits = often(rng, 30);
        Shape { ops, floats, rare, fences, indexed, bases: rng.chance(15), values, words: 0, bits }
    }
}

/// One access or operation of floating point; some are of a table.
fn float(rng: &mut Rng, asm: &mut Asm, base: u8, imm: i32, value: u8) {
    let [f, g, h] = std::array::from_fn(|_| rng.below(4) as u8);
    match rng.below(10) {
        0..4 => _ = asm.op(rng.pick(&[Op::Flw, Op::Fld]), f, base, 0, imm),
        4..7 => _ = asm.op(rng.pick(&[Op::Fsw, Op::Fsd]), 0, base, f, imm),
        7 => {
            let (load, shift) = rng.pick(&[(Op::Flw, Op::Sh2add), (Op::Fld, Op::Sh3add), (Op::Fld, Op::Sh1add)]);
            asm.op(Op::Andi, value, value, 0, 0x7f);
            if rng.chance(50) {
                asm.op(shift, value, value, T, 0);
            } else {
                asm.op(Op::Slli, value, value, 0, 3).op(Op::Add, value, value, T, 0);
            }
            asm.op(load, f, value, 0, 0);
            if rng.chance(60) {
                asm.op(Op::Srliw, value, COUNT, 0, 3);
            }
        }
        8 => _ = asm.op(rng.pick(&[Op::FaddD, Op::FmulD, Op::FsubS, Op::FminS]), f, g, h, 0x7000),
        _ => _ = asm.op(rng.pick(&[Op::FmvXD, Op::FmvXW, Op::FeqD, Op::FcvtWD]), value, g, 0, 0x1000),
    }
}

fn rare(rng: &mut Rng, asm: &mut Asm, base: u8, d: u8, a: u8) {
    match rng.below(5) {
        0 => _ = asm.op(rng.pick(&[Op::AmoaddW, Op::AmoxorD, Op::AmomaxuD, Op::AmoswapW]), d, base, a, 0),
        1 => _ = asm.op(Op::LrD, d, base, 0, 0),
        2 => _ = asm.op(Op::ScD, d, base, a, 0),
        3 => _ = asm.op(Op::LrW, d, base, 0, 0).op(Op::ScW, a, base, d, 0),
        _ => _ = asm.op(Op::Csrrs, d, 0, 0, 0xb02),
    }
}

/// An access to an array by an index, as a compiler makes its address: of 32 bits, with a sign or without, or of 64.
fn indexed(rng: &mut Rng, asm: &mut Asm, value: u8) {
    let (mut index, scaled, shift) = (INDEX, rng.pick(&[value, 7, 7, 21]), rng.below(4) as i32);
    if rng.chance(50) {
        asm.op(rng.pick(&[Op::Addiw, Op::Addiw, Op::Addi]), scaled, INDEX, 0, rng.pick(&[0, 1, 2, 3, 40, -1]));
        index = scaled;
    }
    let add = rng.pick(&[Op::Add, Op::Add, Op::Add, Op::Sub]);
    match rng.below(4) {
        0 if shift != 0 => _ = asm.op(Op::Slli, scaled, index, 0, shift).op(add, scaled, ARRAY, scaled, 0),
        1 if shift != 0 => {
            _ = asm.op([Op::Sh1add, Op::Sh2add, Op::Sh3add][shift as usize - 1], scaled, index, ARRAY, 0);
        }
        _ => {
            asm.op(Op::Slli, scaled, index, 0, rng.pick(&[32, 32, 32, 32, 31]));
            if rng.chance(10) {
                asm.i(addi(rng.pick(&[INDEX, scaled]), INDEX, 1));
            }
            _ = asm.op(Op::Srli, scaled, scaled, 0, 32 - shift).op(add, scaled, scaled, ARRAY, 0);
        }
    }
    let imm = rng.pick(&[0, 0, 4, -8]);
    match rng.below(3) {
        0 => _ = asm.op(rng.pick(&[Op::Sb, Op::Sw, Op::Sd]), 0, scaled, value, imm),
        _ => _ = asm.op(rng.pick(&[Op::Lbu, Op::Lh, Op::Lw, Op::Ld]), value, scaled, 0, imm),
    }
}

/// One round of a loop.
fn body(rng: &mut Rng, asm: &mut Asm, steps: [i32; 2], shape: Shape) {
    let value = |rng: &mut Rng| rng.pick(&MORE[..shape.values]);
    let mut moved = [false; 2];
    for n in 0..shape.ops {
        let (d, a, b) = (value(rng), value(rng), value(rng));
        let imm = match rng.below(50) {
            0 => rng.pick(&[-2048, 2040, 2047]),
            1..6 => rng.within(-160, 167) as i32,
            _ => 8 * rng.within(-20, 20) as i32,
        };
        if rng.chance(shape.indexed) {
            indexed(rng, asm, d);
        }
        let base = if shape.bases { rng.pick(&BASES) } else { rng.pick(&[P, Q, T]) };
        if rng.chance(shape.floats) {
            float(rng, asm, base, imm, d);
        }
        if rng.chance(shape.rare) {
            rare(rng, asm, base, d, a);
        }
        if rng.chance(shape.fences) {
            asm.op(Op::Fence, 0, 0, 0, rng.pick(&[0x033, 0x0ff, 0x011, 0x012]));
        }
        let d = if rng.chance(3) { ZERO } else { d };
        if rng.chance(shape.words) {
            match rng.below(4) {
                0..2 => _ = asm.op(rng.pick(&ROTATIONS), d, a, b, rng.pick(&[1, 7, 8, 25, 31])),
                2 => _ = asm.op(rng.pick(&WORDS), d, a, b, 0),
                _ => {
                    _ = asm.op(
                        rng.pick(&[Op::Addiw, Op::Slliw, Op::Srliw, Op::Sraiw]),
                        d,
                        a,
                        0,
                        rng.pick(&[0, 1, 9, 31]),
                    )
                }
            }
            continue;
        }
        if rng.chance(shape.bits) {
            asm.op(rng.pick(&BITS), d, a, b, 0);
        }
        match if shape.words != 0 { rng.pick(&[0, 2, 9]) } else { rng.below(10) } {
            0..2 => _ = asm.op(rng.pick(&[Op::Lb, Op::Lbu, Op::Lhu, Op::Lw, Op::Lwu, Op::Ld]), d, base, 0, imm),
            2..4 => _ = asm.op(rng.pick(&[Op::Sb, Op::Sh, Op::Sw, Op::Sd]), 0, base, a, imm),
            4..6 => {
                // A look-up, its address made in one register or in several.
                let (index, address) = if rng.chance(60) { (d, d) } else { (a, b) };
                let bits = rng.pick(&[0xff, 0x3f, 7, 0x7ff]);
                let table = if rng.chance(80) { T } else { base };
                match rng.below(4) {
                    0 => asm.op(Op::Andi, index, a, 0, bits),
                    1 => asm.op(Op::Andi, index, a, 0, 6).i(addi(index, index, 3)).op(Op::Ori, index, index, 0, 8),
                    2 => asm.op(Op::Srliw, index, a, 0, 24),
                    _ => asm.op(Op::Lbu, index, P, 0, 3),
                };
                if rng.chance(30) {
                    asm.i(addi(index, index, rng.pick(&[64, 64, 256, 511])));
                }
                // Once in 16 turns a trap, in the middle of what is under way.
                let trap = |rng: &mut Rng, asm: &mut Asm| {
                    if rng.chance(10) {
                        asm.op(Op::Andi, 7, COUNT, 0, 15).op(Op::Sltiu, 7, 7, 0, 1).op(Op::Slli, 7, 7, 0, 45);
                        asm.op(Op::Add, 7, 7, T, 0).op(Op::Lw, 7, 7, 0, 0);
                    }
                };
                let shift = rng.below(4) as i32;
                if shift != 0 && rng.chance(60) {
                    let scaled = if rng.chance(50) { index } else { address };
                    asm.op(Op::Slli, scaled, index, 0, shift);
                    trap(rng, asm);
                    asm.op(Op::Add, address, scaled, table, 0);
                } else if shift == 0 {
                    asm.op(Op::Add, address, index, table, 0);
                } else {
                    asm.op(rng.pick(&[Op::Sh1add, Op::Sh2add, Op::Sh3add]), address, index, table, 0);
                }
                if rng.chance(25) {
                    // What it was made from is written before it is used.
                    match [P, Q].iter().position(|&moving| moving == table) {
                        Some(n) if !moved[n] => {
                            moved[n] = true;
                            asm.i(addi(table, table, steps[n]));
                        }
                        _ if index != address => _ = asm.i(addi(index, index, 1)),
                        _ => {}
                    }
                }
                let to = if rng.chance(60) { address } else { d };
                let to = if rng.chance(5) { ZERO } else { to };
                asm.op(rng.pick(&[Op::Lbu, Op::Lh, Op::Lw, Op::Ld]), to, address, 0, 0);
                trap(rng, asm);
                if rng.chance(30) {
                    asm.i(addi(address, ZERO, 1));
                }
            }
            // Mostly nowhere, in each turn: nothing is checked in front then.
            6 if rng.chance(3) => _ = asm.op(Op::Lw, d, a, 0, imm),
            6 => _ = asm.op(rng.pick(&REGISTERS), d, a, b, 0),
            7 => _ = asm.op(rng.pick(&[Op::Addi, Op::Andi, Op::Xori, Op::Ori, Op::Addiw]), d, a, 0, imm),
            8 => {
                // A rotation, or almost one.
                let n = rng.pick(&[1, 7, 25, 31, 32, 33, 57, 63]);
                let other = rng.pick(&[(32 - n) & 31, (64 - n) & 63, n]);
                asm.op(rng.pick(&SHIFTS), d, a, 0, n).op(rng.pick(&SHIFTS), b, a, 0, other);
                asm.op(rng.pick(&[Op::Or, Op::Xor, Op::Add]), d, d, b, 0);
                if rng.chance(30) {
                    // A word by its look, or one.
                    asm.op(Op::Srli, d, a, 0, rng.pick(&[31, 32, 33])).op(Op::Addiw, d, d, 0, 0);
                }
            }
            _ => {
                let n = (n & 1) as usize;
                if !std::mem::replace(&mut moved[n], true) {
                    asm.i(addi([P, Q][n], [P, Q][n], steps[n]));
                }
            }
        }
    }
    for n in 0..2 {
        if !moved[n] && rng.chance(80) {
            asm.i(addi([P, Q][n], [P, Q][n], steps[n]));
        }
    }
}

/// Any 64 bits.
pub fn constant(asm: &mut Asm, register: u8, value: u64) {
    asm.word(register, (value >> 32) as u32).op(Op::Slli, register, register, 0, 32);
    asm.word(7, value as u32).op(Op::Slli, 7, 7, 0, 32).op(Op::Srli, 7, 7, 0, 32);
    asm.op(Op::Or, register, register, 7, 0);
}

/// What tells whether there is another turn: COUNT against BOUND, or against nothing.
struct Clock {
    op: Op,
    step: i32,
    word: bool,
    bound: bool,
    swapped: bool,
}

impl Clock {
    /// Many turns or few, in every direction, near every wrap; a few never end.
    fn start(rng: &mut Rng, asm: &mut Asm) -> Clock {
        let turns = if rng.chance(30) { rng.within(1, 8) } else { rng.within(1, 900) };
        if rng.chance(30) {
            asm.word(COUNT, turns as u32);
            return Clock { op: Op::Bne, step: -1, word: false, bound: false, swapped: rng.chance(50) };
        }
        let step = rng.pick(&[1, 1, 2, 3, 4, 8, 12, -1, -1, -3, -8]);
        let op = rng.pick(&[Op::Bne, Op::Bne, Op::Blt, Op::Bge, Op::Bltu, Op::Bgeu]);
        let edges = [0u64, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_8000_0000, 1 << 63, 0xffff_ffff];
        let from = rng.pick(&edges).wrapping_add_signed(rng.pick(&[0, -1, 5, -300, 40]));
        let to = from.wrapping_add_signed(i64::from(step) * turns + if rng.chance(20) { 1 } else { 0 });
        let (from, to) = if rng.chance(15) { (to, from) } else { (from, to) };
        constant(asm, COUNT, from);
        constant(asm, BOUND, to);
        // Mostly the way round in which it may go on.
        let below = matches!(op, Op::Blt | Op::Bltu);
        let swapped = (step < 0) == below;
        Clock { op, step, word: rng.chance(30), bound: true, swapped: swapped ^ rng.chance(5) }
    }

    fn turn(&self, asm: &mut Asm) {
        asm.op(if self.word { Op::Addiw } else { Op::Addi }, COUNT, COUNT, 0, self.step);
    }

    fn again(&self, asm: &mut Asm, to: u64) {
        let bound = if self.bound { BOUND } else { ZERO };
        let (a, b) = if self.swapped { (bound, COUNT) } else { (COUNT, bound) };
        asm.op(self.op, 0, a, b, (to as i64 - asm.here() as i64) as i32);
    }
}

/// A few such loops, one behind the other, in a loop over all.
pub fn program(rng: &mut Rng) -> Asm {
    let mut asm = Asm::at(CODE);
    let far = asm.here();
    for _ in 0..rng.within(1, 3) {
        // In the middle of RAM, near its end, where the code is, in front of a device.
        let place = |rng: &mut Rng| {
            let at = rng.pick(&[RAM + 0x4000, RAM + 0x1_0000, RAM + SIZE - 0x1000, CODE, STOP - 0x800, HOLE - 0x1000]);
            at + 8 * rng.below(0x200) + if rng.chance(20) { rng.below(8) } else { 0 }
        };
        // Some lie where others do: what is stored off one is loaded off another.
        let mut at = place(rng);
        for base in BASES {
            at = if rng.chance(30) { at + 8 * rng.below(3) } else { place(rng) };
            asm.la(base, at);
        }
        // Small, or where it is none of 32 bits any more, or was none; its array begins that much before what there is.
        let array = place(rng);
        let from = rng.pick(&[0, 5, 0x100, 0x3fff_fff0, 0x4000_0000, 0x7fff_fff0, 0xffff_fffb, 0x1_0000_0003]);
        constant(&mut asm, ARRAY, array.wrapping_sub(if rng.chance(60) { from << rng.below(4) } else { 0 }));
        constant(&mut asm, INDEX, from);
        if rng.chance(20) {
            asm.op(Op::Addiw, INDEX, INDEX, 0, 0);
        }
        let step_of_index = (rng.pick(&[Op::Addiw, Op::Addiw, Op::Addi]), rng.pick(&[1, 1, 2, 4, 16, -1, -4, 1025]));
        let clock = Clock::start(rng, &mut asm);
        let step = |rng: &mut Rng| rng.pick(&[1, 2, 3, 4, 8, 8, 12, 24, 64, -1, -4, -8, -40, 500]);
        let steps = [step(rng), step(rng)];
        let shape = Shape::new(rng);
        // Entered in its middle, it is a loop of two blocks.
        let middle = rng.chance(30).then_some(asm.code.len());
        if middle.is_some() {
            asm.i(0);
        }
        let again = asm.here();
        let early = rng.chance(30);
        if early {
            clock.turn(&mut asm);
        }
        body(rng, &mut asm, steps, shape);
        if let Some(at) = middle {
            let from = CODE + 4 * at as u64;
            asm.code[at] = jal(ZERO, from, asm.here());
            let shape = Shape { ops: rng.within(0, 5), ..shape };
            body(rng, &mut asm, steps, shape);
        }
        if shape.indexed != 0 {
            asm.op(step_of_index.0, INDEX, INDEX, 0, step_of_index.1);
        }
        if !early {
            clock.turn(&mut asm);
        }
        clock.again(&mut asm, again);
    }
    let back = jal(ZERO, asm.here(), far);
    asm.i(back);
    asm
}

/// A region as full of small loops as it can be: more than there is room for copies of.
pub fn crowd(rng: &mut Rng) -> Asm {
    let mut asm = Asm::at(CODE);
    let far = asm.here();
    let data = RAM + 0x4000 + 8 * rng.below(0x100);
    for (n, base) in BASES.into_iter().enumerate() {
        asm.la(base, data + 0x200 * n as u64);
    }
    let (most, floats) = (rng.pick(&[2, 3, 4, 6]), rng.chance(30));
    while asm.code.len() < 246 {
        // Entered at its last instructions now and then, what makes it a loop of two blocks.
        let middle = rng.chance(15).then_some(asm.code.len());
        if middle.is_some() {
            asm.i(0);
        }
        let again = asm.here();
        let (base, d) = (rng.pick(&BASES), rng.pick(&V));
        for _ in 1..rng.within(2, most) {
            let base = if rng.chance(70) { base } else { rng.pick(&BASES) };
            let imm = 8 * rng.within(-20, 20) as i32;
            let (d, f) = (rng.pick(&V), rng.below(4) as u8);
            match rng.below(6) {
                0..2 if floats => _ = asm.op(Op::Fld, f, base, 0, imm),
                2 if floats => _ = asm.op(Op::Fsw, 0, base, f, imm),
                0..3 => _ = asm.op(rng.pick(&[Op::Lbu, Op::Lw, Op::Ld]), d, base, 0, imm),
                3 => _ = asm.op(rng.pick(&[Op::Sb, Op::Sd]), 0, base, d, imm),
                _ => _ = asm.i(addi(base, base, rng.pick(&[1, 8, -8]))),
            }
        }
        if let Some(at) = middle {
            asm.code[at] = jal(ZERO, CODE + 4 * at as u64, asm.here());
            asm.op(Op::Addi, d, d, 0, 1);
        }
        let back = (again as i64 - asm.here() as i64) as i32;
        match rng.below(3) {
            0 => _ = asm.op(Op::Lbu, d, base, 0, 0).op(Op::Bne, 0, d, ZERO, back - 4),
            1 => _ = asm.op(Op::Bltu, 0, d, ZERO, back),
            _ => _ = asm.i(addi(COUNT, COUNT, 1)).op(Op::Andi, d, COUNT, 0, 7).op(Op::Bne, 0, d, ZERO, back - 8),
        }
    }
    let back = jal(ZERO, asm.here(), far);
    asm.i(back);
    asm
}

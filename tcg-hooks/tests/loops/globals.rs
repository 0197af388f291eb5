//! Random code that branches forwards, in a loop over all: its accesses are off constants and off registers that are left alone, or
//! moved in one of two ways only.

use super::{ARRAY, CODE, COUNT, HOLE, INDEX, MORE, P, Q, SIZE, T};
use crate::common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::{Rng, encode};

/// Of what no other register is off.
const SCRATCH: u8 = 7;
const BASES: [u8; 5] = [P, Q, T, ARRAY, 15];
const LOADS: [Op; 6] = [Op::Lb, Op::Lbu, Op::Lhu, Op::Lw, Op::Lwu, Op::Ld];
const STORES: [Op; 4] = [Op::Sb, Op::Sh, Op::Sw, Op::Sd];

fn access(rng: &mut Rng, asm: &mut Asm, base: u8, imm: i32) {
    let value = rng.pick(&MORE);
    match rng.chance(60) {
        true => asm.op(rng.pick(&LOADS), if rng.chance(4) { ZERO } else { value }, base, 0, imm),
        false => asm.op(rng.pick(&STORES), 0, base, if rng.chance(20) { ZERO } else { value }, imm),
    };
}

/// Instructions between two branches.
fn piece(rng: &mut Rng, asm: &mut Asm, globals: u64, rare: bool) {
    for _ in 0..rng.within(1, 7) {
        let (d, a) = (rng.pick(&MORE), rng.pick(&MORE));
        let (base, imm) = (rng.pick(&BASES), 4 * rng.within(-60, 60) as i32 + i32::from(rng.chance(10)));
        match rng.below(12) {
            0..3 => {
                // A global, or the one behind it.
                asm.la(SCRATCH, globals.wrapping_add_signed(4 * rng.within(-600, 600)));
                access(rng, asm, SCRATCH, 0);
                if rng.chance(40) {
                    let imm = rng.pick(&[4, 8, -4, 1]);
                    access(rng, asm, SCRATCH, imm);
                }
            }
            3 => {
                // A table of them, by an index.
                asm.la(SCRATCH, globals).op(Op::Andi, d, a, 0, rng.pick(&[7, 0xff, 0x7f8])).op(
                    Op::Add,
                    d,
                    d,
                    SCRATCH,
                    0,
                );
                access(rng, asm, d, 0);
            }
            4..8 => access(rng, asm, base, imm),
            8 => {
                asm.i(addi(INDEX, base, imm));
                access(rng, asm, INDEX, 8);
                if rng.chance(50) {
                    asm.i(addi(INDEX, ZERO, 1));
                }
            }
            9 if rng.chance(25) => _ = asm.i(addi(base, base, rng.pick(&[8, -8, 500]))),
            10 if rare && rng.chance(30) => match rng.below(4) {
                0 => _ = asm.op(rng.pick(&[Op::AmoaddW, Op::AmoswapD]), d, base, a, 0),
                1 => _ = asm.op(Op::LrW, d, base, 0, 0).op(Op::ScW, a, base, d, 0),
                2 => _ = asm.op(Op::Csrrs, d, 0, 0, 0xb02),
                _ => _ = asm.op(Op::FenceI, 0, 0, 0, 0),
            },
            _ => _ = asm.op(rng.pick(&[Op::Add, Op::Xor, Op::Addw, Op::Sltu]), d, d, a, 0),
        }
    }
}

pub fn globals(rng: &mut Rng) -> Asm {
    let mut asm = Asm::at(CODE);
    let places = [RAM + 0x4000, RAM + 0x1_0000, RAM + SIZE - 0x1000, CODE, HOLE - 0x1000, HOLE - 0x800, RAM + 0x6ff0];
    let place = |rng: &mut Rng| {
        let at = rng.pick(&places) + 4 * rng.below(0x200);
        at + u64::from(rng.chance(10))
    };
    let mostly = RAM + 0x4000 + 8 * rng.below(0x200);
    for base in BASES {
        let at = if rng.chance(70) { mostly + 8 * rng.below(0x40) } else { place(rng) };
        asm.la(base, at);
    }
    let rare = rng.chance(30);
    let far = asm.here();
    for _ in 0..rng.within(1, 3) {
        let at = if rng.chance(70) { mostly } else { place(rng) };
        let (again, turns) = (asm.here(), rng.chance(40));
        for _ in 0..rng.within(1, 8) {
            let hole = asm.code.len();
            let (a, b) = (rng.pick(&MORE), rng.pick(&MORE));
            asm.i(0);
            piece(rng, &mut asm, at, rare);
            let over = 4 * (asm.code.len() - hole) as i32;
            asm.code[hole] = encode(rng.pick(&[Op::Beq, Op::Bne, Op::Blt, Op::Bgeu]), 0, a, b, over);
        }
        piece(rng, &mut asm, at, rare);
        if turns {
            asm.i(addi(COUNT, COUNT, 1)).op(Op::Andi, SCRATCH, COUNT, 0, 7);
            asm.op(Op::Bne, 0, SCRATCH, ZERO, (again as i64 - asm.here() as i64) as i32);
        }
    }
    let back = jal(ZERO, asm.here(), far);
    asm.i(back);
    asm
}

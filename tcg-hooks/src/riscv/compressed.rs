//! The 16-bit forms: each is an abbreviation, expanded to the [`Insn`] it stands for.
//!
//! Reserved encodings, and those of extensions that we lack (Zcb, Zcmop), are illegal. HINTs expand to what they look like, which changes nothing: they write `x0`, or shift by zero.
use super::decode::{Insn, Packed};
use super::lower::plan::plan_of;
use super::opcodes::Op;

/// An [`Insn`] without its length.
#[derive(Clone, Copy)]
struct Short {
    op: Op,
    rd: u8,
    rs1: u8,
    rs2: u8,
    imm: i32,
}

const _: () = assert!(size_of::<Short>() == 8);

/// Every form there is, expanded at compile time: half of compiled code is short, and its forms are so mixed that a
/// decision tree is mispredicted at each (15 ns an instruction, measured; a load from here is 4). A program touches
/// a few hundred of its lines.
static FORMS: [Short; FORM_COUNT] = {
    let mut forms = [Short { op: Op::Illegal, rd: 0, rs1: 0, rs2: 0, imm: 0 }; FORM_COUNT];
    let mut i = 0;
    while i < FORM_COUNT {
        let Insn { op, rd, rs1, rs2, imm, .. } = compute((i << 2 & 0xffff | i >> 14) as u16);
        forms[i] = Short { op, rd, rs1, rs2, imm };
        i += 1;
    }
    forms
};

/// Three quadrants.
const FORM_COUNT: usize = 3 << 14;

/// Expands a halfword whose low bits are not `11`; one whose are is illegal here.
#[inline]
pub fn expand(h: u16) -> Insn {
    match FORMS.get(usize::from(h & 3) << 14 | usize::from(h >> 2)) {
        Some(&Short { op, rd, rs1, rs2, imm }) => Insn { op, rd, rs1, rs2, len: 2, imm },
        None => Insn::illegal(h as u32, 2),
    }
}

/// The same, packed.
#[inline(always)]
pub(super) fn packed_short(h: u16) -> Packed {
    match FORMS.get(usize::from(h & 3) << 14 | usize::from(h >> 2)) {
        Some(&Short { op, rd, rs1, rs2, imm }) => {
            Packed { op, plan: plan_of(op), operands: u32::from_le_bytes([rd, rs1, rs2, 2]), imm }
        }
        None => Packed { op: Op::Illegal, plan: plan_of(Op::Illegal), operands: 2 << 24, imm: h.into() },
    }
}

const fn compute(h: u16) -> Insn {
    let b = h as u32;
    let insn = match b & 3 {
        0 => quadrant0(b),
        1 => quadrant1(b),
        _ => quadrant2(b),
    };
    match insn {
        Some(insn) => insn,
        None => Insn::illegal(b, 2),
    }
}

const SP: u32 = 2;

const fn insn(op: Op, rd: u32, rs1: u32, rs2: u32, imm: i32) -> Option<Insn> {
    Some(Insn { op, rd: rd as u8, rs1: rs1 as u8, rs2: rs2 as u8, len: 2, imm })
}

/// Bits `hi..=lo` of `b`, moved so that the lowest lands at bit `to`.
const fn field(b: u32, hi: u32, lo: u32, to: u32) -> i32 {
    ((b >> lo & ((1 << (hi - lo + 1)) - 1)) << to) as i32
}

/// `value` with everything above bit `sign` a copy of it.
const fn extend(value: i32, sign: u32) -> i32 {
    value << (31 - sign) >> (31 - sign)
}

/// A register of the popular eight, `x8` to `x15`, named by three bits at `lo`.
const fn popular(b: u32, lo: u32) -> u32 {
    8 + (b >> lo & 7)
}

/// The signed six-bit immediate of the CI format.
const fn imm6(b: u32) -> i32 {
    extend(field(b, 12, 12, 5) | field(b, 6, 2, 0), 5)
}

/// The shift amount, six bits on RV64.
const fn shamt(b: u32) -> i32 {
    field(b, 12, 12, 5) | field(b, 6, 2, 0)
}

const fn word_offset(b: u32) -> i32 {
    field(b, 5, 5, 6) | field(b, 12, 10, 3) | field(b, 6, 6, 2)
}

const fn double_offset(b: u32) -> i32 {
    field(b, 6, 5, 6) | field(b, 12, 10, 3)
}

/// The halfword of a floating-point load or store, which are all of doublewords.
pub(super) const fn float_bits(load: bool, register: u64, base: u64, imm: u64) -> u64 {
    let funct3 = if load { 0b001 << 13 } else { 0b101 << 13 };
    // The other forms have no way to name sp.
    if base == SP as u64 {
        let offset = if load {
            (imm >> 6 & 7) << 2 | (imm >> 5 & 1) << 12 | (imm >> 3 & 3) << 5 | register << 7
        } else {
            (imm >> 6 & 7) << 7 | (imm >> 3 & 7) << 10 | register << 2
        };
        return funct3 | offset | 2;
    }
    funct3 | (imm >> 6 & 3) << 5 | (imm >> 3 & 7) << 10 | (base & 7) << 7 | (register & 7) << 2
}

const fn quadrant0(b: u32) -> Option<Insn> {
    let (rs1, other) = (popular(b, 7), popular(b, 2));
    match b >> 13 {
        // c.addi4spn; an immediate of zero is reserved, and with it the halfword of all zeros.
        0b000 => match field(b, 12, 11, 4) | field(b, 10, 7, 6) | field(b, 6, 6, 2) | field(b, 5, 5, 3) {
            0 => None,
            imm => insn(Op::Addi, other, SP, 0, imm),
        },
        0b001 => insn(Op::Fld, other, rs1, 0, double_offset(b)),
        0b010 => insn(Op::Lw, other, rs1, 0, word_offset(b)),
        0b011 => insn(Op::Ld, other, rs1, 0, double_offset(b)),
        0b101 => insn(Op::Fsd, 0, rs1, other, double_offset(b)),
        0b110 => insn(Op::Sw, 0, rs1, other, word_offset(b)),
        0b111 => insn(Op::Sd, 0, rs1, other, double_offset(b)),
        _ => None,
    }
}

const fn quadrant1(b: u32) -> Option<Insn> {
    let rd = b >> 7 & 31;
    match b >> 13 {
        0b000 => insn(Op::Addi, rd, rd, 0, imm6(b)),
        // c.addiw; rd = x0 is reserved.
        0b001 if rd != 0 => insn(Op::Addiw, rd, rd, 0, imm6(b)),
        0b010 => insn(Op::Addi, rd, 0, 0, imm6(b)),
        // c.addi16sp and c.lui; both reserve an immediate of zero.
        0b011 if imm6(b) != 0 => {
            if rd == SP {
                let imm =
                    field(b, 12, 12, 9) | field(b, 6, 6, 4) | field(b, 5, 5, 6) | field(b, 4, 3, 7) | field(b, 2, 2, 5);
                insn(Op::Addi, SP, SP, 0, extend(imm, 9))
            } else {
                insn(Op::Lui, rd, 0, 0, imm6(b) << 12)
            }
        }
        0b100 => arithmetic(b),
        0b101 => {
            let imm = field(b, 12, 12, 11)
                | field(b, 11, 11, 4)
                | field(b, 10, 9, 8)
                | field(b, 8, 8, 10)
                | field(b, 7, 7, 6)
                | field(b, 6, 6, 7)
                | field(b, 5, 3, 1)
                | field(b, 2, 2, 5);
            insn(Op::Jal, 0, 0, 0, extend(imm, 11))
        }
        0b110 => insn(Op::Beq, 0, popular(b, 7), 0, branch_offset(b)),
        0b111 => insn(Op::Bne, 0, popular(b, 7), 0, branch_offset(b)),
        _ => None,
    }
}

const fn branch_offset(b: u32) -> i32 {
    let imm = field(b, 12, 12, 8) | field(b, 11, 10, 3) | field(b, 6, 5, 6) | field(b, 4, 3, 1) | field(b, 2, 2, 5);
    extend(imm, 8)
}

/// The forms that work on a popular register in place.
const fn arithmetic(b: u32) -> Option<Insn> {
    let (rd, rs2) = (popular(b, 7), popular(b, 2));
    let op = match (b >> 10 & 3, b >> 12 & 1, b >> 5 & 3) {
        (0, _, _) => return insn(Op::Srli, rd, rd, 0, shamt(b)),
        (1, _, _) => return insn(Op::Srai, rd, rd, 0, shamt(b)),
        (2, _, _) => return insn(Op::Andi, rd, rd, 0, imm6(b)),
        (_, 0, 0) => Op::Sub,
        (_, 0, 1) => Op::Xor,
        (_, 0, 2) => Op::Or,
        (_, 0, _) => Op::And,
        (_, _, 0) => Op::Subw,
        (_, _, 1) => Op::Addw,
        _ => return None,
    };
    insn(op, rd, rd, rs2, 0)
}

const fn quadrant2(b: u32) -> Option<Insn> {
    let (rd, rs2) = (b >> 7 & 31, b >> 2 & 31);
    match b >> 13 {
        0b000 => insn(Op::Slli, rd, rd, 0, shamt(b)),
        0b001 => insn(Op::Fld, rd, SP, 0, field(b, 4, 2, 6) | field(b, 12, 12, 5) | field(b, 6, 5, 3)),
        // The integer loads off sp reserve rd = x0.
        0b010 if rd != 0 => insn(Op::Lw, rd, SP, 0, field(b, 3, 2, 6) | field(b, 12, 12, 5) | field(b, 6, 4, 2)),
        0b011 if rd != 0 => insn(Op::Ld, rd, SP, 0, field(b, 4, 2, 6) | field(b, 12, 12, 5) | field(b, 6, 5, 3)),
        0b100 => match (b >> 12 & 1, rd, rs2) {
            (0, 0, 0) => None,
            (0, _, 0) => insn(Op::Jalr, 0, rd, 0, 0),
            (0, _, _) => insn(Op::Add, rd, 0, rs2, 0),
            (_, 0, 0) => insn(Op::Ebreak, 0, 0, 0, 0),
            (_, _, 0) => insn(Op::Jalr, 1, rd, 0, 0),
            _ => insn(Op::Add, rd, rd, rs2, 0),
        },
        0b101 => insn(Op::Fsd, 0, SP, rs2, field(b, 9, 7, 6) | field(b, 12, 10, 3)),
        0b110 => insn(Op::Sw, 0, SP, rs2, field(b, 8, 7, 6) | field(b, 12, 9, 2)),
        0b111 => insn(Op::Sd, 0, SP, rs2, field(b, 9, 7, 6) | field(b, 12, 10, 3)),
        _ => None,
    }
}

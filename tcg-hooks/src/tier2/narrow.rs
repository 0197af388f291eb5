//! Which values need no sign extension: the 32 bits that count are in their register, and any others above.
//!
//! ```text
//!   addw t, a, b      an addition of 64 bits, if t's register is only read by ops that look at 32 bits
//!   lw t, 0(a)        a load of 32 bits without a sign: the host has it a cycle earlier
//!   home              a value that goes home is extended on the way; one that no place may show has no way there
//! ```
use super::alloc::Home;
use super::webs::{NONE, Webs};
use crate::float::Int;
use crate::ir::{Alu, Bits, Float, Ir, Kind, MemOp, Region, Term};

/// Four bytes, and their sign; and four bytes.
const LW: u8 = 6;
const LWU: u8 = 2;

/// Is what it writes the extension of its 32 low bits, if that holds for what it reads?
fn extends(ir: &Ir, operands: [bool; 2]) -> bool {
    let [a, b] = operands;
    match ir.kind {
        Kind::Li => i32::try_from(ir.imm).is_ok(),
        Kind::Mov => a,
        Kind::Reg(op) => match op {
            Alu::And | Alu::Or | Alu::Xor => a && b,
            _ => is_word(op) || matches!(op, Alu::Slt | Alu::Sltu),
        },
        Kind::Imm(op) => match op {
            Alu::And => a || ir.imm >= 0,
            Alu::Or | Alu::Xor => a,
            Alu::Srl => ir.imm & 63 > 32,
            Alu::Sra => a || ir.imm & 63 >= 32,
            _ => is_word(op) || matches!(op, Alu::Slt | Alu::Sltu),
        },
        Kind::Bits(op) => matches!(op, Bits::Roriw | Bits::Rorw | Bits::Rolw | Bits::SextB | Bits::SextH | Bits::ZextH),
        Kind::Load(mem) | Kind::LoadFast(mem, _) => mem.bytes() < 4 || (mem.bytes() == 4 && mem.signed()),
        Kind::Float(what) => matches!(what, Float::ToInt(Int::W | Int::Wu) | Float::Eq | Float::Lt | Float::Le),
        _ => false,
    }
}

/// An operation on 32 bits, whose result is extended.
fn is_word(op: Alu) -> bool {
    use Alu::{AddW, DivW, DivuW, MulW, RemW, RemuW, SllW, SraW, SrlW, SubW};
    matches!(op, AddW | SubW | MulW | SllW | SrlW | SraW | DivW | DivuW | RemW | RemuW)
}

/// May operand `n` have anything above its 32 bits, if that is so of the result?
fn takes(ir: &Ir, n: usize, result: bool) -> bool {
    match ir.kind {
        Kind::Mov => result,
        Kind::Reg(op) => match op {
            Alu::And | Alu::Or | Alu::Xor | Alu::Add | Alu::Sub | Alu::Mul => result,
            Alu::Sll => n == 1 || result,
            Alu::Srl | Alu::Sra => n == 1,
            _ => is_word(op),
        },
        Kind::Imm(op) => match op {
            Alu::And => result || ir.imm >= 0,
            Alu::Or | Alu::Xor | Alu::Add => result,
            Alu::Sll => ir.imm & 63 >= 32 || result,
            _ => is_word(op),
        },
        Kind::Bits(Bits::AddUw | Bits::Sh1addUw | Bits::Sh2addUw | Bits::Sh3addUw) => n == 0,
        Kind::Bits(op) => matches!(op, Bits::Roriw | Bits::Rorw | Bits::Rolw | Bits::SextB | Bits::SextH | Bits::ZextH),
        Kind::Store(mem) | Kind::StoreFast(mem) => n == 1 && mem.bytes() <= 4,
        _ => false,
    }
}

/// An op, and its immediate, whose result needs its 32 low bits only: the one on 64 bits extends nothing, and has these.
pub(super) fn narrowed(ir: &Ir) -> (Kind, i64) {
    let kind = match ir.kind {
        Kind::Reg(Alu::AddW) => Kind::Reg(Alu::Add),
        Kind::Reg(Alu::SubW) => Kind::Reg(Alu::Sub),
        Kind::Reg(Alu::MulW) => Kind::Reg(Alu::Mul),
        Kind::Imm(Alu::AddW) => Kind::Imm(Alu::Add),
        Kind::Imm(Alu::SllW) => return (Kind::Imm(Alu::Sll), ir.imm & 31),
        Kind::Bits(Bits::Roriw) => Kind::NarrowRotate,
        // The host has what it loads a cycle later if it extends the sign.
        Kind::Load(MemOp(LW)) => Kind::Load(MemOp(LWU)),
        Kind::LoadFast(MemOp(LW), shift) => Kind::LoadFast(MemOp(LWU), shift),
        kind => kind,
    };
    (kind, ir.imm)
}

/// What is known of the 32 low bits.
pub(super) struct Widths {
    /// By web: is it the extension of its low bits?
    pub(super) extended: Vec<bool>,
    /// By web: is it kept without that extension?
    pub(super) narrow: Vec<bool>,
    /// By block: does its branch compare 32 bits?
    pub(super) words: Vec<bool>,
}

fn is_extended(extended: &[bool], web: u16, id: u8) -> bool {
    if web == NONE { id == 0 } else { extended[usize::from(web)] }
}

/// By web: is it the extension of its low bits?
fn extended(region: &Region, webs: &Webs) -> Vec<bool> {
    let mut extended: Vec<bool> = webs.webs.iter().map(|web| web.writes != 0 && !web.entry).collect();
    loop {
        let mut changed = false;
        for (ir, op) in region.ops.iter().zip(&webs.ops) {
            let of = |n: usize, id| is_extended(&extended, op.reads[n], id);
            if op.writes != NONE && extended[usize::from(op.writes)] && !extends(ir, [of(0, ir.a), of(1, ir.b)]) {
                extended[usize::from(op.writes)] = false;
                changed = true;
            }
        }
        if !changed {
            return extended;
        }
    }
}

/// Which values are kept without their extension.
pub(super) fn widths(region: &Region, webs: &Webs, homes: &[Home]) -> Widths {
    let extended = extended(region, webs);
    let of = |web: u16, id: u8| is_extended(&extended, web, id);
    let words: Vec<bool> = region
        .blocks
        .iter()
        .zip(&webs.terms)
        .map(|(block, term)| match block.term {
            Term::Branch { a, b, .. } | Term::Again { a, b, .. } => of(term[0], a) && of(term[1], b),
            _ => false,
        })
        .collect();
    // What is never shown need not be what it was.
    let may = |w: usize| {
        let web = &webs.webs[w];
        homes[w] != Home::Memory && (extended[w] || !web.shown && web.writes != 0 && !web.entry)
    };
    let mut narrow: Vec<bool> = (0..webs.webs.len()).map(may).collect();
    loop {
        let mut changed = false;
        let mut full = |narrow: &mut [bool], web: u16| {
            if web != NONE && narrow[usize::from(web)] {
                narrow[usize::from(web)] = false;
                changed = true;
            }
        };
        for (ir, op) in region.ops.iter().zip(&webs.ops) {
            let result = op.writes != NONE && narrow[usize::from(op.writes)];
            for n in 0..2 {
                if !takes(ir, n, result) {
                    full(&mut narrow, op.reads[n]);
                }
            }
        }
        for (term, word) in webs.terms.iter().zip(&words) {
            if !word {
                term.iter().for_each(|&web| full(&mut narrow, web));
            }
        }
        if !changed {
            return Widths { extended, narrow, words };
        }
    }
}

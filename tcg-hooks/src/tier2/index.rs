//! Addresses with an index that each turn of a loop moves by a constant.
//!
//! ```text
//!   addiw s0,t5,1 ; slli s0,s0,32 ; srli s0,s0,30 ; add s0,s0,s2 ; lw s0,0(s0)     s2 + 4 * (t5 + 1), if t5 is small and not
//!   … addiw t5,t5,4                                                                below zero: this is checked in front
//! ```
//!
//! Then a turn moves the address by a constant, too, and the conversion of 32 bits to 64 is none.
use super::{register, roles};
use crate::ir::{Alu, Bits, Ir, Kind};

/// An index that is checked lies below this, as a number of 64 bits without a sign. What is added to it, in a turn or in all
/// turns of a page, keeps it a positive number of 32 bits.
pub(crate) const MOST: i32 = 1 << 30;
/// No constant that is added to an index is larger.
const ADDED: i64 = 1 << 20;
/// The longest step of an index, and of its address: a page has a few of them.
const STEP: i64 = 1024;

/// `base + (index << shift) + offset`, with the values that both have at the head of the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) base: u8,
    pub(super) index: u8,
    pub(super) shift: u8,
    pub(super) offset: i64,
    /// How far the address moves in a turn.
    pub(super) step: i32,
}

/// How far up the block moves a register each turn, by one addition, if it may be moved; else it must not write it.
fn step(ops: &[Ir], register: u8, moved: bool) -> Option<i64> {
    let mut found = 0;
    for ir in ops.iter().filter(|ir| roles(ir).writes == Some(register)) {
        match ir.kind {
            Kind::Imm(Alu::Add | Alu::AddW)
                if moved && ir.a == register && found == 0 && (1..=STEP).contains(&ir.imm) =>
            {
                found = ir.imm;
            }
            _ => return None,
        }
    }
    Some(found)
}

/// The op before `end` that wrote this register last.
fn maker(ops: &[Ir], end: usize, id: u8) -> Option<usize> {
    let id = register(id)?;
    (0..end).rev().find(|&i| roles(&ops[i]).writes == Some(id))
}

/// The address of access `j`, if it is one of these.
pub(super) fn indexed(ops: &[Ir], j: usize) -> Option<Indexed> {
    let (mut offset, mut at, mut from) = (ops[j].imm, j, ops[j].a);
    loop {
        at = maker(ops, at, from)?;
        let Ir { a, b, imm, .. } = ops[at];
        return match ops[at].kind {
            Kind::Imm(Alu::Add) => {
                offset += imm;
                from = a;
                continue;
            }
            Kind::Reg(Alu::Add) => sum(ops, at, a, b, offset).or_else(|| sum(ops, at, b, a, offset)),
            Kind::Bits(op @ (Bits::Sh1add | Bits::Sh2add | Bits::Sh3add)) => {
                let shift = match op {
                    Bits::Sh1add => 1,
                    Bits::Sh2add => 2,
                    _ => 3,
                };
                of(ops, b, word(ops, at, a)?, shift, offset)
            }
            _ => None,
        };
    }
}

fn sum(ops: &[Ir], at: usize, base: u8, scaled: u8, offset: i64) -> Option<Indexed> {
    let k = maker(ops, at, scaled)?;
    let Ir { a, imm, .. } = ops[k];
    let (at_index, index, shift) = match ops[k].kind {
        Kind::Imm(Alu::Sll) if (1..=3).contains(&imm) => (k, a, imm),
        Kind::Imm(Alu::Srl) if (29..=32).contains(&imm) => {
            let m = maker(ops, k, a)?;
            (ops[m].kind == Kind::Imm(Alu::Sll) && ops[m].imm == 32).then_some((m, ops[m].a, 32 - imm))?
        }
        _ => return None,
    };
    of(ops, base, word(ops, at_index, index)?, shift as u8, offset)
}

/// The register that an index is made of, what is added to it, and by which op it is read.
fn word(ops: &[Ir], at: usize, id: u8) -> Option<(u8, i64, usize)> {
    let id = register(id)?;
    if step(ops, id, true).is_some() {
        return Some((id, 0, at));
    }
    let k = maker(ops, at, id)?;
    let is_sum = matches!(ops[k].kind, Kind::Imm(Alu::Add | Alu::AddW)) && (0..ADDED).contains(&ops[k].imm);
    let from = register(ops[k].a).filter(|_| is_sum)?;
    step(ops, from, true)?;
    Some((from, ops[k].imm, k))
}

fn of(ops: &[Ir], base: u8, (index, added, read): (u8, i64, usize), shift: u8, offset: i64) -> Option<Indexed> {
    let base = register(base)?;
    step(ops, base, false)?;
    let step = step(ops, index, true)?;
    // An index that stays is no more than a base; one that was moved already is as from the head.
    let moved = if maker(ops, read, index).is_some() { step } else { 0 };
    let offset = offset + ((added + moved) << shift);
    let fits = step != 0 && step << shift <= STEP;
    (fits && base != index).then_some(Indexed { base, index, shift, offset, step: (step << shift) as i32 })
}

/// The ops of a block with these indices checked: what is made of them is made on 64 bits.
pub(super) fn widen(ops: &mut [Ir], indices: &[u8]) {
    // What holds an index, or a little more.
    let mut small: u32 = indices.iter().fold(0, |all, &id| all | 1 << id);
    for j in 0..ops.len() {
        let Ir { kind, a, imm, .. } = ops[j];
        let is_small = |id: u8| small >> (id & 31) & 1 != 0 && register(id).is_some();
        let from_index = indices.contains(&a);
        match kind {
            Kind::Imm(Alu::AddW) if from_index => {
                ops[j].kind = Kind::Imm(Alu::Add);
            }
            Kind::Imm(Alu::Srl) if (29..=32).contains(&imm) => {
                let source = maker(ops, j, a).filter(|&m| {
                    let Ir { kind, rd, a, imm, .. } = ops[m];
                    kind == Kind::Imm(Alu::Sll)
                        && imm == 32
                        && rd != a
                        && is_small(a)
                        && maker(&ops[m..], j - m, a).is_none()
                });
                if let Some(m) = source {
                    let kind = if imm == 32 { Kind::Mov } else { Kind::Imm(Alu::Sll) };
                    ops[j] = Ir { kind, a: ops[m].a, imm: 32 - imm, ..ops[j] };
                }
            }
            _ => {}
        }
        if let Some(id) = roles(&ops[j]).writes.filter(|id| !indices.contains(id)) {
            let sum = matches!(kind, Kind::Imm(Alu::Add | Alu::AddW)) && from_index && (0..ADDED).contains(&imm);
            small = small & !(1 << id) | u32::from(sum) << id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::MemOp;

    fn ir(kind: Kind, rd: u8, a: u8, b: u8, imm: i64) -> Ir {
        Ir { kind, rd, a, b, site: 0, imm }
    }

    fn imm(op: Alu, rd: u8, a: u8, by: i64) -> Ir {
        ir(Kind::Imm(op), rd, a, 0, by)
    }

    const LOAD: Kind = Kind::Load(MemOp(6));

    /// `lw x8, 4(x18 + 4 * (u32)(x30 + added))`, and then `x30 += step`.
    fn look_up(added: i64, step: i64) -> Vec<Ir> {
        vec![
            imm(Alu::AddW, 8, 30, added),
            imm(Alu::Sll, 27, 8, 32),
            imm(Alu::Srl, 8, 27, 30),
            ir(Kind::Reg(Alu::Add), 8, 8, 18, 0),
            ir(LOAD, 8, 8, 0, 4),
            imm(Alu::AddW, 30, 30, step),
        ]
    }

    #[test]
    fn an_index_that_moves_up_is_found_through_its_conversion_and_no_other_is() {
        let found = Indexed { base: 18, index: 30, shift: 2, offset: 4 + 4 * 3, step: 16 };
        assert_eq!(indexed(&look_up(3, 4), 4), Some(found));
        // Behind its step: as from the head.
        let mut late = look_up(3, 4);
        late.rotate_right(1);
        assert_eq!(indexed(&late, 5), Some(Indexed { offset: found.offset + 16, ..found }));
        // Below zero it is a large number of 32 bits, sooner or later; or how far it moves is not known.
        for (added, step) in [(3, -4), (-1, 4), (3, 0), (3, 300), (3, 2000)] {
            assert_eq!(indexed(&look_up(added, step), 4), None, "{added} {step}");
        }
        for (at, changed) in [
            (1, imm(Alu::Sll, 27, 8, 31)),
            (2, imm(Alu::Srl, 8, 27, 28)),
            (2, imm(Alu::Sra, 8, 27, 30)),
            (3, ir(Kind::Reg(Alu::Sub), 8, 8, 18, 0)),
            (3, ir(Kind::Reg(Alu::Add), 8, 8, 30, 0)),
            (5, imm(Alu::AddW, 30, 29, 4)),
        ] {
            let mut ops = look_up(3, 4);
            ops[at] = changed;
            assert_eq!(indexed(&ops, 4), None, "{changed:?}");
        }
        let written = [look_up(3, 4), vec![imm(Alu::Add, 18, 18, 4)]].concat();
        assert_eq!(indexed(&written, 4), None, "a base that moves, too");
    }

    #[test]
    fn the_conversion_of_a_checked_index_is_a_shift_and_of_another_it_stays() {
        let mut ops = look_up(3, 4);
        widen(&mut ops, &[30]);
        assert_eq!(ops[0].kind, Kind::Imm(Alu::Add));
        assert_eq!(ops[2], imm(Alu::Sll, 8, 8, 2));
        assert_eq!(ops[5].kind, Kind::Imm(Alu::Add));
        // Of another register, of what was below zero, of what was written between the two shifts, or after the sum.
        let mut between = look_up(3, 4);
        between.insert(2, imm(Alu::Add, 8, 8, 1));
        let mut after = look_up(3, 4);
        after.insert(1, ir(Kind::Reg(Alu::Add), 8, 8, 9, 0));
        // The index itself, moved between the two.
        let moved = vec![imm(Alu::Sll, 27, 30, 32), imm(Alu::AddW, 30, 30, 4), imm(Alu::Srl, 8, 27, 30)];
        for (mut ops, index) in [(look_up(3, 4), 29), (look_up(-1, 4), 30), (between, 30), (after, 30), (moved, 30)] {
            let shift = |ops: &[Ir]| ops.iter().filter(|ir| ir.kind == Kind::Imm(Alu::Srl)).count();
            widen(&mut ops, &[index]);
            assert_eq!(shift(&ops), 1);
        }
    }
}

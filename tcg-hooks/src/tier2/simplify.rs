//! What tier 2 does before values get registers: idioms of several instructions, and ops that nothing asks for.
use super::{register, roles, webs};
use crate::ir::{Alu, Bits, Ir, Kind, Region};

/// How many ops back the parts of an idiom are looked for.
const REACH: usize = 40;

/// A shift by an immediate, as a part of a rotation: of which register, by how much to the right, in 32 bits?
fn part(ir: &Ir) -> Option<(u8, u32, bool, bool)> {
    let (left, narrow) = match ir.kind {
        Kind::Imm(Alu::Sll) => (true, false),
        Kind::Imm(Alu::Srl) => (false, false),
        Kind::Imm(Alu::SllW) => (true, true),
        Kind::Imm(Alu::SrlW) => (false, true),
        _ => return None,
    };
    let bits = if narrow { 32 } else { 64 };
    let n = ir.imm as u32 & (bits - 1);
    (n != 0).then_some((ir.a, if left { bits - n } else { n }, narrow, left))
}

/// `srliw t, x, n ; slliw u, x, 32 - n ; or d, t, u` is `d = x` rotated. In some the second shift overwrites `x`; then it is
/// rotated there, if nothing looks in between.
fn rotation(ops: &mut [Ir], j: usize) {
    let Ir { kind: Kind::Reg(Alu::Or | Alu::Xor | Alu::Add), rd, a, b, .. } = ops[j] else { return };
    let from = j.saturating_sub(REACH);
    let maker = |r: u8| (from..j).rev().find(|&i| roles(&ops[i]).writes == Some(r));
    let (Some(x), Some(y)) = (register(a).and_then(maker), register(b).and_then(maker)) else { return };
    let (Some(p), Some(q)) = (part(&ops[x]), part(&ops[y])) else { return };
    let ((source, n, narrow, left), first, last) = (p, x.min(y), x.max(y));
    let same = a != b && (source, n, narrow) == (q.0, q.1, q.2) && left != q.3;
    let stays = |to: usize| (first..to).all(|i| roles(&ops[i]).writes != Some(source));
    if !same || register(source).is_none() {
        return;
    }
    let op = if narrow { Bits::Roriw } else { Bits::Rori };
    let rotated = Ir { kind: Kind::Bits(op), rd, a: source, b: 0, site: 0, imm: n.into() };
    if stays(j) {
        ops[j] = rotated;
    } else if stays(last) && ops[last].rd == source && rd == source {
        let quiet = ops[last + 1..j].iter().all(|ir| {
            let roles = roles(ir);
            !roles.site && roles.writes != Some(source) && !roles.reads.contains(&Some(source))
        });
        if quiet {
            ops[last] = rotated;
            ops[j] = Ir { kind: Kind::Mov, rd, a: rd, ..rotated };
        }
    }
}

/// `slli t, x, n ; add d, t, y` is one op for n of 1 to 3, and `slli t, x, 32 ; srli t, t, 32 - n ; add d, t, y` one for an index that was 32
/// bits wide: compilers without Zba write them so. The shifts stay if something else asks for them.
fn scaled(ops: &mut [Ir], j: usize) {
    let Ir { kind: Kind::Reg(Alu::Add), rd, a, b, .. } = ops[j] else { return };
    let from = j.saturating_sub(REACH);
    let maker = |r: u8, end: usize| (from..end).rev().find(|&i| roles(&ops[i]).writes == Some(r));
    for (index, base) in [(b, a), (a, b)] {
        let Some(i) = register(index).and_then(|r| maker(r, j)) else { continue };
        let (x, by, first, wide) = match part(&ops[i]) {
            Some((x, n, false, true)) => (x, 64 - n, i, true),
            Some((x, n, false, false)) => match maker(x, i).map(|k| (k, part(&ops[k]))) {
                Some((k, Some((x, 32, false, true)))) if n <= 32 => (x, 32 - n, k, false),
                _ => continue,
            },
            _ => continue,
        };
        let op = match (by, wide) {
            (1, true) => Bits::Sh1add,
            (2, true) => Bits::Sh2add,
            (3, true) => Bits::Sh3add,
            (0, false) => Bits::AddUw,
            (1, false) => Bits::Sh1addUw,
            (2, false) => Bits::Sh2addUw,
            (3, false) => Bits::Sh3addUw,
            _ => continue,
        };
        if register(x).is_some() && (first..j).all(|i| roles(&ops[i]).writes != Some(x)) {
            ops[j] = Ir { kind: Kind::Bits(op), rd, a: x, b: base, site: 0, imm: 0 };
            return;
        }
    }
}

/// `slli t, x, 48 ; srli d, t, 48` is `zext.h`, and so on: compilers without Zbb write extensions so. In most the first shift
/// overwrites `x`: then it is done there.
fn extension(ops: &mut [Ir], j: usize) {
    let Ir { kind: Kind::Imm(right @ (Alu::Srl | Alu::Sra)), rd, a, imm, .. } = ops[j] else { return };
    let from = j.saturating_sub(REACH);
    let Some(i) = register(a).and_then(|a| (from..j).rev().find(|&i| roles(&ops[i]).writes == Some(a))) else { return };
    let Ir { kind: Kind::Imm(Alu::Sll), a: x, imm: left, .. } = ops[i] else { return };
    let (kind, imm) = match (left, right) {
        _ if left != imm || register(x).is_none() => return,
        (48, Alu::Srl) => (Kind::Bits(Bits::ZextH), 0),
        (48, _) => (Kind::Bits(Bits::SextH), 0),
        (56, Alu::Srl) => (Kind::Imm(Alu::And), 0xff),
        (56, _) => (Kind::Bits(Bits::SextB), 0),
        (32, Alu::Srl) => (Kind::Bits(Bits::AddUw), 0),
        (32, _) => (Kind::Imm(Alu::AddW), 0),
        _ => return,
    };
    let extended = Ir { kind, rd, a: x, b: 0, site: 0, imm };
    let quiet = |ir: &Ir| {
        let roles = roles(ir);
        !roles.site && roles.writes != Some(x) && !roles.reads.contains(&Some(x))
    };
    if ops[i..j].iter().all(|ir| roles(ir).writes != Some(x)) {
        ops[j] = extended;
    } else if ops[i].rd == x && rd == x && ops[i + 1..j].iter().all(quiet) {
        ops[i] = extended;
        ops[j] = Ir { kind: Kind::Mov, rd, a: rd, b: 0, site: 0, imm: 0 };
    }
}

/// Does it nothing but write its register?
pub(super) fn is_pure(ir: &Ir) -> bool {
    matches!(
        ir.kind,
        Kind::Li | Kind::Mov | Kind::Reg(_) | Kind::Imm(_) | Kind::Bits(_) | Kind::ReadState | Kind::LoadFast(..)
    )
}

/// The region with fewer ops.
pub(super) fn simplify(region: &mut Region) {
    for block in &region.blocks {
        let ops = &mut region.ops[block.first as usize..block.end as usize];
        for j in 0..ops.len() {
            rotation(ops, j);
            scaled(ops, j);
            extension(ops, j);
        }
    }
    sweep(region);
}

/// Drops what nothing asks for; the ops are in the order of the blocks then.
pub(super) fn sweep(region: &mut Region) {
    let dead = webs::dead(region, is_pure);
    let ops = std::mem::take(&mut region.ops);
    region.ops.reserve(ops.len());
    for block in &mut region.blocks {
        let (first, end) = (block.first as usize, block.end as usize);
        block.first = region.ops.len() as u32;
        for (ir, dead) in ops[first..end].iter().zip(&dead[first..end]) {
            let to_itself = ir.kind == Kind::Mov && ir.rd == ir.a;
            if !dead && !to_itself {
                region.ops.push(*ir);
            }
        }
        block.end = region.ops.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ir(kind: Kind, rd: u8, a: u8, b: u8, imm: i64) -> Ir {
        Ir { kind, rd, a, b, site: 0, imm }
    }

    fn scaled_of(ops: &[Ir]) -> (Kind, u8, u8) {
        let mut ops = ops.to_vec();
        (0..ops.len()).for_each(|j| scaled(&mut ops, j));
        let last = ops[ops.len() - 1];
        (last.kind, last.a, last.b)
    }

    #[test]
    fn two_shifts_there_and_back_are_one_extension_wherever_the_first_left_its_result() {
        let shift = |op, rd, a, by| ir(Kind::Imm(op), rd, a, 0, by);
        for (by, right, kind, imm) in [
            (48, Alu::Srl, Kind::Bits(Bits::ZextH), 0),
            (48, Alu::Sra, Kind::Bits(Bits::SextH), 0),
            (56, Alu::Srl, Kind::Imm(Alu::And), 0xff),
            (56, Alu::Sra, Kind::Bits(Bits::SextB), 0),
            (32, Alu::Srl, Kind::Bits(Bits::AddUw), 0),
            (32, Alu::Sra, Kind::Imm(Alu::AddW), 0),
        ] {
            let mut ops = [shift(Alu::Sll, 6, 5, by), shift(right, 7, 6, by)];
            extension(&mut ops, 1);
            assert_eq!(ops, [shift(Alu::Sll, 6, 5, by), ir(kind, 7, 5, 0, imm)]);
            // Over itself.
            let mut ops = [shift(Alu::Sll, 5, 5, by), shift(right, 5, 5, by)];
            extension(&mut ops, 1);
            assert_eq!((ops[0], ops[1].kind), (ir(kind, 5, 5, 0, imm), Kind::Mov));
        }
        // By other distances; or the first result is read in between, or goes elsewhere; or what was shifted is another by then.
        let left = |rd| shift(Alu::Sll, rd, 5, 48);
        for ops in [
            vec![left(6), shift(Alu::Srl, 7, 6, 47)],
            vec![left(5), shift(Alu::Add, 8, 5, 1), shift(Alu::Srl, 5, 5, 48)],
            vec![left(5), shift(Alu::Srl, 6, 5, 48)],
            vec![left(6), shift(Alu::Add, 5, 5, 1), shift(Alu::Srl, 7, 6, 48)],
        ] {
            let mut after = ops.clone();
            extension(&mut after, ops.len() - 1);
            assert_eq!(after, ops);
        }
    }

    #[test]
    fn a_shift_by_one_to_three_and_an_addition_are_one_op() {
        let add = |a, b| ir(Kind::Reg(Alu::Add), 7, a, b, 0);
        let shift = |rd, a, n| ir(Kind::Imm(Alu::Sll), rd, a, 0, n);
        assert_eq!(scaled_of(&[shift(28, 7, 3), add(7, 28)]), (Kind::Bits(Bits::Sh3add), 7, 7));
        assert_eq!(scaled_of(&[shift(28, 6, 1), add(28, 5)]), (Kind::Bits(Bits::Sh1add), 6, 5));
        let index = [shift(28, 6, 32), ir(Kind::Imm(Alu::Srl), 28, 28, 0, 30), add(5, 28)];
        assert_eq!(scaled_of(&index), (Kind::Bits(Bits::Sh2addUw), 6, 5));
        for other in [
            &[shift(28, 6, 4), add(7, 28)][..],
            &[shift(28, 6, 3), ir(Kind::Li, 6, 0, 0, 1), add(7, 28)],
            &[shift(6, 6, 3), add(7, 6)],
            &[shift(28, 6, 3), ir(Kind::Imm(Alu::Srl), 28, 28, 0, 1), add(7, 28)],
        ] {
            assert_eq!(scaled_of(other).0, Kind::Reg(Alu::Add), "{other:?}");
        }
    }
}

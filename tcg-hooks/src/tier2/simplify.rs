//! What tier 2 does before values get registers: idioms of several instructions, and ops that nothing asks for.
use super::{register, roles, webs};
use crate::ir::{Alu, Ir, Kind, Region};
use crate::riscv::Op;

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
    let op = if narrow { Op::Roriw } else { Op::Rori };
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
        (0..ops.len()).for_each(|j| rotation(ops, j));
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

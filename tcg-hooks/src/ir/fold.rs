//! What operations come to, if their operands are known.
use super::Alu;

pub(crate) fn fold_alu(op: Alu, a: u64, b: u64) -> Option<u64> {
    let word = |v: u32| v as i32 as i64 as u64;
    Some(match op {
        Alu::Add => a.wrapping_add(b),
        Alu::Sub => a.wrapping_sub(b),
        Alu::And => a & b,
        Alu::Or => a | b,
        Alu::Xor => a ^ b,
        Alu::Sll => a << (b & 63),
        Alu::Srl => a >> (b & 63),
        Alu::Sra => ((a as i64) >> (b & 63)) as u64,
        Alu::Slt => u64::from((a as i64) < b as i64),
        Alu::Sltu => u64::from(a < b),
        Alu::AddW => word((a as u32).wrapping_add(b as u32)),
        Alu::SubW => word((a as u32).wrapping_sub(b as u32)),
        Alu::SllW => word((a as u32) << (b & 31)),
        Alu::SrlW => word((a as u32) >> (b & 31)),
        Alu::SraW => word(((a as i32) >> (b & 31)) as u32),
        _ => return None,
    })
}

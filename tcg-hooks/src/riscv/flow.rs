//! Where instructions go, and what they compare.
use super::{Insn, Op};
use crate::cpu::CpuState;
use crate::guest::Goes;

/// What stands for no instruction.
pub(crate) const NOTHING: Insn = Insn::illegal(0, 4);

/// Where control goes by it, if not simply on.
#[inline]
pub(crate) fn of(insn: &Insn) -> Option<Goes> {
    match insn.op {
        Op::Jal => Some(Goes::Jump),
        Op::Jalr => Some(Goes::Indirect),
        op if op.is_branch() => Some(Goes::Branch),
        _ => None,
    }
}

/// Where a jump at `cpu.pc` goes.
pub(crate) fn target(cpu: &CpuState, insn: &Insn) -> u64 {
    match insn.op {
        Op::Jalr => cpu.x[usize::from(insn.rs1 & 31)].wrapping_add(insn.imm64()) & !1,
        _ => insn.target(cpu.pc),
    }
}

/// Where it may go, if it names a place.
pub(crate) fn names(insn: &Insn, pc: u64) -> Option<u64> {
    matches!(of(insn), Some(Goes::Branch | Goes::Jump)).then(|| insn.target(pc))
}

/// Does it compare two values?
pub(crate) fn compares(insn: &Insn) -> bool {
    insn.op.is_branch() || matches!(insn.op, Op::Slt | Op::Sltu | Op::Slti | Op::Sltiu)
}

/// What it compares, if it does.
pub(crate) fn compared(x: &[u64; 32], insn: &Insn) -> [u64; 2] {
    let [a, b] = [insn.rs1, insn.rs2].map(|n| x[usize::from(n & 31)]);
    [a, if matches!(insn.op, Op::Slti | Op::Sltiu) { insn.imm64() } else { b }]
}

/// Of a jump: does it keep where it came from, by the hints of the manual?
pub(crate) fn keeps_return(insn: &Insn) -> bool {
    links(insn.rd)
}

/// A register that links, by the hints of the manual.
const fn links(register: u8) -> bool {
    register == 1 || register == 5
}

/// Does it call, or return?
pub(crate) fn is_call(insn: &Insn) -> bool {
    match insn.op {
        Op::Jal => links(insn.rd),
        Op::Jalr => links(insn.rd) || links(insn.rs1),
        _ => false,
    }
}

/// Does it return? To link, and to jump to another register that links, is both.
pub(crate) fn is_return(insn: &Insn) -> bool {
    insn.op == Op::Jalr && links(insn.rs1) && insn.rd != insn.rs1
}

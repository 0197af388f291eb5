//! Integer arithmetic: I and M; what is neither is in `bits`.
use super::get;
use crate::cpu::CpuState;
use crate::riscv::decode::Insn;
use crate::riscv::opcodes::{Format, Op};

/// What the instruction writes to `rd`.
pub(super) fn value(cpu: &CpuState, insn: &Insn) -> u64 {
    let a = get(cpu, insn.rs1);
    let b = if insn.op.format() == Format::R { get(cpu, insn.rs2) } else { insn.imm64() };
    match insn.op {
        Op::Lui => b,
        Op::Auipc => cpu.pc.wrapping_add(b),
        _ => operate(insn.op, a, b),
    }
}

/// A W form: works on the low words, and extends the sign of the result.
fn word(value: u32) -> u64 {
    i64::from(value as i32) as u64
}

/// The operation on two operands; register and immediate forms are the same here. Only the low five or six bits of
/// a shift amount count. Anything that is not integer arithmetic gives 0.
pub fn operate(op: Op, a: u64, b: u64) -> u64 {
    let (sa, sb) = (a as i64, b as i64);
    let (wa, wb) = (a as u32, b as u32);
    let (swa, swb) = (wa as i32, wb as i32);
    match op {
        Op::Add | Op::Addi => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::Slt | Op::Slti => u64::from(sa < sb),
        Op::Sltu | Op::Sltiu => u64::from(a < b),
        Op::Xor | Op::Xori => a ^ b,
        Op::Or | Op::Ori => a | b,
        Op::And | Op::Andi => a & b,
        Op::Sll | Op::Slli => a << (b & 63),
        Op::Srl | Op::Srli => a >> (b & 63),
        Op::Sra | Op::Srai => (sa >> (b & 63)) as u64,
        Op::Addw | Op::Addiw => word(wa.wrapping_add(wb)),
        Op::Subw => word(wa.wrapping_sub(wb)),
        Op::Sllw | Op::Slliw => word(wa << (wb & 31)),
        Op::Srlw | Op::Srliw => word(wa >> (wb & 31)),
        Op::Sraw | Op::Sraiw => word((swa >> (wb & 31)) as u32),
        Op::Mul => a.wrapping_mul(b),
        Op::Mulh => ((i128::from(sa) * i128::from(sb)) >> 64) as u64,
        Op::Mulhsu => ((i128::from(sa) * i128::from(b)) >> 64) as u64,
        Op::Mulhu => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        // Division never traps: by zero it gives all ones and the dividend as remainder; the one quotient that does
        // not fit wraps, with remainder 0.
        Op::Div if b == 0 => u64::MAX,
        Op::Div => sa.wrapping_div(sb) as u64,
        Op::Divu => a.checked_div(b).unwrap_or(u64::MAX),
        Op::Rem if b == 0 => a,
        Op::Rem => sa.wrapping_rem(sb) as u64,
        Op::Remu => a.checked_rem(b).unwrap_or(a),
        Op::Mulw => word(wa.wrapping_mul(wb)),
        Op::Divw if wb == 0 => u64::MAX,
        Op::Divw => word(swa.wrapping_div(swb) as u32),
        Op::Divuw => word(wa.checked_div(wb).unwrap_or(u32::MAX)),
        Op::Remw if wb == 0 => word(wa),
        Op::Remw => word(swa.wrapping_rem(swb) as u32),
        Op::Remuw => word(wa.checked_rem(wb).unwrap_or(wa)),
        _ => super::bits::operate(op, a, b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: u64 = 1 << 63;
    const MINW: u64 = 0xffff_ffff_8000_0000;
    const ONES: u64 = u64::MAX;

    #[test]
    fn division_by_zero_and_overflow_have_values() {
        let cases = [
            (Op::Div, 7, 0, ONES),
            (Op::Div, MIN, ONES, MIN),
            (Op::Div, (-7i64) as u64, 2, (-3i64) as u64),
            (Op::Divu, 7, 0, ONES),
            (Op::Divu, MIN, ONES, 0),
            (Op::Rem, 7, 0, 7),
            (Op::Rem, MIN, ONES, 0),
            (Op::Rem, (-7i64) as u64, 2, ONES),
            (Op::Remu, MIN, 0, MIN),
            (Op::Divw, 0x1_0000_0007, 0, ONES),
            (Op::Divw, 0x8000_0000, ONES, MINW),
            (Op::Divw, 0xdead_0000_0000_0008, 0x1234_0000_0000_0002, 4),
            (Op::Divuw, 5, 1 << 32, ONES),
            (Op::Divuw, 0x8000_0000, 1, MINW),
            (Op::Remw, 0x8000_0000, ONES, 0),
            (Op::Remw, 0x1_8000_0001, 1 << 40, 0xffff_ffff_8000_0001),
            (Op::Remuw, 0x8000_0001, 0, 0xffff_ffff_8000_0001),
        ];
        for (op, a, b, want) in cases {
            assert_eq!(operate(op, a, b), want, "{op:?} {a:#x} {b:#x}");
        }
    }

    #[test]
    fn high_products_know_their_signs() {
        assert_eq!(operate(Op::Mulh, ONES, ONES), 0);
        assert_eq!(operate(Op::Mulh, MIN, MIN), 1 << 62);
        assert_eq!(operate(Op::Mulhu, ONES, ONES), ONES - 1);
        assert_eq!(operate(Op::Mulhsu, ONES, ONES), ONES);
        assert_eq!(operate(Op::Mulhsu, MIN, ONES), MIN);
        assert_eq!(operate(Op::Mulhsu, 2, MIN), 1);
        assert_eq!(operate(Op::Mulw, 0x1_0000_ffff, 0x1_0001), 0xffff_ffff_ffff_ffff);
    }

    #[test]
    fn shifts_look_at_their_low_bits_only() {
        assert_eq!(operate(Op::Sll, 1, 64 + 5), 32);
        assert_eq!(operate(Op::Sra, MIN, 63), ONES);
        assert_eq!(operate(Op::Srl, MIN, 63), 1);
        assert_eq!(operate(Op::Sllw, 1, 63), MINW);
        assert_eq!(operate(Op::Srlw, MINW, 32), MINW);
        assert_eq!(operate(Op::Srlw, MINW, 4), 0x0800_0000);
        assert_eq!(operate(Op::Sraw, 0x8000_0000, 31), ONES);
        assert_eq!(operate(Op::Sraiw, 0x7000_0000_8000_0000, 4), 0xffff_ffff_f800_0000);
    }

    #[test]
    fn word_forms_extend_the_sign() {
        assert_eq!(operate(Op::Addiw, 0x7fff_ffff, 1), MINW);
        assert_eq!(operate(Op::Addw, ONES, 1), 0);
        assert_eq!(operate(Op::Subw, 0, 1), ONES);
        assert_eq!(operate(Op::Sltu, 0, ONES), 1);
        assert_eq!(operate(Op::Slt, 0, ONES), 0);
    }
}

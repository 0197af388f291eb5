//! Bit manipulation: Zba, Zbb, Zbc, Zbs, and the two of Zicond.
use crate::riscv::opcodes::Op;

/// The operation on two operands, as in [`super::int::operate`]. Anything that is not one of these gives 0.
pub(super) fn operate(op: Op, a: u64, b: u64) -> u64 {
    let word = |value: u32| value as i32 as u64;
    let (low, wa, bit) = (a & 0xffff_ffff, a as u32, 1 << (b & 63));
    match op {
        Op::AddUw => low.wrapping_add(b),
        Op::Sh1add => (a << 1).wrapping_add(b),
        Op::Sh2add => (a << 2).wrapping_add(b),
        Op::Sh3add => (a << 3).wrapping_add(b),
        Op::Sh1addUw => (low << 1).wrapping_add(b),
        Op::Sh2addUw => (low << 2).wrapping_add(b),
        Op::Sh3addUw => (low << 3).wrapping_add(b),
        Op::SlliUw => low << (b & 63),
        Op::Andn => a & !b,
        Op::Orn => a | !b,
        Op::Xnor => !(a ^ b),
        Op::Max => (a as i64).max(b as i64) as u64,
        Op::Maxu => a.max(b),
        Op::Min => (a as i64).min(b as i64) as u64,
        Op::Minu => a.min(b),
        Op::Rol => a.rotate_left(b as u32 & 63),
        Op::Ror | Op::Rori => a.rotate_right(b as u32 & 63),
        Op::Rolw => word(wa.rotate_left(b as u32 & 31)),
        Op::Rorw | Op::Roriw => word(wa.rotate_right(b as u32 & 31)),
        Op::Clz => a.leading_zeros().into(),
        Op::Ctz => a.trailing_zeros().into(),
        Op::Cpop => a.count_ones().into(),
        Op::Clzw => wa.leading_zeros().into(),
        Op::Ctzw => wa.trailing_zeros().into(),
        Op::Cpopw => wa.count_ones().into(),
        Op::SextB => a as i8 as u64,
        Op::SextH => a as i16 as u64,
        Op::ZextH => u64::from(a as u16),
        Op::OrcB => u64::from_le_bytes(a.to_le_bytes().map(|byte| if byte == 0 { 0 } else { 0xff })),
        Op::Rev8 => a.swap_bytes(),
        Op::Clmul => carryless(a, b) as u64,
        Op::Clmulh => (carryless(a, b) >> 64) as u64,
        Op::Clmulr => (carryless(a, b) >> 63) as u64,
        Op::Bclr | Op::Bclri => a & !bit,
        Op::Bext | Op::Bexti => a >> (b & 63) & 1,
        Op::Binv | Op::Binvi => a ^ bit,
        Op::Bset | Op::Bseti => a | bit,
        Op::CzeroEqz => {
            if b == 0 {
                0
            } else {
                a
            }
        }
        Op::CzeroNez => {
            if b != 0 {
                0
            } else {
                a
            }
        }
        _ => 0,
    }
}

/// The product of two polynomials over the field of two elements.
fn carryless(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 != 0).fold(0, |sum, i| sum ^ u128::from(a) << i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_manual_puts_them() {
        let a = 0xf00d_0000_8000_1200;
        let cases = [
            (Op::AddUw, a, 1, 0x8000_1201),
            (Op::Sh3addUw, a, 1, 0x4_0000_9001),
            (Op::SlliUw, a, 4, 0x8_0001_2000),
            (Op::Sh1add, a, 0, 0xe01a_0001_0000_2400),
            (Op::Clz, 0, 0, 64),
            (Op::Clzw, a, 0, 0),
            (Op::Ctzw, 1 << 32, 0, 32),
            (Op::Cpopw, a, 0, 3),
            (Op::SextB, 0x80, 0, !0x7f),
            (Op::OrcB, a, 0, 0xffff_0000_ff00_ff00),
            (Op::Rev8, a, 0, 0x0012_0080_0000_0df0),
            (Op::Rolw, 0x8000_0001, 33, 3),
            (Op::Roriw, 1, 1, 0xffff_ffff_8000_0000),
            (Op::Clmul, 3, 3, 5),
            (Op::Clmulh, !0, 2, 1),
            (Op::Clmulr, 1 << 63, 2, 2),
            (Op::Bext, a, 63 + 64, 1),
            (Op::Bclri, a, 63, 0x700d_0000_8000_1200),
            (Op::Min, a, 1, a),
            (Op::Minu, a, 1, 1),
            (Op::CzeroEqz, a, 0, 0),
            (Op::CzeroNez, a, 0, a),
        ];
        for (op, a, b, want) in cases {
            assert_eq!(operate(op, a, b), want, "{op:?} {a:#x} {b:#x}");
        }
    }
}

//! Bit manipulation and Zicond outside the oracle: tier 0, and what emitted code leaves to Rust.
use super::decode::Insn;
use super::opcodes::{Format, Op};

/// What the instruction writes to `rd`, if it is one of Zba, Zbb, Zbc, Zbs and Zicond; `a` and `b` are its registers.
pub(crate) fn value(insn: &Insn, a: u64, b: u64) -> Option<u64> {
    let b = if insn.op.format() == Format::R { b } else { insn.imm64() };
    let (n, w) = ((b & 63) as u32, (b & 31) as u32);
    let sext = |v: u32| i64::from(v as i32) as u64;
    let zext = a << 32 >> 32;
    Some(match insn.op {
        Op::AddUw => b.wrapping_add(zext),
        Op::Sh1add => b.wrapping_add(a.wrapping_mul(2)),
        Op::Sh2add => b.wrapping_add(a.wrapping_mul(4)),
        Op::Sh3add => b.wrapping_add(a.wrapping_mul(8)),
        Op::Sh1addUw => b.wrapping_add(zext << 1),
        Op::Sh2addUw => b.wrapping_add(zext << 2),
        Op::Sh3addUw => b.wrapping_add(zext << 3),
        Op::SlliUw => zext << n,
        Op::Andn => a & !b,
        Op::Orn => a | !b,
        Op::Xnor => a ^ !b,
        Op::Max if (a as i64) < b as i64 => b,
        Op::Maxu if a < b => b,
        Op::Min if b as i64 > a as i64 => a,
        Op::Minu if b > a => a,
        Op::Max | Op::Maxu => a,
        Op::Min | Op::Minu => b,
        Op::Rol => a << n | a.checked_shr(64 - n).unwrap_or(0),
        Op::Ror | Op::Rori => a >> n | a.checked_shl(64 - n).unwrap_or(0),
        Op::Rolw => sext((a as u32) << w | (a as u32).checked_shr(32 - w).unwrap_or(0)),
        Op::Rorw | Op::Roriw => sext((a as u32) >> w | (a as u32).checked_shl(32 - w).unwrap_or(0)),
        Op::Clz => a.leading_zeros().into(),
        Op::Ctz => a.trailing_zeros().into(),
        Op::Cpop => a.count_ones().into(),
        Op::Clzw => (a as u32).leading_zeros().into(),
        Op::Ctzw => (a as u32).trailing_zeros().into(),
        Op::Cpopw => (a as u32).count_ones().into(),
        Op::SextB => ((a << 56) as i64 >> 56) as u64,
        Op::SextH => ((a << 48) as i64 >> 48) as u64,
        Op::ZextH => a & 0xffff,
        Op::OrcB => {
            // The top bit of each byte that is not zero, spread over it.
            let low = 0x7f7f_7f7f_7f7f_7f7f;
            let tops = (((a & low) + low) | a) & !low;
            (tops >> 7) * 0xff
        }
        Op::Rev8 => a.swap_bytes(),
        Op::Clmul => clmul(a, b),
        // The product mirrored is the product of the mirrored, a place further.
        Op::Clmulh => clmul(a.reverse_bits(), b.reverse_bits()).reverse_bits() >> 1,
        Op::Clmulr => clmul(a.reverse_bits(), b.reverse_bits()).reverse_bits(),
        Op::Bclr | Op::Bclri => a & !(1 << n),
        Op::Bext | Op::Bexti => a >> n & 1,
        Op::Binv | Op::Binvi => a ^ 1 << n,
        Op::Bset | Op::Bseti => a | 1 << n,
        Op::CzeroEqz => a & (u64::from(b == 0).wrapping_sub(1)),
        Op::CzeroNez => a & (u64::from(b != 0).wrapping_sub(1)),
        _ => return None,
    })
}

/// The lower half of a product without carries.
fn clmul(a: u64, mut b: u64) -> u64 {
    let (mut product, mut shifted) = (0, a);
    while b != 0 {
        product ^= shifted & (b & 1).wrapping_neg();
        shifted <<= 1;
        b >>= 1;
    }
    product
}

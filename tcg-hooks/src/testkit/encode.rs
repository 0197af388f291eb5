//! An instruction back to bits: the decode table read the other way.
use crate::riscv::opcodes::{Format, Op, PATTERNS};

/// Encodes `op`, dropping bits of the operands that have no place. Operands that the format lacks are ignored;
/// for [`Op::Illegal`], `imm` is the word itself.
pub fn encode(op: Op, rd: u8, rs1: u8, rs2: u8, imm: i32) -> u32 {
    let Some(pattern) = PATTERNS.get(op as usize) else { return imm as u32 };
    let (d, a, b) = (u32::from(rd & 31) << 7, u32::from(rs1 & 31) << 15, u32::from(rs2 & 31) << 20);
    let i = imm as u32;
    let fields = match pattern.format {
        Format::U => d | i & 0xffff_f000,
        Format::J => d | i << 11 & 0x8000_0000 | i & 0xff000 | i << 9 & 0x10_0000 | i << 20 & 0x7fe0_0000,
        Format::B => a | b | i << 19 & 0x8000_0000 | i << 20 & 0x7e00_0000 | i << 7 & 0xf00 | i >> 4 & 0x80,
        Format::Jalr | Format::Load | Format::FLoad | Format::I | Format::Csr | Format::CsrImm => d | a | i << 20,
        Format::Store | Format::FStore => a | b | i << 20 & 0xfe00_0000 | i << 7 & 0xf80,
        Format::Shift => d | a | (i & 63) << 20,
        Format::ShiftW => d | a | (i & 31) << 20,
        Format::R => d | a | b,
        Format::Amo => d | a | b | (i & 3) << 25,
        Format::Lr => d | a | (i & 3) << 25,
        Format::Fence => i << 20,
        Format::None => 0,
        Format::Unary | Format::Line => d | a,
        // The immediate is the word as it was: rm, and rs3.
        _ => i & 0xf800_7000 | d | a | b,
    };
    pattern.value | fields & !pattern.mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::decode;
    use crate::testkit::rng::Rng;

    #[test]
    fn encoding_undoes_decoding() {
        let mut rng = Rng::new(1);
        for p in PATTERNS.iter().filter(|p| !matches!(p.op, Op::Fence | Op::FenceI)) {
            for _ in 0..1000 {
                let bits = p.value | rng.bits() as u32 & !p.mask;
                if p.format.has_rounding() && matches!(bits >> 12 & 7, 5 | 6) {
                    continue;
                }
                let i = decode(bits);
                assert_eq!(encode(i.op, i.rd, i.rs1, i.rs2, i.imm), bits, "{i:?}");
            }
        }
        assert_eq!(encode(Op::Illegal, 1, 2, 3, -1), u32::MAX);
        assert_eq!(encode(Op::Fence, 0, 0, 0, 0xff), 0x0ff0_000f);
        assert_eq!(encode(Op::FenceI, 0, 0, 0, 0), 0x0000_100f);
    }
}

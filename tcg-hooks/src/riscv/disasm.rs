//! [`Insn`] to text, as objdump writes it: ABI names, the usual pseudo-instructions, branch targets as addresses.
//!
//! ```text
//!   text(insn, pc)        ret      beqz a0,80000120      csrw mtvec,t0      (a tab after the mnemonic)
//!   line(pc, bits, insn)  "80000114:   8082                 ret"            a line of a listing
//! ```
//!
//! A compressed instruction is written as what it abbreviates, since that is what it decodes to; its length shows in
//! the bytes. Symbols are the caller's: [`Insn::target`] says where a branch goes.
use super::csr;
use super::decode::Insn;
use super::opcodes::{Format, Op};
use core::fmt::{self, Display, Formatter, Write as _};

/// ABI names of the integer registers.
pub const REGISTERS: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "s2",
    "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

/// ABI names of the floating-point registers.
pub const FLOAT_REGISTERS: [&str; 32] = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4", "fa5",
    "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8", "ft9", "ft10", "ft11",
];

/// The instruction as text, if it lies at `pc`.
pub fn text(insn: &Insn, pc: u64) -> String {
    Text { insn, pc }.to_string()
}

/// A line of a listing. `bits` are the instruction's own, a halfword for a short one.
pub fn line(pc: u64, bits: u32, insn: &Insn) -> String {
    let mut out = format!("{pc:8x}:   ");
    // Writing to a String cannot fail.
    let _ = if insn.len == 2 { write!(out, "{:04x}    ", bits & 0xffff) } else { write!(out, "{bits:08x}") };
    let shown = text(insn, pc);
    let (mnemonic, operands) = shown.split_once('\t').unwrap_or((&shown, ""));
    let _ = write!(out, "   {mnemonic:<11} {operands}");
    out.truncate(out.trim_end().len());
    out
}

/// An instruction at an address, to be written with `{}`.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// What.
    pub insn: &'a Insn,
    /// Where.
    pub pc: u64,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.alias(f)? { Ok(()) } else { self.plain(f) }
    }
}

fn reg(n: u8) -> &'static str {
    REGISTERS[usize::from(n & 31)]
}

fn float_reg(n: u8) -> &'static str {
    FLOAT_REGISTERS[usize::from(n & 31)]
}

/// A rounding mode behind the operands, unless it is the one that assemblers put there unasked.
struct Mode(Insn);

impl Display for Mode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Conversions that are always exact are assembled with the first mode, the others with that of frm.
        let exact = matches!(self.0.op, Op::FcvtDS | Op::FcvtDW | Op::FcvtDWu);
        match self.0.rm() {
            0 if exact => Ok(()),
            7 if !exact => Ok(()),
            mode => write!(f, ",{}", ["rne", "rtz", "rdn", "rup", "rmm", "?", "?", "dyn"][usize::from(mode & 7)]),
        }
    }
}

/// The sets of a fence, as letters.
fn fence_set(bits: i32) -> String {
    let letters: String = (0..4).filter(|i| bits >> (3 - i) & 1 != 0).map(|i| ['i', 'o', 'r', 'w'][i]).collect();
    if letters.is_empty() { "0".into() } else { letters }
}

impl Text<'_> {
    /// Writes a pseudo-instruction, if one fits; says whether it did.
    fn alias(&self, f: &mut Formatter<'_>) -> Result<bool, fmt::Error> {
        let Insn { op, rd, rs1, rs2, imm, .. } = *self.insn;
        let (d, a, b) = (reg(rd), reg(rs1), reg(rs2));
        let target = self.insn.target(self.pc);
        match (op, rd, rs1, rs2, imm) {
            (Op::Addi, 0, 0, _, 0) => f.write_str("nop"),
            (Op::Addi, _, 0, _, _) => write!(f, "li\t{d},{imm}"),
            (Op::Addi, _, _, _, 0) => write!(f, "mv\t{d},{a}"),
            // c.mv
            (Op::Add, _, 0, _, _) if self.insn.len == 2 => write!(f, "mv\t{d},{b}"),
            (Op::Addiw, _, _, _, 0) => write!(f, "sext.w\t{d},{a}"),
            (Op::Xori, _, _, _, -1) => write!(f, "not\t{d},{a}"),
            (Op::Andi, _, _, _, 255) => write!(f, "zext.b\t{d},{a}"),
            (Op::Sub, _, 0, _, _) => write!(f, "neg\t{d},{b}"),
            (Op::Subw, _, 0, _, _) => write!(f, "negw\t{d},{b}"),
            (Op::Sltiu, _, _, _, 1) => write!(f, "seqz\t{d},{a}"),
            (Op::Sltu, _, 0, _, _) => write!(f, "snez\t{d},{b}"),
            (Op::Slt, _, _, 0, _) => write!(f, "sltz\t{d},{a}"),
            (Op::Slt, _, 0, _, _) => write!(f, "sgtz\t{d},{b}"),
            (Op::Jal, 0, ..) => write!(f, "j\t{target:x}"),
            (Op::Jal, 1, ..) => write!(f, "jal\t{target:x}"),
            (Op::Jalr, 0, 1, _, 0) => f.write_str("ret"),
            (Op::Jalr, 0, _, _, 0) => write!(f, "jr\t{a}"),
            (Op::Jalr, 0, ..) => write!(f, "jr\t{imm}({a})"),
            (Op::Jalr, 1, _, _, 0) => write!(f, "jalr\t{a}"),
            (Op::Jalr, 1, ..) => write!(f, "jalr\t{imm}({a})"),
            (Op::Beq, _, _, 0, _) => write!(f, "beqz\t{a},{target:x}"),
            (Op::Bne, _, _, 0, _) => write!(f, "bnez\t{a},{target:x}"),
            (Op::Bge, _, 0, _, _) => write!(f, "blez\t{b},{target:x}"),
            (Op::Bge, _, _, 0, _) => write!(f, "bgez\t{a},{target:x}"),
            (Op::Blt, _, _, 0, _) => write!(f, "bltz\t{a},{target:x}"),
            (Op::Blt, _, 0, _, _) => write!(f, "bgtz\t{b},{target:x}"),
            (Op::FsgnjS | Op::FsgnjD | Op::FsgnjnS | Op::FsgnjnD | Op::FsgnjxS | Op::FsgnjxD, ..) if rs1 == rs2 => {
                let (_, suffix) = op.mnemonic().split_at(op.mnemonic().len() - 1);
                let name = match op {
                    Op::FsgnjS | Op::FsgnjD => "fmv",
                    Op::FsgnjnS | Op::FsgnjnD => "fneg",
                    _ => "fabs",
                };
                write!(f, "{name}.{suffix}\t{},{}", float_reg(rd), float_reg(rs1))
            }
            (Op::AddUw, _, _, 0, _) => write!(f, "zext.w\t{d},{a}"),
            (Op::Ori, 0, ..) if matches!(imm & 31, 0 | 1 | 3) => {
                let what = ["i", "r", "", "w"][(imm & 3) as usize];
                write!(f, "prefetch.{what}\t{}({a})", imm & !31)
            }
            (Op::Fence, _, _, _, 0x0ff) => f.write_str("fence"),
            (Op::Csrrs, _, 0, _, _) => match self.insn.csr() {
                csr::num::CYCLE => write!(f, "rdcycle\t{d}"),
                csr::num::TIME => write!(f, "rdtime\t{d}"),
                csr::num::INSTRET => write!(f, "rdinstret\t{d}"),
                csr::num::FFLAGS => write!(f, "frflags\t{d}"),
                csr::num::FRM => write!(f, "frrm\t{d}"),
                csr::num::FCSR => write!(f, "frcsr\t{d}"),
                n => write!(f, "csrr\t{d},{}", csr::Name(n)),
            },
            (Op::Csrrw | Op::Csrrs | Op::Csrrc, 0, ..) => {
                write!(f, "csr{}\t{},{a}", &op.mnemonic()[4..], csr::Name(self.insn.csr()))
            }
            (Op::Csrrwi | Op::Csrrsi | Op::Csrrci, 0, ..) => {
                write!(f, "csr{}\t{},{rs1}", &op.mnemonic()[4..], csr::Name(self.insn.csr()))
            }
            _ => return Ok(false),
        }?;
        Ok(true)
    }

    /// Writes the instruction under its own name.
    fn plain(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Insn { op, rd, rs1, rs2, imm, len } = *self.insn;
        let (d, a, b) = (reg(rd), reg(rs1), reg(rs2));
        let (fd, fa, fb) = (float_reg(rd), float_reg(rs1), float_reg(rs2));
        let (name, mode) = (op.mnemonic(), Mode(*self.insn));
        match op.format() {
            Format::U => write!(f, "{name}\t{d},{:#x}", imm as u32 >> 12),
            Format::J => write!(f, "{name}\t{d},{:x}", self.insn.target(self.pc)),
            Format::B => write!(f, "{name}\t{a},{b},{:x}", self.insn.target(self.pc)),
            Format::Jalr | Format::Load => write!(f, "{name}\t{d},{imm}({a})"),
            Format::Store => write!(f, "{name}\t{b},{imm}({a})"),
            Format::I => write!(f, "{name}\t{d},{a},{imm}"),
            Format::Shift | Format::ShiftW => write!(f, "{name}\t{d},{a},{imm:#x}"),
            Format::R => write!(f, "{name}\t{d},{a},{b}"),
            Format::Amo => write!(f, "{name}{}\t{d},{b},({a})", ordering(imm)),
            Format::Lr => write!(f, "{name}{}\t{d},({a})", ordering(imm)),
            Format::Fence => match imm {
                0x833 => f.write_str("fence.tso"),
                0x010 => f.write_str("pause"),
                _ => write!(f, "{name}\t{},{}", fence_set(imm >> 4), fence_set(imm)),
            },
            Format::Unary => write!(f, "{name}\t{d},{a}"),
            Format::Addresses if rs1 | rs2 == 0 => f.write_str(name),
            Format::Addresses if rs2 == 0 => write!(f, "{name}\t{a}"),
            Format::Addresses => write!(f, "{name}\t{a},{b}"),
            Format::Line => write!(f, "{name}\t({a})"),
            Format::FLoad => write!(f, "{name}\t{fd},{imm}({a})"),
            Format::FStore => write!(f, "{name}\t{fb},{imm}({a})"),
            Format::F4 => write!(f, "{name}\t{fd},{fa},{fb},{}{mode}", float_reg(self.insn.rs3())),
            Format::F3 => write!(f, "{name}\t{fd},{fa},{fb}{mode}"),
            Format::F3Exact => write!(f, "{name}\t{fd},{fa},{fb}"),
            Format::F2 => write!(f, "{name}\t{fd},{fa}{mode}"),
            Format::FCompare => write!(f, "{name}\t{d},{fa},{fb}"),
            Format::FToX => write!(f, "{name}\t{d},{fa}{mode}"),
            Format::FToXExact => write!(f, "{name}\t{d},{fa}"),
            Format::XToF => write!(f, "{name}\t{fd},{a}{mode}"),
            Format::XToFExact => write!(f, "{name}\t{fd},{a}"),
            Format::Csr => write!(f, "{name}\t{d},{},{a}", csr::Name(self.insn.csr())),
            Format::CsrImm => write!(f, "{name}\t{d},{},{rs1}", csr::Name(self.insn.csr())),
            Format::None if op == Op::Illegal => {
                let width = 2 + 2 * usize::from(len);
                write!(f, ".{len}byte\t{:#0width$x}", self.insn.illegal_bits())
            }
            Format::None => f.write_str(name),
        }
    }
}

fn ordering(aq_rl: i32) -> &'static str {
    ["", ".rl", ".aq", ".aqrl"][(aq_rl & 3) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::riscv::{compressed::expand, decode};

    #[test]
    fn instructions_read_as_objdump_writes_them() {
        let cases = [
            (0x0000_0297, "auipc\tt0,0x0"),
            (0x0280_0513, "li\ta0,40"),
            (0x0005_0593, "mv\ta1,a0"),
            (0xff5f_f06f, "j\t7ffffff4"),
            (0x00c5_8463, "beq\ta1,a2,80000008"),
            (0xfe05_0ee3, "beqz\ta0,7ffffffc"),
            (0x0185_3823, "sd\ts8,16(a0)"),
            (0xff85_3503, "ld\ta0,-8(a0)"),
            (0x3052_9073, "csrw\tmtvec,t0"),
            (0x3460_2573, "csrr\ta0,0x346"),
            (0xc000_2573, "rdcycle\ta0"),
            (0x3004_7073, "csrci\tmstatus,8"),
            (0x0330_000f, "fence\trw,rw"),
            (0x8330_000f, "fence.tso"),
            (0x0ff0_000f, "fence"),
            (0x0000_100f, "fence.i"),
            (0x06b5_262f, "amoadd.w.aqrl\ta2,a1,(a0)"),
            (0x1405_352f, "lr.d.aq\ta0,(a0)"),
            (0x18c5_b5af, "sc.d\ta1,a2,(a1)"),
            (0x3020_0073, "mret"),
            (0x0000_8067, "ret"),
            (0x0220_f1d3, "fadd.d\tft3,ft1,ft2"),
            (0x1a20_a1d3, "fdiv.d\tft3,ft1,ft2,rdn"),
            (0x22b5_8553, "fmv.d\tfa0,fa1"),
            (0xc205_1553, "fcvt.w.d\ta0,fa0,rtz"),
            (0xd205_0553, "fcvt.d.w\tfa0,a0"),
            (0x6ac5_f543, "fmadd.d\tfa0,fa1,fa2,fa3"),
            (0x0085_3507, "fld\tfa0,8(a0)"),
            (0x00a5_2427, "fsw\tfa0,8(a0)"),
            (0x0030_2573, "frcsr\ta0"),
            (0x20b5_2533, "sh1add\ta0,a0,a1"),
            (0x0805_453b, "zext.h\ta0,a0"),
            (0x0045_200f, "cbo.zero\t(a0)"),
            (0x0015_6013, "prefetch.r\t0(a0)"),
            (0xffff_ffff, ".4byte\t0xffffffff"),
        ];
        for (bits, want) in cases {
            assert_eq!(text(&decode(bits), 0x8000_0000), want, "{bits:#010x}");
        }
        assert_eq!(text(&expand(0x0000), 0), ".2byte\t0x0000");
        assert_eq!(text(&expand(0x852e), 0), "mv\ta0,a1");
        assert_eq!(line(0x8000_0114, 0x8082, &expand(0x8082)), "80000114:   8082       ret");
        assert_eq!(line(0x1000, 0x0280_0513, &decode(0x0280_0513)), "    1000:   02800513   li          a0,40");
    }

    #[test]
    fn any_word_has_a_text() {
        let mut s = 1u64;
        for _ in 0..200_000 {
            s = s.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            assert!(!text(&decode((s >> 32) as u32 | 3), s).is_empty());
            assert!(!text(&expand((s >> 48) as u16), s).is_empty());
        }
    }
}

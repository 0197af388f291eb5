//! The instruction set, once: a table of bit patterns that everybody else reads.
//!
//! ```text
//!   instructions! { Name  "mnemonic"  "bit pattern"  Format; ... }
//!        ├─ enum Op                  the translator, the oracle and the tests match on it
//!        ├─ PATTERNS: [Pattern; N]   decode.rs folds it, at compile time, into its two-level table
//!        ├─ Op::mnemonic, format     disasm.rs prints by them
//!        └─ Op::ALL                  testkit picks from it and fills the free bits
//! ```
//!
//! In a pattern `0` and `1` must match, `-` is free and blanks are for the reader. The order of the rows is the
//! order of the manual; no two rows may match the same word (a test here asks each pair).

use notdirty_softmmu::AmoOp;

/// How an instruction's operands lie in its 32 bits, and hence how it is written in assembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// `rd, imm20`; the immediate is already shifted by twelve.
    U,
    /// `rd, target`.
    J,
    /// `rd, imm(rs1)`: `jalr`.
    Jalr,
    /// `rs1, rs2, target`.
    B,
    /// `rd, imm(rs1)`: loads.
    Load,
    /// `rs2, imm(rs1)`: stores.
    Store,
    /// `rd, rs1, imm`.
    I,
    /// `rd, rs1, shamt` with six bits of shift amount.
    Shift,
    /// `rd, rs1, shamt` with five bits of shift amount.
    ShiftW,
    /// `rd, rs1, rs2`.
    R,
    /// `rd, rs2, (rs1)`; bits 1 and 0 of the immediate are `aq` and `rl`.
    Amo,
    /// `rd, (rs1)`; otherwise like [`Format::Amo`].
    Lr,
    /// `pred, succ`; the immediate is the upper twelve bits.
    Fence,
    /// No operands; free bits are ignored.
    None,
    /// `rd, csr, rs1`; the CSR's number is the immediate.
    Csr,
    /// `rd, csr, uimm`; the CSR's number is the immediate, the five-bit operand sits in `rs1`.
    CsrImm,
}

/// One row of the table: a word `w` is this instruction when `w & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    /// Which bits the encoding fixes.
    pub mask: u32,
    /// What those bits are.
    pub value: u32,
    /// The instruction.
    pub op: Op,
    /// Where its operands are.
    pub format: Format,
}

/// Reads a pattern string; anything but 32 bits of it stops the compilation.
const fn pattern(text: &str, op: Op, format: Format) -> Pattern {
    let bytes = text.as_bytes();
    let (mut mask, mut value, mut bits, mut i) = (0u32, 0u32, 0, 0);
    while i < bytes.len() {
        let (fixed, one) = match bytes[i] {
            b'0' => (1, 0),
            b'1' => (1, 1),
            b'-' => (0, 0),
            b' ' => {
                i += 1;
                continue;
            }
            _ => panic!("a pattern is made of 0, 1, - and blanks"),
        };
        mask = mask << 1 | fixed;
        value = value << 1 | one;
        bits += 1;
        i += 1;
    }
    assert!(bits == 32, "a pattern has 32 bits");
    Pattern { mask, value, op, format }
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident $mnemonic:literal $bits:literal $format:ident;)*) => {
        /// What an instruction does. Compressed forms decode to the operation they abbreviate.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Op {
            $(#[doc = concat!("`", $mnemonic, "`")] $(#[$doc])* $name,)*
            /// No instruction of ours; the immediate holds the bits that were fetched, for `mtval`.
            Illegal,
        }

        impl Op {
            /// Every real instruction, in the order of the table (so `ALL[op as usize] == op`).
            pub const ALL: &'static [Op] = &[$(Op::$name),*];

            /// The assembler's name for it.
            pub const fn mnemonic(self) -> &'static str {
                match self {
                    $(Op::$name => $mnemonic,)*
                    Op::Illegal => "illegal",
                }
            }

            /// Its operands' layout; [`Op::Illegal`] has none.
            pub const fn format(self) -> Format {
                match self {
                    $(Op::$name => Format::$format,)*
                    Op::Illegal => Format::None,
                }
            }
        }

        /// One pattern for each instruction, indexed by `op as usize`.
        pub const PATTERNS: &[Pattern] = &[$(pattern($bits, Op::$name, Format::$format)),*];
    };
}

instructions! {
    // RV32I and RV64I
    Lui       "lui"        "------- ----- ----- --- ----- 0110111" U;
    Auipc     "auipc"      "------- ----- ----- --- ----- 0010111" U;
    Jal       "jal"        "------- ----- ----- --- ----- 1101111" J;
    Jalr      "jalr"       "------- ----- ----- 000 ----- 1100111" Jalr;
    Beq       "beq"        "------- ----- ----- 000 ----- 1100011" B;
    Bne       "bne"        "------- ----- ----- 001 ----- 1100011" B;
    Blt       "blt"        "------- ----- ----- 100 ----- 1100011" B;
    Bge       "bge"        "------- ----- ----- 101 ----- 1100011" B;
    Bltu      "bltu"       "------- ----- ----- 110 ----- 1100011" B;
    Bgeu      "bgeu"       "------- ----- ----- 111 ----- 1100011" B;
    Lb        "lb"         "------- ----- ----- 000 ----- 0000011" Load;
    Lh        "lh"         "------- ----- ----- 001 ----- 0000011" Load;
    Lw        "lw"         "------- ----- ----- 010 ----- 0000011" Load;
    Ld        "ld"         "------- ----- ----- 011 ----- 0000011" Load;
    Lbu       "lbu"        "------- ----- ----- 100 ----- 0000011" Load;
    Lhu       "lhu"        "------- ----- ----- 101 ----- 0000011" Load;
    Lwu       "lwu"        "------- ----- ----- 110 ----- 0000011" Load;
    Sb        "sb"         "------- ----- ----- 000 ----- 0100011" Store;
    Sh        "sh"         "------- ----- ----- 001 ----- 0100011" Store;
    Sw        "sw"         "------- ----- ----- 010 ----- 0100011" Store;
    Sd        "sd"         "------- ----- ----- 011 ----- 0100011" Store;
    Addi      "addi"       "------- ----- ----- 000 ----- 0010011" I;
    Slti      "slti"       "------- ----- ----- 010 ----- 0010011" I;
    Sltiu     "sltiu"      "------- ----- ----- 011 ----- 0010011" I;
    Xori      "xori"       "------- ----- ----- 100 ----- 0010011" I;
    Ori       "ori"        "------- ----- ----- 110 ----- 0010011" I;
    Andi      "andi"       "------- ----- ----- 111 ----- 0010011" I;
    Slli      "slli"       "000000- ----- ----- 001 ----- 0010011" Shift;
    Srli      "srli"       "000000- ----- ----- 101 ----- 0010011" Shift;
    Srai      "srai"       "010000- ----- ----- 101 ----- 0010011" Shift;
    Add       "add"        "0000000 ----- ----- 000 ----- 0110011" R;
    Sub       "sub"        "0100000 ----- ----- 000 ----- 0110011" R;
    Sll       "sll"        "0000000 ----- ----- 001 ----- 0110011" R;
    Slt       "slt"        "0000000 ----- ----- 010 ----- 0110011" R;
    Sltu      "sltu"       "0000000 ----- ----- 011 ----- 0110011" R;
    Xor       "xor"        "0000000 ----- ----- 100 ----- 0110011" R;
    Srl       "srl"        "0000000 ----- ----- 101 ----- 0110011" R;
    Sra       "sra"        "0100000 ----- ----- 101 ----- 0110011" R;
    Or        "or"         "0000000 ----- ----- 110 ----- 0110011" R;
    And       "and"        "0000000 ----- ----- 111 ----- 0110011" R;
    Addiw     "addiw"      "------- ----- ----- 000 ----- 0011011" I;
    Slliw     "slliw"      "0000000 ----- ----- 001 ----- 0011011" ShiftW;
    Srliw     "srliw"      "0000000 ----- ----- 101 ----- 0011011" ShiftW;
    Sraiw     "sraiw"      "0100000 ----- ----- 101 ----- 0011011" ShiftW;
    Addw      "addw"       "0000000 ----- ----- 000 ----- 0111011" R;
    Subw      "subw"       "0100000 ----- ----- 000 ----- 0111011" R;
    Sllw      "sllw"       "0000000 ----- ----- 001 ----- 0111011" R;
    Srlw      "srlw"       "0000000 ----- ----- 101 ----- 0111011" R;
    Sraw      "sraw"       "0100000 ----- ----- 101 ----- 0111011" R;
    // M
    Mul       "mul"        "0000001 ----- ----- 000 ----- 0110011" R;
    Mulh      "mulh"       "0000001 ----- ----- 001 ----- 0110011" R;
    Mulhsu    "mulhsu"     "0000001 ----- ----- 010 ----- 0110011" R;
    Mulhu     "mulhu"      "0000001 ----- ----- 011 ----- 0110011" R;
    Div       "div"        "0000001 ----- ----- 100 ----- 0110011" R;
    Divu      "divu"       "0000001 ----- ----- 101 ----- 0110011" R;
    Rem       "rem"        "0000001 ----- ----- 110 ----- 0110011" R;
    Remu      "remu"       "0000001 ----- ----- 111 ----- 0110011" R;
    Mulw      "mulw"       "0000001 ----- ----- 000 ----- 0111011" R;
    Divw      "divw"       "0000001 ----- ----- 100 ----- 0111011" R;
    Divuw     "divuw"      "0000001 ----- ----- 101 ----- 0111011" R;
    Remw      "remw"       "0000001 ----- ----- 110 ----- 0111011" R;
    Remuw     "remuw"      "0000001 ----- ----- 111 ----- 0111011" R;
    // A
    LrW       "lr.w"       "00010-- 00000 ----- 010 ----- 0101111" Lr;
    ScW       "sc.w"       "00011-- ----- ----- 010 ----- 0101111" Amo;
    AmoswapW  "amoswap.w"  "00001-- ----- ----- 010 ----- 0101111" Amo;
    AmoaddW   "amoadd.w"   "00000-- ----- ----- 010 ----- 0101111" Amo;
    AmoxorW   "amoxor.w"   "00100-- ----- ----- 010 ----- 0101111" Amo;
    AmoandW   "amoand.w"   "01100-- ----- ----- 010 ----- 0101111" Amo;
    AmoorW    "amoor.w"    "01000-- ----- ----- 010 ----- 0101111" Amo;
    AmominW   "amomin.w"   "10000-- ----- ----- 010 ----- 0101111" Amo;
    AmomaxW   "amomax.w"   "10100-- ----- ----- 010 ----- 0101111" Amo;
    AmominuW  "amominu.w"  "11000-- ----- ----- 010 ----- 0101111" Amo;
    AmomaxuW  "amomaxu.w"  "11100-- ----- ----- 010 ----- 0101111" Amo;
    LrD       "lr.d"       "00010-- 00000 ----- 011 ----- 0101111" Lr;
    ScD       "sc.d"       "00011-- ----- ----- 011 ----- 0101111" Amo;
    AmoswapD  "amoswap.d"  "00001-- ----- ----- 011 ----- 0101111" Amo;
    AmoaddD   "amoadd.d"   "00000-- ----- ----- 011 ----- 0101111" Amo;
    AmoxorD   "amoxor.d"   "00100-- ----- ----- 011 ----- 0101111" Amo;
    AmoandD   "amoand.d"   "01100-- ----- ----- 011 ----- 0101111" Amo;
    AmoorD    "amoor.d"    "01000-- ----- ----- 011 ----- 0101111" Amo;
    AmominD   "amomin.d"   "10000-- ----- ----- 011 ----- 0101111" Amo;
    AmomaxD   "amomax.d"   "10100-- ----- ----- 011 ----- 0101111" Amo;
    AmominuD  "amominu.d"  "11000-- ----- ----- 011 ----- 0101111" Amo;
    AmomaxuD  "amomaxu.d"  "11100-- ----- ----- 011 ----- 0101111" Amo;
    // System. Fields of the fences that are reserved today must be ignored, so they are free here.
    Fence     "fence"      "------- ----- ----- 000 ----- 0001111" Fence;
    FenceI    "fence.i"    "------- ----- ----- 001 ----- 0001111" None;
    Ecall     "ecall"      "0000000 00000 00000 000 00000 1110011" None;
    Ebreak    "ebreak"     "0000000 00001 00000 000 00000 1110011" None;
    Mret      "mret"       "0011000 00010 00000 000 00000 1110011" None;
    Wfi       "wfi"        "0001000 00101 00000 000 00000 1110011" None;
    Csrrw     "csrrw"      "------- ----- ----- 001 ----- 1110011" Csr;
    Csrrs     "csrrs"      "------- ----- ----- 010 ----- 1110011" Csr;
    Csrrc     "csrrc"      "------- ----- ----- 011 ----- 1110011" Csr;
    Csrrwi    "csrrwi"     "------- ----- ----- 101 ----- 1110011" CsrImm;
    Csrrsi    "csrrsi"     "------- ----- ----- 110 ----- 1110011" CsrImm;
    Csrrci    "csrrci"     "------- ----- ----- 111 ----- 1110011" CsrImm;
}

/// Classification: what a translator must know of an instruction without knowing the instruction.
impl Op {
    /// A conditional branch: two successors, both known.
    pub const fn is_branch(self) -> bool {
        matches!(self.format(), Format::B)
    }

    /// `jal` or `jalr`.
    pub const fn is_jump(self) -> bool {
        matches!(self, Op::Jal | Op::Jalr)
    }

    /// A plain load (`lr` is an [atomic](Op::is_amo)).
    pub const fn is_load(self) -> bool {
        matches!(self.format(), Format::Load)
    }

    /// A plain store (`sc` and the AMOs are [atomics](Op::is_amo)).
    pub const fn is_store(self) -> bool {
        matches!(self.format(), Format::Store)
    }

    /// Anything of the A extension, `lr` and `sc` too.
    pub const fn is_amo(self) -> bool {
        matches!(self.format(), Format::Amo | Format::Lr)
    }

    /// The read-modify-write of an AMO; none for LR and SC.
    pub const fn amo(self) -> Option<AmoOp> {
        Some(match self {
            Op::AmoswapW | Op::AmoswapD => AmoOp::Swap,
            Op::AmoaddW | Op::AmoaddD => AmoOp::Add,
            Op::AmoxorW | Op::AmoxorD => AmoOp::Xor,
            Op::AmoandW | Op::AmoandD => AmoOp::And,
            Op::AmoorW | Op::AmoorD => AmoOp::Or,
            Op::AmominW | Op::AmominD => AmoOp::Min,
            Op::AmomaxW | Op::AmomaxD => AmoOp::Max,
            Op::AmominuW | Op::AmominuD => AmoOp::Minu,
            Op::AmomaxuW | Op::AmomaxuD => AmoOp::Maxu,
            _ => return None,
        })
    }

    /// Touches guest memory as data.
    pub const fn is_memory(self) -> bool {
        self.is_load() || self.is_store() || self.is_amo()
    }

    /// May change guest memory.
    pub const fn may_write_memory(self) -> bool {
        self.is_store() || matches!(self.format(), Format::Amo)
    }

    /// One of the six Zicsr instructions.
    pub const fn is_csr(self) -> bool {
        matches!(self.format(), Format::Csr | Format::CsrImm)
    }

    /// The next instruction is not simply the one behind: jumps, branches, `fence.i`, `wfi`, traps and returns.
    /// CSR instructions are left to the translator (see [`Op::is_csr`]).
    pub const fn ends_block(self) -> bool {
        self.is_branch()
            || self.is_jump()
            || matches!(self, Op::FenceI | Op::Ecall | Op::Ebreak | Op::Mret | Op::Wfi | Op::Illegal)
    }

    /// Bytes of memory that it touches; 0 for those that touch none.
    pub const fn mem_bytes(self) -> u32 {
        match self {
            Op::Lb | Op::Lbu | Op::Sb => 1,
            Op::Lh | Op::Lhu | Op::Sh => 2,
            Op::Lw | Op::Lwu | Op::Sw => 4,
            Op::Ld | Op::Sd => 8,
            _ if self.is_amo() => {
                if (self as u8) < (Op::LrD as u8) {
                    4
                } else {
                    8
                }
            }
            _ => 0,
        }
    }

    /// A load whose value is sign-extended (`lr.w` and the `.w` AMOs do it too, but are not loads).
    pub const fn is_signed_load(self) -> bool {
        matches!(self, Op::Lb | Op::Lh | Op::Lw | Op::Ld)
    }

    /// Reads the register named by `rs1`.
    pub const fn reads_rs1(self) -> bool {
        !matches!(self.format(), Format::U | Format::J | Format::Fence | Format::None | Format::CsrImm)
    }

    /// Reads the register named by `rs2`.
    pub const fn reads_rs2(self) -> bool {
        matches!(self.format(), Format::B | Format::Store | Format::R | Format::Amo)
    }

    /// Writes the register named by `rd`.
    pub const fn writes_rd(self) -> bool {
        !matches!(self.format(), Format::B | Format::Store | Format::Fence | Format::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_matches_two_patterns() {
        for (i, a) in PATTERNS.iter().enumerate() {
            for b in &PATTERNS[i + 1..] {
                let both = a.mask & b.mask;
                assert_ne!(a.value & both, b.value & both, "{} and {} overlap", a.op.mnemonic(), b.op.mnemonic());
            }
        }
    }

    #[test]
    fn the_table_is_indexed_by_the_operation() {
        assert_eq!(Op::ALL.len(), PATTERNS.len());
        for (i, p) in PATTERNS.iter().enumerate() {
            assert_eq!(p.op as usize, i);
            assert_eq!(Op::ALL[i], p.op);
            assert_eq!(p.op.format(), p.format);
            assert_eq!(p.value & !p.mask, 0);
            assert_eq!(p.value & 3, 3, "{} is not a 32-bit encoding", p.op.mnemonic());
        }
        assert_eq!(Op::Illegal as usize, PATTERNS.len());
    }

    #[test]
    fn classes_do_not_contradict_each_other() {
        for &op in Op::ALL {
            assert_eq!(op.is_memory(), op.mem_bytes() != 0, "{op:?}");
            assert!(!(op.is_load() && op.may_write_memory()), "{op:?}");
            assert!(!(op.is_amo() && op.ends_block()), "{op:?}");
        }
        assert_eq!(Op::AmomaxuW.mem_bytes(), 4);
        assert_eq!(Op::LrD.mem_bytes(), 8);
    }
}

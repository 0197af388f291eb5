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
    /// `rd, rs1`.
    Unary,
    /// `(rs1)`: on the cache line there.
    Line,
    /// `rs1, rs2`: an address and an address space.
    Addresses,
    /// `fd, imm(rs1)`.
    FLoad,
    /// `fs2, imm(rs1)`.
    FStore,
    /// `fd, fs1, fs2, fs3, rm`. Of all floating-point arithmetic the immediate is the whole word.
    F4,
    /// `fd, fs1, fs2, rm`.
    F3,
    /// `fd, fs1, fs2`.
    F3Exact,
    /// `fd, fs1, rm`.
    F2,
    /// `rd, fs1, fs2`.
    FCompare,
    /// `rd, fs1, rm`.
    FToX,
    /// `rd, fs1`.
    FToXExact,
    /// `fd, rs1, rm`.
    XToF,
    /// `fd, rs1`.
    XToFExact,
}

impl Format {
    /// Has it a rounding mode? Two of the eight are reserved, and no instruction.
    pub const fn has_rounding(self) -> bool {
        matches!(self, Format::F4 | Format::F3 | Format::F2 | Format::FToX | Format::XToF)
    }

    /// Does it work on floating-point registers, and is no load or store?
    pub const fn is_float(self) -> bool {
        matches!(self, Format::F3Exact | Format::FCompare | Format::FToXExact | Format::XToFExact)
            || self.has_rounding()
    }
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
    Sret      "sret"       "0001000 00010 00000 000 00000 1110011" None;
    Wfi       "wfi"        "0001000 00101 00000 000 00000 1110011" None;
    SfenceVma "sfence.vma" "0001001 ----- ----- 000 00000 1110011" Addresses;
    SinvalVma "sinval.vma" "0001011 ----- ----- 000 00000 1110011" Addresses;
    SfenceWInval  "sfence.w.inval"  "0001100 00000 00000 000 00000 1110011" None;
    SfenceInvalIr "sfence.inval.ir" "0001100 00001 00000 000 00000 1110011" None;
    Csrrw     "csrrw"      "------- ----- ----- 001 ----- 1110011" Csr;
    Csrrs     "csrrs"      "------- ----- ----- 010 ----- 1110011" Csr;
    Csrrc     "csrrc"      "------- ----- ----- 011 ----- 1110011" Csr;
    Csrrwi    "csrrwi"     "------- ----- ----- 101 ----- 1110011" CsrImm;
    Csrrsi    "csrrsi"     "------- ----- ----- 110 ----- 1110011" CsrImm;
    Csrrci    "csrrci"     "------- ----- ----- 111 ----- 1110011" CsrImm;
    // F
    Flw       "flw"        "------- ----- ----- 010 ----- 0000111" FLoad;
    Fsw       "fsw"        "------- ----- ----- 010 ----- 0100111" FStore;
    FmaddS    "fmadd.s"    "-----00 ----- ----- --- ----- 1000011" F4;
    FmsubS    "fmsub.s"    "-----00 ----- ----- --- ----- 1000111" F4;
    FnmsubS   "fnmsub.s"   "-----00 ----- ----- --- ----- 1001011" F4;
    FnmaddS   "fnmadd.s"   "-----00 ----- ----- --- ----- 1001111" F4;
    FaddS     "fadd.s"     "0000000 ----- ----- --- ----- 1010011" F3;
    FsubS     "fsub.s"     "0000100 ----- ----- --- ----- 1010011" F3;
    FmulS     "fmul.s"     "0001000 ----- ----- --- ----- 1010011" F3;
    FdivS     "fdiv.s"     "0001100 ----- ----- --- ----- 1010011" F3;
    FsqrtS    "fsqrt.s"    "0101100 00000 ----- --- ----- 1010011" F2;
    FsgnjS    "fsgnj.s"    "0010000 ----- ----- 000 ----- 1010011" F3Exact;
    FsgnjnS   "fsgnjn.s"   "0010000 ----- ----- 001 ----- 1010011" F3Exact;
    FsgnjxS   "fsgnjx.s"   "0010000 ----- ----- 010 ----- 1010011" F3Exact;
    FminS     "fmin.s"     "0010100 ----- ----- 000 ----- 1010011" F3Exact;
    FmaxS     "fmax.s"     "0010100 ----- ----- 001 ----- 1010011" F3Exact;
    FleS      "fle.s"      "1010000 ----- ----- 000 ----- 1010011" FCompare;
    FltS      "flt.s"      "1010000 ----- ----- 001 ----- 1010011" FCompare;
    FeqS      "feq.s"      "1010000 ----- ----- 010 ----- 1010011" FCompare;
    FcvtWS    "fcvt.w.s"   "1100000 00000 ----- --- ----- 1010011" FToX;
    FcvtWuS   "fcvt.wu.s"  "1100000 00001 ----- --- ----- 1010011" FToX;
    FcvtLS    "fcvt.l.s"   "1100000 00010 ----- --- ----- 1010011" FToX;
    FcvtLuS   "fcvt.lu.s"  "1100000 00011 ----- --- ----- 1010011" FToX;
    FcvtSW    "fcvt.s.w"   "1101000 00000 ----- --- ----- 1010011" XToF;
    FcvtSWu   "fcvt.s.wu"  "1101000 00001 ----- --- ----- 1010011" XToF;
    FcvtSL    "fcvt.s.l"   "1101000 00010 ----- --- ----- 1010011" XToF;
    FcvtSLu   "fcvt.s.lu"  "1101000 00011 ----- --- ----- 1010011" XToF;
    FmvXW     "fmv.x.w"    "1110000 00000 ----- 000 ----- 1010011" FToXExact;
    FclassS   "fclass.s"   "1110000 00000 ----- 001 ----- 1010011" FToXExact;
    FmvWX     "fmv.w.x"    "1111000 00000 ----- 000 ----- 1010011" XToFExact;
    // D
    Fld       "fld"        "------- ----- ----- 011 ----- 0000111" FLoad;
    Fsd       "fsd"        "------- ----- ----- 011 ----- 0100111" FStore;
    FmaddD    "fmadd.d"    "-----01 ----- ----- --- ----- 1000011" F4;
    FmsubD    "fmsub.d"    "-----01 ----- ----- --- ----- 1000111" F4;
    FnmsubD   "fnmsub.d"   "-----01 ----- ----- --- ----- 1001011" F4;
    FnmaddD   "fnmadd.d"   "-----01 ----- ----- --- ----- 1001111" F4;
    FaddD     "fadd.d"     "0000001 ----- ----- --- ----- 1010011" F3;
    FsubD     "fsub.d"     "0000101 ----- ----- --- ----- 1010011" F3;
    FmulD     "fmul.d"     "0001001 ----- ----- --- ----- 1010011" F3;
    FdivD     "fdiv.d"     "0001101 ----- ----- --- ----- 1010011" F3;
    FsqrtD    "fsqrt.d"    "0101101 00000 ----- --- ----- 1010011" F2;
    FsgnjD    "fsgnj.d"    "0010001 ----- ----- 000 ----- 1010011" F3Exact;
    FsgnjnD   "fsgnjn.d"   "0010001 ----- ----- 001 ----- 1010011" F3Exact;
    FsgnjxD   "fsgnjx.d"   "0010001 ----- ----- 010 ----- 1010011" F3Exact;
    FminD     "fmin.d"     "0010101 ----- ----- 000 ----- 1010011" F3Exact;
    FmaxD     "fmax.d"     "0010101 ----- ----- 001 ----- 1010011" F3Exact;
    FleD      "fle.d"      "1010001 ----- ----- 000 ----- 1010011" FCompare;
    FltD      "flt.d"      "1010001 ----- ----- 001 ----- 1010011" FCompare;
    FeqD      "feq.d"      "1010001 ----- ----- 010 ----- 1010011" FCompare;
    FcvtWD    "fcvt.w.d"   "1100001 00000 ----- --- ----- 1010011" FToX;
    FcvtWuD   "fcvt.wu.d"  "1100001 00001 ----- --- ----- 1010011" FToX;
    FcvtLD    "fcvt.l.d"   "1100001 00010 ----- --- ----- 1010011" FToX;
    FcvtLuD   "fcvt.lu.d"  "1100001 00011 ----- --- ----- 1010011" FToX;
    FcvtDW    "fcvt.d.w"   "1101001 00000 ----- --- ----- 1010011" XToF;
    FcvtDWu   "fcvt.d.wu"  "1101001 00001 ----- --- ----- 1010011" XToF;
    FcvtDL    "fcvt.d.l"   "1101001 00010 ----- --- ----- 1010011" XToF;
    FcvtDLu   "fcvt.d.lu"  "1101001 00011 ----- --- ----- 1010011" XToF;
    FcvtSD    "fcvt.s.d"   "0100000 00001 ----- --- ----- 1010011" F2;
    FcvtDS    "fcvt.d.s"   "0100001 00000 ----- --- ----- 1010011" F2;
    FmvXD     "fmv.x.d"    "1110001 00000 ----- 000 ----- 1010011" FToXExact;
    FclassD   "fclass.d"   "1110001 00000 ----- 001 ----- 1010011" FToXExact;
    FmvDX     "fmv.d.x"    "1111001 00000 ----- 000 ----- 1010011" XToFExact;
    // Zba
    AddUw     "add.uw"     "0000100 ----- ----- 000 ----- 0111011" R;
    Sh1add    "sh1add"     "0010000 ----- ----- 010 ----- 0110011" R;
    Sh2add    "sh2add"     "0010000 ----- ----- 100 ----- 0110011" R;
    Sh3add    "sh3add"     "0010000 ----- ----- 110 ----- 0110011" R;
    Sh1addUw  "sh1add.uw"  "0010000 ----- ----- 010 ----- 0111011" R;
    Sh2addUw  "sh2add.uw"  "0010000 ----- ----- 100 ----- 0111011" R;
    Sh3addUw  "sh3add.uw"  "0010000 ----- ----- 110 ----- 0111011" R;
    SlliUw    "slli.uw"    "000010- ----- ----- 001 ----- 0011011" Shift;
    // Zbb
    Andn      "andn"       "0100000 ----- ----- 111 ----- 0110011" R;
    Orn       "orn"        "0100000 ----- ----- 110 ----- 0110011" R;
    Xnor      "xnor"       "0100000 ----- ----- 100 ----- 0110011" R;
    Max       "max"        "0000101 ----- ----- 110 ----- 0110011" R;
    Maxu      "maxu"       "0000101 ----- ----- 111 ----- 0110011" R;
    Min       "min"        "0000101 ----- ----- 100 ----- 0110011" R;
    Minu      "minu"       "0000101 ----- ----- 101 ----- 0110011" R;
    Rol       "rol"        "0110000 ----- ----- 001 ----- 0110011" R;
    Ror       "ror"        "0110000 ----- ----- 101 ----- 0110011" R;
    Rolw      "rolw"       "0110000 ----- ----- 001 ----- 0111011" R;
    Rorw      "rorw"       "0110000 ----- ----- 101 ----- 0111011" R;
    Rori      "rori"       "011000- ----- ----- 101 ----- 0010011" Shift;
    Roriw     "roriw"      "0110000 ----- ----- 101 ----- 0011011" ShiftW;
    Clz       "clz"        "0110000 00000 ----- 001 ----- 0010011" Unary;
    Ctz       "ctz"        "0110000 00001 ----- 001 ----- 0010011" Unary;
    Cpop      "cpop"       "0110000 00010 ----- 001 ----- 0010011" Unary;
    Clzw      "clzw"       "0110000 00000 ----- 001 ----- 0011011" Unary;
    Ctzw      "ctzw"       "0110000 00001 ----- 001 ----- 0011011" Unary;
    Cpopw     "cpopw"      "0110000 00010 ----- 001 ----- 0011011" Unary;
    SextB     "sext.b"     "0110000 00100 ----- 001 ----- 0010011" Unary;
    SextH     "sext.h"     "0110000 00101 ----- 001 ----- 0010011" Unary;
    ZextH     "zext.h"     "0000100 00000 ----- 100 ----- 0111011" Unary;
    OrcB      "orc.b"      "0010100 00111 ----- 101 ----- 0010011" Unary;
    Rev8      "rev8"       "0110101 11000 ----- 101 ----- 0010011" Unary;
    // Zbc
    Clmul     "clmul"      "0000101 ----- ----- 001 ----- 0110011" R;
    Clmulh    "clmulh"     "0000101 ----- ----- 011 ----- 0110011" R;
    Clmulr    "clmulr"     "0000101 ----- ----- 010 ----- 0110011" R;
    // Zbs
    Bclr      "bclr"       "0100100 ----- ----- 001 ----- 0110011" R;
    Bext      "bext"       "0100100 ----- ----- 101 ----- 0110011" R;
    Binv      "binv"       "0110100 ----- ----- 001 ----- 0110011" R;
    Bset      "bset"       "0010100 ----- ----- 001 ----- 0110011" R;
    Bclri     "bclri"      "010010- ----- ----- 001 ----- 0010011" Shift;
    Bexti     "bexti"      "010010- ----- ----- 101 ----- 0010011" Shift;
    Binvi     "binvi"      "011010- ----- ----- 001 ----- 0010011" Shift;
    Bseti     "bseti"      "001010- ----- ----- 001 ----- 0010011" Shift;
    // Zicond
    CzeroEqz  "czero.eqz"  "0000111 ----- ----- 101 ----- 0110011" R;
    CzeroNez  "czero.nez"  "0000111 ----- ----- 111 ----- 0110011" R;
    // Zicbom and Zicboz; the prefetches of Zicbop are `ori` to x0
    CboInval  "cbo.inval"  "0000000 00000 ----- 010 00000 0001111" Line;
    CboClean  "cbo.clean"  "0000000 00001 ----- 010 00000 0001111" Line;
    CboFlush  "cbo.flush"  "0000000 00010 ----- 010 00000 0001111" Line;
    CboZero   "cbo.zero"   "0000000 00100 ----- 010 00000 0001111" Line;
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
        matches!(self.format(), Format::Load | Format::FLoad)
    }

    /// A plain store (`sc` and the AMOs are [atomics](Op::is_amo)).
    pub const fn is_store(self) -> bool {
        matches!(self.format(), Format::Store | Format::FStore)
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
        self.is_store() || matches!(self.format(), Format::Amo) || matches!(self, Op::CboZero)
    }

    /// One of the six Zicsr instructions.
    pub const fn is_csr(self) -> bool {
        matches!(self.format(), Format::Csr | Format::CsrImm)
    }

    /// Calls, returns from traps, `wfi`, and the fences of address translation.
    pub const fn is_system(self) -> bool {
        use Op::{Ebreak, Ecall, Mret, SfenceInvalIr, SfenceVma, SfenceWInval, SinvalVma, Sret, Wfi};
        matches!(self, Ecall | Ebreak | Mret | Sret | Wfi | SfenceVma | SinvalVma | SfenceWInval | SfenceInvalIr)
    }

    /// The next instruction is not simply the one behind: jumps, branches, `fence.i`, `wfi`, traps and returns.
    /// CSR instructions are left to the translator (see [`Op::is_csr`]).
    pub const fn ends_block(self) -> bool {
        self.is_branch() || self.is_jump() || self.is_system() || matches!(self, Op::FenceI | Op::Illegal)
    }

    /// Bytes of memory that it touches; 0 for those that touch none.
    pub const fn mem_bytes(self) -> u32 {
        match self {
            Op::Lb | Op::Lbu | Op::Sb => 1,
            Op::Lh | Op::Lhu | Op::Sh => 2,
            Op::Lw | Op::Lwu | Op::Sw | Op::Flw | Op::Fsw => 4,
            Op::Ld | Op::Sd | Op::Fld | Op::Fsd => 8,
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

    /// Reads the register named by `rs1`, an integer one or a floating-point one.
    pub const fn reads_rs1(self) -> bool {
        !matches!(self.format(), Format::U | Format::J | Format::Fence | Format::None | Format::CsrImm)
    }

    /// Reads the register named by `rs2`.
    pub const fn reads_rs2(self) -> bool {
        matches!(
            self.format(),
            Format::B
                | Format::Store
                | Format::R
                | Format::Amo
                | Format::Addresses
                | Format::FStore
                | Format::F4
                | Format::F3
                | Format::F3Exact
                | Format::FCompare
        )
    }

    /// Writes the register named by `rd`.
    pub const fn writes_rd(self) -> bool {
        !matches!(
            self.format(),
            Format::B
                | Format::Store
                | Format::FStore
                | Format::Fence
                | Format::None
                | Format::Line
                | Format::Addresses
        )
    }

    /// Writes a floating-point register.
    pub const fn writes_f(self) -> bool {
        matches!(
            self.format(),
            Format::FLoad | Format::F4 | Format::F3 | Format::F3Exact | Format::F2 | Format::XToF | Format::XToFExact
        )
    }

    /// Anything of F and D, loads and stores too.
    pub const fn is_float(self) -> bool {
        self.format().is_float() || matches!(self.format(), Format::FLoad | Format::FStore)
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

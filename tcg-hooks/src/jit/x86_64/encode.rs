//! The commonest instructions, each put together in a register and written at once.
//!
//! ```text
//!   dynasm!    REX, opcode, ModRM, …: a store of its own each, and SIB always, as any register may be the base
//!   here       one word: REX | opcode << 8 | ModRM << 16 | …; SIB where rsp or r12 is the base
//! ```
//!
//! What most code is made of is emitted by these; all else is `dynasm!`'s. The forms are checked against it (below), byte by
//! byte where both have one.
use super::asm::Assembler;

/// An opcode of one byte, or of two, the first of which is 0x0f and the low one here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opcode(pub(super) u16);

/// `mov reg, rm`
pub(super) const MOV: Opcode = Opcode(0x8b);
/// `mov rm, reg`
pub(super) const MOV_TO: Opcode = Opcode(0x89);
/// `mov rm, reg`, of a byte
pub(super) const MOV_BYTE_TO: Opcode = Opcode(0x88);
/// `add reg, rm`
pub(super) const ADD: Opcode = Opcode(0x03);
/// `sub reg, rm`
pub(super) const SUB: Opcode = Opcode(0x2b);
/// `xor reg, rm`
pub(super) const XOR: Opcode = Opcode(0x33);
/// `or reg, rm`
pub(super) const OR: Opcode = Opcode(0x0b);
/// `and reg, rm`
pub(super) const AND: Opcode = Opcode(0x23);
/// `cmp reg, rm`
pub(super) const CMP: Opcode = Opcode(0x3b);
/// `test rm, reg`
pub(super) const TEST: Opcode = Opcode(0x85);
/// `imul reg, rm`
pub(super) const IMUL: Opcode = Opcode(0xaf0f);
/// `lea reg, m`
pub(super) const LEA: Opcode = Opcode(0x8d);
/// `movsxd reg, rm`
pub(super) const MOVSXD: Opcode = Opcode(0x63);
/// `movsx reg, rm`, of a byte
pub(super) const MOVSX_BYTE: Opcode = Opcode(0xbe0f);
/// `movsx reg, rm`, of two bytes
pub(super) const MOVSX_WORD: Opcode = Opcode(0xbf0f);
/// `movzx reg, rm`, of a byte
pub(super) const MOVZX_BYTE: Opcode = Opcode(0xb60f);
/// `movzx reg, rm`, of two bytes
pub(super) const MOVZX_WORD: Opcode = Opcode(0xb70f);

impl Opcode {
    #[inline(always)]
    fn len(self) -> usize {
        1 + usize::from(self.0 as u8 == 0x0f)
    }
}

/// Of 64 bits.
pub(super) const WIDE: u8 = 0x48;
/// Of 32 bits.
pub(super) const NARROW: u8 = 0x40;
/// The register number of rbp: in a ModRM it stands for a displacement without a base where there is none.
const RBP: u8 = 5;
/// That of rsp and of r12 in ModRM: SIB follows.
const SIB: u8 = 4;

/// The prefix that says how wide, and what has no place in ModRM.
#[inline(always)]
fn rex(width: u8, reg: u8, rm: u8) -> u64 {
    u64::from(width | reg >> 3 << 2 | rm >> 3)
}

#[inline(always)]
fn modrm(mode: u8, reg: u8, rm: u8) -> u64 {
    u64::from(mode << 6 | (reg & 7) << 3 | rm & 7)
}

/// `mov reg, from`, three bytes.
#[inline(always)]
fn moving(reg: u8, from: u8) -> u64 {
    rex(WIDE, reg, from) | u64::from(MOV.0) << 8 | modrm(3, reg, from) << 16
}

impl Assembler {
    /// `op reg, rm`, both host registers.
    #[inline(always)]
    pub(super) fn two(&mut self, width: u8, op: Opcode, reg: u8, rm: u8) {
        let word = rex(width, reg, rm) | u64::from(op.0) << 8 | modrm(3, reg, rm) << (8 + 8 * op.len());
        self.put(word, 2 + op.len());
    }

    /// `mov reg, from ; op reg, rm`, all three host registers.
    #[inline(always)]
    pub(super) fn moved_two(&mut self, op: Opcode, reg: u8, from: u8, rm: u8) {
        let word = rex(WIDE, reg, rm) | u64::from(op.0) << 8 | modrm(3, reg, rm) << (8 + 8 * op.len());
        self.put(moving(reg, from) | word << 24, 5 + op.len());
    }

    /// `mov reg, from`, and arithmetic with an immediate of one byte.
    #[inline(always)]
    pub(super) fn moved_immediate(&mut self, which: Which, reg: u8, from: u8, imm: i8) {
        let word = rex(WIDE, 0, reg) | 0x83 << 8 | modrm(3, which as u8, reg) << 16 | u64::from(imm as u8) << 24;
        self.put(moving(reg, from) | word << 24, 7);
    }

    /// `mov reg, from`, and a shift by an immediate.
    #[inline(always)]
    pub(super) fn moved_shift(&mut self, which: Shift, reg: u8, from: u8, by: u8) {
        let word = rex(WIDE, 0, reg) | 0xc1 << 8 | modrm(3, which as u8, reg) << 16 | u64::from(by) << 24;
        self.put(moving(reg, from) | word << 24, 7);
    }

    /// `op reg, [rbp + disp]`, or with the memory operand first.
    #[inline(always)]
    pub(super) fn slot(&mut self, width: u8, op: Opcode, reg: u8, disp: i32) {
        let Ok(short) = i8::try_from(disp) else { return self.far(width, op, reg, RBP, disp) };
        let tail = modrm(1, reg, RBP) | u64::from(short as u8) << 8;
        let word = rex(width, reg, RBP) | u64::from(op.0) << 8 | tail << (8 + 8 * op.len());
        self.put(word, 3 + op.len());
    }

    /// `op reg, [base + disp]`, or with the memory operand first; a displacement of four bytes.
    #[inline(always)]
    pub(super) fn far(&mut self, width: u8, op: Opcode, reg: u8, base: u8, disp: i32) {
        let head = 2 + op.len();
        // SIB without an index, which is needed for one base and its neighbour in the upper half.
        let sib = usize::from(base & 7 == SIB);
        let tail = modrm(2, reg, base) | 0x24 << 8;
        self.put(rex(width, reg, base) | u64::from(op.0) << 8 | tail << (8 * head - 8), head + sib);
        self.push_i32(disp);
    }

    /// `op reg, [base + (index << scale) + disp]`, or with the memory operand first; rsp is no index.
    #[inline(always)]
    pub(super) fn indexed(&mut self, width: u8, op: Opcode, reg: u8, base: u8, index: (u8, u8), disp: i32) {
        let head = 2 + op.len();
        let (index, scale) = index;
        let tail = modrm(2, reg, SIB) | modrm(scale & 3, index, base) << 8;
        let rex = rex(width, reg, base) | u64::from(index >> 3) << 1;
        self.put(rex | u64::from(op.0) << 8 | tail << (8 * head - 8), head + 1);
        self.push_i32(disp);
    }

    /// `op reg, [address]`, or with the memory operand first.
    #[inline(always)]
    pub(super) fn absolute(&mut self, width: u8, op: Opcode, reg: u8, address: i32) {
        let head = 2 + op.len();
        // SIB without an index or a base.
        let tail = modrm(0, reg, SIB) | 0x25 << 8;
        self.put(rex(width, reg, 0) | u64::from(op.0) << 8 | tail << (8 * head - 8), head + 1);
        self.push_i32(address);
    }

    /// The same without an index, with the shortest displacement.
    #[inline(always)]
    pub(super) fn near(&mut self, width: u8, op: Opcode, reg: u8, base: u8, disp: i32) {
        let Ok(short) = i8::try_from(disp) else { return self.far(width, op, reg, base, disp) };
        let head = 2 + op.len();
        let sib = usize::from(base & 7 == SIB);
        let short = u64::from(short as u8);
        let tail = modrm(1, reg, base) | if sib == 0 { short } else { 0x24 | short << 8 } << 8;
        self.put(rex(width, reg, base) | u64::from(op.0) << 8 | tail << (8 * head - 8), head + sib + 1);
    }

    /// `lea reg, [base + (index << scale)]`; rsp is neither. A displacement, with which hosts take longer, only where rbp or r13 has to be
    /// the base.
    #[inline(always)]
    pub(super) fn sum(&mut self, reg: u8, base: u8, index: (u8, u8)) {
        let (index, scale) = index;
        let (base, index) = if base & 7 == RBP && scale == 0 { (index, base) } else { (base, index) };
        let zero = u8::from(base & 7 == RBP);
        let word = rex(WIDE, reg, base) | u64::from(index >> 3) << 1 | u64::from(LEA.0) << 8;
        let tail = modrm(zero, reg, SIB) | modrm(scale & 3, index, base) << 8;
        self.put(word | tail << 16, 4 + usize::from(zero));
    }

    /// Arithmetic with an immediate, of eight operations; the shortest form of it.
    #[inline(always)]
    pub(super) fn immediate(&mut self, width: u8, which: Which, rm: u8, imm: i32) {
        let word = |opcode: u64| rex(width, 0, rm) | opcode << 8 | modrm(3, which as u8, rm) << 16;
        match i8::try_from(imm) {
            Ok(imm) => self.put(word(0x83) | u64::from(imm as u8) << 24, 4),
            Err(_) => self.put(word(0x81) | u64::from(imm as u32) << 24, 7),
        }
    }

    /// `mov reg, imm`, of 64 bits, the shortest form; flags survive.
    #[inline(always)]
    pub(super) fn constant(&mut self, reg: u8, imm: i64) {
        let mov = u64::from(0xb8 | reg & 7) << 8;
        if let Ok(imm) = u32::try_from(imm) {
            self.put(rex(NARROW, 0, reg) | mov | u64::from(imm) << 16, 6);
        } else if let Ok(imm) = i32::try_from(imm) {
            self.put(rex(WIDE, 0, reg) | 0xc7 << 8 | modrm(3, 0, reg) << 16 | u64::from(imm as u32) << 24, 7);
        } else {
            self.put(rex(WIDE, 0, reg) | mov, 2);
            self.push_i64(imm);
        }
    }

    /// `mov QWORD [rbp + disp], imm`
    #[inline(always)]
    pub(super) fn slot_constant(&mut self, disp: i32, imm: i32) {
        let Ok(short) = i8::try_from(disp) else {
            self.put(rex(WIDE, 0, RBP) | 0xc7 << 8 | modrm(2, 0, RBP) << 16, 3);
            self.push_i32(disp);
            return self.push_i32(imm);
        };
        let word = rex(WIDE, 0, RBP) | 0xc7 << 8 | modrm(1, 0, RBP) << 16 | u64::from(short as u8) << 24;
        self.put(word | u64::from(imm as u32) << 32, 8);
    }

    /// A shift by an immediate.
    #[inline(always)]
    pub(super) fn shift(&mut self, width: u8, which: Shift, rm: u8, by: u8) {
        let word = rex(width, 0, rm) | 0xc1 << 8 | modrm(3, which as u8, rm) << 16;
        self.put(word | u64::from(by) << 24, 4);
    }
}

/// Arithmetic with an immediate, as ModRM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Which {
    Add = 0,
    Or = 1,
    And = 4,
    Xor = 6,
    Cmp = 7,
}

/// Shifts, as ModRM has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shift {
    Left = 4,
    Right = 5,
    RightSigned = 7,
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    const WIDE_NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    const NARROW_NAMES: [&str; 16] = [
        "eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi", "r8d", "r9d", "r10d", "r11d", "r12d", "r13d", "r14d",
        "r15d",
    ];
    const BYTE_NAMES: [&str; 16] = [
        "al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil", "r8b", "r9b", "r10b", "r11b", "r12b", "r13b", "r14b",
        "r15b",
    ];

    /// The one instruction that was emitted, as text without the sizes of operands.
    fn text(emit: impl FnOnce(&mut Assembler)) -> String {
        let mut asm = Assembler::new();
        emit(&mut asm);
        let mut decoder = Decoder::new(64, asm.code(), DecoderOptions::NONE);
        let insn = decoder.decode();
        assert!(!insn.is_invalid() && insn.len() == asm.code().len(), "{:02x?}", asm.code());
        let mut text = String::new();
        let mut formatter = IntelFormatter::new();
        formatter.options_mut().set_memory_size_options(iced_x86::MemorySizeOptions::Never);
        formatter.options_mut().set_signed_immediate_operands(true);
        formatter.options_mut().set_hex_suffix("");
        formatter.options_mut().set_small_hex_numbers_in_decimal(true);
        formatter.format(&insn, &mut text);
        text
    }

    #[test]
    fn two_registers_are_the_two_that_were_asked_for() {
        for (a, x) in WIDE_NAMES.iter().enumerate() {
            for (b, y) in WIDE_NAMES.iter().enumerate() {
                for (op, name) in [(ADD, "add"), (SUB, "sub"), (XOR, "xor"), (OR, "or"), (AND, "and"), (CMP, "cmp")] {
                    assert_eq!(text(|asm| asm.two(WIDE, op, a as u8, b as u8)), format!("{name} {x},{y}"));
                }
                assert_eq!(text(|asm| asm.two(WIDE, IMUL, a as u8, b as u8)), format!("imul {x},{y}"));
                assert_eq!(text(|asm| asm.two(WIDE, MOV_TO, a as u8, b as u8)), format!("mov {y},{x}"));
                let (narrow, byte) = (NARROW_NAMES[b], BYTE_NAMES[b]);
                assert_eq!(text(|asm| asm.two(WIDE, MOVSXD, a as u8, b as u8)), format!("movsxd {x},{narrow}"));
                let x = NARROW_NAMES[a];
                assert_eq!(text(|asm| asm.two(NARROW, MOV, a as u8, b as u8)), format!("mov {x},{narrow}"));
                assert_eq!(text(|asm| asm.two(NARROW, TEST, a as u8, b as u8)), format!("test {narrow},{x}"));
                assert_eq!(text(|asm| asm.two(NARROW, MOVZX_BYTE, a as u8, b as u8)), format!("movzx {x},{byte}"));
            }
        }
    }

    #[test]
    fn what_is_made_in_another_register_is_moved_there_first() {
        let bytes = |emit: &dyn Fn(&mut Assembler)| {
            let mut asm = Assembler::new();
            emit(&mut asm);
            asm.code().to_vec()
        };
        for (d, x, y) in (0..16).flat_map(|d| (0..16).flat_map(move |x| (0..16).map(move |y| (d, x, y)))) {
            let apart = |op: &dyn Fn(&mut Assembler)| {
                bytes(&|asm| {
                    asm.two(WIDE, MOV, d, x);
                    op(asm);
                })
            };
            for op in [ADD, IMUL] {
                assert_eq!(bytes(&|asm| asm.moved_two(op, d, x, y)), apart(&|asm| asm.two(WIDE, op, d, y)));
            }
            let imm = i8::try_from(y).expect("a small number") - 8;
            let together = bytes(&|asm| asm.moved_immediate(Which::Xor, d, x, imm));
            assert_eq!(together, apart(&|asm| asm.immediate(WIDE, Which::Xor, d, imm.into())));
            let together = bytes(&|asm| asm.moved_shift(Shift::RightSigned, d, x, y));
            assert_eq!(together, apart(&|asm| asm.shift(WIDE, Shift::RightSigned, d, y)));
        }
    }

    #[test]
    fn memory_operands_have_the_base_the_index_and_the_displacement_that_were_asked_for() {
        for (a, x) in WIDE_NAMES.iter().enumerate() {
            let reg = a as u8;
            assert_eq!(text(|asm| asm.slot(WIDE, MOV, reg, 56)), format!("mov {x},[rbp+38]"));
            assert_eq!(text(|asm| asm.slot(WIDE, IMUL, reg, -8)), format!("imul {x},[rbp-8]"));
            assert_eq!(text(|asm| asm.slot(WIDE, MOV, reg, 0x98)), format!("mov {x},[rbp+98]"));
            assert_eq!(text(|asm| asm.slot(WIDE, IMUL, reg, -129)), format!("imul {x},[rbp-81]"));
            assert_eq!(text(|asm| asm.slot(NARROW, MOV_TO, reg, -8)), format!("mov [rbp-8],{}", NARROW_NAMES[a]));
            let got = text(|asm| asm.absolute(WIDE, MOVSX_BYTE, reg, 0x1234_5678));
            assert_eq!(got, format!("movsx {x},[12345678]"));
            let got = text(|asm| asm.absolute(WIDE, MOV_TO, reg, -16));
            assert_eq!(got, format!("mov [0FFFFFFFFFFFFFFF0],{x}"));
            for (b, y) in WIDE_NAMES.iter().enumerate() {
                let base = b as u8;
                for (disp, shown) in [(0x7f, "+7F"), (-0x80, "-80"), (0x80, "+80"), (-0x1234_5678, "-12345678")] {
                    for (op, name) in [(LEA, "lea"), (MOV, "mov"), (MOVSX_WORD, "movsx")] {
                        let shown = format!("{name} {x},[{y}{shown}]");
                        assert_eq!(text(|asm| asm.far(WIDE, op, reg, base, disp)), shown);
                        assert_eq!(text(|asm| asm.near(WIDE, op, reg, base, disp)), shown);
                    }
                    let byte = BYTE_NAMES[a];
                    let shown = format!("mov [{y}{shown}],{byte}");
                    assert_eq!(text(|asm| asm.far(NARROW, MOV_BYTE_TO, reg, base, disp)), shown);
                }
                for (c, z) in WIDE_NAMES.iter().enumerate().filter(|&(c, _)| c != 4) {
                    for (scale, times) in ["", "*2", "*4", "*8"].iter().enumerate() {
                        let shown = format!("movzx {},[{y}+{z}{times}+12345678]", NARROW_NAMES[a]);
                        let index = (c as u8, scale as u8);
                        let got = text(|asm| asm.indexed(NARROW, MOVZX_WORD, reg, base, index, 0x1234_5678));
                        assert_eq!(got, shown);
                        if b != 4 {
                            let got = text(|asm| asm.sum(reg, base, index)).replace("*1", "").replace("+0]", "]");
                            let either = [format!("lea {x},[{y}+{z}{times}]"), format!("lea {x},[{z}{times}+{y}]")];
                            assert!(either.contains(&got), "{got}, {either:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn immediates_are_those_that_were_asked_for() {
        for (a, x) in WIDE_NAMES.iter().enumerate() {
            let reg = a as u8;
            for (imm, shown) in [(1, "1"), (-0x80, "-80"), (0x80, "80"), (-0x7654_3210, "-76543210")] {
                for (which, name) in [
                    (Which::Add, "add"),
                    (Which::Or, "or"),
                    (Which::And, "and"),
                    (Which::Xor, "xor"),
                    (Which::Cmp, "cmp"),
                ] {
                    assert_eq!(text(|asm| asm.immediate(WIDE, which, reg, imm)), format!("{name} {x},{shown}"));
                }
            }
            assert_eq!(text(|asm| asm.immediate(NARROW, Which::Add, reg, 300)), format!("add {},12C", NARROW_NAMES[a]));
            for (which, name) in [(Shift::Left, "shl"), (Shift::Right, "shr"), (Shift::RightSigned, "sar")] {
                assert_eq!(text(|asm| asm.shift(WIDE, which, reg, 9)), format!("{name} {x},9"));
                assert_eq!(text(|asm| asm.shift(NARROW, which, reg, 9)), format!("{name} {},9", NARROW_NAMES[a]));
            }
            assert_eq!(text(|asm| asm.constant(reg, 5)), format!("mov {},5", NARROW_NAMES[a]));
            assert_eq!(text(|asm| asm.constant(reg, -5)), format!("mov {x},-5"));
            assert_eq!(text(|asm| asm.constant(reg, 0x1234_5678_9abc)), format!("mov {x},123456789ABC"));
        }
        assert_eq!(text(|asm| asm.slot_constant(0x98, -5)), "mov [rbp+98],-5");
        assert_eq!(text(|asm| asm.slot_constant(-8, -5)), "mov [rbp-8],-5");
        assert_eq!(text(|asm| asm.slot_constant(16, 0x7654_3210)), "mov [rbp+10],76543210");
    }
}

//! Bits to [`Insn`].
//!
//! ```text
//!   word ─ opcode[6:2], funct3 ─▶ INDEX[…] ─ two bits of funct7 ─▶ ROWS[…] ─ mask, value ─▶ Row: operand masks
//!                                             └─ else the others of its list: atomics, system, B; OP-FP: a list by funct7
//! ```
//!
//! Both arrays are folded from `opcodes::PATTERNS` at compile time. A row has masks in place of a format, since a jump
//! by format would be mispredicted more often than not.
use super::compressed::{expand, packed_short};
use super::lower::plan::{Plan, plan, plan_of};
use super::opcodes::{Format, Op, PATTERNS, Pattern};
use super::privilege::Privilege;
use crate::ir::Cond;

/// A decoded instruction. Register fields that its format lacks are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Insn {
    /// What to do.
    pub op: Op,
    /// Destination register.
    pub rd: u8,
    /// First source register; the five-bit operand of the immediate CSR forms.
    pub rs1: u8,
    /// Second source register.
    pub rs2: u8,
    /// Length in memory: 2 or 4.
    pub len: u8,
    /// The immediate, to be sign-extended to 64 bits on use; see [`Format`] for what it means.
    /// For [`Op::Illegal`] it holds the bits fetched, for floating-point arithmetic too: `rm` and `rs3` are there.
    pub imm: i32,
}

const _: () = assert!(size_of::<Insn>() <= 16);

impl Insn {
    /// The instruction that raises an illegal-instruction exception for these bits.
    pub const fn illegal(bits: u32, len: u8) -> Insn {
        Insn { op: Op::Illegal, rd: 0, rs1: 0, rs2: 0, len, imm: bits as i32 }
    }

    /// The immediate as the 64-bit operand it stands for.
    #[inline]
    pub const fn imm64(&self) -> u64 {
        self.imm as i64 as u64
    }

    /// Of a `fence`: must stores before it be visible before loads after it are done? The rest of what a fence may ask
    /// for, a host with total store order gives anyway. `fence.tso` (fm 8, rw, rw) does not ask for this; every other
    /// fence with an fm is reserved, and means what it would with fm 0.
    /// Where FIOM may be set, below M-mode, accesses to devices are fenced as those to memory are.
    pub const fn orders_stores_before_loads(&self, mode: Privilege) -> bool {
        // fm, then i, o, r, w of the predecessors, then of the successors.
        let (mut w, mut r) = (self.imm >> 4 & 1, self.imm >> 1 & 1);
        if !matches!(mode, Privilege::M) {
            (w, r) = (w | self.imm >> 6 & 1, r | self.imm >> 3 & 1);
        }
        w != 0 && r != 0 && self.imm & 0xfff != 0x833
    }

    /// Of an LR: must stores before it be visible before it loads (`rl`)? An AMO or SC orders them on any host, being
    /// a locked instruction there.
    pub const fn releases(&self) -> bool {
        self.imm & 1 != 0
    }

    /// Where a branch or `jal` at `pc` goes when it is taken.
    #[inline]
    pub const fn target(&self, pc: u64) -> u64 {
        pc.wrapping_add(self.imm64())
    }

    /// The CSR that a Zicsr instruction names.
    #[inline]
    pub const fn csr(&self) -> u16 {
        self.imm as u16 & 0xfff
    }

    /// The third source of a fused multiplication.
    #[inline]
    pub const fn rs3(&self) -> u8 {
        (self.imm as u32 >> 27) as u8
    }

    /// The rounding mode in the bits of floating-point arithmetic; 7 is the one in `frm`.
    #[inline]
    pub const fn rm(&self) -> u8 {
        (self.imm >> 12 & 7) as u8
    }

    /// What `mtval` shows when this instruction is illegal, knowing only the decoded form.
    pub const fn illegal_bits(&self) -> u64 {
        self.imm as u32 as u64
    }

    /// The bits of an instruction of F or D, which may be illegal although it decodes.
    pub const fn bits(&self) -> u64 {
        let (double, load) = (matches!(self.op, Op::Fld | Op::Fsd), matches!(self.op, Op::Flw | Op::Fld));
        if !double && !load && !matches!(self.op, Op::Fsw) {
            return self.illegal_bits();
        }
        let (imm, rs1) = (self.imm as u64, (self.rs1 & 31) as u64);
        let register = (if load { self.rd } else { self.rs2 } & 31) as u64;
        if self.len == 2 {
            return super::compressed::float_bits(load, register, rs1, imm);
        }
        let width = if double { 3 } else { 2 };
        let operands = if load {
            (imm & 0xfff) << 20 | register << 7 | 0x07
        } else {
            (imm >> 5 & 0x7f) << 25 | register << 20 | (imm & 31) << 7 | 0x27
        };
        operands | rs1 << 15 | width << 12
    }
}

/// An instruction as the translator keeps it: the operands in one word, which is made and copied as one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packed {
    pub(crate) op: Op,
    /// What the translator makes of it.
    pub(crate) plan: Plan,
    /// `rd`, `rs1`, `rs2` and the length, a byte each, from the lowest.
    pub(crate) operands: u32,
    pub(crate) imm: i32,
}

impl Packed {
    /// As [`decode`].
    #[inline(always)]
    pub(crate) fn long(bits: u32) -> Packed {
        let Slot { first, choose, .. } = INDEX[key(bits)];
        let mut row = &ROWS[usize::from(first.wrapping_add(choice(bits) & choose)) % ROWS.len()];
        if bits & row.mask != row.value {
            row = rare(bits);
        }
        row.operands(bits)
    }

    /// As [`expand`].
    #[inline(always)]
    pub(crate) fn short(half: u16) -> Packed {
        packed_short(half)
    }

    #[inline(always)]
    pub(crate) fn insn(self) -> Insn {
        let [rd, rs1, rs2, len] = self.operands.to_le_bytes();
        Insn { op: self.op, rd, rs1, rs2, len, imm: self.imm }
    }

    /// Does control not simply go on behind it?
    #[inline(always)]
    pub(crate) fn ends_block(self) -> bool {
        self.plan.ends_block()
    }

    /// When a branch is taken.
    #[inline(always)]
    pub(crate) fn condition(self) -> Option<Cond> {
        if let Plan::Branch(cond) = self.plan { Some(cond) } else { None }
    }

    /// A jump that names its target, and no more.
    #[inline(always)]
    pub(crate) fn is_plain_jump(self) -> bool {
        self.plan == Plan::Jump && self.operands as u8 == 0
    }

    /// What is in its place where a run shall end: control goes to Rust.
    pub(crate) fn stopped(self) -> Packed {
        Packed { op: Op::Illegal, plan: plan_of(Op::Illegal), ..self }
    }

    /// As [`Isa::filter`](super::Isa::filter).
    #[cold]
    pub(crate) fn filtered(self, isa: super::Isa, bits: u32) -> Packed {
        let Insn { op, rd, rs1, rs2, len, imm } = isa.filter(self.insn(), bits);
        Packed { op, plan: plan_of(op), operands: u32::from_le_bytes([rd, rs1, rs2, len]), imm }
    }

    #[inline(always)]
    pub(crate) fn len(self) -> u32 {
        self.operands >> 24
    }
}

/// Decodes what lies at a pc: `lo16` is the first halfword, `full` the word whose low half it is (its high half is
/// looked at only if the low bits ask for 32 bits).
#[inline]
pub fn decode_any(lo16: u16, full: u32) -> Insn {
    if is_compressed(lo16) { expand(lo16) } else { decode(full) }
}

/// Whether an instruction that starts with this halfword is two bytes long.
#[inline]
pub const fn is_compressed(lo16: u16) -> bool {
    lo16 & 3 != 3
}

/// Decodes a 32-bit encoding. A word whose low bits mark it as compressed is illegal here.
// Out of line it returns through memory, byte by byte, and the caller's wider loads of that stall: half of tier 0's
// time was there.
#[inline(always)]
pub fn decode(bits: u32) -> Insn {
    // The length is known before the rest: whoever reads on by it need not wait for the look-up.
    Insn { len: 4, ..Packed::long(bits).insn() }
}

/// What is not the first of its list, or nothing.
#[cold]
#[inline(never)]
fn rare(bits: u32) -> &'static Row {
    // No key of OP-FP has a list of its own: its funct3 may be a rounding mode.
    let key = if bits & 0x7c == OP_FP { FLOATS + (bits >> 25) as usize } else { key(bits) };
    let Slot { others, more, .. } = INDEX[key];
    let mut rows = (0..more).map(|n| &ROWS[usize::from(others.wrapping_add(n)) % ROWS.len()]);
    rows.find(|row| bits & row.mask == row.value).unwrap_or(&NOTHING)
}

#[inline(always)]
const fn key(bits: u32) -> usize {
    ((bits >> 2 & 0x1f) << 3 | bits >> 12 & 7) as usize
}

/// What tells arithmetic operations of one key apart: bits 25 and 30 of the word, as bits 0 and 5. Words with other bits
/// of the seven set are found behind those four.
#[inline(always)]
const fn choice(bits: u32) -> u16 {
    (bits >> 25) as u16
}

/// Which bits of [`choice`] pick a row of a key's.
const fn chooses(key: usize) -> u16 {
    match (key >> 3, key & 7) {
        (0b01100 | 0b01110, _) => 0x21,
        (0b00100 | 0b00110, 5) => 0x20,
        _ => 0,
    }
}

/// The opcode of floating-point arithmetic, which is looked up by its upper seven bits.
const OP_FP: u32 = 0b10100 << 2;
/// The first of the keys for that.
const FLOATS: usize = 256;
const KEYS: usize = FLOATS + 128;

/// The rows of a key.
#[derive(Clone, Copy)]
struct Slot {
    first: u16,
    /// Which bits of [`choice`], added to `first`, pick one of them.
    choose: u16,
    /// Where the others are, to be looked at in turn.
    others: u16,
    /// How many those are.
    more: u16,
}

static ROWS: [Row; 512] = TABLES.0;
static INDEX: [Slot; KEYS] = TABLES.1;

/// Might a word of this key match the pattern?
const fn has_key(p: &Pattern, key: usize) -> bool {
    if p.value & 0x7c == OP_FP {
        let seen = p.mask >> 25;
        return key >= FLOATS && (key - FLOATS) as u32 & seen == p.value >> 25 & seen;
    }
    // The reserved rounding modes of fused operations.
    if key >= FLOATS || p.format.has_rounding() && matches!(key & 7, 5 | 6) {
        return false;
    }
    let seen = p.mask & 0x707c;
    ((key as u32 >> 3) << 2 | (key as u32 & 7) << 12) & seen == p.value & seen
}

const TABLES: ([Row; 512], [Slot; KEYS]) = {
    let mut rows = [NOTHING; 512];
    let mut index = [Slot { first: 0, choose: 0, others: 0, more: 0 }; KEYS];
    // Row 0 is nothing, for keys that have none. Then come those that are chosen: bit 5 leads from one block of 32 to the
    // next, which so holds the rows of sixteen keys.
    let (mut chosen, mut n, mut k) = (64, 64 * 3, 0);
    while k < KEYS {
        let choose = chooses(k);
        if choose != 0 {
            index[k].first = chosen;
            index[k].choose = choose;
            chosen += 2;
            if chosen % 32 == 0 {
                chosen += 32;
            }
        }
        index[k].others = n;
        let mut i = 0;
        while i < PATTERNS.len() {
            let p = &PATTERNS[i];
            i += 1;
            if !has_key(p, k) {
                continue;
            }
            let at = (index[k].first + (choice(p.value) & choose)) as usize;
            let at = if choose != 0 && rows[at].mask == NOTHING.mask {
                at
            } else {
                n += 1;
                n as usize - 1
            };
            rows[at] = row(p);
            if k >= FLOATS && p.format.has_rounding() {
                // As `frm` says, the four modes below 4, and 4.
                rows[at] = Row { mask: p.mask | 0x7000, value: p.value | 0x7000, ..row(p) };
                rows[at + 1] = Row { mask: p.mask | 0x4000, ..row(p) };
                rows[at + 2] = Row { mask: p.mask | 0x7000, value: p.value | 0x4000, ..row(p) };
                n += 2;
            }
        }
        index[k].more = n - index[k].others;
        if choose == 0 && index[k].more != 0 {
            index[k].first = index[k].others;
        }
        k += 1;
    }
    assert!(chosen <= 64 * 3 && n as usize <= rows.len(), "widen the table");
    (rows, index)
};

/// A pattern, and where its operands are: the immediate is two pieces of the word, each shifted and masked. What the
/// translator asks of an operation lies beside it, as to look it up by the operation would be one more load that waits.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Row {
    mask: u32,
    value: u32,
    /// Of the word shifted down by `shift`.
    imm: i32,
    shift: u8,
    /// Of the word shifted down to its `rd`.
    low: u8,
    op: Op,
    plan: Plan,
    /// Branches and jumps have more pieces.
    far: bool,
    /// Of `rd` and `rs1`, a byte each.
    operands: u32,
    /// Of `rs2`, in the byte above.
    rs2: u32,
}

/// Matches no word; its operands are those of an illegal instruction.
const NOTHING: Row = Row {
    mask: 0,
    value: 1,
    imm: -1,
    shift: 0,
    low: 0,
    op: Op::Illegal,
    plan: plan(Op::Illegal),
    far: false,
    operands: 0,
    rs2: 0,
};

const fn row(p: &Pattern) -> Row {
    let (shift, imm, low) = match p.format {
        Format::Jalr | Format::Load | Format::FLoad | Format::I => (20, -1, 0),
        Format::Shift => (20, 0x3f, 0),
        Format::ShiftW => (20, 0x1f, 0),
        Format::Fence | Format::Csr | Format::CsrImm => (20, 0xfff, 0),
        Format::R | Format::Unary | Format::Line | Format::Addresses | Format::None | Format::B | Format::J => {
            (0, 0, 0)
        }
        Format::Store | Format::FStore => (20, !0x1f, 0x1f),
        Format::U => (0, !0xfff, 0),
        Format::Amo | Format::Lr => (25, 3, 0),
        _ => (0, -1, 0),
    };
    // The CSR forms with an immediate keep it in rs1, though they read no register.
    let rs1 = p.op.reads_rs1() || matches!(p.format, Format::CsrImm);
    Row {
        mask: p.mask,
        value: p.value,
        imm,
        shift,
        low,
        op: p.op,
        plan: plan(p.op),
        far: matches!(p.format, Format::B | Format::J),
        operands: if p.op.writes_rd() { 31 } else { 0 } | if rs1 { 31 << 8 } else { 0 },
        rs2: if p.op.reads_rs2() { 31 << 16 } else { 0 },
    }
}

impl Row {
    #[inline(always)]
    fn operands(&self, bits: u32) -> Packed {
        let s = bits as i32;
        let mut imm = s >> (self.shift & 31) & self.imm | s >> 7 & i32::from(self.low);
        if self.far {
            imm = if self.op as u8 == Op::Jal as u8 {
                (s >> 31 & !0xfffff) | s & 0xff000 | s >> 9 & 0x800 | s >> 20 & 0x7fe
            } else {
                (s >> 31 & !0xfff) | s << 4 & 0x800 | s >> 20 & 0x7e0 | s >> 7 & 0x1e
            };
        }
        // rs1 is eight bits above rd already.
        let operands = bits >> 7 & self.operands | bits >> 4 & self.rs2 | 4 << 24;
        Packed { op: self.op, plan: self.plan, operands, imm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator; the values need only be varied.
    fn words(n: usize) -> impl Iterator<Item = u32> {
        let mut s = 0x9e37_79b9_7f4a_7c15u64;
        (0..n).map(move |_| {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            (s >> 16) as u32
        })
    }

    #[test]
    fn a_fence_that_has_stores_before_and_loads_behind_is_a_full_one() {
        let full = |bits: u32| decode(bits).orders_stores_before_loads(Privilege::M);
        // rw,rw; iorw,iorw; w,r; the same with a reserved fm, and fm 8 with anything but rw,rw.
        assert!([0x0330_000f, 0x0ff0_000f, 0x0120_000f].into_iter().all(full));
        assert!([0x1330_000f, 0x7330_000f, 0xfff0_000f, 0x8120_000f, 0x8ff0_000f, 0x8720_000f].into_iter().all(full));
        // w,w; r,rw; rw,w; fence.tso.
        let others = [0x0110_000f, 0x0230_000f, 0x0310_000f, 0x8330_000f];
        assert!(!others.into_iter().any(full));
        // o,i; o,r; w,i; and i,o; o,w.
        let devices = [0x0480_000f, 0x0420_000f, 0x0180_000f];
        let below = |bits: u32| decode(bits).orders_stores_before_loads(Privilege::U);
        assert!(devices.into_iter().all(below) && !devices.into_iter().any(full));
        assert!(!others.into_iter().chain([0x0840_000f, 0x0410_000f]).any(below));
    }

    #[test]
    fn each_pattern_decodes_to_its_own_operation() {
        for p in PATTERNS {
            for noise in words(200).chain([0, !0]) {
                let bits = p.value | noise & !p.mask;
                let reserved = p.format.has_rounding() && matches!(bits >> 12 & 7, 5 | 6);
                let want = if reserved { Op::Illegal } else { p.op };
                assert_eq!(decode(bits).op, want, "{bits:#010x}");
            }
        }
    }

    #[test]
    fn two_levels_agree_with_a_scan_of_the_whole_table() {
        for bits in
            words(2_000_000).flat_map(|w| [w | 3, w & 0x01ff_ffff | 3, w & !0x7f | 0x53, w & 0x6e0f_ff80 | 0x33])
        {
            let reserved = |p: &Pattern| p.format.has_rounding() && matches!(bits >> 12 & 7, 5 | 6);
            let found = PATTERNS.iter().find(|p| bits & p.mask == p.value && !reserved(p));
            let scan = found.map_or(Op::Illegal, |p| p.op);
            assert_eq!(decode(bits).op, scan, "{bits:#010x}");
        }
    }

    #[test]
    fn floating_point_instructions_keep_their_bits() {
        for p in PATTERNS.iter().filter(|p| p.op.is_float()) {
            for noise in words(1000) {
                let bits = p.value | noise & !p.mask;
                let insn = decode(bits);
                assert_eq!(insn.bits(), bits.into(), "{insn:?}");
            }
        }
        let short = (0..=u16::MAX).filter(|&half| expand(half).op.is_float());
        assert_eq!(short.map(|half| assert_eq!(expand(half).bits(), half.into(), "{half:#06x}")).count(), 4 * 2048);
    }

    #[test]
    fn short_instructions_are_the_same_packed() {
        for half in 0..=u16::MAX {
            assert_eq!(Packed::short(half).insn(), expand(half), "{half:#06x}");
        }
    }

    #[test]
    fn immediates_are_put_together_from_their_pieces() {
        let cases: [(u32, Op, i32); 12] = [
            (0xffff_f537, Op::Lui, -4096),      // lui a0, 0xfffff
            (0x8000_00ef, Op::Jal, -0x10_0000), // jal ra, .-1MiB
            (0x7fff_f0ef, Op::Jal, 0xf_fffe),   // jal ra, .+1MiB-2
            (0x8000_0063, Op::Beq, -4096),      // beq x0, x0, .-4096
            (0x7e00_0fe3, Op::Beq, 4094),       // beq x0, x0, .+4094
            (0xfe00_0ee3, Op::Beq, -4),         // beq x0, x0, .-4
            (0x8005_2503, Op::Lw, -2048),       // lw a0, -2048(a0)
            (0xfea5_2fa3, Op::Sw, -1),          // sw a0, -1(a0)
            (0x43f5_5513, Op::Srai, 63),        // srai a0, a0, 63
            (0xf140_2573, Op::Csrrs, 0xf14),    // csrr a0, mhartid
            (0x0ff0_000f, Op::Fence, 0x0ff),    // fence
            (0x1605_252f, Op::LrW, 3),          // lr.w.aqrl a0, (a0)
        ];
        for (bits, op, imm) in cases {
            let i = decode(bits);
            assert_eq!((i.op, i.imm), (op, imm), "{bits:#010x}");
        }
    }

    #[test]
    fn reserved_words_are_illegal_and_keep_their_bits() {
        // Longer encodings, an RV64 shift with shamt[5] of a W form, lr with rs2, uret, hfence.gvma, a quad load, an addition
        // of quads, one of doubles in rounding mode 5, a fused one in 6.
        let floats = [0x0005_4507, 0x0605_7553, 0x0205_5553, 0x0205_6543];
        let others = [0u32, !0, 0x0000_001f, 0x0205_151b, 0x1015_252f, 0x0020_0073, 0x6200_0073];
        for bits in others.into_iter().chain(floats) {
            let i = decode(bits);
            assert_eq!((i.op, i.len, i.illegal_bits()), (Op::Illegal, 4, u64::from(bits)));
        }
    }
}

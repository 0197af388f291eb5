//! The small IR between the decoder and the host: RISC-V without its encodings.
//!
//! ```text
//!   Region ── blocks: Block { pc, ops, term, poll }     a block charges its instructions at its head;
//!          ├─ ops:    Ir, all blocks in one vector       only heads that a cycle may pass poll the budget
//!          ├─ sites:  where emitted code may call Rust: the decoded instruction and its pc
//!          └─ spans:  the guest bytes it was made from
//! ```
//!
//! Operands are guest registers. An op that writes `x0` does not exist, unless it can fault.
//! Of a hot region tier 2 makes another of the same kind, whose operands are host registers where it gave it some
//! (`tier2/mod.rs`). Deliberately absent: SSA; a value is a web of writes there, and nothing here.
pub mod bits;
pub mod float;
mod fold;
pub(crate) mod loops;
pub mod print;

use crate::guest::Insn;
use crate::tier2::Frames;
use notdirty_softmmu::{AmoOp, MemSize};
use smallvec::SmallVec;

pub use bits::{Bits, Operands};
pub(crate) use float::BOX;
pub use float::{Float, boxed};
pub(crate) use fold::fold_alu;

/// Two-operand arithmetic; the names are RISC-V's.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Alu {
    Add,
    Sub,
    Xor,
    Or,
    And,
    Sll,
    Srl,
    Sra,
    Slt,
    Sltu,
    AddW,
    SubW,
    SllW,
    SrlW,
    SraW,
    Mul,
    Mulh,
    Mulhsu,
    Mulhu,
    MulW,
    Div,
    Divu,
    Rem,
    Remu,
    DivW,
    DivuW,
    RemW,
    RemuW,
}

/// Size and signedness of a memory access: log2 of the bytes, +4 if a load extends the sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemOp(pub u8);

impl MemOp {
    /// Bytes accessed.
    pub const fn bytes(self) -> u32 {
        1 << (self.0 & 3)
    }
    /// The same, as an access has it.
    pub const fn size(self) -> MemSize {
        match self.0 & 3 {
            0 => MemSize::B1,
            1 => MemSize::B2,
            2 => MemSize::B4,
            _ => MemSize::B8,
        }
    }
    /// Does a load extend the sign?
    pub const fn signed(self) -> bool {
        self.0 & 4 != 0
    }
}

/// Registers from here on are floating-point ones, up to twice that.
pub const FIRST_FLOAT: u8 = 32;

/// What floating-point arithmetic has in its immediate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatArgs {
    /// In double precision?
    pub double: bool,
    /// Is it rounded as `frm` says?
    pub dynamic: bool,
    /// Is it rounded towards zero?
    pub truncate: bool,
    /// Of three operands: are they known to be boxed?
    pub boxes: [bool; 3],
    /// Does the destination hold a boxed number now?
    pub boxed: bool,
    /// The third operand.
    pub third: u8,
}

impl FloatArgs {
    /// As an immediate.
    pub fn pack(self) -> i64 {
        let [a, b, c] = self.boxes;
        let bits = [self.double, self.dynamic, self.truncate, a, b, c, self.boxed];
        bits.iter().rev().fold(i64::from(self.third), |all, &bit| all << 1 | i64::from(bit))
    }

    /// From an immediate.
    pub fn unpack(imm: i64) -> FloatArgs {
        let bit = |n: u32| imm >> n & 1 != 0;
        FloatArgs {
            double: bit(0),
            dynamic: bit(1),
            truncate: bit(2),
            boxes: [bit(3), bit(4), bit(5)],
            boxed: bit(6),
            third: (imm >> 7) as u8 & 31,
        }
    }
}

/// What an [`Ir`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `rd = imm`
    Li,
    /// `rd = a`
    Mov,
    /// `rd = a op b`
    Reg(Alu),
    /// `rd = a op imm`
    Imm(Alu),
    /// `rd = a op b`, or `a op imm`, or `op a`, as [`Bits::operands`] says
    Bits(Bits),
    /// `rd = a`, of which 32 bits are rotated to the right by `imm`; what is above them is anything
    NarrowRotate,
    /// `rd = [a + imm]`; faults and slow paths go through `site`
    Load(MemOp),
    /// `[a + imm] = b`
    Store(MemOp),
    /// The bytes that [`Region::checks`] has at `imm` lie on pages where accesses need no check, off `a`, or off `a` and index
    /// `b`; or control goes on at its cold block
    Check,
    /// `rd = [a + (b << n) + imm]`, checked before
    LoadFast(MemOp, u8),
    /// `[a + imm] = b`, checked before
    StoreFast(MemOp),
    /// `rd = ` the word of CPU state at `imm`
    ReadState,
    /// `rd = ` the word of CPU state at `imm`, which becomes `a`; its low bit cleared if `b` is 1
    SwapState,
    /// Floating-point arithmetic on `a`, `b` and a third; see [`FloatArgs`]. What the host cannot do goes through `site`
    Float(Float),
    /// The unit is on, and dirty if `imm` is 2; otherwise Rust is asked through `site`, and may trap
    FloatOn,
    /// `rd`, a floating-point register, holds 32 bits: box them
    Box,
    /// Stores before are visible before loads after are done
    Fence,
    /// `rd = [a]`, and `[a] = rd op b`, at once; a word extends its sign
    Amo(AmoOp, MemOp),
    /// `rd = [a]`, which is reserved
    LoadReserved(MemOp),
    /// `[a] = b` if it is reserved and unchanged; `rd` says if not
    StoreConditional(MemOp),
    /// `rd = ` the counter whose offset is the word of CPU state at `imm`; `a` is its bit of `mcountinhibit`, and `b` the
    /// number of the instruction in its block, from one
    ReadCounter,
    /// What was written is seen from here on
    FenceI,
    /// The whole instruction is done in Rust: most CSRs
    Rust,
    /// The counter at `imm` of those of coverage goes up by `b`, a byte; with `a`, for the way on which control came to its block
    Cover,
    /// `a`, and `b` or with `rd` the immediate, are compared: they are noted at place `site`
    Operands,
    /// Hooks are called through `site`, which may see and change everything
    Hook,
    /// Hooks are called that get the pc of `site` alone; `imm` says which: see [`tell`](crate::hooks). Through `site` one of them ends
    /// the run
    Tell,
}

impl Kind {
    /// Is it a load or a store, or both?
    pub const fn accesses(self) -> bool {
        use Kind::{Amo, Load, LoadFast, LoadReserved, Store, StoreConditional, StoreFast};
        matches!(
            self,
            Load(_) | Store(_) | LoadFast(..) | StoreFast(_) | Amo(..) | LoadReserved(_) | StoreConditional(_)
        )
    }

    /// May the hart store to memory by it?
    pub const fn may_store(self) -> bool {
        use Kind::{Amo, FenceI, Hook, Rust, Store, StoreConditional, StoreFast};
        matches!(self, Store(_) | StoreFast(_) | StoreConditional(_) | Amo(..) | Rust | FenceI | Hook)
    }

    /// May Rust execute it, and do more than an access? What was checked before it is not checked behind it.
    pub const fn may_leave(self) -> bool {
        use Kind::{Amo, FenceI, Hook, LoadReserved, ReadCounter, Rust, StoreConditional, Tell};
        matches!(self, Rust | FenceI | ReadCounter | Amo(..) | LoadReserved(_) | StoreConditional(_) | Hook | Tell)
    }
}

/// One operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ir {
    /// What to do.
    pub kind: Kind,
    /// Destination register.
    pub rd: u8,
    /// First source register.
    pub a: u8,
    /// Second source register.
    pub b: u8,
    /// Index into [`Region::sites`], for ops that may leave emitted code. Of `LoadFast` and `StoreFast`, one more than the place where
    /// their check keeps the addend, or 0 if it is the one that is assumed of all.
    pub site: u16,
    /// The immediate.
    pub imm: i64,
}

impl Ir {
    /// Where its check keeps the addend of an access that was checked before, if it keeps it.
    pub(crate) fn kept(&self) -> Option<u8> {
        let fast = matches!(self.kind, Kind::LoadFast(..) | Kind::StoreFast(_));
        if fast { self.site.checked_sub(1).map(|slot| slot as u8) } else { None }
    }
}

/// Where control goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Another block of this region.
    Block(u16),
    /// Out of the region, to this pc.
    Exit(u64),
}

/// Conditions of branches.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cond {
    Eq,
    Ne,
    Lt,
    Ge,
    Ltu,
    Geu,
}

impl Cond {
    /// What holds where it does not.
    pub(crate) fn negate(self) -> Cond {
        match self {
            Cond::Eq => Cond::Ne,
            Cond::Ne => Cond::Eq,
            Cond::Lt => Cond::Ge,
            Cond::Ge => Cond::Lt,
            Cond::Ltu => Cond::Geu,
            Cond::Geu => Cond::Ltu,
        }
    }
}

/// What is checked in front of a loop, for all accesses off one base in one direction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Check {
    /// The guest register.
    pub base: u8,
    /// Another that is added to it, shifted to the left by so much: small, and not below zero.
    pub index: Option<(u8, u8)>,
    /// Stores, or loads?
    pub store: bool,
    /// Offset of the first byte, off the base as it is in front of the loop.
    pub first: i32,
    /// Offset of the last byte.
    pub last: i32,
    /// How far the loop moves the address each turn.
    pub step: i32,
    /// Of its only access, if that is aligned: how many bytes it has.
    pub lone: Option<u8>,
    /// Where it keeps the addend of its entries, if that may be any; of them all then the same.
    pub kept: Option<u8>,
    /// Some of its loads were seen to be outside the run of pages that need no entry.
    pub beside_run: bool,
    /// The block in which each access has a check.
    pub cold: u16,
}

/// A loop that goes on as long as a condition holds of two registers: the clock, which each turn moves by one step, and the
/// bound, which it leaves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// The guest register.
    pub clock: u8,
    /// How far each turn moves it: not 0.
    pub step: i32,
    /// The guest register, or 0.
    pub bound: u8,
    /// Not `Eq`. Of the others but `Ne`, the one that a turn leaves behind is the lesser; `Ge` and `Geu`: or they are equal.
    pub cond: Cond,
    /// Is it moved on 32 bits?
    pub word: bool,
    /// Guest instructions of a turn.
    pub insns: u16,
}

/// How a block ends.
#[allow(missing_docs, reason = "the variants say what their fields are")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Go on there.
    Goto(Target),
    /// Two ways; `word`: by the 32 low bits of operands that are extensions of theirs.
    Branch { cond: Cond, a: u8, b: u8, word: bool, taken: Target, fall: Target },
    /// Out if the condition holds; else `fast` until register `clock` is where its page ends, then `head`, which checks anew.
    /// Without a clock (0) the checks failed, and are done anew some 128 instructions later.
    Again { cond: Cond, a: u8, b: u8, word: bool, out: Target, fast: u16, head: u16, clock: u8 },
    /// All checks held, and the turns are counted: `fast` for all but the last of them; or `once`, if there is one. The checks
    /// may lead to `cold`, as does a count of none, and `once` may be it.
    Count { turns: Turns, fast: u16, once: u16, cold: u16 },
    /// `fast` until register `clock` is where all turns but one are done, then `last`.
    Turn { clock: u8, fast: u16, last: u16 },
    /// All checks held: `fast`. They may lead to `cold`. The clock is a register that the loop moves, with its step.
    Fork { fast: u16, cold: u16, clock: Option<(u8, i32)> },
    /// `jalr`: to `(base + imm) & !1`; `link` is the register and value to write; with `cover` the jump is counted, see `cover.rs`;
    /// with `tells` hooks of where it goes are called through this site.
    Indirect { base: u8, imm: i32, link: Option<(u8, u64)>, cover: Option<(u16, u16)>, tells: Option<u16> },
    /// Rust executes the instruction of this site, and control goes on elsewhere.
    System { site: u16 },
}

impl Term {
    /// Where control may go directly, inside the region or out of it; indirect jumps have places of their own.
    #[inline(always)]
    pub fn each_target(&self, mut see: impl FnMut(Target)) {
        match *self {
            Term::Goto(to) => see(to),
            Term::Branch { taken, fall, .. } => {
                see(taken);
                see(fall);
            }
            Term::Again { out, fast, head, .. } => {
                see(out);
                see(Target::Block(fast));
                see(Target::Block(head));
            }
            Term::Count { fast, once, cold, .. } => [fast, once, cold].into_iter().for_each(|b| see(Target::Block(b))),
            Term::Turn { fast, last, .. } => [fast, last].into_iter().for_each(|b| see(Target::Block(b))),
            Term::Fork { fast, cold, .. } => {
                see(Target::Block(fast));
                see(Target::Block(cold));
            }
            _ => {}
        }
    }

    /// Is that block of the region one of the places?
    #[inline(always)]
    pub fn leads_to(&self, block: u16) -> bool {
        let mut leads = false;
        self.each_target(|to| leads |= to == Target::Block(block));
        leads
    }

    /// Where control goes on behind the block, if that is the only way and leads out of the region.
    pub fn exit(&self) -> Option<u64> {
        if let Term::Goto(Target::Exit(pc)) = *self { Some(pc) } else { None }
    }
}

/// So many accesses off one base may share a check; fewer are cheaper with one each.
pub(crate) const SHARED: u8 = 2;

/// A straight run of guest instructions.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Where it starts.
    pub pc: u64,
    /// Guest instructions in it.
    pub insns: u16,
    /// Its ops: `ops[first..end]`.
    pub first: u32,
    /// See `first`.
    pub end: u32,
    /// Is the budget polled at its head?
    pub poll: bool,
    /// May `SHARED` loads or stores have one base?
    pub shares: bool,
    /// How it ends.
    pub term: Term,
}

/// Of [`Site::learned`]: its probe lets misaligned accesses through.
pub(crate) const LETS_ODD: u8 = 0x80;
/// It tests the line.
pub(crate) const TESTS_LINE: u8 = 0x40;
/// It takes the addend from the entry.
pub(crate) const SEES_ADDEND: u8 = 0x20;
/// The same: it looks for an entry, whatever pages need none.
pub(crate) const SEES_ENTRY: u8 = 0x10;
/// How often its access was misaligned, in its TB.
pub(crate) const COUNT: u8 = 0xf;

/// A place from which emitted code may call Rust.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// The instruction's address.
    pub pc: u64,
    /// The instruction.
    pub insn: Insn,
    /// Instructions charged by the block's head that have not retired when this one starts (itself included).
    pub refund: u16,
    /// What is asked for.
    pub does: Does,
    /// What its TB saw of its accesses, and what its code was made for: [`COUNT`], [`LETS_ODD`],
    /// [`TESTS_LINE`], [`SEES_ADDEND`], [`SEES_ENTRY`].
    pub(crate) learned: u8,
}

/// What Rust is asked for at a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    /// To execute the instruction.
    Execute,
    /// The same; it is a load of an integer register.
    Load,
    /// The same; it is a store of an integer register.
    Store,
    /// To switch the floating-point unit on for it, and no more.
    Begin,
    /// To call the hooks of the instruction, which is next.
    Hook {
        /// One more than the number of the only one, or 0.
        only: u16,
    },
    /// To call those of where control went, which is here.
    Arrive {
        /// As above.
        only: u16,
    },
    /// The same at `cpu.pc`; hooks that get the pc alone need not come here.
    ArriveAt {
        /// Are there only such?
        light: bool,
    },
}

/// Guest bytes on one page: `[start, end)` within page 0 or 1 of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which of the region's pages.
    pub page: u8,
    /// First byte, in the page.
    pub start: u16,
    /// One past the last byte.
    pub end: u16,
}

/// The unit of translation: several blocks, several exits, loops inside.
#[derive(Debug, Default)]
pub struct Region {
    /// Where it is entered.
    pub pc: u64,
    /// Index of the block at `pc`.
    pub entry: u16,
    /// Blocks in order of address.
    pub blocks: Vec<Block>,
    /// All blocks' ops.
    pub ops: Vec<Ir>,
    /// All sites.
    pub sites: Vec<Site>,
    /// The bytes it was made from, ascending, merged.
    pub spans: SmallVec<[Span; 4]>,
    /// Guest instructions translated.
    pub insns: u32,
    /// Does an edge go back?
    pub loops: bool,
    /// May it call hooks?
    pub hooked: bool,
    /// Does it note operands?
    pub noted: bool,
    /// What is checked in front of loops.
    pub checks: Vec<Check>,
    /// What is checked at the entry, in tier 2; off the region's own address if the base is `x0`.
    pub shared: Vec<Check>,
    /// In tier 2: how often an instruction of each block runs, as an estimate.
    pub(crate) weights: Vec<u32>,
    /// Where values are, if tier 2 gave them host registers.
    pub(crate) frames: Frames,
}

impl Region {
    /// Is there something in it that tier 2 leaves alone?
    pub(crate) fn is_instrumented(&self) -> bool {
        self.hooked || self.noted
    }

    /// Empties it, keeping its memory.
    pub fn clear(&mut self) {
        self.blocks.clear();
        self.ops.clear();
        self.sites.clear();
        self.spans.clear();
        self.insns = 0;
        self.loops = false;
        (self.hooked, self.noted) = (false, false);
        self.checks.clear();
        self.shared.clear();
        self.weights.clear();
        self.frames.clear();
    }
}

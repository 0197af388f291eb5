//! One guest instruction at a time to IR, with constants folded and dead writes dropped inside a block.
//!
//! A write is dead when an op soon after overwrites it, and nothing in between reads it or might fault, which would show
//! the register to a handler.
//!
//! A fence is only worth its price between a store and a load, so it waits for what is next to access memory or may leave
//! (`Barrier`): fences in a row are one, and one with no store behind the last is none.
mod float;
pub(crate) mod plan;

use super::csr::{self, CsrEffect, Gate, Rule, Value};
use super::decode::Packed;
use super::{Insn, Op, Privilege};
use crate::cpu::CpuState;
use crate::hooks::Wanted;
use crate::ir::{
    Alu, Bits, Does, FIRST_FLOAT, Ir, Kind, MemOp, Operands, Region, SHARED, Site, Target, Term, fold_alu,
};
use float::Unit;
use plan::Plan;
use std::mem::offset_of;

/// What a block knows of the order of its accesses. All but stores before loads the host keeps (TSO).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barrier {
    /// There may be a store that others do not see yet.
    Stored,
    /// The same, and what comes next shall find it seen.
    Wanted,
    /// Every store is seen.
    Done,
}

/// State of the pass within one block.
pub(crate) struct Lower {
    optimise: bool,
    /// All registers, if dead writes are dropped; or none.
    drops: u32,
    /// The mode that it is for: which registers are reached at all, and which without a question.
    mode: Privilege,
    /// Registers whose value is known, a bit each; none, if that is not wanted.
    known: u32,
    values: [u64; 32],
    /// Registers whose last write nobody has read or could have seen yet, a bit each.
    unread: u32,
    /// Where those writes are, in the region's ops.
    writes: [u32; 32],
    pub(crate) unit: Unit,
    /// How many loads and stores off each base there are, and the most of them.
    accesses: [u8; 64],
    // As wide as it is read: what is written as a byte and read as a word waits.
    most: u32,
    barrier: Barrier,
}

/// Instruction number `count` of a block as a site; the block's end turns the number into a refund.
pub(crate) fn push_site(region: &mut Region, pc: u64, insn: Insn, count: u16, does: Does) -> u16 {
    region.sites.push(Site { pc, insn, refund: count, does, learned: 0 });
    (region.sites.len() - 1) as u16
}

impl Default for Lower {
    fn default() -> Lower {
        Lower {
            optimise: false,
            drops: 0,
            mode: Privilege::M,
            known: 0,
            values: [0; 32],
            unread: 0,
            writes: [0; 32],
            unit: Unit::default(),
            accesses: [0; 64],
            most: 0,
            barrier: Barrier::Stored,
        }
    }
}

impl Lower {
    /// What is wanted, and for which mode.
    pub(crate) fn set(&mut self, optimise: bool, mode: Privilege) {
        (self.optimise, self.mode) = (optimise, mode);
        self.drops = if optimise { u32::MAX } else { 0 };
    }

    /// A new block begins.
    pub(crate) fn start(&mut self) {
        (self.known, self.unread) = (self.optimise.into(), 0);
        self.unit = Unit::default();
        (self.accesses, self.most) = ([0; 64], 0);
        self.barrier = Barrier::Stored;
    }

    fn value(&self, register: u8) -> Option<u64> {
        (self.known >> (register & 31) & 1 != 0).then(|| self.values[usize::from(register & 31)])
    }

    /// May accesses of the block share a check?
    pub(crate) fn shares(&self) -> bool {
        self.most >= SHARED.into()
    }

    /// There is a load, or a store, off a base.
    #[inline(always)]
    fn count_access(&mut self, base: u8, store: bool) {
        let count = &mut self.accesses[usize::from(base & 31) | usize::from(store) << 5];
        // After 256 it begins anew, and `most` knows enough by then.
        *count = count.wrapping_add(1);
        self.most = self.most.max((*count).into());
    }

    /// A plain instruction, number `count` of its block.
    // `packed` is taken apart anew by each call and site: one `Insn` for all would be put together in memory, and read
    // sooner than the parts that were just written can be had as a whole.
    #[inline]
    pub(crate) fn insn(&mut self, region: &mut Region, pc: u64, packed: &Packed, count: u16) {
        let insn = packed.insn();
        let Insn { rd, rs1: a, rs2: b, .. } = insn;
        let imm = i64::from(insn.imm);
        match packed.plan {
            Plan::Imm(alu) => self.imm(region, alu, rd, a, imm),
            Plan::Reg(alu) => self.reg(region, alu, rd, a, b),
            Plan::Load(mem) => {
                let site = push_site(region, pc, packed.insn(), count, Does::Load);
                self.push_kind(region, Ir { kind: Kind::Load(mem), rd, a, b, site, imm });
            }
            Plan::Store(mem) => {
                let site = push_site(region, pc, packed.insn(), count, Does::Store);
                self.push_kind(region, Ir { kind: Kind::Store(mem), rd: 0, a, b, site, imm });
            }
            Plan::Upper => self.li(region, rd, imm),
            Plan::UpperPc => self.li(region, rd, pc.wrapping_add(imm as u64) as i64),
            Plan::Fence if insn.orders_stores_before_loads(self.mode) => self.fence(region),
            // The host's total store order is as strong as any other fence.
            Plan::Fence => {}
            Plan::Float => self.float(region, pc, packed.insn(), count),
            Plan::Bits(op) => self.bits(region, op, packed.insn()),
            _ => self.rare(region, pc, packed.insn(), count),
        }
    }

    /// Hooks of this instruction, before it.
    pub(crate) fn hook(&mut self, region: &mut Region, pc: u64, insn: Insn, count: u16, wanted: Wanted) {
        let kind = match wanted {
            Wanted::Nothing => return,
            Wanted::Light(_) => Kind::Tell,
            Wanted::Full(_) => Kind::Hook,
        };
        let which = if let Wanted::Light(one) = wanted { i64::from(one) << 1 } else { 0 };
        let only = if let Wanted::Full(only) = wanted { only } else { 0 };
        let site = push_site(region, pc, insn, count, Does::Hook { only });
        self.push(region, Ir { kind, rd: 0, a: 0, b: 0, site, imm: which });
        if kind == Kind::Hook {
            // Nothing is as it was, registers least of all.
            self.known = self.optimise.into();
            self.unit = Unit::default();
        }
    }

    /// What this instruction is about to compare.
    pub(crate) fn operands(&mut self, region: &mut Region, insn: Insn, place: u16) {
        let Insn { rs1: a, rs2: b, .. } = insn;
        let constant = matches!(insn.op, Op::Slti | Op::Sltiu);
        let b = if constant { 0 } else { b };
        self.unread &= !(1 << a | 1 << b);
        let imm = if constant { insn.imm.into() } else { 0 };
        region.ops.push(Ir { kind: Kind::Operands, rd: constant.into(), a, b, site: place, imm });
    }

    /// Bit manipulation and Zicond.
    #[inline(never)]
    fn bits(&mut self, region: &mut Region, op: Bits, insn: Insn) {
        let Insn { rd, rs1: a, rs2: b, .. } = insn;
        let (b, reads) = if op.operands() == Operands::Two { (b, 1 << a | 1 << b) } else { (0, 1 << a) };
        self.write(region, Ir { kind: Kind::Bits(op), rd, a, b, site: 0, imm: insn.imm.into() }, reads);
    }

    /// A, Zicsr, `fence.i`, and what is left to Rust.
    #[inline(never)]
    fn rare(&mut self, region: &mut Region, pc: u64, insn: Insn, count: u16) {
        let Insn { op, rd, rs1: a, rs2: b, .. } = insn;
        if let Some((kind, offset, b)) = plain_csr(&insn, self.mode) {
            return self.push(region, Ir { kind, rd, a, b, site: 0, imm: offset as i64 });
        }
        let mem = MemOp(op.mem_bytes().trailing_zeros() as u8 & 3 | 4);
        let kind = match op {
            Op::LrW | Op::LrD => {
                if insn.releases() {
                    self.fence(region);
                }
                Kind::LoadReserved(mem)
            }
            Op::ScW | Op::ScD => Kind::StoreConditional(mem),
            Op::FenceI => Kind::FenceI,
            Op::Csrrs | Op::Csrrc | Op::Csrrsi | Op::Csrrci if a == 0 => match counter(insn.csr(), self.mode) {
                Some((offset, bit)) if count <= u8::MAX.into() => {
                    let site = push_site(region, pc, insn, count, Does::Execute);
                    let ir = Ir { kind: Kind::ReadCounter, rd, a: bit, b: count as u8, site, imm: offset as i64 };
                    return self.push(region, ir);
                }
                _ => Kind::Rust,
            },
            _ => op.amo().map_or(Kind::Rust, |amo| Kind::Amo(amo, mem)),
        };
        if op.is_csr() {
            self.unit.forget_state();
        }
        let site = push_site(region, pc, insn, count, Does::Execute);
        self.push(region, Ir { kind, rd, a, b, site, imm: insn.imm.into() });
    }

    /// Stores before are seen before loads behind are done.
    #[inline(never)]
    fn fence(&mut self, region: &mut Region) {
        if self.barrier == Barrier::Stored {
            self.barrier = Barrier::Wanted;
        }
        if !self.optimise {
            self.barrier(region);
            self.barrier = Barrier::Stored;
        }
    }

    /// The barrier that was asked for, if it was.
    #[inline(always)]
    fn barrier(&mut self, region: &mut Region) {
        if self.barrier == Barrier::Wanted {
            self.push_barrier(region);
        }
    }

    #[cold]
    #[inline(never)]
    fn push_barrier(&mut self, region: &mut Region) {
        region.ops.push(Ir { kind: Kind::Fence, rd: 0, a: 0, b: 0, site: 0, imm: 0 });
        self.barrier = Barrier::Done;
    }

    /// What the block does ends here; its terminator is behind.
    pub(crate) fn end(&mut self, region: &mut Region) {
        self.barrier(region);
    }

    /// The instruction that ends a block, but a branch; a direct one goes `to`.
    // In line: what it returns is too wide for registers, and would be read as words sooner than its parts are written.
    #[inline(always)]
    pub(crate) fn terminator(
        &mut self,
        region: &mut Region,
        packed: Packed,
        pc: u64,
        insn: Insn,
        count: u16,
        to: Target,
    ) -> Term {
        let Insn { rd, rs1, .. } = insn;
        let next_pc = pc.wrapping_add(insn.len.into());
        match packed.plan {
            Plan::Jump => {
                self.li(region, rd, next_pc as i64);
                // What is called is a TB of its own, though it may be in sight.
                Term::Goto(if rd == 0 { to } else { Target::Exit(insn.target(pc)) })
            }
            Plan::Indirect => {
                if let Some(base) = self.value(rs1) {
                    let to = base.wrapping_add(insn.imm64()) & !1;
                    self.li(region, rd, next_pc as i64);
                    return Term::Goto(Target::Exit(to));
                }
                Term::Indirect {
                    base: rs1,
                    imm: insn.imm,
                    link: (rd != 0).then_some((rd, next_pc)),
                    cover: None,
                    tells: None,
                }
            }
            _ => Term::System { site: push_site(region, pc, insn, count, Does::Execute) },
        }
    }

    #[inline(never)]
    fn li(&mut self, region: &mut Region, rd: u8, imm: i64) {
        self.write(region, Ir { kind: Kind::Li, rd, a: 0, b: 0, site: 0, imm }, 0);
    }

    fn mov(&mut self, region: &mut Region, rd: u8, a: u8) {
        if a != rd {
            self.write(region, Ir { kind: Kind::Mov, rd, a, b: 0, site: 0, imm: 0 }, 1 << a);
        }
    }

    #[inline]
    fn imm(&mut self, region: &mut Region, op: Alu, rd: u8, a: u8, imm: i64) {
        if self.known >> (a & 31) & 1 != 0 || op == Alu::Add && imm == 0 {
            return self.imm_known(region, op, rd, a, imm);
        }
        self.write(region, Ir { kind: Kind::Imm(op), rd, a, b: 0, site: 0, imm }, 1 << a);
    }

    /// The same where the register has a value that is known, or is moved.
    #[inline(never)]
    fn imm_known(&mut self, region: &mut Region, op: Alu, rd: u8, a: u8, imm: i64) {
        if let Some(value) = self.value(a).and_then(|a| fold_alu(op, a, imm as u64)) {
            return self.li(region, rd, value as i64);
        }
        if op == Alu::Add && imm == 0 {
            return self.mov(region, rd, a);
        }
        self.write(region, Ir { kind: Kind::Imm(op), rd, a, b: 0, site: 0, imm }, 1 << a);
    }

    #[inline]
    fn reg(&mut self, region: &mut Region, op: Alu, rd: u8, a: u8, b: u8) {
        if self.known & (1 << (a & 31) | 1 << (b & 31)) != 0 {
            return self.reg_known(region, op, rd, a, b);
        }
        self.write(region, Ir { kind: Kind::Reg(op), rd, a, b, site: 0, imm: 0 }, 1 << a | 1 << b);
    }

    /// The same where one of the two has a value that is known.
    #[inline(never)]
    fn reg_known(&mut self, region: &mut Region, op: Alu, rd: u8, a: u8, b: u8) {
        match (self.value(a), self.value(b)) {
            (Some(x), Some(y)) => {
                if let Some(value) = fold_alu(op, x, y) {
                    return self.li(region, rd, value as i64);
                }
            }
            (_, Some(0)) if matches!(op, Alu::Add | Alu::Sub | Alu::Or | Alu::Xor) => {
                return self.mov(region, rd, a);
            }
            (Some(0), _) if matches!(op, Alu::Add | Alu::Or | Alu::Xor) => return self.mov(region, rd, b),
            (_, Some(y)) if takes_imm(op) && i32::try_from(y as i64).is_ok() => {
                let ir = Ir { kind: Kind::Imm(op), rd, a, b: 0, site: 0, imm: y as i64 };
                return self.write(region, ir, 1 << a);
            }
            _ => {}
        }
        self.write(region, Ir { kind: Kind::Reg(op), rd, a, b, site: 0, imm: 0 }, 1 << a | 1 << b);
    }

    /// An op without effects but its result, and the registers it reads.
    #[inline]
    fn write(&mut self, region: &mut Region, ir: Ir, reads: u32) {
        if ir.rd == 0 {
            return;
        }
        let (rd, bit) = (usize::from(ir.rd & 31), 1 << (ir.rd & 31));
        self.unread &= !reads;
        if self.unread & bit != 0 {
            self.remove(region, rd);
        }
        self.writes[rd] = region.ops.len() as u32;
        self.unread |= bit & self.drops;
        self.known &= !bit;
        if ir.kind == Kind::Li && self.optimise {
            self.known |= bit;
            self.values[rd] = ir.imm as u64;
        }
        region.ops.push(ir);
    }

    /// Takes back the last write to `rd`, which is dead: what follows overwrites it.
    #[cold]
    fn remove(&mut self, region: &mut Region, rd: usize) {
        let at = self.writes[rd];
        region.ops.remove(at as usize);
        for write in &mut self.writes {
            *write -= u32::from(*write > at);
        }
    }

    /// An op that may fault or have an effect: a handler sees every register.
    #[inline(never)]
    pub(crate) fn push(&mut self, region: &mut Region, ir: Ir) {
        self.push_kind(region, ir);
    }

    /// The same for a kind that the compiler knows.
    #[inline(always)]
    fn push_kind(&mut self, region: &mut Region, ir: Ir) {
        self.unread = 0;
        match ir.kind {
            // A locked instruction, before and behind which every store is seen; `execute_site` sees to that, too.
            Kind::Amo(..) if self.optimise => self.barrier = Barrier::Done,
            kind if kind.may_store() => {
                self.barrier(region);
                self.barrier = Barrier::Stored;
            }
            _ => self.barrier(region),
        }
        match ir.kind {
            Kind::Load(_) => self.count_access(ir.a, false),
            Kind::Store(_) => self.count_access(ir.a, true),
            _ => {}
        }
        if ir.rd < FIRST_FLOAT {
            self.known &= !(1 << ir.rd) | 1;
        }
        region.ops.push(ir);
    }
}

/// CSRs that are plain words of the state, in a mode that reaches them: a handler's bread and butter needs no call. The rest,
/// and every read-modify-write, is done in Rust. The kind, where the word is in the state, and whether its low bit stays
/// clear.
fn plain_csr(insn: &Insn, mode: Privilege) -> Option<(Kind, usize, u8)> {
    let csr = insn.csr();
    if csr::lowest_mode(csr) > mode {
        return None;
    }
    match insn.op {
        Op::Csrrw => {
            let row = csr::find(csr)?;
            let clear = match row.mask {
                u64::MAX => 0,
                mask if mask == !1 => 1,
                _ => return None,
            };
            let plain =
                row.rule == Rule::Plain && row.effect == CsrEffect::None && row.ones == 0 && row.gate == Gate::None;
            Some((Kind::SwapState, offset_of!(CpuState, csr) + row.offset(csr).filter(|_| plain)?, clear))
        }
        Op::Csrrs | Op::Csrrc | Op::Csrrsi | Op::Csrrci if insn.rs1 == 0 && insn.rd != 0 => {
            let row = csr::find(csr).filter(|row| row.gate == Gate::None)?;
            let offset = match row.value {
                Value::HartId => offset_of!(CpuState, hart_id),
                _ => offset_of!(CpuState, csr) + row.offset(csr)?,
            };
            Some((Kind::ReadState, offset, 0))
        }
        _ => None,
    }
}

/// Where a counter is in the state, and its bit of `mcountinhibit`. Only M-mode reads it whatever is enabled.
fn counter(csr: u16, mode: Privilege) -> Option<(usize, u8)> {
    match csr::find(csr)?.value {
        Value::Counter(word, bit) if mode == Privilege::M => Some((offset_of!(CpuState, csr) + word.offset(), bit)),
        _ => None,
    }
}

fn takes_imm(op: Alu) -> bool {
    matches!(op, Alu::Add | Alu::And | Alu::Or | Alu::Xor | Alu::AddW | Alu::Slt | Alu::Sltu)
}

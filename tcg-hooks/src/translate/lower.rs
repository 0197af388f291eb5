//! One guest instruction at a time to IR, with constants folded and dead writes dropped inside a block.
//!
//! A write is dead when an op soon after overwrites it, and nothing in between reads it or might fault, which would show
//! the register to a handler.
use crate::cpu::CpuState;
use crate::ir::{Alu, Cond, Ir, Kind, MemOp, Region, Site, Target, Term};
use crate::riscv::csr::{Csrs, num};
use crate::riscv::{Insn, Op};
use std::mem::offset_of;

/// How many ops back a dead write is looked for.
const LOOK_BACK: usize = 4;

/// State of the pass within one block.
pub(super) struct Lower {
    optimise: bool,
    /// Registers whose value is known.
    known: [Option<u64>; 32],
    /// The block's first op.
    first: usize,
}

impl Lower {
    pub(super) fn new(optimise: bool) -> Lower {
        Lower { optimise, known: [None; 32], first: 0 }
    }

    /// A new block begins.
    pub(super) fn start(&mut self, region: &mut Region) {
        self.known = [None; 32];
        self.known[0] = Some(0);
        self.first = region.ops.len();
    }

    /// A plain instruction.
    pub(super) fn insn(&mut self, region: &mut Region, site: Site) {
        let Insn { op, rd, rs1, rs2, .. } = site.insn;
        let imm = i64::from(site.insn.imm);
        let ir = |kind| Ir { kind, rd, a: rs1, b: rs2, site: 0, imm };
        match op {
            Op::Lui => self.pure(region, Ir { kind: Kind::Li, rd, a: 0, b: 0, site: 0, imm }),
            Op::Auipc => {
                let imm = site.pc.wrapping_add(imm as u64) as i64;
                self.pure(region, Ir { kind: Kind::Li, rd, a: 0, b: 0, site: 0, imm });
            }
            Op::Fence => {
                // One vCPU's accesses are in order on its own host thread; other harts are not there yet.
            }
            _ if op.is_load() => {
                let log = op.mem_bytes().trailing_zeros() as u8;
                let signed = if op.is_signed_load() { 4 } else { 0 };
                let site = push_site(region, site);
                self.push(region, Ir { site, ..ir(Kind::Load(MemOp(log | signed))) });
            }
            _ if op.is_store() => {
                let site = push_site(region, site);
                let kind = Kind::Store(MemOp(op.mem_bytes().trailing_zeros() as u8));
                self.push(region, Ir { site, rd: 0, ..ir(kind) });
            }
            _ => match alu(op) {
                Some((alu, true)) => self.pure(region, Ir { b: 0, ..ir(Kind::Imm(alu)) }),
                Some((alu, false)) => self.pure(region, ir(Kind::Reg(alu))),
                None => match plain_csr(&site.insn) {
                    Some((kind, offset)) => {
                        // `mepc` alone has a bit that stays clear.
                        let b = u8::from(site.insn.csr() == num::MEPC);
                        self.push(region, Ir { b, imm: offset as i64, ..ir(kind) });
                    }
                    None => {
                        let site = push_site(region, site);
                        self.push(region, Ir { site, ..ir(Kind::Rust) });
                    }
                },
            },
        }
    }

    /// The instruction that ends a block; `targets` are where a direct one goes, and what follows it.
    pub(super) fn terminator(&mut self, region: &mut Region, site: Site, targets: (Target, Target)) -> Term {
        let Insn { op, rd, rs1, rs2, .. } = site.insn;
        let (to, next) = targets;
        let next_pc = site.pc.wrapping_add(site.insn.len.into());
        let links = |r: u8| r == 1 || r == 5;
        let cond = match op {
            Op::Beq => Cond::Eq,
            Op::Bne => Cond::Ne,
            Op::Blt => Cond::Lt,
            Op::Bge => Cond::Ge,
            Op::Bltu => Cond::Ltu,
            Op::Bgeu => Cond::Geu,
            Op::Jal => {
                if rd != 0 {
                    self.pure(region, Ir { kind: Kind::Li, rd, a: 0, b: 0, site: 0, imm: next_pc as i64 });
                }
                return if links(rd) {
                    Term::Call { ret: next_pc, to: site.insn.target(site.pc) }
                } else {
                    Term::Goto(to)
                };
            }
            Op::Jalr => {
                let link = (rd != 0).then_some((rd, next_pc));
                if let (true, Some(base), None) = (self.optimise, self.known[rs1 as usize], link) {
                    return Term::Goto(Target::Exit(base.wrapping_add(site.insn.imm64()) & !1));
                }
                if let (true, Some(base), Some((rd, ret))) = (self.optimise, self.known[rs1 as usize], link)
                    && links(rd)
                {
                    self.pure(region, Ir { kind: Kind::Li, rd, a: 0, b: 0, site: 0, imm: ret as i64 });
                    return Term::Call { ret, to: base.wrapping_add(site.insn.imm64()) & !1 };
                }
                // The hints of the unprivileged manual, 2.5.1: rd a link register pushes; rs1 one, and not rd, pops.
                let pops = links(rs1) && rs1 != rd;
                return Term::Indirect { base: rs1, imm: site.insn.imm, link, calls: links(rd), pops };
            }
            _ => return Term::System { site: push_site(region, site) },
        };
        Term::Branch { cond, a: rs1, b: rs2, taken: to, fall: next }
    }

    /// An op without effects but its result.
    fn pure(&mut self, region: &mut Region, mut ir: Ir) {
        if ir.rd == 0 {
            return;
        }
        if self.optimise {
            ir = self.fold(ir);
            if matches!(ir.kind, Kind::Mov) && ir.a == ir.rd {
                return;
            }
            self.drop_dead(region, &ir);
        }
        self.push(region, ir);
    }

    /// Removes the write that `ir` makes dead, if nothing behind it could have shown or read it.
    fn drop_dead(&self, region: &mut Region, ir: &Ir) {
        if reads(ir, ir.rd) {
            return;
        }
        for at in (self.first.max(region.ops.len().saturating_sub(LOOK_BACK))..region.ops.len()).rev() {
            let op = &region.ops[at];
            if !matches!(op.kind, Kind::Li | Kind::Mov | Kind::Reg(_) | Kind::Imm(_)) {
                return;
            }
            if op.rd == ir.rd {
                region.ops.remove(at);
                return;
            }
            if reads(op, ir.rd) {
                return;
            }
        }
    }

    fn push(&mut self, region: &mut Region, ir: Ir) {
        if ir.rd != 0 {
            self.known[ir.rd as usize] = if ir.kind == Kind::Li { Some(ir.imm as u64) } else { None };
        }
        region.ops.push(ir);
    }

    /// The same op with what is known put in.
    fn fold(&self, ir: Ir) -> Ir {
        let li = |v: u64| Ir { kind: Kind::Li, a: 0, b: 0, imm: v as i64, ..ir };
        let (a, b) = (self.known[ir.a as usize], self.known[ir.b as usize]);
        match ir.kind {
            Kind::Imm(op) => match a {
                Some(a) => fold_alu(op, a, ir.imm as u64).map_or(ir, li),
                None if op == Alu::Add && ir.imm == 0 => Ir { kind: Kind::Mov, ..ir },
                None => ir,
            },
            Kind::Reg(op) => match (a, b) {
                (Some(a), Some(b)) => fold_alu(op, a, b).map_or(ir, li),
                (_, Some(0)) if matches!(op, Alu::Add | Alu::Sub | Alu::Or | Alu::Xor) => {
                    Ir { kind: Kind::Mov, b: 0, ..ir }
                }
                (Some(0), _) if matches!(op, Alu::Add | Alu::Or | Alu::Xor) => {
                    Ir { kind: Kind::Mov, a: ir.b, b: 0, ..ir }
                }
                (_, Some(b)) if takes_imm(op) && i32::try_from(b as i64).is_ok() => {
                    Ir { kind: Kind::Imm(op), b: 0, imm: b as i64, ..ir }
                }
                _ => ir,
            },
            _ => ir,
        }
    }
}

/// CSRs that are plain words of the state, in M-mode: a handler's bread and butter needs no call. The rest, and every
/// read-modify-write, is done in Rust.
fn plain_csr(insn: &Insn) -> Option<(Kind, usize)> {
    let csr = offset_of!(CpuState, csr);
    let (offset, writable) = match insn.csr() {
        num::MSCRATCH => (offset_of!(Csrs, mscratch), true),
        num::MEPC => (offset_of!(Csrs, mepc), true),
        num::MCAUSE => (offset_of!(Csrs, mcause), true),
        num::MTVAL => (offset_of!(Csrs, mtval), true),
        num::MTVEC => (offset_of!(Csrs, mtvec), false),
        num::MSTATUS => (offset_of!(Csrs, mstatus), false),
        num::MIE => (offset_of!(Csrs, mie), false),
        _ => return None,
    };
    match insn.op {
        Op::Csrrw if writable => Some((Kind::SwapState, csr + offset)),
        Op::Csrrs | Op::Csrrc | Op::Csrrsi | Op::Csrrci if insn.rs1 == 0 && insn.rd != 0 => {
            Some((Kind::ReadState, csr + offset))
        }
        _ => None,
    }
}

fn push_site(region: &mut Region, site: Site) -> u16 {
    region.sites.push(site);
    (region.sites.len() - 1) as u16
}

fn reads(ir: &Ir, register: u8) -> bool {
    match ir.kind {
        Kind::Li => false,
        Kind::Mov | Kind::Imm(_) | Kind::Load(_) => ir.a == register,
        _ => ir.a == register || ir.b == register,
    }
}

fn takes_imm(op: Alu) -> bool {
    matches!(op, Alu::Add | Alu::And | Alu::Or | Alu::Xor | Alu::AddW | Alu::Slt | Alu::Sltu)
}

fn fold_alu(op: Alu, a: u64, b: u64) -> Option<u64> {
    let word = |v: u32| v as i32 as i64 as u64;
    Some(match op {
        Alu::Add => a.wrapping_add(b),
        Alu::Sub => a.wrapping_sub(b),
        Alu::And => a & b,
        Alu::Or => a | b,
        Alu::Xor => a ^ b,
        Alu::Sll => a << (b & 63),
        Alu::Srl => a >> (b & 63),
        Alu::Sra => ((a as i64) >> (b & 63)) as u64,
        Alu::Slt => u64::from((a as i64) < b as i64),
        Alu::Sltu => u64::from(a < b),
        Alu::AddW => word((a as u32).wrapping_add(b as u32)),
        Alu::SubW => word((a as u32).wrapping_sub(b as u32)),
        Alu::SllW => word((a as u32) << (b & 31)),
        Alu::SrlW => word((a as u32) >> (b & 31)),
        Alu::SraW => word(((a as i32) >> (b & 31)) as u32),
        _ => return None,
    })
}

/// The operation of an arithmetic instruction, and whether its second operand is the immediate.
fn alu(op: Op) -> Option<(Alu, bool)> {
    Some(match op {
        Op::Addi => (Alu::Add, true),
        Op::Slti => (Alu::Slt, true),
        Op::Sltiu => (Alu::Sltu, true),
        Op::Xori => (Alu::Xor, true),
        Op::Ori => (Alu::Or, true),
        Op::Andi => (Alu::And, true),
        Op::Slli => (Alu::Sll, true),
        Op::Srli => (Alu::Srl, true),
        Op::Srai => (Alu::Sra, true),
        Op::Addiw => (Alu::AddW, true),
        Op::Slliw => (Alu::SllW, true),
        Op::Srliw => (Alu::SrlW, true),
        Op::Sraiw => (Alu::SraW, true),
        Op::Add => (Alu::Add, false),
        Op::Sub => (Alu::Sub, false),
        Op::Sll => (Alu::Sll, false),
        Op::Slt => (Alu::Slt, false),
        Op::Sltu => (Alu::Sltu, false),
        Op::Xor => (Alu::Xor, false),
        Op::Srl => (Alu::Srl, false),
        Op::Sra => (Alu::Sra, false),
        Op::Or => (Alu::Or, false),
        Op::And => (Alu::And, false),
        Op::Addw => (Alu::AddW, false),
        Op::Subw => (Alu::SubW, false),
        Op::Sllw => (Alu::SllW, false),
        Op::Srlw => (Alu::SrlW, false),
        Op::Sraw => (Alu::SraW, false),
        Op::Mul => (Alu::Mul, false),
        Op::Mulh => (Alu::Mulh, false),
        Op::Mulhsu => (Alu::Mulhsu, false),
        Op::Mulhu => (Alu::Mulhu, false),
        Op::Mulw => (Alu::MulW, false),
        Op::Div => (Alu::Div, false),
        Op::Divu => (Alu::Divu, false),
        Op::Rem => (Alu::Rem, false),
        Op::Remu => (Alu::Remu, false),
        Op::Divw => (Alu::DivW, false),
        Op::Divuw => (Alu::DivuW, false),
        Op::Remw => (Alu::RemW, false),
        Op::Remuw => (Alu::RemuW, false),
        _ => return None,
    })
}

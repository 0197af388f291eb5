//! One instruction of tier 0: what most code is made of is here, and all else by [`execute`], as from emitted code.
use super::execute::execute;
use super::trap::Trap;
use super::{Insn, Op, bits};
use crate::exec::Core;
use crate::guest::Outcome;
use crate::ir::{Does, Site};
use crate::jit::context::Context;
use crate::tier0::{Flow, show};
use notdirty_softmmu::{GuestVirt, MemSize, MmuIdx, StoreEffect};

/// Executes one instruction; a trap is taken. `idx` is brought up to date, except after a trap.
#[inline(always)]
pub(crate) fn step(
    core: &mut Core,
    ctx: &mut Context,
    insn: &Insn,
    (pc, next): (u64, u64),
    idx: &mut MmuIdx,
    retired: u64,
) -> Flow {
    let cpu = &mut ctx.cpu;
    let a = cpu.x[usize::from(insn.rs1 & 31)];
    let b = cpu.x[usize::from(insn.rs2 & 31)];
    let imm = insn.imm64();
    let word = |v: u32| v as i32 as i64 as u64;
    let taken = |yes: bool| if yes { Some(insn.target(pc)) } else { None };
    let value = match insn.op {
        Op::Lui => imm,
        Op::Auipc => pc.wrapping_add(imm),
        Op::Addi => a.wrapping_add(imm),
        Op::Slti => u64::from((a as i64) < imm as i64),
        Op::Sltiu => u64::from(a < imm),
        Op::Xori => a ^ imm,
        Op::Ori => a | imm,
        Op::Andi => a & imm,
        Op::Slli => a << (imm & 63),
        Op::Srli => a >> (imm & 63),
        Op::Srai => ((a as i64) >> (imm & 63)) as u64,
        Op::Addiw => word((a as u32).wrapping_add(imm as u32)),
        Op::Slliw => word((a as u32) << (imm & 31)),
        Op::Srliw => word((a as u32) >> (imm & 31)),
        Op::Sraiw => word(((a as i32) >> (imm & 31)) as u32),
        Op::Add => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::Sll => a << (b & 63),
        Op::Slt => u64::from((a as i64) < b as i64),
        Op::Sltu => u64::from(a < b),
        Op::Xor => a ^ b,
        Op::Srl => a >> (b & 63),
        Op::Sra => ((a as i64) >> (b & 63)) as u64,
        Op::Or => a | b,
        Op::And => a & b,
        Op::Addw => word((a as u32).wrapping_add(b as u32)),
        Op::Subw => word((a as u32).wrapping_sub(b as u32)),
        Op::Sllw => word((a as u32) << (b & 31)),
        Op::Srlw => word((a as u32) >> (b & 31)),
        Op::Sraw => word(((a as i32) >> (b & 31)) as u32),
        Op::Mul => a.wrapping_mul(b),
        Op::Mulw => word((a as u32).wrapping_mul(b as u32)),
        Op::Beq => return branch(taken(a == b), next),
        Op::Bne => return branch(taken(a != b), next),
        Op::Blt => return branch(taken((a as i64) < b as i64), next),
        Op::Bge => return branch(taken(a as i64 >= b as i64), next),
        Op::Bltu => return branch(taken(a < b), next),
        Op::Bgeu => return branch(taken(a >= b), next),
        Op::Jal | Op::Jalr => {
            let target = if insn.op == Op::Jal { insn.target(pc) } else { a.wrapping_add(imm) & !1 };
            if insn.rd != 0 {
                cpu.x[usize::from(insn.rd & 31)] = next;
            }
            return Flow::Jump(target);
        }
        Op::Lb | Op::Lh | Op::Lw | Op::Ld | Op::Lbu | Op::Lhu | Op::Lwu => {
            show(ctx, pc, retired, 0);
            let (mmu, mut hooks) = core.split(ctx);
            match mmu.load(&mut hooks, *idx, GuestVirt::new(a.wrapping_add(imm)), size(insn.op)) {
                Ok(raw) => {
                    let value = match insn.op {
                        Op::Lb => raw as i8 as i64 as u64,
                        Op::Lh => raw as i16 as i64 as u64,
                        Op::Lw => raw as i32 as i64 as u64,
                        _ => raw,
                    };
                    if mmu.asks() && mmu.port().kicked() {
                        // A hook that was told of it may end the run here.
                        if insn.rd != 0 {
                            ctx.cpu.x[usize::from(insn.rd & 31)] = value;
                        }
                        return Flow::Look(next);
                    }
                    value
                }
                Err(fault) => return trap(core, ctx, &fault.into()),
            }
        }
        Op::Sb | Op::Sh | Op::Sw | Op::Sd => {
            show(ctx, pc, retired, 0);
            let (mmu, mut hooks) = core.split(ctx);
            return match mmu.store(&mut hooks, *idx, GuestVirt::new(a.wrapping_add(imm)), size(insn.op), b) {
                Err(fault) => trap(core, ctx, &fault.into()),
                Ok(StoreEffect::NONE) => Flow::Next(next),
                Ok(_) if core.mmu.port().kicked() => Flow::Look(next),
                Ok(_) => Flow::Next(next),
            };
        }
        _ => {
            show(ctx, pc, retired, 0);
            let flow = rare(core, ctx, insn, pc);
            *idx = ctx.cpu.data_idx();
            return flow;
        }
    };
    // Without a branch.
    ctx.cpu.x[usize::from(insn.rd & 31)] = value;
    ctx.cpu.x[0] = 0;
    Flow::Next(next)
}

#[inline]
fn branch(taken: Option<u64>, next: u64) -> Flow {
    match taken {
        Some(target) => Flow::Jump(target),
        None => Flow::Next(next),
    }
}

fn trap(core: &mut Core, ctx: &mut Context, trap: &Trap) -> Flow {
    core.take_trap(ctx, trap);
    Flow::Trapped
}

/// Multiplications and divisions that are not above, and everything that `helpers` executes.
#[cold]
#[inline(never)]
fn rare(core: &mut Core, ctx: &mut Context, insn: &Insn, pc: u64) -> Flow {
    let next = pc.wrapping_add(insn.len.into());
    let (a, b) = (ctx.cpu.x[usize::from(insn.rs1 & 31)], ctx.cpu.x[usize::from(insn.rs2 & 31)]);
    if let Some(value) = multiply_divide(insn.op, a, b).or_else(|| bits::value(insn, a, b)) {
        if insn.rd != 0 {
            ctx.cpu.x[usize::from(insn.rd & 31)] = value;
        }
        return Flow::Next(next);
    }
    if insn.op == Op::Fence {
        if insn.orders_stores_before_loads(ctx.cpu.privilege) {
            crate::barrier::full();
        }
        return Flow::Next(next);
    }
    match execute(core, ctx, &Site { pc, insn: *insn, refund: 0, does: Does::Execute, learned: 0 }) {
        Outcome::Next => Flow::Next(next),
        Outcome::Go(pc) if insn.op.is_system() || insn.op.is_csr() => Flow::Far(pc),
        // Code that was there died; where it is is as before.
        Outcome::Go(pc) => Flow::Jump(pc),
        Outcome::Leave(pc) => Flow::Look(pc),
        Outcome::Trap(cause) => trap(core, ctx, &cause),
        Outcome::Exit => Flow::Trapped,
    }
}

fn multiply_divide(op: Op, a: u64, b: u64) -> Option<u64> {
    let word = |v: u32| v as i32 as i64 as u64;
    let (sa, sb, wa, wb) = (a as i64, b as i64, a as i32, b as i32);
    Some(match op {
        Op::Mulh => ((i128::from(sa) * i128::from(sb)) >> 64) as u64,
        Op::Mulhsu => ((i128::from(sa) * i128::from(b)) >> 64) as u64,
        Op::Mulhu => ((u128::from(a) * u128::from(b)) >> 64) as u64,
        Op::Div => {
            if b == 0 {
                u64::MAX
            } else {
                sa.wrapping_div(sb) as u64
            }
        }
        Op::Divu => a.checked_div(b).unwrap_or(u64::MAX),
        Op::Rem => {
            if b == 0 {
                a
            } else {
                sa.wrapping_rem(sb) as u64
            }
        }
        Op::Remu => a.checked_rem(b).unwrap_or(a),
        Op::Divw => {
            if wb == 0 {
                u64::MAX
            } else {
                word(wa.wrapping_div(wb) as u32)
            }
        }
        Op::Divuw => word((a as u32).checked_div(b as u32).unwrap_or(u32::MAX)),
        Op::Remw => word(if wb == 0 { a as u32 } else { wa.wrapping_rem(wb) as u32 }),
        Op::Remuw => word((a as u32).checked_rem(b as u32).unwrap_or(a as u32)),
        _ => return None,
    })
}

fn size(op: Op) -> MemSize {
    match op {
        Op::Lb | Op::Lbu | Op::Sb => MemSize::B1,
        Op::Lh | Op::Lhu | Op::Sh => MemSize::B2,
        Op::Lw | Op::Lwu | Op::Sw => MemSize::B4,
        _ => MemSize::B8,
    }
}

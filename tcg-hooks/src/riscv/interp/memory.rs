//! Loads, stores, LR/SC, AMOs and cache lines. All of them go through the softmmu; here are only the widths and the signs.
use super::{get, set};
use crate::cpu::CpuState;
use crate::riscv::decode::Insn;
use crate::riscv::fpu;
use crate::riscv::mmu::Translated;
use crate::riscv::opcodes::{Format, Op};
use notdirty_softmmu::{AmoOp, GuestVirt, Hooks, LiveMmu, MemFault, MemSize};

/// Bytes that `cbo.zero` clears.
const CACHE_LINE: u64 = 64;

/// Changes memory and `rd`, or nothing.
pub(super) fn execute<H: Hooks>(
    cpu: &mut CpuState,
    mmu: &mut LiveMmu,
    hooks: &mut H,
    insn: &Insn,
) -> Result<(), MemFault> {
    let idx = cpu.data_idx();
    let hooks = &mut Translated { csr: &cpu.csr, hooks };
    let (base, operand) = (get(cpu, insn.rs1), get(cpu, insn.rs2));
    let size = size(insn.op);
    match insn.op.format() {
        Format::Load => {
            let va = GuestVirt::new(base.wrapping_add(insn.imm64()));
            let raw = mmu.load(hooks, idx, va, size)?;
            let value = if insn.op.is_signed_load() { sign_extend(raw, size) } else { raw };
            set(cpu, insn.rd, value);
        }
        Format::Store => {
            let va = GuestVirt::new(base.wrapping_add(insn.imm64()));
            // Nothing of ours outlives the instruction, so it is the same to us whose code the store killed.
            let _ = mmu.store(hooks, idx, va, size, truncate(operand, size))?;
        }
        Format::FLoad => {
            let va = GuestVirt::new(base.wrapping_add(insn.imm64()));
            let raw = mmu.load(hooks, idx, va, size)?;
            cpu.f[usize::from(insn.rd & 31)] = if size == MemSize::B4 { fpu::boxed(raw) } else { raw };
        }
        Format::FStore => {
            let va = GuestVirt::new(base.wrapping_add(insn.imm64()));
            let value = cpu.f[usize::from(insn.rs2 & 31)];
            let _ = mmu.store(hooks, idx, va, size, truncate(value, size))?;
        }
        // What the host keeps coherent needs no management.
        Format::Line if insn.op != Op::CboZero => {}
        Format::Line => {
            // A line lies within a page and a device, so if one of the stores faults, the first does.
            mmu.before_stores(GuestVirt::new(base & !(CACHE_LINE - 1)), CACHE_LINE)?;
            for offset in (0..CACHE_LINE).step_by(8) {
                let va = GuestVirt::new((base & !(CACHE_LINE - 1)) + offset);
                let _ = mmu.store(hooks, idx, va, MemSize::B8, 0)?;
            }
        }
        // Everything of A names its address without an offset, faults as a store, LR apart, and extends signs.
        Format::Lr => {
            if insn.releases() {
                crate::barrier::full();
            }
            let raw = mmu.lr(hooks, idx, GuestVirt::new(base), size)?;
            set(cpu, insn.rd, sign_extend(raw, size));
        }
        _ => match amo(insn.op) {
            Some(op) => {
                let (old, _) = mmu.amo(hooks, idx, GuestVirt::new(base), size, op, truncate(operand, size))?;
                set(cpu, insn.rd, sign_extend(old, size));
            }
            None => {
                let (stored, _) = mmu.sc(hooks, idx, GuestVirt::new(base), size, truncate(operand, size))?;
                set(cpu, insn.rd, u64::from(!stored));
            }
        },
    }
    Ok(())
}

fn size(op: Op) -> MemSize {
    match op.mem_bytes() {
        1 => MemSize::B1,
        2 => MemSize::B2,
        4 => MemSize::B4,
        _ => MemSize::B8,
    }
}

fn sign_extend(raw: u64, size: MemSize) -> u64 {
    match size {
        MemSize::B1 => raw as i8 as u64,
        MemSize::B2 => raw as i16 as u64,
        MemSize::B4 => raw as i32 as u64,
        MemSize::B8 => raw,
    }
}

fn truncate(value: u64, size: MemSize) -> u64 {
    match size {
        MemSize::B1 => u64::from(value as u8),
        MemSize::B2 => u64::from(value as u16),
        MemSize::B4 => u64::from(value as u32),
        MemSize::B8 => value,
    }
}

/// The read-modify-write of an AMO; `None` for SC.
fn amo(op: Op) -> Option<AmoOp> {
    Some(match op {
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

//! The oracle: one instruction at a time, small, exact and slow.
//!
//! ```text
//!   step:  pc ─ fetch halfwords ─▶ decode_any ─▶ int, bits | memory | system | riscv::fpu ─▶ Step
//! ```
//!
//! It shares the decode table and the softmmu with the translator and nothing else; where the two disagree, it is
//! right. Tests compare with it, single steps and precise replays run on it.
//!
//! Nothing is cached between two instructions: a store to the next one is seen at once (`coherent`), which RISC-V
//! allows and does not ask for.
mod bits;
mod int;
mod memory;
mod system;

use crate::clock::Clock;
use crate::cpu::CpuState;
use crate::riscv::csr::CsrEnv;
use crate::riscv::decode::{Insn, decode_any, is_compressed};
use crate::riscv::fpu;
use crate::riscv::mmu::{self, Translated};
use crate::riscv::opcodes::{Format, Op};
use crate::riscv::trap::Trap;
use notdirty_softmmu::{GuestVirt, Hooks, LiveMmu, MemFault};

/// How one instruction ended. Except after `Trap`, it has retired and `pc` is behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Go on at `pc`.
    Next,
    /// It did not retire; `pc` and the registers are as they were. The caller enters the handler.
    Trap(Trap),
    /// `wfi`: the caller may wait for an interrupt.
    Wfi,
    /// `fence.i`: the caller may have to drop translations.
    FenceI,
}

/// Executes the instruction at `cpu.pc`. Interrupts are the caller's: it looks between two steps.
pub fn step<H: Hooks>(cpu: &mut CpuState, mmu: &mut LiveMmu, hooks: &mut H, env: &CsrEnv) -> Step {
    match fetch(cpu, mmu, hooks) {
        Ok(insn) => execute(cpu, mmu, hooks, env, &insn),
        Err(fault) => Step::Trap(fault.into()),
    }
}

/// Fetches and decodes at `cpu.pc`, a halfword at a time: the second one is only looked at if the first asks for it,
/// and when it faults, the fault names its address.
///
/// # Errors
/// [`MemFault`] of the halfword that cannot be fetched.
pub fn fetch<H: Hooks>(cpu: &CpuState, memory: &mut LiveMmu, hooks: &mut H) -> Result<Insn, MemFault> {
    let idx = cpu.fetch_idx();
    mmu::follow(&cpu.csr, memory);
    let (mmu, hooks) = (memory, &mut Translated { csr: &cpu.csr, hooks });
    // What another hart stores whole is read whole, where that can be.
    if let Some(bits) = mmu.fetch_u32(hooks, idx, GuestVirt::new(cpu.pc))? {
        return Ok(decoded(cpu, if is_compressed(bits as u16) { bits & 0xffff } else { bits }));
    }
    let low = mmu.fetch_u16(hooks, idx, GuestVirt::new(cpu.pc))?;
    if is_compressed(low) {
        return Ok(decoded(cpu, u32::from(low)));
    }
    let high = mmu.fetch_u16(hooks, idx, GuestVirt::new(cpu.pc.wrapping_add(2)))?;
    Ok(decoded(cpu, u32::from(high) << 16 | u32::from(low)))
}

fn decoded(cpu: &CpuState, bits: u32) -> Insn {
    cpu.isa.filter(decode_any(bits as u16, bits), bits)
}

/// What instructions see of the world: interrupt lines, and time.
pub(crate) fn env(mip: u64, clock: &Clock) -> CsrEnv<'_> {
    CsrEnv { mip, clock }
}

/// Executes an instruction that was fetched from `cpu.pc`.
pub fn execute<H: Hooks>(cpu: &mut CpuState, mmu: &mut LiveMmu, hooks: &mut H, env: &CsrEnv, insn: &Insn) -> Step {
    let next = cpu.pc.wrapping_add(u64::from(insn.len));
    let outcome = match insn.op.format() {
        Format::Line if !cpu.may_execute(insn.op) => Err(Trap::not_allowed(insn)),
        Format::Load | Format::Store | Format::Amo | Format::Lr | Format::Line => {
            memory::execute(cpu, mmu, hooks, insn).map(|()| Step::Next).map_err(Trap::from)
        }
        Format::FLoad | Format::FStore => fpu::begin(cpu, insn)
            .and_then(|()| memory::execute(cpu, mmu, hooks, insn).map_err(Trap::from))
            .map(|()| Step::Next),
        Format::Fence | Format::None | Format::Addresses | Format::Csr | Format::CsrImm => {
            return system::execute(cpu, mmu, hooks, env, insn, next);
        }
        Format::B | Format::J | Format::Jalr => return flow(cpu, insn, next),
        Format::U | Format::I | Format::Shift | Format::ShiftW | Format::R | Format::Unary => {
            let value = int::value(cpu, insn);
            set(cpu, insn.rd, value);
            Ok(Step::Next)
        }
        _ => fpu::execute(cpu, insn).map(|()| Step::Next),
    };
    match outcome {
        Ok(step) => retire(cpu, next, step),
        Err(trap) => Step::Trap(trap),
    }
}

fn flow(cpu: &mut CpuState, insn: &Insn, next: u64) -> Step {
    let (a, b) = (get(cpu, insn.rs1), get(cpu, insn.rs2));
    let target = match insn.op {
        // The target is computed before the link is written: rd and rs1 may be one register.
        Op::Jalr => a.wrapping_add(insn.imm64()) & !1,
        _ => insn.target(cpu.pc),
    };
    let taken = match insn.op {
        Op::Beq => a == b,
        Op::Bne => a != b,
        Op::Blt => (a as i64) < b as i64,
        Op::Bge => a as i64 >= b as i64,
        Op::Bltu => a < b,
        Op::Bgeu => a >= b,
        _ => {
            set(cpu, insn.rd, next);
            true
        }
    };
    retire(cpu, if taken { target } else { next }, Step::Next)
}

fn retire(cpu: &mut CpuState, pc: u64, step: Step) -> Step {
    cpu.pc = pc;
    cpu.retired = cpu.retired.wrapping_add(1);
    step
}

fn get(cpu: &CpuState, register: u8) -> u64 {
    cpu.x[usize::from(register & 31)]
}

fn set(cpu: &mut CpuState, register: u8, value: u64) {
    if register != 0 {
        cpu.x[usize::from(register & 31)] = value;
    }
}

#[cfg(test)]
mod tests;

//! Fences, environment calls, CSRs, returns from traps, and what is not an instruction.
use super::{Step, retire};
use crate::cpu::CpuState;
use crate::riscv::csr::{self, CsrEffect, CsrEnv};
use crate::riscv::decode::Insn;
use crate::riscv::mmu::{self, Memory};
use crate::riscv::opcodes::Op;
use crate::riscv::trap::{self, Trap};
use notdirty_softmmu::{Hooks, LiveMmu};

pub(super) fn execute<H: Hooks>(
    cpu: &mut CpuState,
    memory: &mut LiveMmu,
    hooks: &mut H,
    env: &CsrEnv,
    insn: &Insn,
    next: u64,
) -> Step {
    match insn.op {
        // What other harts see is the host's order of plain loads and stores; a full fence whatever the bits are.
        Op::Fence => {
            crate::barrier::full();
            retire(cpu, next, Step::Next)
        }
        Op::FenceI => retire(cpu, next, Step::FenceI),
        op if !cpu.may_execute(op) => Step::Trap(Trap::not_allowed(insn)),
        Op::Wfi => retire(cpu, next, Step::Wfi),
        Op::Mret | Op::Sret => {
            if insn.op == Op::Mret {
                trap::mret(cpu)
            } else {
                trap::sret(cpu)
            }
            let pc = cpu.pc;
            retire(cpu, pc, Step::Next)
        }
        // What was stored to page tables is seen by all that follows.
        Op::SfenceVma | Op::SinvalVma | Op::SfenceWInval | Op::SfenceInvalIr => {
            crate::barrier::full();
            if let Some((va, asid)) = mmu::fenced(cpu, insn) {
                mmu::fence(memory, va, asid);
            }
            retire(cpu, next, Step::Next)
        }
        // These two do not retire: they are the exception.
        Op::Ecall => Step::Trap(Trap::ecall(cpu.privilege)),
        Op::Ebreak => Step::Trap(Trap::breakpoint(cpu.pc)),
        op if op.is_csr() => match csr_access(cpu, memory, hooks, env, insn) {
            // The caller looks for interrupts between any two steps, whatever the effect was.
            Ok(_) => retire(cpu, next, Step::Next),
            Err(csr::Illegal) => Step::Trap(Trap::not_allowed(insn)),
        },
        _ => Step::Trap(Trap::illegal(insn.illegal_bits())),
    }
}

/// A CSR instruction, and what follows from it for what is kept of memory.
fn csr_access<H: Hooks>(
    cpu: &mut CpuState,
    memory: &mut LiveMmu,
    hooks: &mut H,
    env: &CsrEnv,
    insn: &Insn,
) -> Result<(), csr::Illegal> {
    let before = Memory::of(&cpu.csr);
    if csr::execute(cpu, insn, env)? == CsrEffect::Memory
        && mmu::changed(&before, &cpu.csr, memory) == mmu::Changed::All
    {
        hooks.flushed();
    }
    Ok(())
}

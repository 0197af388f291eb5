//! Instructions one by one by the oracle, in the loop that emitted code runs in otherwise.

use super::Vcpu;
use crate::cpu::CpuState;
use crate::engine::EngineKind;
use crate::guest::interp::{self, Step};
use crate::guest::{flow, hart};
use crate::hooks::After;
use crate::jit::context::Context;
use crate::trace::TraceMask;
use std::ptr::NonNull;

impl Vcpu {
    /// Up to `n` instructions by the oracle; stops early where the loop must look. `past`: an exit at the first one is not looked at.
    pub(super) fn interpret(&mut self, n: u64, past: bool) {
        let exec = self.core.mask.has(TraceMask::EXEC) && self.engine == EngineKind::Interp;
        let clock = self.core.clock.clone();
        let mut lent = Lent::out_of(self.ctx);
        for at in 0..n {
            if self.core.exits.has(lent.cpu.pc) && !(past && at == 0) {
                self.core.exit_here(lent.cpu.pc);
                return;
            }
            if exec {
                let pc = lent.cpu.pc;
                let text = format!("{pc:#x}{}", self.core.symbol(pc));
                self.core.say(TraceMask::EXEC, &text);
            }
            let (ctx, core) = self.parts();
            let cpu = &mut lent.cpu;
            // What hooks ask of the registers.
            (ctx.cpu.pc, ctx.cpu.retired) = (cpu.pc, cpu.retired);
            let (mmu, mut hooks) = core.split(ctx);
            let mut fetched = interp::fetch(cpu, mmu, &mut hooks);
            let place = (cpu.pc, cpu.retired);
            if core.hooks.has_insn(cpu.pc)
                && !(past && at == 0 && core.exits.hooks_told(place))
                && let Ok(insn) = &fetched
            {
                ctx.cpu.clone_from(cpu);
                let After { next, stop, .. } = core.hook_insn(ctx, insn);
                cpu.clone_from(&ctx.cpu);
                if let Some(next) = next {
                    cpu.pc = next;
                    cpu.retired = cpu.retired.wrapping_add(1);
                }
                if stop {
                    return;
                }
                if next.is_some() {
                    if core.mmu.port().kicked() {
                        return;
                    }
                    continue;
                }
                // It may be another one now.
                let (mmu, mut hooks) = core.split(ctx);
                fetched = interp::fetch(cpu, mmu, &mut hooks);
            }
            // The others neither enable an interrupt nor leave the mode.
            let system = !fetched.as_ref().is_ok_and(|insn| !hart::is_system(insn));
            let before = system.then(|| {
                ctx.cpu = cpu.clone();
                hart::interrupt_state(cpu)
            });
            let (mut returns, at_pc) = (false, cpu.pc);
            let goes = fetched.as_ref().ok().and_then(flow::of);
            if core.compares.is_some()
                && let Ok(insn) = &fetched
            {
                core.note_operands(&cpu.x, at_pc, insn);
            }
            let refused = fetched.as_ref().ok().and_then(|insn| core.refused(cpu, insn));
            let step = match fetched {
                Ok(insn) => {
                    // The lines and the clock as they are at this instruction, as emitted code sees them.
                    let lines = if system { core.lines_at(cpu, &insn) } else { 0 };
                    returns = hart::ends_handler(&insn);
                    let (mmu, mut hooks) = core.split(ctx);
                    interp::execute(cpu, mmu, &mut hooks, &interp::env(lines, &clock), &insn)
                }
                Err(fault) => Step::Trap(fault.into()),
            };
            self.interpreted += 1;
            let (ctx, core) = self.parts();
            if let (Some(value), Step::Next) = (refused, &step) {
                core.trace_refused(&lent.cpu, at_pc, value);
            }
            if core.follows_flow() && matches!(step, Step::Next) {
                core.cover(goes, at_pc, lent.cpu.pc);
                if core.hooks.has_blocks() && goes.is_some() {
                    ctx.cpu.clone_from(&lent.cpu);
                    let After { next, stop, .. } = core.hook_block(ctx);
                    lent.cpu.clone_from(&ctx.cpu);
                    lent.cpu.pc = next.unwrap_or(lent.cpu.pc);
                    if stop {
                        return;
                    }
                }
            }
            match step {
                Step::Next if returns => core.unhandled.returned(),
                Step::Next => {}
                Step::FenceI => {
                    core.fence_i(ctx);
                }
                Step::Wfi => {
                    core.waiting = true;
                    return;
                }
                Step::Trap(trap) => {
                    let enabled = hart::interrupt_state(&lent.cpu);
                    ctx.cpu = lent.cpu.clone();
                    let call = if hart::is_breakpoint(&trap) { core.semihost(ctx) } else { None };
                    match call {
                        Some(next) => {
                            ctx.cpu.pc = next;
                            ctx.cpu.retired += 1;
                        }
                        None => core.take_trap(ctx, &trap),
                    }
                    lent.cpu = ctx.cpu.clone();
                    if hart::interrupt_state(&lent.cpu) != enabled {
                        return;
                    }
                }
            }
            // What the instruction enabled may be due before this slice ends.
            if before.is_some_and(|before| hart::interrupt_state(&lent.cpu) != before) {
                return;
            }
            if core.trap_loop || core.mmu.port().kicked() {
                return;
            }
        }
    }
}

/// The registers, out of the context while the oracle works on them, as hooks need the rest of it. They come back however that ends:
/// a device may panic.
struct Lent {
    home: NonNull<Context>,
    cpu: CpuState,
}

impl Lent {
    fn out_of(home: NonNull<Context>) -> Lent {
        // SAFETY: see `Vcpu::new`; it is the vCPU's own, which is borrowed for as long as this lives, and runs no emitted code.
        Lent { home, cpu: unsafe { &home.as_ref().cpu }.clone() }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: as in `out_of`; what was borrowed of the context since then is not used any more.
        unsafe { self.home.as_mut() }.cpu.clone_from(&self.cpu);
    }
}

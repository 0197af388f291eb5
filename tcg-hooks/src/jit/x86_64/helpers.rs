//! The only door from emitted code into Rust: execute the instruction of one site.
//!
//! ```text
//!   emitted code ─ eax = site ─▶ thunk (everything to the context) ─▶ execute_site
//!        ◀─ continue ─ done: the result is in the context's registers
//!   jump cache ◀─ go ─ on at `cpu.pc`: a trap, a return from one, or the TB died under its own store
//!   exec loop ◀─ leave ─ trapped, or the rest of the TB must not run (it died, an interrupt may be due, a stop)
//! ```
//!
//! Whatever happens here happens between instructions: the count of retired ones, `pc` and all registers are exact.
use super::context::Context;
use super::thunks::answer;
use crate::cpu::CpuState;
use crate::exec::Core;
use crate::ir::Site;
use crate::riscv::csr::{self, CsrEffect};
use crate::riscv::fpu;
use crate::riscv::trap::{self, Trap};
use crate::riscv::{Insn, Op};
use crate::tier0::bits;
use notdirty_core::{PAGE_SIZE, fence_after_store};
use notdirty_softmmu::{AccessKind, GuestVirt, MemFault, MemSize, MmuIdx, StoreEffect};

/// What executing a site came to.
pub(crate) enum Outcome {
    /// On with the next instruction of the TB.
    Next,
    /// It retired; go on at this pc by way of the exec loop.
    Leave(u64),
    /// It retired; go on at this pc, not behind the instruction (which may be gone).
    Go(u64),
    /// It did not retire.
    Trap(Trap),
}

/// Executes the instruction of site `number` for the vCPU that `ctx` belongs to.
///
/// # Safety
/// Called from emitted code only: `ctx` is the context that code was entered with, `engine` in it points to the
/// vCPU's [`Core`], and nobody else uses either until emitted code has returned.
pub(crate) unsafe extern "C" fn execute_site(ctx: *mut Context, number: u32) -> u64 {
    // SAFETY: the contract above; `Vcpu::enter` made both pointers from `&mut` of what it owns and waits for us.
    let (ctx, core) = unsafe {
        let ctx = &mut *ctx;
        let core = &mut *ctx.engine.cast::<Core>();
        (ctx, core)
    };
    // Nothing else can be named by emitted code; leaving is always safe.
    let Some(site) = core.tbs.as_ref().and_then(|tbs| tbs.site(number)) else { return answer::LEAVE };
    ctx.settle(site.refund);
    ctx.cpu.pc = site.pc;
    // Counted at its block's head already, and again by the `SoftMmu`.
    let op = site.insn.op;
    let access = !site.begin && (op.is_load() || op.is_store());
    core.counted_twice += u64::from(access || !site.begin && op.is_amo());
    // Looked at now: it may load its own base.
    let odd = access && is_odd(&ctx.cpu, &site.insn);
    let outcome = if site.begin {
        fpu::begin(&mut ctx.cpu, &site.insn).map_or_else(Outcome::Trap, |()| Outcome::Next)
    } else if op.is_amo() {
        // In line it is a locked instruction, that fences next to it were left out for: so it is, on a device or a trap.
        fence_after_store();
        let outcome = execute(core, ctx, &site);
        fence_after_store();
        outcome
    } else {
        execute(core, ctx, &site)
    };
    match outcome {
        Outcome::Next if odd && core.tbs.as_mut().is_some_and(|tbs| tbs.count_odd(ctx, number)) => {
            ctx.budget += i64::from(site.refund) - 1;
            ctx.cpu.pc = site.pc.wrapping_add(site.insn.len.into());
            answer::GO
        }
        Outcome::Next => answer::CONTINUE,
        Outcome::Leave(pc) => {
            ctx.budget += i64::from(site.refund) - 1;
            ctx.cpu.pc = pc;
            answer::LEAVE
        }
        Outcome::Go(pc) => {
            ctx.budget += i64::from(site.refund) - 1;
            ctx.cpu.pc = pc;
            answer::GO
        }
        Outcome::Trap(trap) => {
            ctx.budget += i64::from(site.refund);
            core.take_trap(&mut ctx.cpu, &trap);
            // In the handler no interrupt can be taken.
            if core.trap_loop { answer::LEAVE } else { answer::GO }
        }
    }
}

impl Context {
    /// Brings `cpu.retired` up to the instruction that `refund` stands for.
    pub(crate) fn settle(&mut self, refund: u16) {
        let now = self.budget + i64::from(refund);
        self.cpu.retired = self.cpu.retired.wrapping_add((self.slice - now) as u64);
        self.slice = now;
    }
}

/// Executes the instruction of a site at `cpu.pc`; `cpu.retired` is exact. The caller counts and takes the trap.
pub(crate) fn execute(core: &mut Core, ctx: &mut Context, site: &Site) -> Outcome {
    let insn = &site.insn;
    let next = site.pc.wrapping_add(insn.len.into());
    if insn.op.is_float()
        && let Err(trap) = fpu::begin(&mut ctx.cpu, insn)
    {
        return Outcome::Trap(trap);
    }
    let result = match insn.op {
        op if op.format().is_float() => {
            return match fpu::execute_natively(&mut ctx.cpu, insn) {
                Ok(()) => Outcome::Next,
                Err(trap) => Outcome::Trap(trap),
            };
        }
        op if op.is_load() => load(core, ctx, insn),
        op if op.is_store() => store(core, ctx, insn),
        op if op.is_amo() => atomic(core, ctx, insn),
        op if op.is_csr() => return control(core, ctx, insn, next),
        Op::Fence => {
            fence_after_store();
            Ok(StoreEffect::NONE)
        }
        Op::CboZero => zero_line(core, ctx, insn),
        // What the host keeps coherent needs no management.
        Op::CboInval | Op::CboClean | Op::CboFlush => Ok(StoreEffect::NONE),
        Op::FenceI => Ok(StoreEffect { killed: core.fence_i(ctx) as u32, ..StoreEffect::NONE }),
        Op::Ecall => return Outcome::Trap(Trap::ecall(ctx.cpu.privilege)),
        Op::Ebreak => {
            return match core.semihost(ctx) {
                // What it wrote may be code, and it may have ended the run.
                Some(next) if core.mmu.port().kicked() => Outcome::Leave(next),
                Some(next) => Outcome::Go(next),
                None => Outcome::Trap(Trap::breakpoint(site.pc)),
            };
        }
        Op::Mret => {
            core.unhandled.returned();
            trap::mret(&mut ctx.cpu);
            let pc = ctx.cpu.pc;
            return if core.may_interrupt(&ctx.cpu) { Outcome::Leave(pc) } else { Outcome::Go(pc) };
        }
        Op::Wfi => {
            core.waiting = true;
            return Outcome::Leave(next);
        }
        _ => {
            let [a, b] = [insn.rs1, insn.rs2].map(|register| ctx.cpu.x[usize::from(register & 31)]);
            let Some(value) = bits::value(insn, a, b) else {
                return Outcome::Trap(Trap::illegal(insn.illegal_bits()));
            };
            write(&mut ctx.cpu, insn.rd, value);
            return Outcome::Next;
        }
    };
    match result {
        Err(fault) => Outcome::Trap(fault.into()),
        // A device may have raised an interrupt; the next instruction may be one of those just written.
        Ok(_) if core.mmu.port().kicked() => Outcome::Leave(next),
        Ok(effect) if effect.killed != 0 => Outcome::Go(next),
        Ok(_) => Outcome::Next,
    }
}

fn address(cpu: &CpuState, insn: &Insn) -> GuestVirt {
    GuestVirt::new(cpu.x[usize::from(insn.rs1)].wrapping_add(insn.imm64()))
}

/// Is the address of a load or store misaligned, and all of it on one page?
fn is_odd(cpu: &CpuState, insn: &Insn) -> bool {
    let (at, more) = (address(cpu, insn).get(), u64::from(insn.op.mem_bytes()).wrapping_sub(1));
    at & more != 0 && at % PAGE_SIZE + more < PAGE_SIZE
}

fn size(insn: &Insn) -> MemSize {
    match insn.op.mem_bytes() {
        1 => MemSize::B1,
        2 => MemSize::B2,
        4 => MemSize::B4,
        _ => MemSize::B8,
    }
}

fn write(cpu: &mut CpuState, rd: u8, value: u64) {
    if rd != 0 {
        cpu.x[usize::from(rd)] = value;
    }
}

fn load(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let (va, size) = (address(&ctx.cpu, insn), size(insn));
    let (mmu, mut hooks) = core.split(ctx);
    let raw = mmu.load(&mut hooks, MmuIdx::M, va, size)?;
    let bits = 64 - 8 * insn.op.mem_bytes();
    if insn.op.writes_f() {
        ctx.cpu.f[usize::from(insn.rd & 31)] = if size == MemSize::B4 { fpu::boxed(raw) } else { raw };
        return Ok(StoreEffect::NONE);
    }
    let value = if insn.op.is_signed_load() { ((raw << bits) as i64 >> bits) as u64 } else { raw };
    write(&mut ctx.cpu, insn.rd, value);
    Ok(StoreEffect::NONE)
}

fn store(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let registers = if insn.op.is_float() { &ctx.cpu.f } else { &ctx.cpu.x };
    let (va, size, value) = (address(&ctx.cpu, insn), size(insn), registers[usize::from(insn.rs2 & 31)]);
    let (mmu, mut hooks) = core.split(ctx);
    mmu.store(&mut hooks, MmuIdx::M, va, size, value)
}

/// `cbo.zero`: a line lies within a page, so only the first of its stores may fault.
fn zero_line(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let first = ctx.cpu.x[usize::from(insn.rs1 & 31)] & !63;
    let (mmu, mut hooks) = core.split(ctx);
    let mut all = StoreEffect::NONE;
    for offset in (0..64).step_by(8) {
        let effect = mmu.store(&mut hooks, MmuIdx::M, GuestVirt::new(first + offset), MemSize::B8, 0)?;
        all.killed += effect.killed;
    }
    Ok(all)
}

fn atomic(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let va = GuestVirt::new(ctx.cpu.x[usize::from(insn.rs1)]);
    let operand = ctx.cpu.x[usize::from(insn.rs2)];
    let size = size(insn);
    let (mmu, mut hooks) = core.split(ctx);
    let (old, effect) = match insn.op {
        Op::LrW | Op::LrD => {
            if insn.releases() {
                fence_after_store();
            }
            (mmu.lr(&mut hooks, MmuIdx::M, va, size)?, StoreEffect::NONE)
        }
        Op::ScW | Op::ScD => {
            let (stored, effect) = mmu.sc(&mut hooks, MmuIdx::M, va, size, operand)?;
            write(&mut ctx.cpu, insn.rd, u64::from(!stored));
            return Ok(effect);
        }
        op => match op.amo() {
            Some(amo) => mmu.amo(&mut hooks, MmuIdx::M, va, size, amo, operand)?,
            None => return Err(MemFault::access(AccessKind::Store, va)),
        },
    };
    let value = if size == MemSize::B4 { old as i32 as i64 as u64 } else { old };
    write(&mut ctx.cpu, insn.rd, value);
    Ok(effect)
}

fn control(core: &mut Core, ctx: &mut Context, insn: &Insn, next: u64) -> Outcome {
    if matches!(csr::find(insn.csr()), Some(csr::Row { value: csr::Value::Float(_), .. })) {
        ctx.settle_flags();
    }
    let env = core.csr_env(&ctx.cpu, insn);
    match csr::execute(&mut ctx.cpu, insn, &env) {
        Ok(CsrEffect::None) => Outcome::Next,
        Ok(CsrEffect::Interrupts) if core.may_interrupt(&ctx.cpu) => Outcome::Leave(next),
        Ok(CsrEffect::Interrupts) => Outcome::Next,
        Err(csr::Illegal) => Outcome::Trap(Trap::illegal_csr(insn)),
    }
}

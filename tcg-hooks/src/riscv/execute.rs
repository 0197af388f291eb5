//! One instruction in Rust: what tier 0 and sites of emitted code do where there is more to it than registers.
//!
//! ```text
//!   family of the op ─▶ float, load, store, AMO, CSR, trap or return, other ─▶ Outcome: next │ on elsewhere │ a trap │ a stop
//! ```
use super::csr::{self, CsrEffect, CsrEnv};
use super::mmu::{self, Memory};
use super::opcodes::PATTERNS;
use super::trap::{self, Trap};
use super::{Format, Insn, Op, Privilege, bits, fpu};
use crate::barrier;
use crate::cpu::CpuState;
use crate::exec::Core;
use crate::guest::Outcome;
use crate::ir::{MemOp, Site};
use crate::jit::context::Context;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{AccessKind, GuestVirt, LiveMmu, MemFault, MemSize, StoreEffect};

/// Families of instructions that are executed alike.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Load,
    Store,
    Atomic,
    Csr,
    /// What is a trap, or the way back from one.
    Trap,
    Other,
    FloatLoad,
    FloatStore,
    Float,
}

impl Class {
    const fn of(op: Op) -> Class {
        if matches!(op, Op::Illegal | Op::Ecall | Op::Mret | Op::Sret) {
            return Class::Trap;
        }
        match op.format() {
            Format::Load => Class::Load,
            Format::Store => Class::Store,
            Format::FLoad => Class::FloatLoad,
            Format::FStore => Class::FloatStore,
            Format::Amo | Format::Lr => Class::Atomic,
            Format::Csr | Format::CsrImm => Class::Csr,
            format if format.is_float() => Class::Float,
            _ => Class::Other,
        }
    }

    const fn is_float(self) -> bool {
        matches!(self, Class::FloatLoad | Class::FloatStore | Class::Float)
    }
}

/// By `op as usize`, in place of questions about the format.
pub(crate) static CLASSES: [Class; 256] = {
    let mut classes = [Class::Other; 256];
    let mut i = 0;
    while i < PATTERNS.len() {
        classes[PATTERNS[i].op as usize] = Class::of(PATTERNS[i].op);
        i += 1;
    }
    // The one without a pattern.
    classes[Op::Illegal as usize] = Class::of(Op::Illegal);
    classes
};

/// What plain loads and stores access, by `op as usize`.
pub(crate) static MEM_OPS: [MemOp; 256] = {
    let mut all = [MemOp(0); 256];
    let mut i = 0;
    while i < PATTERNS.len() {
        let op = PATTERNS[i].op;
        if op.mem_bytes() != 0 {
            all[op as usize] = MemOp(op.mem_bytes().trailing_zeros() as u8 | (op.is_signed_load() as u8) << 2);
        }
        i += 1;
    }
    all
};

/// Executes the instruction of a site at `cpu.pc`; `cpu.retired` is exact. The caller counts and takes the trap.
pub(crate) fn execute(core: &mut Core, ctx: &mut Context, site: &Site) -> Outcome {
    let insn = &site.insn;
    let next = site.pc.wrapping_add(insn.len.into());
    let class = CLASSES[insn.op as usize];
    if class.is_float()
        && let Err(trap) = fpu::begin(&mut ctx.cpu, insn)
    {
        return Outcome::Trap(trap);
    }
    let result = match class {
        Class::Float => {
            return match fpu::execute_natively(&mut ctx.cpu, insn) {
                Ok(()) => Outcome::Next,
                Err(trap) => Outcome::Trap(trap),
            };
        }
        Class::Load | Class::FloatLoad => load(core, ctx, insn),
        Class::Store | Class::FloatStore => store(core, ctx, insn),
        Class::Atomic => atomic(core, ctx, insn),
        Class::Csr => return control(core, ctx, insn, next),
        Class::Trap => return trap_or_return(core, ctx, insn),
        Class::Other => return other(core, ctx, site, next),
    };
    accessed(core, result, next)
}

/// An access was made, or something like it.
#[inline]
pub(crate) fn accessed(core: &Core, result: Result<StoreEffect, MemFault>, next: u64) -> Outcome {
    match result {
        Err(fault) => Outcome::Trap(fault.into()),
        // A device may have raised an interrupt; the next instruction may be one of those just written.
        Ok(_) if core.mmu.port().kicked() => Outcome::Leave(next),
        Ok(effect) if effect.killed != 0 => Outcome::Go(next),
        Ok(_) => Outcome::Next,
    }
}

/// What is of no family.
fn other(core: &mut Core, ctx: &mut Context, site: &Site, next: u64) -> Outcome {
    let insn = &site.insn;
    match insn.op {
        Op::Fence => {
            barrier::full();
            accessed(core, Ok(StoreEffect::NONE), next)
        }
        Op::FenceI => {
            let killed = core.fence_i(ctx) as u32;
            accessed(core, Ok(StoreEffect { killed, ..StoreEffect::NONE }), next)
        }
        Op::Ebreak => match core.semihost(ctx) {
            // What it wrote may be code, and it may have ended the run.
            Some(next) if core.mmu.port().kicked() => Outcome::Leave(next),
            Some(next) => Outcome::Go(next),
            None => Outcome::Trap(Trap::breakpoint(site.pc)),
        },
        op if !ctx.cpu.may_execute(op) => Outcome::Trap(Trap::not_allowed(insn)),
        Op::CboZero => {
            let zeroed = zero_line(core, ctx, insn);
            accessed(core, zeroed, next)
        }
        // What the host keeps coherent needs no management.
        Op::CboInval | Op::CboClean | Op::CboFlush => accessed(core, Ok(StoreEffect::NONE), next),
        // What was stored to page tables is seen by all that follows; by this thread it is at once.
        Op::SfenceVma | Op::SinvalVma | Op::SfenceWInval | Op::SfenceInvalIr => {
            if !core.live().0.space().vcpus().one_writer() {
                barrier::full();
            }
            if let Some((va, asid)) = mmu::fenced(&ctx.cpu, insn) {
                core.fence(ctx, va, asid);
            }
            if core.mmu.port().kicked() || core.drop_code { Outcome::Leave(next) } else { Outcome::Go(next) }
        }
        Op::Wfi => {
            core.waiting = true;
            Outcome::Leave(next)
        }
        _ => {
            let [a, b] = [insn.rs1, insn.rs2].map(|register| ctx.cpu.x[usize::from(register & 31)]);
            match bits::value(insn, a, b) {
                Some(value) => {
                    write(&mut ctx.cpu, insn.rd, value);
                    Outcome::Next
                }
                None => Outcome::Trap(Trap::illegal(insn.illegal_bits())),
            }
        }
    }
}

/// `ecall`, what is no instruction, `mret` and `sret`.
#[inline]
pub(crate) fn trap_or_return(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Outcome {
    match insn.op {
        Op::Ecall => Outcome::Trap(Trap::ecall(ctx.cpu.privilege)),
        // With the operation known it is one comparison.
        Op::Mret if ctx.cpu.may_execute(Op::Mret) => {
            trap::mret(&mut ctx.cpu);
            returned(core, ctx)
        }
        Op::Sret if ctx.cpu.may_execute(Op::Sret) => {
            trap::sret(&mut ctx.cpu);
            returned(core, ctx)
        }
        // What was read there is another instruction: where a run shall end, nothing is.
        Op::Illegal if core.exits.has(ctx.cpu.pc) => {
            core.exit_here(ctx.cpu.pc);
            Outcome::Exit
        }
        // Of `mret` and `sret` too.
        _ => Outcome::Trap(Trap::not_allowed(insn)),
    }
}

/// Goes on where a handler returned to, in whatever mode.
#[inline]
fn returned(core: &mut Core, ctx: &mut Context) -> Outcome {
    core.unhandled.returned();
    core.follow_regime(ctx);
    let pc = ctx.cpu.pc;
    if core.may_interrupt(&ctx.cpu) { Outcome::Leave(pc) } else { Outcome::Go(pc) }
}

pub(crate) fn address(cpu: &CpuState, insn: &Insn) -> GuestVirt {
    GuestVirt::new(cpu.x[usize::from(insn.rs1 & 31)].wrapping_add(insn.imm64()))
}

/// Is the address of a load or store misaligned, and all of it on one page?
pub(crate) fn is_odd(cpu: &CpuState, insn: &Insn) -> bool {
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

pub(crate) fn write(cpu: &mut CpuState, rd: u8, value: u64) {
    if rd != 0 {
        cpu.x[usize::from(rd & 31)] = value;
    }
}

/// With the TBs that died of marks which a walk left in page tables since.
#[inline]
pub(crate) fn marked(mmu: &LiveMmu, before: u64, effect: StoreEffect) -> StoreEffect {
    StoreEffect { killed: mmu.stats().killed.wrapping_sub(before) as u32, ..effect }
}

fn load(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let (va, size, idx) = (address(&ctx.cpu, insn), size(insn), ctx.cpu.data_idx());
    let (mmu, mut hooks) = core.split(ctx);
    let before = mmu.stats().killed;
    let raw = mmu.load(&mut hooks, idx, va, size)?;
    let effect = marked(mmu, before, StoreEffect::NONE);
    let bits = 64 - 8 * insn.op.mem_bytes();
    if insn.op.writes_f() {
        ctx.cpu.f[usize::from(insn.rd & 31)] = if size == MemSize::B4 { fpu::boxed(raw) } else { raw };
        return Ok(effect);
    }
    let value = if insn.op.is_signed_load() { ((raw << bits) as i64 >> bits) as u64 } else { raw };
    write(&mut ctx.cpu, insn.rd, value);
    Ok(effect)
}

fn store(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let registers = if insn.op.is_float() { &ctx.cpu.f } else { &ctx.cpu.x };
    let (va, size, value) = (address(&ctx.cpu, insn), size(insn), registers[usize::from(insn.rs2 & 31)]);
    let idx = ctx.cpu.data_idx();
    let (mmu, mut hooks) = core.split(ctx);
    let before = mmu.stats().killed;
    let effect = mmu.store(&mut hooks, idx, va, size, value)?;
    Ok(marked(mmu, before, effect))
}

/// `cbo.zero`: a line lies within a page, so only the first of its stores may fault.
fn zero_line(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let (first, idx) = (ctx.cpu.x[usize::from(insn.rs1 & 31)] & !63, ctx.cpu.data_idx());
    let (mmu, mut hooks) = core.split(ctx);
    mmu.before_stores(GuestVirt::new(first), 64)?;
    let mut all = StoreEffect::NONE;
    for offset in (0..64).step_by(8) {
        let effect = mmu.store(&mut hooks, idx, GuestVirt::new(first + offset), MemSize::B8, 0)?;
        all.killed += effect.killed;
    }
    Ok(all)
}

fn atomic(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Result<StoreEffect, MemFault> {
    let va = GuestVirt::new(ctx.cpu.x[usize::from(insn.rs1)]);
    let operand = ctx.cpu.x[usize::from(insn.rs2)];
    let (size, idx) = (size(insn), ctx.cpu.data_idx());
    let (mmu, mut hooks) = core.split(ctx);
    let before = mmu.stats().killed;
    let (old, effect) = match insn.op {
        Op::LrW | Op::LrD => {
            if insn.releases() {
                barrier::full();
            }
            (mmu.lr(&mut hooks, idx, va, size)?, StoreEffect::NONE)
        }
        Op::ScW | Op::ScD => {
            let (stored, effect) = mmu.sc(&mut hooks, idx, va, size, operand)?;
            let effect = marked(mmu, before, effect);
            write(&mut ctx.cpu, insn.rd, u64::from(!stored));
            return Ok(effect);
        }
        op => match op.amo() {
            Some(amo) => mmu.amo(&mut hooks, idx, va, size, amo, operand)?,
            None => return Err(MemFault::access(AccessKind::Store, va)),
        },
    };
    let effect = marked(mmu, before, effect);
    let value = if size == MemSize::B4 { old as i32 as i64 as u64 } else { old };
    write(&mut ctx.cpu, insn.rd, value);
    Ok(effect)
}

fn control(core: &mut Core, ctx: &mut Context, insn: &Insn, next: u64) -> Outcome {
    let row = csr::find(insn.csr());
    if matches!(row, Some(csr::Row { value: csr::Value::Float(_), .. })) {
        ctx.settle_flags();
    }
    if insn.rs1 == 0 && !matches!(insn.op, Op::Csrrw | Op::Csrrwi) {
        if matches!(row, Some(csr::Row { value: csr::Value::Time, .. })) && ctx.cpu.privilege == Privilege::M {
            // Open to M-mode whatever is enabled, and read often.
            core.clock.publish(ctx.cpu.retired);
            if insn.rd != 0 {
                ctx.cpu.x[usize::from(insn.rd & 31)] = core.clock.mtime();
            }
            return Outcome::Next;
        }
        // A read changes nothing that is to be looked at.
        let env = CsrEnv { mip: core.lines_at(&ctx.cpu, insn), clock: &core.clock };
        let read = csr::execute(&mut ctx.cpu, insn, &env);
        return if read.is_ok() { Outcome::Next } else { Outcome::Trap(Trap::not_allowed(insn)) };
    }
    let before = row.filter(|row| row.effect == CsrEffect::Memory).map(|_| Memory::of(&ctx.cpu.csr));
    let regime = (ctx.cpu.regime(), ctx.cpu.data_idx());
    let refused = core.refused(&ctx.cpu, insn);
    let env = CsrEnv { mip: core.lines_at(&ctx.cpu, insn), clock: &core.clock };
    match csr::execute(&mut ctx.cpu, insn, &env) {
        Ok(CsrEffect::Memory) => {
            if let Some(before) = before {
                core.memory_changed(ctx, &before);
            }
            if core.drop_code { Outcome::Leave(next) } else { Outcome::Go(next) }
        }
        // MPRV, and what it is about; SUM and MXR.
        Ok(_) if regime != (ctx.cpu.regime(), ctx.cpu.data_idx()) => {
            core.follow_regime(ctx);
            if core.may_interrupt(&ctx.cpu) { Outcome::Leave(next) } else { Outcome::Go(next) }
        }
        Ok(CsrEffect::None) => {
            if let Some(value) = refused {
                core.trace_refused(&ctx.cpu, next.wrapping_sub(insn.len.into()), value);
            }
            Outcome::Next
        }
        Ok(CsrEffect::Interrupts) if core.may_interrupt(&ctx.cpu) => Outcome::Leave(next),
        Ok(CsrEffect::Interrupts) => Outcome::Next,
        Ok(CsrEffect::Deadline) => {
            core.new_deadline = true;
            Outcome::Leave(next)
        }
        Err(csr::Illegal) => Outcome::Trap(Trap::not_allowed(insn)),
    }
}

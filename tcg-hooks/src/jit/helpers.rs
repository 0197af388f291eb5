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
use super::answer;
use super::context::Context;
use crate::barrier;
use crate::cpu::CpuState;
use crate::exec::Core;
use crate::hooks::After;
use crate::ir::{Does, MemOp, Site};
use crate::riscv::csr::{self, CsrEffect};
use crate::riscv::fpu;
use crate::riscv::mmu::{self, Memory};
use crate::riscv::opcodes::PATTERNS;
use crate::riscv::trap::{self, Trap};
use crate::riscv::{Format, Insn, Op, Privilege};
use crate::tier0::{self, bits};
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{AccessKind, GuestVirt, LiveMmu, MemFault, MemSize, StoreEffect};

/// Families of instructions that are executed alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
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
static CLASSES: [Class; 256] = {
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
static MEM_OPS: [MemOp; 256] = {
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
    /// It was not executed: a run shall end there.
    Exit,
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
    if let Does::Hook { .. } | Does::Arrive { .. } | Does::ArriveAt { .. } = site.does {
        let (does, refund, pc, insn) = (site.does, site.refund, site.pc, site.insn);
        return hook_site(core, ctx, does, refund, pc, &insn);
    }
    // A copy, as the TB may die. Copied as an `Option`, it is written and read in pieces that overlap: two stalls, half of
    // the time of an `ecall`.
    let site = *site;
    ctx.settle(site.refund);
    ctx.cpu.pc = site.pc;
    // Looked at before: a load may load its own base.
    let mut odd = false;
    let beside = ctx.take_sample() && is_store(&site);
    let away = ctx.take_elsewhere().then(|| away(core, &ctx.cpu, &site)).flatten();
    let outcome = match site.does {
        Does::Load | Does::Store => {
            core.counted_twice += 1;
            let device =
                if site.does == Does::Load { device_load(core, ctx, &site) } else { device_store(core, ctx, &site) };
            device.unwrap_or_else(|| {
                odd = is_odd(&ctx.cpu, &site.insn);
                missed(core, ctx, &site)
            })
        }
        // Most of what is executed here; by the short way.
        Does::Execute if CLASSES[site.insn.op as usize] == Class::Trap => trap_or_return(core, ctx, &site.insn),
        Does::Execute => {
            let class = CLASSES[site.insn.op as usize];
            let access = matches!(class, Class::Load | Class::Store | Class::FloatLoad | Class::FloatStore);
            // Counted at its block's head already, and again by the `SoftMmu`.
            core.counted_twice += u64::from(access || class == Class::Atomic);
            odd = access && is_odd(&ctx.cpu, &site.insn);
            if class == Class::Atomic && !matches!(site.insn.op, Op::LrW | Op::LrD | Op::ScW | Op::ScD) {
                // An AMO. In line it is a locked instruction, that fences next to it were left out for: so it is, on a device or a
                // trap.
                barrier::full();
                let outcome = execute(core, ctx, &site);
                barrier::full();
                outcome
            } else {
                execute(core, ctx, &site)
            }
        }
        Does::Hook { .. } | Does::Arrive { .. } | Does::ArriveAt { .. } => unreachable!("above"),
        Does::Begin => fpu::begin(&mut ctx.cpu, &site.insn).map_or_else(Outcome::Trap, |()| Outcome::Next),
    };
    match outcome {
        Outcome::Next if (odd || beside || away.is_some()) && learn(core, ctx, number, beside, away) => {
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
        Outcome::Exit => {
            ctx.budget += i64::from(site.refund);
            answer::LEAVE
        }
        Outcome::Trap(trap) => {
            ctx.budget += i64::from(site.refund);
            core.take_trap(ctx, &trap);
            // In the handler no interrupt can be taken.
            if core.trap_loop { answer::LEAVE } else { answer::GO }
        }
    }
}

/// As [`execute_site`], of a site that calls hooks and does no more.
///
/// # Safety
/// As there.
pub(crate) unsafe extern "C" fn execute_hook(ctx: *mut Context, number: u32) -> u64 {
    // SAFETY: as in `execute_site`.
    let (ctx, core) = unsafe {
        let ctx = &mut *ctx;
        let core = &mut *ctx.engine.cast::<Core>();
        (ctx, core)
    };
    let Some(site) = core.tbs.as_ref().and_then(|tbs| tbs.site(number)) else { return answer::LEAVE };
    if let Does::Hook { only } | Does::Arrive { only } = site.does
        && only != 0
    {
        let (before, len, refund) = (matches!(site.does, Does::Hook { .. }), site.insn.len, site.refund);
        ctx.cpu.pc = site.pc;
        ctx.settle(refund);
        let after = core.hook_only(ctx, u32::from(only) - 1, if before { len } else { 0 });
        if after.is_nothing() {
            return answer::CONTINUE;
        }
        return behind_hook(core, ctx, after, before, refund);
    }
    let (does, refund, pc, insn) = (site.does, site.refund, site.pc, site.insn);
    hook_site(core, ctx, does, refund, pc, &insn)
}

/// Hooks are called, or one that emitted code told ends the run.
#[inline(never)]
fn hook_site(core: &mut Core, ctx: &mut Context, does: Does, refund: u16, pc: u64, insn: &Insn) -> u64 {
    ctx.settle(refund);
    let before = matches!(does, Does::Hook { .. });
    if !matches!(does, Does::ArriveAt { .. }) {
        ctx.cpu.pc = pc;
    }
    let after = match does {
        _ if core.stopped_by_light(before) => After { stop: true, ..After::default() },
        Does::Hook { .. } => core.hook_insn(ctx, insn),
        _ => core.hook_block(ctx),
    };
    if after.is_nothing() { answer::CONTINUE } else { behind_hook(core, ctx, after, before, refund) }
}

/// Hooks sent the hart elsewhere, end the run, or changed what emitted code stands on. `before`: they were called for an instruction.
#[cold]
#[inline(never)]
fn behind_hook(core: &mut Core, ctx: &mut Context, after: After, before: bool, refund: u16) -> u64 {
    let After { next, stop, changed } = after;
    // An instruction that is sent elsewhere counts as executed.
    ctx.budget += i64::from(refund) - i64::from(before && next.is_some());
    ctx.cpu.pc = next.unwrap_or(ctx.cpu.pc);
    if before && next.is_none() && !stop {
        // Its hooks were called, so it is executed here: of its translation nothing is known any more.
        tier0::run_hooked(core, ctx);
    }
    if next.is_some() && !stop && !changed { answer::GO } else { answer::LEAVE }
}

/// What an access teaches of its site: that it was misaligned, or one of many stores beside code, or of many that are away. Does its
/// TB die of it?
#[cold]
fn learn(core: &mut Core, ctx: &mut Context, number: u32, beside: bool, away: Option<Away>) -> bool {
    let Some(tbs) = core.tbs.as_mut() else { return false };
    if let Some(away) = away {
        let learned = match away {
            Away::Elsewhere => tbs.is_elsewhere(ctx, number),
            Away::BesideRun => tbs.is_beside_run(ctx, number),
        };
        ctx.elsewhere_again(learned);
        return learned;
    }
    if !beside {
        return tbs.count_odd(ctx, number);
    }
    let learned = tbs.store_beside(ctx, number);
    ctx.sample_again(learned);
    learned
}

/// Where an access goes that emitted code does not expect there.
#[derive(Clone, Copy)]
enum Away {
    /// To RAM with an entry that has another addend than is assumed.
    Elsewhere,
    /// To load from a page outside the run that needs no entries, though its own is like theirs.
    BesideRun,
}

#[cold]
fn away(core: &mut Core, cpu: &CpuState, site: &Site) -> Option<Away> {
    let class = CLASSES[site.insn.op as usize];
    let loads = matches!(class, Class::Load | Class::FloatLoad);
    let accesses = loads || matches!(class, Class::Store | Class::Atomic | Class::FloatStore);
    let (mmu, va) = (core.live().0, address(cpu, &site.insn));
    match accesses && mmu.is_elsewhere(va) {
        true => Some(Away::Elsewhere),
        false => (loads && mmu.is_beside_run(va)).then_some(Away::BesideRun),
    }
}

fn is_store(site: &Site) -> bool {
    matches!(CLASSES[site.insn.op as usize], Class::Store | Class::FloatStore)
}

/// As [`execute`], of what most sites are for: a load of a device that was used before.
#[inline]
fn device_load(core: &mut Core, ctx: &mut Context, site: &Site) -> Option<Outcome> {
    let mem = MEM_OPS[site.insn.op as usize];
    let (mmu, clock) = core.live();
    let raw = mmu.load_device(address(&ctx.cpu, &site.insn), mem.size(), || clock.publish(ctx.cpu.retired))?;
    write(&mut ctx.cpu, site.insn.rd, extended(mem, raw));
    Some(behind_device(core, site))
}

/// The same of a store.
#[inline]
fn device_store(core: &mut Core, ctx: &mut Context, site: &Site) -> Option<Outcome> {
    let mem = MEM_OPS[site.insn.op as usize];
    let (mmu, clock) = core.live();
    let value = ctx.cpu.x[usize::from(site.insn.rs2 & 31)];
    mmu.store_device(address(&ctx.cpu, &site.insn), mem.size(), value, || clock.publish(ctx.cpu.retired))?;
    Some(behind_device(core, site))
}

/// The same of RAM, where the probe in line found no entry. Apart, so that devices have what they need in registers.
#[inline(never)]
fn missed(core: &mut Core, ctx: &mut Context, site: &Site) -> Outcome {
    let (mem, va) = (MEM_OPS[site.insn.op as usize], address(&ctx.cpu, &site.insn));
    let value = ctx.cpu.x[usize::from(site.insn.rs2 & 31)];
    let loads = site.does == Does::Load;
    let (mmu, mut hooks) = core.split(ctx);
    let before = mmu.stats().killed;
    let result = if loads {
        mmu.load_missed(&mut hooks, va, mem.size()).map(|raw| (raw, StoreEffect::NONE))
    } else {
        mmu.store_missed(&mut hooks, va, mem.size(), value).map(|effect| (0, effect))
    };
    let result = result.map(|(raw, effect)| (raw, marked(mmu, before, effect)));
    if let (true, Ok((raw, _))) = (loads, &result) {
        write(&mut ctx.cpu, site.insn.rd, extended(mem, *raw));
    }
    accessed(core, result.map(|(_, effect)| effect), site.pc.wrapping_add(site.insn.len.into()))
}

/// What a load of these bytes gives.
#[inline]
fn extended(mem: MemOp, raw: u64) -> u64 {
    let unused = 64 - 8 * mem.bytes();
    if mem.signed() { ((raw << unused) as i64 >> unused) as u64 } else { raw }
}

/// It may have raised an interrupt, or written code.
#[inline]
fn behind_device(core: &Core, site: &Site) -> Outcome {
    if core.mmu.port().kicked() { Outcome::Leave(site.pc.wrapping_add(site.insn.len.into())) } else { Outcome::Next }
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
fn accessed(core: &Core, result: Result<StoreEffect, MemFault>, next: u64) -> Outcome {
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
fn trap_or_return(core: &mut Core, ctx: &mut Context, insn: &Insn) -> Outcome {
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

fn address(cpu: &CpuState, insn: &Insn) -> GuestVirt {
    GuestVirt::new(cpu.x[usize::from(insn.rs1 & 31)].wrapping_add(insn.imm64()))
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
        cpu.x[usize::from(rd & 31)] = value;
    }
}

/// With the TBs that died of marks which a walk left in page tables since.
#[inline]
fn marked(mmu: &LiveMmu, before: u64, effect: StoreEffect) -> StoreEffect {
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
        let env = core.csr_env(&ctx.cpu, insn);
        let read = csr::execute(&mut ctx.cpu, insn, &env);
        return if read.is_ok() { Outcome::Next } else { Outcome::Trap(Trap::not_allowed(insn)) };
    }
    let before = row.filter(|row| row.effect == CsrEffect::Memory).map(|_| Memory::of(&ctx.cpu.csr));
    let regime = (ctx.cpu.regime(), ctx.cpu.data_idx());
    let refused = core.refused_satp(&ctx.cpu, insn);
    let env = core.csr_env(&ctx.cpu, insn);
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
                core.trace_refused_satp(&ctx.cpu, next.wrapping_sub(insn.len.into()), value);
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

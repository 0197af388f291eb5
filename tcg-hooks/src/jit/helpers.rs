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
use super::execute::{
    CLASSES, Class, MEM_OPS, Outcome, accessed, address, execute, is_odd, marked, trap_or_return, write,
};
use crate::barrier;
use crate::cpu::CpuState;
use crate::exec::Core;
use crate::hooks::After;
use crate::ir::{Does, MemOp, Site};
use crate::riscv::fpu;
use crate::riscv::{Insn, Op};
use crate::tier0;
use notdirty_softmmu::StoreEffect;

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

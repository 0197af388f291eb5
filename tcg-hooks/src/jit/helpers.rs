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
use crate::cpu::CpuState;
use crate::exec::Core;
use crate::guest::{Insn, Outcome, sites};
use crate::hooks::After;
use crate::ir::{Does, Site};
use crate::tier0;

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
    let beside = ctx.take_sample() && sites::is_store(&site);
    let away = ctx.take_elsewhere().then(|| away(core, &ctx.cpu, &site)).flatten();
    let outcome = match site.does {
        Does::Load | Does::Store => {
            core.counted_twice += 1;
            let loads = site.does == Does::Load;
            let device =
                if loads { sites::device_load(core, ctx, &site) } else { sites::device_store(core, ctx, &site) };
            device.unwrap_or_else(|| {
                odd = sites::is_odd(&ctx.cpu, &site.insn);
                sites::missed(core, ctx, &site)
            })
        }
        Does::Execute => sites::execute(core, ctx, &site, &mut odd),
        Does::Hook { .. } | Does::Arrive { .. } | Does::ArriveAt { .. } => unreachable!("above"),
        Does::Begin => sites::begin(ctx, &site.insn),
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
    let (loads, accesses) = sites::loads_accesses(&site.insn);
    let (mmu, va) = (core.live().0, sites::address(cpu, &site.insn));
    match accesses && mmu.is_elsewhere(va) {
        true => Some(Away::Elsewhere),
        false => (loads && mmu.is_beside_run(va)).then_some(Away::BesideRun),
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

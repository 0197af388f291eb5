//! The instruction of a site of emitted code, in Rust: by the shortest way for what most sites are for, else by [`execute`].
use super::execute::{CLASSES, Class, MEM_OPS, accessed, execute as execute_any, marked, trap_or_return, write};
use super::{Insn, Op, fpu};
use crate::barrier;
use crate::exec::Core;
use crate::guest::Outcome;
use crate::ir::{Does, MemOp, Site};
use crate::jit::context::Context;
use notdirty_softmmu::StoreEffect;

pub(crate) use super::execute::{address, is_odd};

/// Executes the instruction of a site, whatever it is. `odd`: it was an access, misaligned.
#[inline(always)]
pub(crate) fn execute(core: &mut Core, ctx: &mut Context, site: &Site, odd: &mut bool) -> Outcome {
    let class = CLASSES[site.insn.op as usize];
    if class == Class::Trap {
        // Most of what is executed here; by the short way.
        return trap_or_return(core, ctx, &site.insn);
    }
    let access = matches!(class, Class::Load | Class::Store | Class::FloatLoad | Class::FloatStore);
    // Counted at its block's head already, and again by the `SoftMmu`.
    core.counted_twice += u64::from(access || class == Class::Atomic);
    *odd = access && is_odd(&ctx.cpu, &site.insn);
    if class == Class::Atomic && !matches!(site.insn.op, Op::LrW | Op::LrD | Op::ScW | Op::ScD) {
        // An AMO. In line it is a locked instruction, that fences next to it were left out for: so it is, on a device or a
        // trap.
        barrier::full();
        let outcome = execute_any(core, ctx, site);
        barrier::full();
        outcome
    } else {
        execute_any(core, ctx, site)
    }
}

/// Switches the floating-point unit on for it.
#[inline]
pub(crate) fn begin(ctx: &mut Context, insn: &Insn) -> Outcome {
    fpu::begin(&mut ctx.cpu, insn).map_or_else(Outcome::Trap, |()| Outcome::Next)
}

/// Does it load, and does it access memory at all?
pub(crate) fn loads_accesses(insn: &Insn) -> (bool, bool) {
    let class = CLASSES[insn.op as usize];
    let loads = matches!(class, Class::Load | Class::FloatLoad);
    (loads, loads || matches!(class, Class::Store | Class::Atomic | Class::FloatStore))
}

/// Does it store?
pub(crate) fn is_store(site: &Site) -> bool {
    matches!(CLASSES[site.insn.op as usize], Class::Store | Class::FloatStore)
}

/// As [`execute_any`], of what most sites are for: a load of a device that was used before.
#[inline]
pub(crate) fn device_load(core: &mut Core, ctx: &mut Context, site: &Site) -> Option<Outcome> {
    let mem = MEM_OPS[site.insn.op as usize];
    let (mmu, clock) = core.live();
    let raw = mmu.load_device(address(&ctx.cpu, &site.insn), mem.size(), || clock.publish(ctx.cpu.retired))?;
    write(&mut ctx.cpu, site.insn.rd, extended(mem, raw));
    Some(behind_device(core, site))
}

/// The same of a store.
#[inline]
pub(crate) fn device_store(core: &mut Core, ctx: &mut Context, site: &Site) -> Option<Outcome> {
    let mem = MEM_OPS[site.insn.op as usize];
    let (mmu, clock) = core.live();
    let value = ctx.cpu.x[usize::from(site.insn.rs2 & 31)];
    mmu.store_device(address(&ctx.cpu, &site.insn), mem.size(), value, || clock.publish(ctx.cpu.retired))?;
    Some(behind_device(core, site))
}

/// The same of RAM, where the probe in line found no entry. Apart, so that devices have what they need in registers.
#[inline(never)]
pub(crate) fn missed(core: &mut Core, ctx: &mut Context, site: &Site) -> Outcome {
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

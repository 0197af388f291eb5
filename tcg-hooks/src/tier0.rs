//! Tier 0: code that is cold, or patched again and again, is cheaper to interpret than to translate.
//!
//! ```text
//!   no TB at pc ─▶ heat: run often enough? ── yes ─▶ translate
//!                        │ no
//!                        ▼
//!                  fetch, decode, execute until a jump lands on a TB, on hot code, or the budget is gone
//!   a TB dies young ─▶ its pc must be run four times as often before it is translated again
//! ```
//!
//! Nothing is cached, so a patch costs its store and no line mask is set: pages with cold code are plain pages.
//! Instructions that leave the straight road (traps, CSRs, atomics) share what Rust does for them
//! with emitted code; the oracle shares nothing with this file but the decode table.
use crate::exec::Core;
use crate::guest::{Features, Insn, Mode, decode, flow, is_short, step};
use crate::hooks::After;
use crate::jit::context::Context;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{FetchPage, GuestVirt, MemFault};

/// Instructions before the exec loop looks, some 40 us: a slice may be longer, as what ran before was faster.
const STRETCH: i64 = 4096;

/// Why tier 0 stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// At `cpu.pc` there should be a TB, or there is one.
    Hot,
    /// There is one: its code.
    Code(*const u8),
    /// The exec loop must look: an interrupt, a kick, `wfi`, or the budget is gone, or a stretch of it.
    Look,
}

/// A page that instructions come from.
struct Code {
    /// Where all 32 bits of an instruction lie on it: from here on, so many bytes. With none an odd address, which no
    /// pc is.
    from: u64,
    len: u64,
    /// What is added to a pc for its place on the host (wrapping).
    addend: u64,
    isa: Features,
    /// The mode that it was fetched in.
    mode: Mode,
}

impl Code {
    const fn nowhere(isa: Features, mode: Mode) -> Code {
        Code { from: u64::MAX, len: 0, addend: 0, isa, mode }
    }

    /// What was fetched in another mode is not this one's to execute.
    #[inline]
    fn follow_mode(&mut self, ctx: &Context) {
        if self.mode != ctx.cpu.privilege {
            *self = Code::nowhere(ctx.cpu.isa, ctx.cpu.privilege);
        }
    }

    /// The page, from `pc` on, that was fetched for it; of what begins there, as many bytes as nobody looks at.
    fn page(isa: Features, mode: Mode, pc: u64, page: FetchPage, free: u64) -> Code {
        let at = page.host.expose_provenance() as u64 + pc % PAGE_SIZE;
        match page.len_ok.checked_sub(4) {
            Some(len) if free > 0 => Code { from: pc, len: len.min(free - 1), addend: at.wrapping_sub(pc), isa, mode },
            _ => Code::nowhere(isa, mode),
        }
    }

    /// The instruction at `pc`, if all of it is on this page, and where the next one is: by the bits, as the next fetch need not
    /// wait for what the tables say of this one.
    #[inline(always)]
    fn insn(&self, pc: u64) -> Option<(Insn, u64)> {
        // A pc before the page wraps to a huge offset.
        if pc.wrapping_sub(self.from) > self.len {
            return None;
        }
        let at = std::ptr::with_exposed_provenance::<u8>(pc.wrapping_add(self.addend) as usize);
        // SAFETY: the four bytes are among those that `fetch` said can be read. They live until the next `serve`, which
        // tier 0 does not call.
        let bits = unsafe { crate::fetch::word(at) };
        // A branch, which the host predicts: made by a comparison, the length is waited for, and all takes twice as long. The
        // compiler chose one or the other, as it happened.
        let len = if is_short(bits as u16) { 2 } else { std::hint::black_box(4) };
        let insn = self.isa.filter(decode(bits as u16, bits), bits);
        debug_assert_eq!(u64::from(insn.len), len);
        Some((insn, pc.wrapping_add(len)))
    }
}

/// Runs from `cpu.pc` on, for `ctx.budget` instructions and up to `Core::over` more, as emitted code does, or a
/// [`STRETCH`]. It stops where it jumped to: nothing shall grow warm, and be translated, for being where slices end.
/// `cpu.retired` is exact before and after. `page` is that of `cpu.pc`, if it was fetched already.
pub(crate) fn run(core: &mut Core, ctx: &mut Context, page: Option<FetchPage>) -> Why {
    let over = core.over as i64;
    run_for(core, ctx, page, over, false)
}

/// The same, for `ctx.budget` instructions and not one more, whether there are TBs or not: the end of a slice that is met to the
/// instruction.
pub(crate) fn run_exactly(core: &mut Core, ctx: &mut Context) {
    run_for(core, ctx, None, 0, false);
}

/// One instruction, or the first of a handler, in the middle of a slice: its hooks were called, and no run ends there.
pub(crate) fn run_hooked(core: &mut Core, ctx: &mut Context) {
    ctx.settle(0);
    let budget = std::mem::replace(&mut ctx.budget, 1);
    run_for(core, ctx, None, 0, true);
    ctx.budget += budget - 1;
    ctx.slice = ctx.budget;
}

/// Up to `over` more than the budget, so that it stops where it jumped to. `past`: what is to be done before the first instruction was.
#[inline]
fn run_for(core: &mut Core, ctx: &mut Context, page: Option<FetchPage>, over: i64, mut past: bool) -> Why {
    let mut code = match page {
        Some(page) => {
            let free = free_from(core, ctx.cpu.pc);
            Code::page(ctx.cpu.isa, ctx.cpu.privilege, ctx.cpu.pc, page, free)
        }
        None => Code::nowhere(ctx.cpu.isa, ctx.cpu.privilege),
    };
    // How loads and stores find memory; what changes that is a trap, or rare.
    let mut idx = ctx.cpu.data_idx();
    let start = ctx.cpu.retired;
    let budget = ctx.budget.clamp(0, STRETCH) as u64;
    let most = (ctx.budget.min(STRETCH) + over).max(0) as u64;
    // Both are in the context only where somebody looks there: see `show`.
    let (mut pc, mut done) = (ctx.cpu.pc, 0u64);
    let (mut jumped, mut look) = (false, false);
    let why = loop {
        if done >= budget && (jumped || done >= most) {
            break Why::Look;
        }
        if jumped
            && over != 0
            && let Some(why) = core.count_run(ctx, pc)
        {
            break why;
        }
        let (insn, next) = match code.insn(pc) {
            Some(found) => found,
            None => {
                show(ctx, pc, start, done);
                let past = std::mem::take(&mut past);
                if core.exits.has(pc) && !past {
                    core.exit_here(pc);
                    break Why::Look;
                }
                let mut fetched = fetch(core, ctx, &mut code);
                if core.hooks.has_insn(pc)
                    && !past
                    && let Ok(insn) = &fetched
                {
                    let After { next, stop, changed } = core.hook_insn(ctx, insn);
                    look |= changed;
                    if let Some(next) = next {
                        (pc, jumped) = (next, true);
                        done += 1;
                    }
                    if stop {
                        break Why::Look;
                    }
                    if next.is_some() {
                        if look {
                            break Why::Look;
                        }
                        continue;
                    }
                    // It may be another one now.
                    fetched = fetch(core, ctx, &mut code);
                }
                match fetched {
                    Ok(insn) => (insn, pc.wrapping_add(insn.len.into())),
                    Err(fault) => {
                        core.take_trap(ctx, &fault.into());
                        (pc, jumped, idx) = (ctx.cpu.pc, true, ctx.cpu.data_idx());
                        code.follow_mode(ctx);
                        if core.trap_loop {
                            break Why::Look;
                        }
                        continue;
                    }
                }
            }
        };
        if core.compares.is_some() {
            core.note_operands(&ctx.cpu.x, pc, &insn);
        }
        let flow = step(core, ctx, &insn, (pc, next), &mut idx, start.wrapping_add(done));
        if core.follows_flow() {
            cover(core, &insn, pc, &flow);
        }
        let came = core.hooks.has_blocks() && flow::of(&insn).is_some();
        match flow {
            Flow::Next(next) => (pc, jumped) = (next, false),
            Flow::Jump(next) => (pc, jumped) = (next, true),
            Flow::Look(next) => {
                pc = next;
                done += 1;
                break Why::Look;
            }
            Flow::Far(next) => {
                (pc, jumped, code) = (next, true, Code::nowhere(ctx.cpu.isa, ctx.cpu.privilege));
            }
            Flow::Trapped => {
                (pc, jumped, idx) = (ctx.cpu.pc, true, ctx.cpu.data_idx());
                code.follow_mode(ctx);
                if core.trap_loop {
                    break Why::Look;
                }
                continue;
            }
        }
        done += 1;
        if came {
            show(ctx, pc, start, done);
            let After { next, stop, changed } = core.hook_block(ctx);
            pc = next.unwrap_or(pc);
            look |= changed || stop;
        }
        if look {
            break Why::Look;
        }
    };
    show(ctx, pc, start, done);
    ctx.budget -= done as i64;
    ctx.slice = ctx.budget;
    core.tier0_insns += done;
    why
}

/// Counts the edge that a branch or an indirect jump went.
#[cold]
fn cover(core: &mut Core, insn: &Insn, pc: u64, flow: &Flow) {
    if let Flow::Next(next) | Flow::Jump(next) = *flow {
        core.cover(flow::of(insn), pc, next);
    }
}

/// How many bytes from `pc` on no exit is at, and no instruction's hook: none, if there is one at `pc`. Whatever begins at one is asked
/// for by itself.
fn free_from(core: &Core, pc: u64) -> u64 {
    if core.hooks.has_insn_on_page(pc) { 0 } else { core.exits.free_from(pc) }
}

/// Brings `pc` and `retired` up to date.
#[inline]
pub(crate) fn show(ctx: &mut Context, pc: u64, start: u64, done: u64) {
    ctx.cpu.pc = pc;
    ctx.cpu.retired = start.wrapping_add(done);
}

/// The instruction at `cpu.pc` by the long way, and the page it starts on for those behind it.
fn fetch(core: &mut Core, ctx: &mut Context, code: &mut Code) -> Result<Insn, MemFault> {
    let (pc, mode, idx) = (ctx.cpu.pc, ctx.cpu.privilege, ctx.cpu.fetch_idx());
    let free = free_from(core, pc);
    let (mmu, mut hooks) = core.split(ctx);
    let page = mmu.fetch(&mut hooks, idx, GuestVirt::new(pc))?;
    // Where a run shall end, each instruction is asked for.
    *code = Code::page(code.isa, mode, pc, page, free);
    if let Some((insn, _)) = code.insn(pc) {
        return Ok(insn);
    }
    let low = mmu.fetch_u16(&mut hooks, idx, GuestVirt::new(pc))?;
    if is_short(low) {
        return Ok(code.isa.filter(decode(low, low.into()), low.into()));
    }
    let high = mmu.fetch_u16(&mut hooks, idx, GuestVirt::new(pc.wrapping_add(2)))?;
    let bits = u32::from(high) << 16 | u32::from(low);
    Ok(code.isa.filter(decode(low, bits), bits))
}

/// What an instruction came to; but for a trap it retired, and the next one is at that address.
pub(crate) enum Flow {
    Next(u64),
    Jump(u64),
    /// As `Jump`; where code is may have changed, or the mode.
    Far(u64),
    /// The exec loop must look first.
    Look(u64),
    /// It did not retire; the trap was taken.
    Trapped,
}

//! A slice by the JIT: which code is next, how it is made, and what it says when it leaves.
//!
//! ```text
//!   jit ─▶ next_code: jump cache ─▶ find_or_translate: TB there? ─ no ─▶ cold? tier 0 runs it ─▶ asked again, behind it
//!            ▲    │                                                      hot?  translate ─▶ TbCache::add ─▶ heat of its blocks
//!            │    ▼
//!            └─ enter: emitted code ─▶ a look-up, an exit to be linked ─▶ again;  a kick, the budget, a trap ─▶ the loop
//! ```
use super::super::show;
use super::Vcpu;
use crate::engine::JitFlags;
use crate::jit::{Backend, EnterFn, Host, reason};
use crate::tb::{Found, TbId, TbKey};
use crate::tier0::{self, Why};
use crate::tier2::{self, Ahead};
use crate::trace::TraceMask;
use crate::translate::{Limits, MAX_INSNS, WARM_INSNS};
use notdirty_core::{PAGE_SIZE, RamAddr};
use notdirty_softmmu::{AccessKind, GuestVirt, MemFault, MmuIdx};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So many translations of a vCPU are timed one by one; later ones are one of [`TIMED`], for all of those.
const TIMED_ALL: u64 = 256;
const TIMED: u32 = 16;

impl Vcpu {
    /// Emitted code, for `budget` instructions and up to `MAX_INSNS` more.
    pub(super) fn jit(&mut self, budget: i64) {
        let (ctx, core) = self.parts();
        core.settle_regime(ctx);
        core.new_deadline = false;
        (ctx.budget, ctx.slice) = (budget, budget);
        let mut next = self.next_code();
        while let Some(code) = next {
            let why = self.enter(code);
            let (ctx, core) = self.parts();
            // A translation takes long, so this is looked at before each but the first. Whoever is kicked all the time
            // gets on, as emitted code has run since the loop looked.
            let kicked = core.mmu.port().kicked();
            let Some(tbs) = &mut core.tbs else { return };
            next = match why {
                reason::LOOKUP if kicked => break,
                reason::LOOKUP => match ctx.take_broken_link() {
                    None => self.next_code(),
                    Some(number) => {
                        let found = self.find_or_translate();
                        let (ctx, core) = self.parts();
                        if let (Some((_, Some(to))), Some(tbs)) = (found, &mut core.tbs) {
                            tbs.link(ctx, number, to);
                        }
                        found.map(|(code, _)| code)
                    }
                },
                // A trap, a patch, or something for the loop to look at; traps and patches go straight on.
                reason::SITE => {
                    let look =
                        std::mem::take(&mut core.new_deadline) || core.waiting || core.trap_loop || core.drop_code;
                    if kicked || look || core.may_interrupt(&ctx.cpu) {
                        break;
                    }
                    self.next_code()
                }
                number => match tbs.exit(number) {
                    None => break,
                    Some(exit) if exit.is_refusal() => {
                        ctx.cpu.pc = exit.way.pc;
                        ctx.settle(0);
                        tbs.refuse(number, ctx);
                        // It was not begun, so something else must get on; whether there is a kick is asked behind it.
                        let code = self.go_round();
                        if kicked {
                            break;
                        }
                        code
                    }
                    Some(exit) if exit.refund != 0 => {
                        ctx.budget += i64::from(exit.refund);
                        ctx.cpu.pc = exit.way.pc;
                        tbs.sample(number, ctx);
                        break;
                    }
                    Some(exit) => {
                        ctx.cpu.pc = exit.way.pc;
                        if kicked {
                            break;
                        }
                        let found = self.find_or_translate();
                        let (ctx, core) = self.parts();
                        if let (Some((_, Some(to))), Some(tbs)) = (found, &mut core.tbs) {
                            tbs.link(ctx, number, to);
                        }
                        found.map(|(code, _)| code)
                    }
                },
            };
        }
        let (ctx, core) = self.parts();
        ctx.settle(0);
        if let (Some(number), Some(tbs)) = (ctx.wrong_guesses(), &mut core.tbs) {
            tbs.guesses_wrong(ctx, number);
        }
    }

    /// Runs emitted code until it leaves.
    fn enter(&mut self, code: *const u8) -> u32 {
        self.entries += 1;
        let kick = self.port().kick_byte();
        let (ctx, core) = (self.ctx.as_ptr(), &raw mut self.core);
        let Some(tbs) = &self.core.tbs else { return reason::SITE };
        let enter = tbs.address(Host::enter(&tbs.shared));
        // SAFETY: `enter` is the thunk of that signature, `code` the entry of a live TB of the same cache (TB-1,
        // CODE-2). Emitted code reads and writes the context, guest RAM behind matching TLB entries, and calls
        // `execute_site`, which uses `ctx` and `core` while nothing here does.
        unsafe {
            (*ctx).engine = core.cast();
            (*ctx).kick = kick;
            let enter: EnterFn = std::mem::transmute::<*const u8, EnterFn>(enter);
            let why = enter(ctx, code);
            (*ctx).settle_flags();
            why
        }
    }

    /// Host code to go on with, behind what tier 0 runs from here: up to a jump at least.
    fn go_round(&mut self) -> Option<*const u8> {
        let (ctx, core) = self.parts();
        match tier0::run(core, ctx, None) {
            Why::Look => None,
            Why::Code(code) => Some(code),
            Why::Hot => self.find_or_translate().map(|(code, _)| code),
        }
    }

    /// Host code to go on with, as [`Vcpu::find_or_translate`], but asking the jump cache first.
    fn next_code(&mut self) -> Option<*const u8> {
        let (ctx, core) = self.parts();
        let pc = ctx.cpu.pc;
        match core.tbs.as_ref().and_then(|tbs| tbs.jump(ctx, pc)) {
            Some(host) => Some(host),
            None => self.find_or_translate().map(|(code, _)| code),
        }
    }

    /// Host code to go on with, and its TB, if it was looked for. Cold code is run by tier 0 on the way, so it need not be the one
    /// at today's `pc`. `None`: the loop must look first (a trap was taken, an interrupt may be due, the budget is gone).
    fn find_or_translate(&mut self) -> Option<(*const u8, Option<TbId>)> {
        let mut hot = !self.flags.tier0;
        loop {
            let pc = self.cpu().pc;
            let (ctx, core) = self.parts();
            if pc & 1 != 0 {
                // Only the host can set such a pc.
                ctx.settle(0);
                core.take_trap(ctx, &MemFault::misaligned(AccessKind::Fetch, GuestVirt::new(pc)).into());
                return None;
            }
            core.follow_regime(ctx);
            let idx = ctx.cpu.fetch_idx();
            let (mmu, mut hooks) = core.split(ctx);
            let walks = mmu.stats().fetch_miss;
            let page = match mmu.fetch(&mut hooks, idx, GuestVirt::new(pc)) {
                Ok(page) => page,
                Err(fault) => {
                    ctx.settle(0);
                    if core.exits.has(pc) {
                        core.exit_here(pc);
                    } else {
                        core.take_trap(ctx, &fault.into());
                    }
                    return None;
                }
            };
            if core.mmu.stats().fetch_miss != walks && core.mmu.port().kicked() {
                // A walk may have seen a mapping that another hart made after it had written the page, without a fence between: what
                // was translated of it before dies first. The next fetch walks no more.
                ctx.settle(0);
                return None;
            }
            if !page.lasting {
                // PMP divides the page: each instruction is asked for.
                ctx.settle(0);
                match tier0::run(core, ctx, None) {
                    Why::Look => return None,
                    Why::Code(code) => return Some((code, None)),
                    Why::Hot => continue,
                }
            }
            let ram = RamAddr::new(page.ram.get() + pc % PAGE_SIZE);
            let flags = core.tbs.as_ref().map_or(0, |tbs| tbs.regime(ctx).flags());
            let key = TbKey { ram, pc, flags, instrumentation: core.instrumentation() };
            // The second page only matters to a TB that has bytes there.
            let after = (pc & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
            let (found, mut second) = match core.tbs.as_ref().and_then(|tbs| tbs.find(&key)) {
                Some((found, None)) => (Some(found), None),
                Some((found, ram)) => {
                    let (mmu, hooks) = core.split(ctx);
                    let now = mmu.fetch(&mut hooks.looking(), idx, GuestVirt::new(after)).ok();
                    let now = now.filter(|page| page.lasting && Some(page.ram.page()) == ram);
                    (now.and(Some(found)), now.map(|page| page.size_log2))
                }
                None => (None, None),
            };
            let new = found.is_none();
            let found = match found {
                Some(found) => found,
                None if hot || core.is_hot(pc) => {
                    let found = self.translate(key, idx)?;
                    second = self.translator.second_size();
                    found
                }
                None => {
                    ctx.settle(0);
                    match tier0::run(core, ctx, Some(page)) {
                        Why::Look => return None,
                        Why::Code(code) => return Some((code, None)),
                        Why::Hot => hot = true,
                    }
                    continue;
                }
            };
            let (ctx, core) = self.parts();
            if let Some(tbs) = &mut core.tbs {
                tbs.remember(ctx, &key, found, new, (page.size_log2, second));
            }
            if core.mask.has(TraceMask::EXEC) {
                let text = format!("TB {:#x}{}", pc, core.symbol(pc));
                core.say(TraceMask::EXEC, &text);
            }
            return core.tbs.as_ref().map(|tbs| (tbs.address(found.entry), Some(found.id)));
        }
    }

    fn translate(&mut self, key: TbKey, idx: MmuIdx) -> Option<Found> {
        // To ask for the time twice takes a hundredth of a translation.
        let made = self.core.tbs.as_ref().map_or(0, |tbs| tbs.stats.translated);
        let counts = match made {
            0..TIMED_ALL => 1,
            _ if made.is_multiple_of(TIMED.into()) => TIMED,
            _ => 0,
        };
        let start = (counts != 0).then(Instant::now);
        let hot = self.core.tbs.as_mut().is_some_and(|tbs| tbs.take_hot(&key));
        let JitFlags { regions, optimise, heads, .. } = self.flags;
        let insns = if hot { MAX_INSNS } else { WARM_INSNS };
        let limits = Limits { insns, regions, optimise, heads: hot && heads };
        // SAFETY: as `parts`, with the translator borrowed beside it.
        let ctx = unsafe { self.ctx.as_mut() };
        let (scattered, asked) = (self.core.mmu.is_scattered(), self.core.mmu.has_asks());
        if let Some(tbs) = &mut self.core.tbs {
            tbs.scattered = scattered;
            tbs.emitter.known().asked = asked;
            tbs.prepare(key.pc);
        }
        (self.translator.isa, self.translator.mode, self.translator.idx) = (ctx.cpu.isa, key.mode(), idx);
        if !Arc::ptr_eq(&self.translator.exits, self.core.exits.stops_at()) {
            self.translator.exits = self.core.exits.stops_at().clone();
        }
        if !Arc::ptr_eq(&self.translator.hooks, self.core.hooks.plan()) {
            self.translator.hooks = self.core.hooks.plan().clone();
        }
        if self.translator.compares.is_some() != self.core.compares.is_some() {
            self.translator.compares.clone_from(&self.core.compares);
        }
        if self.translator.edges.is_some() != self.core.edges.is_some() {
            self.translator.edges.clone_from(&self.core.edges);
        }
        let (mmu, hooks) = self.core.split(ctx);
        // The first instruction was fetched; none of the others is executed yet.
        let made = self.translator.translate_among(mmu, &mut hooks.looking(), key.pc, limits, |hooks, pc| {
            let ram = RamAddr::new((key.ram.get() & !(PAGE_SIZE - 1)) + pc % PAGE_SIZE);
            pc / PAGE_SIZE == key.pc / PAGE_SIZE && hooks.has_code(&TbKey { ram, pc, ..key })
        });
        let found = match made {
            Ok(pages) => {
                let doubts = self.translator.doubts();
                let mut bytes = Vec::new();
                self.translator.swap_bytes(&mut bytes);
                // What is hooked stays as it is: tier 2 polls in other places, and a hook may write any register.
                if let Some(tbs) = self.core.tbs.as_ref().filter(|_| hot && !self.translator.region.is_instrumented()) {
                    let learned = |pc| tbs.learned(pc);
                    let JitFlags { turns, sink, apart, .. } = self.flags;
                    let share = self.flags.share && !scattered && tbs.may_share(&key);
                    let ahead = Ahead { learned: &learned, turns, sink, apart, share };
                    let ahead = tbs.checks_ahead().then_some(ahead);
                    tier2::optimise(&mut self.translator.region, !self.flags.samples, ahead);
                }
                let region = &self.translator.region;
                if let Some(more @ 1..) = u64::from(region.insns).checked_sub(self.slack) {
                    // The slice that is under way was cut for less.
                    self.slack += more;
                    self.core.over = self.core.over.max(self.slack);
                    (ctx.budget, ctx.slice) = (ctx.budget - more as i64, ctx.slice - more as i64);
                }
                let found = self.core.tbs.as_mut().map(|tbs| {
                    let found = tbs.add(ctx, key, pages, region, &mut bytes, hot);
                    if self.flags.tier0 {
                        // Else a slice that ends inside a region makes the block behind it hot, and a region of its own.
                        region.blocks.iter().for_each(|block| tbs.heat.cool(block.pc));
                        if region.insns as usize >= limits.insns {
                            region
                                .blocks
                                .iter()
                                .filter_map(|block| block.term.exit())
                                .for_each(|pc| tbs.heat.follow(pc));
                        }
                    }
                    if let Some((pending, insns)) = doubts {
                        tbs.doubt(ctx, found.id, pages, insns, pending);
                        self.translator.overannounced().for_each(|page| tbs.recount(page));
                    }
                    found
                });
                self.translator.swap_bytes(&mut bytes);
                found
            }
            Err(_) => {
                if let Some(tbs) = &self.core.tbs {
                    self.translator.overannounced().for_each(|page| tbs.recount(page));
                }
                ctx.settle(0);
                // The translator asks for more than the guest does: an instruction on one range of RAM. One more than
                // emitted code runs over its budget is what `slice` leaves room for.
                self.interpret(1, false);
                None
            }
        };
        self.translate_time += start.map_or(Duration::ZERO, |start| start.elapsed() * counts);
        if let Some(found) = found {
            show::tb(&mut self.core, &self.translator, found);
        }
        found
    }
}

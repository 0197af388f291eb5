//! [`Vcpu`]: one hart with its memory, its engine and its loop.
#[cfg(any(test, feature = "testkit"))]
mod check;
mod fields;
mod jit;
mod oracle;
mod state;
mod wait;

pub use state::VcpuState;

use super::core::Core;
use super::exits::Exits;
use super::pace::Pace;
use super::semihost::Semihosting;
use super::unhandled::{Traps, UnhandledTrap};
use super::{Harts, RunLimits, VcpuExit, VcpuStats};
use crate::clock::Clock;
use crate::cpu::CpuState;
use crate::engine::{EngineKind, ICache, JitFlags};
use crate::guest::{Memory, hart};
use crate::hooks::HookTable;
use crate::jit::context::{Context, PREFIX};
use crate::jit::helpers::execute_site;
use crate::jit::{Flat, SMALL_BITS};
use crate::tb::TbCache;
use crate::tier0;
use crate::trace::{TraceMask, TraceSink};
use crate::translate::{MAX_INSNS, Translator, WARM_INSNS};
use notdirty_core::rcu::forks;
use notdirty_core::{PAGE_SIZE, pin};
use notdirty_softmmu::tlb::entry::TLB_BITS;
use notdirty_softmmu::{AddressSpace, Resolved, SoftMmu, VcpuPort};
use std::io;
use std::panic::resume_unwind;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Tier 0 runs on so far for a jump to stop at, in a slice that is met to the instruction, before there is emitted code.
const LEAST_SLACK: u64 = 32;
/// Slices that leave emitted code fewer instructions than this are left to tier 0.
const WORTH_ENTERING: u64 = 64;

/// How a vCPU is made.
pub struct VcpuConfig {
    /// Who executes.
    pub engine: EngineKind,
    /// Number of the hart.
    pub hart_id: u64,
    /// First pc.
    pub entry: u64,
    /// Guest time.
    pub clock: Arc<Clock>,
    /// When the guest's own stores reach its instruction stream.
    pub icache: ICache,
    /// Switches of the JIT.
    pub jit_flags: JitFlags,
    /// Bytes that translated code may take, with what is kept of it beside; 0 is 128 MiB.
    pub tb_cache_bytes: usize,
    /// Where `-d` goes.
    pub trace: Option<Box<dyn TraceSink>>,
}

impl VcpuConfig {
    /// Hart 0 from `entry` on, translated, all switches as they are by default, with the host's time for a clock of its own. Another
    /// field is set beside it: `VcpuConfig { hart_id: 1, clock, ..VcpuConfig::new(entry) }`.
    pub fn new(entry: u64) -> Self {
        Self {
            engine: EngineKind::default(),
            hart_id: 0,
            entry,
            clock: Arc::new(Clock::host()),
            icache: ICache::default(),
            jit_flags: JitFlags::default(),
            tb_cache_bytes: 0,
            trace: None,
        }
    }
}

/// One hart. It may be moved to another thread; only one thread uses it at a time.
pub struct Vcpu {
    /// Where the context is: in the prefix of `core.mmu`.
    ctx: NonNull<Context>,
    core: Core,
    translator: Translator,
    engine: EngineKind,
    flags: JitFlags,
    translate_time: Duration,
    entries: u64,
    interpreted: u64,
    /// Instructions retired in all runs; `CpuState::retired` goes back by a reset or a restored state.
    retired: u64,
    pace: Pace,
    /// Those that run beside it.
    harts: Option<Arc<Harts>>,
    /// It takes turns with them, on one thread: it never sleeps.
    turns: bool,
    /// Instructions that its emitted code may run between two polls: those of its longest region so far.
    slack: u64,
    /// What `forks` was when its translations began.
    forks: u64,
}

// SAFETY: `ctx` points into memory that `core.mmu` owns, and moves with it; all else is `Send`. The raw `engine`
// pointer inside the context is written anew before each entry into emitted code.
unsafe impl Send for Vcpu {}

impl Vcpu {
    /// A hart on this address space, in reset at `cfg.entry`.
    ///
    /// # Errors
    /// The host has no memory for its TLB or its translations.
    pub fn new(space: &Arc<AddressSpace>, cfg: VcpuConfig) -> io::Result<Vcpu> {
        let mut mmu = SoftMmu::new(space, PREFIX)?;
        let mut flat = flat_of(space, cfg.entry);
        if !cfg.jit_flags.flat_ram {
            flat.addend = flat.addend.wrapping_add(PAGE_SIZE);
            mmu.set_flat_beside(true);
        }
        mmu.set_flat_addend(flat.addend);
        mmu.set_flat_start(flat.start);
        if !(cfg.jit_flags.big_tlb && cfg.jit_flags.plain_index) {
            mmu.set_tlb_shape(if cfg.jit_flags.big_tlb { TLB_BITS } else { SMALL_BITS }, !cfg.jit_flags.plain_index);
        }
        let mask = cfg.trace.as_ref().map_or(TraceMask::none(), |t| t.mask());
        let mut flags = cfg.jit_flags;
        if mask.has(TraceMask::EXEC) {
            (flags.chaining, flags.jump_cache) = (false, false);
            flags.tier0 = false;
        }
        let bytes = if cfg.tb_cache_bytes == 0 { 128 << 20 } else { cfg.tb_cache_bytes };
        let mut tbs = match cfg.engine {
            EngineKind::Jit => Some(TbCache::new(space, mmu.port().id(), bytes, flags, flat, execute_site)?),
            EngineKind::Interp => None,
        };
        if let (Some(tbs), true) = (&mut tbs, mask.has(TraceMask::TB)) {
            tbs.deaths = Some(Vec::new());
        }
        let ctx = mmu.prefix().cast::<Context>();
        // SAFETY: the prefix has PREFIX bytes, 64-byte aligned, zeroed (a valid `Context` but for `cpu`, whose fields
        // are plain integers), and is ours.
        unsafe {
            let ctx = &mut *ctx.as_ptr();
            ctx.cpu = CpuState::new(cfg.hart_id, cfg.entry);
            ctx.settle_flags();
            ctx.forget_jumps();
            ctx.sample_again(true);
            ctx.elsewhere_again(true);
            ctx.count_guesses();
        }
        Ok(Vcpu {
            ctx,
            core: Core {
                mmu,
                tbs,
                clock: cfg.clock,
                trace: cfg.trace,
                mask,
                waiting: false,
                stale: (cfg.icache == ICache::FenceI).then(Vec::new),
                traps: 0,
                counted_twice: 0,
                tier0_insns: 0,
                semihosted: 0,
                semihosting: None,
                unhandled: Traps::default(),
                edges: None,
                compares: None,
                placed: None,
                numbered: None,
                exits: Exits::new(),
                hooks: HookTable::new(),
                over: 0,
                trap_loop: false,
                awaits: None,
                new_deadline: false,
                drop_code: false,
                forgotten: 0,
                saved_forgotten: 0,
                memory: None,
            },
            translator: Translator::default(),
            engine: cfg.engine,
            flags,
            translate_time: Duration::ZERO,
            entries: 0,
            interpreted: 0,
            retired: 0,
            // Where a slice ends a TB may begin: what is traced shall repeat exactly, with the instruction clock.
            pace: if mask.has(TraceMask::OF_TBS) { Pace::fixed() } else { Pace::by_time() },
            harts: None,
            turns: false,
            slack: LEAST_SLACK,
            forks: forks(),
        })
    }

    /// From now on it runs beside others: see [`Harts::run`].
    pub fn join(&mut self, harts: &Arc<Harts>) {
        harts.join(self.port());
        self.harts = Some(harts.clone());
    }

    /// Back to reset at `entry`; translations and counters stay.
    pub fn reset(&mut self, entry: u64) {
        self.part_from_parent();
        let hart_id = self.cpu().hart_id;
        let isa = self.cpu().isa;
        *self.cpu_mut() = CpuState { isa, ..CpuState::new(hart_id, entry) };
        let (ctx, core) = self.parts();
        core.fence_i(ctx);
        self.port().take_stop();
    }

    fn ctx(&self) -> &Context {
        // SAFETY: see `new`; `&self` keeps emitted code, the only other user, from being entered.
        unsafe { self.ctx.as_ref() }
    }

    fn parts(&mut self) -> (&mut Context, &mut Core) {
        // SAFETY: as `ctx`, with `&mut self`; the context is not inside `Core` but in memory that it owns.
        (unsafe { self.ctx.as_mut() }, &mut self.core)
    }

    /// In the child of a fork its translations are the parent's, too, and so are writes to them: it must have some of its own.
    #[inline]
    fn part_from_parent(&mut self) {
        if self.forks != forks() {
            self.begin_in_child();
        }
    }

    #[cold]
    fn begin_in_child(&mut self) {
        self.forks = forks();
        let (ctx, core) = self.parts();
        if let Some(tbs) = &mut core.tbs
            && !tbs.part_from_parent(ctx, execute_site)
        {
            log::warn!("no memory for translations in the child of a fork: instructions are interpreted");
            core.tbs = None;
            self.engine = EngineKind::Interp;
        }
    }

    /// The registers.
    pub fn cpu(&self) -> &CpuState {
        &self.ctx().cpu
    }

    /// The registers, to change between runs: a new pc, or another hart's whole state.
    ///
    /// What is not in them belongs to what the hart did before, and ends here: its sleep in `wfi` (which may always end)
    /// and its reservation (which may always be lost).
    pub fn cpu_mut(&mut self) -> &mut CpuState {
        self.drop_hidden_state();
        &mut self.parts().0.cpu
    }

    /// All of the hart that [`CpuState`] does not show.
    fn drop_hidden_state(&mut self) {
        self.core.mmu.clear_reservation();
        (self.core.waiting, self.core.trap_loop, self.core.awaits) = (false, false, None);
        self.core.exits.put();
        self.core.unhandled.forget();
    }

    /// Who answers the hart's semihosting calls; without, they are exceptions like any `ebreak`.
    pub fn set_semihosting(&mut self, answers: Option<Arc<dyn Semihosting>>) {
        self.core.semihosting = answers;
    }

    /// The first trap that nobody handles, while the hart is stuck in what should handle it.
    pub fn unhandled(&self) -> Option<UnhandledTrap> {
        self.core.unhandled.unhandled(self.cpu())
    }

    /// In `wfi`: it goes on when an interrupt is pending.
    pub fn is_waiting(&self) -> bool {
        self.core.waiting
    }

    /// Where others reach this vCPU.
    pub fn port(&self) -> &Arc<VcpuPort> {
        self.core.mmu.port()
    }

    /// Counters since the vCPU was made, whatever it was reset or restored to meanwhile.
    pub fn stats(&self) -> VcpuStats {
        let tb = self.core.tbs.as_ref().map(|t| t.stats).unwrap_or_default();
        VcpuStats {
            retired: self.retired,
            tbs_translated: tb.translated,
            tbs_invalidated: tb.invalidated,
            tbs_evicted: tb.evicted,
            tb,
            translate_time: self.translate_time,
            entries: self.entries,
            traps: self.core.traps,
            interpreted: self.interpreted,
            accesses: (self.flags.count || self.engine == EngineKind::Interp).then(|| {
                let slow = self.core.counted_twice;
                (self.ctx().accesses + self.core.mmu.stats().accesses).saturating_sub(slow)
            }),
            tier0: self.core.tier0_insns,
            tlb: *self.core.mmu.stats(),
        }
    }

    /// Serves what others posted, as a run would first of all; returns how many TBs died.
    pub fn serve(&mut self) -> usize {
        self.part_from_parent();
        let (ctx, core) = self.parts();
        // SAFETY: it is dropped here.
        if let Some((_started, served)) = unsafe { core.start_within(ctx) } {
            return served.killed as usize;
        }
        core.serve(ctx)
    }

    /// Runs until a limit, a stop, or for ever. Between runs the vCPU is parked: nobody waits for it.
    pub fn run(&mut self, limits: &RunLimits) -> VcpuExit {
        self.part_from_parent();
        let before = self.cpu().retired;
        // What the host put there, by `cpu_mut`, is no register.
        self.parts().0.cpu.x[0] = 0;
        self.core.exits.last = None;
        self.core.exits.begin(self.place());
        let exit = self.run_loop(limits);
        if let Some(why) = self.core.exits.why.take() {
            // Something else ended it first: the next one meets the exit again.
            self.core.trap_loop = false;
            let at = self.place();
            self.core.exits.was_late(why, at);
        }
        // The next run finds for itself what it needs.
        self.core.trap_loop &= self.core.awaits.take().is_none();
        self.core.memory = Some(Memory::of(&self.cpu().csr));
        self.retired += self.cpu().retired.wrapping_sub(before);
        if let Some(panic) = self.core.hooks.panic.take() {
            resume_unwind(panic);
        }
        exit
    }

    /// Where it stands.
    fn place(&self) -> (u64, u64) {
        (self.cpu().pc, self.cpu().retired)
    }

    fn run_loop(&mut self, limits: &RunLimits) -> VcpuExit {
        if let Some(why) = self.core.exits.take_kept() {
            return VcpuExit::Exit(why);
        }
        // Parks again however this ends.
        let mut running = None;
        self.pace.start();
        let mut first = true;
        // It goes on with an instruction that was begun before a wait.
        let mut again = false;
        loop {
            let looks = running.is_none() || self.port().kicked();
            if running.is_none() {
                // It was parked, and stores nothing before it has served.
                let (ctx, core) = self.parts();
                // SAFETY: a local of a call that borrows the vCPU.
                running = unsafe { core.start_within(ctx) }.map(|(started, _)| started);
            } else if looks {
                let (ctx, core) = self.parts();
                core.serve(ctx);
            }
            let (ctx, core) = self.parts();
            let begins = std::mem::take(&mut first);
            let goes_on = std::mem::take(&mut again) || begins;
            if begins {
                core.begin_memory(ctx);
            }
            if std::mem::take(&mut core.drop_code)
                && let Some(tbs) = &mut core.tbs
            {
                tbs.clear(ctx);
            }
            core.compare(ctx);
            if self.port().take_stop() || self.harts.as_ref().is_some_and(|harts| harts.stopping()) {
                return VcpuExit::Stopped;
            }
            let retired = self.cpu().retired;
            self.core.clock.publish(retired);
            if self.core.mmu.ring_is_full() {
                return VcpuExit::RingFull;
            }
            if limits.max_insns.is_some_and(|max| retired >= max) {
                return VcpuExit::InsnLimit;
            }
            if limits.deadline.is_some_and(|d| Instant::now() >= d) {
                return VcpuExit::Deadline;
            }
            if looks && let Some(left) = self.port().nap_left() {
                running = None;
                self.nap(left, limits);
                // It has not begun.
                first = begins;
                continue;
            }
            self.core.look_behind();
            if std::mem::take(&mut self.core.trap_loop) {
                if let Some(why) = self.core.exits.why.take() {
                    let at = self.place();
                    let hooked = self.core.hooks.has_insn(at.0);
                    self.core.exits.tell(why, at, hooked);
                    return VcpuExit::Exit(why);
                }
                running = None;
                if let Some(page) = self.core.awaits.take() {
                    again = true;
                    match self.wait_for_page(page, limits) {
                        Some(exit) => return exit,
                        None => {
                            self.pace.start();
                            continue;
                        }
                    }
                }
                match self.trapped(limits) {
                    Some(exit) => return exit,
                    // It slept parked, so requests posted meanwhile count as served: serve them first.
                    None => {
                        self.pace.start();
                        continue;
                    }
                }
            }
            let lines = self.core.lines(self.cpu());
            if self.core.waiting {
                if !hart::wakes_from_wfi(self.cpu(), lines) {
                    running = None;
                    match self.wait(limits) {
                        Some(exit) => return exit,
                        None => {
                            self.pace.start();
                            continue;
                        }
                    }
                }
                self.core.waiting = false;
            }
            let (ctx, core) = self.parts();
            if let Some(trap) = hart::interrupt(&ctx.cpu, lines) {
                core.take_trap(ctx, &trap);
            }
            if goes_on && self.core.exits.passes(self.place()) {
                // It goes on from where the last run ended.
                self.core.mmu.pass_watched(self.core.exits.watch_told(self.place()));
                self.interpret(1, true);
                self.core.mmu.pass_watched(false);
                continue;
            }
            let (n, exact) = self.slice(limits);
            match self.engine {
                EngineKind::Interp => self.interpret(n, false),
                EngineKind::Jit if exact && n < self.slack + WORTH_ENTERING => self.exactly(n),
                EngineKind::Jit => {
                    let slack = if exact { self.slack } else { 0 };
                    self.core.over = if exact { self.slack } else { WARM_INSNS as u64 };
                    self.jit((n - slack) as i64);
                    if exact && self.cpu().retired == retired && !self.port().kicked() && !self.core.trap_loop {
                        // The first block is longer than what is left.
                        self.exactly(n);
                    }
                }
            }
            let now = self.cpu().retired;
            let ended = now - retired + MAX_INSNS as u64 >= n;
            if ended {
                self.pace.ended(n, now);
            }
            self.pace.ran(now - retired, ended);
        }
    }

    /// `n` instructions and not one more: few, which emitted code cannot promise.
    fn exactly(&mut self, n: u64) {
        if !self.flags.tier0 {
            return self.interpret(n, false);
        }
        let (ctx, core) = self.parts();
        core.settle_regime(ctx);
        core.new_deadline = false;
        (ctx.budget, ctx.slice) = (n as i64, n as i64);
        tier0::run_exactly(core, ctx);
        core.new_deadline = false;
    }

    /// How many instructions to run, and whether it must not be one more.
    fn slice(&self, limits: &RunLimits) -> (u64, bool) {
        let left = limits.max_insns.map_or(u64::MAX, |max| max - self.cpu().retired);
        let longest = self.pace.insns();
        let [timer, own] = self.core.deadlines(self.cpu());
        // The first of the timers, and whether it is met to the instruction.
        let mut first = self.sooner((left, true), timer, longest);
        if own.1 != u64::MAX {
            first = self.sooner_of_own(first, own, longest);
        }
        let (until, exactly) = first;
        if !exactly {
            return (until, left < until + MAX_INSNS as u64);
        }
        (until.min(longest), until < longest + MAX_INSNS as u64)
    }

    /// The sooner of a limit and an interrupt's deadline.
    #[inline(always)]
    fn sooner(&self, limit: (u64, bool), (interrupt, deadline): (u64, u64), longest: u64) -> (u64, bool) {
        if deadline == u64::MAX {
            return limit;
        }
        let timer = self.insns_until(interrupt, deadline, longest);
        if timer.0 < limit.0 { timer } else { limit }
    }

    /// The same, apart, of what most guests do not have.
    #[inline(never)]
    fn sooner_of_own(&self, limit: (u64, bool), timer: (u64, u64), longest: u64) -> (u64, bool) {
        self.sooner(limit, timer, longest)
    }

    /// How many instructions may run before this interrupt's deadline is looked at, and whether that is exact.
    #[inline(always)]
    fn insns_until(&self, interrupt: u64, deadline: u64, longest: u64) -> (u64, bool) {
        let cpu = self.cpu();
        match self.core.clock.insns_until(deadline) {
            // An interrupt that cannot be taken needs no stop; whatever enables it leaves by itself.
            Some(n) if n > 0 && hart::is_open(cpu, interrupt) => (n, true),
            Some(_) => (u64::MAX, true),
            // Due already: whatever lets it be taken leaves by itself too.
            None if self.port().irq.load(Ordering::Acquire) & interrupt != 0 => (u64::MAX, true),
            None => match self.core.clock.host_wait(deadline) {
                // About an instruction a nanosecond: late by little, and looked at again. At once, if it became due since
                // the loop looked.
                Some(wait)
                    if hart::enabled(cpu) & interrupt != 0 && (!wait.is_zero() || hart::is_open(cpu, interrupt)) =>
                {
                    ((wait.as_nanos() as u64).clamp(64, longest), false)
                }
                _ => (u64::MAX, true),
            },
        }
    }
}

/// The RAM that `pc` lies in, or where RAM usually is.
pub(crate) fn flat_of(space: &AddressSpace, pc: u64) -> Flat {
    let guard = pin();
    let view = space.view(&guard);
    let ram = |at: u64| {
        view.ranges().find_map(|(start, last, what)| match what {
            Resolved::Ram { block, off, .. } if (start.get()..=last.get()).contains(&at) => {
                let start = start.get();
                Some(Flat { addend: (block.host() as u64).wrapping_add(off).wrapping_sub(start), start })
            }
            _ => None,
        })
    };
    [pc, 0x8000_0000].into_iter().find_map(ram).unwrap_or_default()
}

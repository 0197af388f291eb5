//! What the helpers work on while emitted code runs: everything of a vCPU but the context.
use super::exits::{Exit, Exits};
use super::semihost::Semihosting;
use super::unhandled::Traps;
use crate::clock::Clock;
use crate::cover::{Compares, Edges};
use crate::cpu::CpuState;
use crate::guest::{Changed, Goes, Insn, Memory, Trap, Walker, flow, hart, memory};
use crate::hooks::{HookId, HookTable};
use crate::jit::context::Context;
use crate::tb::{TbCache, TbKey};
use crate::tier0::Why;
use crate::trace::{TraceMask, TraceSink};
use notdirty_core::RamAddr;
use notdirty_softmmu::{
    Access, AccessKind, CodeInvalidator, FaultCause, GuestPhys, GuestVirt, Hooks, LiveMmu, MemSize, Physical,
    ServeReport, SoftMmu, Started, Translation,
};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Stores to code that may wait for a `fence.i`; further ones do not wait.
const MAX_STALE: usize = 256;

/// A vCPU without its registers.
pub(crate) struct Core {
    pub(crate) mmu: SoftMmu,
    pub(crate) tbs: Option<TbCache>,
    pub(crate) clock: Arc<Clock>,
    pub(crate) trace: Option<Box<dyn TraceSink>>,
    pub(crate) mask: TraceMask,
    /// In `wfi`.
    pub(crate) waiting: bool,
    /// With [`ICache::FenceI`](crate::ICache): what the hart wrote over its code since the last `fence.i`.
    pub(crate) stale: Option<Vec<(RamAddr, u64)>>,
    pub(crate) traps: u64,
    /// Loads and stores of emitted code that were done in Rust.
    pub(crate) counted_twice: u64,
    /// Instructions that tier 0 executed.
    pub(crate) tier0_insns: u64,
    /// Semihosting calls.
    pub(crate) semihosted: u64,
    /// What answers semihosting calls.
    pub(crate) semihosting: Option<Arc<dyn Semihosting>>,
    /// Exceptions that are not handled yet.
    pub(crate) unhandled: Traps,
    /// If edges are counted, their numbers.
    pub(crate) edges: Option<Arc<Edges>>,
    /// If operands of comparisons are noted, their places.
    pub(crate) compares: Option<Arc<Compares>>,
    /// The places that translations have which note them.
    pub(crate) placed: Option<Arc<Compares>>,
    /// The table that translations which count have their numbers from.
    pub(crate) numbered: Option<Arc<Edges>>,
    /// Where and why a run shall end.
    pub(crate) exits: Exits,
    /// The embedder's closures.
    pub(crate) hooks: HookTable,
    /// How many instructions more than the budget tier 0 may run in this slice.
    pub(crate) over: u64,
    /// The hart is stuck in its trap handler, or an exit was met: the loop must look.
    pub(crate) trap_loop: bool,
    /// The page of RAM that it waits for: it is yet to come.
    pub(crate) awaits: Option<RamAddr>,
    /// It gave its timer another deadline, which the slice was not cut for.
    pub(crate) new_deadline: bool,
    /// No translation of code may be run any more.
    pub(crate) drop_code: bool,
    /// What `forgotten` of the softmmu was when the jumps were looked at last.
    pub(crate) forgotten: u64,
    /// What it was when a checkpoint was taken or restored last.
    pub(crate) saved_forgotten: u64,
    /// What the softmmu's translations were made by, when the last run ended; a host may change it.
    pub(crate) memory: Option<Memory>,
}

impl Core {
    /// The memory and what it must tell of a store, side by side. Called in the middle of a run only.
    pub(crate) fn split<'a>(&'a mut self, ctx: &'a mut Context) -> (&'a mut LiveMmu, StoreHooks<'a>) {
        let (mmu, hooks) = self.parts(ctx);
        // SAFETY: the loop holds the `Started` across each call that comes here, and this module swaps no vCPU (HARVEST-1).
        (unsafe { mmu.live() }.expect("the vCPU runs"), hooks)
    }

    /// As `split`, for the devices of emitted code, in the regime that it goes by; they may be told nothing but the time.
    #[inline]
    pub(crate) fn live(&mut self) -> (&mut LiveMmu, &Clock) {
        // SAFETY: as in `split`.
        let mmu = unsafe { self.mmu.live() }.expect("the vCPU runs");
        (mmu, &self.clock)
    }

    /// As `split`, of a vCPU that may be parked.
    pub(crate) fn parts<'a>(&'a mut self, ctx: &'a mut Context) -> (&'a mut SoftMmu, StoreHooks<'a>) {
        let mask = self.mask;
        let heard = mask.has(TraceMask::NOTDIRTY | TraceMask::TB);
        let trace = if heard { self.trace.as_deref_mut() } else { None };
        let stale = self.stale.as_mut();
        (
            &mut self.mmu,
            StoreHooks {
                tbs: self.tbs.as_mut(),
                ctx,
                clock: &self.clock,
                stale,
                trace,
                mask,
                served: false,
                marks: true,
                told: &mut self.hooks,
            },
        )
    }

    /// The vCPU runs until the result is dropped; what was posted meanwhile is served. `None` if it runs already.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn start(&mut self, ctx: &mut Context) -> Option<(Started, ServeReport)> {
        let (mmu, hooks) = self.parts(ctx);
        // What others wrote does not wait for a `fence.i`.
        mmu.start(&mut hooks.served())
    }

    /// The same within a call of the vCPU's.
    ///
    /// # Safety
    /// The result is dropped before `self`.
    pub(crate) unsafe fn start_within(&mut self, ctx: &mut Context) -> Option<(Started, ServeReport)> {
        let (mmu, hooks) = self.parts(ctx);
        // SAFETY: the caller's promise.
        unsafe { mmu.start_within(&mut hooks.served()) }
    }

    /// Serves what others posted to a vCPU that runs, as `start` does. Returns how many TBs died.
    pub(crate) fn serve(&mut self, ctx: &mut Context) -> usize {
        // SAFETY: as in `split`.
        let mmu = unsafe { self.mmu.live() }.expect("the vCPU runs");
        if !mmu.take_kick() {
            return 0;
        }
        let (mmu, hooks) = self.split(ctx);
        mmu.serve_posted(&mut hooks.served()).killed as usize
    }

    /// `fence.i`: what was written is seen from here on, by whomever: kills that others posted are served before the
    /// next instruction, as the caller looks at the kick after this (TB-1). Returns how many TBs died.
    pub(crate) fn fence_i(&mut self, ctx: &mut Context) -> usize {
        let Some(tbs) = &mut self.tbs else { return 0 };
        let own = self.stale.iter_mut().flat_map(|stale| stale.drain(..));
        let killed: usize = own.map(|(ram, len)| tbs.invalidate(ctx, ram, len, false)).sum();
        let killed = killed + tbs.compare(ctx);
        ctx.code_work = u64::from(tbs.has_provisional());
        killed
    }

    /// Compares what is provisional (CODE-1). Returns how many TBs died.
    pub(crate) fn compare(&mut self, ctx: &mut Context) -> usize {
        self.tbs.as_mut().map_or(0, |tbs| tbs.compare(ctx))
    }

    /// Tier 0 is about to run code at `pc`, which has no TB: should there be one?
    #[inline]
    pub(crate) fn is_hot(&mut self, pc: u64) -> bool {
        self.tbs.as_mut().is_none_or(|tbs| tbs.heat.count_run(pc))
    }

    /// The same of code that may have one: then, why tier 0 shall stop.
    #[inline]
    pub(crate) fn count_run(&mut self, ctx: &mut Context, pc: u64) -> Option<Why> {
        if let Some(code) = self.tbs.as_ref().and_then(|tbs| tbs.jump(ctx, pc)) {
            return Some(Why::Code(code));
        }
        self.is_hot(pc).then_some(Why::Hot)
    }

    /// The lines of the interrupts: what devices drive, and timers whose deadline has passed.
    pub(crate) fn lines(&self, cpu: &CpuState) -> u64 {
        let at = hart::own_deadline(cpu);
        self.lines_of_devices() | if at != u64::MAX && self.clock.mtime() >= at { hart::OWN_TIMER } else { 0 }
    }

    /// What devices drive, the timer among them once its deadline has passed.
    fn lines_of_devices(&self) -> u64 {
        let port = self.mmu.port();
        let lines = port.irq.load(Ordering::Acquire);
        let deadline = port.timer_deadline.load(Ordering::Acquire);
        if lines & hart::TIMER == 0 && deadline != u64::MAX && self.clock.mtime() >= deadline {
            // The device takes the line back when it is given another deadline; it may be about to.
            port.irq.fetch_or(hart::TIMER, Ordering::AcqRel);
            if port.timer_deadline.load(Ordering::Acquire) != deadline {
                port.irq.fetch_and(!hart::TIMER, Ordering::AcqRel);
                return lines;
            }
            return lines | hart::TIMER;
        }
        lines
    }

    /// The deadlines of both timers, with their interrupts; `u64::MAX` is none.
    pub(crate) fn deadlines(&self, cpu: &CpuState) -> [(u64, u64); 2] {
        let timer = self.mmu.port().timer_deadline.load(Ordering::Acquire);
        [(hart::TIMER, timer), (hart::OWN_TIMER, hart::own_deadline(cpu))]
    }

    /// Must the exec loop look before the next instruction? A timer that is yet to come ends the slice by itself,
    /// except that with the instruction clock the slice may not have been cut for it.
    #[inline]
    pub(crate) fn may_interrupt(&self, cpu: &CpuState) -> bool {
        let enabled = hart::enabled(cpu);
        if enabled == 0 {
            return false;
        }
        let lines = self.mmu.port().irq.load(Ordering::Acquire) | if self.clock.is_insns() { hart::TIMER } else { 0 };
        hart::is_interrupted(cpu, lines) || enabled & hart::OWN_TIMER != 0 && self.may_interrupt_by_timer(cpu)
    }

    /// By its own.
    #[inline(never)]
    fn may_interrupt_by_timer(&self, cpu: &CpuState) -> bool {
        let at = hart::own_deadline(cpu);
        at != u64::MAX && hart::is_open(cpu, hart::OWN_TIMER) && (self.clock.is_insns() || self.clock.mtime() >= at)
    }

    /// The lines at this instruction, if it is one that shows them: the clock need not be asked for the others.
    pub(crate) fn lines_at(&self, cpu: &CpuState, insn: &Insn) -> u64 {
        if hart::shows_lines(insn) {
            self.clock.publish(cpu.retired);
            self.lines(cpu)
        } else {
            0
        }
    }

    /// Enters the handler for a trap at `cpu.pc`.
    pub(crate) fn take_trap(&mut self, ctx: &mut Context, trap: &Trap) {
        if hart::is_hosts(trap) {
            return if hart::is_watched(trap) { self.watched() } else { self.missing((ctx.cpu.pc, ctx.cpu.retired)) };
        }
        if self.exits.stops(trap, (ctx.cpu.pc, ctx.cpu.retired)) {
            self.trap_loop = true;
            return;
        }
        if self.hooks.has_traps() {
            self.hook_trap(ctx, trap);
        }
        self.traps += 1;
        let cpu = &mut ctx.cpu;
        let (epc, from) = (cpu.pc, cpu.privilege);
        let to = hart::handler(cpu, trap);
        if !trap.is_interrupt() {
            self.trap_loop |= self.unhandled.exception(cpu, trap, to.vector);
        }
        hart::take(cpu, trap, epc, to);
        if self.mask.has(TraceMask::INT | TraceMask::MMU) {
            self.trace_trap(cpu, trap, epc, from);
        }
        self.follow_regime(ctx);
    }

    /// An instruction at `pc` was executed by Rust, and the next one is at `next`: counts the edge, if it is one.
    #[inline]
    pub(crate) fn cover(&mut self, goes: Option<Goes>, pc: u64, next: u64) {
        if let Some(edges) = &self.edges
            && let Some(goes @ (Goes::Branch | Goes::Indirect)) = goes
        {
            let at = if goes == Goes::Indirect { edges.indirect(pc, next) } else { edges.number(pc, next) as usize };
            self.live().0.count_coverage(at);
        }
    }

    /// An instruction that compares is about to be executed by Rust.
    #[cold]
    pub(crate) fn note_operands(&mut self, x: &[u64; 32], pc: u64, insn: &Insn) {
        if let Some(compares) = &self.compares
            && flow::compares(insn)
        {
            let at = compares.number(pc);
            self.live().0.note_operands(at.into(), flow::compared(x, insn));
        }
    }

    /// Part of the key of TBs: what is made into them beside the guest's instructions.
    #[inline]
    pub(crate) fn instrumentation(&self) -> u32 {
        u32::from(self.compares.is_some()) << 15
            | self.hooks.number() << 8
            | self.exits.number() << 1
            | u32::from(self.edges.is_some())
    }

    /// Is something to be done where control goes by a branch or a jump?
    #[inline]
    pub(crate) fn follows_flow(&self) -> bool {
        self.edges.is_some() || self.hooks.has_blocks()
    }

    /// An access was not made, as its bytes are watched: the run ends before its instruction.
    #[cold]
    fn watched(&mut self) {
        // SAFETY: as in `split`.
        let met = unsafe { self.mmu.live() }.and_then(|mmu| mmu.take_watched());
        self.exits.why = met.map(Exit::Watch);
        self.trap_loop = true;
    }

    /// An access was not made, as its page is yet to come: the loop waits for it, and the instruction is executed then.
    #[cold]
    fn missing(&mut self, at: (u64, u64)) {
        // SAFETY: as in `split`.
        let met = unsafe { self.mmu.live() }.and_then(|mmu| mmu.take_missing());
        let Some((page, kind)) = met else { return };
        self.awaits = Some(page);
        if kind != AccessKind::Fetch {
            // Its hooks were called.
            self.exits.begun(at, self.hooks.has_insn(at.0));
        }
        self.trap_loop = true;
    }

    /// What is done beside the instructions needs a page that is yet to come: waits for it, and is not parked meanwhile. Is it here?
    #[cold]
    pub(crate) fn wait_in_place(&mut self) -> bool {
        let (mmu, _) = self.live();
        let page = mmu.take_missing();
        page.is_some_and(|(page, _)| mmu.space().ram().wait_for(page, 1).is_ok())
    }

    /// A memory hook asked for the end of the run, which is here.
    #[inline]
    pub(crate) fn look_behind(&mut self) {
        if let Some(id) = self.hooks.take_behind() {
            self.stop_by(id, false);
        }
    }

    /// A hook ends the run; `before`: before the instruction that it is about.
    pub(crate) fn stop_by(&mut self, id: HookId, before: bool) {
        self.exits.stop_by(Exit::Hook(id), before);
        self.trap_loop = true;
    }

    /// A run shall end before the instruction at `cpu.pc`: the loop must look.
    pub(crate) fn exit_here(&mut self, pc: u64) {
        self.exits.why = Some(self.exits.why_at(pc));
        self.trap_loop = true;
    }

    /// How addresses are translated changed since `before`.
    pub(crate) fn memory_changed(&mut self, ctx: &mut Context, before: &Memory) {
        let (mmu, hooks) = self.split(ctx);
        match memory::changed(before, &hooks.cpu().csr, mmu) {
            Changed::Nothing => {}
            Changed::Space(asid) => self.forget_jumps(ctx, None, Some(asid)),
            Changed::Below => self.forget_jumps(ctx, None, None),
            // Emitted code may be on the stack: not before the loop looks.
            Changed::All => self.drop_code = true,
        }
        self.follow_regime(ctx);
    }

    /// The registers may have been replaced since the last run.
    pub(crate) fn begin_memory(&mut self, ctx: &mut Context) {
        let replaced = self.memory.take().is_some_and(|then| then != Memory::of(&ctx.cpu.csr));
        let (mmu, hooks) = self.split(ctx);
        memory::follow(&hooks.cpu().csr, mmu);
        if replaced {
            mmu.flush_tlb();
            self.drop_code = true;
        }
    }

    /// A fence of translations, of an address or all, of an address space or all.
    pub(crate) fn fence(&mut self, ctx: &mut Context, va: Option<u64>, asid: Option<u16>) {
        let (mmu, _) = self.split(ctx);
        memory::fence(mmu, va, asid);
        self.forget_jumps(ctx, va, asid);
        // What is mapped from here on may lie elsewhere.
        self.follow_regime(ctx);
    }

    /// Translations were forgotten while the hart was parked.
    pub(crate) fn forget_all_jumps(&mut self, ctx: &mut Context) {
        self.forget_jumps(ctx, None, None);
    }

    fn forget_jumps(&mut self, ctx: &mut Context, va: Option<u64>, asid: Option<u16>) {
        self.forgotten = self.mmu.forgotten();
        if let Some(tbs) = &mut self.tbs {
            tbs.fenced(ctx, va, asid);
            // Once in four thousand million fences of code.
            self.drop_code |= tbs.has_no_mappings();
        }
    }

    /// The oracle, or the host, may have changed how emitted code sees memory.
    pub(crate) fn settle_regime(&mut self, ctx: &mut Context) {
        if self.forgotten != self.mmu.forgotten() {
            self.forget_jumps(ctx, None, None);
        }
        // Whatever set the softmmu looked in last.
        self.follow_other_regime(ctx);
    }

    /// The hart may be in another regime than emitted code went by: its jumps and its table of the TLB are those of the one that it is in.
    #[inline]
    pub(crate) fn follow_regime(&mut self, ctx: &mut Context) {
        // Nearly all that traps, or returns, does so within the first mode.
        if !(ctx.jump_set() == 0 && ctx.cpu.is_in_plain_mode()) {
            self.follow_other_regime(ctx);
        }
    }

    #[inline(never)]
    fn follow_other_regime(&mut self, ctx: &mut Context) {
        if let Some(tbs) = &mut self.tbs {
            // The set first: what is in it is part of the regime.
            // SAFETY: as in `split`.
            let mmu = unsafe { self.mmu.live() }.expect("the vCPU runs");
            mmu.select(ctx.cpu.data_idx());
            tbs.follow_regime(ctx, mmu.settle_flat());
        }
    }

    /// A trace line.
    pub(crate) fn say(&mut self, what: TraceMask, text: &str) {
        if let Some(trace) = &mut self.trace {
            trace.line(what, text);
        }
    }

    /// The symbol for an address, in angle brackets, or nothing.
    pub(crate) fn symbol(&self, addr: u64) -> String {
        self.trace.as_ref().and_then(|t| t.symbol(addr)).map(|s| format!(" <{s}>")).unwrap_or_default()
    }
}

/// What a store may have to be told to: see `softmmu::slow`.
pub(crate) struct StoreHooks<'a> {
    tbs: Option<&'a mut TbCache>,
    ctx: &'a mut Context,
    clock: &'a Clock,
    /// Where kills wait for a `fence.i`, in the model that lets them.
    stale: Option<&'a mut Vec<(RamAddr, u64)>>,
    trace: Option<&'a mut (dyn TraceSink + 'static)>,
    mask: TraceMask,
    /// What others posted is being served: the store was not this hart's, whatever its pc is.
    served: bool,
    /// May walks mark what they go by?
    marks: bool,
    /// Whose memory hooks are told of accesses.
    told: &'a mut HookTable,
}

impl StoreHooks<'_> {
    /// The hart.
    pub(crate) fn cpu(&self) -> &CpuState {
        &self.ctx.cpu
    }

    /// For a look at what the hart does not use yet: it leaves no marks in page tables.
    pub(crate) fn looking(self) -> Self {
        StoreHooks { marks: false, ..self }
    }

    /// Is there a TB of this key?
    pub(crate) fn has_code(&self, key: &TbKey) -> bool {
        self.tbs.as_ref().is_some_and(|tbs| tbs.find(key).is_some())
    }

    /// For what others posted: no kill waits for a `fence.i`.
    pub(crate) fn served(self) -> Self {
        StoreHooks { stale: None, served: true, ..self }
    }
}

/// A line for each TB that died since the last of them.
fn trace_deaths(tbs: &mut TbCache, trace: &mut dyn TraceSink, hart: u64, how: &str) {
    for (dead, age, runs) in tbs.deaths.iter_mut().flat_map(|deaths| deaths.drain(..)) {
        let name = trace.symbol(dead).map(|s| format!(" <{s}>")).unwrap_or_default();
        let text = format!("hart {hart}: TB at {dead:#x}{name} {how} after {age} instructions; tier 0 for {runs} runs");
        trace.line(TraceMask::TB, &text);
    }
}

impl CodeInvalidator for StoreHooks<'_> {
    fn code_written(&mut self, ram: RamAddr, len: u64) -> usize {
        let Some(tbs) = &mut self.tbs else { return 0 };
        let hart = self.ctx.cpu.hart_id;
        if let Some(trace) = &mut self.trace {
            // Of comparisons, which know of no store.
            trace_deaths(tbs, *trace, hart, "found to be written over");
        }
        let killed = match &mut self.stale {
            // Its lines stay listed, so later stores come here too.
            Some(stale) if stale.len() < MAX_STALE => {
                if stale.last() != Some(&(ram, len)) {
                    stale.push((ram, len));
                }
                self.ctx.code_work = 1;
                0
            }
            _ => tbs.invalidate(self.ctx, ram, len, self.served),
        };
        if let Some(trace) = &mut self.trace {
            let by = if self.served {
                "by another hart, a device or the host".to_owned()
            } else {
                format!("at pc {:#x}", self.ctx.cpu.pc)
            };
            if self.mask.has(TraceMask::NOTDIRTY) {
                let ram = ram.get();
                let text = format!("hart {hart}: {len} bytes at RAM {ram:#x} written {by}: {killed} TBs died");
                trace.line(TraceMask::NOTDIRTY, &text);
            }
            trace_deaths(tbs, *trace, hart, &format!("died of a store {by}"));
        }
        killed
    }
}

impl Hooks for StoreHooks<'_> {
    fn translate(&mut self, memory: &mut Physical<'_>, access: Access) -> Result<Translation, FaultCause> {
        let marks = self.marks;
        Walker::new(&self.ctx.cpu.csr, access.idx).translate(self, memory, access, marks)
    }

    fn look(&mut self, memory: &mut Physical<'_>, access: Access) -> Option<Translation> {
        // The oracle looks for an entry each time.
        self.tbs.as_ref()?;
        Walker::new(&self.ctx.cpu.csr, access.idx).translate(self, memory, access, false).ok()
    }

    fn accessed(&mut self, va: GuestVirt, size: MemSize, value: u64, store: bool) -> bool {
        self.told.accessed(self.ctx.cpu.pc, (va.get(), size.bytes() as u8), value, store)
    }

    fn before_mmio(&mut self) {
        self.clock.publish(self.ctx.cpu.retired);
    }

    fn unmapped(&mut self, start: GuestPhys, last: GuestPhys, ram: RamAddr) {
        if let Some(tbs) = &mut self.tbs {
            tbs.unmapped(self.ctx, start.get(), last.get(), ram);
        }
    }

    fn flushed(&mut self) {
        if let Some(tbs) = &mut self.tbs {
            tbs.clear(self.ctx);
        }
    }
}

//! A hart's whole state, as a checkpoint keeps it: registers, and what they do not show.
//!
//! ```text
//!   VcpuState  cpu │ in wfi │ exits told │ reservation │ interrupt lines, deadline │ an exception that is not handled yet │ poison, canaries
//!   not in it:  translations, TLB, counters of what was done        they follow from memory, or concern the host
//! ```
//!
//! Where the guest may see a store to its code late (`ICache::FenceI`), what is late is seen when a state is taken or restored: the
//! ISA allows it at any time, and so the run after a restore is that after the checkpoint.

use super::super::exits::{Change, Exit, Told};
use super::super::unhandled::Traps;
use super::Vcpu;
use crate::cover::{Compares, Edges};
use crate::cpu::CpuState;
use crate::guest::Memory;
use crate::hooks::{HookId, HookSpec};
use notdirty_core::{CodePage, PageIndex};
use notdirty_softmmu::tlb::entry::Reservation;
use notdirty_softmmu::{Kinds, Marks, Watch};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// See the head of this file.
#[derive(Debug, Clone, PartialEq)]
pub struct VcpuState {
    pub(super) cpu: CpuState,
    pub(super) waiting: bool,
    pub(super) trap_loop: bool,
    pub(super) told: Told,
    pub(super) unhandled: Traps,
    pub(super) irq: u64,
    pub(super) timer_deadline: u64,
    pub(super) reservation: Reservation,
    pub(super) marks: Marks,
}

impl VcpuState {
    /// The registers.
    pub fn cpu(&self) -> &CpuState {
        &self.cpu
    }

    /// In `wfi`.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// The same, for another machine: without a reservation.
    pub fn without_reservation(mut self) -> VcpuState {
        self.reservation = Reservation::default();
        self
    }
}

impl Vcpu {
    /// The hart as it is between two runs.
    pub fn save(&mut self) -> VcpuState {
        self.part_from_parent();
        let (ctx, core) = self.parts();
        core.fence_i(ctx);
        let (reservation, marks) = (core.mmu.reservation(), core.mmu.marks());
        let port = core.mmu.port();
        VcpuState {
            cpu: ctx.cpu.clone(),
            waiting: core.waiting,
            trap_loop: core.trap_loop,
            told: core.exits.told((ctx.cpu.pc, ctx.cpu.retired)),
            unhandled: core.unhandled.clone(),
            irq: port.irq.load(Ordering::Acquire),
            timer_deadline: port.timer_deadline.load(Ordering::Acquire),
            reservation,
            marks,
        }
    }

    /// The hart as it was, in a machine whose memory is as it was then, too. `tables`: page tables were among what changed. A stop that
    /// was asked for is forgotten.
    pub fn restore(&mut self, state: &VcpuState, tables: bool) {
        self.part_from_parent();
        let (ctx, core) = self.parts();
        if core.stale.as_ref().is_some_and(|stale| !stale.is_empty()) {
            core.fence_i(ctx);
        }
        // A fence since then, or another page table: what is kept of translations is of a time that did not come.
        if tables || core.mmu.forgotten() != core.saved_forgotten {
            core.mmu.forget_translations();
            core.forget_all_jumps(ctx);
            core.saved_forgotten = core.mmu.forgotten();
        }
        let (now, then) = (Memory::of(&ctx.cpu.csr), Memory::of(&state.cpu.csr));
        if now.has_rights_of(&then) {
            // The next run needs to look no further: the page tables alone may differ, and is followed.
            core.memory = Some(then);
        }
        ctx.cpu.clone_from(&state.cpu);
        (core.waiting, core.trap_loop) = (state.waiting, state.trap_loop);
        core.exits.set_told(state.told);
        core.unhandled.clone_from(&state.unhandled);
        let port = core.mmu.port();
        port.irq.store(state.irq, Ordering::Release);
        port.timer_deadline.store(state.timer_deadline, Ordering::Release);
        port.take_stop();
        core.mmu.set_reservation(state.reservation);
        core.mmu.set_marks(&state.marks, false);
    }

    /// Poison and canaries of a hart of another machine.
    pub fn take_marks(&mut self, of: &VcpuState) {
        self.core.mmu.set_marks(&of.marks, true);
    }

    /// Adds a hook, which is on from now on, whatever was translated before.
    pub fn add_hook(&mut self, hook: HookSpec) -> HookId {
        let id = self.core.hooks.add(hook);
        self.settle_hooks();
        id
    }

    /// Removes a hook, and drops its closure; was it there?
    pub fn remove_hook(&mut self, id: HookId) -> bool {
        let there = self.core.hooks.remove(id);
        self.settle_hooks();
        there
    }

    /// Switches a hook off, or on again; is it there? Translations of the same set of hooks are found again.
    pub fn switch_hook(&mut self, id: HookId, on: bool) -> bool {
        let there = self.core.hooks.switch(id, on);
        self.settle_hooks();
        there
    }

    /// Watches bytes, or no more, as the guest names them in whatever mode: from now on runs end before instructions that access one of
    /// them in this way, with [`Exit::Watch`]; the next run makes the access. Byte by byte, and accesses beside them do not
    /// end it. Pages with none of them pay nothing. Fetches, walks of page tables and hooks' own accesses are none. `why` is only
    /// told; each has ranges of its own.
    pub fn watch(&mut self, bytes: Range<u64>, why: Watch, kinds: Kinds, on: bool) {
        if bytes.start < bytes.end {
            self.core.mmu.watch((bytes.start, bytes.end - 1), why, kinds, on);
        }
    }

    /// Nothing is watched for this reason any more.
    pub fn watch_nothing(&mut self, why: Watch) {
        self.core.mmu.watch_nothing(why);
    }

    fn settle_hooks(&mut self) {
        self.part_from_parent();
        let (ctx, core) = self.parts();
        let change = core.hooks.settle();
        core.mmu.tell_of(core.hooks.memory_ranges());
        if let (Some(all), Some(tbs)) = (change, &mut core.tbs) {
            if all { tbs.clear(ctx) } else { tbs.forget_all_jumps(ctx) }
        }
    }

    /// Counts edges from now on, also where code was translated before, or no more; the numbers of edges may be shared with other harts.
    pub fn set_coverage(&mut self, edges: Option<Arc<Edges>>) {
        self.part_from_parent();
        let core = &mut self.core;
        if core.edges.is_none() && edges.is_none() {
            return;
        }
        // Translations that count outlive the end of the counting, with the numbers of the table that they were made with.
        let other = core.numbered.as_ref().zip(edges.as_ref()).is_some_and(|(old, new)| !Arc::ptr_eq(old, new));
        if edges.is_some() {
            core.numbered.clone_from(&edges);
        }
        core.edges = edges;
        self.translator.edges = None;
        let (ctx, core) = self.parts();
        if let Some(tbs) = &mut core.tbs {
            // Numbers of another table mean nothing.
            if other { tbs.clear(ctx) } else { tbs.forget_all_jumps(ctx) }
        }
    }

    /// The counters: see [`cover`](crate::cover).
    pub fn coverage(&mut self) -> &mut [u8] {
        self.core.mmu.coverage()
    }

    /// Notes, from now on, or no more, what comparisons compare, also where code was translated before: see [`Compares`].
    pub fn set_compares(&mut self, compares: Option<Arc<Compares>>) {
        self.part_from_parent();
        let core = &mut self.core;
        let other = core.placed.as_ref().zip(compares.as_ref()).is_some_and(|(old, new)| !Arc::ptr_eq(old, new));
        if compares.is_some() {
            core.placed.clone_from(&compares);
        }
        core.compares = compares;
        self.translator.compares = None;
        let (ctx, core) = self.parts();
        if let Some(tbs) = &mut core.tbs {
            if other { tbs.clear(ctx) } else { tbs.forget_all_jumps(ctx) }
        }
    }

    /// What was compared last, by [`Compares::number`]: the first operand, and the second.
    pub fn operands(&mut self) -> &mut [[u64; 2]] {
        self.core.mmu.operands()
    }

    /// How often it has called devices, semihosting among them.
    pub fn device_calls(&self) -> u64 {
        let stats = self.core.mmu.stats();
        stats.mmio_read + stats.mmio_write + self.core.semihosted
    }

    /// From now on runs end before the instructions at these addresses, whatever was translated before, once for each time that the hart
    /// comes to one: the next run executes the instruction, as does one that begins where the owner put the hart, or an exit. They take
    /// the place of those of the last call.
    pub fn set_exits(&mut self, pcs: &[u64]) {
        self.part_from_parent();
        let (ctx, core) = self.parts();
        let change = core.exits.set_pcs(pcs, (ctx.cpu.pc, ctx.cpu.retired));
        self.changed_exits(change);
    }

    /// From now on runs also end, in the same way, before instructions that begin outside of these ranges; `None`: everything may be code.
    pub fn set_code(&mut self, code: Option<&[Range<u64>]>) {
        self.part_from_parent();
        let ranges = |code: &[Range<u64>]| {
            code.iter().filter(|range| range.start < range.end).map(|range| (range.start, range.end - 1)).collect()
        };
        let (ctx, core) = self.parts();
        let change = core.exits.set_code(code.map(ranges), (ctx.cpu.pc, ctx.cpu.retired));
        self.changed_exits(change);
    }

    fn changed_exits(&mut self, change: Change) {
        let (ctx, core) = self.parts();
        let Some(tbs) = &mut core.tbs else { return };
        match change {
            Change::None => {}
            Change::Key => tbs.forget_all_jumps(ctx),
            Change::All => tbs.clear(ctx),
        }
    }

    /// The exit that ended the last run was not told: that of another hart was. The next run ends by it at once.
    pub fn keep_exit(&mut self) {
        self.core.exits.keep();
    }

    /// The exit that ended the last run, if one did.
    pub fn last_exit(&self) -> Option<Exit> {
        self.core.exits.last
    }

    /// From now on runs end before exceptions of these causes, a bit for each, are taken; the next run takes it, if it comes again.
    pub fn set_trap_exits(&mut self, causes: u64) {
        self.core.exits.set_traps(causes);
    }

    /// A checkpoint was taken: translations of now are right until one is forgotten.
    pub fn saved(&mut self) {
        self.core.saved_forgotten = self.core.mmu.forgotten();
    }

    /// See [`SoftMmu::take_noted`](notdirty_softmmu::SoftMmu::take_noted).
    #[inline]
    pub fn take_noted(&mut self, take: impl FnMut(&CodePage)) {
        self.core.mmu.take_noted(take);
    }

    /// Makes the entries of a page say what is to be done at a store now.
    pub fn arm_noted(&mut self, page: PageIndex) {
        self.core.mmu.arm_noted(page);
    }

    /// The same of all pages, as a checkpoint begins.
    pub fn arm_all(&mut self) {
        self.core.mmu.arm_all();
    }
}

//! Hooks are called: by emitted code, tier 0 and the oracle alike.

use super::view::{Accessed, Call, CallKind, View};
use super::{HookId, HookTable, What};
use crate::exec::Core;
use crate::guest::{Insn, Trap, flow};
use crate::jit::context::Context;
use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What hooks came to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct After {
    /// The hart goes on there.
    pub(crate) next: Option<u64>,
    /// The run ends: the loop was told.
    pub(crate) stop: bool,
    /// Translations may have died, or something waits.
    pub(crate) changed: bool,
}

impl After {
    /// Does the hart go on as if there were none?
    #[inline]
    pub(crate) fn is_nothing(&self) -> bool {
        self.next.is_none() && !self.stop && !self.changed
    }
}

/// Emitted code tells light hooks of `pc`: of an instruction, or with a low bit of `which` of a block; above it one more than the
/// number of the only one. Shall it ask the site behind, which ends the run?
///
/// # Safety
/// Called from emitted code only: `core` is the `engine` of the context that it was entered with, and nobody else uses it until
/// emitted code has returned.
pub(crate) unsafe extern "C" fn tell(core: *mut Core, pc: u64, which: u32) -> u64 {
    // SAFETY: the contract above.
    let hooks = unsafe { &mut (*core).hooks };
    let number = (which >> 1).wrapping_sub(1);
    let Some(What::Insn(f) | What::Block(f)) = hooks.slots.get_mut(number as usize).map(|slot| &mut slot.what) else {
        return hooks.tell_all(pc, which & 1 != 0);
    };
    // This is called often: what is seldom is elsewhere, with its registers.
    match catch_unwind(AssertUnwindSafe(|| f(pc))) {
        Ok(ControlFlow::Continue(())) => 0,
        Ok(ControlFlow::Break(())) => hooks.light_stopped(number, None),
        Err(panic) => hooks.light_stopped(number, Some(panic)),
    }
}

impl HookTable {
    #[cold]
    #[inline(never)]
    fn light_stopped(&mut self, number: u32, panic: Option<Box<dyn Any + Send>>) -> u64 {
        self.stopped.get_or_insert(HookId(number));
        if panic.is_some() {
            self.panic = panic;
        }
        1
    }

    /// All light ones of an address.
    #[cold]
    #[inline(never)]
    fn tell_all(&mut self, pc: u64, block: bool) -> u64 {
        for n in 0..if block { self.blocks.len() } else { self.insns.len() } {
            let number = if block { self.blocks[n] } else { self.insns[n] };
            let slot = &mut self.slots[number as usize];
            let (What::Insn(f) | What::Block(f)) = &mut slot.what else { continue };
            if !slot.places.has(pc) {
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| f(pc))) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => {
                    self.light_stopped(number, None);
                }
                Err(panic) => {
                    self.light_stopped(number, Some(panic));
                }
            }
        }
        self.stopped.is_some().into()
    }
}

impl Core {
    /// The instruction at `cpu.pc` is about to be executed.
    #[cold]
    #[inline(never)]
    pub(crate) fn hook_insn(&mut self, ctx: &mut Context, insn: &Insn) -> After {
        let pc = ctx.cpu.pc;
        self.hook_all(ctx, insn.len, |core, n| {
            let number = *core.hooks.insns.get(n)?;
            let slot = &core.hooks.slots[number as usize];
            let calls = matches!(slot.what, What::Calls(_));
            Some((number, slot.places.has(pc) && (!calls || flow::is_call(insn)), Some(insn)))
        })
    }

    /// The same, of an instruction or a block that has one hook alone.
    #[inline]
    pub(crate) fn hook_only(&mut self, ctx: &mut Context, number: u32, len: u8) -> After {
        let mut after = After::default();
        self.with_view(ctx, number, len, &mut after, |what, view| {
            if let What::InsnWith(f) | What::BlockWith(f) = what {
                f(view);
            }
        });
        if let Some(id) = self.hooks.stopped.take() {
            after.stop = true;
            self.stop_by(id, len != 0 && after.next.is_none());
        }
        after
    }

    /// Control came to `cpu.pc` by a branch or a jump.
    #[cold]
    #[inline(never)]
    pub(crate) fn hook_block(&mut self, ctx: &mut Context) -> After {
        let pc = ctx.cpu.pc;
        self.hook_all(ctx, 0, |core, n| {
            let number = *core.hooks.blocks.get(n)?;
            Some((number, core.hooks.slots[number as usize].places.has(pc), None))
        })
    }

    #[inline]
    fn hook_all<'i>(
        &mut self,
        ctx: &mut Context,
        len: u8,
        nth: impl Fn(&Core, usize) -> Option<(u32, bool, Option<&'i Insn>)>,
    ) -> After {
        let mut after = After::default();
        let mut n = 0;
        while let Some((number, wanted, insn)) = nth(self, n) {
            n += 1;
            if wanted {
                self.hook_one(ctx, number, len, insn, &mut after);
            }
        }
        if let Some(id) = self.hooks.stopped.take() {
            after.stop = true;
            self.stop_by(id, len != 0 && after.next.is_none());
        }
        after
    }

    fn hook_one(&mut self, ctx: &mut Context, number: u32, len: u8, insn: Option<&Insn>, after: &mut After) {
        self.with_view(ctx, number, len, after, |what, view| match what {
            What::Insn(f) | What::Block(f) => view.stop |= f(view.ctx.cpu.pc).is_break(),
            What::InsnWith(f) | What::BlockWith(f) => f(view),
            What::Calls(f) => {
                if let Some(insn) = insn {
                    let call = called(view.ctx, insn);
                    f(view, call);
                }
            }
            _ => {}
        });
    }

    /// A hook is called.
    #[inline]
    fn with_view(
        &mut self,
        ctx: &mut Context,
        number: u32,
        len: u8,
        after: &mut After,
        f: impl FnOnce(&mut What, &mut View<'_>),
    ) {
        let what = &raw mut self.hooks.slots[number as usize].what;
        let mut view = View { core: self, ctx, next: None, len, stop: false, changed: false };
        // SAFETY: it lies in the memory of a vector, which `&mut Vcpu` alone leads to, and no method of a view; nothing else is called
        // meanwhile that looks at it: accesses by a view are told to nobody.
        let done = catch_unwind(AssertUnwindSafe(|| f(unsafe { &mut *what }, &mut view)));
        let View { next, stop, changed, .. } = view;
        after.next = next.or(after.next);
        after.changed |= changed;
        if stop || done.is_err() {
            self.hooks.stopped.get_or_insert(HookId(number));
        }
        if let Err(panic) = done {
            self.hooks.panic = Some(panic);
        }
    }

    /// A light hook asked emitted code for the end of the run: here it is.
    pub(crate) fn stopped_by_light(&mut self, before: bool) -> bool {
        let stopped = self.hooks.stopped.take();
        stopped.into_iter().for_each(|id| self.stop_by(id, before));
        stopped.is_some()
    }

    /// Traps are told of one that is about to be taken at `cpu.pc`.
    #[cold]
    #[inline(never)]
    pub(crate) fn hook_trap(&mut self, ctx: &mut Context, trap: &Trap) {
        let mut after = After::default();
        for n in 0..self.hooks.traps.len() {
            let number = self.hooks.traps[n];
            if self.hooks.slots[number as usize].places.has(ctx.cpu.pc) {
                self.with_view(ctx, number, 0, &mut after, |what, view| {
                    if let What::Traps(f) = what {
                        f(view, trap);
                    }
                });
            }
        }
        if let Some(id) = self.hooks.stopped.take() {
            self.stop_by(id, false);
        }
    }
}

/// Where a jump goes, and what it is.
fn called(ctx: &Context, insn: &Insn) -> Call {
    let from = ctx.cpu.pc;
    let to = flow::target(&ctx.cpu, insn);
    let kind = match (flow::keeps_return(insn), flow::is_return(insn)) {
        (true, true) => CallKind::Swap,
        (_, true) => CallKind::Return,
        _ => CallKind::Call,
    };
    Call { kind, from, to }
}

impl HookTable {
    /// An access was made. Does one of its hooks end the run?
    #[cold]
    #[inline(never)]
    pub(crate) fn accessed(&mut self, pc: u64, (addr, size): (u64, u8), value: u64, store: bool) -> bool {
        let last = addr.wrapping_add(u64::from(size) - 1);
        let mut stopped = self.behind;
        for n in 0..self.memory.len() {
            let number = self.memory[n];
            let slot = &mut self.slots[number as usize];
            let super::Places::Span { first, last: end } = slot.places else { continue };
            let hit = if addr <= last { first <= last && addr <= end } else { addr <= end || first <= last };
            let What::Memory(f) = &mut slot.what else { continue };
            if !slot.kinds.has(store) || !hit {
                continue;
            }
            let mut access = Accessed { pc, addr, size, value, store, stop: false };
            match catch_unwind(AssertUnwindSafe(|| f(&mut access))) {
                Ok(()) if access.stop => drop(stopped.get_or_insert(HookId(number))),
                Ok(()) => {}
                Err(panic) => {
                    self.panic = Some(panic);
                    stopped.get_or_insert(HookId(number));
                }
            }
        }
        self.behind = stopped;
        stopped.is_some()
    }
}

//! What a hook sees of the hart, and may do.

use crate::cpu::CpuState;
use crate::exec::{Core, StoreHooks};
use crate::guest::hart;
use crate::jit::context::Context;
use notdirty_softmmu::{FaultCause, GuestVirt, Kinds, LiveMmu, MemFault, MemSize, Watch};
use std::ops::Range;

/// A hart between two instructions, lent to a hook.
pub struct View<'a> {
    pub(super) core: &'a mut Core,
    pub(super) ctx: &'a mut Context,
    /// Where it goes on instead.
    pub(super) next: Option<u64>,
    /// How long the instruction is that is about to be executed; of other hooks 0.
    pub(super) len: u8,
    pub(super) stop: bool,
    /// What emitted code knows may be true no more.
    pub(super) changed: bool,
}

impl View<'_> {
    /// Where the hart is.
    pub fn pc(&self) -> u64 {
        self.ctx.cpu.pc
    }

    /// The hart goes on there. An instruction that is hooked then counts as executed, and does nothing.
    pub fn set_pc(&mut self, pc: u64) {
        self.next = Some(pc & !1);
    }

    /// The instruction that is hooked does nothing, and counts as executed. Nothing in other hooks.
    pub fn skip(&mut self) {
        if self.len != 0 {
            self.next = Some(self.ctx.cpu.pc.wrapping_add(self.len.into()));
        }
    }

    /// The run ends here, with [`Exit::Hook`](crate::Exit::Hook), once all hooks of this place were called. The next one goes on, and
    /// does not call them again.
    pub fn stop(&mut self) {
        self.stop = true;
    }

    /// An integer register; 0 of those that there are not.
    pub fn x(&self, n: usize) -> u64 {
        self.ctx.cpu.x.get(n).copied().unwrap_or(0)
    }

    /// Writes an integer register; `x0` stays 0.
    pub fn set_x(&mut self, n: usize, value: u64) {
        if let Some(x) = self.ctx.cpu.x.get_mut(n).filter(|_| n != 0) {
            *x = value;
        }
    }

    /// A floating-point register, all 64 bits.
    pub fn f(&self, n: usize) -> u64 {
        self.ctx.cpu.f.get(n).copied().unwrap_or(0)
    }

    /// Writes a floating-point register; where the unit is on, it is dirty then.
    pub fn set_f(&mut self, n: usize, value: u64) {
        let Some(f) = self.ctx.cpu.f.get_mut(n) else { return };
        *f = value;
        hart::wrote_float(&mut self.ctx.cpu);
    }

    /// All of the hart.
    pub fn cpu(&self) -> &CpuState {
        &self.ctx.cpu
    }

    /// Loads a value as the hart would, in the mode that it is in, zero-extended; pages are not marked as used. Devices are called.
    ///
    /// # Errors
    /// The fault that the hart's load would end in.
    pub fn load(&mut self, at: u64, size: MemSize) -> Result<u64, MemFault> {
        let idx = self.ctx.cpu.data_idx();
        self.waiting(|mmu, hooks| mmu.load(&mut hooks.looking(), idx, GuestVirt::new(at), size))
    }

    /// Stores a value as the hart would, in the mode that it is in. It is heard by whatever hears stores, and kills code; neither it nor
    /// [`load`](Self::load) is told to memory hooks, or met by watch ranges.
    ///
    /// # Errors
    /// The fault that the hart's store would end in; then nothing was written.
    pub fn store(&mut self, at: u64, size: MemSize, value: u64) -> Result<(), MemFault> {
        let idx = self.ctx.cpu.data_idx();
        let effect = self.waiting(|mmu, mut hooks| mmu.store(&mut hooks, idx, GuestVirt::new(at), size, value))?;
        self.changed |= effect.killed != 0 || self.core.mmu.port().kicked();
        Ok(())
    }

    /// An access that no hook is told of; a page that is yet to come is waited for.
    fn waiting<T>(
        &mut self,
        mut access: impl FnMut(&mut LiveMmu, StoreHooks<'_>) -> Result<T, MemFault>,
    ) -> Result<T, MemFault> {
        loop {
            let (mmu, hooks) = self.core.split(self.ctx);
            match mmu.unasked(|mmu| access(mmu, hooks)) {
                Err(fault) if fault.cause == FaultCause::Missing && self.core.wait_in_place() => {}
                done => return done,
            }
        }
    }

    /// Reads bytes, each as a load of its own.
    ///
    /// # Errors
    /// The fault of the first byte that cannot be loaded; those before it are in `into`.
    pub fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), MemFault> {
        for (n, byte) in into.iter_mut().enumerate() {
            *byte = self.load(at.wrapping_add(n as u64), MemSize::B1)? as u8;
        }
        Ok(())
    }

    /// Writes bytes, each as a store of its own.
    ///
    /// # Errors
    /// The fault of the first byte that cannot be stored; those before it are written.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<(), MemFault> {
        for (n, byte) in from.iter().enumerate() {
            self.store(at.wrapping_add(n as u64), MemSize::B1, (*byte).into())?;
        }
        Ok(())
    }

    /// Watches bytes from now on, or no more, for the reason `why`: see [`Vcpu::watch`](crate::Vcpu::watch). The instruction that is
    /// hooked meets it already.
    pub fn watch(&mut self, bytes: Range<u64>, why: Watch, kinds: Kinds, on: bool) {
        if bytes.start < bytes.end {
            let (mmu, _) = self.core.split(self.ctx);
            mmu.watch((bytes.start, bytes.end - 1), why, kinds, on);
        }
    }

    /// Accesses to these bytes end the run from now on, with [`Watch::Poison`]: a red zone, or memory that was freed.
    pub fn poison(&mut self, bytes: Range<u64>) {
        self.watch(bytes, Watch::Poison, Kinds::All, true);
    }

    /// They do not any more.
    pub fn unpoison(&mut self, bytes: Range<u64>) {
        self.watch(bytes, Watch::Poison, Kinds::All, false);
    }

    /// Forgets all translations, before the next instruction but one.
    pub fn drop_code(&mut self) {
        self.core.drop_code = true;
        self.changed = true;
    }
}

/// A jump that calls, or returns, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Which of them.
    pub kind: CallKind,
    /// Where it is.
    pub from: u64,
    /// Where it goes.
    pub to: u64,
}

/// See [`Call`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// It links.
    Call,
    /// It goes where it was called from.
    Return,
    /// It returns, and links: a coroutine's way.
    Swap,
}

/// An access that a memory hook is told of; it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accessed {
    /// The instruction.
    pub pc: u64,
    /// The first byte, as the guest names it.
    pub addr: u64,
    /// How many bytes.
    pub size: u8,
    /// What was loaded or stored, zero-extended.
    pub value: u64,
    /// Was it stored?
    pub store: bool,
    pub(super) stop: bool,
}

impl Accessed {
    /// The run ends behind the instruction, with [`Exit::Hook`](crate::Exit::Hook).
    pub fn stop(&mut self) {
        self.stop = true;
    }
}

//! Hooks of the machine's harts: see [`notdirty_tcg::hooks`].

use notdirty_tcg::hooks::{HookId, HookSpec};

use super::Machine;

impl Machine {
    /// Adds a hook of a hart, which is on from now on, whatever was translated before; `None` if there is no such hart. The closure is
    /// called on the thread that the hart runs on.
    ///
    /// ```
    /// use notdirty::programs::sieve::sieve;
    /// use notdirty::{Machine, MachineExit, Program, hooks::HookSpec};
    /// use std::ops::ControlFlow;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let mut machine = Machine::builder().ram_size(2 << 20).program(Program::Image(sieve(100, 25))).build()?;
    /// let blocks = Arc::new(AtomicU64::new(0));
    /// let seen = blocks.clone();
    /// machine.add_hook(0, HookSpec::block(.., move |_pc| {
    ///     seen.fetch_add(1, Ordering::Relaxed);
    ///     ControlFlow::Continue(())
    /// }));
    /// assert!(matches!(machine.run_to_end(), MachineExit::Guest(_)));
    /// assert!(blocks.load(Ordering::Relaxed) > 100);
    /// # Ok::<(), notdirty::BuildError>(())
    /// ```
    pub fn add_hook(&mut self, hart: usize, hook: HookSpec) -> Option<HookId> {
        Some(self.vcpus.get_mut(hart)?.add_hook(hook))
    }

    /// Removes a hook of a hart, and drops its closure; was it there?
    pub fn remove_hook(&mut self, hart: usize, hook: HookId) -> bool {
        self.vcpus.get_mut(hart).is_some_and(|vcpu| vcpu.remove_hook(hook))
    }

    /// Switches a hook of a hart off, or on again; is it there? Translations of the same set of hooks are found again.
    pub fn switch_hook(&mut self, hart: usize, hook: HookId, on: bool) -> bool {
        self.vcpus.get_mut(hart).is_some_and(|vcpu| vcpu.switch_hook(hook, on))
    }
}

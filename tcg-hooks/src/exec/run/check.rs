//! Checks of the TB cache, for tests: see `tb/check.rs`.
use super::Vcpu;
use notdirty_softmmu::Started;

impl Vcpu {
    /// Do all structures that know of a TB agree? Now, and at any check since
    /// [`Vcpu::set_checking`]. An engine without TBs has nothing to disagree.
    ///
    /// It holds between runs, while no other vCPU runs and no request of another thread is under way.
    ///
    /// # Errors
    /// Which two do not, in words.
    pub fn check_invariants(&self) -> Result<(), String> {
        let Some(tbs) = &self.core.tbs else { return Ok(()) };
        match &tbs.checker.damage {
            Some(damage) => Err(damage.clone()),
            None => tbs.check(self.ctx(), self.core.mmu.table()),
        }
    }

    /// Checks after every translation and every kill from now on, or no longer. Slow.
    pub fn set_checking(&mut self, on: bool) {
        let table = on.then(|| self.core.mmu.table());
        if let Some(tbs) = &mut self.core.tbs {
            tbs.checker.table = table;
        }
    }

    /// In the middle of a run until the result is dropped, as far as others can tell: they wait for its answers. `None` if it is already.
    pub fn running(&mut self) -> Option<Started> {
        let (ctx, core) = self.parts();
        core.start(ctx).map(|(started, _)| started)
    }

    /// The number of the mappings by which guarded links were made last; `last` takes its place. See `tb/regimes.rs`.
    pub fn last_mappings(&mut self, last: Option<u32>) -> u32 {
        let Some(tbs) = &mut self.core.tbs else { return 0 };
        let number = tbs.last_mappings();
        *number = last.unwrap_or(*number);
        *number
    }

    /// How many checks that were.
    pub fn checks(&self) -> u64 {
        self.core.tbs.as_ref().map_or(0, |tbs| tbs.checker.checks)
    }
}

//! A hart that has nothing to do: asleep in `wfi`, waiting for a page that is yet to come, or stuck in a handler that traps into itself.

use super::super::unhandled::{TrapAt, UnhandledTrap};
use super::{Vcpu, VcpuExit};
use crate::exec::RunLimits;
use crate::guest::hart;
use notdirty_core::RamAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A waiting vCPU's own references to its port: its `SoftMmu`'s.
const OWN_PORTS: usize = 1;
/// How often a hart that only another holder of its port can wake asks whether there is one.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How often one of several harts tries a handler again that traps into itself.
const TRAP_AGAIN: Duration = Duration::from_millis(1);

impl Vcpu {
    /// When the first timer wakes it by itself; `u64::MAX`: none does.
    pub(in crate::exec) fn wakes_at(&self) -> u64 {
        let enabled = hart::enabled(self.cpu());
        let timers = self.core.deadlines(self.cpu()).into_iter().filter(|(interrupt, _)| enabled & interrupt != 0);
        timers.map(|(_, deadline)| deadline).min().unwrap_or(u64::MAX)
    }

    /// May somebody outside wake it, or end the run?
    pub(in crate::exec) fn hears(&self, limits: &RunLimits) -> bool {
        // No other holder of the port: no device can raise a line. Others may hold it for a moment, to post; so this is
        // asked again now and then.
        let watched = limits.deadline.is_some() || Arc::strong_count(self.port()) > OWN_PORTS;
        hart::enabled(self.cpu()) & hart::BY_DEVICES != 0 && watched
    }

    /// Its turn: it does not sleep, and time goes on from where the last turn left it.
    pub(in crate::exec) fn run_turn(&mut self, limits: &RunLimits) -> VcpuExit {
        self.core.clock.turn(self.cpu().retired);
        self.turns = true;
        let exit = self.run(limits);
        self.turns = false;
        exit
    }

    /// All harts sleep until `mtime` is `deadline`: with an instruction clock, it is.
    pub(in crate::exec) fn skip_to(&self, deadline: u64) -> bool {
        self.core.clock.skip_to(deadline)
    }

    /// Sleeps for so long, unless somebody kicks it.
    pub(in crate::exec) fn sleep(&mut self, most: Duration) {
        self.core.mmu.wait(Some(most));
    }

    /// Forgets by which exit its last run ended.
    pub(in crate::exec) fn forget_exit(&mut self) {
        self.core.exits.last = None;
    }

    /// It was told to run nothing for so long; it is not idle, since it goes on by itself. A kick ends the sleep, for a look.
    pub(super) fn nap(&mut self, left: Duration, limits: &RunLimits) {
        let until = limits.deadline.map_or(left, |deadline| deadline.saturating_duration_since(Instant::now()));
        self.core.mmu.wait(Some(left.min(until)));
        self.pace.start();
    }

    /// The next instruction needs a page of RAM that is yet to come: sleeps, until it is here, the hart is kicked, or something is due.
    /// `None` to look again.
    pub(super) fn wait_for_page(&mut self, page: RamAddr, limits: &RunLimits) -> Option<VcpuExit> {
        let due = |(interrupt, deadline)| {
            let counts = deadline != u64::MAX && hart::is_open(self.cpu(), interrupt);
            if counts { self.core.clock.host_wait(deadline) } else { None }
        };
        let timers = self.core.deadlines(self.cpu()).into_iter().filter_map(due);
        let limit = limits.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let sleep = timers.chain(limit).min();
        let number = self.cpu().hart_id as u32;
        match self.core.mmu.wait_for_page(page, number, sleep) {
            Ok(_) => None,
            Err(why) => {
                log::warn!("hart {number}: {why}");
                Some(VcpuExit::MissingPage)
            }
        }
    }

    /// In `wfi`: sleeps, or moves the clock. `None` to look again.
    pub(super) fn wait(&mut self, limits: &RunLimits) -> Option<VcpuExit> {
        if self.turns {
            return Some(VcpuExit::Waiting);
        }
        let deadline = self.wakes_at();
        let timer = deadline != u64::MAX;
        if timer && self.core.clock.skip_to(deadline) {
            return None;
        }
        let until = limits.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timer = if timer { self.core.clock.host_wait(deadline) } else { None };
        let hears = self.hears(limits);
        let sleep = match (timer, until) {
            (Some(a), Some(b)) => Some(a.min(b)),
            // A re-arm kicks without waking, and whoever looks for hung harts takes every kick seriously.
            (None, None) => Some(ASK_AGAIN),
            (None, Some(left)) if self.harts.is_some() => Some(left.min(ASK_AGAIN)),
            (a, b) => a.or(b),
        };
        let _idle = match (&self.harts, timer) {
            (_, Some(_)) => None,
            (None, None) if hears => None,
            (None, None) => return Some(VcpuExit::Hung),
            // Another hart may wake it, or end the run.
            (Some(harts), None) => match harts.fall_idle(hears) {
                None => return Some(VcpuExit::Hung),
                idle => idle,
            },
        };
        self.core.mmu.wait(sleep);
        None
    }

    /// The handler traps into itself. Alone, it does so for ever; another hart may change it.
    pub(super) fn trapped(&mut self, limits: &RunLimits) -> Option<VcpuExit> {
        if self.harts.is_some() && self.core.unhandled.take_news() {
            // The others go on, perhaps for long.
            if let Some(UnhandledTrap { first: TrapAt { trap, pc, .. }, vector, .. }) = self.unhandled() {
                let (hart, name) = (self.cpu().hart_id, trap.name());
                log::warn!(
                    "hart {hart}: {name}, mtval {:#x}, at pc {pc:#x} is not handled (handler {vector:#x})",
                    trap.tval
                );
            }
        }
        if self.turns {
            return Some(VcpuExit::Waiting);
        }
        let Some(idle) = self.harts.as_ref().map(|harts| harts.fall_idle(false)) else { return Some(VcpuExit::Hung) };
        let Some(_idle) = idle else { return Some(VcpuExit::Hung) };
        let left = limits.deadline.map(|d| d.saturating_duration_since(Instant::now()));
        self.core.mmu.wait(Some(left.map_or(TRAP_AGAIN, |left| left.min(TRAP_AGAIN))));
        None
    }
}

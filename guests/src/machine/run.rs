//! One run of all harts, and what the board wants looked at in between.
//!
//! ```text
//!   odd low half of tohost ─▶ stopped for a look ─▶ run on for a moment ─┬─ its high half came: run on
//!                                                                        └─ none came: the guest has ended
//! ```

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use notdirty_tcg::{Harts, RunLimits, Vcpu, VcpuExit};

use super::Machine;

/// Within so many instructions the high half of `tohost` follows the low one.
const HALF_INSNS: u64 = 1000;
/// The same for several harts, which have no common count.
const HALF_TIME: Duration = Duration::from_millis(20);

impl Machine {
    /// Runs the harts until the first of them ends. An odd low half of `tohost` stops them for a look: if no high half
    /// comes soon, the guest has ended.
    pub(super) fn run_vcpus(&mut self, limits: &RunLimits) -> VcpuExit {
        loop {
            let htif = self.board.htif_device.clone();
            let half = htif.as_ref().filter(|htif| htif.has_half());
            let part = match half {
                Some(_) => self.soon(limits),
                None => {
                    self.half_end = None;
                    *limits
                }
            };
            let exit = match self.vcpus.as_mut_slice() {
                [vcpu] => vcpu.run(&part),
                vcpus => {
                    let exit = run_all(&self.harts, vcpus, &part);
                    keep_others(vcpus, exit);
                    exit
                }
            };
            if exit == VcpuExit::Stopped {
                let nudged = htif.is_some_and(|htif| htif.take_nudge());
                if self.asked.swap(false, Ordering::AcqRel) || !nudged || self.board.latch.get().is_some() {
                    return exit;
                }
                // Of harts that were stopped by the first one that ended, not by their own look at it.
                for vcpu in &self.vcpus {
                    vcpu.port().take_stop();
                }
                continue;
            }
            let own = match exit {
                VcpuExit::InsnLimit => part.max_insns != limits.max_insns,
                VcpuExit::Deadline => part.deadline != limits.deadline,
                VcpuExit::Hung => half.is_some(),
                _ => false,
            };
            match half {
                // What ended is only the time in which a high half could have come.
                Some(htif) if own && htif.has_half() => {
                    // By no call of a vCPU.
                    self.settled_calls = None;
                    htif.end_half();
                }
                Some(_) if own && exit != VcpuExit::Hung => continue,
                _ => {}
            }
            return exit;
        }
    }

    /// These limits, or earlier ones by which two stores in a row are both done.
    fn soon(&mut self, limits: &RunLimits) -> RunLimits {
        let mut soon = *limits;
        match self.vcpus.as_slice() {
            // Counted, so that a run repeats exactly, in pieces too.
            [vcpu] => {
                let end = vcpu.cpu().retired.saturating_add(HALF_INSNS);
                let end = *self.half_end.get_or_insert(end);
                soon.max_insns = Some(limits.max_insns.map_or(end, |max| max.min(end)));
            }
            _ => {
                let end = Instant::now() + HALF_TIME;
                soon.deadline = Some(limits.deadline.map_or(end, |deadline| deadline.min(end)));
            }
        }
        soon
    }
}

/// Runs all harts until the first of them ends; why it did.
fn run_all(harts: &Harts, vcpus: &mut [Vcpu], limits: &RunLimits) -> VcpuExit {
    harts.start();
    std::thread::scope(|scope| {
        let mut vcpus = vcpus.iter_mut();
        let first = vcpus.next();
        for vcpu in vcpus {
            scope.spawn(|| harts.run(vcpu, limits));
        }
        if let Some(vcpu) = first {
            harts.run(vcpu, limits);
        }
    });
    harts.first_exit()
}

/// Two harts may come to an exit at once, and only one can be told: whoever comes later comes again.
fn keep_others(vcpus: &mut [Vcpu], exit: VcpuExit) {
    let told = match exit {
        VcpuExit::Exit(why) => vcpus.iter().position(|vcpu| vcpu.last_exit() == Some(why)),
        _ => None,
    };
    for (hart, vcpu) in vcpus.iter_mut().enumerate() {
        if Some(hart) != told {
            vcpu.keep_exit();
        }
    }
}

//! One run of all harts, and what the board wants looked at in between.
//!
//! ```text
//!   odd low half of tohost ─▶ stopped for a look ─▶ run on for a moment ─┬─ its high half came: run on
//!                                                                        └─ none came: the guest has ended
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use notdirty_tcg::cover::{Compares, Edges};
use notdirty_tcg::{Exit, Harts, RunLimits, Turns, Vcpu, VcpuExit};

use super::{Machine, MachineExit};

/// Within so many instructions the high half of `tohost` follows the low one.
const HALF_INSNS: u64 = 1000;
/// Several harts have no common count: each of them has this long for as many,
const HALF_TIME: Duration = Duration::from_millis(20);
/// and, where a host thread is kept waiting or a hart sleeps, so many times as long.
const HALF_TIMES: u32 = 10;

impl Machine {
    /// Runs until the guest ends or a limit is met, and goes on from there when it is called again. A guest that ended stays so until
    /// [`start_at`](Self::start_at).
    pub fn run(&mut self, limits: &RunLimits) -> MachineExit {
        let exit = loop {
            if self.serve_migration() {
                return MachineExit::Migrated;
            }
            if let Some(exit) = self.board.latch.get() {
                return MachineExit::Guest(exit);
            }
            let exit = self.run_vcpus(limits);
            self.board.console.flush();
            if exit == VcpuExit::RingFull && self.migration.is_under_way() {
                // Its rings are taken soon, and RAM does not grow dirtier meanwhile.
                std::thread::sleep(Duration::from_micros(200));
                if limits.deadline.is_none_or(|deadline| Instant::now() < deadline) {
                    continue;
                }
            }
            // Stopped for a migration, and perhaps by its owner as well.
            if exit != VcpuExit::Stopped || !self.migration.may_stop() {
                break exit;
            }
            // Of harts that were stopped by the first one that ended. Before the look at what is asked: a migration that asks again at once
            // stops the next run.
            for vcpu in &self.vcpus {
                vcpu.port().take_stop();
            }
            if self.serve_migration() {
                return MachineExit::Migrated;
            }
            if self.asked.swap(false, Ordering::AcqRel) || self.board.latch.get().is_some() {
                break exit;
            }
        };
        // A guest may end with the very instruction that meets a limit: then it ended.
        match (self.board.latch.get(), exit) {
            (Some(exit), _) => MachineExit::Guest(exit),
            (None, VcpuExit::InsnLimit) => MachineExit::InsnLimit,
            (None, VcpuExit::Deadline) => MachineExit::Deadline,
            (None, VcpuExit::Stopped) => MachineExit::Stopped,
            (None, VcpuExit::RingFull) => MachineExit::RingFull,
            (None, VcpuExit::MissingPage) => MachineExit::MissingPage,
            (None, VcpuExit::Exit(why)) => self.exited(why),
            (None, VcpuExit::Hung | VcpuExit::Waiting) => {
                self.crashed().map_or(MachineExit::Hung, MachineExit::Unhandled)
            }
        }
    }

    /// Which hart met an exit.
    fn exited(&self, why: Exit) -> MachineExit {
        let hart = self.vcpus.iter().position(|vcpu| vcpu.last_exit().is_some()).unwrap_or(0);
        let pc = self.vcpus[hart].cpu().pc;
        match why {
            Exit::Trap(trap) => MachineExit::Trap { hart, pc, trap },
            Exit::Hook(hook) => MachineExit::Hook { hart, pc, hook },
            Exit::Watch(access) => MachineExit::Watch { hart, pc, access },
            Exit::Code => MachineExit::Code { hart, pc },
            _ => MachineExit::Pc { hart, pc },
        }
    }

    /// From now on a run ends before a hart executes the instruction at one of these addresses, also where it was translated before;
    /// they take the place of those of the last call. Each arrival ends one run: the next one executes the instruction and goes on. So
    /// does a run that begins at one because the hart, or the exit, was put there between runs.
    pub fn set_exits(&mut self, pcs: &[u64]) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.set_exits(pcs));
    }

    /// From now on edges are counted, in code that was translated before, too: see [`notdirty_tcg::cover`]. With the numbers of another
    /// machine's edges the same edge has the same counter here.
    pub fn set_coverage(&mut self, edges: Option<Arc<Edges>>) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.set_coverage(edges.clone()));
        self.edges = edges;
    }

    /// A hart's counters, as many as are in use, to be read, and cleared, between runs; none if there is no such hart, or edges are not
    /// counted. A checkpoint has no part in them.
    pub fn coverage(&mut self, hart: usize) -> &mut [u8] {
        let counters = self.edges.as_ref().map_or(0, |edges| edges.counters());
        match self.vcpus.get_mut(hart) {
            Some(vcpu) => &mut vcpu.coverage()[..counters],
            None => &mut [],
        }
    }

    /// From now on, or no more, each comparison of a branch, of `slt` and its like notes its two operands, in code that was translated before,
    /// too: what a fuzzer looks for in its input, to put the other operand in its place.
    pub fn set_compares(&mut self, compares: Option<Arc<Compares>>) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.set_compares(compares.clone()));
        self.compares = compares;
    }

    /// What a hart compared last at each instruction that compares: its pc, and the operands. Then all is forgotten; an instruction that
    /// compared nothing since the last time has two zeros.
    pub fn take_operands(&mut self, hart: usize) -> Vec<(u64, [u64; 2])> {
        let (Some(compares), Some(vcpu)) = (&self.compares, self.vcpus.get_mut(hart)) else { return Vec::new() };
        let all = vcpu.operands();
        compares.all().into_iter().map(|(pc, at)| (pc, std::mem::take(&mut all[usize::from(at)]))).collect()
    }

    /// From now on a run ends before a hart takes an exception whose bit, by the number of its cause, is set in `causes`. The next
    /// run takes it, if it comes again.
    pub fn set_trap_exits(&mut self, causes: u64) {
        self.vcpus.iter_mut().for_each(|vcpu| vcpu.set_trap_exits(causes));
    }

    /// Harts that take turns do so anew, as this seed has it: part of a fuzzer's input. `false`: they run side by side
    /// ([`MachineBuilder::turns`](super::MachineBuilder::turns)).
    pub fn set_seed(&mut self, seed: u64) -> bool {
        if let Some(turns) = &mut self.turns {
            *turns = Turns::new(seed);
        }
        self.turns.is_some()
    }

    /// Runs without limits.
    pub fn run_to_end(&mut self) -> MachineExit {
        self.run(&RunLimits { max_insns: None, deadline: None })
    }

    /// Runs the harts until the first of them ends. An odd low half of `tohost` stops them for a look: if no high half
    /// comes soon, the guest has ended.
    pub(super) fn run_vcpus(&mut self, limits: &RunLimits) -> VcpuExit {
        let mut waited = None;
        loop {
            let htif = self.board.htif_device.clone();
            let half = htif.as_ref().filter(|htif| htif.has_half());
            let part = match half {
                Some(_) => {
                    waited.get_or_insert_with(|| {
                        (0, self.vcpus.iter().map(|vcpu| vcpu.cpu().retired).collect::<Vec<_>>())
                    });
                    self.soon(limits)
                }
                None => {
                    self.half_end = None;
                    waited = None;
                    *limits
                }
            };
            let exit = match (self.vcpus.as_mut_slice(), &mut self.turns) {
                ([vcpu], _) => vcpu.run(&part),
                (vcpus, Some(turns)) => {
                    self.harts.start();
                    turns.run(vcpus, &part, half.and(self.half_end))
                }
                (vcpus, None) => {
                    let exit = run_all(&self.harts, vcpus, &part);
                    keep_others(vcpus, exit);
                    exit
                }
            };
            if exit == VcpuExit::Stopped {
                let nudged = htif.is_some_and(|htif| htif.take_nudge());
                if self.migration.may_stop() {
                    return exit;
                }
                if self.asked.swap(false, Ordering::AcqRel) || !nudged || self.board.latch.get().is_some() {
                    return exit;
                }
                // Of harts that were stopped by the first one that ended, not by their own look at it.
                for vcpu in &self.vcpus {
                    vcpu.port().take_stop();
                }
                // A stop since that look.
                if self.asked.load(Ordering::Acquire) {
                    self.stop_handle().stop();
                }
                continue;
            }
            let own = match exit {
                VcpuExit::InsnLimit => {
                    half.is_some()
                        && !limits.max_insns.is_some_and(|max| self.vcpus.iter().any(|vcpu| vcpu.cpu().retired >= max))
                }
                VcpuExit::Deadline => part.deadline != limits.deadline,
                VcpuExit::Hung => half.is_some(),
                _ => false,
            };
            match half {
                Some(htif) if own && exit == VcpuExit::Deadline && htif.has_half() && self.half_waits(&mut waited) => {
                    continue;
                }
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

    /// Whether a hart may be the one that stores the high half next: it ran for fewer than `HALF_INSNS` since `from`.
    fn half_waits(&self, waited: &mut Option<(u32, Vec<u64>)>) -> bool {
        let Some((times, from)) = waited else { return false };
        *times += 1;
        *times <= HALF_TIMES && self.vcpus.iter().zip(from).any(|(vcpu, from)| vcpu.cpu().retired < *from + HALF_INSNS)
    }

    /// These limits, or earlier ones by which two stores in a row are both done.
    fn soon(&mut self, limits: &RunLimits) -> RunLimits {
        let mut soon = *limits;
        let (one, turns) = (self.vcpus.len() == 1, self.turns.as_ref().map(Turns::hart));
        if let Some(hart) = if one { Some(0) } else { turns } {
            // Counted, so that a run repeats exactly, in pieces too.
            let end = self.vcpus[hart].cpu().retired.saturating_add(HALF_INSNS);
            let (_, end) = *self.half_end.get_or_insert((hart, end));
            if one {
                soon.max_insns = Some(limits.max_insns.map_or(end, |max| max.min(end)));
            }
        } else {
            let end = Instant::now() + HALF_TIME;
            soon.deadline = Some(limits.deadline.map_or(end, |deadline| deadline.min(end)));
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

//! Where and why a run shall end: at instructions, before they are executed, and at traps, before they are taken.
//!
//! ```text
//!   pcs     part of a TB's key: in emitted code the instruction at such a pc is a site that leaves. Another set is another key, so
//!           it holds at once for code that was translated before, and what was translated for the last set is found again
//!   traps   a bit for each cause, looked at when a trap is about to be taken
//! ```
//!
//! Each arrival ends one run. The next one executes the instruction, or takes the trap: [`Told`] remembers for which place that holds. It
//! holds too where the owner put the hart, or the exit. A limit, or the end of another hart's run, may stop a hart at an exit
//! before it is told: then the next run ends there at once.

use crate::riscv::trap::Trap;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::Value;
use std::sync::Arc;

/// What ends a run; the guest is as it was before the instruction or the trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The next instruction is that at `cpu.pc`, where a run shall end.
    Pc,
    /// This exception is about to be taken at `cpu.pc`.
    Trap(Trap),
}

/// Sets that keep their translations; with one more all begin anew, so that a fuzzer with an exit of its own for each run keeps no list
/// of them all.
const MAX_SETS: usize = 64;

/// What another set of exits means for translations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: it is the same set.
    None,
    /// Jumps are looked up anew.
    Key,
    /// Numbers of sets are given out anew: no translation may be found again.
    All,
}

/// Where a hart stands, by its pc and its count of instructions.
type Place = (u64, u64);

/// Which exits end no run at the place where the hart stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Told {
    at: Place,
    /// That at the pc.
    pc: bool,
    /// Those at exceptions, a bit for each cause.
    traps: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Exits {
    /// In rising order.
    pcs: Arc<[u64]>,
    /// Number of that set: part of the key of TBs. The empty one is 0.
    set: u32,
    /// The sets that there were, [`MAX_SETS`] at most.
    sets: Vec<Arc<[u64]>>,
    /// Exceptions, a bit for each cause.
    traps: u64,
    /// What is to end the run.
    pub(crate) why: Option<Exit>,
    /// What ended the last one.
    pub(crate) last: Option<Exit>,
    told: Told,
    /// The owner put the hart where it stands.
    put: bool,
}

impl Told {
    /// As named values.
    pub(crate) fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        let Told { at: (at_pc, at_retired), pc, traps } = self;
        visit("told_at_pc", Value::U64(at_pc));
        visit("told_at_retired", Value::U64(at_retired));
        visit("told_pc", Value::Bool(pc));
        visit("told_traps", Value::U64(traps));
    }
}

impl Exits {
    pub(crate) fn new() -> Exits {
        Exits {
            pcs: Arc::default(),
            set: 0,
            sets: Vec::new(),
            traps: 0,
            why: None,
            last: None,
            told: Told::default(),
            put: true,
        }
    }

    /// The owner is about to put the hart somewhere.
    pub(crate) fn put(&mut self) {
        (self.why, self.put) = (None, true);
    }

    /// A run begins here.
    #[inline]
    pub(crate) fn begin(&mut self, at: Place) {
        if std::mem::take(&mut self.put) {
            self.told = Told { at, pc: true, traps: 0 };
        }
    }

    /// What holds for a hart that stands here.
    pub(crate) fn told(&self, at: Place) -> Told {
        if self.put { Told { at, pc: true, traps: 0 } } else { self.told }
    }

    /// As [`told`](Self::told) once said.
    pub(crate) fn set_told(&mut self, told: Told) {
        (self.why, self.told, self.put) = (None, told, false);
    }

    /// A run ends here by this.
    pub(crate) fn tell(&mut self, why: Exit, at: Place) {
        if self.told.at != at {
            self.told = Told { at, ..Told::default() };
        }
        match why {
            Exit::Pc => self.told.pc = true,
            Exit::Trap(trap) => self.told.traps |= 1 << (trap.cause & 63),
        }
        self.last = Some(why);
    }

    /// Shall a run that begins here not end at once, though there is an exit?
    #[inline]
    pub(crate) fn passes(&self, at: Place) -> bool {
        self.has(at.0) && self.told.at == at && self.told.pc
    }

    /// Runs end here from now on; the hart stands at `at`. No instruction is at an odd address, so no run ends there.
    pub(crate) fn set_pcs(&mut self, pcs: &[u64], at: Place) -> Change {
        if self.told.at != at {
            self.told = Told { at, ..Told::default() };
        }
        self.told.pc = true;
        let mut pcs: Vec<u64> = pcs.iter().copied().filter(|pc| pc & 1 == 0).collect();
        pcs.sort_unstable();
        pcs.dedup();
        if *self.pcs == *pcs {
            return Change::None;
        }
        let known =
            if pcs.is_empty() { Some(0) } else { self.sets.iter().position(|set| **set == *pcs).map(|n| n as u32 + 1) };
        self.pcs = pcs.into();
        let full = known.is_none() && self.sets.len() >= MAX_SETS;
        if full {
            self.sets.clear();
        }
        self.set = known.unwrap_or_else(|| {
            self.sets.push(self.pcs.clone());
            self.sets.len() as u32
        });
        if full { Change::All } else { Change::Key }
    }

    pub(crate) fn pcs(&self) -> &Arc<[u64]> {
        &self.pcs
    }

    pub(crate) fn number(&self) -> u32 {
        self.set
    }

    pub(crate) fn set_traps(&mut self, causes: u64) {
        self.traps = causes;
    }

    /// Shall a run end at this pc?
    #[inline]
    pub(crate) fn has(&self, pc: u64) -> bool {
        !self.pcs.is_empty() && self.pcs.binary_search(&pc).is_ok()
    }

    /// Shall one end on the page of this pc?
    #[inline]
    pub(crate) fn has_on_page(&self, pc: u64) -> bool {
        if self.pcs.is_empty() {
            return false;
        }
        let start = pc & !(PAGE_SIZE - 1);
        let next = self.pcs.partition_point(|at| *at < start);
        self.pcs.get(next).is_some_and(|at| at - start < PAGE_SIZE)
    }

    /// Does this trap end the run, in place of being taken here?
    #[inline]
    pub(crate) fn stops(&mut self, trap: &Trap, at: Place) -> bool {
        let bit = 1 << (trap.cause & 63);
        let stops =
            self.traps & bit != 0 && !trap.is_interrupt() && !(self.told.at == at && self.told.traps & bit != 0);
        if stops {
            self.why = Some(Exit::Trap(*trap));
        }
        stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_comes_again_has_its_old_number() {
        let mut exits = Exits::new();
        assert!(exits.set_pcs(&[8, 4, 8], (0, 0)) == Change::Key && exits.number() == 1);
        assert!(exits.set_pcs(&[4, 8], (0, 0)) == Change::None && exits.number() == 1);
        assert!(exits.set_pcs(&[4], (0, 0)) == Change::Key && exits.number() == 2);
        assert!(exits.set_pcs(&[], (0, 0)) == Change::Key && exits.number() == 0 && !exits.has(4));
        assert!(exits.set_pcs(&[8, 4], (0, 0)) == Change::Key && exits.number() == 1);
        assert!(exits.has(4) && !exits.has(6));
        assert!(exits.has_on_page(0xffe) && !exits.has_on_page(0x1000));
    }

    #[test]
    fn a_set_of_its_own_for_each_run_is_not_kept_for_ever() {
        let mut exits = Exits::new();
        for n in 1..=10 * MAX_SETS as u64 {
            let all = n > 1 && (n - 1).is_multiple_of(MAX_SETS as u64);
            let want = if all { Change::All } else { Change::Key };
            assert_eq!(exits.set_pcs(&[8 * n], (0, 0)), want, "set {n}");
            assert!(exits.sets.len() <= MAX_SETS && exits.number() as usize <= MAX_SETS);
        }
    }
}

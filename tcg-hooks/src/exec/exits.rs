//! Where and why a run shall end: at instructions, before they are executed, and at traps, before they are taken.
//!
//! ```text
//!   pcs     part of a TB's key: in emitted code the instruction at such a pc is a site that leaves. Another set is another key, so
//!           it holds at once for code that was translated before, and what was translated for the last set is found again
//!   code    the same, of all that lies outside of ranges which were said to be code
//!   traps   a bit for each cause, looked at when a trap is about to be taken
//!   watch   an access to bytes that are watched, which is not made
//!   hooks   one of them said so
//! ```
//!
//! Each arrival ends one run. The next one executes the instruction, or takes the trap: [`Told`] remembers for which place that holds. It
//! holds too where the owner put the hart, or the exit. A limit, or the end of another hart's run, may stop a hart at an exit
//! before it is told: then the next run ends there at once.

use crate::guest::Trap;
use crate::hooks::HookId;
use notdirty_core::PAGE_SIZE;
use notdirty_softmmu::{Value, Watched};
use std::sync::Arc;

/// What ends a run; the guest is as it was before the instruction or the trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The next instruction is that at `cpu.pc`, where a run shall end.
    Pc,
    /// This exception is about to be taken at `cpu.pc`.
    Trap(Trap),
    /// The next instruction is that at `cpu.pc`, outside of what was said to be code.
    Code,
    /// The instruction at `cpu.pc` is about to access bytes that are watched.
    Watch(Watched),
    /// This hook said so: before the instruction at `cpu.pc`, which it was called for, or behind what it was called for.
    Hook(HookId),
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
    /// Hooks of the instruction were called.
    hooks: bool,
    /// What is watched was told.
    watch: bool,
}

/// Where runs end before an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stops {
    /// At these, in rising order.
    pub(crate) pcs: Vec<u64>,
    /// And outside of these ranges, first and last address, if there are any: in rising order, with something between each two.
    pub(crate) code: Option<Vec<(u64, u64)>>,
}

impl Stops {
    fn is_empty(&self) -> bool {
        self.pcs.is_empty() && self.code.is_none()
    }

    /// Shall a run end at this pc?
    #[inline]
    pub(crate) fn has(&self, pc: u64) -> bool {
        self.pcs.binary_search(&pc).is_ok() || !self.is_code(pc, pc)
    }

    /// Are these addresses all code, as far as anything was said?
    pub(crate) fn is_code(&self, first: u64, last: u64) -> bool {
        let Some(code) = &self.code else { return true };
        let next = code.partition_point(|range| range.0 <= first);
        next.checked_sub(1).and_then(|at| code.get(at)).is_some_and(|range| last <= range.1)
    }

    /// How many bytes from `pc` on, to the end of its page at least, no run shall end at.
    fn free_from(&self, pc: u64) -> u64 {
        if !self.is_code(pc, pc | (PAGE_SIZE - 1)) {
            return 0;
        }
        let next = self.pcs.partition_point(|at| *at < pc);
        self.pcs.get(next).map_or(u64::MAX, |at| at - pc)
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Exits {
    stops: Arc<Stops>,
    /// Are there any?
    some: bool,
    /// Number of that set: part of the key of TBs. The empty one is 0.
    set: u32,
    /// The sets that there were, [`MAX_SETS`] at most.
    sets: Vec<Arc<Stops>>,
    /// Exceptions, a bit for each cause.
    traps: u64,
    /// What is to end the run.
    pub(crate) why: Option<Exit>,
    /// What ended the last one.
    pub(crate) last: Option<Exit>,
    told: Told,
    /// The hook that ends the run was called for the instruction which is next.
    before: bool,
    /// What ended the last run and was not told.
    again: Option<Exit>,
    /// The owner put the hart where it stands.
    put: bool,
}

impl Told {
    /// As named values.
    pub(crate) fn each(&mut self, visit: &mut dyn FnMut(&'static str, Value<'_>)) {
        let Told { at: (at_pc, at_retired), pc, traps, hooks, watch } = self;
        visit("told_at_pc", Value::U64(at_pc));
        visit("told_at_retired", Value::U64(at_retired));
        visit("told_pc", Value::Bool(pc));
        visit("told_traps", Value::U64(traps));
        visit("told_hooks", Value::Bool(hooks));
        visit("told_watch", Value::Bool(watch));
    }
}

impl Exits {
    pub(crate) fn new() -> Exits {
        Exits {
            stops: Arc::default(),
            some: false,
            set: 0,
            sets: Vec::new(),
            traps: 0,
            why: None,
            last: None,
            told: Told::default(),
            before: false,
            again: None,
            put: true,
        }
    }

    /// The owner is about to put the hart somewhere.
    pub(crate) fn put(&mut self) {
        (self.why, self.again, self.put) = (None, None, true);
    }

    /// A run begins here.
    #[inline]
    pub(crate) fn begin(&mut self, at: Place) {
        if std::mem::take(&mut self.put) {
            self.told = Told { at, pc: true, ..Told::default() };
        }
    }

    /// What holds for a hart that stands here.
    pub(crate) fn told(&self, at: Place) -> Told {
        if self.put { Told { at, pc: true, ..Told::default() } } else { self.told }
    }

    /// As [`told`](Self::told) once said.
    pub(crate) fn set_told(&mut self, told: Told) {
        (self.why, self.again, self.told, self.put) = (None, None, told, false);
    }

    /// A run ends here by this.
    /// `hooked`: the instruction may have hooks, which were called before.
    pub(crate) fn tell(&mut self, why: Exit, at: Place, hooked: bool) {
        if self.told.at != at {
            self.told = Told { at, ..Told::default() };
        }
        match why {
            Exit::Pc | Exit::Code => self.told.pc = true,
            Exit::Trap(trap) => self.told.traps |= 1 << (trap.cause & 63),
            Exit::Hook(_) => self.told.hooks |= std::mem::take(&mut self.before),
            Exit::Watch(_) => self.told.watch = true,
        }
        self.told.hooks |= hooked && matches!(why, Exit::Trap(_) | Exit::Watch(_));
        self.last = Some(why);
    }

    /// The instruction here was begun, and is executed later: a run that was to end before it did, or had gone on from there.
    pub(crate) fn begun(&mut self, at: Place, hooked: bool) {
        if self.told.at != at {
            self.told = Told { at, ..Told::default() };
        }
        self.told.pc = true;
        self.told.hooks |= hooked;
    }

    /// Shall a run that begins here not end at once, though there is an exit?
    #[inline]
    pub(crate) fn passes(&self, at: Place) -> bool {
        self.told.at == at && (self.told.hooks || self.told.watch || self.told.pc && self.has(at.0))
    }

    /// Were the hooks of the instruction here called?
    pub(crate) fn hooks_told(&self, at: Place) -> bool {
        self.told.at == at && self.told.hooks
    }

    /// Was what is watched told here?
    pub(crate) fn watch_told(&self, at: Place) -> bool {
        self.told.at == at && self.told.watch
    }

    /// A hook ends the run; `before`: it was called for the instruction that is next.
    pub(crate) fn stop_by(&mut self, why: Exit, before: bool) {
        (self.why, self.before) = (Some(why), before);
    }

    /// What was to end a run did not, as something else came first: a stop by another hart, a limit. The instruction is met again by the
    /// next run; a hook is not called again, so the next run begins by telling it.
    pub(crate) fn was_late(&mut self, why: Exit, at: Place) {
        if let Exit::Hook(_) = why {
            self.tell(why, at, false);
            self.keep();
        }
    }

    /// What ended the last run was not told, as another's was: the next run begins by telling it.
    pub(crate) fn keep(&mut self) {
        match self.last.take() {
            Some(why @ (Exit::Hook(_) | Exit::Watch(_))) => self.again = Some(why),
            Some(_) => self.told = Told::default(),
            None => {}
        }
    }

    /// See [`keep`](Self::keep).
    #[inline]
    pub(crate) fn take_kept(&mut self) -> Option<Exit> {
        let why = self.again.take()?;
        self.last = Some(why);
        Some(why)
    }

    /// Runs end here from now on; the hart stands at `at`. No instruction is at an odd address, so no run ends there.
    pub(crate) fn set_pcs(&mut self, pcs: &[u64], at: Place) -> Change {
        let mut pcs: Vec<u64> = pcs.iter().copied().filter(|pc| pc & 1 == 0).collect();
        pcs.sort_unstable();
        pcs.dedup();
        self.set(Stops { pcs, code: self.stops.code.clone() }, at)
    }

    /// And wherever is no code, by these ranges; `None`: everything may be.
    pub(crate) fn set_code(&mut self, code: Option<Vec<(u64, u64)>>, at: Place) -> Change {
        let code = code.map(|mut code| {
            code.sort_unstable();
            let mut joined: Vec<(u64, u64)> = Vec::with_capacity(code.len());
            for (first, last) in code {
                match joined.last_mut() {
                    Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                    _ => joined.push((first, last)),
                }
            }
            joined
        });
        self.set(Stops { pcs: self.stops.pcs.clone(), code }, at)
    }

    fn set(&mut self, stops: Stops, at: Place) -> Change {
        if self.told.at != at {
            self.told = Told { at, ..Told::default() };
        }
        self.told.pc = true;
        if *self.stops == stops {
            return Change::None;
        }
        let known = if stops.is_empty() {
            Some(0)
        } else {
            self.sets.iter().position(|set| **set == stops).map(|n| n as u32 + 1)
        };
        self.some = !stops.is_empty();
        self.stops = Arc::new(stops);
        let full = known.is_none() && self.sets.len() >= MAX_SETS;
        if full {
            self.sets.clear();
        }
        self.set = known.unwrap_or_else(|| {
            self.sets.push(self.stops.clone());
            self.sets.len() as u32
        });
        if full { Change::All } else { Change::Key }
    }

    pub(crate) fn stops_at(&self) -> &Arc<Stops> {
        &self.stops
    }

    /// Why a run ends at this pc.
    pub(crate) fn why_at(&self, pc: u64) -> Exit {
        if self.stops.pcs.binary_search(&pc).is_ok() { Exit::Pc } else { Exit::Code }
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
        self.some && pc & 1 == 0 && self.stops.has(pc)
    }

    /// How many bytes from `pc` on no run shall end at; none, if one shall at `pc`.
    #[inline]
    pub(crate) fn free_from(&self, pc: u64) -> u64 {
        if self.some { self.stops.free_from(pc) } else { u64::MAX }
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
        assert_eq!([0, 4, 6, 9].map(|pc| exits.free_from(pc)), [4, 0, 2, u64::MAX]);
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

    #[test]
    fn what_is_no_code_is_what_lies_outside_of_all_ranges() {
        let mut exits = Exits::new();
        assert!(
            exits.set_code(Some(vec![(0x2000, 0x2fff), (0x1000, 0x1fff), (0x2800, 0x3007)]), (0, 0)) == Change::Key
        );
        assert_eq!(exits.stops.code, Some(vec![(0x1000, 0x3007)]));
        assert!(
            exits.has(0xffe) && !exits.has(0x1000) && !exits.has(0x3006) && exits.has(0x3008) && !exits.has(0x4001)
        );
        assert_eq!([0x2000, 0x3000, 0].map(|pc| exits.free_from(pc)), [u64::MAX, 0, 0]);
        assert!(exits.set_pcs(&[0x2000], (0, 0)) == Change::Key && exits.why_at(0x2000) == Exit::Pc);
        assert!(exits.why_at(0) == Exit::Code && exits.set_code(None, (0, 0)) == Change::Key && !exits.has(0));
        assert!(exits.set_code(Some(Vec::new()), (0, 0)) == Change::Key && exits.has(0) && exits.has(u64::MAX - 1));
    }
}

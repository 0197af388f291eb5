//! What is learned of a site while it runs, and worth another translation: that its accesses are often misaligned, or that
//! its stores often lie beside code.
//!
//! ```text
//!   a probe compares the alignment ──misaligned──▶ Rust, which counts it at the site
//!      ▲                                              │ OFTEN
//!      └── emitted again, and lets them through ◀─────┴─▶ the sites of the TB that were misaligned are noted, it dies
//!
//!   an access to RAM with another addend ──▶ the shared routine, the same way
//!      ▲                                              │
//!      └── emitted again, and takes the entry's ◀─────┘
//!
//!   a load outside the run of pages that need no entry ──▶ the shared routine, the same way
//!      ▲                                              │
//!      └── emitted again, and looks for an entry ◀────┘
//!
//!   a store in a page with code, not on code ──▶ the shared routine (`jit/x86_64/again.rs`), which counts down
//!      ▲                                              │ every `BESIDE`th
//!      └── emitted again, and tests its line ◀────────┴─▶ Rust: the site is noted, its TB dies
//! ```
//!
//!   a load that takes the entry's addend ──▶ goes by the one before it at the site, and compares ── wrong ──▶ corrects it, and counts
//!      ▲                                                                                                          │
//!      └── emitted again, and waits for the entry ◀── more than one for each `WORTH_GUESSING` instructions ◀──────┘ after a slice
//!
//! A site is known by its pc. It is never taken back: letting misaligned accesses through costs one addition, the test of
//! the line a jump over the test.
use super::{Tb, TbCache, TbId};
use crate::ir::{COUNT, LETS_ODD, Region, SEES_ADDEND, SEES_ENTRY, TESTS_LINE};
use crate::jit::context::Context;
use crate::jit::{Backend, LOCAL_BITS};
use crate::tier2::Learned;
use hashbrown::HashMap;
use notdirty_core::PAGE_SIZE;

/// A site that was misaligned so often is worth another translation.
const OFTEN: u8 = 15;
/// Of sites that load from outside the run of pages, so many are many, if one of so many TBs has one.
const MANY: u64 = 32;
/// Guest pages with such sites, at most: then all are forgotten, and learned again.
const MOST: usize = 4096;
/// A page's halfwords, a bit each.
type Halves = [u64; PAGE_SIZE as usize / 2 / 64];

/// Numbers of sites of one TB, a bit each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SiteSet([u64; (1 << LOCAL_BITS) / 64]);

impl SiteSet {
    pub(crate) const NONE: SiteSet = SiteSet([0; (1 << LOCAL_BITS) / 64]);
    pub(crate) const ALL: SiteSet = SiteSet([!0; (1 << LOCAL_BITS) / 64]);

    #[inline]
    pub(crate) fn has(&self, site: u16) -> bool {
        self.0[usize::from(site) / 64 % self.0.len()] >> (site % 64) & 1 != 0
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().fold(0, |all, word| all | word) == 0
    }

    pub(crate) fn add(&mut self, site: usize) {
        let len = self.0.len();
        self.0[site / 64 % len] |= 1 << (site % 64);
    }
}

/// The sites of which one thing is known, by page of their pc.
#[derive(Debug, Default)]
pub(crate) struct Places(HashMap<u64, Box<Halves>>);

fn place(pc: u64) -> (usize, u64) {
    let half = pc % PAGE_SIZE / 2;
    (half as usize / 64, 1 << (half % 64))
}

impl Places {
    fn note(&mut self, pc: u64) {
        let page = pc / PAGE_SIZE;
        if self.0.len() == MOST && !self.0.contains_key(&page) {
            self.0.clear();
        }
        let (word, bit) = place(pc);
        self.0.entry(page).or_default()[word] |= bit;
    }

    fn has(&self, pc: u64) -> bool {
        let (word, bit) = place(pc);
        self.0.get(&(pc / PAGE_SIZE)).is_some_and(|halves| halves[word] & bit != 0)
    }

    /// Those of a region, if there are any.
    pub(super) fn of(&self, region: &Region) -> Option<SiteSet> {
        let first = region.pc / PAGE_SIZE;
        if self.0.is_empty() || !(first..first + 2).any(|page| self.0.contains_key(&page)) {
            return None;
        }
        let mut set = SiteSet::NONE;
        let known = region.sites.iter().enumerate().filter(|(_, site)| self.has(site.pc));
        known.for_each(|(n, _)| set.add(n));
        Some(set)
    }
}

impl Tb {
    /// Its code was made for these sites, by what `bit` of [`crate::ir::Site::learned`] says: that is not to be learned again.
    pub(super) fn knows(&mut self, set: &SiteSet, bit: u8) {
        for (n, site) in self.sites.iter_mut().enumerate().filter(|&(n, _)| set.has(n as u16)) {
            debug_assert!(n < 1 << LOCAL_BITS);
            site.learned |= bit;
        }
    }
}

impl TbCache {
    /// The access of site `number` was misaligned, and within its page. If that was once too often, its TB is dead.
    pub(crate) fn count_odd(&mut self, ctx: &mut Context, number: u32) -> bool {
        let id: TbId = number >> LOCAL_BITS;
        let Some(tb) = self.tbs.get_mut(id as usize).and_then(|tb| tb.as_deref_mut()) else { return false };
        let Some(site) = tb.sites.get_mut(number as usize % (1 << LOCAL_BITS)) else { return false };
        if site.learned & LETS_ODD != 0 {
            return false;
        }
        site.learned += 1;
        // A TB that was emitted before its site was noted, for another, need not wait.
        if site.learned & COUNT < OFTEN && !self.odd.has(site.pc) {
            return false;
        }
        // Those that were misaligned less often are likely to be next.
        for site in tb.sites.iter().filter(|site| site.learned & COUNT != 0) {
            self.odd.note(site.pc);
        }
        self.stats.odd += 1;
        self.emit_again(id, ctx)
    }

    /// The store of site `number` is one of many that lay beside code. If its code does not test the line, its TB is dead.
    pub(crate) fn store_beside(&mut self, ctx: &mut Context, number: u32) -> bool {
        let Some(pc) = self.unknown(number, TESTS_LINE) else { return false };
        self.beside.note(pc);
        self.stats.beside += 1;
        self.emit_again(number >> LOCAL_BITS, ctx)
    }

    /// The access of site `number` is one of many to RAM that has not the addend which is assumed. If its code does not look for the
    /// addend in the entry, its TB is dead.
    pub(crate) fn is_elsewhere(&mut self, ctx: &mut Context, number: u32) -> bool {
        let Some(pc) = self.unknown(number, SEES_ADDEND) else { return false };
        self.elsewhere.note(pc);
        self.stats.elsewhere += 1;
        self.emit_again(number >> LOCAL_BITS, ctx)
    }

    /// The load of site `number` is one of many outside the run of pages. If its code does not look for an entry, its TB is dead.
    pub(crate) fn is_beside_run(&mut self, ctx: &mut Context, number: u32) -> bool {
        let Some(pc) = self.unknown(number, SEES_ENTRY) else { return false };
        self.beside_run.note(pc);
        self.beside_runs += 1;
        self.stats.elsewhere += 1;
        self.emit_again(number >> LOCAL_BITS, ctx)
    }

    /// The load of site `number` is one of many that guess an addend wrong: its TB is dead.
    pub(crate) fn guesses_wrong(&mut self, ctx: &mut Context, number: u32) {
        // Its TB may have died meanwhile, and another have its number: then this is learned of a site that did not need it.
        let Some(pc) = self.site(number).map(|site| site.pc) else { return };
        self.varied.note(pc);
        self.stats.guessed += 1;
        self.emit_again(number >> LOCAL_BITS, ctx);
    }

    /// The pc of a site, if its code was not made for what `bit` says.
    fn unknown(&self, number: u32, bit: u8) -> Option<u64> {
        self.site(number).filter(|site| site.learned & bit == 0).map(|site| site.pc)
    }

    /// Do so many sites load from outside the run of pages that new code better looks for entries?
    pub(super) fn has_no_run(&self) -> bool {
        self.beside_runs >= MANY && self.beside_runs > self.stats.translated / MANY
    }

    /// What is known of the instruction at a pc.
    pub(crate) fn learned(&self, pc: u64) -> Learned {
        let odd = !self.flags.aligned || self.odd.has(pc);
        let elsewhere = self.scattered || self.elsewhere.has(pc);
        Learned {
            odd,
            beside: self.beside.has(pc),
            elsewhere,
            beside_run: self.has_no_run() || self.beside_run.has(pc),
        }
    }

    /// Does the emitter check accesses ahead of a loop?
    pub(crate) fn checks_ahead(&self) -> bool {
        self.emitter.checks_ahead()
    }

    /// A TB that runs, and is worth another translation.
    fn emit_again(&mut self, id: TbId, ctx: &mut Context) -> bool {
        let Some(tb) = self.tbs.get(id as usize).and_then(|tb| tb.as_deref()) else { return false };
        let pc = tb.key.pc;
        self.kill(id, ctx);
        self.heat.kindle(pc);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_and_what_was_forgotten_can_be_noted_again() {
        let mut odd = Places::default();
        for page in 0..MOST as u64 {
            odd.note(page * PAGE_SIZE + 2 * (page % 2048));
        }
        assert!(odd.has(0) && odd.has(7 * PAGE_SIZE + 14) && !odd.has(7 * PAGE_SIZE + 16));
        odd.note(MOST as u64 * PAGE_SIZE);
        assert!(odd.has(MOST as u64 * PAGE_SIZE) && !odd.has(0));
        odd.note(0);
        assert!(odd.has(0));
    }
}

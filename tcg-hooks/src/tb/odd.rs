//! Sites whose accesses are often misaligned: their probes let these through.
//!
//! ```text
//!   a probe compares the alignment ──misaligned──▶ Rust, which counts it at the site
//!      ▲                                              │ OFTEN
//!      └── emitted again, and lets them through ◀─────┴─▶ the sites of the TB that were misaligned are noted, it dies
//! ```
//!
//! A site is known by its pc. It is never taken back: letting them through costs one addition.
use super::{Tb, TbCache, TbId};
use crate::ir::{LETS_ODD, Region};
use crate::jit::x86_64::LOCAL_BITS;
use crate::jit::x86_64::context::Context;
use hashbrown::HashMap;
use notdirty_core::PAGE_SIZE;

/// A site that was misaligned so often is worth another translation.
const OFTEN: u8 = 16;
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

    fn add(&mut self, site: usize) {
        let len = self.0.len();
        self.0[site / 64 % len] |= 1 << (site % 64);
    }
}

/// The sites that are known, by page of their pc.
#[derive(Debug, Default)]
pub(crate) struct OddSites(HashMap<u64, Box<Halves>>);

fn place(pc: u64) -> (usize, u64) {
    let half = pc % PAGE_SIZE / 2;
    (half as usize / 64, 1 << (half % 64))
}

impl OddSites {
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
    /// The probes of these sites let misaligned accesses through: what misses there is not to be counted.
    pub(super) fn lets_through(&mut self, set: &SiteSet) {
        for (n, site) in self.sites.iter_mut().enumerate() {
            site.odd = if set.has(n as u16) { LETS_ODD } else { 0 };
        }
    }
}

impl TbCache {
    /// The access of site `number` was misaligned, and within its page. If that was once too often, its TB is dead.
    pub(crate) fn count_odd(&mut self, ctx: &mut Context, number: u32) -> bool {
        let id: TbId = number >> LOCAL_BITS;
        let Some(tb) = self.tbs.get_mut(id as usize).and_then(|tb| tb.as_deref_mut()) else { return false };
        let Some(site) = tb.sites.get_mut(number as usize % (1 << LOCAL_BITS)) else { return false };
        if site.odd == LETS_ODD {
            return false;
        }
        site.odd += 1;
        // A TB that was emitted before its site was noted, for another, need not wait.
        if site.odd < OFTEN && !self.odd.has(site.pc) {
            return false;
        }
        // Those that were misaligned less often are likely to be next.
        for site in tb.sites.iter().filter(|site| site.odd != 0) {
            self.odd.note(site.pc);
        }
        let pc = tb.key.pc;
        self.kill(id, ctx);
        self.heat.kindle(pc);
        self.stats.odd += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_known_and_what_was_forgotten_can_be_noted_again() {
        let mut odd = OddSites::default();
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

//! Ghost list: pcs of recently evicted TBs; retranslating one counts towards growing the code cache.
//!
//! ```text
//!   evicted ─▶ young ─ full ─▶ old ─▶ forgotten            made ─ in either ─▶ regretted += 1
//! ```
use hashbrown::HashSet;

/// One in this many made again is worth more room.
const WORTH: u64 = 8;
/// A generation has one for so many bytes of the code cache: as many as TBs that it may hold, or so.
const BYTES: usize = 512;

/// The evicted, by pc.
pub(super) struct Ghosts {
    young: HashSet<u64>,
    old: HashSet<u64>,
    generation: usize,
    made: u64,
    regretted: u64,
}

impl Ghosts {
    pub(super) fn new(cache_bytes: usize) -> Ghosts {
        let generation = (cache_bytes / BYTES).max(1024);
        Ghosts { young: HashSet::new(), old: HashSet::new(), generation, made: 0, regretted: 0 }
    }

    /// A TB at `pc` died for room.
    pub(super) fn evicted(&mut self, pc: u64) {
        if self.young.len() >= self.generation {
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(pc);
    }

    /// A TB at `pc` was made.
    pub(super) fn made(&mut self, pc: u64) {
        self.made += 1;
        self.regretted += u64::from(self.young.remove(&pc) || self.old.remove(&pc));
    }

    /// Is more room worth it? Asked once a chunk; counting starts again.
    pub(super) fn regret(&mut self) -> bool {
        let (made, regretted) = (std::mem::take(&mut self.made), std::mem::take(&mut self.regretted));
        regretted * WORTH > made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_evicted_is_regretted_whatever_the_distance_and_however_much_it_was() {
        for shift in 1..40 {
            for count in [64u64, 5_000, 100_000] {
                let mut ghosts = Ghosts::new(64 << 20);
                let pcs = || (1..=count).map(|n| n << shift);
                pcs().for_each(|pc| ghosts.evicted(pc));
                pcs().for_each(|pc| ghosts.made(pc));
                assert_eq!(ghosts.regretted, count, "1 << {shift}");
                assert!(ghosts.regret() && !ghosts.regret());
            }
        }
    }

    #[test]
    fn what_was_evicted_long_ago_is_forgotten() {
        let mut ghosts = Ghosts::new(0);
        (0..100_000).for_each(|pc| ghosts.evicted(2 * pc));
        assert!(ghosts.young.len() + ghosts.old.len() <= 2 * ghosts.generation);
        (0..90_000).for_each(|pc| ghosts.made(2 * pc));
        assert!(!ghosts.regret());
    }
}

//! Ghost list: pcs of recently evicted TBs; retranslating one counts towards growing the code cache.
//!
//! ```text
//!   evicted ─▶ its tag, at the place of its pc ─ another's eviction there ─▶ forgotten       made ─ the tag ─▶ regretted += 1
//! ```
//!
//! What is asked for is a share, so some may be missed, or taken for another: one in four, and one in 255. A byte for each
//! keeps the table in the host's near caches, where sets of pcs were not.
use crate::fetch::prefetch_to_write;
use crate::heat::spread;

/// One in this many made again is worth more room.
const WORTH: u64 = 8;
/// There is a place for so many bytes of the code cache: two for each TB that it may hold, or so.
const BYTES: usize = 256;

/// The evicted, by pc.
pub(super) struct Ghosts {
    /// Tags, or 0; none before the first eviction.
    tags: Vec<u8>,
    /// How many there will be, a power of two.
    places: usize,
    made: u64,
    regretted: u64,
}

impl Ghosts {
    pub(super) fn new(cache_bytes: usize) -> Ghosts {
        let places = (cache_bytes / BYTES).next_power_of_two().max(2048);
        Ghosts { tags: Vec::new(), places, made: 0, regretted: 0 }
    }

    /// Where `pc` is noted, and as what.
    #[inline]
    fn place(&self, pc: u64) -> (usize, u8) {
        let hash = spread(pc);
        ((hash >> 32) as usize & (self.places - 1), (hash as u8).max(1))
    }

    /// A TB at `pc` died for room.
    #[inline]
    pub(super) fn evicted(&mut self, pc: u64) {
        if self.tags.is_empty() {
            self.tags = vec![0; self.places];
        }
        let (at, tag) = self.place(pc);
        self.tags[at] = tag;
    }

    /// A TB at `pc` will be made soon.
    #[inline]
    pub(super) fn prepare(&self, pc: u64) {
        if let Some(tag) = self.tags.get(self.place(pc).0) {
            prefetch_to_write(tag, 1);
        }
    }

    /// A TB at `pc` was made.
    #[inline]
    pub(super) fn made(&mut self, pc: u64) {
        self.made += 1;
        let (at, tag) = self.place(pc);
        if self.tags.get(at) == Some(&tag) {
            self.tags[at] = 0;
            self.regretted += 1;
        }
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
    fn of_what_was_evicted_most_is_regretted_whatever_the_distance_and_however_much_it_was() {
        for shift in 1..40 {
            for count in [64u64, 5_000, 100_000] {
                let mut ghosts = Ghosts::new(64 << 20);
                let pcs = || (1..=count).map(|n| n << shift);
                pcs().for_each(|pc| ghosts.evicted(pc));
                pcs().for_each(|pc| ghosts.made(pc));
                assert!((2 * count / 3..=count).contains(&ghosts.regretted), "1 << {shift}: {}", ghosts.regretted);
                assert!(ghosts.regret() && !ghosts.regret());
            }
        }
    }

    #[test]
    fn what_was_evicted_long_ago_is_forgotten_and_other_code_is_not_taken_for_it() {
        let mut ghosts = Ghosts::new(0);
        (0..100_000).for_each(|pc| ghosts.evicted(2 * pc));
        (0..90_000).for_each(|pc| ghosts.made(2 * pc));
        assert!(!ghosts.regret());
        (0..100_000).for_each(|pc| ghosts.evicted(2 * pc));
        (200_000..300_000).for_each(|pc| ghosts.made(2 * pc));
        assert!(ghosts.regretted < 1000 && !ghosts.regret());
    }
}

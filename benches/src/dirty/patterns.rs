//! Which pages are dirty, the same for every contender.

use std::ops::Range;

/// Pages of 1 TiB.
pub const TIB: u64 = 1 << 28;

/// Pages of 2 MiB.
const HUGE: u64 = 512;

/// xorshift64*: the same numbers in each run.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed that is not 0.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number below `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((u128::from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)) * u128::from(below)) >> 64) as u64
    }
}

/// All of `pages`.
pub fn full(pages: u64) -> Vec<Range<u64>> {
    std::iter::once(0..pages).collect()
}

/// Half of them, in runs of 1 to 255 pages with as much between them.
pub fn half(pages: u64) -> Vec<Range<u64>> {
    let mut random = Random::new(0x5eed);
    let mut at = 0;
    let mut runs = Vec::new();
    while at < pages {
        let end = pages.min(at + 1 + random.below(255));
        runs.push(at..end);
        at = end + 1 + random.below(255);
    }
    runs
}

/// A thousandth of them, in runs of 2 MiB.
pub fn runs(pages: u64) -> Vec<Range<u64>> {
    let mut random = Random::new(0x5eed);
    let mut starts: Vec<u64> = (0..pages / 1000 / HUGE).map(|_| random.below(pages / HUGE) * HUGE).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.into_iter().map(|start| start..start + HUGE).collect()
}

/// One in 100,000, anywhere.
pub fn random(pages: u64) -> Vec<Range<u64>> {
    scattered(pages, pages / 100_000)
}

/// `count` pages (some fewer, where two fall on one) anywhere in `pages`, in rising order.
pub fn scattered(pages: u64, count: u64) -> Vec<Range<u64>> {
    let mut random = Random::new(0x5eed);
    let mut at: Vec<u64> = (0..count).map(|_| random.below(pages)).collect();
    at.sort_unstable();
    at.dedup();
    at.into_iter().map(|page| page..page + 1).collect()
}

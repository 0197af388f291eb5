//! How many instructions a slice is: emitted code polls no kick, so a slice is how late one is noticed.
//!
//! ```text
//!   arithmetic         0.3 ns an instruction    65,536 of them    20 us
//!   loads that miss   60 ns                      4,096           250 us
//! ```
//!
//! The count only bounds a slice. What the guest sees (limits, the timer, its own time) ends slices by itself, so a run
//! is the same whatever the host's clock says here; which TBs there are may differ.
use crate::clock::{HostClock, NANOS_PER_TICK};
use crate::translate::MAX_INSNS;

/// The longest slice.
const LONGEST: u64 = 1 << 16;
/// The shortest: even of the fastest instructions they take some ten times as long as the look behind them.
const SHORTEST: u64 = 1 << 12;
/// What the end of a slice may wait for at least.
const LEAST: u64 = 64;
/// How many ticks a slice shall take at most; at least half as many, if it is not the longest.
const TICKS: u64 = 250_000 / NANOS_PER_TICK;

/// The length of the next slice, by the time that those before took.
pub(super) struct Pace {
    /// `None`: all slices are the longest.
    clock: Option<HostClock>,
    insns: u64,
    /// When it was looked at last in this run, and how many instructions had retired.
    seen: Option<(u64, u64)>,
    /// After so many a slice ends in any case, also if all runs are shorter than a slice: what is hot is known by where slices end.
    left: u64,
}

impl Pace {
    /// By the host's clock.
    pub(super) fn by_time() -> Pace {
        Pace { clock: Some(HostClock::new()), insns: SHORTEST, seen: None, left: LONGEST }
    }

    /// The same length always.
    pub(super) fn fixed() -> Pace {
        Pace { clock: None, insns: LONGEST, seen: None, left: LONGEST }
    }

    /// The most instructions that the next slice may run, give or take a block.
    pub(super) fn insns(&self) -> u64 {
        self.insns.min(self.left.max(LEAST))
    }

    /// It runs from here on, or again: what was before took no time. No look at the clock either: short runs have no slice that ends.
    pub(super) fn start(&mut self) {
        self.seen = None;
    }

    /// A slice is over, after `done` instructions; `ended`: it ran to its end.
    pub(super) fn ran(&mut self, done: u64, ended: bool) {
        self.left = self.left.saturating_sub(done);
        if ended && self.left <= MAX_INSNS as u64 {
            self.left = LONGEST;
        }
    }

    /// A slice of `n` instructions ran to its end. Those that do not, cost no look at the clock; their time counts here.
    pub(super) fn ended(&mut self, n: u64, retired: u64) {
        let Some(clock) = &self.clock else { return };
        // A short one ends for something else, that may be what the guest does all the time.
        if n < SHORTEST {
            return;
        }
        let now = clock.ticks();
        let Some((then, before)) = self.seen.replace((now, retired)) else { return };
        let (ticks, ran) = (now - then, retired.wrapping_sub(before));
        self.insns = next(self.insns, n, ticks.saturating_mul(n) / ran.max(1));
    }
}

/// The length after a slice of `n` instructions, of the `now` allowed, took `ticks`. One that was far too long is not
/// tried again at half its length; one that merely lost the CPU costs a few short ones.
fn next(now: u64, mut n: u64, mut ticks: u64) -> u64 {
    if ticks <= TICKS {
        // One that was cut short says nothing of a longer one.
        let double = ticks < TICKS / 2 && n == now;
        return if double { (2 * now).min(LONGEST) } else { now };
    }
    while ticks > TICKS {
        (n, ticks) = (n / 2, ticks / 2);
    }
    n.clamp(SHORTEST, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of the slices of a guest with `picos` an instruction, from `now` on.
    fn lengths(mut now: u64, picos: u64) -> [u64; 6] {
        [(); 6].map(|()| {
            now = next(now, now, now * picos / (1_000 * NANOS_PER_TICK));
            now
        })
    }

    #[test]
    fn a_slice_is_as_long_as_its_time_allows() {
        assert_eq!(lengths(SHORTEST, 300), [8192, 16_384, 32_768, LONGEST, LONGEST, LONGEST]);
        assert_eq!(lengths(SHORTEST, 10_000), [8192, 16_384, 16_384, 16_384, 16_384, 16_384]);
        assert_eq!(lengths(LONGEST, 10_000), [16_384; 6], "at once");
        assert_eq!(lengths(LONGEST, 60_000), [SHORTEST; 6]);
        assert_eq!(lengths(LONGEST, 1_000_000), [SHORTEST; 6]);
    }

    #[test]
    fn a_slice_that_was_cut_short_makes_none_longer() {
        assert_eq!(next(8192, 5000, 1), 8192);
        assert_eq!(next(LONGEST, 5000, TICKS + 1), SHORTEST);
        assert_eq!(next(8192, 5000, u64::MAX), SHORTEST);
        assert_eq!(next(SHORTEST, SHORTEST, TICKS), SHORTEST);
    }
}

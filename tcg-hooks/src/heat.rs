//! How often cold code was run, and how often its TB died young: what tier 0 is told by before it goes on.
//!
//! ```text
//!   pc ─▶ a set of WAYS spots: found? ─ yes ─▶ one run more; often enough ─▶ forgotten, to be translated
//!                                     ─ no ──▶ an empty spot; no empty one ─▶ the table doubles
//!                                              as large as it may be ─▶ in place of the coldest spot
//! ```
//!
//! No address is forgotten for ever. Below its limit the table forgets nothing. At its limit a spot may be lost before
//! it is hot, so one in [`LUCKY`] that take another's place is hot at once: code that is run again and again gets
//! translated however much of it there is, and code that is run once seldom does.

/// Executions before code is translated.
pub(crate) const WARM: u32 = 6;
/// Each early death multiplies that by four, up to four times.
const MAX_DEATHS: u32 = 4;
/// A TB that lived for this many instructions did not die young.
const OLD: u64 = 1 << 20;
/// Spots of a set: one line of the host's cache.
const WAYS: usize = 8;
/// Sets at first.
const SETS: usize = 512;
/// How seldom a spot that takes another's place is hot at once.
const LUCKY: u32 = 64;
/// Runs fit so many bits, and deaths so many; the rest is the pc's, without its lowest bit.
const RUN_BITS: u32 = 11;
const DEATH_BITS: u32 = 3;

/// What is known of code at one pc, in a word: `pc / 2`, deaths, runs. Of a pc the 13 uppermost bits are left out: two
/// that differ in nothing else are one. Zero is empty: code at address 0 that has not run and not died.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Spot(u64);

impl Spot {
    const EMPTY: Spot = Spot(0);

    fn new(pc: u64) -> Spot {
        Spot(pc >> 1 << (RUN_BITS + DEATH_BITS))
    }
    fn is_of(self, pc: u64) -> bool {
        (self.0 ^ Spot::new(pc).0) >> (RUN_BITS + DEATH_BITS) == 0 && self != Spot::EMPTY
    }
    fn pc(self) -> u64 {
        self.0 >> (RUN_BITS + DEATH_BITS) << 1
    }
    fn runs(self) -> u32 {
        self.0 as u32 & ((1 << RUN_BITS) - 1)
    }
    fn deaths(self) -> u32 {
        (self.0 >> RUN_BITS) as u32 & ((1 << DEATH_BITS) - 1)
    }
    fn with(self, runs: u32, deaths: u32) -> Spot {
        Spot(Spot::new(self.pc()).0 | u64::from(deaths << RUN_BITS | runs))
    }
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Set([Spot; WAYS]);

const _: () =
    assert!(size_of::<Set>() == 64 && WARM << (2 * MAX_DEATHS) < 1 << RUN_BITS && MAX_DEATHS < 1 << DEATH_BITS);

/// The heat of cold code.
pub(crate) struct Heat {
    /// A power of two of them.
    sets: Vec<Set>,
    /// What is left of 64 bits but for an index of these.
    shift: u32,
    most: usize,
    /// Spots that took another's place.
    replaced: u32,
}

impl Heat {
    /// With a sixteenth of the code cache's bytes, at most: more spots than TBs of four instructions fit there.
    pub(crate) fn new(cache_bytes: usize) -> Heat {
        let most = (cache_bytes / 16 / size_of::<Set>()).max(SETS);
        Heat { sets: vec![Set([Spot::EMPTY; WAYS]); SETS], shift: 64 - SETS.ilog2(), most, replaced: 0 }
    }

    /// The set of a pc: the upper bits of a product, so that pcs any power of two apart have different ones, and
    /// those in steps are spread evenly.
    fn set(&mut self, pc: u64) -> &mut [Spot; WAYS] {
        let n = (Spot::new(pc).pc().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize;
        &mut self.sets[n].0
    }

    fn known(&mut self, pc: u64) -> Option<&mut Spot> {
        self.set(pc).iter_mut().find(|spot| spot.is_of(pc))
    }

    /// A spot for a pc that has none, still the one of what had it.
    fn make(&mut self, pc: u64) -> &mut Spot {
        while !self.set(pc).contains(&Spot::EMPTY) && 2 * self.sets.len() <= self.most {
            self.grow();
        }
        let coldest = self.set(pc).iter_mut().min_by_key(|s| (**s != Spot::EMPTY, s.deaths(), s.runs()));
        coldest.expect("a set has spots")
    }

    fn grow(&mut self) {
        let sets = vec![Set([Spot::EMPTY; WAYS]); 2 * self.sets.len()];
        self.shift -= 1;
        for spot in std::mem::replace(&mut self.sets, sets).iter().flat_map(|set| set.0) {
            // A set becomes two, so there is room.
            if spot != Spot::EMPTY
                && let Some(place) = self.set(spot.pc()).iter_mut().find(|place| **place == Spot::EMPTY)
            {
                *place = spot;
            }
        }
    }

    /// Counts a run of the code at `pc`, which is about to begin; is it worth translating?
    pub(crate) fn count_run(&mut self, pc: u64) -> bool {
        if let Some(spot) = self.known(pc) {
            let (runs, deaths) = (spot.runs() + 1, spot.deaths());
            let hot = runs >= WARM << (2 * deaths);
            // What is translated needs no spot; deaths are remembered.
            *spot = if !hot {
                spot.with(runs, deaths)
            } else if deaths == 0 {
                Spot::EMPTY
            } else {
                spot.with(0, deaths)
            };
            return hot;
        }
        let spot = self.make(pc);
        let others = *spot != Spot::EMPTY;
        *spot = Spot::new(pc).with(1, 0);
        self.replaced += u32::from(others);
        others && self.replaced.is_multiple_of(LUCKY)
    }

    /// The code at `pc` is part of a region that was just translated: runs counted before do not make it the start of one
    /// more. Deaths are remembered.
    pub(crate) fn cool(&mut self, pc: u64) {
        if let Some(spot) = self.known(pc) {
            *spot = if spot.deaths() == 0 { Spot::EMPTY } else { spot.with(0, spot.deaths()) };
        }
    }

    /// The TB at `pc` died after `age` instructions because its bytes were written.
    /// Returns how often it must run before it is translated again.
    pub(crate) fn died(&mut self, pc: u64, age: u64) -> u32 {
        let before = self.known(pc).map(|spot| spot.deaths());
        let deaths = if age > OLD { 0 } else { (before.unwrap_or(0) + 1).min(MAX_DEATHS) };
        match self.known(pc) {
            Some(spot) => *spot = if deaths == 0 { Spot::EMPTY } else { spot.with(0, deaths) },
            None if deaths == 0 => {}
            None => *self.make(pc) = Spot::new(pc).with(0, deaths),
        }
        WARM << (2 * deaths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CACHE: usize = 64 << 20;

    #[test]
    fn code_is_hot_after_some_runs_and_colder_after_each_early_death() {
        let mut heat = Heat::new(CACHE);
        let runs = |heat: &mut Heat| (1..).find(|_| heat.count_run(0x8000_0000)).unwrap_or(0);
        assert_eq!(runs(&mut heat), WARM);
        heat.died(0x8000_0000, 10);
        assert_eq!(runs(&mut heat), 4 * WARM);
        for _ in 0..100 {
            heat.died(0x8000_0000, 10);
        }
        assert_eq!(runs(&mut heat), WARM << (2 * MAX_DEATHS));
        heat.died(0x8000_0000, OLD + 1);
        assert_eq!(runs(&mut heat), WARM);
    }

    #[test]
    fn a_block_of_a_region_that_was_translated_starts_cold_and_keeps_its_deaths() {
        let mut heat = Heat::new(CACHE);
        let runs = |heat: &mut Heat| (1..).find(|_| heat.count_run(0x8000_0000)).unwrap_or(0);
        for _ in 0..WARM - 1 {
            heat.count_run(0x8000_0000);
        }
        heat.cool(0x8000_0000);
        assert_eq!(runs(&mut heat), WARM);
        heat.died(0x8000_0000, 10);
        heat.count_run(0x8000_0000);
        heat.cool(0x8000_0000);
        assert_eq!(runs(&mut heat), 4 * WARM);
    }

    /// How many rounds over these pcs it takes until each was hot once.
    fn rounds(heat: &mut Heat, pcs: &[u64]) -> u32 {
        let mut cold = pcs.to_vec();
        (1..10_000)
            .find(|_| {
                cold.retain(|&pc| !heat.count_run(pc));
                cold.is_empty()
            })
            .expect("all get hot")
    }

    #[test]
    fn code_is_hot_after_as_many_runs_whatever_the_distance_and_however_much_there_is() {
        for shift in 1..44 {
            let pcs: Vec<u64> = (0..64).map(|n| 0x8000_0000 + (n << shift)).collect();
            assert_eq!(rounds(&mut Heat::new(CACHE), &pcs), WARM, "64 functions {} bytes apart", 1u64 << shift);
        }
        for step in [2, 4, 100, 4096] {
            let pcs: Vec<u64> = (0..100_000).map(|n| 0x8000_0000 + n * step).collect();
            let mut heat = Heat::new(CACHE);
            assert_eq!(rounds(&mut heat, &pcs), WARM, "100,000 blocks {step} bytes apart");
            assert!(heat.sets.len() * 64 <= CACHE / 16, "{} sets", heat.sets.len());
        }
    }

    #[test]
    fn deaths_are_remembered_whatever_the_distance() {
        let mut heat = Heat::new(CACHE);
        let pcs: Vec<u64> = (1..32).map(|shift| 0x8000_0000 + (1 << shift)).collect();
        pcs.iter().for_each(|&pc| assert_eq!(heat.died(pc, 10), 4 * WARM));
        assert_eq!(rounds(&mut heat, &pcs), 4 * WARM);
    }

    #[test]
    fn a_table_at_its_limit_still_finds_what_is_hot() {
        let mut heat = Heat::new(0);
        let pcs: Vec<u64> = (0..50_000).map(|n| 0x8000_0000 + n * 64).collect();
        assert!(rounds(&mut heat, &pcs) < 500);
        assert_eq!(heat.sets.len(), SETS);
        // One run each, at ever new places: few are taken for hot.
        let hot = (0..1_000_000).filter(|n| heat.count_run(0x9000_0000 + n * 64)).count();
        assert!(hot <= 1_000_000 / LUCKY as usize, "{hot} of a million");
    }
}

//! How often cold code was run, and how often its TB died young: what tier 0 is told by before it goes on.
//!
//! ```text
//!   pc ─▶ a group of GROUP bytes ─┬─▶ its count, by tag ─▶ one run more; often enough ─▶ 0, and the code is translated
//!                                 └─ one is marked: a TB at such a pc died ─▶ a set of WAYS spots: found? ─▶ a count and limit
//!   a count   died tag tag tag tag runs runs runs                                                           of its own
//! ```
//!
//! No address is forgotten for ever. Of a pc only some bits of a hash are kept: some pairs in a hundred share a count, by chance
//! whatever their distance, and the first of them that is hot begins it again. Without the tags half of 100,000 blocks were hot
//! before their time, in no order, and regions were translated that overlap: twice the instructions. When half of the counts
//! are in use, they begin again as twice as many. At the limit they begin again as as many, and from then on one first run in
//! [`LUCKY`] is enough: code that is run again and again gets translated however much of it there is, and code that is run once
//! seldom does.
//!
//! A spot with the pc for all cold code took eight times the memory: a line of the host's cache for each block that runs
//! once, and page faults that took longer than the looking.

/// Executions before code is translated.
pub(crate) const WARM: u32 = 6;
/// Each early death multiplies that by four, up to four times.
const MAX_DEATHS: u32 = 4;
/// A TB that lived for this many instructions did not die young.
const OLD: u64 = 1 << 20;
/// Counts at least, and at first if there may be so many: enough for 100,000 blocks before they begin again.
const COUNTS: usize = 4096;
const AT_FIRST: usize = 1 << 18;
/// Counts that a pc may have one of: as many as are loaded at once.
const GROUP: usize = 4;
/// The mark of a group, in one of its counts: TBs at pcs of the group died young.
const DIED: u8 = 0x80;
/// Bits of a pc's hash.
const TAG: u8 = 0x78;
/// Runs so far.
const RUNS: u8 = 7;
/// How seldom a first run is enough, at the limit.
const LUCKY: u32 = 64;
/// Spots of a set: one line of the host's cache.
const WAYS: usize = 8;
/// Sets at first.
const SETS: usize = 8;
/// Runs fit so many bits, and deaths so many; the rest is the pc's, without its lowest bit.
const RUN_BITS: u32 = 11;
const DEATH_BITS: u32 = 3;

const _: () = assert!(
    WARM <= RUNS as u32
        && COUNTS.is_multiple_of(GROUP)
        && WARM << (2 * MAX_DEATHS) < 1 << RUN_BITS
        && MAX_DEATHS < 1 << DEATH_BITS
);

/// A hash of a pc; its upper bits are for an index. One product does not do: in steps of 64 bytes it puts up to 70 pcs in
/// one place, and leaves others empty.
#[inline]
pub(crate) const fn spread(pc: u64) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let product = (pc >> 1).wrapping_mul(ODD);
    (product ^ product >> 29).wrapping_mul(ODD)
}

/// The heat of cold code.
pub(crate) struct Heat {
    /// A power of two of them.
    counts: Vec<u8>,
    /// What is left of 64 bits but for an index of these.
    shift: u32,
    /// Those that are not 0.
    used: usize,
    most: usize,
    /// First runs since the counts first began again at the limit.
    first_runs: Option<u32>,
    dead: Dead,
}

impl Heat {
    /// With a 64th of the code cache's bytes for counts, at most, and the same for what is known of the dead.
    pub(crate) fn new(cache_bytes: usize) -> Heat {
        let most = (cache_bytes / 64).next_power_of_two().max(COUNTS);
        let counts = most.min(AT_FIRST);
        Heat {
            // Zeroes that cost nothing until they are counted in.
            counts: vec![0; counts],
            shift: 64 - counts.ilog2(),
            used: 0,
            most,
            first_runs: None,
            dead: Dead::new(most / size_of::<Set>()),
        }
    }

    /// Where the group of `pc` begins, and its tag.
    #[inline]
    fn group(&self, pc: u64) -> (usize, u8) {
        let hash = spread(pc);
        ((hash >> self.shift) as usize & !(GROUP - 1), hash as u8 & TAG)
    }

    /// The count of `pc`, or an unused one of its group; one of another pc if there is none.
    #[inline]
    fn place(&self, (at, tag): (usize, u8)) -> usize {
        let mut place = at;
        for n in (at..at + GROUP).rev() {
            let count = self.counts[n];
            if count != 0 && count & TAG == tag {
                return n;
            }
            if count == 0 {
                place = n;
            }
        }
        place
    }

    /// Counts a run of the code at `pc`, which is about to begin; is it worth translating?
    #[inline]
    pub(crate) fn count_run(&mut self, pc: u64) -> bool {
        let group = self.group(pc);
        if self.counts[group.0..group.0 + GROUP].iter().fold(0, |all, count| all | count) & DIED != 0
            && let Some(hot) = self.count_dead(pc)
        {
            return hot;
        }
        let n = self.place(group);
        let count = self.counts[n];
        if u32::from(count & RUNS) + 1 < WARM {
            self.counts[n] = if count == 0 { group.1 | 1 } else { count + 1 };
            return count == 0 && self.first_run();
        }
        self.clear(n);
        true
    }

    /// Begins a count again; a mark stays.
    #[inline]
    fn clear(&mut self, n: usize) {
        let marked = self.counts[n] & DIED != 0;
        self.used -= usize::from(!marked);
        self.counts[n] = if marked { self.counts[n] & !RUNS } else { 0 };
    }

    #[inline]
    fn first_run(&mut self) -> bool {
        self.used += 1;
        2 * self.used > self.counts.len() && self.crowded()
            || self.first_runs.as_mut().is_some_and(|runs| {
                *runs = runs.wrapping_add(1);
                runs.is_multiple_of(LUCKY)
            })
    }

    /// Counts a run at a pc that has a spot.
    #[inline(never)]
    fn count_dead(&mut self, pc: u64) -> Option<bool> {
        let spot = self.dead.known(pc)?;
        let runs = spot.runs() + 1;
        let hot = runs >= WARM << (2 * spot.deaths());
        *spot = spot.with(if hot { 0 } else { runs }, spot.deaths());
        Some(hot)
    }

    /// Begins again with empty counts, more of them if there may be. Never a reason to translate.
    #[cold]
    #[inline(never)]
    fn crowded(&mut self) -> bool {
        let more = 2 * self.counts.len();
        if more <= self.most {
            self.shift -= 1;
            // Not `resize`: new zeroes cost nothing until they are counted in.
            self.counts = vec![0; more];
        } else {
            self.counts.fill(0);
            self.first_runs.get_or_insert(0);
        }
        self.used = 0;
        let dead: Vec<u64> = self.dead.pcs().collect();
        dead.into_iter().for_each(|pc| self.mark(pc));
        false
    }

    fn mark(&mut self, pc: u64) {
        let group = self.group(pc);
        let n = self.place(group);
        self.set(n, group.1, self.counts[n] & RUNS | DIED);
    }

    /// Gives count `n` these runs, or this mark; a tag if it was unused.
    fn set(&mut self, n: usize, tag: u8, to: u8) {
        let count = self.counts[n];
        self.used += usize::from(count == 0);
        self.counts[n] = to | count & DIED | if count == 0 { tag } else { count & TAG };
    }

    /// The code at `pc` is part of a region that was just translated: runs counted before do not make it the start of one
    /// more. Deaths are remembered.
    pub(crate) fn cool(&mut self, pc: u64) {
        if let Some(spot) = self.dead.known(pc) {
            *spot = spot.with(0, spot.deaths());
            return;
        }
        let group = self.group(pc);
        let n = self.place(group);
        // Not another's.
        if self.counts[n] & TAG == group.1 && self.counts[n] != 0 {
            self.clear(n);
        }
    }

    /// The code at `pc` was hot a moment ago, and nothing wrote to it: its next run is worth translating.
    pub(crate) fn kindle(&mut self, pc: u64) {
        if let Some(spot) = self.dead.known(pc) {
            *spot = spot.with((WARM << (2 * spot.deaths())) - 1, spot.deaths());
            return;
        }
        let group = self.group(pc);
        self.set(self.place(group), group.1, (WARM - 1) as u8);
    }

    /// The code at `pc` goes on where a region was cut that was just translated: it is as hot, though it was cooled perhaps when
    /// a region before that one covered it. Not so if a TB there died.
    pub(crate) fn follow(&mut self, pc: u64) {
        if self.dead.known(pc).is_none() {
            let group = self.group(pc);
            self.set(self.place(group), group.1, (WARM - 1) as u8);
        }
    }

    /// The TB at `pc` died after `age` instructions because its bytes were written.
    /// Returns how often it must run before it is translated again.
    pub(crate) fn died(&mut self, pc: u64, age: u64) -> u32 {
        let known = self.dead.known(pc);
        let before = known.as_ref().map(|spot| spot.deaths());
        let deaths = if age > OLD { 0 } else { (before.unwrap_or(0) + 1).min(MAX_DEATHS) };
        match known {
            Some(spot) => *spot = if deaths == 0 { Spot::EMPTY } else { spot.with(0, deaths) },
            None if deaths == 0 => {}
            None => {
                *self.dead.make(pc) = Spot::new(pc).with(0, deaths);
                self.mark(pc);
            }
        }
        WARM << (2 * deaths)
    }
}

/// What is known of code whose TB died young at one pc, in a word: `pc / 2`, deaths, runs. Of a pc the 13 uppermost bits
/// are left out: two that differ in nothing else are one. Zero is empty, as a spot has a death.
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

const _: () = assert!(size_of::<Set>() == 64);

/// The pcs whose TBs died young. A pc goes into its set; the table doubles when that is full, and at its limit the spot of
/// fewest deaths and runs gives way.
struct Dead {
    /// A power of two of them.
    sets: Vec<Set>,
    /// As of the counts.
    shift: u32,
    most: usize,
}

impl Dead {
    fn new(most: usize) -> Dead {
        Dead { sets: vec![Set([Spot::EMPTY; WAYS]); SETS], shift: 64 - SETS.ilog2(), most }
    }

    fn set(&mut self, pc: u64) -> &mut [Spot; WAYS] {
        // The pc as a spot has it.
        let n = (spread(Spot::new(pc).pc()) >> self.shift) as usize;
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

    fn pcs(&self) -> impl Iterator<Item = u64> {
        self.sets.iter().flat_map(|set| set.0).filter(|spot| *spot != Spot::EMPTY).map(Spot::pc)
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

    #[test]
    fn code_that_is_kindled_is_hot_at_its_next_run_and_keeps_its_deaths() {
        let mut heat = Heat::new(CACHE);
        let runs = |heat: &mut Heat| (1..).find(|_| heat.count_run(0x8000_0000)).unwrap_or(0);
        heat.kindle(0x8000_0000);
        assert_eq!((heat.used, runs(&mut heat), heat.used, runs(&mut heat)), (1, 1, 0, WARM));
        heat.died(0x8000_0000, 10);
        heat.kindle(0x8000_0000);
        assert_eq!((runs(&mut heat), runs(&mut heat)), (1, 4 * WARM));
    }

    #[test]
    fn code_behind_a_region_that_was_cut_is_hot_at_its_next_run_unless_its_tb_died() {
        let mut heat = Heat::new(CACHE);
        let runs = |heat: &mut Heat| (1..).find(|_| heat.count_run(0x8000_0000)).unwrap_or(0);
        heat.follow(0x8000_0000);
        assert_eq!((runs(&mut heat), runs(&mut heat)), (1, WARM));
        heat.died(0x8000_0000, 10);
        heat.follow(0x8000_0000);
        assert_eq!(runs(&mut heat), 4 * WARM);
    }

    #[test]
    fn a_death_is_remembered_though_a_pc_of_the_same_count_gets_hot() {
        let mut heat = Heat::new(0);
        let dead = 0x8000_0000;
        let other =
            (1..).map(|n| dead + 2 * n).find(|&pc| heat.group(pc) == heat.group(dead)).expect("some share a count");
        assert_eq!(heat.died(dead, 10), 4 * WARM);
        assert_eq!(rounds(&mut heat, &[other]), WARM);
        assert_eq!(rounds(&mut heat, &[dead]), 4 * WARM);
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
            let rounds = rounds(&mut Heat::new(CACHE), &pcs);
            assert!((WARM..=2 * WARM).contains(&rounds), "64 functions {} bytes apart: {rounds} rounds", 1u64 << shift);
        }
        for step in [2, 4, 100, 4096] {
            let pcs: Vec<u64> = (0..100_000).map(|n| 0x8000_0000 + n * step).collect();
            let mut heat = Heat::new(CACHE);
            let rounds = rounds(&mut heat, &pcs);
            assert!((WARM..=3 * WARM).contains(&rounds), "100,000 blocks {step} bytes apart: {rounds} rounds");
            assert!(heat.counts.len() <= 262_144, "{} counts", heat.counts.len());
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
        assert_eq!(heat.counts.len(), COUNTS);
        // One run each, at ever new places: few are taken for hot.
        let hot = (0..1_000_000).filter(|n| heat.count_run(0x9000_0000 + n * 64)).count();
        assert!(hot <= 2_000_000 / LUCKY as usize, "{hot} of a million");
    }

    #[test]
    fn code_that_runs_once_is_not_hot_for_sharing_counts() {
        for step in [2, 12, 64, 4096] {
            let mut heat = Heat::new(CACHE);
            let hot = (0..400_000).filter(|n| heat.count_run(0x8000_0000 + n * step)).count();
            assert!(hot <= 400, "{hot} of 400,000 blocks {step} bytes apart");
        }
    }

    #[test]
    fn deaths_outlive_any_number_of_cold_blocks_and_the_counts_in_use_are_counted() {
        for cache in [0, CACHE] {
            let mut heat = Heat::new(cache);
            let dead: Vec<u64> = (0..16).map(|n| 0x8000_0000 + 4096 * n).collect();
            dead.iter().for_each(|&pc| assert_eq!(heat.died(pc, 10), 4 * WARM));
            for n in 0..1_000_000u64 {
                heat.count_run(0x9000_0000 + 8 * n);
                if n % 3 == 0 {
                    heat.cool(0x9000_0000 + 8 * (n / 2));
                }
            }
            assert_eq!(heat.used, heat.counts.iter().filter(|count| **count != 0).count());
            assert_eq!(rounds(&mut heat, &dead), 4 * WARM);
        }
    }
}

//! Time by `rdtsc`: what a guest pays for `mtime` when it polls.
//!
//! ```text
//!   ticks(): line valid at rdtsc()?  ── yes ──▶ base + (tsc - origin) * rate / 2^64 ──▶ max with `last`
//!              │ no: not measured yet, run out, or being replaced                            ▲
//!              └─▶ Instant ──────────────────────────────────────────────────────────────────┘
//!                    └─ if nobody else is at it: take a sample; from two samples a new line, good for PERIOD
//! ```
//!
//! Each line starts at what `Instant` showed, and its rate is that of the time since the sample before: so errors do
//! not add up, and a host that adjusts its clock is followed. Nobody ever waits for a measurement.
//!
//! `last` is why time never goes back. `rdtsc` may run ahead of earlier loads, cores may differ by some cycles, and a
//! new line may start a little below the end of the old one. An `lfence` would answer the first of these only, and
//! costs more: `last` is written at most once a tick.
use super::host::ticks_since;
use super::{NANOS_PER_TICK, TICKS_PER_SECOND};
use core::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release, fence};
use std::time::Instant;

/// How much time a rate must have been measured over: samples are good to about 100 ns, so this gives 10 ppm at worst.
const SETTLE_NANOS: u64 = 20_000_000;
/// How long a line is good for. It also bounds what a counter that jumps (the host slept, or moved) can do to `last`.
const PERIOD_TICKS: u64 = TICKS_PER_SECOND / 4;
/// After so many jumps the counter is not what CPUID promised, and `Instant` remains.
const JUMPS_ALLOWED: u32 = 4;

#[derive(Debug)]
pub(super) struct Tsc {
    line: Line,
    last: Last,
    survey: Mutex<Survey>,
}

impl Tsc {
    /// `None` if the counter stops or changes its pace with the core's.
    pub(super) fn new(start: Instant) -> Option<Tsc> {
        is_invariant().then(|| Tsc {
            line: Line::default(),
            last: Last::default(),
            survey: Mutex::new(Survey { at: Sample::take(start), rate: None, jumps: 0 }),
        })
    }

    #[inline]
    pub(super) fn ticks(&self, start: Instant) -> u64 {
        let t = match self.line.at(rdtsc()) {
            Some(t) => t,
            None => self.by_instant(start),
        };
        self.last.not_before(t)
    }

    #[cold]
    fn by_instant(&self, start: Instant) -> u64 {
        let now = ticks_since(start);
        // One reader measures, the others go on.
        if let Ok(mut survey) = self.survey.try_lock()
            && survey.is_due(now)
        {
            survey.add(Sample::take(start), &self.line);
        }
        now
    }
}

/// The greatest time anybody was told. Alone in its cache line: it changes with each tick, a line does not.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Last(AtomicU64);

impl Last {
    // Relaxed: the order of one atomic's values is all that is asked. Only `fetch_max` writes it, so that order never
    // falls; what a call returns is at most the value it left or saw here, and a call that happens after it, on any
    // thread, sees that value or a later one (coherence), and returns no less.
    #[inline]
    fn not_before(&self, t: u64) -> u64 {
        let last = self.0.load(Relaxed);
        if t <= last { last } else { self.0.fetch_max(t, Relaxed).max(t) }
    }
}

/// Ticks as a straight line over counter values `origin .. origin + length`; empty at first. A seqlock: `version` is
/// odd while the holder of the survey's lock, the only writer, replaces the rest.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line {
    version: AtomicU64,
    origin: AtomicU64,
    length: AtomicU64,
    base: AtomicU64,
    rate: AtomicU64,
}

impl Line {
    #[inline]
    fn at(&self, tsc: u64) -> Option<u64> {
        // Acquire pairs with the Release that ends `replace`: all of that version's fields, or later ones, are seen.
        // If one was later, the Acquire fence pairs with the Release fence before it was written, so the second look
        // at `version` sees the odd number or what followed.
        let version = self.version.load(Acquire);
        let since = tsc.wrapping_sub(self.origin.load(Relaxed));
        let length = self.length.load(Relaxed);
        let (base, rate) = (self.base.load(Relaxed), self.rate.load(Relaxed));
        fence(Acquire);
        if version & 1 != 0 || self.version.load(Relaxed) != version || since >= length {
            return None;
        }
        Some(base.wrapping_add(((u128::from(since) * u128::from(rate)) >> 64) as u64))
    }

    /// A line from `at` on. Only for the holder of the survey's lock.
    fn replace(&self, at: Sample, rate: u64) {
        let length = (u128::from(PERIOD_TICKS) << 64) / u128::from(rate.max(1));
        let version = self.version.load(Relaxed);
        self.version.store(version.wrapping_add(1), Relaxed);
        fence(Release);
        self.origin.store(at.tsc, Relaxed);
        self.length.store(u64::try_from(length).unwrap_or(u64::MAX), Relaxed);
        self.base.store(at.nanos / NANOS_PER_TICK, Relaxed);
        self.rate.store(rate, Relaxed);
        self.version.store(version.wrapping_add(2), Release);
    }
}

/// The counter and the clock at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    tsc: u64,
    nanos: u64,
}

impl Sample {
    /// Of a few tries the one that was interrupted least.
    fn take(start: Instant) -> Sample {
        let mut best = (u64::MAX, Sample { tsc: 0, nanos: 0 });
        for _ in 0..5 {
            let before = rdtsc();
            let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let took = rdtsc().wrapping_sub(before);
            if took < best.0 {
                best = (took, Sample { tsc: before.wrapping_add(took / 2), nanos });
            }
        }
        best.1
    }

    /// Ticks per count since `earlier`, times 2^64. `None` if that is no number, or for a counter slower than ticks.
    fn rate_since(self, earlier: Sample) -> Option<u64> {
        let nanos = u128::from(self.nanos.checked_sub(earlier.nanos)?);
        let counts = u128::from(self.tsc.checked_sub(earlier.tsc)?);
        let rate = (nanos << 64).checked_div(counts * u128::from(NANOS_PER_TICK))?;
        u64::try_from(rate).ok().filter(|&rate| rate != 0)
    }
}

/// What the measurements have shown.
#[derive(Debug)]
struct Survey {
    at: Sample,
    rate: Option<u64>,
    jumps: u32,
}

impl Survey {
    fn is_due(&self, now: u64) -> bool {
        self.jumps < JUMPS_ALLOWED && now >= self.at.nanos.saturating_add(SETTLE_NANOS) / NANOS_PER_TICK
    }

    /// A rate unlike the one before (by 1,000 ppm; clocks are steered by 500 at most) means that the counter jumped:
    /// then all starts afresh.
    fn add(&mut self, now: Sample, line: &Line) {
        let measured = now.rate_since(self.at);
        self.at = now;
        let steady = |new: u64| self.rate.is_none_or(|old| new.abs_diff(old) <= old >> 10);
        match measured {
            Some(rate) if steady(rate) => {
                self.rate = Some(rate);
                line.replace(now, rate);
            }
            _ => {
                self.rate = None;
                self.jumps += 1;
            }
        }
    }
}

#[inline]
fn rdtsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and it touches no memory.
    unsafe { _rdtsc() }
}

/// CPUID 0x8000_0007, EDX bit 8: the counter runs at one pace in all power states.
fn is_invariant() -> bool {
    // A safe function in newer compilers than our oldest.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 CPU has the instruction and leaf 0x8000_0000, which names the last leaf there is.
    let cpuid = |leaf| unsafe { __cpuid(leaf) };
    cpuid(0x8000_0000).eax >= 0x8000_0007 && cpuid(0x8000_0007).edx & (1 << 8) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// A counter of 3 GHz, `seconds` after the clock's start.
    fn sample(seconds: u64) -> Sample {
        Sample { tsc: 7_000 + seconds * 3 * SECOND, nanos: seconds * SECOND }
    }

    fn survey() -> (Survey, Line) {
        (Survey { at: sample(0), rate: None, jumps: 0 }, Line::default())
    }

    #[test]
    fn a_line_holds_for_its_period_and_no_longer() {
        let (mut survey, line) = survey();
        assert_eq!(line.at(7_000), None, "nothing measured");
        survey.add(sample(1), &line);
        let origin = sample(1).tsc;
        assert_eq!(line.at(origin), Some(TICKS_PER_SECOND));
        assert_eq!(line.at(origin + 300 * 1_000 + 1), Some(TICKS_PER_SECOND + 1_000));
        assert_eq!(line.at(origin - 1), None, "a counter that went back");
        let end = origin + 3 * SECOND / 4;
        assert!(line.at(end - 3).is_some_and(|t| t.abs_diff(TICKS_PER_SECOND + PERIOD_TICKS) <= 1));
        assert_eq!(line.at(end + 3), None);
    }

    #[test]
    fn a_counter_that_jumps_is_measured_again_and_one_that_keeps_jumping_is_given_up() {
        let (mut survey, line) = survey();
        survey.add(sample(1), &line);
        let (first, version) = (survey.rate, line.version.load(Relaxed));
        survey.add(Sample { tsc: 50, ..sample(2) }, &line);
        assert_eq!((survey.rate, line.version.load(Relaxed)), (None, version), "back to 0: no line from that");
        survey.add(Sample { tsc: 50 + 3 * SECOND, ..sample(3) }, &line);
        assert_eq!(survey.rate, first);
        assert_eq!(line.at(50 + 3 * SECOND), Some(3 * TICKS_PER_SECOND));
        assert!(survey.is_due(4 * TICKS_PER_SECOND));
        for n in 4..12 {
            survey.add(Sample { tsc: n % 2, ..sample(n) }, &line);
        }
        assert!(!survey.is_due(u64::MAX));
    }

    #[test]
    fn what_was_told_is_not_taken_back() {
        let last = Last::default();
        assert_eq!(last.not_before(5), 5);
        assert_eq!(last.not_before(3), 5);
        assert_eq!(last.not_before(6), 6);
    }

    #[test]
    fn the_counter_takes_over_soon() {
        // A busy host may interrupt each try of a sample, which then looks like a jump.
        let mut seen = Vec::new();
        for _ in 0..20 {
            let start = Instant::now();
            let Some(tsc) = Tsc::new(start) else { return };
            while start.elapsed().as_nanos() < 2 * u128::from(SETTLE_NANOS) {
                tsc.ticks(start);
            }
            let survey = tsc.survey.lock().unwrap();
            if survey.rate.is_some() && survey.jumps == 0 {
                return;
            }
            seen.push(format!("{survey:?}"));
        }
        panic!("{seen:#?}");
    }
}

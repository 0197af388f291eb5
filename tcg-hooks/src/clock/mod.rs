//! Guest time: `mtime` at 10 MHz, from the host's clock or from the instruction count.
//!
//! ```text
//!   host    mtime = host time since start / 100 ns + shift      Instant, or rdtsc measured by it (host, tsc)
//!   insns   mtime = (retired + idle) / 100         + shift      1 instruction = 1 ns: a run repeats exactly
//!                                                               harts that take turns: `idle` has what the others retired
//! ```
//!
//! With `insns`, the vCPU publishes its count before anybody may look (a device access, a read of `time`, a safe
//! point), and a hart that waits in `wfi` adds what it skipped to `idle` instead of sleeping.
mod host;
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod tsc;

pub(crate) use host::{HostClock, cpu_time};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

/// Ticks of `mtime` in a second.
pub const TICKS_PER_SECOND: u64 = 10_000_000;
pub(crate) const NANOS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SECOND;
/// Instructions in a tick when they are the clock.
pub const INSNS_PER_TICK: u64 = 100;

/// The clock that `mtime` and `time` show; shared by harts and devices.
#[derive(Debug)]
pub struct Clock {
    source: Source,
    /// What the guest, by writing `mtime`, or a restore has added (wrapping); or [`HELD`].
    shift: AtomicU64,
    /// What `mtime` shows while it is held.
    held: AtomicU64,
}

/// A restore has set the host's time, and nothing has looked yet: it goes on from the first look, so that a restore need not ask
/// the host for the time.
const HELD: u64 = u64::MAX;

notdirty_softmmu::fields! {
    /// The guest's time at one moment.
    pub struct ClockState: "clock", version 1 {
        mtime: u64,
        retired: u64,
        idle: u64,
    }
}

#[derive(Debug)]
enum Source {
    Host(HostClock),
    Insns { retired: AtomicU64, idle: AtomicU64 },
}

impl Clock {
    /// The host's monotonic time, from 0 now.
    pub fn host() -> Clock {
        Clock { source: Source::Host(HostClock::new()), shift: AtomicU64::new(0), held: AtomicU64::new(0) }
    }

    /// The instruction count.
    pub fn insns() -> Clock {
        Clock {
            source: Source::Insns { retired: AtomicU64::new(0), idle: AtomicU64::new(0) },
            shift: AtomicU64::new(0),
            held: AtomicU64::new(0),
        }
    }

    /// Whether instructions are the clock, so that a run depends on nothing else.
    pub fn is_insns(&self) -> bool {
        matches!(self.source, Source::Insns { .. })
    }

    // Relaxed throughout: the values are only numbers, they publish no other memory. A reader on another thread sees
    // some recent count, which is all that a parallel hart could expect.
    #[inline]
    fn ticks(&self) -> u64 {
        match &self.source {
            Source::Host(host) => host.ticks(),
            Source::Insns { retired, idle } => retired.load(Relaxed).wrapping_add(idle.load(Relaxed)) / INSNS_PER_TICK,
        }
    }

    /// The guest's time now.
    #[inline]
    pub fn mtime(&self) -> u64 {
        // Acquire: `held` is of this.
        match self.shift.load(Acquire) {
            HELD => self.let_go(),
            shift => self.ticks().wrapping_add(shift),
        }
    }

    /// The first look behind a restore.
    #[cold]
    fn let_go(&self) -> u64 {
        let (at, ticks) = (self.held.load(Relaxed), self.ticks());
        let shift = at.wrapping_sub(ticks);
        // One tick less, rather than held for ever.
        let shift = if shift == HELD { shift - 1 } else { shift };
        match self.shift.compare_exchange(HELD, shift, Relaxed, Relaxed) {
            Ok(_) => ticks.wrapping_add(shift),
            // Another thread has looked, or set it, meanwhile.
            Err(other) => ticks.wrapping_add(other),
        }
    }

    /// Makes `mtime` read `value` now, and go on from there.
    pub fn set_mtime(&self, value: u64) {
        let shift = value.wrapping_sub(self.ticks());
        self.shift.store(if shift == HELD { shift - 1 } else { shift }, Relaxed);
    }

    /// The guest's time as at power-on: `mtime` reads 0. With an instruction clock nothing of earlier runs stays, so that a run
    /// after a reset is the same to the instruction.
    pub fn reset(&self) {
        if let Source::Insns { retired, idle } = &self.source {
            retired.store(0, Relaxed);
            idle.store(0, Relaxed);
        }
        self.set_mtime(0);
    }

    /// What it shows, and what is behind that, to be [restored](Self::restore).
    pub fn save(&self) -> ClockState {
        let (retired, idle) = match &self.source {
            Source::Insns { retired, idle } => (retired.load(Relaxed), idle.load(Relaxed)),
            Source::Host(_) => (0, 0),
        };
        ClockState { mtime: self.mtime(), retired, idle }
    }

    /// The guest's time as it was. The host's goes on from there when it is looked at.
    pub fn restore(&self, state: &ClockState) {
        match &self.source {
            Source::Insns { retired, idle } => {
                retired.store(state.retired, Relaxed);
                idle.store(state.idle, Relaxed);
                self.set_mtime(state.mtime);
            }
            Source::Host(_) => {
                self.held.store(state.mtime, Relaxed);
                self.shift.store(HELD, Release);
            }
        }
    }

    /// Tells how many instructions the hart has retired. Nothing, if the host is the clock.
    pub fn publish(&self, retired: u64) {
        if let Source::Insns { retired: published, .. } = &self.source {
            published.store(retired, Relaxed);
        }
    }

    /// From now on another hart tells how many it has retired, so many at first: time goes on from where it is.
    pub(crate) fn turn(&self, now: u64) {
        if let Source::Insns { retired, idle } = &self.source {
            let before = retired.swap(now, Relaxed);
            idle.store(idle.load(Relaxed).wrapping_add(before.wrapping_sub(now)), Relaxed);
        }
    }

    /// A hart sleeps until `mtime` is `deadline`: with an instruction clock, time jumps there (never back).
    /// Returns whether it did; not if the host is the clock, nor if the count cannot reach so far.
    pub fn skip_to(&self, deadline: u64) -> bool {
        let Source::Insns { retired, idle } = &self.source else { return false };
        let (now, before) = (retired.load(Relaxed), idle.load(Relaxed));
        match self.insns_until(deadline) {
            Some(n) if n > 0 && now.wrapping_add(before).checked_add(n).is_some() => {
                idle.store(before.wrapping_add(n), Relaxed);
                true
            }
            _ => false,
        }
    }

    /// How many instructions may retire before `mtime` reaches `deadline`: a slice's length. `None` if the host is
    /// the clock, or if that is further away than a count can tell.
    pub fn insns_until(&self, deadline: u64) -> Option<u64> {
        let Source::Insns { retired, idle } = &self.source else { return None };
        let inside = retired.load(Relaxed).wrapping_add(idle.load(Relaxed)) % INSNS_PER_TICK;
        match deadline.saturating_sub(self.mtime()) {
            0 => Some(0),
            ticks => ticks.checked_mul(INSNS_PER_TICK).map(|n| n - inside),
        }
    }

    /// How long the host's clock takes until `mtime` reaches `deadline`: what a waiting hart may sleep. `None` if
    /// instructions are the clock, or if there is no such time (`u64::MAX` means no deadline).
    pub fn host_wait(&self, deadline: u64) -> Option<Duration> {
        match (&self.source, deadline) {
            (Source::Insns { .. }, _) | (_, u64::MAX) => None,
            _ => Some(Duration::from_nanos(deadline.saturating_sub(self.mtime()).saturating_mul(NANOS_PER_TICK))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_instructions_are_a_tick() {
        let c = Clock::insns();
        assert_eq!(c.mtime(), 0);
        c.publish(99);
        assert_eq!(c.mtime(), 0);
        c.publish(12_345);
        assert_eq!(c.mtime(), 123);
    }

    #[test]
    fn an_idle_hart_wakes_exactly_at_its_deadline() {
        let c = Clock::insns();
        c.publish(12_345);
        assert_eq!(c.insns_until(200), Some(7_655));
        assert!(c.skip_to(200));
        assert_eq!(c.mtime(), 200);
        assert_eq!(c.insns_until(200), Some(0));
        assert!(!c.skip_to(150), "time does not go back");
        c.publish(12_345 + 99);
        assert_eq!(c.mtime(), 200);
        c.publish(12_345 + 100);
        assert_eq!(c.mtime(), 201);
        assert_eq!(c.insns_until(u64::MAX), None);
        assert!(!c.skip_to(u64::MAX - 1), "too far to count");
        assert_eq!(c.mtime(), 201);
        assert_eq!(c.host_wait(300), None);
    }

    #[test]
    fn the_guest_may_set_its_time() {
        let c = Clock::insns();
        c.publish(1_000);
        c.set_mtime(5);
        assert_eq!(c.mtime(), 5);
        c.publish(2_000);
        assert_eq!(c.mtime(), 15);
        c.set_mtime(u64::MAX);
        c.publish(2_100);
        assert_eq!(c.mtime(), 0, "it wraps");
    }

    #[test]
    fn a_reset_leaves_no_part_of_a_tick_behind() {
        let c = Clock::insns();
        c.publish(1_230);
        assert!(c.skip_to(777));
        c.set_mtime(5);
        c.reset();
        assert_eq!((c.mtime(), c.insns_until(1)), (0, Some(100)));
    }

    #[test]
    fn host_time_goes_on_by_itself() {
        let c = Clock::host();
        let a = c.mtime();
        std::thread::sleep(Duration::from_millis(2));
        assert!(c.mtime() >= a + 20_000);
        c.publish(u64::MAX);
        assert!(!c.skip_to(u64::MAX - 1));
        assert_eq!(c.insns_until(5), None);
        assert_eq!(c.host_wait(0), Some(Duration::ZERO));
        assert_eq!(c.host_wait(u64::MAX), None);
        assert!(c.host_wait(c.mtime() + TICKS_PER_SECOND).is_some_and(|d| d > Duration::from_millis(900)));
    }
}

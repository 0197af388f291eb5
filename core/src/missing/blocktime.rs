//! How long vCPUs, and others, were held up by pages that were yet to come.
//!
//! ```text
//!   hart 0   ──▓▓▓▓▓▓────▓▓▓──      9 blocked
//!   hart 1   ────▓▓▓▓▓▓▓▓▓────      9 blocked
//!   all          ▓▓▓▓    ▓▓         5 overlapped: no hart runs
//! ```
//!
//! A wait begins and ends under the lock that a placer sets the page's bit under (states.rs): a page that is placed between a look
//! and a note leaves no wait that never ends. Nanoseconds, in 64 bits.

use core::time::Duration;
use std::time::Instant;

/// What waits for a page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Waiter {
    /// The vCPU with this number: it runs nothing meanwhile.
    Vcpu(u32),
    /// A thread of the host: a device, a debugger, a loader.
    Host,
}

/// What one vCPU was held up.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct VcpuBlocktime {
    /// In all, in nanoseconds.
    pub ns: u64,
    /// In so many waits.
    pub waits: u64,
}

/// How long pages were waited for, so far; waits that are under way count when they end.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Blocktime {
    /// By the vCPU's number.
    pub vcpus: Vec<VcpuBlocktime>,
    /// How long all vCPUs at once were held up, in nanoseconds; 0 as long as their number is not [told](super::MissingPages::set_vcpus).
    pub overlapped_ns: u64,
    /// Waits of vCPUs and of others.
    pub waits: u64,
    /// Those of others.
    pub host_waits: u64,
    /// What all waits took together, in nanoseconds.
    pub total_ns: u64,
    /// Waits by their length: element `n` has those of 2^n up to 2^(n+1) nanoseconds; shorter ones are in the first.
    pub distribution: [u64; 64],
}

impl Blocktime {
    /// The mean wait, in nanoseconds; 0 if there was none.
    pub fn mean_ns(&self) -> u64 {
        self.total_ns.checked_div(self.waits).unwrap_or(0)
    }

    /// At most what the given part of the waits took, such as 0.99, to the next power of two of nanoseconds.
    pub fn within_ns(&self, part: f64) -> u64 {
        let want = (self.waits as f64 * part).ceil() as u64;
        let mut seen = 0;
        let found = self.distribution.iter().position(|count| {
            seen += count;
            seen >= want
        });
        found.map_or(0, |n| 1u64.checked_shl(n as u32 + 1).unwrap_or(u64::MAX))
    }
}

/// The sums, under one lock.
pub(super) struct Times {
    sums: Blocktime,
    /// How many there are, and how many are held up.
    vcpus: u32,
    blocked: u32,
    /// Since when all are.
    all_since: Option<Instant>,
}

impl Default for Times {
    fn default() -> Self {
        let sums = Blocktime {
            vcpus: Vec::new(),
            overlapped_ns: 0,
            waits: 0,
            host_waits: 0,
            total_ns: 0,
            distribution: [0; 64],
        };
        Times { sums, vcpus: 0, blocked: 0, all_since: None }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Times {
    pub(super) fn set_vcpus(&mut self, vcpus: u32) {
        self.vcpus = vcpus;
    }

    pub(super) fn begin(&mut self, who: Waiter, now: Instant) {
        if let Waiter::Vcpu(_) = who {
            self.blocked += 1;
            if self.vcpus != 0 && self.blocked == self.vcpus {
                self.all_since = Some(now);
            }
        }
    }

    pub(super) fn end(&mut self, who: Waiter, since: Instant, now: Instant) {
        let ns = nanoseconds(now.saturating_duration_since(since));
        self.sums.waits += 1;
        self.sums.total_ns = self.sums.total_ns.saturating_add(ns);
        self.sums.distribution[ns.checked_ilog2().unwrap_or(0) as usize] += 1;
        let Waiter::Vcpu(number) = who else {
            self.sums.host_waits += 1;
            return;
        };
        self.blocked = self.blocked.saturating_sub(1);
        if let Some(since) = self.all_since.take() {
            self.sums.overlapped_ns += nanoseconds(now.saturating_duration_since(since));
        }
        // A number is a hart's: few.
        let number = number.min(0xffff) as usize;
        if self.sums.vcpus.len() <= number {
            self.sums.vcpus.resize(number + 1, VcpuBlocktime::default());
        }
        let vcpu = &mut self.sums.vcpus[number];
        vcpu.ns = vcpu.ns.saturating_add(ns);
        vcpu.waits += 1;
    }

    pub(super) fn sums(&self) -> Blocktime {
        let mut sums = self.sums.clone();
        if sums.vcpus.len() < self.vcpus as usize {
            sums.vcpus.resize(self.vcpus as usize, VcpuBlocktime::default());
        }
        sums
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_all_vcpus_wait_at_once_is_overlapped_and_each_wait_is_in_its_power_of_two() {
        let start = Instant::now();
        let at = |ns: u64| start + Duration::from_nanos(ns);
        let mut times = Times::default();
        times.set_vcpus(2);
        times.begin(Waiter::Vcpu(0), at(0));
        times.begin(Waiter::Host, at(1));
        times.begin(Waiter::Vcpu(1), at(10));
        times.end(Waiter::Vcpu(0), at(0), at(30));
        times.begin(Waiter::Vcpu(0), at(40));
        times.end(Waiter::Vcpu(1), at(10), at(45));
        times.end(Waiter::Vcpu(0), at(40), at(1064));
        times.end(Waiter::Host, at(1), at(1));
        let sums = times.sums();
        assert_eq!(sums.overlapped_ns, 20 + 5);
        assert_eq!(sums.vcpus, [VcpuBlocktime { ns: 30 + 1024, waits: 2 }, VcpuBlocktime { ns: 35, waits: 1 }]);
        assert_eq!((sums.waits, sums.host_waits, sums.total_ns), (4, 1, 1089));
        assert_eq!(sums.mean_ns(), 1089 / 4);
        let mut found: Vec<_> = sums.distribution.iter().enumerate().filter(|(_, count)| **count != 0).collect();
        assert_eq!(
            found.drain(..).map(|(n, count)| (n, *count)).collect::<Vec<_>>(),
            [(0, 1), (4, 1), (5, 1), (10, 1)]
        );
        assert_eq!((sums.within_ns(0.5), sums.within_ns(0.99)), (32, 2048));
    }
}

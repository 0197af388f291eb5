//! A limit on what each hart dirties: its own quota of pages a second, whatever the others do.
//!
//! ```text
//!   every 10 ms    ring of hart n: pages pushed since ─▶ bucket n: + quota × time − pages ─▶ below zero: a nap until it is paid
//! ```
//!
//! A page counts once between two takes of the log, as for the migration. Of its time a hart sleeps 99 % at most: a quota that would take
//! more is not met. Naps are of the port, so a hart that dirties little is never stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use notdirty_core::{RingLog, VcpuId};
use notdirty_softmmu::{AddressSpace, VcpuPort};

use super::pace::SLICE;
use super::{Migration, lock};
use crate::machine::migrate::MigrationError;

/// Entries of the rings, unless their number is given: a hart is told to sleep before they are full.
pub(super) const ENTRIES: u32 = 1 << 16;
/// The longest nap, and with it the most that is owed.
const MOST: Duration = SLICE.saturating_mul(99);
/// What was not used counts for so long.
const SAVED: Duration = Duration::from_millis(100);

struct Bucket {
    vcpu: VcpuId,
    /// As its ring counted last.
    pushed: u32,
    /// Pages that it may dirty; below zero, pages that it owes.
    pages: f64,
}

/// What each hart may dirty.
struct Buckets {
    /// Pages a second.
    quota: f64,
    all: Vec<Bucket>,
}

impl Buckets {
    fn new(quota: f64) -> Buckets {
        Buckets { quota: quota.max(1.0), all: Vec::new() }
    }

    /// So much time has passed, and the rings count this: how long each hart that owes pages is to sleep.
    fn pass(&mut self, time: Duration, counts: &[(VcpuId, u32)]) -> Vec<(VcpuId, Duration)> {
        let mut naps = Vec::new();
        for &(vcpu, pushed) in counts {
            let Some(bucket) = self.all.iter_mut().find(|bucket| bucket.vcpu == vcpu) else {
                self.all.push(Bucket { vcpu, pushed, pages: 0.0 });
                continue;
            };
            let dirtied = pushed.wrapping_sub(std::mem::replace(&mut bucket.pushed, pushed));
            let (least, most) = (-self.quota * MOST.as_secs_f64(), self.quota * SAVED.as_secs_f64());
            bucket.pages = (bucket.pages + self.quota * time.as_secs_f64() - f64::from(dirtied)).clamp(least, most);
            if bucket.pages < 0.0 {
                naps.push((vcpu, Duration::from_secs_f64(-bucket.pages / self.quota)));
            }
        }
        naps
    }
}

/// Each of these harts sleeps for so long from now on, and no other does.
fn put_to_sleep(ports: &[Arc<VcpuPort>], naps: &[(VcpuId, Duration)], now: Instant) {
    for &(vcpu, nap) in naps {
        ports.iter().filter(|port| port.id() == vcpu).for_each(|port| port.nap_until(now + nap));
    }
}

impl Migration {
    /// Holds harts to so many bytes of pages a second each, once it is told to, until the migration ends; on a thread of its own.
    pub(super) fn limit(&self, rings: Arc<RingLog>, space: &AddressSpace, bytes: u64) -> Result<(), MigrationError> {
        let (own, ports) = (self.clone(), space.vcpus().all());
        let mut buckets = Buckets::new(bytes as f64 / 4096.0);
        let limit = move || {
            let mut last = Instant::now();
            while lock(&own.0.talk).ended.is_none() {
                std::thread::sleep(SLICE);
                let now = Instant::now();
                let naps = buckets.pass(now - std::mem::replace(&mut last, now), &rings.pushed());
                if !own.is_throttled() {
                    continue;
                }
                put_to_sleep(&ports, &naps, now);
            }
            // Nothing is limited any more.
            let now = Instant::now();
            ports.iter().for_each(|port| port.nap_until(now));
        };
        let thread = std::thread::Builder::new().name("dirty limit".into()).spawn(limit);
        thread.map(drop).map_err(MigrationError::Host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    /// Pages a second that each hart dirties, if it would dirty so many while it runs.
    fn dirtied(quota: f64, wanted: &[f64]) -> Vec<f64> {
        let vcpus: Vec<_> = wanted.iter().map(|_| VcpuId::fresh()).collect();
        let (mut buckets, mut pushed) = (Buckets::new(quota), vec![0.0; wanted.len()]);
        let (mut until, slices) = (vec![0; wanted.len()], 10_000);
        for slice in 0..slices {
            for hart in 0..wanted.len() {
                if until[hart] <= slice {
                    pushed[hart] += wanted[hart] * SLICE.as_secs_f64();
                }
            }
            let counts: Vec<_> =
                vcpus.iter().zip(&pushed).map(|(vcpu, pushed)| (*vcpu, *pushed as u64 as u32)).collect();
            for (vcpu, nap) in buckets.pass(SLICE, &counts) {
                let hart = vcpus.iter().position(|other| *other == vcpu).unwrap();
                until[hart] = slice + 1 + (nap.as_secs_f64() / SLICE.as_secs_f64()) as usize;
            }
        }
        pushed.iter().map(|pages| pages / (slices as f64 * SLICE.as_secs_f64())).collect()
    }

    #[test]
    fn a_nap_is_of_the_hart_that_owes_pages_and_of_no_other() {
        let machine = Machine::builder().ram_size(1 << 20).harts(3).build().unwrap();
        let ports = machine.board.space.vcpus().all();
        assert_eq!(ports.len(), 3);
        put_to_sleep(&ports, &[(ports[1].id(), Duration::from_secs(3600))], Instant::now());
        let naps: Vec<_> = ports.iter().map(|port| port.nap_left().is_some()).collect();
        assert_eq!(naps, [false, true, false]);
    }

    #[test]
    fn each_hart_has_its_own_quota() {
        let near = |is: f64, wanted: f64| assert!((is - wanted).abs() < wanted / 10.0, "{is}, not {wanted}");
        // What is under it is as it was, beside ones that are far over it.
        let all = dirtied(2_000.0, &[150_000.0, 1_500.0, 10_000.0]);
        near(all[0], 2_000.0);
        near(all[1], 1_500.0);
        near(all[2], 2_000.0);
        // A quota that would let it run for less than 1 % of its time is not met.
        near(dirtied(10.0, &[1_000_000.0])[0], 10_000.0);
    }
}

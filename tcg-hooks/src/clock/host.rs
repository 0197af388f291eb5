//! The host's clock in ticks of `mtime`: `Instant`, and where the CPU allows it the time stamp counter in its place.
//! And what a thread has had of its CPU, for statistics that a busy host shall not change.
#[cfg(all(target_arch = "x86_64", not(miri)))]
use super::tsc::Tsc;
use super::{NANOS_PER_TICK, TICKS_PER_SECOND};
use std::time::{Duration, Instant};

/// Time since this was made. It never goes back, on whatever threads it is read.
#[derive(Debug)]
pub(crate) struct HostClock {
    start: Instant,
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    tsc: Option<Box<Tsc>>,
}

impl HostClock {
    pub(crate) fn new() -> HostClock {
        let start = Instant::now();
        HostClock {
            start,
            #[cfg(all(target_arch = "x86_64", not(miri)))]
            tsc: Tsc::new(start).map(Box::new),
        }
    }

    #[inline]
    pub(crate) fn ticks(&self) -> u64 {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        if let Some(tsc) = &self.tsc {
            return tsc.ticks(self.start);
        }
        ticks_since(self.start)
    }
}

/// CPU time of this thread.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours. It stays zero where there is no such clock.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Ticks since `start` by `Instant`, which promises not to go back.
pub(super) fn ticks_since(start: Instant) -> u64 {
    let gone = start.elapsed();
    gone.as_secs().wrapping_mul(TICKS_PER_SECOND).wrapping_add(u64::from(gone.subsec_nanos()) / NANOS_PER_TICK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
    use std::time::Duration;

    #[test]
    fn time_never_goes_back_on_several_threads_while_the_source_switches() {
        let clock = HostClock::new();
        // What some thread has been told, before anybody else asks again.
        let told = AtomicU64::new(0);
        let end = Instant::now() + Duration::from_millis(600);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    let mut mine = 0;
                    while Instant::now() < end {
                        for _ in 0..1_000 {
                            let before = told.load(SeqCst);
                            let now = clock.ticks();
                            assert!(now >= before, "{now} after another thread's {before}");
                            assert!(now >= mine, "{now} after {mine}");
                            mine = now;
                            told.fetch_max(now, SeqCst);
                        }
                    }
                });
            }
        });
        assert!(told.load(Relaxed) >= 6_000_000);
    }

    #[test]
    fn it_agrees_with_the_host_before_and_after_the_switch() {
        let clock = HostClock::new();
        let mut rounds = 0;
        while clock.start.elapsed() < Duration::from_millis(700) {
            // Between two looks at `Instant`: however long this thread was kept waiting, the clock must lie between.
            let low = ticks_since(clock.start);
            let t = clock.ticks();
            let high = ticks_since(clock.start);
            assert!(t + 1_000 >= low && t <= high + 1_000, "{low} <= {t} <= {high} by 100 us, round {rounds}");
            std::thread::sleep(Duration::from_millis(if rounds < 10 { 5 } else { 50 }));
            rounds += 1;
        }
    }
}

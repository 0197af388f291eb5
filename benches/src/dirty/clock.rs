//! Time of one thread. A machine that is busy with others lengthens what a wall clock shows, not this.

use super::row::Sample;

/// Nanoseconds that this thread has spent on a processor.
pub fn thread_nanos() -> u64 {
    nanos(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Nanoseconds on the wall.
pub fn wall_nanos() -> u64 {
    nanos(libc::CLOCK_MONOTONIC)
}

fn nanos(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours to write, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Times `work`, which did `units` units and returns what there is to check.
pub fn timed(units: f64, work: impl FnOnce() -> u64) -> Sample {
    let start = thread_nanos();
    let check = std::hint::black_box(work());
    Sample { total: (thread_nanos() - start) as f64, units, check }
}

/// Runs `work(0)` and `work(1)` on two threads that start together; the time is the mean of theirs, so that units
/// are those of one thread. Checks are added up.
pub fn timed_by_two(units: f64, work: impl Fn(usize) -> u64 + Sync) -> Sample {
    let together = std::sync::Barrier::new(2);
    let run = |n| {
        together.wait();
        timed(units, || work(n))
    };
    let (one, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| run(1));
        let one = run(0);
        (one, other.join().unwrap_or(Sample { total: f64::NAN, ..one }))
    });
    Sample { total: (one.total + other.total) / 2.0, units, check: one.check.wrapping_add(other.check) }
}

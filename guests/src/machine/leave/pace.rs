//! How much slower harts are made, and on how many threads pages go.

use std::time::Duration;

use notdirty_core::migration::Progress;

/// When harts are made slower, and by how much.
#[derive(Default)]
pub(super) struct Pace {
    /// Bytes that had gone by the last round.
    sent: u64,
    /// Rounds in a row in which half as much was dirtied as went.
    bad: u32,
    percent: u32,
}

impl Pace {
    /// After a round: how much of the time harts sleep from now on.
    pub(super) fn round(&mut self, progress: &Progress) -> u32 {
        let sent = progress.bytes - std::mem::replace(&mut self.sent, progress.bytes);
        // A good round ends the row: two bad ones an hour apart are none.
        self.bad = if progress.dirtied << 12 > sent / 2 { self.bad + 1 } else { 0 };
        if self.bad >= 2 {
            self.bad = 0;
            self.percent = if self.percent == 0 { 20 } else { (self.percent + 10).min(99) };
        }
        self.percent
    }
}

/// How long harts run between two sleeps.
pub(super) const SLICE: Duration = Duration::from_millis(10);

/// Threads that pages go by, or are written by.
pub(in crate::machine) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(8)
}

/// Runs it on so many threads, this one among them.
pub(in crate::machine) fn on_threads(count: usize, run: &(dyn Fn(usize) + Sync)) {
    std::thread::scope(|scope| {
        for n in 1..count {
            let thread = std::thread::Builder::new().name("migration".into());
            if thread.spawn_scoped(scope, move || run(n)).is_err() {
                run(n);
            }
        }
        run(0);
    });
}

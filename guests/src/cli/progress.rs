//! How a migration goes, for a person: a bar on a terminal, else a line for each round.
//!
//! ```text
//!   notdirty: round 3 [=======>    ] 612.00 MiB of 1.02 GiB, 2140 MB/s, 108331 dirty, 201 ms
//! ```

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;
use crate::machine::{LeaveOptions, MigrationStatus};

/// After so many rounds that came no nearer to the end it is told.
const STUCK: u64 = 5;
const TEMPLATE: &str = "notdirty: round {prefix} [{bar:12}] {binary_bytes} of {binary_total_bytes}, {wide_msg}";

pub(super) struct Show {
    /// How long the guest may stand still.
    downtime: Duration,
    bar: Option<ProgressBar>,
    /// Nothing is told but the end.
    json: bool,
    rounds: u64,
    /// That it may never end was said, or is not to be.
    warned: bool,
}

impl Show {
    pub(super) fn new(json: bool, options: &LeaveOptions) -> Show {
        let bar = (!json && io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            // A template that does not parse is the usual bar.
            let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.with_style(style.progress_chars("=> "))
        });
        let warned = options.auto_converge || options.dirty_limit.is_some();
        Show { downtime: options.limits.downtime, bar, json, rounds: 0, warned }
    }

    pub(super) fn tell(&mut self, status: &MigrationStatus) {
        let progress = &status.progress;
        if status.stuck >= STUCK && !self.warned {
            self.warned = true;
            let text = format!(
                "after {} rounds no less is dirty than before: it may never end; --auto-converge makes the guest slower, \
                 --downtime lets it stand still for longer than {:.0} ms, which would take {:.0} ms now",
                progress.rounds,
                self.downtime.as_secs_f64() * 1e3,
                progress.expected_downtime.as_secs_f64() * 1e3,
            );
            match &self.bar {
                Some(bar) => bar.suspend(|| say(&text)),
                None => say(&text),
            }
        }
        if let Some(bar) = &self.bar {
            bar.set_length(progress.bytes + (progress.left << 12));
            bar.set_position(progress.bytes);
            bar.set_prefix(progress.rounds.to_string());
            let (rate, downtime) = (progress.bandwidth / 1_000_000, progress.expected_downtime.as_millis());
            bar.set_message(format!("{rate} MB/s, {} dirty, {downtime} ms", progress.left));
        } else if !self.json && progress.rounds != self.rounds {
            say(&format!(
                "round {}: {} MiB sent, {:.0} MB/s, {} pages dirty, {:.1} ms to stand still",
                progress.rounds,
                progress.bytes >> 20,
                progress.bandwidth as f64 / 1e6,
                progress.left,
                progress.expected_downtime.as_secs_f64() * 1e3,
            ));
        }
        self.rounds = progress.rounds;
    }

    /// The bar stays as it is; what is said next comes below it.
    pub(super) fn end(&mut self) {
        if let Some(bar) = self.bar.take().filter(|_| self.rounds != 0) {
            bar.abandon();
            let _ = writeln!(io::stderr());
        }
    }
}

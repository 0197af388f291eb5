//! The sixth table: a guest moves to another process, ours beside QEMU's, in turns; and what a migration costs by itself.
//!
//! ```text
//!   bin/migrate.rs ─▶ rows.rs: a guest, by which ways, what has to hold
//!                      ├─ guest.rs     fills its memory, then sleeps or stores
//!                      ├─ kept.rs      memory that this process holds until a contender wants it
//!                      ├─ ours.rs      notdirty run --migrate … ─▶ notdirty run --incoming
//!                      ├─ qemu.rs      two qemu-system-riscv64, by QMP, without a limit of bandwidth
//!                      ├─ bare.rs      two processes: 1 MiB buffers over the same kind of channel into untouched memory
//!                      ├─ verdict.rs   ok or MISSED, with its bar
//!                      ├─ faults.rs    in this process: how long a page is waited for, beside a bare request
//!                      └─ alone.rs     in this process: few pages of 64 GiB, a guest that stores meanwhile, a snapshot
//! ```
//!
//! Times are what each says of itself. A guest of ours stores faster, so where it stores as fast as it can it dirties more in the same
//! time: the rate tells of the sending, the total also of that. Of all rounds the quickest counts, of each by itself: on a shared host
//! a round is often slower than what is measured, and never quicker.

mod alone;
mod bare;
mod faults;
mod guest;
mod kept;
mod ours;
mod pointers;
mod qemu;
mod rows;
mod verdict;

use std::path::Path;
use std::time::Duration;

use crate::pairing::order;
use kept::Kept;
use rows::{By, Kind, Move, Way};
pub use rows::{ROWS, Row, pick};
use verdict::{Verdict, at_least, at_most};

/// How long a guest runs before it moves: it has filled its memory then.
const WARM: Duration = Duration::from_millis(1800);

/// From the start of a contender's process to that of its guest, at most: so much earlier the target's memory is given free.
const EARLY: Duration = Duration::from_millis(100);

/// How a migration went: milliseconds and MB.
#[derive(Clone, Copy, Debug)]
struct Moved {
    total: f64,
    downtime: f64,
    megabytes: f64,
    /// Of a guest of ours that runs at its target first: pages that were missing then, and that it waited for.
    late: Option<(f64, f64)>,
}

impl Moved {
    fn rate(&self) -> f64 {
        self.megabytes / self.total.max(0.001) * 1e3
    }
}

/// The argument by which this program is started as the reading end of a bare pair.
pub const BARE_READER: &str = bare::READER;

/// Reads `bytes` from its standard input to untouched memory: the other process of a bare pair.
///
/// # Errors
/// A sentence.
pub fn bare_reader(bytes: &str) -> Result<(), String> {
    bare::reader(bytes)
}

/// One row, in so many rounds: its lines, and whether all of it holds.
///
/// # Errors
/// A sentence, if a figure cannot be had.
pub fn measure(row: &Row, target: &Path, rounds: usize) -> Result<(String, bool), String> {
    let (mut text, verdicts) = match row.kind {
        Kind::Move(ref what) => moves(row, what, target, rounds)?,
        Kind::Alone(run) => {
            let (figures, verdicts) = run(rounds)?;
            (format!("{}\n{figures}", row.name), verdicts)
        }
    };
    let holds = verdicts.iter().all(|verdict| verdict.holds);
    verdicts.iter().for_each(|verdict| text.push_str(&format!("  {verdict}\n")));
    Ok((text, holds))
}

/// What one contender did in all rounds.
struct Runs {
    by: By,
    moved: Vec<Moved>,
    why_not: Option<String>,
}

impl Runs {
    fn least(&self, of: fn(&Moved) -> f64) -> Option<f64> {
        self.moved.iter().map(of).reduce(f64::min)
    }

    fn total(&self) -> Option<f64> {
        self.least(|moved| moved.total)
    }

    fn downtime(&self) -> Option<f64> {
        self.least(|moved| moved.downtime)
    }

    fn rate(&self) -> Option<f64> {
        self.moved.iter().map(Moved::rate).reduce(f64::max)
    }
}

fn moves(row: &Row, what: &Move, target: &Path, rounds: usize) -> Result<(String, Vec<Verdict>), String> {
    let dir = std::env::temp_dir().join(format!("notdirty-migrate-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|why| format!("{}: {why}", dir.display()))?;
    let elf = dir.join("guest.elf");
    std::fs::write(&elf, guest::guest(what)?).map_err(|why| why.to_string())?;
    let mut all: Vec<Runs> = what.by.iter().map(|by| Runs { by: *by, moved: Vec::new(), why_not: None }).collect();
    for round in 0..rounds {
        for contender in order(round, all.len()) {
            let runs = &mut all[contender];
            // Nothing that a peer lacks, or cannot do in time, is tried twice.
            if runs.why_not.is_some() && runs.moved.is_empty() {
                continue;
            }
            let kept = [what.memory_mib(), what.memory_mib()].map(Kept::take);
            let [source, other] = kept;
            let done = match runs.by {
                By::Ours(way) => ours::run(what, way, &elf, &dir, target, source, other),
                By::Qemu(way) => qemu::run(what, way, &elf, &dir, source, other),
                By::Bare(socket) => {
                    drop((source, other));
                    bare::run(socket, what.mib << 20)
                }
            };
            match done {
                Ok(moved) => runs.moved.push(moved),
                Err(why) => runs.why_not = Some(why),
            }
        }
    }
    let _ = std::fs::remove_dir_all(&dir);
    let mut text = format!("{}: {}\n", row.name, what.says());
    for runs in &all {
        let name = runs.by.name();
        match (runs.total(), runs.downtime(), runs.rate()) {
            (Some(total), Some(downtime), Some(rate)) => {
                let spread = runs.moved.iter().map(|moved| moved.total).fold(0.0, f64::max);
                text.push_str(&format!("  {name:<24} {total:>9.0} {spread:>9.0} {downtime:>9.1} {rate:>9.0}\n"));
            }
            _ => text.push_str(&format!("  {name:<24} {:>9}\n", "none")),
        }
        for (missing, waited) in runs.moved.iter().filter_map(|moved| moved.late) {
            text.push_str(&format!("    {missing} pages missing as it ran there, {waited} of them waited for\n"));
        }
        if let Some(why) = &runs.why_not {
            let line = why.lines().next().unwrap_or_default();
            text.push_str(&format!("    once or more: {}\n", line.chars().take(160).collect::<String>()));
        }
    }
    Ok((text, judge(what, &all)))
}

/// What ours of one kind of socket, or of none, have to be beside QEMU's of that kind: the best of its settings in each figure,
/// whichever that is.
fn judge(what: &Move, all: &[Runs]) -> Vec<Verdict> {
    let theirs = |socket| all.iter().filter(move |runs| matches!(runs.by, By::Qemu(way) if way.socket() == socket));
    let mut verdicts = Vec::new();
    for runs in all {
        let By::Ours(way) = runs.by else { continue };
        let name = runs.by.name();
        if runs.moved.is_empty() {
            verdicts.push(Verdict::none(&format!("{name}: moves at all")));
            continue;
        }
        let least = |of: fn(&Runs) -> Option<f64>| theirs(way.socket()).filter_map(of).reduce(f64::min);
        if let (Some(ours), Some(best)) = (runs.total(), least(Runs::total)) {
            verdicts.push(at_most(&format!("{name}: total over the least of QEMU's"), ours / best.max(0.1), 1.0));
        }
        if let (Some(ours), Some(best)) = (runs.downtime(), least(Runs::downtime)) {
            // QEMU tells whole milliseconds.
            verdicts.push(at_most(&format!("{name}: downtime over the least of QEMU's"), ours / (best + 1.0), 1.0));
        }
        let bare = all.iter().find(|other| matches!(other.by, By::Bare(socket) if way.socket() == Some(socket)));
        if let (Some(ours), Some(bare)) = (runs.rate(), bare.and_then(Runs::rate)) {
            let bar = if matches!(way, Way::Postcopy(_)) { 0.6 } else { 0.75 };
            verdicts.push(at_least(&format!("{name}: rate over a bare pair's"), ours / bare.max(0.001), bar));
        }
        let late = runs.moved.iter().filter_map(|moved| moved.late);
        if let Some((missing, waited)) = late.reduce(|a, b| (a.0.min(b.0), a.1.min(b.1))) {
            let used = (what.mib << 20 >> 12) as f64;
            verdicts.push(at_least(&format!("{name}: missing as it runs there, of what it uses"), missing / used, 0.9));
            verdicts.push(at_least(&format!("{name}: pages waited for"), waited, 1.0));
        }
    }
    let best = |ours: bool| {
        let these = all.iter().filter(|runs| match runs.by {
            By::Ours(_) => ours,
            By::Qemu(_) => !ours,
            By::Bare(_) => false,
        });
        these.filter_map(Runs::rate).reduce(f64::max)
    };
    if let (true, Some(ours), Some(theirs)) = (what.twice, best(true), best(false)) {
        verdicts.push(at_least("the best rate over the best of QEMU's", ours / theirs.max(0.001), 2.0));
    }
    verdicts
}

/// A port that nothing listens at, a moment ago.
fn free_port() -> Result<u16, String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0");
    listener.and_then(|listener| listener.local_addr()).map(|at| at.port()).map_err(|why| why.to_string())
}

/// The header of the table.
pub fn heads() -> String {
    format!("  {:<24} {:>9} {:>9} {:>9} {:>9}", "", "total ms", "slowest", "down ms", "MB/s")
}

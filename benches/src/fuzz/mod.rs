//! The fifth table: a fuzzer's loop, run and reset, beside the best such loop known on Unicorn.
//!
//! ```text
//!  bin/fuzz.rs ─▶ ROWS ─▶ guest.rs     one target, assembled here
//!                           ├─ ours.rs      checkpoint, then run to an exit and restore
//!                           └─ unicorn.rs   a process: one endless run, whose hook at the end puts back the pages that it was told
//! ```
//!
//! Beside the time of a run stands what is left of it without the guest's own: exit, restore, entry, and what stores cost for them.
//! The guest's own is that of the same instructions with neither exit nor restore. Where the guest's work depends on itself, it takes
//! the same time on both, and the ratio of whole runs says little of the reset.

pub mod costs;
pub mod guest;
mod ours;
mod unicorn;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::pairing::order;
use crate::stats::{median, spread};
use guest::Guest;

/// One row: a target, and what Unicorn's time over ours is to be.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// Instructions of a run, as near as can be.
    insns: u64,
    /// Pages that it stores to.
    pages: u64,
    /// Lines of each.
    lines: u64,
    /// Harts that share the work; on Unicorn one does it all.
    harts: u64,
    /// At least.
    must: f64,
    /// Better.
    aim: Option<f64>,
}

const fn row(name: &'static str, (insns, pages, lines): (u64, u64, u64), must: f64, aim: Option<f64>) -> Row {
    Row { name, insns, pages, lines, harts: 1, must, aim }
}

/// The same work by two harts that take turns, by another seed each time.
const fn turns(name: &'static str, pages: u64, must: f64) -> Row {
    Row { harts: 2, ..row(name, (10_000, pages, 1), must, None) }
}

/// Every row.
pub const ROWS: &[Row] = &[
    row("fuzz-4", (10_000, 4, 1), 1.9, Some(2.1)),
    row("fuzz-64", (10_000, 64, 1), 4.0, Some(5.0)),
    row("fuzz-1024", (10_000, 1024, 1), 12.0, Some(20.0)),
    turns("fuzz-2h-4", 4, 1.5),
    turns("fuzz-2h-64", 64, 3.0),
    turns("fuzz-2h-1024", 1024, 6.0),
    row("fuzz-lines-4", (10_000, 4, 8), 1.5, None),
    row("fuzz-lines-64", (10_000, 64, 8), 2.0, None),
    row("fuzz-lines-1024", (10_000, 1024, 8), 2.0, None),
    row("fuzz-whole-4", (10_000, 4, 64), 1.0, None),
    row("fuzz-whole-64", (10_000, 64, 64), 1.0, None),
    row("fuzz-whole-1024", (10_000, 1024, 64), 1.0, None),
    row("fuzz-short", (1_000, 4, 1), 1.5, Some(3.0)),
];

/// The rows that a word names: one, or all whose names start with it.
pub fn pick(word: &str) -> Vec<Row> {
    let exact: Vec<Row> = ROWS.iter().filter(|row| row.name == word).copied().collect();
    if exact.is_empty() { ROWS.iter().filter(|row| row.name.starts_with(word)).copied().collect() } else { exact }
}

impl Row {
    /// How often the target goes round in registers.
    fn rounds(&self) -> u64 {
        guest::rounds(self.insns, self.pages, self.lines)
    }

    /// The same of one of its harts.
    fn rounds_of_hart(&self) -> u64 {
        guest::rounds(self.insns / self.harts, self.pages / self.harts, self.lines)
    }
}

/// What was measured of a row: nanoseconds of a run in each round, with the reset and without.
#[derive(Debug)]
pub struct Measured {
    row: Row,
    ours: [Vec<f64>; 2],
    unicorn: [Vec<f64>; 2],
}

/// Measures a row in `rounds` rounds, each contender for `time` with the reset and as long without. An error is a sentence.
pub fn measure(row: &Row, target: &Path, rounds: usize, time: Duration) -> Result<Measured, String> {
    let guest = Guest::new(row.lines)?;
    let mut ours = ours::Loop::new(row, &guest)?;
    let unicorn = unicorn::Unicorn::find(target, &guest)?;
    let mut measured = Measured { row: *row, ours: Default::default(), unicorn: Default::default() };
    for round in 0..rounds {
        for at in order(round, 4) {
            match (at, &unicorn) {
                (0, _) => measured.ours[0].push(ours.reset(time)?),
                (1, Some(unicorn)) => measured.unicorn[0].push(unicorn.run(row, false, time)?),
                (2, _) => measured.ours[1].push(ours.alone(time)?),
                (3, Some(unicorn)) => measured.unicorn[1].push(unicorn.run(row, true, time)?),
                _ => {}
            }
        }
    }
    Ok(measured)
}

/// The medians of a contender: a run with its reset, and what of it is not the guest's.
fn medians(times: &[Vec<f64>; 2]) -> Option<(f64, f64)> {
    let (whole, alone) = (median(&times[0])?, median(&times[1])?);
    Some((whole, whole - alone))
}

impl Measured {
    fn ratios(&self) -> Vec<f64> {
        self.unicorn[0].iter().zip(&self.ours[0]).map(|(theirs, ours)| theirs / ours).collect()
    }

    /// Its line.
    pub fn line(&self) -> String {
        let row = &self.row;
        let (ours, unicorn) = (medians(&self.ours), medians(&self.unicorn));
        let ns = |value: Option<f64>| value.map_or("-".into(), |ns| format!("{ns:.0}"));
        let (ratios, reset) = (self.ratios(), ours.zip(unicorn).map(|(ours, theirs)| theirs.1 / ours.1));
        let ratio = match (median(&ratios), spread(&ratios)) {
            (Some(middle), Some((low, high))) => format!("{middle:.2} ({low:.2}..{high:.2})"),
            _ => "-".into(),
        };
        let verdict = median(&ratios).map_or("?", |ratio| if ratio >= row.must { "ok" } else { "MISSED" });
        let mut text = format!(
            "{:16} {:>9} {:>9} {:>20} {:>5} {:>5} {verdict:6}",
            row.name,
            ns(ours.map(|(whole, _)| whole)),
            ns(unicorn.map(|(whole, _)| whole)),
            ratio,
            row.must,
            row.aim.map_or(String::new(), |aim| aim.to_string()),
        );
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            " {:>9} {:>9} {:>6}",
            ns(ours.map(|(_, reset)| reset)),
            ns(unicorn.map(|(_, reset)| reset)),
            reset.filter(|ratio| *ratio > 0.0).map_or("-".into(), |ratio| format!("{ratio:.1}")),
        );
        text
    }
}

/// The column heads.
pub fn heads() -> String {
    format!(
        "{:47} {:>36}\n{:16} {:>9} {:>9} {:>20} {:>5} {:>5} {:6} {:>9} {:>9} {:>6}",
        "",
        "a run without the guest's own time:",
        "row",
        "ours, ns",
        "Unicorn",
        "Unicorn/ours",
        "must",
        "aim",
        "",
        "ours, ns",
        "Unicorn",
        "ratio"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_ends_with_its_result_and_is_put_back() {
        for row in ROWS {
            let guest = Guest::new(row.lines).unwrap();
            let mut ours = ours::Loop::new(row, &guest).unwrap();
            ours.reset(Duration::from_micros(1)).unwrap();
            ours.alone(Duration::from_micros(1)).unwrap();
        }
    }

    #[test]
    fn a_row_is_judged_by_the_median_of_its_rounds() {
        let with = |ours: f64| Measured {
            row: ROWS[0],
            ours: [vec![ours; 3], vec![900.0; 3]],
            unicorn: [vec![2000.0, 1900.0, 9000.0], vec![1000.0; 3]],
        };
        assert!(with(1000.0).line().contains("2.00 (1.90..9.00)   1.9   2.1 ok"), "{}", with(1000.0).line());
        assert!(with(1100.0).line().contains("MISSED"));
        assert!(with(1000.0).line().ends_with("100      1000   10.0"));
    }
}

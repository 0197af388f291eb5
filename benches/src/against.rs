//! Programs in machine mode on this build against themselves on an earlier one: what a change cost where it should cost nothing.

use std::fmt::Write;

use crate::pairing::Measured;
use crate::stats::geometric_mean;

/// A row may take so many times the time that it took.
pub const BAR: f64 = 1.03;
/// Ours comes first.
const OURS: usize = 0;
const EARLIER: usize = 1;

/// The shortest of a contender's runs: what disturbs a run only makes it longer.
fn shortest(row: &Measured, rival: usize) -> Option<f64> {
    let runs = row.runs.get(rival)?.as_ref().ok()?;
    runs.iter().map(|run| run.line.seconds()).reduce(f64::min)
}

/// The shortest run of a row over the shortest that it had in the earlier build.
pub fn ratio(row: &Measured) -> Option<f64> {
    Some(shortest(row, OURS)? / shortest(row, EARLIER)?.max(1e-7))
}

/// The column heads.
pub fn heads() -> String {
    format!("{:21} {:>12} {:>12} {:>7}   bar", "row", "ours, ms", "earlier, ms", "ratio")
}

/// The line of a row.
pub fn line(row: &Measured) -> String {
    let cell = |rival| shortest(row, rival).map_or("-".into(), |seconds| format!("{:.2}", seconds * 1e3));
    let (verdict, ratio) = match ratio(row) {
        Some(ratio) => (if ratio <= BAR { "ok" } else { "MISSED" }, format!("{ratio:.3}")),
        None => ("-", "-".into()),
    };
    let mut text =
        format!("{:21} {:>12} {:>12} {ratio:>7}   {verdict:6} {BAR}", row.row.name, cell(OURS), cell(EARLIER));
    for why in row.runs.iter().filter_map(|runs| runs.as_ref().err()) {
        // Writing to a String cannot fail.
        let _ = write!(text, "  {why}");
    }
    text
}

/// How many rows reach the bar, and the geometric mean.
pub fn footer(rows: &[Measured]) -> String {
    let ratios: Vec<f64> = rows.iter().filter_map(ratio).collect();
    let within = ratios.iter().filter(|ratio| **ratio <= BAR).count();
    let mean = geometric_mean(&ratios).map_or("-".into(), |mean| format!("{mean:.3}"));
    format!("{within} of {} rows take at most {BAR} times what they took; geometric mean {mean}", rows.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::GuestLine;
    use crate::rivals::Run;
    use crate::rows;

    fn measured(ours: &[u64], earlier: &[u64]) -> Measured {
        let runs = |ticks: &[u64]| {
            let line = |&ticks| GuestLine { name: "fib".into(), ticks, check: "a".into(), events: 10 };
            Ok(ticks.iter().map(|ticks| Run { line: line(ticks), instructions: None }).collect())
        };
        Measured { row: rows::all()[0], runs: vec![runs(ours), runs(earlier)] }
    }

    #[test]
    fn the_shortest_runs_are_held_against_each_other() {
        let row = measured(&[103, 900], &[500, 100]);
        assert!(line(&row).contains("1.030   ok"), "{}", line(&row));
        let row = measured(&[104], &[100]);
        assert!(line(&row).contains("MISSED") && footer(&[row]).starts_with("0 of 1 rows"));
    }

    #[test]
    fn a_row_that_the_earlier_build_does_not_run_has_no_ratio() {
        let mut row = measured(&[104], &[]);
        row.runs[EARLIER] = Err("it did not end".into());
        assert_eq!(ratio(&row), None);
        assert!(line(&row).ends_with("it did not end") && footer(&[row]).starts_with("0 of 1 rows"));
    }
}

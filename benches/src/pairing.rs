//! Rounds of paired runs: every contender once a round, in alternating order, so that what disturbs one disturbs all.

use std::path::Path;

use crate::rivals::{Rival, Run};
use crate::rows::Row;
use crate::stats;

/// What was measured of a row.
#[derive(Debug)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// For each contender, in their order: its runs, or why there are none.
    pub runs: Vec<Result<Vec<Run>, String>>,
}

/// Who comes when: forwards in even rounds, backwards in odd ones.
pub fn order(round: usize, count: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..count).collect() } else { (0..count).rev().collect() }
}

/// Runs `rows`, which one run of a program has, on every rival, `rounds` times.
pub fn measure(rows: &[Row], elf: &Path, rivals: &[Rival], rounds: usize, perf: bool) -> Vec<Measured> {
    let Some(first) = rows.first() else { return Vec::new() };
    let mut runs: Vec<Result<Vec<Vec<Run>>, String>> =
        rivals.iter().map(|rival| rival.cannot(first).map_or(Ok(Vec::new()), |why| Err(why.into()))).collect();
    for round in 0..rounds {
        for index in order(round, rivals.len()) {
            let Ok(done) = &mut runs[index] else { continue };
            match rivals[index].run(elf, first.harts, perf) {
                Ok(run) => done.push(run),
                Err(why) => runs[index] = Err(why),
            }
        }
    }
    rows.iter()
        .map(|&row| {
            let runs = runs.iter().map(|runs| runs.as_ref().map_err(Clone::clone).and_then(|runs| of_row(&row, runs)));
            let mut measured = Measured { row, runs: runs.collect() };
            measured.compare_results();
            measured
        })
        .collect()
}

/// A row's part of its program's runs: the line with its name, or the only line.
fn of_row(row: &Row, runs: &[Vec<Run>]) -> Result<Vec<Run>, String> {
    let find = |run: &Vec<Run>| match &run[..] {
        [only] => Some(only.clone()),
        several => several.iter().find(|run| run.line.name == row.name).cloned(),
    };
    runs.iter().map(|run| find(run).ok_or_else(|| format!("{} prints no line of {}", row.program, row.name))).collect()
}

impl Measured {
    /// A contender whose result differs from the first one's has no figure.
    fn compare_results(&mut self) {
        let Some(check) = self.runs.iter().flatten().flatten().map(|run| run.line.check.clone()).next() else { return };
        for runs in &mut self.runs {
            let differs = runs.iter().flatten().find(|run| run.line.check != check).map(|run| run.line.check.clone());
            if let Some(other) = differs {
                *runs = Err(format!("result {other} where the first contender has {check}"));
            }
        }
    }

    /// The median of a contender's guest-measured times.
    pub fn seconds(&self, rival: usize) -> Option<f64> {
        let runs = self.runs.get(rival)?.as_ref().ok()?;
        stats::median(&runs.iter().map(|run| run.line.seconds()).collect::<Vec<_>>())
    }

    /// Nanoseconds for one event, from the median.
    pub fn nanoseconds(&self, rival: usize) -> Option<f64> {
        let events = self.runs.get(rival)?.as_ref().ok()?.first()?.line.events;
        Some(self.seconds(rival)? * 1e9 / events as f64)
    }

    /// The ratios `peer / ours`, one for each round: only runs of the same round are compared.
    pub fn ratios(&self, peer: usize, ours: usize) -> Vec<f64> {
        let (Some(Ok(peer)), Some(Ok(ours))) = (self.runs.get(peer), self.runs.get(ours)) else { return Vec::new() };
        peer.iter().zip(ours).map(|(peer, ours)| peer.line.seconds() / ours.line.seconds().max(1e-7)).collect()
    }

    /// Median host instructions of the whole process, where counted.
    pub fn instructions(&self, rival: usize) -> Option<f64> {
        let runs = self.runs.get(rival)?.as_ref().ok()?;
        stats::median(&runs.iter().filter_map(|run| Some(run.instructions? as f64)).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::GuestLine;
    use crate::rows;

    fn run(ticks: u64, check: &str) -> Run {
        let line = GuestLine { name: "fib".into(), ticks, check: check.into(), events: 10 };
        Run { line, instructions: None }
    }

    #[test]
    fn ratios_pair_the_runs_of_one_round() {
        let runs = vec![Ok(vec![run(10, "a"), run(20, "a")]), Ok(vec![run(30, "a"), run(40, "a")])];
        let measured = Measured { row: rows::all()[0], runs };
        assert_eq!(measured.ratios(1, 0), [3.0, 2.0]);
        assert_eq!(measured.ratios(2, 0), []);
    }

    #[test]
    fn a_row_has_its_line_of_each_run_or_the_only_one() {
        let several =
            || vec![run(10, "a"), Run { line: GuestLine { name: "icall".into(), ..run(20, "a").line }, ..run(0, "") }];
        let ticks = |row: &str, runs: &[Vec<Run>]| {
            let runs = of_row(&rows::pick(row)[0], runs)?;
            Ok::<Vec<u64>, String>(runs.iter().map(|run| run.line.ticks).collect())
        };
        assert_eq!(ticks("fib", &[several(), several()]).unwrap(), [10, 10]);
        assert_eq!(ticks("switch", &[vec![run(10, "a")]]).unwrap(), [10]);
        assert_eq!(ticks("switch", &[several()]).unwrap_err(), "switch prints no line of switch");
        assert_eq!(ticks("fib", &[vec![]]).unwrap_err(), "fib prints no line of fib");
    }

    #[test]
    fn a_different_result_is_no_figure() {
        let mut measured = Measured { row: rows::all()[0], runs: vec![Ok(vec![run(10, "a")]), Ok(vec![run(5, "b")])] };
        measured.compare_results();
        assert!(measured.runs[0].is_ok());
        assert!(measured.seconds(1).is_none());
    }
}

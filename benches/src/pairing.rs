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

/// Runs `row` on every rival, `rounds` times.
pub fn measure(row: Row, elf: &Path, rivals: &[Rival], rounds: usize, perf: bool) -> Measured {
    let mut runs: Vec<Result<Vec<Run>, String>> = rivals
        .iter()
        .map(|rival| if row.traps && !rival.takes_traps { Err("n/a: takes no traps".into()) } else { Ok(Vec::new()) })
        .collect();
    for round in 0..rounds {
        for index in order(round, rivals.len()) {
            let Ok(done) = &mut runs[index] else { continue };
            match rivals[index].run(elf, perf) {
                Ok(run) => done.push(run),
                Err(why) => runs[index] = Err(why),
            }
        }
    }
    let mut measured = Measured { row, runs };
    measured.compare_results();
    measured
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
    use crate::rows::ROWS;

    fn run(ticks: u64, check: &str) -> Run {
        let line = GuestLine { name: "fib".into(), ticks, check: check.into(), events: 10 };
        Run { line, instructions: None }
    }

    #[test]
    fn ratios_pair_the_runs_of_one_round() {
        let runs = vec![Ok(vec![run(10, "a"), run(20, "a")]), Ok(vec![run(30, "a"), run(40, "a")])];
        let measured = Measured { row: ROWS[0], runs };
        assert_eq!(measured.ratios(1, 0), [3.0, 2.0]);
        assert_eq!(measured.ratios(2, 0), []);
    }

    #[test]
    fn a_different_result_is_no_figure() {
        let mut measured = Measured { row: ROWS[0], runs: vec![Ok(vec![run(10, "a")]), Ok(vec![run(5, "b")])] };
        measured.compare_results();
        assert!(measured.runs[0].is_ok());
        assert!(measured.seconds(1).is_none());
    }
}

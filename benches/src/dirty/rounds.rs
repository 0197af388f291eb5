//! Rounds: first one that only compares results, then timed ones, each contender once in each, in turning order.

use super::row::{Bar, Entry, Measure, Row, Sample};
use crate::pairing::order;
use crate::stats::{median, spread};

/// What was measured of a contender.
#[derive(Debug)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// Its bar.
    pub bar: Bar,
    /// One sample a round, or why there are none.
    pub samples: Result<Vec<Sample>, String>,
}

/// What was measured of a row.
#[derive(Debug)]
pub struct Outcome {
    /// The row's name.
    pub name: &'static str,
    /// Its group's name.
    pub group: &'static str,
    /// The unit of its figures.
    pub unit: &'static str,
    /// What they count.
    pub measure: Measure,
    /// The contenders, ours first; none if the row could not be built.
    pub contenders: Vec<Measured>,
    /// How to read it, or why it is empty.
    pub note: Option<String>,
}

/// Measures a row.
pub fn measure(entry: &Entry, rounds: usize) -> Outcome {
    let (name, group) = (entry.name, entry.group.name());
    match (entry.build)() {
        Ok(row) => measure_row(name, group, row, rounds),
        Err(why) => Outcome {
            name,
            group,
            unit: "",
            measure: Measure::Nanoseconds,
            contenders: Vec::new(),
            note: Some(format!("not measured: {why}")),
        },
    }
}

fn measure_row(name: &'static str, group: &'static str, row: Row, rounds: usize) -> Outcome {
    let mut runs = Vec::new();
    let mut contenders = Vec::new();
    let mut expected = None;
    for contender in row.contenders {
        let mut run = contender.run;
        // The check round; it also warms up whatever warms up.
        let first = run.as_mut().map_err(|why| why.clone()).and_then(|run| run());
        let samples = first.and_then(|sample| match *expected.get_or_insert(sample.check) {
            check if check == sample.check => Ok(Vec::new()),
            check => Err(format!("its result is {:#x}, ours {check:#x}", sample.check)),
        });
        runs.push(run);
        contenders.push(Measured { name: contender.name, bar: contender.bar, samples });
    }
    for round in 0..rounds.min(row.rounds) {
        for index in order(round, contenders.len()) {
            let (Ok(run), Ok(samples)) = (&mut runs[index], &mut contenders[index].samples) else { continue };
            match run() {
                Ok(sample) => samples.push(sample),
                Err(why) => contenders[index].samples = Err(why),
            }
        }
    }
    Outcome { name, group, unit: row.unit, measure: row.measure, contenders, note: row.note }
}

impl Measured {
    fn values(&self) -> Vec<f64> {
        self.samples.iter().flatten().map(Sample::value).collect()
    }

    /// The median of one unit.
    pub fn value(&self) -> Option<f64> {
        median(&self.values())
    }
}

impl Outcome {
    /// A contender's figure over ours, round by round.
    fn ratios(&self, index: usize) -> Vec<f64> {
        self.paired(index, |peer, ours| peer / ours.max(f64::MIN_POSITIVE))
    }

    fn paired(&self, index: usize, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.contenders[index].values().iter().zip(self.contenders[0].values()).map(|(p, o)| f(*p, o)).collect()
    }

    /// The median of a contender's ratios to ours, the lowest, the highest.
    pub fn ratio(&self, index: usize) -> Option<(f64, f64, f64)> {
        let ratios = self.ratios(index);
        let (low, high) = spread(&ratios)?;
        Some((median(&ratios)?, low, high))
    }

    /// Whether a contender's bar holds; `None` if there is none or it cannot be told.
    pub fn reached(&self, index: usize) -> Option<bool> {
        let ratio = || self.ratio(index).map(|(middle, _, _)| middle);
        match self.contenders[index].bar {
            Bar::None => None,
            Bar::AtMost(bar) => Some(self.contenders[index].value()? <= bar),
            Bar::OursPlus(bar) => Some(median(&self.paired(index, |peer, ours| ours - peer))? <= bar),
            Bar::OursWithin(bar) => Some(ratio()? * bar >= 1.0),
            Bar::TimesOurs(bar) => Some(ratio()? >= bar),
            Bar::WithinOurs(bar) => Some(ratio()? <= bar),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirty::row::Contender;

    fn outcome(ours: f64, peer: f64, bar: Bar) -> Outcome {
        let fixed = |total| move || Sample { total, units: 10.0, check: 7 };
        let contenders = vec![Contender::new("ours", fixed(ours)), Contender::new("peer", fixed(peer)).bar(bar)];
        measure_row("row", "group", Row::times("unit", contenders), 3)
    }

    #[test]
    fn each_bar_is_held_against_paired_figures() {
        assert_eq!(outcome(10.0, 100.0, Bar::TimesOurs(10.0)).reached(1), Some(true));
        assert_eq!(outcome(11.0, 100.0, Bar::TimesOurs(10.0)).reached(1), Some(false));
        assert_eq!(outcome(13.0, 10.0, Bar::OursWithin(1.3)).reached(1), Some(true));
        assert_eq!(outcome(14.0, 10.0, Bar::OursWithin(1.3)).reached(1), Some(false));
        assert_eq!(outcome(30.0, 10.0, Bar::OursPlus(2.0)).reached(1), Some(true));
        assert_eq!(outcome(31.0, 10.0, Bar::OursPlus(2.0)).reached(1), Some(false));
        assert_eq!(outcome(10.0, 10.1, Bar::WithinOurs(1.02)).reached(1), Some(true));
        assert_eq!(outcome(10.0, 10.3, Bar::WithinOurs(1.02)).reached(1), Some(false));
        assert_eq!(outcome(1.0, 10.0, Bar::AtMost(1.0)).reached(1), Some(true));
        assert_eq!(outcome(1.0, 10.0, Bar::None).reached(1), None);
        assert_eq!(outcome(10.0, 40.0, Bar::None).ratio(1), Some((4.0, 4.0, 4.0)));
    }

    #[test]
    fn a_different_result_is_no_figure() {
        let sample = |check| move || Sample { total: 1.0, units: 1.0, check };
        let contenders = vec![Contender::new("ours", sample(1)), Contender::new("peer", sample(2))];
        let outcome = measure_row("row", "group", Row::times("unit", contenders), 3);
        assert_eq!(outcome.contenders[0].value(), Some(1.0));
        assert!(outcome.contenders[1].samples.as_ref().is_err_and(|why| why.contains("0x2")));
    }
}

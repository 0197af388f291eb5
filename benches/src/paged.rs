//! The fourth table: programs in supervisor mode under Sv39 against themselves in machine mode. The same source and the same
//! addresses; only the way to `main` differs (guests/programs/paged).

use std::fmt::Write;
use std::path::Path;

use crate::pairing::order;
use crate::rivals::Rival;
use crate::rows::Row;
use crate::rows::paging::{CHASE_BAR, ORDERED_BAR, SHUFFLED_BAR};
use crate::stats::{geometric_mean, median};

/// Directories of the build, in the order of the columns: machine mode, pages in order, pages with shuffled frames.
const VARIANTS: [&str; 3] = ["", "paged", "shuffled"];

/// What was measured of a row: seconds of each round.
#[derive(Debug)]
pub struct Paged {
    /// Its name.
    pub name: &'static str,
    /// Ours in each of the three variants.
    ours: [Vec<f64>; 3],
    /// QEMU's with shuffled frames, if it is here.
    qemu: Vec<f64>,
}

/// Runs a row in all variants, `rounds` times. An error is a sentence.
pub fn measure(row: &Row, build: &Path, ours: &Rival, qemu: Option<&Rival>, rounds: usize) -> Result<Paged, String> {
    let mut measured = Paged { name: row.name, ours: Default::default(), qemu: Vec::new() };
    let mut check: Option<String> = None;
    let mut run = |rival: &Rival, variant: &str| {
        let elf = build.join(variant).join(row.program).with_extension("elf");
        let line = match &rival.run(&elf, row.harts, false)?[..] {
            [only] => only.line.clone(),
            lines => return Err(format!("{} lines of {}", lines.len(), elf.display())),
        };
        if check.get_or_insert(line.check.clone()) != &line.check {
            return Err(format!("{}: another result than in machine mode", elf.display()));
        }
        Ok(line.seconds().max(1e-7))
    };
    for round in 0..rounds {
        for at in order(round, VARIANTS.len() + 1) {
            match (VARIANTS.get(at), qemu) {
                (Some(variant), _) => measured.ours[at].push(run(ours, variant)?),
                (None, Some(qemu)) => measured.qemu.push(run(qemu, "shuffled")?),
                (None, None) => {}
            }
        }
    }
    Ok(measured)
}

impl Paged {
    /// The median of `time / base` within the rounds.
    fn ratio(times: &[f64], base: &[f64]) -> Option<f64> {
        median(&times.iter().zip(base).map(|(time, base)| time / base).collect::<Vec<_>>())
    }

    /// The time with pages in order, or with shuffled frames, over that of machine mode.
    fn against_bare(&self, variant: usize) -> Option<f64> {
        Self::ratio(&self.ours[variant], &self.ours[0])
    }

    /// What shuffled frames may cost.
    fn shuffled_bar(&self) -> Option<f64> {
        self.name.starts_with("chase").then_some(CHASE_BAR)
    }

    /// The bars that it misses, each in words.
    fn misses(&self) -> Vec<String> {
        [(1, "in order", Some(ORDERED_BAR)), (2, "shuffled", self.shuffled_bar())]
            .into_iter()
            .filter_map(|(variant, name, bar)| {
                let (ratio, bar) = (self.against_bare(variant)?, bar?);
                (ratio > bar).then(|| format!("{} {name}: {ratio:.3}, bar {bar}", self.name))
            })
            .collect()
    }

    /// Its line.
    pub fn line(&self) -> String {
        let cell = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.2}"));
        let bar = self.shuffled_bar().map_or(String::new(), |bar| format!(", shuffled {bar}"));
        format!(
            "{:14} {:>12} {:>10} {:>10} {:>12}   {} {ORDERED_BAR}{bar}",
            self.name,
            median(&self.ours[0]).map_or("-".into(), |seconds| format!("{:.1}", seconds * 1e3)),
            cell(self.against_bare(1)),
            cell(self.against_bare(2)),
            cell(Self::ratio(&self.qemu, &self.ours[2])),
            if self.misses().is_empty() { "ok    " } else { "MISSED" },
        )
    }
}

/// The column heads.
pub fn heads() -> String {
    format!("{:14} {:>12} {:>10} {:>10} {:>12}   bar", "row", "machine, ms", "in order", "shuffled", "QEMU/ours")
}

/// The geometric mean of a variant, its name and its bar.
fn means(rows: &[Paged]) -> impl Iterator<Item = (&'static str, f64, f64)> {
    [(1, "in order", ORDERED_BAR), (2, "shuffled", SHUFFLED_BAR)].into_iter().filter_map(|(variant, name, bar)| {
        let ratios: Vec<f64> = rows.iter().filter_map(|row| row.against_bare(variant)).collect();
        Some((name, geometric_mean(&ratios)?, bar))
    })
}

/// The geometric means.
pub fn footer(rows: &[Paged]) -> String {
    let mut text = String::new();
    for (name, mean, bar) in means(rows) {
        let verdict = if mean <= bar { "ok" } else { "MISSED" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "geometric mean of {} rows, {name}: {mean:.2} (bar {bar}, {verdict})", rows.len());
    }
    text
}

/// Every bar that is missed, in words; those of the means are for `all` rows, and not for a few of them.
pub fn misses(rows: &[Paged], all: bool) -> Vec<String> {
    let means = means(rows).filter(|(_, mean, bar)| all && mean > bar);
    let means = means.map(|(name, mean, bar)| format!("geometric mean {name}: {mean:.3}, bar {bar}"));
    rows.iter().flat_map(Paged::misses).chain(means).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, in_order: f64, shuffled: f64) -> Paged {
        Paged {
            name,
            ours: [vec![1.0, 2.0], vec![in_order, 2.0 * in_order], vec![shuffled, 2.0 * shuffled]],
            qemu: vec![],
        }
    }

    #[test]
    fn a_row_is_held_against_its_own_round_and_its_bars() {
        assert_eq!(row("fib", 1.1, 9.0).against_bare(1), Some(1.1));
        assert!(row("fib", 1.1, 9.0).misses().is_empty());
        assert_eq!(row("fib", 1.2, 1.0).misses(), ["fib in order: 1.200, bar 1.15"]);
        assert_eq!(row("chase-64M", 1.0, 2.8).misses(), ["chase-64M shuffled: 2.800, bar 2.7"]);
        assert!(row("chase-64M", 1.0, 2.6).line().contains("ok"));
    }

    #[test]
    fn each_bar_that_is_missed_is_told_and_those_of_the_means_only_of_all_rows() {
        let rows = [row("fib", 1.2, 1.0), row("chase-64M", 1.0, 2.6)];
        assert_eq!(misses(&rows, false), ["fib in order: 1.200, bar 1.15"]);
        assert_eq!(misses(&rows, true), ["fib in order: 1.200, bar 1.15", "geometric mean shuffled: 1.612, bar 1.5"]);
        assert!(misses(&[row("fib", 1.0, 1.0)], true).is_empty());
    }

    #[test]
    fn the_means_are_of_all_rows() {
        let rows = [row("fib", 1.0, 1.0), row("crc32", 1.21, 4.0)];
        let text = footer(&rows);
        assert!(
            text.contains("in order: 1.10 (bar 1.15, ok)") && text.contains("shuffled: 2.00 (bar 1.5, MISSED)"),
            "{text}"
        );
    }
}

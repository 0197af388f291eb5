//! The table, and the same as JSON.

use std::fmt::Write;

use crate::host::Host;
use crate::pairing::Measured;
use crate::rivals::Rival;
use crate::rows::{Bar, Group, PAIRS};
use crate::stats::{geometric_mean, median, spread};

/// A whole session of measurements: contenders in a fixed order, ours first.
#[derive(Debug)]
pub struct Report {
    /// Facts for the header.
    pub host: Host,
    /// The contenders.
    pub rivals: Vec<Rival>,
    /// How many rounds each row had.
    pub rounds: usize,
    /// The rows.
    pub rows: Vec<Measured>,
}

/// Ours comes first in [`Report::rivals`].
const OURS: usize = 0;

impl Report {
    /// QEMU's place, if its figures count.
    fn qemu(&self) -> Option<usize> {
        self.rivals.iter().position(|rival| rival.name == "QEMU" && rival.does_not_count.is_none())
    }

    /// Whether a row reaches its bar; `None` if it cannot be told.
    fn reached(&self, row: &Measured) -> Option<bool> {
        match row.row.bar {
            Bar::TimesQemu(bar) => Some(median(&row.ratios(self.qemu()?, OURS))? >= bar),
            Bar::Nanoseconds(bar) => Some(row.nanoseconds(OURS)? <= bar),
        }
    }

    /// The lines above the table.
    pub fn header(&self) -> String {
        let host = &self.host;
        let mut text = format!(
            "host: {} x {}, Linux {}, load {} at the start; commit {}; {} paired rounds, medians\n",
            host.cores, host.cpu, host.kernel, host.load, host.commit, self.rounds
        );
        for rival in &self.rivals {
            let _ = writeln!(text, "{:9} {}", rival.name, rival.version);
            if let Some(why) = &rival.does_not_count {
                let _ = writeln!(text, "          {why}");
            }
        }
        text
    }

    /// The column heads.
    pub fn column_heads(&self) -> String {
        let mut text = format!("{:21} {:>8}", "row", "unit");
        for rival in &self.rivals {
            let _ = write!(text, " {:>10} {:>9}", rival.name, "ns/unit");
        }
        for rival in &self.rivals[1..] {
            let counts = if rival.does_not_count.is_some() { " (old)" } else { "" };
            let _ = write!(text, " {:>22}", format!("{}/ours{counts}", rival.name));
        }
        if self.counted() {
            let _ = write!(text, " {:>12}", "host insns");
        }
        text + "   bar"
    }

    fn counted(&self) -> bool {
        self.rows.iter().any(|row| row.instructions(OURS).is_some())
    }

    /// One row.
    pub fn row(&self, row: &Measured) -> String {
        let mut text = format!("{:21} {:>8}", row.row.name, row.row.unit);
        for rival in 0..self.rivals.len() {
            match (row.seconds(rival), row.nanoseconds(rival)) {
                (Some(seconds), Some(ns)) => {
                    let digits = if ns < 1e5 { 2 } else { 0 };
                    let _ = write!(text, " {seconds:>9.4}s {ns:>9.digits$}");
                }
                _ => {
                    let why =
                        if row.runs[rival].as_ref().is_err_and(|e| e.starts_with("n/a")) { "n/a" } else { "FAILED" };
                    let _ = write!(text, " {why:>10} {:>9}", "");
                }
            }
        }
        for rival in 1..self.rivals.len() {
            let ratios = row.ratios(rival, OURS);
            let cell = match (median(&ratios), spread(&ratios)) {
                (Some(middle), Some((low, high))) => format!("{middle:.2} ({low:.2}..{high:.2})"),
                _ => "-".into(),
            };
            let _ = write!(text, " {cell:>22}");
        }
        if let Some(instructions) = row.instructions(OURS) {
            let _ = write!(text, " {instructions:>12.3e}");
        }
        let bar = match row.row.bar {
            Bar::TimesQemu(bar) => format!("{bar}x"),
            Bar::Nanoseconds(bar) => format!("{bar} ns"),
        };
        let verdict = match self.reached(row) {
            Some(true) => "ok",
            Some(false) => "MISSED",
            None => "?",
        };
        text + &format!("   {bar} {verdict}")
    }

    /// Group means and everything that went wrong.
    pub fn footer(&self) -> String {
        let mut text = String::new();
        for group in Group::ALL {
            for (index, rival) in self.rivals.iter().enumerate().skip(1) {
                let ratios = self.group_ratios(group, index);
                let Some(mean) = geometric_mean(&ratios) else { continue };
                let lowest = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let _ = write!(
                    text,
                    "{:15} {}/ours: geometric mean {mean:.2} of {} rows, lowest {lowest:.2}",
                    group.name(),
                    rival.name,
                    ratios.len()
                );
                match group.mean_bar() {
                    Some(bar) if Some(index) == self.qemu() => {
                        let verdict = if mean >= bar { "ok" } else { "MISSED" };
                        let _ = writeln!(text, " (bar {bar}x {verdict})");
                    }
                    _ => text.push('\n'),
                }
            }
        }
        for &(name, against, bar) in PAIRS {
            let ours = |name| self.rows.iter().find(|row| row.row.name == name).and_then(|row| row.nanoseconds(OURS));
            if let (Some(one), Some(other)) = (ours(name), ours(against)) {
                let verdict = if one <= bar * other { "ok" } else { "MISSED" };
                let _ = writeln!(text, "{name} / {against}: {:.2} (bar {bar}x at most {verdict})", one / other);
            }
        }
        for row in &self.rows {
            for (rival, runs) in self.rivals.iter().zip(&row.runs) {
                if let Err(why) = runs {
                    let _ = writeln!(text, "{} on {}: {why}", row.row.name, rival.name);
                }
            }
        }
        text
    }

    fn group_ratios(&self, group: Group, rival: usize) -> Vec<f64> {
        self.rows
            .iter()
            .filter(|row| row.row.group == group)
            .filter_map(|row| median(&row.ratios(rival, OURS)))
            .collect()
    }

    /// The whole report as one JSON object.
    pub fn json(&self) -> String {
        let host = &self.host;
        let mut text = format!(
            "{{\"host\":{{\"cpu\":{},\"cores\":{},\"kernel\":{},\"load\":{}}},\"commit\":{},\"rounds\":{},\"rivals\":[",
            quote(&host.cpu),
            host.cores,
            quote(&host.kernel),
            quote(&host.load),
            quote(&host.commit),
            self.rounds
        );
        let rivals: Vec<String> = self
            .rivals
            .iter()
            .map(|rival| {
                let counts = rival.does_not_count.is_none();
                format!("{{\"name\":{},\"version\":{},\"counts\":{counts}}}", quote(rival.name), quote(&rival.version))
            })
            .collect();
        let _ = write!(text, "{}],\"rows\":[", rivals.join(","));
        let rows: Vec<String> = self.rows.iter().map(|row| self.json_row(row)).collect();
        let _ = write!(text, "{}],\"groups\":[", rows.join(","));
        let groups: Vec<String> = Group::ALL
            .iter()
            .flat_map(|&group| (1..self.rivals.len()).map(move |rival| (group, rival)))
            .filter_map(|(group, rival)| {
                let mean = geometric_mean(&self.group_ratios(group, rival))?;
                let (group, peer) = (quote(group.name()), quote(self.rivals[rival].name));
                Some(format!("{{\"group\":{group},\"peer\":{peer},\"geometric_mean\":{mean:.4}}}"))
            })
            .collect();
        let _ = write!(text, "{}]}}", groups.join(","));
        text
    }

    fn json_row(&self, row: &Measured) -> String {
        let mut text = format!("{{\"row\":{},\"group\":{}", quote(row.row.name), quote(row.row.group.name()));
        let number = |value: Option<f64>| value.map_or("null".into(), |v| format!("{v:.6}"));
        let _ = write!(text, ",\"unit\":{},\"contenders\":[", quote(row.row.unit));
        let contenders: Vec<String> = self
            .rivals
            .iter()
            .enumerate()
            .map(|(index, rival)| {
                let error = row.runs[index].as_ref().err().map_or("null".into(), |why| quote(why));
                let ratio = if index == OURS { None } else { median(&row.ratios(index, OURS)) };
                format!(
                    "{{\"name\":{},\"seconds\":{},\"ns_per_unit\":{},\"over_ours\":{},\"host_instructions\":{},\"error\":{error}}}",
                    quote(rival.name),
                    number(row.seconds(index)),
                    number(row.nanoseconds(index)),
                    number(ratio),
                    number(row.instructions(index))
                )
            })
            .collect();
        let reached = self.reached(row).map_or("null".into(), |reached| reached.to_string());
        let _ = write!(text, "{}],\"reached\":{reached}}}", contenders.join(","));
        text
    }
}

/// A JSON string.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if (c as u32) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_in_json_are_escaped() {
        assert_eq!(quote("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
    }
}

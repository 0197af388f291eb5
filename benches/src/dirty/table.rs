//! The table of the dirty memory, one line a contender, and the same as JSON.

use std::fmt::Write;

use super::rounds::{Measured, Outcome};
use super::row::{Bar, Measure};
use crate::host::Host;
use crate::report::quote;

/// The lines above the table.
pub fn header(host: &Host, rounds: usize) -> String {
    format!(
        "host: {} x {}, Linux {}, load {} at the start; commit {}; up to {rounds} rounds in turns, medians, (lowest..highest)\n\
         dirty memory; times are a thread's own unless the row says otherwise\n\n\
         {:16} {:>8}  {:32} {:>10}   {:>25}   bar",
        host.cores, host.cpu, host.kernel, host.load, host.commit, "row", "unit", "contender", "per unit", "over ours"
    )
}

/// The lines of one row.
pub fn row(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (index, contender) in outcome.contenders.iter().enumerate() {
        let (name, unit) = if index == 0 { (outcome.name, outcome.unit) } else { ("", "") };
        let _ = write!(text, "{name:16} {unit:>8}  {:32}", contender.name);
        match &contender.samples {
            Err(why) => {
                let _ = writeln!(text, " {:>10}   {why}", "-");
                continue;
            }
            Ok(_) => {
                let value = contender.value().map_or("-".into(), |value| figure(value, outcome.measure));
                let _ = write!(text, " {value:>10}");
            }
        }
        let ratio = match outcome.ratio(index) {
            Some((middle, low, high)) if index > 0 => {
                let digits = if (0.5..2.0).contains(&middle) { 3 } else { 2 };
                format!("{middle:.digits$} ({low:.digits$}..{high:.digits$})")
            }
            _ => String::new(),
        };
        let _ = writeln!(text, "{}", format!("   {ratio:>25}   {}", verdict(outcome, index)).trim_end());
    }
    if let Some(note) = &outcome.note {
        let name = if outcome.contenders.is_empty() { outcome.name } else { "" };
        let _ = writeln!(text, "{name:16} {:>8}  {note}", "");
    }
    text
}

/// A contender's bar in words, and whether it holds.
fn verdict(outcome: &Outcome, index: usize) -> String {
    let figure = |value| figure(value, outcome.measure);
    let bar = match outcome.contenders[index].bar {
        Bar::None => return String::new(),
        Bar::AtMost(bar) => format!("at most {}", figure(bar)),
        Bar::OursPlus(bar) => format!("ours at most this + {}", figure(bar)),
        Bar::OursWithin(bar) => format!("ours at most {bar} x this"),
        Bar::TimesOurs(bar) => format!("at least {bar} x ours"),
        Bar::WithinOurs(bar) => format!("at most {bar} x ours"),
    };
    let verdict = match outcome.reached(index) {
        Some(true) => "OK",
        Some(false) => "MISSED",
        None => "?",
    };
    format!("{bar}: {verdict}")
}

/// A figure with three or four digits and its unit.
fn figure(value: f64, measure: Measure) -> String {
    let scaled = |units: &[&str], step: f64| {
        let mut value = value;
        let mut names = units.iter();
        let mut name = names.next().copied().unwrap_or_default();
        while value.abs() >= 10.0 * step {
            let Some(next) = names.next() else { break };
            (value, name) = (value / step, next);
        }
        let digits = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
        format!("{value:.digits$} {name}")
    };
    match measure {
        Measure::Nanoseconds => scaled(&["ns", "us", "ms"], 1000.0),
        Measure::Bytes => scaled(&["B", "KiB", "MiB"], 1024.0),
    }
}

/// The bars that were not reached, one line each; a word if there are none.
pub fn footer(outcomes: &[Outcome]) -> String {
    let (mut held, mut missed) = (0, String::new());
    for outcome in outcomes {
        for index in 0..outcome.contenders.len() {
            match outcome.reached(index) {
                Some(true) => held += 1,
                Some(false) => {
                    let _ = write!(
                        missed,
                        "\n{}, {}: {}",
                        outcome.name,
                        outcome.contenders[index].name,
                        verdict(outcome, index)
                    );
                }
                None => {}
            }
        }
    }
    format!("{held} bars hold{}{missed}", if missed.is_empty() { ", none is missed" } else { "; missed:" })
}

/// The whole table as one JSON object.
pub fn json(host: &Host, rounds: usize, outcomes: &[Outcome]) -> String {
    let rows: Vec<String> = outcomes.iter().map(json_row).collect();
    format!(
        "{{\"table\":\"dirty\",\"host\":{{\"cpu\":{},\"cores\":{},\"kernel\":{},\"load\":{}}},\"commit\":{},\"rounds\":{rounds},\"rows\":[{}]}}",
        quote(&host.cpu),
        host.cores,
        quote(&host.kernel),
        quote(&host.load),
        quote(&host.commit),
        rows.join(",")
    )
}

fn json_row(outcome: &Outcome) -> String {
    let contenders: Vec<String> = outcome
        .contenders
        .iter()
        .enumerate()
        .map(|(index, contender)| json_contender(outcome, index, contender))
        .collect();
    let measure = match outcome.measure {
        Measure::Nanoseconds => "ns",
        Measure::Bytes => "bytes",
    };
    format!(
        "{{\"row\":{},\"group\":{},\"unit\":{},\"measure\":\"{measure}\",\"contenders\":[{}],\"note\":{}}}",
        quote(outcome.name),
        quote(outcome.group),
        quote(outcome.unit),
        contenders.join(","),
        outcome.note.as_deref().map_or("null".into(), quote)
    )
}

fn json_contender(outcome: &Outcome, index: usize, contender: &Measured) -> String {
    let number = |value: Option<f64>| value.map_or("null".into(), |v| format!("{v:.6}"));
    let ratio = outcome.ratio(index);
    let error = contender.samples.as_ref().err().map_or("null".into(), |why| quote(why));
    let bar = if contender.bar == Bar::None { "null".into() } else { quote(&verdict(outcome, index)) };
    format!(
        "{{\"name\":{},\"value\":{},\"over_ours\":{},\"lowest\":{},\"highest\":{},\"bar\":{bar},\"reached\":{},\"error\":{error}}}",
        quote(contender.name),
        number(contender.value()),
        number(ratio.map(|(middle, _, _)| middle)),
        number(ratio.map(|(_, low, _)| low)),
        number(ratio.map(|(_, _, high)| high)),
        outcome.reached(index).map_or("null".into(), |reached| reached.to_string()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_a_unit_that_suits_them() {
        assert_eq!(figure(0.5, Measure::Nanoseconds), "0.50 ns");
        assert_eq!(figure(9_999.0, Measure::Nanoseconds), "9999 ns");
        assert_eq!(figure(25_000.0, Measure::Nanoseconds), "25.0 us");
        assert_eq!(figure(786_432.0, Measure::Bytes), "768 KiB");
    }
}

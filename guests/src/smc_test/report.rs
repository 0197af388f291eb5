//! What came of it all, for people and for machines.

use std::fmt::Write;

use notdirty_tcg::EngineKind;

use super::{Contender, Outcome, Report, Setup};
use crate::programs::smc::{CacheModel, Mode};

/// A heading, a line for each case, and one that sums up.
pub fn table(reports: &[Report]) -> String {
    let mut out = String::new();
    let width = reports.iter().map(|report| report.case.name.len()).max().unwrap_or(0);
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{:width$}  {:20} {:>11}  it catches", "case", "result", "a patch");
    for report in reports {
        let time = report.ns_a_patch().map_or_else(String::new, |ns| format!("{ns:.0} ns"));
        let retells = match report.case.retells {
            [] => String::new(),
            some => format!("  [{}]", some.join(", ")),
        };
        let _ = writeln!(
            out,
            "{:width$}  {:20} {time:>11}  {}{retells}",
            report.case.name,
            words(&report.outcome),
            report.case.about
        );
    }
    let count = |wanted: fn(&Outcome) -> bool| reports.iter().filter(|report| wanted(&report.outcome)).count();
    let passed = count(|outcome| *outcome == Outcome::Pass);
    let skipped = count(|outcome| matches!(outcome, Outcome::NotApplicable(_)));
    let _ = writeln!(out, "{passed} passed, {} failed, {skipped} not applicable", reports.len() - passed - skipped);
    out
}

fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Pass => "pass".into(),
        Outcome::WrongValue(check) => format!("WRONG VALUE, check {check}"),
        Outcome::Fail(why) => format!("FAIL: {why}"),
        Outcome::Timeout => "TIMEOUT".into(),
        Outcome::Crash(why) => format!("CRASH: {why}"),
        Outcome::NotApplicable(why) => format!("n/a: {why}"),
    }
}

/// One object: `{"engine": .., "icache": .., "mode": .., "cases": [..]}`.
pub fn json(reports: &[Report], setup: &Setup) -> String {
    let engine = match setup.contender {
        Contender::Ours(EngineKind::Jit) => "jit",
        Contender::Ours(EngineKind::Interp) => "interp",
        Contender::Qemu => "qemu",
    };
    let icache = match setup.form.cache {
        CacheModel::Coherent => "coherent",
        CacheModel::FenceI => "fencei",
    };
    let mode = match setup.form.mode {
        Mode::Machine => "m",
        Mode::Supervisor => "s",
    };
    let mut out = format!("{{\"engine\":\"{engine}\",\"icache\":\"{icache}\",\"mode\":\"{mode}\",\"cases\":[");
    for (at, report) in reports.iter().enumerate() {
        let (kind, detail) = match &report.outcome {
            Outcome::Pass => ("pass", String::new()),
            Outcome::WrongValue(check) => ("wrong value", format!("check {check}")),
            Outcome::Fail(why) => ("fail", why.clone()),
            Outcome::Timeout => ("timeout", String::new()),
            Outcome::Crash(why) => ("crash", why.clone()),
            Outcome::NotApplicable(why) => ("n/a", (*why).into()),
        };
        let retells: Vec<String> = report.case.retells.iter().map(|issue| quoted(issue)).collect();
        let time = report.ns_a_patch().map_or_else(|| "null".into(), |ns| format!("{ns:.1}"));
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "{}\n{{\"case\":{},\"result\":{},\"detail\":{},\"patches\":{},\"ns_a_patch\":{time},\"catches\":{},\"retells\":[{}]}}",
            if at == 0 { "" } else { "," },
            quoted(report.case.name),
            quoted(kind),
            quoted(&detail),
            report.case.patches,
            quoted(report.case.about),
            retells.join(",")
        );
    }
    out + "\n]}\n"
}

fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_text_is_escaped() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}

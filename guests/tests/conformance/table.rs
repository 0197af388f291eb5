//! What passed, by suite and configuration, and what is not claimed, by name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// One of upstream's tests.
pub struct Test {
    pub program: PathBuf,
    /// `rv64ui-p`, `rv64i_m/I`.
    pub suite: String,
    pub name: String,
    /// Why it need not pass yet.
    pub not_claimed: Option<&'static str>,
}

/// `Err` says why not.
pub type Verdict = Result<(), String>;

/// A suite's tests that are not claimed for one reason.
#[derive(Default)]
struct NotClaimed<'a> {
    passed: Vec<&'a str>,
    failed: Vec<&'a str>,
}

/// The table of `tests`; `verdicts` has one list for each, in the order of `columns`, and a shorter or empty one where a
/// test that is not claimed was not run in all of them.
pub fn text(tests: &[Test], columns: &[&str], verdicts: &[Vec<Verdict>]) -> String {
    let mut suites: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    let mut not_claimed: BTreeMap<(&str, &str), NotClaimed> = BTreeMap::new();
    for (test, verdicts) in tests.iter().zip(verdicts) {
        match test.not_claimed {
            None => {
                let counts = suites.entry(&test.suite).or_insert_with(|| vec![(0, 0); columns.len()]);
                for ((passed, run), verdict) in counts.iter_mut().zip(verdicts) {
                    *passed += usize::from(verdict.is_ok());
                    *run += 1;
                }
            }
            Some(reason) => {
                let group = not_claimed.entry((&test.suite, reason)).or_default();
                match !verdicts.is_empty() && verdicts.iter().all(Verdict::is_ok) {
                    true => group.passed.push(&test.name),
                    false => group.failed.push(&test.name),
                }
            }
        }
    }
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write!(out, "  {:<20}", "passed / run");
    for column in columns {
        let _ = write!(out, " {column:>12}");
    }
    for (suite, counts) in &suites {
        let _ = write!(out, "\n  {suite:<20}");
        for (passed, run) in counts {
            let _ = write!(out, " {:>12}", format!("{passed} / {run}"));
        }
    }
    if !not_claimed.is_empty() {
        out.push_str("\n  not claimed yet");
    }
    for ((suite, reason), NotClaimed { passed, failed }) in &not_claimed {
        let _ = write!(out, "\n    {suite}, {reason}: {} of {} pass", passed.len(), passed.len() + failed.len());
        for (what, names) in [("do not", failed), ("do", passed)] {
            // Not a hundred names where there is one reason for a whole suite.
            let whole_suite = passed.is_empty() && names.len() > 60;
            if !names.is_empty() && !whole_suite {
                let _ = write!(out, "\n      {what}: {}", names.join(" "));
            }
        }
    }
    out
}

/// One line for each claimed test that does not pass, or a few.
pub fn failures(tests: &[Test], columns: &[&str], verdicts: &[Vec<Verdict>]) -> Vec<String> {
    let mut out = Vec::new();
    for (test, verdicts) in tests.iter().zip(verdicts).filter(|(test, _)| test.not_claimed.is_none()) {
        let failed: Vec<_> = columns.iter().zip(verdicts).filter_map(|(on, v)| Some((on, v.as_ref().err()?))).collect();
        if let [(_, why), ..] = failed[..] {
            let on: Vec<&str> = failed.iter().map(|(on, _)| **on).collect();
            out.push(format!("{} {} on {}: {why}", test.suite, test.name, on.join(", ")));
        }
    }
    out
}

#[test]
fn a_table_counts_what_is_claimed_and_names_what_is_not() {
    let test = |suite: &str, name: &str, not_claimed| Test {
        program: PathBuf::new(),
        suite: suite.into(),
        name: name.into(),
        not_claimed,
    };
    let tests =
        [test("a", "x", None), test("a", "y", None), test("b", "z", Some("needs B")), test("b", "w", Some("needs B"))];
    let wrong = || Err("wrong".to_owned());
    let verdicts = [vec![Ok(()), Ok(())], vec![Ok(()), wrong()], vec![wrong()], vec![Ok(())]];
    let table = text(&tests, &["jit", "oracle"], &verdicts);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1], ["a", "2", "/", "2", "1", "/", "2"]);
    assert_eq!(
        rows[3..],
        [vec!["b,", "needs", "B:", "1", "of", "2", "pass"], vec!["do", "not:", "z"], vec!["do:", "w"]]
    );
    assert_eq!(failures(&tests, &["jit", "oracle"], &verdicts), ["a y on oracle: wrong"]);
}

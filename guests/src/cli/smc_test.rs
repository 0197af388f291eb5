//! `smc-test`: the self-modifying suite on an engine, or as files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use notdirty_tcg::EngineKind;

use super::{Code, complain, print};
use crate::programs::smc::{CacheModel, Form, Mode};
use crate::smc_test::{self, Case, Contender, Emitted, Outcome, Setup};

const USAGE: &str = "\
notdirty smc-test runs a catalogue of self-modifying guests, and guests whose code the host changes.

usage: notdirty smc-test [options] [CASE..]        all cases, unless some are named

  --engine jit|interp|qemu   what runs them (default jit); qemu is qemu-system-riscv64 -M virt, as a process
  --icache coherent|fencei   judge by: the very next instruction sees a write (default), or
                             old or new until fence.i and new after it
  --mode m|s                 the mode that the guests run in: machine mode (default), or supervisor mode under Sv39,
                             where there are more of them
  --runs N                   run each case N times and show the shortest time (default 3)
  --json                     print JSON instead of a table
  --list                     print what there is
  --emit DIR                 run nothing, write the guests for that cache model and mode as ELF files into DIR: RV64IMAC at
                             0x80000000, they end through tohost and the test finisher at 0x100000
  -h, --help                 this text

The time is that of the whole guest, by its own mtime, for each patch. Exit code: 0 all passed, but for cases that the
engine cannot be asked (n/a)   1 not all passed   2 bad usage   126 there is no such engine on this host
";

#[derive(Debug, PartialEq)]
enum What {
    Run { json: bool },
    List,
    Emit(PathBuf),
    Help,
}

#[derive(Debug, PartialEq)]
struct Args {
    what: What,
    contender: Contender,
    form: Form,
    runs: u32,
    cases: Vec<String>,
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, String> {
    let mut queue = args.into_iter();
    let mut parsed = Args {
        what: What::Run { json: false },
        contender: Contender::Ours(EngineKind::Jit),
        form: Form::PLAIN,
        runs: 3,
        cases: Vec::new(),
    };
    let text = |word: OsString| word.into_string().map_err(|word| format!("{}: not valid text", word.display()));
    while let Some(word) = queue.next() {
        let word = text(word)?;
        let Some(bare) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            if !smc_test::catalogue().any(|case| case.name == word) {
                return Err(format!("no case {word} (smc-test --list)"));
            }
            parsed.cases.push(word);
            continue;
        };
        let (name, inline) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(OsString::from(value))),
            None => (bare, None),
        };
        if inline.is_some() && matches!(name, "json" | "list" | "h" | "help") {
            return Err(format!("--{name} takes no value"));
        }
        let mut raw = || inline.clone().or_else(|| queue.next()).ok_or_else(|| format!("--{name} needs a value"));
        match name {
            "engine" => {
                parsed.contender = match text(raw()?)?.as_str() {
                    "jit" => Contender::Ours(EngineKind::Jit),
                    "interp" => Contender::Ours(EngineKind::Interp),
                    "qemu" => Contender::Qemu,
                    other => return Err(format!("--engine {other}: must be jit, interp or qemu")),
                }
            }
            "icache" => {
                parsed.form.cache = match text(raw()?)?.as_str() {
                    "coherent" => CacheModel::Coherent,
                    "fencei" => CacheModel::FenceI,
                    other => return Err(format!("--icache {other}: must be coherent or fencei")),
                }
            }
            "mode" => {
                parsed.form.mode = match text(raw()?)?.as_str() {
                    "m" => Mode::Machine,
                    "s" => Mode::Supervisor,
                    other => return Err(format!("--mode {other}: must be m or s")),
                }
            }
            "runs" => {
                let value = text(raw()?)?;
                let runs = value.parse().ok().filter(|&runs| runs != 0);
                parsed.runs = runs.ok_or_else(|| format!("--runs {value}: not a number of runs"))?;
            }
            "json" => parsed.what = What::Run { json: true },
            "list" => parsed.what = What::List,
            "emit" => parsed.what = What::Emit(raw()?.into()),
            "h" | "help" => parsed.what = What::Help,
            _ => return Err(format!("unknown option {word}")),
        }
    }
    Ok(parsed)
}

/// The subcommand: `args` are those after its name.
pub(super) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match parse(args) {
        Ok(args) => args,
        Err(what) => return complain(Code::Input, &format!("smc-test: {what}")),
    };
    let chosen = |case: &Case| args.cases.is_empty() || args.cases.iter().any(|name| name == case.name);
    let cases: Vec<Case> = smc_test::catalogue().filter(chosen).collect();
    match &args.what {
        What::Help => print(USAGE),
        What::List => {
            let line = |case: &Case| {
                let retells = if case.retells.is_empty() { "" } else { "  retells " };
                format!("{:22} {}{retells}{}\n", case.name, case.about, case.retells.join(", "))
            };
            print(&cases.iter().map(line).collect::<String>())
        }
        What::Emit(dir) => emit(dir, &cases, args.form),
        What::Run { json } => {
            if let Some(why) = smc_test::missing(args.contender) {
                return complain(Code::Host, &format!("smc-test: skipped: {why}"));
            }
            let setup = Setup { contender: args.contender, form: args.form, runs: args.runs };
            let reports: Vec<_> = cases.iter().map(|case| smc_test::run(case, &setup)).collect();
            let printed = print(&if *json { smc_test::json(&reports, &setup) } else { smc_test::table(&reports) });
            let good = |outcome: &Outcome| matches!(outcome, Outcome::Pass | Outcome::NotApplicable(_));
            if reports.iter().all(|report| good(&report.outcome)) { printed } else { ExitCode::FAILURE }
        }
    }
}

fn emit(dir: &Path, cases: &[Case], form: Form) -> ExitCode {
    match smc_test::emit(dir, cases, form) {
        Ok(emitted) => {
            let line = |(case, what): (Case, Emitted)| match what {
                Emitted::File(path) => format!("{}\n", path.display()),
                Emitted::NotApplicable(why) => format!("{}: n/a: {why}\n", case.name),
            };
            print(&emitted.into_iter().map(line).collect::<String>())
        }
        Err(e) => complain(Code::Input, &format!("smc-test --emit {}: {e}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<Args, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn flags_and_cases_are_taken() {
        let parsed = args("--engine=interp toggling --icache fencei --mode s -json host_write").unwrap();
        assert_eq!(parsed.contender, Contender::Ours(EngineKind::Interp));
        let form = Form { cache: CacheModel::FenceI, mode: Mode::Supervisor };
        assert_eq!((parsed.form, parsed.what), (form, What::Run { json: true }));
        assert_eq!(parsed.cases, ["toggling", "host_write"]);
        assert_eq!(args("--emit=a").unwrap().what, What::Emit("a".into()));
    }

    #[test]
    fn every_bad_word_is_named_in_its_error() {
        for (line, named) in [
            ("--engine", "--engine needs a value"),
            ("--engine fast", "fast"),
            ("--icache wet", "wet"),
            ("--mode u", "--mode u"),
            ("--json=yes", "--json takes no value"),
            ("--emit", "--emit needs a value"),
            ("--frobnicate", "--frobnicate"),
            ("--runs 0", "--runs 0"),
            ("no_such_case", "no_such_case"),
        ] {
            let error = args(line).expect_err(line);
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}

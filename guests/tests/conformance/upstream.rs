//! Upstream's own tests of RISC-V, as built in clones beside the project.
//!
//! ```text
//!   ../corpora/riscv-tests/isa/rv64ui-p-add ..      judge themselves: exit code 0 (without isa: ../corpora/riscv-tests)
//!   ../corpora/riscv-tests/benchmarks/qsort.riscv ..
//!   ../corpora/riscv-arch-test/**/NAME.elf          leave a signature, which is compared with, in this order,
//!   ../corpora/arch-test/**/NAME.elf                NAME.signature beside it, ../ref/*.signature (riscof's tree),
//!                                                   what Spike leaves ($SPIKE, ../corpora/riscv-isa-sim/build/spike or
//!                                                   in the path), or the oracle's: then the table says so
//! ```
//!
//! `$NOTDIRTY_CORPORA` stands for ../corpora. Each claimed test runs in six ways: as a user runs it, where code that
//! runs once stays in tier 0; translated from its first run; by the oracle; each with one hart and with two. With
//! `$NOTDIRTY_SWITCHES` also translated with each of the JIT's switches off. What is not claimed runs twice, briefly.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::run::{self, Config, Job, Run, in_parallel, is_elf, name, run_all};
use crate::signatures::{Expected, same_words, spike};
use crate::table::{self, Test, Verdict};

const CONFIGS: [Config; 6] = [
    Config { name: "default", options: &[] },
    Config { name: "translated", options: &["--jit-off", "tier0"] },
    Config { name: "oracle", options: &["--engine", "interp"] },
    Config { name: "default x2", options: &["--smp", "2"] },
    Config { name: "translated x2", options: &["--smp", "2", "--jit-off", "tier0"] },
    Config { name: "oracle x2", options: &["--smp", "2", "--engine", "interp"] },
];
/// Of those, what a test that is not claimed runs in: the first ones.
const BRIEFLY: usize = 3;
/// Seconds for a test that is not claimed: many hang.
const BRIEF: u64 = 2;

/// Suites of riscv-tests that must be there, or are named as not built.
const SUITES: &[&str] =
    &["ui", "um", "ua", "uf", "ud", "uc", "uzba", "uzbb", "uzbc", "uzbs", "uzicond", "uziccid", "mi", "si"];

/// Tests of riscv-tests that need not pass yet, by how their names begin, and why.
const RISCV_TESTS_NOT_CLAIMED: &[(&str, &str)] = &[
    ("rv64uzfh-", "needs Zfh"),
    ("rv64uzbkb-", "needs Zbkb"),
    ("rv64uzbkx-", "needs Zbkx"),
    ("rv64up-", "needs P"),
    ("hypervisor", "needs H"),
    ("rv32", "needs RV32"),
];

/// Tests of riscv-arch-test that need not match yet, by how `SUITE/NAME` begins, and why.
const ARCH_TESTS_NOT_CLAIMED: &[(&str, &str)] = &[
    ("rv64i_m/K/", "needs K"),
    ("rv64i_m/P_unratified/", "needs P"),
    ("rv64i_m/Zfh/", "needs Zfh"),
    ("rv32i_m/Zfh/", "needs Zfh"),
    ("rv64i_m/F_Zfa/", "needs Zfa"),
    ("rv64i_m/D_Zfa/", "needs Zfa"),
    ("rv32i_m/F_Zfa/", "needs Zfa"),
    ("rv32i_m/D_Zfa/", "needs Zfa"),
    ("rv64i_m/Zfinx/", "needs Zfinx"),
    ("rv64i_m/Zacas/", "needs Zacas"),
    ("rv64i_m/Zcmop/", "needs Zcmop"),
    ("rv64i_m/Zimop/", "needs Zimop"),
];

/// Programs of riscv-tests/benchmarks that need not pass yet, by how their names begin, and why.
const BENCHMARKS_NOT_CLAIMED: &[(&str, &str)] = &[("vec-", "needs V")];

/// The reason, if a test whose name begins so need not pass.
fn not_claimed(name: &str, list: &[(&str, &'static str)]) -> Option<&'static str> {
    list.iter().find(|(start, _)| name.starts_with(start)).map(|(_, reason)| *reason)
}

pub fn corpora() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    root.join(std::env::var("NOTDIRTY_CORPORA").ok().filter(|dir| !dir.is_empty()).as_deref().unwrap_or("../corpora"))
}

fn configs() -> Vec<Config> {
    let mut configs = CONFIGS.to_vec();
    if std::env::var_os("NOTDIRTY_SWITCHES").is_some_and(|value| !value.is_empty()) {
        for switch in notdirty::JitFlags::NAMES.iter().filter(|switch| **switch != "tier0") {
            // Lives as long as the process, as its name in the table does.
            let off: &'static str = format!("{switch},tier0").leak();
            configs.push(Config { name: switch, options: vec!["--jit-off", off].leak() });
        }
    }
    configs
}

#[test]
fn riscv_tests_pass_on_every_engine_with_one_and_two_harts() {
    let clone = corpora().join("riscv-tests");
    // Where upstream builds them, or a directory of nothing but them.
    let dir = Some(clone.join("isa")).filter(|isa| isa.is_dir()).unwrap_or_else(|| clone.clone());
    let (mut tests, mut others) = (Vec::new(), 0);
    for program in run::elves(&dir) {
        let file = name(&program);
        // In M-mode, or in U-mode under page tables that are filled on demand.
        match ["-p-", "-v-"].into_iter().find_map(|way| Some((way, file.split_once(way)?))) {
            Some((way, (suite, name))) => tests.push(Test {
                suite: format!("{suite}{}", &way[..2]),
                name: name.into(),
                program,
                not_claimed: not_claimed(&file, RISCV_TESTS_NOT_CLAIMED),
            }),
            None => others += 1,
        }
    }
    for program in run::elves(&clone.join("benchmarks")) {
        let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let not_claimed = not_claimed(&name, BENCHMARKS_NOT_CLAIMED);
        tests.push(Test { suite: "benchmarks".into(), name, program, not_claimed });
    }
    if tests.is_empty() {
        println!("SKIPPED riscv-tests: none built in {}", dir.display());
        println!(
            "  upstream's way, in a clone of riscv-software-src/riscv-tests there, with its submodules: autoconf,"
        );
        println!("  ./configure, make isa (and make benchmarks), which asks for riscv64-unknown-elf-gcc");
        return;
    }
    let configs = configs();
    let started = Instant::now();
    let verdicts = judge(&tests, &configs, &Vec::from_iter(tests.iter().map(|_| None)));
    println!("riscv-tests in {}, {:.1?}", dir.display(), started.elapsed());
    report(&tests, &configs, &verdicts);
    if others != 0 {
        println!("  not run: {others} of other environments");
    }
    for suite in SUITES.iter().map(|suite| format!("rv64{suite}-p")) {
        if !tests.iter().any(|test| test.suite == suite) {
            println!("  not built: {suite} (the compiler may not know its extension)");
        }
    }
    assert_claimed("riscv-tests", &tests, &configs, &verdicts);
}

#[test]
fn signatures_of_riscv_arch_test_are_those_of_spike() {
    let dirs = ["riscv-arch-test", "arch-test"].map(|dir| corpora().join(dir));
    let mut tests = Vec::new();
    for dir in &dirs {
        let mut programs = Vec::new();
        find(dir, &mut programs);
        programs.sort();
        tests.extend(programs.into_iter().map(|program| {
            let (suite, name) = place(dir, &program);
            let not_claimed = not_claimed(&format!("{suite}/{name}"), ARCH_TESTS_NOT_CLAIMED);
            Test { program, suite, name, not_claimed }
        }));
    }
    if tests.is_empty() {
        let [first, second] = dirs.map(|dir| dir.display().to_string());
        println!("SKIPPED riscv-arch-test: no built .elf files below {first} or {second}");
        println!(
            "  upstream's way, in a clone of riscv-non-isa/riscv-arch-test: riscof run --config=config.ini with a plugin"
        );
        println!(
            "  for the compiler; its work tree is read as it is. Spike (riscv-software-src/riscv-isa-sim): configure, make"
        );
        return;
    }
    let spike = spike(&corpora());
    let configs = configs();
    let started = Instant::now();
    let expected = in_parallel(tests.len(), |at| Some(Expected::of(&tests[at].program, spike.as_deref())));
    let verdicts = judge(&tests, &configs, &expected);
    println!("riscv-arch-test in {} and {}, {:.1?}", dirs[0].display(), dirs[1].display(), started.elapsed());
    let known = expected.iter().flatten().filter(|expected| expected.reference.is_some()).count();
    // One that does not start would leave the oracle as the only judge.
    assert!(spike.is_none() || known > 0, "{spike:?} leaves no signature of any test: does it start? It needs dtc");
    let with = spike.map_or_else(|| "no Spike is here".into(), |spike| format!("Spike is {}", spike.display()));
    println!("  {known} of {} have a reference ({with}); the others are compared with the oracle", tests.len());
    report(&tests, &configs, &verdicts);
    assert_claimed("riscv-arch-test", &tests, &configs, &verdicts);
}

/// Prints the table.
fn report(tests: &[Test], configs: &[Config], verdicts: &[Vec<Verdict>]) {
    println!("{}", table::text(tests, &columns(configs), verdicts));
}

fn columns(configs: &[Config]) -> Vec<&'static str> {
    configs.iter().map(|config| config.name).collect()
}

fn assert_claimed(title: &str, tests: &[Test], configs: &[Config], verdicts: &[Vec<Verdict>]) {
    let failures = table::failures(tests, &columns(configs), verdicts);
    assert!(failures.is_empty(), "{title}: {} do not pass\n  {}", failures.len(), failures.join("\n  "));
}

/// Runs the tests in `configs`, and those that are not claimed in the first ones; what came of each, test by test.
/// `expected` has a test's signature, or `None` where the exit code is all.
fn judge(tests: &[Test], configs: &[Config], expected: &[Option<Expected>]) -> Vec<Vec<Verdict>> {
    let of = |claimed: bool| {
        let tests = tests.iter().enumerate().filter(move |(_, test)| test.not_claimed.is_none() == claimed);
        let configs = if claimed { configs } else { &configs[..BRIEFLY] };
        tests.flat_map(move |(at, test)| configs.iter().map(move |config| (at, test, *config)))
    };
    let mut runs: Vec<Vec<(Config, Run)>> = tests.iter().map(|_| Vec::new()).collect();
    for (claimed, limit) in [(true, run::LIMIT), (false, BRIEF)] {
        let granularity = |at: usize| expected[at].as_ref().map(|expected| expected.granularity);
        let job = |(at, test, config): (usize, &Test, Config)| Job {
            program: test.program.clone(),
            config,
            signature: granularity(at),
        };
        let jobs: Vec<Job> = of(claimed).map(job).collect();
        for ((at, _, config), run) in of(claimed).zip(run_all(&jobs, limit)) {
            runs[at].push((config, run));
        }
    }
    runs.iter()
        .zip(expected)
        .map(|(runs, expected)| runs.iter().map(|run| verdict(run, runs, expected.as_ref())).collect())
        .collect()
}

fn verdict((_, run): &(Config, Run), all: &[(Config, Run)], expected: Option<&Expected>) -> Verdict {
    if let Some(why) = run.failed() {
        return Err(why);
    }
    let Some(expected) = expected else { return Ok(()) };
    let oracle = all.iter().find(|(config, _)| config.name == "oracle").and_then(|(_, run)| run.signature.as_ref());
    let left = run.signature.as_deref().filter(|text| !text.is_empty()).ok_or("it left no signature")?;
    same_words(left, expected.reference.as_ref().or(oracle).ok_or("the oracle left no signature")?)
}

/// Every `.elf` file below `dir`, but for the reference's own in riscof's tree.
fn find(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        match path.extension() {
            _ if path.is_dir() && !path.is_symlink() && !path.ends_with("ref") => find(&path, found),
            Some(extension) if extension == "elf" && is_elf(&path) => found.push(path),
            _ => {}
        }
    }
}

/// Suite and name: `rv64i_m/I` and `add-01`, from `rv64i_m/I/add-01.elf` or `work/rv64i_m/I/src/add-01.S/dut/my.elf`.
fn place(dir: &Path, program: &Path) -> (String, String) {
    let path = program.strip_prefix(dir).unwrap_or(program).with_extension("");
    let parts = path.iter().map(|part| part.to_string_lossy().into_owned());
    let mut parts: Vec<String> = parts.filter(|part| !matches!(part.as_str(), "src" | "dut" | "my")).collect();
    let base = parts.iter().position(|part| part.starts_with("rv64") || part.starts_with("rv32")).unwrap_or(0);
    parts.drain(..base);
    let name = parts.pop().unwrap_or_default();
    // Some of a suite's tests lie in a directory of their own.
    parts.truncate(2);
    (parts.join("/"), name.trim_end_matches(".S").into())
}

#[test]
fn a_test_is_named_alike_in_a_tree_of_ours_and_of_riscof() {
    let named = |path: &str| place(Path::new("/c"), Path::new(path));
    let expected = ("rv64i_m/I".to_owned(), "add-01".to_owned());
    assert_eq!(named("/c/rv64i_m/I/add-01.elf"), expected);
    assert_eq!(named("/c/rv64i_m/I/more/add-01.elf"), expected);
    assert_eq!(named("/c/riscof_work/rv64i_m/I/src/add-01.S/dut/my.elf"), expected);
}

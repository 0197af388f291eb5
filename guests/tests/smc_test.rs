//! The self-modifying suite as a product: on our engines in both cache models, as a command, as files, and in QEMU.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use notdirty::programs::smc::{self, CacheModel, Form, Mode};
use notdirty::smc_test::{self, Case, Contender, Emitted, Outcome, Setup};
use notdirty::{EngineKind, ExitBy, ICache, Machine, MachineExit, Program, RunLimits};

const MODELS: [CacheModel; 2] = [CacheModel::Coherent, CacheModel::FenceI];

/// Both models, each in both modes.
fn forms() -> impl Iterator<Item = Form> {
    MODELS.into_iter().flat_map(|cache| [Mode::Machine, Mode::Supervisor].map(|mode| Form { cache, mode }))
}

fn all_pass(engine: EngineKind, cache: CacheModel, mode: Mode) {
    let setup = Setup { contender: Contender::Ours(engine), form: Form { cache, mode }, runs: 1 };
    let mut passed = 0;
    for case in smc_test::catalogue() {
        let outcome = smc_test::run(&case, &setup).outcome;
        passed += usize::from(outcome == Outcome::Pass);
        let fine = matches!(outcome, Outcome::Pass | Outcome::NotApplicable(_));
        assert!(fine, "{} on {engine:?}, {cache:?}, {mode:?}: {outcome:?}", case.name);
    }
    assert!(passed >= 60, "{passed} cases");
}

#[test]
fn the_suite_passes_on_the_jit_with_a_coherent_cache() {
    all_pass(EngineKind::Jit, CacheModel::Coherent, Mode::Machine);
}

#[test]
fn the_suite_passes_on_the_jit_with_a_cache_that_waits_for_fence_i() {
    all_pass(EngineKind::Jit, CacheModel::FenceI, Mode::Machine);
}

#[test]
fn the_suite_passes_on_the_oracle_with_a_coherent_cache() {
    all_pass(EngineKind::Interp, CacheModel::Coherent, Mode::Machine);
}

#[test]
fn the_suite_passes_on_the_oracle_with_a_cache_that_waits_for_fence_i() {
    all_pass(EngineKind::Interp, CacheModel::FenceI, Mode::Machine);
}

#[test]
fn the_suite_passes_under_page_tables_on_the_jit_with_a_coherent_cache() {
    all_pass(EngineKind::Jit, CacheModel::Coherent, Mode::Supervisor);
}

#[test]
fn the_suite_passes_under_page_tables_on_the_jit_with_a_cache_that_waits_for_fence_i() {
    all_pass(EngineKind::Jit, CacheModel::FenceI, Mode::Supervisor);
}

#[test]
fn the_suite_passes_under_page_tables_on_the_oracle() {
    for cache in MODELS {
        all_pass(EngineKind::Interp, cache, Mode::Supervisor);
    }
}

#[test]
fn every_case_has_its_own_name_and_says_what_it_catches() {
    let cases: Vec<Case> = smc_test::catalogue().collect();
    assert!(cases.len() >= 30);
    for (at, case) in cases.iter().enumerate() {
        assert!(!case.about.is_empty(), "{}", case.name);
        assert!(cases[..at].iter().all(|other| other.name != case.name), "{} twice", case.name);
        for issue in case.retells {
            let number = issue.split_once('#').map(|(_, number)| number.parse::<u32>());
            assert!(matches!(number, Some(Ok(_))), "{}: {issue}", case.name);
        }
    }
}

/// How the coherent guest of that name ends on a JIT whose cache waits for `fence.i`.
fn end_without_fence(name: &str) -> MachineExit {
    let case = smc::case(name).expect("a case");
    let file = Program::ElfBytes(name.into(), smc_test::elf(&(case.build)(Form::PLAIN)));
    let machine = Machine::builder().ram_size(8 << 20).icache(ICache::FenceI).program(file).build();
    machine.expect("a machine").run(&RunLimits { max_insns: Some(50_000_000), deadline: None })
}

#[test]
fn guests_catch_an_engine_that_runs_old_code() {
    let caught = |name: &&str| matches!(end_without_fence(name), MachineExit::Guest(exit) if exit.code != 0);
    // Where the engine may run old code, it is free to run the new: not each case has to be caught.
    let names =
        ["next_instruction", "later_in_own_block", "back_edge", "two_patches_ahead", "decoder_stub", "same_page"];
    assert!(names.iter().any(caught), "no guest saw that there is no fence.i");
}

/// A directory that is gone when the test ends.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        Dir(std::env::temp_dir().join(format!("notdirty-smc-test-{}-{name}", std::process::id())))
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("a plain name")
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn notdirty(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
    command.args(args).stdin(Stdio::null()).output().expect("the command starts")
}

#[test]
fn emitted_files_run_and_end_through_tohost() {
    for form in forms() {
        let dir = Dir::new(&format!("emit-{form:?}"));
        let cases: Vec<Case> = smc_test::catalogue().collect();
        let emitted = smc_test::emit(&dir.0, &cases, form).expect("files");
        let mut files = 0;
        for (case, what) in emitted {
            let Emitted::File(path) = what else { continue };
            files += 1;
            let harts = smc::case(case.name).expect("a guest").harts;
            let mut machine = Machine::builder().harts(harts).program(Program::Elf(path)).build().expect("a machine");
            // Harts that wait for each other count no instructions worth a limit.
            let limits = match harts {
                1 => RunLimits { max_insns: Some(50_000_000), deadline: None },
                _ => RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) },
            };
            match machine.run(&limits) {
                MachineExit::Guest(exit) => assert_eq!((exit.code, exit.by), (0, ExitBy::Tohost), "{}", case.name),
                other => panic!("{}: {other:?}", case.name),
            }
        }
        assert!(files >= 30, "{files} files");
    }
}

#[test]
fn the_command_lists_runs_emits_and_has_its_exit_codes() {
    let list = notdirty(&["smc-test", "--list"]);
    assert!(String::from_utf8_lossy(&list.stdout).contains("retells unicorn#820"));

    let table = notdirty(&["smc-test", "toggling", "host_write", "--icache", "fencei", "--mode=s"]);
    assert_eq!(table.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&table.stdout).contains("2 passed, 0 failed, 0 not applicable"));

    let json = notdirty(&["smc-test", "--engine=interp", "--json", "back_edge"]);
    assert_eq!(json.status.code(), Some(0));
    let json = String::from_utf8_lossy(&json.stdout).into_owned();
    for part in [
        "\"case\":\"back_edge\"",
        "\"result\":\"pass\"",
        "\"ns_a_patch\":",
        "\"mode\":\"m\"",
        "\"catches\":\"a loop ends",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }

    let dir = Dir::new("command");
    let emit = notdirty(&["smc-test", "--emit", dir.name(), "decoder_stub", "remapped"]);
    assert_eq!(emit.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&emit.stdout).contains("remapped: n/a"));
    let run = notdirty(&["run", &format!("{}/decoder_stub.elf", dir.name())]);
    assert_eq!(run.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("smc decoder_stub pass 00000000 ticks "));

    for bad in [&["smc-test", "no_such"][..], &["smc-test", "--engine", "fast"], &["smc-test", "--emit", "/dev/null/x"]]
    {
        assert_eq!(notdirty(bad).status.code(), Some(2), "{bad:?}");
    }
}

/// What QEMU makes of it is its own affair: the table is printed, and nothing more asked than that it is one.
#[test]
fn qemu_runs_the_same_guests() {
    if let Some(why) = smc_test::missing(Contender::Qemu) {
        eprintln!("skipped: {why}");
        return;
    }
    for form in forms() {
        let setup = Setup { contender: Contender::Qemu, form, runs: 1 };
        let reports: Vec<_> = smc_test::catalogue().map(|case| smc_test::run(&case, &setup)).collect();
        let passed = reports.iter().filter(|report| report.outcome == Outcome::Pass).count();
        println!("QEMU, {form:?}\n{}", smc_test::table(&reports));
        assert!(passed >= 20, "only {passed} cases pass in QEMU: are the files at fault?");
    }
}

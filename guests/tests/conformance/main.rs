//! Whole guest programs, run by the `notdirty` command; each judges itself, or is judged by what it prints or leaves.
//!
//! ```text
//!   ours        programs/build/quick/*.elf, from `make guests`; NAME-2h.elf on two harts; quick/shuffled/*.elf the same
//!               programs in supervisor mode
//!   kernel.rs   ours too, a small one
//!   corpus      $NOTDIRTY_CORPUS, directories joined by ':'; by default ../corpora/programs beside the project. ELF files
//!               that others wrote; NAME.out beside NAME.elf is the expected output
//!   micropython.rs   MicroPython's own port for this board, as it was built in ../corpora, with its tests
//!   qemu_tool.rs     QEMU's analyze-migration.py, from ../corpora/qemu, reads our streams and snapshots
//!   upstream.rs riscv-tests and riscv-arch-test, as they were built in ../corpora, on every engine with one and two
//!               harts, with a table of what passed and what is not claimed
//! ```
//!
//! run.rs runs, signatures.rs compares, table.rs counts. What is not there is said, and passes: the corpora are never part of the project.
//! `make conformance` runs these tests and shows what was run.

mod kernel;
mod micropython;
mod qemu_tool;
mod run;
mod signatures;
mod table;
mod upstream;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use run::{ENGINES, ENGINES_WITH_TWO_HARTS, Job, elves, name, run_all};

#[test]
fn our_c_programs_pass_on_both_engines() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick");
    let mut programs = elves(&dir);
    if programs.is_empty() {
        println!("SKIPPED our C programs: none in {} (make guests needs a cross compiler)", dir.display());
        return;
    }
    // The same programs in supervisor mode, on shuffled frames.
    let paged = elves(&dir.join("shuffled"));
    assert!(paged.len() > 25, "{} programs for supervisor mode", paged.len());
    programs.extend(paged);
    let outputs = all_pass("our C programs", &programs);
    // The same result on both engines, and not only one that the program accepts: times differ, checksums may not.
    for program in &programs {
        let [jit, interp] = ENGINES.map(|config| checksums(&outputs[&(program.clone(), config.name)]));
        assert_eq!(jit, interp, "{}: the engines disagree", program.display());
    }
}

#[test]
fn the_corpus_beside_the_project_passes_on_both_engines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let dirs: Vec<PathBuf> = match std::env::var("NOTDIRTY_CORPUS") {
        Ok(list) if !list.is_empty() => list.split(':').map(|dir| root.join(dir)).collect(),
        _ => vec![root.join("../corpora/programs")],
    };
    for dir in dirs {
        let programs = elves(&dir);
        if programs.is_empty() {
            println!("SKIPPED corpus: no ELF files in {}", dir.display());
            continue;
        }
        let outputs = all_pass(&dir.display().to_string(), &programs);
        for ((program, engine), output) in &outputs {
            if let Ok(expected) = fs::read_to_string(program.with_extension("out")) {
                assert_eq!(lines(output), lines(&expected), "{} on {engine}: wrong output", program.display());
            }
        }
    }
}

/// A console may end lines by CR LF; what counts is the text.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

fn checksums(output: &str) -> Vec<&str> {
    output.split_whitespace().filter_map(|word| word.strip_prefix("check=")).collect()
}

/// Runs every program on both engines, and fails with all failures together.
fn all_pass(title: &str, programs: &[PathBuf]) -> BTreeMap<(PathBuf, &'static str), String> {
    let jobs: Vec<Job> = programs
        .iter()
        .flat_map(|program| {
            let two = name(program).ends_with("-2h.elf");
            let engines = if two { ENGINES_WITH_TWO_HARTS } else { ENGINES };
            engines.map(|config| Job { program: program.clone(), config, signature: None })
        })
        .collect();
    let started = Instant::now();
    let runs = run_all(&jobs, run::LIMIT);
    let mut failures = Vec::new();
    for (job, run) in jobs.iter().zip(&runs) {
        if let Some(why) = run.failed() {
            failures.push(format!("{} on {}: {why}", name(&job.program), job.config.name));
        }
    }
    println!("{title}: {} of {} runs passed in {:.1?}", jobs.len() - failures.len(), jobs.len(), started.elapsed());
    assert!(failures.is_empty(), "{title}: {} failed\n  {}", failures.len(), failures.join("\n  "));
    let outputs = jobs.iter().zip(runs).map(|(job, run)| ((job.program.clone(), job.config.name), run.output));
    outputs.collect()
}

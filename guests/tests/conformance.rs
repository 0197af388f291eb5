//! Whole guest programs, run by the `notdirty` command on both engines; each judges itself and ends with exit code 0.
//!
//!   ours     programs/build/quick/*.elf, from `make guests`, NAME-2h.elf on two harts; says so and passes when there is no
//!            cross compiler
//!   corpus   $NOTDIRTY_CORPUS, directories joined by ':'; by default ../corpora/riscv-tests and ../corpora/programs
//!            beside the project. ELFs others wrote: riscv-tests, C programs. NAME.out beside NAME.elf is the expected
//!            output. Says so and passes when there is none; the corpus is never part of the project.
//!
//! `make conformance` runs this file and shows what was run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

const ENGINES: [&str; 2] = ["jit", "interp"];

/// Beyond any honest run here, in seconds; the command's own limit comes first and says where the guest was.
const LIMIT: u64 = 120;

/// Programs of the corpus that this machine cannot run yet, by a part of their name.
const LEFT_OUT: &[(&str, &str)] = &[
    ("-v-", "virtual-memory build: needs S-mode and paging"),
    ("rv64si-", "needs S-mode"),
    ("rv64uf-", "needs F"),
    ("rv64ud-", "needs D"),
];

#[test]
fn our_c_programs_pass_on_both_engines() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick");
    let programs = elves(&dir);
    if programs.is_empty() {
        println!("SKIPPED our C programs: none in {} (make guests needs a cross compiler)", dir.display());
        return;
    }
    let outputs = run_all("our C programs", &programs);
    // The same result on both engines, and not only one that the program accepts: times differ, checksums may not.
    for program in &programs {
        let [jit, interp] = ENGINES.map(|engine| checksums(&outputs[&(program.clone(), engine)]));
        assert_eq!(jit, interp, "{}: the engines disagree", program.display());
    }
}

#[test]
fn the_corpus_beside_the_project_passes_on_both_engines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
    let dirs: Vec<PathBuf> = match std::env::var("NOTDIRTY_CORPUS") {
        Ok(list) if !list.is_empty() => list.split(':').map(|dir| root.join(dir)).collect(),
        _ => ["../corpora/riscv-tests", "../corpora/programs"].map(|dir| root.join(dir)).to_vec(),
    };
    for dir in dirs {
        let mut programs = elves(&dir);
        programs.retain(|program| match LEFT_OUT.iter().find(|(part, _)| name(program).contains(part)) {
            Some((_, reason)) => {
                println!("left out {}: {reason}", name(program));
                false
            }
            None => true,
        });
        if programs.is_empty() {
            println!("SKIPPED corpus: no ELF files in {}", dir.display());
            continue;
        }
        let outputs = run_all(&dir.display().to_string(), &programs);
        for ((program, engine), output) in &outputs {
            if let Ok(expected) = fs::read_to_string(program.with_extension("out")) {
                assert_eq!(lines(output), lines(&expected), "{} on {engine}: wrong output", program.display());
            }
        }
    }
}

/// Every ELF file in `dir`, by its magic, sorted; empty if there is no such directory.
fn elves(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_elf(path)).collect();
    found.sort();
    found
}

fn is_elf(path: &Path) -> bool {
    use std::io::Read;
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A console may end lines by CR LF; what counts is the text.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim_end).collect()
}

fn checksums(output: &str) -> Vec<&str> {
    output.split_whitespace().filter_map(|word| word.strip_prefix("check=")).collect()
}

type Outputs = BTreeMap<(PathBuf, &'static str), String>;

/// Runs every program on every engine, as many at once as there are cores, and fails with all failures together.
fn run_all(title: &str, programs: &[PathBuf]) -> Outputs {
    let mut jobs: Vec<(PathBuf, &'static str)> = Vec::new();
    for program in programs {
        jobs.extend(ENGINES.map(|engine| (program.clone(), engine)));
    }
    let total = jobs.len();
    let (jobs, outputs, failures) = (Mutex::new(jobs), Mutex::new(Outputs::new()), Mutex::new(Vec::new()));
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let Some((program, engine)) = jobs.lock().unwrap().pop() else { return };
                    let run = run(&program, engine);
                    if !run.status.is_some_and(|status| status.success()) {
                        let status = run.status.map_or("killed, it did not end".into(), |status| status.to_string());
                        let said = format!("{}{}", run.output, run.errors);
                        let tail: Vec<&str> = said.lines().rev().take(4).collect();
                        let tail: Vec<&str> = tail.into_iter().rev().collect();
                        failures.lock().unwrap().push(format!(
                            "{} on {engine}: {status}\n    {}",
                            name(&program),
                            tail.join("\n    ")
                        ));
                    }
                    outputs.lock().unwrap().insert((program, engine), run.output);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    println!("{title}: {} of {total} runs passed in {:.1?}", total - failures.len(), started.elapsed());
    assert!(failures.is_empty(), "{title}: {} failed\n  {}", failures.len(), failures.join("\n  "));
    outputs.into_inner().unwrap()
}

struct Run {
    /// `None` if it had to be killed.
    status: Option<ExitStatus>,
    output: String,
    errors: String,
}

fn run(program: &Path, engine: &str) -> Run {
    // Files and not pipes: nothing here can block on the other.
    let scratch = |what: &str| {
        std::env::temp_dir().join(format!("notdirty-{}-{engine}-{}.{what}", std::process::id(), name(program)))
    };
    let (output, errors) = (scratch("stdout"), scratch("stderr"));
    let harts = if name(program).ends_with("-2h.elf") { "2" } else { "1" };
    let mut child = Command::new(env!("CARGO_BIN_EXE_notdirty"))
        .args(["run", "--engine", engine, "--smp", harts, "--timeout", &LIMIT.to_string()])
        .arg(program)
        .stdin(Stdio::null())
        .stdout(File::create(&output).expect("temporary file"))
        .stderr(File::create(&errors).expect("temporary file"))
        .spawn()
        .expect("the notdirty command starts");
    let deadline = Instant::now() + Duration::from_secs(LIMIT + 30);
    let status = loop {
        match child.try_wait().expect("the child is ours") {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill().expect("the child is ours");
                child.wait().expect("the child is ours");
                break None;
            }
            None => thread::sleep(Duration::from_millis(2)),
        }
    };
    let take = |path: &Path| {
        let text = fs::read(path).unwrap_or_default();
        fs::remove_file(path).ok();
        String::from_utf8_lossy(&text).into_owned()
    };
    Run { status, output: take(&output), errors: take(&errors) }
}

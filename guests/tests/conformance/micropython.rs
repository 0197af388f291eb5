//! MicroPython's port for the 64-bit `virt` board of QEMU prints for each of its tests what it prints in QEMU.
//!
//! ```text
//!   $NOTDIRTY_CORPORA/micropython   a clone of micropython/micropython, in which the board VIRT_RV64 of ports/qemu is built
//!   input of a session              each test of one directory, pasted into the raw REPL, and a reset; at last the board's
//! ```
//!
//! A test that a board cannot pass says so itself, or fails in the same way. Upstream's own runner works too: its device is
//! `exec:notdirty run firmware.elf`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::run::{Config, Scratch, capture_with, in_parallel, qemu};
use crate::upstream::corpora;

const CONFIGS: [Config; 3] = [
    Config { name: "default", options: &[] },
    Config { name: "translated", options: &["--jit-off", "tier0"] },
    Config { name: "oracle", options: &["--engine", "interp"] },
];
const DIRECTORIES: [&str; 9] =
    ["basics", "extmod", "float", "import", "io", "micropython", "misc", "stress", "unicode"];
/// Longer than any session takes, in seconds.
const LIMIT: u64 = 600;
/// What the interpreter says behind each test.
const RESET: &str = "MPY: soft reboot\r\n";

/// The input of a session, and how many tests it has.
fn session(directory: &Path) -> (Vec<u8>, usize) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut tests: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "py")).collect();
    tests.sort();
    let mut input = Vec::new();
    for test in &tests {
        // The raw REPL, which a test may have left; run, and start the interpreter anew.
        input.push(1);
        input.extend(fs::read(test).expect("a test is read"));
        input.extend([4, 4]);
    }
    input.extend(b"\x01import machine\nmachine.reset()\n\x04");
    (input, tests.len())
}

/// What a session prints.
fn printed(command: Command, input: &Path, what: &str) -> String {
    let run = capture_with(command, File::open(input).expect("the input").into(), Duration::from_secs(LIMIT));
    assert_eq!(run.failed(), None, "{what}");
    run.output
}

#[test]
fn micropython_prints_for_its_tests_what_it_prints_in_qemu() {
    let clone = corpora().join("micropython");
    let firmware = clone.join("ports/qemu/build-VIRT_RV64/firmware.elf");
    if !firmware.is_file() {
        println!("SKIPPED MicroPython: no {}", firmware.display());
        println!("  a clone of micropython/micropython, in which its makefile built the board VIRT_RV64 of ports/qemu");
        return;
    }
    let started = Instant::now();
    let sessions: Vec<_> = DIRECTORIES
        .map(|name| {
            let (input, count) = session(&clone.join("tests").join(name));
            let file = Scratch::new("micropython");
            fs::write(&file.0, input).expect("temporary file");
            (name, count, file)
        })
        .into();
    // QEMU last, if it is there.
    let engines = CONFIGS.len() + usize::from(qemu(&firmware).is_some());
    let outputs = in_parallel(sessions.len() * engines, |at| {
        let (name, _, input) = &sessions[at / engines];
        let Some(config) = CONFIGS.get(at % engines) else {
            return printed(qemu(&firmware).expect("it is installed"), &input.0, &format!("{name} in QEMU"));
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_notdirty"));
        command.arg("run").args(config.options).args(["--timeout", &LIMIT.to_string()]).arg(&firmware);
        printed(command, &input.0, &format!("{name} {}", config.name))
    });
    for ((name, count, _), outputs) in sessions.iter().zip(outputs.chunks(engines)) {
        let wanted = &outputs[engines - 1];
        assert!(*count > 5 && wanted.matches(RESET).count() >= *count, "{name}: {count} tests\n{wanted}");
        for (output, config) in outputs.iter().zip(CONFIGS) {
            let pieces = output.split(RESET).zip(wanted.split(RESET));
            let differs = pieces.enumerate().find(|(_, (ours, theirs))| ours != theirs);
            assert!(differs.is_none(), "{name} {}: test, ours and theirs: {differs:?}", config.name);
            assert_eq!(output.len(), wanted.len(), "{name} {}", config.name);
        }
    }
    let all: usize = sessions.iter().map(|(_, count, _)| count).sum();
    let beside = if engines > CONFIGS.len() { ", and beside QEMU" } else { "" };
    println!("MicroPython: {all} tests on {} engines{beside}, {:.1?}", CONFIGS.len(), started.elapsed());
}

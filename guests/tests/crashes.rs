//! A crash of each kind is told with its first trap, on one hart and on two, by both engines.
//!
//! `NOTDIRTY_BLESS=1` writes the golden file anew.

mod common;

use common::Elf;
use notdirty::programs::crash::{Crash, crash};
use notdirty::{EngineKind, Machine, MachineExit, Program, RunLimits};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn machine(how: Crash, harts: usize, frame_pointers: bool, engine: EngineKind) -> Machine {
    let (image, symbols) = crash(how, harts as i32 - 1, frame_pointers);
    let mut elf = Elf::new(image.load_addr, image.bytes);
    elf.symbols = symbols;
    let program = Program::ElfBytes("crash.elf".into(), elf.bytes());
    Machine::builder().ram_size(4 << 20).harts(harts).engine(engine).program(program).build().expect("a machine")
}

fn report(how: Crash, harts: usize, frame_pointers: bool, engine: EngineKind) -> String {
    let mut machine = machine(how, harts, frame_pointers, engine);
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
    let crashed = match machine.run(&limits) {
        MachineExit::Unhandled(crashed) => crashed,
        exit => panic!("{how:?} on {harts} harts by {engine:?}: {exit:?}"),
    };
    assert_eq!(crashed.hart, harts - 1);
    machine.crash_report(crashed.hart).expect("a report")
}

#[test]
fn each_kind_of_crash_is_told_by_its_first_trap() {
    let mut all = String::new();
    for harts in [1, 2] {
        for how in Crash::ALL {
            for frame_pointers in [true, false] {
                let text = report(how, harts, frame_pointers, EngineKind::Jit);
                let frames = if frame_pointers { "frame pointers" } else { "no frame pointers" };
                all += &format!("--- {how:?}, harts: {harts}, {frames}\n{text}");
                let oracle = report(how, harts, frame_pointers, EngineKind::Interp);
                assert_eq!(text, oracle, "{how:?} on {harts} harts: JIT, then oracle");
            }
        }
    }
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/crashes.txt");
    if std::env::var_os("NOTDIRTY_BLESS").is_some() {
        std::fs::write(&golden, &all).expect("the golden file");
    }
    let want = std::fs::read_to_string(&golden).expect("the golden file");
    let differs = all.lines().zip(want.lines()).find(|(ours, theirs)| ours != theirs);
    assert!(all == want, "first difference: {differs:?}");
}

#[test]
fn a_hart_that_crashes_beside_one_that_goes_on_is_told_at_the_deadline() {
    // Hart 1 crashes at once; hart 0 spins.
    let (image, symbols) = crash(Crash::Load, 1, true);
    let mut elf = Elf::new(image.load_addr, image.bytes);
    elf.symbols = symbols;
    let program = Program::ElfBytes("crash.elf".into(), elf.bytes());
    let mut machine = Machine::builder().ram_size(4 << 20).harts(2).program(program).build().expect("a machine");
    // An idle loop in place of wfi.
    let wfi = (0..0x40).step_by(2).map(|at| machine.ram_range().start + at);
    let mut word = [0; 4];
    let at = wfi.into_iter().find(|&at| machine.read(at, &mut word).is_ok() && word == 0x1050_0073u32.to_le_bytes());
    machine.write(at.expect("the wfi"), &0x0000_006fu32.to_le_bytes()).expect("RAM");
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_millis(300)) };
    assert_eq!(machine.run(&limits), MachineExit::Deadline);
    let crashed = machine.crashed().expect("hart 1");
    assert_eq!(crashed.hart, 1);
    let places = machine.places();
    assert!(places.contains("hart 0: pc 0x800000") && places.contains("in a loop of one instruction"), "{places}");
    assert!(places.lines().nth(1).is_some_and(|line| line.contains("stuck in its trap handler")), "{places}");
}

#[test]
fn callers_are_looked_for_wherever_the_stack_and_frame_pointers_point() {
    let machine = machine(Crash::Load, 1, true, EngineKind::Interp);
    let ram = machine.ram_range();
    let hostile: Vec<u64> = [0, ram.start, ram.end, 1 << 63, 0x1000_0000]
        .into_iter()
        .flat_map(|at: u64| (0..=17).flat_map(move |n| [at.wrapping_sub(n), at.wrapping_add(n)]))
        .collect();
    for &sp in &hostile {
        for &fp in &hostile {
            let mut x = [0; 32];
            (x[1], x[2], x[8]) = (fp, sp, fp);
            let (_, callers) = machine.callers(sp, &x);
            assert!(callers.len() <= 32, "sp {sp:#x}, fp {fp:#x}");
        }
    }
}

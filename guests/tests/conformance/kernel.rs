//! Our kernel (`programs/kernel`): on each engine, on one hart and two, and in QEMU it prints the same; and by the clock of
//! instructions it is the same run on each engine, to the last word of RAM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use notdirty::{
    Captured, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program, RAM_BASE,
    RunLimits,
};

use crate::run::{Config, Job, LIMIT, capture, qemu, run_all};

const RAM: u64 = 32 << 20;

/// The program for so many harts, if it was built.
fn kernel(harts: usize) -> Option<PathBuf> {
    let name = if harts == 1 { "kernel.elf" } else { "kernel-2h.elf" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick").join(name);
    if !path.is_file() {
        println!("SKIPPED our kernel: no {} (make guests needs a cross compiler)", path.display());
        return None;
    }
    Some(path)
}

/// What QEMU prints, if there is one.
fn in_qemu(kernel: &Path, harts: usize) -> Option<String> {
    let mut qemu = qemu(kernel)?;
    qemu.args(["-smp", &harts.to_string()]);
    let run = capture(qemu, Duration::from_secs(LIMIT));
    assert_eq!(run.failed(), None, "QEMU, {harts} harts");
    Some(run.output.replace('\r', ""))
}

#[test]
fn our_kernel_prints_the_same_on_every_engine_and_in_qemu() {
    const ONE: [Config; 4] = [
        Config { name: "default", options: &[] },
        Config { name: "translated", options: &["--jit-off", "tier0"] },
        Config { name: "oracle", options: &["--engine", "interp"] },
        Config { name: "fence.i", options: &["--jit-off", "tier0", "--icache", "fencei"] },
    ];
    const TWO: [Config; 4] = [
        Config { name: "default x2", options: &["--smp", "2"] },
        Config { name: "translated x2", options: &["--smp", "2", "--jit-off", "tier0"] },
        Config { name: "oracle x2", options: &["--smp", "2", "--engine", "interp"] },
        Config { name: "fence.i x2", options: &["--smp", "2", "--jit-off", "tier0", "--icache", "fencei"] },
    ];
    for (harts, configs) in [(1, ONE), (2, TWO)] {
        let Some(program) = kernel(harts) else { return };
        let jobs = configs.map(|config| Job { program: program.clone(), config, signature: None });
        let runs = run_all(&jobs, LIMIT);
        for (run, config) in runs.iter().zip(configs) {
            assert_eq!(run.failed(), None, "{}", config.name);
            assert!(run.output.contains(&format!("kernel: harts={harts}\n")), "{}", run.output);
            assert_eq!(run.output, runs[0].output, "{} and {}", config.name, configs[0].name);
        }
        if let Some(output) = in_qemu(&program, harts) {
            assert_eq!(runs[0].output, output, "{harts} harts: ours, and QEMU's");
        }
    }
}

/// The kernel by the clock of instructions: how it ended.
fn replayed(program: &Path, engine: EngineKind, flags: JitFlags) -> Machine {
    let builder = Machine::builder().ram_size(RAM).clock(ClockKind::Insns).engine(engine).jit_flags(flags);
    let mut machine = builder
        .console(Console::new(Box::new(Captured::default())))
        .program(Program::Elf(program.into()))
        .build()
        .expect("the machine is built");
    let exit = machine.run(&RunLimits { max_insns: Some(2_000_000_000), deadline: None });
    assert_eq!(exit, MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }), "{engine:?}");
    machine
}

#[test]
fn by_the_clock_of_instructions_our_kernel_is_the_same_run_on_every_engine() {
    let Some(program) = kernel(1) else { return };
    let ram = |machine: &Machine| {
        let mut bytes = vec![0; RAM as usize];
        machine.read(RAM_BASE, &mut bytes).expect("RAM is there");
        bytes
    };
    let oracle = replayed(&program, EngineKind::Interp, JitFlags::default());
    let expected = ram(&oracle);
    for flags in [JitFlags::default(), JitFlags { tier0: false, ..JitFlags::default() }] {
        let jit = replayed(&program, EngineKind::Jit, flags);
        let (ours, theirs) = (jit.cpu(), oracle.cpu());
        assert_eq!(ours.retired, theirs.retired, "retired instructions");
        assert_eq!((ours.x, ours.pc), (theirs.x, theirs.pc), "registers");
        assert_eq!(ours.csr, theirs.csr, "CSRs");
        let found = ram(&jit);
        if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
            panic!("RAM differs at {:#x}: {:#x} and {:#x}", RAM_BASE + at as u64, found[at], expected[at]);
        }
    }
}

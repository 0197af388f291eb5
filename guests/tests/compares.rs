//! Operands of comparisons: the same on each engine and tier, and a fuzzer finds a magic number by them.

use notdirty::programs::targets::{CRASHES, INPUT, MAX_INPUT, Planted, target};
use notdirty::programs::{demo::demo, minijit::minijit, sieve::sieve};
use notdirty::{Edges, EngineKind, JitFlags, Machine, MachineExit, Program, RunLimits};
use notdirty_tcg::testkit::Rng;
use std::sync::Arc;

fn machine(program: &Program, engine: EngineKind, flags: JitFlags) -> Machine {
    Machine::builder().ram_size(4 << 20).engine(engine).jit_flags(flags).program(program.clone()).build().unwrap()
}

fn until(insns: u64) -> RunLimits {
    RunLimits { max_insns: Some(insns), deadline: None }
}

#[test]
fn every_engine_notes_the_same_operands() {
    let off = JitFlags::default();
    let eager = JitFlags { tier0: false, ..off };
    let ways =
        [off, eager, JitFlags { samples: false, ..eager }, JitFlags { regions: false, optimise: false, ..eager }];
    for image in [sieve(2_000, 303), minijit(20_000), demo()] {
        let name = image.name;
        let program = Program::Image(image);
        for insns in [300, 4_000, 50_000] {
            let mut oracle = machine(&program, EngineKind::Interp, off);
            oracle.run(&until(100));
            oracle.set_compares(Some(Arc::default()));
            oracle.run(&until(insns));
            let want = oracle.take_operands(0);
            assert!(want.iter().any(|(_, operands)| operands[0] != operands[1]), "{name}");
            for flags in ways {
                let mut jit = machine(&program, EngineKind::Jit, flags);
                jit.run(&until(100));
                jit.set_compares(Some(Arc::default()));
                jit.run(&until(insns));
                // Places are given out as code is translated: of what was not executed there is nothing.
                let got: Vec<_> =
                    jit.take_operands(0).into_iter().filter(|(_, operands)| *operands != [0, 0]).collect();
                let some: Vec<_> = want.iter().copied().filter(|(_, operands)| *operands != [0, 0]).collect();
                assert_eq!(got, some, "{name}, {insns} instructions, {flags:?}");
                assert_eq!(jit.cpu().x, oracle.cpu().x, "{name}, {insns} instructions, {flags:?}");
                jit.set_compares(None);
                jit.run(&until(insns + 5_000));
                assert!(jit.take_operands(0).is_empty());
            }
        }
    }
}

/// Each input with one operand that is in it replaced by the other.
fn replaced(input: &[u8], operands: &[(u64, [u64; 2])]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (_, [a, b]) in operands {
        for (from, to) in [(a, b), (b, a)].into_iter().filter(|_| a != b) {
            for size in [8, 4, 2, 1] {
                let (from, to) = (&from.to_le_bytes()[..size], &to.to_le_bytes()[..size]);
                for at in 0..(input.len() + 1).saturating_sub(size) {
                    if input[at..at + size] == *from {
                        let mut new = input.to_vec();
                        new[at..at + size].copy_from_slice(to);
                        all.push(new);
                    }
                }
            }
        }
    }
    all
}

/// How many executions it takes from an empty input to a crash.
fn find(planted: Planted, most: u64) -> Option<(u64, Vec<u8>)> {
    let target = target(planted);
    let mut machine = Machine::builder().ram_size(1 << 20).program(Program::Image(target.image)).build().unwrap();
    machine.set_exits(&[target.ready]);
    machine.run(&RunLimits::default());
    machine.set_exits(&[target.done]);
    machine.set_trap_exits(CRASHES);
    machine.set_coverage(Some(Arc::new(Edges::hashed())));
    let start = machine.checkpoint().unwrap();
    let limits = until(machine.cpu().retired + 100_000);
    let (mut corpus, mut todo, mut seen, mut rng) = (vec![Vec::new()], Vec::new(), vec![false; 1 << 16], Rng::new(1));
    for executions in 1..=most {
        let input = todo.pop().unwrap_or_else(|| {
            let mut new: Vec<u8> = corpus[rng.below(corpus.len() as u64) as usize].clone();
            for _ in 0..=rng.below(12) {
                new.insert(rng.below(new.len() as u64 + 1) as usize, rng.below(256) as u8);
            }
            new.truncate(MAX_INPUT);
            new
        });
        let given = [&(input.len() as u64).to_le_bytes()[..], &input].concat();
        machine.write(INPUT, &given).unwrap();
        let exit = machine.run(&limits);
        if let Some(crash) = machine.crash(&exit, &input).filter(|_| matches!(exit, MachineExit::Trap { .. })) {
            return Some((executions, crash.input));
        }
        let mut new = false;
        for (count, seen) in machine.coverage(0).iter_mut().zip(&mut seen) {
            new |= *count != 0 && !*seen;
            *seen |= std::mem::take(count) != 0;
        }
        machine.restore(&start).unwrap();
        if new {
            // Once more, for what it compares.
            machine.set_compares(Some(Arc::default()));
            machine.write(INPUT, &given).unwrap();
            machine.run(&limits);
            todo.extend(replaced(&input, &machine.take_operands(0)));
            machine.set_compares(None);
            machine.coverage(0).fill(0);
            machine.restore(&start).unwrap();
            corpus.push(input);
        }
    }
    None
}

#[test]
fn a_magic_number_is_found_from_an_empty_input_by_what_is_compared() {
    for planted in [Planted::Magic, Planted::Length] {
        let (executions, input) = find(planted, 20_000).unwrap_or_else(|| panic!("{planted:?} was not found"));
        println!("{planted:?}: {executions} executions, {input:x?}");
        if planted == Planted::Magic {
            assert!(executions < 1_000 && input.windows(8).any(|bytes| bytes == b"\x0dnotdirt"), "{input:x?}");
        }
    }
}

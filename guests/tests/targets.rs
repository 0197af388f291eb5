//! The targets for fuzzers: each ends well by itself, crashes by its own witness and no other, and again after a restore.

use notdirty::programs::targets::{CRASHES, INPUT, Planted, target};
use notdirty::{EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program, RunLimits};

#[allow(dead_code, reason = "its main is the example's")]
#[path = "../examples/fuzz.rs"]
mod fuzz;

fn put(machine: &mut Machine, input: &[u8]) {
    machine.write(INPUT, &(input.len() as u64).to_le_bytes()).unwrap();
    machine.write(INPUT + 8, input).unwrap();
}

#[test]
fn each_target_crashes_by_its_own_input_and_no_other_as_often_as_it_is_put_back() {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    for (engine, flags) in [(EngineKind::Interp, on), (EngineKind::Jit, on), (EngineKind::Jit, eager)] {
        for planted in Planted::ALL {
            let target = target(planted);
            let program = Program::Image(target.image);
            let builder = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).program(program);
            let mut machine = builder.build().unwrap();
            assert_eq!(machine.run_to_end(), MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher }));
            machine.start_at(machine.ram_range().start).unwrap();
            machine.set_exits(&[target.ready]);
            assert_eq!(machine.run_to_end(), MachineExit::Pc { hart: 0, pc: target.ready });
            machine.set_exits(&[target.done]);
            machine.set_trap_exits(CRASHES);
            let start = machine.checkpoint().unwrap();
            let mut ends = Vec::new();
            for round in 0..40 {
                for input in [planted.witness(), b"", b"\x10no harm", &[0, 3, 1, 7, 1, 1]] {
                    put(&mut machine, input);
                    let exit = machine.run(&RunLimits { max_insns: Some(100_000), deadline: None });
                    let crashes = matches!(exit, MachineExit::Trap { .. });
                    assert!(crashes || exit == MachineExit::Pc { hart: 0, pc: target.done }, "{planted:?}: {exit:?}");
                    assert_eq!(crashes, input == planted.witness(), "{engine:?}, {planted:?}, {input:x?}: {exit:x?}");
                    ends.push((exit, machine.cpu().x, machine.cpu().retired));
                    machine.restore(&start).unwrap();
                    if round % 10 == 0 {
                        machine.verify(&start).unwrap();
                    }
                }
            }
            assert!(
                ends.iter().zip(&ends[4..]).all(|(a, b)| a == b),
                "{engine:?}, {planted:?}: not the same run again"
            );
        }
    }
}

#[test]
fn a_small_fuzzer_finds_the_first_two_from_an_empty_input() {
    for planted in [Planted::Length, Planted::UseAfterFree] {
        let (executions, input) = fuzz::find(planted, 1_000_000).unwrap().expect("it is found");
        println!("{planted:?}: {executions} executions, {input:x?}");
    }
}

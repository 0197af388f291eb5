//! Harts that take turns by a seed: the run is the same whatever runs it and in whatever pieces, and it is another one for another seed.

use notdirty::programs::targets::{CRASHES, INPUT, race};
use notdirty::programs::{GuestImage, clock, smp};
use notdirty::{
    ClockKind, EngineKind, ExitBy, GuestExit, JitFlags, LrSc, Machine, MachineBuilder, MachineExit, Program, RunLimits,
};
use std::collections::BTreeSet;

const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

fn turns(image: GuestImage, harts: usize, seed: u64) -> MachineBuilder {
    let builder = Machine::builder().ram_size(4 << 20).harts(harts).clock(ClockKind::Insns).turns(seed);
    builder.program(Program::Image(image))
}

/// The oracle, the JIT, and the JIT that translates at once.
fn engines(make: impl Fn() -> MachineBuilder) -> [Machine; 3] {
    let eager = JitFlags { tier0: false, ..JitFlags::default() };
    let all = [make().engine(EngineKind::Interp), make(), make().jit_flags(eager)];
    all.map(|builder| builder.build().expect("the machine is built"))
}

/// All that the harts show, the time, and a sum of memory.
fn state(machine: &mut Machine) -> (Vec<([u64; 32], u64, u64)>, u64) {
    let ram = machine.ram_range();
    let mut bytes = vec![0; (ram.end - ram.start) as usize];
    machine.read(ram.start, &mut bytes).unwrap();
    let words = bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let sum = words.fold(0u64, |sum, word| (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let harts = (0..machine.harts()).map(|hart| {
        let cpu = machine.vcpu(hart).unwrap().cpu();
        (cpu.x, cpu.pc, cpu.retired)
    });
    (harts.collect(), sum)
}

fn at_most(max_insns: u64) -> RunLimits {
    RunLimits { max_insns: Some(max_insns), deadline: None }
}

type Image = fn() -> GuestImage;
const GUESTS: [(&str, usize, Image); 6] = [
    ("counters", 2, || smp::counters(2, 300)),
    ("lock", 3, || smp::lock(3, 200)),
    ("ipi", 2, || smp::ipi(2, 20)),
    ("handshake", 2, || smp::handshake(2, 30, 10)),
    ("code race", 2, || smp::race(2, 20)),
    ("neighbours", 2, || smp::neighbours(2, 50)),
];

#[test]
fn a_seed_stands_for_one_run_on_every_engine_and_in_any_pieces() {
    for (name, harts, image) in GUESTS {
        let mut ends = BTreeSet::new();
        for seed in 0..6 {
            let mut first = None;
            for (n, machine) in engines(|| turns(image(), harts, seed)).iter_mut().enumerate() {
                let mut exit = MachineExit::InsnLimit;
                // The last one in pieces that get longer.
                let (mut max, mut piece) = if n == 2 { (7, 7) } else { (3_000_000, 1) };
                while exit == MachineExit::InsnLimit && max <= 3_000_000 {
                    exit = machine.run(&at_most(max));
                    (max, piece) = (max + piece, piece + 13);
                }
                assert_eq!(exit, PASS, "{name}, seed {seed}, engine {n}");
                let state = state(machine);
                assert!(
                    first.get_or_insert_with(|| state.clone()) == &state,
                    "{name}, seed {seed}, engine {n}: another run"
                );
            }
            ends.insert(first.unwrap());
        }
        assert!(ends.len() > 1, "{name}: the seed changes nothing");
    }
}

#[test]
fn a_run_behind_a_restore_is_the_run_behind_the_checkpoint() {
    for (name, harts, image) in GUESTS {
        for mut machine in engines(|| turns(image(), harts, 5)) {
            assert_eq!(machine.run(&at_most(500)), MachineExit::InsnLimit, "{name}");
            let start = machine.checkpoint().unwrap();
            let end = |machine: &mut Machine, seed: Option<u64>| {
                seed.into_iter().for_each(|seed| assert!(machine.set_seed(seed)));
                assert_eq!(machine.run(&at_most(3_000_000)), PASS, "{name}");
                let end = state(machine);
                machine.restore(&start).unwrap();
                machine.verify(&start).unwrap();
                end
            };
            let first = end(&mut machine, None);
            let others: Vec<_> = (0..4).map(|seed| end(&mut machine, Some(seed))).collect();
            assert!(end(&mut machine, None) == first, "{name}: not the same run again");
            for (seed, other) in others.iter().enumerate() {
                assert!(end(&mut machine, Some(seed as u64)) == *other, "{name}, seed {seed}: not the same run again");
            }
        }
    }
}

#[test]
fn harts_that_all_sleep_for_ever_have_hung() {
    for mut machine in engines(|| turns(smp::all_wait(3), 3, 1)) {
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Hung);
    }
}

#[test]
fn the_time_is_that_of_all_harts_and_a_sleeper_hears_of_another_one() {
    for asleep in [true, false] {
        let mut machine = turns(clock::another_hart_sets_mtime(asleep), 2, 3).build().unwrap();
        assert_eq!(machine.run(&at_most(200_000_000)), PASS, "asleep: {asleep}");
        println!(
            "{} and {} instructions",
            machine.vcpu(0).unwrap().cpu().retired,
            machine.vcpu(1).unwrap().cpu().retired
        );
    }
}

#[test]
fn a_strict_reservation_is_broken_by_a_hart_that_had_its_turn_in_between() {
    for seed in 0..4 {
        for mut machine in engines(|| turns(smp::free_list(2, 300), 2, seed).lrsc(LrSc::Strict)) {
            assert_eq!(machine.run(&at_most(3_000_000)), PASS, "seed {seed}");
        }
    }
}

/// Looks for a seed by which the race is lost; each engine must find the same.
#[test]
fn a_race_is_found_by_its_seed_and_lost_again_by_it() {
    let target = race();
    let mut found = BTreeSet::new();
    for mut machine in engines(|| turns(race().image, 2, 0)) {
        machine.set_exits(&[target.ready]);
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: target.ready });
        machine.set_exits(&[target.done]);
        machine.set_trap_exits(CRASHES);
        machine.write(INPUT, &1u64.to_le_bytes()).unwrap();
        machine.write(INPUT + 8, &[100]).unwrap();
        let start = machine.checkpoint().unwrap();
        let run = |machine: &mut Machine, seed| {
            machine.set_seed(seed);
            let exit = machine.run(&RunLimits::default());
            let lost = matches!(exit, MachineExit::Trap { .. });
            assert!(lost || exit == MachineExit::Pc { hart: 0, pc: target.done }, "seed {seed}: {exit:?}");
            let end = state(machine);
            machine.restore(&start).unwrap();
            lost.then_some((exit, end))
        };
        let (seed, lost) =
            (0..2_000).find_map(|seed| Some((seed, run(&mut machine, seed)?))).expect("it is lost by some");
        assert!(run(&mut machine, seed).is_some_and(|again| again == lost), "seed {seed}: not the same run again");
        found.insert((seed, lost.1));
    }
    println!("lost by seed {}", found.first().unwrap().0);
    assert_eq!(found.len(), 1, "each engine finds its own");
}

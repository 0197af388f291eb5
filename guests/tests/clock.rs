//! Time that jumps, lines that fall, and a machine that is run in pieces: all as one long run with nothing special.

use notdirty::programs::{GuestImage, clock};
use notdirty::{
    ClockKind, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineBuilder, MachineExit, Program, RunLimits,
};
use std::time::{Duration, Instant};

const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });
const ENGINES: [EngineKind; 2] = [EngineKind::Jit, EngineKind::Interp];

fn builder(image: GuestImage) -> MachineBuilder {
    Machine::builder().ram_size(4 << 20).program(Program::Image(image))
}

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

#[test]
fn mtime_that_another_hart_sets_ends_a_sleep_and_a_slice() {
    for asleep in [true, false] {
        for engine in ENGINES {
            let mut machine = builder(clock::another_hart_sets_mtime(asleep)).harts(2).engine(engine).build().unwrap();
            assert_eq!(machine.run(&soon()), PASS, "{engine:?}, asleep: {asleep}");
        }
    }
}

#[test]
fn under_the_instruction_clock_a_deadline_that_mtime_jumps_to_is_met_to_the_instruction() {
    let run = |engine, flags: JitFlags| {
        let image = clock::mtime_set_shortly_before_the_deadline();
        let mut machine = builder(image).engine(engine).jit_flags(flags).clock(ClockKind::Insns).build().unwrap();
        assert_eq!(machine.run(&soon()), PASS);
        let first = (machine.cpu().x[21], machine.cpu().retired);
        // And again on the same machine: nothing of the first run's time is left.
        machine.start_at(machine.ram_range().start).unwrap();
        assert_eq!(machine.run(&soon()), PASS);
        assert_eq!((machine.cpu().x[21], machine.cpu().retired), first, "{engine:?}");
        first
    };
    let want = run(EngineKind::Interp, JitFlags::default());
    assert!(want.0 <= 102, "a tick is 100 instructions, it took {}", want.0);
    for _ in 0..3 {
        assert_eq!(run(EngineKind::Jit, JitFlags::default()), want);
        assert_eq!(run(EngineKind::Jit, JitFlags { tier0: false, ..JitFlags::default() }), want);
    }
}

/// Passes on both engines, in one run and in pieces of so many instructions, by either clock.
fn passes_in_pieces(image: impl Fn(ClockKind, u64) -> GuestImage) {
    for clock in [ClockKind::Host, ClockKind::Insns] {
        for engine in ENGINES {
            for slice in [1, 7, 100, 300, u64::MAX] {
                let mut machine = builder(image(clock, slice)).engine(engine).clock(clock).build().unwrap();
                let end = soon();
                let exit = loop {
                    let max = machine.cpu().retired.saturating_add(slice);
                    match machine.run(&RunLimits { max_insns: Some(max), ..end }) {
                        MachineExit::InsnLimit => {}
                        exit => break exit,
                    }
                };
                assert_eq!(exit, PASS, "{engine:?}, {clock:?}, {slice} instructions a run");
            }
        }
    }
}

#[test]
fn mip_shows_the_lines_of_this_instruction_however_short_the_runs() {
    passes_in_pieces(|_, slice| clock::mip_behind_each_store(if slice < 100 { 20 } else { 300 }));
}

#[test]
fn what_ends_a_wfi_is_pending_and_a_trap_says_it_came_behind() {
    passes_in_pieces(|clock, _| clock::corners_of_wfi(clock == ClockKind::Insns));
}

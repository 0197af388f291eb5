//! Several harts: atomics, the memory model, interrupts between harts, and code that one writes and another runs.

use notdirty::programs::smp::{self, DATA, FLAG, FUNCTION, INTENT, LAST, Litmus};
use notdirty::programs::{GuestImage, basic};
use notdirty::{
    BuildError, ClockKind, EngineKind, ExitBy, GuestExit, ICache, JitFlags, LrSc, Machine, MachineBuilder, MachineExit,
    Program, RunLimits,
};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::{TraceMask, TraceSink};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

/// Translates at first sight: the default leaves patched code to tier 0.
fn eager() -> JitFlags {
    JitFlags { tier0: false, ..JitFlags::default() }
}

fn builder(image: GuestImage, harts: usize) -> MachineBuilder {
    Machine::builder().ram_size(4 << 20).harts(harts).program(Program::Image(image))
}

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(120)) }
}

/// Runs it to its end, and looks whether every hart's structures agree.
fn passes(what: &str, builder: MachineBuilder) -> Machine {
    let mut machine = builder.build().expect("the machine is built");
    let exit = machine.run(&soon());
    assert_eq!(exit, PASS, "{what}");
    machine
}

/// The oracle, the JIT, the JIT that translates at once, and that with an instruction cache that waits for `fence.i`.
fn on_every_engine(what: &str, harts: usize, image: impl Fn() -> GuestImage) {
    let make = || builder(image(), harts);
    passes(&format!("{what}, {harts} harts, oracle"), make().engine(EngineKind::Interp));
    passes(&format!("{what}, {harts} harts, JIT"), make());
    passes(&format!("{what}, {harts} harts, eager JIT"), make().jit_flags(eager()));
    passes(&format!("{what}, {harts} harts, fence.i"), make().jit_flags(eager()).icache(ICache::FenceI));
}

#[test]
fn no_atomic_addition_is_lost() {
    for harts in [2, 4] {
        on_every_engine("counters", harts, || smp::counters(harts, 20_000));
    }
}

#[test]
fn a_lock_of_lr_and_sc_lets_one_hart_in() {
    for harts in [2, 4] {
        on_every_engine("lock", harts, || smp::lock(harts, 10_000));
    }
}

/// As [`on_every_engine`], where any other store breaks a reservation.
fn strictly_on_every_engine(what: &str, harts: usize, image: impl Fn() -> GuestImage) {
    let make = || builder(image(), harts).lrsc(LrSc::Strict);
    passes(&format!("{what}, {harts} harts, oracle"), make().engine(EngineKind::Interp));
    passes(&format!("{what}, {harts} harts, JIT"), make());
    passes(&format!("{what}, {harts} harts, eager JIT"), make().jit_flags(eager()));
}

#[test]
fn loops_of_lr_and_sc_get_on_where_any_other_store_breaks_a_reservation() {
    for harts in [1, 2, 4] {
        strictly_on_every_engine("counters", harts, || smp::counters(harts, 10_000));
        strictly_on_every_engine("lock", harts, || smp::lock(harts, 5_000));
    }
}

#[test]
fn an_sc_notices_a_value_that_was_changed_back_if_that_was_asked_for() {
    strictly_on_every_engine("changed back", 2, || smp::changed_back(100));
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        let mut machine = builder(smp::changed_back(100), 2).engine(engine).build().unwrap();
        assert_ne!(machine.run(&soon()), PASS, "{engine:?}: compare-and-swap notices nothing");
    }
}

#[test]
fn a_free_list_without_a_count_stays_whole_if_any_other_store_breaks_a_reservation() {
    for harts in [2, 4] {
        strictly_on_every_engine("free list", harts, || smp::free_list(harts, 5_000));
    }
}

fn litmus(what: Litmus, rounds: i32) {
    let image = || smp::litmus(what, rounds);
    passes(
        &format!("{what:?}, oracle"),
        builder(smp::litmus(what, rounds / 10 + 1), what.harts()).engine(EngineKind::Interp),
    );
    passes(&format!("{what:?}, JIT"), builder(image(), what.harts()));
}

#[test]
fn message_passing_with_fences_passes_the_message() {
    litmus(Litmus::Mp, 1000);
}

#[test]
fn of_two_harts_that_store_and_fence_and_load_one_sees_the_other() {
    litmus(Litmus::Sb, 1000);
}

#[test]
fn a_fence_that_is_reserved_orders_as_a_plain_one() {
    litmus(Litmus::SbReserved, 1000);
}

#[test]
fn fences_that_were_left_out_for_others_or_for_an_amo_are_not_missed() {
    for what in [Litmus::SbTwice, Litmus::SbRow, Litmus::SbFenceAmo, Litmus::SbAmo, Litmus::SbLoop] {
        litmus(what, 1000);
        passes(&format!("{what:?}, eager JIT"), builder(smp::litmus(what, 300), 2).jit_flags(eager()));
    }
}

#[test]
fn an_lr_that_releases_comes_behind_the_stores_before_it() {
    litmus(Litmus::SbRelease, 1000);
}

#[test]
fn nobody_sees_a_store_that_its_own_load_caused() {
    litmus(Litmus::Lb, 1000);
}

#[test]
fn two_readers_agree_on_the_order_of_two_stores() {
    litmus(Litmus::Iriw, 150);
}

#[test]
fn a_token_goes_round_by_software_interrupts() {
    for harts in [2, 4] {
        on_every_engine("ipi", harts, || smp::ipi(harts, 300));
    }
}

#[test]
fn code_of_another_hart_is_new_after_its_flag_and_fence_i() {
    for harts in [2, 4] {
        on_every_engine("handshake", harts, || smp::handshake(harts, if harts == 2 { 3000 } else { 100 }, 0));
        // Some slices later, so that every hart has answered for the code that is written over.
        let slow = builder(smp::handshake(harts, 30, 1_500_000), harts);
        passes("slow handshake", slow.jit_flags(eager()));
    }
}

/// Keeps the lines.
struct Lines(Arc<Mutex<Vec<String>>>);

impl TraceSink for Lines {
    fn mask(&self) -> TraceMask {
        TraceMask::NOTDIRTY | TraceMask::TB
    }

    fn line(&mut self, _: TraceMask, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[test]
fn a_trace_of_kills_names_the_hart_and_pc_that_stored_and_no_pc_of_the_victim() {
    let (lines, image) = (Arc::<Mutex<Vec<String>>>::default(), smp::handshake(2, 10, 1_500_000));
    let (base, bytes) = (image.load_addr, image.bytes.clone());
    let traced = builder(image, 2).jit_flags(eager()).trace(Box::new(Lines(lines.clone())));
    passes("traced handshake", traced);
    let lines = lines.lock().unwrap();
    let with = |start: &str, part: &str| lines.iter().any(|line| line.starts_with(start) && line.contains(part));
    assert!(with("hart 0: 4 bytes at RAM ", " written at pc 0x"), "{lines:#?}");
    let dead = format!("hart 1: TB at {FUNCTION:#x} ");
    assert!(with("hart 1: 4 bytes at RAM ", " written by another hart, a device or the host"), "{lines:#?}");
    // The comparison at fence.i may come before the posted kill.
    assert!(
        with(&dead, "died of a store by another hart, a device or the host") || with(&dead, "found to be written over")
    );
    assert!(!with("hart 1: ", "at pc "), "hart 1 stores to no code: {lines:#?}");
    for (line, pc) in lines.iter().filter_map(|line| Some((line, line.split_once(" at pc 0x")?.1))) {
        let pc = u64::from_str_radix(&pc[..8], 16).unwrap();
        let at = (pc - base) as usize;
        assert_eq!(bytes[at..at + 4], 0x006b_2023_u32.to_le_bytes(), "no sw t1, 0(s6): {line}");
    }
}

#[test]
fn code_that_is_written_while_it_runs_is_old_or_new_and_new_after_fence_i() {
    for harts in [2, 4] {
        on_every_engine("race", harts, || smp::race(harts, 20_000));
    }
}

#[test]
fn harts_patch_functions_of_one_page_and_line() {
    for harts in [2, 4] {
        on_every_engine("neighbours", harts, || smp::neighbours(harts, 3000));
    }
}

#[test]
fn code_that_the_host_writes_is_new_after_its_flag_and_fence_i() {
    for (harts, engine, flags) in [
        (2, EngineKind::Interp, JitFlags::default()),
        (2, EngineKind::Jit, JitFlags::default()),
        (2, EngineKind::Jit, eager()),
        (4, EngineKind::Jit, eager()),
    ] {
        let mut machine = builder(smp::follow(harts), harts).engine(engine).jit_flags(flags).build().unwrap();
        let lui = |n: u64| (n as u32) << 12 | 0x537;
        machine.write(FUNCTION, &[lui(0).to_le_bytes(), 0x8067u32.to_le_bytes()].concat()).unwrap();
        let space = machine.space().clone();
        let exit = std::thread::scope(|scope| {
            scope.spawn(move || {
                let cell = |at: i32, n: u64| space.write(GuestPhys::new(DATA + at as u64), &n.to_le_bytes()).unwrap();
                for n in LAST - 10_000..=LAST {
                    cell(INTENT, n);
                    space.write(GuestPhys::new(FUNCTION), &lui(n).to_le_bytes()).unwrap();
                    cell(FLAG, n);
                }
            });
            machine.run(&soon())
        });
        assert_eq!(exit, PASS, "{harts} harts, {engine:?}, tier 0: {}", flags.tier0);
    }
}

#[test]
fn the_structures_of_every_hart_agree_after_a_race() {
    for harts in [2, 4] {
        let machine = passes("race", builder(smp::neighbours(harts, 1000), harts).jit_flags(eager()));
        for hart in 0..harts {
            let vcpu = machine.vcpu(hart).unwrap();
            assert_eq!(vcpu.cpu().hart_id, hart as u64);
            assert!(vcpu.stats().tbs_translated > 0, "hart {hart} ran");
        }
        let sum: u64 = (0..harts).map(|hart| machine.vcpu(hart).unwrap().stats().retired).sum();
        assert_eq!(machine.stats().retired, sum);
    }
}

#[test]
fn harts_that_all_wait_in_vain_have_hung_and_one_alone_has_not() {
    for engine in [EngineKind::Interp, EngineKind::Jit] {
        let mut machine = builder(smp::all_wait(3), 3).engine(engine).build().unwrap();
        assert_eq!(machine.run(&RunLimits { max_insns: None, deadline: None }), MachineExit::Hung);
        // It still does.
        assert_eq!(machine.run(&RunLimits { max_insns: None, deadline: None }), MachineExit::Hung);
    }
}

#[test]
fn the_first_limit_that_is_met_stops_all_harts_and_they_go_on_later() {
    let mut machine = builder(basic::spin(), 3).build().unwrap();
    let mut before = [0; 3];
    for round in 1..=5 {
        assert_eq!(
            machine.run(&RunLimits { max_insns: Some(1_000_000 * round), deadline: None }),
            MachineExit::InsnLimit
        );
        let now: Vec<u64> = (0..3).map(|hart| machine.vcpu(hart).unwrap().cpu().retired).collect();
        assert_eq!(now.iter().max(), Some(&(1_000_000 * round)));
        assert!(now.iter().zip(&before).all(|(now, before)| now >= before));
        before.copy_from_slice(&now);
    }
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    assert_eq!(machine.run(&RunLimits { max_insns: None, deadline }), MachineExit::Deadline);
    let stop = machine.stop_handle();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        stop.stop();
    });
    assert_eq!(machine.run_to_end(), MachineExit::Stopped);
    stopper.join().unwrap();
}

#[test]
fn a_machine_of_no_harts_or_too_many_or_with_a_clock_of_theirs_is_refused() {
    let refused = |harts, clock| builder(basic::spin(), harts).clock(clock).build().map(|_| ()).unwrap_err();
    assert!(matches!(refused(0, ClockKind::Host), BuildError::Harts { harts: 0 }));
    assert!(matches!(refused(65, ClockKind::Host), BuildError::Harts { harts: 65 }));
    assert!(matches!(refused(2, ClockKind::Insns), BuildError::ClockOfHarts { harts: 2 }));
}

#[test]
fn a_write_of_the_host_between_runs_is_seen_by_every_hart() {
    // A stopped machine's harts are drained by the call itself.
    let mut machine = builder(smp::follow(2), 2).jit_flags(eager()).build().unwrap();
    let lui = |n: u64| (n as u32) << 12 | 0x537;
    machine.write(FUNCTION, &[lui(0).to_le_bytes(), 0x8067u32.to_le_bytes()].concat()).unwrap();
    for n in 1..50 {
        let limit = 20_000 * n;
        assert_eq!(machine.run(&RunLimits { max_insns: Some(limit), deadline: None }), MachineExit::InsnLimit);
        machine.write(DATA + INTENT as u64, &n.to_le_bytes()).unwrap();
        machine.write(FUNCTION, &lui(n).to_le_bytes()).unwrap();
        machine.write(DATA + FLAG as u64, &n.to_le_bytes()).unwrap();
    }
    for (at, n) in [(INTENT, LAST), (FLAG, 49)] {
        machine.write(DATA + at as u64, &u64::to_le_bytes(n)).unwrap();
    }
    machine.write(FUNCTION, &lui(LAST).to_le_bytes()).unwrap();
    machine.write(DATA + FLAG as u64, &LAST.to_le_bytes()).unwrap();
    assert_eq!(machine.run(&soon()), PASS);
}

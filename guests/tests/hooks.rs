//! What hooks may do, on each engine and tier.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
use notdirty::hooks::{HookSpec, Kinds, View};
use notdirty::{EngineKind, JitFlags, Machine, MachineExit, RunLimits};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const RAM: u64 = 0x8000_0000;
const DATA: u64 = RAM + 0x8000;
/// Of the program below: its instructions behind the first, by their places.
const STORE: u64 = RAM + 4;
const CALL: u64 = RAM + 8;
const JUMP: u64 = RAM + 12;
const FUNCTION: u64 = RAM + 16;
const RETURN: u64 = RAM + 20;
/// Instructions of a turn. Runs of less than 320 never enter emitted code.
const TURN: u64 = 6;

fn ways() -> Vec<(EngineKind, JitFlags)> {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let jits = [
        on,
        eager,
        JitFlags { samples: false, ..eager },
        JitFlags { regions: false, ..eager },
        JitFlags { optimise: false, chaining: false, ..eager },
    ];
    [(EngineKind::Interp, on)].into_iter().chain(jits.map(|flags| (EngineKind::Jit, flags))).collect()
}

/// A loop that counts in s0, stores it to DATA and calls a function that adds 3 to s1.
fn machine(engine: EngineKind, flags: JitFlags) -> Machine {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64
        ; head:
        ; addi s0, s0, 1
        ; sd s0, [s2]
        ; jal ra, >function
        ; jal zero, <head
        ; function:
        ; addi s1, s1, 3
        ; jalr zero, ra, 0
    );
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
    machine.write(RAM, &ops.finalize().unwrap()).unwrap();
    machine.start_at(RAM).unwrap();
    machine.cpu_mut().x[18] = DATA;
    machine
}

fn each(mut f: impl FnMut(&mut Machine, &str)) {
    for (engine, flags) in ways() {
        // Fresh, and where it was translated before without hooks.
        for warm in [0, 3000] {
            let mut machine = machine(engine, flags);
            steps(&mut machine, warm * TURN);
            f(&mut machine, &format!("{engine:?}, {flags:?}, after {warm} turns"));
        }
    }
}

fn steps(machine: &mut Machine, n: u64) -> MachineExit {
    machine.run(&RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None })
}

fn counter() -> (Arc<AtomicU64>, impl FnMut(u64) -> ControlFlow<()> + Send + 'static) {
    let count = Arc::new(AtomicU64::new(0));
    let more = count.clone();
    let f = move |_| {
        more.fetch_add(1, Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    (count, f)
}

#[test]
fn hooks_are_called_once_for_each_instruction_block_and_call() {
    each(|machine, what| {
        let (insns, f) = counter();
        machine.add_hook(0, HookSpec::insn(STORE, f)).unwrap();
        let (blocks, f) = counter();
        machine.add_hook(0, HookSpec::block([RAM, FUNCTION], f)).unwrap();
        let (all, f) = counter();
        machine.add_hook(0, HookSpec::block(.., f)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let heard = calls.clone();
        let calls_hook = machine
            .add_hook(0, HookSpec::calls(.., move |_, call| heard.lock().unwrap().push((call.from, call.to))))
            .unwrap();
        assert_eq!(steps(machine, 500 * TURN), MachineExit::InsnLimit, "{what}");
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        assert_eq!((count(&insns), count(&blocks), count(&all)), (500, 1000, 1500), "{what}");
        let calls = calls.lock().unwrap();
        assert!(calls.len() == 1000 && calls[..2] == [(CALL, FUNCTION), (RETURN, JUMP)], "{what}: {:x?}", &calls[..4]);
        assert!(machine.remove_hook(0, calls_hook) && !machine.remove_hook(0, calls_hook));
        let removed = Arc::strong_count(&insns);
        assert_eq!(removed, 2, "a hook keeps its closure");
    });
}

#[test]
fn a_hook_writes_registers_and_memory_and_those_behind_it_see_them() {
    each(|machine, what| {
        machine
            .add_hook(
                0,
                HookSpec::insn_with(STORE, |view: &mut View| {
                    let value = view.x(8) + (1 << 32);
                    view.set_x(8, value & !(1 << 33));
                    view.set_x(0, 99);
                }),
            )
            .unwrap();
        machine
            .add_hook(
                0,
                HookSpec::insn_with(CALL, |view: &mut View| {
                    let mut stored = [0; 8];
                    view.read(DATA, &mut stored).unwrap();
                    assert_eq!(u64::from_le_bytes(stored), view.x(8));
                    view.write(DATA + 8, &stored).unwrap();
                    assert!(view.load(8, notdirty_softmmu::MemSize::B8).is_err() && view.write(8, &[1]).is_err());
                }),
            )
            .unwrap();
        machine.add_hook(0, HookSpec::block_with(FUNCTION, |view: &mut View| view.set_x(9, view.x(9) + 1))).unwrap();
        let before = machine.cpu().x[8];
        assert_eq!(steps(machine, 301 * TURN), MachineExit::InsnLimit, "{what}");
        let mut copy = [0; 8];
        machine.read(DATA + 8, &mut copy).unwrap();
        assert_eq!(machine.cpu().x[8], before + 301 + (1 << 32), "{what}");
        assert_eq!(u64::from_le_bytes(copy), before + 301 + (1 << 32), "{what}");
        assert_eq!(machine.cpu().x[9], 3 * before + 4 * 301, "{what}: three of the function, one of the hook");
    });
}

#[test]
fn a_stop_ends_the_run_before_the_instruction_and_the_next_run_executes_it() {
    each(|machine, what| {
        let from = machine.cpu().x[8];
        let calls = Arc::new(AtomicU64::new(0));
        let heard = calls.clone();
        let hook = machine
            .add_hook(
                0,
                HookSpec::insn_with(STORE, move |view: &mut View| {
                    heard.fetch_add(1, Ordering::Relaxed);
                    if view.x(8) % 4 == 3 {
                        view.stop();
                    }
                }),
            )
            .unwrap();
        for turn in 1..10 {
            let exit = machine.run(&RunLimits::default());
            assert_eq!(exit, MachineExit::Hook { hart: 0, pc: STORE, hook }, "{what}, turn {turn}");
            let (x, retired) = (machine.cpu().x[8], machine.cpu().retired);
            assert_eq!(x % 4, 3, "{what}");
            assert_eq!(retired, (x - 1) * TURN + 1, "{what}: what retired is counted");
        }
        assert_eq!(calls.load(Ordering::Relaxed), machine.cpu().x[8] - from, "{what}: called once for each");
        assert!(machine.switch_hook(0, hook, false));
        assert_eq!(steps(machine, 20 * TURN), MachineExit::InsnLimit, "{what}");
    });
}

#[test]
fn light_hooks_stop_too_also_where_a_block_begins_and_behind_a_return() {
    each(|machine, what| {
        type Kind = (u64, fn(u64) -> HookSpec, u64);
        let kinds: [Kind; 4] = [
            (CALL, |pc| HookSpec::insn(pc, |_| ControlFlow::Break(())), 2),
            (FUNCTION, |pc| HookSpec::block(pc, |_| ControlFlow::Break(())), 3),
            (JUMP, |pc| HookSpec::block(pc, |_| ControlFlow::Break(())), 5),
            (JUMP, |pc| HookSpec::block_with(pc, |view: &mut View| view.stop()), 5),
        ];
        for (pc, spec, insns) in kinds {
            let hook = machine.add_hook(0, spec(pc)).unwrap();
            for _ in 0..3 {
                assert_eq!(machine.run(&RunLimits::default()), MachineExit::Hook { hart: 0, pc, hook }, "{what}");
                assert_eq!(machine.cpu().retired % TURN, insns, "{what}, {pc:#x}");
            }
            machine.remove_hook(0, hook);
        }
        assert_eq!(machine.cpu().x[9] / 3, machine.cpu().retired / TURN + 1, "{what}");
    });
}

#[test]
fn an_instruction_that_is_skipped_counts_and_does_nothing() {
    each(|machine, what| {
        steps(machine, TURN);
        let (store, count) = (machine.cpu().x[8], machine.cpu().retired);
        machine.add_hook(0, HookSpec::insn_with(STORE, |view: &mut View| view.skip())).unwrap();
        machine.add_hook(0, HookSpec::insn_with(FUNCTION, |view: &mut View| view.set_pc(RETURN))).unwrap();
        machine.add_hook(0, HookSpec::insn_with(JUMP, |view: &mut View| view.skip())).unwrap();
        // Without its jump back the loop comes to the function, which returns to the jump: two instructions more a turn, for ever.
        assert_eq!(steps(machine, 3 + 3 * 400), MachineExit::InsnLimit, "{what}");
        let mut stored = [0; 8];
        machine.read(DATA, &mut stored).unwrap();
        assert_eq!(u64::from_le_bytes(stored), store, "{what}");
        assert_eq!(machine.cpu().retired, count + 1203, "{what}");
        assert_eq!(
            (machine.cpu().x[8], machine.cpu().x[9]),
            (store + 1, 3 * store),
            "{what}: the function does nothing"
        );
    });
}

#[test]
fn a_hook_may_patch_the_instruction_that_it_is_called_for() {
    each(|machine, what| {
        machine
            .add_hook(
                0,
                HookSpec::insn_with(FUNCTION, |view: &mut View| {
                    // addi s1, s1, n
                    let n = view.x(8) % 7;
                    let insn = 0x0004_8493 | (n as u32) << 20;
                    view.write(FUNCTION, &insn.to_le_bytes()).unwrap();
                }),
            )
            .unwrap();
        let (from, sum) = (machine.cpu().x[8], machine.cpu().x[9]);
        assert_eq!(steps(machine, 500 * TURN), MachineExit::InsnLimit, "{what}");
        let want: u64 = (from + 1..=from + 500).map(|n| n % 7).sum();
        assert_eq!(machine.cpu().x[9], sum + want, "{what}");
        assert_eq!(machine.cpu().retired, (from + 500) * TURN, "{what}");
    });
}

#[test]
fn a_hook_may_drop_all_code_and_be_called_by_what_is_translated_then() {
    each(|machine, what| {
        let (calls, mut f) = counter();
        machine
            .add_hook(
                0,
                HookSpec::insn_with(STORE, move |view: &mut View| {
                    let _ = f(0);
                    view.drop_code();
                }),
            )
            .unwrap();
        machine.add_hook(0, HookSpec::block_with(JUMP, |view: &mut View| view.drop_code())).unwrap();
        let from = machine.cpu().x[9];
        assert_eq!(steps(machine, 400 * TURN), MachineExit::InsnLimit, "{what}");
        assert_eq!((machine.cpu().x[9] - from, calls.load(Ordering::Relaxed)), (1200, 400), "{what}");
    });
}

#[test]
fn a_panic_of_a_hook_comes_out_of_the_run_and_the_machine_goes_on() {
    each(|machine, what| {
        let specs: [fn() -> HookSpec; 4] = [
            || HookSpec::insn(STORE, |_| panic!("light")),
            || HookSpec::insn_with(STORE, |_: &mut View| panic!("full")),
            || HookSpec::block(JUMP, |_| panic!("light block")),
            || HookSpec::block_with(FUNCTION, |_: &mut View| panic!("full block")),
        ];
        for spec in specs {
            let hook = machine.add_hook(0, spec()).unwrap();
            let panic = catch_unwind(AssertUnwindSafe(|| machine.run(&RunLimits::default()))).unwrap_err();
            assert!(panic.downcast_ref::<&str>().is_some(), "{what}");
            machine.remove_hook(0, hook);
            assert_eq!(steps(machine, 10 * TURN), MachineExit::InsnLimit, "{what}");
        }
        assert_eq!(machine.cpu().x[8], machine.cpu().retired.div_ceil(TURN), "{what}");
    });
}

#[test]
fn exits_and_hooks_of_one_place_come_in_their_order() {
    each(|machine, what| {
        let (calls, mut f) = counter();
        let hook = machine
            .add_hook(
                0,
                HookSpec::insn_with(STORE, move |view: &mut View| {
                    let _ = f(0);
                    view.stop();
                }),
            )
            .unwrap();
        machine.set_exits(&[STORE]);
        for turn in 1..5 {
            assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: STORE }, "{what}");
            assert_eq!(calls.load(Ordering::Relaxed), turn - 1, "{what}");
            assert_eq!(machine.run(&RunLimits::default()), MachineExit::Hook { hart: 0, pc: STORE, hook }, "{what}");
            assert_eq!(calls.load(Ordering::Relaxed), turn, "{what}");
        }
        // A limit in between, of each length.
        machine.set_exits(&[]);
        for n in 1..2 * TURN {
            let at = machine.cpu().retired;
            let exit = steps(machine, n);
            let want = if n <= TURN { MachineExit::InsnLimit } else { MachineExit::Hook { hart: 0, pc: STORE, hook } };
            assert_eq!(exit, want, "{what}, limit {n}");
            if n <= TURN {
                assert_eq!(machine.cpu().retired, at + n, "{what}");
                assert_eq!(
                    machine.run(&RunLimits::default()),
                    MachineExit::Hook { hart: 0, pc: STORE, hook },
                    "{what}"
                );
            }
            assert_eq!(machine.cpu().retired, at + TURN, "{what}");
        }
    });
}

#[test]
fn a_checkpoint_at_a_hook_comes_back_to_it_as_it_was() {
    each(|machine, what| {
        let (calls, mut f) = counter();
        let hook = machine
            .add_hook(
                0,
                HookSpec::insn_with(CALL, move |view: &mut View| {
                    let _ = f(0);
                    view.stop();
                }),
            )
            .unwrap();
        machine.run(&RunLimits::default());
        let at = machine.checkpoint().unwrap();
        let before = calls.load(Ordering::Relaxed);
        for _ in 0..20 {
            assert_eq!(machine.run(&RunLimits::default()), MachineExit::Hook { hart: 0, pc: CALL, hook }, "{what}");
            machine.restore(&at).unwrap();
            machine.verify(&at).unwrap();
        }
        assert_eq!(calls.load(Ordering::Relaxed), before + 20, "{what}: not again for the one that it was told of");
    });
}

#[test]
fn traps_are_told_before_they_are_taken() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags);
        // A handler that returns behind the trap; the function ends in an `ecall`.
        let handler = [0x3410_22f3u32, 0x0042_8293, 0x3412_9073, 0x3020_0073];
        let bytes: Vec<u8> = handler.iter().flat_map(|insn| insn.to_le_bytes()).collect();
        machine.write(RAM + 0x1000, &bytes).unwrap();
        machine.write(STORE, &0x0000_0073u32.to_le_bytes()).unwrap();
        machine.cpu_mut().csr.mtvec = RAM + 0x1000;
        let (count, mut f) = counter();
        let hook = machine
            .add_hook(
                0,
                HookSpec::traps(.., move |view: &mut View, trap| {
                    assert_eq!((view.pc(), trap.cause), (STORE, 11));
                    let _ = f(0);
                    view.set_x(18, view.x(18) + 8);
                    if view.x(8) == 20 {
                        view.stop();
                    }
                }),
            )
            .unwrap();
        let exit = machine.run(&RunLimits::default());
        assert_eq!(exit, MachineExit::Hook { hart: 0, pc: RAM + 0x1000, hook }, "{engine:?}, {flags:?}");
        assert_eq!((count.load(Ordering::Relaxed), machine.cpu().x[18]), (20, DATA + 160));
    }
}

#[test]
fn two_harts_have_hooks_of_their_own() {
    for (engine, flags) in ways() {
        let mut machine =
            Machine::builder().ram_size(1 << 20).harts(2).engine(engine).jit_flags(flags).build().unwrap();
        // addi s0, s0, 1; j .-4
        let code = [0x0014_0413u32, 0xffdf_f06f];
        machine.write(RAM, &code.map(u32::to_le_bytes).concat()).unwrap();
        machine.start_at(RAM).unwrap();
        for hart in 0..2usize {
            machine
                .add_hook(
                    hart,
                    HookSpec::insn_with(RAM + 4, move |view: &mut View| {
                        assert_eq!(view.cpu().hart_id, hart as u64);
                        if view.x(8) == 5_000 {
                            view.stop();
                        }
                    }),
                )
                .unwrap();
        }
        let mut met = [0; 2];
        for _ in 0..2 {
            match machine.run(&RunLimits::default()) {
                MachineExit::Hook { hart, pc, .. } => {
                    assert_eq!(pc, RAM + 4);
                    met[hart] += 1;
                    machine.vcpu_mut(hart).unwrap().cpu_mut().x[8] = 1 << 32;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(met, [1, 1], "{engine:?}, {flags:?}");
        assert!(machine.add_hook(2, HookSpec::insn(.., |_| ControlFlow::Continue(()))).is_none());
    }
}

#[test]
fn a_stop_by_a_hook_is_told_by_the_next_run_if_another_stop_came_first() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags);
        // addi s0, s0, 1; j .-4
        machine.cpu_mut().x[8] = 0;
        machine.write(RAM, &[0x0014_0413u32, 0xffdf_f06f].map(u32::to_le_bytes).concat()).unwrap();
        let stop = machine.stop_handle();
        let at_5000 = move |view: &mut View| {
            if view.x(8) == 5_000 {
                stop.stop();
                view.stop();
            }
        };
        machine.add_hook(0, HookSpec::insn_with(RAM + 4, at_5000)).unwrap();
        let limits = || RunLimits { deadline: Some(Instant::now() + Duration::from_secs(20)), ..RunLimits::default() };
        let mut exits = [machine.run(&limits()), machine.run(&limits())];
        if matches!(exits[0], MachineExit::Hook { .. }) {
            exits.swap(0, 1);
        }
        let told = matches!(exits, [MachineExit::Stopped, MachineExit::Hook { hart: 0, pc: 0x8000_0004, .. }]);
        assert!(told, "{engine:?}, {flags:?}: {exits:?}");
        assert_eq!(machine.cpu().x[8], 5_000);
        // The hook is not called again for what it has seen.
        assert_eq!(steps(&mut machine, 2), MachineExit::InsnLimit);
        assert_eq!(machine.cpu().x[8], 5_001);
    }
}

#[test]
fn a_hook_changes_a_register_whose_value_is_known() {
    // addi a0, zero, 5; addi a1, a0, 1; slli a2, a0, 4; add s2, s2, a1; j .-16
    let code = [0x0050_0513u32, 0x0015_0593, 0x0045_1613, 0x00b9_0933, 0xff1f_f06f];
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags);
        machine.write(RAM, &code.map(u32::to_le_bytes).concat()).unwrap();
        machine.cpu_mut().x[18] = 0;
        machine.add_hook(0, HookSpec::insn_with(RAM + 4, |view: &mut View| view.set_x(10, 9))).unwrap();
        assert_eq!(steps(&mut machine, 5 * 1000), MachineExit::InsnLimit);
        let x = machine.cpu().x;
        assert_eq!((x[10], x[11], x[12], x[18]), (9, 10, 144, 10_000), "{engine:?}, {flags:?}");
    }
}

#[test]
fn hooks_of_an_instruction_that_ends_a_run_otherwise_are_called_once() {
    each(|machine, what| {
        let (calls, f) = counter();
        machine.add_hook(0, HookSpec::insn(STORE, f)).unwrap();
        machine.watch(DATA..DATA + 8, Kinds::Stores, true);
        for turn in 1..6 {
            let exit = steps(machine, 10 * TURN);
            assert!(matches!(exit, MachineExit::Watch { pc: STORE, .. }), "{what}: {exit:?}");
            assert_eq!(calls.load(Ordering::Relaxed), turn, "{what}");
        }
        machine.watch(DATA..DATA + 8, Kinds::Stores, false);
        // A store to where nothing is: the trap ends the run, then it is taken, to where nothing is either.
        machine.cpu_mut().x[18] = 64;
        machine.set_trap_exits(1 << 7);
        let before = calls.load(Ordering::Relaxed);
        let exit = steps(machine, 10 * TURN);
        assert!(matches!(exit, MachineExit::Trap { pc: STORE, .. }), "{what}: {exit:?}");
        machine.set_trap_exits(0);
        steps(machine, 1);
        // Where the host put the hart, it was called anew.
        assert_eq!(calls.load(Ordering::Relaxed), before + 1, "{what}");
    });
}

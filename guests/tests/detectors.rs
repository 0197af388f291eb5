//! Detectors: what is a crash though the guest goes on, told before it happens, with all that is known of it.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
use notdirty::hooks::{HookSpec, Kinds, View, Watch};
use notdirty::{CrashKind, EngineKind, JitFlags, Machine, MachineExit, RunLimits};

const RAM: u64 = 0x8000_0000;
const HEAP: u64 = RAM + 0x8000;

fn ways() -> Vec<(EngineKind, JitFlags)> {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let jits = [on, eager, JitFlags { samples: false, ..eager }, JitFlags { regions: false, ..eager }];
    [(EngineKind::Interp, on)].into_iter().chain(jits.map(|flags| (EngineKind::Jit, flags))).collect()
}

fn machine(engine: EngineKind, flags: JitFlags, code: &[u8]) -> Machine {
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
    machine.write(RAM, code).unwrap();
    machine.start_at(RAM).unwrap();
    machine
}

/// Fills a0 bytes at HEAP, one by one, forever: one more each time.
fn filler() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64
        ; again:
        ; addi s0, s0, 1
        ; addi t0, a1, 0
        ; addi t1, zero, 0
        ; byte:
        ; sb s0, [t0]
        ; addi t0, t0, 1
        ; addi t1, t1, 1
        ; blt t1, s0, <byte
        ; j <again
    );
    ops.finalize().unwrap()
}

#[test]
fn a_red_zone_is_met_at_its_first_byte() {
    for (engine, flags) in ways() {
        for size in [1u64, 7, 64, 1000, 5000] {
            let mut machine = machine(engine, flags, &filler());
            machine.cpu_mut().x[11] = HEAP;
            machine.poison(HEAP + size..HEAP + size + 16);
            let exit = machine.run(&RunLimits::default());
            let crash = machine.crash(&exit, b"input").expect("it is a crash");
            let CrashKind::Access(access) = crash.kind else { panic!("{exit:?}") };
            let what = format!("{engine:?}, {flags:?}, {size}");
            assert_eq!(
                (access.why, access.addr, access.size, access.store),
                (Watch::Poison, HEAP + size, 1, true),
                "{what}"
            );
            assert_eq!(
                (crash.pc, crash.addr, crash.cpu.x[8], &crash.input[..]),
                (RAM + 12, HEAP + size, size + 1, &b"input"[..])
            );
            assert!(
                crash.report.starts_with("crash of hart 0: store to poisoned bytes, 1 bytes at 0x8000"),
                "{}",
                crash.report
            );
            let mut red = [9; 1];
            machine.read(HEAP + size, &mut red).unwrap();
            assert_eq!(red, [0], "{what}: nothing was stored");
            machine.unpoison(HEAP + size..HEAP + size + 16);
            let limit = RunLimits { max_insns: Some(machine.cpu().retired + 200), deadline: None };
            assert_eq!(machine.run(&limit), MachineExit::InsnLimit, "{what}");
        }
    }
}

#[test]
fn hooks_poison_what_is_freed_and_a_use_of_it_is_met() {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    // 0: allocate, 4: use, 8: free, 12: allocate, 16: use, 20: again, until s0 is 100; then free and use.
    dynasmrt::dynasm!(ops ; .arch riscv64
        ; again:
        ; addi a2, zero, 1
        ; sd s0, [a1]
        ; addi a2, zero, 2
        ; addi s0, s0, 1
        ; addi t0, zero, 100
        ; blt s0, t0, <again
        ; ld t1, [a1]
        ; j <again
    );
    let code = ops.finalize().unwrap();
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags, &code);
        machine.cpu_mut().x[11] = HEAP + 24;
        machine.add_hook(0, HookSpec::insn_with(RAM, |view: &mut View| view.unpoison(HEAP + 24..HEAP + 32))).unwrap();
        machine.add_hook(0, HookSpec::insn_with(RAM + 8, |view: &mut View| view.poison(HEAP + 24..HEAP + 32))).unwrap();
        let exit = machine.run(&RunLimits::default());
        let crash = machine.crash(&exit, &[]).unwrap();
        assert!(matches!(crash.kind, CrashKind::Access(access) if access.why == Watch::Poison && !access.store));
        assert_eq!((crash.pc, crash.cpu.x[8]), (RAM + 24, 100), "{engine:?}, {flags:?}");
    }
}

#[test]
fn execution_outside_of_code_is_met_where_it_begins() {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64
        ; again:
        ; addi s0, s0, 1
        ; addi t0, zero, 2000
        ; blt s0, t0, <again
        ; jalr zero, a1, 0
    );
    let mut code = ops.finalize().unwrap();
    code.resize(0x2000, 0x01); // c.addi zero, 0
    for (engine, flags) in ways() {
        // Data, the middle of code's page, and where nothing is.
        for to in [HEAP, RAM + 0x20, 0x4000_0000] {
            let mut machine = machine(engine, flags, &code);
            machine.cpu_mut().x[11] = to;
            let limit = RunLimits { max_insns: Some(3000), deadline: None };
            machine.run(&limit);
            machine.set_code(Some(&[RAM..RAM + 0x10, RAM + 0x100..RAM + 0x200]));
            let exit = machine.run(&RunLimits { max_insns: Some(100_000), deadline: None });
            assert_eq!(exit, MachineExit::Code { hart: 0, pc: to }, "{engine:?}, {flags:?}");
            let crash = machine.crash(&exit, &[1, 2]).unwrap();
            assert!(
                crash.kind == CrashKind::Code && crash.addr == to && crash.report.contains("execution outside of code")
            );
            assert_eq!(machine.cpu().retired, 6001);
        }
        let mut machine = machine(engine, flags, &code);
        machine.cpu_mut().x[11] = RAM + 0x1f0;
        machine.set_code(Some(&[RAM + 0x100..RAM + 0x200, RAM..RAM + 0x10]));
        let exit = machine.run(&RunLimits { max_insns: Some(100_000), deadline: None });
        assert_eq!(exit, MachineExit::Code { hart: 0, pc: RAM + 0x200 }, "straight on, {engine:?}, {flags:?}");
    }
}

#[test]
fn canaries_traps_and_budgets_are_crashes_and_exits_are_none() {
    for (engine, flags) in ways() {
        let mut machine = machine(engine, flags, &filler());
        machine.cpu_mut().x[11] = HEAP;
        machine.canary(HEAP + 100..HEAP + 108, true);
        let exit = machine.run(&RunLimits::default());
        let crash = machine.crash(&exit, &[]).unwrap();
        assert!(
            matches!(crash.kind, CrashKind::Access(access) if access.why == Watch::Canary),
            "{engine:?}, {flags:?}"
        );
        machine.canary(HEAP + 100..HEAP + 108, false);
        let exit = machine.run(&RunLimits { max_insns: Some(machine.cpu().retired + 1000), deadline: None });
        assert!(machine.crash(&exit, &[]).unwrap().kind == CrashKind::Budget);
        machine.set_trap_exits(1 << 7);
        machine.cpu_mut().x[5] = 16;
        machine.set_exits(&[RAM + 16]);
        let exit = machine.run(&RunLimits::default());
        assert!(matches!(exit, MachineExit::Pc { .. } | MachineExit::Trap { .. }));
        machine.set_exits(&[]);
        machine.cpu_mut().x[5] = 16;
        machine.cpu_mut().pc = RAM + 12;
        let exit = machine.run(&RunLimits::default());
        let crash = machine.crash(&exit, &[]).unwrap();
        assert!(matches!(crash.kind, CrashKind::Trap(trap) if trap.cause == 7 && trap.tval == 16) && crash.addr == 16);
        assert!(crash.report.contains("store/AMO access fault (cause 7), tval 0x10"), "{}", crash.report);
        machine.watch(HEAP..HEAP + 1, Kinds::Loads, true);
        assert!(machine.crash(&MachineExit::Stopped, &[]).is_none());
    }
}

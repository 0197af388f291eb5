//! Exits of a run: each arrival at one ends a run once, whatever engine and tier execute, and whatever was translated before.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};
use notdirty::{EngineKind, JitFlags, Machine, MachineExit, RunLimits};
use notdirty_tcg::riscv::Privilege;
use notdirty_tcg::testkit::Rng;

const RAM: u64 = 0x8000_0000;
const DATA: u64 = RAM + 0x8000;
/// A gigapage onto RAM.
const VIRTUAL: u64 = 0x4000_0000;
const TABLE: u64 = RAM + 0x9000;

macro_rules! rv {
    ($ops:expr ; $($insn:tt)*) => {
        dynasmrt::dynasm!($ops ; .arch riscv64 ; .feature imaczicsr_zifencei ; $($insn)*)
    };
}

fn ways() -> Vec<(EngineKind, JitFlags)> {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let jits =
        [on, eager, JitFlags { regions: false, ..eager }, JitFlags { optimise: false, chaining: false, ..eager }];
    [(EngineKind::Interp, on)].into_iter().chain(jits.map(|flags| (EngineKind::Jit, flags))).collect()
}

/// A loop with both ways of a branch, a call, a store, and a store into the function that is called. Some of its instructions are short.
fn program(shift: u64) -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    if !shift.is_multiple_of(4) {
        rv!(ops ; c.nop);
    }
    rv!(ops
        ; head:
        ; addi s0, s0, 1
        ; andi t0, s0, 3
        ; beqz t0, >even
        ; addi s1, s1, 3
        ; j >join
        ; even:
        ; c.addi s1, 5
        ; xor s1, s1, s0
        ; sw s5, [s6]
        ; fence.i
        ; xor s5, s5, s7
        ; join:
        ; sd s1, [s2]
        ; call >function
        ; c.nop
        ; j <head
        ; .align 4
        ; function:
        ; patched:
        ; addi s4, s4, 1
        ; ret
    );
    ops.finalize().unwrap()
}

struct Case {
    machine: Machine,
    base: u64,
    len: u64,
}

/// The program from so many bytes before a page's end on.
fn case(engine: EngineKind, flags: JitFlags, before: u64, paged: bool) -> Case {
    let code = program(before);
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
    let (at, len) = (RAM + 0x2000 - before, code.len() as u64);
    machine.write(at, &code).unwrap();
    machine.start_at(at).unwrap();
    let offset = if paged { VIRTUAL.wrapping_sub(RAM) } else { 0 };
    // Of the function: an addi and a ret, of two bytes or of four.
    let function = (0..code.len() - 3).rev().find(|at| code[*at..*at + 4] == 0x001a_0a13u32.to_le_bytes()).unwrap();
    if paged {
        machine.write(TABLE + 8, &(RAM >> 2 | 0xcf).to_le_bytes()).unwrap();
    }
    let cpu = machine.cpu_mut();
    (cpu.x[18], cpu.x[21], cpu.x[22], cpu.x[23]) =
        (DATA.wrapping_add(offset), 0x002a_0a13, (at + function as u64).wrapping_add(offset), 0x0030_0000);
    cpu.pc = at.wrapping_add(offset);
    if paged {
        cpu.csr.allow_all_memory();
        cpu.csr.satp = 8 << 60 | TABLE >> 12;
        cpu.privilege = Privilege::S;
    }
    Case { machine, base: at.wrapping_add(offset), len }
}

fn steps(machine: &mut Machine, n: u64) -> MachineExit {
    machine.run(&RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None })
}

#[test]
fn exits_are_met_as_single_steps_would_meet_them() {
    for (engine, flags) in ways() {
        for (before, paged) in [(0x800, false), (0x801e, false), (26, false), (30, false), (38, true), (0x400, true)] {
            follow(engine, flags, before % 0x1000, paged);
        }
    }
}

fn follow(engine: EngineKind, flags: JitFlags, before: u64, paged: bool) {
    let what = format!("{engine:?}, {flags:?}, {before:#x} before the end of a page, paged {paged}");
    let mut ours = case(engine, flags, before, paged);
    let mut steps_of = case(EngineKind::Interp, JitFlags::default(), before, paged);
    let mut rng = Rng::new(before);
    let mut exits: Vec<u64> = Vec::new();
    // The exit at today's place was told, or was not set when the hart came there.
    let mut told = true;
    for round in 0..300 {
        if rng.below(3) != 0 {
            exits = (0..rng.below(4)).map(|_| ours.base + 2 * rng.below(ours.len / 2)).collect();
            ours.machine.set_exits(&exits);
            told = true;
        }
        let limit = if rng.below(20) == 0 { 5_000 } else { 1 + rng.below(200) };
        let mut left = limit;
        let expected = loop {
            let pc = steps_of.machine.cpu().pc;
            if left == 0 {
                break MachineExit::InsnLimit;
            }
            if exits.contains(&pc) && !told {
                told = true;
                break MachineExit::Pc { hart: 0, pc };
            }
            steps(&mut steps_of.machine, 1);
            (left, told) = (left - 1, false);
        };
        let exit = steps(&mut ours.machine, limit);
        let (a, b) = (ours.machine.cpu(), steps_of.machine.cpu());
        assert_eq!((exit, a.retired, a.pc), (expected, b.retired, b.pc), "{what}, round {round}, exits {exits:x?}");
        assert_eq!(a.x, b.x, "{what}, round {round}");
    }
}

#[test]
fn no_arrival_of_two_harts_is_lost() {
    for (engine, flags) in ways() {
        let code = program(0);
        let mut machine =
            Machine::builder().ram_size(1 << 20).harts(2).engine(engine).jit_flags(flags).build().unwrap();
        for hart in 0..2 {
            machine.write(RAM + hart * 0x1000, &code).unwrap();
        }
        machine.start_at(RAM).unwrap();
        let mut exits = Vec::new();
        for hart in 0..2 {
            let base = RAM + hart * 0x1000;
            let cpu = machine.vcpu_mut(hart as usize).unwrap().cpu_mut();
            // Nothing is patched: the function is where the store goes, too.
            (cpu.pc, cpu.x[18], cpu.x[22]) = (base, DATA, DATA + 8 + 8 * hart);
            exits.push(base);
        }
        machine.set_exits(&exits);
        // One may be so quick that the other hardly runs.
        let mut told = [0; 2];
        for _ in 0..3000 {
            let MachineExit::Pc { hart, pc } = machine.run(&RunLimits::default()) else { panic!("{engine:?}") };
            told[hart] += 1;
            let cpu = machine.vcpu(hart).unwrap().cpu();
            assert_eq!((pc, cpu.pc, cpu.x[8]), (exits[hart], exits[hart], told[hart]), "{engine:?}, hart {hart}");
        }
    }
}

#[test]
fn a_stop_at_the_place_of_an_exit_does_not_swallow_it() {
    for (engine, flags) in ways() {
        let Case { mut machine, base, .. } = case(engine, flags, 0x800, false);
        machine.set_exits(&[base]);
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: base });
        machine.stop_handle().stop();
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Stopped);
        let before = machine.cpu().retired;
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: base });
        assert!(machine.cpu().retired > before, "what was told once is not told again");
    }
}

#[test]
fn an_exit_at_a_handler_is_met_by_an_interrupt_that_was_pending() {
    for (engine, flags) in ways() {
        let Case { mut machine, base, .. } = case(engine, flags, 0x800, false);
        let handler = RAM + 0x4000;
        machine.write(handler, &0x0000_006f_u32.to_le_bytes()).unwrap();
        let cpu = machine.cpu_mut();
        (cpu.csr.mtvec, cpu.csr.mie, cpu.csr.mstatus) = (handler, 1 << 3, cpu.csr.mstatus | 1 << 3);
        machine.set_exits(&[handler]);
        steps(&mut machine, 100);
        machine.write(0x200_0000, &1u32.to_le_bytes()).unwrap();
        let before = machine.cpu().retired;
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: handler }, "{engine:?}");
        assert_eq!((machine.cpu().retired, machine.cpu().csr.mcause), (before, 1 << 63 | 3));
        assert!((base..base + 0x100).contains(&machine.cpu().csr.mepc));
    }
}

/// Traps one after the other, for ever; the handler counts, and goes on behind.
fn traps() -> (Vec<u8>, Vec<(u64, u64)>) {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    let mut at = Vec::new();
    rv!(ops ; la t0, >handler ; csrw mtvec, t0 ; li.12 t1, 16 ; again: ; addi s0, s0, 1);
    macro_rules! traps {
        ($cause:expr ; $($insn:tt)*) => { at.push(($cause, RAM + ops.offset().0 as u64)); rv!(ops ; $($insn)*) };
    }
    traps!(11 ; ecall);
    traps!(2 ; .u32 u32::MAX);
    traps!(5 ; ld t2, [t1]);
    traps!(7 ; sd t2, [t1]);
    traps!(3 ; ebreak);
    traps!(6 ; amoadd.d t2, t2, [s2]);
    rv!(ops
        ; j <again
        ; .align 4
        ; handler:
        ; csrr t3, mepc
        ; addi t3, t3, 4
        ; csrw mepc, t3
        ; addi s1, s1, 1
        ; .u32 0x3020_0073
    );
    (ops.finalize().unwrap(), at)
}

#[test]
fn a_trap_ends_a_run_by_its_cause_and_is_taken_by_the_next() {
    let (code, places) = traps();
    for (engine, flags) in ways() {
        for (n, &(cause, pc)) in places.iter().enumerate() {
            let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
            machine.write(RAM, &code).unwrap();
            machine.start_at(RAM).unwrap();
            machine.cpu_mut().x[18] = DATA + 4;
            machine.set_trap_exits(1 << cause);
            for round in 0..100u64 {
                let exit = machine.run(&RunLimits::default());
                let MachineExit::Trap { hart: 0, pc: at, trap } = exit else { panic!("{engine:?}: {exit:?}") };
                assert_eq!((trap.cause, at, machine.cpu().pc), (cause, pc, pc), "{engine:?}");
                let cpu = machine.cpu();
                // So many were taken, and this one was not.
                let taken = round * places.len() as u64 + n as u64;
                assert_eq!((cpu.x[8], cpu.x[9]), (round + 1, taken), "{engine:?}, cause {cause}");
                if round % 3 == 0 {
                    let here = machine.checkpoint().unwrap();
                    let retired = machine.cpu().retired;
                    machine.run(&RunLimits { max_insns: Some(retired + 3), deadline: None });
                    assert_eq!((machine.cpu().csr.mcause, machine.cpu().csr.mepc), (cause, pc + 4), "it is taken");
                    machine.restore(&here).unwrap();
                    machine.verify(&here).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_ended_a_run_before_a_checkpoint_does_not_end_the_run_after_a_restore() {
    for (engine, flags) in ways() {
        let Case { mut machine, base, .. } = case(engine, flags, 0x800, false);
        machine.set_exits(&[base]);
        let mut runs = Vec::new();
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: base });
        let here = machine.checkpoint().unwrap();
        for _ in 0..50 {
            assert_eq!(machine.run(&RunLimits::default()), MachineExit::Pc { hart: 0, pc: base });
            runs.push((machine.cpu().retired, machine.cpu().x));
            machine.restore(&here).unwrap();
        }
        assert!(runs.iter().all(|run| *run == runs[0] && run.0 > here.hart(0).unwrap().cpu().retired));
    }
}

#[test]
fn an_exit_at_an_odd_address_is_none() {
    for (engine, flags) in ways() {
        let run = |exits: &[u64]| {
            let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).build().unwrap();
            machine.write(RAM, &program(0)).unwrap();
            machine.start_at(RAM).unwrap();
            let cpu = machine.cpu_mut();
            (cpu.x[18], cpu.x[22]) = (DATA, DATA + 8);
            machine.set_exits(exits);
            let exit = machine.run(&RunLimits { max_insns: Some(20_000), deadline: None });
            (exit, machine.cpu().x, machine.cpu().pc, machine.cpu().csr.mcause)
        };
        let odd: Vec<u64> = (0..64).map(|n| RAM + 2 * n + 1).collect();
        assert_eq!(run(&odd), run(&[]), "{engine:?}, {flags:?}");
    }
}

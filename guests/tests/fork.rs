//! A fork, as of a fuzzer's fork server: the child's translations are its own, and so are its memory and checkpoints.

mod common;

use common::Elf;
use notdirty::{Machine, MachineExit, Program, RunLimits};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::encode;

const RAM: u64 = 0x8000_0000;
const TURNS: u64 = 100_000;
const DONE: u64 = RAM + 12;

/// Adds a number to s0, s1 times.
fn machine() -> Machine {
    let code = [
        encode(Op::Addi, 8, 8, 0, 1),
        encode(Op::Addi, 9, 9, 0, -1),
        encode(Op::Bne, 0, 9, 0, -8),
        encode(Op::Jal, 0, 0, 0, 0),
    ];
    let bytes = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let program = Program::ElfBytes("adds".into(), Elf::new(RAM, bytes).bytes());
    let mut machine = Machine::builder().ram_size(1 << 20).program(program).build().unwrap();
    machine.set_exits(&[DONE]);
    machine
}

fn sum(machine: &mut Machine) -> u64 {
    machine.start_at(RAM).unwrap();
    machine.cpu_mut().x[9] = TURNS;
    let exit = machine.run(&RunLimits::default());
    if exit == (MachineExit::Pc { hart: 0, pc: DONE }) { machine.cpu().x[8] } else { u64::MAX }
}

fn add(machine: &mut Machine, imm: i32) {
    machine.write(RAM, &encode(Op::Addi, 8, 8, 0, imm).to_le_bytes()).unwrap();
}

/// Forks; `child` says 0 if all went well. What the parent does beside it, then its exit status.
fn fork(machine: &mut Machine, child: impl FnOnce(&mut Machine) -> i32, beside: impl FnOnce(&mut Machine)) -> i32 {
    // SAFETY: the child uses a machine that no other thread has, and ends itself; it returns from nowhere.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: ends this process if it hangs.
        unsafe { libc::alarm(60) };
        let code = child(machine);
        // SAFETY: ends the process, and runs no more of the parent's code.
        unsafe { libc::_exit(code) };
    }
    beside(machine);
    let mut status = 0;
    // SAFETY: a child of ours, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

#[test]
fn parent_and_child_translate_the_same_addresses_apart() {
    let mut machine = machine();
    assert_eq!(sum(&mut machine), TURNS);
    let node = machine.checkpoint().unwrap();
    let child = |machine: &mut Machine| {
        for n in 2..40 {
            add(machine, n);
            if sum(machine) != n as u64 * TURNS {
                return 1;
            }
        }
        if machine.restore(&node).is_err() || machine.verify(&node).is_err() {
            return 2;
        }
        i32::from(sum(machine) != TURNS) * 3
    };
    let beside = |machine: &mut Machine| {
        for n in 40..80 {
            add(machine, n);
            assert_eq!(sum(machine), n as u64 * TURNS, "in the parent");
        }
    };
    assert_eq!(fork(&mut machine, child, beside), 0, "of the child");
    machine.restore(&node).unwrap();
    machine.verify(&node).unwrap();
    assert_eq!(sum(&mut machine), TURNS);
}

#[test]
fn a_child_of_a_child_has_its_own_translations_too() {
    let mut machine = machine();
    assert_eq!(sum(&mut machine), TURNS);
    let grandchild = |machine: &mut Machine| {
        add(machine, 3);
        i32::from(sum(machine) != 3 * TURNS)
    };
    let child = |machine: &mut Machine| {
        add(machine, 2);
        let first = sum(machine);
        let status = fork(machine, grandchild, |_| ());
        i32::from(first != 2 * TURNS || status != 0 || sum(machine) != 2 * TURNS)
    };
    assert_eq!(fork(&mut machine, child, |_| ()), 0);
    assert_eq!(sum(&mut machine), TURNS);
}

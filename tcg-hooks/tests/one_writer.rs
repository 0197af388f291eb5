//! WRITER-1: what a vCPU that was alone translated without locked instructions is gone before another thread stores.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{RunLimits, VcpuExit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CELL: u64 = RAM + 0x5000;
const OTHER: u64 = RAM + 0x5040;
const END: u64 = RAM + 0x6000;
const ROUNDS: u64 = 200_000;
/// Enough that two vCPUs meet, whatever else the host does.
const MANY: u64 = 10 * ROUNDS;

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

/// Adds one to [`CELL`] by AMO and to [`OTHER`] by LR and SC, counts in a0, until [`END`] is not zero or a0 is t2.
fn adder(base: u64) -> Asm {
    let mut asm = Asm::at(base);
    asm.la(T0, CELL).la(T1, END).i(li(A1, 1)).i(li(A0, 0));
    let again = asm.here();
    asm.op(Op::AmoaddD, ZERO, T0, A1, 0).i(addi(A2, T0, 64));
    let lr = asm.here();
    asm.op(Op::LrD, T5, A2, 0, 0).i(addi(T5, T5, 1)).op(Op::ScD, T6, A2, T5, 0);
    let back = lr.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T6, ZERO, back).i(addi(A0, A0, 1));
    // Over the stop: on while the end is zero and the count is not reached.
    asm.op(Op::Beq, 0, A0, T2, 12).op(Op::Ld, T5, T1, 0, 0);
    let back = again.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Beq, 0, T5, ZERO, back).stop();
    asm
}

fn word(vm: &Vm, at: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.space.read(GuestPhys::new(at), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Sets [`END`] when dropped, so that the vCPU stops when the other thread fails.
struct AtEnd<'a>(&'a notdirty_softmmu::AddressSpace);
impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.write(GuestPhys::new(END), &[1]).unwrap();
    }
}

#[test]
fn a_second_vcpu_that_comes_while_the_first_runs_loses_no_addition() {
    let mut vm = Vm::new();
    assert!(vm.space.vcpus().promise_one_writer());
    adder(RAM).put(&vm);
    adder(RAM + 0x1000).put(&vm);
    vm.vcpu.cpu_mut().x[usize::from(T2)] = u64::MAX;
    let space = vm.space.clone();
    let running = AtomicBool::new(false);
    let second = std::thread::scope(|scope| {
        let running = &running;
        let other = scope.spawn(move || {
            let _end = AtEnd(&space);
            while !running.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // The first one is deep in what it translated alone.
            std::thread::sleep(Duration::from_millis(20));
            assert!(space.vcpus().one_writer());
            let mut second = vcpu_on(&space, &Setup::default(), Arc::new(Clock::insns()));
            assert!(!space.vcpus().one_writer());
            second.cpu_mut().pc = RAM + 0x1000;
            second.cpu_mut().x[usize::from(T2)] = MANY;
            // Its store to STOP stops the first vCPU, which goes on below.
            let exit = second.run(&RunLimits { max_insns: Some(40 * MANY), ..soon() });
            assert_eq!(exit, VcpuExit::InsnLimit);
            second.cpu().x[usize::from(A0)]
        });
        running.store(true, Ordering::Release);
        vm.vcpu.cpu_mut().pc = RAM;
        while word(&vm, END) == 0 {
            assert_ne!(vm.vcpu.run(&soon()), VcpuExit::Deadline);
        }
        other.join().unwrap()
    });
    // To its own end.
    let limits = RunLimits { max_insns: Some(vm.vcpu.cpu().retired + 1000), ..soon() };
    while vm.vcpu.run(&limits) != VcpuExit::InsnLimit {}
    assert_eq!(second, MANY);
    let all = vm.x(A0) + second;
    assert!(vm.x(A0) > ROUNDS / 100, "the first one ran meanwhile");
    assert_eq!([word(&vm, CELL), word(&vm, OTHER)], [all, all]);
}

#[test]
fn a_host_thread_that_was_admitted_loses_no_byte_beside_an_amo() {
    let mut vm = Vm::new();
    assert!(vm.space.vcpus().promise_one_writer());
    // Ors a bit into the low byte of a cell, and stores it back whole by LR and SC.
    let mut main = Asm::at(RAM);
    main.la(T0, CELL).la(T1, END).i(li(A1, 1));
    let again = main.here();
    main.op(Op::AmoorD, A2, T0, A1, 0).op(Op::LrD, T5, T0, 0, 0).op(Op::ScD, T6, T0, T5, 0);
    main.op(Op::Ld, T5, T1, 0, 0);
    let back = again.wrapping_sub(main.here()) as i32;
    main.op(Op::Beq, 0, T5, ZERO, back).stop();
    main.put(&vm);
    let space = vm.space.clone();
    std::thread::scope(|scope| {
        let host = scope.spawn(move || {
            let _end = AtEnd(&space);
            std::thread::sleep(Duration::from_millis(20));
            assert!(space.vcpus().admit_writers(Some(Duration::from_secs(20))));
            let at = GuestPhys::new(CELL + 5);
            for n in 0..ROUNDS {
                let (wrote, mut read) = ([n as u8], [0]);
                space.write(at, &wrote).unwrap();
                for _ in 0..n % 4 {
                    space.read(at, &mut read).unwrap();
                }
                space.read(at, &mut read).unwrap();
                assert_eq!(read, wrote, "round {n}");
            }
        });
        vm.run(RAM);
        host.join().unwrap();
    });
}

//! What a hart holds beside its registers: it ends when the registers are replaced, and counters do not.

mod common;

use common::*;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, VcpuExit};

fn setups() -> [Setup; 3] {
    let jit = Setup::default();
    let tier0 = Setup { flags: JitFlags::default(), ..Setup::default() };
    [jit, tier0, Setup { engine: EngineKind::Interp, ..Setup::default() }]
}

fn unlimited() -> RunLimits {
    RunLimits { max_insns: None, deadline: None }
}

#[test]
fn a_hart_asleep_in_wfi_goes_on_at_a_new_pc_or_in_a_restored_state() {
    for setup in setups() {
        let mut vm = Vm::with(&setup);
        vm.put(RAM, &[encode_wfi(), jal(ZERO, 4, 0)]);
        let mut asm = Asm::at(RAM + 0x100);
        asm.i(li(A0, 7)).stop();
        asm.put(&vm);
        let mut before = vm.vcpu.cpu().clone();
        assert_eq!(vm.vcpu.run(&unlimited()), VcpuExit::Hung);
        assert!(vm.vcpu.is_waiting());
        vm.run(RAM + 0x100);
        assert_eq!(vm.x(A0), 7);

        vm.vcpu.cpu_mut().pc = RAM;
        assert_eq!(vm.vcpu.run(&unlimited()), VcpuExit::Hung);
        before.pc = RAM + 0x100;
        *vm.vcpu.cpu_mut() = before;
        assert_eq!(vm.vcpu.run(&unlimited()), VcpuExit::Stopped);
        assert_eq!(vm.x(A0), 7);
    }
}

fn encode_wfi() -> u32 {
    notdirty_tcg::testkit::encode(Op::Wfi, 0, 0, 0, 0)
}

#[test]
fn a_reservation_ends_when_another_state_is_put_back() {
    for setup in setups() {
        let mut vm = Vm::with(&setup);
        let mut asm = Asm::at(RAM);
        asm.la(T0, RAM + 0x800).op(Op::LrD, T1, T0, 0, 0).stop();
        asm.put(&vm);
        let mut asm = Asm::at(RAM + 0x100);
        asm.op(Op::ScD, A0, T0, T0, 0).stop();
        asm.put(&vm);
        vm.run(RAM);
        // As a checkpoint does it: the registers of the moment, written back.
        let state = vm.vcpu.cpu().clone();
        *vm.vcpu.cpu_mut() = state;
        vm.run(RAM + 0x100);
        assert_eq!(vm.x(A0), 1, "the SC fails");
    }
}

#[test]
fn counters_go_on_over_a_reset_and_a_restored_state() {
    for setup in setups() {
        let mut vm = Vm::with(&setup);
        let mut asm = Asm::at(RAM);
        asm.i(li(A0, 100)).i(addi(A0, A0, -1)).op(Op::Bne, 0, A0, ZERO, -4).stop();
        asm.put(&vm);
        let start = vm.vcpu.cpu().clone();
        vm.run(RAM);
        let once = vm.vcpu.cpu().retired;
        assert!(once > 200);
        vm.vcpu.reset(RAM);
        vm.run(RAM);
        assert_eq!((vm.vcpu.cpu().retired, vm.vcpu.stats().retired), (once, 2 * once));
        *vm.vcpu.cpu_mut() = start;
        vm.run(RAM);
        assert_eq!((vm.vcpu.cpu().retired, vm.vcpu.stats().retired), (once, 3 * once));
        let stats = vm.vcpu.stats();
        assert!(stats.interpreted <= stats.retired && stats.tier0 <= stats.retired, "all since one moment: {stats:?}");
    }
}

#[test]
fn x0_reads_as_zero_whatever_the_host_put_there() {
    for setup in setups() {
        let mut vm = Vm::with(&setup);
        let cell = RAM + 0x800;
        let mut asm = Asm::at(RAM);
        asm.la(T0, cell).i(li(A0, 3)).op(Op::Add, A1, A0, ZERO, 0).op(Op::Sub, A2, ZERO, A0, 0);
        asm.op(Op::Sd, 0, T0, A0, 0).op(Op::AmoaddD, T1, T0, ZERO, 0).op(Op::Sd, 0, T0, ZERO, 8);
        asm.op(Op::Csrrw, ZERO, ZERO, 0, 0x340).op(Op::Csrrs, T2, ZERO, 0, 0x340);
        // Taken only if it is zero; the other way runs into nothing.
        asm.op(Op::Beq, 0, ZERO, T2, 8).i(0).stop();
        asm.put(&vm);
        for round in 0..3 {
            vm.vcpu.cpu_mut().x[0] = 77;
            vm.block.store_raw(cell - RAM + 8, 8, u64::MAX).unwrap();
            vm.run(RAM);
            let cells = [0, 8].map(|at| vm.block.load(cell - RAM + at, 8).unwrap());
            let seen = [vm.x(A0), vm.x(A1), vm.x(A2), vm.x(T1), vm.x(T2)];
            let what = format!("{:?}, tier 0: {}, round {round}", setup.engine, setup.flags.tier0);
            assert_eq!((seen, cells), ([3, 3, 3u64.wrapping_neg(), 3, 0], [3, 0]), "{what}");
            assert_eq!(vm.x(ZERO), 0, "{what}");
        }
    }
}

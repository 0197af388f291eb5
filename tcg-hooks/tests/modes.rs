//! The modes M, S and U: what may be executed in each, where traps go, and that code translated for one is run in that one.

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::csr::{envcfg, irq, mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, VcpuExit};
use std::sync::Arc;
use std::time::{Duration, Instant};

const HANDLER: u64 = RAM + 0x800;
const CODE: u64 = RAM + 0x1000;
const LOOP: u64 = RAM + 0x2000;
/// Where the handler goes on after a call.
const A7: u8 = 17;

fn engines() -> [(&'static str, Setup); 4] {
    let without_cache = JitFlags { jump_cache: false, ..eager() };
    [
        ("translated", Setup::default()),
        ("translated, no jump cache", Setup { flags: without_cache, ..Setup::default() }),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }),
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }),
    ]
}

/// A handler in M-mode that counts traps in t4, keeps the last cause and value in t2 and t3, and skips the instruction.
fn skip(vm: &mut Vm) {
    let mut asm = Asm::at(HANDLER);
    asm.i(addi(T4, T4, 1)).op(Op::Csrrs, T2, ZERO, 0, num::MCAUSE.into());
    asm.op(Op::Csrrs, T3, ZERO, 0, num::MTVAL.into());
    asm.op(Op::Csrrs, T5, ZERO, 0, num::MEPC.into()).i(addi(T5, T5, 4));
    asm.op(Op::Csrrw, ZERO, T5, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
    asm.put(vm);
    vm.vcpu.cpu_mut().csr.mtvec = HANDLER;
}

/// Goes to `to` in the mode whose bits of MPP are in `register`. From M-mode; uses t5, t6.
fn enter(asm: &mut Asm, register: u8, to: u64) {
    asm.word(T6, mstatus::MPP as u32).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into());
    asm.op(Op::Csrrs, ZERO, register, 0, num::MSTATUS.into());
    asm.la(T5, to).op(Op::Csrrw, ZERO, T5, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
}

#[test]
fn one_piece_of_code_is_translated_for_each_mode_and_run_in_its_own() {
    const ROUNDS: u64 = 300;
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        // Reads what each mode may, and what the one below may not: traps are counted, values added up.
        let mut function = Asm::at(LOOP + 0x100);
        for csr in [num::MSCRATCH, num::SSCRATCH, num::CYCLE] {
            function.i(li(A0, 0)).op(Op::Csrrs, A0, ZERO, 0, csr.into());
            if csr != num::CYCLE {
                function.op(Op::Add, A1, A1, A0, 0);
            }
        }
        function.i(ret()).put(&vm);
        // Where it returns to is looked up in its mode, too: U-mode may not do this.
        let mut caller = Asm::at(LOOP);
        caller.call(LOOP + 0x100).op(Op::Csrrw, ZERO, ZERO, 0, num::SEPC.into()).op(Op::Ecall, 0, 0, 0, 0);
        caller.put(&vm);
        // A call ends it, from whatever mode: on with the next mode, and the next round behind the last.
        let mut handler = Asm::at(HANDLER);
        handler.op(Op::Csrrs, T2, ZERO, 0, num::MCAUSE.into()).i(addi(T2, T2, -2));
        let skip = handler.code.len();
        handler.i(0).op(Op::Jalr, ZERO, A7, 0, 0);
        handler.code[skip] = encode(Op::Beq, 0, T2, ZERO, 8);
        handler.i(addi(T4, T4, 1)).op(Op::Csrrs, T5, ZERO, 0, num::MEPC.into()).i(addi(T5, T5, 4));
        handler.op(Op::Csrrw, ZERO, T5, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
        handler.put(&vm);
        let mut main = Asm::at(CODE);
        main.i(li(S0, ROUNDS as i32));
        let top = main.here();
        for (n, mode) in Privilege::ALL.into_iter().enumerate() {
            // Where the call comes back to.
            let behind = main.here() + 4 * 13;
            main.la(A7, behind).i(li(T4, 0)).word(T1, (mode.bits() as u32) << mstatus::MPP_SHIFT);
            enter(&mut main, T1, LOOP);
            assert_eq!(main.here(), behind);
            main.op(Op::Add, S1 + 9 + n as u8, S1 + 9 + n as u8, T4, 0);
        }
        main.i(addi(S0, S0, -1));
        let back = top.wrapping_sub(main.here()) as i32;
        main.op(Op::Bne, 0, S0, ZERO, back).stop();
        main.put(&vm);
        let csr = &mut vm.vcpu.cpu_mut().csr;
        csr.allow_all_memory();
        (csr.mtvec, csr.mscratch, csr.sscratch, csr.mcounteren) = (HANDLER, 1 << 40, 1 << 20, 0);
        vm.run(CODE);
        // Of M none trap; of S the word of M and the counter; of U those of S, too, and its write.
        assert_eq!([S2, S3, S4].map(|s| vm.x(s)), [0, 2 * ROUNDS, 4 * ROUNDS], "{name}");
        assert_eq!(vm.x(A1) >> 40, ROUNDS, "{name}: mscratch is read in M-mode");
        assert_eq!(vm.x(A1) >> 20 & 0xfffff, 2 * ROUNDS, "{name}: sscratch in M-mode and S-mode");
        if name == "translated" {
            assert!(vm.translated() < 60, "{} translations", vm.translated());
            assert_eq!((vm.invalidated(), vm.vcpu.stats().tbs_evicted), (0, 0));
        }
        vm.vcpu.check_invariants().unwrap();
    }
}

/// Is the instruction executed in this mode? On every engine alike, and else illegal, with its bits.
fn executes(bits: u32, mode: Privilege, status: u64, menvcfg: u64, senvcfg: u64) -> bool {
    let mut answers = Vec::new();
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        skip(&mut vm);
        let mut asm = Asm::at(CODE);
        asm.i(bits).stop();
        asm.put(&vm);
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr.allow_all_memory();
        cpu.privilege = mode;
        cpu.csr.mstatus |= status;
        (cpu.csr.menvcfg, cpu.csr.senvcfg) = (menvcfg, senvcfg);
        // Returns go on behind, and come back in the same mode; a line is in RAM; waiting ends at once.
        (cpu.csr.mepc, cpu.csr.sepc, cpu.x[usize::from(A0)]) = (CODE + 4, CODE + 4, RAM + 0x4000);
        if bits == encode(Op::Wfi, 0, 0, 0, 0) && mode != Privilege::U {
            (cpu.csr.mie, cpu.csr.mip, cpu.csr.mideleg) = (irq::SSI, irq::SSI, irq::SSI);
        }
        vm.run(CODE);
        let (traps, cause, value) = (vm.x(T4), vm.x(T2), vm.x(T3));
        assert!(
            traps == 0 || (traps, cause, value) == (1, 2, bits.into()),
            "{name} {bits:#x}: {traps} {cause} {value:#x}"
        );
        answers.push(traps == 0);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{bits:#x} in {mode}: {answers:?}");
    answers[0]
}

#[test]
fn what_a_mode_may_not_execute_is_illegal_there_and_shows_its_bits() {
    use Privilege::{M, S, U};
    let op = |op: Op| encode(op, 0, A0, ZERO, 0);
    let none = |op: Op| encode(op, 0, 0, 0, 0);
    let all = |bits: u32, status: u64| [M, S, U].map(|mode| executes(bits, mode, status, 0, 0));
    assert_eq!(all(none(Op::Mret), 0), [true, false, false]);
    assert_eq!(all(none(Op::Sret), 0), [true, true, false]);
    assert_eq!(all(none(Op::Sret), mstatus::TSR), [true, false, false]);
    assert_eq!(all(none(Op::Wfi), 0), [true, true, false]);
    assert_eq!(all(none(Op::Wfi), mstatus::TW), [true, false, false]);
    for fence in [Op::SfenceVma, Op::SinvalVma] {
        assert_eq!(all(encode(fence, 0, A0, A1, 0), 0), [true, true, false]);
        assert_eq!(all(encode(fence, 0, ZERO, ZERO, 0), mstatus::TVM), [true, false, false]);
    }
    for fence in [Op::SfenceWInval, Op::SfenceInvalIr] {
        assert_eq!(all(none(fence), mstatus::TVM), [true, true, false]);
    }
    for (line, bit) in [
        (Op::CboInval, 1 << 4),
        (Op::CboInval, envcfg::CBIE),
        (Op::CboClean, envcfg::CBCFE),
        (Op::CboFlush, envcfg::CBCFE),
        (Op::CboZero, envcfg::CBZE),
    ] {
        for (m, s, there) in [
            (0, bit, [true, false, false]),
            (bit, 0, [true, true, false]),
            (bit, bit, [true, true, true]),
            (!bit & envcfg::SENVCFG, !bit & envcfg::SENVCFG, [true, false, false]),
        ] {
            // CBIE has two bits, either of which lets it through.
            if line == Op::CboInval && bit != envcfg::CBIE && m == !bit & envcfg::SENVCFG {
                continue;
            }
            assert_eq!([M, S, U].map(|mode| executes(op(line), mode, 0, m, s)), there, "{line:?} {m:#x} {s:#x}");
        }
    }
}

#[test]
fn system_calls_go_down_through_the_modes_and_back_on_every_engine() {
    // U calls S, which calls M for every fourth, counts, and returns.
    const CALLS: i32 = 2000;
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        let mut machine = Asm::at(HANDLER);
        machine.i(addi(S4, S4, 1)).op(Op::Csrrs, T5, ZERO, 0, num::MEPC.into()).i(addi(T5, T5, 4));
        machine.op(Op::Csrrw, ZERO, T5, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
        machine.put(&vm);
        let mut kernel = Asm::at(RAM + 0x3000);
        kernel.op(Op::Csrrw, T0, T0, 0, num::SSCRATCH.into()).i(addi(S3, S3, 1)).op(Op::Andi, T2, S3, 0, 3);
        kernel.op(Op::Bne, 0, T2, ZERO, 8).op(Op::Ecall, 0, 0, 0, 0);
        kernel.op(Op::Csrrs, T2, ZERO, 0, num::SEPC.into()).i(addi(T2, T2, 4));
        kernel.op(Op::Csrrw, ZERO, T2, 0, num::SEPC.into());
        kernel.op(Op::Csrrw, T0, T0, 0, num::SSCRATCH.into()).op(Op::Sret, 0, 0, 0, 0);
        kernel.put(&vm);
        let mut user = Asm::at(CODE);
        user.i(li(S0, CALLS)).i(li(T0, 5));
        user.op(Op::Ecall, 0, 0, 0, 0).op(Op::Add, S2, S2, T0, 0).i(addi(S0, S0, -1));
        user.op(Op::Bne, 0, S0, ZERO, -12).stop();
        user.put(&vm);
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr.allow_all_memory();
        cpu.privilege = Privilege::U;
        (cpu.csr.mtvec, cpu.csr.stvec, cpu.csr.medeleg, cpu.csr.sscratch) = (HANDLER, RAM + 0x3000, 1 << 8, 77);
        vm.run(CODE);
        let calls = CALLS as u64;
        assert_eq!([S2, S3, S4].map(|s| vm.x(s)), [5 * calls, calls, calls / 4], "{name}");
        assert_eq!((vm.vcpu.cpu().privilege, vm.vcpu.cpu().csr.sscratch), (Privilege::U, 77), "{name}");
        if name == "translated" {
            let stats = vm.vcpu.stats();
            assert!(
                stats.entries < 100,
                "{} entries for {calls} calls: each goes through the exec loop",
                stats.entries
            );
        }
    }
}

#[test]
fn the_host_may_put_a_hart_into_any_mode_between_runs() {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        skip(&mut vm);
        let mut asm = Asm::at(CODE);
        asm.op(Op::Csrrs, A0, ZERO, 0, num::SSCRATCH.into()).stop();
        asm.put(&vm);
        for (n, mode) in Privilege::ALL.into_iter().cycle().take(12).enumerate() {
            let cpu = vm.vcpu.cpu_mut();
            cpu.csr.allow_all_memory();
            cpu.privilege = mode;
            (cpu.csr.sscratch, cpu.x[usize::from(A0)], cpu.x[usize::from(T4)]) = (7, 0, 0);
            vm.run(CODE);
            let traps = u64::from(mode == Privilege::U);
            assert_eq!((vm.x(A0), vm.x(T4)), (7 * (1 - traps), traps), "{name}, run {n} in {mode}");
            assert_eq!(vm.vcpu.cpu().privilege, mode);
        }
    }
}

/// A hart in S-mode with Sstc on the host's clock, whose handler stops it.
fn timed(setup: &Setup, code: &Asm) -> Vm {
    let mut vm = Vm::with(setup);
    let space = vm.space.clone();
    let clock = Arc::new(Clock::host());
    vm.vcpu = vcpu_on(&space, setup, clock);
    code.put(&vm);
    let mut handler = Asm::at(HANDLER);
    handler.op(Op::Csrrs, A0, ZERO, 0, num::SCAUSE.into()).op(Op::Csrrs, A1, ZERO, 0, num::TIME.into());
    handler.jump(HANDLER + 8);
    handler.put(&vm);
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    cpu.privilege = Privilege::S;
    (cpu.csr.mcounteren, cpu.csr.menvcfg, cpu.csr.mideleg) = (2, envcfg::STCE, irq::STI);
    (cpu.csr.stvec, cpu.csr.mie, cpu.pc) = (HANDLER, irq::STI, CODE);
    cpu.csr.mstatus |= mstatus::SIE;
    vm
}

#[test]
fn stimecmp_interrupts_a_loop_and_ends_a_sleep_by_the_hosts_clock() {
    for sleeps in [false, true] {
        for (name, setup) in engines() {
            // 20 ms from now.
            let mut asm = Asm::at(CODE);
            asm.op(Op::Csrrs, T0, ZERO, 0, num::TIME.into()).word(T1, 200_000).op(Op::Add, S0, T0, T1, 0);
            asm.op(Op::Csrrw, ZERO, S0, 0, num::STIMECMP.into());
            let top = asm.here();
            asm.i(if sleeps { encode(Op::Wfi, 0, 0, 0, 0) } else { addi(A2, A2, 1) }).jump(top);
            let mut vm = timed(&setup, &asm);
            let start = Instant::now();
            while vm.x(A1) == 0 {
                let limits = RunLimits { max_insns: Some(vm.vcpu.cpu().retired + 20_000_000), deadline: None };
                assert_eq!(vm.vcpu.run(&limits), VcpuExit::InsnLimit, "{name}");
                assert!(start.elapsed() < Duration::from_secs(60), "{name}: it never comes");
            }
            assert_eq!(vm.x(A0), 1 << 63 | 5, "{name}");
            assert!(vm.x(A1) >= vm.x(S0), "{name}: it is early");
            assert!(!sleeps || vm.vcpu.cpu().retired < 50_000_000, "{name}");
        }
    }
}

#[test]
fn a_deadline_that_is_near_cuts_the_slice_that_it_is_set_in() {
    const INSNS: u64 = 20_000_000;
    for flags in [eager(), JitFlags::default()] {
        // A microsecond from now, again and again.
        let again = |asm: &mut Asm| {
            asm.op(Op::Csrrs, T0, ZERO, 0, num::TIME.into()).i(addi(T0, T0, 10));
            asm.op(Op::Csrrw, ZERO, T0, 0, num::STIMECMP.into());
        };
        let mut asm = Asm::at(CODE);
        again(&mut asm);
        let top = asm.here();
        asm.i(addi(A2, A2, 1)).jump(top);
        let mut vm = timed(&Setup { flags, ..Setup::default() }, &asm);
        let mut handler = Asm::at(HANDLER);
        again(&mut handler);
        handler.i(addi(A0, A0, 1)).op(Op::Sret, 0, 0, 0, 0);
        handler.put(&vm);
        assert_eq!(vm.vcpu.run(&RunLimits { max_insns: Some(INSNS), deadline: None }), VcpuExit::InsnLimit);
        // The longest slice is 65,536 instructions.
        assert!(vm.x(A0) > INSNS / 20_000, "{} interrupts in {INSNS} instructions", vm.x(A0));
    }
}

#[test]
fn a_hart_that_nothing_can_wake_has_hung_and_one_with_a_deadline_has_not() {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        let mut asm = Asm::at(CODE);
        asm.op(Op::Wfi, 0, 0, 0, 0).stop();
        asm.put(&vm);
        for (enabled, menvcfg, hangs) in [
            (irq::STI, envcfg::STCE, false),
            (irq::STI, 0, true),
            (irq::SSI | irq::MTI, envcfg::STCE, true),
            (0, envcfg::STCE, true),
        ] {
            let cpu = vm.vcpu.cpu_mut();
            cpu.csr.allow_all_memory();
            (cpu.csr.mie, cpu.csr.menvcfg, cpu.pc) = (enabled, menvcfg, CODE);
            cpu.csr.stimecmp = 1 << 30;
            let exit = vm.vcpu.run(&RunLimits { max_insns: None, deadline: None });
            assert_eq!(
                exit,
                if hangs { VcpuExit::Hung } else { VcpuExit::Stopped },
                "{name} {enabled:#x} {menvcfg:#x}"
            );
        }
    }
}

#[test]
fn loads_and_stores_are_the_same_in_all_modes_while_nothing_is_translated() {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        let mut asm = Asm::at(CODE);
        asm.la(S0, RAM + 0x5000).op(Op::Ld, A0, S0, 0, 0).i(addi(A0, A0, 1)).op(Op::Sd, 0, S0, A0, 0);
        asm.op(Op::AmoaddD, A2, S0, A0, 0).stop();
        asm.put(&vm);
        vm.space.write(GuestPhys::new(RAM + 0x5000), &1u64.to_le_bytes()).unwrap();
        for mode in Privilege::ALL {
            vm.vcpu.cpu_mut().csr.allow_all_memory();
            vm.vcpu.cpu_mut().privilege = mode;
            vm.run(CODE);
        }
        // 1, 4, 10, 22.
        let mut word = [0; 8];
        vm.space.read(GuestPhys::new(RAM + 0x5000), &mut word).unwrap();
        assert_eq!(u64::from_le_bytes(word), 22, "{name}");
    }
}

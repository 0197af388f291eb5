//! WRITER-1: what a vCPU that was alone translated without locked instructions is gone before another thread stores.

mod common;

use common::*;
use notdirty_softmmu::{GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::clock::Clock;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::Rng;
use notdirty_tcg::{EngineKind, JitFlags, RunLimits, VcpuExit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CELL: u64 = RAM + 0x5000;
const OTHER: u64 = RAM + 0x5040;
const END: u64 = RAM + 0x6000;
/// A [`Gate`].
const GATE: u64 = 0x20_0000;
const ROUNDS: u64 = 200_000;
/// Enough that two vCPUs meet, whatever else the host does.
const MANY: u64 = 10 * ROUNDS;

fn soon() -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) }
}

/// A device that holds a vCPU up, once it is asked to: in the middle of what the vCPU translated alone.
#[derive(Default)]
struct Gate {
    shut: AtomicBool,
    reached: AtomicBool,
    /// The other writer was let in.
    admitted: AtomicBool,
    /// And that while the vCPU was held up.
    overtaken: AtomicBool,
}

impl MmioDevice for Gate {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        if self.shut.swap(false, Ordering::AcqRel) {
            self.reached.store(true, Ordering::Release);
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                std::thread::yield_now();
                if self.admitted.load(Ordering::Acquire) {
                    self.overtaken.store(true, Ordering::Release);
                    break;
                }
            }
        }
        0
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
}

impl Gate {
    /// On this machine.
    fn of(vm: &Vm) -> Arc<Gate> {
        let gate = Arc::new(Gate::default());
        vm.space.map_mmio(GuestPhys::new(GATE), 0x1000, gate.clone(), 0).unwrap();
        gate
    }

    /// Has `admit` let a writer in while the vCPU is held up, which must last until the vCPU goes on.
    fn admits<T>(&self, admit: impl FnOnce() -> T) -> T {
        self.shut.store(true, Ordering::Release);
        let until = Instant::now() + Duration::from_secs(60);
        while !self.reached.load(Ordering::Acquire) {
            assert!(Instant::now() < until, "the vCPU does not come by");
            std::thread::yield_now();
        }
        let admitted = admit();
        self.admitted.store(true, Ordering::Release);
        admitted
    }
}

/// Adds one to [`CELL`] by AMO and to [`OTHER`] by LR and SC, reads what is at a3, and counts in a0, until [`END`] is not
/// zero or a0 is t2.
fn adder(base: u64) -> Asm {
    let mut asm = Asm::at(base);
    asm.la(T0, CELL).la(T1, END).i(li(A1, 1)).i(li(A0, 0));
    let again = asm.here();
    asm.op(Op::Ld, T5, A3, 0, 0);
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
    vm.vcpu.cpu_mut().x[usize::from(A3)] = GATE;
    let (space, gate) = (vm.space.clone(), Gate::of(&vm));
    let running = AtomicBool::new(false);
    let second = std::thread::scope(|scope| {
        let (running, gate) = (&running, &gate);
        let other = scope.spawn(move || {
            let _end = AtEnd(&space);
            while !running.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            // The first one is deep in what it translated alone.
            std::thread::sleep(Duration::from_millis(20));
            assert!(space.vcpus().one_writer());
            let mut second = gate.admits(|| vcpu_on(&space, &Setup::default(), Arc::new(Clock::insns())));
            assert!(!space.vcpus().one_writer());
            second.cpu_mut().pc = RAM + 0x1000;
            second.cpu_mut().x[usize::from(T2)] = MANY;
            second.cpu_mut().x[usize::from(A3)] = END;
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
    assert!(!gate.overtaken.load(Ordering::Acquire), "the second is there before the first has answered");
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
    main.la(T0, CELL).la(T1, END).i(li(A1, 1)).op(Op::Lui, A3, 0, 0, GATE as i32);
    let again = main.here();
    main.op(Op::Ld, T5, A3, 0, 0);
    main.op(Op::AmoorD, A2, T0, A1, 0).op(Op::LrD, T5, T0, 0, 0).op(Op::ScD, T6, T0, T5, 0);
    main.op(Op::Ld, T5, T1, 0, 0);
    let back = again.wrapping_sub(main.here()) as i32;
    main.op(Op::Beq, 0, T5, ZERO, back).stop();
    main.put(&vm);
    let (space, gate) = (vm.space.clone(), Gate::of(&vm));
    std::thread::scope(|scope| {
        let gate = &gate;
        let host = scope.spawn(move || {
            let _end = AtEnd(&space);
            std::thread::sleep(Duration::from_millis(20));
            assert!(gate.admits(|| space.vcpus().admit_writers(Some(Duration::from_secs(20)))));
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
        assert!(!gate.overtaken.load(Ordering::Acquire), "admitted before the vCPU has answered");
    });
}

/// What a hart runs in short pieces, and what a host does between them.
struct Pieces {
    vm: Vm,
    plugged: Option<(std::sync::Arc<notdirty_core::RamBlock>, notdirty_softmmu::RegionId)>,
}

const PLUG: u64 = RAM + 0x40_0000;
/// A trap goes on behind its instruction, and is counted.
const HANDLER: u64 = RAM + 0x7000;

impl Pieces {
    fn new(engine: EngineKind, flags: JitFlags, seed: u64) -> Pieces {
        let vm = Vm::with(&Setup { engine, flags, ..Setup::default() });
        assert!(vm.space.vcpus().promise_one_writer());
        let mut rng = Rng::new(seed);
        let mut handler = Asm::at(HANDLER);
        handler.i(addi(S11, S11, 1)).op(Op::Csrrs, S10, 0, 0, 0x341).i(addi(S10, S10, 4));
        handler.op(Op::Csrrw, 0, S10, 0, 0x341).op(Op::Mret, 0, 0, 0, 0).put(&vm);
        let mut asm = Asm::at(RAM);
        // Cells in RAM, beside the code, where RAM comes and goes, and at a page's end.
        let places = [CELL, RAM + 0x800, PLUG + 0x10, RAM + 0x5ff8, PLUG + 0xff8];
        for base in BASES {
            let at = rng.pick(&places);
            asm.la(base, at);
        }
        let again = asm.here();
        for _ in 0..rng.within(4, 40) {
            let (base, d, a) = (rng.pick(&BASES), rng.pick(&VALUES), rng.pick(&VALUES));
            let odd = rng.pick(&[0, 0, 8, -8, 1, -3, 6]);
            match rng.below(9) {
                0..2 => {
                    _ = asm.op(
                        rng.pick(&[Op::AmoaddW, Op::AmoaddD, Op::AmoxorD, Op::AmomaxuW, Op::AmoswapD]),
                        d,
                        base,
                        a,
                        0,
                    )
                }
                2 => _ = asm.op(Op::LrD, d, base, 0, 0),
                3 => _ = asm.op(Op::LrW, d, base, 0, 0),
                4 => _ = asm.op(Op::ScD, d, base, a, 0),
                5 => _ = asm.op(Op::ScW, d, base, a, 0),
                6 => _ = asm.op(rng.pick(&[Op::Sb, Op::Sh, Op::Sw, Op::Sd]), 0, base, a, odd),
                7 => _ = asm.op(rng.pick(&[Op::Lb, Op::Lhu, Op::Lw, Op::Ld]), d, base, 0, odd),
                _ => _ = asm.op(Op::Addi, d, a, 0, 1),
            }
        }
        let back = jal(ZERO, asm.here(), again);
        asm.i(back).put(&vm);
        let mut pieces = Pieces { vm, plugged: None };
        let cpu = pieces.vm.vcpu.cpu_mut();
        (cpu.pc, cpu.csr.mtvec) = (RAM, HANDLER);
        for n in VALUES {
            cpu.x[usize::from(n)] = rng.value();
        }
        pieces
    }

    /// Something that is not the hart's doing; `rng` is in the same state for both engines.
    fn between(&mut self, rng: &mut Rng) {
        let space = &self.vm.space;
        match rng.below(5) {
            0 => {
                let at = rng.pick(&[CELL, CELL + 3, RAM + 0x800, RAM + 0x5ff8, PLUG + 0x10]);
                // What is there, or something else.
                let mut bytes = [0; 8];
                _ = space.read(GuestPhys::new(at), &mut bytes);
                bytes[0] = bytes[0].wrapping_add(rng.below(2) as u8);
                _ = space.write(GuestPhys::new(at), &bytes);
            }
            1 => match self.plugged.take() {
                Some((block, mapping)) => {
                    space.unmap(mapping).unwrap();
                    self.vm.list.remove(&block).unwrap();
                }
                None => {
                    let block = self.vm.list.add(notdirty_core::RamBlockSpec::new("plug", 0x1000)).unwrap();
                    let mapping = space.map_ram(GuestPhys::new(PLUG), &block, 0, 0x1000, 0).unwrap();
                    self.plugged = Some((block, mapping));
                }
            },
            2 if rng.chance(20) => _ = space.vcpus().admit_writers(None),
            _ => {}
        }
    }
}

const BASES: [u8; 3] = [A0, A1, A2];
const VALUES: [u8; 6] = [T0, T1, S0, A4, S2, T3];
const S10: u8 = 26;
const S11: u8 = 27;

#[test]
fn atomics_in_pieces_with_host_writes_and_plugs_between_them_are_what_the_oracle_says() {
    let pieces = std::env::var("NOTDIRTY_PIECES").ok().map_or(150, |n| n.parse().expect("a number"));
    let mut alone = 0;
    for seed in 0..pieces {
        let mut flags = eager();
        if seed % 3 == 0 {
            assert!(flags.set(["flat_ram", "aligned", "flat_addend", "beside"][seed as usize / 3 % 4], false));
        }
        if seed % 4 == 0 {
            flags.samples = false;
        }
        let mut ours = Pieces::new(EngineKind::Jit, flags, seed);
        let mut oracle = Pieces::new(EngineKind::Interp, flags, seed);
        let (mut rng, mut at) = (Rng::new(!seed), 0);
        for piece in 0..30 {
            at += rng.pick(&[1, 5, 100, 300, 2000]) + rng.below(40);
            let limits = RunLimits { max_insns: Some(at), ..RunLimits::default() };
            assert_eq!(ours.vm.vcpu.run(&limits), oracle.vm.vcpu.run(&limits), "seed {seed}, piece {piece}");
            let (a, b) = (ours.vm.vcpu.cpu(), oracle.vm.vcpu.cpu());
            assert_eq!((a.pc, a.x, a.retired), (b.pc, b.x, b.retired), "seed {seed}, piece {piece}");
            let mut memory = [vec![0; 0x7000], vec![0; 0x7000]];
            for (vm, memory) in [&ours.vm, &oracle.vm].into_iter().zip(&mut memory) {
                vm.space.read(GuestPhys::new(RAM), memory).unwrap();
            }
            assert!(memory[0] == memory[1], "seed {seed}, piece {piece}: memory");
            let mut same = rng.clone();
            ours.between(&mut rng);
            oracle.between(&mut same);
        }
        alone += ours.vm.vcpu.stats().tb.alone;
    }
    assert!(alone > pieces / 2, "{alone} TBs of a lone hart");
}

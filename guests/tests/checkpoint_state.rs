//! What a checkpoint keeps beside RAM: reservations, timers, lines of interrupts, the console, and devices of an embedder's.

mod common;

use common::Elf;
use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmApi, DynasmLabelApi, VecAssembler};
use notdirty::{
    Captured, CheckpointError, ClockKind, Console, EngineKind, JitFlags, LrSc, Machine, MachineExit, Program, RunLimits,
};
use notdirty_softmmu::{DeviceState, GuestPhys, MemSize, MmioDevice, Stateful};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const RAM: u64 = 0x8000_0000;
const DATA: u64 = RAM + 0x8000;
const DEVICE: u64 = 0x4000_0000;

macro_rules! code {
    (; $($insn:tt)*) => {{
        let mut ops = VecAssembler::<RiscvRelocation>::new(0);
        dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei ; $($insn)*);
        ops.finalize().unwrap()
    }};
}

/// The oracle, the JIT, and the JIT that translates at once.
fn ways() -> [(EngineKind, JitFlags); 3] {
    let on = JitFlags::default();
    [(EngineKind::Interp, on), (EngineKind::Jit, on), (EngineKind::Jit, JitFlags { tier0: false, ..on })]
}

fn machine((engine, flags): (EngineKind, JitFlags), code: &[u8]) -> Machine {
    let console = Console::new(Box::new(Captured::default()));
    let builder = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).clock(ClockKind::Insns);
    let mut machine = builder.console(console).build().unwrap();
    machine.write(RAM, code).unwrap();
    machine.start_at(RAM).unwrap();
    machine.cpu_mut().x[18] = DATA;
    machine
}

fn steps(machine: &mut Machine, n: u64) {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None };
    assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
}

fn word(machine: &Machine, at: u64) -> u64 {
    let mut word = [0; 8];
    machine.read(at, &mut word).unwrap();
    u64::from_le_bytes(word)
}

#[test]
fn what_the_host_writes_to_a_device_is_put_back_though_the_guest_called_none() {
    let code = code!(; end: ; j <end);
    const TIMECMP: u64 = 0x200_4000;
    const SCRATCH: u64 = 0x1000_0007;
    for way in ways() {
        let mut machine = machine(way, &code);
        machine.write(TIMECMP, &77u64.to_le_bytes()).unwrap();
        machine.write(SCRATCH, &[7]).unwrap();
        let node = machine.checkpoint().unwrap();
        for _ in 0..3 {
            steps(&mut machine, 10);
            machine.write(TIMECMP, &99u64.to_le_bytes()).unwrap();
            machine.space().clone().write(GuestPhys::new(SCRATCH), &[9]).unwrap();
            machine.restore(&node).unwrap();
            machine.verify(&node).unwrap();
            let mut scratch = [0];
            machine.read(SCRATCH, &mut scratch).unwrap();
            assert_eq!((word(&machine, TIMECMP), scratch), (77, [7]), "{way:?}");
        }
    }
}

#[test]
fn an_end_that_is_half_written_is_as_near_as_it_was() {
    let code = code!(; lui t1, 0x80008000_u32 as i32 ; slli t1, t1, 32 ; srli t1, t1, 32 ; li.12 t0, 1 ; sw t0, [t1] ; end: ; j <end);
    for (engine, flags) in ways() {
        let mut elf = Elf::new(RAM, code.clone());
        elf.symbols = vec![("tohost", DATA, 8)];
        let builder = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).clock(ClockKind::Insns);
        let mut machine = builder.program(Program::ElfBytes("half.elf".into(), elf.bytes())).build().unwrap();
        let root = machine.checkpoint().unwrap();
        steps(&mut machine, 200);
        let node = machine.checkpoint().unwrap();
        let mut ends = Vec::new();
        for round in 0..6 {
            steps(&mut machine, 1 + 100 * round);
            let exit = machine.run_to_end();
            ends.push((exit, machine.cpu().retired));
            if round % 2 == 0 {
                machine.restore(&root).unwrap();
                steps(&mut machine, 1 + round);
            }
            machine.restore(&node).unwrap();
            machine.verify(&node).unwrap();
        }
        assert!(matches!(ends[0].0, MachineExit::Guest(_)) && ends.iter().all(|end| *end == ends[0]), "{ends:?}");
    }
}

#[test]
fn a_reservation_that_any_store_breaks_is_lost_by_a_checkpoint_in_each_run_alike() {
    let code =
        code!(; lr.d t0, [s2] ; addi t0, t0, 1 ; sc.d a0, t0, [s2] ; addi s2, s2, 64 ; lr.d t1, [s2] ; end: ; j <end);
    for (engine, flags) in ways() {
        let builder = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).clock(ClockKind::Insns);
        let mut machine = builder.lrsc(LrSc::Strict).build().unwrap();
        machine.write(RAM, &code).unwrap();
        machine.start_at(RAM).unwrap();
        machine.cpu_mut().x[18] = DATA;
        // Another thread may write from here on, so reservations are strict.
        let _memory = machine.memory();
        steps(&mut machine, 2);
        let node = machine.checkpoint().unwrap();
        for run in 0..4 {
            steps(&mut machine, 4);
            let seen = (machine.cpu().x[10], word(&machine, DATA));
            assert_eq!(seen, (1, 0), "{engine:?}, {flags:?}, run {run}: SC fails, and writes nothing");
            machine.restore(&node).unwrap();
            machine.verify(&node).unwrap();
        }
    }
}

#[test]
fn a_reservation_from_before_a_checkpoint_is_there_after_a_restore() {
    let code = code!(; lr.d t0, [s2] ; addi t0, t0, 1 ; here: ; sc.d a0, t0, [s2] ; end: ; j <end);
    for way in ways() {
        let mut machine = machine(way, &code);
        let none = machine.checkpoint().unwrap();
        steps(&mut machine, 2);
        let held = machine.checkpoint().unwrap();
        for round in 0..20 {
            steps(&mut machine, 1);
            assert_eq!((machine.cpu().x[10], word(&machine, DATA)), (0, 1), "{way:?}, round {round}");
            match round % 3 {
                0 => drop(machine.write(DATA, &7u64.to_le_bytes()).unwrap()),
                1 => machine.restore(&none).map(|_| ()).unwrap(),
                _ => {}
            }
            machine.restore(&held).unwrap();
            machine.verify(&held).unwrap();
        }
        // The same place by the owner's hand has none.
        machine.cpu_mut().pc = RAM + 8;
        steps(&mut machine, 1);
        assert_eq!((machine.cpu().x[10], word(&machine, DATA)), (1, 0), "{way:?}");
    }
}

#[test]
fn timers_and_interrupts_are_met_again_at_the_same_instruction() {
    // Each interrupt sets the next deadline; MSIP is raised by the guest itself.
    let code = code!(
        ; la t0, >handler ; csrw mtvec, t0
        ; lui t1, 0x2004000
        ; sd s3, [t1]
        ; li.12 t0, 0x88 ; csrw mie, t0 ; csrwi mstatus, 8
        ; again: ; addi s0, s0, 1 ; andi t2, s0, 127 ; bnez t2, <again
        ; lui t3, 0x2000000 ; li.12 t2, 1 ; sw t2, [t3] ; j <again
        ; .align 4
        ; handler:
        ; csrr s4, mcause ; xor s5, s5, s0 ; slli s6, s5, 1 ; add s5, s5, s6 ; add s5, s5, s4
        ; lui t3, 0x2000000 ; sw zero, [t3]
        ; bgez s4, >out
        ; slli s6, s4, 1 ; srli s6, s6, 1 ; li.12 t2, 7 ; bne s6, t2, >out
        ; ld t2, [t1] ; addi t2, t2, 5 ; sd t2, [t1]
        ; out: ; .u32 0x3020_0073
    );
    for way in ways() {
        let mut machine = machine(way, &code);
        machine.cpu_mut().x[19] = 4;
        let mut nodes = Vec::new();
        for n in 0..30 {
            steps(&mut machine, 1 + 97 * n);
            let node = machine.checkpoint().unwrap();
            steps(&mut machine, 3000);
            nodes.push((node, machine.cpu().clone()));
        }
        assert!(nodes.iter().any(|(_, cpu)| cpu.x[21] != nodes[0].1.x[21]), "something interrupts");
        for at in (0..30).map(|n| n * 7 % 30) {
            let (node, later) = &nodes[at];
            machine.restore(node).unwrap();
            machine.verify(node).unwrap();
            steps(&mut machine, 3000);
            assert_eq!(machine.cpu(), later, "{way:?}, node {at}");
        }
    }
}

#[test]
fn the_uart_and_what_waits_to_be_read_are_as_they_were() {
    // Reads a byte, keeps it in the scratch register, adds up; for ever.
    let code = code!(; lui t1, 0x10000000 ; again: ; lbu t0, [t1, 5] ; andi t0, t0, 1 ; beqz t0, <again
        ; lbu t0, [t1] ; lbu t2, [t1, 7] ; sb t0, [t1, 7] ; slli s0, s0, 3 ; add s0, s0, t0 ; add s0, s0, t2 ; j <again);
    for way in ways() {
        let mut machine = machine(way, &code);
        machine.console().feed(b"one, two, ").unwrap();
        steps(&mut machine, 30);
        let early = machine.checkpoint().unwrap();
        machine.console().feed(b"three").unwrap();
        steps(&mut machine, 30);
        let late = machine.checkpoint().unwrap();
        let run = |machine: &mut Machine, node| {
            machine.restore(node).unwrap();
            machine.verify(node).unwrap();
            steps(machine, 300);
            machine.cpu().x[8]
        };
        let (a, b) = (run(&mut machine, &early), run(&mut machine, &late));
        assert_ne!(a, b, "three was not there yet");
        for _ in 0..3 {
            assert_eq!((run(&mut machine, &late), run(&mut machine, &early)), (b, a), "{way:?}");
        }
        // What came while it went on is of another future, with no access of the guest to tell of it.
        machine.restore(&early).unwrap();
        machine.console().feed(b"four").unwrap();
        assert_eq!(run(&mut machine, &early), a, "{way:?}");
    }
}

/// Counts its reads, and says so or not.
#[derive(Default)]
struct Counter {
    reads: AtomicU64,
    silent: bool,
}

notdirty_softmmu::fields! {
    struct Reads: "reads", version 1 { reads: u64 }
}

impl Stateful for Counter {
    type State = Reads;
    fn save(&self) -> Reads {
        Reads { reads: self.reads.load(Ordering::Relaxed) }
    }
    fn restore(&self, state: &Reads) {
        self.reads.store(state.reads, Ordering::Relaxed);
    }
}

impl MmioDevice for Counter {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        self.reads.fetch_add(1, Ordering::Relaxed)
    }
    fn write(&self, _: u64, _: MemSize, _: u64) {}
    fn state(&self) -> DeviceState<'_> {
        if self.silent { DeviceState::Unknown } else { DeviceState::Kept(self) }
    }
    fn name(&self) -> &str {
        "counter"
    }
}

#[test]
fn a_device_that_says_nothing_of_its_state_is_refused_by_name_and_one_that_does_is_put_back() {
    let code = code!(; lui t1, 0x40000000 ; again: ; lw s0, [t1] ; j <again);
    for way in ways() {
        let mut machine = machine(way, &code);
        let (counter, silent) = (Arc::new(Counter::default()), Counter { silent: true, ..Counter::default() });
        machine.space().map_mmio(GuestPhys::new(DEVICE), 0x100, counter.clone(), 0).unwrap();
        let region = machine.space().map_mmio(GuestPhys::new(DEVICE + 0x1000), 0x100, Arc::new(silent), 0).unwrap();
        let Err(CheckpointError::Device { name, at }) = machine.checkpoint() else { panic!("it was taken") };
        assert_eq!((&name[..], at), ("counter", DEVICE + 0x1000));
        machine.unmap(region).unwrap();
        steps(&mut machine, 21);
        let node = machine.checkpoint().unwrap();
        for _ in 0..3 {
            steps(&mut machine, 20);
            assert_eq!(machine.cpu().x[8], 19);
            machine.restore(&node).unwrap();
            assert_eq!(counter.reads.load(Ordering::Relaxed), 10);
        }
        // It may change without the guest.
        counter.reads.store(77, Ordering::Relaxed);
        machine.restore(&node).unwrap();
        assert_eq!(counter.reads.load(Ordering::Relaxed), 10);
    }
}

#[test]
fn a_stop_from_before_a_restore_stops_nothing_and_what_waits_waits_again() {
    let code = code!(; addi s0, s0, 1 ; .u32 0x1050_0073 ; addi s0, s0, 1 ; end: ; j <end);
    for way in ways() {
        let mut machine = machine(way, &code);
        machine.cpu_mut().csr.mie = 1 << 3;
        let start = machine.checkpoint().unwrap();
        machine.stop_handle().stop();
        machine.restore(&start).unwrap();
        assert_eq!(machine.run(&RunLimits::default()), MachineExit::Hung, "{way:?}");
        assert!(machine.vcpu(0).unwrap().is_waiting());
        let waits = machine.checkpoint().unwrap();
        for _ in 0..3 {
            machine.write(0x200_0000, &1u32.to_le_bytes()).unwrap();
            steps(&mut machine, 3);
            assert_eq!(machine.cpu().x[8], 2);
            machine.restore(&waits).unwrap();
            machine.verify(&waits).unwrap();
            assert_eq!((machine.run(&RunLimits::default()), machine.cpu().x[8]), (MachineExit::Hung, 1), "{way:?}");
            machine.restore(&start).unwrap();
            assert_eq!((machine.run(&RunLimits::default()), machine.cpu().x[8]), (MachineExit::Hung, 1), "{way:?}");
            machine.restore(&waits).unwrap();
        }
    }
}

notdirty_softmmu::fields! {
    /// Bytes of an input that were read.
    struct Feed: "feed", version 1 { at: u64 }
}

/// Models that are closures: what one remembers is restored, and one that does not say is refused by its name.
#[test]
fn a_model_by_closure_is_restored_as_it_says() {
    use notdirty_softmmu::{MmioAccess, MmioModel};
    let mut machine = Machine::builder().ram_size(1 << 20).build().unwrap();
    let feed = MmioModel::kept("feed", Feed { at: 0 }, |feed, access| match access {
        MmioAccess::Load { .. } => {
            feed.at += 1;
            feed.at
        }
        MmioAccess::Store { value, .. } => {
            feed.at = value;
            0
        }
    });
    machine.mmio(0x4000_0000..0x4000_0008, feed).unwrap();
    let next = |machine: &mut Machine| {
        let mut byte = [0; 1];
        machine.read(0x4000_0000, &mut byte).unwrap();
        byte[0]
    };
    assert_eq!(next(&mut machine), 1);
    let node = machine.checkpoint().unwrap();
    assert_eq!((next(&mut machine), next(&mut machine)), (2, 3));
    assert!(machine.verify(&node).is_err());
    machine.restore(&node).unwrap();
    machine.verify(&node).unwrap();
    machine.write(0x4000_0000, &[40]).unwrap();
    assert_eq!(next(&mut machine), 41);
    machine.restore(&node).unwrap();
    assert_eq!(next(&mut machine), 2);
    machine.mmio(0x5000_0000..0x5000_0008, MmioModel::stateless("constant", |_| 7)).unwrap();
    let other = machine.checkpoint().unwrap();

    let region = machine.mmio(0x6000_0000..0x6000_0008, MmioModel::unsaved("random", |_| 4)).unwrap();
    let refused = machine.checkpoint().unwrap_err().to_string();
    assert!(refused.contains("random") && refused.contains("0x60000000"), "{refused}");
    machine.unmap(region).unwrap();
    machine.restore(&other).unwrap();
    machine.verify(&other).unwrap();
    assert!(machine.mmio(0x7000_0000..0x7000_0000, MmioModel::stateless("none", |_| 0)).is_err());
}

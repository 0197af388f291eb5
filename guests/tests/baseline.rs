//! Machines that begin at a checkpoint of another: each is a copy of it, and none is seen by another.

mod common;

use common::Elf;
use notdirty::{
    Baseline, BaselineError, Checkpoint, CheckpointError, ClockKind, Difference, Machine, MachineBuilder, MachineExit,
    MigrationError, PlugSpec, Program, RunLimits,
};
use notdirty_softmmu::{DeviceState, GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::{Rng, encode};
use std::sync::Arc;
use std::time::Duration;

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 1 << 20;
const DIMM: u64 = 0x1_0000_0000;
const DATA: u64 = RAM + 0x1_0000;
const MASK: u64 = 0x3_ffff;

/// Stores for ever to random places.
fn program() -> Program {
    let (s0, s1, s2, t0, t1) = (8, 9, 18, 5, 6);
    let mut code = vec![
        encode(Op::Slli, t0, s0, 0, 13),
        encode(Op::Xor, s0, s0, t0, 0),
        encode(Op::Srli, t0, s0, 0, 7),
        encode(Op::Xor, s0, s0, t0, 0),
        encode(Op::Slli, t0, s0, 0, 17),
        encode(Op::Xor, s0, s0, t0, 0),
        encode(Op::Srli, t1, s0, 0, 20),
        encode(Op::And, t1, t1, s2, 0),
        encode(Op::Add, t1, t1, s1, 0),
        encode(Op::Sd, 0, t1, s0, 0),
    ];
    code.push(encode(Op::Jal, 0, 0, 0, -4 * (code.len() as i32)));
    let bytes = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    Program::ElfBytes("stores.elf".into(), Elf::new(RAM, bytes).bytes())
}

fn builder() -> MachineBuilder {
    Machine::builder().ram_size(SIZE).max_ram(16 << 20).clock(ClockKind::Insns)
}

/// A machine that has run, with RAM that was plugged, and of which a part came later.
fn machine() -> Machine {
    let mut machine = builder().program(program()).build().unwrap();
    let cpu = machine.cpu_mut();
    (cpu.x[8], cpu.x[9], cpu.x[18]) = (7, DATA, MASK);
    let spec = PlugSpec::default().max_size(1 << 20);
    let dimm = machine.memory().plug("dimm", DIMM, 64 << 10, spec).unwrap();
    machine.memory().plug("shared", DIMM + (16 << 20), 64 << 10, PlugSpec::default().shared(true)).unwrap();
    machine.write(DIMM + (16 << 20), b"seen by others").unwrap();
    machine.memory().resize(&dimm, 128 << 10, Duration::from_secs(10)).unwrap();
    machine.write(DIMM + (100 << 10), &[5; 9000]).unwrap();
    run(&mut machine, 100_000);
    machine
}

fn run(machine: &mut Machine, insns: u64) {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + insns), deadline: None };
    assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
}

#[derive(Clone, PartialEq)]
struct Copy {
    ram: Vec<u8>,
    x: [u64; 32],
    pc: u64,
    retired: u64,
}

fn copy(machine: &Machine) -> Copy {
    let mut ram = vec![0; (SIZE + (192 << 10)) as usize];
    let (boot, dimms) = ram.split_at_mut(SIZE as usize);
    let (dimm, shared) = dimms.split_at_mut(128 << 10);
    machine.read(RAM, boot).unwrap();
    machine.read(DIMM, dimm).unwrap();
    machine.read(DIMM + (16 << 20), shared).unwrap();
    let cpu = machine.cpu();
    Copy { ram, x: cpu.x, pc: cpu.pc, retired: cpu.retired }
}

fn same(a: &Copy, b: &Copy, what: &str) {
    let byte = a.ram.iter().zip(&b.ram).position(|(a, b)| a != b);
    assert_eq!(byte, None, "{what}: a byte of RAM");
    assert_eq!((a.x, a.pc, a.retired), (b.x, b.pc, b.retired), "{what}");
}

fn on(baseline: &Baseline) -> Machine {
    Machine::builder().build_on(baseline).unwrap()
}

#[test]
fn machines_on_one_baseline_go_their_own_ways_and_come_back() {
    let mut first = machine();
    let root = first.checkpoint().unwrap();
    let there = copy(&first);
    run(&mut first, 3000);
    let later = copy(&first);
    let baseline = first.share(&root).unwrap();
    let mut machines = vec![first];
    machines.extend((0..3).map(|_| on(&baseline)));
    for machine in &mut machines {
        machine.verify(&root).unwrap();
        same(&copy(machine), &there, "built");
    }
    let mut known: Vec<Vec<(Checkpoint, Copy)>> = vec![vec![(root, there)]; machines.len()];
    let mut rng = Rng::new(3);
    for step in 0..600 {
        if step == 400 {
            // The others keep what they lie on.
            drop((machines.remove(0), known.remove(0)));
            machines.push(on(&baseline));
            known.push(known[0][..1].to_vec());
        }
        let n = rng.below(machines.len() as u64) as usize;
        let (machine, known) = (&mut machines[n], &mut known[n]);
        match rng.below(5) {
            0 => run(machine, 1 + rng.below(20_000)),
            1 => {
                let at = [DATA, DIMM, DIMM + (16 << 20)][rng.below(3) as usize] + rng.below(30_000);
                machine.write(at, &vec![rng.below(256) as u8; 1 + rng.below(9000) as usize]).unwrap();
            }
            2 if known.len() < 6 => known.push((machine.checkpoint().unwrap(), copy(machine))),
            3 if known.len() > 3 => drop(known.swap_remove(1 + rng.below(known.len() as u64 - 1) as usize)),
            _ => {
                let (node, there) = &known[rng.below(known.len() as u64) as usize];
                machine.restore(node).unwrap();
                machine.verify(node).unwrap();
                same(&copy(machine), there, &format!("machine {n}, step {step}"));
                if std::ptr::eq(node, &known[0].0) {
                    run(machine, 3000);
                    same(&copy(machine), &later, &format!("machine {n}, step {step}: and run on"));
                }
            }
        }
    }
}

#[test]
fn a_machine_knows_the_checkpoint_that_it_began_at_and_no_other_of_that_machine() {
    let mut first = machine();
    let root = first.checkpoint().unwrap();
    run(&mut first, 100);
    let other = first.checkpoint().unwrap();
    let baseline = first.share(&root).unwrap();
    let mut second = on(&baseline);
    assert!(matches!(second.restore(&other), Err(CheckpointError::OtherMachine)));
    assert_eq!(second.verify(&other), Err(Difference::NotThere));
    let own = second.checkpoint().unwrap();
    assert!(matches!(first.restore(&own), Err(CheckpointError::OtherMachine)));
    assert!(matches!(on(&baseline).restore(&own), Err(CheckpointError::OtherMachine)));
    // It can be shared on, and a machine on it knows its own.
    run(&mut second, 100);
    let next = second.checkpoint().unwrap();
    let mut third = on(&second.share(&next).unwrap());
    third.restore(&next).unwrap();
    assert!(matches!(third.restore(&root), Err(CheckpointError::OtherMachine)));
    first.restore(&other).unwrap();
    second.restore(&root).unwrap();
    same(&copy(&third), &copy(&first), "one way and the other");
}

#[test]
fn memory_that_is_given_back_reads_as_zero_where_it_lay_on_a_baseline() {
    let mut first = machine();
    let root = first.checkpoint().unwrap();
    let baseline = first.share(&root).unwrap();
    let mut second = on(&baseline);
    let there = copy(&second);
    let list = second.space().ram().clone();
    let block = list.find_id("dimm", &notdirty_core::pin()).unwrap().clone();
    list.discard(&block, 96 << 10, 32 << 10).unwrap();
    let mut bytes = vec![1; 32 << 10];
    second.read(DIMM + (96 << 10), &mut bytes).unwrap();
    assert_eq!(bytes, vec![0; 32 << 10]);
    second.restore(&root).unwrap();
    same(&copy(&second), &there, "restored");
}

/// A device that an embedder has brought.
struct Mine;

impl MmioDevice for Mine {
    fn name(&self) -> &str {
        "mine"
    }

    fn read(&self, _off: u64, _size: MemSize) -> u64 {
        7
    }

    fn write(&self, _off: u64, _size: MemSize, _value: u64) {}

    fn state(&self) -> DeviceState<'_> {
        DeviceState::Stateless
    }
}

#[test]
fn devices_of_an_embedder_are_its_to_add_and_what_cannot_be_saved_is_not_shared() {
    let mut first = machine();
    let add = |machine: &mut Machine| {
        machine.space().map_mmio(GuestPhys::new(0x3000_0000), 8, Arc::new(Mine), 0).unwrap();
    };
    add(&mut first);
    let root = first.checkpoint().unwrap();
    let baseline = first.share(&root).unwrap();
    let mut second = Machine::builder().build_on_with(&baseline, add).unwrap();
    let mut bytes = [0; 8];
    second.read(0x3000_0000, &mut bytes).unwrap();
    assert_eq!(bytes[0], 7);
    second.restore(&root).unwrap();

    second.map_alias(0x2_0000_0000, RAM, 4096).unwrap();
    let node = second.checkpoint().unwrap();
    assert!(matches!(second.share(&node), Err(BaselineError::Machine(MigrationError::Mapped { .. }))));
}

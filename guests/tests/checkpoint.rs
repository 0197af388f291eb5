//! Checkpoints of a machine against copies of all of it: whatever wrote, and in whatever order nodes are gone to.

mod common;

use common::Elf;
use notdirty::{Checkpoint, CheckpointError, EngineKind, Machine, MachineExit, Program, RunLimits};
use notdirty_core::DirtyClient;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::{Rng, encode};

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 1 << 20;
const DATA: u64 = RAM + 0x1_0000;
/// Of the data: 64 pages.
const MASK: u64 = 0x3_ffff;
const LOOP: usize = 15;

/// Stores for ever to random places, in every width, aligned or not, by AMO and SC; if it `patches`, over its own code, too. Code that
/// is patched so often is tier 0's, and the other is emitted.
fn program(patches: bool) -> Program {
    let (s0, s1, s2, s3, s4, s5, s6, t0, t1, t2, t3, t4, t5, t6) = (8, 9, 18, 19, 20, 21, 22, 5, 6, 7, 28, 29, 30, 31);
    let end = LOOP + 8 * 4;
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
        encode(Op::Andi, t2, t1, 0, -8),
        encode(Op::Andi, t3, s0, 0, 7),
        encode(Op::Slli, t3, t3, 0, 4),
        encode(Op::Auipc, t4, 0, 0, 0),
        encode(Op::Add, t4, t4, t3, 0),
        encode(Op::Jalr, 0, t4, 0, 12),
    ];
    let last: &[u32] = if patches {
        &[encode(Op::Xor, s4, s4, s6, 0), encode(Op::Sw, 0, s5, s4, 0), encode(Op::FenceI, 0, 0, 0, 0)]
    } else {
        &[encode(Op::Sd, 0, t2, s3, 0)]
    };
    let blocks: [&[u32]; 8] = [
        &[encode(Op::Sb, 0, t1, s0, 0)],
        &[encode(Op::Sh, 0, t1, s0, 0)],
        &[encode(Op::Sw, 0, t1, s0, 0)],
        &[encode(Op::Sd, 0, t1, s0, 0)],
        &[encode(Op::AmoaddD, t5, t2, s0, 0)],
        &[encode(Op::LrD, t5, t2, 0, 0), encode(Op::ScD, t6, t2, s0, 0)],
        &[encode(Op::AmoorW, t5, t2, s0, 0)],
        last,
    ];
    for block in blocks {
        let start = code.len();
        code.extend(block);
        let here = code.len();
        code.push(encode(Op::Jal, 0, 0, 0, 4 * (end as i32 - here as i32)));
        code.resize(start + 4, encode(Op::Addi, 0, 0, 0, 0));
    }
    code.push(encode(Op::Addi, s3, s3, 0, 1));
    code.push(encode(Op::Jal, 0, 0, 0, -4 * (code.len() as i32)));
    let bytes = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    Program::ElfBytes("stores.elf".into(), Elf::new(RAM, bytes).bytes())
}

fn machine(engine: EngineKind, seed: u64, patches: bool) -> Machine {
    let mut machine = Machine::builder().ram_size(SIZE).engine(engine).program(program(patches)).build().unwrap();
    let patch = RAM + 4 * (LOOP as u64 + 32);
    let cpu = machine.cpu_mut();
    (cpu.x[8], cpu.x[9], cpu.x[18], cpu.x[19]) = (seed | 1, DATA, MASK, 0);
    (cpu.x[20], cpu.x[21], cpu.x[22]) = (u64::from(encode(Op::Addi, 19, 19, 0, 1)), patch, 1 << 20);
    machine
}

/// All that a guest could see.
#[derive(Clone, PartialEq)]
struct Copy {
    ram: Vec<u8>,
    x: [u64; 32],
    pc: u64,
    retired: u64,
}

fn copy(machine: &Machine) -> Copy {
    let mut ram = vec![0; SIZE as usize];
    machine.read(RAM, &mut ram).unwrap();
    let cpu = machine.cpu();
    Copy { ram, x: cpu.x, pc: cpu.pc, retired: cpu.retired }
}

fn same(a: &Copy, b: &Copy, what: &str) {
    let byte = a.ram.iter().zip(&b.ram).position(|(a, b)| a != b);
    assert_eq!(byte, None, "{what}: a byte of RAM");
    assert_eq!((a.x, a.pc, a.retired), (b.x, b.pc, b.retired), "{what}");
}

fn run(machine: &mut Machine, insns: u64) {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + insns), deadline: None };
    assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
}

/// A node and what the machine was there, and what it became in so many instructions.
struct Known {
    node: Checkpoint,
    there: Copy,
    later: Copy,
}
const LATER: u64 = 3000;

#[test]
fn a_machine_that_is_restored_is_a_copy_of_what_it_was_whatever_wrote_meanwhile() {
    for (engine, steps) in [(EngineKind::Jit, 400), (EngineKind::Interp, 60)] {
        for seed in 1..4 {
            interleave(engine, seed, steps, true);
            interleave(engine, seed, steps, false);
        }
    }
}

fn interleave(engine: EngineKind, seed: u64, steps: u32, patches: bool) {
    let mut rng = Rng::new(seed);
    let mut machine = machine(engine, seed, patches);
    run(&mut machine, 10_000);
    let mut known: Vec<Known> = Vec::new();
    let mut logs = Vec::new();
    for step in 0..steps {
        match rng.below(8) {
            0..3 => run(&mut machine, 1 + rng.below(20_000)),
            3 => {
                let (at, len) = (DATA + rng.below(MASK - 5000), 1 + rng.below(5000));
                let bytes: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
                machine.write(at, &bytes).unwrap();
            }
            4 if known.len() < 20 => {
                let there = copy(&machine);
                let node = machine.checkpoint().unwrap();
                machine.verify(&node).unwrap();
                run(&mut machine, LATER);
                let later = copy(&machine);
                known.push(Known { node, there, later });
            }
            5 if logs.len() < 2 => {
                let list = machine.space().ram().clone();
                logs.push(list.log(DirtyClient::MIGRATION).start().unwrap());
            }
            6 if !known.is_empty() && rng.below(4) == 0 => {
                let _ = known.swap_remove(rng.below(known.len() as u64) as usize);
            }
            _ if !known.is_empty() => {
                let to = &known[rng.below(known.len() as u64) as usize];
                machine.restore(&to.node).unwrap();
                machine.verify(&to.node).unwrap();
                same(&copy(&machine), &to.there, &format!("{engine:?}, seed {seed}, step {step}: restored"));
                if rng.below(2) == 0 {
                    run(&mut machine, LATER);
                    same(&copy(&machine), &to.later, &format!("{engine:?}, seed {seed}, step {step}: and run on"));
                }
            }
            _ => {}
        }
    }
}

/// Few stores to each page, so that each is noted by its line, in emitted code: its two forms, for a hart that stores alone, and not.
#[test]
fn few_stores_of_hot_code_are_put_back_line_by_line_whether_the_hart_is_alone_or_not() {
    for alone in [true, false] {
        let mut machine = machine(EngineKind::Jit, 11, false);
        run(&mut machine, 100_000);
        // Another thread may write from here on.
        let _memory = (!alone).then(|| machine.memory());
        let node = machine.checkpoint().unwrap();
        let there = copy(&machine);
        let mut rng = Rng::new(5);
        let mut lines = 0;
        for round in 0..300 {
            run(&mut machine, 400 + rng.below(600));
            let done = machine.restore(&node).unwrap();
            assert!(done.lines < 64, "alone: {alone}, round {round}: no page is put back whole");
            lines += done.lines;
            machine.verify(&node).unwrap();
            same(&copy(&machine), &there, &format!("alone: {alone}, round {round}"));
        }
        let stats = machine.stats();
        assert!(lines > 300 && stats.entries > 300, "alone: {alone}: {lines} lines, {} entries", stats.entries);
    }
}

#[test]
fn a_log_hears_what_a_restore_changes() {
    let mut machine = machine(EngineKind::Jit, 7, true);
    let node = machine.checkpoint().unwrap();
    run(&mut machine, 50_000);
    let list = machine.space().ram().clone();
    let log = list.log(DirtyClient::MIGRATION).start().unwrap();
    let _ = log.sync(None).unwrap().commit();
    let before = copy(&machine).ram;
    machine.restore(&node).unwrap();
    let after = copy(&machine).ram;
    let pages = log.sync(None).unwrap().commit();
    let first = list.blocks(&notdirty_core::pin()).next().unwrap().offset().page().get();
    for (n, (a, b)) in before.chunks(4096).zip(after.chunks(4096)).enumerate() {
        let heard = pages.contains(notdirty_core::PageIndex::new(first + n as u64));
        assert!(heard || a == b, "page {n} was changed unheard");
    }
}

#[test]
fn a_checkpoint_is_of_one_machine() {
    let (mut one, mut other) = (machine(EngineKind::Jit, 1, true), machine(EngineKind::Jit, 1, true));
    let node = one.checkpoint().unwrap();
    assert!(matches!(other.restore(&node), Err(CheckpointError::OtherMachine)));
    other.checkpoint().unwrap();
    assert!(matches!(other.restore(&node), Err(CheckpointError::OtherMachine)));
    assert!(other.verify(&node).is_err());
    one.restore(&node).unwrap();
}

#[test]
fn a_long_branch_is_dropped_without_a_long_stack() {
    let mut machine = machine(EngineKind::Jit, 3, true);
    let root = machine.checkpoint().unwrap();
    let there = copy(&machine);
    let mut last = root.clone();
    for _ in 0..50_000 {
        run(&mut machine, 20);
        last = machine.checkpoint().unwrap();
    }
    machine.restore(&root).unwrap();
    same(&copy(&machine), &there, "from the end of a long branch");
    drop(last);
    machine.restore(&root).unwrap();
    machine.verify(&root).unwrap();
}

//! Checkpoints of a machine whose map changes: RAM that is plugged, unplugged, resized, shown elsewhere or as ROM, against a model that
//! copies the map and all memory.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::Elf;
use notdirty::{Checkpoint, EngineKind, Machine, MachineExit, PlugSpec, Plugged, Program, RamInfo, RunLimits};
use notdirty_core::{DirtyClient, DirtyLog, PAGE_SIZE, PageIndex, RamList, pin};
use notdirty_softmmu::{GuestPhys, RegionId, Resolved};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::testkit::{Rng, encode};

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 256 << 10;
/// Where RAM is plugged.
const PLACES: [u64; 3] = [0x1_0000_0000, 0x1_0100_0000, 0x1_0200_0000];
/// Where it is shown again.
const AGAIN: u64 = 0x2_0000_0000;
const WAIT: Duration = Duration::from_secs(10);
/// The instruction that gets another immediate, from the start of the code.
const PATCHED: u64 = 4 * 12;

/// Stores and adds for ever, to `s1` plus what `s2` masks, wherever it lies.
fn code() -> Vec<u8> {
    let (s0, s1, s2, s3, t0, t1, t2) = (8, 9, 18, 19, 5, 6, 7);
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
        encode(Op::Sb, 0, t1, s0, 0),
        encode(Op::AmoaddD, t0, t2, s3, 0),
        encode(Op::Addi, s3, s3, 0, 1),
        encode(Op::FenceI, 0, 0, 0, 0),
    ];
    code.push(encode(Op::Jal, 0, 0, 0, -4 * (code.len() as i32)));
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn machine(engine: EngineKind) -> Machine {
    let program = Program::ElfBytes("stores.elf".into(), Elf::new(RAM, code()).bytes());
    let builder = Machine::builder().ram_size(SIZE).max_ram(64 << 20).engine(engine);
    let mut machine = builder.program(program).build().unwrap();
    enter(&mut machine, RAM, SIZE);
    machine
}

/// The hart goes on with the code that is at `base`, and stores to what is behind it.
fn enter(machine: &mut Machine, base: u64, size: u64) {
    let cpu = machine.cpu_mut();
    (cpu.pc, cpu.x[9]) = (base, base + PAGE_SIZE);
    cpu.x[8] |= 1;
    cpu.x[18] = (size - 2 * PAGE_SIZE).next_power_of_two() / 2 - 1;
}

/// All that a guest could see, and what the machine says of its RAM.
#[derive(Clone, PartialEq)]
struct Copy {
    map: Vec<(u64, u64, String)>,
    bytes: Vec<Vec<u8>>,
    blocks: Vec<RamInfo>,
    x: [u64; 32],
    pc: u64,
    retired: u64,
}

fn copy(machine: &mut Machine) -> Copy {
    let view = machine.space().snapshot();
    let (mut map, mut bytes) = (Vec::new(), Vec::new());
    for (start, last, what) in view.ranges() {
        let what = match what {
            Resolved::Ram { block, off, readonly, .. } => {
                let mut all = vec![0; (last.get() - start.get() + 1) as usize];
                machine.read(start.get(), &mut all).unwrap();
                bytes.push(all);
                format!("{} {:?} {off:#x} {readonly}", block.idstr(), block.offset())
            }
            Resolved::Mmio { dev, off, .. } => format!("{} {off:#x}", dev.name()),
            Resolved::None => unreachable!(),
        };
        map.push((start.get(), last.get(), what));
    }
    let blocks = machine.memory().blocks();
    let cpu = machine.cpu();
    Copy { map, bytes, blocks, x: cpu.x, pc: cpu.pc, retired: cpu.retired }
}

fn same(now: &Copy, then: &Copy, what: &str) {
    assert_eq!(now.map, then.map, "{what}");
    assert_eq!(now.blocks, then.blocks, "{what}");
    for ((start, _, name), (a, b)) in now
        .map
        .iter()
        .filter(|range| range.2.contains("true") || range.2.contains("false"))
        .zip(now.bytes.iter().zip(&then.bytes))
    {
        let byte = a.iter().zip(b).position(|(a, b)| a != b);
        assert_eq!(byte, None, "{what}: a byte of {name} at {start:#x}");
    }
    assert_eq!((now.x, now.pc, now.retired), (then.x, then.pc, then.retired), "{what}");
}

fn run(machine: &mut Machine, insns: u64) -> MachineExit {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + insns), deadline: None };
    machine.run(&limits)
}

/// What a test knows of the machine's RAM.
#[derive(Clone, Default)]
struct Handles {
    plugged: Vec<Plugged>,
    shown: Vec<RegionId>,
}

struct Known {
    node: Checkpoint,
    there: Copy,
    later: (MachineExit, Copy),
    handles: Handles,
}
const LATER: u64 = 2000;

/// A log, and what its user believes that RAM is.
struct Shadow {
    log: DirtyLog,
    pages: HashMap<u64, Vec<u8>>,
}

impl Shadow {
    /// Takes what is dirty; whatever differs from what was believed is among it.
    fn sync(&mut self, list: &Arc<RamList>, what: &str) {
        let dirty = self.log.sync(None).unwrap().commit();
        self.read(list, |page, same| assert!(same || dirty.contains(page), "{what}: {page:?} was changed unheard"));
    }

    /// Reads all RAM, and tells of each page whether it is what was believed.
    fn read(&mut self, list: &Arc<RamList>, tell: impl Fn(PageIndex, bool)) {
        for block in list.blocks(&pin()) {
            for (n, page) in block.pages().iter().enumerate() {
                let mut bytes = vec![0; PAGE_SIZE as usize];
                block.read_bytes(n as u64 * PAGE_SIZE, &mut bytes).unwrap();
                let believed = self.pages.insert(page.get(), bytes);
                tell(page, believed.is_some_and(|old| old == self.pages[&page.get()]));
            }
        }
    }
}

#[test]
fn a_machine_that_is_restored_behind_changes_of_its_map_is_a_copy_of_what_it_was() {
    for (engine, steps) in [(EngineKind::Jit, 1500), (EngineKind::Interp, 300)] {
        for seed in 1..5 {
            interleave(engine, seed, steps);
        }
    }
}

fn interleave(engine: EngineKind, seed: u64, steps: u32) {
    let mut rng = Rng::new(seed);
    let mut machine = machine(engine);
    let list = machine.space().ram().clone();
    let mut shadows = Vec::new();
    let mut known: Vec<Known> = Vec::new();
    let mut has = Handles::default();
    let mut restores = [0; 2];
    for step in 0..steps {
        let what = format!("{engine:?}, seed {seed}, step {step}");
        match rng.below(14) {
            0..2 => drop(run(&mut machine, 1 + rng.below(5000))),
            2 => {
                let blocks = machine.memory().blocks();
                let ram = &blocks[rng.below(blocks.len() as u64) as usize];
                let bytes: Vec<u8> = (0..1 + rng.below(5000)).map(|_| rng.below(256) as u8).collect();
                let at = ram.base.get() + 0x100 + rng.below(ram.size - 0x2000);
                machine.write(at, &bytes).unwrap();
                // Code that is as the first run left it, or not.
                let imm = 1 + rng.below(3) as i32;
                machine.write(ram.base.get() + PATCHED, &encode(Op::Addi, 19, 19, 0, imm).to_le_bytes()).unwrap();
            }
            3 => {
                let (name, place) = (format!("dimm{}", rng.below(3)), PLACES[rng.below(3) as usize]);
                let size = PAGE_SIZE * (16 + rng.below(32));
                let spec = PlugSpec::default().max_size(512 << 10).shared(rng.below(2) == 0);
                if let Ok(plugged) = machine.memory().plug(&name, place, size, spec) {
                    machine.write(place, &code()).unwrap();
                    has.plugged.push(plugged);
                }
            }
            4 if !has.plugged.is_empty() => {
                let at = rng.below(has.plugged.len() as u64) as usize;
                if machine.memory().unplug(&has.plugged[at], WAIT).is_ok() {
                    let _ = has.plugged.swap_remove(at);
                }
            }
            5 | 6 if !has.plugged.is_empty() => {
                let plugged = &has.plugged[rng.below(has.plugged.len() as u64) as usize];
                let _ = machine.memory().resize(plugged, PAGE_SIZE * (8 + rng.below(60)), WAIT);
            }
            7 if !has.plugged.is_empty() => {
                let base = has.plugged[rng.below(has.plugged.len() as u64) as usize].base().get();
                let ram = machine.memory().blocks().into_iter().find(|ram| ram.base.get() == base).unwrap();
                enter(&mut machine, base, ram.size);
                run(&mut machine, 3000);
            }
            8 => {
                let list = machine.space().ram().clone();
                let block = list.find_id(&machine.memory().blocks().pop().unwrap().name, &pin()).unwrap().clone();
                let at = GuestPhys::new(AGAIN + 0x10_0000 * rng.below(4));
                let region = match rng.below(3) {
                    0 => machine.space().map_rom(at, &block, 0, 0x4000, 1),
                    // Over what it is: stores there are ignored from now on.
                    1 => machine.space().map_rom(GuestPhys::new(RAM + 0x3000), &block, 0x3000, 0x2000, 1),
                    _ => machine.map_alias(at.get(), RAM + 0x1000, 0x8000),
                };
                has.shown.extend(region);
            }
            9 if !has.shown.is_empty() => {
                let region = has.shown.swap_remove(rng.below(has.shown.len() as u64) as usize);
                machine.unmap(region).unwrap();
            }
            10 if known.len() < 12 => {
                let there = copy(&mut machine);
                let node = machine.checkpoint().unwrap();
                machine.verify(&node).unwrap();
                let exit = run(&mut machine, LATER);
                let later = (exit, copy(&mut machine));
                known.push(Known { node, there, later, handles: has.clone() });
            }
            11 if !known.is_empty() && rng.below(3) == 0 => {
                let _ = known.swap_remove(rng.below(known.len() as u64) as usize);
            }
            12 => {
                if shadows.is_empty() || rng.below(10) == 0 {
                    shadows.clear();
                    let log = list.log(DirtyClient::MIGRATION);
                    // More entries than there are pages.
                    let log = if rng.below(2) == 0 { log.rings(2048) } else { log };
                    shadows.push(Shadow { log: log.start().unwrap(), pages: HashMap::new() });
                    shadows[0].read(&list, |_, _| {});
                }
                shadows.iter_mut().for_each(|shadow| shadow.sync(&list, &what));
            }
            _ if !known.is_empty() => {
                let to = &known[rng.below(known.len() as u64) as usize];
                restores[usize::from(copy(&mut machine).map != to.there.map)] += 1;
                machine.restore(&to.node).unwrap();
                machine.verify(&to.node).unwrap();
                same(&copy(&mut machine), &to.there, &format!("{what}: restored"));
                has = to.handles.clone();
                shadows.iter_mut().for_each(|shadow| shadow.sync(&list, &what));
                if rng.below(2) == 0 {
                    assert_eq!(run(&mut machine, LATER), to.later.0, "{what}");
                    same(&copy(&mut machine), &to.later.1, &format!("{what}: and run on"));
                }
            }
            _ => {}
        }
    }
    assert!(restores[1] > 10, "{engine:?}, seed {seed}: the map was another {restores:?} times");
}

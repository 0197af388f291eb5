//! A soak of executions and restores: RAM and state are the checkpoint's, the run after a restore is the first one, memory stays what
//! it was. `NOTDIRTY_SOAK_SECONDS` says how long; with `--nocapture` each look is a line.

#[path = "common/writers.rs"]
mod writers;

use notdirty::hooks::HookSpec;
use notdirty::{
    Checkpoint, CpuState, ICache, JitFlags, Machine, MachineBuilder, MachineExit, PlugSpec, Plugged, Privilege,
    RunLimits,
};
use notdirty_tcg::testkit::Rng;
use std::hash::{DefaultHasher, Hasher};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};
use writers::{DATA, MASK, RAM, SIZE, start, with_dma};

/// A page table with a leaf for each of four GiB onto itself; the hart sets its marks.
const TABLE: u64 = RAM + 0xf_0000;
/// Where RAM is plugged.
const DIMM: u64 = 0x1_0000_0000;
const WAIT: Duration = Duration::from_secs(10);
/// So often all is looked at.
const LOOK: u64 = 10_000;
/// Instructions of the run that is compared, and how many of them one by one.
const COMPARED: (u64, u64) = (3000, 300);

/// What a run was: the registers behind each step, and all RAM.
#[derive(PartialEq)]
struct Trace(Vec<CpuState>, u64);

struct Soaked {
    name: &'static str,
    machine: Machine,
    root: Checkpoint,
    /// RAM that is plugged at the root.
    dimm: Plugged,
    first: Option<Trace>,
    done: u64,
}

impl Soaked {
    fn new(name: &'static str, builder: MachineBuilder, paged: bool) -> Soaked {
        let mut machine = builder.ram_size(SIZE).max_ram(16 << 20).build().unwrap();
        start(&mut machine, 5);
        with_dma(&mut machine);
        if paged {
            for gib in 0..4u64 {
                machine.write(TABLE + 8 * gib, &(gib << 28 | 0xf).to_le_bytes()).unwrap();
            }
            let cpu = machine.cpu_mut();
            cpu.csr.allow_all_memory();
            cpu.csr.menvcfg |= 1 << 61;
            (cpu.csr.satp, cpu.privilege) = (8 << 60 | TABLE >> 12, Privilege::S);
        }
        let spec = PlugSpec::default().max_size(256 << 10);
        let dimm = machine.memory().plug("dimm", DIMM, 64 << 10, spec).unwrap();
        machine.write(DIMM + 5000, &[7; 9000]).unwrap();
        let root = machine.checkpoint().unwrap();
        let mut soaked = Soaked { name, machine, root, dimm, first: None, done: 0 };
        soaked.first = soaked.trace();
        soaked
    }

    /// From the root on; several harts have no run that could be the same again.
    fn trace(&mut self) -> Option<Trace> {
        if self.machine.harts() > 1 {
            return None;
        }
        let mut states = Vec::new();
        let start = self.machine.cpu().retired;
        for n in (1..=COMPARED.1).chain([COMPARED.0]) {
            steps(&mut self.machine, start + n);
            states.push(self.machine.cpu().clone());
        }
        let mut ram = vec![0; SIZE as usize];
        self.machine.read(RAM, &mut ram).unwrap();
        let mut hash = DefaultHasher::new();
        hash.write(&ram);
        self.machine.restore(&self.root).unwrap();
        Some(Trace(states, hash.finish()))
    }

    fn execute(&mut self, rng: &mut Rng) {
        let machine = &mut self.machine;
        let several = machine.harts() > 1;
        machine.cpu_mut().x[8] = rng.bits() | 1;
        if rng.below(16) == 0 {
            machine
                .write(DATA + rng.below(MASK - 300), &vec![rng.below(256) as u8; 1 + rng.below(300) as usize])
                .unwrap();
        }
        let go = |machine: &mut Machine, rng: &mut Rng| match several {
            true => {
                let deadline = Some(Instant::now() + Duration::from_micros(20));
                assert_eq!(machine.run(&RunLimits { max_insns: None, deadline }), MachineExit::Deadline);
            }
            false => {
                let end = machine.cpu().retired + 1 + rng.below(1000);
                steps(machine, end);
            }
        };
        match rng.below(128) {
            0 => machine.memory().unplug(&self.dimm, WAIT).unwrap(),
            1 => machine.memory().resize(&self.dimm, 4096 * (1 + rng.below(60)), WAIT).unwrap(),
            2 => {
                let shared = PlugSpec::default().shared(rng.below(2) == 0);
                machine.memory().plug("more", DIMM + (16 << 20), 64 << 10, shared).unwrap();
                machine.write(DIMM + (16 << 20) + rng.below(60_000), b"more").unwrap();
            }
            3 => drop(machine.map_alias(DIMM + (32 << 20), RAM, 8192).unwrap()),
            4 => machine.poison(DATA + rng.below(MASK)..DATA + MASK + 1),
            _ => {}
        }
        machine.unpoison_all();
        go(machine, rng);
        if self.done.is_multiple_of(500) {
            // To and fro in a tree, whose nodes go again.
            let one = machine.checkpoint().unwrap();
            go(machine, rng);
            let other = machine.checkpoint().unwrap();
            go(machine, rng);
            machine.restore(&one).unwrap();
            go(machine, rng);
            machine.restore(&other).unwrap();
            machine.verify(&other).unwrap();
        }
        machine.restore(&self.root).unwrap();
        self.done += 1;
        if self.done.is_multiple_of(LOOK) {
            self.machine.verify(&self.root).unwrap();
            let again = self.trace();
            assert!(again == self.first, "{}: after {} the run is another", self.name, self.done);
            self.machine.verify(&self.root).unwrap();
            println!("{}: {} executions, {} KiB", self.name, self.done, memory());
        }
    }
}

fn steps(machine: &mut Machine, end: u64) {
    assert_eq!(machine.run(&RunLimits { max_insns: Some(end), deadline: None }), MachineExit::InsnLimit);
}

/// KiB of the host's memory that this process uses.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    4 * text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap()
}

#[test]
fn executions_leave_nothing_behind() {
    let seconds = std::env::var("NOTDIRTY_SOAK_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let eager = JitFlags { tier0: false, ..JitFlags::default() };
    let builder = Machine::builder;
    let mut all = [
        Soaked::new("one hart", builder(), false),
        Soaked::new("page tables", builder(), true),
        Soaked::new("translated at once, fence.i", builder().jit_flags(eager).icache(ICache::FenceI), false),
        Soaked::new("two harts", builder().harts(2), false),
    ];
    // Empty hooks: they change nothing.
    let block = HookSpec::block(.., |_| ControlFlow::Continue(()));
    all[1].machine.add_hook(0, block).unwrap();
    all[2].machine.add_hook(0, HookSpec::insn_with(RAM..RAM + 64, |_| {})).unwrap();
    let (mut rng, started) = (Rng::new(1), Instant::now());
    let mut warm = None;
    let (mut rounds, mut most) = (0u64, 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..64 {
            all[..3].iter_mut().for_each(|soaked| soaked.execute(&mut rng));
        }
        all[3].execute(&mut rng);
        rounds += 1;
        if rounds.is_multiple_of(256) && started.elapsed() > Duration::from_secs(seconds) / 4 {
            let now = memory();
            warm.get_or_insert(now);
            most = most.max(now);
        }
    }
    for Soaked { name, done, machine, .. } in &all {
        println!("{name}: {done} executions, {} instructions", machine.stats().retired);
    }
    if let Some(warm) = warm {
        println!("memory: {warm} KiB after a quarter of the time, then at most {most}");
        assert!(most < warm + 8192, "{warm} KiB became {most}");
    }
}

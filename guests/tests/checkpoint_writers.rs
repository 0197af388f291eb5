//! Checkpoints of machines that several write to: harts at once, devices by DMA, another thread, and a kernel with its page tables.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
use notdirty::{
    Captured, Checkpoint, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program,
    RunLimits,
};
use notdirty_softmmu::{AddressSpace, DeviceState, GuestPhys, MemSize, MmioDevice};
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::testkit::Rng;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

const RAM: u64 = 0x8000_0000;
const SIZE: u64 = 1 << 20;
const DATA: u64 = RAM + 0x2_0000;
/// Sixteen pages.
const MASK: u64 = 0xffff;
const DMA: u64 = 0x4000_0000;
const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

/// Stores for ever to random places of the same pages as all others, in every width, by AMO, LR and SC; and over its own code. Now and
/// then it asks the device for DMA, if there is one: s7 is not zero.
fn program() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei
        ; again:
        ; slli t0, s0, 13 ; xor s0, s0, t0 ; srli t0, s0, 7 ; xor s0, s0, t0 ; slli t0, s0, 17 ; xor s0, s0, t0
        ; srli t1, s0, 20 ; and t1, t1, s2 ; add t1, t1, s1 ; andi t2, t1, -8
        ; sb s0, [t1]
        ; srli t3, s0, 33 ; and t3, t3, s2 ; add t3, t3, s1 ; sd s0, [t3]
        ; amoadd.d t4, s0, [t2] ; amoor.w t4, s0, [t2]
        ; lr.d t4, [t2] ; sc.d t5, s0, [t2]
        ; andi t4, s0, 63 ; bnez t4, >patched
        ; xor s4, s4, s6 ; la t5, >patched ; sw s4, [t5] ; fence.i
        ; beqz s7, >patched
        ; sd t1, [s7]
        ; patched:
        ; addi s3, s3, 1
        ; j <again
    );
    ops.finalize().unwrap()
}

fn start(machine: &mut Machine, seed: u64) {
    let code = program();
    for hart in 0..machine.harts() {
        let base = RAM + 0x1000 * hart as u64;
        machine.write(base, &code).unwrap();
    }
    machine.start_at(RAM).unwrap();
    for hart in 0..machine.harts() {
        let cpu = machine.vcpu_mut(hart).unwrap().cpu_mut();
        cpu.pc = RAM + 0x1000 * hart as u64;
        (cpu.x[8], cpu.x[9], cpu.x[18]) = (seed * 2 + 1 + 1000 * hart as u64, DATA, MASK);
        (cpu.x[20], cpu.x[22]) = (0x0019_8993, 0x0030_0000);
    }
}

struct Copy {
    ram: Vec<u8>,
    harts: Vec<CpuState>,
}

fn copy(machine: &Machine) -> Copy {
    let mut ram = vec![0; SIZE as usize];
    machine.read(RAM, &mut ram).unwrap();
    Copy { ram, harts: (0..machine.harts()).map(|hart| machine.vcpu(hart).unwrap().cpu().clone()).collect() }
}

fn restored(machine: &mut Machine, (node, was): &(Checkpoint, Copy), what: &str) {
    machine.restore(node).unwrap();
    machine.verify(node).unwrap();
    let now = copy(machine);
    let byte = now.ram.iter().zip(&was.ram).position(|(a, b)| a != b);
    assert_eq!(byte, None, "{what}: a byte of RAM");
    assert_eq!(now.harts, was.harts, "{what}");
}

fn for_a_while(rng: &mut Rng) -> RunLimits {
    RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_micros(50 + rng.below(500))) }
}

/// Takes and restores between runs; `beside` is called at each run.
fn interleave(machine: &mut Machine, seed: u64, what: &str, beside: impl Fn(u64) + Sync) {
    let mut rng = Rng::new(seed);
    let mut nodes: Vec<(Checkpoint, Copy)> = Vec::new();
    for step in 0..150 {
        let what = format!("{what}, seed {seed}, step {step}");
        match rng.below(4) {
            0 if nodes.len() < 12 => {
                let (node, was) = (machine.checkpoint().unwrap(), copy(machine));
                nodes.push((node, was));
            }
            1 if !nodes.is_empty() => {
                let at = rng.below(nodes.len() as u64) as usize;
                restored(machine, &nodes[at], &what);
                if rng.below(4) == 0 {
                    nodes.swap_remove(at);
                }
            }
            _ => {
                let limits = for_a_while(&mut rng);
                std::thread::scope(|scope| {
                    scope.spawn(|| beside(step));
                    assert_eq!(machine.run(&limits), MachineExit::Deadline, "{what}");
                });
            }
        }
    }
}

#[test]
fn harts_that_store_to_the_same_pages_are_put_back() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        for harts in [2, 4] {
            let flags = JitFlags { tier0: harts == 2, ..JitFlags::default() };
            let mut machine =
                Machine::builder().ram_size(SIZE).harts(harts).engine(engine).jit_flags(flags).build().unwrap();
            start(&mut machine, harts as u64);
            interleave(&mut machine, harts as u64, &format!("{engine:?}, {harts} harts"), |_| {});
        }
    }
}

/// Writes some bytes where it is told to.
struct Dma(Weak<AddressSpace>);

impl MmioDevice for Dma {
    fn read(&self, _: u64, _: MemSize) -> u64 {
        0
    }
    fn write(&self, _: u64, _: MemSize, value: u64) {
        let bytes: Vec<u8> = (0..1 + value % 3000).map(|n| (n ^ value) as u8).collect();
        self.0.upgrade().unwrap().write(GuestPhys::new(value), &bytes).unwrap();
    }
    fn state(&self) -> DeviceState<'_> {
        DeviceState::Stateless
    }
}

#[test]
fn what_a_device_and_another_thread_write_is_put_back() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        for harts in [1, 2] {
            let mut machine = Machine::builder().ram_size(SIZE).harts(harts).engine(engine).build().unwrap();
            let space = machine.space().clone();
            space.map_mmio(GuestPhys::new(DMA), 0x1000, Arc::new(Dma(Arc::downgrade(&space))), 0).unwrap();
            start(&mut machine, 7);
            for hart in 0..harts {
                machine.vcpu_mut(hart).unwrap().cpu_mut().x[23] = DMA;
            }
            interleave(&mut machine, 11, &format!("{engine:?}, {harts} harts, DMA"), |step| {
                let mut rng = Rng::new(step);
                for _ in 0..20 {
                    let bytes = vec![rng.below(256) as u8; 1 + rng.below(200) as usize];
                    space.write(GuestPhys::new(DATA + rng.below(MASK)), &bytes).unwrap();
                }
            });
        }
    }
}

/// Our kernel, if it was built.
fn kernel(harts: usize, clock: ClockKind, engine: EngineKind) -> Option<Machine> {
    let name = if harts == 1 { "kernel.elf" } else { "kernel-2h.elf" };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/build/quick").join(name);
    if !path.is_file() {
        println!("SKIPPED our kernel: no {} (make guests needs a cross compiler)", path.display());
        return None;
    }
    let console = Console::new(Box::new(Captured::default()));
    let builder = Machine::builder().ram_size(32 << 20).harts(harts).clock(clock).engine(engine).console(console);
    Some(builder.program(Program::Elf(path)).build().unwrap())
}

/// How often the kernel is checkpointed.
fn times() -> u64 {
    std::env::var("NOTDIRTY_KERNEL_CHECKPOINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

#[test]
fn our_kernel_never_notices_that_it_goes_back() {
    let Some(mut plain) = kernel(1, ClockKind::Insns, EngineKind::Jit) else { return };
    assert_eq!(plain.run(&RunLimits::default()), PASS);
    let (insns, expected) = (plain.cpu().retired, plain.cpu().clone());
    let mut ram = vec![0; 32 << 20];
    plain.read(RAM, &mut ram).unwrap();

    let Some(mut machine) = kernel(1, ClockKind::Insns, EngineKind::Jit) else { return };
    let mut rng = Rng::new(15);
    let mut last: Option<Checkpoint> = None;
    for n in 1..=times() {
        let until = RunLimits { max_insns: Some(insns * n / (times() + 1)), deadline: None };
        assert_eq!(machine.run(&until), MachineExit::InsnLimit);
        let here = machine.checkpoint().unwrap();
        if let Some(last) = last.replace(here.clone()).filter(|_| n % 5 == 0) {
            machine.restore(&last).unwrap();
            assert_eq!(machine.run(&until), MachineExit::InsnLimit);
            assert_eq!(machine.cpu(), here.hart(0).unwrap().cpu(), "checkpoint {n}: from the one before");
        }
        for _ in 0..2 {
            let piece = RunLimits { max_insns: Some(machine.cpu().retired + 1 + rng.below(20_000)), deadline: None };
            machine.run(&piece);
            machine.restore(&here).unwrap();
        }
        if n % 50 == 0 {
            machine.verify(&here).unwrap();
        }
    }
    assert_eq!(machine.run(&RunLimits::default()), PASS);
    assert_eq!(machine.cpu(), &expected);
    let mut now = vec![0; 32 << 20];
    machine.read(RAM, &mut now).unwrap();
    let byte = now.iter().zip(&ram).position(|(a, b)| a != b);
    assert_eq!(byte, None, "a byte of RAM");
}

#[test]
fn our_kernel_on_two_harts_adds_up_though_it_goes_back() {
    let Some(mut machine) = kernel(2, ClockKind::Host, EngineKind::Jit) else { return };
    let mut rng = Rng::new(16);
    for n in 0..times() {
        let exit = machine.run(&for_a_while(&mut rng));
        if exit == PASS {
            println!("it ended after {n} checkpoints");
            return;
        }
        assert_eq!(exit, MachineExit::Deadline);
        let here = machine.checkpoint().unwrap();
        machine.run(&for_a_while(&mut rng));
        machine.restore(&here).unwrap();
        if n % 20 == 0 {
            machine.verify(&here).unwrap();
        }
    }
    assert_eq!(machine.run(&RunLimits::default()), PASS);
}

//! Checkpoints of machines that several write to: harts at once, devices by DMA, another thread, and a kernel with its page tables.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
#[path = "common/writers.rs"]
mod writers;

use notdirty::{
    Captured, Checkpoint, ClockKind, Console, EngineKind, ExitBy, GuestExit, JitFlags, Machine, MachineExit, Program,
    RunLimits,
};
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::cpu::CpuState;
use notdirty_tcg::testkit::Rng;
use std::path::Path;
use std::time::{Duration, Instant};
use writers::{DATA, MASK, RAM, SIZE, start, with_dma};

const PASS: MachineExit = MachineExit::Guest(GuestExit { code: 0, by: ExitBy::Finisher });

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
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let any = JitFlags { aligned: false, ..eager };
    for (engine, harts, flags) in [
        (EngineKind::Jit, 1, any),
        (EngineKind::Jit, 2, on),
        (EngineKind::Jit, 4, eager),
        (EngineKind::Interp, 2, on),
        (EngineKind::Interp, 4, on),
    ] {
        let mut machine =
            Machine::builder().ram_size(SIZE).harts(harts).engine(engine).jit_flags(flags).build().unwrap();
        start(&mut machine, harts as u64);
        interleave(&mut machine, harts as u64, &format!("{engine:?}, {harts} harts"), |_| {});
    }
}

/// Waits for the other hart at s4, stores once to every second line of the pages from s1 on, from line s3 on; then it waits.
fn every_second_line() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imac
        ; li.12 t0, 1 ; li.12 t1, 2 ; amoadd.w zero, t0, [s4]
        ; both: ; lw t0, [s4] ; bne t0, t1, <both
        ; slli s3, s3, 6 ; add s1, s1, s3
        ; again: ; sd s1, [s1] ; addi s1, s1, 128 ; bltu s1, s2, <again
        ; end: ; j <end
    );
    ops.finalize().unwrap()
}

#[test]
fn lines_of_one_page_that_two_harts_note_at_once_are_both_put_back() {
    let eager = JitFlags { tier0: false, ..JitFlags::default() };
    let mut machine = Machine::builder().ram_size(SIZE).harts(2).jit_flags(eager).build().unwrap();
    machine.write(RAM, &every_second_line()).unwrap();
    machine.start_at(RAM).unwrap();
    for hart in 0..2 {
        let cpu = machine.vcpu_mut(hart).unwrap().cpu_mut();
        (cpu.x[9], cpu.x[18], cpu.x[19]) = (DATA, DATA + 64 * 4096, hart as u64);
        cpu.x[20] = RAM + 0x1000;
    }
    let node = machine.checkpoint().unwrap();
    for _ in 0..1000 {
        let deadline = Some(Instant::now() + Duration::from_micros(200));
        machine.run(&RunLimits { max_insns: None, deadline });
        machine.restore(&node).unwrap();
        machine.verify(&node).unwrap();
    }
}

#[test]
fn what_a_device_and_another_thread_write_is_put_back() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        for harts in [1, 2] {
            let mut machine = Machine::builder().ram_size(SIZE).harts(harts).engine(engine).build().unwrap();
            start(&mut machine, 7);
            with_dma(&mut machine);
            let space = machine.space().clone();
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

//! Code that changes between a checkpoint and a restore: what was translated of it since dies, whoever wrote it and whichever way back
//! is gone; and RAM that came or went since is refused.

use dynasmrt::riscv::RiscvRelocation;
use dynasmrt::{DynasmLabelApi, VecAssembler};
use notdirty::{EngineKind, ICache, JitFlags, Machine, MachineExit, RunLimits};
use notdirty_softmmu::GuestPhys;

const RAM: u64 = 0x8000_0000;
const FUNCTION: u64 = RAM + 0x1000;

/// `addi a0, zero, value`.
fn load_a0(value: u32) -> u32 {
    value << 20 | 0x513
}

/// Calls the function for ever and adds up; then, if s2 is not zero, stores s3 there, once.
fn program() -> Vec<u8> {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    dynasmrt::dynasm!(ops ; .arch riscv64 ; .feature imaczicsr_zifencei
        ; again:
        ; jalr ra, s4, 0
        ; slli t0, s0, 1 ; add s0, s0, t0 ; add s0, s0, a0
        ; beqz s2, <again
        ; sw s3, [s2]
        ; fence.i
        ; li.12 s2, 0
        ; j <again
    );
    ops.finalize().unwrap()
}

fn machine(engine: EngineKind, flags: JitFlags, icache: ICache) -> Machine {
    let builder = Machine::builder().ram_size(1 << 20).engine(engine).jit_flags(flags).icache(icache);
    let mut machine = builder.build().unwrap();
    machine.write(RAM, &program()).unwrap();
    machine.write(FUNCTION, &load_a0(1).to_le_bytes()).unwrap();
    machine.write(FUNCTION + 4, &0x8067u32.to_le_bytes()).unwrap();
    machine.start_at(RAM).unwrap();
    machine.cpu_mut().x[20] = FUNCTION;
    machine
}

fn steps(machine: &mut Machine, n: u64) {
    let limits = RunLimits { max_insns: Some(machine.cpu().retired + n), deadline: None };
    assert_eq!(machine.run(&limits), MachineExit::InsnLimit);
}

/// Many calls; what they add up to.
fn calls(machine: &mut Machine) -> u64 {
    steps(machine, 6 * 1000);
    machine.cpu().x[8]
}

#[derive(Clone, Copy, Debug)]
enum By {
    Guest,
    Host,
    Dma,
}

fn patch(machine: &mut Machine, by: By, value: u32) {
    let word = load_a0(value);
    match by {
        By::Guest => {
            let cpu = machine.cpu_mut();
            (cpu.x[18], cpu.x[19]) = (FUNCTION, word.into());
        }
        By::Host => drop(machine.write(FUNCTION, &word.to_le_bytes()).unwrap()),
        By::Dma => machine.space().clone().write(GuestPhys::new(FUNCTION), &word.to_le_bytes()).unwrap(),
    }
    // Off the multiple of a round: pieces end anywhere.
    steps(machine, 6 * 100 + u64::from(value));
}

#[test]
fn code_from_after_a_checkpoint_is_not_run_after_a_restore() {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    let ways = [
        (EngineKind::Interp, on, ICache::Coherent),
        (EngineKind::Jit, on, ICache::Coherent),
        (EngineKind::Jit, eager, ICache::Coherent),
        (EngineKind::Jit, JitFlags { regions: false, ..eager }, ICache::Coherent),
        (EngineKind::Jit, eager, ICache::FenceI),
    ];
    for (engine, flags, icache) in ways {
        for by in [By::Guest, By::Host, By::Dma] {
            let what = format!("{engine:?}, tier 0 {}, regions {}, {icache:?}, {by:?}", flags.tier0, flags.regions);
            let mut machine = machine(engine, flags, icache);
            calls(&mut machine);
            let mut nodes = Vec::new();
            for value in 1..6 {
                let node = machine.checkpoint().unwrap();
                nodes.push((node, calls(&mut machine)));
                patch(&mut machine, by, value + 1);
                calls(&mut machine);
            }
            for at in [4, 4, 4, 3, 0, 2, 2, 1, 4, 0, 0] {
                let (node, expected) = &nodes[at];
                machine.restore(node).unwrap();
                machine.verify(node).unwrap();
                assert_eq!(calls(&mut machine), *expected, "{what}, node {at}");
                patch(&mut machine, by, 50);
                let with_others = calls(&mut machine);
                machine.restore(node).unwrap();
                assert_eq!(calls(&mut machine), *expected, "{what}, node {at}");
                assert_ne!(with_others, *expected, "{what}: the function was another one");
            }
        }
    }
}

#[test]
fn a_store_that_waits_for_its_fence_is_the_same_before_and_after() {
    let eager = JitFlags { tier0: false, ..JitFlags::default() };
    let mut machine = machine(EngineKind::Jit, eager, ICache::FenceI);
    // No fence behind the store.
    let fence = program().windows(4).position(|word| word == 0x100fu32.to_le_bytes()).unwrap() as u64;
    machine.write(RAM + fence, &0x13u32.to_le_bytes()).unwrap();
    calls(&mut machine);
    patch(&mut machine, By::Guest, 9);
    // The hart sees its own store late: at the latest here.
    let node = machine.checkpoint().unwrap();
    let first = calls(&mut machine);
    for value in [9, 3, 9, 3] {
        machine.restore(&node).unwrap();
        assert_eq!(calls(&mut machine), first, "the store is seen as it was");
        patch(&mut machine, By::Guest, value);
    }
}

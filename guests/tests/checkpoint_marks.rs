//! Poison and canaries belong to a checkpoint: against a model that has a letter for each byte, and asks the guest.

use dynasmrt::VecAssembler;
use dynasmrt::riscv::RiscvRelocation;
use notdirty::hooks::{HookSpec, Kinds, View, Watch};
use notdirty::{Checkpoint, EngineKind, Machine, MachineExit, RunLimits};
use notdirty_tcg::testkit::Rng;

const RAM: u64 = 0x8000_0000;
/// Over the end of a page.
const BYTES: u64 = RAM + 0x8fc0;
const COUNT: u64 = 128;

fn machine(engine: EngineKind) -> Machine {
    let mut ops = VecAssembler::<RiscvRelocation>::new(0);
    // To look at a byte, by a load or a store; and one that a hook poisons from.
    dynasmrt::dynasm!(ops ; .arch riscv64
        ; lb t0, [a0]
        ; ebreak
        ; sb t0, [a0]
        ; ebreak
        ; addi a2, a2, 1
        ; ebreak
    );
    let mut machine = Machine::builder().ram_size(1 << 20).engine(engine).build().unwrap();
    machine.write(RAM, &ops.finalize().unwrap()).unwrap();
    machine.set_exits(&[RAM + 4, RAM + 12, RAM + 20]);
    // What a hooked allocator does.
    let hook = HookSpec::insn_with(RAM + 16, |view: &mut View<'_>| {
        let (at, len) = (view.x(10), view.x(11));
        match view.x(12) {
            0 => view.poison(at..at + len),
            _ => view.unpoison(at..at + len),
        }
    });
    machine.add_hook(0, hook).unwrap();
    machine
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct Byte {
    poison: bool,
    canary: bool,
    watched: bool,
}

impl Byte {
    fn met(self, store: bool) -> Option<Watch> {
        match self {
            Byte { poison: true, .. } => Some(Watch::Poison),
            Byte { canary: true, .. } if store => Some(Watch::Canary),
            Byte { watched: true, .. } => Some(Watch::Watch),
            _ => None,
        }
    }
}

type Model = [Byte; COUNT as usize];
const NOTHING: Model = [Byte { poison: false, canary: false, watched: false }; COUNT as usize];

fn ask(machine: &mut Machine, n: u64, store: bool) -> Option<Watch> {
    let cpu = machine.cpu_mut();
    (cpu.pc, cpu.x[10]) = (RAM + 8 * u64::from(store), BYTES + n);
    match machine.run(&RunLimits { max_insns: Some(cpu_end(machine)), deadline: None }) {
        MachineExit::Watch { access, .. } => Some(access.why),
        MachineExit::Pc { .. } => None,
        other => panic!("{other:?}"),
    }
}

fn cpu_end(machine: &Machine) -> u64 {
    machine.cpu().retired + 100
}

fn check(machine: &mut Machine, model: &Model, rng: &mut Rng, what: &str) {
    for _ in 0..24 {
        let (n, store) = (rng.below(COUNT), rng.below(2) == 0);
        assert_eq!(ask(machine, n, store), model[n as usize].met(store), "{what}: byte {n}, store: {store}");
    }
}

#[test]
fn poison_and_canaries_are_restored_and_what_is_watched_stays() {
    for engine in [EngineKind::Jit, EngineKind::Interp] {
        for seed in 1..9 {
            let mut rng = Rng::new(seed);
            let (mut machine, mut model) = (machine(engine), NOTHING);
            let mut known: Vec<(Checkpoint, Model)> = Vec::new();
            for step in 0..500 {
                let from = rng.below(COUNT - 1);
                let most = 1 + 8 * rng.below(6);
                let len = 1 + rng.below((COUNT - from).min(most));
                let bytes = BYTES + from..BYTES + from + len;
                let all = &mut model[from as usize..(from + len) as usize];
                match rng.below(10) {
                    0 => {
                        machine.poison(bytes);
                        all.iter_mut().for_each(|byte| byte.poison = true);
                    }
                    1 => {
                        machine.unpoison(bytes);
                        all.iter_mut().for_each(|byte| byte.poison = false);
                    }
                    2 | 3 => {
                        let cpu = machine.cpu_mut();
                        let on = rng.below(2);
                        (cpu.pc, cpu.x[10], cpu.x[11], cpu.x[12]) = (RAM + 16, bytes.start, len, on);
                        machine.run(&RunLimits { max_insns: Some(cpu_end(&machine)), deadline: None });
                        all.iter_mut().for_each(|byte| byte.poison = on == 0);
                    }
                    4 => {
                        let on = rng.below(2) == 0;
                        machine.canary(bytes, on);
                        all.iter_mut().for_each(|byte| byte.canary = on);
                    }
                    5 => {
                        let on = rng.below(2) == 0;
                        machine.watch(bytes, Kinds::All, on);
                        all.iter_mut().for_each(|byte| byte.watched = on);
                    }
                    6 if rng.below(10) == 0 => {
                        machine.unpoison_all();
                        model.iter_mut().for_each(|byte| byte.poison = false);
                    }
                    7 if known.len() < 8 => known.push((machine.checkpoint().unwrap(), model)),
                    _ if !known.is_empty() => {
                        let n = rng.below(known.len() as u64) as usize;
                        machine.restore(&known[n].0).unwrap();
                        machine.verify(&known[n].0).unwrap();
                        for (byte, then) in model.iter_mut().zip(&known[n].1) {
                            *byte = Byte { watched: byte.watched, ..*then };
                        }
                        if rng.below(8) == 0 {
                            let _ = known.swap_remove(n);
                        }
                    }
                    _ => {}
                }
                check(&mut machine, &model, &mut rng, &format!("{engine:?}, seed {seed}, step {step}"));
            }
        }
    }
}

/// More changes than are kept one by one, and another machine.
#[test]
fn thousands_of_changes_are_undone_and_a_machine_that_begins_here_has_the_marks() {
    let (mut machine, mut rng) = (machine(EngineKind::Jit), Rng::new(1));
    machine.poison(BYTES..BYTES + 16);
    machine.canary(BYTES + 32..BYTES + 48, true);
    let node = machine.checkpoint().unwrap();
    let mut model = NOTHING;
    (0..16).for_each(|n| model[n].poison = true);
    (32..48).for_each(|n| model[n].canary = true);
    for changes in [3, 5000, 0] {
        for n in 0..changes {
            let at = BYTES + n / 40;
            if n % 3 == 0 { machine.unpoison(at..at + 2) } else { machine.poison(at..at + 1) }
        }
        machine.restore(&node).unwrap();
        check(&mut machine, &model, &mut rng, &format!("{changes} changes"));
        machine.restore(&node).unwrap();
    }
    let baseline = machine.share(&node).unwrap();
    let mut other = Machine::builder().build_on(&baseline).unwrap();
    other.set_exits(&[RAM + 4, RAM + 12]);
    other.unpoison(BYTES..BYTES + 1);
    other.restore(&node).unwrap();
    other.verify(&node).unwrap();
    check(&mut other, &model, &mut rng, "another machine");
}

//! Hooks in random programs: one that does nothing changes nothing, and what is called, with what, and in which order is the same on
//! every engine, tier and switch, with checkpoints, pieces of runs and switched hooks in the mix.

use notdirty::hooks::{CallKind, HookId, HookSpec, Kinds};
use notdirty::{ClockKind, CpuState, Edges, EngineKind, JitFlags, Machine, MachineExit, RAM_BASE, RunLimits};
use notdirty_tcg::testkit::{Options, Program, Rng};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

const RAM: u64 = 0x4_0000;

/// What hooks were called with: a hash of all, and the first few.
#[derive(Default, Debug, PartialEq, Eq, Clone)]
struct Heard {
    hash: u64,
    count: u64,
    first: Vec<(u8, [u64; 4])>,
}

impl Heard {
    fn hear(&mut self, what: u8, with: [u64; 4]) {
        for word in [u64::from(what)].into_iter().chain(with) {
            self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
        self.count += 1;
        if self.first.len() < 200_000 {
            self.first.push((what, with));
        }
    }
}

fn machine(engine: EngineKind, flags: JitFlags) -> Machine {
    let builder = Machine::builder().ram_size(RAM).clock(ClockKind::Insns).engine(engine).jit_flags(flags);
    builder.tb_cache_bytes(8 << 20).build().unwrap()
}

fn load(machine: &mut Machine, program: &Program) {
    let mut ram = program.bytes.clone();
    ram.resize(RAM as usize, 0);
    machine.write(RAM_BASE, &ram).unwrap();
    machine.start_at(program.entry).unwrap();
}

/// A sum of the registers.
fn sum(cpu: &CpuState) -> u64 {
    cpu.x.iter().chain(&cpu.f).fold(0, |sum, x| sum.rotate_left(7) ^ x)
}

/// Hooks of the kinds in `mask`, that only listen.
fn listen(machine: &mut Machine, mask: u64, heard: &Arc<Mutex<Heard>>) -> Vec<HookId> {
    let part = RAM_BASE..RAM_BASE + 0x300;
    let mut specs = Vec::new();
    let light = |kind: u8| {
        let heard = heard.clone();
        move |pc: u64| {
            heard.lock().unwrap().hear(kind, [pc, 0, 0, 0]);
            ControlFlow::Continue(())
        }
    };
    let full = |kind: u8| {
        let heard = heard.clone();
        move |view: &mut notdirty::hooks::View<'_>| {
            let with = [view.pc(), view.cpu().retired, sum(view.cpu()), view.cpu().csr.mstatus];
            heard.lock().unwrap().hear(kind, with);
        }
    };
    if mask & 1 != 0 {
        specs.push(HookSpec::insn(part.clone(), light(1)));
    }
    if mask & 2 != 0 {
        specs.push(HookSpec::block(.., light(2)));
    }
    if mask & 4 != 0 {
        specs.push(HookSpec::insn_with(part.start + 0x80..part.end + 0x400, full(3)));
    }
    if mask & 8 != 0 {
        specs.push(HookSpec::block_with(part, full(4)));
    }
    if mask & 16 != 0 {
        let heard = heard.clone();
        specs.push(HookSpec::calls(.., move |view, call| {
            let kind = match call.kind {
                CallKind::Call => 5,
                CallKind::Return => 6,
                CallKind::Swap => 7,
            };
            heard.lock().unwrap().hear(kind, [call.from, call.to, view.cpu().retired, sum(view.cpu())]);
        }));
    }
    if mask & 32 != 0 {
        let heard = heard.clone();
        specs.push(HookSpec::traps(.., move |view, trap| {
            heard.lock().unwrap().hear(8, [view.pc(), trap.cause, trap.tval, view.cpu().retired]);
        }));
    }
    if mask & 64 != 0 {
        let heard = heard.clone();
        specs.push(HookSpec::memory(RAM_BASE + 0x8000..RAM_BASE + RAM, Kinds::All, move |access| {
            let kind = 16 * access.size + u8::from(access.store);
            heard.lock().unwrap().hear(kind, [access.pc, access.addr, access.value, 0]);
        }));
    }
    if mask & 128 != 0 {
        // Bytes here and there, of where programs have their data.
        for at in (RAM_BASE + 0x8000..RAM_BASE + RAM).step_by(0x7f5) {
            machine.watch(at..at + at % 7 + 1, Kinds::All, true);
        }
    }
    specs.into_iter().map(|spec| machine.add_hook(0, spec).unwrap()).collect()
}

/// A run up to its limit, over watched accesses.
fn go(machine: &mut Machine, limits: &RunLimits, heard: &Mutex<Heard>) -> MachineExit {
    loop {
        match machine.run(limits) {
            MachineExit::Watch { pc, access, .. } => {
                assert_eq!(machine.cpu().pc, pc);
                let with = [pc, access.addr, machine.cpu().retired, sum(machine.cpu())];
                heard.lock().unwrap().hear(200 + access.size + u8::from(access.store), with);
            }
            other => return other,
        }
    }
}

type Counts = Vec<((u64, u64), u8)>;

/// The end of a run in pieces, by a plan that the seed gives: limits, checkpoints that are gone back to, hooks off and on.
fn run(
    machine: &mut Machine,
    seed: u64,
    end: u64,
    hooks: &[HookId],
    edges: &Edges,
    heard: &Mutex<Heard>,
) -> (CpuState, Vec<u8>, Counts) {
    let mut rng = Rng::new(seed);
    while machine.cpu().retired < end {
        let piece = 1 + rng.below(900);
        let limit =
            |machine: &Machine| RunLimits { max_insns: Some(end.min(machine.cpu().retired + piece)), deadline: None };
        match rng.below(6) {
            0 => {
                let hook = hooks.get(rng.below(8) as usize).copied();
                hook.map(|hook| machine.switch_hook(0, hook, false));
                go(machine, &limit(machine), heard);
                hook.map(|hook| machine.switch_hook(0, hook, true));
            }
            1 => {
                let checkpoint = machine.checkpoint().unwrap();
                go(machine, &limit(machine), heard);
                machine.restore(&checkpoint).unwrap();
            }
            _ => {
                if go(machine, &limit(machine), heard) != MachineExit::InsnLimit {
                    break;
                }
            }
        }
    }
    let mut ram = vec![0; RAM as usize];
    machine.read(RAM_BASE, &mut ram).unwrap();
    let counts = machine.coverage(0).to_vec();
    let counts =
        edges.all().into_iter().map(|(edge, at)| (edge, counts[at as usize])).filter(|(_, n)| *n != 0).collect();
    (machine.cpu().clone(), ram, counts)
}

fn ways() -> Vec<JitFlags> {
    let on = JitFlags::default();
    let eager = JitFlags { tier0: false, ..on };
    vec![
        eager,
        on,
        JitFlags { samples: false, ..eager },
        JitFlags { regions: false, ..eager },
        JitFlags { optimise: false, chaining: false, ..eager },
        JitFlags { pinned: false, jump_cache: false, ..eager },
        JitFlags { flat_ram: false, budget_register: false, ..eager },
    ]
}

fn programs() -> u64 {
    std::env::var("NOTDIRTY_PROGRAMS").map_or(150, |n| n.parse().unwrap())
}

fn first() -> u64 {
    std::env::var("NOTDIRTY_SEED").map_or(0x40_0000, |n| u64::from_str_radix(n.trim_start_matches("0x"), 16).unwrap())
}

#[test]
fn hooks_that_listen_change_nothing_and_hear_the_same_on_every_engine() {
    let mut count = 0;
    for seed in first()..first() + programs() {
        let program = Program::generate(seed, &Options { base: RAM_BASE, ram_len: RAM, ..Options::default() });
        let end = program.max_insns.min(6_000);
        let mask = Rng::new(seed ^ 0x55).below(256);
        let mut plain = machine(EngineKind::Interp, JitFlags::default());
        load(&mut plain, &program);
        let edges = Arc::new(Edges::default());
        plain.set_coverage(Some(edges.clone()));
        let want = run(&mut plain, seed, end, &[], &edges, &Mutex::default());
        let mut heard_by_oracle = None;
        let engines = [(EngineKind::Interp, JitFlags::default())].into_iter();
        let way = ways()[seed as usize % ways().len()];
        for (engine, flags) in engines.chain([(EngineKind::Jit, way), (EngineKind::Jit, ways()[0])]) {
            let mut ours = machine(engine, flags);
            load(&mut ours, &program);
            let edges = Arc::new(Edges::default());
            ours.set_coverage(Some(edges.clone()));
            let heard = Arc::new(Mutex::new(Heard::default()));
            let hooks = listen(&mut ours, mask, &heard);
            let (cpu, ram, counts) = run(&mut ours, seed, end, &hooks, &edges, &heard);
            let what = format!("seed {seed:#x}, hooks {mask:#x}, {engine:?}, {flags:?}");
            assert_eq!((cpu.pc, cpu.retired), (want.0.pc, want.0.retired), "{what}: where it ends");
            assert_eq!((cpu.x, cpu.f), (want.0.x, want.0.f), "{what}: registers");
            assert_eq!(cpu.csr.mstatus, want.0.csr.mstatus, "{what}: mstatus");
            assert_eq!(counts, want.2, "{what}: coverage");
            assert!(ram == want.1, "{what}: RAM");
            let heard = heard.lock().unwrap().clone();
            count += heard.count;
            match &heard_by_oracle {
                None => heard_by_oracle = Some(heard),
                Some(want) if *want == heard => {}
                Some(want) => {
                    let at = (0..).find(|&at| want.first.get(at) != heard.first.get(at)).unwrap();
                    let around = |heard: &Heard| {
                        format!("{:x?}", &heard.first[at.saturating_sub(3)..heard.first.len().min(at + 3)])
                    };
                    panic!(
                        "{what}: call {at} of {} and {}:\n{}\n{}",
                        heard.count,
                        want.count,
                        around(&heard),
                        around(want)
                    );
                }
            }
        }
    }
    assert!(count > 1000 * programs().min(10), "{count} calls only");
}

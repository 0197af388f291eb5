//! Coverage is the guest's alone: no engine, tier, switch or history of translations changes a count, and counting changes no guest.

use notdirty::programs::{demo::demo, minijit::minijit, sieve::sieve};
use notdirty::{Edges, EngineKind, JitFlags, Machine, MachineExit, Program, RunLimits};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The counts of a run of so many instructions, by edge; those of indirect jumps by their place.
type Counts = (BTreeMap<(u64, u64), u8>, Vec<u8>);

fn machine(program: &Program, engine: EngineKind, flags: JitFlags) -> Machine {
    Machine::builder().ram_size(4 << 20).engine(engine).jit_flags(flags).program(program.clone()).build().unwrap()
}

fn run(machine: &mut Machine, insns: u64, piece: u64) {
    let end = machine.cpu().retired + insns;
    while machine.cpu().retired < end {
        let max_insns = Some(end.min(machine.cpu().retired + piece));
        if machine.run(&RunLimits { max_insns, deadline: None }) != MachineExit::InsnLimit {
            break;
        }
    }
}

fn counts(machine: &mut Machine, edges: &Edges) -> Counts {
    let all = machine.coverage(0).to_vec();
    let direct = edges.all().into_iter().map(|(edge, at)| (edge, all[at as usize])).filter(|(_, n)| *n != 0);
    (direct.collect(), all[..notdirty_tcg::cover::INDIRECT].to_vec())
}

fn same((direct, indirect): &Counts, want: &Counts, what: &str) {
    let keys = direct.keys().chain(want.0.keys());
    for edge @ (from, to) in keys {
        assert_eq!(direct.get(edge), want.0.get(edge), "{what}: from {from:#x} to {to:#x}");
    }
    let other = indirect.iter().zip(&want.1).position(|(a, b)| a != b);
    assert_eq!(other, None, "{what}: an indirect jump");
}

fn programs() -> Vec<(&'static str, Program)> {
    [sieve(5_000, 669), minijit(100_000), demo()].into_iter().map(|image| (image.name, Program::Image(image))).collect()
}

#[test]
fn every_engine_and_every_switch_counts_the_same() {
    let off = JitFlags::default();
    let ways = [
        ("tier 0 off", JitFlags { tier0: false, ..off }),
        ("tier 0 off, no turns", JitFlags { tier0: false, turns: false, ..off }),
        ("tier 0 off, no tier2", JitFlags { tier0: false, tier2: false, ..off }),
        ("no regions", JitFlags { regions: false, ..off }),
        ("no optimisation", JitFlags { optimise: false, ..off }),
        ("default", off),
    ];
    for (name, program) in programs() {
        for insns in [100, 5_000, 300_000] {
            let edges = Arc::new(Edges::default());
            let mut oracle = machine(&program, EngineKind::Interp, off);
            oracle.set_coverage(Some(edges.clone()));
            run(&mut oracle, insns, insns);
            let want = counts(&mut oracle, &edges);
            assert!(!want.0.is_empty(), "{name}: it branches");
            for (way, flags) in ways {
                for piece in [insns, 777, 1_500] {
                    let edges = Arc::new(Edges::default());
                    let mut jit = machine(&program, EngineKind::Jit, flags);
                    jit.set_coverage(Some(edges.clone()));
                    run(&mut jit, insns, piece);
                    assert_eq!(jit.cpu().x, oracle.cpu().x, "{name}, {way}: registers");
                    same(&counts(&mut jit, &edges), &want, &format!("{name}, {insns} instructions by {piece}, {way}"));
                }
            }
        }
    }
}

#[test]
fn counting_begins_and_ends_in_code_that_runs() {
    for (name, program) in programs() {
        let edges = Arc::new(Edges::default());
        let mut one = machine(&program, EngineKind::Jit, JitFlags::default());
        run(&mut one, 20_000, 20_000);
        one.set_coverage(Some(edges.clone()));
        run(&mut one, 50_000, 50_000);
        let counted = counts(&mut one, &edges);
        assert!(!counted.0.is_empty(), "{name}: it still runs");
        one.set_coverage(None);
        run(&mut one, 50_000, 50_000);
        one.set_coverage(Some(edges.clone()));
        same(&counts(&mut one, &edges), &counted, &format!("{name}: nothing was counted in between"));
        let edges = Arc::new(Edges::default());
        let mut oracle = machine(&program, EngineKind::Interp, JitFlags::default());
        run(&mut oracle, 20_000, 20_000);
        oracle.set_coverage(Some(edges.clone()));
        run(&mut oracle, 50_000, 50_000);
        same(&counts(&mut oracle, &edges), &counted, name);
    }
}

#[test]
fn edges_numbered_by_another_table_are_numbered_anew_also_after_a_pause() {
    for pause in [false, true] {
        let (_, program) = &programs()[0];
        let mut machine = machine(program, EngineKind::Jit, JitFlags::default());
        machine.set_coverage(Some(Arc::default()));
        run(&mut machine, 20_000, 20_000);
        if pause {
            machine.set_coverage(None);
            run(&mut machine, 1_000, 1_000);
        }
        // The same edge is another number there.
        let edges = Arc::new(Edges::default());
        for n in 1..100 {
            edges.number(n, n);
        }
        machine.set_coverage(Some(edges.clone()));
        machine.coverage(0).fill(0);
        run(&mut machine, 10_000, 10_000);
        let foreign: u32 = (1..100).map(|n| u32::from(machine.coverage(0)[edges.number(n, n) as usize])).sum();
        let direct = counts(&mut machine, &edges).0.len();
        assert!(foreign == 0 && direct > 0, "paused: {pause}; {foreign} counts by old numbers, {direct} edges");
    }
}

#[test]
fn hashed_edges_are_those_of_the_table_at_their_hashes() {
    for (name, program) in programs() {
        let (edges, hashed) = (Arc::new(Edges::default()), Arc::new(Edges::hashed()));
        let mut plain = machine(&program, EngineKind::Interp, JitFlags::default());
        plain.set_coverage(Some(edges.clone()));
        run(&mut plain, 40_000, 40_000);
        let mut maps = Vec::new();
        for (engine, tier0) in [(EngineKind::Interp, true), (EngineKind::Jit, true), (EngineKind::Jit, false)] {
            let mut other = machine(&program, engine, JitFlags { tier0, ..JitFlags::default() });
            other.set_coverage(Some(hashed.clone()));
            run(&mut other, 40_000, 777);
            maps.push(other.coverage(0).to_vec());
        }
        assert!(maps.iter().all(|map| map.len() == 1 << 16 && *map == maps[0]), "{name}");
        // Each direct edge is there, and what is more is of indirect jumps.
        let (direct, _) = counts(&mut plain, &edges);
        for (from, to) in direct.keys() {
            assert_ne!(maps[0][hashed.number(*from, *to) as usize], 0, "{name}: {from:#x} to {to:#x}");
        }
    }
}

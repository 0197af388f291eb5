//! What generated programs are like.
use super::*;
use crate::interp;
use crate::riscv::opcodes::Op;
use notdirty_softmmu::NoHooks;
use std::collections::BTreeSet;

fn oracle(p: &Program, o: &Options) -> Oracle {
    Oracle::with_program(p, o.ram_len)
}

#[test]
fn a_seed_and_its_options_are_one_program() {
    let o = Options::default();
    let (a, b) = (Program::generate(7, &o), Program::generate(7, &o));
    assert_eq!((a.bytes, a.entry, a.stop), (b.bytes, b.entry, b.stop));
    assert_ne!(Program::generate(8, &o).bytes, Program::generate(7, &o).bytes);
}

#[test]
fn programs_end_and_between_them_use_every_instruction() {
    let o = Options::default();
    let (mut stopped, mut retired, mut traps) = (0, 0, 0);
    let mut ops = BTreeSet::new();
    let n = 400;
    for seed in 0..n {
        let p = Program::generate(seed, &o);
        let mut m = oracle(&p, &o);
        while m.cpu.pc != p.stop && m.cpu.retired < p.max_insns && m.traps < 200 {
            if let Ok(insn) = interp::fetch(&m.cpu, &mut m.mmu, &mut NoHooks) {
                ops.insert(insn.op);
            }
            let _ = m.step();
        }
        stopped += u64::from(m.cpu.pc == p.stop);
        retired += m.cpu.retired;
        traps += m.traps;
    }
    assert!(stopped * 100 > n * 95, "{stopped} of {n} came to their end");
    assert!((200..2000).contains(&(retired / n)), "{} instructions on average", retired / n);
    assert!(traps > n, "{traps} traps");
    let missing: Vec<&Op> = Op::ALL.iter().filter(|op| !ops.contains(op) && **op != Op::Wfi).collect();
    assert!(missing.is_empty(), "never executed: {missing:?}");
}

#[test]
fn programs_run_in_all_modes_and_are_interrupted_there() {
    let o = Options::default();
    let (mut insns, mut entered, mut interrupts) = ([0u64; 3], [[0u64; 3]; 3], [0u64; 3]);
    let n = 400;
    for seed in 0..n {
        let p = Program::generate(seed, &o);
        let mut m = oracle(&p, &o);
        while m.cpu.pc != p.stop && m.cpu.retired < p.max_insns && m.traps < 200 {
            let from = m.cpu.privilege.index();
            insns[from] += 1;
            if let interp::Step::Trap(trap) = m.step() {
                interrupts[m.cpu.privilege.index()] += u64::from(trap.is_interrupt());
            }
            entered[from][m.cpu.privilege.index()] += 1;
        }
    }
    let [machine, others @ ..] = insns;
    assert!(others.iter().all(|count| count * 8 > machine), "{insns:?} instructions by mode");
    for (from, to) in (0..3).flat_map(|from| (0..3).map(move |to| (from, to))) {
        assert!(entered[from][to] > n / 8, "from {from} to {to}: {entered:?}");
    }
    assert!(interrupts[0] > 20 && interrupts[1] > 20, "{interrupts:?} interrupts by the mode that takes them");
}

#[test]
fn tame_programs_never_trap() {
    let o = Options { traps: false, wild: false, ..Options::default() };
    for seed in 0..300 {
        let p = Program::generate(seed, &o);
        let mut m = oracle(&p, &o);
        assert!(m.run(p.stop, p.max_insns), "seed {seed} is at {:x}", m.cpu.pc);
        assert_eq!(m.traps, 0, "seed {seed}: {:x?}", m.last_trap);
    }
}

#[test]
fn programs_without_short_forms_have_none() {
    let o = Options { compressed: false, traps: false, wild: false, ..Options::default() };
    for seed in 0..200 {
        let p = Program::generate(seed, &o);
        let mut m = oracle(&p, &o);
        while m.cpu.pc != p.stop && m.cpu.retired < p.max_insns {
            let insn = interp::fetch(&m.cpu, &mut m.mmu, &mut NoHooks).unwrap();
            assert_eq!((insn.len, m.cpu.pc % 4), (4, 0), "seed {seed} at {:x}", m.cpu.pc);
            let _ = m.step();
        }
        assert_eq!(m.cpu.pc, p.stop);
    }
}

/// An instruction cache that only `fence.i` empties: what the strictest hart that RISC-V allows would execute.
#[test]
fn fenced_programs_do_not_depend_on_when_stores_reach_the_fetch() {
    use crate::riscv::csr::CsrEnv;
    use crate::riscv::trap;
    let o = Options { smc: Smc::Fenced, traps: false, wild: false, ..Options::default() };
    let clock = crate::clock::Clock::insns();
    for seed in 0..300 {
        let p = Program::generate(seed, &o);
        let (mut now, mut late) = (oracle(&p, &o), oracle(&p, &o));
        let mut cache = std::collections::HashMap::new();
        while late.cpu.pc != p.stop && late.cpu.retired < p.max_insns {
            let insn = match cache.get(&late.cpu.pc) {
                Some(&insn) => insn,
                None => interp::fetch(&late.cpu, &mut late.mmu, &mut NoHooks).unwrap(),
            };
            cache.insert(late.cpu.pc, insn);
            let env = CsrEnv { mip: 0, clock: &clock };
            match interp::execute(&mut late.cpu, &mut late.mmu, &mut NoHooks, &env, &insn) {
                interp::Step::FenceI => cache.clear(),
                interp::Step::Trap(t) => {
                    let pc = late.cpu.pc;
                    trap::take_trap(&mut late.cpu, &t, pc);
                }
                _ => {}
            }
        }
        assert!(now.run(p.stop, p.max_insns), "seed {seed}");
        assert_eq!((now.cpu.x, now.cpu.retired), (late.cpu.x, late.cpu.retired), "seed {seed}");
        assert!(now.memory() == late.memory(), "seed {seed}: memory differs");
    }
}

#[test]
fn unfenced_programs_do_depend_on_it() {
    let o = Options { smc: Smc::Any, traps: false, wild: false, ..Options::default() };
    let fenced = Options { smc: Smc::Fenced, ..o.clone() };
    let never = Options { smc: Smc::Never, ..o.clone() };
    // Count how often a store hits a word that has been executed before.
    let hits = |o: &Options| {
        let mut hits = 0;
        for seed in 0..60 {
            let p = Program::generate(seed, o);
            let mut m = oracle(&p, o);
            let mut executed = BTreeSet::new();
            while m.cpu.pc != p.stop && m.cpu.retired < p.max_insns {
                let insn = interp::fetch(&m.cpu, &mut m.mmu, &mut NoHooks).unwrap();
                executed.insert(m.cpu.pc & !3);
                if insn.op.is_store() {
                    let at = m.cpu.x[usize::from(insn.rs1)].wrapping_add(insn.imm64());
                    hits += u64::from(executed.contains(&(at & !3)));
                }
                let _ = m.step();
            }
        }
        hits
    };
    assert!(hits(&o) > 60, "{}", hits(&o));
    assert!(hits(&fenced) > 60);
    assert_eq!(hits(&never), 0);
}

#[test]
fn a_shorter_program_is_the_beginning_of_a_longer_one() {
    let o = Options { csrs: false, ..Options::default() };
    let (long, short) = (Program::generate(5, &o), Program::generate(5, &Options { pieces: 6, ..o.clone() }));
    assert_eq!((long.entry, long.stop), (short.entry, short.stop));
    let differ = long.bytes.iter().zip(&short.bytes).position(|(a, b)| a != b);
    assert!(differ.is_some_and(|at| at > 0x1e80), "{differ:x?}");
    let runs_long = |p: &Program| {
        let mut m = oracle(p, &o);
        m.run(p.stop, p.max_insns);
        m.cpu.retired > 150
    };
    assert!(runs_long(&long));
    let small = Program::smallest(5, &o, runs_long).unwrap();
    assert!(runs_long(&small) && small.max_insns < long.max_insns);
    assert!(Program::smallest(5, &o, |_| false).is_none());
}

#[test]
fn the_listing_shows_the_code() {
    let text = Program::generate(3, &Options::default()).listing();
    assert!(text.starts_with("seed 0x3, entry 8000"), "{text}");
    assert!(text.contains("mret") && text.lines().count() > 100);
}

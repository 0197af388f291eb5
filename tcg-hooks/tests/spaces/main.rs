//! Random programs of S-mode that go from one address space to another and map their code and data anew, with every fence that the
//! specification asks for and no other: what they do is the same whatever is kept of translations.
//!
//! ```text
//!   40 spaces of Sv39, Sv48 and Sv57, some share an ASID       data: in place, or shuffled; 4 KiB, 64 KiB, 2 MiB; seen at three addresses
//!   code: three frames for each page; jumps lead from page to page
//!   a step: satp │ a page elsewhere, fenced in one of four ways │ a superpage, cut or made │ SUM, MXR │ PMP │ MPRV │ code written │ calls,
//!           in S-mode and U-mode │ the host: more RAM over a frame, and away again, a state saved and restored, a fork
//!   plan.rs has the programs, memory.rs what they begin with; harts.rs: two harts in the same spaces
//! ```

#[path = "../common/mod.rs"]
mod common;
mod harts;
mod memory;
mod plan;

use common::*;
use memory::{CODE, DATA, RW, SIZE, begin, code_page, put};
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::num;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::rng::Rng;
use notdirty_tcg::{EngineKind, JitFlags};
use plan::{Act, Plan, plan};

/// Registers and RAM at a stop.
type Seen = ([u64; 32], Vec<u8>);

fn seen(vm: &Vm) -> Seen {
    let mut bytes = vec![0; vm.block.used_length() as usize];
    vm.block.read_bytes(0, &mut bytes).unwrap();
    (vm.vcpu.cpu().x, bytes)
}

/// What is found after each stop. At forks the child goes on by itself, if it is known what is to be found, and compares.
fn run(setup: &Setup, plan: &Plan, wanted: Option<&[Seen]>) -> Vec<Seen> {
    let mut vm = Vm::with(setup);
    put(&vm, plan);
    begin(&mut vm.vcpu, plan, 0);
    let dimm = vm.list.add(RamBlockSpec::new("dimm", 0x2000).near(NEAR)).unwrap();
    vm.list.write(&dimm, 0, &[0x21; 0x2000]).unwrap();
    let mut found = Vec::new();
    let mut over = None;
    let mut child = false;
    for act in &plan.acts {
        let at = vm.vcpu.cpu().pc;
        vm.run(at);
        found.push(seen(&vm));
        match *act {
            Act::Save => {
                let state = vm.vcpu.save();
                vm.vcpu.restore(&state, false);
            }
            Act::Fork if !child && wanted.is_some() => {
                // SAFETY: the child uses a machine that no other thread has, and ends itself.
                let pid = unsafe { libc::fork() };
                if pid == 0 {
                    child = true;
                    // SAFETY: ends this process if it hangs.
                    unsafe { libc::alarm(60) };
                    continue;
                }
                // The parent's translations change before the child's are looked at, or behind.
                let mut status = 0;
                // SAFETY: a child of ours, and a place for its status.
                assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
                assert_eq!(status, 0, "a child of a fork at stop {}", found.len() - 1);
            }
            Act::Fork => {}
            Act::Write(at) => vm.space.write(GuestPhys::new(at), &[7; 8]).unwrap(),
            Act::Plug(at) => {
                if at < DATA {
                    // The code that is there, but for a constant.
                    let mut code = vec![0; 0x2000];
                    vm.space.read(GuestPhys::new(at), &mut code).unwrap();
                    vm.list.write(&dimm, 0, &code).unwrap();
                    let page = (at - CODE) / 0x1000;
                    for (n, page) in [page, page + 1].into_iter().enumerate() {
                        for (offset, words) in code_page(page, 7) {
                            vm.list.write(&dimm, n as u64 * 0x1000 + offset, &common::bytes(&words)).unwrap();
                        }
                    }
                }
                over = Some(vm.space.map_ram(GuestPhys::new(at), &dimm, 0, 0x2000, 1).unwrap());
            }
            Act::Unplug => {
                let id = over.take().unwrap();
                vm.space.unmap(id).unwrap();
            }
            Act::End => {}
        }
    }
    if child {
        let same = wanted.is_some_and(|wanted| wanted == found);
        // SAFETY: ends the process, and runs no more of the parent's code.
        unsafe { libc::_exit(i32::from(!same)) };
    }
    found
}

fn random_flags(rng: &mut Rng) -> JitFlags {
    let d = eager();
    let mut on = |was: bool| if rng.chance(80) { was } else { !was };
    JitFlags {
        regions: on(d.regions),
        pinned: on(d.pinned),
        remap: on(d.remap),
        chaining: on(d.chaining),
        jump_cache: on(d.jump_cache),
        flat_addend: on(d.flat_addend),
        flat_ram: on(d.flat_ram),
        whole: on(d.whole),
        aligned: on(d.aligned),
        beside: on(d.beside),
        guess: on(d.guess),
        elide: on(d.elide),
        hoist: on(d.hoist),
        turns: on(d.turns),
        sink: on(d.sink),
        apart: on(d.apart),
        share: on(d.share),
        heads: on(d.heads),
        big_tlb: on(d.big_tlb),
        plain_index: on(d.plain_index),
        base_register: on(d.base_register),
        budget_register: on(d.budget_register),
        optimise: on(d.optimise),
        tier2: on(d.tier2),
        samples: on(d.samples),
        tier0: on(d.tier0),
        ..d
    }
}

/// The ways in which a program runs, the last with random switches.
fn engines(rng: &mut Rng) -> [(&'static str, Setup); 6] {
    let ram = SIZE;
    let flags = random_flags(rng);
    [
        ("tiers", Setup { flags: JitFlags::default(), ram, ..Setup::default() }),
        ("translated", Setup { ram, ..Setup::default() }),
        ("little room", Setup { ram, cache: 1 << 16, ..Setup::default() }),
        ("block by block", Setup { ram, flags: JitFlags { regions: false, ..eager() }, ..Setup::default() }),
        ("small table", Setup { ram, flags: JitFlags { big_tlb: false, ..eager() }, ..Setup::default() }),
        ("random", Setup { ram, flags, cache: rng.pick(&[0, 1 << 16]), ..Setup::default() }),
    ]
}

fn oracle() -> Setup {
    Setup { engine: EngineKind::Interp, ram: SIZE, ..Setup::default() }
}

/// From which seed on, and how many.
fn seeds(least: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let first = number("NOTDIRTY_SPACES_FROM").unwrap_or(0u64);
    first..first + number("NOTDIRTY_SPACES").unwrap_or(least)
}

#[test]
fn programs_that_fence_what_they_map_do_the_same_whatever_is_kept() {
    for seed in seeds(2) {
        let mut rng = Rng::new(seed);
        let plan = plan(&mut rng, 250, 1);
        let wanted = run(&oracle(), &plan, None);
        for (name, setup) in engines(&mut rng) {
            let found = run(&setup, &plan, Some(&wanted));
            for (n, (ours, theirs)) in found.iter().zip(&wanted).enumerate() {
                let what = format!(
                    "seed {seed}, {name}, stop {n}, {:?}",
                    if name == "random" { Some(setup.flags) } else { None }
                );
                assert_eq!(ours.0, theirs.0, "{what}");
                assert!(ours.1 == theirs.1, "{what}: RAM");
            }
        }
    }
}

#[test]
fn an_address_space_that_was_first_used_after_a_checkpoint_may_be_another_after_it_is_restored() {
    for (name, engine) in [("oracle", EngineKind::Interp), ("translated", EngineKind::Jit)] {
        let mut rng = Rng::new(5);
        let mut plan = plan(&mut rng, 1, 1);
        let mut main = Asm::at(plan.mains[0].base);
        main.op(Op::Csrrw, ZERO, A0, 0, num::SATP.into()).op(Op::Ld, A1, S0, 0, 0);
        main.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0).i(jal(ZERO, 0, 0));
        plan.mains[0] = main;
        plan.spaces = vec![plan.spaces[0].clone(); 3];
        for (space, one) in plan.spaces.iter_mut().enumerate() {
            one.asid = [1, 5, 5][space];
            one.data[0] = (DATA + space as u64 * 0x1000) >> 2 | RW;
        }
        let mut vm = Vm::with(&Setup { engine, ram: SIZE, ..Setup::default() });
        put(&vm, &plan);
        begin(&mut vm.vcpu, &plan, 0);
        let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
        write(DATA + 0x1000, 1000);
        write(DATA + 0x2000, 2000);
        let at = plan.mains[0].base;
        let cpu = vm.vcpu.cpu_mut();
        (cpu.pc, cpu.privilege) = (at, Privilege::S);
        cpu.x[usize::from(S0)] = DATA;
        vm.vcpu.saved();
        let start = vm.vcpu.save();
        for (space, value) in [(1u64, 1000u64), (2, 2000), (1, 1000)] {
            vm.vcpu.restore(&start, false);
            vm.vcpu.cpu_mut().x[usize::from(A0)] = plan.spaces[space as usize].satp(space);
            vm.run(at);
            assert_eq!(vm.x(A1), value, "{name}");
        }
    }
}

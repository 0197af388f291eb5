//! Loads from flat RAM that look for no entry in the TLB: they see what the map and PMP say all the same.

mod common;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{EngineKind, JitFlags};

const CODE: u64 = RAM + 0x1000;
const DATA: u64 = RAM + 0x6_0000;
const LEN: u64 = 0x10_0000;

/// Sums what is at `a0`, before and behind it, over and over.
fn sums(asm: &mut Asm) {
    asm.word(A2, 0).word(A3, 1000);
    let again = asm.here();
    for at in [-0x7ff, -8, 0, 8, 0x7f0] {
        asm.op(Op::Ld, A1, A0, 0, at).op(Op::Add, A2, A2, A1, 0);
    }
    asm.i(addi(A3, A3, -1));
    asm.op(Op::Bne, 0, A3, 0, (again as i64 - asm.here() as i64) as i32).stop();
}

/// On both engines, and where all code is hot: the same registers after each run. The first has what the loops left.
fn alike(what: impl Fn(&mut Vm) -> Vec<u64>) -> Vec<u64> {
    let setups = [(EngineKind::Jit, true), (EngineKind::Jit, false), (EngineKind::Interp, true)];
    let [ours, hot, exact] = setups.map(|(engine, samples)| {
        let flags = JitFlags { samples, ..eager() };
        let mut vm = Vm::with(&Setup { engine, flags, ram: LEN, ..Setup::default() });
        for page in 0..LEN / 8 {
            vm.space.write(GuestPhys::new(RAM + 8 * page), &(page * page).to_le_bytes()).unwrap();
        }
        let mut asm = Asm::at(CODE);
        sums(&mut asm);
        asm.put(&vm);
        what(&mut vm)
    });
    assert_eq!(ours, exact);
    assert_eq!(hot, exact, "by tier 2");
    ours
}

#[test]
fn a_check_in_front_of_loads_finds_what_loads_that_leave_no_entry_behind_it_find() {
    // In front of a loop, off a base and by a step; and at the entry of a region that loads what it leaves alone.
    let loops: [fn(&mut Asm); 2] = [sums, |asm| {
        asm.la(A0, DATA);
        let again = asm.here();
        asm.op(Op::Ld, A1, A0, 0, 0).op(Op::Addi, A0, A0, 0, 8).op(Op::Add, A2, A2, A1, 0).i(addi(A3, A3, -1));
        asm.op(Op::Bne, 0, A3, 0, (again as i64 - asm.here() as i64) as i32).stop();
    }];
    for code in loops {
        let vm = Vm::with(&Setup { ram: LEN, ..Setup::default() });
        let mut asm = Asm::at(CODE);
        code(&mut asm);
        asm.put(&vm);
        for (whole, looks) in [(true, false), (false, true)] {
            let flags = JitFlags { samples: false, whole, ..eager() };
            let listing = notdirty_tcg::listing::region(&vm.space, CODE, flags, &|_| None).unwrap();
            let blocks = listing.blocks.iter().flat_map(|block| &block.host);
            let lines: Vec<_> = listing.entry.iter().chain(blocks).collect();
            let says = |name: &str| lines.iter().any(|line| line.contains(name));
            assert_eq!((says("tlb.read"), says("ram.whole")), (looks, whole), "{listing}");
        }
    }
}

fn sum(vm: &mut Vm, at: u64) -> u64 {
    vm.vcpu.cpu_mut().x[usize::from(A0)] = at;
    vm.run(CODE);
    vm.x(A2)
}

#[test]
fn a_load_sees_what_was_mapped_over_flat_ram_and_the_ram_again_when_that_is_gone() {
    let seen = alike(|vm| {
        let other = vm.list.add(RamBlockSpec::new("other", 0x2000)).unwrap();
        let places = [DATA - 0x1000, DATA, DATA + 0x800, DATA + 0x1000, DATA + 0x3000];
        let all = |vm: &mut Vm| places.map(|at| sum(vm, at));
        let before = all(vm);
        let over = vm.space.map_ram(GuestPhys::new(DATA), &other, 0, 0x2000, 1).unwrap();
        let covered = all(vm);
        vm.space.unmap(over).unwrap();
        let after = all(vm);
        assert_eq!(before, after);
        [before, covered].concat()
    });
    assert_ne!(seen[1], seen[6], "the page was covered");
    assert_eq!(seen[4], seen[9], "this one was not");
}

#[test]
fn the_last_bytes_of_ram_are_loaded_and_what_reaches_over_its_end_faults() {
    for at in [LEN - 16, LEN - 8, LEN - 7, LEN - 4, LEN - 1, LEN, LEN + 4096] {
        alike(|vm| {
            sum(vm, DATA);
            let mut asm = Asm::at(CODE + 0x1000);
            let handler = CODE + 0x2000;
            asm.la(T0, handler).op(Op::Csrrw, 0, T0, 0, 0x305);
            asm.word(A1, 7).la(A0, RAM + at).op(Op::Ld, A1, A0, 0, 0).stop();
            asm.put(vm);
            let mut asm = Asm::at(handler);
            asm.op(Op::Csrrs, A3, 0, 0, 0x342).op(Op::Csrrs, A4, 0, 0, 0x343).stop();
            asm.put(vm);
            vm.run(CODE + 0x1000);
            [A1, A3, A4].map(|r| vm.x(r)).to_vec()
        });
    }
}

#[test]
fn what_pmp_locks_is_refused_to_m_mode_though_all_ram_was_loaded_from_before() {
    let seen = alike(|vm| {
        sum(vm, DATA);
        let (code, handler) = (CODE + 0x1000, CODE + 0x2000);
        let mut asm = Asm::at(code);
        asm.la(T0, handler).op(Op::Csrrw, 0, T0, 0, 0x305);
        // The page at DATA: NAPOT, locked, nothing allowed.
        asm.la(T0, DATA).op(Op::Srli, T0, T0, 0, 2).i(addi(T0, T0, 0x1ff)).op(Op::Csrrw, 0, T0, 0, 0x3b0);
        asm.word(T0, 0x98).op(Op::Csrrw, 0, T0, 0, 0x3a0);
        asm.la(A0, DATA - 0x1000).op(Op::Ld, A1, A0, 0, 0).la(A0, DATA).op(Op::Ld, A2, A0, 0, 0).stop();
        asm.put(vm);
        let mut asm = Asm::at(handler);
        asm.op(Op::Csrrs, A3, 0, 0, 0x342).op(Op::Csrrs, A4, 0, 0, 0x343).stop();
        asm.put(vm);
        vm.run(code);
        [A1, A2, A3, A4].map(|r| vm.x(r)).to_vec()
    });
    assert_eq!(seen[2..], [5, DATA], "a load access fault");
}

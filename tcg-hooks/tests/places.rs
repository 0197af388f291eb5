//! Code that lies over two pages, over two ranges of RAM, at an odd end of it, or on a map that changes: it dies with any of its
//! bytes, and with its place.

mod common;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::{GuestPhys, lines_of};
use notdirty_tcg::EngineKind;
use notdirty_tcg::riscv::Op;

#[test]
fn a_tb_over_two_pages_dies_by_either() {
    let at = RAM + 0x2000 - 6;
    // c.nop, c.nop, and then an instruction with two of its bytes on each page.
    let code = |n: i32| {
        let mut bytes = vec![0x01, 0x00, 0x01, 0x00];
        bytes.extend(addi(A0, A0, n).to_le_bytes());
        bytes.extend(ret().to_le_bytes());
        bytes
    };
    let mut vm = Vm::new();
    vm.space.write(GuestPhys::new(at), &code(5)).unwrap();
    let mut asm = Asm::at(RAM);
    asm.i(li(A0, 0)).call(at).stop();
    asm.put(&vm);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 5);
    let (first, second) = (RAM + 0x1000, RAM + 0x2000);
    assert_eq!((vm.lines(first), vm.lines(second)), (lines_of(0xffa, 6), lines_of(0, 6)));
    assert!(!vm.no_code(first) && !vm.no_code(second));
    for page in [first, second] {
        // The two bytes of the instruction that lie there: another source register, another immediate.
        let from = if page == first { 4 } else { 6 };
        let bytes = &addi(A0, A1, 9).to_le_bytes()[from as usize - 4..from as usize - 2];
        vm.space.write(GuestPhys::new(at + from), bytes).unwrap();
        assert_eq!(vm.vcpu.serve(), 1);
        assert_eq!((vm.lines(first), vm.lines(second)), (0, 0));
        assert!(vm.no_code(first) && vm.no_code(second));
        vm.run(RAM);
    }
    assert_eq!(vm.x(A0), 9);
}

#[test]
fn one_page_mapped_twice_in_a_row_holds_a_tb_over_both() {
    // The instruction goes off the page's end and on at the same page's start.
    let mut vm = Vm::new();
    let far = 0x9000_0000;
    for n in 0..2 {
        vm.space.map_ram(GuestPhys::new(far + n * 0x1000), &vm.block, 0x4000, 0x1000, 0).unwrap();
    }
    let page = RAM + 0x4000;
    let set = |vm: &Vm, n: i32| {
        let word = addi(A0, A0, n).to_le_bytes();
        vm.space.write(GuestPhys::new(page + 0xffe), &word[..2]).unwrap();
        vm.space.write(GuestPhys::new(page), &word[2..]).unwrap();
        vm.space.write(GuestPhys::new(page + 2), &ret().to_le_bytes()).unwrap();
    };
    set(&vm, 1);
    let mut asm = Asm::at(RAM);
    asm.i(li(A0, 0)).op(Op::Jalr, RA, T0, 0, 0).stop();
    asm.put(&vm);
    for n in 1..5 {
        set(&vm, n);
        assert_eq!(vm.vcpu.serve(), usize::from(n > 1));
        assert!(vm.no_code(page) && vm.lines(page) == 0);
        vm.vcpu.cpu_mut().x[usize::from(T0)] = far + 0xffe;
        vm.run(RAM);
        assert_eq!(vm.x(A0), n as u64);
        assert_eq!(vm.lines(page), 1 << 63 | 1);
    }
}

#[test]
fn the_map_changes_and_old_code_never_runs_again() {
    let mut vm = Vm::new();
    // The function is not where `main` is in the jump cache.
    let (window, f) = (0x9000_0000, 0x9000_0040);
    let other = vm.list.add(RamBlockSpec::new("other", 0x1000)).unwrap();
    let mut main = Asm::at(RAM);
    main.i(li(A0, 0)).op(Op::Jalr, RA, T0, 0, 0).stop();
    main.put(&vm);
    let mut id = vm.space.map_ram(GuestPhys::new(window), &vm.block, 0x8000, 0x1000, 0).unwrap();
    vm.put(f, &[addi(A0, A0, 1), ret()]);
    let go = |vm: &mut Vm| {
        vm.vcpu.cpu_mut().x[usize::from(T0)] = f;
        vm.run(RAM);
        vm.x(A0)
    };
    assert_eq!(go(&mut vm), 1);
    for n in 0..10 {
        vm.space.unmap(id).unwrap();
        let (block, at) = if n % 2 == 0 { (&other, 0) } else { (&vm.block, 0x8000) };
        id = vm.space.map_ram(GuestPhys::new(window), block, at, 0x1000, 0).unwrap();
        if n == 0 {
            vm.put(f, &[addi(A0, A0, 2), ret()]);
        }
        assert_eq!(go(&mut vm), if n % 2 == 0 { 2 } else { 1 });
    }
    // Nothing there: the call traps, and the handler sees where.
    vm.space.unmap(id).unwrap();
    let mut handler = Asm::at(RAM + 0x100);
    handler.op(Op::Csrrs, A0, ZERO, 0, 0x343).stop();
    handler.put(&vm);
    vm.vcpu.cpu_mut().csr.mtvec = RAM + 0x100;
    assert_eq!(go(&mut vm), f);
}

#[test]
fn a_block_that_is_unmapped_and_dropped_is_gone_from_everywhere() {
    let mut vm = Vm::new();
    let window = 0x9000_0000;
    let mut main = Asm::at(RAM);
    main.i(li(A0, 0)).op(Op::Jalr, RA, T0, 0, 0).stop();
    main.put(&vm);
    for n in 1..20 {
        let block = vm.list.add(RamBlockSpec::new("other", 0x1000)).unwrap();
        let at = block.offset();
        let id = vm.space.map_ram(GuestPhys::new(window), &block, 0, 0x1000, 0).unwrap();
        vm.put(window, &[addi(A0, A0, n), ret()]);
        vm.vcpu.cpu_mut().x[usize::from(T0)] = window;
        vm.run(RAM);
        assert_eq!(vm.x(A0), n as u64);
        vm.space.unmap(id).unwrap();
        vm.list.remove(&block).unwrap();
        drop(block);
        if n % 2 == 0 {
            // Served before the next one is made, or only when it runs.
            let _ = vm.vcpu.serve();
            let page = vm.space.code().page(at.page());
            assert_eq!(page.map_or(0, |p| p.mask.load(std::sync::atomic::Ordering::SeqCst)), 0);
        }
    }
}

#[test]
fn code_over_two_ranges_of_one_page_runs_and_dies_by_either() {
    let mut vm = Vm::new();
    let other = vm.list.add(RamBlockSpec::new("other", 0x1000)).unwrap();
    let window = 0x9000_0000;
    // The border is in the middle of an instruction.
    let cut = 0x802;
    vm.space.map_ram(GuestPhys::new(window), &vm.block, 0x4000, cut, 0).unwrap();
    vm.space.map_ram(GuestPhys::new(window + cut), &other, cut, 0x1000 - cut, 0).unwrap();
    let start = window + 0x7f8;
    let code = |n: i32| bytes(&[addi(A0, A0, n), addi(A0, A0, 10), addi(A0, A0, n), addi(A0, A0, n), ret()]);
    let mut asm = Asm::at(RAM);
    asm.i(li(A0, 0)).op(Op::Jalr, RA, T0, 0, 0).stop();
    asm.put(&vm);
    let mut sum = [1; 3];
    vm.space.write(GuestPhys::new(start), &code(1)).unwrap();
    for n in 1..20 {
        vm.vcpu.cpu_mut().x[usize::from(T0)] = start;
        vm.run(RAM);
        assert_eq!(vm.x(A0), 10 + sum.iter().sum::<u64>(), "round {n}");
        // Each half of the instruction on the border is on a page of RAM of its own.
        let (which, at, len) = [(0, 0, 4), (1, 10, 2), (2, 12, 4)][n % 3];
        let died = vm.invalidated();
        vm.space.write(GuestPhys::new(start + at as u64), &code(n as i32)[at..at + len]).unwrap();
        vm.vcpu.serve();
        assert_eq!(vm.invalidated() - died, u64::from(which != 1), "nothing is made of what lies on two ranges");
        sum[which] = n as u64;
    }
}

#[test]
fn a_fetch_over_an_odd_end_of_ram_names_the_byte_that_is_missing() {
    for engine in [EngineKind::Interp, EngineKind::Jit] {
        let mut vm = Vm::with(&Setup { engine, ..Setup::default() });
        let window = 0x9000_0000;
        vm.space.map_ram(GuestPhys::new(window), &vm.block, 0x4000, 0x801, 0).unwrap();
        vm.put(RAM + 0x4000 + 0x7fe - 2, &[0x0013_0001, 0x0001_0001]);
        let mut handler = Asm::at(RAM);
        handler.stop();
        handler.put(&vm);
        for pc in [0x7fe, 0x800] {
            vm.vcpu.cpu_mut().csr.mtvec = RAM;
            vm.run(window + pc);
            let csr = &vm.vcpu.cpu().csr;
            assert_eq!((csr.mcause, csr.mepc, csr.mtval), (1, window + pc, window + 0x801), "{engine:?}");
        }
    }
}

//! Life and death of TBs, seen from outside: what a store kills, what it leaves alone, and which tables forget it.
//!
//! Each test runs in emitted code only (see `common`). What each weakening of a law breaks here: see README.md.

mod common;

use common::*;
use notdirty_softmmu::{GuestPhys, lines_of};
use notdirty_tcg::riscv::Op;
use notdirty_tcg::{ICache, JitFlags, RunLimits, VcpuExit};

/// Three functions on one page: alone on its line, and two that share one. Each adds to a0.
const ONE: u64 = RAM + 0x1000;
const TWO: u64 = RAM + 0x1040;
const THREE: u64 = RAM + 0x1050;

fn three_functions() -> Vm {
    let vm = Vm::new();
    for (at, n) in [(ONE, 1), (TWO, 10), (THREE, 100)] {
        vm.put(at, &[addi(A0, A0, n), ret()]);
    }
    let mut main = Asm::at(RAM);
    main.i(li(A0, 0)).call(ONE).call(TWO).call(THREE).stop();
    main.put(&vm);
    vm
}

#[test]
fn a_host_write_kills_exactly_the_tbs_over_its_bytes() {
    let mut vm = three_functions();
    vm.run(RAM);
    assert_eq!(vm.x(A0), 111);
    let before = vm.translated();
    vm.run(RAM);
    assert_eq!(vm.translated(), before, "all of it is there");
    // Beside the code, on its line: no TB dies.
    vm.put(TWO + 8, &[0]);
    assert_eq!(vm.vcpu.serve(), 0);
    // Before it, and after it.
    vm.put(ONE + 8, &[0, 0]);
    assert_eq!(vm.vcpu.serve(), 0);
    // One of two that share a line.
    vm.put(TWO, &[addi(A0, A0, 20)]);
    assert_eq!(vm.vcpu.serve(), 1);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 121);
    assert_eq!((vm.translated(), vm.invalidated()), (before + 1, 1));
    // Two at once, by their last and first bytes.
    const SHORT_RET: u32 = 0x8082;
    vm.put(TWO + 4, &[SHORT_RET, 0, 0, addi(A0, A0, 200)]);
    assert_eq!(vm.vcpu.serve(), 2);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 221);
}

#[test]
fn a_guest_store_kills_exactly_the_tbs_over_its_bytes() {
    let mut vm = three_functions();
    vm.run(RAM);
    let patch = RAM + 0x2000;
    let mut asm = Asm::at(patch);
    asm.la(T0, TWO).word(T1, addi(A0, A0, 30)).i(sw(T1, T0, 0)).i(sw(ZERO, T0, 8)).stop();
    asm.put(&vm);
    let before = vm.invalidated();
    vm.run(patch);
    assert_eq!(vm.invalidated(), before + 1);
    let stats = vm.vcpu.stats().tlb;
    assert!(stats.code_hit >= 1, "{stats:?}");
    let before = vm.translated();
    vm.run(RAM);
    assert_eq!((vm.x(A0), vm.translated()), (131, before + 1));
}

#[test]
fn every_width_and_alignment_of_a_store_reaches_the_code_it_overlaps() {
    // The function's eight bytes at +0x40; stores that just miss them and that just touch them.
    for (op, width) in [(Op::Sb, 1i32), (Op::Sh, 2), (Op::Sw, 4), (Op::Sd, 8)] {
        for offset in -8..=8 {
            let mut vm = three_functions();
            vm.run(RAM);
            let at = RAM + 0x2000;
            let mut asm = Asm::at(at);
            // What is there is stored again: only that it was written matters.
            let load = [Op::Lbu, Op::Lhu, Op::Lwu, Op::Ld][width.trailing_zeros() as usize];
            asm.la(T0, ONE + 0x100).op(load, T1, T0, 0, offset - 0x100).op(op, 0, T0, T1, offset - 0x100).stop();
            asm.put(&vm);
            vm.run(at);
            let touches = offset < 8 && offset + width > 0;
            assert_eq!(vm.invalidated() == 1, touches, "{op:?} at {offset}");
        }
    }
}

#[test]
fn amo_and_sc_kill_code_and_a_failed_sc_does_not() {
    let mut vm = three_functions();
    vm.run(RAM);
    let at = RAM + 0x2000;
    let mut asm = Asm::at(at);
    asm.la(T0, ONE).word(T1, addi(A0, A0, 3)).op(Op::AmoswapW, ZERO, T0, T1, 0).stop();
    asm.put(&vm);
    vm.run(at);
    assert_eq!(vm.invalidated(), 1);
    vm.run(RAM);
    assert_eq!(vm.x(A0), 113);
    let mut asm = Asm::at(at + 0x100);
    asm.la(T0, TWO).word(T1, addi(A0, A0, 40)).op(Op::ScW, T2, T0, T1, 0).stop();
    asm.put(&vm);
    vm.run(at + 0x100);
    assert_eq!((vm.x(T2), vm.invalidated()), (1, 1));
    let mut asm = Asm::at(at + 0x200);
    asm.la(T0, TWO).word(T1, addi(A0, A0, 40)).op(Op::LrW, T2, T0, 0, 0).op(Op::ScW, T2, T0, T1, 0).stop();
    asm.put(&vm);
    vm.run(at + 0x200);
    assert_eq!((vm.x(T2), vm.invalidated()), (0, 2));
    vm.run(RAM);
    assert_eq!(vm.x(A0), 143);
    // Reserved, but the value is another by then: the store kills, the SC that fails after it does not.
    let mut asm = Asm::at(at + 0x300);
    asm.la(T0, TWO).word(T1, addi(A0, A0, 50)).op(Op::LrW, T2, T0, 0, 0).i(sw(T1, T0, 0)).call(TWO);
    asm.op(Op::ScW, T2, T0, T1, 0).stop();
    asm.put(&vm);
    let before = vm.invalidated();
    vm.run(at + 0x300);
    assert_eq!((vm.x(T2), vm.invalidated()), (1, before + 1));
    vm.run(RAM);
    assert_eq!(vm.x(A0), 153);
}

#[test]
fn a_chained_jump_does_not_lead_into_a_dead_tb() {
    // A loop over two far pages, linked both ways; one of them is written between two runs, and by a third part of
    // the loop itself.
    let (head, tail) = (RAM, RAM + 0x3000);
    let mut vm = Vm::new();
    let mut asm = Asm::at(head);
    asm.i(addi(T0, T0, -1)).jump(tail);
    asm.put(&vm);
    let mut asm = Asm::at(tail);
    asm.i(addi(A0, A0, 1)).op(Op::Beq, 0, T0, ZERO, 8);
    asm.jump(head).stop();
    asm.put(&vm);
    let go = |vm: &mut Vm| {
        vm.vcpu.cpu_mut().x[usize::from(T0)] = 1000;
        vm.vcpu.cpu_mut().x[usize::from(A0)] = 0;
        vm.run(head);
        vm.x(A0)
    };
    assert_eq!(go(&mut vm), 1000);
    let stats = vm.vcpu.stats();
    assert!(stats.tb.linked >= 2, "{stats:?}");
    assert!(stats.entries < 100, "the loop stays in emitted code: {stats:?}");
    for n in 2..6 {
        vm.put(tail, &[addi(A0, A0, n)]);
        assert_eq!(go(&mut vm), 1000 * n as u64);
    }
    let entries = vm.vcpu.stats().entries;
    assert_eq!(go(&mut vm), 5000);
    assert!(vm.vcpu.stats().entries < entries + 20, "linked again");
}

#[test]
fn a_linked_jump_is_undone_while_its_own_loop_runs() {
    // head ─▶ tail ─▶ head: head's store patches tail in every round, so that the link into tail is made and undone.
    let (head, tail) = (RAM, RAM + 0x3000);
    let mut vm = Vm::new();
    let mut asm = Asm::at(head);
    // t1 = "addi a0, a0, n" with n the round: the immediate is the upper twelve bits.
    asm.la(T2, tail).word(T1, addi(A0, A0, 0)).word(A1, 1 << 20).i(li(T0, 100));
    let top = asm.here();
    asm.op(Op::Add, T1, T1, A1, 0).i(sw(T1, T2, 0)).i(addi(T0, T0, -1)).jump(tail);
    asm.put(&vm);
    let mut asm = Asm::at(tail);
    asm.i(addi(A0, A0, 0)).op(Op::Beq, 0, T0, ZERO, 8).jump(top).stop();
    asm.put(&vm);
    vm.run(head);
    assert_eq!(vm.x(A0), 100 * 101 / 2);
    assert!(vm.invalidated() >= 99, "{:?}", vm.vcpu.stats());
}

#[test]
fn the_death_of_a_target_does_not_touch_who_took_the_number_of_a_dead_neighbour() {
    // One jumps to Two; One dies, and a TB whose second exit is a poll gets its number; then Two dies. If One's link
    // were still noted there, the poll would be patched, which has no jump: the place of its field is that of `enter`.
    let (one, two) = (RAM + 0x1000, RAM + 0x4000);
    let mut vm = Vm::new();
    for _ in 0..3 {
        let mut asm = Asm::at(one);
        asm.i(addi(A0, A0, 1)).op(Op::Beq, 0, ZERO, A1, 8).jump(RAM + 0x6000).jump(two);
        asm.put(&vm);
        let mut asm = Asm::at(two);
        asm.i(addi(A0, A0, 1)).stop();
        asm.put(&vm);
        let linked = vm.vcpu.stats().tb.linked;
        vm.run(one);
        assert!(vm.vcpu.stats().tb.linked > linked);
        let mut asm = Asm::at(one);
        asm.i(li(T0, 5)).i(addi(T0, T0, -1)).op(Op::Bne, 0, T0, ZERO, -4).i(addi(T1, T1, -1));
        asm.op(Op::Bne, 0, T1, ZERO, -4).stop();
        asm.put(&vm);
        assert_eq!(vm.vcpu.serve(), 1);
        for _ in 0..2 {
            vm.vcpu.cpu_mut().x[usize::from(T1)] = 3;
            vm.run(one);
            vm.put(two, &[addi(A0, A0, 2)]);
            let _ = vm.vcpu.serve();
        }
    }
}

#[test]
fn a_return_into_what_the_callee_wrote_over_runs_what_is_there() {
    // f writes over the TB that called it, and then over the instruction that its caller goes on with. Whoever remembered
    // where the caller's way back was would lead into a dead one, which no kill unlinks any more.
    for regions in [true, false] {
        let mut vm = Vm::with(&Setup { flags: JitFlags { regions, ..eager() }, ..Setup::default() });
        let (main, f) = (RAM, RAM + 0x2000);
        let mut asm = Asm::at(main);
        asm.i(li(A0, 0)).call(f);
        let back = asm.here();
        asm.i(addi(A0, A0, 1)).stop();
        asm.put(&vm);
        let mut asm = Asm::at(f);
        asm.i(sw(T1, T0, 0)).i(sw(T2, A1, 0)).i(ret());
        asm.put(&vm);
        let go = |vm: &mut Vm, (first, second): (u64, u64), word: u32| {
            let x = &mut vm.vcpu.cpu_mut().x;
            (x[usize::from(T0)], x[usize::from(T1)]) = (first, li(A0, 0).into());
            (x[usize::from(A1)], x[usize::from(T2)]) = (second, word.into());
            vm.run(main);
            vm.x(A0)
        };
        let elsewhere = (RAM + 0x8000, RAM + 0x8100);
        for n in 2..20 {
            // Predicted and linked, before it goes wrong.
            for _ in 0..3 {
                assert_eq!(go(&mut vm, elsewhere, 0), n - 1);
            }
            assert_eq!(go(&mut vm, (main, back), addi(A0, A0, n as i32)), n, "regions {regions}");
        }
    }
}

#[test]
fn a_store_into_the_running_tb_is_seen_by_the_next_instruction() {
    for pinned in [true, false] {
        let mut vm = Vm::with(&Setup { flags: JitFlags { pinned, ..eager() }, ..Setup::default() });
        let mut asm = Asm::at(RAM);
        asm.la(T0, RAM + 0x24).word(T1, addi(A0, A0, 7)).i(li(A0, 0)).i(li(A1, 3));
        while asm.here() < RAM + 0x20 {
            asm.i(addi(A1, A1, 1));
        }
        asm.i(sw(T1, T0, 0)).i(addi(A0, A0, 1)).i(addi(A1, A1, 1)).stop();
        asm.put(&vm);
        vm.run(RAM);
        assert_eq!((vm.x(A0), vm.x(A1)), (7, 6));
        assert_eq!(vm.invalidated(), 1);
        let retired = vm.vcpu.cpu().retired;
        assert_eq!(retired, (vm.vcpu.cpu().pc - RAM) / 4, "each instruction retired once");
    }
}

#[test]
fn the_line_mask_is_the_union_of_live_code_and_code_is_set_when_the_last_one_leaves() {
    let mut vm = three_functions();
    assert!(vm.no_code(ONE));
    assert_eq!(vm.lines(ONE), 0);
    vm.run(RAM);
    let (one, two) = (lines_of(0, 8), lines_of(0x40, 8) | lines_of(0x50, 8));
    assert_eq!((vm.lines(ONE), vm.no_code(ONE)), (one | two, false));
    vm.put(ONE, &[0]);
    assert_eq!(vm.vcpu.serve(), 1);
    assert_eq!((vm.lines(ONE), vm.no_code(ONE)), (two, false));
    vm.put(TWO, &[0]);
    assert_eq!(vm.vcpu.serve(), 1);
    assert_eq!((vm.lines(ONE), vm.no_code(ONE)), (two, false), "the other one on the line");
    vm.put(THREE, &[0]);
    assert_eq!(vm.vcpu.serve(), 1);
    assert_eq!((vm.lines(ONE), vm.no_code(ONE)), (0, true));
    // A page that was code is data: the first store goes slow, the others do not.
    let mut asm = Asm::at(RAM + 0x3000);
    asm.la(T0, ONE).i(sw(ZERO, T0, 0));
    for n in 1..40 {
        asm.i(sw(ZERO, T0, 4 * n));
    }
    asm.stop();
    asm.put(&vm);
    vm.run(RAM + 0x3000);
    let before = vm.vcpu.stats().tlb;
    vm.run(RAM + 0x3000);
    let after = vm.vcpu.stats().tlb;
    assert_eq!((before.notdirty, before.code_page), (after.notdirty, after.code_page));
}

#[test]
fn data_on_a_page_with_code_is_heard_and_kills_nobody() {
    let mut vm = three_functions();
    vm.run(RAM);
    let mut asm = Asm::at(RAM + 0x3000);
    asm.la(T0, ONE + 0x800).i(li(T1, 100));
    let top = asm.here();
    asm.i(sw(T1, T0, 0)).i(addi(T1, T1, -1));
    let back = top.wrapping_sub(asm.here()) as i32;
    asm.op(Op::Bne, 0, T1, ZERO, back).stop();
    asm.put(&vm);
    let before = vm.vcpu.stats().tlb;
    vm.run(RAM + 0x3000);
    let after = vm.vcpu.stats().tlb;
    assert_eq!(vm.invalidated(), 0);
    assert_eq!(after.code_hit, before.code_hit);
    assert_eq!((vm.lines(ONE), vm.no_code(ONE)), (lines_of(0, 8) | lines_of(0x40, 24), false));
}

#[test]
fn code_reached_by_two_addresses_dies_at_both() {
    let mut vm = three_functions();
    let alias = 0x9000_0000;
    vm.space.map_ram(GuestPhys::new(alias), &vm.block, 0, 0x4000, 0).unwrap();
    let mut main = Asm::at(RAM + 0x3000);
    main.i(li(A0, 0)).op(Op::Jalr, RA, T0, 0, 0).op(Op::Jalr, RA, T1, 0, 0).stop();
    main.put(&vm);
    let go = |vm: &mut Vm| {
        let x = &mut vm.vcpu.cpu_mut().x;
        (x[usize::from(T0)], x[usize::from(T1)]) = (ONE, ONE - RAM + alias);
        vm.run(RAM + 0x3000);
        vm.x(A0)
    };
    assert_eq!(go(&mut vm), 2);
    let before = vm.translated();
    vm.put(ONE, &[addi(A0, A0, 4)]);
    assert_eq!(vm.vcpu.serve(), 2);
    assert_eq!(go(&mut vm), 8);
    assert_eq!(vm.translated(), before + 2);
    // A guest store through the other address.
    let patch = RAM + 0x3100;
    let mut asm = Asm::at(patch);
    asm.word(T1, addi(A0, A0, 5)).i(sw(T1, T0, 0)).stop();
    asm.put(&vm);
    let before = vm.invalidated();
    vm.vcpu.cpu_mut().x[usize::from(T0)] = ONE - RAM + alias;
    vm.run(patch);
    assert_eq!(vm.invalidated(), before + 2);
    assert_eq!(go(&mut vm), 10);
}

#[test]
fn a_store_entry_that_was_fast_before_the_page_held_code_is_armed() {
    // TLB-1: data first, so that the entry is fast; then the page is executed; then the same store again.
    let mut vm = Vm::new();
    let page = RAM + 0x5000;
    let mut asm = Asm::at(RAM);
    asm.la(T0, page).word(T1, addi(A0, A0, 1)).word(T2, ret()).i(li(A0, 0));
    asm.i(sw(T1, T0, 0)).i(sw(T2, T0, 4)).i(sw(T1, T0, 0));
    asm.call(page).word(T1, addi(A0, A0, 20)).i(sw(T1, T0, 0)).call(page).stop();
    asm.put(&vm);
    for _ in 0..3 {
        vm.run(RAM);
        assert_eq!(vm.x(A0), 21);
    }
}

#[test]
fn with_the_risc_v_model_own_stores_are_seen_after_fence_i_and_those_of_others_at_once() {
    let mut vm = Vm::with(&Setup { icache: ICache::FenceI, ..Setup::default() });
    let f = RAM + 0x2000;
    vm.put(f, &[li(A0, 1), ret()]);
    let mut main = Asm::at(RAM);
    main.la(T0, f).i(sw(T1, T0, 0)).op(Op::FenceI, 0, 0, 0, 0).call(f).stop();
    main.put(&vm);
    for n in 2..20 {
        vm.vcpu.cpu_mut().x[usize::from(T1)] = li(A0, n).into();
        let before = vm.invalidated();
        vm.run(RAM);
        assert_eq!(vm.x(A0), n as u64);
        assert_eq!(vm.invalidated() - before, u64::from(n > 2), "dropped at the fence");
        vm.put(f, &[li(A0, n + 100)]);
        assert_eq!(vm.vcpu.serve(), 1);
        vm.run(RAM + 16);
        assert_eq!(vm.x(A0), n as u64 + 100);
    }
    // More stores between two fences than are noted.
    let mut main = Asm::at(RAM + 0x100);
    main.la(T0, f).i(li(T2, 700));
    main.i(sw(T1, T0, 0)).i(sw(ZERO, T0, 16)).i(sw(T1, T0, 0)).i(addi(T2, T2, -1)).op(Op::Bne, 0, T2, ZERO, -16);
    main.op(Op::FenceI, 0, 0, 0, 0).call(f).stop();
    main.put(&vm);
    vm.vcpu.cpu_mut().x[usize::from(T1)] = li(A0, 777).into();
    vm.run(RAM + 0x100);
    assert_eq!(vm.x(A0), 777);
}

#[test]
fn an_instruction_limit_is_exact_at_any_distance() {
    // 200 instructions, round and round: a short block that polls and a long one that does not. Limits around the
    // lengths of slices.
    for flags in [eager(), JitFlags::default(), JitFlags { chaining: false, jump_cache: false, ..JitFlags::default() }]
    {
        let mut vm = Vm::with(&Setup { flags, ..Setup::default() });
        let mut asm = Asm::at(RAM);
        asm.i(addi(A0, A0, 1)).op(Op::Bne, 0, ZERO, ZERO, 16);
        for _ in 0..197 {
            asm.i(addi(A0, A0, 1));
        }
        asm.jump(RAM);
        asm.put(&vm);
        let near = (1..1200).step_by(37).chain((4000..5400).step_by(11)).chain((65_000..66_600).step_by(13));
        for distance in near.chain([131_100, 131_200, 200_000]) {
            vm.vcpu.reset(RAM);
            let limits = RunLimits { max_insns: Some(distance), deadline: None };
            assert_eq!(vm.vcpu.run(&limits), VcpuExit::InsnLimit);
            assert_eq!(vm.vcpu.cpu().retired, distance);
            let (rounds, rest) = (distance / 200, distance % 200);
            assert_eq!(vm.x(A0), 198 * rounds + rest - u64::from(rest >= 2));
        }
    }
}

#[test]
fn an_odd_entry_is_a_trap_and_no_accident() {
    for engine in [notdirty_tcg::EngineKind::Jit, notdirty_tcg::EngineKind::Interp] {
        let mut vm = Vm::with(&Setup { engine, ..Setup::default() });
        let mut handler = Asm::at(RAM + 0x100);
        handler.op(Op::Csrrs, A0, ZERO, 0, 0x342).op(Op::Csrrs, A1, ZERO, 0, 0x343).stop();
        handler.put(&vm);
        vm.vcpu.cpu_mut().csr.mtvec = RAM + 0x100;
        vm.run(RAM + 1);
        assert_eq!((vm.x(A0), vm.x(A1)), (0, RAM + 1), "{engine:?}: instruction address misaligned");
    }
}

#[test]
fn a_check_that_several_accesses_share_asks_for_the_page_of_the_last() {
    let mut vm = Vm::new();
    let (data, function, end) = (RAM + 0x4000, RAM + 0x5000, RAM + 0x10_0000);
    vm.put(function, &[addi(A0, ZERO, 1), ret()]);
    let (mut writer, mut reader, mut handler) = (Asm::at(RAM + 0x2000), Asm::at(RAM + 0x2100), Asm::at(RAM + 0x2200));
    for n in 0..4 {
        writer.op(Op::Sw, 0, T0, A1, 4 * n);
        reader.op(Op::Lw, A2, T1, 0, 4 * n);
    }
    writer.i(ret()).put(&vm);
    reader.i(ret()).put(&vm);
    handler.stop().put(&vm);
    let mut main = Asm::at(RAM);
    main.call(writer.base).call(reader.base).call(function).stop();
    main.put(&vm);
    vm.vcpu.cpu_mut().csr.mtvec = handler.base;
    let mut run = |to: u64, from: u64, word: u32| {
        let x = &mut vm.vcpu.cpu_mut().x;
        x[usize::from(T0)] = to;
        x[usize::from(T1)] = from;
        x[usize::from(A1)] = word.into();
        vm.run(RAM);
        (vm.x(A0), vm.vcpu.cpu().csr.mtval)
    };
    // The first page of each is known, and no client tracks it.
    assert_eq!(run(data, end - 16, 0), (1, 0));
    assert_eq!(run(function - 12, end - 16, addi(A0, ZERO, 2)), (2, 0), "a store to code was heard");
    assert_eq!(run(data, end - 12, 0), (2, end), "a load from nowhere is a fault");
}

/// A store that is translated, again and again where only its page has code; then some of its last bytes are code, or none.
#[test]
fn every_half_that_a_store_in_emitted_code_reaches_is_looked_at() {
    const STORES: [(Op, u64); 9] = [
        (Op::Sb, 1),
        (Op::Sh, 2),
        (Op::Sw, 4),
        (Op::Sd, 8),
        (Op::Fsw, 4),
        (Op::Fsd, 8),
        (Op::AmoswapW, 4),
        (Op::AmoaddD, 8),
        (Op::ScD, 8),
    ];
    let mut odd = eager();
    assert!(odd.set("aligned", false));
    for (flags, (op, width)) in [eager(), odd].into_iter().flat_map(|flags| STORES.map(|store| (flags, store))) {
        let aligned = matches!(op, Op::AmoswapW | Op::AmoaddD | Op::ScD);
        // How many bytes of it are code, and where the code starts in its line.
        for (reached, start) in (0..width).flat_map(|reached| (0..64).step_by(2).map(move |start| (reached, start))) {
            let code = RAM + 0x8080 + start;
            let at = code - (width - reached);
            if aligned && !at.is_multiple_of(width) {
                continue;
            }
            let mut vm = Vm::with(&Setup { flags, ..Setup::default() });
            vm.vcpu.cpu_mut().csr.mstatus |= 0x6000;
            vm.put(code, &[addi(A0, A0, 1), ret()]);
            let mut asm = Asm::at(RAM);
            // Rounds: first elsewhere on the page, in the end at the code.
            asm.la(T0, (at & !0xfff) + 0x800 + at % 8).la(T1, at).i(li(A1, 40)).i(li(A2, 0));
            let again = asm.here();
            asm.call(code);
            match op {
                Op::ScD => _ = asm.op(Op::LrD, A2, T0, 0, 0).op(op, A2, T0, ZERO, 0),
                Op::AmoswapW | Op::AmoaddD => _ = asm.op(op, ZERO, T0, A2, 0),
                _ => _ = asm.op(op, 0, T0, A2, 0),
            }
            asm.i(addi(A1, A1, -1));
            // In the last round the address is the other.
            asm.op(Op::Sltiu, A3, A1, 0, 2).op(Op::Sub, A3, ZERO, A3, 0).op(Op::Sub, A4, T1, T0, 0);
            asm.op(Op::And, A4, A4, A3, 0).op(Op::Add, T0, T0, A4, 0);
            asm.op(Op::Bne, 0, A1, 0, (again as i64 - asm.here() as i64) as i32).stop();
            asm.put(&vm);
            vm.run(RAM);
            assert_eq!(
                vm.invalidated() != 0,
                reached != 0,
                "{op:?}, {reached} bytes of the code at {code:#x}, {flags:?}"
            );
        }
    }
}

//! Page tables and PMP on every engine, case by case; `random.rs` has random programs. `walk.rs` and `pmp.rs` test parts of the oracle,
//! upstream's tests the whole.

#[path = "../common/mod.rs"]
mod common;
mod pairs;
mod random;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{self, mstatus, num};
use notdirty_tcg::riscv::trap::cause;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, ICache, JitFlags, RunLimits, VcpuExit};
use std::time::{Duration, Instant};

const HANDLER: u64 = RAM + 0x800;
const CODE: u64 = RAM + 0x1000;
/// Four pages of tables, four of data.
const TABLES: u64 = RAM + 0x4_0000;
const DATA: u64 = TABLES + 0x4000;
/// Where M-mode goes on after a trap of another mode.
const S11: u8 = 27;

fn engines() -> [(&'static str, Setup); 4] {
    [
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }),
        ("translated", Setup::default()),
        ("translated, fences", Setup { icache: ICache::FenceI, ..Setup::default() }),
    ]
}

/// Adds up causes, values and places; skips an instruction of M-mode, and leaves other modes for s11.
fn handler() -> Asm {
    let mut asm = Asm::at(HANDLER);
    for (sum, from) in [(S2, num::MCAUSE), (S3, num::MTVAL), (S4, num::MEPC)] {
        asm.op(Op::Csrrs, T4, ZERO, 0, from.into()).op(Op::Slli, T2, sum, 0, 1);
        asm.op(Op::Add, sum, T2, T4, 0);
    }
    asm.op(Op::Csrrs, T5, ZERO, 0, num::MSTATUS.into()).word(T6, mstatus::MPP as u32);
    asm.op(Op::And, T5, T5, T6, 0).i(encode(Op::Bne, 0, T5, T6, 16));
    asm.i(addi(T4, T4, 4)).op(Op::Csrrw, ZERO, T4, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
    asm.op(Op::Csrrw, ZERO, S11, 0, num::MEPC.into()).op(Op::Csrrs, ZERO, T6, 0, num::MSTATUS.into());
    asm.op(Op::Mret, 0, 0, 0, 0);
    asm
}

/// A hart in S-mode under Sv39: page n of the first 2 MiB is what `map` says, with these rights; handled in M-mode.
fn paged(setup: &Setup, map: &[(u64, u64, u64)]) -> Vm {
    let mut vm = Vm::with(setup);
    let write = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
    write(TABLES, (TABLES + 0x1000) >> 2 | 1);
    write(TABLES + 0x1000, (TABLES + 0x2000) >> 2 | 1);
    for &(page, to, rights) in map {
        write(TABLES + 0x2000 + page * 8, to >> 2 | rights | 1);
    }
    // The device that stops the machine, and RAM for what M-mode does.
    handler().put(&vm);
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    (cpu.csr.mtvec, cpu.csr.satp, cpu.privilege) = (HANDLER, 8 << 60 | TABLES >> 12, Privilege::S);
    cpu.x[usize::from(S11)] = CODE;
    let mut end = Asm::at(CODE);
    end.stop();
    end.put(&vm);
    vm
}

const R: u64 = 0x42;
const RW: u64 = 0xc6;
const RX: u64 = 0x4a;

#[test]
fn faults_of_pages_have_their_causes_and_addresses() {
    let code = DATA;
    let cases = [
        (vec![encode(Op::Ld, A0, S0, 0, 8)], 0x9000, cause::LOAD_PAGE, 0x9008),
        (vec![encode(Op::Sd, 0, S0, A0, 8)], 0x9000, cause::STORE_PAGE, 0x9008),
        (vec![encode(Op::Sd, 0, S0, A0, 8)], 0x5000, cause::STORE_PAGE, 0x5008),
        (vec![encode(Op::AmoaddD, A0, S0, A0, 0)], 0x5000, cause::STORE_PAGE, 0x5000),
        // Over two pages, of which the second is not there.
        (vec![encode(Op::Sd, 0, S0, A0, 0)], 0x6ffc, cause::STORE_PAGE, 0x7000),
        (vec![encode(Op::Jalr, ZERO, S0, 0, 0)], 0x5000, cause::FETCH_PAGE, 0x5000),
        // Page tables say yes, and nothing is there.
        (vec![encode(Op::Ld, A0, S0, 0, 0)], 0x8000, cause::LOAD_ACCESS, 0x8000),
        // An address that is no address.
        (
            vec![encode(Op::Slli, S0, S0, 0, 40), encode(Op::Ld, A0, S0, 0, 0)],
            0x9000,
            cause::LOAD_PAGE,
            0x90_0000_0000_0000,
        ),
    ];
    for (name, setup) in engines() {
        for (code_words, s0, wanted, tval) in &cases {
            let map = [(4, code, RX), (5, DATA + 0x1000, R), (6, DATA + 0x2000, RW), (8, 0x7000_0000, RW)];
            let mut vm = paged(&setup, &map);
            vm.put(code, code_words);
            vm.vcpu.cpu_mut().x[usize::from(S0)] = *s0;
            vm.run(0x4000);
            let csr = &vm.vcpu.cpu().csr;
            assert_eq!((csr.mcause, csr.mtval), (*wanted, *tval), "{name}, {wanted}");
            // The handler notes mepc.
            assert_eq!(vm.x(S4) >> 12, if *wanted == cause::FETCH_PAGE { 5 } else { 4 }, "{name}");
        }
    }
}

#[test]
fn code_that_is_written_through_another_mapping_is_run_as_it_is_written() {
    for (name, setup) in engines() {
        // Page 4 runs, page 5 shows its neighbour for writing: a function there gets another constant each round.
        let mut vm = paged(&setup, &[(4, DATA, RX), (5, DATA + 0x1000, RW), (6, DATA + 0x1000, RX)]);
        let mut main = Asm::at(0x4000);
        main.i(li(S0, 50)).i(li(A0, 0));
        let top = main.here();
        main.word(T0, addi(A1, ZERO, 0)).op(Op::Slli, T1, S0, 0, 20).op(Op::Or, T0, T0, T1, 0);
        main.word(T2, 0x5000).op(Op::Sw, 0, T2, T0, 0).op(Op::FenceI, 0, 0, 0, 0);
        main.call(0x6000).op(Op::Add, A0, A0, A1, 0).i(addi(S0, S0, -1));
        let back = top.wrapping_sub(main.here()) as i32;
        main.op(Op::Bne, 0, S0, ZERO, back).op(Op::Ecall, 0, 0, 0, 0);
        vm.put(DATA, &main.code);
        vm.put(DATA + 0x1000, &[li(A1, 0), ret()]);
        vm.run(0x4000);
        assert_eq!((vm.x(A0), vm.vcpu.cpu().csr.mcause), (50 * 51 / 2, cause::ECALL_U + 1), "{name}");
    }
}

#[test]
fn a_page_of_code_that_is_remapped_is_another_behind_the_fence() {
    // By its address, its address space, both, or neither; a4 holds the number of the address space.
    let fences = [(T1, ZERO), (T1, A4), (ZERO, A4), (ZERO, ZERO)];
    // Addresses of all kinds: a link to another page knows them by four bytes or by eight.
    let bases = [0u64, 0xffff_ffff_8000_0000, 0x1_0000_0000, 0x20_0000_0000, 0xffff_ffc0_0000_0000];
    let engines = engines();
    let all = engines.iter().flat_map(|engine| bases.map(|base| (engine, base)));
    for (((name, setup), base), (va, asid)) in all.flat_map(|at| fences.map(|fence| (at, fence))) {
        // Page 6 is one of two functions, by an entry that page 5 shows.
        let map = [(4, DATA, RX), (5, TABLES + 0x2000, RW), (6, DATA + 0x1000, RX)];
        let mut vm = paged(setup, &map);
        let root = TABLES + (base >> 30 & 511) * 8;
        vm.space.write(GuestPhys::new(root), &((TABLES + 0x1000) >> 2 | 1).to_le_bytes()).unwrap();
        vm.vcpu.cpu_mut().x[usize::from(S5)] = base;
        let mut main = Asm::at(base + 0x4000);
        main.i(li(S0, 40))
            .i(li(A0, 0))
            .word(S1, 0x5000)
            .op(Op::Add, S1, S1, S5, 0)
            .op(Op::Ld, S2, S1, 0, 6 * 8)
            .i(li(S3, 1 << 10));
        let top = main.here();
        main.call(base + 0x6000).op(Op::Add, A0, A0, A1, 0);
        // DATA + 0x1000 and DATA + 0x2000 in turn.
        main.op(Op::And, T0, S2, S3, 0).i(encode(Op::Beq, 0, T0, ZERO, 12));
        main.op(Op::Add, S2, S2, S3, 0).i(jal(ZERO, 0, 8)).op(Op::Sub, S2, S2, S3, 0);
        main.op(Op::Sd, 0, S1, S2, 6 * 8).word(T1, 0x6000).op(Op::Add, T1, T1, S5, 0).op(Op::SfenceVma, 0, va, asid, 0);
        main.i(addi(S0, S0, -1));
        let back = top.wrapping_sub(main.here()) as i32;
        main.op(Op::Bne, 0, S0, ZERO, back).op(Op::Ecall, 0, 0, 0, 0);
        vm.put(DATA, &main.code);
        vm.put(DATA + 0x1000, &[li(A1, 1), ret()]);
        vm.put(DATA + 0x2000, &[li(A1, 100), ret()]);
        vm.run(base + 0x4000);
        assert_eq!(vm.x(A0), 20 * 101, "{name}, {base:#x}, {va} {asid}");
        // Without a fence what was known may be used, and is: each fence asked once for the page.
        assert!(va == ZERO || vm.vcpu.stats().tlb.fetch_miss < 60, "{name}: {}", vm.vcpu.stats().tlb.fetch_miss);
    }
}

#[test]
fn numbers_of_mappings_that_are_used_up_begin_anew_without_the_code_that_has_them() {
    for (name, setup) in engines() {
        let mut vm = paged(&setup, &[(4, DATA, RX), (6, DATA + 0x1000, RX)]);
        vm.vcpu.last_mappings(Some(u32::MAX - 20));
        // A call of another page, behind a fence, and 50 without one.
        let mut main = Asm::at(0x4000);
        main.i(li(S0, 100)).i(li(A0, 0));
        let round = main.here();
        main.op(Op::SfenceVma, 0, ZERO, ZERO, 0).i(li(S1, 50));
        let again = main.here();
        main.call(0x6000).i(addi(S1, S1, -1));
        main.op(Op::Bne, 0, S1, ZERO, (again as i64 - main.here() as i64) as i32).i(addi(S0, S0, -1));
        main.op(Op::Bne, 0, S0, ZERO, (round as i64 - main.here() as i64) as i32).op(Op::Ecall, 0, 0, 0, 0);
        vm.put(DATA, &main.code);
        vm.put(DATA + 0x1000, &[addi(A0, A0, 1), ret()]);
        vm.run(0x4000);
        assert_eq!(vm.x(A0), 5000, "{name}");
        let last = vm.vcpu.last_mappings(None);
        assert!(setup.engine == EngineKind::Interp || last < 1000, "{name}: {last}");
    }
}

#[test]
fn code_that_went_on_into_another_frame_before_the_fence_stays_in_its_own_behind_it() {
    let block_by_block = Setup { flags: JitFlags { regions: false, ..eager() }, ..Setup::default() };
    let [oracle, tiers, translated, _] = engines();
    for (name, setup) in [oracle, tiers, translated, ("block by block", block_by_block)] {
        // Page 6 is one of two functions, by an entry that page 5 shows; all pages from 16 on return at once.
        let (first, second, returns) = (DATA + 0x1000, DATA + 0x2000, DATA + 0x3000);
        let rest = (16..216).map(|page| (page, returns, RX));
        let map: Vec<_> = [(4, DATA, RX), (5, TABLES + 0x2000, RW), (6, first, RX)].into_iter().chain(rest).collect();
        let mut vm = paged(&setup, &map);
        for (frame, value) in [(first, 1), (second, 100)] {
            // Its second half is looked for only when it is asked for.
            vm.put(frame, &[encode(Op::Bne, 0, S0, ZERO, 0x100), ret()]);
            vm.put(frame + 0x100, &[li(A1, value), ret()]);
        }
        vm.put(returns + 0x800, &[ret()]);
        let mut main = Asm::at(0x4000);
        main.word(S1, 0x5000).word(S3, 0x6000).word(S2, 0x1000).i(li(S0, 0)).op(Op::Jalr, RA, S3, 0, 0);
        // Without a fence: its jumps are known, but how it is fetched makes room for other pages.
        main.word(T0, (second >> 2 | RX | 1) as u32).op(Op::Sd, 0, S1, T0, 6 * 8);
        main.word(T1, 0x1_0800).i(li(T2, 200));
        let again = main.here();
        main.op(Op::Jalr, RA, T1, 0, 0).op(Op::Add, T1, T1, S2, 0).i(addi(T2, T2, -1));
        main.op(Op::Bne, 0, T2, ZERO, (again as i64 - main.here() as i64) as i32);
        // The first half may be that of one frame, and the second that of the other.
        main.i(li(S0, 1)).op(Op::Jalr, RA, S3, 0, 0).i(addi(A2, A1, 0));
        for frame in [first, second] {
            main.word(T0, (frame >> 2 | RX | 1) as u32).op(Op::Sd, 0, S1, T0, 6 * 8).op(Op::SfenceVma, 0, S3, ZERO, 0);
            main.op(Op::Jalr, RA, S3, 0, 0).op(Op::Add, A0, A0, A1, 0);
        }
        main.op(Op::Ecall, 0, 0, 0, 0);
        vm.put(DATA, &main.code);
        vm.run(0x4000);
        assert!([1, 100].contains(&vm.x(A2)), "{name}");
        assert_eq!(vm.x(A0), 101, "{name}");
    }
}

#[test]
fn code_of_a_run_without_exits_does_not_go_on_into_code_of_one_that_had_them() {
    let setup = Setup { flags: JitFlags { regions: false, ..eager() }, ..Setup::default() };
    let map = [(4, DATA, RX), (6, DATA + 0x1000, RX), (7, DATA + 0x2000, RX), (9, STOP, RW)];
    let mut vm = paged(&setup, &map);
    // A jump to code that lies on two pages.
    let (from, to) = (0x6000u64, 0x6ff8u64);
    vm.put(DATA + 0x1000, &[jal(ZERO, from, to)]);
    vm.put(DATA + 0x1ff8, &[addi(A0, A0, 1), addi(A0, A0, 1), addi(A0, A0, 1), ret()]);
    let mut main = Asm::at(0x4000);
    main.word(S3, to as u32).word(S1, from as u32).word(S2, 0x9000).i(li(A0, 0));
    main.op(Op::Jalr, RA, S3, 0, 0).op(Op::Jalr, RA, S1, 0, 0).op(Op::SfenceVma, 0, S1, ZERO, 0);
    // The link holds no more, so the jump cache is asked, and knows: of the jump's target, and at last of where that returns to.
    main.op(Op::Jalr, RA, S3, 0, 0).i(li(S4, 3));
    let again = main.here();
    main.op(Op::Jalr, RA, S1, 0, 0).i(addi(S4, S4, -1));
    main.op(Op::Bne, 0, S4, ZERO, (again as i64 - main.here() as i64) as i32).i(sw(ZERO, S2, 0));
    main.op(Op::Jalr, RA, S3, 0, 0).op(Op::Jalr, RA, S1, 0, 0).op(Op::Ecall, 0, 0, 0, 0);
    vm.put(DATA, &main.code);
    vm.run(0x4000);
    assert_eq!(vm.x(A0), 18);
    // What the link led to is gone, and is no more than a page until the exit behind it.
    vm.put(DATA + 0x1ff8, &[addi(A0, A0, 10)]);
    vm.vcpu.set_exits(&[0x6ffc]);
    let limits = RunLimits { max_insns: None, deadline: Some(Instant::now() + Duration::from_secs(60)) };
    assert!(matches!(vm.vcpu.run(&limits), VcpuExit::Exit(_)));
    assert_eq!((vm.x(A0), vm.vcpu.cpu().pc), (28, 0x6ffc));
    vm.vcpu.set_exits(&[]);
    assert_eq!(vm.vcpu.run(&limits), VcpuExit::Stopped);
    assert_eq!((vm.x(A0), vm.vcpu.cpu().csr.mcause), (30 + 12, cause::ECALL_U + 1));
}

#[test]
fn a_page_that_loads_look_up_no_more_is_another_behind_the_fence() {
    // By its address, its address space, both, or neither; a4 holds the number of the address space.
    let fences = [(T1, ZERO), (T1, A4), (ZERO, A4), (ZERO, ZERO)];
    const ROUNDS: u64 = 40;
    const TURNS: u64 = 200;
    for ((name, setup), (va, asid)) in engines().iter().flat_map(|engine| fences.map(|fence| (engine, fence))) {
        // Pages 6 to 9 lie in a row, and page 8 is another each round, by an entry that page 5 shows.
        let data = |n: u64| DATA + 0x8000 + n * 0x1000;
        let map = [
            (4, DATA, RX),
            (5, TABLES + 0x2000, RW),
            (6, data(0), RW),
            (7, data(1), RW),
            (8, data(2), RW),
            (9, data(3), RW),
        ];
        let mut vm = paged(setup, &map);
        let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
        (0..6).for_each(|n| write(data(n), 10u64.pow(n as u32)));
        let mut main = Asm::at(0x4000);
        main.i(li(S0, ROUNDS as i32)).i(li(A0, 0)).word(S1, 0x5000).word(S2, ((data(2) >> 2) | RW | 1) as u32);
        main.word(S3, ((data(2) >> 2 ^ data(5) >> 2) & 0xffff_ffff) as u32);
        let top = main.here();
        main.i(li(T2, TURNS as i32)).word(T1, 0x6000).word(T0, 0x1000);
        let again = main.here();
        main.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, A0, A0, A1, 0).op(Op::Add, T1, T1, T0, 0);
        main.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, A0, A0, A1, 0).op(Op::Add, T1, T1, T0, 0);
        main.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, A0, A0, A1, 0).op(Op::Add, T1, T1, T0, 0);
        main.op(Op::Ld, A1, T1, 0, 0).op(Op::Add, A0, A0, A1, 0).word(T1, 0x6000).i(addi(T2, T2, -1));
        main.op(Op::Bne, 0, T2, ZERO, (again as i64 - main.here() as i64) as i32);
        main.op(Op::Xor, S2, S2, S3, 0).op(Op::Sd, 0, S1, S2, 8 * 8);
        main.word(T1, 0x8000).op(Op::SfenceVma, 0, va, asid, 0).i(addi(S0, S0, -1));
        main.op(Op::Bne, 0, S0, ZERO, (top as i64 - main.here() as i64) as i32).op(Op::Ecall, 0, 0, 0, 0);
        vm.put(DATA, &main.code);
        vm.run(0x4000);
        assert_eq!(vm.x(A0), ROUNDS / 2 * TURNS * (1011 + 100 + 1011 + 100_000), "{name}, {va} {asid}");
        assert_eq!(vm.vcpu.cpu().csr.mcause, cause::ECALL_U + 1, "{name}");
    }
}

#[test]
fn a_lock_that_refuses_all_binds_the_next_instruction_though_its_code_is_known() {
    for (name, setup) in engines() {
        let mut vm = Vm::with(&setup);
        let mut asm = Asm::at(CODE);
        // Not the first time: then it allows all, and what is behind it becomes known.
        asm.op(Op::Csrrw, 0, A1, 0, 0x3a0).i(addi(A0, A0, 1)).i(addi(A1, A2, 0));
        let again = jal(ZERO, asm.here(), CODE);
        asm.i(again);
        asm.put(&vm);
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr.allow_all_memory();
        (cpu.pc, cpu.csr.mtvec) = (CODE, HANDLER);
        // Locked, up to the first address, without rights.
        cpu.x[usize::from(A2)] = 0x88;
        vm.vcpu.run(&RunLimits { max_insns: Some(1000), deadline: None });
        assert_eq!(vm.vcpu.cpu().x[usize::from(A0)], 1, "{name}");
    }
}

#[test]
fn a_mark_that_an_access_leaves_in_the_next_instruction_is_in_it() {
    // The code lies in the table itself: the access to page 9 sets bits of that page's entry, which is the instruction behind it.
    // As they were, they are a load, `slti`, `auipc`, each to sp; as they are marked, nothing that is on.
    let other = TABLES + 0x8000;
    // The last two accesses are compressed, behind `c.nop`.
    let (load, store) = (encode(Op::Ld, A1, S0, 0, 0), encode(Op::Sd, 0, S0, A1, 0));
    for (access, to, rights, marks) in [
        (load, DATA, 0x102, 0x40),
        (load, other, 0x112, 0x40),
        (store, other, 0x116, 0xc0),
        (0x600c_0001, other, 0x112, 0x40),
        (0xe00c_0001, other, 0x116, 0xc0),
    ] {
        for (name, setup) in engines() {
            let table = TABLES + 0x2000;
            let mut vm = paged(&setup, &[(4, table, RX), (5, DATA, RW), (9, to, rights)]);
            vm.put(table + 8 * 8, &[addi(A0, A0, 1), access]);
            let cpu = vm.vcpu.cpu_mut();
            cpu.csr.menvcfg = 1 << 61;
            cpu.csr.mstatus |= 1 << 18;
            (cpu.x[usize::from(S0)], cpu.x[usize::from(SP)]) = (0x9000, 0x5000);
            vm.run(0x4000 + 8 * 8);
            let entry = to >> 2 | rights | 1;
            let found = vm.vcpu.cpu().csr.mtval;
            let old = setup.icache == ICache::FenceI && found == 0;
            assert!(
                old || found == entry | marks && vm.x(SP) == 0x5000,
                "{name}, {access:#x}: {found:#x}, sp {:#x}",
                vm.x(SP)
            );
            assert_eq!(vm.vcpu.cpu().csr.mcause, cause::ILLEGAL, "{name}");
        }
    }
}

#[test]
fn a_site_that_takes_its_entrys_addend_takes_that_of_its_own_address_space() {
    const ROUNDS: u64 = 40;
    const TURNS: u64 = 500;
    let (code, second) = (TABLES + 0x6000, TABLES + 0xa000);
    for (name, setup) in engines() {
        // Page 6 is found first, and page 5 has another addend than that; its frame is another in the second space.
        let mut vm = paged(&setup, &[(4, code, RX), (5, DATA, RW), (6, DATA + 0x3000, RW)]);
        let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
        write(second, (second + 0x1000) >> 2 | 1);
        write(second + 0x1000, (second + 0x2000) >> 2 | 1);
        for (page, to, rights) in [(4, code, RX), (5, DATA + 0x1000, RW), (6, DATA + 0x3000, RW)] {
            write(second + 0x2000 + page * 8, to >> 2 | rights | 1);
        }
        write(DATA, 3);
        write(DATA + 0x1000, 1000);
        let (count, near, other) = (9, 13, 14);
        let mut asm = Asm::at(0x4000);
        let round = asm.here();
        asm.word(count, TURNS as u32);
        let again = asm.here();
        asm.op(Op::Ld, A1, near, 0, 0).op(Op::Ld, A1, S0, 0, 0).op(Op::Add, A2, A2, A1, 0);
        asm.op(Op::Sd, 0, S0, A2, 8).i(addi(count, count, -1));
        asm.op(Op::Bne, 0, count, 0, (again as i64 - asm.here() as i64) as i32);
        asm.op(Op::Csrrw, other, other, 0, num::SATP.into()).i(addi(A0, A0, -1));
        asm.op(Op::Bne, 0, A0, 0, (round as i64 - asm.here() as i64) as i32).i(0);
        vm.put(code, &asm.code);
        let cpu = vm.vcpu.cpu_mut();
        for (register, value) in [(S0, 0x5000), (near, 0x6000), (other, 8 << 60 | 1 << 44 | second >> 12), (A0, ROUNDS)]
        {
            cpu.x[usize::from(register)] = value;
        }
        (cpu.x[usize::from(A1)], cpu.x[usize::from(A2)]) = (0, 0);
        vm.run(0x4000);
        let sum = ROUNDS / 2 * TURNS * (3 + 1000);
        let mut last = [[0; 8]; 2];
        vm.space.read(GuestPhys::new(DATA + 8), &mut last[0]).unwrap();
        vm.space.read(GuestPhys::new(DATA + 0x1008), &mut last[1]).unwrap();
        assert_eq!(vm.x(A2), sum, "{name}");
        assert_eq!(last.map(u64::from_le_bytes), [sum - 1000 * TURNS, sum], "{name}");
        assert!(setup.engine == EngineKind::Interp || vm.vcpu.stats().tb.elsewhere >= 1, "{name}: none was learned");
    }
}

#[test]
fn a_chain_of_loads_guesses_addends_until_they_are_often_wrong_and_is_right_always() {
    const TURNS: u64 = 40_000;
    let code = TABLES + 0x6000;
    for (name, setup) in engines() {
        for (alternate, far) in [(false, 0x7000), (true, 0x5000)] {
            // Page 6 is found first, and the others have addends of their own.
            let map = [(4, code, RX), (5, DATA, RW), (6, DATA + 0x3000, RW), (7, DATA + 0x1000, RW)];
            let mut vm = paged(&setup, &map);
            // Three nodes in a ring, on two pages or on one; each names the next, and has a value.
            let nodes = if alternate { [0x5000, 0x7010, 0x5020] } else { [far, far + 0x10, far + 0x20] };
            for (n, node) in nodes.into_iter().enumerate() {
                let frame = if node < 0x6000 { DATA } else { DATA + 0x1000 };
                let at = GuestPhys::new(frame + node % 0x1000);
                let bytes = [nodes[(n + 1) % 3], 10 + n as u64].map(u64::to_le_bytes).concat();
                vm.space.write(at, &bytes).unwrap();
            }
            let (near, count) = (13, 9);
            let mut asm = Asm::at(0x4000);
            asm.word(count, TURNS as u32);
            let again = asm.here();
            asm.op(Op::Ld, A1, near, 0, 0).op(Op::Ld, A1, S0, 0, 8).op(Op::Add, A2, A2, A1, 0);
            asm.op(Op::Ld, S0, S0, 0, 0).i(addi(count, count, -1));
            asm.op(Op::Bne, 0, count, 0, (again as i64 - asm.here() as i64) as i32).i(0);
            vm.put(code, &asm.code);
            let cpu = vm.vcpu.cpu_mut();
            for (register, value) in [(S0, nodes[0]), (near, 0x6000), (A2, 0)] {
                cpu.x[usize::from(register)] = value;
            }
            vm.run(0x4000);
            assert_eq!(vm.x(A2), (0..TURNS).map(|n| 10 + n % 3).sum::<u64>(), "{name}");
            assert_eq!(vm.x(S0), nodes[(TURNS % 3) as usize], "{name}");
            if setup.engine == EngineKind::Jit {
                let tb = vm.vcpu.stats().tb;
                assert!(tb.elsewhere >= 1, "{name}: none was learned");
                assert_eq!(tb.guessed != 0, alternate, "{name}: {}", tb.guessed);
            }
        }
    }
}

#[test]
fn eight_bytes_that_pmp_refuses_are_refused_amid_their_page_and_amid_a_page_table() {
    let (code, data, leaves) = (DATA, DATA + 0x1000, TABLES + 0x2000);
    let (load, store) = (encode(Op::Ld, A1, S0, 0, 0x100), encode(Op::Sd, 0, S0, A1, 0x100));
    let beside = [
        encode(Op::Ld, A1, S0, 0, 0xf8),
        encode(Op::Sd, 0, S0, A1, 0x108),
        encode(Op::Ld, A1, S0, 0, 0x108),
        encode(Op::Sd, 0, S0, A1, 0xf8),
    ];
    let none = vec![];
    // Where, what is left of its rights, what goes before, the access, and its fault.
    for (refused, rights, before, access, wanted, tval) in [
        (data + 0x100, 0, beside.to_vec(), load, cause::LOAD_ACCESS, 0x5100),
        (data + 0x100, 0, beside.to_vec(), store, cause::STORE_ACCESS, 0x5100),
        (data + 0x100, 1, [beside.to_vec(), vec![load]].concat(), store, cause::STORE_ACCESS, 0x5100),
        (leaves + 5 * 8, 0, none.clone(), load, cause::LOAD_ACCESS, 0x5100),
        (leaves + 5 * 8, 0, none.clone(), store, cause::STORE_ACCESS, 0x5100),
        (TABLES + 0x1000, 0, none.clone(), 0x13, cause::FETCH_ACCESS, 0x4000),
        // It can be read, and not marked.
        (leaves + 6 * 8, 1, vec![encode(Op::Lui, S0, 0, 0, 0x6000)], load, cause::LOAD_ACCESS, 0x6100),
    ] {
        for (name, setup) in engines() {
            let mut vm = paged(&setup, &[(4, code, RX), (5, data, RW), (6, data, 2)]);
            vm.put(code, &before);
            vm.put(code + 4 * before.len() as u64, &[access]);
            // M-mode says so, and goes there.
            let mut first = Asm::at(TABLES + 0xf000);
            for (register, number) in [(T4, num::PMPADDR0), (T5, num::PMPADDR0 + 1), (T6, num::PMPCFG0)] {
                first.op(Op::Csrrw, ZERO, register, 0, number.into());
            }
            first.op(Op::Mret, 0, 0, 0, 0);
            first.put(&vm);
            let cpu = vm.vcpu.cpu_mut();
            for (register, value) in [(T4, refused >> 2), (T5, u64::MAX >> 10), (T6, 0x1f18 | rights), (S0, 0x5000)] {
                cpu.x[usize::from(register)] = value;
            }
            (cpu.csr.menvcfg, cpu.csr.mepc, cpu.privilege) = (1 << 61, 0x4000, Privilege::M);
            cpu.csr.mstatus = cpu.csr.mstatus & !mstatus::MPP | 1 << 11;
            vm.run(TABLES + 0xf000);
            let csr = &vm.vcpu.cpu().csr;
            assert_eq!((csr.mcause, csr.mtval), (wanted, tval), "{name}: {refused:#x}, {rights}, {access:#x}");
        }
    }
}

#[test]
fn memory_that_comes_and_goes_under_s_mode_is_used_while_it_is_there_and_its_tables_are_walked_no_longer() {
    // In another place of the cache of tables than the others are.
    const DIMM: u64 = 0x1_0000_7000;
    let flag = TABLES + 0x9000;
    for (name, setup) in engines() {
        let mut vm = paged(&setup, &[(4, DATA, RX)]);
        let dimm = vm.list.add(RamBlockSpec::new("dimm", 0x2000)).unwrap();
        // The last table lies in what comes and goes, as does the page that it shows.
        vm.space.write(GuestPhys::new(TABLES + 0x1008), &(DIMM >> 2 | 1).to_le_bytes()).unwrap();
        let (value, bad, faults, good) = (13, 14, 15, 16);
        let mut asm = Asm::at(0x4000);
        let again = asm.here();
        asm.op(Op::Ld, A1, S0, 0, 0)
            .op(Op::Sd, 0, S0, value, 8)
            .i(encode(Op::Beq, 0, A1, value, 8))
            .i(addi(bad, bad, 1));
        asm.i(addi(good, good, 1)).op(Op::Andi, A1, good, 0, 7).i(encode(Op::Bne, 0, A1, 0, 8));
        asm.op(Op::SfenceVma, 0, 0, 0, 0);
        asm.op(Op::Jal, 0, 0, 0, (again as i64 - asm.here() as i64) as i32);
        vm.put(DATA, &asm.code);
        // M-mode, behind a fault: back, unless it is over.
        let mut back = Asm::at(TABLES + 0xf000);
        back.i(addi(faults, faults, 1)).la(T4, flag).op(Op::Ld, T4, T4, 0, 0).i(encode(Op::Bne, 0, T4, 0, 36));
        back.word(T5, 0x4000).op(Op::Csrrw, 0, T5, 0, num::MEPC.into());
        back.word(T6, 0x800).op(Op::Csrrs, 0, T6, 0, num::MSTATUS.into()).op(Op::Mret, 0, 0, 0, 0);
        back.i(addi(T4, T4, 0)).i(addi(T4, T4, 0)).stop();
        back.put(&vm);
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr.menvcfg = 1 << 61;
        for (register, to) in [(S0, 0x20_0000), (value, 0x77), (bad, 0), (faults, 0), (good, 0), (S11, TABLES + 0xf000)]
        {
            cpu.x[usize::from(register)] = to;
        }
        let (space, list) = (vm.space.clone(), vm.list.clone());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let pause = || std::thread::sleep(Duration::from_micros(300));
                for _ in 0..100 {
                    list.fill(&dimm, 0, 0x2000, 0).unwrap();
                    list.write(&dimm, 0, &((DIMM + 0x1000) >> 2 | 7).to_le_bytes()).unwrap();
                    list.write(&dimm, 0x1000, &0x77u64.to_le_bytes()).unwrap();
                    let id = space.map_ram(GuestPhys::new(DIMM), &dimm, 0, 0x2000, 0).unwrap();
                    pause();
                    assert!(space.unmap_and_wait(id, Some(Duration::from_secs(20))).unwrap());
                    list.fill(&dimm, 0, 0x2000, 0x99).unwrap();
                    // A walk that still looked there would find, and mark, a page.
                    let entry = ((DATA + 0x1000) >> 2 | 7).to_le_bytes();
                    list.write(&dimm, 0, &entry).unwrap();
                    pause();
                    let mut bytes = [0; 0x2000];
                    dimm.read_bytes(0, &mut bytes).unwrap();
                    assert!(
                        bytes[..8] == entry && bytes[8..].iter().all(|&byte| byte == 0x99),
                        "{name}: stored to, or marked, where it is no more"
                    );
                }
                space.write(GuestPhys::new(flag), &[1]).unwrap();
            });
            vm.run(0x4000);
        });
        assert_eq!(vm.x(bad), 0, "{name}");
        assert!(vm.x(faults) > 0 && vm.x(good) > 0, "{name}: {} faults, {} turns", vm.x(faults), vm.x(good));
    }
}

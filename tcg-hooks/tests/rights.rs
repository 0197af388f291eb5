//! Which loads, stores and fetches a mode may make, by MPRV, SUM, MXR, page tables and PMP: on each engine, told by the cause of
//! the trap. (`paging.rs` asks whether the engines agree, `pmp.rs` and `walk.rs` whether the parts are right.)

mod common;

use common::*;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{self, CsrEffect, mstatus, num};
use notdirty_tcg::riscv::trap::cause;
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::{EngineKind, JitFlags};

const HANDLER: u64 = RAM + 0x800;
const CODE: u64 = RAM + 0x1000;
const TABLES: u64 = RAM + 0x4_0000;
const DATA: u64 = RAM + 0x5_0000;
/// Pages of the address space: the code, pages of S-mode and of U-mode, one that is only executed, one that is only read.
const TEXT: u64 = 0x4000;
const OF_S: u64 = 0x5000;
const OF_U: u64 = 0x6000;
const X_ONLY: u64 = 0x7000;
const R_ONLY: u64 = 0x8000;

const SV39: u64 = 8 << 60 | TABLES >> 12;
const OPEN: &[(u16, u64)] = &[(num::PMPADDR0, !0), (num::PMPCFG0, 0x1f)];

/// What the hart is given, in M-mode; then it goes on in this mode.
struct Case<'a> {
    mode: Privilege,
    status: u64,
    csrs: &'a [(u16, u64)],
}

/// The cause of the trap that ends it: of the access, or of the `ecall` behind three of them.
fn ends_by(setup: &Setup, case: &Case<'_>, op: Op, at: u64) -> u64 {
    let mut vm = Vm::with(setup);
    let write = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
    write(TABLES, (TABLES + 0x1000) >> 2 | 1);
    write(TABLES + 0x1000, (TABLES + 0x2000) >> 2 | 1);
    let text_of = if case.mode == Privilege::U { 0xdb } else { 0xcb };
    for (page, to, bits) in [
        (TEXT, CODE, text_of),
        (OF_S, DATA, 0xc7),
        (OF_U, DATA + 0x1000, 0xd7),
        (X_ONLY, DATA + 0x2000, 0xc9),
        (R_ONLY, DATA + 0x3000, 0xc3),
    ] {
        write(TABLES + 0x2000 + (page >> 12) * 8, to >> 2 | bits);
    }
    // M-mode's own stores are its own, whatever was before the trap.
    let mut handler = Asm::at(HANDLER);
    handler.op(Op::Lui, T6, 0, 0, 0x20000).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into()).stop();
    handler.put(&vm);
    let access = encode(op, A0, S0, if op == Op::Sd { A1 } else { 0 }, 0);
    let mut code = Asm::at(CODE);
    code.i(li(S1, 3)).i(access).i(addi(S1, S1, -1)).op(Op::Bne, 0, S1, ZERO, -8).op(Op::Ecall, 0, 0, 0, 0);
    code.put(&vm);
    let translated = case.mode != Privilege::M && case.csrs.iter().any(|&(csr, value)| csr == num::SATP && value != 0);
    let cpu = vm.vcpu.cpu_mut();
    for &(csr, value) in case.csrs.iter().chain(&[(num::MTVEC, HANDLER), (num::MSTATUS, case.status)]) {
        let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
    }
    (cpu.privilege, cpu.x[usize::from(S0)]) = (case.mode, at);
    vm.run(if translated { TEXT } else { CODE });
    vm.vcpu.cpu().csr.mcause
}

fn check(case: &Case<'_>, op: Op, at: u64, wanted: Option<u64>, what: &str) {
    let ecall = cause::ECALL_U + case.mode.bits();
    for (name, setup) in [
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }),
        ("translated", Setup::default()),
    ] {
        assert_eq!(ends_by(&setup, case, op, at), wanted.unwrap_or(ecall), "{name}: {what}, {op:?} at {at:#x}");
    }
}

const LOAD: Option<u64> = Some(cause::LOAD_PAGE);
const STORE: Option<u64> = Some(cause::STORE_PAGE);

fn mpp(mode: Privilege) -> u64 {
    mode.bits() << mstatus::MPP_SHIFT
}

#[test]
fn machine_mode_loads_and_stores_as_the_mode_before_while_mprv_says_so() {
    let csrs = [OPEN, &[(num::SATP, SV39)]].concat();
    let (s, u) = (mpp(Privilege::S), mpp(Privilege::U));
    let (mprv, sum, mxr) = (mstatus::MPRV, mstatus::SUM, mstatus::MXR);
    for (status, at, load, store) in [
        (mprv | s, OF_S, None, None),
        (mprv | s, OF_U, LOAD, STORE),
        (mprv | s | sum, OF_U, None, None),
        (mprv | u, OF_U, None, None),
        (mprv | u | sum, OF_S, LOAD, STORE),
        (mprv | s, X_ONLY, LOAD, STORE),
        (mprv | s | mxr, X_ONLY, None, STORE),
        (mprv | s, R_ONLY, None, STORE),
        (mprv | s, DATA, LOAD, STORE),
        // Without it, or if that was M-mode, addresses are physical.
        (s, DATA, None, None),
        (mprv | mpp(Privilege::M), DATA, None, None),
        (s, OF_S, Some(cause::LOAD_ACCESS), Some(cause::STORE_ACCESS)),
        (mprv | mpp(Privilege::M), OF_S, Some(cause::LOAD_ACCESS), Some(cause::STORE_ACCESS)),
    ] {
        let case = Case { mode: Privilege::M, status, csrs: &csrs };
        check(&case, Op::Ld, at, load, &format!("mstatus {status:#x}"));
        check(&case, Op::Sd, at, store, &format!("mstatus {status:#x}"));
    }
}

#[test]
fn sum_and_mxr_open_pages_to_supervisor_mode_and_sum_opens_none_to_user_mode() {
    let csrs = [OPEN, &[(num::SATP, SV39)]].concat();
    for (mode, status, at, load, store) in [
        (Privilege::S, 0, OF_S, None, None),
        (Privilege::S, 0, OF_U, LOAD, STORE),
        (Privilege::S, mstatus::SUM, OF_U, None, None),
        (Privilege::S, mstatus::MXR, X_ONLY, None, STORE),
        (Privilege::S, 0, X_ONLY, LOAD, STORE),
        (Privilege::U, 0, OF_U, None, None),
        (Privilege::U, mstatus::SUM, OF_S, LOAD, STORE),
        (Privilege::U, mstatus::MXR, X_ONLY, LOAD, STORE),
    ] {
        let case = Case { mode, status, csrs: &csrs };
        check(&case, Op::Ld, at, load, &format!("{mode}, mstatus {status:#x}"));
        check(&case, Op::Sd, at, store, &format!("{mode}, mstatus {status:#x}"));
    }
}

#[test]
fn protection_binds_lower_modes_without_page_tables_and_machine_mode_by_locks() {
    let page = |at: u64| at >> 2 | 0x1ff;
    let (load, store) = (Some(cause::LOAD_ACCESS), Some(cause::STORE_ACCESS));
    let fetch = Some(cause::FETCH_ACCESS);
    let (first, second, config) = (num::PMPADDR0, num::PMPADDR0 + 1, num::PMPCFG0);
    for (mode, csrs, on_load, on_store) in [
        // No entry: nothing below M-mode. One of everything: all, or what it says.
        (Privilege::S, vec![], fetch, fetch),
        (Privilege::M, vec![], None, None),
        (Privilege::U, OPEN.to_vec(), None, None),
        (Privilege::U, vec![(first, !0), (config, 0x1d)], None, store),
        (Privilege::S, vec![(first, !0), (config, 0x1b)], fetch, fetch),
        (Privilege::U, vec![(first, !0), (config, 0x1c)], load, store),
        // By TOR: up to its address, without the bytes there; not the half of all that there is.
        (Privilege::S, vec![(first, DATA >> 2), (config, 0x0f)], load, store),
        (Privilege::S, vec![(first, (DATA + 8) >> 2), (config, 0x0f)], None, None),
        (Privilege::S, vec![(first, DATA >> 2), (second, (DATA + 8) >> 2), (config, 0x090f)], None, store),
        // The first that matches decides.
        (Privilege::S, vec![(first, page(DATA)), (second, !0), (config, 0x1f18)], load, store),
        (Privilege::S, vec![(first, page(DATA)), (second, !0), (config, 0x1f19)], None, store),
        (Privilege::M, vec![(first, page(DATA)), (second, !0), (config, 0x1f18)], None, None),
        (Privilege::M, vec![(first, page(DATA)), (second, !0), (config, 0x1f98)], load, store),
        (Privilege::M, vec![(first, page(DATA)), (second, !0), (config, 0x1f99)], None, store),
        // Four bytes of the eight.
        (Privilege::S, vec![(first, DATA >> 2), (second, !0), (config, 0x1f17)], load, store),
        (Privilege::S, vec![(first, (DATA + 8) >> 2), (second, !0), (config, 0x1f10)], None, None),
    ] {
        let case = Case { mode, status: 0, csrs: &csrs };
        check(&case, Op::Ld, DATA, on_load, &format!("{mode}, {csrs:x?}"));
        check(&case, Op::Sd, DATA, on_store, &format!("{mode}, {csrs:x?}"));
    }
}

#[test]
fn protection_binds_what_page_tables_allow_and_the_tables_themselves() {
    let page = |at: u64| at >> 2 | 0x1ff;
    let (load, store) = (Some(cause::LOAD_ACCESS), Some(cause::STORE_ACCESS));
    for (protected, bits, adue, on_load, on_store) in [
        (DATA, 0x18, 0, load, store),
        (DATA, 0x19, 0, None, store),
        (DATA + 0x1000, 0x18, 0, None, None),
        // A walk reads as S-mode: first of all for the code.
        (TABLES + 0x2000, 0x18, 0, Some(cause::FETCH_ACCESS), Some(cause::FETCH_ACCESS)),
        // Marks that are there already need no store.
        (TABLES + 0x2000, 0x19, 1 << 61, None, None),
    ] {
        let csrs = [
            (num::PMPADDR0, page(protected)),
            (num::PMPADDR0 + 1, !0),
            (num::PMPCFG0, 0x1f00 | bits),
            (num::MENVCFG, adue),
            (num::SATP, SV39),
        ];
        let case = Case { mode: Privilege::S, status: 0, csrs: &csrs };
        check(&case, Op::Ld, OF_S, on_load, &format!("{protected:#x} {bits:#x}"));
        check(&case, Op::Sd, OF_S, on_store, &format!("{protected:#x} {bits:#x}"));
    }
}

#[test]
fn protection_up_to_half_of_all_addresses_leaves_the_other_half_to_none_below_machine_mode() {
    const FAR: u64 = 1 << 55;
    for (end, wanted) in [((1 << 53) - 1, Some(cause::LOAD_ACCESS)), ((1 << 54) - 1, None)] {
        for setup in [Setup { engine: EngineKind::Interp, ..Setup::default() }, Setup::default()] {
            let mut vm = Vm::with(&setup);
            vm.space.map_alias(GuestPhys::new(FAR), GuestPhys::new(DATA), 0x1000, 0).unwrap();
            let mut handler = Asm::at(HANDLER);
            handler.stop().put(&vm);
            vm.put(CODE, &[encode(Op::Ld, A0, S0, 0, 0), encode(Op::Ecall, 0, 0, 0, 0)]);
            let cpu = vm.vcpu.cpu_mut();
            for (csr, value) in [(num::PMPADDR0, end), (num::PMPCFG0, 0x0f), (num::MTVEC, HANDLER)] {
                let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
            }
            (cpu.privilege, cpu.x[usize::from(S0)]) = (Privilege::S, FAR);
            vm.run(CODE);
            assert_eq!(vm.vcpu.cpu().csr.mcause, wanted.unwrap_or(cause::ECALL_U + 1), "{end:#x}");
        }
    }
}

#[test]
fn a_change_of_protection_is_heard_by_the_next_access_without_a_fence() {
    for (name, setup) in [
        ("oracle", Setup { engine: EngineKind::Interp, ..Setup::default() }),
        ("tiers", Setup { flags: JitFlags::default(), ..Setup::default() }),
        ("translated", Setup::default()),
    ] {
        for satp in [0, SV39] {
            let mut vm = Vm::with(&setup);
            let write = |at: u64, entry: u64| vm.space.write(GuestPhys::new(at), &entry.to_le_bytes()).unwrap();
            write(TABLES, (TABLES + 0x1000) >> 2 | 1);
            write(TABLES + 0x1000, (TABLES + 0x2000) >> 2 | 1);
            write(TABLES + 0x2000 + (OF_S >> 12) * 8, DATA >> 2 | 0xc7);
            let mut handler = Asm::at(HANDLER);
            handler.op(Op::Lui, T6, 0, 0, 0x20000).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into()).stop();
            handler.put(&vm);
            // As S-mode: the page's entry allows it, then does not.
            let load = encode(Op::Ld, A0, S0, 0, 0);
            let mut code = Asm::at(CODE);
            code.i(load).op(Op::Csrrw, ZERO, A1, 0, num::PMPCFG0.into());
            let refused = code.here();
            code.i(load);
            code.put(&vm);
            let cpu = vm.vcpu.cpu_mut();
            for (csr, value) in [
                (num::PMPADDR0, DATA >> 2 | 0x1ff),
                (num::PMPADDR0 + 1, !0),
                (num::PMPCFG0, 0x1f1f),
                (num::MTVEC, HANDLER),
                (num::SATP, satp),
                (num::MSTATUS, mstatus::MPRV | mpp(Privilege::S)),
            ] {
                let _: CsrEffect = csr::csr_write(cpu, csr, value).expect("M-mode may");
            }
            cpu.x[usize::from(S0)] = if satp == 0 { DATA } else { OF_S };
            cpu.x[usize::from(A1)] = 0x1f18;
            vm.run(CODE);
            let csr = &vm.vcpu.cpu().csr;
            assert_eq!((csr.mcause, csr.mepc), (cause::LOAD_ACCESS, refused), "{name}, satp {satp:#x}");
        }
    }
}

/// `table` and what follows lead to a leaf for `va` by so many levels.
fn map(vm: &Vm, table: u64, levels: u64, va: u64, leaf: u64) {
    for level in (0..levels).rev() {
        let at = table + (levels - 1 - level) * 0x1000;
        let entry = if level == 0 { leaf } else { (at + 0x1000) >> 2 | 1 };
        let slot = at + (va >> (12 + 9 * level) & 511) * 8;
        vm.space.write(GuestPhys::new(slot), &entry.to_le_bytes()).unwrap();
    }
}

fn all_engines() -> [Setup; 3] {
    [
        Setup { engine: EngineKind::Interp, ..Setup::default() },
        Setup { flags: JitFlags::default(), ..Setup::default() },
        Setup::default(),
    ]
}

#[test]
fn an_address_that_machine_mode_knows_is_that_of_the_tables_once_mprv_is_set() {
    for setup in all_engines() {
        let mut vm = Vm::with(&setup);
        map(&vm, TABLES, 3, DATA, (DATA + 0x1000) >> 2 | 0xc7);
        vm.block.store_raw(DATA - RAM, 8, 1).unwrap();
        vm.block.store_raw(DATA + 0x1000 - RAM, 8, 100).unwrap();
        // Both, again and again: the sum of each, and a store to each.
        let mut code = Asm::at(CODE);
        code.i(li(S1, 20)).word(T0, mstatus::MPRV as u32);
        let top = code.here();
        code.op(Op::Ld, A2, S0, 0, 0).op(Op::Add, A0, A0, A2, 0).i(encode(Op::Sd, 0, S0, A0, 8));
        code.op(Op::Csrrs, ZERO, T0, 0, num::MSTATUS.into());
        code.op(Op::Ld, A2, S0, 0, 0).op(Op::Add, A1, A1, A2, 0).i(encode(Op::Sd, 0, S0, A1, 8));
        code.op(Op::Csrrc, ZERO, T0, 0, num::MSTATUS.into()).i(addi(S1, S1, -1));
        let back = top.wrapping_sub(code.here()) as i32;
        code.op(Op::Bne, 0, S1, ZERO, back).stop();
        code.put(&vm);
        let cpu = vm.vcpu.cpu_mut();
        cpu.csr.allow_all_memory();
        (cpu.csr.satp, cpu.x[usize::from(S0)]) = (SV39, DATA);
        cpu.csr.mstatus |= mpp(Privilege::S);
        vm.run(CODE);
        assert_eq!((vm.x(A0), vm.x(A1)), (20, 2000));
        let stored = [DATA, DATA + 0x1000].map(|at| vm.block.load(at + 8 - RAM, 8).unwrap());
        assert_eq!(stored, [20, 2000]);
    }
}

#[test]
fn a_fence_of_an_address_space_reaches_all_sixteen_bits_of_its_number_in_every_scheme() {
    const ASID: u64 = 0x1234;
    for setup in all_engines() {
        for (scheme, levels) in [(8u64, 3), (9, 4), (10, 5)] {
            for op in [Op::SfenceVma, Op::SinvalVma] {
                let mut vm = Vm::with(&setup);
                map(&vm, TABLES, levels, OF_S, DATA >> 2 | 0xc7);
                vm.block.store_raw(DATA - RAM, 8, 1).unwrap();
                vm.block.store_raw(DATA + 0x1000 - RAM, 8, 2).unwrap();
                let mut code = Asm::at(CODE);
                code.op(op, 0, ZERO, A3, 0).word(T0, mstatus::MPRV as u32);
                code.op(Op::Csrrs, ZERO, T0, 0, num::MSTATUS.into()).op(Op::Ld, A0, S0, 0, 0);
                code.op(Op::Csrrc, ZERO, T0, 0, num::MSTATUS.into()).stop();
                code.put(&vm);
                let cpu = vm.vcpu.cpu_mut();
                cpu.csr.allow_all_memory();
                cpu.csr.satp = scheme << 60 | ASID << 44 | TABLES >> 12;
                cpu.csr.mstatus |= mpp(Privilege::S);
                (cpu.x[usize::from(S0)], cpu.x[usize::from(A3)]) = (OF_S, ASID);
                for (to, value) in [(DATA, 1), (DATA + 0x1000, 2), (DATA, 1)] {
                    map(&vm, TABLES, levels, OF_S, to >> 2 | 0xc7);
                    vm.run(CODE);
                    assert_eq!(vm.x(A0), value, "scheme {scheme}, {op:?}");
                }
            }
        }
    }
}

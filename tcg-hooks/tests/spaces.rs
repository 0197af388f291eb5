//! Random programs of S-mode that go from one address space to another and map their code and data anew, with every fence that the
//! specification asks for and no other: what they do is the same whatever is kept of translations.
//!
//! ```text
//!   40 spaces, some share an ASID    data: in place, or shuffled    code: three frames for each page; jumps lead from page to page
//!   a step: satp │ a page elsewhere, fenced in one of four ways │ a superpage, cut or made │ SUM, MXR │ PMP │ MPRV │ code written │ calls
//!           │ the host: more RAM over a frame, and away again, a state saved and restored
//! ```

mod common;

use common::*;
use notdirty_core::RamBlockSpec;
use notdirty_softmmu::GuestPhys;
use notdirty_tcg::riscv::csr::{mstatus, num};
use notdirty_tcg::riscv::{Op, Privilege};
use notdirty_tcg::testkit::encode;
use notdirty_tcg::testkit::rng::Rng;
use notdirty_tcg::{EngineKind, JitFlags};

const HANDLER: u64 = RAM + 0x800;
const MAIN: u64 = RAM + 0x8000;
/// `satp` of each space.
const SATPS: u64 = RAM + 0x1000;
const CODE: u64 = RAM + 0x8_0000;
const CODE_PAGES: u64 = 6;
/// From a frame of a code page to the next one for it.
const VARIANT: u64 = 0x8000;
const VARIANTS: u64 = 3;
const DATA: u64 = RAM + 0x10_0000;
const DATA_PAGES: u64 = 24;
const FRAMES: u64 = 64;
/// Each has a root, a middle table, and two of leaves: of the first 2 MiB, and of those from `BIG` on.
const TABLES: u64 = RAM + 0x20_0000;
const SPACES: u64 = 40;
const BIG: u64 = RAM + 0x40_0000;
const BIG_PAGES: u64 = 12;
const SIZE: u64 = 0x80_0000;

const V: u64 = 0xc1;
const RWX: u64 = V | 0x0e;
const RW: u64 = V | 0x06;
const X: u64 = V | 0x08;
const USER: u64 = 0x10;
const GLOBAL: u64 = 0x20;

const A5: u8 = 15;
const A6: u8 = 16;
const A7: u8 = 17;
const S6: u8 = 22;
const S7: u8 = 23;
const S8: u8 = 24;
const S9: u8 = 25;
const S10: u8 = 26;
const S11: u8 = 27;

fn back(asm: &Asm, to: u64) -> i32 {
    (to as i64 - asm.here() as i64) as i32
}

/// Adds up traps and goes on behind them; does what S-mode asks for.
fn handler() -> Asm {
    let mut asm = Asm::at(HANDLER);
    asm.op(Op::Csrrs, S8, ZERO, 0, num::MCAUSE.into()).op(Op::Slli, S9, S2, 0, 1).op(Op::Add, S2, S9, S8, 0);
    asm.op(Op::Csrrs, S9, ZERO, 0, num::MTVAL.into()).op(Op::Slli, T5, S3, 0, 1).op(Op::Add, S3, T5, S9, 0);
    asm.op(Op::Csrrs, S9, ZERO, 0, num::MEPC.into()).i(addi(S9, S9, 4)).op(Op::Csrrw, ZERO, S9, 0, num::MEPC.into());
    // Not an `ecall` of S-mode.
    asm.i(addi(T5, ZERO, 9)).i(encode(Op::Beq, 0, S8, T5, 8)).op(Op::Mret, 0, 0, 0, 0);
    asm.i(encode(Op::Bne, 0, A7, ZERO, 5 * 4));
    asm.op(Op::Csrrw, ZERO, A5, 0, num::PMPADDR0.into()).op(Op::Csrrw, ZERO, A6, 0, num::PMPCFG0.into());
    asm.op(Op::SfenceVma, 0, 0, 0, 0).op(Op::Mret, 0, 0, 0, 0);
    // As S-mode does: a loop by MPRV, in which traps take some registers.
    asm.i(addi(S11, S9, 0))
        .word(T5, mstatus::MPRV as u32)
        .op(Op::Csrrs, ZERO, T5, 0, num::MSTATUS.into())
        .i(li(T6, 40));
    let again = asm.here();
    asm.op(Op::Ld, S10, A1, 0, 0).op(Op::Add, S4, S4, S10, 0).op(Op::Sd, 0, A1, S4, 16).i(addi(T6, T6, -1));
    let to = back(&asm, again);
    asm.op(Op::Bne, 0, T6, ZERO, to).word(T5, mstatus::MPRV as u32).op(Op::Csrrc, ZERO, T5, 0, num::MSTATUS.into());
    asm.word(T6, mstatus::MPP as u32).op(Op::Csrrc, ZERO, T6, 0, num::MSTATUS.into());
    asm.word(T6, 1 << mstatus::MPP_SHIFT).op(Op::Csrrs, ZERO, T6, 0, num::MSTATUS.into());
    asm.op(Op::Csrrw, ZERO, S11, 0, num::MEPC.into()).op(Op::Mret, 0, 0, 0, 0);
    asm
}

/// What a variant's page has: it is entered at its start, and in its middle by a jump from the page before.
fn code_page(page: u64, variant: u64) -> Vec<(u64, Vec<u32>)> {
    let at = CODE + page * 0x1000;
    let own = (1 + variant * 37 + page * 5) as i32;
    let mut parts = Vec::new();
    match page {
        // A loop over two pages: loads on this one, and its end on the next.
        0 | 2 => {
            let mut asm = Asm::at(at);
            asm.i(addi(T1, A1, 0)).i(addi(T2, A2, 0));
            let top = asm.here();
            asm.op(Op::Ld, A3, T1, 0, 8).op(Op::Add, A0, A0, A3, 0).i(addi(A0, A0, own));
            asm.op(Op::Lw, A4, T1, 0, 0x104).op(Op::Lhu, T3, T1, 0, 0x7fe).op(Op::Xor, A0, A0, A4, 0);
            if page == 2 {
                asm.op(Op::Sd, 0, T1, A0, 16).op(Op::Sb, 0, T1, A0, 0x7fe);
            }
            asm.op(Op::Add, A0, A0, T3, 0);
            assert_eq!(top, at + 8);
            let to = jal(ZERO, asm.here(), at + 0x1000 + 0x800);
            asm.i(to);
            parts.push((0, asm.code));
        }
        1 | 3 => {
            let mut asm = Asm::at(at + 0x800);
            asm.i(addi(A0, A0, own))
                .op(Op::Add, T1, T1, S6, 0)
                .i(addi(T2, T2, -1))
                .i(encode(Op::Bne, 0, T2, ZERO, 8))
                .i(ret());
            let to = jal(ZERO, asm.here(), at - 0x1000 + 8);
            asm.i(to);
            parts.push((0x800, asm.code));
        }
        // Over the end of its page.
        4 => {
            let mut asm = Asm::at(at + 0xff4);
            asm.i(addi(A0, A0, own)).op(Op::Ld, A3, A1, 0, 8).op(Op::Add, A0, A0, A3, 0);
            parts.push((0xff4, asm.code));
            let mut asm = Asm::at(at);
            asm.i(addi(A0, A0, own));
            let to = jal(ZERO, asm.here(), at + 0xff4);
            asm.i(to);
            parts.push((0, asm.code));
        }
        _ => {
            let mut asm = Asm::at(at);
            asm.i(addi(A0, A0, own)).i(addi(A2, A2, -1)).i(encode(Op::Bne, 0, A2, ZERO, 8)).i(ret());
            let to = jal(ZERO, asm.here(), at - 0x1000);
            asm.i(to);
            parts.push((0, asm.code));
        }
    }
    parts
}

/// What the host does at a stop.
#[derive(Debug, Clone, Copy)]
enum Act {
    Save,
    Write(u64),
    Plug(u64),
    Unplug,
    End,
}

type Leaves = ([u64; CODE_PAGES as usize], [u64; DATA_PAGES as usize], [u64; BIG_PAGES as usize], u64);

struct Plan {
    main: Asm,
    acts: Vec<Act>,
    /// Of each space: leaves of code, data and `BIG`, as they are at first; and what is at `BIG`.
    leaves: Vec<Leaves>,
    asids: Vec<u64>,
}

fn table(space: u64, n: u64) -> u64 {
    TABLES + (space * 4 + n) * 0x1000
}

fn code_leaf(rng: &mut Rng, page: u64) -> u64 {
    (CODE + page * 0x1000 + rng.below(VARIANTS) * VARIANT) >> 2 | RWX
}

fn data_leaf(rng: &mut Rng, page: u64, in_place: bool) -> u64 {
    let frame = if rng.chance(if in_place { 95 } else { 10 }) { page } else { rng.below(FRAMES) };
    let rights = match rng.below(12) {
        0 => RW | USER,
        1 => X,
        2 => V | 2,
        3 if !in_place => 0,
        _ => RW,
    };
    (DATA + frame * 0x1000) >> 2 | rights
}

fn big_leaf(rng: &mut Rng, page: u64, in_place: bool) -> u64 {
    let frame =
        if rng.chance(if in_place { 95 } else { 20 }) { page } else { rng.below(2) * 0x200 + rng.below(BIG_PAGES) };
    (BIG + frame * 0x1000) >> 2 | RW
}

/// A superpage in place or another, or a table.
fn big(rng: &mut Rng, space: u64) -> u64 {
    match rng.below(4) {
        0 => BIG >> 2 | RW,
        1 => (BIG + 0x20_0000) >> 2 | RW,
        _ => table(space, 3) >> 2 | 1,
    }
}

fn plan(rng: &mut Rng, steps: u32) -> Plan {
    let few = rng.chance(50);
    let spaces = if few { 3 } else { SPACES };
    let mostly = rng.pick(&[0, 50, 100, 100]);
    let in_place: Vec<bool> = (0..spaces).map(|_| rng.chance(mostly)).collect();
    let asids: Vec<u64> = (0..spaces).map(|n| if n % 8 == 7 { n - 1 } else { n + 1 }).collect();
    let leaves = (0..spaces)
        .map(|space| {
            let place = in_place[space as usize];
            (
                std::array::from_fn(|page| code_leaf(rng, page as u64)),
                std::array::from_fn(|page| data_leaf(rng, page as u64, place)),
                std::array::from_fn(|page| big_leaf(rng, page as u64, place)),
                big(rng, space),
            )
        })
        .collect();
    let mut owner = std::collections::HashMap::from([(asids[0], 0u64)]);
    let mut now = 0u64;
    let mut acts = Vec::new();
    let mut plugged = false;
    let mut asm = Asm::at(MAIN);
    asm.i(li(A0, 1)).word(S6, 0x1000);
    for _ in 0..steps {
        let stop = |asm: &mut Asm| {
            asm.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0);
        };
        match rng.below(30) {
            0..5 => {
                now = if rng.chance(60) { rng.below(spaces) } else { (now + 1) % spaces };
                asm.la(T0, SATPS + 8 * now).op(Op::Ld, T0, T0, 0, 0).op(Op::Csrrw, ZERO, T0, 0, num::SATP.into());
                let asid = asids[now as usize];
                if owner.insert(asid, now).is_some_and(|before| before != now) {
                    asm.i(li(T1, asid as i32)).op(Op::SfenceVma, 0, ZERO, if rng.chance(70) { T1 } else { ZERO }, 0);
                }
            }
            5..12 => {
                let space = if rng.chance(80) { now } else { rng.below(spaces) };
                let place = in_place[space as usize];
                let pages = if rng.chance(20) { 6 } else { 1 };
                for _ in 0..pages {
                    let (at, va, leaf) = match rng.below(8) {
                        0..3 => {
                            let page = rng.below(CODE_PAGES);
                            (
                                table(space, 2) + (CODE - RAM) / 512 + page * 8,
                                CODE + page * 0x1000,
                                code_leaf(rng, page),
                            )
                        }
                        3..6 => {
                            let page = rng.below(DATA_PAGES);
                            let at = table(space, 2) + (DATA - RAM) / 512 + page * 8;
                            (at, DATA + page * 0x1000, data_leaf(rng, page, place))
                        }
                        6 => {
                            let page = rng.below(BIG_PAGES);
                            (table(space, 3) + page * 8, BIG + page * 0x1000, big_leaf(rng, page, place))
                        }
                        _ => (table(space, 1) + (BIG - RAM) / 0x20_0000 * 8, u64::MAX, big(rng, space)),
                    };
                    asm.la(T0, at).word(T1, leaf as u32).op(Op::Sd, 0, T0, T1, 0);
                    let asid = asids[space as usize];
                    asm.i(li(T1, asid as i32));
                    let by_asid = if rng.chance(60) { T1 } else { ZERO };
                    if va == u64::MAX {
                        // What was a table has many pages.
                        asm.op(Op::SfenceVma, 0, ZERO, by_asid, 0);
                    } else {
                        asm.la(T0, va);
                        asm.op(Op::SfenceVma, 0, if rng.chance(75) { T0 } else { ZERO }, by_asid, 0);
                    }
                }
            }
            12 => {
                asm.word(T0, (mstatus::SUM | mstatus::MXR) as u32 & rng.bits() as u32);
                asm.op(rng.pick(&[Op::Csrrs, Op::Csrrc]), ZERO, T0, 0, num::SSTATUS.into());
            }
            13 => {
                let (address, config) = if rng.chance(50) {
                    ((1 << 54) - 1, 0x1f)
                } else {
                    (
                        ((DATA + rng.below(DATA_PAGES) * 0x1000) >> 2) | ((1 << rng.within(5, 11)) - 1),
                        0x18 | rng.below(2),
                    )
                };
                asm.la(T0, SATPS + 0x800).op(Op::Ld, A5, T0, 0, 0);
                if config != 0x1f {
                    asm.word(A5, address as u32).op(Op::Slli, A5, A5, 0, 32).op(Op::Srli, A5, A5, 0, 32);
                }
                asm.word(A6, 0x1f00 | config as u32).i(li(A7, 0)).op(Op::Ecall, 0, 0, 0, 0);
            }
            14 => {
                asm.la(A1, DATA + rng.below(DATA_PAGES) * 0x1000).i(li(A7, 1)).op(Op::Ecall, 0, 0, 0, 0);
            }
            15 => {
                // A frame that is seen at another address, too, in all spaces.
                let (page, variant) = (rng.pick(&[1u64, 3]), 1 + rng.below(VARIANTS - 1));
                asm.la(T0, CODE + page * 0x1000 + variant * VARIANT + 0x800)
                    .word(T1, addi(A0, A0, rng.within(-99, 99) as i32));
                asm.op(Op::Sw, 0, T0, T1, 0).op(Op::FenceI, 0, 0, 0, 0);
            }
            16 => {
                let act = match rng.below(4) {
                    0 => Act::Save,
                    1 => Act::Write(DATA + rng.below(FRAMES * 0x200) * 8),
                    _ if plugged => Act::Unplug,
                    _ if rng.chance(50) => Act::Plug(DATA + rng.below(DATA_PAGES - 1) * 0x1000),
                    _ => Act::Plug(CODE + rng.below(CODE_PAGES - 1) * 0x1000),
                };
                plugged = match act {
                    Act::Plug(_) => true,
                    Act::Unplug => false,
                    _ => plugged,
                };
                acts.push(act);
                stop(&mut asm);
            }
            n => {
                let rounds = if rng.chance(30) { 30 } else { 4 };
                asm.i(li(S7, rounds));
                let round = asm.here();
                let wide = n % 4 == 0;
                let (base, pages) = if wide { (BIG, BIG_PAGES) } else { (DATA, DATA_PAGES) };
                let first = rng.below(pages - 1);
                let count = 1 + rng.below(pages - first);
                asm.la(A1, base + first * 0x1000).i(li(A2, count as i32));
                let to = jal(RA, asm.here(), CODE + rng.pick(&[0u64, 0, 2, 4]) * 0x1000);
                asm.i(to).i(addi(S7, S7, -1));
                let to = back(&asm, round);
                asm.op(Op::Bne, 0, S7, ZERO, to);
            }
        }
    }
    acts.push(Act::End);
    asm.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0).i(jal(ZERO, 0, 0));
    assert!(asm.here() < CODE, "{:#x}", asm.here());
    Plan { main: asm, acts, leaves, asids }
}

fn machine(setup: &Setup, plan: &Plan) -> Vm {
    let mut vm = Vm::with(setup);
    handler().put(&vm);
    plan.main.put(&vm);
    let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
    for page in 0..CODE_PAGES {
        for variant in 0..VARIANTS {
            for (offset, words) in code_page(page, variant) {
                vm.put(CODE + page * 0x1000 + variant * VARIANT + offset, &words);
            }
        }
    }
    let mut rng = Rng::new(1);
    let words: Vec<u32> = (0..FRAMES * 0x400).map(|_| rng.bits() as u32).collect();
    vm.put(DATA, &words);
    vm.put(BIG, &words[..BIG_PAGES as usize * 0x400]);
    vm.put(BIG + 0x20_0000, &words[0x7000..0x7000 + BIG_PAGES as usize * 0x400]);
    for (n, (leaves, asid)) in plan.leaves.iter().zip(&plan.asids).enumerate() {
        let space = n as u64;
        write(SATPS + 8 * space, 8 << 60 | asid << 44 | table(space, 0) >> 12);
        write(table(space, 0), RW | GLOBAL);
        write(table(space, 0) + 16, table(space, 1) >> 2 | 1);
        write(table(space, 1), table(space, 2) >> 2 | 1);
        write(table(space, 1) + 8, TABLES >> 2 | RW | GLOBAL);
        write(table(space, 1) + (BIG - RAM) / 0x20_0000 * 8, leaves.3);
        for page in 0..512 {
            write(table(space, 2) + page * 8, (RAM + (page << 12)) >> 2 | RWX | GLOBAL);
        }
        for (page, leaf) in leaves.0.iter().enumerate() {
            write(table(space, 2) + (CODE - RAM) / 512 + page as u64 * 8, *leaf);
        }
        for (page, leaf) in leaves.1.iter().enumerate() {
            write(table(space, 2) + (DATA - RAM) / 512 + page as u64 * 8, *leaf);
        }
        for (page, leaf) in leaves.2.iter().enumerate() {
            write(table(space, 3) + page as u64 * 8, *leaf);
        }
    }
    write(SATPS + 0x800, (1 << 54) - 1);
    let cpu = vm.vcpu.cpu_mut();
    cpu.csr.allow_all_memory();
    let mut first = Asm::at(RAM + 0x4000);
    first.la(T0, SATPS + 0x800).op(Op::Ld, T1, T0, 0, 0).op(Op::Csrrw, ZERO, T1, 0, (num::PMPADDR0 + 1).into());
    first.op(Op::Csrrw, ZERO, T1, 0, num::PMPADDR0.into()).word(T2, 0x1f1f).op(
        Op::Csrrw,
        ZERO,
        T2,
        0,
        num::PMPCFG0.into(),
    );
    first.op(Op::Mret, 0, 0, 0, 0);
    cpu.csr.mtvec = HANDLER;
    cpu.csr.mepc = MAIN;
    cpu.csr.satp = 8 << 60 | plan.asids[0] << 44 | table(0, 0) >> 12;
    cpu.csr.mstatus = cpu.csr.mstatus & !mstatus::MPP | 1 << mstatus::MPP_SHIFT;
    cpu.privilege = Privilege::M;
    first.put(&vm);
    vm
}

/// Registers and RAM after each stop.
fn run(setup: &Setup, plan: &Plan) -> Vec<([u64; 32], Vec<u8>)> {
    let mut vm = machine(setup, plan);
    let dimm = vm.list.add(RamBlockSpec::new("dimm", 0x2000).near(NEAR)).unwrap();
    vm.list.write(&dimm, 0, &[0x21; 0x2000]).unwrap();
    let mut at = RAM + 0x4000;
    let mut found = Vec::new();
    let mut over = None;
    for act in &plan.acts {
        vm.run(at);
        let mut bytes = vec![0; vm.block.used_length() as usize];
        vm.block.read_bytes(0, &mut bytes).unwrap();
        found.push((vm.vcpu.cpu().x, bytes));
        match *act {
            Act::Save => {
                let state = vm.vcpu.save();
                vm.vcpu.restore(&state, false);
            }
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
        at = vm.vcpu.cpu().pc;
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

#[test]
fn programs_that_fence_what_they_map_do_the_same_whatever_is_kept() {
    let count = std::env::var("NOTDIRTY_SPACES").ok().and_then(|n| n.parse().ok()).unwrap_or(2u64);
    for seed in 0..count {
        let mut rng = Rng::new(seed);
        let plan = plan(&mut rng, 250);
        let ram = SIZE;
        let oracle = Setup { engine: EngineKind::Interp, ram, ..Setup::default() };
        let wanted = run(&oracle, &plan);
        let flags = random_flags(&mut rng);
        let engines = [
            ("tiers", Setup { flags: JitFlags::default(), ram, ..Setup::default() }),
            ("translated", Setup { ram, ..Setup::default() }),
            ("little room", Setup { ram, cache: 1 << 16, ..Setup::default() }),
            ("block by block", Setup { ram, flags: JitFlags { regions: false, ..eager() }, ..Setup::default() }),
            ("small table", Setup { ram, flags: JitFlags { big_tlb: false, ..eager() }, ..Setup::default() }),
            ("random", Setup { ram, flags, cache: rng.pick(&[0, 1 << 16]), ..Setup::default() }),
        ];
        for (name, setup) in engines {
            let found = run(&setup, &plan);
            for (n, (ours, theirs)) in found.iter().zip(&wanted).enumerate() {
                let what =
                    format!("seed {seed}, {name}, stop {n}, {:?}", if name == "random" { Some(flags) } else { None });
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
        let mut plan = plan(&mut rng, 1);
        plan.main = Asm::at(MAIN);
        plan.main.op(Op::Csrrw, ZERO, A0, 0, num::SATP.into()).op(Op::Ld, A1, S0, 0, 0);
        plan.main.word(T0, STOP as u32).op(Op::Sw, 0, T0, ZERO, 0).i(jal(ZERO, 0, 0));
        plan.asids = vec![1, 5, 5];
        plan.leaves.truncate(3);
        for (space, leaves) in plan.leaves.iter_mut().enumerate() {
            leaves.1[0] = (DATA + space as u64 * 0x1000) >> 2 | RW;
        }
        let mut vm = machine(&Setup { engine, ram: SIZE, ..Setup::default() }, &plan);
        let write = |at: u64, value: u64| vm.space.write(GuestPhys::new(at), &value.to_le_bytes()).unwrap();
        write(DATA + 0x1000, 1000);
        write(DATA + 0x2000, 2000);
        let cpu = vm.vcpu.cpu_mut();
        (cpu.pc, cpu.privilege) = (MAIN, Privilege::S);
        cpu.x[usize::from(S0)] = DATA;
        vm.vcpu.saved();
        let start = vm.vcpu.save();
        for (space, value) in [(1u64, 1000u64), (2, 2000), (1, 1000)] {
            vm.vcpu.restore(&start, false);
            vm.vcpu.cpu_mut().x[usize::from(A0)] = 8 << 60 | 5 << 44 | table(space, 0) >> 12;
            vm.run(MAIN);
            assert_eq!(vm.x(A1), value, "{name}");
        }
    }
}
